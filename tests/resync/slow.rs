//! A peer behind a slow line: the application does not feel it, memory is bounded, and the pair comes back (A7).

use super::bed::{self, settle, until};
use super::support::{Rng, proc};
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
/// What a node may take beside its queue, bytes. (The queue's entries and what is under way to the peers add up.)
const NODE_BYTES: u64 = 128 << 20;
/// Written again and again, so that what has to be copied in the end is small.
const FILE: usize = 8 << 20;

/// Passes a socket's bytes on to another one, in the direction of the peer at [`RATE`].
struct SlowLine {
    slow: Arc<AtomicBool>,
}

impl SlowLine {
    fn new(at: &Path, to: PathBuf) -> SlowLine {
        let listener = UnixListener::bind(at).unwrap();
        let slow = Arc::new(AtomicBool::new(false));
        let limited = slow.clone();
        std::thread::spawn(move || {
            for from in listener.incoming().map_while(Result::ok) {
                let Ok(peer) = UnixStream::connect(&to) else { continue };
                let (a, b) = (from.try_clone().unwrap(), peer.try_clone().unwrap());
                let limited = limited.clone();
                std::thread::spawn(move || pass(a, peer, Some(&limited)));
                std::thread::spawn(move || pass(b, from, None));
            }
        });
        SlowLine { slow }
    }
}

fn pass(mut from: UnixStream, mut to: UnixStream, limited: Option<&AtomicBool>) {
    let mut buf = [0; 16 << 10];
    let mut due = Instant::now();
    while let Ok(n) = from.read(&mut buf) {
        if n == 0 || to.write_all(&buf[..n]).is_err() {
            break;
        }
        if limited.is_some_and(|l| l.load(Ordering::Relaxed)) {
            due = due.max(Instant::now()) + Duration::from_nanos(n as u64 * 1_000_000_000 / RATE);
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

/// A7.
#[test]
fn a_slow_line_does_not_slow_the_writer_and_its_pair_comes_back() {
    let mut line = None;
    let lab = bed::made(&[], |lab| {
        let path = lab.config("primary");
        let text = fs::read_to_string(&path).unwrap();
        let addr = text.split('"').find(|s| s.starts_with("unix:") && s.ends_with("/async.sock")).unwrap().to_owned();
        let proxy = lab.dir().parent().unwrap().join("slow.sock");
        fs::write(&path, text.replace(&addr, &format!("unix:{}", proxy.display()))).unwrap();
        bed::configure(lab, "primary", &format!("[limits]\nqueue_memory_mib = {QUEUE_MIB}"));
        line = Some(SlowLine::new(&proxy, PathBuf::from(addr.trim_start_matches("unix:"))));
    });
    let line = line.unwrap();
    lab.ok("up", &[]);
    settle(&lab);
    let data = Rng::new(3).bytes(FILE);
    let pid = lab.pid("primary").unwrap();
    write(&lab.mnt(), Duration::from_secs(2), &data);
    settle(&lab);

    let (mut best, mut most) = (f64::MAX, 0);
    let (mut lagged, mut behind) = (0, false);
    // Other work on the machine disturbs both measurements; the pair of them that it disturbed least counts.
    for _ in 0..8 {
        lab.ok("wait", &["--timeout", "120"]);
        line.slow.store(true, Ordering::Relaxed);
        let with = write(&lab.mnt(), Duration::from_secs(3), &data);
        most = most.max(resident(pid));
        let p = lab.pair("primary", "async");
        lagged = lagged.max(p["lag"]["bytes"].as_u64().unwrap());
        behind |= lab.log("primary").contains("PSUE (behind)");
        println!("{p}");
        lab.cut("async");
        let without = write(&lab.mnt(), Duration::from_secs(3), &data);
        println!("a round took {with:.4} s with the slow line, {without:.4} s without");
        best = f64::min(best, with / without);
        lab.join("async");
        line.slow.store(false, Ordering::Relaxed);
        if best < 1.1 && behind {
            break;
        }
    }
    println!("at most {} MiB resident, {} MiB lag", most >> 20, lagged >> 20);
    assert!(behind, "the pair was never behind: {}", lab.log("primary"));
    assert!(lagged > RATE, "no lag was shown");
    assert!(most < 2 * (QUEUE_MIB << 20) + NODE_BYTES, "{} MiB resident", most >> 20);
    assert!(best < 1.1, "the writer is slowed by {best:.2}");

    // The writer stops, and the pair comes back through the slow line.
    settle(&lab);
    line.slow.store(true, Ordering::Relaxed);
    write(&lab.mnt(), Duration::from_secs(2), &data);
    until(&lab, "primary", "async", "lagging", |p| p["lag"]["entries"].as_u64().is_some_and(|n| n > 0));
    let stopped = Instant::now();
    lab.wait_pair("primary", "async", "PAIR", bed::PATIENCE);
    settle(&lab);
    println!("back {:?} after the writer stopped", stopped.elapsed());
    assert!(proc::alive(pid));
    lab.assert_trees_equal();
    lab.down();
}
