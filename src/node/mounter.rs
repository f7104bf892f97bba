//! How the node mounts, without knowing of FUSE: the floor above provides it.

use crate::base::Result;
use crate::volume::Volume;
use std::path::Path;
use std::sync::Arc;

/// Mounts volumes.
pub trait Mounter: Send + Sync {
    /// Mounts at a directory; returns when the mount answers.
    fn mount(&self, volume: Arc<Volume>, at: &Path, label: String) -> Result<Box<dyn Mounted>>;
}

/// A mounted volume.
pub trait Mounted: Send + Sync {
    /// Ends it in order.
    fn unmount(self: Box<Self>) -> Result<()>;
    /// Ends it at once: whoever uses it gets errors.
    fn abort(&self) -> Result<()>;
}
