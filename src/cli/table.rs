//! How `kagami status` looks: 80 columns by default, colours only on a terminal.

use crate::node::status::{GroupStatus, Lag, PairStatus, Progress, ResyncStats, Status};
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

    fn paint(self, code: &str, text: &str) -> String {
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
        (_, many) if many.len() > 1 => {
            for m in many {
                o += &format!("  {} mounted at {}\n", m.volume, m.dir.display());
            }
        }
        (Some(m), _) => o += &format!("  mounted at {}\n", m.display()),
        (None, _) => o += "  not mounted\n",
    }
    if let Some(r) = &g.reason {
        o += &look.paint("33", wrap(r, 2, look.width).trim_end_matches('\n'));
        o.push('\n');
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
        return o;
    }
    let wide = |f: fn(&PairStatus) -> &str, least: usize| {
        g.pairs.iter().map(|p| f(p).chars().count()).max().unwrap_or(0).clamp(least, 16)
    };
    let (name, peer) = (wide(|p| &p.name, 4), wide(|p| &p.peer, 4) + 3);
    let _ = writeln!(o, "\n  {}", look.paint("2", &format!("{:name$}  MODE   {:peer$}  STATE  LAG", "PAIR", "PEER")));
    for p in &g.pairs {
        o += &pair(p, name, peer, look);
    }
    o
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

/// `none`, or entries, bytes and age.
pub fn lag(l: &Lag) -> String {
    if l.is_zero() {
        return "none".into();
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
    format!(
        "last resync: {} examined, {} copied, {}, {}, {}",
        plural(r.files_examined, "file"),
        count(r.files_copied),
        bytes(r.bytes_copied),
        plural(r.renames, "rename"),
        seconds(r.seconds)
    )
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
