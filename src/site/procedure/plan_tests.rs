use super::plan::{Choice, steps};
use super::recipe::{self, Kind, markdown};
use super::*;
use crate::base::Kind as Sort;
use crate::node::config::Mode;
use crate::node::status::{GroupStatus, SiteView};
use serde_json::{Value, json};

/// A site of the model.
#[derive(Clone)]
struct Place {
    name: &'static str,
    up: bool,
    primary: bool,
    epoch: u64,
    task: Option<String>,
    mounted: bool,
    position: u64,
    /// Its outgoing pairs: peer, state.
    pairs: Vec<(&'static str, &'static str)>,
}

/// Three sites: `sync` pair P-S, `async` pair P-A, `relay` (async) S-A.
#[derive(Clone)]
struct World {
    here: &'static str,
    mounts: usize,
    all: Vec<Place>,
}

fn between(a: &str, b: &str) -> (&'static str, &'static str) {
    match (a, b) {
        ("P", "S") | ("S", "P") => ("sync", "sync"),
        ("P", "A") | ("A", "P") => ("async", "async"),
        _ => ("relay", "async"),
    }
}

impl World {
    /// `primary` leads, the others follow in PAIR.
    fn led_by(primary: &str, here: &'static str) -> World {
        let place = |name: &'static str| Place {
            name,
            up: true,
            primary: name == primary,
            epoch: 1,
            task: None,
            mounted: name == primary,
            position: 100,
            pairs: vec![],
        };
        let mut w = World { here, mounts: 1, all: vec![place("P"), place("S"), place("A")] };
        w.follow(primary, "PAIR");
        w
    }

    fn at(&mut self, site: &str) -> &mut Place {
        self.all.iter_mut().find(|p| p.name == site).unwrap()
    }

    fn follow(&mut self, primary: &str, state: &'static str) {
        let others: Vec<_> = self.all.iter().map(|p| p.name).filter(|n| *n != primary).map(|n| (n, state)).collect();
        self.at(primary).pairs = others;
    }

    fn set(&mut self, from: &str, to: &str, state: &'static str) {
        self.at(from).pairs.iter_mut().filter(|p| p.0 == to).for_each(|p| p.1 = state);
    }

    fn view(&self) -> View {
        let group = |p: &Place| -> GroupStatus {
            let pairs: Vec<Value> = p
                .pairs
                .iter()
                .map(|(peer, state)| {
                    let (name, mode) = between(p.name, peer);
                    json!({ "name": name, "mode": mode, "peer": peer, "state": state, "reason": null, "last_resync": null,
                        "lag": { "entries": 0, "bytes": 0, "seconds": 0.0 } })
                })
                .collect();
            let mounts: Vec<Value> = p.mounted.then(|| json!({ "volume": "v", "dir": "/m" })).into_iter().collect();
            let led_by = self.all.iter().filter(|x| x.primary).max_by_key(|x| x.epoch).map_or("P", |x| x.name);
            serde_json::from_value(json!({ "name": "g", "role": if p.primary { "primary" } else { "secondary" },
                "epoch": p.epoch, "led_by": led_by, "position": p.position, "mount": null, "mounts": mounts,
                "fence": "never", "pairs": pairs, "task": p.task, "consistent": true }))
            .unwrap()
        };
        let mut sites: Vec<SiteView> = self
            .all
            .iter()
            .map(|p| SiteView {
                site: p.name.into(),
                group: p.up.then(|| group(p)),
                error: (!p.up).then(|| "it is dead".into()),
            })
            .collect();
        sites.sort_by_key(|s| s.site != self.here);
        let pair = |a: &str, b: &str, mode| (between(a, b).0.to_owned(), mode, [a.to_owned(), b.to_owned()]);
        View {
            group: "g".into(),
            here: self.here.into(),
            home: "P".into(),
            pairs: vec![pair("P", "S", Mode::Sync), pair("P", "A", Mode::Async), pair("S", "A", Mode::Async)],
            mounts: self.mounts,
            sites,
        }
    }

    /// What a step brings about.
    fn done(&mut self, kind: Kind, c: &Choice) {
        let (from, to) = (c.from.clone().unwrap_or_default(), c.to.clone());
        let others: Vec<&str> = self.all.iter().map(|p| p.name).filter(|n| *n != from && *n != to).collect();
        let epoch = self.all.iter().map(|p| p.epoch).max().unwrap() + 1;
        match kind {
            Kind::Act => {
                self.follow(&from, "COPY");
                let f = self.at(&from);
                (f.primary, f.epoch, f.task) = (true, epoch, Some(format!("acting for {to}")));
            }
            Kind::Level => self.set(&from, &to, "PAIR"),
            Kind::LevelOther => others.iter().for_each(|o| self.set(&from, o, "PAIR")),
            Kind::Stop => {
                let f = self.at(&from);
                (f.mounted, f.task) = (false, Some("resting".into()));
            }
            Kind::Roles | Kind::Lead => {
                if kind == Kind::Roles {
                    let f = self.at(&from);
                    (f.primary, f.mounted, f.task) = (false, false, Some(format!("gave to {to}")));
                }
                self.follow(&to, "COPY");
                let t = self.at(&to);
                (t.primary, t.epoch, t.task) = (true, epoch, Some("resting".into()));
            }
            Kind::Start => {
                let t = self.at(&to);
                (t.mounted, t.task) = (true, None);
            }
            Kind::FollowFrom => self.set(&to, &from, "PAIR"),
            Kind::FollowOther => others.iter().for_each(|o| self.set(&to, o, "PAIR")),
        }
    }
}

fn states(p: &Plan) -> Vec<(&'static str, State)> {
    p.steps.iter().map(|s| (s.step, s.state)).collect()
}

fn with_figure(figure: u8, start_last: bool) -> (World, Order, Options) {
    let o = |first| Options { first, start_last, force: false };
    let lost = |here, gone: &str| {
        let mut w = World::led_by("P", here);
        w.at(gone).up = false;
        w
    };
    match figure {
        10 => (lost("S", "P"), Order::Takeover { with: None }, o(None)),
        13 => (lost("A", "P"), Order::Takeover { with: None }, o(None)),
        14 => {
            let mut w = lost("A", "P");
            w.at("S").position = 120;
            (w, Order::Takeover { with: Some("S".into()) }, o(None))
        }
        11 => (World::led_by("S", "P"), Order::Failback, o(None)),
        12 => (World::led_by("S", "P"), Order::Failback, o(Some(Mode::Async))),
        15 => (World::led_by("A", "P"), Order::Failback, o(None)),
        16 => (World::led_by("A", "P"), Order::Failback, o(Some(Mode::Sync))),
        _ => (World::led_by("P", "S"), Order::Swap { to: None }, o(None)),
    }
}

/// MS-10 to MS-14, MS-22: whatever step was the last one done, the same order, given anew by one who knows nothing, goes on
/// with the next, and comes to the same end.
#[test]
fn a_procedure_ordered_anew_goes_on_where_it_was() {
    for (figure, last) in [
        (10, false),
        (13, false),
        (14, false),
        (11, false),
        (12, false),
        (12, true),
        (15, false),
        (16, false),
        (16, true),
        (0, false),
    ] {
        let (mut w, order, options) = with_figure(figure, last);
        if !matches!(figure, 10 | 13 | 14) {
            let from = w.all.iter().find(|p| p.primary).unwrap().name;
            w.follow(from, "COPY");
        }
        let (first, _) = plan(&w.view(), &order, options).unwrap();
        assert_eq!(first.recipe.figure.unwrap_or(0), figure);
        for (i, (kind, _)) in first.recipe.steps.iter().enumerate() {
            let (c, p) = plan(&w.view(), &order, options).unwrap();
            let next = p.next().unwrap_or_else(|| panic!("figure {figure}: nothing before {kind:?}: {p:#?}"));
            assert_eq!((c.recipe, next.step), (first.recipe, kind.words().name), "figure {figure}: {p:#?}");
            assert_eq!(next.blocked, None, "figure {figure}: {p:#?}");
            let earlier = p.steps.iter().take(i).all(|s| matches!(s.state, State::Done | State::NotNeeded));
            let later = p.steps.iter().skip(i + 1).all(|s| !matches!(s.state, State::Next));
            assert!(earlier && later, "figure {figure}: {p:#?}");
            w.done(*kind, &first);
        }
        let (_, p) = plan(&w.view(), &order, options).unwrap();
        assert_eq!(p.next(), None, "figure {figure}: {p:#?}");
        assert!(w.view().primary() == Some(first.to.as_str()));
    }
}

/// MS-10: the application runs without a copy when the third site cannot be reached, and that is said.
#[test]
fn ms10_who_cannot_be_reached_is_left_out_and_said() {
    let (mut w, order, options) = with_figure(10, false);
    w.at("A").up = false;
    let (_, p) = plan(&w.view(), &order, options).unwrap();
    let states = states(&p);
    assert_eq!(states, [("lead", State::Next), ("start", State::Later), ("follow-others", State::NotNeeded)]);
    assert!(p.steps[2].why.contains("runs without a copy"), "{p:#?}");
}

/// MS-11: what is known to be equal is not copied, and the plan says why.
#[test]
fn ms11_known_equality_needs_no_copy() {
    let (w, order, options) = with_figure(11, false);
    let (_, p) = plan(&w.view(), &order, options).unwrap();
    assert_eq!(p.steps[0].state, State::NotNeeded);
    assert!(p.steps[0].why.contains("no copy is needed") && p.steps[0].why.contains("entry 100"), "{p:#?}");
    assert_eq!(p.next().unwrap().step, "roles");
}

/// MS-13: without a way to the sync site it is not done, and the sync site is named; nor when it has less.
#[test]
fn ms13_the_other_site_must_be_there_and_have_as_much() {
    let (mut w, order, options) = with_figure(14, false);
    w.at("S").up = false;
    let blocked = |w: &World| plan(&w.view(), &order, options).unwrap().1.next().unwrap().blocked.clone().unwrap();
    assert!(blocked(&w).contains("take over at site S instead"), "{}", blocked(&w));
    w.at("S").up = true;
    w.at("S").position = 90;
    assert!(blocked(&w).contains("leave out --with-data-of"), "{}", blocked(&w));
    w.at("S").position = 120;
    w.at("P").up = true;
    assert!(blocked(&w).contains("site P is primary and reachable"), "{}", blocked(&w));
    // Once it leads here, the sync site must follow before anything is mounted.
    w.at("P").up = false;
    let (c, _) = plan(&w.view(), &order, options).unwrap();
    w.done(Kind::Act, &c);
    w.done(Kind::Roles, &c);
    w.at("S").up = false;
    let p = steps(&w.view(), &order, &c);
    let next = p.next().unwrap();
    assert_eq!(next.step, "follow-from");
    assert!(next.blocked.as_ref().unwrap().contains("or start without"), "{next:#?}");
}

/// MS-24 and the choice of the way back: the cheapest that is valid, and why.
#[test]
fn ms24_the_way_back_is_chosen_and_explained() {
    let chosen = |w: &World, o: Options| plan(&w.view(), &Order::Failback, o).map(|(c, _)| (c.recipe, c.why.unwrap()));
    let w = World::led_by("S", "P");
    let (r, why) = chosen(&w, Options::default()).unwrap();
    assert_eq!(r, &recipe::BACK_FROM_SYNC);
    assert!(why.contains("down only while the roles change"), "{why}");
    let last = Options { start_last: true, ..Options::default() };
    assert_eq!(chosen(&w, last).unwrap().0, &recipe::BACK_FROM_SYNC_LAST);
    let wrong = Options { first: Some(Mode::Sync), start_last: true, force: false };
    assert_eq!(chosen(&w, wrong).unwrap_err().kind, Sort::Config);
    // From the async site the names of the two ways are the other way round.
    let w = World::led_by("A", "P");
    assert_eq!(chosen(&w, Options::default()).unwrap().0, &recipe::BACK_FROM_ASYNC);
    let sync = Options { first: Some(Mode::Sync), ..Options::default() };
    assert_eq!(chosen(&w, sync).unwrap().0, &recipe::BACK_FROM_ASYNC_STOPPED);
    // Stopped already: that way goes on.
    let mut w = World::led_by("S", "P");
    w.at("S").task = Some("resting".into());
    w.at("S").mounted = false;
    assert_eq!(chosen(&w, Options::default()).unwrap().0, &recipe::BACK_FROM_SYNC_STOPPED);
    // A pair that cannot keep up.
    let mut view = World::led_by("A", "P").view();
    let a = view.sites.iter_mut().find(|s| s.site == "A").unwrap().group.as_mut().unwrap();
    let p = a.pairs.iter_mut().find(|p| p.peer == "P").unwrap();
    (p.state, p.fault, p.reason) = ("PSUE".into(), Some("behind".into()), Some("the spool is full".into()));
    let (c, _) = plan(&view, &Order::Failback, Options::default()).unwrap();
    assert_eq!(c.recipe, &recipe::BACK_FROM_ASYNC_STOPPED);
    assert!(c.why.unwrap().contains("the spool is full"));
}

#[test]
fn what_cannot_be_is_refused_with_what_to_do() {
    let refused = |w: &World, order: Order| plan(&w.view(), &order, Options::default()).unwrap_err();
    let e = refused(&World::led_by("S", "A"), Order::Failback);
    assert!(e.kind == Sort::Refused && e.msg.contains("order its failback there"), "{e}");
    let e = refused(&World::led_by("P", "A"), Order::Swap { to: Some("S".into()) });
    assert!(e.msg.contains("order it at site S"), "{e}");
    let e = refused(&World::led_by("P", "P"), Order::Swap { to: Some("X".into()) });
    assert_eq!(e.kind, Sort::Config);
    let mut w = World::led_by("S", "P");
    w.at("S").up = false;
    let e = refused(&w, Order::Failback);
    assert!(e.kind == Sort::Failed && e.msg.contains("it is dead") && e.msg.contains("take over"), "{e}");
    // A pair that its operator suspended is not resumed, and what is stopped first needs everybody.
    let mut w = World::led_by("S", "P");
    w.set("S", "P", "PSUS");
    let (_, p) = plan(&w.view(), &Order::Failback, Options::default()).unwrap();
    assert!(p.next().unwrap().blocked.as_ref().unwrap().contains("kagami pair resync g sync"), "{p:#?}");
    let mut w = World::led_by("S", "P");
    w.at("A").up = false;
    let first = Options { first: Some(Mode::Async), ..Options::default() };
    let (_, p) = plan(&w.view(), &Order::Failback, first).unwrap();
    assert!(p.next().unwrap().blocked.as_ref().unwrap().contains("there is the other way"), "{p:#?}");
    // At the primary a swap without a site has nothing to do: it may be the same order again.
    let (c, p) = plan(&World::led_by("P", "P").view(), &Order::Swap { to: None }, Options::default()).unwrap();
    assert_eq!((c.to.as_str(), p.next()), ("P", None));
}

/// A role given away by a site that is gone meanwhile: it is said what to do.
#[test]
fn a_role_on_its_way_is_waited_for_or_explained() {
    let mut w = World::led_by("S", "P");
    let s = w.at("S");
    (s.primary, s.mounted, s.task) = (false, false, Some("giving to P".into()));
    let (c, p) = plan(&w.view(), &Order::Failback, Options::default()).unwrap();
    assert_eq!((c.from.as_deref(), p.next().map(|s| s.step)), (Some("S"), Some("roles")), "{p:#?}");
    w.at("S").up = false;
    let p = steps(&w.view(), &Order::Failback, &c);
    assert!(p.next().unwrap().blocked.is_some(), "{p:#?}");
}

#[test]
fn the_document_of_procedures_is_rendered_from_the_recipes() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/PROCEDURES.md");
    if std::env::var_os("KAGAMI_BLESS").is_some() {
        std::fs::write(path, markdown()).unwrap();
    }
    let text = std::fs::read_to_string(path).unwrap_or_default();
    assert!(text == markdown(), "docs/PROCEDURES.md is old; run the test with KAGAMI_BLESS=1");
    // Each recipe once, and no step twice in one of them: steps are named by their sort.
    for r in recipe::ALL {
        for (k, _) in r.steps {
            assert_eq!(r.steps.iter().filter(|(x, _)| x == k).count(), 1, "{r:?}");
        }
    }
}

/// Where takeover is automatic and no majority supports the primary, only an order by force makes it lead on.
#[test]
fn g3_a_primary_without_a_majority_leads_on_by_force_alone() {
    let lead = |majority: f64, forced: bool, force: bool| {
        let mut v = World::led_by("P", "P").view();
        v.sites[0].group.as_mut().unwrap().arbiter =
            Some(crate::node::status::ArbiterStatus { majority_for_s: majority, forced, ..Default::default() });
        let order = Order::Takeover { with: None };
        let (_, p) = plan(&v, &order, Options { force, ..Options::default() }).unwrap();
        p.steps.iter().find(|s| s.kind == Kind::Lead).unwrap().state
    };
    assert_eq!(lead(0.0, false, true), State::Next);
    assert_eq!(lead(0.0, false, false), State::Done);
    assert_eq!(lead(2.5, false, true), State::Done);
    assert_eq!(lead(0.0, true, true), State::Done);
}
