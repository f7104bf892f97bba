//! `[launch]` of the site file: what this site lets a replica mount and start here (CD-9), and when it does so by itself
//! (CD-16).

use super::config_source::{Source, Str, Unique};
use crate::base::Result;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::Spanned;

/// Default for `lost_primary_after_s`.
const LOST_AFTER: Duration = Duration::from_secs(10);

/// What is done when every pair of a group is suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnSuspended {
    /// Nothing.
    Wait,
    /// It is shown, and somebody decides.
    Ask,
    /// The group is taken over, mounted, and its applications are started.
    Mount,
}

impl OnSuspended {
    /// As written in the site file.
    pub fn as_str(self) -> &'static str {
        match self {
            OnSuspended::Wait => "wait",
            OnSuspended::Ask => "ask",
            OnSuspended::Mount => "mount",
        }
    }
}

/// `[launch]`. The default allows nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchConfig {
    /// Programs that may be started: absolute paths, and directories when they end in `/`.
    pub commands: Vec<String>,
    /// Users they may run as.
    pub users: Vec<String>,
    /// Directories at or below which a replica may be mounted where its head says, absolute.
    pub mounts: Vec<PathBuf>,
    /// Variables that an environment file may set although they are refused otherwise.
    pub env: Vec<String>,
    /// Programs that lie in the volume may be started (CD-15).
    pub from_volume: bool,
    /// A replica may be mounted over a directory that is not empty.
    pub cover_non_empty: bool,
    /// When the primary is lost.
    pub on_lost_primary: OnSuspended,
    /// When the pairs were suspended by order.
    pub on_suspend: OnSuspended,
    /// How long nothing must have been heard of a primary before it counts as lost.
    pub lost_primary_after: Duration,
}

impl Default for LaunchConfig {
    fn default() -> LaunchConfig {
        LaunchConfig {
            commands: Vec::new(),
            users: Vec::new(),
            mounts: Vec::new(),
            env: Vec::new(),
            from_volume: false,
            cover_non_empty: false,
            on_lost_primary: OnSuspended::Wait,
            on_suspend: OnSuspended::Wait,
            lost_primary_after: LOST_AFTER,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLaunch {
    #[serde(default)]
    commands: Vec<Str>,
    #[serde(default)]
    users: Vec<Str>,
    #[serde(default)]
    mounts: Vec<Str>,
    #[serde(default)]
    env: Vec<Str>,
    from_volume: Option<Spanned<bool>>,
    cover_non_empty: Option<Spanned<bool>>,
    on_lost_primary: Option<Str>,
    on_suspend: Option<Str>,
    lost_primary_after_s: Option<Spanned<i64>>,
}

pub(super) fn launch(src: &Source<'_>, raw: Option<&RawLaunch>) -> Result<LaunchConfig> {
    let Some(raw) = raw else { return Ok(LaunchConfig::default()) };
    let mut commands = Unique::new(src, "command");
    for c in &raw.commands {
        absolute(src, "commands", c)?;
        commands.add(c.get_ref(), c.span())?;
    }
    for u in &raw.users {
        src.name("user", u)?;
    }
    for m in &raw.mounts {
        absolute(src, "mounts", m)?;
    }
    for e in &raw.env {
        let ok = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if e.get_ref().is_empty() || !e.get_ref().chars().all(ok) {
            return Err(src.at(e, "env names variables; write env = [\"PYTHONPATH\"], for example, instead"));
        }
    }
    let bool = |b: &Option<Spanned<bool>>| b.as_ref().is_some_and(|b| *b.get_ref());
    let list = |v: &[Str]| v.iter().map(|s| s.get_ref().clone()).collect();
    Ok(LaunchConfig {
        commands: list(&raw.commands),
        users: list(&raw.users),
        mounts: raw.mounts.iter().map(|m| src.resolve(m.get_ref())).collect(),
        env: list(&raw.env),
        from_volume: bool(&raw.from_volume),
        cover_non_empty: bool(&raw.cover_non_empty),
        on_lost_primary: when(src, "on_lost_primary", raw.on_lost_primary.as_ref())?,
        on_suspend: when(src, "on_suspend", raw.on_suspend.as_ref())?,
        lost_primary_after: src
            .number("lost_primary_after_s", &raw.lost_primary_after_s, 1..86_401)?
            .map_or(LOST_AFTER, Duration::from_secs),
    })
}

/// An absolute path without `.` and `..`: what is allowed must be what is written.
fn absolute(src: &Source<'_>, what: &str, s: &Str) -> Result<()> {
    let p = Path::new(s.get_ref());
    let plain = !s.get_ref().split('/').any(|c| c == "." || c == "..");
    if !p.is_absolute() || !plain || s.get_ref().contains(|c: char| c.is_control()) {
        return Err(src.at(
            s,
            format!(
                "{what}: {:?} is no absolute path without `.` and `..`; write a path from / on instead",
                s.get_ref()
            ),
        ));
    }
    Ok(())
}

fn when(src: &Source<'_>, what: &str, s: Option<&Str>) -> Result<OnSuspended> {
    let Some(s) = s else { return Ok(OnSuspended::Wait) };
    [OnSuspended::Wait, OnSuspended::Ask, OnSuspended::Mount]
        .into_iter()
        .find(|w| w.as_str() == s.get_ref())
        .ok_or_else(|| {
            src.at(s, format!("{what} = {:?} is not known; write \"wait\", \"ask\" or \"mount\" instead", s.get_ref()))
        })
}

impl LaunchConfig {
    /// As it stands in a site file; nothing when it allows nothing.
    pub fn to_toml(&self) -> String {
        if *self == LaunchConfig::default() { String::new() } else { render(self) }
    }
}

fn render(l: &LaunchConfig) -> String {
    let list = |v: &[String]| v.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(", ");
    let mounts: Vec<String> = l.mounts.iter().map(|m| m.display().to_string()).collect();
    format!(
        "\n[launch]\ncommands = [{}]\nusers = [{}]\nmounts = [{}]\nenv = [{}]\nfrom_volume = {}\ncover_non_empty = {}\non_lost_primary = {:?}\non_suspend = {:?}\nlost_primary_after_s = {}\n",
        list(&l.commands),
        list(&l.users),
        list(&mounts),
        list(&l.env),
        l.from_volume,
        l.cover_non_empty,
        l.on_lost_primary.as_str(),
        l.on_suspend.as_str(),
        l.lost_primary_after.as_secs()
    )
}

#[cfg(test)]
mod tests {
    use crate::node::config::*;
    use std::path::Path;

    fn load(launch: &str) -> Result<Config, String> {
        let d = tempfile::tempdir().unwrap();
        let p = d.path().join("site.toml");
        std::fs::write(&p, format!("[node]\nsite = \"a\"\n{launch}")).unwrap();
        Config::load(&p).map_err(|e| e.msg.replace(&p.display().to_string(), "FILE"))
    }

    #[test]
    fn cd9_without_a_launch_table_nothing_is_allowed() {
        let l = load("").unwrap().launch;
        assert_eq!(l, LaunchConfig::default());
        assert!(l.commands.is_empty() && l.users.is_empty() && l.mounts.is_empty() && !l.from_volume);
        assert_eq!((l.on_lost_primary, l.on_suspend), (OnSuspended::Wait, OnSuspended::Wait));
    }

    #[test]
    fn cd9_a_launch_table_is_read_and_printed_again() {
        let c = load(
            "[launch]\ncommands = [\"/usr/bin/postgres\", \"/opt/shop/bin/\"]\nusers = [\"postgres\"]\nmounts = [\"/DB/\"]\non_lost_primary = \"mount\"\non_suspend = \"ask\"\nlost_primary_after_s = 3\nfrom_volume = true\n",
        )
        .unwrap();
        assert_eq!(c.launch.mounts, [Path::new("/DB")]);
        assert_eq!((c.launch.on_lost_primary, c.launch.on_suspend), (OnSuspended::Mount, OnSuspended::Ask));
        let d = tempfile::tempdir().unwrap();
        let p = d.path().join("again.toml");
        std::fs::write(&p, c.to_toml()).unwrap();
        assert_eq!(Config::load(&p).unwrap().launch, c.launch);
    }

    #[test]
    fn cd9_mistakes_in_a_launch_table_have_their_line_and_remedy() {
        for (line, words) in [
            ("commands = [\"postgres\"]", "FILE:4: commands: \"postgres\" is no absolute path"),
            ("commands = [\"/usr/../bin/sh\"]", "without `.` and `..`"),
            ("mounts = [\"mnt\"]", "FILE:4: mounts: \"mnt\" is no absolute path"),
            ("on_suspend = \"yes\"", "write \"wait\", \"ask\" or \"mount\" instead"),
            ("on_lost_primary = true", "write on_lost_primary = \"wait\""),
            ("env = [\"A-B\"]", "env names variables"),
            ("lost_primary_after_s = 0", "write a number from 1 to 86400"),
            ("comands = []", "unknown key comands; write commands ="),
            ("users = \"postgres\"", "write users = [\"postgres\"] instead"),
        ] {
            let e = load(&format!("[launch]\n{line}\n")).unwrap_err();
            assert!(e.starts_with("FILE:4: "), "{e}");
            assert!(e.contains(words), "{line}: {e}");
        }
    }
}
