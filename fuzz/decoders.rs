//! Every decoder of what comes from a disk, a peer, a volume or a person, each as a function of bytes: shared by the fuzz
//! targets and by `tests/decoders.rs`. A function says whether the bytes were accepted, and panics on a wrong acceptance:
//! what is accepted must be equal after it was encoded and decoded again, and within the bounds that it promises.

use kagami::format::frame::{self, FrameKind, Header};
use kagami::format::msg::Msg;
use kagami::format::op::{Entry, TxnBegin, TxnCommit};
use kagami::format::{codec, file, loss};
use kagami::launch::{apps, env};
use kagami::net::enrol::{EnrolReply, EnrolRequest};
use kagami::net::{Addr, PeerKey, Token};
use kagami::node::config::Config;
use kagami::node::control::Request;
use kagami::node::mounter::MountOptions;
use kagami::node::pairs::Ends;
use kagami::pair::chain::Chain;
use kagami::pair::change::Rec;
use kagami::pair::state::State;
use kagami::pair::vote::Record;
use kagami::store::activity;
use kagami::store::before::Was;
use kagami::store::doubt::Doubts;
use kagami::store::head::ConfigDef;
use kagami::store::idtable::IdRec;
use kagami::store::region::Identity;
use kagami::store::{files, journal, replica};
use std::path::Path;

/// A decoder: true when it accepted the bytes.
pub type Decoder = fn(&[u8]) -> bool;

/// All of them, by the names of their targets and corpora.
pub const ALL: [(&str, Decoder); 14] = [
    ("frames", frames),
    ("messages", messages),
    ("entries", entries),
    ("journal", journal_file),
    ("heads", heads),
    ("pair_tables", pair_tables),
    ("state_files", state_files),
    ("ids", ids),
    ("manifests", manifests),
    ("enrolment", enrolment),
    ("environment", environment),
    ("applications", applications),
    ("config", config),
    ("control", control),
];

/// Encoded, decoded and encoded again it is the same.
fn same<T: bincode::Encode + bincode::Decode<()>>(value: &T) {
    let once = codec::encode(value).expect("what was decoded can be encoded");
    let again: T = codec::decode(&once).expect("what was encoded can be decoded");
    assert_eq!(codec::encode(&again).expect("and again"), once);
}

/// The frames of a stream, each checked; what follows a bad one is not looked at, as on a link.
pub fn split(mut bytes: &[u8]) -> Vec<(&[u8], Header)> {
    let mut out = Vec::new();
    while let Some(h) = bytes.first_chunk::<{ frame::HEADER_BYTES }>() {
        let Ok(head) = frame::parse_header(h) else { break };
        let Some(one) = bytes.get(..frame::HEADER_BYTES + head.len as usize) else { break };
        let Ok(checked) = frame::check(one) else { break };
        assert_eq!(checked, head);
        out.push((one, head));
        bytes = &bytes[one.len()..];
    }
    out
}

/// Frames: what is accepted is exactly what a sender would build, one of an earlier version without a check of the header.
pub fn frames(bytes: &[u8]) -> bool {
    let all = split(bytes);
    for (f, h) in &all {
        let mut again = frame::build(h.kind, frame::head_part(f, h), frame::data_part(f, h));
        if f[3] == 0 {
            again[3] = 0;
        }
        assert_eq!(again, *f);
    }
    !all.is_empty()
}

/// Messages between nodes, with the records of a journal inside them.
pub fn messages(bytes: &[u8]) -> bool {
    let mut accepted = false;
    for (f, h) in split(bytes) {
        let Ok(m) = Msg::parse(f, &h) else { continue };
        let again = m.frame().expect("what came can be sent");
        let head = frame::check(&again).expect("and is a frame");
        assert_eq!(Msg::parse(&again, &head).expect("and a message"), m);
        if let Msg::JournalPart { recs, .. } = &m {
            recs.iter().filter_map(|r| Rec::parse(r).ok()).for_each(|r| same(&r));
        }
        if let Msg::Hello(hello) = m {
            let _ = Chain::from_epochs(hello.chain).validate(hello.head);
        }
        accepted = true;
    }
    accepted
}

/// What can be in an entry log, or come as part of it.
pub fn entries(bytes: &[u8]) -> bool {
    let bytes = match file::check_header(bytes, b"KGMQUEU\0", 1, "log") {
        Ok(_) => &bytes[file::HEADER_BYTES..],
        Err(_) => bytes,
    };
    let mut accepted = false;
    for (f, h) in split(bytes) {
        accepted |= match h.kind {
            FrameKind::Entry | FrameKind::Staged => Entry::parse(f, &h).is_ok_and(|e| {
                let again = e.frame(frame::data_part(f, &h)).expect("an entry can be sent again");
                let head = frame::check(&again).expect("and is a frame");
                assert_eq!(Entry::parse(&again, &head).expect("and an entry"), e);
                for n in e.op.names().into_iter().flatten() {
                    assert!(n.is_valid() && !n.name.contains(&b'/') && n.name != b"..");
                }
                true
            }),
            FrameKind::TxnBegin => TxnBegin::parse(f, &h).is_ok_and(|b| {
                same(&b);
                true
            }),
            FrameKind::TxnCommit => TxnCommit::parse(f, &h).is_ok_and(|c| {
                same(&c);
                let to = c.to;
                Chain::from_epochs(c.epochs).validate(to).is_ok()
            }),
            FrameKind::Msg => false,
        };
    }
    accepted
}

/// An interval of the change journal.
pub fn journal_file(bytes: &[u8]) -> bool {
    let Ok(Some((head, recs))) = journal::parse_interval(bytes, "journal") else { return false };
    same(&head);
    recs.iter().for_each(same);
    true
}

/// The head of a region (the label of its volume), as the file is and as it travels.
pub fn heads(bytes: &[u8]) -> bool {
    let mut accepted = false;
    for def in [ConfigDef::from_file(bytes), ConfigDef::from_body(bytes)].into_iter().flatten() {
        same(&def);
        assert_eq!(ConfigDef::from_body(&def.body().expect("it travels")).expect("and arrives"), def);
        accepted = true;
    }
    accepted
}

/// A state file of this magic.
fn state_file<T: bincode::Encode + bincode::Decode<()>>(bytes: &[u8], magic: &[u8; 8]) -> bool {
    let Ok(v) = files::parse::<T>(bytes, magic, 1, "file") else { return false };
    same(&v);
    true
}

/// The pair table.
pub fn pair_tables(bytes: &[u8]) -> bool {
    state_file::<(State, String, Vec<Ends>, bool)>(bytes, b"KGMPAIR\0")
}

type Role = (bool, Vec<(u16, Vec<u8>, MountOptions)>, Vec<Vec<Vec<u8>>>, Vec<u32>, u32, Vec<(u64, String)>, u8);

/// The other small files of a region and of a node.
pub fn state_files(bytes: &[u8]) -> bool {
    let mut ok = state_file::<Identity>(bytes, b"KGMREGN\0");
    ok |= state_file::<replica::State>(bytes, b"KGMSTAT\0");
    ok |= state_file::<Role>(bytes, b"KGMROLE\0");
    ok |= state_file::<(Option<Record>, bool)>(bytes, b"KGMVOTE\0");
    ok |= state_file::<Doubts>(bytes, b"KGMDOUB\0");
    ok |= activity::newest(bytes).is_some_and(|r| {
        same(&r);
        true
    });
    // The number of the checkpoint, then what names were.
    let number = |b: &[u8]| codec::decode::<u64>(b).map(|n| (Some(n), None));
    let was = |b: &[u8]| codec::decode::<Was>(b).map(|w| (None, Some(w)));
    ok |= records(bytes, b"KGMBFOR\0", |b| number(b).or_else(|_| was(b)));
    ok
}

/// A file of records, each decoded by `parse`.
fn records<T: bincode::Encode + bincode::Decode<()>>(
    bytes: &[u8],
    magic: &[u8; 8],
    parse: impl Fn(&[u8]) -> kagami::base::Result<T>,
) -> bool {
    if file::check_header(bytes, magic, 1, "file").is_err() {
        return false;
    }
    let mut all = file::Records::new(&bytes[file::HEADER_BYTES..]);
    let mut n = 0;
    for r in all.by_ref() {
        let Ok(v) = parse(r) else { return false };
        same(&v);
        n += 1;
    }
    assert!(all.good <= bytes.len() - file::HEADER_BYTES);
    n > 0
}

/// The table of directory ids.
pub fn ids(bytes: &[u8]) -> bool {
    records(bytes, b"KGMIDS\0\0", IdRec::parse)
}

/// The manifest of losing versions.
pub fn manifests(bytes: &[u8]) -> bool {
    let Ok((event, lost)) = loss::parse(bytes, "manifest") else { return false };
    assert!(lost.iter().all(loss::Lost::is_valid));
    let again = loss::manifest(&event, &lost).expect("it can be written");
    assert_eq!(loss::parse(&again, "manifest").expect("and read"), (event, lost));
    true
}

/// What is pasted, typed or sent to make two nodes known to each other.
pub fn enrolment(bytes: &[u8]) -> bool {
    let mut accepted = false;
    for (f, h) in split(bytes) {
        if let Ok(r) = codec::decode::<EnrolRequest>(frame::head_part(f, &h)) {
            same(&r);
            accepted = true;
        }
        if let Ok(r) = codec::decode::<EnrolReply>(frame::head_part(f, &h)) {
            same(&r);
            accepted = true;
        }
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return accepted };
    if let Ok(t) = text.parse::<Token>() {
        let again = t.encode().expect("a token can be shown");
        assert_eq!(again.parse::<Token>().expect("and pasted").encode().expect("and shown"), again);
        accepted = true;
    }
    if let Ok(k) = text.parse::<PeerKey>() {
        assert_eq!(k.to_string().parse::<PeerKey>().expect("a key can be pasted"), k);
        accepted = true;
    }
    if let Ok(a) = text.parse::<Addr>() {
        assert_eq!(a.to_string().parse::<Addr>().expect("an address can be pasted"), a);
        accepted = true;
    }
    accepted
}

/// The environment file of a volume.
pub fn environment(bytes: &[u8]) -> bool {
    let mut vars = env::Vars::new();
    if env::parse("env", bytes, &[], &mut vars).is_err() {
        return false;
    }
    assert!(vars.len() <= env::KEYS_MAX);
    assert!(vars.values().map(|v| v.value.len()).sum::<usize>() <= env::TOTAL_BYTES_MAX);
    let mut text = String::new();
    for (name, v) in &vars {
        assert!(env::is_name(name) && env::refused(name, &[]).is_none(), "{name}");
        assert!(v.value.len() <= env::VALUE_BYTES_MAX && !v.value.contains('\0'));
        text += &format!("{name}={}\n", env::quote(&v.value));
    }
    if text.len() as u64 <= env::FILE_BYTES_MAX {
        let mut again = env::Vars::new();
        env::parse("env", text.as_bytes(), &[], &mut again).expect("what it means can be written down");
        let plain = |v: &env::Vars| v.iter().map(|(n, v)| (n.clone(), v.value.clone())).collect::<Vec<_>>();
        assert_eq!(plain(&again), plain(&vars));
    }
    true
}

/// A definition file of applications.
pub fn applications(bytes: &[u8]) -> bool {
    let vars = env::Vars::new();
    let Ok(all) = apps::parse(Path::new("/volume/app.toml"), bytes, &vars, &[]) else { return false };
    for a in &all {
        assert!(a.command.is_absolute() && a.dir.is_absolute(), "{a:?}");
        assert!(a.args.iter().all(|x| !x.contains('\0')) && a.env.keys().all(|k| env::is_name(k)), "{a:?}");
    }
    true
}

/// A site file: what is read of it can be written as one, and means the same.
pub fn config(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let path = Path::new("/nowhere/site.toml");
    let Ok(c) = Config::parse(path, text) else { return false };
    let once = c.to_toml();
    let again = Config::parse(path, &once).unwrap_or_else(|e| panic!("{e}\n{once}"));
    assert_eq!(again.to_toml(), once);
    true
}

/// A request on the control socket.
pub fn control(bytes: &[u8]) -> bool {
    let Ok(r) = serde_json::from_slice::<Request>(bytes) else { return false };
    let text = serde_json::to_string(&r).expect("a request can be sent");
    assert_eq!(serde_json::from_str::<Request>(&text).expect("and read"), r);
    true
}

/// Seeds that are real encodings and are not among the golden files: name of the target, name of the seed, bytes.
pub fn seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let def = ConfigDef { mount: b"/srv/papers".to_vec(), capacity: 1 << 30, emulation: "raid1".into() };
    let body = def.body().expect("a definition");
    let request = EnrolRequest {
        version: 1,
        site: "osaka".into(),
        addr: "tcp:osaka:7401".into(),
        key: [3; 32],
        invite: codec::decode(&[7; 16]).expect("an id of an invitation"),
        proof: [5; 32],
    };
    let reply = EnrolReply { version: 1, accepted: false, site: "tokyo".into(), reason: "spent".into() };
    let message = |b: Vec<u8>| frame::build(FrameKind::Msg, &b, b"");
    vec![
        ("heads", "file", file::whole(b"KGMHEAD\0", 1, &body)),
        ("heads", "body", body),
        ("enrolment", "request", message(codec::encode(&request).expect("a request"))),
        ("enrolment", "reply", message(codec::encode(&reply).expect("a reply"))),
    ]
}
