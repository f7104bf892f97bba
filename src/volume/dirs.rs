//! Open directories: a descriptor for each, with the filesystem's own cookies, so that positions stay good while the
//! directory changes.

use super::handles::{DirHandle, DirState};
use super::objects::Object;
use super::{Node, Volume};
use crate::base::sync::Mutex;
use crate::base::sync::atomic::Ordering;
use crate::base::{Name, Result};
use crate::os::sys::{self, Dirent};
use std::collections::VecDeque;
use std::sync::Arc;

/// Bytes read from a directory at a time.
const AHEAD_BYTES: usize = 32 << 10;

/// One entry of a listing.
#[derive(Clone, Copy, Debug)]
pub struct DirItem<'a> {
    /// The name.
    pub name: &'a [u8],
    /// Node number to show (inode number; not counted as known).
    pub node: u64,
    /// `DT_*`.
    pub kind: u8,
    /// Where the listing goes on after this entry.
    pub next: u64,
    /// With attributes: the node, counted as known to the kernel once. `None` for `.` and `..`, with their stat in
    /// `own`.
    pub found: Option<Node>,
    /// Stat of `.` or of a name found.
    pub own: Option<Node>,
}

impl Volume {
    /// Opens a directory.
    pub fn opendir(&self, node: u64) -> Result<u64> {
        let obj = self.objects.get(node)?;
        self.region();
        let generation = self.generation.load(Ordering::Acquire);
        let fd = Arc::new(self.open_object(&obj, libc::O_RDONLY | libc::O_DIRECTORY)?);
        let state = DirState { generation, fd, next: 0, ahead: VecDeque::new(), buf: vec![0; AHEAD_BYTES] };
        Ok(self.dirs.add(DirHandle { obj, state: Mutex::new(state) }))
    }

    /// Closes an open directory.
    pub fn releasedir(&self, fh: u64) {
        self.dirs.remove(fh);
    }

    /// fsync of a directory.
    pub fn fsyncdir(&self, fh: u64, data_only: bool) -> Result<()> {
        let fd = self.dirs.get(fh)?.state.lock().fd.clone();
        self.sync_parts(&fd, data_only)
    }

    /// Lists from a cookie on, until `each` says that it took no more (true). With `plus` every entry is looked up and
    /// counted as known; an entry that `each` refused is not.
    pub fn readdir(&self, fh: u64, from: u64, plus: bool, each: &mut dyn FnMut(DirItem<'_>) -> bool) -> Result<()> {
        let h = self.dirs.get(fh)?;
        let mut s = h.state.lock();
        self.renew(&h.obj, &mut s)?;
        if s.next != from {
            sys::seekdir(&*s.fd, from as i64)?;
            s.ahead.clear();
            s.next = from;
        }
        loop {
            while let Some(d) = s.ahead.front() {
                let next = d.off as u64;
                if !self.offer(&h.obj, &s, d, plus, each)? {
                    return Ok(());
                }
                s.ahead.pop_front();
                s.next = next;
            }
            let mut list = Vec::new();
            let DirState { fd, buf, .. } = &mut *s;
            if !sys::getdents(&**fd, buf, &mut list)? {
                return Ok(());
            }
            s.ahead = list.into();
        }
    }

    /// Hands one entry on. False: it was not taken.
    fn offer(
        &self,
        dir: &Object,
        s: &DirState,
        d: &Dirent,
        plus: bool,
        each: &mut dyn FnMut(DirItem<'_>) -> bool,
    ) -> Result<bool> {
        let next = d.off as u64;
        let dots = d.name == b"." || d.name == b"..";
        let above_root = d.name == b".." && dir.node == super::objects::ROOT;
        let node = if above_root { dir.node } else { self.objects.shown(d.ino) };
        // A device may be an empty file here.
        let device = if d.kind == libc::DT_REG { self.region().kept(d.ino).and_then(|k| k.device) } else { None };
        let kind = device.map_or(d.kind, |(fmt, _)| (fmt >> 12) as u8);
        let mut item = DirItem { name: &d.name, node, kind, next, found: None, own: None };
        if !plus {
            return Ok(!each(item));
        }
        let st = match sys::statat(&*s.fd, if above_root { b"." } else { &d.name }) {
            Ok(st) => st,
            // Gone since it was read.
            Err(_) => return Ok(true),
        };
        if dots {
            item.own = Some(Node { node, generation: 0, stat: self.region().shown(st) });
            return Ok(!each(item));
        }
        let Ok(id) = dir.dir_id() else { return Ok(true) };
        let found = match self.enter_found((s.generation, &self.region()), &Name::new(id, d.name.clone()), Some(st)) {
            Ok(n) => n,
            Err(e) => {
                log::error!("{e}");
                return Ok(true);
            }
        };
        (item.node, item.found, item.own) = (found.node, Some(found), Some(found));
        if each(item) {
            self.objects.forget(found.node, 1);
            return Ok(false);
        }
        Ok(true)
    }

    /// Opens the directory again when another region took over.
    fn renew(&self, obj: &Object, s: &mut DirState) -> Result<()> {
        self.region();
        let now = self.generation.load(Ordering::Acquire);
        if s.generation != now {
            s.fd = Arc::new(self.open_object(obj, libc::O_RDONLY | libc::O_DIRECTORY)?);
            // Another filesystem's cookies may mean other places; the kernel asks from its last one.
            (s.generation, s.next) = (now, u64::MAX);
            s.ahead.clear();
        }
        Ok(())
    }
}
