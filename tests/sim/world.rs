//! Three machines with a node each, a machine for the arbiter's part of the third site, and what is done to them from outside.

use super::chart::{self, SITES};
use super::client::{self, CLIENTS};
use super::disk::Cut;
use super::mounts::{self, Table};
use super::rng::Rng;
use super::room::{self, MachineId, ThreadId};
use super::shared::Shared;
use kagami::base::{Error, Result, VolId};
use kagami::launch::service::Service;
use kagami::node::config::Config;
use kagami::node::control::{self, Request};
use kagami::node::status::{GroupStatus, Status};
use kagami::store::region::Region;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The group.
pub const GROUP: &str = "lab";
/// A disk, bytes.
pub const DISK_BYTES: u64 = 256 << 20;
/// How long an order may take, simulated.
const ORDER: Duration = Duration::from_secs(60);

/// Within this time a node takes a checkpoint, if something changed.
const CHECKPOINT: Duration = Duration::from_secs(6);

/// What a seed drew for the whole run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub fence: bool,
    pub voted: bool,
    pub write_through: bool,
    pub journal_mib: u64,
    pub queue_mib: u64,
}

impl Plan {
    pub fn draw(rng: &mut Rng) -> Plan {
        Plan {
            fence: rng.chance(0.25),
            voted: rng.chance(0.35),
            write_through: rng.chance(0.5),
            journal_mib: 64,
            queue_mib: 1 + rng.below(8),
        }
    }

    /// The site file of a machine.
    pub fn site_file(&self, m: MachineId) -> String {
        let me = chart::name(m);
        let mut o = format!(
            "[node]\nsite = \"{me}\"\nstate_dir = \"state\"\nlisten = [\"unix:/sim/{me}/n.sock\"]\n\
             [limits]\nlink_timeout_ms = 1500\nheartbeat_ms = 300\nprogress_timeout_ms = 4000\n\
             journal_mib = {}\nqueue_memory_mib = {}\nspool_mib = 64\n",
            self.journal_mib, self.queue_mib
        );
        for (_, s) in SITES.iter().filter(|(n, _)| *n != m) {
            o += &format!("[[peer]]\nsite = \"{s}\"\naddr = \"unix:/sim/{s}/n.sock\"\n");
        }
        o += &format!("[[group]]\nname = \"{GROUP}\"\nfence = \"{}\"\n", if self.fence { "data" } else { "never" });
        o += &format!("write_through = {}\nprimary = \"primary\"\n", self.write_through || self.fence);
        if self.voted {
            o += "takeover = \"auto\"\narbiter = { site = \"async\" }\ndetect = 2\n";
        }
        o += "[[group.volume]]\nname = \"vol0\"\nlegs = [\"region\"]\nmount = \"/mnt/lab\"\n";
        for (name, mode, [a, b]) in [
            ("sync", "sync", ["primary", "sync"]),
            ("async", "async", ["primary", "async"]),
            ("relay", "async", ["sync", "async"]),
        ] {
            o += &format!("[[group.pair]]\nname = \"{name}\"\nmode = \"{mode}\"\nsites = [\"{a}\", \"{b}\"]\n");
        }
        o
    }
}

/// Which machines' nodes run, and how often each was started.
static UP: Shared<[(bool, u64); 4]> = Shared::new([(false, 0); 4]);

/// The thread of the node that was started last at each machine.
static THREADS: Shared<[ThreadId; 4]> = Shared::new([0; 4]);

/// True while the node that was started last at a machine lives, whatever is known of it here.
pub fn lives(m: MachineId) -> bool {
    room::alive(THREADS.with(|t| t[m]))
}

fn dir(m: MachineId) -> PathBuf {
    PathBuf::from(format!("/sim/{}", chart::name(m)))
}

/// Makes the machines; none runs yet.
pub fn build(plan: &Plan) {
    for (m, name) in SITES {
        let made = room::machine(name, &[("", DISK_BYTES)]);
        assert_eq!(made, m, "machines are numbered as they are made");
        let text = plan.site_file(m);
        room::with_disk(m, "", |d| d.write_file(b"site.toml", text.as_bytes()).and_then(|()| d.syncfs()))
            .expect("a site file");
    }
}

/// True while the node of a machine has not been killed.
pub fn is_up(m: MachineId) -> bool {
    UP.with(|u| u[m].0)
}

/// Starts a node and its clients.
pub fn start(m: MachineId, seed: u64) {
    let count = UP.with(|u| {
        u[m] = (true, u[m].1 + 1);
        u[m].1
    });
    room::trace(format!("start of {} ({count})", chart::name(m)));
    let path = dir(m).join("site.toml");
    let thread = room::spawn_on(m, "node", Box::new(move || node(m, &path)));
    THREADS.with(|t| t[m] = thread);
    for lane in 0..client::LANES {
        let seed = seed ^ (m as u64) << 8 ^ (lane as u64) << 16 ^ count << 24;
        room::spawn_on(m, "client", Box::new(move || client::run(m, lane, seed)));
    }
}

fn node(m: MachineId, path: &Path) {
    let run = || -> Result<()> {
        let config = Config::load(path)?;
        let service = Service::new(&config, Arc::new(Table(m)), false);
        let (mounter, launcher) = (Arc::new(service.clone()), Arc::new(service));
        kagami::node::run(config, kagami::node::Options { mounter, launcher })
    };
    match run() {
        Ok(()) => room::trace(format!("the node of {} ended", chart::name(m))),
        Err(e) => client::fail(format!("the node of {} ended: {e}", chart::name(m))),
    }
    UP.with(|u| u[m].0 = false);
}

/// kill -9 of the node.
pub fn kill(m: MachineId) {
    room::trace(format!("kill -9 of {}", chart::name(m)));
    UP.with(|u| u[m].0 = false);
    room::kill(m);
    mounts::died(m);
}

/// The power of a machine goes.
pub fn power_cut(m: MachineId, cut: &Cut) {
    room::trace(format!("power cut of {}", chart::name(m)));
    UP.with(|u| u[m].0 = false);
    room::power_cut(m, cut);
    mounts::died(m);
    chart::lost_power(m);
}

/// A machine crashed at a moment that was planned.
pub fn crashed(m: MachineId, without_power: bool) {
    room::trace(format!("{} has crashed", chart::name(m)));
    UP.with(|u| u[m].0 = false);
    mounts::died(m);
    if without_power {
        chart::lost_power(m);
    }
}

/// What the words of a node ask for whose own files are damaged: its replica is put away, an empty one made, and filled anew.
pub fn renew(m: MachineId, seed: u64) {
    room::trace(format!("the replica of {} is made anew", chart::name(m)));
    chart::rotten(m);
    if is_up(m) {
        kill(m);
    }
    room::with_disk(m, "", |d| d.remove_tree(b"region")).expect("a region");
    let path = dir(m).join("region");
    let made = room::spawn_on(
        m,
        "operator",
        Box::new(move || {
            Region::create(&path, GROUP, "vol0", VolId(0)).expect("an empty region");
        }),
    );
    room::join(made);
    start(m, seed);
}

/// Gives an order to a node, and waits for the answer.
pub fn order(m: MachineId, r: &Request) -> Result<Value> {
    order_within(m, r, ORDER)
}

fn order_within(m: MachineId, r: &Request, limit: Duration) -> Result<Value> {
    if !is_up(m) {
        return Err(Error::link("it does not run"));
    }
    control::call_within(&dir(m).join("state"), r, Some(limit), |_| ())
}

/// How the group stands at a machine, if it answers.
pub fn group(m: MachineId) -> Option<GroupStatus> {
    let v = order_within(m, &Request::Status {}, Duration::from_secs(3)).ok()?;
    serde_json::from_value::<Status>(v).ok()?.groups.into_iter().next()
}

/// Starts all three, and waits until they are in step for the first time.
pub fn begin(seed: u64) -> std::result::Result<(), String> {
    for (m, _) in SITES {
        start(m, seed);
    }
    wait_settled(Duration::from_secs(60), |_| ()).map_err(|why| format!("the beginning: {why}"))?;
    // Until the first checkpoint a power cut leaves nothing that a resync could begin at.
    room::sleep(CHECKPOINT);
    Ok(())
}

/// The one primary, if one site is primary and mounted, the others follow it, and everything is everywhere; otherwise why not.
pub fn level() -> std::result::Result<MachineId, String> {
    let all: Vec<(MachineId, Option<GroupStatus>)> = SITES.iter().map(|(m, _)| (*m, group(*m))).collect();
    let with = |role: &str| -> Vec<MachineId> {
        let it = all.iter().filter(|(_, g)| g.as_ref().is_some_and(|g| g.role == role));
        it.map(|(m, _)| *m).collect()
    };
    let (leads, follow) = (with("primary"), with("secondary"));
    let words = || {
        let one = |(m, g): &(MachineId, Option<GroupStatus>)| match g {
            None => format!("{} does not answer", chart::name(*m)),
            Some(g) => {
                let pair = |p: &kagami::node::status::PairStatus| {
                    format!("{} {} {:?} lag {}", p.name, p.state, p.reason.as_deref().unwrap_or(""), p.lag.entries)
                };
                let pairs: Vec<String> = g.pairs.iter().map(pair).collect();
                let why = [&g.reason, &g.task, &g.refuses_writes].map(|w| w.clone().unwrap_or_default()).join("|");
                let why = format!("{why}|{}", g.faults.join("|"));
                format!(
                    "{} is {} epoch {} at {} [{why}] {}",
                    chart::name(*m),
                    g.role,
                    g.epoch,
                    g.position,
                    pairs.join(", ")
                )
            }
        };
        all.iter().map(one).collect::<Vec<_>>().join("; ")
    };
    let [p] = leads.as_slice() else { return Err(words()) };
    let g = all.iter().find(|(m, _)| m == p).and_then(|(_, g)| g.as_ref()).expect("it answered");
    if all.iter().any(|(_, g)| {
        g.as_ref().is_some_and(|g| !g.faults.is_empty() || g.role == "primary" && g.refuses_writes.is_some())
    }) {
        return Err(words());
    }
    let level = g.pairs.iter().filter(|p| p.direction == "out" && p.state == "PAIR" && p.lag.is_zero()).count();
    if follow.len() == 2 && level == 2 && g.task.is_none() && mounts::mounted(*p) { Ok(*p) } else { Err(words()) }
}

/// Waits until [`level`] says so; `nudge` is called now and then with how long it has taken.
pub fn wait_settled(limit: Duration, mut nudge: impl FnMut(Duration)) -> std::result::Result<(), String> {
    let begin = room::now_ns();
    loop {
        let took = Duration::from_nanos(room::now_ns() - begin);
        match level() {
            Ok(_) => {
                chart::settled();
                return Ok(());
            }
            Err(why) if took > limit => return Err(format!("not in step after {} s: {why}", took.as_secs())),
            Err(_) => {}
        }
        if CLIENTS.with(|c| c.failure.is_some()) {
            return Err("given up".into());
        }
        nudge(took);
        room::sleep(Duration::from_millis(50));
    }
}
