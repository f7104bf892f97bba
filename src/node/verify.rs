//! `kagami verify`: compares the replicas of a group while it is in use, and repairs secondaries on request (G7).

use super::compare::{self, Diff, Outcome};
use super::desk::Desk;
use super::local::LocalGroup;
use super::pairs::Pair;
use super::repair::Repair;
use super::status::{Difference, Progress, VerifyPair, VerifyReport};
use crate::base::{Error, Result};
use crate::pair::state::State;
use crate::volume::group::Group;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Differences listed in a report.
const LISTED: usize = 1000;
/// Repairs tried for one order, each followed by a comparison.
const REPAIRS: usize = 3;
/// A repaired pair must be in PAIR again within this time.
const REPAIR_PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// Compares the primary with the secondary of `pair`, or of every pair. Writes nothing anywhere unless `repair`, and then
/// only at secondaries. Refused where the group is not primary and for a pair that is not in PAIR.
pub fn verify(g: &Arc<LocalGroup>, pair: Option<&str>, repair: bool, tell: &dyn Fn(&Progress)) -> Result<VerifyReport> {
    let Some(group) = g.primary() else {
        return Err(Error::refused(format!("group {} is secondary here: give the order at its primary", g.cfg.name)));
    };
    let named = |p: &&Arc<Pair>| pair.map_or(p.state() != State::Smpl, |n| n == p.name);
    let pairs: Vec<&Arc<Pair>> = g.pairs.iter().filter(named).collect();
    if pairs.is_empty() {
        return Err(Error::refused(format!("group {} has no pair that could be compared", g.cfg.name)));
    }
    let mut report = VerifyReport::default();
    let mut found: Vec<(&str, Vec<Diff>)> = Vec::new();
    for p in pairs {
        let entry = match desk(p) {
            Ok(d) => {
                let (entry, diffs) = one(&group, p, d, repair, tell)?;
                found.push((&p.peer, diffs));
                entry
            }
            Err(e) if pair.is_some() => return Err(e),
            Err(e) => VerifyPair {
                pair: p.name.clone(),
                site: p.peer.clone(),
                not_compared: Some(e.to_string()),
                ..VerifyPair::default()
            },
        };
        report.pairs.push(entry);
    }
    report.odd_one_out = odd_one_out(&g.site, &found);
    Ok(report)
}

fn desk(p: &Pair) -> Result<Arc<Desk>> {
    match (p.state(), p.desk()) {
        (State::Pair, Some(d)) => Ok(d),
        (s, _) => Err(Error::refused(format!(
            "pair {} is in {}: only a pair in PAIR can be compared; wait for it, or resync it first",
            p.name,
            s.shown()
        ))),
    }
}

fn one(
    group: &Arc<Group>,
    p: &Arc<Pair>,
    mut desk: Arc<Desk>,
    repair: bool,
    tell: &dyn Fn(&Progress),
) -> Result<(VerifyPair, Vec<Diff>)> {
    let begun = Instant::now();
    let compare = |d: &Arc<Desk>| {
        let r = compare::compare(group, d, &p.peer, &|n| {
            p.set_progress(Some(n.clone()));
            tell(n);
        });
        p.set_progress(None);
        r
    };
    let first = compare(&desk)?;
    let mut out = VerifyPair {
        pair: p.name.clone(),
        site: p.peer.clone(),
        files: first.files,
        bytes: first.bytes,
        seconds: begun.elapsed().as_secs_f64(),
        difference_count: first.differences.len() as u64,
        differences: listed(&first.differences),
        changing_count: first.changing.len() as u64,
        changing: listed(&first.changing),
        ..VerifyPair::default()
    };
    let mut how = Vec::new();
    let mut last: Option<Outcome> = None;
    while repair && how.len() < REPAIRS {
        let diffs = &last.as_ref().unwrap_or(&first).differences;
        if diffs.is_empty() {
            break;
        }
        how.push(order(p, &desk, diffs));
        desk = again(group, p, &desk, tell)?;
        last = Some(compare(&desk)?);
    }
    p.set_verified(last.as_ref().unwrap_or(&first).differences.len() as u64);
    if let Some(l) = &last {
        out.repair = Some(how.join("; "));
        out.left = listed(&l.differences);
        out.repaired = l.differences.is_empty();
    }
    Ok((out, first.differences))
}

/// Orders a repair and ends the link, so that the pair's thread begins it. Returns what is done, for people.
fn order(p: &Pair, desk: &Desk, diffs: &[Diff]) -> String {
    let (repair, words) = if diffs.iter().any(|d| d.dirs) {
        (Repair::Everything, "directories differ: everything was walked and copied".to_owned())
    } else {
        let objects: Vec<_> = diffs.iter().map(|d| (d.vol, d.at.clone())).collect();
        let words = format!("{} objects copied in one step by a resync", objects.len());
        (Repair::Objects(Arc::new(objects)), words)
    };
    log::info!("pair {}: repair ordered: {words}", p.name);
    p.set_repair(Some(repair));
    desk.close();
    words
}

/// Waits until the repair is done and the pair is in PAIR again.
fn again(group: &Group, p: &Pair, old: &Arc<Desk>, tell: &dyn Fn(&Progress)) -> Result<Arc<Desk>> {
    let until = Instant::now() + REPAIR_PATIENCE;
    loop {
        if let (None, Ok(d)) = (p.repair(), desk(p))
            && !Arc::ptr_eq(&d, old)
        {
            return Ok(d);
        }
        if group.is_stopped() || matches!(p.state(), State::Smpl | State::Psus | State::PsusCopy) {
            p.set_repair(None);
            return Err(Error::failed(format!(
                "the repair of pair {} was given up: it is in {}",
                p.name,
                p.state().shown()
            )));
        }
        if Instant::now() > until {
            return Err(Error::failed(format!("the repair of pair {} did not come to an end", p.name)));
        }
        let state = format!("repair of {}: {}", p.name, p.state().shown());
        let now = p.progress().unwrap_or_default();
        tell(&Progress { phase: state, ..now });
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn listed(diffs: &[Diff]) -> Vec<Difference> {
    diffs.iter().take(LISTED).map(|d| Difference { path: d.path.clone(), what: d.what.clone() }).collect()
}

/// With two secondaries and more: the replica that stands alone, for each object that differs anywhere.
fn odd_one_out(primary: &str, found: &[(&str, Vec<Diff>)]) -> Vec<Difference> {
    if found.len() < 2 {
        return Vec::new();
    }
    let mut by_path: BTreeMap<&str, Vec<(&str, [u8; 16])>> = BTreeMap::new();
    for (site, diffs) in found {
        for d in diffs {
            by_path.entry(&d.path).or_default().push((site, d.theirs));
        }
    }
    let odd = |v: &Vec<(&str, [u8; 16])>| {
        let sites: Vec<&str> = v.iter().map(|(s, _)| *s).collect();
        let same = v.iter().all(|x| v.first().is_some_and(|f| f.1 == x.1));
        match (v.len() == found.len(), same) {
            (true, true) => format!("site {primary} (the primary): sites {} agree", sites.join(" and ")),
            (true, false) => "no two replicas agree".to_owned(),
            (false, _) => format!("site {}", sites.join(" and ")),
        }
    };
    by_path.iter().take(LISTED).map(|(p, v)| Difference { path: (*p).to_owned(), what: odd(v) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{DirId, VolId};
    use crate::format::op::Target;

    #[test]
    fn the_replica_that_stands_alone_is_named() {
        let d = |path: &str, digest: u8| Diff::for_test(VolId(0), Target::Dir(DirId::ROOT), path, [digest; 16]);
        let found = [("s", vec![d("a", 1), d("b", 1), d("c", 1)]), ("t", vec![d("b", 1), d("c", 2)])];
        let odd = odd_one_out("p", &found);
        let words: Vec<&str> = odd.iter().map(|d| d.what.as_str()).collect();
        assert_eq!(words, ["site s", "site p (the primary): sites s and t agree", "no two replicas agree"]);
        assert!(odd_one_out("p", &found[..1]).is_empty());
    }
}
