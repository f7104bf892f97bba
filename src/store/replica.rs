//! A replica: one complete copy of a group at one place, made of a region for each volume and the group's metadata in
//! the lead volume's region (one sequence per group needs one journal, one log, one chain).

use super::activity::Activity;
use super::before::Names;
use super::exec::{Acted, Pre, Side};
use super::files;
use super::journal::Journal;
use super::live::{Intent, Left, Live};
use super::log::{EntryLog, Shape};
pub use super::power::Cut;
use super::power::{self, Active};
use super::region::Region;
use super::watch::Watch;
use crate::base::planted::{Bug, planted};
use crate::base::sync::atomic::{AtomicBool, Ordering};
use crate::base::sync::{Mutex, MutexGuard};
use crate::base::{At, Epoch, Error, Kind, LinkId, Name, Result, Seq, VolId};
use crate::format::msg::CopyState;
use crate::format::op::{Op, Target};
use crate::pair::chain::Chain;
use crate::pair::change::{Change, NsChange, Rec, What};
use crate::pair::plan::{self, Links};
use bincode::{Decode, Encode};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

const MAGIC: &[u8; 8] = b"KGMSTAT\0";
const VERSION: u32 = 1;

/// What a replica persists about its place in the group's history.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct State {
    /// Epochs, oldest first.
    pub chain: Vec<Epoch>,
    /// Whether it is at a point of the order.
    pub copy: CopyState,
    /// After a first copy: a point only once entries up to here are applied.
    pub whole: Seq,
    /// Applying met a tree that it did not expect; a comparison with a peer is due.
    pub suspect: bool,
    /// Unclean ends as primary: (everything up to here had finished, last position given out). Latest last.
    pub crashes: Vec<(Seq, Seq)>,
    /// It was primary since it last received a copy or resync: its tree may have what no entry tells of.
    pub was_primary: bool,
    /// Power cuts: what the journal may not know of. Latest last.
    pub cuts: Vec<Cut>,
    /// The last of them may have undone what was not synced: the tree is no point of the order before a peer has made it
    /// one.
    pub torn: bool,
    /// After a split brain the operator said that the other side's version is kept: this one may be set back (G6).
    pub yields: bool,
    /// Since a power cut the tree is no point of the order before the entry log is applied up to this position; 0: it is
    /// one. [`SETTING_BACK`]: its names are being set back to the last checkpoint first.
    pub replay: u64,
    /// What a power cut took that the entry log could not bring back, in words; not all when it is much.
    pub unmended: Vec<String>,
}

/// See [`State::replay`].
pub const SETTING_BACK: u64 = u64::MAX;

impl State {
    /// That of the replica whose lead region is at `path`; `None` when it was never in use.
    pub fn read(path: &Path) -> Result<Option<State>> {
        files::load(&path.join(".kagami/state"), MAGIC, VERSION)
    }
}

/// Records of one operation, at most, bytes.
const RECORDS_BYTES: u64 = 8 << 10;
/// Room in journal and table that only what makes room may use, bytes.
const LAST_ROOM_BYTES: u64 = 32 << 10;
/// Unclean ends remembered, count.
const CRASHES_KEPT: usize = 16;
/// Directory of the spool in the lead region.
const SPOOL: &str = "spool";

/// What operations change together; its lock is the group's order.
pub struct Meta {
    /// The live page.
    pub live: Live,
    /// The change journal.
    pub journal: Journal,
    /// Chain and copy state.
    pub state: State,
    /// Checkpoint and active directories.
    pub activity: Activity,
    /// The tree is changed by the entry log only, which may be applied again after a power cut.
    pub(super) receiving: bool,
    watches: Vec<Weak<Mutex<Watch>>>,
    broken: Option<Error>,
}

/// Where a group's replica lies: the region directory of each volume, in order.
#[derive(Clone, Debug)]
pub struct Place {
    /// Group name.
    pub group: String,
    /// Volume name and region directory.
    pub volumes: Vec<(String, PathBuf)>,
    /// Limit of the change journal, bytes.
    pub journal_bytes: u64,
    /// Limit of the entry log, bytes.
    pub log_bytes: u64,
}

/// What a change of content or attributes marks in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Bytes `from..to`; `to` = `u64::MAX`: to the end of the file, with the size.
    Data {
        /// First byte.
        from: u64,
        /// One past the last.
        to: u64,
    },
    /// Attributes, times, extended attributes.
    Attr,
}

/// A change that begins after this position has its mark in the interval of that time, which a position of the same number
/// may have ended since: read from the one before, the interval is found.
pub fn before(s: Seq) -> Seq {
    Seq(s.0.saturating_sub(1))
}

/// Remembers an unclean end. Of too many the oldest become one.
fn note_crash(crashes: &mut Vec<(Seq, Seq)>, crash: (Seq, Seq)) {
    if crashes.last() == Some(&crash) {
        return;
    }
    crashes.push(crash);
    if crashes.len() > CRASHES_KEPT {
        let (low, _) = crashes.remove(0);
        if let Some(next) = crashes.first_mut() {
            next.0 = next.0.min(low);
        }
    }
}

/// An open replica.
pub struct Replica {
    /// Group name.
    pub group: String,
    /// One region per volume.
    pub regions: Vec<Arc<Region>>,
    /// What was received and must survive kill -9.
    pub log: EntryLog,
    /// How it was left the last time.
    pub left: Left,
    pub(super) checkpointing: Mutex<()>,
    pub(super) names: Mutex<Names>,
    /// Limit of the entry log, bytes.
    pub log_bytes: u64,
    meta: Mutex<Meta>,
    /// What was written and is not on the disk though no sync will say so.
    unsynced: AtomicBool,
    state_path: PathBuf,
}

impl Replica {
    /// Makes the regions of a new replica (see [`Region::create`]).
    pub fn create(place: &Place) -> Result<()> {
        for (i, (name, path)) in place.volumes.iter().enumerate() {
            Region::create(path, &place.group, name, VolId(i as u16))?;
        }
        Ok(())
    }

    /// Opens, locks and recovers a replica.
    pub fn open(place: &Place) -> Result<Replica> {
        Self::load(place).map_err(|e| match (e.kind, place.volumes.first()) {
            (Kind::Corrupt, Some((_, path))) => Error {
                msg: format!(
                    "{}. Nothing of this replica is touched: bring the file back from a backup; or, where another site has the group's data, move {} away and make an empty replica with `kagami region create`, which is then copied anew",
                    e.msg,
                    path.display()
                ),
                ..e
            },
            _ => e,
        })
    }

    fn load(place: &Place) -> Result<Replica> {
        let active = Active::read(place)?;
        let mut regions = Vec::new();
        for (i, (name, path)) in place.volumes.iter().enumerate() {
            regions.push(Arc::new(Region::open(path, &place.group, name, VolId(i as u16))?));
        }
        // A damaged one is known before anything is changed.
        regions.iter().try_for_each(|r| r.head().map(drop))?;
        let lead = regions.first().ok_or_else(|| Error::config("a group needs a volume"))?.meta();
        let state_path = lead.join("state");
        // One of the two without the other is lost, not new.
        let new = !state_path.exists();
        let (live, left) = Live::open(&lead.join("live"), new)?;
        if new && live.last_seq() > Seq(0) {
            return Err(Error::corrupt(format!("{}: missing, of a replica that was in use", state_path.display())));
        }
        let mut state = match files::load::<State>(&state_path, MAGIC, VERSION)? {
            Some(s) => s,
            None => State {
                chain: Vec::new(),
                copy: CopyState::Empty,
                whole: Seq(0),
                suspect: false,
                crashes: Vec::new(),
                was_primary: false,
                cuts: Vec::new(),
                torn: false,
                yields: false,
                replay: 0,
                unmended: Vec::new(),
            },
        };
        let cut = left == Left::PowerLoss || state.replay == SETTING_BACK;
        for r in &regions {
            r.open_space(cut)?;
        }
        let replay = active.replay().filter(|_| cut && state.copy == CopyState::Consistent);
        let from = replay.map_or(live.applied_lsn(), |r| r.lsn);
        let log = EntryLog::open(&lead.join("queue"), from, Shape::of_log(place.log_bytes))?;
        // A spool belongs to one run of a primary; the journal covers what was in it.
        files::remove_dir(&lead.join(SPOOL))?;
        if let Some(r) = &replay {
            let save = |s: &State| files::save(&state_path, MAGIC, VERSION, s);
            power::set_back(&lead, &regions, &mut state, r, (&live, &log), &active, &save)?;
        }
        let whole = replay.is_some() && state.replay != SETTING_BACK;
        let mut journal = Journal::open(&lead.join("journal"), live.last_seq(), place.journal_bytes)?;
        let torn = (cut && !whole) || state.torn;
        if torn && !whole && (cut || state.replay == 0) {
            state.replay = 0;
            power::note(&mut state, &live, &journal, &active, cut)?;
            files::save(&state_path, MAGIC, VERSION, &state)?;
            power::give_up_steps(&live, &log, &regions)?;
            power::mend(&regions, &state)?;
        } else if left == Left::Killed && state.was_primary && !planted(Bug::ForgetCrash) {
            // Also when the two are equal: a change may have begun after the last entry.
            note_crash(&mut state.crashes, (live.settled(), live.last_seq()));
            files::save(&state_path, MAGIC, VERSION, &state)?;
        }
        if let Some((from, to)) = live.txn() {
            journal.begin_jump(from, to)?;
        }
        let (names, known) = Names::open(&lead, active.replay().map_or(0, |r| r.names))?;
        let mut activity = active.open(&lead.join("active"), &regions)?;
        if !known {
            activity.no_replay()?;
        }
        let unfinished = torn || state.replay != 0;
        let meta = Meta { live, journal, state, activity, receiving: false, watches: Vec::new(), broken: None };
        let checkpointing = Mutex::new(());
        let r = Replica {
            group: place.group.clone(),
            regions,
            log,
            left,
            checkpointing,
            names: Mutex::new(names),
            log_bytes: place.log_bytes,
            meta: Mutex::new(meta),
            unsynced: AtomicBool::new(lead.join("unsynced").exists()),
            state_path,
        };
        r.recover()?;
        if unfinished {
            r.set_between(true)?;
        }
        Ok(r)
    }

    /// Finishes or forgets the one operation on names that kill -9 may have interrupted.
    fn recover(&self) -> Result<()> {
        let mut m = self.order();
        let Some(i) = m.live.intent()? else {
            self.regions.iter().for_each(|r| r.space.end_names(false));
            return Ok(());
        };
        let region = self.region(i.vol)?;
        let receiver = i.next_lsn != 0;
        if (receiver && i.next_lsn <= m.live.applied_lsn())
            || (!receiver && i.seq <= m.live.last_seq() && i.seq <= m.journal.last_ns())
        {
            region.space.end_names(true);
            m.live.clear_intent();
            return Ok(());
        }
        let done = region.was_done(&i.op, &i.pre)?;
        log::info!(
            "group {}: entry {} was in progress when the node was stopped: {}",
            self.group,
            i.seq.0,
            if done { "done" } else { "not done" }
        );
        if done {
            let mut op = i.op.clone();
            let side = if receiver { Side::Receiver } else { Side::Primary { inherit_acl: false, open_flags: 0 } };
            region.act_attrs(&mut op, side)?;
            let change = region.settle(&op, &i.pre)?;
            m.journal.names(i.seq, i.vol, change)?;
            if !receiver {
                let last = m.live.last_seq().max(i.seq);
                m.live.set_last_seq(last);
            } else if m.live.txn().is_some() {
                m.live.set_applied(i.next_lsn, m.live.applied_seq());
            } else {
                m.live.set_applied(i.next_lsn, i.seq);
                m.live.set_last_seq(i.seq);
            }
        }
        region.space.end_names(done);
        m.live.clear_intent();
        Ok(())
    }

    /// Where the spool of a primary is: beside the journal, on the filesystem that the data is on.
    pub fn spool_dir(&self) -> PathBuf {
        self.regions[0].meta().join(SPOOL)
    }

    /// The order: held while an operation gets its place.
    pub fn order(&self) -> MutexGuard<'_, Meta> {
        self.meta.lock()
    }

    /// The order, unless somebody holds it.
    pub(super) fn try_order(&self) -> Option<MutexGuard<'_, Meta>> {
        self.meta.try_lock()
    }

    /// What this replica had not yet written to its drive may be gone: a comparison with a peer is due.
    pub fn doubt(&self) -> Result<()> {
        let mut m = self.order();
        self.save_state(&mut m, |s| s.suspect = true)
    }

    /// The region of a volume.
    pub fn region(&self, vol: VolId) -> Result<&Arc<Region>> {
        self.regions
            .get(vol.0 as usize)
            .ok_or_else(|| Error::corrupt(format!("no volume {} in group {}", vol.0, self.group)))
    }

    /// Persists chain and copy state.
    pub fn save_state(&self, m: &mut Meta, change: impl FnOnce(&mut State)) -> Result<()> {
        let mut n = m.state.clone();
        change(&mut n);
        if n != m.state {
            files::save(&self.state_path, MAGIC, VERSION, &n)?;
            m.state = n;
        }
        Ok(())
    }

    /// The epoch chain.
    pub fn chain(&self, m: &Meta) -> Chain {
        Chain::from_epochs(m.state.chain.clone())
    }

    /// Why nothing may be changed here before the node is started anew, if so: an operation was done and could not be recorded.
    pub fn whole(&self, m: &Meta) -> Result<()> {
        m.broken.clone().map_or(Ok(()), Err)
    }

    /// Executes an operation on names in the order: identities, intent, system call, tables, journal, watches.
    /// `done` runs after the local call. On error nothing was changed.
    pub fn names(
        &self,
        m: &mut Meta,
        at: (Seq, VolId, u64),
        op: &mut Op,
        side: Side,
        done: &mut dyn FnMut(&Op, &Pre, &Acted),
    ) -> Result<Acted> {
        let (seq, vol, next_lsn) = at;
        self.whole(m)?;
        m.live.kept()?;
        let region = self.region(vol)?;
        let pre = region.prepare(op)?;
        self.reserve(m, region, op)?;
        self.touch_names(m, seq, vol, op, &pre)?;
        let enforced = matches!(side, Side::Primary { .. });
        region.space.begin_names(op, &pre, enforced)?;
        let intent = match planted(Bug::SkipIntent) {
            true => Ok(()),
            false => m.live.set_intent(&Intent { seq, vol, next_lsn, op: op.clone(), pre }),
        };
        let acted = match intent.and_then(|()| region.act(op, side)) {
            Ok(a) => a,
            Err(e) => {
                region.space.end_names(false);
                m.live.clear_intent();
                return Err(e);
            }
        };
        if let Err(e) = self.record(m, seq, vol, op, &pre) {
            // The tree has it and our records do not: nothing more may happen here before a restart, whose recovery
            // finds the intent.
            let e = Error { errno: libc::EIO, ..e }
                .context("an operation was done and could not be recorded; restart this node when its disk is well");
            log::error!("group {}: {e}", self.group);
            m.broken = Some(e.clone());
            return Err(e);
        }
        if let Op::Mkdir { id, .. } = op {
            m.activity.made(vol, *id, seq);
        }
        region.space.end_names(true);
        done(op, &pre, &acted);
        if next_lsn == 0 {
            m.live.set_last_seq(seq);
            m.live.clear_intent();
        }
        Ok(acted)
    }

    /// Tables, watches and journal of an executed operation. Safe to repeat.
    fn record(&self, m: &mut Meta, seq: Seq, vol: VolId, op: &Op, pre: &Pre) -> Result<()> {
        let change = self.region(vol)?.settle(op, pre)?;
        m.journal.names(seq, vol, change.clone())?;
        self.note(m, vol, &change);
        Ok(())
    }

    /// Room for the records of an operation on names, before it is done. What takes away may use the last of it: it is
    /// how a full disk gets room.
    fn reserve(&self, m: &mut Meta, region: &Region, op: &Op) -> Result<()> {
        let bytes = match op {
            Op::Unlink { .. } | Op::Rmdir { .. } => RECORDS_BYTES,
            _ => RECORDS_BYTES + LAST_ROOM_BYTES,
        };
        m.journal.reserve(bytes)?;
        region.ids.write().reserve(bytes)
    }

    fn note(&self, m: &mut Meta, vol: VolId, change: &NsChange) {
        m.watches.retain(|w| match w.upgrade() {
            Some(w) => {
                w.lock().note(vol, change);
                true
            }
            None => false,
        });
    }

    /// Starts following names from now on; ends when the returned watch is dropped.
    pub fn watch(&self, m: &mut Meta) -> Arc<Mutex<Watch>> {
        let w = Arc::new(Mutex::new(Watch::default()));
        m.watches.push(Arc::downgrade(&w));
        w
    }

    /// Marks a change of content or attributes in the journal.
    pub fn mark(&self, m: &mut Meta, seq: Seq, vol: VolId, at: &Target, mark: Mark) -> Result<()> {
        m.live.kept()?;
        let what = match at {
            Target::Dir(d) => What::Dir(*d),
            Target::File(n) => match self.region(vol)?.ids.read().link_of(n) {
                Some(l) => What::Linked(l),
                None => What::File,
            },
        };
        // New data may not use the room in which a truncation, which gives some back, is to be recorded.
        if matches!(mark, Mark::Data { to, .. } if to != u64::MAX) {
            m.journal.reserve(RECORDS_BYTES + LAST_ROOM_BYTES)?;
        }
        self.touch(m, seq, vol, at)?;
        m.watches.retain(|w| match w.upgrade() {
            Some(w) => {
                w.lock().mark(vol, at, what);
                true
            }
            None => false,
        });
        match (mark, at) {
            (Mark::Data { from, to }, Target::File(n)) => m.journal.data(seq, vol, n, what, from, to),
            _ => m.journal.attr(seq, vol, at, what),
        }
    }

    /// The journal's records after `since` and the link tables for them, both of one point (hold the order).
    pub fn records(&self, m: &Meta, since: Seq) -> Result<(Vec<Rec>, Links)> {
        let recs = m.journal.since(since)?;
        let links = self.links_of(plan::link_ids(&recs));
        Ok((recs, links))
    }

    /// The names this replica has of the given link ids.
    pub fn links_of(&self, ids: impl IntoIterator<Item = (VolId, LinkId)>) -> Links {
        let mut links = Links::new();
        for (vol, lid) in ids {
            if let Ok(r) = self.region(vol) {
                let names = r.ids.read().names_of(lid).to_vec();
                if !names.is_empty() {
                    links.insert((vol, lid), names);
                }
            }
        }
        links
    }

    /// For a replica that agrees with this one up to `p`: the position to plan from (earlier than `p` where this replica
    /// passed over it in one step), and the one to read the journal from (earlier still where a change may have reached
    /// the tree without its place in the order, before a crash).
    pub fn plan_from(m: &Meta, p: Seq) -> (Seq, Seq) {
        let common = m.journal.plan_from(p);
        let low =
            m.state.crashes.iter().filter(|(low, head)| *low <= common && common <= *head).map(|(low, _)| *low).min();
        (common, low.map_or(common, before))
    }

    /// The power cuts of which a replica that agrees with this one up to `p` may lack something that the journal does not
    /// tell.
    pub fn cuts_since(m: &Meta, p: Seq) -> Vec<Cut> {
        let p = m.journal.plan_from(p);
        m.state.cuts.iter().filter(|c| p <= c.head).cloned().collect()
    }

    /// True when a replica that agrees with this one up to `p` may lack a change that has no place in the order, so that
    /// sending it the entries after `p` is not enough.
    pub fn crashed_since(m: &Meta, p: Seq) -> bool {
        m.state.crashes.iter().any(|(_, head)| p <= *head)
    }

    /// Where the journal must be read from to find every change that may have no place in the order.
    pub fn settled(m: &Meta) -> Seq {
        before(m.state.crashes.iter().map(|(low, _)| *low).fold(m.live.settled(), Seq::min))
    }

    /// True when the trees are at one point of the order.
    pub fn consistent(m: &Meta) -> bool {
        let s = &m.state;
        s.copy == CopyState::Consistent && !s.suspect && !s.torn && s.replay == 0 && m.live.last_seq() >= s.whole
    }

    /// Puts up or takes down the marker beside `tree/` that says "between two points" (G2).
    pub fn set_between(&self, between: bool) -> Result<()> {
        for r in &self.regions {
            let p = r.path.join("IN-TRANSITION");
            if between {
                std::fs::write(&p, "This replica is between two points of the order; start its node to finish. Do not use tree/ as it is.\n")
                    .at(p.display())?;
            } else if let Err(e) = std::fs::remove_file(&p)
                && e.kind() != std::io::ErrorKind::NotFound
            {
                return Err(Error::from(e).context(p.display()));
            }
        }
        Ok(())
    }

    /// True when a sync failed, and what it was about has not been written anew: see [`super::receive`].
    pub fn unsynced(&self) -> bool {
        self.unsynced.load(Ordering::SeqCst)
    }

    fn unsynced_path(&self) -> PathBuf {
        self.state_path.with_file_name("unsynced")
    }

    /// A sync of the tree failed: for the next runs too, if that can be noted.
    pub(super) fn note_unsynced(&self, why: &Error) {
        self.unsynced.store(true, Ordering::SeqCst);
        if let Err(e) = std::fs::write(self.unsynced_path(), format!("{why}\n")) {
            log::error!("group {}: {}: {e}", self.group, self.unsynced_path().display());
        }
    }

    /// Everything is on the disk.
    pub(super) fn forget_unsynced(&self) -> Result<()> {
        if self.unsynced.swap(false, Ordering::SeqCst) {
            match std::fs::remove_file(self.unsynced_path()) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    self.unsynced.store(true, Ordering::SeqCst);
                    return Err(Error::from(e).context(self.unsynced_path().display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes journal and id tables durable (before or with an fsync of data).
    pub fn sync_meta(&self) -> Result<()> {
        let mut todo = Vec::new();
        {
            let mut m = self.order();
            todo.extend(m.journal.take_dirty()?);
        }
        for r in &self.regions {
            todo.extend(r.ids.write().take_dirty()?);
        }
        for f in todo {
            f.sync_data().at("metadata")?;
        }
        Ok(())
    }

    /// Closes in order: everything durable, then the clean mark.
    pub fn close(&self) -> Result<()> {
        self.log.sync()?;
        self.checkpoint()?;
        for r in &self.regions {
            r.close_space();
            r.syncfs()?;
        }
        self.order().live.close();
        Ok(())
    }

    /// Objects of which this node may not set everything, and keeps the rest beside (G5).
    pub fn kept_beside(&self) -> u64 {
        self.regions.iter().map(|r| r.ids.read().kept().len() as u64).sum()
    }

    /// Group ids recorded in the regions; all the same.
    pub fn group_id(&self) -> u64 {
        self.regions.first().map_or(0, |r| r.identity().group_id)
    }

    /// Records the group's id in every region.
    pub fn set_group_id(&self, id: u64) -> Result<()> {
        self.regions.iter().try_for_each(|r| r.set_group_id(id))
    }

    /// For people: what changed after `since`, one line each, the newest `limit`.
    pub fn describe(&self, m: &Meta, since: Seq, limit: usize) -> Result<Vec<String>> {
        let path = |vol: VolId, n: &Name| self.region(vol).map_or_else(|_| format!("{n:?}"), |r| r.path_of(n));
        let recs = m.journal.since(since)?;
        Ok(recs
            .iter()
            .skip(recs.len().saturating_sub(limit))
            .map(|r| {
                let what = match &r.change {
                    Change::Data { at, from, to: u64::MAX, .. } => {
                        format!("content {} from {from} on", path(r.vol, at))
                    }
                    Change::Data { at, from, to, .. } => format!("content {} {from}..{to}", path(r.vol, at)),
                    Change::Attr { at: Target::File(n), .. } => format!("attributes {}", path(r.vol, n)),
                    Change::Attr { at: Target::Dir(d), .. } => format!("attributes of directory {:x}", d.0),
                    Change::Ns(NsChange::Create { at }) => format!("create {}", path(r.vol, at)),
                    Change::Ns(NsChange::Mkdir { at, .. }) => format!("mkdir {}", path(r.vol, at)),
                    Change::Ns(NsChange::Link { from, to, .. }) => {
                        format!("link {} {}", path(r.vol, from), path(r.vol, to))
                    }
                    Change::Ns(NsChange::Unlink { at, .. }) => format!("unlink {}", path(r.vol, at)),
                    Change::Ns(NsChange::Rmdir { at, .. }) => format!("rmdir {}", path(r.vol, at)),
                    Change::Ns(NsChange::Rename { from, to, .. }) => {
                        format!("rename {} {}", path(r.vol, from), path(r.vol, to))
                    }
                };
                format!("{} vol{} {what}", r.seq.0, r.vol.0)
            })
            .collect())
    }
}
