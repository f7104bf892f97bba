//! kill -9 of nodes at random moments (A3, A5): what was answered is at the sync site, every recovered tree is at one exact
//! point of the order, and the return copies from the journals, never by a walk.
//!
//! `KAGAMI_ROUNDS`: rounds of each test (default [`ROUNDS`]).

use crate::support;

use std::path::PathBuf;
use std::time::{Duration, Instant};
use support::answered::{Answered, Promise};
use support::lab::SITES;
use support::points::{self, Writer};
use support::{Lab, Rng};

/// Rounds of each test, unless `KAGAMI_ROUNDS` says otherwise.
const ROUNDS: u64 = 10;
/// Threads of the workload that remembers what it was answered.
const THREADS: usize = 3;
/// How long a tree may take to get to where it belongs.
const PATIENCE: Duration = Duration::from_secs(30);

fn rounds() -> u64 {
    support::env_number("KAGAMI_ROUNDS", ROUNDS)
}

/// Directories of a round, in each volume: of the mount or of a site's tree.
fn roots(base: [PathBuf; 2], round: u64) -> Vec<PathBuf> {
    base.into_iter().map(|b| b.join(format!("points{round}"))).collect()
}

fn mounts(lab: &Lab) -> [PathBuf; 2] {
    [lab.mnt(), lab.dir().join("mnt1")]
}

fn trees(lab: &Lab, site: &str) -> [PathBuf; 2] {
    ["region", "region1"].map(|r| lab.site_dir(site).join(r).join("tree"))
}

/// Both workloads of a round, running.
struct Load {
    round: u64,
    seed: u64,
    answered: Answered,
    writer: std::thread::JoinHandle<u64>,
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

/// What a round's workloads were answered.
struct Done {
    round: u64,
    seed: u64,
    log: support::answered::Log,
    /// Steps answered.
    points: u64,
}

impl Load {
    fn start(lab: &Lab, round: u64, seed: u64, promise: Promise) -> Load {
        let dirs = roots(mounts(lab), round);
        let area = lab.mnt().join(format!("answered{round}"));
        for d in dirs.iter().chain([&area]) {
            std::fs::create_dir(d).unwrap_or_else(|e| panic!("{}: {e}\n{}", d.display(), lab.log_tails()));
        }
        let seed = seed.wrapping_add(round);
        let answered = Answered::start(&area, THREADS, promise, seed);
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let flag = stop.clone();
        let writer = std::thread::spawn(move || {
            let mut w = Writer::resume(&dirs, seed, 0);
            w.run(|_| flag.load(std::sync::atomic::Ordering::Relaxed)).0
        });
        Load { round, seed, answered, writer, stop }
    }

    /// Waits until both have been answered something, then a random time of up to `most`.
    fn run_for(&self, rng: &mut Rng, most: u64) {
        let busy = support::proc::wait_until(PATIENCE, || self.answered.answered() > 20 || self.writer.is_finished());
        assert!(busy, "nothing is answered");
        std::thread::sleep(Duration::from_micros(rng.below(most * 1000)));
    }

    fn finish(self) -> Done {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let log = self.answered.finish();
        let points = self.writer.join().expect("the writer of points");
        Done { round: self.round, seed: self.seed, log, points }
    }
}

impl Done {
    /// The point at which a site's trees stand (once what it received is applied).
    #[track_caller]
    fn point(&self, lab: &Lab, site: &str) -> u64 {
        let dirs = roots(trees(lab, site), self.round);
        let end = Instant::now() + PATIENCE;
        loop {
            // The step that was in flight may have happened.
            match points::find_point(&dirs, self.seed, self.points + 1) {
                Ok(n) => return n,
                Err(e) if Instant::now() > end => panic!("{site}: {e}\n{}", lab.log_tails()),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// Everything that was answered is in a site's tree, and it is at a point.
    #[track_caller]
    fn all_there(&self, lab: &Lab, site: &str) {
        let area = trees(lab, site)[0].join(format!("answered{}", self.round));
        let end = Instant::now() + PATIENCE;
        while let Err(wrong) = self.log.check(&area) {
            if Instant::now() > end {
                panic!(
                    "round {}: not all answered is at {site}:\n  {}\n{}",
                    self.round,
                    wrong.join("\n  "),
                    lab.log_tails()
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let mut n = self.point(lab, site);
        while n < self.points {
            // What it received may wait to be applied.
            let late = Instant::now() > end;
            assert!(
                !late,
                "round {}: {site} stays at {n}, answered was {}\n{}",
                self.round,
                self.points,
                lab.log_tails()
            );
            std::thread::sleep(Duration::from_millis(100));
            n = self.point(lab, site);
        }
    }

    /// As [`Done::point`], once nothing has moved for a while.
    #[track_caller]
    fn settled_point(&self, lab: &Lab, site: &str) -> u64 {
        let (mut n, mut quiet) = (self.point(lab, site), 0);
        while quiet < 4 {
            std::thread::sleep(Duration::from_millis(100));
            let now = self.point(lab, site);
            quiet = if now == n { quiet + 1 } else { 0 };
            n = now;
        }
        n
    }
}

/// After a round: in step again, and all trees are equal.
#[track_caller]
fn in_step(lab: &Lab) {
    lab.wait(60);
    let origin = trees(lab, "primary");
    for site in &SITES[1..] {
        for (a, b) in origin.iter().zip(trees(lab, site)) {
            assert!(!b.with_file_name("IN-TRANSITION").exists(), "{site} says that it is between two points");
            support::assert_same(a, &b);
        }
    }
}

/// Resyncs came from the journals: no first copy but those at the beginning, and what was examined is within the journal's
/// count of records.
struct Watched {
    first_copies: usize,
    /// What the pairs last told of a resync.
    told: std::cell::RefCell<[serde_json::Value; 2]>,
}

const PAIRS: [&str; 2] = ["sync", "async"];

/// Changes that may have been under way in a killed primary: they are in no other site's journal.
const IN_FLIGHT: u64 = 32;

impl Watched {
    fn new(lab: &Lab) -> Watched {
        Watched { first_copies: Self::count(lab), told: PAIRS.map(|p| Self::told(lab, p)).into() }
    }

    fn told(lab: &Lab, pair: &str) -> serde_json::Value {
        lab.pair("primary", pair)["last_resync"].clone()
    }

    fn count(lab: &Lab) -> usize {
        SITES.iter().map(|s| lab.log(s).matches("first copy").count()).sum()
    }

    /// `before`: what [`journal_records`] said before the return. Gives the files examined for each pair.
    #[track_caller]
    fn check(&self, lab: &Lab, before: u64) -> [u64; 2] {
        assert_eq!(Self::count(lab), self.first_copies, "a first copy after a crash\n{}", lab.log_tails());
        let records = before.max(journal_records(lab)) + IN_FLIGHT;
        let before = self.told.replace(PAIRS.map(|p| Self::told(lab, p)));
        let now = self.told.borrow();
        [0, 1].map(|i| {
            let examined = now[i]["files_examined"].as_u64().unwrap_or(0);
            // A pair that was not resynced this time still tells of the last time.
            let new = now[i] != before[i];
            let pair = PAIRS[i];
            assert!(
                !new || examined <= records,
                "pair {pair} examined {examined} files, the journals have {records} records"
            );
            if new { examined } else { 0 }
        })
    }
}

/// Records in the longest journal of the sites that run.
fn journal_records(lab: &Lab) -> u64 {
    let of = |site: &&str| {
        let out = lab.at(site, &["journal", "show", "lab", "--limit", "10000000", "--json"]);
        assert!(out.status.success(), "journal show: {}", support::proc::text(&out.stderr));
        let v: serde_json::Value = serde_json::from_slice(&out.stdout).expect("journal show --json is JSON");
        v["records"].as_array().map_or(0, Vec::len) as u64
    };
    SITES.iter().filter(|s| lab.pid(s).is_some()).map(of).max().unwrap_or(0)
}

fn kill_primary(test: &str, args: &[&str], promise: Promise) {
    let seed = support::seed(test);
    let mut rng = Rng::new(seed);
    let all: Vec<&str> = ["--volumes", "2"].iter().chain(args).copied().collect();
    let lab = Lab::up(&all);
    let watched = Watched::new(&lab);
    for round in 0..rounds() {
        let begun = Instant::now();
        let load = Load::start(&lab, round, seed, promise);
        load.run_for(&mut rng, 800);
        lab.kill_now("primary");
        let done = load.finish();
        assert!(done.points > 0 && done.log.answered() > 0, "nothing was answered");
        // One of three: the async node dies as well and recovers alone.
        if rng.one_in(3) {
            lab.kill_now("async");
            lab.start("async");
        }
        if rng.one_in(3) {
            lab.kill_now("sync");
            lab.start("sync");
        }
        done.all_there(&lab, "sync");
        let (s, a) = (done.settled_point(&lab, "sync"), done.settled_point(&lab, "async"));
        assert!(a <= s, "round {round}: async is at {a}, ahead of sync at {s}");
        let recovered = begun.elapsed();
        let records = journal_records(&lab);
        lab.start("primary");
        in_step(&lab);
        watched.check(&lab, records);
        println!(
            "round {round}: {} answered, points {}, sync {s}, async {a}, {:.1} s, return {:.1} s",
            done.log.answered(),
            done.points,
            recovered.as_secs_f64(),
            (begun.elapsed() - recovered).as_secs_f64()
        );
    }
    lab.down();
}

#[test]
fn primary_killed_with_default_options() {
    kill_primary("primary_killed_with_default_options", &[], Promise::Close);
}

#[test]
fn primary_killed_with_write_through() {
    kill_primary("primary_killed_with_write_through", &["--write-through"], Promise::EachWrite);
}

#[test]
fn receivers_killed_under_load() {
    let seed = support::seed("receivers_killed_under_load");
    let mut rng = Rng::new(seed);
    let lab = Lab::up(&["--volumes", "2"]);
    let watched = Watched::new(&lab);
    for round in 0..rounds() {
        let load = Load::start(&lab, round, seed, Promise::Close);
        load.run_for(&mut rng, 400);
        let site = SITES[1 + rng.below(2) as usize];
        lab.kill_now(site);
        std::thread::sleep(Duration::from_millis(rng.below(1200)));
        // Cut off, it recovers alone: nothing that it shows comes from the primary meanwhile.
        let alone = rng.one_in(2);
        if alone {
            lab.cut("primary");
            lab.start(site);
            std::thread::sleep(Duration::from_millis(rng.below(300)));
        } else {
            lab.start(site);
            std::thread::sleep(Duration::from_millis(rng.below(1500)));
        }
        let again = rng.one_in(2);
        if again {
            // In the middle of the resync, perhaps.
            lab.kill_now(site);
        }
        let primary_too = rng.one_in(2);
        if primary_too {
            lab.kill_now("primary");
        }
        let done = load.finish();
        if again {
            lab.start(site);
        }
        let records = journal_records(&lab);
        let mut at = 0;
        if alone || primary_too {
            at = done.settled_point(&lab, site);
        }
        if primary_too {
            lab.start("primary");
        } else if alone {
            lab.join("primary");
        }
        in_step(&lab);
        watched.check(&lab, records);
        println!(
            "round {round}: {site} killed, alone {alone}, again {again}, primary {primary_too}: points {}, was at {at}",
            done.points
        );
    }
    lab.down();
}

/// Files that no round touches.
const STILL: u64 = 2000;

#[test]
fn each_node_killed_and_back_without_a_scan() {
    let seed = support::seed("each_node_killed_and_back_without_a_scan");
    let mut rng = Rng::new(seed);
    let lab = Lab::up(&["--volumes", "2"]);
    // Content that no round touches: a scan would examine it.
    for i in 0..STILL {
        std::fs::write(lab.mnt().join(format!("still{i}")), b"untouched").unwrap();
    }
    in_step(&lab);
    // A lost link ends the journal's interval, so that they lie before all that follows.
    lab.cut("primary");
    for pair in PAIRS {
        lab.wait_pair("primary", pair, "PSUE", PATIENCE);
    }
    lab.join("primary");
    in_step(&lab);
    let watched = Watched::new(&lab);
    for round in 0..rounds() {
        let load = Load::start(&lab, round, seed, Promise::Close);
        load.run_for(&mut rng, 500);
        let victim = SITES[(round % 3) as usize];
        lab.kill_now(victim);
        if victim == "primary" {
            std::thread::sleep(Duration::from_millis(rng.below(500)));
        } else {
            // The load goes on while it is away, and while it comes back.
            std::thread::sleep(Duration::from_millis(rng.below(800)));
        }
        let records = journal_records(&lab);
        lab.start(victim);
        std::thread::sleep(Duration::from_millis(rng.below(400)));
        let done = load.finish();
        in_step(&lab);
        done.all_there(&lab, "sync");
        let examined = watched.check(&lab, records);
        assert!(examined.iter().all(|e| *e < STILL), "examined {examined:?}: what nobody touched, too");
        println!("round {round}: {victim} killed: points {}, examined {examined:?} of {records} records", done.points);
    }
    lab.down();
}

/// G1: what the kernel held when the node was killed is lost, and close says so; a close that succeeds is a promise.
#[test]
fn g1_close_fails_when_the_node_died_before_it_had_the_data() {
    use std::os::fd::AsRawFd;
    use support::sys;
    let lab = Lab::up(&["--sites", "2"]);
    let open = |name: &str| {
        sys::openat(sys::AT_FDCWD, lab.mnt().join(name), sys::O_CREAT | sys::O_WRONLY, 0o644).expect("open")
    };
    for n in 0..3 {
        let f = open(&format!("before{n}"));
        sys::pwrite_all(f.as_raw_fd(), b"before", 0).expect("write");
        sys::close(f).expect("close");
    }
    let held = open("held");
    sys::pwrite_all(held.as_raw_fd(), &[7; 4096], 0).expect("write");
    lab.kill_now("primary");
    // The kernel drops what it cannot write, and forgets that it did.
    std::thread::sleep(Duration::from_secs(1));
    assert!(sys::close(held).is_err(), "close promises what nobody has");
    lab.start("primary");
    lab.wait(60);
    lab.assert_trees_equal();
    lab.down();
}
