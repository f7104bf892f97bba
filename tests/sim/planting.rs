//! D2: bugs that are planted must be found. If they are not, the simulation looks at nothing.

use super::seeds::{self, Course};
use super::{scenario, shared::Shared};
use kagami::base::planted::{Bug, plant};
use std::time::Instant;

/// A bug must be found within so many seeds.
const SEEDS: u64 = 2000;

static BUG: Shared<Option<Bug>> = Shared::new(None);

/// In the child.
fn before(_seed: u64) {
    plant(BUG.with(|b| *b));
}

/// What finding a bug took.
struct Found {
    bug: Bug,
    seeds: Option<u64>,
    how: String,
}

fn find(bug: Bug, limit: u64) -> Found {
    BUG.with(|b| *b = Some(bug));
    let (mut first, mut how, mut ran) = (None, String::new(), 0);
    let course = Course { before, run: scenario::run };
    seeds::run(1..=limit, course, |r| {
        ran += 1;
        if let (Some(why), None) = (&r.failure, &first) {
            first = Some(ran);
            how = why.chars().take(160).collect();
        }
        first.is_none()
    });
    BUG.with(|b| *b = None);
    Found { bug, seeds: first, how }
}

/// Every bug is found; `KAGAMI_BUG=NAME` looks for one only.
pub fn d2_planted_bugs_are_found() -> Result<(), String> {
    let only = std::env::var("KAGAMI_BUG").ok();
    let limit = std::env::var("KAGAMI_BUG_SEEDS").ok().and_then(|v| v.parse().ok()).unwrap_or(SEEDS);
    let begin = Instant::now();
    let mut missed = Vec::new();
    for bug in Bug::ALL.iter().filter(|b| only.as_ref().is_none_or(|o| format!("{b:?}") == *o)) {
        let found = find(*bug, limit);
        match found.seeds {
            Some(n) => println!("{:?}: found with seed {n} of its run: {}", found.bug, found.how),
            None => {
                println!("{:?}: NOT FOUND in {limit} seeds", found.bug);
                missed.push(found.bug);
            }
        }
    }
    println!("{} bugs, {:.0} s", Bug::ALL.len() - missed.len(), begin.elapsed().as_secs_f64());
    if missed.is_empty() { Ok(()) } else { Err(format!("not found: {missed:?}")) }
}
