//! A site whose node may not set everything (an ordinary user's) with a site whose node may: what it cannot set is kept
//! beside, makes no difference to a comparison, and comes back on failback (G5).

use crate::support;

use kagami::base::{DirId, Name, VolId, time::Time};
use kagami::format::op::{Attr, NodeKind, Op, Target};
use kagami::store::region::Region;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::lab::{self, kagami};
use support::{Rng, is_root, proc, sys};

const LIMIT: Duration = Duration::from_secs(180);
/// A file capability: revision 2, effective, CAP_NET_BIND_SERVICE.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Two sites over TCP: tokyo is root's, osaka the ordinary user's. The pid files are where
/// the watcher of labs looks for them.
struct Sites {
    dir: PathBuf,
    _temp: tempfile::TempDir,
    program: PathBuf,
    watcher: Option<std::process::Child>,
}

impl Sites {
    fn up() -> Sites {
        let temp = tempfile::Builder::new().prefix("beside-").tempdir_in(support::base_dir()).unwrap();
        sys::chmodat(sys::AT_FDCWD, temp.path(), 0o755).unwrap();
        let dir = temp.path().to_owned();
        // The build may lie where the ordinary user may not look.
        let program = dir.join("kagami");
        fs::copy(kagami().get_program(), &program).unwrap();
        let s = Sites { watcher: lab::watch(&dir, &dir), dir, _temp: temp, program };
        let held = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = held.map(|l| l.local_addr().unwrap().port());
        for (i, site) in ["tokyo", "osaka"].into_iter().enumerate() {
            fs::create_dir_all(s.mnt(site)).unwrap();
            sys::chmodat(sys::AT_FDCWD, s.dir.join(site), 0o700).unwrap();
            let (other, port, theirs) = (["osaka", "tokyo"][i], ports[i], ports[1 - i]);
            let text = format!(
                "[node]\nsite = \"{site}\"\nstate_dir = \"state\"\nlisten = [\"127.0.0.1:{port}\"]\n\
                 [[peer]]\nsite = \"{other}\"\naddr = \"127.0.0.1:{theirs}\"\n\
                 [[group]]\nname = \"g\"\nprimary = \"tokyo\"\n\
                 [[group.volume]]\nname = \"v\"\nlegs = [\"region\"]\nmount = \"mnt\"\n\
                 [[group.pair]]\nname = \"p\"\nmode = \"sync\"\nsites = [\"tokyo\", \"osaka\"]\n"
            );
            fs::write(s.dir.join(site).join("site.toml"), text).unwrap();
            if site == "osaka" {
                // A region that others may look into would show them the safe form.
                fs::create_dir(s.dir.join("osaka/region")).unwrap();
                for path in ["osaka", "osaka/mnt", "osaka/site.toml", "osaka/region"] {
                    let uid = Some(proc::ORDINARY_UID);
                    std::os::unix::fs::chown(s.dir.join(path), uid, uid).unwrap();
                }
            }
            s.ok(site, &["region", "create"]);
            s.ok(site, &["keygen"]);
        }
        s.start("tokyo");
        let token = s.ok("tokyo", &["peer", "invite"]);
        s.ok("osaka", &["peer", "accept", token.split_whitespace().find(|w| w.starts_with("kgminvite")).unwrap()]);
        s.start("osaka");
        s
    }

    fn mnt(&self, site: &str) -> PathBuf {
        self.dir.join(site).join("mnt")
    }

    fn region(&self, site: &str) -> PathBuf {
        self.dir.join(site).join("region")
    }

    fn tree(&self, site: &str) -> PathBuf {
        self.region(site).join("tree")
    }

    fn at(&self, site: &str, args: &[&str]) -> Output {
        let mut c = Command::new(&self.program);
        if site == "osaka" {
            proc::as_user(&mut c, &self.dir.join("osaka"));
        }
        support::run(c.arg("--config").arg(self.dir.join(site).join("site.toml")).args(args), LIMIT)
    }

    #[track_caller]
    fn ok(&self, site: &str, args: &[&str]) -> String {
        let out = self.at(site, args);
        let (stdout, stderr) = (proc::text(&out.stdout), proc::text(&out.stderr));
        assert!(out.status.success(), "{site}: kagami {args:?}: {}\n{stdout}\n{stderr}\n{}", out.status, self.logs());
        stdout
    }

    fn logs(&self) -> String {
        ["tokyo", "osaka"].map(|site| format!("--- {site}\n{}\n", self.log(site))).concat()
    }

    fn log(&self, site: &str) -> String {
        let text = fs::read(self.dir.join(site).join("node.log")).map(|b| proc::text(&b)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    fn start(&self, site: &str) {
        let file = |name: &str| self.dir.join(site).join(name).display().to_string();
        self.ok(site, &["node", "-d", "--pid-file", &file("node.pid"), "--log-file", &file("node.log")]);
    }

    fn pid(&self, site: &str) -> Option<i32> {
        let text = fs::read_to_string(self.dir.join(site).join("node.pid")).ok()?;
        text.trim().parse().ok().filter(|p| proc::alive(*p) && proc::program_of(*p).starts_with("kagami"))
    }

    fn end(&self, site: &str, signal: i32) {
        let pid = self.pid(site).unwrap();
        proc::kill(pid, signal);
        assert!(proc::wait_until(Duration::from_secs(30), || !proc::alive(pid)), "{site} does not end");
        proc::unmount_below(&self.dir.join(site));
    }

    fn wait(&self, primary: &str) {
        self.ok(primary, &["pair", "wait", "g", "--timeout", "120"]);
    }

    /// The other site's node is gone; its link's end must be noticed first.
    fn takeover(&self, site: &str) {
        let taken = proc::wait_until(Duration::from_secs(30), || self.at(site, &["takeover", "g"]).status.success());
        assert!(taken, "takeover at {site}\n{}", self.logs());
    }

    /// What a comparison finds.
    fn differences(&self, primary: &str) -> Vec<String> {
        let out = self.at(primary, &["verify", "g", "--json"]);
        let report: Value = serde_json::from_slice(&out.stdout)
            .unwrap_or_else(|e| panic!("verify: {e}: {}\n{}", proc::text(&out.stderr), self.logs()));
        let pair = &report["pairs"][0];
        assert!(pair["files"].as_u64().unwrap() > 0 && pair["not_compared"].is_null(), "{report:#}");
        let list = pair["differences"].as_array().unwrap();
        list.iter().map(|d| format!("{}: {}", d["path"].as_str().unwrap(), d["what"].as_str().unwrap())).collect()
    }

    #[track_caller]
    fn assert_same(&self, primary: &str) {
        self.wait(primary);
        assert_eq!(self.differences(primary), Vec::<String>::new(), "{}", self.logs());
    }

    fn status(&self, site: &str) -> Value {
        serde_json::from_str(&self.ok(site, &["status", "--json"])).unwrap()
    }

    /// A shell command of the ordinary user in a directory.
    #[track_caller]
    fn sh(&self, dir: &Path, script: &str) -> String {
        let mut c = Command::new("sh");
        proc::as_user(&mut c, &self.dir.join("osaka"));
        support::run_ok(c.args(["-euc", script]).current_dir("/").env("D", dir), LIMIT)
    }
}

impl Drop for Sites {
    fn drop(&mut self) {
        for site in ["osaka", "tokyo"] {
            if let Some(pid) = self.pid(site) {
                proc::kill(pid, libc::SIGTERM);
                if !proc::wait_until(Duration::from_secs(15), || !proc::alive(pid)) {
                    proc::kill(pid, libc::SIGKILL);
                }
            }
        }
        proc::unmount_below(&self.dir);
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        if let Some(w) = &mut self.watcher {
            drop(w.stdin.take());
            let _ = w.wait();
        }
    }
}

type Shape = (u32, u32, u32, u64, u64);

/// Mode with type, owner, group, device number and number of links of everything below.
fn shape(root: &Path) -> BTreeMap<String, Shape> {
    fn walk(dir: &Path, root: &Path, out: &mut BTreeMap<String, Shape>) {
        for e in fs::read_dir(dir).unwrap() {
            let p = e.unwrap().path();
            let m = fs::symlink_metadata(&p).unwrap();
            let rdev = if m.mode() & libc::S_IFMT == libc::S_IFREG { 0 } else { m.rdev() };
            let nlink = if m.is_dir() { 0 } else { m.nlink() };
            let name = p.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            out.insert(name, (m.mode(), m.uid(), m.gid(), rdev, nlink));
            if m.is_dir() {
                walk(&p, root, out);
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(root, root, &mut out);
    out
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let (path, name) = (sys::c(path).unwrap(), sys::c(name).unwrap());
    let mut buf = vec![0; 4096];
    // SAFETY: the length given is that of the buffer.
    let n = unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) };
    (n >= 0).then(|| buf[..n as usize].to_vec())
}

fn set(path: &Path, mode: u32, uid: u32, gid: u32) {
    std::os::unix::fs::lchown(path, Some(uid), Some(gid)).unwrap();
    if !path.is_symlink() {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
}

fn node(path: &Path, mode: u32, dev: u64) {
    sys::mknodat(sys::AT_FDCWD, path, mode, dev).unwrap();
}

/// One of everything that an ordinary user may not have.
fn fill(d: &Path) {
    for (name, mode) in [("shared", 0o2775), ("sticky", 0o1777), ("closed", 0o0), ("fixed", 0o555)] {
        fs::create_dir(d.join(name)).unwrap();
        fs::write(d.join(name).join("inside"), name).unwrap();
        set(&d.join(name), mode, 3, 50);
    }
    for (name, mode, uid, gid) in [
        ("root", 0o644, 0, 0),
        ("nothing", 0o0, 1001, 1001),
        ("setuid", 0o4755, 0, 0),
        ("setgid", 0o2755, 0, 42),
        ("write only", 0o200, 65534, 65534),
        ("read only", 0o444, 65534, 65534),
        ("own", 0o640, 65534, 65534),
        ("own group", 0o640, 0, 65534),
        ("own program", 0o4711, 65534, 65534),
        ("capable", 0o755, 0, 0),
        ("trusted", 0o600, 7, 7),
        ("acl", 0o640, 0, 0),
        ("own acl", 0o640, 65534, 65534),
    ] {
        fs::write(d.join(name), format!("this is {name}")).unwrap();
        set(&d.join(name), mode, uid, gid);
    }
    sys::set_xattr(&d.join("capable"), "security.capability", &CAPABILITY).unwrap();
    sys::set_xattr(&d.join("trusted"), "trusted.kagami", b"for root's eyes").unwrap();
    sys::set_xattr(&d.join("trusted"), "user.colour", b"red").unwrap();
    sys::set_xattr(&d.join("acl"), "system.posix_acl_access", &sys::acl(0, &[(1000, 6)], 4, 6, 0)).unwrap();
    sys::set_xattr(&d.join("own acl"), "system.posix_acl_access", &sys::acl(6, &[(0, 7)], 4, 7, 0)).unwrap();
    sys::set_xattr(&d.join("shared"), "system.posix_acl_default", &sys::acl(7, &[(1000, 7)], 5, 7, 0)).unwrap();
    fs::write(d.join("shared/heir"), "by the default ACL").unwrap();
    node(&d.join("char"), libc::S_IFCHR | 0o620, libc::makedev(5, 1));
    node(&d.join("block"), libc::S_IFBLK | 0o660, libc::makedev(7, 300));
    node(&d.join("fifo"), libc::S_IFIFO | 0o4, 0);
    node(&d.join("socket"), libc::S_IFSOCK | 0o755, 0);
    std::os::unix::fs::symlink("root", d.join("symlink")).unwrap();
    for (name, uid) in [("char", 0), ("block", 0), ("fifo", 12), ("socket", 13), ("symlink", 14)] {
        std::os::unix::fs::lchown(d.join(name), Some(uid), Some(6)).unwrap();
    }
    fs::hard_link(d.join("setuid"), d.join("shared/setuid too")).unwrap();
    fs::hard_link(d.join("char"), d.join("shared/char too")).unwrap();
    fs::hard_link(d.join("symlink"), d.join("shared/symlink too")).unwrap();
}

/// Nothing in the tree belongs to others, keeps its node out, or gives away rights.
#[track_caller]
fn assert_safe(tree: &Path) {
    for (name, (mode, uid, gid, _, _)) in shape(tree) {
        assert_eq!((uid, gid), (proc::ORDINARY_UID, proc::ORDINARY_UID), "{name}");
        match mode & libc::S_IFMT {
            libc::S_IFDIR => assert_eq!(mode & 0o700, 0o700, "{name}"),
            libc::S_IFREG => assert_eq!(mode & 0o400, 0o400, "{name}"),
            kind => assert!(kind != libc::S_IFCHR && kind != libc::S_IFBLK, "{name}"),
        }
        let harmless = mode & libc::S_IFMT != libc::S_IFREG || mode & 0o6000 == 0 || name == "own program";
        assert!(harmless, "{name}: {mode:o}");
    }
}

#[test]
fn what_an_ordinary_users_node_may_not_set_comes_back() {
    let test = "what_an_ordinary_users_node_may_not_set_comes_back";
    if !is_root() {
        return support::skipped(test, "only root's node has something that another's may not set");
    }
    let s = Sites::up();
    let (tokyo, osaka) = (s.mnt("tokyo"), s.mnt("osaka"));
    assert_eq!(fs::metadata(s.region("osaka")).unwrap().mode() & 0o7777, 0o700);

    // The first copy, then the same once more as it happens.
    fs::create_dir(tokyo.join("early")).unwrap();
    fill(&tokyo.join("early"));
    support::random::random_tree(&tokyo.join("early"), 300, support::seed(test)).unwrap();
    s.wait("tokyo");
    fs::create_dir(tokyo.join("live")).unwrap();
    fill(&tokyo.join("live"));
    s.assert_same("tokyo");
    assert_safe(&s.tree("osaka").join("live"));
    assert_eq!(fs::metadata(s.tree("osaka").join("live/char")).unwrap().len(), 0);
    let kept = s.status("osaka")["groups"][0]["kept_beside"].as_u64().unwrap();
    assert!(kept > 60, "{kept}");
    assert_eq!(s.status("tokyo")["groups"][0]["kept_beside"], 0);
    assert!(s.ok("osaka", &["status"]).contains("kept beside"), "status says it");
    assert_eq!(s.log("osaka").matches("kept beside").count(), 1, "said once: {}", s.log("osaka"));

    // Records that are gone are differences like any other, and a repair brings them back.
    s.end("osaka", libc::SIGTERM);
    let region = Region::open(&s.region("osaka"), "g", "v", VolId(0)).unwrap();
    for name in ["live/setuid", "live/char", "live/trusted", "live/symlink"] {
        let ino = fs::symlink_metadata(s.tree("osaka").join(name)).unwrap().ino();
        assert!(region.kept(ino).is_some(), "{name}");
        region.forget_kept(ino).unwrap();
    }
    drop(region);
    s.start("osaka");
    s.wait("tokyo");
    let found = s.differences("tokyo");
    assert_eq!(found.len(), 7, "four objects, three of them with two names: {found:#?}");
    let own = proc::ORDINARY_UID;
    for want in [
        format!("live/setuid: mode 4755 here, 755 at osaka, owner 0:0 here, {own}:{own} at osaka"),
        "live/char: type".to_owned(),
        format!("live/trusted: owner 7:7 here, {own}:{own} at osaka, attribute trusted.kagami"),
        format!("live/symlink: owner 14:6 here, {own}:{own} at osaka"),
    ] {
        assert!(found.contains(&want), "{want}: {found:#?}");
    }
    s.ok("tokyo", &["verify", "g", "--repair"]);
    s.assert_same("tokyo");

    // While osaka is away; it is resynced by the journal.
    s.end("osaka", libc::SIGTERM);
    let d = tokyo.join("live");
    set(&d.join("root"), 0o4750, 5, 6);
    set(&d.join("closed"), 0o2070, 9, 9);
    fs::remove_file(d.join("block")).unwrap();
    node(&d.join("block"), libc::S_IFCHR | 0o600, libc::makedev(1, 3));
    fs::rename(d.join("char"), d.join("char moved")).unwrap();
    fs::write(d.join("capable"), "its capability goes").unwrap();
    sys::set_xattr(&d.join("trusted"), "trusted.more", b"and more").unwrap();
    fs::create_dir(tokyo.join("away")).unwrap();
    fill(&tokyo.join("away"));
    // What waits to be sent is forgotten.
    s.end("tokyo", libc::SIGTERM);
    s.start("tokyo");
    s.start("osaka");
    s.assert_same("tokyo");

    // Live changes of what is kept.
    set(&d.join("setuid"), 0o6711, 0, 0);
    fs::write(tokyo.join("away/capable"), "its capability goes as well").unwrap();
    fs::remove_file(d.join("sticky/inside")).unwrap();
    fs::rename(tokyo.join("away/char"), d.join("fifo")).unwrap();
    fs::remove_file(tokyo.join("away/setuid")).unwrap();
    s.assert_same("tokyo");
    let before = shape(&s.tree("tokyo").join("live"));
    let scanned = support::tree::scan(&s.tree("tokyo"), &support::tree::Options::default()).unwrap();

    // At the mount of osaka: what the node can stand for.
    s.end("tokyo", libc::SIGKILL);
    s.takeover("osaka");
    let shown =
        s.sh(&osaka, "cd \"$D/live\"; stat -c '%n %A %u %t:%T' 'char moved' setuid nothing shared closed symlink fifo");
    let want = "char moved crw------- 65534 5:1\nsetuid -rws--s--x 65534 0:0\nnothing ---------- 65534 0:0\n\
                shared drwxrwsr-x+ 65534 0:0\nclosed d---rws--- 65534 0:0\nsymlink lrwxrwxrwx 65534 0:0\n\
                fifo crw------- 65534 5:1\n";
    assert_eq!(shown, want.replace("r-x+", "r-x"));
    let refused = s.sh(&osaka, "cat \"$D/live/char moved\" 2>&1 || true; cat \"$D/live/nothing\" 2>&1 || true");
    assert_eq!(refused.matches("denied").count(), 2, "{refused}");
    assert!(!s.sh(&osaka, "getfattr -dm- \"$D/live/trusted\"").contains("trusted."), "only root is shown these");

    let why = s.ok("osaka", &["why", osaka.join("live/setuid").to_str().unwrap()]);
    assert!(why.contains("user 0, group 0, mode 6711"), "{why}");

    // Tokyo comes back with nothing at all: everything it gets is from osaka, and what was kept is there again.
    fs::rename(s.region("tokyo"), s.dir.join("tokyo/lost")).unwrap();
    s.ok("tokyo", &["region", "create"]);
    s.start("tokyo");
    s.assert_same("osaka");
    let now = support::tree::scan(&s.tree("tokyo"), &support::tree::Options::default()).unwrap();
    let same = support::tree::compare_scanned(scanned, now, &support::tree::Options::default());
    assert_eq!(same, Ok(()));

    // Changes at osaka: the mode is the new one, the owner stays, what is new belongs to its user.
    s.sh(
        &osaka,
        "cd \"$D/live\"
         chmod 0604 root; chmod g+w setuid; chmod u+s 'own group'; chmod 0750 shared; chmod u+rwx closed
         mv 'char moved' 'char back'; mv trusted shared/; rm block socket; rm -r sticky
         echo new >new; ln setgid 'setgid too'; chown 65534 acl; echo more >>'own program'; echo x >>own; echo more >>setgid
         mkfifo block; ln 'char back' third; rm capable; echo ordinary >capable; chmod 0 capable",
    );
    s.assert_same("osaka");
    let mut want = before;
    let mut put = |name: &str, f: &dyn Fn(&mut Shape)| {
        f(want.get_mut(name).unwrap_or_else(|| panic!("{name}")));
    };
    put("root", &|o| o.0 = 0o100604);
    put("setuid", &|o| o.0 = 0o106731);
    put("shared/setuid too", &|o| o.0 = 0o106731);
    put("shared", &|o| o.0 = 0o042750);
    put("closed", &|o| o.0 = 0o042770);
    put("setgid", &|o| (o.0, o.4) = (0o100755, 2));
    put("acl", &|o| o.1 = own);
    put("own program", &|o| o.0 = 0o100711);
    put("capable", &|o| (o.0, o.1, o.2) = (0o100000, own, own));
    put("block", &|o| *o = (0o010644, own, own, 0, 1));
    put("char moved", &|o| o.4 = 3);
    put("shared/char too", &|o| o.4 = 3);
    let mut move_to = |from: &str, to: &str| {
        let o = want.remove(from).unwrap_or_else(|| panic!("{from}"));
        want.insert(to.to_owned(), o);
        o
    };
    let char_back = move_to("char moved", "char back");
    move_to("trusted", "shared/trusted");
    let setgid = want["setgid"];
    want.insert("setgid too".into(), setgid);
    want.insert("third".into(), char_back);
    want.insert("new".into(), (0o100644, own, own, 0, 1));
    want.retain(|n, _| n != "socket" && !n.starts_with("sticky"));
    assert_shape(&s.tree("tokyo").join("live"), &want);
    let trusted = s.tree("tokyo").join("live/shared/trusted");
    assert_eq!(xattr(&trusted, "trusted.more").as_deref(), Some(&b"and more"[..]));
    assert_eq!(xattr(&s.tree("tokyo").join("live/capable"), "security.capability"), None);

    // Failback: tokyo leads again, and nothing has changed.
    s.end("osaka", libc::SIGTERM);
    s.takeover("tokyo");
    s.start("osaka");
    s.assert_same("tokyo");
    assert_shape(&s.tree("tokyo").join("live"), &want);
    assert_shape(&d, &want);
}

#[track_caller]
fn assert_shape(root: &Path, want: &BTreeMap<String, Shape>) {
    let now = shape(root);
    let wrong: Vec<String> = now
        .keys()
        .chain(want.keys())
        .filter(|n| now.get(*n) != want.get(*n))
        .map(|n| {
            let say =
                |o: Option<&Shape>| o.map_or("nothing".into(), |o| format!("{:o} {:?}", o.0, (o.1, o.2, o.3, o.4)));
            format!("{n}: {}, not {}", say(now.get(n)), say(want.get(n)))
        })
        .collect();
    assert!(wrong.is_empty(), "{}:\n{}", root.display(), wrong.join("\n"));
}

/// Objects of all kinds made, changed, moved and removed until told to stop.
fn churn(d: &Path, stop: &AtomicBool, seed: u64) -> u64 {
    let mut rng = Rng::new(seed);
    let mut n = 0;
    let name = |rng: &mut Rng| d.join(format!("o{}", rng.below(40)));
    while !stop.load(Ordering::Relaxed) {
        let (a, b) = (name(&mut rng), name(&mut rng));
        let owner = |rng: &mut Rng| [0, 1000, 65534][rng.below(3) as usize];
        match rng.below(9) {
            0 => drop(fs::write(&a, rng.bytes(3000))),
            1 => drop(sys::mknodat(sys::AT_FDCWD, &a, libc::S_IFCHR | 0o644, rng.below(1000))),
            2 => drop(std::os::unix::fs::symlink("nowhere", &a)),
            3 => drop(fs::hard_link(&a, &b)),
            4 => drop(fs::rename(&a, &b)),
            5 => drop(fs::remove_file(&a)),
            6 => drop(std::os::unix::fs::lchown(&a, Some(owner(&mut rng)), Some(owner(&mut rng)))),
            7 if a.is_file() => {
                drop(fs::set_permissions(&a, fs::Permissions::from_mode(rng.below(0o10000) as u32)));
            }
            8 if a.is_file() => drop(sys::set_xattr(&a, "trusted.n", &rng.bytes(40))),
            _ => {}
        }
        n += 1;
    }
    n
}

#[test]
fn killed_under_load_it_has_lost_nothing_it_keeps() {
    let test = "killed_under_load_it_has_lost_nothing_it_keeps";
    if !is_root() {
        return support::skipped(test, "only root's node has something that another's may not set");
    }
    let s = Sites::up();
    s.wait("tokyo");
    let seed = support::seed(test);
    let mut rng = Rng::new(seed);
    for round in 0..support::env_number("KAGAMI_TEST_ROUNDS", 4) {
        let stop = AtomicBool::new(false);
        let done = std::thread::scope(|t| {
            let (mnt, stop) = (s.mnt("tokyo"), &stop);
            let load = t.spawn(move || churn(&mnt, stop, seed + round));
            std::thread::sleep(Duration::from_millis(300 + rng.below(700)));
            s.end("osaka", libc::SIGKILL);
            std::thread::sleep(Duration::from_millis(rng.below(300)));
            s.start("osaka");
            std::thread::sleep(Duration::from_millis(rng.below(500)));
            stop.store(true, Ordering::Relaxed);
            load.join().unwrap()
        });
        assert!(done > 50, "{done} operations");
        s.assert_same("tokyo");
    }
    // And the other way round: killed as primary, with changes of its own under way.
    let before = shape(&s.tree("tokyo"));
    s.end("tokyo", libc::SIGTERM);
    s.takeover("osaka");
    s.start("tokyo");
    s.wait("osaka");
    assert_shape(&s.tree("tokyo"), &before);
    let mut load = Command::new("sh");
    proc::as_user(&mut load, &s.dir.join("osaka"));
    let script = "cd \"$0\"; while :; do for i in 1 2 3 4 5 6 7 8; do
        echo $i >n$i; chmod 0 n$i; chmod 0444 o$i; mv o$i o1$i; ln o1$i o2$i; rm -f n$i; done; done";
    load.args(["-c", script]).arg(s.mnt("osaka")).current_dir("/");
    load.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut load = proc::die_with_parent(&mut load).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    s.end("osaka", libc::SIGKILL);
    load.kill().unwrap();
    load.wait().unwrap();
    s.start("osaka");
    let leads = || s.status("osaka")["groups"][0]["role"] == "primary";
    assert!(proc::wait_until(Duration::from_secs(30), leads), "{}", s.logs());
    s.assert_same("osaka");
}

/// As an ordinary user also when the test is root's: a copy of this program runs the rest.
fn as_ordinary_user(test: &str, work: impl FnOnce()) {
    if !is_root() {
        return work();
    }
    let home = tempfile::Builder::new().prefix("beside-").tempdir_in(support::base_dir()).unwrap();
    let copy = home.path().join("test");
    fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    let mut c = Command::new(&copy);
    proc::as_user(&mut c, home.path());
    let said =
        support::run_ok(c.args(["--exact", &format!("beside::{test}"), "--nocapture"]).current_dir(home.path()), LIMIT);
    assert!(said.contains("1 passed"), "{said}");
}

fn a_region() -> (tempfile::TempDir, Region) {
    let d = tempfile::tempdir().unwrap();
    let path = d.path().join("r");
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    Region::create(&path, "g", "v", VolId(0)).unwrap();
    let r = Region::open(&path, "g", "v", VolId(0)).unwrap();
    (d, r)
}

fn create(r: &Region, name: &str, kind: NodeKind, mode: u32, uid: u32) {
    let attr = Attr { mode, uid, gid: uid, ..Attr::default() };
    let op = Op::Create { at: Name::new(DirId::ROOT, name), kind, attr, pmtime: Time::default() };
    r.apply_direct(&mut op.clone(), b"").unwrap();
}

fn unlink(r: &Region, name: &str) {
    let op = Op::Unlink { at: Name::new(DirId::ROOT, name), pmtime: Time::default() };
    r.apply_direct(&mut op.clone(), b"").unwrap();
}

fn look(r: &Region, name: &str) -> kagami::os::sys::Stat {
    r.look(&Name::new(DirId::ROOT, name)).unwrap().unwrap().0
}

#[test]
fn a_reused_inode_number_inherits_nothing() {
    as_ordinary_user("a_reused_inode_number_inherits_nothing", || {
        let (d, r) = a_region();
        assert_eq!(fs::metadata(&r.path).unwrap().mode() & 0o7777, 0o700);
        let (own, _) = kagami::os::sys::ids();
        let (begun, mut reused) = (Instant::now(), 0);
        let mut last = 0;
        while reused < 20 && begun.elapsed() < Duration::from_secs(20) {
            create(&r, "device", NodeKind::Block(77), 0o4600, 0);
            let st = look(&r, "device");
            assert!(st.is_file() && st.perm() == 0o600 && st.uid == own);
            let want = r.wanted(st);
            assert_eq!((want.mode, want.uid, want.rdev), (libc::S_IFBLK | 0o4600, 0, 77));
            // A directory restored behind our back: removed without a word, so that its record stays.
            if reused % 2 == 0 {
                fs::remove_file(r.path.join("tree/device")).unwrap();
            } else {
                unlink(&r, "device");
                assert!(r.kept(st.ino).is_none());
            }
            create(&r, "file", NodeKind::File, 0o640, own);
            let new = look(&r, "file");
            reused += u32::from(new.ino == st.ino);
            assert_eq!(r.wanted(new), new);
            assert!(r.kept(new.ino).is_none() && new.perm() == 0o640);
            unlink(&r, "file");
            last = st.ino;
        }
        assert!(last != 0);
        println!("{reused} inode numbers were used again");
        drop(d);
    });
}

#[test]
fn what_is_kept_follows_the_object_and_survives_a_restart() {
    as_ordinary_user("what_is_kept_follows_the_object_and_survives_a_restart", || {
        let (_d, r) = a_region();
        let n = |s: &str| Name::new(DirId::ROOT, s);
        let zero = Time::default();
        create(&r, "a", NodeKind::File, 0o4711, 0);
        create(&r, "s", NodeKind::Symlink(b"x".to_vec()), 0o777, 12);
        let attr = |op: Op| r.apply_content(&op, b"").unwrap();
        attr(Op::SetXattr { at: Target::File(n("a")), name: b"trusted.t".to_vec(), value: b"1".to_vec() });
        attr(Op::SetXattr { at: Target::File(n("a")), name: b"security.capability".to_vec(), value: vec![1] });
        let (from_pmtime, to_pmtime) = (zero, zero);
        r.apply_direct(&mut Op::Rename { from: n("a"), to: n("b"), flags: 0, from_pmtime, to_pmtime }, b"").unwrap();
        let lid = kagami::base::LinkId(9);
        r.apply_direct(&mut Op::Link { from: n("b"), to: n("c"), lid, pmtime: zero }, b"").unwrap();
        r.apply_direct(&mut Op::Link { from: n("s"), to: n("t"), lid: kagami::base::LinkId(8), pmtime: zero }, b"")
            .unwrap();
        unlink(&r, "b");
        unlink(&r, "s");
        let path = r.path.clone();
        drop(r);
        let r = Region::open(&path, "g", "v", VolId(0)).unwrap();
        let want = r.wanted(look(&r, "c"));
        assert_eq!((want.perm(), want.uid, look(&r, "c").perm()), (0o4711, 0, 0o711));
        assert_eq!(r.wanted(look(&r, "t")).uid, 12);
        let keys = |r: &Region| -> Vec<Vec<u8>> {
            let dir = r.dirfd(DirId::ROOT).unwrap();
            r.xattrs(&dir, b"c").unwrap().into_iter().map(|(k, _)| k).collect()
        };
        assert_eq!(keys(&r), [b"security.capability".to_vec(), b"trusted.t".to_vec()]);
        // A write takes the capability, as it does where it is in the tree.
        r.apply_content(&Op::Write { at: n("c"), off: 0, mtime: None }, b"data").unwrap();
        assert_eq!(keys(&r), [b"trusted.t".to_vec()]);
        r.apply_content(&Op::RemoveXattr { at: Target::File(n("c")), name: b"trusted.t".to_vec() }, b"").unwrap();
        let (own, group) = kagami::os::sys::ids();
        let (at, mode) = (Target::File(n("c")), Some(0o600));
        let op = Op::SetAttr { at, mode, uid: Some(own), gid: Some(group), atime: None, mtime: None };
        r.apply_content(&op, b"").unwrap();
        assert!(r.kept(look(&r, "c").ino).is_none(), "nothing is left to keep");
        assert_eq!(r.ids.read().kept().len(), 1, "but for the symlink's");
        // Read only: lent for the moment of the open.
        create(&r, "ro", NodeKind::File, 0o444, own);
        kagami::os::sys::pwrite_all(&*r.file(&n("ro")).unwrap(), b"x", 0).1.unwrap();
        assert_eq!((look(&r, "ro").perm(), r.kept(look(&r, "ro").ino)), (0o444, None));
    });
}

#[test]
fn an_existing_tree_that_is_closed_to_its_own_user_is_taken_over() {
    as_ordinary_user("an_existing_tree_that_is_closed_to_its_own_user_is_taken_over", || {
        let d = tempfile::tempdir().unwrap();
        let path = d.path().join("r");
        let closed = path.join("tree/closed");
        fs::create_dir_all(&closed).unwrap();
        fs::write(closed.join("file"), "content").unwrap();
        fs::set_permissions(closed.join("file"), fs::Permissions::from_mode(0o4)).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o1000)).unwrap();
        Region::create(&path, "g", "v", VolId(0)).unwrap();
        let r = Region::open(&path, "g", "v", VolId(0)).unwrap();
        assert_eq!(r.import().unwrap(), 1);
        let dir = look(&r, "closed");
        assert_eq!((dir.perm(), r.wanted(dir).perm()), (0o1700, 0o1000));
        let at = Name::new(r.dir_by_ino(dir.ino).unwrap(), "file");
        let (file, _) = r.look(&at).unwrap().unwrap();
        assert_eq!((file.perm(), r.wanted(file).perm(), r.shown(file).perm()), (0o604, 0o4, 0o4));
        r.open_file(&at, libc::O_RDONLY).unwrap();
    });
}

/// Nothing but the permission to write is missing, and that one the node may give itself.
#[test]
fn user_attributes_of_what_is_not_to_be_written_are_in_the_tree() {
    as_ordinary_user("user_attributes_of_what_is_not_to_be_written_are_in_the_tree", || {
        let (_d, r) = a_region();
        let (own, _) = kagami::os::sys::ids();
        for (name, mode, uid, tree) in [("own", 0o444, own, 0o444), ("other's", 0o4555, 0, 0o755)] {
            create(&r, name, NodeKind::File, mode, uid);
            let at = || Target::File(Name::new(DirId::ROOT, name));
            let path = r.path.join("tree").join(name);
            let want = r.wanted(look(&r, name));
            r.apply_content(&Op::SetXattr { at: at(), name: b"user.a".to_vec(), value: b"1".to_vec() }, b"").unwrap();
            assert_eq!(xattr(&path, "user.a").as_deref(), Some(&b"1"[..]));
            assert!(r.kept(look(&r, name).ino).is_none_or(|k| k.xattrs.is_empty()), "{name}");
            r.apply_content(&Op::RemoveXattr { at: at(), name: b"user.a".to_vec() }, b"").unwrap();
            assert_eq!(xattr(&path, "user.a"), None);
            assert_eq!(look(&r, name).perm(), tree, "{name}");
            let now = r.wanted(look(&r, name));
            assert_eq!((now.mode, now.uid), (want.mode, want.uid), "{name}");
        }
        assert_eq!(r.ids.read().kept().len(), 1, "but for the other's");
    });
}
