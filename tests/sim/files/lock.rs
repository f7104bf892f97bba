//! flock(2).

use super::{file_at, lock_key};
use crate::disk::Ofd;
use crate::sched::{MachineId, Res, World, block, world};
use std::collections::BTreeSet;
use std::ffi::c_int;

/// The end of an open description gives its lock up.
pub fn drop_all(w: &mut World, m: MachineId, disk: usize, ofd: Ofd, number: usize) {
    let Ok(ino) = w.disk(m, disk).ino(ofd) else { return };
    release(w, (m, disk, ino), number);
}

fn release(w: &mut World, key: (MachineId, usize, u64), number: usize) {
    let Some((_, holders)) = w.table.locks.get_mut(&key) else { return };
    if holders.remove(&number) {
        if holders.is_empty() {
            w.table.locks.remove(&key);
        }
        w.wake(lock_key(key), usize::MAX);
    }
}

/// flock(2).
pub fn flock(fd: c_int, how: c_int) -> Res<i64> {
    let (m, disk, ofd) = file_at(fd)?;
    let number = world().table.open_of(fd)?;
    let key = (m, disk, world().disk(m, disk).ino(ofd)?);
    let alone = match how & !libc::LOCK_NB {
        libc::LOCK_UN => {
            release(world(), key, number);
            return Ok(0);
        }
        libc::LOCK_EX => true,
        libc::LOCK_SH => false,
        _ => return Err(libc::EINVAL),
    };
    loop {
        let w = world();
        let (taken, holders) = w.table.locks.entry(key).or_insert_with(|| (alone, BTreeSet::new()));
        let others = holders.iter().any(|h| *h != number);
        if !others || !(*taken || alone) {
            *taken = alone;
            holders.insert(number);
            return Ok(0);
        }
        if how & libc::LOCK_NB != 0 {
            return Err(libc::EWOULDBLOCK);
        }
        block(&[lock_key(key)], None, "waits for the lock of a file");
    }
}
