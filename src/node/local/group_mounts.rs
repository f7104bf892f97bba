//! Mounting a group's volumes where it is primary, and remembering it.

use super::*;
use crate::node::mounter::{self, MountAs, Mounted};
use crate::store::head::ConfigDef;
use crate::volume::objects::ROOT;
use crate::volume::{Caller, WriteHow};

/// How long a mount whose mount point was taken away may take to end, if no file is open in it.
const UNMOUNT_ENDS: Duration = Duration::from_secs(5);

/// A volume that is mounted.
pub struct MountPoint {
    pub(super) vol: VolId,
    pub(super) dir: PathBuf,
    pub(super) options: MountOptions,
    pub(super) handle: Arc<dyn Mounted>,
    /// Once it has ended: by what, unless it was by order.
    ended: Ended,
}

/// See [`MountPoint`].
type Ended = Arc<Mutex<Option<Option<String>>>>;

impl MountPoint {
    /// Ends it in order, and by force when a file is still open in it after [`mounter::UNMOUNT_WAIT`].
    pub(super) fn end(&self, group: &str) {
        let at = self.dir.display();
        let forced = match self.handle.unmount() {
            Ok(true) => return,
            Ok(false) => {
                log::warn!("group {group}: {at}: a program still has a file open in it, and gets errors from now on");
                self.handle.abort()
            }
            Err(e) => Err(e),
        };
        if let Err(e) = forced {
            log::warn!("group {group}: unmounting {at}: {e}");
        }
    }
}

/// What is told of a mount.
pub struct MountView {
    /// The volume.
    pub vol: VolId,
    /// Where.
    pub dir: PathBuf,
    /// How.
    pub options: MountOptions,
    /// The mount point is there; false when it was taken away with files open (`umount -l`).
    pub attached: bool,
}

impl LocalGroup {
    /// Where the site file mounts the volumes; `at` instead of them all: the lead volume there.
    pub fn own_mounts(&self, at: Option<&Path>) -> Vec<(VolId, PathBuf)> {
        let own = |(i, v): (usize, &config::VolumeConfig)| Some((VolId(i as u16), v.mount.clone()?));
        at.map_or_else(
            || self.cfg.volumes.iter().enumerate().filter_map(own).collect(),
            |at| vec![(VolId(0), at.to_owned())],
        )
    }

    /// Mounts a volume; remembered for the next start. At its first mount the config definition gets the directory, and the
    /// environment file is made in the volume (CD-3); later only an operator who mounts it elsewhere (`ordered`) changes
    /// the definition.
    pub fn mount_at(self: &Arc<Self>, vol: VolId, dir: &Path, options: &MountOptions, ordered: bool) -> Result<()> {
        self.await_end_of_unmounted(vol);
        let (group, order) = match &*self.run.lock() {
            Run::Primary(p) => {
                if let Some(m) = p.mounts.iter().find(|m| m.vol == vol) {
                    let at = m.dir.display();
                    return Err(Error::refused(match m.handle.attached() {
                        true => format!("the volume is mounted already, at {at}"),
                        false => format!(
                            "the volume was unmounted lazily from {at} and files are still open in it: close them first (`fuser`, `lsof`)"
                        ),
                    }));
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
        if let Some(head) = group.replica.region(vol)?.head()?
            && (ordered || head.mount.is_empty())
        {
            if head.mount.is_empty() {
                self.make_env_file(&volume, name)?;
            }
            group.define(vol, &ConfigDef { mount: bytes(dir), ..head })?;
        }
        let ended = Ended::default();
        let (me, end) = (Arc::downgrade(self), ended.clone());
        let on_end: mounter::OnEnd = Box::new(move |why| {
            *end.lock() = Some(why);
            if let Some(me) = me.upgrade() {
                me.mount_ended(&end);
            }
        });
        let how = MountAs { at: dir, label: format!("{}/{name}", self.cfg.name), options: options.clone(), on_end };
        let handle: Arc<dyn Mounted> = self.mounter.mount(volume, how)?.into();
        let mut run = self.run.lock();
        match &mut *run {
            Run::Primary(p) if !p.group.is_stopped() || !Arc::ptr_eq(&p.group, &group) => {
                let m = MountPoint { vol, dir: dir.to_owned(), options: options.clone(), handle, ended: ended.clone() };
                p.mounts.push(m);
                self.change_role(|r| {
                    r.mounts.retain(|(v, _, _)| *v != vol.0);
                    r.mounts.push((vol.0, bytes(dir), options.clone()));
                    if r.task == Task::Resting {
                        r.task = Task::None;
                    }
                })?;
            }
            _ => {
                handle.abort()?;
                return Err(Error::new(Kind::Failed, "the role changed while mounting"));
            }
        }
        drop(run);
        *self.mount_note.lock() = None;
        let (subject, to) = (Some(name.to_owned()), Some(dir.display().to_string()));
        self.tell(Happened { subject, to, ..Happened::new(What::Mount) });
        // It may have ended before it was in the list.
        if ended.lock().is_some() {
            self.mount_ended(&ended);
        }
        Ok(())
    }

    /// Gives a mount whose mount point is gone a moment to end: umount(8) returns before the node has noticed.
    fn await_end_of_unmounted(&self, vol: VolId) {
        let until = Instant::now() + UNMOUNT_ENDS;
        let ending = || match &*self.run.lock() {
            Run::Primary(p) => p.mounts.iter().any(|m| m.vol == vol && !m.handle.attached()),
            _ => false,
        };
        while ending() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A mount has ended, and the volume can be mounted again. Without an order to this node (umount(8), or a broken
    /// connection) `status` says what happened (G9), and at the next start it is mounted again only when the site file says
    /// so, or when nobody unmounted it.
    fn mount_ended(&self, ended: &Ended) {
        let mut run = self.run.lock();
        let Run::Primary(p) = &mut *run else { return };
        let Some(i) = p.mounts.iter().position(|m| Arc::ptr_eq(&m.ended, ended)) else { return };
        let m = p.mounts.remove(i);
        let Some(why) = ended.lock().clone().flatten() else {
            *self.mount_note.lock() = None;
            drop(run);
            self.tell_umount(&m, "ordered");
            return;
        };
        let broken = m.handle.attached();
        let in_site_file = self.cfg.volumes.get(m.vol.0 as usize).is_some_and(|v| v.mount.as_ref() == Some(&m.dir));
        if !broken
            && !in_site_file
            && let Err(e) = self.change_role(|r| r.mounts.retain(|(v, _, _)| *v != m.vol.0))
        {
            log::error!("group {}: {e}", self.cfg.name);
        }
        drop(run);
        log::warn!("group {}: {why}", self.cfg.name);
        self.tell_umount(&m, &why);
        *self.mount_note.lock() =
            Some(format!("{why}, not by an order to kagami; `kagami mount` or mount(8) mounts it again"));
        if broken && let Err(e) = m.handle.abort() {
            log::warn!("group {}: taking away {}: {e}", self.cfg.name, m.dir.display());
        }
    }

    /// Reports that a volume is mounted no more.
    pub(super) fn tell_umount(&self, m: &MountPoint, why: &str) {
        let subject = self.cfg.volumes.get(m.vol.0 as usize).map(|v| v.name.clone());
        let (from, reason) = (Some(m.dir.display().to_string()), Some(why.to_owned()));
        self.tell(Happened { subject, from, reason, ..Happened::new(What::Umount) });
    }

    /// Makes the environment file in a volume, where there is none.
    fn make_env_file(&self, volume: &Volume, name: &str) -> Result<()> {
        let file = self.cfg.env_file.as_bytes();
        if volume.lookup(ROOT, file)?.is_some() {
            return Ok(());
        }
        let (uid, gid) = crate::os::sys::ids();
        let who = Caller { uid, gid, pid: 0, umask: 0o022 };
        let (_, open) = volume.create(ROOT, file, 0o644, libc::O_WRONLY, &who)?;
        let text = format!("# Environment of what runs on volume {name}: NAME=value, one on a line.\n");
        let r = volume.write(open.fh, 0, text.as_bytes(), WriteHow::default(), &who);
        volume.release(open.fh);
        r.map(drop)
    }

    /// Unmounts volumes (all of the group, or one). [`Kind::Timeout`]: a file is still open, the mount point is gone.
    pub fn umount(&self, vol: Option<VolId>) -> Result<()> {
        let mut run = self.run.lock();
        let Run::Primary(p) = &mut *run else {
            return Err(Error::refused("nothing is mounted: the group is not primary here"));
        };
        let go = p.mounts.iter().filter(|m| vol.is_none_or(|x| x == m.vol));
        let go: Vec<_> = go.map(|m| (m.dir.clone(), m.handle.clone(), m.ended.clone())).collect();
        // Also what ended by itself, and would be mounted again at the next start.
        let mut forgotten = false;
        self.change_role(|r| {
            let before = r.mounts.len();
            r.mounts.retain(|(v, _, _)| vol.is_some_and(|x| x.0 != *v));
            forgotten = r.mounts.len() != before;
        })?;
        drop(run);
        if go.is_empty() && !forgotten {
            return Err(Error::refused("not mounted"));
        }
        *self.mount_note.lock() = None;
        self.waiting.lock().retain(|(v, ..)| vol.is_some_and(|x| x.0 != *v));
        let mut open = Vec::new();
        for (dir, handle, ended) in go {
            match handle.unmount()? {
                // Whoever asked may mount it again at once.
                true => self.mount_ended(&ended),
                false => open.push(dir.display().to_string()),
            }
        }
        if open.is_empty() {
            return Ok(());
        }
        let text = format!(
            "{} is taken away, but a program still has a file open in it: it can be mounted again when that is closed",
            open.join(", ")
        );
        *self.mount_note.lock() = Some(text.clone());
        Err(Error::new(Kind::Timeout, text))
    }

    /// Mounted volumes, where and how.
    pub fn mounts(&self) -> Vec<MountView> {
        let view = |m: &MountPoint| MountView {
            vol: m.vol,
            dir: m.dir.clone(),
            options: m.options.clone(),
            attached: m.handle.attached(),
        };
        match &*self.run.lock() {
            Run::Primary(p) => p.mounts.iter().map(view).collect(),
            _ => Vec::new(),
        }
    }
}
