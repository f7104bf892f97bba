//! The node's way to FUSE.

use super::{MountHandle, MountOpts};
use crate::base::Result;
use crate::node::mounter::{Mounted, Mounter};
use crate::volume::Volume;
use std::path::Path;
use std::sync::Arc;

/// Mounts through the kernel's FUSE.
pub struct Fuse;

impl Mounter for Fuse {
    fn mount(&self, volume: Arc<Volume>, at: &Path, label: String) -> Result<Box<dyn Mounted>> {
        // Several users on one mount are root's privilege; files belong to whoever makes them.
        let allow_other = crate::os::sys::ids().0 == 0;
        let handle = super::mount(volume, at, MountOpts { label, allow_other, ..MountOpts::default() })?;
        Ok(Box::new(handle))
    }
}

impl Mounted for MountHandle {
    fn unmount(self: Box<Self>) -> Result<()> {
        MountHandle::unmount(*self)
    }
    fn abort(&self) -> Result<()> {
        let aborted = MountHandle::abort(self);
        self.detach().or(aborted)
    }
}
