//! What a takeover here may lose, as far as it can be known before: from what the old primary said last, and from a third
//! site that has more (MS-10, G6). The takeover leaves it as an event in the loss manifest.

use super::config::Fence;
use super::local::LocalGroup;
use super::pairs::Pair;
use crate::base::time::{self, Time};
use crate::base::{Epoch, Error, Result, Seq, VolId, random_u64};
use crate::format::loss::{Cause, Event, Lost, Part};
use crate::pair::chain::{Chain, Meeting};
use crate::pair::state::Mode;
use crate::store::loss;
use crate::store::replica::Replica;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;

/// The forecast.
pub struct Forecast {
    /// The last position here.
    received: Seq,
    /// The last position known of anybody.
    head: Seq,
    /// The last time something of the old primary was heard.
    since: Option<Time>,
    /// Nothing that was answered can be missing.
    certain: bool,
    /// This site lost power: what it received after this position may be missing in part.
    torn: Option<Seq>,
    /// The old primary's epoch.
    lost: Option<Epoch>,
    /// A site that has more, and what was changed in that.
    ahead: Option<(String, Vec<Lost>)>,
    /// Bytes that the old primary had not sent when it was last heard.
    bytes: u64,
    words: String,
}

impl Forecast {
    /// As `Forecast::of`; `None` for a primary that leads for another site: it only becomes one for itself.
    pub fn before(g: &LocalGroup) -> Result<Option<Forecast>> {
        if g.acts() { Ok(None) } else { Forecast::of(g).map(Some) }
    }

    /// For a takeover of a group whose replica here receives.
    fn of(g: &LocalGroup) -> Result<Forecast> {
        let replica = g.replica()?;
        let Some(receiver) = g.secondary() else {
            return Err(Error::refused(format!("group {} is primary here already", g.cfg.name)));
        };
        let received = receiver.received();
        let (chain, torn) = {
            let m = replica.order();
            (replica.chain(&m), m.state.torn.then(|| Replica::checkpointed(&m)))
        };
        let lost = chain.head().cloned();
        let old = lost.as_ref().map_or("", |e| e.site.as_str());
        let old_pair = g.pairs.iter().find(|p| p.peer == old);
        let mut head = received.max(g.head_heard().unwrap_or(received));
        let mut ahead = None;
        for p in g.pairs.iter().filter(|p| p.peer != old) {
            let seen = match g.look(p, received) {
                Ok(s) => s,
                Err(e) => {
                    log::info!("group {}: asking site {} what it has: {e}", g.cfg.name, p.peer);
                    continue;
                }
            };
            let theirs = Chain::from_epochs(seen.chain);
            if let Meeting::IAmBehind { common } = chain.meet(received, &theirs, seen.head)
                && common == received
                && seen.head > received
            {
                head = head.max(seen.head);
                ahead = Some((p.peer.clone(), objects(seen.changed)));
            }
        }
        let certain = g.cfg.fence == Fence::Data
            && old_pair.is_some_and(|p: &Arc<Pair>| p.mode == Mode::Sync)
            && head == received
            && torn.is_none();
        let bytes = g.lag_behind(old).bytes;
        let mut f =
            Forecast { bytes, received, head, since: g.last_heard(), certain, torn, lost, ahead, words: String::new() };
        f.words = f.describe();
        Ok(f)
    }

    fn missing(&self) -> u64 {
        self.head.0.saturating_sub(self.received.0)
    }

    fn describe(&self) -> String {
        if self.certain {
            return "nothing that was answered: with fence = data the primary refuses what this site cannot take"
                .into();
        }
        let old = self.lost.as_ref().map_or("the primary", |e| e.site.as_str());
        let mut o = match self.missing() {
            0 => String::new(),
            n => format!("{n} entries that were made never arrived here; "),
        };
        if let Some(at) = self.torn {
            o += &format!("this site lost power: what came after entry {} may be missing in part; ", at.0);
        }
        if let Some((site, _)) = &self.ahead {
            o += &format!("site {site} has them: taking over there loses less; ");
        }
        o += &match self.since {
            Some(t) => format!("what site {old} wrote after {} UTC is not known", time::utc(t)),
            None => format!("what site {old} wrote after the last entry received here is not known"),
        };
        o
    }

    /// For people and JSON.
    pub fn json(&self) -> Value {
        let seconds = self.since.map(|t| time::now().nanos_total().saturating_sub(t.nanos_total()) as f64 / 1e9);
        let names: Vec<String> = self.objects().iter().map(|l| String::from_utf8_lossy(&l.path).into_owned()).collect();
        json!({
            "entries_known_missing": self.missing(),
            "bytes_known_missing": self.bytes,
            "unknown_since": self.since.map(time::utc),
            "seconds": seconds,
            "words": self.words,
            "files_known": names,
        })
    }

    fn objects(&self) -> &[Lost] {
        self.ahead.as_ref().map_or(&[], |(_, l)| l)
    }

    /// Leaves an event in the manifest, if a takeover may lose something of which the operator is to be reminded.
    fn note(&self, g: &LocalGroup, force: bool) -> Result<Option<Event>> {
        let old = self.lost.as_ref().map_or("", |e| e.site.as_str());
        let from_async = g.pairs.iter().any(|p| p.peer == old && p.mode == Mode::Async);
        if self.certain || !(force || from_async || self.missing() > 0) {
            return Ok(None);
        }
        let mut e = loss::event(random_u64(), Cause::NeverArrived);
        (e.common, e.head, e.since) = (self.received, self.head, self.since);
        (e.lost, e.words) = (self.lost.clone(), self.words.clone());
        loss::LostArea::of(&*g.replica()?).write(e, self.objects()).map(Some)
    }
}

/// What a takeover did.
pub struct Done {
    /// The position from which this site leads.
    pub head: Seq,
    /// What may be lost by it, as [`Forecast::json`]; null where nothing can be.
    pub loss: Value,
    /// What the manifest says of it.
    pub event: Option<Event>,
}

/// Takes a group over here. What may be lost by that is on disk before the group is writable: it is not to be forgotten by a
/// crash in between (G6). `mounts`: as [`LocalGroup::takeover`].
///
/// # Errors
/// As [`LocalGroup::takeover`]; where the role did not change nothing is noted.
pub fn takeover(g: &Arc<LocalGroup>, force: bool, mounts: Option<&[(VolId, PathBuf)]>) -> Result<Done> {
    if force && g.primary().is_some() && g.ballot().is_some_and(|b| !b.leads()) {
        // It leads already, and goes on without the voters.
        return g.takeover(true, mounts).map(|head| Done { head, loss: Value::Null, event: None });
    }
    // The voters first: what is refused leaves no note.
    if g.secondary().is_some() {
        if let Some(e) = g.takeover_refused(force) {
            return Err(e);
        }
        g.win(force)?;
    }
    let done = won(g, force, mounts);
    if done.is_err() {
        g.not_taken_over();
    }
    done
}

fn won(g: &Arc<LocalGroup>, force: bool, mounts: Option<&[(VolId, PathBuf)]>) -> Result<Done> {
    let forecast = Forecast::before(g)?;
    let event = forecast.as_ref().map_or(Ok(None), |f| f.note(g, force))?;
    let head = g.takeover(force, mounts).inspect_err(|_| {
        if let (None, Some(e)) = (g.primary(), &event) {
            let undone = g.replica().and_then(|r| loss::LostArea::of(&r).drop_event(e.id));
            undone.unwrap_or_else(|e| log::warn!("group {}: {e}", g.cfg.name));
        }
    })?;
    Ok(Done { head, loss: forecast.map_or(Value::Null, |f| f.json()), event })
}

/// What a third site has changed, as a manifest has it.
fn objects(changed: Vec<(VolId, Vec<u8>)>) -> Vec<Lost> {
    let lost = |(n, (vol, path)): (usize, (VolId, Vec<u8>))| Lost {
        n: n as u32,
        vol,
        path,
        what: vec![Part::Changed],
        ..Lost::default()
    };
    changed.into_iter().enumerate().map(lost).filter(Lost::is_valid).collect()
}
