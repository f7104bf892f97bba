//! Reading and comparing whole trees: everything that guarantee G5 promises to be equal.

use super::sys;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

/// Holes are promised at this granularity, in bytes (G5).
pub const BLOCK: u64 = 4096;

/// Differences told at most; the rest is counted.
const TOLD_MAX: usize = 100;

/// What to compare. The default is all of G5.
#[derive(Clone, Debug)]
pub struct Options {
    /// Modification times of everything but directories.
    pub mtime: bool,
    /// Modification times of directories.
    pub dir_mtime: bool,
    /// User and group.
    pub owners: bool,
    /// Permission bits.
    pub modes: bool,
    /// Where the holes are. (What a hole reads as is compared in any case.)
    pub holes: bool,
    /// Extended attributes and ACLs.
    pub xattrs: bool,
    /// Names directly below the roots that are left out.
    pub ignore: Vec<Vec<u8>>,
}

impl Default for Options {
    fn default() -> Self {
        Self { mtime: true, dir_mtime: true, owners: true, modes: true, holes: true, xattrs: true, ignore: vec![] }
    }
}

impl Options {
    /// All but times.
    pub fn no_times() -> Self {
        Self { mtime: false, dir_mtime: false, ..Self::default() }
    }
}

/// What a regular file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Bytes.
    pub size: u64,
    /// Hash over the blocks that are not all zero, with their positions: equal for equal bytes, whatever the holes.
    pub hash: [u8; 32],
    /// Data segments, rounded outwards to [`BLOCK`].
    pub data: Vec<(u64, u64)>,
}

#[derive(Clone, Debug)]
pub enum Kind {
    Dir(BTreeMap<Vec<u8>, Node>),
    File(Result<Content, i32>),
    Symlink(Vec<u8>),
    /// Fifo, socket or device, by its type bits and device number.
    Special(u32, u64),
}

/// One object of a tree as seen under one name.
#[derive(Clone, Debug)]
pub struct Node {
    pub kind: Kind,
    /// Permission bits (07777).
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, i64),
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Device and inode when the object has several links.
    linked: Option<(u64, u64)>,
}

/// A whole tree, read into memory (contents as hashes).
#[derive(Debug)]
pub struct Tree {
    pub root: Node,
    /// For each object with several names in the tree: the first of its names (in the order of bytes), and how many.
    groups: HashMap<(u64, u64), (Vec<u8>, u64)>,
}

/// Reads a tree. Names of directories that cannot be read are errors; contents that cannot are kept as their errno.
pub fn scan(path: &Path, options: &Options) -> io::Result<Tree> {
    sys::raise_file_limit();
    let dir = sys::open_dir(path)?;
    let options = options.clone();
    on_large_stack(move || {
        let mut scan = Scan { options, groups: HashMap::new(), path: Vec::new(), buf: vec![0; 256 * 1024] };
        let root = scan.dir(dir, true)?;
        Ok(Tree { root, groups: scan.groups })
    })
}

/// Depth of a tree is depth of recursion here, and test threads have small stacks.
fn on_large_stack<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::Builder::new().stack_size(256 << 20).spawn(work).expect("a thread");
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

struct Scan {
    options: Options,
    groups: HashMap<(u64, u64), (Vec<u8>, u64)>,
    /// The path of what is being read, for link groups and errors.
    path: Vec<u8>,
    buf: Vec<u8>,
}

impl Scan {
    fn dir(&mut self, dir: OwnedFd, is_root: bool) -> io::Result<Node> {
        let fd = dir.as_raw_fd();
        let st = sys::fstat(fd)?;
        let mut entries = BTreeMap::new();
        for name in sys::names(fd).map_err(|e| self.told(e))? {
            if is_root && self.options.ignore.contains(&name) {
                continue;
            }
            let length = self.path.len();
            self.path.push(b'/');
            self.path.extend_from_slice(&name);
            // A file may go while the tree is read, if the tree is in use; then it is not there.
            match self.entry(fd, &name) {
                Ok(node) => drop(entries.insert(name, node)),
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
                Err(e) => return Err(self.told(e)),
            }
            self.path.truncate(length);
        }
        self.node(&st, fd, Kind::Dir(entries))
    }

    fn told(&self, e: io::Error) -> io::Error {
        io::Error::new(e.kind(), format!("{}: {e}", show_path(&self.path)))
    }

    fn entry(&mut self, dir: RawFd, name: &[u8]) -> io::Result<Node> {
        let st = sys::lstatat(dir, sys::os(name))?;
        match st.st_mode & sys::S_IFMT {
            sys::S_IFDIR => {
                let sub = sys::openat(dir, sys::os(name), sys::O_RDONLY | sys::O_DIRECTORY | sys::O_NOFOLLOW, 0)?;
                self.dir(sub, false)
            }
            sys::S_IFREG => self.file(dir, name, &st),
            kind => {
                let object = sys::openat(dir, sys::os(name), sys::O_PATH | sys::O_NOFOLLOW, 0)?;
                let kind = match kind {
                    sys::S_IFLNK => Kind::Symlink(sys::readlinkat(dir, sys::os(name))?),
                    special => Kind::Special(special, st.st_rdev),
                };
                self.node(&st, object.as_raw_fd(), kind)
            }
        }
    }

    fn file(&mut self, dir: RawFd, name: &[u8], st: &libc::stat) -> io::Result<Node> {
        match sys::openat(dir, sys::os(name), sys::O_RDONLY | sys::O_NOFOLLOW, 0) {
            Ok(file) => {
                let content = self.content(file.as_raw_fd(), st.st_size as u64);
                let content = content.map_err(|e| e.raw_os_error().unwrap_or(libc::EIO));
                self.node(st, file.as_raw_fd(), Kind::File(content))
            }
            Err(e) if e.raw_os_error() == Some(libc::EACCES) => {
                let object = sys::openat(dir, sys::os(name), sys::O_PATH | sys::O_NOFOLLOW, 0)?;
                self.node(st, object.as_raw_fd(), Kind::File(Err(libc::EACCES)))
            }
            Err(e) => Err(e),
        }
    }

    fn content(&mut self, fd: RawFd, size: u64) -> io::Result<Content> {
        let mut hasher = blake3::Hasher::new();
        let mut data: Vec<(u64, u64)> = Vec::new();
        for (start, end) in sys::data_segments(fd, size)? {
            let start = start / BLOCK * BLOCK;
            let end = end.next_multiple_of(BLOCK).min(size.next_multiple_of(BLOCK));
            match data.last_mut() {
                Some(last) if last.1 >= start => last.1 = last.1.max(end),
                _ => data.push((start, end)),
            }
        }
        for &(start, end) in &data {
            self.hash_segment(fd, start, end.min(size), &mut hasher)?;
        }
        Ok(Content { size, hash: *hasher.finalize().as_bytes(), data })
    }

    fn hash_segment(&mut self, fd: RawFd, start: u64, end: u64, hasher: &mut blake3::Hasher) -> io::Result<()> {
        let mut at = start;
        while at < end {
            let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(self.buf.len());
            let mut got = 0;
            while got < want {
                match sys::pread(fd, &mut self.buf[got..want], at + got as u64)? {
                    0 => break,
                    n => got += n,
                }
            }
            for (i, block) in self.buf[..got].chunks(BLOCK as usize).enumerate() {
                // A run of zeros reads as a hole does.
                if block.iter().any(|b| *b != 0) {
                    let used = block.len() - block.iter().rev().take_while(|b| **b == 0).count();
                    hasher.update(&(at + i as u64 * BLOCK).to_le_bytes());
                    hasher.update(&(used as u64).to_le_bytes());
                    hasher.update(&block[..used]);
                }
            }
            if got < want {
                break;
            }
            at += got as u64;
        }
        Ok(())
    }

    fn node(&mut self, st: &libc::stat, fd: RawFd, kind: Kind) -> io::Result<Node> {
        let several = st.st_nlink > 1 && st.st_mode & sys::S_IFMT != sys::S_IFDIR;
        let linked = several.then_some((st.st_dev, st.st_ino));
        if let Some(id) = linked {
            let path = &self.path;
            self.groups.entry(id).and_modify(|g| g.1 += 1).or_insert_with(|| (path.clone(), 1));
        }
        Ok(Node {
            kind,
            mode: st.st_mode & 0o7777,
            uid: st.st_uid,
            gid: st.st_gid,
            mtime: (st.st_mtime, st.st_mtime_nsec),
            xattrs: if self.options.xattrs { xattrs(fd)? } else { BTreeMap::new() },
            linked,
        })
    }
}

/// The attributes that are replicated.
fn xattrs(fd: RawFd) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let names = match sys::list_xattrs(fd) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EACCES | libc::EPERM)) => vec![],
        other => other?,
    };
    for name in names {
        let ours = [&b"user."[..], b"trusted."].iter().any(|p| name.starts_with(p))
            || name == b"security.capability"
            || name.starts_with(b"system.posix_acl_");
        if !ours {
            continue;
        }
        match sys::get_xattr(fd, &name) {
            Ok(value) => drop(found.insert(name, value)),
            Err(e) if e.raw_os_error() == Some(libc::ENODATA) => {}
            // user.* of a file that may not be read.
            Err(e) if e.raw_os_error() == Some(libc::EACCES) => drop(found.insert(name, b"(unreadable)".to_vec())),
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

impl Tree {
    /// The first name of the group of names that share this object, if there are several in the tree.
    fn group(&self, node: &Node) -> Option<&[u8]> {
        let (first, count) = self.groups.get(&node.linked?)?;
        (*count > 1).then_some(first.as_slice())
    }

    /// Looks a node up by its names, root first.
    pub fn get<'a>(&'a self, path: &[&[u8]]) -> Option<&'a Node> {
        path.iter().try_fold(&self.root, |node, name| match &node.kind {
            Kind::Dir(entries) => entries.get(*name),
            _ => None,
        })
    }

    /// Objects by name: (directories, others), the root not counted.
    pub fn count(&self) -> (usize, usize) {
        fn walk(node: &Node, totals: &mut (usize, usize)) {
            if let Kind::Dir(entries) = &node.kind {
                for child in entries.values() {
                    match child.kind {
                        Kind::Dir(_) => totals.0 += 1,
                        _ => totals.1 += 1,
                    }
                    walk(child, totals);
                }
            }
        }
        let mut totals = (0, 0);
        walk(&self.root, &mut totals);
        totals
    }
}

/// Bytes of a name or path for people: everything that is not printable ASCII as \xNN.
pub fn show(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// A path for people; of a very long one the end.
fn show_path(path: &[u8]) -> String {
    const SHOWN_MAX: usize = 300;
    match path.len() {
        0 => "/".to_owned(),
        n if n > SHOWN_MAX => format!("…{}", show(&path[n - SHOWN_MAX..])),
        _ => show(path),
    }
}

/// Compares everything of G5. The differences, each with its path, when there are any.
pub fn compare_trees(a: &Path, b: &Path) -> Result<(), Vec<String>> {
    compare_trees_with(a, b, &Options::default())
}

/// As [`compare_trees`], without what the options leave out.
pub fn compare_trees_with(a: &Path, b: &Path, options: &Options) -> Result<(), Vec<String>> {
    let other = {
        let (b, options) = (b.to_path_buf(), options.clone());
        std::thread::spawn(move || scan(&b, &options))
    };
    let left = scan(a, options).map_err(|e| vec![format!("{}: {e}", a.display())]);
    let right = other.join().expect("scan does not panic").map_err(|e| vec![format!("{}: {e}", b.display())]);
    compare_scanned(left?, right?, options)
}

/// Compares two trees that were read already.
pub fn compare_scanned(a: Tree, b: Tree, options: &Options) -> Result<(), Vec<String>> {
    let options = options.clone();
    on_large_stack(move || {
        let mut compare = Compare { a: &a, b: &b, options: &options, path: Vec::new(), told: Vec::new(), untold: 0 };
        compare.nodes(&a.root, &b.root);
        let Compare { mut told, untold, .. } = compare;
        if untold > 0 {
            told.push(format!("… and {untold} more differences"));
        }
        if told.is_empty() { Ok(()) } else { Err(told) }
    })
}

struct Compare<'a> {
    a: &'a Tree,
    b: &'a Tree,
    options: &'a Options,
    path: Vec<u8>,
    told: Vec<String>,
    untold: usize,
}

impl Compare<'_> {
    fn differ(&mut self, what: impl FnOnce() -> String) {
        if self.told.len() >= TOLD_MAX {
            self.untold += 1;
            return;
        }
        let path = show_path(&self.path);
        self.told.push(format!("{path}: {}", what()));
    }

    fn attribute<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, a: T, b: T) {
        if a != b {
            self.differ(|| format!("{what} {a:?} ≠ {b:?}"));
        }
    }

    fn nodes(&mut self, a: &Node, b: &Node) {
        self.attributes(a, b);
        match (&a.kind, &b.kind) {
            (Kind::Dir(a), Kind::Dir(b)) => self.entries(a, b),
            (Kind::File(Ok(a)), Kind::File(Ok(b))) => self.contents(a, b),
            (Kind::File(a), Kind::File(b)) => {
                self.attribute("reading fails with errno", a.clone().err(), b.clone().err())
            }
            (Kind::Symlink(a), Kind::Symlink(b)) => self.attribute("target", show(a), show(b)),
            (Kind::Special(a, a_dev), Kind::Special(b, b_dev)) => {
                self.attribute("type", kind_name(*a), kind_name(*b));
                self.attribute("device number", a_dev, b_dev);
            }
            (a, b) => {
                let (a, b) = (type_name(a), type_name(b));
                self.differ(|| format!("type {a} ≠ {b}"));
            }
        }
    }

    fn attributes(&mut self, a: &Node, b: &Node) {
        if self.options.modes && !matches!(a.kind, Kind::Symlink(_)) && a.mode != b.mode {
            self.differ(|| format!("mode {:04o} ≠ {:04o}", a.mode, b.mode));
        }
        if self.options.owners {
            self.attribute("owner", (a.uid, a.gid), (b.uid, b.gid));
        }
        let timed = if matches!(a.kind, Kind::Dir(_)) { self.options.dir_mtime } else { self.options.mtime };
        if timed {
            self.attribute("mtime", a.mtime, b.mtime);
        }
        if a.xattrs != b.xattrs {
            let (a, b) = (show_xattrs(&a.xattrs), show_xattrs(&b.xattrs));
            self.differ(|| format!("xattrs {a} ≠ {b}"));
        }
        let (a, b) = (self.a.group(a).map(show_path), self.b.group(b).map(show_path));
        self.attribute("shares its object with", a, b);
    }

    fn contents(&mut self, a: &Content, b: &Content) {
        self.attribute("size", a.size, b.size);
        if a.hash != b.hash {
            self.differ(|| "content differs".to_owned());
        }
        if self.options.holes {
            self.attribute("data segments", &a.data, &b.data);
        }
    }

    fn entries(&mut self, a: &BTreeMap<Vec<u8>, Node>, b: &BTreeMap<Vec<u8>, Node>) {
        for (name, node) in a {
            let length = self.path.len();
            self.path.push(b'/');
            self.path.extend_from_slice(name);
            match b.get(name) {
                Some(other) => self.nodes(node, other),
                None => self.differ(|| format!("only in the first tree ({})", type_name(&node.kind))),
            }
            self.path.truncate(length);
        }
        for (name, node) in b.iter().filter(|(name, _)| !a.contains_key(*name)) {
            let length = self.path.len();
            self.path.push(b'/');
            self.path.extend_from_slice(name);
            self.differ(|| format!("only in the second tree ({})", type_name(&node.kind)));
            self.path.truncate(length);
        }
    }
}

fn show_xattrs(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> String {
    let mut out = String::from("{");
    for (name, value) in xattrs {
        let _ = write!(out, "{}={:.60} ", show(name), show(value));
    }
    out.trim_end().to_owned() + "}"
}

fn type_name(kind: &Kind) -> &'static str {
    match kind {
        Kind::Dir(_) => "directory",
        Kind::File(_) => "file",
        Kind::Symlink(_) => "symlink",
        Kind::Special(kind, _) => kind_name(*kind),
    }
}

fn kind_name(kind: u32) -> &'static str {
    match kind {
        libc::S_IFIFO => "fifo",
        libc::S_IFSOCK => "socket",
        libc::S_IFCHR => "character device",
        libc::S_IFBLK => "block device",
        _ => "unknown type",
    }
}

/// One hash over everything that [`compare_trees_with`] would compare.
pub fn tree_digest_with(path: &Path, options: &Options) -> io::Result<String> {
    let tree = scan(path, options)?;
    let options = options.clone();
    Ok(on_large_stack(move || {
        let mut hasher = blake3::Hasher::new();
        digest(&tree, &tree.root, &options, &mut hasher);
        hasher.finalize().to_hex().to_string()
    }))
}

/// One hash over everything of G5.
pub fn tree_digest(path: &Path) -> io::Result<String> {
    tree_digest_with(path, &Options::default())
}

fn digest(tree: &Tree, node: &Node, options: &Options, hasher: &mut blake3::Hasher) {
    let is_dir = matches!(node.kind, Kind::Dir(_));
    let is_symlink = matches!(node.kind, Kind::Symlink(_));
    let mode = (options.modes && !is_symlink).then_some(node.mode);
    let owner = options.owners.then_some((node.uid, node.gid));
    let mtime = (if is_dir { options.dir_mtime } else { options.mtime }).then_some(node.mtime);
    let head = format!("{mode:?}{owner:?}{mtime:?}{:?}{:?}", node.xattrs, tree.group(node));
    hasher.update(&(head.len() as u64).to_le_bytes());
    hasher.update(head.as_bytes());
    match &node.kind {
        Kind::Dir(entries) => {
            hasher.update(b"D").update(&(entries.len() as u64).to_le_bytes());
            for (name, child) in entries {
                hasher.update(&(name.len() as u64).to_le_bytes()).update(name);
                digest(tree, child, options, hasher);
            }
        }
        Kind::File(Ok(content)) => {
            hasher.update(b"F").update(&content.size.to_le_bytes()).update(&content.hash);
            if options.holes {
                hasher.update(format!("{:?}", content.data).as_bytes());
            }
        }
        Kind::File(Err(errno)) => drop(hasher.update(format!("E{errno}").as_bytes())),
        Kind::Symlink(target) => drop(hasher.update(b"L").update(target)),
        Kind::Special(kind, device) => drop(hasher.update(format!("S{kind},{device}").as_bytes())),
    }
}
