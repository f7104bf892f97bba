//! A8 (MS-1, MS-8, MS-21): two legs in one mirror group: one is added while in use, one is lost, the volume goes on, and
//! the lost one comes back by the journal.

use crate::support;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use support::lab::Lab;
use support::proc::{run, run_ok, text, wait_until};

const SOON: Duration = Duration::from_secs(30);

/// A small filesystem, unmounted at the end.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, mib: u32) -> Small {
        std::fs::create_dir_all(at).unwrap();
        let ok = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m,mode=755"), "kagami-test"])
            .arg(at)
            .status()
            .unwrap();
        assert!(ok.success(), "mounting a small filesystem");
        Small(at.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A drive of its own, an ext4 in a file: it can be made to fail, and put back. Unmounted at the end.
struct Drive {
    image: PathBuf,
    at: PathBuf,
}

impl Drive {
    fn new(image: PathBuf, at: PathBuf) -> Drive {
        std::fs::create_dir_all(&at).unwrap();
        std::fs::File::create(&image).unwrap().set_len(96 << 20).unwrap();
        run_ok(Command::new("mkfs.ext4").arg("-q").arg(&image), SOON);
        let d = Drive { image, at };
        d.mount();
        d
    }

    fn mount(&self) {
        run_ok(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.at), SOON);
    }

    /// The filesystem meets an error and makes itself read-only; what it has not written yet is lost.
    fn fail(&self) {
        run_ok(Command::new("mount").args(["-o", "remount,abort"]).arg(&self.at), SOON);
    }

    /// Taken out, checked, put in again. Nobody may have anything open on it by now.
    fn put_back(&self) {
        let gone = wait_until(SOON, || run(Command::new("umount").arg(&self.at), SOON).status.success());
        assert!(gone, "something is still open on the drive that failed");
        // 1: errors were found and mended, as they should after that.
        let fsck = run(Command::new("e2fsck").arg("-fy").arg(&self.image), SOON);
        assert!(matches!(fsck.status.code(), Some(0 | 1)), "{}", text(&fsck.stdout));
        self.mount();
    }
}

impl Drop for Drive {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

fn legs(lab: &Lab) -> Vec<(String, String)> {
    let s: Value = lab.status("primary");
    let legs = s["groups"][0]["legs"].as_array().unwrap().clone();
    legs.iter().map(|l| (l["state"].as_str().unwrap().into(), l["reason"].to_string())).collect()
}

fn wait_legs(lab: &Lab, want: &[&str], seconds: u64) {
    let until = Instant::now() + Duration::from_secs(seconds);
    loop {
        let now = legs(lab);
        if now.iter().map(|l| l.0.as_str()).eq(want.iter().copied()) {
            return;
        }
        assert!(Instant::now() < until, "legs are {now:?}, wanted {want:?}\n{}", lab.log_tails());
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn work(lab: &Lab, name: &str, files: u32) {
    let dir = lab.mnt().join(name);
    std::fs::create_dir(&dir).unwrap();
    for i in 0..files {
        std::fs::write(dir.join(format!("f{i}")), format!("{name} {i}\n").repeat(50)).unwrap();
    }
}

fn same_legs(lab: &Lab) {
    lab.wait(60);
    let site = lab.site_dir("primary");
    support::assert_same_soon(&site.join("region/tree"), &site.join("region-b/tree"));
    lab.assert_trees_equal();
}

#[test]
fn a8_ms8_a_leg_is_added_while_in_use() {
    let lab = Lab::up(&["--sites", "2"]);
    work(&lab, "before", 300);
    let mnt = lab.mnt();
    let writer = std::thread::spawn(move || {
        for i in 0..400 {
            std::fs::write(mnt.join(format!("during{i}")), vec![i as u8; 3000]).unwrap();
        }
    });
    let region = lab.site_dir("primary").join("region-b");
    let out = lab.at("primary", &["leg", "add", "lab", region.to_str().unwrap()]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    writer.join().unwrap();
    wait_legs(&lab, &["synchronised", "synchronised"], 30);
    work(&lab, "after", 50);
    same_legs(&lab);
    lab.down();
}

/// A leg is taken out while in use, also the one in use; the last one cannot be; one that was removed can come back.
#[test]
fn a8_ms1_legs_are_removed_while_in_use_and_come_back() {
    let lab = Lab::up(&["--sites", "2", "--legs", "2"]);
    work(&lab, "before", 100);
    wait_legs(&lab, &["synchronised", "synchronised"], 30);
    let order = |words: &[&str]| {
        let out = lab.at("primary", words);
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    // The leg in use: another one takes its place under the open mount.
    let open = std::fs::File::create(lab.mnt().join("open")).unwrap();
    assert_eq!(order(&["leg", "remove", "lab", "0"]).0, Some(0));
    std::io::Write::write_all(&mut &open, b"written after it").unwrap();
    drop(open);
    work(&lab, "after", 20);
    assert_eq!(legs(&lab).len(), 1, "{:?}", legs(&lab));
    lab.wait(60);
    support::assert_same(&lab.site_dir("primary").join("region-b/tree"), &lab.tree("sync"));
    let (code, said) = order(&["leg", "remove", "lab", "1"]);
    assert!(code == Some(4) && said.contains("no other leg"), "{code:?} {said}");
    let (code, said) = order(&["leg", "remove", "lab", "0"]);
    assert!(code == Some(2) && said.contains("no leg 0"), "{code:?} {said}");
    // It is still gone after a restart, though the site file names it, and comes back by order.
    lab.kill("primary");
    lab.start("primary");
    assert!(wait_until(SOON, || legs(&lab).len() == 1), "{:?}", legs(&lab));
    let region = lab.site_dir("primary").join("region");
    let (code, said) = order(&["leg", "add", "lab", region.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{said}");
    wait_legs(&lab, &["synchronised", "synchronised"], 30);
    work(&lab, "with both", 20);
    same_legs(&lab);
    lab.down();
}

/// One leg's drive is full: the volume goes on with the other one, whichever it is.
fn full_leg(full: &str) {
    if !support::is_root() {
        support::skipped("full_leg", "a small filesystem needs root");
        return;
    }
    let lab = Lab::prepare(false);
    let at = lab.site_dir("primary").join(full);
    let small = Small::mount(&at, 48);
    lab.ok("up", &["--sites", "2", "--legs", "2"]);
    wait_legs(&lab, &["synchronised", "synchronised"], 30);
    work(&lab, "before", 100);
    let plug = at.join("plug");
    let _ = std::fs::write(&plug, vec![1u8; 64 << 20]);
    work(&lab, "while", 200);
    std::fs::write(lab.mnt().join("big"), vec![7u8; 8 << 20]).unwrap();
    std::fs::rename(lab.mnt().join("before"), lab.mnt().join("moved")).unwrap();
    let lost = if full == "region" { 0 } else { 1 };
    assert_eq!(legs(&lab)[lost].0, "faulty", "{:?}\n{}", legs(&lab), lab.log_tails());
    assert_eq!(legs(&lab)[1 - lost].0, "synchronised");
    std::fs::remove_file(&plug).unwrap();
    wait_legs(&lab, &["synchronised", "synchronised"], 30);
    work(&lab, "after", 50);
    same_legs(&lab);
    assert!(!lab.log("primary").contains("leg1: first copy: the journals"), "it came back by the journal");
    lab.ok("down", &[]);
    drop(small);
    lab.down();
}

#[test]
fn a8_ms21_the_second_leg_is_full_and_comes_back_by_the_journal() {
    full_leg("region-b");
}

#[test]
fn a8_ms21_the_leg_in_use_is_full_and_the_other_one_takes_over() {
    full_leg("region");
}

/// How many copies of a way a site began, and the content that its copies sent, by its log of events.
fn copies(lab: &Lab, way: &str) -> (usize, u64) {
    let out = lab.at("primary", &["events", "--json"]);
    let all: Vec<Value> = text(&out.stdout).lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let ours = |e: &&Value| matches!(e["pair"].as_str(), Some("sync" | "async"));
    let begun = all.iter().filter(ours).filter(|e| e["kind"] == "copy-begin" && e["to"] == way).count();
    let sent = all.iter().filter(ours).filter(|e| e["kind"] == "copy-end");
    (begun, sent.filter_map(|e| e["stats"]["bytes_copied"].as_u64()).sum())
}

/// MS-15, figure 17: the leg that feeds the pairs is lost while a program writes. The other leg takes its place; what was in
/// flight is issued again on it, both pairs go on from it without an initial copy, and the async site is at a point of the
/// order all the time, so no backup of it is needed.
#[test]
fn ms15_the_leg_that_feeds_the_pairs_is_lost_without_an_initial_copy() {
    const TEST: &str = "ms15_the_leg_that_feeds_the_pairs_is_lost_without_an_initial_copy";
    if !support::is_root() {
        return support::skipped(TEST, "a small filesystem needs root");
    }
    let lab = Lab::prepare(false);
    let at = lab.site_dir("primary").join("region");
    let small = Small::mount(&at, 48);
    lab.ok("up", &["--legs", "2"]);
    wait_legs(&lab, &["synchronised", "synchronised"], 30);
    work(&lab, "before", 100);
    // More than what may be in flight at the loss and is sent once to each of the two sites: the 4 MiB file and some records.
    const BASE_BYTES: u64 = 20 << 20;
    std::fs::write(lab.mnt().join("base"), vec![3u8; BASE_BYTES as usize]).unwrap();
    lab.wait(60);
    let (walks, sent) = copies(&lab, "first-copy");
    let dir = lab.mnt().join("load");
    std::fs::create_dir(&dir).unwrap();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let s = stop.clone();
    let writer = std::thread::spawn(move || {
        let mut n = 0;
        while !s.load(std::sync::atomic::Ordering::SeqCst) {
            // No write fails: one leg took it.
            let mut f = std::fs::File::create(dir.join(format!("r{n}"))).unwrap();
            std::io::Write::write_all(&mut f, format!("record {n}\n").repeat(100).as_bytes()).unwrap();
            f.sync_all().unwrap();
            n += 1;
        }
        n
    });
    let _ = std::fs::write(at.join("plug"), vec![1u8; 64 << 20]);
    std::fs::write(lab.mnt().join("big"), vec![7u8; 4 << 20]).unwrap();
    wait_legs(&lab, &["faulty", "synchronised"], 30);
    std::thread::sleep(Duration::from_millis(300));
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    let records = writer.join().unwrap();
    lab.wait(60);
    for site in ["sync", "async"] {
        support::assert_same(&lab.site_dir("primary").join("region-b/tree"), &lab.tree(site));
        for n in 0..records {
            let found = std::fs::read_to_string(lab.tree(site).join(format!("load/r{n}"))).unwrap();
            assert_eq!(found, format!("record {n}\n").repeat(100), "{site}: r{n}");
        }
    }
    let (walks_now, sent_now) = copies(&lab, "first-copy");
    println!("{TEST}: {records} records, {} bytes sent by copies after the loss", sent_now - sent);
    assert_eq!(walks_now, walks, "an initial copy\n{}", lab.log_tails());
    assert!(sent_now - sent < BASE_BYTES, "what was there before was copied again: {} bytes", sent_now - sent);
    std::fs::remove_file(at.join("plug")).unwrap();
    lab.ok("down", &[]);
    drop(small);
    lab.down();
}

/// Begins the lab anew with a volume of two drives (raid1) at the primary, and sizes.
fn raid1(lab: &Lab) {
    let file = lab.config("primary");
    let s = std::fs::read_to_string(&file).unwrap();
    let drives = "emulation = \"raid1\"\ndrives = [\"region/r\", \"region-b/r\"]\nsize = \"60MB\"";
    let s = s.replacen("legs = [\"region\"]", drives, 1);
    assert!(s.contains(drives), "{s}");
    std::fs::write(&file, s).unwrap();
    let file = lab.config("sync");
    let s = std::fs::read_to_string(&file).unwrap();
    // The emulation type is the same at both ends; the drives of the other site are directories.
    let s = s.replacen(
        "legs = [\"region\"]",
        "emulation = \"raid1\"\ndrives = [\"region\", \"region-b\"]\nsize = \"60MB\"",
        1,
    );
    std::fs::write(&file, s).unwrap();
}

/// Random writes, each loop read back and checked, at a pace that lasts a while.
fn fio(lab: &Lab) -> std::process::Child {
    let dir = lab.mnt().join("fio");
    let _ = std::fs::create_dir(&dir);
    let mut c = Command::new("fio");
    c.args(["--name=v", "--rw=randwrite", "--bs=16k", "--size=8m", "--loops=4", "--rate=,4m", "--fsync=32"]);
    c.args(["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--ioengine=psync", "--fallocate=none"]);
    c.arg(format!("--directory={}", dir.display()));
    c.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    support::proc::die_with_parent(&mut c).spawn().unwrap()
}

#[track_caller]
fn verified(mut child: std::process::Child) {
    let done = support::proc::wait_timeout(&mut child, Duration::from_secs(120));
    let out = child.wait_with_output().unwrap();
    assert!(done.is_some_and(|s| s.success()), "fio: {done:?}\n{}\n{}", text(&out.stdout), text(&out.stderr));
}

#[test]
fn b5_a_drive_of_a_raid1_volume_fails_under_load_and_is_put_back() {
    const TEST: &str = "b5_a_drive_of_a_raid1_volume_fails_under_load_and_is_put_back";
    if !support::is_root() || run(Command::new("losetup").arg("-f"), SOON).status.code() != Some(0) {
        return support::skipped(TEST, "drives that fail need root and loop devices");
    }
    let lab = Lab::up(&["--sites", "2"]);
    lab.ok("down", &[]);
    for s in ["primary", "sync"] {
        for d in ["region", "state"] {
            std::fs::remove_dir_all(lab.site_dir(s).join(d)).unwrap();
        }
    }
    let site = lab.site_dir("primary");
    let drive = |n: &str| Drive::new(site.join(format!("{n}.img")), site.join(n));
    let drives = [drive("region"), drive("region-b")];
    raid1(&lab);
    lab.ok("up", &["--sites", "2"]);
    wait_legs(&lab, &["synchronised", "synchronised"], 30);
    work(&lab, "before", 100);
    // First the one that is not in use, then the one that is.
    for (lost, drive) in drives.iter().enumerate().rev() {
        let load = fio(&lab);
        std::thread::sleep(Duration::from_secs(2));
        drive.fail();
        work(&lab, &format!("while{lost}"), 50);
        verified(load);
        let now = legs(&lab);
        assert_eq!(
            (now[lost].0.as_str(), now[1 - lost].0.as_str()),
            ("faulty", "synchronised"),
            "{now:?}\n{}",
            lab.log_tails()
        );
        drive.put_back();
        wait_legs(&lab, &["synchronised", "synchronised"], 60);
        work(&lab, &format!("after{lost}"), 20);
        lab.wait(60);
        support::assert_same_soon(&site.join("region/r/tree"), &site.join("region-b/r/tree"));
        support::assert_same(&site.join("region/r/tree"), &lab.tree("sync"));
    }
    // Its directory is gone: the volume goes on, and nothing is copied into its place before somebody says so.
    std::fs::remove_dir_all(site.join("region/r")).unwrap();
    work(&lab, "gone", 50);
    wait_legs(&lab, &["faulty", "synchronised"], 30);
    let why = legs(&lab)[0].1.clone();
    assert!(wait_until(SOON, || legs(&lab)[0].1.contains("kagami region create")), "{why}");
    assert!(!site.join("region/r").exists());
    assert!(lab.at("primary", &["region", "create"]).status.success());
    wait_legs(&lab, &["synchronised", "synchronised"], 60);
    lab.wait(60);
    support::assert_same_soon(&site.join("region/r/tree"), &site.join("region-b/r/tree"));
    lab.ok("down", &[]);
    drop(drives);
    lab.down();
}
