//! What the target of a resync loses, at the source: the plan tells of what the target may have of its own; the target is
//! asked how it has it; what differs is noted in the target's manifest by operations of the staged resync (G6).

use super::session::{Session, Step};
use super::source::{Found, Source};
use crate::base::{DirId, Error, Name, VolId, random_u64};
use crate::format::loss::{Lost, Part, kept_name};
use crate::format::msg::{Ask, Have, Msg};
use crate::format::op::{Op, Target};
use crate::pair::plan::{LostObject, Plan};
use crate::store::replica::Replica;
use std::collections::BTreeSet;
use std::time::Duration;

/// Objects asked about in one question.
const ASKS: usize = 256;
/// How long the target may take for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// One object of the target that may lose something.
struct Item {
    object: LostObject,
    /// How the target has it; none of what it removed.
    have: Option<Have>,
    /// Its paths there, one for each name found.
    paths: Vec<Vec<u8>>,
    /// The number of its record.
    n: u32,
}

/// The losing versions of one resync.
pub(super) struct Losses {
    event: u64,
    items: Vec<Item>,
    dirs: Vec<(VolId, DirId, Option<Have>, Vec<u8>)>,
    /// Numbers given out.
    count: u32,
    /// Records staged.
    pub noted: u64,
}

impl Losses {
    /// The name under which object `lost` of the plan is kept.
    pub fn kept(&self, lost: u32) -> Name {
        let n = self.items.get(lost as usize).map_or(lost, |i| i.n);
        Name::new(DirId::LOST, kept_name(self.event, n))
    }

    fn next(&mut self) -> u32 {
        self.count += 1;
        self.count - 1
    }
}

/// A path of the source, for people at the target: where something is after the resync.
fn path(replica: &Replica, vol: VolId, at: &Name) -> Vec<u8> {
    replica.region(vol).map_or_else(|_| at.name.clone(), |r| r.path_bytes(at))
}

fn record(n: u32, path: Vec<u8>, what: Vec<Part>, have: Option<&Have>) -> Lost {
    let l = Lost { n, path, what, ..Lost::default() };
    match have {
        None => l,
        Some(h) => Lost {
            mode: h.mode,
            uid: h.uid,
            gid: h.gid,
            size: h.size,
            mtime: h.mtime,
            rdev: h.rdev,
            target: h.target.clone(),
            xattrs: h.xattrs.clone(),
            ..l
        },
    }
}

/// True when the attributes differ; of a directory without its mtime, which every change in it sets.
fn attributes_differ(theirs: &Have, ours: &Have, mtime: bool) -> bool {
    (theirs.mode, theirs.uid, theirs.gid) != (ours.mode, ours.uid, ours.gid)
        || theirs.xattrs != ours.xattrs
        || (mtime && theirs.mtime != ours.mtime)
}

/// Names the target gave the object after P (places in `found`), each a new name or a further one, and names it took away;
/// as far as the winner has not the same.
fn names(o: &LostObject) -> (Vec<(usize, Part)>, Vec<&Name>) {
    let taken = o.was.iter().filter(|n| !o.found.contains(n));
    let renamed = taken.clone().count();
    let given = (0..o.found.len())
        .filter(|i| o.found.get(*i).is_some_and(|n| !o.was.contains(n) && !o.wanted.contains(n)))
        .enumerate()
        .map(|(i, at)| (at, if i < renamed { Part::Name } else { Part::Link }))
        .collect::<Vec<_>>();
    // A name that was taken away for a new one is no further loss.
    let removed = taken.skip(given.len()).filter(|n| o.wanted.contains(n)).collect();
    (given, removed)
}

impl Session {
    /// Asks the target about everything of which it may lose something.
    pub(super) fn losses(&mut self, event: u64, plan: &Plan) -> Step<Losses> {
        let mut out = Losses { event, items: Vec::new(), dirs: Vec::new(), count: 0, noted: 0 };
        let ask = |vol: VolId, at: Target| Ask { vol, at, ranges: Vec::new() };
        for part in plan.lost.chunks(ASKS) {
            let asked = part.iter().filter_map(|o| {
                let first = o.found.first()?;
                Some(ask(o.vol, o.dir.map_or_else(|| Target::File(first.clone()), Target::Dir)))
            });
            let mut told = self.ask(asked.collect())?.into_iter();
            let names = part.iter().flat_map(|o| o.found.iter().map(|n| (o.vol, n.clone()))).collect();
            let mut paths = self.their_paths(names)?.into_iter();
            for o in part {
                let have = if o.found.is_empty() { None } else { told.next().and_then(|t| t.have) };
                let paths = paths.by_ref().take(o.found.len()).collect();
                let n = out.next();
                out.items.push(Item { object: o.clone(), have, paths, n });
            }
        }
        for part in plan.lost_dirs.chunks(ASKS) {
            let told = self.ask(part.iter().map(|(v, d)| ask(*v, Target::Dir(*d))).collect())?;
            for ((vol, dir), told) in part.iter().zip(told) {
                let path = self.group.replica.region(*vol)?.path_of_dir(*dir);
                out.dirs.push((*vol, *dir, told.have, path));
            }
        }
        Ok(out)
    }

    fn their_paths(&mut self, names: Vec<(VolId, Name)>) -> Step<Vec<Vec<u8>>> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let (id, n) = (random_u64(), names.len());
        self.say(&Msg::PathsAsk { id, names })?;
        let mut out = Vec::new();
        while out.len() < n {
            match self.hear(PATIENCE)? {
                Msg::Paths { id: i, paths } if i == id && !paths.is_empty() => out.extend(paths),
                _ => return Err(Error::corrupt("unexpected answer to a question about paths").into()),
            }
        }
        Ok(out)
    }

    fn note(&mut self, l: &mut Losses, vol: VolId, at: Option<Name>, lost: Lost) -> Step<()> {
        l.noted += 1;
        self.stage(vol, Op::Keep { event: l.event, at, lost: Box::new(lost) }, b"")
    }

    /// Notes everything that can be told before contents are compared. Files with a task are left to [`Session::note_file`].
    pub(super) fn note_losses(&mut self, l: &mut Losses, plan: &Plan, src: &Source) -> Step<()> {
        let later: BTreeSet<u32> = plan.content.iter().filter_map(|t| t.lost).collect();
        // A file that was removed and made again at one name is one loss, not two.
        let there: BTreeSet<(VolId, Name)> =
            plan.lost.iter().flat_map(|o| o.found.iter().map(|n| (o.vol, n.clone()))).collect();
        for i in 0..l.items.len() {
            let Some(item) = l.items.get(i) else { continue };
            let (o, vol) = (item.object.clone(), item.object.vol);
            let (lost, removed) = names(&o);
            let gone: Vec<Name> =
                removed.into_iter().filter(|n| !there.contains(&(vol, (*n).clone()))).cloned().collect();
            let mut records: Vec<Lost> = Vec::new();
            let whole = o.wanted.is_empty() && !o.found.is_empty();
            if whole {
                records.extend(self.whole(item));
            } else if !later.contains(&(i as u32)) && !lost.is_empty() {
                let now = o.wanted.first().map(|w| path(&src.replica, vol, w));
                if let Some((at, part)) = lost.first() {
                    let there = item.paths.get(*at).cloned().unwrap_or_default();
                    records.push(Lost { now, ..record(item.n, there, vec![*part], item.have.as_ref()) });
                }
            }
            // Further names, each of its own; of what goes as a whole all of them.
            let further: Vec<(usize, Part)> = match (whole, records.is_empty()) {
                (true, true) => Vec::new(),
                (true, false) => (1..o.found.len()).map(|at| (at, Part::Link)).collect(),
                (false, _) => lost.iter().skip(1).copied().collect(),
            };
            let further: Vec<(Vec<u8>, Part)> =
                further.into_iter().filter_map(|(at, part)| Some((item.paths.get(at)?.clone(), part))).collect();
            let (have, now) = (item.have.clone(), o.wanted.first().map(|w| path(&src.replica, vol, w)));
            for (p, part) in further {
                let n = l.next();
                records.push(Lost { now: now.clone(), ..record(n, p, vec![part], have.as_ref()) });
            }
            for at in gone {
                let n = l.next();
                records.push(record(n, path(&src.replica, vol, &at), vec![Part::Removed], None));
            }
            for r in records {
                self.note(l, vol, None, r)?;
            }
        }
        for (vol, dir, have, path) in std::mem::take(&mut l.dirs) {
            let Some((have, ours)) = have.zip(src.find_dir(vol, dir)?) else { continue };
            if attributes_differ(&have, &ours.have()?, false) {
                let n = l.next();
                self.note(l, vol, None, record(n, path, vec![Part::Attributes], Some(&have)))?;
            }
        }
        Ok(())
    }

    /// The record of an object that goes as a whole. A directory that the target had not changed is no loss.
    fn whole(&self, item: &Item) -> Option<Lost> {
        let o = &item.object;
        let mut what = Vec::new();
        match o.own {
            true => what.push(Part::Created),
            false => {
                what.extend(o.data.then_some(Part::Content));
                what.extend(o.attrs.then_some(Part::Attributes));
                what.extend((o.found != o.was).then_some(Part::Name));
            }
        }
        let path = item.paths.first().cloned().unwrap_or_default();
        let l = record(item.n, path, what, item.have.as_ref());
        (!l.what.is_empty()).then_some(Lost { kept: o.dir.is_none(), ..l })
    }

    /// Notes what a file that stays loses, once that is known: `content` when its content is about to be overwritten, which
    /// must be kept before. `found`: the winner's; none when it is going there as well.
    pub(super) fn note_file(
        &mut self,
        l: &mut Losses,
        lost: u32,
        at: &Name,
        found: Option<&Found>,
        content: bool,
        replica: &Replica,
    ) -> Step<()> {
        let Some(item) = l.items.get(lost as usize) else { return Ok(()) };
        let Some(have) = item.have.clone() else { return Ok(()) };
        let o = &item.object;
        let vol = o.vol;
        let (names, _) = names(o);
        let mut what = Vec::new();
        let written = content && o.data;
        let kept = written && have.mode & libc::S_IFMT == libc::S_IFREG;
        what.extend(written.then_some(Part::Content));
        let ours = found.map(Found::have).transpose()?;
        // A write sets the time as well: alone it counts where nothing was written.
        if o.attrs && ours.is_some_and(|ours| attributes_differ(&have, &ours, !o.data)) {
            what.push(Part::Attributes);
        }
        what.extend(names.first().map(|(_, part)| *part));
        if what.is_empty() {
            return Ok(());
        }
        let was = names.first().map_or(0, |(at, _)| *at);
        let path_there = item.paths.get(was).cloned().unwrap_or_default();
        let now = Some(path(replica, vol, at)).filter(|p| *p != path_there);
        let r = Lost { kept, now, ..record(item.n, path_there, what, Some(&have)) };
        self.note(l, vol, kept.then(|| at.clone()), r)
    }
}
