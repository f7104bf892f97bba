//! The changes of role: stepping down, taking over.

use super::*;
use crate::format::msg::CopyState;

/// Why a group that is being taken over is down.
pub(super) const TAKEN: &str = "being taken over";
/// How long a primary that was told that nobody is newer may take until its link is here.
const EXPECTED: Duration = Duration::from_secs(3);
/// How long whoever asks how a group stands waits for a change of its role to be over.
const CHANGE_WAIT: Duration = Duration::from_secs(20);

/// What becomes of a group that was primary and starts.
pub(super) enum Before {
    /// It leads.
    Lead,
    /// Another site leads.
    Stale,
    /// The sync site leads until this one has what it lost in a power cut.
    Pull,
    /// This site, for which it led, has everything and is to lead.
    Give(String),
}

impl LocalGroup {
    /// Steps down: a newer primary exists. Refuses mutations first, then ends the mounts, whose caches would go on
    /// serving, then receives.
    pub fn demote(self: &Arc<Self>, why: &str) {
        if self.changing.swap(true, Ordering::SeqCst) {
            return;
        }
        log::warn!("group {}: stepping down: {why}", self.cfg.name);
        if let Some(g) = self.primary() {
            let when = crate::base::time::utc(crate::base::time::now());
            *self.note.lock() = Some(format!("was primary here until {when} UTC: {why}"));
            g.stop();
            drop(g);
            if let Err(e) = self.change_role(|r| (r.primary, r.mounts, r.task) = (false, Vec::new(), Task::None)) {
                log::error!("group {}: {e}", self.cfg.name);
            }
            self.become_secondary(Run::Down("stepping down".into()));
        }
        self.changing.store(false, Ordering::SeqCst);
    }

    /// From primary to secondary; the role says so already.
    pub(super) fn become_secondary(&self, meanwhile: Run) {
        let old = self.set_run(meanwhile);
        let Run::Primary(p) = old else {
            self.set_run(old);
            return;
        };
        p.group.stop();
        let task = self.task.lock().clone();
        match &task {
            Task::Giving(to) => self.resign(Some(Some(to))),
            _ => self.resign(None),
        }
        if let Some(Err(e)) = self.ballot.as_ref().map(|b| b.set_forced(false)) {
            log::error!("group {}: {e}", self.cfg.name);
        }
        for m in &p.mounts {
            if let Err(e) = m.handle.abort() {
                log::warn!("group {}: ending the mount {}: {e}", self.cfg.name, m.dir.display());
            }
            self.tell_umount(m, "stepping down");
        }
        for s in p.senders {
            s.stop();
        }
        for l in &p.legs {
            l.close();
        }
        p.group.queue.join();
        if let Err(e) = self.receive(p.group.replica.clone()) {
            self.fall(&e);
        }
    }

    /// Neither role could be taken up: down, until the node starts the group again with the role that is on disk.
    fn fall(&self, e: &Error) {
        log::error!("group {}: {e}", self.cfg.name);
        self.set_run(Run::Down(e.to_string()));
        self.failed.store(true, Ordering::SeqCst);
    }

    /// Whether a change of role that is over has left the group down; once.
    pub fn take_failed(&self) -> bool {
        !self.changing() && self.failed.swap(false, Ordering::SeqCst)
    }

    /// Waits until a change of role that is under way is over, for at most `CHANGE_WAIT`: in the middle of it the group
    /// is down, and no error.
    pub fn settle(&self) {
        let until = Instant::now() + CHANGE_WAIT;
        while self.changing.load(Ordering::SeqCst) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Takes the group over here (MS-10, plain form): what was received is applied, a new epoch begins, the volumes are
    /// mounted where `mounts` says; `None`: nothing is, before that is ordered.
    pub fn takeover(self: &Arc<Self>, force: bool, mounts: Option<&[(VolId, PathBuf)]>) -> Result<Seq> {
        let (mounts, task) = mounts.map_or((Vec::new(), Task::Resting), |m| (wanted(m), Task::None));
        // A link that has just ended takes a moment to be cleared away.
        let until = Instant::now() + LINK_ENDS;
        // Where votes decide, they do so also about a link that only seems to be there.
        let voted = self.ballot.as_ref().is_some_and(|b| b.leads());
        while !force && !voted && self.linked().is_some() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        while !force && !voted && self.linked().is_none() && self.expected().is_some() {
            std::thread::sleep(Duration::from_millis(20));
        }
        let run = self.run.lock();
        let (receiver, linked) = match &*run {
            Run::Secondary(s) => (s.receiving.receiver.clone(), s.link.as_ref().map(|(l, _)| l.clone())),
            Run::Primary(_) if matches!(*self.task.lock(), Task::Acting(_)) => {
                // Until now for another site, which does not come back.
                let head = run_head(&run);
                drop(run);
                self.change_role(|r| r.task = task)?;
                // What it did not copy to while it led for the other.
                for p in self.pairs.iter().filter(|p| p.state() == State::Smpl) {
                    p.event(Event::Create { no_copy: false }, Some("taken over".into()))?;
                }
                self.mount_all(&mounts);
                return head;
            }
            Run::Primary(_) => {
                // It leads, and no majority lets it: the operator's word stands for the other voters.
                if let (true, Some(b)) = (force, self.ballot.as_ref().filter(|b| !b.leads())) {
                    log::warn!("group {}: goes on without a majority, by force", self.cfg.name);
                    b.set_forced(true)?;
                    return run_head(&run);
                }
                return Err(Error::refused(format!("group {} is primary here already", self.cfg.name)));
            }
            Run::Down(why) => return Err(Error::failed(format!("group {} is down: {why}", self.cfg.name))),
        };
        drop(run);
        if let (Some(site), false) = (linked, force || voted) {
            return Err(reachable(&site));
        }
        self.consistent(&receiver, force)?;
        if self.changing.swap(true, Ordering::SeqCst) {
            return Err(Error::refused("the group is changing its role already"));
        }
        drop(receiver);
        *self.note.lock() = None;
        let r = self.switch(mounts, task);
        self.changing.store(false, Ordering::SeqCst);
        r
    }

    /// A primary that is starting: it was told a moment ago that nobody is newer (G3).
    pub(super) fn expected(&self) -> Option<String> {
        self.asked.lock().as_ref().filter(|(t, _)| t.elapsed() < EXPECTED).map(|(_, site)| site.clone())
    }

    /// Counts no votes any more; `release` as in [`Ballot::resign`].
    pub(super) fn resign(&self, release: Option<Option<&str>>) {
        if let Some(b) = &self.ballot {
            b.resign(release);
        }
    }

    /// Why a takeover here would be refused now, if it would.
    pub fn takeover_refused(&self, force: bool) -> Option<Error> {
        let Some(r) = self.secondary() else {
            return Some(Error::refused(format!("group {} is not secondary here", self.cfg.name)));
        };
        let votes = self.may_stand().filter(|_| !force);
        let linked = self.linked().filter(|_| !force && votes != Some(Ok(()))).map(|site| reachable(&site));
        let votes = votes.and_then(|v| v.err()).map(|why| self.no_majority(&why));
        linked.or_else(|| self.consistent(&r, force).err()).or(votes)
    }

    /// What a power cut here may have taken, if no peer has mended it yet.
    pub fn torn(&self) -> Option<String> {
        let r = self.secondary()?;
        let m = r.replica.order();
        m.state.torn.then(|| {
            let known = m.state.unmended.join("; ");
            let known = if known.is_empty() { known } else { format!(" (known: {known})") };
            format!(
                "site {} lost power, and what it received after entry {} may be missing in its tree in part{known}",
                self.site,
                Replica::checkpointed(&m).0
            )
        })
    }

    /// Whether what is here could be taken over: the refusal says what is missing.
    pub fn consistent(&self, receiver: &Receiver, force: bool) -> Result<()> {
        // Before the order: who receives takes the order after its own lock.
        let received = receiver.received();
        if let (Some(torn), false) = (self.torn(), force) {
            return Err(Error::refused(format!(
                "{torn}: let a peer bring it up to date, or take over what its disk kept by force (--force)"
            )));
        }
        let m = receiver.replica.order();
        match m.state.copy {
            CopyState::Empty => {
                return Err(Error::refused(format!("site {} has no copy of group {} yet", self.site, self.cfg.name)));
            }
            CopyState::Copying => {
                return Err(Error::refused(format!(
                    "the copy of group {} at site {} was never complete: it is no point of the primary's order and cannot be used",
                    self.cfg.name, self.site
                )));
            }
            CopyState::Consistent => {}
        }
        if received < m.state.whole {
            return Err(Error::refused(
                "the first copy is not complete yet: entries written during it are still missing",
            ));
        }
        Ok(())
    }

    /// From secondary to primary: what was received is applied, a new epoch begins, the volumes are mounted.
    pub(super) fn switch(self: &Arc<Self>, mounts: Vec<WantedMount>, task: Task) -> Result<Seq> {
        let old = self.set_run(Run::Down(TAKEN.into()));
        let Run::Secondary(s) = old else {
            self.set_run(old);
            return Err(Error::refused("the role changed meanwhile"));
        };
        if let Some((_, c)) = &s.link {
            c.close();
        }
        let replica = match s.receiving.finish() {
            Ok(r) => r,
            Err((e, receiving)) => {
                self.set_run(Run::Secondary(Secondary { receiving, link: None }));
                return Err(e);
            }
        };
        let (head, from) = {
            let m = replica.order();
            (m.live.last_seq(), replica.chain(&m).head().map(|e| e.site.clone()))
        };
        let acting = matches!(task, Task::Acting(_));
        if let Err(e) = self.change_role(|r| (r.primary, r.mounts, r.task) = (true, mounts.clone(), task)) {
            // Not on disk, so not so (a full disk, for one): it goes on as the secondary that it was.
            if let Err(e) = self.receive(replica) {
                self.fall(&e);
            }
            return Err(e);
        }
        for p in self.pairs.iter().filter(|p| p.state() != State::Smpl) {
            let taken = match &from {
                Some(site) if *site != p.peer => {
                    p.event(Event::Fault(Reason::LinkLost), Some("taken over".into())).map(drop)
                }
                _ => p.take_over(),
            };
            if let Err(e) = taken {
                log::info!("group {} pair {}: {e}", self.cfg.name, p.name);
            }
        }
        if let Err(e) = self.lead(replica, !acting, &[]) {
            self.fall(&e);
            return Err(e);
        }
        match self.mount_all(&mounts) {
            Some(e) => Err(e),
            None => Ok(head),
        }
    }

    /// A site that was stopped between its new role and its first epoch: what it had received comes first, as in
    /// [`LocalGroup::switch`] (G1). After a power cut that is all of the entry log since the last checkpoint. `None`: it
    /// cannot be applied, and the site is the secondary that it was.
    pub(super) fn received_first(&self, replica: Arc<Replica>) -> Result<Option<Arc<Replica>>> {
        if !replica.follows_log() {
            return Ok(Some(replica));
        }
        match Receiving::start(replica)?.finish() {
            Ok(r) => Ok(Some(r)),
            Err((e, receiving)) => {
                log::error!("group {}: not taken over: {e}", self.cfg.name);
                *self.note.lock() = Some(format!("not taken over: {e}"));
                self.change_role(|r| (r.primary, r.task) = (false, Task::None))?;
                self.set_run(Run::Secondary(Secondary { receiving, link: None }));
                Ok(None)
            }
        }
    }

    /// Mounts what waited for the fence.
    pub(super) fn mount_waiting(self: &Arc<Self>) {
        if self.primary().is_some_and(|g| g.accepts().is_ok()) && !self.waiting.lock().is_empty() {
            let waiting = self.waiting.lock().clone();
            self.mount_all(&waiting);
        }
    }

    /// Mounts what the role says; what cannot be mounted is noted. Gives the first error.
    pub(super) fn mount_all(self: &Arc<Self>, mounts: &[WantedMount]) -> Option<Error> {
        let mut first = None;
        self.waiting.lock().clear();
        for (v, dir, options) in mounts {
            let dir = path(dir);
            if let Err(e) = self.mount_at(VolId(*v), &dir, options, false) {
                log::error!("group {}: mounting at {}: {e}", self.cfg.name, dir.display());
                let note = format!("not mounted at {}: {e}", dir.display());
                self.tell(Happened { reason: Some(note.clone()), ..Happened::new(What::Error) });
                *self.mount_note.lock() = Some(note);
                first = first.or(Some(e));
                // The first mount of all writes the environment file.
                if self.primary().is_some_and(|g| g.accepts().is_err()) {
                    self.waiting.lock().push((*v, bytes(&dir), options.clone()));
                }
            }
        }
        first
    }
}

fn reachable(site: &str) -> Error {
    Error::refused(format!(
        "site {site} is primary and reachable: stop it first, or take over by force (--force); what it wrote last may then be lost"
    ))
}

/// Mounts with no options of their own, as a role keeps them.
pub(super) fn wanted(mounts: &[(VolId, PathBuf)]) -> Vec<WantedMount> {
    mounts.iter().map(|(v, dir)| (v.0, bytes(dir), MountOptions::new())).collect()
}

fn run_head(run: &Run) -> Result<Seq> {
    match run {
        Run::Primary(p) => Ok(p.group.head()),
        _ => Err(Error::failed("the role changed meanwhile")),
    }
}
