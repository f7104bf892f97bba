//! The volume definition table of this site (CD-1) against the config definitions of the volumes.

use super::*;
use crate::base::size;
use crate::store::head::{ConfigDef, Row};

impl LocalGroup {
    /// The volumes whose size or emulation type the operator changed since this node last looked; noted in the role. That
    /// is an order where the group is primary; after a takeover the definition stays what it was.
    pub(super) fn edited(&self, role: &mut Role) -> Vec<VolId> {
        let now: Vec<(u64, String)> =
            self.cfg.volumes.iter().map(|v| (v.size, v.emulation.as_str().to_owned())).collect();
        let was = std::mem::replace(&mut role.table, now.clone());
        let changed = now.iter().zip(&was).enumerate().filter(|(_, (n, w))| n != w);
        changed.map(|(i, _)| VolId(i as u16)).collect()
    }

    /// Before a replica receives: what comes is checked against this site's table, and what is used is counted.
    pub(super) fn expect(&self, replica: &Replica) -> Result<()> {
        for (r, v) in replica.regions.iter().zip(&self.cfg.volumes) {
            let what = format!("volume {} ({}/{}) at site {}", v.name, v.port, v.lu, self.site);
            // A replica that was primary and receives again has it already.
            let _ = r.row.set(Row { what, size: v.size, emulation: v.emulation.as_str().into() });
        }
        if replica.order().state.copy == crate::format::msg::CopyState::Consistent {
            self.count(replica)
        } else {
            Ok(())
        }
    }

    /// Begins to count what is used of a volume that has a capacity and was not counted: everything is looked at, once.
    pub(super) fn count(&self, replica: &Replica) -> Result<()> {
        for (r, v) in replica.regions.iter().zip(&self.cfg.volumes) {
            let capacity = r.head()?.map_or(v.size, |h| h.capacity.max(v.size));
            if capacity == 0 || r.space.counts() {
                continue;
            }
            log::info!("group {}: counting what is used of volume {}", self.cfg.name, v.name);
            let say = |n: u64| {
                log::info!("group {}: volume {}: {n} objects counted", self.cfg.name, v.name);
                *self.note.lock() = Some(format!("counting what is used of volume {}: {n} objects", v.name));
            };
            r.count_space(&mut { say })?;
            *self.note.lock() = None;
        }
        Ok(())
    }

    /// At the primary, before anything is sent: every volume has its config definition (CD-3), what the operator changed
    /// goes into it, and the capacity is enforced from now on.
    pub(super) fn define(&self, group: &Group, edited: &[VolId]) -> Result<()> {
        for (i, v) in self.cfg.volumes.iter().enumerate() {
            let vol = VolId(i as u16);
            let region = group.replica.region(vol)?;
            let old = region.head()?;
            let mut def = match &old {
                Some(h) if !edited.contains(&vol) => h.clone(),
                _ => ConfigDef {
                    mount: old.as_ref().map(|h| h.mount.clone()).unwrap_or_default(),
                    capacity: v.size,
                    emulation: v.emulation.as_str().into(),
                },
            };
            let used = region.space.used().unwrap_or(0);
            if def.capacity != 0 && def.capacity < used && old.as_ref().is_none_or(|h| h.capacity != def.capacity) {
                let stays = old.as_ref().map_or(0, |h| h.capacity);
                let now = if stays == 0 { "it has none".into() } else { format!("it stays {}", size::show(stays)) };
                let text = format!(
                    "volume {}: size {} is below what is used, {}: {now}; remove files and restart, or write a larger size",
                    v.name,
                    size::show(def.capacity),
                    size::show(used)
                );
                log::error!("group {}: {text}", self.cfg.name);
                *self.note.lock() = Some(text);
                def.capacity = stays;
                // Not done, so it is still to be done at the next start.
                self.change_role(|r| r.table.get_mut(i).into_iter().for_each(|t| t.0 = u64::MAX))?;
            }
            group.define(vol, &def)?;
            region.space.enforce(def.capacity);
        }
        Ok(())
    }

    /// For `kagami status`.
    pub fn volumes(&self) -> Vec<VolumeStatus> {
        let replica = self.replica().ok();
        let region = |i: usize| replica.as_ref().and_then(|r| r.regions.get(i));
        let one = |(i, v): (usize, &config::VolumeConfig)| VolumeStatus {
            name: v.name.clone(),
            port: v.port.clone(),
            lu: v.lu,
            emulation: v.emulation.as_str().into(),
            size: v.size,
            capacity: region(i).and_then(|r| r.head().ok().flatten()).map(|h| h.capacity),
            used: region(i).and_then(|r| r.space.used()),
        };
        self.cfg.volumes.iter().enumerate().map(one).collect()
    }
}
