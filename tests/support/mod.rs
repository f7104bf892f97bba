//! What the integration tests share: reading and comparing trees, makers of trees and workloads, guards of processes.
//!
//! Used with `mod support;`, so each test program compiles it and uses a part of it.
#![allow(dead_code, unused_imports)]

pub mod answered;
pub mod conformance;
pub mod lab;
pub mod machines;
pub mod net;
pub mod ns;
pub mod points;
pub mod posix;
pub mod proc;
pub mod random;
pub mod serve;
pub mod sys;
pub mod tree;

pub use lab::Lab;
pub use proc::{as_user, run, run_ok};
pub use sys::is_root;
pub use tree::{compare_trees, compare_trees_with, tree_digest};

/// A small generator of numbers (splitmix64): the same seed, the same numbers, on every machine.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n` (which is not 0).
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn fill(&mut self, buf: &mut [u8]) {
        for chunk in buf.chunks_mut(8) {
            let bytes = self.next().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        self.fill(&mut buf);
        buf
    }
}

/// Seed of a random test: `KAGAMI_TEST_SEED`, or one of the clock; printed, so that a failure can be repeated.
pub fn seed(test: &str) -> u64 {
    let seed = std::env::var("KAGAMI_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock after 1970");
        now.as_nanos() as u64 % 1_000_000_000
    });
    println!("{test}: KAGAMI_TEST_SEED={seed}");
    seed
}

/// A number from the environment, for tests that can run longer than usual.
pub fn env_number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|s| s.parse().ok()).unwrap_or(default)
}

/// Says on a line of its own (which the closing lines of `make test` repeat) that something was left out, and why.
pub fn skipped(test: &str, why: &str) {
    use std::io::Write;
    println!("skipped: {test}: {why}");
    // What a passing test prints is not shown; scripts/run-tests.sh names a file for these lines.
    let file = std::env::var_os("KAGAMI_SKIPPED").map(|path| std::fs::File::options().append(true).open(path));
    if let Some(Ok(mut file)) = file {
        let _ = writeln!(file, "skipped: {test}: {why}");
    }
}

/// Fails with all differences, one a line.
#[track_caller]
pub fn assert_same(a: &std::path::Path, b: &std::path::Path) {
    if let Err(differences) = compare_trees(a, b) {
        panic!("{} and {} differ:\n  {}", a.display(), b.display(), differences.join("\n  "));
    }
}

/// As [`assert_same`], soon: `kagami lab wait` is about the sites, and a leg has what was answered in its log before it is in its
/// tree.
#[track_caller]
pub fn assert_same_soon(a: &std::path::Path, b: &std::path::Path) {
    proc::wait_until(std::time::Duration::from_secs(30), || compare_trees(a, b).is_ok());
    assert_same(a, b);
}

/// Where tests make their directories: a real disk that other users can get to, by a short path (a socket's path has
/// 107 bytes at most, and pjdfstest binds some).
pub fn base_dir() -> std::path::PathBuf {
    let short = std::path::PathBuf::from("/var/tmp");
    if short.is_dir() { short } else { std::env::temp_dir() }
}
