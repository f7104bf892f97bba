//! What the control socket can order.

use super::Node;
use super::control::{Commands, Request};
use super::local::LocalGroup;
use super::pairs::Pair;
use super::status::{GroupStatus, Lag, MountStatus, Progress, STATUS_VERSION, Status};
use crate::base::{Error, Result, Seq, VolId, time};
use crate::pair::state::{Event, Mode, State};
use crate::store::replica::Replica;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Commands for Node {
    fn run(&self, req: Request, progress: &dyn Fn(Value)) -> Result<Value> {
        match req {
            Request::Status {} => serde_json::to_value(self.status()).map_err(|e| Error::failed(e.to_string())),
            Request::Mount { group, volume, dir } => {
                let g = self.group(&group)?;
                g.mount_at(vol(g, volume.as_deref())?.unwrap_or(VolId(0)), &dir)?;
                Ok(json!({ "dir": dir }))
            }
            Request::Umount { group, volume } => {
                let g = self.group(&group)?;
                g.umount(vol(g, volume.as_deref())?)?;
                Ok(json!({}))
            }
            Request::PairCreate { group, pair, no_copy } => self.pair_event(&group, &pair, Event::Create { no_copy }),
            Request::PairSplit { group, pair } => self.pair_event(&group, &pair, Event::Split),
            Request::PairResync { in_place: true, .. } => Err(Error::refused(
                "--in-place is not available in this version: make room at the target instead, the resync then goes on by itself",
            )),
            Request::PairResync { group, pair, .. } => self.pair_event(&group, &pair, Event::Resync),
            Request::PairDelete { group, pair } => self.pair_event(&group, &pair, Event::Delete),
            Request::Takeover { group, force, dry_run, at } => self.takeover(&group, force, dry_run, at.as_deref()),
            Request::JournalStat { group } => self.journal_stat(&group),
            Request::JournalShow { group, limit } => self.journal_show(&group, limit),
            Request::Why { path } => self.why(&path),
            Request::PeerPause { site } => self.links.set_paused(&site, true).map(|()| json!({})),
            Request::PeerResume { site } => self.links.set_paused(&site, false).map(|()| json!({})),
            Request::LinkCut {} => {
                self.links.set_cut(true);
                Ok(json!({}))
            }
            Request::LinkJoin {} => {
                self.links.set_cut(false);
                Ok(json!({}))
            }
            Request::Stop {} => {
                self.stop.store(true, Ordering::SeqCst);
                Ok(json!({}))
            }
            Request::Verify { group, pair, repair } => {
                let tell = |p: &Progress| progress(serde_json::to_value(p).unwrap_or(Value::Null));
                let report = super::verify::verify(self.group(&group)?, pair.as_deref(), repair, &tell)?;
                serde_json::to_value(report).map_err(|e| Error::failed(e.to_string()))
            }
            Request::LegAdd { group, regions } => {
                let paths: Vec<std::path::PathBuf> = regions.iter().map(Into::into).collect();
                Ok(json!({ "leg": self.group(&group)?.add_leg(&paths)? }))
            }
            Request::LegRemove { .. } => Err(Error::failed("removing a leg is not available in this version")),
        }
    }
}

fn vol(g: &LocalGroup, name: Option<&str>) -> Result<Option<VolId>> {
    let Some(name) = name else { return Ok(None) };
    let i = g.cfg.volumes.iter().position(|v| v.name == name);
    let i = i.ok_or_else(|| Error::config(format!("no volume {name:?} in group {}", g.cfg.name)))?;
    Ok(Some(VolId(i as u16)))
}

impl Node {
    fn group(&self, name: &str) -> Result<&Arc<LocalGroup>> {
        self.groups
            .iter()
            .find(|g| g.cfg.name == name)
            .ok_or_else(|| Error::config(format!("no group {name:?} in the site file")))
    }

    fn pair_event(&self, group: &str, pair: &str, event: Event) -> Result<Value> {
        let g = self.group(group)?;
        let p = g
            .pairs
            .iter()
            .find(|p| p.name == pair)
            .ok_or_else(|| Error::config(format!("no pair {pair:?} in group {group} at this site")))?;
        if g.primary().is_none() {
            return Err(Error::refused(format!("group {group} is secondary here: give the order at its primary")));
        }
        let s = p.event(event, Some("ordered".into()))?;
        Ok(json!({ "state": s.shown().to_string() }))
    }

    fn takeover(&self, group: &str, force: bool, dry_run: bool, at: Option<&str>) -> Result<Value> {
        let g = self.group(group)?;
        let last = self.possible_loss(g);
        if dry_run {
            return Ok(json!({ "steps": [
                "refuse the old primary's link",
                "apply everything received",
                "begin a new epoch, durably",
                "mount the volume",
                "copy to the other sites what differs, by the journals"
            ], "loss": last }));
        }
        let head = g.takeover(force, at.map(Path::new))?;
        Ok(
            json!({ "position": head.0, "loss": last, "mounts": g.mounts().iter().map(|(_, d)| d.clone()).collect::<Vec<_>>() }),
        )
    }

    /// What a takeover here may lose, as far as this site can know.
    fn possible_loss(&self, g: &LocalGroup) -> Value {
        let sync = g.pairs.iter().any(|p| p.mode == Mode::Sync && p.state() == State::Pair);
        let (received, head) = g.secondary().map_or((Seq(0), Seq(0)), |r| (r.received(), g.primary_head()));
        json!({
            "entries_known_missing": head.0.saturating_sub(received.0),
            "words": if sync { "nothing that was answered (the sync pair was in PAIR)" } else { "what the primary wrote after the last entry received here" }
        })
    }

    fn journal_stat(&self, group: &str) -> Result<Value> {
        let r = self.group(group)?.replica()?;
        let m = r.order();
        let (bytes, intervals) = m.journal.size();
        Ok(
            json!({ "begins_after": m.journal.begins_after().0, "position": m.live.last_seq().0, "bytes": bytes, "intervals": intervals }),
        )
    }

    fn journal_show(&self, group: &str, limit: u64) -> Result<Value> {
        let r = self.group(group)?.replica()?;
        let m = r.order();
        Ok(json!({ "records": r.describe(&m, m.journal.begins_after(), limit as usize)? }))
    }

    fn why(&self, path: &Path) -> Result<Value> {
        for g in &self.groups {
            for (v, dir) in g.mounts() {
                if let Ok(rel) = path.strip_prefix(&dir) {
                    let r = g.replica()?;
                    let rel = rel.to_string_lossy().into_owned();
                    let m = r.order();
                    let since = m.journal.begins_after();
                    let tag = format!("vol{} ", v.0);
                    let lines: Vec<String> = r
                        .describe(&m, since, usize::MAX)?
                        .into_iter()
                        .filter(|l| {
                            l.split_once(&tag).is_some_and(|(_, rest)| rest.split_whitespace().any(|w| w == rel))
                        })
                        .collect();
                    drop(m);
                    let head = g.primary().map_or(Seq(0), |p| p.head());
                    let pairs: Vec<Value> = g
                        .pairs
                        .iter()
                        .enumerate()
                        .filter_map(|(i, p)| {
                            let pos = g.primary()?.progress(i);
                            Some(json!({ "pair": p.name, "site": p.peer, "state": p.state().shown().to_string(), "applied": pos.applied.0, "position": head.0 }))
                        })
                        .collect();
                    return Ok(json!({ "file": rel, "changes_not_yet_everywhere": lines, "pairs": pairs }));
                }
            }
        }
        Err(Error::config(format!("{} is not in a volume mounted by this node", path.display())))
    }

    fn status(&self) -> Status {
        Status {
            version: STATUS_VERSION,
            site: self.config.node.site.clone(),
            pid: std::process::id(),
            cut: self.links.is_cut(),
            groups: self.groups.iter().map(group_status).collect(),
        }
    }
}

fn group_status(g: &Arc<LocalGroup>) -> GroupStatus {
    let down = g.down();
    let role = match (&down, g.primary()) {
        (Some(w), _) if w == "starting" => "starting",
        (Some(_), _) => "down",
        (None, Some(_)) => "primary",
        (None, None) => "secondary",
    };
    let (epoch, position) = g.replica().map_or((0, 0), |r| {
        let m = r.order();
        (m.state.chain.last().map_or(0, |e| e.number), m.live.last_seq().0)
    });
    let mounts: Vec<MountStatus> = g
        .mounts()
        .into_iter()
        .map(|(v, dir)| MountStatus {
            volume: g.cfg.volumes.get(v.0 as usize).map_or_else(String::new, |v| v.name.clone()),
            dir,
        })
        .collect();
    let fence = match g.cfg.fence {
        super::config::Fence::Data => "data",
        super::config::Fence::Never => "never",
    };
    let primary = g.primary();
    let linked = g.linked();
    let pairs = g
        .pairs
        .iter()
        .enumerate()
        .map(|(i, p)| match &primary {
            Some(group) => p.status("out", out_lag(group, i, p)),
            None if linked.as_ref() == Some(&p.peer) => p.status("in", in_lag(g)),
            None => p.status(if p.state() == State::Smpl { "none" } else { "in" }, Lag::default()),
        })
        .collect();
    GroupStatus {
        name: g.cfg.name.clone(),
        role: role.into(),
        epoch,
        position,
        mount: mounts.first().map(|m| m.dir.clone()),
        mounts,
        fence: fence.into(),
        protection: if fence == "data" {
            "writes are refused while the sync pair is not in PAIR".into()
        } else {
            "writes go on and are journaled".into()
        },
        reason: down.or_else(|| g.note()).or_else(|| g.secondary().and_then(|r| suspect(&r.replica))),
        legs: g.legs(),
        pairs,
    }
}

fn suspect(r: &Replica) -> Option<String> {
    r.order().state.suspect.then(|| "this replica is to be compared with a peer before it counts".into())
}

fn out_lag(group: &crate::volume::group::Group, i: usize, _p: &Pair) -> Lag {
    let pos = group.progress(i);
    let head = group.head();
    let entries = head.0.saturating_sub(pos.applied.0.min(pos.received.0));
    if entries == 0 {
        return Lag::default();
    }
    let bytes = group.queue.bytes_after(pos.received);
    let age = group
        .queue
        .time_after(pos.applied.min(pos.received))
        .map_or(0, |t| time::now().nanos_total().saturating_sub(t.nanos_total()));
    Lag { entries, bytes, seconds: age as f64 / 1e9 }
}

fn in_lag(g: &LocalGroup) -> Lag {
    let Some(r) = g.secondary() else { return Lag::default() };
    let entries = g.primary_head().0.saturating_sub(r.applied().0);
    Lag { entries, bytes: 0, seconds: 0.0 }
}
