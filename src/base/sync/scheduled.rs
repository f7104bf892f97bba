//! The same as parking_lot and the standard library have, but each operation asks shuttle which thread goes on. All threads of
//! a schedule run by turns on one thread of the system, so nothing here may be used outside of `shuttle::Runner`.

pub use shuttle::sync::atomic;
pub use shuttle::thread_local;
pub use shuttle_parking_lot::{Mutex, MutexGuard, RwLock};
use std::cell::Cell;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// As `std::thread`, as far as it is needed.
pub mod thread {
    pub use shuttle::thread::{Builder, JoinHandle, ThreadId, current, spawn, yield_now};

    /// Lets the others go on: there is no time in a schedule.
    pub fn sleep(_: std::time::Duration) {
        yield_now();
    }
}

std::thread_local! {
    /// See [`draw_timeouts`].
    static TIMEOUTS: Cell<bool> = const { Cell::new(false) };
}

/// Whether the time of a wait may be up before anybody wakes it. If not, it never is, and a wait that only its time would
/// have ended is a deadlock. Counts for this thread of the system.
#[cfg_attr(not(test), expect(dead_code))]
pub fn draw_timeouts(yes: bool) {
    TIMEOUTS.set(yes);
}

/// Whether a wait ended because its time was up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    /// True when it did.
    pub fn timed_out(&self) -> bool {
        self.0
    }
}

/// A condition variable for [`Mutex`].
#[derive(Default)]
pub struct Condvar {
    /// Held from before the caller's lock is released until the wait has begun, and by who wakes: nobody is missed.
    door: shuttle::sync::Mutex<()>,
    waiters: shuttle::sync::Condvar,
    /// Counts who woke, for waits whose time may be up.
    woken: AtomicU64,
}

impl Condvar {
    /// Nobody waits.
    pub const fn new() -> Condvar {
        Condvar {
            door: shuttle::sync::Mutex::new(()),
            waiters: shuttle::sync::Condvar::new(),
            woken: AtomicU64::new(0),
        }
    }

    /// Waits until it is woken; the lock is released meanwhile.
    pub fn wait<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>) {
        let door = self.door.lock().unwrap_or_else(PoisonError::into_inner);
        MutexGuard::unlocked(guard, || drop(self.waiters.wait(door)));
    }

    /// Waits until it is woken, or the time is up where that is drawn.
    pub fn wait_for<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>, _: Duration) -> WaitTimeoutResult {
        use shuttle::rand::Rng;
        if !TIMEOUTS.get() {
            self.wait(guard);
            return WaitTimeoutResult(false);
        }
        let woken = self.woken.load(Ordering::Relaxed);
        loop {
            MutexGuard::unlocked(guard, thread::yield_now);
            if self.woken.load(Ordering::Relaxed) != woken {
                return WaitTimeoutResult(false);
            }
            if shuttle::rand::thread_rng().gen_ratio(1, 4) {
                return WaitTimeoutResult(true);
            }
        }
    }

    /// As [`Condvar::wait_for`].
    pub fn wait_until<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>, _: Instant) -> WaitTimeoutResult {
        self.wait_for(guard, Duration::ZERO)
    }

    /// Wakes one who waits.
    pub fn notify_one(&self) {
        let _door = self.door.lock();
        self.woken.fetch_add(1, Ordering::Relaxed);
        self.waiters.notify_one();
    }

    /// Wakes all who wait.
    pub fn notify_all(&self) {
        let _door = self.door.lock();
        self.woken.fetch_add(1, Ordering::Relaxed);
        self.waiters.notify_all();
    }
}
