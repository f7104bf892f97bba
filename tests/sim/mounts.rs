//! Where volumes are "mounted": clients find them in a table instead of a mount point.

use super::room::{self, MachineId};
use super::shared::Shared;
use kagami::base::{Error, Result};
use kagami::node::mounter::{MountAs, Mounted, Mounter, OnEnd, UNMOUNT_WAIT};
use kagami::volume::Volume;
use std::sync::Arc;
use std::time::Duration;

/// A mounted volume.
struct Mount {
    machine: MachineId,
    number: u64,
    volume: Arc<Volume>,
    users: u32,
    /// Nobody begins to use it any more.
    detached: bool,
    on_end: OnEnd,
}

static MOUNTS: Shared<(u64, Vec<Mount>)> = Shared::new((0, Vec::new()));

/// A volume in use by a client: while one is held, an orderly unmount waits.
pub struct Using {
    pub number: u64,
    pub volume: Arc<Volume>,
}

impl Using {
    /// The volume mounted at a machine.
    pub fn at(machine: MachineId) -> Option<Using> {
        MOUNTS.with(|(_, all)| {
            let m = all.iter_mut().find(|m| m.machine == machine && !m.detached)?;
            m.users += 1;
            Some(Using { number: m.number, volume: m.volume.clone() })
        })
    }
}

impl Drop for Using {
    fn drop(&mut self) {
        MOUNTS.with(|(_, all)| {
            if let Some(m) = all.iter_mut().find(|m| m.number == self.number) {
                m.users -= 1;
            }
        });
    }
}

/// A machine was killed: what was mounted there is not any more. The volumes are leaked, as all that the dead threads hold.
pub fn died(machine: MachineId) {
    MOUNTS.with(|(_, all)| {
        let gone = all.extract_if(.., |m| m.machine == machine);
        gone.for_each(std::mem::forget);
    });
}

/// True while something is mounted there.
pub fn mounted(machine: MachineId) -> bool {
    MOUNTS.with(|(_, all)| all.iter().any(|m| m.machine == machine && !m.detached))
}

/// Mounts at one machine.
pub struct Table(pub MachineId);

struct Entry {
    machine: MachineId,
    number: u64,
}

impl Mounter for Table {
    fn mount(&self, volume: Arc<Volume>, how: MountAs<'_>) -> Result<Box<dyn Mounted>> {
        let number = MOUNTS.with(|(n, all)| {
            *n += 1;
            all.push(Mount { machine: self.0, number: *n, volume, users: 0, detached: false, on_end: how.on_end });
            *n
        });
        room::trace(format!("mounted as {number}"));
        Ok(Box::new(Entry { machine: self.0, number }))
    }
}

impl Entry {
    fn with<R>(&self, f: impl FnOnce(&mut Mount) -> R) -> Option<R> {
        MOUNTS.with(|(_, all)| all.iter_mut().find(|m| m.number == self.number).map(f))
    }

    /// Waits until nobody uses it; false when that takes too long.
    fn idle(&self, limit: Duration) -> bool {
        let steps = (limit.as_millis() / 5) as u32;
        (0..steps).any(|_| {
            let idle = self.with(|m| m.users == 0).unwrap_or(true);
            if !idle {
                room::sleep(Duration::from_millis(5));
            }
            idle
        })
    }

    /// As the thread of a session does when it ends.
    fn end(&self) {
        let gone = MOUNTS.with(|(_, all)| {
            let at = all.iter().position(|m| m.number == self.number)?;
            Some(all.remove(at))
        });
        if let Some(m) = gone {
            room::trace(format!("unmounted {} of machine {}", self.number, self.machine));
            std::thread::spawn(move || {
                drop(m.volume);
                (m.on_end)(None);
            });
        }
    }
}

impl Mounted for Entry {
    fn unmount(&self) -> Result<bool> {
        self.with(|m| m.detached = true);
        let idle = self.idle(UNMOUNT_WAIT);
        if idle {
            self.end();
        }
        Ok(idle)
    }
    fn unmount_unused(&self) -> Result<()> {
        self.with(|m| m.detached = true);
        // A client's step is short, and nobody begins another one.
        if self.idle(Duration::from_secs(1)) {
            self.end();
            return Ok(());
        }
        self.with(|m| m.detached = false);
        Err(Error::refused("the volume is in use"))
    }
    fn flush(&self, _within: Duration) -> bool {
        true
    }
    fn abort(&self) -> Result<()> {
        self.end();
        Ok(())
    }
    fn attached(&self) -> bool {
        self.with(|m| !m.detached).unwrap_or(false)
    }
}
