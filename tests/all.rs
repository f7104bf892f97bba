//! The tests of the real program: real processes, mounts, namespaces and databases. One program, so that what they share is
//! compiled and linked once, and so that those that wait run beside those that work.
//!
//! `cargo test --test all resync::` runs the tests of `resync.rs`.

mod arbiter;
mod beside;
mod boot;
mod capacity;
mod cli;
mod conformance;
mod crash;
mod errors;
mod examples;
mod export;
mod fence;
mod floors;
mod golden;
mod head;
mod horcm;
mod hostile;
mod kit;
mod launch;
mod legs;
mod loss;
mod matrix;
mod metrics;
mod mirror;
mod model;
mod mount_helper;
mod mount_local;
mod package;
mod power;
mod procedures;
mod programs;
mod realfaults;
mod resync;
mod runbooks;
mod seed;
mod supervise;
mod support;
mod tables;
mod topologies;
mod verify;
