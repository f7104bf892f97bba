//! `kagami verify` and `--repair` against a running lab: what was changed behind kagami's back is named and made equal,
//! what changes by itself is not mistaken for a difference.

use crate::support;

use serde_json::Value;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::{Lab, Rng, assert_same};

fn tree_digest(tree: &Path) -> String {
    support::tree_digest(tree).unwrap()
}

/// A tree with everything a comparison looks at; large enough for several slices of one file.
fn fill(lab: &Lab) {
    let mnt = lab.mnt();
    let mut rng = Rng::new(7);
    for d in ["a", "a/b", "c"] {
        fs::create_dir(mnt.join(d)).unwrap();
        for i in 0..20 {
            fs::write(mnt.join(d).join(format!("file{i}")), rng.bytes(3000 * i + 1)).unwrap();
        }
    }
    fs::write(mnt.join("large"), rng.bytes(6 << 20)).unwrap();
    let sparse = fs::File::create(mnt.join("sparse")).unwrap();
    sparse.write_all_at(b"in the middle", 1 << 20).unwrap();
    sparse.set_len(3 << 20).unwrap();
    fs::write(mnt.join("empty"), b"").unwrap();
    fs::hard_link(mnt.join("a/file3"), mnt.join("c/linked")).unwrap();
    std::os::unix::fs::symlink("a/file1", mnt.join("symlink")).unwrap();
    set_xattr(&mnt.join("a/file2"), "user.colour", b"red");
    lab.wait(60);
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    let name = std::ffi::CString::new(name).unwrap();
    // SAFETY: both are strings, and the value is given with its length.
    let r = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    assert_eq!(r, 0, "setxattr: {}", std::io::Error::last_os_error());
}

/// Runs it; the report and the exit code.
#[track_caller]
fn verify(lab: &Lab, args: &[&str]) -> (Value, i32) {
    let all: Vec<&str> = ["verify", "lab", "--json"].iter().chain(args).copied().collect();
    let out = lab.at("primary", &all);
    let report = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| {
        panic!("verify {args:?}: {e}: {}\n{}", String::from_utf8_lossy(&out.stderr), lab.log_tails())
    });
    (report, out.status.code().unwrap_or(-1))
}

fn pair<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["pairs"].as_array().unwrap().iter().find(|p| p["pair"] == name).unwrap()
}

/// The paths that differ, sorted.
fn paths(report: &Value, name: &str) -> Vec<String> {
    let list = pair(report, name)["differences"].as_array().unwrap();
    let mut paths: Vec<String> = list.iter().map(|d| d["path"].as_str().unwrap().to_owned()).collect();
    paths.sort();
    paths
}

/// Changes one byte and gives the file its old time again, as a failing disk would.
fn flip(path: &Path, at: u64) {
    let times = fs::metadata(path).unwrap().modified().unwrap();
    let f = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut b = [0];
    f.read_exact_at(&mut b, at).unwrap();
    f.write_all_at(&[b[0] ^ 1], at).unwrap();
    f.set_modified(times).unwrap();
}

#[test]
fn equal_replicas_are_equal_and_nothing_is_written() {
    let lab = Lab::up(&["--sites", "2"]);
    fill(&lab);
    let state = || {
        let position = lab.status("primary")["groups"][0]["position"].clone();
        (tree_digest(&lab.tree("sync")), tree_digest(&lab.tree("primary")), position.to_string())
    };
    let before = state();
    let (report, code) = verify(&lab, &[]);
    assert_eq!(code, 0, "{report:#}");
    for p in report["pairs"].as_array().unwrap() {
        assert!(p["files"].as_u64().unwrap() >= 65 && p["bytes"].as_u64().unwrap() > 7 << 20, "{report:#}");
        assert!(p["differences"].as_array().unwrap().is_empty() && p["changing_count"] == 0, "{report:#}");
    }
    assert_eq!(before, state());
    let words = lab.at("primary", &["verify", "lab"]);
    assert!(words.status.success() && !words.stdout.is_empty());
    lab.down();
}

#[test]
fn what_was_changed_behind_kagamis_back_is_named_and_repaired() {
    let lab = Lab::up(&["--sites", "2"]);
    fill(&lab);
    let tree = lab.tree("sync");
    flip(&tree.join("large"), 5 << 20);
    flip(&tree.join("c/file7"), 100);
    fs::set_permissions(tree.join("a/file1"), fs::Permissions::from_mode(0o604)).unwrap();
    set_xattr(&tree.join("a/file2"), "user.colour", b"blue");
    let all = ["a/file1", "a/file2", "c/file7", "large"];
    let damaged = tree_digest(&tree);
    for _ in 0..2 {
        let (report, code) = verify(&lab, &[]);
        assert_eq!((paths(&report, "sync"), code), (all.map(str::to_owned).to_vec(), 5), "{report:#}");
        // A comparison alone writes nothing, however much it finds.
        assert_eq!(damaged, tree_digest(&tree));
    }
    let (report, code) = verify(&lab, &["--repair"]);
    assert_eq!(code, 0, "{report:#}");
    assert_eq!((paths(&report, "sync").len(), &pair(&report, "sync")["repaired"]), (4, &Value::Bool(true)));
    lab.wait(60);
    lab.assert_trees_equal();
    assert_eq!(verify(&lab, &[]).1, 0);
    lab.down();
}

#[test]
fn names_that_are_missing_or_too_many_are_repaired() {
    let lab = Lab::up(&["--sites", "2"]);
    fill(&lab);
    let tree = lab.tree("sync");
    fs::remove_file(tree.join("c/file5")).unwrap();
    fs::write(tree.join("a/extra"), b"not of kagami").unwrap();
    fs::remove_file(tree.join("c/linked")).unwrap();
    fs::copy(tree.join("a/file3"), tree.join("c/linked")).unwrap();
    let (report, code) = verify(&lab, &["sync"]);
    assert_eq!(code, 5);
    let found = paths(&report, "sync");
    for p in ["c/file5", "a/extra", "c/linked"] {
        assert!(found.iter().any(|f| f == p), "{p} in {report:#}");
    }
    let (report, code) = verify(&lab, &["sync", "--repair"]);
    assert_eq!(code, 0, "{report:#}");
    lab.wait(60);
    lab.assert_trees_equal();
    assert_eq!(fs::metadata(tree.join("c/linked")).unwrap().nlink(), 2);
    lab.down();
}

#[test]
fn directories_that_differ_are_repaired_by_copying_everything() {
    let lab = Lab::up(&["--sites", "2"]);
    fill(&lab);
    let tree = lab.tree("sync");
    fs::remove_dir_all(tree.join("a/b")).unwrap();
    fs::create_dir_all(tree.join("foreign/below")).unwrap();
    fs::write(tree.join("foreign/below/file"), b"x").unwrap();
    flip(&tree.join("large"), 77);
    let (report, code) = verify(&lab, &["sync"]);
    assert_eq!(code, 5);
    let found = paths(&report, "sync");
    for p in ["a/b", "foreign", "large"] {
        assert!(found.iter().any(|f| f == p), "{p} in {report:#}");
    }
    let (report, code) = verify(&lab, &["sync", "--repair"]);
    assert_eq!(code, 0, "{report:#}");
    lab.wait(60);
    lab.assert_trees_equal();
    lab.down();
}

/// Ends the writer, also by a panic.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_writer_is_not_mistaken_for_a_difference() {
    let lab = Lab::up(&["--sites", "2"]);
    fill(&lab);
    let stop = AtomicBool::new(false);
    let (mnt, ops) = (lab.mnt(), std::sync::atomic::AtomicU64::new(0));
    std::thread::scope(|s| {
        s.spawn(|| {
            let mut rng = Rng::new(3);
            let mut n = 0u64;
            while !stop.load(Ordering::SeqCst) {
                let f = mnt.join("a").join(format!("file{}", rng.below(20)));
                match rng.below(6) {
                    0 => drop(fs::rename(&f, mnt.join("c").join(format!("moved{}", rng.below(9))))),
                    1 => drop(fs::write(&f, rng.bytes(5000))),
                    2 => drop(fs::remove_file(mnt.join("c").join(format!("moved{}", rng.below(9))))),
                    3 => drop(fs::hard_link(&f, mnt.join("a").join(format!("link{}", rng.below(5))))),
                    4 => drop(fs::remove_file(mnt.join("a").join(format!("link{}", rng.below(5))))),
                    _ => {
                        let f = fs::File::options().write(true).open(mnt.join("large")).unwrap();
                        f.write_all_at(&rng.bytes(4096), rng.below(1500) * 4096).unwrap();
                    }
                }
                n += 1;
                ops.store(n, Ordering::SeqCst);
                if n.is_multiple_of(50) {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        });
        let _stop = Stop(&stop);
        for round in 0..support::env_number("KAGAMI_VERIFY_ROUNDS", 5) {
            let before = ops.load(Ordering::SeqCst);
            let (report, code) = verify(&lab, &[]);
            assert_eq!(code, 0, "round {round}: {report:#}");
            assert!(ops.load(Ordering::SeqCst) > before, "nobody wrote during the comparison: {report:#}");
        }
        // What really differs is found and repaired among all that changes.
        flip(&lab.tree("sync").join("c/file9"), 10);
        let (report, code) = verify(&lab, &[]);
        assert_eq!((paths(&report, "sync"), code), (vec!["c/file9".to_owned()], 5), "{report:#}");
        let (report, code) = verify(&lab, &["--repair"]);
        assert_eq!((code, &pair(&report, "sync")["repaired"]), (0, &Value::Bool(true)), "{report:#}");
    });
    lab.wait(60);
    lab.assert_trees_equal();
    assert_eq!(verify(&lab, &[]).1, 0);
    lab.down();
}

#[test]
fn with_two_secondaries_the_odd_one_is_named() {
    let lab = Lab::up(&["--sites", "3"]);
    fill(&lab);
    flip(&lab.tree("sync").join("a/file9"), 10);
    flip(&lab.tree("primary").join("c/file9"), 10);
    let (report, code) = verify(&lab, &[]);
    assert_eq!(code, 5, "{report:#}");
    let odd = |path: &str| {
        let list = report["odd_one_out"].as_array().unwrap();
        list.iter().find(|d| d["path"] == path).map(|d| d["what"].as_str().unwrap().to_owned()).unwrap_or_default()
    };
    assert!(odd("a/file9").starts_with("site sync"), "{report:#}");
    assert!(odd("c/file9").contains("the primary"), "{report:#}");
    let (_, code) = verify(&lab, &["--repair"]);
    assert_eq!(code, 0);
    lab.wait(60);
    assert_same(&lab.tree("primary"), &lab.tree("async"));
    lab.down();
}

#[test]
fn a_pair_that_is_not_in_pair_is_refused() {
    let lab = Lab::up(&["--sites", "2"]);
    lab.cut("sync");
    lab.wait_pair("primary", "sync", "PSUE", Duration::from_secs(30));
    let out = lab.at("primary", &["verify", "lab", "sync"]);
    assert_eq!(out.status.code(), Some(4), "{}", String::from_utf8_lossy(&out.stderr));
    lab.join("sync");
    lab.down();
}

/// `kagami why`: every site is asked of the file itself; a peer that lacks it, or has other bytes, is named (MS-19, G7).
#[test]
fn why_tells_where_a_file_stands_at_each_site() {
    let lab = Lab::up(&[]);
    let file = lab.mnt().join("dir/report");
    fs::create_dir(lab.mnt().join("dir")).unwrap();
    fs::write(&file, b"as it should be").unwrap();
    lab.wait(60);
    let why = || -> Value {
        let out = lab.at("primary", &["why", file.to_str().unwrap(), "--json"]);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).unwrap()
    };
    let at = |v: &Value, site: &str| -> String {
        let all = v["sites"].as_array().unwrap();
        all.iter().find(|s| s["site"] == site).unwrap()["verdict"].as_str().unwrap().to_owned()
    };
    let told = why();
    assert_eq!(told["file"], "dir/report");
    assert_eq!(at(&told, "sync"), "the same as here");
    assert_eq!(at(&told, "async"), "the same as here");
    flip(&lab.tree("async").join("dir/report"), 3);
    let told = why();
    assert_eq!(at(&told, "sync"), "the same as here");
    let odd = at(&told, "async");
    assert!(odd.starts_with("differs in content; nothing is on its way"), "{odd}");
    flip(&lab.tree("async").join("dir/report"), 3);
    // A site that is away is not asked, and what it will need is told.
    lab.cut("async");
    lab.wait_pair("primary", "async", "PSUE", Duration::from_secs(20));
    fs::write(&file, b"changed while one is away").unwrap();
    let told = why();
    assert!(at(&told, "async").starts_with("not known: the pair is in PSUE"), "{told}");
    assert!(told["changes_not_yet_everywhere"].to_string().contains("content dir/report"), "{told}");
    lab.join("async");
    lab.wait(60);
    assert_eq!(at(&why(), "async"), "the same as here");
    let out = lab.at("primary", &["why", lab.mnt().join("dir/none").to_str().unwrap()]);
    assert!(!out.status.success() && String::from_utf8_lossy(&out.stderr).contains("dir/none"), "{out:?}");
    lab.down();
}
