//! The definition file of applications (CD-8): TOML, one `[[application]]` each, in a volume. It comes from another site,
//! so every error has its place (`FILE:LINE`) and nothing in it is believed beyond what it says.
//!
//! ```toml
//! [[application]]
//! name = "pg"
//! command = "/usr/lib/postgresql/15/bin/postgres"      # or "./bin/x", beside this file
//! args = ["-D", "${PGDATA}"]
//! user = "postgres"
//! ready = { command = ["/usr/lib/postgresql/15/bin/pg_isready"] }
//! stop = { signal = "SIGINT" }
//! ```

use super::app::{App, Ready, Restart, Stop};
use super::env::{self, Vars};
use crate::base::{Error, Result};
use crate::node::config_source::{Lang, Source, Str, Unique};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;
use toml::Spanned;

/// Longest definition file, bytes.
pub const FILE_BYTES_MAX: u64 = 256 << 10;
/// Applications of a group, count.
pub const APPS_MAX: usize = 64;
/// Arguments of a command, count.
const ARGS_MAX: usize = 256;
/// Seconds that something may take, at most.
const TIMEOUT_S_MAX: u64 = 86_400;
const READY_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// Where programs look for others, unless the definition says otherwise and the site allows it.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const SIGNALS: &[(&str, i32)] = &[
    ("SIGTERM", libc::SIGTERM),
    ("SIGINT", libc::SIGINT),
    ("SIGQUIT", libc::SIGQUIT),
    ("SIGHUP", libc::SIGHUP),
    ("SIGUSR1", libc::SIGUSR1),
    ("SIGUSR2", libc::SIGUSR2),
    ("SIGKILL", libc::SIGKILL),
];

/// Definition files.
pub(super) const LANG: Lang = Lang {
    examples: &[
        ("application", "[[application]] with name = \"…\" below it"),
        ("name", "name = \"shop\""),
        ("command", "command = \"/usr/bin/postgres\", or \"./bin/shop\" for a program beside this file"),
        ("args", "args = [\"-D\", \"${PGDATA}\"]"),
        ("dir", "dir = \"/DB/vol1/data\""),
        ("user", "user = \"postgres\""),
        ("env", "env = { LANG = \"C.UTF-8\" }"),
        ("after", "after = [\"pg\"]"),
        (
            "ready",
            "ready = { tcp = \"127.0.0.1:5432\" }, { command = [\"/usr/bin/pg_isready\"] } or { file = \"run/ready\" }",
        ),
        ("tcp", "ready = { tcp = \"127.0.0.1:5432\" }"),
        ("file", "ready = { file = \"run/ready\" }"),
        ("signal", "stop = { signal = \"SIGINT\" }"),
        ("stop", "stop = { signal = \"SIGINT\" } or { command = [\"/usr/bin/pg_ctl\", \"stop\"] }"),
        ("ready_timeout_s", "ready_timeout_s = 60"),
        ("stop_timeout_s", "stop_timeout_s = 30"),
        ("restart", "restart = \"always\", \"on-failure\" or \"never\""),
    ],
    forms: "[[application]] and KEY = VALUE",
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    application: Vec<RawApp>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawApp {
    name: Str,
    command: Str,
    #[serde(default)]
    args: Vec<Str>,
    dir: Option<Str>,
    user: Option<Str>,
    #[serde(default)]
    env: BTreeMap<Str, Str>,
    #[serde(default)]
    after: Vec<Str>,
    ready: Option<Spanned<RawReady>>,
    ready_timeout_s: Option<Spanned<i64>>,
    stop: Option<Spanned<RawStop>>,
    stop_timeout_s: Option<Spanned<i64>>,
    restart: Option<Str>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawReady {
    tcp: Option<Str>,
    command: Option<Vec<Str>>,
    file: Option<Str>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStop {
    signal: Option<Str>,
    command: Option<Vec<Str>>,
}

/// Reads a definition file. `path`: where it is, absolute; relative names in it are relative to its directory. `allowed`:
/// variables that the site file allows beyond the usual. All errors are [`crate::base::Kind::Config`] and begin with
/// `FILE:LINE: `.
pub fn parse(path: &Path, text: &[u8], vars: &Vars, allowed: &[String]) -> Result<Vec<App>> {
    let file = path.display().to_string();
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(Error::config(format!(
            "{file}:1: a definition file has at most {FILE_BYTES_MAX} bytes, not {}; write a shorter one",
            text.len()
        )));
    }
    let text = std::str::from_utf8(text).map_err(|e| {
        let before = text.get(..e.valid_up_to()).unwrap_or_default();
        let line = before.iter().filter(|b| **b == b'\n').count() + 1;
        Error::config(format!("{file}:{line}: not UTF-8; write it in UTF-8 instead"))
    })?;
    if let Some((i, c)) = text.char_indices().find(|(_, c)| env::invisible(*c) && !matches!(c, '\n' | '\r' | '\t')) {
        let line = text.get(..i).map_or(0, |t| t.matches('\n').count()) + 1;
        return Err(Error::config(format!(
            "{file}:{line}: a character that cannot be seen (U+{:04X}); remove it",
            u32::from(c)
        )));
    }
    let src = Source { file, text, path: path.to_owned(), lang: &LANG };
    let raw: RawFile = toml::from_str(text).map_err(|e| src.shape(&e))?;
    let mut names = Unique::new(&src, "application");
    let reader = Reader { src: &src, vars, allowed };
    raw.application
        .iter()
        .map(|a| {
            names.add(&src.name("application", &a.name)?, a.name.span())?;
            reader.app(a)
        })
        .collect()
}

struct Reader<'a> {
    src: &'a Source<'a>,
    vars: &'a Vars,
    allowed: &'a [String],
}

impl Reader<'_> {
    fn app(&self, raw: &RawApp) -> Result<App> {
        let src = self.src;
        let timeout = |key, v, or| -> Result<Duration> {
            Ok(src.number(key, v, 1..TIMEOUT_S_MAX + 1)?.map_or(or, Duration::from_secs))
        };
        let base = src.path.parent().unwrap_or(Path::new("/")).to_owned();
        let dir = raw.dir.as_ref().map_or(Ok(base.clone()), |d| self.path("dir", d, &base))?;
        let after = raw.after.iter().map(|a| src.name("after", a)).collect::<Result<_>>()?;
        let restart = match raw.restart.as_ref().map(|r| (r, r.get_ref().as_str())) {
            None | Some((_, "on-failure")) => Restart::OnFailure,
            Some((_, "always")) => Restart::Always,
            Some((_, "never")) => Restart::Never,
            Some((r, x)) => {
                return Err(src.at(
                    r,
                    format!("restart = {x:?} is not known; write \"always\", \"on-failure\" or \"never\" instead"),
                ));
            }
        };
        Ok(App {
            name: raw.name.get_ref().clone(),
            command: self.program(&raw.command)?,
            args: self.args(&raw.args)?,
            ready: raw.ready.as_ref().map_or(Ok(Ready::Started), |r| self.ready(r, &dir))?,
            ready_timeout: timeout("ready_timeout_s", &raw.ready_timeout_s, READY_TIMEOUT)?,
            stop: raw.stop.as_ref().map_or(Ok(Stop::Signal(libc::SIGTERM)), |s| self.stop(s))?,
            stop_timeout: timeout("stop_timeout_s", &raw.stop_timeout_s, STOP_TIMEOUT)?,
            dir,
            user: raw.user.as_ref().map(|u| src.name("user", u)).transpose()?,
            env: self.env(&raw.env)?,
            after,
            restart,
            source: format!("{}:{}", src.file, src.line_of(raw.name.span().start)),
        })
    }

    /// A text with its variables put in.
    fn text(&self, what: &str, s: &Str) -> Result<String> {
        let t = env::expand(s.get_ref(), self.vars).map_err(|e| self.src.at(s, format!("{what}: {e}")))?;
        match t.chars().find(|c| env::invisible(*c)) {
            Some(c) => Err(self.src.at(
                s,
                format!("{what} has a character that cannot be seen (U+{:04X}); write it without", u32::from(c)),
            )),
            None => Ok(t),
        }
    }

    /// A path: absolute, or relative to `base`, without `..`.
    fn path(&self, what: &str, s: &Str, base: &Path) -> Result<PathBuf> {
        let t = self.text(what, s)?;
        if t.is_empty() {
            return Err(self
                .src
                .at(s, format!("{what} is empty; write {}", self.src.lang.example(what).unwrap_or("a path"))));
        }
        plain(&base.join(&t)).ok_or_else(|| {
            self.src.at(s, format!("{what} = {t:?} goes through `..`; write the path without it instead"))
        })
    }

    fn program(&self, s: &Str) -> Result<PathBuf> {
        let t = s.get_ref();
        if !["/", "./", "${"].iter().any(|p| t.starts_with(p)) {
            return Err(self.src.at(
                s,
                format!("command {t:?} is no absolute path; write /usr/bin/{t}, or ./{t} for a program beside this file, instead"),
            ));
        }
        let base = self.src.path.parent().unwrap_or(Path::new("/")).to_owned();
        self.path("command", s, &base)
    }

    fn args(&self, list: &[Str]) -> Result<Vec<String>> {
        if let Some(s) = list.get(ARGS_MAX) {
            return Err(self.src.at(s, format!("more than {ARGS_MAX} arguments; write fewer")));
        }
        list.iter().map(|a| self.text("args", a)).collect()
    }

    /// A command with its arguments as one list.
    fn command(&self, at: std::ops::Range<usize>, list: &[Str]) -> Result<Vec<String>> {
        let [program, args @ ..] = list else {
            return Err(self.src.err(at, "command is empty; write command = [\"/usr/bin/pg_isready\"] instead"));
        };
        let program = self.program(program)?.display().to_string();
        Ok(std::iter::once(program).chain(self.args(args)?).collect())
    }

    fn ready(&self, raw: &Spanned<RawReady>, dir: &Path) -> Result<Ready> {
        match raw.get_ref() {
            RawReady { tcp: Some(t), command: None, file: None } => self.tcp(t).map(Ready::Tcp),
            RawReady { tcp: None, command: Some(c), file: None } => self.command(raw.span(), c).map(Ready::Command),
            RawReady { tcp: None, command: None, file: Some(f) } => self.path("file", f, dir).map(Ready::File),
            _ => Err(self.src.at(
                raw,
                "ready has one of tcp, command and file; write ready = { tcp = \"127.0.0.1:5432\" }, for example, instead",
            )),
        }
    }

    /// An address of this machine. No name is looked up: that could take any time, and tell others.
    fn tcp(&self, s: &Str) -> Result<String> {
        let t = self.text("tcp", s)?;
        let ok = match t.strip_prefix("localhost:") {
            Some(port) => port.parse::<u16>().is_ok_and(|p| p > 0),
            None => t.parse::<std::net::SocketAddr>().is_ok_and(|a| a.port() > 0),
        };
        match ok {
            true => Ok(t),
            false => Err(self.src.at(
                s,
                format!("tcp {t:?} is no address; write an IP address and a port, as in \"127.0.0.1:5432\" or \"[::1]:80\", instead"),
            )),
        }
    }

    fn stop(&self, raw: &Spanned<RawStop>) -> Result<Stop> {
        match raw.get_ref() {
            RawStop { signal: Some(s), command: None } => {
                let known =
                    SIGNALS.iter().find(|(n, _)| n == s.get_ref() || n.strip_prefix("SIG") == Some(s.get_ref()));
                let names = || SIGNALS.iter().map(|(n, _)| *n).collect::<Vec<_>>().join(", ");
                known.map(|(_, n)| Stop::Signal(*n)).ok_or_else(|| {
                    self.src.at(s, format!("signal {:?} is not known; write one of {} instead", s.get_ref(), names()))
                })
            }
            RawStop { signal: None, command: Some(c) } => self.command(raw.span(), c).map(Stop::Command),
            _ => Err(self.src.at(
                raw,
                "stop has one of signal and command; write stop = { signal = \"SIGINT\" }, for example, instead",
            )),
        }
    }

    /// The whole environment of the application: a path, the environment file's variables, its own.
    fn env(&self, own: &BTreeMap<Str, Str>) -> Result<BTreeMap<String, String>> {
        let mut out = BTreeMap::from([("PATH".to_owned(), PATH.to_owned())]);
        out.extend(self.vars.iter().map(|(k, v)| (k.clone(), v.value.clone())));
        for (k, v) in own {
            let name = k.get_ref();
            if !env::is_name(name) {
                return Err(self
                    .src
                    .at(k, format!("{name:?} is no name of a variable; write letters, digits and _ instead")));
            }
            if let Some(why) = env::refused(name, self.allowed) {
                return Err(self.src.at(k, format!("{name} is not taken from a volume: {why}")));
            }
            out.insert(name.clone(), self.text("env", v)?);
        }
        if out.len() > env::KEYS_MAX {
            let at = own.keys().next().map_or(0..0, Spanned::span);
            return Err(self.src.err(at, format!("more than {} variables; write fewer", env::KEYS_MAX)));
        }
        Ok(out)
    }
}

/// A path without `.` and double `/`; `None` when it goes through `..`.
pub fn plain(p: &Path) -> Option<PathBuf> {
    let mut out = PathBuf::new();
    for c in p.components() {
        match c {
            Component::ParentDir => return None,
            Component::CurDir => {}
            c => out.push(c),
        }
    }
    Some(out)
}

/// The order in which applications are started: within each file as `after` says, else as written; every one of the
/// application after all of the DBMS (CD-8). Refuses names used twice, names that are not there, and circles.
pub fn order(dbms: Vec<App>, mut application: Vec<App>) -> Result<Vec<App>> {
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    for a in dbms.iter().chain(&application) {
        if let Some(first) = seen.insert(a.name.clone(), a.source.clone()) {
            return Err(Error::config(format!(
                "{}: application {} is already at {first}; write another name instead",
                a.source, a.name
            )));
        }
        if seen.len() > APPS_MAX {
            return Err(Error::config(format!("{}: more than {APPS_MAX} applications; write fewer", a.source)));
        }
    }
    for a in &mut application {
        let others = dbms.iter().map(|d| &d.name).filter(|n| !a.after.contains(n)).cloned().collect::<Vec<_>>();
        a.after.extend(others);
    }
    let mut out: Vec<App> = Vec::new();
    for mut left in [dbms, application] {
        while !left.is_empty() {
            let done = |a: &App| a.after.iter().all(|n| out.iter().any(|o| o.name == *n));
            let Some(i) = left.iter().position(done) else { return Err(stuck(&left, &out, &seen)) };
            out.push(left.remove(i));
        }
    }
    Ok(out)
}

/// Why none of these can be started. `out`: those before them.
fn stuck(left: &[App], out: &[App], all: &BTreeMap<String, String>) -> Error {
    let here = |n: &String, of: &[App]| of.iter().any(|o| o.name == *n);
    let missing = |a: &App| a.after.iter().find(|n| !here(n, left) && !here(n, out)).cloned();
    if let Some((a, n)) = left.iter().find_map(|a| missing(a).map(|n| (a, n))) {
        return Error::config(match all.contains_key(&n) {
            true => format!(
                "{}: application {} of the DBMS is after {n} of the application, which is started later; remove it from after",
                a.source, a.name
            ),
            false => {
                let known: Vec<&str> = all.keys().filter(|k| **k != a.name).map(String::as_str).collect();
                let instead = if known.is_empty() {
                    String::new()
                } else {
                    format!("write one of {} instead, or ", known.join(", "))
                };
                format!("{}: application {} is after {n}, which there is not; {instead}remove it", a.source, a.name)
            }
        });
    }
    // Each waits for another one that is left: following that comes back to where it was.
    let mut path: Vec<&App> = left.iter().take(1).collect();
    while let Some(next) = path.last().and_then(|a| left.iter().find(|l| a.after.contains(&l.name))) {
        if let Some(i) = path.iter().position(|p| p.name == next.name) {
            let names: Vec<&str> = path.iter().skip(i).chain(std::iter::once(&next)).map(|a| a.name.as_str()).collect();
            return Error::config(format!(
                "{}: applications wait for each other in a circle: {}; remove one of these from after",
                next.source,
                names.join(" after ")
            ));
        }
        path.push(next);
    }
    Error::config("the applications cannot be ordered; look at their after")
}

#[cfg(test)]
#[path = "apps_tests.rs"]
mod tests;
