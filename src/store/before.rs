//! What names referred to at the last checkpoint, as far as entries applied since are about them. With it the names of a
//! tree that lost power are set back to the checkpoint (`store::set_back`), from where the entry log is applied again.
//!
//! ```text
//! .kagami/before0, before1 (number modulo 2): header "KGMBFOR\0" v1 | record: number u64 | record*, each an encoded Was
//! ```
//! Write-ahead: no entry is applied before it is durable in the entry log, and what its names refer to durable here. An
//! entry that is so is *armed*.

use super::log::EntryLog;
use super::region::Region;
use super::room::Room;
use crate::base::{At, DirId, Kind, Name, Result, VolId, time::Time};
use crate::format::frame::{FrameKind, HEADER_BYTES};
use crate::format::op::Entry;
use crate::format::{codec, file};
use crate::os::sys;
use crate::pair::change::What;
use bincode::{Decode, Encode};
use std::collections::HashSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"KGMBFOR\0";
const VERSION: u32 = 1;
/// Entries armed at a time, count.
const ARMED_MAX: usize = 16 << 10;
/// Names noted since a checkpoint, count; with more the next checkpoint is due at once.
const NAMES_MAX: usize = 128 << 10;

/// An object, recognised wherever it is. An inode number alone is given again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct Object {
    /// Inode number.
    pub ino: u64,
    /// When it was made, as far as the filesystem tells.
    pub born: Time,
}

/// What a name referred to at the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Was {
    /// Volume of the group.
    pub vol: VolId,
    /// The name.
    pub at: Name,
    /// The object, its identity across sites and its kind (`S_IFMT`); `None`: the name was free.
    pub object: Option<(Object, What, u32)>,
}

/// Names noted since one checkpoint.
struct Since {
    number: u64,
    file: Arc<File>,
    bytes: u64,
    room: Room,
    seen: HashSet<(VolId, Name)>,
}

/// The names noted at an open replica.
pub struct Names {
    now: Since,
    /// Since a checkpoint that has begun and is not durable yet.
    next: Option<Since>,
    dir: PathBuf,
    /// Entries before this position of the log may be applied.
    armed: u64,
    /// Counts the changes of what counts as noted.
    turn: u64,
}

fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("before{}", number % 2))
}

/// The names noted since the checkpoint with this number, in the metadata directory of the lead region.
pub fn read(dir: &Path, number: u64) -> Result<Vec<Was>> {
    let path = path(dir, number);
    let bytes = match std::fs::read(&path) {
        Ok(b) if b.len() < file::HEADER_BYTES || file::is_blank(&b) => return Ok(Vec::new()),
        Ok(b) => b,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(crate::base::Error::from(e).context(path.display())),
    };
    file::check_header(&bytes, MAGIC, VERSION, "before")?;
    let mut records = file::Records::new(bytes.get(file::HEADER_BYTES..).unwrap_or(&[]));
    match records.next().map(codec::decode::<u64>) {
        Some(Ok(n)) if n == number => records.map(codec::decode).collect(),
        // That of an earlier one: nothing was noted since.
        _ => Ok(Vec::new()),
    }
}

impl Since {
    /// Goes on with what is on disk for `number`: `known`.
    fn open(dir: &Path, number: u64, known: &[Was]) -> Result<Since> {
        let path = path(dir, number);
        let file = std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let file = file.at(path.display())?;
        let mut s = Since { number, file: Arc::new(file), bytes: 0, room: Room::default(), seen: HashSet::new() };
        s.put(known)?;
        // What was torn goes.
        s.file.set_len(s.bytes).at(path.display())?;
        Ok(s)
    }

    fn put(&mut self, all: &[Was]) -> Result<()> {
        let mut out = Vec::new();
        if self.bytes == 0 {
            out.extend(file::header(MAGIC, VERSION));
            file::put_record(&mut out, &codec::encode(&self.number)?);
        }
        for w in all {
            file::put_record(&mut out, &codec::encode(w)?);
        }
        self.room.ensure(&self.file, self.bytes, out.len() as u64).at("before")?;
        sys::pwrite_all(&*self.file, &out, self.bytes).1.at("before")?;
        self.bytes += out.len() as u64;
        self.seen.extend(all.iter().map(|w| (w.vol, w.at.clone())));
        Ok(())
    }
}

impl Names {
    /// Those noted since the checkpoint with this number; `dir`: the metadata directory of the lead region. False when they
    /// are damaged: then that checkpoint is none to go back to.
    pub fn open(dir: &Path, number: u64) -> Result<(Names, bool)> {
        let known = match read(dir, number) {
            Err(e) if e.kind == Kind::Corrupt => {
                log::error!("{}: {e}: made anew", path(dir, number).display());
                None
            }
            r => Some(r?),
        };
        let now = Since::open(dir, number, known.as_deref().unwrap_or_default())?;
        File::open(dir).and_then(|d| d.sync_all()).at(dir.display())?;
        Ok((Names { now, next: None, dir: dir.to_owned(), armed: 0, turn: 0 }, known.is_some()))
    }

    /// A checkpoint begins: what was noted counts no more for entries applied from now on. Returns its number.
    pub fn begin(&mut self) -> Result<u64> {
        let number = self.now.number + 1;
        let path = path(&self.dir, number);
        let file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).open(&path);
        let file = Arc::new(file.at(path.display())?);
        self.next = Some(Since { number, file, bytes: 0, room: Room::default(), seen: HashSet::new() });
        self.disarm();
        Ok(number)
    }

    /// The checkpoint that had begun is durable.
    pub fn finish(&mut self) {
        if let Some(n) = self.next.take() {
            self.now = n;
        }
    }

    /// The checkpoint that had begun came to nothing.
    pub fn give_up(&mut self) {
        self.next = None;
    }

    /// Nothing is armed any more: what comes next in the log may be something else.
    pub fn disarm(&mut self) {
        self.armed = 0;
        self.turn += 1;
    }

    /// Entries before this position of the log may be applied.
    pub fn armed(&self) -> u64 {
        self.armed
    }

    /// True when so many names were noted that a checkpoint should make them few.
    pub fn many(&self) -> bool {
        self.now.seen.len() > NAMES_MAX
    }

    fn note(&mut self, regions: &[Arc<Region>], names: &[(VolId, Name)]) -> Result<()> {
        for since in std::iter::once(&mut self.now).chain(self.next.as_mut()) {
            let mut new = Vec::new();
            let mut met = HashSet::new();
            for (vol, at) in names {
                if since.seen.contains(&(*vol, at.clone())) || !met.insert((*vol, at)) {
                    continue;
                }
                let Some(region) = regions.get(usize::from(vol.0)) else { continue };
                new.push(Was { vol: *vol, at: at.clone(), object: region.identify(at)? });
            }
            if !new.is_empty() {
                since.put(&new)?;
            }
        }
        Ok(())
    }

    fn files(&self) -> Vec<Arc<File>> {
        std::iter::once(&self.now).chain(&self.next).map(|s| s.file.clone()).collect()
    }
}

/// Arms entries from `from`, the position up to which the log is applied, to `to` at most. Nothing is applied meanwhile.
pub fn arm(
    names: &crate::base::sync::Mutex<Names>,
    log: &EntryLog,
    regions: &[Arc<Region>],
    from: u64,
    to: u64,
) -> Result<()> {
    let durable = log.durable();
    let end = if durable > from { durable } else { log.sync()? };
    let end = end.min(to);
    let (turn, at, files) = {
        let mut n = names.lock();
        let (mut at, mut buf, mut found) = (from, Vec::new(), Vec::new());
        for _ in 0..ARMED_MAX {
            if at >= end {
                break;
            }
            let Some((next, head)) = log.peek(at, &mut buf)? else { break };
            if matches!(head.kind, FrameKind::Entry | FrameKind::Staged) {
                let e: Entry = codec::decode(buf.get(HEADER_BYTES..).unwrap_or(&[]))?;
                if e.op.is_namespace() {
                    found.extend(e.op.names().into_iter().flatten().map(|at| (e.vol, at.clone())));
                }
            }
            at = next;
        }
        n.note(regions, &found)?;
        (n.turn, at, if found.is_empty() { Vec::new() } else { n.files() })
    };
    for f in files {
        f.sync_data().at("before")?;
    }
    let mut n = names.lock();
    if n.turn == turn {
        n.armed = at;
    }
    Ok(())
}

impl Region {
    /// The object at a name, so that it is recognised later; `None` when the name, or its directory, is not there.
    pub(super) fn identify(&self, at: &Name) -> Result<Option<(Object, What, u32)>> {
        let dir = match self.dirfd(at.dir) {
            Err(e) if e.errno == libc::ENOENT => return Ok(None),
            r => r?,
        };
        let Some((st, what)) = self.look(at)? else { return Ok(None) };
        Ok(Some((object(&dir, &at.name, st.ino)?, what, st.mode & libc::S_IFMT)))
    }
}

/// The object at a name whose inode number is known.
pub(super) fn object(dir: &OwnedFd, name: &[u8], ino: u64) -> Result<Object> {
    Ok(Object { ino, born: sys::birth(dir, name)? })
}

/// True for a directory that was there at the checkpoint, or has always been.
pub(super) fn always(dir: DirId) -> bool {
    dir == DirId::ROOT || dir.is_internal()
}
