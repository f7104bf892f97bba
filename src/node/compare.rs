//! An online comparison with one secondary, at the primary: everything is walked while the volume is in use.
//!
//! ```text
//! point: Q = head, watch of names and marks ─▶ the secondary holds its tree exactly at Q, accepts on
//!        ─▶ listings, states, hashes of blocks of both sides ─▶ released; candidates = what differed
//! next point (every few seconds, so that little waits to be applied) …
//! last:  candidates again at further points: differs and untouched since its point twice = a difference;
//!        touched every time = changing, which is told apart
//! ```
//! The primary's objects are read as they are now. One that no change has touched since Q, and that no change under way
//! touches, is as it was at Q: only such a one is judged.

use super::desk::{Desk, Talk};
use super::judge::{Case, Ours, ours};
use super::source::{Found, Source};
use super::status::Progress;
use super::tell;
use crate::base::{DirId, Error, LinkId, Name, Result, VolId, random_u64};
use crate::format::msg::{Ask, Listed, Msg, Told};
use crate::format::op::Target;
use crate::store::region::Region;
use crate::volume::group::Group;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Directories listed in one question.
const LISTS: usize = 16;
/// Objects in one question.
const ASKS: usize = 64;
/// Content compared in one question, bytes: what the secondary reads before it answers.
const SLICE: u64 = 4 << 20;
/// Content of a file that is compared together with other files, bytes.
const SMALL: u64 = 256 << 10;
/// Applying at the secondary is held for about this long at a time.
const POINT: Duration = Duration::from_secs(5);
/// Or until this much has been written since, bytes.
const POINT_BYTES: u64 = 32 << 20;
/// How often what differed or changed is looked at again, and the pause before each time.
const AGAIN: [u64; 6] = [0, 50, 200, 500, 1000, 2000];
/// Times an object must be found to differ.
const SURE: u32 = 2;
/// How long the secondary may take for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// One object that differs, or that could not be judged.
#[derive(Clone, Debug)]
pub struct Diff {
    /// Volume.
    pub vol: VolId,
    /// The object, by its name at the point of the comparison.
    pub at: Target,
    /// Path for people.
    pub path: String,
    /// What differs, for people.
    pub what: String,
    /// A directory is missing, too many or another one.
    pub dirs: bool,
    /// Digest of what the secondary has (zero: nothing), to tell which of three replicas is the odd one.
    pub theirs: [u8; 16],
    lid: Option<LinkId>,
}

/// What a comparison found.
#[derive(Default)]
pub struct Outcome {
    /// Names compared.
    pub files: u64,
    /// Content compared, bytes.
    pub bytes: u64,
    /// Differences.
    pub differences: Vec<Diff>,
    /// Objects that were changed every time they were looked at.
    pub changing: Vec<Diff>,
}

struct Point {
    id: u64,
    src: Source,
    since: Instant,
    total: u64,
}

/// A comparison under way.
pub struct Walk<'a> {
    group: &'a Arc<Group>,
    talk: Talk,
    desk: Arc<Desk>,
    peer: String,
    point: Option<Point>,
    candidates: Vec<Diff>,
    again: Vec<Diff>,
    /// How often in a row an object was found to differ.
    seen: HashMap<(VolId, Target), u32>,
    /// The last point stood still and nothing was under way at its end.
    steady: bool,
    out: Outcome,
    total: u64,
    begun: Instant,
    tell: &'a dyn Fn(&Progress),
}

/// Compares the group's replica with that of `peer`. `tell` hears how far it is.
pub fn compare(group: &Arc<Group>, desk: &Arc<Desk>, peer: &str, tell: &dyn Fn(&Progress)) -> Result<Outcome> {
    let mut w = Walk {
        group,
        talk: desk.take()?,
        desk: desk.clone(),
        peer: peer.to_owned(),
        point: None,
        candidates: Vec::new(),
        again: Vec::new(),
        seen: HashMap::new(),
        steady: true,
        out: Outcome::default(),
        total: 0,
        begun: Instant::now(),
        tell,
    };
    let r = w.run();
    if let Some(p) = w.point.take() {
        let _ = w.talk.say(&Msg::Release { id: p.id });
    }
    r.map(|()| w.out)
}

impl Walk<'_> {
    fn run(&mut self) -> Result<()> {
        let regions = &self.group.replica.regions;
        let all = |r: &Region| -> Vec<DirId> {
            let ids = r.ids.read();
            std::iter::once(DirId::ROOT).chain(ids.dirs().map(|(id, _)| id)).collect()
        };
        // How much there is, for people, before anything stands still.
        for r in regions {
            self.total +=
                all(r).iter().filter_map(|d| tell::names(r, *d).ok().flatten()).map(|n| n.len() as u64).sum::<u64>();
        }
        self.open()?;
        let dirs: Vec<(VolId, Vec<DirId>)> = regions.iter().map(|r| (r.vol, all(r))).collect();
        for (vol, all) in &dirs {
            for chunk in all.chunks(LISTS) {
                self.renew_if_due()?;
                self.dirs(*vol, chunk)?;
            }
        }
        self.close()?;
        for pause in AGAIN {
            if self.again.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(pause));
            self.once_more()?;
        }
        self.out.changing = std::mem::take(&mut self.again);
        for d in &mut self.out.changing {
            d.what = "changing all the time".into();
        }
        Ok(())
    }

    fn once_more(&mut self) -> Result<()> {
        let before = std::mem::take(&mut self.again);
        self.open()?;
        let (files, bytes) = (self.out.files, self.out.bytes);
        for chunk in before.chunks(ASKS) {
            self.renew_if_due()?;
            let items: Vec<_> = chunk.iter().map(|d| (d.vol, d.at.clone())).collect();
            self.objects(&items)?;
        }
        (self.out.files, self.out.bytes) = (files, bytes);
        self.close()
    }

    /// A new point: the secondary's tree stands still there.
    fn open(&mut self) -> Result<()> {
        let id = random_u64();
        let (watch, total) = self.desk.at_a_point(|send| {
            let (q, watch) = {
                let mut m = self.group.replica.order();
                let w = self.group.replica.watch(&mut m);
                w.lock().follow_marks();
                (m.live.last_seq(), w)
            };
            send(&Msg::Hold { id, at: q })?;
            Ok((watch, self.group.queue.total()))
        })?;
        let src = Source { replica: self.group.replica.clone(), watch };
        self.point = Some(Point { id, src, since: Instant::now(), total });
        match self.talk.hear(PATIENCE)? {
            Msg::Held { id: i, ok: true } if i == id => {}
            Msg::Held { .. } => {
                return Err(Error::failed(format!("the tree at site {} could not be held at one point", self.peer)));
            }
            _ => return Err(Error::corrupt("unexpected answer to the question for a point")),
        }
        if let Some(p) = &mut self.point {
            p.since = Instant::now();
        }
        Ok(())
    }

    fn src(&self) -> Result<&Source> {
        self.point.as_ref().map(|p| &p.src).ok_or_else(|| Error::failed("no point to compare at"))
    }

    fn renew_if_due(&mut self) -> Result<()> {
        let due = self.point.as_ref().is_none_or(|p| {
            p.since.elapsed() > POINT || self.group.queue.total().saturating_sub(p.total) > POINT_BYTES
        });
        if due {
            self.close()?;
            self.open()?;
        }
        Ok(())
    }

    /// Ends the point. What differed goes to be looked at again, or, once it is sure, to the differences.
    fn close(&mut self) -> Result<()> {
        let Some(p) = self.point.take() else { return Ok(()) };
        self.talk.say(&Msg::Release { id: p.id })?;
        let kept = match self.talk.hear(PATIENCE)? {
            Msg::Released { id, kept } if id == p.id => kept,
            _ => return Err(Error::corrupt("unexpected answer to the end of a point")),
        };
        // A change under way may have reached our tree and not yet the watch.
        let quiet = self.group.quiesce(Duration::from_secs(5)).is_ok();
        self.steady = kept && quiet;
        let watch = p.src.watch.lock();
        for d in std::mem::take(&mut self.candidates) {
            let seen = self.seen.entry((d.vol, d.at.clone())).or_default();
            let steady = self.steady && !watch.changed(d.vol, &d.at, d.lid);
            *seen = if steady { *seen + 1 } else { 0 };
            if *seen >= SURE {
                self.out.differences.push(d);
                continue;
            }
            // Where it went, if it was renamed: its content must not slip through.
            if let (false, Target::File(n)) = (steady, &d.at)
                && let Some(now) = watch.locate(d.vol, n, |l| self.another(d.vol, l)).filter(|now| now != n)
            {
                self.again.push(Diff { at: Target::File(now), ..d.clone() });
            }
            self.again.push(d);
        }
        Ok(())
    }

    fn another(&self, vol: VolId, lid: LinkId) -> Option<Name> {
        self.group.replica.region(vol).ok()?.ids.read().names_of(lid).first().cloned()
    }

    fn dirs(&mut self, vol: VolId, dirs: &[DirId]) -> Result<()> {
        let region = self.group.replica.region(vol)?.clone();
        let mut items = Vec::new();
        for (dir, theirs) in self.lists(vol, dirs)? {
            items.push((vol, Target::Dir(dir)));
            // Gone here since the point, or missing there (which its own name in the parent shows).
            let (Some(theirs), Ok(Some(listing))) = (theirs, tell::names(&region, dir)) else { continue };
            let ours = self.src()?.watch.lock().names_at_q(vol, dir, listing);
            let known: HashSet<&[u8]> = ours.iter().map(Vec::as_slice).collect();
            let extra = theirs.iter().filter(|l| !known.contains(l.name.as_slice())).map(|l| l.name.clone());
            let extra: Vec<Vec<u8>> = extra.collect();
            self.out.files += ours.len() as u64;
            items.extend(ours.into_iter().chain(extra).map(|n| (vol, Target::File(Name::new(dir, n)))));
        }
        for chunk in items.chunks(ASKS) {
            self.renew_if_due()?;
            self.objects(chunk)?;
            self.progress();
        }
        Ok(())
    }

    fn progress(&self) {
        let rate = self.out.bytes as f64 / self.begun.elapsed().as_secs_f64().max(1e-3);
        (self.tell)(&Progress {
            phase: format!("verify {}", self.peer),
            done_bytes: self.out.bytes,
            done_files: self.out.files,
            total_files: self.total.max(self.out.files),
            rate_bytes_s: rate,
            ..Progress::default()
        });
    }

    fn lists(&mut self, vol: VolId, dirs: &[DirId]) -> Result<Vec<(DirId, Option<Vec<Listed>>)>> {
        let id = random_u64();
        self.talk.say(&Msg::ListAsk { id, vol, dirs: dirs.to_vec() })?;
        let mut out: Vec<(DirId, Option<Vec<Listed>>)> = Vec::new();
        loop {
            match self.talk.hear(PATIENCE)? {
                Msg::ListPart { id: i, lists, last } if i == id => {
                    for (d, l) in lists {
                        match out.last_mut() {
                            Some((pd, Some(pl))) if *pd == d => pl.extend(l.unwrap_or_default()),
                            _ => out.push((d, l)),
                        }
                    }
                    if last {
                        return Ok(out);
                    }
                }
                _ => return Err(Error::corrupt("unexpected answer to the question for listings")),
            }
        }
    }

    /// Compares objects, at most [`ASKS`].
    fn objects(&mut self, items: &[(VolId, Target)]) -> Result<()> {
        let mut found = Vec::new();
        let mut asks = Vec::new();
        for (vol, at) in items {
            let f = match at {
                Target::File(n) => self.src()?.find(*vol, n),
                Target::Dir(d) => self.src()?.find_dir(*vol, *d),
            };
            let size = f.as_ref().ok().and_then(Option::as_ref).map_or(0, |f| f.stat().size);
            let file = matches!(&f, Ok(Some(f)) if f.content().is_some());
            let ranges = if file && size > 0 { vec![(0, SMALL.min(size))] } else { Vec::new() };
            asks.push(Ask { vol: *vol, at: at.clone(), ranges });
            found.push(f);
        }
        let id = self.ask(&asks)?;
        // The secondary reads and hashes meanwhile.
        let ours: Vec<Result<Ours>> = found.iter().zip(&asks).map(|(f, a)| ours(f, a)).collect();
        let told = self.told(id, asks.len())?;
        let mut large = Vec::new();
        for (((ask, f), ours), told) in asks.iter().zip(&found).zip(ours).zip(told) {
            let mut c = Case::new(ask);
            c.judge(&ours, &told, &self.peer);
            self.linked(&mut c, &ours, &told)?;
            if let (Ok(Some(f)), Ok(Some((h, _))), Some(t)) = (f, &ours, &told.have) {
                self.out.bytes += h.size.min(SMALL);
                if h.size == t.size && h.size > SMALL && f.content().is_some() {
                    large.push((c, f, h.size));
                    continue;
                }
            }
            self.settle(c)?;
        }
        for (mut c, f, size) in large {
            self.rest(&mut c, f, size)?;
            self.settle(c)?;
        }
        Ok(())
    }

    fn ask(&mut self, asks: &[Ask]) -> Result<u64> {
        let id = random_u64();
        self.talk.say(&Msg::Query { id, asks: asks.to_vec() })?;
        Ok(id)
    }

    fn told(&mut self, id: u64, n: usize) -> Result<Vec<Told>> {
        let mut out = Vec::new();
        while out.len() < n {
            match self.talk.hear(PATIENCE)? {
                Msg::Answer { id: i, tolds } if i == id && !tolds.is_empty() => out.extend(tolds),
                _ => return Err(Error::corrupt("unexpected answer to a question about files")),
            }
        }
        Ok(out)
    }

    /// The rest of a large file, slice by slice.
    fn rest(&mut self, c: &mut Case, f: &Found, size: u64) -> Result<()> {
        let mut off = SMALL;
        while off < size {
            let before = self.point.as_ref().map(|p| (p.id, p.src.watch.clone()));
            self.renew_if_due()?;
            if let Some((id, watch)) = before
                && self.point.as_ref().is_some_and(|p| p.id != id)
                && (!self.steady || watch.lock().changed(c.ask.vol, &c.ask.at, c.lid))
            {
                // It may have another name by now; it is looked at again later.
                c.unsure = true;
                return Ok(());
            }
            let end = size.min(off + SLICE);
            let ask = Ask { ranges: vec![(off, end)], ..c.ask.clone() };
            let id = self.ask(std::slice::from_ref(&ask))?;
            let mut buf = Vec::new();
            let mine = match f.content() {
                Some(fd) => tell::blocks(fd, off, end, &mut buf),
                None => Ok(Vec::new()),
            };
            let told = self.told(id, 1)?;
            match (mine, told.first()) {
                (Ok(mine), Some(t)) => c.content(&mine, t.blocks.first().map_or(&[], Vec::as_slice), off, end),
                (Err(e), _) => c.what.push(format!("cannot be read here: {e}")),
                _ => {}
            }
            self.out.bytes += end - off;
            off = end;
            self.progress();
        }
        Ok(())
    }

    /// Files with several links: the same names must be one file at both sides.
    fn linked(&mut self, c: &mut Case, ours: &Result<Ours>, told: &Told) -> Result<()> {
        let (Ok(Some((ours, _))), Some(theirs), Target::File(at)) = (ours, &told.have, &c.ask.at) else {
            return Ok(());
        };
        if ours.mode & libc::S_IFMT == libc::S_IFDIR || (ours.nlink == 1 && theirs.nlink == 1) {
            return Ok(());
        }
        let vol = c.ask.vol;
        c.lid = ours.lid.or(theirs.lid);
        if ours.nlink != theirs.nlink {
            c.what.push(format!("{} links here, {} at {}", ours.nlink, theirs.nlink, self.peer));
            return Ok(());
        }
        let names = self.group.replica.region(vol)?.link_names(at).map(|(_, n)| n).unwrap_or_default();
        // Once for each file, at its first name.
        if names.iter().min() != Some(at) {
            return Ok(());
        }
        let asks: Vec<Ask> = names.into_iter().map(|n| Ask { vol, at: Target::File(n), ranges: Vec::new() }).collect();
        for part in asks.chunks(ASKS) {
            let id = self.ask(part)?;
            let told = self.told(id, part.len())?;
            if told.iter().any(|t| t.have.as_ref().is_none_or(|h| h.ino != theirs.ino)) {
                c.what.push("its names are not one file".into());
                return Ok(());
            }
        }
        Ok(())
    }

    fn settle(&mut self, c: Case) -> Result<()> {
        if c.what.is_empty() && !c.unsure {
            return Ok(());
        }
        let region = self.group.replica.region(c.ask.vol)?;
        let lid = match &c.ask.at {
            Target::File(n) => c.lid.or_else(|| region.ids.read().link_of(n)),
            Target::Dir(_) => None,
        };
        let theirs = c.digest();
        let list = if c.unsure { &mut self.again } else { &mut self.candidates };
        list.push(Diff {
            vol: c.ask.vol,
            path: path(region, &c.ask.at, self.group.replica.regions.len() > 1),
            at: c.ask.at,
            what: c.what.join(", "),
            dirs: c.dirs,
            theirs,
            lid,
        });
        Ok(())
    }
}

/// The path of an object, for people.
fn path(region: &Region, at: &Target, several: bool) -> String {
    let p = match at {
        Target::File(n) => region.path_of(n),
        Target::Dir(d) => {
            let rec = region.ids.read().dir(*d).map(|r| Name::new(r.parent, r.name.to_vec()));
            rec.map_or_else(|| ".".to_owned(), |n| region.path_of(&n))
        }
    };
    if several { format!("{}:{p}", region.identity().volume) } else { p }
}

#[cfg(test)]
impl Diff {
    pub(super) fn for_test(vol: VolId, at: Target, path: &str, theirs: [u8; 16]) -> Diff {
        Diff { vol, at, path: path.into(), what: "content".into(), dirs: false, theirs, lid: None }
    }
}
