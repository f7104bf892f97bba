//! The guard: a small process that starts one process of an application and answers for everything that comes of it.
//!
//! It is a process of its own so that nothing depends on the node being there: it adopts what the application forks
//! (also twice, also into another session), writes its output, and when its socket closes, because the node ended or
//! was killed, it kills all of it at once. At once, not politely: the mount is gone with the node, and what went on
//! could find the volume mounted again by the next node beside its own successor. For the application it is a crash.
//!
//! If the guard itself is killed, the kernel kills the first process and the supervisor kills the rest of its session;
//! what left that session is not found then.

use super::output::Output;
use super::process::{FromGuard, Launch, ToGuard};
use crate::base::{At, Error, Result};
use crate::os::process::{self, Seen};
use crate::os::{sys, user};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, PipeReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// `PATH` of an application whose definition sets none.
pub const PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// Pause between two rounds of killing, at first; each further round waits twice as long.
const KILL_PAUSE: Duration = Duration::from_millis(5);
/// The same, at most.
const KILL_PAUSE_MAX: Duration = Duration::from_millis(200);
/// How long the end of the output is waited for when every process is gone: another program may hold the pipe.
const OUTPUT_WAIT: Duration = Duration::from_secs(1);

/// Runs as the guard: reads a [`Launch`] and orders ([`ToGuard`]) from stdin, which is a socket, and answers there.
/// Returns when nothing is left of what it started.
pub fn run() -> Result<()> {
    process::become_guard().at("becoming a guard")?;
    let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let mut orders = BufReader::new(socket.try_clone()?);
    let mut line = String::new();
    orders.read_line(&mut line).at("a guard is started by kagami itself; reading from its socket")?;
    let launch: Launch =
        serde_json::from_str(&line).map_err(|e| Error::failed(format!("a guard is started by kagami itself: {e}")))?;
    let guard = Arc::new(Guard { socket: Mutex::new(socket), first: Mutex::new(None) });
    let mut output = match Output::open(&launch.log) {
        Ok(output) => output,
        Err(e) => return guard.tell(&FromGuard::Failed(format!("its log {}: {e}", launch.log.display()))),
    };
    let (pid, pipe) = match start(&launch) {
        Ok(started) => started,
        Err(why) => {
            output.write(format!("kagami: {why}\n").as_bytes());
            return guard.tell(&FromGuard::Failed(why));
        }
    };
    *guard.first.lock() = Some(pid);
    output.write(format!("kagami: started as process {pid}\n").as_bytes());
    let (done, all_written) = mpsc::channel();
    std::thread::spawn(move || done.send(copy(pipe, output)));
    // A node that is gone already is noticed by the reader of orders.
    let _ = guard.tell(&FromGuard::Started(pid));
    let obeying = guard.clone();
    std::thread::spawn(move || obeying.obey(orders));
    guard.wait_all()?;
    if let Ok(mut output) = all_written.recv_timeout(OUTPUT_WAIT) {
        output.write(b"kagami: nothing of it is left\n");
    }
    let _ = guard.tell(&FromGuard::Gone);
    Ok(())
}

struct Guard {
    socket: Mutex<UnixStream>,
    /// The process it started, until it is reaped.
    first: Mutex<Option<i32>>,
}

impl Guard {
    fn tell(&self, what: &FromGuard) -> Result<()> {
        let mut line = serde_json::to_vec(what).map_err(|e| Error::failed(e.to_string()))?;
        line.push(b'\n');
        self.socket.lock().write_all(&line).at("answering the supervisor")
    }

    /// Takes note of every end until nothing is left.
    fn wait_all(&self) -> Result<()> {
        while let Some(pid) = process::next_ended().at("waiting for a process")? {
            // Under the lock of `first`: its number is not free before nobody can send it a signal any more.
            let mut first = self.first.lock();
            let end = process::reap(pid).at("waiting for a process")?;
            if *first == Some(pid) {
                *first = None;
                drop(first);
                let _ = self.tell(&FromGuard::Ended { end, left: process::has_children() });
            }
        }
        Ok(())
    }

    /// Reads orders until the socket closes.
    fn obey(&self, orders: BufReader<UnixStream>) {
        for line in orders.lines() {
            match line.ok().and_then(|l| serde_json::from_str(&l).ok()) {
                Some(ToGuard::Signal(n)) => self.signal(n),
                Some(ToGuard::Kill) | None => break,
            }
        }
        kill_all()
    }

    /// To the first process; when that has ended, to all it left.
    fn signal(&self, n: i32) {
        let first = self.first.lock();
        let sent = match *first {
            Some(pid) => sys::kill(pid, n),
            None => descendants().iter().try_for_each(|s| process::signal(s, n)),
        };
        if let Err(e) = sent {
            log::warn!("signal {n}: {e}");
        }
    }
}

/// Kills all that is below this process, again and again, until this process ends because nothing is left.
fn kill_all() -> ! {
    let mut known = BTreeSet::new();
    let mut pause = KILL_PAUSE;
    loop {
        let mut new = false;
        for s in descendants() {
            new |= known.insert((s.pid, s.started));
            // Refused by a process of another user (a set-user-id program under an ordinary user's node): tried again,
            // and the supervisor names what it could not end.
            let _ = process::signal(&s, libc::SIGKILL);
        }
        if !new {
            std::thread::sleep(pause);
            pause = (pause * 2).min(KILL_PAUSE_MAX);
        }
    }
}

/// All processes below this one.
fn descendants() -> Vec<Seen> {
    let mut others = process::all().unwrap_or_default();
    let mut below = Vec::new();
    let mut parents = BTreeSet::from([std::process::id() as i32]);
    while !parents.is_empty() {
        let (found, rest): (Vec<Seen>, Vec<Seen>) = others.into_iter().partition(|s| parents.contains(&s.parent));
        parents = found.iter().map(|s| s.pid).collect();
        below.extend(found);
        others = rest;
    }
    below
}

/// Starts the process; gives its number and what it prints. The error says what to mend.
fn start(launch: &Launch) -> std::result::Result<(i32, PipeReader), String> {
    // A user that the database does not know has no variables either.
    let own = || user::own().map_err(|e| format!("looking up this user: {e}"));
    let (who, other) = match &launch.user {
        None => (own()?, None),
        Some(name) => {
            let found = user::by_name(name).map_err(|e| format!("looking up user {name}: {e}"))?;
            let user = found.ok_or_else(|| format!("there is no user {name} on this machine"))?;
            match sys::ids().0 {
                own if own == user.uid => (Some(user), None),
                0 => (Some(user.clone()), Some(user)),
                _ => return Err(format!("only the node of root can start it as user {name}")),
            }
        }
    };
    let spawn = || -> std::io::Result<_> {
        let (reader, writer) = std::io::pipe()?;
        let mut command = Command::new(&launch.program);
        command.args(&launch.args).env_clear().env("PATH", PATH);
        command.envs(who.iter().flat_map(|u| u.variables())).envs(&launch.env);
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        process::prepare(&mut command, other.clone(), &launch.dir)?;
        // Reaped by number, with all the others.
        Ok((command.spawn()?.id() as i32, reader))
    };
    spawn().map_err(|e| explain(launch, &e))
}

/// What is wrong with a start that failed: fork and exec say no more than an error number.
fn explain(launch: &Launch, e: &std::io::Error) -> String {
    let (dir, program) = (launch.dir.display(), launch.program.display());
    match std::fs::metadata(&launch.dir) {
        Err(e) => return format!("its working directory {dir}: {e}"),
        Ok(m) if !m.is_dir() => return format!("its working directory {dir} is not a directory"),
        Ok(_) => {}
    }
    match std::fs::metadata(&launch.program) {
        _ if launch.program.components().count() == 1 => format!("{program}: {e}"),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => format!("program {program} does not exist"),
        Err(e) => format!("program {program}: {e}"),
        Ok(m) if !m.is_file() || m.permissions().mode() & 0o111 == 0 => {
            format!("program {program} is not an executable file; chmod +x makes it one")
        }
        Ok(_) if e.raw_os_error() == Some(libc::ENOEXEC) => {
            format!("program {program} is of no known format; a script needs a first line such as #!/bin/sh")
        }
        Ok(_) if e.kind() == std::io::ErrorKind::NotFound => {
            format!("program {program}: the interpreter in its first line, or its loader, does not exist")
        }
        Ok(_) => match &launch.user {
            Some(user) => format!("starting {program} in {dir} as user {user}: {e}"),
            None => format!("starting {program} in {dir}: {e}"),
        },
    }
}

fn copy(mut pipe: PipeReader, mut output: Output) -> Output {
    let mut buf = vec![0; 64 << 10];
    loop {
        match pipe.read(&mut buf) {
            Ok(0) => return output,
            Ok(n) => output.write(buf.get(..n).unwrap_or_default()),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => {
                output.write(format!("\nkagami: reading the output: {e}\n").as_bytes());
                return output;
            }
        }
    }
}
