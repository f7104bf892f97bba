//! The process of a site: its site file, control socket, regions and peers.

pub mod config;
pub mod config_check;
mod config_source;
mod config_text;
pub mod control;
mod copying;
mod first_copy;
pub mod pairs;
mod resync;
mod session;
mod source;
pub mod status;
mod tell;

use crate::base::{Error, Result};

/// How `kagami node` was started. (The pid file and the log are the command line's business.)
#[derive(Clone, Debug, Default)]
pub struct Options {}

/// Runs the node of this site file until SIGTERM, SIGINT or the command `Stop`.
pub fn run(_config: config::Config, _options: Options) -> Result<()> {
    Err(Error::failed("the node is not built in yet"))
}

#[cfg(test)]
mod config_tests;
#[cfg(test)]
mod control_tests;
