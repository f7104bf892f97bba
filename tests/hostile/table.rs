//! The table of protocol states and kinds of messages: in each state the node gets each kind, damaged in several ways that a
//! CRC does not tell. A fuzzed message may be one that is allowed; then what it says of `prey` is done, and nothing else.

use super::bed::{Bed, Peer, create, entry, file};
use super::support::Rng;
use kagami::base::Seq;
use kagami::format::codec;
use kagami::format::frame::{self, FrameKind};
use kagami::format::msg::{Msg, Wish};
use kagami::format::op::TxnBegin;
use std::path::Path;
use std::time::Instant;

/// Fuzzed messages in each cell.
const EACH: usize = 4;

/// What the node takes the link for when the fuzzed message comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nobody has greeted.
    Fresh,
    /// A session: entries are expected.
    Following,
    /// A first copy is under way.
    Copying,
    /// A resync is being staged.
    Staging,
    /// A look at what is there.
    Looking,
}

const STATES: [State; 5] = [State::Fresh, State::Following, State::Copying, State::Staging, State::Looking];

impl State {
    /// A link on which the node is in this state. `None`: an earlier message left the node so that it refuses.
    fn enter(self, bed: &Bed) -> Option<Peer> {
        let wish = if self == State::Looking { Wish::Look } else { Wish::Link };
        let mut p = match self {
            State::Fresh => return bed.dial().ok().map(Peer::new),
            _ => match bed.greet(|h| h.wish = wish) {
                Ok((p, Msg::Welcome(_))) => p,
                _ => return None,
            },
        };
        if matches!(self, State::Copying | State::Staging) {
            let first_copy = self == State::Copying;
            p.say(&Msg::Prepare { id: 5, from: Seq(0), bytes: 0, first_copy }).ok()?;
            p.await_msg(|m| matches!(m, Msg::Ready { .. }).then_some(())).ok()?;
        }
        if self == State::Staging {
            let begin = TxnBegin { id: 6, from: bed.head, base: bed.head, common: bed.head };
            p.w.send(&frame::build(FrameKind::TxnBegin, &codec::encode(&begin).ok()?, b"")).ok()?;
            p.w.send(&entry(0, create(file("staged")), b"")).ok()?;
        }
        Some(p)
    }
}

/// One frame of each kind, from the corpora of the fuzz targets.
fn kinds() -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let read = |target: &str, name: String| {
        let p = dir.join(target).join(&name);
        (format!("{target}/{name}"), std::fs::read(&p).unwrap_or_else(|e| panic!("{}: {e}", p.display())))
    };
    let messages = (0..35).map(|n| read("messages", format!("{n:02}")));
    messages.chain((0..27).step_by(3).map(|n| read("entries", format!("{n:02}")))).collect()
}

fn fuzz(rng: &mut Rng, seed: &[u8]) -> Vec<u8> {
    let head = frame::check(seed).expect("a seed");
    let (mut body, data) = (frame::head_part(seed, &head).to_vec(), frame::data_part(seed, &head).to_vec());
    for _ in 0..=rng.below(3) {
        let i = rng.below(body.len() as u64 + 1) as usize;
        match rng.below(5) {
            0 => body.truncate(i),
            1 => body.insert(i, rng.next() as u8),
            2 if i < body.len() => body[i] = [0, 1, 2, 3, 4, 250, 251, 252, 253, 255][rng.below(10) as usize],
            3 if i < body.len() => body[i] ^= 1 << rng.below(8),
            _ => drop(body.splice(i..i, [&[253][..], &u64::MAX.to_le_bytes()].concat())),
        }
    }
    frame::build(head.kind, &body, &data)
}

pub fn run(bed: &mut Bed, seed: u64) {
    let mut rng = Rng::new(seed);
    let kinds = kinds();
    for state in STATES {
        let begun = Instant::now();
        bed.begin();
        let mut entered = 0;
        for (kind, bytes) in &kinds {
            let Some(mut p) = state.enter(bed) else { continue };
            entered += 1;
            for _ in 0..EACH {
                if p.w.send(&fuzz(&mut rng, bytes)).is_err() {
                    break;
                }
            }
            // An honest message behind it: what came before it was read when this is answered, or the link has ended.
            let _ = p.say(&Msg::JournalAsk { since: Seq(u64::MAX), lids: vec![] });
            let _ = p.await_msg(|m| matches!(m, Msg::JournalPart { .. }).then_some(()));
            assert!(bed.pair("good").is_some(), "{state:?} {kind}: the node does not answer");
        }
        assert!(entered * 10 >= kinds.len() * 9, "{state:?}: only {entered} of {} kinds", kinds.len());
        // Whatever was allowed of it is undone by a copy of everything.
        bed.first_copy();
        bed.settle_prey();
        bed.check(&format!("{state:?}, {entered} kinds of messages"), begun, &["an incoming link ended"]);
        bed.cases += entered - 1;
    }
}
