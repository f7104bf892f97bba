//! What a line between two machines does to what it carries.

use crate::rng::Rng;
use crate::sched::{HOST, MachineId};

/// How long a line takes, ns, unless it is said: from, to.
pub const LATENCY_NS: (u64, u64) = (20_000, 200_000);
/// More than that when it reorders: what is sent later on another connection comes first.
const REORDER_NS: u64 = 30_000_000;

/// A line in one direction.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// How long it takes, drawn for each send: from, to.
    pub latency_ns: (u64, u64),
    /// Bytes per second; 0: as many as one likes.
    pub bytes_per_s: u64,
    /// Bytes come in pieces of this size at least, with this gap, ns.
    pub trickle: Option<(usize, u64)>,
    /// It carries nothing; what is sent waits.
    pub cut: bool,
    /// Chance of each send to break the connection.
    pub lose: f64,
    /// Chance of each send to have one of its bits turned.
    pub flip: f64,
    /// When the machine at its beginning dies, or the line is cut, connections over it go without a word.
    pub half_open: bool,
    /// New connections are refused.
    pub refuse: bool,
    /// Chance of each connection that what it carried comes again later, on another.
    pub duplicate: f64,
    /// Sends on different connections overtake each other.
    pub reorder: bool,
}

/// How long a send takes.
pub struct Delay {
    pub sending: u64,
    pub line: u64,
}

impl Policy {
    pub fn between(from: MachineId, to: MachineId) -> Policy {
        let outside = from == to || from == HOST || to == HOST;
        Policy {
            latency_ns: if outside { (0, 0) } else { LATENCY_NS },
            bytes_per_s: 0,
            trickle: None,
            cut: false,
            lose: 0.0,
            flip: 0.0,
            half_open: false,
            refuse: false,
            duplicate: 0.0,
            reorder: false,
        }
    }

    /// Nothing is wrong with it any more.
    pub fn heal(&mut self) {
        *self = Policy { latency_ns: LATENCY_NS, ..Policy::between(HOST, HOST) };
    }

    /// Draws how long a send takes.
    pub fn delay(&self, bytes: usize, rng: &mut Rng) -> Delay {
        let (from, to) = self.latency_ns;
        let more = if self.reorder { rng.below(REORDER_NS) } else { 0 };
        let sending = (bytes as u64 * 1_000_000_000).checked_div(self.bytes_per_s).unwrap_or(0);
        Delay { sending, line: from + rng.below(to.saturating_sub(from) + 1) + more }
    }
}
