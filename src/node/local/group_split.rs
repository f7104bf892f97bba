//! What a group here can lose (G6): when both sites were primary and were written to, neither is set back before the operator
//! says whose version is kept; before a takeover, what others have and when the primary was last heard.

use super::*;
use crate::node::look::Seen;
use crate::node::session::split_brain;

impl LocalGroup {
    /// What the site at the other end of a pair has after `received`, the last position here. Nothing there is changed by
    /// asking.
    pub fn look(&self, p: &Pair, received: Seq) -> Result<Seen> {
        self.ctx.look(p, &*self.replica()?, received)
    }

    /// The position that the primary last told, if it was heard since this site is secondary.
    pub fn head_heard(&self) -> Option<Seq> {
        self.heard.lock().1.as_ref().map(|h| h.head)
    }

    /// The last time the primary was heard; after a restart the last time that something of it was received.
    pub fn last_heard(&self) -> Option<crate::base::time::Time> {
        let queue = self.replica().ok()?.regions.first()?.meta().join("queue");
        let files = std::fs::read_dir(queue).ok()?.flatten();
        let received = files.filter_map(|f| f.metadata().ok()?.modified().ok()).max().map(Into::into);
        let heard = self.heard.lock().1.as_ref().map(|h| std::time::SystemTime::now() - h.at.elapsed());
        heard.map(Into::into).or(received)
    }

    /// A pair of this site by name.
    pub fn pair(&self, name: &str) -> Result<&Arc<Pair>> {
        let known = self.pairs.iter().find(|p| p.name == name);
        known.ok_or_else(|| Error::config(format!("no pair {name:?} in group {} at this site", self.cfg.name)))
    }

    /// Refuses a greeting because of a split brain, and shows that in the pair's state here as well.
    pub(super) fn split_brain(&self, hello: &Hello, theirs: &Chain, mine: &Chain, head: Seq) -> Admission {
        if let Some(p) = self.pairs.iter().find(|p| p.name == hello.pair) {
            p.set_rival(theirs.head().cloned());
            if p.state().reason() != Some(Reason::SplitBrain)
                && let Err(e) = p.event(Event::Fault(Reason::SplitBrain), Some(split_brain(&self.cfg.name, p)))
            {
                log::error!("group {} pair {}: {e}", self.cfg.name, p.name);
            }
        }
        Admission::Refuse {
            code: RejectCode::SplitBrain,
            text: format!(
                "sites {} and {} were both primary and were both written to: say whose version is kept, at either site (`kagami pair resync {} {} --keep SITE`); what the other one changed goes to its manifest",
                self.site, hello.site, self.cfg.name, hello.pair
            ),
            chain: mine.epochs().to_vec(),
            head,
        }
    }

    /// The operator's word after a split brain: the version of site `keep` goes on.
    pub fn decide(self: &Arc<Self>, p: &Arc<Pair>, keep: &str) -> Result<State> {
        if keep != self.site && keep != p.peer {
            let msg = format!("--keep {keep}: pair {} is between sites {} and {}", p.name, self.site, p.peer);
            return Err(Error::config(msg));
        }
        if p.state().reason() != Some(Reason::SplitBrain) {
            return Err(Error::refused(format!("there is no split brain in pair {}: leave out --keep", p.name)));
        }
        if keep == self.site { self.overrule(p) } else { self.yield_to(p) }
    }

    fn overrule(&self, p: &Pair) -> Result<State> {
        let Some(group) = self.primary() else {
            return Err(Error::refused(format!(
                "group {} is secondary here: take it over first (`kagami takeover {} --force`), then give this order again",
                self.cfg.name, self.cfg.name
            )));
        };
        let rival = p.rival().ok_or_else(|| {
            Error::refused(format!("site {} was not met since this node started: wait until the link is up", p.peer))
        })?;
        let epoch = group.overrule(&self.site, &rival)?;
        log::warn!("group {}: the operator kept this version, epoch {}", self.cfg.name, epoch.number);
        p.event(Event::Resync, Some("ordered: this version is kept".into()))
    }

    fn yield_to(self: &Arc<Self>, p: &Pair) -> Result<State> {
        let replica = self.replica()?;
        replica.save_state(&mut replica.order(), |s| s.yields = true)?;
        let why = format!("the operator kept the version of site {}", p.peer);
        if self.primary().is_some() {
            self.demote(&why);
        }
        p.mirror(State::Psue(Reason::SplitBrain), Some(format!("{why}: waiting for it")))?;
        Ok(p.state())
    }
}
