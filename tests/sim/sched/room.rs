//! The machine room, as the world's own code uses it: machines are made, killed, frozen, and their clocks changed. All of this is
//! for simulated threads, and every call is a scheduling point.

use super::clock::{self, Clock};
use super::threads::State;
use super::{Key, MachineId, ThreadId, World, order, threads, world};
use crate::disk::{Cut, Disk, Stamp};
use crate::files;
use crate::net::Net;
use crate::rng::Rng;
use std::time::Duration;

pub use crate::net::LATENCY_NS;

/// A filesystem of a machine.
pub struct Drive {
    /// Where it is mounted, below `/sim/MACHINE/`; empty: there.
    pub prefix: Vec<u8>,
    pub dev: u64,
    pub disk: Disk,
}

/// A machine.
pub struct Machine {
    pub name: String,
    pub drives: Vec<Drive>,
    pub clock: Clock,
    pub frozen: bool,
    /// Its power is off: from a power cut until a thread is started on it.
    pub dark: bool,
    /// Threads that could run but for the machine being frozen.
    pub(super) held: Vec<ThreadId>,
    /// How often it was started, and how often a node on it was killed.
    pub boots: u64,
    kills: u64,
    plan: Option<Plan>,
}

/// When a planned crash happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    /// The call has no effect any more.
    Before,
    /// The call has had its effect, but nobody was told.
    After,
}

/// What a planned crash is.
#[derive(Clone, Debug)]
pub enum Crash {
    Kill,
    PowerCut(Cut),
}

#[derive(Clone, Debug)]
struct Plan {
    at: u64,
    when: When,
    crash: Crash,
}

impl Machine {
    pub(super) fn new(name: &str, number: MachineId) -> Machine {
        Machine {
            name: name.into(),
            drives: Vec::new(),
            clock: Clock::new(number),
            frozen: false,
            dark: false,
            held: Vec::new(),
            boots: 1,
            kills: 0,
            plan: None,
        }
    }

    /// A process id that no real process is asked about.
    pub fn pid(&self, number: MachineId) -> i32 {
        (1000 * (number as u64 + 1) + self.kills) as i32
    }

    /// Persist points of all its disks so far.
    pub fn syncs(&self) -> u64 {
        self.drives.iter().map(|d| d.disk.syncs()).sum()
    }
}

/// Makes a machine with its disks: where each is mounted below `/sim/NAME/` (empty: there), and its bytes.
pub fn machine(name: &str, disks: &[(&str, u64)]) -> MachineId {
    order("machine", |w| {
        let m = w.machines.len();
        w.machines.push(Machine::new(name, m));
        w.net.machines = m;
        for (i, (prefix, bytes)) in disks.iter().enumerate() {
            let dev = 0x100 * m as u64 + i as u64 + 1;
            let mut disk = Disk::new(dev, *bytes);
            disk.set_mount(format!("/sim/{name}/{prefix}").trim_end_matches('/').as_bytes());
            let drive = Drive { prefix: prefix.as_bytes().to_vec(), dev, disk };
            w.machines[m].drives.push(drive);
        }
        // What a disk is mounted at is a directory of the disk around it.
        for (prefix, _) in disks.iter().filter(|(p, _)| !p.is_empty()) {
            if let Some(i) = w.machines[m].drives.iter().position(|d| d.prefix.is_empty()) {
                let made = w.disk(m, i).mkdir(crate::disk::At::Root(prefix.as_bytes()), 0o755);
                assert!(made.is_ok(), "mount point {prefix} of {name}: {made:?}");
            }
        }
        m
    })
}

/// Starts a thread on a machine. A machine whose power was off is on then.
pub fn spawn_on(m: MachineId, name: &str, f: Box<dyn FnOnce() + Send>) -> ThreadId {
    order("spawn_on", |w| {
        if std::mem::take(&mut w.machines[m].dark) {
            w.machines[m].boots += 1;
            w.machines[m].clock.boot(w.now);
            w.net.set_dark(m, false);
            w.net_effects();
        }
        let me = w.current;
        w.next_spawn.insert(me, (m, name.into()));
    });
    let id = world().threads.len();
    std::thread::Builder::new().name(name.into()).spawn(f).expect("a thread");
    id
}

/// True until the thread has ended or was killed.
pub fn alive(t: ThreadId) -> bool {
    order("alive", |w| !w.threads[t].state.is_over())
}

/// Waits until the thread has ended or was killed.
pub fn join(t: ThreadId) {
    order("join", |_| threads::join(t));
}

/// kill -9 of everything on a machine: its threads are never scheduled again, its descriptors are closed.
pub fn kill(m: MachineId) {
    order("kill", |w| w.crash(m, &Crash::Kill));
}

/// The power of a machine goes: as [`kill`], and its disks keep what `cut` lets them keep.
pub fn power_cut(m: MachineId, cut: &Cut) {
    order("power_cut", |w| w.crash(m, &Crash::PowerCut(*cut)));
}

/// SIGSTOP: the threads of a machine are not scheduled; its sockets stay and fill.
pub fn freeze(m: MachineId) {
    order("freeze", |w| {
        w.machines[m].frozen = true;
        let (held, ready): (Vec<_>, Vec<_>) = w.ready.iter().partition(|t| w.threads[**t].machine == m);
        w.ready = ready;
        w.machines[m].held.extend(held);
    });
}

/// SIGCONT.
pub fn thaw(m: MachineId) {
    order("thaw", |w| {
        w.machines[m].frozen = false;
        let held = std::mem::take(&mut w.machines[m].held);
        w.ready.extend(held);
    });
}

/// Steps the time of day of a machine.
pub fn step_clock(m: MachineId, by_ns: i64) {
    order("step_clock", |w| w.machines[m].clock.step(by_ns));
}

/// Sets how much faster than true a machine's clocks run, parts in a million.
pub fn rate(m: MachineId, ppm: i32) {
    order("rate", |w| w.machines[m].clock.set_rate(w.now, ppm));
}

/// A crash of a machine at its `n`-th persist point from now on (fsync, fdatasync, syncfs, rename), which is 1 for the next.
pub fn on_sync(m: MachineId, n: u64, when: When, crash: Crash) {
    order("on_sync", |w| {
        let at = w.machines[m].syncs() + n;
        w.machines[m].plan = Some(Plan { at, when, crash });
    });
}

/// Whether a crash that [`on_sync`] planned is still to come.
pub fn is_planned(m: MachineId) -> bool {
    order("is_planned", |w| w.machines[m].plan.is_some())
}

/// Forgets a planned crash.
pub fn forget_plan(m: MachineId) {
    order("forget_plan", |w| w.machines[m].plan = None);
}

/// Persist points of a machine so far.
pub fn syncs(m: MachineId) -> u64 {
    order("syncs", |w| w.machines[m].syncs())
}

/// Simulated time since the start, ns.
pub fn now_ns() -> u64 {
    order("now_ns", |w| w.now)
}

/// Waits for simulated time.
pub fn sleep(d: Duration) {
    super::within(|| clock::sleep_ns(d.as_nanos() as u64));
}

/// Looks into a disk. `f` must not call anything of this module.
pub fn with_disk<R>(m: MachineId, prefix: &str, f: impl FnOnce(&mut Disk) -> R) -> R {
    order("with_disk", |w| {
        let i = w.machines[m].drives.iter().position(|d| d.prefix == prefix.as_bytes());
        let i = i.unwrap_or_else(|| panic!("no disk {prefix:?} on machine {m}"));
        f(w.disk(m, i))
    })
}

/// Looks at the network, or changes it. `f` must not call anything of this module.
pub fn with_net<R>(f: impl FnOnce(&mut Net) -> R) -> R {
    order("with_net", |w| {
        w.net.begin(w.now);
        let r = f(&mut w.net);
        w.net.settle(w.now);
        w.net_effects();
        r
    })
}

fn stamp(ns: u64) -> Stamp {
    let t = clock::timespec(ns);
    Stamp { sec: t.tv_sec, nsec: t.tv_nsec as u32 }
}

impl World {
    /// A disk of a machine, which is told the time there.
    pub fn disk(&mut self, m: MachineId, i: usize) -> &mut Disk {
        let now = stamp(self.machines[m].clock.real(self.now));
        let d = &mut self.machines[m].drives[i].disk;
        d.set_now(now);
        d
    }

    /// A crash of a machine. Does not return when it is the one of the thread that has the baton.
    fn crash(&mut self, m: MachineId, crash: &Crash) {
        let dead = self.kill_threads(m);
        let dark = matches!(crash, Crash::PowerCut(_));
        self.machines[m].kills += 1;
        self.machines[m].dark = dark;
        self.net.begin(self.now);
        self.net.set_dark(m, dark);
        self.net.dying = Some(m);
        files::close_all(self, m);
        self.net.dying = None;
        if let Crash::PowerCut(cut) = crash {
            let mut rng = Rng::new(self.draws.next_u64());
            for i in 0..self.machines[m].drives.len() {
                self.disk(m, i).power_cut(&mut rng, cut);
            }
        }
        self.net_effects();
        for t in dead {
            self.wake(Key::Join(t), usize::MAX);
        }
        if self.threads[self.current].state == State::Killed {
            self.gone();
        }
    }

    /// Returns who it was.
    fn kill_threads(&mut self, m: MachineId) -> Vec<ThreadId> {
        let all = 0..self.threads.len();
        let of = |t: &ThreadId| self.threads[*t].machine == m && !self.threads[*t].state.is_over();
        let dead: Vec<ThreadId> = all.filter(of).collect();
        for t in &dead {
            self.unwait(*t);
            self.threads[*t].state = State::Killed;
        }
        self.ready.retain(|t| self.threads[*t].machine != m);
        self.machines[m].held.clear();
        self.machines[m].frozen = false;
        dead
    }

    /// Crashes the machine if a plan says that it happens at this persist point: asked before the call with the number that
    /// it will have, and after it with the one that it had.
    pub fn persist_point(&mut self, m: MachineId, number: u64, when: When) {
        if let Some(p) = self.machines[m].plan.take_if(|p| p.when == when && p.at <= number) {
            self.say(&format!("planned crash {when:?} persist point {number}: {:?}", p.crash));
            self.crash(m, &p.crash);
        }
    }
}
