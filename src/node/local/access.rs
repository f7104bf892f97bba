//! What a group is at the moment, for those who look.

use super::*;

impl LocalGroup {
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

    /// Whether it is still being started: its role or its mounts are not there yet.
    pub fn starting(&self) -> bool {
        !self.begun.load(Ordering::SeqCst)
    }

    /// The first attempt to start it is over.
    pub fn set_begun(&self) {
        self.begun.store(true, Ordering::SeqCst);
    }

    /// Whether its role is changing just now.
    pub fn changing(&self) -> bool {
        self.changing.load(Ordering::SeqCst)
    }

    /// Secondary, because another site took the role, or always: nothing that ran here before is to come back with it. Not
    /// so where the role was given away in order, or is on its way back after a power cut.
    pub fn lost_its_role(&self) -> bool {
        let run = self.run.lock();
        let back = !matches!(*self.task.lock(), Task::None | Task::Acting(_));
        matches!(*run, Run::Secondary(_)) && !back
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
        let notes = [self.note.lock().clone(), self.mount_note.lock().clone()];
        let notes: Vec<String> = notes.into_iter().flatten().collect();
        (!notes.is_empty()).then(|| notes.join("; "))
    }

    /// Takes the group out of use with a reason.
    pub fn set_down(&self, why: String) {
        self.set_run(Run::Down(why));
    }

    /// The site whose link is being served, when secondary.
    pub fn linked(&self) -> Option<String> {
        self.link().map(|(site, _)| site)
    }

    /// The same with the link.
    pub(super) fn link(&self) -> Option<(String, Closer)> {
        match &*self.run.lock() {
            Run::Secondary(s) => s.link.clone(),
            _ => None,
        }
    }
}
