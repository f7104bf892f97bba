//! The thread beside a session: for what makes the kernel send requests, so that no thread that serves them waits for it.

use super::wire::errno;
use crate::base::{Error, Result};
use crate::volume::Volume;
use crossbeam::channel::Receiver;
use fuser::{INodeNo, Notifier, ReplyLseek};
use std::ffi::OsString;
use std::sync::{Arc, OnceLock};

/// What must not be done in a thread that serves requests.
pub(super) enum Task {
    /// Write dirty pages of a node out, then look for data or holes.
    Seek { node: u64, fh: u64, off: i64, whence: i32, reply: ReplyLseek },
    /// Drop cached pages and attributes of a node: what they hold was refused, or is in doubt.
    Drop { node: u64 },
    /// Look a name up again: an operation on it failed after it was done here, or it is in doubt.
    Name { parent: u64, name: OsString },
}

/// The thread beside the session.
pub struct Worker {
    pub(super) v: Arc<Volume>,
    pub(super) tasks: Receiver<Task>,
    pub(super) notifier: Arc<OnceLock<Notifier>>,
}

impl Worker {
    /// Starts it; it ends with the adapter.
    pub fn start(self, notifier: Notifier) -> Result<()> {
        let _ = self.notifier.set(notifier.clone());
        std::thread::Builder::new().name("mount-aside".into()).spawn(move || {
            for t in self.tasks.iter() {
                let done = match &t {
                    // Invalidating writes dirty pages back first.
                    Task::Seek { node, .. } | Task::Drop { node } => notifier.inval_inode(INodeNo(*node), 0, 0),
                    Task::Name { parent, name } => notifier.inval_entry(INodeNo(*parent), name),
                };
                if let Err(e) = done {
                    log::debug!("dropping what the kernel cached: {e}");
                }
                if let Task::Seek { fh, off, whence, reply, .. } = t {
                    seek(&self.v, fh, off, whence, reply);
                }
            }
        })?;
        Ok(())
    }
}

pub(super) fn seek(v: &Volume, fh: u64, off: i64, whence: i32, reply: ReplyLseek) {
    match u64::try_from(off).map_err(|_| Error::os(libc::ENXIO)).and_then(|off| v.seek(fh, off, whence)) {
        Ok(at) => reply.offset(at as i64),
        Err(e) => reply.error(errno(&e)),
    }
}
