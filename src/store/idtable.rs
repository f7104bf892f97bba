//! Directory id → (parent, name), the names of files with several links, and what is kept beside objects; persisted as
//! a log of records.
//!
//! ```text
//! .kagami/ids:  header "KGMIDS\0\0" v1 | record* , each an encoded IdRec; a torn tail is cut off at open
//! ```
//! A directory's inode number is kept as its identity: a directory that is not the one we know (a disk restored from a
//! backup, a tree changed from outside) is noticed before anything is written into it.

use super::kept::{Kept, KeptTable};
use super::room::Room;
use crate::base::{At, DirId, Error, LinkId, Name, Result};
use crate::format::{codec, file};
use bincode::{Decode, Encode};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"KGMIDS\0\0";
const VERSION: u32 = 1;
/// The log is rewritten when it holds this many records more than twice the live ones.
const COMPACT_SLACK: u64 = 4096;

/// A record of the table.
#[derive(Encode, Decode, Clone, Debug, PartialEq, Eq)]
pub enum IdRec {
    /// A directory is here.
    Dir { id: DirId, parent: DirId, name: Vec<u8>, ino: u64 },
    /// It is gone.
    DirGone { id: DirId },
    /// A name of a file with several links.
    Link { lid: LinkId, at: Name },
    /// It is gone.
    LinkGone { at: Name },
    /// What is kept beside an object.
    Kept { ino: u64, kept: Kept },
    /// Nothing any more.
    KeptGone { ino: u64 },
}

impl IdRec {
    /// Decodes a record; its names can be such (G10).
    pub fn parse(body: &[u8]) -> Result<IdRec> {
        let r: IdRec = codec::decode(body)?;
        let ok = match &r {
            IdRec::Dir { parent, name, .. } => Name::new(*parent, name.clone()).is_valid(),
            IdRec::Link { at, .. } | IdRec::LinkGone { at } => at.is_valid(),
            _ => true,
        };
        if ok { Ok(r) } else { Err(Error::corrupt("table of ids: a name that is not one path component")) }
    }
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
    kept: KeptTable,
    file: File,
    path: PathBuf,
    records: u64,
    /// Not rewritten before it has this many records.
    compact_at: u64,
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
            kept: KeptTable::default(),
            file: file.try_clone().at(&what)?,
            path: path.to_owned(),
            records: 0,
            compact_at: 0,
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
            t.replay(IdRec::parse(body).at(&what)?);
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
        if t.is_slack() {
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
            IdRec::Kept { ino, kept } => self.kept.set(ino, kept),
            IdRec::KeptGone { ino } => self.kept.remove(ino),
        }
    }

    fn live(&self) -> u64 {
        (self.dirs.len() + self.link_of.len() + self.kept.len()) as u64
    }

    fn is_slack(&self) -> bool {
        self.records > 2 * self.live() + COMPACT_SLACK
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

    /// Before an operation: makes sure that this many bytes of records can be written when the disk is full. Where every
    /// new object has a record the log grows fast, so it is rewritten here too.
    pub fn reserve(&mut self, bytes: u64) -> Result<()> {
        if self.records >= self.compact_at && self.is_slack() {
            if let Err(e) = self.compact() {
                log::warn!("{}: not rewritten: {e}", self.path.display());
            }
            self.compact_at = self.records + COMPACT_SLACK;
        }
        self.ensure(bytes)
    }

    fn ensure(&mut self, bytes: u64) -> Result<()> {
        self.room.ensure(&self.file, self.bytes, bytes).at("ids")
    }

    fn append(&mut self, r: &IdRec) -> Result<()> {
        let mut out = Vec::with_capacity(96);
        file::put_record(&mut out, &codec::encode(r)?);
        self.ensure(out.len() as u64)?;
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

    /// Bytes of header and records.
    pub fn bytes(&self) -> u64 {
        self.bytes
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

    /// What is kept beside objects.
    pub fn kept(&self) -> &KeptTable {
        &self.kept
    }

    /// Records what is kept beside an object; nothing, when it is empty.
    pub fn set_kept(&mut self, ino: u64, kept: Kept) -> Result<()> {
        if !kept.is_empty() {
            self.append(&IdRec::Kept { ino, kept: kept.clone() })?;
            self.kept.set(ino, kept);
        } else if self.kept.get(ino).is_some() {
            self.append(&IdRec::KeptGone { ino })?;
            self.kept.remove(ino);
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

    /// Gives directories other ids (theirs, new) and names other link ids, all or none, also after kill -9. The names are in
    /// directories by their new ids. What is not mentioned keeps its id, or gets a fresh one where that is needed now.
    ///
    /// # Errors
    /// [`Kind::Corrupt`](crate::base::Kind): a directory that is not there, or an id that cannot be given.
    pub fn readdress(&mut self, dirs: &[(DirId, DirId)], links: &[(Name, LinkId)]) -> Result<()> {
        let mut to: HashMap<DirId, DirId> = dirs.iter().copied().collect();
        let taken: HashSet<DirId> = dirs.iter().map(|(_, new)| *new).collect();
        let ok = |(old, new): &(DirId, DirId)| self.dirs.contains_key(old) && new.0 >= DirId::FIRST_FREE;
        if !dirs.iter().all(ok) || to.len() != dirs.len() || taken.len() != dirs.len() {
            return Err(Error::corrupt("ids that cannot be given"));
        }
        for id in self.dirs.keys().filter(|id| taken.contains(id)) {
            to.entry(*id).or_insert_with(|| self.fresh_dir_id());
        }
        let at = |d: DirId| to.get(&d).copied().unwrap_or(d);
        let new_dirs: HashMap<DirId, DirRec> =
            self.dirs.iter().map(|(id, r)| (at(*id), DirRec { parent: at(r.parent), ..r.clone() })).collect();
        let given: HashSet<LinkId> = links.iter().map(|(_, l)| *l).collect();
        let named: HashMap<&Name, LinkId> = links.iter().map(|(n, l)| (n, *l)).collect();
        let mut moved: HashMap<LinkId, LinkId> = HashMap::new();
        let mut link_of: HashMap<Name, LinkId> = HashMap::new();
        for (n, lid) in &self.link_of {
            let n = Name::new(at(n.dir), n.name.clone());
            let lid = match named.get(&n) {
                Some(l) => *l,
                None if given.contains(lid) => *moved.entry(*lid).or_insert_with(|| self.fresh_link_id()),
                None => *lid,
            };
            link_of.insert(n, lid);
        }
        link_of.extend(links.iter().cloned());
        let mut new_links: HashMap<LinkId, Vec<Name>> = HashMap::new();
        for (n, l) in &link_of {
            new_links.entry(*l).or_default().push(n.clone());
        }
        let by_ino = new_dirs.iter().map(|(id, r)| (r.ino, *id)).collect();
        let old = (
            std::mem::replace(&mut self.dirs, new_dirs),
            std::mem::replace(&mut self.by_ino, by_ino),
            std::mem::replace(&mut self.links, new_links),
            std::mem::replace(&mut self.link_of, link_of),
        );
        self.compact().inspect_err(|_| (self.dirs, self.by_ino, self.links, self.link_of) = old)
    }

    /// Every directory with its place.
    pub fn dirs(&self) -> impl Iterator<Item = (DirId, &DirRec)> {
        self.dirs.iter().map(|(k, v)| (*k, v))
    }

    /// Every name of a file with several links.
    pub fn linked_names(&self) -> impl Iterator<Item = &Name> {
        self.link_of.keys()
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
        for (ino, kept) in self.kept.iter() {
            file::put_record(&mut out, &codec::encode(&IdRec::Kept { ino, kept: kept.clone() })?);
        }
        super::files::replace(&self.path, &out)?;
        self.file = std::fs::OpenOptions::new().read(true).append(true).open(&self.path).at("ids")?;
        self.bytes = out.len() as u64;
        self.room = Room::default();
        self.records = self.live();
        Ok(())
    }
}

/// The directories that the records after the first `len` bytes of a table are about: made or moved since it had that
/// length. To be called before the table is opened, which may rewrite it.
pub fn dirs_after(path: &Path, len: u64) -> Result<Vec<DirId>> {
    let bytes = match std::fs::read(path) {
        Ok(b) => b,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::from(e).context(path.display())),
    };
    let tail = bytes.get((len as usize).max(file::HEADER_BYTES)..).unwrap_or(&[]);
    let mut out = Vec::new();
    for body in file::Records::new(tail) {
        if let IdRec::Dir { id, .. } = IdRec::parse(body).at(path.display())? {
            out.push(id);
        }
    }
    Ok(out)
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

    #[test]
    fn ids_of_another_replica_are_taken_over_whole_or_not_at_all() {
        let d = tempfile::tempdir().unwrap();
        let p = d.path().join("ids");
        let n = |d: u64, s: &str| Name::new(DirId(d), s);
        let mut t = IdTable::open(&p).unwrap();
        t.put_dir(DirId(100), DirId::ROOT, b"a", 7).unwrap();
        t.put_dir(DirId(101), DirId(100), b"b", 8).unwrap();
        t.put_dir(DirId(102), DirId::ROOT, b"own", 9).unwrap();
        for name in [n(100, "l1"), n(101, "l2")] {
            t.put_link(LinkId(5), &name).unwrap();
        }
        t.put_link(LinkId(6), &n(102, "x")).unwrap();
        // 102 is needed for another one, and so is link id 6.
        t.readdress(
            &[(DirId(100), DirId(102)), (DirId(101), DirId(201))],
            &[(n(102, "l1"), LinkId(6)), (n(201, "l2"), LinkId(6))],
        )
        .unwrap();
        drop(t);
        let mut t = IdTable::open(&p).unwrap();
        assert_eq!((t.by_ino(7), t.by_ino(8), t.len()), (Some(DirId(102)), Some(DirId(201)), 3));
        assert_eq!(t.dir(DirId(201)).unwrap().parent, DirId(102));
        let own = t.by_ino(9).unwrap();
        assert!(own != DirId(102) && &*t.dir(own).unwrap().name == b"own");
        let mut names = t.names_of(LinkId(6)).to_vec();
        names.sort();
        assert_eq!(names, [n(102, "l1"), n(201, "l2")]);
        assert!(t.link_of(&Name::new(own, "x")).is_some_and(|l| l != LinkId(6)));
        for wrong in
            [vec![(DirId(9999), DirId(300))], vec![(DirId(201), DirId(1))], vec![(own, DirId(5)), (own, DirId(6))]]
        {
            assert!(t.readdress(&wrong, &[]).is_err(), "{wrong:?}");
        }
        assert_eq!((t.by_ino(7), t.len()), (Some(DirId(102)), 3));
    }

    #[test]
    fn a_log_that_grew_is_rewritten_while_it_is_in_use() {
        let d = tempfile::tempdir().unwrap();
        let p = d.path().join("ids");
        let kept = |uid| Kept { uid: Some(uid), ..Kept::default() };
        let mut t = IdTable::open(&p).unwrap();
        t.set_kept(1, kept(7)).unwrap();
        for _ in 0..COMPACT_SLACK {
            t.reserve(100).unwrap();
            t.set_kept(2, kept(8)).unwrap();
            t.set_kept(2, Kept::default()).unwrap();
        }
        assert!(t.records < COMPACT_SLACK + 10 && t.bytes < 300_000, "{} records, {} bytes", t.records, t.bytes);
        t.set_kept(3, kept(9)).unwrap();
        drop(t);
        let t = IdTable::open(&p).unwrap();
        let uid = |ino| t.kept().get(ino).and_then(|k| k.uid);
        assert_eq!((t.kept().len(), uid(1), uid(2), uid(3)), (2, Some(7), None, Some(9)));
    }
}
