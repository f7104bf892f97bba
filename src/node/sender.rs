//! The thread of an outgoing pair: dials, runs sessions, and keeps the pair's state true between them.

use super::equal::Vouch;
use super::events;
use super::local::LocalGroup;
use super::look::Seen;
use super::pairs::Pair;
use super::session::{self, End, Failure, Opening, Timing};
use crate::base::planted::{Bug, planted};
use crate::base::{Error, Result, Seq};
use crate::format::msg::{Msg, Wish};
use crate::net::Link;
use crate::pair::state::{Event, Mode, Reason, State};
use crate::store::replica::Replica;
use crate::volume::group::{Group, Refused};
use crate::volume::queue::Keep;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a sender needs of its node.
pub trait SenderCtx: Send + Sync {
    /// A fresh, authenticated link to a site. Error when it is unknown, unreachable, paused or cut off.
    fn dial(&self, site: &str) -> Result<Link>;
    /// True while links to the site are not wanted (paused by the operator, or the node is cut off).
    fn held(&self, site: &str) -> Option<String>;
    /// Greets the site at the other end with something else than a link in mind, and gives its answer: a welcome, ready,
    /// or a refusal.
    fn ask(&self, pair: &Pair, replica: &Replica, wish: Wish) -> Result<Msg>;
    /// Looks what the site at the other end has after `received`, the last position here, without a session.
    fn look(&self, pair: &Pair, replica: &Replica, received: Seq) -> Result<Seen>;
}

/// A running sender.
pub struct Sender {
    /// Of its pair in the group.
    pub index: usize,
    /// Name of its pair.
    pub pair: String,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// Pause between two attempts to reach a peer: the first, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(1000));

impl Sender {
    /// Starts the thread of a pair.
    pub fn start(
        ctx: Arc<dyn SenderCtx>,
        local: Arc<LocalGroup>,
        group: Arc<Group>,
        pair: Arc<Pair>,
        index: usize,
        timing: Timing,
    ) -> Result<Sender> {
        let stop = Arc::new(AtomicBool::new(false));
        let name = pair.name.clone();
        let me = Worker { ctx, local, group, pair, index, timing, stop: stop.clone() };
        let thread = std::thread::Builder::new().name(format!("pair-{}", me.pair.name)).spawn(move || me.run())?;
        Ok(Sender { index, pair: name, stop, thread })
    }

    /// Ends the thread. Not to be called from within it.
    pub fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        if self.thread.thread().id() != std::thread::current().id() {
            let _ = self.thread.join();
        }
    }
}

/// The same after the peer said that its disk is full: what was sent is sent again each time.
const BACKOFF_FULL: Duration = Duration::from_secs(3);

struct Worker {
    ctx: Arc<dyn SenderCtx>,
    local: Arc<LocalGroup>,
    group: Arc<Group>,
    pair: Arc<Pair>,
    index: usize,
    timing: Timing,
    stop: Arc<AtomicBool>,
}

impl Worker {
    fn run(&self) {
        let mut pause = BACKOFF.0;
        if matches!(self.pair.state(), State::Copy | State::PsueCopy(_)) {
            self.group.queue.at_most(self.index, Keep::Nothing);
        }
        while !self.stop.load(Ordering::SeqCst) && !self.group.is_stopped() {
            let held = self.ctx.held(&self.pair.peer);
            let halts = self.pair.halts();
            // By an order that makes the pair only when both ends are found to be equal.
            let vouch = self.pair.vouch();
            let vouched = vouch.is_some();
            let idle = matches!(self.pair.state(), State::Smpl | State::Psus | State::PsusCopy) && !vouched;
            // A pair that does not exist holds nothing in the journal: its next copy is of everything.
            let simplex = self.pair.state() == State::Smpl && !vouched;
            if simplex != self.group.progress(self.index).simplex {
                self.group.update(self.index, |p| p.simplex = simplex);
            }
            if idle {
                // Nothing goes to disk for a pair that waits for its operator: the journal serves it.
                let keep = if self.pair.state() == State::Psus { Keep::Memory } else { Keep::Nothing };
                self.group.queue.at_most(self.index, keep);
            }
            if held.is_some() || idle {
                if let Some(why) = held {
                    self.pair.settle_vouch(Err(Error::link(why.clone())));
                    self.lost(Failure { reason: Reason::LinkLost, error: Error::link(why) });
                }
                std::thread::sleep(Duration::from_millis(50));
                continue;
            }
            let ended = self.session(vouch, halts);
            if vouched {
                self.pair.settle_vouch(Err(match &ended {
                    Err(f) => f.error.clone(),
                    Ok(_) => Error::link("the link was ended before both sides were compared"),
                }));
            }
            match ended {
                Ok(End::Stopped) => {
                    // Not by an order for the pair: a fault like any other, which is persisted first.
                    match self.ctx.held(&self.pair.peer) {
                        Some(why) => self.lost(Failure { reason: Reason::LinkLost, error: Error::link(why) }),
                        None => self.release(),
                    }
                    pause = BACKOFF.0;
                }
                Ok(End::Stale) => {
                    self.release();
                    let local = self.local.clone();
                    std::thread::spawn(move || local.demote("a peer follows a newer primary"));
                    return;
                }
                Err(f) => {
                    let full = matches!(f.reason, Reason::NeedsSpace | Reason::Full);
                    self.lost(f);
                    self.rest(if full { BACKOFF_FULL } else { pause });
                    pause = (pause * 2).min(BACKOFF.1);
                }
            }
        }
        self.pair.settle_vouch(Err(Error::failed("this site is not primary any more")));
        self.release();
    }

    /// Sleeps, unless it is to end.
    fn rest(&self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until && !self.stop.load(Ordering::SeqCst) && !self.group.is_stopped() {
            std::thread::sleep(Duration::from_millis(50).min(time));
        }
    }

    /// Persists the fault first; only then are the answers released that waited for this peer.
    fn lost(&self, f: Failure) {
        let was = self.pair.state();
        if planted(Bug::ReleaseBeforePersist) {
            self.release();
            std::thread::sleep(Duration::from_millis(20));
        }
        self.split_journal();
        if !matches!(was, State::Smpl | State::Psus | State::PsusCopy) {
            let mut why = f.error.to_string();
            if let Some(behind) = self.group.queue.given_up(self.index).filter(|b| *b != why) {
                why = format!("{why}; {behind}");
            }
            let why = Some(why);
            if let Err(e) = self.pair.event(Event::Fault(f.reason), why) {
                log::error!("group {} pair {}: {e}", self.group.name, self.pair.name);
            }
        }
        self.release();
    }

    /// Before what comes next is recorded: at once, so that little came after what the peer has.
    fn split_journal(&self) {
        if (self.pair.state() == State::Pair || self.group.progress(self.index).enforced.is_some())
            && let Err(e) = self.group.split_journal(self.index)
        {
            log::error!("group {}: {e}", self.group.name);
        }
    }

    fn release(&self) {
        self.split_journal();
        self.pair.set_link(false);
        let refused = self.group.release(self.index, || self.pair.unfenced());
        if refused != Refused::default() {
            let left = match refused.left {
                0 => String::new(),
                n => format!("; {n} of them could not be undone here"),
            };
            let reason = Some(format!(
                "{} requests under way were refused and undone; site {} may have {} of their entries{left}",
                refused.calls, self.pair.peer, refused.doubts
            ));
            let to = Some("noted".to_owned());
            self.pair.tell(events::Event { to, reason, ..events::Event::new(events::What::InDoubt) });
        }
    }

    fn session(&self, vouch: Option<Arc<Vouch>>, halts: u64) -> session::Step<End> {
        let link = self.ctx.dial(&self.pair.peer)?;
        let stop = Arc::new(AtomicBool::new(false));
        let opening = Opening {
            group: self.group.clone(),
            pair: self.pair.clone(),
            index: self.index,
            site: self.local.site.clone(),
            timing: self.timing,
            stop: stop.clone(),
            vouch: vouch.clone(),
            halts,
        };
        let mut s = match session::open(opening, link)? {
            Ok(s) => s,
            Err(end) => return Ok(end),
        };
        self.pair.set_link(true);
        // The session watches one flag; this thread's wishes are folded into it.
        let (flag, mine, ctx, pair) = (stop.clone(), self.stop.clone(), self.ctx.clone(), self.pair.clone());
        let over = Arc::new(AtomicBool::new(false));
        let o = over.clone();
        let group = self.group.clone();
        std::thread::Builder::new()
            .name("pair-watch".into())
            .spawn(move || {
                while !o.load(Ordering::SeqCst) {
                    let suspended = match pair.state() {
                        _ if pair.halts() != halts => true,
                        State::Smpl => vouch.is_none(),
                        s => matches!(s, State::Psus | State::PsusCopy | State::Suspending),
                    };
                    if mine.load(Ordering::SeqCst) || suspended || ctx.held(&pair.peer).is_some() {
                        flag.store(true, Ordering::SeqCst);
                        group.queue.wake();
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
            })
            .map_err(Error::from)?;
        let r = s.run();
        over.store(true, Ordering::SeqCst);
        if self.pair.mode == Mode::Async && self.pair.state() == State::Suspending {
            self.pair.event(Event::Drained, None)?;
        }
        let deleted = match self.pair.state() {
            State::Smpl => Some(true),
            State::Psus | State::PsusCopy => Some(false),
            _ => None,
        };
        if let Some(deleted) = deleted {
            // If the link is gone already, the peer takes it for lost: nothing better can be known there.
            let _ = s.say(&Msg::Parting { deleted });
        }
        r
    }
}
