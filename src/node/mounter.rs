//! How the node mounts, without knowing of FUSE: the floor above provides it.

use crate::base::Result;
use crate::volume::Volume;
use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// An option of mount(8) that changes what the mount does. Persisted: append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Encode, Decode)]
pub enum MountOption {
    /// Nothing can be changed through it.
    #[serde(rename = "ro")]
    ReadOnly,
    /// Set-user-id bits have no effect.
    #[serde(rename = "nosuid")]
    NoSuid,
    /// Device files have no effect.
    #[serde(rename = "nodev")]
    NoDev,
    /// Nothing is executed from it.
    #[serde(rename = "noexec")]
    NoExec,
    /// Every write is synced.
    #[serde(rename = "sync")]
    Sync,
    /// Every change of a directory is synced.
    #[serde(rename = "dirsync")]
    DirSync,
    /// Reading changes no access time.
    #[serde(rename = "noatime")]
    NoAtime,
    /// Reading directories changes no access time.
    #[serde(rename = "nodiratime")]
    NoDirAtime,
    /// Other users may use it. As root: always.
    #[serde(rename = "allow_other")]
    AllowOther,
    /// Each write(2) is promised, not only fsync and close, also where the group does not say so.
    #[serde(rename = "write_through")]
    WriteThrough,
    /// File handles last as long as the mount, for servers of NFS (MS-16): nothing the kernel once knew is forgotten.
    #[serde(rename = "nfs_export")]
    NfsExport,
}

impl MountOption {
    /// True for what is kagami's own business, and not the kernel's.
    pub fn is_ours(self) -> bool {
        matches!(self, MountOption::WriteThrough | MountOption::NfsExport)
    }
}

/// Every option with its word.
pub const MOUNT_OPTIONS: [(MountOption, &str); 11] = [
    (MountOption::ReadOnly, "ro"),
    (MountOption::NoSuid, "nosuid"),
    (MountOption::NoDev, "nodev"),
    (MountOption::NoExec, "noexec"),
    (MountOption::Sync, "sync"),
    (MountOption::DirSync, "dirsync"),
    (MountOption::NoAtime, "noatime"),
    (MountOption::NoDirAtime, "nodiratime"),
    (MountOption::AllowOther, "allow_other"),
    (MountOption::WriteThrough, "write_through"),
    (MountOption::NfsExport, "nfs_export"),
];

/// A set of options.
pub type MountOptions = BTreeSet<MountOption>;

/// The options as mount(8) writes them: `ro,nosuid`; empty when there are none.
pub fn words(options: &MountOptions) -> String {
    let word = |o: &MountOption| MOUNT_OPTIONS.iter().find(|(x, _)| x == o).map_or("", |(_, w)| w);
    options.iter().map(word).collect::<Vec<_>>().join(",")
}

/// Called when a mount has ended: with what happened to it, unless it was ended through [`Mounted`].
pub type OnEnd = Box<dyn FnOnce(Option<String>) + Send>;

/// What is to be mounted, beside the volume.
pub struct MountAs<'a> {
    /// The directory.
    pub at: &'a Path,
    /// Shown as the source in the mount table: `GROUP/VOLUME`.
    pub label: String,
    /// How.
    pub options: MountOptions,
    /// Called when it has ended.
    pub on_end: OnEnd,
}

/// How long an unmount waits for programs that still have files open.
pub const UNMOUNT_WAIT: Duration = Duration::from_secs(10);

/// Mounts volumes.
pub trait Mounter: Send + Sync {
    /// Mounts at a directory; returns when the mount answers.
    fn mount(&self, volume: Arc<Volume>, how: MountAs<'_>) -> Result<Box<dyn Mounted>>;
}

/// A mounted volume.
pub trait Mounted: Send + Sync {
    /// Ends it in order: its mount point is taken away at once, and it ends when the last file in it is closed. Waits for
    /// that, for at most [`UNMOUNT_WAIT`]: false when it was not over by then.
    fn unmount(&self) -> Result<bool>;
    /// Ends it in order if nobody uses it. [`crate::base::Kind::Refused`]: somebody does, who is told; the mount is as it was.
    fn unmount_unused(&self) -> Result<()>;
    /// Hands everything that the kernel still holds to the volume; false when that takes longer than `within`.
    fn flush(&self, within: std::time::Duration) -> bool;
    /// Ends it at once: whoever uses it gets errors.
    fn abort(&self) -> Result<()>;
    /// Its mount point is still in the mount table. False after umount(8), also while files are open in it (`umount -l`).
    fn attached(&self) -> bool;
}
