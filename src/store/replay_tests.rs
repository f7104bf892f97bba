//! Power cuts of a receiver, at random: whatever part of what was applied since the last checkpoint is on disk, the tree
//! comes to exactly the point at the end of the entry log (G1, G2).
//!
//! Played forward: entries are put into the log and armed, and then any of them in any combination, each whole or in part,
//! that a filesystem could have made durable takes effect on the tree. Inodes stay what they are that way.

use super::*;
use crate::base::{DirId, LinkId, Name, VolId, time::Time};
use crate::format::op::{Attr, NodeKind, RENAME_EXCHANGE};
use crate::pair::change::{Change, Rec};
use crate::store::before;
use crate::store::replica::{Place, Replica};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

const V: VolId = VolId(0);

/// What there is at a name: a number for the object, and the id of a directory.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Thing {
    tag: u64,
    dir: Option<DirId>,
    file: bool,
}

type Model = BTreeMap<Name, Thing>;

/// A frame of the log with the model before it.
struct Item {
    frame: Vec<u8>,
    op: Option<(Op, Vec<u8>)>,
    before: Model,
    /// A resync is under way after it.
    inside: bool,
}

/// Makes a history of what random numbers ask for.
struct Maker {
    model: Model,
    items: Vec<Item>,
    seq: u64,
    ids: u64,
    /// Operations left of a staged resync.
    staged: Option<u64>,
}

type Ask = (u8, u8, u8, u16);

impl Maker {
    fn time(&self) -> Time {
        Time { sec: 1_000_000 + self.items.len() as i64, nsec: 7 }
    }

    fn dirs(&self) -> Vec<DirId> {
        std::iter::once(DirId::ROOT).chain(self.model.values().filter_map(|t| t.dir)).collect()
    }

    fn name(&self, n: u16) -> Name {
        let dirs = self.dirs();
        Name::new(dirs[usize::from(n) % dirs.len()], format!("n{}", (n / 31) % 6))
    }

    fn some(&self, n: u16, want: &dyn Fn(&Thing) -> bool) -> Option<(Name, Thing)> {
        let all: Vec<_> = self.model.iter().filter(|(_, t)| want(t)).collect();
        let (at, t) = all.get(usize::from(n) % all.len().max(1))?;
        Some(((*at).clone(), **t))
    }

    fn below(&self, d: DirId, top: DirId) -> bool {
        let up = |d: &DirId| self.model.iter().find(|(_, t)| t.dir == Some(*d)).map(|(at, _)| at.dir);
        std::iter::successors(Some(d), up).any(|d| d == top)
    }

    fn push(&mut self, op: Op, data: Vec<u8>) {
        let seq = if self.staged.is_some() {
            Seq(0)
        } else {
            self.seq += 1;
            Seq(self.seq)
        };
        let frame = Entry { seq, vol: V, time: self.time(), op: op.clone() }.frame(&data).unwrap();
        let before = self.model.clone();
        self.items.push(Item { frame, op: Some((op.clone(), data)), before, inside: self.staged.is_some() });
        advance(&mut self.model, &op, self.items.len() as u64);
    }

    fn control(&mut self, kind: FrameKind, body: Vec<u8>) {
        let inside = kind == FrameKind::TxnBegin;
        self.items.push(Item { frame: frame::build(kind, &body, b""), op: None, before: self.model.clone(), inside });
    }

    fn ask(&mut self, (kind, a, b, n): Ask) {
        let pmtime = self.time();
        let attr = Attr { mode: 0o644, uid: 0, gid: 0, mtime: pmtime, ..Attr::default() };
        let m = u16::from(a) * 256 + u16::from(b);
        let free = |s: &Maker| Some(s.name(n)).filter(|at| !s.model.contains_key(at));
        let file = |t: &Thing| t.file;
        match kind % 16 {
            0 | 1 => {
                let Some(at) = free(self) else { return };
                let kind = if a < 220 { NodeKind::File } else { NodeKind::Symlink(format!("to{n}").into_bytes()) };
                self.push(Op::Create { at, kind, attr, pmtime }, vec![]);
            }
            2 => {
                let Some(at) = free(self).filter(|_| self.dirs().len() < 9) else { return };
                self.ids += 1;
                let attr = Attr { mode: 0o755, ..attr };
                self.push(Op::Mkdir { at, id: DirId(100 + self.ids), attr, pmtime }, vec![]);
            }
            3 => {
                let (Some(to), Some((from, t))) = (free(self), self.some(m, &file)) else { return };
                self.push(Op::Link { from, to, lid: LinkId(t.tag), pmtime }, vec![]);
            }
            4 | 5 => {
                let Some((at, _)) = self.some(n, &|t| t.dir.is_none()) else { return };
                self.push(Op::Unlink { at, pmtime }, vec![]);
            }
            6 => {
                let empty = |d: DirId| !self.model.keys().any(|at| at.dir == d);
                let Some((at, t)) = self.some(n, &|t| t.dir.is_some_and(empty)) else { return };
                self.push(Op::Rmdir { at, id: t.dir.unwrap(), pmtime }, vec![]);
            }
            7..=9 => {
                let Some((from, t)) = self.some(m, &|_| true) else { return };
                let to = self.name(n);
                let over = self.model.get(&to).copied();
                let swap = b % 4 == 0 && over.is_some();
                let bad = from == to
                    || t.dir.is_some_and(|d| self.below(to.dir, d))
                    || over.is_some_and(|o| o.tag == t.tag)
                    || (swap && over.and_then(|o| o.dir).is_some_and(|d| self.below(from.dir, d)));
                let fits = over.is_none_or(|o| {
                    swap || (o.dir.is_some() == t.dir.is_some()
                        && o.dir.is_none_or(|d| !self.model.keys().any(|at| at.dir == d)))
                });
                if bad || !fits {
                    return;
                }
                let flags = if swap { RENAME_EXCHANGE } else { 0 };
                self.push(Op::Rename { from, to, flags, from_pmtime: pmtime, to_pmtime: pmtime }, vec![]);
            }
            10..=12 => {
                let Some((at, _)) = self.some(n, &file) else { return };
                let data = vec![a | 1; usize::from(b) * 40 + 1];
                self.push(Op::Write { at, off: u64::from(n % 9000), mtime: Some(pmtime) }, data);
            }
            13 => {
                let Some((at, _)) = self.some(n, &file) else { return };
                self.push(Op::Truncate { at, size: u64::from(m % 12000), mtime: Some(pmtime) }, vec![]);
            }
            14 => {
                let Some((at, t)) = self.some(n, &|t| t.dir.is_some() || t.file) else { return };
                let at = t.dir.map_or(Target::File(at), Target::Dir);
                let mode = Some(0o700 + u32::from(b % 64));
                self.push(Op::SetAttr { at, mode, uid: None, gid: None, atime: None, mtime: None }, vec![]);
            }
            _ if self.staged.is_none() && a < 100 => {
                self.staged = Some(1 + u64::from(b % 8));
                let id = 1 + self.items.len() as u64;
                let begin = TxnBegin { id, from: Seq(self.seq), base: Seq(self.seq + 1), common: Seq(self.seq) };
                self.control(FrameKind::TxnBegin, codec::encode(&begin).unwrap());
                self.seq += 1;
                return;
            }
            _ => self.push(Op::Fsync, vec![]),
        }
        if let Some(left) = &mut self.staged {
            *left -= 1;
            if *left == 0 {
                self.commit();
            }
        }
    }

    fn commit(&mut self) {
        if self.staged.is_none() {
            return;
        }
        self.staged = None;
        let id = self.items.iter().rposition(|i| i.op.is_none() && i.inside).unwrap() as u64 + 1;
        let c = TxnCommit { id, to: Seq(self.seq), epochs: Vec::new() };
        self.control(FrameKind::TxnCommit, codec::encode(&c).unwrap());
    }
}

/// The model after an operation that is given this number.
fn advance(model: &mut Model, op: &Op, tag: u64) {
    match op {
        Op::Create { at, kind, .. } => {
            model.insert(at.clone(), Thing { tag, dir: None, file: *kind == NodeKind::File });
        }
        Op::Mkdir { at, id, .. } => {
            model.insert(at.clone(), Thing { tag, dir: Some(*id), file: false });
        }
        Op::Link { from, to, .. } => {
            let t = model[from];
            model.insert(to.clone(), t);
        }
        Op::Unlink { at, .. } | Op::Rmdir { at, .. } => drop(model.remove(at)),
        Op::Rename { from, to, flags, .. } => {
            let (a, b) = (model.remove(from).unwrap(), model.remove(to));
            model.insert(to.clone(), a);
            if let Some(b) = b.filter(|_| flags & RENAME_EXCHANGE != 0) {
                model.insert(from.clone(), b);
            }
        }
        _ => {}
    }
}

/// True when an operation can take effect where only some of those before it have: on the very objects it is about.
fn possible(op: &Op, truth: &Model, disk: &Model) -> bool {
    let same = |at: &Name| disk.get(at).is_some() && disk.get(at).map(|t| t.tag) == truth.get(at).map(|t| t.tag);
    // An object that keeps a name keeps its inode: its last one on disk does not go.
    let spared = |at: &Name| {
        let named = |m: &Model| m.values().filter(|t| m.get(at).is_some_and(|o| o.tag == t.tag)).count();
        named(disk) > 1 || named(truth) == 1
    };
    match op {
        Op::Create { at, .. } | Op::Mkdir { at, .. } => !disk.contains_key(at),
        Op::Link { from, to, .. } => same(from) && !disk.contains_key(to),
        Op::Rename { from, to, flags, .. } => {
            let free = !disk.contains_key(to) && flags & RENAME_EXCHANGE == 0;
            same(from) && (free || same(to) && (flags & RENAME_EXCHANGE != 0 || spared(to)))
        }
        Op::Unlink { at, .. } => same(at) && spared(at),
        Op::SetAttr { at: Target::Dir(_), .. } => true,
        _ => op.names().into_iter().flatten().all(same),
    }
}

fn place(dir: &Path) -> Place {
    Place {
        group: "g".into(),
        volumes: vec![("v".into(), dir.join("region"))],
        journal_bytes: 1 << 20,
        log_bytes: 64 << 20,
    }
}

fn open(dir: &Path) -> Receiver {
    Receiver::new(Arc::new(Replica::open(&place(dir)).unwrap())).unwrap()
}

fn make(dir: &Path) -> Receiver {
    Replica::create(&place(dir)).unwrap();
    let r = open(dir);
    r.end_copy(Seq(0), Seq(0), Vec::new(), 1).unwrap();
    r
}

fn at(r: &Receiver) -> u64 {
    r.replica.order().live.applied_lsn()
}

fn step_to(r: &Receiver, lsn: u64) {
    let mut buf = Vec::new();
    while at(r) < lsn {
        assert!(r.step(&mut buf, Duration::from_millis(1)) && r.fault().is_none(), "{:?}", r.fault());
    }
}

/// Everything that can be seen of a tree: names by object, kind, mode, time, content.
fn seen(root: &Path) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let mut groups: BTreeMap<u64, String> = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(d) = todo.pop() {
        let mut names: Vec<_> = std::fs::read_dir(&d).unwrap().map(|e| e.unwrap().path()).collect();
        names.sort();
        for p in names {
            let m = p.symlink_metadata().unwrap();
            let rel = p.strip_prefix(root).unwrap().display().to_string();
            let what = match (m.is_dir(), m.is_symlink()) {
                (true, _) => {
                    todo.push(p.clone());
                    "dir".to_owned()
                }
                (_, true) => format!("to {:?}", std::fs::read_link(&p).unwrap()),
                _ => {
                    let with = groups.entry(m.ino()).or_insert_with(|| rel.clone()).clone();
                    format!("{with} {} {:08x}", m.len(), crc32c::crc32c(&std::fs::read(&p).unwrap()))
                }
            };
            out.insert(rel, format!("{what} {:o} {}.{}", m.mode(), m.mtime(), m.mtime_nsec()));
        }
    }
    out
}

/// Directories and names of files with several links, by their ids.
type Table = BTreeSet<(u64, Name)>;

fn tables(r: &Receiver) -> (Table, Table) {
    let ids = r.replica.regions[0].ids.read();
    let dirs = ids.dirs().map(|(id, d)| (id.0, Name::new(d.parent, &*d.name))).collect();
    let links = ids.linked_names().map(|n| (ids.link_of(n).unwrap().0, n.clone())).collect();
    (dirs, links)
}

fn journal(r: &Receiver) -> Vec<Rec> {
    let m = r.replica.order();
    let mut all = m.journal.since(Seq(0)).unwrap();
    all.retain(|r| matches!(r.change, Change::Ns(_)));
    all
}

/// Lets any part of the entries from `pos` to `end` take effect.
fn take_effect(r: &Receiver, items: &[Item], pos: usize, rng: &mut dyn FnMut() -> u64) {
    let region = &r.replica.regions[0];
    let Some(first) = items.first() else { return };
    let mut disk = first.before.clone();
    let often = rng() % 5;
    for (i, item) in items.iter().enumerate() {
        let Some((op, data)) = &item.op else { continue };
        if rng() % 5 < often || !possible(op, &item.before, &disk) {
            continue;
        }
        let mut op = op.clone();
        match (&op, rng() % 4) {
            // The size, or a part of the content.
            (Op::Write { at, off, .. }, part @ 0..=1) => {
                let f = region.open_file(at, libc::O_RDWR).map(std::fs::File::from);
                let Ok(f) = f else { continue };
                let end = off + data.len() as u64;
                if part == 0 && f.metadata().unwrap().len() < end {
                    f.set_len(end).unwrap();
                } else {
                    f.write_all_at(&data[..data.len() / 2], *off).unwrap();
                }
            }
            _ => {
                if region.apply_direct(&mut op, data).is_err() {
                    continue;
                }
            }
        }
        // As the items are numbered, from 1.
        advance(&mut disk, &op, (pos + i) as u64 + 1);
    }
}

/// The power goes: another boot, and the table of ids and the log end where they may.
fn power_cut(dir: &Path, armed: u64, table: u64, rng: &mut dyn FnMut() -> u64) {
    let meta = dir.join("region/.kagami");
    let live = std::fs::OpenOptions::new().write(true).open(meta.join("live")).unwrap();
    live.write_all_at(&[0xb0; 16], 24).unwrap();
    let mut cut = |p: &Path, from: u64| {
        let f = std::fs::OpenOptions::new().write(true).open(p).unwrap();
        let len = f.metadata().unwrap().len();
        f.set_len(from.min(len) + rng() % (len - from.min(len) + 1)).unwrap();
    };
    cut(&meta.join("ids"), table);
    let Some(log) = std::fs::read_dir(meta.join("queue")).unwrap().map(|e| e.unwrap().path()).max() else { return };
    let start = u64::from_str_radix(log.file_stem().unwrap().to_str().unwrap(), 16).unwrap();
    cut(&log, 16 + armed - start);
}

fn case(asked: &[Ask], rounds: &[(u16, u16, u16, u64)]) {
    let mut maker = Maker { model: Model::new(), items: Vec::new(), seq: 0, ids: 0, staged: None };
    asked.iter().for_each(|a| maker.ask(*a));
    maker.commit();
    let items = maker.items;
    let mut ends = vec![0u64];
    items.iter().for_each(|i| ends.push(ends.last().unwrap() + i.frame.len() as u64));
    // A disk gives inode numbers again, and is slow where every entry is made durable.
    let memory = Path::new("/dev/shm");
    let on_disk = !memory.is_dir() || rounds.iter().all(|r| r.3 % 16 == 0);
    let d = tempfile::tempdir_in(if on_disk { Path::new("/var/tmp") } else { memory }).unwrap();
    let (a_dir, b_dir) = (d.path().join("a"), d.path().join("b"));
    std::fs::create_dir(&a_dir).unwrap();
    std::fs::create_dir(&b_dir).unwrap();
    let mut a = make(&a_dir);
    let accept = |r: &Receiver, from: u64, to: u64| {
        let all: Vec<u8> = (0..items.len())
            .filter(|i| ends[*i] >= from && ends[i + 1] <= to)
            .flat_map(|i| items[i].frame.clone())
            .collect();
        if !all.is_empty() {
            r.accept(r.begin_session(), &all).unwrap();
        }
    };
    let whole = *ends.last().unwrap();
    // What was found on disk is durable.
    let mut found = 0;
    accept(&a, 0, whole);
    for (steps, more, armed, seed) in rounds {
        let mut x = *seed | 1;
        let mut rng = move || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x >> 3
        };
        let end = a.replica.log.end();
        let pick = |from: u64, n: u16| {
            let fit: Vec<u64> = ends.iter().copied().filter(|e| *e >= from && *e <= end).collect();
            fit[usize::from(n) % fit.len()]
        };
        step_to(&a, pick(at(&a), steps % 40));
        a.replica.checkpoint().unwrap();
        let table = a.replica.regions[0].ids.read().bytes();
        step_to(&a, pick(at(&a), if more % 3 == 0 { more % 20 } else { 0 }));
        let (from, to) = (at(&a), pick(at(&a), *armed));
        before::arm(&a.replica.names, &a.replica.log, &a.replica.regions, from, to).unwrap();
        let index = |lsn: u64| ends.iter().position(|e| *e == lsn).unwrap();
        take_effect(&a, &items[index(from)..index(to)], index(from), &mut rng);
        if rng() % 2 == 0 {
            // The page is newer than the tree.
            a.replica.order().live.set_applied(to, Seq(99_999));
            a.replica.order().live.set_last_seq(Seq(99_999));
        }
        drop(a);
        // Of a resync nothing is applied before its commit is durable, too.
        let durable = (index(to)..).find(|i| *i == 0 || !items[i - 1].inside).unwrap();
        power_cut(&a_dir, ends[durable].max(found), table, &mut rng);
        a = open(&a_dir);
        assert!(!a.replica.order().state.torn, "{:?}", a.replica.order().state);
        // Exactly the point at the end of the log (a resync without its commit is none).
        let end = a.replica.log.end();
        found = end;
        if rng() % 2 == 0 {
            step_to(&a, end);
            let b = make(&b_dir);
            accept(&b, 0, end);
            step_to(&b, end);
            assert_eq!(seen(&a_dir.join("region/tree")), seen(&b_dir.join("region/tree")));
            assert_eq!((a.received(), a.applied()), (b.received(), b.applied()));
            assert_eq!(tables(&a), tables(&b));
            assert_eq!(journal(&a), journal(&b));
            assert!(!a_dir.join("region/IN-TRANSITION").exists());
            assert!(Replica::consistent(&a.replica.order()));
            drop(b);
            std::fs::remove_dir_all(&b_dir).unwrap();
            std::fs::create_dir(&b_dir).unwrap();
        }
        accept(&a, end, whole);
    }
    step_to(&a, whole);
    let b = make(&b_dir);
    accept(&b, 0, whole);
    step_to(&b, whole);
    assert_eq!(seen(&a_dir.join("region/tree")), seen(&b_dir.join("region/tree")));
    assert_eq!(tables(&a), tables(&b));
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("KAGAMI_CASES").ok().and_then(|c| c.parse().ok()).unwrap_or(60),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]
    /// G1, G2: after any power cut the log is brought about as a whole, whatever of it was on disk.
    #[test]
    fn whatever_a_power_cut_leaves_the_log_is_brought_about_to_its_end(
        asked in prop::collection::vec(any::<Ask>(), 5..120),
        rounds in prop::collection::vec(any::<(u16, u16, u16, u64)>(), 1..4),
    ) {
        case(&asked, &rounds);
    }
}

/// The file of this kind that is appended to now.
fn appended(r: &Receiver, meta: &Path, kind: &str) -> std::path::PathBuf {
    match kind {
        "ids" => meta.join(kind),
        "before" => meta.join(format!("before{}", r.replica.order().activity.replay().unwrap().names % 2)),
        _ => std::fs::read_dir(meta.join(kind)).unwrap().map(|e| e.unwrap().path()).max().unwrap(),
    }
}

/// Bytes of a file that are in use; what follows is room for more.
fn used(r: &Receiver, path: &Path) -> u64 {
    if path.parent().unwrap().ends_with("queue") {
        let start = u64::from_str_radix(path.file_stem().unwrap().to_str().unwrap(), 16).unwrap();
        return 16 + r.replica.log.end() - start;
    }
    let bytes = std::fs::read(path).unwrap();
    let mut records = crate::format::file::Records::new(bytes.get(crate::format::file::HEADER_BYTES..).unwrap_or(&[]));
    records.by_ref().for_each(drop);
    (crate::format::file::HEADER_BYTES + records.good) as u64
}

/// D1: the power goes while the last record of a file that is appended to is written, and it ends at any of its bytes. What the
/// tree has by then is what may be on disk with it: of an entry that is not whole nothing, otherwise all.
#[test]
fn d1_the_last_record_is_cut_at_every_byte() {
    let mut maker = Maker { model: Model::new(), items: Vec::new(), seq: 0, ids: 0, staged: None };
    let mut x = 88172645463325252u64;
    while maker.items.len() < 6_000 {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        // Without a resync: it has its own records, and counts as a whole.
        let kind = (x % 15) as u8;
        maker.ask((kind, (x >> 8) as u8, (x >> 16) as u8, (x >> 24) as u16));
    }
    let items = maker.items;
    let d = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let (a_dir, b_dir) = (d.path().join("a"), d.path().join("b"));
    [&a_dir, &b_dir].iter().for_each(|d| std::fs::create_dir(d).unwrap());
    let (mut a, b) = (make(&a_dir), make(&b_dir));
    let meta = a_dir.join("region/.kagami");
    let accept = |r: &Receiver, some: &[Item]| {
        let all: Vec<u8> = some.iter().flat_map(|i| i.frame.clone()).collect();
        r.accept(r.begin_session(), &all).unwrap();
    };
    // Of the items so many are in the log of each.
    let (mut of_a, mut of_b) = (0, 0);
    let mut ends = vec![0u64];
    items.iter().for_each(|i| ends.push(ends.last().unwrap() + i.frame.len() as u64));
    for file in ["ids", "journal", "before", "queue"] {
        let mut bytes = 0;
        for cut in 1.. {
            step_to(&a, a.replica.log.end());
            a.replica.checkpoint().unwrap();
            let path = appended(&a, &meta, file);
            let before = used(&a, &path);
            // Until something is appended to it.
            let first = of_a;
            while of_a < items.len().min(first + 40) {
                accept(&a, &items[of_a..of_a + 1]);
                of_a += 1;
                let (from, to) = (at(&a), a.replica.log.end());
                match file {
                    "ids" | "journal" => step_to(&a, to),
                    "before" => before::arm(&a.replica.names, &a.replica.log, &a.replica.regions, from, to).unwrap(),
                    _ => {}
                }
                if used(&a, &path) > before {
                    break;
                }
            }
            let grown = used(&a, &path);
            drop(a);
            let live = std::fs::OpenOptions::new().write(true).open(meta.join("live")).unwrap();
            live.write_all_at(&[0xb0; 16], 24).unwrap();
            let f = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            let left = grown.saturating_sub(cut).max(before);
            f.set_len(left).unwrap();
            bytes = bytes.max(grown - left);
            a = open(&a_dir);
            assert!(!a.replica.order().state.torn, "{file} less {cut}: {:?}", a.replica.order().state);
            let end = a.replica.log.end();
            of_a = ends.iter().position(|e| *e == end).unwrap_or_else(|| panic!("{file} less {cut}: part of an entry"));
            step_to(&a, end);
            accept(&b, &items[of_b..of_a]);
            of_b = of_a;
            step_to(&b, end);
            let what = format!("{file} less {cut}, entry {of_a}");
            assert_eq!(seen(&a_dir.join("region/tree")), seen(&b_dir.join("region/tree")), "{what}");
            assert_eq!((a.received(), a.applied(), tables(&a)), (b.received(), b.applied(), tables(&b)), "{what}");
            assert!(journal(&a) == journal(&b), "{what}: the journals differ");
            // Longer than any record by now.
            if cut > bytes + 8 && cut > 40 {
                break;
            }
        }
        println!("{file}: up to {bytes} bytes cut off");
        assert!(bytes > 20, "{file}");
    }
}
