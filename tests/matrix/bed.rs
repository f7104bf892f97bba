//! Three sites with a volume that holds something, and what is looked at after each case: the oracles of C1.

use super::load::Known;
use super::watch::{self, Watch};
use crate::support::machines::{Net, SITES, Setup, Third};
use crate::support::{self, Rng, proc};
use kagami::node::events::{Event, What};
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// For whatever must come about at all.
pub const LONG: Duration = Duration::from_secs(90);
/// What the volume holds before anything happens, bytes: more than any difference, so that a copy of it shows.
const BASE: u64 = 8 << 20;
const FILE: u64 = 1 << 18;
/// What a copy costs beside what differs: config definitions, a file of the case itself, bytes.
const COPY_MORE: u64 = 16 << 10;
/// What links carry beside records and copies, bytes for each second: heartbeats, looks at the other sites.
const IDLE_BYTES_S: u64 = 40 << 10;
/// And in each case: the links are made anew, bytes.
const LINKS_MORE: u64 = 512 << 10;

/// What was copied, and since when.
#[derive(Clone, Copy)]
pub struct Mark {
    events: [u64; 3],
    carried: u64,
    begun: Instant,
}

/// What it cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    pub copies: u64,
    pub bytes: u64,
    pub carried: u64,
    /// How often all nodes were looked at meanwhile.
    pub looks: u64,
}

/// The bed.
pub struct Bed {
    pub net: Net,
    pub fence: &'static str,
    watch: Watch,
    cases: u64,
}

impl Bed {
    /// All at home, in step. `None`: it cannot be had here, which was said.
    pub fn up(test: &str, fence: &'static str) -> Option<Bed> {
        let write_through = fence == "data";
        let setup = Setup { third: Third::Site, detect_s: None, fence, write_through, mounts: 3, proxied: false };
        Bed::up_with(test, setup, |_| ()).map(|(bed, ())| bed)
    }

    /// As [`Bed::up`], with something that is started once the sites have their networks and before they are in step.
    pub fn up_with<T>(test: &str, setup: Setup, beside: impl FnOnce(&Net) -> T) -> Option<(Bed, T)> {
        let net = Net::up_with(test, setup)?;
        let (fence, beside) = (setup.fence, beside(&net));
        let watch = Watch::start(&net);
        let bed = Bed { net, fence, watch, cases: 0 };
        let up = |s| bed.group(s).is_some_and(|g| g.role == if s == 0 { "primary" } else { "secondary" });
        assert!(proc::wait_until(LONG, || (0..3).all(up)), "{}", bed.net.logs());
        bed.mounted(0);
        for n in 0..BASE / FILE {
            fs::write(bed.net.mnt(0).join(format!("base{n}")), base(n)).unwrap();
        }
        assert_eq!(bed.settled(), 0);
        Some((bed, beside))
    }

    pub fn group(&self, site: usize) -> Option<kagami::node::status::GroupStatus> {
        watch::group(&self.net.state_dir(site))
    }

    /// Until the volume is mounted and takes writes there.
    #[track_caller]
    pub fn mounted(&self, site: usize) {
        let name = self.net.mnt(site).join("takes-writes");
        let takes = || {
            self.group(site).is_some_and(|g| g.role == "primary" && g.mounts.iter().any(|m| m.attached))
                && fs::write(&name, b"yes").and_then(|()| fs::File::open(&name)?.sync_all()).is_ok()
        };
        assert!(proc::wait_until(LONG, takes), "{} takes no writes\n{}", SITES[site], self.told());
    }

    /// A new directory for a case, at every site; that of the case before is gone.
    #[track_caller]
    pub fn next_dir(&mut self, at: usize) -> String {
        let old = self.net.mnt(at).join(format!("case{}", self.cases));
        self.cases += 1;
        let name = format!("case{}", self.cases);
        let fresh = || -> std::io::Result<()> {
            if old.exists() {
                fs::remove_dir_all(&old)?;
            }
            fs::create_dir(self.net.mnt(at).join(&name))
        };
        fresh().unwrap_or_else(|e| panic!("{}: {e}\n{}", SITES[at], self.told()));
        assert_eq!(self.settled(), at);
        name
    }

    /// Waits until one site is primary, the others follow it, and everything is everywhere; gives the primary.
    #[track_caller]
    pub fn settled(&self) -> usize {
        let end = Instant::now() + LONG;
        loop {
            let all: Vec<_> = (0..3).map(|s| self.group(s)).collect();
            let role = |s: usize| all[s].as_ref().map_or("", |g| g.role.as_str());
            let leads: Vec<usize> = (0..3).filter(|s| role(*s) == "primary").collect();
            if let ([p], 2) = (leads.as_slice(), (0..3).filter(|s| role(*s) == "secondary").count()) {
                // What the kernel holds back does not show as lag.
                let _ = fs::File::open(self.net.mnt(*p)).map(|d| kagami::os::sys::syncfs(&d));
                let g = self.group(*p).unwrap_or_default();
                let out = g.pairs.iter().filter(|p| p.direction == "out");
                let level = out.filter(|p| p.state == "PAIR" && p.lag.is_zero()).count();
                if level == 2 && g.role == "primary" && g.task.is_none() {
                    return *p;
                }
            }
            assert!(Instant::now() < end, "the sites are not in step\n{}", self.told());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Everything of C1 that can be seen when a case is over: `to` is the one primary, all sites agree, what was known
    /// is at each of them, no two took writes at one time, and nothing was copied but what the case changed.
    pub fn check(&self, to: usize, dir: &str, known: &Known, mark: &Mark) -> Result<Cost, String> {
        let looks = self.agree(to, dir, known)?;
        Ok(Cost { looks, ..self.cost(known, mark)? })
    }

    /// As [`Bed::check`], whatever it cost; how often all nodes were looked at meanwhile.
    pub fn agree(&self, to: usize, dir: &str, known: &Known) -> Result<u64, String> {
        let leads = self.settled();
        if leads != to {
            return Err(format!("{} is primary, not {}", SITES[leads], SITES[to]));
        }
        for (site, at) in SITES.iter().enumerate() {
            let missing = known.missing(&self.net.tree(site).join(dir));
            if !missing.is_empty() {
                return Err(format!("lost at {at}: {missing:#?}"));
            }
        }
        let whole = |n: &u64| fs::read(self.net.tree(to).join(format!("base{n}"))).is_ok_and(|b| b == base(*n));
        if let Some(n) = (0..BASE / FILE).find(|n| !whole(n)) {
            return Err(format!("base{n} is damaged at {}", SITES[to]));
        }
        for site in (0..3).filter(|s| *s != to) {
            let same = support::compare_trees(&self.net.tree(to), &self.net.tree(site));
            same.map_err(|d| format!("{} and {} differ: {d:#?}", SITES[to], SITES[site]))?;
        }
        if let Some([a, b]) = known.by_turns() {
            return Err(format!("{} and {} answered writes by turns", SITES[a], SITES[b]));
        }
        self.watch.never_two()
    }

    pub fn mark(&self) -> Mark {
        let last = |s| self.events(s).last().map_or(0, |e| e.n);
        Mark { events: [last(0), last(1), last(2)], carried: self.net.carried(), begun: Instant::now() }
    }

    /// Copies since then: all that they sent is what the case has changed, and the links carried no more than that.
    fn cost(&self, known: &Known, mark: &Mark) -> Result<Cost, String> {
        let new = |s: usize| self.events(s).into_iter().filter(move |e| e.n > mark.events[s]);
        let all: Vec<Event> = (0..3).flat_map(new).collect();
        if let Some(e) = all.iter().find(|e| e.kind == What::CopyBegin && e.to.as_deref() == Some("first-copy")) {
            return Err(format!("an initial copy: {e:?}"));
        }
        let ends: Vec<_> = all.iter().filter(|e| e.kind == What::CopyEnd).filter_map(|e| e.stats.as_ref()).collect();
        let cost = Cost {
            copies: ends.len() as u64,
            bytes: ends.iter().map(|s| s.bytes_copied).sum(),
            carried: self.net.carried() - mark.carried,
            looks: 0,
        };
        // Each of the two others may miss all of it.
        let most = 2 * known.bytes + cost.copies * COPY_MORE;
        if cost.bytes > most {
            return Err(format!("{cost:?}: copied more than the {} bytes that were written", known.bytes));
        }
        // It may come to a site in order, and again with each copy, also one that is interrupted; twice for all beside.
        let most = LINKS_MORE + IDLE_BYTES_S * mark.begun.elapsed().as_secs() + (cost.copies + 2) * 2 * known.bytes;
        if cost.carried > most {
            return Err(format!("{cost:?}: carried more than the {} bytes that were written", known.bytes));
        }
        Ok(cost)
    }

    /// The events of a site, in their order.
    pub fn events(&self, site: usize) -> Vec<Event> {
        let dir = self.net.state_dir(site).join("events");
        let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
        let text = read("events.1.jsonl") + &read("events.jsonl");
        text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
    }

    /// An order, under way.
    pub fn order(&self, site: usize, args: &[&str]) -> Child {
        let mut c = self.net.command(site, args);
        c.args(["--timeout", "60"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        proc::die_with_parent(&mut c).spawn().expect("an order")
    }

    /// Starts a node that was killed, and waits until it knows what it is.
    #[track_caller]
    pub fn back(&mut self, site: usize) {
        self.net.start(site);
        let up = proc::wait_until(LONG, || self.group(site).is_some_and(|g| g.role != "starting"));
        assert!(up, "{} does not start\n{}", SITES[site], self.told());
    }

    /// What the nodes say, and the ends of their logs.
    pub fn told(&self) -> String {
        let one = |s: usize| {
            let Some(g) = self.group(s) else { return format!("{}: no answer\n", SITES[s]) };
            let pairs: Vec<String> = g
                .pairs
                .iter()
                .map(|p| format!("{} {} {} {:?} {:?}", p.name, p.direction, p.state, p.reason, p.lag))
                .collect();
            let (mounts, why) = (g.mounts.len(), &g.refuses_writes);
            let (role, task, reason) = (&g.role, &g.task, &g.reason);
            format!(
                "{}: {role} epoch {} at {} task {task:?} {reason:?} mounts {mounts} refuses {why:?}\n  {}\n",
                SITES[s],
                g.epoch,
                g.position,
                pairs.join("\n  ")
            )
        };
        (0..3).map(one).collect::<String>() + &self.net.logs()
    }
}

fn base(n: u64) -> Vec<u8> {
    Rng::new(n + 1).bytes(FILE as usize)
}

/// What an order said, when it has ended; killed after `limit`.
pub fn ended(mut order: Child, limit: Duration) -> (bool, String) {
    use std::io::Read;
    let status = proc::wait_timeout(&mut order, limit);
    let mut said = String::new();
    let _ = order.stdout.take().map(|mut o| o.read_to_string(&mut said));
    let _ = order.stderr.take().map(|mut o| o.read_to_string(&mut said));
    (status.is_some_and(|s| s.success()), said)
}

/// Where the writers write: one directory for each site's mount.
pub fn dirs(net: &Net, dir: &str) -> Vec<PathBuf> {
    (0..3).map(|s| net.mnt(s).join(dir)).collect()
}
