//! Newtypes for every id and sequence. All of them are `u64` or smaller on wire and disk.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Index of a volume within its group (0 = the lead volume, whose region also keeps the group's metadata).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode, Serialize, Deserialize, Default)]
pub struct VolId(pub u16);

/// Group-wide id of a directory, given at `mkdir` and kept for life. It is how entries address objects instead of paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode, Serialize, Deserialize)]
pub struct DirId(pub u64);

impl DirId {
    /// The root of a region's `tree/`.
    pub const ROOT: DirId = DirId(1);
    /// `.kagami/staging`: where a resync parks what it moves.
    pub const STAGING: DirId = DirId(2);
    /// `.kagami/lost`: losing versions kept aside (G6).
    pub const LOST: DirId = DirId(3);
    /// Ids below this are reserved.
    pub const FIRST_FREE: u64 = 16;

    /// True for the directories of kagami's own metadata, which are never shown to users.
    pub fn is_internal(self) -> bool {
        self == DirId::STAGING || self == DirId::LOST
    }
}

/// Group-wide id of a file with more than one link, given when the second link is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode, Serialize, Deserialize)]
pub struct LinkId(pub u64);

/// A name in a directory: how entries and journal records address files.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct Name {
    /// The directory.
    pub dir: DirId,
    /// One path component, 1 to 255 bytes, any byte except NUL and `/`.
    pub name: Vec<u8>,
}

impl Name {
    /// A name in a directory. The component is not checked here; see [`Name::is_valid`].
    pub fn new(dir: DirId, name: impl Into<Vec<u8>>) -> Name {
        Name { dir, name: name.into() }
    }

    /// True for a component that can never reach outside its directory (G10).
    pub fn is_valid(&self) -> bool {
        let n = &self.name;
        !n.is_empty()
            && n.len() <= super::limits::NAME_BYTES_MAX
            && n != b"."
            && n != b".."
            && !n.contains(&0)
            && !n.contains(&b'/')
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.dir.0, String::from_utf8_lossy(&self.name))
    }
}

/// Sequence number of an entry: one sequence per group, rising across epochs, first entry 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode, Serialize, Deserialize, Default)]
pub struct Seq(pub u64);

impl Seq {
    /// The largest position there is: a million entries a second take 290,000 years to get there. A greater one from disk or
    /// wire is refused where it is read (G10), so that counting on from a position never ends the numbers.
    pub const MAX: Seq = Seq(u64::MAX / 2);

    /// The next sequence number.
    pub fn next(self) -> Seq {
        Seq(self.0.saturating_add(1))
    }

    /// True for what can be a position.
    pub fn is_valid(self) -> bool {
        self <= Seq::MAX
    }
}

/// One reign of one writable primary (G3).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct Epoch {
    /// Counts up by one at every takeover and every start of a primary.
    pub number: u64,
    /// Name of the site that began it.
    pub site: String,
    /// Tells two epochs with the same number apart.
    pub random: u64,
    /// The last sequence number of the parent: this epoch's entries start right after it.
    pub parent: Seq,
    /// The operator's word after a split brain: this history wins over the epoch with these random bits; 0: none (G6).
    pub over: u64,
}

impl Epoch {
    /// True for an epoch that can be counted on from, by a site that can be (G10).
    pub fn is_valid(&self) -> bool {
        self.parent.is_valid()
            && self.number <= Seq::MAX.0
            && !self.site.is_empty()
            && self.site.len() <= super::limits::NAME_BYTES_MAX
    }

    /// Same epoch (number, site and random bits agree).
    pub fn same(&self, other: &Epoch) -> bool {
        self.number == other.number && self.random == other.random && self.site == other.site
    }
}

/// Name of a site, as in `[node] site = "…"`.
pub type Site = String;

/// A random 64-bit value, drawn with the schedule.
#[cfg(feature = "schedules")]
pub fn random_u64() -> u64 {
    use shuttle::rand::RngCore;
    shuttle::rand::thread_rng().next_u64()
}

/// A random 64-bit value from the kernel.
#[cfg(not(feature = "schedules"))]
pub fn random_u64() -> u64 {
    let mut b = [0u8; 8];
    // getrandom(2) cannot fail for 8 bytes once the kernel's pool is initialised.
    if getrandom::fill(&mut b).is_err() {
        return std::process::id() as u64 ^ super::time::now().nanos_total();
    }
    u64::from_le_bytes(b)
}
