//! What happened: lines of the world and of the nodes' log, of which the last are kept and printed when a seed fails, and, for
//! comparing two runs, every single call (`KAGAMI_SIM_CALLS=FILE` writes `FILE.PID`).

use super::{World, on, order, within, world};
use crate::real;
use log::{Level, LevelFilter, Log, Metadata, Record};
use std::collections::VecDeque;
use std::io::Write;
use std::os::fd::IntoRawFd;

/// Lines kept.
const LINES_MAX: usize = 400;
/// Longest line, bytes.
const LINE_BYTES_MAX: usize = 4000;

/// The last lines.
pub struct Ring {
    lines: VecDeque<String>,
    /// Where every call is written, if anywhere.
    calls: Option<i32>,
    /// Lines are printed as they come.
    loud: bool,
}

impl Ring {
    pub fn new() -> Ring {
        let file = |p: String| std::fs::File::create(format!("{p}.{}", std::process::id())).ok();
        let calls = std::env::var("KAGAMI_SIM_CALLS").ok().and_then(file);
        let loud = std::env::var_os("KAGAMI_SIM_LOUD").is_some();
        Ring { lines: VecDeque::new(), calls: calls.map(IntoRawFd::into_raw_fd), loud }
    }

    pub fn step(&mut self, now: u64, thread: usize, what: &str, n: u64) {
        if let Some(fd) = self.calls {
            let mut line = [0u8; 128];
            let mut rest = &mut line[..];
            // A line that is too long is cut.
            let _ = writeln!(rest, "{now} {thread} {what} {n}");
            let left = rest.len();
            real::write(fd, line.get(..128 - left).unwrap_or_default());
        }
    }
}

/// Simulated time in words.
pub fn time(ns: u64) -> String {
    format!("{}.{:06} s", ns / 1_000_000_000, ns / 1000 % 1_000_000)
}

impl World {
    /// Adds a line of the simulator itself, or of a simulated thread.
    pub fn say(&mut self, line: &str) {
        let t = &self.threads[self.current];
        let mut line = format!("[{} {} {}] {line}", time(self.now), self.machines[t.machine].name, t.name);
        if line.len() > LINE_BYTES_MAX {
            line.truncate(line.floor_char_boundary(LINE_BYTES_MAX));
        }
        self.note(&line, 0);
        if self.ring.loud {
            real::write(2, format!("{line}\n").as_bytes());
        }
        self.ring.lines.push_back(line);
        if self.ring.lines.len() > LINES_MAX {
            self.ring.lines.pop_front();
        }
    }
}

/// Adds a line: it is hashed, and among the last ones it is printed when the seed fails.
pub fn trace(line: String) {
    order("trace", |w| w.say(&line));
}

/// The last lines of the seed. For the thread that called [`super::run_seed`], after it returned.
pub fn tail() -> String {
    // SAFETY: the seed has ended, so nobody changes the world; it is never freed.
    let Some(w) = (unsafe { super::WORLD.load(std::sync::atomic::Ordering::Relaxed).as_ref() }) else {
        return String::new();
    };
    w.ring.lines.iter().map(|l| format!("{l}\n")).collect()
}

/// The log of the nodes, and what every panic of a simulated thread does.
struct Logger;

static LOGGER: Logger = Logger;

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, r: &Record<'_>) {
        if on() {
            // Made before: what is shown may take locks.
            let said = r.args().to_string();
            let line = format!("{} {}: {said}", r.level(), r.target());
            within(|| {
                let w = world();
                crate::chart::heard(w.threads[w.current].machine, &said);
                w.say(&line);
            });
        } else if r.level() <= Level::Warn {
            real::write(2, format!("{}: {}\n", r.target(), r.args()).as_bytes());
        }
    }

    fn flush(&self) {}
}

/// What is logged: `KAGAMI_SIM_LOG`, or what an operator would see.
pub fn level() -> LevelFilter {
    std::env::var("KAGAMI_SIM_LOG").ok().and_then(|l| l.parse().ok()).unwrap_or(LevelFilter::Info)
}

/// Takes over the log and the panics of this process.
pub fn install() {
    log::set_logger(&LOGGER).expect("one logger for the process");
    std::panic::set_hook(Box::new(|info| {
        let said = info.payload_as_str().unwrap_or("a panic without words");
        let at = info.location().map(ToString::to_string).unwrap_or_default();
        if super::has_baton() {
            let deep = std::env::var_os("KAGAMI_SIM_BACKTRACE").is_some();
            let trace = if deep { format!("\n{}", std::backtrace::Backtrace::force_capture()) } else { String::new() };
            within(|| world().fail(format!("panic: {said} ({at}){trace}")));
        }
        real::write(2, format!("panic outside of the simulation: {said} ({at})\n").as_bytes());
    }));
}
