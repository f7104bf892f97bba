//! A plan from what is there, instead of from the journals: of some directories both sides tell every name. For trees that
//! are at no point of the order after a power cut. See [`super::plan`] for what a plan is.
//!
//! The directories must be closed: what is in one of them at one side and somewhere else at the other has both places among
//! them, and likewise every name of a file with several links, and everything below a directory that one side lacks.

use super::change::{Change, NsChange, Rec, What};
use super::plan::Plan;
use super::plan_build;
use super::plan_sim::{Names, Obj, ObjIx, Sim};
use super::ranges::{Ranges, TO_EOF};
use crate::base::{DirId, LinkId, Name, Result, Seq, VolId};
use crate::format::op::Target;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What to compare of an object's content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compare {
    /// Bytes.
    pub ranges: Ranges,
    /// Attributes.
    pub attrs: bool,
}

impl Compare {
    /// Everything.
    pub fn whole() -> Compare {
        Compare { ranges: [(0, TO_EOF)].into_iter().collect(), attrs: true }
    }
}

impl Compare {
    fn add(&mut self, c: &Compare) {
        self.ranges.union(&c.ranges);
        self.attrs |= c.attrs;
    }
}

/// What one side did to an object, by its name now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Deed {
    /// It made it.
    made: bool,
    /// It wrote these bytes, changed its attributes.
    changed: Compare,
    /// Its name before.
    was: Option<Name>,
    /// It gave it this further name.
    linked: bool,
}

/// What the target did after the last position of which the source has everything, as far as its journal still tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    deeds: BTreeMap<Name, Deed>,
    /// What it changed of files with several links: the name by which it did may be gone.
    links: BTreeMap<LinkId, Compare>,
    /// Names it took away.
    removed: BTreeSet<Name>,
    dirs: BTreeSet<DirId>,
}

impl Own {
    /// Of one volume's records, when the target has anything after `from`. A power cut may have torn holes into them, so
    /// they need not fit together. Marks from before `from` count as well, for they may hide one from after it.
    pub fn of(recs: &[Rec], vol: VolId, from: Seq) -> Own {
        let mut own = Own::default();
        if recs.iter().all(|r| r.seq <= from) {
            return own;
        }
        for r in recs.iter().filter(|r| r.vol == vol) {
            match &r.change {
                Change::Ns(ns) if r.seq > from => own.names(ns),
                Change::Ns(_) => {}
                Change::Data { at, what, from, to } => {
                    own.changed(at, what, &Compare { ranges: [(*from, *to)].into_iter().collect(), attrs: true });
                }
                Change::Attr { at: Target::File(at), what } => {
                    own.changed(at, what, &Compare { attrs: true, ..Compare::default() });
                }
                Change::Attr { at: Target::Dir(d), .. } => drop(own.dirs.insert(*d)),
            }
        }
        own
    }

    fn changed(&mut self, at: &Name, what: &What, c: &Compare) {
        self.deeds.entry(at.clone()).or_default().changed.add(c);
        if let What::Linked(l) = what {
            self.links.entry(*l).or_default().add(c);
        }
    }

    /// True if there is nothing.
    pub fn is_empty(&self) -> bool {
        self.deeds.is_empty() && self.links.is_empty() && self.removed.is_empty() && self.dirs.is_empty()
    }

    fn names(&mut self, ns: &NsChange) {
        match ns {
            NsChange::Create { at } | NsChange::Mkdir { at, .. } => {
                self.deeds.insert(at.clone(), Deed { made: true, ..Deed::default() });
            }
            NsChange::Link { from, to, lid } => {
                if let Some(d) = self.deeds.get(from) {
                    self.links.entry(*lid).or_default().add(&d.changed);
                }
                self.deeds.insert(to.clone(), Deed { linked: true, ..Deed::default() });
            }
            NsChange::Unlink { at, .. } | NsChange::Rmdir { at, .. } => self.gone(at),
            NsChange::Rename { from, to, over, exchange, .. } => {
                let (a, b) = (self.leaves(from), self.leaves(to));
                match over {
                    Some(_) if *exchange => drop(self.deeds.insert(from.clone(), b)),
                    Some(_) => self.forget(b),
                    None => {}
                }
                self.deeds.insert(to.clone(), a);
            }
        }
    }

    /// Takes what is known of an object away from its name, for another one.
    fn leaves(&mut self, name: &Name) -> Deed {
        let d = self.deeds.remove(name).unwrap_or_default();
        Deed { was: d.was.or_else(|| Some(name.clone())), ..d }
    }

    fn gone(&mut self, at: &Name) {
        let d = self.leaves(at);
        self.forget(d);
    }

    fn forget(&mut self, d: Deed) {
        if !d.made && !d.linked {
            self.removed.extend(d.was);
        }
    }
}

/// One volume, as both sides have it.
#[derive(Debug, Default)]
pub struct Sides {
    /// Every name in the directories, at the source.
    pub source: BTreeMap<Name, What>,
    /// At the target.
    pub target: BTreeMap<Name, What>,
    /// Names with one file of the same kind at both sides, neither with several links.
    pub same: BTreeSet<Name>,
    /// What to compare, by a name at the source. Others are not looked at.
    pub compare: BTreeMap<Name, Compare>,
    /// What the target has of its own, which must not be lost (G6).
    pub own: Own,
    /// The directories.
    pub dirs: BTreeSet<DirId>,
}

/// Adds the plan of one volume to `out`.
pub fn plan(vol: VolId, sides: &Sides, out: &mut Plan) -> Result<()> {
    let mut source = sim(&sides.source, sides);
    let mut target = sim(&sides.target, sides);
    for name in sides.source.keys().chain(sides.target.keys()) {
        source.names.entry(name.clone()).or_insert(None);
        target.names.entry(name.clone()).or_insert(None);
    }
    for (name, c) in &sides.compare {
        if let Some(o) = source.names.get(name).copied().flatten().and_then(|ix| source.objs.get_mut(ix)) {
            o.ranges.union(&c.ranges);
            o.attrs |= c.attrs;
        }
    }
    own(&sides.own, &mut source, &mut target);
    source.dirs_touched = sides.dirs.clone();
    plan_build::build(vol, &source, &target, !sides.own.is_empty(), out)
}

/// Notes what the target has of its own: its objects with what it did to them, and where they were before.
fn own(own: &Own, source: &mut Sim, target: &mut Sim) {
    let (mut was, mut gone) = (target.names.clone(), Names::new());
    for (name, d) in &own.deeds {
        let Some(ix) = target.names.get(name).copied().flatten() else { continue };
        let Some(o) = target.objs.get_mut(ix) else { continue };
        o.ranges.union(&d.changed.ranges);
        o.attrs |= d.changed.attrs;
        if d.made || d.linked || d.was.is_some() {
            // What was there before under this name is one with it where the source still has it.
            o.own = d.made;
            o.ranges.insert(0, TO_EOF);
            o.attrs = true;
            was.insert(name.clone(), None);
        }
    }
    for o in &mut target.objs {
        for c in o.lids.iter().filter_map(|l| own.links.get(l)) {
            o.ranges.union(&c.ranges);
            o.attrs |= c.attrs;
        }
    }
    for (name, d) in &own.deeds {
        if let (Some(at), Some(Some(ix))) = (&d.was, target.names.get(name))
            && !d.made
        {
            was.insert(at.clone(), Some(*ix));
        }
    }
    for name in &own.removed {
        if let Some(Some(ix)) = source.names.get(name)
            && target.names.get(name).copied().flatten().is_none()
        {
            gone.insert(name.clone(), Some(*ix));
            was.remove(name);
        }
    }
    target.dirs_marked = own.dirs.clone();
    (source.was, target.was) = (Some(gone), Some(was));
}

fn sim(names: &BTreeMap<Name, What>, sides: &Sides) -> Sim {
    let mut sim = Sim::default();
    let mut linked: HashMap<LinkId, ObjIx> = HashMap::new();
    for (name, what) in names {
        let new = sim.objs.len();
        let ix = match what {
            What::Linked(l) => *linked.entry(*l).or_insert(new),
            _ => new,
        };
        if ix == new {
            let mut o = Obj::default();
            match what {
                What::Dir(id) => {
                    o.dir = Some(*id);
                    sim.dirs.insert(*id, ix);
                }
                What::Linked(l) => o.lids.push(*l),
                What::File => {}
            }
            sim.objs.push(o);
        }
        sim.names.insert(name.clone(), Some(ix));
        if sides.same.contains(name) {
            sim.base.insert(name.clone(), Some(ix));
        }
    }
    sim
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pair::plan::Step;

    fn n(d: u64, s: &str) -> Name {
        Name::new(DirId(d), s)
    }

    fn of(names: &[(Name, What)]) -> BTreeMap<Name, What> {
        names.iter().cloned().collect()
    }

    #[test]
    fn what_is_there_is_brought_to_what_the_source_has() {
        let (a, b) = (DirId(20), DirId(21));
        let mut s = Sides {
            source: of(&[
                (n(1, "a"), What::Dir(a)),
                (n(20, "f"), What::File),
                (n(20, "same"), What::File),
                (n(20, "l1"), What::Linked(LinkId(7))),
                (n(20, "l2"), What::Linked(LinkId(7))),
            ]),
            target: of(&[
                (n(1, "old"), What::Dir(a)),
                (n(1, "b"), What::Dir(b)),
                (n(20, "same"), What::File),
                (n(20, "l1"), What::Linked(LinkId(7))),
                (n(21, "x"), What::File),
            ]),
            same: [n(20, "same")].into(),
            dirs: [DirId::ROOT, a, b].into(),
            ..Sides::default()
        };
        let mut p = Plan::default();
        plan(VolId(0), &s, &mut p).unwrap();
        p.validate().unwrap();
        let has = |f: &dyn Fn(&Step) -> bool| p.ns.iter().filter(|s| f(s)).count();
        assert_eq!(has(&|s| matches!(s, Step::Park { from, .. } if *from == n(1, "old"))), 1);
        assert_eq!(has(&|s| matches!(s, Step::Place { to, .. } if *to == n(1, "a"))), 1);
        assert_eq!(has(&|s| matches!(s, Step::MakeFile { source, .. } if *source == n(20, "f"))), 1);
        assert_eq!(has(&|s| matches!(s, Step::LinkMore { to, .. } if *to == n(20, "l2"))), 1);
        assert_eq!(has(&|s| matches!(s, Step::Discard { .. })), 2, "b and what is in it");
        assert_eq!(p.content.len(), 1, "of what is at both sides nothing was to be compared");
        s.compare.insert(n(20, "same"), Compare::whole());
        let mut p = Plan::default();
        plan(VolId(0), &s, &mut p).unwrap();
        assert_eq!(p.content.len(), 2);
        assert!(!p.dirs.contains(&(VolId(0), b)));
    }

    #[test]
    fn what_the_target_has_of_its_own_is_told_from_what_it_only_has_otherwise() {
        let vol = VolId(0);
        let rec = |seq, change| Rec { seq: Seq(seq), vol, change };
        let ns = |seq, c| rec(seq, Change::Ns(c));
        let file = What::File;
        let recs = [
            rec(3, Change::Data { at: n(1, "hidden"), what: file, from: 0, to: 10 }),
            ns(11, NsChange::Create { at: n(1, "made") }),
            ns(12, NsChange::Create { at: n(1, "passing") }),
            ns(13, NsChange::Unlink { at: n(1, "passing"), what: file }),
            ns(14, NsChange::Unlink { at: n(1, "gone"), what: file }),
            ns(15, NsChange::Rename { from: n(1, "x"), to: n(1, "y"), moved: file, over: None, exchange: false }),
            ns(16, NsChange::Unlink { at: n(1, "saved"), what: file }),
            ns(17, NsChange::Rename { from: n(1, "tmp"), to: n(1, "saved"), moved: file, over: None, exchange: false }),
        ];
        let all = |names: &[&str]| names.iter().map(|s| (n(1, s), What::File)).collect::<BTreeMap<_, _>>();
        let make = |own| Sides {
            source: all(&["hidden", "gone", "x", "torn", "saved", "tmp"]),
            target: all(&["hidden", "made", "y", "torn", "torn2", "saved"]),
            same: [n(1, "hidden"), n(1, "torn"), n(1, "saved")].into(),
            compare: [(n(1, "torn"), Compare::whole())].into(),
            own,
            dirs: [DirId::ROOT].into(),
        };
        let plan_of = |from| {
            let mut p = Plan::default();
            plan(vol, &make(Own::of(&recs, vol, Seq(from))), &mut p).unwrap();
            p.validate().unwrap();
            p
        };
        // Nothing after the last position that the source has: what differs is damage.
        assert_eq!(plan_of(17).lost, []);
        let p = plan_of(10);
        let of = |name: &str| {
            let found = p.lost.iter().find(|o| o.found.contains(&n(1, name)) || o.was.contains(&n(1, name)));
            found.unwrap_or_else(|| panic!("{name}: {:?}", p.lost))
        };
        assert!(of("hidden").data && of("hidden").found == of("hidden").was);
        assert!(of("made").own && of("made").wanted.is_empty());
        assert_eq!((of("gone").found.len(), &of("gone").wanted), (0, &vec![n(1, "gone")]));
        assert_eq!((&of("y").was, &of("y").found), (&vec![n(1, "x")], &vec![n(1, "y")]));
        assert_eq!((&of("tmp").was, &of("tmp").found), (&vec![n(1, "tmp")], &vec![n(1, "saved")]));
        assert!(of("tmp").data && !of("tmp").own, "another file is at the name");
        assert_eq!(p.lost.len(), 5, "{:?}", p.lost);
    }
}
