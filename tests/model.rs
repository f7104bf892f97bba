//! Random operation sequences on a real mount against a small model of POSIX in memory: every result, every errno and what
//! can be seen is compared as it goes, the whole subtree at the end, and then the trees of all sites (G1, G5).
//!
//! A sequence that fails is made as short and simple as can be, and printed with the command that plays it again.
//! `KAGAMI_SEQUENCES`: how many sequences each of the two mounts plays (default [`SEQUENCES`]); `KAGAMI_TEST_SEED` and
//! `KAGAMI_SEQUENCE`: one of them alone; `KAGAMI_OPS`: this one.

mod fs;
mod ops;
mod real;
mod run;
use crate::support;

use fs::Mistake;
use ops::{Maker, Op};
use run::{Actor, Ground};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use support::lab::SITES;
use support::{Lab, Rng, env_number};

/// Sequences of a run on each mount.
const SEQUENCES: u64 = 300;
/// Operations of a sequence.
const LENGTH: usize = 40;
/// Sequences between two comparisons of all sites.
const BATCH: u64 = 50;
/// Sequences that are played at one time, in directories of their own.
const ACTORS: u64 = 4;
/// Rounds of the test with kills.
const ROUNDS: u64 = 8;

/// What is made here gets the modes that are asked for; the other tests of this program keep their own mask.
fn no_umask() {
    // SAFETY: plain numbers. Threads that are started from here on share what this one has.
    unsafe {
        assert_eq!(libc::unshare(libc::CLONE_FS), 0, "a mask of its own");
        libc::umask(0);
    }
}

fn sequence(seed: u64, number: u64) -> Vec<Op> {
    let seed = Rng::new(seed ^ number << 32).next();
    Maker::new(seed, !support::is_root()).sequence(LENGTH)
}

/// A failure: the sequence, and what was wrong.
type Failure = (u64, Vec<Op>, String);

/// Plays these sequences, several at one time. The actors, or the first failure.
fn batch(ground: &Ground, seed: u64, numbers: std::ops::Range<u64>) -> Result<Vec<(u64, Actor)>, Failure> {
    let (next, found) = (AtomicU64::new(numbers.start), Mutex::new(Vec::new()));
    let failed = Mutex::new(None::<Failure>);
    let work = || {
        while failed.lock().unwrap().is_none() {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= numbers.end {
                return;
            }
            let ops = sequence(seed, n);
            match run::play(ground, &ops) {
                Ok(actor) => found.lock().unwrap().push((n, actor)),
                Err((_, why)) => *failed.lock().unwrap() = Some((n, ops, why)),
            }
        }
    };
    std::thread::scope(|s| (0..ACTORS).for_each(|_| drop(s.spawn(work))));
    match failed.into_inner().unwrap() {
        Some(failure) => Err(failure),
        None => Ok(found.into_inner().unwrap()),
    }
}

/// Each site's tree below which the sequences' directories are.
fn bases(lab: &Lab, below: &str) -> Vec<PathBuf> {
    SITES.iter().map(|s| lab.tree(s).join(below)).collect()
}

/// When everything is everywhere, all sites are as the model says.
#[track_caller]
fn at_all_sites(lab: &Lab, below: &str, actor: &mut Actor) -> Result<(), String> {
    bases(lab, below).iter().try_for_each(|base| actor.check(&base.join(&actor.name), true))
}

/// Shrinks a failure and tells it.
fn fail(test: &str, seed: u64, (n, ops, why): Failure, fails: impl Fn(&[Op]) -> Option<String>) -> ! {
    println!("sequence {n}: {why}\nit is made shorter; as it is: KAGAMI_TEST_SEED={seed} KAGAMI_SEQUENCE={n}");
    let (ops, why) = run::shrink(ops, why, fails);
    panic!("{}", run::report(test, &ops, &why));
}

/// The whole of it on one lab.
fn mount_is_as_the_model_says(test: &str, args: &[&str], write_through: bool) {
    no_umask();
    let lab = Lab::up(args);
    std::fs::create_dir(lab.mnt().join("model")).unwrap();
    let ground = Ground::new(lab.mnt().join("model"), write_through, Mistake::None);
    let everywhere = |ops: &[Op]| {
        let played = run::play(&ground, ops).map_err(|(_, why)| why).and_then(|mut actor| {
            lab.wait(60);
            at_all_sites(&lab, "model", &mut actor)
        });
        played.err()
    };
    if let Ok(text) = std::env::var("KAGAMI_OPS") {
        let ops: Vec<Op> = serde_json::from_str(&text).expect("operations as they were printed");
        let why = everywhere(&ops);
        assert!(why.is_none(), "{}", run::report(test, &ops, &why.unwrap_or_default()));
        return lab.down();
    }
    let seed = support::seed(test);
    let one = std::env::var("KAGAMI_SEQUENCE").ok().and_then(|n| n.parse::<u64>().ok());
    let all = one.map_or(0..env_number("KAGAMI_SEQUENCES", SEQUENCES), |n| n..n + 1);
    let (begun, mut at) = (Instant::now(), all.start);
    while at < all.end {
        let until = (at + BATCH).min(all.end);
        let played = batch(&ground, seed, at..until);
        let actors =
            played.unwrap_or_else(|f| fail(test, seed, f, |ops| run::play(&ground, ops).err().map(|(_, why)| why)));
        lab.wait(60);
        for (n, mut actor) in actors {
            if let Err(why) = at_all_sites(&lab, "model", &mut actor) {
                fail(test, seed, (n, sequence(seed, n), why), everywhere);
            }
            std::fs::remove_dir_all(ground.base.join(&actor.name)).expect("a sequence's directory can be removed");
        }
        at = until;
    }
    let s = begun.elapsed().as_secs_f64();
    let count = all.end - all.start;
    println!("{test}: {count} sequences of {LENGTH} operations in {s:.1} s, all sites as the model says");
    lab.wait(60);
    lab.assert_trees_equal();
    lab.down();
}

#[test]
fn g5_the_mount_is_as_the_model_says() {
    mount_is_as_the_model_says("g5_the_mount_is_as_the_model_says", &[], false);
}

#[test]
fn g5_the_mount_is_as_the_model_says_with_write_through() {
    let test = "g5_the_mount_is_as_the_model_says_with_write_through";
    mount_is_as_the_model_says(test, &["--write-through"], true);
}

/// The model is right: the file system of this machine does the same. And it can fail: with a mistake in it, a sequence
/// is found that shows it, and is made as short as a person would write it.
#[test]
fn the_model_is_right_and_each_mistake_in_it_is_found_and_shrunk() {
    let test = "the_model_is_right_and_each_mistake_in_it_is_found_and_shrunk";
    no_umask();
    let temp = tempfile::tempdir_in(support::base_dir()).unwrap();
    let ground = |mistake| {
        let base = temp.path().join(format!("{mistake:?}"));
        std::fs::create_dir(&base).unwrap();
        Ground::new(base, false, mistake)
    };
    let seed = support::seed(test);
    let right = ground(Mistake::None);
    let one = |ground: &Ground, ops: &[Op]| match run::play(ground, ops) {
        Ok(actor) => {
            let _ = std::fs::remove_dir_all(ground.base.join(&actor.name));
            None
        }
        Err((_, why)) => Some(why),
    };
    let count = env_number("KAGAMI_SEQUENCES", SEQUENCES);
    if let Err(f) = batch(&right, seed, 0..count) {
        fail(test, seed, f, |ops| one(&right, ops));
    }
    println!("{count} sequences: this file system is as the model says");
    let mut left = vec![
        Mistake::CutComesBack,
        Mistake::AppendAtOffset,
        Mistake::ExchangeIsRename,
        Mistake::RenameOfOneFile,
        Mistake::PunchExtends,
        Mistake::LinkCount,
        Mistake::ExclFollows,
        Mistake::XattrReplaced,
    ];
    if support::is_root() {
        left.push(Mistake::NoSetgid);
    }
    for mistake in left {
        let wrong = ground(mistake);
        let found = (0..5000).find_map(|n| {
            let ops = sequence(seed, n);
            one(&wrong, &ops).map(|why| (n, ops, why))
        });
        let (n, ops, why) = found.unwrap_or_else(|| panic!("nothing shows the mistake {mistake:?}"));
        let (ops, why) = run::shrink(ops, why, |ops| one(&wrong, ops));
        println!("{mistake:?}: sequence {n}, {} operations: {why}", ops.len());
        assert!(ops.len() <= 6, "{mistake:?}: {}", run::report(test, &ops, &why));
        // Played again from what is printed, it fails with the mistake and not without.
        let text = serde_json::to_string(&ops).unwrap();
        let again: Vec<Op> = serde_json::from_str(&text).unwrap();
        assert!(one(&wrong, &again).is_some() && one(&right, &again).is_none());
    }
}

/// Each node is killed with -9 between two operations: nothing that was answered is missing or otherwise, and of what was
/// not promised yet each byte is one of those that it was since the last promise.
#[test]
fn g1_nothing_promised_is_lost_when_a_node_is_killed_in_between() {
    let test = "g1_nothing_promised_is_lost_when_a_node_is_killed_in_between";
    no_umask();
    let (lab, seed) = (Lab::up(&[]), support::seed(test));
    let mut rng = Rng::new(seed);
    std::fs::create_dir(lab.mnt().join("model")).unwrap();
    let ground = Ground::new(lab.mnt().join("model"), false, Mistake::None);
    let mut uncertain = 0;
    let told = |e: String| -> ! { panic!("KAGAMI_TEST_SEED={seed}: {e}\n{}", lab.log_tails()) };
    for round in 0..env_number("KAGAMI_ROUNDS", ROUNDS) {
        let mut actors: Vec<(Actor, Vec<Op>)> = (0..ACTORS)
            .map(|n| (Actor::begin(&ground).unwrap_or_else(|e| told(e)), sequence(seed, round * ACTORS + n)))
            .collect();
        let mut at = [0; ACTORS as usize];
        for _ in 0..2 {
            let until: Vec<usize> = at.iter().map(|at| at + rng.below((LENGTH - at).max(1) as u64) as usize).collect();
            part(&mut actors, &at, &until).unwrap_or_else(|e| told(e));
            at.copy_from_slice(&until);
            let site = SITES[rng.below(4).saturating_sub(1) as usize];
            lab.kill_now(site);
            println!("round {round}: {site} killed at {at:?}");
            if site == "primary" {
                lab.start(site);
                uncertain += actors.iter().map(|(a, _)| a.model.uncertain().len()).sum::<usize>();
                for (actor, ops) in &mut actors {
                    actor.crashed().unwrap_or_else(|e| told(format!("{e}\nof the sequence {ops:?}")));
                }
            } else {
                // Work goes on without it for a while.
                let until: Vec<usize> = at.iter().map(|at| (at + 5).min(LENGTH)).collect();
                part(&mut actors, &at, &until).unwrap_or_else(|e| told(e));
                at.copy_from_slice(&until);
                lab.start(site);
            }
        }
        part(&mut actors, &at, &[LENGTH; ACTORS as usize]).unwrap_or_else(|e| told(e));
        for (actor, _) in &mut actors {
            actor.end().unwrap_or_else(|e| told(e));
        }
        lab.wait(60);
        for (actor, ops) in &mut actors {
            at_all_sites(&lab, "model", actor).unwrap_or_else(|e| told(format!("{e}\nof the sequence {ops:?}")));
        }
    }
    println!("{uncertain} files were written to and not yet promised when the primary was killed");
    assert!(uncertain > 0, "no kill found anything that was not promised: this showed nothing");
    lab.down();
}

/// Each actor goes on with its part of its sequence, all at one time.
fn part(actors: &mut [(Actor, Vec<Op>)], from: &[usize], until: &[usize]) -> Result<(), String> {
    std::thread::scope(|s| {
        let parts = actors.iter_mut().zip(from.iter().zip(until));
        let threads: Vec<_> = parts
            .map(|((actor, ops), (from, until))| {
                s.spawn(move || ops[*from..*until].iter().try_for_each(|op| actor.step(op)))
            })
            .collect();
        threads.into_iter().try_for_each(|t| t.join().expect("an actor"))
    })
}
