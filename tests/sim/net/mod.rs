//! Unix stream sockets, within a machine and between machines. A connection is two pipes; what is sent into one arrives at its
//! other end in order, after what the policy of that line says, or never.
//!
//! ```text
//! send ─▶ [segment, due at …] [segment] ─▶ arrived bytes ─▶ recv
//!          on the line                     at the receiver; both together are bounded
//! ```
//!
//! Nothing here waits or knows threads: what is to be woken and when something is due is handed to the scheduler
//! ([`Effects`]), and `calls` does the waiting.

pub mod calls;
mod faults;
mod pipe;
mod policy;
mod sock;

pub use policy::{LATENCY_NS, Policy};
pub use sock::{SockId, Socket};

use super::rng::Rng;
use super::sched::{HOST, Key, MachineId};
use pipe::{Pipe, Segment, What};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The number of an end of a connection: 2c and 2c + 1 are those of one connection.
pub type EndId = usize;

/// Something that is due.
#[derive(Clone, Copy, Debug)]
pub enum NetTimer {
    /// The first segment on the way to this end.
    Arrival(EndId),
    /// What a connection carried comes once more.
    Replay(EndId),
    /// The end of such a connection.
    Hangup(EndId),
}

/// What the scheduler has to do.
#[derive(Debug, Default)]
pub struct Effects {
    pub wake: Vec<Key>,
    pub timers: Vec<(u64, NetTimer)>,
    /// Lines for the trace.
    pub lines: Vec<String>,
}

/// An end of a connection.
#[derive(Debug)]
struct End {
    machine: MachineId,
    /// What comes here.
    incoming: Pipe,
    /// Its owner closed it, or has no interest in what comes.
    closed: bool,
    /// Reading and writing are shut down by the owner.
    shut_read: bool,
    shut_write: bool,
    /// The other end was closed, as far as is known here: sending is an error.
    peer_gone: bool,
    /// The connection was reset, as far as is known here.
    reset: bool,
    /// What the opener of the connection sent, for a replay.
    record: Option<Vec<u8>>,
    /// The listener that took it.
    listener: Option<ListenerKey>,
}

/// The socket file that a listener is bound to: machine, disk, inode.
pub type ListenerKey = (MachineId, usize, u64);

/// A listening socket.
#[derive(Debug)]
struct Listener {
    sock: SockId,
    queue: VecDeque<EndId>,
    /// Shut down: nothing is accepted any more.
    shut: bool,
}

/// Connections that wait at a listener, at most.
const BACKLOG: usize = 128;
/// What is kept of a connection for a replay, bytes.
const RECORD_MAX: usize = 64 << 10;

/// The network of the room.
#[derive(Debug)]
pub struct Net {
    policies: BTreeMap<(MachineId, MachineId), Policy>,
    /// What the policies were when they were looked at last.
    before: BTreeMap<(MachineId, MachineId), Policy>,
    dark: BTreeSet<MachineId>,
    ends: BTreeMap<EndId, End>,
    next_end: EndId,
    listeners: BTreeMap<ListenerKey, Listener>,
    socks: BTreeMap<SockId, Socket>,
    next_sock: SockId,
    rng: Rng,
    now: u64,
    /// Bytes that a connection holds in one direction, at most.
    pub room: usize,
    pub out: Effects,
    /// The machine whose descriptors are being closed because it died.
    pub dying: Option<MachineId>,
    /// Machines there are, beside the host.
    pub machines: usize,
}

impl Net {
    pub fn new(mut rng: Rng) -> Net {
        let room = *rng.pick(&[16 << 10, 208 << 10, 1 << 20, 4 << 20]);
        Net {
            policies: BTreeMap::new(),
            before: BTreeMap::new(),
            dark: BTreeSet::new(),
            ends: BTreeMap::new(),
            next_end: 0,
            listeners: BTreeMap::new(),
            socks: BTreeMap::new(),
            next_sock: 0,
            rng,
            now: 0,
            room,
            out: Effects::default(),
            dying: None,
            machines: 0,
        }
    }

    /// Tells the network what time it is.
    pub fn begin(&mut self, now: u64) {
        self.now = now;
    }

    /// The policy of the line from one machine to another, to be looked at or changed.
    pub fn policy(&mut self, from: MachineId, to: MachineId) -> &mut Policy {
        self.policies.entry((from, to)).or_insert_with(|| Policy::between(from, to))
    }

    fn line(&self, from: MachineId, to: MachineId) -> Policy {
        self.policies.get(&(from, to)).cloned().unwrap_or_else(|| Policy::between(from, to))
    }

    /// Whether the lines between two machines carry nothing, in one direction or the other, or one has no power.
    fn is_apart(&self, a: MachineId, b: MachineId) -> bool {
        a != b && (self.line(a, b).cut || self.line(b, a).cut || self.dark.contains(&b))
    }

    /// Makes a connection; its ends. The opener's is the first.
    fn connect_ends(&mut self, a: MachineId, b: MachineId) -> (EndId, EndId) {
        let n = self.next_end;
        self.next_end += 2;
        for (id, machine) in [(n, a), (n + 1, b)] {
            let end = End {
                machine,
                incoming: Pipe::default(),
                closed: false,
                shut_read: false,
                shut_write: false,
                peer_gone: false,
                reset: false,
                record: None,
                listener: None,
            };
            self.ends.insert(id, end);
        }
        (n, n + 1)
    }

    fn peer(id: EndId) -> EndId {
        id ^ 1
    }

    /// Puts something on the way from `from` to its peer.
    fn put(&mut self, from: EndId, what: What) {
        let to = Self::peer(from);
        let (Some(a), Some(b)) = (self.ends.get(&from).map(|e| e.machine), self.ends.get(&to).map(|e| e.machine))
        else {
            return;
        };
        let policy = self.line(a, b);
        let delay = policy.delay(what.len(), &mut self.rng);
        let now = self.now;
        let Some(end) = self.ends.get_mut(&to) else { return };
        if end.incoming.vanished {
            end.incoming.swallow(what.len());
            return;
        }
        let sent = end.incoming.busy.max(now) + delay.sending;
        end.incoming.busy = sent;
        // Never before what was sent earlier on the same connection.
        let at = (sent + delay.line).max(end.incoming.last_due);
        end.incoming.put(what, at, policy.trickle);
        if a == b || a == HOST || b == HOST {
            // Within a machine there is no line.
            self.arrive(to, u64::MAX);
        } else {
            self.arm(to);
        }
    }

    /// Has the next arrival at an end happen.
    fn arm(&mut self, to: EndId) {
        if let Some(at) = self.ends.get_mut(&to).and_then(|e| e.incoming.arm()) {
            self.out.timers.push((at, NetTimer::Arrival(to)));
        }
    }

    /// Something is due.
    pub fn happen(&mut self, what: NetTimer, now: u64) {
        self.now = now;
        match what {
            NetTimer::Arrival(to) => {
                let Some(end) = self.ends.get_mut(&to) else { return };
                end.incoming.armed = false;
                let here = end.machine;
                let Some(there) = self.ends.get(&Self::peer(to)).map(|e| e.machine) else { return };
                if self.line(there, here).cut {
                    // It goes on when the line is whole again.
                    return;
                }
                self.arrive(to, now);
                self.arm(to);
            }
            NetTimer::Replay(id) => self.replay(id),
            NetTimer::Hangup(id) => self.close_end(id),
        }
    }

    /// What is due at an end by `now` is there.
    fn arrive(&mut self, to: EndId, now: u64) {
        let mut to_peer = None;
        let Some(end) = self.ends.get_mut(&to) else { return };
        while let Some(Segment { what, .. }) = end.incoming.take(now) {
            match what {
                What::Bytes(b) => {
                    // Bytes for one who has closed: the sender is told.
                    if end.closed {
                        to_peer = Some(What::Gone { reset: true });
                    } else if end.shut_read {
                        to_peer = Some(What::Gone { reset: false });
                    } else {
                        end.incoming.arrived.extend(b);
                    }
                }
                What::End => end.incoming.ended = true,
                What::Gone { reset } => {
                    (end.incoming.ended, end.peer_gone) = (true, true);
                    if reset {
                        end.reset = true;
                        end.incoming.arrived.clear();
                    }
                }
            }
        }
        self.out.wake.extend([Key::Readable(to), Key::Writable(to), Key::Writable(Self::peer(to))]);
        if let Some(what) = to_peer {
            self.put(to, what);
        }
        self.forget(to);
    }

    /// An end is closed: the peer is told, also what was lost by it.
    fn close_end(&mut self, id: EndId) {
        let Some(end) = self.ends.get_mut(&id) else { return };
        if end.closed {
            return;
        }
        end.closed = true;
        let unread = !end.incoming.arrived.is_empty();
        end.incoming.arrived.clear();
        self.put(id, What::Gone { reset: unread });
        self.out.wake.extend([Key::Readable(id), Key::Writable(id)]);
        self.forget(id);
    }

    /// A connection that both ends have closed, and on which nothing is under way, is no more.
    fn forget(&mut self, id: EndId) {
        let over = |e: &End| e.closed && (e.incoming.vanished || !e.incoming.is_under_way());
        let both = [id, Self::peer(id)];
        if both.iter().all(|i| self.ends.get(i).is_none_or(over)) {
            let replayed = |e: &End| e.record.is_some();
            if !both.iter().any(|i| self.ends.get(i).is_some_and(replayed)) {
                both.iter().for_each(|i| drop(self.ends.remove(i)));
            }
        }
    }

    /// An end is gone without a word: its machine died, or its line did.
    fn vanish(&mut self, id: EndId) {
        for i in [id, Self::peer(id)] {
            if let Some(e) = self.ends.get_mut(&i) {
                e.incoming.vanish();
            }
        }
    }

    /// Whether a machine has lost its power.
    pub fn set_dark(&mut self, m: MachineId, dark: bool) {
        if dark {
            self.dark.insert(m);
        } else if self.dark.remove(&m) {
            self.out.wake.push(Key::Link);
        }
    }
}
