//! The entry log: what a receiver has accepted, in order, before it touches its tree; also the spool at a primary.
//!
//! ```text
//! .kagami/queue/%016x.kl (position of its first frame): header "KGMQUEU\0" v1 | frame* (the bytes of the wire)
//! .kagami/spool/%016x.kl the same, never opened again: see `volume::spool`
//! ```
//! A position (lsn) counts frame bytes since the log was made. Written with write(2): accepted entries survive kill -9.
//! A torn tail is cut off at open; nothing in it was acknowledged.

use crate::base::planted::{Bug, planted};
use crate::base::sync::Mutex;
use crate::base::{At, Error, Result, limits};
use crate::format::{file, frame};
use crate::os::sys;
use crate::store::room::Room;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"KGMQUEU\0";
const VERSION: u32 = 1;
const HEAD: u64 = file::HEADER_BYTES as u64;
/// Read at once of a frame, bytes: most frames are not longer.
const READ_BYTES: usize = 4096 + 256;
/// The same of its header and encoded part.
const PEEKED_BYTES: usize = 256;

struct Segment {
    file: Arc<File>,
    path: PathBuf,
    len: u64,
    synced: u64,
}

struct Inner {
    segments: BTreeMap<u64, Segment>,
    end: u64,
    /// How often something was cut off.
    cuts: u64,
}

/// What a sync is about: until then, how often something had been cut off, and the segments with their lengths.
struct Due {
    end: u64,
    cuts: u64,
    segments: Vec<(u64, Arc<File>, u64)>,
}

/// A log of frames.
pub struct EntryLog {
    dir: PathBuf,
    shape: Shape,
    inner: Mutex<Inner>,
}

/// How the segments of a log are.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Size that a segment does not grow beyond, unless one batch alone is larger, bytes.
    pub segment_bytes: u64,
    /// The room of a segment is taken when it is made.
    pub preallocate: bool,
}

impl Shape {
    /// Of the entry log of a receiver that may hold so many bytes.
    pub fn of_log(limit: u64) -> Shape {
        let segment_bytes = (limit / 8).clamp(limits::LOG_SEGMENT_BYTES_MIN, limits::LOG_SEGMENT_BYTES);
        Shape { segment_bytes, preallocate: false }
    }
}

impl EntryLog {
    /// Opens the log in `dir`. `from` is a position up to which the frames are known to be good (they are not read).
    pub fn open(dir: &Path, from: u64, shape: Shape) -> Result<EntryLog> {
        std::fs::create_dir_all(dir).at(dir.display())?;
        let mut segments = BTreeMap::new();
        for e in std::fs::read_dir(dir).at(dir.display())? {
            let path = e.at(dir.display())?.path();
            let Some(start) = path
                .file_name()
                .and_then(|n| n.to_str())
                .and_then(|n| n.strip_suffix(".kl"))
                .and_then(|n| u64::from_str_radix(n, 16).ok())
            else {
                continue;
            };
            let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).at(path.display())?;
            let bytes = file.metadata().at(path.display())?.len();
            if bytes < HEAD {
                std::fs::remove_file(&path).at(path.display())?;
                continue;
            }
            let mut h = [0u8; file::HEADER_BYTES];
            sys::pread_full(&file, &mut h, 0)?;
            if file::is_blank(&h) {
                log::warn!("{}: without content after a power cut, removed", path.display());
                std::fs::remove_file(&path).at(path.display())?;
                continue;
            }
            file::check_header(&h, MAGIC, VERSION, &path.display().to_string())?;
            segments.insert(start, Segment { file: Arc::new(file), path, len: bytes - HEAD, synced: 0 });
        }
        let mut log = EntryLog { dir: dir.to_owned(), shape, inner: Mutex::new(Inner { segments, end: 0, cuts: 0 }) };
        log.find_end(from)?;
        Ok(log)
    }

    /// Walks the frames from `from`; cuts off what is torn, and whatever lies behind a gap.
    fn find_end(&mut self, from: u64) -> Result<()> {
        let inner = self.inner.get_mut();
        let starts: Vec<u64> = inner.segments.keys().copied().collect();
        let Some(&first) = starts.first() else {
            inner.end = from;
            return Ok(());
        };
        let mut at = starts.iter().rfind(|s| **s <= from).copied().unwrap_or(first).max(first);
        let mut pos = from.max(at);
        let mut buf = Vec::new();
        while let Some(seg) = inner.segments.get_mut(&at) {
            while pos < at + seg.len {
                match read_frame(&seg.file, pos - at, seg.len, &mut buf) {
                    Ok(n) => pos += n,
                    Err(e) => {
                        log::warn!("{}: {} bytes cut off at {}: {e}", seg.path.display(), at + seg.len - pos, pos);
                        seg.len = pos - at;
                        seg.file.set_len(HEAD + seg.len).at(seg.path.display())?;
                    }
                }
            }
            let next = at + seg.len;
            if next == at {
                break;
            }
            at = next;
        }
        inner.end = pos;
        let beyond: Vec<u64> = inner.segments.range(pos + 1..).map(|(k, _)| *k).collect();
        for k in beyond {
            if let Some(s) = inner.segments.remove(&k) {
                std::fs::remove_file(&s.path).at(s.path.display())?;
            }
        }
        Ok(())
    }

    /// Where the next frame will go.
    pub fn end(&self) -> u64 {
        self.inner.lock().end
    }

    /// Where the oldest kept frame is.
    pub fn start(&self) -> u64 {
        let g = self.inner.lock();
        g.segments.keys().next().copied().unwrap_or(g.end)
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.inner.lock().segments.values().map(|s| s.len).sum()
    }

    /// True when `len` more bytes would begin a new segment.
    pub fn begins_segment(&self, len: u64) -> bool {
        let g = self.inner.lock();
        g.begins_segment(len, self.shape.segment_bytes)
    }

    /// Appends whole frames (already checked) and returns the new end. On error nothing was appended.
    pub fn append(&self, frames: &[u8]) -> Result<u64> {
        let mut g = self.inner.lock();
        let end = g.end;
        if g.begins_segment(frames.len() as u64, self.shape.segment_bytes) {
            let path = self.dir.join(format!("{end:016x}.kl"));
            let file = std::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(&path)
                .at(path.display())?;
            let room = match self.shape.preallocate {
                true => Room::default().ensure(&file, HEAD, self.shape.segment_bytes.max(frames.len() as u64)),
                false => Ok(()),
            };
            if let Err(e) = room.and_then(|()| sys::pwrite_all(&file, &file::header(MAGIC, VERSION), 0).1) {
                std::fs::remove_file(&path).at(path.display())?;
                return Err(Error::from(e).context(path.display()));
            }
            // A synced file without a durable name would be lost.
            File::open(&self.dir).and_then(|d| d.sync_all()).at(self.dir.display())?;
            g.segments.insert(end, Segment { file: Arc::new(file), path, len: 0, synced: 0 });
        }
        let Some(mut seg) = g.segments.last_entry() else { return Err(Error::failed("entry log: no segment")) };
        let seg = seg.get_mut();
        let (_, r) = sys::pwrite_all(&*seg.file, frames, HEAD + seg.len);
        if let Err(e) = r {
            seg.file.set_len(HEAD + seg.len).at(seg.path.display())?;
            return Err(Error::from(e).context(seg.path.display()));
        }
        seg.len += frames.len() as u64;
        g.end = end + frames.len() as u64;
        Ok(g.end)
    }

    /// Reads the frame at `lsn` into `buf` and returns the position after it; `None` at the end.
    pub fn read(&self, lsn: u64, buf: &mut Vec<u8>) -> Result<Option<u64>> {
        let Some((file, off, len)) = self.place(lsn)? else { return Ok(None) };
        let n = read_frame(&file, off, len, buf)?;
        Ok(Some(lsn + n))
    }

    /// Reads header and encoded part of the frame at `lsn` into `buf`, unchecked and without its data, and returns the
    /// position after the frame; `None` at the end.
    pub fn peek(&self, lsn: u64, buf: &mut Vec<u8>) -> Result<Option<(u64, frame::Header)>> {
        let Some((file, off, len)) = self.place(lsn)? else { return Ok(None) };
        let part = |head: &frame::Header| frame::HEADER_BYTES + head.extra as usize;
        let head = read_part(&file, off, len, buf, PEEKED_BYTES, part)?;
        Ok(Some((lsn + frame::HEADER_BYTES as u64 + u64::from(head.len), head)))
    }

    /// The segment with the position `lsn`, the offset there and the segment's length; `None` at the end.
    fn place(&self, lsn: u64) -> Result<Option<(Arc<File>, u64, u64)>> {
        let g = self.inner.lock();
        if lsn >= g.end {
            return Ok(None);
        }
        match g.segments.range(..=lsn).next_back() {
            Some((start, seg)) => Ok(Some((seg.file.clone(), lsn - start, seg.len))),
            None => Err(Error::failed(format!(
                "entry log: position {lsn} is gone, it begins at {:?}",
                g.segments.keys().next()
            ))),
        }
    }

    /// Cuts everything from `lsn` on (an abandoned staged resync).
    pub fn truncate(&self, lsn: u64) -> Result<()> {
        let mut g = self.inner.lock();
        g.cuts += 1;
        let beyond: Vec<u64> = g.segments.range(lsn + 1..).map(|(k, _)| *k).collect();
        for k in beyond {
            if let Some(s) = g.segments.remove(&k) {
                std::fs::remove_file(&s.path).at(s.path.display())?;
            }
        }
        if let Some(mut e) = g.segments.last_entry() {
            let start = *e.key();
            let s = e.get_mut();
            s.len = s.len.min(lsn - start);
            s.synced = s.synced.min(s.len);
            s.file.set_len(HEAD + s.len).at(s.path.display())?;
        }
        g.end = g.end.min(lsn);
        Ok(())
    }

    /// Makes everything up to the present end durable and returns that end.
    pub fn sync(&self) -> Result<u64> {
        let due = self.due();
        for (key, file, len) in &due.segments {
            file.sync_data().at("entry log")?;
            self.synced(&due, *key, *len);
        }
        Ok(due.end)
    }

    fn due(&self) -> Due {
        let g = self.inner.lock();
        let due = g.segments.iter().filter(|(_, s)| s.synced < s.len);
        Due { end: g.end, cuts: g.cuts, segments: due.map(|(k, s)| (*k, s.file.clone(), s.len)).collect() }
    }

    /// What was cut off meanwhile may be there again with other content, of which nothing is known.
    fn synced(&self, due: &Due, key: u64, len: u64) {
        let mut g = self.inner.lock();
        if g.cuts == due.cuts
            && let Some(s) = g.segments.get_mut(&key)
        {
            s.synced = s.synced.max(len);
        }
    }

    /// Everything up to here survives a power cut.
    pub fn durable(&self) -> u64 {
        let g = self.inner.lock();
        g.segments.iter().find(|(_, s)| s.synced < s.len).map_or(g.end, |(start, s)| start + s.synced)
    }

    /// True when [`EntryLog::retire`] would give something back.
    pub fn can_retire(&self, upto: u64) -> bool {
        let g = self.inner.lock();
        g.segments.len() > 1 && g.segments.first_key_value().is_some_and(|(k, s)| k + s.len <= upto)
    }

    /// Forgets whole segments before `upto` (applied, and the tree synced).
    pub fn retire(&self, upto: u64) -> Result<()> {
        let mut g = self.inner.lock();
        while g.segments.len() > 1 {
            let Some((k, s)) = g.segments.first_key_value() else { break };
            if k + s.len > upto {
                break;
            }
            let k = *k;
            if let Some(s) = g.segments.remove(&k) {
                std::fs::remove_file(&s.path).at(s.path.display())?;
            }
        }
        Ok(())
    }

    /// Gives back all space before `upto` (applied, and the tree synced): for a full disk.
    pub fn release(&self, upto: u64) -> Result<()> {
        self.retire(upto)?;
        let mut g = self.inner.lock();
        let end = g.end;
        let Some(e) = g.segments.last_entry() else { return Ok(()) };
        let start = *e.key();
        if upto >= end {
            let s = e.remove();
            return std::fs::remove_file(&s.path).at(s.path.display());
        }
        if upto > start {
            const PUNCH_HOLE_KEEP_SIZE: u32 = 3;
            let s = e.get();
            sys::fallocate(&*s.file, PUNCH_HOLE_KEEP_SIZE, HEAD, upto - start).at(s.path.display())?;
        }
        Ok(())
    }

    /// Number of segments.
    pub fn segments(&self) -> usize {
        self.inner.lock().segments.len()
    }
}

impl Inner {
    fn begins_segment(&self, len: u64, most: u64) -> bool {
        // After a power cut the log may end before what is known to be applied: what follows begins a segment of its own.
        let last = self.segments.last_key_value();
        last.is_none_or(|(k, s)| (s.len > 0 && s.len + len > most) || k + s.len < self.end)
    }
}

/// Reads and checks one frame at `off` of a segment holding `len` bytes; returns its length.
fn read_frame(file: &File, off: u64, len: u64, buf: &mut Vec<u8>) -> Result<u64> {
    let whole = |head: &frame::Header| frame::HEADER_BYTES + head.len as usize;
    read_part(file, off, len, buf, READ_BYTES, whole)?;
    if !planted(Bug::ApplyTornEntry) {
        frame::check(buf)?;
    }
    Ok(buf.len() as u64)
}

/// Reads the first bytes of a frame, as many as `part` says; `guess` is how many that mostly are. The frame must be whole.
fn read_part(
    file: &File,
    off: u64,
    len: u64,
    buf: &mut Vec<u8>,
    guess: usize,
    part: impl Fn(&frame::Header) -> usize,
) -> Result<frame::Header> {
    let left = usize::try_from(len.saturating_sub(off)).unwrap_or(usize::MAX);
    buf.clear();
    buf.resize(guess.min(left), 0);
    let got = sys::pread_full(file, buf, HEAD + off)?;
    let h = buf.get(..got).and_then(|b| b.first_chunk());
    let head = frame::parse_header(h.ok_or_else(|| Error::corrupt("entry log: torn frame header"))?)?;
    if frame::HEADER_BYTES + head.len as usize > left {
        return Err(Error::corrupt("entry log: torn frame"));
    }
    let want = part(&head);
    buf.resize(want, 0);
    if got < want
        && sys::pread_full(file, buf.get_mut(got..).unwrap_or_default(), HEAD + off + got as u64)? < want - got
    {
        return Err(Error::corrupt("entry log: short read"));
    }
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::frame::{FrameKind, build};

    fn fr(i: u64) -> Vec<u8> {
        build(FrameKind::Entry, &i.to_le_bytes(), &vec![7u8; (i % 50) as usize])
    }

    fn all(l: &EntryLog) -> Vec<Vec<u8>> {
        let (mut at, mut buf, mut out) = (l.start(), Vec::new(), Vec::new());
        while let Some(n) = l.read(at, &mut buf).unwrap() {
            out.push(buf.clone());
            at = n;
        }
        out
    }

    #[test]
    fn every_cut_of_the_tail_leaves_exactly_the_whole_frames() {
        let d = tempfile::tempdir().unwrap();
        let l = EntryLog::open(d.path(), 0, Shape::of_log(u64::MAX)).unwrap();
        let mut ends = vec![0];
        for i in 0..5 {
            ends.push(l.append(&fr(i)).unwrap());
        }
        drop(l);
        let p = std::fs::read_dir(d.path()).unwrap().next().unwrap().unwrap().path();
        let whole = std::fs::read(&p).unwrap();
        for cut in HEAD as usize..whole.len() {
            std::fs::write(&p, &whole[..cut]).unwrap();
            let l = EntryLog::open(d.path(), 0, Shape::of_log(u64::MAX)).unwrap();
            let n = ends.iter().filter(|e| **e + HEAD <= cut as u64).count() - 1;
            assert_eq!(all(&l).len(), n, "cut at {cut}");
            l.append(&fr(9)).unwrap();
            assert_eq!(all(&l).len(), n + 1);
            drop(l);
            std::fs::remove_file(&p).ok();
        }
    }

    #[test]
    fn durable_is_only_what_was_synced_and_not_cut_off_since() {
        let d = tempfile::tempdir().unwrap();
        let l = EntryLog::open(d.path(), 0, Shape::of_log(u64::MAX)).unwrap();
        assert_eq!(l.durable(), 0);
        let one = l.append(&fr(1)).unwrap();
        assert_eq!(l.durable(), 0);
        l.sync().unwrap();
        assert_eq!(l.durable(), one);
        // A staged resync is cut off, and something else takes its place, while the disk writes.
        let two = l.append(&fr(2)).unwrap();
        let due = l.due();
        l.truncate(one).unwrap();
        assert_eq!(l.append(&fr(2)).unwrap(), two);
        due.segments.iter().for_each(|(key, _, len)| l.synced(&due, *key, *len));
        assert_eq!(l.durable(), one);
        assert_eq!((l.sync().unwrap(), l.durable()), (two, two));
        drop(l);
        // After kill -9 nobody knows.
        assert_eq!(EntryLog::open(d.path(), 0, Shape::of_log(u64::MAX)).unwrap().durable(), 0);
    }

    #[test]
    fn frames_longer_than_what_is_read_at_once() {
        let d = tempfile::tempdir().unwrap();
        let l = EntryLog::open(d.path(), 0, Shape::of_log(u64::MAX)).unwrap();
        let lens = [0, 1, READ_BYTES - 100, READ_BYTES, READ_BYTES + 1, 1 << 20];
        let frames: Vec<_> =
            lens.iter().map(|n| build(FrameKind::Entry, &vec![3; (*n).min(PEEKED_BYTES * 2)], &vec![5; *n])).collect();
        for f in &frames {
            l.append(f).unwrap();
        }
        assert_eq!(all(&l), frames);
        let (mut at, mut buf) = (0, Vec::new());
        for f in &frames {
            let (next, head) = l.peek(at, &mut buf).unwrap().unwrap();
            assert_eq!(next, at + f.len() as u64);
            assert_eq!(buf, f[..frame::HEADER_BYTES + head.extra as usize]);
            at = next;
        }
        assert!(l.peek(at, &mut buf).unwrap().is_none());
    }

    #[test]
    fn segments_truncate_and_retire() {
        let d = tempfile::tempdir().unwrap();
        let l = EntryLog::open(d.path(), 0, Shape::of_log(u64::MAX)).unwrap();
        let big = build(FrameKind::Entry, b"", &vec![1u8; 4 << 20]);
        let mut ends = vec![];
        for _ in 0..40 {
            ends.push(l.append(&big).unwrap());
        }
        assert!(l.segments() > 2);
        l.truncate(ends[29]).unwrap();
        assert_eq!((l.end(), all(&l).len()), (ends[29], 30));
        l.append(&fr(1)).unwrap();
        l.retire(ends[20]).unwrap();
        assert!(l.start() > 0);
        let n = all(&l).len();
        let end = l.end();
        drop(l);
        let l = EntryLog::open(d.path(), ends[25], Shape::of_log(u64::MAX)).unwrap();
        assert_eq!((l.end(), all(&l).len()), (end, n));
    }
}
