//! Hostile peers (G10): a client of our own that speaks kagami's protocol and then deviates, against a real node. After each
//! case the node is up and serves, is bounded, is unchanged, and has said what happened.

use crate::support;

mod bed;
mod entries;
mod greetings;
mod ports;
mod secondary;
mod strangers;
mod symlinks;
mod table;

use bed::Bed;
use std::time::Instant;

/// One case: what is done, and the words that the node's log must have for it.
#[track_caller]
fn case(bed: &mut Bed, name: &str, said: &[&str], act: impl FnOnce(&mut Bed)) {
    let begun = Instant::now();
    bed.begin();
    act(bed);
    bed.check(name, begun, said);
}

/// The cases of a section, and a line about them.
fn section(bed: &mut Bed, seed: u64, name: &str, run: fn(&mut Bed, u64)) {
    let (before, since) = (bed.cases, Instant::now());
    run(bed, seed);
    println!("{:4} cases  {name}  {:.1} s", bed.cases - before, since.elapsed().as_secs_f64());
}

#[test]
fn g10_hostile_peers() {
    if !std::path::Path::new("/dev/fuse").exists() {
        return support::skipped("g10_hostile_peers", "no /dev/fuse");
    }
    let seed = support::seed("g10_hostile_peers");
    let begun = Instant::now();
    let mut bed = Bed::up();
    let up = begun.elapsed();
    println!("up in {:.1} s", up.as_secs_f64());
    section(&mut bed, seed, "strangers", strangers::run);
    // The node dials but once a second: what it is answered goes on beside the next sections.
    let since = Instant::now();
    let answers = secondary::begin(&bed);
    section(&mut bed, seed, "greetings", greetings::run);
    section(&mut bed, seed, "entries and messages of a primary", entries::run);
    section(&mut bed, seed, "control socket and metrics", ports::run);
    bed.begin();
    let n = answers.join().unwrap_or_else(|e| std::panic::resume_unwind(e));
    bed.check("answers of a secondary", Instant::now(), &[]);
    bed.cases += n - 1;
    println!("{n:4} cases  answers of a secondary  {:.1} s", since.elapsed().as_secs_f64());
    section(&mut bed, seed, "states and kinds, fuzzed", table::run);
    section(&mut bed, seed, "symlinks, and entries that fit no tree", symlinks::run);
    let (slowest, which) = &bed.slowest;
    println!(
        "{} cases in {:.1} s; the slowest took {:.1} s: {which}; at the end {:?}",
        bed.cases,
        begun.elapsed().as_secs_f64(),
        slowest.as_secs_f64(),
        bed.usage()
    );
    assert!(bed.cases >= 150, "{} cases", bed.cases);
}
