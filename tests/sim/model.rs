//! What one client did to a directory of its own, in order, and what that directory holds after any number of these steps.

use std::collections::BTreeMap;

/// A file's content and attributes; several names may have one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct File {
    pub content: Vec<u8>,
    pub mode: u32,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    Dir(u32),
    Link(Vec<u8>),
    /// By its number among the files of the tree.
    File(u32),
}

/// A directory as a client knows it. Names are paths below it.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    pub names: BTreeMap<String, Node>,
    pub files: BTreeMap<u32, File>,
    next: u32,
}

/// One step; all of them are legal in the state in which they were drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Create {
        path: String,
        mode: u32,
    },
    Write {
        path: String,
        off: usize,
        data: Vec<u8>,
    },
    Truncate {
        path: String,
        size: usize,
    },
    Punch {
        path: String,
        off: usize,
        len: usize,
    },
    Mkdir {
        path: String,
        mode: u32,
    },
    Symlink {
        path: String,
        target: Vec<u8>,
    },
    Link {
        from: String,
        to: String,
    },
    Unlink {
        path: String,
    },
    Rmdir {
        path: String,
    },
    Rename {
        from: String,
        to: String,
    },
    Exchange {
        a: String,
        b: String,
    },
    Chmod {
        path: String,
        mode: u32,
    },
    SetXattr {
        path: String,
        key: Vec<u8>,
        value: Vec<u8>,
    },
    RemoveXattr {
        path: String,
        key: Vec<u8>,
    },
    /// Changes nothing; what it covers is durable when it was answered.
    Fsync {
        path: String,
    },
}

impl Op {
    /// The names that it is about.
    pub fn paths(&self) -> Vec<&str> {
        match self {
            Op::Link { from: a, to: b } | Op::Rename { from: a, to: b } | Op::Exchange { a, b } => vec![a, b],
            Op::Create { path, .. }
            | Op::Write { path, .. }
            | Op::Truncate { path, .. }
            | Op::Punch { path, .. }
            | Op::Mkdir { path, .. }
            | Op::Symlink { path, .. }
            | Op::Unlink { path }
            | Op::Rmdir { path }
            | Op::Chmod { path, .. }
            | Op::SetXattr { path, .. }
            | Op::RemoveXattr { path, .. }
            | Op::Fsync { path } => vec![path],
        }
    }

    /// True when it changes something.
    pub fn changes(&self) -> bool {
        !matches!(self, Op::Fsync { .. })
    }
}

/// A name with all that can be seen of it, for comparing. A file with several names has the first of them as `same_as`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Dir { mode: u32 },
    Link { target: Vec<u8> },
    File { same_as: String, content: Vec<u8>, mode: u32, xattrs: BTreeMap<Vec<u8>, Vec<u8>> },
}

/// A directory for comparing.
pub type View = BTreeMap<String, Seen>;

/// Whether `path` is `top` or lies below it.
pub fn within(path: &str, top: &str) -> bool {
    path == top || path.strip_prefix(top).is_some_and(|r| r.starts_with('/'))
}

impl Tree {
    /// The file behind a name.
    pub fn file(&self, path: &str) -> Option<&File> {
        match self.names.get(path)? {
            Node::File(n) => self.files.get(n),
            _ => None,
        }
    }

    fn file_mut(&mut self, path: &str) -> &mut File {
        let n = match self.names.get(path) {
            Some(Node::File(n)) => *n,
            other => panic!("{path} is {other:?}"),
        };
        self.files.get_mut(&n).expect("a file of the tree")
    }

    fn forget(&mut self, node: Option<Node>) {
        if let Some(Node::File(n)) = node
            && !self.names.values().any(|x| *x == Node::File(n))
        {
            self.files.remove(&n);
        }
    }

    fn take(&mut self, top: &str) -> Vec<(String, Node)> {
        let names: Vec<String> = self.names.keys().filter(|k| within(k, top)).cloned().collect();
        names.into_iter().map(|k| (k[top.len()..].to_owned(), self.names.remove(&k).expect("a name"))).collect()
    }

    fn put(&mut self, top: &str, all: Vec<(String, Node)>) {
        self.names.extend(all.into_iter().map(|(rest, n)| (format!("{top}{rest}"), n)));
    }

    /// Does a step.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Create { path, mode } => {
                let n = self.next;
                self.next += 1;
                self.files.insert(n, File { mode: *mode, ..File::default() });
                self.names.insert(path.clone(), Node::File(n));
            }
            Op::Write { path, off, data } => {
                let c = &mut self.file_mut(path).content;
                c.resize(c.len().max(off + data.len()), 0);
                c[*off..off + data.len()].copy_from_slice(data);
            }
            Op::Truncate { path, size } => self.file_mut(path).content.resize(*size, 0),
            Op::Punch { path, off, len } => {
                let c = &mut self.file_mut(path).content;
                let to = (off + len).min(c.len());
                c[(*off).min(to)..to].fill(0);
            }
            Op::Mkdir { path, mode } => drop(self.names.insert(path.clone(), Node::Dir(*mode))),
            Op::Symlink { path, target } => drop(self.names.insert(path.clone(), Node::Link(target.clone()))),
            Op::Link { from, to } => {
                let n = self.names[from].clone();
                self.names.insert(to.clone(), n);
            }
            Op::Unlink { path } | Op::Rmdir { path } => {
                let gone = self.names.remove(path);
                self.forget(gone);
            }
            Op::Rename { from, to } => {
                let moved = self.take(from);
                let over = self.names.remove(to);
                self.put(to, moved);
                self.forget(over);
            }
            Op::Exchange { a, b } => {
                let (x, y) = (self.take(a), self.take(b));
                self.put(b, x);
                self.put(a, y);
            }
            Op::Chmod { path, mode } => match self.names.get_mut(path) {
                Some(Node::Dir(m)) => *m = *mode,
                _ => self.file_mut(path).mode = *mode,
            },
            Op::SetXattr { path, key, value } => {
                self.file_mut(path).xattrs.insert(key.clone(), value.clone());
            }
            Op::RemoveXattr { path, key } => drop(self.file_mut(path).xattrs.remove(key)),
            Op::Fsync { .. } => {}
        }
    }

    /// For comparing.
    pub fn view(&self) -> View {
        let mut first: BTreeMap<u32, String> = BTreeMap::new();
        let mut out = View::new();
        for (path, n) in &self.names {
            let seen = match n {
                Node::Dir(mode) => Seen::Dir { mode: *mode },
                Node::Link(target) => Seen::Link { target: target.clone() },
                Node::File(n) => {
                    let f = &self.files[n];
                    let same_as = first.entry(*n).or_insert_with(|| path.clone()).clone();
                    Seen::File { same_as, content: f.content.clone(), mode: f.mode, xattrs: f.xattrs.clone() }
                }
            };
            out.insert(path.clone(), seen);
        }
        out
    }

    /// Whether this is its [`Tree::view`].
    fn looks(&self, view: &View) -> bool {
        self.apart(view, 1) == 0
    }

    /// In how many names its [`Tree::view`] is another one; no more than `max` are counted.
    fn apart(&self, view: &View, max: usize) -> usize {
        let mut first: BTreeMap<u32, &str> = BTreeMap::new();
        let (mut apart, mut known) = (0, 0);
        for (path, n) in &self.names {
            let seen = view.get(path);
            known += usize::from(seen.is_some());
            let same = match (n, seen) {
                (Node::Dir(m), Some(Seen::Dir { mode })) => m == mode,
                (Node::Link(t), Some(Seen::Link { target })) => t == target,
                (Node::File(n), seen) => {
                    let name = *first.entry(*n).or_insert(path);
                    let f = &self.files[n];
                    matches!(seen, Some(Seen::File { same_as, content, mode, xattrs })
                        if same_as == name && f.mode == *mode && f.content == *content && f.xattrs == *xattrs)
                }
                _ => false,
            };
            apart += usize::from(!same);
            if apart >= max {
                return max;
            }
        }
        (apart + view.len() - known).min(max)
    }

    /// The tree that looks like this.
    pub fn of(view: &View) -> Tree {
        let mut t = Tree::default();
        let mut numbers: BTreeMap<&str, u32> = BTreeMap::new();
        for (path, s) in view {
            let node = match s {
                Seen::Dir { mode } => Node::Dir(*mode),
                Seen::Link { target } => Node::Link(target.clone()),
                Seen::File { same_as, content, mode, xattrs } => {
                    let n = *numbers.entry(same_as).or_insert_with(|| {
                        t.next += 1;
                        t.next - 1
                    });
                    let f = File { content: content.clone(), mode: *mode, xattrs: xattrs.clone() };
                    t.files.insert(n, f);
                    Node::File(n)
                }
            };
            t.names.insert(path.clone(), node);
        }
        t
    }
}

/// Differences that are told.
const DIFFERENCES_MAX: usize = 12;

/// The first differences of two directories, in words.
pub fn differences(want: &View, have: &View) -> Vec<String> {
    let mut out = Vec::new();
    for (k, w) in want {
        match have.get(k) {
            None => out.push(format!("{k} is missing: {}", short(w))),
            Some(h) if h != w => out.push(format!("{k} is {}, not {}", short(h), short(w))),
            Some(_) => {}
        }
    }
    out.extend(
        have.iter().filter(|(k, _)| !want.contains_key(*k)).map(|(k, h)| format!("{k} is too much: {}", short(h))),
    );
    out.truncate(DIFFERENCES_MAX);
    out
}

fn short(s: &Seen) -> String {
    match s {
        Seen::Dir { mode } => format!("dir {mode:o}"),
        Seen::Link { target } => format!("link to {}", String::from_utf8_lossy(target)),
        Seen::File { same_as, content, mode, xattrs } => {
            let sum = content
                .iter()
                .enumerate()
                .fold(0u32, |a, (i, b)| a.wrapping_mul(31).wrapping_add(*b as u32 ^ i as u32));
            format!("file {same_as} {} bytes #{sum:08x} {mode:o} {} xattrs", content.len(), xattrs.len())
        }
    }
}

/// A step that was tried, and what came of it.
#[derive(Clone, Debug)]
pub struct Step {
    pub op: Op,
    /// Simulated time, nanoseconds: when it was begun; when it was answered, if it was with success.
    pub begun: u64,
    pub answered: Option<u64>,
    /// It was answered while the sync pair was in PAIR.
    pub protected: bool,
}

/// What was done to a directory through one mount after another, and what must be left of it.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// As it was when the present client took it over.
    pub base: Tree,
    pub steps: Vec<Step>,
    /// After every step, the last one included.
    pub now: Tree,
    /// Files whose content and name were fsynced and not touched since; true: in PAIR.
    pub synced: BTreeMap<String, (File, bool)>,
}

/// What may have become of what was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// All of it is there.
    All,
    /// What was answered outside of PAIR may be gone from some point of the order on.
    Protected,
    /// Only what was fsynced must be there.
    Synced,
    /// Only what was fsynced in PAIR must be there.
    SyncedInPair,
    /// Any point of the order (an asynchronous site).
    Any,
}

impl History {
    /// Begins anew with what is there.
    pub fn adopt(&mut self, view: &View) {
        *self = History { base: Tree::of(view), now: Tree::of(view), ..History::default() };
    }

    /// Goes on after so many steps; what was tried after them did not happen.
    pub fn go_on(&mut self, steps: usize) {
        self.steps.truncate(steps);
        self.now = self.after(steps);
    }

    /// A step is tried.
    pub fn begin(&mut self, op: Op, now: u64) {
        if op.changes() {
            let touched: Vec<String> = op.paths().iter().map(|p| (*p).to_owned()).collect();
            self.synced.retain(|k, _| !touched.iter().any(|t| within(k, t)));
            // Other names of the same file change with it.
            let same: Vec<Node> = touched.iter().filter_map(|t| self.now.names.get(t).cloned()).collect();
            let names = &self.now.names;
            self.synced.retain(|k, _| names.get(k).is_none_or(|n| !matches!(n, Node::File(_)) || !same.contains(n)));
        }
        self.steps.push(Step { op, begun: now, answered: None, protected: false });
    }

    /// It was answered.
    pub fn answered(&mut self, now: u64, protected: bool) {
        let s = self.steps.last_mut().expect("a step under way");
        (s.answered, s.protected) = (Some(now), protected);
        self.now.apply(&s.op);
        if let Op::Fsync { path } = &s.op
            && let Some(f) = self.now.file(path)
        {
            self.synced.insert(path.clone(), (f.clone(), protected));
        }
    }

    /// After how many steps the directory looked like this, the latest such number. A write that was under way may be there in
    /// part. An error says what differs from the last state.
    pub fn point(&self, view: &View, keep: Keep) -> Result<usize, String> {
        let least = match keep {
            Keep::All => self.steps.iter().rposition(|s| s.answered.is_some()).map_or(0, |n| n + 1),
            Keep::Protected | Keep::Synced | Keep::SyncedInPair => {
                self.steps.iter().rposition(|s| s.protected).map_or(0, |n| n + 1)
            }
            Keep::Any => 0,
        };
        let mut tree = self.base.clone();
        let mut found = (least == 0 && tree.looks(view)).then_some(0);
        for (n, s) in (1..).zip(&self.steps) {
            tree.apply(&s.op);
            if n >= least && tree.looks(view) {
                found = Some(n);
            }
        }
        found.ok_or_else(|| self.nowhere(view, least))
    }

    /// Why a directory that looks like this is as after none of the last steps, from `least` on.
    fn nowhere(&self, view: &View, least: usize) -> String {
        let mut tree = self.base.clone();
        let mut found = tree.looks(view).then_some(0);
        let mut best: Option<(usize, usize)> = None;
        for (n, s) in (1..).zip(&self.steps) {
            tree.apply(&s.op);
            match tree.apart(view, DIFFERENCES_MAX) {
                0 => found = Some(n),
                k if best.is_none_or(|(least, _)| k <= least) => best = Some((k, n)),
                _ => {}
            }
        }
        match found {
            Some(n) => format!(
                "it is as after step {n}, but {least} of {} must be there: step {:?} is lost",
                self.steps.len(),
                self.steps[n]
            ),
            None => {
                let best = best.map(|(_, n)| differences(&self.after(n).view(), view));
                format!("it is at no point of {} steps; nearest: {best:?}", self.steps.len())
            }
        }
    }

    /// The least number of steps after which it looked as after so many.
    pub fn earliest(&self, point: usize) -> usize {
        let then = self.after(point).view();
        let mut tree = self.base.clone();
        for (n, s) in self.steps.iter().take(point).enumerate() {
            if tree.looks(&then) {
                return n;
            }
            tree.apply(&s.op);
        }
        point
    }

    /// The tree after so many steps.
    fn after(&self, steps: usize) -> Tree {
        let mut t = self.base.clone();
        self.steps.iter().take(steps).for_each(|s| t.apply(&s.op));
        t
    }

    /// What was fsynced and is not there as it was.
    pub fn unsynced(&self, view: &View, in_pair: bool) -> Vec<String> {
        let good = |k: &str, f: &File| matches!(view.get(k), Some(Seen::File { content, mode, .. }) if *content == f.content && *mode == f.mode);
        self.synced
            .iter()
            .filter(|(k, (f, pair))| (*pair || !in_pair) && !good(k, f))
            .map(|(k, _)| format!("{k} was fsynced and is {:?}", view.get(k).map(short)))
            .collect()
    }
}
