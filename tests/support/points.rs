//! A workload each of whose states can be recognised: what the volumes hold after step n is a function of n alone, and
//! every step is one mutation, so a tree that is at a point of the order (G2) equals the state after exactly one n.
//!
//! Two (or more) volumes of one group are used together; a tree set whose volumes stand at different points is a mixture.

use super::Rng;
use super::sys;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// Writes are whole blocks at their place: one page, so the kernel cannot split one into two.
pub const BLOCK: usize = 4096;

/// Blocks of a file, at most.
const FILE_BLOCKS: u64 = 6;

/// Objects in a volume, about.
const OBJECTS: u64 = 60;

/// The file in each volume that is overwritten again and again; its content tells the step.
pub const COUNTER: &str = "counter";

/// One mutation of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Create(String),
    /// Block of a file, overwritten or new.
    Write(String, u64),
    /// Moves a file or directory, replacing a file of the new name.
    Rename(String, String),
    Unlink(String),
    Mkdir(String),
    Rmdir(String),
    Chmod(String, u32),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Item {
    Dir,
    /// The step that wrote each block (0: never written), and the mode.
    File(Vec<u64>, u32),
}

/// The expected state of all volumes after `n` steps.
#[derive(Clone)]
pub struct Model {
    seed: u64,
    /// Steps taken.
    pub n: u64,
    volumes: Vec<BTreeMap<String, Item>>,
    /// Sum of the hashes of all objects: changes with each step by a little work.
    sum: u128,
}

/// The content of a block that step `n` wrote: its number, then bytes that follow from it.
pub fn block(n: u64) -> [u8; BLOCK] {
    let mut data = [0; BLOCK];
    if n > 0 {
        Rng::new(n).fill(&mut data);
        data[..8].copy_from_slice(&n.to_le_bytes());
    }
    data
}

fn hash(volume: usize, path: &str, mode: Option<u32>, content: &blake3::Hash, size: u64) -> u128 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(format!("{volume} {mode:?} {size} {path}").as_bytes()).update(content.as_bytes());
    let bytes = hasher.finalize();
    u128::from_le_bytes(bytes.as_bytes()[..16].try_into().expect("16 bytes"))
}

fn item_hash(volume: usize, path: &str, item: &Item) -> u128 {
    match item {
        Item::Dir => hash(volume, path, None, &blake3::hash(b""), 0),
        Item::File(blocks, mode) => {
            let mut hasher = blake3::Hasher::new();
            for n in blocks {
                hasher.update(&block(*n));
            }
            hash(volume, path, Some(*mode), &hasher.finalize(), (blocks.len() * BLOCK) as u64)
        }
    }
}

impl Model {
    pub fn new(volumes: usize, seed: u64) -> Self {
        Self { seed, n: 0, volumes: vec![BTreeMap::new(); volumes], sum: 0 }
    }

    /// The model after `n` steps.
    pub fn at(volumes: usize, seed: u64, n: u64) -> Self {
        let mut model = Self::new(volumes, seed);
        (0..n).for_each(|_| drop(model.advance()));
        model
    }

    /// The next step: its volume and what it does. Follows from the state alone.
    pub fn next(&self) -> (usize, Step) {
        let n = self.n + 1;
        let count = self.volumes.len();
        if n as usize <= count {
            return (n as usize - 1, Step::Create(COUNTER.to_owned()));
        }
        let mut rng = Rng::new(self.seed.wrapping_mul(0x1000_0001).wrapping_add(n));
        let volume = rng.below(count as u64) as usize;
        let items = &self.volumes[volume];
        if rng.one_in(3) {
            return (volume, Step::Write(COUNTER.to_owned(), 0));
        }
        let files: Vec<_> = items.iter().filter(|(p, i)| matches!(i, Item::File(..)) && *p != COUNTER).collect();
        let dirs: Vec<_> = items.iter().filter(|(_, i)| **i == Item::Dir).map(|(p, _)| p).collect();
        let crowded = items.len() as u64 > OBJECTS;
        let place = |rng: &mut Rng| match rng.below(dirs.len() as u64 + 1) {
            0 => String::new(),
            at => format!("{}/", dirs[at as usize - 1]),
        };
        let file = |rng: &mut Rng| files[rng.below(files.len() as u64) as usize].0.clone();
        let step = match rng.below(12) {
            _ if files.len() < 4 => Step::Create(format!("{}f{n}", place(&mut rng))),
            0..=2 if crowded => Step::Unlink(file(&mut rng)),
            0..=2 => Step::Create(format!("{}f{n}", place(&mut rng))),
            3 if !crowded => Step::Mkdir(format!("{}d{n}", place(&mut rng))),
            3 | 4 => match dirs.iter().find(|d| self.is_empty(volume, d)) {
                Some(dir) => Step::Rmdir((*dir).clone()),
                None => Step::Unlink(file(&mut rng)),
            },
            5 => Step::Rename(file(&mut rng), format!("{}r{n}", place(&mut rng))),
            6 => self.replace(&mut rng, &file).unwrap_or_else(|| Step::Mkdir(format!("{}d{n}", place(&mut rng)))),
            7 if !dirs.is_empty() => {
                // To the top: a directory can then never land in itself.
                let dir = dirs[rng.below(dirs.len() as u64) as usize].clone();
                Step::Rename(dir, format!("d{n}"))
            }
            8 => Step::Chmod(file(&mut rng), [0o600, 0o644, 0o640, 0o755][rng.below(4) as usize]),
            _ => {
                let file = file(&mut rng);
                let Item::File(blocks, _) = &items[&file] else { unreachable!("a file") };
                let block = rng.below((blocks.len() as u64 + 1).min(FILE_BLOCKS));
                Step::Write(file, block)
            }
        };
        (volume, step)
    }

    /// A rename of one file over another.
    fn replace(&self, rng: &mut Rng, file: &impl Fn(&mut Rng) -> String) -> Option<Step> {
        let (from, to) = (file(rng), file(rng));
        (from != to).then_some(Step::Rename(from, to))
    }

    fn is_empty(&self, volume: usize, dir: &str) -> bool {
        let below = format!("{dir}/");
        !self.volumes[volume].range(below.clone()..).next().is_some_and(|(p, _)| p.starts_with(&below))
    }

    fn put(&mut self, volume: usize, path: String, item: Item) {
        self.take(volume, &path);
        self.sum = self.sum.wrapping_add(item_hash(volume, &path, &item));
        self.volumes[volume].insert(path, item);
    }

    fn take(&mut self, volume: usize, path: &str) -> Option<Item> {
        let item = self.volumes[volume].remove(path)?;
        self.sum = self.sum.wrapping_sub(item_hash(volume, path, &item));
        Some(item)
    }

    /// Takes the next step and says what it was.
    pub fn advance(&mut self) -> (usize, Step) {
        let (volume, step) = self.next();
        self.n += 1;
        match step.clone() {
            Step::Create(path) => self.put(volume, path, Item::File(vec![], 0o644)),
            Step::Mkdir(path) => self.put(volume, path, Item::Dir),
            Step::Unlink(path) | Step::Rmdir(path) => drop(self.take(volume, &path)),
            Step::Rename(from, to) => self.rename(volume, &from, &to),
            Step::Write(path, at) => {
                if let Some(Item::File(mut blocks, mode)) = self.take(volume, &path) {
                    blocks.resize(blocks.len().max(at as usize + 1), 0);
                    blocks[at as usize] = self.n;
                    self.put(volume, path, Item::File(blocks, mode));
                }
            }
            Step::Chmod(path, mode) => {
                if let Some(Item::File(blocks, _)) = self.take(volume, &path) {
                    self.put(volume, path, Item::File(blocks, mode));
                }
            }
        }
        (volume, step)
    }

    fn rename(&mut self, volume: usize, from: &str, to: &str) {
        let below = format!("{from}/");
        let range = self.volumes[volume].range(below.clone()..);
        let inside: Vec<_> = range.map(|(p, _)| p.clone()).take_while(|p| p.starts_with(&below)).collect();
        for path in inside.into_iter().chain([from.to_owned()]) {
            if let Some(item) = self.take(volume, &path) {
                self.put(volume, format!("{to}{}", &path[from.len()..]), item);
            }
        }
    }
}

/// Carries the steps out on real directories, one after the other.
pub struct Writer {
    roots: Vec<PathBuf>,
    model: Model,
}

impl Writer {
    /// Writes below these directories (one in each volume, in the order of the volumes), which exist and hold the state
    /// after `n` steps.
    pub fn resume(roots: &[PathBuf], seed: u64, n: u64) -> Self {
        // Modes are part of the state. (Chmod after create would be a second mutation.)
        // SAFETY: a plain number.
        unsafe { libc::umask(0o022) };
        Self { roots: roots.to_vec(), model: Model::at(roots.len(), seed, n) }
    }

    /// Steps that were answered.
    pub fn answered(&self) -> u64 {
        self.model.n
    }

    /// Takes one step; after an error it may have happened or not.
    pub fn step(&mut self) -> io::Result<u64> {
        let (volume, step) = self.model.next();
        apply(&self.roots[volume], &step, self.model.n + 1)?;
        self.model.advance();
        Ok(self.model.n)
    }

    /// Steps until one fails or `stop` says so; the number of steps answered.
    pub fn run(&mut self, mut stop: impl FnMut(u64) -> bool) -> (u64, Option<io::Error>) {
        loop {
            match self.step() {
                Ok(n) if stop(n) => return (n, None),
                Ok(_) => {}
                Err(e) => return (self.answered(), Some(e)),
            }
        }
    }
}

fn apply(root: &Path, step: &Step, n: u64) -> io::Result<()> {
    let at = |path: &str| root.join(path);
    match step {
        Step::Create(path) => {
            sys::close(sys::openat(sys::AT_FDCWD, at(path), sys::O_CREAT | sys::O_EXCL | sys::O_WRONLY, 0o644)?)
        }
        Step::Write(path, number) => {
            let file = sys::openat(sys::AT_FDCWD, at(path), sys::O_WRONLY, 0)?;
            sys::pwrite_all(file.as_raw_fd(), &block(n), number * BLOCK as u64)?;
            sys::close(file)
        }
        Step::Rename(from, to) => std::fs::rename(at(from), at(to)),
        Step::Unlink(path) => std::fs::remove_file(at(path)),
        Step::Mkdir(path) => std::fs::create_dir(at(path)),
        Step::Rmdir(path) => std::fs::remove_dir(at(path)),
        Step::Chmod(path, mode) => sys::chmodat(sys::AT_FDCWD, at(path), *mode),
    }
}

/// One object found: (mode of a file, size, hash of its content).
type Found = BTreeMap<String, (Option<u32>, u64, blake3::Hash)>;

fn read(root: &Path) -> io::Result<Found> {
    fn walk(dir: &Path, prefix: &str, found: &mut Found) -> io::Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let st = sys::lstat(&entry.path())?;
            if st.st_mode & sys::S_IFMT == sys::S_IFDIR {
                walk(&entry.path(), &format!("{path}/"), found)?;
                found.insert(path, (None, 0, blake3::hash(b"")));
            } else {
                let data = std::fs::read(entry.path())?;
                found.insert(path, (Some(st.st_mode & 0o7777), data.len() as u64, blake3::hash(&data)));
            }
        }
        Ok(())
    }
    let mut found = BTreeMap::new();
    if root.exists() {
        walk(root, "", &mut found)?;
    }
    Ok(found)
}

/// The point at which these directories stand: the n (at most `limit`) whose state they equal. A directory that does not
/// exist counts as empty. Else a report of how they are mixed.
pub fn find_point(roots: &[PathBuf], seed: u64, limit: u64) -> Result<u64, String> {
    let found: Vec<_> =
        roots.iter().map(|r| read(r)).collect::<io::Result<_>>().map_err(|e| format!("reading: {e}"))?;
    let mut sum = 0u128;
    for (volume, objects) in found.iter().enumerate() {
        for (path, (mode, size, content)) in objects {
            sum = sum.wrapping_add(hash(volume, path, *mode, content, *size));
        }
    }
    // Some states are met again (a directory made and removed, a chmod there and back): the last of equal ones counts.
    let mut model = Model::new(roots.len(), seed);
    let mut last = None;
    loop {
        if model.sum == sum {
            last = Some(model.n);
        }
        if model.n >= limit {
            return last.ok_or_else(|| explain(roots, &found, seed, limit));
        }
        model.advance();
    }
}

/// What is wrong with trees that are at no point: what the counters say, and the differences to the nearest state.
fn explain(roots: &[PathBuf], found: &[Found], seed: u64, limit: u64) -> String {
    let counter = |root: &PathBuf| {
        let data = std::fs::read(root.join(COUNTER)).ok()?;
        Some(u64::from_le_bytes(data.get(..8)?.try_into().ok()?))
    };
    let counters: Vec<_> = roots.iter().map(counter).collect();
    let latest = counters.iter().flatten().copied().max().unwrap_or(0).min(limit);
    let from = latest.saturating_sub(300);
    let mut model = Model::at(roots.len(), seed, from);
    let mut best: Option<(u64, Vec<String>)> = None;
    while model.n <= (latest + 300).min(limit) {
        let differences = differences(&model, found);
        if best.as_ref().is_none_or(|(_, least)| differences.len() < least.len()) {
            best = Some((model.n, differences));
        }
        model.advance();
    }
    let (n, differences) = best.unwrap_or_default();
    let total = differences.len();
    let shown = differences.into_iter().take(12).collect::<Vec<_>>().join("\n  ");
    format!(
        "a mixture: at none of {limit} points; counters {counters:?}; nearest is {n}, {total} differences:\n  {shown}"
    )
}

fn differences(model: &Model, found: &[Found]) -> Vec<String> {
    let mut out = Vec::new();
    for (volume, (items, found)) in model.volumes.iter().zip(found).enumerate() {
        for (path, item) in items {
            match found.get(path) {
                None => out.push(format!("volume {volume}: {path} is missing")),
                Some((mode, size, content)) => {
                    if item_hash(volume, path, item) != hash(volume, path, *mode, content, *size) {
                        out.push(format!(
                            "volume {volume}: {path} is not {item:?} (mode {:o}, {size} bytes)",
                            mode.unwrap_or(0)
                        ));
                    }
                }
            }
        }
        let more = found.keys().filter(|p| !items.contains_key(*p));
        out.extend(more.map(|p| format!("volume {volume}: {p} should not be there")));
    }
    out
}
