//! The queue under many schedules: two senders, the thread of the spool and whoever pushes, between any two of their locks.

use super::*;
use crate::base::sync::explore::{Course, Timeouts};
use crate::base::sync::thread;
use crate::base::{DirId, Name, VolId};
use crate::format::op::Entry;
use std::path::Path;

/// Entries of a schedule, count.
const ENTRIES: u64 = 7;
/// Memory holds about two of them, bytes.
const MEMORY: u64 = 2 * (crate::base::limits::ENTRY_MEMORY_BYTES + 220);
/// Room for a few segments of the spool, bytes.
const SPOOL: u64 = 8 << 20;
const ALL: Seq = Seq(u64::MAX);

fn frame(seq: u64) -> (Time, Vec<u8>, Tally) {
    let data = [seq as u8; 100];
    let time = Time { sec: seq as i64, nsec: 0 };
    let op = Op::Write { at: Name::new(DirId(1), "f"), off: seq, mtime: None };
    let e = Entry { seq: Seq(seq), vol: VolId(0), time, op };
    (time, e.frame(&data).unwrap(), Tally::of(&e.op, &data))
}

fn push_all(q: &Queue) {
    for seq in 1..=ENTRIES {
        let (time, frame, tally) = frame(seq);
        q.push(Seq(seq), time, frame, tally);
    }
}

fn queue(dir: &Path, limit: u64) -> Arc<Queue> {
    Arc::new(Queue::new(Seq(0), 2, MEMORY, SpoolAt { dir: dir.join("spool"), limit }).unwrap())
}

/// How a sender came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It has everything.
    All,
    /// What comes next for it was given up.
    Gone(Seq),
}

/// A sender: takes what is there, in order, each entry as it was pushed, and acknowledges it.
fn serve(q: &Queue, reader: usize, mut cursor: Seq) -> End {
    while cursor.0 < ENTRIES {
        match q.fetch(cursor, ALL, 400, 2) {
            Fetch::Items(items) => {
                assert!(!items.is_empty());
                for i in items {
                    cursor = cursor.next();
                    assert_eq!(i.seq, cursor, "reader {reader}: out of order");
                    let (time, frame, _) = frame(cursor.0);
                    assert!(i.frame == frame && i.time == time, "reader {reader}: entry {} is another one", cursor.0);
                }
                q.have(reader, cursor);
            }
            Fetch::Nothing => q.wait(cursor, Duration::from_secs(1)),
            Fetch::Gone => return End::Gone(cursor),
        }
    }
    End::All
}

/// What was left when everybody came to an end: nothing, once the thread of the spool was told.
fn ends(q: Arc<Queue>, dir: &Path) {
    q.close();
    q.join();
    let held = q.held();
    assert_eq!((held.memory, held.spooled), (0, 0));
    assert!(!dir.join("spool").exists(), "the spool is still there");
}

fn pushed_and_sent(dir: &Path) {
    let q = queue(dir, SPOOL);
    let senders: Vec<_> = (0..2)
        .map(|r| {
            let q = q.clone();
            thread::spawn(move || serve(&q, r, Seq(0)))
        })
        .collect();
    push_all(&q);
    for (r, s) in senders.into_iter().enumerate() {
        assert_eq!(s.join().unwrap(), End::All, "reader {r} lost something: {:?}", q.given_up(r));
        assert_eq!(q.given_up(r), None);
    }
    ends(q, dir);
}

/// The disk of the spool takes nothing: who lags is given up and told, and whoever is not gets everything.
fn spool_takes_nothing(dir: &Path) {
    let q = queue(dir, 1);
    let senders: Vec<_> = (0..2)
        .map(|r| {
            let q = q.clone();
            thread::spawn(move || serve(&q, r, Seq(0)))
        })
        .collect();
    push_all(&q);
    for (r, s) in senders.into_iter().enumerate() {
        match (s.join().unwrap(), q.given_up(r)) {
            (End::All, _) => {}
            (End::Gone(_), Some(why)) => assert!(why.contains("behind"), "{why}"),
            (End::Gone(at), None) => panic!("reader {r} is not given up and lacks what comes after {}", at.0),
        }
    }
    ends(q, dir);
}

/// A pair is suspended in between and comes back where it was, from what is still there or not at all.
fn suspended_and_back(dir: &Path) {
    let q = queue(dir, SPOOL);
    let other = {
        let q = q.clone();
        thread::spawn(move || serve(&q, 1, Seq(0)))
    };
    let back = {
        let q = q.clone();
        thread::spawn(move || {
            let Fetch::Items(items) = q.fetch(Seq(0), Seq(1), 400, 2) else { return None };
            let has = items.last().unwrap().seq;
            q.have(0, has);
            q.at_most(0, Keep::Memory);
            thread::yield_now();
            q.keep_after(0, has).then(|| serve(&q, 0, has))
        })
    };
    push_all(&q);
    assert_eq!(other.join().unwrap(), End::All);
    assert!(!matches!(back.join().unwrap(), Some(End::Gone(_))), "it was to be kept, and is not there");
    ends(q, dir);
}

/// The group stops while senders wait and the spool is written: everybody comes to an end, and no file is left.
fn closed_meanwhile(dir: &Path) {
    let q = queue(dir, SPOOL);
    let stop = Arc::new(crate::base::sync::atomic::AtomicBool::new(false));
    let senders: Vec<_> = (0..2)
        .map(|r| {
            let (q, stop) = (q.clone(), stop.clone());
            thread::spawn(move || {
                let mut cursor = Seq(0);
                while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                    match q.fetch(cursor, ALL, 400, 2) {
                        Fetch::Items(items) => {
                            assert_eq!(items[0].seq, cursor.next());
                            cursor = items.last().unwrap().seq;
                            q.have(r, cursor);
                        }
                        Fetch::Nothing => q.wait(cursor, Duration::from_secs(1)),
                        Fetch::Gone => assert!(q.given_up(r).is_some(), "gone, and nobody said why"),
                    }
                }
            })
        })
        .collect();
    let pusher = {
        let q = q.clone();
        thread::spawn(move || push_all(&q))
    };
    thread::yield_now();
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    q.close();
    pusher.join().unwrap();
    senders.into_iter().for_each(|s| s.join().unwrap());
    q.join();
    assert!(!dir.join("spool").exists(), "the spool is still there");
}

const SENT: Course = Course {
    name: "volume::queue::schedules::g8_every_entry_is_sent_once_and_in_order",
    schedules: 4000,
    timeouts: Timeouts::Never,
    run: pushed_and_sent,
};

/// G8: whatever comes between, through memory and spool, and nobody waits for what is there.
#[test]
fn g8_every_entry_is_sent_once_and_in_order() {
    SENT.holds();
}

/// The same with waits whose time is up.
#[test]
fn g8_every_entry_is_sent_once_and_in_order_with_time_outs() {
    let name = "volume::queue::schedules::g8_every_entry_is_sent_once_and_in_order_with_time_outs";
    Course { name, schedules: 2000, timeouts: Timeouts::Drawn, ..SENT }.holds();
}

/// D2.
#[test]
fn d2_a_wait_that_misses_its_entry_is_found() {
    assert!(SENT.finds(Bug::LookThenWait, 2000), "a schedule that failed does not fail again");
}

/// D2.
#[test]
fn d2_entries_that_are_nowhere_for_a_moment_are_found() {
    SENT.finds(Bug::SpoolTooEarly, 2000);
}

/// G8.
#[test]
fn g8_a_spool_that_takes_nothing_gives_up_who_lags_and_says_so() {
    let name = "volume::queue::schedules::g8_a_spool_that_takes_nothing_gives_up_who_lags_and_says_so";
    Course { name, schedules: 4000, timeouts: Timeouts::Never, run: spool_takes_nothing }.holds();
}

/// G8.
#[test]
fn g8_a_pair_that_is_suspended_comes_back_to_all_or_nothing() {
    let name = "volume::queue::schedules::g8_a_pair_that_is_suspended_comes_back_to_all_or_nothing";
    Course { name, schedules: 2000, timeouts: Timeouts::Never, run: suspended_and_back }.holds();
}

/// G8: also while the spool is written and read.
#[test]
fn g8_a_queue_that_is_closed_lets_everybody_go() {
    let name = "volume::queue::schedules::g8_a_queue_that_is_closed_lets_everybody_go";
    Course { name, schedules: 3000, timeouts: Timeouts::Drawn, run: closed_meanwhile }.holds();
}
