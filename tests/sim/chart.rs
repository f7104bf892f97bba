//! What is known of the sites from outside: the states and epochs that their logs tell, what power cuts took, who answered when.

use super::client::fail;
use super::model::Keep;
use super::room::MachineId;
use super::shared::Shared;
use std::collections::BTreeMap;

/// The machines, by the site they are.
pub const PRIMARY: MachineId = 1;
pub const SYNC: MachineId = 2;
pub const ASYNC: MachineId = 3;
pub const SITES: [(MachineId, &str); 3] = [(PRIMARY, "primary"), (SYNC, "sync"), (ASYNC, "async")];

/// The name of a site.
pub fn name(m: MachineId) -> &'static str {
    SITES.iter().find(|(n, _)| *n == m).map_or("host", |(_, s)| s)
}

#[derive(Default)]
pub struct Chart {
    /// State of each pair at each machine, as logged.
    pairs: BTreeMap<(MachineId, String), String>,
    epochs: BTreeMap<MachineId, u64>,
    /// The first answer under each epoch: when it was given, and where.
    first_answers: BTreeMap<u64, (u64, MachineId)>,
    /// Machines that lost power since all sites were last known to be equal.
    powerless: Vec<MachineId>,
    /// Takeovers are decided by votes.
    pub voted: bool,
    /// A takeover was by force, or with a site known to be behind.
    pub forced: bool,
    /// Lines of the logs that tell of a first copy, after the beginning.
    pub first_copies: Vec<String>,
    /// Machines whose own files were damaged.
    pub rotten: Vec<MachineId>,
    /// Machines whose drives gave what they once had held: what was compared there may have been taken for equal.
    pub lied: Vec<MachineId>,
    /// Machines that ever lost power.
    dark: Vec<MachineId>,
    /// The first copies at the beginning are over.
    pub settled_once: bool,
}

pub static CHART: Shared<Chart> = Shared::new(Chart {
    pairs: BTreeMap::new(),
    epochs: BTreeMap::new(),
    first_answers: BTreeMap::new(),
    powerless: Vec::new(),
    voted: false,
    forced: false,
    first_copies: Vec::new(),
    rotten: Vec::new(),
    lied: Vec::new(),
    dark: Vec::new(),
    settled_once: false,
});

/// A line of a node's log, as it is written.
pub fn heard(m: MachineId, line: &str) {
    CHART.with(|c| {
        let Some(rest) = line.strip_prefix("group lab") else { return };
        if let Some(rest) = rest.strip_prefix(" pair ")
            && let Some((pair, change)) = rest.split_once(": ")
        {
            if let Some((_, to)) = change.split_once(" -> ") {
                let to = to.split([' ', '(']).next().unwrap_or(to);
                c.pairs.insert((m, pair.to_owned()), to.to_owned());
            }
            if c.settled_once && change.starts_with("first copy:") {
                c.first_copies.push(format!("{}: {line}", name(m)));
            }
        }
        // After a power cut more may be lost than the journals know of.
        if rest.ends_with("; everything is compared") && !c.dark.is_empty() {
            c.rotten.push(m);
        }
        if let Some(e) = rest.strip_prefix(": primary, epoch ") {
            let e = e.split(|c: char| !c.is_ascii_digit()).next().and_then(|e| e.parse().ok());
            c.epochs.insert(m, e.unwrap_or(0));
        }
    });
}

/// The epoch that a machine leads, as far as it has said.
pub fn epoch(m: MachineId) -> u64 {
    CHART.with(|c| c.epochs.get(&m).copied().unwrap_or(0))
}

/// Another machine leads a newer epoch: what is mounted here goes on being read until this one hears of it.
pub fn superseded(m: MachineId) -> bool {
    let mine = epoch(m);
    CHART.with(|c| c.epochs.iter().any(|(n, e)| *n != m && *e > mine))
}

/// What a machine answers now is at the other end of its sync pair.
pub fn protects(m: MachineId) -> bool {
    CHART.with(|c| c.pairs.get(&(m, "sync".to_owned())).is_some_and(|s| s == "PAIR"))
}

/// A machine lost power.
pub fn lost_power(m: MachineId) {
    CHART.with(|c| {
        c.powerless.push(m);
        c.dark.push(m);
    });
}

/// It never lost power.
pub fn kept_its_power(m: MachineId) -> bool {
    CHART.with(|c| !c.dark.contains(&m))
}

/// A machine's own files were damaged behind its back.
pub fn rotten(m: MachineId) {
    CHART.with(|c| c.rotten.push(m));
}

/// Its drive may give what it once held.
pub fn lies(m: MachineId) -> bool {
    CHART.with(|c| c.lied.contains(&m))
}

/// All sites are equal, and everything is on their disks.
pub fn settled() {
    CHART.with(|c| {
        c.powerless.clear();
        c.forced = false;
        c.settled_once = true;
    });
}

/// What must be left of what was answered at `before`, now that `now` is where the volume is mounted.
pub fn keep(now: MachineId, before: Option<MachineId>) -> Keep {
    CHART.with(|c| {
        let out = |m: MachineId| c.powerless.contains(&m);
        match before {
            None => Keep::Any,
            Some(b) if out(PRIMARY) && out(SYNC) || out(b) || out(now) => match b == now || c.voted && !c.forced {
                true => Keep::Synced,
                // Without votes a site may be taken over that lacks what was written while it was away.
                false => Keep::SyncedInPair,
            },
            Some(b) if b == now => Keep::All,
            Some(_) if c.voted && !c.forced => Keep::All,
            Some(_) => Keep::Protected,
        }
    })
}

/// A change that was begun at `begun` under an epoch was answered. Where votes decide (G3), nobody answers what was begun after
/// a newer primary had answered.
pub fn answered(m: MachineId, epoch: u64, begun: u64, now: u64) {
    let bad = CHART.with(|c| {
        c.first_answers.entry(epoch).or_insert((now, m));
        let newer = c.first_answers.range(epoch + 1..).find(|(_, (at, who))| *at < begun && *who != m);
        newer.filter(|_| c.voted && !c.forced).map(|(e, (at, who))| (*e, *at, *who))
    });
    if let Some((e, at, who)) = bad {
        fail(format!(
            "two primaries: {} answered under epoch {epoch} what was begun at {begun}, after {} had answered under {e} at {at}",
            name(m),
            name(who)
        ));
    }
}
