//! The tests of this program, run as `cargo test` runs others: by name, each with a line of its own, and a sum at the end.

use super::scenario;
use super::seeds::{self, Sums, WORLD};
use super::{planting, points};
use std::time::Instant;

/// Seeds of an ordinary run.
const SEEDS: u64 = 300;
/// Seeds that showed a bug once; each with what it was.
const KEPT: &str = include_str!("kept.txt");

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn kept() -> Vec<u64> {
    let number = |l: &str| l.split_whitespace().next().and_then(|w| w.parse().ok());
    KEPT.lines().filter(|l| !l.starts_with('#')).filter_map(number).collect()
}

/// D1: `KAGAMI_SEED=N` replays one, `KAGAMI_SEEDS` says how many, `KAGAMI_SEED_FROM` from where on.
fn d1_seeds() -> Result<(), String> {
    if let Some(seed) = number("KAGAMI_SEED") {
        return one(seed);
    }
    let from = number("KAGAMI_SEED_FROM").unwrap_or(1);
    let count = number("KAGAMI_SEEDS").unwrap_or(SEEDS);
    let all = kept().into_iter().chain(from..from + count);
    let (begin, mut sums, mut failed) = (Instant::now(), Sums::default(), Vec::new());
    seeds::run(all, WORLD, |r| {
        sums.add(&r);
        if let Some(why) = &r.failure {
            println!("seed {}: {why}\n    KAGAMI_SEED={} cargo test --test sim d1_seeds", r.seed, r.seed);
            failed.push(r.seed);
        }
        failed.len() < 20
    });
    println!("{}", sums.line(begin.elapsed()));
    if failed.is_empty() { Ok(()) } else { Err(format!("seeds that failed: {failed:?}")) }
}

/// One seed with all that is known of it.
fn one(seed: u64) -> Result<(), String> {
    println!("{}", scenario::told(seed));
    let mut result = Ok(());
    seeds::run([seed].into_iter(), WORLD, |r| {
        println!("{}\n{}", r.tail, r.failure.as_deref().unwrap_or("it passes"));
        result = r.failure.map_or(Ok(()), Err);
        true
    });
    result
}

/// The same seed gives the same run, to the last switch of threads.
fn d1_a_seed_is_replayed_exactly() -> Result<(), String> {
    let all: Vec<u64> = (1..=12).collect();
    let run = || {
        let mut sums = Sums::default();
        seeds::run(all.iter().copied(), WORLD, |r| {
            sums.add(&r);
            true
        });
        sums.hashes
    };
    let (a, b) = (run(), run());
    let differ: Vec<_> = all.iter().filter(|s| a.get(s) != b.get(s)).collect();
    if differ.is_empty() { Ok(()) } else { Err(format!("seeds {differ:?} did not run the same way twice")) }
}

/// A test and its name.
pub type Test = (&'static str, fn() -> Result<(), String>);

/// All; what takes long only with `KAGAMI_FULL=1`, or by its name.
pub fn tests() -> Vec<Test> {
    let mut all: Vec<Test> = vec![
        ("d1_a_seed_is_replayed_exactly", d1_a_seed_is_replayed_exactly),
        ("d1_seeds", d1_seeds),
        ("d1_d3_persist_points", points::d1_d3_persist_points),
    ];
    let long: Test = ("d2_planted_bugs_are_found", planting::d2_planted_bugs_are_found);
    if std::env::var_os("KAGAMI_FULL").is_some() || std::env::args().any(|a| long.0.starts_with(&a) && a.len() > 1) {
        all.push(long);
    }
    all
}
