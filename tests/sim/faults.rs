//! The faults: what there are, which of them a seed draws, and how they are made and ended.

use super::chart::{self, ASYNC, CHART, PRIMARY, SITES, SYNC};
use super::client;
use super::disk::{Cut, DiskFaults};
use super::model::Keep;
use super::mounts;
use super::rng::Rng;
use super::room::{self, MachineId};
use super::world::{self, GROUP};
use kagami::node::control::Request;
use std::time::Duration;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    LostConnection,
    Delay,
    Reorder,
    Duplicate,
    HalfOpen,
    OneWayCut,
    BitFlip,
    Trickle,
    Partition,
    Crash,
    Pause,
    ClockForward,
    ClockBack,
    ArbiterRestart,
    TornTail,
    LostUnsynced,
    ReorderedUnsynced,
    ShortWrite,
    EioRead,
    EioWrite,
    EioSync,
    Enospc,
    BitRot,
    StaleRead,
}

pub const ALL: [Fault; 24] = [
    Fault::LostConnection,
    Fault::Delay,
    Fault::Reorder,
    Fault::Duplicate,
    Fault::HalfOpen,
    Fault::OneWayCut,
    Fault::BitFlip,
    Fault::Trickle,
    Fault::Partition,
    Fault::Crash,
    Fault::Pause,
    Fault::ClockForward,
    Fault::ClockBack,
    Fault::ArbiterRestart,
    Fault::TornTail,
    Fault::LostUnsynced,
    Fault::ReorderedUnsynced,
    Fault::ShortWrite,
    Fault::EioRead,
    Fault::EioWrite,
    Fault::EioSync,
    Fault::Enospc,
    Fault::BitRot,
    Fault::StaleRead,
];

/// Files of which a damaged one takes the replica out of use until the operator makes it anew, as its words say.
const NEEDS_OPERATOR: [&[u8]; 3] = [b"identity", b"live", b"state"];

/// What a seed does beside faults: orders of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Fault(Fault),
    Takeover,
    Swap,
    Split,
    Look,
}

/// The faults of a seed, and where those of disks happen: at one site only, so that a good copy is left.
#[derive(Clone, Debug)]
pub struct Drawn {
    pub kinds: Vec<Fault>,
    pub bad_disk: MachineId,
    pub acts: u64,
    pub operator: bool,
}

impl Drawn {
    pub fn draw(rng: &mut Rng) -> Drawn {
        let n = 1 + rng.below(5);
        let mut kinds: Vec<Fault> = (0..n).map(|_| ALL[rng.below(24) as usize]).collect();
        kinds.sort();
        kinds.dedup();
        let bad_disk = SITES[rng.below(3) as usize].0;
        Drawn { kinds, bad_disk, acts: 2 + rng.below(6), operator: rng.chance(0.5) }
    }

    fn next(&self, rng: &mut Rng) -> Act {
        if self.operator && rng.chance(0.25) {
            return [Act::Takeover, Act::Swap, Act::Split, Act::Look][rng.below(4) as usize];
        }
        Act::Fault(self.kinds[rng.below(self.kinds.len() as u64) as usize])
    }
}

/// Carries the drawn faults out, one after the other, with pauses in which the clients work.
pub fn play(drawn: &Drawn, voted: bool, seed: u64, rng: &mut Rng) {
    let mut bed = Bed { drawn, voted, seed, rng };
    for _ in 0..drawn.acts {
        let pause = bed.rng.below(700);
        room::sleep(Duration::from_millis(20 + pause));
        let act = drawn.next(bed.rng);
        room::trace(format!("act: {act:?}"));
        match act {
            Act::Fault(f) => bed.fault(f),
            Act::Takeover => bed.takeover(),
            Act::Swap => bed.swap(),
            Act::Split => bed.split(),
            Act::Look => bed.look(),
        }
    }
}

struct Bed<'a> {
    drawn: &'a Drawn,
    voted: bool,
    seed: u64,
    rng: &'a mut Rng,
}

impl Bed<'_> {
    fn any(&mut self) -> MachineId {
        SITES[self.rng.below(3) as usize].0
    }

    fn two(&mut self) -> (MachineId, MachineId) {
        let a = self.any();
        let others: Vec<_> = SITES.iter().map(|s| s.0).filter(|m| *m != a).collect();
        (a, others[self.rng.below(2) as usize])
    }

    /// A time for which a fault lasts: often shorter than what a link waits, sometimes longer.
    fn a_while(&mut self) -> Duration {
        Duration::from_millis([5, 50, 300, 1000, 2500, 5000][self.rng.below(6) as usize])
    }

    fn fault(&mut self, f: Fault) {
        match f {
            Fault::LostConnection => self.line(|n, a, b| n.lose_connections(a, b)),
            Fault::Delay => {
                let ms = [1, 10, 80][self.rng.below(3) as usize];
                self.lines(|n, a, b, on| {
                    n.policy(a, b).latency_ns = if on { (0, ms * 1_000_000) } else { room::LATENCY_NS }
                });
            }
            Fault::Reorder => self.lines(|n, a, b, on| n.policy(a, b).reorder = on),
            Fault::Duplicate => self.lines(|n, a, b, on| n.policy(a, b).duplicate = if on { 0.5 } else { 0.0 }),
            Fault::HalfOpen => {
                let m = self.any();
                room::with_net(|n| n.all_of(m, |p| p.half_open = true));
                self.crash(m, false);
                room::with_net(|n| n.all_of(m, |p| p.half_open = false));
            }
            Fault::OneWayCut => {
                let (a, b) = self.two();
                room::with_net(|n| n.policy(a, b).cut = true);
                let t = self.a_while();
                room::sleep(t);
                room::with_net(|n| n.policy(a, b).cut = false);
            }
            Fault::BitFlip => self.lines(|n, a, b, on| n.policy(a, b).flip = if on { 0.02 } else { 0.0 }),
            Fault::Trickle => self.lines(|n, a, b, on| n.policy(a, b).trickle = on.then_some((7, 100_000))),
            Fault::Partition => {
                let m = self.any();
                self.cut_off(m, true);
                let t = self.a_while();
                room::sleep(t);
                self.cut_off(m, false);
            }
            Fault::Crash => {
                let m = self.any();
                self.crash(m, true);
            }
            Fault::Pause => {
                let (m, t) = (self.any(), self.a_while());
                room::freeze(m);
                room::sleep(t);
                room::thaw(m);
            }
            Fault::ClockForward | Fault::ClockBack => {
                let by = [1, 30, 3600, 400_000][self.rng.below(4) as usize] * 1_000_000_000;
                let m = self.any();
                room::step_clock(m, if f == Fault::ClockBack { -by } else { by });
            }
            Fault::ArbiterRestart => self.crash(ASYNC, true),
            Fault::TornTail | Fault::LostUnsynced | Fault::ReorderedUnsynced => self.power(f),
            Fault::ShortWrite => self.disk_faults(|d| d.short_write = 0.2),
            Fault::EioRead => self.bad_drive(|d| d.eio_read = 0.02),
            Fault::EioWrite => self.bad_drive(|d| d.eio_write = 0.02),
            Fault::EioSync => self.bad_drive(|d| d.eio_sync = 0.1),
            Fault::StaleRead => {
                CHART.with(|c| c.lied.push(self.drawn.bad_disk));
                self.bad_drive(|d| d.stale_read = 0.02);
            }
            Fault::Enospc => {
                let (m, t) = (self.drawn.bad_disk, self.a_while());
                let left = [0, 4096, 100_000][self.rng.below(3) as usize];
                room::with_disk(m, "", |d| d.fill(left));
                room::sleep(t);
                room::with_disk(m, "", |d| d.unfill());
            }
            Fault::BitRot => self.rot(),
        }
    }

    /// Something that happens once, on a random line.
    fn line(&mut self, f: impl Fn(&mut room::Net, MachineId, MachineId)) {
        let (a, b) = self.two();
        room::with_net(|n| f(n, a, b));
    }

    /// Something that lasts a while, on all lines or one, in both directions.
    fn lines(&mut self, f: impl Fn(&mut room::Net, MachineId, MachineId, bool)) {
        let (a, b) = self.two();
        let all = self.rng.chance(0.5);
        let both = |on: bool| {
            let pairs: Vec<_> = SITES.iter().flat_map(|x| SITES.iter().map(move |y| (x.0, y.0))).collect();
            let here =
                |(x, y): &(MachineId, MachineId)| x != y && (all || (*x == a && *y == b) || (*x == b && *y == a));
            room::with_net(|n| pairs.iter().filter(|p| here(p)).for_each(|(x, y)| f(n, *x, *y, on)));
        };
        both(true);
        let t = self.a_while();
        room::sleep(t);
        both(false);
    }

    fn cut_off(&mut self, m: MachineId, on: bool) {
        room::with_net(|n| n.all_of(m, |p| p.cut = on));
    }

    /// Kills a node and starts it again, at once or later.
    fn crash(&mut self, m: MachineId, soon: bool) {
        world::kill(m);
        let t = if soon && self.rng.chance(0.5) { Duration::from_millis(1) } else { self.a_while() };
        room::sleep(t);
        if !world::is_up(m) {
            world::start(m, self.seed);
        }
    }

    fn power(&mut self, f: Fault) {
        let m = self.any();
        let cut = Cut {
            none_of_unsynced: f == Fault::LostUnsynced,
            all_of_unsynced: false,
            sectors: f == Fault::TornTail,
            unordered: f == Fault::ReorderedUnsynced,
        };
        world::power_cut(m, &cut);
        let t = self.a_while();
        room::sleep(t);
        world::start(m, self.seed);
    }

    /// A drive that fails is compared as a whole afterwards.
    fn bad_drive(&mut self, set: impl Fn(&mut DiskFaults)) {
        chart::rotten(self.drawn.bad_disk);
        self.disk_faults(set);
    }

    fn disk_faults(&mut self, set: impl Fn(&mut DiskFaults)) {
        let (m, t, seed) = (self.drawn.bad_disk, self.a_while(), self.rng.next_u64());
        room::with_disk(m, "", |d| {
            let mut f = DiskFaults { only: Some(b"region".to_vec()), ..DiskFaults::default() };
            set(&mut f);
            d.set_faults(f, seed);
        });
        room::sleep(t);
        room::with_disk(m, "", |d| d.set_faults(DiskFaults::default(), 0));
    }

    /// A bit of one of kagami's own files at a secondary that was killed: noticed when it starts.
    fn rot(&mut self) {
        let m = self.drawn.bad_disk;
        if mounts::mounted(m) {
            return;
        }
        world::kill(m);
        let own = room::with_disk(m, "", |d| d.tree(b"region/.kagami"));
        let own: Vec<Vec<u8>> = own
            .into_iter()
            .filter(|(p, n)| n.kind == libc::S_IFREG && n.size > 0 && !NEEDS_OPERATOR.contains(&p.as_slice()))
            .map(|(p, _)| [b"region/.kagami/", p.as_slice()].concat())
            .collect();
        let pick = self.rng.below(own.len().max(1) as u64) as usize;
        if let Some(path) = own.get(pick) {
            let seed = self.rng.next_u64();
            let what = room::with_disk(m, "", |d| d.rot(path, &mut Rng::new(seed)));
            room::trace(format!("rot in {}: {what:?}", String::from_utf8_lossy(path)));
            chart::rotten(m);
        }
        world::start(m, self.seed);
    }

    /// The operator takes over at the sync site, when the primary does not run or cannot be reached.
    fn takeover(&mut self) {
        if self.voted {
            return self.fault(Fault::Crash);
        }
        let (old, new) = if mounts::mounted(SYNC) { (SYNC, PRIMARY) } else { (PRIMARY, SYNC) };
        let dead = self.rng.chance(0.7);
        match dead {
            true => world::kill(old),
            false => self.cut_off(old, true),
        }
        room::sleep(Duration::from_millis(500));
        let force = self.rng.chance(0.3);
        let r =
            Request::Takeover { group: GROUP.into(), force, dry_run: false, at: None, handover: false, bare: false };
        let said = world::order(new, &r);
        room::trace(format!("takeover at {}: {:?}", chart::name(new), said.map_err(|e| e.to_string())));
        let t = self.a_while();
        room::sleep(t);
        match dead {
            true => world::start(old, self.seed),
            false => self.cut_off(old, false),
        }
    }

    /// The ends of the sync pair change their roles.
    fn swap(&mut self) {
        let r = Request::PairSwap { group: GROUP.into(), pair: "sync".into() };
        let m = if self.rng.chance(0.5) { PRIMARY } else { SYNC };
        let said = world::order(m, &r);
        room::trace(format!("swap at {}: {:?}", chart::name(m), said.map_err(|e| e.to_string())));
    }

    fn split(&mut self) {
        let pair = ["sync", "async"][self.rng.below(2) as usize];
        let at = SITES.iter().map(|s| s.0).find(|m| mounts::mounted(*m)).unwrap_or(PRIMARY);
        let said = world::order(at, &Request::PairSplit { group: GROUP.into(), pair: pair.into() });
        room::trace(format!("split of {pair}: {:?}", said.map_err(|e| e.to_string())));
        let t = self.a_while();
        room::sleep(t);
        let r = Request::PairResync { group: GROUP.into(), pair: pair.into(), in_place: false, keep: None };
        let said = world::order(at, &r);
        room::trace(format!("resync of {pair}: {:?}", said.map_err(|e| e.to_string())));
    }

    /// G2: the async site is killed, comes back without its links, and its tree is at a point of the order.
    fn look(&mut self) {
        if mounts::mounted(ASYNC) {
            return;
        }
        world::kill(ASYNC);
        self.cut_off(ASYNC, true);
        world::start(ASYNC, self.seed);
        room::sleep(Duration::from_millis(1500));
        let there = |p: &str| room::with_disk(ASYNC, "", |d| d.exists(p.as_bytes()));
        if !there("region/IN-TRANSITION") && world::group(ASYNC).is_some_and(|g| g.role == "secondary" && g.consistent)
        {
            super::oracle::at_a_point(ASYNC, Keep::Any).unwrap_or_else(client::fail);
        }
        self.cut_off(ASYNC, false);
    }
}

/// Ends everything that is wrong with the world: from here on it must heal.
pub fn end_all(seed: u64) {
    room::trace("quiet".into());
    for (m, _) in SITES {
        room::thaw(m);
        room::with_net(|n| n.all_of(m, |p| p.heal()));
        room::with_disk(m, "", |d| {
            d.unfill();
            d.set_faults(DiskFaults::default(), 0);
        });
        if !world::is_up(m) {
            world::start(m, seed);
        }
    }
}
