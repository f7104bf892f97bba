//! CD-8, G8: real processes under the supervisor, with all the ways in which they misbehave.
//!
//! Everything that a test starts has a mark of its own in its environment, by which it is found, wherever it went.

use crate::support;

use kagami::launch::app::{App, Ready, Restart, Stop};
use kagami::launch::process::OWN_PROGRAM;
use kagami::launch::supervise::{Order, StateName};
use kagami::launch::supervisor::{AppStatus, Supervisor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

const KAGAMI: &str = env!("CARGO_BIN_EXE_kagami");
/// Variable whose value is the directory of the test.
const MARK: &str = "SUPERVISE_TEST";
/// How long something may take that happens at once on a machine without load.
const SOON: Duration = Duration::from_secs(20);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A directory for one test; what carries its mark is killed at the end, whatever happened.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let dir = tempfile::Builder::new().prefix("kagami-supervise-").tempdir_in(support::base_dir()).unwrap();
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        Place(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn log(&self, name: &str) -> String {
        self.read(&format!("logs/{name}.log"))
    }

    /// A shell script as an application, which finds the directory in `$SUPERVISE_TEST`.
    fn sh(&self, name: &str, script: &str) -> App {
        App {
            name: name.into(),
            command: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            dir: self.0.path().into(),
            user: None,
            env: BTreeMap::from([(MARK.into(), self.0.path().to_str().unwrap().into())]),
            after: vec![],
            ready: Ready::Started,
            ready_timeout: Duration::from_secs(60),
            stop: Stop::Signal(libc::SIGTERM),
            stop_timeout: Duration::from_secs(20),
            restart: Restart::OnFailure,
            source: format!("/volume/{name}.toml:3"),
        }
    }

    fn start(&self, apps: Vec<App>) -> Supervisor {
        Supervisor::start(apps, &self.path("logs"), Path::new(KAGAMI), Box::new(|_, _, _| ())).unwrap()
    }

    /// Processes with this test's mark in their environment: (pid, command line).
    fn processes(&self) -> Vec<(i32, String)> {
        let mark = format!("{MARK}={}", self.0.path().display());
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
            let environ = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            if environ.split(|b| *b == 0).any(|v| v == mark.as_bytes()) {
                let cmd = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                found.push((pid, String::from_utf8_lossy(&cmd).replace('\0', " ")));
            }
        }
        found
    }

    #[track_caller]
    fn wait_processes(&self, count: usize) {
        wait_for(&format!("{count} processes"), || match self.processes() {
            p if p.len() == count => Ok(()),
            p => Err(format!("{p:?}")),
        });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for (pid, _) in self.processes() {
            // SAFETY: plain numbers; the process carries the mark of this test.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
}

#[track_caller]
fn wait_for(what: &str, mut done: impl FnMut() -> Result<(), String>) {
    let until = Instant::now() + SOON;
    loop {
        match done() {
            Ok(()) => return,
            Err(e) => assert!(Instant::now() < until, "waited for {what}: {e}"),
        }
        std::thread::sleep(ms(10));
    }
}

fn one(s: &Supervisor, name: &str) -> AppStatus {
    s.status().into_iter().find(|x| x.name == name).unwrap()
}

#[track_caller]
fn wait_state(s: &Supervisor, name: &str, state: StateName) -> AppStatus {
    wait_for(&format!("{name} {state}"), || match one(s, name) {
        x if x.state == state => Ok(()),
        _ => Err(format!("{:?}", s.status())),
    });
    one(s, name)
}

/// Seconds between the changes of two files.
fn between(first: &Path, second: &Path) -> f64 {
    let at = |p: &Path| {
        let m = std::fs::metadata(p).unwrap_or_else(|e| panic!("{}: {e}", p.display())).modified().unwrap();
        m.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64()
    };
    at(second) - at(first)
}

#[test]
fn cd8_the_database_is_up_before_the_application_starts_and_ends_after_it() {
    let place = Place::new();
    let script = |name: &str| {
        format!(
            "trap 'sleep 0.2; : >{name}.ended; exit 0' TERM; : >{name}.started; sleep 0.3; : >{name}.up; while :; do sleep 0.05; done"
        )
    };
    let mut db = place.sh("db", &script("db"));
    db.ready = Ready::File(place.path("db.up"));
    // A file of that name from the run before does not count.
    std::fs::write(place.path("db.up"), "").unwrap();
    std::thread::sleep(ms(100));
    let mut web = place.sh("web", &script("web"));
    web.after = vec!["db".into()];
    web.ready = Ready::Command(vec!["/bin/sh".into(), "-c".into(), "test -e web.up".into()]);
    let s = place.start(vec![web, db]);
    wait_state(&s, "web", StateName::Ready);
    assert_eq!(one(&s, "db").state, StateName::Ready);
    assert!(one(&s, "db").reason.contains("ready after"), "{:?}", one(&s, "db"));
    assert!(between(&place.path("db.started"), &place.path("db.up")) > 0.25, "the old file counted");
    assert!(between(&place.path("db.up"), &place.path("web.started")) >= 0.0);
    let stopped = s.stop_all(Duration::from_secs(30));
    assert!(stopped.killed.is_empty() && stopped.left.is_empty(), "{stopped:?}");
    let gap = between(&place.path("web.ended"), &place.path("db.ended"));
    assert!(gap >= 0.19, "the database was told {gap} s after the application had ended");
    assert_eq!(place.processes(), []);
    assert!(s.order("db", Order::Start).unwrap_err().msg.contains("stopped"));
}

#[test]
fn cd8_one_that_never_gets_ready_is_ended_and_named_and_what_comes_after_it_waits() {
    let place = Place::new();
    let mut db = place.sh("db", "while :; do sleep 0.1; done");
    // A port that nobody listens on: bound, but not listening.
    let bound = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    db.ready = Ready::Tcp(bound.to_string());
    db.ready_timeout = ms(700);
    let mut web = place.sh("web", ": >web.started; sleep 100");
    web.after = vec!["db".into()];
    let mut slow = place.sh("slow", "sleep 100");
    slow.ready = Ready::Command(vec!["/bin/sh".into(), "-c".into(), "sleep 100 & sleep 100".into()]);
    slow.ready_timeout = Duration::from_secs(6);
    let s = place.start(vec![web, db, slow]);
    wait_for("web to wait", || match one(&s, "web").reason.as_str() {
        "waits for db (starting)" => Ok(()),
        r => Err(r.into()),
    });
    let failed = wait_state(&s, "db", StateName::Failed);
    assert!(failed.reason.contains("not ready within 0.7 s") && failed.reason.contains("refused"), "{failed:?}");
    assert_eq!(one(&s, "web").reason, "waits for db (failed)");
    assert!(!place.path("web.started").exists());
    // A command that hangs is killed with what it started, and asked again.
    let failed = wait_state(&s, "slow", StateName::Failed);
    assert!(failed.reason.contains("did not end within 5 s"), "{failed:?}");
    place.wait_processes(0);
    // The supervisor was never held up by it.
    s.order("web", Order::Stop).unwrap();
    wait_state(&s, "web", StateName::Stopped);
}

#[test]
fn cd8_one_that_crashes_at_once_backs_off_and_is_given_up_by_name() {
    let place = Place::new();
    let app = place.sh("db", "echo starting at $(date +%s%N) >>starts; echo out; echo err >&2; exit 3");
    let s = place.start(vec![app]);
    let off = wait_state(&s, "db", StateName::BackingOff);
    assert!(off.reason.contains("exit code 3"), "{off:?}");
    // 1 + 2 + 4 + 8 s of pauses.
    let until = Instant::now() + Duration::from_secs(40);
    while one(&s, "db").state != StateName::CrashLooping {
        assert!(Instant::now() < until, "{:?}", s.status());
        std::thread::sleep(ms(50));
    }
    let looping = one(&s, "db");
    assert!(looping.reason.contains("ended 5 times within 60 s"), "{looping:?}");
    assert!(looping.reason.contains("exit code 3"), "{looping:?}");
    assert_eq!((looping.restarts, looping.pid), (4, None));
    let starts: Vec<f64> =
        place.read("starts").lines().map(|l| l.rsplit(' ').next().unwrap().parse::<f64>().unwrap() / 1e9).collect();
    let pauses: Vec<f64> = starts.windows(2).map(|w| w[1] - w[0]).collect();
    println!("pauses between starts: {pauses:.2?} s");
    assert_eq!(pauses.len(), 4);
    for (pause, least) in pauses.iter().zip([1.0, 2.0, 4.0, 8.0]) {
        assert!(*pause >= least, "{pauses:?}");
    }
    assert!(place.log("db").contains("out\nerr\n"), "{}", place.log("db"));
    s.order("db", Order::Start).unwrap();
    wait_for("a start by order", || match place.read("starts").lines().count() {
        6 => Ok(()),
        n => Err(format!("{n} starts")),
    });
}

#[test]
fn g8_one_that_ignores_sigterm_is_killed_in_its_time_and_named() {
    let place = Place::new();
    let stubborn = "trap '' TERM INT HUP; : >$0.up; while :; do sleep 0.05; done";
    let with = |name: &str, after: &[&str], time| {
        let mut a = place.sh(name, &stubborn.replace("$0", name));
        (a.after, a.stop_timeout) = (after.iter().map(|x| (*x).into()).collect(), time);
        a.ready = Ready::File(place.path(&format!("{name}.up")));
        a
    };
    let s = place.start(vec![with("db", &[], Duration::from_secs(300)), with("web", &["db"], ms(500))]);
    wait_state(&s, "web", StateName::Ready);
    // By order: in its own time.
    let began = Instant::now();
    s.order("web", Order::Restart).unwrap();
    wait_state(&s, "web", StateName::Stopping);
    wait_state(&s, "web", StateName::Ready);
    assert!(began.elapsed() >= ms(500));
    // All: in the time given, though one of them has 300 s.
    let began = Instant::now();
    let stopped = s.stop_all(Duration::from_secs(3));
    let took = began.elapsed();
    println!("stopping two that ignore SIGTERM took {took:.2?} of 3 s");
    assert_eq!(stopped.killed, ["db", "web"]);
    assert!(stopped.left.is_empty(), "{stopped:?}");
    assert!(took >= ms(2000) && took < Duration::from_secs(4), "{took:?}");
    assert_eq!(place.processes(), []);
}

/// Starts a process in the background of a daemon's kind: its parent ends, it has a session of its own, it ignores
/// SIGTERM and SIGHUP.
const DAEMON: &str =
    "(setsid sh -c 'trap \"\" TERM HUP; sleep 1000 & while :; do sleep 0.2; done' </dev/null >/dev/null 2>&1 &)";

#[test]
fn g8_what_an_application_forked_twice_and_moved_to_another_session_is_gone_after_the_stop() {
    let place = Place::new();
    // One stays in the foreground, one goes to the background altogether.
    let front = place.sh("front", &format!("{DAEMON}; {DAEMON}; sleep 1000 & while :; do sleep 0.2; done"));
    let mut back = place.sh("back", &format!("{DAEMON}; exit 0"));
    back.stop_timeout = ms(500);
    let s = place.start(vec![front, back]);
    wait_for("all daemons", || {
        let n = place.processes().iter().filter(|p| p.1.contains("sleep 1000")).count();
        if n >= 7 { Ok(()) } else { Err(format!("{:?}", place.processes())) }
    });
    assert_eq!(wait_state(&s, "front", StateName::Ready).restarts, 0);
    // Its first process may still be on its way out.
    wait_for("the first process of the one in the background to be gone", || {
        let away = one(&s, "back");
        let as_wanted = (away.state, away.pid, away.restarts) == (StateName::Ready, None, 0);
        if as_wanted { Ok(()) } else { Err(format!("{away:?}")) }
    });
    // All of one that crashes is killed before it is started again.
    let pid = one(&s, "front").pid.unwrap();
    // SAFETY: plain numbers; the process is a child of a guard of this test.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    wait_state(&s, "front", StateName::BackingOff);
    let sleeping = || place.processes().iter().filter(|p| p.1.starts_with("sleep 1000")).count();
    assert_eq!(sleeping(), 1, "only the one in the background is left: {:?}", place.processes());
    wait_state(&s, "front", StateName::Ready);
    let stopped = s.stop_all(Duration::from_secs(4));
    assert!(stopped.left.is_empty() && stopped.killed.contains(&"back".to_owned()), "{stopped:?}");
    assert_eq!(place.processes(), []);
}

#[test]
fn cd8_a_stop_command_is_run_and_one_that_fails_or_hangs_does_not_hold_up() {
    let place = Place::new();
    let wait = "trap '' TERM; while [ ! -e $SUPERVISE_TEST/end ]; do sleep 0.05; done; : >ended";
    let mut good = place.sh("good", wait);
    good.stop = Stop::Command(vec!["/bin/sh".into(), "-c".into(), "echo ending; : >$SUPERVISE_TEST/end".into()]);
    let mut bad = place.sh("bad", "trap 'exit 0' TERM; : >bad.up; while :; do sleep 0.05; done");
    bad.ready = Ready::File(place.path("bad.up"));
    bad.stop = Stop::Command(vec!["/bin/false".into()]);
    let mut hangs = place.sh("hangs", "sleep 1000");
    hangs.stop = Stop::Command(vec!["/bin/sh".into(), "-c".into(), "sleep 1000 & sleep 1000".into()]);
    hangs.stop_timeout = ms(700);
    let s = place.start(vec![good, bad, hangs]);
    for name in ["good", "bad", "hangs"] {
        wait_state(&s, name, StateName::Ready);
    }
    let stopped = s.stop_all(Duration::from_secs(30));
    assert_eq!((stopped.killed, stopped.left), (vec!["hangs".to_owned()], vec![]));
    assert!(place.path("ended").exists());
    assert!(place.read("logs/good.stop.log").contains("ending\n"));
    assert_eq!(place.processes(), [], "the stop command that hung is gone as well");
}

#[test]
fn cd8_the_environment_is_what_the_definition_says_and_nothing_is_inherited() {
    let place = Place::new();
    let script = "cd $PWD; tr '\\0' '\\n' </proc/$$/environ >env; cat /proc/$$/status >status; \
                  cut -d' ' -f5,6 /proc/$$/stat >ids; umask >umask; pwd >cwd; exec sleep 100";
    let mut app = place.sh("a", script);
    app.env.insert("ODD".into(), "a = \"b\" $c\nd".into());
    // Descriptors that were left open without close-on-exec, and a signal that is ignored here.
    // SAFETY: plain numbers; the descriptor is closed below.
    let open = unsafe { libc::dup(1) };
    let s = place.start(vec![app]);
    let running = wait_state(&s, "a", StateName::Ready);
    let comm = PathBuf::from(format!("/proc/{}/comm", running.pid.unwrap()));
    wait_for("the end of its reports", || match std::fs::read_to_string(&comm).unwrap_or_default().trim() {
        "sleep" => Ok(()),
        _ => Err(place.log("a")),
    });
    // SAFETY: opened above and not used again.
    unsafe { libc::close(open) };
    let mut env: Vec<String> = place.read("env").lines().map(str::to_owned).collect();
    env.sort();
    let mark = format!("{MARK}={}", place.0.path().display());
    // What a login of its user has, from the user database, and nothing of ours.
    let own = support::run_ok(Command::new("sh").args(["-c", "getent passwd $(id -u)"]), SOON);
    let own: Vec<&str> = own.trim().split(':').collect();
    let (name, home, shell) = (own[0], own[5], own[6]);
    let mut want: Vec<String> =
        ["ODD=a = \"b\" $c", "PATH=/usr/local/bin:/usr/bin:/bin", &mark, "d"].map(String::from).into();
    want.extend([format!("HOME={home}"), format!("USER={name}"), format!("LOGNAME={name}"), format!("SHELL={shell}")]);
    want.sort();
    assert_eq!(env, want);
    let fds = PathBuf::from(format!("/proc/{}/fd", running.pid.unwrap()));
    let number = |e: std::io::Result<std::fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
    let mut open: Vec<String> = std::fs::read_dir(&fds).unwrap().map(number).collect();
    open.sort();
    assert_eq!(open, ["0", "1", "2"]);
    let to = |n: &str| std::fs::read_link(fds.join(n)).unwrap();
    assert_eq!(to("0"), Path::new("/dev/null"));
    assert!(to("1").to_str().unwrap().starts_with("pipe:") && to("1") == to("2"), "{:?}", to("1"));
    let ids = format!("{pid} {pid}", pid = running.pid.unwrap());
    assert_eq!(place.read("ids").trim(), ids, "a group and a session of its own");
    assert_eq!((place.read("umask").trim(), place.read("cwd").trim()), ("0022", place.0.path().to_str().unwrap()));
    let status = place.read("status");
    for mask in ["SigBlk", "SigIgn"] {
        let line = status.lines().find(|l| l.starts_with(mask)).unwrap();
        assert!(line.ends_with("0000000000000000"), "{line}");
    }
}

#[test]
fn cd8_an_application_runs_as_its_user_with_that_users_groups() {
    let place = Place::new();
    let mut missing = place.sh("missing", "true");
    missing.user = Some("no-such-user-here".into());
    let report = "id -u >who; id -G >>who; grep CapEff /proc/self/status >>who; echo $HOME $USER $LOGNAME $SHELL >>who; sleep 100";
    let mut other = place.sh("other", report);
    other.user = Some("nobody".into());
    // What the definition sets counts.
    other.env.insert("SHELL".into(), "/bin/its own".into());
    let s = place.start(vec![missing, other]);
    let failed = wait_state(&s, "missing", StateName::Failed);
    assert!(failed.reason.starts_with("/volume/missing.toml:3: there is no user"), "{failed:?}");
    if !support::is_root() {
        let failed = wait_state(&s, "other", StateName::Failed);
        assert!(failed.reason.contains("only the node of root"), "{failed:?}");
        return support::skipped("cd8_an_application_runs_as_its_user", "changing the user needs root");
    }
    wait_for("its report", || if place.read("who").lines().count() == 4 { Ok(()) } else { Err(place.log("other")) });
    let said = |args: &[&str]| String::from_utf8(Command::new("id").args(args).output().unwrap().stdout).unwrap();
    let record = support::run_ok(Command::new("getent").args(["passwd", "nobody"]), SOON);
    let home = record.split(':').nth(5).unwrap();
    let want = format!(
        "{}{}CapEff:\t0000000000000000\n{home} nobody nobody /bin/its own\n",
        said(&["-u", "nobody"]),
        said(&["-G", "nobody"])
    );
    assert_eq!(place.read("who"), want);
    let stopped = s.stop_all(Duration::from_secs(20));
    assert!(stopped.left.is_empty() && stopped.killed.is_empty(), "{stopped:?}");
    assert_eq!(place.processes(), []);
}

#[test]
fn cd8_what_cannot_be_started_is_told_with_the_line_of_its_definition() {
    let place = Place::new();
    std::fs::write(place.path("data"), "no program").unwrap();
    std::fs::write(place.path("script"), "#!/no/such/interpreter\n").unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(place.path("script"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let with = |name: &str, program: &Path, dir: &Path| {
        let mut a = place.sh(name, "true");
        (a.command, a.dir) = (program.into(), dir.into());
        a
    };
    let here = place.0.path();
    let s = place.start(vec![
        with("none", &place.path("none"), here),
        with("data", &place.path("data"), here),
        with("folder", here, here),
        with("script", &place.path("script"), here),
        with("nowhere", Path::new("/bin/true"), &place.path("nowhere")),
    ]);
    let told = [
        ("none", "does not exist"),
        ("data", "not an executable file; chmod +x"),
        ("folder", "not an executable file"),
        ("script", "interpreter"),
        ("nowhere", "its working directory"),
    ];
    for (name, has) in told {
        let failed = wait_state(&s, name, StateName::Failed);
        let line = format!("/volume/{name}.toml:3: ");
        assert!(failed.reason.starts_with(&line) && failed.reason.contains(has), "{failed:?}");
        assert_eq!(failed.restarts, 0, "no start is tried again that cannot work");
    }
    let e = Supervisor::start(
        vec![place.sh("a/b", "true")],
        &place.path("logs"),
        Path::new(KAGAMI),
        Box::new(|_, _, _| ()),
    )
    .err()
    .unwrap();
    assert!(e.msg.contains("/volume/a/b.toml:3") && e.exit_code() == 2, "{e}");
    // Without the program of the guards nothing starts, and that is told too.
    let lost = Supervisor::start(
        vec![place.sh("a", "true")],
        &place.path("logs"),
        &place.path("none"),
        Box::new(|_, _, _| ()),
    )
    .unwrap();
    let failed = wait_state(&lost, "a", StateName::Failed);
    assert!(failed.reason.contains("starting a guard"), "{failed:?}");
}

#[test]
fn cd8_the_log_is_bounded_and_never_stops_the_application() {
    let place = Place::new();
    let mut app = place.sh("talks", "head -c 20000000 /dev/zero | tr '\\0' x; echo the last words; : >done; sleep 100");
    app.ready = Ready::File(place.path("done"));
    let s = place.start(vec![app]);
    wait_state(&s, "talks", StateName::Ready);
    wait_for(
        "the last words",
        || if place.log("talks").ends_with("the last words\n") { Ok(()) } else { Err("".into()) },
    );
    let mut files: Vec<(String, u64)> = std::fs::read_dir(place.path("logs"))
        .unwrap()
        .map(|e| e.unwrap())
        .map(|e| (e.file_name().into_string().unwrap(), e.metadata().unwrap().len()))
        .collect();
    files.sort();
    assert_eq!(files.iter().map(|f| f.0.as_str()).collect::<Vec<_>>(), ["talks.log", "talks.log.1"]);
    assert!(files.iter().all(|f| f.1 <= 4 << 20), "{files:?}");
}

#[test]
fn g8_a_guard_that_is_killed_takes_the_application_with_it_and_it_is_started_again() {
    let place = Place::new();
    let s = place.start(vec![place.sh("db", "trap '' TERM; sleep 1000 & while :; do sleep 0.1; done")]);
    let first = wait_state(&s, "db", StateName::Ready).pid.unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{first}/stat")).unwrap();
    let guard: i32 = stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().parse().unwrap();
    let cmd = std::fs::read(format!("/proc/{guard}/cmdline")).unwrap();
    assert_eq!(String::from_utf8_lossy(&cmd), "kagami\0guard\0db\0");
    // SAFETY: plain numbers; the process was just seen to be a guard of this test.
    unsafe { libc::kill(guard, libc::SIGKILL) };
    wait_state(&s, "db", StateName::BackingOff);
    place.wait_processes(0);
    wait_for("a new start", || match one(&s, "db") {
        x if x.state == StateName::Ready && x.pid != Some(first) => Ok(()),
        x => Err(format!("{x:?}")),
    });
    let began = Instant::now();
    drop(s);
    assert_eq!(place.processes(), [], "dropping the supervisor stops everything");
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
}

/// Not a test of its own: the supervising process that the next test kills.
#[test]
#[ignore = "started by g8_kill_9_of_the_supervising_process_leaves_nothing_behind"]
fn supervising_process() {
    let Some(dir) = std::env::var_os("SUPERVISE_DIR") else { return };
    let place = std::mem::ManuallyDrop::new(Place(tempfile::Builder::new().tempdir_in(dir).unwrap()));
    let mark = std::env::var("SUPERVISE_MARK").unwrap();
    let with = |name: &str, script: &str| {
        let mut a = place.sh(name, script);
        a.env.insert(MARK.into(), mark.clone());
        a
    };
    let mut slow = with("slow", "sleep 1000");
    slow.ready = Ready::Command(vec!["/bin/sleep".into(), "1000".into()]);
    let forks = format!("trap '' TERM HUP; {DAEMON}; sleep 1000 & while :; do sleep 0.1; done");
    let _running = place.start(vec![with("forks", &forks), with("back", &format!("{DAEMON}; exit 0")), slow]);
    loop {
        std::thread::sleep(ms(1000));
    }
}

#[test]
fn g8_kill_9_of_the_supervising_process_leaves_nothing_behind() {
    let place = Place::new();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "supervise::supervising_process", "--ignored", "--nocapture"]);
    command.env("SUPERVISE_DIR", place.0.path()).env("SUPERVISE_MARK", place.0.path());
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = support::proc::die_with_parent(&mut command).spawn().unwrap();
    // forks: the shell, its two sleeps, a daemon of three; back: a daemon of three; slow: one and its command.
    wait_for("all processes", || {
        let n = place.processes().iter().filter(|p| p.1.contains("sleep 1000")).count();
        if n >= 8 { Ok(()) } else { Err(format!("{:?}", place.processes())) }
    });
    let began = Instant::now();
    child.kill().unwrap();
    child.wait().unwrap();
    place.wait_processes(0);
    println!("all gone {:.0?} after the kill", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn the_nodes_own_program_is_found_under_its_fixed_name() {
    assert_eq!(std::fs::read_link(OWN_PROGRAM).unwrap(), std::env::current_exe().unwrap());
    // A guard that a person starts says what it is.
    let out = support::run(Command::new(KAGAMI).args(["guard", "x"]), Duration::from_secs(20));
    assert!(!out.status.success());
    assert!(String::from_utf8_lossy(&out.stderr).contains("started by kagami itself"), "{out:?}");
}
