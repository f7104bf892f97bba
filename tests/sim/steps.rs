//! Draws steps that are legal in a tree.

use super::model::{Node, Op, Tree, within};
use super::rng::Rng;

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
/// Most bytes of a file.
const FILE_BYTES_MAX: usize = 40_000;
/// Most names in a directory of a client.
const NAMES_MAX: usize = 24;

/// The next step.
pub fn draw(t: &Tree, rng: &mut Rng, number: u64) -> Op {
    loop {
        if let Some(op) = attempt(t, rng, number) {
            return op;
        }
    }
}

fn pick<'a>(t: &'a Tree, rng: &mut Rng, want: impl Fn(&Node) -> bool) -> Option<&'a String> {
    let all: Vec<&String> = t.names.iter().filter(|(_, n)| want(n)).map(|(k, _)| k).collect();
    if all.is_empty() { None } else { Some(all[rng.below(all.len() as u64) as usize]) }
}

/// A name that is free, in the directory itself or one below.
fn free(t: &Tree, rng: &mut Rng) -> Option<String> {
    let name = NAMES[rng.below(NAMES.len() as u64) as usize];
    let dir = if rng.chance(0.5) { pick(t, rng, |n| matches!(n, Node::Dir(_))) } else { None };
    // Not deep: more than three levels show nothing that three do not.
    let path = match dir {
        Some(d) if d.matches('/').count() < 2 => format!("{d}/{name}"),
        _ => name.to_owned(),
    };
    (!t.names.contains_key(&path) && t.names.len() < NAMES_MAX).then_some(path)
}

fn is_file(n: &Node) -> bool {
    matches!(n, Node::File(_))
}

fn content(rng: &mut Rng, number: u64, len: usize) -> Vec<u8> {
    let mut word = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let one = rng.chance(0.2);
    (0..len)
        .map(|_| {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            if one { number as u8 | 1 } else { word as u8 }
        })
        .collect()
}

fn attempt(t: &Tree, rng: &mut Rng, number: u64) -> Option<Op> {
    let file = |rng: &mut Rng| pick(t, rng, is_file).cloned();
    Some(match rng.below(100) {
        0..14 => Op::Create { path: free(t, rng)?, mode: [0o644, 0o600, 0o755, 0o4755][rng.below(4) as usize] },
        14..44 => {
            let path = file(rng)?;
            let size = t.file(&path)?.content.len();
            let off = match rng.below(3) {
                0 => size,
                1 => 0,
                _ => rng.below(size as u64 + 5000) as usize,
            };
            let len = [1, 17, 300, 4096, 9000][rng.below(5) as usize];
            if off + len > FILE_BYTES_MAX {
                return None;
            }
            Op::Write { path, off, data: content(rng, number, len) }
        }
        44..49 => {
            let path = file(rng)?;
            let size = t.file(&path)?.content.len() as u64;
            Op::Truncate { path, size: rng.below(size + size / 2 + 100).min(FILE_BYTES_MAX as u64) as usize }
        }
        49..52 => {
            let path = file(rng)?;
            let size = t.file(&path)?.content.len() as u64;
            Op::Punch { path, off: rng.below(size + 1) as usize, len: 1 + rng.below(9000) as usize }
        }
        52..57 => Op::Mkdir { path: free(t, rng)?, mode: [0o755, 0o700][rng.below(2) as usize] },
        57..60 => Op::Symlink { path: free(t, rng)?, target: format!("to/{number}").into_bytes() },
        60..65 => Op::Link { from: file(rng)?, to: free(t, rng)? },
        65..71 => Op::Unlink { path: pick(t, rng, |n| !matches!(n, Node::Dir(_)))?.clone() },
        71..73 => {
            let path = pick(t, rng, |n| matches!(n, Node::Dir(_)))?.clone();
            if t.names.keys().any(|k| *k != path && within(k, &path)) {
                return None;
            }
            Op::Rmdir { path }
        }
        73..81 => rename(t, rng)?,
        81..83 => {
            let (a, b) = (pick(t, rng, |_| true)?.clone(), pick(t, rng, |_| true)?.clone());
            // One file by two names is not exchanged; a directory not with what is in it.
            if within(&a, &b) || within(&b, &a) || t.names[&a] == t.names[&b] {
                return None;
            }
            Op::Exchange { a, b }
        }
        83..88 => {
            let path = pick(t, rng, |n| !matches!(n, Node::Link(_)))?.clone();
            Op::Chmod { path, mode: [0o640, 0o700, 0o755, 0o751][rng.below(4) as usize] }
        }
        88..92 => {
            let key = format!("user.{}", NAMES[rng.below(3) as usize]).into_bytes();
            Op::SetXattr { path: file(rng)?, key, value: content(rng, number, 1 + (number % 40) as usize) }
        }
        92..93 => {
            let path = file(rng)?;
            let key = t.file(&path)?.xattrs.keys().next()?.clone();
            Op::RemoveXattr { path, key }
        }
        _ => Op::Fsync { path: file(rng)? },
    })
}

/// To a free name, or over something of the same sort.
fn rename(t: &Tree, rng: &mut Rng) -> Option<Op> {
    let from = pick(t, rng, |_| true)?.clone();
    let to = if rng.chance(0.6) { free(t, rng)? } else { pick(t, rng, |n| !matches!(n, Node::Dir(_)))?.clone() };
    let (a, b) = (&t.names[&from], t.names.get(&to));
    let over_dir = matches!(a, Node::Dir(_)) && b.is_some();
    // rename(2) does nothing for two names of one file.
    if within(&to, &from) || within(&from, &to) || b == Some(a) || over_dir {
        return None;
    }
    Some(Op::Rename { from, to })
}
