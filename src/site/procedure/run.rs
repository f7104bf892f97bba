//! The executor: observes, has the next step done, waits until it is seen to be done, and so on.

use super::plan::{self, Choice, Options, Order, Plan, State, Step, View};
use super::recipe::{self, Kind};
use crate::base::{self, Error, Result, random_u64};
use crate::node::config::GroupConfig;
use crate::node::control::{self, Request};
use crate::node::status::{ProcedureStatus, SiteView};
use parking_lot::Mutex;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

/// Between two looks.
const POLL: Duration = Duration::from_millis(150);
/// How long the node here may take to answer.
const SILENCE: Duration = Duration::from_secs(40);
/// What forbids a step must do so for this long: a node that is being started forbids much.
const BLOCKED: Duration = Duration::from_secs(3);
/// How long it may take until there is something to plan.
const BEGINS: Duration = Duration::from_secs(10);
/// How often it is said that the procedure is under way.
const BEAT: Duration = Duration::from_secs(1);

/// What is to be carried out.
pub struct Conduct<'a> {
    /// Of the node here.
    pub state_dir: &'a Path,
    /// The group.
    pub group: &'a GroupConfig,
    /// This site.
    pub here: &'a str,
    /// The procedure.
    pub order: Order,
    /// How.
    pub options: Options,
    /// Where the lead volume is mounted, if not where the site file says.
    pub at: Option<String>,
    /// The last step to be done.
    pub stop_after: Option<String>,
    /// How long one step may take.
    pub limit: Duration,
}

/// What is told while it goes on.
pub enum Word<'a> {
    /// The plan, before the first step.
    Plan(&'a Plan),
    /// A step is done, in the order of the plan; how long after the one before.
    Done(&'a Step, Duration),
    /// How the present step stands.
    Progress(&'a Step),
}

/// How it ended.
pub struct Outcome {
    /// The plan as it stands then.
    pub plan: Plan,
    /// What the node answered to the takeover.
    pub answer: Option<Value>,
}

impl Conduct<'_> {
    /// The plan as things stand, and for a takeover that is still to be done the node's forecast: what would be lost, what
    /// forbids it. Changes nothing.
    pub fn dry_run(&self) -> Result<(Plan, Option<Value>)> {
        let view = self.observe()?;
        let (_, plan) = plan::plan(&view, &self.order, self.options)?;
        let leads = plan.steps.iter().find(|s| s.kind == Kind::Lead);
        let forecast = match leads.filter(|s| s.state != State::Done) {
            Some(_) => Some(self.call(&Request::Takeover {
                group: self.group.name.clone(),
                force: self.options.force,
                dry_run: true,
                at: self.at.clone(),
                handover: false,
                bare: false,
            })?),
            None => None,
        };
        Ok((plan, forecast))
    }

    /// Carries it out.
    ///
    /// # Errors
    /// [`base::Kind::Refused`]: something forbids the next step, or another procedure is under way. [`base::Kind::Timeout`]:
    /// a step took too long. In every case it can be ordered again, and goes on where it is.
    pub fn run(&self, tell: &mut dyn FnMut(Word<'_>) -> Result<()>) -> Result<Outcome> {
        let pulse = Pulse::begin(self)?;
        let (view, choice, mut plan) = self.begin()?;
        let other = view.sites.iter().filter_map(|s| Some((s, s.group.as_ref()?.procedure.as_ref()?)));
        if let Some((s, p)) = other.into_iter().find(|(_, p)| p.id != pulse.id) {
            return Err(Error::refused(p.in_the_way(&self.group.name, &s.site)));
        }
        if let Some(name) = self.stop_after.as_ref().filter(|n| !plan.steps.iter().any(|s| s.step == n.as_str())) {
            let all: Vec<&str> = plan.steps.iter().map(|s| s.step).collect();
            return Err(Error::config(format!("--stop-after {name}: write one of {} instead", all.join(", "))));
        }
        tell(Word::Plan(&plan))?;
        let mut told = Told { steps: 0, last: Instant::now() };
        tell_done(&plan, &mut told, &mut |s, took| tell(Word::Done(s, took)))?;
        let mut work = Work::default();
        let mut view = view;
        loop {
            if self.stops(&plan) {
                break;
            }
            let Some(step) = plan.next().cloned() else { break };
            if work.step != Some(step.step) {
                pulse.say(format!("{}: begun", step.step))?;
                work.turn_to(step.step);
            }
            tell(Word::Progress(&step))?;
            self.advance(&mut work, &step, &choice, &view)?;
            std::thread::sleep(POLL);
            view = self.observe()?;
            let now = plan::steps(&view, &self.order, &choice);
            tell_done(&now, &mut told, &mut |s, took| {
                tell(Word::Done(s, took))?;
                pulse.say(format!("{}: done", s.step))
            })?;
            plan = now;
        }
        work.finish();
        Ok(Outcome { plan, answer: work.answer })
    }

    /// The first plan that there is: a node that is starting says little.
    fn begin(&self) -> Result<(View, Choice, Plan)> {
        let begun = Instant::now();
        loop {
            let view = self.observe()?;
            match plan::plan(&view, &self.order, self.options) {
                Ok((c, p)) => return Ok((view, c, p)),
                Err(e) if e.kind == base::Kind::Failed && begun.elapsed() < BEGINS => std::thread::sleep(POLL),
                Err(e) => return Err(e),
            }
        }
    }

    fn stops(&self, plan: &Plan) -> bool {
        let at = self.stop_after.as_ref().and_then(|n| plan.steps.iter().position(|s| s.step == n));
        at.is_some_and(|i| plan.steps.iter().take(i + 1).all(is_done))
    }

    /// Has the step done, once, and sees whether it may still be waited for.
    fn advance(&self, work: &mut Work, step: &Step, choice: &Choice, view: &View) -> Result<()> {
        // What failed counts only if the step is still not done when one looks after that.
        if let Some((_, e)) = work.failed.take().filter(|(at, _)| *at == step.step) {
            return Err(e);
        }
        work.collect();
        match &step.blocked {
            Some(why) if work.blocked.get_or_insert_with(Instant::now).elapsed() > BLOCKED => {
                return Err(Error::refused(format!("{}: {why}", step.step)));
            }
            Some(_) => return Ok(()),
            None => work.blocked = None,
        }
        if work.since.is_some_and(|t| t.elapsed() > self.limit) {
            let (s, why) = (self.limit.as_secs(), &step.why);
            let text = format!("{} is not done within {s} s: {why}; order it again to go on", step.step);
            return Err(Error::new(base::Kind::Timeout, text));
        }
        if !work.acted
            && work.running.is_none()
            && let Some(req) = self.action(step.kind, choice, view)
        {
            work.acted = true;
            let (state_dir, (tell, told)) = (self.state_dir.to_owned(), channel());
            let act = move || {
                let _ = tell.send(control::call(&state_dir, &req, |_| ()));
            };
            std::thread::Builder::new().name("step".into()).spawn(act)?;
            work.running = Some((step.step, told));
        }
        Ok(())
    }

    /// The order that has a step done; `None`: it comes about by itself.
    fn action(&self, kind: Kind, c: &Choice, view: &View) -> Option<Request> {
        let (group, force, at) = (self.group.name.clone(), self.options.force, self.at.clone());
        let from = c.from.clone().unwrap_or_default();
        let takeover = |handover, bare| Request::Takeover {
            group: group.clone(),
            force,
            dry_run: false,
            at: at.clone(),
            handover,
            bare,
        };
        match kind {
            Kind::Act => Some(Request::BringFrom { group, site: from }),
            Kind::Stop => Some(Request::Rest { group, force }),
            Kind::Lead => Some(takeover(false, self.bare(kind, c))),
            Kind::Start => (c.to == self.here).then_some(Request::EndRest { group, at }),
            Kind::Roles => {
                let given = view.seen(&from).is_some_and(|g| g.role != "primary");
                match c.recipe == &recipe::TAKEOVER_WITH || given {
                    true => None,
                    false if c.to == self.here => Some(takeover(true, self.bare(kind, c))),
                    false => view.pair(&from, &c.to).map(|p| Request::PairSwap { group, pair: p.name.clone() }),
                }
            }
            Kind::Level | Kind::LevelOther | Kind::FollowFrom | Kind::FollowOther => None,
        }
    }

    /// The role comes without mounts: the application does not start with it.
    fn bare(&self, kind: Kind, c: &Choice) -> bool {
        let i = c.recipe.steps.iter().position(|(k, _)| *k == kind).unwrap_or_default();
        let next = c.recipe.steps.get(i + 1).map(|(k, _)| *k);
        next != Some(Kind::Start) || self.stop_after.as_deref() == Some(kind.words().name)
    }

    fn observe(&self) -> Result<View> {
        let v = self.call(&Request::Observe { group: self.group.name.clone() })?;
        let sites: Vec<SiteView> = serde_json::from_value(v)
            .map_err(|e| Error::failed(format!("the node's answer is not understood ({e}); is it another version?")))?;
        Ok(View::new(self.group, self.here, self.at.is_some(), sites))
    }

    fn call(&self, req: &Request) -> Result<Value> {
        control::call_within(self.state_dir, req, Some(SILENCE), |_| ())
    }
}

/// How many steps were told to be done, and when the last of them was.
struct Told {
    steps: usize,
    last: Instant,
}

/// Tells of the steps that are done, in their order.
fn tell_done(plan: &Plan, told: &mut Told, tell: &mut dyn FnMut(&Step, Duration) -> Result<()>) -> Result<()> {
    for s in plan.steps.iter().skip(told.steps).take_while(|s| is_done(s)) {
        tell(s, told.last.elapsed())?;
        (told.steps, told.last) = (told.steps + 1, Instant::now());
    }
    Ok(())
}

fn is_done(s: &Step) -> bool {
    matches!(s.state, State::Done | State::NotNeeded)
}

/// What is under way at the present step.
#[derive(Default)]
struct Work {
    step: Option<&'static str>,
    since: Option<Instant>,
    acted: bool,
    blocked: Option<Instant>,
    /// The order under way, and for which step it was given.
    running: Option<(&'static str, Receiver<Result<Value>>)>,
    failed: Option<(&'static str, Error)>,
    answer: Option<Value>,
}

impl Work {
    fn turn_to(&mut self, step: &'static str) {
        (self.step, self.since, self.acted, self.blocked) = (Some(step), Some(Instant::now()), false, None);
    }

    /// Takes the answer to the order under way, if it is there.
    fn collect(&mut self) {
        let Some((step, told)) = &self.running else { return };
        match told.try_recv() {
            Ok(Ok(v)) => self.answer = Some(v).filter(|v| v.get("position").is_some()).or(self.answer.take()),
            Ok(Err(e)) => self.failed = Some((step, e)),
            Err(TryRecvError::Empty) => return,
            Err(TryRecvError::Disconnected) => {}
        }
        self.running = None;
    }

    /// What the last order said, which was seen to be carried out.
    fn finish(&mut self) {
        let until = Instant::now() + BLOCKED;
        while self.running.is_some() && Instant::now() < until {
            self.collect();
            std::thread::sleep(POLL / 10);
        }
    }
}

/// Tells the node here that the procedure is under way, for as long as this lives.
struct Pulse {
    id: u64,
    beat: Arc<Beat>,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct Beat {
    state_dir: PathBuf,
    group: String,
    now: Mutex<ProcedureStatus>,
    over: AtomicBool,
}

impl Beat {
    fn tell(&self, over: bool) -> Result<()> {
        let procedure = self.now.lock().clone();
        let req = Request::Proceed { group: self.group.clone(), procedure, over };
        control::call_within(&self.state_dir, &req, Some(SILENCE), |_| ()).map(drop)
    }
}

impl Pulse {
    fn begin(c: &Conduct<'_>) -> Result<Pulse> {
        let id = random_u64();
        let now = ProcedureStatus { id, name: c.order.name().into(), step: "begins".into() };
        let (state_dir, group) = (c.state_dir.to_owned(), c.group.name.clone());
        let beat = Arc::new(Beat { state_dir, group, now: Mutex::new(now), over: AtomicBool::new(false) });
        beat.tell(false)?;
        let b = beat.clone();
        let thread = std::thread::Builder::new().name("pulse".into()).spawn(move || {
            // A node that is gone is noticed where it is looked at.
            while !b.over.load(Ordering::SeqCst) {
                let _ = b.tell(false);
                std::thread::park_timeout(BEAT);
            }
            let _ = b.tell(true);
        })?;
        Ok(Pulse { id, beat, thread: Some(thread) })
    }

    fn say(&self, step: String) -> Result<()> {
        self.beat.now.lock().step = step;
        self.beat.tell(false)
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.beat.over.store(true, Ordering::SeqCst);
        if let Some(t) = self.thread.take() {
            t.thread().unpark();
            let _ = t.join();
        }
    }
}
