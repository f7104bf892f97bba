//! The thread of an outgoing pair: dials, runs sessions, and keeps the pair's state true between them.

use super::local::LocalGroup;
use super::pairs::Pair;
use super::session::{self, End, Failure, Opening, Timing};
use crate::base::{Epoch, Result, Seq};
use crate::net::Link;
use crate::pair::state::{Event, Mode, Reason, State};
use crate::volume::group::Group;
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
    /// Asks the site at the other end whether it knows a newer primary: `Ok(false)` when it does.
    fn newest(&self, group: &str, pair: &Pair, group_id: u64, chain: &[Epoch], head: Seq) -> Result<bool>;
}

/// A running sender.
pub struct Sender {
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
        volumes: Vec<(String, String, u32)>,
        timing: Timing,
    ) -> Result<Sender> {
        let stop = Arc::new(AtomicBool::new(false));
        let me = Worker { ctx, local, group, pair, index, volumes, timing, stop: stop.clone() };
        let thread = std::thread::Builder::new().name(format!("pair-{}", me.pair.name)).spawn(move || me.run())?;
        Ok(Sender { stop, thread })
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
    volumes: Vec<(String, String, u32)>,
    timing: Timing,
    stop: Arc<AtomicBool>,
}

impl Worker {
    fn run(&self) {
        let mut pause = BACKOFF.0;
        while !self.stop.load(Ordering::SeqCst) && !self.group.is_stopped() {
            let held = self.ctx.held(&self.pair.peer);
            let idle = matches!(self.pair.state(), State::Smpl | State::Psus | State::PsusCopy);
            if held.is_some() || idle {
                if let Some(why) = held {
                    self.lost(Failure { reason: Reason::LinkLost, error: crate::base::Error::link(why) });
                }
                std::thread::sleep(Duration::from_millis(50));
                continue;
            }
            match self.session() {
                Ok(End::Stopped) => {
                    self.release();
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
        if !matches!(was, State::Smpl | State::Psus | State::PsusCopy) {
            let why = Some(f.error.to_string());
            if let Err(e) = self.pair.event(Event::Fault(f.reason), why) {
                log::error!("group {} pair {}: {e}", self.group.name, self.pair.name);
            }
        }
        if matches!(was, State::Pair) || self.group.progress(self.index).enforced.is_some() {
            let mut m = self.group.replica.order();
            if let Err(e) = self.group.rotate(&mut m) {
                log::error!("group {}: {e}", self.group.name);
            }
        }
        self.release();
    }

    fn release(&self) {
        self.pair.set_link(false);
        if self.group.progress(self.index).enforced.is_some() {
            self.group.update(self.index, |p| p.enforced = None);
        }
    }

    fn session(&self) -> session::Step<End> {
        let link = self.ctx.dial(&self.pair.peer)?;
        let stop = Arc::new(AtomicBool::new(false));
        let opening = Opening {
            group: self.group.clone(),
            pair: self.pair.clone(),
            index: self.index,
            site: self.local.site.clone(),
            volumes: self.volumes.clone(),
            group_id: self.group.replica.group_id(),
            timing: self.timing,
            stop: stop.clone(),
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
                    let suspended =
                        matches!(pair.state(), State::Smpl | State::Psus | State::PsusCopy | State::Suspending);
                    if mine.load(Ordering::SeqCst) || suspended || ctx.held(&pair.peer).is_some() {
                        flag.store(true, Ordering::SeqCst);
                        group.queue.wake();
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
            })
            .map_err(crate::base::Error::from)?;
        let r = s.run();
        over.store(true, Ordering::SeqCst);
        if self.pair.mode == Mode::Async && self.pair.state() == State::Suspending {
            self.pair.event(Event::Drained, None)?;
        }
        r
    }
}
