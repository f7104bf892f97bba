//! Waiting with something to look at: a line on a terminal, nothing in a script.

use super::{Site, table};
use crate::base::{Error, Kind, Result};
use crate::node::control::{self, Request};
use crate::node::status::{PairStatus, Status};
use indicatif::{ProgressBar, ProgressStyle};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often a state is looked at.
const POLL: Duration = Duration::from_millis(100);
/// How long a node may be silent when its state is looked at.
const SILENCE: Duration = Duration::from_secs(20);

/// A further Ctrl-C after this time ends the process at once. (Some senders signal process and group, so twice.)
const AGAIN: Duration = Duration::from_secs(2);

/// One line that changes in place on a terminal, and is gone at the end.
pub struct Line {
    bar: ProgressBar,
    interrupted: Option<Arc<AtomicBool>>,
}

impl Line {
    /// On standard error; hidden when that is no terminal.
    pub fn new() -> Line {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(120));
        Line { bar, interrupted: None }
    }

    /// Also ends the waiting on Ctrl-C, so that what was begun can be undone.
    pub fn interruptible() -> Result<Line> {
        // First of all: the line's own thread must not take the signal.
        let flag = interrupt_flag()?;
        let mut line = Line::new();
        line.interrupted = Some(flag);
        Ok(line)
    }

    /// Prints without disturbing the line.
    pub fn say(&self, text: &str) {
        self.bar.suspend(|| super::say(text));
    }

    /// Shows where it stands; an error after Ctrl-C.
    pub fn set(&self, text: &str) -> Result<()> {
        self.bar.set_message(text.to_owned());
        match &self.interrupted {
            Some(f) if f.load(Ordering::SeqCst) => Err(Error::failed("interrupted")),
            _ => Ok(()),
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// From now on SIGINT and SIGTERM set a flag instead of ending the process. To be called before threads are started.
pub fn interrupt_flag() -> Result<Arc<AtomicBool>> {
    let fd = crate::os::sys::signal_fd()?;
    let flag = Arc::new(AtomicBool::new(false));
    let set = flag.clone();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        // Each signal is one record of 128 bytes (signalfd(2)).
        let mut record = [0u8; 128];
        let mut first: Option<Instant> = None;
        while crate::os::sys::read(&fd, &mut record).is_ok_and(|n| n > 0) {
            set.store(true, Ordering::SeqCst);
            // Asked again, and not by the same keystroke: whoever cleans up does not come through.
            if first.get_or_insert_with(Instant::now).elapsed() > AGAIN {
                std::process::exit(130);
            }
        }
    })?;
    Ok(flag)
}

/// The status of the node, as a struct.
pub fn fetch(site: &Site) -> Result<Status> {
    let v = control::call_within(&site.config.node.state_dir, &Request::Status {}, Some(SILENCE), |_| ());
    serde_json::from_value(v.map_err(|e| site.hint(e))?)
        .map_err(|e| Error::failed(format!("the node's status is not understood ({e}); is it another version?")))
}

/// What a pair still needs, or nothing.
fn missing(p: &PairStatus, state: &str) -> Option<String> {
    if p.state == state && (state != "PAIR" || p.lag.is_zero()) {
        return None;
    }
    let mut s = format!("{} is in {}", p.name, p.state);
    if let Some(g) = &p.progress {
        s += &format!(": {}", table::progress(g));
    }
    if !p.lag.is_zero() {
        s += &format!(", lag {}", table::lag(&p.lag));
    }
    if let Some(r) = &p.reason {
        s += &format!(" ({r})");
    }
    Some(s)
}

/// `kagami pair wait`.
pub fn pair(site: &Site, group: &str, pair: Option<&str>, state: &str, timeout_s: f64) -> Result<()> {
    const STATES: [&str; 5] = ["SMPL", "COPY", "PAIR", "PSUS", "PSUE"];
    let state = state.to_uppercase();
    if !STATES.contains(&state.as_str()) {
        return Err(Error::config(format!(
            "--state {state} is no state of a pair; write one of {}",
            STATES.join(", ")
        )));
    }
    let limit = Duration::try_from_secs_f64(timeout_s)
        .map_err(|_| Error::config(format!("--timeout {timeout_s}: write a number of seconds")))?;
    let started = Instant::now();
    let line = Line::new();
    loop {
        let s = fetch(site)?;
        let Some(g) = s.groups.iter().find(|g| g.name == group) else {
            return Err(Error::failed(format!("the node has no group {group} yet; was its site file changed?")));
        };
        // A pair that this node has no end of says nothing here.
        let mine: Vec<&PairStatus> = g.pairs.iter().filter(|p| pair.is_none_or(|n| n == p.name)).collect();
        if mine.is_empty() {
            return Err(Error::config("this node has no end of that pair; ask one that has"));
        }
        let open: Vec<String> = mine
            .iter()
            .filter(|p| pair.is_some() || p.direction != "none")
            .filter_map(|p| missing(p, &state))
            .collect();
        let Some(first) = open.first() else { return Ok(()) };
        if started.elapsed() >= limit {
            return Err(Error::new(Kind::Timeout, format!("not {state} within {timeout_s} s: {}", open.join("; "))));
        }
        line.set(first)?;
        std::thread::sleep(POLL);
    }
}
