//! First copy and repair, at the source: everything is walked, in directory order, while writes go on.
//!
//! The names sent are those of one point Q (a watch tells what a listing read later was at Q); contents are taken as they
//! are found. The receiver's tree is then "at Q, with contents partly newer": the entries after Q, from the queue or by
//! a resync over the journal, make it exact. So an interrupted first copy is simply walked again: what has the same size
//! and mtime is not sent twice.

use super::meter::{Meter, Totals};
use super::session::{Session, Step};
use super::source::{Differ, Source};
use super::tell;
use crate::base::{DirId, Epoch, Error, LinkId, Name, Seq, VolId, limits, random_u64};
use crate::format::msg::{Ask, CopyState, Have, Listed, Msg, Told};
use crate::format::op::{Attr, NodeKind, Op, Target};
use crate::pair::plan::Extent;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// Directories listed in one question.
const LISTS: usize = 32;
/// How long the receiver may take for an answer.
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) type Dirs = HashMap<DirId, Name>;

/// The point of the order that a copy begins with.
pub(super) struct Point {
    pub(super) q: Seq,
    pub(super) epochs: Vec<Epoch>,
    pub(super) src: Source,
    /// For each volume: its directories at Q.
    pub(super) dirs: Vec<Dirs>,
}

/// The first name met of a file with several links.
#[derive(Clone)]
struct Linked {
    first: Name,
    /// The object's inode number at the target, unless it is made anew.
    ino: Option<u64>,
}

impl Session {
    /// Copies everything; returns Q, the point from which entries are to follow.
    pub(super) fn copy_everything(&mut self) -> Step<Seq> {
        let blank = self.welcome.copy == CopyState::Empty;
        if blank {
            self.survey()?;
        }
        let id = self.announce()?;
        let at = self.point(false)?;
        if blank {
            self.keep_placed(id, &at)?;
        }
        self.stage_heads()?;
        for (i, dirs) in at.dirs.iter().enumerate() {
            self.copy_volume(&at.src, VolId(i as u16), dirs)?;
        }
        // A question answered means that everything before it was carried out.
        self.ask(vec![Ask { vol: VolId(0), at: Target::Dir(DirId::ROOT), ranges: Vec::new() }])?;
        self.end_copy(id, at)
    }

    /// Announces a first copy: from now on the other side is no point of the order.
    pub(super) fn announce(&mut self) -> Step<u64> {
        let id = random_u64() | 1;
        self.say(&Msg::Prepare { id, from: self.welcome.head, bytes: 0, first_copy: true })?;
        match self.hear(PATIENCE)? {
            Msg::Ready { id: i } if i == id => Ok(id),
            _ => Err(Error::corrupt("unexpected answer to the announcement of a first copy").into()),
        }
    }

    /// The point Q from which entries will follow. `marks`: changes of content and attributes are followed from it, too.
    pub(super) fn point(&mut self, marks: bool) -> Step<Point> {
        let mut m = self.group.replica.order();
        self.group.rotate(&mut m)?;
        let dirs: Vec<Dirs> = self
            .group
            .replica
            .regions
            .iter()
            .map(|r| r.ids.read().dirs().map(|(id, d)| (id, Name::new(d.parent, d.name.to_vec()))).collect())
            .collect();
        // The head: it is always there.
        self.group.queue.keep_after(self.index, m.live.last_seq());
        let watch = self.group.replica.watch(&mut m);
        if marks {
            watch.lock().follow_marks();
        }
        let src = Source { replica: self.group.replica.clone(), watch };
        Ok(Point { q: m.live.last_seq(), epochs: m.state.chain.clone(), src, dirs })
    }

    /// Ends a first copy: the other side is at Q once the entries up to the present are applied.
    pub(super) fn end_copy(&mut self, id: u64, at: Point) -> Step<Seq> {
        let whole = self.group.quiesce(PATIENCE)?;
        // The entries after Q wait for that by themselves.
        self.behind_sync_site(at.q)?;
        self.say(&Msg::CopyDone { id, base: at.q, whole, epochs: at.epochs })?;
        match self.hear(Duration::from_secs(600))? {
            Msg::Ready { id: i } if i == id => {}
            _ => return Err(Error::corrupt("unexpected answer to the end of a first copy").into()),
        }
        let q = at.q;
        self.group.update(self.index, |p| (p.received, p.durable, p.applied) = (q, q, q));
        Ok(q)
    }

    fn copy_volume(&mut self, src: &Source, vol: VolId, dirs: &Dirs) -> Step<()> {
        let theirs = self.their_dirs(vol)?;
        let order = parents_first(dirs);
        for (id, at) in &theirs {
            if dirs.get(id) != Some(at) {
                let op = rename(at.clone(), Name::new(DirId::STAGING, format!("dir-{:016x}", id.0)));
                self.stage(vol, op, b"")?;
            }
        }
        for id in &order {
            let Some(at) = dirs.get(id) else { continue };
            match theirs.get(id) {
                Some(t) if t == at => {}
                Some(_) => {
                    let op = rename(Name::new(DirId::STAGING, format!("dir-{:016x}", id.0)), at.clone());
                    self.stage(vol, op, b"")?;
                }
                None => {
                    let attr = src.find_dir(vol, *id)?.map_or(Attr { mode: 0o700, ..src.default_attr() }, |f| f.attr());
                    // Writable until everything is in it; its own mode comes at the end.
                    let attr = Attr { mode: attr.mode | 0o700, ..attr };
                    self.stage(vol, Op::Mkdir { at: at.clone(), id: *id, attr, pmtime: Default::default() }, b"")?;
                }
            }
        }
        let mut all = vec![DirId::ROOT];
        all.extend(&order);
        let known: HashSet<&Name> = dirs.values().collect();
        let mut linked: HashMap<LinkId, Linked> = HashMap::new();
        let mut meter = Meter::new("first copy");
        let totals = Totals::count(self.group.replica.clone(), vol);
        for chunk in all.chunks(LISTS) {
            let lists = self.their_lists(vol, chunk)?;
            for (dir, theirs) in lists {
                self.copy_dir(src, vol, dir, theirs.unwrap_or_default(), &known, &mut linked, &mut meter)?;
                totals.fill(&mut meter);
            }
        }
        let all: Vec<(VolId, DirId)> = all.into_iter().rev().map(|d| (vol, d)).collect();
        self.copy_dirs_attrs(src, &all)
    }

    pub(super) fn their_dirs(&mut self, vol: VolId) -> Step<Dirs> {
        let id = random_u64();
        self.say(&Msg::DirsAsk { id, vol })?;
        let mut out = Dirs::new();
        loop {
            match self.hear(PATIENCE)? {
                Msg::DirsPart { id: i, dirs, last } if i == id => {
                    out.extend(dirs);
                    if out.len() > limits::NAMES_TOLD_MAX {
                        return Err(Error::corrupt("the peer's directories do not end").into());
                    }
                    if last {
                        return Ok(out);
                    }
                }
                _ => return Err(Error::corrupt("unexpected answer to the question for directories").into()),
            }
        }
    }

    pub(super) fn their_lists(&mut self, vol: VolId, dirs: &[DirId]) -> Step<Vec<(DirId, Option<Vec<Listed>>)>> {
        let id = random_u64();
        self.say(&Msg::ListAsk { id, vol, dirs: dirs.to_vec() })?;
        let mut out: Vec<(DirId, Option<Vec<Listed>>)> = Vec::new();
        let mut told = 0;
        loop {
            match self.hear(PATIENCE)? {
                Msg::ListPart { id: i, lists, last } if i == id => {
                    told += lists.iter().map(|(_, l)| 1 + l.as_ref().map_or(0, Vec::len)).sum::<usize>();
                    if told > limits::NAMES_TOLD_MAX {
                        return Err(Error::corrupt("the peer's listing does not end").into());
                    }
                    for (d, l) in lists {
                        // A large directory comes in several parts.
                        match out.last_mut() {
                            Some((pd, Some(pl))) if *pd == d => pl.extend(l.unwrap_or_default()),
                            _ => out.push((d, l)),
                        }
                    }
                    if last {
                        return Ok(out);
                    }
                }
                _ => return Err(Error::corrupt("unexpected answer to the question for listings").into()),
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn copy_dir(
        &mut self,
        src: &Source,
        vol: VolId,
        dir: DirId,
        theirs: Vec<Listed>,
        known: &HashSet<&Name>,
        linked: &mut HashMap<LinkId, Linked>,
        meter: &mut Meter,
    ) -> Step<()> {
        let region = self.group.replica.region(vol)?.clone();
        let listing = tell::names(&region, dir)?.unwrap_or_default();
        let names = src.watch.lock().names_at_q(vol, dir, listing);
        let mut theirs: HashMap<Vec<u8>, Have> = theirs.into_iter().map(|l| (l.name, l.have)).collect();
        let mut queries = Vec::new();
        for n in names {
            let at = Name::new(dir, n);
            let have = theirs.remove(&at.name);
            if known.contains(&at) {
                continue;
            }
            if let Some(q) = self.copy_name(src, vol, &at, have, linked, meter)? {
                queries.push((at, q));
            }
            meter.p.done_files += 1;
            meter.show(&self.pair);
        }
        self.tick()?;
        for chunk in queries.chunks(64) {
            let asks = chunk.iter().map(|(_, a)| a.clone()).collect();
            let tolds = self.ask(asks)?;
            for ((at, ask), told) in chunk.iter().zip(tolds) {
                match ask.ranges.is_empty() {
                    true => self.copy_attrs(src, vol, at, &told)?,
                    false => self.copy_content(src, vol, at, Some(told), meter)?,
                }
            }
        }
        for (n, have) in theirs {
            let at = Name::new(dir, n);
            if !known.contains(&at) || have.mode & libc::S_IFMT != libc::S_IFDIR {
                self.stage(vol, Op::Unlink { at, pmtime: Default::default() }, b"")?;
            }
        }
        Ok(())
    }

    /// One name that is not a directory's. Returns the question to ask when its content must be compared first, or only
    /// its attributes: without ranges.
    fn copy_name(
        &mut self,
        src: &Source,
        vol: VolId,
        at: &Name,
        have: Option<Have>,
        linked: &mut HashMap<LinkId, Linked>,
        meter: &mut Meter,
    ) -> Step<Option<Ask>> {
        self.stats.files_examined += 1;
        let pmtime = Default::default();
        let Some(found) = src.find(vol, at)? else {
            // Gone since Q: the entry that removes it needs something to remove.
            if have.is_none() {
                let op = Op::Create { at: at.clone(), kind: NodeKind::File, attr: src.default_attr(), pmtime };
                self.stage(vol, op, b"")?;
            }
            return Ok(None);
        };
        if found.stat().is_dir() {
            return Ok(None);
        }
        // By where it is now: at this name there may be another object by now.
        let lid = found.lid();
        if let Some(lid) = lid
            && let Some(Linked { first, ino }) = linked.get(&lid).cloned()
        {
            // An interrupted copy may have left names of the same id with another object behind them.
            if !have.as_ref().is_some_and(|h| h.lid == Some(lid) && Some(h.ino) == ino) {
                if have.is_some() {
                    self.stage(vol, Op::Unlink { at: at.clone(), pmtime }, b"")?;
                }
                self.stage(vol, Op::Link { from: first, to: at.clone(), lid, pmtime }, b"")?;
            }
            return Ok(None);
        }
        let usable = have.filter(|h| same_kind(h, &found) && h.lid == lid);
        if let Some(lid) = lid {
            linked.insert(lid, Linked { first: at.clone(), ino: usable.as_ref().map(|h| h.ino) });
        }
        match usable {
            Some(h)
                if !self.thorough
                    && found.stat().is_file()
                    && h.size == found.stat().size
                    && h.mtime == found.stat().mtime =>
            {
                meter.p.done_bytes += found.stat().size;
                Ok(Some(Ask { vol, at: Target::File(at.clone()), ranges: Vec::new() }))
            }
            Some(_) => Ok(Some(Ask { vol, at: Target::File(at.clone()), ranges: vec![(0, u64::MAX)] })),
            None => {
                let op = Op::Create { at: at.clone(), kind: found.kind(), attr: found.attr(), pmtime };
                self.stage(vol, Op::Unlink { at: at.clone(), pmtime }, b"")?;
                self.stage(vol, op, b"")?;
                self.copy_content(src, vol, at, None, meter)?;
                Ok(None)
            }
        }
    }

    /// Of a file whose content is there.
    fn copy_attrs(&mut self, src: &Source, vol: VolId, at: &Name, told: &Told) -> Step<()> {
        let Some(found) = src.find(vol, at)? else { return Ok(()) };
        for op in found.attr_ops(Target::File(at.clone()), told.have.as_ref(), false)? {
            self.stage(vol, op, b"")?;
        }
        Ok(())
    }

    fn copy_content(&mut self, src: &Source, vol: VolId, at: &Name, told: Option<Told>, meter: &mut Meter) -> Step<()> {
        let Some(found) = src.find(vol, at)? else { return Ok(()) };
        let mut d = Differ::new(&found, &told, &Extent::Whole);
        let before = meter.p.done_bytes;
        while d.advance()? {
            while let Some((op, data)) = d.take(at) {
                self.stage(vol, op, &data)?;
            }
            meter.p.done_bytes = before + d.compared;
            self.tick()?;
            meter.show(&self.pair);
        }
        self.stats.bytes_copied += d.bytes;
        self.stats.files_copied += (d.bytes > 0 || told.is_none()) as u64;
        for op in found.attr_ops(Target::File(at.clone()), told.as_ref().and_then(|t| t.have.as_ref()), true)? {
            self.stage(vol, op, b"")?;
        }
        Ok(())
    }
}

fn rename(from: Name, to: Name) -> Op {
    Op::Rename { from, to, flags: 0, from_pmtime: Default::default(), to_pmtime: Default::default() }
}

pub(super) fn same_kind(h: &Have, f: &super::source::Found) -> bool {
    let s = f.stat();
    h.mode & libc::S_IFMT == s.mode & libc::S_IFMT
        && h.rdev == s.rdev
        && match f.kind() {
            NodeKind::Symlink(t) => t == h.target,
            _ => true,
        }
}

/// Directory ids so that each comes after its parent.
fn parents_first(dirs: &Dirs) -> Vec<DirId> {
    let mut out = Vec::with_capacity(dirs.len());
    let mut seen: HashSet<DirId> = HashSet::new();
    for start in dirs.keys() {
        let mut chain = Vec::new();
        let mut at = *start;
        while let Some(n) = dirs.get(&at) {
            if !seen.insert(at) {
                break;
            }
            chain.push(at);
            at = n.dir;
        }
        out.extend(chain.into_iter().rev());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_directory_comes_after_its_parent() {
        let n = |d, s: &str| Name::new(DirId(d), s);
        let dirs = [(DirId(20), n(1, "a")), (DirId(21), n(20, "b")), (DirId(22), n(21, "c")), (DirId(23), n(20, "d"))];
        let o = parents_first(&dirs.iter().cloned().collect());
        let pos = |d: u64| o.iter().position(|x| *x == DirId(d)).unwrap();
        assert!(pos(20) < pos(21) && pos(21) < pos(22) && pos(20) < pos(23) && o.len() == 4);
    }
}
