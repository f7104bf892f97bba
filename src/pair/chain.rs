//! Epoch chains: which reigns a replica's history went through, and where two histories part (G3).
//!
//! ```text
//! site A:   epoch 1 ──────────────┬── epoch 2 (A) ──── 130
//!                  1 … 100        │   101 … 130
//! site C:   epoch 1 ──────────────┴── epoch 3 (C) ─────────── 170
//!                                     101 … 170
//! common point: 100. Both were written under: a split brain, the operator decides. Had A begun no epoch, or written
//! nothing under it, C would win; the loser's entries after 100 are losing versions, kept aside (G6).
//! ```

use crate::base::{Epoch, Error, Result, Seq};
use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// Epochs a chain keeps, count; beyond it the oldest are forgotten. Two replicas that parted longer ago than this many
/// epochs are unrelated and need a full comparison.
pub const EPOCHS_MAX: usize = 1024;

/// Epochs, oldest first. Those of epoch `i` are the entries after `parent` of `i` up to `parent` of `i + 1`, or up to the
/// replica's head for the last one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct Chain(Vec<Epoch>);

/// How the histories of two replicas stand to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meeting {
    /// Both are at this position.
    Same(Seq),
    /// The other replica is at `common`, this one is further.
    OtherBehind { common: Seq },
    /// This replica is at `common`, the other one is further.
    IAmBehind { common: Seq },
    /// Both went on after `common`, up to these positions.
    Diverged { common: Seq, mine_after: Seq, theirs_after: Seq },
    /// No epoch in common: another volume, a new region, or parted too long ago.
    Unrelated,
}

/// Whose history goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Winner {
    /// This replica's: it is the source of a resync.
    Mine,
    /// The other's.
    Theirs,
    /// Neither lost anything: both are at the same point of the same reign.
    Both,
    /// Both sides began epochs since they parted, and both were written under: only the operator can decide.
    SplitBrain,
}

impl Chain {
    /// A chain from its epochs, oldest first; check it with [`Chain::validate`] if they come from elsewhere.
    pub fn from_epochs(epochs: Vec<Epoch>) -> Chain {
        Chain(epochs)
    }

    /// The epochs, oldest first.
    pub fn epochs(&self) -> &[Epoch] {
        &self.0
    }

    /// The current epoch; none before the first one.
    pub fn head(&self) -> Option<&Epoch> {
        self.0.last()
    }

    /// Begins a new epoch after entry `at` and returns it; it must be durable before its first entry (G3). Fails if `at`
    /// lies before the current epoch's start.
    pub fn begin(&mut self, site: &str, random: u64, at: Seq) -> Result<Epoch> {
        let number = self.head().map_or(1, |e| e.number.saturating_add(1));
        let epoch = Epoch { number, site: site.to_string(), random, parent: at, over: 0 };
        self.append(epoch.clone())?;
        Ok(epoch)
    }

    /// As [`Chain::begin`], with the operator's word that this history wins over the one that ends with `rival` (G6).
    pub fn begin_over(&mut self, site: &str, random: u64, at: Seq, rival: &Epoch) -> Result<Epoch> {
        let number = self.head().map_or(0, |e| e.number).max(rival.number).saturating_add(1);
        let epoch = Epoch { number, site: site.to_string(), random, parent: at, over: rival.random };
        self.append(epoch.clone())?;
        Ok(epoch)
    }

    /// Takes over an epoch that another site began (an `EpochStart` entry). An epoch that is the head already changes
    /// nothing.
    pub fn append(&mut self, epoch: Epoch) -> Result<()> {
        if let Some(h) = self.head() {
            if h.same(&epoch) && h.parent == epoch.parent {
                return Ok(());
            }
            if epoch.number <= h.number || epoch.parent < h.parent {
                return Err(Error::refused(format!(
                    "epoch {} after entry {} cannot follow epoch {} after entry {}",
                    epoch.number, epoch.parent.0, h.number, h.parent.0
                )));
            }
        }
        if !epoch.is_valid() {
            return Err(Error::corrupt("epoch chain: a number, a position or the name of a site cannot be"));
        }
        self.0.push(epoch);
        let over = self.0.len().saturating_sub(EPOCHS_MAX);
        self.0.drain(..over);
        Ok(())
    }

    /// The epoch that entry `seq` belongs to; none if that has been forgotten.
    pub fn epoch_of(&self, seq: Seq) -> Option<&Epoch> {
        self.0.iter().rev().find(|e| e.parent < seq)
    }

    /// True if entry `seq` of `epoch` is part of this replica's history, which ends at `head`.
    pub fn contains(&self, epoch: &Epoch, seq: Seq, head: Seq) -> bool {
        self.find(epoch).is_some_and(|i| epoch.parent < seq && seq <= self.end_of(i, head))
    }

    /// P: the last position on both chains, when they end at these heads. None if no epoch is on both.
    pub fn common(&self, my_head: Seq, other: &Chain, other_head: Seq) -> Option<Seq> {
        let (mine, theirs) = self.0.iter().enumerate().rev().find_map(|(i, e)| Some((i, other.find(e)?)))?;
        Some(self.end_of(mine, my_head).min(other.end_of(theirs, other_head)))
    }

    /// How this replica's history stands to the other's.
    pub fn meet(&self, my_head: Seq, other: &Chain, other_head: Seq) -> Meeting {
        let Some(common) = self.common(my_head, other, other_head) else { return Meeting::Unrelated };
        match (my_head > common, other_head > common) {
            (false, false) => Meeting::Same(common),
            (true, false) => Meeting::OtherBehind { common },
            (false, true) => Meeting::IAmBehind { common },
            (true, true) => Meeting::Diverged { common, mine_after: my_head, theirs_after: other_head },
        }
    }

    /// Whose history goes on. None if the two are unrelated.
    ///
    /// Where they parted and one side alone began an epoch since (a takeover), that side wins, also when the other has more
    /// entries: those are a stale primary's tail (G3). Where both began epochs, the one that was written under wins over one
    /// that was not (a restart out of touch); written under both, only the operator's word decides (G6).
    pub fn winner(&self, my_head: Seq, other: &Chain, other_head: Seq) -> Option<Winner> {
        let meeting = self.meet(my_head, other, other_head);
        let (mine, theirs) = (self.head()?, other.head()?);
        let by_entries = match meeting {
            Meeting::Unrelated => return None,
            Meeting::Diverged { .. } => return Some(self.parted(my_head, other, other_head)),
            Meeting::Same(_) => Winner::Both,
            Meeting::OtherBehind { .. } => Winner::Mine,
            Meeting::IAmBehind { .. } => Winner::Theirs,
        };
        Some(match mine.number.cmp(&theirs.number) {
            std::cmp::Ordering::Greater => Winner::Mine,
            std::cmp::Ordering::Less => Winner::Theirs,
            std::cmp::Ordering::Equal if by_entries == Winner::Both && !mine.same(theirs) => newer(mine, theirs),
            std::cmp::Ordering::Equal => by_entries,
        })
    }

    /// The winner of two histories that both have entries the other has not.
    fn parted(&self, my_head: Seq, other: &Chain, other_head: Seq) -> Winner {
        let (mine, theirs) = (self.own(other), other.own(self));
        let (Some(my_last), Some(their_last)) = (mine.last(), theirs.last()) else {
            return match (mine.is_empty(), theirs.is_empty()) {
                (false, true) => Winner::Mine,
                (true, false) => Winner::Theirs,
                _ => Winner::SplitBrain,
            };
        };
        let (decided, overruled) = (overrules(mine, theirs, other_head), overrules(theirs, mine, my_head));
        match (decided, overruled, written(mine, my_head), written(theirs, other_head)) {
            (true, false, _, _) => Winner::Mine,
            (false, true, _, _) => Winner::Theirs,
            (_, _, true, true) => Winner::SplitBrain,
            (_, _, true, false) => Winner::Mine,
            (_, _, false, true) => Winner::Theirs,
            (_, _, false, false) => newer(my_last, their_last),
        }
    }

    /// The epochs after the last one that the other chain has as well.
    fn own(&self, other: &Chain) -> &[Epoch] {
        let shared = self.0.iter().rposition(|e| other.find(e).is_some()).map_or(0, |i| i + 1);
        self.0.get(shared..).unwrap_or(&[])
    }

    /// Checks a chain from disk or a peer whose history ends at `head`. Errors are [`crate::base::Kind::Corrupt`] (G10).
    pub fn validate(&self, head: Seq) -> Result<()> {
        if self.0.len() > EPOCHS_MAX {
            return Err(Error::corrupt(format!("epoch chain: {} epochs, more than {EPOCHS_MAX}", self.0.len())));
        }
        if !self.0.iter().all(Epoch::is_valid) {
            return Err(Error::corrupt("epoch chain: a number, a position or the name of a site cannot be"));
        }
        let rising = self.0.iter().zip(self.0.iter().skip(1)).all(|(a, b)| a.number < b.number && a.parent <= b.parent);
        if !rising || self.0.first().is_some_and(|e| e.number == 0) {
            return Err(Error::corrupt("epoch chain: numbers or positions do not rise"));
        }
        if self.head().is_some_and(|e| e.parent > head) {
            return Err(Error::corrupt(format!("epoch chain: begins its last epoch after its head, entry {}", head.0)));
        }
        Ok(())
    }

    /// Numbers rise along a chain, so an epoch can be looked up by its number.
    fn find(&self, epoch: &Epoch) -> Option<usize> {
        let i = self.0.binary_search_by_key(&epoch.number, |e| e.number).ok()?;
        self.0.get(i).filter(|e| e.same(epoch) && e.parent == epoch.parent).map(|_| i)
    }

    fn end_of(&self, i: usize, head: Seq) -> Seq {
        self.0.get(i.saturating_add(1)).map_or(head, |next| next.parent.min(head))
    }
}

/// True if there is more under these epochs than their own beginnings (one entry each).
fn written(epochs: &[Epoch], head: Seq) -> bool {
    epochs.first().is_some_and(|first| head.0.saturating_sub(first.parent.0) > epochs.len() as u64)
}

/// True if an epoch of `mine` says that it wins over one of `theirs`, after which nothing was written there.
fn overrules(mine: &[Epoch], theirs: &[Epoch], their_head: Seq) -> bool {
    let over = |e: &Epoch| mine.iter().any(|m| m.over != 0 && m.over == e.random);
    theirs.iter().rposition(over).is_some_and(|i| !written(theirs.get(i + 1..).unwrap_or(&[]), their_head))
}

/// Of two reigns in which nothing was written nothing is lost, whoever wins; but both sides must say the same.
fn newer(mine: &Epoch, theirs: &Epoch) -> Winner {
    let order = |e: &Epoch| (e.number, e.site.clone(), e.random);
    if order(mine) > order(theirs) { Winner::Mine } else { Winner::Theirs }
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;
