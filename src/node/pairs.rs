//! The pairs of a node: their states, persisted before anything is done because of them (CD-2, MS-2).

use super::desk::Desk;
use super::repair::Repair;
use super::status::{Lag, PairStatus, Progress, ResyncStats};
use crate::base::{Result, Site};
use crate::pair::state::{self, Event, Mode, State};
use crate::store::files;
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"KGMPAIR\0";
const VERSION: u32 = 1;

struct Inner {
    state: State,
    reason: Option<String>,
    last_resync: Option<ResyncStats>,
    progress: Option<Progress>,
    link: bool,
    desk: Option<Arc<Desk>>,
    repair: Option<Repair>,
}

/// One pair that this site has an end of.
pub struct Pair {
    /// Group.
    pub group: String,
    /// Pair.
    pub name: String,
    /// How it copies.
    pub mode: Mode,
    /// The site at the other end.
    pub peer: Site,
    path: Option<PathBuf>,
    inner: Mutex<Inner>,
}

impl Pair {
    /// With its persisted state; a new pair starts in Simplex.
    pub fn load(state_dir: &Path, group: &str, name: &str, mode: Mode, peer: &str) -> Result<Pair> {
        let dir = state_dir.join("pairs");
        std::fs::create_dir_all(&dir)?;
        let path = dir.join(format!("{group}.{name}"));
        let state = files::load::<State>(&path, MAGIC, VERSION)?.unwrap_or(State::Smpl);
        let inner =
            Inner { state, reason: None, last_resync: None, progress: None, link: false, desk: None, repair: None };
        Ok(Pair {
            group: group.into(),
            name: name.into(),
            mode,
            peer: peer.into(),
            path: Some(path),
            inner: Mutex::new(inner),
        })
    }

    /// The other end of a pair within one process: follows, persists nothing.
    pub fn shadow(of: &Pair) -> Pair {
        let inner = Inner {
            state: of.state(),
            reason: None,
            last_resync: None,
            progress: None,
            link: false,
            desk: None,
            repair: None,
        };
        let (group, name, peer) = (of.group.clone(), of.name.clone(), of.peer.clone());
        Pair { group, name, mode: of.mode, peer, path: None, inner: Mutex::new(inner) }
    }

    fn save(&self, s: &State) -> Result<()> {
        match &self.path {
            Some(p) => files::save(p, MAGIC, VERSION, s),
            None => Ok(()),
        }
    }

    /// The present state.
    pub fn state(&self) -> State {
        self.inner.lock().state
    }

    /// Moves along the one transition table; persists, then takes effect. `why`: words for people.
    pub fn event(&self, event: Event, why: Option<String>) -> Result<State> {
        let mut g = self.inner.lock();
        let next = state::next(g.state, event, self.mode)?;
        if next != g.state {
            self.save(&next)?;
            log::info!(
                "group {} pair {}: {} -> {}{}",
                self.group,
                self.name,
                g.state,
                next,
                why.as_ref().map(|w| format!(" ({w})")).unwrap_or_default()
            );
        }
        g.state = next;
        g.reason = why;
        if matches!(next, State::Pair) {
            g.progress = None;
        }
        Ok(next)
    }

    /// Follows what the primary of the pair says (at a secondary, whose side decides nothing).
    pub fn mirror(&self, to: State, why: Option<String>) -> Result<()> {
        let mut g = self.inner.lock();
        if g.state != to {
            self.save(&to)?;
            if self.path.is_some() {
                log::info!("group {} pair {}: {} -> {}", self.group, self.name, g.state, to);
            }
        }
        g.state = to;
        g.reason = why;
        Ok(())
    }

    /// Says why nothing happens now (G9), without a change of state.
    pub fn say(&self, why: Option<String>) {
        self.inner.lock().reason = why;
    }

    /// The link of a pair in PAIR, for questions beside the stream of entries.
    pub fn set_desk(&self, d: Option<Arc<Desk>>) {
        self.inner.lock().desk = d;
    }

    /// See [`Pair::set_desk`].
    pub fn desk(&self) -> Option<Arc<Desk>> {
        self.inner.lock().desk.clone()
    }

    /// Orders a repair (carried out when the pair's link comes up the next time), or says that it is done.
    pub fn set_repair(&self, r: Option<Repair>) {
        self.inner.lock().repair = r;
    }

    /// The repair ordered.
    pub fn repair(&self) -> Option<Repair> {
        self.inner.lock().repair.clone()
    }

    /// The link is up or down.
    pub fn set_link(&self, up: bool) {
        self.inner.lock().link = up;
    }

    /// How far a copy is.
    pub fn set_progress(&self, p: Option<Progress>) {
        self.inner.lock().progress = p;
    }

    /// See [`Pair::set_progress`].
    pub fn progress(&self) -> Option<Progress> {
        self.inner.lock().progress.clone()
    }

    /// What the last resync did.
    pub fn set_last_resync(&self, r: ResyncStats) {
        self.inner.lock().last_resync = Some(r);
    }

    /// For `kagami status`.
    pub fn status(&self, direction: &str, lag: Lag) -> PairStatus {
        let g = self.inner.lock();
        PairStatus {
            name: self.name.clone(),
            mode: self.mode_name().into(),
            peer: self.peer.clone(),
            direction: direction.into(),
            state: g.state.shown().to_string(),
            reason: g.reason.clone().or_else(|| g.state.reason().map(|r| r.to_string())),
            lag,
            progress: g.progress.clone(),
            last_resync: g.last_resync.clone(),
        }
    }

    fn mode_name(&self) -> &'static str {
        match self.mode {
            Mode::Sync => "sync",
            Mode::Async => "async",
        }
    }
}
