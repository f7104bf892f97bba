//! The only unsafe code: system calls relative to directory descriptors, with Rust types.
//!
//! Names are single path components (checked by the callers' types); symlinks are never followed.

pub mod beneath;
pub mod bus;
pub mod close;
pub mod map;
pub mod mountfd;
pub mod process;
pub mod rights;
pub mod sock;
pub mod sys;
pub mod times;
pub mod user;
