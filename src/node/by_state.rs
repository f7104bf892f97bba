//! Resync by state, at the source: where a power cut leaves the journals without an answer, the names of the directories
//! concerned are compared as they are, and the contents that may differ. Staged like every resync.
//!
//! ```text
//! directories = those of the records of both since the checkpoint, those active at a power cut, those whose place differs
//!             ─▶ listings of both sides ─▶ plan (pure) ─▶ as a resync by the journals
//! ```

use super::first_copy::same_kind;
use super::resync::AtQ;
use super::session::{Session, Step};
use super::source::Source;
use super::tell;
use crate::base::{DirId, LinkId, Name, Result, Seq, VolId};
use crate::format::msg::{Cut, Have};
use crate::format::op::Target;
use crate::pair::chain::Chain;
use crate::pair::change::{Change, NsChange, Rec, What};
use crate::pair::plan::Plan;
use crate::pair::plan_state::{self, Compare, Own, Sides};
use crate::store::activity::ActiveDir;
use crate::store::replica::{Meta, Replica};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Directories listed in one question.
const LISTS: usize = 32;

/// What power cuts leave to be compared.
#[derive(Clone, Debug)]
pub(super) struct Suspect {
    /// Up to here nothing is suspect.
    pub(super) low: Seq,
    /// Up to here the source has everything that the target has: a power cut may have undone the rest (G6).
    agreed: Seq,
    /// Directories in which anything may differ, though no journal says so.
    deep: Vec<ActiveDir>,
    /// Directories in which names may differ, and content where a journal says so.
    shallow: Vec<ActiveDir>,
}

/// Places of directories: id → parent and name.
type Dirs = HashMap<DirId, Name>;

impl Session {
    /// What is to be compared as it is, if anything, to bring the peer on from `common`.
    pub(super) fn suspect(&self, m: &Meta, common: Seq) -> Option<Suspect> {
        let mine = Replica::cuts_since(m, common);
        let w = &self.welcome;
        let own = !w.exact || common < w.head;
        let theirs: Vec<&Cut> = w.cuts.iter().filter(|c| c.open || (own && common <= c.head)).collect();
        if mine.is_empty() && theirs.is_empty() {
            return None;
        }
        let agreed = mine.iter().map(|c| c.low).fold(common, Seq::min);
        let lows = mine.iter().map(|c| c.low).chain(theirs.iter().map(|c| c.low));
        let low = lows.fold(common, Seq::min);
        let dirs = |c: &&Cut| {
            let d = c.dirs.iter().map(|(vol, dir, below)| ActiveDir { vol: *vol, dir: *dir, below: *below });
            d.collect::<Vec<_>>()
        };
        let theirs: Vec<ActiveDir> = theirs.iter().flat_map(dirs).collect();
        let mut deep: Vec<ActiveDir> = mine.into_iter().flat_map(|c| c.dirs).collect();
        let mut shallow = Vec::new();
        // All that it did since then it was told by this site, whose journal has it.
        if self.told_by_us(low) {
            shallow = theirs
        } else {
            deep.extend(theirs)
        }
        Some(Suspect { low, agreed, deep, shallow })
    }

    fn told_by_us(&self, low: Seq) -> bool {
        let theirs = Chain::from_epochs(self.welcome.chain.clone());
        let first = theirs.epochs().iter().rposition(|e| e.parent <= low).unwrap_or(0);
        theirs.epochs().iter().skip(first).all(|e| e.site == self.site)
    }

    /// The plan that makes the peer equal to this side as it was at Q.
    pub(super) fn plan_by_state(&mut self, s: &Suspect, at: &AtQ, source: &[Rec], target: &[Rec]) -> Step<Plan> {
        let src = Source { replica: self.group.replica.clone(), watch: at.watch.clone() };
        let mut out = Plan::default();
        for (i, (dirs, links)) in at.tables.iter().enumerate() {
            let vol = VolId(i as u16);
            let mut v = Volume::new(vol, &src, dirs, links);
            v.theirs = self.their_dirs(vol)?;
            v.records(source, target, s);
            v.active(s);
            v.misplaced();
            while let Some(dirs) = v.next() {
                for part in dirs.chunks(LISTS) {
                    let lists = self.their_lists(vol, part)?;
                    v.take(lists)?;
                    self.tick()?;
                }
                let lids = v.unknown_links().into_iter().map(|l| (vol, l)).collect();
                for (_, names) in self.links_of(lids)? {
                    v.scope.extend(names.iter().map(|n| n.dir));
                }
            }
            v.compare()?;
            plan_state::plan(vol, &v.sides, &mut out)?;
        }
        Ok(out)
    }
}

/// One volume while its plan is made.
struct Volume<'a> {
    vol: VolId,
    src: &'a Source,
    ours: &'a Dirs,
    our_links: &'a HashMap<Name, LinkId>,
    theirs: Dirs,
    scope: BTreeSet<DirId>,
    listed: BTreeSet<DirId>,
    deep: BTreeSet<DirId>,
    haves: HashMap<Name, Have>,
    lids: BTreeSet<LinkId>,
    lids_known: BTreeSet<LinkId>,
    /// What the records say of names and of files with several links.
    marks: BTreeMap<Name, Compare>,
    link_marks: HashMap<LinkId, Compare>,
    moved: BTreeSet<Name>,
    sides: Sides,
}

impl<'a> Volume<'a> {
    fn new(vol: VolId, src: &'a Source, ours: &'a Dirs, our_links: &'a HashMap<Name, LinkId>) -> Volume<'a> {
        Volume {
            vol,
            src,
            ours,
            our_links,
            theirs: Dirs::new(),
            scope: BTreeSet::new(),
            listed: BTreeSet::new(),
            deep: BTreeSet::new(),
            haves: HashMap::new(),
            lids: BTreeSet::new(),
            lids_known: BTreeSet::new(),
            marks: BTreeMap::new(),
            link_marks: HashMap::new(),
            moved: BTreeSet::new(),
            sides: Sides::default(),
        }
    }

    fn records(&mut self, source: &[Rec], target: &[Rec], s: &Suspect) {
        let vol = self.vol;
        for r in source.iter().chain(target).filter(|r| r.vol == vol) {
            match &r.change {
                // An interval begins earlier; its names are exact, and both sides have them.
                Change::Ns(_) if r.seq <= s.low => {}
                Change::Ns(ns) => {
                    for n in ns.names().into_iter().flatten() {
                        self.scope.insert(n.dir);
                        self.moved.insert(n.clone());
                    }
                    if let NsChange::Mkdir { id, .. } = ns {
                        self.scope.insert(*id);
                    }
                }
                Change::Data { at, what, from, to } => {
                    let c = Compare { ranges: [(*from, *to)].into_iter().collect(), attrs: true };
                    self.mark(at, what, c);
                }
                Change::Attr { at: Target::File(at), what } => {
                    self.mark(at, what, Compare { attrs: true, ..Compare::default() });
                }
                Change::Attr { at: Target::Dir(d), .. } => drop(self.scope.insert(*d)),
            }
        }
        self.sides.own = Own::of(target, vol, s.agreed);
    }

    fn mark(&mut self, at: &Name, what: &What, c: Compare) {
        self.scope.insert(at.dir);
        if let What::Linked(l) = what {
            merge(self.link_marks.entry(*l).or_default(), &c);
        }
        merge(self.marks.entry(at.clone()).or_default(), &c);
    }

    fn active(&mut self, s: &Suspect) {
        let of = |all: &[ActiveDir], dirs: &Dirs| below(all.iter().filter(|d| d.vol == self.vol), dirs);
        let deep: BTreeSet<DirId> = of(&s.deep, self.ours).union(&of(&s.deep, &self.theirs)).copied().collect();
        let shallow: BTreeSet<DirId> =
            of(&s.shallow, self.ours).union(&of(&s.shallow, &self.theirs)).copied().collect();
        self.scope.extend(deep.iter().chain(&shallow));
        self.deep = deep;
    }

    /// Directories that are not at the same place at both sides.
    fn misplaced(&mut self) {
        for (id, at) in self.ours.iter() {
            match self.theirs.get(id) {
                Some(t) if t == at => {}
                Some(t) => self.scope.extend([at.dir, t.dir]),
                None => self.scope.extend([at.dir, *id]),
            }
        }
        let gone = self.theirs.iter().filter(|(id, _)| !self.ours.contains_key(id));
        self.scope.extend(gone.flat_map(|(id, t)| [t.dir, *id]).collect::<Vec<_>>());
    }

    /// Directories that were not listed yet.
    fn next(&mut self) -> Option<Vec<DirId>> {
        let new: Vec<DirId> = self.scope.difference(&self.listed).copied().filter(|d| !d.is_internal()).collect();
        self.listed.extend(&self.scope);
        (!new.is_empty()).then_some(new)
    }

    /// Takes in the listings of both sides.
    fn take(&mut self, theirs: Vec<(DirId, Option<Vec<crate::format::msg::Listed>>)>) -> Result<()> {
        for (dir, list) in theirs {
            if dir == DirId::ROOT || self.theirs.contains_key(&dir) {
                for l in list.unwrap_or_default() {
                    let at = Name::new(dir, l.name);
                    let is_dir = l.have.mode & libc::S_IFMT == libc::S_IFDIR;
                    let what = match (is_dir, l.have.dir, l.have.lid) {
                        // A directory that its table does not know cannot be addressed.
                        (true, None, _) => continue,
                        (true, Some(id), _) => What::Dir(id),
                        (false, _, Some(lid)) => {
                            self.lids.insert(lid);
                            What::Linked(lid)
                        }
                        (false, _, None) => What::File,
                    };
                    self.sides.target.insert(at.clone(), what);
                    self.haves.insert(at, l.have);
                }
            }
            if dir == DirId::ROOT || self.ours.contains_key(&dir) {
                self.sides.dirs.insert(dir);
                let region = self.src.replica.region(self.vol)?.clone();
                let listing = tell::names(&region, dir)?.unwrap_or_default();
                let names = self.src.watch.lock().names_at_q(self.vol, dir, listing);
                for n in names {
                    let at = Name::new(dir, n);
                    if let Some(lid) = self.our_links.get(&at) {
                        self.lids.insert(*lid);
                        self.sides.source.insert(at, What::Linked(*lid));
                    } else {
                        self.sides.source.insert(at, What::File);
                    }
                }
            }
        }
        Ok(())
    }

    /// Link ids that were not asked for yet; their names at this side come into the scope.
    fn unknown_links(&mut self) -> Vec<LinkId> {
        let new: BTreeSet<LinkId> = self.lids.difference(&self.lids_known).copied().collect();
        self.lids_known.extend(&new);
        if !new.is_empty() {
            self.scope.extend(self.our_links.iter().filter(|(_, l)| new.contains(l)).map(|(n, _)| n.dir));
        }
        new.into_iter().collect()
    }

    /// With all names known: which are the same, and what of them is to be compared.
    fn compare(&mut self) -> Result<()> {
        for (id, at) in self.ours.iter().filter(|(_, at)| self.listed.contains(&at.dir)) {
            self.sides.source.insert(at.clone(), What::Dir(*id));
        }
        // A file with several links is the same one by its id, at whatever names: where it is not at the same name at both
        // sides, nothing is known of its content.
        let mut linked: HashMap<LinkId, Vec<Name>> = HashMap::new();
        for (at, what) in &self.sides.target {
            if let What::Linked(l) = what {
                linked.entry(*l).or_default().push(at.clone());
            }
        }
        for (at, what) in &self.sides.source {
            let lid = match what {
                What::Dir(_) => continue,
                What::Linked(l) => Some(*l),
                What::File => None,
            };
            let there = lid.and_then(|l| linked.get(&l));
            if there.is_some_and(|names| !names.contains(at)) {
                let kind = names_kind(&self.haves, there);
                match self.src.find(self.vol, at)? {
                    // Another kind of file cannot be made of it.
                    Some(f) if kind != Some(f.stat().mode & libc::S_IFMT) => {
                        for n in there.into_iter().flatten() {
                            self.sides.target.insert(n.clone(), What::File);
                        }
                    }
                    _ => drop(self.sides.compare.insert(at.clone(), Compare::whole())),
                }
                continue;
            }
            let Some(have) = self.haves.get(at) else { continue };
            let Some(found) = self.src.find(self.vol, at)? else { continue };
            if found.stat().is_dir() || !same_kind(have, &found) {
                for n in there.into_iter().flatten() {
                    self.sides.target.insert(n.clone(), What::File);
                }
                continue;
            }
            match (what, self.sides.target.get(at)) {
                (What::File, Some(What::File)) => drop(self.sides.same.insert(at.clone())),
                (What::Linked(a), Some(What::Linked(b))) if a == b => {}
                _ => continue,
            }
            let mut c = self.marks.get(at).cloned().unwrap_or_default();
            if let Some(l) = self.our_links.get(at).and_then(|l| self.link_marks.get(l)) {
                merge(&mut c, l);
            }
            let s = found.stat();
            let looks = have.size == if s.is_file() { s.size } else { 0 }
                && (have.mode, have.mtime, have.uid, have.gid) == (s.mode, s.mtime, s.uid, s.gid);
            if self.deep.contains(&at.dir) || self.moved.contains(at) || (!looks && c.ranges.is_empty()) {
                c = Compare::whole();
            }
            if c != Compare::default() {
                self.sides.compare.insert(at.clone(), c);
            }
        }
        Ok(())
    }
}

fn names_kind(haves: &HashMap<Name, Have>, names: Option<&Vec<Name>>) -> Option<u32> {
    let first = names?.first()?;
    haves.get(first).map(|h| h.mode & libc::S_IFMT)
}

fn merge(into: &mut Compare, c: &Compare) {
    into.ranges.union(&c.ranges);
    into.attrs |= c.attrs;
}

/// The directories of a set, with all below where it says so.
fn below<'a>(set: impl Iterator<Item = &'a ActiveDir>, dirs: &Dirs) -> BTreeSet<DirId> {
    let (mut out, mut roots) = (BTreeSet::new(), HashMap::new());
    for d in set {
        out.insert(d.dir);
        if d.below {
            roots.insert(d.dir, true);
        }
    }
    if roots.is_empty() {
        return out;
    }
    for id in dirs.keys() {
        let (mut chain, mut at) = (Vec::new(), *id);
        let inside = loop {
            if let Some(known) = roots.get(&at) {
                break *known;
            }
            chain.push(at);
            match dirs.get(&at) {
                Some(n) if chain.len() <= dirs.len() + 1 => at = n.dir,
                _ => break false,
            }
        };
        roots.extend(chain.into_iter().map(|d| (d, inside)));
    }
    out.extend(roots.into_iter().filter(|(_, inside)| *inside).map(|(d, _)| d));
    out
}
