//! The control socket with a stand-in for the node.

use super::control::*;
use crate::base::{Error, Kind, Result};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

struct Fake;

impl Commands for Fake {
    fn run(&self, req: Request, progress: &dyn Fn(Value)) -> Result<Value> {
        match req {
            Request::Status {} => Ok(json!({ "version": 1 })),
            Request::Verify { .. } => {
                (0..3).for_each(|i| progress(json!({ "n": i })));
                Ok(Value::Null)
            }
            Request::Why { path } => Ok(json!(path.as_os_str().len())),
            Request::Stop {} => panic!("on purpose"),
            _ => Err(Error::refused("not today")),
        }
    }
}

fn raw(dir: &Path, bytes: &[u8]) -> String {
    let mut s = UnixStream::connect(dir.join(SOCKET_NAME)).unwrap();
    // The node may answer and close before it has read everything.
    let _ = s.write_all(bytes);
    let _ = s.shutdown(std::net::Shutdown::Write);
    let mut line = String::new();
    let _ = BufReader::new(s).read_line(&mut line);
    line
}

#[test]
fn requests_progress_answers_and_errors() {
    let d = tempfile::tempdir().unwrap();
    let server = serve(d.path(), Arc::new(Fake)).unwrap();
    let mode = std::fs::metadata(d.path().join(SOCKET_NAME)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(call(d.path(), &Request::Status {}, |_| ()).unwrap(), json!({ "version": 1 }));
    let mut seen = vec![];
    let verify = Request::Verify { group: "g".into(), pair: None, repair: false };
    assert_eq!(call(d.path(), &verify, |p| seen.push(p)).unwrap(), Value::Null);
    assert_eq!(seen, [json!({ "n": 0 }), json!({ "n": 1 }), json!({ "n": 2 })]);
    let e = call(d.path(), &Request::LinkCut {}, |_| ()).unwrap_err();
    assert_eq!((e.kind, e.msg.as_str()), (Kind::Refused, "not today"));
    use std::os::unix::ffi::OsStringExt;
    let path = PathBuf::from(std::ffi::OsString::from_vec(vec![b'/', 0xff, 0xfe]));
    assert_eq!(call(d.path(), &Request::Why { path }, |_| ()).unwrap(), json!(3));
    let e = call(d.path(), &Request::Stop {}, |_| ()).unwrap_err();
    assert!(e.kind == Kind::Link && e.msg.contains("its log says why"), "{e}");
    // A second node on the same state directory is refused, and the first one goes on.
    assert_eq!(serve(d.path(), Arc::new(Fake)).map(drop).unwrap_err().kind, Kind::Refused);
    assert!(is_running(d.path()));
    drop(server);
    assert!(!d.path().join(SOCKET_NAME).exists());
    let e = call(d.path(), &Request::Status {}, |_| ()).unwrap_err();
    assert!(is_not_running(&e) && e.msg.contains("kagami --config FILE node -d"), "{e}");
    assert!(is_not_running(&call(&d.path().join("none"), &Request::Status {}, |_| ()).unwrap_err()));
}

#[test]
fn broken_input_is_answered_and_harms_nothing() {
    let d = tempfile::tempdir().unwrap();
    let _server = serve(d.path(), Arc::new(Fake)).unwrap();
    for bad in [
        &b"hello\n"[..],
        b"{}\n",
        b"[]\n",
        b"{\"command\":\"format-disk\"}\n",
        b"{\"command\":\"mount\"}\n",
        b"{\"command\":\"pair-split\",\"group\":\"g\",\"pair\":\"p\",\"extra\":1}\n",
        b"{\"command\":\"status\"",
        b"\xff\xfe\n",
        &[b'['; 4096],
    ] {
        let a: Value = serde_json::from_str(&raw(d.path(), bad)).unwrap();
        assert_eq!(a["error"]["kind"], "config", "{}", String::from_utf8_lossy(bad));
    }
    let _ = raw(d.path(), &vec![b'x'; (REQUEST_BYTES_MAX + 10) as usize]);
    assert_eq!(raw(d.path(), b""), "");
    assert!(call(d.path(), &Request::Status {}, |_| ()).is_ok());
}

#[test]
fn a_stale_socket_is_replaced_and_long_paths_work() {
    let d = tempfile::tempdir().unwrap();
    let long = d.path().join("x".repeat(200)).join("y".repeat(200));
    std::fs::create_dir_all(&long).unwrap();
    // A socket that nobody listens on, as a killed node leaves it.
    let dir = std::fs::File::open(&long).unwrap();
    use std::os::fd::AsRawFd;
    drop(std::os::unix::net::UnixListener::bind(format!("/proc/self/fd/{}/{SOCKET_NAME}", dir.as_raw_fd())).unwrap());
    assert!(!is_running(&long));
    let server = serve(&long, Arc::new(Fake)).unwrap();
    assert!(call(&long, &Request::Status {}, |_| ()).is_ok());
    drop(server);
    assert_eq!(std::fs::read_dir(&long).unwrap().count(), 0);
}

#[test]
fn a_strange_answer_is_an_error() {
    for (line, words) in [("nonsense\n", "not understood"), ("{\"x\":1}\n", "neither"), ("{\"ok\"", "ended")] {
        let d = tempfile::tempdir().unwrap();
        let l = std::os::unix::net::UnixListener::bind(d.path().join(SOCKET_NAME)).unwrap();
        let t = std::thread::spawn(move || {
            let (mut s, _) = l.accept().unwrap();
            BufReader::new(s.try_clone().unwrap()).read_line(&mut String::new()).unwrap();
            s.write_all(line.as_bytes()).unwrap();
        });
        let e = call(d.path(), &Request::Status {}, |_| ()).unwrap_err();
        assert!(e.kind == Kind::Link && e.msg.contains(words), "{e}");
        t.join().unwrap();
    }
}

/// A node that is being killed still accepts for a moment and answers nothing; one that runs answers.
#[test]
fn a_dying_node_is_waited_for_and_a_running_one_is_not() {
    let d = tempfile::tempdir().unwrap();
    let path = d.path().join(SOCKET_NAME);
    assert!(has_ended(d.path()), "nobody was there");
    let l = UnixListener::bind(&path).unwrap();
    let dying = std::thread::spawn(move || {
        (0..3).for_each(|_| drop(l.accept().unwrap()));
    });
    assert!(has_ended(d.path()));
    dying.join().unwrap();
    std::fs::remove_file(&path).unwrap();
    let l = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        while let Ok((c, _)) = l.accept() {
            let mut line = String::new();
            if BufReader::new(&c).read_line(&mut line).is_ok_and(|n| n > 0) {
                let _ = (&c).write_all(b"{\"ok\":{}}\n");
            }
        }
    });
    let begun = Instant::now();
    assert!(!has_ended(d.path()));
    assert!(begun.elapsed() < Duration::from_secs(5));
}
