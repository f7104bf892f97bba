//! Who may be primary: votes of three, of which two are needed (G3). Pure; times are nanoseconds of the clock of the node
//! that decides (one that also counts while it sleeps), and are never sent.
//!
//! ```text
//! voters: both ends of the sync pair, and the arbiter (a third site, or etcd). A vote is a promise, for a fixed time from
//! the moment it is given, to support nobody else; whoever has it counts it from the moment it asked.
//!
//! voter      blank ──Lead──▶ has voted for A ──(expired or released; B entitled)──▶ has voted for B
//! holder     asks all again and again; may answer while two votes are valid
//! candidate  asks the others, then its own voter, and leads once two votes are valid
//! ```
//! What a voter keeps on disk ([`Record`]) is for whom it voted last, in which term, and whether the other end of the sync
//! pair had everything (*fit*). Terms grow with every change of the holder at a voter, so no two sites win the same one.
//!
//! A primary answers a change when the other end has it, or when two voters have it on record that the other end is not fit.
//! Whoever follows needs two votes as well, so one of its voters knows: what was answered is never left behind.

use crate::base::Site;
use crate::base::planted::{Bug, planted};
use crate::format::vote::{Answer, Ask, Want};
use bincode::{Decode, Encode};

/// Votes needed, of three.
pub const MAJORITY: usize = 2;
/// Clocks may differ in their rate by one part in this many: a holder counts its votes shorter by so much.
const SKEW: u64 = 32;

/// What a voter must not forget.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Record {
    /// For whom it voted last.
    pub holder: Site,
    /// In which term.
    pub term: u64,
    /// The question by which the record was last changed.
    pub number: u64,
    /// The other end of the sync pair has everything that the holder answered.
    pub fit: bool,
    /// The holder gave its role to this site.
    pub to: Option<Site>,
}

/// What a voter decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What is answered, once the record is durable.
    pub answer: Answer,
    /// The record from now on, if it changes.
    pub record: Option<Record>,
}

/// Decides on a question. `left_ms`: how long the vote of the record is still promised; `last`: the last question of its
/// holder that was heard, term and number; `ends`: the sync pair.
pub fn decide(record: Option<&Record>, left_ms: u64, last: (u64, u64), ends: &[Site; 2], a: &Ask) -> Verdict {
    let refuse = |answer| Verdict { answer, record: None };
    let grant = |fit, to| {
        let record = Record { holder: a.site.clone(), term: a.term, number: a.number, fit, to };
        Verdict { answer: Answer::Granted { fit }, record: Some(record) }
    };
    let Some(r) = record else {
        return match a.want {
            Want::Lead { .. } => grant(a.fit.unwrap_or(false), None),
            Want::Stand | Want::Release(_) => refuse(Answer::Blank),
        };
    };
    if r.holder == a.site {
        if (a.term, a.number) <= last.max((r.term, r.number)) {
            return refuse(Answer::Old { term: last.0.max(r.term) });
        }
        let to = match &a.want {
            Want::Release(to) => to.clone(),
            _ => None,
        };
        let v = grant(a.fit.unwrap_or(r.fit), to);
        // What is said of the other end is written with its number each time: what was said before and comes late loses.
        let same = a.fit.is_none() && v.record.as_ref().is_some_and(|n| (n.term, &n.to) == (r.term, &r.to));
        return Verdict { record: v.record.filter(|_| !same), ..v };
    }
    if matches!(a.want, Want::Release(_)) || a.term <= r.term {
        return refuse(Answer::Old { term: r.term });
    }
    if left_ms > 0 && !planted(Bug::VoteTwice) {
        return refuse(Answer::Held { by: r.holder.clone(), left_ms });
    }
    let pushed = matches!(a.want, Want::Lead { backed, forced } if backed || forced);
    let equal = r.fit && ends.contains(&r.holder) && ends.contains(&a.site);
    if pushed || equal || r.to.as_ref() == Some(&a.site) {
        return grant(a.fit.unwrap_or(false), None);
    }
    refuse(Answer::Stale { holder: r.holder.clone() })
}

/// A voter with its promise.
#[derive(Clone, Debug)]
pub struct Voter {
    record: Option<Record>,
    /// Nobody else is supported before this.
    until: u64,
    last: (u64, u64),
    length: u64,
    ends: [Site; 2],
}

impl Voter {
    /// As it is after a start at `now`: what it promised is not known to have ended before the length of a vote has passed.
    pub fn new(record: Option<Record>, length: u64, ends: [Site; 2], now: u64) -> Voter {
        let until = now.saturating_add(length);
        Voter { record, until, last: (0, 0), length, ends }
    }

    /// For whom it voted last.
    pub fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// How long its promise still holds.
    pub fn left(&self, now: u64) -> u64 {
        if self.record.is_some() { self.until.saturating_sub(now) } else { 0 }
    }

    fn left_ms(&self, now: u64) -> u64 {
        self.left(now).div_ceil(1_000_000)
    }

    /// Decides; takes effect with [`Voter::take`], once the record is durable.
    pub fn hear(&self, a: &Ask, now: u64) -> Verdict {
        decide(self.record.as_ref(), self.left_ms(now), self.last, &self.ends, a)
    }

    /// Takes the decision up. `now`: not before the one it was made with.
    pub fn take(&mut self, a: &Ask, v: &Verdict, now: u64) {
        if let Some(r) = &v.record {
            self.record = Some(r.clone());
        }
        if matches!(v.answer, Answer::Granted { .. }) {
            self.last = (a.term, a.number);
            self.until = if matches!(a.want, Want::Release(_)) { 0 } else { now.saturating_add(self.length) };
        }
    }

    /// The primary is lost, as far as this end of the sync pair can tell, and it may follow; otherwise why not.
    pub fn may_stand(&self, site: &str, now: u64) -> Result<(), Why> {
        let Some(r) = &self.record else { return Err(Why::Blank) };
        if r.holder == site {
            // It had won before it was ended, or gave the role away.
            return if r.to.is_some() { Err(Why::Given) } else { Ok(()) };
        }
        match self.left(now) {
            0 if r.to.as_deref() == Some(site) || (r.fit && self.ends.iter().any(|e| e == site)) => Ok(()),
            0 => Err(Why::Stale(r.holder.clone())),
            _ => Err(Why::Held(r.holder.clone())),
        }
    }
}

/// Why a site does not stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// It never had a primary.
    Blank,
    /// It gave the role away itself.
    Given,
    /// This site is primary, and is heard.
    Held(Site),
    /// It lacks what this site answered.
    Stale(Site),
}

/// What a holder has of one voter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Vote {
    /// Valid until then.
    until: u64,
    /// Given in the present term.
    current: bool,
    /// What it is known to have durably of the other end; `None`: not known, or it was told something and has not answered.
    fit: Option<bool>,
}

/// What is to be known of the other end of the sync pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Other {
    /// It has everything that was answered, and from now on nothing is answered that it does not have.
    Fit,
    /// Something is to be answered that it does not have.
    Unfit,
    /// Nothing of both: what is known stands.
    AsItWas,
}

/// The votes of a site, as it may count them.
#[derive(Clone, Debug)]
pub struct Holder {
    site: Site,
    term: u64,
    number: u64,
    length: u64,
    votes: Vec<Vote>,
}

/// A question under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// What was asked.
    pub ask: Ask,
    /// When it was sent.
    at: u64,
}

impl Holder {
    /// Without votes. `voters`: how many can be asked.
    pub fn new(site: &str, length: u64, voters: usize) -> Holder {
        Holder { site: site.to_owned(), term: 0, number: 0, length, votes: vec![Vote::default(); voters] }
    }

    /// Begins a term after `after`, without votes.
    pub fn begin(&mut self, after: u64) {
        self.votes.fill(Vote::default());
        self.raise(after);
    }

    /// A voter knows a later term: it is to be won again, while the promises of the others hold.
    fn raise(&mut self, after: u64) {
        self.term = self.term.max(after).saturating_add(1);
        self.number = 0;
        self.votes.iter_mut().for_each(|v| v.current = false);
    }

    /// A question to a voter.
    pub fn ask(&mut self, voter: usize, other: Other, want: Want, now: u64) -> Sent {
        self.number += 1;
        let wanted = match other {
            Other::Fit => Some(true),
            Other::Unfit => Some(false),
            Other::AsItWas => None,
        };
        let mut fit = None;
        if let Some(v) = self.votes.get_mut(voter)
            && wanted.is_some()
            && v.fit != wanted
        {
            (fit, v.fit) = (wanted, None);
        }
        Sent { ask: Ask { site: self.site.clone(), term: self.term, number: self.number, fit, want }, at: now }
    }

    /// The question as a primary has it.
    pub fn lead(&mut self, voter: usize, other: Other, forced: bool, now: u64) -> Sent {
        let others = self.votes.iter().enumerate().filter(|(i, v)| *i != voter && v.current && v.until > now).count();
        self.ask(voter, other, Want::Lead { backed: others >= MAJORITY, forced }, now)
    }

    /// What came back; at most one question to a voter is under way at a time.
    pub fn answered(&mut self, voter: usize, sent: &Sent, answer: &Answer) {
        if let (Some(v), true) = (self.votes.get_mut(voter), sent.ask.term == self.term) {
            match answer {
                Answer::Granted { fit } => {
                    v.until = v.until.max(sent.at.saturating_add(self.length - self.length / SKEW));
                    v.current = true;
                    if sent.ask.fit.is_some() || v.fit.is_some() {
                        v.fit = Some(*fit);
                    }
                }
                // The promise given before holds on; what it has of the other end may be of another holder.
                _ => (v.current, v.fit) = (false, None),
            }
        }
        if let Answer::Old { term } = answer
            && *term >= self.term
        {
            self.raise(*term);
        }
    }

    /// Its term.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Up to when a majority supports it.
    pub fn until(&self) -> u64 {
        let mut all: Vec<u64> = self.votes.iter().map(|v| v.until).collect();
        all.sort_unstable_by(|a, b| b.cmp(a));
        all.get(MAJORITY - 1).copied().unwrap_or(0)
    }

    /// A majority supports it now.
    pub fn leads(&self, now: u64) -> bool {
        self.until() > now
    }

    /// How long a voter's vote is still valid.
    pub fn left(&self, voter: usize, now: u64) -> u64 {
        self.votes.get(voter).map_or(0, |v| v.until.saturating_sub(now))
    }

    /// What a voter has on record of the other end, if that is known.
    pub fn knows(&self, voter: usize) -> Option<bool> {
        self.votes.get(voter).and_then(|v| v.fit)
    }

    /// A majority of the voters has it on record that the other end is not fit: what it does not have may be answered.
    pub fn alone(&self) -> bool {
        self.votes.iter().filter(|v| v.fit == Some(false)).count() >= MAJORITY
    }

    /// It counts none of its votes any more. Before it releases them.
    pub fn resign(&mut self) {
        self.votes.fill(Vote::default());
    }
}

#[cfg(test)]
#[path = "vote_tests.rs"]
mod tests;
