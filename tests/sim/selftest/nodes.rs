//! Real nodes in the simulated room.

use super::{hash_of, seed};
use crate::harness::{Test, in_child};
use crate::sched::{self, MachineId};
use kagami::base::Result as Kagami;
use kagami::node::config::Config;
use kagami::node::control::{self, AppOrder, Request};
use kagami::node::launcher::Launcher;
use kagami::node::local::LocalGroup;
use kagami::node::mounter::{MountAs, Mounted, Mounter, OnEnd};
use kagami::node::status::{AppStatus, GroupStatus, Status};
use kagami::volume::Volume;
use serde_json::Value;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const TESTS: [Test; 4] = [
    ("nodes::speed_of_three_idle_nodes", speed_of_three_idle_nodes),
    ("nodes::one_node_starts_answers_and_stops", one_node_starts_answers_and_stops),
    ("nodes::two_sites_come_to_pair", two_sites_come_to_pair),
    ("nodes::a_seed_of_nodes_is_a_run", a_seed_of_nodes_is_a_run),
];

/// "Mounts" a volume by keeping it.
struct Table;

/// A mount that nobody uses.
struct Kept {
    _volume: Arc<Volume>,
    on_end: parking_lot::Mutex<Option<OnEnd>>,
}

impl Mounter for Table {
    fn mount(&self, volume: Arc<Volume>, how: MountAs<'_>) -> Kagami<Box<dyn Mounted>> {
        Ok(Box::new(Kept { _volume: volume, on_end: parking_lot::Mutex::new(Some(how.on_end)) }))
    }
}

impl Mounted for Kept {
    fn unmount(&self) -> Kagami<bool> {
        if let Some(f) = self.on_end.lock().take() {
            f(None);
        }
        Ok(true)
    }
    fn unmount_unused(&self) -> Kagami<()> {
        self.unmount().map(drop)
    }
    fn flush(&self, _: Duration) -> bool {
        true
    }
    fn abort(&self) -> Kagami<()> {
        self.unmount().map(drop)
    }
    fn attached(&self) -> bool {
        self.on_end.lock().is_some()
    }
}

/// Starts nothing.
struct Nothing;

impl Launcher for Nothing {
    fn begin(&self, _: &[Arc<LocalGroup>]) -> Kagami<()> {
        Ok(())
    }
    fn end(&self) {}
    fn release(&self, _: &str) -> Kagami<()> {
        Ok(())
    }
    fn boot(&self, _: &str, _: bool, _: bool) -> Kagami<Value> {
        Ok(Value::Null)
    }
    fn order(&self, _: &str, _: Option<&str>, _: AppOrder) -> Kagami<()> {
        Ok(())
    }
    fn apps(&self, _: &str) -> Vec<AppStatus> {
        Vec::new()
    }
    fn note(&self, _: &str) -> Option<String> {
        None
    }
}

fn site_file(site: &str, all: &[&str]) -> String {
    let mut o = format!("[node]\nsite = \"{site}\"\nstate_dir = \"state\"\nlisten = [\"unix:/sim/{site}/n.sock\"]\n");
    for s in all.iter().filter(|s| **s != site) {
        o += &format!("[[peer]]\nsite = \"{s}\"\naddr = \"unix:/sim/{s}/n.sock\"\n");
    }
    o += "[[group]]\nname = \"lab\"\nprimary = \"primary\"\n";
    o += "[[group.volume]]\nname = \"vol0\"\nlegs = [\"region\"]\nmount = \"/mnt/lab\"\n";
    let pairs = [
        ("sync", "sync", "primary", "sync"),
        ("async", "async", "primary", "async"),
        ("relay", "async", "sync", "async"),
    ];
    for (name, mode, a, b) in pairs.iter().filter(|(_, _, a, b)| all.contains(a) && all.contains(b)) {
        o += &format!("[[group.pair]]\nname = \"{name}\"\nmode = \"{mode}\"\nsites = [\"{a}\", \"{b}\"]\n");
    }
    o
}

fn dir(site: &str) -> PathBuf {
    Path::new("/sim").join(site)
}

/// Makes the machine of a site and starts its node.
fn start(site: &'static str, all: &[&str]) -> MachineId {
    let m = sched::machine(site, &[("", 256 << 20)]);
    let text = site_file(site, all);
    sched::with_disk(m, "", |d| d.write_file(b"site.toml", text.as_bytes())).unwrap();
    run(m, site);
    m
}

fn run(m: MachineId, site: &'static str) -> sched::ThreadId {
    sched::spawn_on(
        m,
        "node",
        Box::new(move || {
            let config = Config::load(&dir(site).join("site.toml")).unwrap();
            let options = kagami::node::Options { mounter: Arc::new(Table), launcher: Arc::new(Nothing) };
            kagami::node::run(config, options).unwrap();
        }),
    )
}

fn status(site: &str) -> Option<GroupStatus> {
    let limit = Some(Duration::from_secs(5));
    let v = control::call_within(&dir(site).join("state"), &Request::Status {}, limit, |_| ()).ok()?;
    serde_json::from_value::<Status>(v).unwrap().groups.into_iter().next()
}

fn wait(what: &str, f: impl Fn() -> bool) {
    let until = sched::now_ns() + 60_000_000_000;
    while !f() {
        assert!(sched::now_ns() < until, "{what} within 60 s");
        sched::sleep(Duration::from_millis(50));
    }
}

fn one_node_starts_answers_and_stops() -> Result<(), String> {
    seed(1, || {
        start("primary", &["primary"]);
        wait("an answer", || status("primary").is_some_and(|g| g.role == "primary"));
        control::call(&dir("primary").join("state"), &Request::Stop {}, |_| ()).unwrap();
        wait("the end", || status("primary").is_none());
    })
    .map(drop)
}

fn in_pair(all: &[&str]) {
    for s in all {
        start_once(s, all);
    }
    let level = |g: GroupStatus| g.pairs.iter().filter(|p| p.direction == "out" && p.state == "PAIR").count();
    wait("PAIR", || status("primary").is_some_and(|g| level(g) == all.len() - 1));
}

fn start_once(site: &str, all: &[&str]) {
    let known = ["primary", "sync", "async"].into_iter().find(|s| *s == site).unwrap();
    start(known, all);
}

fn two_sites_come_to_pair() -> Result<(), String> {
    for s in 0..4 {
        in_child(s as usize, || seed(s, || in_pair(&["primary", "sync"])).map(drop))?;
    }
    Ok(())
}

/// Three nodes come to PAIR, one is killed and comes back, power goes at another; then nothing happens for a while.
fn three_nodes() {
    let sites = ["primary", "sync", "async"];
    in_pair(&sites);
    sched::kill(2);
    wait("the loss", || status("primary").is_some_and(|g| g.pairs.iter().any(|p| p.state == "PSUE")));
    run(2, "sync");
    let cut = crate::disk::Cut::default();
    sched::power_cut(3, &cut);
    sched::sleep(Duration::from_secs(1));
    run(3, "async");
    let level = |g: GroupStatus| g.pairs.iter().filter(|p| p.direction == "out" && p.state == "PAIR").count();
    wait("PAIR again", || status("primary").is_some_and(|g| level(g) == 2));
    sched::sleep(Duration::from_secs(10));
}

fn a_seed_of_nodes_is_a_run() -> Result<(), String> {
    let mut hashes = HashSet::new();
    for s in 0..8 {
        let first = hash_of(s, three_nodes)?;
        let again = hash_of(s, three_nodes)?;
        if again != first {
            return Err(format!("seed {s}: {first:x} and then {again:x}"));
        }
        hashes.insert(first);
    }
    if hashes.len() == 8 { Ok(()) } else { Err(format!("seeds alike: {hashes:x?}")) }
}

/// What three idle nodes cost: for people, `sim nodes::speed` prints it.
fn speed_of_three_idle_nodes() -> Result<(), String> {
    in_child(0, || {
        let begun = Instant::now();
        let o = seed(7, || {
            in_pair(&["primary", "sync", "async"]);
            sched::trace("idle".into());
            sched::sleep(Duration::from_secs(10));
        })?;
        let real = begun.elapsed().as_secs_f64();
        println!(
            "    {} calls, {} switches, {:.1} s simulated in {:.3} s: {:.0} switches per second",
            o.steps,
            o.switches,
            o.virtual_ns as f64 / 1e9,
            real,
            o.switches as f64 / real
        );
        Ok(())
    })
}
