//! The command line against a stand-in for the node: what it asks for, what it prints, what it ends with (A9).

use kagami::base::{Error, Kind, Result};
use kagami::node::control::{self, Commands, Request};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

const SITE: &str = r#"[node]
site = "primary"
listen = ["unix:run/node.sock"]
[[peer]]
site = "sync"
addr = "unix:../sync/node.sock"
[[group]]
name = "lab"
primary = "primary"
[[group.volume]]
name = "vol0"
region = "region"
[[group.volume]]
name = "vol1"
region = "region1"
[[group.pair]]
name = "sync"
mode = "sync"
sites = ["primary", "sync"]
"#;

/// Remembers what it was asked and answers from a list: `(part of the request, answer)`.
#[derive(Default)]
struct Fake {
    asked: Mutex<Vec<Request>>,
    answers: Mutex<Vec<(&'static str, Result<Value>)>>,
    progress: Mutex<Vec<Value>>,
}

impl Commands for Fake {
    fn run(&self, req: Request, progress: &dyn Fn(Value)) -> Result<Value> {
        let text = format!("{req:?}");
        self.asked.lock().unwrap().push(req);
        self.progress.lock().unwrap().iter().for_each(|p| progress(p.clone()));
        let answers = self.answers.lock().unwrap();
        let plain = if text.starts_with("Verify") { json!({ "pairs": [] }) } else { Value::Null };
        answers.iter().find(|(part, _)| text.contains(part)).map_or(Ok(plain), |(_, a)| a.clone())
    }
}

/// A site with its file, and a stand-in for its node when it is started.
struct Site {
    dir: tempfile::TempDir,
    fake: Arc<Fake>,
    server: Option<control::ServerHandle>,
}

impl Site {
    fn new() -> Site {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("site.toml"), SITE).unwrap();
        std::fs::create_dir(dir.path().join("state")).unwrap();
        Site { dir, fake: Arc::new(Fake::default()), server: None }
    }

    fn up(answers: Vec<(&'static str, Result<Value>)>) -> Site {
        let mut s = Site::new();
        *s.fake.answers.lock().unwrap() = answers;
        s.server = Some(control::serve(&s.path("state"), s.fake.clone()).unwrap());
        s
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut c = kagami();
        c.arg("--config").arg(self.path("site.toml")).args(args).output().unwrap()
    }

    fn asked(&self) -> Vec<Request> {
        std::mem::take(&mut self.fake.asked.lock().unwrap())
    }
}

fn kagami() -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_kagami"));
    c.env_remove("KAGAMI_CONFIG").env_remove("RUST_LOG").current_dir("/");
    c
}

fn out(o: &Output) -> String {
    String::from_utf8(o.stdout.clone()).unwrap()
}

fn err(o: &Output) -> String {
    String::from_utf8(o.stderr.clone()).unwrap()
}

#[track_caller]
fn ends(o: &Output, code: i32, words: &str) {
    assert_eq!(o.status.code(), Some(code), "{}{}", out(o), err(o));
    assert!(format!("{}{}", out(o), err(o)).contains(words), "no {words:?} in: {}{}", out(o), err(o));
}

fn status(state: &str, lag: u64) -> Value {
    json!({ "version": 1, "site": "primary", "pid": 7, "groups": [{
        "name": "lab", "role": "primary", "epoch": 3, "position": 12345, "mount": "/srv/lab", "fence": "never",
        "protection": "full", "mounts": [], "legs": [{ "leg": 0, "state": "synchronised", "reason": null }],
        "pairs": [{ "name": "sync", "mode": "sync", "peer": "sync", "direction": "out", "state": state,
            "reason": "no answer for 5 s, tried again every second",
            "lag": { "entries": lag, "bytes": lag * 1000, "seconds": 4.2 },
            "progress": { "phase": "copy", "done_bytes": 5 << 20, "total_bytes": 10 << 20, "done_files": 3,
                "total_files": 9, "rate_bytes_s": 1048576.0, "eta_s": 5.0 },
            "last_resync": { "files_examined": 20, "files_copied": 12, "bytes_copied": 655360, "renames": 1, "seconds": 0.3 } }]
    }]})
}

#[test]
fn help_and_usage() {
    for args in
        [&["--help"][..], &["lab", "--help"], &["lab", "up", "--help"], &["pair", "wait", "--help"], &["--version"]]
    {
        let o = kagami().args(args).output().unwrap();
        assert!(o.status.success() && err(&o).is_empty() && !out(&o).is_empty(), "{args:?}");
        assert!(out(&o).lines().all(|l| l.chars().count() <= 100), "{args:?}");
    }
    let o = kagami().arg("--help").output().unwrap();
    ends(&o, 0, "Exit codes: 0 done");
    ends(&kagami().arg("frobnicate").output().unwrap(), 2, "frobnicate");
    ends(&kagami().output().unwrap(), 2, "Usage");
    ends(&kagami().args(["lab", "up", "/tmp/x", "--sites", "7"]).output().unwrap(), 2, "7 is not in 2..=3");
    ends(&kagami().args(["completions", "bash"]).output().unwrap(), 0, "_kagami");
    ends(&kagami().arg("man").output().unwrap(), 0, ".TH kagami 1");
    let d = tempfile::tempdir().unwrap();
    ends(&kagami().args(["man", "--dir"]).arg(d.path()).output().unwrap(), 0, "");
    assert!(d.path().join("kagami-lab-up.1").exists());
}

#[test]
fn the_site_file_is_found_or_asked_for() {
    let s = Site::new();
    ends(&kagami().arg("status").output().unwrap(), 2, "no site file: give --config FILE");
    ends(&kagami().args(["-c", "/nonexistent", "status"]).output().unwrap(), 2, "/nonexistent: No such file");
    ends(&kagami().args(["config", "show"]).current_dir(s.dir.path()).output().unwrap(), 0, "site = \"primary\"");
    let o = kagami().args(["config", "show"]).env("KAGAMI_CONFIG", s.path("site.toml")).output().unwrap();
    ends(&o, 0, "queue_memory_mib = 64");
    ends(&s.run(&["config", "check"]), 0, "site.toml: right");
    std::fs::write(s.path("site.toml"), SITE.replace("fence", "fnce").replace("mode = \"sync\"", "mode = \"sink\""))
        .unwrap();
    for args in [&["config", "check"][..], &["node"], &["node", "-d"], &["status"], &["region", "create"]] {
        let o = s.run(args);
        ends(
            &o,
            2,
            &format!(
                "{}:18: mode = \"sink\" is not known; write \"sync\" or \"async\" instead",
                s.path("site.toml").display()
            ),
        );
        assert_eq!(err(&o).lines().count(), 1);
    }
}

#[test]
fn without_a_node_it_says_how_to_start_it() {
    let s = Site::new();
    for args in [&["status"][..], &["pair", "split", "lab", "sync"], &["takeover", "lab"], &["pair", "wait", "lab"]] {
        let start = format!("start it with `kagami --config {} node -d`", s.path("site.toml").display());
        ends(&s.run(args), 1, &start);
    }
}

#[test]
fn commands_become_requests() {
    let s = Site::up(vec![]);
    let dir = s.path("mnt");
    std::fs::create_dir(&dir).unwrap();
    let d = dir.to_str().unwrap();
    let (lab, sync) = (|| "lab".to_string(), || "sync".to_string());
    let cases: Vec<(Vec<&str>, Request)> = vec![
        (
            vec!["mount", "lab", d],
            Request::Mount { group: lab(), volume: Some("vol0".into()), dir: dir.clone(), options: Default::default() },
        ),
        (
            vec!["mount", "lab/vol1", d],
            Request::Mount { group: lab(), volume: Some("vol1".into()), dir: dir.clone(), options: Default::default() },
        ),
        (vec!["umount", "vol1"], Request::Umount { group: lab(), volume: Some("vol1".into()) }),
        (
            vec!["pair", "create", "lab", "sync", "--no-copy"],
            Request::PairCreate { group: lab(), pair: sync(), no_copy: true, no_verify: false },
        ),
        (
            vec!["pair", "create", "lab", "sync", "--no-copy", "--no-verify"],
            Request::PairCreate { group: lab(), pair: sync(), no_copy: true, no_verify: true },
        ),
        (vec!["pair", "split", "lab", "sync"], Request::PairSplit { group: lab(), pair: sync() }),
        (
            vec!["pair", "resync", "lab", "sync"],
            Request::PairResync { group: lab(), pair: sync(), in_place: false, keep: None },
        ),
        (vec!["pair", "delete", "lab", "sync"], Request::PairDelete { group: lab(), pair: sync() }),
        (vec!["pair", "swap", "lab", "sync"], Request::PairSwap { group: lab(), pair: sync() }),
        (
            vec!["takeover", "lab", "--handover", "--at", d],
            Request::Takeover {
                group: lab(),
                force: false,
                dry_run: false,
                at: Some(d.into()),
                handover: true,
                bare: false,
            },
        ),
        (vec!["verify", "lab", "sync", "--repair"], Request::Verify { group: lab(), pair: Some(sync()), repair: true }),
        (vec!["journal", "stat", "lab"], Request::JournalStat { group: lab() }),
        (vec!["journal", "show", "lab", "-n", "3"], Request::JournalShow { group: lab(), limit: 3 }),
        (vec!["why", "x/y"], Request::Why { path: "/x/y".into() }),
        (vec!["peer", "pause", "sync"], Request::PeerPause { site: sync() }),
        (vec!["peer", "resume", "sync"], Request::PeerResume { site: sync() }),
        (
            vec!["leg", "add", "lab", "/a", "/b"],
            Request::LegAdd { group: lab(), regions: vec!["/a".into(), "/b".into()] },
        ),
        (vec!["leg", "remove", "lab", "1"], Request::LegRemove { group: lab(), leg: 1 }),
    ];
    for (args, expected) in cases {
        ends(&s.run(&args), 0, "");
        assert_eq!(s.asked(), [expected], "{args:?}");
    }
    // Wrong names are noticed before the node is troubled.
    for (args, words) in [
        (&["mount", "lob", d][..], "no group or volume \"lob\"; groups here: lab"),
        (&["mount", "lab/vol9", d], "it has vol0, vol1"),
        (&["pair", "split", "lab", "sink"], "no pair \"sink\" in group lab: it has sync"),
        (&["pair", "wait", "lab", "--state", "WELL"], "write one of SMPL, COPY"),
        (&["status", "lob"], "no group \"lob\""),
        (&["peer", "pause", "moon"], "no peer \"moon\""),
        (&["leg", "add", "lab", "/a"], "give 2 region(s), not 1"),
    ] {
        ends(&s.run(args), 2, words);
        assert_eq!(s.asked(), []);
    }
    std::fs::write(dir.join("file"), "").unwrap();
    ends(&s.run(&["mount", "lab", d]), 4, "is not empty");
}

#[test]
fn errors_of_the_node_decide_the_exit_code() {
    let all = [
        (Kind::Failed, 1),
        (Kind::Config, 2),
        (Kind::Timeout, 3),
        (Kind::Refused, 4),
        (Kind::Degraded, 5),
        (Kind::Corrupt, 1),
        (Kind::Link, 1),
    ];
    for (kind, code) in all {
        let s = Site::up(vec![("Proceed", Err(Error::new(kind, "the reason")))]);
        ends(&s.run(&["takeover", "lab"]), code, "kagami: the reason\n");
    }
}

#[test]
fn status_for_people_and_for_programs() {
    let s = Site::up(vec![("Status", Ok(status("COPY", 1234)))]);
    let o = s.run(&["status"]);
    let text = out(&o);
    ends(&o, 0, "group lab   primary   epoch 3   position 12,345");
    ends(&o, 0, "sync  sync   → sync   COPY   1,234 entries, 1.2 MiB, 4.2 s");
    ends(&o, 0, "copy [##########..........] 50 %  5.0 MiB of 10.0 MiB");
    ends(&o, 0, "no answer for 5 s, tried again every second");
    ends(&o, 0, "20 files examined, 12 copied, 640.0 KiB, 1 rename, 0.3 s");
    assert!(text.lines().all(|l| l.chars().count() <= 80), "{text}");
    assert!(!text.contains('\x1b'), "colours belong on a terminal only");
    let o = s.run(&["status", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&out(&o)).unwrap(), status("COPY", 1234));
    assert_eq!(out(&o).lines().count(), 1);
    ends(&s.run(&["status", "--check"]), 0, "");
    let s = Site::up(vec![("Status", Ok(status("PSUE", 0)))]);
    ends(&s.run(&["status"]), 0, "PSUE");
    ends(&s.run(&["status", "--check"]), 5, "pair sync of lab is in PSUE");
    // A node of another version says less, or more.
    let s = Site::up(vec![("Status", Ok(json!({ "version": 9 })))]);
    ends(&s.run(&["status"]), 1, "not understood");
    ends(&s.run(&["status", "--json"]), 0, "{\"version\":9}");
}

#[test]
fn waiting_ends_with_the_state_or_the_time() {
    let s = Site::up(vec![("Status", Ok(status("PAIR", 0)))]);
    ends(&s.run(&["pair", "wait", "lab"]), 0, "");
    ends(
        &s.run(&["pair", "wait", "lab", "sync", "--state", "psus", "--timeout", "0.2"]),
        3,
        "not PSUS within 0.2 s: sync is in PAIR",
    );
    let s = Site::up(vec![("Status", Ok(status("PAIR", 5)))]);
    ends(&s.run(&["pair", "wait", "lab", "--timeout", "0"]), 3, "lag 5 entries");
}

#[test]
fn verify_reports_and_shows_progress() {
    let differ = json!({ "pairs": [{ "pair": "sync", "files": 3, "bytes": 9, "repaired": false, "differences": [{ "path": "a", "what": "content" }] }] });
    let s = Site::up(vec![("Verify", Ok(differ.clone()))]);
    *s.fake.progress.lock().unwrap() =
        vec![status("PAIR", 0)["groups"][0]["pairs"][0]["progress"].clone(), json!("odd")];
    ends(&s.run(&["verify", "lab"]), 5, "1 pair(s) differ");
    let o = s.run(&["verify", "lab", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&out(&o)).unwrap(), differ);
    let s = Site::up(vec![(
        "Verify",
        Ok(json!({ "pairs": [{ "pair": "sync", "files": 3, "bytes": 9, "repaired": false, "differences": [] }] })),
    )]);
    ends(&s.run(&["verify", "lab"]), 0, "");
}

#[test]
fn regions_are_made_once_and_other_directories_refused() {
    let s = Site::new();
    ends(&s.run(&["region", "create"]), 0, &format!("made {}", s.path("region1").display()));
    assert!(s.path("region/tree").is_dir());
    ends(&s.run(&["region", "create", "lab"]), 0, "every region is there already");
    let s = Site::new();
    std::fs::create_dir(s.path("region")).unwrap();
    std::fs::write(s.path("region/thesis.tex"), "").unwrap();
    ends(&s.run(&["region", "create"]), 4, "thesis.tex");
}

#[test]
fn identities_are_made_once_and_never_shown() {
    let s = Site::new();
    let o = s.run(&["keygen"]);
    ends(&o, 0, "kgm1:");
    ends(&s.run(&["keygen"]), 4, "--force replaces it");
    let again = s.run(&["keygen", "--force"]);
    ends(&again, 0, "kgm1:");
    assert_ne!(out(&o), out(&again));
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(s.path("state/identity")).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    // It listens on a Unix socket only, which no other host can reach.
    ends(&s.run(&["peer", "invite"]), 2, "add one to `listen`, or give --addr HOST:PORT");
    ends(&s.run(&["peer", "invite", "--addr", "unix:/x"]), 2, "write HOST:PORT");
    ends(&s.run(&["peer", "invite", "--addr", "192.0.2.1:7401"]), 0, "kgminvite1-");
    ends(&s.run(&["peer", "accept", "kgminvite1-nonsense"]), 2, "invite token");
    ends(&s.run(&["peer", "list"]), 0, "sync");
    let own = out(&s.run(&["peer", "invite", "--addr", "192.0.2.1:7401"]));
    ends(&s.run(&["peer", "accept", own.trim()]), 2, "paste it at the other site");
}

#[test]
fn a_node_that_runs_is_not_started_twice() {
    let s = Site::up(vec![]);
    ends(&s.run(&["node"]), 4, "runs already");
    ends(&s.run(&["node", "-d"]), 4, "runs already");
}

#[test]
fn labs_refuse_what_is_no_lab() {
    let d = tempfile::tempdir().unwrap();
    let lab = |args: &[&str]| kagami().arg("lab").args(args).output().unwrap();
    let p = d.path().to_str().unwrap();
    for args in [
        &["down", p][..],
        &["wait", p],
        &["kill", p, "sync"],
        &["start", p, "sync"],
        &["status", p],
        &["cut", "/nonexistent", "sync"],
    ] {
        ends(&lab(args), 2, "holds no lab");
    }
    if Path::new("/dev/fuse").exists() {
        std::fs::write(d.path().join("thesis.tex"), "").unwrap();
        ends(&lab(&["up", p]), 4, "give a new directory");
        ends(&kagami().args(["demo", "--dir", p]).output().unwrap(), 4, "is not empty");
    }
    assert!(lab(&["up", "/proc/none"]).status.code() != Some(0));
}

#[test]
fn a_long_state_directory_is_no_limit() {
    let s = Site::new();
    let long = s.dir.path().join("x".repeat(120)).join("y".repeat(120));
    std::fs::create_dir_all(&long).unwrap();
    let text =
        SITE.replace("site = \"primary\"\nlisten", &format!("site = \"primary\"\nstate_dir = {:?}\nlisten", long));
    std::fs::write(s.path("site.toml"), text).unwrap();
    let _server = control::serve(&long, s.fake.clone()).unwrap();
    ends(&s.run(&["pair", "split", "lab", "sync"]), 0, "split");
}

#[test]
fn what_answers_must_speak_the_protocol() {
    for (answer, words) in [("hello\n", "not understood"), ("", "ended before it answered"), ("{\"ok\":tru", "ended")] {
        let s = Site::new();
        let l = std::os::unix::net::UnixListener::bind(s.path("state/control.sock")).unwrap();
        let t = std::thread::spawn(move || {
            let (mut c, _) = l.accept().unwrap();
            BufReader::new(c.try_clone().unwrap()).read_line(&mut String::new()).unwrap();
            let _ = c.write_all(answer.as_bytes());
        });
        ends(&s.run(&["status"]), 1, words);
        t.join().unwrap();
    }
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let mut c = kagami()
        .args(["completions", "zsh"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(c.stdout.take());
    let o = c.wait_with_output().unwrap();
    assert!(!err(&o).contains("panicked"), "{}", err(&o));
}
