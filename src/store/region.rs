//! One volume's directory of a replica: its plain tree, addressed by directory ids, and its lock.
//!
//! ```text
//! REGION/                 0700
//!   tree/                 the user's files, plain
//!   .kagami/              identity, ids, staging/, lost/, lock; in the lead volume's region also the group's
//!                         metadata: live, journal/, queue/, state
//! ```

use super::files;
use super::head::Row;
use super::idtable::IdTable;
use super::space::Space;
use crate::base::sync::atomic::AtomicBool;
use crate::base::sync::{Mutex, RwLock};
use crate::base::{At, DirId, Error, Kind, LinkId, Name, Result, VolId};
use crate::os::rights;
use crate::os::sys::{self, Stat};
use crate::pair::change::What;
use bincode::{Decode, Encode};
use lru::LruCache;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Directory descriptors kept open, per region.
const DIR_FDS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// File descriptors kept open for applying writes, per region.
const FILE_FDS: NonZeroUsize = NonZeroUsize::new(128).unwrap();
const MAGIC: &[u8; 8] = b"KGMREGN\0";
const VERSION: u32 = 1;

/// What a region says about itself; how a replica that is not the expected one is recognised (G10).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Identity {
    /// Random id of this region.
    pub region: u64,
    /// Name of the group.
    pub group: String,
    /// Random id of the group, the same at every site once the first copy began; 0 before.
    pub group_id: u64,
    /// Name of the volume.
    pub volume: String,
    /// Index of the volume in the group.
    pub vol: VolId,
    /// Inode number of `tree/`: a tree that was swapped behind our back is noticed.
    pub tree_ino: u64,
}

impl Identity {
    /// What the region at `path` says about itself; `None` when it is no region.
    pub fn read(path: &Path) -> Result<Option<Identity>> {
        files::load(&path.join(".kagami/identity"), MAGIC, VERSION)
    }
}

/// An open, locked region.
pub struct Region {
    /// Index in the group.
    pub vol: VolId,
    /// The region's directory.
    pub path: PathBuf,
    /// Directory ids and names of linked files.
    pub ids: RwLock<IdTable>,
    identity: Mutex<Identity>,
    tree: Arc<OwnedFd>,
    staging: Arc<OwnedFd>,
    lost: Arc<OwnedFd>,
    dirs: Mutex<LruCache<DirId, Arc<OwnedFd>>>,
    pub(super) files: Mutex<LruCache<Name, Arc<OwnedFd>>>,
    /// This process may not set everything; the rest is kept beside (see [`super::kept`]).
    pub(super) limited: bool,
    /// Held while the tree's form of an object and what is kept beside it are changed together.
    pub(super) fitting: Mutex<()>,
    /// It was said in the log that something is kept beside.
    pub(super) told: AtomicBool,
    /// What is used of the volume's capacity.
    pub space: Space,
    /// The site's own definition of the volume, once it receives: definitions that come are checked against it (CD-5).
    pub row: OnceLock<Row>,
    _lock: OwnedFd,
}

/// Keeps others out of a region: what its tree holds may be more open than what it stands for.
fn make_private(path: &Path) -> Result<()> {
    let fd = sys::open_path(path, libc::O_PATH | libc::O_DIRECTORY, 0).at(path.display())?;
    if sys::fstat(&fd)?.perm() & 0o077 != 0 {
        sys::chmod_fd(&fd, 0o700).map_err(|e| {
            Error::from(e).context(format!("{}: others can look into it; `chmod 700` it", path.display()))
        })?;
    }
    Ok(())
}

impl Region {
    /// Makes the directories and identity of a new region at `path` (which may exist and be empty, or hold a `tree/`
    /// of the user's that is to be taken over). Does nothing when it is a region already.
    pub fn create(path: &Path, group: &str, volume: &str, vol: VolId) -> Result<()> {
        let meta = path.join(".kagami");
        if meta.join("identity").exists() {
            return Ok(());
        }
        let what = path.display();
        if path.exists() {
            for e in std::fs::read_dir(path).at(&what)? {
                let e = e.at(&what)?;
                if e.file_name() != "tree" && e.file_name() != ".kagami" && e.file_name() != "lost+found" {
                    return Err(Error::refused(format!(
                        "{what} is not empty and not a region: it holds {:?}; give an empty directory, or put existing files under {what}/tree",
                        e.file_name()
                    )));
                }
            }
        }
        let mk = |p: &Path| std::fs::DirBuilder::new().recursive(true).mode(0o700).create(p).at(p.display());
        mk(path)?;
        make_private(path)?;
        mk(&meta)?;
        mk(&meta.join("staging"))?;
        mk(&meta.join("lost"))?;
        let tree = path.join("tree");
        if !tree.exists() {
            std::fs::DirBuilder::new().mode(0o755).create(&tree).at(tree.display())?;
        }
        let fd = sys::open_path(&tree, libc::O_PATH | libc::O_DIRECTORY, 0).at(tree.display())?;
        let id = Identity {
            region: crate::base::random_u64(),
            group: group.to_owned(),
            group_id: 0,
            volume: volume.to_owned(),
            vol,
            tree_ino: sys::fstat(&fd)?.ino,
        };
        IdTable::open(&meta.join("ids"))?.sync()?;
        files::save(&meta.join("identity"), MAGIC, VERSION, &id)
    }

    /// Opens and locks a region and checks that it is the one expected.
    pub fn open(path: &Path, group: &str, volume: &str, vol: VolId) -> Result<Region> {
        let what = path.display().to_string();
        let meta = path.join(".kagami");
        let Some(identity) = Identity::read(path)? else {
            return Err(Error::refused(format!(
                "{what} is not a kagami region (no .kagami/identity): is its disk mounted? If the replica is really gone, run `kagami region create` to start an empty one"
            )));
        };
        if identity.group != group || identity.volume != volume || identity.vol != vol {
            return Err(Error::refused(format!(
                "{what} is the region of volume {:?} of group {:?}, not of {volume:?} of {group:?}: check `path` in the site file",
                identity.volume, identity.group
            )));
        }
        let lock_path = meta.join("lock");
        let lock: OwnedFd = std::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .at(lock_path.display())?
            .into();
        if sys::try_lock(&lock).is_err() {
            return Err(Error::refused(format!(
                "{what} is in use by another kagami node (its lock {what}/.kagami/lock is held)"
            )));
        }
        if rights::limited() {
            make_private(path)?;
        }
        let open_dir = |p: PathBuf| sys::open_path(&p, libc::O_PATH | libc::O_DIRECTORY, 0).at(p.display());
        let tree = open_dir(path.join("tree"))?;
        let st = sys::fstat(&tree)?;
        if st.ino != identity.tree_ino {
            return Err(Error::refused(format!(
                "{what}/tree is not the directory this region was made with (inode {}, expected {}): restored or replaced from outside? Bring the original back, or make the region anew and copy",
                st.ino, identity.tree_ino
            )));
        }
        let ids = meta.join("ids");
        if std::fs::metadata(&ids).map_or(0, |m| m.len()) < crate::format::file::HEADER_BYTES as u64 {
            return Err(Error::corrupt(format!("{}: missing or cut short", ids.display())));
        }
        let staging = open_dir(meta.join("staging"))?;
        if sys::fstat(&staging)?.dev != st.dev {
            return Err(Error::refused(format!("{what}/tree and {what}/.kagami must be on one filesystem")));
        }
        Ok(Region {
            vol,
            path: path.to_owned(),
            ids: RwLock::new(IdTable::open(&ids)?),
            identity: Mutex::new(identity),
            tree: Arc::new(tree),
            staging: Arc::new(staging),
            lost: Arc::new(open_dir(meta.join("lost"))?),
            dirs: Mutex::new(LruCache::new(DIR_FDS)),
            files: Mutex::new(LruCache::new(FILE_FDS)),
            limited: rights::limited(),
            fitting: Mutex::new(()),
            told: AtomicBool::new(false),
            space: Space::default(),
            row: OnceLock::new(),
            _lock: lock,
        })
    }

    /// What the region says about itself.
    pub fn identity(&self) -> Identity {
        self.identity.lock().clone()
    }

    /// Persists the group's random id (first copy).
    pub fn set_group_id(&self, id: u64) -> Result<()> {
        let mut g = self.identity.lock();
        if g.group_id != id {
            let mut n = g.clone();
            n.group_id = id;
            files::save(&self.path.join(".kagami/identity"), MAGIC, VERSION, &n)?;
            *g = n;
        }
        Ok(())
    }

    /// The region's metadata directory.
    pub fn meta(&self) -> PathBuf {
        self.path.join(".kagami")
    }

    /// The root of the tree, as an O_PATH descriptor.
    pub fn tree_fd(&self) -> &Arc<OwnedFd> {
        &self.tree
    }

    /// A directory as an O_PATH descriptor, opened component by component from the nearest known one, so that depth
    /// and renames do not matter. Its inode must be the one the table knows.
    pub fn dirfd(&self, id: DirId) -> Result<Arc<OwnedFd>> {
        match id {
            DirId::ROOT => return Ok(self.tree.clone()),
            DirId::STAGING => return Ok(self.staging.clone()),
            DirId::LOST => return Ok(self.lost.clone()),
            _ => {}
        }
        if let Some(fd) = self.dirs.lock().get(&id) {
            return Ok(fd.clone());
        }
        let ids = self.ids.read();
        // Up to the nearest open ancestor, then down again.
        let mut chain = Vec::new();
        let mut at = id;
        let mut fd = loop {
            if at == DirId::ROOT || at.is_internal() {
                break if at == DirId::ROOT {
                    self.tree.clone()
                } else if at == DirId::STAGING {
                    self.staging.clone()
                } else {
                    self.lost.clone()
                };
            }
            if let Some(fd) = self.dirs.lock().get(&at) {
                break fd.clone();
            }
            let rec = ids.dir(at).ok_or_else(|| Error::os(libc::ENOENT).context(format!("directory {:x}", at.0)))?;
            chain.push((at, rec));
            if chain.len() > ids.len() + 1 {
                return Err(Error::corrupt(format!("directory {:x}: its parents form a circle", id.0)));
            }
            at = rec.parent;
        };
        for (id, rec) in chain.into_iter().rev() {
            let next = sys::openat(&fd, &rec.name, libc::O_PATH | libc::O_DIRECTORY, 0)?;
            let ino = sys::fstat(&next)?.ino;
            if ino != rec.ino {
                return Err(Error::corrupt(format!(
                    "{}: directory {:?} is not the one kagami knows (inode {ino}, expected {}): changed from outside? Run `kagami verify`",
                    self.path.display(),
                    String::from_utf8_lossy(&rec.name),
                    rec.ino
                )));
            }
            fd = Arc::new(next);
            self.dirs.lock().put(id, fd.clone());
        }
        Ok(fd)
    }

    pub(super) fn forget_dirfd(&self, id: DirId) {
        self.dirs.lock().pop(&id);
    }

    /// Closes all kept descriptors: what is at the names now is looked up again.
    pub fn forget_all(&self) {
        self.dirs.lock().clear();
        self.forget_files();
    }

    /// Forgets directories that are not at their places any more (removed or replaced from outside), so that a copy
    /// makes them anew. Returns their number.
    pub fn drop_lost_dirs(&self) -> Result<u64> {
        self.forget_all();
        let all: Vec<DirId> = self.ids.read().dirs().map(|(id, _)| id).collect();
        let mut n = 0;
        for id in all {
            match self.dirfd(id) {
                Err(e) if e.kind == Kind::Corrupt || matches!(e.errno, libc::ENOENT | libc::ENOTDIR) => {
                    self.ids.write().drop_dir(id)?;
                    n += 1;
                }
                r => drop(r?),
            }
        }
        Ok(n)
    }

    /// What a name refers to now: its stat and identity; `None` when it is free.
    pub fn look(&self, at: &Name) -> Result<Option<(Stat, What)>> {
        let dir = self.dirfd(at.dir)?;
        match sys::statat(&*dir, &at.name) {
            Ok(st) => Ok(Some((st, self.what(at, &st)))),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Identity of the object at a name whose stat is known.
    pub fn what(&self, at: &Name, st: &Stat) -> What {
        let ids = self.ids.read();
        if st.is_dir() {
            return What::Dir(ids.by_ino(st.ino).unwrap_or(DirId(0)));
        }
        match ids.link_of(at) {
            Some(l) => What::Linked(l),
            None => What::File,
        }
    }

    /// The id of a directory by its inode number.
    pub fn dir_by_ino(&self, ino: u64) -> Option<DirId> {
        self.ids.read().by_ino(ino)
    }

    /// Link id and further names of a file with several links, by one of its names.
    pub fn link_names(&self, at: &Name) -> Option<(LinkId, Vec<Name>)> {
        let ids = self.ids.read();
        let lid = ids.link_of(at)?;
        Some((lid, ids.names_of(lid).to_vec()))
    }

    /// The path of a name from the volume's root, for people.
    pub fn path_of(&self, at: &Name) -> String {
        String::from_utf8_lossy(&self.path_bytes(at)).into_owned()
    }

    /// The path of a name from the volume's root, as it is.
    pub fn path_bytes(&self, at: &Name) -> Vec<u8> {
        let mut path = self.path_of_dir(at.dir);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&at.name);
        path
    }

    /// The path of a directory from the volume's root, which has an empty one.
    pub fn path_of_dir(&self, mut d: DirId) -> Vec<u8> {
        let ids = self.ids.read();
        let mut parts = Vec::new();
        while let Some(r) = ids.dir(d) {
            parts.push(r.name.to_vec());
            d = r.parent;
            if parts.len() > ids.len() + 2 {
                break;
            }
        }
        parts.reverse();
        parts.join(&b'/')
    }

    /// Gives ids to all directories of a tree that was there before the region (a walk, once), and link ids to its hard
    /// links. Returns the number of directories found.
    pub fn import(&self) -> Result<u64> {
        let mut todo = vec![DirId::ROOT];
        let mut links: std::collections::HashMap<u64, LinkId> = Default::default();
        let (mut n, mut buf) = (0u64, vec![0u8; 64 << 10]);
        while let Some(d) = todo.pop() {
            let fd = self.dirfd(d)?;
            let dir = sys::openat(&*fd, b".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
            let mut list = Vec::new();
            while sys::getdents(&dir, &mut buf, &mut list)? {}
            for e in list.iter().filter(|e| e.name != b"." && e.name != b"..") {
                let st = sys::statat(&*fd, &e.name)?;
                self.fit_found(&fd, &e.name, &st)?;
                let mut ids = self.ids.write();
                if st.is_dir() {
                    let id = ids.by_ino(st.ino).unwrap_or_else(|| ids.fresh_dir_id());
                    ids.put_dir(id, d, &e.name, st.ino)?;
                    todo.push(id);
                    n += 1;
                } else if st.nlink > 1 {
                    let lid = *links.entry(st.ino).or_insert_with(|| ids.fresh_link_id());
                    ids.put_link(lid, &Name::new(d, e.name.clone()))?;
                }
            }
        }
        Ok(n)
    }

    /// Gives directories and files with several links the ids that another replica has for them: see
    /// [`IdTable::readdress`].
    pub fn readdress(&self, dirs: &[(DirId, DirId)], links: &[(Name, LinkId)]) -> Result<()> {
        self.ids.write().readdress(dirs, links)?;
        self.forget_all();
        Ok(())
    }

    /// Makes everything of the region's filesystem durable.
    pub fn syncfs(&self) -> Result<()> {
        let fd = sys::openat(&*self.tree, b".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
        sys::syncfs(&fd).at(self.path.display())
    }
}
