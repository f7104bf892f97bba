//! Descriptors of simulated threads: a table of their own, with numbers that the kernel never gives, and what each refers to.

pub mod dirs;
mod fixed;
pub mod io;
mod lock;
pub mod names;
mod paths;
pub mod xattrs;

use super::disk::Ofd;
use super::net::SockId;
use super::sched::{Key, MachineId, Res, World, world};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_int;

pub use paths::{Place, resolve};

/// The first number.
const BASE: c_int = 1_000_000;

/// True for a number of this table.
pub fn is_ours(fd: c_int) -> bool {
    fd >= BASE
}

/// What an open description is of. The host may have files of other machines' disks.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A file or directory of a disk.
    File {
        of: MachineId,
        disk: usize,
        ofd: Ofd,
    },
    Socket(SockId),
    /// A file of `/proc` with a text of our own.
    Text {
        text: Vec<u8>,
        at: usize,
    },
    /// Something that is never readable: signals, which nobody sends.
    Silent,
}

/// An open description.
#[derive(Clone, Debug)]
pub struct Open {
    refs: u32,
    pub machine: MachineId,
    pub kind: Kind,
}

/// The descriptors of all machines, and the locks on files.
#[derive(Default)]
pub struct Table {
    fds: Vec<Option<usize>>,
    free: BTreeSet<usize>,
    opens: Vec<Option<Open>>,
    free_opens: BTreeSet<usize>,
    /// Who holds flock(2)'s locks: by machine, disk and inode, the open descriptions, and whether alone.
    locks: BTreeMap<(MachineId, usize, u64), (bool, BTreeSet<usize>)>,
}

impl Table {
    fn put<T>(all: &mut Vec<Option<T>>, free: &mut BTreeSet<usize>, v: T) -> usize {
        match free.pop_first() {
            Some(i) => {
                all[i] = Some(v);
                i
            }
            None => {
                all.push(Some(v));
                all.len() - 1
            }
        }
    }

    /// A descriptor, the lowest that is free, of a new open description.
    pub fn add(&mut self, machine: MachineId, kind: Kind) -> c_int {
        let open = Self::put(&mut self.opens, &mut self.free_opens, Open { refs: 1, machine, kind });
        BASE + Self::put(&mut self.fds, &mut self.free, open) as c_int
    }

    fn open_of(&self, fd: c_int) -> Res<usize> {
        let i = usize::try_from(fd - BASE).map_err(|_| libc::EBADF)?;
        self.fds.get(i).copied().flatten().ok_or(libc::EBADF)
    }

    /// Another descriptor of the same open description.
    fn dup(&mut self, fd: c_int) -> Res<c_int> {
        let open = self.open_of(fd)?;
        if let Some(o) = self.opens[open].as_mut() {
            o.refs += 1;
        }
        Ok(BASE + Self::put(&mut self.fds, &mut self.free, open) as c_int)
    }

    /// Takes a descriptor away; with the last one of a description, its number and what it was.
    fn remove(&mut self, fd: c_int) -> Res<Option<(usize, Open)>> {
        let open = self.open_of(fd)?;
        let i = (fd - BASE) as usize;
        self.fds[i] = None;
        self.free.insert(i);
        let Some(o) = self.opens[open].as_mut() else { return Ok(None) };
        o.refs -= 1;
        if o.refs > 0 {
            return Ok(None);
        }
        self.free_opens.insert(open);
        Ok(self.opens[open].take().map(|o| (open, o)))
    }

    /// What a descriptor refers to.
    pub fn get(&self, fd: c_int) -> Res<&Open> {
        let open = self.open_of(fd)?;
        self.opens[open].as_ref().ok_or(libc::EBADF)
    }

    fn get_mut(&mut self, fd: c_int) -> Res<&mut Open> {
        let open = self.open_of(fd)?;
        self.opens[open].as_mut().ok_or(libc::EBADF)
    }
}

/// The machine of the thread that runs.
pub fn here() -> MachineId {
    let w = world();
    w.threads[w.current].machine
}

/// What a descriptor of the current machine refers to. Use of another machine's is a fault of the program under test, or of
/// the simulation.
pub fn open_at(fd: c_int) -> Res<&'static mut Open> {
    let w = world();
    let me = w.threads[w.current].machine;
    if let Some(other) = w.table.get(fd).ok().filter(|o| o.machine != me) {
        let why = format!("machine {me} uses descriptor {fd} of machine {}: {:?}", other.machine, other.kind);
        w.fail(why);
    }
    world().table.get_mut(fd)
}

/// The disk and open description of a file's descriptor; `EBADF` for anything else.
pub fn file_at(fd: c_int) -> Res<(MachineId, usize, Ofd)> {
    let o = open_at(fd)?;
    match o.kind {
        Kind::File { of, disk, ofd } => Ok((of, disk, ofd)),
        _ => Err(libc::EBADF),
    }
}

/// close(2).
pub fn close(fd: c_int) -> Res<i64> {
    open_at(fd)?;
    let w = world();
    if let Some((number, open)) = w.table.remove(fd)? {
        dispose(w, number, &open);
    }
    Ok(0)
}

/// The end of an open description.
fn dispose(w: &mut World, number: usize, open: &Open) {
    match open.kind {
        Kind::File { of, disk, ofd } => {
            lock::drop_all(w, of, disk, ofd, number);
            w.disk(of, disk).close(ofd);
        }
        Kind::Socket(s) => {
            w.net.begin(w.now);
            w.net.close(s);
            w.net_effects();
        }
        Kind::Text { .. } | Kind::Silent => {}
    }
}

/// Closes everything of a machine whose processes were killed.
pub fn close_all(w: &mut World, m: MachineId) {
    for i in 0..w.table.fds.len() {
        let fd = BASE + i as c_int;
        if w.table.get(fd).is_ok_and(|o| o.machine == m)
            && let Ok(Some((number, open))) = w.table.remove(fd)
        {
            dispose(w, number, &open);
        }
    }
}

/// fcntl(2), the commands that are used.
pub fn fcntl(fd: c_int, command: c_int, arg: i64) -> Res<i64> {
    open_at(fd)?;
    let w = world();
    match command {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => w.table.dup(fd).map(i64::from),
        libc::F_GETFD => Ok(libc::FD_CLOEXEC.into()),
        libc::F_SETFD => Ok(0),
        libc::F_GETFL => match w.table.get(fd)?.kind {
            Kind::File { of, disk, ofd } => Ok(w.disk(of, disk).flags(ofd).into()),
            Kind::Socket(s) => Ok(i64::from(libc::O_RDWR | if w.net.is_nonblocking(s) { libc::O_NONBLOCK } else { 0 })),
            _ => Ok(0),
        },
        libc::F_SETFL => {
            match w.table.get(fd)?.kind {
                Kind::File { of, disk, ofd } => w.disk(of, disk).set_flags(ofd, arg as c_int)?,
                Kind::Socket(s) => w.net.set_nonblocking(s, arg as c_int & libc::O_NONBLOCK != 0),
                _ => {}
            }
            Ok(0)
        }
        c => w.fail(format!("fcntl command {c} is not simulated")),
    }
}

/// The key of the lock of an open file.
fn lock_key(k: (MachineId, usize, u64)) -> Key {
    Key::Flock(k.0, k.1, k.2)
}

pub use lock::flock;
