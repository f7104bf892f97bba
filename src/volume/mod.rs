//! The mirror group: what a mounted volume is made of. Ordering, replication, objects known to the kernel.

pub mod group;
pub mod order;
pub mod queue;
