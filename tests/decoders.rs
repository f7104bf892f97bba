//! The corpora of the fuzz targets (`fuzz/`), and deterministic mutations of them, through every decoder (G7, G10): never a
//! panic, never more memory than a bound, never a wrong acceptance. With `KAGAMI_BLESS=1` the corpora are written anew.

mod support;

#[path = "../fuzz/decoders.rs"]
mod decoders;

use kagami::base::time::Time;
use kagami::base::{DirId, Epoch, Name, Seq, VolId};
use kagami::format::frame::{self, FrameKind};
use kagami::format::msg::{Msg, RejectCode};
use kagami::format::op::{Attr, Entry, Op, Target, TxnBegin, TxnCommit};
use kagami::format::{codec, file};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;
use support::Rng;

/// Memory that decoding may take at any time, bytes: what one length field can ask for, and what the bytes that are really
/// there can become (a byte on the wire is at most so many in memory).
const MEMORY_MAX: i64 = 20 << 20;
const MEMORY_FOR_EACH_BYTE: i64 = 64;
/// Mutations of each kind, for each target; `KAGAMI_MUTATIONS` is another number, with another seed of its own.
const MUTATIONS: u64 = 4000;

/// Counts what each thread has allocated and not given back.
struct Counting;

thread_local! {
    static LIVE: Cell<i64> = const { Cell::new(0) };
    static PEAK: Cell<i64> = const { Cell::new(0) };
}

fn count(bytes: i64) {
    // A thread that ends has no counters any more.
    let _ = LIVE.try_with(|l| {
        l.set(l.get() + bytes);
        let _ = PEAK.try_with(|p| p.set(p.get().max(l.get())));
    });
}

// SAFETY: hands everything on to the system's allocator; the counters do not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, l: Layout) -> *mut u8 {
        count(l.size() as i64);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(l) }
    }
    unsafe fn dealloc(&self, p: *mut u8, l: Layout) {
        count(-(l.size() as i64));
        // SAFETY: as above.
        unsafe { System.dealloc(p, l) }
    }
    unsafe fn realloc(&self, p: *mut u8, l: Layout, n: usize) -> *mut u8 {
        count(n as i64 - l.size() as i64);
        // SAFETY: as above.
        unsafe { System.realloc(p, l, n) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

/// The seeds of a target by their names. Those that begin with `bad` must be refused, all others accepted.
fn seeds(target: &str) -> BTreeMap<String, Vec<u8>> {
    let dir = corpus(target);
    let all = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}; KAGAMI_BLESS=1 makes it", dir.display()));
    all.map(|e| e.unwrap().path())
        .map(|p| (p.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&p).unwrap()))
        .collect()
}

/// Runs one input; true when it was accepted.
fn feed(target: &str, decode: decoders::Decoder, input: &[u8], what: &dyn Fn() -> String) -> bool {
    let before = LIVE.with(Cell::get);
    PEAK.with(|p| p.set(before));
    let r = std::panic::catch_unwind(|| decode(input));
    let most = PEAK.with(Cell::get) - before;
    let kept = || {
        let p = std::env::temp_dir().join(format!("kagami-{target}.input"));
        let _ = std::fs::write(&p, input);
        format!("{target}, {}; the input is in {}", what(), p.display())
    };
    let bound = MEMORY_MAX + MEMORY_FOR_EACH_BYTE * input.len() as i64;
    assert!(most <= bound, "{most} bytes of memory, {bound} may be: {}", kept());
    r.unwrap_or_else(|_| panic!("{}", kept()))
}

/// How an input is put together, so that what is inside can be damaged and still be reached.
enum Shape {
    Frames(Vec<(FrameKind, Vec<u8>, Vec<u8>)>),
    Records([u8; file::HEADER_BYTES], Vec<Vec<u8>>),
    Plain,
}

fn shape(bytes: &[u8]) -> Shape {
    let frames = decoders::split(bytes);
    if !frames.is_empty() {
        let parts = |(f, h): &(&[u8], frame::Header)| {
            (h.kind, frame::head_part(f, h).to_vec(), frame::data_part(f, h).to_vec())
        };
        return Shape::Frames(frames.iter().map(parts).collect());
    }
    match bytes.first_chunk() {
        Some(h) if h.starts_with(b"KGM") => {
            let all = file::Records::new(&bytes[file::HEADER_BYTES..]).map(<[u8]>::to_vec).collect();
            Shape::Records(*h, all)
        }
        _ => Shape::Plain,
    }
}

/// A length, or what claims to be one, in the ways in which such are written.
fn lengths(n: u64) -> [Vec<u8>; 4] {
    let varint = match n {
        0..=250 => vec![n as u8],
        _ => [&[253][..], &n.to_le_bytes()].concat(),
    };
    let short = [&[251][..], &(n as u16).to_le_bytes()].concat();
    [varint, short, (n as u32).to_le_bytes().to_vec(), n.to_le_bytes().to_vec()]
}

/// Changes bytes in one of the ways that damage or malice has.
fn mutate(rng: &mut Rng, b: &mut Vec<u8>, others: &[Vec<u8>]) -> &'static str {
    let at = |rng: &mut Rng, n: usize| rng.below(n as u64 + 1) as usize;
    match rng.below(6) {
        0 if !b.is_empty() => {
            for _ in 0..=rng.below(3) {
                let i = rng.below(b.len() as u64) as usize;
                b[i] ^= 1 << rng.below(8);
            }
            "bits flipped"
        }
        1 => {
            b.truncate(at(rng, b.len()));
            "cut off"
        }
        2 => {
            let other = &others[rng.below(others.len() as u64) as usize];
            let (i, j) = (at(rng, b.len()), at(rng, other.len()));
            b.truncate(i);
            b.extend_from_slice(&other[j..]);
            "spliced"
        }
        3 => {
            let n = [0, 1, 2, 3, 4, u64::MAX, u64::MAX / 2, 1 << 32, 8 << 20][rng.below(9) as usize];
            let field = &lengths(n)[rng.below(4) as usize];
            let i = at(rng, b.len());
            let end = (i + if rng.one_in(2) { field.len() } else { 1 }).min(b.len());
            b.splice(i..end, field.iter().copied());
            "a length written over"
        }
        4 => {
            let n = 1 + rng.below(40) as usize;
            let more = rng.bytes(n);
            b.extend_from_slice(&more);
            "trailing bytes"
        }
        _ => {
            let (i, j) = (at(rng, b.len()), at(rng, b.len()));
            let part = b[i.min(j)..i.max(j)].to_vec();
            let k = at(rng, b.len());
            b.splice(k..k, part);
            "a part repeated"
        }
    }
}

/// Changes what is inside frames or records, and makes lengths and CRCs right again.
fn mutate_inside(rng: &mut Rng, seed: &[u8], others: &[Vec<u8>]) -> (Vec<u8>, &'static str) {
    match shape(seed) {
        Shape::Frames(mut all) => {
            let i = rng.below(all.len() as u64) as usize;
            let how = mutate(rng, &mut all[i].1, others);
            (all.iter().flat_map(|(k, h, d)| frame::build(*k, h, d)).collect(), how)
        }
        Shape::Records(header, mut all) if !all.is_empty() => {
            let i = rng.below(all.len() as u64) as usize;
            let how = mutate(rng, &mut all[i], others);
            let mut out = header.to_vec();
            all.iter().for_each(|r| file::put_record(&mut out, r));
            (out, how)
        }
        _ => {
            let mut b = seed.to_vec();
            let how = mutate(rng, &mut b, others);
            (b, how)
        }
    }
}

/// The insides of seeds, to splice with.
fn insides(all: &BTreeMap<String, Vec<u8>>) -> Vec<Vec<u8>> {
    let inside = |b: &Vec<u8>| match shape(b) {
        Shape::Frames(f) => f.into_iter().map(|(_, h, _)| h).collect(),
        Shape::Records(_, r) => r,
        Shape::Plain => vec![b.clone()],
    };
    all.values().flat_map(inside).collect()
}

#[test]
fn g7_g10_seeds_are_accepted_and_bad_ones_refused() {
    bless();
    for (target, decode) in decoders::ALL {
        let all = seeds(target);
        assert!(all.keys().any(|n| !n.starts_with("bad")), "no seed of {target}");
        for (name, bytes) in &all {
            let accepted = feed(target, decode, bytes, &|| name.clone());
            assert_eq!(accepted, !name.starts_with("bad"), "{target}/{name}");
        }
    }
}

#[test]
fn g7_what_a_crc_covers_is_refused_with_any_bit_changed() {
    let (mut inputs, begun) = (0, Instant::now());
    for (target, decode) in decoders::ALL {
        for (name, seed) in seeds(target).iter().filter(|(n, _)| !n.starts_with("bad")) {
            let (whole, records) = match shape(seed) {
                Shape::Plain => continue,
                Shape::Frames(_) => (decoders::split(seed).iter().map(|(f, _)| f.len()).sum(), false),
                Shape::Records(..) => (seed.len(), true),
            };
            let step = (whole * 8).div_ceil(1500);
            for bit in (0..whole * 8).step_by(step) {
                let mut b = seed.clone();
                b[bit / 8] ^= 1 << (bit % 8);
                feed(target, decode, &b, &|| format!("{name} with bit {bit} changed"));
                let good: usize = match records {
                    false => decoders::split(&b).iter().map(|(f, _)| f.len()).sum(),
                    true if bit / 8 < file::HEADER_BYTES => {
                        let magic = seed.first_chunk().unwrap();
                        assert!(file::check_header(&b, magic, 1, "file").is_err(), "{target}/{name} bit {bit}");
                        0
                    }
                    true => {
                        let mut r = file::Records::new(&b[file::HEADER_BYTES..]);
                        r.by_ref().for_each(drop);
                        file::HEADER_BYTES + r.good
                    }
                };
                // But for a check of a header that became 0: there is none then, and the rest is as it was.
                let unchecked = !records && b[bit / 8] == 0 && decoders::split(&b).iter().any(|(f, _)| f[3] == 0);
                assert!(good <= bit / 8 || unchecked, "{target}/{name}: what holds bit {bit} was taken");
                inputs += 1;
            }
        }
    }
    println!("g7: {inputs} inputs with one bit changed, {:.1} s", begun.elapsed().as_secs_f64());
    assert!(inputs > 10_000);
}

#[test]
fn g10_mutations_never_panic_nor_allocate_without_bound_nor_are_taken_for_something_else() {
    let (mut inputs, mut accepted, begun) = (0u64, 0u64, Instant::now());
    let mutations = support::env_number("KAGAMI_MUTATIONS", MUTATIONS);
    for (target, decode) in decoders::ALL {
        let all = seeds(target);
        let (raw, inside): (Vec<Vec<u8>>, _) = (all.values().cloned().collect(), insides(&all));
        let names: Vec<&String> = all.keys().collect();
        let mut rng = Rng::new(0x6b61_6761_6d69 ^ mutations);
        let mut run = |bytes: &[u8], what: &dyn Fn() -> String| {
            inputs += 1;
            accepted += u64::from(feed(target, decode, bytes, what));
        };
        for (name, seed) in &all {
            // Every cut of the small ones, some of the others.
            for cut in (0..seed.len()).step_by(seed.len() / 100 + 1) {
                run(&seed[..cut], &|| format!("{name} cut at {cut}"));
            }
            // Every length that could be there, in the first bytes.
            for at in 0..seed.len().min(24) {
                for n in [0, 1, 2, 3, 4, u64::MAX] {
                    let mut b = seed.clone();
                    let field = &lengths(n)[at % 4];
                    b.splice(at..(at + field.len()).min(seed.len()), field.iter().copied());
                    run(&b, &|| format!("{name} with {n} at {at}"));
                }
            }
        }
        for i in 0..mutations {
            let k = rng.below(raw.len() as u64) as usize;
            let mut b = raw[k].clone();
            let how = mutate(&mut rng, &mut b, &raw);
            run(&b, &|| format!("{}: {how} (mutation {i})", names[k]));
            let (b, how) = mutate_inside(&mut rng, &raw[k], &inside);
            run(&b, &|| format!("{}: inside, {how} (mutation {i})", names[k]));
        }
    }
    println!("g10: {inputs} mutated inputs, {accepted} of them accepted, {:.1} s", begun.elapsed().as_secs_f64());
    assert!(inputs > 50_000 || mutations < MUTATIONS, "{inputs}");
}

/// The worst that a message can make of its bytes: lists of what is large in memory and small on the wire.
#[test]
fn g10_a_message_of_the_largest_size_takes_a_bounded_multiple_of_it() {
    let kinds: u32 = 40;
    for kind in 0..kinds {
        // The number of the kind, then zeros: empty lists, absent options, in lists as long as can be claimed.
        for fill in [0u8, 1, 2] {
            let mut body = vec![kind as u8];
            while body.len() < 1 << 20 {
                body.extend([252, 0x00, 0x40, 0x00, 0x00]);
                body.extend(std::iter::repeat_n(fill, 40_000));
            }
            let f = frame::build(FrameKind::Msg, &body, b"");
            feed("messages", decoders::messages, &f, &|| format!("kind {kind}, filled with {fill}"));
        }
    }
}

fn epoch(number: u64, parent: u64) -> Epoch {
    Epoch { number, site: "tokyo".into(), random: 7, parent: Seq(parent), over: 0 }
}

/// Inputs that an earlier kagami took: each must be refused for good.
fn bad() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let file = |s: &str| Name::new(DirId::ROOT, s);
    let time = Time { sec: 1, nsec: 2 };
    let late = Time { sec: 1, nsec: 0x3fff_ffff };
    let op = |seq, op| Entry { seq: Seq(seq), vol: VolId(0), time, op }.frame(b"").unwrap();
    let build = |kind, body: Vec<u8>, data: &[u8]| frame::build(kind, &body, data);
    let begin = |from, base| TxnBegin { id: 1, from: Seq(from), base: Seq(base), common: Seq(0) };
    let commit = |to, epochs| codec::encode(&TxnCommit { id: 1, to: Seq(to), epochs }).unwrap();
    let staging = Name::new(DirId::STAGING, "x");
    let attr = Attr { mode: 0o644, ..Attr::default() };
    let mut checked = Msg::Ready { id: 1 }.frame().unwrap();
    checked[3] ^= 1;
    let ping = |head| Msg::Ping { head: Seq(head), trim: Seq(0), in_pair: true, unsent: 0, time }.frame().unwrap();
    let chmod = |at| Op::SetAttr { at, mode: Some(0), uid: None, gid: None, atime: None, mtime: None };
    let over = |flags| Op::Rename { from: file("a"), to: file("b"), flags, from_pmtime: time, to_pmtime: time };
    let fall = |mode, len| Op::Fallocate { at: file("f"), mode, off: 0, len, mtime: None };
    vec![
        ("frames", "bad-check", checked),
        ("messages", "bad-bytes-behind", build(FrameKind::Msg, codec::encode(&Msg::Ready { id: 1 }).unwrap(), b"more")),
        ("messages", "bad-position", ping(u64::MAX)),
        ("messages", "bad-link-name", {
            let links = vec![(VolId(0), kagami::base::LinkId(1), vec![file("../x")])];
            Msg::JournalPart { recs: vec![], links, last: true }.frame().unwrap()
        }),
        ("entries", "bad-time", op(5, Op::Unlink { at: file("f"), pmtime: late })),
        ("entries", "bad-position", op(u64::MAX, Op::Fsync)),
        ("entries", "bad-rename-flags", op(5, over(4))),
        ("entries", "bad-fallocate-mode", op(5, fall(64, 1))),
        ("entries", "bad-fallocate-length", op(5, fall(1, 0))),
        ("entries", "bad-epoch-after-itself", op(5, Op::EpochStart { epoch: epoch(2, 5) })),
        ("entries", "bad-epoch-number", op(5, Op::EpochStart { epoch: epoch(u64::MAX, 4) })),
        ("entries", "bad-own-directory", {
            op(5, Op::Create { at: staging, kind: kagami::format::op::NodeKind::File, attr, pmtime: time })
        }),
        ("entries", "bad-attributes-of-own-directory", op(5, chmod(Target::Dir(DirId::LOST)))),
        ("entries", "bad-begin", build(FrameKind::TxnBegin, codec::encode(&begin(1, u64::MAX)).unwrap(), b"")),
        ("entries", "bad-begin-data", build(FrameKind::TxnBegin, codec::encode(&begin(1, 2)).unwrap(), b"x")),
        ("entries", "bad-commit", build(FrameKind::TxnCommit, commit(u64::MAX, vec![]), b"")),
        ("entries", "bad-commit-epochs", build(FrameKind::TxnCommit, commit(9, vec![epoch(2, 3), epoch(1, 4)]), b"")),
        ("journal", "bad-name", {
            use kagami::pair::change::{Change, NsChange, Rec};
            use kagami::store::journal::{IntervalHead, Kind};
            let rec = Rec { seq: Seq(3), vol: VolId(0), change: Change::Ns(NsChange::Create { at: file("../../x") }) };
            let head = IntervalHead { number: 1, after: Seq(2), kind: Kind::Plain };
            let mut out = file::header(b"KGMJRNL\0", 1).to_vec();
            file::put_record(&mut out, &codec::encode(&head).unwrap());
            file::put_record(&mut out, &codec::encode(&rec).unwrap());
            out
        }),
        ("ids", "bad-name", {
            let rec = kagami::store::idtable::IdRec::LinkGone { at: file("..") };
            let mut out = file::header(b"KGMIDS\0\0", 1).to_vec();
            file::put_record(&mut out, &codec::encode(&rec).unwrap());
            out
        }),
    ]
}
/// Words of a peer are cut to what may be shown.
#[test]
fn g10_words_of_a_peer_are_of_bounded_length_and_steer_no_terminal() {
    let text = "\x1b]0;owned\x07".to_owned() + &"ä".repeat(1 << 20);
    let m = Msg::Reject { code: RejectCode::Busy, text, chain: vec![], head: Seq(0) };
    let f = m.frame().unwrap();
    let Msg::Reject { text, .. } = Msg::parse(&f, &frame::check(&f).unwrap()).unwrap() else { panic!() };
    assert!(text.len() <= kagami::base::limits::WORDS_BYTES_MAX && text.len() > 1000);
    assert!(text.starts_with(" ]0;owned ä") && !text.chars().any(char::is_control));
}

/// Texts that are valid seeds of what people write.
fn texts() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let example = |p: &str| std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(p)).unwrap();
    let json = |v: serde_json::Value| v.to_string().into_bytes();
    let token = "kgminvite1-aeawcaisorrxaorrgi3s4mbogaxdcorxgmydc2dp3ncjcvvdxhrbgl3frgya2xulyuzpwts2dchuzu7b42wqubmw7fgtce4x5icga5foujwn7knul7xst3m46f3hhces2x63nswmnivc4zvh7y";
    vec![
        ("config", "two-sites", example("examples/two-sites/tokyo.toml")),
        ("config", "three-sites", example("examples/three-sites/tokyo.toml")),
        ("config", "long", example("tests/decoders/site.toml")),
        ("environment", "plain", example("tests/decoders/environment")),
        ("applications", "two", example("tests/decoders/applications.toml")),
        ("enrolment", "token", token.into()),
        ("enrolment", "addr", "tcp:[::1]:7401".into()),
        ("control", "status", json(serde_json::json!({"command":"status"}))),
        ("control", "mount", json(serde_json::json!({"command":"mount","group":"g","volume":null,"dir":"/mnt"}))),
        ("control", "takeover", {
            json(serde_json::json!({"command":"takeover","group":"g","force":true,"dry_run":false,"at":"/mnt"}))
        }),
        ("control", "leg-add", json(serde_json::json!({"command":"leg-add","group":"g","regions":["/r"]}))),
    ]
}

/// With `KAGAMI_BLESS=1`: the corpora, from the golden files and from what is made here.
fn bless() {
    if std::env::var_os("KAGAMI_BLESS").is_none() {
        return;
    }
    let golden = |n: &str| std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(n)).unwrap();
    let put = |target: &str, name: &str, bytes: &[u8]| {
        std::fs::create_dir_all(corpus(target)).unwrap();
        std::fs::write(corpus(target).join(name), bytes).unwrap();
    };
    for (t, n, b) in decoders::seeds().into_iter().chain(bad()).chain(texts()) {
        put(t, n, &b);
    }
    for (i, (f, _)) in decoders::split(&golden("messages.frames")).iter().enumerate() {
        put("messages", &format!("{i:02}"), f);
    }
    let log = golden("queue.kl");
    for (i, (f, _)) in decoders::split(&log[file::HEADER_BYTES..]).iter().enumerate() {
        put("entries", &format!("{i:02}"), f);
    }
    put("entries", "log", &log);
    put("frames", "messages", &golden("messages.frames"));
    for (target, files) in [
        ("journal", &["journal-0000000000000001.kj", "journal-0000000000000002.kj"][..]),
        ("pair_tables", &["pair"]),
        ("state_files", &["identity", "state", "role", "votes", "doubts", "active", "before0"]),
        ("ids", &["ids"]),
        ("manifests", &["manifest-0.loss", "manifest-1.loss", "manifest-2.loss", "manifest-3.loss"]),
    ] {
        files.iter().for_each(|n| put(target, n, &golden(n)));
    }
}
