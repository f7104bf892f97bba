//! The process of a site: its site file, control socket, groups and links.

mod answers;
mod commands;
mod compare;
pub mod config;
pub mod config_check;
mod config_source;
mod config_text;
pub mod control;
mod copying;
mod desk;
mod first_copy;
mod incoming;
mod judge;
mod legs;
mod links;
mod local;
mod meter;
pub mod mounter;
pub mod pairs;
mod receiving;
mod repair;
mod resync;
mod sender;
mod serve;
mod session;
mod source;
pub mod status;
mod switch;
mod tell;
mod verify;

use crate::base::{At, Kind, Result};
use crate::net::Identity;
use crate::pair::state::{Reason, State};
use config::Config;
use links::Links;
use local::LocalGroup;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What the node needs from the floors above.
pub struct Options {
    /// Mounts volumes.
    pub mounter: Arc<dyn mounter::Mounter>,
}

/// A running node.
pub struct Node {
    config: Config,
    links: Arc<Links>,
    groups: Vec<Arc<LocalGroup>>,
    stop: AtomicBool,
}

/// Files a node should be able to open: one for each known directory and open file.
const NOFILE: u64 = 1 << 20;

/// Between two attempts to start a group whose region could not be opened.
const RETRY: Duration = Duration::from_secs(2);

/// Starts a group, or takes it out of use with the reason. False when trying again may help.
fn start(g: &Arc<LocalGroup>, said: &str) -> bool {
    let Err(e) = g.start() else { return true };
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
    matches!(e.kind, Kind::Corrupt | Kind::Config)
}

/// Runs the node of this site file until SIGTERM, SIGINT or the command `Stop`.
pub fn run(config: Config, options: Options) -> Result<()> {
    let signals = crate::os::sys::signal_fd()?;
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
    let mut groups = Vec::new();
    for g in &config.groups {
        let ctx: Arc<dyn sender::SenderCtx> = links.clone();
        let limits = config.limits.clone();
        groups.push(Arc::new(LocalGroup::new(
            g.clone(),
            &config.node.site,
            &state,
            limits,
            ctx,
            options.mounter.clone(),
        )?));
    }
    let node = Arc::new(Node { config, links: links.clone(), groups, stop: AtomicBool::new(false) });
    for g in &node.groups {
        g.set_down("starting".into());
    }
    let control = control::serve(&state, node.clone())?;
    links.listen(&node.groups)?;
    let mut down: Vec<_> = node.groups.iter().filter(|g| !start(g, "")).cloned().collect();
    let me = node.clone();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut buf = [0u8; 128];
        let _ = crate::os::sys::read(&signals, &mut buf);
        me.stop.store(true, Ordering::SeqCst);
    })?;
    let mut tried = Instant::now();
    while !node.stop.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(50));
        // The disk of a region that was missing may be there now.
        if !down.is_empty() && tried.elapsed() > RETRY {
            down.retain(|g| !start(g, &g.down().unwrap_or_default()));
            tried = Instant::now();
        }
    }
    log::info!("shutting down");
    // The links last: what the page cache still holds goes to the peers when the volumes are unmounted.
    for g in &node.groups {
        g.shutdown();
    }
    links.close();
    drop(control);
    Ok(())
}

#[cfg(test)]
mod config_tests;
#[cfg(test)]
mod control_tests;
