//! The lost area of a replica: losing versions and the manifests that list them (G6).
//!
//! ```text
//! lead volume's region   .kagami/lost/EVENT.draft   while a resync is rolled forward: grows with it
//!                        .kagami/lost/EVENT.loss    the manifest: written as a whole before the resync counts as done
//! each volume's region   .kagami/lost/EVENT.N       the kept version of object N
//! ```
//! Nothing is written here before the resync's commit record is in the entry log; after it the resync is rolled forward
//! whatever happens. So there is an event as a whole, or none.

use super::files;
use super::region::Region;
use super::replica::{Meta, Replica};
use crate::base::planted::{Bug, planted};
use crate::base::{At, DirId, Epoch, Error, Name, Result, Seq, VolId, random_u64, time};
use crate::format::loss::{self, Cause, Event, Lost};
use crate::format::{codec, file};
use crate::os::sys;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An event's record lies within this many bytes of its manifest.
const EVENT_BYTES_MAX: u64 = 1 << 20;

/// The lost area of a replica, by its regions in the order of the volumes.
pub struct LostArea {
    regions: Vec<Arc<Region>>,
}

/// Sums over all events of a replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Events.
    pub events: u64,
    /// Objects they list.
    pub objects: u64,
    /// Content kept, bytes.
    pub bytes: u64,
}

impl LostArea {
    /// Of a replica.
    pub fn of(replica: &Replica) -> LostArea {
        LostArea { regions: replica.regions.clone() }
    }

    fn dir(&self) -> Result<PathBuf> {
        let lead = self.regions.first().ok_or_else(|| Error::config("a group needs a volume"))?;
        Ok(lead.meta().join("lost"))
    }

    fn draft(&self, event: u64) -> Result<PathBuf> {
        Ok(self.dir()?.join(format!("{event:016x}.draft")))
    }

    fn manifest(&self, event: u64) -> Result<PathBuf> {
        Ok(self.dir()?.join(format!("{event:016x}.loss")))
    }

    fn ids(&self, ending: &str) -> Result<Vec<u64>> {
        let dir = self.dir()?;
        let mut out = Vec::new();
        for e in std::fs::read_dir(&dir).at(dir.display())? {
            let name = e.at(dir.display())?.file_name();
            let id = name.to_str().and_then(|n| n.strip_suffix(ending)).filter(|n| n.len() == 16);
            out.extend(id.and_then(|n| u64::from_str_radix(n, 16).ok()));
        }
        out.sort_unstable();
        Ok(out)
    }

    /// Carries out [`crate::format::op::Op::Keep`]: keeps a copy of the file at `at`, if there is one, and notes the
    /// object in the event's draft. May be done again after a crash.
    pub fn keep(&self, vol: VolId, event: u64, at: Option<&Name>, lost: &Lost) -> Result<()> {
        if planted(Bug::DropLosses) {
            return Ok(());
        }
        if let Some(at) = at {
            let region = self.regions.get(usize::from(vol.0)).ok_or_else(|| Error::corrupt("no such volume"))?;
            region.keep_copy(at, &loss::kept_name(event, lost.n))?;
        }
        let mut record = Vec::new();
        file::put_record(&mut record, &codec::encode(&Lost { vol, ..lost.clone() })?);
        let path = self.draft(event)?;
        let open = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
        let mut f = open.at(path.display())?;
        let len = f.metadata()?.len();
        if len == 0 {
            record.splice(0..0, file::header(loss::MAGIC, loss::VERSION));
        }
        f.write_all(&record).or_else(|e| {
            // What comes after a torn record could not be read.
            f.set_len(len)?;
            Err(e)
        })?;
        Ok(())
    }

    /// Makes the draft of an event, if it has one, its manifest: durably, with what it keeps. `None`: nothing was lost.
    pub fn finish(&self, event: Event) -> Result<Option<Event>> {
        let draft = self.draft(event.id)?;
        let Some(lost) = read_draft(&draft)? else { return Ok(None) };
        self.regions.iter().try_for_each(|r| r.syncfs())?;
        let event = self.write(event, &lost)?;
        remove(&draft)?;
        Ok(Some(event))
    }

    /// Writes a manifest as a whole.
    pub fn write(&self, mut event: Event, lost: &[Lost]) -> Result<Event> {
        event.objects = lost.len() as u64;
        event.bytes = lost.iter().filter(|l| l.kept).map(|l| l.size).sum();
        files::replace(&self.manifest(event.id)?, &loss::manifest(&event, lost)?)?;
        log::warn!("losing versions: {}", summary(&event));
        Ok(event)
    }

    /// Drafts of resyncs that will not go on (a power cut, or a copy of everything took their place) become manifests as
    /// they are. After a power cut also what is kept without either becomes an event.
    pub fn cut_short(&self) -> Result<()> {
        let known = self.ids(".loss")?;
        let mut ids: BTreeSet<u64> = self.ids(".draft")?.into_iter().collect();
        ids.extend(self.kept_of()?.into_iter().filter(|id| !known.contains(id)));
        for id in ids {
            let mut e = event(id, Cause::CutShort);
            e.words = "the resync that set this replica back was cut short: what is listed is kept, more may be lost and kept without being listed".into();
            if self.finish(e.clone())?.is_none() {
                self.write(e, &[])?;
                remove(&self.draft(id)?)?;
            }
        }
        Ok(())
    }

    /// The events of which something is kept.
    fn kept_of(&self) -> Result<BTreeSet<u64>> {
        let mut out = BTreeSet::new();
        for r in &self.regions {
            let dir = r.meta().join("lost");
            for e in std::fs::read_dir(&dir).at(dir.display())? {
                let name = e.at(dir.display())?.file_name().into_encoded_bytes();
                let id = name.get(..16).filter(|_| loss::is_kept_name(&name)).and_then(|n| std::str::from_utf8(n).ok());
                out.extend(id.and_then(|n| u64::from_str_radix(n, 16).ok()));
            }
        }
        Ok(out)
    }

    /// Takes off the torn end that kill -9 may have left of a draft; of one that a power cut has left without a beginning,
    /// everything.
    pub fn mend(&self) -> Result<()> {
        for id in self.ids(".draft")? {
            let path = self.draft(id)?;
            let bytes = std::fs::read(&path).at(path.display())?;
            let mut r = file::Records::new(bytes.get(file::HEADER_BYTES..).unwrap_or(&[]));
            while r.next().is_some() {}
            let begun = file::check_header(&bytes, loss::MAGIC, loss::VERSION, "draft").is_ok();
            let whole = if begun { file::HEADER_BYTES + r.good } else { 0 };
            if whole < bytes.len() {
                std::fs::File::options()
                    .write(true)
                    .open(&path)
                    .and_then(|f| f.set_len(whole as u64))
                    .at(path.display())?;
            }
        }
        Ok(())
    }

    /// Every event, oldest first; in place of one whose manifest is damaged, what is wrong with it.
    pub fn events(&self) -> Result<Vec<Result<Event>>> {
        let mut out = Vec::new();
        for id in self.ids(".loss")? {
            let path = self.manifest(id)?;
            let mut bytes = Vec::new();
            let read = std::fs::File::open(&path).and_then(|f| f.take(EVENT_BYTES_MAX).read_to_end(&mut bytes));
            let parsed = read.map_err(Error::from).and_then(|_| loss::parse_event(&bytes, "manifest"));
            out.push(parsed.map_err(|e| e.context(path.display())));
        }
        out.sort_by_key(|e| e.as_ref().map_or(0, |e| e.time.nanos_total()));
        Ok(out)
    }

    /// The ids of all events, also of those whose manifest is damaged.
    pub fn all(&self) -> Result<Vec<u64>> {
        self.ids(".loss")
    }

    /// The sums, for status.
    pub fn sums(&self) -> Result<Sums> {
        let mut s = Sums::default();
        for e in self.events()? {
            s.events += 1;
            if let Ok(e) = e {
                s.objects += e.objects;
                s.bytes += e.bytes;
            }
        }
        Ok(s)
    }

    /// The event whose id begins with these hexadecimal digits.
    pub fn find(&self, id: &str) -> Result<u64> {
        let all = self.ids(".loss")?;
        let mut fits = all.iter().filter(|e| !id.is_empty() && format!("{e:016x}").starts_with(id));
        match (fits.next(), fits.next()) {
            (Some(e), None) => Ok(*e),
            (None, _) => Err(Error::failed(format!("no event {id:?}: `kagami loss list` shows them"))),
            _ => Err(Error::config(format!("{id:?} begins the id of more than one event; give more digits"))),
        }
    }

    /// An event with its objects.
    pub fn read(&self, id: u64) -> Result<(Event, Vec<Lost>)> {
        let path = self.manifest(id)?;
        let bytes = std::fs::read(&path).at(path.display())?;
        loss::parse(&bytes, &path.display().to_string())
    }

    /// Where the kept version of an object lies.
    pub fn kept(&self, event: u64, lost: &Lost) -> Result<PathBuf> {
        let name = String::from_utf8_lossy(&loss::kept_name(event, lost.n)).into_owned();
        let region = self.regions.get(usize::from(lost.vol.0));
        let region = region.ok_or_else(|| Error::corrupt(format!("manifest: volume {}", lost.vol.0)))?;
        Ok(region.meta().join("lost").join(name))
    }

    /// Drops an event with everything it keeps: the manifest last, so that a drop that was interrupted can be done again.
    pub fn drop_event(&self, id: u64) -> Result<()> {
        let begin = format!("{id:016x}.");
        for r in &self.regions {
            let dir = r.meta().join("lost");
            for e in std::fs::read_dir(&dir).at(dir.display())? {
                let name = e.at(dir.display())?.file_name().into_encoded_bytes();
                if name.starts_with(begin.as_bytes()) && loss::is_kept_name(&name) {
                    let lost = r.dirfd(DirId::LOST)?;
                    r.ids.write().drop_link(&Name::new(DirId::LOST, name.clone()))?;
                    r.forget_kept(sys::statat(&*lost, &name)?.ino)?;
                    sys::unlinkat(&*lost, &name).at("a kept version")?;
                }
            }
        }
        remove(&self.manifest(id)?)
    }
}

/// An event with nothing but its id, time and cause.
pub fn event(id: u64, cause: Cause) -> Event {
    Event {
        id,
        time: time::now(),
        cause,
        common: Seq(0),
        head: Seq(0),
        lost: None,
        won: None,
        since: None,
        words: String::new(),
        objects: 0,
        bytes: 0,
    }
}

/// Writes down that a copy of everything replaces a replica that has entries of its own, after `common` (`None`: all of
/// them): nothing of them can be kept.
pub fn overwritten(replica: &Replica, m: &Meta, head: Seq, common: Option<Seq>) -> Result<()> {
    let own = m.state.was_primary || common.is_none_or(|c| c < head);
    if !own || m.state.copy != crate::format::msg::CopyState::Consistent {
        return Ok(());
    }
    let mut e = event(random_u64(), Cause::Overwritten);
    (e.common, e.head) = (common.unwrap_or_default(), head);
    e.lost = m.state.chain.last().cloned();
    e.words = "a copy of everything replaced this replica: what it alone had was not kept".into();
    LostArea::of(replica).write(e, &[]).map(drop)
}

/// The event of a resync that is about to count as done.
pub fn set_back(id: u64, m: &Meta, common: Seq, won: Option<&Epoch>) -> Event {
    let lost = m.state.chain.last().cloned();
    let name = |e: Option<&Epoch>| e.map_or("none".into(), |e| format!("{} of site {}", e.number, e.site));
    Event {
        common,
        head: m.live.last_seq(),
        won: won.cloned(),
        words: format!(
            "this replica was set back from {} (epoch {}) to {}, where its history and that of epoch {} part",
            m.live.last_seq().0,
            name(lost.as_ref()),
            common.0,
            name(won)
        ),
        lost,
        ..event(id, Cause::SetBack)
    }
}

fn summary(e: &Event) -> String {
    format!("event {:016x}: {} objects, {} bytes kept: {} (`kagami loss list`)", e.id, e.objects, e.bytes, e.words)
}

/// The objects of a draft, each once: what was noted again after a crash counts as it was then. `None`: no draft.
fn read_draft(path: &Path) -> Result<Option<Vec<Lost>>> {
    let what = path.display().to_string();
    let bytes = match std::fs::read(path) {
        Ok(b) => b,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::from(e).context(what)),
    };
    if bytes.is_empty() {
        return Ok(None);
    }
    file::check_header(&bytes, loss::MAGIC, loss::VERSION, &what)?;
    let mut records = file::Records::new(bytes.get(file::HEADER_BYTES..).unwrap_or(&[]));
    let mut all = BTreeMap::new();
    for r in records.by_ref() {
        let l = loss::decode(r, &what)?;
        all.insert(l.n, l);
    }
    if records.torn {
        return Err(Error::corrupt(format!("{what}: a record of it is damaged")));
    }
    Ok(Some(all.into_values().collect()))
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::from(e).context(path.display())),
        _ => Ok(()),
    }
}

impl Region {
    /// Copies a file's present content into the lost area; shares its blocks where the filesystem can. Done before anything
    /// of it is overwritten, so it may be repeated after a crash.
    fn keep_copy(&self, at: &Name, kept: &[u8]) -> Result<()> {
        // Of a symlink or special file the record says everything.
        if self.look(at)?.is_some_and(|(st, _)| !st.is_file()) {
            return Ok(());
        }
        let from = self.file(at)?;
        let lost = self.dirfd(DirId::LOST)?;
        // A whole copy is there under its name only. After a power cut the file may have its new content already.
        if sys::statat(&*lost, kept).is_ok() {
            return Ok(());
        }
        let new = [kept, b".new"].concat();
        let to = sys::openat(&*lost, &new, libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC, 0o600)?;
        copy_content(&from, &to)?;
        sys::sync_fd(&to, false)?;
        sys::renameat2(&*lost, &new, &*lost, kept, 0)?;
        sys::sync_fd(sys::reopen(&*lost, libc::O_RDONLY | libc::O_DIRECTORY)?, false)?;
        Ok(())
    }
}

/// Copies content, holes as holes; by reflink where the filesystem can. `to` is empty.
pub fn copy_content(from: &std::os::fd::OwnedFd, to: &std::os::fd::OwnedFd) -> Result<()> {
    if sys::reflink(from, to).is_ok() {
        return Ok(());
    }
    let size = sys::fstat(from)?.size;
    sys::ftruncate(to, size)?;
    let mut buf = vec![0u8; 1 << 20];
    let mut at = 0;
    while let Some(data) = sys::seek(from, at, libc::SEEK_DATA)? {
        let end = sys::seek(from, data, libc::SEEK_HOLE)?.unwrap_or(size);
        at = data;
        while at < end {
            let n = ((end - at) as usize).min(buf.len());
            let n = sys::pread_full(from, buf.get_mut(..n).unwrap_or(&mut []), at)?;
            if n == 0 {
                return Ok(());
            }
            sys::pwrite_all(to, buf.get(..n).unwrap_or(&[]), at).1?;
            at += n as u64;
        }
    }
    Ok(())
}
