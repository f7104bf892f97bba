//! Greetings of a known peer that are wrong.

use super::bed::{Bed, Peer, create, entry, file};
use super::case;
use kagami::base::{Epoch, Seq};
use kagami::format::msg::{Hello, Msg, Offered, PairOrder, RejectCode, Wish};
use std::io::{Read, Write};

type Change = Box<dyn Fn(&mut Hello)>;

pub fn run(bed: &mut Bed, _seed: u64) {
    let epoch = |number, parent| Epoch { number, site: "evil".into(), random: 1, parent: Seq(parent), over: 0 };
    let newest = bed.chain[0].number;
    let old = move |h: &mut Hello| h.chain = vec![epoch(newest - 1, 1)];
    // What is answered with a refusal: its code, and words of it.
    let refused: Vec<(&str, RejectCode, &str, Change)> = vec![
        ("protocol version 0", RejectCode::Version, "version 0", Box::new(|h| h.version = 0)),
        ("protocol version 2^32-1", RejectCode::Version, "upgrade", Box::new(|h| h.version = u32::MAX)),
        ("another site's name", RejectCode::UnknownPeer, "does not know", Box::new(|h| h.site = "honest".into())),
        ("the node's own name", RejectCode::UnknownPeer, "does not know", Box::new(|h| h.site = "victim".into())),
        ("no name", RejectCode::UnknownPeer, "does not know", Box::new(|h| h.site.clear())),
        ("a path as its name", RejectCode::UnknownPeer, "does not know", Box::new(|h| h.site = "../evil".into())),
        ("a group that is not there", RejectCode::UnknownPair, "has no pair", Box::new(|h| h.group = "x".into())),
        ("a path as a group", RejectCode::UnknownPair, "has no pair", Box::new(|h| h.group = "../prey".into())),
        ("the group of others", RejectCode::UnknownPair, "has no pair", Box::new(|h| h.group = "good".into())),
        ("a pair that is not there", RejectCode::UnknownPair, "has no pair", Box::new(|h| h.pair = "async".into())),
        ("another group of that name", RejectCode::OtherGroup, "another group", Box::new(|h| h.group_id ^= 1)),
        ("no volume", RejectCode::UnknownPair, "has no counterpart", Box::new(|h| h.volumes.clear())),
        ("an unknown port", RejectCode::UnknownPair, "p9/0", Box::new(|h| h.volumes[0].port = "p9".into())),
        ("an unknown LU", RejectCode::UnknownPair, "p0/4294967295", Box::new(|h| h.volumes[0].lu = u32::MAX)),
        ("a volume too many", RejectCode::UnknownPair, "p1/0", {
            Box::new(|h| {
                let more = Offered { port: "p1".into(), ..h.volumes[0].clone() };
                h.volumes.push(more);
            })
        }),
        (
            "no config definition",
            RejectCode::DoesNotFit,
            "no config definition",
            Box::new(|h| h.volumes[0].head = None),
        ),
        ("a config definition that is none", RejectCode::DoesNotFit, "decoding", {
            Box::new(|h| h.volumes[0].head = Some(vec![0xff; 64]))
        }),
        ("an old epoch", RejectCode::StalePrimary, "newer primary", Box::new(old)),
        ("a secondary that says it is primary", RejectCode::StalePrimary, "newer epoch", {
            Box::new(move |h| (h.group, h.head) = ("lure".into(), Seq(1 << 40)))
        }),
        ("a hand-over by a secondary", RejectCode::Fault, "", Box::new(|h| h.wish = Wish::HandOver)),
        ("a hand-over by force", RejectCode::Fault, "", Box::new(|h| h.wish = Wish::HandOverNow)),
        ("rest, for the group of others", RejectCode::UnknownPair, "has no pair", {
            Box::new(|h| (h.group, h.wish) = ("good".into(), Wish::Rest(true)))
        }),
        ("lead, for the group of others", RejectCode::UnknownPair, "has no pair", {
            Box::new(|h| (h.group, h.wish) = ("good".into(), Wish::Lead))
        }),
        ("an order for the pair of others", RejectCode::UnknownPair, "has no pair", {
            Box::new(|h| (h.group, h.wish) = ("good".into(), Wish::Order(PairOrder::Delete)))
        }),
        ("a vote where there are none", RejectCode::UnknownPair, "takeover", Box::new(|h| h.wish = Wish::Vote)),
    ];
    for (name, code, words, change) in refused {
        case(bed, name, &[], |bed| match bed.greet(&change) {
            Ok((_, Msg::Reject { code: c, text, .. })) => {
                let expected = c == code || code == RejectCode::Fault && c == RejectCode::Busy;
                assert!(expected && text.contains(words), "{name}: {c:?} {text}");
            }
            other => panic!("{name}: {:?}", other.map(|(_, m)| m)),
        });
    }
    // What is no greeting: the link ends, and the log has why.
    let broken: Vec<(&str, &str, Change)> = vec![
        ("a falling history", "epoch chain", Box::new(move |h| h.chain = vec![epoch(5, 0), epoch(4, 1)])),
        ("a history that begins after its end", "epoch chain", Box::new(move |h| h.chain = vec![epoch(5, 1 << 50)])),
        ("2000 epochs", "epoch chain", Box::new(move |h| h.chain = (1..2001).map(|n| epoch(n, n)).collect())),
        ("epoch 0", "epoch chain", Box::new(move |h| h.chain = vec![epoch(0, 0)])),
        ("epoch 2^64-1", "epoch chain", Box::new(move |h| h.chain = vec![epoch(u64::MAX, 0)])),
        ("position 2^64-1", "cannot be", Box::new(|h| h.head = Seq(u64::MAX))),
        ("a name of a megabyte", "cannot be", Box::new(|h| h.site = "x".repeat(1 << 20))),
        ("a name that steers a terminal", "cannot be", Box::new(|h| h.group = "\x1b[2J".into())),
        ("100,000 volumes", "", {
            Box::new(|h| h.volumes = vec![Offered { name: "v".into(), port: "p".into(), lu: 0, head: None }; 100_000])
        }),
    ];
    for (name, words, change) in broken {
        case(bed, name, &["an incoming link ended", words], |bed| {
            let mut p = Peer::new(bed.dial().expect("a link"));
            let mut hello = bed.hello();
            change(&mut hello);
            p.say(&Msg::Hello(hello)).expect("a greeting");
            p.end(name);
        });
    }
    unix(bed);
}

/// The Unix socket, where the kernel vouches for the user and the name is the peer's own word.
fn unix(bed: &mut Bed) {
    let greeting = Msg::Hello(bed.hello()).frame().expect("a greeting");
    let mut stranger = bed.hello();
    stranger.site = "stranger".into();
    let mut outside = bed.hello();
    outside.group = "../good".into();
    let hello = |h: Hello| Msg::Hello(h).frame().expect("a greeting");
    let all: Vec<(&str, &str, Vec<u8>)> = vec![
        ("unix: random bytes", "bad magic", vec![0xa5; 5000]),
        ("unix: half a greeting", "in the middle of a frame", greeting[..greeting.len() / 2].to_vec()),
        ("unix: TLS", "bad magic", vec![22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 0, 0, 0, 0, 0, 0]),
        ("unix: a frame of 4 GiB", "more than", [&greeting[..3], &[0], &[0xff; 12]].concat()),
        ("unix: a length that is not the one that was written", "header CRC", [&greeting[..4], &[1; 12]].concat()),
        ("unix: an entry before the greeting", "not a greeting", entry(5, create(file("x")), b"")),
        ("unix: a site that is not known", "does not know site", hello(stranger)),
        ("unix: a group that is not there", "has no pair", hello(outside)),
    ];
    for (name, words, bytes) in all {
        case(bed, name, &["an incoming link ended", words], |bed| {
            let socket = bed.path("victim/run/node.sock");
            let mode = std::os::unix::fs::PermissionsExt::mode(&socket.metadata().expect("a socket").permissions());
            assert_eq!(mode & 0o777, 0o600, "{name}");
            let mut s = std::os::unix::net::UnixStream::connect(&socket).expect("the node's socket");
            let _ = s.write_all(&bytes);
            let _ = s.shutdown(std::net::Shutdown::Write);
            let _ = s.read_to_end(&mut Vec::new());
        });
    }
}
