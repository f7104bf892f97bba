//! The site file: what a node is told by its operator. Every error names `FILE:LINE`, what is wrong and what to write.
//!
//! Relative paths are relative to the directory of the file, so that a site can be moved as a whole.

pub use super::config_launch::{LaunchConfig, OnSuspended};
use super::config_source::{SITE, Source};
use super::config_text;
use crate::base::{At, Error, Result, Site, limits};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A checked site file.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it was read from, absolute.
    pub path: PathBuf,
    /// This node.
    pub node: NodeConfig,
    /// The other nodes.
    pub peers: Vec<PeerConfig>,
    /// The mirror groups this node has a replica of.
    pub groups: Vec<GroupConfig>,
    /// Bounds that the operator may change.
    pub limits: LimitsConfig,
    /// What this site lets a replica start and mount.
    pub launch: LaunchConfig,
}

/// `[node]`.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Name of this site.
    pub site: Site,
    /// Where the node keeps its own state (keys, pair table, control socket), absolute.
    pub state_dir: PathBuf,
    /// Where it listens: `unix:/ABSOLUTE/PATH` or `HOST:PORT`; the text form of `net::Addr`.
    pub listen: Vec<String>,
    /// Where metrics and health are served over HTTP, to whoever reaches it; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
}

/// `[[peer]]`.
#[derive(Clone, Debug)]
pub struct PeerConfig {
    /// Its site.
    pub site: Site,
    /// Where it listens: `unix:/ABSOLUTE/PATH` or `HOST:PORT`.
    pub addr: Option<String>,
    /// Its pinned key (`kgm1:…`); `None`: a Unix socket, or kept in `state_dir/peers`.
    pub key: Option<String>,
}

/// What the group does when its sync site cannot take a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    /// The write is refused.
    Data,
    /// It goes on alone and is journaled.
    Never,
}

/// How a pair copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Answered after the other site has it (MS-3).
    Sync,
    /// Answered before; in order (MS-4).
    Async,
}

/// `[[group]]`.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// Its name.
    pub name: String,
    /// Fence level.
    pub fence: Fence,
    /// Every write(2) is promised, not only fsync and close. Always true with [`Fence::Data`].
    pub write_through: bool,
    /// The site that starts as primary when the group is made.
    pub primary: Site,
    /// At least one; index = `VolId`; 0 is the lead volume.
    pub volumes: Vec<VolumeConfig>,
    /// The pairs of the whole group, also those that this site has no end of.
    pub pairs: Vec<PairConfig>,
    /// Name of the environment file in each volume's root (CD-12).
    pub env_file: String,
    /// How the sync site takes over by itself; `None`: it does not.
    pub takeover: Option<AutoTakeover>,
}

/// `takeover = "auto"` with who is asked (G3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AutoTakeover {
    /// The third voter.
    pub arbiter: Arbiter,
    /// After this time without a word a site counts as lost: the length of a vote.
    pub detect: Duration,
    /// The ends of the sync pair, the other two voters.
    pub ends: [Site; 2],
}

/// The third voter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arbiter {
    /// The node of a third site.
    Site(Site),
    /// An etcd.
    Etcd {
        /// `http://HOST:PORT` of its members.
        endpoints: Vec<String>,
        /// What its keys begin with.
        prefix: String,
    },
}

/// `[[group.volume]]`: a row of the volume definition table (CD-1).
#[derive(Clone, Debug)]
pub struct VolumeConfig {
    /// Its name.
    pub name: String,
    /// The regions that hold it here, absolute; one for each leg, the same number in every volume of a group.
    pub legs: Vec<PathBuf>,
    /// How many of `legs` the site file names; those after them lie beside the last one, on its drive.
    pub drives: usize,
    /// Emulation type: with RAID 1 the drives are one logical unit.
    pub emulation: Emulation,
    /// Its size, bytes; 0: that of the filesystem below.
    pub size: u64,
    /// Where it is mounted when this site is primary, absolute.
    pub mount: Option<PathBuf>,
    /// Port name (CD-13).
    pub port: String,
    /// Logical unit (CD-13).
    pub lu: u32,
}

/// Port and logical unit of a volume at one site.
pub type PortLu = (String, u32);

/// Emulation type of a volume (CD-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emulation {
    /// One drive.
    None,
    /// Two drives with the same content under one logical unit.
    Raid1,
}

/// `[[group.pair]]`: the rows of the pair definition table for one pair (CD-2).
#[derive(Clone, Debug)]
pub struct PairConfig {
    /// Its name.
    pub name: String,
    /// How it copies.
    pub mode: Mode,
    /// Its two sites.
    pub sites: [Site; 2],
    /// What the other end calls each volume, by index. Means something at a site that has an end of the pair.
    pub remote: Vec<PortLu>,
}

/// `[limits]`.
#[derive(Clone, Debug)]
pub struct LimitsConfig {
    /// Entries kept in memory for peers that lag, bytes.
    pub queue_memory_bytes: u64,
    /// Spool on disk for peers that lag, bytes; 0: none. Beyond it a pair is "behind".
    pub spool_bytes: u64,
    /// A link without any byte for this long is broken.
    pub link_timeout: Duration,
    /// Heartbeat period of a link.
    pub heartbeat: Duration,
    /// The oldest unacknowledged entry may be this old.
    pub progress_timeout: Duration,
    /// Change journal of a group, bytes; beyond it the oldest intervals are forgotten (older peers then need a full comparison).
    pub journal_bytes: u64,
    /// Entry log of a group at a receiving site, bytes; beyond it the sender waits. What a resync stages comes on top.
    pub log_bytes: u64,
}

/// Default for `journal_mib`.
pub const JOURNAL_BYTES_DEFAULT: u64 = 256 << 20;
/// Default for `env_file`.
pub const ENV_FILE_DEFAULT: &str = "env.txt";
/// Default for `log_mib`.
pub const LOG_BYTES_DEFAULT: u64 = 512 << 20;

/// The node's key and certificate ([`crate::net::Identity`]).
pub fn identity_file(state_dir: &Path) -> PathBuf {
    state_dir.join("identity")
}

/// Peers accepted by token ([`crate::net::PeerStore`]); the site file's own keys come first.
pub fn peers_file(state_dir: &Path) -> PathBuf {
    state_dir.join("peers")
}

/// Pending invitations ([`crate::net::Invites`]).
pub fn invites_file(state_dir: &Path) -> PathBuf {
    state_dir.join("invites")
}

impl Default for LimitsConfig {
    fn default() -> LimitsConfig {
        LimitsConfig {
            queue_memory_bytes: limits::QUEUE_MEMORY_BYTES_MAX,
            spool_bytes: limits::SPOOL_BYTES_MAX,
            link_timeout: limits::LINK_TIMEOUT,
            heartbeat: limits::HEARTBEAT,
            progress_timeout: limits::PROGRESS_TIMEOUT,
            journal_bytes: JOURNAL_BYTES_DEFAULT,
            log_bytes: LOG_BYTES_DEFAULT,
        }
    }
}

impl Config {
    /// Reads and checks a site file. Errors are [`crate::base::Kind::Config`] and begin with `FILE:LINE: `.
    pub fn load(path: &Path) -> Result<Config> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            let hint = match e.kind() {
                std::io::ErrorKind::NotFound => "; give the site file with --config FILE or in $KAGAMI_CONFIG",
                std::io::ErrorKind::InvalidData => "; a site file is UTF-8 text",
                _ => "",
            };
            Error::config(format!("{}: {e}{hint}", path.display()))
        })?;
        Config::parse(path, &text)
    }

    /// As [`Config::load`], of a text that would lie at `path`.
    pub fn parse(path: &Path, text: &str) -> Result<Config> {
        let abs = std::path::absolute(path).at(path.display())?;
        config_text::parse(Source { file: path.display().to_string(), text, path: abs, lang: &SITE })
    }

    /// The control socket of this node.
    pub fn control_socket(&self) -> PathBuf {
        self.node.state_dir.join(super::control::SOCKET_NAME)
    }

    /// A group by name; the error lists those there are.
    pub fn group(&self, name: &str) -> Result<&GroupConfig> {
        self.groups.iter().find(|g| g.name == name).ok_or_else(|| {
            let known: Vec<&str> = self.groups.iter().map(|g| g.name.as_str()).collect();
            let known = if known.is_empty() { "it has none".into() } else { format!("it has {}", known.join(", ")) };
            Error::config(format!("no group {name:?} in {}: {known}", self.path.display()))
        })
    }

    /// A peer by its site.
    pub fn peer(&self, site: &str) -> Option<&PeerConfig> {
        self.peers.iter().find(|p| p.site == site)
    }

    /// The effective values as a site file, defaults included.
    pub fn to_toml(&self) -> String {
        config_text::render(self)
    }
}

impl GroupConfig {
    /// A volume by name, with its index.
    pub fn volume(&self, name: &str) -> Option<(usize, &VolumeConfig)> {
        self.volumes.iter().enumerate().find(|(_, v)| v.name == name)
    }

    /// The pairs that `site` has an end of, each with the site at the other end.
    pub fn pairs_of<'a>(&'a self, site: &'a str) -> impl Iterator<Item = (&'a PairConfig, &'a str)> {
        self.pairs.iter().filter_map(move |p| p.other(site).map(|o| (p, o)))
    }

    /// How many legs each volume has here.
    pub fn legs(&self) -> usize {
        self.volumes.first().map_or(0, |v| v.legs.len())
    }
}

impl PairConfig {
    /// The other end, if `site` is one.
    pub fn other(&self, site: &str) -> Option<&str> {
        let [a, b] = &self.sites;
        match () {
            () if a == site => Some(b),
            () if b == site => Some(a),
            () => None,
        }
    }
}

impl Emulation {
    /// As written in the site file and in the config definition.
    pub fn as_str(self) -> &'static str {
        match self {
            Emulation::None => "none",
            Emulation::Raid1 => "raid1",
        }
    }
}

impl Mode {
    /// As written in the site file.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Sync => "sync",
            Mode::Async => "async",
        }
    }
}

impl Fence {
    /// As written in the site file.
    pub fn as_str(self) -> &'static str {
        match self {
            Fence::Data => "data",
            Fence::Never => "never",
        }
    }
}
