//! Random trees, histories and cuts against the model; and each hard case by name.

#[path = "plan_model.rs"]
mod model;

#[path = "plan_cases.rs"]
mod cases;

use super::*;
use model::{Act, Ent, File, Journal, World, execute};
use proptest::prelude::*;

/// Two replicas that were identical at `common`.
struct Pair {
    at_common: World,
    s: World,
    t: World,
    sj: Journal,
    tj: Journal,
    /// The position to plan from, at or before `common`.
    from: Seq,
    common: Seq,
    s_head: Seq,
    t_head: Seq,
}

/// Kinds from here on begin an interval instead of changing anything.
const CUT: u8 = 14;

impl Pair {
    /// `relabel`: files whose link id differs at the target, as bits. A region keeps the id that it gave first, so two
    /// sides may know one file by two ids, or one of them by none while it has one name.
    fn new(base: &[Act], common: &[Act], s_acts: &[Act], t_acts: &[Act], relabel: u64) -> Pair {
        let mut s = World::new();
        for a in base {
            s.act(*a);
        }
        let mut t = s.clone();
        t.relabel(relabel);
        let (mut sj, mut tj, mut seq) = (Journal::default(), Journal::default(), Seq(0));
        for a in common {
            match a.0 % 16 {
                CUT => sj.cut(Some(seq)),
                15 => tj.cut(Some(seq)),
                _ => {
                    run(&mut s, &mut sj, &mut seq.clone(), *a);
                    run(&mut t, &mut tj, &mut seq, *a);
                }
            }
        }
        assert_eq!(s.picture(), t.picture());
        let mut p = Pair { at_common: t.clone(), s, t, sj, tj, from: seq, common: seq, s_head: seq, t_head: seq };
        // Ids are unique in a group: the sites never give the same one.
        p.t.next += 1_000_000;
        p.t.clock += 1_000_000;
        for a in s_acts {
            p.source(*a);
        }
        for a in t_acts {
            p.target(*a);
        }
        p
    }

    /// Plans from an earlier position, as far back as both journals reach.
    fn planned_earlier(mut self, back: u64) -> Pair {
        let begin = [&self.sj, &self.tj].map(|j| j.begins_after.0).into_iter().max().unwrap();
        self.from = Seq(self.common.0.saturating_sub(back).max(begin));
        self
    }

    fn source(&mut self, a: Act) {
        match a.0 % 16 {
            CUT | 15 => self.sj.cut(None),
            _ => run(&mut self.s, &mut self.sj, &mut self.s_head, a),
        }
    }

    fn target(&mut self, a: Act) {
        match a.0 % 16 {
            CUT | 15 => self.tj.cut(None),
            _ => run(&mut self.t, &mut self.tj, &mut self.t_head, a),
        }
    }

    fn plan(&self) -> Plan {
        plan_between((&self.s, &self.sj), (&self.t, &self.tj), [self.from, self.common, self.t_head])
    }
}

/// The plan for two replicas; positions: to plan from, agreed, head of the target.
fn plan_between(s: (&World, &Journal), t: (&World, &Journal), [common, agreed, target_head]: [Seq; 3]) -> Plan {
    let only = |mut l: Links, recs: &[super::super::change::Rec]| {
        let asked = link_ids(recs);
        l.retain(|k, _| asked.contains(k));
        l
    };
    let source_links = only(s.0.links(), &s.1.recs);
    let target_links = only(t.0.links(), &t.1.recs);
    plan(&Input {
        source: &s.1.recs,
        target: &t.1.recs,
        common,
        agreed,
        target_head,
        source_links: &source_links,
        target_links: &target_links,
    })
    .unwrap()
}

impl Pair {
    /// Plans, executes and checks everything that a plan promises.
    fn check(&self) -> Plan {
        let plan = self.plan();
        plan.validate().unwrap();
        let mut t = self.t.clone();
        let kept = execute(&plan, &self.s, &mut t, (&mut Journal::default(), self.s_head));
        assert_eq!(self.s.picture(), t.picture(), "not identical after the resync (G5)\n{plan:#?}");
        // What was made between the two positions is made again: the journals do not tell that it is the same.
        if self.from == self.common {
            self.check_counts(&plan);
        }
        self.check_kept(&plan, &kept);
        plan
    }

    /// Exactly the steps that the true identities of the objects ask for.
    fn check_counts(&self, plan: &Plan) {
        let names =
            |w: &World, e: Ent| w.names.iter().filter(|(_, x)| **x == e).map(|(n, _)| n.clone()).collect::<Vec<_>>();
        let all: std::collections::BTreeSet<Ent> =
            self.s.names.values().chain(self.t.names.values()).copied().collect();
        let mut c = Counts::default();
        for e in all {
            let (want, have) = (names(&self.s, e), names(&self.t, e));
            let stay = want.iter().filter(|n| have.contains(n)).count();
            let (more, less) = ((want.len() - stay) as u64, (have.len() - stay) as u64);
            match (have.is_empty(), want.is_empty()) {
                (true, _) => {
                    *(if matches!(e, Ent::Dir(_)) { &mut c.dirs_made } else { &mut c.files_made }) += 1;
                    c.links_made += more - 1;
                }
                (_, true) => {
                    c.discarded += 1;
                    c.names_dropped += less - 1;
                }
                _ => {
                    let moved = u64::from(stay == 0);
                    c.renames += moved;
                    c.links_made += more - moved;
                    c.names_dropped += less - moved;
                }
            }
        }
        (c.kept, c.files_examined) = (plan.counts.kept, plan.counts.files_examined);
        assert_eq!(plan.counts, c, "more steps than needed\n{plan:#?}");
        for task in &plan.content {
            let Ent::File(f) = self.s.names[&task.source] else { panic!("content of a directory") };
            let marked = self.sj.marked.contains(&f) || self.tj.marked.contains(&f);
            assert!(task.extent == Extent::Whole || marked, "an untouched file is compared (G4): {task:?}");
        }
        assert_eq!(plan.content.len() as u64, plan.counts.files_examined);
    }

    /// Every version that the target alone had is kept; nothing is if it had none (G6).
    fn check_kept(&self, plan: &Plan, kept: &[(u64, File)]) {
        if self.t_head == self.common {
            assert!(kept.is_empty() && plan.counts.kept == 0 && plan.content.iter().all(|c| c.lost.is_none()));
            return;
        }
        let same = |a: Option<&File>, b: &File| a.is_some_and(|a| a.bytes == b.bytes && a.attr == b.attr);
        for (f, version) in &self.t.files {
            let (was, wins) = (self.at_common.files.get(f), self.s.files.get(f));
            if !same(was, version) && !same(wins, version) {
                assert!(kept.iter().any(|(k, v)| k == f && same(Some(v), version)), "version of {f} lost (G6)");
            }
        }
    }
}

fn run(w: &mut World, journal: &mut Journal, seq: &mut Seq, a: Act) {
    for (change, file) in w.act(a) {
        *seq = seq.next();
        journal.add(*seq, &change, file);
    }
}

fn acts(max: usize) -> impl Strategy<Value = Vec<Act>> {
    prop::collection::vec((0u8..16, any::<u8>(), any::<u8>(), any::<u8>()), 0..max)
}

/// 20,000 cases in all unless `PROPTEST_CASES` says otherwise (for each test).
fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|v| v.parse().ok()).unwrap_or(5_000);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn outage_without_changes_at_the_target(base in acts(25), common in acts(20), s in acts(30), relabel: u64) {
        Pair::new(&base, &common, &s, &[], relabel).check();
    }

    #[test]
    fn both_sides_changed(base in acts(25), common in acts(20), s in acts(20), t in acts(20), relabel: u64) {
        Pair::new(&base, &common, &s, &t, relabel).check();
    }

    #[test]
    fn planned_from_before_the_last_common_position(base in acts(25), common in acts(30), s in acts(20), t in acts(20), back in 1u64..20) {
        Pair::new(&base, &common, &s, &t, 0).planned_earlier(back).check();
        Pair::new(&base, &common, &s, &[], 0).planned_earlier(back).check();
    }

    /// A third replica, which followed the winner for a while, is resynced from the loser after that was resynced: what
    /// the loser did, before and during its own resync, counts from where the histories parted.
    #[test]
    fn a_third_replica_from_the_journal_of_the_second(
        base in acts(25), common in acts(20), s in acts(20), t in acts(20), relabel: u64, followed in 0usize..20,
    ) {
        let mut p = Pair::new(&base, &common, &s, &t, relabel);
        let jump = Seq(1_000_000);
        let plan = p.plan();
        execute(&plan, &p.s, &mut p.t, (&mut p.tj, jump));
        let third = Pair::new(&base, &common, &s[..followed.min(s.len())], &[], relabel);
        let (mut d, head) = (third.s, third.s_head);
        let plan = plan_between((&p.t, &p.tj), (&d, &third.sj), [p.common, head, head]);
        let kept = execute(&plan, &p.t, &mut d, (&mut Journal::default(), jump));
        prop_assert_eq!(p.t.picture(), d.picture(), "{:#?}", plan);
        prop_assert!(kept.is_empty());
    }
}
