//! A page shared with a file: stores to it survive kill -9 of the process without any system call.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// A writable shared mapping of the first `len` bytes of a file.
pub struct Page {
    ptr: *mut u8,
    len: usize,
    watched: Option<usize>,
}

/// Tells whether the drive below a page took a store no more: what is stored since is not kept.
#[derive(Clone, Copy, Debug)]
pub struct Watched(Option<usize>);

impl Watched {
    /// True when that happened.
    pub fn lost(&self) -> bool {
        self.0.is_some_and(super::bus::lost)
    }
}

// SAFETY: the mapping belongs to this value alone; access goes through &self/&mut self like any buffer.
unsafe impl Send for Page {}
// SAFETY: shared access only reads; writing needs &mut self.
unsafe impl Sync for Page {}

impl Page {
    /// Maps `len` bytes of `file`, which must be at least that long.
    pub fn map(file: &File, len: usize) -> io::Result<Page> {
        if file.metadata()?.len() < len as u64 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        // SAFETY: a fresh shared mapping of a file we own; the length was checked, the result is checked below.
        let p = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if p == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Page { ptr: p.cast(), len, watched: super::bus::watch(p as usize, len) })
    }

    /// What tells whether the drive below still takes stores, for as long as the page is mapped.
    pub fn watched(&self) -> Watched {
        Watched(self.watched)
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: ptr..ptr+len is mapped for the life of self.
        unsafe { std::slice::from_raw_parts(self.ptr, self.len) }
    }

    /// The bytes, writable.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and &mut self excludes other access through this value.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.len) }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.watched.into_iter().for_each(super::bus::unwatch);
        // SAFETY: unmaps exactly what `map` mapped; no reference outlives self.
        unsafe { libc::munmap(self.ptr.cast(), self.len) };
    }
}

impl Page {
    /// Stores a number at an 8-byte aligned offset, not before anything stored earlier.
    pub fn store_u64(&self, off: usize, v: u64) {
        assert!(off.is_multiple_of(8) && off + 8 <= self.len, "page offset {off}");
        // SAFETY: in bounds and aligned (asserted; mappings are page-aligned); atomics may share memory with a file.
        unsafe { std::sync::atomic::AtomicU64::from_ptr(self.ptr.add(off).cast()) }
            .store(v, std::sync::atomic::Ordering::Release);
    }

    /// Loads a number from an 8-byte aligned offset.
    pub fn load_u64(&self, off: usize) -> u64 {
        assert!(off.is_multiple_of(8) && off + 8 <= self.len, "page offset {off}");
        // SAFETY: as in store_u64.
        unsafe { std::sync::atomic::AtomicU64::from_ptr(self.ptr.add(off).cast()) }
            .load(std::sync::atomic::Ordering::Acquire)
    }
}
