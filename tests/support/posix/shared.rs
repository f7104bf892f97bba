//! Checks with several processes: appends, locks, who sees what.

use super::super::sys;
use super::{Child, Ready};
use std::fs;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};

pub fn append_from_processes(dir: &Path) {
    const RECORD: usize = 64;
    let path = dir.join("log");
    fs::write(&path, b"").unwrap();
    let child = |number: u8| {
        Child::fork(|| {
            let file = sys::openat(sys::AT_FDCWD, &path, sys::O_WRONLY | sys::O_APPEND, 0).unwrap();
            for n in 0..400u32 {
                let mut record = [number; RECORD];
                record[..4].copy_from_slice(&n.to_le_bytes());
                // SAFETY: the length given is that of the record.
                if unsafe { libc::write(file.as_raw_fd(), record.as_ptr().cast(), RECORD) } != RECORD as isize {
                    return 1;
                }
            }
            0
        })
    };
    let children: Vec<_> = (1..=4).map(child).collect();
    assert!(children.into_iter().all(|c| c.end() == 0), "every append is whole");
    let data = fs::read(&path).unwrap();
    assert_eq!(data.len(), 4 * 400 * RECORD, "no append was lost");
    let mut next = [0u32; 5];
    for record in data.chunks(RECORD) {
        let number = record[10] as usize;
        assert!((1..=4).contains(&number) && record[4..].iter().all(|b| *b == record[10]), "a torn record");
        assert_eq!(u32::from_le_bytes(record[..4].try_into().unwrap()), next[number], "order of process {number}");
        next[number] += 1;
    }
}

pub fn exclusive_create_has_one_winner(dir: &Path) {
    for round in 0..20 {
        let path = dir.join(format!("file{round}"));
        let flags = sys::O_CREAT | sys::O_EXCL | sys::O_WRONLY;
        let child = |_| Child::fork(|| i32::from(sys::openat(sys::AT_FDCWD, &path, flags, 0o644).is_ok()));
        let children: Vec<_> = (0..4).map(child).collect();
        let winners: i32 = children.into_iter().map(Child::end).sum();
        assert_eq!(winners, 1, "round {round}");
    }
}

fn open(path: &Path) -> std::os::fd::OwnedFd {
    sys::openat(sys::AT_FDCWD, path, sys::O_CREAT | sys::O_RDWR, 0o644).unwrap()
}

fn flock(fd: RawFd, how: i32) -> bool {
    // SAFETY: plain numbers.
    unsafe { libc::flock(fd, how) == 0 }
}

/// fcntl lock of a range; true if it was given.
fn lock_range(fd: RawFd, command: i32, kind: i32, start: i64, len: i64) -> bool {
    // SAFETY: flock is plain data that lives through the call.
    unsafe {
        let mut lock = std::mem::zeroed::<libc::flock>();
        (lock.l_type, lock.l_whence) = (kind as i16, libc::SEEK_SET as i16);
        (lock.l_start, lock.l_len) = (start, len);
        libc::fcntl(fd, command, &lock) == 0
    }
}

/// A child that holds what `take` took, until it is killed.
fn holder(path: &Path, take: impl FnOnce(RawFd) -> bool) -> Child {
    let ready = Ready::new();
    let child = Child::fork(|| {
        let file = open(path);
        if !take(file.as_raw_fd()) {
            return 1;
        }
        ready.say();
        loop {
            // SAFETY: no arguments.
            unsafe { libc::pause() };
        }
    });
    ready.wait();
    child
}

/// Tries until it works, at most ten seconds: a lock may be given back a moment after its holder is gone.
fn soon(mut attempt: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + Duration::from_secs(10);
    while Instant::now() < end {
        if attempt() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

pub fn flock_of_a_killed_holder(dir: &Path) {
    let path = dir.join("file");
    let file = open(&path);
    let fd = file.as_raw_fd();
    let child = holder(&path, |fd| flock(fd, libc::LOCK_EX));
    assert!(!flock(fd, libc::LOCK_EX | libc::LOCK_NB), "another has it");
    // One that waits in the kernel gets it as well.
    let waiter = Child::fork(|| i32::from(!flock(open(&path).as_raw_fd(), libc::LOCK_EX)));
    std::thread::sleep(Duration::from_millis(50));
    child.kill();
    assert_eq!(waiter.end(), 0);
    assert!(soon(|| flock(fd, libc::LOCK_EX | libc::LOCK_NB)), "the lock of a killed process is free");
}

pub fn fcntl_lock_of_a_killed_holder(dir: &Path) {
    let path = dir.join("file");
    let file = open(&path);
    let fd = file.as_raw_fd();
    let child = holder(&path, |fd| lock_range(fd, libc::F_SETLK, libc::F_WRLCK, 0, 100));
    assert!(!lock_range(fd, libc::F_SETLK, libc::F_WRLCK, 50, 1), "another has it");
    let waiter = Child::fork(|| {
        let file = open(&path);
        i32::from(!lock_range(file.as_raw_fd(), libc::F_SETLKW, libc::F_WRLCK, 0, 10))
    });
    std::thread::sleep(Duration::from_millis(50));
    child.kill();
    assert_eq!(waiter.end(), 0);
    assert!(soon(|| lock_range(fd, libc::F_SETLK, libc::F_WRLCK, 0, 100)), "the lock of a killed process is free");
}

pub fn locks_conflict_as_they_should(dir: &Path) {
    let path = dir.join("file");
    let file = open(&path);
    let fd = file.as_raw_fd();
    let child = holder(&path, |fd| {
        lock_range(fd, libc::F_SETLK, libc::F_WRLCK, 0, 10)
            && lock_range(fd, libc::F_SETLK, libc::F_RDLCK, 20, 10)
            && flock(fd, libc::LOCK_SH)
    });
    let try_lock = |kind, start, len| lock_range(fd, libc::F_SETLK, kind, start, len);
    assert!(!try_lock(libc::F_RDLCK, 5, 1) && !try_lock(libc::F_WRLCK, 9, 100));
    assert!(try_lock(libc::F_WRLCK, 10, 10), "a range beside it");
    assert!(try_lock(libc::F_RDLCK, 20, 5) && !try_lock(libc::F_WRLCK, 25, 1), "readers share");
    assert!(!try_lock(libc::F_WRLCK, 0, 0), "to the end of the file");
    assert!(flock(fd, libc::LOCK_SH | libc::LOCK_NB) && !flock(fd, libc::LOCK_EX | libc::LOCK_NB));
    // SAFETY: flock is plain data that lives through the call.
    unsafe {
        let mut lock = std::mem::zeroed::<libc::flock>();
        (lock.l_type, lock.l_start, lock.l_len) = (libc::F_WRLCK as i16, 5, 1);
        assert_eq!(libc::fcntl(fd, libc::F_GETLK, &mut lock), 0);
        let found = (i32::from(lock.l_type), lock.l_start, lock.l_len, lock.l_pid);
        assert_eq!(found, (libc::F_WRLCK, 0, 10, child.0), "who holds it");
    }
    child.kill();
}

pub fn writes_seen_by_other_processes(dir: &Path) {
    let path = dir.join("file");
    let file = open(&path);
    for round in 0..50u8 {
        let len = 1 + round as usize * 1000;
        sys::pwrite_all(file.as_raw_fd(), &vec![round; len], 0).unwrap();
        let child = Child::fork(|| {
            let data = fs::read(&path).unwrap_or_default();
            i32::from(!(data.len() == len && data.iter().all(|b| *b == round)))
        });
        assert_eq!(child.end(), 0, "round {round}: size and content before the close");
        let child = Child::fork(|| i32::from(fs::write(dir.join("other"), [round]).is_err()));
        assert_eq!(child.end(), 0);
        assert_eq!(fs::read(dir.join("other")).unwrap(), [round]);
    }
}
