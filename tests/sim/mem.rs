//! Memory of simulated threads, at addresses that only depend on what was asked for before: locks are found by their
//! address, so a replay needs them at the same ones. Only who has the baton uses it, so it has no lock. All other threads get
//! the C library's memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::collections::BTreeMap;
use std::ptr::null_mut;

/// Where it begins.
const START: usize = 0x1000_0000_0000;
/// Its size, bytes; only what was touched is real memory.
const SIZE: usize = 64 << 30;
/// Where their stacks begin, and the room for them, bytes.
const STACKS: usize = 0x2000_0000_0000;
const STACKS_SIZE: usize = 256 << 30;
/// Size classes: 4 for each power of two, from 16 bytes on.
const CLASSES: usize = 4 * 36;
/// What a stack has beside what was asked for, bytes: thread-local values lie there too.
const STACK_MORE: usize = 64 << 10;
/// What a thread that ends may still need of its stack, bytes.
const STACK_LAST: usize = 32 << 10;
/// A page, bytes. Blocks whose size is a power of two are at boundaries of it, up to those of pages.
pub const PAGE: usize = 4096;

struct Heap {
    next: usize,
    end: usize,
    free: [usize; CLASSES],
}

struct Memory(UnsafeCell<Heap>);

// SAFETY: only a thread that has the baton comes here, and there is one baton.
unsafe impl Sync for Memory {}

static MEMORY: Memory = Memory(UnsafeCell::new(Heap { next: 0, end: 0, free: [0; CLASSES] }));

/// Reserves the addresses. Called once, before the first simulated thread.
pub fn reserve() {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: a new mapping at addresses that nothing has yet; the result is checked.
    let p = unsafe { libc::mmap64(START as *mut _, SIZE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    assert_eq!(p as usize, START, "no addresses for the memory of simulated threads");
    // SAFETY: the mapping just made. A kernel without huge pages refuses, and nothing is lost: a seed touches a few thousand pages.
    unsafe { libc::madvise(p, SIZE, libc::MADV_HUGEPAGE) };
    // SAFETY: there is no simulated thread yet.
    let h = unsafe { &mut *MEMORY.0.get() };
    (h.next, h.end) = (START, START + SIZE);
    // SAFETY: as above.
    let p = unsafe { libc::mmap64(STACKS as *mut _, STACKS_SIZE, libc::PROT_NONE, flags, -1, 0) };
    assert_eq!(p as usize, STACKS, "no addresses for the stacks of simulated threads");
}

/// Stacks, at addresses that only depend on the order in which threads were made and joined: std keeps a table of threads by
/// an address in theirs.
pub struct Stacks {
    next: usize,
    free: BTreeMap<usize, Vec<usize>>,
}

impl Stacks {
    pub fn new() -> Stacks {
        Stacks { next: STACKS, free: BTreeMap::new() }
    }

    /// Memory for a stack of `size` bytes at least, below which a page is never mapped: its address and size.
    pub fn take(&mut self, size: usize) -> (usize, usize) {
        let size = (size + STACK_MORE).next_multiple_of(PAGE);
        if let Some(at) = self.free.get_mut(&size).and_then(Vec::pop) {
            return (at, size);
        }
        let at = self.next + PAGE;
        self.next = at + size;
        assert!(self.next <= STACKS + STACKS_SIZE, "more stacks than there are addresses for");
        // SAFETY: a part of the reserved range that nobody has.
        let r = unsafe { libc::mprotect(at as *mut _, size, libc::PROT_READ | libc::PROT_WRITE) };
        assert_eq!(r, 0, "no memory for a stack");
        (at, size)
    }

    /// The thread of a stack has ended and was joined.
    pub fn give_back(&mut self, (at, size): (usize, usize)) {
        self.free.entry(size).or_default().push(at);
    }
}

/// Gives the pages of a stack back that are below what its own thread, which is about to end, still uses.
pub fn shrink((at, _): (usize, usize)) {
    let here = 0u8;
    let end = (&raw const here as usize).saturating_sub(STACK_LAST) / PAGE * PAGE;
    if end > at {
        // SAFETY: nothing below the thread's own frames is in use; what is still to be called fits what is left.
        unsafe { libc::madvise(at as *mut _, end - at, libc::MADV_DONTNEED) };
    }
}

/// True for memory that simulated threads got.
pub fn is_ours(p: *const u8) -> bool {
    (START..START + SIZE).contains(&(p as usize))
}

/// The class that holds `size` bytes, and its size.
fn class(size: usize) -> (usize, usize) {
    let size = size.max(16);
    let top = usize::BITS as usize - 1 - (size - 1).max(1).leading_zeros() as usize;
    if size <= 16 {
        return (0, 16);
    }
    // size is in (2^top, 2^(top+1)]: a quarter at a time.
    let step = (1usize << top) / 4;
    let quarter = (size - (1 << top)).div_ceil(step);
    ((top - 4) * 4 + quarter, (1 << top) + quarter * step)
}

fn wanted(l: Layout) -> usize {
    if l.align() <= 16 { l.size().div_ceil(16) * 16 } else { l.size().max(l.align()).next_power_of_two() }
}

impl Heap {
    /// A block, and whether it is all zeroes.
    fn take(&mut self, l: Layout) -> (*mut u8, bool) {
        let (c, size) = class(wanted(l));
        let size = size.div_ceil(16) * 16;
        if let Some(head) = self.free.get_mut(c).filter(|h| **h != 0) {
            let p = *head as *mut u8;
            // SAFETY: a free block of ours holds the address of the next one.
            *head = unsafe { *p.cast::<usize>() };
            return (p, false);
        }
        let align = if size.is_power_of_two() { size.min(PAGE) } else { 16 };
        let at = self.next.next_multiple_of(align);
        if c >= CLASSES || at + size > self.end {
            return (null_mut(), false);
        }
        self.next = at + size;
        (at as *mut u8, true)
    }
}

/// The allocator of this program.
pub struct Alloc;

// SAFETY: blocks are aligned and disjoint (see `take`); what is not ours goes to the system's allocator and back to it.
unsafe impl GlobalAlloc for Alloc {
    unsafe fn alloc(&self, l: Layout) -> *mut u8 {
        if !super::sched::has_baton() {
            // SAFETY: as our caller promises.
            return unsafe { System.alloc(l) };
        }
        // SAFETY: we have the baton.
        unsafe { (*MEMORY.0.get()).take(l).0 }
    }

    unsafe fn alloc_zeroed(&self, l: Layout) -> *mut u8 {
        if !super::sched::has_baton() {
            // SAFETY: as our caller promises.
            return unsafe { System.alloc_zeroed(l) };
        }
        // SAFETY: we have the baton; the block has room for the size.
        unsafe {
            let (p, zeroes) = (*MEMORY.0.get()).take(l);
            if !p.is_null() && !zeroes {
                p.write_bytes(0, l.size());
            }
            p
        }
    }

    unsafe fn dealloc(&self, p: *mut u8, l: Layout) {
        if !is_ours(p) {
            // SAFETY: it came from there.
            return unsafe { System.dealloc(p, l) };
        }
        // A thread that has ended, or was never simulated, gives nothing back: that would need a lock.
        if !super::sched::has_baton() {
            return;
        }
        let (c, _) = class(wanted(l));
        // SAFETY: we have the baton; the block is free and has room for an address.
        unsafe {
            let head = &mut (*MEMORY.0.get()).free[c];
            *p.cast::<usize>() = *head;
            *head = p as usize;
        }
    }

    unsafe fn realloc(&self, p: *mut u8, l: Layout, size: usize) -> *mut u8 {
        // SAFETY: as our caller promises.
        unsafe {
            let new = Layout::from_size_align_unchecked(size, l.align());
            if is_ours(p) && class(wanted(l)).0 == class(wanted(new)).0 {
                return p;
            }
            if !is_ours(p) && !super::sched::has_baton() {
                return System.realloc(p, l, size);
            }
            let to = self.alloc(new);
            if !to.is_null() {
                to.copy_from_nonoverlapping(p, l.size().min(size));
                self.dealloc(p, l);
            }
            to
        }
    }
}
