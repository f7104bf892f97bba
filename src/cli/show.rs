//! Commands that show something: status, takeover, verify, config check.

use super::args::StatusArgs;
use super::table::{self, Look};
use super::wait::Line;
use super::{Site, say, say_json};
use crate::base::{Error, Kind, Result};
use crate::node::config::Config;
use crate::node::config_check;
use crate::node::control::{self, Request};
use crate::node::status::{Progress, VerifyReport};
use serde_json::Value;
use std::io::IsTerminal;
use std::time::Duration;

/// A value as JSON or readable.
pub fn print(v: Value, json: bool) {
    if json { say_json(&v) } else { say(table::value(&v, 0)) }
}

/// `kagami status`.
pub fn status(site: &Site, a: &StatusArgs) -> Result<()> {
    if let Some(g) = &a.group {
        site.config.group(g)?;
    }
    if !a.watch {
        return status_once(site, a);
    }
    let pause = Duration::try_from_secs_f64(a.interval.max(0.05))
        .map_err(|_| Error::config(format!("--interval {}: write a number of seconds", a.interval)))?;
    let redraw = std::io::stdout().is_terminal() && !a.json;
    loop {
        if redraw {
            say("\x1b[H\x1b[2J");
        }
        // A node that is down may come back: that is what one watches for.
        match status_once(site, a) {
            Err(e) if a.json => say_json(&serde_json::json!({ "error": e.msg })),
            Err(e) => say(format!("{}\n", e.msg)),
            Ok(()) => {}
        }
        std::thread::sleep(pause);
    }
}

fn status_once(site: &Site, a: &StatusArgs) -> Result<()> {
    let mut v = site.call(&Request::Status {})?;
    let s = serde_json::from_value(v.clone());
    if a.json {
        if let (Some(name), Some(groups)) = (&a.group, v.get_mut("groups").and_then(Value::as_array_mut)) {
            groups.retain(|g| g.get("name").and_then(Value::as_str) == Some(name));
        }
        say_json(&v);
    } else {
        let s = s.as_ref().map_err(|e| Error::failed(format!("the node's status is not understood ({e})")))?;
        say(table::status(s, a.group.as_deref(), Look::of_stdout()));
    }
    match s {
        Ok(s) if a.check => degraded(&s),
        _ => Ok(()),
    }
}

fn degraded(s: &crate::node::status::Status) -> Result<()> {
    let mut why = Vec::new();
    for g in &s.groups {
        let pairs = g.pairs.iter().filter(|p| p.state == "PSUE");
        why.extend(pairs.map(|p| format!("pair {} of {} is in PSUE", p.name, g.name)));
        let legs = g.legs.iter().filter(|l| l.state == "faulty");
        why.extend(legs.map(|l| format!("leg {} of {} is faulty", l.leg, g.name)));
    }
    if why.is_empty() { Ok(()) } else { Err(Error::new(Kind::Degraded, why.join(", "))) }
}

/// Calls the node and shows its progress.
pub fn call_with_progress(site: &Site, req: &Request) -> Result<Value> {
    let line = Line::new();
    let r = control::call(&site.config.node.state_dir, req, |v| {
        let text = match serde_json::from_value::<Progress>(v.clone()) {
            Ok(p) => table::progress(&p),
            Err(_) => v.as_str().map_or_else(|| v.to_string(), str::to_owned),
        };
        let _ = line.set(&text);
    });
    r.map_err(|e| site.hint(e))
}

/// `kagami verify`. Exit code 5 when the report says that replicas differ.
pub fn verify(site: &Site, group: String, pair: Option<String>, repair: bool, json: bool) -> Result<()> {
    site.check_pair(&group, pair.as_deref())?;
    let v = call_with_progress(site, &Request::Verify { group, pair, repair })?;
    let report: VerifyReport = serde_json::from_value(v.clone())
        .map_err(|e| Error::failed(format!("the node's report is not understood ({e}); is it another version?")))?;
    let differ = report.pairs.iter().filter(|p| !p.differences.is_empty() && !p.repaired).count();
    let skipped = report.pairs.iter().filter(|p| p.not_compared.is_some()).count();
    print(v, json);
    match differ {
        0 if skipped > 0 => Err(Error::new(Kind::Degraded, format!("{skipped} pair(s) could not be compared"))),
        0 => Ok(()),
        n => Err(Error::new(Kind::Degraded, format!("{n} pair(s) differ; --repair makes the secondary equal"))),
    }
}

/// `kagami config check`.
pub fn config_check(c: &Config) -> Result<()> {
    let warnings = config_check::warnings(c);
    for w in &warnings {
        say(format!("warning: {w}\n"));
    }
    let n = warnings.len();
    let with = if n == 0 { String::new() } else { format!(", {n} warning(s)") };
    say(format!("{}: right{with}\n", c.path.display()));
    Ok(())
}
