//! Memory that stands for the first pages of a mapped file.

use super::data::PAGE;
use std::alloc::{Layout, alloc_zeroed};

/// A block of whole pages at a page's boundary. It is never given back: a machine that was killed may have threads that
/// hold its address.
pub struct Map {
    at: *mut u8,
    pages: u64,
}

// SAFETY: the block belongs to nobody else in the sense of Rust; simulated threads store to it only while they have the
// baton, and the disk is used only by the one that has it.
unsafe impl Send for Map {}

impl Map {
    /// A block of zeroes.
    pub fn new(pages: u64) -> Map {
        let pages = pages.max(1);
        let layout = Layout::from_size_align(pages as usize * PAGE, PAGE).expect("a map that fits into memory");
        // SAFETY: the layout is not empty; the result is checked.
        let at = unsafe { alloc_zeroed(layout) };
        assert!(!at.is_null(), "no memory for a map of {pages} pages");
        Map { at, pages }
    }

    /// Where it begins.
    pub fn address(&self) -> *mut u8 {
        self.at
    }

    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// The bytes of a page of it.
    pub fn page(&self, n: u64) -> &[u8; PAGE] {
        assert!(n < self.pages);
        // SAFETY: within the block, which lives for ever; see `Send` for who stores to it.
        unsafe { &*self.at.add(n as usize * PAGE).cast() }
    }

    pub fn page_mut(&mut self, n: u64) -> &mut [u8; PAGE] {
        assert!(n < self.pages);
        // SAFETY: as in `page`, and `&mut self` keeps the disk's other references away.
        unsafe { &mut *self.at.add(n as usize * PAGE).cast() }
    }
}
