//! What this site allows (CD-9). A definition in a volume was written at another site; what it names is started only when
//! the site's own file says so. Every refusal says what to write into which file.

use super::app::{App, Ready, Stop};
use super::apps;
use super::files::{Found, Roots, shown};
use crate::base::{Error, Result};
use crate::node::config::LaunchConfig;
use std::path::{Path, PathBuf};

/// Who this node is, and who else there is.
pub struct Who<'a> {
    /// Effective user of the node.
    pub uid: u32,
    /// The user id of a name; `None`: no such user.
    pub user: &'a dyn Fn(&str) -> Option<u32>,
}

/// A site's rules with the file they stand in.
pub struct Policy<'a> {
    /// `[launch]`.
    pub launch: &'a LaunchConfig,
    /// The site file, for what to do about a refusal.
    pub file: &'a Path,
    /// Users.
    pub who: Who<'a>,
}

impl Policy<'_> {
    fn add(&self, line: impl std::fmt::Display) -> String {
        format!("to allow it, write {line} into [launch] of {}", self.file.display())
    }

    /// Whether an application may be started: what forbids it, a sentence each.
    pub fn check(&self, app: &App, roots: &Roots) -> Vec<String> {
        let mut out = Vec::new();
        let mut say = |why: String| out.push(format!("{}: application {}: {why}", app.source, app.name));
        let mut programs: Vec<(&str, &Path)> = vec![("command", &app.command)];
        if let Ready::Command(c) = &app.ready {
            programs.extend(c.first().map(|p| ("readiness command", Path::new(p))));
        }
        if let Stop::Command(c) = &app.stop {
            programs.extend(c.first().map(|p| ("stop command", Path::new(p))));
        }
        for (what, p) in programs {
            if let Some(why) = self.program(p, roots) {
                say(format!("{what} {}: {why}", shown(p)));
            }
        }
        if let Some(why) = self.user(app.user.as_deref()) {
            say(why);
        }
        out
    }

    /// What forbids a program.
    fn program(&self, p: &Path, roots: &Roots) -> Option<String> {
        let Some(p) = apps::plain(p).filter(|p| p.is_absolute()) else {
            return Some("it is no absolute path without `..`".into());
        };
        if roots.find(&p).is_some() {
            return self.in_volume(&p, roots);
        }
        let listed = |p: &Path, real: bool| self.launch.commands.iter().any(|c| allows(c, p, real));
        let remedy = || self.add(format!("commands = [{:?}]", shown(&p)));
        if !listed(&p, false) {
            return Some(format!("it is not allowed at this site; {}", remedy()));
        }
        let real = match p.canonicalize() {
            Ok(r) => r,
            Err(e) => return Some(format!("{e}; install it, or change the definition")),
        };
        if !listed(&real, true) {
            return Some(format!(
                "it is a symlink to {}, which is not allowed at this site; {}",
                shown(&real),
                self.add(format!("commands = [{:?}]", shown(&real)))
            ));
        }
        (!is_program(&real)).then(|| "it is no program that can be run".into())
    }

    /// CD-15: a program that lies in the volume.
    fn in_volume(&self, p: &Path, roots: &Roots) -> Option<String> {
        if !self.launch.from_volume {
            return Some(format!(
                "programs in the volume are not allowed at this site; {}",
                self.add("from_volume = true")
            ));
        }
        match roots.look(p) {
            Ok(Some(Found::File(_, mode))) if mode & 0o111 != 0 => None,
            Ok(Some(Found::File(..))) => Some("it is not executable; set its permission at the primary".into()),
            Ok(Some(Found::Dir)) => Some("it is a directory".into()),
            Ok(None) => Some("there is no such file in the volume".into()),
            Err(e) => Some(e.msg),
        }
    }

    /// What forbids a user. Without root only the node's own user is possible.
    fn user(&self, user: Option<&str>) -> Option<String> {
        let name = match (user, self.who.uid) {
            (None, 0) => "root",
            (None, _) => return None,
            (Some(u), _) => u,
        };
        let Some(uid) = (self.who.user)(name) else {
            return Some(format!(
                "there is no user {name} at this site; make it (`useradd {name}`), or change the definition"
            ));
        };
        if self.who.uid != 0 {
            return (uid != self.who.uid).then(|| {
                format!("it wants to run as {name}, and this node is not root; run the node as root or as {name}")
            });
        }
        if self.launch.users.iter().any(|u| u == name) {
            return None;
        }
        let why = if user.is_none() { " (it names no user, and the node is root)" } else { "" };
        Some(format!("to run as {name}{why} is not allowed at this site; {}", self.add(format!("users = [{name:?}]"))))
    }

    /// Whether a replica may be mounted where its head says. `own`: where the site file itself mounts this volume.
    pub fn mount(&self, volume: &str, dir: &Path, own: Option<&Path>) -> Result<PathBuf> {
        let refuse = |why: String| Error::refused(format!("volume {volume}: mounting at {}: {why}", shown(dir)));
        let plain = dir.to_str().filter(|s| !s.chars().any(super::env::invisible)).map(Path::new);
        let Some(dir) = plain.and_then(apps::plain).filter(|d| d.is_absolute() && d.parent().is_some()) else {
            return Err(refuse(
                "it is no absolute path of plain text without `..`; mount it by hand: `kagami takeover`".into(),
            ));
        };
        if own == Some(&dir) {
            return Ok(dir);
        }
        let remedy = || self.add(format!("mounts = [{:?}]", shown(&dir)));
        if !self.launch.mounts.iter().any(|m| dir.starts_with(m)) {
            return Err(refuse(format!("it is not allowed at this site; {}", remedy())));
        }
        // What exists of it decides where it really is.
        let real = really(&dir);
        match self.launch.mounts.iter().any(|m| real.starts_with(really(m))) {
            true => Ok(real),
            false => Err(refuse(format!(
                "it is {} by a symlink, which is not allowed at this site; {}",
                shown(&real),
                self.add(format!("mounts = [{:?}]", shown(&real)))
            ))),
        }
    }
}

/// True when an entry of `commands` allows a program. `real`: the program is the end of its symlinks, so the entry must be too.
fn allows(entry: &str, program: &Path, real: bool) -> bool {
    let resolved = |p: &Path| if real { p.canonicalize().unwrap_or_else(|_| p.to_owned()) } else { p.to_owned() };
    match entry.strip_suffix('/') {
        Some(dir) => {
            let dir = resolved(Path::new(if dir.is_empty() { "/" } else { dir }));
            program != dir && program.starts_with(dir)
        }
        None => program == resolved(Path::new(entry)),
    }
}

fn is_program(p: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(p).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Where a path really is: what exists of it without symlinks, and the rest.
fn really(p: &Path) -> PathBuf {
    let found = p.ancestors().find_map(|a| Some((a.canonicalize().ok()?, p.strip_prefix(a).ok()?)));
    match found {
        Some((real, rest)) if rest.as_os_str().is_empty() => real,
        Some((real, rest)) => real.join(rest),
        None => p.to_owned(),
    }
}

/// Two volumes cannot be at one directory or one within the other.
pub fn separate(mounts: &[(String, PathBuf)]) -> Result<()> {
    for (i, (a, da)) in mounts.iter().enumerate() {
        for (b, db) in mounts.iter().take(i) {
            if da.starts_with(db) || db.starts_with(da) {
                return Err(Error::refused(format!(
                    "volumes {b} and {a} would be mounted at {} and {}, one inside the other; mount them by hand: `kagami takeover`",
                    shown(db),
                    shown(da)
                )));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
