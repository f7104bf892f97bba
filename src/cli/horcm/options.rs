//! The options of each command: which are heeded, which are taken without effect, which are refused and why.

use super::Fail;
use crate::pair::horcm::Code;
use std::collections::BTreeMap;

/// What follows an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// Nothing.
    Nothing,
    /// A word.
    Word,
    /// A word, and perhaps a number.
    WordNumber,
    /// Perhaps a number.
    Number,
    /// Letters, attached: any of these.
    Letters(&'static str),
}

/// What an option does here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Does {
    /// What it says.
    This(&'static str),
    /// Nothing, and that is said with this reason.
    Nothing(&'static str),
    /// It is refused with this reason.
    Refused(&'static str),
}

/// An option.
pub type Opt = (&'static str, Takes, Does);

/// A command.
pub struct Command {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub about: &'static str,
    /// Its own options, beside [`COMMON`].
    pub options: &'static [Opt],
}

use Does::{Refused, This};
use Takes::{Letters, Number, Word, WordNumber};

const LOCAL_COPY: &str = "there are no copies within one site (ShadowImage)";

/// Options of every command.
pub const COMMON: [Opt; 12] = [
    ("g", Word, This("GROUP/PAIR, a PAIR that only one group has, or a GROUP with all its pairs")),
    ("d", Word, This("of these only this pair, or this volume")),
    ("h", Takes::Nothing, This("prints the options")),
    ("nomsg", Takes::Nothing, This("prints nothing")),
    ("FHORC", Number, Does::Nothing("every pair is a remote one")),
    ("FCA", Number, Does::Nothing("every pair is a remote one")),
    ("FHOMRCF", Number, Refused(LOCAL_COPY)),
    ("FMRCF", Number, Refused(LOCAL_COPY)),
    ("FBC", Number, Refused(LOCAL_COPY)),
    ("dg", Word, Refused("device files are not searched for: name the group with -g")),
    ("z", Takes::Nothing, Refused("there is no interactive mode")),
    ("zx", Takes::Nothing, Refused("there is no interactive mode")),
];

const JOURNALS: &str = "journals have their sizes in the site file";
const PACE: &str = "a copy goes as fast as the link takes it";
const SPLIT_S: &str = "the copy within one site has no counterpart";

/// Every command.
pub const COMMANDS: [Command; 8] = [
    Command {
        name: "paircreate",
        about: "starts a pair: the first copy begins",
        options: &[
            ("vl", Takes::Nothing, This("the primary volume is here")),
            ("vr", Takes::Nothing, This("the primary volume is at the other end")),
            ("f", WordNumber, This("never, data or async [CTGID]: must be what the site file says")),
            ("nocopy", Takes::Nothing, This("both ends are equal already: they are compared, not copied")),
            ("c", Word, Does::Nothing(PACE)),
            ("jp", Word, Does::Nothing(JOURNALS)),
            ("js", Word, Does::Nothing(JOURNALS)),
            ("jq", Word, Does::Nothing(JOURNALS)),
            ("pid", Word, Does::Nothing("regions are directories")),
            ("split", Takes::Nothing, Refused(LOCAL_COPY)),
            ("nocsus", Takes::Nothing, Refused("make it with -nocopy, then suspend it with pairsplit")),
            ("m", Word, Refused("there is one way to record changes, the journal")),
        ],
    },
    Command {
        name: "pairsplit",
        about: "suspends a pair, or ends it",
        options: &[
            ("r", Takes::Nothing, This("suspends (as without it)")),
            ("rw", Takes::Nothing, Does::Nothing("a secondary is written to after horctakeover or -RS only")),
            ("S", Takes::Nothing, This("ends the pair")),
            ("RS", Takes::Nothing, This("takes the secondary over without the primary (SSWS)")),
            ("t", WordNumber, This("waits for so many seconds at most [3600]")),
            ("nowait", Takes::Nothing, This("does not wait until it is suspended")),
            ("l", Takes::Nothing, Does::Nothing("an order at the primary needs no other end")),
            ("R", Takes::Nothing, Refused("-S at the primary ends the pair, horctakeover works without it")),
            ("RB", Takes::Nothing, Refused("what a takeover began is undone by horctakeover at the other end")),
            ("P", Takes::Nothing, Refused("writes are not refused by order: unmount the volume")),
            ("E", Takes::Nothing, Refused(SPLIT_S)),
            ("C", Word, Refused(SPLIT_S)),
            ("fq", Word, Refused(SPLIT_S)),
        ],
    },
    Command {
        name: "pairresync",
        about: "resumes a suspended pair: what changed is copied",
        options: &[
            ("swaps", Takes::Nothing, This("at the secondary: it becomes the primary")),
            ("swapp", Takes::Nothing, This("at the primary, in PAIR: it becomes the secondary")),
            ("l", Takes::Nothing, Does::Nothing("an order at the primary needs no other end")),
            ("c", Word, Does::Nothing(PACE)),
            ("restore", Takes::Nothing, Refused("the way back is horctakeover at the other end")),
            ("fq", Word, Refused(SPLIT_S)),
        ],
    },
    Command {
        name: "pairdisplay",
        about: "shows both ends of each pair",
        options: &[
            ("f", Letters("cxde"), This("c: how much is copied; x: LDEV# in hex; d: the mount; e: group and link")),
            ("CLI", Takes::Nothing, This("columns parted by blanks only")),
            ("l", Takes::Nothing, This("only the ends here")),
            ("m", Word, Does::Nothing("every pair of the group is shown as it is")),
            (
                "c",
                Takes::Nothing,
                Refused("`kagami config check` and the greeting of the ends check the configuration"),
            ),
            ("v", Word, Refused("`kagami status` and `kagami journal stat` show the journals")),
        ],
    },
    Command {
        name: "pairvolchk",
        about: "tells by its exit code what an end of a pair is, and how the pair is",
        options: &[
            ("s", Takes::Nothing, This("prints the status (as without it)")),
            (
                "ss",
                Takes::Nothing,
                This("ends with attribute and status in one: 11, 22 to 25, 32 to 35, async 20 more"),
            ),
            ("c", Takes::Nothing, This("the other end instead of this one")),
        ],
    },
    Command {
        name: "pairevtwait",
        about: "waits for a status",
        options: &[
            ("s", Word, This("smpl, copy, pair, psus, psue or psuse")),
            ("ss", Word, This("the same, of the secondary volume")),
            ("t", WordNumber, This("for so many seconds at most [3600]")),
            ("nowait", Takes::Nothing, This("ends with the status: 1 SMPL, 2 COPY, 3 PAIR, 4 PSUS, 5 PSUE")),
            ("nowaits", Takes::Nothing, This("the same, of the secondary volume")),
            ("l", Takes::Nothing, This("what this end knows (as without it)")),
        ],
    },
    Command {
        name: "pairsyncwait",
        about: "waits until what was written by now is at the other end (async)",
        options: &[
            ("m", Word, This("waits for this mark of an earlier call")),
            ("t", WordNumber, This("for so many seconds at most [3600]")),
            ("nowait", Takes::Nothing, This("only prints the mark")),
            ("fq", Takes::Nothing, Does::Nothing("the number of entries to come is always shown")),
        ],
    },
    Command {
        name: "horctakeover",
        about: "makes the volume writable here, whatever the other end does",
        options: &[
            ("S", Takes::Nothing, This("takes a secondary over, does not swap")),
            ("l", Takes::Nothing, This("makes a fenced primary writable")),
            ("t", WordNumber, This("waits for so many seconds at most")),
        ],
    },
];

/// The options that were given.
#[derive(Debug, Default)]
pub struct Given {
    values: BTreeMap<&'static str, Vec<String>>,
    /// What is to be said of options without effect.
    pub notes: Vec<String>,
    /// Number of the instance (`-I`, `-IH`).
    pub instance: Option<u32>,
}

impl Given {
    /// True when it was given.
    pub fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// Its value, if it has one.
    pub fn word(&self, name: &str) -> Option<&str> {
        self.values.get(name).and_then(|v| v.first()).map(String::as_str)
    }

    /// Its value in seconds.
    pub fn seconds(&self, name: &str) -> Result<Option<std::time::Duration>, Fail> {
        let Some(w) = self.word(name) else { return Ok(None) };
        match w.parse::<u32>() {
            Ok(s) => Ok(Some(std::time::Duration::from_secs(s.into()))),
            Err(_) => Err(Fail::new(Code::Invarg, format!("-{name} {w}: write a number of seconds"))),
        }
    }
}

/// Reads the arguments of a command.
pub fn parse(c: &Command, args: &[String]) -> Result<Given, Fail> {
    let mut given = Given::default();
    let mut args = args.iter().peekable();
    let number = |s: &String| s.parse::<u32>().is_ok();
    while let Some(arg) = args.next() {
        let Some(name) = arg.strip_prefix('-').filter(|n| !n.is_empty()) else {
            return Err(Fail::new(Code::Invarg, format!("{arg:?} belongs to no option; {} -h lists them", c.name)));
        };
        if let Some(i) = name.strip_prefix('I') {
            given.instance = instance(i)?.or(given.instance);
            continue;
        }
        let options = || c.options.iter().chain(&COMMON);
        let letters = |o: &&Opt| match o.1 {
            Letters(l) => name.strip_prefix(o.0).is_some_and(|n| n.chars().all(|x| l.contains(x))),
            _ => false,
        };
        let Some((known, takes, does)) =
            options().find(|o| o.0 == name && !matches!(o.1, Letters(_))).or_else(|| options().find(letters))
        else {
            return Err(Fail::new(Code::Unwopt, format!("unknown option -{name}; {} -h lists them", c.name)));
        };
        let mut values = Vec::new();
        match takes {
            Word | WordNumber => match args.next_if(|a| !a.starts_with('-')) {
                Some(v) => values.push(v.clone()),
                None => return Err(Fail::new(Code::Reqarg, format!("-{known} needs a value"))),
            },
            Letters(_) => values.push(name.trim_start_matches(known).to_owned()),
            Takes::Nothing | Number => {}
        }
        if matches!(takes, WordNumber | Number) {
            values.extend(args.next_if(|a| number(a)).cloned());
        }
        match does {
            This(_) => {}
            Does::Nothing(why) => given.notes.push(format!("-{name} has no effect: {why}")),
            Refused(why) => return Err(Fail::new(Code::Unwopt, format!("-{name} has no counterpart: {why}"))),
        }
        given.values.insert(known, values);
    }
    Ok(given)
}

/// `[H|TC|CA|M|SI|BC][NUMBER]` after `-I`.
fn instance(text: &str) -> Result<Option<u32>, Fail> {
    let digits = text.trim_start_matches(|c: char| c.is_ascii_alphabetic());
    let kind = text.strip_suffix(digits).unwrap_or_default();
    match kind {
        "" | "H" | "TC" | "CA" => {}
        "M" | "SI" | "BC" => return Err(Fail::new(Code::Unwopt, format!("-I{text}: {LOCAL_COPY}"))),
        _ => return Err(Fail::new(Code::Unwopt, format!("unknown option -I{text}"))),
    }
    match digits {
        "" => Ok(None),
        d => d.parse().map(Some).map_err(|_| Fail::new(Code::Invarg, format!("-I{text}: write a number"))),
    }
}

/// `COMMAND -h`.
pub fn help(c: &Command) -> String {
    let mut out = format!("{}: {}\n", c.name, c.about);
    for (name, takes, does) in c.options.iter().chain(&COMMON) {
        let after = match takes {
            Takes::Nothing | Number => String::new(),
            Word => " X".into(),
            WordNumber => " X [N]".into(),
            Letters(l) => format!("[{l}]"),
        };
        let words = match does {
            This(t) => (*t).to_owned(),
            Does::Nothing(why) => format!("no effect: {why}"),
            Refused(why) => format!("refused: {why}"),
        };
        out += &format!("  {:<12} {words}\n", format!("-{name}{after}"));
    }
    out += "  -I[H][N]     the site file horcmN.toml beside the default one (also $HORCMINST)\n";
    out
}

/// The options for people, as in `docs/HORCM.md`.
#[cfg(test)]
fn markdown() -> String {
    let mut out = String::from("| command | heeded | no effect, and says so | refused (252) |\n|---|---|---|---|\n");
    let row = |name: &str, options: &[Opt]| {
        let list = |want: fn(&Does) -> bool| {
            let o: Vec<String> = options.iter().filter(|o| want(&o.2)).map(|o| format!("`-{}`", o.0)).collect();
            o.join(" ")
        };
        let heeded = list(|d| matches!(d, This(_)));
        let (none, refused) = (list(|d| matches!(d, Does::Nothing(_))), list(|d| matches!(d, Refused(_))));
        format!("| {name} | {heeded} | {none} | {refused} |\n")
    };
    for c in &COMMANDS {
        out += &row(c.name, c.options);
    }
    out + &row("every command", &COMMON)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(command: &str, line: &str) -> Result<Given, (u8, String)> {
        let c = COMMANDS.iter().find(|c| c.name == command).unwrap();
        let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        parse(c, &args).map_err(|f| (f.code.value(), f.msg))
    }

    #[test]
    fn c5_options_as_scripts_write_them() {
        let g = read("paircreate", "-g vg01 -d dev1 -f async 3 -vl -c 15 -IH7").unwrap();
        assert_eq!(
            (g.word("g"), g.word("d"), g.word("f"), g.instance),
            (Some("vg01"), Some("dev1"), Some("async"), Some(7))
        );
        assert!(g.has("vl") && !g.has("vr") && g.notes.len() == 1, "{:?}", g.notes);
        let g = read("pairdisplay", "-g vg01 -fcx -CLI").unwrap();
        assert_eq!(g.word("f"), Some("cx"));
        let g = read("pairevtwait", "-g x -s psus -t 30 10 -FHORC 1").unwrap();
        assert_eq!(g.seconds("t").unwrap().unwrap().as_secs(), 30);
        assert_eq!(read("pairvolchk", "-g x -ITC2 -ss").unwrap().instance, Some(2));
        for (command, line, code, words) in [
            ("pairsplit", "-g", 254, "-g needs a value"),
            ("pairsplit", "-g -S", 254, "-g needs a value"),
            ("pairsplit", "-g x -q", 252, "unknown option -q"),
            ("pairsplit", "-g x -P", 252, "unmount the volume"),
            ("pairsplit", "-g x -FHOMRCF 1", 252, "ShadowImage"),
            ("pairdisplay", "-g x -fy", 252, "unknown option -fy"),
            ("pairdisplay", "x", 253, "belongs to no option"),
            ("pairvolchk", "-IM1", 252, "ShadowImage"),
            ("pairvolchk", "-IH1x", 253, "write a number"),
            ("pairvolchk", "-g x -d y z", 253, "\"z\" belongs"),
        ] {
            let (c, msg) = read(command, line).unwrap_err();
            assert!(c == code && msg.contains(words), "{command} {line}: {c} {msg}");
        }
        let late = read("pairevtwait", "-g x -t soon").unwrap().seconds("t").unwrap_err();
        assert_eq!(late.code, Code::Invarg);
    }

    #[test]
    fn c5_no_option_is_listed_twice() {
        for c in &COMMANDS {
            let names: Vec<_> = c.options.iter().chain(&COMMON).map(|o| o.0).collect();
            assert!((1..names.len()).all(|i| !names[..i].contains(&names[i])), "{}: {names:?}", c.name);
            assert!(help(c).lines().count() > COMMON.len());
        }
    }

    /// With `KAGAMI_BLESS=1` the table of the document is written anew.
    #[test]
    fn c5_the_document_has_the_options() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/HORCM.md");
        let (from, to) = ("<!-- options of src/cli/horcm/options.rs -->\n", "<!-- end of options -->\n");
        let text = std::fs::read_to_string(path).unwrap();
        let (head, rest) = text.split_once(from).expect("the mark before the table");
        let (table, tail) = rest.split_once(to).expect("the mark after the table");
        if std::env::var_os("KAGAMI_BLESS").is_some() {
            std::fs::write(path, format!("{head}{from}{}{to}{tail}", markdown())).unwrap();
            return;
        }
        assert!(table == markdown(), "docs/HORCM.md is old; run the test with KAGAMI_BLESS=1");
    }
}
