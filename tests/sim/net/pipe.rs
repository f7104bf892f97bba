//! One direction of a connection.

use std::collections::VecDeque;

/// Pieces of one send that trickles, at most.
const PIECES_MAX: usize = 64;

/// What can be on the way.
#[derive(Clone, Debug)]
pub enum What {
    Bytes(Vec<u8>),
    /// Nothing more will be sent.
    End,
    /// The sender's end is closed, with bytes that it did not read (or the connection is broken) when `reset`.
    Gone {
        reset: bool,
    },
}

impl What {
    pub fn len(&self) -> usize {
        if let What::Bytes(b) = self { b.len() } else { 0 }
    }
}

/// Something on the way.
#[derive(Clone, Debug)]
pub struct Segment {
    pub due: u64,
    pub what: What,
}

#[derive(Debug, Default)]
pub struct Pipe {
    way: VecDeque<Segment>,
    way_bytes: usize,
    pub arrived: VecDeque<u8>,
    pub last_due: u64,
    /// Until when the line is busy with what was sent before.
    pub busy: u64,
    /// A timer is set for the first segment.
    pub armed: bool,
    /// Nothing more will come.
    pub ended: bool,
    /// Nothing comes through any more, and nobody is told.
    pub vanished: bool,
}

impl Pipe {
    /// Bytes that it holds.
    pub fn held(&self) -> usize {
        self.way_bytes + self.arrived.len()
    }

    pub fn is_under_way(&self) -> bool {
        !self.way.is_empty()
    }

    /// Puts something on the way, in pieces if it trickles.
    pub fn put(&mut self, what: What, due: u64, trickle: Option<(usize, u64)>) {
        self.way_bytes += what.len();
        let mut at = due;
        match (what, trickle) {
            (What::Bytes(b), Some((piece, gap))) if b.len() > piece => {
                for part in b.chunks(piece.max(1).max(b.len() / PIECES_MAX)) {
                    self.way.push_back(Segment { due: at, what: What::Bytes(part.to_vec()) });
                    at += gap;
                }
            }
            (what, _) => self.way.push_back(Segment { due: at, what }),
        }
        self.last_due = at;
    }

    /// When a timer is to be set, if one is.
    pub fn arm(&mut self) -> Option<u64> {
        if self.armed || self.vanished {
            return None;
        }
        let at = self.way.front()?.due;
        self.armed = true;
        Some(at)
    }

    /// The next that is due by `now`.
    pub fn take(&mut self, now: u64) -> Option<Segment> {
        if self.vanished || self.way.front().is_none_or(|s| s.due > now) {
            return None;
        }
        let s = self.way.pop_front()?;
        self.way_bytes -= s.what.len();
        Some(s)
    }

    /// Nothing comes through any more. What is on the way stays there, and takes its room.
    pub fn vanish(&mut self) {
        self.vanished = true;
    }

    /// Bytes that will never arrive take their room too.
    pub fn swallow(&mut self, bytes: usize) {
        self.way_bytes += bytes;
    }

    /// What is on the way is lost.
    pub fn clear(&mut self) {
        self.way.clear();
        self.way_bytes = 0;
        self.arrived.clear();
    }

    /// Everything on the way is late by the time for which the line was cut.
    pub fn delay_until(&mut self, at: u64) {
        for s in &mut self.way {
            s.due = s.due.max(at);
        }
        self.last_due = self.last_due.max(at);
    }
}
