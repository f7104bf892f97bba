//! One error type: what went wrong, what to do about it, which errno the kernel gets and which exit code the shell gets.

use std::fmt;

/// What sort of failure; decides the exit code and the log level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The operation failed (exit 1).
    Failed,
    /// Wrong usage or configuration (exit 2).
    Config,
    /// A wait ran out (exit 3).
    Timeout,
    /// Refused for safety; `--force` may override (exit 4).
    Refused,
    /// Done, but something is degraded (exit 5).
    Degraded,
    /// Bytes that are not what they must be: bad magic, CRC, length or value (exit 1, G7).
    Corrupt,
    /// The peer went away or the link broke (exit 1).
    Link,
}

/// An error with errno, kind and a message that says what to do.
#[derive(Debug, Clone)]
pub struct Error {
    /// What sort of failure.
    pub kind: Kind,
    /// The errno for the kernel (`EIO` where nothing better is known).
    pub errno: i32,
    /// Message for people.
    pub msg: String,
}

/// kagami's result.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of a kind, with `EIO` for the kernel.
    pub fn new(kind: Kind, msg: impl Into<String>) -> Error {
        Error { kind, errno: 5, msg: msg.into() }
    }
    /// The operation failed.
    pub fn failed(msg: impl Into<String>) -> Error {
        Error::new(Kind::Failed, msg)
    }
    /// Wrong usage or configuration.
    pub fn config(msg: impl Into<String>) -> Error {
        Error::new(Kind::Config, msg)
    }
    /// Refused for safety.
    pub fn refused(msg: impl Into<String>) -> Error {
        Error::new(Kind::Refused, msg)
    }
    /// Corrupt bytes.
    pub fn corrupt(msg: impl Into<String>) -> Error {
        Error::new(Kind::Corrupt, msg)
    }
    /// The link is gone.
    pub fn link(msg: impl Into<String>) -> Error {
        Error::new(Kind::Link, msg)
    }
    /// An errno alone (as from a system call).
    pub fn os(errno: i32) -> Error {
        Error { kind: Kind::Failed, errno, msg: std::io::Error::from_raw_os_error(errno).to_string() }
    }
    /// The same error with words in front: "opening X: …".
    pub fn context(mut self, what: impl fmt::Display) -> Error {
        self.msg = format!("{what}: {}", self.msg);
        self
    }
    /// The exit code a command ends with: 1 failed, 2 usage/config, 3 timeout, 4 refused, 5 degraded.
    pub fn exit_code(&self) -> i32 {
        match self.kind {
            Kind::Failed | Kind::Corrupt | Kind::Link => 1,
            Kind::Config => 2,
            Kind::Timeout => 3,
            Kind::Refused => 4,
            Kind::Degraded => 5,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(e: std::io::Error) -> Error {
        Error { kind: Kind::Failed, errno: e.raw_os_error().unwrap_or(5), msg: e.to_string() }
    }
}

/// `result.at("doing X")`: adds context to any error that can become [`Error`].
pub trait At<T> {
    /// Puts `what: ` in front of the error's message.
    fn at(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: Into<Error>> At<T> for std::result::Result<T, E> {
    fn at(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|e| e.into().context(what))
    }
}
