//! The test bed of the hostile suite: one real node, "victim", with three groups, an honest peer, and a peer whose keys and
//! address the test has.
//!
//! ```text
//! good   victim (primary, mounted) ── sync ── honest       what must not be disturbed
//! prey   evil (primary)            ── sync ── victim       the test plays the primary
//! lure   victim (primary)          ── sync ── evil         the test plays the secondary
//! ```
//! After each case [`Bed::check`] looks at what G10 promises: the node is up and serves, is bounded, is unchanged, and said
//! what happened.

use super::support::proc::{Use, usage};
use super::support::{self, proc};
use kagami::base::{DirId, Epoch, Name, Result, Seq, VolId, time};
use kagami::format::frame::Header;
use kagami::format::msg::{Hello, Msg, Offered, VERSION, Welcome, Wish};
use kagami::format::op::{Attr, Entry, NodeKind, Op};
use kagami::net::{Addr, FrameReader, FrameWriter, Identity, Link, PeerKey};
use kagami::node::control::{self, Request};
use kagami::store::head::ConfigDef;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

pub const SOON: Duration = Duration::from_secs(30);
/// Time-outs of the node, milliseconds.
pub const LINK_TIMEOUT_MS: u64 = 3000;
const GROUP_ID: u64 = 0x6576_696c;
/// What the node may have more than before the first case: memory, bytes (messages of the largest size at each of the door's
/// places, once decoded), descriptors and threads.
const MEMORY_MORE: u64 = 400 << 20;
const FDS_MORE: usize = 40;

/// A process that ends with the test.
struct Node(Child);

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub struct Bed {
    victim: Node,
    _honest: Node,
    temp: tempfile::TempDir,
    pub addr: Addr,
    pub port: u16,
    pub metrics: u16,
    pub key: PeerKey,
    pub evil: Identity,
    /// Where the test answers as the secondary of `lure`.
    pub lair: u16,
    pub chain: Vec<Epoch>,
    pub head: Seq,
    before: Use,
    digests: Vec<String>,
    welcome: Option<Welcome>,
    logged: usize,
    pub cases: usize,
    writes: usize,
    pub slowest: (Duration, String),
}

/// An open link with the node.
pub struct Peer {
    pub r: FrameReader,
    pub w: FrameWriter,
    buf: Vec<u8>,
}

impl Peer {
    pub fn new(link: Link) -> Peer {
        let (mut r, w) = link.split();
        r.set_read_timeout(Some(SOON)).expect("a time-out");
        w.set_write_timeout(Some(SOON)).expect("a time-out");
        Peer { r, w, buf: Vec::new() }
    }

    pub fn say(&mut self, m: &Msg) -> Result<()> {
        self.w.send(&m.frame()?)
    }

    /// The next message of the node.
    pub fn hear(&mut self) -> Result<Msg> {
        let h = self.frame()?;
        Msg::parse(&self.buf, &h)
    }

    fn frame(&mut self) -> Result<Header> {
        self.r.recv(&mut self.buf)
    }

    /// The next message for which `wanted` gives something; what else comes is passed over.
    pub fn await_msg<T>(&mut self, mut wanted: impl FnMut(&Msg) -> Option<T>) -> Result<T> {
        loop {
            if let Some(t) = wanted(&self.hear()?) {
                return Ok(t);
            }
        }
    }

    /// Hears the node out until it ends the link; gives its reason, if it said one.
    #[track_caller]
    pub fn end(&mut self, what: &str) -> String {
        let until = Instant::now() + SOON;
        let mut said = String::new();
        loop {
            match self.hear() {
                Ok(Msg::Suspend { reason }) => said = reason,
                Ok(Msg::Reject { text, .. }) => said = text,
                Ok(_) => {}
                Err(e) if e.kind == kagami::base::Kind::Timeout => {}
                Err(_) => return said,
            }
            assert!(Instant::now() < until, "{what}: the node goes on with it");
        }
    }
}

pub fn time() -> time::Time {
    time::Time { sec: 1_764_000_000, nsec: 5 }
}

pub fn file(name: impl Into<Vec<u8>>) -> Name {
    Name::new(DirId::ROOT, name)
}

pub fn create(at: Name) -> Op {
    Op::Create { at, kind: NodeKind::File, attr: attr(), pmtime: time() }
}

pub fn attr() -> Attr {
    Attr { mode: 0o644, mtime: time(), ..Attr::default() }
}

/// The frame of an entry.
pub fn entry(seq: u64, op: Op, data: &[u8]) -> Vec<u8> {
    entry_of(VolId(0), seq, op, data)
}

pub fn entry_of(vol: VolId, seq: u64, op: Op, data: &[u8]) -> Vec<u8> {
    Entry { seq: Seq(seq), vol, time: time(), op }.frame(data).expect("an entry")
}

fn free_ports<const N: usize>() -> [u16; N] {
    let held: Vec<TcpListener> = (0..N).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
    std::array::from_fn(|i| held[i].local_addr().expect("a port").port())
}

impl Bed {
    pub fn up() -> Bed {
        support::sys::raise_file_limit();
        let temp = tempfile::Builder::new().prefix("evil-").tempdir_in(support::base_dir()).expect("a directory");
        let [victim, honest, lair, metrics] = free_ports();
        let evil = Identity::generate("evil").expect("an identity");
        let dir = |site: &str| temp.path().join(site);
        let config = |site: &str| dir(site).join("site.toml");
        let kagami = |site: &str, args: &[&str]| {
            let mut c = support::lab::kagami();
            proc::run_ok(c.arg("--config").arg(config(site)).args(args), SOON)
        };
        let mut keys = Vec::new();
        for site in ["victim", "honest"] {
            std::fs::create_dir_all(dir(site).join("mnt")).expect("mkdir");
            std::fs::write(config(site), format!("[node]\nsite = {site:?}\n")).expect("a site file");
            let said = kagami(site, &["keygen"]);
            keys.push(said.split_whitespace().find(|w| w.starts_with("kgm1:")).expect("a key").to_owned());
        }
        std::fs::create_dir_all(temp.path().join("outside")).expect("mkdir");
        std::fs::write(temp.path().join("outside/secret"), b"of nobody here").expect("write");
        let group = |name: &str, primary: &str, other: &str, mount: &str| {
            format!(
                "[[group]]\nname = {name:?}\nprimary = {primary:?}\n[[group.volume]]\nname = \"vol0\"\nregion = \"region-{name}\"\n{mount}[[group.pair]]\nname = \"sync\"\nmode = \"sync\"\nsites = [{primary:?}, {other:?}]\n"
            )
        };
        let peer = |site: &str, port: u16, key: &str| {
            format!("[[peer]]\nsite = {site:?}\naddr = \"127.0.0.1:{port}\"\nkey = {key:?}\n")
        };
        let limits = format!(
            "[limits]\nlink_timeout_ms = {LINK_TIMEOUT_MS}\nheartbeat_ms = 500\nprogress_timeout_ms = {LINK_TIMEOUT_MS}\n"
        );
        let node = |site: &str, port: u16, more: &str| {
            format!("[node]\nsite = {site:?}\nlisten = [\"127.0.0.1:{port}\", \"unix:run/node.sock\"]\n{more}")
        };
        let good = group("good", "victim", "honest", "mount = \"mnt\"\n");
        let text = node("victim", victim, &format!("metrics = \"127.0.0.1:{metrics}\"\n"))
            + &peer("honest", honest, &keys[1])
            + &peer("evil", lair, &evil.key().to_string())
            + &good
            + &group("prey", "evil", "victim", "")
            + &group("lure", "victim", "evil", "")
            + &limits;
        std::fs::write(config("victim"), text).expect("a site file");
        let text = node("honest", honest, "") + &peer("victim", victim, &keys[0]) + &good + &limits;
        std::fs::write(config("honest"), text).expect("a site file");
        let start = |site: &str| {
            kagami(site, &["region", "create"]);
            let mut c = support::lab::kagami();
            c.arg("--config").arg(config(site)).arg("node").arg("--log-file").arg(dir(site).join("node.log"));
            c.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            Node(proc::die_with_parent(&mut c).spawn().expect("a node"))
        };
        let nodes = (start("honest"), start("victim"));
        let addr: Addr = format!("127.0.0.1:{victim}").parse().expect("an address");
        let mut bed = Bed {
            victim: nodes.1,
            _honest: nodes.0,
            temp,
            addr,
            port: victim,
            metrics,
            key: keys[0].parse().expect("a key"),
            evil,
            lair,
            // Fuzzed epochs that a case leaves behind are older.
            chain: vec![Epoch { number: 1 << 40, site: "evil".into(), random: 0xe1, parent: Seq(0), over: 0 }],
            head: Seq(0),
            before: Use { memory: 0, fds: 0, threads: 0 },
            digests: Vec::new(),
            welcome: None,
            logged: 0,
            cases: 0,
            writes: 0,
            slowest: (Duration::ZERO, String::new()),
        };
        bed.serves("start");
        bed.first_copy();
        bed.settle();
        bed.before = bed.usage();
        bed
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.temp.path().join(below)
    }

    pub fn tree(&self, group: &str) -> PathBuf {
        self.path("victim").join(format!("region-{group}/tree"))
    }

    pub fn usage(&self) -> Use {
        usage(self.victim.0.id())
    }

    pub fn state_dir(&self) -> PathBuf {
        self.path("victim/state")
    }

    /// The node's log since the last case began.
    pub fn news(&self) -> String {
        let all = std::fs::read(self.path("victim/node.log")).unwrap_or_default();
        proc::text(all.get(self.logged..).unwrap_or_default())
    }

    fn tail(&self) -> String {
        let all = std::fs::read(self.path("victim/node.log")).unwrap_or_default();
        proc::text(&all[all.len().saturating_sub(6000)..])
    }

    /// The pair of a group, as the node's status has it.
    pub fn pair(&self, group: &str) -> Option<serde_json::Value> {
        pair_of(&self.state_dir(), group)
    }

    /// The mount takes a write, and the honest peer has it.
    #[track_caller]
    fn serves(&mut self, case: &str) {
        let mut said = String::new();
        let paired = proc::wait_until(SOON, || {
            let pair = self.pair("good").unwrap_or_default();
            said = pair.to_string();
            pair["state"] == "PAIR"
        });
        assert!(paired, "{case}: the honest pair is not in PAIR: {said}\n{}", self.tail());
        self.writes += 1;
        let probe = self.path("victim/mnt/probe");
        let text = format!("{case} {}", self.writes);
        let written = std::fs::write(&probe, &text).and_then(|()| std::fs::read_to_string(&probe));
        assert_eq!(written.ok().as_deref(), Some(text.as_str()), "{case}: the mount\n{}", self.tail());
        let there = self.path("honest/region-good/tree/probe");
        let has = || std::fs::read_to_string(&there).is_ok_and(|t| t == text);
        assert!(proc::wait_until(SOON, has), "{case}: the honest peer has not what was written\n{}", self.tail());
    }

    /// Takes what is there now for what must stay.
    pub fn settle(&mut self) {
        self.digests = self.digest();
        self.welcome = Some(self.ask());
    }

    /// Takes what is there of `prey` for what must stay; of everything else what was there before.
    pub fn settle_prey(&mut self) {
        self.digests[0] = self.digest().swap_remove(0);
        self.welcome = Some(self.ask());
    }

    fn digest(&self) -> Vec<String> {
        let of = |p: &Path| support::tree_digest(p).unwrap_or_else(|e| format!("{}: {e}", p.display()));
        vec![of(&self.tree("prey")), of(&self.tree("lure")), of(&self.path("outside"))]
    }

    /// What the node has of `prey`, by a greeting that begins nothing.
    #[track_caller]
    pub fn ask(&self) -> Welcome {
        let (_p, answer) = self.greet(|h| h.wish = Wish::Ask).expect("a link");
        match answer {
            Msg::Welcome(w) => w,
            other => panic!("{other:?}"),
        }
    }

    /// Says that a case begins.
    pub fn begin(&mut self) {
        self.logged = std::fs::metadata(self.path("victim/node.log")).map_or(0, |m| m.len() as usize);
    }

    /// After a case: up, serving, bounded, unchanged, and it was said.
    #[track_caller]
    pub fn check(&mut self, case: &str, begun: Instant, said: &[&str]) {
        self.cases += 1;
        assert!(matches!(self.victim.0.try_wait(), Ok(None)), "{case}: the node ended\n{}", self.tail());
        let words = |b: &Bed| said.iter().all(|w| b.news().contains(w));
        assert!(proc::wait_until(SOON, || words(self)), "{case}: {said:?} is not said\n{}", self.news());
        assert!(!self.news().contains("panicked"), "{case}: {}", self.news());
        self.serves(case);
        assert_eq!(self.digest(), self.digests, "{case}: something changed\n{}", self.tail());
        let now = self.ask();
        assert_eq!(Some(&now), self.welcome.as_ref(), "{case}: the state changed\n{}", self.tail());
        self.bounded(case);
        let took = begun.elapsed();
        if took > Duration::from_secs(1) {
            println!("      {:4.1} s  {case}", took.as_secs_f64());
        }
        if took > self.slowest.0 {
            self.slowest = (took, case.to_owned());
        }
    }

    /// Memory, descriptors and threads are near what they were, at the latest when what was pushed out has gone.
    #[track_caller]
    pub fn bounded(&self, case: &str) {
        let near = |u: Use| {
            u.memory < self.before.memory + MEMORY_MORE
                && u.fds < self.before.fds + FDS_MORE
                && u.threads < self.before.threads + FDS_MORE
        };
        assert!(proc::wait_until(SOON, || near(self.usage())), "{case}: {:?} was {:?}", self.usage(), self.before);
    }

    pub fn dial(&self) -> Result<Link> {
        kagami::net::dial(&self.addr, &self.evil, Some(&self.key), SOON)
    }

    /// The greeting of the evil primary, as it ought to be.
    pub fn hello(&self) -> Hello {
        let def = ConfigDef { mount: Vec::new(), capacity: 0, emulation: "none".into() };
        Hello {
            version: VERSION,
            site: "evil".into(),
            group: "prey".into(),
            group_id: GROUP_ID,
            pair: "sync".into(),
            is_async: false,
            volumes: vec![Offered { name: "vol0".into(), port: "p0".into(), lu: 0, head: def.body().ok() }],
            chain: self.chain.clone(),
            head: self.head,
            wish: Wish::Link,
        }
    }

    /// Greets, with changes, and gives the answer.
    pub fn greet(&self, change: impl Fn(&mut Hello)) -> Result<(Peer, Msg)> {
        let mut p = Peer::new(self.dial()?);
        let mut hello = self.hello();
        change(&mut hello);
        p.say(&Msg::Hello(hello))?;
        let answer = p.hear()?;
        Ok((p, answer))
    }

    /// A session as the primary of `prey`.
    #[track_caller]
    pub fn session(&self) -> Peer {
        let (p, answer) = self.greet(|_| ()).expect("a link");
        assert!(matches!(answer, Msg::Welcome(_)), "{answer:?}");
        p
    }

    /// Brings the victim's replica of `prey` to a known point by a first copy: two files, two directories. A replica that
    /// stopped says so to every new link, and may be faster than the copy is announced: then it is tried again.
    #[track_caller]
    pub fn first_copy(&mut self) {
        let until = Instant::now() + SOON;
        while let Err(why) = self.try_first_copy() {
            assert!(Instant::now() < until, "a first copy: {why}\n{}", self.tail());
        }
    }

    fn try_first_copy(&mut self) -> std::result::Result<(), String> {
        // A history that goes on from whatever a case left there.
        let last = self.chain.last().expect("an epoch").number;
        let base = self.head.0.max(self.ask_loosely().map_or(0, |w| w.head.0)) + 10;
        self.chain =
            vec![Epoch { number: last + 1, site: "evil".into(), random: last + 1, parent: Seq(base), over: 0 }];
        self.head = Seq(base);
        // What earlier cases left is the copy's to remove; the test does it.
        for path in std::fs::read_dir(self.tree("prey")).into_iter().flatten().flatten().map(|e| e.path()) {
            let real_dir = path.symlink_metadata().is_ok_and(|m| m.is_dir());
            let _ = if real_dir { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        }
        let (mut p, answer) = self.greet(|_| ()).map_err(|e| e.to_string())?;
        let Msg::Welcome(_) = answer else { return Err(format!("{answer:?}")) };
        let ready = |p: &mut Peer, id: u64| {
            let r = p.await_msg(|m| match m {
                Msg::Ready { id: i } if *i == id => Some(Ok(())),
                Msg::Suspend { reason } => Some(Err(reason.clone())),
                _ => None,
            });
            r.unwrap_or_else(|e| Err(e.to_string()))
        };
        p.say(&Msg::Prepare { id: 2, from: Seq(0), bytes: 0, first_copy: true }).map_err(|e| e.to_string())?;
        ready(&mut p, 2)?;
        let mkdir = |id: u64, name: &str| Op::Mkdir { at: file(name), id: DirId(id), attr: dir_attr(), pmtime: time() };
        let inside = create(Name::new(DirId(100), "in"));
        for op in [create(file("f")), create(file("g")), mkdir(100, "d"), mkdir(101, "e"), inside] {
            p.w.send(&entry(0, op, b"")).map_err(|e| e.to_string())?;
        }
        let (base, epochs) = (self.head, self.chain.clone());
        p.say(&Msg::CopyDone { id: 3, base, whole: base, epochs }).map_err(|e| e.to_string())?;
        ready(&mut p, 3)
    }

    fn ask_loosely(&self) -> Option<Welcome> {
        match self.greet(|h| h.wish = Wish::Ask) {
            Ok((_, Msg::Welcome(w))) => Some(w),
            _ => None,
        }
    }
}

/// The pair of a group, as the status of the node in `state_dir` has it.
pub fn pair_of(state_dir: &Path, group: &str) -> Option<serde_json::Value> {
    let status = control::call_within(state_dir, &Request::Status {}, Some(SOON), |_| ()).ok()?;
    let groups = status["groups"].as_array()?;
    groups.iter().find(|g| g["name"] == group).map(|g| g["pairs"][0].clone())
}

fn dir_attr() -> Attr {
    Attr { mode: 0o755, mtime: time(), ..Attr::default() }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.tail());
        }
        let _ = self.victim.0.kill();
        let _ = self.victim.0.wait();
        proc::unmount_below(self.temp.path());
    }
}
