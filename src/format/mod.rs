//! Bytes only: frames, entries, messages, file headers. The one home of bincode.

pub mod codec;
pub mod file;
pub mod frame;
pub mod loss;
pub mod msg;
pub mod op;
pub mod vote;
