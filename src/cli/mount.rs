//! `kagami mount` and `umount`, and what the mount helper has in common with them.

use super::args::FstabArgs;
use super::mount_options::{self, Said};
use super::{Site, fstab, say, wait};
use crate::base::{Error, Result};
use crate::node::config::Config;
use crate::node::control::Request;
use crate::node::status::{MountStatus, Status};
use std::path::Path;

/// A volume by its full name.
pub struct What {
    /// The group.
    pub group: String,
    /// The volume; of a group alone, its lead volume.
    pub volume: String,
}

impl What {
    /// `GROUP/VOLUME`, as the mount table shows it.
    pub fn spec(&self) -> String {
        format!("{}/{}", self.group, self.volume)
    }

    /// Its mount, if the node has one.
    pub fn mount_in<'a>(&self, s: &'a Status) -> Option<&'a MountStatus> {
        let group = s.groups.iter().find(|g| g.name == self.group)?;
        group.mounts.iter().find(|m| m.volume == self.volume)
    }

    /// The order to mount it.
    pub fn request(&self, dir: &Path, said: &Said) -> Request {
        Request::Mount {
            group: self.group.clone(),
            volume: Some(self.volume.clone()),
            dir: dir.to_owned(),
            options: said.options.clone(),
        }
    }
}

/// GROUP, GROUP/VOLUME, or a VOLUME that only one group has, as the volume that is mounted.
pub fn what(c: &Config, text: &str) -> Result<What> {
    let (group, volume) = resolve(c, text)?;
    let lead = || c.group(&group).ok().and_then(|g| g.volumes.first()).map_or_else(String::new, |v| v.name.clone());
    let volume = volume.unwrap_or_else(lead);
    Ok(What { group, volume })
}

/// `kagami mount`.
pub fn mount(site: &Site, text: &str, dir: &Path, options: &str, fstab: &FstabArgs) -> Result<()> {
    let w = what(&site.config, text)?;
    let said = mount_options::parse(options)?.known()?;
    if said.config.is_some() || said.start || said.remount {
        return Err(Error::config("config=, start and remount are for mount(8) and fstab; see `kagami mount --help`"));
    }
    let dir = std::path::absolute(dir)?;
    // A line for what is mounted already may be wanted all the same.
    let there = fstab.update_fstab && {
        let s = wait::fetch(site)?;
        w.mount_in(&s).is_some_and(|m| m.dir == dir && m.options == said.options)
    };
    if !there {
        if !dir.is_dir() {
            return Err(Error::config(format!("{} is not a directory; make it first", dir.display())));
        }
        if std::fs::read_dir(&dir).is_ok_and(|mut d| d.next().is_some()) {
            let d = dir.display();
            return Err(Error::refused(format!(
                "{d} is not empty: its files would be hidden; give an empty directory"
            )));
        }
        site.call(&w.request(&dir, &said))?;
    }
    say(format!("{} is mounted at {}\n", w.spec(), dir.display()));
    if fstab.update_fstab {
        let default = site.config.path == super::default_config();
        let options = fstab::options(options, &site.config.path, default);
        let line = fstab::Line { spec: w.spec(), dir, options };
        let changed = fstab::change(&fstab.fstab, |t| fstab::with_line(t, &line))?;
        say(format!("{}: {}\n", fstab.fstab.display(), if changed { "line written" } else { "is so already" }));
    }
    Ok(())
}

/// `kagami umount`: a volume, or all volumes of a group.
pub fn umount(site: &Site, text: &str, fstab: &FstabArgs) -> Result<()> {
    let at_dir = std::path::absolute(text).ok().filter(|_| text.contains('/') && resolve(&site.config, text).is_err());
    let done = match &at_dir {
        Some(dir) => mounted_at(site, dir),
        None => resolve(&site.config, text),
    };
    let done = done.and_then(|(group, volume)| {
        site.call(&Request::Umount { group: group.clone(), volume: volume.clone() })?;
        say(format!("{text} is unmounted\n"));
        Ok(())
    });
    if !fstab.update_fstab {
        return done;
    }
    let specs: Vec<String> = match (&at_dir, resolve(&site.config, text)) {
        (None, Ok((g, Some(v)))) => vec![format!("{g}/{v}")],
        (None, Ok((g, None))) => {
            let volumes = site.config.group(&g).map(|c| c.volumes.as_slice()).unwrap_or_default();
            volumes.iter().map(|v| format!("{g}/{}", v.name)).chain([g.clone()]).collect()
        }
        _ => Vec::new(),
    };
    let gone = |s: &str, d: &Path| at_dir.as_deref() == Some(d) || specs.iter().any(|x| x == s);
    let changed = fstab::change(&fstab.fstab, |t| Ok(fstab::without_lines(t, gone)))?;
    let file = fstab.fstab.display();
    say(format!("{file}: {}\n", if changed { "line removed" } else { "has no line for it" }));
    // What was not mounted may have had a line.
    if changed { Ok(()) } else { done }
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
