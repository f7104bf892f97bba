//! C2, MS-6, MS-7: figure 9 on real nodes. What the sync site cannot take is refused on all volumes of the group; what was
//! under way is put back everywhere before it is refused; the async site never gets it; what is in doubt is listed until
//! the sites are equal again.

use crate::support;

use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use support::lab::Lab;
use support::net::Net;
use support::posix::data::Map;
use support::proc::{run, text, wait_until};

const SOON: Duration = Duration::from_secs(30);
const BLOCK: usize = 4096;
const BLOCKS: usize = 64;

/// What a writer does again and again, each in a file (or directory) of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Overwrite,
    Synchronous,
    Append,
    Cut,
    Mapped,
    Names,
}

const KINDS: [Kind; 6] = [Kind::Overwrite, Kind::Synchronous, Kind::Append, Kind::Cut, Kind::Mapped, Kind::Names];

/// What a writer was answered.
struct Said {
    kind: Kind,
    /// Below the mount.
    rel: PathBuf,
    /// Content that was answered.
    content: Vec<u8>,
    /// The same with the one operation that was not answered with success.
    also: Vec<u8>,
    names: BTreeSet<String>,
    done: u64,
    errno: i32,
    map: Option<Map>,
}

fn stamp(n: u64) -> Vec<u8> {
    n.to_le_bytes().repeat(BLOCK / 8)
}

/// Writes until something fails, or it is told to stop.
fn write(kind: Kind, mnt: &Path, stop: &AtomicBool) -> Said {
    let rel = PathBuf::from(format!("{kind:?}"));
    let path = mnt.join(&rel);
    let mut o = fs::OpenOptions::new();
    o.read(true).write(true);
    match kind {
        Kind::Synchronous => drop(o.custom_flags(libc::O_SYNC)),
        Kind::Append => drop(o.append(true)),
        _ => {}
    }
    let file = (kind != Kind::Names).then(|| o.open(&path).unwrap());
    let map = file.as_ref().filter(|_| kind == Kind::Mapped).map(|f| Map::new(f.as_raw_fd(), BLOCK * BLOCKS));
    let content = if file.is_some() { fs::read(&path).unwrap() } else { Vec::new() };
    let (also, names) = (content.clone(), BTreeSet::new());
    let mut s = Said { kind, rel, content, also, names, done: 0, errno: 0, map };
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        n += 1;
        let at = (n as usize * 37) % BLOCKS * BLOCK;
        s.also = s.content.clone();
        let f = file.as_ref();
        let r = match kind {
            Kind::Overwrite | Kind::Synchronous => {
                s.also[at..at + BLOCK].copy_from_slice(&stamp(n));
                f.unwrap().write_all_at(&stamp(n), at as u64)
            }
            Kind::Append => {
                let line = format!("line {n:<94}\n");
                s.also.extend(line.as_bytes());
                // The kernel may make two requests of a line that ends in the next page: the first may be answered.
                let mut rest = line.as_bytes();
                loop {
                    match f.unwrap().write(rest) {
                        Ok(len) => {
                            s.content.extend(&rest[..len]);
                            rest = &rest[len..];
                        }
                        Err(e) => break Err(e),
                    }
                    if rest.is_empty() {
                        break Ok(());
                    }
                }
            }
            Kind::Cut => {
                let size = (n as usize * 7919) % (BLOCK * BLOCKS);
                s.also.resize(size, 0);
                f.unwrap().set_len(size as u64)
            }
            Kind::Mapped => {
                let m = s.map.as_ref().unwrap();
                s.also[at] = n as u8;
                m.set(at, n as u8);
                m.try_sync()
            }
            Kind::Names => {
                let (name, odd) = (format!("n{}", n / 2), n % 2 == 1);
                if odd {
                    let r = fs::create_dir(path.join(format!("r{}", n / 2)));
                    if r.is_ok() {
                        s.names.insert(format!("r{}", n / 2));
                    }
                    r
                } else {
                    let from = format!("r{}", n / 2 - 1);
                    let r = fs::rename(path.join(&from), path.join(&name));
                    if r.is_ok() {
                        s.names.remove(&from);
                        s.names.insert(name);
                    }
                    r
                }
            }
        };
        if let Err(e) = r {
            s.errno = e.raw_os_error().unwrap_or(-1);
            return s;
        }
        s.content.clone_from(&s.also);
        s.done += 1;
    }
    s
}

/// A lab over TCP in a network of its own.
struct Bed {
    lab: Lab,
    net: Net,
    volumes: u8,
}

impl Bed {
    fn up(test: &str, volumes: u8, more: &[&str]) -> Option<Bed> {
        let net = Net::up(test)?;
        let mut lab = Lab::prepare(false);
        lab.within(&net);
        let count = volumes.to_string();
        let mut args = vec!["--tcp", "--volumes", &count];
        args.extend(more);
        lab.ok("up", &args);
        Some(Bed { lab, net, volumes })
    }

    fn mnt(&self, v: u8) -> PathBuf {
        self.lab.dir().join(if v == 0 { "mnt".into() } else { format!("mnt{v}") })
    }

    fn tree(&self, site: &str, v: u8, leg: &str) -> PathBuf {
        let n = if v == 0 { String::new() } else { v.to_string() };
        self.lab.site_dir(site).join(format!("region{n}{leg}/tree"))
    }

    /// The files that are written to.
    fn fill(&self) {
        for v in 0..self.volumes {
            for k in KINDS {
                let at = self.mnt(v).join(format!("{k:?}"));
                match k {
                    Kind::Names => fs::create_dir(at).unwrap(),
                    _ => fs::write(at, vec![b'o'; BLOCK * BLOCKS]).unwrap(),
                }
            }
        }
        self.lab.wait(60);
    }

    /// Everything is written to at once.
    fn load(&self, stop: &Arc<AtomicBool>) -> Vec<(u8, JoinHandle<Said>)> {
        let all = (0..self.volumes).flat_map(|v| KINDS.map(|k| (v, k)));
        all.map(|(v, k)| {
            let (mnt, stop) = (self.mnt(v), stop.clone());
            (v, std::thread::spawn(move || write(k, &mnt, &stop)))
        })
        .collect()
    }

    /// What a tree holds is what was answered; where `loosely`, also with the one operation that was not.
    fn holds(&self, root: &Path, s: &Said, loosely: bool) -> Result<(), String> {
        let at = root.join(&s.rel);
        if s.kind == Kind::Names {
            let names = fs::read_dir(&at).map_err(|e| format!("{}: {e}", at.display()))?;
            let now: BTreeSet<String> = names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            let more = now.symmetric_difference(&s.names).count();
            return if more == 0 || (loosely && more <= 2) {
                Ok(())
            } else {
                Err(format!("{}: {now:?}", at.display()))
            };
        }
        let f = fs::File::open(&at).map_err(|e| format!("{}: {e}", at.display()))?;
        kagami::os::sys::forget_pages(&f, 0, 0);
        let now = fs::read(&at).map_err(|e| format!("{}: {e}", at.display()))?;
        // Of O_SYNC and msync the kernel makes a write and an fsync: the first may have been answered.
        let two = matches!(s.kind, Kind::Synchronous | Kind::Mapped);
        if now == s.content || ((loosely || two) && now == s.also) {
            return Ok(());
        }
        let first = now.iter().zip(&s.content).position(|(a, b)| a != b);
        Err(format!("{}: {} bytes, not {}; first other at {first:?}", at.display(), now.len(), s.content.len()))
    }

    /// Waits until that is so.
    #[track_caller]
    fn will_hold(&self, root: &Path, s: &Said, loosely: bool) {
        let mut last = Ok(());
        let held = wait_until(SOON, || {
            last = self.holds(root, s, loosely);
            last.is_ok()
        });
        assert!(held, "{last:?} after {} of {:?}\n{}", s.done, s.kind, self.lab.log_tails());
    }

    fn group(&self, site: &str) -> Value {
        self.lab.status(site)["groups"][0].clone()
    }

    fn events(&self, site: &str, words: &str) -> bool {
        let out = self.lab.at(site, &["events", "--json"]);
        text(&out.stdout).lines().any(|l| l.contains("\"in-doubt\"") && l.contains(words))
    }

    /// All replicas are equal, the legs as well.
    #[track_caller]
    fn all_equal(&self) {
        self.lab.wait(90);
        for v in 0..self.volumes {
            let first = self.tree("primary", v, "");
            for (site, leg) in [("primary", "-b"), ("sync", ""), ("async", "")] {
                let other = self.tree(site, v, leg);
                if other.exists() {
                    support::assert_same(&first, &other);
                }
            }
        }
    }

    /// Every sort of mutation is refused on every volume, and nothing of it is in any leg or at the async site.
    #[track_caller]
    fn refuses_everything(&self) {
        let trees: Vec<PathBuf> = (0..self.volumes)
            .flat_map(|v| [("primary", ""), ("primary", "-b"), ("async", "")].map(|(s, l)| self.tree(s, v, l)))
            .filter(|t| t.exists())
            .collect();
        let digests = || trees.iter().map(|t| support::tree_digest(t).unwrap()).collect::<Vec<_>>();
        let before = digests();
        for v in 0..self.volumes {
            let p = |n: &str| self.mnt(v).join(n);
            let f = fs::OpenOptions::new().read(true).write(true).open(p("Overwrite")).unwrap();
            let eio = |what: &str, r: std::io::Result<()>| {
                assert_eq!(r.err().and_then(|e| e.raw_os_error()), Some(libc::EIO), "{what} on volume {v}");
            };
            eio("write", f.write_all_at(b"new", 5));
            eio("append", fs::OpenOptions::new().append(true).open(p("Append")).and_then(|mut f| f.write_all(b"x")));
            eio("truncate", f.set_len(3));
            eio("open with O_TRUNC", fs::File::create(p("Cut")).map(drop));
            eio("create", fs::File::create_new(p("fresh")).map(drop));
            eio("mkdir", fs::create_dir(p("fresh")));
            eio("symlink", std::os::unix::fs::symlink("x", p("fresh")));
            eio("link", fs::hard_link(p("Cut"), p("fresh")));
            eio("rename", fs::rename(p("Cut"), p("fresh")));
            eio("unlink", fs::remove_file(p("Cut")));
            eio("rmdir", fs::remove_dir(p("Names")));
            eio("chmod", fs::set_permissions(p("Cut"), fs::Permissions::from_mode(0o600)));
            eio("setxattr", support::sys::set_xattr(&p("Cut"), "user.x", b"1"));
            eio("fallocate", kagami::os::sys::fallocate(&f, 3, 0, 8192));
        }
        assert_eq!(digests(), before, "a refused write left something in {trees:?}");
    }
}

/// What was written at the async site at any time, for one file of stamps.
fn watch_stamps(file: PathBuf, stop: Arc<AtomicBool>) -> JoinHandle<BTreeSet<u64>> {
    std::thread::spawn(move || {
        let mut seen = BTreeSet::new();
        while !stop.load(Ordering::Relaxed) {
            let data = fs::read(&file).unwrap_or_default();
            seen.extend(data.chunks_exact(BLOCK).map(|b| u64::from_le_bytes(b[..8].try_into().unwrap())));
            std::thread::sleep(Duration::from_millis(10));
        }
        seen
    })
}

#[track_caller]
fn join(load: Vec<(u8, JoinHandle<Said>)>) -> Vec<(u8, Said)> {
    let until = Instant::now() + Duration::from_secs(90);
    while load.iter().any(|(_, t)| !t.is_finished()) {
        assert!(Instant::now() < until, "a writer is not answered");
        std::thread::sleep(Duration::from_millis(20));
    }
    load.into_iter().map(|(v, t)| (v, t.join().unwrap())).collect()
}

/// The acknowledgements of the sync site are lost while everything is being written to.
fn met_midway(test: &str, volumes: u8) {
    let Some(bed) = Bed::up(test, volumes, &["--legs", "2", "--fence", "data"]) else { return };
    bed.fill();
    let (stop, seen_enough) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let seen = watch_stamps(bed.tree("async", 0, "").join("Overwrite"), seen_enough.clone());
    let load = bed.load(&stop);
    std::thread::sleep(Duration::from_millis(1500));
    bed.net.mute(&bed.lab, "sync");
    let cut = Instant::now();
    let mut said = join(load);
    println!("all {} writers were answered {:?} after the cut", said.len(), cut.elapsed());
    for (v, s) in &said {
        println!("volume {v} {:?}: {} answered, then errno {}", s.kind, s.done, s.errno);
        assert!(s.errno == libc::EIO && s.done > 0, "{:?}: {}", s.kind, s.errno);
        bed.will_hold(&bed.mnt(*v), s, false);
        if let Some(m) = &s.map {
            let now = fs::read(bed.tree("primary", *v, "").join(&s.rel)).unwrap();
            let same = || (0..now.len()).step_by(BLOCK).all(|at| m.get(at) == now[at]);
            assert!(wait_until(SOON, same), "the mapping shows what was refused");
        }
        for (site, leg) in [("primary", ""), ("primary", "-b"), ("async", "")] {
            bed.will_hold(&bed.tree(site, *v, leg), s, false);
        }
    }
    for v in 0..volumes {
        support::assert_same(&bed.tree("primary", v, ""), &bed.tree("primary", v, "-b"));
        support::assert_same(&bed.tree("primary", v, ""), &bed.tree("async", v, ""));
    }
    bed.refuses_everything();
    let g = bed.group("primary");
    let (refused, doubts) = (g["in_doubt"]["refused"].as_u64(), g["in_doubt"]["entries"].as_array().unwrap().len());
    println!("{refused:?} refused, {doubts} entries in doubt");
    assert!(refused >= Some(volumes as u64) && doubts > 0, "{g:#}");
    assert!(g["in_doubt"]["entries"].as_array().unwrap().iter().all(|e| e["undone"] == true), "{g:#}");
    let why = g["refuses_writes"].as_str().unwrap();
    assert!(why.contains("kagami pair split lab sync"), "{why}");
    let shown = text(&bed.lab.at("primary", &["status"]).stdout);
    assert!(shown.contains("in doubt: the fence refused") && shown.contains("undone here"), "{shown}");
    assert!(bed.events("primary", "noted"));
    // Also after the node was killed, and nothing new is taken then either.
    said.iter_mut().for_each(|(_, s)| s.map = None);
    bed.lab.kill("primary");
    bed.lab.start("primary");
    assert!(wait_until(SOON, || (0..volumes).all(|v| bed.mnt(v).join("Overwrite").exists())));
    assert_eq!(bed.group("primary")["in_doubt"]["refused"].as_u64(), refused);
    bed.refuses_everything();
    // Healed: the version of the primary is everybody's.
    bed.net.heal();
    bed.all_equal();
    assert!(wait_until(SOON, || bed.group("primary")["in_doubt"].is_null()), "{:#}", bed.group("primary"));
    assert!(bed.events("primary", "the version of site primary"));
    for (v, s) in &said {
        bed.will_hold(&bed.tree("sync", *v, ""), s, false);
        fs::write(bed.mnt(*v).join("after"), "after").unwrap();
    }
    seen_enough.store(true, Ordering::Relaxed);
    let (seen, s) = (seen.join().unwrap(), &said[0].1);
    assert!(!seen.contains(&(s.done + 1)), "the async site had a write that was refused");
    assert!(seen.contains(&s.done), "the async site was looked at");
    drop(said);
    bed.all_equal();
    bed.lab.down();
}

#[test]
fn c2_ms6_met_midway_everything_is_put_back() {
    met_midway("c2_ms6_met_midway_everything_is_put_back", 1);
}

#[test]
fn c2_ms7_met_midway_all_volumes_are_put_back() {
    met_midway("c2_ms7_met_midway_all_volumes_are_put_back", 2);
}

/// The sync site is away: no leg is touched, on no volume; the operator's word opens the fence, and heal closes it.
#[test]
fn c2_ms6_ms7_prohibited_before_the_write() {
    let Some(bed) = Bed::up("c2_ms6_ms7_prohibited_before_the_write", 2, &["--legs", "2", "--fence", "data"]) else {
        return;
    };
    bed.fill();
    bed.lab.kill("sync");
    bed.lab.wait_pair("primary", "sync", "PSUE", SOON);
    bed.refuses_everything();
    assert!(bed.group("primary")["in_doubt"].is_null(), "nothing was under way");
    let out = bed.lab.at("primary", &["pair", "split", "lab", "sync"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    for v in 0..2 {
        fs::write(bed.mnt(v).join("alone"), "alone").unwrap();
    }
    bed.lab.start("sync");
    let out = bed.lab.at("primary", &["pair", "resync", "lab", "sync"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    bed.all_equal();
    bed.lab.cut("sync");
    bed.lab.wait_pair("primary", "sync", "PSUE", SOON);
    bed.refuses_everything();
    bed.lab.join("sync");
    bed.all_equal();
    bed.lab.down();
}

/// A small filesystem, unmounted at the end.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, mib: u32) -> Small {
        fs::create_dir_all(at).unwrap();
        let o = format!("size={mib}m,mode=755");
        let mut c = Command::new("mount");
        let out = run(c.args(["-t", "tmpfs", "-o", &o, "kagami-test"]).arg(at), SOON);
        assert!(out.status.success(), "{}", text(&out.stderr));
        Small(at.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Any other fault of a leg marks that leg, and the volume goes on: also that of the leg in use, with the fence.
#[test]
fn c2_ms6_another_fault_marks_the_leg_and_goes_on() {
    if !support::is_root() {
        return support::skipped("c2_ms6_another_fault_marks_the_leg_and_goes_on", "a small filesystem needs root");
    }
    for full in ["region-b", "region"] {
        let lab = Lab::prepare(false);
        let at = lab.site_dir("primary").join(full);
        let small = Small::mount(&at, 48);
        lab.ok("up", &["--sites", "2", "--legs", "2", "--fence", "data"]);
        lab.wait(60);
        let plug = at.join("plug");
        let _ = fs::write(&plug, vec![1u8; 64 << 20]);
        for i in 0..40 {
            fs::write(lab.mnt().join(format!("f{i}")), vec![i as u8; 100_000]).unwrap();
        }
        let lost = if full == "region" { 0 } else { 1 };
        let legs = lab.status("primary")["groups"][0]["legs"].clone();
        assert_eq!((&legs[lost]["state"], &legs[1 - lost]["state"]), (&"faulty".into(), &"synchronised".into()));
        fs::remove_file(&plug).unwrap();
        let back = || lab.status("primary")["groups"][0]["legs"][lost]["state"] == "synchronised";
        assert!(wait_until(SOON, back), "{}", lab.log_tails());
        lab.wait(60);
        let site = lab.site_dir("primary");
        support::assert_same_soon(&site.join("region/tree"), &site.join("region-b/tree"));
        lab.assert_trees_equal();
        lab.ok("down", &[]);
        drop(small);
        lab.down();
    }
}

/// Without the fence the writes go on, and nothing is refused or in doubt.
#[test]
fn c2_ms6_without_the_fence_writes_go_on() {
    let Some(bed) = Bed::up("c2_ms6_without_the_fence_writes_go_on", 1, &["--legs", "2", "--write-through"]) else {
        return;
    };
    bed.fill();
    let stop = Arc::new(AtomicBool::new(false));
    let load = bed.load(&stop);
    std::thread::sleep(Duration::from_millis(1000));
    bed.net.mute(&bed.lab, "sync");
    bed.lab.wait_pair("primary", "sync", "PSUE", SOON);
    std::thread::sleep(Duration::from_millis(1000));
    stop.store(true, Ordering::Relaxed);
    let said = join(load);
    assert!(said.iter().all(|(_, s)| s.errno == 0 && s.done > 0));
    assert!(bed.group("primary")["in_doubt"].is_null() && bed.group("primary")["refuses_writes"].is_null());
    bed.net.heal();
    drop(said);
    bed.all_equal();
    bed.lab.down();
}

/// The disk of the sync site is full: it refuses the entry, and what is refused is put back.
#[test]
fn c2_ms6_a_full_sync_site_refuses() {
    const TEST: &str = "c2_ms6_a_full_sync_site_refuses";
    let Some(net) = Net::up(TEST) else { return };
    let mut lab = Lab::prepare(false);
    lab.within(&net);
    let at = lab.site_dir("sync").join("region");
    let small = Small::mount(&at, 48);
    lab.ok("up", &["--tcp", "--fence", "data"]);
    let bed = Bed { lab, net, volumes: 1 };
    bed.fill();
    let plug = at.join("plug");
    let _ = fs::write(&plug, vec![1u8; 64 << 20]);
    let file = bed.mnt(0).join("Overwrite");
    let f = fs::OpenOptions::new().write(true).open(bed.mnt(0).join("Cut")).unwrap();
    let mut done = 0;
    // Each is one request of the kernel's.
    let refused = (0..1000u64).find_map(|i| match f.write_all_at(&[i as u8; 1 << 16], i << 16) {
        Ok(()) => {
            done = i + 1;
            None
        }
        Err(e) => e.raw_os_error(),
    });
    drop(f);
    assert_eq!(refused, Some(libc::EIO));
    println!("{done} writes were taken");
    let size = |p: PathBuf| fs::metadata(p).unwrap().len();
    let want = (done << 16).max((BLOCK * BLOCKS) as u64);
    assert!(wait_until(SOON, || size(bed.mnt(0).join("Cut")) == want), "{}", size(bed.mnt(0).join("Cut")));
    assert_eq!(size(bed.tree("primary", 0, "").join("Cut")), want);
    assert_eq!(fs::write(&file, "x").unwrap_err().raw_os_error(), Some(libc::EIO));
    assert!(wait_until(SOON, || size(bed.tree("async", 0, "").join("Cut")) == want));
    fs::remove_file(&plug).unwrap();
    bed.all_equal();
    fs::write(&file, "x").unwrap();
    bed.all_equal();
    bed.lab.ok("down", &[]);
    drop(small);
    bed.lab.down();
}

/// What cannot be undone stays, is listed as such, and becomes so everywhere: a removal, and a cut of more than is kept.
#[test]
fn c2_ms6_what_cannot_be_undone_is_listed() {
    let Some(bed) = Bed::up("c2_ms6_what_cannot_be_undone_is_listed", 1, &["--fence", "data"]) else { return };
    // The kernel does one thing at a time in a directory.
    let at = |n: &str| bed.mnt(0).join(n);
    ["a", "b", "c"].iter().for_each(|d| fs::create_dir(at(d)).unwrap());
    let (big, gone, over) = (at("big"), at("a/gone"), at("b/over"));
    let f = fs::File::create(&big).unwrap();
    (0..66).for_each(|i| f.write_all_at(&vec![i as u8; 1 << 20], i << 20).unwrap());
    drop(f);
    fs::write(&gone, "gone").unwrap();
    fs::write(&over, "over").unwrap();
    fs::write(at("b/from"), "from").unwrap();
    bed.lab.wait(60);
    bed.net.mute(&bed.lab, "sync");
    let open = || fs::OpenOptions::new().write(true).open(&big).unwrap();
    let refused: Vec<_> = std::thread::scope(|s| {
        let all = [
            s.spawn(|| open().set_len(5)),
            s.spawn(|| fs::remove_file(&gone)),
            s.spawn(|| fs::rename(at("b/from"), &over)),
            s.spawn(|| fs::create_dir(at("c/made"))),
        ];
        all.map(|t| t.join().unwrap().err().and_then(|e| e.raw_os_error())).into()
    });
    assert_eq!(refused, [Some(libc::EIO); 4]);
    let g = bed.group("primary");
    let entries = g["in_doubt"]["entries"].as_array().unwrap();
    let list: BTreeSet<(&str, bool)> =
        entries.iter().map(|e| (e["path"].as_str().unwrap(), e["undone"].as_bool().unwrap())).collect();
    assert_eq!(list, [("a/gone", false), ("b/over", false), ("big", false), ("c/made", true)].into(), "{g:#}");
    assert!(wait_until(SOON, || !gone.exists() && fs::metadata(&big).unwrap().len() == 5));
    bed.net.heal();
    bed.all_equal();
    assert!(!gone.exists() && !at("c/made").exists() && fs::read(&over).unwrap() == b"from");
    bed.lab.down();
}

/// Taken over at the sync site while entries are in doubt: its version counts, and the old primary comes back equal.
#[test]
fn c2_ms6_taken_over_in_doubt_the_sync_site_wins() {
    let Some(bed) = Bed::up("c2_ms6_taken_over_in_doubt_the_sync_site_wins", 1, &["--fence", "data"]) else { return };
    bed.fill();
    let stop = Arc::new(AtomicBool::new(false));
    let load = bed.load(&stop);
    std::thread::sleep(Duration::from_millis(1000));
    bed.net.mute(&bed.lab, "sync");
    let mut said = join(load);
    assert!(said.iter().all(|(_, s)| s.errno == libc::EIO));
    assert!(bed.group("primary")["in_doubt"]["count"].as_u64() > Some(0));
    said.iter_mut().for_each(|(_, s)| s.map = None);
    bed.lab.kill("primary");
    bed.net.heal();
    bed.lab.takeover("sync", &["--force"]);
    for (_, s) in &said {
        // What was answered is there; what was refused may be.
        bed.will_hold(&bed.tree("sync", 0, ""), s, true);
    }
    fs::write(bed.mnt(0).join("new"), "of the sync site").unwrap();
    bed.lab.start("primary");
    drop(said);
    bed.all_equal();
    assert!(wait_until(SOON, || bed.group("primary")["in_doubt"].is_null()), "{:#}", bed.group("primary"));
    assert!(bed.events("primary", "the version of site sync"));
    bed.lab.down();
}

/// Killed in the middle of the fault: the primary's version counts, what was answered is in it, and all become equal.
#[test]
fn c2_ms6_the_primary_is_killed_in_the_middle_of_the_fault() {
    const TEST: &str = "c2_ms6_the_primary_is_killed_in_the_middle_of_the_fault";
    let Some(bed) = Bed::up(TEST, 2, &["--legs", "2", "--fence", "data"]) else { return };
    bed.fill();
    let stop = Arc::new(AtomicBool::new(false));
    let load = bed.load(&stop);
    std::thread::sleep(Duration::from_millis(1000));
    bed.net.mute(&bed.lab, "sync");
    // As soon as the fault is noticed, whatever is being undone then.
    let log = |words: &str| bed.lab.log("primary").contains(words);
    let noticed = wait_until(SOON, || log("pair sync: PAIR -> PSUE"));
    bed.lab.kill_now("primary");
    assert!(noticed, "{}", bed.lab.log_tails());
    let said = join(load);
    bed.lab.start("primary");
    assert!(wait_until(SOON, || bed.mnt(1).join("Overwrite").exists()));
    for (v, s) in &said {
        bed.will_hold(&bed.mnt(*v), s, true);
    }
    bed.refuses_everything();
    bed.net.heal();
    bed.all_equal();
    for (v, s) in &said {
        bed.will_hold(&bed.tree("sync", *v, ""), s, true);
    }
    assert!(wait_until(SOON, || bed.group("primary")["in_doubt"].is_null()));
    drop(said);
    bed.lab.down();
}
