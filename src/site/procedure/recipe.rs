//! The recipes: which steps, in which order. The numbers are those of the steps in figures 10 to 16 of the design of three
//! sites; its legs A and B of the primary are one replica here (further legs receive from it), fed by one sequence.

use std::fmt::Write;

/// A sort of step. *From* is the site that has the role, *to* the one that gets it, *other* the third one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// *From* leads without mounts, for *to*.
    Act,
    /// *To* is brought to what *from* has.
    Level,
    /// The other sites are brought to what *from* has.
    LevelOther,
    /// The application stops at *from*.
    Stop,
    /// The roles change in order.
    Roles,
    /// *To* takes the role without *from*.
    Lead,
    /// The application starts at *to*.
    Start,
    /// *From* follows *to*.
    FollowFrom,
    /// The other sites follow *to*.
    FollowOther,
}

/// What is to be said of a sort of step.
pub struct Words {
    /// Its name, for `--stop-after` and JSON.
    pub name: &'static str,
    /// What must be so before.
    pub before: &'static str,
    /// What it does.
    pub effect: &'static str,
    /// How one sees that it is done.
    pub sign: &'static str,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 9] = [
        Kind::Act,
        Kind::Level,
        Kind::LevelOther,
        Kind::Stop,
        Kind::Roles,
        Kind::Lead,
        Kind::Start,
        Kind::FollowFrom,
        Kind::FollowOther,
    ];

    /// See [`Words`].
    pub fn words(self) -> Words {
        let w = |name, before, effect, sign| Words { name, before, effect, sign };
        match self {
            Kind::Act => w(
                "act",
                "no primary can be reached; FROM can be, and has all that TO has",
                "FROM takes the role without mounting anything, and brings TO to what it has",
                "FROM is primary with the task `acting for TO`",
            ),
            Kind::Level => w(
                "level",
                "FROM is primary and can be reached",
                "FROM copies to TO what differs, by the journals, while the application runs",
                "the pair from FROM to TO is in PAIR, less than 5 s behind",
            ),
            Kind::LevelOther => w(
                "level-others",
                "nothing is mounted at FROM",
                "the other sites get what they miss",
                "the pairs from FROM to the other sites are in PAIR with no lag",
            ),
            Kind::Stop => w(
                "stop",
                "TO and the other sites can be reached; nothing is open in the volume (or --force)",
                "FROM ends its applications and mounts, and leads on without",
                "nothing is mounted at FROM",
            ),
            Kind::Roles => w(
                "roles",
                "the pair from FROM to TO is in PAIR; nothing is open in the volume (or --force)",
                "FROM ends its applications and mounts, waits until TO has applied everything, and gives the role away: the pair is reversed",
                "TO is primary, FROM is not",
            ),
            Kind::Lead => w(
                "lead",
                "FROM is not linked (or --force), and what is at TO is a point of the order",
                "TO applies everything received, notes what may be lost, and begins a new epoch",
                "TO is primary",
            ),
            Kind::Start => w(
                "start",
                "TO is primary",
                "the volumes are mounted at TO; applications that were given away with the role, or run there by `kagami boot`, start",
                "every volume with `mount =` (or --at) is mounted at TO",
            ),
            Kind::FollowFrom => w(
                "follow-from",
                "TO is primary; FROM can be reached",
                "TO copies to FROM what differs; after `roles` that is nothing",
                "the pair from TO to FROM is in PAIR",
            ),
            Kind::FollowOther => w(
                "follow-others",
                "TO is primary; the other sites can be reached",
                "TO copies to the other sites what differs, by the journals: no initial copy",
                "the pairs from TO to the other sites are in PAIR",
            ),
        }
    }
}

/// A procedure: its steps in order, each with those of the figure.
#[derive(Debug, PartialEq, Eq)]
pub struct Recipe {
    /// Figure; `None`: there is none.
    pub figure: Option<u8>,
    /// What it is.
    pub title: &'static str,
    /// The command.
    pub command: &'static str,
    /// Steps, with the numbers in the figure.
    pub steps: &'static [(Kind, &'static str)],
}

/// Takeover at the sync site.
pub const TAKEOVER_SYNC: Recipe = Recipe {
    figure: Some(10),
    title: "takeover at the sync site",
    command: "kagami takeover GROUP",
    steps: &[(Kind::Lead, "1001, 1002"), (Kind::Start, "1003"), (Kind::FollowOther, "1004 to 1007")],
};

/// Takeover at the async site on its own data.
pub const TAKEOVER_ASYNC: Recipe = Recipe {
    figure: Some(13),
    title: "takeover at the async site on its own data",
    command: "kagami takeover GROUP",
    steps: &[(Kind::Lead, "1301, 1302"), (Kind::Start, "1303"), (Kind::FollowOther, "")],
};

/// Takeover at the async site on the sync site's data.
pub const TAKEOVER_WITH: Recipe = Recipe {
    figure: Some(14),
    title: "takeover at the async site on the sync site's data",
    command: "kagami takeover GROUP --with-data-of SITE",
    steps: &[(Kind::Act, "1401 to 1403"), (Kind::Roles, "1404"), (Kind::FollowFrom, "1405"), (Kind::Start, "1406")],
};

/// Failback from the sync site, sync side first.
pub const BACK_FROM_SYNC: Recipe = Recipe {
    figure: Some(11),
    title: "failback from the sync site, sync side first",
    command: "kagami failback GROUP [--first sync]",
    steps: &[
        (Kind::Level, "1101 to 1104"),
        (Kind::Roles, "1105, 1106"),
        (Kind::Start, "1107, 1108"),
        (Kind::FollowFrom, "1106"),
        (Kind::FollowOther, "1109, 1110"),
    ],
};

/// Failback from the sync site, async side first.
pub const BACK_FROM_SYNC_STOPPED: Recipe = Recipe {
    figure: Some(12),
    title: "failback from the sync site, async side first",
    command: "kagami failback GROUP --first async",
    steps: &[
        (Kind::Stop, "1201"),
        (Kind::LevelOther, "1202, 1203"),
        (Kind::Level, "1204"),
        (Kind::Roles, "1206"),
        (Kind::FollowOther, "1205"),
        (Kind::Start, "1207"),
        (Kind::FollowFrom, "1208 to 1211"),
    ],
};

/// The same with the application started last.
pub const BACK_FROM_SYNC_LAST: Recipe = Recipe {
    figure: Some(12),
    title: "failback from the sync site, async side first, the application last",
    command: "kagami failback GROUP --first async --start-last",
    steps: &[
        (Kind::Stop, "1201"),
        (Kind::LevelOther, "1202, 1203"),
        (Kind::Level, "1204"),
        (Kind::Roles, "1206"),
        (Kind::FollowOther, "1205"),
        (Kind::FollowFrom, "1208 to 1211"),
        (Kind::Start, "1207"),
    ],
};

/// Failback from the async site, async side first.
pub const BACK_FROM_ASYNC: Recipe = Recipe {
    figure: Some(15),
    title: "failback from the async site, async side first",
    command: "kagami failback GROUP [--first async]",
    steps: &[
        (Kind::Level, "1501 to 1504"),
        (Kind::Roles, "1505, 1506"),
        (Kind::Start, "1507, 1508"),
        (Kind::FollowFrom, "1506"),
        (Kind::FollowOther, "1509 to 1512"),
    ],
};

/// Failback from the async site, the other way.
pub const BACK_FROM_ASYNC_STOPPED: Recipe = Recipe {
    figure: Some(16),
    title: "failback from the async site, sync side first",
    command: "kagami failback GROUP --first sync",
    steps: &[
        (Kind::Stop, "1601"),
        (Kind::LevelOther, "1602, 1603"),
        (Kind::Level, "1604"),
        (Kind::Roles, "1606"),
        (Kind::FollowOther, "1605"),
        (Kind::Start, "1607"),
        (Kind::FollowFrom, "1608 to 1611"),
    ],
};

/// The same with the application started last.
pub const BACK_FROM_ASYNC_LAST: Recipe = Recipe {
    figure: Some(16),
    title: "failback from the async site, sync side first, the application last",
    command: "kagami failback GROUP --first sync --start-last",
    steps: &[
        (Kind::Stop, "1601"),
        (Kind::LevelOther, "1602, 1603"),
        (Kind::Level, "1604"),
        (Kind::Roles, "1606"),
        (Kind::FollowOther, "1605"),
        (Kind::FollowFrom, "1608 to 1611"),
        (Kind::Start, "1607"),
    ],
};

/// Planned switchover.
pub const SWAP: Recipe = Recipe {
    figure: None,
    title: "planned switchover",
    command: "kagami swap GROUP [--to SITE]",
    steps: &[(Kind::Level, ""), (Kind::Roles, ""), (Kind::Start, ""), (Kind::FollowFrom, ""), (Kind::FollowOther, "")],
};

/// Every recipe, in the order of the document.
pub const ALL: [&Recipe; 10] = [
    &TAKEOVER_SYNC,
    &TAKEOVER_ASYNC,
    &TAKEOVER_WITH,
    &BACK_FROM_SYNC,
    &BACK_FROM_SYNC_STOPPED,
    &BACK_FROM_SYNC_LAST,
    &BACK_FROM_ASYNC,
    &BACK_FROM_ASYNC_STOPPED,
    &BACK_FROM_ASYNC_LAST,
    &SWAP,
];

const PREFACE: &str = "\
# Procedures

Rendered from `src/site/procedure/recipe.rs`. Each procedure is given at the site that gets the role: *to*. *From* is the site
that has it, or had it; *others* is the third one. `--dry-run` prints the steps as they stand, and what would be lost;
`--stop-after STEP` ends after a step; `--json` is for programs.

- Whether a step is done is seen in the state of all sites and noted nowhere. A procedure that was interrupted, by whatever, goes on
  when it is ordered again; so it does after `--stop-after`.
- While one is under way no other is begun, at no site. Its steps are in the log and in `kagami events`.
- A pair that its operator suspended or ended stays so, and is not waited for.
- A site that cannot be reached is left out where the steps say \"others\", and said; it is resynced by itself when it is back.

## The two ways back

The design has two replicas at the primary, one of which feeds each pair. Here one sequence of entries feeds both pairs from one
replica, and further legs receive from that. So what the figures call \"copy to A\" and \"copy to B\" is one copy, to the primary
site, and what is left of the difference between two figures is the order:

- the pair by which the role comes back *first* (figures 11, 15): the primary is brought level while the application runs. It is
  down only while the roles change.
- the other one first (figures 12, 16): the application stops first, all sites are made equal, nothing that is written meanwhile
  has to be copied, and the third site follows the primary before the application starts there. `--start-last` (MS-24): it
  starts when both pairs are in PAIR, so that nothing is ever written that only the primary has.

Without `--first` the former is chosen, because a resync sends what is written meanwhile once in either; but the latter when the
application is stopped already, or when the pair cannot keep up with it. The choice and its reason are printed.

No pair is deleted and made anew (1102, 1202, 1502, 1602): the same pairs go on under the new epoch. Equality is known by the
position in the order, so after `roles` every site is where the new primary is, and no initial copy is needed.

## Loss of the leg that feeds the sync pair (figure 17)

No order is needed. When the leg in use fails, what is under way is held, a leg that is in step takes its place under the open mount
with an epoch of its own, and every operation that was in flight is issued again on it. Both pairs, also the async one, go on from
that leg by themselves: it was fed the same sequence, so they catch up from the queue or from the journals, without an initial
copy. No backup of the async side is needed: what a resync sends is staged there, and until its last record has arrived the tree stays at
the point where it was.

## How they are tested

`KAGAMI_FULL=1 cargo test --test all matrix:: -- --test-threads 4` plays every procedure on nodes in network namespaces, without and with
writers, undisturbed and with each node killed after each step and in it, cut off in it, the command killed, and the old primary
back: 719 cases in some 20 minutes on two busy processors; `make test` plays 26 of them. It found three faults, since mended: a site
waited 90 s for a primary whose link had broken while it handed over; the end of an old link hid the newer one of the same primary;
and an old primary that was started in the moment of a takeover led beside the new one.

## What a step is

| step | before | effect | done when |
|---|---|---|---|
";

/// The recipes for people: `docs/PROCEDURES.md`.
pub fn markdown() -> String {
    let mut o = PREFACE.to_owned();
    for k in Kind::ALL {
        let w = k.words();
        let _ = writeln!(o, "| `{}` | {} | {} | {} |", w.name, w.before, w.effect, w.sign);
    }
    o += "\n## The procedures\n\n| figure | procedure | command | steps (numbers in the figure) |\n|---|---|---|---|\n";
    for r in ALL {
        let figure = r.figure.map_or_else(|| "-".to_owned(), |f| f.to_string());
        let step = |(k, n): &(Kind, &str)| match *n {
            "" => format!("`{}`", k.words().name),
            n => format!("`{}` ({n})", k.words().name),
        };
        let steps: Vec<String> = r.steps.iter().map(step).collect();
        let _ = writeln!(o, "| {figure} | {} | `{}` | {} |", r.title, r.command, steps.join(", "));
    }
    o
}
