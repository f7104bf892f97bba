//! The style that can be checked by reading: who may import whom, where `unsafe` may stand, how long a file may be.

use std::fs;
use std::path::{Path, PathBuf};

/// The floors, lowest first. A module may use those before it and itself, never one after it.
const FLOORS: [&str; 13] =
    ["base", "format", "pair", "os", "store", "net", "volume", "node", "fs", "launch", "site", "cli", "main"];

/// The one floor that may hold `unsafe`.
const UNSAFE_FLOOR: &str = "os";

/// Lines of a source file, at most; beyond this a reader no longer finds the room by its name.
const FILE_LINES_MAX: usize = 700;

/// Files that may be longer: (path below `src`, reason).
const LONG_FILES: [(&str, &str); 0] = [];

/// Every `*.rs` below `src`, with its path relative to it and its text.
fn sources() -> Vec<(PathBuf, String)> {
    fn walk(dir: &Path, root: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, root, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push((path.strip_prefix(root).unwrap().to_path_buf(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&root, &root, &mut found);
    found
}

/// The floor a file belongs to: its first directory, or its own name directly below `src`.
fn floor_of(path: &Path) -> String {
    let first = path.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// Blanks comments, string and character literals, so that only code is judged. Line structure stays.
fn code_only(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let mut i = 0;
    let skip = |out: &mut String, from: usize, to: usize| {
        for &b in &bytes[from..to.min(bytes.len())] {
            out.push(if b == b'\n' { '\n' } else { ' ' });
        }
    };
    while i < bytes.len() {
        let rest = &bytes[i..];
        let word_before = i > 0 && (bytes[i - 1].is_ascii_alphanumeric() || bytes[i - 1] == b'_');
        let end = if rest.starts_with(b"//") {
            i + rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            end_of_block_comment(bytes, i)
        } else if !word_before && raw_string_hashes(rest).is_some() {
            end_of_raw_string(bytes, i, raw_string_hashes(rest).unwrap())
        } else if rest[0] == b'"' {
            end_of_quoted(bytes, i, b'"')
        } else if rest[0] == b'\'' && is_char_literal(rest) {
            end_of_quoted(bytes, i, b'\'')
        } else {
            out.push(if rest[0].is_ascii() { rest[0] as char } else { ' ' });
            i += 1;
            continue;
        };
        skip(&mut out, i, end);
        i = end;
    }
    out
}

fn end_of_block_comment(bytes: &[u8], start: usize) -> usize {
    let (mut depth, mut i) = (0, start);
    while i < bytes.len() {
        match &bytes[i..] {
            [b'/', b'*', ..] => (depth, i) = (depth + 1, i + 2),
            [b'*', b'/', ..] => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            break;
        }
    }
    i
}

/// The number of `#` if a raw (byte) string starts here.
fn raw_string_hashes(rest: &[u8]) -> Option<usize> {
    let after = rest.strip_prefix(b"br").or_else(|| rest.strip_prefix(b"r"))?;
    let hashes = after.iter().take_while(|&&b| b == b'#').count();
    (after.get(hashes) == Some(&b'"')).then_some(hashes)
}

fn end_of_raw_string(bytes: &[u8], start: usize, hashes: usize) -> usize {
    let open = start + bytes[start..].iter().position(|&b| b == b'"').unwrap() + 1;
    let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    bytes[open..].windows(close.len()).position(|w| w == close).map_or(bytes.len(), |at| open + at + close.len())
}

fn end_of_quoted(bytes: &[u8], start: usize, quote: u8) -> usize {
    let mut i = start + 1;
    while i < bytes.len() && bytes[i] != quote {
        i += if bytes[i] == b'\\' { 2 } else { 1 };
    }
    i + 1
}

/// Tells 'x' and '\n' from a lifetime.
fn is_char_literal(rest: &[u8]) -> bool {
    match rest {
        [_, b'\\', ..] => true,
        [_, first, ..] if first.is_ascii() => rest.get(2) == Some(&b'\''),
        _ => true,
    }
}

/// Names `crate::<this>` and `crate::{<these>, …}` of a text without comments.
fn crate_imports(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let after = code[at + "crate::".len()..].trim_start();
        match after.strip_prefix('{') {
            Some(group) => names.extend(group_heads(group)),
            None => names.push(leading_word(after)),
        }
    }
    names
}

fn leading_word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The first word of each item of `a::b, c::{d, e}, f}` up to the brace that closes the group.
fn group_heads(group: &str) -> Vec<String> {
    let (mut depth, mut item, mut heads) = (0, String::new(), Vec::new());
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => heads.push(leading_word(std::mem::take(&mut item).trim())),
            _ if depth == 0 => item.push(c),
            _ => {}
        }
    }
    heads.push(leading_word(item.trim()));
    heads.retain(|h| !h.is_empty());
    heads
}

fn rank(floor: &str) -> Option<usize> {
    FLOORS.iter().position(|f| *f == floor)
}

#[test]
fn lower_floors_never_import_higher_ones() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let floor = floor_of(&path);
        if floor == "lib" {
            continue;
        }
        let own = rank(&floor).unwrap_or_else(|| panic!("{}: no floor of this name; see FLOORS", path.display()));
        for name in crate_imports(&code_only(&text)) {
            if rank(&name).is_some_and(|other| other > own) {
                wrong.push(format!("src/{}: {floor} uses crate::{name}, a higher floor", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_stands_in_os_alone() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        if floor_of(&path) == UNSAFE_FLOOR {
            continue;
        }
        for (number, line) in code_only(&text).lines().enumerate() {
            let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            if words.any(|w| w == "unsafe") {
                wrong.push(format!("src/{}:{}: unsafe outside of src/{UNSAFE_FLOOR}", path.display(), number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What runs under schedules (`src/base/sync.rs`) has no lock that a schedule does not know of.
#[test]
fn locks_of_the_floors_up_to_node_come_from_one_place() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        if path.starts_with("base/sync.rs") || path.starts_with("base/sync") || rank(&floor_of(&path)) > rank("node") {
            continue;
        }
        for (number, line) in code_only(&text).lines().enumerate() {
            let std = line.contains("std::sync") && ["Mutex", "Condvar", "RwLock"].iter().any(|l| line.contains(l));
            if std || line.contains("parking_lot") {
                wrong.push(format!("src/{}:{}: locks are those of base::sync", path.display(), number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What cargo-deny would refuse, also where it is not installed: another registry, a licence that is not listed in
/// deny.toml. And every exception there says why.
#[test]
fn dependencies_come_from_the_registry_under_listed_licences() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let deny: toml::Value = toml::from_str(&fs::read_to_string(root.join("deny.toml")).unwrap()).unwrap();
    let list = |section: &str, key: &str| deny[section][key].as_array().cloned().unwrap_or_default();
    for exception in list("advisories", "ignore") {
        let reason = exception.get("reason").and_then(|r| r.as_str()).unwrap_or_default();
        assert!(reason.len() > 10, "an exception without a reason: {exception}");
    }
    let allowed: Vec<String> = list("licenses", "allow").iter().filter_map(|l| l.as_str().map(str::to_owned)).collect();
    // Only what is built here: the rest need not be on this machine.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let args = ["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", &platform];
    let out = std::process::Command::new(env!("CARGO")).args(args).current_dir(root).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let all: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let packages = all["packages"].as_array().unwrap();
    let mut wrong = Vec::new();
    for p in packages {
        let own = p["source"].is_null() && p["name"] == "kagami";
        if !own && p["source"] != "registry+https://github.com/rust-lang/crates.io-index" {
            wrong.push(format!("{} comes from {}", p["name"], p["source"]));
        }
        let licence = p["license"].as_str().unwrap_or("none");
        if !licence_is_allowed(licence, &allowed) {
            wrong.push(format!("{} is under {licence}", p["name"]));
        }
    }
    assert!(packages.len() > 50 && wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(!licence_is_allowed("GPL-3.0", &allowed) && !licence_is_allowed("MIT AND GPL-3.0", &allowed));
}

/// One side of each OR, both of each AND. Without nested parentheses, which nobody uses.
fn licence_is_allowed(expression: &str, allowed: &[String]) -> bool {
    let one = |l: &str| allowed.iter().any(|a| a == l.trim().trim_matches(['(', ')']));
    let any = |part: &str| part.replace('/', " OR ").split(" OR ").any(one);
    // "A AND (B OR C)" and "(A OR B) AND C", but "A OR B AND C" is A OR (B AND C).
    match expression.contains('(') {
        true => expression.split(" AND ").all(any),
        false => expression.replace('/', " OR ").split(" OR ").any(|part| part.split(" AND ").all(one)),
    }
}

#[test]
fn source_files_stay_readable() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let lines = text.lines().count();
        let listed = LONG_FILES.iter().any(|(listed, _)| Path::new(listed) == path);
        if lines > FILE_LINES_MAX && !listed {
            wrong.push(format!(
                "src/{}: {lines} lines, at most {FILE_LINES_MAX} without a listed reason",
                path.display()
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_reader_of_sources_is_not_fooled() {
    let text = "use crate::{base::X, node::{a, b}}; // crate::cli\nlet s = \"crate::site\"; 'x'; fn f<'a>() { crate::os::g() }\n\
                let r = r#\"unsafe \" crate::fs\"#; /* crate::volume */ let q = '\"'; crate::net::h();";
    assert_eq!(crate_imports(&code_only(text)), ["base", "node", "os", "net"]);
    assert!(!code_only(text).contains("unsafe"));
}
