//! One link of an incoming pair, at the side that has the secondary region.

use super::answers::{self, Answers};
use super::copying;
use super::heard::Heard;
use super::incoming::{Admission, Incoming};
use super::look;
use super::pairs::Pair;
use crate::base::sync::Mutex;
use crate::base::{DirId, Error, Kind, LinkId, Name, Result, Seq, VolId, limits};
use crate::format::frame::{self, FrameKind, Header};
use crate::format::msg::{Hello, Msg, RejectCode, VERSION, VERSION_OLDEST, Welcome, Wish};
use crate::format::op::Entry;
use crate::net::{Closer, FrameReader, FrameWriter, Link};
use crate::pair::chain::Chain;
use crate::pair::state::{Reason, State};
use crate::store::receive::{Receiver, missing};
use crate::store::replica::Replica;
use crossbeam::channel::RecvTimeoutError;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Between two words that an order is still being carried out.
const STILL_AT_IT: Duration = Duration::from_secs(1);
/// Bytes accepted at once.
const BATCH_BYTES: usize = 4 << 20;

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

/// What this side has.
pub fn welcome(site: &str, receiver: &Receiver) -> Welcome {
    let told = |c: &crate::store::replica::Cut| {
        let dirs = c.dirs.iter().map(|d| (d.vol, d.dir, d.below)).collect();
        crate::format::msg::Cut { low: c.low, head: c.head, dirs, open: c.open }
    };
    let received = receiver.received();
    // What stopped the applying may be such that it could not even be noted.
    let stopped = receiver.fault().is_some();
    let m = receiver.replica.order();
    let suspect = m.state.suspect || stopped;
    Welcome {
        version: VERSION,
        site: site.to_owned(),
        group_id: receiver.replica.group_id(),
        chain: m.state.chain.clone(),
        head: received,
        settled: Replica::settled(&m).min(received),
        journal_after: m.journal.begins_after(),
        copy: if suspect { crate::format::msg::CopyState::Copying } else { m.state.copy },
        exact: !m.state.was_primary && !suspect && !m.state.torn,
        cuts: m.state.cuts.iter().map(told).collect(),
        torn: m.state.torn,
        yields: m.state.yields,
    }
}

/// Ids of directories (ours, the source's), and of files with several links by their names.
type Ids = (Vec<(DirId, DirId)>, Vec<(Name, LinkId)>);

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
    /// Ids of the source for what is there, in parts.
    same: Ids,
    link_timeout: Duration,
    answers: Option<Answers>,
    /// Why this end ended the link.
    refused: Mutex<Option<String>>,
}

/// Reads the greeting of a fresh link. The caller finds the group and pair it names.
pub fn greet(link: Link, timeout: Duration) -> Result<(Hello, FrameReader, FrameWriter, Closer)> {
    let closer = link.closer();
    let (mut r, w) = link.split();
    r.set_frame_limit(limits::MESSAGE_BYTES_MAX);
    // Whoever does not read what it is told is given up like one that says nothing.
    w.set_write_timeout(Some(timeout))?;
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

/// Does what may take long, while whoever ordered it is told that it goes on.
fn patient<T>(w: &Arc<Mutex<FrameWriter>>, act: impl FnOnce() -> T) -> T {
    let (over, ended) = crossbeam::channel::bounded::<()>(0);
    std::thread::scope(|s| {
        s.spawn(move || {
            let nothing = Msg::Ping { head: Seq(0), trim: Seq(0), in_pair: false, unsent: 0, time: Default::default() };
            while ended.recv_timeout(STILL_AT_IT) == Err(RecvTimeoutError::Timeout) {
                if nothing.frame().and_then(|f| w.lock().send(&f)).is_err() {
                    return;
                }
            }
        });
        let done = act();
        drop(over);
        done
    })
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
    w.set_write_timeout(Some(link_timeout))?;
    match hello.wish {
        Wish::Look => return look::answer(&*group, r, w),
        Wish::Tell => return w.send(&Msg::Standing { json: group.standing()? }.frame()?),
        Wish::Act | Wish::Lead | Wish::HandOver | Wish::HandOverNow | Wish::Order(_) | Wish::Rest(_) => {
            let w = Arc::new(Mutex::new(w));
            let done = patient(&w, || group.ordered(&hello, &theirs));
            match done {
                Ok(()) => w.lock().send(&Msg::Ready { id: 0 }.frame()?)?,
                Err(e) => {
                    // Whoever asks must know whether it can come to pass.
                    let code = if e.kind == Kind::Refused { RejectCode::Fault } else { RejectCode::Busy };
                    reject(&mut w.lock(), code, e.to_string(), vec![], Seq(0));
                }
            }
            return Ok(());
        }
        Wish::Vote => return Err(Error::corrupt("votes are asked of the node")),
        Wish::Link | Wish::Ask => {}
    }
    let receiver = match group.admit(&hello, &theirs, &closer) {
        Admission::Secondary(r) => r,
        Admission::Refuse { code, text, chain, head } => {
            if matches!(code, RejectCode::UnknownPair | RejectCode::DoesNotFit) {
                pair.say(Some(text.clone()));
            }
            reject(&mut w, code, text.clone(), chain, head);
            return Err(Error::refused(text));
        }
    };
    if let Some(e) = receiver.full() {
        let what = missing(&e);
        reject(&mut w, RejectCode::Fault, format!("{what} at site {}: {e}", group.site()), vec![], Seq(0));
        return Err(Error::refused(format!("{what}: {e}")));
    }
    // Until a committed resync is applied, epochs and journal are those from before it.
    while receiver.has_txn() && receiver.fault().is_none() {
        if !receiver.drain(Duration::from_secs(2)) {
            let text = format!("site {} is still applying the last resync", group.site());
            reject(&mut w, RejectCode::Busy, text.clone(), vec![], Seq(0));
            return Err(Error::link(text));
        }
    }
    let session = if hello.wish == Wish::Ask { 0 } else { receiver.begin_session() };
    w.send(&Msg::Welcome(welcome(group.site(), &receiver)).frame()?)?;
    if hello.wish == Wish::Ask {
        return Ok(());
    }
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
        same: Default::default(),
        link_timeout,
        answers: None,
        refused: Mutex::new(None),
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
        let (reason, why) = match (self.receiver.full(), self.receiver.fault()) {
            (Some(e), _) => (Reason::Full, e.to_string()),
            (_, Some(e)) => (Reason::LocalFault, e.to_string()),
            _ => (Reason::LinkLost, format!("no link from site {}", self.hello.site)),
        };
        let why = self.refused.lock().take().unwrap_or(why);
        if let Err(e) = self.pair.lost(reason, why) {
            log::error!("group {}: {e}", self.group.group());
        }
    }

    /// Acknowledges now and then, and as soon as everything is applied, also when nothing comes in.
    fn start_acker(&self, over: Arc<AtomicBool>) -> Result<std::thread::JoinHandle<()>> {
        let (w, receiver, closer) = (self.w.clone(), self.receiver.clone(), self.closer.clone());
        let pair = self.pair.clone();
        let t = std::thread::Builder::new().name("acker".into()).spawn(move || {
            let (mut last, mut quiet) = ((Seq(u64::MAX), None), Instant::now());
            while !over.load(Ordering::SeqCst) {
                receiver.wait_change(Duration::from_millis(100));
                let (applied, confirmed) = (receiver.applied(), receiver.confirmed());
                let news = (applied, confirmed) != last && receiver.idle();
                if news || quiet.elapsed() > Duration::from_millis(900) {
                    quiet = Instant::now();
                    last = (applied, confirmed);
                    let full = receiver.full().map(|e| {
                        let what = missing(&e);
                        e.context(what)
                    });
                    if let Some(e) = receiver.fault().or(full) {
                        let _ = Msg::Suspend { reason: e.to_string() }.frame().and_then(|f| w.lock().send(&f));
                        closer.close();
                        return;
                    }
                    let (received, durable) = receiver.acknowledged();
                    let checkpoint = receiver.checkpointed();
                    pair.reached(received);
                    let ack = Msg::Ack { received, durable, applied, checkpoint, confirmed };
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
        *self.refused.lock() = Some(reason.clone());
        Err(Error { kind: Kind::Failed, errno: e.errno, msg: reason })
    }

    fn flush(&mut self, batch: &mut Vec<u8>) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        // The limit of the log: nothing more is read and acknowledged until something is applied (G8).
        while self.receiver.overloaded(batch.len() as u64) && self.receiver.accepts(self.session) {
            if let Err(e) = self.receiver.checkpoint() {
                return self.suspend(e);
            }
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
        let (applied, checkpoint) = self.receiver.lately();
        self.say(&Msg::Ack { received, durable, applied, checkpoint, confirmed: self.receiver.confirmed() })
    }

    fn message(&mut self, m: Msg) -> Result<()> {
        match m {
            Msg::Ping { head, trim, in_pair, unsent, time } => {
                let (site, taken) = (self.hello.site.clone(), self.receiver.taken());
                self.group.heard(Heard { site, head, unsent, taken, time, at: Instant::now() });
                if in_pair {
                    self.receiver.beat(head, time);
                }
                self.ping(trim, in_pair)
            }
            Msg::Prepare { id, first_copy, .. } => self.prepare(id, first_copy),
            Msg::JournalAsk { since, lids } => answers::journal(&self.receiver.replica, since, lids, &|m| self.say(m)),
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
            Msg::PathsAsk { id, names } => answers::paths(&self.receiver.replica, id, names, &|m| self.say(m)),
            Msg::CopyDone { id, base, whole, epochs } if self.copying => {
                Chain::from_epochs(epochs.clone()).validate(base.max(whole))?;
                copying::sweep(&self.receiver.replica)?;
                self.receiver.end_copy(base, whole, epochs, self.hello.group_id)?;
                self.copying = false;
                self.say(&Msg::Ready { id })
            }
            Msg::Survey { id } => self.survey(id),
            Msg::Same { vol, dirs, links, last, .. } if self.copying => {
                self.same.0.extend(dirs);
                self.same.1.extend(links);
                if last {
                    let (dirs, links) = std::mem::take(&mut self.same);
                    self.receiver.replica.region(vol)?.readdress(&dirs, &links)?;
                }
                Ok(())
            }
            Msg::Abort { .. } => self.receiver.end_session(self.session),
            Msg::Parting { deleted } => self.pair.parted(deleted),
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

    fn ping(&mut self, trim: Seq, in_pair: bool) -> Result<()> {
        if in_pair {
            self.pair.mirror(State::Pair, None)?;
        }
        {
            let mut m = self.receiver.replica.order();
            let upto = trim.min(m.live.last_seq());
            self.receiver.replica.trim(&mut m, upto)?;
        }
        if self.is_async || !in_pair {
            self.receiver.sync()?;
        }
        let (received, durable) = self.receiver.acknowledged();
        let (applied, checkpoint) = self.receiver.lately();
        self.say(&Msg::Pong { received, durable, applied, checkpoint, confirmed: self.receiver.confirmed() })
    }

    fn prepare(&mut self, id: u64, first_copy: bool) -> Result<()> {
        if first_copy {
            self.pair.mirror(State::Copy, Some("first copy".into()))?;
            self.receiver.prepare();
            let theirs = Chain::from_epochs(self.hello.chain.clone());
            self.receiver.begin_copy(&theirs, self.hello.head)?;
            self.copying = true;
        } else {
            self.pair.mirror(State::CopyResync, Some("resync".into()))?;
            self.stand_still()?;
            self.receiver.prepare();
        }
        self.say(&Msg::Ready { id })
    }

    /// Applies all that was received; what was staged is forgotten.
    fn stand_still(&mut self) -> Result<()> {
        self.receiver.abandon()?;
        self.receiver.void();
        if !self.receiver.drain(Duration::from_secs(600)) {
            let late = || Error::failed("the entry log could not be applied in time");
            return self.suspend(self.receiver.fault().unwrap_or_else(late));
        }
        Ok(())
    }

    fn survey(&mut self, id: u64) -> Result<()> {
        self.stand_still()?;
        if let Err(e) = self.receiver.survey() {
            return self.suspend(e.context("looking through the tree"));
        }
        self.say(&Msg::Surveyed { id })
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
