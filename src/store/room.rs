//! Room on disk for records that must not fail: what is written down after a change was made.

use crate::os::sys;
use std::fs::File;
use std::io;

/// Reserved at a time, bytes.
const STEP_BYTES: u64 = 256 << 10;
/// fallocate(2): the file's size stays.
const KEEP_SIZE: u32 = 1;

/// What is reserved in an append-only file beyond its end.
#[derive(Default)]
pub struct Room {
    /// Reserved up to here, bytes from the start of the file.
    upto: u64,
}

impl Room {
    /// Makes sure that `need` bytes after `used` can be written. Error (ENOSPC, EDQUOT): the disk is full, and nothing
    /// was changed. A filesystem without fallocate promises nothing, and is believed.
    pub fn ensure(&mut self, file: &File, used: u64, need: u64) -> io::Result<()> {
        if used.saturating_add(need) <= self.upto {
            return Ok(());
        }
        let mut len = need + STEP_BYTES;
        let mut r = sys::fallocate(file, KEEP_SIZE, used, len);
        if r.as_ref().is_err_and(|e| matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))) {
            len = need;
            r = sys::fallocate(file, KEEP_SIZE, used, len);
        }
        match r {
            Ok(()) => self.upto = used + len,
            Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) => self.upto = u64::MAX,
            Err(e) => return Err(e),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reserved_is_beyond_the_end() {
        let f = tempfile::tempfile().unwrap();
        let mut r = Room::default();
        r.ensure(&f, 10, 100).unwrap();
        assert_eq!(f.metadata().unwrap().len(), 0);
        let upto = r.upto;
        assert!(upto >= 110);
        r.ensure(&f, upto - 100, 100).unwrap();
        assert_eq!(r.upto, upto);
        r.ensure(&f, upto - 100, 101).unwrap();
        assert!(r.upto > upto);
    }
}
