//! What a site that is or wants to be primary asks of a voter, and what it answers. See `pair::vote`.

use crate::base::Site;
use bincode::{Decode, Encode};

/// What one site asks of a voter.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Ask {
    /// Who asks.
    pub site: Site,
    /// Its reign, or the one it stands for.
    pub term: u64,
    /// Counts its questions within the term: an older one that comes late changes nothing.
    pub number: u64,
    /// Whether the other end of the sync pair has everything that was answered; `None`: as the voter has it.
    pub fit: Option<bool>,
    /// What is wanted.
    pub want: Want,
}

/// What is wanted of a voter.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Want {
    /// Its vote, by who is primary. `backed`: both other voters support it.
    Lead {
        /// See above.
        backed: bool,
        /// By order of the operator, who vouches that no other primary runs.
        forced: bool,
    },
    /// Its vote, by who is to be primary once a majority supports it.
    Stand,
    /// Nothing more: it may be given to anybody who is entitled, and to this site in any case.
    Release(Option<Site>),
}

/// What a voter answers.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Answer {
    /// Yes, for the length of a vote; what the voter has of the other end is durable.
    Granted {
        /// It has everything that was answered.
        fit: bool,
    },
    /// Another site has the vote for so long.
    Held {
        /// Who.
        by: Site,
        /// How long at most, milliseconds.
        left_ms: u64,
    },
    /// The last primary went on without the site that asks, or never had it equal: it lacks what was answered.
    Stale {
        /// That primary.
        holder: Site,
    },
    /// The voter knows this later term.
    Old {
        /// The term.
        term: u64,
    },
    /// The voter has never seen a primary of this group, and so cannot say who may follow it.
    Blank,
}
