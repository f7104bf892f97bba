//! `kagami node`, `mount`, `umount`.

use super::args::NodeArgs;
use super::{Site, say};
use crate::base::{At, Error, Result};
use crate::node::config::Config;
use crate::node::control::{self, Request};
use crate::site::process::NodeFiles;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long `--detach` waits for the node to answer.
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
    if control::is_running(&config.node.state_dir) {
        return Err(Error::refused(format!(
            "a node of {} runs already; `kagami status` shows it",
            config.path.display()
        )));
    }
    let _pid = a.pid_file.as_deref().map(PidFile::write).transpose()?;
    log::info!("node of site {} from {}, pid {}", config.node.site, config.path.display(), std::process::id());
    let r = crate::node::run(config, crate::node::Options { mounter: std::sync::Arc::new(crate::fs::mounter::Fuse) });
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
    if control::is_running(&state_dir) {
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
    files.start(DETACH_TIMEOUT, &|_| Ok(()))?;
    say(format!("running, pid {}; log: {}\n", files.running().unwrap_or(0), files.log_file.display()));
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

/// Mounts a volume.
pub fn mount(site: &Site, what: &str, dir: &Path) -> Result<()> {
    let (group, volume) = resolve(&site.config, what)?;
    let dir = std::path::absolute(dir)?;
    if !dir.is_dir() {
        return Err(Error::config(format!("{} is not a directory; make it first", dir.display())));
    }
    if std::fs::read_dir(&dir).is_ok_and(|mut d| d.next().is_some()) {
        let d = dir.display();
        return Err(Error::refused(format!("{d} is not empty: its files would be hidden; give an empty directory")));
    }
    site.call(&Request::Mount { group, volume, dir: dir.clone() })?;
    say(format!("{what} is mounted at {}\n", dir.display()));
    Ok(())
}

/// Unmounts a volume, or all volumes of a group.
pub fn umount(site: &Site, what: &str) -> Result<()> {
    let at_dir = std::path::absolute(what).ok().filter(|_| what.contains('/') && resolve(&site.config, what).is_err());
    let (group, volume) = match at_dir {
        Some(dir) => mounted_at(site, &dir)?,
        None => resolve(&site.config, what)?,
    };
    site.call(&Request::Umount { group, volume })?;
    say(format!("{what} is unmounted\n"));
    Ok(())
}

fn mounted_at(site: &Site, dir: &Path) -> Result<(String, Option<String>)> {
    let v = site.call(&Request::Status {})?;
    let s: crate::node::status::Status =
        serde_json::from_value(v).map_err(|e| Error::failed(format!("status: {e}")))?;
    for g in &s.groups {
        if let Some(m) = g.mounts.iter().find(|m| m.dir == dir) {
            return Ok((g.name.clone(), Some(m.volume.clone())));
        }
        if g.mount.as_deref() == Some(dir) {
            return Ok((g.name.clone(), None));
        }
    }
    Err(Error::config(format!("nothing of this node is mounted at {}", dir.display())))
}

/// GROUP, GROUP/VOLUME, or a VOLUME that only one group has.
fn resolve(c: &Config, what: &str) -> Result<(String, Option<String>)> {
    if let Some((g, v)) = what.split_once('/').filter(|(g, _)| c.groups.iter().any(|x| x.name == *g)) {
        let group = c.group(g)?;
        return match group.volume(v) {
            Some(_) => Ok((g.into(), Some(v.into()))),
            None => {
                let known: Vec<&str> = group.volumes.iter().map(|v| v.name.as_str()).collect();
                Err(Error::config(format!("no volume {v:?} in group {g}: it has {}", known.join(", "))))
            }
        };
    }
    if c.groups.iter().any(|g| g.name == what) {
        return Ok((what.into(), None));
    }
    let with: Vec<&str> = c.groups.iter().filter(|g| g.volume(what).is_some()).map(|g| g.name.as_str()).collect();
    match with.as_slice() {
        [g] => Ok(((*g).into(), Some(what.into()))),
        [] => {
            let known: Vec<&str> = c.groups.iter().map(|g| g.name.as_str()).collect();
            Err(Error::config(format!("no group or volume {what:?}; groups here: {}", known.join(", "))))
        }
        many => {
            Err(Error::config(format!("volume {what} is in several groups: write {}/{what}, for example", many[0])))
        }
    }
}
