//! State that all simulated threads see. Only one of them runs at a time, and none is stopped in between: what is done inside of
//! [`Shared::with`] must make no system call, so that no other thread can be picked meanwhile (and none can be killed there).

use std::cell::UnsafeCell;

pub struct Shared<T>(UnsafeCell<T>);

// SAFETY: there is one baton, and whoever is inside `with` has it (see above).
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub const fn new(t: T) -> Shared<T> {
        Shared(UnsafeCell::new(t))
    }

    pub fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        // SAFETY: nobody else is inside, see above; the reference does not leave.
        f(unsafe { &mut *self.0.get() })
    }
}
