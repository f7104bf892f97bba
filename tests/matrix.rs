//! C1: every procedure × {no load, load} × {clean, a node killed or cut off, at each step}, on three nodes in network
//! namespaces of their own (MS-10 to MS-14, MS-22, MS-24; G1, G3, G4, G5).
//!
//! One bed goes from case to case: each begins where the role is after the one before. After each: one site is primary
//! and all agree; what was fsynced or closed, and under `fence = "data"` every write that was answered, is at every site;
//! no copy sent more than the case had changed; no two sites took writes at one time (`matrix/bed.rs` looks at that).
//!
//! The normal run has a fixed part; `KAGAMI_FULL=1` all of it; `KAGAMI_CASE=WORDS` those of it whose line has these words.
//! What was run is printed.

pub mod bed;
pub mod load;
use crate::support;
mod watch;

use bed::{Bed, LONG};
use load::Load;
use std::collections::VecDeque;
use std::fs;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};
use support::machines::SITES;
use support::{Rng, env_number, proc};

/// The sites of the figures: P, S and A.
const P: usize = 0;
const S: usize = 1;
const A: usize = 2;
/// Longer than a link may be silent.
const CUT: Duration = Duration::from_millis(2600);

/// One way through the figures: an order, the site at which it is given, and how it stands before.
#[derive(Clone, Copy, Debug)]
struct Case {
    figure: &'static str,
    from: usize,
    to: usize,
    /// FROM is killed before.
    dead: bool,
    args: &'static [&'static str],
    steps: &'static [&'static str],
}

const TAKEN: &[&str] = &["lead", "start", "follow-others"];
const BACK: &[&str] = &["level", "roles", "start", "follow-from", "follow-others"];
const STOPPED: &[&str] = &["stop", "level-others", "level", "roles", "follow-others", "start", "follow-from"];
const LAST: &[&str] = &["stop", "level-others", "level", "roles", "follow-others", "follow-from", "start"];

const fn case(
    figure: &'static str,
    [from, to]: [usize; 2],
    args: &'static [&'static str],
    steps: &'static [&'static str],
) -> Case {
    Case { figure, from, to, dead: matches!(args[0].as_bytes(), b"takeover"), args, steps }
}

const CASES: [Case; 10] = [
    case("10", [P, S], &["takeover", "lab"], TAKEN),
    case("13", [P, A], &["takeover", "lab"], TAKEN),
    case("14", [P, A], &["takeover", "lab", "--with-data-of", SITES[S]], &["act", "roles", "follow-from", "start"]),
    case("11", [S, P], &["failback", "lab"], BACK),
    case("12", [S, P], &["failback", "lab", "--first", "async"], STOPPED),
    case("12 last", [S, P], &["failback", "lab", "--first", "async", "--start-last"], LAST),
    case("15", [A, P], &["failback", "lab"], BACK),
    case("16", [A, P], &["failback", "lab", "--first", "sync"], STOPPED),
    case("16 last", [A, P], &["failback", "lab", "--first", "sync", "--start-last"], LAST),
    case("swap", [P, S], &["swap", "lab"], BACK),
];

/// What is done to whom.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// kill -9; it is started again.
    Kill(usize),
    /// All its links are cut for longer than a link may be silent.
    Cut(usize),
    /// kill -9 of the command that carries the procedure out.
    Command,
    /// The old primary of a takeover is started already.
    Back,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Moment {
    /// The step is done (`--stop-after`).
    After,
    /// The step has begun.
    In,
}

#[derive(Clone, Copy, Debug)]
struct Trial {
    case: Case,
    load: bool,
    fault: Option<(Moment, &'static str, Fault)>,
}

impl std::fmt::Display for Trial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let load = if self.load { "load" } else { "no load" };
        let what = match self.fault {
            None => "clean".to_owned(),
            Some((m, step, fault)) => {
                let fault = match fault {
                    Fault::Kill(n) => format!("{} killed", SITES[n]),
                    Fault::Cut(n) => format!("{} cut off", SITES[n]),
                    Fault::Command => "command killed".into(),
                    Fault::Back => format!("{} is back", SITES[self.case.from]),
                };
                format!("{fault} {} {step}", if m == Moment::After { "after" } else { "in" })
            }
        };
        write!(f, "figure {:7} {load:7} {what}", self.case.figure)
    }
}

impl Trial {
    /// The arguments: by force where programs use the mount that goes, and up to a step.
    fn args(&self, stop: bool) -> Vec<&'static str> {
        let mut all = self.case.args.to_vec();
        if self.load && !self.case.dead {
            all.push("--force");
        }
        match self.fault {
            Some((Moment::After, step, _)) if stop => all.extend(["--stop-after", step]),
            _ => {}
        }
        all
    }
}

/// The order with what happens to it; then the same order until it succeeds. Gives whether FROM is to be started, and who
/// leads.
#[track_caller]
fn ordered(bed: &mut Bed, t: &Trial, rng: &mut Rng) -> (bool, usize) {
    let (to, mut dead) = (t.case.to, t.case.dead);
    if let Some((moment, step, fault)) = t.fault {
        let mut order = Some(bed.order(to, &t.args(true)));
        if moment == Moment::After {
            let (done, said) = bed::ended(order.take().unwrap(), LONG);
            // Where a link was just lost, a takeover may say once that the primary is still there.
            assert!(done || t.case.dead, "{t}: {said}\n{}", bed.told());
        } else {
            let begun = format!("{step}: begun");
            // Steps that need nothing are never begun: then it comes somewhere else.
            proc::wait_until(Duration::from_secs(5), || {
                let now = bed.group(to).and_then(|g| g.procedure).map(|p| p.step);
                now.is_some_and(|s| s == begun) || order.as_mut().unwrap().try_wait().is_ok_and(|s| s.is_some())
            });
            std::thread::sleep(Duration::from_millis(rng.below(if fault == Fault::Back { 40 } else { 120 })));
        }
        match fault {
            Fault::Kill(n) => {
                bed.net.kill(n);
                std::thread::sleep(Duration::from_millis(rng.below(300)));
                bed.back(n);
            }
            Fault::Cut(n) => {
                for other in (0..3).filter(|o| *o != n) {
                    bed.net.cut_both(n, other);
                }
                std::thread::sleep(CUT);
                bed.net.heal();
            }
            Fault::Command => order.as_mut().map(|o| o.kill().unwrap()).unwrap_or_default(),
            Fault::Back => {
                bed.back(t.case.from);
                dead = false;
            }
        }
        if let Some(o) = order {
            bed::ended(o, LONG);
        }
    }
    let limit = Instant::now() + LONG;
    loop {
        let (done, said) = bed::ended(bed.order(to, &t.args(false)), LONG);
        if done {
            return (dead, to);
        }
        // A primary that was back before its role was taken keeps it.
        if t.case.dead && !dead && said.contains("is primary and reachable") && bed.settled() == t.case.from {
            return (false, t.case.from);
        }
        assert!(Instant::now() < limit, "{t}: {said}\n{}", bed.told());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// One case of the matrix, with all that is looked at afterwards. Gives who leads then, and how often all nodes were
/// looked at meanwhile.
#[track_caller]
fn run(bed: &mut Bed, t: &Trial, rng: &mut Rng) -> (usize, u64) {
    let (begun, c) = (Instant::now(), t.case);
    let dir = bed.next_dir(c.from);
    let mark = bed.mark();
    let load = t.load.then(|| Load::start(bed::dirs(&bed.net, &dir), bed.fence == "data"));
    if let Some(l) = &load {
        assert!(l.reaches(12, LONG), "nothing is answered\n{}", bed.told());
    }
    if c.dead {
        // What the async site does not have yet is lost with figure 13.
        let pause = load.as_ref().filter(|_| c.figure == "13");
        if let Some(l) = pause {
            l.pause(true);
            bed.settled();
        }
        bed.net.kill(c.from);
        pause.inspect(|l| l.pause(false));
    }
    let (dead, to) = ordered(bed, t, rng);
    // What was answered is there while FROM is still lost, and it goes on there.
    bed.mounted(to);
    let so_far = load.as_ref().map(Load::so_far).unwrap_or_default();
    let missing = so_far.missing(&bed.net.mnt(to).join(&dir));
    assert!(missing.is_empty(), "{t}: lost at {}: {missing:#?}\n{}", SITES[to], bed.told());
    fs::write(bed.net.mnt(to).join(&dir).join("after"), c.figure).unwrap();
    if dead {
        bed.back(c.from);
    }
    if let Some(l) = &load {
        let more = so_far.answers() + 5;
        assert!(l.reaches(more, LONG), "{t}: nothing is answered at {}\n{}", SITES[to], bed.told());
    }
    let known = load.map(Load::end).unwrap_or_default();
    let cost = bed.check(to, &dir, &known, &mark).unwrap_or_else(|why| panic!("{t}: {why}\n{}", bed.told()));
    println!(
        "{t}: {}{} answers, {} bytes in {} writes; {} copies of {} bytes, links {}; {:.1} s",
        if to == c.to { "" } else { "which keeps its role; " },
        known.answers(),
        known.bytes,
        known.files,
        cost.copies,
        cost.bytes,
        cost.carried,
        begun.elapsed().as_secs_f64()
    );
    (to, cost.looks)
}

/// Puts the role where a case begins.
#[track_caller]
fn moved(bed: &Bed, to: usize) {
    let (done, said) = bed::ended(bed.order(to, &["swap", "lab"]), LONG);
    assert!(done, "{said}\n{}", bed.told());
    assert_eq!(bed.settled(), to);
}

/// All of it, on one bed; the next one is one that begins where the role is, if there is one. A case that fails ends
/// that bed, and the others go on with a new one.
fn play(test: &str, fence: &'static str, trials: Vec<Trial>) {
    let Some(mut bed) = Bed::up(test, fence) else { return };
    let (begun, count) = (Instant::now(), trials.len());
    let mut rng = Rng::new(support::seed(test));
    let mut left = VecDeque::from(trials);
    let (mut at, mut looks, mut failed) = (P, 0, Vec::new());
    while !left.is_empty() {
        let i = left.iter().position(|t| t.case.from == at).unwrap_or(0);
        let Some(t) = left.remove(i) else { break };
        let one = || {
            if t.case.from != at {
                moved(&bed, t.case.from);
            }
            run(&mut bed, &t, &mut rng)
        };
        if let Ok((leads, n)) = std::panic::catch_unwind(AssertUnwindSafe(one)) {
            (at, looks) = (leads, looks + n);
        } else {
            failed.push(t.to_string());
            drop(bed);
            bed = Bed::up(test, fence).expect("a bed, as before");
            at = P;
        }
    }
    let s = begun.elapsed().as_secs_f64();
    println!("{test}: {count} cases in {s:.0} s; all nodes were looked at {looks} times");
    assert!(failed.is_empty(), "{} of {count} cases failed: {failed:#?}", failed.len());
    assert!(looks > 10 * count as u64);
}

/// All cases of these figures: under `fence = "data"` those after a step, otherwise those in a step.
fn all_of(figures: &[&str], fence: &str) -> Vec<Trial> {
    let mut all = Vec::new();
    for (i, case) in CASES.into_iter().filter(|c| figures.contains(&c.figure)).enumerate() {
        all.extend([false, true].map(|load| Trial { case, load, fault: None }));
        for (j, step) in case.steps.iter().copied().enumerate() {
            let mut add = |moment, fault, loads: &[bool]| {
                all.extend(loads.iter().map(|load| Trial { case, load: *load, fault: Some((moment, step, fault)) }));
            };
            for n in 0..3 {
                let kill = if case.dead && n == case.from { Fault::Back } else { Fault::Kill(n) };
                match fence {
                    "data" => add(Moment::After, kill, &[false, true]),
                    _ => add(Moment::In, kill, &[true]),
                }
                // Of the cuts each bed has one half.
                if (i + j + n) % 2 == usize::from(fence == "data") && !(case.dead && n == case.from) {
                    add(Moment::In, Fault::Cut(n), &[true]);
                }
            }
            if fence != "data" {
                add(Moment::In, Fault::Command, &[true]);
            }
        }
    }
    all
}

/// The part that is always run.
fn some_of(figures: &[&str], fence: &str) -> Vec<Trial> {
    use Fault::*;
    use Moment::*;
    type Some = (&'static str, &'static str, bool, Option<(Moment, &'static str, Fault)>);
    let some: [Some; 26] = [
        ("data", "10", true, Some((After, "lead", Kill(S)))),
        ("data", "10", true, Some((In, "follow-others", Cut(A)))),
        ("data", "13", false, Some((After, "start", Kill(A)))),
        ("data", "14", true, Some((After, "act", Kill(S)))),
        ("never", "10", false, Some((After, "start", Back))),
        ("never", "13", true, Some((In, "lead", Kill(A)))),
        ("never", "14", true, Some((In, "roles", Kill(S)))),
        ("never", "14", true, None),
        ("data", "11", true, Some((After, "roles", Kill(P)))),
        ("data", "12", false, Some((After, "stop", Kill(S)))),
        ("data", "12 last", true, Some((After, "level", Kill(P)))),
        ("never", "11", true, Some((In, "level", Command))),
        ("never", "12", true, Some((In, "roles", Kill(S)))),
        ("never", "12 last", false, None),
        ("data", "15", true, Some((After, "level", Kill(A)))),
        ("data", "16", false, None),
        ("data", "16 last", true, Some((After, "roles", Kill(A)))),
        ("never", "15", true, Some((In, "level", Cut(A)))),
        ("never", "16", true, Some((In, "roles", Kill(P)))),
        ("never", "16 last", true, Some((In, "stop", Command))),
        ("data", "swap", true, Some((After, "roles", Kill(S)))),
        ("data", "swap", false, Some((After, "level", Kill(A)))),
        ("data", "swap", true, None),
        ("never", "swap", true, Some((In, "roles", Kill(P)))),
        ("never", "swap", true, Some((In, "roles", Cut(S)))),
        ("never", "swap", false, None),
    ];
    let fit = some.into_iter().filter(|(f, c, ..)| *f == fence && figures.contains(c));
    fit.map(|(_, figure, load, fault)| Trial { case: by_figure(figure), load, fault }).collect()
}

fn by_figure(figure: &str) -> Case {
    *CASES.iter().find(|c| c.figure == figure).unwrap()
}

fn matrix(test: &str, figures: &[&str], fence: &'static str) {
    let full = env_number("KAGAMI_FULL", 0) > 0;
    let mut trials = if full { all_of(figures, fence) } else { some_of(figures, fence) };
    if let Ok(words) = std::env::var("KAGAMI_CASE") {
        trials.retain(|t| t.to_string().contains(&words));
    }
    play(test, fence, trials);
}

const TAKEOVERS: &[&str] = &["10", "13", "14"];
const FROM_SYNC: &[&str] = &["11", "12", "12 last"];
const FROM_ASYNC: &[&str] = &["15", "16", "16 last"];

/// C1, takeovers; every write that was answered is kept.
#[test]
fn c1_takeovers_under_the_fence() {
    matrix("c1_takeovers_under_the_fence", TAKEOVERS, "data");
}

/// C1, takeovers; what was fsynced or closed is kept.
#[test]
fn c1_takeovers() {
    matrix("c1_takeovers", TAKEOVERS, "never");
}

/// C1, the ways back from the sync site.
#[test]
fn c1_back_from_the_sync_site_under_the_fence() {
    matrix("c1_back_from_the_sync_site_under_the_fence", FROM_SYNC, "data");
}

/// C1, the same without the fence.
#[test]
fn c1_back_from_the_sync_site() {
    matrix("c1_back_from_the_sync_site", FROM_SYNC, "never");
}

/// C1, the ways back from the async site.
#[test]
fn c1_back_from_the_async_site_under_the_fence() {
    matrix("c1_back_from_the_async_site_under_the_fence", FROM_ASYNC, "data");
}

/// C1, the same without the fence.
#[test]
fn c1_back_from_the_async_site() {
    matrix("c1_back_from_the_async_site", FROM_ASYNC, "never");
}

/// C1, the planned switchover.
#[test]
fn c1_switchover_under_the_fence() {
    matrix("c1_switchover_under_the_fence", &["swap"], "data");
}

/// C1, the same without the fence.
#[test]
fn c1_switchover() {
    matrix("c1_switchover", &["swap"], "never");
}

/// G3: the old primary is started just when it is taken over: one of the two leads, whoever is first.
#[test]
fn g3_a_primary_that_is_back_while_it_is_taken_over() {
    let one = |figure| Trial { case: by_figure(figure), load: true, fault: Some((Moment::In, "lead", Fault::Back)) };
    play("g3_a_primary_that_is_back_while_it_is_taken_over", "never", vec![one("10"), one("13"), one("10"), one("13")]);
}

/// What looks at the cases can fail: each fault that it is for is made once, by hand, and seen.
#[test]
fn c1_each_fault_would_be_seen() {
    let Some(mut bed) = Bed::up("c1_each_fault_would_be_seen", "never") else { return };
    let dir = bed.next_dir(P);
    let mark = bed.mark();
    let load = Load::start(bed::dirs(&bed.net, &dir), false);
    assert!(load.reaches(12, LONG));
    let known = load.end();
    let none = load::Known::default();
    bed.check(P, &dir, &known, &mark).expect("nothing is wrong yet");
    let seen = |bed: &Bed, words: &str, known: &load::Known, mark: &bed::Mark| {
        let e = bed.check(P, &dir, known, mark).expect_err(words);
        assert!(e.contains(words), "{e}");
    };

    // A record that is not at a site, and a site with other bytes.
    let base = std::path::PathBuf::from("base7");
    for (site, name, words) in
        [(S, std::path::Path::new(&dir).join(known.a_name()), "lost at osaka"), (A, base, "differ")]
    {
        let at = bed.net.tree(site).join(name);
        let (good, time) = (fs::read(&at).unwrap(), fs::metadata(&at).unwrap().modified().unwrap());
        let put = |bytes: &[u8]| {
            fs::write(&at, bytes).unwrap();
            fs::File::options().write(true).open(&at).unwrap().set_modified(time).unwrap();
        };
        put(&[&good[1..], &[!good[0]]].concat());
        seen(&bed, words, &known, &mark);
        put(&good);
        bed.check(P, &dir, &known, &mark).expect("nothing is wrong again");
    }

    // What nobody wrote is on the links; it is in a copy; everything is in a copy.
    let file = bed.net.mnt(P).join("base3");
    let good = fs::read(&file).unwrap();
    let mark = bed.mark();
    for _ in 0..3 {
        fs::write(&file, [&good[1..], &[good[0]]].concat()).unwrap();
        fs::write(&file, &good).unwrap();
        bed.settled();
    }
    seen(&bed, "carried more than", &none, &mark);
    let mark = bed.mark();
    bed.net.kill(A);
    fs::write(bed.net.mnt(P).join("more"), &good).unwrap();
    bed.back(A);
    seen(&bed, "copied more than", &none, &mark);
    let mark = bed.mark();
    // A site that has nothing any more is copied to as at the beginning.
    bed.net.kill(A);
    fs::remove_dir_all(bed.net.dir(A).join("region")).unwrap();
    assert!(bed.net.at(A, &["region", "create"]).status.success());
    bed.back(A);
    seen(&bed, "an initial copy", &none, &mark);

    // Two primaries: what the operator's force can do to a primary that is cut off.
    let dir = bed.next_dir(P);
    let (mark, load) = (bed.mark(), Load::start(bed::dirs(&bed.net, &dir), false));
    for other in [S, A] {
        bed.net.cut_both(P, other);
    }
    std::thread::sleep(CUT);
    let (done, said) = bed::ended(bed.order(S, &["takeover", "lab", "--force"]), LONG);
    assert!(done, "{said}\n{}", bed.told());
    bed.mounted(S);
    assert!(load.reaches(load.so_far().answers() + 20, LONG));
    bed.net.heal();
    let known = load.end();
    assert_eq!(known.by_turns(), Some([P, S]));
    let e = bed.check(S, &dir, &none, &mark).expect_err("two primaries");
    assert!(e.contains("took writes at one time"), "{e}");
}

/// A primary that loses the link while it hands its role over keeps the role, and cannot say so: when the link is back it
/// is asked again.
#[test]
fn c1_a_hand_over_whose_link_breaks_is_asked_for_again() {
    let Some(bed) = Bed::up("c1_a_hand_over_whose_link_breaks", "never") else { return };
    // What is sent to the sync site arrives, and is not acknowledged.
    bed.net.mute(S, P);
    let at = bed.net.mnt(P).join("under-way");
    let writer = std::thread::spawn(move || fs::write(at, b"under way"));
    let (begun, order) = (Instant::now(), bed.order(S, &["swap", "lab", "--force"]));
    let given_up = || fs::read_to_string(bed.net.dir(P).join("node.log")).is_ok_and(|l| l.contains("not handed over"));
    assert!(proc::wait_until(LONG, given_up), "{}", bed.told());
    bed.net.heal();
    let (done, said) = bed::ended(order, LONG);
    println!("{:.1} s: {said}", begun.elapsed().as_secs_f64());
    assert!(done, "{said}\n{}", bed.told());
    let _ = writer.join();
    assert_eq!(bed.settled(), S);
}

/// G3: of two links of one primary the one that ended first takes nothing from the other: the primary is linked.
#[test]
fn g3_a_link_that_is_replaced_by_a_newer_one_does_not_end_it() {
    let Some(mut bed) = Bed::up("g3_a_link_that_is_replaced", "never") else { return };
    for _ in 0..3 {
        // The sync site does not hear that the old link has ended; the new one comes before it would notice.
        bed.net.cut(P, S);
        bed.net.kill(P);
        bed.net.start(P);
        bed.net.heal();
        assert_eq!(bed.settled(), P);
    }
    std::thread::sleep(CUT);
    let out = bed.net.at(S, &["takeover", "lab", "--handover"]);
    assert!(out.status.success(), "{}\n{}", proc::text(&out.stderr), bed.told());
    assert_eq!(bed.settled(), S);
}
