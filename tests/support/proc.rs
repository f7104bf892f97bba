//! Running programs from tests: with a time limit, as another user, never outliving the test.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The ordinary user that root's tests turn into ("nobody" on Debian).
pub const ORDINARY_UID: u32 = 65534;

/// Lets the kernel kill the child when the thread that starts it ends without waiting for it; so an interrupted test
/// leaves no program behind. (A daemon that the child starts is not reached; [`super::Lab`] looks after those.)
pub fn die_with_parent(command: &mut Command) -> &mut Command {
    // SAFETY: prctl is safe to call between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        })
    }
}

/// Waits for the child, at most so long; `None` when it was killed for taking longer.
pub fn wait_timeout(child: &mut Child, limit: Duration) -> Option<std::process::ExitStatus> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().expect("wait for a child") {
            return Some(status);
        }
        if Instant::now() >= end {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a command to its end with empty stdin and gives what it said; a panic when it takes longer than the limit.
/// Programs that it leaves in the background may go on holding the pipes: they are read for a second more only.
pub fn run(command: &mut Command, limit: Duration) -> Output {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    die_with_parent(command);
    let end = Instant::now() + Duration::from_secs(5);
    let mut child = loop {
        match command.spawn() {
            // A program that was written a moment ago: a process that another thread starts just now has the file open still.
            Err(e) if e.kind() == std::io::ErrorKind::ExecutableFileBusy && Instant::now() < end => {
                thread::sleep(Duration::from_millis(5));
            }
            r => break r.unwrap_or_else(|e| panic!("{command:?}: {e}")),
        }
    };
    let (out, err) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let status = wait_timeout(&mut child, limit);
    let (stdout, stderr) = (out(), err());
    let Some(status) = status else {
        panic!("{command:?}: no end within {limit:?}\n{}\n{}", text(&stdout), text(&stderr))
    };
    Output { status, stdout, stderr }
}

/// Reads a pipe in a thread; the function given back waits a second at most after the process ended.
fn collect<R: Read + Send + 'static>(pipe: Option<R>) -> impl FnOnce() -> Vec<u8> {
    use std::sync::{Arc, Mutex};
    let got = Arc::new(Mutex::new(Vec::new()));
    let shared = got.clone();
    let reader = thread::spawn(move || {
        let (mut pipe, mut buf) = (pipe.expect("a pipe"), [0; 8192]);
        while let Ok(n) = pipe.read(&mut buf) {
            if n == 0 {
                break;
            }
            shared.lock().unwrap().extend_from_slice(&buf[..n]);
        }
    });
    move || {
        let end = Instant::now() + Duration::from_secs(1);
        while !reader.is_finished() && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
        std::mem::take(&mut *got.lock().unwrap())
    }
}

/// As [`run`]; a panic with all it said unless it ends with 0. Gives stdout as text.
#[track_caller]
pub fn run_ok(command: &mut Command, limit: Duration) -> String {
    let out = run(command, limit);
    assert!(out.status.success(), "{command:?}: {}\n{}\n{}", out.status, text(&out.stdout), text(&out.stderr));
    text(&out.stdout)
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Makes a command run as the ordinary user with `home` as HOME (and TMPDIR); for an ordinary user already, only HOME changes.
/// `home` is given to that user.
pub fn as_user<'a>(command: &'a mut Command, home: &Path) -> &'a mut Command {
    command.env("HOME", home).env("TMPDIR", home).env_remove("XDG_RUNTIME_DIR").env_remove("XDG_STATE_HOME");
    if super::is_root() {
        std::os::unix::fs::chown(home, Some(ORDINARY_UID), Some(ORDINARY_UID)).expect("chown of the home");
        // Command drops supplementary groups by itself when it changes the user as root.
        command.uid(ORDINARY_UID).gid(ORDINARY_UID);
    }
    command
}

/// True while a process of this id exists (a zombie does not count, unless threads of it are still in the kernel and hold
/// its files and locks).
pub fn alive(pid: i32) -> bool {
    let threads = || std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => threads() > 1 || !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')),
        Err(_) => false,
    }
}

/// What a process takes of the machine: memory in bytes, descriptors, threads.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    pub memory: u64,
    pub fds: usize,
    pub threads: usize,
}

/// Resident memory, descriptors and threads of a process.
pub fn usage(pid: u32) -> Use {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let number = |key: &str| {
        let line = status.lines().find(|l| l.starts_with(key)).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0)
    };
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    Use { memory: number("VmRSS:") << 10, fds, threads: number("Threads:") as usize }
}

/// The name of the program that a process runs.
pub fn program_of(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

/// Lets processes go on that were stopped, each 50 s after its number was written to it; all of them when this program ends.
const RESUMER: &str = "\
import os, select, time
todo = []
while True:
    r, _, _ = select.select([0], [], [], max(0, todo[0][0] - time.time()) if todo else None)
    said = os.read(0, 4096) if r else None
    todo += [(time.time() + 50, int(w)) for w in (said or b'').split()]
    due = [p for t, p in todo if said == b'' or t <= time.time()]
    todo = todo[len(due):]
    for p in due:
        try: os.kill(p, 18)
        except ProcessLookupError: pass
    if said == b'': break
";

/// A process that was stopped goes on after a while in any case: what this program starts meanwhile may have got a file of its
/// mount with it, which is closed before another program runs in it, and whoever has to end the stop may be waiting for that.
/// Called before a stop that must be at once.
pub fn ready_to_stop() -> &'static std::sync::Mutex<std::process::ChildStdin> {
    static IT: std::sync::OnceLock<std::sync::Mutex<std::process::ChildStdin>> = std::sync::OnceLock::new();
    IT.get_or_init(|| {
        let mut c = Command::new("/usr/bin/python3");
        c.args(["-c", RESUMER]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = c.spawn().expect("who ends the stop");
        let pipe = child.stdin.take().expect("a pipe");
        std::thread::spawn(move || child.wait());
        std::sync::Mutex::new(pipe)
    })
}

pub fn kill(pid: i32, signal: i32) {
    if pid > 1 && signal == libc::SIGSTOP {
        let mut pipe = ready_to_stop().lock().expect("a lock");
        std::io::Write::write_all(&mut *pipe, format!("{pid}\n").as_bytes()).expect("who ends the stop");
    }
    if pid > 1 {
        // SAFETY: plain numbers; the process may be gone, which is fine.
        unsafe { libc::kill(pid, signal) };
    }
}

/// Waits until the condition holds; false when it did not in time.
pub fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Mount points at or below a directory, deepest first.
pub fn mounts_below(dir: &Path) -> Vec<std::path::PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mut found: Vec<_> = table
        .split(|b| *b == b'\n')
        .filter_map(|line| line.split(|b| *b == b' ').nth(4))
        .map(|point| std::path::PathBuf::from(super::sys::os(&unescape(point))))
        .filter(|point| point.starts_with(dir))
        .collect();
    found.sort_by_key(|p| std::cmp::Reverse(p.as_os_str().as_bytes().len()));
    found
}

/// Undoes the \ooo of mountinfo.
fn unescape(field: &[u8]) -> Vec<u8> {
    let (mut out, mut i) = (Vec::new(), 0);
    while i < field.len() {
        let octal = field.get(i + 1..i + 4).filter(|_| field[i] == b'\\');
        match octal.and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(byte) => (out.push(byte), i += 4).0,
            None => (out.push(field[i]), i += 1).0,
        }
    }
    out
}

/// Unmounts lazily whatever is mounted at or below a directory.
pub fn unmount_below(dir: &Path) {
    for point in mounts_below(dir) {
        let mut command = Command::new(if super::is_root() { "umount" } else { "fusermount3" });
        if super::is_root() {
            command.arg("-l")
        } else {
            command.args(["-u", "-z"])
        };
        let _ = command.arg(&point).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}
