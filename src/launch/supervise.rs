//! Which application is started, asked, told to end, killed and started again, and when: decided here, done elsewhere.
//!
//! ```text
//!            all of `after` ready                ready
//!  waiting ───────────────────────▶ starting ───────────▶ ready
//!    ▲  ▲                            │   │ not in time      │
//!    │  └── time is up ── backing ◀──┼───│──────────────────┤ ended by itself
//!    │                      off      │   │                  │
//!    │ restart, start                │   │                  │ stop, restart
//!    │                               ▼   ▼                  ▼
//!    └───────────────── stopped ◀── stopping: told, then killed
//!                       failed  ◀──┘
//!                       crash-looping: ended too often; stays so until it is started by order
//! ```
//!
//! - An application is its first process and all that came of it. While anything of it lives it is not started again.
//! - A first process that ends with code 0 and leaves others has gone to the background: it lives as long as any of them.
//! - What it was started after may end later: it goes on, and only its next start waits. Stopping one by order does not
//!   touch those that were started after it.
//! - One that ended with code 0 after it was ready, and is not to be started again, has done its work: for those
//!   after it that counts as ready.

use super::app::{App, Ready, Restart, Stop};
pub use super::words::{Effect, Event, News, Order, Standing, StateName, Stopped};
use crate::base::{Error, Result};
use crate::os::process::End;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Pause before the first start after an end; each further end doubles it.
pub const BACKOFF_FIRST: Duration = Duration::from_secs(1);
/// Longest pause before a start.
pub const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Ready for so long, earlier ends are forgotten.
pub const STEADY: Duration = Duration::from_secs(60);
/// So many ends within [`LOOP_WINDOW`] are a crash loop.
pub const LOOP_ENDS: usize = 5;
/// See [`LOOP_ENDS`].
pub const LOOP_WINDOW: Duration = Duration::from_secs(60);
/// Pause between an answer "not ready" and the next question.
pub const ASK_AGAIN: Duration = Duration::from_millis(250);
/// Of the time for stopping everything, this part is kept for killing, at most [`KILL_TIME_MAX`].
const KILL_TIME_PART: u32 = 4;
/// Longest time kept for killing.
pub const KILL_TIME_MAX: Duration = Duration::from_secs(2);
/// Longest name of an application, bytes.
pub const NAME_BYTES_MAX: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Starting {
        /// When it must be ready.
        by: Duration,
        /// When it is asked next; `None` while an answer is awaited.
        ask_at: Option<Duration>,
    },
    Ready,
    Stopping {
        /// When it is killed.
        kill_at: Duration,
        killed: bool,
        then: Then,
    },
    Stopped {
        /// It has done its work.
        done: bool,
    },
    BackingOff {
        until: Duration,
    },
    CrashLooping,
    Failed,
}

impl State {
    fn name(&self) -> StateName {
        match self {
            State::Waiting => StateName::Waiting,
            State::Starting { .. } => StateName::Starting,
            State::Ready => StateName::Ready,
            State::Stopping { .. } => StateName::Stopping,
            State::Stopped { .. } => StateName::Stopped,
            State::BackingOff { .. } => StateName::BackingOff,
            State::CrashLooping => StateName::CrashLooping,
            State::Failed => StateName::Failed,
        }
    }

    /// Something of it may live.
    fn runs(&self) -> bool {
        matches!(self, State::Starting { .. } | State::Ready | State::Stopping { .. })
    }
}

/// What follows a stop.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Then {
    Stay,
    Again,
    Fail(String),
}

#[derive(Debug)]
struct Item {
    app: App,
    after: Vec<usize>,
    state: State,
    since: Duration,
    reason: String,
    run: u64,
    pid: Option<i32>,
    /// How its first process ended; `None` also when it went to the background.
    end: Option<End>,
    start_failed: Option<String>,
    answer: String,
    ends: Vec<Duration>,
    failures: u32,
    restarts: u64,
}

#[derive(Debug)]
struct Closing {
    by: Duration,
    kill_at: Duration,
    killed: BTreeSet<usize>,
}

/// The machine: all applications of a node.
#[derive(Debug)]
pub struct Machine {
    items: Vec<Item>,
    closing: Option<Closing>,
}

fn seconds(d: Duration) -> String {
    format!("{} s", (d.as_secs_f64() * 10.0).round() / 10.0)
}

impl Machine {
    /// All of them, waiting. Refused: names that are no file names or are there twice, `after` of what is not there or in
    /// a circle.
    pub fn new(apps: Vec<App>) -> Result<Machine> {
        let mut numbers = BTreeMap::new();
        for (i, a) in apps.iter().enumerate() {
            let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            if !(1..=NAME_BYTES_MAX).contains(&a.name.len())
                || !a.name.chars().all(fine)
                || a.name.starts_with(['.', '-'])
            {
                return Err(Error::config(format!(
                    "{}: {:?} cannot name an application: letters, digits, - _ and . inside, at most {NAME_BYTES_MAX}",
                    a.source, a.name
                )));
            }
            if numbers.insert(a.name.clone(), i).is_some() {
                return Err(Error::config(format!("{}: there is another application {:?}", a.source, a.name)));
            }
        }
        let mut items = Vec::new();
        for app in apps {
            let number = |n: &String| {
                numbers.get(n).copied().ok_or_else(|| {
                    Error::config(format!("{}: {:?} comes after {n:?}, which is not defined", app.source, app.name))
                })
            };
            let after = app.after.iter().map(number).collect::<Result<Vec<usize>>>()?;
            items.push(Item::new(app, after));
        }
        let machine = Machine { items, closing: None };
        machine.check_circles()?;
        Ok(machine)
    }

    fn check_circles(&self) -> Result<()> {
        let mut placed = BTreeSet::new();
        loop {
            let next: Vec<usize> = (0..self.items.len())
                .filter(|i| !placed.contains(i) && self.after(*i).all(|d| placed.contains(&d)))
                .collect();
            if next.is_empty() {
                break;
            }
            placed.extend(next);
        }
        match self.items.iter().enumerate().find(|(i, _)| !placed.contains(i)) {
            Some((_, x)) => Err(Error::config(format!(
                "{}: {:?} comes after itself, through what it comes after",
                x.app.source, x.app.name
            ))),
            None => Ok(()),
        }
    }

    /// The number of an application, if orders are still taken.
    pub fn find(&self, name: &str) -> Result<usize> {
        if self.closing.is_some() {
            return Err(Error::refused("the applications are being stopped; no order is taken any more"));
        }
        self.items.iter().position(|x| x.app.name == name).ok_or_else(|| {
            let known: Vec<&str> = self.items.iter().map(|x| x.app.name.as_str()).collect();
            Error::config(format!("no application {name:?}: there are {}", known.join(", ")))
        })
    }

    /// One of them, as it is defined.
    pub fn app(&self, app: usize) -> Option<&App> {
        self.items.get(app).map(|x| &x.app)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.items.len()
    }

    /// Where one stands.
    pub fn standing(&self, app: usize) -> Option<Standing> {
        let x = self.items.get(app)?;
        let reason = if x.state == State::Waiting { self.waits_for(app) } else { x.reason.clone() };
        Some(Standing { state: x.state.name(), since: x.since, pid: x.pid, restarts: x.restarts, reason })
    }

    fn waits_for(&self, app: usize) -> String {
        let open = self.after(app).filter_map(|d| self.items.get(d)).filter(|d| !d.is_up());
        let names: Vec<String> = open.map(|d| format!("{} ({})", d.app.name, d.state.name())).collect();
        if names.is_empty() { String::new() } else { format!("waits for {}", names.join(", ")) }
    }

    fn after(&self, app: usize) -> impl Iterator<Item = usize> + '_ {
        self.items.get(app).into_iter().flat_map(|x| x.after.iter().copied())
    }

    /// When the next thing is due by time alone.
    pub fn next_wake(&self) -> Option<Duration> {
        let closing =
            self.closing.as_ref().map(|c| if self.running().any(|x| !x.is_killed()) { c.kill_at } else { c.by });
        let timers = self.items.iter().filter_map(|x| match x.state {
            State::Starting { by, ask_at } => Some(ask_at.map_or(by, |at| at.min(by))),
            State::Stopping { kill_at, killed: false, .. } => Some(kill_at),
            State::BackingOff { until } => Some(until),
            _ => None,
        });
        timers.chain(closing).min()
    }

    fn running(&self) -> impl Iterator<Item = &Item> {
        self.items.iter().filter(|x| x.state.runs())
    }

    /// The result of [`Event::StopAll`]: there when nothing runs, and at the latest when the time is up.
    pub fn stopped(&self, now: Duration) -> Option<Stopped> {
        let closing = self.closing.as_ref()?;
        let left: Vec<String> = self.running().map(|x| x.app.name.clone()).collect();
        (left.is_empty() || now >= closing.by).then(|| Stopped {
            killed: closing.killed.iter().filter_map(|i| self.app(*i)).map(|a| a.name.clone()).collect(),
            left,
        })
    }

    /// The time for stopping everything is up.
    pub fn is_overdue(&self, now: Duration) -> bool {
        self.closing.as_ref().is_some_and(|c| now >= c.by)
    }

    /// Takes an event and says what to do. `now` never goes back.
    pub fn step(&mut self, event: Event, now: Duration) -> Vec<Effect> {
        let mut out = Vec::new();
        match event {
            Event::Tick => {}
            Event::App { app, run, news } => {
                if self.items.get(app).is_some_and(|x| x.run == run && x.state.runs()) {
                    self.news(app, news, now, &mut out);
                }
            }
            Event::Order { app, order } => {
                if self.closing.is_none() {
                    self.order(app, order, now, &mut out);
                }
            }
            Event::StopAll { by } => {
                let kept = (by.saturating_sub(now) / KILL_TIME_PART).min(KILL_TIME_MAX);
                let kill_at = by.saturating_sub(kept);
                match &mut self.closing {
                    Some(c) => (c.by, c.kill_at) = (c.by.min(by), c.kill_at.min(kill_at)),
                    None => self.closing = Some(Closing { by, kill_at, killed: BTreeSet::new() }),
                }
            }
        }
        self.timers(now, &mut out);
        self.close(now, &mut out);
        self.starts(now, &mut out);
        out
    }

    fn set(&mut self, app: usize, state: State, reason: impl Into<String>, now: Duration, out: &mut Vec<Effect>) {
        let Some(x) = self.items.get_mut(app) else { return };
        (x.state, x.reason, x.since) = (state, reason.into(), now);
        out.push(Effect::Report(app));
    }

    fn news(&mut self, app: usize, news: News, now: Duration, out: &mut Vec<Effect>) {
        let Some(x) = self.items.get_mut(app) else { return };
        match news {
            News::Started(pid) => {
                x.pid = Some(pid);
                let at_once = x.app.ready == Ready::Started;
                if let State::Starting { ask_at, .. } = &mut x.state {
                    if at_once {
                        self.set(app, State::Ready, "", now, out);
                    } else {
                        *ask_at = Some(now);
                    }
                }
            }
            News::StartFailed(why) => x.start_failed = Some(format!("{}: {why}", x.app.source)),
            News::Answer(answer) => {
                let since = x.since;
                if let State::Starting { ask_at, .. } = &mut x.state {
                    match answer {
                        Ok(()) => {
                            let reason = format!("ready after {}", seconds(now.saturating_sub(since)));
                            self.set(app, State::Ready, reason, now, out);
                        }
                        Err(why) => (x.answer, *ask_at) = (why, Some(now + ASK_AGAIN)),
                    }
                }
            }
            News::Ended { end, left } => {
                x.pid = None;
                x.end = Some(end);
                match (&x.state, &x.app.stop) {
                    (State::Stopping { killed: true, .. }, _) => {}
                    // A shell that ends leaves what it ran: that is told to end as well.
                    (State::Stopping { .. }, Stop::Signal(n)) if left => out.push(Effect::Signal(app, *n)),
                    (State::Stopping { .. }, _) => {}
                    _ if left && end == End::Code(0) => x.end = None,
                    _ if left => out.push(Effect::Kill(app)),
                    _ => {}
                }
            }
            News::StopCommand(result) => {
                if let (State::Stopping { killed: false, .. }, Err(why)) = (&x.state, result) {
                    x.reason = format!("its stop command: {why}; sent SIGTERM");
                    out.extend([Effect::Report(app), Effect::Signal(app, libc::SIGTERM)]);
                }
            }
            News::Gone => self.gone(app, now, out),
        }
    }

    fn gone(&mut self, app: usize, now: Duration, out: &mut Vec<Effect>) {
        let Some(x) = self.items.get_mut(app) else { return };
        x.pid = None;
        out.push(Effect::EndHelpers(app));
        let (state, reason) = match (std::mem::replace(&mut x.state, State::Failed), x.start_failed.take()) {
            (State::Stopping { then: Then::Fail(why), .. }, _) => (State::Failed, why),
            (State::Stopping { then: Then::Again, .. }, _) => (State::Waiting, String::new()),
            (State::Stopping { killed, .. }, _) => {
                (State::Stopped { done: false }, if killed { "it had to be killed".into() } else { String::new() })
            }
            (_, Some(why)) => (State::Failed, why),
            (before, None) => x.ended(before == State::Ready, now),
        };
        self.set(app, state, reason, now, out);
    }

    fn order(&mut self, app: usize, order: Order, now: Duration, out: &mut Vec<Effect>) {
        let Some(x) = self.items.get_mut(app) else { return };
        if order != Order::Stop {
            x.ends.clear();
            x.failures = 0;
        }
        match (order, &mut x.state) {
            (Order::Start, State::Waiting | State::Starting { .. } | State::Ready) => {}
            (Order::Restart, State::Waiting) => {}
            (Order::Start | Order::Restart, State::Stopping { then, .. }) => *then = Then::Again,
            (Order::Stop, State::Stopping { then, .. }) => *then = Then::Stay,
            (Order::Restart, State::Starting { .. } | State::Ready) => {
                self.stop(app, Then::Again, "restart by order", None, now, out);
            }
            (Order::Stop, State::Starting { .. } | State::Ready) => {
                self.stop(app, Then::Stay, "by order", None, now, out);
            }
            (Order::Start | Order::Restart, _) => self.set(app, State::Waiting, "", now, out),
            (Order::Stop, State::Stopped { .. }) => {}
            (Order::Stop, _) => self.set(app, State::Stopped { done: false }, "by order", now, out),
        }
    }

    /// Tells a running application to end, and when it is killed: in its own time, or within `limit` if that is shorter.
    fn stop(
        &mut self,
        app: usize,
        then: Then,
        why: &str,
        limit: Option<Duration>,
        now: Duration,
        out: &mut Vec<Effect>,
    ) {
        let Some(x) = self.items.get(app) else { return };
        let own = x.app.stop_timeout;
        let kill_at = now + limit.map_or(own, |l| l.min(own));
        out.push(Effect::EndHelpers(app));
        out.push(match x.app.stop {
            Stop::Signal(n) => Effect::Signal(app, n),
            Stop::Command(_) => Effect::StopCommand(app),
        });
        self.set(app, State::Stopping { kill_at, killed: false, then }, why, now, out);
    }

    fn kill(&mut self, app: usize, out: &mut Vec<Effect>) {
        let Some(x) = self.items.get_mut(app) else { return };
        if let State::Stopping { killed, .. } = &mut x.state {
            *killed = true;
            x.reason =
                format!("{}{}did not end in time: killed", x.reason, if x.reason.is_empty() { "" } else { "; " });
            out.extend([Effect::EndHelpers(app), Effect::Kill(app), Effect::Report(app)]);
            if let Some(c) = &mut self.closing {
                c.killed.insert(app);
            }
        }
    }

    fn timers(&mut self, now: Duration, out: &mut Vec<Effect>) {
        for app in 0..self.items.len() {
            let Some(x) = self.items.get_mut(app) else { return };
            match &mut x.state {
                State::Starting { by, .. } if now >= *by => {
                    let last = if x.answer.is_empty() { String::new() } else { format!("; last answer: {}", x.answer) };
                    let why = format!("not ready within {}{last}", seconds(x.app.ready_timeout));
                    self.stop(app, Then::Fail(why.clone()), &why, None, now, out);
                }
                State::Starting { ask_at, .. } if ask_at.is_some_and(|at| now >= at) => {
                    *ask_at = None;
                    out.push(Effect::Ask(app));
                }
                State::Stopping { kill_at, killed: false, .. } if now >= *kill_at => self.kill(app, out),
                State::BackingOff { until } if now >= *until => {
                    x.restarts += 1;
                    let why = x.reason.clone();
                    self.set(app, State::Waiting, why, now, out);
                }
                _ => {}
            }
        }
    }

    /// While everything is being stopped: each is told when nothing that came after it runs, and has its part of the time
    /// that is left, so that the last in the order (the database) has some too.
    fn close(&mut self, now: Duration, out: &mut Vec<Effect>) {
        let Some(kill_at) = self.closing.as_ref().map(|c| c.kill_at) else { return };
        for app in 0..self.items.len() {
            let free = !self.running().any(|x| x.after.contains(&app));
            let stages = self.stages(app);
            let Some(x) = self.items.get_mut(app) else { return };
            let limit = kill_at.saturating_sub(now) / stages;
            match &mut x.state {
                State::Waiting | State::BackingOff { .. } => {
                    self.set(app, State::Stopped { done: false }, "everything is stopped", now, out);
                }
                State::Starting { .. } | State::Ready if free || now >= kill_at => {
                    self.stop(app, Then::Stay, "everything is stopped", Some(limit), now, out);
                }
                State::Stopping { kill_at: own, killed: false, then } => {
                    *own = (*own).min(kill_at);
                    if *then == Then::Again {
                        *then = Then::Stay;
                    }
                }
                _ => {}
            }
            let due = |x: &Item| matches!(x.state, State::Stopping { kill_at, killed: false, .. } if now >= kill_at);
            if self.items.get(app).is_some_and(due) {
                self.kill(app, out);
            }
        }
    }

    /// How many must still be stopped one after another, from this one on.
    fn stages(&self, app: usize) -> u32 {
        let below = self.after(app).filter(|d| self.items.get(*d).is_some_and(|x| x.state.runs()));
        1 + below.map(|d| self.stages(d)).max().unwrap_or(0)
    }

    fn starts(&mut self, now: Duration, out: &mut Vec<Effect>) {
        if self.closing.is_some() {
            return;
        }
        for app in 0..self.items.len() {
            let up = self.after(app).all(|d| self.items.get(d).is_some_and(Item::is_up));
            let Some(x) = self.items.get_mut(app).filter(|x| up && x.state == State::Waiting) else { continue };
            x.run += 1;
            (x.end, x.start_failed) = (None, None);
            x.answer.clear();
            let (run, by) = (x.run, now + x.app.ready_timeout);
            self.set(app, State::Starting { by, ask_at: None }, "", now, out);
            out.push(Effect::Start { app, run });
        }
    }
}

impl Item {
    fn new(app: App, after: Vec<usize>) -> Item {
        Item {
            app,
            after,
            state: State::Waiting,
            since: Duration::ZERO,
            reason: String::new(),
            run: 0,
            pid: None,
            end: None,
            start_failed: None,
            answer: String::new(),
            ends: Vec::new(),
            failures: 0,
            restarts: 0,
        }
    }

    /// Those after it may start.
    fn is_up(&self) -> bool {
        matches!(self.state, State::Ready | State::Stopped { done: true })
    }

    fn is_killed(&self) -> bool {
        matches!(self.state, State::Stopping { killed: true, .. })
    }

    /// It ended by itself: what follows. `since` is still the time it became ready, if it was.
    fn ended(&mut self, was_ready: bool, now: Duration) -> (State, String) {
        let text = match self.end {
            Some(end) => format!("ended with {end}"),
            None => "ended in the background".into(),
        };
        let ok = self.end == Some(End::Code(0));
        let again = match self.app.restart {
            Restart::Always => true,
            Restart::OnFailure => !ok,
            Restart::Never => false,
        };
        match (again, ok) {
            (false, true) if was_ready => return (State::Stopped { done: true }, text),
            (false, true) => return (State::Stopped { done: false }, format!("{text} before it was ready")),
            (false, false) => return (State::Failed, format!("{text}; it is not to be started again")),
            (true, _) => {}
        }
        if was_ready && now.saturating_sub(self.since) >= STEADY {
            self.failures = 0;
            self.ends.clear();
        }
        self.ends.push(now);
        self.ends.retain(|at| now.saturating_sub(*at) < LOOP_WINDOW);
        if self.ends.len() >= LOOP_ENDS {
            let (n, window) = (self.ends.len(), seconds(LOOP_WINDOW));
            return (State::CrashLooping, format!("ended {n} times within {window}, last: {text}; start it by order"));
        }
        let pause = backoff(self.failures);
        self.failures = self.failures.saturating_add(1);
        (State::BackingOff { until: now + pause }, format!("{text}; started again in {}", seconds(pause)))
    }
}

/// Pause before the next start, after so many ends before this one.
pub fn backoff(failures: u32) -> Duration {
    BACKOFF_FIRST.saturating_mul(2u32.saturating_pow(failures)).min(BACKOFF_MAX)
}
