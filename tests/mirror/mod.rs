//! An order that applies every entry to a second region, and a mount over it.

use kagami::base::{Error, Result, Seq, VolId, time};
use kagami::format::frame;
use kagami::format::op::{Entry, Op, Target};
use kagami::fs::{MountHandle, MountOpts};
use kagami::store::exec::{Acted, Pre, Side};
use kagami::store::region::Region;
use kagami::volume::Volume;
use kagami::volume::order::{Mark, Named, Order, PutBack};
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Sends what happens in one region to a second one, at once.
pub struct MirrorOrder {
    region: Arc<Region>,
    copy: Arc<Region>,
    /// The copy has taken over; nothing is sent any more.
    switched: AtomicU64,
    seq: Mutex<u64>,
    write_through: bool,
    /// Every change is refused.
    pub refuse: AtomicBool,
    /// Every wait fails: what was done is in doubt.
    pub lose: AtomicBool,
    /// The wait for a change of attributes fails.
    pub lose_attrs: AtomicBool,
    attrs: AtomicU64,
    /// Every wait fails, and what was done is undone first.
    pub undo: AtomicBool,
    /// Why something could not be undone.
    pub undo_failed: Mutex<Vec<String>>,
    /// What went wrong on the way to the copy: entries that do not survive their frame, or cannot be applied.
    faults: Arc<Mutex<Vec<String>>>,
}

impl MirrorOrder {
    fn allowed(&self) -> Result<()> {
        if self.refuse.load(Ordering::Acquire) { Err(Error::os(libc::EIO)) } else { Ok(()) }
    }

    /// The entry's frame, parsed and checked as a receiver would, applied to the copy.
    fn send(&self, seq: u64, op: &Op, data: &[u8]) {
        if self.generation() > 0 {
            return;
        }
        let r = (|| -> Result<()> {
            let entry = Entry { seq: Seq(seq), vol: VolId(0), time: time::now(), op: op.clone() };
            let bytes = entry.frame(data)?;
            let mut head = [0; frame::HEADER_BYTES];
            head.copy_from_slice(&bytes[..frame::HEADER_BYTES]);
            let head = frame::parse_header(&head)?;
            frame::check(&bytes)?;
            let mut back = Entry::parse(&bytes, &head)?;
            if back != entry {
                return Err(Error::corrupt("not the same after the frame"));
            }
            self.copy.apply_direct(&mut back.op, frame::data_part(&bytes, &head))
        })();
        if let Err(e) = r {
            self.faults.lock().push(format!("{seq} {op:?}: {e}"));
        }
    }
}

impl Order for MirrorOrder {
    fn region(&self, _vol: VolId) -> Arc<Region> {
        match self.generation() {
            0 => self.region.clone(),
            _ => self.copy.clone(),
        }
    }
    fn generation(&self) -> u64 {
        self.switched.load(Ordering::Acquire)
    }
    fn namespace(
        &self,
        _at: (VolId, &Region),
        mut op: Op,
        side: Side,
        done: &mut dyn FnMut(&Op, &Pre, &Acted),
    ) -> Result<Named> {
        self.allowed()?;
        let mut seq = self.seq.lock();
        let region = self.region(VolId(0));
        let times = Named::times(&region, &op)?;
        let pre = region.prepare(&op)?;
        let acted = region.act(&mut op, side)?;
        region.settle(&op, &pre)?;
        done(&op, &pre, &acted);
        *seq += 1;
        self.send(*seq, &op, &[]);
        let back = Named::back(&op, &pre, &acted, times);
        Ok(Named { op, acted, seq: Seq(*seq), back })
    }
    fn begin(&self, _at: (VolId, &Region), locate: &dyn Fn() -> Option<Target>, _mark: Mark) -> Result<bool> {
        self.allowed()?;
        let _order = self.seq.lock();
        Ok(locate().is_some())
    }
    fn commit(
        &self,
        _vol: VolId,
        locate: &dyn Fn() -> Option<Target>,
        _mark: Mark,
        make: &dyn Fn(Target) -> Op,
        data: &[u8],
    ) -> Result<Option<Seq>> {
        let mut seq = self.seq.lock();
        let Some(t) = locate() else { return Ok(None) };
        *seq += 1;
        let op = make(t);
        if matches!(op, Op::SetAttr { .. }) {
            self.attrs.store(*seq, Ordering::Release);
        }
        self.send(*seq, &op, data);
        Ok(Some(Seq(*seq)))
    }
    fn wait(&self, seq: Seq) -> Result<()> {
        let attrs = self.lose_attrs.load(Ordering::Acquire) && seq.0 == self.attrs.load(Ordering::Acquire);
        if attrs || self.lose.load(Ordering::Acquire) { Err(Error::os(libc::EIO)) } else { Ok(()) }
    }
    fn undoes(&self) -> bool {
        self.undo.load(Ordering::Acquire)
    }
    fn answer(&self, seq: Seq, undo: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        if !self.undoes() {
            return self.wait(seq);
        }
        if let Err(e) = undo() {
            self.undo_failed.lock().push(e.to_string());
        }
        Err(Error { kind: kagami::base::Kind::Refused, ..Error::os(libc::EIO) })
    }
    fn take_back(&self, _vol: VolId, mut op: Op, done: &mut dyn FnMut(&Op, &Pre, &Acted)) -> Result<()> {
        let mut seq = self.seq.lock();
        let pre = self.region.prepare(&op)?;
        let acted = self.region.act(&mut op, Side::Receiver)?;
        self.region.settle(&op, &pre)?;
        done(&op, &pre, &acted);
        *seq += 1;
        self.send(*seq, &op, &[]);
        Ok(())
    }
    fn put_back(
        &self,
        _vol: VolId,
        locate: &dyn Fn() -> Option<Target>,
        _marks: &[Mark],
        act: PutBack<'_>,
    ) -> Result<()> {
        let mut seq = self.seq.lock();
        let (told, r) = act(locate().as_ref());
        for (op, data) in told {
            *seq += 1;
            self.send(*seq, &op, &data);
        }
        r
    }
    fn barrier(&self, local: &mut dyn FnMut()) -> Result<()> {
        local();
        Ok(())
    }
    fn write_through(&self) -> bool {
        self.write_through
    }
    fn local_fault(&self, _vol: VolId, error: &Error) {
        self.faults.lock().push(format!("local fault: {error}"));
    }
}

fn region(path: &Path) -> Region {
    Region::create(path, "mirror", "volume", VolId(0)).unwrap();
    Region::open(path, "mirror", "volume", VolId(0)).unwrap()
}

fn order(a: &Path, b: &Path, write_through: bool) -> (Arc<MirrorOrder>, Arc<Mutex<Vec<String>>>) {
    // Of this thread and those that it starts: the other tests of this program keep their own mask.
    kagami::os::sys::own_fs_state().unwrap();
    kagami::os::sys::umask(0);
    kagami::os::sys::raise_nofile(1 << 20);
    let faults = Arc::new(Mutex::new(Vec::new()));
    let order = MirrorOrder {
        region: Arc::new(region(a)),
        copy: Arc::new(region(b)),
        switched: AtomicU64::new(0),
        seq: Mutex::new(0),
        write_through,
        refuse: AtomicBool::new(false),
        lose: AtomicBool::new(false),
        lose_attrs: AtomicBool::new(false),
        attrs: AtomicU64::new(0),
        undo: AtomicBool::new(false),
        undo_failed: Mutex::new(Vec::new()),
        faults: faults.clone(),
    };
    (Arc::new(order), faults)
}

/// A volume over two new regions.
pub fn volume_at(a: &Path, b: &Path, write_through: bool) -> Arc<Volume> {
    Volume::new(order(a, b, write_through).0, VolId(0)).unwrap()
}

/// Two regions, mirrored, mounted.
pub struct Lab {
    dir: tempfile::TempDir,
    mnt: PathBuf,
    mount: Option<MountHandle>,
    faults: Arc<Mutex<Vec<String>>>,
    /// Clears when this process is killed: it serves the mount itself, so that its own end may wait for it.
    watcher: Option<std::process::Child>,
    pub order: Arc<MirrorOrder>,
}

impl Lab {
    /// Makes and mounts it.
    pub fn up(write_through: bool) -> Lab {
        let _ = env_logger::builder().is_test(true).try_init();
        let dir = tempfile::Builder::new().prefix("mount-").tempdir_in(crate::support::base_dir()).unwrap();
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let mnt = dir.path().join("mnt");
        std::fs::create_dir(&mnt).unwrap();
        let (order, faults) = order(&dir.path().join("a"), &dir.path().join("b"), write_through);
        let volume = Volume::new(order.clone(), VolId(0)).unwrap();
        let opts = MountOpts { label: "mirror/volume".into(), ..MountOpts::default() };
        let mount = Some(kagami::fs::mount(volume, &mnt, opts).unwrap());
        let watcher = crate::support::lab::watch(dir.path(), dir.path());
        Lab { dir, mnt, mount, faults, watcher, order }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn mnt(&self) -> &Path {
        &self.mnt
    }

    /// The first region is lost, the copy takes over.
    pub fn switch(&self) {
        self.order.switched.store(1, Ordering::Release);
    }

    /// Ends it without a comparison.
    pub fn end(mut self) {
        let m = self.mount.take().unwrap();
        m.detach().unwrap();
        assert!(m.wait_ended(std::time::Duration::from_secs(20)), "the mount does not end");
        assert!(self.faults.lock().is_empty(), "{:?}", self.faults.lock());
    }

    /// Both trees are the same now, once dirty pages are written.
    #[track_caller]
    pub fn compare(&self) {
        let d = std::fs::File::open(&self.mnt).unwrap();
        kagami::os::sys::syncfs(&d).unwrap();
        drop(d);
        self.compare_trees();
    }

    #[track_caller]
    fn compare_trees(&self) {
        let faults = std::mem::take(&mut *self.faults.lock());
        assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults[..faults.len().min(20)].join("\n"));
        drop_pages(&self.dir.path().join("a/tree"));
        drop_pages(&self.dir.path().join("b/tree"));
        crate::support::assert_same(&self.dir.path().join("a/tree"), &self.dir.path().join("b/tree"));
    }

    /// Unmounts and compares.
    #[track_caller]
    pub fn finish(mut self) {
        self.compare();
        let m = self.mount.take().unwrap();
        m.detach().unwrap();
        assert!(m.wait_ended(std::time::Duration::from_secs(20)), "the mount does not end");
        self.compare_trees();
    }

    /// The connection is gone, the mount point is still there. False: cannot be done here.
    pub fn abort_leaving_dead_mount(&self) -> bool {
        let busy = std::fs::File::open(&self.mnt).unwrap();
        let path = std::ffi::CString::new(self.mnt.to_str().unwrap()).unwrap();
        // SAFETY: a valid C string. Unmounting fails, because the directory is open, but not before the abort.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_FORCE) };
        drop(busy);
        self.mount.as_ref().unwrap().wait_ended(std::time::Duration::from_secs(2))
    }
}

/// Lets the kernel drop clean pages below a directory: for space that is allocated and not written, where the holes are
/// depends on what is in memory.
fn drop_pages(dir: &Path) {
    use std::os::fd::AsRawFd;
    for e in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        match e.file_type() {
            Ok(t) if t.is_dir() => drop_pages(&e.path()),
            Ok(t) if t.is_file() => {
                if let Ok(f) = std::fs::File::open(e.path()) {
                    let _ = f.sync_all();
                    // SAFETY: plain call.
                    unsafe { libc::posix_fadvise(f.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
                }
            }
            _ => {}
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(m) = self.mount.take()
            && let Err(e) = m.abort()
        {
            eprintln!("{e}");
        }
        if let Some(w) = &mut self.watcher {
            drop(w.stdin.take());
            let _ = w.wait();
        }
    }
}
