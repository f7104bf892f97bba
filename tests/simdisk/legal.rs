//! What a cut may leave, described a second time and as simply as possible: the whole history is kept, and every legal
//! state is made from it by replaying. Each state that the disk draws must be one of them, and each of them must be drawn.

use crate::disk::{At, Cut, Disk, Ofd, PAGE, SECTOR};
use crate::rng::Rng;
use crate::step::runs;
use std::collections::{BTreeMap, BTreeSet};

/// Histories per test, events of each, and states that a history may have to be tried.
const HISTORIES: usize = 15;
const EVENTS: usize = 11;
const STATES_MAX: usize = 150;
const DRAWS_MAX: u64 = 60_000;
const PAGES: usize = 3;

#[derive(Clone, Debug, PartialEq)]
enum Event {
    Create(&'static str),
    Mkdir(&'static str),
    Link(&'static str, &'static str),
    Rename(&'static str, &'static str),
    Unlink(&'static str),
    Rmdir(&'static str),
    Write(&'static str, usize, usize, u8),
    Truncate(&'static str, usize),
    Fsync(&'static str),
    Fdatasync(&'static str),
    Syncfs,
}

type Names = BTreeMap<&'static str, usize>;
/// What is at each path: a directory, or the first path of the same file with its content in runs.
type State = BTreeMap<String, Option<(String, Vec<(u8, usize)>)>>;

/// A change of names, with what it depends on and is depended on by.
#[derive(Clone, Debug)]
struct Change {
    event: Event,
    object: usize,
    objects: BTreeSet<usize>,
    names: BTreeSet<&'static str>,
    dirs: BTreeSet<usize>,
}

/// Everything that a file had since it was last kept; the first of each is what is kept.
#[derive(Clone, Debug)]
struct File {
    sizes: Vec<usize>,
    pages: Vec<Vec<Vec<u8>>>,
}

impl File {
    fn new() -> File {
        File { sizes: vec![0], pages: vec![vec![vec![0; PAGE]]; PAGES] }
    }

    fn now(&self) -> (usize, Vec<Vec<u8>>) {
        (*self.sizes.last().unwrap(), self.pages.iter().map(|p| p.last().unwrap().clone()).collect())
    }

    fn keep(&mut self) {
        let (size, pages) = self.now();
        (self.sizes, self.pages) = (vec![size], pages.into_iter().map(|p| vec![p]).collect());
    }

    fn set(&mut self, size: usize, pages: Vec<Vec<u8>>) {
        self.sizes.push(size);
        for (all, new) in self.pages.iter_mut().zip(pages) {
            if *all.last().unwrap() != new {
                all.push(new);
            }
        }
    }

    /// All contents that may be left.
    fn contents(&self) -> BTreeSet<Vec<(u8, usize)>> {
        let mut all = BTreeSet::new();
        for size in &self.sizes {
            let mut wholes = vec![Vec::new()];
            for page in &self.pages[..size.div_ceil(PAGE)] {
                wholes = wholes.iter().flat_map(|w| page.iter().map(move |p| [&w[..], p].concat())).collect();
            }
            all.extend(wholes.iter().map(|w| runs(&w[..*size])));
        }
        all
    }

    /// Whether a content may be left when each sector is drawn by itself.
    fn allows(&self, content: &[u8]) -> bool {
        let sector_fits = |(n, sector): (usize, &[u8])| {
            let (page, at) = (n * SECTOR / PAGE, n * SECTOR % PAGE);
            self.pages[page].iter().any(|p| p[at..at + sector.len()] == *sector)
        };
        self.sizes.contains(&content.len()) && content.chunks(SECTOR).enumerate().all(sector_fits)
    }
}

fn dir_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(d, _)| d)
}

#[derive(Clone, Default)]
struct Model {
    events: Vec<Event>,
    changes: Vec<Change>,
    committed: usize,
    names: Names,
    files: BTreeMap<usize, File>,
    objects: usize,
}

impl Model {
    /// The object of a directory; the root is 0.
    fn dir(&self, path: &str) -> Option<usize> {
        if path.is_empty() { Some(0) } else { self.names.get(path).copied().filter(|o| !self.files.contains_key(o)) }
    }

    fn file(&self, path: &str) -> Option<usize> {
        self.names.get(path).copied().filter(|o| self.files.contains_key(o))
    }

    fn holds_any(&self, dir: &str) -> bool {
        self.names.keys().any(|n| dir_of(n) == dir)
    }

    /// Takes an event into the history; false when the call would fail.
    fn add(&mut self, event: &Event) -> bool {
        if self.change_names(event).is_some() || self.change_content(event).is_some() {
            self.events.push(event.clone());
            return true;
        }
        false
    }

    fn change_names(&mut self, event: &Event) -> Option<()> {
        let (object, paths) = match event {
            Event::Create(p) | Event::Mkdir(p) if !self.names.contains_key(p) => {
                self.dir(dir_of(p))?;
                self.objects += 1;
                if matches!(event, Event::Create(_)) {
                    self.files.insert(self.objects, File::new());
                }
                (self.objects, vec![*p])
            }
            Event::Link(a, b) if !self.names.contains_key(b) => (self.file(a)?, vec![*b]),
            Event::Rename(a, b) if self.file(a)? != *self.names.get(b).unwrap_or(&usize::MAX) => {
                if self.names.contains_key(b) {
                    self.file(b)?;
                }
                (self.file(a)?, vec![*a, *b])
            }
            Event::Unlink(p) => (self.file(p)?, vec![*p]),
            Event::Rmdir(p) if !self.holds_any(p) => (self.dir(p)?, vec![*p]),
            _ => return None,
        };
        let dirs = paths.iter().map(|p| self.dir(dir_of(p))).collect::<Option<BTreeSet<usize>>>()?;
        let mut objects = BTreeSet::from([object]);
        if let Event::Rename(_, b) = event {
            objects.extend(self.names.get(b));
        }
        let change = Change { event: event.clone(), object, objects, names: paths.into_iter().collect(), dirs };
        apply(&mut self.names, &change);
        self.changes.push(change);
        Some(())
    }

    fn change_content(&mut self, event: &Event) -> Option<()> {
        match event {
            Event::Write(p, page, len, byte) => {
                let file = self.files.get_mut(&self.names.get(p).copied()?)?;
                let (size, mut pages) = file.now();
                pages[*page][..*len].fill(*byte);
                file.set(size.max(page * PAGE + len), pages);
            }
            Event::Truncate(p, to) => {
                let file = self.files.get_mut(&self.names.get(p).copied()?)?;
                let (_, mut pages) = file.now();
                for (n, page) in pages.iter_mut().enumerate() {
                    page[to.saturating_sub(n * PAGE).min(PAGE)..].fill(0);
                }
                file.set(*to, pages);
            }
            Event::Fdatasync(p) => self.files.get_mut(&self.names.get(p).copied()?)?.keep(),
            Event::Fsync(p) => {
                let object = if p.is_empty() { 0 } else { *self.names.get(p)? };
                if let Some(file) = self.files.get_mut(&object) {
                    file.keep();
                }
                let mentions = |c: &Change| c.objects.contains(&object) || c.dirs.contains(&object);
                let last = self.changes.iter().rposition(mentions).map_or(0, |at| at + 1);
                self.committed = self.committed.max(last);
            }
            Event::Syncfs => {
                self.committed = self.changes.len();
                self.files.values_mut().for_each(File::keep);
            }
            _ => return None,
        }
        Some(())
    }

    /// All names that may be left.
    fn legal_names(&self, unordered: bool) -> BTreeSet<Names> {
        let waiting = self.changes.len() - self.committed;
        let subsets: Vec<u32> = match unordered {
            true => (0..1 << waiting).filter(|s| self.is_closed(*s)).collect(),
            false => (0..=waiting).map(|n| (1 << n) - 1).collect(),
        };
        let names = |subset: u32| {
            let mut names = Names::new();
            for (at, change) in self.changes.iter().enumerate() {
                if at < self.committed || subset & 1 << (at - self.committed) != 0 {
                    apply(&mut names, change);
                }
            }
            names
        };
        subsets.into_iter().map(names).collect()
    }

    /// Whether each change of a subset has with it all that it depends on.
    fn is_closed(&self, subset: u32) -> bool {
        let waiting = &self.changes[self.committed..];
        let has = |at: usize| subset & 1 << at != 0;
        (0..waiting.len())
            .filter(|at| has(*at))
            .all(|later| (0..later).all(|at| has(at) || !needs(&waiting[later], &waiting[at])))
    }

    fn state(&self, names: &Names, content: impl Fn(usize) -> Vec<(u8, usize)>) -> State {
        let first = |object| names.iter().find(|(_, o)| **o == object).map_or("", |(n, _)| *n);
        let what =
            |object: &usize| self.files.contains_key(object).then(|| (first(*object).to_owned(), content(*object)));
        names.iter().map(|(name, object)| ((*name).to_owned(), what(object))).collect()
    }

    /// All states that may be left, or `None` when there are too many to try.
    fn legal_states(&self, unordered: bool) -> Option<BTreeSet<State>> {
        let mut all = BTreeSet::new();
        for names in self.legal_names(unordered) {
            let objects: BTreeSet<usize> = names.values().copied().filter(|o| self.files.contains_key(o)).collect();
            let mut chosen = vec![BTreeMap::new()];
            for object in objects {
                let contents = self.files[&object].contents();
                if chosen.len() * contents.len() > STATES_MAX {
                    return None;
                }
                let with = |c: &BTreeMap<usize, Vec<(u8, usize)>>, new: &Vec<(u8, usize)>| {
                    c.iter().map(|(o, c)| (*o, c.clone())).chain([(object, new.clone())]).collect()
                };
                chosen = chosen.iter().flat_map(|c| contents.iter().map(move |new| with(c, new))).collect();
            }
            all.extend(chosen.iter().map(|c| self.state(&names, |o| c[&o].clone())));
        }
        (all.len() <= STATES_MAX).then_some(all)
    }
}

/// Whether a change survives only with an earlier one.
fn needs(later: &Change, earlier: &Change) -> bool {
    let makes_dir = matches!(earlier.event, Event::Mkdir(_)) && later.dirs.contains(&earlier.object);
    let empties = matches!(later.event, Event::Rmdir(_)) && earlier.dirs.contains(&later.object);
    let same_name = |n: &&str| earlier.names.contains(n);
    makes_dir || empties || !later.objects.is_disjoint(&earlier.objects) || later.names.iter().any(same_name)
}

fn apply(names: &mut Names, change: &Change) {
    match change.event {
        Event::Create(p) | Event::Mkdir(p) | Event::Link(_, p) => drop(names.insert(p, change.object)),
        Event::Rename(a, b) => {
            names.remove(a);
            names.insert(b, change.object);
        }
        Event::Unlink(p) | Event::Rmdir(p) => drop(names.remove(p)),
        _ => {}
    }
}

fn at(path: &str) -> At<'_> {
    At::Root(path.as_bytes())
}

fn with_open(d: &mut Disk, path: &str, flags: i32, call: impl FnOnce(&mut Disk, Ofd)) {
    let o = d.open(at(path), flags, 0o644, false).unwrap();
    call(d, o);
    d.close(o);
}

fn play(d: &mut Disk, event: &Event) {
    match event {
        Event::Create(p) => with_open(d, p, libc::O_CREAT | libc::O_EXCL | libc::O_RDWR, |_, _| {}),
        Event::Mkdir(p) => d.mkdir(at(p), 0o755).unwrap(),
        Event::Link(a, b) => d.link(at(a), false, at(b)).unwrap(),
        Event::Rename(a, b) => d.rename(at(a), at(b), 0).unwrap(),
        Event::Unlink(p) => d.unlink(at(p)).unwrap(),
        Event::Rmdir(p) => d.rmdir(at(p)).unwrap(),
        Event::Write(p, page, len, byte) => with_open(d, p, libc::O_RDWR, |d, o| {
            assert_eq!(d.pwrite(o, &vec![*byte; *len], (page * PAGE) as u64), Ok(*len));
        }),
        Event::Truncate(p, to) => with_open(d, p, libc::O_RDWR, |d, o| d.ftruncate(o, *to as u64).unwrap()),
        Event::Fsync(p) => with_open(d, p, libc::O_RDONLY, |d, o| d.fsync(o, false).unwrap()),
        Event::Fdatasync(p) => with_open(d, p, libc::O_RDONLY, |d, o| d.fsync(o, true).unwrap()),
        Event::Syncfs => d.syncfs().unwrap(),
    }
}

fn played(events: &[Event]) -> Disk {
    let mut d = Disk::new(1, 1 << 30);
    events.iter().for_each(|e| play(&mut d, e));
    d
}

/// The state of a disk, and its contents by path.
fn state_of(d: &mut Disk) -> (State, BTreeMap<String, Vec<u8>>) {
    let (mut state, mut contents, mut first) = (State::new(), BTreeMap::new(), BTreeMap::new());
    for (path, node) in d.tree(b"").into_iter().filter(|(path, _)| !path.is_empty()) {
        let path = String::from_utf8(path).unwrap();
        let content = node.content.to_vec();
        let one = first.entry(node.ino).or_insert_with(|| path.clone()).clone();
        state.insert(path.clone(), (node.kind == libc::S_IFREG).then(|| (one, runs(&content))));
        contents.insert(path, content);
    }
    (state, contents)
}

fn draw(rng: &mut Rng) -> Event {
    const FILES: [&str; 4] = ["a", "b", "s/a", "s/b"];
    let (a, b) = (*rng.pick(&FILES), *rng.pick(&FILES));
    match rng.below(24) {
        0..=4 => Event::Create(a),
        5 | 6 => Event::Mkdir("s"),
        7 | 8 => Event::Link(a, b),
        9..=12 => Event::Rename(a, b),
        13 | 14 => Event::Unlink(a),
        15 => Event::Rmdir("s"),
        16..=18 => Event::Write(a, rng.index(PAGES), *rng.pick(&[1000, PAGE]), 1 + rng.below(250) as u8),
        19 => Event::Truncate(a, *rng.pick(&[0, 700, PAGE, 5000])),
        20 | 21 => Event::Fsync(rng.pick::<&str>(&["a", "b", "s/a", "s", ""])),
        22 => Event::Fdatasync(a),
        _ if rng.below(3) == 0 => Event::Syncfs,
        _ => Event::Mkdir("s"),
    }
}

fn history(rng: &mut Rng) -> Model {
    let mut m = Model::default();
    while m.events.len() < EVENTS {
        let event = draw(rng);
        m.add(&event);
    }
    m
}

/// Tries histories with so many legal states that it tells something, and few enough to reach each.
fn each_history(name: &str, unordered: bool, mut each: impl FnMut(&Model, &BTreeSet<State>, &mut Rng)) {
    let mut rng = Rng::part(1, name);
    let mut done = 0;
    while done < HISTORIES {
        let m = history(&mut rng);
        let Some(states) = m.legal_states(unordered).filter(|s| s.len() > 12) else { continue };
        each(&m, &states, &mut rng);
        done += 1;
    }
}

fn every_legal_state_and_no_other(unordered: bool) {
    let (mut draws, mut all) = (0, 0);
    each_history("every state", unordered, |m, states, rng| {
        let mut reached = BTreeSet::new();
        let mut tried = 0;
        while reached.len() < states.len() && tried < DRAWS_MAX {
            let mut d = played(&m.events);
            d.power_cut(rng, &Cut { unordered, ..Cut::default() });
            let (state, _) = state_of(&mut d);
            assert!(states.contains(&state), "{:#?}\ngave {state:#?}, which is not legal", m.events);
            reached.insert(state);
            tried += 1;
            if tried % 64 == 0 {
                d.check().unwrap();
            }
        }
        let missed = states.difference(&reached).next();
        assert_eq!(missed, None, "{:#?}\nnever gave this in {tried} draws", m.events);
        draws += tried;
        all += states.len();
    });
    println!("unordered {unordered}: {all} states of {HISTORIES} histories, each reached, in {draws} draws");
}

#[test]
fn every_legal_state_is_drawn_and_no_other() {
    every_legal_state_and_no_other(false);
}

#[test]
fn every_legal_state_of_unordered_operations_is_drawn_and_no_other() {
    every_legal_state_and_no_other(true);
}

#[test]
fn sectors_are_old_or_new_by_themselves() {
    let mut mixed = 0;
    each_history("sectors", false, |m, _, rng| {
        let names = m.legal_names(false);
        for _ in 0..200 {
            let mut d = played(&m.events);
            d.power_cut(rng, &Cut { sectors: true, ..Cut::default() });
            let (_, contents) = state_of(&mut d);
            let fits = |n: &&Names| {
                let file = |o: &usize, content: &[u8]| m.files.get(o).is_none_or(|f| f.allows(content));
                n.len() == contents.len() && n.iter().all(|(p, o)| contents.get(*p).is_some_and(|c| file(o, c)))
            };
            let found = names.iter().find(fits);
            let Some(found) = found else { panic!("{:#?}\ngave {contents:?}, which is not legal", m.events) };
            let by_pages =
                |(p, o): (&&str, &usize)| m.files.get(o).is_none_or(|f| f.contents().contains(&runs(&contents[*p])));
            mixed += u32::from(!found.iter().all(by_pages));
        }
    });
    assert!(mixed > 100, "contents that only sectors explain: {mixed}");
}

#[test]
fn the_extremes_are_what_was_synced_and_what_was_seen() {
    let mut rng = Rng::part(1, "extremes");
    for _ in 0..500 {
        let m = history(&mut rng);
        let seen = state_of(&mut played(&m.events));
        for (sectors, unordered) in [(false, false), (true, false), (true, true)] {
            let cut = Cut { sectors, unordered, ..Cut::default() };
            let mut d = played(&m.events);
            d.power_cut(&mut rng, &Cut { all_of_unsynced: true, ..cut });
            assert_eq!(state_of(&mut d), seen, "{:#?}", m.events);
            let mut d = played(&m.events);
            d.power_cut(&mut rng, &Cut { none_of_unsynced: true, ..cut });
            let mut synced = Names::new();
            m.changes[..m.committed].iter().for_each(|c| apply(&mut synced, c));
            let kept = |o: usize| {
                let f = &m.files[&o];
                let whole: Vec<u8> = f.pages.iter().flat_map(|p| p[0].clone()).collect();
                runs(&whole[..f.sizes[0]])
            };
            assert_eq!(state_of(&mut d).0, m.state(&synced, kept), "{:#?}", m.events);
            d.check().unwrap();
        }
    }
}
