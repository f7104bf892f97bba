//! A machine of a test's own: namespaces of mounts and processes in which /sbin and /etc may be written over. Nothing of
//! it reaches the real machine, and all of it is gone with its first process.

use super::proc;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// The namespaces.
pub struct Ns {
    outer: Child,
    init: i32,
    dir: tempfile::TempDir,
}

/// Makes /usr/sbin and /etc writable over the real ones, and takes away the mounts of others: they shall not wait for us.
const SETUP: &str = r#"
set -e
umount -l -a -t fuse.kagami 2>/dev/null || true
mkdir "$0/over"; mount -t tmpfs none "$0/over"
for d in usr/sbin etc; do
    mkdir -p "$0/over/$d/upper" "$0/over/$d/work"
    mount -t overlay -o "lowerdir=/$d,upperdir=$0/over/$d/upper,workdir=$0/over/$d/work" overlay "/$d"
done
rm -f /usr/sbin/mount.kagami /usr/sbin/mount.fuse.kagami; rm -rf /etc/kagami
ln -s "$0/kagami" /usr/sbin/mount.kagami
ln -s "$0/kagami" /usr/sbin/mount.fuse.kagami
: >/etc/fstab
mkdir /etc/kagami
"#;

impl Ns {
    /// `None`, and a line that says so, where this user or this kernel cannot have it.
    pub fn up(test: &str) -> Option<Ns> {
        if !super::is_root() {
            super::skipped(test, "needs root: mount(8) and /etc/fstab");
            return None;
        }
        let temp = tempfile::Builder::new().prefix("ns-").tempdir_in(super::base_dir()).expect("a directory");
        super::sys::chmodat(super::sys::AT_FDCWD, temp.path(), 0o755).expect("chmod");
        std::fs::copy(super::lab::kagami().get_program(), temp.path().join("kagami")).expect("a copy of the program");
        let mut command = Command::new("unshare");
        // The shell takes note of the end of processes that nobody waits for.
        command.args(["-m", "-p", "-f", "--kill-child", "--mount-proc", "sh", "-c", "while sleep 1; do :; done"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let outer = proc::die_with_parent(&mut command).spawn().expect("unshare");
        let children = format!("/proc/{0}/task/{0}/children", outer.id());
        let mut init = 0;
        let up = || {
            let text = std::fs::read_to_string(&children).unwrap_or_default();
            init = text.trim().parse().unwrap_or(0);
            init > 0 && proc::program_of(init) == "sh"
        };
        let up = proc::wait_until(Duration::from_secs(10), up);
        let ns = Ns { outer, init, dir: temp };
        let setup = if up { Some(ns.run(Command::new("sh").args(["-c", SETUP]).arg(ns.dir()))) } else { None };
        match setup {
            Some(out) if out.status.success() => Some(ns),
            out => {
                let why = out.map_or_else(|| "no namespaces".into(), |o| proc::text(&o.stderr));
                super::skipped(test, &format!("this kernel gives no namespaces or overlays: {}", why.trim()));
                None
            }
        }
    }

    /// A directory of the test's own; `kagami` in it is the program.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The same command, inside.
    pub fn inside(&self, command: &Command) -> Command {
        let mut c = Command::new("nsenter");
        c.args(["--target", &self.init.to_string(), "--mount", "--pid", "--"]);
        c.arg(command.get_program()).args(command.get_args());
        for (k, v) in command.get_envs() {
            match v {
                Some(v) => c.env(k, v),
                None => c.env_remove(k),
            };
        }
        c.env_remove("KAGAMI_CONFIG").env_remove("XDG_CONFIG_HOME").current_dir("/");
        c
    }

    pub fn run(&self, command: &Command) -> Output {
        proc::run(&mut self.inside(command), LIMIT)
    }

    /// `PROGRAM ARGS…` inside; a word `DIR` at the beginning of an argument stands for the test's directory.
    pub fn sh(&self, line: &str) -> Output {
        self.run(Command::new("sh").args(["-c", line]).env("DIR", self.dir()))
    }

    /// As [`Ns::sh`] by the ordinary user.
    pub fn user(&self, line: &str) -> Output {
        let id = proc::ORDINARY_UID.to_string();
        let mut c = Command::new("setpriv");
        c.args(["--reuid", &id, "--regid", &id, "--clear-groups", "sh", "-c", line]);
        self.run(c.env("DIR", self.dir()).env("HOME", self.path("home")))
    }
}

impl Drop for Ns {
    fn drop(&mut self) {
        // Its child, the first process of the namespaces, is killed with it, and with that one everything inside.
        let _ = self.outer.kill();
        let _ = self.outer.wait();
        proc::wait_until(Duration::from_secs(20), || !proc::alive(self.init));
    }
}
