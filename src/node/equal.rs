//! A pair without a first copy, at the source: the operator says that both trees are equal, and they are compared by their
//! paths; then the other side takes over the ids of this one, and not a byte of content is sent (MS-11, MS-22). The same
//! walk, by names alone, finds what a first copy can keep of a tree that was placed at the other site by other means.
//!
//! ```text
//! Survey: the other side gives ids of its own to what it finds ─▶ point Q as for a first copy
//!        ─▶ listings of both, directory by directory from the root; attributes, hashes of blocks ─▶ differs: refused
//! Prepare ─▶ Same: its id ─▶ ours ─▶ CopyDone: at Q ─▶ entries after Q ─▶ PAIR
//! ```
//! Up to Prepare nothing is changed anywhere but ids in the table of a tree that has none. A file that is written meanwhile
//! and equal when it is looked at is right: the entries after Q set what they set once more.

use super::first_copy::Point;
use super::judge::{Case, Ours, ours};
use super::meter::{Meter, Totals};
use super::pairs::Pair;
use super::session::{Failure, Session, Step};
use super::status::{Progress, ResyncStats};
use super::tell;
use crate::base::sync::{Condvar, Mutex};
use crate::base::{DirId, Error, LinkId, Name, Result, VolId, random_u64};
use crate::format::msg::{Ask, Listed, Msg, Told};
use crate::format::op::Target;
use crate::pair::equal::{self, Differences, How, Links};
use crate::pair::state::Reason;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Directories listed in one question.
const LISTS: usize = 32;
/// Objects in one question.
const ASKS: usize = 64;
/// Content of a file that is compared together with other files, bytes.
const SMALL: u64 = 256 << 10;
/// Content of a larger file that is compared at a time, bytes.
const SLICE: u64 = 4 << 20;
/// How long the other side may take to look through its whole tree.
const SURVEY: Duration = Duration::from_secs(24 * 3600);
/// Ids in one message.
const PART: usize = 10_000;

/// The operator's word that both ends of a pair are equal, until it is found true or not.
pub struct Vouch {
    /// What is compared.
    pub how: How,
    said: Mutex<Option<Result<ResyncStats>>>,
    changed: Condvar,
}

impl Vouch {
    /// Nothing is known yet.
    pub fn new(how: How) -> Arc<Vouch> {
        Arc::new(Vouch { how, said: Mutex::new(None), changed: Condvar::new() })
    }

    /// What came of it; the first answer counts.
    pub fn settle(&self, r: Result<ResyncStats>) {
        self.said.lock().get_or_insert(r);
        self.changed.notify_all();
    }

    /// Waits a moment for [`Vouch::settle`].
    pub fn wait(&self, time: Duration) -> Option<Result<ResyncStats>> {
        let mut g = self.said.lock();
        if g.is_none() {
            self.changed.wait_for(&mut g, time);
        }
        g.clone()
    }
}

/// What a walk over both trees found.
#[derive(Default)]
pub(super) struct Matched {
    /// For each volume: directories that are at the same path, their id and ours.
    dirs: Vec<Vec<(DirId, DirId)>>,
    /// For each volume: our names of files with several links that are the same files there.
    links: Vec<Vec<(Name, LinkId)>>,
    differ: Differences,
    files: u64,
    /// Something is there.
    pub(super) any: bool,
}

/// One volume while it is walked.
struct Walk<'a> {
    at: &'a Point,
    vol: VolId,
    how: How,
    several: bool,
    /// Our directories at Q by their place.
    ours: HashMap<&'a Name, DirId>,
    links: Links,
    meter: Meter,
}

/// One object at both sides.
struct Object {
    ours: Target,
    theirs: Target,
}

impl Session {
    /// Goes the way without a copy; gives the point from which entries follow. Refused: the trees differ.
    pub(super) fn without_copy(&mut self, how: How) -> Step<crate::base::Seq> {
        let why = match how {
            How::Content => "compared, not copied",
            _ => "names and attributes compared, nothing copied",
        };
        self.begins("no-copy", Some(why));
        self.survey()?;
        let at = self.point(true)?;
        let m = self.match_trees(&at, how)?;
        self.pair.set_progress(None);
        let order = format!("kagami pair create {} {}", self.group.name, self.pair.name);
        if let Some(text) = m.differ.refusal(&self.pair.peer, &order) {
            return Err(Failure { reason: Reason::PeerRefused, error: Error::refused(text) });
        }
        let id = self.announce()?;
        self.stage_heads()?;
        self.give_ids(id, m.dirs, m.links)?;
        self.stats.files_examined = m.files;
        self.end_copy(id, at)
    }

    /// The other side looks through its tree, so that everything in it can be addressed.
    pub(super) fn survey(&mut self) -> Step<()> {
        let id = random_u64();
        self.say(&Msg::Survey { id })?;
        match self.hear(SURVEY)? {
            Msg::Surveyed { id: i } if i == id => Ok(()),
            _ => Err(Error::corrupt("unexpected answer to the order to look through the tree").into()),
        }
    }

    /// What of a tree that was placed there by other means has our names: it keeps its content, and gets our ids.
    pub(super) fn keep_placed(&mut self, id: u64, at: &Point) -> Step<()> {
        let m = self.match_trees(at, How::Names)?;
        if m.any {
            log::info!(
                "group {} pair {}: site {} has a tree already; what is equal is not sent",
                self.group.name,
                self.pair.name,
                self.pair.peer
            );
            // Nobody knows by what means it came there: size and time prove nothing.
            self.thorough = true;
            self.give_ids(id, m.dirs, m.links)?;
        }
        Ok(())
    }

    /// Tells our ids of what is there.
    fn give_ids(&mut self, id: u64, dirs: Vec<Vec<(DirId, DirId)>>, links: Vec<Vec<(Name, LinkId)>>) -> Step<()> {
        for (i, (dirs, links)) in dirs.into_iter().zip(links).enumerate() {
            let vol = VolId(i as u16);
            for part in dirs.chunks(PART) {
                self.say(&Msg::Same { id, vol, dirs: part.to_vec(), links: Vec::new(), last: false })?;
            }
            for part in links.chunks(PART) {
                self.say(&Msg::Same { id, vol, dirs: Vec::new(), links: part.to_vec(), last: false })?;
            }
            self.say(&Msg::Same { id, vol, dirs: Vec::new(), links: Vec::new(), last: true })?;
        }
        Ok(())
    }

    fn match_trees(&mut self, at: &Point, how: How) -> Step<Matched> {
        let mut out = Matched::default();
        let several = at.dirs.len() > 1;
        for (i, dirs) in at.dirs.iter().enumerate() {
            let vol = VolId(i as u16);
            let ours = dirs.iter().map(|(id, at)| (at, *id)).collect();
            let meter = Meter::new("compare");
            let mut w = Walk { at, vol, how, several, ours, links: Links::default(), meter };
            let same = self.match_volume(&mut w, &mut out)?;
            out.dirs.push(same);
            out.links.push(w.links.whole());
            if how != How::Names && out.differ.enough() {
                break;
            }
        }
        Ok(out)
    }

    /// Gives the directories that are at the same path, their id and ours.
    fn match_volume(&mut self, w: &mut Walk, out: &mut Matched) -> Step<Vec<(DirId, DirId)>> {
        let totals = Totals::count(self.group.replica.clone(), w.vol);
        let mut same = Vec::new();
        let mut todo = VecDeque::from([(DirId::ROOT, DirId::ROOT)]);
        while !todo.is_empty() && (w.how == How::Names || !out.differ.enough()) {
            let some: Vec<(DirId, DirId)> = todo.drain(..todo.len().min(LISTS)).collect();
            let asked: Vec<DirId> = some.iter().map(|(_, t)| *t).collect();
            let lists = self.their_lists(w.vol, &asked)?.into_iter();
            let mut lists: HashMap<DirId, Vec<Listed>> = lists.map(|(d, l)| (d, l.unwrap_or_default())).collect();
            let mut objects = Vec::new();
            for (ours, theirs) in some {
                objects.push(Object { ours: Target::Dir(ours), theirs: Target::Dir(theirs) });
                let list = lists.remove(&theirs).unwrap_or_default();
                let below = self.match_dir(w, (ours, theirs), list, &mut objects, out)?;
                same.extend(&below);
                todo.extend(below);
            }
            if w.how != How::Names {
                for part in objects.chunks(ASKS) {
                    self.compare(w, part, &mut out.differ)?;
                    totals.fill(&mut w.meter);
                    w.meter.show(&self.pair);
                    if out.differ.enough() {
                        break;
                    }
                }
            }
            self.tick()?;
        }
        Ok(same.into_iter().map(|(o, t)| (t, o)).collect())
    }

    /// The names of one directory. Gives the directories in it that both sides have, our id and theirs.
    fn match_dir(
        &mut self,
        w: &mut Walk,
        (ours, theirs): (DirId, DirId),
        list: Vec<Listed>,
        objects: &mut Vec<Object>,
        out: &mut Matched,
    ) -> Step<Vec<(DirId, DirId)>> {
        let region = self.group.replica.region(w.vol)?.clone();
        let listing = tell::names(&region, ours)?.unwrap_or_default();
        let names = w.at.src.watch.lock().names_at_q(w.vol, ours, listing);
        out.any |= !list.is_empty();
        let met = equal::meet(names, list.into_iter().map(|l| (l.name, l.have)).collect());
        for n in met.here {
            self.differs(w, out, &Name::new(ours, n), "missing at");
        }
        for n in met.there {
            self.differs(w, out, &Name::new(ours, n), "only at");
        }
        let mut below = Vec::new();
        for (n, have) in met.both {
            let at = Name::new(ours, n.clone());
            let is_dir = have.mode & libc::S_IFMT == libc::S_IFDIR;
            match (w.ours.get(&at), is_dir) {
                (Some(id), true) => match have.dir {
                    Some(t) => below.push((*id, t)),
                    None => self.differs(w, out, &at, "being changed at"),
                },
                (None, false) => {
                    out.files += 1;
                    let lid = region.link_names(&at).map(|(l, _)| l);
                    if !w.links.meet(&at, lid, have.ino, have.nlink) {
                        self.differs(w, out, &at, "its names are not those of one file at");
                    }
                    let theirs = Target::File(Name::new(theirs, n));
                    objects.push(Object { ours: Target::File(at), theirs });
                }
                _ => self.differs(w, out, &at, "another type at"),
            }
        }
        Ok(below)
    }

    fn differs(&self, w: &Walk, out: &mut Matched, at: &Name, what: &str) {
        if w.how != How::Names && !out.differ.enough() {
            out.differ.add(self.path_of(w, at), format!("{what} {}", self.pair.peer));
        }
    }

    fn path_of(&self, w: &Walk, at: &Name) -> String {
        match self.group.replica.region(w.vol) {
            Ok(r) if w.several => format!("{}:{}", r.identity().volume, r.path_of(at)),
            Ok(r) => r.path_of(at),
            Err(_) => String::from_utf8_lossy(&at.name).into_owned(),
        }
    }

    /// Compares objects, at most [`ASKS`].
    fn compare(&mut self, w: &mut Walk, objects: &[Object], differ: &mut Differences) -> Step<()> {
        let (mut found, mut asks, mut cases) = (Vec::new(), Vec::new(), Vec::new());
        for o in objects {
            let f = match &o.ours {
                Target::File(n) => w.at.src.find(w.vol, n),
                Target::Dir(d) => w.at.src.find_dir(w.vol, *d),
            };
            let size = f.as_ref().ok().and_then(Option::as_ref).map_or(0, |f| f.stat().size);
            let file = w.how == How::Content && matches!(&f, Ok(Some(f)) if f.content().is_some());
            let ranges = if file && size > 0 { vec![(0, SMALL.min(size))] } else { Vec::new() };
            cases.push(Case::new(&Ask { vol: w.vol, at: o.ours.clone(), ranges: ranges.clone() }));
            asks.push(Ask { vol: w.vol, at: o.theirs.clone(), ranges });
            found.push(f);
        }
        let id = self.pose(asks.clone())?;
        // The other side reads and hashes meanwhile.
        let ours: Vec<Result<Ours>> = found.iter().zip(&asks).map(|(f, a)| ours(f, a)).collect();
        let told = self.answers(id, asks.len())?;
        let peer = self.pair.peer.clone();
        for (i, ((mut c, ours), told)) in cases.into_iter().zip(ours).zip(told).enumerate() {
            c.judge(&ours, &told, &peer);
            let gone = matches!((&ours, &told.have), (Ok(None), _) | (_, None));
            if gone && c.what.is_empty() {
                c.what.push("is being changed".into());
            }
            if let (Ok(Some((h, _))), Some(t)) = (&ours, &told.have)
                && h.mode & libc::S_IFMT == libc::S_IFREG
            {
                if h.nlink != t.nlink {
                    c.what.push(format!("{} links here, {} at {peer}", h.nlink, t.nlink));
                }
                w.meter.p.done_files += 1;
                w.meter.p.done_bytes += h.size.min(SMALL);
                let (size, f) = (h.size, found.get(i).and_then(|f| f.as_ref().ok()).and_then(Option::as_ref));
                if let (How::Content, Some(f), Some(ask), true) = (w.how, f, asks.get(i), size == t.size)
                    && c.what.is_empty()
                {
                    self.rest(w, &mut c, f, ask, size)?;
                }
            }
            if !c.what.is_empty() {
                self.object_differs(w, &c, differ);
            }
        }
        Ok(())
    }

    /// The rest of a large file, slice by slice.
    fn rest(&mut self, w: &mut Walk, c: &mut Case, f: &super::source::Found, ask: &Ask, size: u64) -> Step<()> {
        let (mut off, mut buf) = (SMALL, Vec::new());
        while off < size && c.what.is_empty() {
            let end = size.min(off + SLICE);
            let id = self.pose(vec![Ask { ranges: vec![(off, end)], ..ask.clone() }])?;
            let mine = match f.content() {
                Some(fd) => tell::blocks(fd, off, end, &mut buf),
                None => Ok(Vec::new()),
            };
            let told: Vec<Told> = self.answers(id, 1)?;
            match (mine, told.first()) {
                (Ok(mine), Some(t)) => c.content(&mine, t.blocks.first().map_or(&[], Vec::as_slice), off, end),
                (Err(e), _) => c.what.push(format!("cannot be read here: {e}")),
                _ => {}
            }
            w.meter.p.done_bytes += end - off;
            off = end;
            w.meter.show(&self.pair);
            self.tick()?;
        }
        Ok(())
    }

    fn object_differs(&self, w: &Walk, c: &Case, differ: &mut Differences) {
        let path = match &c.ask.at {
            Target::File(n) => self.path_of(w, n),
            Target::Dir(d) => {
                let of = self.group.replica.region(w.vol).map(|r| r.path_of_dir(*d)).unwrap_or_default();
                let of = if of.is_empty() { ".".into() } else { String::from_utf8_lossy(&of).into_owned() };
                if w.several {
                    let volume = self.group.replica.region(w.vol).map(|r| r.identity().volume).unwrap_or_default();
                    format!("{volume}:{of}")
                } else {
                    of
                }
            }
        };
        let changed = w.at.src.watch.lock().changed(w.vol, &c.ask.at, c.lid);
        let also = if changed { ", changed while it was compared" } else { "" };
        differ.add(path, format!("{}{also}", c.what.join(", ")));
    }
}

/// Waits until the word is found true or not; `tell` hears how far the comparison is.
pub fn wait(pair: &Pair, v: &Vouch, leads: &dyn Fn() -> bool, tell: &dyn Fn(&Progress)) -> Result<ResyncStats> {
    loop {
        if let Some(r) = v.wait(Duration::from_millis(200)) {
            return r;
        }
        if let Some(p) = pair.progress() {
            tell(&p);
        }
        if !leads() {
            let e = Error::failed("the role of this site changed meanwhile");
            pair.settle_vouch(Err(e.clone()));
            return Err(e);
        }
    }
}
