//! What a power cut may undo: the checkpoint, up to which everything is known to be durable, and the active directories,
//! in which something was changed since.
//!
//! ```text
//! .kagami/active: two slots of SLOT bytes, written in turn; each header "KGMACTV\0" v1 | record: encoded Record
//! ```
//! A directory is in the durable set before the first change under it: a lookup, and one fdatasync for a directory that is
//! new in the set. A directory made since the checkpoint needs no place there, for its id was given since: the table of
//! directory ids tells ([`Record::tables`]). When many of one parent come at once, one entry for all below it takes their
//! place, so that a walk over ten thousand costs a few writes, until [`Activity::sharpen`] says again which they were. A
//! checkpoint begins a new set, of what is in use at that time.

use crate::base::{At, DirId, Error, Result, Seq, VolId, time};
use crate::format::{codec, file};
use crate::os::sys;
use bincode::{Decode, Encode};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"KGMACTV\0";
const VERSION: u32 = 1;
/// One slot, bytes: room for [`ENTRIES_MAX`] and the rest.
const SLOT: u64 = 128 << 10;
/// Entries of a set; of more, the root of their volume takes the place.
const ENTRIES_MAX: usize = 8192;
/// Directories of one parent that are marked one by one between two calls of [`Activity::sharpen`]; with more their parent is
/// marked with all below it.
const AT_ONCE_MAX: u32 = 32;

/// An entry of the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct ActiveDir {
    /// Volume of the group.
    pub vol: VolId,
    /// The directory.
    pub dir: DirId,
    /// Everything below it as well.
    pub below: bool,
}

/// What one slot holds.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Record {
    /// Counts up with each write: the higher one counts.
    pub count: u64,
    /// The checkpoint: every change up to here is durable in the tree, with its records.
    pub at: Seq,
    /// When it was taken, seconds since 1970.
    pub time: i64,
    /// Length of each volume's table of directory ids at the checkpoint, bytes.
    pub tables: Vec<u64>,
    /// Directories in which something may have been changed since.
    pub dirs: Vec<ActiveDir>,
    /// Of a replica that receives: from where its entry log is applied again after a power cut.
    pub replay: Option<Replay>,
}

/// What the live page and the journal said at a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Replay {
    /// Position of the entry log up to which it was applied, and the sequence number there.
    pub lsn: u64,
    /// See [`Replay::lsn`].
    pub applied: Seq,
    /// The replica's position.
    pub last: Seq,
    /// The staged resync that was being rolled forward: positions before and after.
    pub txn: Option<(Seq, Seq)>,
    /// The journal's newest interval and its length, bytes.
    pub journal: (u64, u64),
    /// Number of the names noted since ([`super::before`]).
    pub names: u64,
}

/// Where a directory's parent is asked for.
pub type ParentOf<'a> = &'a dyn Fn(VolId, DirId) -> Option<DirId>;

/// Checkpoint and active directories of an open replica.
pub struct Activity {
    file: File,
    path: PathBuf,
    rec: Record,
    set: HashSet<ActiveDir>,
    /// What it had when it was opened: stays until the first checkpoint.
    old: HashSet<ActiveDir>,
    /// Each directory with a change under it since the checkpoint. All of them are covered by the set on disk.
    touched: HashMap<(VolId, DirId), Touched>,
    /// Directories marked one by one since the set was exact, by parent.
    at_once: HashMap<(VolId, DirId), u32>,
    /// The set has entries that stand for more than was touched.
    blunt: bool,
    /// The set that a checkpoint under way is about to write: who is not in it must be marked now.
    next: Option<HashSet<ActiveDir>>,
    written: u64,
}

#[derive(Clone, Copy)]
struct Touched {
    /// The position of the last change.
    last: Seq,
    /// It was made since the checkpoint, so that the table tells of it.
    made: bool,
}

/// A checkpoint that has begun: what was changed before it is being made durable.
pub struct Begun {
    at: Seq,
    tables: Vec<u64>,
    replay: Option<Replay>,
}

impl Begun {
    /// The position that it is of.
    pub fn at(&self) -> Seq {
        self.at
    }
}

/// The newest whole record of a file's bytes.
pub fn newest(bytes: &[u8]) -> Option<Record> {
    let slot = |b: &[u8]| -> Option<Record> {
        file::check_header(b, MAGIC, VERSION, "active").ok()?;
        codec::decode(file::Records::new(b.get(file::HEADER_BYTES..)?).next()?).ok()
    };
    bytes.chunks(SLOT as usize).filter_map(slot).max_by_key(|r| r.count)
}

/// What the file at `path` says; `None` when it says nothing, so that everything may be lost.
pub fn read(path: &Path) -> Result<Option<Record>> {
    match std::fs::read(path) {
        Ok(b) => Ok(newest(&b)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::from(e).context(path.display())),
    }
}

impl Activity {
    /// Goes on after what `before` says, with these further directories; durable when it returns. Without a record
    /// everything of the `volumes` is active.
    pub fn open(
        path: &Path,
        before: Option<Record>,
        more: &[ActiveDir],
        tables: Vec<u64>,
        volumes: u16,
    ) -> Result<Activity> {
        let file = std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.at(path.display())?;
        if file.metadata().at(path.display())?.len() < 2 * SLOT {
            let (_, r) = sys::pwrite_all(&file, &vec![0u8; 2 * SLOT as usize], 0);
            r.and_then(|()| file.sync_all()).at(path.display())?;
            if let Some(dir) = path.parent() {
                File::open(dir).and_then(|d| d.sync_all()).at(path.display())?;
            }
        }
        let whole = |v| ActiveDir { vol: VolId(v), dir: DirId::ROOT, below: true };
        let rec = before.unwrap_or_else(|| Record {
            count: 0,
            at: Seq(0),
            time: 0,
            tables: Vec::new(),
            dirs: (0..volumes).map(whole).collect(),
            replay: None,
        });
        let set = shrink(rec.dirs.iter().chain(more).copied().collect());
        let old = set.clone();
        let mut a = Activity {
            file,
            path: path.to_owned(),
            rec: Record { tables, ..rec },
            set,
            old,
            touched: HashMap::new(),
            at_once: HashMap::new(),
            blunt: false,
            next: None,
            written: 0,
        };
        a.write()?;
        Ok(a)
    }

    /// The position of the checkpoint.
    pub fn at(&self) -> Seq {
        self.rec.at
    }

    /// The durable set.
    pub fn dirs(&self) -> Vec<ActiveDir> {
        let mut v: Vec<_> = self.set.iter().copied().collect();
        v.sort();
        v
    }

    /// Times that the file was written since it was opened.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// True when something was changed since the checkpoint, whose position `at` says, began.
    pub fn due(&self, at: Seq) -> bool {
        self.rec.at != at || !self.set.is_empty() || !self.touched.is_empty()
    }

    /// A change under `dir` is about to get the position `seq`: it is in the durable set when this returns.
    pub fn touch(&mut self, vol: VolId, dir: DirId, seq: Seq, parent: ParentOf) -> Result<()> {
        if dir.is_internal() {
            return Ok(());
        }
        if let Some(t) = self.touched.get_mut(&(vol, dir)) {
            t.last = seq;
            return Ok(());
        }
        if !self.covers(vol, dir, parent) {
            self.mark(vol, dir, parent)?;
        }
        self.touched.insert((vol, dir), Touched { last: seq, made: false });
        Ok(())
    }

    /// A directory was made since the checkpoint: its place in the table tells of it.
    pub fn made(&mut self, vol: VolId, dir: DirId, seq: Seq) {
        self.touched.insert((vol, dir), Touched { last: seq, made: true });
    }

    /// A directory is about to move: what is below it stays covered wherever it goes.
    pub fn moves(&mut self, vol: VolId, dir: DirId) -> Result<()> {
        let e = ActiveDir { vol, dir, below: true };
        if self.set.contains(&e) || !self.set.iter().chain(self.next.iter().flatten()).any(|s| s.vol == vol && s.below)
        {
            return Ok(());
        }
        self.set.insert(e);
        self.old.insert(e);
        if let Some(n) = &mut self.next {
            n.insert(e);
        }
        self.write().inspect_err(|_| {
            self.set.remove(&e);
        })
    }

    fn covers(&self, vol: VolId, dir: DirId, parent: ParentOf) -> bool {
        covers(&self.set, vol, dir, parent) && self.next.as_ref().is_none_or(|n| covers(n, vol, dir, parent))
    }

    fn mark(&mut self, vol: VolId, dir: DirId, parent: ParentOf) -> Result<()> {
        let mut e = ActiveDir { vol, dir, below: false };
        if let Some(up) = parent(vol, dir) {
            let n = self.at_once.entry((vol, up)).or_default();
            *n += 1;
            if *n > AT_ONCE_MAX {
                e = ActiveDir { vol, dir: up, below: true };
            }
        }
        if e.below || self.set.len() >= ENTRIES_MAX {
            self.blunt = true;
        }
        let before = (self.set.len() >= ENTRIES_MAX).then(|| self.set.clone());
        for set in std::iter::once(&mut self.set).chain(self.next.as_mut()) {
            set.insert(e);
            if set.len() > ENTRIES_MAX {
                *set = shrink(std::mem::take(set));
            }
        }
        self.write().inspect_err(|_| match before {
            Some(set) => self.set = set,
            None => drop(self.set.remove(&e)),
        })
    }

    /// Where entries stand for more than was changed, says which directories those were; durable when it returns.
    pub fn sharpen(&mut self) -> Result<()> {
        self.at_once.clear();
        if !self.blunt || self.next.is_some() {
            return Ok(());
        }
        let exact = self.touched.iter().filter(|(_, t)| !t.made);
        let exact = exact.map(|((vol, dir), _)| ActiveDir { vol: *vol, dir: *dir, below: false });
        let set = self.old.iter().copied().chain(exact).collect::<HashSet<_>>();
        // Too many as they are: they stay one for all.
        self.blunt = false;
        if set.len() > ENTRIES_MAX {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.set, set);
        self.write().inspect_err(|_| (self.set, self.blunt) = (before, true))
    }

    fn write(&mut self) -> Result<()> {
        self.rec.count += 1;
        self.rec.dirs = self.set.iter().copied().collect();
        self.written += 1;
        store(&self.file, &self.rec).at(self.path.display())
    }

    /// A checkpoint begins: everything that had finished up to `at` is now made durable by the caller.
    pub fn begin(&mut self, at: Seq, tables: Vec<u64>, replay: Option<Replay>) -> Begun {
        let used = self.rec.at;
        // What was begun later stays, and what is in steady use, so that it need not be marked again and again.
        self.touched.retain(|_, t| t.last > at || t.last > used);
        self.touched.values_mut().for_each(|t| t.made = false);
        let keep = self.touched.keys().map(|(vol, dir)| ActiveDir { vol: *vol, dir: *dir, below: false });
        self.next = Some(shrink(keep.collect()));
        Begun { at, tables, replay }
    }

    /// What [`Activity::begin`] told is durable: says so, durably.
    pub fn finish(&mut self, b: Begun) -> Result<()> {
        let Some(next) = self.next.take() else { return Ok(()) };
        let (before, set) = (self.rec.clone(), std::mem::replace(&mut self.set, next));
        (self.rec.at, self.rec.tables, self.rec.time) = (b.at, b.tables, time::now().sec);
        self.rec.replay = b.replay;
        self.write().inspect_err(|_| {
            (self.rec, self.set) = (Record { count: self.rec.count, ..before }, set);
        })?;
        self.old.clear();
        self.at_once.clear();
        self.blunt = self.set.iter().any(|e| e.below);
        Ok(())
    }

    /// The checkpoint could not be finished.
    pub fn give_up(&mut self) {
        self.next = None;
    }

    /// From where the entry log is applied again after a power cut.
    pub fn replay(&self) -> Option<Replay> {
        self.rec.replay
    }

    /// From now on the tree changes in ways that the entry log does not tell: durably, when it returns.
    pub fn no_replay(&mut self) -> Result<()> {
        match self.rec.replay.take() {
            Some(_) => self.write(),
            None => Ok(()),
        }
    }

    /// The history goes on from `at`, an earlier position than that of the checkpoint.
    pub fn rewind(&mut self, at: Seq) -> Result<()> {
        if at >= self.rec.at {
            return Ok(());
        }
        self.rec.at = at;
        self.write()
    }
}

fn store(file: &File, rec: &Record) -> Result<()> {
    let bytes = file::whole(MAGIC, VERSION, &codec::encode(rec)?);
    if bytes.len() as u64 > SLOT {
        return Err(Error::failed("more active directories than a slot holds"));
    }
    let (_, r) = sys::pwrite_all(file, &bytes, (rec.count % 2) * SLOT);
    r.and_then(|()| file.sync_data())?;
    Ok(())
}

fn covers(set: &HashSet<ActiveDir>, vol: VolId, dir: DirId, parent: ParentOf) -> bool {
    if set.contains(&ActiveDir { vol, dir, below: false }) {
        return true;
    }
    let mut at = Some(dir);
    // No tree is deeper than it has directories; a circle in a damaged table must not be walked for ever.
    for _ in 0..100_000 {
        let Some(d) = at else { return false };
        if set.contains(&ActiveDir { vol, dir: d, below: true }) {
            return true;
        }
        at = parent(vol, d);
    }
    false
}

/// A set that is too large becomes the roots of its volumes.
fn shrink(set: HashSet<ActiveDir>) -> HashSet<ActiveDir> {
    if set.len() <= ENTRIES_MAX {
        return set;
    }
    set.iter().map(|e| ActiveDir { vol: e.vol, dir: DirId::ROOT, below: true }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const V: VolId = VolId(0);

    /// Directories 100.. below 10, which is below the root, with 10 others.
    fn parent(_: VolId, d: DirId) -> Option<DirId> {
        match d.0 {
            1 => None,
            10..100 => Some(DirId(1)),
            n => Some(DirId(10 + n / 1000)),
        }
    }

    fn open(p: &Path) -> Activity {
        Activity::open(p, read(p).unwrap(), &[], vec![0], 1).unwrap()
    }

    #[test]
    fn a_directory_is_durable_before_the_first_change_and_leaves_at_a_checkpoint() {
        let d = tempfile::tempdir().unwrap();
        let p = d.path().join("active");
        let mut a = open(&p);
        assert_eq!(a.dirs(), [ActiveDir { vol: V, dir: DirId::ROOT, below: true }], "nothing is known: everything");
        let b = a.begin(Seq(5), vec![16], None);
        a.finish(b).unwrap();
        let writes = a.written();
        for s in 6..1000 {
            a.touch(V, DirId(10), Seq(s), &parent).unwrap();
        }
        assert_eq!(a.written(), writes + 1, "the steady state costs nothing");
        let on_disk = read(&p).unwrap().unwrap();
        assert_eq!((on_disk.at, on_disk.dirs), (Seq(5), vec![ActiveDir { vol: V, dir: DirId(10), below: false }]));
        // In use since the last checkpoint: it stays at this one, and goes at the next.
        let b = a.begin(Seq(999), vec![16], None);
        a.touch(V, DirId(11), Seq(1000), &parent).unwrap();
        a.finish(b).unwrap();
        let dirs = |a: &Activity| a.dirs().iter().map(|e| e.dir.0).collect::<Vec<_>>();
        assert_eq!(dirs(&a), [10, 11]);
        let b = a.begin(Seq(1000), vec![16], None);
        a.finish(b).unwrap();
        assert_eq!(dirs(&a), [11]);
        assert_eq!(read(&p).unwrap().unwrap().at, Seq(1000));
    }

    #[test]
    fn a_walk_over_many_directories_costs_a_few_writes_and_ends_exact() {
        let d = tempfile::tempdir().unwrap();
        let mut a = open(&d.path().join("active"));
        let b = a.begin(Seq(1), vec![16], None);
        a.finish(b).unwrap();
        let writes = a.written();
        for n in 100..10_100 {
            a.touch(V, DirId(n), Seq(n), &parent).unwrap();
        }
        let cost = a.written() - writes;
        assert!(cost <= 11 * (u64::from(AT_ONCE_MAX) + 1), "{cost} writes");
        assert!((100..10_100).all(|n| covers(&a.set, V, DirId(n), &parent)));
        // More than there is room for: they stay one for all.
        a.sharpen().unwrap();
        assert!((100..10_100).all(|n| covers(&a.set, V, DirId(n), &parent)));
    }

    #[test]
    fn what_was_active_is_told_exactly_when_the_rush_is_over() {
        let d = tempfile::tempdir().unwrap();
        let p = d.path().join("active");
        let mut a = open(&p);
        let b = a.begin(Seq(1), vec![16], None);
        a.finish(b).unwrap();
        let writes = a.written();
        // Every tenth of the thousand below directory 11.
        for n in (1000..2000).step_by(10) {
            a.touch(V, DirId(n), Seq(n), &parent).unwrap();
        }
        assert_eq!(a.written() - writes, u64::from(AT_ONCE_MAX) + 1);
        assert!(covers(&a.set, V, DirId(1001), &parent), "one for all");
        a.sharpen().unwrap();
        assert_eq!(a.written() - writes, u64::from(AT_ONCE_MAX) + 2);
        let on_disk = read(&p).unwrap().unwrap();
        let dirs: Vec<u64> = on_disk.dirs.iter().map(|e| e.dir.0).collect();
        assert_eq!((dirs.len(), on_disk.dirs.iter().any(|e| e.below)), (100, false));
        assert!((1000..2000).step_by(10).all(|n| covers(&a.set, V, DirId(n), &parent)));
        assert!(!covers(&a.set, V, DirId(1001), &parent));
        a.sharpen().unwrap();
        assert_eq!(a.written() - writes, u64::from(AT_ONCE_MAX) + 2, "nothing to say");
    }

    #[test]
    fn a_torn_slot_leaves_the_one_before() {
        let d = tempfile::tempdir().unwrap();
        let p = d.path().join("active");
        let mut a = open(&p);
        let b = a.begin(Seq(5), vec![16], None);
        a.finish(b).unwrap();
        a.touch(V, DirId(10), Seq(6), &parent).unwrap();
        let count = a.rec.count;
        drop(a);
        let mut bytes = std::fs::read(&p).unwrap();
        bytes[((count % 2) * SLOT) as usize + 20] ^= 1;
        std::fs::write(&p, bytes).unwrap();
        let r = read(&p).unwrap().unwrap();
        assert_eq!((r.count, r.at), (count - 1, Seq(5)));
    }
}
