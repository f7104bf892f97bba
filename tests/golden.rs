//! Golden files: one of every format, as this version writes it. Fails when an encoding changes, or when a file that an
//! earlier build wrote can no longer be read. A change on purpose gets a new version in `docs/FORMATS.md`, keeps the old
//! file as one to be read, and writes the new one with `KAGAMI_BLESS=1`.

use kagami::base::{DirId, Epoch, LinkId, Name, Seq, VolId, time::Time};
use kagami::format::frame::{self, FrameKind};
use kagami::format::loss::{self, Cause, Lost, Part};
use kagami::format::msg::{
    Ask, Begin, CopyState, Cut, Have, Hello, Listed, Msg, Offered, PairOrder, RejectCode, Told, Welcome, Wish,
};
use kagami::format::op::{Attr, Entry, NodeKind, Op, Target, TxnBegin, TxnCommit};
use kagami::format::{codec, file, vote};
use kagami::net::Token;
use kagami::node::events::Events;
use kagami::node::mounter::{MountOption, MountOptions};
use kagami::node::pairs::{Ends, Pair};
use kagami::pair::change::{Change, NsChange, Rec, What};
use kagami::pair::state::{Event, Mode, Reason, State};
use kagami::pair::vote::Record;
use kagami::store::activity::{ActiveDir, Record as Activity, Replay};
use kagami::store::before::{Object, Was};
use kagami::store::doubt::{Doubt, Doubts};
use kagami::store::exec::{Before, Pre};
use kagami::store::idtable::IdTable;
use kagami::store::journal::Journal;
use kagami::store::kept::Kept;
use kagami::store::live::{Intent, Live};
use kagami::store::log::{EntryLog, Shape};
use kagami::store::region::{Identity, Region};
use kagami::store::replica::{Cut as StoreCut, State as ReplicaState};
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The bytes of a golden file, which must be those given.
#[track_caller]
fn same(name: &str, now: &[u8]) -> Vec<u8> {
    let path = golden(name);
    if std::env::var_os("KAGAMI_BLESS").is_some() {
        std::fs::write(&path, now).unwrap();
    }
    let kept = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}; KAGAMI_BLESS=1 makes it", path.display()));
    let at = kept.iter().zip(now).position(|(a, b)| a != b).unwrap_or(kept.len().min(now.len()));
    assert!(kept == now, "{name}: {} bytes kept, {} now, different from byte {at} on", kept.len(), now.len());
    kept
}

fn name(s: &str) -> Name {
    Name::new(DirId(0x1234_5678_9abc_def0), s)
}

fn time() -> Time {
    Time { sec: 1_764_000_000, nsec: 123_456_789 }
}

fn epoch() -> Epoch {
    Epoch { number: 3, site: "tokyo".into(), random: 0xfeed_f00d_dead_beef, parent: Seq(41), over: 0xfeed }
}

fn attr() -> Attr {
    let acl = Some(vec![2, 0, 0, 0]);
    Attr { mode: 0o640, uid: 1000, gid: 100, mtime: time(), acl_access: acl.clone(), acl_default: acl }
}

fn have() -> Have {
    Have {
        mode: 0o100644,
        uid: 1,
        gid: 2,
        size: 3,
        ino: 5,
        nlink: 6,
        mtime: time(),
        rdev: 4,
        target: b"there".to_vec(),
        dir: Some(DirId(77)),
        lid: Some(LinkId(88)),
        xattrs: vec![(b"user.a".to_vec(), b"b".to_vec())],
    }
}

/// Every operation.
fn ops() -> Vec<(Op, &'static [u8])> {
    let (mtime, pmtime) = (Some(time()), time());
    let kinds = [
        NodeKind::File,
        NodeKind::Symlink(b"target".to_vec()),
        NodeKind::Fifo,
        NodeKind::Socket,
        NodeKind::Char(0x103),
        NodeKind::Block(0x800),
    ];
    let mut all: Vec<(Op, &[u8])> =
        kinds.into_iter().map(|kind| (Op::Create { at: name("f"), kind, attr: attr(), pmtime }, &b""[..])).collect();
    let set = |at| Op::SetAttr { at, mode: Some(0o600), uid: Some(1), gid: None, atime: None, mtime };
    let rest = [
        Op::Mkdir { at: name("d"), id: DirId(99), attr: attr(), pmtime },
        Op::Link { from: name("f"), to: name("g"), lid: LinkId(7), pmtime },
        Op::Unlink { at: name("g"), pmtime },
        Op::Rmdir { at: name("d"), id: DirId(99), pmtime },
        Op::Rename { from: name("f"), to: name("h"), flags: 2, from_pmtime: pmtime, to_pmtime: pmtime },
        Op::Truncate { at: name("h"), size: 5, mtime },
        Op::Fallocate { at: name("h"), mode: 3, off: 4096, len: 8192, mtime },
        set(Target::File(name("h"))),
        set(Target::Dir(DirId(99))),
        Op::SetXattr { at: Target::File(name("h")), name: b"user.x".to_vec(), value: b"y".to_vec() },
        Op::RemoveXattr { at: Target::Dir(DirId::ROOT), name: b"user.x".to_vec() },
        Op::Fsync,
        Op::EpochStart { epoch: epoch() },
        Op::Heartbeat,
        Op::Keep { event: 7, at: Some(name("h")), lost: Box::new(lost()) },
        Op::ConfigDef { body: b"config".to_vec() },
    ];
    all.extend(rest.into_iter().map(|o| (o, &b""[..])));
    all.push((Op::Write { at: Name::new(DirId::ROOT, *b"\xff\xfe"), off: 1 << 40, mtime }, b"data"));
    all
}

/// Every frame that can be in an entry log.
fn lost() -> Lost {
    Lost {
        n: 3,
        vol: VolId(1),
        path: b"dir/f".to_vec(),
        what: vec![
            Part::Created,
            Part::Content,
            Part::Attributes,
            Part::Name,
            Part::Removed,
            Part::Changed,
            Part::Link,
        ],
        now: Some(b"other".to_vec()),
        kept: true,
        mode: 0o100644,
        uid: 1000,
        gid: 1001,
        size: 4096,
        mtime: time(),
        rdev: 5,
        target: b"to".to_vec(),
        xattrs: vec![(b"user.k".to_vec(), b"v".to_vec())],
    }
}

/// A loss manifest: its event, then its objects (G6).
#[test]
fn loss_manifest() {
    for (i, cause) in [Cause::SetBack, Cause::NeverArrived, Cause::CutShort, Cause::Overwritten].into_iter().enumerate()
    {
        let event = loss::Event {
            id: 0xfeed,
            time: time(),
            cause,
            common: Seq(40),
            head: Seq(50),
            lost: Some(epoch()),
            won: None,
            since: Some(time()),
            words: "words".into(),
            objects: 1,
            bytes: 4096,
        };
        let kept = same(&format!("manifest-{i}.loss"), &loss::manifest(&event, &[lost()]).unwrap());
        assert_eq!(loss::parse(&kept, "manifest").unwrap(), (event, vec![lost()]));
    }
}

fn log_frames() -> Vec<Vec<u8>> {
    let entry = |seq, (op, data): (Op, &[u8])| Entry { seq, vol: VolId(1), time: time(), op }.frame(data).unwrap();
    let mut all: Vec<Vec<u8>> = ops().into_iter().zip(42..).map(|(o, s)| entry(Seq(s), o)).collect();
    let begin = TxnBegin { id: 5, from: Seq(60), base: Seq(70), common: Seq(50) };
    all.push(frame::build(FrameKind::TxnBegin, &codec::encode(&begin).unwrap(), b""));
    all.push(entry(Seq(0), (Op::Unlink { at: name("staged"), pmtime: time() }, b"")));
    let commit = TxnCommit { id: 5, to: Seq(70), epochs: vec![epoch()] };
    all.push(frame::build(FrameKind::TxnCommit, &codec::encode(&commit).unwrap(), b""));
    all
}

fn messages() -> Vec<Msg> {
    let (vol, dir, id) = (VolId(1), DirId(99), 6);
    let (text, chain) = (String::from("words"), vec![epoch()]);
    let hello = Hello {
        version: 1,
        site: "tokyo".into(),
        group: "docs".into(),
        group_id: 9,
        pair: "main".into(),
        is_async: true,
        volumes: vec![Offered { name: "papers".into(), port: "port".into(), lu: 2, head: Some(vec![1, 2, 3]) }],
        chain: chain.clone(),
        head: Seq(50),
        wish: Wish::Look,
    };
    let welcome = Welcome {
        version: 1,
        site: "osaka".into(),
        group_id: 9,
        chain: chain.clone(),
        head: Seq(48),
        settled: Seq(47),
        journal_after: Seq(12),
        copy: CopyState::Consistent,
        exact: true,
        cuts: vec![Cut { low: Seq(30), head: Seq(33), dirs: vec![(vol, dir, true)], open: true }],
        torn: false,
        yields: true,
    };
    let positions = (Seq(3), Seq(2), Seq(1));
    let (received, durable, applied) = positions;
    let told = Told { have: Some(have()), blocks: vec![vec![None, Some([7; 16])]] };
    let listed = Listed { name: b"f".to_vec(), have: have() };
    let mut all = vec![
        Msg::Hello(hello.clone()),
        Msg::Welcome(welcome),
        Msg::Ping { head: Seq(50), trim: Seq(40), in_pair: true, unsent: 4096, time: Time { sec: 1, nsec: 2 } },
        Msg::Pong { received, durable, applied, checkpoint: Seq(1), confirmed: None },
        Msg::Ack { received, durable, applied, checkpoint: Seq(1), confirmed: Some(Time { sec: 1, nsec: 2 }) },
        Msg::Suspend { reason: text.clone() },
        Msg::Prepare { id, from: Seq(40), bytes: 1 << 20, first_copy: false },
        Msg::Ready { id },
        Msg::NeedsSpace { id, free: 4096 },
        Msg::JournalAsk { since: Seq(40), lids: vec![(vol, LinkId(7))] },
        Msg::JournalPart { recs: vec![b"rec".to_vec()], links: vec![(vol, LinkId(7), vec![name("f")])], last: true },
        Msg::Query { id, asks: vec![Ask { vol, at: Target::File(name("f")), ranges: vec![(0, u64::MAX)] }] },
        Msg::Answer { id, tolds: vec![told, Told { have: None, blocks: vec![] }] },
        Msg::ListAsk { id, vol, dirs: vec![dir] },
        Msg::ListPart { id, lists: vec![(dir, Some(vec![listed])), (DirId(98), None)], last: false },
        Msg::DirsAsk { id, vol },
        Msg::DirsPart { id, dirs: vec![(dir, name("d"))], last: true },
        Msg::CopyDone { id, base: Seq(40), whole: Seq(44), epochs: chain.clone() },
        Msg::Abort { id },
        Msg::Hold { id, at: Seq(50) },
        Msg::Held { id, ok: true },
        Msg::Release { id },
        Msg::Released { id, kept: false },
        Msg::Parting { deleted: true },
        Msg::PathsAsk { id, names: vec![(vol, name("f"))] },
        Msg::Paths { id, paths: vec![b"dir/f".to_vec()] },
        Msg::Hello(Hello { wish: Wish::Order(PairOrder::Create(Begin::Compare)), ..hello }),
    ];
    let ask = |fit, want| vote::Ask { site: "osaka".into(), term: 4, number: 9, fit, want };
    all.extend([
        Msg::Vote(ask(None, vote::Want::Stand)),
        Msg::Vote(ask(Some(true), vote::Want::Lead { backed: true, forced: false })),
        Msg::Vote(ask(None, vote::Want::Release(Some("tokyo".into())))),
        Msg::Voted(vote::Answer::Granted { fit: true }),
        Msg::Voted(vote::Answer::Held { by: "tokyo".into(), left_ms: 4999 }),
        Msg::Voted(vote::Answer::Stale { holder: "tokyo".into() }),
        Msg::Voted(vote::Answer::Old { term: 5 }),
        Msg::Voted(vote::Answer::Blank),
    ]);
    let codes = [
        RejectCode::Version,
        RejectCode::UnknownPeer,
        RejectCode::UnknownPair,
        RejectCode::OtherGroup,
        RejectCode::StalePrimary,
        RejectCode::SplitBrain,
        RejectCode::Busy,
        RejectCode::Paused,
        RejectCode::Fault,
    ];
    all.extend(codes.map(|code| Msg::Reject { code, text: text.clone(), chain: chain.clone(), head: Seq(1) }));
    all.extend([
        Msg::Survey { id },
        Msg::Surveyed { id },
        Msg::Same { id, vol, dirs: vec![(DirId(98), dir)], links: vec![(name("f"), LinkId(7))], last: true },
    ]);
    all
}

/// The frames of a byte string, each with its header, all checked.
fn split(mut bytes: &[u8]) -> Vec<(&[u8], frame::Header)> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let head = frame::parse_header(bytes.first_chunk().unwrap()).unwrap();
        let (one, rest) = bytes.split_at(frame::HEADER_BYTES + head.len as usize);
        out.push((one, frame::check(one).unwrap()));
        bytes = rest;
    }
    out
}

#[test]
fn frames_of_messages() {
    let now: Vec<u8> = messages().iter().flat_map(|m| m.frame().unwrap()).collect();
    let kept = same("messages.frames", &now);
    let read: Vec<Msg> = split(&kept).iter().map(|(f, h)| Msg::parse(f, h).unwrap()).collect();
    assert_eq!(read, messages());
}

#[test]
fn entry_log_with_every_operation() {
    let d = tempfile::tempdir().unwrap();
    let log = EntryLog::open(d.path(), 0, Shape::of_log(512 << 20)).unwrap();
    log.append(&log_frames().concat()).unwrap();
    drop(log);
    let path = d.path().join("0000000000000000.kl");
    let kept = same("queue.kl", &std::fs::read(&path).unwrap());
    std::fs::write(&path, &kept).unwrap();
    let (log, mut buf, mut at, mut read) =
        (EntryLog::open(d.path(), 0, Shape::of_log(512 << 20)).unwrap(), Vec::new(), 0, Vec::new());
    while let Some(next) = log.read(at, &mut buf).unwrap() {
        read.push(buf.clone());
        at = next;
    }
    assert_eq!(read, log_frames());
    for ((op, data), f) in ops().into_iter().zip(&read) {
        let head = frame::check(f).unwrap();
        assert_eq!((Entry::parse(f, &head).unwrap().op, frame::data_part(f, &head)), (op, data));
    }
}

#[test]
fn change_journal() {
    let d = tempfile::tempdir().unwrap();
    let v = VolId(1);
    let what = What::Linked(LinkId(7));
    let ns = [
        NsChange::Create { at: name("f") },
        NsChange::Mkdir { at: name("d"), id: DirId(99) },
        NsChange::Link { from: name("f"), to: name("g"), lid: LinkId(7) },
        NsChange::Unlink { at: name("f"), what },
        NsChange::Rmdir { at: name("d"), id: DirId(99) },
        NsChange::Rename { from: name("g"), to: name("h"), moved: what, over: Some(What::File), exchange: false },
    ];
    let mut j = Journal::open(d.path(), Seq(10), 1 << 30).unwrap();
    for (n, seq) in ns.iter().cloned().zip(11..) {
        j.names(Seq(seq), v, n).unwrap();
    }
    j.data(Seq(20), v, &name("h"), What::File, 100, 200).unwrap();
    j.attr(Seq(21), v, &Target::Dir(DirId(99)), What::Dir(DirId(99))).unwrap();
    j.begin_jump(Seq(21), Seq(30)).unwrap();
    j.attr(Seq(30), v, &Target::File(name("h")), What::File).unwrap();
    j.rotate(Seq(30)).unwrap();
    j.attr(Seq(31), v, &Target::File(name("h")), What::File).unwrap();
    j.names(Seq(32), v, NsChange::Create { at: name("i") }).unwrap();
    j.split(Seq(31), Seq(32)).unwrap();
    drop(j);
    for file in ["0000000000000001.kj", "0000000000000002.kj", "0000000000000003.kj", "0000000000000004.kj"] {
        let path = d.path().join(file);
        let kept = same(&format!("journal-{file}"), &std::fs::read(&path).unwrap());
        std::fs::write(&path, kept).unwrap();
    }
    let j = Journal::open(d.path(), Seq(32), 1 << 30).unwrap();
    let created = |at| Change::Ns(NsChange::Create { at });
    assert_eq!(j.since(Seq(31)).unwrap(), [Rec { seq: Seq(32), vol: v, change: created(name("i")) }]);
    let mut recs = j.since(Seq(10)).unwrap();
    recs.truncate(recs.len() - 2);
    let names: Vec<&NsChange> =
        recs.iter().filter_map(|r| if let Change::Ns(n) = &r.change { Some(n) } else { None }).collect();
    assert_eq!(names, ns.iter().collect::<Vec<_>>());
    assert_eq!(recs.len(), ns.len() + 3);
    assert_eq!(
        recs.last(),
        Some(&Rec { seq: Seq(30), vol: v, change: Change::Attr { at: Target::File(name("h")), what: What::File } })
    );
}

#[test]
fn directory_ids() {
    let d = tempfile::tempdir().unwrap();
    let path = d.path().join("ids");
    let mut t = IdTable::open(&path).unwrap();
    t.put_dir(DirId(100), DirId::ROOT, b"a", 7).unwrap();
    t.put_dir(DirId(101), DirId(100), b"\xff", 8).unwrap();
    t.drop_dir(DirId(101)).unwrap();
    t.put_link(LinkId(5), &name("l1")).unwrap();
    t.put_link(LinkId(5), &name("l2")).unwrap();
    t.drop_link(&name("l1")).unwrap();
    let xattrs = vec![(b"trusted.a".to_vec(), vec![1, 2])];
    let device = Some((libc::S_IFBLK, libc::makedev(7, 300)));
    let beside = Kept { device, mode: Some(0o4660), uid: Some(0), gid: Some(6), xattrs };
    t.set_kept(9, beside.clone()).unwrap();
    t.set_kept(10, Kept { uid: Some(3), ..Kept::default() }).unwrap();
    t.set_kept(10, Kept::default()).unwrap();
    drop(t);
    let kept = same("ids", &std::fs::read(&path).unwrap());
    std::fs::write(&path, kept).unwrap();
    let t = IdTable::open(&path).unwrap();
    assert_eq!((t.len(), t.by_ino(7), t.names_of(LinkId(5))), (1, Some(DirId(100)), &[name("l2")][..]));
    assert_eq!((t.kept().len(), t.kept().get(9).map(|k| &**k)), (1, Some(&beside)));
}

#[test]
fn live_page() {
    let d = tempfile::tempdir().unwrap();
    let path = d.path().join("live");
    let before = Before { ino: 12, what: What::File, nlink: 1, cost: 4096 };
    let intent = Intent {
        seq: Seq(43),
        vol: VolId(0),
        next_lsn: 4096,
        op: Op::Unlink { at: name("f"), pmtime: time() },
        pre: Pre { first: Some(before), second: None },
    };
    let (mut l, _) = Live::open(&path, true).unwrap();
    l.set_last_seq(Seq(42));
    l.set_settled(Seq(41));
    l.set_applied(4000, Seq(40));
    l.set_txn(Some((Seq(30), Seq(50))));
    l.set_intent(&intent).unwrap();
    drop(l);
    let mut bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 256 << 10);
    let boot: Vec<u8> = bytes.splice(24..40, [0; 16]).collect();
    // The rest is empty.
    let end = bytes.iter().rposition(|b| *b != 0).unwrap() + 1;
    let mut kept = same("live", &bytes[..end]);
    kept.resize(256 << 10, 0);
    kept.splice(24..40, boot);
    std::fs::write(&path, kept).unwrap();
    let (l, _) = Live::open(&path, false).unwrap();
    assert_eq!((l.last_seq(), l.settled(), l.applied_lsn(), l.applied_seq()), (Seq(42), Seq(41), 4000, Seq(40)));
    assert_eq!((l.txn(), l.intent().unwrap()), (Some((Seq(30), Seq(50))), Some(intent)));
}

/// A state file: as it is now, and read back from the golden one.
#[track_caller]
fn state_file<T>(file_name: &str, magic: &[u8; 8], value: T)
where
    T: bincode::Encode + bincode::Decode<()> + PartialEq + std::fmt::Debug,
{
    let kept = same(file_name, &file::whole(magic, 1, &codec::encode(&value).unwrap()));
    let (version, body) = file::parse_whole(&kept, magic, 1, file_name).unwrap();
    assert_eq!((version, codec::decode::<T>(body).unwrap()), (1, value));
}

#[test]
fn state_files() {
    let identity =
        Identity { region: 1, group: "docs".into(), group_id: 2, volume: "papers".into(), vol: VolId(0), tree_ino: 3 };
    state_file("identity", b"KGMREGN\0", identity);
    let dirs = vec![ActiveDir { vol: VolId(0), dir: DirId(20), below: true }];
    let cut = StoreCut { low: Seq(5), head: Seq(6), time: 1_764_000_000, dirs: dirs.clone(), open: true };
    let replay =
        Replay { lsn: 4000, applied: Seq(4), last: Seq(5), txn: Some((Seq(5), Seq(9))), journal: (3, 700), names: 12 };
    let active = Activity { count: 4, at: Seq(5), time: 1_764_000_000, tables: vec![16], dirs, replay: Some(replay) };
    state_file("active", b"KGMACTV\0", active);
    let state = ReplicaState {
        chain: vec![epoch()],
        copy: CopyState::Consistent,
        whole: Seq(9),
        suspect: true,
        crashes: vec![(Seq(5), Seq(6))],
        was_primary: true,
        cuts: vec![cut],
        torn: true,
        yields: true,
        replay: 4100,
        unmended: vec!["papers/a is gone".into()],
    };
    state_file("state", b"KGMSTAT\0", state);
    state_file("role", b"KGMROLE\0", role());
    let doubt = Doubt {
        seq: Seq(9),
        time: time(),
        vol: VolId(1),
        path: b"a/b".to_vec(),
        what: "write 0..5".into(),
        undone: true,
    };
    let doubts = Doubts { since: time(), had: Seq(8), refused: 3, entries: vec![doubt], more: 2 };
    state_file("doubts", b"KGMDOUB\0", doubts);
    let record = Record { holder: "tokyo".into(), term: 4, number: 9, fit: true, to: Some("osaka".into()) };
    state_file("votes", b"KGMVOTE\0", (Some(record), false));
}

/// What names were at the last checkpoint: the number, then a record for each name.
#[test]
fn before() {
    let at = |name: &str| Name::new(DirId(20), name);
    let object = Object { ino: 7, born: Time { sec: 1_764_000_000, nsec: 5 } };
    let were = [
        Was { vol: VolId(0), at: at("a"), object: Some((object, What::Linked(LinkId(9)), 0o100_000)) },
        Was { vol: VolId(1), at: at("b"), object: None },
    ];
    let mut now = file::header(b"KGMBFOR\0", 1).to_vec();
    file::put_record(&mut now, &codec::encode(&12u64).unwrap());
    were.iter().for_each(|w| file::put_record(&mut now, &codec::encode(w).unwrap()));
    let kept = same("before0", &now);
    let d = tempfile::tempdir().unwrap();
    std::fs::write(d.path().join("before0"), kept).unwrap();
    assert_eq!(kagami::store::before::read(d.path(), 12).unwrap(), were);
    assert_eq!(kagami::store::before::read(d.path(), 14).unwrap(), [], "those of another checkpoint");
}

/// What a node persists of a group's role: is primary, mounts, legs, leg in use.
type Role = (bool, Vec<(u16, Vec<u8>, MountOptions)>, Vec<Vec<Vec<u8>>>, Vec<u32>, u32, Vec<(u64, String)>, u8);

fn role() -> Role {
    (
        true,
        vec![(0, b"/mnt".to_vec(), MountOptions::from([MountOption::ReadOnly, MountOption::NoExec]))],
        vec![vec![b"/region".to_vec()], vec![b"/removed".to_vec()]],
        vec![1],
        0,
        vec![(100_000_000, "raid1".into())],
        0,
    )
}

#[test]
fn pair_state() {
    let d = tempfile::tempdir().unwrap();
    let events = Events::open(d.path(), "tokyo").unwrap();
    let load = || {
        let ends = Ends { name: "papers".into(), here: ("21b".into(), 0), there: ("21d".into(), 3) };
        Pair::load((d.path(), &events), "docs", "main", Mode::Sync, "osaka", vec![ends]).unwrap()
    };
    let pair = load();
    pair.event(Event::Create { no_copy: true }, None).unwrap();
    pair.event(Event::Fault(Reason::Behind), None).unwrap();
    let path = d.path().join("pairs/docs.main");
    let kept = same("pair", &std::fs::read(&path).unwrap());
    std::fs::write(&path, kept).unwrap();
    let again = load();
    assert_eq!(again.state(), State::Psue(Reason::Behind));
}

#[test]
fn invite_token() {
    const TEXT: &str = "kgminvite1-aeawcaisorrxaorrgi3s4mbogaxdcorxgmydc2dp3ncjcvvdxhrbgl3frgya2xulyuzpwts2dchuzu7b42wqubmw7fgtce4x5icga5foujwn7knul7xst3m46f3hhces2x63nswmnivc4zvh7y";
    let t: Token = TEXT.parse().unwrap();
    assert_eq!((t.site.as_str(), t.addrs[0].to_string().as_str()), ("a", "tcp:127.0.0.1:7301"));
    assert_eq!(t.encode().unwrap(), TEXT);
}

/// The files that the program really makes are of these formats.
#[test]
fn files_of_a_new_region() {
    let d = tempfile::tempdir().unwrap();
    let path = d.path().join("region");
    Region::create(&path, "docs", "papers", VolId(0)).unwrap();
    let bytes = std::fs::read(path.join(".kagami/identity")).unwrap();
    let (_, body) = file::parse_whole(&bytes, b"KGMREGN\0", 1, "identity").unwrap();
    assert_eq!(codec::decode::<Identity>(body).unwrap().volume, "papers");
}
