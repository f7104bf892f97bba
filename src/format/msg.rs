//! Control messages between nodes.
