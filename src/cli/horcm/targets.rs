//! Which pairs `-g` and `-d` name, and how their ends are.

use super::Fail;
use crate::node::status::{GroupStatus, PairStatus, Status};
use crate::pair::horcm::{Code, Direction, End, Vol};
use crate::pair::state::{Mode, Shown};

/// A pair that was named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its group.
    pub group: String,
    /// The pair.
    pub pair: String,
    /// Only this volume of it.
    pub volume: Option<String>,
}

/// A pair as the node tells it.
pub struct Target<'a> {
    /// Number of its group, from 0: what CCI calls CTGID.
    pub ctg: usize,
    /// Its group.
    pub group: &'a GroupStatus,
    /// The pair.
    pub pair: &'a PairStatus,
    /// How it copies.
    pub mode: Mode,
    /// The end here.
    pub vol: Vol,
}

/// The pairs that `-g` and `-d` name.
pub fn select(s: &Status, g: Option<&str>, d: Option<&str>) -> Result<Vec<Key>, Fail> {
    if g.is_none() && d.is_none() {
        return Err(Fail::new(Code::Reqarg, "name a group with -g"));
    }
    let all = || s.groups.iter().flat_map(|g| g.pairs.iter().map(move |p| (g, p)));
    let mut found: Vec<(&GroupStatus, &PairStatus)> = match g {
        None => all().collect(),
        Some(name) => match name.split_once('/') {
            Some((group, pair)) => all().filter(|(g, p)| g.name == group && p.name == pair).collect(),
            // A device group of horcm.conf is a pair here.
            None if all().any(|(_, p)| p.name == name) => all().filter(|(_, p)| p.name == name).collect(),
            None => all().filter(|(g, _)| g.name == name).collect(),
        },
    };
    let mut volume = None;
    if let Some(d) = d {
        let pairs: Vec<_> = found.iter().filter(|(_, p)| p.name == d).copied().collect();
        if pairs.is_empty() {
            found.retain(|(_, p)| p.volumes.iter().any(|v| v.name == d));
            volume = Some(d.to_owned());
        } else {
            found = pairs;
        }
    }
    // A pair that neither end is primary of says nothing of the others.
    if found.iter().any(|(_, p)| p.direction != "none") {
        found.retain(|(_, p)| p.direction != "none");
    }
    let first = found.first().map(|(g, _)| g.name.clone());
    if found.is_empty() || found.iter().any(|(g, _)| Some(&g.name) != first.as_ref()) {
        let known: Vec<String> = all().map(|(g, p)| format!("{}/{}", g.name, p.name)).collect();
        let what = [g, d].into_iter().flatten().collect::<Vec<_>>().join(" ");
        let no = if found.is_empty() { "no pair here is" } else { "more than one group has" };
        return Err(Fail::new(Code::Enogrp, format!("{no} {what}; there are: {}", known.join(", "))));
    }
    let key = |(g, p): &(&GroupStatus, &PairStatus)| Key {
        group: g.name.clone(),
        pair: p.name.clone(),
        volume: volume.clone(),
    };
    Ok(found.iter().map(key).collect())
}

/// How the pairs are.
pub fn look<'a>(s: &'a Status, keys: &[Key]) -> Result<Vec<Target<'a>>, Fail> {
    keys.iter()
        .map(|k| {
            let gone = || Fail::new(Code::Enogrp, format!("pair {}/{} is gone", k.group, k.pair));
            let (ctg, group) = s.groups.iter().enumerate().find(|(_, g)| g.name == k.group).ok_or_else(gone)?;
            let pair = group.pairs.iter().find(|p| p.name == k.pair).ok_or_else(gone)?;
            if !matches!(group.role.as_str(), "primary" | "secondary") {
                let why = group.reason.as_deref().unwrap_or("its reason is in the log of the node");
                return Err(Fail::new(Code::Cmdioe, format!("group {} is {}: {why}", group.name, group.role)));
            }
            let mode = if pair.mode == "async" { Mode::Async } else { Mode::Sync };
            let state: Shown = pair.state.parse().map_err(Fail::from_node)?;
            let direction = match pair.direction.as_str() {
                "out" => Direction::Out,
                "in" => Direction::In,
                _ => Direction::None,
            };
            Ok(Target { ctg, group, pair, mode, vol: Vol::of(direction, state, pair.taken_over) })
        })
        .collect()
}

impl Target<'_> {
    /// For messages.
    pub fn name(&self) -> String {
        format!("{}/{}", self.group.name, self.pair.name)
    }

    /// What matters to a takeover.
    pub fn end(&self) -> End {
        End {
            vol: self.vol,
            mode: self.mode,
            fenced: self.group.fence == "data",
            linked: self.pair.linked,
            silent: self.pair.fault.as_deref() == Some("link-lost"),
        }
    }

    /// The other end, if this one can know it: by the link, or because nothing changes it without an order.
    pub fn other(&self) -> Option<Vol> {
        let settled = matches!(self.vol.status_name(), "SMPL" | "PSUS" | "SSUS");
        (self.pair.linked || settled).then(|| self.vol.other())
    }

    /// The fence level as CCI writes it.
    pub fn fence(&self) -> &'static str {
        match (self.mode, self.group.fence.as_str()) {
            (Mode::Async, _) => "ASYNC",
            (Mode::Sync, "data") => "DATA",
            (Mode::Sync, _) => "NEVER",
        }
    }
}
