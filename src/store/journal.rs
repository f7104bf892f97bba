//! The change journal on disk: intervals of records, one file each.
//!
//! ```text
//! .kagami/journal/%016x.kj (interval number): header "KGMJRNL\0" v1 | record: encoded IntervalHead | record*: encoded Rec
//! ```
//! Names are recorded one by one; marks of content once per file, granule and interval (the hot path is a lookup).
//! Records are written with write(2): they survive a killed process at once, and are flushed before or with every fsync.
//!
//! A mark says "at some time in this interval", so who is behind from the middle of an interval would have to look at all
//! of it. The last records are therefore kept in memory, the spared marks as well: when a peer is lost,
//! [`Journal::split`] begins an interval at the very position that the peer has, and repeats what came after it there.

use super::room::Room;
use crate::base::planted::{Bug, planted};
use crate::base::{At, Error, Name, Result, Seq, VolId, limits};
use crate::format::op::Target;
use crate::format::{codec, file};
use crate::pair::change::{Change, NsChange, Rec, What};
use crate::pair::ranges::Ranges;
use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

const MAGIC: &[u8; 8] = b"KGMJRNL\0";
const VERSION: u32 = 1;
/// What a new interval must have room for, bytes.
const RESERVE_BYTES: u64 = 64 << 10;
/// Intervals get longer when there are many, so that a long outage does not make a file every ten seconds.
const INTERVALS_SOFT: usize = 64;
/// Records kept in memory for [`Journal::split`].
const TAIL_RECORDS: usize = 2048;

/// The first record of an interval's file.
#[derive(Encode, Decode, Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntervalHead {
    /// Counts up from 1.
    pub number: u64,
    /// Records here are of entries after this one.
    pub after: Seq,
    /// How it began.
    pub kind: Kind,
}

/// What an interval begins with.
#[derive(Encode, Decode, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What came next.
    Plain,
    /// Its records are of a resync that took this replica from the first position to the second at once: between the
    /// two there is no point at which they could be cut.
    Jump(Seq, Seq),
    /// So many records that earlier intervals have as well, if only by a mark that spared them.
    Repeats(u64),
}

struct Interval {
    head: IntervalHead,
    path: PathBuf,
    bytes: u64,
}

#[derive(Default)]
struct Marked {
    attr: bool,
    data: Ranges,
}

/// The journal of a replica.
pub struct Journal {
    dir: PathBuf,
    intervals: Vec<Interval>,
    file: File,
    /// Intervals that were closed and not yet flushed.
    closed: Vec<File>,
    marked: HashMap<(VolId, Target), Marked>,
    opened: Instant,
    dirty: bool,
    /// The name of the present interval is not durable yet.
    new_name: bool,
    /// The present interval holds records.
    used: bool,
    limit_bytes: u64,
    last_ns: Seq,
    last_rec: Seq,
    /// The last records, those after `tail_after`, the spared ones as well.
    tail: VecDeque<Rec>,
    tail_after: Seq,
    room: Room,
}

impl Journal {
    /// Opens the journal in `dir` and begins a new interval after `last`. A new journal begins at `last`.
    pub fn open(dir: &Path, last: Seq, limit_bytes: u64) -> Result<Journal> {
        std::fs::create_dir_all(dir).at(dir.display())?;
        let mut intervals = Vec::new();
        let (mut last_ns, mut last_rec) = (Seq(0), Seq(0));
        for e in std::fs::read_dir(dir).at(dir.display())? {
            let path = e.at(dir.display())?.path();
            if path.extension().is_none_or(|x| x != "kj") {
                continue;
            }
            let bytes = std::fs::read(&path).at(path.display())?;
            match parse(&bytes, &path)? {
                Some((head, recs)) => {
                    for r in &recs {
                        last_rec = last_rec.max(r.seq);
                        if let Change::Ns(_) = r.change {
                            last_ns = last_ns.max(r.seq);
                        }
                    }
                    give_back(&path, bytes.len() as u64);
                    intervals.push(Interval { head, path, bytes: bytes.len() as u64 });
                }
                // Killed while it was made: it holds nothing.
                None => std::fs::remove_file(&path).at(path.display())?,
            }
        }
        intervals.sort_by_key(|i| i.head.number);
        let number = intervals.last().map_or(1, |i| i.head.number + 1);
        let (iv, file) = begin(dir, IntervalHead { number, after: last, kind: Kind::Plain }, &[])?;
        intervals.push(iv);
        Ok(Journal {
            dir: dir.to_owned(),
            intervals,
            file,
            closed: Vec::new(),
            marked: HashMap::new(),
            opened: Instant::now(),
            dirty: true,
            new_name: true,
            used: false,
            limit_bytes,
            last_ns,
            last_rec,
            tail: VecDeque::new(),
            tail_after: last,
            room: Room::default(),
        })
    }

    /// The newest interval and its length, bytes.
    pub fn place(&self) -> (u64, u64) {
        self.intervals.last().map_or((0, 0), |i| (i.head.number, i.bytes))
    }

    /// Cuts the journal in `dir`, which is not open, back to a [`Journal::place`] that it had.
    pub fn cut(dir: &Path, (number, bytes): (u64, u64)) -> Result<()> {
        for e in std::fs::read_dir(dir).at(dir.display())? {
            let path = e.at(dir.display())?.path();
            let n = path.file_stem().and_then(|n| n.to_str()).and_then(|n| u64::from_str_radix(n, 16).ok());
            match n.filter(|_| path.extension().is_some_and(|x| x == "kj")) {
                Some(n) if n > number => std::fs::remove_file(&path).at(path.display())?,
                Some(n) if n == number => {
                    let f = std::fs::OpenOptions::new().write(true).open(&path).at(path.display())?;
                    if f.metadata().at(path.display())?.len() > bytes {
                        f.set_len(bytes).at(path.display())?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The journal knows every change after this position.
    pub fn begins_after(&self) -> Seq {
        self.intervals.first().map_or(Seq(0), |i| i.head.after)
    }

    /// Position of the newest record of names; tells whether an interrupted operation was recorded.
    pub fn last_ns(&self) -> Seq {
        self.last_ns
    }

    /// Position of the newest record found when the journal was opened.
    pub fn last_found(&self) -> Seq {
        self.last_rec
    }

    /// Bytes on disk and number of intervals.
    pub fn size(&self) -> (u64, usize) {
        (self.intervals.iter().map(|i| i.bytes).sum(), self.intervals.len())
    }

    /// Makes sure that this many bytes of records can be written when the disk is full. What is recorded after a
    /// change was made must not fail.
    pub fn reserve(&mut self, bytes: u64) -> Result<()> {
        let used = self.intervals.last().map_or(0, |i| i.bytes);
        self.room.ensure(&self.file, used, bytes).at("journal")
    }

    fn append(&mut self, r: &Rec) -> Result<()> {
        let mut out = Vec::with_capacity(128);
        file::put_record(&mut out, &codec::encode(r)?);
        self.reserve(out.len() as u64)?;
        let Some(i) = self.intervals.last_mut() else { return Err(Error::failed("journal: no interval")) };
        if let Err(e) = self.file.write_all(&out) {
            // Half a record would hide all that follow.
            self.file.set_len(i.bytes).at("journal")?;
            return Err(Error::from(e).context("journal"));
        }
        i.bytes += out.len() as u64;
        self.dirty = true;
        self.used = true;
        Ok(())
    }

    fn forget_tail(&mut self, upto: Seq) {
        self.tail.clear();
        self.tail_after = upto;
    }

    /// Remembers a record that is in the interval, or spared there.
    fn keep(&mut self, r: Rec) {
        // The same again, which is the most frequent by far: as if it were only now.
        if let (Some(last), Change::Data { at, from, to, .. }) = (self.tail.back_mut(), &r.change)
            && let Change::Data { at: a, from: f, to: t, .. } = &last.change
            && (last.vol, a, f) == (r.vol, at, from)
            && t == to
        {
            last.seq = r.seq;
            return;
        }
        if self.tail.len() == TAIL_RECORDS
            && let Some(first) = self.tail.pop_front()
        {
            self.tail_after = self.tail_after.max(first.seq);
        }
        self.tail.push_back(r);
    }

    /// What these names are now needs marks of its own.
    fn unspare(&mut self, vol: VolId, change: &NsChange) {
        for n in change.names().into_iter().flatten() {
            self.marked.remove(&(vol, Target::File(n.clone())));
        }
    }

    /// Records a change of names.
    pub fn names(&mut self, seq: Seq, vol: VolId, change: NsChange) -> Result<()> {
        self.unspare(vol, &change);
        self.last_ns = self.last_ns.max(seq);
        let rec = Rec { seq, vol, change: Change::Ns(change) };
        if planted(Bug::DropNames) && seq.0.is_multiple_of(8) {
            return Ok(());
        }
        self.append(&rec)?;
        self.keep(rec);
        Ok(())
    }

    /// Marks bytes `from..to` of a file, in granules. `to` = `u64::MAX`: to the end, with the size.
    pub fn data(&mut self, seq: Seq, vol: VolId, at: &Name, what: What, from: u64, to: u64) -> Result<()> {
        let g = limits::MARK_GRANULE_BYTES;
        let from = from / g * g;
        let to = if to == u64::MAX { to } else { to.div_ceil(g).saturating_mul(g) };
        let key = (vol, Target::File(at.clone()));
        let rec = Rec { seq, vol, change: Change::Data { at: at.clone(), what, from, to } };
        let dropped = planted(Bug::DropMark) && seq.0.is_multiple_of(8);
        if !dropped && !self.marked.get(&key).is_some_and(|m| m.data.covers(from, to)) {
            self.append(&rec)?;
            self.marked.entry(key).or_default().data.insert(from, to);
        }
        self.keep(rec);
        Ok(())
    }

    /// Marks the attributes of an object.
    pub fn attr(&mut self, seq: Seq, vol: VolId, at: &Target, what: What) -> Result<()> {
        let rec = Rec { seq, vol, change: Change::Attr { at: at.clone(), what } };
        if !self.marked.get(&(vol, at.clone())).is_some_and(|m| m.attr) {
            self.append(&rec)?;
            self.marked.entry((vol, at.clone())).or_default().attr = true;
        }
        self.keep(rec);
        Ok(())
    }

    /// True when the present interval is old or large enough to be closed.
    pub fn wants_rotation(&self) -> bool {
        let n = self.intervals.len();
        let Some(cur) = self.intervals.last() else { return true };
        let stretch = (n / INTERVALS_SOFT).max(1) as u32;
        self.used
            && (cur.bytes > limits::JOURNAL_INTERVAL_BYTES
                || self.opened.elapsed() > limits::JOURNAL_INTERVAL * stretch)
    }

    /// True when a checkpoint may close the present interval, so that what follows is told apart from what was before: not
    /// for each of a long outage.
    pub fn may_rotate(&self) -> bool {
        self.wants_rotation() || (self.used && self.intervals.len() < INTERVALS_SOFT)
    }

    /// Closes the present interval and begins one after `last`. Keeps the journal within its limit by forgetting the
    /// oldest intervals; returns true when that happened (peers older than [`Journal::begins_after`] need a verify).
    pub fn rotate(&mut self, last: Seq) -> Result<bool> {
        if let Some(cur) = self.intervals.last()
            && !self.used
            && !matches!(cur.head.kind, Kind::Jump(..))
            && cur.head.after <= last
            && self.marked.is_empty()
        {
            return Ok(false); // nothing recorded since: it may as well go on
        }
        self.rotate_always(IntervalHead { number: 0, after: last, kind: Kind::Plain })?;
        self.within_limit()
    }

    /// As [`Journal::rotate`], but the new interval begins after `has`, which a peer that was lost has, and holds what
    /// changed from there on. When that is too long ago, it begins after `last`.
    pub fn split(&mut self, has: Seq, last: Seq) -> Result<bool> {
        match self.intervals.last().map(|i| i.head) {
            Some(IntervalHead { kind: Kind::Jump(..), .. }) => return self.rotate(last),
            Some(h) if h.after == has => return Ok(false),
            _ if has >= last || has < self.tail_after => return self.rotate(last),
            _ => {}
        }
        let again: Vec<Rec> = self.tail.iter().filter(|r| r.seq > has).cloned().collect();
        let head = IntervalHead { number: 0, after: has, kind: Kind::Repeats(again.len() as u64) };
        self.begin_interval(head, &again)?;
        for r in again {
            match r.change {
                Change::Data { at, from, to, .. } => {
                    self.marked.entry((r.vol, Target::File(at))).or_default().data.insert(from, to);
                }
                Change::Attr { at, .. } => self.marked.entry((r.vol, at)).or_default().attr = true,
                Change::Ns(c) => self.unspare(r.vol, &c),
            }
        }
        self.within_limit()
    }

    /// Forgets the oldest intervals when there is too much; true when that happened.
    fn within_limit(&mut self) -> Result<bool> {
        let mut forgot = false;
        while self.intervals.len() > 2 && self.size().0 > self.limit_bytes {
            self.drop_first()?;
            forgot = true;
        }
        Ok(forgot)
    }

    fn drop_first(&mut self) -> Result<()> {
        let i = self.intervals.remove(0);
        std::fs::remove_file(&i.path).at(i.path.display())
    }

    /// Forgets the intervals whose entries are all at or before `upto` (durable at every peer).
    pub fn trim(&mut self, upto: Seq) -> Result<()> {
        while self.intervals.get(1).is_some_and(|next| next.head.after <= upto) {
            self.drop_first()?;
        }
        Ok(())
    }

    /// The files of the intervals that may hold something after `since`, of those that are there: for [`changed`].
    pub fn files_since(&self, since: Seq) -> Vec<PathBuf> {
        self.intervals.iter().skip(self.first_since(since)).map(|i| i.path.clone()).collect()
    }

    /// The first interval that may hold something after `since`. No later one begins before it, so what those repeat is all
    /// there from here on; from any other one a mark would be missing that was spared for one that is only repeated.
    fn first_since(&self, since: Seq) -> usize {
        let first = self.intervals.iter().rposition(|i| i.head.after <= since).unwrap_or(0);
        let Some(after) = self.intervals.get(first).map(|i| i.head.after) else { return 0 };
        // Of those that begin at one position the first: a mark is made before its entry has a number, so one that a crash
        // left without an entry lies before the interval that the next start began at the same position.
        let same = self.intervals.iter().take(first).rev().take_while(|i| i.head.after == after).count();
        first - same
    }

    /// The records of all intervals that may hold something after `since`, in order. Error when the journal begins later.
    pub fn since(&self, since: Seq) -> Result<Vec<Rec>> {
        if self.begins_after() > since {
            return Err(Error::failed(format!(
                "the journal begins after {}, {} is older",
                self.begins_after().0,
                since.0
            )));
        }
        let mut out: Vec<Rec> = Vec::new();
        let mut last_names: Option<usize> = None;
        let first = self.first_since(since);
        for (n, i) in self.intervals.iter().enumerate().skip(first) {
            let bytes = std::fs::read(&i.path).at(i.path.display())?;
            let Some((head, recs)) = parse(&bytes, &i.path)? else { continue };
            // What it repeats is there already, and its marks name files as they were called then.
            let again = match head.kind {
                Kind::Repeats(count) if n > first => count as usize,
                _ => 0,
            };
            for r in recs.into_iter().skip(again) {
                if let Change::Ns(_) = r.change {
                    // Killed between record and progress, an operation is recorded again at recovery.
                    if last_names.and_then(|i| out.get(i)) == Some(&r) {
                        continue;
                    }
                    last_names = Some(out.len());
                }
                out.push(r);
            }
        }
        Ok(out)
    }

    /// Begins the interval of a resync from `from` to `to`. The next [`Journal::rotate`] ends it.
    pub fn begin_jump(&mut self, from: Seq, to: Seq) -> Result<()> {
        self.forget_tail(to);
        self.rotate_always(IntervalHead { number: 0, after: from, kind: Kind::Jump(from, to) })
    }

    /// The position to plan from for a replica at `p`: earlier than `p` when this replica jumped over it.
    pub fn plan_from(&self, p: Seq) -> Seq {
        let over = |i: &Interval| match i.head.kind {
            Kind::Jump(a, b) if a < p && p < b => Some(a),
            _ => None,
        };
        self.intervals.iter().find_map(over).unwrap_or(p)
    }

    /// Forgets everything and begins anew after `last` (after a first copy).
    pub fn reset(&mut self, last: Seq) -> Result<()> {
        self.forget_tail(last);
        self.rotate_always(IntervalHead { number: 0, after: last, kind: Kind::Plain })?;
        self.last_ns = Seq(0);
        while self.intervals.len() > 1 {
            self.drop_first()?;
        }
        Ok(())
    }

    fn rotate_always(&mut self, head: IntervalHead) -> Result<()> {
        self.begin_interval(head, &[])
    }

    fn begin_interval(&mut self, mut head: IntervalHead, again: &[Rec]) -> Result<()> {
        head.number = self.intervals.last().map_or(1, |i| i.head.number + 1);
        let mut room = Room::default();
        let begun = begin(&self.dir, head, again).and_then(|(iv, file)| {
            room.ensure(&file, iv.bytes, RESERVE_BYTES).at("journal")?;
            Ok((iv, file))
        });
        let (iv, file) = match begun {
            Ok(b) => b,
            Err(e) => {
                // The present interval goes on; a try for every record would cost too much.
                self.opened = Instant::now();
                let _ = std::fs::remove_file(interval_path(&self.dir, head.number));
                return Err(e);
            }
        };
        if let Some(i) = self.intervals.last() {
            // Gives back what was reserved.
            self.file.set_len(i.bytes).at("journal")?;
        }
        self.intervals.push(iv);
        let closed = std::mem::replace(&mut self.file, file);
        if std::mem::take(&mut self.dirty) {
            self.closed.push(closed);
        }
        self.room = room;
        self.dirty = true;
        self.new_name = true;
        self.used = !again.is_empty();
        if !planted(Bug::SpareAcrossIntervals) {
            self.marked.clear();
        }
        self.opened = Instant::now();
        Ok(())
    }

    /// Handles to flush outside of the lock: the interval, if anything was written since the last flush, and the directory
    /// that has its name.
    pub fn take_dirty(&mut self) -> Result<Vec<File>> {
        let mut out = std::mem::take(&mut self.closed);
        if std::mem::take(&mut self.dirty) {
            out.push(self.file.try_clone().at("journal")?);
        }
        if std::mem::take(&mut self.new_name) {
            out.push(File::open(&self.dir).at("journal")?);
        }
        Ok(out)
    }
}

/// What a resync would have to look at, by the marks of the journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Changed {
    /// Names and objects that changed, count.
    pub files: u64,
    /// Content that was marked, in granules of 64 KiB, bytes; a mark to the end of a file counts as one.
    pub bytes: u64,
}

/// Counts what is marked after `since` in these files, of those that are still there: without the journal's lock, beside
/// whoever writes it.
pub fn changed(files: &[PathBuf], since: Seq) -> Changed {
    let mut marks: HashMap<(VolId, Target), Ranges> = HashMap::new();
    for path in files {
        // Given up meanwhile, or damaged: the resync itself will say so.
        let Some(bytes) = std::fs::read(path).ok() else { continue };
        let Ok(Some((_, recs))) = parse(&bytes, path) else { continue };
        for r in recs.into_iter().filter(|r| r.seq > since) {
            match r.change {
                Change::Data { at, from, to, .. } => {
                    let to = if to == u64::MAX { from + limits::MARK_GRANULE_BYTES } else { to };
                    marks.entry((r.vol, Target::File(at))).or_default().insert(from, to);
                }
                Change::Attr { at, .. } => drop(marks.entry((r.vol, at)).or_default()),
                Change::Ns(c) => {
                    for n in c.names().into_iter().flatten() {
                        marks.entry((r.vol, Target::File(n.clone()))).or_default();
                    }
                }
            }
        }
    }
    Changed { files: marks.len() as u64, bytes: marks.values().map(|m| m.bytes(u64::MAX)).sum() }
}

/// Gives back what a killed node had reserved: on a full disk the next start needs it.
fn give_back(path: &Path, bytes: u64) {
    let r = std::fs::OpenOptions::new().write(true).open(path).and_then(|f| f.set_len(bytes));
    if let Err(e) = r {
        log::warn!("{}: {e}", path.display());
    }
}

fn interval_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}.kj"))
}

fn begin(dir: &Path, head: IntervalHead, again: &[Rec]) -> Result<(Interval, File)> {
    let path = interval_path(dir, head.number);
    let mut out = file::header(MAGIC, VERSION).to_vec();
    file::put_record(&mut out, &codec::encode(&head)?);
    for r in again {
        file::put_record(&mut out, &codec::encode(r)?);
    }
    let mut f = std::fs::OpenOptions::new().append(true).create(true).truncate(false).open(&path).at(path.display())?;
    f.write_all(&out).at(path.display())?;
    Ok((Interval { head, path, bytes: out.len() as u64 }, f))
}

fn parse(bytes: &[u8], path: &Path) -> Result<Option<(IntervalHead, Vec<Rec>)>> {
    parse_interval(bytes, &path.display().to_string())
}

/// Head and records of an interval file; `None` when not even the head is whole, and what is to be repeated after it. A
/// torn tail ends the list.
pub fn parse_interval(bytes: &[u8], what: &str) -> Result<Option<(IntervalHead, Vec<Rec>)>> {
    // A power cut leaves a file that has a length and no content yet.
    if bytes.len() < file::HEADER_BYTES || file::is_blank(bytes) {
        return Ok(None);
    }
    file::check_header(bytes, MAGIC, VERSION, what)?;
    let mut recs = file::Records::new(&bytes[file::HEADER_BYTES..]);
    let Some(h) = recs.next() else { return Ok(None) };
    let head: IntervalHead = codec::decode(h).map_err(|e| e.context(what))?;
    let mut out = Vec::new();
    for r in recs.by_ref() {
        out.push(Rec::parse(r).map_err(|e| e.context(what))?);
    }
    if recs.torn {
        log::warn!("{what}: torn tail after {} bytes ignored", recs.good);
    }
    let whole = !matches!(head.kind, Kind::Repeats(count) if (out.len() as u64) < count);
    Ok(whole.then_some((head, out)))
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
