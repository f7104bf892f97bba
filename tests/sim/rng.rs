//! Random numbers of the simulation: splitmix64. The same seed gives the same numbers on every machine.
#![allow(dead_code)] // Each program that includes it uses a part of it.

/// A stream of numbers; its state is its seed, so that a copy goes on with the same numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rng(pub u64);

impl Rng {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// A stream of its own for the part `what` of a seed: what one part draws does not shift what another draws.
    pub fn part(seed: u64, what: &str) -> Rng {
        let mut r = Rng(seed);
        for b in what.bytes() {
            r = Rng(r.next_u64() ^ u64::from(b));
        }
        r
    }

    /// Any number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 for `n` = 0.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(n)) >> 64) as u64
    }

    /// An index of `0..n`; 0 for `n` = 0.
    pub fn index(&mut self, n: usize) -> usize {
        self.below(n as u64) as usize
    }

    /// True with probability `p`; draws nothing for 0, so that a fault that is off does not shift the stream.
    pub fn chance(&mut self, p: f64) -> bool {
        p > 0.0 && ((self.next_u64() >> 11) as f64) < p * (1u64 << 53) as f64
    }

    /// True and false equally often.
    pub fn coin(&mut self) -> bool {
        self.next_u64() & 1 == 1
    }

    /// One of `all`, which must not be empty.
    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.index(all.len())]
    }
}
