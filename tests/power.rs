//! Power cuts (G1, G4): what was fsynced is there, all sites are equal afterwards, and only what was active is compared.
//! The cut is played on real regions: see `power/disk.rs`. `KAGAMI_ROUNDS`: rounds (default [`ROUNDS`]; each costs about 15 s).

mod disk;
use crate::support;

use disk::Durable;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use support::lab::SITES;
use support::{Lab, Rng};

const ROUNDS: u64 = 2;
/// Files that no round touches, and the directories they are in.
const STILL: u64 = 1000;
const STILL_DIRS: u64 = 40;
const PATIENCE: Duration = Duration::from_secs(60);

fn rounds() -> u64 {
    support::env_number("KAGAMI_ROUNDS", ROUNDS)
}

fn region(lab: &Lab, site: &str) -> PathBuf {
    lab.site_dir(site).join("region")
}

/// Directories that a round may work in.
fn work(lab: &Lab) -> Vec<PathBuf> {
    (0..4).map(|i| lab.mnt().join(format!("work{i}"))).collect()
}

struct Bed {
    lab: Lab,
    rng: Rng,
    first_copies: usize,
    /// Files fsynced, with their content, as paths below the tree.
    synced: Vec<(PathBuf, Vec<u8>)>,
    number: u64,
}

fn first_copies(lab: &Lab) -> usize {
    SITES.iter().map(|s| lab.log(s).matches("first copy").count()).sum()
}

impl Bed {
    fn up(test: &str) -> Bed {
        let rng = Rng::new(support::seed(test));
        let lab = Lab::up(&[]);
        for d in 0..STILL_DIRS {
            let dir = lab.mnt().join(format!("still{d}"));
            fs::create_dir(&dir).unwrap();
            for i in 0..STILL / STILL_DIRS {
                fs::write(dir.join(format!("f{i}")), b"untouched").unwrap();
            }
        }
        for d in work(&lab) {
            fs::create_dir(&d).unwrap();
            for i in 0..10 {
                fs::write(d.join(format!("old{i}")), vec![i as u8; 3 * 4096 + i * 100]).unwrap();
            }
        }
        in_step(&lab);
        // A lost link ends the journal's interval, so that they lie before all that follows.
        lab.cut("primary");
        for pair in ["sync", "async"] {
            lab.wait_pair("primary", pair, "PSUE", PATIENCE);
        }
        lab.join("primary");
        in_step(&lab);
        let first_copies = first_copies(&lab);
        let bed = Bed { lab, rng, first_copies, synced: Vec::new(), number: 0 };
        // What was in use at one checkpoint is active until the next.
        for _ in 0..2 {
            bed.checkpoints(&SITES);
        }
        bed
    }

    /// Waits for a checkpoint of these sites, and copies their regions.
    fn durable(&self, sites: &[&str]) -> Vec<Durable> {
        // Until all have taken theirs within the last seconds: then there is time before the next.
        loop {
            self.checkpoints(sites);
            let now = kagami::base::time::now().sec as u64;
            let oldest = sites.iter().map(|s| now - disk::checkpoint(&region(&self.lab, s)).1).max();
            if oldest <= Some(2) {
                break;
            }
        }
        let to = |s: &&str| self.lab.dir().parent().unwrap().join(format!("then-{s}"));
        sites.iter().map(|s| Durable::copy(&region(&self.lab, s), &to(s))).collect()
    }

    /// Waits until these sites have taken a checkpoint of something new.
    fn checkpoints(&self, sites: &[&str]) {
        let end = Instant::now() + PATIENCE;
        fs::write(self.lab.mnt().join("tick"), b"tick").unwrap();
        let head = self.position("primary");
        let at = || -> Vec<u64> { sites.iter().map(|s| disk::checkpoint(&region(&self.lab, s)).0).collect() };
        while at().iter().any(|a| *a < head) {
            assert!(Instant::now() < end, "no checkpoint: {:?} of {head}\n{}", at(), self.lab.log_tails());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn position(&self, site: &str) -> u64 {
        self.lab.status(site)["groups"][0]["position"].as_u64().unwrap_or(0)
    }

    /// Changes of all kinds in the work directories, some of them fsynced.
    fn load(&mut self, steps: u64) {
        let dirs = work(&self.lab);
        for _ in 0..steps {
            self.number += 1;
            let n = self.number;
            let dir = &dirs[self.rng.below(2) as usize];
            let other = &dirs[self.rng.below(4) as usize];
            let old = dir.join(format!("old{}", self.rng.below(10)));
            let new = dir.join(format!("new{n}"));
            let data = self.rng.bytes(3 * 4096 + 77);
            let done = match self.rng.below(9) {
                0 => fs::write(&new, &data),
                1 => fs::OpenOptions::new().write(true).open(&old).and_then(|f| f.write_all_at(&data[..4096], 4096)),
                2 => fs::rename(&old, other.join(format!("moved{n}"))),
                3 => fs::remove_file(&old),
                4 => fs::create_dir(&new).and_then(|()| fs::write(new.join("inside"), &data)),
                5 => fs::hard_link(&old, &new),
                6 => fs::write(&old, &data),
                7 => fs::OpenOptions::new().append(true).open(&old).and_then(|mut f| f.write_all(&data)),
                _ => {
                    let path = dir.join(format!("synced{n}"));
                    let mut f = fs::File::create(&path).unwrap();
                    f.write_all(&data).and_then(|()| f.sync_all()).unwrap();
                    let below = path.strip_prefix(self.lab.mnt()).unwrap().to_owned();
                    self.synced.push((below, data));
                    Ok(())
                }
            };
            match done {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => panic!("{e}\n{}", self.lab.log_tails()),
                _ => {}
            }
        }
    }

    fn synced_at(&self, site: &str) -> BTreeSet<PathBuf> {
        self.synced.iter().map(|(p, _)| self.lab.tree(site).join(p)).collect()
    }

    /// The machines of these sites go down.
    fn cut(&mut self, then: &[Durable], sites: &[&str]) -> Vec<String> {
        for s in sites {
            self.lab.kill_now(s);
        }
        if !then.iter().all(Durable::holds) {
            // A checkpoint came in between: what was copied is not what may be there. It is a kill -9, then.
            return vec!["a checkpoint in between".into()];
        }
        let mut told = Vec::new();
        for (d, s) in then.iter().zip(sites) {
            // The sync site has what was fsynced in its log, not in its tree.
            let synced = if *s == "primary" { self.synced_at(s) } else { BTreeSet::new() };
            told.push(format!("{s}: {}", d.cut(&mut self.rng, &synced)));
        }
        told
    }

    /// All sites are equal, what was fsynced is there, and not everything was looked at.
    #[track_caller]
    fn settled(&self) {
        let end = Instant::now() + PATIENCE;
        while self.lab.status("primary")["groups"][0]["role"] != "primary" {
            assert!(Instant::now() < end, "the primary does not come back\n{}", self.lab.log_tails());
            std::thread::sleep(Duration::from_millis(100));
        }
        in_step(&self.lab);
        for (p, data) in &self.synced {
            let there = fs::read(self.lab.mnt().join(p)).unwrap_or_else(|e| panic!("{}: {e}", p.display()));
            assert!(there == *data, "{}: other content", p.display());
        }
        assert_eq!(first_copies(&self.lab), self.first_copies, "a full comparison\n{}", self.lab.log_tails());
        for site in ["primary", "sync"] {
            for pair in ["sync", "async"] {
                let examined = support::lab::find_pair(&self.lab.status(site), pair)
                    .and_then(|p| p["last_resync"]["files_examined"].as_u64())
                    .unwrap_or(0);
                assert!(examined < STILL / 2, "{site} {pair}: {examined} files were examined");
            }
        }
    }
}

#[track_caller]
fn in_step(lab: &Lab) {
    lab.wait(90);
    for site in &SITES[1..] {
        assert!(!region(lab, site).join("IN-TRANSITION").exists(), "{site} is between two points");
        let end = Instant::now() + Duration::from_secs(10);
        // The tree of the primary is compared once what the kernel held is written.
        while let Err(differ) = support::compare_trees(&lab.tree("primary"), &lab.tree(site)) {
            assert!(Instant::now() < end, "{site} differs:\n{}\n{}", differ.join("\n"), lab.log_tails());
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

fn cut_rounds(test: &str, pick: &dyn Fn(&mut Rng) -> Vec<&'static str>) {
    let mut bed = Bed::up(test);
    let (mut round, mut tries) = (0, 0);
    while round < rounds() {
        tries += 1;
        assert!(tries <= 3 * rounds(), "a checkpoint always comes in between");
        let sites = pick(&mut bed.rng);
        let then = bed.durable(&sites);
        let steps = 5 + bed.rng.below(60);
        bed.load(steps);
        let told = bed.cut(&then, &sites);
        let begun = Instant::now();
        let mut order = sites.clone();
        if bed.rng.one_in(2) {
            order.reverse();
        }
        for s in order {
            bed.lab.start(s);
        }
        bed.settled();
        println!("round {round}: {} in {:.1} s", told.join("; "), begun.elapsed().as_secs_f64());
        round += u64::from(told.len() == sites.len() && told[0].contains(": "));
    }
    bed.lab.down();
}

/// G1: the sync site has what the primary lost; it leads until the primary has it.
#[test]
fn power_cut_of_the_primary_in_pair() {
    cut_rounds("power_cut_of_the_primary_in_pair", &|_| vec!["primary"]);
}

/// G4: a secondary is compared where it was active.
#[test]
fn power_cut_of_a_secondary() {
    cut_rounds("power_cut_of_a_secondary", &|rng| vec![SITES[1 + rng.below(2) as usize]]);
}

/// G1: fsynced data survive at both.
#[test]
fn power_cut_of_primary_and_sync() {
    cut_rounds("power_cut_of_primary_and_sync", &|_| vec!["primary", "sync"]);
}

/// G1, G2: both sites lose power and the primary does not come back. The sync site takes over with its own power cut behind
/// it, and everything that was fsynced is there; it comes back to a point of the order by itself.
#[test]
fn power_cut_of_both_sites_and_the_primary_never_returns() {
    let mut bed = Bed::up("power_cut_of_both_sites_and_the_primary_never_returns");
    let (mut round, mut tries) = (0, 0);
    while round < rounds() {
        tries += 1;
        assert!(tries <= 3 * rounds(), "a checkpoint always comes in between");
        let then = bed.durable(&["sync"]);
        let steps = 20 + bed.rng.below(60);
        bed.load(steps);
        bed.lab.kill_now("primary");
        let told = bed.cut(&then, &["sync"]);
        bed.lab.start("sync");
        let mnt = bed.lab.dir().join("mnt-sync");
        fs::create_dir_all(&mnt).unwrap();
        assert!(!region(&bed.lab, "sync").join("IN-TRANSITION").exists(), "{}", bed.lab.log_tails());
        // By force, as where a link may still be up: what a power cut took would not stop it.
        bed.lab.takeover("sync", &["--force", "--at", mnt.to_str().unwrap()]);
        for (p, data) in &bed.synced {
            let there =
                fs::read(mnt.join(p)).unwrap_or_else(|e| panic!("{}: {e}\n{}", p.display(), bed.lab.log_tails()));
            assert!(there == *data, "{}: other content", p.display());
        }
        let words = bed.lab.log("sync");
        assert!(!words.contains("left out after a power cut") && !words.contains("lost in a power cut"), "{words}");
        bed.lab.start("primary");
        bed.lab.wait_pair("sync", "sync", "PAIR", PATIENCE);
        let out = bed.lab.at("primary", &["takeover", "lab", "--handover", "--at", bed.lab.mnt().to_str().unwrap()]);
        assert!(out.status.success(), "{}\n{}", support::proc::text(&out.stderr), bed.lab.log_tails());
        in_step(&bed.lab);
        println!("round {round}: {}", told.join("; "));
        round += u64::from(told[0].contains(": "));
    }
    bed.lab.down();
}

/// Alone after a lost link, the primary goes on with what its disk kept, and says so.
#[test]
fn power_cut_of_a_primary_that_was_alone() {
    let mut bed = Bed::up("power_cut_of_a_primary_that_was_alone");
    for round in 0..rounds().div_ceil(2) {
        bed.load(5);
        in_step(&bed.lab);
        let cut = bed.rng.one_in(2);
        if cut {
            bed.lab.cut("primary");
            bed.lab.wait_pair("primary", "sync", "PSUE", PATIENCE);
            bed.load(5);
        }
        let then = bed.durable(&["primary"]);
        if !cut {
            bed.lab.cut("primary");
            bed.lab.wait_pair("primary", "sync", "PSUE", PATIENCE);
        }
        let steps = 5 + bed.rng.below(20);
        bed.load(steps);
        let told = bed.cut(&then, &["primary"]);
        bed.lab.start("primary");
        let status = bed.lab.status("primary");
        let reason = status["groups"][0]["reason"].as_str().unwrap_or("").to_owned();
        let as_killed = told[0].starts_with("a checkpoint");
        assert!(as_killed || reason.contains("unknown loss since"), "{reason:?}");
        bed.settled();
        println!("round {round}: {}", told.join("; "));
    }
    bed.lab.down();
}

/// Every file of a tree with its content; true: it has further names, under one of which it may be listed.
fn files(tree: &Path) -> BTreeMap<String, (Vec<u8>, bool)> {
    let mut out = BTreeMap::new();
    let mut dirs = vec![tree.to_owned()];
    while let Some(d) = dirs.pop() {
        for e in fs::read_dir(&d).unwrap().map(Result::unwrap) {
            if e.file_type().unwrap().is_dir() {
                dirs.push(e.path());
            } else {
                let name = e.path().strip_prefix(tree).unwrap().to_str().unwrap().to_owned();
                out.insert(name, (fs::read(e.path()).unwrap(), e.metadata().unwrap().nlink() > 1));
            }
        }
    }
    out
}

/// G6: the other site had what the primary lost. It is set back to what the primary's disk kept, and lists what it had.
#[test]
fn what_a_primary_lost_and_went_on_without_is_listed_at_the_other_site() {
    let mut bed = Bed::up("what_a_primary_lost_and_went_on_without_is_listed_at_the_other_site");
    let (mut listed, mut rounds, mut tries) = (0, 0, 0);
    while rounds < self::rounds().min(3) {
        tries += 1;
        assert!(tries <= 10, "a checkpoint always comes in between");
        let then = bed.durable(&["primary"]);
        bed.load(40);
        in_step(&bed.lab);
        bed.lab.cut("primary");
        bed.lab.wait_pair("primary", "sync", "PSUE", PATIENCE);
        let told = bed.cut(&then, &["primary"]);
        let had = files(&bed.lab.tree("sync"));
        bed.lab.start("primary");
        bed.settled();
        let list = |site: &str, args: &[&str]| -> Value {
            let out = bed.lab.at(site, args);
            assert!(out.status.success(), "{args:?}: {}", support::proc::text(&out.stderr));
            serde_json::from_slice(&out.stdout).expect("JSON")
        };
        let events = |site: &str| list(site, &["loss", "list", "--json"])["events"].as_array().unwrap().clone();
        let mut kept: BTreeMap<String, Option<Vec<u8>>> = BTreeMap::new();
        for e in events("sync") {
            let shown = list("sync", &["loss", "show", e["id"].as_str().unwrap(), "--json"]);
            for o in shown["objects"].as_array().unwrap() {
                let content = o["kept"].as_str().map(|p| fs::read(p).unwrap());
                kept.insert(o["path"].as_str().unwrap().to_owned(), content);
            }
        }
        let now = files(&bed.lab.tree("sync"));
        for (path, (was, linked)) in had.iter().filter(|(p, was)| now.get(*p).map(|n| &n.0) != Some(&was.0)) {
            let known: Vec<&String> = kept.keys().collect();
            assert!(*linked || kept.contains_key(path), "{path} is not listed: {known:?}\n{}", bed.lab.log_tails());
            let somewhere = kept.values().flatten().chain(now.values().map(|n| &n.0)).any(|k| k == was);
            assert!(somewhere, "{path}: its content was not kept: {known:?}\n{}", bed.lab.log_tails());
            listed += 1;
        }
        println!("{}: {} objects listed", told.join("; "), kept.len());
        if told[0].contains(": ") {
            rounds += 1;
            assert!(events("primary").iter().any(|e| e["cause"] == "power-cut"), "{:?}", events("primary"));
        }
        for site in ["primary", "sync"] {
            bed.lab.at(site, &["loss", "drop", "--all"]);
        }
        assert!(events("sync").is_empty() && events("primary").is_empty());
    }
    assert!(listed > 0, "nothing was lost in any round");
    bed.lab.down();
}

/// G9: a site that lost power and could not bring itself back says so before a takeover, and what stands in the way of one.
#[test]
fn a_torn_site_says_what_a_takeover_may_cost_and_that_it_is_refused() {
    let lab = Lab::up(&[]);
    fs::write(lab.mnt().join("one"), "one").unwrap();
    in_step(&lab);
    for s in ["primary", "sync"] {
        lab.kill_now(s);
    }
    disk::damaged(&region(&lab, "sync"));
    lab.start("sync");
    let at = lab.dir().join("mnt-sync");
    fs::create_dir(&at).unwrap();
    let at = at.to_str().unwrap();
    let plan = lab.at("sync", &["takeover", "lab", "--dry-run", "--json"]);
    let said = support::proc::text(&plan.stderr);
    let plan: serde_json::Value =
        serde_json::from_slice(&plan.stdout).unwrap_or_else(|e| panic!("{e}: {said}\n{}", lab.log_tails()));
    let refused = plan["refused"].as_str().unwrap_or_default();
    assert!(refused.contains("site sync lost power"), "{plan}");
    assert!(plan["loss"]["words"].as_str().is_some_and(|w| w.contains("this site lost power")), "{plan}");
    let boot = support::proc::text(&lab.at("sync", &["boot", "--dry-run", "lab"]).stdout);
    assert!(boot.contains("what stands in the way") && boot.contains("site sync lost power"), "{boot}");
    let out = lab.at("sync", &["takeover", "lab", "--at", at]);
    assert_eq!(out.status.code(), Some(4));
    lab.takeover("sync", &["--force", "--at", at]);
    assert_eq!(fs::read(Path::new(at).join("one")).unwrap(), b"one");
    lab.down();
}

/// G9: a hand-over while somebody uses the mount is refused at once, says who, and changes nothing; by force it is done.
#[test]
fn a_handover_of_a_mount_in_use_is_refused_at_once_or_ends_it_by_force() {
    let lab = Lab::up(&[]);
    in_step(&lab);
    let path = lab.mnt().join("open");
    let mut open = fs::File::create(&path).unwrap();
    open.write_all(b"written, not closed").unwrap();
    let at = lab.dir().join("mnt-sync");
    fs::create_dir(&at).unwrap();
    let begun = Instant::now();
    let out = lab.at("sync", &["takeover", "lab", "--handover", "--at", at.to_str().unwrap()]);
    let said = support::proc::text(&out.stderr);
    assert_eq!(out.status.code(), Some(4), "{said}\n{}", lab.log_tails());
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(said.contains(&format!("process {} (", std::process::id())) && said.contains("is in use"), "{said}");
    open.write_all(b", and it goes on").unwrap();
    fs::write(lab.mnt().join("beside"), b"beside").unwrap();
    assert_eq!(lab.status("primary")["groups"][0]["role"], "primary");
    assert_eq!(lab.status("sync")["groups"][0]["role"], "secondary");
    let out = lab.at("sync", &["takeover", "lab", "--handover", "--force", "--at", at.to_str().unwrap()]);
    assert!(out.status.success(), "{}\n{}", support::proc::text(&out.stderr), lab.log_tails());
    assert_eq!(
        fs::read(at.join("open")).unwrap(),
        b"written, not closed, and it goes on",
        "what was written is flushed"
    );
    assert!(open.write_all(b"too late").and_then(|()| open.sync_all()).is_err(), "the old mount still takes data");
    drop(open);
    lab.wait_pair("sync", "sync", "PAIR", PATIENCE);
    lab.down();
}

/// Roles change by order: nothing is lost, nothing is copied anew.
#[test]
fn roles_are_handed_over_and_back() {
    let lab = Lab::up(&[]);
    let write = |mnt: &Path, name: &str| fs::write(mnt.join(name), name).unwrap();
    write(&lab.mnt(), "one");
    in_step(&lab);
    let copies = first_copies(&lab);
    let at = lab.dir().join("mnt-sync");
    fs::create_dir(&at).unwrap();
    let out = lab.at("sync", &["takeover", "lab", "--handover", "--at", at.to_str().unwrap()]);
    assert!(out.status.success(), "{}\n{}", support::proc::text(&out.stderr), lab.log_tails());
    assert_eq!(fs::read(at.join("one")).unwrap(), b"one");
    assert!(!lab.mnt().join("one").exists(), "still mounted at the old primary");
    write(&at, "two");
    lab.wait_pair("sync", "sync", "PAIR", PATIENCE);
    let out = lab.at("primary", &["takeover", "lab", "--handover", "--at", lab.mnt().to_str().unwrap()]);
    assert!(out.status.success(), "{}\n{}", support::proc::text(&out.stderr), lab.log_tails());
    assert_eq!(fs::read(lab.mnt().join("two")).unwrap(), b"two");
    write(&lab.mnt(), "three");
    lab.wait_pair("primary", "sync", "PAIR", PATIENCE);
    support::assert_same(&lab.tree("primary"), &lab.tree("sync"));
    let count =
        |l: &Lab| ["primary", "sync"].iter().map(|s| l.log(s).matches("pair sync: first copy").count()).sum::<usize>();
    assert!(count(&lab) <= copies, "a first copy between the two\n{}", lab.log_tails());
    lab.down();
}
