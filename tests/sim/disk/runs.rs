//! Sets of pages as runs, so that a gibibyte set aside by fallocate is one item.

use std::collections::BTreeMap;

/// Runs of numbers: first → one past the last. They neither overlap nor touch.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct Runs {
    runs: BTreeMap<u64, u64>,
    total: u64,
}

impl Runs {
    /// How many numbers are in it.
    pub fn total(&self) -> u64 {
        self.total
    }

    pub fn contains(&self, n: u64) -> bool {
        self.runs.range(..=n).next_back().is_some_and(|(_, end)| n < *end)
    }

    /// Adds `from..to`.
    pub fn insert(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        let (mut from, mut to) = (from, to);
        while let Some((&start, &end)) = self.runs.range(..=to).next_back().filter(|(_, end)| **end >= from) {
            self.runs.remove(&start);
            self.total -= end - start;
            (from, to) = (from.min(start), to.max(end));
        }
        self.runs.insert(from, to);
        self.total += to - from;
    }

    /// Takes `from..to` out.
    pub fn remove(&mut self, from: u64, to: u64) {
        if from >= to || self.runs.is_empty() {
            return;
        }
        while let Some((&start, &end)) = self.runs.range(..to).next_back().filter(|(_, end)| **end > from) {
            self.runs.remove(&start);
            self.total -= end - start;
            for (a, b) in [(start, from.min(end)), (to.max(start), end)] {
                if a < b {
                    self.runs.insert(a, b);
                    self.total += b - a;
                }
            }
        }
    }
}
