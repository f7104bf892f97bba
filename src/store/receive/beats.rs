//! Up to which time the tree has everything: what the lag in seconds is measured by (MS-19, G9).
//!
//! A beat is the primary's word "up to this position is everything that was issued by this time", in order with its
//! entries. It goes the way of an entry and is passed by the thread that applies, so that one that stands still shows as
//! growing lag even when nothing is written. It is kept in memory only: an idle volume costs no write to a disk, and
//! after a restart the next beat says it again.

use super::Receiver;
use crate::base::sync::Mutex;
use crate::base::{Seq, time::Time};
use std::collections::VecDeque;

/// Beats that wait to be passed, count; further ones are left out, for another comes soon.
const WAITING_MAX: usize = 64;

/// What was received of entries since the log was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Their frames, bytes.
    pub bytes: u64,
}

/// Beats on their way, and the last one passed.
#[derive(Default)]
pub(super) struct Beats(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    confirmed: Option<Time>,
    waiting: VecDeque<(Seq, Time)>,
}

impl Beats {
    /// An entry of this time is in the tree, and with it everything before.
    pub(super) fn applied(&self, time: Time) {
        self.0.lock().confirmed = Some(time);
    }

    /// What waits is of another link, and may be of another history.
    pub(super) fn forget(&self) {
        self.0.lock().waiting.clear();
    }
}

impl Receiver {
    /// The primary's beat: everything it had issued by `time` is up to `head`. For a pair in PAIR only: before, the
    /// positions of the tree may be those of another history.
    pub fn beat(&self, head: Seq, time: Time) {
        {
            let mut g = self.beats.0.lock();
            if g.waiting.len() < WAITING_MAX {
                g.waiting.push_back((head, time));
            }
        }
        self.wake();
    }

    /// The tree has everything that the primary had issued by this time, by the primary's clock. `None`: not known yet.
    pub fn confirmed(&self) -> Option<Time> {
        self.beats.0.lock().confirmed
    }

    /// Passes the beats whose entries are all in the tree. For the thread that applies.
    pub(super) fn pass_beats(&self) {
        if self.beats.0.lock().waiting.is_empty() {
            return;
        }
        let applied = {
            let g = self.inner.lock();
            if !g.txns.is_empty() || g.fault.is_some() || g.full.is_some() {
                return;
            }
            self.replica.order().live.last_seq()
        };
        let mut g = self.beats.0.lock();
        let mut passed = false;
        while let Some((_, time)) = g.waiting.pop_front_if(|(head, _)| *head <= applied) {
            g.confirmed = Some(time);
            passed = true;
        }
        drop(g);
        if passed {
            self.wake();
        }
    }
}
