//! Symlinks put into the region's tree by a racing local user, and entries that cannot be applied: nothing outside is
//! touched, the replica says that it differs, and a copy brings it back.

use super::bed::{Bed, SOON, attr, create, entry, file, time};
use super::support::proc;
use kagami::base::{DirId, LinkId, Name};
use kagami::format::op::{Op, Target};
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Operations, each with its data.
type Ops<'a> = Vec<(Op, &'a [u8])>;

/// Entries that go on from the present position, sent in a session; then what became of it is waited for.
fn send(bed: &mut Bed, ops: Ops<'_>) -> String {
    let mut p = bed.session();
    for (op, data) in ops {
        bed.head = bed.head.next();
        if p.w.send(&entry(bed.head.0, op, data)).is_err() {
            break;
        }
    }
    // Until it is applied, or the node says why not.
    let head = bed.head;
    let end = p.await_msg(|m| match m {
        kagami::format::msg::Msg::Suspend { reason } => Some(reason.clone()),
        kagami::format::msg::Msg::Ack { applied, .. } if *applied >= head => Some(String::new()),
        _ => None,
    });
    end.unwrap_or_else(|e| e.to_string())
}

/// After a case that may change the replica: nothing outside, nothing elsewhere, and the way back.
fn restored(bed: &mut Bed, name: &str, begun: Instant, said: &[&str]) {
    bed.first_copy();
    bed.settle_prey();
    bed.check(name, begun, said);
}

pub fn run(bed: &mut Bed, _seed: u64) {
    let write = |at: Name| Op::Write { at, off: 0, mtime: None };
    let inside = |name: &str| Name::new(DirId(100), name);
    // The last component: the file that is written, cut, given attributes and a further name.
    let victims: Vec<(&str, Op, &[u8])> = vec![
        ("a file that became a symlink, written", write(file("f")), b"owned"),
        ("a file that became a symlink, cut", Op::Truncate { at: file("f"), size: 0, mtime: None }, b""),
        (
            "a file that became a symlink, chmod",
            {
                let at = Target::File(file("f"));
                Op::SetAttr { at, mode: Some(0o777), uid: None, gid: None, atime: None, mtime: Some(time()) }
            },
            b"",
        ),
        (
            "a file that became a symlink, xattr",
            { Op::SetXattr { at: Target::File(file("f")), name: b"user.owned".to_vec(), value: b"x".to_vec() } },
            b"",
        ),
        (
            "a file that became a symlink, linked",
            { Op::Link { from: file("f"), to: file("h"), lid: LinkId(77), pmtime: time() } },
            b"",
        ),
    ];
    for (name, op, data) in victims {
        let begun = Instant::now();
        bed.begin();
        let f = bed.tree("prey").join("f");
        let secret = bed.path("outside/secret");
        std::fs::remove_file(&f).and_then(|()| symlink(&secret, &f)).expect("a symlink");
        send(bed, vec![(op, data)]);
        restored(bed, name, begun, &["an incoming link ended"]);
    }
    // A directory in the middle, before the node has opened it, and while it works below it.
    let begun = Instant::now();
    bed.begin();
    let (d, away) = (bed.tree("prey").join("d"), bed.path("away"));
    std::fs::rename(&d, &away).and_then(|()| symlink(bed.path("outside"), &d)).expect("a symlink");
    send(bed, vec![(create(inside("new")), b""), (write(inside("new")), b"owned")]);
    let _ = std::fs::remove_file(&d);
    let _ = std::fs::remove_dir_all(&away);
    restored(bed, "a directory that became a symlink", begun, &["an incoming link ended"]);

    race(bed);
    circles(bed);
}

fn race(bed: &mut Bed) {
    let begun = Instant::now();
    bed.begin();
    let (tree, outside, away) = (bed.tree("prey"), bed.path("outside"), bed.path("away"));
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            let d = tree.join("d");
            while !stop.load(Ordering::SeqCst) {
                if std::fs::rename(&d, &away).is_ok() {
                    let _ = symlink(&outside, &d);
                    let _ = std::fs::remove_file(&d);
                    let _ = std::fs::rename(&away, &d);
                }
            }
        });
        let mut ops: Ops<'_> = Vec::new();
        for i in 0..300 {
            let at = Name::new(DirId(100), format!("n{i}"));
            ops.push((create(at.clone()), b""));
            ops.push((Op::Write { at: at.clone(), off: 0, mtime: None }, b"owned"));
            let id = DirId(1000 + i);
            ops.push((Op::Mkdir { at: Name::new(DirId(100), format!("d{i}")), id, attr: attr(), pmtime: time() }, b""));
            ops.push((create(Name::new(id, "below")), b""));
        }
        send(bed, ops);
        std::thread::sleep(Duration::from_millis(50));
        stop.store(true, Ordering::SeqCst);
    });
    let _ = std::fs::remove_dir_all(&away);
    restored(bed, "a directory that is swapped with a symlink all the time", begun, &["an incoming link ended"]);
}

/// Entries that are well formed and fit no tree.
fn circles(bed: &mut Bed) {
    let mkdir = |at, id| Op::Mkdir { at, id: DirId(id), attr: attr(), pmtime: time() };
    let in_dir = |d, n: &str| Name::new(DirId(d), n);
    let rename = |from, to| Op::Rename { from, to, flags: 0, from_pmtime: time(), to_pmtime: time() };
    let all: Vec<(&str, Ops<'_>)> = vec![
        ("the removal of what is not there", vec![(Op::Unlink { at: file("never"), pmtime: time() }, b"")]),
        ("a file in a directory that is not there", vec![(create(in_dir(4242, "x")), b"")]),
        ("the removal of a directory that is not empty", {
            vec![(Op::Rmdir { at: file("d"), id: DirId(100), pmtime: time() }, b"")]
        }),
        ("a directory within itself", vec![(rename(file("d"), in_dir(100, "self")), b"")]),
        ("two directories of one id, one in the other", {
            vec![
                (mkdir(in_dir(100, "again"), 100), b""),
                (create(in_dir(100, "x")), b""),
                (create(in_dir(101, "y")), b""),
            ]
        }),
        ("the removal of another directory's id", {
            vec![(mkdir(file("new"), 300), b""), (Op::Rmdir { at: file("new"), id: DirId(101), pmtime: time() }, b"")]
        }),
    ];
    for (name, ops) in all {
        let begun = Instant::now();
        bed.begin();
        send(bed, ops);
        restored(bed, name, begun, &["an incoming link ended"]);
    }
    let up = proc::wait_until(SOON, || bed.pair("prey").is_some());
    assert!(up);
}
