//! A tree in memory with real directories, hard links and contents, the journal a store would write for it, and an
//! executor of plans: what the planner is tested against.

use crate::base::{DirId, LinkId, Name, Seq, VolId};
use crate::format::op::Target;
use crate::pair::change::{Change, NsChange, Rec, What};
use crate::pair::plan::{ContentTask, Extent, Links, Plan, Step};
use crate::pair::ranges::Ranges;
use std::collections::{BTreeMap, BTreeSet, HashSet};

pub const VOL: VolId = VolId(0);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ent {
    Dir(DirId),
    File(u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub bytes: Vec<u8>,
    pub attr: u64,
    pub lid: Option<LinkId>,
}

/// The tree. File numbers are the truth about identity; no record carries them.
#[derive(Clone, Debug)]
pub struct World {
    pub dirs: BTreeMap<DirId, u64>,
    pub files: BTreeMap<u64, File>,
    pub names: BTreeMap<Name, Ent>,
    pub next: u64,
    pub clock: u64,
}

/// What a command of a test does: kind and three choices.
pub type Act = (u8, u8, u8, u8);

impl World {
    pub fn new() -> World {
        let dirs = [(DirId::ROOT, 0)].into();
        World { dirs, files: BTreeMap::new(), names: BTreeMap::new(), next: DirId::FIRST_FREE, clock: 1 }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn some_name(&self, a: u8, b: u8) -> Name {
        let dirs: Vec<_> = self.dirs.keys().collect();
        Name::new(*dirs[a as usize % dirs.len()], [b"abc"[b as usize % 3]])
    }

    fn existing(&self, a: u8, want: impl Fn(&Ent) -> bool) -> Option<(Name, Ent)> {
        let all: Vec<_> = self.names.iter().filter(|(_, e)| want(e)).collect();
        (!all.is_empty()).then(|| all[a as usize % all.len()]).map(|(n, e)| (n.clone(), *e))
    }

    pub fn what(&self, e: Ent) -> What {
        match e {
            Ent::Dir(id) => What::Dir(id),
            Ent::File(f) => self.files[&f].lid.map_or(What::File, What::Linked),
        }
    }

    fn is_empty(&self, d: DirId) -> bool {
        !self.names.keys().any(|n| n.dir == d)
    }

    /// True if directory `d` is `top` or below it.
    fn below(&self, mut d: DirId, top: DirId) -> bool {
        loop {
            if d == top {
                return true;
            }
            match self.names.iter().find(|(_, e)| **e == Ent::Dir(d)) {
                Some((n, _)) => d = n.dir,
                None => return false,
            }
        }
    }

    fn spoil(&mut self, n: &Name) {
        let t = self.tick();
        if let Some(a) = self.dirs.get_mut(&n.dir) {
            *a = t;
        }
    }

    fn forget(&mut self, e: Ent) {
        match e {
            Ent::Dir(d) => {
                assert!(self.is_empty(d), "directory {d:?} removed with something in it");
                self.dirs.remove(&d);
            }
            Ent::File(f) if !self.names.values().any(|e| *e == Ent::File(f)) => {
                self.files.remove(&f);
            }
            Ent::File(_) => {}
        }
    }

    fn add(&mut self, at: &Name, e: Ent) {
        assert!(self.names.insert(at.clone(), e).is_none(), "{at:?} was not free");
        self.spoil(at);
    }

    fn take(&mut self, at: &Name) -> Ent {
        self.spoil(at);
        self.names.remove(at).unwrap_or_else(|| panic!("nothing at {at:?}"))
    }

    /// Gives other link ids to the files whose bit is set; a file with one name may lose its id or get one.
    pub fn relabel(&mut self, bits: u64) {
        for (f, file) in &mut self.files {
            if bits >> (f % 64) & 1 == 1 {
                let single = self.names.values().filter(|e| **e == Ent::File(*f)).count() == 1;
                file.lid = if single && file.lid.is_some() { None } else { Some(LinkId(5_000_000 + f)) };
            }
        }
    }

    pub fn add_file(&mut self, at: &Name) -> u64 {
        let (f, attr) = (self.fresh(), self.tick());
        self.files.insert(f, File { bytes: vec![], attr, lid: None });
        self.add(at, Ent::File(f));
        f
    }

    pub fn add_dir(&mut self, at: &Name, id: DirId) {
        let attr = self.tick();
        self.add(at, Ent::Dir(id));
        self.dirs.insert(id, attr);
    }

    pub fn add_link(&mut self, from: &Name, to: &Name) -> LinkId {
        let e = self.names[from];
        let Ent::File(f) = e else { panic!("link to a directory") };
        let fresh = LinkId(self.fresh());
        let lid = *self.files.get_mut(&f).unwrap().lid.get_or_insert(fresh);
        self.add(to, e);
        lid
    }

    pub fn unlink(&mut self, at: Name) -> Change {
        let what = self.what(self.names[&at]);
        let e = self.take(&at);
        self.forget(e);
        Change::Ns(match what {
            What::Dir(id) => NsChange::Rmdir { at, id },
            what => NsChange::Unlink { at, what },
        })
    }

    /// Does what the choices say, if it can be done, and returns the records, without the sparing of repeated marks.
    pub fn act(&mut self, (kind, a, b, c): Act) -> Vec<(Change, Option<u64>)> {
        let is_file = |e: &Ent| matches!(e, Ent::File(_));
        let is_dir = |e: &Ent| matches!(e, Ent::Dir(_));
        let one = |c: Change| vec![(c, None)];
        let at = self.some_name(a, b);
        match kind % 14 {
            0 if !self.names.contains_key(&at) => {
                let f = self.add_file(&at);
                let mut out = one(Change::Ns(NsChange::Create { at: at.clone() }));
                out.extend(self.write(at, f, 0, c));
                out
            }
            1 if !self.names.contains_key(&at) => {
                let id = DirId(self.fresh());
                self.add_dir(&at, id);
                one(Change::Ns(NsChange::Mkdir { at, id }))
            }
            2 if !self.names.contains_key(&at) => {
                let Some((from, _)) = self.existing(c, is_file) else { return vec![] };
                let lid = self.add_link(&from, &at);
                one(Change::Ns(NsChange::Link { from, to: at, lid }))
            }
            3 => self.existing(a, is_file).map(|(n, _)| one(self.unlink(n))).unwrap_or_default(),
            4 => self.existing(a, is_dir).map(|(_, e)| self.remove_tree(e)).unwrap_or_default(),
            5..=7 => self.existing(c, |_| true).map(|(n, e)| self.rename(n, e, at)).unwrap_or_default(),
            8 => self.exchange(a, b),
            9 | 10 => match self.existing(a, is_file) {
                Some((n, Ent::File(f))) => self.write(n, f, b % 6, c),
                _ => vec![],
            },
            11 => match self.existing(a, is_file) {
                Some((n, Ent::File(f))) => self.truncate(n, f, b % 6),
                _ => vec![],
            },
            12 => match self.existing(a, is_file) {
                Some((n, e @ Ent::File(f))) => {
                    self.files.get_mut(&f).unwrap().attr = self.clock + 1;
                    self.tick();
                    vec![(Change::Attr { at: Target::File(n), what: self.what(e) }, Some(f))]
                }
                _ => vec![],
            },
            13 => match self.existing(a, is_dir) {
                Some((_, Ent::Dir(d))) => {
                    let t = self.tick();
                    self.dirs.insert(d, t);
                    one(Change::Attr { at: Target::Dir(d), what: What::Dir(d) })
                }
                _ => vec![],
            },
            _ => vec![],
        }
    }

    pub fn write(&mut self, at: Name, f: u64, pos: u8, byte: u8) -> Vec<(Change, Option<u64>)> {
        let (what, t) = (self.what(Ent::File(f)), self.tick());
        let file = self.files.get_mut(&f).unwrap();
        let pos = pos as usize;
        if file.bytes.len() <= pos {
            file.bytes.resize(pos + 1, 0);
        }
        file.bytes[pos] = byte;
        file.attr = t;
        vec![(Change::Data { at, what, from: pos as u64, to: pos as u64 + 1 }, Some(f))]
    }

    pub fn truncate(&mut self, at: Name, f: u64, size: u8) -> Vec<(Change, Option<u64>)> {
        let (what, t) = (self.what(Ent::File(f)), self.tick());
        let file = self.files.get_mut(&f).unwrap();
        file.bytes.resize(size as usize, 0);
        file.attr = t;
        vec![(Change::Data { at, what, from: size as u64, to: u64::MAX }, Some(f))]
    }

    pub fn remove_tree(&mut self, e: Ent) -> Vec<(Change, Option<u64>)> {
        let mut out = vec![];
        if let Ent::Dir(d) = e {
            let inside: Vec<_> = self.names.iter().filter(|(n, _)| n.dir == d).map(|(n, e)| (n.clone(), *e)).collect();
            for (n, e) in inside {
                match e {
                    Ent::Dir(_) => out.extend(self.remove_tree(e)),
                    Ent::File(_) => out.push((self.unlink(n), None)),
                }
            }
            let at = self.names.iter().find(|(_, x)| **x == e).map(|(n, _)| n.clone()).unwrap();
            out.push((self.unlink(at), None));
        }
        out
    }

    pub fn rename(&mut self, from: Name, e: Ent, to: Name) -> Vec<(Change, Option<u64>)> {
        let there = self.names.get(&to).copied();
        let allowed = match (e, there) {
            (Ent::Dir(d), _) if self.below(to.dir, d) => false,
            (Ent::Dir(_), Some(Ent::Dir(o))) => self.is_empty(o) && o != from.dir,
            (Ent::File(f), Some(Ent::File(o))) => f != o,
            (_, None) => true,
            _ => false,
        };
        if !allowed || from == to {
            return vec![];
        }
        let (moved, over) = (self.what(e), there.map(|o| self.what(o)));
        self.take(&from);
        if let Some(o) = there {
            self.take(&to);
            self.forget(o);
        }
        self.add(&to, e);
        vec![(Change::Ns(NsChange::Rename { from, to, moved, over, exchange: false }), None)]
    }

    fn exchange(&mut self, a: u8, b: u8) -> Vec<(Change, Option<u64>)> {
        match (self.existing(a, |_| true), self.existing(b, |_| true)) {
            (Some((from, _)), Some((to, _))) => self.exchange_names(from, to),
            _ => vec![],
        }
    }

    pub fn exchange_names(&mut self, from: Name, to: Name) -> Vec<(Change, Option<u64>)> {
        let (x, y) = (self.names[&from], self.names[&to]);
        let inside = |e: Ent, n: &Name| matches!(e, Ent::Dir(d) if self.below(n.dir, d));
        if x == y || inside(x, &to) || inside(y, &from) {
            return vec![];
        }
        let (moved, over) = (self.what(x), Some(self.what(y)));
        self.take(&from);
        self.take(&to);
        self.add(&from, y);
        self.add(&to, x);
        vec![(Change::Ns(NsChange::Rename { from, to, moved, over, exchange: true }), None)]
    }

    /// Names of every file with a link id, as a region's link table has them.
    pub fn links(&self) -> Links {
        let mut out = Links::new();
        for (n, e) in &self.names {
            if let What::Linked(lid) = self.what(*e) {
                out.entry((VOL, lid)).or_default().push(n.clone());
            }
        }
        out
    }

    /// What must be equal after a resync: for each name the directory, or content, attributes and first name of the file.
    pub fn picture(&self) -> (BTreeMap<DirId, u64>, Vec<(Name, String)>) {
        let mut first: BTreeMap<u64, &Name> = BTreeMap::new();
        let names = self.names.iter().map(|(n, e)| {
            let text = match e {
                Ent::Dir(d) => format!("dir {}", d.0),
                Ent::File(f) => {
                    let group = *first.entry(*f).or_insert(n);
                    let file = &self.files[f];
                    format!("file {group:?} {:?} {}", file.bytes, file.attr)
                }
            };
            (n.clone(), text)
        });
        (self.dirs.clone(), names.collect())
    }
}

/// A change journal with the sparing of repeated marks: a range or the attributes once for a name in an interval,
/// forgotten for a name when a change of names involves it.
#[derive(Clone, Default)]
pub struct Journal {
    pub recs: Vec<Rec>,
    pub begins_after: Seq,
    /// Numbers of the files that were marked.
    pub marked: BTreeSet<u64>,
    data: BTreeMap<Name, Ranges>,
    attrs: HashSet<Target>,
}

impl Journal {
    pub fn add(&mut self, seq: Seq, change: &Change, file: Option<u64>) {
        self.marked.extend(file);
        let new = match change {
            Change::Data { at, from, to, .. } => {
                let known = self.data.entry(at.clone()).or_default();
                let new = !known.covers(*from, *to);
                known.insert(*from, *to);
                new
            }
            Change::Attr { at, .. } => self.attrs.insert(at.clone()),
            Change::Ns(ns) => {
                for n in ns.names().into_iter().flatten() {
                    self.data.remove(n);
                    self.attrs.remove(&Target::File(n.clone()));
                }
                true
            }
        };
        if new {
            self.recs.push(Rec { seq, vol: VOL, change: change.clone() });
        }
    }

    /// Begins an interval; with a position, earlier ones are not asked for.
    pub fn cut(&mut self, begin: Option<Seq>) {
        self.data.clear();
        self.attrs.clear();
        if let Some(after) = begin {
            self.begins_after = after;
            self.recs.clear();
            self.marked.clear();
        }
    }
}

/// What a step is in the journal of the replica that executes it.
fn recorded(step: &Step, t: &World) -> NsChange {
    let rename = |from: &Name, to: &Name| NsChange::Rename {
        from: from.clone(),
        to: to.clone(),
        moved: t.what(t.names[from]),
        over: None,
        exchange: false,
    };
    match step {
        Step::Park { from, parked, .. } => rename(from, parked),
        Step::Place { parked, to, .. } => rename(parked, to),
        Step::MakeDir { id, parked, .. } => NsChange::Mkdir { at: parked.clone(), id: *id },
        Step::MakeFile { parked, .. } => NsChange::Create { at: parked.clone() },
        Step::LinkMore { from, to, lid, .. } => {
            let lid = if let What::Linked(own) = t.what(t.names[from]) { own } else { *lid };
            NsChange::Link { from: from.clone(), to: to.clone(), lid }
        }
        Step::DropName { at, .. } | Step::Discard { parked: at, .. } => match t.what(t.names[at]) {
            What::Dir(id) => NsChange::Rmdir { at: at.clone(), id },
            what => NsChange::Unlink { at: at.clone(), what },
        },
    }
}

/// Carries a plan out on `t`, taking from `s` only what the plan lists, and records it in `t`'s journal as of `seq`.
/// Returns the versions kept, by file number.
pub fn execute(plan: &Plan, s: &World, t: &mut World, (journal, seq): (&mut Journal, Seq)) -> Vec<(u64, File)> {
    let before = t.clone();
    let mut kept = vec![];
    for step in &plan.ns {
        journal.add(seq, &Change::Ns(recorded(step, t)), None);
        carry_out(step, s, t, &before, &mut kept);
    }
    for c in &plan.content {
        copy(c, s, t, &before, &mut kept);
        let (at, what) = (c.target_after.clone(), t.what(t.names[&c.target_after]));
        let ranges = match &c.extent {
            Extent::Whole => [(0, u64::MAX)].into_iter().collect(),
            Extent::Ranges(r) => r.clone(),
        };
        for (from, to) in ranges.iter() {
            journal.add(seq, &Change::Data { at: at.clone(), what, from, to }, None);
        }
        journal.add(seq, &Change::Attr { at: Target::File(at), what }, None);
    }
    for (_, d) in &plan.dirs {
        t.dirs.insert(*d, s.dirs[d]);
        journal.add(seq, &Change::Attr { at: Target::Dir(*d), what: What::Dir(*d) }, None);
    }
    kept
}

fn carry_out(step: &Step, s: &World, t: &mut World, before: &World, kept: &mut Vec<(u64, File)>) {
    match step {
        Step::Park { from, parked, .. } => {
            assert_eq!(parked.dir, DirId::STAGING);
            let e = t.take(from);
            t.add(parked, e);
        }
        Step::DropName { at, .. } => {
            let e = t.take(at);
            assert!(t.names.values().any(|x| *x == e), "{at:?} dropped, but it was the only name");
        }
        Step::MakeDir { id, parked, .. } => {
            t.add(parked, Ent::Dir(*id));
            assert!(t.dirs.insert(*id, 0).is_none());
        }
        Step::MakeFile { source, parked, .. } => {
            let Ent::File(f) = s.names[source] else { panic!("{source:?} is a directory on the source") };
            let used = |t: &World, f| t.files.contains_key(&f) || before.files.contains_key(&f);
            let f = if used(t, f) { 2_000_000 + t.fresh() } else { f };
            assert!(!used(t, f));
            t.files.insert(f, File { bytes: vec![], attr: 0, lid: None });
            t.add(parked, Ent::File(f));
        }
        Step::Place { parked, to, .. } => {
            let e = t.take(parked);
            if let Ent::Dir(d) = e {
                assert!(!t.below(to.dir, d), "placed into itself");
            }
            assert!(t.dirs.contains_key(&to.dir), "{to:?} placed in a directory that is not there");
            t.add(to, e);
        }
        Step::LinkMore { from, to, lid, .. } => {
            let Ent::File(f) = t.names[from] else { panic!("link to a directory") };
            assert_ne!(lid.0, 0);
            t.files.get_mut(&f).unwrap().lid.get_or_insert(*lid);
            t.add(to, Ent::File(f));
        }
        Step::Discard { parked, what, keep, .. } => {
            let e = t.take(parked);
            assert_eq!(matches!(e, Ent::Dir(_)), matches!(what, What::Dir(_)));
            if let (Ent::File(f), Some(_)) = (e, keep) {
                kept.push((f, t.files[&f].clone()));
            }
            t.forget(e);
        }
    }
}

fn copy(c: &ContentTask, s: &World, t: &mut World, before: &World, kept: &mut Vec<(u64, File)>) {
    let (Ent::File(from), Ent::File(to)) = (s.names[&c.source], t.names[&c.target_after]) else { panic!("not files") };
    if let Some(n) = &c.target_now {
        assert_eq!(before.names[n], Ent::File(to), "the file to compare with is another one");
    }
    let (src, dst) = (&s.files[&from], t.files.get_mut(&to).unwrap());
    let old = dst.clone();
    dst.bytes.resize(src.bytes.len(), 0);
    for (i, b) in src.bytes.iter().enumerate() {
        let listed = match &c.extent {
            Extent::Whole => true,
            Extent::Ranges(r) => r.contains(i as u64),
        };
        if listed {
            dst.bytes[i] = *b;
        }
    }
    if c.attrs {
        dst.attr = src.attr;
    }
    if c.lost.is_some() && (old.bytes != dst.bytes || old.attr != dst.attr) {
        kept.push((to, old));
    }
}
