//! The legs of a group at its primary: which one is in use, what happens when it fails, how one is added.

use super::*;
use crate::node::switch::come_to_rest;

impl LocalGroup {
    /// Opens the leg in use; when that one is lost, another that had everything.
    pub(super) fn open_active(&self, role: &mut Role, fresh: bool) -> Result<Arc<Replica>> {
        let place = self.place(role, role.active);
        if fresh {
            Replica::create(&place)?;
        }
        let first = match Replica::open(&place) {
            Ok(r) => return Ok(Arc::new(r)),
            Err(e) => e,
        };
        for l in role.further_legs().into_iter().filter(|_| role.primary) {
            let leg = self.leg(role, l)?;
            if leg.pair.state() == crate::pair::state::State::Pair
                && let Ok(r) = Replica::open(leg.place())
            {
                log::warn!("group {}: leg {} is lost ({first}); going on with leg {l}", self.cfg.name, role.active);
                let r = Receiving::start(Arc::new(r))?.finish().map_err(|(e, _)| e)?;
                role.active = l;
                return Ok(r);
            }
        }
        Err(first)
    }

    /// A leg that is not the one in use.
    pub(super) fn leg(&self, role: &Role, leg: u32) -> Result<Arc<Leg>> {
        let ends = receipt::same_ends(self.cfg.volumes.iter());
        Leg::new((&self.state_dir, &self.events), leg, self.place(role, leg), ends, self.timing.link)
    }

    /// The leg in use failed: goes on with another one that has everything (MS-21). `None` when there is none.
    pub(super) fn fail_over(self: &Arc<Self>, old: &Arc<Group>, error: &Error) -> Option<Arc<Group>> {
        let leg = match &*self.run.lock() {
            Run::Primary(p) if Arc::ptr_eq(&p.group, old) => p.legs.iter().find(|l| l.is_good()).cloned()?,
            _ => return None,
        };
        log::warn!("group {}: the leg in use is left: {error}; going on with leg {}", self.cfg.name, leg.number);
        if !come_to_rest(old, || leg.is_good()) {
            return None;
        }
        match self.change_leg(old, &leg, error) {
            Ok(g) => Some(g),
            Err(e) => {
                log::error!("group {}: going on with leg {} failed: {e}", self.cfg.name, leg.number);
                old.thaw();
                None
            }
        }
    }

    fn change_leg(self: &Arc<Self>, old: &Arc<Group>, leg: &Arc<Leg>, error: &Error) -> Result<Arc<Group>> {
        let (senders, mut legs) = match &mut *self.run.lock() {
            Run::Primary(p) => (std::mem::take(&mut p.senders), p.legs.clone()),
            _ => return Err(Error::failed("the group is not primary any more")),
        };
        old.stop();
        for s in senders {
            s.stop();
        }
        let replica = leg.take()?;
        let mut role = self.role()?.ok_or_else(|| Error::failed("the role was not saved"))?;
        let lost = role.active;
        role.active = leg.number;
        self.save_role(&role)?;
        legs.retain(|l| l.number != leg.number);
        let lost = self.leg(&role, lost)?;
        lost.adopt(old.replica.clone(), error);
        if lost.pair.state() != crate::pair::state::State::Smpl {
            let fault = crate::pair::state::Event::Fault(crate::pair::state::Reason::LocalFault);
            lost.pair.event(fault, Some("the leg was lost".into()))?;
        }
        legs.push(lost);
        self.count(&replica)?;
        let back = self.pairs.iter().any(|p| p.mode == crate::pair::state::Mode::Sync && p.state() == State::Pair);
        let (group, senders) = self.lead_on(replica, &legs, false, &[])?;
        if back {
            group.await_return();
        }
        if let Run::Primary(p) = &mut *self.run.lock() {
            (p.group, p.legs, p.senders) = (group.clone(), legs, senders);
        }
        Ok(group)
    }

    /// Adds a leg to the running mirror group (MS-8): writes go to it at once, it counts when its copy is complete.
    pub fn add_leg(self: &Arc<Self>, regions: &[PathBuf]) -> Result<u32> {
        if regions.len() != self.cfg.volumes.len() {
            return Err(Error::config(format!(
                "give one region for each volume of group {}: {}",
                self.cfg.name,
                self.cfg.volumes.len()
            )));
        }
        let mut role = self.role()?.ok_or_else(|| Error::failed("the role was not saved"))?;
        let paths: Vec<Vec<u8>> = regions.iter().map(|p| bytes(p)).collect();
        let number = match role.legs.iter().position(|l| *l == paths) {
            None => {
                role.legs.push(paths);
                role.legs.len() - 1
            }
            // One that was removed comes back: it is copied anew.
            Some(n) if role.removed.contains(&(n as u32)) => n,
            Some(_) => return Err(Error::refused("this is a leg of the group already")),
        } as u32;
        role.removed.retain(|n| *n != number);
        let leg = self.leg(&role, number)?;
        Replica::create(leg.place())?;
        let mut run = self.run.lock();
        let Run::Primary(p) = &mut *run else {
            return Err(Error::refused("legs are added where the group is primary"));
        };
        self.save_role(&role)?;
        let index = p.group.add_pair(PairKind::Leg);
        let s = self.leg_sender(&p.group, &leg, index)?;
        p.senders.push(s);
        p.legs.push(leg);
        Ok(number)
    }

    /// Takes a leg out of the running mirror group. Its files stay where they are. The one in use is left for another one
    /// first, if that has everything.
    pub fn remove_leg(self: &Arc<Self>, number: u32) -> Result<()> {
        let role = self.role()?.ok_or_else(|| Error::failed("the role was not saved"))?;
        if number as usize >= role.legs.len() || role.removed.contains(&number) {
            return Err(Error::config(format!(
                "group {} has no leg {number} here; `kagami status` shows them",
                self.cfg.name
            )));
        }
        if role.active == number {
            let order = match &*self.run.lock() {
                Run::Primary(p) => p.order.clone(),
                _ => return Err(Error::refused("legs are removed where the group is primary")),
            };
            if !order.leave(&Error::failed("it is removed by order")) {
                return Err(Error::refused(format!(
                    "leg {number} is in use, and no other leg has everything; `kagami status` shows them"
                )));
            }
        }
        let (leg, sender) = {
            let mut run = self.run.lock();
            let Run::Primary(p) = &mut *run else {
                return Err(Error::refused("legs are removed where the group is primary"));
            };
            let at = p.legs.iter().position(|l| l.number == number);
            let leg = p.legs.remove(at.ok_or_else(|| Error::failed(format!("leg {number} is not open")))?);
            let sender = p.senders.iter().position(|s| s.pair == leg.pair.name).map(|i| p.senders.remove(i));
            self.change_role(|r| r.removed.push(number))?;
            (leg, sender)
        };
        leg.pair.event(crate::pair::state::Event::Delete, Some("removed by order".into()))?;
        if let Some(s) = sender {
            let (index, group) = (s.index, self.primary());
            s.stop();
            if let Some(g) = group {
                g.update(index, |p| p.simplex = true);
                g.queue.at_most(index, crate::volume::queue::Keep::Nothing);
            }
        }
        leg.close();
        log::info!("group {}: leg {number} was removed", self.cfg.name);
        Ok(())
    }

    /// For `kagami status`: the leg in use first.
    pub fn legs(&self) -> Vec<LegStatus> {
        let active = self.role().ok().flatten().map_or(0, |r| r.active);
        match &*self.run.lock() {
            Run::Primary(p) => {
                let fault = p.group.fault();
                let state = if fault.is_some() { "faulty" } else { "synchronised" };
                let mut v = vec![LegStatus { leg: active, state: state.into(), reason: fault }];
                v.extend(p.legs.iter().map(|l| l.status()));
                v.sort_by_key(|l| l.leg);
                v
            }
            _ => vec![LegStatus { leg: active, state: "synchronised".into(), reason: None }],
        }
    }
}
