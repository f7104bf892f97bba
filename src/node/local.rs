//! A group at this site: its replica, its role, and the change from one role to the other.
//!
//! ```text
//!            takeover (drain, new epoch, mount)
//! secondary ───────────────────────────────────▶ primary
//!           ◀───────────────────────────────────
//!            a newer primary is met (stop, unmount, receive)
//! ```
//! The role is persisted before it takes effect; every start as primary begins a new epoch (G3).

use super::ballot::Ballot;
use super::config::{self, GroupConfig};
use super::events::{Event as Happened, Events, What};
use super::heard::Heard;
use super::incoming::{Admission, Incoming};
use super::legs::{Leg, LegCtx};
use super::mounter::{MountOptions, Mounter};
use super::pairs::Pair;
use super::receipt;
use super::receiving::Receiving;
use super::sender::{Sender, SenderCtx};
use super::session::Timing;
use super::status::{LegStatus, VolumeStatus};
use super::switch::Switch;
use crate::base::planted::{Bug, planted};
use crate::base::sync::Mutex;
use crate::base::{At, Error, Kind, Result, Seq, VolId, random_u64};
use crate::format::msg::{Hello, RejectCode, Wish};
use crate::format::op::Op;
use crate::net::Closer;
use crate::pair::chain::{Chain, Winner};
use crate::pair::state::{Event, Reason, State};
use crate::store::doubt::DoubtFile;
use crate::store::files;
use crate::store::receive::Receiver;
use crate::store::replica::{Place, Replica};
use crate::volume::Volume;
use crate::volume::group::{Fence, Group, PairKind};
use crate::volume::order::Order;
use bincode::{Decode, Encode};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const MAGIC: &[u8; 8] = b"KGMROLE\0";
const VERSION: u32 = 1;
/// How long the end of a link may take to be noticed when a takeover asks for it.
const LINK_ENDS: Duration = Duration::from_secs(1);

/// A mount that a role asks for: volume index, directory and how it is mounted.
type WantedMount = (u16, Vec<u8>, MountOptions);

/// What is persisted of a group's role.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct Role {
    primary: bool,
    mounts: Vec<WantedMount>,
    /// Region directory of each volume, for each leg.
    legs: Vec<Vec<Vec<u8>>>,
    /// Legs that were removed; their numbers stay theirs.
    removed: Vec<u32>,
    /// The leg in use.
    active: u32,
    /// Size and emulation type of each volume as the site file had them when this node last looked (CD-1).
    table: Vec<(u64, String)>,
    /// What is under way between two sites.
    task: Task,
}

impl Role {
    /// The legs beside the one in use.
    fn further_legs(&self) -> Vec<u32> {
        (0..self.legs.len() as u32).filter(|l| *l != self.active && !self.removed.contains(l)).collect()
    }
}

/// A change of roles that needs another site; carried on after a restart. See `local/hand_over.rs`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
enum Task {
    None,
    /// Secondary for as long as the sync site needs to bring this one up to date after a power cut; primary again then,
    /// with the mounts of the role.
    Returning,
    /// Primary for this site, which is returning: without mounts.
    Acting(String),
    /// Primary no more; this site is to be it.
    Giving(String),
    /// The same when that site leads: what ran here may come back with the role.
    Gave(String),
    /// Primary, or to be it, without mounts, until they are ordered.
    Resting,
}

struct Primary {
    group: Arc<Group>,
    order: Arc<Switch>,
    legs: Vec<Arc<Leg>>,
    senders: Vec<Sender>,
    mounts: Vec<MountPoint>,
}

struct Secondary {
    receiving: Receiving,
    link: Option<(String, Closer)>,
}

enum Run {
    Down(String),
    Primary(Primary),
    Secondary(Secondary),
}

impl Run {
    /// The role as it is shown, and why there is none.
    fn role(&self) -> (&'static str, Option<&str>) {
        match self {
            Run::Primary(_) => ("primary", None),
            Run::Secondary(_) => ("secondary", None),
            Run::Down(why) => ("down", Some(why)),
        }
    }
}

mod access;
mod arbiter;
mod doubts;
mod group_lag;
mod group_legs;
mod group_mounts;
mod group_split;
mod hand_over;
mod keeper;
mod orders;
mod procedure;
mod roles;

use roles::Before;

pub use group_mounts::MountPoint;
mod group_table;

/// A group at this site.
pub struct LocalGroup {
    /// Its part of the site file.
    pub cfg: GroupConfig,
    /// This site.
    pub site: String,
    /// The pairs that this site has an end of.
    pub pairs: Vec<Arc<Pair>>,
    ctx: Arc<dyn SenderCtx>,
    mounter: Arc<dyn Mounter>,
    timing: Timing,
    /// Bounds of the site file.
    pub limits: config::LimitsConfig,
    role_path: PathBuf,
    state_dir: PathBuf,
    run: Mutex<Run>,
    /// The primary's last word, and since when this site is secondary.
    heard: Mutex<(Instant, Option<Heard>)>,
    changing: AtomicBool,
    /// A change of its role left it down: it is to be started again.
    failed: AtomicBool,
    /// The site that asked last, before it leads, whether there is a newer primary; it was told that there is none.
    asked: Mutex<Option<(Instant, String)>>,
    /// The first attempt to start it is over, with its mounts.
    begun: AtomicBool,
    note: Mutex<Option<String>>,
    /// What is to be said of the mounts.
    mount_note: Mutex<Option<String>>,
    /// Mounts that wait until the fence lets the first writes through.
    waiting: Mutex<Vec<WantedMount>>,
    /// What happens here is told to it.
    pub events: Arc<Events>,
    out_of_sync: group_lag::Counted,
    doubts: Arc<DoubtFile>,
    /// As persisted in the role.
    task: Mutex<Task>,
    steward: AtomicBool,
    underway: procedure::Underway,
    /// Where takeover is automatic.
    ballot: Option<Arc<Ballot>>,
    had_votes: AtomicBool,
}

impl LocalGroup {
    /// Loads what is persisted; nothing runs before [`LocalGroup::start`].
    pub fn new(
        cfg: GroupConfig,
        site: &str,
        (state_dir, events): (&Path, &Arc<Events>),
        limits: config::LimitsConfig,
        ctx: Arc<dyn SenderCtx>,
        mounter: Arc<dyn Mounter>,
    ) -> Result<LocalGroup> {
        let mut pairs = Vec::new();
        for p in cfg.pairs.iter().filter(|p| p.sites.iter().any(|s| s == site)) {
            let peer = p.sites.iter().find(|s| *s != site).cloned().unwrap_or_default();
            let mode = match p.mode {
                config::Mode::Sync => crate::pair::state::Mode::Sync,
                config::Mode::Async => crate::pair::state::Mode::Async,
            };
            let mut ends = receipt::same_ends(cfg.volumes.iter());
            ends.iter_mut().zip(&p.remote).for_each(|(e, there)| e.there = there.clone());
            pairs.push(Arc::new(Pair::load((state_dir, events), &cfg.name, &p.name, mode, &peer, ends)?));
        }
        let dir = state_dir.join("groups");
        std::fs::create_dir_all(&dir).at(dir.display())?;
        let doubts = Arc::new(DoubtFile::open(&state_dir.join("doubts").join(&cfg.name))?);
        let ballot = arbiter::load(&cfg, site, state_dir, &pairs, &ctx)?;
        let timing =
            Timing { link: limits.link_timeout, heartbeat: limits.heartbeat, progress: limits.progress_timeout };
        Ok(LocalGroup {
            role_path: dir.join(&cfg.name),
            state_dir: state_dir.to_owned(),
            cfg,
            site: site.to_owned(),
            pairs,
            ctx,
            mounter,
            timing,
            limits,
            run: Mutex::new(Run::Down("not started".into())),
            heard: Mutex::new((Instant::now(), None)),
            changing: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            asked: Mutex::new(None),
            begun: AtomicBool::new(false),
            note: Mutex::new(None),
            mount_note: Mutex::new(None),
            waiting: Mutex::new(Vec::new()),
            events: events.clone(),
            out_of_sync: group_lag::Counted::default(),
            doubts,
            task: Mutex::new(Task::None),
            steward: AtomicBool::new(false),
            underway: procedure::Underway::default(),
            ballot,
            had_votes: AtomicBool::new(false),
        })
    }

    fn place(&self, role: &Role, leg: u32) -> Place {
        let paths = role.legs.get(leg as usize).cloned().unwrap_or_default();
        let volumes = self.cfg.volumes.iter().zip(paths).map(|(v, p)| (v.name.clone(), path(&p))).collect();
        Place {
            group: self.cfg.name.clone(),
            volumes,
            journal_bytes: self.limits.journal_bytes,
            log_bytes: self.limits.log_bytes,
        }
    }

    fn configured_legs(&self) -> Vec<Vec<Vec<u8>>> {
        (0..self.cfg.legs())
            .map(|l| self.cfg.volumes.iter().filter_map(|v| v.legs.get(l)).map(|p| bytes(p)).collect())
            .collect()
    }

    fn role(&self) -> Result<Option<Role>> {
        files::load(&self.role_path, MAGIC, VERSION)
    }

    fn change_role(&self, change: impl FnOnce(&mut Role)) -> Result<()> {
        let mut r = self.role()?.ok_or_else(|| Error::failed("the role was not saved"))?;
        change(&mut r);
        self.save_role(&r)
    }

    fn save_role(&self, r: &Role) -> Result<()> {
        files::save(&self.role_path, MAGIC, VERSION, r)?;
        *self.task.lock() = r.task.clone();
        Ok(())
    }

    /// Opens the replica and takes up the persisted role; a group that was never started gets the one of the site file.
    pub fn start(self: &Arc<Self>) -> Result<()> {
        // Nobody else mounts before its own mounts are there.
        self.changing.store(true, Ordering::SeqCst);
        let r = self.take_up();
        self.changing.store(false, Ordering::SeqCst);
        r
    }

    fn take_up(self: &Arc<Self>) -> Result<()> {
        let known = self.role()?;
        let fresh = known.is_none();
        let mut role = known.unwrap_or_else(|| Role {
            primary: self.cfg.primary == self.site,
            mounts: self
                .cfg
                .volumes
                .iter()
                .enumerate()
                .filter_map(|(i, v)| v.mount.as_ref().map(|m| (i as u16, bytes(m), MountOptions::new())))
                .collect(),
            legs: self.configured_legs(),
            removed: Vec::new(),
            active: 0,
            table: Vec::new(),
            task: Task::None,
        });
        for l in self.configured_legs() {
            if !role.legs.contains(&l) {
                role.legs.push(l);
            }
        }
        let replica = self.open_active(&mut role, fresh)?;
        if fresh && role.primary && replica.order().state.chain.is_empty() {
            for r in &replica.regions {
                r.import()?;
            }
            replica.set_group_id(random_u64() | 1)?;
        }
        let edited = self.edited(&mut role);
        self.save_role(&role)?;
        keeper::steward(self)?;
        if !role.primary {
            return self.receive(replica);
        }
        let Some(replica) = self.received_first(replica)? else { return Ok(()) };
        if !fresh {
            match self.before_leading(&replica)? {
                Before::Lead => {}
                Before::Stale => {
                    log::warn!("group {}: a newer primary exists; this site is secondary now", self.cfg.name);
                    self.save_role(&Role { primary: false, task: Task::None, ..role })?;
                    return self.receive(replica);
                }
                Before::Pull => {
                    self.save_role(&Role { primary: false, task: Task::Returning, ..role })?;
                    return self.receive(replica);
                }
                Before::Give(site) => {
                    log::warn!("group {}: after the power cut, the role goes back to site {site}", self.cfg.name);
                    self.save_role(&Role { primary: false, task: Task::Giving(site), ..role })?;
                    return self.receive(replica);
                }
            }
        }
        self.lead(replica, fresh, &edited)?;
        self.await_votes();
        self.mount_all(&role.mounts);
        Ok(())
    }

    /// Becomes the receiving side. What the last run persisted of its pairs is not so until a link is there (CD-6).
    fn receive(&self, replica: Arc<Replica>) -> Result<()> {
        self.expect(&replica)?;
        for p in self.pairs.iter().filter(|p| !matches!(p.state(), State::Psue(_) | State::PsueCopy(_))) {
            p.lost(Reason::LinkLost, format!("no link from site {} yet", p.peer))?;
        }
        let receiving = Receiving::start(replica)?;
        *self.heard.lock() = (Instant::now(), None);
        self.set_run(Run::Secondary(Secondary { receiving, link: None }));
        Ok(())
    }

    /// Becomes the primary: a new epoch, durable before anything else, then the senders. `first`: pairs that do not
    /// exist yet are made.
    fn lead(self: &Arc<Self>, replica: Arc<Replica>, first: bool, edited: &[VolId]) -> Result<()> {
        let role = self.role()?.ok_or_else(|| Error::failed("the role was not saved"))?;
        let mut legs = Vec::new();
        for l in role.further_legs() {
            legs.push(self.leg(&role, l)?);
        }
        self.count(&replica)?;
        let (group, senders) = self.lead_on(replica, &legs, first, edited)?;
        let me = Arc::downgrade(self);
        let failover = Box::new(move |old: &Arc<Group>, e: &Error| me.upgrade()?.fail_over(old, e));
        let order = Arc::new(Switch::new(group.clone(), failover));
        self.set_run(Run::Primary(Primary { group, order, legs, senders, mounts: Vec::new() }));
        if let Some(b) = &self.ballot {
            b.reign();
        }
        Ok(())
    }

    /// A new epoch on a replica, the group on it, and a sender for each pair and leg.
    fn lead_on(
        self: &Arc<Self>,
        replica: Arc<Replica>,
        legs: &[Arc<Leg>],
        first: bool,
        edited: &[VolId],
    ) -> Result<(Arc<Group>, Vec<Sender>)> {
        replica.end_receiving()?;
        let epoch = {
            let mut m = replica.order();
            let at = m.live.last_seq();
            // What is changed under the new epoch is told apart from what was before it (G6).
            if let Err(e) = m.journal.rotate(at) {
                log::warn!("group {}: the journal's interval goes on: {e}", self.cfg.name);
            }
            let mut chain = replica.chain(&m);
            let epoch = chain.begin(&self.site, random_u64(), at)?;
            replica.save_state(&mut m, |s| {
                s.chain = chain.epochs().to_vec();
                s.was_primary = true;
                s.yields = false;
                s.copy = crate::format::msg::CopyState::Consistent;
                // What its disk kept is what counts from now on; the peers are compared with it (`cuts`).
                s.torn = false;
                s.replay = 0;
                s.unmended.clear();
                s.cuts.iter_mut().for_each(|c| c.open = false);
            })?;
            replica.set_between(false)?;
            epoch
        };
        log::info!("group {}: primary, epoch {}", self.cfg.name, epoch.number);
        let kind = |p: &Arc<Pair>| match p.mode {
            crate::pair::state::Mode::Sync => PairKind::Sync,
            crate::pair::state::Mode::Async => PairKind::Async,
        };
        let kinds: Vec<PairKind> = self.pairs.iter().map(kind).chain(legs.iter().map(|_| PairKind::Leg)).collect();
        let fence = match self.cfg.fence {
            config::Fence::Data => Fence::Data,
            config::Fence::Never => Fence::Never,
        };
        let (l, through) = (&self.limits, self.cfg.write_through);
        let group = Arc::new(Group::new(
            replica,
            (fence, self.doubts.clone()),
            through,
            &kinds,
            l.queue_memory_bytes,
            l.spool_bytes,
        )?);
        if let Some(b) = &self.ballot {
            b.govern(&group);
        }
        group.announce(Op::EpochStart { epoch })?;
        keeper::checkpoints(&group)?;
        self.define(&group, edited)?;
        let mut senders = Vec::new();
        for (i, p) in self.pairs.iter().enumerate() {
            // What the last run persisted is not so now: until a session is there nobody waits for this peer (G1).
            if matches!(p.state(), State::Pair | State::CopyResync | State::Copy) {
                p.event(Event::Fault(Reason::LinkLost), Some("the node was started".into()))?;
            }
            let acting = *self.task.lock() == Task::Acting(p.peer.clone());
            if (first || acting) && p.state() == State::Smpl {
                p.event(Event::Create { no_copy: false }, Some("waiting for the peer".into()))?;
            }
            self.keep_back(&group, i, p);
            senders.push(self.sender(self.ctx.clone(), &group, p, i)?);
        }
        for (i, leg) in legs.iter().enumerate() {
            senders.push(self.leg_sender(&group, leg, self.pairs.len() + i)?);
        }
        Ok((group, senders))
    }

    fn leg_sender(self: &Arc<Self>, group: &Arc<Group>, leg: &Arc<Leg>, index: usize) -> Result<Sender> {
        if leg.pair.state() == crate::pair::state::State::Smpl {
            leg.pair.event(crate::pair::state::Event::Create { no_copy: false }, Some("added".into()))?;
        }
        self.sender(Arc::new(LegCtx(leg.clone())), group, &leg.pair, index)
    }

    fn sender(
        self: &Arc<Self>,
        ctx: Arc<dyn SenderCtx>,
        group: &Arc<Group>,
        pair: &Arc<Pair>,
        index: usize,
    ) -> Result<Sender> {
        Sender::start(ctx, self.clone(), group.clone(), pair.clone(), index, self.timing)
    }

    fn admit_to(self: &Arc<Self>, hello: &Hello, theirs: &Chain, closer: &Closer) -> Admission {
        let refuse = |code, text: String, chain: Vec<_>, head| Admission::Refuse { code, text, chain, head };
        let mut run = self.run.lock();
        match &mut *run {
            Run::Down(why) => refuse(
                // A primary that starts waits for what comes of it.
                if hello.wish == Wish::Ask && why == roles::TAKEN { RejectCode::Busy } else { RejectCode::Fault },
                format!("group {} is down at site {}: {why}", self.cfg.name, self.site),
                vec![],
                Seq(0),
            ),
            Run::Primary(p) => {
                let (mine, head) = {
                    let m = p.group.replica.order();
                    (p.group.replica.chain(&m), m.live.last_seq())
                };
                match mine.winner(head, theirs, hello.head) {
                    Some(Winner::Theirs) => {
                        let me = self.clone();
                        let why = format!("site {} is primary of a newer epoch", hello.site);
                        std::thread::spawn(move || me.demote(&why));
                        refuse(
                            RejectCode::Busy,
                            format!("site {} was primary itself and is becoming secondary", self.site),
                            vec![],
                            Seq(0),
                        )
                    }
                    Some(Winner::SplitBrain) => self.split_brain(hello, theirs, &mine, head),
                    _ => refuse(
                        RejectCode::StalePrimary,
                        format!("site {} is primary of a newer epoch", self.site),
                        mine.epochs().to_vec(),
                        head,
                    ),
                }
            }
            Run::Secondary(s) => {
                let (mine, head, id) = {
                    let received = s.receiving.receiver.received();
                    let m = s.receiving.receiver.replica.order();
                    (s.receiving.receiver.replica.chain(&m), received, s.receiving.receiver.replica.group_id())
                };
                if id != 0 && id != hello.group_id {
                    return refuse(
                        RejectCode::OtherGroup,
                        format!(
                            "the replica at site {} belongs to another group of the same name; give it an empty region if it may be overwritten",
                            self.site
                        ),
                        vec![],
                        Seq(0),
                    );
                }
                let newer = mine.head().zip(theirs.head()).is_some_and(|(m, t)| m.number > t.number);
                match mine.winner(head, theirs, hello.head) {
                    _ if planted(Bug::SkipEpochCheck) => {}
                    Some(Winner::SplitBrain) if !s.receiving.receiver.replica.order().state.yields => {
                        return self.split_brain(hello, theirs, &mine, head);
                    }
                    Some(Winner::Mine) | None if newer => {
                        return refuse(
                            RejectCode::StalePrimary,
                            format!("site {} follows a newer primary", self.site),
                            mine.epochs().to_vec(),
                            head,
                        );
                    }
                    _ => {}
                }
                let pair = self.pairs.iter().find(|p| p.name == hello.pair && p.peer == hello.site);
                if hello.wish == Wish::Link
                    && let Some(pair) = pair
                    && let Err((code, text)) = receipt::check(&self.site, pair, hello, &s.receiving.receiver.replica)
                {
                    return refuse(code, text, vec![], Seq(0));
                }
                if hello.wish == Wish::Ask {
                    *self.asked.lock() = Some((Instant::now(), hello.site.clone()));
                }
                if hello.wish == Wish::Link {
                    *self.asked.lock() = None;
                    if let Some((_, old)) = s.link.replace((hello.site.clone(), closer.clone())) {
                        old.close();
                    }
                    self.heard_of(&hello.site);
                }
                Admission::Secondary(s.receiving.receiver.clone())
            }
        }
    }

    /// The link of a served peer ended, or was refused: another one of the same peer stays.
    pub fn link_ended(&self, link: &Closer) {
        if let Run::Secondary(s) = &mut *self.run.lock()
            && s.link.as_ref().is_some_and(|(_, l)| l.same(link))
        {
            s.link = None;
        }
    }

    /// Changes what the group does here, and tells of the change; gives what it did.
    fn set_run(&self, run: Run) -> Run {
        let (role, reason) = run.role();
        let reason = reason.map(str::to_owned);
        let old = std::mem::replace(&mut *self.run.lock(), run);
        let (before, said) = old.role();
        if (before, said) != (role, reason.as_deref()) {
            let position = match &old {
                Run::Primary(p) => Some(p.group.head().0),
                Run::Secondary(s) => Some(s.receiving.receiver.applied().0),
                Run::Down(_) => None,
            };
            let (from, to) = (Some(before.to_owned()), Some(role.to_owned()));
            self.tell(Happened { from, to, reason, position, ..Happened::new(What::Role) });
        }
        old
    }

    /// Reports an event about this group.
    pub fn tell(&self, e: Happened) {
        self.events.add(Happened { group: Some(self.cfg.name.clone()), ..e });
    }

    /// Ends everything in order: mounts, senders or receiver, then the clean mark.
    pub fn shutdown(&self) {
        let old = self.set_run(Run::Down("shut down".into()));
        let replica = match old {
            Run::Primary(p) => {
                p.mounts.iter().for_each(|m| m.end(&self.cfg.name));
                p.group.stop();
                for s in p.senders {
                    s.stop();
                }
                // Nothing is answered any more, and what was is where the voters know it to be.
                self.resign(Some(None));
                for l in &p.legs {
                    l.close();
                }
                p.group.queue.join();
                p.group.replica.clone()
            }
            Run::Secondary(s) => {
                if let Some((_, c)) = &s.link {
                    c.close();
                }
                if let Err(e) = s.receiving.shutdown() {
                    log::error!("group {}: closing: {e}", self.cfg.name);
                }
                return;
            }
            Run::Down(_) => return,
        };
        if let Err(e) = replica.close() {
            log::error!("group {}: closing: {e}", self.cfg.name);
        }
    }
}

impl Incoming for Arc<LocalGroup> {
    fn site(&self) -> &str {
        &self.site
    }
    fn group(&self) -> &str {
        &self.cfg.name
    }
    fn admit(&self, hello: &Hello, theirs: &Chain, closer: &Closer) -> Admission {
        self.admit_to(hello, theirs, closer)
    }
    fn ordered(&self, hello: &Hello, theirs: &Chain) -> Result<()> {
        self.carry_out(hello, theirs)
    }
    fn receiver(&self) -> Option<Arc<Receiver>> {
        self.secondary()
    }
    fn standing(&self) -> Result<Vec<u8>> {
        self.standing_json()
    }
    fn heard(&self, word: Heard) {
        self.heard.lock().1 = Some(word);
    }
}

fn bytes(p: &Path) -> Vec<u8> {
    std::os::unix::ffi::OsStrExt::as_bytes(p.as_os_str()).to_vec()
}

fn path(b: &[u8]) -> PathBuf {
    PathBuf::from(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b))
}
