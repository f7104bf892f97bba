//! The machine, driven by hand and by chance, without a process.

use super::app::{App, Ready, Restart, Stop};
use super::supervise::*;
use crate::os::process::End;
use proptest::prelude::*;
use std::time::Duration;

const fn s(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn app(name: &str, after: &[&str]) -> App {
    App {
        name: name.into(),
        command: "/bin/true".into(),
        args: vec![],
        dir: "/".into(),
        user: None,
        env: Default::default(),
        after: after.iter().map(|a| (*a).into()).collect(),
        ready: Ready::Started,
        ready_timeout: s(30),
        stop: Stop::Signal(libc::SIGTERM),
        stop_timeout: s(10),
        restart: Restart::OnFailure,
        source: format!("{name}.toml:1"),
    }
}

fn tcp(mut a: App) -> App {
    a.ready = Ready::Tcp("localhost:1".into());
    a
}

fn news(app: usize, run: u64, news: News) -> Event {
    Event::App { app, run, news }
}

fn state(m: &Machine, i: usize) -> StateName {
    m.standing(i).unwrap().state
}

fn reason(m: &Machine, i: usize) -> String {
    m.standing(i).unwrap().reason
}

/// Without the reports.
fn step(m: &mut Machine, e: Event, now: Duration) -> Vec<Effect> {
    m.step(e, now).into_iter().filter(|e| !matches!(e, Effect::Report(_) | Effect::EndHelpers(_))).collect()
}

/// The first process of a run ends and leaves nothing.
fn ends(m: &mut Machine, i: usize, run: u64, end: End, now: Duration) -> Vec<Effect> {
    assert_eq!(step(m, news(i, run, News::Ended { end, left: false }), now), []);
    step(m, news(i, run, News::Gone), now)
}

#[test]
fn what_makes_no_order_is_refused_with_its_line() {
    let wrong = |apps: Vec<App>, has: &[&str]| {
        let e = Machine::new(apps).unwrap_err();
        assert!(has.iter().all(|h| e.msg.contains(h)) && e.exit_code() == 2, "{}", e.msg);
    };
    wrong(vec![app("a", &[]), app("a", &[])], &["a.toml:1", "another"]);
    wrong(vec![app("a", &["b"])], &["a.toml:1", "\"b\"", "not defined"]);
    wrong(vec![app("a", &["a"])], &["a.toml:1", "after itself"]);
    wrong(vec![app("x", &[]), app("a", &["b"]), app("b", &["c"]), app("c", &["a"])], &["a.toml:1", "after itself"]);
    for name in ["", "a/b", ".a", "-a", "a b", &"a".repeat(65)] {
        wrong(vec![app(name, &[])], &["cannot name"]);
    }
}

#[test]
fn an_application_waits_until_what_it_comes_after_is_ready() {
    let mut m = Machine::new(vec![app("web", &["db"]), tcp(app("db", &[]))]).unwrap();
    assert_eq!(step(&mut m, Event::Tick, s(0)), [Effect::Start { app: 1, run: 1 }]);
    assert_eq!((state(&m, 0), reason(&m, 0)), (StateName::Waiting, "waits for db (starting)".into()));
    assert_eq!(step(&mut m, news(1, 1, News::Started(70)), s(1)), [Effect::Ask(1)]);
    assert_eq!(step(&mut m, news(1, 1, News::Answer(Err("refused".into()))), s(2)), []);
    assert_eq!(m.next_wake(), Some(s(2) + ASK_AGAIN));
    assert_eq!(step(&mut m, Event::Tick, s(3)), [Effect::Ask(1)]);
    assert_eq!(step(&mut m, news(1, 1, News::Answer(Ok(()))), s(4)), [Effect::Start { app: 0, run: 1 }]);
    assert_eq!((state(&m, 1), m.standing(1).unwrap().pid), (StateName::Ready, Some(70)));
    step(&mut m, news(0, 1, News::Started(71)), s(5));
    // The database ends later: the application goes on, and its next start waits.
    ends(&mut m, 1, 1, End::Signal(9), s(6));
    assert_eq!((state(&m, 0), state(&m, 1)), (StateName::Ready, StateName::BackingOff));
    ends(&mut m, 0, 1, End::Code(1), s(6));
    let again = step(&mut m, Event::Tick, s(8));
    assert_eq!(again, [Effect::Start { app: 1, run: 2 }]);
    assert_eq!((state(&m, 0), m.standing(1).unwrap().restarts), (StateName::Waiting, 1));
}

#[test]
fn one_that_is_never_ready_is_ended_and_failed_with_the_last_answer() {
    let mut m = Machine::new(vec![tcp(app("db", &[])), app("web", &["db"])]).unwrap();
    step(&mut m, Event::Tick, s(0));
    step(&mut m, news(0, 1, News::Started(70)), s(0));
    step(&mut m, news(0, 1, News::Answer(Err("connection refused".into()))), s(1));
    assert_eq!(step(&mut m, Event::Tick, s(30)), [Effect::Signal(0, libc::SIGTERM)]);
    assert_eq!(step(&mut m, Event::Tick, s(40)), [Effect::Kill(0)]);
    ends(&mut m, 0, 1, End::Signal(9), s(41));
    assert_eq!(state(&m, 0), StateName::Failed);
    assert_eq!(reason(&m, 0), "not ready within 30 s; last answer: connection refused");
    assert_eq!(reason(&m, 1), "waits for db (failed)");
    // A person may try again; late news of the first run change nothing.
    assert_eq!(step(&mut m, Event::Order { app: 0, order: Order::Start }, s(50)), [Effect::Start { app: 0, run: 2 }]);
    assert_eq!(step(&mut m, news(0, 1, News::Answer(Ok(()))), s(51)), []);
    assert_eq!(state(&m, 0), StateName::Starting);
}

#[test]
fn a_crash_loop_is_named_and_given_up_and_startable_by_order() {
    let mut m = Machine::new(vec![app("db", &[])]).unwrap();
    let mut now = s(0);
    let mut pauses = Vec::new();
    let mut effects = step(&mut m, Event::Tick, now);
    for run in 1..=LOOP_ENDS as u64 {
        assert_eq!(effects, [Effect::Start { app: 0, run }]);
        step(&mut m, news(0, run, News::Started(70)), now);
        ends(&mut m, 0, run, End::Code(3), now);
        if run < LOOP_ENDS as u64 {
            let due = m.next_wake().unwrap();
            pauses.push((due - now).as_secs());
            now = due;
            effects = step(&mut m, Event::Tick, now);
        }
    }
    assert_eq!(pauses, [1, 2, 4, 8]);
    assert_eq!(state(&m, 0), StateName::CrashLooping);
    let why = reason(&m, 0);
    assert!(why.contains("ended 5 times within 60 s") && why.contains("exit code 3"), "{why}");
    assert_eq!((m.next_wake(), step(&mut m, Event::Tick, s(9999))), (None, vec![]));
    let started = step(&mut m, Event::Order { app: 0, order: Order::Start }, s(10_000));
    assert_eq!(started, [Effect::Start { app: 0, run: 6 }]);
    // The count begins anew.
    step(&mut m, news(0, 6, News::Started(71)), s(10_000));
    ends(&mut m, 0, 6, End::Code(3), s(10_001));
    assert_eq!((state(&m, 0), m.next_wake()), (StateName::BackingOff, Some(s(10_002))));
}

#[test]
fn the_back_off_grows_to_its_limit_and_is_forgotten_after_a_steady_time() {
    let mut m = Machine::new(vec![app("db", &[])]).unwrap();
    let (mut now, mut pauses) = (s(0), Vec::new());
    step(&mut m, Event::Tick, now);
    for (run, lives) in (1..).zip([59, 59, 59, 59, 59, 59, 59, 59, 60]) {
        step(&mut m, news(0, run, News::Started(70)), now);
        now += s(lives);
        ends(&mut m, 0, run, End::Signal(11), now);
        pauses.push((m.next_wake().unwrap() - now).as_secs());
        now = m.next_wake().unwrap();
        step(&mut m, Event::Tick, now);
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 1]);
}

#[test]
fn restart_follows_the_policy() {
    let after = |restart, code| {
        let mut a = app("job", &[]);
        a.restart = restart;
        let mut m = Machine::new(vec![a, app("web", &["job"])]).unwrap();
        step(&mut m, Event::Tick, s(0));
        step(&mut m, news(0, 1, News::Started(70)), s(0));
        step(&mut m, news(1, 1, News::Started(71)), s(0));
        ends(&mut m, 0, 1, End::Code(code), s(1));
        // Those after it may start again exactly if it has done its work.
        let again = step(&mut m, Event::Order { app: 1, order: Order::Restart }, s(1));
        assert_eq!(again, [Effect::Signal(1, libc::SIGTERM)]);
        ends(&mut m, 1, 1, End::Signal(15), s(1));
        (state(&m, 0), state(&m, 1))
    };
    use StateName::{BackingOff, Failed, Starting, Stopped, Waiting};
    assert_eq!(after(Restart::Always, 0), (BackingOff, Waiting));
    assert_eq!(after(Restart::Always, 1), (BackingOff, Waiting));
    assert_eq!(after(Restart::OnFailure, 0), (Stopped, Starting));
    assert_eq!(after(Restart::OnFailure, 1), (BackingOff, Waiting));
    assert_eq!(after(Restart::Never, 0), (Stopped, Starting));
    assert_eq!(after(Restart::Never, 1), (Failed, Waiting));
}

#[test]
fn what_cannot_be_started_fails_at_once_with_its_line() {
    let mut m = Machine::new(vec![app("db", &[])]).unwrap();
    step(&mut m, Event::Tick, s(0));
    step(&mut m, news(0, 1, News::StartFailed("program /x does not exist".into())), s(0));
    assert_eq!(step(&mut m, news(0, 1, News::Gone), s(0)), []);
    assert_eq!((state(&m, 0), reason(&m, 0)), (StateName::Failed, "db.toml:1: program /x does not exist".into()));
}

#[test]
fn one_that_goes_to_the_background_lives_as_long_as_any_of_it() {
    let mut m = Machine::new(vec![app("d", &[])]).unwrap();
    step(&mut m, Event::Tick, s(0));
    step(&mut m, news(0, 1, News::Started(70)), s(0));
    assert_eq!(step(&mut m, news(0, 1, News::Ended { end: End::Code(0), left: true }), s(1)), []);
    assert_eq!((state(&m, 0), m.standing(0).unwrap().pid), (StateName::Ready, None));
    step(&mut m, news(0, 1, News::Gone), s(5));
    assert_eq!(state(&m, 0), StateName::BackingOff, "how it ended is not known, so it counts as a failure");
    // One that fails is killed with all it left, and only then started again.
    step(&mut m, Event::Tick, s(6));
    step(&mut m, news(0, 2, News::Started(71)), s(6));
    let effects = step(&mut m, news(0, 2, News::Ended { end: End::Code(1), left: true }), s(7));
    assert_eq!(effects, [Effect::Kill(0)]);
    assert_eq!(state(&m, 0), StateName::Ready);
    step(&mut m, news(0, 2, News::Gone), s(8));
    assert_eq!(state(&m, 0), StateName::BackingOff);
}

#[test]
fn what_a_stopped_shell_leaves_is_told_to_end_as_well() {
    let mut m = Machine::new(vec![app("sh", &[])]).unwrap();
    step(&mut m, Event::Tick, s(0));
    step(&mut m, news(0, 1, News::Started(70)), s(0));
    let told = [Effect::Signal(0, libc::SIGTERM)];
    assert_eq!(step(&mut m, Event::Order { app: 0, order: Order::Stop }, s(1)), told);
    assert_eq!(step(&mut m, news(0, 1, News::Ended { end: End::Signal(15), left: true }), s(2)), told);
    step(&mut m, news(0, 1, News::Gone), s(3));
    assert_eq!((state(&m, 0), reason(&m, 0)), (StateName::Stopped, String::new()));
}

#[test]
fn a_stop_command_that_fails_is_followed_by_a_signal() {
    let mut a = app("db", &[]);
    a.stop = Stop::Command(vec!["/bin/stop".into()]);
    let mut m = Machine::new(vec![a]).unwrap();
    step(&mut m, Event::Tick, s(0));
    step(&mut m, news(0, 1, News::Started(70)), s(0));
    assert_eq!(step(&mut m, Event::Order { app: 0, order: Order::Stop }, s(1)), [Effect::StopCommand(0)]);
    let told = step(&mut m, news(0, 1, News::StopCommand(Err("ended with exit code 1".into()))), s(2));
    assert_eq!(told, [Effect::Signal(0, libc::SIGTERM)]);
    assert!(reason(&m, 0).contains("exit code 1"));
}

#[test]
fn orders_in_every_state() {
    let order = |m: &mut Machine, order, now| step(m, Event::Order { app: 0, order }, s(now));
    let mut m = Machine::new(vec![app("a", &[])]).unwrap();
    order(&mut m, Order::Stop, 0);
    assert_eq!((state(&m, 0), step(&mut m, Event::Tick, s(1))), (StateName::Stopped, vec![]));
    assert_eq!(order(&mut m, Order::Start, 2), [Effect::Start { app: 0, run: 1 }]);
    assert_eq!(order(&mut m, Order::Start, 2), []);
    assert_eq!(order(&mut m, Order::Restart, 3), [Effect::Signal(0, libc::SIGTERM)]);
    assert_eq!(ends(&mut m, 0, 1, End::Code(0), s(4)), [Effect::Start { app: 0, run: 2 }]);
    assert_eq!(order(&mut m, Order::Stop, 5), [Effect::Signal(0, libc::SIGTERM)]);
    assert_eq!(order(&mut m, Order::Start, 6), [], "it is started when nothing of it is left");
    assert_eq!(ends(&mut m, 0, 2, End::Code(0), s(7)), [Effect::Start { app: 0, run: 3 }]);
    assert_eq!(m.standing(0).unwrap().restarts, 0, "starts by order are not counted");
    assert!(m.find("a").is_ok());
    assert!(m.find("b").unwrap_err().msg.contains("there are a"));
    step(&mut m, Event::StopAll { by: s(20) }, s(8));
    assert_eq!(m.find("a").unwrap_err().exit_code(), 4);
    assert_eq!(order(&mut m, Order::Start, 9), []);
    assert_eq!(ends(&mut m, 0, 3, End::Code(0), s(9)), []);
    assert_eq!(m.stopped(s(9)), Some(Stopped::default()));
}

#[test]
fn all_are_stopped_in_reverse_and_the_last_one_has_its_part_of_the_time() {
    let mut m = Machine::new(vec![app("db", &[]), app("mid", &["db"]), app("web", &["mid"])]).unwrap();
    for i in 0..3 {
        step(&mut m, Event::Tick, s(0));
        step(&mut m, news(i, 1, News::Started(70)), s(0));
    }
    // 24 s, of which 2 s are kept for killing: 22 s for three.
    let told = |i| vec![Effect::Signal(i, libc::SIGTERM)];
    assert_eq!(step(&mut m, Event::StopAll { by: s(24) }, s(0)), told(2));
    assert_eq!(m.next_wake(), Some(s(22) / 3), "less than its own 10 s");
    assert_eq!(step(&mut m, Event::Tick, s(8)), [Effect::Kill(2)]);
    assert_eq!(ends(&mut m, 2, 1, End::Signal(9), s(8)), told(1));
    assert_eq!(m.next_wake(), Some(s(8) + s(14) / 2));
    assert_eq!(ends(&mut m, 1, 1, End::Code(0), s(9)), told(0));
    assert_eq!(m.next_wake(), Some(s(19)), "its own time");
    assert_eq!(m.stopped(s(9)), None);
    assert_eq!(step(&mut m, Event::Tick, s(19)), [Effect::Kill(0)]);
    assert_eq!((m.stopped(s(23)), m.next_wake()), (None, Some(s(24))));
    let all = Stopped { killed: vec!["db".into(), "web".into()], left: vec!["db".into()] };
    assert_eq!(m.stopped(s(24)), Some(all), "what does not end even when killed is named, and nobody waits for it");
}

/// What a world of processes does, by chance.
#[derive(Clone, Debug)]
enum Happens {
    Time(u64),
    /// The process with this number (of those there are) starts, answers, ends, is gone.
    To(usize, u8),
    Order(usize, Order),
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        3 => (0u64..40_000).prop_map(Happens::Time),
        12 => (0usize..8, 0u8..8).prop_map(|(i, what)| Happens::To(i, what)),
        1 => (0usize..6, prop_oneof![Just(Order::Start), Just(Order::Stop), Just(Order::Restart)])
            .prop_map(|(i, o)| Happens::Order(i, o)),
    ]
}

fn some_app(i: usize, shape: (u8, u8, u8, u8)) -> App {
    let mut a = app(&format!("a{i}"), &[]);
    a.after = (0..i).filter(|d| shape.0 >> d & 1 == 1).map(|d| format!("a{d}")).collect();
    a.ready = if shape.1.is_multiple_of(2) { Ready::Started } else { Ready::Tcp("localhost:1".into()) };
    a.restart = [Restart::Always, Restart::OnFailure, Restart::Never][shape.2 as usize % 3];
    a.stop = if shape.3.is_multiple_of(3) { Stop::Command(vec!["/bin/stop".into()]) } else { Stop::Signal(15) };
    a.stop_timeout = s(shape.3.into());
    a
}

/// What is known of the processes, kept apart from the machine: live runs, what was killed, pauses.
struct World {
    m: Machine,
    apps: Vec<App>,
    now: Duration,
    live: Vec<(usize, u64)>,
    killed: Vec<usize>,
    /// Of each: was it ready or has it done its work, at the end of the last step.
    up: Vec<bool>,
    pauses: Vec<Option<Duration>>,
    ready_since: Vec<Option<Duration>>,
}

impl World {
    fn new(apps: Vec<App>) -> World {
        let n = apps.len();
        let m = Machine::new(apps.clone()).unwrap();
        let (up, pauses, ready_since) = (vec![false; n], vec![None; n], vec![None; n]);
        World { m, apps, now: s(0), live: vec![], killed: vec![], up, pauses, ready_since }
    }

    fn step(&mut self, e: Event) {
        let ordered = match &e {
            Event::Order { app, order } if *order != Order::Stop => Some(*app),
            _ => None,
        };
        let was: Vec<StateName> = (0..self.apps.len()).map(|i| state(&self.m, i)).collect();
        let effects = self.m.step(e, self.now);
        for (i, was) in was.iter().enumerate() {
            let is = state(&self.m, i);
            if is == StateName::Ready && *was != StateName::Ready {
                self.ready_since[i] = Some(self.now);
            }
            let done = is == StateName::Stopped && reason(&self.m, i) == "ended with exit code 0";
            self.up[i] = is == StateName::Ready || (done && (*was == StateName::Ready || self.up[i]));
            if ordered == Some(i) {
                self.pauses[i] = None;
            }
            if is == StateName::BackingOff && *was != StateName::BackingOff {
                self.paused(i, *was);
            }
        }
        for e in effects {
            match e {
                Effect::Start { app, run } => {
                    assert!(self.live.iter().all(|l| l.0 != app), "two of {app}");
                    for d in &self.apps[app].after {
                        let d = self.apps.iter().position(|a| a.name == *d).unwrap();
                        assert!(self.up[d], "{app} is started while {d} is {}", state(&self.m, d));
                    }
                    self.killed.retain(|k| *k != app);
                    self.live.push((app, run));
                }
                Effect::Kill(app) => self.killed.push(app),
                Effect::Ask(app) | Effect::Signal(app, _) | Effect::StopCommand(app) => {
                    assert!(self.live.iter().any(|l| l.0 == app), "{e:?} without a process");
                }
                Effect::EndHelpers(_) | Effect::Report(_) => {}
            }
        }
    }

    fn paused(&mut self, i: usize, was: StateName) {
        let text = reason(&self.m, i);
        let (_, pause) = text.rsplit_once("started again in ").unwrap();
        let pause = s(pause.trim_end_matches(" s").parse().unwrap());
        assert!((BACKOFF_FIRST..=BACKOFF_MAX).contains(&pause));
        let steady = was == StateName::Ready && self.ready_since[i].is_some_and(|at| self.now - at >= STEADY);
        if !steady {
            assert!(self.pauses[i].is_none_or(|before| pause >= before), "the pause became shorter");
        }
        self.pauses[i] = Some(pause);
    }

    fn happen(&mut self, h: Happens) {
        match h {
            Happens::Time(ms) => {
                // The supervisor wakes whenever something is due.
                let until = self.now + Duration::from_millis(ms);
                let (mut last, mut ticks) = (Duration::MAX, 0);
                while let Some(at) = self.m.next_wake().filter(|at| *at <= until) {
                    self.now = at.max(self.now);
                    self.step(Event::Tick);
                    if self.m.stopped(self.now).is_some() {
                        break;
                    }
                    // A time of 0 s is over when it begins: that is due in the same moment, once for each state.
                    ticks = if self.now == last { ticks + 1 } else { 0 };
                    assert!(ticks <= 8, "what is due is done");
                    last = self.now;
                }
                self.now = until;
            }
            Happens::To(which, what) => {
                let Some(&(app, run)) = self.live.get(which % self.live.len().max(1)) else { return };
                let told = match what {
                    0..=2 => News::Started(70),
                    3 => News::Answer(Ok(())),
                    4 => News::Answer(Err("no".into())),
                    5 => News::Ended { end: End::Code((which % 2) as i32), left: true },
                    6 => News::StopCommand(Err("no".into())),
                    _ => {
                        self.live.retain(|l| l.0 != app);
                        self.step(news(app, run, News::Ended { end: End::Code((which % 2) as i32), left: false }));
                        News::Gone
                    }
                };
                self.step(news(app, run, told));
            }
            Happens::Order(app, order) => self.step(Event::Order { app: app % self.apps.len(), order }),
        }
    }
}

proptest! {
    #[test]
    fn cd8_order_is_kept_whatever_happens_and_stopping_ends_in_time(
        shapes in prop::collection::vec(any::<(u8, u8, u8, u8)>(), 1..6),
        story in prop::collection::vec(happens(), 0..120),
        limit_ms in 0u64..60_000,
        ending in prop::collection::vec(happens(), 0..30),
    ) {
        let apps: Vec<App> = shapes.iter().enumerate().map(|(i, shape)| some_app(i, *shape)).collect();
        let mut w = World::new(apps);
        w.step(Event::Tick);
        story.into_iter().for_each(|h| w.happen(h));
        let by = w.now + Duration::from_millis(limit_ms);
        w.step(Event::StopAll { by });
        for h in ending {
            if w.now >= by {
                break;
            }
            w.happen(h);
        }
        // From here on nothing ends by itself.
        w.happen(Happens::Time(by.saturating_sub(w.now).as_millis() as u64));
        let stopped = w.m.stopped(w.now).expect("stopped in time");
        let mut left: Vec<String> = w.live.iter().map(|l| w.apps[l.0].name.clone()).collect();
        left.sort();
        prop_assert_eq!(&stopped.left, &left);
        for (app, _) in &w.live {
            prop_assert!(w.killed.contains(app), "{} was never killed", app);
        }
        prop_assert_eq!(w.m.next_wake().filter(|at| *at > by), None, "nothing is due afterwards");
        // And what was killed ends.
        for (app, run) in std::mem::take(&mut w.live) {
            w.step(news(app, run, News::Gone));
        }
        prop_assert_eq!(w.m.stopped(w.now).map(|x| x.left), Some(vec![]));
    }

    #[test]
    fn the_back_off_never_shrinks(n in 0u32..1000) {
        prop_assert!(backoff(n) <= backoff(n + 1) && backoff(n) >= BACKOFF_FIRST && backoff(n) <= BACKOFF_MAX);
    }
}
