//! How applications, and the plan of what would be mounted and started, look.

use super::table::{Look, wrap};
use crate::base::time;
use crate::launch::survey::Report;
use crate::node::status::AppStatus;
use crate::site::text::{bytes, seconds};
use std::fmt::Write;

/// The applications of a group.
pub fn apps(all: &[AppStatus], look: Look) -> String {
    let name = all.iter().map(|a| a.name.chars().count()).max().unwrap_or(0).clamp(11, 24);
    let mut o = format!(
        "  {}\n",
        look.paint("2", &format!("{:name$}  STATE          PID      RESTARTS  SINCE", "APPLICATION"))
    );
    let now = time::now().sec;
    for a in all {
        let colour = match a.state.as_str() {
            "ready" => "32",
            "failed" | "crash-looping" => "1;31",
            "stopped" => "2",
            _ => "33",
        };
        let pid = a.pid.map_or_else(|| "-".into(), |p| p.to_string());
        let age = seconds(now.saturating_sub(i64::try_from(a.since).unwrap_or(i64::MAX)).max(0) as f64);
        let _ = writeln!(
            o,
            "  {:name$}  {}  {pid:7}  {:8}  {age} ago",
            a.name,
            look.paint(colour, &format!("{:13}", a.state)),
            a.restarts
        );
        if let Some(r) = &a.reason {
            o += &wrap(r, 4 + name, look.width);
        }
    }
    o
}

/// What would be mounted and started, in order, and what stands in the way.
pub fn plan(r: &Report, look: Look) -> String {
    let mut o = format!("group {}   {}\n", look.paint("1", &r.group), r.role);
    o += &wrap(&r.what, 2, look.width);
    for v in &r.volumes {
        let at = v.mount.as_deref().unwrap_or("nowhere");
        let verb = if v.mounted { "mounted at" } else { "to be mounted at" };
        let size = if v.capacity == 0 { "capacity of its disk".into() } else { bytes(v.capacity) };
        let emulation = if v.emulation.is_empty() { "no config definition" } else { &v.emulation };
        let _ = writeln!(o, "  {} = ({}, {}) {verb} {at}", v.device, v.port, v.lu);
        o += &wrap(&format!("{size}, {emulation}, in {}", v.region.display()), 4, look.width);
    }
    match r.env_files.as_slice() {
        [] => o += "  no environment file\n",
        files => o += &wrap(&format!("environment from {}", files.join(", ")), 2, look.width),
    }
    for (k, v) in &r.variables {
        o += &wrap(&format!("{k}={v}"), 4, look.width);
    }
    if r.apps.is_empty() {
        o += "  no applications\n";
    }
    for (i, a) in r.apps.iter().enumerate() {
        let user = a.user.as_ref().map(|u| format!(" as {u}")).unwrap_or_default();
        o += &wrap(&format!("{}. {}{user}: {}", i + 1, a.name, a.command.join(" ")), 2, look.width);
        o += &wrap(&format!("in {}, defined at {}", a.dir, a.source), 5, look.width);
    }
    if !r.problems.is_empty() {
        let _ = writeln!(o, "  {}", look.paint("31", "what stands in the way:"));
    }
    for p in r.problems.iter().flat_map(|p| p.lines()) {
        o += &wrap(&format!("- {p}"), 4, look.width);
    }
    o
}
