//! The programs of the simulation: at each machine, for each directory (*lane*), one client that waits until the volume is mounted
//! there, looks at what the directory holds (which must be what the client before it was promised), and goes on from there.

use super::model::{History, Keep, Op, Seen, View};
use super::mounts::Using;
use super::rng::Rng;
use super::room::{self, MachineId};
use super::shared::Shared;
use super::{chart, steps};
use kagami::base::{Error, Result};
use kagami::format::op::NodeKind;
use kagami::os::times::Stamp;
use kagami::volume::objects::ROOT;
use kagami::volume::{Caller, Made, SetAttr, Volume, WriteHow};
use std::collections::BTreeMap;
use std::time::Duration;

/// Directories with a client each, at the machine where the volume is mounted.
pub const LANES: usize = 2;
/// Nobody in particular.
const WHO: Caller = Caller { uid: 0, gid: 0, pid: 0, umask: 0 };
const KEEP_SIZE_PUNCH: u32 = 3;

/// What is known of a directory.
#[derive(Default)]
pub struct Lane {
    /// What each machine's clients did to it, since it was taken over there.
    pub by: BTreeMap<MachineId, History>,
    /// Whose history is the present one.
    pub owner: Option<MachineId>,
    /// Steps that were answered at a machine and are not in what another one took over.
    pub lost: Vec<(MachineId, Op)>,
}

impl Lane {
    /// True when nothing was answered at machine `b`, and the view is what `machine` had before with all that it answered.
    fn idle(&self, b: MachineId, machine: MachineId, view: &View) -> bool {
        let answered = |h: &History| h.steps.iter().any(|s| s.answered.is_some() && s.op.changes());
        let back = |h: &History| judge(h, view, Keep::All).is_ok();
        b != machine && self.by.get(&b).is_some_and(|h| !answered(h)) && self.by.get(&machine).is_some_and(back)
    }
}

/// After a split brain the operator keeps the version of this machine.
pub fn kept(machine: MachineId) {
    CLIENTS.with(|c| {
        for l in &mut c.lanes {
            let (Some(old), Some(h)) = (l.owner.filter(|o| *o != machine), l.by.get(&machine)) else { continue };
            l.lost.retain(|(m, op)| *m != machine || !h.steps.iter().any(|s| s.op == *op));
            let gone = l.by[&old].steps.iter().filter(|s| s.answered.is_some() && s.op.changes());
            let gone: Vec<_> = gone.map(|s| (old, s.op.clone())).collect();
            l.lost.extend(gone);
            l.owner = Some(machine);
        }
    });
}

/// What clients know and are told.
pub struct Clients {
    pub lanes: [Lane; LANES],
    /// No new step.
    pub stop: bool,
    pub steps: u64,
    pub answers: u64,
    pub refusals: u64,
    /// What an oracle said first.
    pub failure: Option<String>,
}

pub static CLIENTS: Shared<Clients> = Shared::new(Clients {
    lanes: [const { Lane { by: BTreeMap::new(), owner: None, lost: Vec::new() } }; LANES],
    stop: false,
    steps: 0,
    answers: 0,
    refusals: 0,
    failure: None,
});

/// Notes that a promise was broken.
pub fn fail(why: String) {
    room::trace(format!("BROKEN: {why}"));
    CLIENTS.with(|c| {
        c.failure.get_or_insert(why);
    });
}

/// The name of a lane's directory.
pub fn lane_name(lane: usize) -> String {
    format!("lane{lane}")
}

/// One client; runs until its machine dies.
pub fn run(machine: MachineId, lane: usize, seed: u64) {
    let mut c = Client { machine, lane, rng: Rng::new(seed), mount: 0 };
    loop {
        let pause = c.rng.below(80_000);
        room::sleep(Duration::from_micros(200 + pause));
        if CLIENTS.with(|c| c.stop) {
            continue;
        }
        if let Some(using) = Using::at(machine) {
            c.turn(&using);
        }
    }
}

struct Client {
    machine: MachineId,
    lane: usize,
    rng: Rng,
    /// The mount whose content was looked at.
    mount: u64,
}

impl Client {
    fn turn(&mut self, using: &Using) {
        if self.mount != using.number {
            match self.adopt(&using.volume) {
                Ok(()) => self.mount = using.number,
                Err(e) => return room::trace(format!("lane {} at {}: {e}", self.lane, self.machine)),
            }
        }
        let number = CLIENTS.with(|c| {
            c.steps += 1;
            c.steps
        });
        let op = CLIENTS.with(|c| steps::draw(&c.lanes[self.lane].by[&self.machine].now, &mut self.rng, number));
        let began_in = chart::epoch(self.machine);
        self.with(|h| h.begin(op.clone(), room::now_ns()));
        let v = &using.volume;
        match v.again(|| perform(v, self.lane, &op)) {
            Ok(done) => self.answered(op, done, began_in),
            Err(e) => {
                room::trace(format!("lane {} at {}: {op:?}: {e}", self.lane, self.machine));
                CLIENTS.with(|c| c.refusals += 1);
                // It may or may not have been done: look, before the next step.
                self.mount = 0;
            }
        }
    }

    fn with<R>(&self, f: impl FnOnce(&mut History) -> R) -> R {
        CLIENTS.with(|c| f(c.lanes[self.lane].by.entry(self.machine).or_default()))
    }

    fn answered(&self, op: Op, done: Option<usize>, began_in: u64) {
        let now = room::now_ns();
        let protected = chart::protects(self.machine);
        let begun = self.with(|h| {
            if let (Some(done), Some(s)) = (done, h.steps.last_mut())
                && let Op::Write { data, .. } = &mut s.op
            {
                data.truncate(done);
            }
            h.answered(now, protected);
            h.steps.last().map_or(0, |s| s.begun)
        });
        CLIENTS.with(|c| c.answers += 1);
        if op.changes() {
            if CLIENTS.with(|c| c.lanes[self.lane].owner) != Some(self.machine) {
                // It is in no volume that goes on, unless this machine's does: a manifest has it then.
                CLIENTS.with(|c| c.lanes[self.lane].lost.push((self.machine, op.clone())));
            }
            chart::answered(self.machine, began_in, begun, now);
        }
    }

    /// Looks at the directory, which must hold what was promised, and goes on from there.
    fn adopt(&mut self, v: &Volume) -> Result<()> {
        let name = lane_name(self.lane);
        let view = match v.lookup(ROOT, name.as_bytes())? {
            Some(n) => list(v, n.node)?,
            None => {
                v.make(ROOT, name.as_bytes(), Made::Dir, 0o755, &WHO)?;
                View::new()
            }
        };
        let (machine, lane) = (self.machine, self.lane);
        if chart::superseded(machine) {
            return self.look_again(&view);
        }
        let before = CLIENTS.with(|c| c.lanes[lane].owner);
        // Where nothing was answered, who had led before may lead again with all that it had (a takeover by force, undone).
        let before = CLIENTS.with(|c| {
            let l = &mut c.lanes[lane];
            if before.is_none_or(|b| !l.idle(b, machine, &view)) {
                return before;
            }
            let steps = &l.by[&machine].steps;
            l.lost.retain(|(m, op)| *m != machine || !steps.iter().any(|s| s.op == *op));
            Some(machine)
        });
        let same = before == Some(machine);
        let keep = chart::keep(machine, before);
        let found = CLIENTS.with(|c| before.map(|b| judge(&c.lanes[lane].by[&b], &view, keep)));
        match &found {
            // Its drive gives what it once held; nobody can tell, and it does not always do so.
            Some(Err(_)) if chart::lies(machine) => return Err(Error::failed("old content is read")),
            Some(Err(why)) => {
                fail(format!("lane {lane} at machine {machine} (before: {before:?}, to be kept: {keep:?}): {why}"))
            }
            Some(Ok(point)) => {
                room::trace(format!("lane {lane} at {machine}: goes on from step {point:?} of {before:?}"));
                CLIENTS.with(|c| {
                    let l = &mut c.lanes[lane];
                    if let (Some(b), Some(point), false) = (before, *point, same) {
                        let gone = l.by[&b].steps[point..].iter().filter(|s| s.answered.is_some() && s.op.changes());
                        let gone: Vec<_> = gone.map(|s| (b, s.op.clone())).collect();
                        l.lost.extend(gone);
                    }
                });
            }
            None => {}
        }
        CLIENTS.with(|c| {
            let l = &mut c.lanes[lane];
            let h = l.by.entry(machine).or_default();
            // A step that was refused may be there here, and not at a site that takes over later: it stays a step.
            match found {
                Some(Ok(Some(point))) if same => h.go_on(point),
                _ => h.adopt(&view),
            }
            l.owner = Some(machine);
        });
        Ok(())
    }

    /// Looks at the directory where another machine leads already: what was done here is still here.
    fn look_again(&self, view: &View) -> Result<()> {
        let (machine, lane) = (self.machine, self.lane);
        let found = CLIENTS.with(|c| c.lanes[lane].by.get(&machine).map(|h| judge(h, view, Keep::All)));
        match found {
            Some(Ok(Some(point))) => self.with(|h| h.go_on(point)),
            Some(Err(why)) => fail(format!("lane {lane} at machine {machine}, which is superseded: {why}")),
            Some(Ok(None)) | None => return Err(Error::failed("superseded before it was used")),
        }
        Ok(())
    }
}

/// Whether a directory is what its history promises: after how many steps it is so, if that is known.
pub fn judge(h: &History, view: &View, keep: Keep) -> std::result::Result<Option<usize>, String> {
    match (h.point(view, keep), keep) {
        (Ok(n), _) => Ok(Some(n)),
        (Err(why), Keep::Synced | Keep::SyncedInPair) => match h.unsynced(view, keep == Keep::SyncedInPair) {
            bad if bad.is_empty() => Ok(None),
            bad => Err(format!("{bad:?}; and {why}")),
        },
        (Err(why), _) => Err(why),
    }
}

/// Does a step on the volume; how much was written, where that is the question.
fn perform(v: &Volume, lane: usize, op: &Op) -> Result<Option<usize>> {
    match op {
        Op::Create { path, mode } => {
            let (dir, name) = parent(v, lane, path)?;
            let (_, o) = v.create(dir, name.as_bytes(), *mode, libc::O_RDWR, &WHO)?;
            v.release(o.fh);
        }
        Op::Write { path, off, data } => {
            let done = opened(v, lane, path, |fh| v.write(fh, *off as u64, data, WriteHow::default(), &WHO))?;
            return Ok(Some(done.len));
        }
        Op::Truncate { path, size } => {
            let set = SetAttr { size: Some(*size as u64), ..SetAttr::default() };
            v.setattr(node(v, lane, path)?, None, &set, &WHO)?;
        }
        Op::Punch { path, off, len } => {
            opened(v, lane, path, |fh| v.fallocate(fh, KEEP_SIZE_PUNCH, *off as u64, *len as u64, &WHO))?
        }
        Op::Mkdir { path, mode } => {
            let (dir, name) = parent(v, lane, path)?;
            v.make(dir, name.as_bytes(), Made::Dir, *mode, &WHO)?;
        }
        Op::Symlink { path, target } => {
            let (dir, name) = parent(v, lane, path)?;
            v.make(dir, name.as_bytes(), Made::Node(NodeKind::Symlink(target.clone())), 0o777, &WHO)?;
        }
        Op::Link { from, to } => {
            let n = node(v, lane, from)?;
            let (dir, name) = parent(v, lane, to)?;
            v.link(n, dir, name.as_bytes())?;
        }
        Op::Unlink { path } => {
            let (dir, name) = parent(v, lane, path)?;
            v.unlink(dir, name.as_bytes())?;
        }
        Op::Rmdir { path } => {
            let (dir, name) = parent(v, lane, path)?;
            v.rmdir(dir, name.as_bytes())?;
        }
        Op::Rename { from, to } => rename(v, lane, from, to, 0)?,
        Op::Exchange { a, b } => rename(v, lane, a, b, libc::RENAME_EXCHANGE)?,
        Op::Chmod { path, mode } => {
            let set = SetAttr { mode: Some(*mode), mtime: Stamp::Omit, ..SetAttr::default() };
            v.setattr(node(v, lane, path)?, None, &set, &WHO)?;
        }
        Op::SetXattr { path, key, value } => v.setxattr(node(v, lane, path)?, key, value, 0, &WHO)?,
        Op::RemoveXattr { path, key } => v.removexattr(node(v, lane, path)?, key)?,
        Op::Fsync { path } => opened(v, lane, path, |fh| v.fsync(fh, false))?,
    }
    Ok(None)
}

fn rename(v: &Volume, lane: usize, from: &str, to: &str, flags: u32) -> Result<()> {
    let (dir, name) = parent(v, lane, from)?;
    let (to_dir, to_name) = parent(v, lane, to)?;
    v.rename(dir, name.as_bytes(), to_dir, to_name.as_bytes(), flags)
}

fn child(v: &Volume, dir: u64, name: &str) -> Result<u64> {
    v.lookup(dir, name.as_bytes())?.map(|n| n.node).ok_or_else(|| Error::os(libc::ENOENT))
}

/// The directory of a path, and the last part of it.
fn parent<'a>(v: &Volume, lane: usize, path: &'a str) -> Result<(u64, &'a str)> {
    let mut dir = child(v, ROOT, &lane_name(lane))?;
    let (above, name) = path.rsplit_once('/').map_or((None, path), |(a, n)| (Some(a), n));
    for part in above.into_iter().flat_map(|a| a.split('/')) {
        dir = child(v, dir, part)?;
    }
    Ok((dir, name))
}

fn node(v: &Volume, lane: usize, path: &str) -> Result<u64> {
    let (dir, name) = parent(v, lane, path)?;
    child(v, dir, name)
}

fn opened<R>(v: &Volume, lane: usize, path: &str, f: impl FnOnce(u64) -> Result<R>) -> Result<R> {
    let o = v.open(node(v, lane, path)?, libc::O_RDWR, &WHO)?;
    let r = f(o.fh);
    v.release(o.fh);
    r
}

/// All that is below a directory of the volume.
fn list(v: &Volume, dir: u64) -> Result<View> {
    let mut out = View::new();
    let mut first: BTreeMap<u64, String> = BTreeMap::new();
    let mut todo = vec![(dir, String::new())];
    while let Some((dir, above)) = todo.pop() {
        for (name, n) in names(v, dir)? {
            let path = format!("{above}{name}");
            let mode = n.stat.perm();
            let seen = if n.stat.is_dir() {
                todo.push((n.node, format!("{path}/")));
                Seen::Dir { mode }
            } else if n.stat.is_symlink() {
                Seen::Link { target: v.readlink(n.node)? }
            } else {
                let same_as = match n.stat.nlink {
                    1 => path.clone(),
                    _ => first.entry(n.stat.ino).or_insert_with(|| path.clone()).clone(),
                };
                let mut xattrs = BTreeMap::new();
                for key in v.listxattr(n.node)?.into_iter().filter(|k| k.starts_with(b"user.")) {
                    let value = v.getxattr(n.node, &key)?;
                    xattrs.insert(key, value);
                }
                let mut content = vec![0; n.stat.size as usize];
                let o = v.open(n.node, libc::O_RDONLY, &WHO)?;
                let got = v.read(o.fh, 0, &mut content)?;
                v.release(o.fh);
                content.truncate(got);
                Seen::File { same_as, content, mode, xattrs }
            };
            out.insert(path, seen);
        }
    }
    Ok(named(out))
}

/// Files with several names are known by the first of them in the order of names.
pub fn named(view: View) -> View {
    let mut first: BTreeMap<String, String> = BTreeMap::new();
    view.into_iter()
        .map(|(path, s)| match s {
            Seen::File { same_as, content, mode, xattrs } => {
                let same_as = first.entry(same_as).or_insert_with(|| path.clone()).clone();
                (path, Seen::File { same_as, content, mode, xattrs })
            }
            s => (path, s),
        })
        .collect()
}

fn names(v: &Volume, dir: u64) -> Result<Vec<(String, kagami::volume::Node)>> {
    let fh = v.opendir(dir)?;
    let mut all = Vec::new();
    let r = v.readdir(fh, 0, false, &mut |d| {
        all.push(String::from_utf8_lossy(d.name).into_owned());
        false
    });
    v.releasedir(fh);
    r?;
    all.retain(|n| n != "." && n != "..");
    let found = |n: String| Ok(v.lookup(dir, n.as_bytes())?.map(|x| (n, x)));
    all.into_iter().filter_map(|n| found(n).transpose()).collect()
}
