//! The C library's own functions behind the names that this program defines itself.

use std::ffi::{CStr, c_char, c_int, c_long, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};

unsafe extern "C" {
    fn dlvsym(handle: *mut c_void, name: *const c_char, version: *const c_char) -> *mut c_void;
}

/// Looks a symbol up in a library; [`libc::RTLD_NEXT`] for the one behind ours.
pub type Lookup = unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void;

/// The library's `dlsym`, which has had one version since 2.34 and another one for each architecture before.
pub fn lookup() -> Lookup {
    static FOUND: AtomicUsize = AtomicUsize::new(0);
    let mut at = FOUND.load(Ordering::Relaxed);
    if at == 0 {
        let versions = [c"GLIBC_2.34", c"GLIBC_2.2.5", c"GLIBC_2.17"];
        // SAFETY: valid C strings; the answer is an address or null.
        let found = versions.map(|v| unsafe { dlvsym(libc::RTLD_NEXT, c"dlsym".as_ptr(), v.as_ptr()) } as usize);
        at = found.into_iter().find(|p| *p != 0).unwrap_or_else(|| std::process::abort());
        FOUND.store(at, Ordering::Relaxed);
    }
    // SAFETY: dlsym has this type.
    unsafe { std::mem::transmute::<usize, Lookup>(at) }
}

/// The address of the library's function, remembered in `cache`.
pub fn address(cache: &AtomicUsize, name: &CStr) -> usize {
    let known = cache.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    // SAFETY: a valid C string.
    let at = unsafe { lookup()(libc::RTLD_NEXT, name.as_ptr()) } as usize;
    if at == 0 {
        std::process::abort();
    }
    cache.store(at, Ordering::Relaxed);
    at
}

/// The library's function of a name, as a function pointer of the given type.
macro_rules! real {
    ($name:literal as $type:ty) => {{
        static AT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let at = $crate::real::address(&AT, $name);
        #[allow(clippy::missing_transmute_annotations, reason = "the type is the macro's argument")]
        // SAFETY: the caller names the type that the library's function of this name has.
        unsafe {
            std::mem::transmute::<usize, $type>(at)
        }
    }};
}
pub(crate) use real;

/// A system call of the kernel.
type Raw = unsafe extern "C" fn(c_long, c_long, c_long, c_long, c_long, c_long, c_long) -> c_long;

/// Waits in the kernel while `word` is `value`, for at most `ms` milliseconds (0: for ever).
pub fn futex_wait(word: &std::sync::atomic::AtomicU32, value: u32, ms: u64) {
    let t = libc::timespec { tv_sec: (ms / 1000) as i64, tv_nsec: (ms % 1000) as i64 * 1_000_000 };
    let t = if ms == 0 { 0 } else { &raw const t as c_long };
    let op = c_long::from(libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG);
    let raw = real!(c"syscall" as Raw);
    // SAFETY: the word and the time live through the call.
    unsafe { raw(libc::SYS_futex, word.as_ptr() as c_long, op, value.into(), t, 0, 0) };
}

/// Wakes one who waits for `word`.
pub fn futex_wake(word: &std::sync::atomic::AtomicU32) {
    let op = c_long::from(libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG);
    let raw = real!(c"syscall" as Raw);
    // SAFETY: the word lives through the call.
    unsafe { raw(libc::SYS_futex, word.as_ptr() as c_long, op, 1, 0, 0, 0) };
}

/// Writes to a descriptor of the kernel, past everything that is simulated.
pub fn write(fd: c_int, bytes: &[u8]) {
    type Write = unsafe extern "C" fn(c_int, *const c_void, usize) -> isize;
    let mut rest = bytes;
    let write = real!(c"write" as Write);
    while !rest.is_empty() {
        // SAFETY: the buffer's length is passed along.
        let n = unsafe { write(fd, rest.as_ptr().cast(), rest.len()) };
        match usize::try_from(n) {
            Ok(n) if n > 0 => rest = rest.get(n..).unwrap_or_default(),
            _ => return,
        }
    }
}

/// Sets `errno`.
pub fn set_errno(e: i32) {
    // SAFETY: the address is the calling thread's own.
    unsafe { *libc::__errno_location() = e };
}
