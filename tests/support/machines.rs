//! Three machines' networks: a namespace for each site with a link to each other one, of which each direction can be cut.
//! The nodes and their mounts are on this machine; everything is gone with the test.

use super::proc;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);
/// The sites: the ends of the sync pair, and the third one.
pub const SITES: [&str; 3] = ["tokyo", "osaka", "kyoto"];

/// What the third voter is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Third {
    /// A third site.
    Site,
    /// An etcd in its place.
    Etcd,
}

/// What the site files say.
#[derive(Clone, Copy)]
pub struct Setup {
    pub third: Third,
    /// Automatic takeover with this `detect`; `None`: by order.
    pub detect_s: Option<u64>,
    /// `data` or `never`.
    pub fence: &'static str,
    pub write_through: bool,
    /// The sites, in their order, at which the volume is to be mounted.
    pub mounts: usize,
    /// Each site dials the others by a port of its own machine: [`PROXY_PORT`] and the number of the other site.
    pub proxied: bool,
}

/// First of the ports on which a test's own proxy listens, at each site.
pub const PROXY_PORT: u16 = 7500;

/// The machines.
pub struct Net {
    holders: Vec<Child>,
    nodes: Vec<Option<Child>>,
    temp: tempfile::TempDir,
    setup: Setup,
    _watcher: Option<Child>,
}

/// Address of `site` on its link to `other`.
pub fn address(site: usize, other: usize) -> String {
    format!("10.77.{}.{}", site + other, site + 1)
}

impl Net {
    /// As [`Net::up_with`], with automatic takeover.
    pub fn up(test: &str, third: Third, detect_s: u64) -> Option<Net> {
        let setup =
            Setup { third, detect_s: Some(detect_s), fence: "never", write_through: true, mounts: 2, proxied: false };
        Net::up_with(test, setup)
    }

    /// `None`, and a line that says so, where this user or this kernel cannot have it.
    pub fn up_with(test: &str, setup: Setup) -> Option<Net> {
        if !super::is_root() {
            super::skipped(test, "needs root: network namespaces");
            return None;
        }
        let temp = tempfile::Builder::new().prefix("net-").tempdir_in(super::base_dir()).expect("a directory");
        let holder = || {
            let mut c = Command::new("unshare");
            c.args(["-n", "sleep", "infinity"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            proc::die_with_parent(&mut c).spawn().expect("unshare")
        };
        let holders: Vec<Child> = SITES.iter().map(|_| holder()).collect();
        let _watcher = super::lab::watch(temp.path(), temp.path());
        let mut net = Net { holders, nodes: vec![None, None, None], temp, setup, _watcher };
        let up = proc::wait_until(Duration::from_secs(10), || {
            net.holders.iter().all(|h| proc::program_of(h.id() as i32) == "sleep")
        });
        if !up {
            super::skipped(test, "this kernel gives no network namespaces");
            return None;
        }
        if let Err(why) = net.wire() {
            super::skipped(test, &format!("no links between network namespaces: {why}"));
            return None;
        }
        net.files();
        for site in 0..3 {
            net.start(site);
        }
        Some(net)
    }

    fn wire(&self) -> Result<(), String> {
        let go = |site: usize, line: String| {
            let out = self.run(site, &line);
            if out.status.success() { Ok(()) } else { Err(format!("{line}: {}", proc::text(&out.stderr))) }
        };
        for site in 0..3 {
            go(site, "ip link set lo up".into())?;
            go(
                site,
                "nft add table inet cut; nft 'add chain inet cut in { type filter hook input priority 0; }'".into(),
            )?;
        }
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            go(a, format!("ip link add l{b} type veth peer name l{a} netns {}", self.holders[b].id()))?;
            for (site, other) in [(a, b), (b, a)] {
                let at = address(site, other);
                go(site, format!("ip addr add {at}/24 dev l{other} && ip link set l{other} up"))?;
            }
        }
        Ok(())
    }

    /// A shell's line in the network of a site.
    pub fn run(&self, site: usize, line: &str) -> Output {
        proc::run(self.inside(site, "sh").args(["-c", line]), LIMIT)
    }

    fn inside(&self, site: usize, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut c = Command::new("nsenter");
        c.arg(format!("--net=/proc/{}/ns/net", self.holders[site].id())).arg("--").arg(program);
        c
    }

    pub fn dir(&self, site: usize) -> PathBuf {
        self.temp.path().join(SITES[site])
    }

    pub fn mnt(&self, site: usize) -> PathBuf {
        self.dir(site).join("mnt")
    }

    pub fn state_dir(&self, site: usize) -> PathBuf {
        self.dir(site).join("state")
    }

    pub fn tree(&self, site: usize) -> PathBuf {
        self.dir(site).join("region/tree")
    }

    fn config(&self, site: usize) -> PathBuf {
        self.dir(site).join("site.toml")
    }

    /// The sites that have a node.
    pub fn sites(&self) -> usize {
        if self.setup.third == Third::Site { 3 } else { 2 }
    }

    fn files(&self) {
        let n = self.sites();
        for (site, name) in SITES.iter().enumerate().take(n) {
            std::fs::create_dir_all(self.mnt(site)).expect("mkdir");
            std::fs::write(self.config(site), format!("[node]\nsite = {name:?}\n")).expect("write");
        }
        let key = |site: usize| {
            let out = proc::run_ok(super::lab::kagami().arg("--config").arg(self.config(site)).arg("keygen"), LIMIT);
            out.split_whitespace().find(|w| w.starts_with("kgm1:")).expect("a key").to_owned()
        };
        let keys: Vec<String> = (0..n).map(key).collect();
        let arbiter = match self.setup.third {
            Third::Site => format!("{{ site = {:?} }}", SITES[2]),
            Third::Etcd => "ETCD".into(),
        };
        for (site, name) in SITES.iter().enumerate().take(n) {
            let mut o = format!("[node]\nsite = {name:?}\nlisten = [\"0.0.0.0:7401\"]\n");
            for other in (0..n).filter(|o| *o != site) {
                let addr = match self.setup.proxied {
                    true => format!("127.0.0.1:{}", PROXY_PORT + other as u16),
                    false => format!("{}:7401", address(other, site)),
                };
                o += &format!("[[peer]]\nsite = {:?}\naddr = {addr:?}\nkey = {:?}\n", SITES[other], keys[other]);
            }
            let Setup { detect_s, fence, write_through, mounts, .. } = self.setup;
            o += &format!(
                "[[group]]\nname = \"lab\"\nprimary = \"tokyo\"\nfence = {fence:?}\nwrite_through = {write_through}\n"
            );
            if let Some(s) = detect_s {
                let etcd = format!("{{ etcd = [\"http://{}:2379\"] }}", address(2, site));
                let arbiter = arbiter.replace("ETCD", &etcd);
                o += &format!("takeover = \"auto\"\narbiter = {arbiter}\ndetect = {s}\n");
            }
            o += "[[group.volume]]\nname = \"vol0\"\nregion = \"region\"\n";
            if site < mounts {
                o += "mount = \"mnt\"\n";
            }
            for (name, mode, a, b) in [("sync", "sync", 0, 1), ("async", "async", 0, 2), ("relay", "async", 1, 2)] {
                if a < n && b < n {
                    let (a, b) = (SITES[a], SITES[b]);
                    o += &format!("[[group.pair]]\nname = {name:?}\nmode = {mode:?}\nsites = [{a:?}, {b:?}]\n");
                }
            }
            o += "[limits]\nlink_timeout_ms = 2000\nheartbeat_ms = 400\n";
            std::fs::write(self.config(site), o).expect("write");
        }
    }

    /// Starts a node, or the etcd.
    pub fn start(&mut self, site: usize) {
        let mut c = match (site, self.setup.third) {
            (2, Third::Etcd) => {
                let mut c = self.inside(2, "etcd");
                c.arg("--data-dir").arg(self.temp.path().join("etcd"));
                c.args(["--listen-client-urls", "http://0.0.0.0:2379"]);
                c.args(["--advertise-client-urls", "http://127.0.0.1:2379", "--log-level", "error"]);
                c
            }
            _ => {
                let mut c = self.inside(site, super::lab::kagami().get_program());
                c.arg("--config").arg(self.config(site)).arg("node");
                c.arg("--log-file").arg(self.dir(site).join("node.log"));
                c.arg("--pid-file").arg(self.dir(site).join("node.pid"));
                c
            }
        };
        c.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.nodes[site] = Some(proc::die_with_parent(&mut c).spawn().expect("a node"));
    }

    /// A process that holds the network of a site.
    pub fn holder(&self, site: usize) -> u32 {
        self.holders[site].id()
    }

    /// The node of a site, while it runs.
    pub fn pid(&self, site: usize) -> Option<i32> {
        self.nodes[site].as_ref().map(|c| c.id() as i32)
    }

    /// kill -9
    pub fn kill(&mut self, site: usize) {
        if let Some(mut c) = self.nodes[site].take() {
            let _ = c.kill();
            let _ = c.wait();
        }
    }

    /// SIGTERM, and its end.
    pub fn end(&mut self, site: usize) {
        if let Some(mut c) = self.nodes[site].take() {
            proc::kill(c.id() as i32, libc::SIGTERM);
            assert!(proc::wait_timeout(&mut c, LIMIT).is_some(), "{} does not end", SITES[site]);
        }
    }

    /// Drops what comes from one site at another.
    pub fn cut(&self, from: usize, to: usize) {
        let out = self.run(to, &format!("nft add rule inet cut in ip saddr {} drop", address(from, to)));
        assert!(out.status.success(), "nft: {}", proc::text(&out.stderr));
    }

    /// Drops what a site answers to another one that has dialled it.
    pub fn mute(&self, from: usize, to: usize) {
        let rule = format!("nft add rule inet cut in ip saddr {} tcp sport 7401 drop", address(from, to));
        let out = self.run(to, &rule);
        assert!(out.status.success(), "nft: {}", proc::text(&out.stderr));
    }

    pub fn cut_both(&self, a: usize, b: usize) {
        self.cut(a, b);
        self.cut(b, a);
    }

    pub fn heal(&self) {
        for site in 0..3 {
            let out = self.run(site, "nft flush chain inet cut in");
            assert!(out.status.success(), "nft: {}", proc::text(&out.stderr));
        }
    }

    /// What all links have carried so far, bytes: each end counts what it received.
    pub fn carried(&self) -> u64 {
        let received = |h: &Child| -> u64 {
            let text = std::fs::read_to_string(format!("/proc/{}/net/dev", h.id())).expect("net/dev");
            let links = text.lines().filter_map(|l| l.trim().split_once(':')).filter(|(name, _)| name.starts_with('l'));
            let real = links.filter(|(name, _)| *name != "lo");
            real.filter_map(|(_, n)| n.split_whitespace().next()?.parse::<u64>().ok()).sum()
        };
        self.holders.iter().map(received).sum()
    }

    /// `kagami ARGS` at a site, not started yet.
    pub fn command(&self, site: usize, args: &[&str]) -> Command {
        let mut c = super::lab::kagami();
        c.arg("--config").arg(self.config(site)).args(args);
        c
    }

    /// `kagami ARGS` at a site.
    pub fn at(&self, site: usize, args: &[&str]) -> Output {
        proc::run(&mut self.command(site, args), LIMIT)
    }

    /// The group as a site sees it; null while its node does not answer.
    pub fn group(&self, site: usize) -> serde_json::Value {
        let out = self.at(site, &["status", "--json"]);
        let v: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
        v["groups"][0].clone()
    }

    pub fn is_primary(&self, site: usize) -> bool {
        self.group(site)["role"] == "primary"
    }

    /// Until the sync pair is in PAIR, everything is everywhere, and the end that receives may take over; gives the primary.
    #[track_caller]
    pub fn healthy(&self, limit: Duration) -> usize {
        let end = Instant::now() + limit;
        loop {
            for site in 0..2 {
                let (g, other) = (self.group(site), self.group(1 - site));
                let pairs = g["pairs"].as_array().cloned().unwrap_or_default();
                let whole = pairs.iter().all(|p| p["state"] == "PAIR" && p["lag"]["entries"] == 0);
                let voters = g["arbiter"]["voters"].as_array().cloned().unwrap_or_default();
                let fit = voters.len() == 3 && voters.iter().all(|v| v["other_end_fit"] == true);
                if g["role"] == "primary" && other["role"] == "secondary" && !pairs.is_empty() && whole && fit {
                    return site;
                }
            }
            if Instant::now() > end {
                let all: Vec<_> = (0..self.sites()).map(|s| self.group(s)).collect();
                panic!("not well after {limit:?}: {all:#?}\n{}", self.logs());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The ends of the logs.
    pub fn logs(&self) -> String {
        let tail = |site: usize| {
            let log = std::fs::read(self.dir(site).join("node.log")).map(|b| proc::text(&b)).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            format!("--- {}\n{}\n", SITES[site], lines[lines.len().saturating_sub(40)..].join("\n"))
        };
        (0..self.sites()).map(tail).collect()
    }

    /// Where everything of it lies.
    pub fn path(&self) -> &Path {
        self.temp.path()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        (0..3).for_each(|s| self.kill(s));
        proc::unmount_below(self.temp.path());
        for h in &mut self.holders {
            let _ = h.kill();
            let _ = h.wait();
        }
        if let Some(w) = &mut self._watcher {
            drop(w.stdin.take());
            let _ = w.wait();
        }
    }
}

/// An etcd can be started here.
pub fn has_etcd() -> bool {
    ["/usr/bin/etcd", "/usr/local/bin/etcd"].iter().any(|p| Path::new(p).exists())
}
