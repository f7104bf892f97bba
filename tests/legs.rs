//! A8 (MS-1, MS-8, MS-21): two legs in one mirror group: one is added while in use, one is lost, the volume goes on, and
//! the lost one comes back by the journal.

mod support;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use support::lab::Lab;

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
    support::assert_same(&site.join("region/tree"), &site.join("region-b/tree"));
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
