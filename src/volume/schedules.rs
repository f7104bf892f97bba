//! A volume over its group under many schedules: what orders operations, the fence and the journal, between any two locks.
//! The sync site is a second region to which the entries are applied in their order.

mod fence;
mod journal;
mod names;

use super::group::{Fence, Group, PairKind};
use super::queue::Fetch;
use super::{Caller, Made, Volume, WriteHow};
use crate::base::sync::atomic::{AtomicBool, Ordering};
use crate::base::sync::thread::{self, JoinHandle};
use crate::base::{Result, Seq, VolId, limits};
use crate::format::frame;
use crate::format::op::{Entry, NodeKind, Op};
use crate::store::doubt::DoubtFile;
use crate::store::region::Region;
use crate::store::replica::{Place, Replica};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const ALL: Seq = Seq(u64::MAX);
pub(crate) const ROOT: u64 = super::objects::ROOT;

pub(crate) fn place(dir: &Path) -> Place {
    Place {
        group: "g".into(),
        volumes: vec![("v".into(), dir.join("region"))],
        journal_bytes: 1 << 20,
        log_bytes: 64 << 20,
    }
}

/// A group that leads, with one sync pair, and a volume over it.
struct Bed {
    group: Arc<Group>,
    volume: Arc<Volume>,
    dir: PathBuf,
    over: Arc<AtomicBool>,
}

/// The other end of the pair.
struct Peer {
    thread: JoinHandle<Seq>,
    tree: PathBuf,
}

impl Bed {
    fn new(dir: &Path, fence: Fence) -> Bed {
        let place = place(dir);
        Replica::create(&place).unwrap();
        let replica = Arc::new(Replica::open(&place).unwrap());
        let doubts = Arc::new(DoubtFile::open(&dir.join("doubts")).unwrap());
        let group = Group::new(replica, (fence, doubts), false, &[PairKind::Sync], 1 << 20, 0).unwrap();
        let group = Arc::new(group);
        group.enforce(0);
        let volume = Volume::new(group.clone(), VolId(0)).unwrap();
        Bed { group, volume, dir: dir.to_owned(), over: Arc::new(AtomicBool::new(false)) }
    }

    /// Starts the sync site, which has nothing yet. It acknowledges each batch, as `how` says.
    fn peer(&self, how: fn(&Group, Seq)) -> Peer {
        let at = self.dir.join("peer");
        Region::create(&at, "g", "v", VolId(0)).unwrap();
        let region = Region::open(&at, "g", "v", VolId(0)).unwrap();
        let (group, over) = (self.group.clone(), self.over.clone());
        let run = move || {
            let mut cursor = Seq(0);
            loop {
                // In this order: what was pushed before the end is seen.
                let last = over.load(Ordering::SeqCst);
                match group.queue.fetch(cursor, ALL, limits::BATCH_BYTES, 2) {
                    Fetch::Items(items) => {
                        for i in items {
                            let head = frame::check(&i.frame).unwrap();
                            let mut e = Entry::parse(&i.frame, &head).unwrap();
                            assert_eq!(e.seq, cursor.next());
                            cursor = e.seq;
                            if e.op.names() != [None, None] || !frame::data_part(&i.frame, &head).is_empty() {
                                region.apply_direct(&mut e.op, frame::data_part(&i.frame, &head)).unwrap();
                            }
                        }
                        how(&group, cursor);
                    }
                    Fetch::Nothing if last => return cursor,
                    Fetch::Nothing => group.queue.wait(cursor, Duration::from_secs(1)),
                    Fetch::Gone => panic!("entry {} was given up", cursor.0 + 1),
                }
            }
        };
        Peer { thread: thread::spawn(run), tree: at.join("tree") }
    }

    /// All who change anything have ended: the sync site has everything, and is equal.
    fn equal(&self, peer: Peer) {
        let head = self.group.head();
        self.over.store(true, Ordering::SeqCst);
        // Nobody is woken by the word alone.
        self.group.announce(Op::Heartbeat).unwrap();
        let had = peer.thread.join().unwrap();
        assert!(had >= head);
        assert_eq!(tree(&self.dir.join("region/tree")), tree(&peer.tree), "the sites differ");
    }

    fn dir(&self, name: &str) -> u64 {
        self.volume.make(ROOT, name.as_bytes(), Made::Dir, 0o755, &ME).unwrap().node
    }

    fn file(&self, parent: u64, name: &str) -> u64 {
        self.volume.make(parent, name.as_bytes(), Made::Node(NodeKind::File), 0o644, &ME).unwrap().node
    }

    fn spawn<T: Send + 'static>(&self, f: impl FnOnce(&Volume) -> T + Send + 'static) -> JoinHandle<T> {
        let v = self.volume.clone();
        thread::spawn(move || f(&v))
    }
}

pub(crate) const ME: Caller = Caller { uid: 0, gid: 0, pid: 0, umask: 0o022 };
pub(crate) const HOW: WriteHow = WriteHow { cached: false, timed: false, append: false, durable: false };

fn acknowledge(g: &Group, seq: Seq) {
    g.acknowledged(0, [seq; 4], None);
}

pub(crate) fn write(v: &Volume, node: u64, off: u64, data: &[u8]) -> Result<()> {
    let fh = v.open(node, libc::O_RDWR, &ME)?.fh;
    let r = v.write(fh, off, data, HOW, &ME);
    v.release(fh);
    r.map(drop)
}

/// Everything below a directory: path, and content of files.
pub(crate) fn tree(at: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    fn walk(at: &Path, root: &Path, out: &mut BTreeMap<PathBuf, Option<Vec<u8>>>) {
        for e in std::fs::read_dir(at).unwrap() {
            let path = e.unwrap().path();
            let is_dir = path.is_dir();
            let content = (!is_dir).then(|| std::fs::read(&path).unwrap());
            out.insert(path.strip_prefix(root).unwrap().to_owned(), content);
            if is_dir {
                walk(&path, root, out);
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(at, at, &mut out);
    out
}
