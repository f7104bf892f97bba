//! `mount.kagami`, as mount(8) calls it: `SPEC DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]`.
//!
//! It is this program under another name, because it needs the site file, the control socket and their errors. It asks
//! the node to mount and returns when the mount is ready or has failed, with the exit codes of mount(8). Run as an
//! ordinary user (mount(8) drops its privileges for `user` in fstab) it asks that user's own node.

use super::mount::{self, What};
use super::mount_options::{self, Said};
use super::{Site, default_config, wait};
use crate::base::{Error, Kind};
use crate::node::config_check;
use crate::node::control::{self, Request};
use crate::node::mounter::words;
use crate::node::status::{GroupStatus, MountStatus, Status};
use crate::site::process::NodeFiles;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The names under which this program is the helper.
const NAMES: [&str; 2] = ["mount.kagami", "mount.fuse.kagami"];
/// How often a state is looked at.
const POLL: Duration = Duration::from_millis(50);
/// A group may be down for so long while it changes its role.
const DOWN_GRACE: Duration = Duration::from_secs(5);

const USAGE: &str = "\
usage: mount.kagami SPEC DIR [-sfnv] [-o OPTIONS] [-t TYPE]
  SPEC   GROUP or GROUP/VOLUME, also as kagami#GROUP/VOLUME
  -o     options, parted by commas: mount.kagami(8)
  -f     do everything but mount       -s  ignore options that nobody knows
  -v     say what is done              -n, -N, -t  are accepted
Exit codes: 0 mounted, 1 usage or permission, 2 system, 4 internal, 8 interrupted, 32 not mounted.
";

/// How it ends, as mount(8) has it. 16 (mtab) and 64 (some of several) are never ours: there is no mtab, and only one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Usage = 1,
    System = 2,
    Internal = 4,
    Interrupted = 8,
    Failed = 32,
}

/// Why nothing is mounted.
struct Fail {
    exit: Exit,
    msg: String,
    /// There is nothing here that could be mounted now: with `nofail` no failure.
    absent: bool,
}

fn fail<T>(exit: Exit, msg: impl Into<String>) -> Result<T, Fail> {
    Err(Fail { exit, msg: msg.into(), absent: false })
}

fn absent<T>(msg: impl Into<String>) -> Result<T, Fail> {
    Err(Fail { exit: Exit::Failed, msg: msg.into(), absent: true })
}

/// Usage and site file errors.
fn usage(e: Error) -> Fail {
    Fail { exit: Exit::Usage, msg: e.msg, absent: false }
}

/// What the node or the way to it said.
fn from_node(e: Error) -> Fail {
    let exit = match e.errno {
        libc::EACCES | libc::EPERM => Exit::Usage,
        libc::ENOMEM | libc::EMFILE | libc::ENFILE => Exit::System,
        _ => Exit::Failed,
    };
    Fail { exit, absent: control::is_not_running(&e), msg: e.msg }
}

/// The arguments, when this program was called as the helper: by its name, or with the name as the first argument.
pub fn called(args: &[OsString]) -> Option<Vec<OsString>> {
    let name = |a: &OsString| Path::new(a).file_name().and_then(|n| n.to_str()).is_some_and(|n| NAMES.contains(&n));
    let (own, rest) = args.split_first()?;
    if name(own) {
        return Some(rest.to_vec());
    }
    let (first, rest) = rest.split_first()?;
    (first == NAMES[0]).then(|| rest.to_vec())
}

/// Runs the helper.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let (code, text) = match Call::parse(args).and_then(|c| c.map_or(Ok(None), |c| c.run().map(Some))) {
        Ok(None) => {
            super::say(USAGE);
            return ExitCode::SUCCESS;
        }
        Ok(Some(text)) => (0, text),
        Err(f) => (f.exit as u8, f.msg),
    };
    if !text.is_empty() {
        let _ = writeln!(std::io::stderr(), "mount.kagami: {text}");
    }
    ExitCode::from(code)
}

/// What mount(8) asks for.
#[derive(Debug)]
struct Call {
    spec: String,
    dir: PathBuf,
    said: Said,
    fake: bool,
    verbose: bool,
}

impl Call {
    /// `None`: help is wanted.
    fn parse(args: Vec<OsString>) -> Result<Option<Call>, Fail> {
        let (mut places, mut list, mut sloppy) = (Vec::new(), String::new(), false);
        let (mut fake, mut verbose) = (false, false);
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let text = arg.to_string_lossy().into_owned();
            if matches!(text.as_str(), "--help" | "-h") {
                return Ok(None);
            }
            let Some(letters) = text.strip_prefix('-').filter(|l| !l.is_empty()) else {
                places.push(arg);
                continue;
            };
            for (i, letter) in letters.char_indices() {
                match letter {
                    's' => sloppy = true,
                    'f' => fake = true,
                    'v' => verbose = true,
                    'n' => {}
                    'r' => list += ",ro",
                    'w' => list += ",rw",
                    'o' | 't' | 'N' => {
                        let attached = letters.get(i + 1..).filter(|r| !r.is_empty()).map(str::to_owned);
                        let value = attached.or_else(|| args.next().map(|v| v.to_string_lossy().into_owned()));
                        let Some(value) = value else {
                            return fail(Exit::Usage, format!("-{letter} needs a value\n{USAGE}"));
                        };
                        if letter == 'o' {
                            list += &format!(",{value}");
                        }
                        break;
                    }
                    c => return fail(Exit::Usage, format!("unknown option -{c}\n{USAGE}")),
                }
            }
        }
        let [spec, dir] = places.as_slice() else {
            return fail(Exit::Usage, format!("give what is to be mounted, and a directory\n{USAGE}"));
        };
        let said = mount_options::parse(&list).map_err(usage)?;
        let said = if sloppy { said } else { said.known().map_err(usage)? };
        let spec = spec.to_string_lossy();
        let spec = spec.strip_prefix("kagami#").unwrap_or(&spec).to_owned();
        Ok(Some(Call { spec, dir: PathBuf::from(dir), said, fake, verbose }))
    }

    /// Mounts; what is to be said about it, if anything.
    fn run(&self) -> Result<String, Fail> {
        match self.mount() {
            Err(f) if f.absent && self.said.nofail => Ok(format!("not mounted (nofail): {}", f.msg)),
            r => r,
        }
    }

    fn mount(&self) -> Result<String, Fail> {
        if self.said.remount {
            return fail(Exit::Failed, "the options of a mount cannot be changed: unmount it and mount it again");
        }
        let file = self.said.config.clone().unwrap_or_else(default_config);
        if !file.exists() {
            return absent(format!("no site file {}: name it with -o config=FILE", file.display()));
        }
        let site = Site::load(Some(&file)).map_err(usage)?;
        let what = match mount::what(&site.config, &self.spec) {
            Ok(w) => w,
            Err(e) => return absent(e.msg),
        };
        let dir = self.dir.canonicalize().or_else(|_| std::path::absolute(&self.dir));
        let dir =
            dir.map_err(|e| Fail { exit: Exit::Usage, msg: format!("{}: {e}", self.dir.display()), absent: false })?;
        if let Some(e) = config_check::fuse_missing() {
            return fail(Exit::System, e);
        }
        if self.fake {
            return Ok(self.told(format!("{} would be mounted at {}", what.spec(), dir.display())));
        }
        // First of all: no thread may take the signals.
        let interrupted = wait::interrupt_flag().map_err(|e| Fail { exit: Exit::System, msg: e.msg, absent: false })?;
        let work = Work { site, what, dir, said: self.said.clone(), until: Instant::now() + self.said.timeout };
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || tell.send(work.mount()));
        loop {
            match told.recv_timeout(POLL) {
                Ok(r) => return r.map(|text| self.told(text)),
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
                    return fail(Exit::Internal, "a panic: this is a bug");
                }
                Err(_) if interrupted.load(Ordering::SeqCst) => {
                    return fail(Exit::Interrupted, "interrupted; the node may still mount it, findmnt(8) tells");
                }
                Err(_) => {}
            }
        }
    }

    fn told(&self, text: String) -> String {
        if self.verbose { text } else { String::new() }
    }
}

/// The waiting for the node.
struct Work {
    site: Site,
    what: What,
    dir: PathBuf,
    said: Said,
    until: Instant,
}

impl Work {
    fn left(&self) -> Duration {
        // 0 would mean for ever.
        self.until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
    }

    fn ask(&self, req: &Request) -> Result<serde_json::Value, Error> {
        let r = control::call_within(&self.site.config.node.state_dir, req, Some(self.left()), |_| ());
        r.map_err(|e| self.site.hint(e))
    }

    fn mount(&self) -> Result<String, Fail> {
        let status = self.ready()?;
        let at = format!("{} at {}", self.what.spec(), self.dir.display());
        let here =
            |m: &&MountStatus| m.attached && (m.dir == self.dir || m.dir.canonicalize().is_ok_and(|d| d == self.dir));
        if let Some(m) = self.what.mount_in(&status).filter(here) {
            if m.options != self.said.options {
                let (is, want) = (words(&m.options), words(&self.said.options));
                let msg =
                    format!("{at} is mounted already, with other options ({is:?}, not {want:?}); unmount it first");
                return fail(Exit::Failed, msg);
            }
            return self.seen(format!("{at}: mounted already"));
        }
        self.ask(&self.what.request(&self.dir, &self.said)).map_err(from_node)?;
        self.seen(format!("{at}: mounted"))
    }

    /// The node may live in another mount namespace; then nobody here sees what it mounted.
    fn seen(&self, text: String) -> Result<String, Fail> {
        match config_check::kagami_mounted_at(&self.dir) {
            true => Ok(text),
            false => fail(
                Exit::Failed,
                format!(
                    "the node mounted it at {}, but not here: it runs in another mount namespace",
                    self.dir.display()
                ),
            ),
        }
    }

    /// Waits until the node answers and the group is primary here.
    fn ready(&self) -> Result<Status, Fail> {
        let started = AtomicBool::new(false);
        let mut down_since: Option<Instant> = None;
        loop {
            let status = match self.ask(&Request::Status {}) {
                Ok(v) => serde_json::from_value::<Status>(v).map_err(|e| Fail {
                    exit: Exit::Internal,
                    msg: format!("the node's status is not understood ({e}); is it another version?"),
                    absent: false,
                })?,
                Err(e) if control::is_not_running(&e) && self.said.start && !started.swap(true, Ordering::SeqCst) => {
                    self.start()?;
                    continue;
                }
                Err(e) => return Err(from_node(e)),
            };
            let name = &self.what.group;
            let Some(g) = status.groups.iter().find(|g| g.name == *name) else {
                return absent(format!("the node has no group {name} yet: it was started with another site file"));
            };
            match (g.role.as_str(), down_since) {
                ("primary", _) => return Ok(status),
                ("secondary", _) => {
                    return absent(format!(
                        "group {name} is secondary here: it can be mounted at its primary, or after `kagami takeover {name}`"
                    ));
                }
                ("starting", _) => {}
                (_, Some(t)) if t.elapsed() > DOWN_GRACE => return fail(Exit::Failed, down(g)),
                (_, None) => down_since = Some(Instant::now()),
                _ => {}
            }
            if Instant::now() > self.until {
                return fail(Exit::Failed, format!("{} within {} s", down(g), self.said.timeout.as_secs()));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Starts the node in the background.
    fn start(&self) -> Result<(), Fail> {
        let config = &self.site.config;
        let state_dir = config.node.state_dir.clone();
        super::node::make_state_dir(&state_dir).map_err(from_node)?;
        let files = NodeFiles {
            config: config.path.clone(),
            pid_file: state_dir.join("node.pid"),
            log_file: state_dir.join("node.log"),
            state_dir,
        };
        match files.start(self.left(), &|_| Ok(())) {
            // Somebody else was faster.
            Err(e) if e.kind == Kind::Refused && control::is_running(&config.node.state_dir) => Ok(()),
            r => r.map_err(from_node),
        }
    }
}

fn down(g: &GroupStatus) -> String {
    let why = g.reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default();
    format!("group {} is not ready ({}{why})", g.name, g.role)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Call, String> {
        let args = args.iter().map(OsString::from).collect();
        Call::parse(args).map_err(|f| format!("{} {}", f.exit as u8, f.msg)).map(|c| c.expect("no help"))
    }

    #[test]
    fn as_mount_calls_it() {
        let c = parse(&["lab/vol0", "/mnt", "-o", "rw,_netdev", "-o", "ro"]).unwrap();
        assert_eq!((c.spec.as_str(), words(&c.said.options).as_str(), c.fake), ("lab/vol0", "ro", false));
        let c = parse(&["kagami#lab", "/mnt", "-sfnv", "-orw,bogus", "-t", "fuse.kagami", "-N", "7"]).unwrap();
        assert!(c.fake && c.verbose && c.spec == "lab" && c.said.unknown == ["bogus"]);
        assert!(parse(&["lab", "/mnt", "-o", "bogus"]).unwrap_err().starts_with("1 unknown mount option: bogus"));
        assert!(parse(&["lab"]).unwrap_err().starts_with("1 "));
        assert!(parse(&["lab", "/mnt", "-o"]).unwrap_err().starts_with("1 -o needs"));
        assert!(parse(&["lab", "/mnt", "-x"]).unwrap_err().starts_with("1 unknown option -x"));
    }

    #[test]
    fn by_which_name() {
        let called = |args: &[&str]| called(&args.iter().map(OsString::from).collect::<Vec<_>>()).map(|a| a.len());
        assert_eq!(called(&["/sbin/mount.kagami", "lab", "/mnt"]), Some(2));
        assert_eq!(called(&["mount.fuse.kagami", "lab", "/mnt"]), Some(2));
        assert_eq!(called(&["kagami", "mount.kagami", "lab", "/mnt"]), Some(2));
        assert_eq!(called(&["kagami", "mount", "lab", "/mnt"]), None);
        assert_eq!(called(&[]), None);
    }
}
