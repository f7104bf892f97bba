//! What a comparison of two trees by their paths decides: the pure part of a pair that is made without a first copy (MS-11,
//! MS-22), and of a first copy onto a tree that was placed at the site by other means.

use crate::base::{LinkId, Name};
use std::collections::{HashMap, HashSet};

/// Differences after which a comparison ends: the trees are not what they were said to be.
pub const ENOUGH: u64 = 100;
/// Differences named in a refusal.
const NAMED: usize = 5;

/// How much the operator lets be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Names, attributes and content.
    Content,
    /// Names and attributes; for the content the operator's word counts.
    Attributes,
    /// Names only: what can be kept of a tree that is copied to.
    Names,
}

/// The names of a directory at both sides.
#[derive(Debug, PartialEq, Eq)]
pub struct Names<T> {
    /// At both, with what the other side says of it, in order.
    pub both: Vec<(Vec<u8>, T)>,
    /// Only here.
    pub here: Vec<Vec<u8>>,
    /// Only there.
    pub there: Vec<Vec<u8>>,
}

/// Puts the names of both sides side by side.
pub fn meet<T>(ours: Vec<Vec<u8>>, theirs: Vec<(Vec<u8>, T)>) -> Names<T> {
    let mut left: HashMap<Vec<u8>, T> = theirs.into_iter().collect();
    let (mut both, mut here) = (Vec::new(), Vec::new());
    for n in ours {
        match left.remove(&n) {
            Some(t) => both.push((n, t)),
            None => here.push(n),
        }
    }
    let mut there: Vec<Vec<u8>> = left.into_keys().collect();
    both.sort_by(|a, b| a.0.cmp(&b.0));
    here.sort();
    there.sort();
    Names { both, here, there }
}

/// Files with several links: the names of one file here must be the names of one file there, and no others.
#[derive(Default)]
pub struct Links {
    files: HashMap<LinkId, Linked>,
    /// Inode numbers there, with the link id that the first name met has here.
    inodes: HashMap<u64, LinkId>,
}

struct Linked {
    ino: u64,
    nlink: u64,
    names: Vec<Name>,
    broken: bool,
}

impl Links {
    /// A name at both sides: its link id here, inode number and number of links there. False: it cannot be the same file.
    pub fn meet(&mut self, at: &Name, lid: Option<LinkId>, ino: u64, nlink: u64) -> bool {
        let Some(lid) = lid else { return nlink == 1 };
        let other = *self.inodes.entry(ino).or_insert(lid) != lid;
        let f = self.files.entry(lid).or_insert_with(|| Linked { ino, nlink, names: Vec::new(), broken: false });
        f.names.push(at.clone());
        f.broken |= other || f.ino != ino || f.nlink != nlink;
        !f.broken
    }

    /// The names of files of which every name was met and is the same file there.
    pub fn whole(self) -> Vec<(Name, LinkId)> {
        let mut out = Vec::new();
        for (lid, f) in self.files {
            if !f.broken && f.names.len() as u64 == f.nlink {
                out.extend(f.names.into_iter().map(|n| (n, lid)));
            }
        }
        out.sort();
        out
    }
}

/// What differs, for people.
#[derive(Debug, Default)]
pub struct Differences {
    first: Vec<(String, String)>,
    seen: HashSet<String>,
    /// Objects that differ.
    pub count: u64,
}

impl Differences {
    /// One object differs; of one path only the first difference counts.
    pub fn add(&mut self, path: String, what: String) {
        if !self.seen.insert(path.clone()) {
            return;
        }
        self.count += 1;
        if self.first.len() < NAMED {
            self.first.push((path, what));
        }
    }

    /// Enough to know that the trees are not equal.
    pub fn enough(&self) -> bool {
        self.count >= ENOUGH
    }

    /// The refusal: what differs, and what to do. `None`: nothing does.
    pub fn refusal(&self, peer: &str, order: &str) -> Option<String> {
        if self.count == 0 {
            return None;
        }
        let first: Vec<String> = self.first.iter().map(|(p, w)| format!("{p} ({w})")).collect();
        let left = self.count - self.first.len() as u64;
        let more = match (left, self.enough()) {
            (0, _) => String::new(),
            (n, true) => format!(" and {n} more, where the comparison was ended"),
            (n, false) => format!(" and {n} more"),
        };
        Some(format!(
            "not equal to site {peer}: {}{more}. Nothing was changed. Make them equal and order it again, or create the pair without --no-copy (`{order}`), which copies what differs",
            first.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::DirId;

    fn n(s: &str) -> Name {
        Name::new(DirId::ROOT, s)
    }

    #[test]
    fn names_of_both_sides_are_put_side_by_side() {
        let b = |s: &str| s.as_bytes().to_vec();
        let got = meet(vec![b("c"), b("a"), b("x")], vec![(b("y"), 1), (b("a"), 2), (b("c"), 3)]);
        assert_eq!(got, Names { both: vec![(b("a"), 2), (b("c"), 3)], here: vec![b("x")], there: vec![b("y")] });
    }

    #[test]
    fn names_of_one_file_must_be_one_file_at_the_other_side() {
        let (a, b) = (LinkId(1), LinkId(2));
        // Alone here, and one of several there.
        assert!(Links::default().meet(&n("x"), None, 7, 1));
        assert!(!Links::default().meet(&n("x"), None, 7, 2));
        let mut l = Links::default();
        assert!(l.meet(&n("a1"), Some(a), 7, 2) && l.meet(&n("b1"), Some(b), 8, 2));
        assert!(l.meet(&n("a2"), Some(a), 7, 2));
        // Two files there, of the same number of links.
        assert!(!l.meet(&n("b2"), Some(b), 9, 2));
        assert_eq!(l.whole(), vec![(n("a1"), a), (n("a2"), a)]);
        // Two files here, one there.
        let mut l = Links::default();
        assert!(l.meet(&n("a1"), Some(a), 7, 2) && !l.meet(&n("b1"), Some(b), 7, 2));
        // A name that is not there at all: what was met is right so far, but it is not the whole file.
        let mut l = Links::default();
        assert!(l.meet(&n("a1"), Some(a), 7, 2));
        assert!(l.whole().is_empty());
    }

    #[test]
    fn a_refusal_names_the_first_and_says_what_to_do() {
        let mut d = Differences::default();
        assert_eq!(d.refusal("osaka", "x"), None);
        d.add("a".into(), "mode".into());
        d.add("a".into(), "mtime".into());
        let one = d.refusal("osaka", "kagami pair create docs sync").unwrap();
        assert!(one.starts_with("not equal to site osaka: a (mode). Nothing was changed."), "{one}");
        assert!(one.contains("`kagami pair create docs sync`"), "{one}");
        (0..8).for_each(|i| d.add(format!("f{i}"), "content".into()));
        assert!(d.refusal("osaka", "x").unwrap().contains("f3 (content) and 4 more. "));
        assert!(!d.enough());
        (0..ENOUGH).for_each(|i| d.add(format!("g{i}"), "content".into()));
        assert!(d.enough() && d.refusal("osaka", "x").unwrap().contains("more, where the comparison was ended"));
    }
}
