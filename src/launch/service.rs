//! The part of the node that mounts by itself and keeps applications running: a thread for each group looks at the pair
//! table, decides ([`super::boot`]) and acts; the supervisor of a group starts, watches and stops its applications.
//!
//! ```text
//!   secondary, every pair suspended ──▶ survey: may it be mounted and started? ──▶ note that it is wanted
//!       ──▶ take over, mount ──▶ survey of what is mounted ──▶ supervisor
//! ```
//!
//! That a group is wanted is kept on disk: a node that was killed goes on where it was. Nothing else is, because the mount
//! and every application of it end with the node.

use super::boot::{self, Decision, PairView, Votes};
use super::plan::Plan;
use super::policy::{Policy, Who};
use super::process::OWN_PROGRAM;
use super::supervise::{Order, StateName};
use super::supervisor::{Supervisor, Tell};
use super::survey::{self, Survey};
use crate::base::{At, Error, Kind, Result, VolId};
use crate::node::config::{Config, LaunchConfig, OnSuspended};
use crate::node::control::AppOrder;
use crate::node::events::{Event, What};
use crate::node::forecast;
use crate::node::launcher::Launcher;
use crate::node::local::LocalGroup;
use crate::node::mounter::{MountAs, MountOptions, Mounted, Mounter};
use crate::node::status::AppStatus;
use crate::os::{sys, user};
use crate::store::files;
use crate::volume::Volume;
use parking_lot::{Mutex, RwLock};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How often the pair table is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// Pause after an attempt that failed.
const RETRY: Duration = Duration::from_secs(2);
/// How long what was received may take to be applied before the volumes are looked at.
const DRAIN: Duration = Duration::from_secs(30);
/// How long an order to mount and start waits while the same, or a stop, is under way.
const ACTING: Duration = Duration::from_secs(60);
/// Stopping all applications of a group takes no longer than this, whatever their definitions say.
const STOP_ALL_MAX: Duration = Duration::from_secs(300);
/// The same where the mount is about to break under them.
const STOP_AT_ONCE: Duration = Duration::from_secs(1);

/// What a group runs.
struct Running {
    supervisor: Supervisor,
    /// Time for stopping all, one after the other.
    limit: Duration,
}

/// A group that is looked after.
struct Care {
    group: Arc<LocalGroup>,
    /// Until all of them have ended.
    running: Mutex<Option<Arc<Running>>>,
    note: Mutex<Option<String>>,
    /// Held while something is mounted, started or stopped.
    acting: Mutex<()>,
    wanted: PathBuf,
    /// As `wanted`, from the start of the node: where this site is primary.
    asked: AtomicBool,
}

/// The service, and the node's way to mount: the applications of a volume are stopped before it goes.
#[derive(Clone)]
pub struct Service(Arc<Shared>);

struct Shared {
    file: PathBuf,
    state_dir: PathBuf,
    launch: RwLock<LaunchConfig>,
    below: Arc<dyn Mounter>,
    cares: RwLock<Vec<Arc<Care>>>,
    boot: bool,
    ending: AtomicBool,
}

impl Service {
    /// For the node of a site file; `below` mounts. `boot`: where this site is primary, everything is mounted and started
    /// without a further order.
    pub fn new(config: &Config, below: Arc<dyn Mounter>, boot: bool) -> Service {
        Service(Arc::new(Shared {
            file: config.path.clone(),
            state_dir: config.node.state_dir.clone(),
            launch: RwLock::new(config.launch.clone()),
            below,
            cares: RwLock::new(Vec::new()),
            boot,
            ending: AtomicBool::new(false),
        }))
    }
}

impl Shared {
    fn care(&self, group: &str) -> Result<Arc<Care>> {
        let found = self.cares.read().iter().find(|c| c.group.cfg.name == group).cloned();
        found.ok_or_else(|| Error::refused(format!("group {group} is still starting; try again in a moment")))
    }

    /// The rules as the site file has them now, so that what a refusal asked for counts at the next attempt.
    fn reload(&self) {
        match Config::load(&self.file) {
            Ok(c) => *self.launch.write() = c.launch,
            Err(e) => log::warn!("{e}; [launch] stays as it was"),
        }
    }

    fn survey(&self, care: &Care) -> Result<Survey> {
        let launch = self.launch.read().clone();
        let uid = |name: &str| user::by_name(name).ok().flatten().map(|u| u.uid);
        let policy = Policy { launch: &launch, file: &self.file, who: Who { uid: sys::ids().0, user: &uid } };
        let volumes = volumes(&care.group)?;
        Ok(survey::survey(&care.group.cfg.name, &volumes, &care.group.cfg.env_file, &policy))
    }

    fn watch(self: Arc<Self>, care: &Care) {
        let mut tried: Option<Instant> = None;
        while !self.ending.load(Ordering::SeqCst) {
            std::thread::sleep(LOOK);
            if tried.is_some_and(|t| t.elapsed() < RETRY) {
                continue;
            }
            tried = None;
            if care.group.changing() {
                continue;
            }
            let act = match (care.group.primary().is_some(), care.group.secondary().is_some()) {
                (true, _) => self.primary(care),
                (_, true) => self.secondary(care),
                _ => false,
            };
            if act && let Some(_one) = care.acting.try_lock() {
                self.reload();
                let r = match self.follows(care) {
                    true => forecast::takeover(&care.group, false, Some(&care.group.own_mounts(None))).map(drop),
                    false => self.boot_now(care, false).map(drop),
                };
                care.say(r.err().map(|e| e.msg));
                tried = Some(Instant::now());
            }
        }
    }

    /// True where takeover is automatic and nothing more than that is wanted: the volumes are mounted where the site file
    /// mounts them. Otherwise they are surveyed first, and mounted where their heads say.
    fn follows(&self, care: &Care) -> bool {
        let auto = care.group.secondary().is_some() && care.group.cfg.takeover.is_some();
        auto && self.launch.read().on_lost_primary != OnSuspended::Mount
    }

    /// True when the applications are wanted and do not run.
    fn primary(&self, care: &Care) -> bool {
        let running = care.running().is_some();
        let mounted = care.group.mounts().iter().filter(|m| m.attached).count();
        if running && mounted < care.group.cfg.volumes.len() && !care.group.changing() {
            // Somebody ended a mount from outside (umount(8)): that is an order too. What is open in it can be used on.
            let _one = care.acting.lock();
            care.forget();
            care.stop(false);
        }
        let held = care.group.rests() || care.group.acts();
        !running && !held && (care.wanted.exists() || care.asked.load(Ordering::SeqCst))
    }

    /// True when the group is to be mounted.
    fn secondary(&self, care: &Care) -> bool {
        // A demoted primary: what it ran was stopped with its mount, and is not to come back by itself.
        if let Some(_one) = care.acting.try_lock()
            && care.group.lost_its_role()
        {
            care.forget();
        }
        let launch = self.launch.read().clone();
        let votes = care.votes();
        let silent = launch.on_lost_primary == OnSuspended::Wait && launch.on_suspend == OnSuspended::Wait;
        let silent = silent && votes == Votes::None;
        match boot::decide(&care.pairs(), &launch, false, &votes) {
            Decision::Active(_) => care.say(None),
            Decision::Wait(_) if silent => care.say(None),
            Decision::Wait(why) => care.say(Some(format!("not mounted by itself: {why}"))),
            Decision::Ask(why) => care.say(Some(format!(
                "{why}: `kagami boot --yes {}` takes it over, mounts it and starts its applications",
                care.group.cfg.name
            ))),
            Decision::Mount(_) => return true,
        }
        false
    }

    /// CD-6 to CD-8, whoever asked. `ordered`: somebody did (CD-17).
    fn boot_now(&self, care: &Care, ordered: bool) -> Result<Survey> {
        let g = &care.group;
        g.settle();
        if let Some(receiver) = g.secondary() {
            let why = match boot::decide(&care.pairs(), &self.launch.read(), ordered, &care.votes()) {
                Decision::Mount(why) => why,
                Decision::Active(why) | Decision::Wait(why) | Decision::Ask(why) => return Err(Error::refused(why)),
            };
            g.consistent(&receiver, false)?;
            if !receiver.drain(DRAIN) {
                return Err(receiver
                    .fault()
                    .unwrap_or_else(|| Error::failed("what was received is still being applied")));
            }
            drop(receiver);
            let survey = self.survey(care)?;
            refuse(&survey)?;
            for d in &survey.mounts {
                survey::make_mount_dir(d)?;
            }
            log::info!("group {}: {why}: taking it over", g.cfg.name);
            care.want()?;
            let mounts: Vec<(VolId, PathBuf)> =
                survey.mounts.iter().enumerate().map(|(i, d)| (VolId(i as u16), d.clone())).collect();
            forecast::takeover(g, false, Some(&mounts))?;
        }
        self.start_here(care)
    }

    /// Mounts what is not mounted yet where this site is primary, and starts the applications.
    fn start_here(&self, care: &Care) -> Result<Survey> {
        let g = &care.group;
        let before = self.survey(care)?;
        refuse(&before)?;
        let mounted = g.mounts();
        for (i, dir) in before.mounts.iter().enumerate() {
            let v = VolId(i as u16);
            if !mounted.iter().any(|m| m.vol == v && m.attached) {
                survey::make_mount_dir(dir)?;
                g.mount_at(v, dir, &MountOptions::new(), false)?;
            }
        }
        let survey = self.survey(care)?;
        refuse(&survey)?;
        care.want()?;
        self.start_apps(care, &survey.plan)?;
        Ok(survey)
    }

    fn start_apps(&self, care: &Care, plan: &Plan) -> Result<()> {
        let mut running = care.running.lock();
        if running.is_some() || self.ending.load(Ordering::SeqCst) {
            return Ok(());
        }
        let n = plan.apps.len();
        log::info!("group {}: starting {n} application(s)", care.group.cfg.name);
        let limit = plan.apps.iter().map(|a| a.stop_timeout).sum::<Duration>() + Duration::from_secs(2);
        let (apps, tell) = (plan.apps.clone(), teller(care.group.clone()));
        let supervisor = Supervisor::start(apps, &self.log_dir(care), Path::new(OWN_PROGRAM), tell)?;
        *running = Some(Arc::new(Running { supervisor, limit: limit.min(STOP_ALL_MAX) }));
        drop(running);
        if care.group.mounts().iter().filter(|m| m.attached).count() < care.group.cfg.volumes.len() {
            // A newer primary was met just now.
            care.stop(true);
            return Err(Error::refused("the group is not mounted any more"));
        }
        Ok(())
    }

    fn log_dir(&self, care: &Care) -> PathBuf {
        self.state_dir.join("apps").join(&care.group.cfg.name)
    }
}

fn refuse(s: &Survey) -> Result<()> {
    match s.problems.is_empty() {
        true => Ok(()),
        false => Err(Error::refused(s.problems.join("\n"))),
    }
}

/// The volume → device map of a group.
fn volumes(g: &LocalGroup) -> Result<Vec<survey::Volume>> {
    let replica = g.replica()?;
    let mounts = g.mounts();
    g.cfg
        .volumes
        .iter()
        .enumerate()
        .map(|(i, v)| {
            let vol = VolId(i as u16);
            let region = replica.region(vol)?;
            Ok(survey::Volume {
                name: v.name.clone(),
                port_lu: (v.port.clone(), v.lu),
                region: region.path.clone(),
                head: region.head()?,
                own: v.mount.clone(),
                mounted: mounts.iter().find(|m| m.vol == vol && m.attached).map(|m| m.dir.clone()),
            })
        })
        .collect()
}

impl Care {
    fn say(&self, note: Option<String>) {
        // Seconds that pass are no news for the log.
        let words = |t: &Option<String>| t.as_deref().unwrap_or_default().replace(|c: char| c.is_ascii_digit(), "");
        let mut n = self.note.lock();
        if let Some(text) = note.as_ref().filter(|_| words(&n) != words(&note)) {
            log::info!("group {}: {text}", self.group.cfg.name);
        }
        *n = note;
    }

    fn pairs(&self) -> Vec<PairView> {
        let view = |p: &Arc<crate::node::pairs::Pair>| PairView {
            name: p.name.clone(),
            peer: p.peer.clone(),
            state: p.state(),
            silence: p.silence(),
        };
        self.group.pairs.iter().map(view).collect()
    }

    fn votes(&self) -> Votes {
        match self.group.may_stand() {
            None => Votes::None,
            Some(Ok(())) => Votes::Stand,
            Some(Err(why)) => Votes::Not(why),
        }
    }

    fn want(&self) -> Result<()> {
        if self.wanted.exists() {
            return Ok(());
        }
        if let Some(dir) = self.wanted.parent() {
            std::fs::create_dir_all(dir).at(dir.display())?;
        }
        files::replace(&self.wanted, b"mounted and started; kept so until it is unmounted\n")
    }

    /// Nothing is to be started by itself any more.
    fn forget(&self) {
        self.asked.store(false, Ordering::SeqCst);
        if let Err(e) = std::fs::remove_file(&self.wanted)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            log::error!("{}: {e}", self.wanted.display());
        }
    }

    /// Stops the applications, those started last first.
    fn stop(&self, at_once: bool) {
        let Some(r) = self.running() else { return };
        let limit = if at_once { STOP_AT_ONCE } else { r.limit };
        log::info!("group {}: stopping its applications", self.group.cfg.name);
        let stopped = r.supervisor.stop_all(limit);
        if !stopped.killed.is_empty() {
            log::warn!("group {}: killed: {}", self.group.cfg.name, stopped.killed.join(", "));
        }
        let _stopped = self.running.lock().take_if(|now| Arc::ptr_eq(now, &r));
    }

    fn running(&self) -> Option<Arc<Running>> {
        self.running.lock().clone()
    }

    fn role(&self) -> &'static str {
        match (self.group.primary().is_some(), self.group.secondary().is_some()) {
            (true, _) => "primary",
            (_, true) => "secondary",
            _ => "down",
        }
    }
}

/// A mounted volume whose applications end before it does.
struct Kept {
    mounted: Box<dyn Mounted>,
    shared: Weak<Shared>,
    group: String,
}

impl Kept {
    fn stop(&self, at_once: bool) {
        let care = self.shared.upgrade().and_then(|s| s.care(&self.group).ok());
        if let Some(c) = care {
            c.stop(at_once);
        }
    }
}

impl Mounter for Service {
    fn mount(&self, volume: Arc<Volume>, how: MountAs<'_>) -> Result<Box<dyn Mounted>> {
        let group = how.label.split('/').next().unwrap_or_default().to_owned();
        let mounted = self.0.below.mount(volume, how)?;
        Ok(Box::new(Kept { mounted, shared: Arc::downgrade(&self.0), group }))
    }
}

impl Mounted for Kept {
    fn unmount(&self) -> Result<bool> {
        self.stop(false);
        self.mounted.unmount()
    }
    fn unmount_unused(&self) -> Result<()> {
        // Refused, the mount stays, and so they are started again.
        self.stop(false);
        self.mounted.unmount_unused()
    }
    fn flush(&self, within: Duration) -> bool {
        self.mounted.flush(within)
    }
    fn abort(&self) -> Result<()> {
        self.stop(true);
        self.mounted.abort()
    }
    fn attached(&self) -> bool {
        self.mounted.attached()
    }
}

impl Launcher for Service {
    fn begin(&self, groups: &[Arc<LocalGroup>]) -> Result<()> {
        let me = &self.0;
        for g in groups {
            let care = Arc::new(Care {
                group: g.clone(),
                running: Mutex::new(None),
                note: Mutex::new(None),
                acting: Mutex::new(()),
                wanted: me.state_dir.join("launch").join(&g.cfg.name),
                asked: AtomicBool::new(me.boot),
            });
            me.cares.write().push(care.clone());
            let me = me.clone();
            std::thread::Builder::new().name("boot".into()).spawn(move || me.watch(&care))?;
        }
        Ok(())
    }

    fn end(&self) {
        self.0.ending.store(true, Ordering::SeqCst);
        let cares = self.0.cares.read().clone();
        // All groups at the same time: each takes as long as its own applications.
        std::thread::scope(|s| {
            for c in &cares {
                s.spawn(|| c.stop(false));
            }
        });
    }

    fn release(&self, group: &str) -> Result<()> {
        let Ok(care) = self.0.care(group) else { return Ok(()) };
        let _one = care.acting.lock();
        care.forget();
        care.stop(false);
        Ok(())
    }

    fn boot(&self, group: &str, now: bool, dry_run: bool) -> Result<Value> {
        let care = self.0.care(group)?;
        let me = &self.0;
        me.reload();
        let (survey, what, done) = if now && !dry_run {
            let Some(_one) = care.acting.try_lock_for(ACTING) else {
                return Err(Error::new(
                    Kind::Timeout,
                    format!(
                        "group {group} is still being mounted, started or stopped; `kagami status` shows how it goes"
                    ),
                ));
            };
            let s = me.boot_now(&care, true)?;
            care.say(None);
            (s, "mounted, and its applications are being started".into(), true)
        } else {
            care.group.settle();
            let mut s = me.survey(&care)?;
            let refused = care.group.secondary().and_then(|r| care.group.consistent(&r, false).err());
            s.problems.extend(refused.map(|e| e.msg));
            let running = care.running().is_some();
            (s, me.standing(&care, now), running)
        };
        let report = survey.report(group, care.role(), what, done);
        serde_json::to_value(report).map_err(|e| Error::failed(e.to_string()))
    }

    fn order(&self, group: &str, app: Option<&str>, order: AppOrder) -> Result<()> {
        let care = self.0.care(group)?;
        let Some(r) = care.running() else {
            return Err(Error::refused(format!(
                "no application of group {group} was started here: `kagami boot --now {group}` starts them"
            )));
        };
        let order = match order {
            AppOrder::Start => Order::Start,
            AppOrder::Stop => Order::Stop,
            AppOrder::Restart => Order::Restart,
        };
        let names: Vec<String> = match app {
            Some(a) => vec![a.to_owned()],
            None => r.supervisor.status().into_iter().map(|s| s.name).collect(),
        };
        names.iter().try_for_each(|n| r.supervisor.order(n, order))
    }

    fn apps(&self, group: &str) -> Vec<AppStatus> {
        let Ok(care) = self.0.care(group) else { return Vec::new() };
        let dir = self.0.log_dir(&care);
        let all = care.running().map(|r| r.supervisor.status()).unwrap_or_default();
        all.into_iter()
            .map(|a| AppStatus {
                log: dir.join(format!("{}.log", a.name)),
                state: state_name(a.state),
                name: a.name,
                pid: a.pid,
                restarts: a.restarts,
                since: a.since,
                reason: Some(a.reason).filter(|r| !r.is_empty()),
            })
            .collect()
    }

    fn note(&self, group: &str) -> Option<String> {
        self.0.care(group).ok()?.note.lock().clone()
    }
}

impl Shared {
    /// What is done or waited for, in words.
    fn standing(&self, care: &Care, ordered: bool) -> String {
        if care.group.secondary().is_none() {
            return match care.running().is_some() {
                true => "mounted, and its applications are started".into(),
                false => "primary here; its applications are not started".into(),
            };
        }
        match boot::decide(&care.pairs(), &self.launch.read(), ordered, &care.votes()) {
            Decision::Active(why) | Decision::Wait(why) => why,
            Decision::Ask(why) => format!("{why}: waiting for `kagami boot --yes {}`", care.group.cfg.name),
            Decision::Mount(why) => format!("{why}: it would be taken over, mounted and started"),
        }
    }
}

/// Makes events of the changes of the applications.
fn teller(group: Arc<LocalGroup>) -> Tell {
    let known: Mutex<BTreeMap<String, String>> = Mutex::default();
    Box::new(move |name, state, reason| {
        let state = state_name(state);
        let from = known.lock().insert(name.to_owned(), state.clone());
        if from.as_ref() != Some(&state) {
            let (subject, to, reason) = (Some(name.to_owned()), Some(state), Some(reason.to_owned()));
            let reason = reason.filter(|r| !r.is_empty());
            group.tell(Event { subject, from, to, reason, ..Event::new(What::App) });
        }
    })
}

fn state_name(s: StateName) -> String {
    serde_json::to_value(s).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_else(|| s.to_string())
}
