//! The pairs of a node: their states, persisted before anything is done because of them (CD-2, MS-2).

use super::config::PortLu;
use super::desk::Desk;
use super::equal::Vouch;
use super::events::{self, Events};
use super::repair::Repair;
use super::status::{Lag, PairStatus, Progress, ResyncStats, Verified, VolumeEnds};
use crate::base::sync::Mutex;
use crate::base::{Epoch, Error, Result, Seq, Site, time, time::Time};
use crate::pair::state::{self, Event, Mode, Reason, State};
use crate::store::files;
use bincode::{Decode, Encode};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const MAGIC: &[u8; 8] = b"KGMPAIR\0";
const VERSION: u32 = 1;

/// One volume of a pair: what each end calls it (CD-2).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Ends {
    /// Its name here.
    pub name: String,
    /// Port and LU here.
    pub here: PortLu,
    /// Port and LU at the other end.
    pub there: PortLu,
}

/// What is kept of a pair: its rows of the pair definition table. The roles of the ends change with a takeover, the names
/// of the ends do not.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct Rows {
    state: State,
    peer: Site,
    ends: Vec<Ends>,
    /// This site took over from the other end and has not resynced it since.
    taken_over: bool,
}

struct Inner {
    state: State,
    taken_over: bool,
    reason: Option<String>,
    last_resync: Option<ResyncStats>,
    progress: Option<Progress>,
    link: bool,
    desk: Option<Arc<Desk>>,
    repair: Option<Repair>,
    vouch: Option<Arc<Vouch>>,
    heard: Instant,
    /// When a copy last ended well.
    copied: Option<Time>,
    verified: Option<Verified>,
    /// How often each fault suspended it since the node was started.
    faults: [u64; Reason::ALL.len()],
    rival: Option<Epoch>,
    /// How often it was ordered to stop copying.
    halts: u64,
}

impl Inner {
    fn new(state: State, taken_over: bool) -> Inner {
        Inner {
            state,
            taken_over,
            reason: None,
            last_resync: None,
            progress: None,
            link: false,
            desk: None,
            repair: None,
            vouch: None,
            heard: Instant::now(),
            copied: None,
            verified: None,
            faults: [0; Reason::ALL.len()],
            rival: None,
            halts: 0,
        }
    }
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
    /// Its volumes, by index.
    pub ends: Vec<Ends>,
    /// Where its state is kept and told; `None`: the other end does that, in this process.
    kept: Option<(PathBuf, Arc<Events>)>,
    inner: Mutex<Inner>,
    position: AtomicU64,
}

impl Pair {
    /// With its persisted state; a new pair starts in Simplex. The ends of its volumes are those of the site file.
    pub fn load(
        (state_dir, events): (&Path, &Arc<Events>),
        group: &str,
        name: &str,
        mode: Mode,
        peer: &str,
        ends: Vec<Ends>,
    ) -> Result<Pair> {
        let dir = state_dir.join("pairs");
        std::fs::create_dir_all(&dir)?;
        let path = dir.join(format!("{group}.{name}"));
        let kept = files::load::<Rows>(&path, MAGIC, VERSION)?;
        let state = kept.as_ref().map_or(State::Smpl, |k| k.state);
        let taken_over = kept.as_ref().is_some_and(|k| k.taken_over);
        let inner = Inner::new(state, taken_over);
        let pair = Pair {
            group: group.into(),
            name: name.into(),
            mode,
            peer: peer.into(),
            ends,
            kept: Some((path, events.clone())),
            inner: Mutex::new(inner),
            position: AtomicU64::new(0),
        };
        if kept.is_none_or(|k| k.ends != pair.ends || k.peer != pair.peer) {
            pair.save(&state, taken_over)?;
        }
        Ok(pair)
    }

    /// The other end of a pair within one process: follows, persists nothing.
    pub fn shadow(of: &Pair) -> Pair {
        let inner = Inner::new(of.state(), false);
        let (group, name, peer) = (of.group.clone(), of.name.clone(), of.peer.clone());
        Pair {
            group,
            name,
            mode: of.mode,
            peer,
            ends: of.ends.clone(),
            kept: None,
            inner: Mutex::new(inner),
            position: AtomicU64::new(0),
        }
    }

    fn save(&self, s: &State, taken_over: bool) -> Result<()> {
        match &self.kept {
            Some((p, _)) => {
                let rows = Rows { state: *s, peer: self.peer.clone(), ends: self.ends.clone(), taken_over };
                files::save(p, MAGIC, VERSION, &rows)
            }
            None => Ok(()),
        }
    }

    /// The present state.
    pub fn state(&self) -> State {
        self.inner.lock().state
    }

    /// How often it was ordered to stop copying: a session from before such an order ends, also when the pair is copied
    /// again at once.
    pub fn halts(&self) -> u64 {
        self.inner.lock().halts
    }

    /// Moves along the one transition table; persists, then takes effect. `why`: words for people.
    pub fn event(&self, event: Event, why: Option<String>) -> Result<State> {
        let mut g = self.inner.lock();
        let next = state::next(g.state, event, self.mode)?;
        // Once the other end is equal, it is a secondary like any other.
        let taken_over = g.taken_over && !matches!(next, State::Pair | State::Smpl);
        self.change(&mut g, next, taken_over, why)?;
        g.halts += u64::from(matches!(event, Event::Split | Event::Delete));
        if matches!(next, State::Pair) {
            g.progress = None;
        }
        Ok(next)
    }

    /// Persists a state, tells of it, and takes it up.
    fn change(&self, g: &mut Inner, next: State, taken_over: bool, why: Option<String>) -> Result<()> {
        if next != g.state || taken_over != g.taken_over {
            self.save(&next, taken_over)?;
        }
        if next != g.state {
            if self.kept.is_some() {
                let words = why.as_ref().map(|w| format!(" ({w})")).unwrap_or_default();
                log::info!("group {} pair {}: {} -> {next}{words}", self.group, self.name, g.state);
            }
            self.tell(events::Event {
                from: Some(g.state.shown().to_string()),
                to: Some(next.shown().to_string()),
                fault: next.reason().map(|r| r.to_string()),
                reason: why.clone(),
                ..events::Event::new(events::What::Pair)
            });
            let fault = next.reason().and_then(|r| Reason::ALL.iter().position(|x| *x == r));
            if let Some(n) = fault.and_then(|i| g.faults.get_mut(i)) {
                *n += 1;
            }
        }
        (g.state, g.taken_over) = (next, taken_over);
        g.reason = why;
        Ok(())
    }

    /// This site takes over from the other end: copying ends, and until that end is resynced what it has is out of date.
    pub fn take_over(&self) -> Result<()> {
        let mut g = self.inner.lock();
        self.save(&g.state, true)?;
        g.taken_over = true;
        drop(g);
        self.event(Event::Fault(Reason::LinkLost), Some("taken over".into())).map(drop)
    }

    /// Reports an event about this pair.
    pub fn tell(&self, e: events::Event) {
        if let Some((_, events)) = &self.kept {
            let position = Some(self.position.load(Ordering::Relaxed)).filter(|p| *p > 0);
            let (group, pair) = (Some(self.group.clone()), Some(self.name.clone()));
            events.add(events::Event { group, pair, position, ..e });
        }
    }

    /// Follows what the primary of the pair says (at a secondary, whose side decides nothing).
    pub fn mirror(&self, to: State, why: Option<String>) -> Result<()> {
        self.change(&mut self.inner.lock(), to, false, why)
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

    /// The operator's word that both ends are equal, while it is being looked at.
    pub fn vouch(&self) -> Option<Arc<Vouch>> {
        self.inner.lock().vouch.clone()
    }

    /// Takes the operator's word. Refused where the pair exists, and while another word is being looked at.
    pub fn set_vouch(&self, v: &Arc<Vouch>) -> Result<()> {
        let mut g = self.inner.lock();
        state::next(g.state, Event::Create { no_copy: true }, self.mode)?;
        if g.vouch.is_some() {
            return Err(Error::refused(format!("pair {} is being created already", self.name)));
        }
        g.vouch = Some(v.clone());
        g.reason = Some(format!("comparing with site {}", self.peer));
        Ok(())
    }

    /// What came of the operator's word, if one is being looked at.
    pub fn settle_vouch(&self, r: Result<ResyncStats>) {
        let mut g = self.inner.lock();
        if let Some(v) = g.vouch.take() {
            if let Err(e) = &r {
                g.progress = None;
                g.reason = Some(format!("not created: {e}"));
            }
            v.settle(r);
        }
    }

    /// After a split brain: the last epoch of the other side.
    pub fn set_rival(&self, e: Option<Epoch>) {
        self.inner.lock().rival = e;
    }

    /// See [`Pair::set_rival`].
    pub fn rival(&self) -> Option<Epoch> {
        self.inner.lock().rival.clone()
    }

    /// The link is up or down.
    pub fn set_link(&self, up: bool) {
        let mut g = self.inner.lock();
        (g.link, g.heard) = (up, Instant::now());
    }

    /// True while its link is up.
    pub fn linked(&self) -> bool {
        self.inner.lock().link
    }

    /// True while it fences nothing: the operator keeps it suspended, or took over from its other end (MS-6).
    pub fn unfenced(&self) -> bool {
        let g = self.inner.lock();
        g.taken_over || matches!(g.state, State::Psus | State::PsusCopy)
    }

    /// The secondary has everything up to here.
    pub fn reached(&self, position: Seq) {
        self.position.store(position.0, Ordering::Relaxed);
    }

    /// The peer greeted, whatever came of it.
    pub fn hear(&self) {
        self.inner.lock().heard = Instant::now();
    }

    /// How long nothing has been heard of the peer: since the end of the link, or since the node was started.
    pub fn silence(&self) -> Duration {
        let g = self.inner.lock();
        if g.link { Duration::ZERO } else { g.heard.elapsed() }
    }

    /// At a secondary: no entry comes any more by this pair, though nobody ordered that. Another state stays as it is, and
    /// only the operator ends a split brain.
    pub fn lost(&self, reason: Reason, why: String) -> Result<()> {
        match self.state() {
            s if s.reason() == Some(Reason::SplitBrain) => Ok(()),
            State::Copy | State::PsueCopy(_) => self.mirror(State::PsueCopy(reason), Some(why)),
            State::Pair | State::CopyResync | State::Suspending | State::Psue(_) => {
                self.mirror(State::Psue(reason), Some(why))
            }
            State::Smpl | State::Psus | State::PsusCopy => Ok(()),
        }
    }

    /// At a secondary: the operator of the primary suspended the pair, or ended it.
    pub fn parted(&self, deleted: bool) -> Result<()> {
        let (to, why) = match (deleted, self.state()) {
            (true, _) => (State::Smpl, "ended"),
            (false, State::Copy | State::PsusCopy | State::PsueCopy(_)) => (State::PsusCopy, "suspended"),
            (false, _) => (State::Psus, "suspended"),
        };
        self.mirror(to, Some(format!("{why} by order at site {}", self.peer)))
    }

    /// How far a copy is.
    pub fn set_progress(&self, p: Option<Progress>) {
        self.inner.lock().progress = p;
    }

    /// See [`Pair::set_progress`].
    pub fn progress(&self) -> Option<Progress> {
        self.inner.lock().progress.clone()
    }

    /// A copy or resync is complete: what it did.
    pub fn set_last_resync(&self, r: ResyncStats) {
        self.tell(events::Event { stats: Some(r.clone()), ..events::Event::new(events::What::CopyEnd) });
        let mut g = self.inner.lock();
        (g.last_resync, g.copied) = (Some(r), Some(time::now()));
    }

    /// It was compared, with so many differences left.
    pub fn set_verified(&self, differences: u64) {
        let to = Some(if differences == 0 { "equal" } else { "different" }.to_owned());
        let reason = (differences > 0).then(|| format!("{differences} differences"));
        self.tell(events::Event { to, reason, ..events::Event::new(events::What::Verify) });
        self.inner.lock().verified = Some(Verified { time: time::now().unix(), differences });
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
            fault: g.state.reason().map(|r| r.to_string()),
            linked: g.link,
            taken_over: g.taken_over,
            lag,
            progress: g.progress.clone(),
            volumes: self.ends.iter().map(|e| e.status(direction != "out")).collect(),
            last_resync: g.last_resync.clone(),
            confirmed: None,
            copied: g.copied.map(Time::unix),
            verified: g.verified,
            faults: Reason::ALL.iter().map(|r| r.to_string()).zip(g.faults).collect(),
            out_of_sync: None,
        }
    }

    fn mode_name(&self) -> &'static str {
        match self.mode {
            Mode::Sync => "sync",
            Mode::Async => "async",
        }
    }
}

impl Ends {
    /// Both ends by their roles: with `receives`, the other end is the primary one.
    fn status(&self, receives: bool) -> VolumeEnds {
        let (p, s) = if receives { (&self.there, &self.here) } else { (&self.here, &self.there) };
        let ((primary_port, primary_lu), (secondary_port, secondary_lu)) = (p.clone(), s.clone());
        VolumeEnds { name: self.name.clone(), primary_port, primary_lu, secondary_port, secondary_lu }
    }
}
