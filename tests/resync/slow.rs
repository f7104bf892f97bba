//! A peer behind a slow line: the application does not feel it, memory is bounded, and the pair comes back (A7).

use super::bed::{self, said, settle, until};
use super::support::{self, Lab, Rng, proc};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Of the line, bytes/s.
const RATE: u64 = 1 << 20;
/// Of the application, bytes/s at most.
const WRITER: u64 = 100 << 20;
/// Queue of entries in memory in this test, MiB.
const QUEUE_MIB: u64 = 32;
/// What may wait in memory for the spool, bytes.
const WAITING: u64 = 64 << 20;
/// What a node may take beside its queue, bytes. (The queue's entries and what is under way to the peers add up.)
const NODE_BYTES: u64 = 128 << 20;
/// Written again and again, so that what has to be copied in the end is small.
const FILE: usize = 8 << 20;

/// Passes a socket's bytes on to another one, in the direction of the peer at a rate.
pub struct SlowLine {
    pub slow: Arc<AtomicBool>,
}

impl SlowLine {
    /// `rate`: bytes/s while it is slow.
    pub fn new(at: &Path, to: PathBuf, rate: u64) -> SlowLine {
        let listener = UnixListener::bind(at).unwrap();
        let slow = Arc::new(AtomicBool::new(false));
        let limited = slow.clone();
        std::thread::spawn(move || {
            for from in listener.incoming().map_while(Result::ok) {
                let Ok(peer) = UnixStream::connect(&to) else { continue };
                let (a, b) = (from.try_clone().unwrap(), peer.try_clone().unwrap());
                let limited = limited.clone();
                std::thread::spawn(move || pass(a, peer, Some((&limited, rate))));
                std::thread::spawn(move || pass(b, from, None));
            }
        });
        SlowLine { slow }
    }
}

fn pass(mut from: UnixStream, mut to: UnixStream, limited: Option<(&AtomicBool, u64)>) {
    let mut buf = [0; 16 << 10];
    let mut due = Instant::now();
    while let Ok(n) = from.read(&mut buf) {
        if n == 0 || to.write_all(&buf[..n]).is_err() {
            break;
        }
        if let Some((_, rate)) = limited.filter(|(slow, _)| slow.load(Ordering::Relaxed)) {
            due = due.max(Instant::now()) + Duration::from_nanos(n as u64 * 1_000_000_000 / rate);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
    let _ = (from.shutdown(std::net::Shutdown::Both), to.shutdown(std::net::Shutdown::Both));
}

/// Memory of a process, bytes.
fn resident(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Writes for a while, each round fsynced, at [`WRITER`] at most; the seconds a round took, in the middle.
fn write(mnt: &Path, time: Duration, data: &[u8]) -> f64 {
    let mut took = Vec::new();
    let end = Instant::now() + time;
    while Instant::now() < end {
        let begun = Instant::now();
        let mut f = fs::File::create(mnt.join("file")).unwrap();
        f.write_all(data).unwrap();
        drop(f);
        took.push(begun.elapsed().as_secs_f64());
        let least = Duration::from_secs_f64(data.len() as f64 / WRITER as f64);
        std::thread::sleep(least.saturating_sub(begun.elapsed()));
    }
    took.sort_by(f64::total_cmp);
    took[took.len() / 2]
}

/// Puts a line between the primary and a site of a lab that is not up: fast at first, then at `rate` bytes/s.
pub fn slow_line(lab: &Lab, site: &str, rate: u64) -> SlowLine {
    let path = lab.config("primary");
    let text = fs::read_to_string(&path).unwrap();
    let socket = format!("/{site}.sock");
    let addr = text.split('"').find(|s| s.starts_with("unix:") && s.ends_with(&socket)).unwrap().to_owned();
    let proxy = lab.dir().parent().unwrap().join("slow.sock");
    fs::write(&path, text.replace(&addr, &format!("unix:{}", proxy.display()))).unwrap();
    SlowLine::new(&proxy, PathBuf::from(addr.trim_start_matches("unix:")), rate)
}

/// A lab whose primary reaches the async site over a slow line (fast at first), with these limits in its site file.
fn slow_lab(limits: &str, prepare: impl FnOnce(&Lab)) -> (Lab, SlowLine) {
    let mut line = None;
    let lab = bed::made(&[], |lab| {
        prepare(lab);
        bed::configure(lab, "primary", &format!("[limits]\n{limits}"));
        line = Some(slow_line(lab, "async", RATE));
    });
    lab.ok("up", &[]);
    settle(&lab);
    (lab, line.unwrap())
}

/// A number of what the group has queued at the primary.
fn queued(lab: &Lab, key: &str) -> u64 {
    let status = lab.status("primary");
    status["groups"][0]["queue"][key].as_u64().unwrap_or_else(|| panic!("no {key} in {status:#}"))
}

/// Bytes of the files in the spool of the primary.
fn spool_files(lab: &Lab) -> u64 {
    let Ok(dir) = fs::read_dir(lab.site_dir("primary").join("region/.kagami/spool")) else { return 0 };
    dir.map_while(|e| e.ok()?.metadata().ok()).map(|m| m.len()).sum()
}

#[track_caller]
fn order(lab: &Lab, args: &[&str]) {
    let out = lab.at("primary", args);
    assert!(out.status.success(), "{args:?}: {}", proc::text(&out.stderr));
}

/// A7: the spool takes what the line does not, the writer does not feel it, and the way back is to send the entries.
#[test]
fn a_slow_line_does_not_slow_the_writer_and_the_spool_has_what_it_missed() {
    let (lab, line) = slow_lab(&format!("queue_memory_mib = {QUEUE_MIB}\nspool_mib = 1024"), |_| {});
    let data = Rng::new(3).bytes(FILE);
    let pid = lab.pid("primary").unwrap();
    write(&lab.mnt(), Duration::from_secs(2), &data);
    settle(&lab);
    let (mut best, mut most) = (f64::MAX, 0);
    // Other work on the machine disturbs both measurements; the pair of them that it disturbed least counts.
    for _ in 0..8 {
        let resyncs = said(&lab, "primary", "resync from");
        line.slow.store(true, Ordering::Relaxed);
        let with = write(&lab.mnt(), Duration::from_secs(3), &data);
        most = most.max(resident(pid));
        let p = lab.pair("primary", "async");
        let spooled = queued(&lab, "spool_bytes");
        println!("{p}\n{} MiB in the spool", spooled >> 20);
        assert_eq!(p["state"], "PAIR", "{p:#}");
        assert!(spooled > RATE && spool_files(&lab) >= spooled);
        assert!(p["lag"]["bytes"].as_u64().unwrap() > spooled && p["lag"]["seconds"].as_f64().unwrap() > 1.0, "{p:#}");
        // MS-19: the other end knows it too.
        let there = until(&lab, "async", "async", "lagging by what was spooled", |p| {
            p["lag"]["bytes"].as_u64().is_some_and(|n| n > spooled / 2)
        });
        assert!(
            there["lag"]["entries"].as_u64() > Some(0) && there["lag"]["seconds"].as_f64() > Some(0.5),
            "{there:#}"
        );
        line.slow.store(false, Ordering::Relaxed);
        settle(&lab);
        assert_eq!(said(&lab, "primary", "resync from"), resyncs, "{}", lab.log("primary"));
        assert_eq!(said(&lab, "primary", "behind"), 0, "{}", lab.log("primary"));
        let given_back =
            proc::wait_until(bed::PATIENCE, || queued(&lab, "spool_file_bytes") == 0 && spool_files(&lab) == 0);
        assert!(given_back, "{} bytes of the spool are left", spool_files(&lab));
        order(&lab, &["pair", "split", "lab", "async"]);
        lab.wait_pair("primary", "async", "PSUS", bed::PATIENCE);
        let without = write(&lab.mnt(), Duration::from_secs(3), &data);
        assert_eq!(queued(&lab, "spool_bytes"), 0, "for a pair that is suspended by order");
        order(&lab, &["pair", "resync", "lab", "async"]);
        settle(&lab);
        best = f64::min(best, with / without);
        println!("a round took {with:.4} s with the spool, {without:.4} s without: {:.3}", with / without);
        if best < 1.1 {
            break;
        }
    }
    println!("at most {} MiB resident; the best ratio {best:.3}", most >> 20);
    assert!(most < (QUEUE_MIB << 20) + WAITING + NODE_BYTES, "{} MiB resident", most >> 20);
    assert!(best < 1.1, "the writer is slowed by {best:.2}");
    lab.assert_trees_equal();
    lab.down();
}

/// A7, G8: beyond the limit of the spool the pair is behind, says why, and comes back by itself.
#[test]
fn beyond_the_spool_a_pair_is_behind_and_comes_back() {
    let (lab, line) = slow_lab("queue_memory_mib = 16\nspool_mib = 32", |_| {});
    let data = Rng::new(3).bytes(FILE);
    let pid = lab.pid("primary").unwrap();
    line.slow.store(true, Ordering::Relaxed);
    let mut most = 0;
    let end = Instant::now() + bed::PATIENCE;
    while said(&lab, "primary", "PSUE (behind)") == 0 {
        assert!(Instant::now() < end, "never behind: {}", lab.log("primary"));
        write(&lab.mnt(), Duration::from_millis(300), &data);
        most = most.max(resident(pid));
        assert!(spool_files(&lab) <= 33 << 20);
    }
    assert!(said(&lab, "primary", "the spool has reached spool_mib = 32") > 0, "{}", lab.log("primary"));
    assert!(most < (16 << 20) + WAITING + NODE_BYTES, "{} MiB resident", most >> 20);
    // The writer stops, and the pair comes back through the slow line.
    let stopped = Instant::now();
    lab.wait_pair("primary", "async", "PAIR", bed::PATIENCE);
    settle(&lab);
    println!("back {:?} after the writer stopped, at most {} MiB resident", stopped.elapsed(), most >> 20);
    assert!(proc::alive(pid));
    lab.assert_trees_equal();
    lab.down();
}

/// More is written during a resync than memory holds: the spool keeps it, and the resync goes on to its end.
#[test]
fn a_resync_is_not_begun_again_for_what_is_written_meanwhile() {
    let (lab, line) = slow_lab("queue_memory_mib = 4\nspool_mib = 512", |_| {});
    order(&lab, &["pair", "split", "lab", "async"]);
    lab.wait_pair("primary", "async", "PSUS", bed::PATIENCE);
    let mut rng = Rng::new(8);
    for i in 0..4 {
        fs::write(lab.mnt().join(format!("missed{i}")), rng.bytes(4 << 20)).unwrap();
    }
    line.slow.store(true, Ordering::Relaxed);
    order(&lab, &["pair", "resync", "lab", "async"]);
    until(&lab, "primary", "async", "in a resync", |p| p["progress"]["done_bytes"].as_u64() > Some(1 << 20));
    let data = rng.bytes(FILE);
    for i in 0..8 {
        fs::write(lab.mnt().join(format!("meanwhile{}", i % 2)), &data).unwrap();
    }
    let p = lab.pair("primary", "async");
    assert_eq!(p["state"], "COPY", "{p:#}");
    let spooled = queued(&lab, "spool_bytes");
    assert!(spooled > 32 << 20, "{spooled} bytes in the spool");
    line.slow.store(false, Ordering::Relaxed);
    lab.wait_pair("primary", "async", "PAIR", bed::PATIENCE);
    settle(&lab);
    println!("{} MiB were in the spool during the resync", spooled >> 20);
    assert_eq!(said(&lab, "primary", "resync from"), 1, "{}", lab.log("primary"));
    assert_eq!(said(&lab, "primary", "behind"), 0, "{}", lab.log("primary"));
    lab.assert_trees_equal();
    lab.down();
}

/// G8: a spool ends with its node, however that ends; and the other end sees that nothing comes (G9).
#[test]
fn a_killed_primary_gives_the_room_of_its_spool_back() {
    let (lab, line) = slow_lab("queue_memory_mib = 4\nspool_mib = 256", |_| {});
    line.slow.store(true, Ordering::Relaxed);
    let data = Rng::new(4).bytes(FILE);
    for i in 0..16 {
        fs::write(lab.mnt().join(format!("file{}", i % 4)), &data).unwrap();
    }
    assert!(proc::wait_until(bed::PATIENCE, || spool_files(&lab) > 64 << 20), "{} bytes", spool_files(&lab));
    lab.kill_now("primary");
    let left = spool_files(&lab);
    println!("{} MiB of the spool are left by kill -9", left >> 20);
    assert!(left > 64 << 20);
    let lag = || lab.pair("async", "async")["lag"]["seconds"].as_f64().unwrap();
    until(&lab, "async", "async", "without its primary", |p| p["state"] == "PSUE");
    let before = lag();
    std::thread::sleep(Duration::from_millis(1500));
    assert!(lag() >= before + 1.0, "a lag of {before} s, then of {} s", lag());
    line.slow.store(false, Ordering::Relaxed);
    lab.start("primary");
    assert_eq!(spool_files(&lab), 0);
    settle(&lab);
    lab.assert_trees_equal();
    lab.down();
}

/// G8: however large the spool may be, it does not take the room that the volume needs.
#[test]
fn the_spool_leaves_a_reserve_on_its_filesystem() {
    if !support::is_root() {
        return support::skipped("the_spool_leaves_a_reserve_on_its_filesystem", "needs root for a tmpfs");
    }
    let (lab, line) = slow_lab("queue_memory_mib = 4\nspool_mib = 1024", |lab| {
        let mut c = std::process::Command::new("mount");
        c.args(["-t", "tmpfs", "-o", "size=160m", "tmpfs"]).arg(lab.site_dir("primary").join("region"));
        proc::run_ok(&mut c, bed::PATIENCE);
        fs::create_dir(lab.tree("primary")).unwrap();
    });
    line.slow.store(true, Ordering::Relaxed);
    let data = Rng::new(4).bytes(FILE);
    let end = Instant::now() + bed::PATIENCE;
    while said(&lab, "primary", "PSUE (behind)") == 0 {
        assert!(Instant::now() < end, "never behind: {}", lab.log("primary"));
        write(&lab.mnt(), Duration::from_millis(300), &data);
    }
    assert!(said(&lab, "primary", "leaves 64 MiB of its filesystem free") > 0, "{}", lab.log("primary"));
    line.slow.store(false, Ordering::Relaxed);
    settle(&lab);
    lab.assert_trees_equal();
    // `lab down` leaves a mount alone that is not its own; the guard takes it away.
    drop(lab);
}

/// Files with two links each, of which the content differs and one name goes: some are removed, some replaced. `first`: in
/// the first place the one name, in the next the other.
fn pairs_of_links(mnt: &Path) -> Vec<[PathBuf; 2]> {
    let pair = |i: usize| {
        let dir = mnt.join(format!("links{}", i % 3));
        fs::create_dir_all(&dir).unwrap();
        [dir.join(format!("a{i}")), dir.join(format!("b{i}"))]
    };
    (0..24).map(pair).collect()
}

fn cut_links(pairs: &[[PathBuf; 2]]) {
    for (i, [a, b]) in pairs.iter().enumerate() {
        let name = if i % 2 == 0 { a } else { b };
        match i / 2 % 2 {
            0 => fs::remove_file(name).unwrap(),
            _ => fs::rename(name.with_extension("plain"), name).unwrap(),
        }
    }
}

/// G5: what is to be copied of a file is copied though the name by which the copy knows it goes in the meantime.
#[test]
fn g5_a_resync_copies_a_file_that_loses_one_of_its_names_meanwhile() {
    let (lab, line) = slow_lab("queue_memory_mib = 4", |_| {});
    let mut rng = Rng::new(5);
    let pairs = pairs_of_links(&lab.mnt());
    let large = |n: usize| lab.mnt().join(format!("large{n}"));
    // The journal knows them first, so they are copied first.
    for n in 0..4 {
        fs::write(large(n), "small").unwrap();
    }
    for p in &pairs {
        fs::write(&p[0], rng.bytes(9000)).unwrap();
        fs::hard_link(&p[0], &p[1]).unwrap();
        for n in p {
            fs::write(n.with_extension("plain"), rng.bytes(100)).unwrap();
        }
    }
    settle(&lab);
    order(&lab, &["pair", "split", "lab", "async"]);
    lab.wait_pair("primary", "async", "PSUS", bed::PATIENCE);
    for n in 0..4 {
        fs::write(large(n), rng.bytes(4 << 20)).unwrap();
    }
    for (i, p) in pairs.iter().enumerate() {
        fs::write(&p[i / 4 % 2], rng.bytes(9000)).unwrap();
    }
    line.slow.store(true, Ordering::Relaxed);
    order(&lab, &["pair", "resync", "lab", "async"]);
    until(&lab, "primary", "async", "in a resync", |p| p["progress"]["done_bytes"].as_u64() > Some(1 << 19));
    cut_links(&pairs);
    let p = lab.pair("primary", "async");
    assert!(p["state"] == "COPY" && p["progress"]["done_files"].as_u64() < Some(5), "{p:#}");
    line.slow.store(false, Ordering::Relaxed);
    settle(&lab);
    assert_eq!(said(&lab, "primary", "resync from"), 1, "{}", lab.log("primary"));
    lab.assert_trees_equal();
    lab.down();
}

/// G5: the same for a first copy; and a name that is another object's by the time it is reached is not taken for it.
#[test]
fn g5_a_first_copy_follows_links_that_change_meanwhile() {
    let (lab, line) = slow_lab("queue_memory_mib = 32", |_| {});
    let mut rng = Rng::new(6);
    let mnt = lab.mnt();
    // In the way of the rest of its directory, and of those after it, which are walked when it is through.
    for n in 0..4 {
        fs::write(mnt.join(format!("large{n}")), rng.bytes(4 << 20)).unwrap();
    }
    let pairs = pairs_of_links(&mnt);
    for p in &pairs {
        fs::write(&p[0], rng.bytes(9000)).unwrap();
        fs::hard_link(&p[0], &p[1]).unwrap();
        for n in p {
            fs::write(n.with_extension("plain"), rng.bytes(100)).unwrap();
        }
    }
    // Site async comes back with nothing.
    lab.kill_now("async");
    let region = lab.site_dir("async").join("region");
    fs::remove_dir_all(&region).unwrap();
    fs::create_dir(&region).unwrap();
    let made = lab.at("async", &["region", "create"]);
    assert!(made.status.success(), "{}", proc::text(&made.stderr));
    line.slow.store(true, Ordering::Relaxed);
    lab.start("async");
    until(&lab, "primary", "async", "in a first copy", |p| p["progress"]["done_bytes"].as_u64() > Some(1 << 19));
    let (moved, cut) = pairs.split_at(8);
    for [a, b] in moved {
        // Where a plain file was there is now a further link of another file.
        let plain = a.with_extension("plain");
        fs::rename(&plain, plain.with_extension("moved")).unwrap();
        fs::hard_link(b, &plain).unwrap();
    }
    cut_links(cut);
    let p = lab.pair("primary", "async");
    assert!(p["state"] == "COPY" && p["progress"]["done_files"].as_u64() < Some(20), "{p:#}");
    line.slow.store(false, Ordering::Relaxed);
    settle(&lab);
    lab.assert_trees_equal();
    lab.down();
}
