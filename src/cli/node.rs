//! `kagami node`.

use super::args::NodeArgs;
use super::say;
use crate::base::{At, Error, Result};
use crate::node::config::Config;
use crate::node::control;
use crate::site::process::{NodeFiles, POLL};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long `--detach` waits for the node to answer and for its groups to be started.
const DETACH_TIMEOUT: Duration = Duration::from_secs(120);

/// Runs the node here, or starts it in the background.
pub fn run(config: Config, a: &NodeArgs) -> Result<()> {
    if a.detach {
        return detach(&config, a);
    }
    log_to(a.log_file.as_deref())?;
    if a.detached {
        // A terminal that closes, or Ctrl-C in it, is no reason to end.
        let _ = crate::os::sys::setsid();
    }
    make_state_dir(&config.node.state_dir)?;
    if !control::has_ended(&config.node.state_dir) {
        return Err(Error::refused(format!(
            "a node of {} runs already; `kagami status` shows it",
            config.path.display()
        )));
    }
    let _pid = a.pid_file.as_deref().map(PidFile::write).transpose()?;
    log::info!("node of site {} from {}, pid {}", config.node.site, config.path.display(), std::process::id());
    let fuse = crate::fs::mounter::Fuse { nonempty: config.launch.cover_non_empty };
    let launch = crate::launch::service::Service::new(&config, std::sync::Arc::new(fuse), a.boot);
    let (mounter, launcher) = (std::sync::Arc::new(launch.clone()), std::sync::Arc::new(launch));
    let r = crate::node::run(config, crate::node::Options { mounter, launcher });
    match &r {
        Ok(()) => log::info!("ended"),
        // Otherwise standard error is the log, and the error comes there anyway.
        Err(e) if a.log_file.is_some() => log::error!("{e}"),
        Err(_) => {}
    }
    r
}

/// Nobody else's business, from the beginning.
pub fn make_state_dir(dir: &Path) -> Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).at(dir.display())
}

fn log_to(file: Option<&Path>) -> Result<()> {
    let mut b = env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info,fuser::reply=off"));
    b.format_timestamp_millis();
    if let Some(p) = file {
        let f = std::fs::OpenOptions::new().create(true).append(true).open(p).at(p.display())?;
        b.target(env_logger::Target::Pipe(Box::new(f)));
    }
    b.init();
    Ok(())
}

fn detach(config: &Config, a: &NodeArgs) -> Result<()> {
    let state_dir = config.node.state_dir.clone();
    make_state_dir(&state_dir)?;
    if !control::has_ended(&state_dir) {
        return Err(Error::refused("it runs already; `kagami status` shows it"));
    }
    let or = |p: &Option<PathBuf>, name: &str| -> Result<PathBuf> {
        Ok(match p {
            Some(p) => std::path::absolute(p)?,
            None => state_dir.join(name),
        })
    };
    let files = NodeFiles {
        config: config.path.clone(),
        pid_file: or(&a.pid_file, "node.pid")?,
        log_file: or(&a.log_file, "node.log")?,
        state_dir,
    };
    let begin = Instant::now();
    files.start(DETACH_TIMEOUT, &|_| Ok(()))?;
    let mut groups = files.status()?.groups;
    // Whoever goes on after this may work in the mounted volumes.
    while groups.iter().any(|g| g.role == "starting") && begin.elapsed() < DETACH_TIMEOUT {
        std::thread::sleep(POLL);
        groups = files.status()?.groups;
    }
    say(format!("running, pid {}; log: {}\n", files.running().unwrap_or(0), files.log_file.display()));
    for g in &groups {
        match (g.role.as_str(), &g.reason) {
            ("starting", _) => say(format!("group {} is still starting; `kagami status` shows how it goes\n", g.name)),
            (_, Some(why)) => say(format!("group {}: {why}\n", g.name)),
            (_, None) => {}
        }
    }
    Ok(())
}

/// The pid file, removed at the end.
struct PidFile(PathBuf);

impl PidFile {
    fn write(path: &Path) -> Result<PidFile> {
        let pid = std::process::id();
        let mut new = path.as_os_str().to_owned();
        new.push(format!(".{pid}"));
        // Whole or not at all: others read it at any time.
        std::fs::write(&new, format!("{pid}\n")).at(path.display())?;
        std::fs::rename(&new, path).at(path.display())?;
        Ok(PidFile(path.to_owned()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let ours = std::fs::read_to_string(&self.0).is_ok_and(|s| s.trim() == std::process::id().to_string());
        if ours {
            let _ = std::fs::remove_file(&self.0);
        }
    }
}
