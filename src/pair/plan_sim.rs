//! Replays one side's records of one volume on a model of the names they mention. See [`super::plan`].

use super::change::{Change, NsChange, Rec, What};
use super::plan::Links;
use super::ranges::Ranges;
use crate::base::{DirId, Error, LinkId, Name, Result, Seq, VolId};
use crate::format::op::Target;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Index of an object within its [`Sim`].
pub(super) type ObjIx = usize;
/// What is at each known name; `None`: nothing, for certain. A name that is not in it was not touched.
pub(super) type Names = BTreeMap<Name, Option<ObjIx>>;

/// A file or directory met in the records. Two of them may turn out to be one file, by a link id they share.
#[derive(Debug, Default)]
pub(super) struct Obj {
    /// Its id, for a directory.
    pub dir: Option<DirId>,
    /// The link ids it had; normally one at most.
    pub lids: Vec<LinkId>,
    /// Created after the last position on both chains.
    pub own: bool,
    /// A name of it was removed; for a directory that is the end, unless it is made again.
    pub gone: bool,
    /// Content marks, those from before P as well: an interval marks a range once only, so a write after P may be hidden
    /// behind a mark from before it.
    pub ranges: Ranges,
    /// Attribute mark, likewise.
    pub attrs: bool,
}

/// One side of one volume.
#[derive(Debug, Default)]
pub(super) struct Sim {
    /// Every object met.
    pub objs: Vec<Obj>,
    /// The names now.
    pub names: Names,
    /// The names at P.
    pub base: Names,
    /// The names before what the target did of its own, where that is not what objects are matched by.
    pub was: Option<Names>,
    /// Directories that have an object here.
    pub dirs: HashMap<DirId, ObjIx>,
    /// Directories whose attributes, or whose mtime by a change of names after P, may differ.
    pub dirs_touched: BTreeSet<DirId>,
    /// Directories whose attributes may have been set.
    pub dirs_marked: BTreeSet<DirId>,
    lids: HashMap<LinkId, ObjIx>,
    /// P has been passed.
    after: bool,
    /// The record being replayed is after the last position on both chains.
    own: bool,
}

impl Sim {
    /// Replays the records of `vol`.
    pub fn replay(vol: VolId, recs: &[Rec], common: Seq, agreed: Seq, links: &Links) -> Result<Sim> {
        let mut sim = Sim::default();
        for rec in recs.iter().filter(|r| r.vol == vol) {
            check_names(&rec.change).map_err(|e| e.context(format!("entry {}", rec.seq.0)))?;
            sim.own = rec.seq > agreed;
            match &rec.change {
                Change::Ns(ns) => {
                    if rec.seq > common {
                        sim.cross();
                    } else if sim.after {
                        return Err(Error::corrupt(format!("journal: record of entry {} out of order", rec.seq.0)));
                    }
                    sim.names_change(ns)
                }
                Change::Data { at, what, from, to } => sim.mark(at, what, |o| o.ranges.insert(*from, *to)),
                Change::Attr { at: Target::File(at), what } => sim.mark(at, what, |o| o.attrs = true),
                Change::Attr { at: Target::Dir(id), .. } => {
                    sim.dirs_touched.insert(*id);
                    sim.dirs_marked.insert(*id);
                    Ok(())
                }
            }
            .map_err(|e: Error| e.context(format!("entry {}", rec.seq.0)))?;
        }
        for ((_, lid), names) in links.range((vol, LinkId(0))..=(vol, LinkId(u64::MAX))) {
            for n in names {
                check_name(n)?;
                sim.has_link(n, *lid);
            }
        }
        sim.cross();
        Ok(sim)
    }

    /// The names before what the target did of its own.
    pub fn was(&self) -> &Names {
        self.was.as_ref().unwrap_or(&self.base)
    }

    /// True if a directory has a name.
    fn is_somewhere(&self, ix: ObjIx) -> bool {
        self.objs.get(ix).is_some_and(|o| !o.gone)
    }

    /// Passes P, once.
    fn cross(&mut self) {
        if !self.after {
            self.after = true;
            self.base = self.names.clone();
        }
    }

    fn new_obj(&mut self, what: Option<What>, own: bool) -> ObjIx {
        let ix = self.objs.len();
        let mut obj = Obj { own, ..Obj::default() };
        match what {
            Some(What::Dir(id)) => {
                obj.dir = Some(id);
                self.dirs.insert(id, ix);
            }
            Some(What::Linked(lid)) => {
                obj.lids.push(lid);
                self.lids.entry(lid).or_insert(ix);
            }
            Some(What::File) | None => {}
        }
        self.objs.push(obj);
        ix
    }

    /// Notes that the object has a link id.
    fn note_lid(&mut self, ix: ObjIx, lid: LinkId) {
        self.lids.entry(lid).or_insert(ix);
        if let Some(o) = self.objs.get_mut(ix)
            && !o.lids.contains(&lid)
        {
            o.lids.push(lid);
        }
    }

    /// The object at a name where the record says there is one.
    fn at(&mut self, name: &Name, what: &What) -> Result<ObjIx> {
        if let Some(known) = self.names.get(name) {
            let ix = known.ok_or_else(|| Error::corrupt(format!("journal: {name:?} is used, but nothing is there")))?;
            let is = self.objs.get(ix).and_then(|o| o.dir);
            let says = if let What::Dir(id) = what { Some(*id) } else { None };
            if is != says {
                return Err(Error::corrupt(format!("journal: {name:?} is {what:?}, but {is:?} before")));
            }
            if let What::Linked(lid) = what {
                self.note_lid(ix, *lid);
            }
            return Ok(ix);
        }
        let ix = match what {
            What::Dir(id) if self.dirs.contains_key(id) => {
                return Err(Error::corrupt(format!("journal: directory {} is at two names", id.0)));
            }
            What::Linked(lid) => match self.lids.get(lid) {
                Some(ix) => *ix,
                None => self.new_obj(Some(*what), false),
            },
            _ => self.new_obj(Some(*what), false),
        };
        self.first_seen(name, Some(ix));
        Ok(ix)
    }

    /// A name is met for the first time, with what is there now: the same was there at P.
    fn first_seen(&mut self, name: &Name, is: Option<ObjIx>) {
        self.names.insert(name.clone(), is);
        if self.after {
            self.base.insert(name.clone(), is);
        }
    }

    /// Checks that nothing is at the name.
    fn free(&mut self, name: &Name) -> Result<()> {
        match self.names.get(name) {
            Some(Some(_)) => Err(Error::corrupt(format!("journal: {name:?} is made, but was there already"))),
            Some(None) => Ok(()),
            None => {
                self.first_seen(name, None);
                Ok(())
            }
        }
    }

    fn put(&mut self, name: &Name, is: Option<ObjIx>) {
        self.names.insert(name.clone(), is);
    }

    fn set_gone(&mut self, ix: ObjIx, gone: bool) {
        if let Some(o) = self.objs.get_mut(ix) {
            o.gone = gone;
        }
    }

    fn names_change(&mut self, ns: &NsChange) -> Result<()> {
        match ns {
            NsChange::Create { at } => {
                self.free(at)?;
                let ix = self.new_obj(None, self.own);
                self.put(at, Some(ix));
                self.touch(at);
            }
            NsChange::Mkdir { at, id } => {
                self.free(at)?;
                // A resync makes a directory again, under its own id, that this side had removed.
                let ix = match self.dirs.get(id) {
                    Some(ix) if self.is_somewhere(*ix) => {
                        return Err(Error::corrupt(format!("journal: directory id {} is given twice", id.0)));
                    }
                    Some(ix) => *ix,
                    None => self.new_obj(Some(What::Dir(*id)), self.own),
                };
                self.set_gone(ix, false);
                self.put(at, Some(ix));
                self.touch(at);
            }
            NsChange::Link { from, to, lid } => {
                let ix = self.at(from, &What::Linked(*lid))?;
                self.free(to)?;
                self.put(to, Some(ix));
                self.touch(to);
            }
            NsChange::Unlink { at, what } => self.gone(at, what)?,
            NsChange::Rmdir { at, id } => self.gone(at, &What::Dir(*id))?,
            NsChange::Rename { from, to, moved, over, exchange } => {
                self.rename(from, to, moved, over.as_ref(), *exchange)?;
            }
        }
        Ok(())
    }

    fn gone(&mut self, at: &Name, what: &What) -> Result<()> {
        let ix = self.at(at, what)?;
        self.set_gone(ix, true);
        self.put(at, None);
        self.touch(at);
        Ok(())
    }

    fn rename(&mut self, from: &Name, to: &Name, moved: &What, over: Option<&What>, exchange: bool) -> Result<()> {
        // Renaming onto another name of the same file does nothing (POSIX).
        let same_file = matches!((moved, over), (What::Linked(a), Some(What::Linked(b))) if a == b);
        if from == to || same_file {
            return Ok(());
        }
        let ix = self.at(from, moved)?;
        let there = match over {
            Some(w) => Some(self.at(to, w)?),
            None => {
                self.free(to)?;
                None
            }
        };
        if exchange && there.is_none() {
            return Err(Error::corrupt(format!("journal: {from:?} exchanged with nothing")));
        }
        if let (Some(over), false) = (there, exchange) {
            self.set_gone(over, true);
        }
        self.put(from, if exchange { there } else { None });
        self.put(to, Some(ix));
        self.touch(from);
        self.touch(to);
        Ok(())
    }

    /// The directory's mtime changed, on this side alone if it is after P.
    fn touch(&mut self, name: &Name) {
        if self.after {
            self.dirs_touched.insert(name.dir);
        }
    }

    /// Marks content or attributes. A mark may come after the end of the name it was made by (a write that met an unlink):
    /// then it concerns nobody, or the other names of the same file.
    fn mark(&mut self, at: &Name, what: &What, mark: impl FnOnce(&mut Obj)) -> Result<()> {
        let ix = match (self.names.get(at), what) {
            (Some(None), What::Linked(lid)) => match self.lids.get(lid) {
                Some(ix) => *ix,
                None => self.new_obj(Some(*what), false),
            },
            (Some(None), _) => return Ok(()),
            // The object may have become a link, or one again, since: the name decides, the mark's kind only helps.
            (Some(Some(ix)), _) => *ix,
            (None, _) => self.at(at, what)?,
        };
        if let What::Linked(lid) = what {
            self.note_lid(ix, *lid);
        }
        if let Some(o) = self.objs.get_mut(ix) {
            mark(o);
        }
        Ok(())
    }

    /// The link table has this name: if no record touched it, it was there at P, too.
    fn has_link(&mut self, name: &Name, lid: LinkId) {
        match self.names.get(name) {
            Some(Some(ix)) => self.note_lid(*ix, lid),
            Some(None) => {}
            None => {
                let ix = match self.lids.get(&lid) {
                    Some(ix) => *ix,
                    None => self.new_obj(Some(What::Linked(lid)), false),
                };
                self.first_seen(name, Some(ix));
            }
        }
    }
}

/// The records may come from a peer: no name in them may reach outside a directory, no directory take a reserved id (G10).
fn check_names(change: &Change) -> Result<()> {
    match change {
        Change::Data { at, .. } | Change::Attr { at: Target::File(at), .. } => check_name(at),
        Change::Attr { at: Target::Dir(_), .. } => Ok(()),
        Change::Ns(ns) => {
            if matches!(ns, NsChange::Mkdir { id, .. } if id.0 < DirId::FIRST_FREE) {
                return Err(Error::corrupt("journal: reserved directory id"));
            }
            ns.names().into_iter().flatten().try_for_each(check_name)
        }
    }
}

fn check_name(n: &Name) -> Result<()> {
    if n.is_valid() { Ok(()) } else { Err(Error::corrupt("journal: a name that is not one path component")) }
}
