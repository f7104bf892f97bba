//! What procedures over several sites need of a group here beyond takeover and hand-over: how it stands at every site, a
//! site that leads without mounts, and a word on the procedure that is under way (MS-10 to MS-15).

use super::*;
use crate::format::msg::Msg;
use crate::node::status::{GroupStatus, ProcedureStatus};
use crate::node::{commands, status};

/// A procedure of which nothing was heard for so long has ended.
const SILENT: Duration = Duration::from_secs(5);
/// How long all other sites together may take to say how the group stands there.
const TOLD_WITHIN: Duration = Duration::from_millis(2500);

/// The procedure that was ordered here, and when it was last heard of.
#[derive(Default)]
pub(super) struct Underway(Mutex<Option<(Instant, ProcedureStatus)>>);

impl LocalGroup {
    /// The procedure that was ordered here and is under way.
    pub fn procedure(&self) -> Option<ProcedureStatus> {
        let g = self.underway.0.lock();
        g.as_ref().filter(|(heard, _)| heard.elapsed() < SILENT).map(|(_, p)| p.clone())
    }

    /// Whoever carries a procedure out says how far it is, at least every second; `over`: it ends here. Each new step is
    /// told in the log and as an event.
    ///
    /// # Errors
    /// [`Kind::Refused`]: another one is under way.
    pub fn proceed(&self, p: ProcedureStatus, over: bool) -> Result<()> {
        let mut g = self.underway.0.lock();
        let known = g.as_ref().filter(|(heard, _)| heard.elapsed() < SILENT).map(|(_, k)| k);
        if let Some(k) = known.filter(|k| k.id != p.id) {
            return Err(Error::refused(k.in_the_way(&self.cfg.name, &self.site)));
        }
        if known.is_none_or(|k| k.step != p.step) {
            log::info!("group {}: {}: {}", self.cfg.name, p.name, p.step);
            let (subject, to) = (Some(p.name.clone()), Some(p.step.clone()));
            self.tell(Happened { subject, to, ..Happened::new(What::Procedure) });
        }
        *g = (!over).then(|| (Instant::now(), p));
        Ok(())
    }

    /// How the group stands here, for another site.
    pub(super) fn standing_json(self: &Arc<Self>) -> Result<Vec<u8>> {
        serde_json::to_vec(&commands::group_status(self, None)).map_err(|e| Error::failed(e.to_string()))
    }

    /// How it stands at the other sites that this one has a pair with; those that do not answer in time, with the reason.
    pub fn others(self: &Arc<Self>) -> Vec<status::SiteView> {
        let mut peers: Vec<&Arc<Pair>> = Vec::new();
        for p in &self.pairs {
            if !peers.iter().any(|q| q.peer == p.peer) {
                peers.push(p);
            }
        }
        let (tell, told) = crossbeam::channel::unbounded();
        for p in &peers {
            let (me, p, tell) = (self.clone(), Arc::clone(p), tell.clone());
            let ask = move || {
                let seen = me.ask_standing(&p).map_err(|e| e.msg);
                let _ = tell.send((p.peer.clone(), seen));
            };
            // Without the thread that site does not answer.
            let _ = std::thread::Builder::new().name("standing".into()).spawn(ask);
        }
        let until = Instant::now() + TOLD_WITHIN;
        let mut known = std::collections::BTreeMap::new();
        while known.len() < peers.len()
            && let Ok((site, seen)) = told.recv_deadline(until)
        {
            known.insert(site, seen);
        }
        let silent = || Err(format!("no answer within {} s", TOLD_WITHIN.as_secs_f32()));
        peers
            .iter()
            .map(|p| {
                let (group, error) = match known.remove(&p.peer).unwrap_or_else(silent) {
                    Ok(g) => (Some(g), None),
                    Err(e) => (None, Some(e)),
                };
                status::SiteView { site: p.peer.clone(), group, error }
            })
            .collect()
    }

    fn ask_standing(&self, p: &Pair) -> Result<GroupStatus> {
        match self.ctx.ask(p, &*self.replica()?, Wish::Tell)? {
            Msg::Standing { json } => serde_json::from_slice(&json)
                .map_err(|e| Error::corrupt(format!("what site {} tells is not understood: {e}", p.peer))),
            Msg::Reject { text, .. } => Err(Error::refused(text)),
            _ => Err(Error::corrupt("unexpected answer")),
        }
    }

    /// What is under way between sites, in a word.
    pub fn task_words(&self) -> Option<String> {
        match &*self.task.lock() {
            Task::None => None,
            Task::Returning => Some("returning".into()),
            Task::Acting(s) => Some(format!("acting for {s}")),
            Task::Giving(s) => Some(format!("giving to {s}")),
            Task::Gave(s) => Some(format!("gave to {s}")),
            Task::Resting => Some("resting".into()),
        }
    }

    /// True where nothing is to be mounted or started by itself although this site leads, or will.
    pub fn rests(&self) -> bool {
        *self.task.lock() == Task::Resting
    }

    /// What this site will mount when it gets the role. `bare`: nothing before that is ordered.
    pub(super) fn come_as(&self, bare: bool, at: Option<&Path>) -> Result<()> {
        let mounts = if bare { Vec::new() } else { super::roles::wanted(&self.own_mounts(at)) };
        self.change_role(|r| {
            r.mounts = mounts;
            match (bare, &r.task) {
                (true, _) => r.task = Task::Resting,
                (false, Task::Resting) => r.task = Task::None,
                (false, _) => {}
            }
        })
    }

    /// The primary ends its mounts and leads on without, so that nothing is written. Refused while one is in use, unless
    /// by `force`.
    pub(super) fn rest(self: &Arc<Self>, force: bool) -> Result<()> {
        if self.changing.swap(true, Ordering::SeqCst) {
            return Err(Error::failed("the group is changing its role"));
        }
        let r = self.rest_now(force);
        self.changing.store(false, Ordering::SeqCst);
        r
    }

    fn rest_now(self: &Arc<Self>, force: bool) -> Result<()> {
        let dirs: Vec<WantedMount> = match &*self.run.lock() {
            Run::Primary(p) => p.mounts.iter().map(|m| (m.vol.0, bytes(&m.dir), m.options.clone())).collect(),
            _ => return Err(Error::refused(format!("site {} is not primary of group {}", self.site, self.cfg.name))),
        };
        if let Err(e) = self.end_mounts(force) {
            self.mount_again(&dirs);
            return Err(e);
        }
        log::info!("group {}: unmounted by a procedure; it leads on without", self.cfg.name);
        self.change_role(|r| (r.mounts, r.task) = (Vec::new(), Task::Resting))
    }

    /// Has the primary that is linked end its mounts, and lead on without.
    pub fn rest_there(&self, force: bool) -> Result<()> {
        let Some(site) = self.linked() else {
            return Err(Error::refused("no primary is linked that could be told to unmount"));
        };
        self.wish(&site, Wish::Rest(force))
    }

    /// Has another site lead without mounts, bring this one to what it has, and give it the role; nothing is mounted here
    /// before that is ordered (MS-13).
    pub fn bring_from(&self, site: &str) -> Result<()> {
        let Some(r) = self.secondary() else {
            return Err(Error::refused(format!("group {} is not secondary here", self.cfg.name)));
        };
        if let Some(p) = self.linked() {
            return Err(Error::refused(format!(
                "site {p} is primary and reachable: it can give its role away in order"
            )));
        }
        self.consistent(&r, false)?;
        drop(r);
        self.come_as(true, None)?;
        self.wish(site, Wish::Act)
    }

    fn wish(&self, site: &str, wish: Wish) -> Result<()> {
        match self.ctx.ask(&*self.pair_of(site)?, &*self.replica()?, wish)? {
            Msg::Ready { .. } => Ok(()),
            Msg::Reject { text, .. } => Err(Error::refused(format!("site {site}: {text}"))),
            _ => Err(Error::corrupt("unexpected answer")),
        }
    }

    /// A primary without mounts gets those of the site file (or the lead volume at `at`).
    pub fn end_rest(self: &Arc<Self>, at: Option<&Path>) -> Result<()> {
        if self.primary().is_none() {
            return Err(Error::refused(format!("site {} is not primary of group {}", self.site, self.cfg.name)));
        }
        if self.acts() {
            return Err(Error::refused(format!("site {} leads for another site, without mounts", self.site)));
        }
        let there: Vec<VolId> = self.mounts().iter().map(|m| m.vol).collect();
        let mut mounts = super::roles::wanted(&self.own_mounts(at));
        mounts.retain(|m| !there.contains(&VolId(m.0)));
        self.change_role(|r| {
            r.mounts.retain(|m| there.contains(&VolId(m.0)));
            r.mounts.extend(mounts.iter().cloned());
            r.task = Task::None;
        })?;
        self.mount_all(&mounts).map_or(Ok(()), Err)
    }
}
