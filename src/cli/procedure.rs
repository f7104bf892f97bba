//! `kagami takeover`, `failback` and `swap`.

use super::args_procedure::{FailbackArgs, First, ProcedureArgs, SwapArgs, TakeoverArgs};
use super::wait::Line;
use super::{Site, say, say_json};
use crate::base::{Error, Result};
use crate::node::config::Mode;
use crate::node::control::Request;
use crate::site::procedure::run::{Conduct, Word};
use crate::site::procedure::{Options, Order, Plan, State, Step};
use crate::site::text;
use serde_json::{Value, json};
use std::time::Duration;

/// `kagami takeover`.
pub fn takeover(site: &Site, a: TakeoverArgs) -> Result<()> {
    if a.handover {
        return handover(site, a);
    }
    let options = Options { force: a.force, ..Options::default() };
    conduct(site, a.common, Order::Takeover { with: a.with_data_of }, options)
}

/// `kagami failback`.
pub fn failback(site: &Site, a: FailbackArgs) -> Result<()> {
    let first = a.first.map(|f| match f {
        First::Sync => Mode::Sync,
        First::Async => Mode::Async,
    });
    conduct(site, a.common, Order::Failback, Options { first, start_last: a.start_last, force: a.force })
}

/// `kagami swap`.
pub fn swap(site: &Site, a: SwapArgs) -> Result<()> {
    let options = Options { force: a.force, ..Options::default() };
    conduct(site, a.common, Order::Swap { to: a.to }, options)
}

/// The one order to the primary, without waiting for anything: what is not in PAIR refuses.
fn handover(site: &Site, a: TakeoverArgs) -> Result<()> {
    site.config.group(&a.common.group)?;
    let (group, at) = (a.common.group.clone(), mount_dir(&a.common)?);
    let req = Request::Takeover { group, force: a.force, dry_run: false, at, handover: true, bare: false };
    let v = site.call(&req)?;
    if a.common.json {
        say_json(&v);
    } else {
        let at = v.get("position").and_then(Value::as_u64).unwrap_or_default();
        say(format!("site {} is primary of group {} now, from entry {at} on\n", site.config.node.site, a.common.group));
    }
    Ok(())
}

fn mount_dir(a: &ProcedureArgs) -> Result<Option<String>> {
    let Some(p) = &a.at else { return Ok(None) };
    let p = std::path::absolute(p)?;
    p.to_str().map(|s| Some(s.to_owned())).ok_or_else(|| Error::config("--at must be UTF-8"))
}

fn conduct(site: &Site, a: ProcedureArgs, order: Order, options: Options) -> Result<()> {
    let at = mount_dir(&a)?;
    let c = Conduct {
        state_dir: &site.config.node.state_dir,
        group: site.config.group(&a.group)?,
        here: &site.config.node.site,
        order,
        options,
        at,
        stop_after: a.stop_after,
        limit: Duration::from_secs(a.timeout),
    };
    if a.dry_run {
        let (plan, forecast) = c.dry_run().map_err(|e| site.hint(e))?;
        if a.json {
            say_json(&report(&plan, true, forecast.as_ref())?);
        } else {
            say(format!("{}{}", listed(&plan), costs(&plan, forecast.as_ref())));
        }
        return Ok(());
    }
    let giving = matches!(c.order, Order::Swap { to: None });
    let line = Line::new();
    let mut number = std::collections::HashMap::new();
    let mut tell = |w: Word<'_>| -> Result<()> {
        match w {
            Word::Plan(p) => {
                number.extend(p.steps.iter().enumerate().map(|(i, s)| (s.step, i + 1)));
                if !a.json {
                    line.say(&head(p));
                }
                Ok(())
            }
            Word::Done(s, took) if !a.json => {
                line.say(&row(&number, s, Some(took)));
                Ok(())
            }
            Word::Done(..) => Ok(()),
            Word::Progress(s) => line.set(&format!("{}: {}", s.step, s.why)),
        }
    };
    let out = c.run(&mut tell).map_err(|e| site.hint(e))?;
    drop(line);
    if a.json {
        say_json(&report(&out.plan, false, out.answer.as_ref())?);
        return Ok(());
    }
    let left: Vec<&Step> = out.plan.steps.iter().filter(|s| !settled(s)).collect();
    left.iter().for_each(|s| say(row(&number, s, None)));
    say(costs(&Plan { steps: Vec::new(), ..out.plan.clone() }, out.answer.as_ref()));
    if giving && out.plan.from.is_none() {
        say("to give the role away: --to SITE\n");
    }
    if !left.is_empty() {
        say("stopped there, as ordered; the same order without --stop-after goes on\n");
    }
    Ok(())
}

/// The plan as JSON, with what the node said.
fn report(plan: &Plan, dry_run: bool, answer: Option<&Value>) -> Result<Value> {
    let mut v = serde_json::to_value(plan).map_err(|e| Error::failed(e.to_string()))?;
    if let Some(o) = v.as_object_mut() {
        o.insert("dry_run".into(), json!(dry_run));
        let more = answer.and_then(Value::as_object).cloned().unwrap_or_default();
        o.extend(more.into_iter().filter(|(_, v)| !v.is_null()));
    }
    Ok(v)
}

fn settled(s: &Step) -> bool {
    matches!(s.state, State::Done | State::NotNeeded)
}

/// What it is and why so.
fn head(p: &Plan) -> String {
    let figure = p.figure.map(|f| format!(", figure {f}")).unwrap_or_default();
    let from = p.from.as_ref().map(|f| format!(" from site {f}")).unwrap_or_default();
    let why = p.why.as_ref().map(|w| format!("why so: {w}\n")).unwrap_or_default();
    format!("{} of group {}{from} to site {}: {}{figure}\n{why}", p.procedure, p.group, p.to, p.title)
}

/// A step on one line: `2 ✓ roles  0.4 s  site primary is primary, epoch 3`.
fn row(number: &std::collections::HashMap<&str, usize>, s: &Step, took: Option<Duration>) -> String {
    let n = number.get(s.step).copied().unwrap_or_default();
    let (mark, words) = match s.state {
        State::Done => ("✓", s.why.clone()),
        State::NotNeeded => ("–", s.why.clone()),
        State::Next => ("→", with_why(s)),
        State::Later => ("·", s.effect.clone()),
    };
    let took = took.map(|t| format!("{}  ", text::seconds(t.as_secs_f64()))).unwrap_or_default();
    format!("{n:>2} {mark} {:<13}  {took}{words}\n", s.step)
}

fn with_why(s: &Step) -> String {
    match s.why.as_str() {
        "" => s.effect.clone(),
        why => format!("{} ({why})", s.effect),
    }
}

/// The whole plan as it stands.
fn listed(p: &Plan) -> String {
    let number = p.steps.iter().enumerate().map(|(i, s)| (s.step, i + 1)).collect();
    let rows: String = p.steps.iter().map(|s| row(&number, s, None)).collect();
    format!("{}{rows}", head(p))
}

/// What would be, or may be, lost, and what forbids it.
fn costs(p: &Plan, answer: Option<&Value>) -> String {
    let mut o = String::new();
    let text = |v: &Value, k: &str| v.get(k).and_then(Value::as_str).map(str::to_owned);
    if let Some(loss) = answer.and_then(|a| a.get("loss")).filter(|l| !l.is_null()) {
        o += &format!("may be lost: {}\n", text(loss, "words").unwrap_or_default());
        let seconds = loss.get("seconds").and_then(Value::as_f64);
        let bytes = loss.get("bytes_known_missing").and_then(Value::as_u64).unwrap_or_default();
        if let Some(s) = seconds {
            o += &format!("  last heard {} ago, {} known to be missing\n", text::seconds(s), text::bytes(bytes));
        }
        let names = loss.get("files_known").and_then(Value::as_array).into_iter().flatten();
        o += &names.filter_map(Value::as_str).map(|n| format!("  {n}\n")).collect::<String>();
    } else if p.procedure != "takeover" && !p.steps.is_empty() {
        o += "nothing is lost: the role changes in order\n";
    }
    if let Some(event) = answer.and_then(|a| text(a, "loss_event")) {
        o += &format!("  listed: kagami loss show {event}\n");
    }
    let refused = answer.and_then(|a| text(a, "refused"));
    let blocked = p.next().and_then(|s| s.blocked.clone());
    o + &refused.or(blocked).map(|w| format!("it would be refused: {w}\n")).unwrap_or_default()
}
