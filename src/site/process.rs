//! Node processes: start one in the background, recognise it by its pid file, end it.

use crate::base::{At, Error, Kind, Result};
use crate::node::control::{self, Request};
use crate::node::status::Status;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How much of a log an error shows, bytes.
const TAIL_BYTES_MAX: u64 = 4096;
/// How much of a log an error shows, lines.
const TAIL_LINES_MAX: usize = 12;
/// How often a state is looked at.
pub const POLL: Duration = Duration::from_millis(50);
/// How long a node has for a plain status.
pub const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

/// Called while something is waited for, with where it stands; an error ends the waiting with it.
pub type Notify<'a> = &'a dyn Fn(&str) -> Result<()>;

/// Where a node's files are.
#[derive(Clone, Debug)]
pub struct NodeFiles {
    /// Its site file, absolute.
    pub config: PathBuf,
    /// Its state directory.
    pub state_dir: PathBuf,
    /// Its pid file.
    pub pid_file: PathBuf,
    /// Its log.
    pub log_file: PathBuf,
}

impl NodeFiles {
    /// The process id, if this node (and not another process that got its number) runs.
    pub fn running(&self) -> Option<i32> {
        let pid: i32 = std::fs::read_to_string(&self.pid_file).ok()?.trim().parse().ok()?;
        (pid > 0 && self.is_ours(pid)).then_some(pid)
    }

    fn is_ours(&self, pid: i32) -> bool {
        let Ok(cmd) = std::fs::read(format!("/proc/{pid}/cmdline")) else { return false };
        cmd.split(|b| *b == 0).any(|a| a == self.config.as_os_str().as_bytes())
    }

    /// Asks for its status, for at most [`STATUS_TIMEOUT`].
    pub fn status(&self) -> Result<Status> {
        let v = control::call_within(&self.state_dir, &Request::Status {}, Some(STATUS_TIMEOUT), |_| ())?;
        serde_json::from_value(v).map_err(|e| Error::failed(format!("status of {}: {e}", self.config.display())))
    }

    /// Starts the node in the background and waits until it answers. The error has the end of its log.
    pub fn start(&self, timeout: Duration, notify: Notify<'_>) -> Result<()> {
        let exe = std::env::current_exe().at("finding the program itself")?;
        let open = |p: &Path| std::fs::OpenOptions::new().create(true).append(true).open(p);
        let log = open(&self.log_file).at(self.log_file.display())?;
        let from = log.metadata().map_or(0, |m| m.len());
        let mut child = Command::new(&exe)
            // It may have been called by another name.
            .arg0("kagami")
            .arg("--config")
            .arg(&self.config)
            .args(["node", "--detached", "--pid-file"])
            .arg(&self.pid_file)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .current_dir("/")
            .spawn()
            .at(exe.display())?;
        let deadline = Instant::now() + timeout;
        let pid = child.id() as i32;
        let up = loop {
            if let Some(code) = child.try_wait()? {
                break Err(self.ended(code, from));
            }
            if control::is_running(&self.state_dir) && self.running() == Some(pid) {
                break Ok(());
            }
            if Instant::now() > deadline {
                let msg = format!("the node did not answer within {} s{}", timeout.as_secs(), self.tail(from));
                break Err(Error::new(Kind::Timeout, msg));
            }
            if let Err(e) = notify("starting") {
                break Err(e);
            }
            std::thread::sleep(POLL / 2);
        };
        if up.is_err() {
            let _ = child.kill();
        }
        // Whoever starts nodes and goes on must also take note of their end, or they stay as zombies.
        std::thread::spawn(move || drop(child.wait()));
        up
    }

    fn ended(&self, code: std::process::ExitStatus, from: u64) -> Error {
        let kind = match code.code() {
            Some(2) => Kind::Config,
            Some(4) => Kind::Refused,
            _ => Kind::Failed,
        };
        Error::new(kind, format!("the node did not start ({code}){}", self.tail(from)))
    }

    /// The end of the log after `from`, for an error message.
    pub fn tail(&self, from: u64) -> String {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut f = std::fs::File::open(&self.log_file)?;
            let len = f.metadata()?.len();
            f.seek(SeekFrom::Start(from.max(len.saturating_sub(TAIL_BYTES_MAX)).min(len)))?;
            let mut b = Vec::new();
            f.take(TAIL_BYTES_MAX).read_to_end(&mut b)?;
            Ok(b)
        };
        let text = String::from_utf8_lossy(&read().unwrap_or_default()).into_owned();
        let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
        let last = lines.get(lines.len().saturating_sub(TAIL_LINES_MAX)..).unwrap_or_default();
        match last.is_empty() {
            true => format!("; its log is {}", self.log_file.display()),
            false => format!("; the end of {}:\n  {}", self.log_file.display(), last.join("\n  ")),
        }
    }

    /// Kills the node (SIGKILL) and waits until it is gone. False if it was not running.
    pub fn kill(&self) -> Result<bool> {
        let Some(pid) = self.running() else { return Ok(false) };
        self.signal(pid, libc::SIGKILL)?;
        match self.wait_end(pid, Duration::from_secs(30)) {
            true => Ok(true),
            false => Err(Error::new(Kind::Timeout, format!("process {pid} does not end; the kernel still holds it"))),
        }
    }

    /// Ends the node: SIGTERM, after `grace` SIGKILL. True if it ended by itself; `None` if it was not running.
    pub fn stop(&self, grace: Duration) -> Result<Option<bool>> {
        let Some(pid) = self.running() else { return Ok(None) };
        self.signal(pid, libc::SIGTERM)?;
        let clean = self.wait_end(pid, grace);
        if !clean {
            self.kill()?;
        }
        Ok(Some(clean))
    }

    fn signal(&self, pid: i32, signal: i32) -> Result<()> {
        match crate::os::sys::kill(pid, signal) {
            Err(e) if e.raw_os_error() != Some(libc::ESRCH) => Err(e).at(format!("ending process {pid}")),
            _ => Ok(()),
        }
    }

    fn wait_end(&self, pid: i32, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let Some(started) = start_time(pid) else { return true };
        while start_time(pid) == Some(started) {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(POLL / 5);
        }
        true
    }
}

/// When a process started, in the kernel's ticks; `None` when it ended. A killed process whose threads are still in the
/// kernel has not ended: it may still hold its region's lock. One that only waits for its parent to notice has.
fn start_time(pid: i32) -> Option<u64> {
    let seen = crate::os::process::look(pid)?;
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    (!seen.zombie || threads > 1).then_some(seen.started)
}
