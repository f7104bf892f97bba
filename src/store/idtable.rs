//! Directory id → (parent, name), and the names of files with several links; persisted as a log of records.
//!
//! ```text
//! .kagami/ids:  header "KGMIDS\0\0" v1 | record* , each an encoded IdRec; a torn tail is cut off at open
//! ```
//! A directory's inode number is kept as its identity: a directory that is not the one we know (a disk restored from a
//! backup, a tree changed from outside) is noticed before anything is written into it.

use super::room::Room;
use crate::base::{At, DirId, Error, LinkId, Name, Result};
use crate::format::{codec, file};
use bincode::{Decode, Encode};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"KGMIDS\0\0";
const VERSION: u32 = 1;
/// The log is rewritten when it holds this many records more than twice the live ones.
const COMPACT_SLACK: u64 = 4096;

#[derive(Encode, Decode, Clone, Debug)]
enum IdRec {
    Dir { id: DirId, parent: DirId, name: Vec<u8>, ino: u64 },
    DirGone { id: DirId },
    Link { lid: LinkId, at: Name },
    LinkGone { at: Name },
}

/// Where a directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirRec {
    /// Its parent.
    pub parent: DirId,
    /// Its name there.
    pub name: Box<[u8]>,
    /// Its inode number.
    pub ino: u64,
}

/// The table, in memory and on disk.
pub struct IdTable {
    dirs: HashMap<DirId, DirRec>,
    by_ino: HashMap<u64, DirId>,
    links: HashMap<LinkId, Vec<Name>>,
    link_of: HashMap<Name, LinkId>,
    file: File,
    path: PathBuf,
    records: u64,
    dirty: bool,
    bytes: u64,
    room: Room,
}

impl IdTable {
    /// Opens or creates the table. `path` is `.kagami/ids`.
    pub fn open(path: &Path) -> Result<IdTable> {
        let what = path.display().to_string();
        let mut file =
            std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).at(&what)?;
        let bytes = std::fs::read(path).at(&what)?;
        let mut t = IdTable {
            dirs: HashMap::new(),
            by_ino: HashMap::new(),
            links: HashMap::new(),
            link_of: HashMap::new(),
            file: file.try_clone().at(&what)?,
            path: path.to_owned(),
            records: 0,
            dirty: false,
            bytes: file::HEADER_BYTES as u64,
            room: Room::default(),
        };
        if bytes.len() < file::HEADER_BYTES {
            // Empty, or torn while it was created: no record can have been there.
            file.set_len(0).at(&what)?;
            file.write_all(&file::header(MAGIC, VERSION)).at(&what)?;
            t.dirty = true;
            return Ok(t);
        }
        file::check_header(&bytes, MAGIC, VERSION, &what)?;
        let mut recs = file::Records::new(&bytes[file::HEADER_BYTES..]);
        for body in recs.by_ref() {
            t.replay(codec::decode(body).at(&what)?);
            t.records += 1;
        }
        let end = (file::HEADER_BYTES + recs.good) as u64;
        if recs.torn {
            log::warn!("{what}: torn tail of {} bytes cut off", bytes.len() as u64 - end);
        }
        // Also gives back what was reserved: on a full disk the next start needs it.
        file.set_len(end).at(&what)?;
        t.file.seek(std::io::SeekFrom::Start(end)).at(&what)?;
        t.bytes = end;
        let live = (t.dirs.len() + t.link_of.len()) as u64;
        if t.records > 2 * live + COMPACT_SLACK {
            t.compact()?;
        }
        Ok(t)
    }

    fn replay(&mut self, r: IdRec) {
        match r {
            IdRec::Dir { id, parent, name, ino } => self.set_dir(id, parent, &name, ino),
            IdRec::DirGone { id } => self.del_dir(id),
            IdRec::Link { lid, at } => self.set_link(lid, at),
            IdRec::LinkGone { at } => self.del_link(&at),
        }
    }

    fn set_dir(&mut self, id: DirId, parent: DirId, name: &[u8], ino: u64) {
        let new = DirRec { parent, name: name.into(), ino };
        if let Some(old) = self.dirs.insert(id, new)
            && old.ino != ino
            && self.by_ino.get(&old.ino) == Some(&id)
        {
            self.by_ino.remove(&old.ino);
        }
        self.by_ino.insert(ino, id);
    }

    fn del_dir(&mut self, id: DirId) {
        if let Some(old) = self.dirs.remove(&id)
            && self.by_ino.get(&old.ino) == Some(&id)
        {
            self.by_ino.remove(&old.ino);
        }
    }

    fn set_link(&mut self, lid: LinkId, at: Name) {
        if self.link_of.get(&at) == Some(&lid) {
            return;
        }
        self.del_link(&at);
        self.link_of.insert(at.clone(), lid);
        self.links.entry(lid).or_default().push(at);
    }

    fn del_link(&mut self, at: &Name) {
        if let Some(lid) = self.link_of.remove(at)
            && let Some(v) = self.links.get_mut(&lid)
        {
            v.retain(|n| n != at);
            if v.is_empty() {
                self.links.remove(&lid);
            }
        }
    }

    /// Makes sure that this many bytes of records can be written when the disk is full.
    pub fn reserve(&mut self, bytes: u64) -> Result<()> {
        self.room.ensure(&self.file, self.bytes, bytes).at("ids")
    }

    fn append(&mut self, r: &IdRec) -> Result<()> {
        let mut out = Vec::with_capacity(96);
        file::put_record(&mut out, &codec::encode(r)?);
        self.reserve(out.len() as u64)?;
        if let Err(e) = self.file.write_all(&out) {
            // Half a record would hide all that follow.
            self.file.set_len(self.bytes).at("ids")?;
            self.file.seek(std::io::SeekFrom::Start(self.bytes)).at("ids")?;
            return Err(Error::from(e).context("ids"));
        }
        self.bytes += out.len() as u64;
        self.records += 1;
        self.dirty = true;
        Ok(())
    }

    /// The directory's place, if it exists. The root and the internal directories have none.
    pub fn dir(&self, id: DirId) -> Option<&DirRec> {
        self.dirs.get(&id)
    }

    /// The id of the directory with this inode number.
    pub fn by_ino(&self, ino: u64) -> Option<DirId> {
        self.by_ino.get(&ino).copied()
    }

    /// Number of directories known.
    pub fn len(&self) -> usize {
        self.dirs.len()
    }

    /// True when no directory but the root is known.
    pub fn is_empty(&self) -> bool {
        self.dirs.is_empty()
    }

    /// Records a directory's place (new, or moved).
    pub fn put_dir(&mut self, id: DirId, parent: DirId, name: &[u8], ino: u64) -> Result<()> {
        self.append(&IdRec::Dir { id, parent, name: name.to_vec(), ino })?;
        self.set_dir(id, parent, name, ino);
        Ok(())
    }

    /// Forgets a removed directory.
    pub fn drop_dir(&mut self, id: DirId) -> Result<()> {
        self.append(&IdRec::DirGone { id })?;
        self.del_dir(id);
        Ok(())
    }

    /// The link id of a name of a file with several links.
    pub fn link_of(&self, at: &Name) -> Option<LinkId> {
        self.link_of.get(at).copied()
    }

    /// All names of a file with several links.
    pub fn names_of(&self, lid: LinkId) -> &[Name] {
        self.links.get(&lid).map_or(&[], Vec::as_slice)
    }

    /// Records one name of a file with several links.
    pub fn put_link(&mut self, lid: LinkId, at: &Name) -> Result<()> {
        self.append(&IdRec::Link { lid, at: at.clone() })?;
        self.set_link(lid, at.clone());
        Ok(())
    }

    /// Forgets one name (removed or moved away). The group goes with its last name.
    pub fn drop_link(&mut self, at: &Name) -> Result<()> {
        if self.link_of.contains_key(at) {
            self.append(&IdRec::LinkGone { at: at.clone() })?;
            self.del_link(at);
        }
        Ok(())
    }

    /// An unused directory id.
    pub fn fresh_dir_id(&self) -> DirId {
        loop {
            let id = DirId(crate::base::random_u64());
            if id.0 >= DirId::FIRST_FREE && !self.dirs.contains_key(&id) {
                return id;
            }
        }
    }

    /// An unused link id.
    pub fn fresh_link_id(&self) -> LinkId {
        loop {
            let id = LinkId(crate::base::random_u64());
            if !self.links.contains_key(&id) {
                return id;
            }
        }
    }

    /// Every directory with its place.
    pub fn dirs(&self) -> impl Iterator<Item = (DirId, &DirRec)> {
        self.dirs.iter().map(|(k, v)| (*k, v))
    }

    /// Makes the table durable (fdatasync), if anything was added since the last time.
    pub fn sync(&mut self) -> Result<()> {
        if std::mem::take(&mut self.dirty) {
            self.file.sync_data().at("ids")?;
        }
        Ok(())
    }

    /// A handle to sync without holding the table, when something is unsynced.
    pub fn take_dirty(&mut self) -> Result<Option<File>> {
        if std::mem::take(&mut self.dirty) { Ok(Some(self.file.try_clone().at("ids")?)) } else { Ok(None) }
    }

    fn compact(&mut self) -> Result<()> {
        let mut out = file::header(MAGIC, VERSION).to_vec();
        for (id, d) in &self.dirs {
            let r = IdRec::Dir { id: *id, parent: d.parent, name: d.name.to_vec(), ino: d.ino };
            file::put_record(&mut out, &codec::encode(&r)?);
        }
        for (at, lid) in &self.link_of {
            file::put_record(&mut out, &codec::encode(&IdRec::Link { lid: *lid, at: at.clone() })?);
        }
        super::files::replace(&self.path, &out)?;
        self.file = std::fs::OpenOptions::new().read(true).append(true).open(&self.path).at("ids")?;
        self.bytes = out.len() as u64;
        self.room = Room::default();
        self.records = (self.dirs.len() + self.link_of.len()) as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reopened_table_is_the_same_also_with_a_torn_tail() {
        let d = tempfile::tempdir().unwrap();
        let p = d.path().join("ids");
        let n = |s: &str| Name::new(DirId::ROOT, s);
        {
            let mut t = IdTable::open(&p).unwrap();
            t.put_dir(DirId(100), DirId::ROOT, b"a", 7).unwrap();
            t.put_dir(DirId(101), DirId(100), b"b", 8).unwrap();
            t.put_dir(DirId(101), DirId::ROOT, b"c", 8).unwrap();
            t.put_dir(DirId(102), DirId::ROOT, b"x", 9).unwrap();
            t.drop_dir(DirId(102)).unwrap();
            t.put_link(LinkId(5), &n("l1")).unwrap();
            t.put_link(LinkId(5), &n("l2")).unwrap();
            t.drop_link(&n("l1")).unwrap();
        }
        let mut bytes = std::fs::read(&p).unwrap();
        bytes.extend_from_slice(&[9, 0, 0, 0, 1, 2]);
        std::fs::write(&p, bytes).unwrap();
        let t = IdTable::open(&p).unwrap();
        assert_eq!(t.by_ino(8), Some(DirId(101)));
        assert_eq!(&*t.dir(DirId(101)).unwrap().name, b"c");
        assert!(t.dir(DirId(102)).is_none() && t.by_ino(9).is_none());
        assert_eq!(t.names_of(LinkId(5)), &[n("l2")]);
        drop(t);
        let mut t = IdTable::open(&p).unwrap();
        t.put_dir(DirId(103), DirId::ROOT, b"y", 10).unwrap();
        t.compact().unwrap();
        t.put_dir(DirId(104), DirId::ROOT, b"z", 11).unwrap();
        drop(t);
        let t = IdTable::open(&p).unwrap();
        assert_eq!(t.len(), 4);
        assert_eq!(t.link_of(&n("l2")), Some(LinkId(5)));
    }
}
