//! Procedures over all sites of a group, as data: a recipe is a list of named steps ([`recipe`]), a plan says of each
//! whether it is done, next, later or not needed, from nothing but what is observed ([`mod@plan`]), and the executor
//! carries out the next one until it is seen to be done ([`run`]). Nothing is noted anywhere, so a procedure that was
//! interrupted goes on when it is ordered again (MS-10 to MS-15, MS-22, MS-24).
//!
//! `docs/PROCEDURES.md` is [`recipe::markdown`]'s text; a test compares them.

pub mod plan;
#[cfg(test)]
mod plan_tests;
pub mod recipe;
pub mod run;

pub use plan::{Options, Order, Plan, State, Step, View, plan};
pub use recipe::{Kind, Recipe};
