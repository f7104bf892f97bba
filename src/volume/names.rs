//! Operations on names.

use super::caller::Caller;
use super::objects::Object;
use super::reach::Dir;
use super::{Node, Volume};
use crate::base::planted::{Bug, planted};
use crate::base::{Error, Name, Result, limits, time::Time};
use crate::format::op::{Attr, NodeKind, Op, RENAME_EXCHANGE, RENAME_NOREPLACE};
use crate::os::sys;
use crate::store::exec::{Acted, Pre, Side};
use crate::store::region::Region;
use crate::volume::order::Named;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// What a create asks for.
#[derive(Clone, Debug)]
pub enum Made {
    /// A file, symlink, FIFO, socket or device.
    Node(NodeKind),
    /// A directory.
    Dir,
}

fn os(e: i32) -> Error {
    Error::os(e)
}

impl Volume {
    /// Finds a name; `None` when it is free. Counts the node as known to the kernel once more.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<Option<Node>> {
        if name.len() > limits::NAME_BYTES_MAX {
            return Err(os(libc::ENAMETOOLONG));
        }
        match name {
            b"." => return self.itself(parent).map(Some),
            b".." => return self.above(parent).map(Some),
            _ => {}
        }
        let Dir { id, region, generation, fd: dir, .. } = self.dir(parent)?;
        match sys::statat(&*dir, name) {
            Ok(st) => self.enter_found((generation, &region), &Name::new(id, name), Some(st)).map(Some),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// The target of a symlink.
    pub fn readlink(&self, node: u64) -> Result<Vec<u8>> {
        let obj = self.objects.get(node)?;
        Ok(sys::readlinkat(&*self.path_fd(&obj)?, b"")?)
    }

    /// Makes a file, symlink, special file or directory. `mode`: permission bits as asked for. The node counts as known
    /// to the kernel once.
    pub fn make(&self, parent: u64, name: &[u8], what: Made, mode: u32, who: &Caller) -> Result<Node> {
        self.make_open(parent, name, what, mode, who).map(|(n, _)| n)
    }

    /// As [`Volume::make`]; a regular file's descriptor comes along, open for reading and writing.
    pub(super) fn make_open(
        &self,
        parent: u64,
        name: &[u8],
        what: Made,
        mode: u32,
        who: &Caller,
    ) -> Result<(Node, Option<OwnedFd>)> {
        let Dir { obj, id, region, generation, fd: dir } = self.dir(parent)?;
        let at = Name::new(id, name);
        if name.len() > limits::NAME_BYTES_MAX {
            return Err(os(libc::ENAMETOOLONG));
        }
        let inherit = self.inherit(&obj, &dir)?;
        let symlink = matches!(what, Made::Node(NodeKind::Symlink(_)));
        let mode = match (symlink, inherit.default_acl) {
            (true, _) => 0o777,
            (_, true) => mode & 0o7777,
            (_, false) => mode & 0o7777 & !who.umask,
        };
        let (uid, own_gid) = self.owner(who);
        let attr = Attr { mode, uid, gid: inherit.group.unwrap_or(own_gid), ..Attr::default() };
        let pmtime = Time::default();
        let op = match what {
            Made::Node(kind) => Op::Create { at: at.clone(), kind, attr, pmtime },
            Made::Dir => {
                let fresh = region.ids.read().fresh_dir_id();
                Op::Mkdir { at: at.clone(), id: fresh, attr, pmtime }
            }
        };
        let side = Side::Primary { inherit_acl: inherit.default_acl && !symlink, open_flags: libc::O_RDWR };
        let named = self.namespace(&region, op, side)?;
        Ok((self.enter_found((generation, &region), &at, named.acted.stat)?, named.acted.fd))
    }

    /// Gives a file a further name.
    pub fn link(&self, node: u64, parent: u64, name: &[u8]) -> Result<Node> {
        let obj = self.objects.get(node)?;
        let Dir { id, region, generation, .. } = self.dir(parent)?;
        let to = Name::new(id, name);
        if name.len() > limits::NAME_BYTES_MAX {
            return Err(os(libc::ENAMETOOLONG));
        }
        let from = match obj.place() {
            super::objects::Place::Name(n) => n,
            super::objects::Place::Dir(_) => return Err(os(libc::EPERM)),
            super::objects::Place::Gone => return Err(os(libc::ENOENT)),
        };
        let lid = {
            let ids = region.ids.read();
            ids.link_of(&from).unwrap_or_else(|| ids.fresh_link_id())
        };
        let op = Op::Link { from, to: to.clone(), lid, pmtime: Time::default() };
        let named = self.namespace(&region, op, PRIMARY)?;
        self.enter_found((generation, &region), &to, named.acted.stat)
    }

    /// Removes a name of a non-directory.
    pub fn unlink(&self, parent: u64, name: &[u8]) -> Result<()> {
        let Dir { id, region, fd: dir, .. } = self.dir(parent)?;
        let at = Name::new(id, name);
        let kept = self.keep_alive(&region, &dir, &at);
        // What it costs is settled while nobody writes to it.
        let still = kept.as_ref().map(|o| o.content.lock());
        let r = self.namespace(&region, Op::Unlink { at, pmtime: Time::default() }, PRIMARY);
        drop(still);
        self.done_with(kept, r)
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: u64, name: &[u8]) -> Result<()> {
        let Dir { id, region, fd: dir, .. } = self.dir(parent)?;
        let at = Name::new(id, name);
        let st = sys::statat(&*dir, name)?;
        if !st.is_dir() {
            return Err(os(libc::ENOTDIR));
        }
        let Some(gone) = region.dir_by_ino(st.ino) else {
            return Err(Error::corrupt(format!("directory {:?} has no id", region.path_of(&at))));
        };
        let kept = self.keep_alive(&region, &dir, &at);
        let r = self.namespace(&region, Op::Rmdir { at, id: gone, pmtime: Time::default() }, PRIMARY);
        self.done_with(kept, r)
    }

    /// Renames, with `RENAME_NOREPLACE` or `RENAME_EXCHANGE`.
    pub fn rename(&self, parent: u64, name: &[u8], to_parent: u64, to_name: &[u8], flags: u32) -> Result<()> {
        if flags & !(RENAME_NOREPLACE | RENAME_EXCHANGE) != 0 {
            return Err(os(libc::EINVAL));
        }
        let Dir { id, region, fd: dir, .. } = self.dir(parent)?;
        let Dir { id: to_id, fd: to_dir, .. } = self.dir(to_parent)?;
        if to_name.len() > limits::NAME_BYTES_MAX {
            return Err(os(libc::ENAMETOOLONG));
        }
        let (from, to) = (Name::new(id, name), Name::new(to_id, to_name));
        let st = sys::statat(&*dir, name)?;
        let over = sys::statat(&*to_dir, to_name).ok();
        if over.is_some_and(|o| o.ino == st.ino) && flags == 0 {
            // Two names of one file, or one name twice: POSIX wants nothing done, and says so by success.
            return Ok(());
        }
        let kept = match over {
            Some(_) if flags & (RENAME_EXCHANGE | RENAME_NOREPLACE) == 0 => self.keep_alive(&region, &to_dir, &to),
            _ => None,
        };
        let zero = Time::default();
        let op = Op::Rename { from, to, flags, from_pmtime: zero, to_pmtime: zero };
        let still = kept.as_ref().map(|o| o.content.lock());
        let r = self.namespace(&region, op, PRIMARY);
        drop(still);
        self.done_with(kept, r)
    }

    fn done_with(&self, kept: Option<Arc<Object>>, r: Result<Named>) -> Result<()> {
        if r.is_err()
            && let Some(o) = kept
        {
            o.unkeep();
        }
        r.map(drop)
    }

    /// Owner of what a caller makes: an ordinary user's node cannot give files away.
    fn owner(&self, who: &Caller) -> (u32, u32) {
        let (uid, gid) = sys::ids();
        if uid == 0 { (who.uid, who.gid) } else { (uid, gid) }
    }

    /// Runs an operation on names in the order and waits for the sync site.
    fn namespace(&self, region: &Region, op: Op, side: Side) -> Result<Named> {
        let named = {
            let _under_way = self.names.read();
            let mut late = None;
            let done = &mut |op: &Op, pre: &Pre, _: &Acted| match planted(Bug::FollowTooLate) {
                true => late = Some((op.clone(), *pre)),
                false => self.objects.follow(region, op, pre),
            };
            let named = self.order.namespace((self.vol, region), op, side, done)?;
            if let Some((op, pre)) = &late {
                self.objects.follow(region, op, pre);
            }
            named
        };
        self.order.answer(named.seq, &mut || self.take_back(region, &named))?;
        Ok(named)
    }

    /// Undoes an operation on names, if what it made or moved is still there.
    fn take_back(&self, region: &Region, named: &Named) -> Result<()> {
        let Some((op, ino)) = &named.back else { return Err(Error::failed("what it removed is gone")) };
        let [Some(at), _] = op.names() else { return Err(Error::failed("not an operation on names")) };
        if region.look(at)?.is_none_or(|(st, _)| st.ino != *ino) {
            return Err(Error::failed(format!("{} is another object now", region.path_of(at))));
        }
        let kept = match op {
            Op::Rename { .. } => None,
            _ => self.keep_alive(region, &*region.dirfd(at.dir)?, at),
        };
        let r = {
            let _under_way = self.names.read();
            self.order.take_back(self.vol, op.clone(), &mut |op, pre, _| self.objects.follow(region, op, pre))
        };
        if let (Err(_), Some(o)) = (&r, kept) {
            o.unkeep();
        }
        r
    }
}

const PRIMARY: Side = Side::Primary { inherit_acl: false, open_flags: 0 };
