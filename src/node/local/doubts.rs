//! What the fence left in doubt: kept until the sites are known to be equal again, and told then.

use super::*;
use crate::node::status::{DoubtEntry, DoubtStatus};
use crate::pair::state::Mode;
use crate::store::doubt::Doubts;

impl LocalGroup {
    /// A pair at a primary that begins to lead: whether it fences, and from where on nobody gets more than its peer has.
    pub(super) fn keep_back(&self, group: &Group, index: usize, pair: &Pair) {
        if pair.unfenced() {
            group.waive(index);
        } else if self.cfg.fence == config::Fence::Data
            && pair.mode == Mode::Sync
            && matches!(pair.state(), State::Psue(_))
        {
            // It was complete. How much of what is here it has is known where something is in doubt, else when it comes.
            group.hold_back(self.doubts.get().map_or(Seq(0), |d| d.had));
        }
    }

    /// Forgets what is in doubt once the sites are equal again, and says whose version it is.
    pub(super) fn settle_doubts(&self) {
        let Some(d) = self.doubts.get() else { return };
        let sync = |p: &&Arc<Pair>| p.mode == Mode::Sync;
        let whose = match self.primary() {
            Some(g) if g.is_fenced() || g.is_stopped() => return,
            Some(_) => {
                let done = |p: &Arc<Pair>| matches!(p.state(), State::Pair | State::Smpl);
                self.pairs.iter().filter(sync).all(done).then(|| self.site.clone())
            }
            None => {
                let linked = self.linked();
                let from = self.pairs.iter().find(|p| p.state() == State::Pair && linked.as_ref() == Some(&p.peer));
                from.map(|p| p.peer.clone())
            }
        };
        let Some(site) = whose else { return };
        if let Err(e) = self.doubts.set(None) {
            log::error!("group {}: {e}", self.cfg.name);
            return;
        }
        let reason = format!("{}: all sites have the version of site {site} now", self.doubted(&d));
        log::info!("group {}: {reason}", self.cfg.name);
        let (to, reason) = (Some("settled".to_owned()), Some(reason));
        self.tell(Happened { to, reason, ..Happened::new(What::InDoubt) });
    }

    fn doubted(&self, d: &Doubts) -> String {
        format!("{} requests refused, {} of their entries in doubt", d.refused, d.count())
    }

    /// For `kagami status`.
    pub fn doubts(&self) -> Option<DoubtStatus> {
        let d = self.doubts.get()?;
        let volume = |v: VolId| self.cfg.volumes.get(v.0 as usize).map_or_else(String::new, |v| v.name.clone());
        let entry = |e: &crate::store::doubt::Doubt| DoubtEntry {
            position: e.seq.0,
            time: e.time.unix(),
            volume: volume(e.vol),
            path: String::from_utf8_lossy(&e.path).into_owned(),
            what: e.what.clone(),
            undone: e.undone,
        };
        let entries = d.entries.iter().map(entry).collect();
        Some(DoubtStatus { since: d.since.unix(), refused: d.refused, count: d.count(), entries, more: d.more })
    }

    /// Why writes are refused, with what to do: better words than the group has.
    pub fn refusal(&self, group: &Group) -> Option<String> {
        if !group.is_fenced() || group.fault().is_some() {
            return group.accepts().err().map(|e| e.to_string());
        }
        let out = self.pairs.iter().find(|p| p.mode == Mode::Sync && p.state() != State::Pair && !p.unfenced());
        Some(match out {
            Some(p) => format!(
                "write refused (EIO): fence = data and sync pair {} is in {}: it is accepted again when the pair is in PAIR, or now, without site {}, after `kagami pair split {} {}`",
                p.name,
                p.state(),
                p.peer,
                self.cfg.name,
                p.name
            ),
            None => "write refused (EIO): fence = data and what the sync site did not get is being undone".into(),
        })
    }
}
