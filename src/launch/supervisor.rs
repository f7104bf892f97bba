//! The supervisor: a thread that does what [`super::supervise`] decides, and the handle to it (CD-8).

use super::app::{App, Stop};
use super::process::{FromGuard, Guarded, Guards, Launch, Running, run};
use super::ready;
use super::supervise::{Effect, Event, Machine, News, Order, StateName, Stopped};
use crate::base::{At, Error, Result};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long a supervisor that is dropped takes to stop its applications, at most.
pub const DROP_TIME: Duration = Duration::from_secs(10);
/// How much longer than promised the supervisor may take to answer.
const ANSWER_TIME: Duration = Duration::from_secs(2);
/// How often it is looked whether the last guards have ended.
const POLL: Duration = Duration::from_millis(10);
/// Longest sleep without an event.
const SLEEP_MAX: Duration = Duration::from_secs(3600);
/// A stop command without an end is ended with its application; this is only a bound for the thread that waits for it.
const STOP_COMMAND_MAX: Duration = Duration::from_secs(24 * 3600);

/// One application, for `status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppStatus {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub state: StateName,
    /// Its first process, while that runs.
    pub pid: Option<i32>,
    /// Starts after it had ended by itself.
    pub restarts: u64,
    /// Since when it stands there, seconds since 1970.
    pub since: u64,
    /// Why, and what is waited for; may be empty.
    pub reason: String,
}

enum Msg {
    Event(Event),
    Order(String, Order, Sender<Result<()>>),
    StopAll(Duration, Sender<()>),
}

/// Who is told of each change of state: the application, where it stands, and why (may be empty). Must not wait.
pub type Tell = Box<dyn Fn(&str, StateName, &str) + Send>;

/// What the thread leaves for the handle to read.
#[derive(Default)]
struct Shown {
    status: Mutex<Vec<AppStatus>>,
    stopped: Mutex<Option<Stopped>>,
}

/// The applications of a volume group, started and kept running. Dropped: all are stopped, within [`DROP_TIME`].
pub struct Supervisor {
    to: Sender<Msg>,
    shown: Arc<Shown>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Supervisor {
    /// Starts the applications, each when those it comes after are ready, and returns at once. What they print goes to
    /// `log_dir` (made if need be): `NAME.log`, `NAME.ready.log` and `NAME.stop.log`, each of bounded size with one
    /// predecessor (`.1`). `kagami` is the program that guards are started from:
    /// [`OWN_PROGRAM`](super::process::OWN_PROGRAM) in the node.
    ///
    /// Refused, with `FILE:LINE`: names that cannot be file names or are there twice, `after` of what is not there or in a
    /// circle. What goes wrong later is in [`Supervisor::status`].
    pub fn start(apps: Vec<App>, log_dir: &Path, kagami: &Path, tell: Tell) -> Result<Supervisor> {
        let machine = Machine::new(apps)?;
        std::fs::create_dir_all(log_dir).at(log_dir.display())?;
        let (to, from) = mpsc::channel();
        let shown = Arc::new(Shown::default());
        let mut shell = Shell {
            machine,
            guards: Guards::new(kagami),
            log_dir: log_dir.to_owned(),
            to: to.clone(),
            shown: shown.clone(),
            began: Instant::now(),
            began_at: SystemTime::now(),
            live: BTreeMap::new(),
            helpers: BTreeMap::new(),
            waiting: Vec::new(),
            tell,
        };
        shell.show();
        let thread = std::thread::Builder::new().name("supervisor".into()).spawn(move || shell.run(&from))?;
        Ok(Supervisor { to, shown, thread: Some(thread) })
    }

    /// Where each application stands, in the order of the list they came in. Never waits for one.
    pub fn status(&self) -> Vec<AppStatus> {
        self.shown.status.lock().clone()
    }

    /// Gives an order; it is carried out after this returns. Stopping one does not stop those that come after it.
    /// Fails for an unknown name, and when everything is being stopped.
    pub fn order(&self, name: &str, order: Order) -> Result<()> {
        let ended = || Error::refused("the applications were stopped; no order is taken any more");
        let (tx, rx) = mpsc::channel();
        self.to.send(Msg::Order(name.to_owned(), order, tx)).map_err(|_| ended())?;
        rx.recv().map_err(|_| ended())?
    }

    /// Stops all for good, those that came after others first, and waits: at most for `limit`, whatever they do. Each has
    /// its own time for stopping or its part of `limit` if that is shorter; then it is killed. The result names those.
    pub fn stop_all(&self, limit: Duration) -> Stopped {
        let (tx, rx) = mpsc::channel();
        if self.to.send(Msg::StopAll(limit, tx)).is_ok() {
            // The thread answers in time; this is for one that died.
            let _ = rx.recv_timeout(limit + ANSWER_TIME);
        }
        let everything = || Stopped { killed: vec![], left: self.status().into_iter().map(|s| s.name).collect() };
        self.shown.stopped.lock().clone().unwrap_or_else(everything)
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let stopped = self.stop_all(DROP_TIME);
        if !stopped.left.is_empty() {
            log::error!("applications that could not be ended: {}", stopped.left.join(", "));
        }
        if let Some(thread) = self.thread.take().filter(|_| self.shown.stopped.lock().is_some()) {
            let _ = thread.join();
        }
    }
}

struct Shell {
    machine: Machine,
    guards: Guards,
    log_dir: PathBuf,
    to: Sender<Msg>,
    shown: Arc<Shown>,
    began: Instant,
    began_at: SystemTime,
    live: BTreeMap<usize, Live>,
    /// Questions and stop commands on their way.
    helpers: BTreeMap<usize, Running>,
    waiting: Vec<Sender<()>>,
    tell: Tell,
}

/// The present or last run of an application. Dropped: all of it is killed.
struct Live {
    run: u64,
    started: SystemTime,
    guarded: Option<Guarded>,
}

impl Shell {
    fn run(&mut self, from: &Receiver<Msg>) {
        self.step(Event::Tick);
        loop {
            let now = self.began.elapsed();
            if let Some(result) = self.machine.stopped(now)
                && (self.guards.live() == 0 || self.machine.is_overdue(now))
            {
                match self.guards.live() {
                    0 => {}
                    n => log::error!("{n} processes of applications or their commands have not ended in time"),
                }
                *self.shown.stopped.lock() = Some(result);
                for reply in self.waiting.drain(..) {
                    let _ = reply.send(());
                }
                return;
            }
            let due = self.machine.next_wake().map_or(SLEEP_MAX, |at| at.saturating_sub(now)).min(SLEEP_MAX);
            let due = if self.waiting.is_empty() { due } else { due.min(POLL) };
            match from.recv_timeout(due) {
                Ok(Msg::Event(e)) => self.step(e),
                Ok(Msg::Order(name, order, reply)) => {
                    let found = self.machine.find(&name);
                    let _ = reply.send(found.map(|app| self.step(Event::Order { app, order })));
                }
                Ok(Msg::StopAll(limit, reply)) => {
                    self.waiting.push(reply);
                    self.step(Event::StopAll { by: self.began.elapsed() + limit });
                }
                Err(_) => self.step(Event::Tick),
            }
        }
    }

    fn step(&mut self, event: Event) {
        for effect in self.machine.step(event, self.began.elapsed()) {
            self.apply(effect);
        }
        self.show();
    }

    /// Sends news of the present run of an application, from any thread.
    fn teller(&self, app: usize) -> impl Fn(News) + Send + 'static {
        let (to, run) = (self.to.clone(), self.live.get(&app).map_or(0, |l| l.run));
        // A supervisor that has ended needs no news.
        move |news| drop(to.send(Msg::Event(Event::App { app, run, news })))
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Start { app, run } => self.start(app, run),
            Effect::Ask(app) => {
                let (tell, started) = (self.teller(app), self.live.get(&app).map_or(UNIX_EPOCH, |l| l.started));
                let Some(definition) = self.machine.app(app) else { return };
                let answer = move |a| tell(News::Answer(a));
                if let Some(running) = ready::ask(&self.guards, definition, started, &self.log_dir, answer) {
                    self.helpers.insert(app, running);
                }
            }
            Effect::StopCommand(app) => {
                let tell = self.teller(app);
                let Some(definition) = self.machine.app(app) else { return };
                let Stop::Command(command) = &definition.stop else { return };
                let launch = Launch::command(definition, "stop", command, &self.log_dir);
                let done = move |r| tell(News::StopCommand(r));
                let running = run(&self.guards, &format!("{}.stop", definition.name), &launch, STOP_COMMAND_MAX, done);
                self.helpers.insert(app, running);
            }
            Effect::Signal(app, signal) => self.guarded(app).iter().for_each(|g| g.signal(signal)),
            Effect::Kill(app) => self.guarded(app).iter().for_each(|g| g.kill()),
            Effect::EndHelpers(app) => drop(self.helpers.remove(&app)),
            Effect::Report(app) => self.report(app),
        }
    }

    fn guarded(&self, app: usize) -> Option<&Guarded> {
        self.live.get(&app)?.guarded.as_ref()
    }

    fn start(&mut self, app: usize, run: u64) {
        self.live.insert(app, Live { run, started: SystemTime::now(), guarded: None });
        let (tell, failed) = (self.teller(app), self.teller(app));
        let Some(definition) = self.machine.app(app) else { return };
        let news = move |n| match n {
            FromGuard::Started(pid) => tell(News::Started(pid)),
            FromGuard::Failed(why) => tell(News::StartFailed(why)),
            FromGuard::Ended { end, left } => tell(News::Ended { end, left }),
            FromGuard::Gone => tell(News::Gone),
        };
        match self.guards.start(&definition.name, &Launch::of(definition, &self.log_dir), news) {
            Ok(guarded) => {
                if let Some(live) = self.live.get_mut(&app) {
                    live.guarded = Some(guarded);
                }
            }
            Err(e) => {
                failed(News::StartFailed(e.msg));
                failed(News::Gone);
            }
        }
    }

    fn report(&self, app: usize) {
        let (Some(definition), Some(s)) = (self.machine.app(app), self.machine.standing(app)) else { return };
        (self.tell)(&definition.name, s.state, &s.reason);
        let reason = if s.reason.is_empty() { String::new() } else { format!(": {}", s.reason) };
        let level = match s.state {
            StateName::BackingOff | StateName::CrashLooping | StateName::Failed => log::Level::Warn,
            _ => log::Level::Info,
        };
        log::log!(level, "application {}: {}{reason}", definition.name, s.state);
    }

    fn show(&self) {
        let one = |i| {
            let (definition, s) = (self.machine.app(i)?, self.machine.standing(i)?);
            Some(AppStatus {
                name: definition.name.clone(),
                state: s.state,
                pid: s.pid,
                restarts: s.restarts,
                since: (self.began_at + s.since).duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
                reason: s.reason,
            })
        };
        *self.shown.status.lock() = (0..self.machine.count()).filter_map(one).collect();
    }
}
