//! What orders operations: names, objects, the order, the wait for the sync site.

use super::*;
use crate::base::planted::Bug;
use crate::base::sync::explore::{Course, Timeouts};
use crate::format::op::RENAME_EXCHANGE;

fn node(v: &Volume, parent: u64, name: &str) -> Option<u64> {
    let n = v.lookup(parent, name.as_bytes()).unwrap()?;
    v.forget(n.node, 1);
    Some(n.node)
}

/// Two directories; renames go both ways, over each other, while both files are written.
fn both_ways(dir: &Path) {
    let bed = Bed::new(dir, Fence::Never);
    let peer = bed.peer(acknowledge);
    let (a, b) = (bed.dir("a"), bed.dir("b"));
    let (f, g) = (bed.file(a, "f"), bed.file(b, "g"));
    let there = bed.spawn(move |v| {
        v.rename(a, b"f", b, b"f", 0).unwrap();
        v.rename(b, b"f", a, b"h", 0).unwrap();
    });
    let back = bed.spawn(move |v| {
        v.rename(b, b"g", a, b"g", 0).unwrap();
        v.rename(a, b"g", b, b"h", 0).unwrap();
    });
    let writers = [b"11111111", b"22222222"].map(|data| {
        bed.spawn(move |v| {
            write(v, f, 0, data).unwrap();
            write(v, g, 4, data).unwrap();
        })
    });
    there.join().unwrap();
    back.join().unwrap();
    writers.into_iter().for_each(|w| w.join().unwrap());
    let v = &bed.volume;
    assert_eq!((node(v, a, "h"), node(v, b, "h"), v.known()), (Some(f), Some(g), 5));
    bed.equal(peer);
}

/// Operations on the same names, each of which another one may have overtaken. Not making one: until that is answered the
/// kernel lets nobody else into the directory.
fn same_names(dir: &Path) {
    let bed = Bed::new(dir, Fence::Never);
    let peer = bed.peer(acknowledge);
    let (a, b) = (bed.dir("a"), bed.dir("b"));
    let (f, g) = (bed.file(a, "f"), bed.file(b, "f"));
    let ops = [
        bed.spawn(move |v| v.rename(a, b"f", b, b"f", 0).is_ok()),
        bed.spawn(move |v| v.rename(b, b"f", a, b"f", 0).is_ok()),
        bed.spawn(move |v| v.rename(a, b"f", b, b"f", RENAME_EXCHANGE).is_ok()),
        bed.spawn(move |v| v.unlink(b, b"f").is_ok()),
        bed.spawn(move |v| v.link(f, b, b"n").is_ok()),
        bed.spawn(move |v| write(v, g, 0, b"1234").is_ok() && write(v, f, 2, b"5678").is_ok()),
        bed.spawn(move |v| v.unlink(a, b"f").is_ok()),
    ];
    assert!(ops.map(|o| o.join().unwrap()).contains(&true));
    // What the kernel knows is where it is believed to be.
    for (parent, name) in [(a, "f"), (b, "f"), (b, "n")] {
        if let Some(n) = node(&bed.volume, parent, name) {
            write(&bed.volume, n, 6, b"end").unwrap();
        }
    }
    bed.equal(peer);
}

/// Directories are moved into each other; only one of the two may.
fn crossed(dir: &Path) {
    let bed = Bed::new(dir, Fence::Never);
    let peer = bed.peer(acknowledge);
    let (a, b) = (bed.dir("a"), bed.dir("b"));
    let f = bed.file(a, "f");
    let moves = [
        bed.spawn(move |v| v.rename(ROOT, b"a", b, b"a", 0).is_ok()),
        bed.spawn(move |v| v.rename(ROOT, b"b", a, b"b", 0).is_ok()),
    ];
    let writer = bed.spawn(move |v| write(v, f, 0, b"1234").unwrap());
    assert_eq!(moves.map(|m| m.join().unwrap()).iter().filter(|ok| **ok).count(), 1);
    writer.join().unwrap();
    assert_eq!(node(&bed.volume, a, "f"), Some(f));
    bed.equal(peer);
}

const BOTH_WAYS: Course = Course {
    name: "volume::schedules::names::g5_renames_both_ways_under_writes_end_and_the_sites_agree",
    schedules: 1000,
    timeouts: Timeouts::Never,
    run: both_ways,
};

/// G5, G8: no order of locks is a deadlock, no answer waits for ever.
#[test]
fn g5_renames_both_ways_under_writes_end_and_the_sites_agree() {
    BOTH_WAYS.holds();
}

/// D2.
#[test]
fn d2_a_lock_that_is_released_too_early_is_found() {
    BOTH_WAYS.finds(Bug::UnlockTooEarly, 1000);
}

/// D2.
#[test]
fn d2_objects_that_follow_too_late_are_found() {
    BOTH_WAYS.finds(Bug::FollowTooLate, 1000);
}

/// D2.
#[test]
fn d2_an_answer_that_is_woken_too_early_is_found() {
    BOTH_WAYS.finds(Bug::WakeTooEarly, 1000);
}

/// G5.
#[test]
fn g5_operations_on_the_same_names_never_overlap() {
    let name = "volume::schedules::names::g5_operations_on_the_same_names_never_overlap";
    Course { name, schedules: 1000, timeouts: Timeouts::Never, run: same_names }.holds();
}

/// G5.
#[test]
fn g5_directories_moved_into_each_other() {
    let name = "volume::schedules::names::g5_directories_moved_into_each_other";
    Course { name, schedules: 1000, timeouts: Timeouts::Drawn, run: crossed }.holds();
}
