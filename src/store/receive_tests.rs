//! A receiver that is killed between two steps of a roll forward.

use super::*;
use crate::base::{DirId, Kind, Name, VolId, time::Time};
use crate::format::op::{Attr, NodeKind};
use crate::store::replica::Place;

fn place(dir: &std::path::Path) -> Place {
    Place {
        group: "g".into(),
        volumes: vec![("v".into(), dir.join("region"))],
        journal_bytes: 1 << 20,
        log_bytes: 64 << 20,
    }
}

fn open(p: &Place) -> Receiver {
    Receiver::new(Arc::new(Replica::open(p).unwrap())).unwrap()
}

fn create(name: &str) -> Vec<u8> {
    let attr = Attr { mode: 0o644, ..Attr::default() };
    let op = Op::Create { at: Name::new(DirId::ROOT, name), kind: NodeKind::File, attr, pmtime: Time::default() };
    Entry { seq: Seq(0), vol: VolId(0), time: Time::default(), op }.frame(b"").unwrap()
}

/// A staged resync from nothing to entry 5 that makes one file.
fn batch() -> Vec<u8> {
    let begin = TxnBegin { id: 7, from: Seq(0), base: Seq(5), common: Seq(0) };
    let epoch = Epoch { number: 1, site: "p".into(), random: 1, parent: Seq(0), over: 0 };
    let commit = TxnCommit { id: 7, to: Seq(5), epochs: vec![epoch] };
    let mut out = frame::build(FrameKind::TxnBegin, &codec::encode(&begin).unwrap(), b"");
    out.extend(create("a"));
    out.extend(frame::build(FrameKind::TxnCommit, &codec::encode(&commit).unwrap(), b""));
    out
}

/// Rolls forward what is left and wants the end of it.
fn finished(r: &Receiver, dir: &std::path::Path) {
    let mut buf = Vec::new();
    for _ in 0..5 {
        assert!(r.step(&mut buf, Duration::from_millis(1)));
    }
    assert!(r.fault().is_none(), "{:?}", r.fault());
    assert_eq!((r.applied(), r.received(), r.has_txn()), (Seq(5), Seq(5), false));
    assert!(dir.join("region/tree/a").exists());
    assert!(!dir.join("region/IN-TRANSITION").exists());
    assert_eq!(r.replica.order().state.chain.len(), 1);
}

#[test]
fn killed_between_any_two_steps_it_ends_at_the_commit() {
    for steps in 0..=3 {
        let d = tempfile::tempdir().unwrap();
        let p = place(d.path());
        Replica::create(&p).unwrap();
        let r = open(&p);
        r.accept(r.begin_session(), &batch()).unwrap();
        let mut buf = Vec::new();
        for _ in 0..steps {
            r.step(&mut buf, Duration::from_millis(1));
        }
        drop(r);
        finished(&open(&p), d.path());
    }
}

#[test]
fn killed_within_the_first_step_or_the_last() {
    let d = tempfile::tempdir().unwrap();
    let p = place(d.path());
    Replica::create(&p).unwrap();
    let r = open(&p);
    r.accept(r.begin_session(), &batch()).unwrap();
    // The page says that the transaction is under way, the log position that it is yet to begin.
    r.replica.set_between(true).unwrap();
    r.replica.order().live.set_txn(Some((Seq(0), Seq(5))));
    drop(r);
    let r = open(&p);
    let mut buf = Vec::new();
    r.step(&mut buf, Duration::from_millis(1));
    r.step(&mut buf, Duration::from_millis(1));
    let at = r.replica.order().live.applied_lsn();
    r.step(&mut buf, Duration::from_millis(1));
    // The page says that it is over, the log position that its commit record is yet to come.
    r.replica.set_between(true).unwrap();
    r.replica.order().live.set_applied(at, Seq(0));
    drop(r);
    finished(&open(&p), d.path());
}

#[test]
fn between_announcement_and_commit_nothing_is_acknowledged() {
    let d = tempfile::tempdir().unwrap();
    let p = place(d.path());
    Replica::create(&p).unwrap();
    let r = open(&p);
    let old = r.begin_session();
    let new = r.begin_session();
    assert!(r.accept(old, &batch()).is_err(), "a link that was replaced");
    r.prepare();
    r.end_session(old).unwrap();
    assert_eq!(r.acknowledged().0, Seq(0));
    r.accept(new, &batch()).unwrap();
    assert_eq!(r.acknowledged().0, Seq(5));
}

#[test]
fn cd5_a_later_definition_that_does_not_fit_stores_nothing_of_its_batch() {
    let d = tempfile::tempdir().unwrap();
    let p = place(d.path());
    Replica::create(&p).unwrap();
    let r = open(&p);
    let row = crate::store::head::Row { what: "volume v".into(), size: 1 << 20, emulation: "none".into() };
    r.replica.regions[0].row.set(row).unwrap();
    let session = r.begin_session();
    let define = |seq: u64, capacity: u64| {
        let def = crate::store::head::ConfigDef { mount: b"/m".to_vec(), capacity, emulation: "none".into() };
        let op = Op::ConfigDef { body: def.body().unwrap() };
        Entry { seq: Seq(seq), vol: VolId(0), time: Time::default(), op }.frame(b"").unwrap()
    };
    let beat =
        |seq: u64| Entry { seq: Seq(seq), vol: VolId(0), time: Time::default(), op: Op::Heartbeat }.frame(b"").unwrap();
    r.accept(session, &[beat(1), define(2, 1 << 20)].concat()).unwrap();
    let end = r.replica.log.end();
    let e = r.accept(session, &[beat(3), define(4, 2 << 20), beat(5)].concat()).unwrap_err();
    assert!(e.kind == Kind::Refused && e.msg.contains("write size = \"2MiB\" or more"), "{e}");
    assert_eq!((r.received(), r.replica.log.end()), (Seq(2), end), "neither position nor log went on");
    r.accept(session, &[beat(3), define(4, 1 << 19)].concat()).unwrap();
    assert_eq!(r.received(), Seq(4));
}

/// G8: at the limit of the log nothing more is to be read until something is applied; then the log gives way.
#[test]
fn the_log_stays_within_its_limit() {
    let d = tempfile::tempdir().unwrap();
    let p = Place { log_bytes: 32 << 20, ..place(d.path()) };
    Replica::create(&p).unwrap();
    let r = open(&p);
    let s = r.begin_session();
    r.accept(s, &batch()).unwrap();
    let mut buf = Vec::new();
    while !r.idle() {
        r.step(&mut buf, Duration::from_millis(1));
    }
    let write = |seq: u64| {
        let op = Op::Write { at: Name::new(DirId::ROOT, "a"), off: 0, mtime: None };
        Entry { seq: Seq(seq), vol: VolId(0), time: Time::default(), op }.frame(&vec![1; 2 << 20]).unwrap()
    };
    let (mut next, mut waits) = (6, 0);
    for _ in 0..100 {
        let e = write(next);
        if r.overloaded(e.len() as u64) {
            waits += 1;
            // One at a time, as the applier does.
            r.step(&mut buf, Duration::from_millis(1));
            r.checkpoint().unwrap();
            continue;
        }
        r.accept(s, &e).unwrap();
        next += 1;
        assert!(r.replica.log.bytes() <= 32 << 20, "{} bytes", r.replica.log.bytes());
    }
    assert!(waits > 10 && next > 30, "{waits} {next}");
    assert!(r.accepts(s) && !r.accepts(s - 1));
    // What a resync stages cannot be applied before its end, so it is not made to wait for that.
    while !r.idle() {
        r.step(&mut buf, Duration::from_millis(1));
    }
    let begin = TxnBegin { id: 8, from: Seq(next - 1), base: Seq(next - 1), common: Seq(5) };
    r.accept(s, &frame::build(FrameKind::TxnBegin, &codec::encode(&begin).unwrap(), b"")).unwrap();
    assert!(!r.overloaded(64 << 20));
}

/// G9: what stands still in the applying is not hidden by words that come, also when nothing waits to be applied.
#[test]
fn g9_a_beat_is_passed_by_who_applies_and_only_behind_its_entries() {
    let d = tempfile::tempdir().unwrap();
    let p = place(d.path());
    Replica::create(&p).unwrap();
    let r = open(&p);
    let at = |sec| Time { sec, nsec: 0 };
    let session = r.begin_session();
    let accept = |seq, sec| {
        let op = Op::Create {
            at: Name::new(DirId::ROOT, format!("f{seq}")),
            kind: NodeKind::File,
            attr: Attr { mode: 0o644, ..Attr::default() },
            pmtime: Time::default(),
        };
        let e = Entry { seq: Seq(seq), vol: VolId(0), time: at(sec), op };
        r.accept(session, &e.frame(b"").unwrap()).unwrap();
    };
    let mut buf = Vec::new();
    let mut step = || {
        assert!(r.step(&mut buf, Duration::from_millis(1)));
        r.confirmed().map_or(0, |t| t.sec)
    };
    accept(1, 100);
    r.beat(Seq(1), at(105));
    assert_eq!(r.confirmed(), None, "received is not applied");
    assert_eq!((step(), step()), (100, 105));
    // Beats of an idle primary.
    r.beat(Seq(1), at(110));
    assert_eq!(r.confirmed(), Some(at(105)), "nobody applies");
    assert_eq!(step(), 110);
    // One whose entries are still to come waits for them.
    r.beat(Seq(2), at(200));
    assert_eq!(step(), 110);
    accept(2, 150);
    assert_eq!((step(), step()), (150, 200));
    // Too many are left out; the next one says it again.
    (0..100).for_each(|i| r.beat(Seq(2), at(300 + i)));
    assert_eq!(step(), 363);
    r.beat(Seq(2), at(500));
    assert_eq!(step(), 500);
    // Those of an earlier link may be of another history.
    r.beat(Seq(2), at(900));
    r.begin_session();
    assert_eq!(step(), 500);
}

/// G9: a disk that does not answer while an entry is applied shows, for as long as that lasts.
#[test]
fn g9_an_entry_that_takes_long_is_told_while_it_does() {
    let d = tempfile::tempdir().unwrap();
    let p = place(d.path());
    Replica::create(&p).unwrap();
    let r = open(&p);
    let session = r.begin_session();
    let at = Name::new(DirId::ROOT, "f");
    let attr = Attr { mode: 0o644, ..Attr::default() };
    let op = Op::Create { at, kind: NodeKind::File, attr, pmtime: Time::default() };
    let e = Entry { seq: Seq(1), vol: VolId(0), time: Time::default(), op };
    r.accept(session, &e.frame(b"").unwrap()).unwrap();
    assert_eq!(r.at_one_entry(), None);
    // Whoever applies waits for this, as it would for a disk.
    let held = r.applying.lock();
    std::thread::scope(|s| {
        let t = s.spawn(|| r.step(&mut Vec::new(), Duration::from_millis(1)));
        let long = Duration::from_millis(30);
        while r.at_one_entry().is_none_or(|d| d < long) {
            assert!(!t.is_finished());
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(held);
        assert!(t.join().unwrap());
    });
    assert_eq!((r.at_one_entry(), r.applied()), (None, Seq(1)));
}

/// G1, G5: what a drive failed to write can be read, and counts for nothing until it is written anew.
#[test]
fn what_a_drive_failed_to_sync_is_copied_anew() {
    let d = tempfile::tempdir().unwrap();
    let p = place(d.path());
    Replica::create(&p).unwrap();
    let r = open(&p);
    r.accept(r.begin_session(), &batch()).unwrap();
    finished(&r, d.path());
    r.checkpoint().unwrap();
    let before = r.replica.order().activity.at();
    r.sync_failed(&Error::os(libc::ENOSPC));
    assert!(!r.replica.unsynced(), "room that is missing is no failing drive");
    r.sync_failed(&Error::os(libc::EIO));
    assert!(r.fault().is_some());
    drop(r);
    // It is remembered, and no later sync makes it good.
    let r = open(&p);
    assert!(r.replica.unsynced() && r.fault().is_some());
    r.checkpoint().unwrap();
    assert_eq!(r.replica.order().activity.at(), before);
    // Nothing of it is trusted. It may have been cut short before, with names in the table that are not there (G8).
    for (lid, dir, name) in [(9, DirId::ROOT, "a"), (9, DirId::ROOT, "gone"), (8, DirId(99), "below what is gone")] {
        r.replica.regions[0].ids.write().put_link(crate::base::LinkId(lid), &Name::new(dir, name)).unwrap();
    }
    r.begin_copy(&Chain::default(), Seq(0)).unwrap();
    assert!(!d.path().join("region/tree/a").exists());
    assert_eq!(r.replica.regions[0].ids.read().linked_names().count(), 0);
    assert!(r.replica.unsynced());
    let epoch = Epoch { number: 1, site: "p".into(), random: 1, parent: Seq(0), over: 0 };
    r.end_copy(Seq(5), Seq(5), vec![epoch], 3).unwrap();
    assert!(!r.replica.unsynced() && r.fault().is_none());
    drop(r);
    assert!(!open(&p).replica.unsynced());
}
