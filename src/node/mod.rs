//! The process of a site: its site file, control socket, groups and links.

mod answers;
mod arbiter_etcd;
mod ballot;
mod by_state;
mod commands;
mod compare;
pub mod config;
mod config_arbiter;
pub mod config_check;
mod config_launch;
pub(crate) mod config_source;
mod config_text;
pub mod control;
mod copying;
mod desk;
mod door;
mod equal;
pub mod events;
mod failure;
mod first_copy;
pub mod forecast;
pub mod health;
mod heard;
mod http;
mod incoming;
mod judge;
pub mod launcher;
mod legs;
mod links;
pub mod local;
mod look;
pub mod loss;
mod losses;
mod meter;
pub mod metrics;
pub mod mounter;
mod notify;
pub mod pairs;
mod receipt;
mod receiving;
mod repair;
mod resync;
mod scrape;
mod sender;
mod serve;
mod session;
mod source;
mod stale;
pub mod status;
mod switch;
mod tell;
mod verify;
mod why;

use crate::base::sync::Mutex;
use crate::base::{At, Kind, Result, time, time::Time};
use crate::net::Identity;
use crate::pair::state::{Reason, State};
use config::Config;
use events::{Event, Events, What};
use links::Links;
use local::LocalGroup;
use notify::Notify;
use scrape::Scrape;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What the node needs from the floors above.
pub struct Options {
    /// Mounts volumes.
    pub mounter: Arc<dyn mounter::Mounter>,
    /// Starts what lies in them.
    pub launcher: Arc<dyn launcher::Launcher>,
}

/// A running node.
pub struct Node {
    config: Config,
    links: Arc<Links>,
    groups: Vec<Arc<LocalGroup>>,
    launcher: Arc<dyn launcher::Launcher>,
    stop: AtomicBool,
    started: Time,
    events: Arc<Events>,
    /// Where the metrics are served, if the site file says so.
    metrics: Mutex<Option<Scrape>>,
}

/// Files a node should be able to open: one for each known directory and open file.
const NOFILE: u64 = 1 << 20;

/// Between two attempts to start a group whose region could not be opened.
const RETRY: Duration = Duration::from_secs(2);

/// Starts a group, or takes it out of use with the reason. False when trying again may help.
fn start(g: &Arc<LocalGroup>, said: &str) -> bool {
    let Err(e) = g.start() else {
        g.set_begun();
        return true;
    };
    let why = e.to_string();
    if why != said {
        log::error!("group {}: {why}", g.cfg.name);
    }
    for p in &g.pairs {
        let to = match p.state() {
            State::Pair | State::CopyResync => State::Psue(Reason::LocalFault),
            State::Copy => State::PsueCopy(Reason::LocalFault),
            _ => continue,
        };
        if let Err(e) = p.mirror(to, Some(why.clone())) {
            log::error!("group {} pair {}: {e}", g.cfg.name, p.name);
        }
    }
    g.set_down(why);
    g.set_begun();
    matches!(e.kind, Kind::Corrupt | Kind::Config)
}

/// Between two looks for the service manager's line.
const TELL: Duration = Duration::from_secs(1);

/// How every group stands, in a line.
fn summary(groups: &[Arc<LocalGroup>]) -> String {
    let one = |g: &Arc<LocalGroup>| {
        let pairs: String = g.pairs.iter().map(|p| format!(", {} {}", p.name, p.state().shown())).collect();
        match (g.down(), g.primary()) {
            (Some(why), _) => format!("{}: down: {why}", g.cfg.name),
            (None, Some(_)) => format!("{}: primary{pairs}", g.cfg.name),
            (None, None) => format!("{}: secondary{pairs}", g.cfg.name),
        }
    };
    groups.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// Runs the node of this site file until SIGTERM, SIGINT or the command `Stop`.
pub fn run(config: Config, options: Options) -> Result<()> {
    let signals = crate::os::sys::signal_fd()?;
    let mut manager = Notify::from_env();
    crate::os::sys::umask(0);
    crate::os::sys::raise_nofile(NOFILE);
    let state = config.node.state_dir.clone();
    std::fs::create_dir_all(&state).at(state.display())?;
    let key = config::identity_file(&state);
    let identity = match Identity::load(&key) {
        Ok(i) => i,
        Err(_) if !key.exists() => {
            let i = Identity::generate(&config.node.site)?;
            i.save(&key)?;
            i
        }
        Err(e) => return Err(e),
    };
    let links = Arc::new(Links::new(&config, Arc::new(identity)));
    let events = Events::open(&state, &config.node.site)?;
    let mut groups = Vec::new();
    for g in &config.groups {
        let ctx: Arc<dyn sender::SenderCtx> = links.clone();
        let limits = config.limits.clone();
        groups.push(Arc::new(LocalGroup::new(
            g.clone(),
            &config.node.site,
            (&state, &events),
            limits,
            ctx,
            options.mounter.clone(),
        )?));
    }
    let node = Arc::new(Node {
        config,
        links: links.clone(),
        groups,
        launcher: options.launcher,
        stop: AtomicBool::new(false),
        started: time::now(),
        events: events.clone(),
        metrics: Mutex::new(None),
    });
    events.add(Event { reason: Some(format!("version {}", env!("CARGO_PKG_VERSION"))), ..Event::new(What::NodeStart) });
    for g in &node.groups {
        g.set_down("starting".into());
    }
    let control = control::serve(&state, node.clone())?;
    if let Some(addr) = node.config.node.metrics {
        let me = Arc::downgrade(&node);
        *node.metrics.lock() = Some(Scrape::start(addr, Box::new(move || Some(me.upgrade()?.status())))?);
    }
    links.listen(&node.groups)?;
    let mut down: Vec<_> = node.groups.iter().filter(|g| !start(g, "")).cloned().collect();
    node.launcher.begin(&node.groups)?;
    let me = node.clone();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut buf = [0u8; 128];
        let _ = crate::os::sys::read(&signals, &mut buf);
        me.stop.store(true, Ordering::SeqCst);
    })?;
    // A group that could not be started does not hold those that can: the line says so, and it is tried again.
    manager.status(&summary(&node.groups));
    manager.ready();
    let (mut tried, mut told) = (Instant::now(), Instant::now());
    while !node.stop.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(50));
        down.extend(node.groups.iter().filter(|g| g.take_failed()).cloned());
        // The disk of a region that was missing, or the room on it, may be there now.
        if !down.is_empty() && tried.elapsed() > RETRY {
            down.retain(|g| !start(g, &g.down().unwrap_or_default()));
            tried = Instant::now();
        }
        manager.alive();
        if told.elapsed() > TELL {
            manager.status(&summary(&node.groups));
            told = Instant::now();
        }
    }
    log::info!("shutting down");
    manager.stopping();
    node.launcher.end();
    // The links last: what the page cache still holds goes to the peers when the volumes are unmounted.
    for g in &node.groups {
        g.shutdown();
    }
    links.close();
    *node.metrics.lock() = None;
    drop(control);
    events.add(Event::new(What::NodeStop));
    events.close();
    Ok(())
}

#[cfg(test)]
mod config_tests;
#[cfg(test)]
mod control_tests;
