//! Pure decisions: pair states and their one transition table, epoch chains, the resync plan. No I/O, no clocks, no threads.

pub mod chain;
pub mod change;
pub mod equal;
pub mod horcm;
pub mod plan;
mod plan_build;
mod plan_sim;
pub mod plan_state;
pub mod ranges;
pub mod state;
pub mod vote;
