//! What became of the names since a fixed point of the order, while a resync or first copy reads a tree in use.
//!
//! A copy takes the names as they were at the point (Q) and the contents as it finds them later; the entries after Q,
//! which the target applies afterwards, bring both together. So the copy must know, for a name at Q, where that object
//! is now, and for a listing read later, what it was at Q.

use crate::base::{DirId, LinkId, Name, VolId};
use crate::format::op::Target;
use crate::pair::change::{NsChange, What};
use std::collections::{HashMap, HashSet};

type Key = (VolId, Name);

/// Follows names from a fixed point on. Fed inside the order with every change of names.
#[derive(Default)]
pub struct Watch {
    /// Touched names: were they there at Q?
    at_q: HashMap<Key, bool>,
    /// Touched names by directory.
    by_dir: HashMap<(VolId, DirId), Vec<Vec<u8>>>,
    /// Present name → name at Q (`None`: not there at Q).
    origin: HashMap<Key, Option<Name>>,
    /// Name at Q → present names.
    now: HashMap<Key, Vec<Name>>,
    /// Name at Q → the link id that its object had when one of its names went: it may have others.
    left: HashMap<Key, LinkId>,
    /// Follow changes of content and attributes as well.
    follows_marks: bool,
    /// Objects whose content or attributes changed, by the name they had then.
    marked: HashSet<(VolId, Target)>,
    /// Files with several links of which anything changed.
    links: HashSet<(VolId, LinkId)>,
}

impl Watch {
    /// Follows changes of content and attributes too, from now on (a comparison must know what it cannot judge).
    pub fn follow_marks(&mut self) {
        self.follows_marks = true;
    }

    /// Content or attributes of an object change, or have changed.
    pub fn mark(&mut self, vol: VolId, at: &Target, what: What) {
        if self.follows_marks {
            self.marked.insert((vol, at.clone()));
            self.note_link(vol, what);
        }
    }

    fn note_link(&mut self, vol: VolId, what: What) {
        if let What::Linked(l) = what {
            self.links.insert((vol, l));
        }
    }

    /// True when the object that had this name at Q may have changed since in any way: names, content or attributes.
    pub fn changed(&self, vol: VolId, at_q: &Target, lid: Option<LinkId>) -> bool {
        lid.is_some_and(|l| self.links.contains(&(vol, l)))
            || self.marked.contains(&(vol, at_q.clone()))
            || match at_q {
                Target::File(n) => !self.untouched(vol, n),
                // Every change of a directory's names sets its time.
                Target::Dir(d) => self.by_dir.contains_key(&(vol, *d)),
            }
    }

    /// Follows one change.
    pub fn note(&mut self, vol: VolId, c: &NsChange) {
        match c {
            NsChange::Link { lid, .. } => self.note_link(vol, What::Linked(*lid)),
            NsChange::Unlink { what, .. } => self.note_link(vol, *what),
            NsChange::Rename { moved, over, .. } => {
                self.note_link(vol, *moved);
                self.note_link(vol, over.unwrap_or(What::File));
            }
            _ => {}
        }
        match c {
            NsChange::Create { at } | NsChange::Mkdir { at, .. } => {
                self.touch(vol, at, false);
                self.set(vol, at, None);
            }
            NsChange::Unlink { at, what } => {
                self.touch(vol, at, true);
                self.removed(vol, at, *what);
            }
            NsChange::Rmdir { at, .. } => {
                self.touch(vol, at, true);
                self.leave(vol, at);
            }
            NsChange::Link { from, to, .. } => {
                self.touch(vol, from, true);
                self.touch(vol, to, false);
                let o = self.origin_of(vol, from);
                self.set(vol, to, o);
            }
            NsChange::Rename { from, to, over, exchange, .. } => {
                self.touch(vol, from, true);
                self.touch(vol, to, over.is_some());
                let a = self.leave(vol, from);
                let b = match over {
                    Some(what) if !exchange => self.removed(vol, to, *what),
                    _ => self.leave(vol, to),
                };
                self.set(vol, to, a);
                if *exchange {
                    self.set(vol, from, b);
                }
            }
        }
    }

    fn touch(&mut self, vol: VolId, n: &Name, there: bool) {
        if let std::collections::hash_map::Entry::Vacant(e) = self.at_q.entry((vol, n.clone())) {
            e.insert(there);
            self.by_dir.entry((vol, n.dir)).or_default().push(n.name.clone());
            if there {
                self.origin.insert((vol, n.clone()), Some(n.clone()));
                self.now.insert((vol, n.clone()), vec![n.clone()]);
            }
        }
    }

    fn origin_of(&self, vol: VolId, n: &Name) -> Option<Name> {
        self.origin.get(&(vol, n.clone())).cloned().flatten()
    }

    /// The object at `n` goes from there; returns its name at Q.
    fn leave(&mut self, vol: VolId, n: &Name) -> Option<Name> {
        let o = self.origin.insert((vol, n.clone()), None).flatten()?;
        if let Some(v) = self.now.get_mut(&(vol, o.clone())) {
            v.retain(|x| x != n);
        }
        Some(o)
    }

    /// The same when the name is removed from the object.
    fn removed(&mut self, vol: VolId, n: &Name, what: What) -> Option<Name> {
        let o = self.leave(vol, n)?;
        if let What::Linked(l) = what {
            self.left.insert((vol, o.clone()), l);
        }
        Some(o)
    }

    fn set(&mut self, vol: VolId, n: &Name, o: Option<Name>) {
        if let Some(o) = &o {
            self.now.entry((vol, o.clone())).or_default().push(n.clone());
        }
        self.origin.insert((vol, n.clone()), o);
    }

    /// Where the object that had this name at Q is now; `None` when it is gone. `others`: the present names of a link id,
    /// for an object whose other links did not come from this name.
    pub fn locate(&self, vol: VolId, at_q: &Name, others: impl FnOnce(LinkId) -> Option<Name>) -> Option<Name> {
        let key = (vol, at_q.clone());
        match self.now.get(&key) {
            Some(v) => v.first().cloned().or_else(|| self.left.get(&key).copied().and_then(others)),
            None => Some(at_q.clone()),
        }
    }

    /// True when the name, or those of its link id, are not what they were at Q.
    pub fn renamed(&self, vol: VolId, n: &Name, lid: Option<LinkId>) -> bool {
        !self.untouched(vol, n) || lid.is_some_and(|l| self.links.contains(&(vol, l)))
    }

    /// True when the name has not been touched since Q.
    pub fn untouched(&self, vol: VolId, n: &Name) -> bool {
        !self.at_q.contains_key(&(vol, n.clone()))
    }

    /// The names of a directory at Q, from a listing read after Q (read the listing first, then ask).
    pub fn names_at_q(&self, vol: VolId, dir: DirId, listing: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        let Some(touched) = self.by_dir.get(&(vol, dir)) else { return listing };
        let mut out: Vec<Vec<u8>> =
            listing.into_iter().filter(|n| self.untouched(vol, &Name::new(dir, n.clone()))).collect();
        out.extend(
            touched.iter().filter(|n| self.at_q.get(&(vol, Name::new(dir, (*n).clone()))) == Some(&true)).cloned(),
        );
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn n(s: &str) -> Name {
        Name::new(DirId::ROOT, s)
    }
    fn mv(a: &str, b: &str, over: bool, exchange: bool) -> NsChange {
        NsChange::Rename { from: n(a), to: n(b), moved: What::File, over: over.then_some(What::File), exchange }
    }

    #[test]
    fn knows_what_changed_since_the_point() {
        let v = VolId(0);
        let mut w = Watch::default();
        w.follow_marks();
        w.mark(v, &Target::File(n("a")), What::File);
        w.mark(v, &Target::File(n("l1")), What::Linked(LinkId(7)));
        w.note(v, &NsChange::Create { at: n("new") });
        for (name, lid, changed) in
            [("a", None, true), ("b", None, false), ("l2", Some(LinkId(7)), true), ("new", None, true)]
        {
            assert_eq!(w.changed(v, &Target::File(n(name)), lid), changed, "{name}");
        }
        assert!(w.changed(v, &Target::Dir(DirId::ROOT), None) && !w.changed(v, &Target::Dir(DirId(99)), None));
    }

    #[test]
    fn follows_names_from_the_point_on() {
        let v = VolId(0);
        let mut w = Watch::default();
        w.note(v, &mv("a", "b", true, false)); // b at Q is gone
        w.note(v, &NsChange::Create { at: n("a") });
        w.note(v, &mv("c", "b", true, true)); // object a is at c, object c at b
        let at = |w: &Watch, s: &str| w.locate(v, &n(s), |l| panic!("{s} never was one of several links: {l:?}"));
        assert_eq!(at(&w, "a"), Some(n("c")));
        assert_eq!(at(&w, "b"), None);
        assert_eq!(at(&w, "c"), Some(n("b")));
        assert_eq!(at(&w, "x"), Some(n("x")));
        w.note(v, &NsChange::Link { from: n("c"), to: n("d"), lid: crate::base::LinkId(1) });
        w.note(v, &NsChange::Unlink { at: n("c"), what: What::File });
        assert_eq!(at(&w, "a"), Some(n("d")));
        let mut names = w.names_at_q(v, DirId::ROOT, vec![b"a".to_vec(), b"b".to_vec(), b"d".to_vec(), b"x".to_vec()]);
        names.sort();
        assert_eq!(names, vec![b"a".to_vec(), b"b".to_vec(), b"c".to_vec(), b"x".to_vec()]);
    }
    /// G5: of a file with several links, the name that a copy knows it by goes; its content is still at the others.
    #[test]
    fn finds_a_file_by_its_other_links() {
        let (v, lid) = (VolId(0), LinkId(7));
        let over = Some(What::Linked(lid));
        for gone in [
            NsChange::Unlink { at: n("a"), what: What::Linked(lid) },
            NsChange::Rename { from: n("x"), to: n("a"), moved: What::File, over, exchange: false },
        ] {
            let mut w = Watch::default();
            w.note(v, &gone);
            let mut asked = None;
            let found = w.locate(v, &n("a"), |l| {
                asked = Some(l);
                Some(n("b"))
            });
            assert_eq!((found, asked), (Some(n("b")), Some(lid)), "{gone:?}");
            assert_eq!(w.locate(v, &n("a"), |_| None), None, "{gone:?}");
        }
        // Exchanged, it has lost no name.
        let mut w = Watch::default();
        w.note(v, &NsChange::Rename { from: n("x"), to: n("a"), moved: What::File, over, exchange: true });
        assert_eq!(w.locate(v, &n("a"), |_| Some(n("b"))), Some(n("x")));
    }
}
