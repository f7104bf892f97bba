//! What a power cut leaves on a disk, played on a region whose node was killed: of all that was changed since a checkpoint
//! any part may be there, at random, but what was fsynced; the rest is as it was then.

use crate::support::Rng;
use kagami::format::codec;
use kagami::format::file::HEADER_BYTES as FILE_HEADER;
use kagami::format::frame::{self, FrameKind};
use kagami::format::op::{Entry, Op};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Offset and length of the boot id in the live page.
const BOOT: (u64, usize) = (24, 16);
/// A disk writes as much as a whole, bytes.
const SECTOR: u64 = 512;
/// Offsets there of the position up to which the log is applied, and of what is not 0 within a staged resync.
const APPLIED: usize = 56;
const TXN: usize = 88;

/// A copy of a region as it was when everything of it was durable.
pub struct Durable {
    region: PathBuf,
    copy: PathBuf,
    /// Where each object was, below the tree: a copy has other inodes.
    places: HashMap<u64, PathBuf>,
    /// Writes of the checkpoint when the copy was made.
    at: u64,
}

/// The position of the last checkpoint of a region, and when it was taken, seconds since 1970.
pub fn checkpoint(region: &Path) -> (u64, u64) {
    let r = kagami::store::activity::read(&region.join(".kagami/active")).expect("the activity file");
    r.map_or((0, 0), |r| (r.at.0, r.time as u64))
}

fn checkpoint_at(region: &Path) -> u64 {
    checkpoint(region).0
}

impl Durable {
    /// Copies a region while nothing happens to it. Its checkpoint must have been taken.
    pub fn copy(region: &Path, to: &Path) -> Durable {
        let at = checkpoint_at(region);
        let _ = fs::remove_dir_all(to);
        let done = Command::new("cp").args(["-a", "--sparse=always"]).arg(region).arg(to).status().expect("cp");
        assert!(done.success(), "copying {}", region.display());
        assert_eq!(at, checkpoint_at(region), "a checkpoint during the copy");
        let mut places = HashMap::new();
        let tree = region.join("tree");
        let mut todo = vec![tree.clone()];
        while let Some(d) = todo.pop() {
            for (name, m) in names(&d) {
                let p = d.join(name);
                places.insert(m.ino(), p.strip_prefix(&tree).expect("below the tree").to_owned());
                if m.is_dir() {
                    todo.push(p);
                }
            }
        }
        Durable { region: region.to_owned(), copy: to.to_owned(), places, at }
    }

    /// True while no later checkpoint has made more durable.
    pub fn holds(&self) -> bool {
        checkpoint_at(&self.region) == self.at
    }

    /// The power goes. `synced`: files below `tree/` that were fsynced since.
    pub fn cut(&self, rng: &mut Rng, synced: &BTreeSet<PathBuf>) -> String {
        let mut what = Mixed { places: self.places.clone(), root: self.region.join("tree"), ..Mixed::default() };
        what.tree(rng, &self.copy.join("tree"), &self.region.join("tree"), synced);
        self.records(rng, "journal", 0);
        self.records(rng, "queue", self.log_durable());
        self.tail(rng, Path::new("ids"));
        let live = fs::OpenOptions::new().write(true).open(self.region.join(".kagami/live"));
        if let Ok(live) = live {
            if rng.one_in(2) {
                let old = fs::read(self.copy.join(".kagami/live")).expect("the live page of then");
                live.write_all_at(&old, 0).expect("the live page");
            }
            // Another boot.
            live.write_all_at(&vec![0xb0; BOOT.1], BOOT.0).expect("the boot id");
        }
        format!("{what:?}")
    }

    /// Files that grow: cut somewhere between then and now; new ones may be empty or gone.
    /// What lies before the position `durable` of a log stays.
    fn records(&self, rng: &mut Rng, dir: &str, durable: u64) {
        let now = self.region.join(".kagami").join(dir);
        for e in fs::read_dir(&now).into_iter().flatten().flatten() {
            let name = e.file_name();
            let start = u64::from_str_radix(name.to_str().and_then(|n| n.split('.').next()).unwrap_or("0"), 16);
            let keep = durable.checked_sub(start.unwrap_or(0)).filter(|n| *n > 0);
            self.tail_from(rng, &Path::new(dir).join(name), keep.map_or(0, |n| n + FILE_HEADER as u64));
        }
    }

    /// The entry log is durable as far as it is applied, with the resync that is being applied, and to the last fsync.
    fn log_durable(&self) -> u64 {
        let page = fs::read(self.region.join(".kagami/live")).expect("the live page");
        let number = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().expect("a number"));
        let (applied, mut staged) = (number(APPLIED), number(TXN) != 0);
        let mut upto = applied;
        for e in fs::read_dir(self.region.join(".kagami/queue")).into_iter().flatten().flatten() {
            let name = e.file_name();
            let start = name.to_str().and_then(|n| u64::from_str_radix(n.split('.').next()?, 16).ok());
            let (Some(start), Ok(bytes)) = (start, fs::read(e.path())) else { continue };
            let mut at = applied.max(start);
            let frame_at = |at: u64| -> Option<&[u8]> {
                let rest = bytes.get(FILE_HEADER + usize::try_from(at - start).ok()?..)?;
                let head = frame::parse_header(rest.first_chunk()?).ok()?;
                rest.get(..frame::HEADER_BYTES + head.len as usize)
            };
            while let Some(f) = frame_at(at) {
                let Ok(head) = frame::check(f) else { break };
                at += f.len() as u64;
                let op = match head.kind {
                    FrameKind::Entry => codec::decode::<Entry>(frame::head_part(f, &head)).ok().map(|e| e.op),
                    _ => None,
                };
                let commit = staged && head.kind == FrameKind::TxnCommit;
                staged &= !commit;
                if commit || matches!(op, Some(Op::Fsync)) {
                    upto = upto.max(at);
                }
            }
        }
        upto
    }

    fn tail(&self, rng: &mut Rng, file: &Path) {
        self.tail_from(rng, file, 0);
    }

    fn tail_from(&self, rng: &mut Rng, file: &Path, durable: u64) {
        let now = self.region.join(".kagami").join(file);
        let then = self.copy.join(".kagami").join(file);
        let Ok(len) = fs::metadata(&now).map(|m| m.len()) else { return };
        let old = fs::metadata(&then).map(|m| m.len()).ok();
        match old {
            None if durable == 0 && rng.one_in(3) => fs::remove_file(&now).expect("a new file"),
            None | Some(_) => {
                let from = old.unwrap_or(0).max(durable).min(len);
                let keep = from + rng.below(len - from + 1);
                let f = fs::OpenOptions::new().write(true).open(&now).expect("a file of records");
                f.set_len(keep).expect("cut");
                if rng.one_in(4) {
                    // The length got to the disk, the content did not, or some whole sectors of it.
                    f.set_len(from.max(keep - keep % SECTOR)).expect("sectors");
                    f.set_len(len).expect("zeros");
                }
            }
        }
    }
}

/// The power goes, and what names were at the checkpoint cannot be read any more.
pub fn damaged(region: &Path) {
    let open = |f: &str| fs::OpenOptions::new().write(true).open(region.join(".kagami").join(f)).expect(f);
    open("live").write_all_at(&[0xb0; BOOT.1], BOOT.0).expect("the boot id");
    for f in ["before0", "before1"] {
        open(f).write_all_at(b"damaged!", 0).expect("what names were");
    }
}

/// Counts of what was done to a tree.
#[derive(Default)]
struct Mixed {
    places: HashMap<u64, PathBuf>,
    root: PathBuf,
    moved_back: u32,
    names_lost: u32,
    names_back: u32,
    old: u32,
    empty: u32,
    partly: u32,
    kept: u32,
}

fn names(dir: &Path) -> BTreeMap<std::ffi::OsString, fs::Metadata> {
    let all = fs::read_dir(dir).into_iter().flatten().flatten();
    all.filter_map(|e| Some((e.file_name(), e.path().symlink_metadata().ok()?))).collect()
}

impl std::fmt::Debug for Mixed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} names lost, {} back, {} moved back, {} old, {} empty, {} in part, {} kept",
            self.names_lost, self.names_back, self.moved_back, self.old, self.empty, self.partly, self.kept
        )
    }
}

impl Mixed {
    /// Something in a directory was there before the directory was.
    fn holds_old(&self, dir: &Path) -> bool {
        names(dir).iter().any(|(name, m)| self.is_old(&dir.join(name), m))
    }

    /// It was there then, or holds something that was.
    fn is_old(&self, p: &Path, m: &fs::Metadata) -> bool {
        self.places.contains_key(&m.ino()) || (m.is_dir() && self.holds_old(p))
    }

    /// A rename is lost: the object is where it was. False when something else is there.
    fn move_back(&mut self, now: &Path, m: &fs::Metadata) -> bool {
        let Some(then) = self.places.get(&m.ino()).map(|p| self.root.join(p)) else { return false };
        let free = then.symlink_metadata().is_err() && then.parent().is_some_and(Path::is_dir);
        if free && m.nlink() == 1 && !m.is_dir() {
            fs::rename(now, &then).expect("the name of then");
            self.moved_back += 1;
        }
        true
    }

    fn tree(&mut self, rng: &mut Rng, then: &Path, now: &Path, synced: &BTreeSet<PathBuf>) {
        let (old, new) = (names(then), names(now));
        for (name, m) in &new {
            let (a, b) = (then.join(name), now.join(name));
            let safe = synced.iter().any(|s| s.starts_with(&b));
            match old.get(name) {
                None if !safe && rng.one_in(3) && self.move_back(&b, m) => {}
                None if !(safe || self.is_old(&b, m)) && rng.one_in(3) => {
                    self.names_lost += 1;
                    if m.is_dir() { fs::remove_dir_all(&b) } else { fs::remove_file(&b) }.expect("a name lost");
                }
                None if m.is_dir() => self.tree(rng, &a, &b, synced),
                None if m.is_file() && !safe && !self.places.contains_key(&m.ino()) && rng.one_in(3) => {
                    self.empty += 1;
                    truncate(&b);
                }
                None => self.kept += 1,
                Some(o) if o.is_dir() && m.is_dir() => self.tree(rng, &a, &b, synced),
                Some(o) if o.is_file() && m.is_file() => self.file(rng, &a, &b, (o, m), safe),
                Some(_) => self.kept += 1,
            }
        }
        for (name, o) in old.iter().filter(|(n, _)| !new.contains_key(*n)) {
            // What was removed, or moved away, may be there again.
            if rng.one_in(2) && (o.is_file() || o.is_dir()) {
                self.names_back += 1;
                let done = Command::new("cp").arg("-a").arg(then.join(name)).arg(now.join(name)).status();
                assert!(done.expect("cp").success());
            }
        }
    }

    fn file(&mut self, rng: &mut Rng, then: &Path, now: &Path, (o, m): (&fs::Metadata, &fs::Metadata), safe: bool) {
        let changed =
            (o.size(), o.mtime(), o.mtime_nsec(), o.mode()) != (m.size(), m.mtime(), m.mtime_nsec(), m.mode());
        if safe || !changed {
            return;
        }
        // Of a file that was not truncated since, what did not change is there.
        let (before, after) =
            (fs::read(then).expect("the content of then"), fs::read(now).expect("the content of now"));
        let rewritten = before.chunks(4096).zip(after.chunks(4096)).all(|(a, b)| a != b);
        match rng.below(4) {
            1 if !rewritten => self.kept += 1,
            0 => {
                self.old += 1;
                fs::write(now, before).expect("the content of then");
                fs::set_permissions(now, fs::Permissions::from_mode(o.mode() & 0o7777)).expect("the mode of then");
                times(now, o);
            }
            1 => {
                self.empty += 1;
                truncate(now);
            }
            2 => {
                // Some blocks are old, though size and time are those of now.
                self.partly += 1;
                let f = fs::OpenOptions::new().write(true).open(now).expect("a file");
                for (i, b) in before.chunks(4096).enumerate().filter(|(_, b)| b.len() == 4096) {
                    let off = i as u64 * 4096;
                    if off + 4096 <= m.size() && rng.one_in(2) {
                        f.write_all_at(b, off).expect("an old block");
                    }
                }
                times(now, m);
            }
            _ => self.kept += 1,
        }
    }
}

fn truncate(p: &Path) {
    fs::OpenOptions::new().write(true).open(p).and_then(|f| f.set_len(0)).expect("an empty file");
}

fn times(p: &Path, m: &fs::Metadata) {
    let f = fs::OpenOptions::new().write(true).open(p).expect("a file");
    let t = m.modified().expect("mtime");
    f.set_modified(t).expect("set mtime");
}
