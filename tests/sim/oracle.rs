//! What must hold when the world is quiet again, and at some moments before.

use super::chart::{self, ASYNC, CHART, SITES};
use super::client::{self, CLIENTS, LANES, lane_name, named};
use super::disk::Node;
use super::model::{Keep, Seen, View};
use super::room::{self, MachineId};
use super::world::{self, GROUP};
use kagami::node::control::Request;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long healing may take, simulated.
const HEAL: Duration = Duration::from_secs(150);

type Checked = Result<(), String>;

/// Waits until everything is in step again. What an operator must decide (a split brain, a pair that he suspended) is decided.
pub fn heal(seed: u64) -> Checked {
    let mut asked = Duration::ZERO;
    world::wait_settled(HEAL, |took| {
        if took > asked + Duration::from_secs(3) {
            asked = took;
            operate(seed);
        }
    })
}

/// What an operator does who sees a site or a pair that does not go on by itself, and does what its words say.
fn operate(seed: u64) {
    for (m, _) in SITES {
        let Some(g) = world::group(m) else { continue };
        let says = |what: &str| g.faults.iter().any(|f| f.contains(what));
        if says("restart this node") {
            world::kill(m);
            world::start(m, seed);
            continue;
        }
        if g.role == "down" && (says("make an empty replica") || says("CRC mismatch") || says("CRC or length")) {
            world::renew(m, seed);
            continue;
        }
        if g.role != "primary" {
            continue;
        }
        for p in g
            .pairs
            .iter()
            .filter(|p| p.direction == "out" && (p.state == "PSUS" || p.fault.as_deref() == Some("split-brain")))
        {
            let keep = (p.fault.as_deref() == Some("split-brain")).then(|| chart::name(m).to_owned());
            let decided = keep.is_some();
            let r = Request::PairResync { group: GROUP.into(), pair: p.name.clone(), in_place: false, keep };
            let said = world::order(m, &r);
            if decided && said.is_ok() {
                client::kept(m);
            }
            room::trace(format!(
                "operator: resync of {} at {}: {:?}",
                p.name,
                chart::name(m),
                said.map_err(|e| e.to_string())
            ));
        }
    }
}

/// Clients stop; waits until their last steps are over.
pub fn still() {
    CLIENTS.with(|c| c.stop = true);
    room::sleep(Duration::from_millis(300));
}

/// Everything that must hold in the end.
pub fn final_checks() -> Checked {
    let primary = world::level()?;
    for (m, _) in SITES {
        let there = room::with_disk(m, "", |d| d.exists(b"region/IN-TRANSITION"));
        if there {
            return Err(format!("{} is in step and says IN-TRANSITION", chart::name(m)));
        }
    }
    verify(primary)?;
    for (m, _) in SITES.iter().filter(|(m, _)| *m != primary) {
        equal(primary, *m)?;
    }
    at_a_point(primary, Keep::All)?;
    losses(primary)?;
    let copies = CHART.with(|c| if c.rotten.is_empty() { c.first_copies.clone() } else { Vec::new() });
    match copies.is_empty() {
        true => Ok(()),
        false => Err(format!("G4: a full comparison: {copies:?}")),
    }
}

/// What a drive gave that was not so any more may have been taken for equal; `verify` finds that, and mends it (G7).
fn verify(primary: MachineId) -> Checked {
    let lied = CHART.with(|c| c.lied.clone());
    for (m, name) in SITES.iter().filter(|(m, _)| *m != primary && (lied.contains(m) || lied.contains(&primary))) {
        let pairs = world::group(primary).map(|g| g.pairs).unwrap_or_default();
        let pair = pairs.into_iter().find(|p| p.direction == "out" && p.peer == *name);
        let r = Request::Verify { group: GROUP.into(), pair: pair.map(|p| p.name), repair: true };
        let said = world::order(primary, &r).map_err(|e| format!("verify of {}: {e}", chart::name(*m)))?;
        room::trace(format!("verify of {name}: {said}"));
    }
    world::wait_settled(HEAL, |_| ())
}

/// G5: names, bytes, modes, owners, times, attributes, links.
fn equal(a: MachineId, b: MachineId) -> Checked {
    let tree = |m| room::with_disk(m, "", |d| d.tree(b"region/tree"));
    let (x, y) = (tree(a), tree(b));
    let shown = |n: &Node| format!("{n:?}").chars().take(300).collect::<String>();
    let (links_x, links_y) = (links(&x), links(&y));
    for (path, n) in &x {
        let at = String::from_utf8_lossy(path).into_owned();
        match y.get(path) {
            None => return Err(format!("G5: {at} is at {} and not at {}", chart::name(a), chart::name(b))),
            Some(o) if !same(n, o) => {
                return Err(format!(
                    "G5: {at} differs: {} has {}, {} has {}",
                    chart::name(a),
                    shown(n),
                    chart::name(b),
                    shown(o)
                ));
            }
            Some(_) if links_x[path] != links_y[path] => return Err(format!("G5: the links of {at} differ")),
            Some(_) => {}
        }
    }
    match y.keys().find(|k| !x.contains_key(*k)) {
        Some(k) => Err(format!("G5: {} is at {} only", String::from_utf8_lossy(k), chart::name(b))),
        None => Ok(()),
    }
}

/// All but the number of the object.
fn same(a: &Node, b: &Node) -> bool {
    *a == Node { ino: a.ino, ..b.clone() }
}

/// For each name the first name of the same object.
fn links(t: &BTreeMap<Vec<u8>, Node>) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut first: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    t.iter().map(|(k, n)| (k.clone(), first.entry(n.ino).or_insert_with(|| k.clone()).clone())).collect()
}

/// The lanes as they lie on the disk of a machine.
pub fn view(m: MachineId, lane: usize) -> View {
    let top = lane_name(lane);
    let tree = room::with_disk(m, "", |d| d.tree(b"region/tree"));
    let one = |(path, n): (Vec<u8>, Node)| {
        let path = String::from_utf8_lossy(&path).into_owned();
        let path = path.strip_prefix(&top)?.strip_prefix('/')?.to_owned();
        let mode = n.mode;
        let seen = match n.kind {
            libc::S_IFDIR => Seen::Dir { mode },
            libc::S_IFLNK => Seen::Link { target: n.target },
            _ => {
                let xattrs = n.xattrs.into_iter().filter(|(k, _)| k.starts_with(b"user."));
                let xattrs = xattrs.map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
                Seen::File { same_as: n.ino.to_string(), content: n.content.to_vec(), mode, xattrs }
            }
        };
        Some((path, seen))
    };
    named(tree.into_iter().filter_map(one).collect())
}

/// G2: the tree of a machine is what the clients had made of it at one point of their order.
pub fn at_a_point(m: MachineId, keep: Keep) -> Checked {
    let mut points = [None; LANES];
    for (lane, point) in points.iter_mut().enumerate() {
        let view = view(m, lane);
        let owner = CLIENTS.with(|c| c.lanes[lane].owner);
        let Some(owner) = owner else { continue };
        let found = CLIENTS.with(|c| client::judge(&c.lanes[lane].by[&owner], &view, keep));
        match found {
            Ok(p) => *point = p.map(|p| (owner, p)),
            // It may be at a point before the present owner took over: that is not kept.
            Err(_) if keep == Keep::Any && m == ASYNC => return Ok(()),
            Err(why) => return Err(format!("lane {lane} at {}: {why}", chart::name(m))),
        }
    }
    in_order(points).map_err(|why| format!("G2: {}: {why}", chart::name(m)))
}

/// What was answered before another step was begun is there when that is.
fn in_order(points: [Option<(MachineId, usize)>; LANES]) -> Checked {
    for (a, x) in points.iter().enumerate() {
        for (b, y) in points.iter().enumerate().filter(|(b, _)| *b != a) {
            let (Some((ox, nx)), Some((oy, ny))) = (x, y) else { continue };
            let bad = CLIENTS.with(|c| {
                let missing = c.lanes[a].by[ox].steps.get(*nx).and_then(|s| s.answered);
                let h = &c.lanes[b].by[oy];
                let there = h.earliest(*ny).checked_sub(1).and_then(|n| h.steps.get(n)).map(|s| s.begun);
                missing.zip(there).filter(|(missing, there)| missing < there)
            });
            if let Some((missing, there)) = bad {
                return Err(format!(
                    "lane {a} lacks what was answered at {missing}, lane {b} has what was begun at {there}"
                ));
            }
        }
    }
    Ok(())
}

/// G6: a site whose answered changes are not in the volume any more has them in a manifest.
fn losses(primary: MachineId) -> Checked {
    let lost: Vec<MachineId> = CLIENTS.with(|c| {
        let content =
            |o: &super::model::Op| matches!(o, super::model::Op::Write { .. } | super::model::Op::Create { .. });
        c.lanes.iter().flat_map(|l| l.lost.iter().filter(|(_, o)| content(o)).map(|(m, _)| *m)).collect()
    });
    for (m, name) in SITES.iter().filter(|(m, _)| lost.contains(m) && *m != primary) {
        let v = world::order(*m, &Request::LossList { group: None }).map_err(|e| format!("{name}: loss list: {e}"))?;
        if v.as_array().is_some_and(Vec::is_empty) && chart::kept_its_power(*m) {
            return Err(format!("G6: {name} lost answered changes and has no manifest of them"));
        }
    }
    Ok(())
}
