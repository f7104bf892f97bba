//! Who is next, and how often it changes: drawn anew for each seed, because some faults show only when the threads take turns
//! at every call, and others only when one of them is late for a long time.

use super::{ThreadId, World};
use crate::rng::Rng;

/// How a seed schedules.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Chance that a call gives the baton away.
    pub switch: f64,
    /// A call takes less than this, ns.
    pub cost_max_ns: u64,
    /// Chance that a thread is a slow one: it is passed over while others can run, most of the time.
    pub slow: f64,
}

/// Chance that a slow thread is passed over.
const PASS_OVER: f64 = 0.9;

impl Pace {
    pub fn draw(rng: &mut Rng) -> Pace {
        Pace {
            switch: *rng.pick(&[0.02, 0.05, 0.1, 0.3, 0.8]),
            cost_max_ns: *rng.pick(&[1_000, 2_000, 5_000, 20_000]),
            slow: *rng.pick(&[0.0, 0.0, 0.15, 0.4]),
        }
    }
}

impl World {
    /// Takes one of those that can run.
    pub(super) fn pick(&mut self) -> Option<ThreadId> {
        if self.ready.is_empty() {
            return None;
        }
        let mut i = self.rng.index(self.ready.len());
        let is_slow = |t: &ThreadId| self.threads[*t].slow;
        if self.ready.len() > 1 && self.ready.get(i).is_some_and(is_slow) && self.rng.chance(PASS_OVER) {
            i = self.rng.index(self.ready.len());
        }
        Some(self.ready.swap_remove(i))
    }

    /// Draws whether a new thread is a slow one.
    pub(super) fn draw_slow(&mut self) -> bool {
        self.rng.chance(self.pace.slow)
    }
}
