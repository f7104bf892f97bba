//! The node's way to FUSE.

use super::{MountHandle, MountOpts};
use crate::base::Result;
use crate::node::mounter::{MountAs, MountOption, Mounted, Mounter, UNMOUNT_WAIT};
use crate::volume::Volume;
use std::sync::Arc;

/// Mounts through the kernel's FUSE.
pub struct Fuse {
    /// Also over a directory that is not empty.
    pub nonempty: bool,
}

impl Mounter for Fuse {
    fn mount(&self, volume: Arc<Volume>, how: MountAs<'_>) -> Result<Box<dyn Mounted>> {
        let MountAs { at, label, mut options, on_end } = how;
        // Several users on one mount are root's privilege; files belong to whoever makes them.
        if crate::os::sys::ids().0 == 0 {
            options.insert(MountOption::AllowOther);
        }
        let opts = MountOpts { label, options, nonempty: self.nonempty, on_end: Some(on_end), ..MountOpts::default() };
        Ok(Box::new(super::mount(volume, at, opts)?))
    }
}

impl Mounted for MountHandle {
    fn unmount(&self) -> Result<bool> {
        MountHandle::unmount(self, UNMOUNT_WAIT)
    }
    fn unmount_unused(&self) -> Result<()> {
        MountHandle::unmount_unused(self)
    }
    fn flush(&self, within: std::time::Duration) -> bool {
        MountHandle::flush(self, within)
    }
    fn abort(&self) -> Result<()> {
        let aborted = MountHandle::abort(self);
        self.detach().or(aborted)
    }
    fn attached(&self) -> bool {
        MountHandle::attached(self)
    }
}
