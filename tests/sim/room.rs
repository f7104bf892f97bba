//! The simulated machine room, as the rest of the simulation sees it.

pub use super::net::Net;
pub use super::sched::*;
