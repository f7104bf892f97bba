//! What a node says about itself: the value behind `kagami status`, shared by the node and the command line.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Version of this layout; fields are only ever added to a version.
pub const STATUS_VERSION: u32 = 1;

/// A node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`STATUS_VERSION`].
    pub version: u32,
    /// Its site.
    pub site: String,
    /// Its process.
    pub pid: u32,
    /// Its links to all peers are down by `lab cut` (test bed only).
    #[serde(default)]
    pub cut: bool,
    /// Its groups, in the order of the site file.
    pub groups: Vec<GroupStatus>,
}

/// A group as this node sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// Its name.
    pub name: String,
    /// `primary`, `secondary`, or what else it is on the way to (`starting`, `stale`, `failed`).
    pub role: String,
    /// Number of the epoch.
    pub epoch: u64,
    /// Sequence number of the last entry issued or applied here.
    pub position: u64,
    /// Where the lead volume is mounted here.
    pub mount: Option<PathBuf>,
    /// Every mounted volume.
    #[serde(default)]
    pub mounts: Vec<MountStatus>,
    /// `data` or `never`.
    pub fence: String,
    /// How well the data is protected right now, in a word or two (MS-1).
    #[serde(default)]
    pub protection: String,
    /// Why the group cannot do what it should, if so.
    #[serde(default)]
    pub reason: Option<String>,
    /// The local legs (MS-1).
    #[serde(default)]
    pub legs: Vec<LegStatus>,
    /// The pairs that this node has an end of.
    pub pairs: Vec<PairStatus>,
}

/// A mounted volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MountStatus {
    /// The volume.
    pub volume: String,
    /// Where.
    pub dir: PathBuf,
}

/// A local leg.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LegStatus {
    /// Its number.
    pub leg: u32,
    /// `synchronised`, `copying` or `faulty`.
    pub state: String,
    /// Why it is not synchronised.
    pub reason: Option<String>,
}

/// One end of a pair.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairStatus {
    /// Its name.
    pub name: String,
    /// `sync` or `async`.
    pub mode: String,
    /// The site at the other end.
    pub peer: String,
    /// `out`: this node sends; `in`: it receives; `none`: neither site is primary.
    #[serde(default)]
    pub direction: String,
    /// `SMPL`, `COPY`, `PAIR`, `PSUS`, `PSUE`, … (MS-2).
    pub state: String,
    /// Why it is in this state, or idle (G9).
    pub reason: Option<String>,
    /// What the other end does not have yet.
    pub lag: Lag,
    /// What a copy or resync is doing.
    #[serde(default)]
    pub progress: Option<Progress>,
    /// What the last resync cost (G4).
    pub last_resync: Option<ResyncStats>,
}

/// How far a pair is behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lag {
    /// Entries not yet acknowledged.
    pub entries: u64,
    /// Their data, bytes.
    pub bytes: u64,
    /// Age of the oldest of them, seconds. Grows while nothing arrives (G9).
    pub seconds: f64,
}

impl Lag {
    /// Nothing is under way.
    pub fn is_zero(&self) -> bool {
        self.entries == 0 && self.bytes == 0
    }
}

/// A copy, resync or verify under way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// What it is doing, in a word or two: `scan`, `copy`, `stage`, `commit`, `catch-up`, …
    pub phase: String,
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes in all, as far as known.
    pub total_bytes: u64,
    /// Files done.
    pub done_files: u64,
    /// Files in all, as far as known.
    pub total_files: u64,
    /// Rate of the last seconds, bytes/s.
    pub rate_bytes_s: f64,
    /// Estimated time to the end, seconds; `None` when it cannot be told.
    pub eta_s: Option<f64>,
}

/// The cost of a resync.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ResyncStats {
    /// Files looked at, from the journals.
    pub files_examined: u64,
    /// Files whose content was sent.
    pub files_copied: u64,
    /// Content sent, bytes.
    pub bytes_copied: u64,
    /// Renames sent.
    pub renames: u64,
    /// How long it took, seconds.
    pub seconds: f64,
}

/// The answer to `Verify`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// One for each pair that was compared.
    pub pairs: Vec<VerifyPair>,
    /// With two secondaries and more: for each object that differs, which replica is the odd one.
    #[serde(default)]
    pub odd_one_out: Vec<Difference>,
}

/// What was compared of a pair.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VerifyPair {
    /// Its name.
    pub pair: String,
    /// Names compared.
    pub files: u64,
    /// Content compared, bytes.
    pub bytes: u64,
    /// Where the replicas differ.
    pub differences: Vec<Difference>,
    /// All differences were repaired; otherwise `kagami verify` ends with exit code 5 when there are any.
    pub repaired: bool,
    /// The site of the secondary.
    #[serde(default)]
    pub site: String,
    /// How long the comparison took, seconds.
    #[serde(default)]
    pub seconds: f64,
    /// Number of differences, also of those beyond what `differences` lists.
    #[serde(default)]
    pub difference_count: u64,
    /// Objects that were changed every time they were looked at: not judged, and no differences.
    #[serde(default)]
    pub changing: Vec<Difference>,
    /// Their number.
    #[serde(default)]
    pub changing_count: u64,
    /// How it was repaired, if it was.
    #[serde(default)]
    pub repair: Option<String>,
    /// What differs after the repair.
    #[serde(default)]
    pub left: Vec<Difference>,
    /// Why the pair was not compared, if it was not.
    #[serde(default)]
    pub not_compared: Option<String>,
}

/// One place where replicas differ.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// Path in the volume, for people.
    pub path: String,
    /// What differs: `content`, `mode`, `missing at sync`, …
    pub what: String,
}

/// The answer to `Takeover`, with `dry_run` of what it would do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TakeoverReport {
    /// Nothing was changed.
    pub dry_run: bool,
    /// Number of the new epoch.
    pub epoch: u64,
    /// Last position that this site has.
    pub position: u64,
    /// Where the lead volume is (or would be) mounted.
    pub mount: Option<PathBuf>,
    /// The possible loss, for people: `nothing`, `unknown since 12:03:04`, `3 entries, 12 KiB, the last 0.4 s`.
    pub loss: String,
    /// What was (or would be) done, in order.
    pub steps: Vec<String>,
}
