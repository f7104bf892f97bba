//! Runs seeds: each in a process of its own, forked from one that has a single thread, several at a time.

use super::client::CLIENTS;
use super::harness::pin;
use super::room;
use super::scenario;
use super::shared::Shared;
use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::FromRawFd;
use std::time::{Duration, Instant};

/// A seed that takes longer, real time, hangs.
const HANG: Duration = Duration::from_secs(60);

/// What came of a seed.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub seed: u64,
    pub failure: Option<String>,
    /// Of everything that happened.
    pub hash: u64,
    /// Scheduling decisions.
    pub steps: u64,
    /// Simulated nanoseconds.
    pub virtual_ns: u64,
    /// Steps of clients that were answered.
    pub answers: u64,
    /// What the course has to tell, in one line.
    pub notes: String,
    /// The last lines of what happened; when it failed.
    pub tail: String,
}

/// See [`Report::notes`].
pub static NOTES: Shared<String> = Shared::new(String::new());

impl Report {
    fn encode(&self) -> String {
        let why = self.failure.as_deref().unwrap_or("").replace('\n', " ");
        let numbers =
            [self.seed, self.hash, self.steps, self.virtual_ns, self.answers].map(|n| n.to_string()).join(" ");
        format!("{numbers}\n{why}\n{}\n{}", self.notes, self.tail)
    }

    fn decode(text: &str) -> Option<Report> {
        let mut lines = text.splitn(4, '\n');
        let n: Vec<u64> = lines.next()?.split(' ').map(|w| w.parse().ok()).collect::<Option<_>>()?;
        let [seed, hash, steps, virtual_ns, answers] = n.try_into().ok()?;
        let why = lines.next()?;
        let failure = (!why.is_empty()).then(|| why.to_owned());
        let (notes, tail) = (lines.next()?.to_owned(), lines.next()?.to_owned());
        Some(Report { seed, failure, hash, steps, virtual_ns, answers, notes, tail })
    }
}

/// What is run in the child: sets things up (before any simulated thread exists), then the course.
#[derive(Clone, Copy)]
pub struct Course {
    pub before: fn(u64),
    pub run: fn(u64),
}

/// The ordinary course of a seed.
pub const WORLD: Course = Course { before: |_| (), run: scenario::run };

/// In the child: the whole seed.
fn child(seed: u64, course: Course) -> Report {
    (course.before)(seed);
    let done = room::run_seed(seed, Box::new(move || (course.run)(seed)));
    let (broken, answers) = CLIENTS.with(|c| (c.failure.clone(), c.answers));
    let failure = broken.or(done.failure);
    let tail = if failure.is_some() { room::tail() } else { String::new() };
    let notes = NOTES.with(|n| n.replace('\n', " "));
    Report { seed, failure, hash: done.hash, steps: done.steps, virtual_ns: done.virtual_ns, answers, notes, tail }
}

/// A seed under way.
struct Job {
    seed: u64,
    /// Of its processor.
    number: usize,
    pid: i32,
    pipe: std::fs::File,
    begun: Instant,
    text: Vec<u8>,
}

fn begin(seed: u64, number: usize, course: Course) -> Job {
    let mut ends = [0; 2];
    // SAFETY: a valid array of two; this process has one thread, so the child may do whatever it likes.
    let pid = unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK), 0, "no pipe");
        libc::fork()
    };
    assert!(pid >= 0, "no process");
    if pid == 0 {
        pin(number);
        let text = child(seed, course).encode();
        room::leave(ends[1], text.as_bytes());
    }
    // SAFETY: both ends were just made and belong to nobody else.
    let pipe = unsafe {
        libc::close(ends[1]);
        std::fs::File::from_raw_fd(ends[0])
    };
    Job { seed, number, pid, pipe, begun: Instant::now(), text: Vec::new() }
}

impl Job {
    /// Takes what it has said; its report once it has ended.
    fn look(&mut self) -> Option<Report> {
        let mut buf = [0; 1 << 16];
        loop {
            match self.pipe.read(&mut buf) {
                Ok(0) => return Some(self.end(None)),
                Ok(n) => self.text.extend_from_slice(&buf[..n]),
                Err(_) if self.begun.elapsed() > HANG => return Some(self.end(Some("it hangs"))),
                Err(_) => return None,
            }
        }
    }

    fn end(&mut self, hangs: Option<&str>) -> Report {
        let mut status = 0;
        // SAFETY: our own child, waited for once.
        unsafe {
            if hangs.is_some() {
                libc::kill(self.pid, libc::SIGKILL);
            }
            libc::waitpid(self.pid, &mut status, 0);
        }
        let text = String::from_utf8_lossy(&self.text).into_owned();
        Report::decode(&text).unwrap_or_else(|| {
            let why =
                hangs.map_or_else(|| format!("the process of the seed ended with status {status:#x}"), str::to_owned);
            Report { seed: self.seed, failure: Some(why), tail: text, ..Report::default() }
        })
    }
}

/// How many seeds run at a time.
pub fn jobs() -> usize {
    let n = std::env::var("KAGAMI_SIM_JOBS").ok().and_then(|v| v.parse().ok());
    n.unwrap_or_else(super::harness::processors)
}

/// Runs seeds and calls `each` with the reports as they come; false from it ends the run.
pub fn run(seeds: impl Iterator<Item = u64>, course: Course, mut each: impl FnMut(Report) -> bool) {
    let mut seeds = seeds.peekable();
    let mut under_way: Vec<Job> = Vec::new();
    let mut go_on = true;
    while (go_on && seeds.peek().is_some()) || !under_way.is_empty() {
        while go_on && under_way.len() < jobs() {
            let Some(seed) = seeds.next() else { break };
            // Each on the processor that is free.
            let number = (0..jobs()).find(|n| under_way.iter().all(|j| j.number != *n)).unwrap_or(0);
            under_way.push(begin(seed, number, course));
        }
        let mut ended = Vec::new();
        under_way.retain_mut(|j| match j.look() {
            Some(r) => {
                ended.push(r);
                false
            }
            None => true,
        });
        if ended.is_empty() {
            wait(&under_way);
        }
        for r in ended {
            go_on &= each(r);
        }
    }
}

/// Until one of them has something to say.
fn wait(under_way: &[Job]) {
    use std::os::fd::AsRawFd;
    let mut fds: Vec<libc::pollfd> =
        under_way.iter().map(|j| libc::pollfd { fd: j.pipe.as_raw_fd(), events: libc::POLLIN, revents: 0 }).collect();
    // SAFETY: a valid array and its length.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, 1000) };
}

/// Sums for the line at the end.
#[derive(Default)]
pub struct Sums {
    pub seeds: u64,
    pub steps: u64,
    pub virtual_ns: u64,
    pub answers: u64,
    pub hashes: BTreeMap<u64, u64>,
}

impl Sums {
    pub fn add(&mut self, r: &Report) {
        self.seeds += 1;
        self.steps += r.steps;
        self.virtual_ns += r.virtual_ns;
        self.answers += r.answers;
        self.hashes.insert(r.seed, r.hash);
    }

    /// For people.
    pub fn line(&self, took: Duration) -> String {
        let s = took.as_secs_f64();
        format!(
            "{} seeds in {s:.1} s ({:.1} seeds/s on {} cores), {:.0} simulated s, {} steps of clients answered, {} switches",
            self.seeds,
            self.seeds as f64 / s,
            jobs(),
            self.virtual_ns as f64 / 1e9,
            self.answers,
            self.steps
        )
    }
}
