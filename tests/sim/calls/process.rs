//! Functions about the process itself: a node must not learn anything from the real one, nor change it.

use super::{calls, text};
use crate::files::io;
use crate::real;
use crate::sched::{call, has_baton, is_quick, threads, within, world};
use std::ffi::{c_char, c_int, c_uint, c_ulong, c_void};

/// Fills a buffer from the seed; returns its length.
///
/// # Safety
/// `p` is valid for `n` bytes.
pub unsafe fn random(p: *mut c_void, n: usize) -> isize {
    within(|| {
        // SAFETY: as our caller promises.
        let buf = unsafe { io::room(p, n) };
        for part in buf.chunks_mut(8) {
            let b = world().bytes.next_u64().to_le_bytes();
            part.copy_from_slice(&b[..part.len()]);
        }
    });
    n as isize
}

/// The number of the current thread, as gettid(2) tells it.
pub fn thread_id() -> c_int {
    within(|| world().current as c_int + 100_000)
}

/// Ends the seed: a node must not do this.
fn never(what: &str) -> ! {
    within(|| world().fail(format!("{what} is not simulated")))
}

calls! {
    fn getrandom(p: *mut c_void, n: usize, flags: c_uint) -> isize {
        Some(random(p, n))
    }
    fn getpid() -> c_int {
        Some(within(|| {
            let w = world();
            let m = w.threads[w.current].machine;
            w.machines[m].pid(m)
        }))
    }
    fn gettid() -> c_int { Some(thread_id()) }
    fn getuid() -> c_uint { Some(0) }
    fn geteuid() -> c_uint { Some(0) }
    fn getgid() -> c_uint { Some(0) }
    fn getegid() -> c_uint { Some(0) }
    fn umask(mask: c_uint) -> c_uint {
        Some(within(|| threads::umask(mask)))
    }
    fn unshare(flags: c_int) -> c_int {
        if flags != libc::CLONE_FS {
            never("unshare of anything but umask and working directory")
        }
        within(threads::own_umask);
        Some(0)
    }
    fn getrlimit64(what: c_int, to: *mut libc::rlimit64) -> c_int {
        *to = libc::rlimit64 { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
        Some(0)
    }
    fn setrlimit64(what: c_int, to: *const libc::rlimit64) -> c_int { Some(0) }
    fn setrlimit(what: c_int, to: *const libc::rlimit) -> c_int { Some(0) }
    fn pthread_sigmask(how: c_int, set: *const libc::sigset_t, old: *mut libc::sigset_t) -> c_int { Some(0) }
    /// std makes a stack for signals for each thread. It is told that there is one: it would be that of whichever real thread runs.
    fn sigaltstack(new: *const libc::stack_t, old: *mut libc::stack_t) -> c_int {
        if !is_quick() {
            return None;
        }
        if let Some(old) = old.as_mut() {
            *old = libc::stack_t { ss_sp: std::ptr::null_mut(), ss_flags: 0, ss_size: 0 };
        }
        Some(0)
    }
    fn signalfd(fd: c_int, set: *const libc::sigset_t, flags: c_int) -> c_int {
        Some(call("signalfd", io::silent) as c_int)
    }
    fn kill(pid: c_int, signal: c_int) -> c_int {
        Some(call("kill", || Err(libc::ESRCH)) as c_int)
    }
    fn fork() -> c_int { never("fork") }
    fn execvp(path: *const c_char, args: *const *const c_char) -> c_int { never("execvp") }
    fn posix_spawnp(
        pid: *mut c_int,
        path: *const c_char,
        actions: *const c_void,
        attr: *const c_void,
        args: *const *const c_char,
        env: *const *const c_char,
    ) -> c_int { never("posix_spawnp") }
    fn pipe2(to: *mut c_int, flags: c_int) -> c_int { never("pipe2") }
    fn eventfd(n: c_uint, flags: c_int) -> c_int { never("eventfd") }
    fn epoll_create1(flags: c_int) -> c_int { never("epoll_create1") }
    fn chdir(path: *const c_char) -> c_int { never("chdir") }
    fn mount(a: *const c_char, b: *const c_char, c: *const c_char, flags: c_ulong, d: *const c_void) -> c_int {
        never("mount")
    }
    fn umount2(a: *const c_char, flags: c_int) -> c_int { never("umount2") }
}

/// Functions that are looked up by name at run time instead of being linked: those here too must be ours.
///
/// # Safety
/// As for dlsym(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void {
    // SAFETY: as our caller promises.
    let wanted = unsafe { text(name) };
    match wanted {
        b"getrandom" => getrandom as *const () as *mut c_void,
        b"gettid" => gettid as *const () as *mut c_void,
        // Looked up for what exists on newer systems only; std goes on without them.
        b"copy_file_range" | b"statx" | b"preadv2" | b"pwritev2" if has_baton() => std::ptr::null_mut(),
        // SAFETY: as our caller promises.
        _ => unsafe { real::lookup()(handle, name) },
    }
}
