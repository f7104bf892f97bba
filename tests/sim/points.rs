//! D1, D3: every point at which a node makes something durable (fsync, fdatasync, syncfs, rename), counted and named: the node is
//! killed, or its machine loses power, just before it and just after it. The tour that is crashed goes through everything that
//! has a durable step of its own: writing, an outage with its resync, a pair split by order, a swap, a takeover, the way back.

use super::chart::{PRIMARY, SITES, SYNC};
use super::disk::Cut;
use super::rng::Rng;
use super::room::{self, Crash, HOST, MachineId, When};
use super::seeds::{self, Course, NOTES, Sums};
use super::shared::Shared;
use super::world::{self, GROUP, Plan};
use super::{client, mounts, oracle};
use kagami::node::control::Request;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A crash at a point of the tour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Case {
    machine: MachineId,
    /// From 1, counted from the beginning of the tour.
    point: u64,
    when: When,
    /// `None`: killed.
    cut: Option<Cut>,
}

/// Of so many cases an ordinary run plays one; odd, so that every way to crash has its turn.
const SHARE: u64 = 17;

static CASES: Shared<Vec<Case>> = Shared::new(Vec::new());

/// The tour; with a case, crashed at its point. The seed draws what the clients do.
fn tour(case: Option<Case>) -> Result<(), String> {
    let seed = 7;
    let plan = Plan { fence: false, voted: false, write_through: true, journal_mib: 64, queue_mib: 4 };
    world::build(&plan);
    world::begin(seed)?;
    let before: BTreeMap<MachineId, u64> = SITES.iter().map(|(m, _)| (*m, room::syncs(*m))).collect();
    if let Some(c) = case {
        let crash = c.cut.map_or(Crash::Kill, Crash::PowerCut);
        room::on_sync(c.machine, c.point, c.when, crash);
        room::spawn_on(HOST, "watch", Box::new(move || back_again(c, seed)));
    }
    stations();
    if case.is_none() {
        NOTES.with(|n| n.clear());
        let told: Vec<String> = SITES.iter().map(|(m, _)| points(*m, before[m])).collect();
        NOTES.with(|n| *n = told.join(";"));
    }
    SITES.iter().for_each(|(m, _)| room::forget_plan(*m));
    room::sleep(Duration::from_millis(400));
    super::faults::end_all(seed);
    oracle::heal(seed)?;
    oracle::still();
    oracle::heal(seed)?;
    oracle::final_checks()
}

/// Starts the machine again some time after it crashed.
fn back_again(c: Case, seed: u64) {
    while room::is_planned(c.machine) {
        room::sleep(Duration::from_millis(1));
    }
    // The tour was over before it came to that point.
    if world::lives(c.machine) {
        return;
    }
    world::crashed(c.machine, c.cut.is_some());
    room::sleep(Duration::from_millis(250));
    if !world::is_up(c.machine) {
        world::start(c.machine, seed);
    }
}

fn stations() {
    let told = |what: &str, r: kagami::base::Result<serde_json::Value>| {
        room::trace(format!("{what}: {:?}", r.map(drop).map_err(|e| e.to_string())));
    };
    room::sleep(Duration::from_millis(300));
    room::with_net(|n| n.all_of(SYNC, |p| p.cut = true));
    room::sleep(Duration::from_millis(2000));
    room::with_net(|n| n.all_of(SYNC, |p| p.cut = false));
    room::sleep(Duration::from_millis(900));
    let (group, pair) = (GROUP.to_owned(), "async".to_owned());
    told("split", world::order(PRIMARY, &Request::PairSplit { group: group.clone(), pair: pair.clone() }));
    room::sleep(Duration::from_millis(150));
    let resync = Request::PairResync { group: group.clone(), pair, in_place: false, keep: None };
    told("resync", world::order(PRIMARY, &resync));
    room::sleep(Duration::from_millis(300));
    told("swap", world::order(SYNC, &Request::PairSwap { group: group.clone(), pair: "sync".into() }));
    room::sleep(Duration::from_millis(600));
    let old = SITES.iter().map(|s| s.0).find(|m| mounts::mounted(*m)).unwrap_or(SYNC);
    let new = if old == SYNC { PRIMARY } else { SYNC };
    if world::is_up(old) {
        world::kill(old);
    }
    room::sleep(Duration::from_millis(300));
    let over = Request::Takeover { group, force: false, dry_run: false, at: None, handover: false, bare: false };
    told("takeover", world::order(new, &over));
    room::sleep(Duration::from_millis(400));
    if !world::is_up(old) {
        world::start(old, 7);
    }
    room::sleep(Duration::from_millis(900));
}

/// The points of a machine's disk since it had made so many: what and for which sort of file.
fn points(m: MachineId, after: u64) -> String {
    let class = |p: &[u8]| {
        let text = String::from_utf8_lossy(p).into_owned();
        let text = text.split_once("/tree/").map_or(text.clone(), |(r, _)| format!("{r}/tree/…"));
        let mut out = String::new();
        for word in text.split_inclusive(['/', '.']) {
            let hex = word.trim_end_matches(['/', '.']);
            let number = hex.len() > 3 && hex.chars().all(|c| c.is_ascii_hexdigit());
            out += if number { word.trim_start_matches(hex) } else { word };
        }
        out
    };
    let all = room::with_disk(m, "", |d| d.sync_log().to_vec());
    let names = all.iter().filter(|p| p.number > after).map(|p| format!("{} {}", p.what, class(&p.path)));
    names.collect::<Vec<_>>().join(",")
}

fn run_base(_: u64) {
    if let Err(why) = tour(None) {
        client::fail(why);
    }
}

fn run_case(n: u64) {
    let case = CASES.with(|c| c[n as usize]);
    if let Err(why) = tour(Some(case)) {
        client::fail(format!("{case:?}: {why}"));
    }
}

/// Every point of the tour, before and after, killed and without power.
pub fn d1_d3_persist_points() -> Result<(), String> {
    let begin = Instant::now();
    let mut base = None;
    seeds::run([0].into_iter(), Course { before: |_| (), run: run_base }, |r| {
        base = Some(r);
        true
    });
    let base = base.ok_or("the tour did not run")?;
    if let Some(why) = base.failure {
        return Err(format!("the tour itself: {why}\n{}", base.tail));
    }
    let mut names: BTreeMap<String, u64> = BTreeMap::new();
    let mut cases = Vec::new();
    for ((m, _), told) in SITES.iter().zip(base.notes.split(';')) {
        for (i, name) in told.split(',').enumerate() {
            *names.entry(name.to_owned()).or_default() += 1;
            cases.extend(at_point(*m, i as u64 + 1));
        }
    }
    println!("{} points:", names.values().sum::<u64>());
    names.iter().for_each(|(name, n)| println!("  {n:4} {name}"));
    // An ordinary run takes every so manieth case, another residue for each way to crash.
    let count = cases.len() as u64;
    let whole = ["KAGAMI_POINTS", "KAGAMI_FULL"].iter().any(|v| std::env::var_os(v).is_some());
    if !whole {
        println!("{} of {count} cases; KAGAMI_POINTS=all plays all", count.div_ceil(SHARE));
    }
    let share = if whole { 1 } else { SHARE };
    let only = std::env::var("KAGAMI_CASE").ok().and_then(|v| v.parse::<u64>().ok());
    CASES.with(|c| *c = cases);
    let (mut sums, mut failed) = (Sums::default(), Vec::new());
    let all = only.map_or(0..count, |n| n..n + 1);
    let all = all.filter(|n| only.is_some() || n % share == 0);
    seeds::run(all, Course { before: |_| (), run: run_case }, |r| {
        sums.add(&r);
        if let Some(why) = &r.failure {
            println!("case {}: {why}\n    KAGAMI_CASE={} cargo test --test sim d1_d3", r.seed, r.seed);
            if only.is_some() {
                println!("{}", r.tail);
            }
            failed.push(r.seed);
        }
        failed.len() < 20
    });
    println!("{}", sums.line(begin.elapsed()));
    if failed.is_empty() { Ok(()) } else { Err(format!("cases that failed: {failed:?}")) }
}

/// Killed before and after it; without power before and after it, with nothing, everything, and parts of what was not synced.
fn at_point(machine: MachineId, point: u64) -> Vec<Case> {
    let mut rng = Rng::new(point ^ (machine as u64) << 32);
    let cuts = [
        None,
        Some(Cut { none_of_unsynced: true, ..Cut::default() }),
        Some(Cut { all_of_unsynced: true, ..Cut::default() }),
        Some(Cut { sectors: rng.chance(0.5), unordered: rng.chance(0.5), ..Cut::default() }),
    ];
    let whens = [When::Before, When::After];
    whens.iter().flat_map(|when| cuts.iter().map(|cut| Case { machine, point, when: *when, cut: *cut })).collect()
}
