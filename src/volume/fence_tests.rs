use super::*;
use crate::base::{DirId, Name};
use crate::pair::change::What;
use crate::store::exec::Before;
use proptest::prelude::*;

fn did(seq: u64) -> Did {
    let at = Name::new(DirId::ROOT, format!("f{seq}").into_bytes());
    let op = Op::Write { at, off: seq * 10, mtime: None };
    Did { seq: Seq(seq), vol: VolId(0), time: Time::default(), op, len: 10 }
}

/// Calls by their entries; each waits for its last one.
fn fence(calls: &[&[u64]]) -> Fence<usize> {
    let mut f = Fence::default();
    for (who, entries) in calls.iter().enumerate() {
        assert!(f.enter(who));
        entries.iter().for_each(|s| f.did(&who, did(*s)));
        f.waits(&who, Seq(*entries.last().unwrap()));
    }
    f
}

/// MS-6: what the sync site has is answered; of the rest the latest goes first, and nobody is answered before all is over.
#[test]
fn ms6_the_latest_is_undone_first_and_nobody_is_answered_before_all_are() {
    let mut f = fence(&[&[1], &[2, 5], &[3], &[4, 6]]);
    f.enter(9);
    assert!(f.fall(Seq(3)));
    assert_eq!([1, 3, 5, 6].map(|s| f.verdict(Seq(s))), [Verdict::Free, Verdict::Free, Verdict::Wait, Verdict::Wait]);
    assert!(!f.is_quiet() && f.is_refusing());
    f.did(&9, did(7));
    f.waits(&9, Seq(7));
    assert!(f.is_quiet());
    f.undo();
    for last in [7, 6, 5] {
        assert_eq!(f.verdict(Seq(last)), Verdict::Undo);
        let others: Vec<u64> = [5, 6, 7].into_iter().filter(|l| *l != last).collect();
        assert!(others.iter().all(|l| f.verdict(Seq(*l)) == Verdict::Wait), "{last}");
        f.undoing(Seq(last));
        assert_eq!(f.verdict(Seq(last)), Verdict::Wait);
        assert!(!f.is_undone());
        f.undone(Seq(last), last != 6);
        assert_eq!(f.verdict(Seq(last)), Verdict::Wait);
    }
    assert!(f.is_undone() && f.is_refusing());
    // Entry 2 is of a refused call, but the sync site has it for certain; 4 and 6 could not be undone.
    let r = f.report(Seq(5));
    let list: Vec<(u64, bool)> = r.doubts.iter().map(|(d, undone)| (d.seq.0, *undone)).collect();
    assert_eq!((r.calls, list), (3, vec![(4, false), (5, true), (6, false)]));
    f.over(Seq(12));
    assert!([5, 6, 7].iter().all(|l| f.verdict(Seq(*l)) == Verdict::Refuse) && f.is_busy());
    // An fsync that waited for something later.
    assert_eq!(f.verdict(Seq(8)), Verdict::Refuse);
    [5, 6, 7].iter().for_each(|l| f.answered(Seq(*l)));
    assert!(!f.is_busy());
    assert!(f.in_gap(Seq(3)) && f.in_gap(Seq(11)) && !f.in_gap(Seq(2)) && !f.in_gap(Seq(12)));
    assert!(!f.is_inside(Seq(3)) && f.is_inside(Seq(4)) && f.is_inside(Seq(11)) && !f.is_inside(Seq(12)));
    // What begins later is none of it: the operator opened the fence.
    f.enter(10);
    f.waits(&10, Seq(20));
    assert_eq!((f.verdict(Seq(20)), f.verdict(Seq(21))), (Verdict::Free, Verdict::Free));
    f.answered(Seq(20));
    f.forget_gaps(Seq(12));
    assert!(!f.in_gap(Seq(3)));
}

/// A second pair that is lost meanwhile, and a call that comes late because its disk hung.
#[test]
fn ms6_a_second_loss_and_a_late_call() {
    let mut f = fence(&[&[1], &[2], &[3]]);
    f.enter(9);
    f.did(&9, did(4));
    assert!(f.fall(Seq(2)) && !f.fall(Seq(1)));
    f.undo();
    for last in [3, 2] {
        assert_eq!(f.verdict(Seq(last)), Verdict::Undo);
        f.undone(Seq(last), true);
    }
    let late: Vec<u64> = f.report(Seq(4)).doubts.iter().filter(|(_, undone)| !undone).map(|(d, _)| d.seq.0).collect();
    assert_eq!(late, [4]);
    f.over(Seq(6));
    f.answered(Seq(2));
    f.answered(Seq(3));
    f.waits(&9, Seq(4));
    assert!(f.is_busy());
    assert_eq!(f.verdict(Seq(4)), Verdict::Undo);
    f.undone(Seq(4), true);
    assert_eq!(f.verdict(Seq(4)), Verdict::Refuse);
    f.answered(Seq(4));
    assert!(!f.is_busy());
    assert!(f.fall(Seq(10)), "the next loss is one of its own");
}

#[test]
fn ms6_what_has_an_inverse_and_what_has_not() {
    let name = |n: &str| Name::new(DirId::ROOT, n.as_bytes().to_vec());
    let t = |s| Time { sec: s, nsec: 0 };
    let file = Before { ino: 7, what: What::File, nlink: 1, cost: 0 };
    let rename = |flags| Op::Rename {
        from: name("a"),
        to: name("b"),
        flags,
        from_pmtime: Time::default(),
        to_pmtime: Time::default(),
    };
    let over = Pre { first: Some(file), second: Some(file) };
    let free = Pre { first: Some(file), second: None };
    let back = |flags| Op::Rename { from: name("b"), to: name("a"), flags, from_pmtime: t(2), to_pmtime: t(1) };
    assert_eq!(inverse(&rename(0), &free, [t(1), t(2)]), Some(back(RENAME_NOREPLACE)));
    assert_eq!(inverse(&rename(RENAME_EXCHANGE), &over, [t(1), t(2)]), Some(back(RENAME_EXCHANGE)));
    assert_eq!(inverse(&rename(0), &over, [t(1), t(2)]), None);
    let unlink = Op::Unlink { at: name("a"), pmtime: t(0) };
    assert_eq!(inverse(&unlink, &free, [t(1), t(1)]), None);
    let mkdir = Op::Mkdir { at: name("d"), id: DirId(99), attr: Default::default(), pmtime: t(0) };
    let rmdir = Op::Rmdir { at: name("d"), id: DirId(99), pmtime: t(1) };
    assert_eq!(inverse(&mkdir, &Pre::default(), [t(1), t(1)]), Some(rmdir));
}

proptest! {
    /// Whatever is under way when the sync site is lost, and in whatever order its threads look: each call is undone once
    /// if it is after the cut, and never else; each before every earlier one; all are answered in the end.
    #[test]
    fn ms6_each_refused_call_is_undone_once_in_reverse(
        ends in proptest::collection::btree_set(1u64..60, 1..20),
        open in 0usize..4,
        cut in 0u64..60,
        looks in proptest::collection::vec(0usize..64, 0..400),
    ) {
        let ends: Vec<u64> = ends.into_iter().collect();
        let calls: Vec<Vec<u64>> = ends.iter().map(|e| vec![*e]).collect();
        let mut f = fence(&calls.iter().map(Vec::as_slice).collect::<Vec<_>>());
        (100..100 + open).for_each(|k| { f.enter(k); });
        f.fall(Seq(cut));
        let mut ends = ends;
        for k in 0..open {
            prop_assert!(!f.is_quiet());
            f.did(&(100 + k), did(100 + k as u64));
            f.waits(&(100 + k), Seq(100 + k as u64));
            ends.push(100 + k as u64);
        }
        f.undo();
        let (mut undone, mut answered) = (Vec::new(), Vec::new());
        // At random first, then everybody in turn until nothing is left to do.
        let n = ends.len();
        for i in looks.into_iter().map(|i| i % n).chain((0..n * n).map(|i| i % n)) {
            let last = ends[i];
            match f.verdict(Seq(last)) {
                Verdict::Undo => { undone.push(last); f.undone(Seq(last), true); }
                Verdict::Refuse => prop_assert!(false, "answered before all was over"),
                Verdict::Free => prop_assert!(last <= cut),
                Verdict::Wait => prop_assert!(last > cut),
            }
        }
        prop_assert!(f.is_undone());
        let want: Vec<u64> = ends.iter().rev().copied().filter(|e| *e > cut).collect();
        prop_assert_eq!(undone, want);
        f.over(Seq(300));
        for e in &ends {
            match f.verdict(Seq(*e)) {
                Verdict::Refuse => { prop_assert!(*e > cut); answered.push(*e) }
                Verdict::Free => prop_assert!(*e <= cut),
                v => prop_assert!(false, "{v:?}"),
            }
            f.answered(Seq(*e));
        }
        prop_assert!(!f.is_busy());
    }
}
