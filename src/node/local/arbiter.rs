//! A group whose takeover is automatic: the threads that keep its votes, and what the changes of role have to do with them.

use super::*;
use crate::node::arbiter_etcd::EtcdVoter;
use crate::node::ballot::{Ballot, Remote, SiteVoter};
use crate::node::config::Arbiter;
use crate::node::status::ArbiterStatus;

/// How long a primary that starts waits for its votes before it mounts.
const FIRST_VOTES: Duration = Duration::from_secs(2);

/// The votes of a group, if its takeover is automatic.
pub(super) fn load(
    cfg: &GroupConfig,
    site: &str,
    state_dir: &Path,
    pairs: &[Arc<Pair>],
    ctx: &Arc<dyn SenderCtx>,
) -> Result<Option<Arc<Ballot>>> {
    let Some(t) = &cfg.takeover else { return Ok(None) };
    let remote = |voter: Option<&str>| -> Result<Box<dyn Remote>> {
        let pair = pairs.iter().find(|p| Some(p.peer.as_str()) == voter);
        match (&t.arbiter, voter, pair) {
            (_, Some(_), Some(pair)) => Ok(Box::new(SiteVoter {
                ctx: ctx.clone(),
                site: site.to_owned(),
                pair: pair.clone(),
                patience: t.detect / 2,
                link: None,
            })),
            (Arbiter::Etcd { endpoints, prefix }, None, _) => {
                Ok(Box::new(EtcdVoter::new(endpoints, prefix, &cfg.name, t.ends.clone(), t.detect)))
            }
            (_, voter, _) => Err(Error::config(format!(
                "group {}: site {site} has no pair with the voter {}",
                cfg.name,
                voter.unwrap_or("etcd")
            ))),
        }
    };
    Ballot::load(t, site, (state_dir, &cfg.name), remote).map(|b| Some(Arc::new(b)))
}

/// Starts a thread for each voter elsewhere; once for each group.
pub(super) fn clerks(local: &Arc<LocalGroup>) -> Result<()> {
    let Some(ballot) = &local.ballot else { return Ok(()) };
    for v in ballot.remotes() {
        let (local, ballot) = (Arc::downgrade(local), ballot.clone());
        std::thread::Builder::new().name("votes".into()).spawn(move || {
            loop {
                ballot.permit.wait(ballot.period());
                let Some(g) = local.upgrade() else { return };
                ballot.canvass(v);
                g.note_votes(&ballot);
            }
        })?;
    }
    Ok(())
}

impl LocalGroup {
    /// The votes, if takeover is automatic.
    pub fn ballot(&self) -> Option<&Ballot> {
        self.ballot.as_deref()
    }

    /// Tells when a majority is won or lost.
    fn note_votes(&self, ballot: &Ballot) {
        let has = ballot.leads();
        if self.had_votes.swap(has, Ordering::SeqCst) == has {
            return;
        }
        let word = |yes: bool| Some(if yes { "majority" } else { "none" }.to_owned());
        let primary = self.primary().is_some();
        let reason = match (has, primary) {
            (true, _) => None,
            (false, true) => {
                Some("no two of the three voters support this primary: writes are held, then refused".into())
            }
            (false, false) => Some("primary no more".to_owned()),
        };
        let level = if has || !primary { log::Level::Info } else { log::Level::Warn };
        log::log!(
            level,
            "group {}: votes: {}{}",
            self.cfg.name,
            word(has).unwrap_or_default(),
            reason.as_ref().map_or_else(String::new, |r| format!(": {r}"))
        );
        self.tell(Happened { from: word(!has), to: word(has), reason, ..Happened::new(What::Votes) });
    }

    /// Before this site leads again: gives the voters a moment.
    pub(super) fn await_votes(&self) {
        let Some(b) = &self.ballot else { return };
        let until = Instant::now() + FIRST_VOTES;
        while !b.leads() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A takeover needs a majority first. `force`: by the operator's word it does not.
    pub fn win(&self, force: bool) -> Result<()> {
        let Some(b) = &self.ballot else { return Ok(()) };
        let why = match b.stand() {
            Ok(()) => return Ok(()),
            Err(e) => e.msg,
        };
        if force {
            log::warn!("group {}: taken over without a majority, by force: {why}", self.cfg.name);
            return b.set_forced(true);
        }
        if b.refused_anew(&why) {
            let reason = Some(format!("not taken over: {why}"));
            self.tell(Happened { reason, ..Happened::new(What::Votes) });
        }
        Err(self.no_majority(&why))
    }

    /// A takeover that was won came to nothing: another site may have the votes.
    pub fn not_taken_over(&self) {
        if self.primary().is_none() {
            self.resign(Some(None));
        }
    }

    /// The refusal of a takeover, with what force risks.
    pub(super) fn no_majority(&self, why: &str) -> Error {
        Error::refused(format!(
            "group {0}: no majority for a takeover here: {why}. If you know that no other site is primary, `kagami takeover {0} --force`: where one still runs both would accept writes, and what this site lacks is lost",
            self.cfg.name
        ))
    }

    /// Why this site does not take over by itself now, though its takeover is automatic; `Ok`: it may.
    pub fn may_stand(&self) -> Option<std::result::Result<(), String>> {
        let b = self.ballot.as_ref()?;
        let why = |words: String| Some(Err(words.replace("GROUP", &self.cfg.name)));
        let Some(r) = self.secondary() else { return why("this site is not secondary".into()) };
        if let Err(w) = b.may_stand() {
            return why(w);
        }
        // Whoever has both locks takes that of the role before that of the task.
        let on_its_way = matches!(*self.task.lock(), Task::Giving(_) | Task::Returning);
        match self.consistent(&r, false) {
            _ if on_its_way => why("the role is on its way to another site".into()),
            Err(e) => why(e.msg),
            Ok(()) => Some(Ok(())),
        }
    }

    /// For `kagami status`.
    pub fn arbiter(&self) -> Option<ArbiterStatus> {
        let b = self.ballot.as_ref()?;
        let primary = self.primary().is_some();
        let s = b.status(primary);
        let takeover = match self.may_stand() {
            _ if primary && s.forced => "this site leads without a majority, by order".into(),
            _ if primary && s.majority_for_s == 0.0 => format!(
                "no writes: no two of the three voters support this primary; it goes on by itself when two do, or, if you know that no other site is primary, with `kagami takeover {} --force`",
                self.cfg.name
            ),
            _ if primary && s.voters.iter().all(|v| v.other_end_fit == Some(true)) => {
                "the other end of the sync pair would take over".into()
            }
            _ if primary => {
                "the other end of the sync pair may not take over: not every voter knows that it has everything".into()
            }
            Some(Ok(())) => "this site takes over as soon as a second voter agrees".into(),
            Some(Err(why)) => format!("not here: {why}"),
            None => String::new(),
        };
        Some(ArbiterStatus { takeover, ..s })
    }
}
