//! The fence: the sync pair is lost at any moment.

use super::*;
use crate::base::sync::explore::{Course, Timeouts};

/// The pair is lost while names and content change, and comes back.
fn lost_and_back(dir: &Path) {
    let bed = Bed::new(dir, Fence::Data);
    let peer = bed.peer(acknowledge);
    let (a, b) = (bed.dir("a"), bed.dir("b"));
    let f = bed.file(a, "f");
    write(&bed.volume, f, 0, b"........").unwrap();
    let renames = bed.spawn(move |v| v.rename(a, b"f", b, b"g", 0).is_ok());
    let writers = [(b"1111", 1), (b"2222", 3)].map(|(data, off)| bed.spawn(move |v| write(v, f, off, data).is_ok()));
    let group = bed.group.clone();
    let link = thread::spawn(move || {
        let refused = group.release(0, || false);
        assert!(!group.is_stopped() && group.is_fenced());
        assert!(group.wait_refusal());
        group.enforce(0);
        refused
    });
    let moved = renames.join().unwrap();
    let wrote = writers.map(|w| w.join().unwrap());
    let refused = link.join().unwrap();
    assert_eq!(refused.left, 0, "{refused:?}");
    // What was refused was never there; what was answered is.
    let at = if moved { "b/g" } else { "a/f" };
    let content = std::fs::read(dir.join("region/tree").join(at)).unwrap();
    let has = |data: &[u8]| content.iter().any(|c| data.contains(c));
    match wrote {
        [false, _] => assert!(!has(b"1"), "{content:?}"),
        [true, false] => assert_eq!(content, b".1111..."),
        [true, true] => {
            assert!(content == b".112222." || content == b".11112.." || content == b".111122.", "{content:?}")
        }
    }
    if !wrote[1] {
        assert!(!has(b"2"), "{content:?}");
    }
    bed.equal(peer);
}

/// MS-6: every call is answered, as it was. Who refuses looks again every 50 ms, so time-outs are part of it.
#[test]
fn ms6_a_fence_that_falls_at_any_moment_refuses_and_undoes_or_answers() {
    let name = "volume::schedules::fence::ms6_a_fence_that_falls_at_any_moment_refuses_and_undoes_or_answers";
    Course { name, schedules: 1000, timeouts: Timeouts::Drawn, run: lost_and_back }.holds();
}
