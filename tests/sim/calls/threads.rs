//! Functions of threads and time, and the bare system call.

use super::{calls, maybe, text};
use crate::files::names::{self, Path};
use crate::files::{dirs, io, is_ours};
use crate::sched::{self, call, clock, futex, threads, within, world};
use std::ffi::{c_char, c_int, c_long, c_void};

calls! {
    fn pthread_create(
        native: *mut libc::pthread_t,
        attr: *const libc::pthread_attr_t,
        start: threads::Start,
        arg: *mut c_void,
    ) -> c_int {
        Some(call("pthread_create", || Ok(threads::create(native, attr, start, arg).into())) as c_int)
    }
    fn pthread_join(native: libc::pthread_t, result: *mut *mut c_void) -> c_int {
        Some(call("pthread_join", || Ok(threads::join_native(native, result).into())) as c_int)
    }
    fn pthread_setname_np(native: libc::pthread_t, name: *const c_char) -> c_int {
        within(|| threads::name(native, text(name)).ok());
        None
    }
    /// std wants to know the page below a stack that is never mapped. Stacks of ours have one, but the library does not know.
    fn pthread_attr_getguardsize(attr: *const libc::pthread_attr_t, to: *mut usize) -> c_int {
        *to = crate::mem::PAGE;
        Some(0)
    }
    fn clock_gettime(clock: c_int, to: *mut libc::timespec) -> c_int {
        *to = within(|| clock::get(clock));
        Some(0)
    }
    fn nanosleep(t: *const libc::timespec, left: *mut libc::timespec) -> c_int {
        Some(call("nanosleep", || clock::sleep(libc::CLOCK_MONOTONIC, false, &*t)) as c_int)
    }
    fn clock_nanosleep(clock: c_int, flags: c_int, t: *const libc::timespec, left: *mut libc::timespec) -> c_int {
        let absolute = flags & libc::TIMER_ABSTIME != 0;
        // The error is the answer here, not in errno.
        Some(call("nanosleep", || Ok(clock::sleep(clock, absolute, &*t).err().unwrap_or(0).into())) as c_int)
    }
    fn sched_yield() -> c_int {
        within(|| sched::give_way("sched_yield"));
        Some(0)
    }
    fn syscall(n: c_long, a: c_long, b: c_long, c: c_long, d: c_long, e: c_long, f: c_long) -> c_long {
        system(n, [a, b, c, d, e, f])
    }
}

/// System calls that have no function, or are called without it.
///
/// # Safety
/// The arguments are what the call's own rules say.
unsafe fn system(n: c_long, a: [c_long; 6]) -> Option<c_long> {
    let fd = a[0] as c_int;
    // SAFETY: as our caller promises.
    unsafe {
        match n {
            libc::SYS_futex => Some(call("futex", || futex::futex(a))),
            libc::SYS_getrandom => Some(super::process::random(a[0] as *mut c_void, a[1] as usize) as c_long),
            libc::SYS_getdents64 if is_ours(fd) => {
                Some(call("getdents", || dirs::getdents(fd, io::room(a[1] as *mut c_void, a[2] as usize))))
            }
            libc::SYS_openat2 => {
                let how = *(a[2] as *const libc::open_how);
                let beneath = how.resolve & libc::RESOLVE_BENEATH != 0;
                let path = Path(fd, text(a[1] as *const c_char));
                maybe("openat2", || names::open(path, how.flags as c_int, how.mode as u32, beneath))
            }
            libc::SYS_gettid => Some(super::process::thread_id().into()),
            // What only changes how this process stands to the kernel, or asks it something harmless.
            libc::SYS_membarrier | libc::SYS_prctl | libc::SYS_rt_sigprocmask | libc::SYS_sched_getaffinity => None,
            n => within(|| world().fail(format!("system call {n} is not simulated"))),
        }
    }
}
