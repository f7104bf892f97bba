//! Judging one object of a comparison: what the primary has against what the secondary told.

use super::source::Found;
use super::tell;
use crate::base::{LinkId, Result, limits};
use crate::format::msg::{Ask, BlockHash, Have, Told};
use crate::format::op::Target;

const B: u64 = limits::COMPARE_BLOCK_BYTES;

/// What this side has of an object, with the hashes that were asked for.
pub(super) type Ours = Option<(Have, Vec<BlockHash>)>;

/// Looks at an object as the question to the secondary does.
pub(super) fn ours(f: &Result<Option<Found>>, ask: &Ask) -> Result<Ours> {
    let f = match f {
        Ok(Some(f)) => f,
        Ok(None) => return Ok(None),
        Err(e) => return Err(e.clone()),
    };
    let have = f.have()?;
    let (mut buf, mut out) = (Vec::new(), Vec::new());
    if let (Some(fd), Some((from, to))) = (f.content(), ask.ranges.first()) {
        let to = (*to).min(have.size);
        if *from < to {
            out = tell::blocks(fd, *from, to, &mut buf)?;
        }
    }
    Ok(Some((have, out)))
}

/// One object being judged.
pub(super) struct Case {
    pub(super) ask: Ask,
    pub(super) what: Vec<String>,
    pub(super) dirs: bool,
    pub(super) lid: Option<LinkId>,
    theirs: Option<blake3::Hasher>,
    wrong: u64,
    pub(super) unsure: bool,
}

impl Case {
    pub(super) fn new(ask: &Ask) -> Case {
        let ask = Ask { vol: ask.vol, at: ask.at.clone(), ranges: ask.ranges.clone() };
        Case { ask, what: Vec::new(), dirs: false, lid: None, theirs: None, wrong: 0, unsure: false }
    }

    pub(super) fn judge(&mut self, ours: &Result<Ours>, told: &Told, peer: &str) {
        let theirs = told.have.as_ref();
        let is_dir = |h: &Have| h.mode & libc::S_IFMT == libc::S_IFDIR;
        if let Some(t) = theirs {
            let mut h = blake3::Hasher::new();
            let times = (t.mtime.sec, t.mtime.nsec);
            h.update(format!("{:?}", (t.mode, t.uid, t.gid, t.size, times, t.rdev, &t.target, &t.xattrs)).as_bytes());
            self.theirs = Some(h);
        }
        let (h, blocks) = match (ours, theirs) {
            (Err(e), _) => return self.what.push(format!("cannot be read here: {e}")),
            (Ok(None), None) => return,
            (Ok(None), Some(t)) => {
                self.dirs = is_dir(t);
                return self.what.push(format!("only at {peer}"));
            }
            (Ok(Some((h, _))), None) => {
                // A directory itself is told of where its name is.
                if matches!(self.ask.at, Target::File(_)) {
                    self.dirs = is_dir(h);
                    self.what.push(format!("missing at {peer}"));
                }
                return;
            }
            (Ok(Some(o)), Some(_)) => o,
        };
        let Some(t) = theirs else { return };
        if h.mode & libc::S_IFMT != t.mode & libc::S_IFMT {
            self.dirs = is_dir(h) || is_dir(t);
            return self.what.push("type".into());
        }
        if is_dir(h) && matches!(self.ask.at, Target::File(_)) {
            // Attributes are compared by the directory's own question.
            if h.dir != t.dir {
                self.dirs = true;
                self.what.push(format!("another directory at {peer}"));
            }
            return;
        }
        self.attributes(h, t, peer);
        if let (Some((from, to)), true) = (self.ask.ranges.first().copied(), h.size == t.size) {
            let end = to.min(h.size);
            self.content(blocks, told.blocks.first().map_or(&[], Vec::as_slice), from, end);
        }
    }

    fn attributes(&mut self, h: &Have, t: &Have, peer: &str) {
        let symlink = h.mode & libc::S_IFMT == libc::S_IFLNK;
        if !symlink && h.mode != t.mode {
            self.what.push(format!("mode {:o} here, {:o} at {peer}", h.mode & 0o7777, t.mode & 0o7777));
        }
        if (h.uid, h.gid) != (t.uid, t.gid) {
            self.what.push(format!("owner {}:{} here, {}:{} at {peer}", h.uid, h.gid, t.uid, t.gid));
        }
        if h.size != t.size {
            self.what.push(format!("size {} here, {} at {peer}", h.size, t.size));
        }
        if h.mtime != t.mtime {
            self.what.push("mtime".into());
        }
        if h.rdev != t.rdev {
            self.what.push("device number".into());
        }
        if h.target != t.target {
            self.what.push("target of the link".into());
        }
        let differ = |a: &Have, b: &Have| -> Vec<String> {
            let other = a.xattrs.iter().filter(|x| !b.xattrs.contains(x));
            other.map(|(k, _)| String::from_utf8_lossy(k).into_owned()).collect()
        };
        let mut keys = differ(h, t);
        keys.extend(differ(t, h));
        keys.sort();
        keys.dedup();
        self.what.extend(keys.into_iter().map(|k| format!("attribute {k}")));
    }

    /// Compares hashes of `from..end`. A hole reads as zeros, so it is equal to zeros.
    pub(super) fn content(&mut self, ours: &[BlockHash], theirs: &[BlockHash], from: u64, end: u64) {
        let n = end.saturating_sub(from).div_ceil(B);
        let first = self.wrong == 0;
        let mut at = None;
        for i in 0..n {
            let len = B.min(end - from - i * B);
            let get = |l: &[BlockHash]| l.get(i as usize).copied().flatten().unwrap_or_else(|| zeros(len));
            let (a, b) = (get(ours), get(theirs));
            if let Some(h) = &mut self.theirs {
                h.update(&b);
            }
            if a != b {
                self.wrong += 1;
                at.get_or_insert(from + i * B);
            }
        }
        if let (true, Some(at)) = (first, at) {
            self.what.push(format!("content, first near byte {at}"));
        }
    }

    pub(super) fn digest(&self) -> [u8; 16] {
        let mut out = [0; 16];
        if let Some(h) = &self.theirs {
            out.copy_from_slice(&h.finalize().as_bytes()[..16]);
        }
        out
    }
}

/// The hash of `len` zeros.
fn zeros(len: u64) -> [u8; 16] {
    static WHOLE: std::sync::LazyLock<[u8; 16]> = std::sync::LazyLock::new(|| tell::hash(&[0; B as usize]));
    if len == B { *WHOLE } else { tell::hash(&vec![0; len.min(B) as usize]) }
}
