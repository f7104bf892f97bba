//! From a volume to running applications: what the environment file names, what the site allows, and who keeps it running.
//!
//! ```text
//! environment file ──▶ application definitions ──▶ allowed by the site file? ──▶ supervisor
//!
//! supervisor (a thread of the node) ──socket── guard (a process for each application) ──── application
//!   supervise: decides, purely           adopts what the application forks, writes its log, ends all
//!                                        of it by order, or when the socket closes: the node is gone
//! ```

pub mod app;
pub mod apps;
pub mod boot;
pub mod define;
pub mod env;
pub mod files;
pub mod guard;
mod output;
pub mod plan;
pub mod policy;
pub mod process;
pub mod ready;
pub mod service;
pub mod supervise;
#[cfg(test)]
mod supervise_tests;
pub mod supervisor;
pub mod survey;
mod words;
