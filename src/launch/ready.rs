//! Asking whether an application can be used. Each question runs in a thread of its own: names that do not resolve and
//! files on a mount that hangs hold up nobody but the one who asked.

use super::app::{App, Ready};
use super::process::{Guards, Launch, Running, run};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long a connection may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a readiness command may take before it is killed.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);
/// The clock that files get their times from goes in steps of up to this much, behind the one that is read here.
const CLOCK_STEP: Duration = Duration::from_millis(20);

/// The answer: ready, or why not.
pub type Answer = Result<(), String>;

/// Asks once; `answer` is called from another thread. What is returned ends a command that still runs when dropped.
pub fn ask(
    guards: &Guards,
    app: &App,
    started: SystemTime,
    log_dir: &Path,
    answer: impl FnOnce(Answer) + Send + 'static,
) -> Option<Running> {
    match &app.ready {
        Ready::Started => answer(Ok(())),
        Ready::Command(command) => {
            let launch = Launch::command(app, "ready", command, log_dir);
            let named = command.first().cloned().unwrap_or_default();
            let done = move |r: Answer| answer(r.map_err(|e| format!("{named}: {e}")));
            return Some(run(guards, &format!("{}.ready", app.name), &launch, COMMAND_TIMEOUT, done));
        }
        Ready::Tcp(to) => {
            let to = to.clone();
            std::thread::spawn(move || answer(connects(&to)));
        }
        Ready::File(path) => {
            let path = path.clone();
            std::thread::spawn(move || answer(made_since(&path, started)));
        }
    }
    None
}

fn connects(to: &str) -> Answer {
    let mut why = "the name has no address".to_owned();
    for addr in to.to_socket_addrs().map_err(|e| format!("{to}: {e}"))? {
        match TcpStream::connect_timeout(&addr, CONNECT_TIMEOUT) {
            Ok(_) => return Ok(()),
            Err(e) => why = e.to_string(),
        }
    }
    Err(format!("{to}: {why}"))
}

/// By its change time, which copying and unpacking cannot set back.
fn made_since(path: &Path, started: SystemTime) -> Answer {
    let meta = std::fs::metadata(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let changed = Duration::new(meta.ctime().try_into().unwrap_or(0), meta.ctime_nsec().try_into().unwrap_or(0));
    let started = started.duration_since(UNIX_EPOCH).unwrap_or_default();
    match changed + CLOCK_STEP >= started {
        true => Ok(()),
        false => Err(format!("{} is from before the start", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_counts_when_something_listens() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap().to_string();
        assert_eq!(connects(&to), Ok(()));
        drop(listener);
        let why = connects(&to).unwrap_err();
        assert!(why.contains(&to) && why.contains("refused"), "{why}");
    }

    #[test]
    fn a_file_counts_when_it_is_newer_than_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ready");
        assert!(made_since(&path, SystemTime::now()).unwrap_err().contains("No such file"));
        std::fs::write(&path, "").unwrap();
        let later = SystemTime::now() + Duration::from_secs(5);
        assert!(made_since(&path, later).unwrap_err().contains("before the start"));
        assert_eq!(made_since(&path, SystemTime::now()), Ok(()));
    }
}
