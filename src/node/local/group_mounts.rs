//! Mounting a group's volumes where it is primary, and remembering it.

use super::*;
use crate::store::head::ConfigDef;

impl LocalGroup {
    /// Mounts a volume; remembered for the next start.
    pub fn mount_at(self: &Arc<Self>, vol: VolId, dir: &Path) -> Result<()> {
        let (group, order) = match &*self.run.lock() {
            Run::Primary(p) => {
                if let Some((_, d, _)) = p.mounts.iter().find(|(v, _, _)| *v == vol) {
                    return Err(Error::refused(format!("the volume is mounted already, at {}", d.display())));
                }
                (p.group.clone(), p.order.clone())
            }
            Run::Secondary(_) => {
                return Err(Error::refused(format!(
                    "group {} is secondary here: a secondary refuses writes other than the copy; take it over first (`kagami takeover {}`)",
                    self.cfg.name, self.cfg.name
                )));
            }
            Run::Down(why) => return Err(Error::failed(format!("group {} is down: {why}", self.cfg.name))),
        };
        let name = self.cfg.volumes.get(vol.0 as usize).map_or("?", |v| v.name.as_str());
        let volume = Volume::new(order as Arc<dyn Order>, vol)?;
        let legs = self.role()?.map_or(1, |r| r.legs.len());
        let emulation = if legs > 1 { "raid1" } else { "none" };
        group.define(vol, &ConfigDef { mount: bytes(dir), capacity: 0, emulation: emulation.into() })?;
        let handle = self.mounter.mount(volume, dir, format!("{}/{name}", self.cfg.name))?;
        let mut run = self.run.lock();
        match &mut *run {
            Run::Primary(p) if !p.group.is_stopped() || !Arc::ptr_eq(&p.group, &group) => {
                p.mounts.push((vol, dir.to_owned(), handle));
                let mounts = p.mounts.iter().map(|(v, d, _)| (v.0, bytes(d))).collect();
                self.change_role(|r| r.mounts = mounts)
            }
            _ => {
                handle.abort()?;
                Err(Error::new(Kind::Failed, "the role changed while mounting"))
            }
        }
    }

    /// Unmounts volumes (all of the group, or one).
    pub fn umount(&self, vol: Option<VolId>) -> Result<()> {
        let mut run = self.run.lock();
        let Run::Primary(p) = &mut *run else {
            return Err(Error::refused("nothing is mounted: the group is not primary here"));
        };
        let (go, stay): (Vec<_>, Vec<_>) =
            std::mem::take(&mut p.mounts).into_iter().partition(|(v, _, _)| vol.is_none_or(|x| x == *v));
        p.mounts = stay;
        let mounts = p.mounts.iter().map(|(v, d, _)| (v.0, bytes(d))).collect();
        drop(run);
        if go.is_empty() {
            return Err(Error::refused("not mounted"));
        }
        for (_, _, m) in go {
            m.unmount()?;
        }
        self.change_role(|r| r.mounts = mounts)
    }
}
