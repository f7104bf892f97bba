//! The mounted volume behind servers of NFS and SMB (MS-16, the second embodiment: the mirror runs in an intermediate
//! server), and file handles that outlive the kernel's caches.

use crate::support;

use std::ffi::CString;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use support::lab::Lab;
use support::proc::{die_with_parent, run, wait_until};
use support::serve::free_port;
use support::{Rng, is_root};

const SOON: Duration = Duration::from_secs(30);

/// A server started by a test, which ends with it.
struct Server {
    child: Child,
    log: PathBuf,
}

impl Server {
    fn start(command: &mut Command, log: PathBuf) -> Server {
        let out = std::fs::File::create(log.with_extension("out")).unwrap();
        command.process_group(0).stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
        Server { child: die_with_parent(command).spawn().unwrap_or_else(|e| panic!("{command:?}: {e}")), log }
    }

    fn said(&self) -> String {
        let tail = |p: &Path| {
            let text = std::fs::read_to_string(p).unwrap_or_default();
            text.lines().rev().take(20).collect::<Vec<_>>().join("\n")
        };
        format!("{}\n{}", tail(&self.log), tail(&self.log.with_extension("out")))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // With what it has started.
        // SAFETY: plain numbers; the group is that of a child that was not waited for yet.
        unsafe { libc::kill(-(self.child.id() as i32), libc::SIGKILL) };
        let _ = self.child.wait();
    }
}

/// These programs are installed.
fn have(programs: &[&str]) -> bool {
    let dirs = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/bin", "/sbin"];
    programs.iter().all(|p| dirs.iter().any(|d| Path::new(d).join(p).exists()))
}

/// An example's file with the paths and ports of a test.
fn example(name: &str, into: &Path, changes: &[(&str, String)]) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/export").join(name);
    let mut text = std::fs::read_to_string(&file).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "{} has no {from:?}", file.display());
        text = text.replace(from, to);
    }
    std::fs::write(into, text).unwrap();
}

/// Files that a client puts: some in directories, of sizes around those of pages and requests.
fn files(dir: &Path) -> Vec<(String, PathBuf)> {
    let mut rng = Rng::new(support::seed("export"));
    std::fs::create_dir(dir).unwrap();
    let sizes = [0, 1, 4095, 4096, 4097, 20_000, 61_440];
    let one = |i: usize| {
        let (name, file) = (format!("d{}/f{i}", i % 3), dir.join(i.to_string()));
        std::fs::write(&file, rng.bytes(sizes[i % sizes.len()])).unwrap();
        (name, file)
    };
    (0..30).map(one).collect()
}

/// Every file is in a tree as the client has it.
#[track_caller]
fn all_in(tree: &Path, put: &[(String, PathBuf)]) {
    for (name, file) in put {
        let (is, was) = (std::fs::read(tree.join(name)), std::fs::read(file).unwrap());
        let is = is.unwrap_or_else(|e| panic!("{name} in {}: {e}", tree.display()));
        assert!(is == was, "{name} in {} has {} bytes, should have {}", tree.display(), is.len(), was.len());
    }
}

/// Drops what the kernel remembers of names and objects, so that it has to look again.
fn drop_names() {
    std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
}

/// SMB: what a client was told is closed is at the sync site when the primary is killed, and all sites agree.
#[test]
fn ms16_a_client_writes_over_smb_and_the_sites_agree() {
    if !is_root() || !have(&["smbd", "smbclient"]) {
        return support::skipped("ms16_smb", "needs root, smbd and smbclient (packages samba, smbclient)");
    }
    let lab = Lab::up(&[]);
    let own = lab.dir().join("smb");
    std::fs::create_dir(&own).unwrap();
    let port = free_port();
    let dirs = ["private", "state", "cache", "run"].map(|d| own.join(d));
    dirs.iter().for_each(|d| std::fs::create_dir(d).unwrap());
    let [private, state, cache, run_dir] = dirs.map(|d| d.display().to_string());
    let conf = own.join("smb.conf");
    example(
        "smb.conf",
        &conf,
        &[
            ("/srv/docs", lab.mnt().display().to_string()),
            ("smb ports = 445", format!("smb ports = {port}")),
            ("/var/lib/samba/private", private),
            ("/var/lib/samba", state),
            ("/var/cache/samba", cache),
            ("/run/samba", run_dir),
            ("/var/log/samba/log.smbd", own.join("log").display().to_string()),
        ],
    );
    let mut smbd = Command::new("smbd");
    smbd.args(["--foreground", "--no-process-group", "-s"]).arg(&conf);
    let server = Server::start(&mut smbd, own.join("log"));
    let client = |commands: &str| {
        let mut c = Command::new("smbclient");
        c.arg("//127.0.0.1/docs").args(["-N", "-p", &port.to_string(), "-c", commands]);
        run(&mut c, SOON)
    };
    assert!(wait_until(SOON, || client("ls").status.success()), "{}", server.said());

    let put = files(&own.join("put"));
    let mut commands = String::from("mkdir d0; mkdir d1; mkdir d2; ");
    put.iter().for_each(|(name, file)| commands += &format!("put {} {name}; ", file.display()));
    commands += &format!("put {} old; rename old d0/new; put {} gone; rm gone", put[5].1.display(), put[1].1.display());
    let out = client(&commands);
    assert!(out.status.success(), "{}\n{}", support::proc::text(&out.stdout), server.said());
    lab.kill_now("primary");
    drop(server);
    let sync = lab.tree("sync");
    assert!(wait_until(SOON, || std::fs::read(sync.join("d0/new")).is_ok() && !sync.join("gone").exists()));
    all_in(&sync, &put);
    assert!(std::fs::read(sync.join("d0/new")).unwrap() == std::fs::read(&put[5].1).unwrap());
    lab.start("primary");
    lab.wait(60);
    lab.assert_trees_equal();
    lab.down();
}

/// NFS 4: a client's session goes on after the server's host forgot what it had cached; what was committed is at the sync
/// site when the primary is killed, and all sites agree.
#[test]
fn ms16_a_client_writes_over_nfs_and_the_sites_agree() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/nfs_client.py");
    let client_works = || run(Command::new(support::serve::python()).arg(&script), SOON).status.success();
    if !is_root() || !have(&["ganesha.nfsd"]) || !client_works() {
        return support::skipped("ms16_nfs", "needs root, nfs-ganesha, nfs-ganesha-vfs and libnfs (libnfs-utils)");
    }
    let lab = Lab::up(&[]);
    remount(&lab);
    let own = lab.dir().join("nfs");
    std::fs::create_dir_all(own.join("recovery")).unwrap();
    let port = free_port();
    let conf = own.join("ganesha.conf");
    example(
        "ganesha.conf",
        &conf,
        &[
            ("Path = /srv/docs", format!("Path = {}", lab.mnt().display())),
            ("NFS_Port = 2049", format!("NFS_Port = {port}")),
            ("/var/lib/nfs/ganesha", own.join("recovery").display().to_string()),
        ],
    );
    let start = || {
        let mut g = Command::new("ganesha.nfsd");
        g.arg("-F").arg("-f").arg(&conf).arg("-L").arg(own.join("log")).arg("-p").arg(own.join("pid"));
        Server::start(&mut g, own.join("log"))
    };
    let client = |commands: &[String]| {
        let mut c = Command::new(support::serve::python());
        c.arg(&script).arg(port.to_string()).arg("/docs").stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = die_with_parent(&mut c).spawn().unwrap();
        child.stdin.take().unwrap().write_all((commands.join("\n") + "\n").as_bytes()).unwrap();
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        if child.wait().unwrap().success() { Ok(()) } else { Err(said) }
    };
    let put = files(&own.join("put"));
    let first = || vec![format!("put\t{}\t/first", put[1].1.display())];
    let server = start();
    // A server that has just begun waits for clients that knew it.
    assert!(wait_until(SOON, || client(&first()).is_ok()), "{:?}\n{}", client(&first()), server.said());

    // One session: its handles of directories and files outlive what the kernel remembers of them.
    let mut commands: Vec<String> = (0..3).map(|i| format!("mkdir\t/d{i}")).collect();
    for (i, (name, file)) in put.iter().enumerate() {
        if i % 10 == 5 {
            commands.push("forget".into());
        }
        commands.push(format!("put\t{}\t/{name}", file.display()));
    }
    commands.push("forget".into());
    commands.extend(put.iter().map(|(name, file)| format!("get\t/{name}\t{}.back", file.display())));
    commands.extend(["mv\t/first\t/d2/second", "forget", "cut\t/d2/second\t0"].map(String::from));
    commands.push(format!("put\t{}\t/gone", put[2].1.display()));
    commands.push("rm\t/gone".into());
    client(&commands).unwrap_or_else(|e| panic!("{e}\n{}", server.said()));
    for (name, file) in &put {
        let back = std::fs::read(file.with_extension("back")).unwrap();
        assert!(back == std::fs::read(file).unwrap(), "{name} came back different");
    }
    // What was committed is at the sync site, whatever becomes of the primary and of the server.
    lab.kill_now("primary");
    drop(server);
    let sync = lab.tree("sync");
    assert!(wait_until(SOON, || !sync.join("gone").exists() && sync.join("d2/second").exists()));
    all_in(&sync, &put);
    assert_eq!(std::fs::metadata(sync.join("d2/second")).unwrap().len(), 0);
    lab.start("primary");
    lab.wait(60);
    lab.assert_trees_equal();
    lab.down();
}

/// Mounts the volume again, for a server of NFS.
fn remount(lab: &Lab) {
    let mnt = lab.mnt();
    let ok = |args: &[&str]| {
        let out = lab.at("primary", args);
        assert!(out.status.success(), "{args:?}: {}", support::proc::text(&out.stderr));
    };
    ok(&["umount", mnt.to_str().unwrap()]);
    ok(&["mount", "lab", mnt.to_str().unwrap(), "-o", "nfs_export"]);
}

/// A file handle, as a server of NFS keeps it.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    data: [u8; 128],
}

fn handle_of(path: &Path) -> Handle {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut h = Handle { bytes: 128, kind: 0, data: [0; 128] };
    let mut mount = 0i32;
    // SAFETY: the handle has room for as many bytes as it says; the path is a C string.
    let r = unsafe { libc::syscall(libc::SYS_name_to_handle_at, libc::AT_FDCWD, path.as_ptr(), &mut h, &mut mount, 0) };
    assert_eq!(r, 0, "{}", std::io::Error::last_os_error());
    h
}

fn open_handle(mnt: &Path, h: &Handle) -> std::io::Result<OwnedFd> {
    let dir = support::sys::open_dir(mnt)?;
    // SAFETY: the handle is one that the kernel filled in.
    let fd = unsafe { libc::syscall(libc::SYS_open_by_handle_at, dir.as_raw_fd(), h, libc::O_RDONLY) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: a descriptor just opened, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Handles of files and directories are good after the kernel forgot the nodes, after a rename and under another leg; one of
/// a removed file never means the file that got its inode number.
#[test]
fn ms16_file_handles_last_as_long_as_the_mount() {
    if !is_root() {
        return support::skipped("ms16_handles", "handles are opened by root");
    }
    let lab = Lab::up(&["--sites", "2"]);
    remount(&lab);
    let mnt = lab.mnt();
    let deep = mnt.join("a/b/c");
    std::fs::create_dir_all(&deep).unwrap();
    let names: Vec<String> = (0..50).map(|i| format!("f{i}")).collect();
    let mut handles = Vec::new();
    for n in &names {
        std::fs::write(deep.join(n), n).unwrap();
        handles.push(handle_of(&deep.join(n)));
    }
    let dir = handle_of(&mnt.join("a/b"));
    drop_names();
    std::fs::rename(mnt.join("a"), mnt.join("moved")).unwrap();
    std::fs::rename(mnt.join("moved/b/c/f0"), mnt.join("f0")).unwrap();
    drop_names();
    for (n, h) in names.iter().zip(&handles) {
        let fd = open_handle(&mnt, h).unwrap_or_else(|e| panic!("{n}: {e}"));
        let mut buf = [0; 16];
        let len = support::sys::pread(fd.as_raw_fd(), &mut buf, 0).unwrap();
        assert_eq!(&buf[..len], n.as_bytes());
    }
    // A directory's handle gives its place: the kernel asks what is above it, up to the root.
    let fd = open_handle(&mnt, &dir).unwrap();
    let at = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
    assert_eq!(at, mnt.join("moved/b"));
    drop(fd);

    // All removed, and as many made anew: some get the inode numbers.
    let node = |p: &Path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(p).unwrap());
    let c = mnt.join("moved/b/c");
    let old: Vec<u64> = names[1..].iter().map(|n| node(&c.join(n))).collect();
    names[1..].iter().for_each(|n| std::fs::remove_file(c.join(n)).unwrap());
    drop_names();
    let mut again = 0;
    for n in &names[1..] {
        std::fs::write(c.join(n), "another").unwrap();
        again += old.contains(&node(&c.join(n))) as u32;
    }
    assert!(again > 0, "no inode number was used again: nothing was shown");
    drop_names();
    for h in &handles[1..] {
        let e = open_handle(&mnt, h).expect_err("the handle of a removed file");
        assert_eq!(e.raw_os_error(), Some(libc::ESTALE), "{e}");
    }
    assert!(open_handle(&mnt, &handles[0]).is_ok());
    lab.down();
}
