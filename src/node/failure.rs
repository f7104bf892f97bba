//! Why a session with a secondary ends, and what that is for the state of its pair.

use super::pairs::Pair;
use crate::base::{Error, Kind};
use crate::pair::state::Reason;

/// Why a session failed, with the fault for the pair's state.
pub struct Failure {
    /// For the state table.
    pub reason: Reason,
    /// For people.
    pub error: Error,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let reason = match error.kind {
            Kind::Refused => Reason::PeerRefused,
            Kind::Timeout => Reason::ProgressTimeout,
            _ => Reason::LinkLost,
        };
        Failure { reason, error }
    }
}

/// `Result` of a session's steps.
pub type Step<T> = std::result::Result<T, Failure>;

/// Ends a session's step.
pub(super) fn failed<T>(reason: Reason, error: Error) -> Step<T> {
    Err(Failure { reason, error })
}

/// The fault that a peer's words tell of.
pub(super) fn fault_of(why: &str) -> Reason {
    if why.contains("needs-space") { Reason::Full } else { Reason::RemoteFault }
}

/// What the operator has to decide after a split brain.
pub(super) fn split_brain(group: &str, pair: &Pair) -> String {
    format!(
        "site {} and this one were both primary and were both written to: say whose version is kept, here or there (`kagami pair resync {group} {} --keep SITE`); what the other one changed goes to its manifest",
        pair.peer, pair.name
    )
}
