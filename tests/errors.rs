//! What goes wrong is told, with what to do about it; the exit code says what sort it is, and nothing is lost (A9).

use crate::support;

use kagami::base::Seq;
use kagami::format::frame::FrameKind;
use kagami::format::msg::{Hello, Msg, Offered, RejectCode, Wish};
use kagami::net::{Addr, Identity, PeerKey};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use support::lab::SITES;
use support::proc::{self, run, run_ok, text, wait_until};
use support::{Lab, is_root};

const SOON: Duration = Duration::from_secs(20);

/// Some files in the volume, the same everywhere.
#[track_caller]
fn fill(lab: &Lab) {
    fs::create_dir_all(lab.mnt().join("d/e")).unwrap();
    for i in 0..30 {
        fs::write(lab.mnt().join(format!("d/f{i}")), vec![i as u8; 1000 * i]).unwrap();
    }
    fs::hard_link(lab.mnt().join("d/f5"), lab.mnt().join("d/e/linked")).unwrap();
    settled(lab);
}

/// All pairs are PAIR again and all trees equal.
#[track_caller]
fn settled(lab: &Lab) {
    lab.wait(60);
    lab.assert_trees_equal();
}

/// A command ended with this code and said these words.
#[track_caller]
fn ends(out: &Output, code: i32, words: &[&str]) {
    let said = format!("{}{}", text(&out.stdout), text(&out.stderr));
    assert_eq!(out.status.code(), Some(code), "{said}");
    for w in words {
        assert!(said.contains(w), "{w:?} is not in: {said}");
    }
}

/// Waits until the group of a site is down, and its reason has these words.
#[track_caller]
fn down_because(lab: &Lab, site: &str, words: &[&str]) {
    let mut last = None;
    let ok = wait_until(SOON, || {
        last = lab.try_status(site);
        let g = last.as_ref().map(|s| &s["groups"][0]);
        g.is_some_and(|g| {
            g["role"] == "down" && words.iter().all(|w| g["reason"].as_str().is_some_and(|r| r.contains(w)))
        })
    });
    assert!(ok, "{site} is not down because of {words:?}: {last:#?}\n{}", lab.log_tails());
}

/// Waits until a pair is in PSUE and its reason has these words.
#[track_caller]
fn suspended_because(lab: &Lab, pair: &str, words: &[&str]) {
    let mut last = None;
    let ok = wait_until(SOON, || {
        last = Some(lab.pair("primary", pair));
        let p = last.as_ref().unwrap();
        p["state"] == "PSUE" && words.iter().all(|w| p["reason"].as_str().is_some_and(|r| r.contains(w)))
    });
    assert!(ok, "{pair} is not suspended because of {words:?}: {last:#?}\n{}", lab.log_tails());
}

#[track_caller]
fn edit(file: &Path, from: &str, to: &str) {
    let s = fs::read_to_string(file).unwrap();
    assert!(s.contains(from), "{from} is not in {s}");
    fs::write(file, s.replacen(from, to, 1)).unwrap();
}

fn restart(lab: &Lab, site: &str) {
    lab.kill(site);
    lab.start(site);
}

#[test]
fn a_wrong_key_and_an_unknown_peer_are_refused() {
    let lab = Lab::up(&["--sites", "2", "--tcp"]);
    fill(&lab);
    let config = fs::read_to_string(lab.config("primary")).unwrap();
    let key = config.lines().find(|l| l.starts_with("key")).unwrap().to_owned();
    let addr = config.lines().find(|l| l.starts_with("addr")).unwrap().split('"').nth(1).unwrap().to_owned();
    let right: PeerKey = key.split('"').nth(1).unwrap().parse().unwrap();

    // Somebody with a key of his own says that he is the primary.
    let stranger = Identity::generate("primary").unwrap();
    let addr: Addr = addr.parse().unwrap();
    match greet(kagami::net::dial(&addr, &stranger, Some(&right), SOON), |_| {}) {
        Err(_) => {}
        Ok(Msg::Reject { code: RejectCode::UnknownPeer, text, .. }) => assert!(text.contains("peer accept"), "{text}"),
        Ok(other) => panic!("{other:?}"),
    }
    // Somebody answers at the peer's address with another key than the pinned one.
    let other = format!("key = \"{}\"", stranger.key());
    lab.kill("primary");
    edit(&lab.config("primary"), &key, &other);
    lab.start("primary");
    suspended_because(&lab, "sync", &["key", &stranger.key().to_string(), &right.to_string()]);
    fs::write(lab.mnt().join("meanwhile"), b"goes on").unwrap();
    // No key at all.
    lab.kill("primary");
    edit(&lab.config("primary"), &format!("{other}\n"), "");
    lab.start("primary");
    suspended_because(&lab, "sync", &["key", "kagami peer invite"]);
    // A key that is none.
    edit(&lab.config("primary"), "[[peer]]\n", "[[peer]]\nkey = \"kgm1:nonsense\"\n");
    ends(&lab.at("primary", &["config", "check"]), 2, &["site.toml:", "write kgm1:"]);
    lab.kill("primary");
    edit(&lab.config("primary"), "key = \"kgm1:nonsense\"", &key);
    lab.start("primary");
    settled(&lab);
    lab.down();
}

/// Says hello as the primary of the lab's sync pair, with changes, and gives the answer.
fn greet(link: kagami::base::Result<kagami::net::Link>, change: impl Fn(&mut Hello)) -> kagami::base::Result<Msg> {
    let (mut r, mut w) = link?.split();
    let mut hello = Hello {
        version: kagami::format::msg::VERSION,
        site: "primary".into(),
        group: "lab".into(),
        group_id: 1,
        pair: "sync".into(),
        is_async: false,
        volumes: vec![Offered { name: "vol0".into(), port: "p0".into(), lu: 0, head: None }],
        chain: vec![],
        head: Seq(0),
        wish: Wish::Link,
    };
    change(&mut hello);
    w.send(&Msg::Hello(hello).frame()?)?;
    let mut buf = Vec::new();
    let h = r.recv_within(&mut buf, SOON)?;
    assert_eq!(h.kind, FrameKind::Msg);
    Msg::parse(&buf, &h)
}

/// The group's random id, from a region's identity (`format` knows how it is kept).
fn group_id(lab: &Lab) -> u64 {
    let place = lab.site_dir("sync").join("region/.kagami/identity");
    let id: kagami::store::region::Identity =
        kagami::store::files::load(&place, b"KGMREGN\0", 1).unwrap().expect("an identity");
    id.group_id
}

#[test]
fn peers_of_another_version_group_or_volume_are_refused() {
    let lab = Lab::up(&["--sites", "2"]);
    fill(&lab);
    let config = fs::read_to_string(lab.config("sync")).unwrap();
    let listen = config.lines().find(|l| l.starts_with("listen")).unwrap().split('"').nth(1).unwrap().to_owned();
    let addr: Addr = listen.parse().unwrap();
    let me = Identity::generate("primary").unwrap();
    let says = |change: &dyn Fn(&mut Hello)| match greet(kagami::net::dial(&addr, &me, None, SOON), change).unwrap() {
        Msg::Reject { code, text, .. } => (code, text),
        other => panic!("{other:?}"),
    };
    let (code, text) = says(&|h| h.version = 99);
    assert_eq!(code, RejectCode::Version);
    assert!(text.contains("99") && text.contains("upgrade"), "{text}");
    let (code, text) = says(&|h| h.site = "elsewhere".into());
    assert_eq!(code, RejectCode::UnknownPeer);
    assert!(text.contains("elsewhere") && text.contains("kagami peer invite"), "{text}");
    let (code, text) = says(&|h| h.group = "other".into());
    assert_eq!(code, RejectCode::UnknownPair);
    assert!(text.contains("other") && text.contains("site file"), "{text}");
    let (code, text) = says(&|_| {});
    assert_eq!(code, RejectCode::OtherGroup);
    assert!(text.contains("another group"), "{text}");
    let id = group_id(&lab);
    let (code, text) = says(&|h| (h.group_id, h.volumes[0].port) = (id, "p9".into()));
    assert_eq!(code, RejectCode::UnknownPair);
    assert!(text.contains("p9/0") && text.contains("p0/0 (vol0)") && text.contains("remote = \"p9/0\""), "{text}");
    let (code, text) = says(&|h| (h.group_id, h.volumes) = (id, vec![]));
    assert_eq!(code, RejectCode::UnknownPair);
    assert!(text.contains("volume vol0 (p0/0) has no counterpart"), "{text}");
    let (code, text) = says(&|h| h.group_id = id);
    assert_eq!(code, RejectCode::DoesNotFit);
    assert!(text.contains("no config definition"), "{text}");
    // All that has not disturbed the pair.
    fs::write(lab.mnt().join("after"), b"x").unwrap();
    settled(&lab);
    lab.down();
}

#[test]
fn a_wrong_site_file_is_answered_with_its_line() {
    let lab = Lab::up(&["--sites", "2"]);
    fill(&lab);
    let good = fs::read_to_string(lab.config("sync")).unwrap();
    for (from, to, words) in [
        ("mode = \"sync\"", "mode = \"synch\"", "write \"sync\" or \"async\" instead"),
        ("fence = \"never\"", "fense = \"never\"", "unknown key fense; write fence"),
        ("primary = \"primary\"", "primary = \"prim\"", "neither this node"),
    ] {
        edit(&lab.config("sync"), from, to);
        let wrong = fs::read_to_string(lab.config("sync")).unwrap();
        let line = wrong.lines().position(|l| l == to).unwrap() + 1;
        let place = format!("site.toml:{line}: ");
        for command in [&["status"][..], &["node"], &["config", "check"]] {
            ends(&lab.at("sync", command), 2, &[&place, words]);
        }
        fs::write(lab.config("sync"), &good).unwrap();
    }
    settled(&lab);
    lab.down();
}

#[test]
fn a_region_in_use_is_left_alone_and_taken_up_when_it_is_free() {
    let lab = Lab::up(&["--sites", "2"]);
    fill(&lab);
    ends(&lab.at("primary", &["node"]), 4, &["runs already", "kagami status"]);
    // Another node of its own on the same region.
    let second = lab.site_dir("sync").join("second.toml");
    let config = fs::read_to_string(lab.config("sync")).unwrap();
    let config = config.replacen("\"state\"", "\"state-2\"", 1).replacen("/sync.sock", "/second.sock", 1);
    fs::write(&second, config).unwrap();
    let second_at = |args: &[&str]| run(support::lab::kagami().arg("--config").arg(&second).args(args), SOON);
    let mut node = support::lab::kagami();
    node.arg("--config").arg(&second).arg("node").stdout(Stdio::null()).stderr(Stdio::null());
    let mut node = proc::die_with_parent(&mut node).spawn().unwrap();
    let mut said = String::new();
    let told = wait_until(SOON, || {
        said = text(&second_at(&["status"]).stdout).split_whitespace().collect::<Vec<_>>().join(" ");
        said.contains("is in use by another kagami node")
    });
    assert!(told, "{said}");
    ends(&second_at(&["takeover", "lab"]), 1, &["is in use by another kagami node"]);
    fs::write(lab.mnt().join("meanwhile"), b"x").unwrap();
    settled(&lab);
    proc::kill(node.id() as i32, libc::SIGTERM);
    assert!(proc::wait_timeout(&mut node, SOON).is_some_and(|s| s.success()));
    lab.down();
}

#[test]
fn a_region_of_another_volume_or_group_is_refused() {
    let lab = Lab::up(&["--sites", "2"]);
    fill(&lab);
    lab.kill("sync");
    edit(&lab.config("sync"), "name = \"vol0\"", "name = \"vol7\"");
    lab.start("sync");
    down_because(&lab, "sync", &["is the region of volume \"vol0\"", "not of \"vol7\"", "site file"]);
    lab.kill("sync");
    edit(&lab.config("sync"), "name = \"vol7\"", "name = \"vol0\"");
    lab.start("sync");
    settled(&lab);
    // A replica with a history of its own, under the same names.
    let other = Lab::up(&["--sites", "2"]);
    fs::write(other.mnt().join("precious"), b"of the other group").unwrap();
    settled(&other);
    other.ok("down", &[]);
    lab.kill("sync");
    let region = lab.site_dir("sync").join("region");
    let away = lab.site_dir("sync").join("away");
    fs::rename(&region, &away).unwrap();
    fs::rename(other.site_dir("sync").join("region"), &region).unwrap();
    lab.start("sync");
    suspended_because(&lab, "sync", &["belongs to another group"]);
    assert_eq!(fs::read(region.join("tree/precious")).unwrap(), b"of the other group");
    lab.kill("sync");
    fs::rename(&region, other.site_dir("sync").join("region")).unwrap();
    fs::rename(&away, &region).unwrap();
    lab.start("sync");
    settled(&lab);
    lab.down();
}

#[test]
fn a_mount_directory_that_is_not_empty_is_refused() {
    let lab = Lab::up(&["--sites", "2"]);
    fill(&lab);
    let mnt = lab.mnt();
    ends(&lab.at("primary", &["umount", "lab"]), 0, &[]);
    fs::write(mnt.join("mine"), b"x").unwrap();
    let at = mnt.to_str().unwrap();
    ends(&lab.at("primary", &["mount", "lab", at]), 4, &["is not empty", "give an empty directory"]);
    ends(&lab.at("primary", &["mount", "lab", "/nowhere/at/all"]), 2, &["make it first"]);
    let empty = tempfile::tempdir().unwrap();
    let empty_at = empty.path().to_str().unwrap();
    ends(&lab.at("sync", &["mount", "lab", empty_at]), 4, &["secondary", "kagami takeover"]);
    // At the start of a node the same: the group serves, and says why it is not mounted.
    lab.start("primary");
    fs::remove_file(mnt.join("mine")).unwrap();
    ends(&lab.at("primary", &["mount", "lab", at]), 0, &[]);
    restart(&lab, "primary");
    lab.kill("primary");
    run(Command::new("umount").arg("-l").arg(&mnt), SOON);
    run(Command::new("fusermount3").arg("-uz").arg(&mnt), SOON);
    fs::write(mnt.join("mine"), b"x").unwrap();
    lab.try_lab("start", &["primary", "--timeout", "5"]);
    let mut said = String::new();
    let told = wait_until(SOON, || {
        said = lab.try_status("primary").map_or(String::new(), |s| s["groups"][0]["reason"].to_string());
        said.contains("not mounted") && said.contains("is not empty")
    });
    assert!(told, "{said}");
    assert_eq!(fs::read(mnt.join("mine")).unwrap(), b"x");
    fs::remove_file(mnt.join("mine")).unwrap();
    ends(&lab.at("primary", &["mount", "lab", at]), 0, &[]);
    settled(&lab);
    lab.down();
}

#[test]
fn missing_fuse_is_told_with_what_to_install() {
    // Only an ordinary user needs the helper.
    let lab = Lab::prepare(true);
    let home = tempfile::Builder::new().prefix("home-").tempdir_in(support::base_dir()).unwrap();
    let program = home.path().join("kagami");
    fs::copy(support::lab::kagami().get_program(), &program).unwrap();
    if !is_root() {
        return support::skipped("missing_fuse_is_told_with_what_to_install", "only root can hide the helper");
    }
    std::os::unix::fs::chown(home.path(), Some(proc::ORDINARY_UID), Some(proc::ORDINARY_UID)).unwrap();
    // In a mount namespace of its own, in which the helper is nothing that can be run.
    let mut all = Command::new("unshare");
    all.arg("-m").arg("sh").arg("-c");
    all.arg(format!(
        "for f in /usr/bin/fusermount3 /bin/fusermount3; do mount --bind /dev/null $f 2>/dev/null; done
         exec setpriv --reuid {uid} --regid {uid} --clear-groups env HOME={home} TMPDIR={home} PATH=/nowhere {program} lab up {dir}",
        uid = proc::ORDINARY_UID,
        home = home.path().display(),
        program = program.display(),
        dir = lab.dir().display()
    ));
    let out = run(&mut all, Duration::from_secs(60));
    let said = format!("{}{}", text(&out.stdout), text(&out.stderr));
    assert!(matches!(out.status.code(), Some(1 | 2)), "{:?} {said}", out.status);
    assert!(said.contains("fusermount3") && said.contains("fuse3"), "{said}");
}

#[test]
fn a_missing_fuse_device_is_told_and_the_group_serves_its_peers() {
    if !is_root() {
        let why = "only root can hide the device";
        return support::skipped("a_missing_fuse_device_is_told_and_the_group_serves_its_peers", why);
    }
    let lab = Lab::up(&["--sites", "2"]);
    fill(&lab);
    // A shell in a mount namespace of its own, whose /dev has no fuse.
    let without = |command: &str| {
        let dev = lab.dir().join("dev");
        let script = format!(
            "set -e; mkdir -p {dev}; mount -t tmpfs none {dev}
             for f in null zero urandom random; do touch {dev}/$f; mount --bind /dev/$f {dev}/$f; done
             mount --rbind {dev} /dev; exec {program} {command}",
            dev = dev.display(),
            program = support::lab::kagami().get_program().display(),
        );
        run(Command::new("unshare").args(["-m", "sh", "-c", &script]), Duration::from_secs(60))
    };
    let other = lab.dir().join("other");
    ends(&without(&format!("lab up {}", other.display())), 1, &["/dev/fuse is missing", "modprobe fuse"]);
    // A node that is there already and loses the device when it starts again: its peers are served, and it says why
    // nothing is mounted.
    lab.kill("primary");
    run(Command::new("umount").arg("-l").arg(lab.mnt()), SOON);
    let pid = lab.site_dir("primary").join("node.pid");
    let (config, pid) = (lab.config("primary"), pid.display());
    ends(&without(&format!("--config {} node -d --pid-file {pid}", config.display())), 0, &[]);
    let mut said = String::new();
    let told = wait_until(SOON, || {
        said = lab.try_status("primary").map_or(String::new(), |s| s["groups"][0]["reason"].to_string());
        said.contains("not mounted") && said.contains("/dev/fuse")
    });
    assert!(told, "{said}");
    lab.wait_pair("primary", "sync", "PAIR", SOON);
    restart(&lab, "primary");
    settled(&lab);
    lab.down();
}

#[test]
fn a_replica_that_is_not_there_or_another_one_is_never_copied_over() {
    let lab = Lab::up(&["--sites", "2"]);
    fill(&lab);
    let region = lab.site_dir("sync").join("region");
    let away = lab.site_dir("sync").join("away");
    // Its disk is not mounted: an empty directory.
    lab.kill("sync");
    fs::rename(&region, &away).unwrap();
    fs::create_dir(&region).unwrap();
    lab.start("sync");
    down_because(&lab, "sync", &["is not a kagami region", "is its disk mounted?"]);
    suspended_because(&lab, "sync", &["is its disk mounted?"]);
    fs::write(lab.mnt().join("meanwhile"), b"goes on").unwrap();
    assert_eq!(fs::read_dir(&region).unwrap().count(), 0);
    // No directory at all, and then the disk is there: it is taken up without a word.
    fs::remove_dir(&region).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    assert!(!region.exists());
    fs::rename(&away, &region).unwrap();
    settled(&lab);
    assert_eq!(lab.pair("primary", "sync")["last_resync"]["files_copied"], 1);

    // Another tree in its place.
    lab.kill("sync");
    let tree = region.join("tree");
    fs::rename(&tree, region.join("tree.away")).unwrap();
    run_ok(Command::new("cp").arg("-a").arg(region.join("tree.away")).arg(&tree), SOON);
    lab.start("sync");
    down_because(&lab, "sync", &["is not the directory this region was made with", "Bring the original back"]);
    fs::write(lab.mnt().join("meanwhile"), b"goes on and on").unwrap();
    fs::remove_dir_all(&tree).unwrap();
    fs::rename(region.join("tree.away"), &tree).unwrap();
    settled(&lab);

    // The same at the primary: nothing is served, nothing made.
    lab.kill("primary");
    let region = lab.site_dir("primary").join("region");
    let away = lab.site_dir("primary").join("away");
    fs::rename(&region, &away).unwrap();
    fs::create_dir(&region).unwrap();
    lab.try_lab("start", &["primary"]);
    down_because(&lab, "primary", &["is not a kagami region", "is its disk mounted?"]);
    assert_eq!(fs::read_dir(&region).unwrap().count(), 0);
    fs::remove_dir(&region).unwrap();
    fs::rename(&away, &region).unwrap();
    lab.wait_pair("primary", "sync", "PAIR", SOON);
    settled(&lab);
    assert!(wait_until(SOON, || lab.mnt().join("meanwhile").exists()));
    assert_eq!(fs::read(lab.mnt().join("meanwhile")).unwrap(), b"goes on and on");
    lab.down();
}

/// The newest file in a directory of a region's metadata.
fn newest(lab: &Lab, site: &str, dir: &str, extension: &str) -> PathBuf {
    let dir = lab.site_dir(site).join("region/.kagami").join(dir);
    let mut all: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    all.retain(|p| p.extension().is_some_and(|e| e == extension) && fs::metadata(p).unwrap().len() > 64);
    all.sort();
    all.pop().unwrap_or_else(|| panic!("nothing in {}", dir.display()))
}

#[test]
fn torn_tails_are_cut_off_and_nothing_is_lost() {
    let lab = Lab::up(&[]);
    fill(&lab);
    for site in ["sync", "async"] {
        for (cut, garbage) in [(0, &b"garbage garbage garbage"[..]), (0, &[0u8; 4096]), (3, b"")] {
            lab.kill(site);
            let meta = lab.site_dir(site).join("region/.kagami");
            for file in [newest(&lab, site, "journal", "kj"), newest(&lab, site, "queue", "kl"), meta.join("ids")] {
                let f = fs::File::options().append(true).open(&file).unwrap();
                // Cut only where nothing was promised: in what a crash would have left half written.
                let _ = (&f).write_all(garbage);
                if cut > 0 {
                    let _ = (&f).write_all(b"half a record");
                    f.set_len(f.metadata().unwrap().len() - cut).unwrap();
                }
            }
            fs::write(lab.mnt().join(format!("while-{site}")), garbage).unwrap();
            lab.start(site);
            settled(&lab);
        }
        let log = lab.log(site);
        assert!(log.contains("WARN") && log.contains("torn tail") && log.contains("cut off"), "{log}");
    }
    // The primary as well.
    lab.kill("primary");
    for file in [newest(&lab, "primary", "journal", "kj"), lab.site_dir("primary").join("region/.kagami/ids")] {
        fs::File::options().append(true).open(&file).unwrap().write_all(b"garbage").unwrap();
    }
    lab.start("primary");
    settled(&lab);
    fs::rename(lab.mnt().join("d"), lab.mnt().join("renamed")).unwrap();
    settled(&lab);
    lab.down();
}

#[test]
fn damaged_metadata_is_refused_and_never_copied_over() {
    let lab = Lab::up(&["--sites", "2"]);
    fill(&lab);
    for site in ["sync", "primary"] {
        lab.kill(site);
        let meta = lab.site_dir(site).join("region/.kagami");
        let before = support::tree_digest(&lab.tree(site)).unwrap();
        for (name, at) in [
            ("identity", &[3][..]),
            ("identity", &[30]),
            ("state", &[28]),
            ("live", &[2]),
            ("live", &[41, 1024 + 41]),
            ("ids", &[4]),
        ] {
            let file = meta.join(name);
            let good = fs::read(&file).unwrap();
            let mut bad = good.clone();
            at.iter().for_each(|at| bad[*at] ^= 0x5a);
            fs::write(&file, bad).unwrap();
            lab.try_lab("start", &[site]);
            down_because(&lab, site, &[&format!(".kagami/{name}: "), "kagami region create", "backup"]);
            lab.kill(site);
            fs::write(&file, good).unwrap();
        }
        for name in ["state", "live", "ids"] {
            fs::rename(meta.join(name), meta.join("aside")).unwrap();
            lab.try_lab("start", &[site]);
            down_because(&lab, site, &[&format!(".kagami/{name}: "), "missing", "kagami region create"]);
            lab.kill(site);
            fs::rename(meta.join("aside"), meta.join(name)).unwrap();
        }
        assert_eq!(support::tree_digest(&lab.tree(site)).unwrap(), before);
        lab.start(site);
        settled(&lab);
    }
    // One number of the live page that was hit is healed from its copy.
    lab.kill("sync");
    let live = lab.site_dir("sync").join("region/.kagami/live");
    let mut bytes = fs::read(&live).unwrap();
    bytes[41] ^= 0x5a;
    fs::write(&live, bytes).unwrap();
    lab.start("sync");
    settled(&lab);
    assert_eq!(lab.pair("primary", "sync")["last_resync"]["files_copied"], 0);

    // Given up as the message says: copied anew.
    lab.kill("sync");
    let region = lab.site_dir("sync").join("region");
    fs::rename(&region, lab.site_dir("sync").join("away")).unwrap();
    ends(&lab.at("sync", &["region", "create"]), 0, &["made"]);
    lab.start("sync");
    settled(&lab);
    lab.down();
}

/// A small disk of its own for the region of a site. Unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    /// Begins the lab anew with the region of this site on a disk of so many MiB.
    fn under(lab: &Lab, site: &str, mib: u64) -> Disk {
        lab.ok("down", &[]);
        for s in SITES {
            for d in ["region", "state"] {
                fs::remove_dir_all(lab.site_dir(s).join(d)).unwrap();
            }
        }
        let at = lab.site_dir(site).join("region");
        fs::create_dir(&at).unwrap();
        run_ok(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "none"]).arg(&at), SOON);
        let disk = Disk(at);
        lab.ok("up", &[]);
        disk
    }

    fn grow(&self, mib: u64) {
        run_ok(Command::new("mount").args(["-o", &format!("remount,size={mib}m")]).arg(&self.0), SOON);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg("-l").arg(&self.0), SOON);
    }
}

/// Random bytes, and an fsync.
fn write_mib(path: &Path, mib: usize) -> std::io::Result<()> {
    let mut f = fs::File::create(path)?;
    let mut rng = support::Rng::new(7);
    for _ in 0..mib * 4 {
        f.write_all(&rng.bytes(256 << 10))?;
    }
    f.sync_all()
}

#[test]
fn a_full_disk_at_the_secondary_suspends_the_pair_and_work_goes_on() {
    const TEST: &str = "a_full_disk_at_the_secondary_suspends_the_pair_and_work_goes_on";
    if !is_root() {
        return support::skipped(TEST, "a small disk needs root");
    }
    let lab = Lab::up(&[]);
    for site in ["sync", "async"] {
        let disk = Disk::under(&lab, site, 24);
        fill(&lab);
        let begun = Instant::now();
        write_mib(&lab.mnt().join("big"), 40).unwrap();
        for i in 0..100 {
            fs::write(lab.mnt().join(format!("small{i}")), b"goes on").unwrap();
        }
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(15), "{took:?}");
        println!("{site} full: 40 MiB and 100 files took {took:?}");
        suspended_because(&lab, site, &["needs-space", &format!("full at site {site}")]);
        assert_eq!(lab.status(site)["groups"][0]["role"], "secondary");
        fs::rename(lab.mnt().join("d"), lab.mnt().join("moved")).unwrap();
        // Room is made: it comes back by itself.
        disk.grow(200);
        settled(&lab);
        lab.ok("down", &[]);
        drop(disk);
    }
}

#[test]
fn a_full_disk_at_the_primary_is_told_to_the_application_and_harms_nothing() {
    const TEST: &str = "a_full_disk_at_the_primary_is_told_to_the_application_and_harms_nothing";
    if !is_root() {
        return support::skipped(TEST, "a small disk needs root");
    }
    let lab = Lab::up(&[]);
    let disk = Disk::under(&lab, "primary", 16);
    fill(&lab);
    let full = |e: std::io::Error| assert_eq!(e.raw_os_error(), Some(libc::ENOSPC), "{e}");
    full(write_mib(&lab.mnt().join("big"), 30).unwrap_err());
    let mut refused = 0;
    for i in 0..400 {
        let done = (|| {
            let dir = lab.mnt().join(format!("dir{i}"));
            fs::create_dir(&dir)?;
            let mut f = fs::File::create(dir.join("file"))?;
            f.write_all(&[1; 3000])?;
            f.sync_all()?;
            fs::hard_link(dir.join("file"), dir.join("link"))?;
            fs::rename(dir.join("file"), dir.join("renamed"))
        })();
        if let Err(e) = done {
            full(e);
            refused += 1;
        }
    }
    assert!(refused > 0);
    // The pairs are as they were, and all replicas the same.
    lab.wait_pair("primary", "sync", "PAIR", Duration::from_secs(1));
    settled(&lab);
    // It survives being killed like that.
    lab.kill("primary");
    lab.start("primary");
    let status = lab.status("primary");
    assert!(status["groups"][0]["mount"].is_string(), "{status:#}");
    settled(&lab);
    full(write_mib(&lab.mnt().join("big2"), 30).unwrap_err());
    // Taking away makes room.
    fs::remove_file(lab.mnt().join("big")).unwrap();
    fs::remove_file(lab.mnt().join("big2")).unwrap();
    write_mib(&lab.mnt().join("again"), 2).unwrap();
    settled(&lab);
    support::assert_same(&lab.mnt(), &lab.tree("primary"));
    lab.ok("down", &[]);
    drop(disk);
}
