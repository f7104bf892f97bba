//! `kagami events`: the log of a node, for people and programs.

use super::Site;
use crate::base::{Error, Result, time};
use crate::node::events::{Event, Tail, What};
use crate::node::status::ResyncStats;
use std::io::Write;
use std::time::{Duration, SystemTime};

/// How often the log is looked at while it is followed.
const POLL: Duration = Duration::from_millis(100);

/// Shows the events of a group (`None`: all) since a time, and with `follow` those that come.
pub fn events(site: &Site, group: Option<&str>, since: Option<&str>, follow: bool, json: bool) -> Result<()> {
    if let Some(g) = group {
        site.config.group(g)?;
    }
    let since = since.map(begin).transpose()?.unwrap_or_default();
    let wanted = |e: &&Event| e.time >= since && group.is_none_or(|g| e.group.as_deref().is_none_or(|x| x == g));
    let (all, mut tail) = Tail::open(&site.config.node.state_dir);
    let mut read = show(all.iter().filter(wanted), json)?;
    loop {
        if !follow || !read {
            return Ok(());
        }
        std::thread::sleep(POLL);
        read = show(tail.read().iter().filter(wanted), json)?;
    }
}

/// The text of a time from which on events are wanted. They are compared as texts, so a part of one will do.
fn begin(text: &str) -> Result<String> {
    // A bare number could be a year.
    let with_unit = text.ends_with(|c: char| c.is_ascii_alphabetic());
    if let Some(span) = time::duration(text).filter(|_| with_unit) {
        let then = SystemTime::now().checked_sub(span).unwrap_or(SystemTime::UNIX_EPOCH);
        return Ok(time::iso(then.into()));
    }
    let like = |c: char, p: char| if p == '0' { c.is_ascii_digit() } else { c == p };
    let t = text.replace(' ', "T");
    let known = t.chars().zip("0000-00-00T00:00:00.000Z".chars()).all(|(c, p)| like(c, p));
    match known && (10..=24).contains(&t.len()) {
        true => Ok(t),
        false => Err(Error::config(format!(
            "--since {text}: write a span as in 10m or 2h, or a time in UTC as in 2026-11-21T10:00"
        ))),
    }
}

/// False when nobody reads any more.
fn show<'a>(events: impl Iterator<Item = &'a Event>, json: bool) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    for e in events {
        let text = if json { serde_json::to_string(e).map_err(|e| Error::failed(e.to_string()))? } else { line(e) };
        if writeln!(out, "{text}").is_err() {
            return Ok(false);
        }
    }
    Ok(out.flush().is_ok())
}

/// One event on one line.
fn line(e: &Event) -> String {
    let time = e.time.replace('T', " ");
    let time = time.get(..19).unwrap_or(&time);
    let parts = [&e.group, &e.pair, &e.subject].into_iter().flatten().map(String::as_str);
    let about = parts.collect::<Vec<_>>().join("/");
    let mut o = format!("{time}  {:10}  {}", name(e.kind), if about.is_empty() { &e.site } else { &about });
    match (&e.from, &e.to) {
        (Some(a), Some(b)) => o += &format!("  {a} -> {b}"),
        (Some(x), None) | (None, Some(x)) => o += &format!("  {x}"),
        (None, None) => {}
    }
    o += &e.fault.as_ref().map(|f| format!("  {f}")).unwrap_or_default();
    o += &e.position.map(|p| format!("  at {p}")).unwrap_or_default();
    o += &e.reason.as_ref().map(|r| format!("  ({})", r.replace('\n', " "))).unwrap_or_default();
    o + &e.stats.as_ref().map(cost).unwrap_or_default()
}

fn cost(s: &ResyncStats) -> String {
    format!("  {} files, {} bytes, {} renames in {:.1} s", s.files_copied, s.bytes_copied, s.renames, s.seconds)
}

/// As in JSON.
fn name(w: What) -> String {
    serde_json::to_value(w).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_span_or_a_part_of_a_time() {
        assert_eq!(begin("2026-11-21 10:00").unwrap(), "2026-11-21T10:00");
        assert!(begin("0s").unwrap() > begin("1h").unwrap());
        for wrong in ["yesterday", "2026", "2026-11-21T10:00:00.000Zulu", "21.11.2026"] {
            assert!(begin(wrong).unwrap_err().msg.contains("--since"), "{wrong}");
        }
    }

    #[test]
    fn an_event_is_a_line() {
        let e = Event {
            time: "2026-11-21T10:00:00.000Z".into(),
            pair: Some("sync".into()),
            from: Some("PAIR".into()),
            to: Some("PSUE".into()),
            fault: Some("link-lost".into()),
            reason: Some("the link\nbroke".into()),
            position: Some(7),
            ..Event::of(What::Pair, "lab")
        };
        assert_eq!(
            line(&e),
            "2026-11-21 10:00:00  pair        lab/sync  PAIR -> PSUE  link-lost  at 7  (the link broke)"
        );
    }
}
