//! The journal's files: what is found again, and what is torn.

use super::*;
use crate::base::DirId;

fn n(s: &str) -> Name {
    Name::new(DirId::ROOT, s)
}

#[test]
fn marks_once_per_interval_and_again_after_the_name_changed_hands() {
    let d = tempfile::tempdir().unwrap();
    let mut j = Journal::open(d.path(), Seq(0), 1 << 30).unwrap();
    let v = VolId(0);
    for s in 1..100 {
        j.data(Seq(s), v, &n("a"), What::File, 10, 20).unwrap();
    }
    assert_eq!(j.since(Seq(0)).unwrap().len(), 1);
    j.names(Seq(100), v, NsChange::Unlink { at: n("a"), what: What::File }).unwrap();
    j.names(Seq(101), v, NsChange::Create { at: n("a") }).unwrap();
    j.data(Seq(102), v, &n("a"), What::File, 10, 20).unwrap();
    assert_eq!(j.since(Seq(0)).unwrap().len(), 4);
    j.rotate(Seq(102)).unwrap();
    j.data(Seq(103), v, &n("a"), What::File, 10, 20).unwrap();
    assert_eq!(j.since(Seq(102)).unwrap().len(), 1);
    assert_eq!(j.since(Seq(101)).unwrap().len(), 5);
    drop(j);
    let mut j = Journal::open(d.path(), Seq(103), 1 << 30).unwrap();
    assert_eq!(j.since(Seq(0)).unwrap().len(), 5);
    assert_eq!(j.last_ns(), Seq(101));
    j.trim(Seq(102)).unwrap();
    assert_eq!(j.begins_after(), Seq(102));
    assert!(j.since(Seq(101)).is_err());
}

#[test]
fn a_mark_that_a_crash_left_without_an_entry_is_found_from_the_last_position() {
    let d = tempfile::tempdir().unwrap();
    let mut j = Journal::open(d.path(), Seq(0), 1 << 30).unwrap();
    j.names(Seq(5), VolId(0), NsChange::Create { at: n("a") }).unwrap();
    j.rotate(Seq(5)).unwrap();
    // Entry 6 was to follow.
    j.data(Seq(6), VolId(0), &n("a"), What::File, 0, 10).unwrap();
    drop(j);
    let mut j = Journal::open(d.path(), Seq(5), 1 << 30).unwrap();
    assert_eq!(j.since(Seq(5)).unwrap().len(), 1);
    // In the middle of an interval it is found from the position before.
    j.names(Seq(6), VolId(0), NsChange::Create { at: n("b") }).unwrap();
    j.data(Seq(7), VolId(0), &n("b"), What::File, 0, 10).unwrap();
    drop(j);
    let j = Journal::open(d.path(), Seq(6), 1 << 30).unwrap();
    assert_eq!((j.since(Seq(6)).unwrap().len(), j.since(Seq(5)).unwrap().len()), (0, 3));
}

/// A thousand files, then a peer is lost that has them; of what came after it only that is looked at, wherever it was
/// marked, and earlier positions still get each change of names once.
#[test]
fn g4_who_is_lost_in_the_middle_of_an_interval_does_not_look_at_all_of_it() {
    let d = tempfile::tempdir().unwrap();
    let mut j = Journal::open(d.path(), Seq(0), 1 << 30).unwrap();
    let v = VolId(0);
    let file = |s: u64| n(&format!("f{s}"));
    for s in 1..=1000 {
        j.names(Seq(s), v, NsChange::Create { at: file(s) }).unwrap();
        j.data(Seq(s), v, &file(s), What::File, 0, 10).unwrap();
    }
    j.data(Seq(1001), v, &file(7), What::File, 0, 10).unwrap(); // spared
    let moved = NsChange::Rename { from: file(7), to: n("r"), moved: What::File, over: None, exchange: false };
    j.names(Seq(1002), v, moved.clone()).unwrap();
    j.data(Seq(1003), v, &n("r"), What::File, 0, 10).unwrap();
    let whole = j.since(Seq(0)).unwrap();
    assert_eq!(whole.len(), 2002);
    j.split(Seq(1000), Seq(1003)).unwrap();
    let mark = |s, at| Rec { seq: Seq(s), vol: v, change: Change::Data { at, what: What::File, from: 0, to: 65536 } };
    let after = [mark(1001, file(7)), Rec { seq: Seq(1002), vol: v, change: Change::Ns(moved) }, mark(1003, n("r"))];
    assert_eq!(j.since(Seq(1000)).unwrap(), after);
    // Another peer, which had a little more, and one that had less.
    j.split(Seq(1001), Seq(1003)).unwrap();
    assert_eq!(j.since(Seq(1001)).unwrap(), after[1..]);
    j.split(Seq(999), Seq(1003)).unwrap();
    assert_eq!(j.since(Seq(999)).unwrap().len(), 5);
    assert!(!j.split(Seq(999), Seq(1003)).unwrap());
    // What is marked there is spared, what comes is not.
    j.data(Seq(1004), v, &n("r"), What::File, 0, 10).unwrap();
    j.data(Seq(1005), v, &file(8), What::File, 0, 10).unwrap();
    let (all, late) = (j.since(Seq(0)).unwrap(), j.since(Seq(1002)).unwrap());
    assert_eq!(all[..2002], whole[..]);
    assert_eq!((all.len(), late.last()), (2003, Some(&mark(1005, file(8)))));
    drop(j);
    let mut j = Journal::open(d.path(), Seq(1005), 1 << 30).unwrap();
    assert_eq!((j.since(Seq(0)).unwrap(), j.since(Seq(1002)).unwrap()), (all, late));
    // Too long ago for what is in memory: as ever.
    j.split(Seq(1004), Seq(1005)).unwrap();
    assert_eq!(j.since(Seq(1005)).unwrap().len(), 0);
}

/// An interval whose repeated records are not all there holds nothing: those before it have them.
#[test]
fn g4_an_interval_that_was_torn_while_it_was_made_is_not_there() {
    let d = tempfile::tempdir().unwrap();
    let mut j = Journal::open(d.path(), Seq(0), 1 << 30).unwrap();
    for s in 1..=10 {
        j.names(Seq(s), VolId(0), NsChange::Create { at: n(&format!("f{s}")) }).unwrap();
    }
    j.split(Seq(5), Seq(10)).unwrap();
    let path = j.intervals[1].path.clone();
    drop(j);
    let bytes = std::fs::read(&path).unwrap();
    for len in 0..bytes.len() {
        std::fs::write(&path, &bytes[..len]).unwrap();
        let j = Journal::open(d.path(), Seq(10), 1 << 30).unwrap();
        assert_eq!(j.since(Seq(5)).unwrap().len(), 10, "{len} of {} bytes", bytes.len());
        let last = j.intervals.last().unwrap().path.clone();
        drop(j);
        std::fs::remove_file(last).unwrap();
    }
    std::fs::write(&path, &bytes).unwrap();
    let j = Journal::open(d.path(), Seq(10), 1 << 30).unwrap();
    assert_eq!(j.since(Seq(5)).unwrap().len(), 5);
}

/// Each name once, each byte once, and nothing from before.
#[test]
fn what_is_marked_is_counted_without_the_lock() {
    let d = tempfile::tempdir().unwrap();
    let mut j = Journal::open(d.path(), Seq(0), 1 << 30).unwrap();
    let g = limits::MARK_GRANULE_BYTES;
    j.data(Seq(1), VolId(0), &n("before"), What::File, 0, 1).unwrap();
    for s in [2, 3] {
        j.data(Seq(s), VolId(0), &n("a"), What::File, 0, g + 1).unwrap();
        j.data(Seq(s), VolId(0), &n("b"), What::File, 5 * g, u64::MAX).unwrap();
        j.attr(Seq(s), VolId(0), &Target::File(n("a")), What::File).unwrap();
        j.names(Seq(s), VolId(0), NsChange::Create { at: n("c") }).unwrap();
        j.rotate(Seq(s)).unwrap();
    }
    let files = j.files_since(Seq(1));
    assert_eq!(changed(&files, Seq(1)), Changed { files: 3, bytes: 3 * g });
    j.trim(Seq(2)).unwrap();
    assert_eq!(changed(&files, Seq(1)), Changed { files: 3, bytes: 3 * g });
    assert_eq!(changed(&j.files_since(Seq(3)), Seq(3)), Changed::default());
}

#[test]
fn torn_tail_loses_only_the_torn_record() {
    let d = tempfile::tempdir().unwrap();
    let mut j = Journal::open(d.path(), Seq(0), 1 << 30).unwrap();
    j.attr(Seq(1), VolId(0), &Target::File(n("a")), What::File).unwrap();
    j.attr(Seq(2), VolId(0), &Target::File(n("b")), What::File).unwrap();
    let p = j.intervals[0].path.clone();
    drop(j);
    let b = std::fs::read(&p).unwrap();
    std::fs::write(&p, &b[..b.len() - 1]).unwrap();
    let j = Journal::open(d.path(), Seq(2), 1 << 30).unwrap();
    assert_eq!(j.since(Seq(0)).unwrap().len(), 1);
}
