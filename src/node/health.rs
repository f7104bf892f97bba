//! What a node answers to those who only want to know whether to use it: `/healthz`, `/primary`, `/replica`.
//!
//! | question | yes (200) | no (503) |
//! |---|---|---|
//! | `/healthz` | the node runs and nothing here is broken or waits for somebody | a fault below, or the state cannot be read |
//! | `/primary?group=G` | G is primary here, mounted, and accepts writes | otherwise |
//! | `/replica?group=G&lag=10s` | the replica of G here is at a point of the order that is no older | otherwise |
//!
//! Faults: a group that is down; a replica, leg or drive that failed; no space; a split brain; an application that failed or
//! is given up. A peer that is away, a pair that its operator suspended and a copy under way are no faults of this node:
//! a restart would not help, and the state of the pair says it. They are in the answer's words.

use super::local::LocalGroup;
use super::mounter::MountOption;
use super::status::{GroupStatus, Status};
use crate::pair::state::Reason;
use crate::store::receive::missing;
use std::time::Duration;

/// An answer: yes or no, and in words why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Yes.
    pub yes: bool,
    /// A line each.
    pub words: Vec<String>,
}

impl Answer {
    fn yes(word: impl Into<String>) -> Answer {
        Answer { yes: true, words: vec![word.into()] }
    }

    fn no(word: impl Into<String>) -> Answer {
        Answer { yes: false, words: vec![word.into()] }
    }
}

/// An entry that takes longer to be applied than this is said to.
const SLOW: Duration = Duration::from_secs(8);

/// What is broken in a group here, or waits for somebody: a sentence each.
pub(super) fn faults(g: &LocalGroup, s: &GroupStatus) -> Vec<String> {
    let mut out = Vec::new();
    if s.role == "down" {
        out.push(format!("group {} is down: {}", s.name, g.down().unwrap_or_default()));
    }
    if let Some(r) = g.secondary() {
        let name = &s.name;
        out.extend(r.fault().map(|e| format!("group {}: {e}", s.name)));
        out.extend(r.full().map(|e| format!("group {}: applying waits: {}: {e}", s.name, missing(&e))));
        // A resync of large files takes its time, but not for one entry.
        let slow = r.at_one_entry().filter(|d| *d >= SLOW);
        out.extend(slow.map(|d| {
            let s = d.as_secs();
            format!("group {name}: applying has been at one entry for {s} s: the disk is slow, or does not answer")
        }));
    }
    let faulty = s.legs.iter().filter(|l| l.state == "faulty");
    out.extend(
        faulty.map(|l| format!("group {}: leg {} is faulty: {}", s.name, l.leg, l.reason.clone().unwrap_or_default())),
    );
    // A secondary's pair with a site that leads no more is not used: what it fell out for then is no fault now.
    let unused = |peer: &str| s.role == "secondary" && s.led_by.as_deref().is_some_and(|site| site != peer);
    for (p, shown) in g.pairs.iter().zip(&s.pairs).filter(|(p, _)| !unused(&p.peer)) {
        if let Some(Reason::LocalFault | Reason::SplitBrain | Reason::NeedsSpace | Reason::Full) = p.state().reason() {
            let why = shown.reason.clone().unwrap_or_default();
            out.push(format!("group {} pair {} is in {}: {why}", s.name, p.name, shown.state));
        }
    }
    let ended = s.apps.iter().filter(|a| matches!(a.state.as_str(), "failed" | "crash-looping"));
    out.extend(ended.map(|a| {
        format!("group {}: application {} is {}: {}", s.name, a.name, a.state, a.reason.clone().unwrap_or_default())
    }));
    out
}

/// `/healthz`.
pub fn healthz(s: &Status) -> Answer {
    let faults: Vec<String> = s.groups.iter().flat_map(|g| g.faults.iter().cloned()).collect();
    if !faults.is_empty() {
        return Answer { yes: false, words: faults };
    }
    let mut words = vec!["ok".to_owned()];
    for g in &s.groups {
        words.extend(g.reason.iter().map(|r| format!("group {}: {r}", g.name)));
        for p in g.pairs.iter().filter(|p| p.direction != "none" && p.state != "PAIR") {
            let why = p.reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default();
            words.push(format!("group {} pair {} is in {}{why}", g.name, p.name, p.state));
        }
    }
    Answer { yes: true, words }
}

/// `/primary`.
pub fn primary(g: &GroupStatus) -> Answer {
    if let Some(why) = &g.refuses_writes {
        return Answer::no(why.clone());
    }
    let writable = g.mounts.iter().find(|m| m.attached && !m.options.contains(&MountOption::ReadOnly));
    match writable {
        Some(m) => Answer::yes(format!("group {} is primary here, mounted at {}", g.name, m.dir.display())),
        None => Answer::no(format!("group {} is primary here, but not mounted for writing", g.name)),
    }
}

/// `/replica`. `lag`: how far it may be behind; `None`: however far.
pub fn replica(g: &GroupStatus, lag: Option<Duration>) -> Answer {
    if !g.consistent {
        let why = g.reason.clone().unwrap_or_else(|| "it is being copied, or was never complete".into());
        return Answer::no(format!("group {}: the replica here is at no point of the order: {why}", g.name));
    }
    if g.role == "primary" {
        return Answer::yes(format!("group {} is primary here", g.name));
    }
    let lags = g.pairs.iter().filter(|p| p.direction == "in").map(|p| p.lag.seconds);
    let Some(seconds) = lags.reduce(f64::min) else {
        return Answer::no(format!("group {}: no primary is known here", g.name));
    };
    let words = format!("group {}: {seconds:.3} s behind", g.name);
    match lag {
        Some(most) if seconds > most.as_secs_f64() => {
            Answer::no(format!("{words}, more than {:.3} s", most.as_secs_f64()))
        }
        _ => Answer::yes(words),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::status::{Lag, MountStatus, PairStatus};

    fn secondary(lags: &[f64]) -> GroupStatus {
        let pair = |s: &f64| PairStatus {
            name: "async".into(),
            direction: "in".into(),
            state: "PAIR".into(),
            lag: Lag { seconds: *s, ..Lag::default() },
            ..PairStatus::default()
        };
        let (name, role) = ("lab".into(), "secondary".into());
        GroupStatus { name, role, consistent: true, pairs: lags.iter().map(pair).collect(), ..GroupStatus::default() }
    }

    /// G9: who is too far behind, or does not know how far, is not used.
    #[test]
    fn a_replica_is_used_only_as_far_behind_as_is_said() {
        let (s, ten) = (Duration::from_secs, Some(Duration::from_secs(10)));
        assert!(replica(&secondary(&[9.9]), ten).yes);
        assert!(!replica(&secondary(&[10.1]), ten).yes);
        assert!(replica(&secondary(&[3600.0]), None).yes);
        // The nearer of two that it could receive from counts.
        assert!(replica(&secondary(&[3600.0, 0.0]), Some(s(1))).yes);
        assert!(!replica(&secondary(&[]), None).yes);
        assert!(!replica(&GroupStatus { consistent: false, ..secondary(&[0.0]) }, None).yes);
    }

    #[test]
    fn a_primary_is_one_that_takes_writes() {
        let mounted = MountStatus { attached: true, dir: "/srv".into(), ..MountStatus::default() };
        let with = |mounts: Vec<MountStatus>| GroupStatus { role: "primary".into(), mounts, ..GroupStatus::default() };
        assert!(primary(&with(vec![mounted.clone()])).yes);
        assert!(!primary(&with(vec![])).yes);
        assert!(!primary(&with(vec![MountStatus { attached: false, ..mounted.clone() }])).yes);
        let read_only = MountStatus { options: [MountOption::ReadOnly].into_iter().collect(), ..mounted.clone() };
        assert!(!primary(&with(vec![read_only])).yes);
        let fenced = GroupStatus { refuses_writes: Some("fence".into()), ..with(vec![mounted]) };
        assert_eq!(primary(&fenced), Answer::no("fence"));
    }

    #[test]
    fn a_peer_that_is_away_is_no_fault_of_this_node() {
        let mut g = secondary(&[5.0]);
        g.pairs[0].state = "PSUE".into();
        g.pairs[0].reason = Some("no link from site primary".into());
        let mut s = Status { groups: vec![g], ..Status::default() };
        let a = healthz(&s);
        assert!(a.yes && a.words[1].contains("PSUE: no link"), "{a:?}");
        s.groups[0].faults = vec!["group lab is down: gone".into()];
        assert_eq!(healthz(&s), Answer::no("group lab is down: gone"));
    }
}
