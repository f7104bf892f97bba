//! The pair commands of Hitachi's CCI, by their names or as `kagami horcm COMMAND` (MS-27): what they mean is decided in
//! [`crate::pair::horcm`]; here the node is asked, and everything ends with the exit codes of CCI. `docs/HORCM.md`.

mod display;
pub mod import;
mod options;
mod targets;

use super::{Site, default_config, say, wait};
use crate::base::{Error, Kind};
use crate::node::control::{self, Request};
use crate::node::status::Status;
use crate::pair::horcm::{self, Act, Attr, Code, Order, Side, Take, Verdict, Vol, Want};
use crate::pair::state::Mode;
use options::{COMMANDS, Command, Given};
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use targets::{Key, Target};

/// How often a status is looked at.
const POLL: Duration = Duration::from_millis(100);
/// How long a command waits that is not told how long.
const PATIENCE: Duration = Duration::from_secs(3600);
/// How long it may take until an order that was given is to be seen at this end.
const SETTLE: Duration = Duration::from_secs(10);

/// Why a command ends with an error.
#[derive(Debug)]
pub struct Fail {
    code: Code,
    msg: String,
}

impl Fail {
    fn new(code: Code, msg: impl Into<String>) -> Fail {
        Fail { code, msg: msg.into() }
    }

    /// What the node said, or the way to it.
    fn from_node(e: Error) -> Fail {
        let code = match e.kind {
            _ if control::is_not_running(&e) || matches!(e.errno, libc::EACCES | libc::EPERM) => Code::Atthor,
            Kind::Refused => Code::Cmdrje,
            Kind::Timeout => Code::Ewstot,
            Kind::Link if e.msg.starts_with("the node") => Code::Comerr,
            Kind::Link => Code::Enormt,
            Kind::Config => Code::Enogrp,
            Kind::Failed | Kind::Degraded | Kind::Corrupt => Code::Cmdioe,
        };
        Fail::new(code, e.msg)
    }
}

/// The command and its arguments, when this program was called by the command's name.
pub fn called(args: &[OsString]) -> Option<Vec<String>> {
    let (own, rest) = args.split_first()?;
    let name = Path::new(own).file_name()?.to_str()?;
    let known = COMMANDS.iter().find(|c| c.name == name)?;
    let rest = rest.iter().map(|a| a.to_string_lossy().into_owned());
    Some(std::iter::once(known.name.to_owned()).chain(rest).collect())
}

/// Runs a command: its name, then its arguments.
pub fn main(config: Option<&Path>, args: &[String]) -> ExitCode {
    let (name, rest) = args.split_first().map_or(("", &[][..]), |(n, r)| (n.as_str(), r));
    let quiet = rest.iter().any(|a| a == "-nomsg");
    let result = match COMMANDS.iter().find(|c| c.name == name) {
        Some(c) if rest.iter().any(|a| a == "-h") => {
            say(options::help(c));
            Ok(0)
        }
        Some(c) => Call::new(c, config, rest).and_then(|call| call.run()),
        None => {
            let known: Vec<&str> = COMMANDS.iter().map(|c| c.name).collect();
            Err(Fail::new(Code::Unwcmd, format!("no command {name:?}; there are {}", known.join(", "))))
        }
    };
    let code = result.unwrap_or_else(|f| {
        if !quiet {
            let _ = writeln!(std::io::stderr(), "{name}: [{}] {}", f.code.name(), f.msg);
        }
        f.code.value()
    });
    ExitCode::from(code)
}

/// The site file: of `--config`, of the instance, or the default one.
fn site(config: Option<&Path>, instance: Option<u32>) -> Result<Site, Fail> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
    if set("HORCC_MRCF").is_some() {
        return Err(Fail::new(
            Code::Unwopt,
            "$HORCC_MRCF is set, and there are no copies within one site (ShadowImage)",
        ));
    }
    let by_env = match set("HORCMINST") {
        Some(v) if instance.is_none() && set("KAGAMI_CONFIG").is_none() => {
            let n = v.to_str().and_then(|v| v.parse().ok());
            Some(n.ok_or_else(|| Fail::new(Code::Invarg, format!("$HORCMINST is {v:?}, not a number")))?)
        }
        _ => None,
    };
    let numbered = |n: u32| default_config().with_file_name(format!("horcm{n}.toml"));
    let file = config.map(PathBuf::from).or_else(|| instance.or(by_env).map(numbered));
    Site::load(file.as_deref()).map_err(|e| Fail::new(Code::Atthor, e.msg))
}

/// One command.
struct Call {
    command: &'static Command,
    given: Given,
    site: Site,
    quiet: bool,
}

impl Call {
    fn new(command: &'static Command, config: Option<&Path>, args: &[String]) -> Result<Call, Fail> {
        let given = options::parse(command, args)?;
        let site = site(config, given.instance)?;
        let quiet = given.has("nomsg");
        if !quiet {
            for n in &given.notes {
                let _ = writeln!(std::io::stderr(), "{}: {n}", command.name);
            }
        }
        Ok(Call { command, given, site, quiet })
    }

    fn run(&self) -> Result<u8, Fail> {
        let status = self.status()?;
        let keys = targets::select(&status, self.given.word("g"), self.given.word("d"))?;
        match self.command.name {
            "paircreate" => self.create(&status, &keys),
            "pairsplit" => self.split(&status, &keys),
            "pairresync" => self.resync(&status, &keys),
            "pairdisplay" => {
                let (text, all) = display::text(&targets::look(&status, &keys)?, &keys, &status.site, &self.given);
                self.say(text);
                if all {
                    return Ok(0);
                }
                Err(Fail::new(Code::Enormt, "the other end of a pair cannot be asked: its lines are left out"))
            }
            "pairvolchk" => self.volchk(&status, &keys),
            "pairevtwait" => self.evtwait(&keys),
            "pairsyncwait" => self.syncwait(&keys),
            _ => self.takeover(&status, &keys),
        }
    }

    fn say(&self, text: impl AsRef<str>) {
        if !self.quiet {
            say(text);
        }
    }

    fn status(&self) -> Result<Status, Fail> {
        wait::fetch(&self.site).map_err(|e| match e.kind {
            Kind::Timeout => Fail::new(Code::Comerr, e.msg),
            _ => Fail::from_node(e),
        })
    }

    fn ask(&self, req: &Request, limit: Option<Duration>) -> Result<serde_json::Value, Fail> {
        let r = control::call_within(&self.site.config.node.state_dir, req, limit, |_| ());
        r.map_err(|e| Fail::from_node(self.site.hint(e)))
    }

    fn limit(&self) -> Result<Duration, Fail> {
        Ok(self.given.seconds("t")?.unwrap_or(PATIENCE))
    }

    fn create(&self, status: &Status, keys: &[Key]) -> Result<u8, Fail> {
        let here = match (self.given.has("vl"), self.given.has("vr")) {
            (true, false) => "primary",
            (false, true) => "secondary",
            (true, true) => return Err(Fail::new(Code::Invarg, "-vl and -vr exclude each other")),
            (false, false) => {
                return Err(Fail::new(Code::Reqarg, "give -vl (the primary volume is here) or -vr (at the other end)"));
            }
        };
        let targets = targets::look(status, keys)?;
        for t in &targets {
            let level = t.fence().to_lowercase();
            if let Some(f) = self.given.word("f").filter(|f| !f.eq_ignore_ascii_case(&level)) {
                return Err(Fail::new(Code::Invarg, format!("-f {f}: the site file says {level} for {}", t.name())));
            }
            if t.group.role != here && t.vol.attr == Attr::Smpl {
                return Err(Fail::new(
                    Code::Cmdrje,
                    format!(
                        "this site is {} of group {}: change that with horctakeover first",
                        t.group.role, t.group.name
                    ),
                ));
            }
        }
        let order = if self.given.has("nocopy") { Order::CreateNoCopy } else { Order::Create };
        self.order(order, status, keys)?;
        Ok(0)
    }

    fn split(&self, status: &Status, keys: &[Key]) -> Result<u8, Fail> {
        let order = match (self.given.has("S"), self.given.has("RS")) {
            (true, true) => return Err(Fail::new(Code::Invarg, "-S and -RS exclude each other")),
            (true, false) => Order::Simplex,
            (false, true) => Order::Ssws,
            (false, false) => Order::Split,
        };
        let limit = self.limit()?;
        self.order(order, status, keys)?;
        if order == Order::Split && !self.given.has("nowait") {
            self.wait_for(keys, limit, |v| Want::Psus.come(v))?;
        }
        Ok(0)
    }

    fn resync(&self, status: &Status, keys: &[Key]) -> Result<u8, Fail> {
        let order = match (self.given.has("swaps"), self.given.has("swapp")) {
            (true, true) => return Err(Fail::new(Code::Invarg, "-swaps and -swapp exclude each other")),
            (true, false) => Order::SwapS,
            (false, true) => Order::SwapP,
            (false, false) => Order::Resync,
        };
        self.order(order, status, keys)?;
        Ok(0)
    }

    /// Gives an order for each pair, if all of them take it.
    fn order(&self, order: Order, status: &Status, keys: &[Key]) -> Result<(), Fail> {
        let targets = targets::look(status, keys)?;
        self.alike(&targets)?;
        if let Some((t, v)) = targets.iter().zip(keys).find_map(|(t, k)| Some((t, k.volume.as_ref()?)))
            && t.pair.volumes.len() > 1
        {
            return Err(Fail::new(
                Code::Cmdrje,
                format!("the volumes of {} change their state together: leave out -d {v}", t.name()),
            ));
        }
        let mut acts = Vec::new();
        for (t, k) in targets.iter().zip(keys) {
            match horcm::accept(order, t.vol) {
                Verdict::Do(act) => acts.push((act, k, t.vol)),
                Verdict::Nop => {}
                Verdict::Refuse(code) => {
                    let words = order.words().split(',').next().unwrap_or_default();
                    let (end, is) = (t.vol.attr_name(), t.vol.status_name());
                    let what = if t.vol.attr == Attr::Smpl { is.to_owned() } else { format!("{end} in {is}") };
                    let hint = match code {
                        Code::Cmdrje => "; what changed here would be lost: pairresync -swaps",
                        _ => "",
                    };
                    return Err(Fail::new(code, format!("{words}: {} is {what} here{hint}", t.name())));
                }
            }
        }
        for (act, key, was) in acts {
            self.act(act, key)?;
            if matches!(act, Act::Create | Act::CreateNoCopy | Act::Resync | Act::TakeoverResync) {
                self.settle(key, was)?;
            }
        }
        Ok(())
    }

    fn act(&self, act: Act, k: &Key) -> Result<(), Fail> {
        let (group, pair) = (k.group.clone(), k.pair.clone());
        let req = match act {
            Act::Create => Request::PairCreate { group, pair, no_copy: false, no_verify: false },
            Act::CreateNoCopy => Request::PairCreate { group, pair, no_copy: true, no_verify: false },
            Act::Split => Request::PairSplit { group, pair },
            Act::Delete => Request::PairDelete { group, pair },
            Act::Resync => Request::PairResync { group, pair, in_place: false, keep: None },
            Act::Swap => Request::PairSwap { group, pair },
            Act::Takeover => take(group, false),
            Act::TakeoverResync => {
                self.ask(&take(group, false), None)?;
                return self.act(Act::Resync, k);
            }
        };
        self.ask(&req, None).map(drop)
    }

    /// An order given at the secondary is seen here a little later: what comes next must not see the old status.
    fn settle(&self, key: &Key, was: Vol) -> Result<(), Fail> {
        let until = Instant::now() + SETTLE;
        while Instant::now() < until {
            let s = self.status()?;
            if targets::look(&s, std::slice::from_ref(key)).is_ok_and(|t| t.iter().all(|t| t.vol != was)) {
                break;
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// One end for all pairs.
    fn alike(&self, targets: &[Target<'_>]) -> Result<(Vol, Mode), Fail> {
        let ends: Vec<(Vol, Mode)> = targets.iter().map(|t| (t.vol, t.mode)).collect();
        horcm::group(&ends, self.given.has("ss")).map_err(|c| {
            let names: Vec<String> =
                targets.iter().map(|t| format!("{} ({} {})", t.name(), t.vol.attr_name(), t.fence())).collect();
            Fail::new(c, format!("these pairs are not alike: {}; name one of them with -g", names.join(", ")))
        })
    }

    fn wait_for(&self, keys: &[Key], limit: Duration, come: impl Fn(Vol) -> Result<bool, Code>) -> Result<(), Fail> {
        let started = Instant::now();
        loop {
            let s = self.status()?;
            let mut open = Vec::new();
            for t in targets::look(&s, keys)? {
                let how = || {
                    let why = t.pair.reason.as_ref().map(|r| format!(" ({r})")).unwrap_or_default();
                    format!("{} is in {}{why}", t.name(), t.vol.status_name())
                };
                match come(t.vol) {
                    Ok(true) => {}
                    Ok(false) => open.push(how()),
                    Err(c) => return Err(Fail::new(c, how())),
                }
            }
            if open.is_empty() {
                return Ok(());
            }
            if started.elapsed() >= limit {
                let s = limit.as_secs();
                return Err(Fail::new(Code::Ewstot, format!("not within {s} s: {}", open.join("; "))));
            }
            std::thread::sleep(POLL);
        }
    }

    fn volchk(&self, status: &Status, keys: &[Key]) -> Result<u8, Fail> {
        let mut targets = targets::look(status, keys)?;
        if self.given.has("c") {
            for t in &mut targets {
                let other = t.other();
                t.vol = other.ok_or_else(|| {
                    Fail::new(Code::Enormt, format!("the other end of {} cannot be asked: it has no link", t.name()))
                })?;
            }
        }
        let (vol, mode) = self.alike(&targets)?;
        let fence = targets.first().map_or("NEVER", Target::fence);
        let ctg = targets.first().map(|t| t.ctg).filter(|_| mode == Mode::Async);
        let ctg = ctg.map(|n| format!("CTGID = {n}")).unwrap_or_default();
        let state = match vol.attr {
            Attr::Smpl => String::new(),
            _ => format!("[status = {} fence = {fence} {ctg}]", vol.status_name()),
        };
        self.say(format!("pairvolchk : Volstat is {}.{state}\n", vol.attr_name()));
        Ok(if self.given.has("ss") { horcm::volchk_ss(vol, mode) } else { horcm::volchk(vol) })
    }

    fn evtwait(&self, keys: &[Key]) -> Result<u8, Fail> {
        let want = |name: &str| -> Result<Option<Want>, Fail> {
            let Some(w) = self.given.word(name) else { return Ok(None) };
            let known: Vec<&str> = Want::WORDS.iter().map(|(w, _)| *w).collect();
            let wrong = || Fail::new(Code::Invarg, format!("-{name} {w}: write one of {}", known.join(", ")));
            Want::of(w).map(Some).ok_or_else(wrong)
        };
        let (primary, secondary) = (want("s")?, want("ss")?);
        if self.given.has("nowait") || self.given.has("nowaits") {
            let s = self.status()?;
            let ends: Vec<(Vol, Mode)> = targets::look(&s, keys)?.iter().map(|t| (t.vol, Mode::Sync)).collect();
            let alike: Vec<(Vol, Mode)> =
                ends.iter().map(|(v, m)| (if v.attr == Attr::Svol { *v } else { v.other() }, *m)).collect();
            let (vol, _) =
                horcm::group(&alike, false).map_err(|c| Fail::new(c, "some pairs are SMPL, some are not"))?;
            self.say(format!("pairevtwait : {}\n", vol.status_name()));
            return Ok(vol.digit());
        }
        if primary.is_none() && secondary.is_none() {
            return Err(Fail::new(Code::Reqarg, "give -s STATUS or -ss STATUS to wait for, or -nowait"));
        }
        // Both ends have the same status, for the primary tells the secondary.
        self.wait_for(keys, self.limit()?, |v| {
            let come = |w: Option<Want>| w.map_or(Ok(true), |w| w.come(v));
            Ok(come(primary)? && come(secondary)?)
        })?;
        self.say("pairevtwait : Wait status done.\n");
        Ok(0)
    }

    fn syncwait(&self, keys: &[Key]) -> Result<u8, Fail> {
        let limit = self.limit()?;
        let started = Instant::now();
        let mark = self.given.word("m").map(Mark::parse).transpose()?;
        let mut wanted: Option<Mark> = mark;
        loop {
            let s = self.status()?;
            let targets = targets::look(&s, keys)?;
            let t = match targets.as_slice() {
                [t] => t,
                _ => return Err(Fail::new(Code::Enqvol, "name one pair with -g")),
            };
            let in_pair = t.vol.status == horcm::Status::Pair;
            let fit = t.mode == Mode::Async
                && match t.vol.attr {
                    Attr::Pvol => true,
                    Attr::Svol => mark.is_some(),
                    Attr::Smpl => false,
                };
            if !fit || (wanted.is_none() && !in_pair) {
                let what = "needs the primary end of an async pair in PAIR, or -m MARK at its secondary";
                return Err(Fail::new(
                    Code::Invvol,
                    format!("{} is {}: pairsyncwait {what}", t.name(), t.vol.attr_name()),
                ));
            }
            let now = Mark { epoch: t.group.epoch, position: t.group.position };
            let m = *wanted.get_or_insert(now);
            let there = match t.vol.attr {
                Attr::Pvol => now.position.saturating_sub(t.pair.lag.entries),
                _ => now.position,
            };
            let (word, value) = match () {
                () if self.given.has("nowait") => ("NOWAIT", 0),
                () if m.epoch != now.epoch => ("CHANGED", 3),
                () if !in_pair => ("BROKEN", 2),
                () if there >= m.position => ("DONE", 0),
                () if started.elapsed() >= limit => ("TIMEOUT", 1),
                () => {
                    std::thread::sleep(POLL);
                    continue;
                }
            };
            let q = t.pair.lag.entries;
            self.say(format!(
                "UnitID CTGID         Q-Marker Status  Q-Num\n{:>6} {:>5} {m} {word:<7} {q:>5}\n",
                0, t.ctg
            ));
            return Ok(value);
        }
    }

    fn takeover(&self, status: &Status, keys: &[Key]) -> Result<u8, Fail> {
        let mut side = match (self.given.has("S"), self.given.has("l")) {
            (true, _) => Side::Svol,
            (false, true) => Side::Pvol,
            (false, false) => Side::Any,
        };
        let limit = self.given.seconds("t")?;
        let targets = targets::look(status, keys)?;
        self.alike(&targets)?;
        let key = keys.first().ok_or_else(|| Fail::new(Code::Enogrp, "no pair"))?;
        let mut end = targets.first().map(Target::end).ok_or_else(|| Fail::new(Code::Enogrp, "no pair"))?;
        // What matters most, if there are several.
        for t in &targets {
            if horcm::takeover(t.end(), side) != Take::Nop {
                end = t.end();
            }
        }
        let mut does = horcm::takeover(end, side);
        if does == Take::Swap {
            match self.ask(&take(key.group.clone(), true), limit) {
                Ok(_) => {}
                Err(f) => {
                    // The primary was lost in the midst of it: then without it.
                    let s = self.status()?;
                    let now = targets::look(&s, std::slice::from_ref(key))?;
                    let lost = now.first().filter(|t| !t.pair.linked && t.vol.attr == Attr::Svol);
                    let Some(t) = lost.filter(|_| f.code != Code::Ewstot) else { return Err(f) };
                    side = Side::Svol;
                    does = horcm::takeover(t.end(), side);
                }
            }
        }
        match does {
            Take::Refuse(code) => {
                let is = format!("{} in {}", end.vol.attr_name(), end.vol.status_name());
                return Err(Fail::new(code, format!("pair {}/{} is {is} here", key.group, key.pair)));
            }
            Take::PvolPsue => {
                for k in keys {
                    self.act(Act::Split, k)?;
                }
            }
            Take::Svol { current } => {
                let answer = self.ask(&take(key.group.clone(), false), limit)?;
                let missing = answer.pointer("/loss/entries_known_missing").and_then(serde_json::Value::as_u64);
                let known = end.mode == Mode::Sync && missing.is_some_and(|n| n > 0);
                does = Take::Svol { current: current && !known };
            }
            Take::Nop | Take::Swap => {}
        }
        let words = match does {
            Take::Nop => "Nop-takeover: nothing to do",
            Take::Swap => "Swap-takeover done",
            Take::PvolPsue => "PVOL-PSUE-takeover done: writes go on, the pair is suspended",
            _ => "SVOL-SSUS-takeover done",
        };
        self.say(format!("horctakeover : {words}.\n"));
        match horcm::takeover_value(does) {
            v if v == Code::Volcur.value() => Err(Fail::new(
                Code::Volcur,
                "the secondary was taken over, but the primary may have newer data than it",
            )),
            v => Ok(v),
        }
    }
}

fn take(group: String, handover: bool) -> Request {
    Request::Takeover { group, force: false, dry_run: false, at: None, handover, bare: false }
}

/// A point of the primary's order, as `pairsyncwait` prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    epoch: u64,
    position: u64,
}

impl Mark {
    fn parse(text: &str) -> Result<Mark, Fail> {
        let wrong = || Fail::new(Code::Invarg, format!("-m {text}: write a mark that pairsyncwait printed"));
        let (e, p) = text.split_once('-').ok_or_else(wrong)?;
        let hex = |s: &str| u64::from_str_radix(s, 16).map_err(|_| wrong());
        Ok(Mark { epoch: hex(e)?, position: hex(p)? })
    }
}

impl std::fmt::Display for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04x}-{:011x}", self.epoch, self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c5_by_which_name() {
        let called = |args: &[&str]| called(&args.iter().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(called(&["/usr/lib/kagami/horcm/pairvolchk", "-g", "x"]).unwrap(), ["pairvolchk", "-g", "x"]);
        assert_eq!(called(&["horctakeover"]).unwrap(), ["horctakeover"]);
        assert_eq!(called(&["kagami", "pairvolchk", "-g", "x"]), None);
        assert_eq!(called(&["paircurchk"]), None);
        assert_eq!(called(&[]), None);
    }

    #[test]
    fn c5_marks_go_out_and_come_back() {
        let m = Mark { epoch: 3, position: 0x1234 };
        assert_eq!(m.to_string(), "0003-00000001234");
        assert_eq!(Mark::parse(&m.to_string()).unwrap(), m);
        assert!(["", "x", "1", "1-", "-1", "1-x"].iter().all(|t| Mark::parse(t).is_err()));
    }

    #[test]
    fn c5_errors_of_the_node_have_their_codes() {
        let of = |kind| Fail::from_node(Error::new(kind, "the reason")).code;
        assert_eq!(of(Kind::Refused), Code::Cmdrje);
        assert_eq!(of(Kind::Timeout), Code::Ewstot);
        assert_eq!(of(Kind::Link), Code::Enormt);
        assert_eq!(of(Kind::Config), Code::Enogrp);
        assert_eq!(of(Kind::Failed), Code::Cmdioe);
        assert_eq!(of(Kind::Corrupt), Code::Cmdioe);
        assert_eq!(Fail::from_node(Error::link("the node ended before it answered")).code, Code::Comerr);
        let mut none = Error::failed("no node answers");
        none.errno = libc::ECONNREFUSED;
        assert_eq!(Fail::from_node(none).code, Code::Atthor);
    }
}
