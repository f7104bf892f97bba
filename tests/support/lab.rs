//! A lab of real node processes, which never outlives its test.

use super::proc::{self, run};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The sites of a lab, in the order in which they are started.
pub const SITES: [&str; 3] = ["primary", "sync", "async"];

/// Longest time that any one `kagami lab` command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(180);

/// The program under test.
pub fn kagami() -> Command {
    Command::new(env!("CARGO_BIN_EXE_kagami"))
}

/// A lab in a directory of its own. Dropped, also by a panic: `lab down`, then by force whatever is left, then the
/// directory. When the test process itself is killed, a watcher process does the same.
pub struct Lab {
    /// Holds the lab; see the layout below.
    dir: PathBuf,
    _temp: tempfile::TempDir,
    /// Run as the ordinary user, though we may be root.
    ordinary: bool,
    /// The program; for the ordinary user a copy, for the build may lie where he may not look.
    program: PathBuf,
    /// A process in whose network all of it runs.
    net: Option<i32>,
    watcher: Option<std::process::Child>,
    down: bool,
}

impl Lab {
    /// `kagami lab up DIR` with these further arguments; ready when it returns.
    #[track_caller]
    pub fn up(args: &[&str]) -> Self {
        let lab = Self::prepare(false);
        lab.ok("up", args);
        lab
    }

    /// As [`Lab::up`], all of it as an ordinary user.
    #[track_caller]
    pub fn up_as_user(args: &[&str]) -> Self {
        let lab = Self::prepare(true);
        lab.ok("up", args);
        lab
    }

    /// A guarded directory in which no lab has been started.
    pub fn prepare(ordinary: bool) -> Self {
        let temp = tempfile::Builder::new().prefix("lab-").tempdir_in(super::base_dir());
        let temp = temp.expect("a directory for the lab");
        // Other users shall reach a mount that is open to them.
        super::sys::chmodat(super::sys::AT_FDCWD, temp.path(), 0o755).expect("chmod of the lab's directory");
        let dir = temp.path().join("lab");
        if ordinary && super::is_root() {
            let uid = Some(proc::ORDINARY_UID);
            std::os::unix::fs::chown(temp.path(), uid, uid).expect("chown of the lab's directory");
        }
        let mut program = PathBuf::from(kagami().get_program());
        if ordinary && super::is_root() {
            let copy = temp.path().join("kagami");
            fs::copy(&program, &copy).expect("a copy of the program");
            program = copy;
        }
        let watcher = watch(&dir, temp.path());
        Self { dir, _temp: temp, ordinary, program, net: None, watcher, down: false }
    }

    /// From now on everything runs in the network of this process.
    pub fn within(&mut self, net: &super::net::Net) {
        self.net = Some(net.pid());
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the volume is mounted.
    pub fn mnt(&self) -> PathBuf {
        self.dir.join("mnt")
    }

    pub fn site_dir(&self, site: &str) -> PathBuf {
        self.dir.join(site)
    }

    pub fn config(&self, site: &str) -> PathBuf {
        self.dir.join(site).join("site.toml")
    }

    /// The plain files of a site's region.
    pub fn tree(&self, site: &str) -> PathBuf {
        self.dir.join(site).join("region/tree")
    }

    pub fn log(&self, site: &str) -> String {
        fs::read(self.dir.join(site).join("node.log")).map(|b| proc::text(&b)).unwrap_or_default()
    }

    /// Id of the node's process, if it runs.
    pub fn pid(&self, site: &str) -> Option<i32> {
        node_pid(&self.dir, site)
    }

    fn command(&self) -> Command {
        let mut command = match self.net {
            None => Command::new(&self.program),
            Some(pid) => {
                let mut c = Command::new("nsenter");
                c.arg(format!("--net=/proc/{pid}/ns/net")).arg("--").arg(&self.program);
                c
            }
        };
        if self.ordinary {
            proc::as_user(&mut command, self._temp.path());
        }
        command
    }

    /// `kagami lab VERB DIR ARGS…`, whatever it ends with.
    pub fn try_lab(&self, verb: &str, args: &[&str]) -> Output {
        run(self.command().arg("lab").arg(verb).arg(&self.dir).args(args), COMMAND_LIMIT)
    }

    /// As [`Lab::try_lab`]; a panic, with the ends of the logs, unless it ends with 0.
    #[track_caller]
    pub fn ok(&self, verb: &str, args: &[&str]) -> String {
        let out = self.try_lab(verb, args);
        if !out.status.success() {
            let (stdout, stderr) = (proc::text(&out.stdout), proc::text(&out.stderr));
            panic!("kagami lab {verb} {args:?}: {}\n{stdout}\n{stderr}\n{}", out.status, self.log_tails());
        }
        proc::text(&out.stdout)
    }

    /// The last lines of the log of every node in the lab's directory, also of those that the lab does not know.
    pub fn log_tails(&self) -> String {
        let tail = |site: &str| {
            let log = self.log(site);
            let lines: Vec<_> = log.lines().collect();
            format!("--- {site}\n{}\n", lines[lines.len().saturating_sub(15)..].join("\n"))
        };
        let mut nodes: Vec<String> = std::fs::read_dir(self.dir())
            .into_iter()
            .flatten()
            .flatten()
            .filter(|e| e.path().join("node.log").exists())
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect();
        nodes.sort();
        nodes.iter().map(|s| tail(s)).collect()
    }

    #[track_caller]
    pub fn kill(&self, site: &str) {
        self.ok("kill", &[site]);
    }

    /// Kills the node at once, without the detour through the program.
    pub fn kill_now(&self, site: &str) {
        if let Some(pid) = self.pid(site) {
            proc::kill(pid, libc::SIGKILL);
            assert!(proc::wait_until(Duration::from_secs(20), || !proc::alive(pid)), "{site} {pid} does not die");
        }
    }

    #[track_caller]
    pub fn start(&self, site: &str) {
        self.ok("start", &[site]);
    }

    #[track_caller]
    pub fn cut(&self, site: &str) {
        self.ok("cut", &[site]);
    }

    #[track_caller]
    pub fn join(&self, site: &str) {
        self.ok("join", &[site]);
    }

    /// Until all pairs that can be are PAIR and the lag is 0.
    #[track_caller]
    pub fn wait(&self, seconds: u64) {
        self.ok("wait", &["--timeout", &seconds.to_string()]);
    }

    #[track_caller]
    pub fn takeover(&self, site: &str, args: &[&str]) -> String {
        let all: Vec<_> = std::iter::once(site).chain(args.iter().copied()).collect();
        self.ok("takeover", &all)
    }

    /// `kagami --config … ARGS` at a site.
    pub fn at(&self, site: &str, args: &[&str]) -> Output {
        run(self.command().arg("--config").arg(self.config(site)).args(args), COMMAND_LIMIT)
    }

    /// What a site says of itself; `None` while it does not answer.
    pub fn try_status(&self, site: &str) -> Option<Value> {
        let out = self.at(site, &["status", "--json"]);
        if out.status.success() { serde_json::from_slice(&out.stdout).ok() } else { None }
    }

    #[track_caller]
    pub fn status(&self, site: &str) -> Value {
        let out = self.at(site, &["status", "--json"]);
        assert!(out.status.success(), "status at {site}: {}\n{}", proc::text(&out.stderr), self.log_tails());
        serde_json::from_slice(&out.stdout).expect("status --json is JSON")
    }

    /// The object of one pair (`sync` or `async`) in the status of a site, with its counters.
    #[track_caller]
    pub fn pair(&self, site: &str, pair: &str) -> Value {
        let status = self.status(site);
        find_pair(&status, pair).unwrap_or_else(|| panic!("{site} knows no pair {pair}: {status:#}")).clone()
    }

    /// Waits until a pair, as its primary's site tells it, is in a state; panics with the status when it is not in time.
    #[track_caller]
    pub fn wait_pair(&self, site: &str, pair: &str, state: &str, limit: Duration) -> Value {
        let end = Instant::now() + limit;
        loop {
            let status = self.try_status(site);
            if let Some(found) = status.as_ref().and_then(|s| find_pair(s, pair)).filter(|p| p["state"] == state) {
                return found.clone();
            }
            if Instant::now() > end {
                panic!("{pair} at {site} is not {state} after {limit:?}: {status:#?}\n{}", self.log_tails());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// All trees of the lab are equal.
    #[track_caller]
    pub fn assert_trees_equal(&self) {
        for site in &SITES[1..] {
            if self.site_dir(site).exists() {
                super::assert_same(&self.tree("primary"), &self.tree(site));
            }
        }
    }

    /// `lab down`, and a panic when it leaves a process or a mount behind.
    #[track_caller]
    pub fn down(mut self) {
        self.down = true;
        self.ok("down", &[]);
        let left: Vec<_> = SITES.iter().filter_map(|s| self.pid(s)).collect();
        assert!(left.is_empty(), "lab down left processes {left:?}");
        assert_eq!(proc::mounts_below(&self.dir), Vec::<PathBuf>::new(), "lab down left mounts");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.down && self.dir.exists() {
            // Its result does not matter: what is left is taken away by force.
            let mut command = self.command();
            command.arg("lab").arg("down").arg(&self.dir);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            if let Ok(mut child) = proc::die_with_parent(&mut command).spawn() {
                proc::wait_timeout(&mut child, Duration::from_secs(20));
            }
        }
        if std::thread::panicking() {
            eprintln!("{}", self.log_tails());
        }
        clear(&self.dir);
        if let Some(watcher) = &mut self.watcher {
            // The watcher ends by itself when its pipe closes; then there is nothing for it to do.
            drop(watcher.stdin.take());
            let _ = watcher.wait();
        }
    }
}

/// A pair of any group in what `status --json` printed.
pub fn find_pair<'a>(status: &'a Value, pair: &str) -> Option<&'a Value> {
    let groups = status["groups"].as_array()?;
    groups.iter().filter_map(|g| g["pairs"].as_array()).flatten().find(|p| p["name"] == pair)
}

/// The id in `DIR/SITE/node.pid`, if it is a living kagami.
fn node_pid(dir: &Path, site: &str) -> Option<i32> {
    let pid: i32 = fs::read_to_string(dir.join(site).join("node.pid")).ok()?.trim().parse().ok()?;
    (proc::alive(pid) && proc::program_of(pid).starts_with("kagami")).then_some(pid)
}

/// Takes away by force what is left of a lab: its nodes, by the ids in its own files, and its mounts.
fn clear(dir: &Path) {
    let sites: Vec<_> = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.file_name()).collect();
    for site in sites.iter().filter_map(|s| s.to_str()) {
        if let Some(pid) = node_pid(dir, site) {
            proc::kill(pid, libc::SIGKILL);
        }
    }
    proc::unmount_below(dir);
}

/// Waits until this process is gone, in a session of its own so that no signal of the terminal reaches it, and then clears
/// what is left below `dir`, nodes and mounts, and removes the temporary directory `temp`. Gone is also a process whose end
/// is stuck, because a thread of it waits in a mount that it was serving itself: such a connection is aborted.
pub fn watch(dir: &Path, temp: &Path) -> Option<std::process::Child> {
    const SCRIPT: &str = r#"
dir=$0 temp=$1 test=$2
while IFS= read -r -t 2 _; (($? > 128)); do
    read -r _ _ state _ <"/proc/$test/stat" && [[ $state != [ZX] ]] || break
done 2>/dev/null
# First, so that nothing below has to wait for a mount that nobody serves.
unmount() {
    while read -r _ _ device _ point _; do
        [[ $point == "$dir"/* ]] && printf '%s %s\n' "$point" "${device#*:}"
    done </proc/self/mountinfo | sort -r | while read -r point n; do
        echo 1 >"/sys/fs/fuse/connections/$n/abort"
        umount -f "$point" || umount -l "$point" || fusermount3 -uz "$point"
    done 2>/dev/null
}
unmount
for file in "$dir"/*/node.pid; do
    [ -f "$file" ] || continue
    pid=$(cat "$file")
    case "$(cat "/proc/$pid/comm" 2>/dev/null)" in kagami*) kill -9 "$pid" ;; esac
done
unmount
rm -rf --one-file-system "$temp"
exit 0
"#;
    use std::os::unix::process::CommandExt;
    let mut command = Command::new("bash");
    command.args(["-c", SCRIPT]).arg(dir).arg(temp).arg(std::process::id().to_string());
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: setsid is safe between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            Ok(())
        });
    }
    command.spawn().ok()
}
