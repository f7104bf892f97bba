//! The votes of a group at this site (G3): its own voter, which answers others, and the votes that it has or wants itself.
//! What is decided is in [`crate::pair::vote`]; here it is persisted, asked over links, and told to the volume's permit.
//!
//! ```text
//! state_dir/votes/GROUP   what the voter of this site must not forget, and whether the operator overruled the voters
//! ```

use super::config::{Arbiter, AutoTakeover};
use super::sender::SenderCtx;
use super::status::{ArbiterStatus, VoterStatus};
use crate::base::sync::Mutex;
use crate::base::{At, Error, Result, Seq, Site};
use crate::format::frame::{FrameKind, Header};
use crate::format::msg::{Hello, Msg, RejectCode, VERSION, Wish};
use crate::format::vote::{Answer, Ask, Want};
use crate::net::{FrameReader, FrameWriter};
use crate::os::times::boottime;
use crate::pair::vote::{Holder, MAJORITY, Other, Record, Sent, Voter, Why};
use crate::store::files;
use crate::volume::group::Group;
use crate::volume::permit::Permit;
use bincode::{Decode, Encode};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

const MAGIC: &[u8; 8] = b"KGMVOTE\0";
const VERSION_KEPT: u32 = 1;
/// The seat of the arbiter; those before it are the ends of the sync pair.
const ARBITER: usize = 2;
/// How long the voters may take to be told that they are free.
const RELEASED: Duration = Duration::from_millis(500);
/// Votes are renewed so often within their length.
const RENEWALS: u32 = 5;

/// A voter somewhere else.
pub trait Remote: Send {
    /// Asks it. Errors: it cannot be reached, or does not answer in its time.
    fn ask(&mut self, a: &Ask) -> Result<Answer>;
}

/// What is kept of the votes at a site.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
struct Kept {
    record: Option<Record>,
    /// The operator overruled the voters, until a majority supports this site again.
    forced: bool,
}

struct Own {
    voter: Voter,
    forced: bool,
}

/// One of the three, as this site sees it.
struct Seat {
    /// For people.
    name: String,
    /// Held while it is asked: one question at a time. `None`: it is the voter of this site.
    turn: Mutex<Option<Box<dyn Remote>>>,
    /// What it said last, if that was not yes.
    said: Mutex<Option<String>>,
}

/// What became of the last attempt to win.
#[derive(Default)]
struct Refused {
    /// Why, without its numbers.
    words: String,
    /// Another voter knows that this site lacks what this one answered, in a term that the voter of this site knows.
    stale: Option<(Site, u64)>,
}

/// The votes of a group.
pub struct Ballot {
    site: Site,
    length: Duration,
    path: PathBuf,
    own: Mutex<Own>,
    /// Where the voter of this site sits, if it is one.
    mine: Option<usize>,
    holder: Mutex<Holder>,
    /// This site leads or stands: it counts votes.
    wants: AtomicBool,
    /// How often it began to lead.
    reigns: AtomicU64,
    seats: Vec<Seat>,
    /// The group that answers by them.
    group: Mutex<Weak<Group>>,
    refused: Mutex<Refused>,
    /// What a primary here may do.
    pub permit: Arc<Permit>,
}

fn now() -> u64 {
    boottime().as_nanos() as u64
}

impl Ballot {
    /// With what is kept. `remote` makes the way to a voter elsewhere, by the name of its site; `None`: it is the etcd.
    pub fn load(
        cfg: &AutoTakeover,
        site: &str,
        (state_dir, group): (&Path, &str),
        remote: impl Fn(Option<&str>) -> Result<Box<dyn Remote>>,
    ) -> Result<Ballot> {
        let dir = state_dir.join("votes");
        std::fs::create_dir_all(&dir).at(dir.display())?;
        let path = dir.join(group);
        let kept: Kept = files::load(&path, MAGIC, VERSION_KEPT)?.unwrap_or_default();
        let length = cfg.detect.as_nanos() as u64;
        let [a, b] = &cfg.ends;
        let third = match &cfg.arbiter {
            Arbiter::Site(s) => Some(s),
            Arbiter::Etcd { .. } => None,
        };
        let mut seats = Vec::new();
        for s in [Some(a), Some(b), third] {
            let turn = if s.is_some_and(|s| s == site) { None } else { Some(remote(s.map(String::as_str))?) };
            let name = s.map_or_else(|| "etcd".into(), |s| format!("site {s}"));
            seats.push(Seat { name, turn: Mutex::new(turn), said: Mutex::new(None) });
        }
        let permit = Arc::new(Permit::new(cfg.detect));
        permit.force(kept.forced);
        Ok(Ballot {
            site: site.to_owned(),
            length: cfg.detect,
            path,
            own: Mutex::new(Own {
                voter: Voter::new(kept.record, length, cfg.ends.clone(), now()),
                forced: kept.forced,
            }),
            mine: [Some(a), Some(b), third].iter().position(|s| s.is_some_and(|s| s == site)),
            holder: Mutex::new(Holder::new(site, length, seats.len())),
            wants: AtomicBool::new(false),
            reigns: AtomicU64::new(0),
            seats,
            group: Mutex::new(Weak::new()),
            refused: Mutex::default(),
            permit,
        })
    }

    fn save(&self, record: Option<&Record>, forced: bool) -> Result<()> {
        files::save(&self.path, MAGIC, VERSION_KEPT, &Kept { record: record.cloned(), forced })
    }

    /// The voter of this site is asked. What it says is durable.
    pub fn hear(&self, a: &Ask) -> Result<Answer> {
        if self.mine.is_none() {
            return Err(Error::refused(format!("site {} is no voter of this group", self.site)));
        }
        let mut own = self.own.lock();
        let v = own.voter.hear(a, now());
        if let Some(r) = &v.record {
            self.save(Some(r), own.forced)?;
        }
        // Not before the record is durable, so that the promise is never shorter than what is counted of it.
        own.voter.take(a, &v, now());
        Ok(v.answer)
    }

    /// Between two renewals.
    pub fn period(&self) -> Duration {
        self.length / RENEWALS
    }

    /// The voters elsewhere.
    pub fn remotes(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.seats.len()).rev().filter(|v| Some(*v) != self.mine)
    }

    /// Asks one voter what `make` makes of it, and counts what it says.
    fn put(&self, v: usize, make: impl FnOnce() -> Option<Sent>) -> Result<Answer> {
        let Some(seat) = self.seats.get(v) else { return Err(Error::failed("no such voter")) };
        let mut turn = seat.turn.lock();
        let Some(sent) = make() else { return Err(Error::failed("the role changed meanwhile")) };
        let r = match &mut *turn {
            Some(remote) => remote.ask(&sent.ask),
            None => self.hear(&sent.ask),
        };
        *seat.said.lock() = match &r {
            Ok(a) => words(a),
            Err(e) => Some(e.to_string()),
        };
        if let Ok(a) = &r {
            let leads = {
                let mut h = self.holder.lock();
                if self.wants.load(Ordering::SeqCst) {
                    h.answered(v, &sent, a);
                    self.permit.set(h.until(), h.alone());
                }
                h.leads(now())
            };
            if leads {
                self.set_forced(false)?;
            }
        }
        r
    }

    /// The operator's word: this site may answer without a majority (`true`), until it has one or another site leads.
    pub fn set_forced(&self, forced: bool) -> Result<()> {
        let mut own = self.own.lock();
        if own.forced != forced {
            self.save(own.voter.record(), forced)?;
            own.forced = forced;
            self.permit.force(forced);
        }
        Ok(())
    }

    /// Where this site leads, a voter elsewhere is asked, after that of its own site.
    pub fn canvass(&self, v: usize) {
        let Some(group) = self.group.lock().upgrade().filter(|g| !g.is_stopped()) else { return };
        for v in self.mine.into_iter().chain([v]) {
            let forced = self.own.lock().forced;
            let ask = || {
                group.secured(|secured| {
                    let mut h = self.holder.lock();
                    let wanted = self.wants.load(Ordering::SeqCst);
                    let sent = wanted.then(|| h.lead(v, self.permit.other(secured), forced, now()));
                    self.permit.set(h.until(), h.alone());
                    sent
                })
            };
            if let Err(e) = self.put(v, ask) {
                log::debug!("asking {} for its vote: {e}", self.seats.get(v).map_or("?", |s| &s.name));
            }
            group.nudge();
        }
    }

    /// This group answers changes by these votes.
    pub fn govern(&self, group: &Arc<Group>) {
        group.governed(self.permit.clone());
        *self.group.lock() = Arc::downgrade(group);
    }

    /// This site leads from now on.
    pub fn reign(&self) {
        let term = self.term();
        let mut h = self.holder.lock();
        self.reigns.fetch_add(1, Ordering::SeqCst);
        if !self.wants.swap(true, Ordering::SeqCst) || !h.leads(now()) {
            self.begin(&mut h, term);
        }
        drop(h);
        self.permit.wake();
    }

    fn term(&self) -> u64 {
        self.own.lock().voter.record().map_or(0, |r| r.term)
    }

    fn begin(&self, h: &mut Holder, term: u64) {
        h.begin(term);
        self.permit.set(h.until(), h.alone());
    }

    /// This site leads no more; nothing is answered by it from now on. `release`: the voters are told, so that another site
    /// need not wait for the end of their promise: the one named, to which the role was given, or whoever is entitled.
    pub fn resign(self: &Arc<Self>, release: Option<Option<&str>>) {
        {
            let mut h = self.holder.lock();
            if !self.wants.swap(false, Ordering::SeqCst) {
                return;
            }
            h.resign();
            self.permit.set(0, false);
        }
        let Some(to) = release else { return };
        let want = Want::Release(to.map(str::to_owned));
        let (tell, told) = crossbeam::channel::unbounded();
        for v in 0..self.seats.len() {
            let (me, want, tell) = (self.clone(), want.clone(), tell.clone());
            let ask = move || {
                // Unless this site leads again by now.
                let free = || !me.wants.load(Ordering::SeqCst);
                let make = || free().then(|| me.holder.lock().ask(v, Other::AsItWas, want, now()));
                if let Err(e) = me.put(v, make) {
                    log::info!("{} is not told that its vote is free: {e}", me.seats.get(v).map_or("?", |s| &s.name));
                }
                let _ = tell.send(());
            };
            if let Err(e) = std::thread::Builder::new().name("release".into()).spawn(ask) {
                log::warn!("releasing a vote: {e}");
            }
        }
        drop(tell);
        let until = Instant::now() + RELEASED;
        while told.recv_deadline(until).is_ok() {}
    }

    /// True while a majority supports this site.
    pub fn leads(&self) -> bool {
        self.holder.lock().leads(now())
    }

    /// Wins a majority for a takeover here, or says why not. Takes no longer than a vote lasts, and what is asked.
    pub fn stand(self: &Arc<Self>) -> Result<()> {
        let term = self.term();
        let reigns = {
            let mut h = self.holder.lock();
            self.wants.store(true, Ordering::SeqCst);
            self.begin(&mut h, term);
            self.reigns.load(Ordering::SeqCst)
        };
        let until = Instant::now() + self.length + self.period();
        let mut why = Vec::new();
        let own = usize::from(self.mine.is_some());
        let mut have = 0;
        let ask = |v| self.put(v, || Some(self.holder.lock().ask(v, Other::AsItWas, Want::Stand, now())));
        for v in self.remotes().collect::<Vec<_>>() {
            loop {
                match ask(v) {
                    Ok(Answer::Granted { .. }) => have += 1,
                    // As soon as the promise ends, which it soon does if nobody renews it.
                    Ok(Answer::Held { left_ms, .. }) if Instant::now() < until => {
                        let left = Duration::from_millis(left_ms).min(until.saturating_duration_since(Instant::now()));
                        std::thread::sleep(left.clamp(Duration::from_millis(5), self.period()));
                        continue;
                    }
                    // The holder stands in a later term now.
                    Ok(Answer::Old { .. }) if Instant::now() < until => continue,
                    Ok(Answer::Stale { holder }) => {
                        why.extend(self.said(v));
                        let term = self.term();
                        self.refused.lock().stale = Some((holder, term));
                    }
                    _ => why.extend(self.said(v)),
                }
                break;
            }
            if have + own >= MAJORITY {
                break;
            }
        }
        // Its own vote last, so that a primary that is heard again meanwhile still gets it.
        if let (Some(v), true) = (self.mine, have > 0)
            && (0..2).all(|_| !matches!(ask(v), Ok(Answer::Granted { .. })))
        {
            why.extend(self.said(v));
        }
        if self.leads() {
            *self.refused.lock() = Refused::default();
            return Ok(());
        }
        self.stand_down(reigns);
        Err(Error::refused(why.join("; ")))
    }

    /// After a lost vote: unless this site was given the role meanwhile, and leads.
    fn stand_down(&self, reigns: u64) {
        let mut h = self.holder.lock();
        if self.reigns.load(Ordering::SeqCst) == reigns {
            self.wants.store(false, Ordering::SeqCst);
            h.resign();
            self.permit.set(0, false);
        }
    }

    fn said(&self, v: usize) -> Option<String> {
        let s = self.seats.get(v)?;
        let said = s.said.lock().clone()?;
        Some(format!("{}: {said}", s.name))
    }

    /// The primary is lost and this site may follow it, as far as can be known here; otherwise why not.
    pub fn may_stand(&self) -> std::result::Result<(), String> {
        if self.mine.is_none_or(|m| m >= ARBITER) {
            return Err("this site is no end of the sync pair".into());
        }
        let own = self.own.lock();
        let knows = |(site, term): &(Site, u64)| {
            own.voter.record().is_some_and(|r| r.term == *term).then(|| Why::Stale(site.clone()))
        };
        // What another voter said stands until this one hears of a new primary.
        let stale = self.refused.lock().stale.as_ref().and_then(knows);
        let may = own.voter.may_stand(&self.site, now());
        may.and_then(|()| stale.map_or(Ok(()), Err)).map_err(|w| match w {
            Why::Blank => "no primary has been heard yet".into(),
            Why::Given => "this site gave the role away".into(),
            Why::Held(site) => format!("site {site} is primary and is heard"),
            Why::Stale(site) => format!(
                "this site lacks what site {site} answered without it: bring site {site} back, or take over what is here with `kagami takeover GROUP --force`; then what is missing is lost"
            ),
        })
    }

    /// Whether a refusal is another one than the last.
    pub fn refused_anew(&self, why: &str) -> bool {
        let words = why.replace(|c: char| c.is_ascii_digit(), "");
        let mut r = self.refused.lock();
        let anew = r.words != words;
        r.words = words;
        anew
    }

    /// For `kagami status`.
    pub fn status(&self, primary: bool) -> ArbiterStatus {
        let t = now();
        let seconds = |n: u64| n as f64 / 1e9;
        let h = self.holder.lock();
        let own = self.own.lock();
        let voters = self.seats.iter().enumerate().map(|(v, s)| VoterStatus {
            name: s.name.clone(),
            votes_for_s: if primary { seconds(h.left(v, t)) } else { 0.0 },
            other_end_fit: h.knows(v).filter(|_| primary),
            said: if primary { s.said.lock().clone() } else { None },
        });
        let r = own.voter.record();
        ArbiterStatus {
            arbiter: self.seats.last().map_or_else(String::new, |s| s.name.clone()),
            detect_s: self.length.as_secs_f64(),
            owner: r.map(|r| r.holder.clone()),
            owner_for_s: seconds(own.voter.left(t)),
            term: r.map_or(0, |r| r.term),
            other_end_fit: r.is_some_and(|r| r.fit),
            majority_for_s: if primary { seconds(h.until().saturating_sub(t)) } else { 0.0 },
            forced: own.forced,
            voters: voters.collect(),
            takeover: String::new(),
        }
    }
}

/// What an answer other than yes means.
fn words(a: &Answer) -> Option<String> {
    Some(match a {
        Answer::Granted { .. } => return None,
        Answer::Held { by, left_ms } => {
            format!("its vote is promised to site {by} for {:.1} s more", *left_ms as f64 / 1000.0)
        }
        Answer::Stale { holder } => {
            format!("it has on record that this site lacks what site {holder} answered")
        }
        Answer::Old { term } => format!("it knows the later term {term}"),
        Answer::Blank => "it has never heard of a primary of this group".into(),
    })
}

/// The voter of another site, over a link of its own: neither entries nor a copy hold it up.
pub struct SiteVoter {
    /// Dials.
    pub ctx: Arc<dyn SenderCtx>,
    /// This site.
    pub site: Site,
    /// A pair with the other site.
    pub pair: Arc<super::pairs::Pair>,
    /// How long an answer may take.
    pub patience: Duration,
    /// The link, while there is one.
    pub link: Option<(FrameReader, FrameWriter)>,
}

impl SiteVoter {
    fn open(&self) -> Result<(FrameReader, FrameWriter)> {
        let (r, mut w) = self.ctx.dial(&self.pair.peer)?.split();
        let hello = Hello {
            version: VERSION,
            site: self.site.clone(),
            group: self.pair.group.clone(),
            group_id: 0,
            pair: self.pair.name.clone(),
            is_async: self.pair.mode == crate::pair::state::Mode::Async,
            volumes: Vec::new(),
            chain: Vec::new(),
            head: Seq(0),
            wish: Wish::Vote,
        };
        w.send(&Msg::Hello(hello).frame()?)?;
        Ok((r, w))
    }
}

impl Remote for SiteVoter {
    fn ask(&mut self, a: &Ask) -> Result<Answer> {
        let mut link = match self.link.take() {
            Some(l) => l,
            None => self.open()?,
        };
        let (r, w) = &mut link;
        w.send(&Msg::Vote(a.clone()).frame()?)?;
        let mut buf = Vec::new();
        let h = r.recv_within(&mut buf, self.patience)?;
        match message(&buf, &h)? {
            Msg::Voted(answer) => {
                // A link on which an answer is missing is not used again: what comes late belongs to no question.
                self.link = Some(link);
                Ok(answer)
            }
            Msg::Reject { text, .. } => Err(Error::refused(text)),
            _ => Err(Error::corrupt("the peer answered with something else than a vote")),
        }
    }
}

fn message(buf: &[u8], h: &Header) -> Result<Msg> {
    match h.kind {
        FrameKind::Msg => Msg::parse(buf, h),
        _ => Err(Error::corrupt("an entry where a message belongs")),
    }
}

/// Answers the questions of a link, until it ends.
pub fn serve(ballot: Option<&Ballot>, hello: &Hello, mut r: FrameReader, mut w: FrameWriter) -> Result<()> {
    let Some(b) = ballot else {
        let text = format!("the site file there has no takeover = \"auto\" for group {}", hello.group);
        super::serve::reject(&mut w, RejectCode::UnknownPair, text.clone(), vec![], Seq(0));
        return Err(Error::refused(text));
    };
    r.set_read_timeout(Some(4 * b.length))?;
    let mut buf = Vec::new();
    loop {
        let h = r.recv(&mut buf)?;
        let Msg::Vote(a) = message(&buf, &h)? else {
            return Err(Error::corrupt("a message that does not belong here"));
        };
        if a.site != hello.site {
            return Err(Error::corrupt("a question in the name of another site"));
        }
        match b.hear(&a) {
            Ok(answer) => w.send(&Msg::Voted(answer).frame()?)?,
            Err(e) => {
                super::serve::reject(&mut w, RejectCode::Fault, e.to_string(), vec![], Seq(0));
                return Err(e);
            }
        }
    }
}
