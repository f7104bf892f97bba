//! Which errors are no fault of what was to be done.

use crate::base::{Error, Kind};

/// Errors of a drive, not of what was to be done.
pub fn is_drive(e: &Error) -> bool {
    matches!(e.errno, libc::EIO | libc::EROFS | libc::ENODEV | libc::ENXIO | libc::EUCLEAN) && e.kind == Kind::Failed
}

/// Room is missing.
pub fn is_full(e: &Error) -> bool {
    matches!(e.errno, libc::ENOSPC | libc::EDQUOT) && e.kind == Kind::Failed
}

/// Descriptors or memory are missing: as with room, what was to be done can be done later.
pub fn is_scarce(e: &Error) -> bool {
    matches!(e.errno, libc::EMFILE | libc::ENFILE | libc::ENOMEM) && e.kind == Kind::Failed
}

/// What there is none of, for people: how applying or a peer waits for it.
pub fn missing(e: &Error) -> &'static str {
    if is_scarce(e) { "no descriptors or memory to be had" } else { "needs-space: full" }
}
