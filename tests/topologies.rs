//! Shapes beyond one volume and one pair: several volumes in one order (MS-4, MS-7), the cascade from the site that took over
//! (MS-10, MS-12, MS-25), one leg that feeds both pairs (MS-9), several groups and peers at one site (MS-1).

use crate::support;

use serde_json::Value;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use support::{Lab, assert_same, proc};

const LONG: Duration = Duration::from_secs(60);
/// Files of each volume.
const FILES: usize = 150;

fn mounts(lab: &Lab) -> [PathBuf; 2] {
    [lab.mnt(), lab.dir().join("mnt1")]
}

fn trees(lab: &Lab, site: &str) -> [PathBuf; 2] {
    ["region", "region1"].map(|r| lab.site_dir(site).join(r).join("tree"))
}

#[track_caller]
fn equal(lab: &Lab, sites: &[&str]) {
    for site in &sites[1..] {
        for (a, b) in trees(lab, sites[0]).iter().zip(trees(lab, site)) {
            assert_same(a, &b);
        }
    }
}

/// Ten digits at the beginning of a file.
fn number(file: &Path) -> u64 {
    fs::read_to_string(file).unwrap_or_default().get(..10).and_then(|s| s.parse().ok()).unwrap_or(0)
}

/// Counts up, in the first volume and then in the second one, until a write fails. Gives the last number that was answered
/// in both.
struct Counter {
    answered: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<u64>,
}

impl Counter {
    fn start(mounts: [PathBuf; 2]) -> Counter {
        let answered = Arc::new(AtomicU64::new(0));
        let told = answered.clone();
        let open = |m: PathBuf| fs::File::options().create(true).truncate(false).write(true).open(m.join("count"));
        let files = mounts.map(|m| open(m).unwrap());
        let thread = std::thread::spawn(move || {
            for n in 1.. {
                for f in &files {
                    if f.write_all_at(format!("{n:010}").as_bytes(), 0).is_err() {
                        return n - 1;
                    }
                }
                told.store(n, Ordering::SeqCst);
            }
            0
        });
        Counter { answered, thread }
    }

    #[track_caller]
    fn reaches(&self, n: u64) {
        assert!(proc::wait_until(LONG, || self.answered.load(Ordering::SeqCst) >= n), "the writer stands still");
    }
}

/// Both volumes are at one point of the one order: the second counter is where the first one is, or one write behind.
#[track_caller]
fn one_point(dirs: &[PathBuf; 2], what: &str) -> u64 {
    let (a, b) = (number(&dirs[0].join("count")), number(&dirs[1].join("count")));
    assert!(a == b || a == b + 1, "{what}: {a} in the first volume, {b} in the second");
    b
}

/// What a pair's last copy at its primary end sent: files, bytes.
fn sent(lab: &Lab, site: &str, pair: &str) -> (u64, u64) {
    let p = lab.pair(site, pair);
    let n = |k: &str| p["last_resync"][k].as_u64().unwrap_or(u64::MAX);
    (n("files_copied"), n("bytes_copied"))
}

/// First copies that a site has begun.
fn first_copies(lab: &Lab, site: &str) -> usize {
    let out = lab.at(site, &["events", "--json"]);
    let lines = proc::text(&out.stdout);
    let all = lines.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok());
    all.filter(|e| e["kind"] == "copy-begin" && e["to"] == "first-copy").count()
}

/// Takes over with every volume mounted where the site file says, once the site knows that the primary is gone.
#[track_caller]
fn take_over(lab: &Lab, site: &str) {
    let mut said = String::new();
    let done = proc::wait_until(LONG, || {
        let out = lab.at(site, &["takeover", "lab"]);
        said = proc::text(&out.stderr);
        out.status.success()
    });
    assert!(done, "takeover at {site}: {said}\n{}", lab.log_tails());
    let mounted = lab.status(site)["groups"][0]["mounts"].as_array().map_or(0, Vec::len);
    assert_eq!(mounted, 2, "{:#}", lab.status(site));
}

fn fill(dirs: &[PathBuf]) {
    for (v, d) in dirs.iter().enumerate() {
        fs::create_dir(d.join("files")).unwrap();
        for i in 0..FILES {
            fs::write(d.join(format!("files/f{i}")), vec![v as u8 + 1; 20_000]).unwrap();
        }
    }
}

/// A cut and kill -9 leave both volumes at one point, at the sync site and at the async site; after the takeover at the sync
/// site the async one is fed from there, with the difference; and so it is after one at the async site.
#[test]
fn ms4_ms10_ms25_two_volumes_stay_at_one_point_and_the_cascade_sends_the_difference() {
    let lab = Lab::up(&["--volumes", "2", "--write-through"]);
    fill(&mounts(&lab));
    lab.wait(120);
    let copies = |site: &str| first_copies(&lab, site);
    let (of_primary, of_sync, of_async) = (copies("primary"), copies("sync"), copies("async"));

    // The async site is cut off in the middle.
    let counter = Counter::start(mounts(&lab));
    counter.reaches(300);
    lab.cut("async");
    let then = counter.answered.load(Ordering::SeqCst);
    counter.reaches(then + 100);
    let at_async = one_point(&trees(&lab, "async"), "cut off at async");
    assert!(at_async > 0, "nothing came to the async site");
    // The primary is lost in the middle.
    lab.kill_now("primary");
    let answered = counter.thread.join().unwrap();
    take_over(&lab, "sync");
    let at_sync = one_point(&trees(&lab, "sync"), "taken over at sync");
    assert!(at_sync >= answered, "{answered} were answered, {at_sync} are at the sync site");
    // The cascade: the async site gets what it lacks from there.
    lab.join("async");
    lab.wait_pair("sync", "relay", "PAIR", LONG);
    let (files, bytes) = sent(&lab, "sync", "relay");
    assert!(files <= 4 && bytes < 1 << 20, "{files} files, {bytes} bytes went to the async site");
    assert_eq!(copies("sync"), of_sync, "a first copy\n{}", lab.log_tails());
    assert!(proc::wait_until(LONG, || number(&trees(&lab, "async")[1].join("count")) == at_sync));
    equal(&lab, &["sync", "async"]);

    // Now the sync site is lost in the middle too: the async site goes on with what it has, at one point.
    let counter = Counter::start(mounts(&lab));
    counter.reaches(100);
    lab.kill_now("sync");
    let answered = counter.thread.join().unwrap();
    take_over(&lab, "async");
    let at_async = one_point(&trees(&lab, "async"), "taken over at async");
    println!("{answered} were answered, {at_async} are at the async site");
    for (i, t) in trees(&lab, "async").iter().enumerate() {
        assert_eq!(fs::read_dir(t.join("files")).unwrap().count(), FILES, "volume {i}");
    }
    fs::write(lab.mnt().join("files/f0"), "written at the async site").unwrap();
    // The others come back: what differs goes over, in both volumes, and nothing is walked (MS-25).
    lab.start("sync");
    lab.start("primary");
    for pair in ["relay", "async"] {
        lab.wait_pair("async", pair, "PAIR", LONG);
        let (files, bytes) = sent(&lab, "async", pair);
        assert!(files <= 6 && bytes < 1 << 20, "{pair}: {files} files, {bytes} bytes");
    }
    assert_eq!(copies("async"), of_async, "a first copy\n{}", lab.log_tails());
    assert_eq!(copies("primary"), of_primary);
    lab.wait(60);
    equal(&lab, &["async", "primary", "sync"]);
    lab.down();
}

/// MS-9: one leg feeds the sync and the async pair, first copies side by side while it is written to; then a second leg comes,
/// the first one goes, and both pairs are fed from the other without a copy.
#[test]
fn ms9_ms15_one_leg_feeds_both_pairs() {
    let lab = Lab::up(&[]);
    fill(&[lab.mnt()]);
    lab.wait(60);
    for site in ["sync", "async"] {
        let out = lab.at("primary", &["pair", "delete", "lab", site]);
        assert!(out.status.success(), "{}", proc::text(&out.stderr));
        lab.kill(site);
        fs::remove_dir_all(lab.site_dir(site).join("region")).unwrap();
        let out = lab.at(site, &["region", "create", "lab"]);
        assert!(out.status.success(), "{}", proc::text(&out.stderr));
        lab.start(site);
    }
    for site in ["sync", "async"] {
        let out = lab.at("primary", &["pair", "create", "lab", site]);
        assert!(out.status.success(), "{}", proc::text(&out.stderr));
    }
    for i in 0..FILES {
        fs::write(lab.mnt().join(format!("files/f{i}")), format!("meanwhile {i}")).unwrap();
    }
    lab.wait(60);
    lab.assert_trees_equal();
    let copies = first_copies(&lab, "primary");
    let leg = lab.site_dir("primary").join("region-b");
    let legs = |n: usize| {
        let s = lab.status("primary");
        let legs = s["groups"][0]["legs"].as_array().cloned().unwrap_or_default();
        legs.len() == n && legs.iter().all(|l| l["state"] == "synchronised")
    };
    let out = lab.at("primary", &["leg", "add", "lab", leg.to_str().unwrap()]);
    assert!(out.status.success(), "{}", proc::text(&out.stderr));
    assert!(proc::wait_until(LONG, || legs(2)), "{:#}\n{}", lab.status("primary"), lab.log_tails());
    let out = lab.at("primary", &["leg", "remove", "lab", "0"]);
    assert!(out.status.success(), "{}", proc::text(&out.stderr));
    assert!(proc::wait_until(LONG, || legs(1)), "{:#}", lab.status("primary"));
    fs::write(lab.mnt().join("files/f1"), "from the other leg").unwrap();
    lab.wait(60);
    for site in ["sync", "async"] {
        assert_same(&leg.join("tree"), &lab.tree(site));
        assert_eq!(fs::read_to_string(lab.tree(site).join("files/f1")).unwrap(), "from the other leg");
    }
    // That of the new leg is the only further one.
    assert_eq!(first_copies(&lab, "primary"), copies + 1, "{}", lab.log_tails());
    lab.down();
}

/// Nodes with site files of their own, on this machine.
struct Nodes {
    temp: tempfile::TempDir,
    running: Vec<(String, Child)>,
    _watcher: Option<Child>,
}

impl Nodes {
    fn new() -> Nodes {
        let temp = tempfile::Builder::new().prefix("top-").tempdir_in(support::base_dir()).unwrap();
        let _watcher = support::lab::watch(temp.path(), temp.path());
        Nodes { temp, running: Vec::new(), _watcher }
    }

    fn dir(&self, site: &str) -> PathBuf {
        self.temp.path().join(site)
    }

    fn at(&self, site: &str, args: &[&str]) -> Output {
        let file = self.dir(site).join("site.toml");
        proc::run(support::lab::kagami().arg("--config").arg(file).args(args), LONG)
    }

    #[track_caller]
    fn ok(&self, site: &str, args: &[&str]) -> String {
        let out = self.at(site, args);
        assert!(out.status.success(), "{args:?} at {site}: {}\n{}", proc::text(&out.stderr), self.logs());
        proc::text(&out.stdout)
    }

    fn logs(&self) -> String {
        let mut o = String::new();
        for (site, _) in &self.running {
            let log = fs::read(self.dir(site).join("node.log")).unwrap_or_default();
            let text = proc::text(&log);
            let lines: Vec<&str> = text.lines().collect();
            o += &format!("--- {site}\n{}\n", lines[lines.len().saturating_sub(15)..].join("\n"));
        }
        o
    }

    /// A site with these groups, as in a site file.
    fn site(&self, site: &str, peers: &[&str], groups: &str) {
        let sock = |s: &str| format!("unix:{}/{s}.sock", self.temp.path().display());
        let mut o = format!("[node]\nsite = {site:?}\nlisten = [{:?}]\n", sock(site));
        for p in peers {
            o += &format!("[[peer]]\nsite = {p:?}\naddr = {:?}\n", sock(p));
        }
        o += groups;
        o += "[limits]\nlink_timeout_ms = 2000\nheartbeat_ms = 400\n";
        fs::create_dir_all(self.dir(site)).unwrap();
        fs::write(self.dir(site).join("site.toml"), o).unwrap();
        self.ok(site, &["region", "create"]);
    }

    #[track_caller]
    fn start(&mut self, site: &str) {
        let mut c = support::lab::kagami();
        c.arg("--config").arg(self.dir(site).join("site.toml")).arg("node");
        c.arg("--log-file").arg(self.dir(site).join("node.log"));
        c.arg("--pid-file").arg(self.dir(site).join("node.pid"));
        c.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.running.push((site.into(), proc::die_with_parent(&mut c).spawn().unwrap()));
        let up = || self.at(site, &["status"]).status.success();
        assert!(proc::wait_until(LONG, up), "{site} does not start\n{}", self.logs());
    }

    fn kill(&mut self, site: &str) {
        self.running.retain_mut(|(s, c)| {
            if s == site {
                let _ = c.kill();
                let _ = c.wait();
            }
            s != site
        });
    }

    fn group(&self, site: &str, group: &str) -> Value {
        let s: Value = serde_json::from_slice(&self.at(site, &["status", "--json"]).stdout).unwrap_or_default();
        let all = s["groups"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|g| g["name"] == group).unwrap_or_default()
    }

    #[track_caller]
    fn pair_is(&self, site: &str, group: &str, pair: &str, state: &str) {
        let is = || {
            let g = self.group(site, group);
            g["pairs"].as_array().is_some_and(|p| p.iter().any(|p| p["name"] == pair && p["state"] == state))
        };
        assert!(
            proc::wait_until(LONG, is),
            "{group}/{pair} at {site} is not {state}: {:#}\n{}",
            self.group(site, group),
            self.logs()
        );
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for (_, c) in &mut self.running {
            proc::kill(c.id() as i32, libc::SIGTERM);
        }
        for (_, c) in &mut self.running {
            if proc::wait_timeout(c, Duration::from_secs(20)).is_none() {
                let _ = c.kill();
                let _ = c.wait();
            }
        }
        proc::unmount_below(self.temp.path());
    }
}

fn volume(name: &str, region: &str, mount: Option<&str>) -> String {
    let mount = mount.map(|m| format!("mount = {m:?}\n")).unwrap_or_default();
    format!("[[group.volume]]\nname = {name:?}\nregion = {region:?}\n{mount}")
}

fn pair(name: &str, mode: &str, a: &str, b: &str) -> String {
    format!("[[group.pair]]\nname = {name:?}\nmode = {mode:?}\nsites = [{a:?}, {b:?}]\n")
}

/// MS-1: one site is primary of two groups, each with a peer of its own; the first has two volumes, in two regions at either
/// end, and at its other end three regions lie at one site. Each group is cut, taken over and brought back by itself.
#[test]
fn ms1_one_site_with_several_groups_peers_and_regions() {
    let mut n = Nodes::new();
    // `mail` has two volumes and goes to osaka; `web` has one and goes to osaka too, and asynchronously to kyoto.
    let mail = |m: [Option<&str>; 2]| {
        let volumes = volume("spool", "mail/a", m[0]) + &volume("index", "mail/b", m[1]);
        format!("[[group]]\nname = \"mail\"\nprimary = \"tokyo\"\n{volumes}{}", pair("main", "sync", "tokyo", "osaka"))
    };
    let web = |m: Option<&str>| {
        let pairs = pair("near", "sync", "tokyo", "osaka")
            + &pair("far", "async", "tokyo", "kyoto")
            + &pair("relay", "async", "osaka", "kyoto");
        format!("[[group]]\nname = \"web\"\nprimary = \"tokyo\"\n{}{pairs}", volume("pages", "web", m))
    };
    for d in ["tokyo", "osaka", "kyoto"].iter().flat_map(|s| ["spool", "index", "pages"].map(|m| n.dir(s).join(m))) {
        fs::create_dir_all(d).unwrap();
    }
    let own = [Some("spool"), Some("index")];
    n.site("tokyo", &["osaka", "kyoto"], &(mail(own) + &web(Some("pages"))));
    n.site("osaka", &["tokyo", "kyoto"], &(mail(own) + &web(Some("pages"))));
    n.site("kyoto", &["tokyo", "osaka"], &web(Some("pages")));
    for site in ["kyoto", "osaka", "tokyo"] {
        n.start(site);
    }
    for (group, pair) in [("mail", "main"), ("web", "near"), ("web", "far")] {
        n.pair_is("tokyo", group, pair, "PAIR");
    }
    let write = |n: &Nodes, site: &str, name: &str, text: &str| {
        for m in ["spool", "index", "pages"] {
            fs::write(n.dir(site).join(m).join(name), text).unwrap_or_else(|e| panic!("{m}/{name}: {e}\n{}", n.logs()));
        }
    };
    write(&n, "tokyo", "one", "1");
    // Only `web` changes hands; `mail` stays where it is and goes on under both.
    n.ok("osaka", &["swap", "web"]);
    assert_eq!(n.group("osaka", "web")["role"], "primary");
    assert_eq!(n.group("tokyo", "mail")["role"], "primary");
    fs::write(n.dir("osaka").join("pages/two"), "2").unwrap();
    fs::write(n.dir("tokyo").join("spool/two"), "2").unwrap();
    for (site, group, pair) in [("tokyo", "mail", "main"), ("osaka", "web", "near"), ("osaka", "web", "relay")] {
        n.pair_is(site, group, pair, "PAIR");
    }
    // Each site is primary of one group and secondary of the other: the loss of tokyo is a takeover of `mail` alone.
    n.kill("tokyo");
    n.pair_is("osaka", "web", "near", "PSUE");
    n.ok("osaka", &["takeover", "mail"]);
    assert_eq!(fs::read_to_string(n.dir("osaka").join("spool/two")).unwrap(), "2");
    write(&n, "osaka", "three", "3");
    proc::unmount_below(&n.dir("tokyo"));
    n.start("tokyo");
    for (group, pair) in [("mail", "main"), ("web", "near"), ("web", "relay")] {
        n.pair_is("osaka", group, pair, "PAIR");
        n.ok("osaka", &["pair", "wait", group, pair]);
    }
    for (region, others) in [("mail/a", vec!["tokyo"]), ("mail/b", vec!["tokyo"]), ("web", vec!["tokyo", "kyoto"])] {
        for site in others {
            assert_same(&n.dir("osaka").join(region).join("tree"), &n.dir(site).join(region).join("tree"));
        }
    }
    // And back, one after the other.
    for group in ["mail", "web"] {
        n.ok("tokyo", &["failback", group]);
        assert_eq!(n.group("tokyo", group)["role"], "primary", "{}", n.logs());
    }
    write(&n, "tokyo", "four", "4");
    for (group, pair) in [("mail", "main"), ("web", "near"), ("web", "far")] {
        n.ok("tokyo", &["pair", "wait", group, pair]);
    }
    assert_same(&n.dir("tokyo").join("web/tree"), &n.dir("kyoto").join("web/tree"));
}
