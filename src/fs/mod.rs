//! The FUSE side: mounting, and the translation between fuser and [`crate::volume`]. Nothing is decided here.
//!
//! We mount and unmount ourselves (fuser 0.18 unmounts as root without `MNT_DETACH`, and may hit another filesystem at
//! the same path); fuser gets the descriptor.

mod adapter;
mod aside;
pub mod mounter;
mod mountpoint;
mod wire;

use crate::base::{At, Error, Result};
use crate::node::mounter::{MountOption, MountOptions, OnEnd};
use crate::volume::Volume;
use adapter::Adapter;
use aside::Worker;
use mountpoint::Mounted;
use parking_lot::{Condvar, Mutex};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Threads that serve requests unless told otherwise. They wait for replicas, so more than there are processors. Each
/// has a buffer of which it uses up to 1 MiB.
pub const THREADS: usize = 24;
/// Fewest threads: some requests are made by the kernel while others are being served.
pub const THREADS_MIN: usize = 8;
/// How long the kernel may take for its first word.
const HANDSHAKE: Duration = Duration::from_secs(60);
/// Threads kept free of requests that nobody waits for (read-ahead, writeback), so that those who wait are served.
const THREADS_FOREGROUND: usize = THREADS_MIN / 2;

/// How long a session may take to end once its mount is gone.
const ENDS: Duration = Duration::from_secs(5);

/// How to mount.
pub struct MountOpts {
    /// Shown as the source in the mount table; usually `GROUP/VOLUME`.
    pub label: String,
    /// Mount over a directory that is not empty.
    pub nonempty: bool,
    /// How. As root every mount is open to other users; as an ordinary user `/etc/fuse.conf` must allow it.
    pub options: MountOptions,
    /// Threads that serve requests (at least [`THREADS_MIN`]).
    pub threads: usize,
    /// Called once when the session ends: `None` after [`MountHandle::unmount`] or [`MountHandle::abort`], else why (somebody
    /// else unmounted it, or the connection broke).
    pub on_end: Option<OnEnd>,
}

impl Default for MountOpts {
    fn default() -> MountOpts {
        MountOpts {
            label: "volume".into(),
            nonempty: false,
            options: MountOptions::new(),
            threads: THREADS,
            on_end: None,
        }
    }
}

#[derive(Default)]
struct Session {
    ended: Mutex<bool>,
    end: Condvar,
    asked: AtomicBool,
    closed: Arc<AtomicBool>,
}

/// A mounted volume. Dropping it leaves the mount as it is; [`MountHandle::unmount`] ends it.
pub struct MountHandle {
    mounted: Mounted,
    session: Arc<Session>,
    volume: Weak<Volume>,
}

/// Mounts a volume at a directory and serves it from threads of this process.
///
/// Refused (`Kind::Refused`): a directory that is not empty. `Kind::Config`: no such directory, no `/dev/fuse`, no
/// `fusermount3`, all with what to do about it. A dead mount that a killed process left at the directory is taken away.
pub fn mount(volume: Arc<Volume>, at: &Path, mut opts: MountOpts) -> Result<MountHandle> {
    let at = mountpoint::check(at, opts.nonempty)?;
    let (fd, mounted) = mountpoint::mount(&at, &opts)?;
    let on_end = opts.on_end.take();
    let threads = opts.threads.max(THREADS_MIN);
    let writeback = !volume.order().write_through() && !opts.options.contains(&MountOption::WriteThrough);
    if opts.options.contains(&MountOption::NfsExport) {
        volume.export();
    }
    let served = Arc::downgrade(&volume);
    let session = Arc::new(Session::default());
    let (ready, is_ready) = crossbeam::channel::bounded(1);
    let name = mounted.path.display().to_string();
    let of_thread = session.clone();
    let spawned = std::thread::Builder::new().name("mount".into()).spawn(move || {
        let adapter = Adapter::new(volume, writeback, threads - THREADS_FOREGROUND, of_thread.closed.clone());
        let result = serve(adapter, fd, threads, &ready);
        if let Err(e) = &result {
            // Nobody listens any more if the session had begun.
            let _ = ready.send(Err(e.clone()));
        }
        let asked = of_thread.asked.load(Ordering::Acquire);
        let why = match (&result, asked) {
            (_, true) => None,
            (Ok(()), false) => Some(format!("{name} was unmounted")),
            (Err(e), false) => Some(format!("{name}: the connection to the kernel broke: {e}")),
        };
        *of_thread.ended.lock() = true;
        of_thread.end.notify_all();
        if let Some(f) = on_end {
            f(why);
        }
    });
    let begun = match spawned {
        Ok(_) => is_ready
            .recv_timeout(HANDSHAKE)
            .unwrap_or_else(|_| Err(Error::failed("the kernel said nothing, or the mount's thread ended"))),
        Err(e) => Err(e.into()),
    };
    if let Err(e) = begun {
        session.asked.store(true, Ordering::Release);
        mounted.detach()?;
        return Err(e.context(format!("mounting {}", at.display())));
    }
    mounted.tune();
    Ok(MountHandle { mounted, session, volume: served })
}

/// Runs a session to its end, in a thread of its own whose umask does not touch the rest of the process.
fn serve(
    (adapter, worker): (Adapter, Worker),
    fd: std::os::fd::OwnedFd,
    threads: usize,
    ready: &crossbeam::channel::Sender<Result<()>>,
) -> Result<()> {
    crate::os::sys::own_fs_state().at("unshare")?;
    crate::os::sys::umask(0);
    let mut config = fuser::Config::default();
    config.acl = fuser::SessionACL::All;
    config.n_threads = Some(threads);
    config.clone_fd = true;
    let session = fuser::Session::from_fd(adapter, fd, fuser::SessionACL::All, config).at("FUSE handshake")?;
    worker.start(session.notifier())?;
    let _ = ready.send(Ok(()));
    session.run().at("FUSE session")
}

impl MountHandle {
    /// The mount point, absolute.
    pub fn path(&self) -> &Path {
        &self.mounted.path
    }

    /// Takes the mount point away at once; files still open go on working until they are closed. The session ends then.
    pub fn detach(&self) -> Result<()> {
        self.session.asked.store(true, Ordering::Release);
        self.mounted.detach()
    }

    /// Waits until the session has ended; false when the time is up first.
    pub fn wait_ended(&self, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        let mut ended = self.session.ended.lock();
        while !*ended {
            if self.session.end.wait_until(&mut ended, until).timed_out() {
                return *ended;
            }
        }
        true
    }

    /// Detaches, writes out what the kernel holds, and waits until the last open file is closed; false when the time is up
    /// first.
    pub fn unmount(&self, timeout: Duration) -> Result<bool> {
        let root = self.attached().then(|| std::fs::File::open(self.path()));
        self.detach()?;
        // Whatever becomes of the files that stay open, what was written before this counts.
        if let Some(Ok(root)) = root
            && let Err(e) = write_out(&root, &self.volume)
        {
            log::warn!("{}: writing out what was cached: {e}", self.path().display());
        }
        Ok(self.wait_ended(timeout))
    }

    /// Ends it if nothing in it is in use; refused otherwise, with who uses it. It is as it was then.
    pub fn unmount_unused(&self) -> Result<()> {
        let asked = self.session.asked.swap(true, Ordering::AcqRel);
        self.mounted.unmount_unused().inspect_err(|_| self.session.asked.store(asked, Ordering::Release))?;
        // Taken away by somebody else before, it may have files open still.
        match self.wait_ended(ENDS) {
            true => Ok(()),
            false => Err(mountpoint::in_use(&self.mounted.path)),
        }
    }

    /// Has the kernel write what it holds; false when the time is up first.
    pub fn flush(&self, within: Duration) -> bool {
        let (path, (done, is_done)) = (self.mounted.path.clone(), crossbeam::channel::bounded(1));
        let volume = self.volume.clone();
        let flush = move || {
            let r = std::fs::File::open(&path).map_err(Error::from).and_then(|f| write_out(&f, &volume));
            let _ = done.send(r.is_ok());
        };
        let begun = std::thread::Builder::new().name("flush".into()).spawn(flush);
        begun.is_ok() && is_done.recv_timeout(within) == Ok(true)
    }

    /// The mount point is still in the mount table.
    pub fn attached(&self) -> bool {
        self.mounted.attached()
    }

    /// Ends the mount by force: requests under way and every later one through a file still open fail (ENOTCONN, or
    /// EIO where an ordinary user cannot break the connection). Then takes the mount point away.
    pub fn abort(&self) -> Result<()> {
        self.session.asked.store(true, Ordering::Release);
        self.session.closed.store(true, Ordering::Release);
        self.mounted.abort()
    }
}

/// Has the kernel write what it holds of a mount, and waits until the sync site has it.
fn write_out(root: &std::fs::File, volume: &Weak<Volume>) -> Result<()> {
    crate::os::sys::syncfs(root)?;
    volume.upgrade().map_or(Ok(()), |v| v.settle())
}

/// Takes away a mount of kagami's at a directory, whoever serves it (`kagami umount`, cleaning up after kill -9).
pub fn detach_at(at: &Path) -> Result<()> {
    mountpoint::detach_path(&PathBuf::from(at))
}
