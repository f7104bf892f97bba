//! `kagami demo`: an outage of the sync site, a crash of the primary, a takeover and the way back, with real data.

use super::demo_data as data;
use super::lab::Lab;
use super::lab_files::Options;
use super::process::Notify;
use super::text::{bytes, count, plural, seconds};
use crate::base::{At, Error, Kind, Result};
use crate::node::config_check::has_program;
use crate::node::status::{PairStatus, ResyncStats};
use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long each wait may take.
const LIMIT: Duration = Duration::from_secs(180);
/// Pause for reading after each chapter.
const PAUSE: Duration = Duration::from_millis(1200);

/// Where the demonstration is shown.
pub struct Stage<'a> {
    /// Prints text.
    pub say: &'a dyn Fn(&str),
    /// Shows what is going on right now; its error (Ctrl-C) ends the demonstration.
    pub notify: Notify<'a>,
    /// Use colours.
    pub colour: bool,
    /// Less data, no pauses.
    pub fast: bool,
}

impl Stage<'_> {
    fn chapter(&self, title: &str) -> Result<()> {
        let until = Instant::now() + if self.fast { Duration::ZERO } else { PAUSE };
        while Instant::now() < until {
            (self.notify)("")?;
            std::thread::sleep(Duration::from_millis(50));
        }
        match self.colour {
            true => (self.say)(&format!("\n\x1b[1;36m{title}\x1b[0m\n")),
            false => (self.say)(&format!("\n{title}\n")),
        }
        (self.notify)("working")
    }

    fn line(&self, text: impl AsRef<str>) {
        (self.say)(&format!("  {}\n", text.as_ref()));
    }

    fn good(&self, text: impl AsRef<str>) {
        let tick = if self.colour { "\x1b[32mok\x1b[0m" } else { "ok" };
        (self.say)(&format!("  {tick}  {}\n", text.as_ref()));
    }
}

/// Runs it in `dir` (new or empty), else in a temporary directory. Whatever happens, no process and no mount is left; the
/// directory is left only when something failed, for a look at the logs.
pub fn run(dir: Option<&Path>, stage: &Stage<'_>) -> Result<()> {
    let dir = match dir {
        Some(d) => std::path::absolute(d).at(d.display())?,
        None => std::env::temp_dir().join(format!("kagami-demo-{:012x}", crate::base::random_u64() >> 16)),
    };
    if std::fs::read_dir(&dir).is_ok_and(|mut d| d.next().is_some()) {
        return Err(Error::refused(format!("{} is not empty; give a new directory with --dir", dir.display())));
    }
    let existed = dir.is_dir();
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).at(dir.display())?;
    let played = play(&dir, stage);
    let interrupted = (stage.notify)("cleaning up").is_err();
    let keep = played.is_err() && !interrupted;
    let down = match Lab::open(&dir) {
        Ok(lab) => lab.down(!keep, &|_| Ok(())),
        Err(_) => Ok(()),
    };
    if !keep && dir.is_dir() && !existed {
        std::fs::remove_dir_all(&dir).at(dir.display())?;
    }
    match played {
        Err(e) if keep => Err(e.context(format!("the demonstration failed; its directory {} is kept", dir.display()))),
        Err(e) => down.and(Err(e)),
        Ok(()) => {
            down?;
            stage.chapter("Done. Everything is stopped, unmounted and removed.")?;
            stage.line("The same to play with:  kagami lab up /tmp/lab");
            Ok(())
        }
    }
}

/// The cast: the lab and what has been put into its volume.
struct Play<'a> {
    lab: Lab,
    mnt: PathBuf,
    stage: &'a Stage<'a>,
    git: bool,
    sqlite: bool,
    files: u64,
}

fn play(dir: &Path, stage: &Stage<'_>) -> Result<()> {
    stage.chapter("1. Three sites on this machine")?;
    let lab = Lab::up(dir, &Options::default(), LIMIT, stage.notify)?;
    let mnt = lab.mount(0);
    let mut play = Play {
        mnt,
        stage,
        git: has_program("git"),
        sqlite: has_program("sqlite3"),
        files: if stage.fast { 500 } else { 2000 },
        lab,
    };
    for site in play.lab.sites() {
        let pid = play.lab.files(site).running().unwrap_or(0);
        stage.line(format!("{site:8} process {pid:7}   {}", dir.join(site).join("region/tree").display()));
    }
    stage.line(format!("mounted  {}", play.mnt.display()));
    play.fill()?;
    play.outage_of_sync()?;
    let promised = play.crash_of_primary()?;
    play.takeover(&promised)?;
    play.return_of_primary()
}

impl Play<'_> {
    fn tool(&self, c: &mut Command) -> Result<String> {
        (self.stage.notify)(&format!("{}", c.get_program().to_string_lossy()))?;
        let out = c.output().at(c.get_program().to_string_lossy())?;
        match out.status.success() {
            true => Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned()),
            false => Err(Error::failed(format!(
                "{c:?} ended with {}: {}",
                out.status,
                String::from_utf8_lossy(&out.stderr).trim()
            ))),
        }
    }

    fn git(&self, args: &[&str]) -> Result<String> {
        let mut c = Command::new("git");
        // The user's own settings (signing, hooks, identities) have no business here.
        c.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1").env_remove("GIT_DIR");
        c.args(["-c", "user.name=demo", "-c", "user.email=demo@localhost", "-c", "init.defaultBranch=main", "-C"]);
        self.tool(c.arg(self.mnt.join("project")).args(args))
    }

    fn sql(&self, statements: &str) -> Result<String> {
        self.tool(Command::new("sqlite3").args(["-batch", "-bail"]).arg(self.mnt.join("shop.db")).arg(statements))
    }

    fn wait(&self) -> Result<()> {
        self.lab.wait(LIMIT, self.stage.notify).map(drop)
    }

    fn fill(&mut self) -> Result<()> {
        self.stage.chapter("2. Data")?;
        let n = self.files;
        data::source_tree(&self.mnt, n, |i| (self.stage.notify)(&format!("file {i} of {n}")))?;
        self.stage.line(format!("a source tree of {}", plural(n, "file")));
        match self.git {
            true => {
                self.git(&["init", "-q"])?;
                self.git(&["add", "."])?;
                self.git(&["commit", "-q", "-m", "first"])?;
                self.stage.line(format!("a git repository of it, {}", self.git(&["log", "--oneline"])?));
            }
            false => self.stage.line("no git here: the git repository is left out"),
        }
        match self.sqlite {
            true => {
                let rows = if self.stage.fast { 2000 } else { 20_000 };
                self.sql(&format!(
                    "PRAGMA journal_mode=WAL; CREATE TABLE orders(id INTEGER PRIMARY KEY, item TEXT, n INTEGER);
                     WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x<{rows})
                     INSERT INTO orders SELECT x, 'item '||x, x%7 FROM c;"
                ))?;
                self.stage.line(format!("an SQLite database with {} orders (WAL)", count(rows)));
            }
            false => self.stage.line("no sqlite3 here: the database is left out"),
        }
        self.wait()?;
        self.stage.good("both pairs are in PAIR, nothing is under way");
        Ok(())
    }

    fn outage_of_sync(&mut self) -> Result<()> {
        self.stage.chapter("3. The sync site is killed; work goes on")?;
        let before = data::contents(&self.region("primary"))?;
        self.lab.kill("sync")?;
        for i in 0..12 {
            data::write(&self.mnt.join(data::source_path(i * 31)), &data::source_text(1_000_000 + i))?;
        }
        for i in 0..3 {
            let p = self.mnt.join(data::source_path(i * 31 + 1));
            std::fs::remove_file(&p).at(p.display())?;
        }
        let (from, to) = (self.mnt.join("project/module07"), self.mnt.join("project/module07-renamed"));
        std::fs::rename(&from, &to).at(from.display())?;
        self.stage.line("12 files rewritten, 3 removed, a directory of the tree renamed");
        if self.git {
            self.git(&["add", "-A"])?;
            self.git(&["commit", "-q", "-m", "second"])?;
            self.stage.line("a commit");
        }
        if self.sqlite {
            self.sql(
                "UPDATE orders SET n = n + 1 WHERE id % 100 = 0; INSERT INTO orders(item, n) VALUES ('late', 1);",
            )?;
            self.stage.line("rows of the database changed");
        }
        let changed = data::changed(&before, &data::contents(&self.region("primary"))?);
        self.stage.chapter("4. It is back: only what changed is copied")?;
        self.lab.start("sync", LIMIT, self.stage.notify)?;
        self.wait()?;
        let now = data::contents(&self.region("primary"))?;
        self.table(now.len() as u64, changed, &self.last_resync("primary", "sync")?);
        self.compare()
    }

    fn table(&self, files: u64, changed: u64, r: &ResyncStats) {
        let rows = [
            ("files in the volume", count(files)),
            ("files changed", count(changed)),
            ("files examined", count(r.files_examined)),
            ("files copied", count(r.files_copied)),
            ("bytes copied", bytes(r.bytes_copied)),
            ("renames", count(r.renames)),
            ("time", seconds(r.seconds)),
        ];
        for (what, n) in rows {
            self.stage.line(format!("{what:22}{n:>12}"));
        }
    }

    fn last_resync(&self, site: &str, pair: &str) -> Result<ResyncStats> {
        let s = self.lab.files(site).status()?;
        let found: Option<&PairStatus> = s.groups.iter().flat_map(|g| &g.pairs).find(|p| p.name == pair);
        let stats = found.and_then(|p| p.last_resync.clone());
        stats.ok_or_else(|| Error::failed(format!("site {site} says nothing of a resync of pair {pair}")))
    }

    fn region(&self, site: &str) -> PathBuf {
        self.lab.dir().join(site).join("region/tree")
    }

    /// All three trees are equal.
    fn compare(&self) -> Result<()> {
        self.wait()?;
        (self.stage.notify)("comparing the trees")?;
        let first = data::tree(&self.region("primary"))?;
        for site in ["sync", "async"] {
            data::same(("primary", &first), (site, &data::tree(&self.region(site))?))?;
        }
        self.stage.good(format!(
            "the trees of all three sites are equal: {}, compared by content, mode, owner, links and mtime",
            plural(first.len() as u64, "name")
        ));
        Ok(())
    }

    /// Kills the primary under a writer. Returns what had been answered: path below the mount and checksum.
    fn crash_of_primary(&mut self) -> Result<BTreeMap<PathBuf, String>> {
        self.stage.chapter("5. The primary is killed with -9 while it is written to")?;
        let mut promised = BTreeMap::new();
        for i in (0..self.files).step_by(7) {
            let p = data::source_path(i);
            if let Ok(sum) = data::checksum(&self.mnt.join(&p)) {
                promised.insert(p, sum);
            }
        }
        let stop = Arc::new(AtomicBool::new(false));
        let writer = std::thread::spawn({
            let (stop, mnt) = (stop.clone(), self.mnt.clone());
            move || write_until_refused(&mnt, &stop)
        });
        let started = Instant::now();
        let pace = Duration::from_millis(if self.stage.fast { 700 } else { 2500 });
        let mut go_on = Ok(());
        while started.elapsed() < pace && go_on.is_ok() {
            std::thread::sleep(Duration::from_millis(50));
            go_on = (self.stage.notify)("writing");
        }
        let killed = go_on.and_then(|()| self.lab.kill("primary"));
        stop.store(true, Ordering::SeqCst);
        let answered = writer.join().map_err(|_| Error::failed("the writer failed"))?;
        killed?;
        let (closed, synced) =
            answered.iter().fold((0, 0), |(c, s), (_, _, f)| if *f { (c, s + 1) } else { (c + 1, s) });
        self.stage.line(format!(
            "until then {} written and closed, and {} fsynced",
            plural(closed, "file"),
            plural(synced, "more file").replace("more files", "more")
        ));
        promised.extend(answered.into_iter().map(|(p, sum, _)| (p, sum)));
        Ok(promised)
    }

    fn takeover(&mut self, promised: &BTreeMap<PathBuf, String>) -> Result<()> {
        self.stage.chapter("6. Takeover at the sync site")?;
        let started = Instant::now();
        self.lab.takeover("sync", None, false, self.stage.notify)?;
        let took = seconds(started.elapsed().as_secs_f64());
        self.stage.line(format!("mounted again at {} after {took}, writable, in a new epoch", self.mnt.display()));
        let mut bad = Vec::new();
        for (p, sum) in promised {
            match data::checksum(&self.mnt.join(p)) {
                Ok(s) if s == *sum => {}
                Ok(_) => bad.push(format!("{} has another content", p.display())),
                Err(e) => bad.push(e.msg),
            }
        }
        if let Some(first) = bad.first() {
            return Err(Error::new(
                Kind::Failed,
                format!("{} of what was answered is lost, first: {first}", bad.len()),
            ));
        }
        self.stage.good(format!(
            "all of what had been closed or fsynced is there: {} checked",
            plural(promised.len() as u64, "file")
        ));
        if self.git {
            self.git(&["fsck", "--full", "--strict"])?;
            self.stage.good("git fsck finds nothing");
        }
        if self.sqlite {
            let check = self.sql("PRAGMA integrity_check;")?;
            if check != "ok" {
                return Err(Error::failed(format!("the database is damaged: {check}")));
            }
            self.stage
                .good(format!("SQLite's integrity check: ok, {} orders", self.sql("SELECT count(*) FROM orders;")?));
        }
        // Those of the directory that has been renamed are elsewhere now.
        let there = (0..self.files).step_by(17).filter(|i| self.mnt.join(data::source_path(*i)).exists());
        for i in there.take(20) {
            data::write(&self.mnt.join(data::source_path(i)), &data::source_text(2_000_000 + i))?;
        }
        self.stage.line("20 files rewritten there");
        Ok(())
    }

    fn return_of_primary(&mut self) -> Result<()> {
        self.stage.chapter("7. The old primary comes back, as a secondary")?;
        self.lab.start("primary", LIMIT, self.stage.notify)?;
        self.wait()?;
        let now = data::contents(&self.region("sync"))?;
        self.table(now.len() as u64, 20, &self.last_resync("sync", "sync")?);
        self.stage.line("(changed: the 20 above, and what was in flight when it was killed)");
        self.compare()
    }
}

/// Writes small files, every fourth with fsync, until an error or `stop`. Returns those that were answered: path below
/// the mount, checksum, fsynced.
fn write_until_refused(mnt: &Path, stop: &AtomicBool) -> Vec<(PathBuf, String, bool)> {
    let mut answered = Vec::new();
    let _ = std::fs::create_dir(mnt.join("inbox"));
    for i in 0u64.. {
        let p = PathBuf::from(format!("inbox/mail{i:05}"));
        let text = data::source_text(3_000_000 + i);
        let fsync = i % 4 == 3;
        let put = || -> Result<()> {
            data::write(&mnt.join(&p), &text)?;
            if fsync {
                std::fs::File::open(mnt.join(&p))?.sync_all()?;
            }
            Ok(())
        };
        if stop.load(Ordering::SeqCst) || put().is_err() {
            break;
        }
        answered.push((p, blake3::hash(text.as_bytes()).to_hex().to_string(), fsync));
    }
    answered
}
