//! Runs a test under many schedules: half of them draw who goes on at each step, half of them by priorities that change at a
//! few steps (PCT), which finds what needs one thread to be held up for long.
//!
//! `KAGAMI_SCHEDULES=N`: N times as many; `KAGAMI_TEST_SEED=N`: others; `KAGAMI_SCHEDULE=…`: the one that failed.

use super::scheduled::draw_timeouts;
use crate::base::planted::{Bug, plant};
use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler, Scheduler};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Changes of priority in a schedule of PCT, count.
const DEPTH: usize = 3;
/// Who has not come to an end after so many steps never does.
const STEPS_MAX: usize = 200_000;
/// Stack of a thread, bytes.
const STACK_BYTES: usize = 512 << 10;

/// What a wait with a time limit does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timeouts {
    /// Its time is never up: who is not woken hangs, and is found.
    Never,
    /// Its time may be up at once.
    Drawn,
}

/// What is explored.
pub struct Course {
    /// The name of the test.
    pub name: &'static str,
    /// Schedules, count.
    pub schedules: usize,
    /// Waits with a time limit.
    pub timeouts: Timeouts,
    /// One schedule: begins anew, and panics when something is wrong.
    pub run: fn(&Path),
}

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|v| v.parse().ok())
}

fn config(failed: FailurePersistence) -> Config {
    let mut c = Config::new();
    c.stack_size = STACK_BYTES;
    c.max_steps = MaxSteps::FailAfter(STEPS_MAX);
    c.silence_warnings = true;
    c.failure_persistence = failed;
    c
}

/// A directory for one test, in memory where there is one.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    dir.unwrap()
}

/// What a panic said, in one line.
fn words(e: &(dyn Any + Send)) -> String {
    let words = e.downcast_ref::<String>().map(String::as_str).or(e.downcast_ref::<&str>().copied());
    words.unwrap_or("?").split_whitespace().collect::<Vec<_>>().join(" ")
}

impl Course {
    fn under(&self, s: impl Scheduler + 'static, failed: FailurePersistence, ran: &Arc<AtomicUsize>) {
        draw_timeouts(self.timeouts == Timeouts::Drawn);
        let dir = scratch();
        let (at, run, count) = (dir.path().to_owned(), self.run, ran.clone());
        Runner::new(s, config(failed)).run(move || {
            let n = count.fetch_add(1, Ordering::Relaxed);
            let own = at.join(n.to_string());
            std::fs::create_dir(&own).unwrap();
            run(&own);
            std::fs::remove_dir_all(&own).unwrap();
        });
    }

    fn both(&self, schedules: usize, seed: u64, failed: &FailurePersistence, ran: &Arc<AtomicUsize>) {
        // By turns, so that neither comes late.
        let mut left = schedules;
        for part in 0.. {
            let n = left.min(100 << part.min(6));
            if n == 0 {
                break;
            }
            left -= n;
            let seed = seed.wrapping_mul(1 << 20).wrapping_add(part);
            self.under(RandomScheduler::new_from_seed(seed, n - n / 2), failed.clone(), ran);
            self.under(PctScheduler::new_from_seed(seed, DEPTH, n / 2), failed.clone(), ran);
        }
    }

    /// Nothing is wrong in any schedule.
    pub fn holds(&self) {
        let ran = Arc::new(AtomicUsize::new(0));
        if let Ok(schedule) = std::env::var("KAGAMI_SCHEDULE") {
            return self.under(ReplayScheduler::new_from_encoded(&schedule), FailurePersistence::None, &ran);
        }
        let n = self.schedules * from_env("KAGAMI_SCHEDULES").unwrap_or(1) as usize;
        let seed = from_env("KAGAMI_TEST_SEED").unwrap_or(1);
        let begun = Instant::now();
        let r = catch_unwind(AssertUnwindSafe(|| self.both(n, seed, &FailurePersistence::Print, &ran)));
        let ran = ran.load(Ordering::Relaxed);
        if let Err(e) = r {
            eprintln!(
                "{}: schedule {ran} of seed {seed} failed; to replay it, with what is printed above:\n  \
                 KAGAMI_SCHEDULE=… cargo test --lib --features schedules {} -- --nocapture",
                self.name, self.name
            );
            resume_unwind(e);
        }
        let took = begun.elapsed().as_secs_f64();
        println!("{}: {ran} schedules, {:.0} a second", self.name, ran as f64 / took);
    }

    /// With this bug planted some schedule fails, among so many. Returns whether it fails in the same way when it is
    /// replayed; not where something depends on time.
    pub fn finds(&self, bug: Bug, among: usize) -> bool {
        let ran = Arc::new(AtomicUsize::new(0));
        let kept = tempfile::tempdir().unwrap();
        let file = FailurePersistence::File(Some(kept.path().to_owned()));
        plant(Some(bug));
        let r = catch_unwind(AssertUnwindSafe(|| self.both(among, 1, &file, &ran)));
        let ran = ran.load(Ordering::Relaxed);
        let Err(how) = r else {
            plant(None);
            panic!("{}: {bug:?} was not found in {ran} schedules", self.name);
        };
        let again = std::fs::read_dir(kept.path()).unwrap().next().is_some_and(|f| {
            let schedule = ReplayScheduler::new_from_file(f.unwrap().path()).unwrap();
            let replay = || self.under(schedule, FailurePersistence::None, &Arc::default());
            catch_unwind(AssertUnwindSafe(replay)).is_err_and(|e| words(&*e) == words(&*how))
        });
        plant(None);
        let again_or_not = if again { "again when replayed" } else { "not the same when replayed" };
        println!("{}: {bug:?} found with schedule {ran}, {again_or_not}: {:.140}", self.name, words(&*how));
        again
    }
}
