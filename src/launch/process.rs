//! Processes as the supervisor sees them: started through a guard, told what to do, heard of.

use super::app::App;
use crate::base::{At, Error, Result};
use crate::os::process::{self, End};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

/// The program of the guards: this one, even if its file was replaced since.
pub const OWN_PROGRAM: &str = "/proc/self/exe";
/// How long a guard may take to read what it is told.
const TELL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the session of a killed guard is swept.
const SWEEP_TIME: Duration = Duration::from_secs(5);

/// A process to start, as its guard is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// Program: a path, or a name to be found in `PATH`.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Working directory.
    pub dir: PathBuf,
    /// User it runs as; `None`: the node's own.
    pub user: Option<String>,
    /// Its environment; `PATH`, `HOME`, `USER`, `LOGNAME` and `SHELL` are set where they are not in it.
    pub env: BTreeMap<String, String>,
    /// File that its output is appended to.
    pub log: PathBuf,
}

impl Launch {
    /// The application itself; its output goes to `NAME.log`.
    pub fn of(app: &App, log_dir: &Path) -> Launch {
        Launch {
            program: app.command.clone(),
            args: app.args.clone(),
            dir: app.dir.clone(),
            user: app.user.clone(),
            env: app.env.clone(),
            log: log_dir.join(format!("{}.log", app.name)),
        }
    }

    /// A command that belongs to it, run as the same user in the same place; its output goes to `NAME.WHAT.log`.
    pub fn command(app: &App, what: &str, command: &[String], log_dir: &Path) -> Launch {
        let (program, args) =
            command.split_first().map_or((String::new(), Vec::new()), |(p, a)| (p.clone(), a.to_vec()));
        let log = log_dir.join(format!("{}.{what}.log", app.name));
        Launch { program: program.into(), args, log, ..Launch::of(app, log_dir) }
    }
}

/// What a guard is told.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToGuard {
    /// Send a signal to the first process; when that has ended, to all it left.
    Signal(i32),
    /// Kill everything.
    Kill,
}

/// What a guard tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromGuard {
    /// The process runs under this number.
    Started(i32),
    /// It could not be started; why, for people.
    Failed(String),
    /// The process ended.
    Ended {
        /// How.
        end: End,
        /// Others that came of it run on.
        left: bool,
    },
    /// Nothing is left, and the guard ends too. The last news, whatever happened.
    Gone,
}

/// How to start guards, and how many there are.
#[derive(Clone, Debug)]
pub struct Guards {
    program: PathBuf,
    live: Arc<AtomicUsize>,
}

impl Guards {
    /// Guards are started from `program`, a kagami ([`OWN_PROGRAM`] in the node).
    pub fn new(program: &Path) -> Guards {
        Guards { program: program.to_owned(), live: Arc::default() }
    }

    /// Guards that have not ended, and so the processes that may still use the volume.
    pub fn live(&self) -> usize {
        self.live.load(Ordering::Acquire)
    }

    /// Starts a process. `news` is called from a thread of its own, and last with [`FromGuard::Gone`].
    pub fn start(&self, name: &str, launch: &Launch, news: impl Fn(FromGuard) + Send + 'static) -> Result<Guarded> {
        let mut spec = serde_json::to_vec(launch).map_err(|e| Error::failed(format!("its definition: {e}")))?;
        spec.push(b'\n');
        let (socket, theirs) = UnixStream::pair().at("making a socket")?;
        socket.set_write_timeout(Some(TELL_TIMEOUT))?;
        let answers = socket.try_clone()?;
        let guard = Command::new(&self.program)
            .arg0("kagami")
            .args(["guard", name])
            .env_clear()
            .current_dir("/")
            .process_group(0)
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .at(format!("starting a guard ({})", self.program.display()))?;
        self.live.fetch_add(1, Ordering::AcqRel);
        let live = self.live.clone();
        std::thread::spawn(move || {
            listen(guard, answers, &news);
            live.fetch_sub(1, Ordering::AcqRel);
            news(FromGuard::Gone);
        });
        let guarded = Guarded { socket };
        // If the guard is gone already, the listener says so.
        let _ = (&guarded.socket).write_all(&spec);
        Ok(guarded)
    }
}

/// A process with its guard. Dropped: everything of it is killed.
#[derive(Debug)]
pub struct Guarded {
    socket: UnixStream,
}

impl Guarded {
    /// Sends a signal to the first process; when that has ended, to all it left.
    pub fn signal(&self, signal: i32) {
        self.tell(&ToGuard::Signal(signal));
    }

    /// Kills everything.
    pub fn kill(&self) {
        self.tell(&ToGuard::Kill);
    }

    fn tell(&self, what: &ToGuard) {
        let mut line = serde_json::to_vec(what).unwrap_or_default();
        line.push(b'\n');
        // A guard that is gone has nothing left to tell it; the listener says so.
        let _ = (&self.socket).write_all(&line);
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Write);
    }
}

/// Passes on what the guard says until it has ended.
fn listen(mut guard: Child, answers: UnixStream, news: &impl Fn(FromGuard)) {
    let mut first = None;
    let mut clean = false;
    for line in BufReader::new(answers).lines() {
        match line.ok().and_then(|l| serde_json::from_str(&l).ok()) {
            Some(FromGuard::Gone) => clean = true,
            Some(what) => {
                match &what {
                    FromGuard::Started(pid) => first = process::look(*pid),
                    FromGuard::Failed(_) => clean = true,
                    _ => {}
                }
                news(what);
            }
            None => break,
        }
    }
    let end = guard.wait();
    if clean {
        return;
    }
    let how = end.map_or_else(|e| e.to_string(), |s| s.to_string());
    match first {
        Some(first) => {
            log::error!("the guard of process {} ended ({how}); the process and its session are killed", first.pid);
            sweep(first);
        }
        None => news(FromGuard::Failed(format!("its guard ended ({how})"))),
    }
}

/// Kills the session of a process whose guard is gone.
fn sweep(first: process::Seen) {
    let until = Instant::now() + SWEEP_TIME;
    loop {
        let all = process::all().unwrap_or_default();
        // Members of a session started after the process that began it; another session of that number began later too,
        // but only when nothing was left of this one.
        let rest: Vec<_> = all
            .iter()
            .filter(|s| s.session == first.pid && !s.zombie && (s.pid != first.pid || s.started == first.started))
            .collect();
        if rest.is_empty() || Instant::now() > until {
            return;
        }
        for s in rest {
            let _ = process::signal(s, libc::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A command on its way, see [`run`]. Dropped: it is killed.
#[derive(Debug)]
pub struct Running {
    cancel: Sender<Option<FromGuard>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.cancel.send(None);
    }
}

/// Runs a command to its end, at most for `limit`, in a thread of its own; then everything it left is killed, and `done`
/// is called with what went wrong, if anything did.
pub fn run(
    guards: &Guards,
    name: &str,
    launch: &Launch,
    limit: Duration,
    done: impl FnOnce(std::result::Result<(), String>) + Send + 'static,
) -> Running {
    let (tx, rx) = mpsc::channel();
    let (guards, name, launch, cancel) = (guards.clone(), name.to_owned(), launch.clone(), tx.clone());
    std::thread::spawn(move || {
        let guarded = guards.start(&name, &launch, move |n| drop(tx.send(Some(n))));
        let until = Instant::now() + limit;
        let result = match &guarded {
            Err(e) => Err(e.msg.clone()),
            Ok(_) => loop {
                match rx.recv_timeout(until.saturating_duration_since(Instant::now())) {
                    Ok(Some(FromGuard::Started(_))) => {}
                    Ok(Some(FromGuard::Ended { end: End::Code(0), .. })) => break Ok(()),
                    Ok(Some(FromGuard::Ended { end, .. })) => break Err(format!("ended with {end}")),
                    Ok(Some(FromGuard::Failed(why))) => break Err(why),
                    Ok(Some(FromGuard::Gone)) => break Err("its guard was killed".into()),
                    Ok(None) | Err(RecvTimeoutError::Disconnected) => break Err("was called off".into()),
                    Err(RecvTimeoutError::Timeout) => {
                        break Err(format!("did not end within {} s", limit.as_secs_f32()));
                    }
                }
            },
        };
        drop(guarded);
        done(result);
    });
    Running { cancel }
}
