//! How far a group's pairs are behind, and what a resync would have to look at.

use super::*;
use crate::node::heard::{self, Got};
use crate::node::status::{Changed, Lag};
use crate::store::journal;
use std::collections::HashMap;

/// What was counted stands for so long at least.
const STANDS: Duration = Duration::from_secs(2);
/// And for so many times as long as counting took.
const STANDS_TIMES: u32 = 20;

/// What was counted of each pair.
#[derive(Default)]
pub(super) struct Counted(Arc<Mutex<HashMap<usize, Count>>>);

#[derive(Clone, Copy, Default)]
struct Count {
    /// After a position.
    last: Option<(Seq, Changed)>,
    /// It stands until then.
    until: Option<Instant>,
    /// Somebody counts just now.
    counting: bool,
}

impl LocalGroup {
    /// How far this site, when secondary, is behind a peer that is or was its primary, as far as it can know.
    pub fn lag_behind(&self, site: &str) -> Lag {
        let Some(r) = self.secondary() else { return Lag::default() };
        let linked = self.linked().is_some_and(|l| l == site);
        let g = self.heard.lock();
        match g.1.as_ref().filter(|h| h.site == site) {
            Some(h) => {
                let (received, applied) = (r.received(), r.applied());
                let got = Got { received, applied, taken: r.taken(), confirmed: r.confirmed() };
                h.lag(&got, g.0, linked.then(|| self.patience()))
            }
            None => Lag { seconds: g.0.elapsed().as_secs_f64(), ..Lag::default() },
        }
    }

    /// The lag of a pair whose primary end is here.
    pub fn lag_of(&self, group: &Group, pair: usize) -> Lag {
        match self.pairs.get(pair) {
            Some(p) if p.state() != State::Smpl => heard::out_lag(group, pair, p.linked().then(|| self.patience())),
            _ => Lag::default(),
        }
    }

    /// How old the last confirmation may be while nothing is known to be missing and the link is there: two heartbeats
    /// and their way.
    fn patience(&self) -> Duration {
        2 * self.timing.heartbeat + Duration::from_secs(1)
    }

    /// Up to which time the secondary of a pair has everything in its tree, by the primary's clock: seconds since 1970.
    pub fn confirmed(&self, pair: usize) -> Option<f64> {
        let p = self.pairs.get(pair)?;
        let time = match (self.primary(), self.secondary()) {
            (Some(g), _) => g.progress(pair).confirmed,
            (_, Some(r)) if self.heard.lock().1.as_ref().is_some_and(|h| h.site == p.peer) => r.confirmed(),
            _ => None,
        };
        time.map(crate::base::time::Time::unix)
    }

    /// What a resync of an outgoing pair would have to look at now; `None` where none would do, there is no pair, or it is
    /// not counted yet. The journal is read by a thread of its own, beside whoever writes it, and no more often than it is
    /// worth: whoever asks gets what was counted last.
    pub fn out_of_sync(&self, group: &Group, pair: usize) -> Option<Changed> {
        match self.pairs.get(pair)?.state() {
            State::Pair | State::Suspending => return Some(Changed::default()),
            State::CopyResync | State::Psus | State::Psue(_) => {}
            State::Smpl | State::Copy | State::PsusCopy | State::PsueCopy(_) => return None,
        }
        let since = group.progress(pair).in_tree();
        let mut all = self.out_of_sync.0.lock();
        let count = all.entry(pair).or_default();
        let known = count.last.filter(|(s, _)| *s == since).map(|(_, c)| c);
        let due = known.is_none() || count.until.is_none_or(|t| Instant::now() > t);
        if due && !count.counting {
            let (counted, files) = (self.out_of_sync.0.clone(), group.replica.order().journal.files_since(since));
            let work = move || {
                let begun = Instant::now();
                let changed = journal::changed(&files, since);
                let until = Some(Instant::now() + STANDS.max(STANDS_TIMES * begun.elapsed()));
                counted.lock().insert(pair, Count { last: Some((since, changed)), until, counting: false });
            };
            // Without the thread it is counted the next time.
            count.counting = std::thread::Builder::new().name("counting".into()).spawn(work).is_ok();
        }
        known
    }
}
