//! C5: the acceptance matrix and the exit codes, every order with every end of a pair, against tables written by hand.

use super::*;
use crate::pair::state::{self, Event, Phase, Reason, State};

const MODES: [Mode; 2] = [Mode::Sync, Mode::Async];

/// One letter for each end, in this order: SMPL; P-VOL COPY PAIR SUSPENDING PSUS PSUE; S-VOL the same, and SSWS.
/// `+` done, `0` taken without effect, s swapped, t taken over, b taken over and resynced, r resynced;
/// V EX_INVVOL, S EX_INVSTP, R EX_CMDRJE.
const MATRIX: [(Order, &str); 8] = [
    (Order::Create, "+ 000SS 000SSS"),
    (Order::CreateNoCopy, "+ 000SS 000SSS"),
    (Order::Split, "V ++00+ ++00+0"),
    (Order::Simplex, "0 +++++ ++++++"),
    (Order::Ssws, "V VVVVV StStt0"),
    (Order::Resync, "V 00Srr 00SrrR"),
    (Order::SwapS, "V VVVVV SsSbbr"),
    (Order::SwapP, "V SsSSS VVVVVV"),
];

fn letter(o: Order, v: Verdict) -> char {
    match v {
        Verdict::Nop => '0',
        Verdict::Refuse(Code::Invvol) => 'V',
        Verdict::Refuse(Code::Invstp) => 'S',
        Verdict::Refuse(Code::Cmdrje) => 'R',
        Verdict::Do(Act::Swap) => 's',
        Verdict::Do(Act::Takeover) => 't',
        Verdict::Do(Act::TakeoverResync) => 'b',
        Verdict::Do(Act::Resync) => 'r',
        Verdict::Do(a) => {
            let own = match o {
                Order::Create => Act::Create,
                Order::CreateNoCopy => Act::CreateNoCopy,
                Order::Split => Act::Split,
                _ => Act::Delete,
            };
            assert_eq!(a, own, "{o:?}");
            '+'
        }
        v => panic!("{o:?} {v:?}"),
    }
}

#[test]
fn c5_the_acceptance_matrix() {
    assert_eq!(Vol::all().len(), 12);
    assert_eq!(MATRIX.map(|(o, _)| o), Order::ALL);
    for (o, row) in MATRIX {
        let got: String = Vol::all().into_iter().map(|v| letter(o, accept(o, v))).collect();
        assert_eq!(got, row.replace(' ', ""), "{o:?}");
    }
}

/// The documented table of CCI knows SMPL, COPY, PAIR, PSUS and PSUE of the primary volume. a accepted and executed,
/// n accepted without effect, x rejected.
#[test]
fn c5_the_matrix_agrees_with_the_documented_one() {
    const DOCUMENTED: [(Order, &str); 5] = [
        (Order::Create, "annxx"),
        (Order::CreateNoCopy, "annxx"),
        // PSUE: taken there without effect, here the pair stays suspended by order, for kagami would resync it by itself.
        (Order::Split, "xaana"),
        (Order::Simplex, "naaaa"),
        (Order::Resync, "xnnaa"),
    ];
    let statuses = [Status::Smpl, Status::Copy, Status::Pair, Status::Psus, Status::Psue];
    for (o, row) in DOCUMENTED {
        for (status, expected) in statuses.into_iter().zip(row.chars()) {
            let attr = if status == Status::Smpl { Attr::Smpl } else { Attr::Pvol };
            let got = match accept(o, Vol { attr, status }) {
                Verdict::Do(_) => 'a',
                Verdict::Nop => 'n',
                Verdict::Refuse(_) => 'x',
            };
            assert_eq!(got, expected, "{o:?} {status:?}");
        }
    }
}

/// What the matrix lets through at a primary volume is a transition of the pair (MS-2).
#[test]
fn c5_ms2_what_is_accepted_the_transition_table_takes() {
    for phase in Phase::ALL {
        for reason in Reason::ALL {
            let s: State = phase.state(reason);
            let v = Vol::of(Direction::Out, s.shown(), false);
            for (o, event) in [
                (Order::Create, Event::Create { no_copy: false }),
                (Order::CreateNoCopy, Event::Create { no_copy: true }),
                (Order::Split, Event::Split),
                (Order::Simplex, Event::Delete),
                (Order::Resync, Event::Resync),
                (Order::SwapP, Event::Reverse),
            ] {
                for mode in MODES.into_iter().filter(|m| s != State::Suspending || *m == Mode::Async) {
                    let done = matches!(accept(o, v), Verdict::Do(_));
                    let can = state::next(s, event, mode).is_ok();
                    assert!(can || !done, "{o:?} {s:?} {mode:?}");
                }
            }
        }
    }
}

#[test]
fn c5_what_an_end_of_a_pair_is() {
    use Direction::{In, Out};
    for p in Phase::ALL {
        let s = p.state(Reason::Full).shown();
        for taken_over in [false, true] {
            let (out, into) = (Vol::of(Out, s, taken_over), Vol::of(In, s, taken_over));
            assert_eq!(Vol::of(Direction::None, s, taken_over), Vol::SMPL);
            assert!(Vol::all().contains(&out) && Vol::all().contains(&into));
            if p == Phase::Smpl {
                assert_eq!((out, into), (Vol::SMPL, Vol::SMPL));
                continue;
            }
            assert_eq!((into.attr, into.other().attr), (Attr::Svol, Attr::Pvol));
            let suspended = matches!(p, Phase::Psus | Phase::Psue | Phase::PsusCopy | Phase::PsueCopy);
            assert_eq!(out.status == Status::Ssws, suspended && taken_over);
            assert_eq!(out.attr, if suspended && taken_over { Attr::Svol } else { Attr::Pvol });
            assert_eq!(out.other().other().attr, out.attr);
        }
    }
    let names: Vec<_> = Vol::all().iter().map(|v| format!("{} {}", v.attr_name(), v.status_name())).collect();
    assert_eq!(
        names.join(", "),
        "SMPL SMPL, P-VOL COPY, P-VOL PAIR, P-VOL PAIR, P-VOL PSUS, P-VOL PSUE, \
         S-VOL COPY, S-VOL PAIR, S-VOL PAIR, S-VOL SSUS, S-VOL PSUE, S-VOL SSWS"
    );
}

#[test]
fn c5_pairvolchk_and_pairevtwait_values() {
    let plain: Vec<u8> = Vol::all().into_iter().map(volchk).collect();
    assert_eq!(plain, [1, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3]);
    let ss = |m| Vol::all().into_iter().map(|v| volchk_ss(v, m)).collect::<Vec<u8>>();
    assert_eq!(ss(Mode::Sync), [11, 22, 23, 23, 24, 25, 32, 33, 33, 34, 35, 34]);
    assert_eq!(ss(Mode::Async), [11, 42, 43, 43, 44, 45, 52, 53, 53, 54, 55, 54]);
    let now: Vec<u8> = Vol::all().into_iter().map(Vol::digit).collect();
    assert_eq!(now, [1, 2, 3, 3, 4, 5, 2, 3, 3, 4, 5, 4]);
    // Every value is one that scripts take for a result, not for an error.
    assert!(ss(Mode::Async).into_iter().all(|v| v < 128));
}

#[test]
fn c5_several_pairs_have_one_status() {
    let p = |status| (Vol { attr: Attr::Pvol, status }, Mode::Sync);
    let status =
        |of: &[Status], ss| group(&of.iter().map(|s| p(*s)).collect::<Vec<_>>(), ss).map(|(v, _)| v.status).unwrap();
    use Status::{Copy, Pair, Psue, Psus};
    assert_eq!(status(&[Pair, Copy, Psue], false), Copy);
    assert_eq!(status(&[Pair, Psue, Psus], true), Psue);
    assert_eq!(status(&[Pair, Psus], false), Psus);
    assert_eq!(status(&[Pair, Psus], true), Pair);
    assert_eq!(status(&[Psus, Psus], true), Psus);
    assert_eq!(group(&[], true), Err(Code::Enogrp));
    let (pair, mode) = p(Pair);
    assert_eq!(group(&[(pair, mode), (pair.other(), mode)], true), Err(Code::Enqvol));
    assert_eq!(group(&[(pair, Mode::Sync), (pair, Mode::Async)], false), Err(Code::Enqvol));
    for v in Vol::all() {
        assert_eq!(group(&[(v, mode), (v, mode)], true), Ok((v, mode)));
    }
}

/// One letter for each end, as in [`MATRIX`]: 0 nothing, w swap, 5 taken over, u taken over but perhaps not current (225),
/// 4 the fence lifted; E EX_VOLCRE, V EX_INVVOL, C EX_VOLCUR.
#[test]
fn c5_horctakeover_does_what_its_truth_table_says() {
    let sync = End { vol: Vol::SMPL, mode: Mode::Sync, fenced: false, linked: true, silent: false };
    let alone = End { linked: false, ..sync };
    let rows = [
        (sync, Side::Any, "E 00000 Cwuuu0"),
        (alone, Side::Any, "E 00000 C5uuu0"),
        (End { silent: true, ..alone }, Side::Any, "E 00000 C5uu50"),
        (End { fenced: true, ..alone }, Side::Any, "E 00004 C5uu50"),
        (End { fenced: true, mode: Mode::Async, ..alone }, Side::Any, "E 00000 C5uu50"),
        (End { mode: Mode::Async, ..sync }, Side::Any, "E 00000 Cwuu50"),
        (sync, Side::Svol, "E VVVVV C5uuu0"),
        (sync, Side::Pvol, "E 00000 VVVVVV"),
        (End { fenced: true, ..sync }, Side::Pvol, "E 00004 VVVVVV"),
    ];
    for (e, side, row) in rows {
        let got = Vol::all().into_iter().map(|vol| match takeover(End { vol, ..e }, side) {
            Take::Nop => '0',
            Take::Swap => 'w',
            Take::Svol { current: true } => '5',
            Take::Svol { current: false } => 'u',
            Take::PvolPsue => '4',
            Take::Refuse(Code::Volcre) => 'E',
            Take::Refuse(Code::Invvol) => 'V',
            Take::Refuse(Code::Volcur) => 'C',
            t => panic!("{t:?}"),
        });
        assert_eq!(got.collect::<String>(), row.replace(' ', ""), "{e:?} {side:?}");
    }
    let values = [Take::Nop, Take::Swap, Take::PvolPsue, Take::Svol { current: true }, Take::Svol { current: false }];
    assert_eq!(values.map(takeover_value), [0, 1, 4, 5, 225]);
    assert_eq!(takeover_value(Take::Refuse(Code::Volcre)), 223);
}

#[test]
fn c5_pairevtwait_ends_with_the_state_or_when_it_cannot_come() {
    // Columns as in MATRIX; y has come, . can come, x ends the waiting.
    for (words, row) in [
        (&["smpl"][..], "y ..... ......"),
        (&["copy", "rcpy"], ". y...x y...x."),
        (&["pair", "PAIR"], ". .y..x .y..x."),
        (&["psus", "ssus"], ". ...y. ...y.y"),
        (&["psue"], ". ....y ....y."),
        (&["psuse"], ". ...yy ...yyy"),
    ] {
        for w in words {
            let want = Want::of(w).unwrap();
            let got = Vol::all().into_iter().map(|v| match want.come(v) {
                Ok(true) => 'y',
                Ok(false) => '.',
                Err(c) => {
                    assert_eq!(c, Code::Ewsuse);
                    'x'
                }
            });
            assert_eq!(got.collect::<String>(), row.replace(' ', ""), "{w}");
        }
    }
    assert_eq!(Want::of("pful"), None);
}

#[test]
fn c5_error_codes_are_those_of_cci() {
    let all: Vec<_> = CODES.iter().map(|(c, v, n, _)| (c.value(), *v, c.name() == *n)).collect();
    assert!(all.iter().all(|(a, b, named)| a == b && *named && *a >= 221));
    assert!(all.windows(2).all(|w| w[0].0 < w[1].0));
    for (code, value) in [
        (Code::Cmdrje, 221),
        (Code::Invvol, 222),
        (Code::Volcur, 225),
        (Code::Invstp, 228),
        (Code::Ewstot, 233),
        (Code::Ewsuse, 234),
        (Code::Enqvol, 236),
        (Code::Enogrp, 239),
        (Code::Enormt, 242),
        (Code::Atthor, 251),
        (Code::Unwopt, 252),
        (Code::Invarg, 253),
        (Code::Reqarg, 254),
        (Code::Comerr, 255),
    ] {
        assert_eq!(code.value(), value);
    }
}

/// With `KAGAMI_BLESS=1` the tables of the document are written anew.
#[test]
fn c5_the_document_has_the_tables() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/HORCM.md");
    let (from, to) = ("<!-- tables of src/pair/horcm.rs -->\n", "<!-- end of tables -->\n");
    let text = std::fs::read_to_string(path).unwrap();
    let (head, rest) = text.split_once(from).expect("the mark before the tables");
    let (tables, tail) = rest.split_once(to).expect("the mark after the tables");
    if std::env::var_os("KAGAMI_BLESS").is_some() {
        std::fs::write(path, format!("{head}{from}{}{to}{tail}", markdown())).unwrap();
        return;
    }
    assert!(tables == markdown(), "docs/HORCM.md is old; run the test with KAGAMI_BLESS=1");
}
