//! A small world of three nodes with clocks that run differently, messages that are lost, late and cut off in one
//! direction, and nodes that are killed and come back: never two primaries that may answer, and what was answered is at
//! the one that does.

use super::*;
use std::collections::BTreeSet;

const MS: u64 = 1_000_000;
const LENGTH: u64 = 1000 * MS;
const EVERY: u64 = LENGTH / 5;
const TICK: u64 = 10 * MS;
/// A link is broken when nothing is acknowledged for so long.
const BROKEN: u64 = 600 * MS;
const SITES: [&str; 3] = ["a", "b", "w"];

fn ends() -> [Site; 2] {
    ["a".into(), "b".into()]
}

/// splitmix64
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// The link to the other end, at the primary.
#[derive(Clone, Default)]
struct Session {
    id: u64,
    open: bool,
    begun: u64,
    heard: u64,
    received: usize,
    enforced: Option<usize>,
}

struct Node {
    up: bool,
    /// Its clock: real time times `rate` / 1000, and an offset.
    rate: u64,
    offset: u64,
    // On disk.
    record: Option<Record>,
    primary: bool,
    epoch: u64,
    log: Vec<u64>,
    // In memory.
    voter: Voter,
    holder: Holder,
    /// It led in this run.
    led: bool,
    under_way: [Option<(Sent, u64)>; 3],
    /// It has a connection: one that is cut in one direction is not made anew.
    connected: [bool; 3],
    asked: u64,
    unfit: bool,
    session: Session,
    /// As a secondary: the session that it takes entries from.
    from: u64,
    answered: usize,
    standing: bool,
}

#[derive(Clone)]
enum Word {
    Ask(Ask),
    Answer(Ask, Answer),
    /// Session, epoch, all entries so far.
    Hello(u64, u64, Vec<u64>),
    Entry(u64, usize, u64),
    Ack(u64, usize),
    /// A primary of a later epoch is there.
    Stale(u64),
}

struct World {
    now: u64,
    rng: Rng,
    nodes: Vec<Node>,
    /// From, to, when it arrives.
    net: Vec<(usize, usize, u64, Word)>,
    cut: [[bool; 3]; 3],
    /// One message in so many is lost; 0: none.
    loss: u64,
    late: u64,
    done: BTreeSet<u64>,
    next: u64,
    last_answer: u64,
    answers_by: [u64; 3],
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = Rng(seed);
        let nodes = (0..3)
            .map(|i| {
                let (rate, offset) = (985 + rng.below(31), rng.below(1 << 40));
                Node {
                    up: true,
                    rate,
                    offset,
                    record: None,
                    primary: i == 0,
                    epoch: 0,
                    log: vec![],
                    voter: Voter::new(None, LENGTH, ends(), offset),
                    holder: Holder::new(SITES[i], LENGTH, 3),
                    led: false,
                    under_way: [None, None, None],
                    connected: [false; 3],
                    asked: 0,
                    unfit: false,
                    session: Session::default(),
                    from: 0,
                    answered: 0,
                    standing: false,
                }
            })
            .collect();
        let mut w = World {
            now: 0,
            rng,
            nodes,
            net: vec![],
            cut: [[false; 3]; 3],
            loss: 0,
            late: 30 * MS,
            done: BTreeSet::new(),
            next: 1,
            last_answer: 0,
            answers_by: [0; 3],
        };
        w.nodes[0].holder.begin(0);
        w
    }

    fn clock(&self, i: usize) -> u64 {
        self.nodes[i].offset + self.now / 1000 * self.nodes[i].rate
    }

    fn leads(&self, i: usize) -> bool {
        let n = &self.nodes[i];
        n.up && n.primary && n.holder.leads(self.clock(i))
    }

    fn send(&mut self, from: usize, to: usize, w: Word) {
        if self.cut[from][to] || (self.loss > 0 && self.rng.below(self.loss) == 0) {
            return;
        }
        // Now and then one is very late.
        let late = if self.rng.below(200) == 0 { self.late * 40 } else { self.late };
        let at = self.now + MS + self.rng.below(late);
        self.net.push((from, to, at, w));
    }

    fn kill(&mut self, i: usize) {
        self.nodes[i].up = false;
        // Its links end with it; questions are harder to get rid of here than they are.
        self.net.retain(|(from, to, _, w)| (*from != i && *to != i) || matches!(w, Word::Ask(_)));
    }

    fn start(&mut self, i: usize) {
        let now = self.clock(i);
        let n = &mut self.nodes[i];
        n.up = true;
        n.voter = Voter::new(n.record.clone(), LENGTH, ends(), now);
        n.holder = Holder::new(SITES[i], LENGTH, 3);
        n.holder.begin(n.record.as_ref().map_or(0, |r| r.term));
        (n.under_way, n.connected) = ([None, None, None], [false; 3]);
        (n.led, n.unfit, n.standing, n.from, n.answered) = (false, false, false, 0, n.log.len());
        n.session = Session::default();
    }

    fn vote(&mut self, i: usize, a: &Ask) -> Answer {
        let now = self.clock(i);
        let n = &mut self.nodes[i];
        let v = n.voter.hear(a, now);
        if let Some(r) = &v.record {
            n.record = Some(r.clone());
        }
        n.voter.take(a, &v, now);
        v.answer
    }

    /// Asks its own voter, then the others; as primary or as candidate.
    fn campaign(&mut self, i: usize) {
        let now = self.clock(i);
        let s = &self.nodes[i].session;
        let secured = s.open && s.enforced.is_some_and(|e| s.received >= e);
        let n = &mut self.nodes[i];
        if secured && n.primary {
            n.unfit = false;
        }
        let other = match (n.primary, secured, n.unfit) {
            (true, true, _) => Other::Fit,
            (true, false, true) => Other::Unfit,
            _ => Other::AsItWas,
        };
        let others: Vec<usize> = (0..3).filter(|v| *v != i).collect();
        // A candidate votes for itself last.
        let own = n.primary || others.iter().any(|v| n.holder.left(*v, now) > 0);
        let make = |n: &mut Node, v| {
            if n.primary { n.holder.lead(v, other, false, now) } else { n.holder.ask(v, other, Want::Stand, now) }
        };
        if own {
            let sent = make(n, i);
            let answer = self.vote(i, &sent.ask);
            self.nodes[i].holder.answered(i, &sent, &answer);
        }
        for v in others {
            let dials = !self.cut[i][v] && !self.cut[v][i];
            let n = &mut self.nodes[i];
            if n.under_way[v].as_ref().is_some_and(|(_, at)| now < at + LENGTH / 2) {
                continue;
            }
            n.connected[v] = dials || (n.connected[v] && n.under_way[v].is_none());
            let sent = make(n, v);
            n.under_way[v] = Some((sent.clone(), now));
            if n.connected[v] {
                self.send(i, v, Word::Ask(sent.ask));
            }
        }
    }

    fn arrive(&mut self, from: usize, i: usize, w: Word) {
        if !self.nodes[i].up {
            return;
        }
        match w {
            Word::Ask(a) => {
                let answer = self.vote(i, &a);
                self.send(i, from, Word::Answer(a, answer));
            }
            Word::Answer(a, answer) => {
                let n = &mut self.nodes[i];
                if n.under_way[from].as_ref().is_some_and(|(s, _)| s.ask == a) {
                    let (sent, _) = n.under_way[from].take().unwrap();
                    n.holder.answered(from, &sent, &answer);
                }
            }
            Word::Hello(id, epoch, log) => {
                let n = &mut self.nodes[i];
                if epoch < n.epoch {
                    let e = n.epoch;
                    return self.send(i, from, Word::Stale(e));
                }
                if n.primary {
                    if epoch > n.epoch {
                        self.demote(i);
                    }
                    return;
                }
                if id < n.from {
                    return;
                }
                (n.epoch, n.from, n.log) = (epoch, id, log);
                let len = n.log.len();
                self.send(i, from, Word::Ack(id, len));
            }
            Word::Entry(id, at, entry) => {
                let n = &mut self.nodes[i];
                if n.primary || n.from != id || n.log.len() < at {
                    return;
                }
                if n.log.len() == at {
                    n.log.push(entry);
                }
                let len = n.log.len();
                self.send(i, from, Word::Ack(id, len));
            }
            Word::Ack(id, len) => {
                let now = self.clock(i);
                let n = &mut self.nodes[i];
                if n.primary && n.session.id == id && id != 0 {
                    n.session.received = n.session.received.max(len);
                    (n.session.open, n.session.heard) = (true, now);
                    if n.session.enforced.is_none() {
                        n.session.enforced = Some(n.log.len());
                    }
                }
            }
            Word::Stale(epoch) => {
                if self.nodes[i].primary && epoch > self.nodes[i].epoch {
                    self.demote(i);
                }
            }
        }
    }

    fn demote(&mut self, i: usize) {
        let n = &mut self.nodes[i];
        (n.primary, n.led, n.from) = (false, false, 0);
        n.holder.resign();
        n.session = Session::default();
    }

    fn step(&mut self) {
        self.now += TICK;
        let due: Vec<_> = {
            let now = self.now;
            let (due, rest) = std::mem::take(&mut self.net).into_iter().partition(|m| m.2 <= now);
            self.net = rest;
            due
        };
        let mut due: Vec<(usize, usize, u64, Word)> = due;
        due.sort_by_key(|m| m.2);
        for (from, to, _, w) in due {
            self.arrive(from, to, w);
        }
        for i in 0..3 {
            if self.nodes[i].up {
                self.act(i);
            }
        }
        let leaders: Vec<usize> = (0..3).filter(|i| self.leads(*i)).collect();
        assert!(leaders.len() <= 1, "two primaries may answer at {} ms: {leaders:?}", self.now / MS);
    }

    fn act(&mut self, i: usize) {
        let now = self.clock(i);
        let n = &mut self.nodes[i];
        if !n.primary {
            let may = i < 2 && n.voter.may_stand(SITES[i], now).is_ok();
            if may && !n.standing {
                n.standing = true;
                n.holder.begin(n.record.as_ref().map_or(0, |r| r.term));
            }
            n.standing = may || (n.standing && n.holder.leads(now));
            if n.standing && now > n.asked + EVERY / 4 {
                n.asked = now;
                self.campaign(i);
            }
            let n = &mut self.nodes[i];
            if n.standing && n.holder.leads(now) {
                (n.primary, n.standing, n.unfit, n.from) = (true, false, false, 0);
                n.session = Session::default();
                n.answered = n.log.len();
            }
        }
        let n = &mut self.nodes[i];
        if !n.primary {
            return;
        }
        if !n.led && n.holder.leads(now) {
            n.led = true;
            n.epoch += 1;
            let log: BTreeSet<u64> = n.log.iter().copied().collect();
            let lost: Vec<_> = self.done.difference(&log).collect();
            assert!(lost.is_empty(), "{} leads at {} ms without {lost:?}", SITES[i], self.now / MS);
        }
        let n = &mut self.nodes[i];
        let other = 1 - i;
        if n.led && n.holder.leads(now) && n.log.len() < n.answered + 3 {
            n.log.push(self.next);
            self.next += 1;
        }
        let (s, len) = (&mut n.session, n.log.len());
        let behind = s.open && s.received < len;
        if !behind && s.open {
            s.heard = now;
        }
        if s.open && now > s.heard + BROKEN {
            *s = Session { begun: now, ..Session::default() };
        }
        if !s.open && now > s.begun + BROKEN / 2 {
            *s = Session { id: self.next << 8 | self.rng.below(256), begun: now, ..Session::default() };
            self.next += 1;
            let (id, epoch, log) = (s.id, n.epoch, n.log.clone());
            self.send(i, other, Word::Hello(id, epoch, log));
        }
        let n = &self.nodes[i];
        if n.session.open && n.session.received < n.log.len() {
            let (id, at) = (n.session.id, n.session.received);
            let entry = n.log[at];
            self.send(i, other, Word::Entry(id, at, entry));
        }
        let n = &mut self.nodes[i];
        let waits = n.answered < n.log.len();
        if waits && !n.session.open {
            n.unfit = true;
        }
        if now > n.asked + EVERY || (n.unfit && !n.holder.alone() && now > n.asked + EVERY / 5) {
            n.asked = now;
            self.campaign(i);
        }
        let n = &mut self.nodes[i];
        while n.led && n.answered < n.log.len() && n.holder.leads(now) {
            // As a group does: what comes after the point from which on the other end is waited for is never answered alone.
            let waited_for = n.session.enforced.is_some_and(|e| n.answered >= e);
            if n.session.received <= n.answered && (waited_for || !n.holder.alone()) {
                break;
            }
            self.done.insert(n.log[n.answered]);
            n.answered += 1;
            self.last_answer = self.now;
            self.answers_by[i] += 1;
        }
    }

    fn run(&mut self, time: u64) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    /// Who answered something in this time.
    fn answers_within(&mut self, time: u64) -> Vec<usize> {
        let before = self.answers_by;
        self.run(time);
        (0..3).filter(|i| self.answers_by[*i] > before[*i]).collect()
    }

    fn heal(&mut self) {
        self.cut = [[false; 3]; 3];
        self.loss = 0;
    }
}

/// G3, G1: whatever is cut, lost, late or killed.
#[test]
fn g3_never_two_primaries_and_nothing_answered_is_left_behind() {
    let seeds = std::env::var("KAGAMI_ROUNDS").ok().and_then(|s| s.parse().ok()).unwrap_or(300);
    let (mut takeovers, mut both) = (0, 0);
    for seed in 0..seeds {
        let mut w = World::new(seed);
        w.run(2 * LENGTH);
        for _ in 0..30 {
            match w.rng.below(12) {
                0..=4 => {
                    for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)] {
                        w.cut[from][to] = w.rng.below(3) == 0;
                    }
                }
                5 => w.loss = [0, 3, 10][w.rng.below(3) as usize],
                6 | 7 => {
                    let one = w.rng.below(3) as usize;
                    w.kill(one);
                }
                8 => w.heal(),
                _ => (0..3).for_each(|i| {
                    if !w.nodes[i].up {
                        w.start(i);
                    }
                }),
            }
            let time = w.rng.below(3 * LENGTH);
            w.run(time);
        }
        w.heal();
        (0..3).for_each(|i| {
            if !w.nodes[i].up {
                w.start(i);
            }
        });
        w.run(6 * LENGTH);
        let by = w.answers_within(4 * LENGTH);
        assert_eq!(by.len(), 1, "seed {seed}: after all is well again one answers: {by:?}");
        takeovers += u64::from(w.answers_by[1] > 0);
        both += u64::from(w.answers_by[0] > 0 && w.answers_by[1] > 0);
    }
    assert!(takeovers > seeds / 3 && both > seeds / 4, "the world is too calm: {takeovers} {both}");
}

/// C4: service goes on wherever two of three are, and nowhere else.
#[test]
fn c4_where_a_majority_is_somebody_answers() {
    let both = |a: usize, b: usize| vec![(a, b), (b, a)];
    /// What is cut, and who answers then.
    type Case = (Vec<(usize, usize)>, &'static [usize]);
    let cases: Vec<Case> = vec![
        (both(0, 1), &[0]),
        (both(0, 2), &[0]),
        (both(1, 2), &[0]),
        (vec![(0, 1)], &[0]),
        (vec![(1, 0)], &[0]),
        (vec![(0, 2)], &[0]),
        (vec![(2, 0)], &[0]),
        ([both(0, 1), both(0, 2)].concat(), &[1]),
        ([both(0, 1), both(1, 2)].concat(), &[0]),
        ([both(0, 2), both(1, 2)].concat(), &[0]),
        (vec![(0, 1), (0, 2)], &[1]),
        (vec![(1, 0), (2, 0)], &[1]),
        ([both(0, 1), both(0, 2), both(1, 2)].concat(), &[]),
    ];
    for (n, (cuts, who)) in cases.iter().enumerate() {
        for seed in 0..20 {
            let mut w = World::new(seed);
            w.run(3 * LENGTH);
            for (from, to) in cuts {
                w.cut[*from][*to] = true;
            }
            w.run(6 * LENGTH);
            assert_eq!(&w.answers_within(2 * LENGTH), who, "case {n}, seed {seed}");
            w.heal();
            w.run(6 * LENGTH);
            assert_eq!(w.answers_within(2 * LENGTH).len(), 1, "case {n}, seed {seed}, after heal");
        }
    }
}

#[test]
fn c4_each_of_three_lost_and_a_stale_end_is_not_promoted() {
    for seed in 0..20 {
        for lost in 0..3 {
            let mut w = World::new(seed);
            w.run(3 * LENGTH);
            w.kill(lost);
            w.run(4 * LENGTH);
            let who = usize::from(lost == 0);
            assert_eq!(w.answers_within(2 * LENGTH), [who], "{lost} killed, seed {seed}");
            // It comes back, also at once.
            w.start(lost);
            w.run(4 * LENGTH);
            assert_eq!(w.answers_within(2 * LENGTH), [who], "{lost} back, seed {seed}");
        }
        let mut w = World::new(seed);
        w.run(3 * LENGTH);
        (w.cut[0][1], w.cut[1][0]) = (true, true);
        w.run(4 * LENGTH);
        w.kill(0);
        w.run(4 * LENGTH);
        assert!(w.answers_within(4 * LENGTH).is_empty(), "the end that was left behind leads, seed {seed}");
        w.start(0);
        w.run(3 * LENGTH);
        assert_eq!(w.answers_within(2 * LENGTH), [0], "seed {seed}");
    }
}

fn ask(site: &str, term: u64, number: u64, fit: Option<bool>, want: Want) -> Ask {
    Ask { site: site.into(), term, number, fit, want }
}

const LEAD: Want = Want::Lead { backed: false, forced: false };

fn hears(v: &mut Voter, now: u64, a: &Ask) -> Answer {
    let d = v.hear(a, now);
    v.take(a, &d, now);
    d.answer
}

/// A vote is a promise also after the voter was killed.
#[test]
fn g3_a_voter_that_was_killed_keeps_what_it_promised() {
    let mut v = Voter::new(None, LENGTH, ends(), 0);
    assert_eq!(hears(&mut v, 0, &ask("b", 1, 1, None, Want::Stand)), Answer::Blank, "who may follow is not known");
    assert_eq!(hears(&mut v, 0, &ask("a", 1, 1, Some(true), LEAD)), Answer::Granted { fit: true });
    let mut again = Voter::new(v.record().cloned(), LENGTH, ends(), 5 * MS);
    let stand = |n| ask("b", 2, n, None, Want::Stand);
    let held = |left_ms| Answer::Held { by: "a".into(), left_ms };
    assert_eq!(hears(&mut again, 6 * MS, &stand(1)), held(999));
    assert_eq!(
        hears(&mut again, 7 * MS, &ask("a", 1, 2, None, LEAD)),
        Answer::Granted { fit: true },
        "its own at once"
    );
    assert_eq!(hears(&mut again, 1006 * MS, &stand(2)), held(1));
    assert_eq!(hears(&mut again, 1007 * MS, &stand(3)), Answer::Granted { fit: false });
    assert_eq!(hears(&mut again, 1008 * MS, &ask("a", 1, 3, None, LEAD)), Answer::Old { term: 2 });
}

#[test]
fn a_word_that_comes_late_changes_nothing_and_a_role_that_was_given_goes_at_once() {
    let mut v = Voter::new(None, LENGTH, ends(), 0);
    hears(&mut v, 0, &ask("a", 1, 1, Some(true), LEAD));
    hears(&mut v, 1, &ask("a", 1, 3, Some(false), LEAD));
    // Also where the voter does not remember what it heard last.
    let mut again = Voter::new(v.record().cloned(), LENGTH, ends(), 0);
    for v in [&mut v, &mut again] {
        assert_eq!(hears(v, 2, &ask("a", 1, 2, Some(true), LEAD)), Answer::Old { term: 1 });
        let stand = ask("b", 2, 1, None, Want::Stand);
        assert_eq!(hears(v, 2 * LENGTH, &stand), Answer::Stale { holder: "a".into() });
        assert_eq!(v.may_stand("b", 2 * LENGTH), Err(Why::Stale("a".into())));
        assert!(matches!(hears(v, 2 * LENGTH, &ask("b", 1, 9, None, Want::Release(None))), Answer::Old { .. }));
        hears(v, 3 * LENGTH, &ask("a", 1, 4, None, Want::Release(Some("b".into()))));
        assert_eq!(v.may_stand("a", 3 * LENGTH), Err(Why::Given));
        assert_eq!(hears(v, 3 * LENGTH, &stand), Answer::Granted { fit: false });
        // Only who has the others, or the operator's word, gets what was never equal.
        for (want, yes) in [(LEAD, false), (Want::Lead { backed: true, forced: false }, true)] {
            let got = hears(&mut v.clone(), 9 * LENGTH, &ask("a", 3, 1, None, want));
            assert_eq!(matches!(got, Answer::Granted { .. }), yes, "{got:?}");
        }
    }
}

#[test]
fn votes_count_from_when_they_were_asked_for_and_a_later_term_costs_none() {
    let mut h = Holder::new("a", LENGTH, 3);
    h.begin(4);
    let granted = Answer::Granted { fit: false };
    let (own, other) = (h.lead(0, Other::AsItWas, false, 0), h.lead(1, Other::AsItWas, false, 10));
    h.answered(0, &own, &granted);
    assert!(!h.leads(1) && h.until() == 0);
    h.answered(1, &other, &granted);
    assert_eq!((h.term(), h.until()), (5, LENGTH - LENGTH / SKEW));
    assert!(!h.alone(), "what it was not told does not count");
    let third = h.lead(2, Other::Unfit, false, 20);
    assert_eq!(third.ask.want, Want::Lead { backed: true, forced: false });
    h.answered(2, &third, &Answer::Old { term: 8 });
    assert!(h.leads(21) && h.term() == 9, "the promises hold");
    assert_eq!(h.lead(2, Other::Unfit, false, 22).ask.want, LEAD, "but say nothing of the new term");
    for v in 0..2 {
        let s = h.lead(v, Other::Unfit, false, 30);
        assert_eq!(s.ask.fit, Some(false));
        h.answered(v, &s, &granted);
    }
    assert!(h.alone());
    assert_eq!(h.lead(0, Other::Unfit, false, 40).ask.fit, None, "known already");
    assert_eq!(h.lead(0, Other::Fit, false, 50).ask.fit, Some(true));
    assert!(!h.alone(), "from when it is said, not from when it is answered");
}
