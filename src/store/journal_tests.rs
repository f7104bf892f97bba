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

/// Two peers are lost, at positions the later of which the interval before began at: what was marked since is told, though
/// it was spared for a mark that is only repeated.
#[test]
fn g5_what_a_repeated_mark_spared_is_told_from_every_position() {
    let d = tempfile::tempdir().unwrap();
    let mut j = Journal::open(d.path(), Seq(0), 1 << 30).unwrap();
    let v = VolId(0);
    let made = |s: &str| NsChange::Create { at: n(s) };
    j.names(Seq(1), v, made("a")).unwrap();
    j.data(Seq(2), v, &n("a"), What::File, 0, 10).unwrap();
    j.names(Seq(3), v, made("b")).unwrap();
    j.rotate(Seq(3)).unwrap();
    j.split(Seq(1), Seq(3)).unwrap();
    j.data(Seq(4), v, &n("a"), What::File, 0, 10).unwrap(); // spared
    j.rotate(Seq(4)).unwrap();
    j.split(Seq(3), Seq(4)).unwrap();
    j.data(Seq(5), v, &n("a"), What::File, 0, 10).unwrap(); // spared
    let mark = Rec { seq: Seq(4), vol: v, change: Change::Data { at: n("a"), what: What::File, from: 0, to: 65536 } };
    assert_eq!(j.since(Seq(3)).unwrap(), [mark]);
    assert_eq!(j.since(Seq(1)).unwrap().len(), 2);
}

mod any_order {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Do {
        Mark(u8),
        Rename(u8, u8),
        Rotate,
        /// A peer is lost that has everything but so many entries.
        Split(u64),
    }

    fn step() -> impl Strategy<Value = Do> {
        prop_oneof![
            4 => (0u8..3).prop_map(Do::Mark),
            2 => (0u8..3, 0u8..3).prop_map(|(a, b)| Do::Rename(a, b)),
            1 => Just(Do::Rotate),
            2 => (0u64..6).prop_map(Do::Split),
        ]
    }

    fn name(i: u8) -> Name {
        n(&format!("f{i}"))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

        /// From whatever position: each change of names once, in order, and each file that was marked since has a mark there
        /// under the name that it had.
        #[test]
        fn g5_from_every_position_all_that_changed_since_is_told(steps in prop::collection::vec(step(), 1..40)) {
            let d = tempfile::tempdir().unwrap();
            let mut j = Journal::open(d.path(), Seq(0), 1 << 30).unwrap();
            let v = VolId(0);
            let mut did: Vec<Rec> = Vec::new();
            for s in steps {
                let last = Seq(did.len() as u64);
                let next = last.next();
                match s {
                    Do::Mark(i) => {
                        // Before the change, and with its place in the order.
                        for _ in 0..2 {
                            j.data(next, v, &name(i), What::File, 0, 10).unwrap();
                        }
                        let change = Change::Data { at: name(i), what: What::File, from: 0, to: 65536 };
                        did.push(Rec { seq: next, vol: v, change });
                    }
                    Do::Rename(a, b) => {
                        let (from, to) = (name(a), name(b));
                        let ns = NsChange::Rename { from, to, moved: What::File, over: Some(What::File), exchange: true };
                        j.names(next, v, ns.clone()).unwrap();
                        did.push(Rec { seq: next, vol: v, change: Change::Ns(ns) });
                    }
                    Do::Rotate => drop(j.rotate(last).unwrap()),
                    Do::Split(back) => drop(j.split(Seq(last.0.saturating_sub(back)), last).unwrap()),
                }
            }
            for p in 0..=did.len() {
                let told = j.since(Seq(p as u64)).unwrap();
                let names = |r: &&Rec| matches!(r.change, Change::Ns(_));
                let ns: Vec<&Rec> = told.iter().filter(names).collect();
                let from = did.len() - did.iter().rev().take_while(|r| ns.first().is_some_and(|f| f.seq <= r.seq)).count();
                prop_assert_eq!(&ns, &did[from..].iter().filter(names).collect::<Vec<_>>(), "since {}", p);
                prop_assert!(did[p..from.max(p)].iter().all(|r| !names(&r)), "since {p}: names are missing");
                for r in &did[p..] {
                    let Change::Data { at, .. } = &r.change else { continue };
                    let about = |c: &Rec| matches!(&c.change, Change::Ns(n) if n.names().contains(&Some(at)));
                    // Records between the last change of this name before the mark and the next one after it.
                    let begin = told.iter().rposition(|c| about(c) && c.seq <= r.seq).map_or(0, |i| i + 1);
                    let end = told.iter().position(|c| about(c) && c.seq > r.seq).unwrap_or(told.len());
                    let is = told[begin..end].iter().any(|c| c.change == r.change);
                    prop_assert!(is, "since {p}: no mark for entry {} at {at:?} in {told:?}", r.seq.0);
                }
            }
        }
    }
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
