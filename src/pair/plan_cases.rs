//! The hard cases by name, each small enough to read, with the cost it may have.

use super::super::{Counts, Extent, Input, Links, Plan, Step, plan};
use super::Pair;
use super::model::{Ent, VOL, World};
use crate::base::{DirId, Kind, LinkId, Name, Seq, VolId};
use crate::format::op::Target;
use crate::pair::change::{Change, NsChange, Rec, What};
use proptest::prelude::*;

const R: DirId = DirId::ROOT;

fn n(dir: DirId, name: &str) -> Name {
    Name::new(dir, name)
}

type Made = Vec<(Change, Option<u64>)>;

fn create(w: &mut World, at: Name) -> Made {
    let f = w.add_file(&at);
    let mut out = vec![(Change::Ns(NsChange::Create { at: at.clone() }), None)];
    out.extend(w.write(at, f, 0, 7));
    out
}

fn mkdir(w: &mut World, at: Name, id: u64) -> Made {
    w.add_dir(&at, DirId(id));
    vec![(Change::Ns(NsChange::Mkdir { at, id: DirId(id) }), None)]
}

fn link(w: &mut World, from: Name, to: Name) -> Made {
    let lid = w.add_link(&from, &to);
    vec![(Change::Ns(NsChange::Link { from, to, lid }), None)]
}

fn remove(w: &mut World, at: Name) -> Made {
    vec![(w.unlink(at), None)]
}

fn rename(w: &mut World, from: Name, to: Name) -> Made {
    let e = w.names[&from];
    let out = w.rename(from, e, to);
    assert!(!out.is_empty(), "the case does not do what it says");
    out
}

fn write(w: &mut World, at: Name, pos: u8) -> Made {
    let Ent::File(f) = w.names[&at] else { panic!("not a file") };
    w.write(at, f, pos, 99)
}

/// Both sides with directories 100 = `d`, 101 = `d/e`, and files `a`, `b`, `c`, `d/x`, `d/e/y`; then the changes.
fn case(source: impl FnOnce(&mut dyn FnMut(Op)), target: impl FnOnce(&mut dyn FnMut(Op))) -> Plan {
    let mut p = Pair::new(&[], &[], &[], &[], 0);
    let (d, e) = (DirId(100), DirId(101));
    let mut w = World::new();
    mkdir(&mut w, n(R, "d"), 100);
    mkdir(&mut w, n(d, "e"), 101);
    for at in [n(R, "a"), n(R, "b"), n(R, "c"), n(d, "x"), n(e, "y")] {
        create(&mut w, at);
    }
    (p.at_common, p.s, p.t) = (w.clone(), w.clone(), w);
    p.t.next += 1_000_000;
    p.t.clock += 1_000_000;
    source(&mut |op| p.change_source(op));
    target(&mut |op| p.change_target(op));
    p.check()
}

type Op<'a> = &'a dyn Fn(&mut World) -> Made;

impl Pair {
    fn change_source(&mut self, op: Op) {
        for (c, f) in op(&mut self.s) {
            self.s_head = self.s_head.next();
            self.sj.add(self.s_head, &c, f);
        }
    }

    fn change_target(&mut self, op: Op) {
        for (c, f) in op(&mut self.t) {
            self.t_head = self.t_head.next();
            self.tj.add(self.t_head, &c, f);
        }
    }
}

fn nothing(_: &mut dyn FnMut(Op)) {}

#[test]
fn a_renamed_file_costs_one_rename_and_no_content() {
    let p = case(|s| s(&|w| rename(w, n(R, "a"), n(DirId(101), "z"))), nothing);
    assert_eq!(p.counts, Counts { renames: 1, ..Counts::default() });
    assert_eq!((p.ns.len(), p.content.len()), (2, 0));
    assert_eq!(p.dirs, [(VOL, R), (VOL, DirId(101))]);
}

#[test]
fn a_renamed_directory_costs_one_rename_whatever_it_holds() {
    let p = case(|s| s(&|w| rename(w, n(R, "d"), n(R, "D"))), nothing);
    assert_eq!(p.counts, Counts { renames: 1, ..Counts::default() });
    assert_eq!(p.dirs, [(VOL, R)]);
}

#[test]
fn away_and_back_costs_nothing() {
    let p = case(
        |s| {
            s(&|w| rename(w, n(R, "a"), n(R, "q")));
            s(&|w| rename(w, n(R, "d"), n(R, "a")));
            s(&|w| rename(w, n(R, "a"), n(R, "d")));
            s(&|w| rename(w, n(R, "q"), n(R, "a")));
        },
        nothing,
    );
    assert_eq!((p.counts, p.ns.len()), (Counts::default(), 0));
}

#[test]
fn a_cycle_and_an_exchange() {
    let p = case(
        |s| {
            for (from, to) in [("a", "t"), ("b", "a"), ("c", "b"), ("t", "c")] {
                s(&|w| rename(w, n(R, from), n(R, to)));
            }
        },
        nothing,
    );
    assert_eq!(p.counts, Counts { renames: 3, ..Counts::default() });
    let p = case(|s| s(&|w| w.exchange_names(n(R, "a"), n(DirId(100), "e"))), nothing);
    assert_eq!(p.counts, Counts { renames: 2, ..Counts::default() });
}

#[test]
fn a_directory_goes_below_its_own_child() {
    let p = case(
        |s| {
            s(&|w| rename(w, n(DirId(100), "e"), n(R, "e")));
            s(&|w| rename(w, n(R, "d"), n(DirId(101), "d")));
        },
        nothing,
    );
    assert_eq!(p.counts, Counts { renames: 2, ..Counts::default() });
}

#[test]
fn saved_by_an_editor() {
    let p = case(
        |s| {
            s(&|w| create(w, n(R, "tmp")));
            s(&|w| rename(w, n(R, "tmp"), n(R, "a")));
        },
        nothing,
    );
    assert_eq!(p.counts, Counts { files_made: 1, discarded: 1, files_examined: 1, ..Counts::default() });
}

#[test]
fn the_same_name_many_times() {
    let p = case(
        |s| {
            for _ in 0..50 {
                s(&|w| remove(w, n(R, "a")));
                s(&|w| create(w, n(R, "a")));
            }
        },
        nothing,
    );
    assert_eq!(p.counts, Counts { files_made: 1, discarded: 1, files_examined: 1, ..Counts::default() });
}

#[test]
fn the_same_names_made_anew_on_both_sides() {
    let again = |at: fn() -> Name| {
        move |side: &mut dyn FnMut(Op)| {
            side(&|w| remove(w, at()));
            side(&|w| create(w, at()));
            side(&|w| create(w, n(R, "new")));
        }
    };
    let p = case(again(|| n(R, "a")), again(|| n(R, "a")));
    assert_eq!(p.counts, Counts { files_made: 2, discarded: 2, kept: 2, files_examined: 2, ..Counts::default() });
}

#[test]
fn a_tree_that_the_target_removed_comes_back_whole() {
    let (d, e) = (DirId(100), DirId(101));
    let p = case(
        |s| s(&|w| rename(w, n(d, "x"), n(d, "renamed"))),
        |t| {
            t(&|w| remove(w, n(e, "y")));
            t(&|w| remove(w, n(d, "e")));
            t(&|w| remove(w, n(d, "x")));
            t(&|w| remove(w, n(R, "d")));
        },
    );
    assert_eq!(p.counts, Counts { dirs_made: 2, files_made: 2, files_examined: 2, ..Counts::default() });
    assert!(p.content.iter().all(|c| c.extent == Extent::Whole && c.target_now.is_none()));
    assert!(p.content.iter().any(|c| c.source == n(d, "renamed")));
    assert_eq!(p.dirs, [(VOL, R), (VOL, d), (VOL, e)]);
}

#[test]
fn a_directory_of_the_target_alone_goes_and_its_files_are_kept() {
    let p = case(nothing, |t| {
        t(&|w| mkdir(w, n(R, "mine"), 200));
        t(&|w| create(w, n(DirId(200), "f")));
        t(&|w| rename(w, n(R, "a"), n(DirId(200), "a")));
    });
    assert_eq!(p.counts, Counts { renames: 1, discarded: 2, kept: 1, ..Counts::default() });
}

#[test]
fn removed_on_both_sides() {
    let gone = |side: &mut dyn FnMut(Op)| {
        side(&|w| remove(w, n(DirId(101), "y")));
        side(&|w| remove(w, n(DirId(100), "e")));
    };
    let p = case(gone, gone);
    assert_eq!((p.ns.len(), p.content.len()), (0, 0));
}

#[test]
fn links_come_and_go_on_either_side() {
    let p = case(|s| s(&|w| link(w, n(R, "a"), n(R, "a2"))), |t| t(&|w| link(w, n(R, "a"), n(R, "a3"))));
    assert_eq!(p.counts, Counts { links_made: 1, names_dropped: 1, ..Counts::default() });
    // A write through a name that only the target had reaches the object.
    let p = case(
        |s| s(&|w| rename(w, n(R, "a"), n(R, "moved"))),
        |t| {
            t(&|w| link(w, n(R, "a"), n(R, "other")));
            t(&|w| write(w, n(R, "other"), 3));
        },
    );
    assert_eq!(p.counts, Counts { renames: 1, names_dropped: 1, files_examined: 1, ..Counts::default() });
    assert!(p.content[0].lost.is_some());
}

#[test]
fn both_wrote_one_file_which_the_source_moved() {
    let p = case(
        |s| {
            s(&|w| write(w, n(R, "b"), 1));
            s(&|w| rename(w, n(R, "b"), n(DirId(100), "b")));
        },
        |t| t(&|w| write(w, n(R, "b"), 5)),
    );
    let c = &p.content[0];
    assert_eq!(p.content.len(), 1);
    assert_eq!((&c.source, &c.target_after), (&n(DirId(100), "b"), &n(DirId(100), "b")));
    assert_eq!(c.target_now, Some(n(R, "b")));
    assert_eq!(c.extent, Extent::Ranges([(1, 2), (5, 6)].into_iter().collect()));
    assert!(c.lost.is_some() && c.attrs);
}

fn rec(seq: u64, vol: u16, change: Change) -> Rec {
    Rec { seq: Seq(seq), vol: VolId(vol), change }
}

fn ns(seq: u64, c: NsChange) -> Rec {
    rec(seq, 0, Change::Ns(c))
}

fn data(seq: u64, name: &str, what: What) -> Rec {
    rec(seq, 0, Change::Data { at: n(R, name), what, from: 0, to: 1 })
}

fn planned(source: &[Rec], target: &[Rec]) -> crate::base::Result<Plan> {
    let links = Links::new();
    let (common, agreed, target_head) = (Seq(10), Seq(10), Seq(10));
    plan(&Input { source, target, common, agreed, target_head, source_links: &links, target_links: &links })
}

#[test]
fn a_mark_from_before_the_common_point_follows_its_file() {
    let moved = NsChange::Rename { from: n(R, "a"), to: n(R, "b"), moved: What::File, over: None, exchange: false };
    let p = planned(&[data(5, "a", What::File), ns(7, moved)], &[]).unwrap();
    assert_eq!((p.content.len(), &p.content[0].source), (1, &n(R, "b")));
    assert!(p.ns.is_empty() && p.dirs.is_empty());
    let gone = NsChange::Unlink { at: n(R, "a"), what: What::File };
    assert!(planned(&[data(5, "a", What::File), ns(7, gone)], &[]).unwrap().is_empty());
}

#[test]
fn a_mark_by_a_name_that_is_gone_reaches_the_other_links() {
    let what = What::Linked(LinkId(77));
    let source = [ns(11, NsChange::Unlink { at: n(R, "a"), what }), data(12, "a", what)];
    let links: Links = [((VOL, LinkId(77)), vec![n(R, "b")])].into();
    let both: Links = [((VOL, LinkId(77)), vec![n(R, "a"), n(R, "b")])].into();
    let (common, agreed, target_head) = (Seq(10), Seq(10), Seq(10));
    let input =
        Input { source: &source, target: &[], common, agreed, target_head, source_links: &links, target_links: &both };
    let p = plan(&input).unwrap();
    assert_eq!(p.ns, [Step::DropName { vol: VOL, at: n(R, "a") }]);
    assert_eq!((p.content.len(), &p.content[0].source), (1, &n(R, "b")));
    // Of a file with one name: a write that met its unlink.
    let gone = NsChange::Unlink { at: n(R, "a"), what: What::File };
    let p = planned(&[ns(11, gone), data(12, "a", What::File)], &[]).unwrap();
    assert_eq!(p.counts, Counts { discarded: 1, ..Counts::default() });
}

#[test]
fn volumes_do_not_mix() {
    let made = |vol| rec(11, vol, Change::Ns(NsChange::Create { at: n(R, "same") }));
    let p = planned(&[made(0), made(1)], &[]).unwrap();
    assert_eq!(p.counts.files_made, 2);
    assert_eq!(p.dirs, [(VolId(0), R), (VolId(1), R)]);
}

#[test]
fn a_directory_with_changed_attributes_is_listed_unless_it_is_gone() {
    let id = DirId(50);
    let attr = |seq| rec(seq, 0, Change::Attr { at: Target::Dir(id), what: What::Dir(id) });
    assert_eq!(planned(&[], &[attr(5)]).unwrap().dirs, [(VOL, id)]);
    let gone = ns(12, NsChange::Rmdir { at: n(R, "d"), id });
    assert_eq!(planned(&[attr(11), gone], &[]).unwrap().dirs, [(VOL, R)]);
}

#[test]
fn a_journal_that_cannot_be_true_is_refused() {
    let create = |seq, name: &str| ns(seq, NsChange::Create { at: n(R, name) });
    let unlink = |seq, name: &str| ns(seq, NsChange::Unlink { at: n(R, name), what: What::File });
    let mkdir = |seq, name: &str, id| ns(seq, NsChange::Mkdir { at: n(R, name), id: DirId(id) });
    let bad: Vec<(Vec<Rec>, Vec<Rec>)> = vec![
        (vec![create(11, "a"), create(12, "a")], vec![]),
        (vec![unlink(11, "a"), unlink(12, "a")], vec![]),
        (vec![create(11, "a"), unlink(9, "a")], vec![]),
        (vec![mkdir(11, "a", 50), mkdir(12, "b", 50)], vec![]),
        (vec![mkdir(11, "a", 50), unlink(12, "a")], vec![]),
        (vec![mkdir(11, "a", 1)], vec![]),
        (vec![create(11, "..")], vec![]),
        (vec![create(11, "x/y")], vec![]),
        (vec![data(11, "", What::File)], vec![]),
        (vec![create(11, "a")], vec![unlink(11, "a")]),
        (vec![ns(11, NsChange::Rmdir { at: n(R, "a"), id: DirId(50) })], vec![unlink(11, "a")]),
    ];
    for (source, target) in bad {
        for (s, t) in [(&source, &target), (&target, &source)] {
            assert_eq!(planned(s, t).unwrap_err().kind, Kind::Corrupt, "{s:?} {t:?}");
        }
    }
}

#[test]
fn a_plan_that_reaches_outside_is_refused() {
    let good = n(R, "a");
    let bad = [n(R, ".."), n(R, "a/b"), n(R, ""), n(DirId::LOST, "a"), n(DirId::STAGING, "a")];
    for b in bad {
        let (vol, lid) = (VOL, LinkId(1));
        let parked = n(DirId::STAGING, "r0.1");
        for step in [
            Step::Park { vol, from: b.clone(), parked: parked.clone() },
            Step::Park { vol, from: good.clone(), parked: good.clone() },
            Step::DropName { vol, at: b.clone() },
            Step::MakeDir { vol, id: DirId(3), parked: parked.clone() },
            Step::MakeFile { vol, source: b.clone(), parked: parked.clone() },
            Step::Place { vol, parked: parked.clone(), to: b.clone() },
            Step::LinkMore { vol, from: good.clone(), to: b.clone(), lid },
            Step::Discard { vol, parked: good.clone(), what: What::File, keep: None },
        ] {
            assert!(Plan { ns: vec![step], ..Plan::default() }.validate().is_err());
        }
    }
    assert!(Plan { dirs: vec![(VOL, DirId::LOST)], ..Plan::default() }.validate().is_err());
}

#[test]
fn what_a_resync_did_at_the_source_is_planned_like_anything_else() {
    let (st, lost) = (|name| n(DirId::STAGING, name), |name| n(DirId::LOST, name));
    let mv = |from: Name, to: Name| NsChange::Rename { from, to, moved: What::File, over: None, exchange: false };
    let did = [
        mv(n(R, "a"), st("r0.1")),
        mv(n(R, "c"), st("r0.2")),
        mv(st("r0.2"), lost("c")),
        NsChange::Create { at: st("r0.3") },
        mv(st("r0.3"), n(R, "a")),
        mv(st("r0.1"), n(R, "b")),
    ];
    let p = planned(&did.map(|c| ns(11, c)), &[]).unwrap();
    assert_eq!(p.counts, Counts { renames: 1, files_made: 1, files_examined: 1, discarded: 1, ..Counts::default() });
    assert_eq!(p.dirs, [(VOL, R)]);
    p.validate().unwrap();
}

fn any_what() -> impl Strategy<Value = What> {
    prop_oneof![
        Just(What::File),
        (16u64..19).prop_map(|d| What::Dir(DirId(d))),
        (1u64..3).prop_map(|l| What::Linked(LinkId(l)))
    ]
}

fn any_rec() -> impl Strategy<Value = Rec> {
    let name = || ((0u64..19), 0usize..3).prop_map(|(d, i)| n(DirId(d), ["a", "b", "c"][i]));
    let ns = prop_oneof![
        name().prop_map(|at| NsChange::Create { at }),
        (name(), 16u64..19).prop_map(|(at, d)| NsChange::Mkdir { at, id: DirId(d) }),
        (name(), name(), 1u64..3).prop_map(|(from, to, l)| NsChange::Link { from, to, lid: LinkId(l) }),
        (name(), any_what()).prop_map(|(at, what)| NsChange::Unlink { at, what }),
        (name(), 16u64..19).prop_map(|(at, d)| NsChange::Rmdir { at, id: DirId(d) }),
        (name(), name(), any_what(), prop::option::of(any_what()), any::<bool>())
            .prop_map(|(from, to, moved, over, exchange)| NsChange::Rename { from, to, moved, over, exchange }),
    ];
    let change = prop_oneof![
        3 => ns.prop_map(Change::Ns),
        1 => (name(), any_what(), 0u64..9, 0u64..9).prop_map(|(at, what, from, to)| Change::Data { at, what, from, to }),
        1 => (name(), any_what()).prop_map(|(at, what)| Change::Attr { at: Target::File(at), what }),
    ];
    (8u64..14, change).prop_map(|(seq, change)| rec(seq, 0, change))
}

proptest! {
    /// A peer's nonsense gives an error or a plan that passes the check, never a panic (G10).
    #[test]
    fn nonsense_never_panics(s in prop::collection::vec(any_rec(), 0..6), t in prop::collection::vec(any_rec(), 0..6)) {
        let links: Links = [((VOL, LinkId(1)), vec![n(R, "a"), n(DirId(17), "b")])].into();
        let (common, agreed, target_head) = (Seq(10), Seq(11), Seq(12));
        let input = Input { source: &s, target: &t, common, agreed, target_head, source_links: &links, target_links: &links };
        if let Ok(p) = plan(&input) {
            p.validate().unwrap();
        }
    }
}
