//! Tests of the simulation itself: of threads, files and sockets first, then of real nodes in it.

mod files;
mod nodes;
mod sockets;
mod threads;

use crate::harness::{Test, in_child};
use crate::sched::{self, Outcome};

/// All of them.
pub fn all() -> Vec<Test> {
    let mut all = Vec::new();
    all.extend_from_slice(&threads::TESTS);
    all.extend_from_slice(&files::TESTS);
    all.extend_from_slice(&sockets::TESTS);
    all.extend_from_slice(&nodes::TESTS);
    all
}

/// Runs a seed in this process; a failure comes with the last lines of the trace.
fn seed(seed: u64, main: impl FnOnce() + Send + 'static) -> Result<Outcome, String> {
    let o = sched::run_seed(seed, Box::new(main));
    match &o.failure {
        None => Ok(o),
        Some(why) => Err(format!("seed {seed}: {why}\n{}", sched::tail())),
    }
}

/// Runs `main` under several seeds, each in a process of its own.
fn seeds(n: u64, main: fn()) -> Result<(), String> {
    (0..n).try_for_each(|s| in_child(s as usize, || seed(s, main).map(drop)))
}

/// The hash of a seed, run in a process of its own.
fn hash_of(s: u64, main: fn()) -> Result<u64, String> {
    let said = in_child(s as usize, || Err(format!("hash {}", seed(s, main)?.hash)));
    let why = said.err().unwrap_or_default();
    why.strip_prefix("hash ").and_then(|h| h.parse().ok()).ok_or(why)
}
