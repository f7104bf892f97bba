//! What happened at this node, for people and programs: one line of JSON for each event, in a log of bounded size that
//! survives restarts (G9).
//!
//! ```text
//! state_dir/events/events.jsonl     the present file
//! state_dir/events/events.1.jsonl   the one before
//! ```
//! Whoever reports an event only puts it into a short list: a thread of its own writes, so that neither a full disk nor one
//! that hangs holds anything up. While nothing can be written, the oldest of too many are dropped; that is counted, and the
//! next line that can be written says so. Each event has a number that goes up by one, so a gap shows as well. Lines are
//! not flushed: they survive kill -9, not always a power cut.

use super::status::{EventsStatus, ResyncStats};
use crate::base::sync::{Condvar, Mutex};
use crate::base::{At, Result, time};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// At this size a file is put aside and a new one begun, bytes.
pub const FILE_BYTES_MAX: u64 = 4 << 20;
/// Events that wait to be written, count; beyond it the oldest is dropped.
const WAITING_MAX: usize = 4096;
/// After this the disk is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// What is still to be written at the end of the node has this time.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Longest reason kept, bytes.
const REASON_BYTES_MAX: usize = 2000;

/// What sort of event. The names are those in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// The node was started.
    NodeStart,
    /// The node ends in order.
    NodeStop,
    /// A group changed its role: `from`, `to` in `primary`, `secondary`, `down`.
    Role,
    /// A pair changed its state: `from`, `to`, and why.
    Pair,
    /// A volume was mounted: `to` is the directory.
    Mount,
    /// A volume is mounted no more: `from` is the directory.
    Umount,
    /// A copy began: `to` is its way (`catch-up`, `resync`, `first-copy`, `no-copy`).
    CopyBegin,
    /// It is complete; `stats` says what it cost.
    CopyEnd,
    /// Replicas were compared: `to` is `equal` or `different`.
    Verify,
    /// An application changed its state: `from`, `to`.
    App,
    /// Writes were refused while they were under way: `to` is `noted`, or `settled` once the sites are equal again.
    InDoubt,
    /// Something failed that no state shows.
    Error,
    /// Events were dropped before this one, for they could not be written.
    EventsLost,
    /// A step of a procedure over several sites: `subject` is the procedure, `to` the step and how it stands.
    Procedure,
    /// This site won or lost the majority of the voters (`to`: `majority`, `none`), or was refused it for a takeover.
    Votes,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Its number at this node; the next one has the next.
    pub n: u64,
    /// When, by the node's clock: `2026-11-21T10:00:00.000Z`.
    pub time: String,
    /// The node's site.
    pub site: String,
    /// What sort of event.
    pub kind: What,
    /// The group, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The pair, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pair: Option<String>,
    /// The volume or the application.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// What it was before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// What it is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The fault, as in the pair's state and in the metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Position in the order of the group: of a pair, what both ends have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
    /// What a copy cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats: Option<ResyncStats>,
}

impl Event {
    /// Of a kind; number, time and site come with [`Events::add`].
    pub fn new(kind: What) -> Event {
        Event {
            n: 0,
            time: String::new(),
            site: String::new(),
            kind,
            group: None,
            pair: None,
            subject: None,
            from: None,
            to: None,
            fault: None,
            reason: None,
            position: None,
            stats: None,
        }
    }

    /// About a group.
    pub fn of(kind: What, group: &str) -> Event {
        Event { group: Some(group.to_owned()), ..Event::new(kind) }
    }
}

#[derive(Default)]
struct Inner {
    waiting: VecDeque<Event>,
    /// The number of the next event.
    next: u64,
    counts: EventsStatus,
    /// Dropped and not yet said.
    untold: u64,
    ending: bool,
}

struct Shared {
    site: String,
    inner: Mutex<Inner>,
    news: Condvar,
}

/// The log of a node.
pub struct Events {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// The directory of the log.
pub fn dir(state_dir: &Path) -> PathBuf {
    state_dir.join("events")
}

fn present(dir: &Path) -> PathBuf {
    dir.join("events.jsonl")
}

fn before(dir: &Path) -> PathBuf {
    dir.join("events.1.jsonl")
}

impl Events {
    /// The log in this state directory, which goes on where it ended.
    pub fn open(state_dir: &Path, site: &str) -> Result<Arc<Events>> {
        Events::open_within(&dir(state_dir), site, FILE_BYTES_MAX)
    }

    fn open_within(dir: &Path, site: &str, limit: u64) -> Result<Arc<Events>> {
        std::fs::create_dir_all(dir).at(dir.display())?;
        let last = Tail::of(dir).0.last().map_or(0, |e| e.n);
        let inner = Inner { next: last + 1, ..Inner::default() };
        let shared = Arc::new(Shared { site: site.to_owned(), inner: Mutex::new(inner), news: Condvar::new() });
        let (s, mut out) = (shared.clone(), Out { dir: dir.to_owned(), limit, file: None });
        let thread = std::thread::Builder::new().name("events".into()).spawn(move || s.run(&mut out))?;
        Ok(Arc::new(Events { shared, thread: Mutex::new(Some(thread)) }))
    }

    /// Reports an event. Never waits for a disk and never fails.
    pub fn add(&self, e: Event) {
        let mut g = self.shared.inner.lock();
        if g.waiting.len() >= WAITING_MAX {
            g.waiting.pop_front();
            g.counts.dropped += 1;
            g.untold += 1;
        }
        let n = g.next;
        g.next += 1;
        g.counts.reported += 1;
        let reason = e.reason.map(|mut r| {
            r.truncate(r.floor_char_boundary(REASON_BYTES_MAX));
            r
        });
        let time = time::iso(time::now());
        g.waiting.push_back(Event { n, time, site: self.shared.site.clone(), reason, ..e });
        drop(g);
        self.shared.news.notify_all();
    }

    /// How the log fares.
    pub fn counts(&self) -> EventsStatus {
        self.shared.inner.lock().counts.clone()
    }

    /// Writes what waits, if the disk takes it, and ends.
    pub fn close(&self) {
        self.shared.inner.lock().ending = true;
        self.shared.news.notify_all();
        let Some(t) = self.thread.lock().take() else { return };
        let until = std::time::Instant::now() + LAST_WORDS;
        while !t.is_finished() {
            if std::time::Instant::now() > until {
                // A disk that hangs: the thread is left behind.
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = t.join();
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn run(&self, out: &mut Out) {
        loop {
            let (mut batch, lost) = {
                let mut g = self.inner.lock();
                while g.waiting.is_empty() && !g.ending {
                    self.news.wait(&mut g);
                }
                if g.waiting.is_empty() {
                    return;
                }
                (g.waiting.iter().cloned().collect::<Vec<_>>(), g.untold)
            };
            let (Some(first), Some(last)) = (batch.first().cloned(), batch.last().map(|e| e.n)) else { continue };
            let events = batch.len();
            if lost > 0 {
                // It has the number of the last one that was dropped.
                let reason = Some(format!("{lost} events before this one were dropped: they could not be written"));
                let (n, kind, from, to) = (first.n.saturating_sub(1), What::EventsLost, None, None);
                batch.insert(0, Event { n, reason, time: first.time, site: first.site, from, to, ..Event::new(kind) });
            }
            let written = out.write(&batch);
            let mut g = self.inner.lock();
            match written {
                Ok(()) => {
                    let still = g.waiting.iter().take_while(|e| e.n <= last).count();
                    g.waiting.drain(..still);
                    // Dropped while they were being written: not lost after all.
                    let saved = (events - still) as u64;
                    g.untold -= lost + saved;
                    g.counts.dropped -= saved;
                    if g.counts.failing.take().is_some() {
                        log::info!("events can be written again");
                    }
                }
                Err(e) => {
                    if g.counts.failing.replace(e.to_string()).is_none() {
                        log::warn!("events cannot be written for now: {e}");
                    }
                    if g.ending {
                        return;
                    }
                    self.news.wait_for(&mut g, RETRY);
                }
            }
        }
    }
}

/// The present file while it is written.
struct Out {
    dir: PathBuf,
    limit: u64,
    /// With the length up to which its lines are whole.
    file: Option<(File, u64)>,
}

impl Out {
    fn write(&mut self, events: &[Event]) -> Result<()> {
        let mut text = Vec::new();
        for e in events {
            serde_json::to_writer(&mut text, e).map_err(|e| crate::base::Error::failed(e.to_string()))?;
            text.push(b'\n');
        }
        let what = present(&self.dir);
        if self.file.as_ref().is_some_and(|(_, len)| *len > 0 && len + text.len() as u64 > self.limit) {
            std::fs::rename(&what, before(&self.dir)).at(what.display())?;
            self.file = None;
        }
        let (file, len) = match &mut self.file {
            Some(f) => f,
            none => none.insert(open_whole(&what)?),
        };
        match file.write_all(&text) {
            Ok(()) => {
                *len += text.len() as u64;
                Ok(())
            }
            Err(e) => {
                // Half a line would spoil the next one.
                let _ = file.set_len(*len);
                Err(e).at(what.display())
            }
        }
    }
}

/// Opens for appending; half a line that a power cut or a full disk left is cut off.
fn open_whole(path: &Path) -> Result<(File, u64)> {
    let mut o = std::fs::OpenOptions::new();
    let mut f = o.read(true).append(true).create(true).mode(0o600).open(path).at(path.display())?;
    let mut all = Vec::new();
    f.read_to_end(&mut all).at(path.display())?;
    let whole = all.iter().rposition(|b| *b == b'\n').map_or(0, |i| i as u64 + 1);
    if whole < all.len() as u64 {
        f.set_len(whole).at(path.display())?;
    }
    Ok((f, whole))
}

/// Reads a log while it is written, also without its node.
pub struct Tail {
    dir: PathBuf,
    file: Option<File>,
    at: u64,
    part: Vec<u8>,
}

impl Tail {
    /// The log of a state directory: the events so far, and what reads on from there.
    pub fn open(state_dir: &Path) -> (Vec<Event>, Tail) {
        Tail::of(&dir(state_dir))
    }

    fn of(dir: &Path) -> (Vec<Event>, Tail) {
        let mut tail = Tail { dir: dir.to_owned(), file: None, at: 0, part: Vec::new() };
        let late = tail.read();
        let mut all: Vec<Event> = std::fs::read(before(dir)).map(|old| lines(&old)).unwrap_or_default();
        // Put aside between the two readings: it is there twice.
        all.retain(|e| late.first().is_none_or(|f| e.n < f.n));
        all.extend(late);
        (all, tail)
    }

    /// What came since the last time.
    pub fn read(&mut self) -> Vec<Event> {
        let mut out = self.rest();
        let path = present(&self.dir);
        let there = std::fs::metadata(&path).ok().map(|m| m.ino());
        let mine = self.file.as_ref().and_then(|f| f.metadata().ok()).map(|m| m.ino());
        if there.is_some() && there != mine {
            // The file was put aside; what was written to it last comes first.
            out.extend(self.rest());
            (self.file, self.at) = (File::open(&path).ok(), 0);
            self.part.clear();
            out.extend(self.rest());
        }
        out
    }

    fn rest(&mut self) -> Vec<Event> {
        let Some(f) = &mut self.file else { return Vec::new() };
        if f.metadata().is_ok_and(|m| m.len() < self.at) {
            // Half a line was taken back.
            self.at = self.at.saturating_sub(self.part.len() as u64);
            self.part.clear();
        }
        let mut new = Vec::new();
        if f.seek(SeekFrom::Start(self.at)).is_err() || f.read_to_end(&mut new).is_err() {
            return Vec::new();
        }
        self.at += new.len() as u64;
        self.part.extend(new);
        let whole = self.part.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        let now: Vec<u8> = self.part.drain(..whole).collect();
        lines(&now)
    }
}

/// What is not an event is left out: of another version, or half a line.
fn lines(text: &[u8]) -> Vec<Event> {
    text.split(|b| *b == b'\n').filter_map(|l| serde_json::from_slice(l).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn say(e: &Events, reason: &str) {
        e.add(Event { reason: Some(reason.to_owned()), ..Event::of(What::Error, "lab") });
    }

    fn numbers(dir: &Path) -> Vec<u64> {
        Tail::of(dir).0.iter().map(|e| e.n).collect()
    }

    /// G9: they are there after a restart, with numbers that go on, and half a line spoils nothing.
    #[test]
    fn events_go_on_where_they_ended() {
        let d = tempfile::tempdir().unwrap();
        let e = Events::open_within(d.path(), "s", FILE_BYTES_MAX).unwrap();
        (0..3).for_each(|i| say(&e, &format!("first {i}")));
        e.close();
        let mut f = File::options().append(true).open(present(d.path())).unwrap();
        f.write_all(b"{\"n\":4,\"ti").unwrap();
        let e = Events::open_within(d.path(), "s", FILE_BYTES_MAX).unwrap();
        say(&e, "second");
        drop(e);
        let all = Tail::of(d.path()).0;
        assert_eq!(all.iter().map(|e| e.n).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(all[3].reason.as_deref(), Some("second"));
        assert!(all[3].time.ends_with('Z') && all[3].site == "s", "{:?}", all[3]);
    }

    #[test]
    fn the_log_is_bounded_and_a_reader_follows_it() {
        let d = tempfile::tempdir().unwrap();
        let limit = 20_000;
        let e = Events::open_within(d.path(), "s", limit).unwrap();
        let (mut got, mut tail) = Tail::of(d.path());
        for i in 0..400 {
            say(&e, &format!("{i} {}", "x".repeat(100)));
            // A reader that keeps up.
            let end = Instant::now() + Duration::from_secs(10);
            while got.last().is_none_or(|e| e.n <= i) {
                got.extend(tail.read());
                assert!(Instant::now() < end, "event {} does not come", i + 1);
            }
        }
        assert_eq!(got.iter().map(|e| e.n).collect::<Vec<_>>(), (1..=400).collect::<Vec<_>>());
        e.close();
        let size: u64 = std::fs::read_dir(d.path()).unwrap().map(|f| f.unwrap().metadata().unwrap().len()).sum();
        assert!(size <= 2 * limit, "{size}");
        let kept = numbers(d.path());
        assert_eq!(kept.last(), Some(&400));
        assert!(kept.len() > 60 && kept.windows(2).all(|w| w[0] + 1 == w[1]), "{kept:?}");
    }

    /// G8: it waits for nobody, says what is missing, and goes on when there is room.
    #[test]
    fn what_cannot_be_written_is_counted_and_said() {
        let d = tempfile::tempdir().unwrap();
        let log = d.path().join("log");
        let e = Events::open_within(&log, "s", FILE_BYTES_MAX).unwrap();
        // A directory stands where the file is to be: as good as a full disk.
        std::fs::create_dir(present(&log)).unwrap();
        let begun = Instant::now();
        (0..WAITING_MAX + 10).for_each(|i| say(&e, &i.to_string()));
        assert!(begun.elapsed() < Duration::from_secs(5), "whoever reports must not wait");
        let end = Instant::now() + Duration::from_secs(10);
        // Until an attempt has failed that began after the last report.
        for _ in 0..2 {
            e.shared.inner.lock().counts.failing = None;
            e.shared.news.notify_all();
            while e.counts().failing.is_none() {
                assert!(Instant::now() < end);
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        assert_eq!((e.counts().reported, e.counts().dropped), (WAITING_MAX as u64 + 10, 10));
        std::fs::remove_dir(present(&log)).unwrap();
        while e.counts().failing.is_some() {
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(5));
        }
        e.close();
        let all = Tail::of(&log).0;
        assert_eq!((all[0].kind, all[0].n), (What::EventsLost, 10));
        assert!(all[0].reason.as_ref().unwrap().starts_with("10 events"), "{:?}", all[0]);
        assert_eq!(all.len(), WAITING_MAX + 1);
    }
}
