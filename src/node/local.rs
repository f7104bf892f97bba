//! A group at this site: its replica, its role, and the change from one role to the other.
//!
//! ```text
//!            takeover (drain, new epoch, mount)
//! secondary ───────────────────────────────────▶ primary
//!           ◀───────────────────────────────────
//!            a newer primary is met (stop, unmount, receive)
//! ```
//! The role is persisted before it takes effect; every start as primary begins a new epoch (G3).

use super::config::{self, GroupConfig};
use super::incoming::{Admission, Incoming};
use super::legs::{Leg, LegCtx};
use super::mounter::{Mounted, Mounter};
use super::pairs::Pair;
use super::receiving::Receiving;
use super::sender::{Sender, SenderCtx};
use super::session::Timing;
use super::status::LegStatus;
use super::switch::Switch;
use crate::base::{At, Error, Kind, Result, Seq, VolId, random_u64};
use crate::format::msg::{Hello, RejectCode};
use crate::format::op::Op;
use crate::net::Closer;
use crate::pair::chain::{Chain, Winner};
use crate::pair::state::{Event, Reason, State};
use crate::store::files;
use crate::store::receive::Receiver;
use crate::store::replica::{Place, Replica};
use crate::volume::Volume;
use crate::volume::group::{Fence, Group, PairKind};
use crate::volume::order::Order;
use bincode::{Decode, Encode};
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const MAGIC: &[u8; 8] = b"KGMROLE\0";
const VERSION: u32 = 1;
/// How long the end of a link may take to be noticed when a takeover asks for it.
const LINK_ENDS: Duration = Duration::from_secs(1);

/// What is persisted of a group's role.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct Role {
    primary: bool,
    /// Volume index and mount directory.
    mounts: Vec<(u16, Vec<u8>)>,
    /// Region directory of each volume, for each leg.
    legs: Vec<Vec<Vec<u8>>>,
    /// The leg in use.
    active: u32,
}

struct Primary {
    group: Arc<Group>,
    order: Arc<Switch>,
    legs: Vec<Arc<Leg>>,
    senders: Vec<Sender>,
    mounts: Vec<(VolId, PathBuf, Box<dyn Mounted>)>,
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

mod group_legs;
mod group_mounts;

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
    limits: config::LimitsConfig,
    role_path: PathBuf,
    state_dir: PathBuf,
    run: Mutex<Run>,
    primary_head: AtomicU64,
    changing: AtomicBool,
    note: Mutex<Option<String>>,
}

impl LocalGroup {
    /// Loads what is persisted; nothing runs before [`LocalGroup::start`].
    pub fn new(
        cfg: GroupConfig,
        site: &str,
        state_dir: &Path,
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
            pairs.push(Arc::new(Pair::load(state_dir, &cfg.name, &p.name, mode, &peer)?));
        }
        let dir = state_dir.join("groups");
        std::fs::create_dir_all(&dir).at(dir.display())?;
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
            primary_head: AtomicU64::new(0),
            changing: AtomicBool::new(false),
            note: Mutex::new(None),
        })
    }

    fn place(&self, role: &Role, leg: u32) -> Place {
        let paths = role.legs.get(leg as usize).cloned().unwrap_or_default();
        let volumes = self.cfg.volumes.iter().zip(paths).map(|(v, p)| (v.name.clone(), path(&p))).collect();
        Place { group: self.cfg.name.clone(), volumes, journal_bytes: self.limits.journal_bytes }
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
        files::save(&self.role_path, MAGIC, VERSION, r)
    }

    /// Opens the replica and takes up the persisted role; a group that was never started gets the one of the site file.
    pub fn start(self: &Arc<Self>) -> Result<()> {
        let known = self.role()?;
        let fresh = known.is_none();
        let mut role = known.unwrap_or_else(|| Role {
            primary: self.cfg.primary == self.site,
            mounts: self
                .cfg
                .volumes
                .iter()
                .enumerate()
                .filter_map(|(i, v)| v.mount.as_ref().map(|m| (i as u16, bytes(m))))
                .collect(),
            legs: self.configured_legs(),
            active: 0,
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
        self.save_role(&role)?;
        if !role.primary {
            return self.receive(replica);
        }
        if !fresh && !self.ask_peers(&replica)? {
            log::warn!("group {}: a newer primary exists; this site is secondary now", self.cfg.name);
            self.save_role(&Role { primary: false, ..role })?;
            return self.receive(replica);
        }
        self.lead(replica, fresh)?;
        for (v, dir) in &role.mounts {
            let dir = path(dir);
            if let Err(e) = self.mount_at(VolId(*v), &dir) {
                log::error!("group {}: mounting at {}: {e}", self.cfg.name, dir.display());
                *self.note.lock() = Some(format!("not mounted at {}: {e}", dir.display()));
            }
        }
        Ok(())
    }

    /// Before going on as primary: does anybody know a newer one? Waits a little for peers; goes on alone with a
    /// warning when none answers (takeover is by order, and whoever gave it knows).
    fn ask_peers(&self, replica: &Replica) -> Result<bool> {
        let until = Instant::now() + Duration::from_secs(3);
        let (chain, head) = {
            let m = replica.order();
            (m.state.chain.clone(), m.live.last_seq())
        };
        loop {
            let mut answered = 0;
            for p in &self.pairs {
                match self.ctx.newest(&self.cfg.name, p, replica.group_id(), &chain, head) {
                    Ok(true) => answered += 1,
                    Ok(false) => return Ok(false),
                    Err(e) => log::info!("group {}: asking site {}: {e}", self.cfg.name, p.peer),
                }
            }
            if answered > 0 || self.pairs.is_empty() {
                return Ok(true);
            }
            if Instant::now() > until {
                log::warn!("group {}: no peer answers; going on as primary alone", self.cfg.name);
                return Ok(true);
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// Becomes the receiving side.
    fn receive(&self, replica: Arc<Replica>) -> Result<()> {
        let receiving = Receiving::start(replica)?;
        *self.run.lock() = Run::Secondary(Secondary { receiving, link: None });
        Ok(())
    }

    /// Becomes the primary: a new epoch, durable before anything else, then the senders. `first`: pairs that do not
    /// exist yet are made.
    fn lead(self: &Arc<Self>, replica: Arc<Replica>, first: bool) -> Result<()> {
        let role = self.role()?.ok_or_else(|| Error::failed("the role was not saved"))?;
        let mut legs = Vec::new();
        for l in (0..role.legs.len() as u32).filter(|l| *l != role.active) {
            legs.push(Leg::new(&self.state_dir, l, self.place(&role, l), self.timing.link)?);
        }
        let (group, senders) = self.lead_on(replica, &legs, first)?;
        let me = Arc::downgrade(self);
        let failover = Box::new(move |old: &Arc<Group>, e: &Error| me.upgrade()?.fail_over(old, e));
        let order = Arc::new(Switch::new(group.clone(), failover));
        *self.run.lock() = Run::Primary(Primary { group, order, legs, senders, mounts: Vec::new() });
        Ok(())
    }

    /// A new epoch on a replica, the group on it, and a sender for each pair and leg.
    fn lead_on(
        self: &Arc<Self>,
        replica: Arc<Replica>,
        legs: &[Arc<Leg>],
        first: bool,
    ) -> Result<(Arc<Group>, Vec<Sender>)> {
        let epoch = {
            let mut m = replica.order();
            let at = m.live.last_seq();
            let mut chain = replica.chain(&m);
            let epoch = chain.begin(&self.site, random_u64(), at)?;
            replica.save_state(&mut m, |s| {
                s.chain = chain.epochs().to_vec();
                s.was_primary = true;
                s.copy = crate::format::msg::CopyState::Consistent;
            })?;
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
        let group =
            Arc::new(Group::new(replica, fence, self.cfg.write_through, &kinds, self.limits.queue_memory_bytes));
        group.announce(Op::EpochStart { epoch })?;
        let mut senders = Vec::new();
        for (i, p) in self.pairs.iter().enumerate() {
            // What the last run persisted is not so now: until a session is there nobody waits for this peer (G1).
            if matches!(p.state(), State::Pair | State::CopyResync | State::Copy) {
                p.event(Event::Fault(Reason::LinkLost), Some("the node was started".into()))?;
            }
            if first && p.state() == State::Smpl {
                p.event(Event::Create { no_copy: false }, Some("waiting for the peer".into()))?;
            }
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
        let volumes = self.cfg.volumes.iter().map(|v| (v.name.clone(), v.port.clone(), v.lu)).collect();
        Sender::start(ctx, self.clone(), group.clone(), pair.clone(), index, volumes, self.timing)
    }

    fn admit_to(self: &Arc<Self>, hello: &Hello, theirs: &Chain, closer: &Closer) -> Admission {
        let refuse = |code, text: String, chain: Vec<_>, head| Admission::Refuse { code, text, chain, head };
        let mut run = self.run.lock();
        match &mut *run {
            Run::Down(why) => refuse(
                RejectCode::Fault,
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
                        std::thread::spawn(move || me.demote("a newer primary was met"));
                        refuse(
                            RejectCode::Busy,
                            format!("site {} was primary itself and is becoming secondary", self.site),
                            vec![],
                            Seq(0),
                        )
                    }
                    Some(Winner::SplitBrain) => refuse(
                        RejectCode::SplitBrain,
                        format!(
                            "sites {} and {} were both primary; choose one with `kagami pair resync`",
                            self.site, hello.site
                        ),
                        mine.epochs().to_vec(),
                        head,
                    ),
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
                if newer {
                    return refuse(
                        RejectCode::StalePrimary,
                        format!("site {} follows a newer primary", self.site),
                        mine.epochs().to_vec(),
                        head,
                    );
                }
                if let Some((_, old)) = s.link.replace((hello.site.clone(), closer.clone())) {
                    old.close();
                }
                Admission::Secondary(s.receiving.receiver.clone())
            }
        }
    }

    /// The link of a served peer ended.
    pub fn link_ended(&self, site: &str) {
        if let Run::Secondary(s) = &mut *self.run.lock()
            && s.link.as_ref().is_some_and(|(l, _)| l == site)
        {
            s.link = None;
        }
    }

    /// Steps down: a newer primary exists. Refuses mutations first, then ends the mounts, whose caches would go on
    /// serving, then receives.
    pub fn demote(self: &Arc<Self>, why: &str) {
        if self.changing.swap(true, Ordering::SeqCst) {
            return;
        }
        log::warn!("group {}: stepping down: {why}", self.cfg.name);
        let old = std::mem::replace(&mut *self.run.lock(), Run::Down("stepping down".into()));
        if let Run::Primary(p) = old {
            p.group.stop();
            if let Err(e) = self.change_role(|r| (r.primary, r.mounts) = (false, Vec::new())) {
                log::error!("group {}: {e}", self.cfg.name);
            }
            for (_, dir, m) in &p.mounts {
                if let Err(e) = m.abort() {
                    log::warn!("group {}: ending the mount {}: {e}", self.cfg.name, dir.display());
                }
            }
            for s in p.senders {
                s.stop();
            }
            for l in &p.legs {
                l.close();
            }
            let replica = p.group.replica.clone();
            if let Err(e) = self.receive(replica) {
                log::error!("group {}: {e}", self.cfg.name);
                *self.run.lock() = Run::Down(e.to_string());
            }
        } else {
            *self.run.lock() = old;
        }
        self.changing.store(false, Ordering::SeqCst);
    }

    /// Takes the group over here (MS-10, plain form): what was received is applied, a new epoch begins, the volume is
    /// mounted at `at`.
    pub fn takeover(self: &Arc<Self>, force: bool, at: Option<&Path>) -> Result<Seq> {
        // A link that has just ended takes a moment to be cleared away.
        let until = Instant::now() + LINK_ENDS;
        while !force && self.linked().is_some() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        let (receiver, linked) = match &*self.run.lock() {
            Run::Secondary(s) => (s.receiving.receiver.clone(), s.link.as_ref().map(|(l, _)| l.clone())),
            Run::Primary(_) => return Err(Error::refused(format!("group {} is primary here already", self.cfg.name))),
            Run::Down(why) => return Err(Error::failed(format!("group {} is down: {why}", self.cfg.name))),
        };
        if let (Some(site), false) = (linked, force) {
            return Err(Error::refused(format!(
                "site {site} is primary and reachable: stop it first, or take over by force (--force); what it wrote last may then be lost"
            )));
        }
        self.consistent(&receiver)?;
        if self.changing.swap(true, Ordering::SeqCst) {
            return Err(Error::refused("the group is changing its role already"));
        }
        drop(receiver);
        let r = self.switch(at);
        self.changing.store(false, Ordering::SeqCst);
        r
    }

    fn consistent(&self, receiver: &Receiver) -> Result<()> {
        let m = receiver.replica.order();
        match m.state.copy {
            crate::format::msg::CopyState::Empty => {
                return Err(Error::refused(format!("site {} has no copy of group {} yet", self.site, self.cfg.name)));
            }
            crate::format::msg::CopyState::Copying => {
                return Err(Error::refused(format!(
                    "the copy of group {} at site {} was never complete: it is no point of the primary's order and cannot be used",
                    self.cfg.name, self.site
                )));
            }
            crate::format::msg::CopyState::Consistent => {}
        }
        if receiver.received() < m.state.whole {
            return Err(Error::refused(
                "the first copy is not complete yet: entries written during it are still missing",
            ));
        }
        Ok(())
    }

    fn switch(self: &Arc<Self>, at: Option<&Path>) -> Result<Seq> {
        let old = std::mem::replace(&mut *self.run.lock(), Run::Down("being taken over".into()));
        let Run::Secondary(s) = old else {
            *self.run.lock() = old;
            return Err(Error::refused("the role changed meanwhile"));
        };
        if let Some((_, c)) = &s.link {
            c.close();
        }
        let replica = match s.receiving.finish() {
            Ok(r) => r,
            Err((e, receiving)) => {
                *self.run.lock() = Run::Secondary(Secondary { receiving, link: None });
                return Err(e);
            }
        };
        let head = replica.order().live.last_seq();
        self.change_role(|r| (r.primary, r.mounts) = (true, Vec::new()))?;
        for p in &self.pairs {
            if p.state() != crate::pair::state::State::Smpl
                && let Err(e) = p.event(
                    crate::pair::state::Event::Fault(crate::pair::state::Reason::LinkLost),
                    Some("taken over".into()),
                )
            {
                log::info!("group {} pair {}: {e}", self.cfg.name, p.name);
            }
        }
        if let Err(e) = self.lead(replica, true) {
            *self.run.lock() = Run::Down(e.to_string());
            return Err(e);
        }
        if let Some(at) = at {
            self.mount_at(VolId(0), at)?;
        } else {
            for (i, v) in self.cfg.volumes.iter().enumerate() {
                if let Some(m) = &v.mount {
                    self.mount_at(VolId(i as u16), m)?;
                }
            }
        }
        Ok(head)
    }

    /// The group at its primary, when this site is.
    pub fn primary(&self) -> Option<Arc<Group>> {
        match &*self.run.lock() {
            Run::Primary(p) => Some(p.group.clone()),
            _ => None,
        }
    }

    /// The receiver, when this site is secondary.
    pub fn secondary(&self) -> Option<Arc<Receiver>> {
        match &*self.run.lock() {
            Run::Secondary(s) => Some(s.receiving.receiver.clone()),
            _ => None,
        }
    }

    /// The replica, in either role.
    pub fn replica(&self) -> Result<Arc<Replica>> {
        match &*self.run.lock() {
            Run::Primary(p) => Ok(p.group.replica.clone()),
            Run::Secondary(s) => Ok(s.receiving.receiver.replica.clone()),
            Run::Down(why) => Err(Error::failed(format!("group {} is down: {why}", self.cfg.name))),
        }
    }

    /// Why the group is down, if it is.
    pub fn down(&self) -> Option<String> {
        match &*self.run.lock() {
            Run::Down(w) => Some(w.clone()),
            _ => None,
        }
    }

    /// Something the operator should know.
    pub fn note(&self) -> Option<String> {
        self.note.lock().clone()
    }

    /// Takes the group out of use with a reason.
    pub fn set_down(&self, why: String) {
        *self.run.lock() = Run::Down(why);
    }

    /// Mounted volumes and where.
    pub fn mounts(&self) -> Vec<(VolId, PathBuf)> {
        match &*self.run.lock() {
            Run::Primary(p) => p.mounts.iter().map(|(v, d, _)| (*v, d.clone())).collect(),
            _ => Vec::new(),
        }
    }

    /// The site whose link is being served, when secondary.
    pub fn linked(&self) -> Option<String> {
        match &*self.run.lock() {
            Run::Secondary(s) => s.link.as_ref().map(|(l, _)| l.clone()),
            _ => None,
        }
    }

    /// The primary's position as last heard.
    pub fn primary_head(&self) -> Seq {
        Seq(self.primary_head.load(Ordering::Relaxed))
    }

    /// Ends everything in order: mounts, senders or receiver, then the clean mark.
    pub fn shutdown(&self) {
        let old = std::mem::replace(&mut *self.run.lock(), Run::Down("shut down".into()));
        let replica = match old {
            Run::Primary(p) => {
                for (_, dir, m) in p.mounts {
                    if let Err(e) = m.unmount() {
                        log::warn!("unmounting {}: {e}", dir.display());
                    }
                }
                p.group.stop();
                for s in p.senders {
                    s.stop();
                }
                for l in &p.legs {
                    l.close();
                }
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
    fn set_primary_head(&self, head: Seq) {
        self.primary_head.store(head.0, Ordering::Relaxed);
    }
}

fn bytes(p: &Path) -> Vec<u8> {
    std::os::unix::ffi::OsStrExt::as_bytes(p.as_os_str()).to_vec()
}

fn path(b: &[u8]) -> PathBuf {
    PathBuf::from(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b))
}
