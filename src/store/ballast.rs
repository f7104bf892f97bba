//! Room kept for kagami's own records: on a full disk an operation that has changed the tree can still be recorded, and
//! files can still be removed (G8).

use crate::os::sys;
use std::path::{Path, PathBuf};

/// Bytes kept.
const BYTES: u64 = 4 << 20;

/// A file that gives its room away when records need it.
pub struct Ballast {
    path: PathBuf,
    here: bool,
}

impl Ballast {
    /// In a metadata directory; kept if there is room for it.
    pub fn open(dir: &Path) -> Ballast {
        let mut b = Ballast { path: dir.join("ballast"), here: false };
        b.keep();
        b
    }

    /// True when the room is kept; tries to get it back if not.
    pub fn keep(&mut self) -> bool {
        if !self.here {
            let file = std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(&self.path);
            self.here = file.is_ok_and(|f| sys::fallocate(&f, 0, 0, BYTES).is_ok());
            if !self.here {
                let _ = std::fs::remove_file(&self.path);
            }
        }
        self.here
    }

    /// Gives the room away. False when there was none.
    pub fn give(&mut self) -> bool {
        std::mem::take(&mut self.here) && std::fs::remove_file(&self.path).is_ok()
    }
}
