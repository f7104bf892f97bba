//! kagami as mount(8), fstab and service managers use it (B6): the helper, its options and every exit code, umount(8)
//! and what the node makes of it, sd_notify. Each test has a machine of its own, see `support::ns`.

use crate::support;

use kagami::base::Result;
use kagami::node::control::{self, Commands, Request};
use serde_json::Value;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;
use support::ns::Ns;
use support::proc::{self, text, wait_until};

fn said(out: &Output) -> String {
    format!("{}{}", text(&out.stdout), text(&out.stderr))
}

/// The command ends with this code and says these words.
#[track_caller]
fn ends(out: &Output, code: i32, words: &str) {
    assert_eq!(out.status.code(), Some(code), "{}", said(out));
    assert!(said(out).contains(words), "no {words:?} in: {}", said(out));
}

/// A site file for one site with two volumes, below `DIR/root` (or the ordinary user's `DIR/home`).
fn site_file(base: &Path) -> String {
    let base = base.display();
    format!(
        "[node]\nsite = \"here\"\nstate_dir = \"{base}/state\"\n[[group]]\nname = \"lab\"\nprimary = \"here\"\n\
         [[group.volume]]\nname = \"vol0\"\nregion = \"{base}/r0\"\n[[group.volume]]\nname = \"vol1\"\nregion = \"{base}/r1\"\n"
    )
}

/// A machine with /etc/kagami/site.toml, its regions, and mount points `DIR/m0` and `DIR/m1`.
fn machine(test: &str) -> Option<Ns> {
    let ns = Ns::up(test)?;
    fs::create_dir(ns.path("root")).unwrap();
    fs::write(ns.path("site.toml"), site_file(&ns.path("root"))).unwrap();
    let script =
        "cp $DIR/site.toml /etc/kagami/ && mkdir $DIR/m0 $DIR/m1 && $DIR/kagami -c /etc/kagami/site.toml region create";
    ends(&ns.sh(script), 0, "made");
    Some(ns)
}

fn start(ns: &Ns) {
    ends(&ns.sh("$DIR/kagami -c /etc/kagami/site.toml node -d"), 0, "running");
}

fn fstab(ns: &Ns, lines: &str) {
    fs::write(ns.path("fstab"), lines.replace("$DIR", ns.dir().to_str().unwrap())).unwrap();
    ends(&ns.sh("cat $DIR/fstab >/etc/fstab"), 0, "");
}

fn status(ns: &Ns) -> String {
    text(&ns.sh("$DIR/kagami -c /etc/kagami/site.toml status | tr -s '\\n ' '  '").stdout)
}

/// Source, type and options of a mount point, as findmnt(8) has them; empty when there is none.
fn findmnt(ns: &Ns, dir: &str) -> String {
    text(&ns.sh(&format!("findmnt -rno SOURCE,FSTYPE,OPTIONS -M {dir}")).stdout).trim().to_owned()
}

#[test]
fn b6_mount_all_umount_and_mount_again() {
    let Some(ns) = machine("b6_mount_all_umount_and_mount_again") else { return };
    start(&ns);
    fstab(
        &ns,
        "lab/vol0 $DIR/m0 kagami _netdev,nofail,noatime,x-systemd.automount 0 0\n\
         kagami#lab/vol1 $DIR/m1 fuse.kagami noauto,ro,comment=x 0 0\n",
    );
    ends(&ns.sh("mount -a"), 0, "");
    let m0 = findmnt(&ns, "$DIR/m0");
    assert!(m0.starts_with("lab/vol0 fuse.kagami rw,noatime,"), "{m0}");
    assert_eq!(findmnt(&ns, "$DIR/m1"), "", "noauto");
    ends(&ns.sh("mount $DIR/m1"), 0, "");
    let m1 = findmnt(&ns, "$DIR/m1");
    assert!(m1.starts_with("lab/vol1 fuse.kagami ro,relatime,"), "{m1}");
    // Once more changes nothing.
    ends(
        &ns.sh("mount -a && echo hello >$DIR/m0/f && cat $DIR/root/r0/tree/f && findmnt -rnt fuse.kagami | wc -l"),
        0,
        "hello\n2\n",
    );
    for change in ["touch $DIR/m1/f", "mkdir $DIR/m1/d", "chmod 777 $DIR/m1", "ln -s x $DIR/m1/l"] {
        ends(&ns.sh(change), 1, "Read-only file system");
    }
    assert!(status(&ns).contains("(ro)"), "{}", status(&ns));
    // The node was not asked to, and notices; the volume can be mounted at once.
    ends(&ns.sh("umount $DIR/m0 && mount $DIR/m0 && cat $DIR/m0/f"), 0, "hello");
    ends(&ns.sh("umount $DIR/m0"), 0, "");
    assert!(wait_until(Duration::from_secs(5), || status(&ns).contains("m0 was unmounted, not by an order to kagami")));
    ends(
        &ns.sh("mount $DIR/m0 && kagami=$DIR/kagami && $kagami -c /etc/kagami/site.toml umount $DIR/m0"),
        0,
        "is unmounted",
    );
    assert_eq!(findmnt(&ns, "$DIR/m0"), "");
    ends(&ns.sh("umount -a -t fuse.kagami && findmnt -rnt fuse.kagami | wc -l"), 0, "0\n");
}

#[test]
fn b6_a_lazy_umount_lasts_until_the_last_file_is_closed() {
    let Some(ns) = machine("b6_a_lazy_umount_lasts_until_the_last_file_is_closed") else { return };
    start(&ns);
    ends(&ns.sh("mount -t kagami lab $DIR/m0 && echo 1 >$DIR/m0/f"), 0, "");
    let mut reader = ns.inside(
        Command::new("sh").args(["-c", "echo $$ >$DIR/reader; exec sleep 300 <$DIR/m0/f"]).env("DIR", ns.dir()),
    );
    let mut reader = proc::die_with_parent(&mut reader).spawn().unwrap();
    let busy = || ns.sh("umount $DIR/m0; echo $?");
    assert!(wait_until(Duration::from_secs(10), || {
        let out = busy();
        if text(&out.stdout) == "0\n" {
            ends(&ns.sh("mount -t kagami lab $DIR/m0"), 0, "");
        }
        said(&out).contains("busy")
    }));
    ends(&ns.sh("umount -l $DIR/m0"), 0, "");
    assert!(status(&ns).contains("its mount point was taken away"), "{}", status(&ns));
    ends(&ns.sh("mount -t kagami lab $DIR/m0"), 32, "files are still open in it");
    ends(&ns.sh("kill $(cat $DIR/reader)"), 0, "");
    reader.wait().unwrap();
    ends(&ns.sh("mount -t kagami lab $DIR/m0 && cat $DIR/m0/f"), 0, "1");
}

#[test]
fn b6_options_are_heeded_and_remembered() {
    let Some(ns) = machine("b6_options_are_heeded_and_remembered") else { return };
    start(&ns);
    ends(&ns.sh("mount -t fuse.kagami kagami#lab/vol0 $DIR/m0 -o noexec,nosuid,nodev,sync,write_through"), 0, "");
    let m0 = findmnt(&ns, "$DIR/m0");
    assert!(m0.starts_with("lab/vol0 fuse.kagami rw,nosuid,nodev,noexec,") && m0.contains("sync"), "{m0}");
    ends(&ns.sh("cp /bin/true $DIR/m0/ && $DIR/m0/true"), 126, "ermission denied");
    ends(&ns.sh("mount -t kagami lab/vol0 $DIR/m0 -o noexec,nosuid,nodev,sync,write_through"), 0, "");
    ends(&ns.sh("mount -t kagami lab/vol0 $DIR/m0"), 32, "mounted already, with other options");
    ends(&ns.sh("mount -t kagami lab/vol0 $DIR/m1"), 32, "mounted already, at");
    // After a kill of the node the mount is dead; the next start takes it away and mounts as before.
    ends(&ns.sh("mount -t kagami lab/vol1 $DIR/m1 -o ro && kill -9 $(cat $DIR/root/state/node.pid)"), 0, "");
    let dead = || said(&ns.sh("ls $DIR/m1")).contains("not connected");
    assert!(wait_until(Duration::from_secs(10), dead));
    start(&ns);
    let back = || findmnt(&ns, "$DIR/m1").starts_with("lab/vol1 fuse.kagami ro,");
    assert!(wait_until(Duration::from_secs(10), back), "{}", status(&ns));
    assert_eq!(findmnt(&ns, "$DIR/m0"), m0);
    // What umount(8) ended stays so at the next start.
    ends(&ns.sh("umount $DIR/m1"), 0, "");
    assert!(wait_until(Duration::from_secs(5), || status(&ns).contains("m1 was unmounted")));
    ends(&ns.sh("kill -9 $(cat $DIR/root/state/node.pid); sleep 0.5"), 0, "");
    start(&ns);
    assert!(wait_until(Duration::from_secs(10), || findmnt(&ns, "$DIR/m0") == m0));
    assert_eq!(findmnt(&ns, "$DIR/m1"), "");
}

#[test]
fn b6_an_ordinary_user_mounts_by_fstab() {
    let Some(ns) = machine("b6_an_ordinary_user_mounts_by_fstab") else { return };
    let home = ns.path("home");
    fs::create_dir_all(home.join(".config/kagami")).unwrap();
    fs::write(home.join(".config/kagami/site.toml"), site_file(&home)).unwrap();
    // mount(8) leaves its helpers no environment: the home is that of the user database.
    ends(&ns.sh("sed -i \"s,^nobody:.*,nobody:x:65534:65534::$DIR/home:/bin/sh,\" /etc/passwd"), 0, "");
    ends(&ns.sh("mkdir $DIR/home/mnt $DIR/home/mnt1 && chown -R nobody $DIR/home && chmod 700 $DIR/home/mnt"), 0, "");
    ends(&ns.user("$DIR/kagami -c ~/.config/kagami/site.toml region create"), 0, "made");
    fstab(
        &ns,
        "lab/vol0 $DIR/home/mnt kagami noauto,user,start,_netdev 0 0\n\
         lab/vol1 $DIR/home/mnt1 kagami noauto,user,exec,ro,_netdev 0 0\nlab/vol0 $DIR/m0 kagami noauto,_netdev 0 0\n",
    );
    // Its node is started by the helper, which mount(8) runs as that user.
    ends(&ns.user("mount $DIR/home/mnt && echo mine >~/mnt/f && stat -c %U ~/mnt/f"), 0, "nobody");
    let m = findmnt(&ns, "$DIR/home/mnt");
    assert!(m.starts_with("lab/vol0 fuse.kagami rw,nosuid,nodev,noexec,") && m.contains("user_id=65534"), "{m}");
    ends(&ns.user("ps -o user= -p $(cat ~/state/node.pid)"), 0, "nobody");
    ends(&ns.user("mount $DIR/home/mnt1 && cp /bin/true ~/mnt/ && ~/mnt/true"), 126, "ermission denied");
    let m = findmnt(&ns, "$DIR/home/mnt1");
    assert!(m.starts_with("lab/vol1 fuse.kagami ro,nosuid,nodev,relatime"), "{m}");
    ends(
        &ns.user("umount $DIR/home/mnt && mount $DIR/home/mnt && cat ~/mnt/f && umount $DIR/home/mnt $DIR/home/mnt1"),
        0,
        "mine",
    );
    // A directory that is not theirs: mount(8) asks the helper all the same, and fusermount3 refuses.
    ends(&ns.user("mount $DIR/m0"), 32, "no write access to mountpoint");
    // The node of another user is not theirs.
    start(&ns);
    fstab(&ns, "lab/vol0 $DIR/home/mnt kagami user,config=/etc/kagami/site.toml,_netdev 0 0\n");
    ends(&ns.user("mount $DIR/home/mnt"), 1, "no permission for the control socket");
    ends(&ns.user("kill $(cat ~/state/node.pid)"), 0, "");
}

#[test]
fn b6_nofail_and_a_part_of_several() {
    let Some(ns) = machine("b6_nofail_and_a_part_of_several") else { return };
    fstab(
        &ns,
        "lab/vol0 $DIR/m0 kagami nofail,_netdev 0 0\nlab/vol1 $DIR/m1 kagami nofail,_netdev,config=/etc/none 0 0\n",
    );
    ends(&ns.sh("mount -a"), 0, "not mounted (nofail): no node answers");
    fstab(&ns, "lab/vol0 $DIR/m0 kagami _netdev 0 0\n");
    ends(&ns.sh("mount -a"), 32, "start it with `kagami --config /etc/kagami/site.toml node -d`");
    start(&ns);
    fstab(&ns, "lab/vol0 $DIR/m0 kagami _netdev 0 0\nlab/vol9 $DIR/m1 kagami _netdev 0 0\n");
    ends(&ns.sh("mount -a"), 64, "no volume \"vol9\"");
    ends(&ns.sh("umount $DIR/m0"), 0, "");
    // What is wrong stays a failure.
    fstab(&ns, "lab/vol0 $DIR/m0 kagami nofail,bogus 0 0\n");
    ends(&ns.sh("mount -a"), 32, "unknown mount option: bogus");
    ends(&ns.sh("mount $DIR/m0"), 1, "unknown mount option: bogus");
    ends(&ns.sh("mount -s -t kagami lab $DIR/m0 -o bogus"), 0, "");
    ends(&ns.sh("touch $DIR/m1/x; mount -t kagami lab/vol1 $DIR/m1 -o nofail"), 32, "is not empty");
}

#[test]
fn b6_update_fstab_makes_replaces_and_removes_one_line() {
    let Some(ns) = machine("b6_update_fstab_makes_replaces_and_removes_one_line") else { return };
    start(&ns);
    fstab(&ns, "# mine\ntmpfs /tmp tmpfs defaults 0 0\n");
    let kagami = "$DIR/kagami -c /etc/kagami/site.toml";
    ends(&ns.sh(&format!("{kagami} mount lab $DIR/m0 -o noatime --update-fstab")), 0, "/etc/fstab: line written");
    let dir = ns.dir().display();
    let line =
        format!("lab/vol0\t{dir}/m0\tkagami\tnoatime,_netdev,nofail,x-systemd.requires=kagami@site.service\t0 0\n");
    ends(&ns.sh("cat /etc/fstab"), 0, &format!("# mine\ntmpfs /tmp tmpfs defaults 0 0\n{line}"));
    // What it wrote is what mount(8) takes, and asks for the same thing.
    ends(&ns.sh("findmnt --verify"), 0, "0 parse errors, 0 errors");
    ends(&ns.sh("mount -a && umount $DIR/m0 && mount -a && findmnt -rnt fuse.kagami | wc -l"), 0, "1\n");
    ends(&ns.sh(&format!("{kagami} mount lab $DIR/m0 -o noatime --update-fstab")), 0, "is so already");
    ends(
        &ns.sh(&format!("{kagami} umount lab --update-fstab; cat /etc/fstab")),
        0,
        "line removed\n# mine\ntmpfs /tmp tmpfs defaults 0 0\n",
    );
    // A text that findmnt finds wrong is not put in place; the directory of another filesystem is refused.
    fstab(&ns, "tmpfs $DIR/m1 tmpfs defaults 0 0\n");
    ends(&ns.sh(&format!("{kagami} mount lab $DIR/m1 --update-fstab")), 4, "line 1 mounts something else");
    ends(&ns.sh("cat /etc/fstab; ls /etc | grep fstab"), 0, "defaults 0 0\nfstab\n");
}

#[test]
fn b6_every_exit_code_of_the_helper() {
    let Some(ns) = machine("b6_every_exit_code_of_the_helper") else { return };
    let helper = |args: &str| ns.sh(&format!("/sbin/mount.kagami {args}"));
    ends(&helper("--help"), 0, "usage: mount.kagami");
    for (args, words) in [
        ("", "give what is to be mounted"),
        ("lab", "give what is to be mounted"),
        ("lab $DIR/m0 -q", "unknown option -q"),
        ("lab $DIR/m0 -o", "-o needs a value"),
        ("lab $DIR/m0 -o ro,bogus=1", "unknown mount option: bogus=1"),
        ("lab $DIR/m0 -o timeout=0", "timeout= needs a number"),
        ("lab $DIR/m0 -o config=site.toml", "config= needs the absolute path"),
        ("lab $DIR/m0 -o config=/etc/fstab", "/etc/fstab:"),
    ] {
        if words == "/etc/fstab:" {
            ends(&ns.sh("echo nonsense >/etc/fstab"), 0, "");
        }
        ends(&helper(args), 1, words);
    }
    ends(&helper("lab $DIR/m0"), 32, "no node answers");
    ends(&helper("lab $DIR/m0 -o config=/etc/kagami/none.toml"), 32, "no site file");
    ends(&helper("lab $DIR/m0 -f -v"), 0, "lab/vol0 would be mounted at");
    ends(&helper("nothing $DIR/m0 -f"), 32, "no group or volume");
    // The system: no way to mount.
    let without =
        "mkdir $DIR/empty; unshare -m sh -c 'mount --bind $DIR/empty /dev && exec /sbin/mount.kagami lab $DIR/m0'";
    ends(&ns.sh(without), 2, "/dev/fuse is missing");
    // A node that the helper starts, and that cannot be.
    ends(&ns.sh("echo in the way >$DIR/root/state; /sbin/mount.kagami lab $DIR/m0 -o start"), 32, "state");
    ends(&ns.sh("rm $DIR/root/state && /sbin/mount.kagami lab $DIR/m0 -v -o start"), 0, "lab/vol0 at");
    ends(&helper("lab $DIR/m0 -v"), 0, "mounted already");
    ends(&helper("lab/vol1 $DIR/none"), 32, "no such directory");
    ends(&ns.sh("echo >$DIR/file; /sbin/mount.kagami lab/vol1 $DIR/file"), 32, "");
    assert!(findmnt(&ns, "$DIR/m0").starts_with("lab/vol0 fuse.kagami"));
}

/// A stand-in for the node, which answers its status with this value, or never.
struct Fake(Option<Value>);

impl Commands for Fake {
    fn run(&self, _: Request, _: &dyn Fn(Value)) -> Result<Value> {
        if self.0.is_none() {
            std::thread::sleep(Duration::from_secs(300));
        }
        Ok(self.0.clone().unwrap_or_default())
    }
}

/// A site file whose node is a stand-in; the socket is reached through the filesystem, so from inside as well.
fn faked(ns: &Ns, name: &str, answer: Option<Value>) -> control::ServerHandle {
    let base = ns.path(name);
    fs::create_dir_all(base.join("state")).unwrap();
    fs::write(base.join("site.toml"), site_file(&base)).unwrap();
    control::serve(&base.join("state"), Arc::new(Fake(answer))).unwrap()
}

#[test]
fn b6_a_node_that_is_strange_silent_or_not_ready() {
    let Some(ns) = machine("b6_a_node_that_is_strange_silent_or_not_ready") else { return };
    let group = |role: &str, reason: &str| {
        serde_json::json!({ "version": 1, "site": "here", "pid": 1, "groups": [{ "name": "lab", "role": role, "epoch": 1,
            "position": 0, "mount": null, "fence": "never", "reason": reason, "pairs": [] }] })
    };
    let _strange = faked(&ns, "strange", Some(Value::String("what?".into())));
    ends(&ns.sh("/sbin/mount.kagami lab $DIR/m0 -o config=$DIR/strange/site.toml"), 4, "is not understood");
    let _starting = faked(&ns, "starting", Some(group("starting", "reading its journal")));
    ends(
        &ns.sh("/sbin/mount.kagami lab $DIR/m0 -o config=$DIR/starting/site.toml,timeout=1"),
        32,
        "not ready (starting: reading its journal) within 1 s",
    );
    let _down = faked(&ns, "down", Some(group("down", "the disk is gone")));
    ends(&ns.sh("/sbin/mount.kagami lab $DIR/m0 -o config=$DIR/down/site.toml"), 32, "the disk is gone");
    let _secondary = faked(&ns, "secondary", Some(group("secondary", "")));
    ends(&ns.sh("/sbin/mount.kagami lab $DIR/m0 -o config=$DIR/secondary/site.toml"), 32, "kagami takeover lab");
    ends(&ns.sh("/sbin/mount.kagami lab $DIR/m0 -o nofail,config=$DIR/secondary/site.toml"), 0, "not mounted (nofail)");
    // It says that it mounted, and nothing is there: a node of another mount namespace.
    let _elsewhere = faked(&ns, "elsewhere", Some(group("primary", "")));
    ends(&ns.sh("/sbin/mount.kagami lab $DIR/m0 -o config=$DIR/elsewhere/site.toml"), 32, "another mount namespace");
    let _silent = std::mem::ManuallyDrop::new(faked(&ns, "silent", None));
    let silent = "lab $DIR/m0 -o config=$DIR/silent/site.toml";
    ends(&ns.sh(&format!("/sbin/mount.kagami {silent},timeout=1")), 32, "did not answer within");
    for signal in ["INT", "TERM"] {
        let line = format!("(sleep 1; kill -{signal} $$) & exec /sbin/mount.kagami {silent}");
        ends(&ns.sh(&line), 8, "interrupted");
    }
}

#[test]
fn b6_a_service_manager_is_told() {
    let dir = tempfile::tempdir_in(support::base_dir()).unwrap();
    fs::write(dir.path().join("site.toml"), site_file(dir.path())).unwrap();
    let kagami = || {
        let mut c = support::lab::kagami();
        c.arg("--config").arg(dir.path().join("site.toml"));
        c
    };
    support::run_ok(kagami().args(["region", "create"]), Duration::from_secs(20));
    let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut command = kagami();
    command.arg("node").env("NOTIFY_SOCKET", dir.path().join("notify")).env("WATCHDOG_USEC", "400000");
    command.env_remove("WATCHDOG_PID").stderr(std::process::Stdio::null());
    let mut node = proc::die_with_parent(&mut command).spawn().unwrap();
    let hear = || {
        let mut buf = [0; 1024];
        let n = socket.recv(&mut buf).expect("the node says something");
        text(&buf[..n])
    };
    assert_eq!(hear(), "STATUS=lab: primary\n");
    assert_eq!(hear(), "READY=1\n");
    // It answers from then on.
    support::run_ok(kagami().args(["status", "--json"]), Duration::from_secs(20));
    assert_eq!(hear(), "WATCHDOG=1\n");
    assert_eq!(hear(), "WATCHDOG=1\n");
    proc::kill(node.id() as i32, libc::SIGTERM);
    let last = std::iter::repeat_with(hear).find(|m| m != "WATCHDOG=1\n").unwrap();
    assert_eq!(last, "STOPPING=1\nSTATUS=shutting down\n");
    assert!(proc::wait_timeout(&mut node, Duration::from_secs(20)).unwrap().success());
}
