//! Processes: what std leaves to system calls. Adopting orphans, starting as another user, noticing ends, signals that
//! cannot hit a process that merely got the number of another one.

use super::user::User;
use serde::{Deserialize, Serialize};
use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Signals that a guard does not heed: it ends with what it guards, or when its socket closes.
const UNHEEDED: [libc::c_int; 5] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGPIPE];
/// File creation mask of a started process.
const UMASK: libc::mode_t = 0o022;

fn check(r: libc::c_int) -> io::Result<libc::c_int> {
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(r) }
}

/// Signals of Linux are numbered from 1 to this.
const SIGNAL_MAX: libc::c_int = 64;

/// Gives every signal its default effect, also those that libc keeps for itself and that were inherited as ignored, and
/// blocks none (the node blocks those that it reads from a descriptor). May be called between fork and exec.
fn default_signals() {
    let none = 0u64;
    // SAFETY: the set of 8 bytes, the kernel's own form, lives through the call; nothing is written.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            std::ptr::null_mut::<u64>(),
            8usize,
        );
    }
    // The kernel's own form of a sigaction, all zeroes: the default effect, no flags, an empty mask of 8 bytes.
    let default = [0u64; 4];
    for s in 1..=SIGNAL_MAX {
        // SAFETY: `default` lives through the call and has the size of the kernel's structure; nothing is written. That it
        // is refused for SIGKILL and SIGSTOP is right.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, s, default.as_ptr(), std::ptr::null_mut::<u64>(), 8usize);
        }
    }
}

/// Makes this process (which has one thread yet) a guard: orphans below it become its children, signals meant for
/// others do not end it, and no descriptor but the first three is inherited by what it starts.
pub fn become_guard() -> io::Result<()> {
    // An ignored SIGCHLD would hide the ends of children.
    default_signals();
    // SAFETY: plain calls.
    unsafe {
        check(libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))?;
        for s in UNHEEDED {
            libc::signal(s, libc::SIG_IGN);
        }
        check(libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int))?;
    }
    Ok(())
}

/// Prepares a command whose process has a session of its own, runs as `user` (`None`: as this process), in `dir` as that
/// user sees it, heeds every signal and is killed when the calling thread ends.
pub fn prepare(command: &mut Command, user: Option<User>, dir: &Path) -> io::Result<()> {
    let dir = CString::new(dir.as_os_str().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: plain call.
    let parent = unsafe { libc::getpid() };
    let between = move || {
        // SAFETY: all of these may be called between fork and exec; the strings and lists live in the closure.
        unsafe {
            check(libc::setsid())?;
            if let Some(u) = &user {
                check(libc::setgroups(u.groups.len(), u.groups.as_ptr()))?;
                check(libc::setgid(u.gid))?;
                check(libc::setuid(u.uid))?;
            }
            check(libc::chdir(dir.as_ptr()))?;
            libc::umask(UMASK);
            default_signals();
            // After setuid, which would forget it.
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0))?;
            if libc::getppid() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
        }
        Ok(())
    };
    // SAFETY: the closure allocates nothing and takes no lock.
    unsafe { command.pre_exec(between) };
    Ok(())
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            End::Code(code) => write!(f, "exit code {code}"),
            End::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// Waits until a child has ended, and leaves it as it is, so that its number stays taken; `None`: there is no child.
pub fn next_ended() -> io::Result<Option<i32>> {
    loop {
        match wait_any(libc::WEXITED | libc::WNOWAIT) {
            Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
            Err(e) if e.raw_os_error() == Some(libc::ECHILD) => return Ok(None),
            other => return other.map(Some),
        }
    }
}

/// True while there is a child, running or ended.
pub fn has_children() -> bool {
    wait_any(libc::WEXITED | libc::WNOWAIT | libc::WNOHANG).is_ok()
}

fn wait_any(options: libc::c_int) -> io::Result<i32> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: `info` lives through the call; all zeroes are a valid value of it, so it may be read in any case.
    unsafe {
        check(libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), options))?;
        Ok(info.assume_init_ref().si_pid())
    }
}

/// Takes note of the end of a child that [`next_ended`] named; its number is free afterwards.
pub fn reap(pid: i32) -> io::Result<End> {
    let mut status = 0;
    // SAFETY: `status` lives through the call.
    check(unsafe { libc::waitpid(pid, &mut status, 0) })?;
    Ok(match libc::WIFSIGNALED(status) {
        true => End::Signal(libc::WTERMSIG(status)),
        false => End::Code(libc::WEXITSTATUS(status)),
    })
}

/// What /proc says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its number.
    pub pid: i32,
    /// Its parent.
    pub parent: i32,
    /// Its session: the number of the process that began it.
    pub session: i32,
    /// It has ended, and only its parent has not noticed.
    pub zombie: bool,
    /// When it started, in the kernel's ticks: with the number, who it is.
    pub started: u64,
}

/// Looks at one process; `None`: there is none of this number.
pub fn look(pid: i32) -> Option<Seen> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything; from the last bracket on: state (field 3 of proc(5)), parent, group, session.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let zombie = matches!(fields.next()?, "Z" | "X");
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    let started = fields.nth(15)?.parse().ok()?;
    Some(Seen { pid, parent, session, zombie, started })
}

/// All processes that this one can see.
pub fn all() -> io::Result<Vec<Seen>> {
    let names = std::fs::read_dir("/proc")?.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
    Ok(names.filter_map(look).collect())
}

/// Sends a signal to exactly the process that was seen; one that is gone is no error.
pub fn signal(seen: &Seen, signal: i32) -> io::Result<()> {
    let none: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: plain calls; the descriptor was just opened and is owned by nobody else.
    let sent = unsafe {
        let opened = libc::syscall(libc::SYS_pidfd_open, seen.pid, 0);
        check(opened as libc::c_int).map(|fd| OwnedFd::from_raw_fd(fd)).and_then(|fd| {
            // The descriptor holds the process, so now the number can be trusted or is another's.
            match look(seen.pid) {
                Some(now) if now.started == seen.started => {
                    let sent = libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), signal, none, 0);
                    check(sent as libc::c_int).map(drop)
                }
                _ => Ok(()),
            }
        })
    };
    match sent {
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other,
    }
}

/// A process that has something below a directory open, as far as we may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Process id.
    pub pid: i32,
    /// Its name, for people.
    pub name: String,
    /// Open files, mapped files, working and root directory there, count.
    pub count: usize,
}

/// Processes that have something below `dir` open; `/proc` shows an ordinary user its own only.
pub fn holders(dir: &Path) -> Vec<Holder> {
    let below = |p: &Path| std::fs::read_link(p).is_ok_and(|to| to.starts_with(dir));
    let mut out = Vec::new();
    for e in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = e.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        let list = |sub: &str| std::fs::read_dir(e.path().join(sub)).into_iter().flatten().flatten();
        let links = ["cwd", "root", "exe"].into_iter().map(|n| e.path().join(n));
        let count = links.chain(list("fd").chain(list("map_files")).map(|f| f.path())).filter(|p| below(p)).count();
        if count > 0 {
            let name = std::fs::read_to_string(e.path().join("comm")).unwrap_or_default().trim().to_owned();
            out.push(Holder { pid, name, count });
        }
    }
    out
}
