//! Every state with every event in every mode, against rules that are written without the table.

use super::*;
use crate::format::codec;

const MODES: [Mode; 2] = [Mode::Sync, Mode::Async];

fn states() -> Vec<State> {
    let mut all: Vec<State> = Phase::ALL.iter().map(|p| p.state(LinkLost)).collect();
    for r in Reason::ALL {
        all.extend([State::Psue(r), State::PsueCopy(r)]);
    }
    all
}

/// What MS-2, MS-5 and MS-20 say, state by state; nothing where the transition is prohibited.
fn expected(s: State, e: Event, mode: Mode) -> Option<State> {
    use State::*;
    if s == Suspending && mode == Mode::Sync {
        return None;
    }
    let first = matches!(s, Copy | PsusCopy | PsueCopy(_));
    let suspended = if first { PsusCopy } else { Psus };
    let faulted = |r| if first { PsueCopy(r) } else { Psue(r) };
    let stuck = s.reason() == Some(SplitBrain);
    Some(match e {
        Create { no_copy } if s == Smpl => {
            if no_copy {
                Pair
            } else {
                Copy
            }
        }
        _ if s == Smpl => return None,
        Delete => Smpl,
        Split => match s {
            Psus | PsusCopy | Suspending => return None,
            Pair if mode == Mode::Async => Suspending,
            _ => suspended,
        },
        Resync => match s {
            Psus | Psue(_) => CopyResync,
            PsusCopy | PsueCopy(_) => Copy,
            _ => return None,
        },
        Takeover if !first => Psus,
        Reverse => match s {
            Pair => Pair,
            Psus | Psue(_) => CopyResync,
            _ => return None,
        },
        Fault(SplitBrain) => faulted(SplitBrain),
        Fault(NeedsSpace) => match s {
            Copy | CopyResync | Psue(_) | PsueCopy(_) => faulted(if stuck { SplitBrain } else { NeedsSpace }),
            _ => return None,
        },
        Fault(r) => match s {
            Psus | PsusCopy => s,
            Suspending => Psus,
            _ => faulted(if stuck { SplitBrain } else { r }),
        },
        Event::CopyDone if s == Copy => Pair,
        Event::ResyncDone if s == CopyResync => Pair,
        Event::Drained if s == Suspending => Psus,
        _ => return None,
    })
}

#[test]
fn every_state_event_and_mode() {
    for s in states() {
        for e in Event::all() {
            for mode in MODES {
                let got = next(s, e, mode);
                assert_eq!(got.clone().ok(), expected(s, e, mode), "{s:?} {e:?} {mode:?}");
                if let Err(r) = got {
                    assert!(r.reason.contains(&s.to_string()) && r.reason.contains(&e.to_string()), "{}", r.reason);
                    assert_eq!(Error::from(r).exit_code(), 4);
                }
            }
        }
    }
}

#[test]
fn no_transition_is_listed_twice() {
    for p in Phase::ALL {
        for e in Event::all() {
            for mode in MODES {
                let rows = TABLE
                    .iter()
                    .filter(|r| r.from.contains(&p) && r.on.contains(&e) && r.only.is_none_or(|m| m == mode));
                assert!(rows.count() <= 1, "{p:?} {e:?} {mode:?}");
            }
        }
    }
}

#[test]
fn every_state_is_reached_and_left_and_async_always_passes_suspending() {
    for mode in MODES {
        let mut seen = vec![State::Smpl];
        let mut i = 0;
        while i < seen.len() {
            for e in Event::all() {
                if let Ok(n) = next(seen[i], e, mode)
                    && !seen.contains(&n)
                {
                    seen.push(n);
                }
            }
            assert!(seen[i] == State::Smpl || next(seen[i], Delete, mode).is_ok());
            i += 1;
        }
        let reached = states().into_iter().filter(|s| seen.contains(s)).count();
        let missing = if mode == Mode::Sync { 1 } else { 0 };
        assert_eq!(reached, states().len() - missing);
        assert_eq!(seen.contains(&State::Suspending), mode == Mode::Async);
    }
    assert_eq!(next(State::Pair, Split, Mode::Async), Ok(State::Suspending));
}

#[test]
fn a_secondary_is_writable_only_where_it_may_be_and_takeover_gets_there_first() {
    for s in states() {
        if s.copies() {
            assert!(!s.secondary_writable(), "{s:?} (MS-20)");
        }
        for mode in MODES {
            if let Ok(n) = next(s, Takeover, mode) {
                assert!(n.secondary_writable());
            }
        }
    }
}

#[test]
fn names_go_out_and_come_back() {
    for s in states() {
        let shown = s.shown();
        assert_eq!(shown.to_string().parse::<Shown>().unwrap(), shown);
        assert_eq!(shown.to_string().to_lowercase().parse::<Shown>().unwrap(), shown);
        assert_eq!(codec::decode::<State>(&codec::encode(&s).unwrap()).unwrap(), s);
        assert_eq!(serde_json::from_str::<State>(&serde_json::to_string(&s).unwrap()).unwrap(), s);
    }
    assert!("PFUL".parse::<Shown>().is_err());
    assert_eq!(State::Psue(Full).to_string(), "PSUE (full)");
    assert_eq!(State::CopyResync.to_string(), "COPY");
    for r in Reason::ALL {
        assert_eq!(serde_json::to_string(&r).unwrap(), format!("\"{r}\""));
    }
}

/// With `KAGAMI_BLESS=1` the document is written anew.
#[test]
fn the_document_is_the_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/STATES.md");
    if std::env::var_os("KAGAMI_BLESS").is_some() {
        std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/docs")).unwrap();
        std::fs::write(path, markdown()).unwrap();
    }
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text == markdown(), "docs/STATES.md is old; run the test with KAGAMI_BLESS=1");
}
