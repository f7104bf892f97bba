//! What is said to and by the machine of [`super::supervise`].

use crate::os::process::End;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// Where an application stands, by its name for people and programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StateName {
    /// Not started: something it comes after is not ready.
    Waiting,
    /// Started, not known to be ready.
    Starting,
    /// In use.
    Ready,
    /// Told to end, or being killed.
    Stopping,
    /// Not running, as it should be.
    Stopped,
    /// Ended by itself; it is started again after a pause.
    BackingOff,
    /// Ended too often; not started again.
    CrashLooping,
    /// Could not be started, was not ready in time, or ended with an error and is not to be started again.
    Failed,
}

impl fmt::Display for StateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StateName::Waiting => "waiting",
            StateName::Starting => "starting",
            StateName::Ready => "ready",
            StateName::Stopping => "stopping",
            StateName::Stopped => "stopped",
            StateName::BackingOff => "backing off",
            StateName::CrashLooping => "crash-looping",
            StateName::Failed => "failed",
        })
    }
}

/// What a person orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Start it, also after it failed.
    Start,
    /// Stop it; it stays stopped.
    Stop,
    /// Stop it and start it again.
    Restart,
}

/// What happened. Applications go by their number in the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Time passed.
    Tick,
    /// Something about one run of an application; what comes from an earlier run is no news.
    App {
        /// Which.
        app: usize,
        /// The run: as [`Effect::Start`] named it.
        run: u64,
        /// What.
        news: News,
    },
    /// A person's order.
    Order {
        /// Which.
        app: usize,
        /// What.
        order: Order,
    },
    /// Stop everything for good, at the latest by this time.
    StopAll {
        /// On the same clock as `now`.
        by: Duration,
    },
}

/// News of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Its first process runs.
    Started(i32),
    /// It could not be started.
    StartFailed(String),
    /// The answer to [`Effect::Ask`].
    Answer(std::result::Result<(), String>),
    /// Its first process ended.
    Ended {
        /// How.
        end: End,
        /// Others of it live.
        left: bool,
    },
    /// Its stop command ended.
    StopCommand(std::result::Result<(), String>),
    /// Nothing of it lives.
    Gone,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Start it.
    Start {
        /// Which.
        app: usize,
        /// Number of this run.
        run: u64,
    },
    /// Ask whether it is ready.
    Ask(usize),
    /// Send this signal to its first process; when that has ended, to all it left.
    Signal(usize, i32),
    /// Run its stop command.
    StopCommand(usize),
    /// Kill all of it.
    Kill(usize),
    /// End a question and a stop command that are still on their way.
    EndHelpers(usize),
    /// Its state changed: tell people.
    Report(usize),
}

/// How everything was stopped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// Applications that did not end in their time and were killed.
    pub killed: Vec<String>,
    /// Applications of which something still lives.
    pub left: Vec<String>,
}

/// One application at a time, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Where it stands.
    pub state: StateName,
    /// Since when.
    pub since: Duration,
    /// Its first process, while that runs.
    pub pid: Option<i32>,
    /// Starts after it had ended by itself.
    pub restarts: u64,
    /// Why, and what is waited for.
    pub reason: String,
}
