//! The legs of a group at its primary: which one is in use, what happens when it fails, how one is added.

use super::*;

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
        for l in (0..role.legs.len() as u32).filter(|l| *l != role.active && role.primary) {
            let place = self.place(role, l);
            let leg = Leg::new(&self.state_dir, l, place.clone(), self.timing.link)?;
            if leg.pair.state() == crate::pair::state::State::Pair
                && let Ok(r) = Replica::open(&place)
            {
                log::warn!("group {}: leg {} is lost ({first}); going on with leg {l}", self.cfg.name, role.active);
                let r = Receiving::start(Arc::new(r))?.finish().map_err(|(e, _)| e)?;
                role.active = l;
                return Ok(r);
            }
        }
        Err(first)
    }

    /// The leg in use failed: goes on with another one that has everything (MS-21). `None` when there is none.
    pub(super) fn fail_over(self: &Arc<Self>, old: &Arc<Group>, error: &Error) -> Option<Arc<Group>> {
        let leg = match &*self.run.lock() {
            Run::Primary(p) if Arc::ptr_eq(&p.group, old) => p.legs.iter().find(|l| l.is_good()).cloned()?,
            _ => return None,
        };
        log::error!("group {}: the leg in use failed: {error}; going on with leg {}", self.cfg.name, leg.number);
        let head = old.freeze();
        if !old.wait_all(head, Duration::from_secs(3)) || !leg.is_good() {
            old.thaw();
            return None;
        }
        match self.change_leg(old, &leg) {
            Ok(g) => Some(g),
            Err(e) => {
                log::error!("group {}: going on with leg {} failed: {e}", self.cfg.name, leg.number);
                old.thaw();
                None
            }
        }
    }

    fn change_leg(self: &Arc<Self>, old: &Arc<Group>, leg: &Arc<Leg>) -> Result<Arc<Group>> {
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
        let lost =
            Leg::from_lost(&self.state_dir, lost, self.place(&role, lost), old.replica.clone(), self.timing.link)?;
        if lost.pair.state() != crate::pair::state::State::Smpl {
            let fault = crate::pair::state::Event::Fault(crate::pair::state::Reason::LocalFault);
            lost.pair.event(fault, Some("the leg was lost".into()))?;
        }
        legs.push(lost);
        let (group, senders) = self.lead_on(replica, &legs, false)?;
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
        if role.legs.contains(&paths) {
            return Err(Error::refused("this is a leg of the group already"));
        }
        let number = role.legs.len() as u32;
        role.legs.push(paths);
        let leg = Leg::new(&self.state_dir, number, self.place(&role, number), self.timing.link)?;
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
