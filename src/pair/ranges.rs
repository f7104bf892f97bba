//! Sorted, merged byte ranges: where a file changed.

use crate::base::{Error, Result};
use bincode::{Decode, Encode};

/// End of a range that reaches to the end of the file, whatever its size is.
pub const TO_EOF: u64 = u64::MAX;

/// Byte ranges `from..to`, sorted, not empty, neither overlapping nor adjacent. An end of [`TO_EOF`] means "to the end of
/// the file, and its size changed as well".
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// No range.
    pub fn new() -> Ranges {
        Ranges::default()
    }

    /// True if all of `from..to` is in the set.
    pub fn covers(&self, from: u64, to: u64) -> bool {
        self.iter().any(|(a, b)| a <= from && to <= b)
    }

    /// True if nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of separate ranges.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds `from..to`, merging what it overlaps or touches. An empty range adds nothing.
    pub fn insert(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        let first = self.0.partition_point(|&(_, e)| e < from);
        let last = self.0.partition_point(|&(s, _)| s <= to);
        let mut merged = (from, to);
        for &(s, e) in self.0.iter().take(last).skip(first) {
            merged = (merged.0.min(s), merged.1.max(e));
        }
        self.0.splice(first..last, [merged]);
    }

    /// Adds every range of `other`.
    pub fn union(&mut self, other: &Ranges) {
        for (s, e) in other.iter() {
            self.insert(s, e);
        }
    }

    /// The part below `size` bytes; an end of [`TO_EOF`] becomes `size`.
    pub fn clip(&self, size: u64) -> Ranges {
        Ranges(self.0.iter().filter(|r| r.0 < size).map(|&(s, e)| (s, e.min(size))).collect())
    }

    /// The ranges in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter().copied()
    }

    /// True if byte `pos` is in one of them.
    pub fn contains(&self, pos: u64) -> bool {
        let after = self.0.partition_point(|&(s, _)| s <= pos);
        after.checked_sub(1).and_then(|i| self.0.get(i)).is_some_and(|&(_, e)| pos < e)
    }

    /// Sum of the lengths in bytes, within a file of `size` bytes.
    pub fn bytes(&self, size: u64) -> u64 {
        self.iter().map(|(s, e)| e.min(size).saturating_sub(s)).sum()
    }

    /// Checks what came from a peer: sorted, not empty, apart. Errors are [`crate::base::Kind::Corrupt`] (G10).
    pub fn validate(&self) -> Result<()> {
        let apart = self.0.iter().zip(self.0.iter().skip(1)).all(|(a, b)| a.1 < b.0);
        if !apart || self.0.iter().any(|&(s, e)| s >= e) {
            return Err(Error::corrupt("ranges: not sorted, empty or overlapping"));
        }
        Ok(())
    }
}

impl FromIterator<(u64, u64)> for Ranges {
    fn from_iter<I: IntoIterator<Item = (u64, u64)>>(it: I) -> Ranges {
        let mut r = Ranges::new();
        for (s, e) in it {
            r.insert(s, e);
        }
        r
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn merges_neighbours_and_keeps_gaps() {
        let r: Ranges = [(10, 20), (30, 40), (20, 25), (5, 5)].into_iter().collect();
        assert_eq!(r.iter().collect::<Vec<_>>(), [(10, 25), (30, 40)]);
        let mut all = r.clone();
        all.insert(0, TO_EOF);
        assert_eq!(all.iter().collect::<Vec<_>>(), [(0, TO_EOF)]);
        assert_eq!(all.clip(7).iter().collect::<Vec<_>>(), [(0, 7)]);
        assert_eq!((all.bytes(7), r.bytes(35), all.len()), (7, 20, 1));
        assert!(all.clip(0).is_empty());
    }

    #[test]
    fn nonsense_from_a_peer_is_refused() {
        for bad in [vec![(5, 5)], vec![(5, 4)], vec![(1, 3), (3, 4)], vec![(9, 10), (1, 2)]] {
            assert!(Ranges(bad).validate().is_err());
        }
    }

    proptest! {
        #[test]
        fn the_same_as_a_set_of_bytes(parts in prop::collection::vec((0u64..64, 0u64..64), 0..20), split in 0usize..20, size in 0u64..70) {
            let half = split.min(parts.len());
            let mut r: Ranges = parts[..half].iter().copied().collect();
            r.union(&parts[half..].iter().copied().collect());
            r.validate().unwrap();
            for pos in 0..70 {
                let expected = parts.iter().any(|&(s, e)| s <= pos && pos < e);
                prop_assert_eq!(r.contains(pos), expected);
                prop_assert_eq!(r.clip(size).contains(pos), expected && pos < size);
            }
            prop_assert_eq!(r.bytes(size), (0..size).filter(|&p| r.contains(p)).count() as u64);
        }
    }
}
