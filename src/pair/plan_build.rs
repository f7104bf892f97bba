//! Matches the objects of both sides and writes the steps. See [`super::plan`].

use super::change::What;
use super::plan::{ContentTask, Extent, LostObject, Plan, Step};
use super::plan_sim::{Names, ObjIx, Sim};
use super::ranges::Ranges;
use crate::base::{DirId, Error, LinkId, Name, Result, VolId};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What tells that objects of the two sides are one.
#[derive(PartialEq, Eq, Hash)]
enum Key<'a> {
    Dir(DirId),
    Link(LinkId),
    /// The name at P.
    Base(&'a Name),
}

/// Union-find over the objects of both sides: the source's first, the target's after them.
struct Matched {
    parent: Vec<usize>,
    target_first: usize,
}

impl Matched {
    fn source(&self, ix: ObjIx) -> usize {
        self.root(ix)
    }

    fn target(&self, ix: ObjIx) -> usize {
        self.root(self.target_first + ix)
    }

    fn root(&self, i: usize) -> usize {
        self.parent.get(i).copied().unwrap_or(i)
    }

    /// The root, shortening the way for the next one.
    fn find(&mut self, mut i: usize) -> usize {
        loop {
            let p = self.root(i);
            if p == i {
                return i;
            }
            let above = self.root(p);
            if let Some(slot) = self.parent.get_mut(i) {
                *slot = above;
            }
            i = above;
        }
    }

    fn unite(&mut self, a: usize, b: usize) {
        let (a, b) = (self.find(a), self.find(b));
        // The smaller index becomes the root, so the order of the plan does not depend on hashing.
        if let Some(p) = self.parent.get_mut(a.max(b)) {
            *p = a.min(b);
        }
    }

    /// Makes every way one step long; parents have smaller indices, so one pass does it.
    fn flatten(&mut self) {
        for i in 0..self.parent.len() {
            let root = self.root(self.root(i));
            if let Some(slot) = self.parent.get_mut(i) {
                *slot = root;
            }
        }
    }
}

/// One object as both sides see it.
#[derive(Default)]
struct Class {
    dir: Option<DirId>,
    lid: Option<LinkId>,
    /// Names on the source now, sorted.
    wanted: Vec<Name>,
    /// Names on the target now, sorted.
    found: Vec<Name>,
    /// Names at P.
    was: Vec<Name>,
    ranges: Ranges,
    attrs: bool,
    /// What the target made or changed after P, as far as one can know.
    own: bool,
    own_data: bool,
    own_attrs: bool,
    own_names: bool,
}

impl Class {
    /// The target has a version of its own of it.
    fn target_changed(&self) -> bool {
        self.own || self.own_data || self.own_attrs || self.own_names
    }
}

/// Adds the plan of one volume to `out`. `diverged`: the target made entries of its own after P.
pub(super) fn build(vol: VolId, source: &Sim, target: &Sim, diverged: bool, out: &mut Plan) -> Result<()> {
    let matched = match_objects(source, target)?;
    let classes = collect(source, target, &matched, diverged)?;
    let mut steps = Steps { vol, ..Steps::default() };
    for c in classes.values() {
        steps.object(c, out);
    }
    steps.finish(out);
    let wanted = |id: &DirId| {
        let object = source.dirs.get(id).map(|&ix| matched.source(ix));
        let object = object.or_else(|| target.dirs.get(id).map(|&ix| matched.target(ix)));
        // A directory without an object was only ever a parent here: it lives on both sides.
        object.is_none_or(|root| classes.get(&root).is_some_and(|c| !c.wanted.is_empty()))
    };
    let made = classes.values().filter(|c| c.found.is_empty()).filter_map(|c| c.dir);
    let touched = source.dirs_touched.iter().chain(&target.dirs_touched).copied();
    let dirs: BTreeSet<DirId> = touched.chain(made).chain(steps.parents).collect();
    out.dirs.extend(dirs.into_iter().filter(|d| !d.is_internal() && wanted(d)).map(|d| (vol, d)));
    if diverged {
        let marked = target.dirs_marked.iter().copied().filter(|d| !d.is_internal() && wanted(d));
        out.lost_dirs.extend(marked.map(|d| (vol, d)));
    }
    Ok(())
}

/// Finds out which objects are the same, and that both sides agree about P.
fn match_objects(source: &Sim, target: &Sim) -> Result<Matched> {
    let target_first = source.objs.len();
    let mut m = Matched { parent: (0..target_first + target.objs.len()).collect(), target_first };
    let mut keys: HashMap<Key, usize> = HashMap::new();
    for (side, first) in [(source, 0), (target, target_first)] {
        for (ix, o) in side.objs.iter().enumerate() {
            let own = o.dir.map(Key::Dir).into_iter().chain(o.lids.iter().copied().map(Key::Link));
            for k in own {
                let other = *keys.entry(k).or_insert(first + ix);
                m.unite(other, first + ix);
            }
        }
        for (name, is) in &side.base {
            if let Some(ix) = is {
                let other = *keys.entry(Key::Base(name)).or_insert(first + ix);
                m.unite(other, first + ix);
            }
        }
    }
    for (name, is) in &source.base {
        let differs = match (is, target.base.get(name)) {
            (Some(s), Some(Some(t))) => source.objs.get(*s).map(|o| o.dir) != target.objs.get(*t).map(|o| o.dir),
            (s, Some(t)) => s.is_some() != t.is_some(),
            (_, None) => false,
        };
        if differs && !name.dir.is_internal() {
            return Err(Error::corrupt(format!("the two journals disagree about {name:?} at the common point")));
        }
    }
    m.flatten();
    Ok(m)
}

/// Everything known about each object, in the order of the objects.
fn collect(source: &Sim, target: &Sim, m: &Matched, diverged: bool) -> Result<BTreeMap<usize, Class>> {
    let mut classes: BTreeMap<usize, Class> = BTreeMap::new();
    for (ix, o) in target.objs.iter().enumerate() {
        let c = classes.entry(m.target(ix)).or_default();
        c.dir = c.dir.or(o.dir);
        c.lid = o.lids.last().copied().or(c.lid);
        c.ranges.union(&o.ranges);
        c.attrs |= o.attrs;
        c.own |= diverged && o.own;
        // A mark from before P may hide one from after it: see `Obj::ranges`.
        c.own_data |= diverged && !o.ranges.is_empty();
        c.own_attrs |= diverged && o.attrs;
    }
    for (ix, o) in source.objs.iter().enumerate() {
        let c = classes.entry(m.source(ix)).or_default();
        c.dir = c.dir.or(o.dir);
        c.lid = o.lids.last().copied().or(c.lid);
        c.ranges.union(&o.ranges);
        c.attrs |= o.attrs;
    }
    let all: BTreeSet<&Name> = source.names.keys().chain(target.names.keys()).collect();
    for name in all.into_iter().filter(|n| !n.dir.is_internal()) {
        // A side that did not touch the name still has there what was there at P, which the other side knows.
        let wanted = now(&source.names, name).map(|ix| ix.map(|i| m.source(i)));
        let wanted = wanted.or_else(|| now(&target.base, name).map(|ix| ix.map(|i| m.target(i)))).flatten();
        let found = now(&target.names, name).map(|ix| ix.map(|i| m.target(i)));
        let found = found.or_else(|| now(&source.base, name).map(|ix| ix.map(|i| m.source(i)))).flatten();
        let was = now(target.was(), name).map(|ix| ix.map(|i| m.target(i)));
        let was = was.or_else(|| now(source.was(), name).map(|ix| ix.map(|i| m.source(i)))).flatten();
        if let Some(root) = was {
            classes.entry(root).or_default().was.push(name.clone());
        }
        if let Some(root) = wanted {
            classes.entry(root).or_default().wanted.push(name.clone());
        }
        if let Some(root) = found {
            classes.entry(root).or_default().found.push(name.clone());
        }
    }
    for c in classes.values_mut() {
        c.own_names = diverged && c.found != c.was;
    }
    if let Some(c) = classes.values().find(|c| c.dir.is_some() && (c.wanted.len() > 1 || c.found.len() > 1)) {
        return Err(Error::corrupt(format!("the journals give directory {:?} two names", c.dir)));
    }
    Ok(classes)
}

fn has(sorted: &[Name], name: &Name) -> bool {
    sorted.binary_search(name).is_ok()
}

fn now(names: &Names, name: &Name) -> Option<Option<ObjIx>> {
    names.get(name).copied()
}

/// The steps, by phase.
#[derive(Default)]
struct Steps {
    vol: VolId,
    clear: Vec<Step>,
    discard: Vec<Step>,
    make: Vec<Step>,
    place: Vec<Step>,
    link: Vec<Step>,
    /// Directories whose mtime the steps spoil.
    parents: BTreeSet<DirId>,
    parked: u64,
}

impl Steps {
    fn parking(&mut self) -> Name {
        self.parked += 1;
        Name::new(DirId::STAGING, format!("r{}.{}", self.vol.0, self.parked))
    }

    fn park(&mut self, from: &Name) -> Name {
        let parked = self.parking();
        self.parents.insert(from.dir);
        self.clear.push(Step::Park { vol: self.vol, from: from.clone(), parked: parked.clone() });
        parked
    }

    fn place(&mut self, parked: Name, to: &Name) {
        self.parents.insert(to.dir);
        self.place.push(Step::Place { vol: self.vol, parked, to: to.clone() });
    }

    /// The steps for one object, and what to compare of it.
    fn object(&mut self, c: &Class, out: &mut Plan) {
        let lost = self.lost(c, out);
        let stays = c.found.iter().find(|n| has(&c.wanted, n));
        // The name at which the object keeps living on the target; nothing if it goes or is not there.
        let anchor = match (stays, c.found.first(), c.wanted.first()) {
            (Some(n), _, _) => n,
            (None, Some(from), Some(to)) => {
                let parked = self.park(from);
                self.place(parked, to);
                out.counts.renames += 1;
                to
            }
            (None, Some(from), None) => {
                self.discard(c, from, lost, out);
                from
            }
            (None, None, Some(to)) => {
                self.make(c, to, out);
                to
            }
            (None, None, None) => return,
        };
        let moved_from = if stays.is_none() { c.found.first() } else { None };
        for at in c.found.iter().filter(|n| !has(&c.wanted, n) && Some(*n) != moved_from) {
            self.parents.insert(at.dir);
            self.clear.push(Step::DropName { vol: self.vol, at: at.clone() });
            out.counts.names_dropped += 1;
        }
        if c.wanted.is_empty() {
            return;
        }
        for to in c.wanted.iter().filter(|n| !has(&c.found, n) && *n != anchor) {
            self.parents.insert(to.dir);
            let lid = c.lid.unwrap_or(LinkId(0));
            self.link.push(Step::LinkMore { vol: self.vol, from: anchor.clone(), to: to.clone(), lid });
            out.counts.links_made += 1;
        }
        self.content(c, anchor, lost, out);
    }

    /// Lists the object when the target has a version of its own of it; its place in the list.
    fn lost(&self, c: &Class, out: &mut Plan) -> Option<u32> {
        // Made after P and removed again: it never was on either side.
        if !c.target_changed() || (c.found.is_empty() && (c.wanted.is_empty() || c.was.is_empty())) {
            return None;
        }
        out.lost.push(LostObject {
            vol: self.vol,
            dir: c.dir,
            own: c.own,
            data: c.own_data,
            attrs: c.own_attrs,
            found: c.found.clone(),
            was: c.was.clone(),
            wanted: c.wanted.clone(),
        });
        u32::try_from(out.lost.len() - 1).ok()
    }

    fn discard(&mut self, c: &Class, from: &Name, lost: Option<u32>, out: &mut Plan) {
        let parked = self.park(from);
        let what = match (c.dir, c.lid) {
            (Some(id), _) => What::Dir(id),
            (None, Some(lid)) => What::Linked(lid),
            (None, None) => What::File,
        };
        let keep = lost.filter(|_| c.dir.is_none());
        self.discard.push(Step::Discard { vol: self.vol, parked, what, keep });
        out.counts.discarded += 1;
        out.counts.kept += u64::from(keep.is_some());
    }

    fn make(&mut self, c: &Class, to: &Name, out: &mut Plan) {
        let parked = self.parking();
        match c.dir {
            Some(id) => {
                self.make.push(Step::MakeDir { vol: self.vol, id, parked: parked.clone() });
                out.counts.dirs_made += 1;
            }
            None => {
                self.make.push(Step::MakeFile { vol: self.vol, source: to.clone(), parked: parked.clone() });
                out.counts.files_made += 1;
            }
        }
        self.place(parked, to);
    }

    fn content(&mut self, c: &Class, anchor: &Name, lost: Option<u32>, out: &mut Plan) {
        let new = c.found.is_empty();
        if c.dir.is_some() || (!new && !c.attrs && c.ranges.is_empty()) {
            return;
        }
        let Some(source) = c.wanted.first() else { return };
        out.content.push(ContentTask {
            vol: self.vol,
            source: source.clone(),
            target_now: c.found.first().cloned(),
            target_after: anchor.clone(),
            extent: if new { Extent::Whole } else { Extent::Ranges(c.ranges.clone()) },
            attrs: true,
            lost: lost.filter(|_| !new),
        });
        out.counts.files_examined += 1;
    }

    fn finish(&mut self, out: &mut Plan) {
        for phase in [&mut self.clear, &mut self.discard, &mut self.make, &mut self.place, &mut self.link] {
            out.ns.append(phase);
        }
    }
}
