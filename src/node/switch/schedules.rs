//! The leg in use is left for another one under many schedules. The other leg is a real receiver; only the link between them
//! is made of two calls.

use super::*;
use crate::base::limits;
use crate::base::sync::atomic::{AtomicBool, Ordering};
use crate::base::sync::explore::{Course, Timeouts};
use crate::base::sync::thread::{self, JoinHandle};
use crate::format::op::NodeKind;
use crate::node::receiving::Receiving;
use crate::store::doubt::DoubtFile;
use crate::store::replica::Replica;
use crate::volume::group::{Fence, PairKind};
use crate::volume::queue::Fetch;
use crate::volume::schedules::{HOW, ME, ROOT, place, tree};
use crate::volume::{Made, Volume};
use std::path::Path;

fn replica(dir: &Path) -> Arc<Replica> {
    std::fs::create_dir(dir).unwrap();
    Replica::create(&place(dir)).unwrap();
    Arc::new(Replica::open(&place(dir)).unwrap())
}

fn lead(dir: &Path, replica: Arc<Replica>, pairs: &[PairKind]) -> Arc<Group> {
    let doubts = Arc::new(DoubtFile::open(&dir.join("doubts")).unwrap());
    let group = Group::new(replica, (Fence::Never, doubts), false, pairs, 1 << 20, 0).unwrap();
    (0..pairs.len()).for_each(|p| assert_eq!(group.enforce(p), group.head()));
    Arc::new(group)
}

/// A leg that receives, and who sends to it.
struct Other {
    receiving: Receiving,
    sender: JoinHandle<()>,
    over: Arc<AtomicBool>,
}

impl Other {
    fn new(dir: &Path, group: &Arc<Group>) -> Other {
        let receiving = Receiving::start(replica(dir)).unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let (g, r, end) = (group.clone(), receiving.receiver.clone(), over.clone());
        let sender = thread::spawn(move || {
            let (session, mut cursor) = (r.begin_session(), Seq(0));
            while !end.load(Ordering::SeqCst) {
                match g.queue.fetch(cursor, Seq(u64::MAX), limits::BATCH_BYTES, 2) {
                    Fetch::Items(items) => {
                        let batch: Vec<u8> = items.iter().flat_map(|i| i.frame.iter().copied()).collect();
                        cursor = r.accept(session, &batch).unwrap().received;
                        g.acknowledged(0, [cursor; 4], None);
                    }
                    Fetch::Nothing => g.queue.wait(cursor, Duration::from_secs(1)),
                    Fetch::Gone => panic!("entry {} was given up", cursor.0 + 1),
                }
            }
        });
        Other { receiving, sender, over }
    }

    /// As a node goes on with a leg, but for its role.
    fn take(self, dir: &Path, old: &Group) -> Arc<Group> {
        old.stop();
        self.over.store(true, Ordering::SeqCst);
        self.sender.join().unwrap();
        let replica = self.receiving.finish().map_err(|(e, _)| e).unwrap();
        assert_eq!(replica.order().live.last_seq(), old.progress(0).received);
        replica.end_receiving().unwrap();
        lead(dir, replica, &[])
    }
}

/// Content and names change while the leg in use is left by order.
fn left(dir: &Path) {
    let (one, two) = (dir.join("1"), dir.join("2"));
    let old = lead(dir, replica(&one), &[PairKind::Leg]);
    let other = sync::Mutex::new(Some(Other::new(&two, &old)));
    let at = dir.to_owned();
    let failover = move |old: &Arc<Group>, _: &Error| {
        let other = other.lock().take()?;
        // Nobody takes the place of the other leg, so this succeeds.
        assert!(come_to_rest(old, || true));
        Some(other.take(&at, old))
    };
    let switch = Arc::new(Switch::new(old.clone(), Box::new(failover)));
    let v = Volume::new(switch.clone(), VolId(0)).unwrap();
    let a = v.make(ROOT, b"a", Made::Dir, 0o755, &ME).unwrap().node;
    let (node, opened) = v.create(a, b"f", 0o644, libc::O_RDWR, &ME).unwrap();
    let spawn = |f: Box<dyn FnOnce(&Volume) + Send>| {
        let v = v.clone();
        thread::spawn(move || f(&v))
    };
    let fh = opened.fh;
    let write = move |v: &Volume, off: u64, data: &[u8]| v.again(|| v.write(fh, off, data, HOW, &ME)).unwrap();
    let work = [
        spawn(Box::new(move |v| {
            write(v, 0, b"1111");
            write(v, 8, b"3333");
        })),
        spawn(Box::new(move |v| {
            write(v, 4, b"2222");
        })),
        spawn(Box::new(move |v| {
            v.again(|| v.make(a, b"n", Made::Node(NodeKind::File), 0o644, &ME)).unwrap();
            v.again(|| v.rename(a, b"n", ROOT, b"m", 0)).unwrap();
        })),
    ];
    let leave = {
        let (switch, old) = (switch.clone(), old.clone());
        thread::spawn(move || {
            assert!(switch.leave(&Error::failed("by order")));
            old.head()
        })
    };
    let head = leave.join().unwrap();
    work.into_iter().for_each(|w| w.join().unwrap());
    // Everybody has left it.
    assert_eq!(old.head(), head, "the leg that was left still gets entries");
    assert_eq!(switch.generation(), 2);
    // What was answered is on the leg in use, and what it shows is what the old handle shows.
    let now = tree(&two.join("region/tree"));
    let mut content = [0; 12];
    assert_eq!(v.read(fh, 0, &mut content).unwrap(), 12);
    assert_eq!(&content, b"111122223333");
    assert_eq!(now[Path::new("a/f")].as_deref(), Some(&content[..]));
    assert!(now.contains_key(Path::new("m")) && !now.contains_key(Path::new("a/n")), "{now:?}");
    let found = v.lookup(a, b"f").unwrap().unwrap();
    assert_eq!(found.node, node.node);
    assert_eq!(v.known(), 4);
}

const LEFT: Course = Course {
    name: "node::switch::schedules::ms21_a_leg_is_left_by_all_and_nothing_answered_is_missing_on_the_other",
    schedules: 1000,
    timeouts: Timeouts::Drawn,
    run: left,
};

/// MS-21, G1.
#[test]
fn ms21_a_leg_is_left_by_all_and_nothing_answered_is_missing_on_the_other() {
    LEFT.holds();
}

/// D2.
#[test]
fn d2_a_change_that_is_committed_on_another_leg_is_found() {
    LEFT.finds(Bug::CommitElsewhere, 1000);
}

/// D2.
#[test]
fn d2_a_leg_that_is_left_while_it_accepts_is_found() {
    LEFT.finds(Bug::SwitchUnfrozen, 1000);
}
