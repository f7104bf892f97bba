//! Repair of what a comparison found, at the source: inside the staged transaction of a resync, so that the secondary's
//! tree goes from one point of the order to another in one step, whatever happens meanwhile.

use super::session::{Session, Step};
use super::source::{Differ, Found, Source};
use crate::base::sync::Mutex;
use crate::base::{DirId, LinkId, Name, VolId};
use crate::format::msg::{Ask, Have};
use crate::format::op::{Op, Target};
use crate::pair::change::{Change, Rec};
use crate::pair::plan::Extent;
use crate::store::watch::Watch;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

/// Content asked about and sent in one go, bytes.
const SLICE: u64 = 64 << 20;

/// A repair that was ordered.
#[derive(Clone, Debug)]
pub enum Repair {
    /// Walk and copy everything (directories are missing, too many or others).
    Everything,
    /// These objects only.
    Objects(Arc<Vec<(VolId, Target)>>),
}

struct Work<'a> {
    src: &'a Source,
    /// Names that the resync itself moves: the next comparison sees what became of them.
    moved: HashSet<(VolId, Name)>,
    groups: HashSet<(VolId, LinkId)>,
    parents: BTreeSet<(VolId, DirId)>,
}

fn is_dir(h: &Have) -> bool {
    h.mode & libc::S_IFMT == libc::S_IFDIR
}

impl Session {
    /// Stages the repair that was ordered for the pair, if one was. `source`, `target`: the journal records of the
    /// resync it is part of.
    pub(super) fn repair(&mut self, watch: &Arc<Mutex<Watch>>, source: &[Rec], target: &[Rec]) -> Step<()> {
        let Some(Repair::Objects(objects)) = self.pair.repair() else { return Ok(()) };
        let src = Source { replica: self.group.replica.clone(), watch: watch.clone() };
        let mut moved = HashSet::new();
        for r in source.iter().chain(target) {
            if let Change::Ns(c) = &r.change {
                moved.extend(c.names().into_iter().flatten().map(|n| (r.vol, n.clone())));
            }
        }
        let mut w = Work { src: &src, moved, groups: HashSet::new(), parents: BTreeSet::new() };
        let mut dirs = BTreeSet::new();
        for (vol, at) in objects.iter() {
            match at {
                Target::File(n) => self.repair_name(&mut w, *vol, n)?,
                Target::Dir(d) => drop(dirs.insert((*vol, *d))),
            }
        }
        dirs.extend(w.parents);
        for (vol, d) in dirs {
            let have = self.have(vol, Target::Dir(d))?;
            if let (Some(found), Some(have)) = (src.find_dir(vol, d)?, have) {
                for op in found.attr_ops(Target::Dir(d), Some(&have), true)? {
                    self.stage(vol, op, b"")?;
                }
            }
        }
        Ok(())
    }

    fn have(&mut self, vol: VolId, at: Target) -> Step<Option<Have>> {
        let told = self.ask(vec![Ask { vol, at, ranges: Vec::new() }])?;
        Ok(told.into_iter().next().and_then(|t| t.have))
    }

    fn repair_name(&mut self, w: &mut Work, vol: VolId, at: &Name) -> Step<()> {
        let (lid, names) = {
            let _order = self.group.replica.order();
            let links = self.group.replica.region(vol)?.link_names(at).filter(|(_, all)| all.len() > 1);
            let (lid, names) = links.map_or_else(|| (None, vec![at.clone()]), |(l, all)| (Some(l), all));
            // What is staged is at the point: names that changed since are not, and the next comparison sees them.
            let watch = w.src.watch.lock();
            if names.iter().any(|n| watch.renamed(vol, n, lid)) {
                return Ok(());
            }
            (lid, names)
        };
        if lid.is_some_and(|l| !w.groups.insert((vol, l))) {
            return Ok(());
        }
        self.repair_file(w, vol, &names, lid)?;
        w.parents.extend(names.iter().map(|n| (vol, n.dir)));
        Ok(())
    }

    /// One file with all its names.
    fn repair_file(&mut self, w: &Work, vol: VolId, names: &[Name], lid: Option<LinkId>) -> Step<()> {
        if names.iter().any(|n| w.moved.contains(&(vol, n.clone()))) {
            return Ok(());
        }
        let Some(first) = names.first() else { return Ok(()) };
        let mut haves = Vec::new();
        for n in names {
            haves.push(self.have(vol, Target::File(n.clone()))?);
        }
        let pmtime = Default::default();
        let found = w.src.find(vol, first)?;
        // Directories are repaired by copying everything.
        if haves.iter().flatten().any(is_dir) || found.as_ref().is_some_and(|f| f.stat().is_dir()) {
            return Ok(());
        }
        let one = |h: &Option<Have>| h.as_ref().map(|h| h.ino);
        if let (Some(f), Some(Some(h))) = (&found, haves.first())
            && haves.iter().all(|x| one(x) == Some(h.ino))
            && h.nlink == f.stat().nlink
            && super::first_copy::same_kind(h, f)
        {
            return self.repair_content(vol, first, f, Some(h));
        }
        for (n, _) in names.iter().zip(&haves).filter(|(_, h)| h.is_some()) {
            self.stage(vol, Op::Unlink { at: n.clone(), pmtime }, b"")?;
        }
        let Some(f) = found else { return Ok(()) };
        self.stage(vol, Op::Create { at: first.clone(), kind: f.kind(), attr: f.attr(), pmtime }, b"")?;
        if let Some(lid) = lid {
            for n in names.iter().skip(1) {
                self.stage(vol, Op::Link { from: first.clone(), to: n.clone(), lid, pmtime }, b"")?;
            }
        }
        self.repair_content(vol, first, &f, None)
    }

    fn repair_content(&mut self, vol: VolId, at: &Name, f: &Found, have: Option<&Have>) -> Step<()> {
        self.stats.files_examined += 1;
        let mut off = 0;
        let mut sent = 0;
        while f.content().is_some() && (off == 0 || off < f.stat().size) {
            let range = (off, off + SLICE);
            let told = match have {
                Some(_) => self.ask(vec![Ask { vol, at: Target::File(at.clone()), ranges: vec![range] }])?.pop(),
                None => None,
            };
            let mut d = Differ::new(f, &told, &Extent::Ranges([range].into_iter().collect()));
            while d.advance()? {
                while let Some((op, data)) = d.take(at) {
                    self.stage(vol, op, &data)?;
                }
            }
            sent += d.bytes;
            off += SLICE;
        }
        self.stats.bytes_copied += sent;
        self.stats.files_copied += (sent > 0 || have.is_none()) as u64;
        for op in f.attr_ops(Target::File(at.clone()), have, true)? {
            self.stage(vol, op, b"")?;
        }
        Ok(())
    }
}
