//! What the queue knows: which entries are in memory, which in the spool, and who needs them. Decides, and does nothing:
//! no waiting and no files.

use super::{Fetch, Item};
use crate::base::{Seq, limits, time::Time};
use crate::volume::spool::Batch;
use std::collections::VecDeque;
use std::sync::Arc;

/// How much is done for a peer that lags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Keep {
    /// It needs nothing of what is here: it is copied to anew, or it was given up.
    Nothing,
    /// What fits in memory is kept for it: the journal serves it otherwise.
    Memory,
    /// It is in memory and in the spool.
    Spool,
}

/// One peer.
struct Reader {
    /// It has everything up to here.
    has: Seq,
    keep: Keep,
    /// Why it was given up.
    given_up: Option<String>,
}

/// Where the order was at a time: what remains of entries that were given up, for the lag of who still needs them.
struct Stamp {
    seq: Seq,
    time: Time,
    /// Bytes of all frames before it.
    before: u64,
}

/// One a second, until there are this many; then every second one goes.
const STAMPS_MAX: usize = 4096;

/// Entries in order: first those of the spool, then, without a gap, those in memory.
pub(super) struct Line {
    spooled: VecDeque<Batch>,
    items: VecDeque<Arc<Item>>,
    stamps: Vec<Stamp>,
    readers: Vec<Reader>,
    /// What the items take in memory, bytes.
    pub held: u64,
    /// Bytes of all frames so far.
    pub total: u64,
    /// The last entry.
    pub head: Seq,
    /// Memory beyond which the spool takes over, bytes.
    limit: u64,
    /// More than that may wait for it, bytes; `None`: there is no spool.
    waiting: Option<u64>,
    writing: bool,
}

/// Entries that nobody needs any more; freed by who gets them, without a lock.
pub(super) type Dropped = Vec<Arc<Item>>;

/// What the front of the line has for a cursor.
pub(super) enum Found {
    /// The answer.
    Here(Fetch),
    /// It is to be read from the spool.
    Spooled(Batch),
}

impl Line {
    pub fn new(head: Seq, limit: u64, spool: bool) -> Line {
        Line {
            spooled: VecDeque::new(),
            items: VecDeque::new(),
            stamps: Vec::new(),
            readers: Vec::new(),
            held: 0,
            total: 0,
            head,
            limit,
            waiting: spool.then_some(limits::SPOOL_WAITING_BYTES_MAX),
            writing: false,
        }
    }

    /// A further peer, which has everything up to now.
    pub fn add_reader(&mut self) {
        self.readers.push(Reader { has: self.head, keep: Keep::Spool, given_up: None });
    }

    /// The first entry that is here, or that will be.
    fn first(&self) -> Seq {
        let spooled = self.spooled.front().map(|b| b.first);
        spooled.or_else(|| self.items.front().map(|i| i.seq)).unwrap_or(self.head.next())
    }

    pub fn reaches(&self, cursor: Seq) -> bool {
        cursor >= self.head || self.first() <= cursor.next()
    }

    /// What every peer has that something is kept for, in that way at least.
    fn had_by_all(&self, keep: Keep) -> Seq {
        let needing = self.readers.iter().filter(|r| r.keep >= keep);
        needing.map(|r| r.has).min().unwrap_or(Seq(u64::MAX))
    }

    /// What is needed of the spool begins after so many bytes of the group's frames; `None`: nothing is.
    pub fn oldest_spooled(&self) -> Option<u64> {
        self.spooled.front().map(|b| b.from)
    }

    pub fn push(&mut self, item: Item) -> Dropped {
        self.stamp(item.seq, item.time);
        self.total = item.total;
        self.head = item.seq;
        self.held += cost(&item);
        self.items.push_back(Arc::new(item));
        self.shed()
    }

    /// Keeps memory within its bound: by what nobody needs; then, where no spool takes it, by giving up who needs it.
    pub fn shed(&mut self) -> Dropped {
        let mut out = self.trim();
        let most = self.limit + self.waiting.unwrap_or(0);
        let stuck = self.held > most && self.had_by_all(Keep::Spool) < self.head;
        let target = if stuck { most } else { self.limit };
        while self.held > target && self.items.len() > 1 {
            let Some(front) = self.items.front().map(|i| i.seq) else { break };
            if front > self.had_by_all(Keep::Spool) {
                if !stuck {
                    break;
                }
                let why = match self.waiting {
                    Some(_) => "the disk of the spool does not keep up with what is written",
                    None => {
                        "more was written than the queue in memory holds (queue_memory_mib), and there is no spool (spool_mib = 0)"
                    }
                };
                self.give_up(front, why);
                out.extend(self.trim());
                continue;
            }
            out.extend(self.pop());
            let now_first = self.first();
            self.readers
                .iter_mut()
                .filter(|r| r.keep == Keep::Memory && r.has.next() < now_first)
                .for_each(|r| r.keep = Keep::Nothing);
        }
        out
    }

    fn pop(&mut self) -> Option<Arc<Item>> {
        let i = self.items.pop_front()?;
        self.held -= cost(&i);
        Some(i)
    }

    /// Forgets what no peer needs.
    pub fn trim(&mut self) -> Dropped {
        let had = self.had_by_all(Keep::Spool);
        while self.spooled.front().is_some_and(|b| b.last <= had) {
            self.spooled.pop_front();
        }
        let had = self.had_by_all(Keep::Memory);
        let mut out = Dropped::new();
        while self.spooled.is_empty() && self.items.front().is_some_and(|i| i.seq <= had) {
            out.extend(self.pop());
        }
        out
    }

    /// The peers that need this entry are behind from now on.
    fn give_up(&mut self, seq: Seq, why: &str) {
        for r in self.readers.iter_mut().filter(|r| r.keep != Keep::Nothing && r.has < seq) {
            if r.keep == Keep::Spool {
                r.given_up = Some(format!("behind: {why}; a resync by the journal follows"));
            }
            r.keep = Keep::Nothing;
        }
    }

    /// The peer that is furthest behind is given up, so that the others need not be.
    pub fn give_up_last(&mut self, why: &str) -> Dropped {
        let last = self.had_by_all(Keep::Spool);
        if last < self.head {
            self.give_up(last.next(), why);
        }
        self.shed()
    }

    /// Everybody who needs anything of the spool is given up.
    pub fn give_up_spool(&mut self, why: &str) -> Dropped {
        if let Some(b) = self.spooled.back() {
            self.give_up(b.last, why);
        }
        self.shed()
    }

    /// A peer acknowledged everything up to `seq`.
    pub fn have(&mut self, reader: usize, seq: Seq) -> Dropped {
        match self.readers.get_mut(reader) {
            Some(r) if seq > r.has => r.has = seq,
            _ => return Dropped::new(),
        }
        self.shed()
    }

    /// From now on everything after `has` is kept for a peer. False: it is not here any more, and nothing is changed.
    pub fn keep_after(&mut self, reader: usize, has: Seq) -> bool {
        if !self.reaches(has) {
            return false;
        }
        if let Some(r) = self.readers.get_mut(reader) {
            *r = Reader { has, keep: Keep::Spool, given_up: None };
        }
        true
    }

    /// No more than this is kept for a peer from now on.
    pub fn at_most(&mut self, reader: usize, keep: Keep) -> Dropped {
        match self.readers.get_mut(reader) {
            Some(r) if r.keep > keep => r.keep = keep,
            _ => return Dropped::new(),
        }
        self.shed()
    }

    pub fn given_up(&self, reader: usize) -> Option<String> {
        self.readers.get(reader).and_then(|r| r.given_up.clone())
    }

    /// True when there is work for who writes the spool.
    pub fn wants_spool(&self) -> bool {
        self.waiting.is_some()
            && self.items.len() > 1
            && self.held > self.limit
            && self.had_by_all(Keep::Spool) < self.head
    }

    /// What is to be written to the spool next: the oldest in memory, once there is too much.
    pub fn next_for_spool(&mut self) -> Vec<Arc<Item>> {
        // Some at a time, so that what is written together is not one small entry each.
        let needed = self.had_by_all(Keep::Spool) < self.head;
        let least = if self.writing { self.limit - self.limit / 4 } else { self.limit };
        self.writing = self.waiting.is_some() && needed && self.items.len() > 1 && self.held > least;
        if !self.writing {
            return Vec::new();
        }
        let mut bytes = 0;
        let small = |i: &&Arc<Item>| {
            bytes += i.frame.len();
            bytes <= limits::BATCH_BYTES
        };
        let n = self.items.iter().take(limits::BATCH_ENTRIES).take_while(small).count().max(1);
        // The newest stays: who is level waits for it here.
        self.items.iter().take(n.min(self.items.len().saturating_sub(1))).cloned().collect()
    }

    /// They are in the spool.
    pub fn was_spooled(&mut self, items: &[Arc<Item>]) -> Dropped {
        let mut out = Dropped::new();
        let (Some(first), Some(last)) = (items.first(), items.last()) else { return out };
        // Not needed any more meanwhile, or given up.
        if self.items.front().is_none_or(|i| i.seq > last.seq) {
            return out;
        }
        while self.items.front().is_some_and(|i| i.seq <= last.seq) {
            out.extend(self.pop());
        }
        self.spooled.push_back(Batch {
            first: first.seq,
            time: first.time,
            last: last.seq,
            from: first.total - first.frame.len() as u64,
            upto: last.total,
        });
        out.extend(self.trim());
        out
    }

    /// Everything is forgotten, and nothing is kept any more.
    pub fn clear(&mut self) -> Dropped {
        self.readers.iter_mut().for_each(|r| r.keep = Keep::Nothing);
        self.trim()
    }

    pub fn fetch(&self, cursor: Seq, upto: Seq, bytes: usize, count: usize) -> Found {
        if cursor >= self.head || cursor >= upto {
            return Found::Here(Fetch::Nothing);
        }
        if !self.reaches(cursor) {
            return Found::Here(Fetch::Gone);
        }
        let at = self.spooled.partition_point(|b| b.last <= cursor);
        if let Some(b) = self.spooled.get(at) {
            return Found::Spooled(*b);
        }
        let first = self.items.front().map_or(0, |i| i.seq.0);
        let mut out = Vec::new();
        let mut sum = 0;
        for i in self.items.iter().skip((cursor.0 + 1).saturating_sub(first) as usize) {
            if i.seq > upto || out.len() >= count || (sum + i.frame.len() > bytes && !out.is_empty()) {
                break;
            }
            sum += i.frame.len();
            out.push(i.clone());
        }
        Found::Here(if out.is_empty() { Fetch::Nothing } else { Fetch::Items(out) })
    }

    /// True while a batch that was found is still one of the spool.
    pub fn has_batch(&self, b: &Batch) -> bool {
        self.spooled.iter().any(|x| x.first == b.first)
    }

    /// Bytes of the frames that are kept, in memory and in the spool.
    pub fn spooled_bytes(&self) -> u64 {
        match (self.spooled.front(), self.spooled.back()) {
            (Some(a), Some(b)) => b.upto - a.from,
            _ => 0,
        }
    }

    /// Bytes before the first entry after `cursor`, and when that was issued: exactly when it is in memory, to its batch in
    /// the spool, to the second when it is not here any more. `None`: there is none.
    pub fn after(&self, cursor: Seq) -> Option<(u64, Option<Time>)> {
        if cursor >= self.head {
            return None;
        }
        let first = self.items.front().map_or(self.head.next(), |i| i.seq);
        if cursor.next() >= first {
            let i = self.items.get((cursor.0 + 1 - first.0) as usize)?;
            return Some((i.total - i.frame.len() as u64, Some(i.time)));
        }
        if self.reaches(cursor) {
            let b = self.spooled.get(self.spooled.partition_point(|b| b.last <= cursor))?;
            return Some((b.from, Some(b.time)));
        }
        match self.stamp_after(cursor) {
            Some(s) => Some((s.before, Some(s.time))),
            None => Some((self.total, None)),
        }
    }

    fn stamp(&mut self, seq: Seq, time: Time) {
        if self.stamps.last().is_some_and(|s| time.nanos_total() < s.time.nanos_total() + 1_000_000_000) {
            return;
        }
        if self.stamps.len() >= STAMPS_MAX {
            let mut n = 0;
            self.stamps.retain(|_| {
                n += 1;
                n % 2 == 1
            });
        }
        self.stamps.push(Stamp { seq, time, before: self.total });
    }

    /// The stamp nearest to the first entry after `cursor`.
    fn stamp_after(&self, cursor: Seq) -> Option<&Stamp> {
        let after = self.stamps.partition_point(|s| s.seq.0 <= cursor.0 + 1);
        self.stamps.get(after.saturating_sub(1))
    }
}

/// What an entry takes in memory, bytes.
fn cost(i: &Item) -> u64 {
    i.frame.len() as u64 + limits::ENTRY_MEMORY_BYTES
}
