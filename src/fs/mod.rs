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
use crate::volume::Volume;
use adapter::Adapter;
use mountpoint::Mounted;
use parking_lot::{Condvar, Mutex};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Threads that serve requests unless told otherwise. They wait for replicas, so more than there are processors. Each
/// has a buffer of which it uses up to 1 MiB.
pub const THREADS: usize = 24;
/// Fewest threads: some requests are made by the kernel while others are being served.
pub const THREADS_MIN: usize = 8;
/// Threads kept free of requests that nobody waits for (read-ahead, writeback), so that those who wait are served.
const THREADS_FOREGROUND: usize = THREADS_MIN / 2;

/// Called once when a mount's session ends: `None` after [`MountHandle::unmount`] or [`MountHandle::abort`], else why
/// (somebody else unmounted it, or the connection broke).
pub type OnEnd = Box<dyn FnOnce(Option<String>) + Send>;

/// How to mount.
pub struct MountOpts {
    /// Shown as `kagami:LABEL` in the mount table; usually `GROUP/VOLUME`.
    pub label: String,
    /// Mount over a directory that is not empty.
    pub nonempty: bool,
    /// Other users may use the mount. As root: always. As an ordinary user `/etc/fuse.conf` must allow it.
    pub allow_other: bool,
    /// Mount read-only.
    pub read_only: bool,
    /// Threads that serve requests (at least [`THREADS_MIN`]).
    pub threads: usize,
    /// Called when the session ends.
    pub on_end: Option<OnEnd>,
}

impl Default for MountOpts {
    fn default() -> MountOpts {
        MountOpts {
            label: "volume".into(),
            nonempty: false,
            allow_other: false,
            read_only: false,
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
    let session = Arc::new(Session::default());
    let (ready, is_ready) = crossbeam::channel::bounded(1);
    let name = mounted.path.display().to_string();
    let of_thread = session.clone();
    let spawned = std::thread::Builder::new().name("mount".into()).spawn(move || {
        let result = serve(volume, fd, threads, of_thread.closed.clone(), &ready);
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
        Ok(_) => is_ready.recv().unwrap_or_else(|_| Err(Error::failed("the mount's thread ended"))),
        Err(e) => Err(e.into()),
    };
    if let Err(e) = begun {
        session.asked.store(true, Ordering::Release);
        mounted.detach()?;
        return Err(e.context(format!("mounting {}", at.display())));
    }
    mounted.tune();
    Ok(MountHandle { mounted, session })
}

/// Runs a session to its end, in a thread of its own whose umask does not touch the rest of the process.
fn serve(
    volume: Arc<Volume>,
    fd: std::os::fd::OwnedFd,
    threads: usize,
    closed: Arc<AtomicBool>,
    ready: &crossbeam::channel::Sender<Result<()>>,
) -> Result<()> {
    crate::os::sys::own_fs_state().at("unshare")?;
    crate::os::sys::umask(0);
    let mut config = fuser::Config::default();
    config.acl = fuser::SessionACL::All;
    config.n_threads = Some(threads);
    config.clone_fd = true;
    let (adapter, worker) = Adapter::new(volume, threads - THREADS_FOREGROUND, closed);
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

    /// Detaches and waits until the last open file is closed.
    pub fn unmount(self) -> Result<()> {
        self.detach()?;
        let mut ended = self.session.ended.lock();
        while !*ended {
            self.session.end.wait(&mut ended);
        }
        Ok(())
    }

    /// Ends the mount by force: requests under way and every later one through a file still open fail (ENOTCONN, or
    /// EIO where an ordinary user cannot break the connection). Then takes the mount point away.
    pub fn abort(&self) -> Result<()> {
        self.session.asked.store(true, Ordering::Release);
        self.session.closed.store(true, Ordering::Release);
        self.mounted.abort()
    }
}

/// Takes away a mount of kagami's at a directory, whoever serves it (`kagami umount`, cleaning up after kill -9).
pub fn detach_at(at: &Path) -> Result<()> {
    mountpoint::detach_path(&PathBuf::from(at))
}
