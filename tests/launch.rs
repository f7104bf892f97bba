//! A replica that mounts itself and starts what it names: CD-3, CD-6 to CD-9, CD-11, CD-14 to CD-17, on real nodes with
//! real applications; B4: what a hostile replica does not get.

use crate::support;

use kagami::store::files;
use kagami::store::head::ConfigDef;
use serde_json::Value;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use support::lab::Lab;
use support::proc;
use support::serve::*;

#[test]
fn cd6_cd7_cd8_cd11_cd16_the_lost_primarys_applications_run_at_the_secondary() {
    let lab = Lab::up(&["--sites", "2", "--volumes", "2"]);
    let (db, app) = (free_port(), free_port());
    let (v0, v1) = (volume(&lab, 0), volume(&lab, 1));
    std::fs::write(v1.join("data"), "of the database").unwrap();
    std::fs::write(v0.join("page"), "of the application").unwrap();
    // The database must be ready before the application starts: it is asked from there.
    let check = format!(
        "import socket,os; socket.create_connection((\"127.0.0.1\", {db})).close(); open(\"order\", \"a\").write(os.environ[\"GREETING\"]); import http.server,sys; http.server.test(http.server.SimpleHTTPRequestHandler, port={app}, bind=\"127.0.0.1\")"
    );
    let application = format!(
        "[[application]]\nname = \"shop\"\ncommand = {:?}\nargs = [\"-c\", '''{check}''']\nuser = {:?}\nready = {{ tcp = \"127.0.0.1:{app}\" }}\n",
        python(),
        me()
    );
    std::fs::write(v0.join("env.txt"), "GREETING=hello\n").unwrap();
    define(&lab, &server("db", db, &v1.display().to_string(), ""), &application, &v1.join("etc/db.toml"));
    let env = std::fs::read_to_string(v0.join("env.txt")).unwrap();
    assert!(env.starts_with("GREETING=hello\nKAGAMI_DBMS=") && v1.join("etc/db.toml").exists(), "{env}");
    allow(&lab, "sync", &rules("on_lost_primary = \"mount\"\nlost_primary_after_s = 1"));
    lab.wait(60);
    // While the pair is active nothing is mounted, also not by order (B2).
    let out = lab.at("sync", &["boot", "--now", "lab"]);
    assert_eq!(out.status.code(), Some(4), "{}", proc::text(&out.stderr));
    assert!(proc::text(&out.stderr).contains("is active: nothing is mounted"), "{}", proc::text(&out.stderr));
    let plan = ok(&lab, "sync", &["boot", "--dry-run"]);
    assert!(plan.contains("1. db") && plan.contains("2. shop") && plan.contains("GREETING=hello"), "{plan}");

    lab.kill_now("primary");
    until(&lab, "applications at the secondary", || all_ready(&lab, "sync", 2));
    assert_eq!(get(db, "/data").as_deref(), Some("of the database"));
    assert_eq!(get(app, "/page").as_deref(), Some("of the application"));
    assert_eq!(std::fs::read_to_string(v0.join("order")).unwrap(), "hello");
    assert_eq!(group(&lab, "sync")["mounts"].as_array().unwrap().len(), 2);
    let shown = ok(&lab, "sync", &["status"]);
    assert!(shown.contains("APPLICATION") && shown.contains("shop"), "{shown}");

    // The node is killed: so are its applications; started again, it goes on with them.
    lab.kill_now("sync");
    until(&lab, "the end of the applications", || get(db, "/data").is_none() && get(app, "/page").is_none());
    lab.start("sync");
    until(&lab, "applications after the restart", || all_ready(&lab, "sync", 2));
    assert_eq!(get(app, "/page").as_deref(), Some("of the application"));

    // An unmount by order stops them first, and they stay so.
    ok(&lab, "sync", &["umount", "lab"]);
    assert!(apps(&lab, "sync").is_empty() && get(app, "/page").is_none());
    assert_eq!(std::fs::read_dir(&v0).unwrap().count(), 0);
    std::thread::sleep(Duration::from_secs(3));
    assert!(apps(&lab, "sync").is_empty(), "they do not come back by themselves");
    lab.down();
}

#[test]
fn cd6_b2_nothing_is_mounted_while_one_of_two_pairs_is_active() {
    let lab = Lab::up(&["--volumes", "2"]);
    let port = free_port();
    let v1 = volume(&lab, 1);
    std::fs::write(v1.join("data"), "all of it").unwrap();
    define(
        &lab,
        &server("db", port, &v1.display().to_string(), ""),
        &server("second", free_port(), "/", ""),
        &v1.join("db.toml"),
    );
    // Both ways to suspend mount here, and at once.
    allow(&lab, "async", &rules("on_lost_primary = \"mount\"\non_suspend = \"mount\"\nlost_primary_after_s = 15"));
    lab.wait(60);
    lab.kill_now("primary");
    lab.takeover("sync", &[]);
    lab.wait_pair("async", "relay", "PAIR", LONG);
    assert_eq!(lab.pair("async", "async")["state"], "PSUE", "one of the two pairs that end here is suspended");
    // Long after it counts as lost, nothing is mounted: the other pair is active.
    let end = Instant::now() + Duration::from_secs(18);
    while Instant::now() < end {
        let g = group(&lab, "async");
        assert!(g["role"] == "secondary" && g["mounts"].as_array().unwrap().is_empty(), "{g:#}");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(get(port, "/data").is_none());
    // All of them suspended: everything is mounted and started.
    ok(&lab, "sync", &["umount", "lab"]);
    ok(&lab, "sync", &["pair", "split", "lab", "relay"]);
    until(&lab, "applications at the async site", || all_ready(&lab, "async", 2));
    assert_eq!(get(port, "/data").as_deref(), Some("all of it"));
    assert_eq!(group(&lab, "async")["mounts"].as_array().unwrap().len(), 2);
    lab.down();
}

#[test]
fn cd16_cd17_an_operators_suspend_is_no_lost_primary_and_somebody_is_asked() {
    let lab = Lab::up(&["--sites", "2"]);
    allow(&lab, "sync", &rules("on_lost_primary = \"mount\"\non_suspend = \"wait\"\nlost_primary_after_s = 1"));
    lab.wait(60);
    ok(&lab, "primary", &["pair", "split", "lab", "sync"]);
    lab.wait_pair("sync", "sync", "PSUS", LONG);
    std::thread::sleep(Duration::from_secs(3));
    let g = group(&lab, "sync");
    assert_eq!(g["role"], "secondary", "{g:#}");
    assert!(g["boot"].as_str().unwrap().contains("suspended by order"), "{g:#}");
    // It also outlasts the node.
    allow(&lab, "sync", &rules("on_lost_primary = \"mount\"\non_suspend = \"ask\"\nlost_primary_after_s = 1"));
    assert_eq!(lab.pair("sync", "sync")["state"], "PSUS");
    let asked = || group(&lab, "sync")["boot"].as_str().is_some_and(|b| b.contains("kagami boot --yes lab"));
    until(&lab, "the question", asked);
    lab.kill_now("primary");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(group(&lab, "sync")["role"], "secondary", "suspended, then lost: still asked");
    let said = ok(&lab, "sync", &["boot", "--yes", "lab"]);
    assert!(said.contains("mounted at"), "{said}");
    assert_eq!(group(&lab, "sync")["role"], "primary");
    lab.down();
}

#[test]
fn cd8_g8_applications_at_the_primary_and_their_orders() {
    let lab = Lab::up(&["--sites", "2"]);
    let port = free_port();
    let stop = format!(
        "stop = {{ command = [{:?}, \"-c\", \"open('stopped', 'w').write('in order'); import os; os.kill(int(open('pid').read()), 15)\"] }}\nrestart = \"always\"",
        python()
    );
    // The program writes its number into the volume, for its own stop command.
    let run = format!(
        "import os; open('pid', 'w').write(str(os.getpid())); print('begun', flush=True); import http.server; http.server.test(http.server.SimpleHTTPRequestHandler, port={port}, bind='127.0.0.1')"
    );
    let text = format!(
        "[[application]]\nname = \"shop\"\ncommand = {:?}\nargs = [\"-c\", \"{run}\"]\nuser = {:?}\nready = {{ tcp = \"127.0.0.1:{port}\" }}\n{stop}\n",
        python(),
        me()
    );
    let file = lab.dir().join("app.in");
    std::fs::write(&file, text).unwrap();
    ok(&lab, "primary", &["define", "lab", "--application", &file.display().to_string()]);
    // Nothing is allowed yet: the refusal names what to write where.
    let out = lab.at("primary", &["boot", "--now", "lab"]);
    let said = proc::text(&out.stderr);
    let remedy = format!("write commands = [{:?}] into [launch] of {}", python(), lab.config("primary").display());
    assert!(out.status.code() == Some(4) && said.contains(&remedy), "{said}");
    allow(&lab, "primary", &rules(""));
    let said = ok(&lab, "primary", &["boot", "--once"]);
    assert!(said.contains("1. shop"), "{said}");
    until(&lab, "the application", || all_ready(&lab, "primary", 1));
    assert!(get(port, "/env.txt").unwrap().contains("KAGAMI_APPLICATION"));
    let log = ok(&lab, "primary", &["app", "log", "lab", "shop"]);
    assert!(log.contains("begun"), "{log}");
    // It dies: it is started again, and that is counted.
    let pid = |lab: &Lab| group(lab, "primary")["apps"][0]["pid"].as_i64().unwrap_or(0) as i32;
    let first = pid(&lab);
    proc::kill(first, libc::SIGKILL);
    until(&lab, "another process", || all_ready(&lab, "primary", 1) && ![0, first].contains(&pid(&lab)));
    assert_eq!(group(&lab, "primary")["apps"][0]["restarts"], 1);
    ok(&lab, "primary", &["app", "stop", "lab", "shop"]);
    until(&lab, "its end", || apps(&lab, "primary")[0].1 == "stopped");
    assert!(get(port, "/").is_none());
    let how = group(&lab, "primary")["apps"][0]["reason"].to_string();
    assert!(!how.contains("killed"), "its own stop command was enough: {how}");
    ok(&lab, "primary", &["app", "start", "lab"]);
    until(&lab, "the application again", || all_ready(&lab, "primary", 1));
    let out = lab.at("primary", &["app", "stop", "lab", "nix"]);
    assert!(!out.status.success() && proc::text(&out.stderr).contains("nix"), "{}", proc::text(&out.stderr));
    // The node ends in order: the application first, what it wrote at its end is in the volume and at the other site.
    std::fs::remove_file(lab.mnt().join("stopped")).unwrap();
    lab.wait(60);
    ok(&lab, "primary", &["app", "list"]);
    lab.ok("down", &[]);
    for site in ["primary", "sync"] {
        assert_eq!(std::fs::read_to_string(lab.tree(site).join("stopped")).unwrap(), "in order", "at {site}");
    }
    lab.down();
}

const HEAD_MAGIC: &[u8; 8] = b"KGMHEAD\0";

/// What a hostile replica holds; `mark` is a file that something it starts would make.
type Make = fn(&Hostile);

struct Hostile<'a> {
    /// The volume as the primary has it mounted.
    v: PathBuf,
    head: PathBuf,
    mark: PathBuf,
    lab: &'a Lab,
}

impl Hostile<'_> {
    fn env(&self, text: &str) {
        std::fs::write(self.v.join("env.txt"), text).unwrap();
    }

    fn app(&self, more: &str) {
        self.env("KAGAMI_APPLICATION=a.toml\n");
        std::fs::write(self.v.join("a.toml"), format!("[[application]]\nname = \"a\"\n{more}\n")).unwrap();
    }

    /// An application that would leave the mark.
    fn touch(&self, more: &str) -> String {
        let code = format!("open('{}', 'w')", self.mark.display());
        format!("command = {:?}\nuser = {:?}\nargs = [\"-c\", {code:?}]\n{more}", python(), me())
    }

    fn head(&self, mount: &[u8]) {
        let def = ConfigDef { mount: mount.to_vec(), capacity: 0, emulation: "none".into() };
        files::save(&self.head, HEAD_MAGIC, 1, &def).unwrap();
    }
}

/// At the primary, in its volume.
const CONTENT: &[(&str, Make, &str)] = &[
    ("no UTF-8", |h| std::fs::write(h.v.join("env.txt"), b"A=\xff\n").unwrap(), "not UTF-8"),
    ("a NUL", |h| h.env("A=\0\n"), "cannot be seen"),
    ("an escape", |h| h.env("A=\x1b]0;x\x07\n"), "cannot be seen"),
    ("64 KiB and more", |h| h.env(&"#\n".repeat(40_000)), "at most 65536 bytes"),
    ("10 MB", |h| h.env(&"A=b\n".repeat(2_500_000)), "at most 65536 bytes"),
    ("command substitution", |h| h.env("A=$(touch /var/tmp/hostile)\n"), "nothing is run here"),
    ("backticks", |h| h.env("A=`touch /var/tmp/hostile`\n"), "nothing is run here"),
    ("the loader", |h| h.env("LD_PRELOAD=/x.so\n"), "LD_PRELOAD is not taken"),
    ("the shell", |h| h.env("BASH_ENV=/x\n"), "BASH_ENV is not taken"),
    ("the path", |h| h.env("PATH=/x\n"), "PATH is not taken"),
    ("the interpreter", |h| h.env("PYTHONPATH=/x\n"), "PYTHONPATH is not taken"),
    ("kagami's own", |h| h.env("KAGAMI_CONFIG=/x\n"), "kagami's own"),
    ("a circle of files", |h| h.env("KAGAMI_ENV_FILES=env.txt\n"), "in a circle"),
    ("a file elsewhere", |h| h.env("KAGAMI_ENV_FILES=/etc/environment\n"), "lies in no volume"),
    ("a definition elsewhere", |h| h.env("KAGAMI_DBMS=/etc/passwd\n"), "lies in no volume"),
    ("a way out", |h| h.env("KAGAMI_DBMS=../../../etc/passwd\n"), "goes through `..`"),
    (
        "a symlink out",
        |h| {
            h.env("KAGAMI_DBMS=l\n");
            symlink("/etc/passwd", h.v.join("l")).unwrap()
        },
        "leads out of volume",
    ),
    (
        "a symlinked environment",
        |h| {
            let _ = std::fs::remove_file(h.v.join("env.txt"));
            symlink("/etc/passwd", h.v.join("env.txt")).unwrap()
        },
        "leads out of volume",
    ),
    (
        "a pipe",
        |h| {
            h.env("KAGAMI_DBMS=p\n");
            assert!(std::process::Command::new("mkfifo").arg(h.v.join("p")).status().unwrap().success())
        },
        "neither a file nor a directory",
    ),
    (
        "no TOML",
        |h| {
            h.env("KAGAMI_DBMS=d\n");
            std::fs::write(h.v.join("d"), "[[[").unwrap()
        },
        "/d:1: ",
    ),
    ("an unknown key", |h| h.app(&h.touch("setuid = true")), "unknown key setuid"),
    (
        "another program",
        |h| h.app("command = \"/bin/sh\"\nargs = [\"-c\", \"touch /var/tmp/hostile\"]"),
        "is not allowed at this site",
    ),
    ("a program by a way round", |h| h.app("command = \"/usr/bin/../bin/sh\""), "goes through `..`"),
    ("a program of the volume", |h| h.app("command = \"./x\""), "programs in the volume are not allowed"),
    ("another user", |h| h.app(&h.touch("").replace(&format!("user = {:?}", me()), "user = \"daemon\"")), "daemon"),
    (
        "no such user",
        |h| h.app(&h.touch("").replace(&format!("user = {:?}", me()), "user = \"nobody-here\"")),
        "no user nobody-here",
    ),
    (
        "a readiness command",
        |h| h.app(&h.touch("ready = { command = [\"/bin/sh\", \"-c\", \"id\"] }")),
        "readiness command /bin/sh",
    ),
    ("a stop command", |h| h.app(&h.touch("stop = { command = [\"/bin/sh\"] }")), "stop command /bin/sh"),
    ("a name to look up", |h| h.app(&h.touch("ready = { tcp = \"example.org:80\" }")), "is no address"),
    ("the loader for one", |h| h.app(&h.touch("env = { LD_PRELOAD = \"/x.so\" }")), "LD_PRELOAD is not taken"),
    ("a circle", |h| h.app(&h.touch("after = [\"a\"]")), "in a circle"),
    ("a name with a slash", |h| h.env_app("../../etc/cron.d/x"), "is not a name"),
    ("too much", |h| h.app(&"# x\n".repeat(80_000)), "at most 262144 bytes"),
];

/// At the secondary, as its head.
const HEADS: &[(&str, &[u8], &str)] = &[
    ("the root", b"/", "no absolute path"),
    ("etc", b"/etc", "is not allowed at this site"),
    ("a way round", b"/srv/../etc", "no absolute path"),
    ("relative", b"mnt", "no absolute path"),
    ("nothing", b"", "no absolute path"),
    ("a NUL", b"/srv/a\0b", "no absolute path"),
    ("no text", b"/srv/\xff\xfe", "no absolute path"),
    ("an escape", b"/srv/\x1b[2J", "no absolute path"),
    ("very long", &[b'/'; 5000], "no absolute path"),
];

impl Hostile<'_> {
    fn env_app(&self, name: &str) {
        self.env("KAGAMI_APPLICATION=a.toml\n");
        let text = format!("[[application]]\nname = {name:?}\n{}", self.touch(""));
        std::fs::write(self.v.join("a.toml"), text).unwrap();
    }

    /// Tries to mount and start at the secondary; nothing may come of it.
    #[track_caller]
    fn refused(&self, what: &str, words: &str) {
        let out = self.lab.at("sync", &["boot", "--now", "lab"]);
        let said = proc::text(&out.stderr);
        assert!(!out.status.success(), "{what}: {}", proc::text(&out.stdout));
        assert!(said.replace('\n', " ").contains(words), "{what}: {said}");
        assert!(!said.chars().any(|c| c.is_control() && c != '\n'), "{what}: {said:?}");
        let g = group(self.lab, "sync");
        assert!(g["role"] == "secondary" && g["mounts"].as_array().unwrap().is_empty(), "{what}: {g:#}");
        assert!(g["apps"].as_array().unwrap().is_empty(), "{what}: {g:#}");
        assert!(!self.mark.exists() && !Path::new("/var/tmp/hostile").exists(), "{what}");
    }
}

#[test]
fn b4_cd9_a_hostile_replica_starts_nothing_and_mounts_nothing() {
    assert!(CONTENT.len() + HEADS.len() >= 40);
    let lab = Lab::up(&["--sites", "2"]);
    allow(&lab, "sync", &rules(""));
    lab.wait(60);
    let h = Hostile {
        v: lab.mnt(),
        head: lab.site_dir("sync").join("region/.kagami/head"),
        mark: lab.dir().join("mark"),
        lab: &lab,
    };
    for (what, make, words) in CONTENT {
        for e in std::fs::read_dir(&h.v).unwrap() {
            std::fs::remove_file(e.unwrap().path()).unwrap();
        }
        make(&h);
        lab.wait(60);
        ok(&lab, "primary", &["pair", "split", "lab", "sync"]);
        lab.wait_pair("sync", "sync", "PSUS", LONG);
        h.refused(what, words);
        ok(&lab, "primary", &["pair", "resync", "lab", "sync"]);
        lab.wait_pair("primary", "sync", "PAIR", LONG);
    }
    // The same application without anything hostile is started: the mark is what the cases above did not make.
    h.app(&h.touch(""));
    let good = std::fs::read(&h.head).unwrap();
    lab.wait(60);
    ok(&lab, "primary", &["umount", "lab"]);
    ok(&lab, "primary", &["pair", "split", "lab", "sync"]);
    lab.wait_pair("sync", "sync", "PSUS", LONG);
    for (what, mount, words) in HEADS {
        h.head(mount);
        h.refused(what, words);
    }
    std::fs::write(&h.head, b"garbage").unwrap();
    h.refused("no head at all", "region/.kagami/head");
    std::fs::write(&h.head, &good).unwrap();
    assert!(good.windows(h.v.as_os_str().len()).any(|w| w == h.v.as_os_str().as_bytes()));
    ok(&lab, "sync", &["boot", "--now", "lab"]);
    until(&lab, "the mark", || h.mark.exists());
    lab.down();
}

#[test]
fn cd15_programs_of_the_volume_run_where_the_site_allows_it() {
    let lab = Lab::up(&["--sites", "2"]);
    let mark = lab.dir().join("mark");
    std::fs::create_dir(lab.mnt().join("bin")).unwrap();
    let program = lab.mnt().join("bin/own");
    std::fs::write(&program, format!("#!/bin/sh\necho \"$WORDS $1\" > {}\nexec sleep 1000\n", mark.display())).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(lab.mnt().join("env.txt"), "KAGAMI_ENV_FILES=more.env\nKAGAMI_APPLICATION=conf\n").unwrap();
    std::fs::write(lab.mnt().join("more.env"), "WORDS='said by'\n").unwrap();
    std::fs::create_dir(lab.mnt().join("conf")).unwrap();
    let text = format!(
        "[[application]]\nname = \"own\"\ncommand = \"{}\"\nargs = [\"itself\"]\nuser = {:?}\n",
        program.display(),
        me()
    );
    std::fs::write(lab.mnt().join("conf/applications.toml"), text).unwrap();
    allow(
        &lab,
        "sync",
        &format!("users = [{:?}]\nfrom_volume = true\non_lost_primary = \"mount\"\nlost_primary_after_s = 1", me()),
    );
    lab.wait(60);
    lab.kill_now("primary");
    until(&lab, "the program", || all_ready(&lab, "sync", 1) && mark.exists());
    assert_eq!(std::fs::read_to_string(&mark).unwrap(), "said by itself\n");
    // The old primary comes back and finds a newer one: it is a secondary, and starts nothing.
    lab.start("primary");
    lab.wait(60);
    assert_eq!(group(&lab, "primary")["role"], "secondary");
    assert!(apps(&lab, "primary").is_empty() && all_ready(&lab, "sync", 1));
    lab.down();
}

#[test]
fn cd3_cd6_a_blank_host_adopts_a_replica() {
    let lab = Lab::up(&["--sites", "2", "--volumes", "2"]);
    let port = free_port();
    let v1 = volume(&lab, 1);
    std::fs::write(v1.join("data"), "kept").unwrap();
    define(
        &lab,
        &server("db", port, &v1.display().to_string(), ""),
        &server("other", free_port(), "/", ""),
        &v1.join("db.toml"),
    );
    lab.wait(60);
    lab.ok("down", &[]);
    let region = |i: &str| lab.site_dir("sync").join(i).display().to_string();
    let (r0, r1) = (region("region"), region("region1"));
    let state = lab.dir().join("adopted").display().to_string();
    let kagami = |args: &[&str]| {
        let mut c = support::lab::kagami();
        proc::run(c.args(args).env_remove("KAGAMI_CONFIG"), LONG)
    };
    // Without rules of the site nothing is done, and what to write is said.
    let out = kagami(&["adopt", &r1, &r0, "--state-dir", &state, "--dry-run"]);
    let said = proc::text(&out.stdout);
    assert_eq!(out.status.code(), Some(4), "{said}");
    for words in ["1. db", "2. other", "lab/vol0 = (p0, 0)", "mounts = [", "commands = [", "site.toml"] {
        assert!(said.replace('\n', " ").contains(words), "{words}: {said}");
    }
    assert!(!Path::new(&state).exists(), "a dry run makes nothing");
    let out = kagami(&["adopt", &r1, "--dry-run"]);
    assert!(proc::text(&out.stderr).contains("lead volume is missing"), "{}", proc::text(&out.stderr));
    let rules = lab.dir().join("rules.toml");
    let mounts = format!("mounts = [{:?}]\n", lab.dir().display().to_string());
    let text = format!("[node]\nsite = \"phoenix\"\n[launch]\n{}{mounts}", self::rules(""));
    std::fs::write(&rules, text).unwrap();
    let rules = rules.display().to_string();
    let with = |more: &[&str]| {
        let mut all = vec!["-c", &rules, "adopt", &r0, &r1, "--state-dir", &state];
        all.extend(more);
        kagami(&all)
    };
    let out = with(&["--dry-run"]);
    assert!(out.status.success(), "{}{}", proc::text(&out.stdout), proc::text(&out.stderr));
    let out = with(&[]);
    assert!(proc::text(&out.stderr).contains("give --yes"), "{}", proc::text(&out.stderr));
    let out = with(&["--yes"]);
    assert!(out.status.success(), "{}{}", proc::text(&out.stdout), proc::text(&out.stderr));
    until(&lab, "the database", || get(port, "/data").as_deref() == Some("kept"));
    std::fs::write(v1.join("new"), "written").unwrap();
    let site = Path::new(&state).join("site.toml").display().to_string();
    let out = kagami(&["-c", &site, "status", "--json"]);
    let s: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&s["site"], &s["groups"][0]["role"]), (&"phoenix".into(), &"primary".into()), "{s:#}");
    let pid: i32 = std::fs::read_to_string(Path::new(&state).join("node.pid")).unwrap().trim().parse().unwrap();
    proc::kill(pid, libc::SIGTERM);
    assert!(proc::wait_until(LONG, || !proc::alive(pid)), "its node ends");
    assert!(get(port, "/data").is_none(), "and its applications with it");
    lab.down();
}
