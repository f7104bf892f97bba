//! The change journal on disk: intervals of records, one file each.
//!
//! ```text
//! .kagami/journal/%016x.kj (interval number): header "KGMJRNL\0" v1 | record: encoded IntervalHead | record*: encoded Rec
//! ```
//! Names are recorded one by one; marks of content once per file, granule and interval (the hot path is a lookup).
//! Records are written with write(2): they survive a killed process at once, and are flushed before or with every fsync.

use super::room::Room;
use crate::base::{At, Error, Name, Result, Seq, VolId, limits};
use crate::format::op::Target;
use crate::format::{codec, file};
use crate::pair::change::{Change, NsChange, Rec, What};
use crate::pair::ranges::Ranges;
use bincode::{Decode, Encode};
use std::collections::HashMap;
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

#[derive(Encode, Decode, Clone, Copy, Debug)]
struct IntervalHead {
    number: u64,
    /// Records here are of entries after this one.
    after: Seq,
    /// The records are of a resync that took this replica from the first position to the second at once: between the
    /// two there is no point at which they could be cut.
    jump: Option<(Seq, Seq)>,
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
    marked: HashMap<(VolId, Target), Marked>,
    opened: Instant,
    dirty: bool,
    /// The present interval holds records.
    used: bool,
    limit_bytes: u64,
    last_ns: Seq,
    room: Room,
}

impl Journal {
    /// Opens the journal in `dir` and begins a new interval after `last`. A new journal begins at `last`.
    pub fn open(dir: &Path, last: Seq, limit_bytes: u64) -> Result<Journal> {
        std::fs::create_dir_all(dir).at(dir.display())?;
        let mut intervals = Vec::new();
        let mut last_ns = Seq(0);
        for e in std::fs::read_dir(dir).at(dir.display())? {
            let path = e.at(dir.display())?.path();
            if path.extension().is_none_or(|x| x != "kj") {
                continue;
            }
            let bytes = std::fs::read(&path).at(path.display())?;
            match parse(&bytes, &path)? {
                Some((head, recs)) => {
                    for r in &recs {
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
        let (iv, file) = begin(dir, IntervalHead { number, after: last, jump: None })?;
        intervals.push(iv);
        Ok(Journal {
            dir: dir.to_owned(),
            intervals,
            file,
            marked: HashMap::new(),
            opened: Instant::now(),
            dirty: true,
            used: false,
            limit_bytes,
            last_ns,
            room: Room::default(),
        })
    }

    /// The journal knows every change after this position.
    pub fn begins_after(&self) -> Seq {
        self.intervals.first().map_or(Seq(0), |i| i.head.after)
    }

    /// Position of the newest record of names; tells whether an interrupted operation was recorded.
    pub fn last_ns(&self) -> Seq {
        self.last_ns
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

    /// Records a change of names.
    pub fn names(&mut self, seq: Seq, vol: VolId, change: NsChange) -> Result<()> {
        let mut clear = |n: &Name| self.marked.remove(&(vol, Target::File(n.clone())));
        match &change {
            NsChange::Create { at }
            | NsChange::Mkdir { at, .. }
            | NsChange::Unlink { at, .. }
            | NsChange::Rmdir { at, .. } => {
                clear(at);
            }
            NsChange::Link { from, to, .. } | NsChange::Rename { from, to, .. } => {
                clear(from);
                clear(to);
            }
        }
        self.last_ns = self.last_ns.max(seq);
        self.append(&Rec { seq, vol, change: Change::Ns(change) })
    }

    /// Marks bytes `from..to` of a file, in granules. `to` = `u64::MAX`: to the end, with the size.
    pub fn data(&mut self, seq: Seq, vol: VolId, at: &Name, what: What, from: u64, to: u64) -> Result<()> {
        let g = limits::MARK_GRANULE_BYTES;
        let from = from / g * g;
        let to = if to == u64::MAX { to } else { to.div_ceil(g).saturating_mul(g) };
        let key = (vol, Target::File(at.clone()));
        if self.marked.get(&key).is_some_and(|m| m.data.covers(from, to)) {
            return Ok(());
        }
        self.append(&Rec { seq, vol, change: Change::Data { at: at.clone(), what, from, to } })?;
        self.marked.entry(key).or_default().data.insert(from, to);
        Ok(())
    }

    /// Marks the attributes of an object.
    pub fn attr(&mut self, seq: Seq, vol: VolId, at: &Target, what: What) -> Result<()> {
        if self.marked.get(&(vol, at.clone())).is_some_and(|m| m.attr) {
            return Ok(());
        }
        self.append(&Rec { seq, vol, change: Change::Attr { at: at.clone(), what } })?;
        self.marked.entry((vol, at.clone())).or_default().attr = true;
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

    /// Closes the present interval and begins one after `last`. Keeps the journal within its limit by forgetting the
    /// oldest intervals; returns true when that happened (peers older than [`Journal::begins_after`] need a verify).
    pub fn rotate(&mut self, last: Seq) -> Result<bool> {
        if let Some(cur) = self.intervals.last()
            && !self.used
            && cur.head.jump.is_none()
            && cur.head.after <= last
            && self.marked.is_empty()
        {
            return Ok(false); // nothing recorded since: it may as well go on
        }
        self.rotate_always(IntervalHead { number: 0, after: last, jump: None })?;
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

    /// The records of all intervals that may hold something after `since`, in order. Error when the journal begins later.
    pub fn since(&self, since: Seq) -> Result<Vec<Rec>> {
        if self.begins_after() > since {
            return Err(Error::failed(format!(
                "the journal begins after {}, {} is older",
                self.begins_after().0,
                since.0
            )));
        }
        // Of intervals that begin at one position the first: a mark is made before its entry has a number, so one that
        // a crash left without an entry lies before the interval that the next start began at the same position.
        let last = self.intervals.iter().rev().find(|i| i.head.after <= since).map_or(since, |i| i.head.after);
        let first = self.intervals.iter().position(|i| i.head.after == last).unwrap_or(0);
        let mut out: Vec<Rec> = Vec::new();
        let mut last_names: Option<usize> = None;
        for i in &self.intervals[first..] {
            let bytes = std::fs::read(&i.path).at(i.path.display())?;
            let Some((_, recs)) = parse(&bytes, &i.path)? else { continue };
            for r in recs {
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
        self.rotate_always(IntervalHead { number: 0, after: from, jump: Some((from, to)) })
    }

    /// The position to plan from for a replica at `p`: earlier than `p` when this replica jumped over it.
    pub fn plan_from(&self, p: Seq) -> Seq {
        self.intervals.iter().filter_map(|i| i.head.jump).find(|(a, b)| *a < p && p < *b).map_or(p, |(a, _)| a)
    }

    /// Forgets everything and begins anew after `last` (after a first copy).
    pub fn reset(&mut self, last: Seq) -> Result<()> {
        self.rotate_always(IntervalHead { number: 0, after: last, jump: None })?;
        self.last_ns = Seq(0);
        while self.intervals.len() > 1 {
            self.drop_first()?;
        }
        Ok(())
    }

    fn rotate_always(&mut self, mut head: IntervalHead) -> Result<()> {
        head.number = self.intervals.last().map_or(1, |i| i.head.number + 1);
        let mut room = Room::default();
        let begun = begin(&self.dir, head).and_then(|(iv, file)| {
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
        if std::mem::take(&mut self.dirty) {
            self.file.sync_data().at("journal")?;
        }
        if let Some(i) = self.intervals.last() {
            // Gives back what was reserved.
            self.file.set_len(i.bytes).at("journal")?;
        }
        self.intervals.push(iv);
        self.file = file;
        self.room = room;
        self.dirty = true;
        self.used = false;
        self.marked.clear();
        self.opened = Instant::now();
        Ok(())
    }

    /// A handle to flush outside of the lock, if anything was written since the last flush.
    pub fn take_dirty(&mut self) -> Result<Option<File>> {
        if std::mem::take(&mut self.dirty) { Ok(Some(self.file.try_clone().at("journal")?)) } else { Ok(None) }
    }
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

fn begin(dir: &Path, head: IntervalHead) -> Result<(Interval, File)> {
    let path = interval_path(dir, head.number);
    let mut out = file::header(MAGIC, VERSION).to_vec();
    file::put_record(&mut out, &codec::encode(&head)?);
    let mut f = std::fs::OpenOptions::new().append(true).create(true).truncate(false).open(&path).at(path.display())?;
    f.write_all(&out).at(path.display())?;
    Ok((Interval { head, path, bytes: out.len() as u64 }, f))
}

/// Head and records of an interval file; `None` when not even the head is whole. A torn tail ends the list.
fn parse(bytes: &[u8], path: &Path) -> Result<Option<(IntervalHead, Vec<Rec>)>> {
    let what = path.display().to_string();
    if bytes.len() < file::HEADER_BYTES {
        return Ok(None);
    }
    file::check_header(bytes, MAGIC, VERSION, &what)?;
    let mut recs = file::Records::new(&bytes[file::HEADER_BYTES..]);
    let Some(h) = recs.next() else { return Ok(None) };
    let head = codec::decode(h).map_err(|e| e.context(&what))?;
    let mut out = Vec::new();
    for r in recs.by_ref() {
        out.push(codec::decode(r).map_err(|e| e.context(&what))?);
    }
    if recs.torn {
        log::warn!("{what}: torn tail after {} bytes ignored", recs.good);
    }
    Ok(Some((head, out)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::DirId;

    fn n(s: &str) -> Name {
        Name::new(DirId::ROOT, s)
    }

    #[test]
    fn marks_once_per_interval_and_again_after_the_name_changed_hands() {
        let d = tempfile::tempdir().unwrap();
        let mut j = Journal::open(d.path(), Seq(0), 1 << 30).unwrap();
        let v = VolId(0);
        for s in 1..100 {
            j.data(Seq(s), v, &n("a"), What::File, 10, 20).unwrap();
        }
        assert_eq!(j.since(Seq(0)).unwrap().len(), 1);
        j.names(Seq(100), v, NsChange::Unlink { at: n("a"), what: What::File }).unwrap();
        j.names(Seq(101), v, NsChange::Create { at: n("a") }).unwrap();
        j.data(Seq(102), v, &n("a"), What::File, 10, 20).unwrap();
        assert_eq!(j.since(Seq(0)).unwrap().len(), 4);
        j.rotate(Seq(102)).unwrap();
        j.data(Seq(103), v, &n("a"), What::File, 10, 20).unwrap();
        assert_eq!(j.since(Seq(102)).unwrap().len(), 1);
        assert_eq!(j.since(Seq(101)).unwrap().len(), 5);
        drop(j);
        let mut j = Journal::open(d.path(), Seq(103), 1 << 30).unwrap();
        assert_eq!(j.since(Seq(0)).unwrap().len(), 5);
        assert_eq!(j.last_ns(), Seq(101));
        j.trim(Seq(102)).unwrap();
        assert_eq!(j.begins_after(), Seq(102));
        assert!(j.since(Seq(101)).is_err());
    }

    #[test]
    fn a_mark_that_a_crash_left_without_an_entry_is_found_from_the_last_position() {
        let d = tempfile::tempdir().unwrap();
        let mut j = Journal::open(d.path(), Seq(0), 1 << 30).unwrap();
        j.names(Seq(5), VolId(0), NsChange::Create { at: n("a") }).unwrap();
        j.rotate(Seq(5)).unwrap();
        // Entry 6 was to follow.
        j.data(Seq(6), VolId(0), &n("a"), What::File, 0, 10).unwrap();
        drop(j);
        let mut j = Journal::open(d.path(), Seq(5), 1 << 30).unwrap();
        assert_eq!(j.since(Seq(5)).unwrap().len(), 1);
        // In the middle of an interval it is found from the position before.
        j.names(Seq(6), VolId(0), NsChange::Create { at: n("b") }).unwrap();
        j.data(Seq(7), VolId(0), &n("b"), What::File, 0, 10).unwrap();
        drop(j);
        let j = Journal::open(d.path(), Seq(6), 1 << 30).unwrap();
        assert_eq!((j.since(Seq(6)).unwrap().len(), j.since(Seq(5)).unwrap().len()), (0, 3));
    }

    #[test]
    fn torn_tail_loses_only_the_torn_record() {
        let d = tempfile::tempdir().unwrap();
        let mut j = Journal::open(d.path(), Seq(0), 1 << 30).unwrap();
        j.attr(Seq(1), VolId(0), &Target::File(n("a")), What::File).unwrap();
        j.attr(Seq(2), VolId(0), &Target::File(n("b")), What::File).unwrap();
        let p = j.intervals[0].path.clone();
        drop(j);
        let b = std::fs::read(&p).unwrap();
        std::fs::write(&p, &b[..b.len() - 1]).unwrap();
        let j = Journal::open(d.path(), Seq(2), 1 << 30).unwrap();
        assert_eq!(j.since(Seq(0)).unwrap().len(), 1);
    }
}
