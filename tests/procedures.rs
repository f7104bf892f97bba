//! The procedures over three sites on real nodes (MS-10, MS-13; C7): what one of them does of its own. Every one of them
//! with every fault is in `matrix.rs`.

use crate::support;

use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use support::{Lab, Rng, proc};

const SITES: [&str; 3] = ["primary", "sync", "async"];
const LONG: Duration = Duration::from_secs(60);
/// What the volume holds before anything happens, bytes: more than any difference, so that a copy of everything shows.
const BASE: usize = 6 << 20;

/// Three nodes, a mount point for each, a volume with something in it.
struct Bed {
    lab: Lab,
}

impl Bed {
    fn up() -> Bed {
        let lab = Lab::up(&[]);
        for s in ["sync", "async"] {
            fs::create_dir(lab.dir().join(format!("mnt-{s}"))).unwrap();
        }
        let bed = Bed { lab };
        let (mnt, mut rng) = (bed.mnt("primary"), Rng::new(7));
        for n in 0..BASE >> 18 {
            fs::write(mnt.join(format!("base{n}")), rng.bytes(1 << 18)).unwrap();
        }
        bed.settled();
        bed
    }

    fn mnt(&self, site: &str) -> PathBuf {
        match site {
            "primary" => self.lab.mnt(),
            s => self.lab.dir().join(format!("mnt-{s}")),
        }
    }

    /// An order at a site, with the mount point of that site.
    fn order(&self, site: &str, args: &[&str]) -> std::process::Output {
        let at = self.mnt(site).display().to_string();
        let all: Vec<&str> = args.iter().copied().chain(["--at", &at, "--timeout", "60"]).collect();
        self.lab.at(site, &all)
    }

    #[track_caller]
    fn ok(&self, site: &str, args: &[&str]) -> String {
        let out = self.order(site, args);
        let (o, e) = (proc::text(&out.stdout), proc::text(&out.stderr));
        assert!(out.status.success(), "{args:?} at {site}: {}\n{o}\n{e}\n{}", out.status, self.lab.log_tails());
        o
    }

    #[track_caller]
    fn settled(&self) {
        self.lab.wait(60);
        for s in SITES {
            self.no_walk(s);
        }
        self.lab.assert_trees_equal();
    }

    /// No initial copy since the volume was made.
    #[track_caller]
    fn no_walk(&self, site: &str) {
        let walks =
            self.events(site).into_iter().filter(|e| e["kind"] == "copy-begin" && e["to"] == "first-copy").count();
        let first = if site == "primary" { 2 } else { 0 };
        assert!(walks <= first, "an initial copy at site {site}\n{}", self.lab.log_tails());
    }

    fn events(&self, site: &str) -> Vec<Value> {
        let out = self.lab.at(site, &["events", "--json"]);
        proc::text(&out.stdout).lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
    }

    /// Starts a node that was killed: for a moment its last thread may hold the lock of its state directory.
    #[track_caller]
    fn back(&self, site: &str) {
        let started = || self.lab.try_lab("start", &[site]).status.success();
        assert!(proc::wait_until(Duration::from_secs(20), started), "{site} does not start\n{}", self.lab.log_tails());
    }

    fn is_primary(&self, site: &str) -> bool {
        self.lab.try_status(site).is_some_and(|s| s["groups"][0]["role"] == "primary")
    }

    /// P is lost and S leads; then P is back as a secondary.
    fn led_by(&self, site: &str) {
        self.lab.kill_now("primary");
        let limit = Instant::now() + LONG;
        while !self.order(site, &["takeover", "lab", "--force"]).status.success() {
            assert!(Instant::now() < limit, "no takeover\n{}", self.lab.log_tails());
        }
        self.back("primary");
        self.settled();
    }
}

/// C7: after figure 10 with 20,000 files and 50 files under way to the async site, at most those 50 are copied.
#[test]
fn c7_ms10_after_a_takeover_only_what_was_under_way_is_copied() {
    let lab = Lab::prepare(false);
    let tree = lab.tree("primary");
    for d in 0..20 {
        fs::create_dir_all(tree.join(format!("d{d}"))).unwrap();
        for f in 0..1000 {
            fs::write(tree.join(format!("d{d}/f{f}")), format!("{d} {f}")).unwrap();
        }
    }
    lab.ok("up", &[]);
    lab.wait(120);
    // Under way: the async site is not reached from the primary.
    let paused = lab.at("primary", &["peer", "pause", "async"]);
    assert!(paused.status.success());
    for f in 0..50 {
        fs::write(lab.mnt().join(format!("d3/f{f}")), format!("under way {f}")).unwrap();
    }
    lab.wait_pair("primary", "sync", "PAIR", LONG);
    lab.kill_now("primary");
    let at = lab.dir().join("mnt-sync");
    fs::create_dir(&at).unwrap();
    let begun = Instant::now();
    let out = lab.at("sync", &["takeover", "lab", "--at", at.to_str().unwrap(), "--json"]);
    assert!(out.status.success(), "{}\n{}", proc::text(&out.stderr), lab.log_tails());
    let took = begun.elapsed();
    let plan: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(plan["figure"], 10, "{plan:#}");
    let last = &plan["steps"].as_array().unwrap()[2];
    assert_eq!((&last["step"], &last["state"]), (&"follow-others".into(), &"done".into()), "{plan:#}");
    let relay = lab.wait_pair("sync", "relay", "PAIR", LONG);
    let cost = &relay["last_resync"];
    let n = |k: &str| cost[k].as_u64().unwrap_or_else(|| panic!("no {k}: {relay:#}\n{}", lab.log_tails()));
    println!(
        "c7: {} files, {} bytes copied, {} examined; takeover and resync in {took:?}",
        n("files_copied"),
        n("bytes_copied"),
        n("files_examined")
    );
    assert_eq!(n("files_copied"), 50, "{cost:#}");
    support::assert_same(&lab.tree("sync"), &lab.tree("async"));
    lab.start("primary");
    lab.wait(60);
    lab.assert_trees_equal();
    lab.down();
}

/// MS-10: where the sync site and the async site cannot talk, the application runs without a copy, and that is said.
#[test]
fn ms10_without_the_third_site_the_application_runs_without_a_copy() {
    let bed = Bed::up();
    for s in ["primary", "async"] {
        bed.lab.kill_now(s);
    }
    let said = bed.ok("sync", &["takeover", "lab"]);
    assert!(said.contains("runs without a copy"), "{said}");
    fs::write(bed.mnt("sync").join("alone"), "alone").unwrap();
    // The same order again has nothing left to do.
    bed.back("async");
    let said = bed.ok("sync", &["takeover", "lab"]);
    assert!(said.contains("follow-others"), "{said}");
    bed.lab.wait_pair("sync", "relay", "PAIR", LONG);
    support::assert_same(&bed.lab.tree("sync"), &bed.lab.tree("async"));
    bed.lab.down();
}

/// MS-13: what only the sync site has is there after a takeover at the async site; and when the two cannot talk it is said
/// to take over at the sync site.
#[test]
fn ms13_the_sync_sites_data_goes_to_the_async_site_before_it_starts() {
    let bed = Bed::up();
    let paused = bed.lab.at("primary", &["peer", "pause", "async"]);
    assert!(paused.status.success());
    for n in 0..20 {
        fs::write(bed.mnt("primary").join(format!("late{n}")), format!("only the sync site has {n}")).unwrap();
    }
    bed.lab.kill_now("primary");
    assert!(!bed.lab.tree("async").join("late3").exists());
    bed.lab.cut("async");
    let with: &[&str] = &["takeover", "lab", "--with-data-of", "sync"];
    let out = bed.order("async", with);
    let said = proc::text(&out.stderr);
    assert!(out.status.code() == Some(4) && said.contains("take over at site sync instead"), "{said}");
    assert!(!bed.is_primary("async") && !bed.is_primary("sync"), "nothing has changed");
    bed.lab.join("async");
    let dry = proc::text(&bed.order("async", &[with, &["--dry-run"]].concat()).stdout);
    assert!(dry.contains("figure 14") && dry.contains("1 → act"), "{dry}");
    let said = bed.ok("async", with);
    println!("{said}");
    for n in 0..20 {
        let text = fs::read_to_string(bed.mnt("async").join(format!("late{n}"))).unwrap();
        assert_eq!(text, format!("only the sync site has {n}"));
    }
    // The pair back was in PAIR before the volume was mounted: the event log of the new primary says in which order.
    let all = bed.events("async");
    let at = |f: &dyn Fn(&Value) -> bool| all.iter().rposition(f).unwrap_or_else(|| panic!("{all:#?}"));
    let paired = at(&|e| e["kind"] == "pair" && e["pair"] == "relay" && e["to"] == "PAIR");
    let mounted = at(&|e| e["kind"] == "mount");
    assert!(paired < mounted, "{all:#?}");
    bed.back("primary");
    bed.settled();
    bed.lab.down();
}

/// A dry run changes nothing and names the steps; a second procedure is refused while one is under way; steps are events.
#[test]
fn c1_one_at_a_time_and_every_step_is_told() {
    let bed = Bed::up();
    bed.led_by("sync");
    let epoch = |s: &str| bed.lab.status(s)["groups"][0]["epoch"].as_u64();
    let before = epoch("sync");
    let dry = proc::text(&bed.order("primary", &["failback", "lab", "--dry-run"]).stdout);
    println!("{dry}");
    for words in
        ["figure 11", "why so: the application is down only while", "– level", "→ roles", "· start", "nothing is lost"]
    {
        assert!(dry.contains(words), "no {words:?} in: {dry}");
    }
    assert_eq!(epoch("sync"), before);
    // It waits for a pair that is not in PAIR: a second one, at another site, is refused meanwhile.
    bed.lab.kill_now("async");
    let at = bed.mnt("primary").display().to_string();
    let paused = bed.lab.at("sync", &["peer", "pause", "primary"]);
    assert!(paused.status.success());
    let mut first = support::lab::kagami();
    first.arg("--config").arg(bed.lab.config("primary")).args(["failback", "lab", "--at", &at]);
    first.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    bed.back("async");
    let mut first = proc::die_with_parent(&mut first).spawn().unwrap();
    let second = |site: &str| {
        let out = bed.order(site, &["swap", "lab", "--to", "async"]);
        (out.status.code(), proc::text(&out.stderr))
    };
    let refused = proc::wait_until(Duration::from_secs(10), || {
        let (code, said) = second("async");
        code == Some(4) && said.contains("a failback of group lab is under way, ordered at site primary")
    });
    let _ = bed.lab.at("sync", &["peer", "resume", "primary"]);
    let _ = first.wait();
    assert!(refused, "{:?}\n{}", second("async"), bed.lab.log_tails());
    let home = || bed.order("primary", &["failback", "lab"]).status.success();
    assert!(proc::wait_until(LONG, home), "{}", bed.lab.log_tails());
    let steps: Vec<String> = bed
        .events("primary")
        .iter()
        .filter(|e| e["kind"] == "procedure")
        .filter_map(|e| e["to"].as_str().map(str::to_owned))
        .collect();
    for s in ["roles: begun", "roles: done", "start: done"] {
        assert!(steps.iter().any(|x| x == s), "{steps:?}");
    }
    bed.settled();
    // At home nothing is left to do.
    let said = bed.ok("primary", &["failback", "lab"]);
    assert!(said.contains("site primary is primary"), "{said}");
    bed.lab.down();
}
