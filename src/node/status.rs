//! What a node says about itself: the value behind `kagami status`, shared by the node and the command line.

use super::mounter::MountOptions;
pub use crate::store::journal::Changed;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Version of this layout; fields are only ever added to a version.
pub const STATUS_VERSION: u32 = 1;

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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
    /// When its process was started, seconds since 1970.
    #[serde(default)]
    pub started: f64,
    /// Its log of events.
    #[serde(default)]
    pub events: EventsStatus,
    /// Where its metrics are served, or why not.
    #[serde(default)]
    pub metrics: Option<String>,
}

/// The log of events.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EventsStatus {
    /// Events since the node was started.
    pub reported: u64,
    /// Those of them that were dropped because they could not be written.
    pub dropped: u64,
    /// Why nothing can be written now, if so.
    pub failing: Option<String>,
}

/// A group as this node sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// Its name.
    pub name: String,
    /// `primary`, `secondary`, or what else it is on the way to (`starting`, `stale`, `failed`).
    pub role: String,
    /// Number of the epoch.
    pub epoch: u64,
    /// The site that began it.
    #[serde(default)]
    pub led_by: Option<String>,
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
    /// Objects of which this node may not set everything, and keeps the rest beside (G5).
    #[serde(default)]
    pub kept_beside: u64,
    /// The local legs (MS-1).
    #[serde(default)]
    pub legs: Vec<LegStatus>,
    /// What waits for peers here, or was received, and its limits.
    #[serde(default)]
    pub queue: QueueStatus,
    /// The pairs that this node has an end of.
    pub pairs: Vec<PairStatus>,
    /// Losing versions kept at this site, if there are any (G6).
    #[serde(default)]
    pub lost: Option<LossStatus>,
    /// What the fence refused while it was under way, until the sites are equal again (MS-6).
    #[serde(default)]
    pub in_doubt: Option<DoubtStatus>,
    /// Its volumes, as the volume definition table and their config definitions have them.
    #[serde(default)]
    pub volumes: Vec<VolumeStatus>,
    /// The applications that run from the group's volumes, in the order in which they are started (CD-8).
    #[serde(default)]
    pub apps: Vec<AppStatus>,
    /// What is to be said of mounting and starting applications by itself (CD-16, G9).
    #[serde(default)]
    pub boot: Option<String>,
    /// What is broken here, or waits for somebody (see `/healthz`).
    #[serde(default)]
    pub faults: Vec<String>,
    /// Why no write is accepted here; `None`: writes are accepted.
    #[serde(default)]
    pub refuses_writes: Option<String>,
    /// The replica is at a point of the order: it could be read, or taken over.
    #[serde(default)]
    pub consistent: bool,
    /// What is under way between sites: `returning`, `acting for SITE`, `giving to SITE`, `gave to SITE` or `resting`
    /// (primary without mounts, until they are ordered).
    #[serde(default)]
    pub task: Option<String>,
    /// The procedure that was ordered here and is under way.
    #[serde(default)]
    pub procedure: Option<ProcedureStatus>,
    /// The voters, where takeover is automatic (G3).
    #[serde(default)]
    pub arbiter: Option<ArbiterStatus>,
}

/// How automatic takeover stands, as seen from here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ArbiterStatus {
    /// The third voter.
    pub arbiter: String,
    /// Length of a vote, seconds.
    pub detect_s: f64,
    /// For whom the voter of this site voted last; `None`: for nobody yet, or this site is no voter.
    pub owner: Option<String>,
    /// How long it is promised to support nobody else, seconds.
    pub owner_for_s: f64,
    /// In which term.
    pub term: u64,
    /// The voter of this site knows that the other end of the sync pair has everything that the owner answered.
    pub other_end_fit: bool,
    /// At a primary: how long a majority supports it without being asked again, seconds.
    pub majority_for_s: f64,
    /// The operator overruled the voters, until a majority supports this site.
    pub forced: bool,
    /// The three voters.
    pub voters: Vec<VoterStatus>,
    /// Whether a takeover would happen by itself, and why not.
    pub takeover: String,
}

/// One of the three, as a primary sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VoterStatus {
    /// `site tokyo`, `etcd`.
    pub name: String,
    /// How long its vote for this site is still valid, seconds.
    pub votes_for_s: f64,
    /// It has on record that the other end of the sync pair has everything that was answered; `None`: that is not known.
    #[serde(default)]
    pub other_end_fit: Option<bool>,
    /// What it said last, if that was not yes.
    pub said: Option<String>,
}

/// A procedure over several sites that is under way (MS-10 to MS-15).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcedureStatus {
    /// Random; the same for as long as it runs.
    pub id: u64,
    /// `takeover`, `failback` or `swap`.
    pub name: String,
    /// The step, and how it stands.
    pub step: String,
}

impl ProcedureStatus {
    /// Why another one cannot begin.
    pub fn in_the_way(&self, group: &str, site: &str) -> String {
        format!(
            "a {} of group {group} is under way, ordered at site {site} ({}): wait for its end; where nobody carries it on, it is forgotten after 5 s",
            self.name, self.step
        )
    }
}

/// How a group stands at another site.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SiteView {
    /// The site.
    pub site: String,
    /// Its own word.
    pub group: Option<GroupStatus>,
    /// Why there is none.
    pub error: Option<String>,
}

/// What `fence = "data"` refused while it was under way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DoubtStatus {
    /// Since when, seconds since 1970.
    pub since: f64,
    /// Requests refused.
    pub refused: u64,
    /// Entries of theirs that the sync site may have, or that could not be undone here.
    pub count: u64,
    /// The first of these.
    pub entries: Vec<DoubtEntry>,
    /// Those that are not listed.
    pub more: u64,
}

/// An entry in doubt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DoubtEntry {
    /// Its sequence number.
    pub position: u64,
    /// When it was issued, seconds since 1970.
    pub time: f64,
    /// The volume.
    pub volume: String,
    /// The path in it.
    pub path: String,
    /// What it does.
    pub what: String,
    /// It was undone here.
    pub undone: bool,
}

/// Losing versions kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossStatus {
    /// Events in `kagami loss list`.
    pub events: u64,
    /// Objects they list.
    pub objects: u64,
    /// Content kept, bytes.
    pub bytes: u64,
}

/// An application.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AppStatus {
    /// Its name.
    pub name: String,
    /// `waiting`, `starting`, `ready`, `stopping`, `stopped`, `backing-off`, `crash-looping` or `failed`.
    pub state: String,
    /// Its first process, while that runs.
    pub pid: Option<i32>,
    /// Starts after it had ended by itself.
    pub restarts: u64,
    /// Since when it stands there, seconds since 1970.
    pub since: u64,
    /// Why, and what is waited for.
    pub reason: Option<String>,
    /// File that its output goes to.
    pub log: PathBuf,
}

/// A volume of a group here (CD-1).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its name.
    pub name: String,
    /// Port.
    pub port: String,
    /// Logical unit.
    pub lu: u32,
    /// Emulation type: `none` or `raid1`.
    pub emulation: String,
    /// Size in this site's file, bytes; 0: that of the filesystem below.
    pub size: u64,
    /// Capacity in the config definition, bytes; 0: that of the filesystem below. `None`: there is no definition yet.
    pub capacity: Option<u64>,
    /// Bytes used of the capacity, where they are counted.
    pub used: Option<u64>,
}

/// What a group has queued at this node, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QueueStatus {
    /// Entries for peers, in memory.
    pub memory_bytes: u64,
    /// `queue_memory_mib`. With a spool, memory holds up to 64 MiB more that wait for it.
    pub memory_limit_bytes: u64,
    /// Entries for peers, in the spool.
    pub spool_bytes: u64,
    /// What the files of the spool take.
    pub spool_file_bytes: u64,
    /// `spool_mib`.
    pub spool_limit_bytes: u64,
    /// The entry log, at a secondary.
    pub log_bytes: u64,
    /// `log_mib`.
    pub log_limit_bytes: u64,
    /// The change journal.
    #[serde(default)]
    pub journal_bytes: u64,
    /// `journal_mib`.
    #[serde(default)]
    pub journal_limit_bytes: u64,
}

/// A mounted volume.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MountStatus {
    /// The volume.
    pub volume: String,
    /// Where.
    pub dir: PathBuf,
    /// How, beyond the defaults.
    #[serde(default)]
    pub options: MountOptions,
    /// False when the mount point was taken away and files are still open (`umount -l`).
    #[serde(default = "yes")]
    pub attached: bool,
}

fn yes() -> bool {
    true
}

/// A local leg.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LegStatus {
    /// Its number.
    pub leg: u32,
    /// `synchronised`, `copying` or `faulty`.
    pub state: String,
    /// Why it is not synchronised.
    pub reason: Option<String>,
}

/// One end of a pair.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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
    /// In PSUE: the kind of fault, in one word.
    #[serde(default)]
    pub fault: Option<String>,
    /// Its link is up.
    #[serde(default)]
    pub linked: bool,
    /// This site took over from the other end and has not resynced it since (SSWS).
    #[serde(default)]
    pub taken_over: bool,
    /// What the other end does not have yet.
    pub lag: Lag,
    /// Its volumes: which port and LU at the primary's end belong to which at the secondary's (CD-2).
    #[serde(default)]
    pub volumes: Vec<VolumeEnds>,
    /// What a copy or resync is doing.
    #[serde(default)]
    pub progress: Option<Progress>,
    /// What the last resync cost (G4).
    pub last_resync: Option<ResyncStats>,
    /// The secondary's tree has everything of this time, by the primary's clock: seconds since 1970. `None`: not known.
    #[serde(default)]
    pub confirmed: Option<f64>,
    /// When a copy or resync last ended well, seconds since 1970.
    #[serde(default)]
    pub copied: Option<f64>,
    /// What the last comparison found.
    #[serde(default)]
    pub verified: Option<Verified>,
    /// How often each fault suspended the pair since the node was started.
    #[serde(default)]
    pub faults: BTreeMap<String, u64>,
    /// What a resync would have to look at now, at the primary's end of a pair that is not in PAIR.
    #[serde(default)]
    pub out_of_sync: Option<Changed>,
}

/// What a comparison found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Verified {
    /// When it ended, seconds since 1970.
    pub time: f64,
    /// Objects that differ, after the repair if there was one.
    pub differences: u64,
}

/// One volume of a pair, by the present roles of its ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeEnds {
    /// Its name here.
    pub name: String,
    /// Port at the primary's end.
    pub primary_port: String,
    /// LU at the primary's end.
    pub primary_lu: u32,
    /// Port at the secondary's end.
    pub secondary_port: String,
    /// LU at the secondary's end.
    pub secondary_lu: u32,
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
    /// Losing versions of the other end that went to its manifest (G6).
    #[serde(default)]
    pub kept: u64,
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
