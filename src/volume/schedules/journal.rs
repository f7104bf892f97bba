//! The journal while its interval is switched: by age or size, for a peer that was lost, and trimmed.

use super::*;
use crate::base::planted::Bug;
use crate::base::sync::explore::{Course, Timeouts};
use crate::format::op::Target;
use crate::pair::change::{Change, Rec};
use crate::store::replica::{self, Mark, Meta};
use crate::volume::order::Order;

/// A change of content that has its mark, and no place in the order yet.
type UnderWay = Arc<crate::base::sync::Mutex<Option<(Target, u64)>>>;

fn marks(recs: &[Rec], target: &Target, off: u64, after: Seq) -> bool {
    recs.iter().any(|r| match &r.change {
        Change::Data { at, from, to, .. } => {
            r.seq > after && Target::File(at.clone()) == *target && *from <= off && off < *to
        }
        _ => false,
    })
}

/// What a resync from any position would ask, with the order held: whatever has a place after it is there.
fn complete(group: &Group, m: &Meta, under_way: &UnderWay) {
    let head = m.live.last_seq();
    let mut entries = Vec::new();
    let mut cursor = Seq(0);
    while let Fetch::Items(items) = group.queue.fetch(cursor, ALL, limits::BATCH_BYTES, 100) {
        cursor = items.last().unwrap().seq;
        entries.extend(items.iter().map(|i| Entry::parse(&i.frame, &frame::check(&i.frame).unwrap()).unwrap()));
    }
    assert_eq!(cursor, head);
    let begins = m.journal.begins_after();
    for p in (begins.0..=head.0).map(Seq) {
        let recs = m.journal.since(p).unwrap();
        for e in entries.iter().filter(|e| e.seq > p) {
            let there = match &e.op {
                // By this mark or by one that spared it.
                Op::Write { at, off, .. } => marks(&recs, &Target::File(at.clone()), *off, Seq(0)),
                op if op.is_namespace() => recs.iter().any(|r| r.seq == e.seq && matches!(r.change, Change::Ns(_))),
                _ => true,
            };
            assert!(there, "since {} entry {} is not in the journal: {:?}", p.0, e.seq.0, e.op);
        }
    }
    // What kill -9 would leave: a mark after everything that is settled.
    if let Some((target, off)) = &*under_way.lock() {
        let settled = replica::before(m.live.settled());
        let recs = m.journal.since(settled.max(begins)).unwrap();
        assert!(marks(&recs, target, *off, Seq(0)), "the mark of what is under way is gone, settled {}", settled.0);
    }
}

fn switched(dir: &Path) {
    let bed = Bed::new(dir, Fence::Never);
    // Half of what is there is acknowledged: the others are what a resync asks for. What is not in the queue any more
    // cannot be looked for, so it stays.
    bed.group.queue.add_reader();
    let peer = bed.peer(|g, seq| g.acknowledged(0, [seq; 4], None));
    let under_way = UnderWay::default();
    let a = bed.dir("a");
    let (f, g) = (bed.file(a, "f"), bed.file(a, "g"));
    let names = bed.spawn(move |v| {
        v.rename(a, b"f", ROOT, b"f", 0).unwrap();
        v.rename(ROOT, b"f", a, b"h", 0).unwrap();
    });
    let writer = bed.spawn(move |v| {
        write(v, f, 0, b"1111").unwrap();
        write(v, g, 200_000, b"2222").unwrap();
        write(v, f, 0, b"3333").unwrap();
    });
    let long = {
        let (group, under_way, v) = (bed.group.clone(), under_way.clone(), bed.volume.clone());
        thread::spawn(move || {
            let target = || v.objects.get(g).unwrap().target();
            let mark = Mark::Data { from: 500_000, to: 500_004 };
            let t = target().unwrap();
            assert!(group.begin((VolId(0), &group.replica.regions[0]), &target, mark).unwrap());
            *under_way.lock() = Some((t, 500_000));
            thread::yield_now();
            *under_way.lock() = None;
            group.cancel();
        })
    };
    let switches = {
        let (group, under_way) = (bed.group.clone(), under_way.clone());
        thread::spawn(move || {
            for _ in 0..2 {
                group.rotate(&mut group.replica.order()).unwrap();
                group.replica.checkpoint().unwrap();
                group.trim();
                complete(&group, &group.replica.order(), &under_way);
            }
        })
    };
    let losses = {
        let (group, under_way) = (bed.group.clone(), under_way.clone());
        thread::spawn(move || {
            group.split_journal(0).unwrap();
            complete(&group, &group.replica.order(), &under_way);
            group.split_journal(0).unwrap();
            complete(&group, &group.replica.order(), &under_way);
        })
    };
    names.join().unwrap();
    writer.join().unwrap();
    long.join().unwrap();
    switches.join().unwrap();
    losses.join().unwrap();
    complete(&bed.group, &bed.group.replica.order(), &under_way);
    bed.equal(peer);
}

const SWITCHED: Course = Course {
    name: "volume::schedules::journal::g4_a_mark_made_while_the_interval_switches_is_found_from_every_position",
    schedules: 1000,
    timeouts: Timeouts::Never,
    run: switched,
};

/// G4.
#[test]
fn g4_a_mark_made_while_the_interval_switches_is_found_from_every_position() {
    SWITCHED.holds();
}

/// D2.
#[test]
fn d2_marks_spared_across_intervals_are_found() {
    SWITCHED.finds(Bug::SpareAcrossIntervals, 1000);
}

/// D2.
#[test]
fn d2_a_journal_trimmed_past_what_is_under_way_is_found() {
    SWITCHED.finds(Bug::TrimUnderWay, 1000);
}
