//! A workload of several threads that remembers what it was answered, and a checker that wants all of it in a tree (G1).
//!
//! Each thread works in a directory of its own, so what it was answered is a sequence; the one operation in flight when
//! the program was killed may have happened or not. What a write promises depends on the mount: see [`Promise`].

use super::Rng;
use super::points::{BLOCK, block};
use super::sys;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// When a write is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// At close and fsync (the default options).
    Close,
    /// When it is answered (`write_through`).
    EachWrite,
}

/// Files of a thread, at most; blocks of a file, at most.
const FILES: usize = 24;
const BLOCKS: u64 = 8;

/// What a file may hold: for each block the stamps (0: zeros) of which one must be there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Expect {
    blocks: Vec<Vec<u64>>,
    /// Blocks that must be there; those beyond may be.
    promised: usize,
}

impl Expect {
    /// A write that has begun.
    fn begin(&mut self, at: usize, stamp: u64) {
        while self.blocks.len() <= at {
            self.blocks.push(vec![0]);
        }
        self.blocks[at].push(stamp);
    }

    /// A write that was answered where that is a promise.
    fn settle(&mut self, at: usize) {
        let last = *self.blocks[at].last().expect("never empty");
        self.blocks[at] = vec![last];
        self.promised = self.promised.max(at + 1);
    }

    /// A close or fsync that was answered.
    fn settle_all(&mut self) {
        (0..self.blocks.len()).for_each(|at| self.settle(at));
    }

    fn matches(&self, data: &[u8]) -> Result<(), String> {
        let blocks = data.len() / BLOCK;
        if !data.len().is_multiple_of(BLOCK) || blocks < self.promised || blocks > self.blocks.len() {
            return Err(format!(
                "has {} bytes, promised {}, possible {}",
                data.len(),
                self.promised * BLOCK,
                self.blocks.len() * BLOCK
            ));
        }
        for (at, (got, may)) in data.chunks(BLOCK).zip(&self.blocks).enumerate() {
            if !may.iter().any(|stamp| got == block(*stamp)) {
                let stamp = u64::from_le_bytes(got[..8].try_into().expect("8 bytes"));
                return Err(format!("block {at} holds stamp {stamp} (or parts), not one of {may:?}"));
            }
        }
        Ok(())
    }
}

type Files = BTreeMap<String, Expect>;

/// What one thread knows.
#[derive(Clone, Debug, Default)]
struct Known {
    files: Files,
    /// The names as they are if the operation in flight has happened.
    other: Option<Files>,
    /// What is in flight, for people.
    doing: String,
    answered: u64,
    error: Option<String>,
}

/// The running workload.
pub struct Answered {
    stop: Arc<AtomicBool>,
    threads: Vec<(JoinHandle<()>, Arc<Mutex<Known>>)>,
}

/// What was answered, by thread.
pub struct Log {
    threads: Vec<Known>,
}

impl Answered {
    /// Starts threads that work below `root`, in the directories `t0`, `t1`, … which they make.
    pub fn start(root: &Path, threads: usize, promise: Promise, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let start = |number: usize| {
            let known = Arc::new(Mutex::new(Known::default()));
            let mut worker = Worker {
                dir: root.join(format!("t{number}")),
                promise,
                rng: Rng::new(seed ^ (number as u64) << 48),
                known: known.clone(),
                log_file: None,
                stamp: (number as u64) << 48,
            };
            let stop = stop.clone();
            (std::thread::spawn(move || worker.run(&stop)), known)
        };
        let threads = (0..threads).map(start).collect();
        Self { stop, threads }
    }

    /// Operations answered so far.
    pub fn answered(&self) -> u64 {
        self.threads.iter().map(|(_, known)| known.lock().unwrap().answered).sum()
    }

    /// What was answered up to now, while the workload goes on.
    pub fn snapshot(&self) -> Log {
        Log { threads: self.threads.iter().map(|(_, known)| known.lock().unwrap().clone()).collect() }
    }

    /// Ends the threads (those that met an error have ended) and gives what they know. A thread that hangs in an
    /// operation for more than half a minute is a panic that says in which.
    #[track_caller]
    pub fn finish(self) -> Log {
        self.stop.store(true, Ordering::Relaxed);
        let all_ended = || self.threads.iter().all(|(thread, _)| thread.is_finished());
        if !super::proc::wait_until(Duration::from_secs(30), all_ended) {
            let hung = self.threads.iter().filter(|(t, _)| !t.is_finished());
            let doing: Vec<_> = hung.map(|(_, known)| known.lock().unwrap().doing.clone()).collect();
            panic!("operations hang: {doing:?}");
        }
        self.snapshot()
    }
}

impl Log {
    pub fn answered(&self) -> u64 {
        self.threads.iter().map(|t| t.answered).sum()
    }

    /// The errors at which threads ended.
    pub fn errors(&self) -> Vec<String> {
        self.threads.iter().filter_map(|t| t.error.clone()).collect()
    }

    /// Wants everything that was answered below `root`, and nothing that cannot be. What is wrong otherwise.
    pub fn check(&self, root: &Path) -> Result<(), Vec<String>> {
        let mut wrong = Vec::new();
        for (number, known) in self.threads.iter().enumerate() {
            let dir = root.join(format!("t{number}"));
            if known.answered == 0 && !dir.exists() {
                continue;
            }
            let as_was = mismatches(&dir, &known.files);
            let as_will = known.other.as_ref().map_or_else(|| as_was.clone(), |other| mismatches(&dir, other));
            if !as_was.is_empty() && !as_will.is_empty() {
                let nearest = if as_was.len() <= as_will.len() { as_was } else { as_will };
                let context = format!("(after {} answers, in flight: {})", known.answered, known.doing);
                wrong.extend(nearest.into_iter().take(10).map(|m| format!("t{number}/{m} {context}")));
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }
}

fn mismatches(dir: &Path, files: &Files) -> Vec<String> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) => return vec![format!(": {e}")],
    };
    let present: Vec<_> = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    let mut wrong: Vec<_> =
        present.iter().filter(|n| !files.contains_key(*n)).map(|n| format!("{n} should not be there")).collect();
    for (name, expect) in files {
        match std::fs::read(dir.join(name)) {
            Ok(data) => wrong.extend(expect.matches(&data).err().map(|why| format!("{name} {why}"))),
            Err(e) => wrong.push(format!("{name}: {e}")),
        }
    }
    wrong
}

struct Worker {
    dir: PathBuf,
    promise: Promise,
    rng: Rng,
    known: Arc<Mutex<Known>>,
    /// A file that stays open, is appended to and fsynced, as a database's log is.
    log_file: Option<OwnedFd>,
    /// The last stamp used; the thread's number is in its high bits.
    stamp: u64,
}

const LOG_FILE: &str = "log";

impl Worker {
    fn run(&mut self, stop: &AtomicBool) {
        let result = self.work(stop);
        if let Err(e) = result {
            let mut known = self.known.lock().unwrap();
            known.error = Some(format!("{}: {e}", known.doing));
        }
    }

    fn work(&mut self, stop: &AtomicBool) -> io::Result<()> {
        let dir = self.dir.clone();
        self.note("mkdir", |_| {});
        std::fs::create_dir(dir)?;
        self.answered();
        self.log_file = Some(self.create(LOG_FILE)?);
        while !stop.load(Ordering::Relaxed) {
            self.one()?;
        }
        Ok(())
    }

    fn one(&mut self) -> io::Result<()> {
        let count = self.known.lock().unwrap().files.len();
        match self.rng.below(10) {
            0..=2 if count < FILES => {
                self.stamp += 1;
                let name = format!("f{}", self.stamp & 0xffff_ffff);
                let file = self.create(&name)?;
                self.fill(&name, file)
            }
            0..=2 => self.unlink(),
            3 | 4 => self.rename(),
            5..=7 => self.log(),
            _ => {
                let Some(name) = self.pick() else { return Ok(()) };
                let file = sys::openat(sys::AT_FDCWD, self.dir.join(&name), sys::O_WRONLY, 0)?;
                self.fill(&name, file)
            }
        }
    }

    /// Notes that an operation begins: `change` makes the names as they are when it will have happened.
    fn note(&self, doing: &str, change: impl FnOnce(&mut Files)) {
        let mut known = self.known.lock().unwrap();
        known.doing = doing.to_owned();
        let mut other = known.files.clone();
        change(&mut other);
        known.other = Some(other);
    }

    /// The operation noted was answered.
    fn answered(&self) {
        let mut known = self.known.lock().unwrap();
        if let Some(other) = known.other.take() {
            known.files = other;
        }
        known.answered += 1;
        known.doing.clear();
    }

    /// One of the files, the log left out.
    fn pick(&mut self) -> Option<String> {
        let known = self.known.lock().unwrap();
        let names: Vec<_> = known.files.keys().filter(|n| *n != LOG_FILE).collect();
        if names.is_empty() { None } else { Some(names[self.rng.below(names.len() as u64) as usize].clone()) }
    }

    fn create(&mut self, name: &str) -> io::Result<OwnedFd> {
        self.note(&format!("create {name}"), |files| drop(files.insert(name.to_owned(), Expect::default())));
        let flags = sys::O_CREAT | sys::O_EXCL | sys::O_WRONLY;
        let file = sys::openat(sys::AT_FDCWD, self.dir.join(name), flags, 0o644)?;
        self.answered();
        Ok(file)
    }

    fn write(&mut self, name: &str, file: &OwnedFd, at: usize) -> io::Result<()> {
        self.stamp += 1;
        let stamp = self.stamp;
        {
            let mut known = self.known.lock().unwrap();
            known.doing = format!("write block {at} of {name}");
            if let Some(expect) = known.files.get_mut(name) {
                expect.begin(at, stamp);
            }
        }
        sys::pwrite_all(file.as_raw_fd(), &block(stamp), (at * BLOCK) as u64)?;
        let mut known = self.known.lock().unwrap();
        known.answered += 1;
        match known.files.get_mut(name) {
            Some(expect) if self.promise == Promise::EachWrite => expect.settle(at),
            _ => {}
        }
        Ok(())
    }

    fn settled(&self, name: &str) {
        let mut known = self.known.lock().unwrap();
        known.answered += 1;
        if let Some(expect) = known.files.get_mut(name) {
            expect.settle_all();
        }
    }

    /// Writes a few blocks, fsyncs now and then, closes.
    fn fill(&mut self, name: &str, file: OwnedFd) -> io::Result<()> {
        for _ in 0..=self.rng.below(4) {
            let at = self.rng.below(BLOCKS) as usize;
            self.write(name, &file, at)?;
            if self.rng.one_in(5) {
                self.known.lock().unwrap().doing = format!("fsync {name}");
                sys::fsync(file.as_raw_fd())?;
                self.settled(name);
            }
        }
        self.known.lock().unwrap().doing = format!("close {name}");
        sys::close(file)?;
        self.settled(name);
        Ok(())
    }

    /// Appends to the log (at its end a new one is begun) and fsyncs it.
    fn log(&mut self) -> io::Result<()> {
        let Some(file) = self.log_file.take() else { return Ok(()) };
        let length = self.known.lock().unwrap().files.get(LOG_FILE).map_or(0, |e| e.blocks.len());
        if length >= 64 {
            sys::close(file)?;
            self.settled(LOG_FILE);
            self.note("unlink log", |files| drop(files.remove(LOG_FILE)));
            std::fs::remove_file(self.dir.join(LOG_FILE))?;
            self.answered();
            self.log_file = Some(self.create(LOG_FILE)?);
            return Ok(());
        }
        self.write(LOG_FILE, &file, length)?;
        self.known.lock().unwrap().doing = "fsync log".to_owned();
        sys::fsync(file.as_raw_fd())?;
        self.settled(LOG_FILE);
        self.log_file = Some(file);
        Ok(())
    }

    fn unlink(&mut self) -> io::Result<()> {
        let Some(name) = self.pick() else { return Ok(()) };
        self.note(&format!("unlink {name}"), |files| drop(files.remove(&name)));
        std::fs::remove_file(self.dir.join(&name))?;
        self.answered();
        Ok(())
    }

    /// To a new name, or over another file.
    fn rename(&mut self) -> io::Result<()> {
        let Some(from) = self.pick() else { return Ok(()) };
        self.stamp += 1;
        let fresh = format!("r{}", self.stamp & 0xffff_ffff);
        let to = if self.rng.one_in(2) { fresh } else { self.pick().filter(|to| *to != from).unwrap_or(fresh) };
        self.note(&format!("rename {from} {to}"), |files| {
            if let Some(expect) = files.remove(&from) {
                files.insert(to.clone(), expect);
            }
        });
        std::fs::rename(self.dir.join(&from), self.dir.join(&to))?;
        self.answered();
        Ok(())
    }
}
