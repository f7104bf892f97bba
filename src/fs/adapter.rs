//! fuser's requests to [`Volume`] and back.
//!
//! A panic in an operation is caught: the request is answered with EIO (fuser's reply does that when it is dropped), the
//! volume is told of a local fault, and the session goes on. Otherwise one thread of the session would be gone silently.

use super::aside::{Task, Worker, seek};
use super::wire::*;
use crate::base::{Error, Result};
use crate::format::op::NodeKind;
use crate::volume::{DirItem, Made, Node, SetAttr, Volume, WriteHow};
use crossbeam::channel::Sender;
use fuser::*;
use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

/// How long the kernel may believe what it was told. Everything that changes the tree goes through it.
const TTL: Duration = Duration::from_secs(86_400);
/// Largest write, bytes: what the kernel allows without tuning.
const MAX_WRITE_BYTES: u32 = 1 << 20;

thread_local! {
    static READ: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The filesystem given to fuser.
pub struct Adapter {
    v: Arc<Volume>,
    writeback: bool,
    tasks: Sender<Task>,
    notifier: Arc<OnceLock<Notifier>>,
    closed: Arc<AtomicBool>,
    background: u16,
}

impl Adapter {
    /// For a volume, with the thread that must be started beside it. With `writeback` the kernel collects writes. The kernel has at most `background` requests under
    /// way that nobody waits for. Once `closed` is set every request is refused.
    pub fn new(v: Arc<Volume>, writeback: bool, background: usize, closed: Arc<AtomicBool>) -> (Adapter, Worker) {
        let background = u16::try_from(background).unwrap_or(u16::MAX);
        let (tasks, rx) = crossbeam::channel::unbounded();
        let notifier = Arc::new(OnceLock::new());
        let adapter = Adapter { v: v.clone(), writeback, tasks, notifier: notifier.clone(), closed, background };
        (adapter, Worker { v, tasks: rx, notifier })
    }

    fn run(&self, what: &str, f: impl FnOnce(&Volume)) {
        if self.closed.load(Ordering::Acquire) {
            // The reply is dropped with `f`: EIO.
            return;
        }
        if catch_unwind(AssertUnwindSafe(|| f(&self.v))).is_err() {
            let e = Error::failed(format!("panic in {what}: this is a bug of kagami"));
            self.v.order().local_fault(self.v.vol(), &e);
        }
    }

    /// Lets the kernel ask for a node's attributes again: with writeback it does not see what its writes allocate. The
    /// node is in use by the request being served, and only attributes are dropped, so nothing is waited for.
    fn forget_attrs(&self, node: INodeNo) {
        if let Some(Err(e)) = self.notifier.get().map(|n| n.inval_inode(node, -1, 0)) {
            log::debug!("node {node}: {e}");
        }
    }

    /// Flags of an opened file. Writing-only files bypass the page cache where each write waits for the sync site
    /// anyway: larger requests, and several at a time.
    fn open_flags(&self, flags: i32) -> FopenFlags {
        if self.direct(flags) {
            FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
        } else {
            FopenFlags::FOPEN_KEEP_CACHE
        }
    }

    fn direct(&self, flags: i32) -> bool {
        !self.writeback && flags & libc::O_ACCMODE == libc::O_WRONLY
    }

    fn reply_entry(&self, r: Result<Node>, at: (INodeNo, &OsStr), reply: ReplyEntry) {
        match r {
            Ok(n) => reply.entry(&TTL, &attr(&n), generation(&n)),
            Err(e) => {
                self.doubt_name(&e, at);
                reply.error(errno(&e));
            }
        }
    }

    /// After an operation on a name failed: if it may have been done all the same, the kernel must look again.
    fn doubt_name(&self, e: &Error, (parent, name): (INodeNo, &OsStr)) {
        if in_doubt(e) {
            let _ = self.tasks.send(Task::Name { parent: parent.0, name: name.to_owned() });
        }
    }

    /// The same for content and attributes.
    fn doubt_node(&self, e: &Error, node: INodeNo) {
        if in_doubt(e) {
            let _ = self.tasks.send(Task::Drop { node: node.0 });
        }
    }

    fn reply_change(&self, r: Result<()>, node: INodeNo, reply: ReplyEmpty) {
        if let Err(e) = &r {
            self.doubt_node(e, node);
        }
        reply_empty(r, reply);
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let mut want = InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP
            | InitFlags::FUSE_ATOMIC_O_TRUNC
            | InitFlags::FUSE_POSIX_ACL
            | InitFlags::FUSE_DONT_MASK;
        if self.writeback {
            want |= InitFlags::FUSE_WRITEBACK_CACHE;
        }
        if self.v.is_exported() {
            want |= InitFlags::FUSE_EXPORT_SUPPORT;
        }
        for flag in want.iter() {
            if config.add_capabilities(flag).is_err() {
                log::warn!("this kernel has no {flag:?}");
            }
        }
        let _ = config.set_max_write(MAX_WRITE_BYTES);
        let _ = config.set_max_background(self.background);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.run("lookup", |v| match v.again(|| v.lookup(parent.0, name.as_bytes())) {
            Ok(Some(n)) => reply.entry(&TTL, &attr(&n), generation(&n)),
            Ok(None) => reply.entry(&TTL, &nothing(), Generation(0)),
            Err(e) => reply.error(errno(&e)),
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, n: u64) {
        self.run("forget", |v| v.forget(ino.0, n));
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        self.run("getattr", |v| match v.again(|| v.getattr(ino.0, fh.map(|f| f.0))) {
            Ok(n) => reply.attr(&TTL, &attr(&n)),
            Err(e) => reply.error(errno(&e)),
        });
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        // Times through a file handle come from the kernel alone, after it wrote the file's pages.
        let times_alone = (mode, uid, gid, size, atime) == (None, None, None, None, None) && mtime.is_some();
        let cached = self.writeback && times_alone && ctime.is_some() && fh.is_some();
        let set = SetAttr { mode, uid, gid, size, atime: stamp(atime), mtime: stamp(mtime), cached };
        self.run("setattr", |v| match v.again(|| v.setattr(ino.0, fh.map(|f| f.0), &set, &caller(req, 0))) {
            Ok(n) => reply.attr(&TTL, &attr(&n)),
            Err(e) => {
                self.doubt_node(&e, ino);
                reply.error(errno(&e));
            }
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.run("readlink", |v| match v.again(|| v.readlink(ino.0)) {
            Ok(t) => reply.data(&t),
            Err(e) => reply.error(errno(&e)),
        });
    }

    fn mknod(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry) {
        let kind = match mode & libc::S_IFMT {
            0 | libc::S_IFREG => NodeKind::File,
            libc::S_IFIFO => NodeKind::Fifo,
            libc::S_IFSOCK => NodeKind::Socket,
            libc::S_IFCHR => NodeKind::Char(dev_from_wire(rdev)),
            libc::S_IFBLK => NodeKind::Block(dev_from_wire(rdev)),
            _ => return reply.error(Errno::EINVAL),
        };
        self.run("mknod", |v| {
            let r = v.again(|| v.make(parent.0, name.as_bytes(), Made::Node(kind.clone()), mode, &caller(req, umask)));
            self.reply_entry(r, (parent, name), reply);
        });
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.run("mkdir", |v| {
            let r = v.again(|| v.make(parent.0, name.as_bytes(), Made::Dir, mode, &caller(req, umask)));
            self.reply_entry(r, (parent, name), reply);
        });
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.run("unlink", |v| {
            let r = v.again(|| v.unlink(parent.0, name.as_bytes()));
            if let Err(e) = &r {
                self.doubt_name(e, (parent, name));
            }
            reply_empty(r, reply);
        });
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.run("rmdir", |v| {
            let r = v.again(|| v.rmdir(parent.0, name.as_bytes()));
            if let Err(e) = &r {
                self.doubt_name(e, (parent, name));
            }
            reply_empty(r, reply);
        });
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let kind = NodeKind::Symlink(target.as_os_str().as_bytes().to_vec());
        self.run("symlink", |v| {
            let r = v.again(|| v.make(parent.0, name.as_bytes(), Made::Node(kind.clone()), 0o777, &caller(req, 0)));
            self.reply_entry(r, (parent, name), reply);
        });
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.run("rename", |v| {
            let r = v.again(|| v.rename(parent.0, name.as_bytes(), newparent.0, newname.as_bytes(), flags.bits()));
            if let Err(e) = &r {
                self.doubt_name(e, (parent, name));
                self.doubt_name(e, (newparent, newname));
            }
            reply_empty(r, reply);
        });
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        self.run("link", |v| {
            self.reply_entry(v.again(|| v.link(ino.0, newparent.0, newname.as_bytes())), (newparent, newname), reply);
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.run("open", |v| match v.again(|| v.open(ino.0, flags.0, &caller(req, 0))) {
            Ok(o) => reply.opened(FileHandle(o.fh), self.open_flags(flags.0)),
            Err(e) => {
                if flags.0 & libc::O_TRUNC != 0 {
                    self.doubt_node(&e, ino);
                }
                reply.error(errno(&e));
            }
        });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        self.run("create", |v| {
            match v.again(|| v.create(parent.0, name.as_bytes(), mode, flags, &caller(req, umask))) {
                Ok((n, o)) => {
                    reply.created(&TTL, &attr(&n), generation(&n), FileHandle(o.fh), self.open_flags(flags));
                }
                Err(e) => {
                    self.doubt_name(&e, (parent, name));
                    reply.error(errno(&e));
                }
            }
        });
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.run("read", |v| {
            READ.with_borrow_mut(|b| {
                let size = size as usize;
                if b.len() < size {
                    b.resize(size, 0);
                }
                let buf = b.get_mut(..size).unwrap_or_default();
                match v.again(|| v.read(fh.0, offset, buf)) {
                    Ok(n) => reply.data(buf.get(..n).unwrap_or_default()),
                    Err(e) => reply.error(errno(&e)),
                }
            });
        });
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let cached = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let past_cache = !cached && (flags.0 & libc::O_DIRECT != 0 || self.direct(flags.0));
        let how = WriteHow {
            cached,
            timed: cached && self.writeback,
            append: !cached && !self.writeback && flags.0 & libc::O_APPEND != 0,
            durable: past_cache && flags.0 & libc::O_DSYNC != 0,
        };
        let mut who = caller(req, 0);
        if !write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID) {
            // The kernel decided that this caller may keep the bits.
            who.uid = 0;
        }
        self.run("write", |v| match v.again(|| v.write(fh.0, offset, data, how, &who)) {
            Ok(w) => {
                if cached && w.allocated {
                    self.forget_attrs(ino);
                }
                reply.written(w.len as u32);
            }
            Err(e) => {
                if !past_cache {
                    let _ = self.tasks.send(Task::Drop { node: ino.0 });
                } else {
                    // Others may have read what was undone since.
                    self.doubt_node(&e, ino);
                }
                reply.error(errno(&e));
            }
        });
    }

    /// The kernel wrote its dirty pages before, and each was waited for; what is left is their time. It must ask all the
    /// same (no ENOSYS here): once the connection is gone it drops dirty pages without an error, and only this request
    /// makes close(2) fail then (G1).
    fn flush(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        self.run("flush", |v| reply_empty(v.flush(fh.0), reply));
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.run("release", |v| v.release(fh.0));
        reply.ok();
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.run("fsync", |v| reply_empty(v.again(|| v.fsync(fh.0, datasync)), reply));
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.run("opendir", |v| match v.again(|| v.opendir(ino.0)) {
            Ok(fh) => reply.opened(FileHandle(fh), FopenFlags::empty()),
            Err(e) => reply.error(errno(&e)),
        });
    }

    fn readdir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.run("readdir", |v| {
            let r = v.readdir(fh.0, offset, false, &mut |d: DirItem<'_>| {
                // DT_* are the S_IF* bits, shifted.
                let kind = file_type(u32::from(d.kind) << 12);
                reply.add(INodeNo(d.node), d.next, kind, OsStr::from_bytes(d.name))
            });
            match r {
                Ok(()) => reply.ok(),
                Err(e) => reply.error(errno(&e)),
            }
        });
    }

    fn readdirplus(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        self.run("readdirplus", |v| {
            let r = v.readdir(fh.0, offset, true, &mut |d: DirItem<'_>| {
                let Some(n) = d.own else { return false };
                reply.add(INodeNo(n.node), d.next, OsStr::from_bytes(d.name), &TTL, &attr(&n), generation(&n))
            });
            match r {
                Ok(()) => reply.ok(),
                Err(e) => reply.error(errno(&e)),
            }
        });
    }

    fn releasedir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.run("releasedir", |v| v.releasedir(fh.0));
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.run("fsyncdir", |v| reply_empty(v.again(|| v.fsyncdir(fh.0, datasync)), reply));
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.run("statfs", |v| match v.again(|| v.statfs()) {
            Ok(s) => reply.statfs(
                s.blocks,
                s.bfree,
                s.bavail,
                s.files,
                s.ffree,
                s.bsize as u32,
                s.namemax as u32,
                s.frsize as u32,
            ),
            Err(e) => reply.error(errno(&e)),
        });
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.run("setxattr", |v| {
            self.reply_change(
                v.again(|| v.setxattr(ino.0, name.as_bytes(), value, flags, &caller(req, 0))),
                ino,
                reply,
            );
        });
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.run("getxattr", |v| reply_xattr(v.again(|| v.getxattr(ino.0, name.as_bytes())), size, reply));
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.run("listxattr", |v| {
            let joined = v.again(|| v.listxattr(ino.0)).map(|names| {
                let mut all = Vec::new();
                for n in names {
                    all.extend_from_slice(&n);
                    all.push(0);
                }
                all
            });
            reply_xattr(joined, size, reply);
        });
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.run("removexattr", |v| self.reply_change(v.again(|| v.removexattr(ino.0, name.as_bytes())), ino, reply));
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // default_permissions: the kernel decides by itself.
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        // Files are always ready; the kernel need not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn bmap(&self, _req: &Request, _ino: INodeNo, _blocksize: u32, _idx: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.run("fallocate", |v| {
            self.reply_change(v.again(|| v.fallocate(fh.0, mode as u32, offset, length, &caller(req, 0))), ino, reply);
        });
    }

    fn lseek(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        self.run("lseek", |v| {
            if self.writeback && v.has_writers(ino.0) {
                // Dirty pages are data that the tree does not know yet.
                let task = Task::Seek { node: ino.0, fh: fh.0, off: offset, whence, reply };
                if let Err(e) = self.tasks.send(task) {
                    log::error!("the thread beside the session is gone: {e}");
                }
            } else {
                seek(v, fh.0, offset, whence, reply);
            }
        });
    }

    fn copy_file_range(
        &self,
        req: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.run("copy_file_range", |v| {
            match v.again(|| v.copy_range(fh_in.0, offset_in, fh_out.0, offset_out, len, &caller(req, 0))) {
                Ok(n) => reply.written(n as u32),
                Err(e) => {
                    self.doubt_node(&e, ino_out);
                    reply.error(errno(&e));
                }
            }
        });
    }
}
