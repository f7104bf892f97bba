//! Tests of the tests' own tools: the comparison notices each kind of difference, the checkers find planted faults.

use crate::support;

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use support::answered::{Answered, Log, Promise};
use support::points::{Model, Writer, find_point};
use support::random::random_tree;
use support::tree::{Options, compare_trees, compare_trees_with, tree_digest};
use support::{is_root, sys};

/// A directory beside the build: a real disk, not a tmpfs.
fn temp() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("kit-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Two equal trees `a` and `b`.
fn twins(files: usize) -> (tempfile::TempDir, PathBuf, PathBuf) {
    let temp = temp();
    let (a, b) = (temp.path().join("a"), temp.path().join("b"));
    for dir in [&a, &b] {
        fs::create_dir(dir).unwrap();
        random_tree(dir, files, 7).unwrap();
    }
    (temp, a, b)
}

#[test]
fn equal_trees_are_equal() {
    let (_temp, a, b) = twins(600);
    assert_eq!(compare_trees(&a, &b), Ok(()));
    assert_eq!(tree_digest(&a).unwrap(), tree_digest(&b).unwrap());
    let (dirs, others) = support::tree::scan(&a, &Options::default()).unwrap().count();
    assert!(dirs > 60 && others > 400, "{dirs} {others}");
}

/// A small tree in which every kind of thing has a fixed name.
fn one_of_each(dir: &Path) {
    fs::create_dir(dir).unwrap();
    fs::create_dir(dir.join("dir")).unwrap();
    fs::write(dir.join("file"), b"content").unwrap();
    fs::write(dir.join("linked"), b"x").unwrap();
    fs::write(dir.join("alone"), b"x").unwrap();
    fs::hard_link(dir.join("linked"), dir.join("also")).unwrap();
    let sparse = fs::File::create(dir.join("sparse")).unwrap();
    sys::pwrite_all(sparse.as_raw_fd(), &[1; 4096], 64 * 4096).unwrap();
    sparse.sync_all().unwrap();
    std::os::unix::fs::symlink("target", dir.join("symlink")).unwrap();
    sys::mknodat(sys::AT_FDCWD, dir.join("fifo"), sys::S_IFIFO | 0o600, 0).unwrap();
    for name in ["dir", "file", "linked", "alone", "sparse", "symlink", "fifo", "."] {
        sys::set_times(sys::AT_FDCWD, dir.join(name), (1, 1), (1_600_000_000, 123)).unwrap();
    }
}

/// Makes two equal trees, changes one, puts the times back, and wants exactly these words in the only difference.
fn notices(change: impl Fn(&Path), words: &[&str]) {
    let temp = temp();
    let (a, b) = (temp.path().join("a"), temp.path().join("b"));
    one_of_each(&a);
    one_of_each(&b);
    assert_eq!(compare_trees(&a, &b), Ok(()));
    change(&b);
    sys::set_times(sys::AT_FDCWD, &b, (1, 1), (1_600_000_000, 123)).unwrap();
    let told = compare_trees(&a, &b).expect_err(words[0]);
    assert_eq!(told.len(), words.len(), "{told:?}");
    for (told, words) in told.iter().zip(words) {
        assert!(told.contains(words), "{told} does not say {words}");
    }
    assert_ne!(tree_digest(&a).unwrap(), tree_digest(&b).unwrap());
}

/// Changes a file without a trace in its times.
fn quietly(path: &Path, change: impl FnOnce(&Path)) {
    change(path);
    sys::set_times(sys::AT_FDCWD, path, (1, 1), (1_600_000_000, 123)).unwrap();
}

#[test]
fn compare_notices_each_difference_of_names_and_types() {
    notices(|d| fs::write(d.join("more"), b"").unwrap(), &["/more: only in the second tree (file)"]);
    notices(|d| fs::remove_file(d.join("fifo")).unwrap(), &["/fifo: only in the first tree (fifo)"]);
    notices(
        |d| {
            fs::remove_file(d.join("symlink")).unwrap();
            quietly(&d.join("symlink"), |p| fs::write(p, b"target").unwrap());
            fs::set_permissions(d.join("symlink"), fs::Permissions::from_mode(0o777)).unwrap();
        },
        &["/symlink: mode", "/symlink: type symlink ≠ file"][1..],
    );
    notices(
        |d| {
            fs::remove_file(d.join("symlink")).unwrap();
            std::os::unix::fs::symlink("other", d.join("symlink")).unwrap();
            sys::set_times(sys::AT_FDCWD, d.join("symlink"), (1, 1), (1_600_000_000, 123)).unwrap();
        },
        &["/symlink: target"],
    );
    notices(
        |d| {
            fs::remove_file(d.join("also")).unwrap();
            fs::hard_link(d.join("alone"), d.join("also")).unwrap();
        },
        &["/alone: shares its object", "/also: shares its object", "/linked: shares its object"],
    );
}

#[test]
fn compare_notices_each_difference_of_content_and_attributes() {
    let same_size = |p: &Path| fs::write(p, b"cOntent").unwrap();
    notices(|d| quietly(&d.join("file"), same_size), &["/file: content differs"]);
    notices(|d| quietly(&d.join("file"), |p| fs::write(p, b"content\0").unwrap()), &["/file: size 7 ≠ 8"]);
    notices(
        |d| {
            quietly(&d.join("sparse"), |p| {
                fs::File::options().write(true).open(p).unwrap().set_len(65 * 4096 + 5).unwrap()
            })
        },
        &["/sparse: size"],
    );
    let fill_hole = |p: &Path| {
        let file = fs::File::options().write(true).open(p).unwrap();
        sys::pwrite_all(file.as_raw_fd(), &[0; 4096], 8 * 4096).unwrap();
        file.sync_all().unwrap();
    };
    notices(|d| quietly(&d.join("sparse"), fill_hole), &["/sparse: data segments"]);
    notices(
        |d| fs::set_permissions(d.join("dir"), fs::Permissions::from_mode(0o700)).unwrap(),
        &["/dir: mode 0755 ≠ 0700"],
    );
    let touch = |name: &'static str| {
        move |d: &Path| sys::set_times(sys::AT_FDCWD, d.join(name), (1, 1), (1_600_000_000, 124)).unwrap()
    };
    notices(touch("file"), &["/file: mtime"]);
    notices(touch("dir"), &["/dir: mtime"]);
    notices(touch("symlink"), &["/symlink: mtime"]);
    notices(|d| sys::set_xattr(&d.join("file"), "user.x", b"y").unwrap(), &["/file: xattrs"]);
    notices(|d| sys::set_xattr(&d.join("dir"), "user.x", b"").unwrap(), &["/dir: xattrs"]);
    let acl = sys::acl(7, &[(1000, 5)], 5, 5, 5);
    notices(|d| sys::set_xattr(&d.join("dir"), "system.posix_acl_access", &acl).unwrap(), &["/dir: xattrs"]);
}

#[test]
fn compare_notices_what_only_root_can_make() {
    if !is_root() {
        return support::skipped("compare_notices_what_only_root_can_make", "not root");
    }
    notices(|d| sys::lchownat(sys::AT_FDCWD, d.join("file"), 5, 0).unwrap(), &["/file: owner"]);
    notices(|d| sys::lchownat(sys::AT_FDCWD, d.join("symlink"), 0, 5).unwrap(), &["/symlink: owner"]);
    notices(|d| sys::set_xattr(&d.join("symlink"), "trusted.x", b"y").unwrap(), &["/symlink: xattrs"]);
    notices(|d| sys::set_xattr(&d.join("fifo"), "trusted.x", b"y").unwrap(), &["/fifo: xattrs"]);
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    notices(|d| sys::set_xattr(&d.join("file"), "security.capability", &capability).unwrap(), &["/file: xattrs"]);
    let device = |minor| {
        move |d: &Path| {
            let path = d.join("fifo");
            fs::remove_file(&path).unwrap();
            sys::mknodat(sys::AT_FDCWD, &path, libc::S_IFCHR | 0o600, libc::makedev(1, minor)).unwrap();
            sys::set_times(sys::AT_FDCWD, &path, (1, 1), (1_600_000_000, 123)).unwrap();
        }
    };
    notices(device(3), &["/fifo: type", "/fifo: device number"]);
    let temp = temp();
    let (a, b) = (temp.path().join("a"), temp.path().join("b"));
    one_of_each(&a);
    one_of_each(&b);
    device(3)(&a);
    device(5)(&b);
    let told = compare_trees_with(&a, &b, &Options { dir_mtime: false, ..Options::default() }).unwrap_err();
    assert_eq!(told.len(), 1);
    assert!(told[0].contains("device number"), "{told:?}");
}

#[test]
fn options_leave_things_out() {
    let (_temp, a, b) = twins(50);
    fs::write(a.join("ignored"), b"x").unwrap();
    sys::set_times(sys::AT_FDCWD, &b, (1, 1), (1, 1)).unwrap();
    let options = Options { dir_mtime: false, ignore: vec![b"ignored".to_vec()], ..Options::default() };
    assert_eq!(compare_trees_with(&a, &b, &options), Ok(()));
    assert!(compare_trees(&a, &b).is_err());
}

#[test]
fn a_run_ends_in_time() {
    let begin = std::time::Instant::now();
    let late = std::panic::catch_unwind(|| support::run(Command::new("sleep").arg("30"), Duration::from_millis(200)));
    assert!(late.is_err());
    assert!(begin.elapsed() < Duration::from_secs(5));
    let out = support::run(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]), Duration::from_secs(5));
    assert_eq!((out.status.code(), &out.stdout[..], &out.stderr[..]), (Some(3), &b"out\n"[..], &b"err\n"[..]));
}

#[test]
fn as_user_is_an_ordinary_user() {
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "id -u; id -G; touch $HOME/mine && stat -c %u $HOME/mine"]);
    let said = support::run_ok(support::as_user(&mut command, home.path()), Duration::from_secs(5));
    let lines: Vec<_> = said.lines().collect();
    assert_ne!(lines[0], "0");
    assert_eq!(lines[0], lines[2]);
    if is_root() {
        assert_eq!(lines[1], "65534");
    }
}

/// A directory that looks like a lab: a process called kagami with its id in node.pid, and as root a mount.
fn false_lab(dir: &Path) -> std::process::Child {
    fs::create_dir_all(dir.join("primary")).unwrap();
    fs::create_dir_all(dir.join("mnt")).unwrap();
    let program = dir.join("kagami-false");
    fs::copy("/bin/sleep", &program).unwrap();
    // A test beside this one may have forked while the copy was open for writing.
    let mut child = Command::new(&program).arg("60").spawn();
    while child.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::ExecutableFileBusy) {
        std::thread::sleep(Duration::from_millis(10));
        child = Command::new(&program).arg("60").spawn();
    }
    let child = child.unwrap();
    fs::write(dir.join("primary/node.pid"), format!("{}\n", child.id())).unwrap();
    if is_root() {
        support::run_ok(
            Command::new("mount").args(["-t", "tmpfs", "none"]).arg(dir.join("mnt")),
            Duration::from_secs(5),
        );
        assert_eq!(support::proc::mounts_below(dir), [dir.join("mnt")]);
    }
    child
}

/// The false lab is gone (its process waits to be reaped by us).
fn is_cleared(dir: &Path, child: &mut std::process::Child) {
    let limit = Duration::from_secs(10);
    assert!(support::proc::wait_until(limit, || !support::proc::alive(child.id() as i32)), "the process is left");
    child.wait().unwrap();
    assert!(support::proc::wait_until(limit, || support::proc::mounts_below(dir).is_empty()), "the mount is left");
}

#[test]
fn a_lab_never_outlives_its_test() {
    let lab = support::Lab::prepare(false);
    let dir = lab.dir().to_path_buf();
    let mut child = false_lab(&dir);
    assert_eq!(lab.pid("primary"), Some(child.id() as i32));
    let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _lab = lab;
        panic!("on purpose");
    }));
    assert!(died.is_err());
    is_cleared(&dir, &mut child);
    assert!(!dir.exists());
}

#[test]
fn a_killed_test_leaves_no_lab() {
    let temp = temp();
    let dir = temp.path().join("lab");
    let mut child = false_lab(&dir);
    let mut watcher = support::lab::watch(&dir, &dir).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert!(support::proc::alive(child.id() as i32), "while the test lives nothing is touched");
    // What the kernel does when the test is killed.
    drop(watcher.stdin.take());
    watcher.wait().unwrap();
    is_cleared(&dir, &mut child);
}

/// Serves a mount and works in it, for [`a_killed_test_that_serves_a_mount_leaves_none`].
#[test]
#[ignore = "a helper, which is killed"]
fn serving_a_mount_until_killed() {
    let lab = crate::mirror::Lab::up(false);
    println!("\nserving {}", lab.dir().display());
    std::thread::scope(|s| {
        for i in 0..4 {
            let file = lab.mnt().join(format!("{i}"));
            s.spawn(move || while fs::write(&file, [i; 1 << 16]).is_ok() {});
        }
    });
}

/// A thread of it may wait for an answer that it would have to give itself, and then holds the connection open.
#[test]
fn a_killed_test_that_serves_a_mount_leaves_none() {
    use std::io::BufRead;
    let connections = fs::read_dir("/sys/fs/fuse/connections");
    if !is_root() && !connections.is_ok_and(|mut c| c.next().is_some()) {
        let why = "an ordinary user can abort a connection only through fusectl, which is not mounted";
        return support::skipped("a_killed_test_that_serves_a_mount_leaves_none", why);
    }
    for round in 0..5 {
        let mut c = Command::new(std::env::current_exe().unwrap());
        c.args(["--exact", "kit::serving_a_mount_until_killed", "--ignored", "--nocapture"]);
        c.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
        let mut child = support::proc::die_with_parent(&mut c).spawn().unwrap();
        let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let dir = lines.filter_map(|l| l.strip_prefix("serving ").map(PathBuf::from)).next().expect("it serves");
        std::thread::sleep(Duration::from_millis(50 + 30 * round));
        assert_eq!(support::proc::mounts_below(&dir), [dir.join("mnt")]);
        support::proc::kill(child.id() as i32, libc::SIGKILL);
        assert!(support::proc::wait_timeout(&mut child, Duration::from_secs(30)).is_some(), "it does not end");
        let gone = || support::proc::mounts_below(&dir).is_empty() && !dir.exists();
        assert!(support::proc::wait_until(Duration::from_secs(30), gone), "{} is left", dir.display());
    }
}

/// How long the tools take on a large tree; run by hand.
#[test]
#[ignore = "a measurement"]
fn large_trees_are_compared_quickly() {
    let temp = temp();
    let (a, b) = (temp.path().join("a"), temp.path().join("b"));
    let time = |what: &str, work: &mut dyn FnMut()| {
        let begin = std::time::Instant::now();
        work();
        // SAFETY: plain data, filled by the call.
        let used = unsafe {
            let mut used = std::mem::zeroed::<libc::rusage>();
            libc::getrusage(libc::RUSAGE_SELF, &mut used);
            used
        };
        let (user, system) = (used.ru_utime.tv_sec, used.ru_stime.tv_sec);
        println!("{what}: {:.2} s (so far {user} s user, {system} s system)", begin.elapsed().as_secs_f64());
    };
    for dir in [&a, &b] {
        fs::create_dir(dir).unwrap();
        time("making 50,000 objects", &mut || random_tree(dir, 50_000, 1).unwrap());
    }
    time("comparing them", &mut || assert_eq!(compare_trees(&a, &b), Ok(())));
    time("digest of one", &mut || drop(tree_digest(&a).unwrap()));
    let roots: Vec<_> = ["v0", "v1"].map(|v| temp.path().join(v)).into();
    roots.iter().for_each(|r| fs::create_dir(r).unwrap());
    time("50,000 steps", &mut || drop(Writer::resume(&roots, 5, 0).run(|n| n == 50_000)));
    time("finding the point", &mut || assert_eq!(find_point(&roots, 5, 60_000), Ok(50_000)));
}

#[test]
fn pairs_are_found_in_a_status() {
    let status = serde_json::json!({"groups": [{"pairs": [{"name": "sync", "state": "PAIR"}, {"name": "async", "state": "COPY"}]}]});
    assert_eq!(support::lab::find_pair(&status, "async").unwrap()["state"], "COPY");
    assert!(support::lab::find_pair(&status, "other").is_none());
}

/// Runs the recognisable workload for `steps` steps over two directories of their own.
fn points(steps: u64) -> (tempfile::TempDir, Vec<PathBuf>) {
    let temp = temp();
    let roots: Vec<_> = ["v0", "v1"].map(|v| temp.path().join(v)).into();
    roots.iter().for_each(|r| fs::create_dir(r).unwrap());
    let (answered, error) = Writer::resume(&roots, 5, 0).run(|n| n == steps);
    assert_eq!((answered, error.map(|e| e.to_string())), (steps, None));
    (temp, roots)
}

#[test]
fn points_are_recognised() {
    let (_temp, roots) = points(3000);
    assert_eq!(find_point(&roots, 5, 5000), Ok(3000));
    let mut writer = Writer::resume(&roots, 5, 3000);
    for n in 3001..3050 {
        assert_eq!(writer.step().unwrap(), n);
        assert_eq!(find_point(&roots, 5, 5000), Ok(n));
    }
    let kinds: std::collections::BTreeSet<_> = {
        let mut model = Model::new(2, 5);
        (0..3000).map(|_| format!("{:?}", model.advance().1).split('(').next().unwrap().to_owned()).collect()
    };
    assert_eq!(kinds.len(), 7, "every kind of step happens: {kinds:?}");
    assert_eq!(find_point(&[roots[0].join("nothing"), roots[1].join("here")], 5, 100), Ok(0));
}

#[test]
fn mixtures_are_found() {
    // One volume ahead of the other by a few steps.
    let (_temp_a, a) = points(2000);
    let (_temp_b, b) = points(2010);
    let told = find_point(&[a[0].clone(), b[1].clone()], 5, 3000).unwrap_err();
    assert!(told.contains("a mixture") && told.contains("nearest"), "{told}");
    // A lost write, a lost chmod, a file too many, a file too few.
    let file = fs::read_dir(&a[0]).unwrap().flatten().find(|e| e.metadata().unwrap().len() > 4096).unwrap().path();
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() - 4096]).unwrap();
    assert!(find_point(&a, 5, 3000).is_err());
    fs::write(&file, &whole).unwrap();
    assert_eq!(find_point(&a, 5, 3000), Ok(2000));
    let mode = fs::metadata(&file).unwrap().permissions();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o601)).unwrap();
    assert!(find_point(&a, 5, 3000).is_err());
    fs::set_permissions(&file, mode).unwrap();
    fs::write(a[1].join("more"), b"").unwrap();
    assert!(find_point(&a, 5, 3000).unwrap_err().contains("more should not be there"));
    fs::remove_file(a[1].join("more")).unwrap();
    fs::remove_file(&file).unwrap();
    assert!(find_point(&a, 5, 3000).unwrap_err().contains("is missing"));
}

/// Some work of four threads, at rest.
fn answered(promise: Promise) -> (tempfile::TempDir, Log) {
    let temp = temp();
    let work = Answered::start(temp.path(), 4, promise, 11);
    assert!(support::proc::wait_until(Duration::from_secs(60), || work.answered() > 3000));
    let log = work.finish();
    assert_eq!(log.errors(), Vec::<String>::new());
    (temp, log)
}

/// A file of thread 1 that is not empty.
fn victim(root: &Path) -> PathBuf {
    let files = fs::read_dir(root.join("t1")).unwrap().flatten();
    files.map(|e| e.path()).find(|p| fs::metadata(p).unwrap().len() >= 8192).unwrap()
}

#[test]
fn answered_work_is_checked() {
    for promise in [Promise::Close, Promise::EachWrite] {
        let (temp, log) = answered(promise);
        let root = temp.path();
        assert_eq!(log.check(root), Ok(()));
        let (file, spare) = (victim(root), root.join("spare"));
        fs::rename(&file, &spare).unwrap();
        assert!(log.check(root).is_err(), "a lost file");
        fs::rename(&spare, root.join("t1/other")).unwrap();
        assert!(log.check(root).is_err(), "another name");
        fs::rename(root.join("t1/other"), &file).unwrap();
        assert_eq!(log.check(root), Ok(()));
        let whole = fs::read(&file).unwrap();
        fs::write(&file, &whole[..whole.len() - 4096]).unwrap();
        assert!(log.check(root).is_err(), "a lost block at the end");
        let mut torn = whole.clone();
        torn[4096 - 100..4096].fill(0x55);
        fs::write(&file, &torn).unwrap();
        assert!(log.check(root).is_err(), "a torn block");
        fs::write(&file, &whole).unwrap();
        assert_eq!(log.check(root), Ok(()));
        fs::write(root.join("t2/zombie"), b"").unwrap();
        assert!(log.check(root).unwrap_err()[0].contains("zombie should not be there"));
    }
}
