//! What programs expect of a file system, as checks on a directory. All of them hold on native ext4.
//!
//! A check panics when something is wrong; [`run_all`] collects the names and reasons of those that do.

pub mod data;
mod names;
mod shared;

use super::sys;
use std::path::Path;

/// A check: it works in an empty directory of its own.
pub type Check = fn(&Path);

/// All checks by name.
pub const CHECKS: [(&str, Check); 32] = [
    ("thousand_hard_links", names::thousand_hard_links),
    ("hard_link_writes_through_any_name", names::hard_link_writes_through_any_name),
    ("rename_over_a_file_that_is_read", names::rename_over_a_file_that_is_read),
    ("rename_flags", names::rename_flags),
    ("deeper_than_path_max", names::deeper_than_path_max),
    ("readdir_with_seek", names::readdir_with_seek),
    ("odd_names", names::odd_names),
    ("acl_inheritance", names::acl_inheritance),
    ("acl_is_enforced", names::acl_is_enforced),
    ("setgid_directories", names::setgid_directories),
    ("nanosecond_times", names::nanosecond_times),
    ("xattrs", names::xattrs),
    ("special_files", names::special_files),
    ("symlinks", names::symlinks),
    ("statfs", names::statfs),
    ("unlinked_open_file", data::unlinked_open_file),
    ("removed_open_directory", data::removed_open_directory),
    ("mmap_shared_writes", data::mmap_shared_writes),
    ("mmap_sees_truncate", data::mmap_sees_truncate),
    ("fallocate", data::fallocate),
    ("punch_hole", data::punch_hole),
    ("zero_range", data::zero_range),
    ("sparse", data::sparse),
    ("blocks_are_counted", data::blocks_are_counted),
    ("truncate", data::truncate),
    ("copy_file_range", data::copy_file_range),
    ("append_from_processes", shared::append_from_processes),
    ("exclusive_create_has_one_winner", shared::exclusive_create_has_one_winner),
    ("flock_of_a_killed_holder", shared::flock_of_a_killed_holder),
    ("fcntl_lock_of_a_killed_holder", shared::fcntl_lock_of_a_killed_holder),
    ("locks_conflict_as_they_should", shared::locks_conflict_as_they_should),
    ("writes_seen_by_other_processes", shared::writes_seen_by_other_processes),
];

/// Runs every check in a directory of its own below `dir`; the names and reasons of those that fail.
pub fn run_all(dir: &Path) -> Vec<(String, String)> {
    let mut failed = Vec::new();
    for (name, check) in CHECKS {
        let own = dir.join(format!("posix-{name}"));
        std::fs::create_dir(&own).expect("a directory for the check");
        // Others may look in, whatever the umask.
        sys::chmodat(sys::AT_FDCWD, &own, 0o755).expect("chmod");
        let result = std::panic::catch_unwind(|| check(&own));
        if let Err(panic) = result {
            let text = panic.downcast_ref::<String>().cloned();
            let reason = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default();
            failed.push((name.to_owned(), reason));
        }
    }
    failed
}

/// A process of our own that runs a closure and ends with its value. It dies with us.
pub struct Child(i32);

impl Child {
    pub fn fork(work: impl FnOnce() -> i32) -> Self {
        // SAFETY: glibc keeps its allocator usable in the child; the child only makes system calls, never unwinds and
        // leaves by _exit.
        unsafe {
            let pid = libc::fork();
            assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
            if pid == 0 {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or(101);
                libc::_exit(code);
            }
            Self(pid)
        }
    }

    /// What the closure gave.
    pub fn end(self) -> i32 {
        let status = self.reap();
        if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -1 }
    }

    /// Kills it with SIGKILL and waits until it is gone.
    pub fn kill(self) {
        super::proc::kill(self.0, libc::SIGKILL);
        self.reap();
    }

    fn reap(&self) -> i32 {
        let mut status = 0;
        // SAFETY: our own child, waited for once.
        unsafe { libc::waitpid(self.0, &mut status, 0) };
        status
    }
}

/// A pipe of one byte: the child says that it is ready.
pub struct Ready(i32, i32);

impl Ready {
    pub fn new() -> Self {
        let mut ends = [0; 2];
        // SAFETY: room for two descriptors.
        assert_eq!(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
        Self(ends[0], ends[1])
    }

    pub fn say(&self) {
        // SAFETY: one byte.
        unsafe { libc::write(self.1, [1u8].as_ptr().cast(), 1) };
    }

    pub fn wait(&self) {
        let mut byte = [0u8];
        // SAFETY: room for one byte.
        assert_eq!(unsafe { libc::read(self.0, byte.as_mut_ptr().cast(), 1) }, 1);
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        // SAFETY: both are ours.
        unsafe {
            libc::close(self.0);
            libc::close(self.1);
        }
    }
}

/// Tries an open in `dir` as another user; the errno, 0 for success. `dir` itself is entered as root.
pub fn open_as(uid: u32, dir: &Path, name: &str, flags: i32) -> i32 {
    let (dir, name) = (sys::c(dir).unwrap(), sys::c(name).unwrap());
    Child::fork(|| {
        // SAFETY: plain calls on NUL-terminated strings.
        unsafe {
            let entered = libc::chdir(dir.as_ptr()) == 0
                && libc::setgroups(0, std::ptr::null()) == 0
                && libc::setresgid(uid, uid, uid) == 0
                && libc::setresuid(uid, uid, uid) == 0;
            if !entered {
                return 102;
            }
            if libc::open(name.as_ptr(), flags | libc::O_CLOEXEC, 0o600) >= 0 { 0 } else { *libc::__errno_location() }
        }
    })
    .end()
}
