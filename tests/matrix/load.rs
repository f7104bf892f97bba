//! Programs that write wherever the volume is mounted, and know what they were answered.

use crate::support::machines::SITES;
use crate::support::sys;
use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two rounds of a writer.
const PAUSE: Duration = Duration::from_millis(8);
/// Bytes of the file that is overwritten again and again.
const SAME: usize = 4096;

/// What was answered.
#[derive(Clone, Default)]
pub struct Known {
    /// Whole files, fsynced or closed: their content.
    whole: BTreeMap<String, Vec<u8>>,
    /// Files to which a line is appended with each write, and what of them was answered.
    appended: BTreeMap<String, Vec<u8>>,
    /// Files that are overwritten: the last number answered, and the last one that was tried.
    same: BTreeMap<String, (u64, u64)>,
    /// What was tried, answered or not: files and bytes.
    pub files: u64,
    pub bytes: u64,
    /// At each site: when its first answer was given, and when the last write began that was answered.
    reigns: BTreeMap<usize, (Instant, Instant)>,
}

impl Known {
    /// Answers.
    pub fn answers(&self) -> usize {
        let lines = self.appended.values().map(|v| v.split(|b| *b == b'\n').count() - 1);
        self.whole.len() + lines.sum::<usize>() + self.same.values().map(|(n, _)| *n as usize).sum::<usize>()
    }

    /// One of the whole files.
    pub fn a_name(&self) -> &str {
        self.whole.keys().next().expect("a file")
    }

    /// What of it is not below `root`.
    pub fn missing(&self, root: &Path) -> Vec<String> {
        let mut out = Vec::new();
        let mut look = |name: &str, good: &dyn Fn(&[u8]) -> bool| match fs::read(root.join(name)) {
            Ok(bytes) if good(&bytes) => {}
            Ok(bytes) => out.push(format!("{name} is not what was answered: {} bytes", bytes.len())),
            Err(e) => out.push(format!("{name}: {e}")),
        };
        for (name, text) in &self.whole {
            look(name, &|b| b == text);
        }
        for (name, text) in &self.appended {
            look(name, &|b| b.starts_with(text));
        }
        for (name, (last, tried)) in self.same.iter().filter(|(_, (last, _))| *last > 0) {
            let number = |b: &[u8]| b.first_chunk::<8>().map(|n| u64::from_le_bytes(*n));
            look(name, &|b| number(b).is_some_and(|n| (*last..=*tried).contains(&n) && b == stamp(n)));
        }
        out
    }

    /// Two sites of which each answered a write that began after the other one had answered: both were primary.
    pub fn by_turns(&self) -> Option<[usize; 2]> {
        let all: Vec<_> = self.reigns.iter().collect();
        let pairs = all.iter().flat_map(|a| all.iter().map(move |b| (a, b))).filter(|(a, b)| a.0 < b.0);
        let mut both = pairs.filter(|((_, a), (_, b))| a.1 > b.0 && b.1 > a.0);
        both.next().map(|((a, _), (b, _))| [**a, **b])
    }

    fn answered(&mut self, site: usize, begun: Instant) {
        self.reigns.entry(site).or_insert_with(|| (Instant::now(), begun)).1 = begun;
    }
}

fn stamp(n: u64) -> Vec<u8> {
    n.to_le_bytes().repeat(SAME / 8)
}

/// The writers, one for each site's mount.
pub struct Load {
    stop: Arc<AtomicBool>,
    pause: Arc<AtomicBool>,
    known: Arc<Mutex<Known>>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Below these directories, one for each site. `each_write`: each write is a promise, also without fsync or close.
    pub fn start(dirs: Vec<PathBuf>, each_write: bool) -> Load {
        let (stop, pause) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let known = Arc::new(Mutex::new(Known::default()));
        let one = |(site, dir): (usize, PathBuf)| {
            let w = Writer { site, dir, each_write, known: known.clone(), appends: None, n: 0 };
            let (stop, pause) = (stop.clone(), pause.clone());
            std::thread::spawn(move || w.run(&stop, &pause))
        };
        let threads = dirs.into_iter().enumerate().map(one).collect();
        Load { stop, pause, known, threads }
    }

    /// Waits until there were so many answers; false when they do not come.
    pub fn reaches(&self, answers: usize, limit: Duration) -> bool {
        crate::support::proc::wait_until(limit, || self.known.lock().unwrap().answers() >= answers)
    }

    /// What is known now, while it goes on: what is overwritten may have been so again when one looks.
    pub fn so_far(&self) -> Known {
        let mut k = self.known.lock().unwrap().clone();
        k.same.values_mut().for_each(|(_, tried)| *tried = u64::MAX);
        k
    }

    /// No write is begun until it goes on; one that is under way has its time to end.
    pub fn pause(&self, on: bool) {
        self.pause.store(on, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(if on { 200 } else { 0 }));
    }

    /// Ends it; everything that it was ever answered.
    pub fn end(mut self) -> Known {
        self.stop.store(true, Ordering::SeqCst);
        for t in self.threads.drain(..) {
            t.join().unwrap();
        }
        std::mem::take(&mut *self.known.lock().unwrap())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

struct Writer {
    site: usize,
    dir: PathBuf,
    each_write: bool,
    known: Arc<Mutex<Known>>,
    /// The file that is appended to, with its name.
    appends: Option<(OwnedFd, String)>,
    n: u64,
}

impl Writer {
    fn run(mut self, stop: &AtomicBool, pause: &AtomicBool) {
        while !stop.load(Ordering::SeqCst) {
            if !pause.load(Ordering::SeqCst) {
                self.n += 1;
                let done = match self.n % 4 {
                    0 => self.whole(true),
                    1 => self.whole(false),
                    2 if self.each_write => self.append(),
                    _ => self.same(),
                };
                if done.is_err() {
                    self.appends = None;
                }
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// A file of its own, fsynced, or closed without.
    fn whole(&mut self, fsync: bool) -> std::io::Result<()> {
        let begun = Instant::now();
        let (how, n) = (if fsync { "fsynced" } else { "closed" }, self.n);
        let name = format!("{}-{how}-{n}", SITES[self.site]);
        let text = format!("{name}\n").repeat(20).into_bytes();
        let dir = sys::open_dir(&self.dir)?;
        let f = sys::openat(dir.as_raw_fd(), &name, sys::O_CREAT | sys::O_EXCL | sys::O_WRONLY, 0o644)?;
        self.tried(1, text.len());
        sys::pwrite_all(f.as_raw_fd(), &text, 0)?;
        if fsync {
            sys::fsync(f.as_raw_fd())?;
        } else {
            sys::close(f)?;
        }
        let mut k = self.known.lock().unwrap();
        k.whole.insert(name, text);
        k.answered(self.site, begun);
        Ok(())
    }

    /// A line more in a file that stays open. Where that fails, the next line begins another file.
    fn append(&mut self) -> std::io::Result<()> {
        let begun = Instant::now();
        if self.appends.is_none() {
            let dir = sys::open_dir(&self.dir)?;
            let name = format!("{}-appended-{}", SITES[self.site], self.n);
            let f = sys::openat(dir.as_raw_fd(), &name, sys::O_CREAT | sys::O_EXCL | sys::O_WRONLY, 0o644)?;
            self.appends = Some((f, name));
        }
        let Some((f, name)) = &self.appends else { return Ok(()) };
        let line = format!("line {}\n", self.n).into_bytes();
        let at = self.known.lock().unwrap().appended.get(name).map_or(0, Vec::len);
        self.tried(1, line.len());
        sys::pwrite_all(f.as_raw_fd(), &line, at as u64)?;
        let mut k = self.known.lock().unwrap();
        k.appended.entry(name.clone()).or_default().extend(line);
        k.answered(self.site, begun);
        Ok(())
    }

    /// The same bytes again with another number.
    fn same(&mut self) -> std::io::Result<()> {
        let (begun, name) = (Instant::now(), format!("{}-same", SITES[self.site]));
        let dir = sys::open_dir(&self.dir)?;
        let f = sys::openat(dir.as_raw_fd(), &name, sys::O_CREAT | sys::O_WRONLY, 0o644)?;
        let n = {
            let mut k = self.known.lock().unwrap();
            let tried = &mut k.same.entry(name.clone()).or_default().1;
            *tried += 1;
            *tried
        };
        self.tried(1, SAME);
        sys::pwrite_all(f.as_raw_fd(), &stamp(n), 0)?;
        if !self.each_write {
            sys::fsync(f.as_raw_fd())?;
        }
        let mut k = self.known.lock().unwrap();
        k.same.entry(name).or_default().0 = n;
        k.answered(self.site, begun);
        Ok(())
    }

    fn tried(&self, files: u64, bytes: usize) {
        let mut k = self.known.lock().unwrap();
        k.files += files;
        k.bytes += bytes as u64;
    }
}
