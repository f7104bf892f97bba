//! The plan: what is observed of all sites decides which recipe it is and how each of its steps stands. Pure.

use super::recipe::{self, Kind, Recipe};
use crate::base::{Error, Result};
use crate::node::config::{GroupConfig, Mode};
use crate::node::status::{GroupStatus, PairStatus, SiteView};
use crate::site::text;
use serde::Serialize;

/// A pair that is no further behind than this can change its roles at once, seconds.
const LEVEL_S: f64 = 5.0;

/// What is observed of a group.
#[derive(Clone, Debug)]
pub struct View {
    /// The group.
    pub group: String,
    /// The site at which the procedure is ordered.
    pub here: String,
    /// The site that the group calls its primary: where the application belongs.
    pub home: String,
    /// The pairs between sites, with their names and modes.
    pub pairs: Vec<(String, Mode, [String; 2])>,
    /// Volumes that are to be mounted here when this site leads.
    pub mounts: usize,
    /// Every site, this one first.
    pub sites: Vec<SiteView>,
}

impl View {
    /// Of a group in the site file of `here`; `at`: its lead volume is mounted there instead.
    pub fn new(cfg: &GroupConfig, here: &str, at: bool, sites: Vec<SiteView>) -> View {
        let own = cfg.volumes.iter().filter(|v| v.mount.is_some()).count();
        View {
            group: cfg.name.clone(),
            here: here.to_owned(),
            home: cfg.primary.clone(),
            pairs: cfg.pairs.iter().map(|p| (p.name.clone(), p.mode, p.sites.clone())).collect(),
            mounts: if at { 1 } else { own },
            sites,
        }
    }

    /// What a site says of the group, if it can be reached.
    pub fn seen(&self, site: &str) -> Option<&GroupStatus> {
        self.sites.iter().find(|s| s.site == site).and_then(|s| s.group.as_ref())
    }

    /// A site cannot be reached, and why.
    fn lost(&self, site: &str) -> String {
        let known = self.sites.iter().find(|s| s.site == site);
        let why = known.map_or("there is no pair with it", |s| s.error.as_deref().unwrap_or("no answer"));
        format!("site {site} cannot be reached ({why})")
    }

    /// The primary of the newest epoch.
    pub fn primary(&self) -> Option<&str> {
        let all = self.sites.iter().filter_map(|s| Some((s, s.group.as_ref()?)));
        all.filter(|(_, g)| g.role == "primary").max_by_key(|(_, g)| g.epoch).map(|(s, _)| s.site.as_str())
    }

    /// Whether a site is the primary, for itself.
    fn leads(&self, site: &str) -> bool {
        self.primary() == Some(site) && self.seen(site).is_some_and(|g| !tasked(g, "acting for "))
    }

    /// It is primary, and the voters keep it from answering: the operator's word can overrule them.
    fn lacks_votes(&self, site: &str) -> bool {
        let arbiter = self.seen(site).and_then(|g| g.arbiter.as_ref());
        arbiter.is_some_and(|a| a.majority_for_s <= 0.0 && !a.forced)
    }

    /// How the pair between two sites copies: the sync one, if there are two.
    fn mode(&self, a: &str, b: &str) -> Option<Mode> {
        let between = self.pairs.iter().filter(|(.., s)| s.iter().any(|x| x == a) && s.iter().any(|x| x == b));
        between.map(|(_, m, _)| *m).min_by_key(|m| *m == Mode::Async)
    }

    /// A site's end of its pair with another one.
    pub fn pair(&self, at: &str, peer: &str) -> Option<&PairStatus> {
        let of = self.seen(at)?.pairs.iter().filter(|p| p.peer == peer);
        of.min_by_key(|p| p.mode == "async")
    }

    fn with_task(&self, task: &str) -> Option<&str> {
        let found = self.sites.iter().find(|s| s.group.as_ref().is_some_and(|g| g.task.as_deref() == Some(task)));
        found.map(|s| s.site.as_str())
    }
}

fn tasked(g: &GroupStatus, task: &str) -> bool {
    g.task.as_ref().is_some_and(|t| t.starts_with(task))
}

/// What is ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// This site takes the role; `with`: on what that site has.
    Takeover {
        /// The site whose data it is.
        with: Option<String>,
    },
    /// The role goes to the site that the group calls its primary.
    Failback,
    /// The role goes to a site; `None`: to this one.
    Swap {
        /// The site.
        to: Option<String>,
    },
}

impl Order {
    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Order::Takeover { .. } => "takeover",
            Order::Failback => "failback",
            Order::Swap { .. } => "swap",
        }
    }
}

/// How it is to be done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Of a failback: the pair that is made first.
    pub first: Option<Mode>,
    /// Of a failback: the application starts when both pairs are in PAIR.
    pub start_last: bool,
    /// Although the primary is reachable, or its mount in use.
    pub force: bool,
}

/// How a step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Seen to be done.
    Done,
    /// To be done now.
    Next,
    /// After that.
    Later,
    /// Needless, for the reason given.
    NotNeeded,
}

/// A step of a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Step {
    /// Its name.
    pub step: &'static str,
    /// The same steps of the figure.
    pub figure_steps: &'static str,
    /// What it does.
    pub effect: String,
    /// How it stands.
    pub state: State,
    /// What is to be said of that.
    pub why: String,
    /// What forbids it, if it is to be done now.
    pub blocked: Option<String>,
    #[serde(skip)]
    pub(super) kind: Kind,
}

/// What was chosen; it stays for as long as the procedure runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The recipe.
    pub recipe: &'static Recipe,
    /// Why this one.
    pub why: Option<String>,
    /// The site that has the role, or had it, if that is known.
    pub from: Option<String>,
    /// The site that gets it.
    pub to: String,
    /// As ordered.
    pub force: bool,
}

/// A plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// `takeover`, `failback` or `swap`.
    pub procedure: &'static str,
    /// The group.
    pub group: String,
    /// The figure that it follows.
    pub figure: Option<u8>,
    /// What it is.
    pub title: &'static str,
    /// The site that has the role, or had it.
    pub from: Option<String>,
    /// The site that gets it.
    pub to: String,
    /// Why it is done in this way.
    pub why: Option<String>,
    /// In order.
    pub steps: Vec<Step>,
}

impl Plan {
    /// The step that is to be done now.
    pub fn next(&self) -> Option<&Step> {
        self.steps.iter().find(|s| s.state == State::Next)
    }
}

/// Chooses and plans.
pub fn plan(view: &View, order: &Order, options: Options) -> Result<(Choice, Plan)> {
    let c = choose(view, order, options)?;
    let p = steps(view, order, &c);
    Ok((c, p))
}

/// Which recipe, between which sites.
///
/// # Errors
/// [`Kind::Refused`](crate::base::Kind): it cannot be. [`Kind::Failed`](crate::base::Kind): not as things stand; a node that
/// is starting may change that.
fn choose(view: &View, order: &Order, options: Options) -> Result<Choice> {
    match order {
        Order::Takeover { with } => takeover(view, with.as_deref(), options),
        Order::Failback => {
            let to = view.home.clone();
            if view.here != to {
                return Err(Error::refused(format!(
                    "site {to} is where group {} belongs: order its failback there (`kagami failback {}`)",
                    view.group, view.group
                )));
            }
            let from = giver(view, &to)?;
            let (recipe, why) = way_back(view, from.as_deref(), &to, options)?;
            Ok(Choice { recipe, why, from, to, force: options.force })
        }
        Order::Swap { to } => {
            let to = to.clone().unwrap_or_else(|| view.here.clone());
            let known = view.sites.iter().any(|s| s.site == to);
            if !known {
                let all: Vec<&str> = view.sites.iter().map(|s| s.site.as_str()).collect();
                return Err(Error::config(format!(
                    "no site {to:?} in group {}: it has {}",
                    view.group,
                    all.join(", ")
                )));
            }
            let from = giver(view, &to)?;
            if view.here != to && from.as_ref() != Some(&view.here) {
                return Err(Error::refused(format!("order it at site {to}, which gets the role, or at the primary")));
            }
            Ok(Choice { recipe: &recipe::SWAP, why: None, from, to, force: options.force })
        }
    }
}

fn takeover(view: &View, with: Option<&str>, options: Options) -> Result<Choice> {
    let (to, force) = (view.here.clone(), options.force);
    if let Some(with) = with {
        if with == to || !view.sites.iter().any(|s| s.site == with) {
            return Err(Error::config(format!(
                "--with-data-of {with}: no other site of the group that has a pair with this one"
            )));
        }
        return Ok(Choice { recipe: &recipe::TAKEOVER_WITH, why: None, from: Some(with.to_owned()), to, force });
    }
    let from = view.seen(&to).and_then(|g| g.led_by.clone()).filter(|s| *s != to);
    let other = from.as_deref().unwrap_or(&view.home);
    let recipe = match view.mode(&to, other) {
        Some(Mode::Async) => &recipe::TAKEOVER_ASYNC,
        _ => &recipe::TAKEOVER_SYNC,
    };
    Ok(Choice { recipe, why: None, from, to, force })
}

/// Who gives the role to a site; `None`: it has it already, and nobody is known to have given it.
fn giver(view: &View, to: &str) -> Result<Option<String>> {
    match view.primary() {
        Some(p) if p != to => return Ok(Some(p.to_owned())),
        Some(_) => return Ok(view.with_task(&format!("gave to {to}")).map(str::to_owned)),
        None => {}
    }
    if let Some(site) = view.with_task(&format!("giving to {to}")) {
        return Ok(Some(site.to_owned()));
    }
    let lost: Vec<String> = view.sites.iter().filter(|s| s.group.is_none()).map(|s| view.lost(&s.site)).collect();
    let lost = if lost.is_empty() { "all sites can be reached".into() } else { lost.join("; ") };
    Err(Error::failed(format!(
        "no site that can be reached is primary of group {}: {lost}; start it, or take over what is left (`kagami takeover {}`)",
        view.group, view.group
    )))
}

/// Of the two ways back the cheapest that is valid, or the one ordered.
fn way_back(view: &View, from: Option<&str>, to: &str, o: Options) -> Result<(&'static Recipe, Option<String>)> {
    let Some(from) = from else {
        // Nothing is left but to start, and to wait.
        let last = o.start_last;
        return Ok((if last { &recipe::BACK_FROM_SYNC_LAST } else { &recipe::BACK_FROM_SYNC }, None));
    };
    let mode = view.mode(from, to).unwrap_or(Mode::Async);
    let (running, stopped, last) = match mode {
        Mode::Sync => (&recipe::BACK_FROM_SYNC, &recipe::BACK_FROM_SYNC_STOPPED, &recipe::BACK_FROM_SYNC_LAST),
        Mode::Async => (&recipe::BACK_FROM_ASYNC, &recipe::BACK_FROM_ASYNC_STOPPED, &recipe::BACK_FROM_ASYNC_LAST),
    };
    let stopping = if o.start_last { last } else { stopped };
    if let Some(first) = o.first {
        return match (first == mode, o.start_last) {
            (true, true) => Err(Error::config(format!(
                "--start-last goes with the application stopped first: leave out --first {}",
                mode.as_str()
            ))),
            (true, false) => Ok((running, Some("as ordered".into()))),
            (false, _) => Ok((stopping, Some("as ordered".into()))),
        };
    }
    if o.start_last {
        return Ok((last, Some("as ordered: it is down until both pairs are in PAIR".into())));
    }
    if view.seen(from).is_some_and(|g| tasked(g, "resting")) {
        return Ok((stopped, Some(format!("the application is stopped at site {from} already"))));
    }
    let pair = view.pair(from, to);
    if pair.is_some_and(|p| p.fault.as_deref() == Some("behind"))
        && let Some(why) = pair.and_then(|p| p.reason.clone())
    {
        return Ok((
            stopped,
            Some(format!("site {to} cannot be brought level while the application runs ({why}): it stops first")),
        ));
    }
    Ok((
        running,
        Some(format!(
            "the application is down only while the roles change; stopping it first would save no more than what it writes while {} copied",
            cost(pair).unwrap_or_else(|| "the difference is".into())
        )),
    ))
}

/// What a copy of a pair has to look at, in words with a verb.
fn cost(p: Option<&PairStatus>) -> Option<String> {
    let c = p?.out_of_sync?;
    Some(format!("{} files ({}) are", c.files, text::bytes(c.bytes)))
}

/// How each step of a chosen recipe stands.
pub fn steps(view: &View, order: &Order, c: &Choice) -> Plan {
    let others: Vec<&str> =
        view.sites.iter().map(|s| s.site.as_str()).filter(|s| *s != c.to && c.from.as_deref() != Some(*s)).collect();
    let judge = Judge { view, c, others: &others };
    let mut open = false;
    let mut out = Vec::new();
    for (kind, figure_steps) in c.recipe.steps {
        if *kind == Kind::FollowFrom && c.from.is_none() {
            continue;
        }
        let (state, why, blocked) = match judge.judge(*kind) {
            Found::Done(why) => (State::Done, why, None),
            Found::NotNeeded(why) => (State::NotNeeded, why, None),
            Found::Open(why, blocked) if !open => {
                open = true;
                (State::Next, why, blocked)
            }
            Found::Open(..) => (State::Later, String::new(), None),
        };
        let names = |t: &str| {
            let from = c.from.as_ref().map_or("the primary".to_owned(), |f| format!("site {f}"));
            t.replace("FROM", &from).replace("TO", &format!("site {}", c.to))
        };
        let w = kind.words();
        out.push(Step { step: w.name, figure_steps, effect: names(w.effect), state, why, blocked, kind: *kind });
    }
    Plan {
        procedure: order.name(),
        group: view.group.clone(),
        figure: c.recipe.figure,
        title: c.recipe.title,
        from: c.from.clone(),
        to: c.to.clone(),
        why: c.why.clone(),
        steps: out,
    }
}

/// How a step was found.
enum Found {
    Done(String),
    NotNeeded(String),
    /// What is known of it, and what forbids it.
    Open(String, Option<String>),
}

struct Judge<'a> {
    view: &'a View,
    c: &'a Choice,
    others: &'a [&'a str],
}

impl Judge<'_> {
    fn judge(&self, kind: Kind) -> Found {
        let (v, to) = (self.view, self.c.to.as_str());
        if v.leads(to) && !matches!(kind, Kind::Start | Kind::FollowFrom | Kind::FollowOther) {
            if kind == Kind::Lead && self.c.force && v.lacks_votes(to) {
                return Found::Open(format!("site {to} is primary, and no majority of the voters supports it"), None);
            }
            let at = v.seen(to).map_or(0, |g| g.epoch);
            return Found::Done(format!("site {to} is primary, epoch {at}"));
        }
        let from = self.c.from.as_deref().unwrap_or_default();
        let given = v.seen(from).is_some_and(|g| g.role != "primary" && tasked(g, &format!("giving to {to}")));
        if given && matches!(kind, Kind::Act | Kind::Level | Kind::LevelOther | Kind::Stop) {
            return Found::Done(format!("site {from} has given the role away"));
        }
        match kind {
            Kind::Act => self.act(from, to),
            Kind::Level => self.copied(from, &[to], false),
            Kind::LevelOther => self.copied(from, self.others, true),
            Kind::Stop => self.stop(from),
            Kind::Roles => self.roles(from, to),
            Kind::Lead => self.lead(to),
            Kind::Start => self.start(to),
            Kind::FollowFrom => self.followed(to, &[from]),
            Kind::FollowOther => self.followed(to, self.others),
        }
    }

    /// Another site that is primary for itself and can be reached.
    fn rival(&self, but: &[&str]) -> Option<String> {
        let site = self.view.primary().filter(|p| !but.contains(p) && self.view.leads(p))?;
        (!self.c.force).then(|| {
            format!(
                "site {site} is primary and reachable: have it give its role away (`kagami swap {} --to {}`), stop it first, or take over by force (--force); what it wrote last may then be lost",
                self.view.group, self.c.to
            )
        })
    }

    fn act(&self, from: &str, to: &str) -> Found {
        let v = self.view;
        let Some(g) = v.seen(from) else {
            let why = format!(
                "{}: take over at site {from} instead (`kagami takeover {}` there), or here on what this site has, without --with-data-of",
                v.lost(from),
                v.group
            );
            return Found::Open(String::new(), Some(why));
        };
        if g.role == "primary" && g.task.as_deref() == Some(&format!("acting for {to}")) {
            return Found::Done(format!("site {from} is primary for site {to}"));
        }
        let here = v.seen(to).map_or(0, |g| g.position);
        let blocked = self.rival(&[to]).or_else(|| {
            (g.position < here).then(|| {
                format!("site {from} is at entry {}, this one at {here}: leave out --with-data-of", g.position)
            })
        });
        let note = format!("site {from} is at entry {}, site {to} at {here}", g.position);
        Found::Open(
            note,
            blocked.or_else(|| (!g.consistent).then(|| format!("site {from} has no copy that could be used"))),
        )
    }

    /// What `from` copies while it leads.
    fn copied(&self, from: &str, targets: &[&str], strict: bool) -> Found {
        let v = self.view;
        if v.seen(from).is_none() {
            return Found::Open(String::new(), Some(v.lost(from)));
        }
        let mut open = Vec::new();
        for t in targets {
            if v.seen(t).is_none() {
                return Found::Open(String::new(), Some(v.lost(t)));
            }
            match v.pair(from, t) {
                None => return Found::Open(String::new(), Some(format!("sites {from} and {t} have no pair"))),
                Some(p) if matches!(p.state.as_str(), "SMPL" | "PSUS" | "SUSPENDING") => {
                    let verb = if p.state == "SMPL" { "create" } else { "resync" };
                    let why = format!(
                        "pair {} is {} by order: `kagami pair {verb} {} {}` first",
                        p.name, p.state, v.group, p.name
                    );
                    return Found::Open(String::new(), Some(why));
                }
                Some(p) if !level(p, strict) => open.push(p),
                Some(_) => {}
            }
        }
        match open.as_slice() {
            [] => Found::NotNeeded(equal(v, from, targets)),
            all => waiting(&v.group, all),
        }
    }

    fn stop(&self, from: &str) -> Found {
        let v = self.view;
        let Some(g) = v.seen(from) else { return Found::Open(String::new(), Some(v.lost(from))) };
        if g.mounts.is_empty() && tasked(g, "resting") {
            return Found::Done(format!("nothing is mounted at site {from}"));
        }
        let to = self.c.to.as_str();
        let gone = self.others.iter().copied().chain([to]).find(|s| v.seen(s).is_none());
        let blocked = gone.map(|s| {
            format!("{}: without it there is the other way, which stops nothing before (leave out --first and --start-last)", v.lost(s))
        });
        Found::Open(format!("mounted at {} place(s) there", g.mounts.len()), blocked)
    }

    fn roles(&self, from: &str, to: &str) -> Found {
        let v = self.view;
        let Some(g) = v.seen(from) else {
            let why = format!(
                "{}: order this again when it is back; if it is lost, take over on what is here (`kagami takeover {}`)",
                v.lost(from),
                v.group
            );
            return Found::Open(String::new(), Some(why));
        };
        let words = match v.pair(from, to).filter(|p| !level(p, false)) {
            Some(p) if g.role == "primary" => standing(p),
            _ if tasked(g, "giving to ") => format!("site {from} has given it away"),
            _ => equal(v, from, &[to]),
        };
        Found::Open(words, None)
    }

    fn lead(&self, to: &str) -> Found {
        let g = self.view.seen(to);
        let words = g.map_or_else(String::new, |g| format!("it has entries up to {}", g.position));
        Found::Open(words, self.rival(&[to]))
    }

    fn start(&self, to: &str) -> Found {
        let v = self.view;
        let Some(g) = v.seen(to) else { return Found::Open(String::new(), Some(v.lost(to))) };
        let mounted = g.mounts.iter().filter(|m| m.attached).count();
        let wanted = if to == v.here { v.mounts } else { 1 };
        let dirs = || g.mounts.iter().map(|m| m.dir.display().to_string()).collect::<Vec<_>>().join(", ");
        match () {
            () if v.leads(to) && wanted > 0 && mounted >= wanted => Found::Done(format!("mounted at {}", dirs())),
            () if wanted == 0 => {
                Found::NotNeeded("the site file has no `mount =`: mount it by hand (`kagami mount`)".into())
            }
            () if v.leads(to) && to != v.here => {
                let why = format!("not mounted at site {to}: `kagami mount {}` there", v.group);
                Found::Open(String::new(), Some(g.reason.clone().map_or(why.clone(), |r| format!("{why} ({r})"))))
            }
            () => Found::Open(String::new(), None),
        }
    }

    /// Who follows the new primary.
    fn followed(&self, to: &str, targets: &[&str]) -> Found {
        let v = self.view;
        let must = self.c.recipe == &recipe::TAKEOVER_WITH;
        let (mut left_out, mut open, mut equal_to) = (Vec::new(), Vec::new(), Vec::new());
        for t in targets {
            if v.mode(to, t).is_none() {
                left_out.push(format!("sites {to} and {t} have no pair"));
                continue;
            }
            if v.seen(t).is_none() {
                let why = v.lost(t);
                if must {
                    let why = format!(
                        "{why}, and the application is to start only with its copy there: order this again when it is back, or start without (`kagami takeover {}`)",
                        v.group
                    );
                    return Found::Open(String::new(), Some(why));
                }
                left_out.push(format!(
                    "{why}: the application runs without a copy there, until it is back and is resynced by itself"
                ));
                continue;
            }
            match v.pair(to, t) {
                _ if !v.leads(to) => return Found::Open(String::new(), None),
                None => left_out.push(format!("sites {to} and {t} have no pair")),
                Some(p) if matches!(p.state.as_str(), "SMPL" | "PSUS" | "SUSPENDING") => {
                    left_out.push(format!("pair {} is {} by order", p.name, p.state));
                }
                Some(p) if level(p, false) => equal_to.push(*t),
                Some(p) => open.push(p),
            }
        }
        match open.as_slice() {
            [] if equal_to.is_empty() && targets.is_empty() => Found::NotNeeded("there is no other site".into()),
            [] if equal_to.is_empty() => Found::NotNeeded(left_out.join("; ")),
            [] => Found::Done([vec![equal(v, to, &equal_to)], left_out].concat().join("; ")),
            all => waiting(&v.group, all),
        }
    }
}

/// Whether a pair is in PAIR and hardly behind; `strict`: not at all.
fn level(p: &PairStatus, strict: bool) -> bool {
    let behind = if strict { !p.lag.is_zero() } else { p.lag.seconds > LEVEL_S && !p.lag.is_zero() };
    p.state == "PAIR" && !behind
}

fn equal(v: &View, from: &str, targets: &[&str]) -> String {
    let at = v.seen(from).map_or(0, |g| g.position);
    format!("no copy is needed: site {from} and site {} are in PAIR at entry {at}", targets.join(", site "))
}

fn waiting(group: &str, pairs: &[&PairStatus]) -> Found {
    let split = pairs.iter().find(|p| p.fault.as_deref() == Some("split-brain"));
    let blocked = split.map(|p| {
        format!(
            "pair {}: both sites were written to: say first whose version is kept (`kagami pair resync {group} {} --keep SITE`)",
            p.name, p.name
        )
    });
    Found::Open(pairs.iter().map(|p| standing(p)).collect::<Vec<_>>().join("; "), blocked)
}

/// A pair in words.
fn standing(p: &PairStatus) -> String {
    let mut o = format!("pair {} is {}", p.name, p.state);
    if let Some(c) = p.out_of_sync.filter(|_| p.state != "PAIR") {
        o += &format!(", {} files ({}) to look at", c.files, text::bytes(c.bytes));
    }
    if let Some(g) = &p.progress {
        o += &format!(", {}: {} of {}", g.phase, text::bytes(g.done_bytes), text::bytes(g.total_bytes));
    }
    if !p.lag.is_zero() {
        o += &format!(", {} entries behind", p.lag.entries);
    }
    o + &p.reason.as_ref().filter(|_| p.state != "PAIR").map(|r| format!(" ({r})")).unwrap_or_default()
}
