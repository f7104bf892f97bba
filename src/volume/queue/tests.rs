//! Memory and spool as one line: every entry once and in order, the bounds, and what is damaged.

use super::*;
use crate::base::{DirId, Name, VolId, limits};
use crate::format::op::Entry;
use proptest::prelude::*;
use std::path::Path;

const KIB: usize = 1 << 10;

/// The entry of a number; its content tells which it is.
fn entry(seq: Seq, len: usize) -> (Time, Vec<u8>, Tally) {
    let data = vec![seq.0 as u8; len.max(1)];
    let time = Time { sec: seq.0 as i64, nsec: 0 };
    let op = Op::Write { at: Name::new(DirId(1), "f"), off: seq.0, mtime: None };
    let e = Entry { seq, vol: VolId(0), time, op };
    (time, e.frame(&data).unwrap(), Tally::of(&e.op, &data))
}

fn queue(dir: &Path, readers: usize, limit: usize, spool: usize) -> Queue {
    Queue::without_thread(Seq(0), readers, limit as u64, SpoolAt { dir: dir.join("spool"), limit: spool as u64 })
}

fn push(q: &Queue, seq: u64, len: usize) {
    let (time, frame, tally) = entry(Seq(seq), len);
    q.push(Seq(seq), time, frame, tally);
}

/// Lets the thread of the spool do all it has to.
fn settle(q: &Queue) {
    for _ in 0..1000 {
        let g = q.shared.inner.lock();
        let busy = g.line.wants_spool() || Some(g.line.oldest_spooled()) != g.kept_from;
        drop(g);
        if !busy {
            return;
        }
        q.shared.turn(Duration::ZERO);
    }
    panic!("the spool never comes to an end");
}

fn files(dir: &Path) -> u64 {
    let Ok(d) = std::fs::read_dir(dir.join("spool")) else { return 0 };
    d.map(|e| e.unwrap().metadata().unwrap().len()).sum()
}

fn all(q: &Queue, mut cursor: Seq) -> Vec<u64> {
    let mut out = Vec::new();
    while let Fetch::Items(items) = q.fetch(cursor, Seq(u64::MAX), limits::BATCH_BYTES, limits::BATCH_ENTRIES) {
        cursor = items.last().unwrap().seq;
        out.extend(items.iter().map(|i| i.seq.0));
    }
    out
}

/// What a test does to the queue; sizes in KiB.
#[derive(Clone, Debug)]
enum Do {
    Push(usize),
    Fetch(usize),
    Acknowledge(usize),
    Spool,
    Suspend(usize),
    Restart(usize),
}

fn what() -> impl Strategy<Value = Do> {
    prop_oneof![
        6 => (0..400usize).prop_map(Do::Push),
        4 => (0..3usize).prop_map(Do::Fetch),
        3 => (0..3usize).prop_map(Do::Acknowledge),
        4 => Just(Do::Spool),
        1 => (0..3usize).prop_map(Do::Suspend),
        1 => (0..3usize).prop_map(Do::Restart),
    ]
}

#[derive(Clone, Copy)]
struct Peer {
    cursor: Seq,
    has: Seq,
    /// It is served until it is given up or suspended.
    served: bool,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// G8: whatever comes in between, a peer that is not given up gets every entry once, in order and as it was.
    #[test]
    fn every_entry_is_fetched_once_and_in_order(steps in prop::collection::vec(what(), 1..200)) {
        let dir = tempfile::tempdir().unwrap();
        let (limit, most) = (512 * KIB, 8 << 20);
        let q = queue(dir.path(), 3, limit, most);
        let mut lens = vec![0];
        let mut peers = [Peer { cursor: Seq(0), has: Seq(0), served: true }; 3];
        for step in steps {
            let head = Seq(lens.len() as u64 - 1);
            match step {
                Do::Push(kib) => {
                    lens.push(kib * KIB);
                    push(&q, head.0 + 1, kib * KIB);
                }
                Do::Fetch(i) => {
                    let p = &mut peers[i];
                    match q.fetch(p.cursor, Seq(u64::MAX), limits::BATCH_BYTES, limits::BATCH_ENTRIES) {
                        Fetch::Items(items) => for item in items {
                            p.cursor = p.cursor.next();
                            let (time, frame, tally) = entry(p.cursor, lens[p.cursor.0 as usize]);
                            prop_assert_eq!(item.seq, p.cursor);
                            prop_assert_eq!(item.time, time);
                            prop_assert!(item.frame == frame, "entry {} is another one", p.cursor.0);
                            prop_assert_eq!((item.tally.data, item.tally.object), (tally.data, tally.object));
                        },
                        Fetch::Nothing => prop_assert_eq!(p.cursor, head),
                        Fetch::Gone => {
                            prop_assert!(!p.served || q.given_up(i).is_some());
                            p.served = false;
                        }
                    }
                }
                Do::Acknowledge(i) => {
                    peers[i].has = peers[i].cursor;
                    q.have(i, peers[i].has);
                }
                Do::Spool => { q.shared.turn(Duration::ZERO); }
                Do::Suspend(i) => {
                    q.at_most(i, Keep::Memory);
                    peers[i].served = false;
                }
                Do::Restart(i) => {
                    prop_assert!(q.keep_after(i, head));
                    peers[i] = Peer { cursor: head, has: head, served: true };
                }
            }
            let head = Seq(lens.len() as u64 - 1);
            let held = q.held();
            prop_assert!(held.spool_files <= most as u64 && files(dir.path()) <= most as u64 + 4096);
            prop_assert!(held.memory <= limit as u64 + limits::SPOOL_WAITING_BYTES_MAX);
            for (i, p) in peers.iter().enumerate().filter(|(_, p)| p.served) {
                if q.given_up(i).is_none() {
                    prop_assert!(q.reaches(p.has) && q.reaches(p.cursor));
                    let exact: u64 = (p.has.0 + 1..=head.0).map(|s| entry(Seq(s), lens[s as usize]).1.len() as u64).sum();
                    let told = q.bytes_after(p.has);
                    prop_assert!(told >= exact && told <= exact + limits::BATCH_BYTES as u64, "{told} for {exact}");
                    prop_assert_eq!(q.time_after(p.has).is_some(), p.has < head);
                }
            }
        }
        settle(&q);
        prop_assert!(q.held().memory <= (limit + 400 * KIB) as u64);
        // Once everybody has everything, nothing is left.
        let head = Seq(lens.len() as u64 - 1);
        (0..3).for_each(|i| q.have(i, head));
        settle(&q);
        prop_assert_eq!((q.held(), files(dir.path())), (Held::default(), 0));
    }
}

/// The bound of memory holds as well when who had the spool needs nothing more; the files of the spool go when those it
/// was for are served from memory only.
#[test]
fn who_is_left_holds_no_more_than_memory() {
    let dir = tempfile::tempdir().unwrap();
    let q = queue(dir.path(), 2, 512 * KIB, 8 << 20);
    q.at_most(0, Keep::Memory);
    (1..=4).for_each(|seq| push(&q, seq, 250 * KIB));
    q.have(1, Seq(4));
    assert!(q.held().memory <= 512 * KIB as u64, "{:?}", q.held());
    (5..=8).for_each(|seq| push(&q, seq, 250 * KIB));
    q.shared.turn(Duration::ZERO);
    assert!(files(dir.path()) > 0);
    q.at_most(1, Keep::Memory);
    settle(&q);
    assert_eq!(files(dir.path()), 0);
}

/// G8: a peer that lags too far is given up with the reason, the other one is not.
#[test]
fn the_limit_of_the_spool_gives_up_who_is_furthest_behind() {
    let dir = tempfile::tempdir().unwrap();
    let q = queue(dir.path(), 2, 256 * KIB, 8 << 20);
    for seq in 1..=60 {
        push(&q, seq, 256 * KIB);
        settle(&q);
        q.have(0, Seq(seq.saturating_sub(8)));
    }
    assert_eq!(q.given_up(0), None);
    let why = q.given_up(1).unwrap();
    assert!(why.contains("behind") && why.contains("spool_mib = 8"), "{why}");
    assert!(!q.reaches(Seq(0)));
    assert_eq!(all(&q, Seq(52)), (53..=60).collect::<Vec<_>>());
    // It begins anew at a later point, and counts as given up no more.
    assert!(q.keep_after(1, Seq(60)));
    assert_eq!(q.given_up(1), None);
}

/// G8: what waits for a spool that does not keep up is bounded.
#[test]
fn a_spool_that_does_not_keep_up_does_not_fill_memory() {
    let dir = tempfile::tempdir().unwrap();
    let q = queue(dir.path(), 1, 1 << 20, 1 << 30);
    let most = (1 << 20) + limits::SPOOL_WAITING_BYTES_MAX;
    for seq in 1..=80 {
        push(&q, seq, 1 << 20);
        assert!(q.held().memory <= most);
    }
    assert!(q.given_up(0).unwrap().contains("does not keep up"));
    push(&q, 81, 1);
    assert!(q.held().memory <= 2 << 20);
}

/// Without a spool the queue ends where its memory does, as it says.
#[test]
fn without_a_spool_the_memory_is_the_bound() {
    let dir = tempfile::tempdir().unwrap();
    let q = queue(dir.path(), 1, 1 << 20, 0);
    for seq in 1..=8 {
        push(&q, seq, 256 * KIB);
        assert!(q.held().memory <= 1 << 20);
    }
    assert!(q.given_up(0).unwrap().contains("spool_mib = 0"));
}

/// Only what is needed goes to disk: not for a pair that its operator suspended, which keeps what memory has.
#[test]
fn nothing_is_spooled_for_who_is_level_or_suspended() {
    let dir = tempfile::tempdir().unwrap();
    let q = queue(dir.path(), 2, 1 << 20, 64 << 20);
    q.at_most(1, Keep::Memory);
    for seq in 1..=3 {
        push(&q, seq, 256 * KIB);
        q.have(0, Seq(seq));
    }
    assert!(q.reaches(Seq(0)));
    for seq in 4..=20 {
        push(&q, seq, 256 * KIB);
        q.have(0, Seq(seq));
        settle(&q);
    }
    assert_eq!((q.held().spool_files, files(dir.path())), (0, 0));
    assert!(!q.reaches(Seq(0)) && q.held().memory <= 1 << 20);
    assert_eq!(q.given_up(1), None);
}

/// G7: whatever is done to a file of the spool, its bytes are those that were written or none.
#[test]
fn a_damaged_spool_gives_up_who_needs_it_and_never_tells_wrong_bytes() {
    type Damage = fn(&Path);
    let flip: Damage = |p| {
        let mut b = std::fs::read(p).unwrap();
        let at = b.len() / 2;
        b[at] ^= 1;
        std::fs::write(p, b).unwrap();
    };
    let cut: Damage = |p| {
        let f = std::fs::OpenOptions::new().write(true).open(p).unwrap();
        f.set_len(f.metadata().unwrap().len() / 2).unwrap();
    };
    // Whole frames, but of other entries.
    let shift: Damage = |p| {
        let b = std::fs::read(p).unwrap();
        let frame = entry(Seq(1), 64 * KIB).1.len();
        let mut moved = b[..16].to_vec();
        moved.extend_from_slice(&b[16 + frame..]);
        moved.extend_from_slice(&b[16..16 + frame]);
        std::fs::write(p, moved).unwrap();
    };
    for (name, damage) in [("a bit", flip), ("cut off", cut), ("other entries", shift)] {
        let dir = tempfile::tempdir().unwrap();
        let q = queue(dir.path(), 1, 256 * KIB, 8 << 20);
        for seq in 1..=12 {
            push(&q, seq, 64 * KIB);
        }
        settle(&q);
        let path = std::fs::read_dir(dir.path().join("spool")).unwrap().next().unwrap().unwrap().path();
        damage(&path);
        let mut cursor = Seq(0);
        let why = loop {
            match q.fetch(cursor, Seq(u64::MAX), limits::BATCH_BYTES, limits::BATCH_ENTRIES) {
                Fetch::Items(items) => {
                    for i in items {
                        cursor = cursor.next();
                        assert!(i.seq == cursor && i.frame == entry(cursor, 64 * KIB).1, "{name}");
                    }
                }
                Fetch::Nothing => panic!("{name}: not noticed"),
                Fetch::Gone => break q.given_up(0).unwrap(),
            }
        };
        assert!(why.contains("behind: the spool cannot be read"), "{name}: {why}");
        settle(&q);
        assert_eq!(files(dir.path()), 0, "{name}");
    }
}

/// The thread of the spool does the same, and its files are gone with it.
#[test]
fn the_spool_ends_with_its_queue() {
    let dir = tempfile::tempdir().unwrap();
    let at = SpoolAt { dir: dir.path().join("spool"), limit: 64 << 20 };
    let q = Queue::new(Seq(0), 1, 1 << 20, at).unwrap();
    for seq in 1..=100 {
        push(&q, seq, 256 * KIB);
    }
    assert_eq!(all(&q, Seq(0)), (1..=100).collect::<Vec<_>>());
    let end = std::time::Instant::now() + Duration::from_secs(10);
    while q.held().memory > 1 << 20 {
        assert!(std::time::Instant::now() < end, "{:?}", q.held());
        thread::sleep(Duration::from_millis(5));
    }
    assert!(files(dir.path()) > 20 << 20);
    assert_eq!(all(&q, Seq(0)), (1..=100).collect::<Vec<_>>());
    q.close();
    q.join();
    assert!(!dir.path().join("spool").exists());
}
