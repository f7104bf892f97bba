//! Drives that could not write what they had taken. The kernel tells of that once and then calls the pages clean: what was
//! read back would be right, the next sync would succeed, and a power cut would show that it never was on the disk. So what
//! such a drive holds does not count any more (G1, G5): everything is written anew, by a first copy that finds no file.
//!
//! ```text
//! a sync fails ─▶ .kagami/unsynced, fault ─▶ first copy: all files removed, written anew ─▶ synced ─▶ forgotten
//! ```

use super::*;
use crate::base::{DirId, Name};
use crate::os::sys;
use crate::store::region::Region;
use std::collections::BTreeSet;

impl Receiver {
    /// Makes the tree durable; a drive that fails at it takes the replica out of use.
    pub(super) fn sync_tree(&self) -> Result<()> {
        self.replica.checkpoint().map(drop).inspect_err(|e| self.sync_failed(e))
    }

    /// A sync of the tree failed.
    pub(super) fn sync_failed(&self, e: &Error) {
        if is_drive(e) {
            self.replica.note_unsynced(e);
            self.drive_lost(e.clone());
        }
    }

    /// At the begin of a first copy: removes the files, of which none is known to be on the disk though it can be read.
    pub(super) fn remove_unsynced(&self) -> Result<()> {
        if !self.replica.unsynced() {
            return Ok(());
        }
        let mut n = 0;
        for r in &self.replica.regions {
            let mut all: BTreeSet<DirId> = r.ids.read().dirs().map(|(id, _)| id).collect();
            all.insert(DirId::ROOT);
            n += remove_files(r, &all)?;
        }
        log::warn!("group {}: {n} files that a failing drive may not have written are copied anew", self.replica.group);
        Ok(())
    }
}

/// Removes the names of regular files in these directories. When that was cut short before, or the table could not be written
/// to, it has names that are not there; they go as well.
fn remove_files(region: &Region, dirs: &BTreeSet<DirId>) -> Result<u64> {
    let mut n = 0;
    for dir in dirs.iter().filter(|d| !d.is_internal()) {
        let fd = match region.dirfd(*dir) {
            Ok(fd) => fd,
            Err(e) if matches!(e.errno, libc::ENOENT | libc::ENOTDIR) => continue,
            Err(e) => return Err(e),
        };
        let open = sys::openat(&*fd, b".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
        let (mut buf, mut list) = (vec![0u8; 64 << 10], Vec::new());
        while sys::getdents(&open, &mut buf, &mut list)? {}
        for e in list {
            if sys::statat(&*fd, &e.name).is_ok_and(|st| st.is_file()) {
                let at = Name::new(*dir, e.name);
                region.apply_direct(&mut Op::Unlink { at, pmtime: Default::default() }, b"")?;
                n += 1;
            }
        }
    }
    let linked: Vec<Name> = region.ids.read().linked_names().cloned().collect();
    for at in linked {
        match region.look(&at) {
            Ok(Some(_)) => {}
            Err(e) if !matches!(e.errno, libc::ENOENT | libc::ENOTDIR) => return Err(e),
            _ => region.ids.write().drop_link(&at)?,
        }
    }
    Ok(n)
}
