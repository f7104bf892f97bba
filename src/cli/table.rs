//! How `kagami status` looks: 80 columns by default, colours only on a terminal.

use crate::node::loss::{LossEvent, LossObject};
use crate::node::mounter;
use crate::node::status::{
    ArbiterStatus, DoubtStatus, GroupStatus, Lag, MountStatus, PairStatus, Progress, QueueStatus, ResyncStats, Status,
};
use crate::site::text::{bytes, count, plural, seconds};
use std::fmt::Write;

/// How to draw.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Columns to keep within.
    pub width: usize,
    /// Use colours.
    pub colour: bool,
}

impl Look {
    /// For standard output: colours on a terminal unless `$NO_COLOR` is set, its width if known.
    pub fn of_stdout() -> Look {
        use std::io::IsTerminal;
        let tty = std::io::stdout().is_terminal();
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        let columns = std::env::var("COLUMNS").ok().and_then(|c| c.parse::<usize>().ok());
        let width = if tty { columns.unwrap_or(80) } else { 80 };
        Look { width: width.clamp(40, 160), colour: tty && !no_colour && !dumb }
    }

    /// Text in a colour, where colours are wanted.
    pub fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Breaks `text` into lines of at most `width` columns at spaces; every line gets `indent` spaces in front.
pub fn wrap(text: &str, indent: usize, width: usize) -> String {
    let room = width.saturating_sub(indent).max(20);
    let mut out = String::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split(' ') {
            if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > room {
                let _ = writeln!(out, "{:indent$}{line}", "");
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line += word;
        }
        let _ = writeln!(out, "{:indent$}{line}", "");
    }
    out
}

/// At most `max` columns, the end cut off with `…`.
fn clip(text: &str, max: usize) -> String {
    match text.chars().count() > max {
        true => text.chars().take(max.saturating_sub(1)).chain(['…']).collect(),
        false => text.to_owned(),
    }
}

/// A whole node (or one of its groups).
pub fn status(s: &Status, group: Option<&str>, look: Look) -> String {
    let mut o = String::new();
    let cut = if s.cut { "   links cut" } else { "" };
    let _ = writeln!(o, "site {}   pid {}{cut}", look.paint("1", &s.site), s.pid);
    let metrics = s.metrics.iter().filter(|m| m.starts_with("not ")).map(|m| format!("metrics are {m}"));
    let events = s.events.failing.iter().map(|why| format!("events cannot be written: {why}"));
    for r in metrics.chain(events) {
        o += &look.paint("33", wrap(&r, 2, look.width).trim_end_matches('\n'));
        o.push('\n');
    }
    let groups: Vec<&GroupStatus> = s.groups.iter().filter(|g| group.is_none_or(|n| n == g.name)).collect();
    if groups.is_empty() {
        let _ = writeln!(o, "no groups: the site file has no [[group]]");
    }
    for g in groups {
        o += "\n";
        o += &one_group(g, look);
    }
    o
}

/// Who has the votes, and what would happen without the primary.
fn votes(a: &ArbiterStatus, look: Look) -> String {
    let mut o = format!("takeover auto, arbiter {}, detection {} s; ", a.arbiter, a.detect_s);
    o += &match &a.owner {
        Some(s) if a.owner_for_s > 0.0 => format!("voted for site {s}, {:.1} s left", a.owner_for_s),
        Some(s) => format!("voted for site {s} last"),
        None => "voted for nobody here".into(),
    };
    let mut o = wrap(&o, 2, look.width);
    let silent = a.voters.iter().filter_map(|v| Some(format!("{}: {}", v.name, v.said.as_ref()?)));
    silent.chain((!a.takeover.is_empty()).then(|| a.takeover.clone())).for_each(|w| o += &wrap(&w, 4, look.width));
    o
}

fn one_group(g: &GroupStatus, look: Look) -> String {
    let mut o = format!(
        "group {}   {}   epoch {}   position {}\n",
        look.paint("1", &g.name),
        look.paint(if g.role == "primary" { "1;36" } else { "36" }, &g.role),
        g.epoch,
        count(g.position)
    );
    let mut facts = format!("fence {}", g.fence);
    if !g.protection.is_empty() {
        facts += &format!(", protection {}", g.protection);
    }
    o += &wrap(&facts, 2, look.width);
    match (&g.mount, g.mounts.as_slice()) {
        (_, [one]) => o += &format!("  mounted at {}{}\n", one.dir.display(), how(one)),
        (_, many) if many.len() > 1 => {
            for m in many {
                o += &format!("  {} mounted at {}{}\n", m.volume, m.dir.display(), how(m));
            }
        }
        (Some(m), _) => o += &format!("  mounted at {}\n", m.display()),
        (None, _) => o += "  not mounted\n",
    }
    if let Some(a) = &g.arbiter {
        o += &votes(a, look);
    }
    let under_way = g.procedure.as_ref().map(|p| format!("a {} is under way, ordered here: {}", p.name, p.step));
    for r in under_way.iter().chain(&g.reason).chain(&g.boot) {
        o += &look.paint("33", wrap(r, 2, look.width).trim_end_matches('\n'));
        o.push('\n');
    }
    if let Some(l) = &g.lost {
        let what = match l.objects {
            0 => format!("a loss is noted ({})", plural(l.events, "event")),
            n => format!("{} kept, {}", plural(n, "losing version"), bytes(l.bytes)),
        };
        o += &look.paint("33", &format!("  {what} (kagami loss list)"));
        o.push('\n');
    }
    if let Some(d) = &g.in_doubt {
        o += &doubts(d, look);
    }
    if g.kept_beside > 0 {
        let n = count(g.kept_beside);
        let text = format!(
            "{n} objects have an owner, mode, device or attribute that this node may not set: kept beside, and told to the other sites"
        );
        o += &wrap(&text, 2, look.width);
    }
    let all_well = g.legs.iter().all(|l| l.state == "synchronised");
    for l in g.legs.iter().filter(|_| g.legs.len() > 1 || !all_well) {
        let why = l.reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default();
        let line = wrap(&format!("leg {} {}{why}", l.leg, l.state), 2, look.width);
        o += &look.paint(if l.state == "synchronised" { "0" } else { "31" }, line.trim_end_matches('\n'));
        o.push('\n');
    }
    if g.pairs.is_empty() {
        o += "  no pairs\n";
        return o + &applications(g, look);
    }
    o += &wrap(&queued(&g.queue, g.role == "primary"), 2, look.width);
    let wide = |f: fn(&PairStatus) -> &str, least: usize| {
        g.pairs.iter().map(|p| f(p).chars().count()).max().unwrap_or(0).clamp(least, 16)
    };
    let (name, peer) = (wide(|p| &p.name, 4), wide(|p| &p.peer, 4) + 3);
    let _ = writeln!(o, "\n  {}", look.paint("2", &format!("{:name$}  MODE   {:peer$}  STATE  LAG", "PAIR", "PEER")));
    for p in &g.pairs {
        o += &pair(p, name, peer, look);
    }
    o + &applications(g, look)
}

/// Entries in doubt that are shown; `--json` has more.
const DOUBTS_SHOWN: usize = 10;

fn doubts(d: &DoubtStatus, look: Look) -> String {
    let text = format!(
        "in doubt: the fence refused {}; {} of theirs may be at the sync site, until it is in PAIR again",
        plural(d.refused, "request"),
        plural(d.count, "entry")
    );
    let mut o = look.paint("33", wrap(&text, 2, look.width).trim_end_matches('\n'));
    o.push('\n');
    for e in d.entries.iter().take(DOUBTS_SHOWN) {
        let undone = if e.undone { "undone here" } else { "not undone here" };
        o += &wrap(&format!("{} {}: {} ({}, {undone})", e.position, e.path, e.what, e.volume), 4, look.width);
    }
    let rest = d.count.saturating_sub(DOUBTS_SHOWN as u64);
    if rest > 0 {
        o += &format!("    and {}\n", plural(rest, "more entry"));
    }
    o
}

fn applications(g: &GroupStatus, look: Look) -> String {
    if g.apps.is_empty() { String::new() } else { format!("\n{}", super::table_launch::apps(&g.apps, look)) }
}

/// What is worth a word about a mount.
fn how(m: &MountStatus) -> String {
    let options = if m.options.is_empty() { String::new() } else { format!(" ({})", mounter::words(&m.options)) };
    let gone = if m.attached { "" } else { ", its mount point was taken away: it ends when its last file is closed" };
    format!("{options}{gone}")
}

fn pair(p: &PairStatus, name: usize, peer: usize, look: Look) -> String {
    let arrow = match p.direction.as_str() {
        "out" => "→",
        "in" => "←",
        _ => "-",
    };
    let colour = match p.state.as_str() {
        "PAIR" => "32",
        "PSUE" => "1;31",
        "SMPL" => "2",
        _ => "33",
    };
    let mut o = format!(
        "  {:name$}  {:5}  {:peer$}  {}  {}\n",
        clip(&p.name, name),
        p.mode,
        clip(&format!("{arrow} {}", p.peer), peer),
        look.paint(colour, &format!("{:5}", p.state)),
        lag(&p.lag)
    );
    let indent = 4 + name;
    if let Some(g) = &p.progress {
        o += &wrap(&progress(g), indent, look.width);
    }
    if let Some(r) = &p.reason {
        o += &wrap(r, indent, look.width);
    }
    if let Some(r) = &p.last_resync {
        o += &look.paint("2", wrap(&resync(r), indent, look.width).trim_end_matches('\n'));
        o.push('\n');
    }
    o
}

/// What waits for peers, or was received, of what it may be.
fn queued(q: &QueueStatus, primary: bool) -> String {
    let of = |n: u64, most: u64| format!("{} of {}", bytes(n), bytes(most));
    match primary {
        true => format!(
            "queue {} in memory, {} in the spool",
            of(q.memory_bytes, q.memory_limit_bytes),
            of(q.spool_bytes, q.spool_limit_bytes)
        ),
        false => format!("entry log {}", of(q.log_bytes, q.log_limit_bytes)),
    }
}

/// `none`, or entries, bytes and age.
pub fn lag(l: &Lag) -> String {
    if l.is_zero() {
        return match l.seconds {
            s if s > 0.0 => format!("none known, nothing heard for {}", seconds(s)),
            _ => "none".into(),
        };
    }
    format!("{}, {}, {}", plural(l.entries, "entry"), bytes(l.bytes), seconds(l.seconds))
}

/// What a copy is doing, with rate and estimated time.
pub fn progress(g: &Progress) -> String {
    let mut o = g.phase.clone();
    let whole = if g.total_bytes > 0 { (g.done_bytes, g.total_bytes) } else { (g.done_files, g.total_files) };
    if whole.1 > 0 {
        let done = (whole.0.min(whole.1) as f64) / whole.1 as f64;
        let filled = (done * 20.0) as usize;
        o += &format!(" [{}{}] {:.0} %", "#".repeat(filled), ".".repeat(20 - filled), (done * 100.0).floor());
    }
    if g.total_bytes > 0 {
        o += &format!("  {} of {}", bytes(g.done_bytes), bytes(g.total_bytes));
    }
    if g.total_files > 0 {
        o += &format!("  {} of {}", count(g.done_files), plural(g.total_files, "file"));
    }
    if g.rate_bytes_s > 0.0 {
        o += &format!("  {}/s", bytes(g.rate_bytes_s as u64));
    }
    if let Some(eta) = g.eta_s {
        o += &format!("  ETA {}", seconds(eta));
    }
    o
}

/// What the last resync cost.
pub fn resync(r: &ResyncStats) -> String {
    let kept = match r.kept {
        0 => String::new(),
        n => format!("; {} went to the manifest there (kagami loss list)", plural(n, "losing version")),
    };
    format!(
        "last resync: {} examined, {} copied, {}, {}, {}{kept}",
        plural(r.files_examined, "file"),
        count(r.files_copied),
        bytes(r.bytes_copied),
        plural(r.renames, "rename"),
        seconds(r.seconds)
    )
}

/// The events of losing versions.
pub fn loss_events(events: &[LossEvent]) -> String {
    if events.is_empty() {
        return "no losing versions are kept here\n".into();
    }
    let mut o = format!("{:8}  {:19}  {:13}  {:>7}  {:>10}  GROUP\n", "EVENT", "WHEN (UTC)", "WHY", "OBJECTS", "KEPT");
    for e in events {
        let id = e.id.get(..8).unwrap_or(&e.id);
        let _ = writeln!(
            o,
            "{id}  {:19}  {:13}  {:>7}  {:>10}  {}",
            e.time,
            e.cause,
            count(e.objects),
            bytes(e.bytes),
            e.group
        );
        o += &wrap(&e.words, 10, 80);
    }
    o
}

/// One event with its objects.
pub fn loss_event(e: &LossEvent, objects: &[LossObject]) -> String {
    let mut o = loss_events(std::slice::from_ref(e));
    if objects.is_empty() {
        o += "no object is known\n";
        return o;
    }
    let _ = writeln!(o, "\n{:>10}  {:20}  PATH", "SIZE", "LOST");
    for l in objects {
        let size = if l.kept.is_some() { bytes(l.size) } else { "-".into() };
        let now = l.now.as_ref().map(|n| format!("   (now {})", n.0.display())).unwrap_or_default();
        let path = if l.path.0.as_os_str().is_empty() { ".".into() } else { l.path.0.display().to_string() };
        let _ = writeln!(o, "{size:>10}  {:20}  {path}{now}", l.what.join(","));
    }
    o
}

/// Any JSON value, readable: objects as `key: value`, lists of equal objects as a table.
pub fn value(v: &serde_json::Value, indent: usize) -> String {
    use serde_json::Value;
    let pad = " ".repeat(indent);
    let plain = |v: &Value| match v {
        Value::String(s) => s.clone(),
        Value::Null => "-".into(),
        Value::Number(n) => n.as_u64().map_or_else(|| n.to_string(), count),
        v => v.to_string(),
    };
    match v {
        Value::Object(o) => o
            .iter()
            .map(|(k, v)| {
                let k = k.replace('_', " ");
                match v {
                    Value::Object(m) if !m.is_empty() => format!("{pad}{k}:\n{}", value(v, indent + 2)),
                    Value::Array(a) if !a.is_empty() => format!("{pad}{k}:\n{}", value(v, indent + 2)),
                    Value::Array(_) | Value::Object(_) => format!("{pad}{k}: none\n"),
                    v => format!("{pad}{k}: {}\n", plain(v)),
                }
            })
            .collect(),
        Value::Array(a) => {
            let rows: Option<Vec<&serde_json::Map<String, Value>>> = a.iter().map(Value::as_object).collect();
            match rows.filter(|r| r.iter().all(|o| o.values().all(|v| !v.is_object() && !v.is_array()))) {
                Some(rows) => columns(&rows, &pad, &plain),
                None => a.iter().map(|v| value(v, indent)).collect::<Vec<_>>().join(""),
            }
        }
        v => format!("{pad}{}\n", plain(v)),
    }
}

fn columns(
    rows: &[&serde_json::Map<String, serde_json::Value>],
    pad: &str,
    plain: &dyn Fn(&serde_json::Value) -> String,
) -> String {
    let mut keys: Vec<&String> = Vec::new();
    for k in rows.iter().flat_map(|r| r.keys()) {
        if !keys.contains(&k) {
            keys.push(k);
        }
    }
    // What a row is about comes first.
    keys.sort_by_key(|k| !matches!(k.as_str(), "site" | "name" | "pair" | "path" | "seq"));
    let mut lines = vec![keys.iter().map(|k| k.to_uppercase().replace('_', " ")).collect::<Vec<_>>()];
    lines.extend(rows.iter().map(|r| keys.iter().map(|k| r.get(*k).map_or("-".into(), plain)).collect::<Vec<_>>()));
    let widths: Vec<usize> = (0..keys.len())
        .map(|i| lines.iter().filter_map(|l| l.get(i)).map(|c| c.chars().count()).max().unwrap_or(0))
        .collect();
    let mut o = String::new();
    for l in lines {
        let cells: Vec<String> = l.iter().zip(&widths).map(|(c, w)| format!("{c:w$}")).collect();
        let _ = writeln!(o, "{pad}{}", cells.join("  ").trim_end());
    }
    o
}
