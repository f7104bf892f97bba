//! One link of an incoming pair, at the side that has the secondary region.

use super::answers::{self, Answers};
use super::copying;
use super::incoming::{Admission, Incoming};
use super::pairs::Pair;
use crate::base::{Error, Kind, Result, Seq, VolId, limits};
use crate::format::codec;
use crate::format::frame::{self, FrameKind, Header};
use crate::format::msg::{Hello, Msg, RejectCode, VERSION, VERSION_OLDEST, Welcome};
use crate::format::op::Entry;
use crate::net::{Closer, FrameReader, FrameWriter, Link};
use crate::pair::chain::Chain;
use crate::pair::plan;
use crate::pair::state::{Reason, State};
use crate::store::receive::Receiver;
use crate::store::replica::Replica;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Bytes accepted at once.
const BATCH_BYTES: usize = 4 << 20;
/// Parts of long answers, bytes.
const PART_BYTES: usize = 1 << 20;

/// Refuses a link with a reason.
pub fn reject(
    w: &mut FrameWriter,
    code: RejectCode,
    text: impl Into<String>,
    chain: Vec<crate::base::Epoch>,
    head: Seq,
) {
    let m = Msg::Reject { code, text: text.into(), chain, head };
    if let Ok(f) = m.frame() {
        let _ = w.send(&f);
    }
}

/// What greets and is served.
pub struct Served {
    r: FrameReader,
    w: Arc<Mutex<FrameWriter>>,
    closer: Closer,
    group: Arc<dyn Incoming>,
    pair: Arc<Pair>,
    receiver: Arc<Receiver>,
    session: u64,
    hello: Hello,
    is_async: bool,
    copying: bool,
    link_timeout: Duration,
    primary_head: Arc<AtomicU64>,
    answers: Option<Answers>,
}

/// Reads the greeting of a fresh link. The caller finds the group and pair it names.
pub fn greet(link: Link, timeout: Duration) -> Result<(Hello, FrameReader, FrameWriter, Closer)> {
    let closer = link.closer();
    let (mut r, w) = link.split();
    r.set_frame_limit(limits::MESSAGE_BYTES_MAX);
    let mut buf = Vec::new();
    let h = r.recv_within(&mut buf, timeout)?;
    if h.kind != FrameKind::Msg {
        return Err(Error::corrupt("the first frame was not a greeting"));
    }
    let Msg::Hello(hello) = Msg::parse(&buf, &h)? else {
        return Err(Error::corrupt("the first message was not a greeting"));
    };
    r.set_frame_limit(limits::FRAME_BYTES_MAX);
    Ok((hello, r, w, closer))
}

/// Serves a greeted link until it ends.
pub fn serve(
    group: Arc<dyn Incoming>,
    pair: Arc<Pair>,
    hello: Hello,
    r: FrameReader,
    mut w: FrameWriter,
    closer: Closer,
    link_timeout: Duration,
) -> Result<()> {
    if hello.version < VERSION_OLDEST || hello.version > VERSION {
        reject(
            &mut w,
            RejectCode::Version,
            format!(
                "protocol version {}; this node speaks {VERSION_OLDEST} to {VERSION}: upgrade the older one",
                hello.version
            ),
            vec![],
            Seq(0),
        );
        return Err(Error::refused(format!("site {} speaks protocol version {}", hello.site, hello.version)));
    }
    let theirs = Chain::from_epochs(hello.chain.clone());
    theirs.validate(hello.head)?;
    let receiver = match group.admit(&hello, &theirs, &closer) {
        Admission::Secondary(r) => r,
        Admission::Refuse { code, text, chain, head } => {
            reject(&mut w, code, text.clone(), chain, head);
            return Err(Error::refused(text));
        }
    };
    if let Some(e) = receiver.full() {
        reject(&mut w, RejectCode::Fault, format!("needs-space: full at site {}: {e}", group.site()), vec![], Seq(0));
        return Err(Error::refused(format!("waiting for space: {e}")));
    }
    // Until a committed resync is applied, epochs and journal are those from before it.
    while receiver.has_txn() && receiver.fault().is_none() {
        if !receiver.drain(Duration::from_secs(2)) {
            let text = format!("site {} is still applying the last resync", group.site());
            reject(&mut w, RejectCode::Busy, text.clone(), vec![], Seq(0));
            return Err(Error::link(text));
        }
    }
    let session = receiver.begin_session();
    let welcome = {
        let received = receiver.received();
        let m = receiver.replica.order();
        Welcome {
            version: VERSION,
            site: group.site().to_owned(),
            group_id: receiver.replica.group_id(),
            chain: m.state.chain.clone(),
            head: received,
            settled: Replica::settled(&m).min(received),
            journal_after: m.journal.begins_after(),
            copy: if m.state.suspect { crate::format::msg::CopyState::Copying } else { m.state.copy },
            exact: !m.state.was_primary && !m.state.suspect,
        }
    };
    w.send(&Msg::Welcome(welcome).frame()?)?;
    pair.set_link(true);
    let is_async = hello.is_async;
    let mut s = Served {
        r,
        w: Arc::new(Mutex::new(w)),
        closer,
        group,
        pair,
        receiver,
        session,
        hello,
        is_async,
        copying: false,
        link_timeout,
        primary_head: Arc::new(AtomicU64::new(0)),
        answers: None,
    };
    let r = s.run();
    s.finish();
    r
}

impl Served {
    fn run(&mut self) -> Result<()> {
        let over = Arc::new(AtomicBool::new(false));
        let acker = self.start_acker(over.clone())?;
        let r = self.read_loop();
        over.store(true, Ordering::SeqCst);
        self.receiver.nudge();
        self.closer.close();
        let _ = acker.join();
        r
    }

    fn finish(&mut self) {
        // The state of the pair is that of the newer link.
        if !self.receiver.is_session(self.session) {
            return;
        }
        self.receiver.release(None);
        if let Err(e) = self.receiver.end_session(self.session) {
            log::error!("group {}: forgetting the staged resync: {e}", self.group.group());
        }
        self.pair.set_link(false);
        let to = match self.pair.state() {
            State::Copy => State::PsueCopy(Reason::LinkLost),
            State::Pair | State::CopyResync => State::Psue(Reason::LinkLost),
            s => s,
        };
        if let Err(e) = self.pair.mirror(to, Some(format!("no link from site {}", self.hello.site))) {
            log::error!("group {}: {e}", self.group.group());
        }
    }

    /// Acknowledges now and then, and as soon as everything is applied, also when nothing comes in.
    fn start_acker(&self, over: Arc<AtomicBool>) -> Result<std::thread::JoinHandle<()>> {
        let (w, receiver, closer) = (self.w.clone(), self.receiver.clone(), self.closer.clone());
        let t = std::thread::Builder::new().name("acker".into()).spawn(move || {
            let (mut last, mut quiet) = (Seq(u64::MAX), std::time::Instant::now());
            while !over.load(Ordering::SeqCst) {
                receiver.wait_change(Duration::from_millis(100));
                let applied = receiver.applied();
                let news = applied != last && receiver.idle();
                if news || quiet.elapsed() > Duration::from_millis(900) {
                    quiet = std::time::Instant::now();
                    last = applied;
                    let full = receiver.full().map(|e| e.context("needs-space: applying waits for space"));
                    if let Some(e) = receiver.fault().or(full) {
                        let _ = Msg::Suspend { reason: e.to_string() }.frame().and_then(|f| w.lock().send(&f));
                        closer.close();
                        return;
                    }
                    let (received, durable) = receiver.acknowledged();
                    let ack = Msg::Ack { received, durable, applied };
                    if ack.frame().and_then(|f| w.lock().send(&f)).is_err() {
                        closer.close();
                        return;
                    }
                }
            }
        })?;
        Ok(t)
    }

    fn say(&self, m: &Msg) -> Result<()> {
        let f = m.frame()?;
        self.w.lock().send(&f)
    }

    fn read_loop(&mut self) -> Result<()> {
        self.r.set_read_timeout(Some(self.link_timeout))?;
        let (mut buf, mut batch) = (Vec::new(), Vec::new());
        loop {
            let h = self.r.recv(&mut buf)?;
            match h.kind {
                FrameKind::Msg => {
                    self.flush(&mut batch)?;
                    let m = Msg::parse(&buf, &h)?;
                    self.message(m)?;
                }
                FrameKind::Staged if self.copying => {
                    let e = Entry::parse(&buf, &h)?;
                    self.copy_op(&e, &buf, &h)?;
                }
                _ if self.copying => return Err(Error::corrupt("an entry in the middle of a first copy")),
                _ => batch.extend_from_slice(&buf),
            }
            if !batch.is_empty() && (batch.len() >= BATCH_BYTES || !self.r.has_buffered()) {
                self.flush(&mut batch)?;
            }
        }
    }

    fn copy_op(&mut self, e: &Entry, buf: &[u8], h: &Header) -> Result<()> {
        copying::apply(&self.receiver.replica, e, frame::data_part(buf, h))
            .or_else(|err| self.suspend(err.context(format!("first copy, {:?}", e.op))))
    }

    /// Tells the primary why this side cannot go on, and ends the link.
    fn suspend(&self, e: Error) -> Result<()> {
        let reason = match e.errno {
            libc::ENOSPC | libc::EDQUOT => format!("needs-space: full at site {}: {e}", self.group.site()),
            _ => format!("site {}: {e}", self.group.site()),
        };
        let _ = self.say(&Msg::Suspend { reason: reason.clone() });
        Err(Error { kind: Kind::Failed, errno: e.errno, msg: reason })
    }

    fn flush(&mut self, batch: &mut Vec<u8>) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        while self.receiver.overloaded() && self.receiver.fault().is_none() && self.receiver.full().is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let got = match self.receiver.accept(self.session, batch) {
            Ok(g) => g,
            Err(e) => return self.suspend(e),
        };
        batch.clear();
        if got.fsync
            && !self.is_async
            && let Err(e) = self.receiver.sync()
        {
            return self.suspend(e);
        }
        let (received, durable) = self.receiver.acknowledged();
        self.say(&Msg::Ack { received, durable, applied: self.receiver.applied() })
    }

    fn message(&mut self, m: Msg) -> Result<()> {
        match m {
            Msg::Ping { head, trim, in_pair } => self.ping(head, trim, in_pair),
            Msg::Prepare { id, first_copy, .. } => self.prepare(id, first_copy),
            Msg::JournalAsk { since, lids } => self.journal(since, lids),
            Msg::Hold { id, at } => {
                // At once, before an entry after the point is accepted; the rest is for the thread beside this one.
                self.receiver.hold(id, at);
                self.aside(Msg::Hold { id, at })
            }
            Msg::Release { .. } => self.aside(m),
            Msg::Query { .. } | Msg::ListAsk { .. } if self.answers.is_some() => self.aside(m),
            Msg::Query { id, asks } => answers::query(&self.receiver.replica, id, &asks, &|m| self.say(m)),
            Msg::ListAsk { id, vol, dirs } => answers::lists(&self.receiver.replica, id, vol, dirs, &|m| self.say(m)),
            Msg::DirsAsk { id, vol } => self.dirs(id, vol),
            Msg::CopyDone { id, base, whole, epochs } if self.copying => {
                copying::sweep(&self.receiver.replica)?;
                self.receiver.end_copy(base, whole, epochs, self.hello.group_id)?;
                self.copying = false;
                self.say(&Msg::Ready { id })
            }
            Msg::Abort { .. } => self.receiver.end_session(self.session),
            _ => Err(Error::corrupt("a message that does not belong here")),
        }
    }

    /// Leaves a question to a thread of its own, so that entries go on coming in.
    fn aside(&mut self, m: Msg) -> Result<()> {
        if self.answers.is_none() {
            self.answers = Some(Answers::start(self.receiver.clone(), self.w.clone(), self.closer.clone())?);
        }
        let last = matches!(m, Msg::Release { .. });
        if let Some(a) = &self.answers {
            a.put(m)?;
        }
        if last {
            self.answers = None;
        }
        Ok(())
    }

    fn ping(&mut self, head: Seq, trim: Seq, in_pair: bool) -> Result<()> {
        self.primary_head.store(head.0, Ordering::Relaxed);
        self.group.set_primary_head(head);
        if in_pair {
            self.pair.mirror(State::Pair, None)?;
        }
        {
            let mut m = self.receiver.replica.order();
            let upto = trim.min(m.live.last_seq());
            m.journal.trim(upto)?;
        }
        if self.is_async || !in_pair {
            self.receiver.sync()?;
        }
        let (received, durable) = self.receiver.acknowledged();
        self.say(&Msg::Pong { received, durable, applied: self.receiver.applied() })
    }

    fn prepare(&mut self, id: u64, first_copy: bool) -> Result<()> {
        if first_copy {
            self.pair.mirror(State::Copy, Some("first copy".into()))?;
            self.receiver.prepare();
            self.receiver.begin_copy()?;
            self.copying = true;
        } else {
            self.pair.mirror(State::CopyResync, Some("resync".into()))?;
            self.receiver.abandon()?;
            if !self.receiver.drain(Duration::from_secs(600)) {
                return self.suspend(
                    self.receiver
                        .fault()
                        .unwrap_or_else(|| Error::failed("the entry log could not be applied in time")),
                );
            }
            self.receiver.prepare();
        }
        self.say(&Msg::Ready { id })
    }

    fn journal(&mut self, since: Seq, mut lids: Vec<(VolId, crate::base::LinkId)>) -> Result<()> {
        let (recs, links) = {
            let m = self.receiver.replica.order();
            let recs =
                if since.0 == u64::MAX { Vec::new() } else { m.journal.since(since.max(m.journal.begins_after()))? };
            lids.extend(plan::link_ids(&recs));
            (recs, self.receiver.replica.links_of(lids))
        };
        let mut part = Vec::new();
        let mut bytes = 0;
        for r in recs {
            let b = codec::encode(&r)?;
            bytes += b.len();
            part.push(b);
            if bytes > PART_BYTES {
                bytes = 0;
                self.say(&Msg::JournalPart { recs: std::mem::take(&mut part), links: vec![], last: false })?;
            }
        }
        let links = links.into_iter().map(|((v, l), n)| (v, l, n)).collect();
        self.say(&Msg::JournalPart { recs: part, links, last: true })
    }

    fn dirs(&mut self, id: u64, vol: VolId) -> Result<()> {
        let all: Vec<_> = {
            let r = self.receiver.replica.region(vol)?;
            let ids = r.ids.read();
            ids.dirs().map(|(id, d)| (id, crate::base::Name::new(d.parent, d.name.to_vec()))).collect()
        };
        for part in all.chunks(10_000) {
            self.say(&Msg::DirsPart { id, dirs: part.to_vec(), last: false })?;
        }
        self.say(&Msg::DirsPart { id, dirs: vec![], last: true })
    }
}
