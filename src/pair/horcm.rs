//! What the pair commands of Hitachi's CCI mean here: what a volume shows, which order its state takes, which value a command
//! ends with (C5, MS-2, MS-27). Decisions only; `cli::horcm` asks the node and carries them out.
//!
//! `docs/HORCM.md` has [`markdown`]'s text; a test compares them.

use super::state::{Mode, Shown};

/// What an end of a pair is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Attr {
    /// In no pair.
    Smpl,
    /// Primary volume.
    Pvol,
    /// Secondary volume.
    Svol,
}

/// What CCI calls the state of a pair, seen from one of its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// No pair.
    Smpl,
    /// First copy or resync.
    Copy,
    /// In step.
    Pair,
    /// Draining on the way to suspend (async); CCI has no word for it and shows PAIR until it is over.
    Suspending,
    /// Suspended by order; SSUS at the secondary.
    Psus,
    /// Suspended by a fault.
    Psue,
    /// The secondary, which took over while the primary was away.
    Ssws,
}

/// An end of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vol {
    /// What it is.
    pub attr: Attr,
    /// How the pair is.
    pub status: Status,
}

/// Where a pair's entries go, as a node tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// This end sends.
    Out,
    /// This end receives.
    In,
    /// Neither end is primary.
    None,
}

impl Vol {
    /// In no pair.
    pub const SMPL: Vol = Vol { attr: Attr::Smpl, status: Status::Smpl };

    /// Every end that there can be.
    pub fn all() -> Vec<Vol> {
        let statuses = [Status::Copy, Status::Pair, Status::Suspending, Status::Psus, Status::Psue];
        let ends = [Attr::Pvol, Attr::Svol].into_iter().flat_map(|attr| statuses.map(|status| Vol { attr, status }));
        let ssws = Vol { attr: Attr::Svol, status: Status::Ssws };
        [Vol::SMPL].into_iter().chain(ends).chain([ssws]).collect()
    }

    /// Of what a node tells of its end. `taken_over`: it took over from the pair's primary and has not resynced it yet.
    pub fn of(direction: Direction, state: Shown, taken_over: bool) -> Vol {
        let status = match state {
            Shown::Smpl => return Vol::SMPL,
            Shown::Copy => Status::Copy,
            Shown::Pair => Status::Pair,
            Shown::Suspending => Status::Suspending,
            Shown::Psus => Status::Psus,
            Shown::Psue => Status::Psue,
        };
        let suspended = matches!(status, Status::Psus | Status::Psue);
        match direction {
            Direction::None => Vol::SMPL,
            Direction::In => Vol { attr: Attr::Svol, status },
            Direction::Out if taken_over && suspended => Vol { attr: Attr::Svol, status: Status::Ssws },
            Direction::Out => Vol { attr: Attr::Pvol, status },
        }
    }

    /// The other end of the same pair, as far as this one knows it.
    pub fn other(self) -> Vol {
        let attr = match self.attr {
            Attr::Smpl => return Vol::SMPL,
            Attr::Pvol => Attr::Svol,
            Attr::Svol => Attr::Pvol,
        };
        let status = if self.status == Status::Ssws { Status::Psus } else { self.status };
        Vol { attr, status }
    }

    /// The status as CCI writes it.
    pub fn status_name(self) -> &'static str {
        match (self.attr, self.status) {
            (_, Status::Smpl) => "SMPL",
            (_, Status::Copy) => "COPY",
            (_, Status::Pair | Status::Suspending) => "PAIR",
            (Attr::Svol, Status::Psus) => "SSUS",
            (_, Status::Psus) => "PSUS",
            (_, Status::Psue) => "PSUE",
            (_, Status::Ssws) => "SSWS",
        }
    }

    /// The attribute as CCI writes it.
    pub fn attr_name(self) -> &'static str {
        match self.attr {
            Attr::Smpl => "SMPL",
            Attr::Pvol => "P-VOL",
            Attr::Svol => "S-VOL",
        }
    }

    /// 1 to 5: what `pairevtwait -nowait` ends with, and the last digit of `pairvolchk -ss`.
    pub fn digit(self) -> u8 {
        match self.status {
            Status::Smpl => 1,
            Status::Copy => 2,
            Status::Pair | Status::Suspending => 3,
            Status::Psus | Status::Ssws => 4,
            Status::Psue => 5,
        }
    }
}

/// What `pairvolchk` ends with.
pub fn volchk(v: Vol) -> u8 {
    match v.attr {
        Attr::Smpl => 1,
        Attr::Pvol => 2,
        Attr::Svol => 3,
    }
}

/// What `pairvolchk -ss` ends with.
pub fn volchk_ss(v: Vol, mode: Mode) -> u8 {
    let asynchronous = if mode == Mode::Async { 20 } else { 0 };
    match v.attr {
        Attr::Smpl => 11,
        Attr::Pvol => 20 + asynchronous + v.digit(),
        Attr::Svol => 30 + asynchronous + v.digit(),
    }
}

/// One for several: all must be the same end in the same mode, and the least settled status counts. With `ss` (as for
/// `pairvolchk -ss`) one that is still in PAIR counts before those that are suspended.
pub fn group(ends: &[(Vol, Mode)], ss: bool) -> Result<(Vol, Mode), Code> {
    use Status::{Copy, Pair, Psue, Psus, Smpl, Ssws, Suspending};
    let (first, mode) = *ends.first().ok_or(Code::Enogrp)?;
    if ends.iter().any(|(v, m)| (v.attr, *m) != (first.attr, mode)) {
        return Err(Code::Enqvol);
    }
    let order = match ss {
        false => [Copy, Psue, Psus, Ssws, Suspending, Pair, Smpl],
        true => [Copy, Psue, Suspending, Pair, Psus, Ssws, Smpl],
    };
    let status = order.into_iter().find(|s| ends.iter().any(|(v, _)| v.status == *s));
    Ok((Vol { attr: first.attr, status: status.unwrap_or(first.status) }, mode))
}

/// An order for a pair, by command and option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// `paircreate`.
    Create,
    /// `paircreate -nocopy`.
    CreateNoCopy,
    /// `pairsplit`, `-r`, `-rw`.
    Split,
    /// `pairsplit -S`.
    Simplex,
    /// `pairsplit -RS`.
    Ssws,
    /// `pairresync`.
    Resync,
    /// `pairresync -swaps`.
    SwapS,
    /// `pairresync -swapp`.
    SwapP,
}

/// What becomes of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It is carried out.
    Do(Act),
    /// Taken, and nothing is to be done.
    Nop,
    /// Refused with this code.
    Refuse(Code),
}

/// What the node is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Act {
    Create,
    CreateNoCopy,
    Split,
    Delete,
    Resync,
    /// The ends change their roles, nothing is lost.
    Swap,
    /// This end becomes writable without the primary.
    Takeover,
    /// The same, and then the former primary is made equal to it.
    TakeoverResync,
}

impl Order {
    /// Every order.
    pub const ALL: [Order; 8] = [
        Order::Create,
        Order::CreateNoCopy,
        Order::Split,
        Order::Simplex,
        Order::Ssws,
        Order::Resync,
        Order::SwapS,
        Order::SwapP,
    ];

    /// As it is typed.
    pub fn words(self) -> &'static str {
        match self {
            Order::Create => "paircreate",
            Order::CreateNoCopy => "paircreate -nocopy",
            Order::Split => "pairsplit, -r, -rw",
            Order::Simplex => "pairsplit -S",
            Order::Ssws => "pairsplit -RS",
            Order::Resync => "pairresync",
            Order::SwapS => "pairresync -swaps",
            Order::SwapP => "pairresync -swapp",
        }
    }
}

/// The acceptance matrix: what becomes of an order given at this end of a pair.
pub fn accept(order: Order, v: Vol) -> Verdict {
    use Attr::{Pvol, Smpl, Svol};
    use Status::{Copy, Pair, Psue, Psus, Ssws, Suspending};
    use Verdict::{Do, Nop, Refuse};
    match (order, v.attr, v.status) {
        (Order::Create, Smpl, _) => Do(Act::Create),
        (Order::CreateNoCopy, Smpl, _) => Do(Act::CreateNoCopy),
        (Order::Create | Order::CreateNoCopy, _, Copy | Pair | Suspending) => Nop,
        (Order::Create | Order::CreateNoCopy, ..) => Refuse(Code::Invstp),

        (Order::Simplex, Smpl, _) => Nop,
        (Order::Simplex, ..) => Do(Act::Delete),

        (_, Smpl, _) => Refuse(Code::Invvol),

        (Order::Split, _, Copy | Pair | Psue) => Do(Act::Split),
        (Order::Split, ..) => Nop,

        (Order::Resync, _, Copy | Pair) => Nop,
        (Order::Resync, _, Psus | Psue) => Do(Act::Resync),
        // What changed at the secondary counts now: only a swap keeps it.
        (Order::Resync, _, Ssws) => Refuse(Code::Cmdrje),
        (Order::Resync, ..) => Refuse(Code::Invstp),

        (Order::Ssws | Order::SwapS, Pvol, _) | (Order::SwapP, Svol, _) => Refuse(Code::Invvol),
        (Order::Ssws, _, Ssws) => Nop,
        (Order::Ssws, _, Pair | Psus | Psue) => Do(Act::Takeover),
        (Order::SwapS, _, Ssws) => Do(Act::Resync),
        (Order::SwapS, _, Psus | Psue) => Do(Act::TakeoverResync),
        (Order::SwapS | Order::SwapP, _, Pair) => Do(Act::Swap),
        (Order::Ssws | Order::SwapS | Order::SwapP, ..) => Refuse(Code::Invstp),
    }
}

/// What `horctakeover` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Take {
    /// Nothing: it can be used as it is.
    Nop,
    /// The ends change their roles, nothing is lost.
    Swap,
    /// The secondary becomes writable without the primary.
    Svol {
        /// Its data are known to be those of the primary, or at one point of its order (async).
        current: bool,
    },
    /// A fenced primary becomes writable again by suspending the pair.
    PvolPsue,
    /// Refused with this code.
    Refuse(Code),
}

/// What `horctakeover` is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Nothing.
    Any,
    /// `-S`: take a secondary over, do not swap.
    Svol,
    /// `-l`: make a primary writable.
    Pvol,
}

/// An end of a pair, with what matters to a takeover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The end.
    pub vol: Vol,
    /// How the pair copies.
    pub mode: Mode,
    /// `fence = "data"`: the primary refuses what the secondary cannot take.
    pub fenced: bool,
    /// The other end is there.
    pub linked: bool,
    /// PSUE is only this end's word for not hearing of the other: nobody told of a suspension.
    pub silent: bool,
}

/// The truth table of `horctakeover`.
pub fn takeover(e: End, side: Side) -> Take {
    match (e.vol.attr, side) {
        (Attr::Smpl, _) => Take::Refuse(Code::Volcre),
        (Attr::Pvol, Side::Svol) | (Attr::Svol, Side::Pvol) => Take::Refuse(Code::Invvol),
        (Attr::Pvol, _) if e.fenced && e.mode == Mode::Sync && e.vol.status == Status::Psue => Take::PvolPsue,
        (Attr::Pvol, _) => Take::Nop,
        (Attr::Svol, _) => match e.vol.status {
            Status::Ssws => Take::Nop,
            // Between two points of the primary's order.
            Status::Copy | Status::Smpl => Take::Refuse(Code::Volcur),
            Status::Pair if e.linked && side == Side::Any => Take::Swap,
            Status::Pair => Take::Svol { current: true },
            // The primary went on without it.
            Status::Psus | Status::Suspending => Take::Svol { current: false },
            Status::Psue => Take::Svol { current: e.silent || e.fenced || e.mode == Mode::Async },
        },
    }
}

/// What `horctakeover` ends with when it has been carried out. 2 and 3 are never ended with: kagami keeps the pair.
pub fn takeover_value(t: Take) -> u8 {
    match t {
        Take::Nop => 0,
        Take::Swap => 1,
        Take::PvolPsue => 4,
        Take::Svol { current: true } => 5,
        Take::Svol { current: false } => Code::Volcur.value(),
        Take::Refuse(c) => c.value(),
    }
}

/// What `pairevtwait` waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Want {
    Smpl,
    Copy,
    Pair,
    Psus,
    Psue,
    /// Suspended, whyever.
    Psuse,
}

impl Want {
    /// Every word with what it means.
    pub const WORDS: [(&'static str, Want); 8] = [
        ("smpl", Want::Smpl),
        ("copy", Want::Copy),
        ("rcpy", Want::Copy),
        ("pair", Want::Pair),
        ("psus", Want::Psus),
        ("ssus", Want::Psus),
        ("psue", Want::Psue),
        ("psuse", Want::Psuse),
    ];

    /// By its word, in any case.
    pub fn of(word: &str) -> Option<Want> {
        Want::WORDS.iter().find(|(w, _)| w.eq_ignore_ascii_case(word)).map(|(_, w)| *w)
    }

    /// True when it has come, false while it can; otherwise what ends the waiting.
    pub fn come(self, v: Vol) -> Result<bool, Code> {
        use Status::{Copy, Pair, Psue, Psus, Smpl, Ssws};
        match (self, v.status) {
            (Want::Smpl, Smpl)
            | (Want::Copy, Copy)
            | (Want::Pair, Pair)
            | (Want::Psus, Psus | Ssws)
            | (Want::Psue, Psue)
            | (Want::Psuse, Psus | Psue | Ssws) => Ok(true),
            (Want::Copy | Want::Pair, Psue) => Err(Code::Ewsuse),
            _ => Ok(false),
        }
    }
}

/// Errors, by their exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Code {
    Cmdrje,
    Invvol,
    Volcre,
    Volcur,
    Invstp,
    Unwcmd,
    Ewstot,
    Ewsuse,
    Enqvol,
    Cmdioe,
    Enogrp,
    Enormt,
    Atthor,
    Unwopt,
    Invarg,
    Reqarg,
    Comerr,
}

/// Every code: value, name, and when kagami ends with it.
pub const CODES: [(Code, u8, &str, &str); 17] = [
    (Code::Cmdrje, 221, "EX_CMDRJE", "the node refused the order; the message says why"),
    (Code::Invvol, 222, "EX_INVVOL", "this end of the pair is not what the order needs: no pair, or the other end"),
    (Code::Volcre, 223, "EX_VOLCRE", "a takeover where there is no pair"),
    (Code::Volcur, 225, "EX_VOLCUR", "a takeover of a secondary that may not have the newest data, or is no copy yet"),
    (Code::Invstp, 228, "EX_INVSTP", "the order does not fit the state of the pair"),
    (Code::Unwcmd, 230, "EX_UNWCMD", "no such command"),
    (Code::Ewstot, 233, "EX_EWSTOT", "the time is over"),
    (Code::Ewsuse, 234, "EX_EWSUSE", "the pair was suspended by a fault while it was waited for"),
    (Code::Enqvol, 236, "EX_ENQVOL", "the pairs of the group differ in role, mode or fence: name one of them"),
    (Code::Cmdioe, 237, "EX_CMDIOE", "the order failed at the node"),
    (Code::Enogrp, 239, "EX_ENOGRP", "no such group or pair"),
    (Code::Enormt, 242, "EX_ENORMT", "the other site cannot be reached"),
    (Code::Atthor, 251, "EX_ATTHOR", "no node to be asked: none runs, or there is no right site file"),
    (Code::Unwopt, 252, "EX_UNWOPT", "an option that is not known, or has no counterpart here"),
    (Code::Invarg, 253, "EX_INVARG", "a wrong value of an option, or one that contradicts the site file"),
    (Code::Reqarg, 254, "EX_REQARG", "an option or its value is missing"),
    (Code::Comerr, 255, "EX_COMERR", "the node ended before it answered"),
];

impl Code {
    /// The exit code.
    pub fn value(self) -> u8 {
        CODES.iter().find(|(c, ..)| *c == self).map_or(255, |(_, v, ..)| *v)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        CODES.iter().find(|(c, ..)| *c == self).map_or("EX_COMERR", |(_, _, n, _)| *n)
    }
}

/// The tables for people, as in `docs/HORCM.md`.
pub fn markdown() -> String {
    let mut out = String::from("| order |");
    for v in Vol::all() {
        let name = if v.status == Status::Suspending { "SUSPENDING" } else { v.status_name() };
        out += &match v.attr {
            Attr::Smpl => format!(" {name} |"),
            _ => format!(" {} {name} |", v.attr_name()),
        };
    }
    out += &format!("\n|---|{}\n", "---|".repeat(Vol::all().len()));
    for o in Order::ALL {
        out += &format!("| {} |", o.words());
        for v in Vol::all() {
            out += &match accept(o, v) {
                Verdict::Do(Act::Takeover) => " takes over |".to_owned(),
                Verdict::Do(Act::TakeoverResync) => " takes over, resyncs |".to_owned(),
                Verdict::Do(Act::Swap) => " swaps |".to_owned(),
                Verdict::Do(Act::Resync) => " resyncs |".to_owned(),
                Verdict::Do(_) => " done |".to_owned(),
                Verdict::Nop => " 0 |".to_owned(),
                Verdict::Refuse(c) => format!(" {} |", c.value()),
            };
        }
        out.push('\n');
    }
    out += "\n| code | name | when |\n|---|---|---|\n";
    for (_, value, name, when) in CODES {
        out += &format!("| {value} | {name} | {when} |\n");
    }
    out
}

#[cfg(test)]
#[path = "horcm_tests.rs"]
mod tests;
