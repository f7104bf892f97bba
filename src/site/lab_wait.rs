//! When a lab is in step: decided from what its nodes say, without any I/O.

use crate::node::status::{PairStatus, Status};

/// What is still to be waited for, and what will not come.
#[derive(Debug, Default, PartialEq)]
pub struct Standing {
    /// One sentence each; empty when all is in step.
    pub waiting: Vec<String>,
    /// Pairs that cannot be in step, with the reason.
    pub excepted: Vec<String>,
}

/// ` (REASON)` or nothing.
pub fn because(reason: &Option<String>) -> String {
    reason.as_ref().map(|r| format!(" ({r})")).unwrap_or_default()
}

/// Judges the status of all sites (`None`: the node does not run).
pub fn standing(all: &[(&'static str, Option<Status>)]) -> Standing {
    let mut out = Standing::default();
    let up = || all.iter().filter_map(|(site, s)| s.as_ref().map(|s| (*site, s)));
    let groups = || up().flat_map(|(site, s)| s.groups.iter().map(move |g| (site, s.cut, g)));
    let newest = groups().filter(|(_, cut, g)| !cut && g.role == "primary").map(|(_, _, g)| g.epoch).max();
    for (site, cut, g) in groups() {
        if g.role == "starting" {
            out.waiting.push(format!("{site} is starting{}", because(&g.reason)));
        }
        // An old primary that is back and has not learned yet that it is one.
        if !cut && g.role == "primary" && newest.is_some_and(|n| g.epoch < n) {
            out.waiting.push(format!("{site} is to become a secondary{}", because(&g.reason)));
        }
        if g.role != "primary" || newest.is_some_and(|n| g.epoch < n) {
            continue;
        }
        for p in g.pairs.iter().filter(|p| p.direction != "none" && p.direction != "in") {
            let peer = all.iter().find(|(s, _)| *s == p.peer).and_then(|(_, s)| s.as_ref());
            let cannot = match peer {
                None => Some(format!("{} is not running", p.peer)),
                Some(s) if s.cut => Some(format!("{} is cut off", p.peer)),
                Some(_) if cut => Some(format!("{site} is cut off")),
                Some(_) if p.state == "SMPL" => Some("it is not created".into()),
                Some(_) if p.state == "PSUS" => Some("it is split".into()),
                Some(_) => None,
            };
            match cannot {
                Some(why) => out.excepted.push(format!("pair {}: {why}", p.name)),
                None => out.waiting.extend(pair(p)),
            }
        }
    }
    if newest.is_none() && out.waiting.is_empty() && out.excepted.is_empty() {
        out.excepted.push("no site that runs is primary: no pair can be in step".into());
    }
    out
}

fn pair(p: &PairStatus) -> Option<String> {
    if p.state == "PAIR" && p.lag.is_zero() {
        return None;
    }
    let mut s = format!("pair {}: {}", p.name, p.state);
    if let Some(g) = &p.progress {
        s += &format!(" {}", g.phase);
        if let Some(percent) = g.done_bytes.saturating_mul(100).checked_div(g.total_bytes) {
            s += &format!(" {percent} %");
        }
    }
    if !p.lag.is_zero() {
        s += &format!(", {} entries behind", p.lag.entries);
    }
    Some(s + &because(&p.reason))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(site: &str, cut: bool, role: &str, epoch: u64, pairs: &[(&str, &str, u64)]) -> Option<Status> {
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(peer, state, lag)| {
                json!({ "name": peer, "mode": "sync", "peer": peer, "direction": "out", "state": state, "reason": null,
                    "lag": { "entries": lag, "bytes": lag, "seconds": 0.0 }, "last_resync": null })
            })
            .collect();
        let g = json!({ "name": "lab", "role": role, "epoch": epoch, "position": 1, "mount": null, "fence": "never", "pairs": pairs });
        Some(
            serde_json::from_value(json!({ "version": 1, "site": site, "pid": 1, "cut": cut, "groups": [g] })).unwrap(),
        )
    }

    fn secondary(site: &'static str) -> (&'static str, Option<Status>) {
        (site, node(site, false, "secondary", 1, &[]))
    }

    #[test]
    fn all_in_step() {
        let p = node("primary", false, "primary", 1, &[("sync", "PAIR", 0), ("async", "PAIR", 0)]);
        assert_eq!(standing(&[("primary", p), secondary("sync"), secondary("async")]), Standing::default());
    }

    #[test]
    fn lag_and_copies_are_waited_for() {
        let p = node("primary", false, "primary", 1, &[("sync", "PAIR", 3), ("async", "COPY", 0)]);
        let s = standing(&[("primary", p), secondary("sync"), secondary("async")]);
        assert_eq!(s.waiting, ["pair sync: PAIR, 3 entries behind", "pair async: COPY"]);
    }

    #[test]
    fn nodes_that_are_down_or_cut_are_excepted() {
        let p = || node("primary", false, "primary", 1, &[("sync", "PSUE", 3), ("async", "PSUE", 9)]);
        let s = standing(&[("primary", p()), ("sync", None), ("async", node("async", true, "secondary", 1, &[]))]);
        assert_eq!(s.waiting, [""; 0]);
        assert_eq!(s.excepted, ["pair sync: sync is not running", "pair async: async is cut off"]);
        let s = standing(&[("primary", None), secondary("sync"), secondary("async")]);
        assert!(s.waiting.is_empty() && s.excepted[0].contains("no site that runs is primary"));
    }

    #[test]
    fn an_old_primary_must_first_give_way() {
        let old = node("primary", false, "primary", 1, &[("sync", "PAIR", 0)]);
        let new = node("sync", false, "primary", 2, &[("primary", "PAIR", 0)]);
        assert_eq!(standing(&[("primary", old), ("sync", new)]).waiting, ["primary is to become a secondary"]);
    }
}
