//! Observability on the real program (MS-19, G8, G9): metrics, health for load balancers, events, and a lag that grows
//! whatever stands still.

use crate::support;

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use support::lab::Lab;
use support::proc::{die_with_parent, run_ok, text};

const SOON: Duration = Duration::from_secs(20);

/// A lab whose nodes serve their metrics.
struct Watched {
    lab: Lab,
    ports: BTreeMap<&'static str, u16>,
}

impl Watched {
    /// With these sites; the nodes are started again with the key in their files.
    fn up(sites: &[&'static str]) -> Watched {
        let lab = Lab::up(&["--sites", &sites.len().to_string()]);
        lab.ok("down", &[]);
        // All held at once, so that they are different.
        let held: Vec<TcpListener> = sites.iter().map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let mut ports = BTreeMap::new();
        for (site, l) in sites.iter().zip(&held) {
            let port = l.local_addr().unwrap().port();
            let file = lab.config(site);
            let text = std::fs::read_to_string(&file).unwrap();
            let with = text.replacen("[node]\n", &format!("[node]\nmetrics = \"127.0.0.1:{port}\"\n"), 1);
            std::fs::write(&file, with).unwrap();
            ports.insert(*site, port);
        }
        drop(held);
        lab.ok("up", &[]);
        Watched { lab, ports }
    }

    fn addr(&self, site: &str) -> (&'static str, u16) {
        ("127.0.0.1", self.ports[site])
    }

    /// Status and body.
    fn get(&self, site: &str, path: &str) -> (u16, String) {
        let mut c = TcpStream::connect(self.addr(site)).unwrap();
        c.set_read_timeout(Some(SOON)).unwrap();
        write!(c, "GET {path} HTTP/1.1\r\nHost: {site}\r\n\r\n").unwrap();
        answer(&mut c)
    }

    fn scrape(&self, site: &str) -> Scraped {
        let (status, body) = self.get(site, "/metrics");
        assert_eq!(status, 200, "{body}");
        Scraped::of(&body)
    }

    /// Waits until what is scraped at a site is as it should be.
    #[track_caller]
    fn until(&self, site: &str, what: &str, ok: impl Fn(&Scraped) -> bool) -> Scraped {
        let end = Instant::now() + SOON;
        loop {
            let s = self.scrape(site);
            if ok(&s) {
                return s;
            }
            assert!(Instant::now() < end, "{what} at {site} is not so: {s:#?}\n{}", self.lab.log_tails());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn answer(c: &mut TcpStream) -> (u16, String) {
    let mut all = Vec::new();
    let _ = c.read_to_end(&mut all);
    let all = text(&all);
    let (head, body) = all.split_once("\r\n\r\n").unwrap_or((&all, ""));
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    (status, body.to_owned())
}

/// A scrape: the sample of each line's name and labels.
#[derive(Debug)]
struct Scraped {
    types: BTreeSet<String>,
    samples: Vec<(String, f64)>,
}

impl Scraped {
    fn of(body: &str) -> Scraped {
        let types = body.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next().map(str::to_owned));
        let samples = body.lines().filter(|l| !l.starts_with('#')).map(|l| {
            let (name, value) = l.rsplit_once(' ').expect("a value on each line");
            (name.to_owned(), value.parse().expect("a number"))
        });
        Scraped { types: types.collect(), samples: samples.collect() }
    }

    /// The one sample of a name whose labels hold all these words.
    fn get(&self, name: &str, labels: &[&str]) -> Option<f64> {
        let begin = format!("{name}{{");
        let mut found =
            self.samples.iter().filter(|(n, _)| n.starts_with(&begin) && labels.iter().all(|l| n.contains(l)));
        let first = found.next().map(|(_, v)| *v);
        assert!(found.next().is_none(), "{name} {labels:?} is not one sample: {self:#?}");
        first
    }

    fn pair(&self, name: &str, pair: &str) -> Option<f64> {
        self.get(&format!("kagami_pair_{name}"), &[&format!("pair=\"{pair}\"")])
    }

    /// The state whose sample is 1; every other one is 0.
    fn state(&self, pair: &str) -> String {
        let label = format!("pair=\"{pair}\"");
        let all = self.samples.iter().filter(|(n, _)| n.starts_with("kagami_pair_state{") && n.contains(&label));
        let hot: Vec<&str> =
            all.filter(|(_, v)| *v == 1.0).filter_map(|(n, _)| n.split("state=\"").nth(1)?.split('"').next()).collect();
        assert_eq!(hot.len(), 1, "one state of {pair} is 1: {self:#?}");
        hot[0].to_owned()
    }
}

/// `kagami events --json --follow` at a site. Ended when dropped.
struct Follower {
    child: Child,
    lines: mpsc::Receiver<String>,
    seen: Vec<Value>,
}

impl Follower {
    fn start(lab: &Lab, site: &str) -> Follower {
        let mut c = support::lab::kagami();
        c.arg("--config").arg(lab.config(site)).args(["events", "--json", "--follow"]);
        c.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = die_with_parent(&mut c).spawn().unwrap();
        let (tx, lines) = mpsc::channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|l| tx.send(l)));
        Follower { child, lines, seen: Vec::new() }
    }

    /// Waits for the next event that is as it should be; those before it are passed over.
    #[track_caller]
    fn next(&mut self, what: &str, ok: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + SOON;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(l) => {
                    let e: Value = serde_json::from_str(&l).expect("each line is one JSON object");
                    self.seen.push(e.clone());
                    if ok(&e) {
                        return e;
                    }
                }
                Err(_) => panic!("no event {what}; there were {:#?}", self.seen),
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn change(pair: &'static str, from: &'static str, to: &'static str) -> impl Fn(&Value) -> bool {
    move |e| e["kind"] == "pair" && e["pair"] == pair && e["from"] == from && e["to"] == to
}

/// The names that look like ours in a text.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|w| w.starts_with("kagami_")).map(str::to_owned).collect()
}

fn repo(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// MS-19, G9: in PAIR, while the async site is cut off, and after its return: metrics, health and events say the same.
#[test]
fn ms19_g9_metrics_health_and_events_tell_of_an_outage_and_its_end() {
    let w = Watched::up(&["primary", "sync", "async"]);
    std::fs::write(w.lab.mnt().join("before"), vec![1u8; 100_000]).unwrap();
    w.lab.wait(60);

    // In PAIR, idle: no lag, and the confirmation goes on every few seconds at both ends.
    let calm = |s: &Scraped| s.state("async") == "PAIR" && s.pair("lag_seconds", "async") == Some(0.0);
    for site in ["primary", "async"] {
        let s = w.until(site, "PAIR without lag", |s| {
            calm(s) && s.pair("last_confirmed_timestamp_seconds", "async").is_some()
        });
        let first = s.pair("last_confirmed_timestamp_seconds", "async").unwrap();
        let later = w.until(site, "a later confirmation", |s| {
            s.pair("last_confirmed_timestamp_seconds", "async").is_some_and(|t| t >= first + 2.0)
        });
        assert!(calm(&later), "the volume is idle: {later:#?}");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((now - first).abs() < 30.0, "by the clock: {first} {now}");
    }
    let s = w.scrape("primary");
    assert_eq!(s.get("kagami_group_role", &["role=\"primary\""]), Some(1.0));
    assert_eq!(s.get("kagami_group_writable", &[]), Some(1.0));
    assert!(s.get("kagami_group_epoch", &[]).unwrap() >= 1.0);
    assert!(s.get("kagami_journal_bytes", &[]).unwrap() > 0.0);
    assert!(s.get("kagami_journal_limit_bytes", &[]).unwrap() >= 1e6);
    assert!(s.get("kagami_spool_limit_bytes", &[]).unwrap() > 0.0);
    assert_eq!(s.pair("out_of_sync_files", "async"), Some(0.0));
    assert!(s.pair("copy_last_success_timestamp_seconds", "async").is_some());
    assert_eq!(s.get("kagami_pair_faults_total", &["pair=\"async\"", "reason=\"behind\""]), Some(0.0));
    let faults = s.get("kagami_pair_faults_total", &["pair=\"async\"", "reason=\"link-lost\""]).unwrap();

    // What the document, the dashboard and the rules name is there.
    let mine = &s.types;
    assert_eq!(&names(&repo("docs/METRICS.md")), mine, "docs/METRICS.md and /metrics name the same");
    for file in ["mount-helpers/grafana/kagami.json", "mount-helpers/prometheus/kagami.rules.yml"] {
        let used = names(&repo(file));
        assert!(used.len() > 10, "{file} uses {used:?}");
        let unknown: Vec<_> = used.difference(mine).collect();
        assert!(unknown.is_empty(), "{file} names what is not served: {unknown:?}");
    }
    let dashboard: Value = serde_json::from_str(&repo("mount-helpers/grafana/kagami.json")).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() > 5);

    if kagami::node::config_check::has_program("promtool") {
        let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("mount-helpers/prometheus/kagami.rules.yml");
        run_ok(Command::new("promtool").args(["check", "rules"]).arg(rules), SOON);
    } else {
        support::skipped("ms19_g9", "no promtool: the alert rules are not parsed");
    }

    // Whom a load balancer would send where.
    assert_eq!(w.get("primary", "/primary?group=lab").0, 200);
    assert_eq!(w.get("primary", "/primary").0, 200, "the only group need not be named");
    assert_eq!(w.get("async", "/primary?group=lab").0, 503);
    for site in ["primary", "sync", "async"] {
        assert_eq!(w.get(site, "/healthz").0, 200, "{site}");
        let (status, body) = w.get(site, "/replica?group=lab&lag=4s");
        assert_eq!(status, 200, "{site}: {body}");
    }
    assert_eq!(w.get("primary", "/replica?group=other").0, 404);

    // Cut off: the state changes, the lag grows at both ends, the replica is not used any more.
    let (mut events, mut far) = (Follower::start(&w.lab, "primary"), Follower::start(&w.lab, "async"));
    // What was before: the lab was started twice, and is in PAIR since.
    for f in [&mut events, &mut far] {
        (0..2).for_each(|_| drop(f.next("that it was started", |e| e["kind"] == "node-start")));
        f.next("PAIR", |e| e["kind"] == "pair" && e["pair"] == "async" && e["to"] == "PAIR");
    }
    w.lab.cut("async");
    let lost = events.next("PAIR to PSUE", change("async", "PAIR", "PSUE"));
    assert_eq!(
        (&lost["fault"], &lost["site"], &lost["group"]),
        (&"link-lost".into(), &"primary".into(), &"lab".into())
    );
    assert!(lost["reason"].as_str().is_some_and(|r| !r.is_empty()) && lost["position"].as_u64() > Some(0), "{lost}");
    far.next("PAIR to PSUE", change("async", "PAIR", "PSUE"));
    for i in 0..20 {
        std::fs::write(w.lab.mnt().join(format!("during{i}")), vec![i; 70_000]).unwrap();
    }
    let s = w.until("primary", "PSUE with a growing lag", |s| {
        s.state("async") == "PSUE"
            && s.pair("lag_entries", "async") > Some(20.0)
            && s.pair("lag_bytes", "async") > Some(20.0 * 70_000.0)
            && s.pair("lag_seconds", "async") > Some(2.0)
            && s.pair("out_of_sync_files", "async") >= Some(20.0)
    });
    assert!(s.pair("out_of_sync_bytes", "async") >= Some(20.0 * 65_536.0), "{s:#?}");
    let n = s.get("kagami_pair_faults_total", &["pair=\"async\"", "reason=\"link-lost\""]).unwrap();
    assert_eq!(n, faults + 1.0, "one outage is one fault");
    assert_eq!((s.state("sync"), s.pair("lag_seconds", "sync")), ("PAIR".into(), Some(0.0)));
    let s = w.until("async", "a lag of four seconds", |s| s.pair("lag_seconds", "async") > Some(4.0));
    assert_eq!(s.state("async"), "PSUE");
    let (status, body) = w.get("async", "/replica?group=lab&lag=4s");
    assert_eq!(status, 503, "{body}");
    assert_eq!(w.get("async", "/replica?group=lab&lag=1h").0, 200, "it is a point of the order all the same");
    let (status, body) = w.get("async", "/healthz");
    assert!(status == 200 && body.contains("is in PSUE"), "a peer that is away is no fault of this node: {body}");

    // Back: by a resync or by catching up, with what it cost, and everything as before.
    w.lab.join("async");
    events.next("a copy", |e| e["kind"] == "copy-begin" && e["pair"] == "async");
    let done = events.next("its end", |e| e["kind"] == "copy-end" && e["pair"] == "async");
    assert!(done["stats"]["bytes_copied"].as_u64() >= Some(20 * 70_000), "{done}");
    events.next("COPY to PAIR", change("async", "COPY", "PAIR"));
    assert!(events.seen.iter().any(change("async", "PSUE", "COPY")), "{:#?}", events.seen);
    w.until("primary", "PAIR without lag", calm);
    w.until("async", "PAIR without lag", calm);
    assert_eq!(w.get("async", "/replica?group=lab&lag=4s").0, 200);
    assert_eq!(w.scrape("primary").pair("out_of_sync_files", "async"), Some(0.0));

    // Comparisons, too; and the numbers have no gap.
    assert!(w.lab.at("primary", &["verify", "lab", "async"]).status.success());
    let e = events.next("a comparison", |e| e["kind"] == "verify");
    assert_eq!(e["to"], "equal");
    assert_eq!(w.scrape("primary").pair("verify_differences", "async"), Some(0.0));
    let numbers: Vec<u64> = events.seen.iter().map(|e| e["n"].as_u64().unwrap()).collect();
    assert!(numbers.windows(2).all(|n| n[0] + 1 == n[1]), "{numbers:?}");

    // The log outlives its node, and is read without it.
    w.lab.kill("async");
    let out = w.lab.at("async", &["events", "lab", "--since", "1h"]);
    let said = text(&out.stdout);
    assert!(out.status.success() && said.contains("PAIR -> PSUE") && said.contains("node-start"), "{said}");
    assert_eq!(text(&w.lab.at("async", &["events", "--since", "2099-01-01"]).stdout), "");
    assert_eq!(w.lab.at("async", &["events", "--since", "never"]).status.code(), Some(2));
    w.lab.down();
}

/// A thread of a node that stands still until this is dropped.
struct Stopped(i32);

impl Stopped {
    fn thread(node: i32, name: &str) -> Stopped {
        let tasks = std::fs::read_dir(format!("/proc/{node}/task")).unwrap().flatten();
        let comm = |t: &i32| std::fs::read_to_string(format!("/proc/{node}/task/{t}/comm")).unwrap_or_default();
        let found = tasks.filter_map(|t| t.file_name().to_str()?.parse().ok()).find(|t| comm(t).trim() == name);
        let tid: i32 = found.unwrap_or_else(|| panic!("node {node} has no thread {name}"));
        // SAFETY: plain numbers; the thread is seized and interrupted, and let go when this is dropped or we end.
        unsafe {
            assert_eq!(libc::ptrace(libc::PTRACE_SEIZE, tid, 0, 0), 0, "{}", std::io::Error::last_os_error());
            assert_eq!(libc::ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0), 0);
            let mut status = 0;
            assert_eq!(libc::waitpid(tid, &mut status, libc::__WALL), tid);
        }
        Stopped(tid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, 0, 0) };
    }
}

/// MS-19, G9: the thread that applies stands still while links, pings and acknowledgements go on. Whether something was
/// written or not, the seconds grow at both ends, and are 0 again when it goes on.
#[test]
fn g9_the_lag_grows_at_both_ends_while_only_the_applying_stands_still() {
    if !support::is_root() {
        support::skipped("g9_the_lag_grows", "holding a thread of another process needs root");
        return;
    }
    let w = Watched::up(&["primary", "sync"]);
    let lag = |site: &str| w.scrape(site).pair("lag_seconds", "sync").unwrap();
    let calm = |s: &Scraped| s.state("sync") == "PAIR" && s.pair("lag_seconds", "sync") == Some(0.0);
    for site in ["primary", "sync"] {
        w.until(site, "PAIR without lag", calm);
    }
    // With nothing to apply: only the beat is missing.
    let held = Stopped::thread(w.lab.pid("sync").unwrap(), "applier");
    for site in ["primary", "sync"] {
        let s = w.until(site, "a lag of five seconds", |s| s.pair("lag_seconds", "sync") > Some(5.0));
        assert_eq!((s.pair("lag_entries", "sync"), s.state("sync").as_str()), (Some(0.0), "PAIR"));
        let now = lag(site);
        w.until(site, "a longer lag", |s| s.pair("lag_seconds", "sync") > Some(now + 1.0));
    }
    assert_eq!(w.get("sync", "/replica?lag=4s").0, 503);
    // What is written is answered, for it is received, and is missing in the tree.
    std::fs::write(w.lab.mnt().join("f"), "x").unwrap();
    for site in ["primary", "sync"] {
        w.until(site, "entries that are missing", |s| {
            s.pair("lag_entries", "sync") > Some(0.0)
                && s.pair("lag_bytes", "sync") == Some(0.0)
                && s.pair("lag_seconds", "sync") > Some(2.0)
        });
    }
    drop(held);
    for site in ["primary", "sync"] {
        w.until(site, "PAIR without lag", |s| calm(s) && s.pair("lag_entries", "sync") == Some(0.0));
    }
    w.lab.wait(60);
    w.lab.assert_trees_equal();
    w.lab.down();
}

/// A9: whatever is sent to the port, the node goes on, and other questions are answered.
#[test]
fn a9_hostile_clients_of_the_metrics_port_harm_nothing() {
    let w = Watched::up(&["primary", "sync"]);
    let connect = || {
        let c = TcpStream::connect(w.addr("primary")).unwrap();
        c.set_read_timeout(Some(SOON)).unwrap();
        c
    };
    let threads = |pid: i32| std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().count();
    let pid = w.lab.pid("primary").unwrap();
    let before = threads(pid);

    let ask = |request: &[u8]| {
        let mut c = connect();
        let _ = c.write_all(request);
        answer(&mut c)
    };
    assert_eq!(ask(b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello").0, 405);
    assert_eq!(ask(b"DELETE / HTTP/1.1\r\n\r\n").0, 405);
    assert_eq!(ask(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n").0, 400);
    assert_eq!(ask(b"GET /../../etc/passwd HTTP/1.1\r\n\r\n").0, 404);
    let mut long = b"GET /".to_vec();
    long.resize(20_000, b'a');
    assert_eq!(ask(&long).0, 431);
    // A head without an end: given up at its bound, long before all of it was sent.
    let mut c = connect();
    c.set_write_timeout(Some(SOON)).unwrap();
    let sent = (0..4096).take_while(|_| c.write_all(&[b'x'; 4096]).is_ok()).count();
    assert!(sent < 4096, "16 MiB of a request were taken");
    drop(c);

    // Slow ones take every place; each has its time, and then there is room again.
    let mut slow: Vec<TcpStream> = (0..64).map(|_| connect()).collect();
    slow.iter_mut().for_each(|c| drop(c.write_all(b"GET /met")));
    let begun = Instant::now();
    let mut c = connect();
    let (status, body) = answer(&mut c);
    assert!(status == 503 && body.contains("connections"), "told at once: {status} {body}");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert!(threads(pid) <= before + 40, "{} threads, {before} before", threads(pid));
    // The volume does not notice.
    std::fs::write(w.lab.mnt().join("meanwhile"), "x").unwrap();
    w.lab.wait(30);
    let end = Instant::now() + SOON;
    loop {
        slow.iter_mut().for_each(|c| drop(c.write_all(b"r")));
        let mut c = connect();
        let _ = c.write_all(b"GET /healthz HTTP/1.1\r\n\r\n");
        if answer(&mut c).0 == 200 {
            break;
        }
        assert!(Instant::now() < end, "slow clients hold the port for longer than their time");
        std::thread::sleep(Duration::from_millis(200));
    }
    drop(slow);
    assert_eq!(w.get("primary", "/healthz").0, 200);
    assert_eq!(w.lab.pid("primary"), Some(pid));

    // An address of another node: said, and the volumes are served all the same.
    w.lab.ok("down", &[]);
    let file = w.lab.config("sync");
    let text = std::fs::read_to_string(&file).unwrap();
    let (mine, other) = (w.ports["sync"].to_string(), w.ports["primary"].to_string());
    std::fs::write(&file, text.replace(&mine, &other)).unwrap();
    w.lab.ok("up", &[]);
    let said = w.lab.status("sync")["metrics"].as_str().unwrap().to_owned();
    assert!(said.starts_with("not served: "), "{said}");
    let out = Command::new(support::lab::kagami().get_program()).arg("-c").arg(&file).arg("status").output().unwrap();
    assert!(support::proc::text(&out.stdout).contains("metrics are not served"), "{out:?}");
    w.lab.down();
}
