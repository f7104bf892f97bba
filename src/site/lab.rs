//! The test bed: a group `lab` with its sites as real node processes on this machine, in one directory.
//!
//! ```text
//! DIR/mnt, mnt1, …         the mounted volumes
//! DIR/lab.json             what the lab was made with
//! DIR/SITE/site.toml       for SITE in primary, sync, async
//! DIR/SITE/node.pid, node.log, state/
//! DIR/SITE/region/tree/    the replica of the first volume (region1, …; a second leg: region-b, …)
//! ```

use super::lab_files::{self as files, GROUP, Options, RECORD, Record};
use super::lab_wait::{self, Standing};
use super::process::{NodeFiles, Notify, POLL};
use crate::base::limits::LINK_TIMEOUT;
use crate::base::{At, Error, Kind, Result, VolId};
use crate::node::config::Config;
use crate::node::config_check;
use crate::node::control::{self, Request};
use crate::node::status::Status;
use crate::store::region::Region;
use serde_json::Value;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a node has to end by itself before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(15);
/// How long a started node has to answer.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A lab on disk.
#[derive(Debug)]
pub struct Lab {
    dir: PathBuf,
    record: Record,
}

impl Lab {
    /// The lab in `dir`.
    pub fn open(dir: &Path) -> Result<Lab> {
        let there = dir.canonicalize().ok().and_then(|d| Record::load(&d).transpose().map(|r| (d, r)));
        match there {
            Some((dir, record)) => Ok(Lab { dir, record: record? }),
            None => Err(Error::config(format!("{} holds no lab; make one with `kagami lab up DIR`", dir.display()))),
        }
    }

    /// Makes a lab, or starts what is not running of an existing one, and waits until all pairs are in PAIR and the
    /// volumes mounted. When that fails, what it started is stopped again; the directory stays for a look at the logs.
    pub fn up(dir: &Path, o: &Options, timeout: Duration, notify: Notify<'_>) -> Result<Lab> {
        let deadline = Instant::now() + timeout;
        if let Some(missing) = config_check::fuse_missing() {
            return Err(Error::failed(missing));
        }
        let lab = Lab::make(dir, o)?;
        let _lock = lab.lock()?;
        let before: Vec<&str> = lab.sites().iter().copied().filter(|s| lab.files(s).running().is_some()).collect();
        let r = lab.bring_up(deadline, notify);
        if r.is_err() {
            for s in lab.stop_order().iter().filter(|s| !before.contains(*s)) {
                let _ = lab.files(s).stop(STOP_GRACE);
            }
            if before.is_empty() {
                lab.unmount_all();
                let _ = std::fs::remove_dir_all(lab.sockets());
            }
        }
        r.map(|()| lab)
    }

    fn make(dir: &Path, o: &Options) -> Result<Lab> {
        let abs = std::path::absolute(dir).at(dir.display())?;
        if abs.to_str().is_none_or(|s| s.contains(|c: char| c.is_control())) {
            return Err(Error::config(format!("{dir:?}: a lab's path must be plain UTF-8 text")));
        }
        if let Some(record) = Record::load(&abs)? {
            if let Some(how) = record.differs(o) {
                let d = dir.display();
                return Err(Error::config(format!(
                    "{d} holds a lab already, and {how}; leave the option out to start it again, or remove it with `kagami lab down {d} --purge`"
                )));
            }
            return Lab::open(&abs);
        }
        // Directories of sites may be there: other disks mounted in their places, or a tree to start from.
        let prepared = |n: &std::ffi::OsStr| {
            n.to_str().is_some_and(|n| super::lab_files::SITES.contains(&n) || n.starts_with("mnt"))
        };
        let foreign = |e: std::io::Result<std::fs::DirEntry>| e.is_ok_and(|e| !prepared(&e.file_name()));
        if std::fs::read_dir(&abs).is_ok_and(|d| d.into_iter().any(foreign)) {
            return Err(Error::refused(format!(
                "{} holds something else than a lab; give a new directory",
                dir.display()
            )));
        }
        std::fs::create_dir_all(&abs).at(dir.display())?;
        let lab = Lab { dir: abs.canonicalize().at(dir.display())?, record: Record::new(o)? };
        lab.write_files()?;
        // Last: a directory with the record is a whole lab.
        lab.record.save(&lab.dir)?;
        Ok(lab)
    }

    fn write_files(&self) -> Result<()> {
        let r = &self.record;
        for v in 0..r.volumes {
            let m = self.dir.join(files::mount_name(v));
            std::fs::create_dir_all(&m).at(m.display())?;
        }
        let mut keys: Vec<(&str, String)> = Vec::new();
        for site in self.sites() {
            let state = self.files(site).state_dir;
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&state).at(state.display())?;
            if !r.ports.is_empty() {
                keys.push((site, super::keys::make(&state, site)?));
            }
        }
        let addr = |site: &str| match self.port(site) {
            Some(p) => format!("127.0.0.1:{p}"),
            None => format!("unix:{}/{site}.sock", self.sockets().display()),
        };
        let key = |site: &str| keys.iter().find(|(s, _)| *s == site).map(|(_, k)| k.clone());
        for site in self.sites() {
            let p = self.files(site).config;
            std::fs::write(&p, files::site_file(r, &self.dir, site, &addr, &key)).at(p.display())?;
            make_regions(&Config::load(&p)?, None)?;
        }
        Ok(())
    }

    fn port(&self, site: &str) -> Option<u16> {
        let i = self.sites().iter().position(|s| *s == site)?;
        self.record.ports.get(i).copied()
    }

    fn bring_up(&self, deadline: Instant, notify: Notify<'_>) -> Result<()> {
        if self.record.ports.is_empty() {
            files::make_socket_dir(&self.sockets())?;
        }
        self.clear_dead_mounts()?;
        for site in self.sites() {
            let f = self.files(site);
            if f.running().is_none() {
                let say = |s: &str| notify(&format!("{s} {site}"));
                f.start(START_TIMEOUT, &say).at(format!("site {site}"))?;
            }
        }
        self.settle(deadline, notify)?;
        self.create_pairs()?;
        self.wait_until(deadline, notify)?;
        self.wait_mounted(deadline, notify)
    }

    /// Waits until every running node knows what it is.
    fn settle(&self, deadline: Instant, notify: Notify<'_>) -> Result<()> {
        self.poll(deadline, notify, |all| {
            let starting =
                all.iter().find(|(_, s)| s.as_ref().is_some_and(|s| s.groups.iter().any(|g| g.role == "starting")));
            starting.map(|(site, _)| format!("{site} is starting"))
        })
    }

    fn create_pairs(&self) -> Result<()> {
        for (site, status) in self.statuses() {
            for g in status.iter().flat_map(|s| &s.groups).filter(|g| g.role == "primary") {
                for p in g.pairs.iter().filter(|p| p.state == "SMPL" && p.direction != "in") {
                    let req = Request::PairCreate {
                        group: GROUP.into(),
                        pair: p.name.clone(),
                        no_copy: false,
                        no_verify: false,
                    };
                    self.call(site, &req).at(format!("creating pair {}", p.name))?;
                }
            }
        }
        Ok(())
    }

    /// Waits until every volume of the primary is mounted (some node must be the primary).
    fn wait_mounted(&self, deadline: Instant, notify: Notify<'_>) -> Result<()> {
        let volumes = self.record.volumes as usize;
        self.poll(deadline, notify, |all| {
            let mut groups = all.iter().flat_map(|(_, s)| s).flat_map(|s| &s.groups).filter(|g| g.role == "primary");
            match groups.next() {
                None => Some("no site is primary".into()),
                Some(g) if g.mount.is_none() || g.mounts.len() < volumes && volumes > 1 => {
                    Some(format!("mounting{}", lab_wait::because(&g.reason)))
                }
                Some(_) => None,
            }
        })
    }

    /// Polls all nodes until `waiting` has nothing more to wait for.
    fn poll(
        &self,
        deadline: Instant,
        notify: Notify<'_>,
        waiting: impl Fn(&[(&'static str, Option<Status>)]) -> Option<String>,
    ) -> Result<()> {
        loop {
            let all = self.statuses();
            let Some(what) = waiting(&all) else { return Ok(()) };
            if let Some((site, _)) =
                all.iter().find(|(s, status)| status.is_none() && self.files(s).running().is_none())
            {
                // Only `up` comes here, which has started all of them.
                return Err(Error::failed(format!("site {site} ended{}", self.files(site).tail(0))));
            }
            if Instant::now() > deadline {
                return Err(self.timed_out(&what));
            }
            notify(&what)?;
            std::thread::sleep(POLL);
        }
    }

    fn timed_out(&self, what: &str) -> Error {
        let logs: Vec<String> = self.sites().iter().map(|s| self.files(s).log_file.display().to_string()).collect();
        Error::new(Kind::Timeout, format!("not ready in time: {what}; the logs are {}", logs.join(", ")))
    }

    /// Stops all nodes and unmounts; with `purge` removes the directory.
    pub fn down(&self, purge: bool, notify: Notify<'_>) -> Result<()> {
        let _lock = self.lock()?;
        let mut killed = Vec::new();
        // Whoever has the volume mounted goes first, while its peers can still take what it flushes.
        for site in self.stop_order() {
            notify(&format!("stopping {site}"))?;
            if self.files(site).stop(STOP_GRACE).at(format!("site {site}"))? == Some(false) {
                killed.push(site);
            }
        }
        self.unmount_all();
        for site in self.sites() {
            let f = self.files(site);
            for p in [&f.pid_file, &f.state_dir.join(control::SOCKET_NAME)] {
                let _ = std::fs::remove_file(p);
            }
        }
        let _ = std::fs::remove_dir_all(self.sockets());
        if let Some(m) = self.mounts_below().first() {
            return Err(Error::failed(format!("{} could not be unmounted", m.display())));
        }
        if purge {
            std::fs::remove_dir_all(&self.dir).at(self.dir.display())?;
        }
        match killed.is_empty() {
            true => Ok(()),
            false => {
                let s = STOP_GRACE.as_secs();
                Err(Error::new(
                    Kind::Degraded,
                    format!("{} did not end within {s} s and was killed", killed.join(", ")),
                ))
            }
        }
    }

    fn stop_order(&self) -> Vec<&'static str> {
        let mut order: Vec<(bool, &str)> = self
            .statuses()
            .into_iter()
            .map(|(site, s)| (s.is_none_or(|s| s.groups.iter().all(|g| g.mount.is_none())), site))
            .collect();
        order.sort_by_key(|(unmounted, _)| *unmounted);
        order.into_iter().map(|(_, s)| s).collect()
    }

    /// SIGKILL. Its mount stays behind dead, as after a crash, until `start`, `takeover` or `down`.
    pub fn kill(&self, site: &str) -> Result<()> {
        match self.files(self.known(site)?).kill()? {
            true => Ok(()),
            false => Err(Error::failed(format!("site {site} is not running"))),
        }
    }

    /// Starts a node again and waits until it knows its role, and as primary until it has mounted. False if it ran.
    pub fn start(&self, site: &str, timeout: Duration, notify: Notify<'_>) -> Result<bool> {
        let f = self.files(self.known(site)?);
        if f.running().is_some() {
            return Ok(false);
        }
        if self.record.ports.is_empty() {
            files::make_socket_dir(&self.sockets())?;
        }
        self.clear_dead_mounts()?;
        let deadline = Instant::now() + timeout;
        f.start(timeout, notify)?;
        loop {
            let s = f.status().map_err(|e| Error { msg: format!("{}{}", e.msg, f.tail(0)), ..e })?;
            let what = s.groups.iter().find_map(|g| match g.role.as_str() {
                "primary" if g.mount.is_none() && g.task.is_none() => {
                    Some(format!("mounting{}", lab_wait::because(&g.reason)))
                }
                "starting" => Some(format!("starting{}", lab_wait::because(&g.reason))),
                _ => None,
            });
            let Some(what) = what else { return Ok(true) };
            if Instant::now() > deadline {
                return Err(Error::new(
                    Kind::Timeout,
                    format!("site {site} is not ready in time: {what}{}", f.tail(0)),
                ));
            }
            notify(&what)?;
            std::thread::sleep(POLL);
        }
    }

    /// Cuts a node off from its peers.
    pub fn cut(&self, site: &str) -> Result<()> {
        self.call(self.known(site)?, &Request::LinkCut {}).map(drop)
    }

    /// Undoes [`Lab::cut`].
    pub fn join(&self, site: &str) -> Result<()> {
        self.call(self.known(site)?, &Request::LinkJoin {}).map(drop)
    }

    /// Writes back what the kernel still holds of the mounted volumes, then waits until every pair that can be is in
    /// PAIR with nothing under way. Returns the exceptions, a sentence each.
    pub fn wait(&self, timeout: Duration, notify: Notify<'_>) -> Result<Vec<String>> {
        let deadline = Instant::now() + timeout;
        self.flush(deadline, notify)?;
        self.wait_until(deadline, notify)
    }

    fn wait_until(&self, deadline: Instant, notify: Notify<'_>) -> Result<Vec<String>> {
        loop {
            let Standing { waiting, excepted } = lab_wait::standing(&self.statuses());
            let Some(what) = waiting.first() else { return Ok(excepted) };
            if Instant::now() > deadline {
                return Err(self.timed_out(&waiting.join("; ")));
            }
            notify(what)?;
            std::thread::sleep(POLL);
        }
    }

    /// What the kernel holds back does not show as lag yet.
    fn flush(&self, deadline: Instant, notify: Notify<'_>) -> Result<()> {
        let mounts: Vec<PathBuf> =
            self.statuses().into_iter().flat_map(|(_, s)| s).flat_map(|s| mounts_of(&s)).collect();
        // In a thread of its own: a volume that is fenced or frozen must not outlast the time limit.
        let t = std::thread::spawn(move || {
            for m in mounts {
                let _ = std::fs::File::open(m).map(|d| crate::os::sys::syncfs(&d));
            }
        });
        while !t.is_finished() {
            if Instant::now() > deadline {
                return Err(Error::new(Kind::Timeout, "the mounted volume does not finish its writes in time"));
            }
            notify("writing back")?;
            std::thread::sleep(POLL / 5);
        }
        Ok(())
    }

    /// Takes the volume over at a site. `at`: where to mount the lead volume, `None`: `DIR/mnt`. Returns the node's report.
    pub fn takeover(&mut self, site: &str, at: Option<&Path>, force: bool, notify: Notify<'_>) -> Result<Value> {
        let site = self.known(site)?;
        let dir = match at {
            Some(p) => std::path::absolute(p).at(p.display())?,
            None => self.dir.join(files::mount_name(0)),
        };
        for (other, s) in self.statuses().into_iter().filter(|(s, _)| *s != site) {
            if s.is_some_and(|s| mounts_of(&s).contains(&dir)) {
                return Err(Error::refused(format!(
                    "{} is still mounted by {other}, which runs; give another directory with --at, or kill {other} first",
                    dir.display()
                )));
            }
        }
        std::fs::create_dir_all(&dir).or_else(|e| if is_dead(&dir) { Ok(()) } else { Err(e) }).at(dir.display())?;
        self.clear_dead_mounts()?;
        if !dir.starts_with(&self.dir) && !self.record.mounts.contains(&dir) {
            self.record.mounts.push(dir.clone());
            self.record.save(&self.dir)?;
        }
        notify(&format!("taking over at {site}"))?;
        let at = dir.to_str().map(str::to_owned).ok_or_else(|| Error::config("--at must be UTF-8"))?;
        let req = Request::Takeover {
            group: GROUP.into(),
            force,
            dry_run: false,
            at: Some(at),
            handover: false,
            bare: false,
        };
        let deadline = Instant::now() + LINK_TIMEOUT + Duration::from_secs(1);
        loop {
            // A primary that was killed this instant is not yet known to be gone: for as long as a link may be silent,
            // a refusal is no last word.
            let r = self.call(site, &req);
            let gone = || self.statuses().iter().all(|(s, st)| *s == site || !is_primary(st));
            match r {
                Err(e) if e.kind == Kind::Refused && Instant::now() < deadline && gone() => notify(&e.msg)?,
                r => return r,
            }
            std::thread::sleep(POLL);
        }
    }

    /// The status of every node, `None` for one that does not answer.
    pub fn statuses(&self) -> Vec<(&'static str, Option<Status>)> {
        let one = |site: &&'static str| {
            let f = self.files(site);
            (*site, f.running().and_then(|_| f.status().ok()))
        };
        self.sites().iter().map(one).collect()
    }

    fn call(&self, site: &str, req: &Request) -> Result<Value> {
        control::call(&self.files(site).state_dir, req, |_| ()).at(format!("site {site}"))
    }

    /// The sites.
    pub fn sites(&self) -> &'static [&'static str] {
        self.record.site_names()
    }

    /// The directory, absolute.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The mount directory of a volume.
    pub fn mount(&self, volume: u8) -> PathBuf {
        self.dir.join(files::mount_name(volume))
    }

    fn known(&self, site: &str) -> Result<&'static str> {
        self.sites()
            .iter()
            .find(|s| **s == site)
            .copied()
            .ok_or_else(|| Error::config(format!("no site {site:?} in this lab; it has {}", self.sites().join(", "))))
    }

    /// Where a site's files are.
    pub fn files(&self, site: &str) -> NodeFiles {
        let d = self.dir.join(site);
        NodeFiles {
            config: d.join("site.toml"),
            state_dir: d.join("state"),
            pid_file: d.join("node.pid"),
            log_file: d.join("node.log"),
        }
    }

    fn sockets(&self) -> PathBuf {
        files::socket_dir(&self.dir)
    }

    fn lock(&self) -> Result<std::fs::File> {
        let f = std::fs::File::open(self.dir.join(RECORD)).at(self.dir.display())?;
        match crate::os::sys::try_lock(&f) {
            Ok(()) => Ok(f),
            Err(_) => Err(Error::refused(format!("another `kagami lab` command works on {}", self.dir.display()))),
        }
    }

    /// Removes mounts whose node is gone: they would only answer ENOTCONN.
    fn clear_dead_mounts(&self) -> Result<()> {
        let alive: Vec<PathBuf> =
            self.statuses().into_iter().flat_map(|(_, s)| s).flat_map(|s| mounts_of(&s)).collect();
        let ours = (0..self.record.volumes).map(|v| self.mount(v)).chain(self.record.mounts.iter().cloned());
        for m in ours.filter(|m| !alive.contains(m) && config_check::kagami_mounted_at(m) && is_dead(m)) {
            detach(&m)?;
        }
        Ok(())
    }

    /// kagami's mounts below the lab. Not other mounts: a replica may lie on a disk of its own.
    fn mounts_below(&self) -> Vec<PathBuf> {
        let mut all = config_check::mounts_below(&self.dir);
        all.retain(|m| config_check::kagami_mounted_at(m));
        all
    }

    fn unmount_all(&self) {
        let outside = self.record.mounts.iter().filter(|m| config_check::kagami_mounted_at(m)).cloned();
        for m in self.mounts_below().into_iter().chain(outside) {
            if let Err(e) = detach(&m) {
                log::warn!("{e}");
            }
        }
    }
}

fn is_primary(s: &Option<Status>) -> bool {
    s.as_ref().is_some_and(|s| s.groups.iter().any(|g| g.role == "primary"))
}

fn mounts_of(s: &Status) -> Vec<PathBuf> {
    let of = |g: &crate::node::status::GroupStatus| {
        g.mount.iter().cloned().chain(g.mounts.iter().map(|m| m.dir.clone())).collect::<Vec<_>>()
    };
    s.groups.iter().flat_map(of).collect()
}

/// True for a mount whose process is gone. A plain stat could still be answered from the kernel's cache.
fn is_dead(dir: &Path) -> bool {
    let gone = |e: &std::io::Error| e.raw_os_error() == Some(libc::ENOTCONN);
    match crate::os::sys::open_path(dir, libc::O_PATH | libc::O_DIRECTORY, 0) {
        Ok(d) => crate::os::sys::statfs(&d).is_err_and(|e| gone(&e)),
        Err(e) => gone(&e),
    }
}

/// Unmounts lazily, as root or as an ordinary user.
fn detach(dir: &Path) -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let c = std::ffi::CString::new(dir.as_os_str().as_bytes()).map_err(|_| Error::failed("a path with NUL"))?;
    if crate::os::sys::ids().0 == 0 && crate::os::sys::umount_detach(&c).is_ok() {
        return Ok(());
    }
    let out = std::process::Command::new("fusermount3").args(["-u", "-z", "--"]).arg(dir).output();
    let out = out.at(format!("fusermount3 for {}", dir.display()))?;
    match out.status.success() {
        true => Ok(()),
        false => Err(Error::failed(format!(
            "{} could not be unmounted: {}",
            dir.display(),
            String::from_utf8_lossy(&out.stderr).trim()
        ))),
    }
}

/// Makes the regions of a site file (of one group) that are not there yet; returns those it made.
pub fn make_regions(c: &Config, group: Option<&str>) -> Result<Vec<PathBuf>> {
    let mut made = Vec::new();
    for g in c.groups.iter().filter(|g| group.is_none_or(|n| n == g.name)) {
        for (i, v) in g.volumes.iter().enumerate() {
            for leg in &v.legs {
                if !leg.join(".kagami/identity").exists() {
                    Region::create(leg, &g.name, &v.name, VolId(i as u16))?;
                    made.push(leg.clone());
                }
            }
        }
    }
    Ok(made)
}
