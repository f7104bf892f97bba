//! Applications over the life of a mount, on real nodes: roles that come and go, every way of unmounting (B7), the node of a
//! service manager, an adopted replica with its size and its drives.

use crate::support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use support::lab::Lab;
use support::proc::{self, text};
use support::serve::*;

const SECONDS: fn(u64) -> Duration = Duration::from_secs;

/// A definition of a program in Python, which lies in the lab's directory; `more`: further lines.
fn program(lab: &Lab, name: &str, code: &str, more: &str) -> String {
    let file = lab.dir().join(format!("{name}.py"));
    fs::write(&file, code).unwrap();
    format!(
        "[[application]]\nname = {name:?}\ncommand = {:?}\nuser = {:?}\nargs = [{file:?}]\n{more}\n",
        python(),
        me()
    )
}

/// One that leaves `NAME.up` in the lab's directory, and `NAME.ended` with the time when it was told to end and has.
fn tells(lab: &Lab, name: &str, ends_in: f64, dir: &Path) -> String {
    let at = lab.dir().display();
    let code = format!(
        "import os, signal, time\ndef end(*a):\n    time.sleep({ends_in})\n    open('{at}/{name}.ended', 'w').write(str(time.time()))\n    os._exit(0)\nsignal.signal(signal.SIGTERM, end)\nopen('{at}/{name}.up', 'w').close()\nwhile True: time.sleep(0.05)\n"
    );
    program(lab, name, &code, &format!("dir = {dir:?}"))
}

/// A server of the volume, at the primary and allowed there.
fn shop(lab: &Lab) -> u16 {
    let port = free_port();
    let file = lab.dir().join("shop.in");
    fs::write(&file, server("shop", port, &lab.mnt().display().to_string(), "")).unwrap();
    ok(lab, "primary", &["define", "lab", "--application", &file.display().to_string()]);
    fs::write(lab.mnt().join("page"), "open").unwrap();
    allow(lab, "primary", &rules(""));
    port
}

/// Nothing is started for a while.
#[track_caller]
fn stays_stopped(lab: &Lab, site: &str) {
    let end = Instant::now() + SECONDS(3);
    while Instant::now() < end {
        assert!(apps(lab, site).is_empty(), "they do not come back by themselves\n{}", lab.log_tails());
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn open(port: u16) -> bool {
    get(port, "/page").as_deref() == Some("open")
}

#[test]
fn cd8_applications_come_back_with_a_role_that_was_given_away_and_not_with_one_that_was_lost() {
    let lab = Lab::up(&["--sites", "2"]);
    let port = shop(&lab);
    lab.wait(60);
    ok(&lab, "primary", &["boot", "--once"]);
    until(&lab, "the application", || all_ready(&lab, "primary", 1));
    let give = |to: &str| {
        ok(&lab, to, &["takeover", "lab", "--handover", "--at", &lab.mnt().display().to_string()]);
        lab.wait_pair(to, "sync", "PAIR", LONG);
    };
    give("sync");
    assert!(!open(port) && apps(&lab, "primary").is_empty());
    stays_stopped(&lab, "sync");
    // Also when the node was killed while the role was away.
    lab.kill_now("primary");
    lab.start("primary");
    lab.wait_pair("sync", "sync", "PAIR", LONG);
    give("primary");
    until(&lab, "the application with the role", || all_ready(&lab, "primary", 1) && open(port));

    // Another site took the role: it does not come back by itself, also when the role does.
    lab.kill_now("primary");
    until(&lab, "the end of the application", || get(port, "/page").is_none());
    lab.takeover("sync", &[]);
    lab.start("primary");
    lab.wait(60);
    give("primary");
    stays_stopped(&lab, "primary");
    ok(&lab, "primary", &["boot", "--once"]);
    until(&lab, "the application by order", || all_ready(&lab, "primary", 1) && open(port));
    lab.down();
}

/// Offset and length of the boot id in the live page of a region.
const BOOT: (u64, usize) = (24, 16);

#[test]
fn cd8_applications_come_back_with_their_primary_after_a_power_cut() {
    let lab = Lab::up(&["--sites", "2"]);
    let port = shop(&lab);
    ok(&lab, "primary", &["boot", "--once"]);
    until(&lab, "the application", || all_ready(&lab, "primary", 1));
    lab.wait(60);
    lab.kill_now("primary");
    // The machine was started anew in between.
    let live = fs::OpenOptions::new().write(true).open(lab.site_dir("primary").join("region/.kagami/live")).unwrap();
    live.write_all_at(&[0xb0; BOOT.1], BOOT.0).unwrap();
    lab.start("primary");
    until(&lab, "the application", || all_ready(&lab, "primary", 1) && open(port));
    assert!(lab.log("primary").contains("leads until this one has what it has"), "{}", lab.log_tails());
    assert_eq!(group(&lab, "primary")["role"], "primary");
    stays_stopped(&lab, "sync");
    lab.down();
}

fn unmount(dir: &Path, lazy: bool) -> Output {
    let mut c = Command::new(if support::is_root() { "umount" } else { "fusermount3" });
    match (support::is_root(), lazy) {
        (true, true) => drop(c.arg("-l")),
        (true, false) => {}
        (false, true) => drop(c.arg("-uz")),
        (false, false) => drop(c.arg("-u")),
    }
    proc::run(c.arg(dir), LONG)
}

/// Starts the two applications of [`tells`] and waits until both can hear.
#[track_caller]
fn begin(lab: &Lab) {
    for f in ["db.up", "web.up", "db.ended", "web.ended"] {
        let _ = fs::remove_file(lab.dir().join(f));
    }
    ok(lab, "primary", &["boot", "--once"]);
    until(lab, "both applications", || {
        all_ready(lab, "primary", 2) && ["db.up", "web.up"].iter().all(|f| lab.dir().join(f).exists())
    });
}

/// Both were stopped, the later one first, each in its own time.
#[track_caller]
fn ended_in_order(lab: &Lab, how: &str) {
    until(lab, "the end of both", || apps(lab, "primary").is_empty());
    let at = |name: &str| -> f64 {
        let text = fs::read_to_string(lab.dir().join(name))
            .unwrap_or_else(|e| panic!("{how}: {name}: {e}\n{}", lab.log_tails()));
        text.parse().unwrap()
    };
    // The database takes its time after it was told.
    let gap = at("db.ended") - at("web.ended");
    println!("{how}: the database ended {gap:.2} s after the application");
    assert!(gap >= 1.5, "{how}: {gap}");
    assert!(!lab.log("primary").contains(": killed: "), "{how}: {}", lab.log_tails());
    stays_stopped(lab, "primary");
}

fn is_mounted(lab: &Lab) -> bool {
    proc::mounts_below(lab.dir()).contains(&lab.mnt())
}

#[test]
fn b7_every_way_to_unmount_stops_the_applications_in_reverse_order_and_ends() {
    let lab = Lab::up(&["--sites", "2"]);
    let write = |dir: &Path| {
        define(&lab, &tells(&lab, "db", 1.5, dir), &tells(&lab, "web", 0.3, dir), &lab.mnt().join("db.toml"));
    };
    write(&lab.mnt());
    allow(&lab, "primary", &rules(""));
    begin(&lab);
    // Busy: it fails as it does for any filesystem, and nobody is disturbed.
    let before = group(&lab, "primary")["apps"].clone();
    let out = unmount(&lab.mnt(), false);
    assert!(!out.status.success() && text(&out.stderr).contains("busy"), "{}", text(&out.stderr));
    std::thread::sleep(SECONDS(1));
    assert_eq!(group(&lab, "primary")["apps"], before);
    ok(&lab, "primary", &["umount", "lab"]);
    assert!(!is_mounted(&lab) && apps(&lab, "primary").is_empty());
    ended_in_order(&lab, "kagami umount");

    // Lazily: what they have open can be used until they have ended.
    begin(&lab);
    assert!(unmount(&lab.mnt(), true).status.success());
    ended_in_order(&lab, "umount -l");
    assert!(!is_mounted(&lab));

    // Nothing of theirs is open in it: umount(8) can.
    begin(&lab);
    write(Path::new("/"));
    ok(&lab, "primary", &["umount", "lab"]);
    begin(&lab);
    assert!(unmount(&lab.mnt(), false).status.success());
    ended_in_order(&lab, "umount");
    let why = group(&lab, "primary")["reason"].to_string();
    assert!(why.contains("was unmounted, not by an order to kagami"), "{why}");

    // Somebody else's file holds nothing up; it can be used, and the volume mounted again, when it is closed.
    begin(&lab);
    let mut held = fs::File::create(lab.mnt().join("held")).unwrap();
    let began = Instant::now();
    let out = lab.at("primary", &["umount", "lab"]);
    println!("an unmount while a file is open took {:.1?}", began.elapsed());
    assert!(
        out.status.code() == Some(3) && text(&out.stderr).contains("still has a file open"),
        "{}",
        text(&out.stderr)
    );
    assert!(began.elapsed() < SECONDS(40) && !is_mounted(&lab));
    ended_in_order(&lab, "kagami umount with a file open");
    held.write_all(b"written").and_then(|()| held.sync_all()).unwrap();
    let out = lab.at("primary", &["mount", "lab", &lab.mnt().display().to_string()]);
    assert!(text(&out.stderr).contains("files are still open in it"), "{}", text(&out.stderr));
    drop(held);
    begin(&lab);
    assert_eq!(fs::read(lab.mnt().join("held")).unwrap(), b"written");
    let held = fs::File::open(lab.mnt().join("held")).unwrap();
    let (began, pid) = (Instant::now(), lab.pid("primary").unwrap());
    proc::kill(pid, libc::SIGTERM);
    assert!(proc::wait_until(SECONDS(60), || !proc::alive(pid)), "the node does not end\n{}", lab.log_tails());
    println!("the end of a node while a file is open took {:.1?}", began.elapsed());
    assert!(!is_mounted(&lab) && lab.log("primary").contains("still has a file open in it, and gets errors"));
    drop(held);
    lab.down();
}

/// Processes with this in their environment.
fn marked(mark: &str) -> Vec<i32> {
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    let has = |pid: &i32| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|b| *b == 0).any(|v| v == mark.as_bytes())
    };
    pids.filter(has).collect()
}

#[test]
fn b7_applications_that_misbehave_are_named_and_hold_up_neither_the_unmount_nor_the_node() {
    let lab = Lab::up(&["--sites", "2"]);
    let mark = format!("B7={}", lab.dir().display());
    let env = format!("env = {{ B7 = {:?} }}", lab.dir().display().to_string());
    let idle = "import time\nwhile True: time.sleep(0.1)\n";
    let deaf = format!("import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{idle}");
    // Two generations, the younger in a session of its own and deaf; the first process goes on.
    let forks = format!(
        "import os\nif os.fork() == 0:\n    os.setsid()\n    os.fork()\n{}",
        deaf.replace("import signal", "import signal, time")
    );
    let never = format!("{env}\nready = {{ tcp = \"127.0.0.1:{}\" }}\nready_timeout_s = 2", free_port());
    let dbms = [
        program(&lab, "never", idle, &never),
        program(&lab, "crash", "raise SystemExit(3)\n", &env),
        program(&lab, "deaf", &deaf, &format!("{env}\nstop_timeout_s = 2")),
        program(&lab, "forks", &forks, &format!("{env}\nstop_timeout_s = 2")),
    ];
    let at = lab.mnt().join("db.toml");
    define(&lab, &dbms.concat(), &program(&lab, "web", idle, &env), &at);
    allow(&lab, "primary", &rules(""));
    let begin = || {
        ok(&lab, "primary", &["boot", "--once"]);
        let want = |s: &[(String, String)]| {
            let is = |n: &str, w: &[&str]| s.iter().any(|(name, state)| name == n && w.contains(&state.as_str()));
            is("never", &["failed"])
                && is("crash", &["backing-off", "crash-looping"])
                && is("deaf", &["ready"])
                && is("forks", &["ready"])
                && is("web", &["waiting"])
        };
        until(&lab, "each in its state", || want(&apps(&lab, "primary")) && marked(&mark).len() >= 4);
        let all = group(&lab, "primary")["apps"].to_string();
        assert!(all.contains("not ready within 2 s") && all.contains("exit code 3"), "{all}");
        assert!(all.contains("waits for") && all.contains("never (failed)"), "{all}");
    };
    begin();
    let began = Instant::now();
    ok(&lab, "primary", &["umount", "lab"]);
    println!("unmounted in {:.1?}", began.elapsed());
    assert!(began.elapsed() < SECONDS(20) && !is_mounted(&lab));
    assert!(marked(&mark).is_empty(), "nothing of them is left");
    begin();
    let (began, pid) = (Instant::now(), lab.pid("primary").unwrap());
    proc::kill(pid, libc::SIGTERM);
    assert!(proc::wait_until(SECONDS(30), || !proc::alive(pid)), "the node does not end\n{}", lab.log_tails());
    println!("the node ended in {:.1?}", began.elapsed());
    assert!(marked(&mark).is_empty());
    lab.start("primary");
    until(&lab, "the role", || group(&lab, "primary")["role"] == "primary");
    begin();
    lab.kill_now("primary");
    assert!(proc::wait_until(SECONDS(10), || marked(&mark).is_empty()), "{:?} outlive the node", marked(&mark));
    lab.down();
}

#[test]
fn cd17_a_node_with_boot_mounts_and_starts_by_itself_and_is_the_process_that_says_ready() {
    let lab = Lab::up(&["--sites", "2"]);
    let port = shop(&lab);
    lab.wait(60);
    lab.kill("primary");
    let socket = UnixDatagram::bind(lab.dir().join("notify")).unwrap();
    socket.set_read_timeout(Some(SECONDS(60))).unwrap();
    let hear = || {
        let mut buf = [0; 1024];
        let n = socket.recv(&mut buf).expect("the node says something");
        text(&buf[..n])
    };
    let start = || {
        let mut c = support::lab::kagami();
        c.arg("--config").arg(lab.config("primary")).args(["node", "--boot", "--log-file"]);
        c.arg(lab.site_dir("primary").join("node.log"));
        c.env("NOTIFY_SOCKET", lab.dir().join("notify")).stdin(Stdio::null()).stderr(Stdio::null());
        let node = proc::die_with_parent(&mut c).spawn().unwrap();
        while hear() != "READY=1\n" {}
        assert_eq!(lab.status("primary")["pid"], node.id(), "the process that was started is the node");
        node
    };
    let end = |mut node: std::process::Child| {
        proc::kill(node.id() as i32, libc::SIGTERM);
        let how = proc::wait_timeout(&mut node, LONG).expect("the node ends");
        assert!(how.success(), "{how}");
        assert!(std::iter::repeat_with(hear).any(|m| m.starts_with("STOPPING=1")));
    };
    // Twice: it depends on nothing that an earlier one left.
    for _ in 0..2 {
        let node = start();
        until(&lab, "the application", || all_ready(&lab, "primary", 1) && open(port));
        // The order to unmount counts for as long as this node lives.
        ok(&lab, "primary", &["umount", "lab"]);
        assert!(!open(port) && !is_mounted(&lab));
        stays_stopped(&lab, "primary");
        ok(&lab, "primary", &["boot", "--once"]);
        until(&lab, "the application by order", || all_ready(&lab, "primary", 1));
        ok(&lab, "primary", &["umount", "lab"]);
        end(node);
        assert!(get(port, "/page").is_none());
    }
    // A node without it mounts nothing that an order unmounted, and starts nothing.
    let file = |n: &str| lab.site_dir("primary").join(n).display().to_string();
    ok(&lab, "primary", &["node", "-d", "--pid-file", &file("node.pid"), "--log-file", &file("node.log")]);
    stays_stopped(&lab, "primary");
    assert!(!is_mounted(&lab));
    // Whoever starts it in the background gives the orders.
    let out = lab.at("sync", &["node", "--boot", "-d"]);
    assert_eq!(out.status.code(), Some(2), "{}", text(&out.stderr));
    lab.down();
}

/// Sets keys of a volume in the site file of a lab that is down.
fn keys(lab: &Lab, site: &str, volume: &str, from: &str, to: &str) {
    let file = lab.config(site);
    let s = fs::read_to_string(&file).unwrap();
    let name = format!("name = {volume:?}");
    let (before, after) = s.split_once(&name).unwrap();
    assert!(after.contains(from), "{s}");
    fs::write(file, format!("{before}{name}{}", after.replacen(from, to, 1))).unwrap();
}

#[test]
fn cd3_cd6_an_adopted_volume_keeps_its_size_and_its_emulation() {
    let lab = Lab::up(&["--sites", "2", "--volumes", "2"]);
    lab.ok("down", &[]);
    for site in ["primary", "sync"] {
        for d in ["region", "region1", "state"] {
            fs::remove_dir_all(lab.site_dir(site).join(d)).unwrap();
        }
        let drives = "emulation = \"raid1\"\ndrives = [\"region\", \"region-b\"]\nsize = \"60MB\"";
        keys(&lab, site, "vol0", "legs = [\"region\"]", drives);
        keys(&lab, site, "vol1", "legs = [\"region1\"]", "legs = [\"region1\"]\nsize = \"20MB\"");
    }
    lab.ok("up", &["--sites", "2", "--volumes", "2"]);
    fs::write(lab.mnt().join("f"), "of vol0").unwrap();
    lab.wait(60);
    lab.ok("down", &[]);
    let region = |n: &str| lab.site_dir("sync").join(n).display().to_string();
    let state = lab.dir().join("adopted");
    let rules = lab.dir().join("rules.toml");
    let mounts = format!("mounts = [{:?}]\n", lab.dir().display().to_string());
    fs::write(&rules, format!("[node]\nsite = \"phoenix\"\n[launch]\n{mounts}")).unwrap();
    let kagami = |config: &Path, args: &[&str]| {
        let mut c = support::lab::kagami();
        let out = proc::run(c.arg("-c").arg(config).args(args).env_remove("KAGAMI_CONFIG"), SECONDS(120));
        (
            out.status.code(),
            text(&out.stdout).replace('\n', " ").split_whitespace().collect::<Vec<_>>().join(" "),
            text(&out.stderr),
        )
    };
    let (r0, r1, at) = (region("region"), region("region1"), state.display().to_string());
    let (_, plan, err) = kagami(&rules, &["adopt", &r0, &r1, "--state-dir", &at, "--dry-run"]);
    for words in ["57.2 MiB, raid1", "19.1 MiB, none", "is one drive of volume vol0, which is raid1"] {
        assert!(plan.contains(words), "no {words:?}: {plan}{err}");
    }
    let (code, _, err) = kagami(&rules, &["adopt", &r0, &r0, &r1, "--dry-run"]);
    assert!(code == Some(4) && err.contains("both volume \"vol0\"; give it once"), "{err}");
    let (code, out, err) = kagami(&rules, &["adopt", &r0, &r1, "--state-dir", &at, "--yes"]);
    assert_eq!(code, Some(0), "{out}{err}\n{}", lab.log_tails());
    let site = state.join("site.toml");
    let written = fs::read_to_string(&site).unwrap();
    assert!(written.contains("size = \"60MB\"") && written.contains("size = \"20MB\""), "{written}");
    // The capacities hold, also after a restart of its node.
    let pid = || -> i32 { fs::read_to_string(state.join("node.pid")).unwrap().trim().parse().unwrap() };
    let end = || {
        let pid = pid();
        proc::kill(pid, libc::SIGTERM);
        assert!(proc::wait_until(LONG, || !proc::alive(pid)), "its node does not end");
    };
    let too_much = || {
        let f = fs::File::create(volume(&lab, 1).join("big")).unwrap();
        let e = (0..25)
            .try_for_each(|i| f.write_all_at(&[7; 1_000_000], i * 1_000_000).and_then(|()| f.sync_all()))
            .unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::ENOSPC), "{e}");
        drop(f);
        fs::remove_file(volume(&lab, 1).join("big")).unwrap();
    };
    too_much();
    end();
    let node = |args: &[&str]| {
        let (code, out, err) = kagami(&site, args);
        assert_eq!(code, Some(0), "{out}{err}\n{}", lab.log_tails());
        out
    };
    // With a second drive it is whole again, as the comment in the site file says.
    let one = format!("region = {r0:?}");
    assert!(written.contains(&one));
    let two = format!("emulation = \"raid1\"\ndrives = [{r0:?}, {:?}]", state.join("drive").display().to_string());
    fs::write(&site, written.replacen(&one, &two, 1)).unwrap();
    node(&["region", "create"]);
    node(&["node", "-d"]);
    too_much();
    let whole = || {
        let s: serde_json::Value = serde_json::from_str(&node(&["status", "--json"])).unwrap();
        let g = &s["groups"][0];
        let sizes = (&g["volumes"][0]["capacity"], &g["volumes"][1]["capacity"], &g["volumes"][0]["emulation"]);
        assert_eq!(sizes, (&60_000_000.into(), &20_000_000.into(), &"raid1".into()), "{s:#}");
        g["legs"].as_array().is_some_and(|l| l.len() == 2 && l.iter().all(|l| l["state"] == "synchronised"))
    };
    assert!(proc::wait_until(LONG, whole), "{}", lab.log_tails());
    assert_eq!(fs::read(state.join("drive/tree/f")).unwrap(), b"of vol0");
    end();
    lab.down();
}
