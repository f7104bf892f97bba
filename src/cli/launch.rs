//! `kagami boot`, `app`, `define`, `adopt`.

use super::args::{AdoptArgs, AppCommand, BootArgs, DefineArgs, NodeArgs};
use super::table::Look;
use super::table_launch;
use super::wait::Line;
use super::{Site, say, say_json};
use crate::base::{At, Error, Kind, Result};
use crate::launch::define::{self, Definition};
use crate::launch::env;
use crate::launch::files::{Root, Roots};
use crate::launch::survey::Report;
use crate::node::config::Config;
use crate::node::control::{self, AppOrder, Request};
use crate::node::status::{AppStatus, GroupStatus, Status};
use crate::site::adopt::{Adoption, Wish};
use std::io::{BufRead, IsTerminal, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How much of an application's log is read to show its end, bytes.
const LOG_BYTES_MAX: u64 = 1 << 20;
/// How often `boot` looks while it waits.
const POLL: Duration = Duration::from_millis(500);

fn parse<T: serde::de::DeserializeOwned>(v: serde_json::Value) -> Result<T> {
    serde_json::from_value(v)
        .map_err(|e| Error::failed(format!("the node's answer is not understood ({e}); is it another version?")))
}

fn status(site: &Site) -> Result<Status> {
    parse(site.call(&Request::Status {})?)
}

/// `kagami boot`.
pub fn boot(site: &Site, a: &BootArgs) -> Result<()> {
    let groups: Vec<String> = match &a.group {
        Some(g) => vec![site.config.group(g)?.name.clone()],
        None => site.config.groups.iter().map(|g| g.name.clone()).collect(),
    };
    if !control::is_running(&site.config.node.state_dir) && !a.dry_run {
        super::node::run(site.config.clone(), &NodeArgs { detach: true, ..NodeArgs::default() })?;
    }
    settle(site)?;
    if a.now || a.yes {
        let Some(group) = &a.group else {
            return Err(Error::config("--now and --yes need the group: `kagami boot --now GROUP`"));
        };
        return now(site, group, a.json);
    }
    let mut shown: Vec<String> = Vec::new();
    loop {
        let reports = groups.iter().map(|g| look(site, g, a.dry_run)).collect::<Result<Vec<_>>>()?;
        let text: Vec<String> = reports.iter().map(|r| show(r, a.json)).collect();
        if text != shown {
            text.iter().for_each(say);
            shown = text;
        }
        if a.dry_run {
            return Ok(());
        }
        if reports.iter().all(|r| r.done) {
            return Ok(());
        }
        if a.once {
            let open: Vec<&str> = reports.iter().filter(|r| !r.done).map(|r| r.group.as_str()).collect();
            return Err(Error::new(Kind::Degraded, format!("not mounted and started: {}", open.join(", "))));
        }
        std::thread::sleep(POLL);
    }
}

/// Until every group knows what it is.
fn settle(site: &Site) -> Result<()> {
    while status(site)?.groups.iter().any(|g| g.role == "starting") {
        std::thread::sleep(POLL / 5);
    }
    Ok(())
}

/// CD-17: on demand.
pub fn now(site: &Site, group: &str, json: bool) -> Result<()> {
    site.config.group(group)?;
    let v = site.call(&Request::Boot { group: group.to_owned(), now: true, dry_run: false })?;
    say(show(&parse(v)?, json));
    Ok(())
}

/// Where a group stands. Where this site is its primary, this very command is the order to start its applications.
fn look(site: &Site, group: &str, dry_run: bool) -> Result<Report> {
    let ask = |now| parse::<Report>(site.call(&Request::Boot { group: group.to_owned(), now, dry_run })?);
    let r = ask(false)?;
    if r.role == "primary" && !r.done && !dry_run { ask(true) } else { Ok(r) }
}

fn show(r: &Report, json: bool) -> String {
    match json {
        true => serde_json::to_string(r).unwrap_or_default() + "\n",
        false => table_launch::plan(r, Look::of_stdout()),
    }
}

/// `kagami app`.
pub fn app(site: &Site, c: AppCommand) -> Result<()> {
    let give = |group: String, app: Option<String>, order, done: &str| -> Result<()> {
        site.config.group(&group)?;
        let what = app.clone().unwrap_or_else(|| format!("every application of {group}"));
        site.call(&Request::App { group, app, order })?;
        say(format!("{what}: {done}; `kagami status` shows how it goes\n"));
        Ok(())
    };
    match c {
        AppCommand::List { group, json } => list(site, group.as_deref(), json),
        AppCommand::Start { group, app } => give(group, app, AppOrder::Start, "is being started"),
        AppCommand::Stop { group, app } => give(group, app, AppOrder::Stop, "is being stopped"),
        AppCommand::Restart { group, app } => give(group, app, AppOrder::Restart, "is being started again"),
        AppCommand::Log { group, app, lines } => log(site, &group, &app, lines),
    }
}

fn list(site: &Site, group: Option<&str>, json: bool) -> Result<()> {
    if let Some(g) = group {
        site.config.group(g)?;
    }
    let s = status(site)?;
    let groups: Vec<&GroupStatus> = s.groups.iter().filter(|g| group.is_none_or(|n| n == g.name)).collect();
    if json {
        let all: Vec<_> = groups.iter().map(|g| serde_json::json!({ "group": g.name, "apps": g.apps })).collect();
        say_json(&serde_json::Value::Array(all));
        return Ok(());
    }
    for g in groups {
        match g.apps.is_empty() {
            true => say(format!("group {}: no application was started here\n", g.name)),
            false => say(format!("group {}\n{}", g.name, table_launch::apps(&g.apps, Look::of_stdout()))),
        }
    }
    Ok(())
}

fn log(site: &Site, group: &str, app: &str, lines: usize) -> Result<()> {
    site.config.group(group)?;
    let s = status(site)?;
    let apps: Vec<&AppStatus> = s.groups.iter().filter(|g| g.name == group).flat_map(|g| &g.apps).collect();
    let Some(found) = apps.iter().find(|a| a.name == app) else {
        let known: Vec<&str> = apps.iter().map(|a| a.name.as_str()).collect();
        let known =
            if known.is_empty() { "none was started here".into() } else { format!("it has {}", known.join(", ")) };
        return Err(Error::config(format!("no application {app:?} in group {group}: {known}")));
    };
    let read = || -> std::io::Result<Vec<u8>> {
        let mut f = std::fs::File::open(&found.log)?;
        let len = f.metadata()?.len();
        f.seek(SeekFrom::Start(len.saturating_sub(LOG_BYTES_MAX)))?;
        let mut b = Vec::new();
        f.take(LOG_BYTES_MAX).read_to_end(&mut b)?;
        Ok(b)
    };
    let text = String::from_utf8_lossy(&read().at(found.log.display())?).into_owned();
    let all: Vec<&str> = text.lines().collect();
    let last = all.get(all.len().saturating_sub(lines)..).unwrap_or_default();
    last.iter().for_each(|l| say(format!("{l}\n")));
    Ok(())
}

/// `kagami define` (CD-11).
pub fn define(site: &Site, a: &DefineArgs) -> Result<()> {
    site.config.group(&a.group)?;
    let s = status(site)?;
    let g = s.groups.iter().find(|g| g.name == a.group);
    let mounts: Vec<Root> = g
        .iter()
        .flat_map(|g| &g.mounts)
        .map(|m| Root { volume: m.volume.clone(), mount: m.dir.clone(), dir: m.dir.clone() })
        .collect();
    let Some(lead) = mounts.first().map(|r| r.mount.clone()) else {
        return Err(Error::refused(format!("group {} is not mounted here; give this at its primary", a.group)));
    };
    let mut list = Vec::new();
    for (key, file, at, name) in [
        (env::DBMS, &a.dbms, &a.dbms_at, env::DBMS_FILE),
        (env::APPLICATION, &a.application, &a.application_at, env::APPLICATION_FILE),
    ] {
        let Some(from) = file else { continue };
        let text = std::fs::read(from).at(from.display())?;
        let at = lead.join(at.as_deref().unwrap_or(Path::new(name)));
        list.push(Definition { key, at, from: from.clone(), text });
    }
    if list.is_empty() {
        return Err(Error::config("give --dbms FILE, --application FILE or both"));
    }
    for p in define::define(&Roots(mounts), &site.config.group(&a.group)?.env_file, &list, &site.config.launch.env)? {
        say(format!("wrote {}\n", p.display()));
    }
    Ok(())
}

/// `kagami adopt`. `given`: the site file of `--config` or `$KAGAMI_CONFIG`, if there is one.
pub fn adopt(given: Option<PathBuf>, a: &AdoptArgs) -> Result<()> {
    let config = given.map(|p| Config::load(&p)).transpose()?;
    let wish = Wish {
        regions: &a.regions,
        config: config.as_ref(),
        site: a.site.as_deref(),
        state_dir: a.state_dir.as_deref(),
    };
    let adoption = Adoption::new(&wish)?;
    let plan = adoption.plan();
    if !a.json || a.dry_run {
        say(show(&plan, a.json));
    }
    if !plan.problems.is_empty() {
        let problems = plan.problems.len();
        return Err(Error::refused(format!("nothing was changed: {problems} thing(s) stand in the way, see above")));
    }
    if a.dry_run {
        return Ok(());
    }
    if !a.yes && !agreed(&adoption.group)? {
        return Err(Error::refused("nothing was changed"));
    }
    let line = Line::new();
    let done = adoption.carry_out(&|s| drop(line.set(s)))?;
    drop(line);
    say(show(&done, a.json));
    if !a.json {
        say(format!("its node is that of {}\n", adoption.site_file.display()));
    }
    Ok(())
}

fn agreed(group: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(Error::refused("nothing was changed: give --yes to do what is shown above"));
    }
    say(format!("Take group {group} over here, as shown? [y/N] "));
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
