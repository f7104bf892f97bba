//! The metrics of a node in Prometheus' text format 0.0.4: one table says what there is, and `docs/METRICS.md` is its text.

use super::health;
use super::status::{AppStatus, GroupStatus, LegStatus, PairStatus, Progress, Status, VolumeStatus};
use std::fmt::Write;

/// Content-Type of [`exposition`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The states of a pair as they are shown.
const PAIR_STATES: &[&str] = &["SMPL", "COPY", "PAIR", "PSUS", "PSUE", "SUSPENDING"];
const ROLES: &[&str] = &["starting", "primary", "secondary", "down"];
const LEG_STATES: &[&str] = &["synchronised", "copying", "faulty"];
const APP_STATES: &[&str] =
    &["waiting", "starting", "ready", "stopping", "stopped", "backing-off", "crash-looping", "failed"];

/// Values of one thing, each with a further label if there are several.
type Values = Vec<(Option<(&'static str, String)>, f64)>;

/// A metric of a sort of thing.
struct Metric<T> {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    of: fn(&T) -> Values,
}

const fn gauge<T>(name: &'static str, help: &'static str, of: fn(&T) -> Values) -> Metric<T> {
    Metric { name, kind: "gauge", help, of }
}

const fn counter<T>(name: &'static str, help: &'static str, of: fn(&T) -> Values) -> Metric<T> {
    Metric { name, kind: "counter", help, of }
}

fn one(v: impl Into<f64>) -> Values {
    vec![(None, v.into())]
}

fn count(v: u64) -> Values {
    one(v as f64)
}

/// Nothing at all while it is not known.
fn maybe(v: Option<f64>) -> Values {
    v.map_or_else(Vec::new, one)
}

fn flag(v: bool) -> Values {
    one(u8::from(v))
}

/// 1 for the present one, 0 for each other one.
fn hot(label: &'static str, all: &[&str], now: &str) -> Values {
    all.iter().map(|s| (Some((label, (*s).to_owned())), f64::from(u8::from(*s == now)))).collect()
}

fn label(label: &'static str, value: &str) -> Values {
    vec![(Some((label, value.to_owned())), 1.0)]
}

fn copying<T: Into<f64>>(p: &PairStatus, of: impl Fn(&Progress) -> Option<T>) -> Values {
    let p = p.progress.as_ref().filter(|_| p.state == "COPY");
    maybe(p.and_then(of).map(Into::into))
}

const NODE: &[Metric<Status>] = &[
    gauge("kagami_node_info", "The node's version; always 1.", |_| label("version", env!("CARGO_PKG_VERSION"))),
    gauge("kagami_node_start_timestamp_seconds", "When the node's process was started.", |s| one(s.started)),
    gauge("kagami_node_healthy", "1 when /healthz says yes.", |s| flag(health::healthz(s).yes)),
    gauge("kagami_node_links_cut", "1 while the links of the node are cut by order (test bed).", |s| flag(s.cut)),
    counter("kagami_events_total", "Events since the node was started.", |s| count(s.events.reported)),
    counter("kagami_events_dropped_total", "Events that were dropped because they could not be written.", |s| {
        count(s.events.dropped)
    }),
    gauge("kagami_events_failing", "1 while events cannot be written.", |s| flag(s.events.failing.is_some())),
];

const GROUP: &[Metric<GroupStatus>] = &[
    gauge("kagami_group_role", "1 for the role of the group here, 0 for the others.", |g| hot("role", ROLES, &g.role)),
    gauge("kagami_group_epoch", "Number of the epoch.", |g| count(g.epoch)),
    gauge("kagami_group_position_entries", "Sequence number of the last entry issued or applied here.", |g| {
        count(g.position)
    }),
    gauge("kagami_group_writable", "1 when /primary says yes.", |g| flag(health::primary(g).yes)),
    gauge("kagami_group_consistent", "1 when the replica here is at a point of the order.", |g| flag(g.consistent)),
    gauge(
        "kagami_group_faults",
        "What is broken here, or waits for somebody, count.",
        |g| count(g.faults.len() as u64),
    ),
    gauge(
        "kagami_group_lease_owner",
        "1 for the site that this site's voter voted for last (automatic takeover).",
        |g| g.arbiter.as_ref().and_then(|a| a.owner.as_deref()).map_or_else(Vec::new, |o| label("owner", o)),
    ),
    gauge("kagami_group_lease_seconds", "How long that vote is still promised.", |g| {
        maybe(g.arbiter.as_ref().filter(|a| a.owner.is_some()).map(|a| a.owner_for_s))
    }),
    gauge("kagami_group_majority_seconds", "At a primary: how long two voters still support it.", |g| {
        maybe(g.arbiter.as_ref().filter(|_| g.role == "primary").map(|a| a.majority_for_s))
    }),
    gauge("kagami_group_mounts", "Mounted volumes, count.", |g| count(g.mounts.len() as u64)),
    gauge("kagami_group_kept_beside_objects", "Objects of which this node may not set everything, count.", |g| {
        count(g.kept_beside)
    }),
    gauge("kagami_group_in_doubt_entries", "Entries that the fence refused and the sync site may have.", |g| {
        count(g.in_doubt.as_ref().map_or(0, |d| d.count))
    }),
    gauge("kagami_queue_memory_bytes", "Entries for peers in memory.", |g| count(g.queue.memory_bytes)),
    gauge("kagami_queue_memory_limit_bytes", "Limit of entries in memory (queue_memory_mib).", |g| {
        count(g.queue.memory_limit_bytes)
    }),
    gauge("kagami_spool_bytes", "Entries for peers in the spool.", |g| count(g.queue.spool_bytes)),
    gauge("kagami_spool_file_bytes", "What the files of the spool take.", |g| count(g.queue.spool_file_bytes)),
    gauge("kagami_spool_limit_bytes", "Limit of the spool (spool_mib).", |g| count(g.queue.spool_limit_bytes)),
    gauge("kagami_entry_log_bytes", "The entry log of a secondary.", |g| count(g.queue.log_bytes)),
    gauge("kagami_entry_log_limit_bytes", "Limit of the entry log (log_mib).", |g| count(g.queue.log_limit_bytes)),
    gauge("kagami_journal_bytes", "The change journal.", |g| count(g.queue.journal_bytes)),
    gauge("kagami_journal_limit_bytes", "Limit of the change journal (journal_mib).", |g| {
        count(g.queue.journal_limit_bytes)
    }),
];

const LEG: &[Metric<LegStatus>] = &[gauge("kagami_leg_state", "1 for the state of the leg, 0 for the others.", |l| {
    hot("state", LEG_STATES, &l.state)
})];

const VOLUME: &[Metric<VolumeStatus>] = &[
    gauge("kagami_volume_capacity_bytes", "Capacity in the volume's config definition, where it has a size.", |v| {
        maybe(v.capacity.filter(|c| *c > 0).map(|c| c as f64))
    }),
    gauge("kagami_volume_used_bytes", "Used of the capacity, where that is counted.", |v| {
        maybe(v.used.map(|u| u as f64))
    }),
];

const APP: &[Metric<AppStatus>] = &[
    gauge("kagami_app_state", "1 for the state of the application, 0 for the others.", |a| {
        hot("state", APP_STATES, &a.state)
    }),
    counter("kagami_app_restarts_total", "Starts after it had ended by itself.", |a| count(a.restarts)),
];

const PAIR: &[Metric<PairStatus>] = &[
    gauge("kagami_pair_info", "Whether the pair goes out from here or comes in; always 1.", |p| {
        label("direction", &p.direction)
    }),
    gauge("kagami_pair_state", "1 for the state of the pair, 0 for the others.", |p| {
        hot("state", PAIR_STATES, &p.state.to_uppercase())
    }),
    gauge("kagami_pair_lag_entries", "Entries that the secondary does not have in its tree.", |p| count(p.lag.entries)),
    gauge("kagami_pair_lag_bytes", "What of them has not arrived.", |p| count(p.lag.bytes)),
    gauge("kagami_pair_lag_seconds", "Age of the oldest of them; grows as well while nothing is heard.", |p| {
        one(p.lag.seconds)
    }),
    gauge("kagami_pair_last_confirmed_timestamp_seconds", "The secondary has everything up to this time.", |p| {
        maybe(p.confirmed)
    }),
    gauge("kagami_pair_out_of_sync_files", "Names and objects that a resync would look at, at the primary.", |p| {
        maybe(p.out_of_sync.map(|o| o.files as f64))
    }),
    gauge("kagami_pair_out_of_sync_bytes", "Marked content that a resync would compare, at the primary.", |p| {
        maybe(p.out_of_sync.map(|o| o.bytes as f64))
    }),
    gauge("kagami_pair_copy_done_bytes", "Done of the copy or resync under way.", |p| {
        copying(p, |g| Some(g.done_bytes as f64))
    }),
    gauge("kagami_pair_copy_total_bytes", "All of it, as far as known.", |p| {
        copying(p, |g| Some(g.total_bytes as f64))
    }),
    gauge("kagami_pair_copy_done_files", "Done of the copy or resync under way.", |p| {
        copying(p, |g| Some(g.done_files as f64))
    }),
    gauge("kagami_pair_copy_total_files", "All of it, as far as known.", |p| {
        copying(p, |g| Some(g.total_files as f64))
    }),
    gauge("kagami_pair_copy_rate_bytes_per_second", "Its rate so far.", |p| copying(p, |g| Some(g.rate_bytes_s))),
    gauge("kagami_pair_copy_eta_seconds", "Time to its end at this rate, once that can be told.", |p| {
        copying(p, |g| g.eta_s)
    }),
    gauge("kagami_pair_copy_last_success_timestamp_seconds", "When a copy, resync or catch-up last ended well.", |p| {
        maybe(p.copied)
    }),
    gauge("kagami_pair_copy_last_bytes", "Content that it sent.", |p| {
        maybe(p.last_resync.as_ref().map(|r| r.bytes_copied as f64))
    }),
    gauge("kagami_pair_copy_last_files", "Files whose content it sent.", |p| {
        maybe(p.last_resync.as_ref().map(|r| r.files_copied as f64))
    }),
    gauge("kagami_pair_copy_last_duration_seconds", "How long it took.", |p| {
        maybe(p.last_resync.as_ref().map(|r| r.seconds))
    }),
    gauge("kagami_pair_verify_last_timestamp_seconds", "When the replicas were last compared.", |p| {
        maybe(p.verified.map(|v| v.time))
    }),
    gauge("kagami_pair_verify_differences", "Differences that were left then.", |p| {
        maybe(p.verified.map(|v| v.differences as f64))
    }),
    counter("kagami_pair_faults_total", "Times that a fault suspended the pair, by its reason.", |p| {
        p.faults.iter().map(|(r, n)| (Some(("reason", r.clone())), *n as f64)).collect()
    }),
];

/// The labels of a thing.
type Labels<'a> = Vec<(&'static str, &'a str)>;

/// What `/metrics` answers.
pub fn exposition(s: &Status) -> String {
    let mut o = String::new();
    let numbers: Vec<Vec<String>> =
        s.groups.iter().map(|g| g.legs.iter().map(|l| l.leg.to_string()).collect()).collect();
    let (mut groups, mut legs, mut volumes, mut apps, mut pairs) = (vec![], vec![], vec![], vec![], vec![]);
    for (g, numbers) in s.groups.iter().zip(&numbers) {
        groups.push((labels(s, g, []), g));
        legs.extend(g.legs.iter().zip(numbers).map(|(l, n)| (labels(s, g, [("leg", n.as_str())]), l)));
        volumes.extend(g.volumes.iter().map(|v| (labels(s, g, [("volume", v.name.as_str())]), v)));
        apps.extend(g.apps.iter().map(|a| (labels(s, g, [("app", a.name.as_str())]), a)));
        pairs.extend(
            g.pairs
                .iter()
                .map(|p| (labels(s, g, [("pair", p.name.as_str()), ("peer", &p.peer), ("mode", &p.mode)]), p)),
        );
    }
    write(&mut o, NODE, &[(vec![("site", s.site.as_str())], s)]);
    write(&mut o, GROUP, &groups);
    write(&mut o, LEG, &legs);
    write(&mut o, VOLUME, &volumes);
    write(&mut o, APP, &apps);
    write(&mut o, PAIR, &pairs);
    o
}

fn labels<'a, const N: usize>(s: &'a Status, g: &'a GroupStatus, more: [(&'static str, &'a str); N]) -> Labels<'a> {
    [("site", s.site.as_str()), ("group", &g.name)].into_iter().chain(more).collect()
}

fn write<T>(o: &mut String, metrics: &[Metric<T>], things: &[(Labels<'_>, &T)]) {
    for m in metrics {
        let help = m.help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = writeln!(o, "# HELP {} {help}\n# TYPE {} {}", m.name, m.name, m.kind);
        for (labels, thing) in things {
            for (more, value) in (m.of)(thing) {
                let further = more.iter().map(|(k, v)| (*k, v.as_str()));
                let words: Vec<String> =
                    labels.iter().copied().chain(further).map(|(k, v)| format!("{k}=\"{}\"", escaped(v))).collect();
                let _ = writeln!(o, "{}{{{}}} {}", m.name, words.join(","), number(value));
            }
        }
    }
}

/// A label's value between its quotes.
fn escaped(v: &str) -> String {
    v.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn number(v: f64) -> String {
    match v {
        v if v.is_nan() => "NaN".into(),
        v if v.is_infinite() => if v > 0.0 { "+Inf" } else { "-Inf" }.into(),
        v => v.to_string(),
    }
}

/// The table of `docs/METRICS.md`.
pub fn markdown() -> String {
    fn rows<T>(labels: &str, metrics: &[Metric<T>]) -> String {
        metrics.iter().map(|m| format!("| `{}` | {} | {labels} | {} |\n", m.name, m.kind, m.help)).collect()
    }
    let pair = "site, group, pair, peer, mode";
    [
        "| name | type | labels | what |\n|---|---|---|---|\n".to_owned(),
        rows("site", NODE),
        rows("site, group", GROUP),
        rows("site, group, leg", LEG),
        rows("site, group, volume", VOLUME),
        rows("site, group, app", APP),
        rows(pair, PAIR),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::status::Lag;
    use std::collections::BTreeSet;

    fn status() -> Status {
        let pair = PairStatus {
            name: "async".into(),
            mode: "async".into(),
            peer: "far \"east\"\n\\".into(),
            direction: "out".into(),
            state: "COPY".into(),
            lag: Lag { entries: 3, bytes: 1 << 40, seconds: 1.5 },
            progress: Some(Progress { done_bytes: 5, total_bytes: 10, eta_s: None, ..Progress::default() }),
            faults: [("link-lost".to_owned(), 2)].into(),
            ..PairStatus::default()
        };
        let leg = LegStatus { leg: 1, state: "faulty".into(), reason: None };
        let app = AppStatus { name: "db".into(), state: "crash-looping".into(), ..AppStatus::default() };
        let group = GroupStatus {
            name: "lab".into(),
            role: "primary".into(),
            epoch: 7,
            pairs: vec![pair],
            legs: vec![leg],
            apps: vec![app],
            ..GroupStatus::default()
        };
        Status { site: "tokyo".into(), groups: vec![group], ..Status::default() }
    }

    /// The text is what a parser of the format takes: each name once, with help and type before its samples, values as
    /// numbers, quotes, line feeds and backslashes of labels escaped.
    #[test]
    fn the_exposition_keeps_to_its_format() {
        let text = exposition(&status());
        let (mut seen, mut samples, mut present) = (BTreeSet::new(), BTreeSet::new(), "");
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                present = rest.split_once(' ').unwrap().0;
                assert!(seen.insert(present), "{present} twice");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert_eq!(name, present);
                assert_eq!(
                    kind == "counter",
                    name.ends_with("_total"),
                    "{name}: counters, and only they, end in _total"
                );
            } else {
                let (name, rest) = line.split_once('{').unwrap();
                let (labels, value) = rest.rsplit_once("} ").unwrap();
                assert_eq!(name, present, "samples of a metric stand together");
                assert!(labels.starts_with("site=\"tokyo\""), "{line}");
                value.parse::<f64>().unwrap();
                assert!(samples.insert((name, labels)), "{line} twice");
            }
        }
        for (name, more, value) in [
            ("kagami_pair_state", ",state=\"COPY\"", "1"),
            ("kagami_pair_state", ",state=\"PAIR\"", "0"),
            ("kagami_pair_lag_bytes", "", "1099511627776"),
            ("kagami_pair_lag_seconds", "", "1.5"),
            ("kagami_pair_copy_done_bytes", "", "5"),
            ("kagami_pair_faults_total", ",reason=\"link-lost\"", "2"),
        ] {
            let line = format!(
                "{name}{{site=\"tokyo\",group=\"lab\",pair=\"async\",peer=\"far \\\"east\\\"\\n\\\\\",mode=\"async\"{more}}} {value}"
            );
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert!(text.contains("kagami_app_state{site=\"tokyo\",group=\"lab\",app=\"db\",state=\"crash-looping\"} 1\n"));
        assert!(text.contains("kagami_leg_state{site=\"tokyo\",group=\"lab\",leg=\"1\",state=\"faulty\"} 1\n"));
        assert!(!text.contains("kagami_pair_copy_eta_seconds{"), "what is not known is left out");
    }

    /// Units in names: what has one says it.
    #[test]
    fn the_document_has_the_table() {
        let doc = include_str!("../../docs/METRICS.md");
        assert!(doc.contains(&markdown()), "docs/METRICS.md has another table than:\n{}", markdown());
    }
}
