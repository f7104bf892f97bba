//! What goes wrong on a line: cuts, broken connections, turned bits, connections that come again.

use super::{EndId, Key, MachineId, Net, NetTimer, Policy, RECORD_MAX, What};
use crate::sched::HOST;

/// A replay comes within this time, ns, after the connection was made.
const REPLAY_NS: u64 = 3_000_000_000;
/// And ends after this, ns.
const HANGUP_NS: u64 = 1_000_000_000;

impl Net {
    /// Changes the policies of all lines from and to a machine; those of the host, which only looks, stay as they are.
    pub fn all_of(&mut self, m: MachineId, f: impl Fn(&mut Policy)) {
        for o in (1..=self.machines).filter(|o| *o != m && *o != HOST) {
            f(self.policy(m, o));
            f(self.policy(o, m));
        }
    }

    /// Breaks all connections between two machines.
    pub fn lose_connections(&mut self, a: MachineId, b: MachineId) {
        let hit: Vec<EndId> = self.across(a, b);
        hit.into_iter().for_each(|id| self.break_connection(id));
    }

    /// The first ends of all connections between two machines.
    fn across(&self, a: MachineId, b: MachineId) -> Vec<EndId> {
        let of = |id: EndId| self.ends.get(&id).map(|e| e.machine);
        let hit = |id: &&EndId| matches!((of(**id), of(**id + 1)), (Some(x), Some(y)) if (x, y) == (a, b) || (x, y) == (b, a));
        self.ends.keys().filter(|id| **id % 2 == 0).filter(hit).copied().collect()
    }

    /// Both ends of a connection learn at once that it is broken; what was under way is lost.
    pub(super) fn break_connection(&mut self, id: EndId) {
        for i in [id, Self::peer(id)] {
            if let Some(e) = self.ends.get_mut(&i) {
                e.incoming.clear();
                (e.incoming.ended, e.peer_gone, e.reset) = (true, true, true);
                self.out.wake.extend([Key::Readable(i), Key::Writable(i)]);
            }
        }
    }

    /// Carries out what changed in the policies: lines that are whole again go on, cut ones may take their connections along.
    pub fn settle(&mut self, now: u64) {
        self.now = now;
        let before = std::mem::replace(&mut self.before, self.policies.clone());
        for ((a, b), p) in self.policies.clone() {
            let was = before.get(&(a, b)).is_some_and(|p| p.cut);
            if p.cut && !was && p.half_open {
                self.across(a, b).into_iter().for_each(|id| self.vanish(id));
            }
            if was && !p.cut {
                self.go_on(a, b);
            }
        }
    }

    fn go_on(&mut self, from: MachineId, to: MachineId) {
        let first = self.across(from, to);
        let ends = first.into_iter().flat_map(|id| [id, id + 1]);
        let mine: Vec<EndId> = ends.filter(|i| self.ends.get(i).is_some_and(|e| e.machine == to)).collect();
        for id in mine {
            let line = self.line(from, to).delay(0, &mut self.rng).line;
            let at = self.now + line;
            if let Some(e) = self.ends.get_mut(&id) {
                e.incoming.delay_until(at);
            }
            self.arm(id);
        }
        self.out.wake.push(Key::Link);
    }

    /// What a send meets on its line: true when it broke the connection.
    pub(super) fn misfortune(&mut self, from: EndId, bytes: &mut [u8]) -> bool {
        let (Some(a), Some(b)) = (self.ends.get(&from), self.ends.get(&Self::peer(from))) else { return false };
        let p = self.line(a.machine, b.machine);
        if self.rng.chance(p.lose) {
            self.out.lines.push(format!("connection {from} breaks"));
            self.break_connection(from);
            return true;
        }
        if self.rng.chance(p.flip) && !bytes.is_empty() {
            let (i, bit) = (self.rng.index(bytes.len()), self.rng.below(8));
            bytes[i] ^= 1 << bit;
            self.out.lines.push(format!("connection {from}: bit {bit} of byte {i} of {} is turned", bytes.len()));
        }
        if let Some(r) = self.ends.get_mut(&from).and_then(|e| e.record.as_mut()) {
            r.extend_from_slice(&bytes[..bytes.len().min(RECORD_MAX.saturating_sub(r.len()))]);
        }
        false
    }

    /// Decides for a new connection whether it comes again.
    pub(super) fn draw_replay(&mut self, opener: EndId, p: &Policy) {
        if self.rng.chance(p.duplicate) {
            let at = self.now + 1_000_000 + self.rng.below(REPLAY_NS);
            if let Some(e) = self.ends.get_mut(&opener) {
                e.record = Some(Vec::new());
            }
            self.out.timers.push((at, NetTimer::Replay(opener)));
        }
    }

    /// A connection with what an earlier one carried: nobody is at its other end.
    pub(super) fn replay(&mut self, id: EndId) {
        let Some(e) = self.ends.get_mut(&id) else { return };
        let (from, said, key) = (e.machine, e.record.take(), e.listener);
        self.forget(id);
        let (Some(said), Some(key)) = (said, key) else { return };
        if said.is_empty() || self.is_apart(from, key.0) || !self.has_room(key) {
            return;
        }
        self.out.lines.push(format!("connection {id} comes again with {} bytes", said.len()));
        let (mine, theirs) = self.connect_ends(from, key.0);
        if let Some(e) = self.ends.get_mut(&mine) {
            e.shut_read = true;
        }
        self.enqueue(key, theirs);
        self.put(mine, What::Bytes(said));
        self.out.timers.push((self.now + HANGUP_NS, NetTimer::Hangup(mine)));
    }
}
