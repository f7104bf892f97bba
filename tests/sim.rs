//! The deterministic simulation: unmodified nodes in a simulated machine room. This program defines the C library's functions
//! of files, sockets, threads and time itself, so that what nodes do in simulated threads goes to a simulated disk, network,
//! clock and scheduler; everything is drawn from a seed, and the same seed gives the same run.

#[path = "sim/calls/mod.rs"]
mod calls;
#[path = "sim/chart.rs"]
mod chart;
#[path = "sim/client.rs"]
mod client;
#[path = "sim/disk/mod.rs"]
mod disk;
#[path = "sim/faults.rs"]
mod faults;
#[path = "sim/files/mod.rs"]
mod files;
#[path = "sim/harness.rs"]
mod harness;
#[path = "sim/mem.rs"]
mod mem;
#[path = "sim/model.rs"]
mod model;
#[path = "sim/mounts.rs"]
mod mounts;
#[path = "sim/net/mod.rs"]
mod net;
#[path = "sim/oracle.rs"]
mod oracle;
#[path = "sim/planting.rs"]
mod planting;
#[path = "sim/points.rs"]
mod points;
#[path = "sim/real.rs"]
mod real;
#[path = "sim/rng.rs"]
mod rng;
#[path = "sim/room.rs"]
mod room;
#[path = "sim/scenario.rs"]
mod scenario;
#[path = "sim/sched/mod.rs"]
mod sched;
#[path = "sim/seeds.rs"]
mod seeds;
#[path = "sim/selftest/mod.rs"]
mod selftest;
#[path = "sim/shared.rs"]
mod shared;
#[path = "sim/steps.rs"]
mod steps;
#[path = "sim/suite.rs"]
mod suite;
#[path = "sim/world.rs"]
mod world;

#[global_allocator]
static ALLOC: mem::Alloc = mem::Alloc;

fn main() {
    harness::same_addresses();
    let tests = [selftest::all(), suite::tests()].concat();
    std::process::exit(harness::run(&tests));
}
