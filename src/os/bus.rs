//! Mapped pages on a drive that takes no more writes (an ext4 that met an error makes itself read-only): a store to one is
//! answered with SIGBUS, which would end the node although its other drives are well. The page is replaced by memory with
//! the same content, and its owner told that nothing stored there is kept any more.

use std::io;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Mappings that can be watched, count; those beyond are not.
const WATCHED_MAX: usize = 512;
/// Size of a page, bytes: what is replaced at once.
const PAGE: usize = 4096;

struct Watched {
    start: AtomicUsize,
    len: AtomicUsize,
    lost: AtomicBool,
}

static WATCHED: [Watched; WATCHED_MAX] =
    [const { Watched { start: AtomicUsize::new(0), len: AtomicUsize::new(0), lost: AtomicBool::new(false) } };
        WATCHED_MAX];
static BUSY: AtomicBool = AtomicBool::new(false);

/// Watches a mapping until [`unwatch`]; its number, or `None` when there are too many.
pub fn watch(start: usize, len: usize) -> Option<usize> {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if let Err(e) = install() {
            log::warn!("SIGBUS is not caught ({e}): a drive that becomes read-only may end this node");
        }
    });
    let free = |w: &Watched| w.start.compare_exchange(0, start, Ordering::SeqCst, Ordering::SeqCst).is_ok();
    let i = WATCHED.iter().position(free)?;
    let w = WATCHED.get(i)?;
    w.lost.store(false, Ordering::SeqCst);
    w.len.store(len, Ordering::SeqCst);
    Some(i)
}

/// Ends it.
pub fn unwatch(i: usize) {
    if let Some(w) = WATCHED.get(i) {
        w.len.store(0, Ordering::SeqCst);
        w.start.store(0, Ordering::SeqCst);
    }
}

/// True when a store to the mapping could not be kept.
pub fn lost(i: usize) -> bool {
    WATCHED.get(i).is_some_and(|w| w.lost.load(Ordering::Relaxed))
}

fn install() -> io::Result<()> {
    // SAFETY: an all-zero sigaction is a valid value; the fields that matter are set below.
    let mut a: libc::sigaction = unsafe { std::mem::zeroed() };
    a.sa_sigaction = on_bus as *const () as usize;
    a.sa_flags = libc::SA_SIGINFO;
    // SAFETY: a valid action; the handler uses only atomics, memory copies and mmap.
    if unsafe { libc::sigaction(libc::SIGBUS, &a, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Runs in the thread whose store failed, which does it again afterwards.
extern "C" fn on_bus(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel hands a valid siginfo to a handler with SA_SIGINFO.
    let at = unsafe { (*info).si_addr() } as usize;
    let inside = |w: &&Watched| {
        let start = w.start.load(Ordering::SeqCst);
        start != 0 && at >= start && at - start < w.len.load(Ordering::SeqCst)
    };
    let Some(w) = WATCHED.iter().find(inside) else { return die() };
    while BUSY.swap(true, Ordering::SeqCst) {
        std::hint::spin_loop();
    }
    w.lost.store(true, Ordering::SeqCst);
    let replaced = replace(at - at % PAGE);
    BUSY.store(false, Ordering::SeqCst);
    if !replaced {
        die();
    }
}

/// Puts memory in the place of one page of a mapping, with what can be read of it. A read that fails is a second SIGBUS
/// within the handler, which ends the process.
fn replace(page: usize) -> bool {
    let mut kept = [0u8; PAGE];
    // SAFETY: the page belongs to a watched mapping; mmap replaces exactly it, by memory as large.
    unsafe {
        std::ptr::copy_nonoverlapping(page as *const u8, kept.as_mut_ptr(), PAGE);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let p = libc::mmap(page as *mut libc::c_void, PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        if p == libc::MAP_FAILED {
            return false;
        }
        std::ptr::copy_nonoverlapping(kept.as_ptr(), p.cast(), PAGE);
    }
    true
}

/// A SIGBUS that is not ours: the store is done again, and then it ends the process as ever.
fn die() {
    // SAFETY: the default action is always valid.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}
