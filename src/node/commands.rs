//! What the control socket can order.

use super::Node;
use super::control::{Commands, Request};
use super::forecast::{self, Forecast};
use super::health;
use super::launcher::Launcher;
use super::local::LocalGroup;
use super::loss;
use super::repair::Repair;
use super::status::{
    GroupStatus, Lag, LossStatus, MountStatus, PairStatus, Progress, QueueStatus, STATUS_VERSION, SiteView, Status,
};
use super::why;
use crate::base::{Error, Result, VolId};
use crate::format::msg::{Begin, PairOrder};
use crate::pair::state::{Reason, State};
use crate::store::loss::LostArea;
use crate::store::replica::Replica;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Commands for Node {
    fn run(&self, req: Request, progress: &dyn Fn(Value)) -> Result<Value> {
        match req {
            Request::Status {} => serde_json::to_value(self.status()).map_err(|e| Error::failed(e.to_string())),
            Request::Mount { group, volume, dir, options } => {
                let g = self.group(&group)?;
                g.mount_at(vol(g, volume.as_deref())?.unwrap_or(VolId(0)), &dir, &options, true)?;
                Ok(json!({ "dir": dir }))
            }
            Request::Umount { group, volume } => {
                let g = self.group(&group)?;
                self.launcher.release(&group)?;
                g.umount(vol(g, volume.as_deref())?)?;
                Ok(json!({}))
            }
            Request::PairCreate { group, pair, no_copy, no_verify } => {
                let begin = match (no_copy, no_verify) {
                    (false, _) => Begin::Copy,
                    (true, false) => Begin::Compare,
                    (true, true) => Begin::Trust,
                };
                let tell = |p: &Progress| progress(serde_json::to_value(p).unwrap_or(Value::Null));
                self.pair_order(&group, &pair, PairOrder::Create(begin), &tell)
            }
            Request::PairSplit { group, pair } => self.pair_order(&group, &pair, PairOrder::Split, &|_| ()),
            Request::PairSwap { group, pair } => self.pair_order(&group, &pair, PairOrder::Take, &|_| ()),
            Request::PairResync { group, pair, in_place, keep } => {
                self.pair_resync(&group, &pair, in_place, keep.as_deref())
            }
            Request::LossList { group } => match group {
                Some(g) => loss::list(&[self.group(&g)?]),
                None => loss::list(&self.groups.iter().collect::<Vec<_>>()),
            },
            Request::LossShow { event } => loss::show(&self.groups, &event),
            Request::LossDrop { event } => loss::drop(&self.groups, event.as_deref()),
            Request::PairDelete { group, pair } => self.pair_order(&group, &pair, PairOrder::Delete, &|_| ()),
            Request::Takeover { group, force, dry_run: false, at, handover: true, bare } => {
                let head = self.group(&group)?.takeover_handed(force, bare, at.as_deref().map(Path::new))?;
                Ok(json!({ "position": head.0 }))
            }
            Request::Takeover { group, force, dry_run: true, .. } => self.forecast(&group, force),
            Request::Takeover { group, force, at, bare, .. } => self.takeover(&group, force, bare, at.as_deref()),
            Request::Observe { group } => self.observe(&group),
            Request::Proceed { group, procedure, over } => {
                self.group(&group)?.proceed(procedure, over).map(|()| json!({}))
            }
            Request::Rest { group, force } => self.group(&group)?.rest_there(force).map(|()| json!({})),
            Request::EndRest { group, at } => {
                self.group(&group)?.end_rest(at.as_deref().map(Path::new)).map(|()| json!({}))
            }
            Request::BringFrom { group, site } => self.group(&group)?.bring_from(&site).map(|()| json!({})),
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
            Request::Boot { group, now, dry_run } => {
                self.group(&group)?;
                self.launcher.boot(&group, now, dry_run)
            }
            Request::App { group, app, order } => {
                self.group(&group)?;
                self.launcher.order(&group, app.as_deref(), order).map(|()| json!({}))
            }
            Request::LegRemove { group, leg } => self.group(&group)?.remove_leg(leg).map(|()| json!({})),
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

    /// The next copy goes straight into the target's tree, without staging: that is a first copy. True when one that is
    /// under way is left for it.
    fn order_in_place(&self, group: &str, pair: &str) -> Result<bool> {
        let g = self.group(group)?;
        let p = g.pair(pair)?;
        if g.primary().is_some() && matches!(p.state(), State::Pair | State::Copy) {
            return Err(Error::refused(format!("pair {pair} is {}: it needs no resync", p.state().shown())));
        }
        p.set_repair(Some(Repair::Everything));
        let under_way = g.primary().is_some() && p.state() == State::CopyResync;
        if let (true, Some(d)) = (under_way, p.desk()) {
            d.close();
        }
        Ok(under_way)
    }

    fn pair_order(&self, group: &str, pair: &str, order: PairOrder, tell: &dyn Fn(&Progress)) -> Result<Value> {
        let g = self.group(group)?;
        let s = g.order(g.pair(pair)?, order, tell)?;
        Ok(json!({ "state": s.shown().to_string() }))
    }

    fn pair_resync(&self, group: &str, pair: &str, in_place: bool, keep: Option<&str>) -> Result<Value> {
        let g = self.group(group)?;
        let p = g.pair(pair)?;
        match keep {
            Some(_) if in_place => Err(Error::refused(
                "--keep with --in-place would keep nothing of the losing version: leave out --in-place",
            )),
            None if in_place && g.primary().is_none() => {
                Err(Error::refused(format!("group {group} is secondary here: order --in-place at its primary")))
            }
            Some(site) => Ok(json!({ "state": g.decide(p, site)?.shown().to_string() })),
            None if in_place
                && p.state().reason() != Some(Reason::SplitBrain)
                && self.order_in_place(group, pair)? =>
            {
                Ok(json!({ "state": "COPY" }))
            }
            None => self.pair_order(group, pair, PairOrder::Resync, &|_| ()),
        }
    }

    /// What a takeover may lose, and what forbids it.
    fn forecast(&self, group: &str, force: bool) -> Result<Value> {
        let g = self.group(group)?;
        let forecast = Forecast::before(g)?.map(|f| f.json());
        Ok(json!({ "loss": forecast, "refused": g.takeover_refused(force).map(|e| e.msg) }))
    }

    /// How the group stands everywhere.
    fn observe(&self, group: &str) -> Result<Value> {
        let g = self.group(group)?;
        // In the middle of a change nothing can be asked of others.
        g.settle();
        let mut all = vec![SiteView {
            site: self.config.node.site.clone(),
            group: Some(group_status(g, Some(&*self.launcher))),
            error: None,
        }];
        all.extend(g.others());
        serde_json::to_value(all).map_err(|e| Error::failed(e.to_string()))
    }

    fn takeover(&self, group: &str, force: bool, bare: bool, at: Option<&str>) -> Result<Value> {
        let g = self.group(group)?;
        let mounts = g.own_mounts(at.map(Path::new));
        let done = forecast::takeover(g, force, (!bare).then_some(mounts.as_slice()))?;
        let mounts: Vec<_> = g.mounts().into_iter().map(|m| m.dir).collect();
        let event = done.event.map(|e| format!("{:016x}", e.id));
        Ok(json!({ "position": done.head.0, "loss": done.loss, "loss_event": event, "mounts": mounts }))
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
            for m in g.mounts() {
                if let Ok(rel) = path.strip_prefix(&m.dir) {
                    return why::why(g, m.vol, rel);
                }
            }
        }
        Err(Error::config(format!("{} is not in a volume mounted by this node", path.display())))
    }

    /// What this node says about itself.
    pub(super) fn status(&self) -> Status {
        Status {
            version: STATUS_VERSION,
            site: self.config.node.site.clone(),
            pid: std::process::id(),
            cut: self.links.is_cut(),
            groups: self.groups.iter().map(|g| group_status(g, Some(&*self.launcher))).collect(),
            started: self.started.unix(),
            events: self.events.counts(),
            metrics: self.metrics.lock().as_ref().map(|m| m.standing()),
        }
    }
}

/// A group as this node sees it; without the launcher nothing is said of applications.
pub(super) fn group_status(g: &Arc<LocalGroup>, launcher: Option<&dyn Launcher>) -> GroupStatus {
    let down = g.down();
    let role = match (&down, g.primary()) {
        _ if g.starting() => "starting",
        (Some(_), _) => "down",
        (None, Some(_)) => "primary",
        (None, None) => "secondary",
    };
    let (epoch, led_by, position) = g.replica().map_or((0, None, 0), |r| {
        let m = r.order();
        let last = m.state.chain.last();
        (last.map_or(0, |e| e.number), last.map(|e| e.site.clone()), m.live.last_seq().0)
    });
    let mounts: Vec<MountStatus> = g
        .mounts()
        .into_iter()
        .map(|m| MountStatus {
            volume: g.cfg.volumes.get(m.vol.0 as usize).map_or_else(String::new, |v| v.name.clone()),
            dir: m.dir,
            options: m.options,
            attached: m.attached,
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
        .map(|(i, p)| {
            let s = match &primary {
                Some(group) => {
                    PairStatus { out_of_sync: g.out_of_sync(group, i), ..p.status("out", g.lag_of(group, i)) }
                }
                None if p.state() == State::Smpl && linked.as_ref() != Some(&p.peer) => {
                    p.status("none", Lag::default())
                }
                None => p.status("in", g.lag_behind(&p.peer)),
            };
            PairStatus { confirmed: g.confirmed(i), ..s }
        })
        .collect();
    let mut s = GroupStatus {
        name: g.cfg.name.clone(),
        role: role.into(),
        epoch,
        led_by,
        position,
        mount: mounts.first().map(|m| m.dir.clone()),
        mounts,
        fence: fence.into(),
        protection: if fence == "data" {
            "writes are refused while the sync pair is not in PAIR".into()
        } else {
            "writes go on and are journaled".into()
        },
        reason: down
            .or_else(|| g.note())
            .or_else(|| g.secondary().and_then(|r| suspect(&r.replica)))
            .or_else(|| rests(g)),
        kept_beside: g.replica().map_or(0, |r| r.kept_beside()),
        legs: g.legs(),
        queue: queued(g),
        pairs,
        volumes: g.volumes(),
        apps: launcher.map_or_else(Vec::new, |l| l.apps(&g.cfg.name)),
        boot: launcher.and_then(|l| l.note(&g.cfg.name)),
        lost: g.replica().ok().and_then(|r| lost(&r)),
        in_doubt: g.doubts(),
        refuses_writes: match &primary {
            Some(p) => g.refusal(p),
            None => Some(format!("group {} is {role} here", g.cfg.name)),
        },
        consistent: match (&primary, g.secondary()) {
            (Some(_), _) => true,
            (_, Some(r)) => !r.has_txn() && g.consistent(&r, false).is_ok(),
            _ => false,
        },
        faults: Vec::new(),
        task: g.task_words(),
        procedure: g.procedure(),
        arbiter: g.arbiter(),
    };
    s.faults = health::faults(g, &s);
    s
}

/// Why nothing is mounted at a primary that rests (G9).
fn rests(g: &LocalGroup) -> Option<String> {
    (g.rests() && g.primary().is_some()).then(|| {
        format!(
            "nothing is mounted by itself: a procedure unmounted it, or is not at its end; ordered again it goes on, and `kagami mount {}` ends that",
            g.cfg.name
        )
    })
}

fn lost(r: &Replica) -> Option<LossStatus> {
    let s = LostArea::of(r).sums().ok()?;
    (s.events > 0).then_some(LossStatus { events: s.events, objects: s.objects, bytes: s.bytes })
}

fn suspect(r: &Replica) -> Option<String> {
    let m = r.order();
    if m.state.torn {
        return Some(format!(
            "this site lost power: what it had after entry {} is to be compared with a peer before it counts",
            Replica::checkpointed(&m).0
        ));
    }
    m.state.suspect.then(|| "this replica is to be compared with a peer before it counts".into())
}

/// What is queued here, and what may be.
fn queued(g: &LocalGroup) -> QueueStatus {
    let mut q = QueueStatus {
        memory_limit_bytes: g.limits.queue_memory_bytes,
        spool_limit_bytes: g.limits.spool_bytes,
        log_limit_bytes: g.limits.log_bytes,
        journal_limit_bytes: g.limits.journal_bytes,
        journal_bytes: g.replica().map_or(0, |r| r.order().journal.size().0),
        ..QueueStatus::default()
    };
    if let Some(p) = g.primary() {
        let h = p.queue.held();
        (q.memory_bytes, q.spool_bytes, q.spool_file_bytes) = (h.memory, h.spooled, h.spool_files);
    }
    if let Some(r) = g.secondary() {
        q.log_bytes = r.replica.log.bytes();
    }
    q
}
