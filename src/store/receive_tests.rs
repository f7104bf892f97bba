//! A receiver that is killed between two steps of a roll forward.

use super::*;
use crate::base::{DirId, Name, VolId, time::Time};
use crate::format::op::{Attr, NodeKind};
use crate::store::replica::Place;

fn place(dir: &std::path::Path) -> Place {
    Place { group: "g".into(), volumes: vec![("v".into(), dir.join("region"))], journal_bytes: 1 << 20 }
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
    let epoch = Epoch { number: 1, site: "p".into(), random: 1, parent: Seq(0) };
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
