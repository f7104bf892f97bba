//! The scheduler: of the threads of the simulation only the one that has the *baton* runs ([`baton`]). Which is next is
//! drawn from the seed, and time goes on when nobody can run, to the next thing that is due.
//!
//! ```text
//! a simulated thread ── a call of the C library ──▶ point(): time goes on a little, the baton may go to another thread
//!                                                   block(): it goes to another thread until a wake or the deadline
//! ```
//!
//! Everything that the simulator knows is in one [`World`], used by whoever has the baton. While that one is within the
//! simulator, calls of the C library go to the kernel ([`on`]).

mod baton;
pub mod clock;
pub mod futex;
mod pick;
mod room;
pub mod threads;
mod trace;

pub use baton::is_quick;
pub use room::*;
pub use trace::{tail, trace};

use super::files::Table;
use super::net::{Net, NetTimer};
use super::rng::Rng;
use super::{mem, real};
use baton::Slot;
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use threads::{State, Thread};

/// The number of a thread, in the order in which they were made.
pub type ThreadId = usize;
/// The number of a machine, in the order in which they were made.
pub type MachineId = usize;
/// The machine of the first thread, which is never killed.
pub const HOST: MachineId = 0;

/// The result of a call: an error is an `errno`.
pub type Res<T> = Result<T, i32>;

/// What a thread can wait for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Key {
    Futex(usize),
    Join(ThreadId),
    /// Bytes or an end for an end of a connection.
    Readable(usize),
    /// Room to send there.
    Writable(usize),
    /// Connections for a listener.
    Accept(usize),
    /// Room in a listener's queue.
    Backlog(usize),
    /// A link that was cut is whole again.
    Link,
    /// The lock of an open file: machine, disk, inode.
    Flock(MachineId, usize, u64),
    Never,
}

/// What happens at a time.
#[derive(Clone, Copy, Debug)]
pub enum Timer {
    Thread(ThreadId),
    Net(NetTimer),
}

/// How a seed ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Of everything that happened, in order.
    pub hash: u64,
    /// Calls of simulated threads.
    pub steps: u64,
    /// How often another thread went on.
    pub switches: u64,
    pub virtual_ns: u64,
    /// A deadlock, a panic of any thread, a limit.
    pub failure: Option<String>,
}

/// Everything that the simulator knows.
pub struct World {
    pub now: u64,
    steps: u64,
    switches: u64,
    hash: u64,
    pub current: ThreadId,
    pub threads: Vec<Thread>,
    /// Simulated threads by their `pthread_t`.
    natives: BTreeMap<u64, ThreadId>,
    pub machines: Vec<Machine>,
    ready: Vec<ThreadId>,
    waiting: BTreeMap<Key, VecDeque<ThreadId>>,
    timers: BTreeMap<(u64, u64), Timer>,
    timer_count: u64,
    pace: pick::Pace,
    /// Draws of the scheduler, of the world's own code, and what `getrandom` gives.
    rng: Rng,
    draws: Rng,
    pub bytes: Rng,
    pub net: Net,
    pub table: Table,
    ring: trace::Ring,
    failure: Option<String>,
    /// By who is about to start a thread: where, and its name.
    next_spawn: BTreeMap<ThreadId, (MachineId, String)>,
    stacks: mem::Stacks,
}

static WORLD: AtomicPtr<World> = AtomicPtr::new(std::ptr::null_mut());
/// Set when the seed has ended.
static DONE: AtomicU32 = AtomicU32::new(0);
/// Most calls of a seed; see [`limits`].
static STEPS_MAX: AtomicU64 = AtomicU64::new(50_000_000);
/// Most real time of a seed, milliseconds.
static REAL_MS_MAX: AtomicU64 = AtomicU64::new(120_000);

thread_local! {
    /// 1 + the number of this thread while it has the baton; 0 for all other threads.
    static ME: Cell<usize> = const { Cell::new(0) };
    /// The thread is within the simulator.
    static WITHIN: Cell<bool> = const { Cell::new(false) };
}

/// True for a simulated thread that runs.
pub fn has_baton() -> bool {
    ME.get() != 0
}

/// True when a call of the C library is to be simulated.
pub fn on() -> bool {
    ME.get() != 0 && !WITHIN.get()
}

/// What the simulator knows. No reference into it may be kept while the baton is away ([`block`], [`point`]).
pub fn world() -> &'static mut World {
    assert!(has_baton(), "only who has the baton may look into the world");
    // SAFETY: set before the first simulated thread and never freed; there is one baton.
    unsafe { &mut *WORLD.load(Ordering::Relaxed) }
}

/// Runs simulator code in a simulated thread: calls that it makes go to the kernel.
pub fn within<R>(f: impl FnOnce() -> R) -> R {
    let outer = WITHIN.replace(true);
    let r = f();
    WITHIN.set(outer);
    r
}

/// A call of a simulated thread: a scheduling point, then what it does. An error becomes -1 with `errno`.
pub fn call(name: &'static str, f: impl FnOnce() -> Res<i64>) -> i64 {
    match within(|| {
        point(name);
        let r = f();
        let n = r.unwrap_or_else(|e| -i64::from(e));
        world().note(name, n as u64);
        r
    }) {
        Ok(n) => n,
        Err(e) => {
            real::set_errno(e);
            -1
        }
    }
}

/// Something of the simulator's own interface, called by a simulated thread: a scheduling point, then what it does.
pub fn order<R>(name: &'static str, f: impl FnOnce(&mut World) -> R) -> R {
    within(|| {
        point(name);
        f(world())
    })
}

/// A scheduling point: time goes on a little, what is due happens, and another thread may be picked.
pub fn point(name: &'static str) {
    let w = world();
    w.steps += 1;
    if w.steps > STEPS_MAX.load(Ordering::Relaxed) {
        w.fail(format!("more than {} calls", w.steps - 1));
    }
    w.now += w.rng.below(w.pace.cost_max_ns);
    w.threads[w.current].looks = 0;
    w.note(name, w.now);
    w.due();
    let frozen = w.machine_of(w.current).frozen;
    if frozen || (!w.ready.is_empty() && w.rng.chance(w.pace.switch)) {
        w.pause();
    }
}

/// As [`point`], but another thread is picked, if one can run.
pub fn give_way(name: &'static str) {
    point(name);
    world().pause();
}

/// Waits for one of `keys`, or until a time; true when woken. The baton is away meanwhile.
pub fn block(keys: &[Key], until: Option<u64>, why: &'static str) -> bool {
    let w = world();
    let me = w.current;
    let timer = until.map(|at| w.at(at, Timer::Thread(me)));
    let t = &mut w.threads[me];
    t.state = State::Waits;
    t.keys.clear();
    t.keys.extend_from_slice(keys);
    (t.why, t.timer) = (why, timer);
    for k in keys {
        w.waiting.entry(*k).or_default().push_back(me);
    }
    w.pass_on();
    let w = world();
    w.threads[w.current].woken
}

impl World {
    /// Folds something that happened into the hash.
    pub fn note(&mut self, what: &str, n: u64) {
        let mut h = self.hash ^ (self.current as u64) << 48 ^ n;
        for b in what.bytes() {
            h = (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
        }
        self.hash = (h ^ h >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.ring.step(self.now, self.current, what, n);
    }

    /// Lets `timer` happen at a time; returns what [`World::off`] needs.
    pub fn at(&mut self, at: u64, timer: Timer) -> (u64, u64) {
        self.timer_count += 1;
        self.timers.insert((at, self.timer_count), timer);
        (at, self.timer_count)
    }

    /// Lets what is due happen.
    fn due(&mut self) {
        while let Some(e) = self.timers.first_entry().filter(|e| e.key().0 <= self.now) {
            match e.remove() {
                Timer::Thread(t) => {
                    self.threads[t].timer = None;
                    self.ready(t, false);
                }
                Timer::Net(n) => {
                    self.net.happen(n, self.now);
                    self.net_effects();
                }
            }
        }
    }

    /// Wakes up to `n` of those that wait for `key`, the first first. Returns how many.
    pub fn wake(&mut self, key: Key, n: usize) -> usize {
        self.wake_if(key, n, |_| true)
    }

    /// As [`World::wake`], of those for which `which` is true.
    pub fn wake_if(&mut self, key: Key, n: usize, which: impl Fn(&Thread) -> bool) -> usize {
        let Some(all) = self.waiting.get(&key) else { return 0 };
        let chosen: Vec<ThreadId> = all.iter().copied().filter(|t| which(&self.threads[*t])).take(n).collect();
        chosen.iter().for_each(|t| self.ready(*t, true));
        chosen.len()
    }

    /// A thread that waits does no more.
    fn unwait(&mut self, t: ThreadId) {
        let keys = std::mem::take(&mut self.threads[t].keys);
        for k in &keys {
            if let Some(q) = self.waiting.get_mut(k) {
                q.retain(|x| *x != t);
                if q.is_empty() {
                    self.waiting.remove(k);
                }
            }
        }
        self.threads[t].keys = keys;
        self.threads[t].keys.clear();
        if let Some(at) = self.threads[t].timer.take() {
            self.timers.remove(&at);
        }
    }

    fn ready(&mut self, t: ThreadId, woken: bool) {
        if self.threads[t].state == State::Waits {
            self.unwait(t);
            self.threads[t].woken = woken;
            self.line_up(t);
        }
    }

    /// Puts a thread that can run where the next one is picked from.
    fn line_up(&mut self, t: ThreadId) {
        self.threads[t].state = State::Ready;
        let m = self.threads[t].machine;
        if self.machines[m].frozen { self.machines[m].held.push(t) } else { self.ready.push(t) }
    }

    /// The thread that has the baton can go on, but any other may be picked.
    fn pause(&mut self) {
        self.line_up(self.current);
        self.pass_on();
    }

    /// The next one to run. Time goes on until there is one.
    fn next(&mut self) -> ThreadId {
        loop {
            self.due();
            if let Some(t) = self.pick() {
                self.threads[t].state = State::Runs;
                return t;
            }
            match self.timers.first_key_value() {
                Some(((at, _), _)) => self.now = self.now.max(*at),
                None => self.fail(self.stuck()),
            }
        }
    }

    /// Gives the baton to the next one, and waits until it comes back.
    fn pass_on(&mut self) {
        let me = self.current;
        let next = self.next();
        if next != me {
            let mine = self.threads[me].slot;
            mine.hand_to(self.turn(next));
        }
    }

    /// It is the turn of `next`: where that is to be given the baton.
    fn turn(&mut self, next: ThreadId) -> &'static Slot {
        self.switches += 1;
        self.current = next;
        self.threads[next].slot
    }

    /// Gives the baton away for good: this thread was killed.
    fn gone(&mut self) -> ! {
        let (mine, next) = (self.threads[self.current].slot, self.next());
        mine.hand_to(self.turn(next));
        Slot::park()
    }

    /// Why nobody can run.
    fn stuck(&self) -> String {
        let one = |(id, t): (usize, &Thread)| {
            let frozen = if self.machines[t.machine].frozen { ", frozen" } else { "" };
            let waits = if t.state == State::Waits { t.why } else { "can run" };
            format!("  thread {id} {} of {}{frozen}: {waits} {:?}", t.name, self.machines[t.machine].name, t.keys)
        };
        let there = self.threads.iter().enumerate().filter(|(_, t)| !t.state.is_over());
        format!("deadlock: nobody can run and nothing is due\n{}", there.map(one).collect::<Vec<_>>().join("\n"))
    }

    /// Ends the seed with a failure.
    pub fn fail(&mut self, why: String) -> ! {
        let t = &self.threads[self.current];
        let at = format!("{} of {}", t.name, self.machines[t.machine].name);
        self.failure.get_or_insert(format!("{why} (at {} in {at})", trace::time(self.now)));
        finish()
    }

    fn machine_of(&self, t: ThreadId) -> &Machine {
        &self.machines[self.threads[t].machine]
    }

    /// Carries out what the network wants of the scheduler.
    pub fn net_effects(&mut self) {
        let out = std::mem::take(&mut self.net.out);
        for k in out.wake {
            self.wake(k, usize::MAX);
        }
        for (at, n) in out.timers {
            self.at(at, Timer::Net(n));
        }
        for line in out.lines {
            self.say(&line);
        }
    }
}

/// Ends the seed: the baton is kept for ever.
fn finish() -> ! {
    DONE.store(1, Ordering::SeqCst);
    real::futex_wake(&DONE);
    Slot::park()
}

/// Runs `main` as the first simulated thread, and returns when it has ended or something failed. Once in a process, which
/// is to be left by [`leave`] afterwards: threads may be left over.
pub fn run_seed(seed: u64, main: Box<dyn FnOnce() + Send>) -> Outcome {
    mem::reserve();
    trace::install();
    let mut rng = Rng::part(seed, "scheduler");
    let w = Box::leak(Box::new(World {
        now: 0,
        steps: 0,
        switches: 0,
        hash: seed,
        current: 0,
        threads: Vec::new(),
        natives: BTreeMap::new(),
        machines: vec![Machine::new("host", 0)],
        ready: Vec::new(),
        waiting: BTreeMap::new(),
        timers: BTreeMap::new(),
        timer_count: 0,
        pace: pick::Pace::draw(&mut rng),
        rng,
        draws: Rng::part(seed, "world"),
        bytes: Rng::part(seed, "bytes"),
        net: Net::new(Rng::part(seed, "net")),
        table: Table::default(),
        ring: trace::Ring::new(),
        failure: None,
        next_spawn: BTreeMap::new(),
        stacks: mem::Stacks::new(),
    }));
    WORLD.store(w, Ordering::SeqCst);
    let main = Box::new(move || {
        prepare();
        main();
        within(|| finish())
    });
    threads::first(w, main);
    let begun = Instant::now();
    let limit = Duration::from_millis(REAL_MS_MAX.load(Ordering::Relaxed));
    while DONE.load(Ordering::SeqCst) == 0 && begun.elapsed() < limit {
        real::futex_wait(&DONE, 0, 1000);
    }
    // The thread that had the baton is parked, so that nobody changes the world any more; but for one that runs too long.
    let done = DONE.load(Ordering::SeqCst) != 0;
    let late = || format!("more than {} s of real time; {} runs", limit.as_secs(), w.threads[w.current].name);
    Outcome {
        hash: w.hash,
        steps: w.steps,
        switches: w.switches,
        virtual_ns: w.now,
        failure: if done { w.failure.clone() } else { Some(late()) },
    }
}

/// Brings to life what is made once in a process, so that no thread can be killed while it makes it.
fn prepare() {
    kagami::os::rights::limited();
    if let Some(i) = kagami::os::bus::watch(1, 1) {
        kagami::os::bus::unwatch(i);
    }
    log::set_max_level(trace::level());
}

/// Ends the process at once, after writing `said` to a descriptor: no destructor runs, for threads may be left over.
pub fn leave(fd: i32, said: &[u8]) -> ! {
    real::write(fd, said);
    // SAFETY: ends the process.
    unsafe { libc::_exit(0) }
}
