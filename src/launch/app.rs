//! One application as its definition file in a volume describes it (CD-7, CD-8).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// How it is known that an application can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ready {
    /// As soon as its process runs.
    Started,
    /// This command, run again and again, exits with 0.
    Command(Vec<String>),
    /// `HOST:PORT` accepts a connection.
    Tcp(String),
    /// This file exists and was made since the start.
    File(PathBuf),
}

/// How an application is told to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A signal to the main process, by number.
    Signal(i32),
    /// A command, run to its end.
    Command(Vec<String>),
}

/// When an application is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// Whenever it ends.
    Always,
    /// When it ends with a code other than 0 or by a signal.
    OnFailure,
    /// Never.
    Never,
}

/// An application, checked: every name is resolved, every variable substituted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct App {
    /// Its name, unique in the group.
    pub name: String,
    /// Program, absolute.
    pub command: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Working directory, absolute.
    pub dir: PathBuf,
    /// User it runs as; `None`: the node's own.
    pub user: Option<String>,
    /// Its environment, beside what every process of its user has.
    pub env: BTreeMap<String, String>,
    /// Applications that must be ready before it starts.
    pub after: Vec<String>,
    /// When it counts as ready.
    pub ready: Ready,
    /// How long that may take.
    pub ready_timeout: Duration,
    /// How it is ended.
    pub stop: Stop,
    /// How long that may take before its processes are killed.
    pub stop_timeout: Duration,
    /// When it is started again.
    pub restart: Restart,
    /// Where it is written: `FILE:LINE`, for messages.
    pub source: String,
}
