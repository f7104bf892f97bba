//! A secondary with the right key that answers what cannot be. The node dials but once a second, so this goes on beside
//! other cases; what is looked at after each of those is looked at for these as well.

use super::bed::{Bed, Peer, SOON, create, entry, file, pair_of};
use super::support::proc;
use kagami::base::{Epoch, Seq};
use kagami::format::frame::{self, FrameKind};
use kagami::format::msg::{CopyState, Hello, Msg, RejectCode, Welcome};
use kagami::net::{Addr, Identity, Listener};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

fn welcome(hello: &Hello) -> Welcome {
    Welcome {
        version: hello.version,
        site: "evil".into(),
        group_id: hello.group_id,
        chain: vec![],
        head: Seq(0),
        settled: Seq(0),
        journal_after: Seq(0),
        copy: CopyState::Empty,
        exact: true,
        cuts: vec![],
        torn: false,
        yields: false,
    }
}

/// Waits until the node dials and gives its link with its greeting.
#[track_caller]
fn dialled(listener: &Listener) -> (Peer, Hello) {
    loop {
        let Ok(link) = listener.accept().and_then(|i| i.handshake()) else { continue };
        let mut p = Peer::new(link);
        match p.hear() {
            Ok(Msg::Hello(h)) if h.group == "lure" && h.wish == kagami::format::msg::Wish::Link => return (p, h),
            _ => {}
        }
    }
}

type Script = Box<dyn FnOnce(&mut Peer, &Hello)>;

/// Welcomes the node and lets it begin a first copy.
fn begin_copy(p: &mut Peer, h: &Hello) {
    p.say(&Msg::Welcome(welcome(h))).expect("a welcome");
    loop {
        let answer = match p.hear().expect("a copy") {
            Msg::Survey { id } => Msg::Surveyed { id },
            Msg::Prepare { id, .. } => Msg::Ready { id },
            _ => continue,
        };
        p.say(&answer).expect("ready");
        if matches!(answer, Msg::Ready { .. }) {
            return;
        }
    }
}

/// Begins; gives the thread, which ends with the number of its cases.
pub fn begin(bed: &Bed) -> JoinHandle<usize> {
    let path = bed.path("evil.pem");
    bed.evil.save(&path).expect("an identity file");
    let own = Identity::load(&path).expect("an identity");
    let addr: Addr = format!("127.0.0.1:{}", bed.lair).parse().expect("an address");
    let listener = Listener::bind(&addr, &Arc::new(own)).expect("the port of the evil site");
    let state_dir = bed.state_dir();
    std::thread::spawn(move || scripts(&listener, &state_dir))
}

fn scripts(listener: &Listener, state_dir: &Path) -> usize {
    let say = |m: Msg| -> Script { Box::new(move |p, _| p.say(&m).expect("an answer")) };
    let raw = |b: Vec<u8>| -> Script { Box::new(move |p, _| p.w.send(&b).expect("bytes")) };
    let change = |f: fn(&mut Welcome)| -> Script {
        Box::new(move |p, h| {
            let mut w = welcome(h);
            f(&mut w);
            p.say(&Msg::Welcome(w)).expect("a welcome");
        })
    };
    let copying = |m: Msg| -> Script {
        Box::new(move |p, h| {
            begin_copy(p, h);
            p.say(&m).expect("an answer");
        })
    };
    let reject = |code, text: &str| Msg::Reject { code, text: text.into(), chain: vec![], head: Seq(0) };
    let epoch = |number| Epoch { number, site: "evil".into(), random: 3, parent: Seq(0), over: 0 };
    let ack = |n| Msg::Ack { received: Seq(n), durable: Seq(n), applied: Seq(n), checkpoint: Seq(n), confirmed: None };
    let terminal = format!("\x1b[2J{}", "owned ".repeat(500_000));
    // What is done, and what the pair's reason has of it then.
    let all: Vec<(&str, &str, Script)> = vec![
        ("an entry for a welcome", "something else than a welcome", raw(entry(1, create(file("x")), b""))),
        ("ready for a welcome", "something else than a welcome", say(Msg::Ready { id: 1 })),
        ("no frame for a welcome", "bad magic", raw(vec![7; 100])),
        ("a welcome of 5 MiB", "too large", raw(frame::build(FrameKind::Msg, &vec![1; 5 << 20], b""))),
        ("a newer primary that is not shown", "do not show one", say(reject(RejectCode::StalePrimary, "I am primary"))),
        ("a newer primary of an older history", "do not show one", {
            let (code, text, chain) = (RejectCode::StalePrimary, "I am".to_owned(), vec![epoch(2), epoch(1)]);
            say(Msg::Reject { code, text, chain, head: Seq(1 << 40) })
        }),
        ("a refusal of 3 MB for a terminal", "owned", say(reject(RejectCode::Busy, &terminal))),
        ("a welcome at position 2^64-1", "cannot be", change(|w| w.head = Seq(u64::MAX))),
        ("a welcome of a falling history", "epoch chain", {
            change(|w| {
                let e = |n| Epoch { number: n, site: "evil".into(), random: 3, parent: Seq(0), over: 0 };
                w.chain = vec![e(3), e(2)];
            })
        }),
        ("received what was never sent", "the last one is", copying(ack(1 << 40))),
        ("durable at 2^64-1", "the last one is", copying(ack(u64::MAX))),
        ("an entry from the secondary", "an entry came from the secondary", {
            Box::new(|p, h| {
                begin_copy(p, h);
                p.w.send(&entry(1, create(file("x")), b"")).expect("an entry");
            })
        }),
        ("a path in a directory table", "cannot be", {
            copying(Msg::DirsPart { id: 1, dirs: vec![(kagami::base::DirId(9), file("../x"))], last: true })
        }),
        ("an answer that nobody asked for", "unexpected", copying(Msg::Answer { id: 77, tolds: vec![] })),
        ("10,000 answers that nobody asked for", "", {
            Box::new(|p, h| {
                begin_copy(p, h);
                let m = Msg::ListPart { id: 77, lists: vec![(kagami::base::DirId(1), None); 20_000], last: false };
                let f = m.frame().expect("a message");
                let _ = p.w.set_write_timeout(Some(std::time::Duration::from_secs(1)));
                for _ in 0..10_000 {
                    if p.w.send(&f).is_err() {
                        break;
                    }
                }
            })
        }),
        ("a suspension of 3 MB for a terminal", "owned", copying(Msg::Suspend { reason: terminal.clone() })),
        (
            "a secondary that says nothing",
            "",
            Box::new(|p, h| {
                begin_copy(p, h);
                p.end("a secondary that says nothing");
            }),
        ),
    ];
    let n = all.len();
    for (name, reason, script) in all {
        let (mut p, hello) = dialled(listener);
        assert!(hello.volumes.len() == 1 && hello.volumes[0].name == "vol0");
        script(&mut p, &hello);
        let mut last = serde_json::Value::Null;
        let told = proc::wait_until(SOON, || {
            last = pair_of(state_dir, "lure").unwrap_or_default();
            last["reason"].as_str().is_some_and(|r| r.contains(reason))
        });
        assert!(told, "{name}: {last:#}");
        let shown = last["reason"].as_str().unwrap_or_default();
        assert!(shown.len() < 10_000 && !shown.chars().any(char::is_control), "{name}: {shown:?}");
        assert!(matches!(last["direction"].as_str(), Some("out")), "{name}: it is primary still: {last:#}");
    }
    n
}
