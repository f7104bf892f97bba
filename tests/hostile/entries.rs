//! A primary with the right key that sends what cannot be: names, lengths, values, places in the order, frames.

use super::bed::{Bed, attr, create, entry, entry_of, file, time};
use super::case;
use kagami::base::{DirId, Epoch, LinkId, Name, Seq, VolId};
use kagami::format::codec;
use kagami::format::frame::{self, FrameKind};
use kagami::format::loss::Lost;
use kagami::format::msg::{Ask, Msg};
use kagami::format::op::{NodeKind, Op, Target, TxnBegin, TxnCommit};

/// Sends bytes in a session; the node must end it.
fn refused(bed: &mut Bed, name: &str, said: &[&str], bytes: &[u8]) {
    case(bed, name, said, |bed| {
        let mut p = bed.session();
        // It may be refused before all of it is out.
        let _ = p.w.send(bytes);
        p.end(name);
    });
}

pub fn run(bed: &mut Bed, _seed: u64) {
    names(bed);
    values(bed);
    order(bed);
    transactions(bed);
    frames(bed);
    messages(bed);
}

fn names(bed: &mut Bed) {
    let next = bed.head.0 + 1;
    let bad: [(&str, Vec<u8>); 9] = [
        ("empty", vec![]),
        ("dot", b".".to_vec()),
        ("dot dot", b"..".to_vec()),
        ("up and out", b"../outside".to_vec()),
        ("a path", b"d/in".to_vec()),
        ("absolute", b"/etc/passwd".to_vec()),
        ("NUL", b"a\0b".to_vec()),
        ("256 bytes", vec![b'n'; 256]),
        ("65536 bytes", vec![b'n'; 65536]),
    ];
    for (what, name) in bad {
        let at = || file(name.clone());
        let rename = |from, to| Op::Rename { from, to, flags: 0, from_pmtime: time(), to_pmtime: time() };
        let ops = [
            ("create", create(at())),
            ("mkdir", Op::Mkdir { at: at(), id: DirId(200), attr: attr(), pmtime: time() }),
            ("link to", Op::Link { from: file("f"), to: at(), lid: LinkId(9), pmtime: time() }),
            ("unlink", Op::Unlink { at: at(), pmtime: time() }),
            ("rename from", rename(at(), file("f"))),
            ("rename to", rename(file("f"), at())),
            ("truncate", Op::Truncate { at: at(), size: 0, mtime: None }),
            ("xattr", Op::SetXattr { at: Target::File(at()), name: b"user.a".to_vec(), value: vec![] }),
        ];
        for (call, op) in ops {
            let name = format!("{call}, name {what}");
            refused(bed, &name, &["not one path component"], &entry(next, op, b""));
        }
    }
}

fn values(bed: &mut Bed) {
    let next = bed.head.0 + 1;
    let link = |target: &[u8]| Op::Create {
        at: file("link"),
        kind: NodeKind::Symlink(target.to_vec()),
        attr: attr(),
        pmtime: time(),
    };
    let xattr = |name: &[u8], value: usize| Op::SetXattr {
        at: Target::File(file("f")),
        name: name.to_vec(),
        value: vec![0; value],
    };
    let write = |off| Op::Write { at: file("f"), off, mtime: None };
    let fallocate = |mode, off, len| Op::Fallocate { at: file("f"), mode, off, len, mtime: None };
    let rename = |flags| Op::Rename { from: file("f"), to: file("x"), flags, from_pmtime: time(), to_pmtime: time() };
    let mkdir = |id| Op::Mkdir { at: file("new"), id: DirId(id), attr: attr(), pmtime: time() };
    let chmod = |at| Op::SetAttr { at, mode: Some(0), uid: None, gid: None, atime: None, mtime: None };
    let mut late = time();
    late.nsec = u32::MAX;
    let lost = |path: &str| Box::new(Lost { path: path.into(), ..Lost::default() });
    let inside = |d| Name::new(d, "x");
    let mib5 = vec![1; 5 << 20];
    let all: Vec<(&str, &str, Op, &[u8])> = vec![
        ("symlink to nothing", "symlink target", link(b""), b""),
        ("symlink target with NUL", "symlink target", link(b"a\0b"), b""),
        ("symlink target of 4097 bytes", "symlink target", link(&[b'a'; 4097]), b""),
        ("xattr without a name", "extended attribute", xattr(b"", 1), b""),
        ("xattr name with NUL", "extended attribute", xattr(b"user.\0", 1), b""),
        ("xattr name of 256 bytes", "extended attribute", xattr(&[b'a'; 256], 1), b""),
        ("xattr of 64 KiB and one", "extended attribute", xattr(b"user.a", 65537), b""),
        ("write at 2^63", "past the largest file offset", write(1 << 63), b"x"),
        ("write at 2^64-1", "past the largest file offset", write(u64::MAX), b"x"),
        ("write of nothing", "a write without data", write(0), b""),
        ("write of 5 MiB", "too much data", write(0), &mib5),
        ("truncate to 2^64-1", "size", Op::Truncate { at: file("f"), size: u64::MAX, mtime: None }, b""),
        ("fallocate past the end of numbers", "fallocate", fallocate(0, u64::MAX, u64::MAX), b""),
        ("fallocate of nothing", "fallocate", fallocate(0, 0, 0), b""),
        ("fallocate with unknown mode", "fallocate", fallocate(1 << 31, 0, 1), b""),
        ("rename that leaves a device", "flags of a rename", rename(4), b""),
        ("rename with all flags", "flags of a rename", rename(u32::MAX), b""),
        ("data where none belong", "data where none belong", Op::Fsync, b"x"),
        ("mkdir as the root", "reserved directory id", mkdir(1), b""),
        ("mkdir as the staging area", "reserved directory id", mkdir(2), b""),
        ("mkdir with id 0", "reserved directory id", mkdir(0), b""),
        ("chmod of the staging area", "directory of kagami's own", chmod(Target::Dir(DirId::STAGING)), b""),
        ("chmod of the lost area", "directory of kagami's own", chmod(Target::Dir(DirId::LOST)), b""),
        ("a file in the staging area", "directory of kagami's own", create(inside(DirId::STAGING)), b""),
        ("a file in the lost area", "directory of kagami's own", create(inside(DirId::LOST)), b""),
        ("a time with too many nanoseconds", "decoding", Op::Unlink { at: file("f"), pmtime: late }, b""),
        ("a lost version above the root", "path or attributes", keep(lost("../../x")), b""),
        ("a config definition that is none", "decoding", Op::ConfigDef { body: vec![0xff; 40] }, b""),
        ("a config definition of a petabyte", "does not fit", big_definition(), b""),
    ];
    for (name, said, op, data) in all {
        refused(bed, name, &[said], &entry(next, op, data));
    }
    refused(bed, "volume 1", &["volume"], &entry_of(VolId(1), next, create(file("v")), b""));
    refused(bed, "volume 65535", &["volume"], &entry_of(VolId(65535), next, create(file("v")), b""));
}

fn keep(lost: Box<Lost>) -> Op {
    Op::Keep { event: 1, at: None, lost }
}

fn big_definition() -> Op {
    let def = kagami::store::head::ConfigDef { mount: vec![], capacity: 1 << 50, emulation: "raid1".into() };
    Op::ConfigDef { body: def.body().expect("a definition") }
}

fn order(bed: &mut Bed) {
    let head = bed.head.0;
    let epoch = |number, parent| Op::EpochStart {
        epoch: Epoch { number, site: "evil".into(), random: 5, parent: Seq(parent), over: 0 },
    };
    let ordered: Vec<(&str, &str, Vec<u8>)> = vec![
        ("a gap of one", "came after", entry(head + 2, create(file("n")), b"")),
        ("a jump of a million", "came after", entry(head + 1_000_000, create(file("n")), b"")),
        ("an entry repeated", "came after", entry(head, create(file("n")), b"")),
        ("the first entry again", "came after", entry(1, create(file("n")), b"")),
        ("the largest position", "no position", entry(u64::MAX, create(file("n")), b"")),
        ("an old epoch", "cannot follow", entry(head + 1, epoch(1, head), b"")),
        ("epoch 2^64-1", "epoch", entry(head + 1, epoch(u64::MAX, head), b"")),
        ("an epoch after itself", "epoch", entry(head + 1, epoch(99, head + 1), b"")),
        ("an epoch before the last one", "cannot follow", entry(head + 1, epoch(99, 1), b"")),
    ];
    for (name, said, bytes) in ordered {
        refused(bed, name, &[said], &bytes);
    }
    let zero = frame::build(FrameKind::Entry, entry_body(&entry(0, create(file("n")), b"")), b"");
    refused(bed, "position 0", &["came after"], &zero);
}

fn entry_body(f: &[u8]) -> &[u8] {
    &f[frame::HEADER_BYTES..]
}

fn record(kind: FrameKind, body: &impl bincode::Encode) -> Vec<u8> {
    frame::build(kind, &codec::encode(body).expect("a record"), b"")
}

fn transactions(bed: &mut Bed) {
    let head = bed.head;
    let begin = |id, from, base| record(FrameKind::TxnBegin, &TxnBegin { id, from, base, common: Seq(0) });
    let commit = |id, to, epochs: Vec<Epoch>| record(FrameKind::TxnCommit, &TxnCommit { id, to, epochs });
    let staged = entry(0, create(file("staged")), b"");
    let falling = vec![bed.chain[0].clone(), Epoch { number: 0, ..bed.chain[0].clone() }];
    let chain = bed.chain.clone();
    let all: Vec<(&str, &str, Vec<u8>)> = vec![
        ("staged outside of a transaction", "outside of a transaction", staged.clone()),
        ("a commit without its transaction", "without its transaction", commit(1, head, chain.clone())),
        ("a transaction from elsewhere", "wrong place", begin(7, Seq(head.0 + 5), head)),
        ("transaction 0", "begin of a transaction", begin(0, head, head)),
        ("a transaction beyond all positions", "begin of a transaction", begin(7, head, Seq(u64::MAX))),
        ("a transaction in a transaction", "wrong place", [begin(7, head, head), begin(8, head, head)].concat()),
        ("the commit of another one", "without its", [begin(7, head, head), commit(8, head, chain.clone())].concat()),
        ("a commit elsewhere", "without its", [begin(7, head, head), commit(7, Seq(head.0 + 9), chain)].concat()),
        ("a commit of a falling history", "epoch chain", [begin(7, head, head), commit(7, head, falling)].concat()),
    ];
    for (name, said, bytes) in all {
        refused(bed, name, &[said], &bytes);
    }
    case(bed, "a transaction that is never committed", &["an incoming link ended"], |bed| {
        let mut p = bed.session();
        let _ = p.w.send(&[begin(7, head, head), staged].concat());
        drop(p);
    });
}

fn frames(bed: &mut Bed) {
    let good = entry(bed.head.0 + 1, Op::Heartbeat, b"");
    let with = |at: usize, bytes: &[u8]| {
        let mut f = good.clone();
        f[at..at + bytes.len()].copy_from_slice(bytes);
        f
    };
    // As a peer writes it that checks no headers.
    let unchecked = |at: usize, bytes: &[u8]| {
        let mut f = with(at, bytes);
        f[3] = 0;
        f
    };
    let mut all: Vec<(String, &str, Vec<u8>)> = vec![
        ("a frame with wrong magic".into(), "bad magic", with(0, b"XX")),
        ("a frame of unknown kind".into(), "unknown kind", unchecked(2, &[77])),
        ("a frame with another check".into(), "header CRC", with(3, &[good[3] ^ 1])),
        ("a frame with a wrong CRC".into(), "CRC mismatch", unchecked(8, &[1, 2, 3, 4])),
        ("a frame with a bit changed".into(), "CRC mismatch", with(good.len() - 1, &[!good[good.len() - 1]])),
        ("a frame of 4 GiB".into(), "more than", unchecked(4, &u32::MAX.to_le_bytes())),
        ("a frame of 8 MiB and one".into(), "more than", unchecked(4, &((8u32 << 20) + 1).to_le_bytes())),
        (
            "an encoded part longer than its frame".into(),
            "longer than the body",
            unchecked(12, &u32::MAX.to_le_bytes()),
        ),
        ("no frame at all".into(), "bad magic", b"GET / HTTP/1.1\r\nHost: victim\r\n\r\n".to_vec()),
    ];
    for n in 0u32..5 {
        // What follows is then no frame, or the CRC is wrong.
        all.push((format!("a frame with length {n}"), "frame: ", with(4, &n.to_le_bytes())));
        let body = vec![9; n as usize];
        all.push((format!("an entry of {n} bytes"), "decoding", frame::build(FrameKind::Entry, &body, b"")));
        let m = frame::build(FrameKind::Msg, &body, b"");
        all.push((format!("a message of {n} bytes"), "an incoming link ended", m));
    }
    for (name, said, bytes) in all {
        refused(bed, &name, &[said], &bytes);
    }
    case(bed, "a frame that ends in the middle", &["in the middle of a frame"], |bed| {
        let mut p = bed.session();
        let _ = p.w.send(&good[..good.len() - 1]);
    });
}

fn messages(bed: &mut Bed) {
    let message = |body: &[u8], data: &[u8]| frame::build(FrameKind::Msg, body, data);
    let ready = codec::encode(&Msg::Ready { id: 1 }).expect("a message");
    // Kind 12 of the messages is a list of questions: its length says everything there is.
    let claims = [&ready[..1], &[253], &u64::MAX.to_le_bytes()].concat();
    let query = codec::encode(&Msg::Query { id: 1, asks: vec![] }).expect("a message");
    let endless = [&query[..query.len() - 1], &[253], &u64::MAX.to_le_bytes()].concat();
    let mut trailing = ready.clone();
    trailing.extend_from_slice(b"more");
    let at = Target::File(file("../../outside/secret"));
    let ask = Ask { vol: VolId(0), at, ranges: vec![(0, u64::MAX)] };
    let names = vec![(VolId(0), file("../secret"))];
    let bad = |m: Msg| m.frame().expect("a message");
    let all: Vec<(&str, &str, Vec<u8>)> = vec![
        ("a message with bytes behind it", "left over", message(&trailing, b"")),
        ("a message with data", "bytes behind it", message(&ready, b"data")),
        ("a list of 2^64-1", "decoding", message(&endless, b"")),
        ("a message of 5 MiB", "message too large", message(&vec![0; 5 << 20], b"")),
        ("a question about a path", "cannot be", bad(Msg::Query { id: 1, asks: vec![ask] })),
        ("a question for the path of a path", "cannot be", bad(Msg::PathsAsk { id: 1, names })),
        ("a listing to a receiver", "does not belong", bad(Msg::ListPart { id: 1, lists: vec![], last: true })),
        ("ready", "does not belong", bad(Msg::Ready { id: 1 })),
        ("the end of a copy that did not begin", "does not belong", {
            bad(Msg::CopyDone { id: 1, base: Seq(5), whole: Seq(5), epochs: vec![] })
        }),
        ("a ping beyond all positions", "cannot be", {
            bad(Msg::Ping { head: Seq(u64::MAX), trim: Seq(u64::MAX), in_pair: true, unsent: u64::MAX, time: time() })
        }),
        ("a greeting in the middle", "does not belong", bad(Msg::Hello(bed.hello()))),
        ("a question in a volume that is not there", "volume", bad(Msg::DirsAsk { id: 1, vol: VolId(7) })),
        ("an id of 2^64-1", "an incoming link ended", message(&claims, b"")),
    ];
    for (name, said, bytes) in all {
        refused(bed, name, &[said], &bytes);
    }
    case(bed, "a primary that does not read", &["sending: no progress within the timeout"], |bed| {
        let mut p = bed.session();
        let names = (0..15_000).map(|i| (VolId(0), file(format!("{i:0250}")))).collect();
        let question = Msg::PathsAsk { id: 1, names }.frame().expect("a message");
        let _ = p.w.set_write_timeout(Some(std::time::Duration::from_secs(1)));
        // Its answers are never taken: at some time it takes no more questions, and then it ends the link.
        while p.w.send(&question).is_ok() {}
        let given_up = || bed.news().contains("sending: no progress");
        assert!(super::support::proc::wait_until(super::bed::SOON, given_up), "{}", bed.news());
    });
    case(bed, "a primary that says nothing", &["an incoming link ended"], |bed| {
        let mut p = bed.session();
        p.end("a primary that says nothing");
    });
    case(bed, "a frame that trickles", &["an incoming link ended"], |bed| {
        let mut p = bed.session();
        let f = entry(bed.head.0 + 2, create(file("n")), b"");
        for b in f.chunks(8) {
            let _ = p.w.send(b);
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        p.end("a gap that trickles");
    });
}
