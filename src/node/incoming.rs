//! What can be at the receiving end of a link: a group at a secondary site, or a further leg of a mirror group.

use super::heard::Heard;
use crate::base::{Epoch, Result, Seq};
use crate::format::msg::{Hello, RejectCode};
use crate::net::Closer;
use crate::pair::chain::Chain;
use crate::store::receive::Receiver;
use std::sync::Arc;

/// What a greeting leads to.
pub enum Admission {
    /// Serve it with this receiver.
    Secondary(Arc<Receiver>),
    /// Refuse it.
    Refuse {
        /// Why.
        code: RejectCode,
        /// For people.
        text: String,
        /// Our epochs.
        chain: Vec<Epoch>,
        /// Our position.
        head: Seq,
    },
}

impl Admission {
    /// A refusal that has nothing to do with epochs.
    pub fn refuse(code: RejectCode, text: impl Into<String>) -> Admission {
        Admission::Refuse { code, text: text.into(), chain: Vec::new(), head: Seq(0) }
    }
}

/// The receiving end.
pub trait Incoming: Send + Sync {
    /// Its site, for messages.
    fn site(&self) -> &str;
    /// Its group.
    fn group(&self) -> &str;
    /// Decides on a greeting.
    fn admit(&self, hello: &Hello, theirs: &Chain, closer: &Closer) -> Admission;
    /// Carries out an order about roles.
    fn ordered(&self, hello: &Hello, theirs: &Chain) -> Result<()>;
    /// Its receiver, for a look that changes nothing; `None` where it is not secondary.
    fn receiver(&self) -> Option<Arc<Receiver>>;
    /// How it stands, for another site: its status as JSON.
    fn standing(&self) -> Result<Vec<u8>>;
    /// The primary told its position.
    fn heard(&self, word: Heard);
}
