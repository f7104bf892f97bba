//! The system call that all locks, condition variables and parked threads of std, parking_lot and crossbeam come down to.

use super::{Key, Res, block, clock, world};
use std::ffi::c_long;
use std::sync::atomic::{AtomicU32, Ordering};

const COMMAND: c_long = !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME) as c_long;

/// futex(2) with its arguments as they come.
///
/// # Safety
/// `a[0]` is the address of a futex, `a[3]` of a time where the operation has one.
pub unsafe fn futex(a: [c_long; 6]) -> Res<i64> {
    let [addr, op, val, time, _, bits] = a;
    let key = Key::Futex(addr as usize);
    match (op & COMMAND) as i32 {
        c @ (libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET) => {
            // SAFETY: as our caller promises.
            let (word, time) = unsafe { (&*(addr as *const AtomicU32), (time as *const libc::timespec).as_ref()) };
            if word.load(Ordering::SeqCst) != val as u32 {
                return Err(libc::EAGAIN);
            }
            let absolute = c == libc::FUTEX_WAIT_BITSET;
            let real = op & c_long::from(libc::FUTEX_CLOCK_REALTIME) != 0;
            let until = match time {
                None => None,
                Some(t) if absolute => {
                    Some(clock::deadline(t, if real { libc::CLOCK_REALTIME } else { libc::CLOCK_MONOTONIC })?)
                }
                Some(t) => Some(clock::after(t)?),
            };
            let w = world();
            w.threads[w.current].bits = if absolute { bits as u32 } else { u32::MAX };
            if block(&[key], until, "waits for a lock or a word") { Ok(0) } else { Err(libc::ETIMEDOUT) }
        }
        libc::FUTEX_WAKE => Ok(world().wake(key, val.max(0) as usize) as i64),
        libc::FUTEX_WAKE_BITSET => Ok(world().wake_if(key, val.max(0) as usize, |t| t.bits & bits as u32 != 0) as i64),
        c => world().fail(format!("futex operation {c} is not simulated")),
    }
}
