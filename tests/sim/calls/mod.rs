//! The C library's functions that this program defines itself, so that the standard library, the crates and kagami call these.
//! Each is thin: for a simulated thread, and where what it is about is simulated, it asks `sched`, `files` or `net`; in all
//! other cases it is the library's own function.

mod descriptors;
mod paths;
mod process;
mod sockets;
mod threads;

/// Defines functions of the C library. The body is an `Option`: `None` has the library's own function called.
macro_rules! calls {
    ($($(#[$doc:meta])* fn $name:ident($($a:ident: $t:ty),* $(,)?) -> $r:ty $ours:block)*) => {$(
        $(#[$doc])*
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($a: $t),*) -> $r {
            const NAME: &std::ffi::CStr = match std::ffi::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                Ok(n) => n,
                Err(_) => panic!("a name with a zero in it"),
            };
            if $crate::sched::on() {
                #[allow(unused_unsafe, reason = "not every body needs it")]
                #[allow(clippy::redundant_closure_call, reason = "the body may return early with `?`")]
                // SAFETY: the arguments are what the function's own rules say.
                let ours: Option<$r> = unsafe { (|| $ours)() };
                if let Some(r) = ours {
                    return r;
                }
            }
            static REAL: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
            // SAFETY: the library's function of this name has this type; the arguments are the caller's.
            unsafe {
                let f = std::mem::transmute::<usize, unsafe extern "C" fn($($t),*) -> $r>($crate::real::address(&REAL, NAME));
                f($($a),*)
            }
        }
    )*};
}
pub(crate) use calls;

use crate::sched::{self, Res};
use std::ffi::{CStr, c_char};

/// The bytes of a path.
///
/// # Safety
/// A C string, or null.
unsafe fn text<'a>(p: *const c_char) -> &'a [u8] {
    // SAFETY: as our caller promises.
    if p.is_null() { b"" } else { unsafe { CStr::from_ptr(p) }.to_bytes() }
}

/// A call that may turn out to be the kernel's.
fn maybe(name: &'static str, f: impl FnOnce() -> Res<Option<i64>>) -> Option<i64> {
    let mut kernel = false;
    let r = sched::call(name, || match f() {
        Ok(Some(n)) => Ok(n),
        Ok(None) => {
            kernel = true;
            Ok(0)
        }
        Err(e) => Err(e),
    });
    (!kernel).then_some(r)
}
