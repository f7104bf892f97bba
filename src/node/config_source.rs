//! The text of a file of the operator's while it is read: lines, errors with what to write instead, names, paths,
//! addresses. Site files and the definition files of applications are read with it.

use crate::base::{Error, Result};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use toml::Spanned;

/// Most things of one sort: volumes of a group, groups, peers, …
const ITEMS_MAX: usize = 64;
/// Longest path of a Unix socket, bytes (`sun_path` less its NUL).
const UNIX_PATH_BYTES_MAX: usize = 107;

/// What a sort of file is made of, for errors of syntax and type.
pub(crate) struct Lang {
    /// What a right line looks like, for each key.
    pub examples: &'static [(&'static str, &'static str)],
    /// The forms of a line.
    pub forms: &'static str,
}

/// A file's text and where it came from.
pub(crate) struct Source<'a> {
    /// As the user named it: what errors begin with.
    pub file: String,
    pub text: &'a str,
    /// Absolute.
    pub path: PathBuf,
    /// The sort of file.
    pub lang: &'static Lang,
}

/// A text with its place.
pub(crate) type Str = Spanned<String>;

/// A site file.
pub(crate) const SITE: Lang = Lang {
    examples: EXAMPLES,
    forms: "KEY = VALUE, [node], [limits], [launch], [[peer]], [[group]], [[group.volume]] or [[group.pair]]",
};

const EXAMPLES: &[(&str, &str)] = &[
    ("site", "site = \"primary\""),
    ("state_dir", "state_dir = \"state\""),
    ("listen", "listen = [\"unix:run/node.sock\", \"127.0.0.1:7401\"]"),
    ("metrics", "metrics = \"127.0.0.1:9469\""),
    ("metrics_open", "metrics_open = true or false"),
    ("addr", "addr = \"unix:../sync/run/node.sock\" or \"HOST:PORT\""),
    ("key", "key = \"kgm1:…\" as `kagami keygen` prints it"),
    ("name", "name = \"lab\""),
    ("fence", "fence = \"never\" or \"data\""),
    ("write_through", "write_through = true or false"),
    ("primary", "primary = \"SITE\""),
    ("mount", "mount = \"/srv/lab\""),
    ("region", "region = \"region\""),
    ("legs", "legs = [\"regionA\", \"regionB\"]"),
    ("drives", "drives = [\"/disk1/region\", \"/disk2/region\"]"),
    ("emulation", "emulation = \"none\" or \"raid1\""),
    ("size", "size = \"100MB\" or \"200MiB\""),
    ("env_file", "env_file = \"env.txt\""),
    ("takeover", "takeover = \"manual\" or \"auto\""),
    ("arbiter", "arbiter = { site = \"SITE\" } or { etcd = [\"http://127.0.0.1:2379\"] }"),
    ("etcd", "etcd = [\"http://127.0.0.1:2379\"]"),
    ("prefix", "prefix = \"kagami\""),
    ("detect", "detect = 5"),
    ("remote", "remote = \"p0/0\", its port and lu at the other site"),
    ("port", "port = \"p0\""),
    ("lu", "lu = 0"),
    ("mode", "mode = \"sync\" or \"async\""),
    ("sites", "sites = [\"primary\", \"sync\"]"),
    ("node", "[node] with site = \"primary\" below it"),
    ("peer", "[[peer]] with site = \"…\" below it"),
    ("group", "[[group]] with name = \"…\" below it"),
    ("volume", "[[group.volume]] with name = \"…\" below it"),
    ("pair", "[[group.pair]] with name = \"…\" below it"),
    ("limits", "[limits] with spool_mib = 256 below it"),
    ("queue_memory_mib", "queue_memory_mib = 64"),
    ("spool_mib", "spool_mib = 256"),
    ("link_timeout_ms", "link_timeout_ms = 5000"),
    ("heartbeat_ms", "heartbeat_ms = 1000"),
    ("progress_timeout_ms", "progress_timeout_ms = 30000"),
    ("journal_mib", "journal_mib = 256"),
    ("log_mib", "log_mib = 512"),
    ("launch", "[launch] with commands = [\"/usr/bin/postgres\"] below it"),
    ("commands", "commands = [\"/usr/bin/postgres\", \"/opt/shop/bin/\"]"),
    ("users", "users = [\"postgres\"]"),
    ("mounts", "mounts = [\"/DB/\", \"/AP/\"]"),
    ("env", "env = [\"PYTHONPATH\"]"),
    ("from_volume", "from_volume = true or false"),
    ("cover_non_empty", "cover_non_empty = true or false"),
    ("on_lost_primary", "on_lost_primary = \"wait\", \"ask\" or \"mount\""),
    ("on_suspend", "on_suspend = \"wait\", \"ask\" or \"mount\""),
    ("lost_primary_after_s", "lost_primary_after_s = 10"),
];

impl Lang {
    pub(crate) fn example(&self, key: &str) -> Option<&'static str> {
        self.examples.iter().find(|(k, _)| *k == key).map(|(_, e)| *e)
    }
}

/// The words between the first pair of backticks.
fn quoted(msg: &str) -> Option<&str> {
    msg.split('`').nth(1)
}

/// The known key that was probably meant: the same letters apart from one or two.
fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known.map(|k| (distance(word, k), k)).filter(|(d, k)| *d <= 1 + k.len() / 4).min().map(|(_, k)| k)
}

/// Edits between two words (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diag = i;
        let mut left = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let up = row.get(j + 1).copied().unwrap_or(0);
            let best = (diag + usize::from(ca != *cb)).min(left + 1).min(up + 1);
            diag = up;
            if let Some(r) = row.get_mut(j) {
                *r = left;
            }
            left = best;
        }
        if let Some(r) = row.last_mut() {
            *r = left;
        }
    }
    row.last().copied().unwrap_or(0)
}

impl Source<'_> {
    pub(crate) fn line_of(&self, offset: usize) -> usize {
        self.text.bytes().take(offset).filter(|b| *b == b'\n').count() + 1
    }

    pub(crate) fn err(&self, span: Range<usize>, msg: impl std::fmt::Display) -> Error {
        Error::config(format!("{}:{}: {msg}", self.file, self.line_of(span.start)))
    }

    pub(crate) fn at<T>(&self, s: &Spanned<T>, msg: impl std::fmt::Display) -> Error {
        self.err(s.span(), msg)
    }

    /// The key at the start of a line, if it is a `key = value` line.
    fn key_at(&self, offset: usize) -> Option<&str> {
        let line = self.text.lines().nth(self.line_of(offset) - 1)?;
        line.split_once('=').map(|(k, _)| k.trim().trim_matches('"'))
    }

    /// An error of the TOML parser or of the shape, with what to write instead.
    pub(crate) fn shape(&self, e: &toml::de::Error) -> Error {
        let start = e.span().map_or(0, |s| s.start);
        let msg = e.message().trim().replace('\n', ", ");
        let span = start..start;
        if let Some(rest) = msg.strip_prefix("unknown field ") {
            let word = quoted(rest).unwrap_or("?").to_owned();
            let known: Vec<&str> = rest.split('`').skip(3).step_by(2).collect();
            let what = match nearest(&word, known.iter().copied()) {
                Some(k) => format!("write {} instead", self.lang.example(k).unwrap_or(k)),
                None => format!("write one of {} instead, or remove the line", known.join(", ")),
            };
            return self.err(span, format!("unknown key {word}; {what}"));
        }
        if msg.starts_with("missing field ") {
            let word = quoted(&msg).unwrap_or("?");
            return self
                .err(span, format!("{word} is missing here; write {}", self.lang.example(word).unwrap_or(word)));
        }
        match self.key_at(start).and_then(|k| self.lang.example(k).map(|x| (k, x))) {
            Some((k, x)) => self.err(span, format!("{k}: {msg}; write {x} instead")),
            None => self.err(span, format!("{msg}; write {}", self.lang.forms)),
        }
    }

    /// A name: also safe as a file name and as an argument.
    pub(crate) fn name(&self, what: &str, s: &Str) -> Result<String> {
        let n = s.get_ref();
        let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if n.is_empty() || n.len() > 64 || !n.chars().all(ok) || !n.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return Err(self.at(
                s,
                format!(
                    "{what} {n:?} is not a name; write 1 to 64 of the characters A-Z a-z 0-9 _ . - instead, the first a letter or digit"
                ),
            ));
        }
        Ok(n.clone())
    }

    /// A path, made absolute and free of `.` and `..` without touching the disk.
    pub(crate) fn path(&self, what: &str, s: &Str) -> Result<PathBuf> {
        if s.get_ref().is_empty() || s.get_ref().contains('\0') {
            return Err(self.at(s, format!("{what} is no path; write a directory, as in {what} = \"{what}\", instead")));
        }
        Ok(self.resolve(s.get_ref()))
    }

    pub(crate) fn resolve(&self, p: &str) -> PathBuf {
        let base = self.path.parent().unwrap_or(Path::new("/"));
        let mut out = PathBuf::new();
        for c in base.join(p).components() {
            match c {
                Component::CurDir => {}
                Component::ParentDir => {
                    out.pop();
                }
                c => out.push(c),
            }
        }
        out
    }

    pub(crate) fn addr(&self, what: &str, s: &Str) -> Result<String> {
        let a = s.get_ref();
        if let Some(p) = a.strip_prefix("unix:") {
            let p = self.resolve(p);
            let n = p.as_os_str().len();
            if n > UNIX_PATH_BYTES_MAX {
                return Err(self.at(
                    s,
                    format!("{what}: {} has {n} bytes and a Unix socket's path at most {UNIX_PATH_BYTES_MAX}; write a shorter path, as in \"unix:/run/kagami/node.sock\", or \"127.0.0.1:7401\" instead", p.display()),
                ));
            }
            return Ok(format!("unix:{}", p.display()));
        }
        let hp = a.strip_prefix("tcp:").unwrap_or(a);
        let ok = hp.rsplit_once(':').is_some_and(|(h, p)| {
            let host = !h.is_empty() && !h.contains(|c: char| c.is_whitespace() || c == '/');
            let v6 = !h.contains(':') || (h.starts_with('[') && h.ends_with(']'));
            host && v6 && p.parse::<u16>().is_ok_and(|p| p > 0)
        });
        if !ok {
            return Err(self.at(
                s,
                format!("{what} {a:?} is no address; write \"unix:PATH\" or \"HOST:PORT\", as in \"127.0.0.1:7401\" or \"[::1]:7401\", instead"),
            ));
        }
        Ok(hp.to_owned())
    }

    pub(crate) fn number(&self, key: &str, s: &Option<Spanned<i64>>, range: Range<u64>) -> Result<Option<u64>> {
        let Some(s) = s else { return Ok(None) };
        match u64::try_from(*s.get_ref()) {
            Ok(n) if range.contains(&n) => Ok(Some(n)),
            _ => Err(self.at(
                s,
                format!(
                    "{key} = {} is out of range; write a number from {} to {} instead",
                    s.get_ref(),
                    range.start,
                    range.end - 1
                ),
            )),
        }
    }
}

/// Refuses a second thing of the same name and says where the first one is.
pub(crate) struct Unique<'s, 'a> {
    src: &'s Source<'a>,
    what: &'static str,
    seen: BTreeMap<String, usize>,
}

impl<'s, 'a> Unique<'s, 'a> {
    pub(crate) fn new(src: &'s Source<'a>, what: &'static str) -> Unique<'s, 'a> {
        Unique { src, what, seen: BTreeMap::new() }
    }

    pub(crate) fn add(&mut self, value: &str, span: Range<usize>) -> Result<()> {
        if self.seen.len() >= ITEMS_MAX {
            return Err(self.src.err(span, format!("more than {ITEMS_MAX} times {}; write fewer", self.what)));
        }
        let line = self.src.line_of(span.start);
        match self.seen.insert(value.to_owned(), line) {
            Some(first) => Err(self
                .src
                .err(span, format!("{} {value} is already in line {first}; write another one instead", self.what))),
            None => Ok(()),
        }
    }
}
