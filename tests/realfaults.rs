//! Real faults on real nodes (G1 to G5, G8, G9): each process is killed with -9 under load, again and again, while lines
//! between the sites delay, trickle, break, damage or carry one way only, are cut by nft, and nodes stand still; then disks
//! that are full and limits of the system that are reached.
//!
//! After each round, nobody having done anything: all is in step, the trees are equal, nothing is missing that was
//! answered, no two sites took writes at one time, and the log of events tells what happened. `KAGAMI_ROUNDS`: rounds of
//! each test with kills (default [`ROUNDS`]).

mod limits;
mod proxy;
use crate::matrix::{bed, load};
use crate::support;

use bed::{Bed, LONG};
use kagami::node::events::What;
use load::Load;
use proxy::{How, Proxy};
use std::time::{Duration, Instant};
use support::machines::{SITES, Setup, Third};
use support::proc::{self, Use, usage};
use support::{Rng, env_number};

/// Rounds of each test with kills.
const ROUNDS: u64 = 20;
/// Answers that the load must get before and after.
const ANSWERS: usize = 12;
/// A node that is never killed may have so much more at the end than in the beginning.
const FDS_MORE: usize = 24;
const THREADS_MORE: usize = 12;

const MS: fn(u64) -> Duration = Duration::from_millis;

/// What is wrong with the lines between the sites during a round.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Trouble {
    None,
    /// The line between these sites, by the proxy.
    Line(usize, usize, How),
    /// Everything from one to the other, by nft.
    Cut(usize, usize),
    /// Both ways.
    CutBoth(usize, usize),
    /// All of one site.
    CutOff(usize),
    /// A node stands still.
    Stopped(usize),
}

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Victim {
    Node(usize),
    /// The command that hands the role over.
    Command,
    Nobody,
}

/// The troubles that there are, one after the other.
fn trouble(n: u64, rng: &mut Rng) -> Trouble {
    let a = rng.below(3) as usize;
    let b = (a + 1 + rng.below(2) as usize) % 3;
    let line = |how| Trouble::Line(a, b, how);
    match n % 13 {
        0 => Trouble::None,
        1 => line(How::Delay(MS(60))),
        2 => line(How::Trickle(700, MS(10))),
        3 => line(How::Refuse),
        4 => line(How::Break(20_000)),
        5 => line(How::NoThere),
        6 => line(How::NoBack),
        7 => line(How::Flip(30_000)),
        8 => Trouble::Cut(a, b),
        9 => Trouble::CutBoth(a, b),
        10 => Trouble::CutOff(a),
        11 => Trouble::Stopped(a),
        _ => line(How::Break(200)),
    }
}

struct Room {
    bed: Bed,
    proxy: Proxy,
}

impl Room {
    fn up(test: &str, fence: &'static str, detect_s: Option<u64>) -> Option<Room> {
        let write_through = fence == "data";
        let setup = Setup { third: Third::Site, detect_s, fence, write_through, mounts: 3, proxied: true };
        let (bed, proxy) = Bed::up_with(test, setup, Proxy::start)?;
        Some(Room { bed, proxy })
    }

    fn begin(&self, t: Trouble) {
        let net = &self.bed.net;
        match t {
            Trouble::None => {}
            Trouble::Line(a, b, how) => self.proxy.between(a, b, how),
            Trouble::Cut(a, b) => net.cut(a, b),
            Trouble::CutBoth(a, b) => net.cut_both(a, b),
            Trouble::CutOff(a) => (0..3).filter(|b| *b != a).for_each(|b| net.cut_both(a, b)),
            Trouble::Stopped(a) => self.signal(a, libc::SIGSTOP),
        }
    }

    fn end(&self, t: Trouble) {
        self.proxy.heal();
        match t {
            Trouble::Stopped(a) => self.signal(a, libc::SIGCONT),
            Trouble::Cut(..) | Trouble::CutBoth(..) | Trouble::CutOff(_) => self.bed.net.heal(),
            _ => {}
        }
    }

    fn signal(&self, site: usize, signal: i32) {
        if let Some(pid) = self.bed.net.pid(site) {
            proc::kill(pid, signal);
        }
    }

    /// Descriptors of files in the tree are left out: a secondary keeps a bounded number of them open.
    fn usage(&self) -> [Use; 3] {
        [0, 1, 2].map(|s| {
            let pid = self.bed.net.pid(s).unwrap_or(0) as u32;
            let (tree, all) = (self.bed.net.tree(s), std::fs::read_dir(format!("/proc/{pid}/fd")));
            let to = |e: std::fs::DirEntry| std::fs::read_link(e.path()).is_ok_and(|to| to.starts_with(&tree));
            let kept = all.into_iter().flatten().flatten().filter_map(|e| to(e).then_some(())).count();
            let now = usage(pid);
            Use { fds: now.fds.saturating_sub(kept), ..now }
        })
    }

    /// One round: load, trouble, a kill within it; then everything heals. Gives how many processes were killed.
    #[track_caller]
    fn round(&mut self, n: u64, victim: Victim, rng: &mut Rng) -> u64 {
        let (begun, at) = (Instant::now(), self.bed.settled());
        let dir = self.bed.next_dir(at);
        let events: Vec<u64> = (0..3).map(|s| self.last_event(s)).collect();
        let load = Load::start(bed::dirs(&self.bed.net, &dir), self.bed.fence == "data");
        assert!(load.reaches(ANSWERS, LONG), "nothing is answered\n{}", self.bed.told());
        let t = trouble(n, rng);
        let words = format!("round {n}: {t:?}, {victim:?} killed");
        self.begin(t);
        std::thread::sleep(MS(rng.below(500)));
        let mut kills = 0;
        match victim {
            Victim::Nobody => std::thread::sleep(MS(rng.below(3000))),
            Victim::Command => {
                let mut order = self.bed.order(1 - at.min(1), &["swap", "lab", "--force"]);
                std::thread::sleep(MS(rng.below(400)));
                let _ = (order.kill(), order.wait());
                kills += 1;
            }
            Victim::Node(site) => {
                self.bed.net.kill(site);
                std::thread::sleep(MS(rng.below(500)));
                kills += 1;
                let (first, both) = (rng.one_in(2), rng.one_in(4));
                let other = (site + 1 + rng.below(2) as usize) % 3;
                if both {
                    // Another one dies while it is away.
                    self.bed.net.kill(other);
                    kills += 1;
                }
                if first {
                    self.end(t);
                }
                if both {
                    self.bed.net.start(other);
                }
                self.bed.net.start(site);
                std::thread::sleep(MS(rng.below(400)));
            }
        }
        self.end(t);
        self.heals(load, &dir, &words);
        self.tells(victim, &events, &words);
        println!("{words}: {:.1} s", begun.elapsed().as_secs_f64());
        kills
    }

    /// By itself: in step, writable, equal, with everything that was answered.
    #[track_caller]
    fn heals(&self, load: Load, dir: &str, words: &str) {
        self.bed.settled();
        let more = load.so_far().answers() + ANSWERS;
        assert!(load.reaches(more, LONG), "{words}: nothing is answered any more\n{}", self.bed.told());
        let known = load.end();
        let leads = self.bed.settled();
        self.bed.agree(leads, dir, &known).unwrap_or_else(|why| panic!("{words}: {why}\n{}", self.bed.told()));
    }

    fn last_event(&self, site: usize) -> u64 {
        self.bed.events(site).last().map_or(0, |e| e.n)
    }

    /// The log of events of a node that was killed tells of its start; where a secondary was, the primary tells that its
    /// pair was lost, and why, and that it is back.
    #[track_caller]
    fn tells(&self, victim: Victim, before: &[u64], words: &str) {
        let Victim::Node(site) = victim else { return };
        let new = |s: usize| self.bed.events(s).into_iter().filter(move |e| e.n > before[s]);
        assert!(
            new(site).any(|e| e.kind == What::NodeStart),
            "{words}: {} does not tell that it was started",
            SITES[site]
        );
        let leads = self.bed.settled();
        let pair = |to: &str| {
            (0..3).flat_map(new).any(|e| {
                e.kind == What::Pair
                    && e.to.as_deref() == Some(to)
                    && (to == "PAIR" || e.reason.is_some_and(|r| !r.is_empty()))
            })
        };
        if site != leads {
            assert!(pair("PSUE") && pair("PAIR"), "{words}: nothing told of the pair\n{}", self.bed.told());
        }
    }
}

/// Rounds on one bed, the victims one after the other.
fn kill_loop(test: &str, fence: &'static str, detect_s: Option<u64>) {
    let Some(mut room) = Room::up(test, fence, detect_s) else { return };
    let mut rng = Rng::new(support::seed(test));
    let (begun, mut kills) = (Instant::now(), 0);
    let rounds = env_number("KAGAMI_ROUNDS", ROUNDS);
    let first = rng.below(13);
    for n in 0..rounds {
        let victim = match n % 4 {
            // Whoever is primary: the others are named by their place.
            0 => Victim::Node(room.bed.settled()),
            3 => Victim::Command,
            site => Victim::Node(site as usize),
        };
        kills += room.round(first + n, victim, &mut rng);
    }
    let (carried, harmed) = room.proxy.told();
    let s = begun.elapsed().as_secs_f64();
    println!(
        "{test}: {rounds} rounds, {kills} kills in {s:.0} s; the lines carried {carried} bytes and did harm {harmed} times"
    );
    assert!(kills >= rounds && carried > 100_000, "the lines were not used");
    assert!(rounds < 13 || harmed > 0, "no line did any harm");
}

/// Takeover by order, writes answered without the sync site when it is lost.
#[test]
fn g1_g2_each_process_is_killed_again_and_again() {
    kill_loop("g1_g2_each_process_is_killed_again_and_again", "never", None);
}

/// Under `fence = "data"`, where each write that is answered is a promise.
#[test]
fn g1_each_process_is_killed_again_and_again_under_the_fence() {
    kill_loop("g1_each_process_is_killed_again_and_again_under_the_fence", "data", None);
}

/// With votes: the third site is the arbiter as well, and the sync site takes over by itself.
#[test]
fn g3_each_process_is_killed_again_and_again_with_votes() {
    kill_loop("g3_each_process_is_killed_again_and_again_with_votes", "never", Some(2));
}

/// Every trouble of a line and of a node that stands still, without a kill: nodes that go on leak nothing.
#[test]
fn g8_bad_lines_leave_nothing_behind() {
    let test = "g8_bad_lines_leave_nothing_behind";
    let Some(mut room) = Room::up(test, "never", None) else { return };
    let mut rng = Rng::new(support::seed(test));
    let before = room.usage();
    for n in 0..13 {
        room.round(n, Victim::Nobody, &mut rng);
    }
    let near = |now: &[Use; 3]| {
        now.iter().zip(&before).all(|(n, b)| n.fds <= b.fds + FDS_MORE && n.threads <= b.threads + THREADS_MORE)
    };
    let calm = proc::wait_until(Duration::from_secs(30), || near(&room.usage()));
    println!("before {before:?}\nafter {:?}", room.usage());
    assert!(calm, "more than before: {before:?}, {:?}\n{}", room.usage(), room.bed.told());
}
