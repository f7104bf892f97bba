//! Roles that go from site to site in order: nothing is lost, nothing is copied anew.
//!
//! ```text
//! hand over:      primary: unmounts, freezes, waits until the other has applied everything
//!                 persists "secondary, giving to the other"   ── Lead, until it is heard of as primary ──▶   takes over
//! after a power   persists "secondary, returning"             ── Act, until its link comes ──▶   takes over without mounts,
//! cut (primary):                                                    "acting"; brings this one up to date; hands over
//! ```
//! Each step is persisted before it takes effect, and what is under way is carried on by the steward after a restart.

use super::orders::HANDED;
use super::roles::Before;
use super::*;
use crate::base::time::{Time, utc};
use crate::format::loss::Cause;
use crate::format::msg::{CopyState, Msg, PairOrder, Welcome};
use crate::node::stale;
use crate::pair::state::Mode;
use crate::store::loss::{self, LostArea};

/// How long a primary that starts waits for an answer of a peer.
const ANSWER: Duration = Duration::from_secs(3);
/// The same after a power cut, while the sync site was in PAIR.
const ANSWER_TORN: Duration = Duration::from_secs(20);
/// How long the other site may take to apply everything.
const DRAIN: Duration = Duration::from_secs(30);
/// How long until a site that could not say is asked again for its role.
const ASKED_AGAIN: Duration = Duration::from_secs(1);
/// How soon what is in the way of a hand-over is known.
const REFUSED_WITHIN: Duration = Duration::from_secs(3);
/// How long what the kernel holds of a mount that is ended by force may take to be written.
const FLUSHED: Duration = Duration::from_secs(10);

/// What a peer answered to a primary that starts.
enum Word {
    /// Nobody is newer.
    Fine(Option<Box<Welcome>>),
    Stale,
    /// It may be primary in a moment.
    Changing,
}

impl LocalGroup {
    fn newest(&self, p: &Pair, replica: &Replica) -> Result<Word> {
        match self.ctx.ask(p, replica, Wish::Ask)? {
            Msg::Welcome(w) => Ok(Word::Fine(Some(Box::new(w)))),
            Msg::Reject { code: RejectCode::StalePrimary, chain, head, text } => {
                if stale::is_shown(replica, chain, head) {
                    Ok(Word::Stale)
                } else {
                    Err(stale::unproven(&p.peer, &text))
                }
            }
            Msg::Reject { code: RejectCode::SplitBrain, .. } => Ok(Word::Stale),
            Msg::Reject { code: RejectCode::Busy, .. } => Ok(Word::Changing),
            // It knows of no newer one; what does not fit is told where the pair is.
            Msg::Reject { code: RejectCode::UnknownPair, .. } => Ok(Word::Fine(None)),
            Msg::Reject { text, .. } => Err(Error::refused(text)),
            _ => Ok(Word::Fine(None)),
        }
    }

    /// Before going on as primary: does anybody know a newer one? Waits a little for peers; goes on alone with a warning
    /// when none answers (takeover is by order, and whoever gave it knows). After a power cut a sync site that was in PAIR
    /// has everything that was answered: it is waited for longer, and leads first. So is a site that is just being taken
    /// over (G3).
    pub(super) fn before_leading(&self, replica: &Replica) -> Result<Before> {
        let torn = replica.order().state.torn;
        let in_pair = |p: &&Arc<Pair>| torn && p.mode == Mode::Sync && p.state() == State::Pair;
        let sure = self.pairs.iter().any(|p| in_pair(&p));
        let begun = Instant::now();
        loop {
            let (mut answered, mut changing) = (0, false);
            let mut unfit = None;
            for p in &self.pairs {
                match self.newest(p, replica) {
                    Ok(Word::Stale) => return Ok(Before::Stale),
                    Ok(Word::Changing) => changing = true,
                    Ok(Word::Fine(w)) if in_pair(&p) => {
                        match w.map_or(Err("its answer is not understood"), |w| self.fit(replica, &w)) {
                            Ok(whole) if *self.task.lock() == Task::Acting(p.peer.clone()) => {
                                // It led for that site until it is up to date, which it is.
                                return Ok(if whole { Before::Give(p.peer.clone()) } else { Before::Lead });
                            }
                            Ok(_) => {
                                log::warn!(
                                    "group {}: after the power cut, site {} leads until this one has what it has",
                                    self.cfg.name,
                                    p.peer
                                );
                                return Ok(Before::Pull);
                            }
                            Err(why) => unfit = Some(format!("site {}: {why}", p.peer)),
                        }
                    }
                    Ok(Word::Fine(_)) => answered += 1,
                    Err(e) => log::info!("group {}: asking site {}: {e}", self.cfg.name, p.peer),
                }
            }
            let patience = if changing || (sure && unfit.is_none()) { ANSWER_TORN } else { ANSWER };
            let enough = !changing && (unfit.is_some() || (answered > 0 && !sure) || self.pairs.is_empty());
            if enough || begun.elapsed() > patience {
                if answered == 0 && unfit.is_none() && !self.pairs.is_empty() {
                    log::warn!("group {}: no peer answers; going on as primary alone", self.cfg.name);
                }
                if torn {
                    self.alone(replica, unfit.as_deref())?;
                }
                return Ok(Before::Lead);
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// Whether the sync site can be what this one returns to; true when it has everything that is here.
    fn fit(&self, replica: &Replica, w: &Welcome) -> std::result::Result<bool, &'static str> {
        let m = replica.order();
        let theirs = Chain::from_epochs(w.chain.clone());
        let head = m.live.last_seq();
        let common = replica.chain(&m).common(head, &theirs, w.head);
        if w.torn || w.copy != CopyState::Consistent {
            Err("it lost power, too, or has no complete copy")
        } else if w.head < Replica::checkpointed(&m) {
            Err("it is behind the last checkpoint here")
        } else {
            common.map(|c| c == head).ok_or("its history has nothing in common with ours")
        }
    }

    /// Says what going on alone after a power cut means, and leaves it in the loss manifest (G6).
    fn alone(&self, replica: &Replica, why: Option<&str>) -> Result<()> {
        let mut e = loss::event(random_u64(), Cause::PowerCut);
        {
            let m = replica.order();
            let cut = m.state.cuts.last();
            e.common = cut.map_or(Seq(0), |c| c.low);
            e.since = cut.filter(|c| c.time > 0).map(|c| Time { sec: c.time, nsec: 0 });
            (e.head, e.lost) = (m.live.last_seq(), m.state.chain.last().cloned());
        }
        e.words = format!(
            "lost power and went on alone{}: unknown loss since {} (entry {})",
            why.map_or_else(String::new, |w| format!(" ({w})")),
            e.since.map_or_else(|| "an unknown time".into(), |t| format!("{} UTC", utc(t))),
            e.common.0
        );
        log::warn!("group {}: {}", self.cfg.name, e.words);
        *self.note.lock() = Some(e.words.clone());
        LostArea::of(replica).write(e, &[]).map(drop)
    }

    /// True for a primary that leads for another site until that has what it lost in a power cut.
    pub fn acts(&self) -> bool {
        matches!(*self.task.lock(), Task::Acting(_))
    }

    /// One step of what is under way.
    pub(super) fn carry_on(self: &Arc<Self>, task: &Task) -> Result<()> {
        match task {
            Task::None | Task::Gave(_) | Task::Resting => Ok(()),
            Task::Returning => self.return_step(),
            Task::Acting(site) => {
                let paired = self.primary().is_some() && self.pair_of(site)?.state() == State::Pair;
                if paired { self.hand_over(site, false) } else { Ok(()) }
            }
            Task::Giving(site) => {
                if self.linked().is_some() {
                    return Ok(());
                }
                let Some(r) = self.secondary() else { return Ok(()) };
                match self.ctx.ask(&*self.pair_of(site)?, &r.replica, Wish::Lead)? {
                    Msg::Ready { .. } => Ok(()),
                    Msg::Reject { text, .. } => Err(Error::refused(format!(
                        "site {site} does not lead yet: {text}; to lead here again: `kagami takeover {}`",
                        self.cfg.name
                    ))),
                    _ => Err(Error::corrupt("unexpected answer")),
                }
            }
        }
    }

    fn return_step(self: &Arc<Self>) -> Result<()> {
        let Some(r) = self.secondary() else { return Ok(()) };
        let (torn, blank) = {
            let m = r.replica.order();
            (m.state.torn, m.state.copy == CopyState::Empty)
        };
        // Once it has everything, the word is with the other site: it gives the role back.
        if self.linked().is_some() || !(torn || blank) {
            return Ok(());
        }
        let mut refused = None;
        for p in self.pairs.iter().filter(|p| p.mode == Mode::Sync && p.state() != State::Smpl) {
            match self.ctx.ask(p, &r.replica, Wish::Act) {
                Ok(Msg::Ready { .. }) => {
                    *self.note.lock() = Some(format!("site {} brings this one up to date after a power cut", p.peer));
                    return Ok(());
                }
                // It cannot lead, and does not: the one answer after which going on alone is safe.
                Ok(Msg::Reject { code: RejectCode::Fault, text, .. }) => refused = Some(text),
                Ok(Msg::Reject { text, .. }) => return Err(Error::link(text)),
                Ok(_) => return Err(Error::corrupt("unexpected answer")),
                Err(e) => {
                    return Err(e.context(format!(
                        "after a power cut waiting for site {}, which has what may be lost here; to go on without it: `kagami takeover {} --force`",
                        p.peer, self.cfg.name
                    )));
                }
            }
        }
        let Some(why) = refused else { return Ok(()) };
        if blank {
            return Err(Error::failed(format!(
                "the replica at this site was made anew, and no other site can lead ({why}): bring back one that has the group's data"
            )));
        }
        self.alone(&r.replica, Some(&why))?;
        drop(r);
        let mounts = self.role()?.map_or_else(Vec::new, |r| r.mounts);
        self.take(mounts, Task::None)
    }

    pub(super) fn pair_of(&self, site: &str) -> Result<Arc<Pair>> {
        let p = self.pairs.iter().filter(|p| p.peer == site).min_by_key(|p| p.mode == Mode::Async);
        p.cloned().ok_or_else(|| Error::config(format!("no pair of group {} with site {site}", self.cfg.name)))
    }

    /// A link of a primary came: what was given or waited for is there.
    pub(super) fn heard_of(&self, site: &str) {
        let task = self.task.lock().clone();
        let set = |task| {
            if let Err(e) = self.change_role(|r| r.task = task) {
                log::error!("group {}: {e}", self.cfg.name);
            }
            *self.note.lock() = None;
        };
        match task {
            Task::Giving(to) if to == site => set(Task::Gave(to)),
            // A third one took it.
            Task::Giving(_) => set(Task::None),
            Task::Gave(to) if to != site => set(Task::None),
            Task::Returning => {
                *self.note.lock() = Some(format!("site {site} brings this one up to date after a power cut"));
            }
            Task::None | Task::Acting(_) | Task::Gave(_) | Task::Resting => {}
        }
    }

    /// Carries out what another site wishes. [`Kind::Refused`]: it will not be, whatever is waited for.
    pub(super) fn carry_out(self: &Arc<Self>, hello: &Hello, theirs: &Chain) -> Result<()> {
        let pair = self.pair_of(&hello.site)?;
        let busy = |why: &str| Err(Error::failed(why));
        let id = self.replica()?.group_id();
        // A replica that was never copied to has no group yet; nor has one that was made anew while a role was on its way
        // from its site or back.
        let blank = hello.group_id == 0;
        let new = blank && matches!(hello.wish, Wish::Order(PairOrder::Create(_)) | Wish::Lead | Wish::Act);
        if id != hello.group_id && !new {
            return Err(Error::refused("another group of the same name"));
        }
        match hello.wish {
            // Given already; it is told so again.
            Wish::HandOver | Wish::HandOverNow if *self.task.lock() == Task::Giving(hello.site.clone()) => Ok(()),
            Wish::HandOver | Wish::HandOverNow => {
                if self.changing.load(Ordering::SeqCst) {
                    return busy("the group is changing its role");
                }
                if self.primary().is_none() {
                    return Err(Error::refused(format!("site {} is not primary", self.site)));
                }
                if pair.state() != State::Pair {
                    return busy(&format!("its pair with site {} is in {}, not in PAIR", hello.site, pair.state()));
                }
                let (site, force) = (hello.site.clone(), hello.wish == Wish::HandOverNow);
                self.in_background("hand-over", move |me| {
                    me.hand_over(&site, force).map_err(|e| e.context(format!("not handed over to site {site}")))
                })
            }
            Wish::Act => {
                if self.primary().is_some() {
                    let mine = Task::Acting(hello.site.clone());
                    return if *self.task.lock() == mine { Ok(()) } else { busy("primary for itself") };
                }
                let Some(r) = self.secondary() else { return busy("down") };
                if let Some(site) = self.linked().or_else(|| self.expected().filter(|s| *s != hello.site)) {
                    return Err(Error::failed(format!("site {site} is primary and reachable from site {}", self.site)));
                }
                self.consistent(&r, false)?;
                let common = {
                    let received = r.received();
                    let m = r.replica.order();
                    r.replica.chain(&m).common(received, theirs, hello.head)
                };
                if common.is_none() && !blank {
                    return Err(Error::refused("the histories have nothing in common"));
                }
                drop(r);
                *self.note.lock() = None;
                self.take(Vec::new(), Task::Acting(hello.site.clone()))
            }
            Wish::Lead => {
                if self.primary().is_some() {
                    return Ok(());
                }
                let Some(r) = self.secondary() else { return busy("down") };
                self.consistent(&r, false)?;
                let (received, common) = {
                    let received = r.received();
                    let m = r.replica.order();
                    (received, r.replica.chain(&m).common(received, theirs, hello.head))
                };
                // Everything was here before that site gave the role; what it has lost since does not matter.
                if blank && let Some(site) = self.linked() {
                    return Err(Error::failed(format!("site {site} is primary and reachable from site {}", self.site)));
                }
                if !blank && (common != Some(hello.head) || received < hello.head) {
                    return Err(Error::failed(format!("entry {} is not here yet", hello.head.0)));
                }
                drop(r);
                let mounts = self.role()?.map_or_else(Vec::new, |r| r.mounts);
                let task = if self.rests() { Task::Resting } else { Task::None };
                *self.note.lock() = None;
                self.take(mounts, task)
            }
            Wish::Rest(force) => self.in_background("rest", move |me| me.rest(force)),
            Wish::Order(order) => self.ordered_by(hello, order),
            Wish::Link | Wish::Ask | Wish::Look | Wish::Tell | Wish::Vote => Err(Error::refused("not an order")),
        }
    }

    /// Does what takes long; what is in the way at once is the answer, what comes later is told by the status.
    fn in_background(
        self: &Arc<Self>,
        name: &str,
        act: impl FnOnce(&Arc<LocalGroup>) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let me = self.clone();
        let (tell, told) = crossbeam::channel::bounded(1);
        std::thread::Builder::new().name(name.into()).spawn(move || {
            let r = act(&me);
            if let Err(e) = &r {
                log::error!("group {}: {e}", me.cfg.name);
                *me.note.lock() = Some(e.to_string());
            }
            let _ = tell.send(r);
        })?;
        match told.recv_timeout(REFUSED_WITHIN) {
            Ok(Err(e)) => Err(Error::refused(format!("{}; nothing has changed", e.msg))),
            Ok(Ok(())) | Err(_) => Ok(()),
        }
    }

    fn take(self: &Arc<Self>, mounts: Vec<WantedMount>, task: Task) -> Result<()> {
        if self.changing.swap(true, Ordering::SeqCst) {
            return Err(Error::failed("the group is changing its role"));
        }
        let r = self.switch(mounts, task);
        self.changing.store(false, Ordering::SeqCst);
        match r {
            // It leads all the same; what is not mounted is noted.
            Err(e) if self.primary().is_none() => Err(e),
            _ => Ok(()),
        }
    }

    /// The primary's end: everything goes to `site`, then the role does.
    fn hand_over(self: &Arc<Self>, site: &str, force: bool) -> Result<()> {
        let pair = self.pair_of(site)?;
        if self.changing.swap(true, Ordering::SeqCst) {
            return Err(Error::failed("the group is changing its role already"));
        }
        let r = self.hand_over_now(site, &pair, force);
        self.changing.store(false, Ordering::SeqCst);
        r
    }

    fn hand_over_now(self: &Arc<Self>, site: &str, pair: &Arc<Pair>, force: bool) -> Result<()> {
        let index = self.pairs.iter().position(|p| Arc::ptr_eq(p, pair)).unwrap_or(0);
        let (group, dirs) = match &*self.run.lock() {
            Run::Primary(p) => {
                let dirs = p.mounts.iter().map(|m| (m.vol.0, bytes(&m.dir), m.options.clone()));
                (p.group.clone(), dirs.collect::<Vec<WantedMount>>())
            }
            _ => return Err(Error::refused("not primary here")),
        };
        // In order: what the page cache still holds becomes entries.
        if let Err(e) = self.end_mounts(force) {
            self.mount_again(&dirs);
            return Err(e);
        }
        group.freeze();
        let head = group.quiesce(DRAIN).unwrap_or(Seq(u64::MAX));
        // A link that breaks is not waited for: the application has no mount meanwhile.
        let (until, look) = (Instant::now() + DRAIN, Duration::from_millis(200));
        let there = || group.wait_pair(index, look, |p| p.received >= head && p.applied >= head);
        while !there() && pair.state() == State::Pair && Instant::now() < until {}
        if !there() || pair.state() != State::Pair {
            group.thaw();
            self.mount_again(&dirs);
            return Err(Error::new(
                Kind::Timeout,
                format!("site {site} does not have everything; nothing has changed"),
            ));
        }
        let task = Task::Giving(site.to_owned());
        self.change_role(|r| (r.primary, r.mounts, r.task) = (false, Vec::new(), task))?;
        log::info!("group {}: handing over to site {site} after entry {}", self.cfg.name, head.0);
        self.become_secondary(Run::Down("handing over".into()));
        Ok(())
    }

    /// Ends the mounts before the role goes. Refused while one is in use, unless by `force`.
    pub(super) fn end_mounts(&self, force: bool) -> Result<()> {
        loop {
            let next = match &mut *self.run.lock() {
                Run::Primary(p) => p.mounts.pop(),
                _ => None,
            };
            let Some(m) = next else { return Ok(()) };
            let mut r = m.handle.unmount_unused();
            if let (Err(e), true) = (&r, force) {
                log::warn!("group {}: {e}; ended by force", self.cfg.name);
                if !m.handle.flush(FLUSHED) {
                    log::warn!("group {}: {}: not everything written could be flushed", self.cfg.name, m.dir.display());
                }
                r = m.handle.abort();
            }
            if let Err(e) = r {
                if let Run::Primary(p) = &mut *self.run.lock() {
                    p.mounts.push(m);
                }
                return Err(e);
            }
        }
    }

    /// Mounts again what was ended for a hand-over that came to nothing.
    pub(super) fn mount_again(self: &Arc<Self>, dirs: &[WantedMount]) {
        let there: Vec<VolId> = self.mounts().iter().map(|m| m.vol).collect();
        let gone: Vec<WantedMount> = dirs.iter().filter(|d| !there.contains(&VolId(d.0))).cloned().collect();
        self.mount_all(&gone);
    }

    /// The order at the secondary: roles change in order, the mounts move here. Returns the position reached.
    /// `force`: also while the mount at the primary is in use. `bare`: nothing is mounted here until that is ordered.
    pub fn takeover_handed(self: &Arc<Self>, force: bool, bare: bool, at: Option<&Path>) -> Result<Seq> {
        self.handed(force, bare, at, true)
    }

    /// The same; `again`: the order was given here, and holds until it is carried out. One that was given at the primary
    /// ends with what the primary says.
    pub(super) fn handed(self: &Arc<Self>, force: bool, bare: bool, at: Option<&Path>, again: bool) -> Result<Seq> {
        let Some(r) = self.secondary() else {
            return Err(Error::refused(format!("group {} is not secondary here", self.cfg.name)));
        };
        self.consistent(&r, false)?;
        let Some((site, link)) = self.link() else {
            return Err(Error::refused("no primary is linked: a takeover without hand-over needs none"));
        };
        self.come_as(bare, at)?;
        drop(r);
        self.ask_for_role(&site, force).map_err(|e| match e.kind {
            Kind::Failed => Error::refused(e.msg),
            _ => e,
        })?;
        let mut asked = (link, Instant::now());
        let until = Instant::now() + HANDED;
        while Instant::now() < until {
            if let Some(g) = self.primary()
                && !self.changing.load(Ordering::SeqCst)
            {
                return Ok(g.head());
            }
            // A primary that lost the link on the way keeps its role, and cannot say so: on the next link it is asked again.
            let next = self.link().filter(|(s, l)| again && *s == site && !l.same(&asked.0));
            if let Some((_, link)) = next
                && asked.1.elapsed() > ASKED_AGAIN
            {
                asked.1 = Instant::now();
                match self.ask_for_role(&site, force) {
                    Ok(()) => asked.0 = link,
                    Err(e) if e.kind == Kind::Refused => return Err(e),
                    Err(e) => log::info!("group {}: asking site {site} for its role: {e}", self.cfg.name),
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Err(Error::new(Kind::Timeout, format!("site {site} has not handed over; see `kagami status` there")))
    }

    /// Asks a primary to give its role to this site. [`Kind::Refused`]: it will not.
    fn ask_for_role(&self, site: &str, force: bool) -> Result<()> {
        let Some(r) = self.secondary() else { return Err(Error::failed("not secondary here")) };
        let wish = if force { Wish::HandOverNow } else { Wish::HandOver };
        match self.ctx.ask(&*self.pair_of(site)?, &r.replica, wish)? {
            Msg::Ready { .. } => Ok(()),
            Msg::Reject { code: RejectCode::Busy, text, .. } => Err(Error::failed(format!("site {site}: {text}"))),
            Msg::Reject { text, .. } => Err(Error::refused(format!(
                "site {site}: {text}; close what is open there, or end it with `kagami takeover {} --handover --force`",
                self.cfg.name
            ))),
            _ => Err(Error::corrupt("unexpected answer")),
        }
    }
}
