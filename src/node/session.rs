//! One link of an outgoing pair, at the side that has the primary region: greeting, the way forward, then the stream.
//!
//! ```text
//! dial ─▶ Hello/Welcome ─▶ catch-up  (the entries are still in the queue)
//!                      ├─▶ resync    (by state, from the journals of both)      ─▶ stream entries, PAIR
//!                      ├─▶ no copy   (the operator says that both are equal)
//!                      └─▶ first copy / repair (walk everything)
//! ```

use super::desk::Desk;
use super::equal::Vouch;
use super::events;
pub(super) use super::failure::split_brain;
pub use super::failure::{Failure, Step};
use super::failure::{failed, fault_of};
use super::pairs::Pair;
use super::receipt;
use super::repair::Repair;
use super::stale;
use super::status::ResyncStats;
use crate::base::sync::Mutex;
use crate::base::{At, Error, Kind, Result, Seq, limits};
use crate::format::frame::FrameKind;
use crate::format::msg::{CopyState, Msg, RejectCode, Welcome, Wish};
use crate::net::{Closer, FrameReader, FrameWriter, Link};
use crate::pair::chain::{Chain, Winner};
use crate::pair::state::{Event, Mode, Reason, State};
use crate::store::replica::Replica;
use crate::volume::group::Group;
use crate::volume::queue::{Fetch, Item, Keep};
use crossbeam::channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, bounded};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a peer that closed the link is heard to its end.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Time-outs of a link, from the site file.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// No byte for this long: broken.
    pub link: Duration,
    /// Between two pings.
    pub heartbeat: Duration,
    /// Oldest unacknowledged entry.
    pub progress: Duration,
}

/// How a session ended without an error.
#[derive(Debug)]
pub enum End {
    /// Asked to stop (suspend, cut, shutdown).
    Stopped,
    /// The peer follows a newer primary: this node is stale (G3).
    Stale,
}

/// What a session works on.
pub struct Session {
    pub(super) group: Arc<Group>,
    pub(super) pair: Arc<Pair>,
    /// This site.
    pub(super) site: String,
    /// Size and time of a file do not tell that its content is the same.
    pub(super) thorough: bool,
    pub(super) index: usize,
    pub(super) timing: Timing,
    pub(super) w: Arc<Mutex<FrameWriter>>,
    desk: Arc<Desk>,
    pub(super) rx: Receiver<Msg>,
    pub(super) welcome: Welcome,
    pub(super) stats: ResyncStats,
    pub(super) begun: Instant,
    /// Entries after this position are still needed for the resync under way.
    pub(super) base: Option<Seq>,
    alive: Arc<AtomicBool>,
    counting: Arc<AtomicBool>,
    suspended: Arc<Mutex<Option<String>>>,
    stop: Arc<AtomicBool>,
    vouch: Option<Arc<Vouch>>,
    halts: u64,
    closer: Closer,
    last_ping: Instant,
    /// Entries up to here were sent, or are part of what the resync under way brings.
    sent: Seq,
    touched: HashSet<u64>,
}

/// What is needed to open a session.
pub struct Opening {
    /// The group at its primary.
    pub group: Arc<Group>,
    /// The pair.
    pub pair: Arc<Pair>,
    /// The pair's index in the group's gate.
    pub index: usize,
    /// This site.
    pub site: String,
    /// Time-outs.
    pub timing: Timing,
    /// Set when the session is to end.
    pub stop: Arc<AtomicBool>,
    /// It is to make the pair, without a first copy.
    pub vouch: Option<Arc<Vouch>>,
    /// [`Pair::halts`] when the session was wanted.
    pub halts: u64,
}

/// Greets over a fresh link. `Ok(Err(End))`: no session, but nothing is wrong with the link.
pub fn open(o: Opening, link: Link) -> Step<std::result::Result<Session, End>> {
    let closer = link.closer();
    let (mut r, mut w) = link.split();
    if o.pair.mode == Mode::Sync {
        // Answers wait for this peer: one that does not read is given up as one that does not acknowledge.
        w.set_write_timeout(Some(o.timing.progress))?;
    }
    let hello = receipt::hello(&o.site, &o.pair, &o.group.replica, Wish::Link)?;
    w.send(&Msg::Hello(hello).frame()?)?;
    let mut buf = Vec::new();
    let h = r.recv_within(&mut buf, o.timing.link.max(Duration::from_secs(5)))?;
    let answer = if h.kind == FrameKind::Msg {
        Msg::parse(&buf, &h)?
    } else {
        return failed(Reason::PeerRefused, Error::corrupt("the peer answered with something else than a welcome"));
    };
    let welcome = match answer {
        Msg::Welcome(x) => x,
        Msg::Reject { code: RejectCode::StalePrimary, chain, head, text } => {
            return match stale::is_shown(&o.group.replica, chain, head) {
                true => Ok(Err(End::Stale)),
                false => failed(Reason::PeerRefused, stale::unproven(&o.pair.peer, &text)),
            };
        }
        Msg::Reject { code: RejectCode::SplitBrain, text, chain, .. } => {
            o.pair.set_rival(chain.last().cloned());
            return failed(Reason::SplitBrain, Error::refused(text));
        }
        Msg::Reject { code: RejectCode::Fault, text, .. } => return failed(fault_of(&text), Error::refused(text)),
        Msg::Reject { text, .. } => return failed(Reason::PeerRefused, Error::refused(text)),
        _ => {
            return failed(Reason::PeerRefused, Error::corrupt("the peer answered with something else than a welcome"));
        }
    };
    let sent = welcome.head;
    let (tx, rx) = bounded(limits::ANSWERS_WAITING_MAX);
    let alive = Arc::new(AtomicBool::new(true));
    let suspended = Arc::new(Mutex::new(None));
    let counting = Arc::new(AtomicBool::new(false));
    // What an earlier session counted may be of another history; the lag goes on from it until more is known.
    o.group.update(o.index, |p| {
        p.shown = p.in_tree();
        (p.received, p.durable, p.applied, p.checkpoint) = (Seq(0), Seq(0), Seq(0), Seq(0));
    });
    let w = Arc::new(Mutex::new(w));
    let desk = Arc::new(Desk::new(w.clone(), alive.clone(), closer.clone()));
    let reader = Reader {
        r,
        tx,
        desk: desk.clone(),
        group: o.group.clone(),
        pair: o.pair.clone(),
        index: o.index,
        alive: alive.clone(),
        counting: counting.clone(),
        suspended: suspended.clone(),
        closer: closer.clone(),
        link_timeout: o.timing.link,
        patience: o.timing.progress,
        known: Seq(0),
    };
    std::thread::Builder::new()
        .name(format!("acks-{}", o.pair.name))
        .spawn(move || reader.run())
        .map_err(Error::from)?;
    Ok(Ok(Session {
        group: o.group,
        pair: o.pair,
        site: o.site,
        thorough: false,
        index: o.index,
        timing: o.timing,
        w,
        desk,
        rx,
        welcome,
        stats: ResyncStats::default(),
        begun: Instant::now(),
        base: None,
        alive,
        counting,
        suspended,
        stop: o.stop,
        vouch: o.vouch,
        halts: o.halts,
        closer,
        last_ping: Instant::now(),
        sent,
        touched: HashSet::new(),
    }))
}

struct Reader {
    r: FrameReader,
    tx: Sender<Msg>,
    desk: Arc<Desk>,
    group: Arc<Group>,
    pair: Arc<Pair>,
    index: usize,
    alive: Arc<AtomicBool>,
    /// Acknowledgements count: from the choice to catch up on, or from the peer's word that it is ready for a resync, after
    /// which it acknowledges nothing before the commit. Those from before may be of another history.
    counting: Arc<AtomicBool>,
    suspended: Arc<Mutex<Option<String>>>,
    closer: Closer,
    link_timeout: Duration,
    /// How long answers may wait for whoever asked.
    patience: Duration,
    /// Positions up to here are given out.
    known: Seq,
}

impl Reader {
    fn run(mut self) {
        if let Err(e) = self.read() {
            log::debug!("group {}: reading from the peer ended: {e}", self.group.name);
            if e.kind == Kind::Corrupt {
                // Why the link ended, whatever the thread that sends meets of it.
                self.suspended.lock().get_or_insert_with(|| format!("from site {}: {e}", self.pair.peer));
            }
        }
        self.alive.store(false, Ordering::SeqCst);
        self.closer.close();
        self.group.queue.wake();
        self.group.update(self.index, |_| {});
    }

    fn read(&mut self) -> Result<()> {
        self.r.set_read_timeout(Some(self.link_timeout))?;
        let mut buf = Vec::new();
        loop {
            let h = self.r.recv(&mut buf)?;
            if h.kind != FrameKind::Msg {
                return Err(Error::corrupt("an entry came from the secondary"));
            }
            match Msg::parse(&buf, &h)? {
                Msg::Ack { .. } | Msg::Pong { .. } if !self.counting.load(Ordering::SeqCst) => {}
                Msg::Ack { received, durable, applied, checkpoint, confirmed }
                | Msg::Pong { received, durable, applied, checkpoint, confirmed } => {
                    self.claims(received.max(durable))?;
                    self.pair.reached(received);
                    self.group.acknowledged(self.index, [received, durable, applied, checkpoint], confirmed);
                }
                Msg::Suspend { reason } => {
                    *self.suspended.lock() = Some(reason.clone());
                    return Err(Error::failed(reason));
                }
                m => {
                    if matches!(m, Msg::Ready { .. }) {
                        self.counting.store(true, Ordering::SeqCst);
                    }
                    let Some(m) = self.desk.pass(m) else { continue };
                    match self.tx.send_timeout(m, self.patience) {
                        Ok(()) => {}
                        Err(SendTimeoutError::Disconnected(_)) => return Ok(()),
                        Err(SendTimeoutError::Timeout(_)) => return Err(self.wrong("answers that nobody asked for")),
                    }
                }
            }
        }
    }
}

impl Reader {
    /// What is acknowledged must have been given out: else what is still needed would be dropped (MS-18).
    fn claims(&mut self, upto: Seq) -> Result<()> {
        if upto > self.known {
            self.known = self.group.head();
        }
        if upto > self.known {
            return Err(self.wrong(&format!("entry {} as received, and the last one is {}", upto.0, self.known.0)));
        }
        Ok(())
    }

    /// The peer says what cannot be; whoever asks why the link ended is told.
    fn wrong(&self, what: &str) -> Error {
        let why = format!("site {} tells of {what}", self.pair.peer);
        *self.suspended.lock() = Some(why.clone());
        Error::corrupt(why)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.pair.set_desk(None);
        self.closer.close();
    }
}

impl Session {
    /// Brings the peer up to date and keeps it so. Returns when asked to stop; every failure names its reason.
    pub fn run(&mut self) -> Step<End> {
        let start = self.way_forward()?;
        self.stream(start)
    }

    pub(super) fn check(&self) -> Step<()> {
        if let Some(why) = self.suspended.lock().clone() {
            // While entries are streamed it is the disk that is full; before, it is the copy that does not fit.
            let reason = match fault_of(&why) {
                Reason::Full if self.pair.state() != State::Pair => Reason::NeedsSpace,
                r => r,
            };
            return failed(reason, Error::failed(why));
        }
        if !self.alive.load(Ordering::SeqCst) {
            if self.pair.repair().is_some() {
                return failed(Reason::LinkLost, Error::link("a repair was ordered; it begins with a new link"));
            }
            return failed(Reason::LinkLost, Error::link(format!("the link to site {} broke", self.pair.peer)));
        }
        Ok(())
    }

    pub(super) fn stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst) || self.group.is_stopped() || self.pair.halts() != self.halts
    }

    /// Sends a control message.
    pub(super) fn say(&mut self, m: &Msg) -> Step<()> {
        let f = m.frame()?;
        self.raw(&f)
    }

    /// Sends a whole frame.
    pub(super) fn raw(&mut self, frame: &[u8]) -> Step<()> {
        if let Err(e) = self.w.lock().send(frame) {
            return self.broken(e);
        }
        Ok(())
    }

    /// Sending failed: what the peer said before it closed is the better reason.
    fn broken<T>(&self, e: Error) -> Step<T> {
        let until = Instant::now() + LAST_WORDS;
        while self.alive.load(Ordering::SeqCst) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        if self.suspended.lock().is_some() {
            self.check()?;
        }
        Err(e.into())
    }

    /// Waits for the peer's next message of the resync, pinging meanwhile.
    pub(super) fn hear(&mut self, patience: Duration) -> Step<Msg> {
        let until = Instant::now() + patience;
        loop {
            match self.rx.recv_timeout(Duration::from_millis(200)) {
                Ok(m) => return Ok(m),
                Err(RecvTimeoutError::Timeout) => {
                    self.ping(false)?;
                    self.check()?;
                    if self.stopping() {
                        return failed(Reason::LinkLost, Error::link("asked to stop"));
                    }
                    if Instant::now() > until {
                        return failed(
                            Reason::ProgressTimeout,
                            Error::new(Kind::Timeout, "the peer did not answer in time"),
                        );
                    }
                }
                Err(RecvTimeoutError::Disconnected) => {
                    self.check()?;
                    return failed(Reason::LinkLost, Error::link("the link broke"));
                }
            }
        }
    }

    /// To be called now and then in long work: keeps the link alive, and notices that the work is in vain.
    pub(super) fn tick(&mut self) -> Step<()> {
        self.ping(false)?;
        self.check()?;
        if self.stopping() {
            return Err(Error::link("asked to stop").into());
        }
        if self.base.is_some_and(|q| !self.group.queue.reaches(q)) {
            return self.behind();
        }
        Ok(())
    }

    /// What the peer needs next was given up.
    pub(super) fn behind<T>(&self) -> Step<T> {
        let why = self.group.queue.given_up(self.index);
        failed(Reason::Behind, Error::failed(why.unwrap_or_else(|| "behind: a resync by the journal follows".into())))
    }

    fn ping(&mut self, in_pair: bool) -> Step<()> {
        if self.last_ping.elapsed() >= self.timing.heartbeat {
            self.last_ping = Instant::now();
            self.ping_now(in_pair)?;
        }
        Ok(())
    }

    fn ping_now(&mut self, in_pair: bool) -> Step<()> {
        let trim = self.group.trim();
        // Before the position: what is issued between the two is not claimed to be part of it.
        let time = crate::base::time::now();
        let head = self.group.head();
        let unsent = self.group.queue.bytes_after(self.sent);
        self.say(&Msg::Ping { head, trim, in_pair, unsent, time })
    }

    /// Chooses and goes one of the three ways; returns the position from which entries follow.
    fn way_forward(&mut self) -> Step<Seq> {
        let (chain, head) = {
            let m = self.group.replica.order();
            (self.group.replica.chain(&m), m.live.last_seq())
        };
        self.thorough = self.welcome.torn || !self.group.replica.order().state.cuts.is_empty();
        let theirs = Chain::from_epochs(self.welcome.chain.clone());
        theirs.validate(self.welcome.head).at("the peer's epochs")?;
        if let Some(how) = self.vouch.as_ref().map(|v| v.how) {
            if matches!(chain.winner(head, &theirs, self.welcome.head), Some(Winner::Theirs | Winner::SplitBrain)) {
                let text = "the peer has a history of its own: create the pair without --no-copy";
                return failed(Reason::PeerRefused, Error::refused(text));
            }
            let base = self.keeping(|s| s.without_copy(how))?;
            return self.follow_base(base);
        }
        if self.welcome.copy != CopyState::Consistent || self.welcome.chain.is_empty() {
            return self.first_copy("the peer has no complete copy yet");
        }
        match chain.winner(head, &theirs, self.welcome.head) {
            Some(Winner::Theirs) => {
                return failed(Reason::PeerRefused, Error::refused("the peer follows a newer primary"));
            }
            Some(Winner::SplitBrain) => {
                let rival = self.welcome.chain.last().cloned();
                let (true, Some(rival)) = (self.welcome.yields, &rival) else {
                    self.pair.set_rival(rival);
                    let text = split_brain(&self.group.name, &self.pair);
                    return failed(Reason::SplitBrain, Error::refused(text));
                };
                // The operator's word was given at the other site.
                self.group.overrule(&self.site, rival)?;
            }
            None if chain.common(head, &theirs, self.welcome.head).is_none() => {
                return self.first_copy("the peer's history has nothing in common with ours");
            }
            _ => {}
        }
        let Some(common) = chain.common(head, &theirs, self.welcome.head) else {
            return self.first_copy("the peer's history has nothing in common with ours");
        };
        let repair = self.pair.repair();
        if let Some(Repair::Everything) = repair {
            return self.first_copy("repair of what a comparison found");
        }
        let suspect = self.suspect(&self.group.replica.order(), common);
        let caught_up = repair.is_none()
            && suspect.is_none()
            && !self.group.refused_after(self.index, common)
            && self.welcome.exact
            && common == self.welcome.head
            && !Replica::crashed_since(&self.group.replica.order(), common)
            && self.group.queue.keep_after(self.index, common);
        if caught_up {
            self.begins("catch-up", None);
            self.group.update(self.index, |p| (p.received, p.shown) = (common, common));
            self.counting.store(true, Ordering::SeqCst);
            if !matches!(self.pair.state(), State::Pair | State::CopyResync | State::Copy) {
                self.pair.event(Event::Resync, Some("catching up".into()))?;
            }
            return Ok(common);
        }
        let begins = self.group.replica.order().journal.begins_after();
        let low = suspect.as_ref().map_or(common, |s| s.low);
        self.group.update(self.index, |p| p.shown = low);
        if begins > low {
            return self
                .first_copy(&format!("the journal begins after entry {}, what may differ after {}", begins.0, low.0));
        }
        if common < self.welcome.head && self.welcome.journal_after > common {
            return self.first_copy("the journals do not reach back to the common point");
        }
        if !matches!(self.pair.state(), State::CopyResync) {
            self.enter_copy(false, "resync by the journals")?;
        }
        let by_state = suspect.is_some();
        self.begins("resync", by_state.then_some("what a power cut leaves open is compared"));
        let r = self.resync(common, suspect);
        if let (true, Err(f)) = (by_state, &r)
            && f.error.kind == Kind::Corrupt
        {
            // More is damaged than a power cut explains.
            log::warn!("group {} pair {}: {}; everything is compared", self.group.name, self.pair.name, f.error);
            self.pair.set_repair(Some(Repair::Everything));
        }
        r
    }

    /// Tells which way is gone.
    pub(super) fn begins(&self, way: &str, why: Option<&str>) {
        let (to, reason) = (Some(way.to_owned()), why.map(str::to_owned));
        self.pair.tell(events::Event { to, reason, ..events::Event::new(events::What::CopyBegin) });
    }

    /// Moves the pair's state to copying, from whatever it is in.
    pub(super) fn enter_copy(&self, first: bool, why: &str) -> Step<()> {
        let s = self.pair.state();
        let why = Some(why.to_owned());
        match s {
            State::Copy => {}
            // Ended by order while this session began: it must not come back by itself.
            State::Smpl => return failed(Reason::LinkLost, Error::link("the pair was ended by order")),
            State::CopyResync | State::Pair if first => {
                self.pair.event(Event::Fault(Reason::RemoteFault), why.clone())?;
                self.pair.event(Event::Resync, why)?;
            }
            State::CopyResync => {}
            State::Pair => {
                self.pair.event(Event::Fault(Reason::LinkLost), why.clone())?;
                self.pair.event(Event::Resync, why)?;
            }
            _ => {
                self.pair.event(Event::Resync, why)?;
            }
        }
        Ok(())
    }

    fn first_copy(&mut self, why: &str) -> Step<Seq> {
        log::info!("group {} pair {}: first copy: {why}", self.group.name, self.pair.name);
        self.group.update(self.index, |p| (p.shown, p.confirmed) = (Seq(0), None));
        self.enter_copy(true, why)?;
        self.begins("first-copy", Some(why));
        let base = self.keeping(Session::copy_everything)?;
        self.follow_base(base)
    }

    /// The way on from the end of a first copy: the entries since are still queued, or the journal has them.
    fn follow_base(&mut self, base: Seq) -> Step<Seq> {
        if self.group.queue.reaches(base) {
            return Ok(base);
        }
        self.welcome.exact = true;
        self.welcome.head = base;
        self.resync(base, None)
    }

    /// A copy that fails is begun anew from a later point: what was kept for it is of no use then.
    pub(super) fn keeping<T>(&mut self, copy: impl FnOnce(&mut Session) -> Step<T>) -> Step<T> {
        copy(self).inspect_err(|_| self.group.queue.at_most(self.index, Keep::Nothing))
    }

    /// Sends entries after `cursor` as they come.
    fn stream(&mut self, mut cursor: Seq) -> Step<End> {
        let is_async = self.pair.mode == Mode::Async;
        let target = self.group.head();
        let mut in_pair = false;
        let mut enforced = None;
        loop {
            self.check()?;
            if self.stopping() {
                return Ok(End::Stopped);
            }
            let upto = if is_async { self.group.async_limit() } else { Seq(u64::MAX) };
            if is_async && cursor < upto && self.group.refused_after(self.index, cursor) {
                let why = "what the fence refused is not sent: a resync by the journal passes it over";
                return failed(Reason::Behind, Error::failed(why));
            }
            match self.group.queue.fetch(cursor, upto, limits::BATCH_BYTES, limits::BATCH_ENTRIES) {
                Fetch::Items(items) => {
                    if !in_pair {
                        self.tally(&items);
                    }
                    let last = items.last().map_or(cursor, |i| i.seq);
                    self.group.sending(self.index, last);
                    let frames: Vec<&[u8]> = items.iter().map(|i| i.frame.as_slice()).collect();
                    if let Err(e) = self.w.lock().send_many(&frames) {
                        return self.broken(e);
                    }
                    cursor = last;
                }
                Fetch::Nothing if is_async && cursor >= upto => {
                    self.group.wait_async_limit(cursor, Duration::from_millis(100))
                }
                Fetch::Nothing => self.group.queue.wait(cursor, Duration::from_millis(100)),
                Fetch::Gone => return self.behind(),
            }
            self.sent = cursor;
            self.ping(in_pair)?;
            if !in_pair {
                in_pair = self.try_pair(cursor, target, &mut enforced)?;
            } else {
                self.watch_progress(cursor)?;
            }
        }
    }

    /// PAIR once the peer has everything: for a sync pair, once answers wait for it from a point on and it has that point.
    fn try_pair(&mut self, cursor: Seq, target: Seq, enforced: &mut Option<Seq>) -> Step<bool> {
        let p = self.group.progress(self.index);
        if self.pair.mode == Mode::Sync {
            if enforced.is_none()
                && self.group.may_enforce()
                && self.group.queue.bytes_after(cursor) < limits::BATCH_BYTES as u64
            {
                *enforced = Some(self.group.enforce(self.index));
            }
            if enforced.is_none_or(|e| p.received < e) {
                return Ok(false);
            }
        } else if p.received < target {
            return Ok(false);
        }
        if self.welcome.copy == CopyState::Consistent || self.begun.elapsed() > Duration::ZERO {
            self.stats.seconds = self.begun.elapsed().as_secs_f64();
            self.stats.files_copied = self.stats.files_copied.max(self.touched.len() as u64);
            self.stats.files_examined = self.stats.files_examined.max(self.stats.files_copied);
            self.pair.set_last_resync(self.stats.clone());
        }
        let event = match self.pair.state() {
            State::Copy => Event::CopyDone,
            State::Smpl if self.vouch.is_some() => Event::Create { no_copy: true },
            State::Pair => {
                self.pair.say(None);
                return self.now_paired();
            }
            _ => Event::ResyncDone,
        };
        self.pair.event(event, None)?;
        self.now_paired()
    }

    fn now_paired(&mut self) -> Step<bool> {
        self.ping_now(true)?;
        // Whichever way was gone, the repair that was ordered before this session is done.
        self.pair.set_repair(None);
        self.pair.set_desk(Some(self.desk.clone()));
        if self.vouch.is_some() {
            self.pair.settle_vouch(Ok(self.stats.clone()));
        }
        Ok(true)
    }

    fn tally(&mut self, items: &[Arc<Item>]) {
        for i in items {
            self.stats.bytes_copied += i.tally.data;
            self.stats.renames += i.tally.rename as u64;
            if i.tally.object != 0 {
                self.touched.insert(i.tally.object);
            }
        }
    }

    /// The oldest entry that the peer has not acknowledged must not be too old (slow is not frozen, but it has an end).
    fn watch_progress(&mut self, cursor: Seq) -> Step<()> {
        let p = self.group.progress(self.index);
        if p.received >= cursor || self.pair.mode == Mode::Async {
            return Ok(());
        }
        if let Some(t) = self.group.queue.time_after(p.received) {
            let age = crate::base::time::now().nanos_total().saturating_sub(t.nanos_total());
            if age > self.timing.progress.as_nanos() as u64 {
                return failed(
                    Reason::ProgressTimeout,
                    Error::new(
                        Kind::Timeout,
                        format!("entry {} is unacknowledged since {} s", p.received.0 + 1, age / 1_000_000_000),
                    ),
                );
            }
        }
        Ok(())
    }
}
