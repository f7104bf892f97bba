//! Locks, condition variables, and for what is tested by its schedules threads and atomics as well: in one place, so that a
//! test may decide at each of them which thread goes on (`docs/RELIABILITY.md`). Ordinarily they are parking_lot's and the
//! standard library's own. For the floors up to `node`; those above are in no schedule.

#[cfg(not(feature = "schedules"))]
pub use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
#[cfg(not(feature = "schedules"))]
pub use std::{sync::atomic, thread, thread_local};

#[cfg(feature = "schedules")]
mod scheduled;
#[cfg(feature = "schedules")]
pub use scheduled::{Condvar, Mutex, MutexGuard, RwLock, atomic, thread, thread_local};

#[cfg(all(test, feature = "schedules"))]
pub mod explore;
