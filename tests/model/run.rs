//! Plays sequences against the model, and finds the shortest that still fails.

use super::fs::{Answer, Ino, Mistake, Model, Span};
use super::ops::Op;
use super::real::{self, Real};
use crate::support;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Shrinking ends after this time.
const SHRINK_LIMIT: Duration = Duration::from_secs(60);

/// Where sequences are played, each in a directory of its own.
pub struct Ground {
    pub base: PathBuf,
    pub write_through: bool,
    pub mistake: Mistake,
    next: AtomicU64,
}

impl Ground {
    pub fn new(base: PathBuf, write_through: bool, mistake: Mistake) -> Ground {
        Ground { base, write_through, mistake, next: AtomicU64::new(0) }
    }
}

/// A sequence under way.
pub struct Actor {
    pub name: String,
    pub model: Model,
    real: Real,
    /// Real numbers of the model's objects, for those that are there.
    inos: HashMap<Ino, u64>,
}

impl Actor {
    pub fn begin(ground: &Ground) -> Result<Actor, String> {
        let name = format!("s{}", ground.next.fetch_add(1, Ordering::Relaxed));
        let root = ground.base.join(&name);
        std::fs::create_dir(&root).map_err(|e| format!("mkdir {name}: {e}"))?;
        support::sys::chmodat(support::sys::AT_FDCWD, &root, 0o755).map_err(|e| e.to_string())?;
        // SAFETY: no arguments.
        let ids = unsafe { (libc::geteuid(), libc::getegid()) };
        let model = Model::new(ids, ground.write_through, ground.mistake);
        let real = Real::new(root).map_err(|e| e.to_string())?;
        Ok(Actor { name, model, real, inos: HashMap::new() })
    }

    /// One operation: both answer the same, and what it touched looks the same.
    pub fn step(&mut self, op: &Op) -> Result<(), String> {
        if !self.model.can(op) {
            return Ok(());
        }
        self.both(op)?;
        match op {
            Op::Open { path, .. } | Op::Mkdir { path, .. } | Op::Mkfifo { path, .. } | Op::Symlink { path, .. } => {
                self.both(&Op::Lstat { path: path.clone() })
            }
            Op::Unlink { path } | Op::Rmdir { path } | Op::Chmod { path, .. } | Op::Chown { path, .. } => {
                self.both(&Op::Lstat { path: path.clone() })
            }
            Op::Utimens { path, .. } | Op::Truncate { path, .. } => self.both(&Op::Lstat { path: path.clone() }),
            Op::Link { from, to } | Op::Rename { from, to, .. } => {
                self.both(&Op::Lstat { path: from.clone() })?;
                self.both(&Op::Lstat { path: to.clone() })
            }
            Op::SetXattr { path, name, .. } | Op::RemoveXattr { path, name } => {
                self.both(&Op::GetXattr { path: path.clone(), name: *name })
            }
            Op::Write { slot, .. } | Op::Pwrite { slot, .. } | Op::MapWrite { slot, .. } => self.content(*slot),
            Op::CopyRange { to: slot, .. } | Op::Ftruncate { slot, .. } | Op::Fallocate { slot, .. } => {
                self.content(*slot)
            }
            _ => Ok(()),
        }
        .map_err(|e| format!("after it: {e}"))
    }

    /// The size, and where it may be read the whole content, of an open file.
    fn content(&mut self, slot: u8) -> Result<(), String> {
        self.both(&Op::Fstat { slot })?;
        match self.model.readable(slot).map(<[u8]>::len) {
            Some(len) => self.both(&Op::Pread { slot, at: 0, len: len as u64 + 1 }),
            None => Ok(()),
        }
    }

    fn both(&mut self, op: &Op) -> Result<(), String> {
        let span = Span::begin();
        let got = self.real.apply(op);
        let expected = self.model.apply(op, span);
        self.inos.retain(|ino, _| self.model.inodes.contains_key(ino));
        match (got, expected) {
            (Answer::Stat(got), Answer::Stat(expected)) => {
                let known = *self.inos.entry(expected.ino).or_insert(got.ino);
                if known != got.ino {
                    return Err(format!("{op:?}: object {}, it was object {known}", got.ino));
                }
                real::compare(&mut self.model, &expected, &got, false).map_err(|e| format!("{op:?}: {e}"))
            }
            (Answer::Bytes(got), Answer::Bytes(expected)) => {
                real::differs(&got, &expected).map_or(Ok(()), |why| Err(format!("{op:?}: {why}")))
            }
            (got, expected) if got == expected => Ok(()),
            (got, expected) => Err(format!("{op:?}: {got:?}, the model says {expected:?}")),
        }
    }

    /// Closes what is open; then the whole subtree is as the model says.
    pub fn end(&mut self) -> Result<(), String> {
        for slot in 0..super::ops::SLOTS {
            self.both(&Op::Close { slot })?;
        }
        self.check(&self.real.root.clone(), false)
    }

    /// The sequence's directory, here or as another site has it, is as the model says. `settle`: it is a site's own tree,
    /// and every time in it is what all other sites must have.
    pub fn check(&mut self, root: &Path, settle: bool) -> Result<(), String> {
        let wrong = real::whole(&mut self.model, root, settle);
        if wrong.is_empty() { Ok(()) } else { Err(format!("{}:\n  {}", root.display(), wrong.join("\n  "))) }
    }

    /// The node was killed and is back, with nothing open: what was promised is there.
    pub fn crashed(&mut self) -> Result<(), String> {
        self.model.crash();
        self.real.reopen().map_err(|e| format!("{}: {e}", self.name))?;
        self.inos.clear();
        for ino in self.model.uncertain() {
            let Some(path) = path_of(&self.model, super::fs::ROOT, ino) else { continue };
            let path = self.real.root.join(path);
            let found = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            self.model.adopt(ino, found).map_err(|e| format!("{}: {e}", path.display()))?;
        }
        self.check(&self.real.root.clone(), false)
    }
}

/// A path of an object.
fn path_of(model: &Model, dir: Ino, wanted: Ino) -> Option<PathBuf> {
    let super::fs::Kind::Dir(entries) = &model.inodes[&dir].kind else { return None };
    entries.iter().find_map(|(name, ino)| {
        let name = PathBuf::from(support::sys::os(name));
        if *ino == wanted { Some(name) } else { path_of(model, *ino, wanted).map(|rest| name.join(rest)) }
    })
}

/// Plays a whole sequence. What was wrong otherwise, and at which operation (their count: after the last).
pub fn play(ground: &Ground, ops: &[Op]) -> Result<Actor, (usize, String)> {
    let mut actor = Actor::begin(ground).map_err(|e| (0, e))?;
    for (i, op) in ops.iter().enumerate() {
        actor.step(op).map_err(|e| (i, e))?;
    }
    actor.end().map_err(|e| (ops.len(), e))?;
    Ok(actor)
}

/// The shortest and simplest sequence found that still fails, with what is wrong with it. `fails` plays one in a fresh
/// directory.
pub fn shrink(mut ops: Vec<Op>, mut why: String, fails: impl Fn(&[Op]) -> Option<String>) -> (Vec<Op>, String) {
    let end = Instant::now() + SHRINK_LIMIT;
    let try_one = |ops: &mut Vec<Op>, why: &mut String, candidate: Vec<Op>| {
        let Some(now) = fails(&candidate) else { return false };
        (*ops, *why) = (candidate, now);
        true
    };
    loop {
        let before = ops.clone();
        // Parts are left out, first large ones, from the end.
        let mut part = ops.len().div_ceil(2).max(1);
        while Instant::now() < end {
            let mut at = ops.len();
            while at > 0 && Instant::now() < end {
                let from = at.saturating_sub(part);
                let candidate = [&ops[..from], &ops[at.min(ops.len())..]].concat();
                try_one(&mut ops, &mut why, candidate);
                at = from;
            }
            if part == 1 {
                break;
            }
            part = part.div_ceil(2);
        }
        // Then each becomes simpler.
        for i in 0..ops.len() {
            while Instant::now() < end {
                let simpler = |op: Op| {
                    let mut candidate = ops.clone();
                    candidate[i] = op;
                    candidate
                };
                let all: Vec<_> = ops[i].simpler().into_iter().map(simpler).collect();
                if !all.into_iter().any(|c| try_one(&mut ops, &mut why, c)) {
                    break;
                }
            }
        }
        if ops == before || Instant::now() >= end {
            return (ops, why);
        }
    }
}

/// What a person needs to see it again.
pub fn report(test: &str, ops: &[Op], why: &str) -> String {
    let text = serde_json::to_string(ops).expect("operations are JSON");
    let lines: Vec<String> = ops.iter().map(|op| format!("  {op:?}")).collect();
    format!(
        "{why}\nthe shortest sequence found:\n{}\nplay it again:\n  KAGAMI_OPS='{text}' cargo test --test all model::{test} -- --nocapture",
        lines.join("\n")
    )
}
