//! What is seen of a copy under way, and what is left of it when a node is killed or a disk is full (G2, G8).

use super::bed::{self, between, copy, said, settle, until};
use super::slow;
use super::support::random::random_tree;
use super::support::{self, Lab, Rng, assert_same, proc};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;
/// Of the line where a resync is watched, bytes/s.
const RATE: u64 = 50 << 20;

fn progress(p: &Value, key: &str) -> u64 {
    p["progress"][key].as_u64().unwrap_or(0)
}

/// A tree with content that takes a while to send and names that take a while to change.
fn fill(tree: &Path) {
    let mut rng = Rng::new(1);
    for i in 0..6 {
        fs::write(tree.join(format!("big{i}")), rng.bytes(20 * MIB)).unwrap();
    }
    for d in 0..4 {
        fs::create_dir(tree.join(format!("d{d}"))).unwrap();
        for i in 0..300 {
            fs::write(tree.join(format!("d{d}/f{i}")), rng.bytes(2000)).unwrap();
        }
    }
}

/// Changes more than the queue holds, so that the way back is a resync.
fn change(mnt: &Path, round: usize) {
    let mut rng = Rng::new(50 + round as u64);
    for i in 0..6 {
        fs::write(mnt.join(format!("big{i}")), rng.bytes(20 * MIB)).unwrap();
    }
    for d in 0..4 {
        let dir = mnt.join(format!("d{d}"));
        for i in 0..60 {
            let old = dir.join(format!("f{}", i + 60 * round));
            match i % 3 {
                0 => fs::write(old, rng.bytes(3000)).unwrap(),
                1 => fs::remove_file(old).unwrap(),
                _ => fs::rename(old, mnt.join(format!("d{}/moved-{round}-{d}-{i}", (d + 1) % 4))).unwrap(),
            }
        }
    }
}

/// Starts the sync site while its primary is not to be reached, and waits until it has recovered.
fn start_alone(lab: &Lab, target: &str) {
    lab.cut("primary");
    lab.start(target);
    assert!(proc::wait_until(bed::PATIENCE, || !between(lab, target)), "{target} stays between two points");
}

/// A6: the old point until the commit, whoever is killed; afterwards the new one.
#[test]
fn a_resync_shows_the_old_point_or_the_new_one_whoever_is_killed() {
    proc::ready_to_stop();
    let mut line = None;
    let lab = bed::made(&["--sites", "2"], |lab| {
        fill(&lab.tree("primary"));
        bed::configure(lab, "primary", "[limits]\nspool_mib = 0");
        line = Some(slow::slow_line(lab, "sync", RATE));
    });
    lab.ok("up", &[]);
    settle(&lab);
    // Two seconds and more for what is watched, however busy this machine is.
    line.as_ref().unwrap().slow.store(true, Ordering::Relaxed);
    let (tree, old) = (lab.tree("sync"), lab.dir().join("old"));
    let wait_staging = || {
        until(&lab, "primary", "sync", "well into a resync", |p| {
            p["state"] == "COPY" && progress(p, "done_bytes") > 30 * MIB as u64
        })
    };
    let stop = |site: &str| proc::kill(lab.pid(site).unwrap(), libc::SIGSTOP);
    let go_on = |site: &str| proc::kill(lab.pid(site).unwrap(), libc::SIGCONT);

    // The source is killed while it sends.
    copy(&tree, &old);
    lab.cut("sync");
    change(&lab.mnt(), 0);
    lab.join("sync");
    let p = wait_staging();
    stop("primary");
    assert!(progress(&p, "total_bytes") > 100 * MIB as u64 && p["progress"]["eta_s"].is_number(), "{p:#}");
    assert_same(&old, &tree);
    lab.kill_now("primary");
    assert_same(&old, &tree);
    assert!(!between(&lab, "sync"));

    // The target is killed while it is sent to.
    lab.start("primary");
    wait_staging();
    stop("sync");
    assert_same(&old, &tree);
    lab.kill_now("sync");
    start_alone(&lab, "sync");
    assert_same(&old, &tree);

    // The target is killed once it has the commit record and its tree is between the two points.
    let seen = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            let end = Instant::now() + bed::PATIENCE;
            while Instant::now() < end {
                if between(&lab, "sync") {
                    lab.kill_now("sync");
                    seen.store(true, Ordering::SeqCst);
                    return;
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        lab.join("primary");
    });
    assert!(seen.load(Ordering::SeqCst), "the marker was never seen");
    assert!(between(&lab, "sync"), "it was killed too late to show anything");
    start_alone(&lab, "sync");
    assert_same(&lab.tree("primary"), &tree);
    lab.join("primary");
    settle(&lab);

    // A takeover in the middle of a resync is at the old point.
    fs::remove_dir_all(&old).unwrap();
    copy(&tree, &old);
    lab.cut("sync");
    change(&lab.mnt(), 1);
    lab.join("sync");
    wait_staging();
    stop("primary");
    let at = lab.dir().join("there");
    fs::create_dir(&at).unwrap();
    let out = lab.at("sync", &["takeover", "lab", "--force", "--at", at.to_str().unwrap()]);
    assert!(out.status.success(), "{}", proc::text(&out.stderr));
    assert_same(&old, &tree);
    go_on("primary");
    settle(&lab);
    lab.assert_trees_equal();
    assert_same(&old, &tree);
    assert_eq!(said(&lab, "primary", "first copy:"), 1, "{}", lab.log("primary"));
    lab.down();
}

/// A6: a target without room says so, keeps its point, and comes back once there is room.
#[test]
fn a_resync_that_does_not_fit_harms_nothing_and_waits_for_room() {
    if !support::is_root() {
        return support::skipped(
            "a_resync_that_does_not_fit_harms_nothing_and_waits_for_room",
            "needs root for a tmpfs",
        );
    }
    let mount = |lab: &Lab, options: &str| {
        let mut c = std::process::Command::new("mount");
        c.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(lab.site_dir("sync").join("region"));
        proc::run_ok(&mut c, bed::PATIENCE);
    };
    let lab = bed::made(&["--sites", "2"], |lab| {
        mount(lab, "size=64m");
        fs::write(lab.tree("primary").join("file"), Rng::new(1).bytes(8 * MIB)).unwrap();
        bed::configure(lab, "primary", "[limits]\nqueue_memory_mib = 1\nspool_mib = 0");
    });
    lab.ok("up", &[]);
    settle(&lab);
    let old = lab.dir().join("old");
    copy(&lab.tree("sync"), &old);
    lab.cut("sync");
    fs::write(lab.mnt().join("file"), Rng::new(2).bytes(8 * MIB)).unwrap();
    fs::write(lab.mnt().join("more"), Rng::new(3).bytes(40 * MIB)).unwrap();
    lab.join("sync");
    let p = until(&lab, "primary", "sync", "PSUE for want of space", |p| {
        p["state"] == "PSUE" && p["reason"].as_str().is_some_and(|r| r.contains("needs-space"))
    });
    println!("{}", p["reason"]);
    assert!(!between(&lab, "sync"));
    assert_same(&old, &lab.tree("sync"));
    // The application goes on meanwhile.
    fs::write(lab.mnt().join("last"), "last").unwrap();
    mount(&lab, "remount,size=256m");
    lab.wait_pair("primary", "sync", "PAIR", bed::PATIENCE);
    settle(&lab);
    lab.assert_trees_equal();
    // `lab down` leaves a mount alone that is not its own; the guard takes it away.
    drop(lab);
}

/// A6: where the staging will never fit, the operator may have it copied in place; until that is done the target is no point.
#[test]
fn a6_a_resync_that_cannot_be_staged_is_done_in_place_by_order() {
    let name = "a6_a_resync_that_cannot_be_staged_is_done_in_place_by_order";
    if !support::is_root() {
        return support::skipped(name, "needs root for a tmpfs");
    }
    let lab = bed::made(&["--sites", "2"], |lab| {
        let mut c = std::process::Command::new("mount");
        c.args(["-t", "tmpfs", "-o", "size=120m", "tmpfs"]).arg(lab.site_dir("sync").join("region"));
        proc::run_ok(&mut c, bed::PATIENCE);
        fs::write(lab.tree("primary").join("file"), Rng::new(1).bytes(64 * MIB)).unwrap();
        bed::configure(lab, "primary", "[limits]\nqueue_memory_mib = 1\nspool_mib = 0");
        bed::configure(lab, "sync", "[limits]\nlog_mib = 32");
    });
    lab.ok("up", &[]);
    settle(&lab);
    let order = |words: &[&str]| lab.at("primary", words);
    let out = order(&["pair", "resync", "lab", "sync", "--in-place"]);
    assert_eq!(out.status.code(), Some(4), "a pair in step needs none: {}", proc::text(&out.stderr));
    lab.cut("sync");
    fs::write(lab.mnt().join("file"), Rng::new(2).bytes(66 * MIB)).unwrap();
    lab.join("sync");
    until(&lab, "primary", "sync", "PSUE for want of space", |p| {
        p["state"] == "PSUE" && p["reason"].as_str().is_some_and(|r| r.contains("needs-space"))
    });
    let out = order(&["pair", "resync", "lab", "sync", "--in-place"]);
    assert!(out.status.success(), "{}", proc::text(&out.stderr));
    lab.wait_pair("primary", "sync", "PAIR", bed::PATIENCE);
    settle(&lab);
    lab.assert_trees_equal();
    // What was ordered was for this time only.
    lab.cut("sync");
    fs::write(lab.mnt().join("small"), "small").unwrap();
    lab.join("sync");
    lab.wait_pair("primary", "sync", "PAIR", bed::PATIENCE);
    settle(&lab);
    assert_eq!(said(&lab, "primary", "pair sync: first copy:"), 2, "the first one, and the one in place");
    drop(lab);
}

/// Ends the writer, also when the test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// G2: the sync site stands still while the async one is copied to. What a write has brought about here meanwhile is part of
/// what is copied, but of no point that counts, until the sync site has it.
#[test]
fn g2_a_first_copy_does_not_end_ahead_of_the_sync_site() {
    proc::ready_to_stop();
    let lab = bed::made(&[], |lab| {
        for site in ["primary", "sync"] {
            bed::configure(lab, site, "[limits]\nlink_timeout_ms = 60000\nprogress_timeout_ms = 60000");
        }
    });
    lab.ok("up", &[]);
    settle(&lab);
    lab.kill_now("async");
    let region = lab.site_dir("async").join("region");
    fs::remove_dir_all(&region).unwrap();
    fs::create_dir(&region).unwrap();
    let made = lab.at("async", &["region", "create"]);
    assert!(made.status.success(), "{}", proc::text(&made.stderr));
    let signal = |s| proc::kill(lab.pid("sync").unwrap(), s);
    signal(libc::SIGSTOP);
    let (mnt, here, there) = (lab.mnt(), lab.tree("primary"), lab.tree("async"));
    let writer = std::thread::spawn(move || fs::create_dir(mnt.join("new")));
    assert!(proc::wait_until(bed::PATIENCE, || here.join("new").exists()), "{}", lab.log_tails());
    lab.start("async");
    assert!(proc::wait_until(bed::PATIENCE, || there.join("new").exists()), "{}", lab.log_tails());
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        assert!(between(&lab, "async"), "a point that the sync site does not have");
        assert_ne!(lab.pair("primary", "async")["state"], "PAIR");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!writer.is_finished(), "answered without the sync site");
    signal(libc::SIGCONT);
    writer.join().unwrap().unwrap();
    settle(&lab);
    assert!(!between(&lab, "async"));
    lab.assert_trees_equal();
    lab.down();
}

/// MS-9: both copies of a tree that was there before, side by side, while it is written to.
#[test]
fn initial_copies_of_an_existing_tree_go_on_under_writes_and_through_kills() {
    let lab = bed::made(&[], |lab| {
        random_tree(&lab.tree("primary"), 5_000, support::seed("initial copy")).unwrap();
        let big = Rng::new(5).bytes(60 * MIB);
        fs::write(lab.tree("primary").join("big"), big).unwrap();
    });
    // One by one: `lab up` would wait for the copies, and does not like it when a node ends.
    for site in support::lab::SITES {
        lab.start(site);
    }
    let done = AtomicBool::new(false);
    let mut shown = [false; 2];
    std::thread::scope(|s| {
        let writer = s.spawn(|| {
            let dir = lab.mnt().join("while copying");
            let mut n = 0u64;
            while !done.load(Ordering::SeqCst) {
                if n == 0 && fs::create_dir(&dir).is_err() {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                }
                // Fails while the primary is away.
                let name = dir.join(format!("{}", n % 50));
                let _ = fs::write(&name, vec![n as u8; 3000]);
                let _ = fs::rename(&name, dir.join(format!("moved {}", n % 20)));
                n += 1;
            }
            n
        });
        let over = Over(&done);
        let mut killed = 0;
        let end = Instant::now() + bed::PATIENCE;
        while Instant::now() < end && killed < 2 {
            let Some(status) = lab.try_status("primary") else { continue };
            let mut paired = 0;
            for (i, pair) in ["sync", "async"].into_iter().enumerate() {
                let p = support::lab::find_pair(&status, pair).cloned().unwrap_or_default();
                paired += (p["state"] == "PAIR") as usize;
                shown[i] |= p["progress"]["phase"] == "first copy" && progress(&p, "done_files") > 0;
                if p["state"] == "COPY" && progress(&p, "done_files") > 200 && killed == i {
                    let site = ["sync", "primary"][i];
                    lab.kill_now(site);
                    lab.start(site);
                    killed += 1;
                    break;
                }
            }
            if paired == 2 {
                break;
            }
        }
        println!("{killed} nodes killed during the copy");
        for pair in ["sync", "async"] {
            lab.wait_pair("primary", pair, "PAIR", bed::PATIENCE);
        }
        drop(over);
        assert!(writer.join().unwrap() > 10, "nothing was written meanwhile");
        assert!(killed > 0, "the copy was over before anybody could be killed");
    });
    assert!(shown.contains(&true), "no progress was shown: {shown:?}");
    settle(&lab);
    lab.assert_trees_equal();
    lab.down();
}
