//! The baton, and how it goes from one thread to another. A simulated thread has a real one for its beginning, its end, its stack
//! and its thread-local values. In between whichever real thread runs goes on with what another one left, without the kernel:
//!
//! ```text
//! gives the baton away ── its registers to its stack ──▶ those of the next one, which is the next one from then on
//! begins, ends         ── in the real thread of its own, which is woken for that; who carried the baton so far sleeps
//! ```
//!
//! Where the processor cannot do that, or with `KAGAMI_SIM_THREADS=1` (for debuggers), each real thread does its own part only.

use crate::real;
use std::cell::UnsafeCell;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};

/// Where a thread waits for the baton.
#[repr(C)]
pub struct Slot {
    /// 1: its real thread is to go on.
    word: AtomicU32,
    /// Where its registers lie; 0 until it gave the baton away for the first time.
    saved: UnsafeCell<*mut u8>,
}

// SAFETY: `saved` is only used by who has the baton, and by who is just given it.
unsafe impl Sync for Slot {}

/// Real threads do the part of others.
static QUICK: AtomicBool = AtomicBool::new(false);
/// The slot whose real thread runs with the baton.
static CARRIER: AtomicPtr<Slot> = AtomicPtr::new(null_mut());
/// Whose real thread is to be woken because the thread has ended.
static ENDED: AtomicPtr<Slot> = AtomicPtr::new(null_mut());

/// Whether real threads do the part of others.
pub fn is_quick() -> bool {
    QUICK.load(Ordering::Relaxed)
}

/// To be called before the first thread.
pub fn prepare() {
    QUICK.store(swap::can() && std::env::var_os("KAGAMI_SIM_THREADS").is_none(), Ordering::Relaxed);
}

impl Slot {
    /// It lives as long as the process.
    pub fn new() -> &'static Slot {
        Box::leak(Box::new(Slot { word: AtomicU32::new(0), saved: UnsafeCell::new(null_mut()) }))
    }

    fn ptr(&'static self) -> *mut Slot {
        std::ptr::from_ref(self).cast_mut()
    }

    fn wake(&self) {
        self.word.store(1, Ordering::Release);
        real::futex_wake(&self.word);
    }

    fn wait(&self) {
        while self.word.swap(0, Ordering::Acquire) == 0 {
            real::futex_wait(&self.word, 0, 0);
        }
    }

    /// Waits in a new real thread for the baton.
    pub fn begin(&self) {
        self.wait();
        arrived();
    }

    /// Gives the baton to the first thread.
    pub fn first(&'static self) {
        CARRIER.store(self.ptr(), Ordering::Relaxed);
        self.wake();
    }

    /// Gives the baton to `to`; returns when it comes back.
    pub fn hand_to(&'static self, to: &'static Slot) {
        self.cross(to);
        arrived();
    }

    /// Gives the baton to `to` for good; returns in this thread's own real thread, which is to end.
    pub fn end(&'static self, to: &'static Slot) {
        let own = std::ptr::eq(CARRIER.load(Ordering::Relaxed), self);
        if own || !is_quick() {
            CARRIER.store(to.ptr(), Ordering::Relaxed);
            to.wake();
        } else {
            ENDED.store(self.ptr(), Ordering::Relaxed);
            self.cross(to);
        }
    }

    /// Waits for ever.
    pub fn park() -> ! {
        let never = AtomicU32::new(0);
        loop {
            real::futex_wait(&never, 0, 0);
        }
    }

    fn cross(&'static self, to: &'static Slot) {
        if !is_quick() {
            to.wake();
            return self.wait();
        }
        // SAFETY: we have the baton; `to` has left its registers, or its real thread waits for the first time.
        unsafe {
            if (*to.saved.get()).is_null() {
                swap::leave(self, to, CARRIER.swap(to.ptr(), Ordering::Relaxed));
            } else {
                swap::switch(self, to);
            }
        }
    }
}

/// Whoever is given the baton.
fn arrived() {
    let ended = ENDED.swap(null_mut(), Ordering::Relaxed);
    // SAFETY: slots are never freed.
    if let Some(s) = unsafe { ended.as_ref() } {
        s.wake();
    }
}

#[cfg(target_arch = "x86_64")]
mod swap {
    use super::Slot;
    use std::arch::naked_asm;
    use std::mem::offset_of;

    /// Bit of the kernel's word on what programs may do: the base of thread-local values may be set without it.
    const FSGSBASE: u64 = 1 << 1;

    pub fn can() -> bool {
        // SAFETY: asks what the kernel told this process when it began.
        unsafe { libc::getauxval(libc::AT_HWCAP2) & FSGSBASE != 0 }
    }

    /// Pushes what a function must keep, and the base of thread-local values.
    macro_rules! save {
        () => {
            "push rbp; push rbx; push r12; push r13; push r14; push r15; rdfsbase rax; push rax; mov [rdi + {saved}], rsp"
        };
    }

    /// The way back: as another thread.
    macro_rules! load {
        () => {
            "pop rax; wrfsbase rax; pop r15; pop r14; pop r13; pop r12; pop rbx; pop rbp; ret"
        };
    }

    /// Leaves the registers of `from` and goes on with those that `to` left.
    #[unsafe(naked)]
    pub unsafe extern "C" fn switch(from: *const Slot, to: *const Slot) {
        naked_asm!(save!(), "mov rsp, [rsi + {saved}]", load!(), saved = const offset_of!(Slot, saved))
    }

    /// Leaves the registers of `from`, wakes the real thread of `to`, and sleeps until that of `carrier`, which is this one, is
    /// woken; goes on with those that `carrier` left then. The stack of `from` may be in use again as soon as `to` runs: from then on
    /// there is no stack.
    #[unsafe(naked)]
    pub unsafe extern "C" fn leave(from: *const Slot, to: *const Slot, carrier: *const Slot) {
        naked_asm!(
            save!(),
            "mov r12, rdx",
            "mov dword ptr [rsi + {word}], 1",
            "lea rdi, [rsi + {word}]",
            "mov esi, {wake}",
            "mov edx, 1",
            "xor r10d, r10d",
            "mov eax, {futex}",
            "syscall",
            "2:",
            "xor eax, eax",
            "xchg [r12 + {word}], eax",
            "test eax, eax",
            "jnz 3f",
            "lea rdi, [r12 + {word}]",
            "mov esi, {wait}",
            "xor edx, edx",
            "xor r10d, r10d",
            "mov eax, {futex}",
            "syscall",
            "jmp 2b",
            "3:",
            "mov rsp, [r12 + {saved}]",
            load!(),
            word = const offset_of!(Slot, word),
            saved = const offset_of!(Slot, saved),
            futex = const libc::SYS_futex,
            wake = const libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
            wait = const libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
        )
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod swap {
    use super::Slot;

    pub fn can() -> bool {
        false
    }

    pub unsafe fn switch(_: *const Slot, _: *const Slot) {
        unreachable!()
    }

    pub unsafe fn leave(_: *const Slot, _: *const Slot, _: *const Slot) {
        unreachable!()
    }
}
