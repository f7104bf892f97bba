//! A pair without a first copy (MS-11, MS-22): the secondary was filled by other means, both trees are compared, and only if
//! they are equal the pair is made, without sending any content. Where they differ it is refused and nothing is changed.

use crate::support;

use serde_json::Value;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use support::{Lab, Rng, assert_same, proc};

const LONG: Duration = Duration::from_secs(60);
/// Size of a file of which one answer cannot tell everything, bytes.
const HUGE: u64 = 600 << 20;
/// Size of the large file, bytes.
const LARGE: usize = 24 << 20;

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    let name = std::ffi::CString::new(name).unwrap();
    // SAFETY: both are strings, and the value is given with its length.
    let r = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    assert_eq!(r, 0, "setxattr: {}", std::io::Error::last_os_error());
}

/// A tree with everything a comparison looks at.
fn fill(mnt: &Path, large: usize) {
    let mut rng = Rng::new(11);
    for d in ["a", "a/b", "c", "c/empty"] {
        fs::create_dir(mnt.join(d)).unwrap();
    }
    for d in ["a", "a/b", "c"] {
        for i in 0..20 {
            fs::write(mnt.join(d).join(format!("file{i}")), rng.bytes(2000 * i + 1)).unwrap();
        }
    }
    fs::write(mnt.join("large"), rng.bytes(large)).unwrap();
    let sparse = fs::File::create(mnt.join("sparse")).unwrap();
    sparse.write_all_at(b"in the middle", 1 << 20).unwrap();
    sparse.set_len(3 << 20).unwrap();
    fs::write(mnt.join("none"), b"").unwrap();
    fs::hard_link(mnt.join("a/file3"), mnt.join("c/linked")).unwrap();
    symlink("a/file1", mnt.join("symlink")).unwrap();
    set_xattr(&mnt.join("a/file2"), "user.colour", b"red");
    fs::set_permissions(mnt.join("a/file4"), fs::Permissions::from_mode(0o640)).unwrap();
}

/// A lab whose sync site has a copy of the volume, made with `cp -a`, that its node has never seen; the pair does not exist.
struct Seeded {
    lab: Lab,
}

impl Seeded {
    fn new(args: &[&str], large: usize) -> Seeded {
        Seeded::with(args, &|mnt| fill(mnt, large))
    }

    fn with(args: &[&str], fill: &dyn Fn(&Path)) -> Seeded {
        let lab = Lab::up(&[&["--sites", "2"], args].concat());
        fill(&lab.mnt());
        lab.wait(60);
        run(&lab, "primary", &["pair", "delete", "lab", "sync"]);
        lab.kill("sync");
        fs::remove_dir_all(lab.site_dir("sync").join("region")).unwrap();
        run(&lab, "sync", &["region", "create", "lab"]);
        let s = Seeded { lab };
        s.copy();
        s.lab.start("sync");
        s
    }

    /// What was shipped is put into the tree.
    fn copy(&self) {
        let from = format!("{}/.", self.lab.mnt().display());
        support::run_ok(Command::new("cp").arg("-a").arg(from).arg(self.tree()), LONG);
    }

    fn tree(&self) -> PathBuf {
        self.lab.tree("sync")
    }

    fn create(&self, more: &[&str]) -> (i32, String) {
        let out = self.lab.at("primary", &[&["pair", "create", "lab", "sync"], more].concat());
        (out.status.code().unwrap_or(-1), proc::text(&out.stderr))
    }

    #[track_caller]
    fn state(&self, site: &str) -> String {
        self.lab.pair(site, "sync")["state"].as_str().unwrap().to_owned()
    }

    /// Refused with these words; nothing was changed by it, at neither site.
    #[track_caller]
    fn refused(&self, words: &[&str]) {
        let before = (digest(&self.tree()), digest(&self.lab.tree("primary")));
        let (code, text) = self.create(&["--no-copy"]);
        assert_eq!(code, 4, "{words:?}: {text}\n{}", self.lab.log_tails());
        for w in words.iter().chain(&["Nothing was changed", "kagami pair create lab sync"]) {
            assert!(text.contains(w), "{w:?} is not in {text}");
        }
        assert_eq!((digest(&self.tree()), digest(&self.lab.tree("primary"))), before);
        assert_eq!((self.state("primary").as_str(), self.state("sync").as_str()), ("SMPL", "SMPL"));
    }

    /// The pair is in PAIR, and no content was sent for that.
    #[track_caller]
    fn nothing_copied(&self) {
        let p = self.lab.wait_pair("primary", "sync", "PAIR", LONG);
        let n = |k: &str| p["last_resync"][k].as_u64().unwrap_or(u64::MAX);
        let files = untouched(&self.tree()).len() as u64;
        assert_eq!((n("files_examined"), n("files_copied"), n("bytes_copied")), (files, 0, 0), "{p:#}");
    }
}

#[track_caller]
fn run(lab: &Lab, site: &str, args: &[&str]) {
    let out = lab.at(site, args);
    assert!(out.status.success(), "{args:?}: {}\n{}", proc::text(&out.stderr), lab.log_tails());
}

fn digest(tree: &Path) -> String {
    support::tree_digest(tree).unwrap()
}

/// Inode number and time of the last change of every file: who writes to one changes them.
fn untouched(tree: &Path) -> Vec<(PathBuf, u64, i64, i64)> {
    let (mut out, mut todo) = (Vec::new(), vec![tree.to_owned()]);
    while let Some(d) = todo.pop() {
        for e in fs::read_dir(d).unwrap() {
            let e = e.unwrap();
            let m = fs::symlink_metadata(e.path()).unwrap();
            if m.is_dir() {
                todo.push(e.path());
            } else {
                out.push((e.path(), m.ino(), m.ctime(), m.ctime_nsec()));
            }
        }
    }
    out.sort();
    out
}

fn last_way(lab: &Lab) -> String {
    let out = lab.at("primary", &["events", "--json"]);
    let lines = proc::text(&out.stdout);
    let mut all = lines.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok());
    let last = all.rfind(|e| e["kind"] == "copy-begin");
    last.map_or(String::new(), |e| e["to"].as_str().unwrap_or("").to_owned())
}

/// MS-11, MS-22: nothing is sent, and from then on it is a pair like any other: changes go over, an outage is made good by
/// the journal, the secondary can be taken over and the way back copies the difference.
#[test]
fn ms11_equal_trees_become_a_pair_without_a_byte_of_content() {
    let s = Seeded::new(&[], LARGE);
    let before = untouched(&s.tree());
    let (code, text) = s.create(&["--no-copy"]);
    assert_eq!(code, 0, "{text}\n{}", s.lab.log_tails());
    s.nothing_copied();
    assert_eq!(last_way(&s.lab), "no-copy");
    assert_eq!(untouched(&s.tree()), before);
    assert_same(&s.lab.tree("primary"), &s.tree());
    // Every kind of change needs the ids that both sides have in common now.
    let mnt = s.lab.mnt();
    fs::rename(mnt.join("a"), mnt.join("c/moved")).unwrap();
    fs::write(mnt.join("c/moved/b/file1"), "new\n").unwrap();
    fs::File::options().write(true).open(mnt.join("c/linked")).unwrap().write_all_at(b"by another name", 5).unwrap();
    s.lab.wait(60);
    assert_same(&s.lab.tree("primary"), &s.tree());
    // An outage.
    s.lab.kill_now("sync");
    fs::rename(mnt.join("c/moved/b"), mnt.join("b")).unwrap();
    fs::remove_file(mnt.join("c/linked")).unwrap();
    fs::File::options().write(true).open(mnt.join("large")).unwrap().write_all_at(&[1; 5000], 9 << 20).unwrap();
    s.lab.start("sync");
    s.lab.wait(60);
    assert!(["resync", "catch-up"].contains(&last_way(&s.lab).as_str()), "{}", last_way(&s.lab));
    let sent = s.lab.pair("primary", "sync")["last_resync"]["bytes_copied"].as_u64().unwrap();
    assert!(sent < 1 << 20, "{sent} bytes of a file of {LARGE}");
    assert_same(&s.lab.tree("primary"), &s.tree());
    // A takeover there, and the way back.
    s.lab.kill_now("primary");
    s.lab.takeover("sync", &[]);
    fs::write(mnt.join("at-sync"), "x").unwrap();
    s.lab.start("primary");
    s.lab.wait(60);
    assert_eq!(s.lab.pair("sync", "sync")["state"], "PAIR");
    assert_same(&s.lab.tree("primary"), &s.tree());
    s.lab.down();
}

/// Two volumes, one of them different.
#[test]
fn ms11_every_volume_of_the_group_counts() {
    let lab = Lab::up(&["--sites", "2", "--volumes", "2"]);
    let mounts = [lab.mnt(), lab.dir().join("mnt1")];
    for (i, m) in mounts.iter().enumerate() {
        fs::create_dir(m.join("d")).unwrap();
        fs::write(m.join("d/f"), format!("volume {i}")).unwrap();
    }
    lab.wait(60);
    run(&lab, "primary", &["pair", "delete", "lab", "sync"]);
    lab.kill("sync");
    for (dir, m) in ["region", "region1"].iter().zip(&mounts) {
        let region = lab.site_dir("sync").join(dir);
        fs::remove_dir_all(&region).unwrap();
        fs::create_dir(&region).unwrap();
        // The tree may be there before the region is made.
        support::run_ok(Command::new("cp").arg("-a").arg(m).arg(region.join("tree")), LONG);
    }
    run(&lab, "sync", &["region", "create", "lab"]);
    let other = lab.site_dir("sync").join("region1/tree/d/f");
    let stamp = fs::metadata(&other).unwrap().modified().unwrap();
    let put = |text: &str| {
        fs::write(&other, text).unwrap();
        fs::File::options().write(true).open(&other).unwrap().set_modified(stamp).unwrap();
    };
    put("volume X");
    lab.start("sync");
    let out = lab.at("primary", &["pair", "create", "lab", "sync", "--no-copy"]);
    let text = proc::text(&out.stderr);
    assert_eq!(out.status.code(), Some(4), "{text}");
    assert!(text.contains("vol1:d/f (content"), "{text}");
    put("volume 1");
    run(&lab, "primary", &["pair", "create", "lab", "sync", "--no-copy"]);
    for m in &mounts {
        fs::write(m.join("d/more"), "more").unwrap();
    }
    lab.wait(60);
    for dir in ["region", "region1"] {
        let tree = |site: &str| lab.site_dir(site).join(dir).join("tree");
        assert_same(&tree("primary"), &tree("sync"));
    }
    lab.down();
}

/// Whatever differs is found and named, and nothing is changed.
#[test]
fn ms22_what_differs_is_named_and_nothing_is_changed() {
    let s = Seeded::new(&[], LARGE);
    let t = s.tree();
    let stamp = |p: &Path| {
        let m = fs::symlink_metadata(p).unwrap();
        (m.mtime(), m.mtime_nsec())
    };
    let set = |p: &Path, (sec, nsec): (i64, i64)| {
        let p = std::ffi::CString::new(p.as_os_str().as_encoded_bytes()).unwrap();
        let t =
            [libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT }, libc::timespec { tv_sec: sec, tv_nsec: nsec }];
        // SAFETY: a path and two times.
        let r = unsafe { libc::utimensat(libc::AT_FDCWD, p.as_ptr(), t.as_ptr(), libc::AT_SYMLINK_NOFOLLOW) };
        assert_eq!(r, 0);
    };
    // Changes something and puts the times of what it is about, and of its directory, back.
    let change = |name: &str, f: &dyn Fn(&Path)| {
        let p = t.join(name);
        let dir = p.parent().unwrap().to_owned();
        let (of_dir, of) = (stamp(&dir), p.symlink_metadata().is_ok().then(|| stamp(&p)));
        f(&p);
        if let (Some(of), true) = (of, p.symlink_metadata().is_ok()) {
            set(&p, of);
        }
        set(&dir, of_dir);
    };
    let flip = |p: &Path| {
        let f = fs::File::options().read(true).write(true).open(p).unwrap();
        let (mut b, at) = ([0u8; 1], LARGE as u64 - 5_000_001);
        f.read_exact_at(&mut b, at).unwrap();
        f.write_all_at(&[b[0] ^ 1], at).unwrap();
    };
    change("large", &flip);
    s.refused(&["large (content, first near byte"]);
    change("large", &flip);

    let mode = |m: u32| move |p: &Path| fs::set_permissions(p, fs::Permissions::from_mode(m)).unwrap();
    change("a/file4", &mode(0o600));
    s.refused(&["a/file4 (mode 640 here, 600 at sync)"]);
    change("a/file4", &mode(0o640));

    change("a/b", &mode(0o700));
    s.refused(&["a/b (mode 755 here, 700 at sync)"]);
    change("a/b", &mode(0o755));

    change("a/file2", &|p| set_xattr(p, "user.colour", b"blue"));
    s.refused(&["a/file2 (attribute user.colour)"]);
    change("a/file2", &|p| set_xattr(p, "user.colour", b"red"));

    let link = |to: &'static str| {
        move |p: &Path| {
            fs::remove_file(p).unwrap();
            symlink(to, p).unwrap();
        }
    };
    change("symlink", &link("a/file9"));
    s.refused(&["symlink (target of the link)"]);
    change("symlink", &link("a/file1"));

    change("c/extra", &|p| fs::write(p, "x").unwrap());
    s.refused(&["c/extra (only at sync)"]);
    change("c/extra", &|p| fs::remove_file(p).unwrap());

    change("none", &|p| fs::rename(p, t.join("../none")).unwrap());
    s.refused(&["none (missing at sync)"]);
    change("none", &|p| fs::rename(t.join("../none"), p).unwrap());

    let before = stamp(&t.join("c/file5"));
    set(&t.join("c/file5"), (1, 1));
    s.refused(&["c/file5 (mtime)"]);
    set(&t.join("c/file5"), before);

    // Two files where the primary has one with two names.
    change("c/linked", &|p| {
        fs::rename(p, t.join("c/tmp")).unwrap();
        fs::copy(t.join("c/tmp"), p).unwrap();
        fs::remove_file(t.join("c/tmp")).unwrap();
    });
    s.refused(&["a/file3 (", "c/linked ("]);
    change("c/linked", &|p| {
        fs::remove_file(p).unwrap();
        fs::hard_link(t.join("a/file3"), p).unwrap();
    });

    // As it was: equal after all.
    assert_same(&s.lab.tree("primary"), &t);
    let (code, text) = s.create(&["--no-copy"]);
    assert_eq!(code, 0, "{text}\n{}", s.lab.log_tails());
    s.nothing_copied();
    let (code, text) = s.create(&["--no-copy"]);
    assert_eq!(code, 4, "{text}");
    assert!(text.contains("the pair exists"), "{text}");
    s.lab.down();
}

/// `--no-verify` takes the operator's word for the content, and for nothing else. Without `--no-copy` what differs is copied,
/// and only that.
#[test]
fn ms22_without_reading_the_content_and_with_a_copy_of_what_differs() {
    let s = Seeded::with(&[], &|mnt| {
        fill(mnt, LARGE);
        fs::File::create(mnt.join("huge")).unwrap().set_len(HUGE).unwrap();
    });
    // Where the primary has a hole, beyond what one answer tells of a file.
    let huge = s.tree().join("huge");
    let stamp = fs::metadata(&huge).unwrap().modified().unwrap();
    let f = fs::File::options().write(true).open(&huge).unwrap();
    f.write_all_at(b"?", HUGE - 5_000_000).unwrap();
    f.set_modified(stamp).unwrap();
    let large = s.tree().join("large");
    let stamp = fs::metadata(&large).unwrap().modified().unwrap();
    let f = fs::File::options().write(true).open(&large).unwrap();
    f.write_all_at(b"?", 7 << 20).unwrap();
    f.set_modified(stamp).unwrap();
    fs::rename(s.tree().join("none"), s.tree().join("other")).unwrap();
    let (code, text) = s.create(&["--no-copy", "--no-verify"]);
    assert_eq!(code, 4, "{text}");
    assert!(text.contains("none (missing at sync)") && !text.contains("large"), "{text}");
    let names = untouched(&s.tree());
    let kept = |name: &str| names.iter().find(|f| f.0.ends_with(name)).cloned();
    // With a copy: of the tree that was shipped everything that is right stays.
    let (code, text) = s.create(&[]);
    assert_eq!(code, 0, "{text}");
    let p = s.lab.wait_pair("primary", "sync", "PAIR", LONG);
    let sent = p["last_resync"]["bytes_copied"].as_u64().unwrap();
    assert!((1..1 << 20).contains(&sent), "{sent} bytes sent\n{}", s.lab.log_tails());
    assert_same(&s.lab.tree("primary"), &s.tree());
    let now = untouched(&s.tree());
    let inode = |name: &str| now.iter().find(|f| f.0.ends_with(name)).map(|f| f.1);
    for name in ["large", "a/file7", "c/linked"] {
        assert_eq!(inode(name), kept(name).map(|f| f.1), "{name} was made anew");
    }
    // And the word alone, where it is wrong: it is believed, and `verify` finds it.
    run(&s.lab, "primary", &["pair", "delete", "lab", "sync"]);
    s.lab.kill("sync");
    let f = fs::File::options().write(true).open(&large).unwrap();
    f.write_all_at(b"?", 7 << 20).unwrap();
    f.set_modified(stamp).unwrap();
    s.lab.start("sync");
    let (code, text) = s.create(&["--no-copy"]);
    assert_eq!(code, 4, "{text}");
    assert!(text.contains("large (content"), "{text}");
    let (code, text) = s.create(&["--no-copy", "--no-verify"]);
    assert_eq!(code, 0, "{text}\n{}", s.lab.log_tails());
    s.nothing_copied();
    let out = s.lab.at("primary", &["verify", "lab"]);
    assert_eq!(out.status.code(), Some(5), "{}", proc::text(&out.stdout));
    assert!(proc::text(&out.stdout).contains("large"), "{}", proc::text(&out.stdout));
    s.lab.down();
}

/// kill -9 of either node in the middle: the same order works afterwards, and still nothing is sent. Given at the secondary
/// the last time.
#[test]
fn ms22_killed_in_the_middle_the_same_order_works() {
    let s = Seeded::new(&[], 768 << 20);
    let mut met = 0;
    for (i, victim) in ["sync", "primary", "sync", "primary"].iter().enumerate() {
        let (code, text) = std::thread::scope(|t| {
            let order = t.spawn(|| s.create(&["--no-copy"]));
            let end = Instant::now() + LONG;
            let wanted = 1 + (i as u64) * (50 << 20);
            while Instant::now() < end && !order.is_finished() {
                let done = s.lab.try_status("primary").map_or(0, |st| {
                    let p = support::lab::find_pair(&st, "sync").cloned().unwrap_or_default();
                    p["progress"]["done_bytes"].as_u64().unwrap_or(0)
                });
                if done >= wanted {
                    s.lab.kill_now(victim);
                    break;
                }
            }
            order.join().unwrap()
        });
        if s.lab.pid(victim).is_some() {
            break;
        }
        met += 1;
        assert!(code != 0, "{text}");
        s.lab.start(victim);
        assert_eq!(s.state("primary"), "SMPL", "{}", s.lab.log_tails());
        assert_same(&s.lab.tree("primary"), &s.tree());
    }
    assert!(met >= 2, "met in the middle {met} times");
    if s.state("primary") == "SMPL" {
        let out = s.lab.at("sync", &["pair", "create", "lab", "sync", "--no-copy"]);
        assert!(out.status.success(), "{}\n{}", proc::text(&out.stderr), s.lab.log_tails());
    }
    s.nothing_copied();
    fs::write(s.lab.mnt().join("after"), "x").unwrap();
    s.lab.wait(60);
    assert_same(&s.lab.tree("primary"), &s.tree());
    s.lab.down();
}
