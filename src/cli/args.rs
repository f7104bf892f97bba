//! The command line: what can be said, and the words of `--help`.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

const AFTER: &str = "\
Examples:
  kagami demo                                 three sites on this machine, narrated
  kagami lab up /tmp/lab                      the same as a test bed that stays
  kagami --config /etc/kagami/site.toml node  the process of a site
  kagami status --watch                       every pair: state, lag, progress, reason
  kagami pair resync lab sync                 copy only what changed
  kagami takeover lab --dry-run               what taking over here would cost

The site file is the one of --config, else $KAGAMI_CONFIG, ./site.toml or
/etc/kagami/site.toml, whichever is there first.

Exit codes: 0 done, 1 failed, 2 wrong usage or site file, 3 timeout,
4 refused (--force may override), 5 done, but something is degraded.";

/// A mounted mirror: one volume kept at up to three sites, and a resync that copies only what changed.
#[derive(Parser, Debug)]
#[command(name = "kagami", version, after_help = AFTER, max_term_width = 100, propagate_version = false)]
pub struct Cli {
    /// The site file
    #[arg(long, short = 'c', global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the node of this site: regions, mounts and links to the peers
    Node(NodeArgs),
    /// Mount a volume of this site
    #[command(after_help = "\
Examples:
  kagami mount lab /srv/lab           the lead volume of group lab
  kagami mount lab/vol1 /srv/lab1     another volume of the group")]
    Mount {
        /// GROUP, GROUP/VOLUME, or a VOLUME that only one group has
        #[arg(value_name = "GROUP|VOLUME")]
        what: String,
        /// Where: an empty directory
        dir: PathBuf,
    },
    /// Unmount a volume, or all volumes of a group
    Umount {
        /// GROUP, GROUP/VOLUME, VOLUME or the directory
        #[arg(value_name = "GROUP|VOLUME|DIR")]
        what: String,
    },
    /// Show every pair: state, lag, progress, and the reason when it stands still
    Status(StatusArgs),
    /// Create, suspend, resume and end pairs
    #[command(subcommand)]
    Pair(PairCommand),
    /// Take the volume of a group over: it becomes writable here, under a new epoch
    #[command(after_help = "\
It says first what could be lost. When the other site may still be writing, or
the loss is not known, it refuses (exit 4) unless --force is given.

Examples:
  kagami takeover lab --dry-run     the plan and the possible loss; changes nothing
  kagami takeover lab               do it, mount where the site file says
  kagami takeover lab --at /mnt     do it, mount the lead volume at /mnt")]
    Takeover {
        /// The mirror group
        group: String,
        /// Only say what would be done and what could be lost
        #[arg(long)]
        dry_run: bool,
        /// Do it even if data could be lost or the old primary may be alive
        #[arg(long)]
        force: bool,
        /// Mount the lead volume at this directory
        #[arg(long, value_name = "DIR")]
        at: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Compare the replicas of a group while it is in use
    #[command(after_help = "Exit code 5 when replicas differ and were not repaired.")]
    Verify {
        /// The mirror group
        group: String,
        /// Only this pair
        #[arg(value_name = "PAIR")]
        pair: Option<String>,
        /// Make the secondary equal to the primary where they differ
        #[arg(long)]
        repair: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Look into the change journal: what a resync would copy now
    #[command(subcommand)]
    Journal(JournalCommand),
    /// Where a file of a mounted volume stands at each site
    Why {
        /// A file in a mounted volume
        file: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Introduce nodes to each other; pause and resume links
    #[command(subcommand)]
    Peer(PeerCommand),
    /// Make this node's identity (private key and certificate) and print its public key
    Keygen {
        /// Replace an identity; every peer must be introduced again
        #[arg(long)]
        force: bool,
    },
    /// Check or show the site file
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Make the regions that the site file names
    #[command(subcommand)]
    Region(RegionCommand),
    /// Add or remove a leg of a mirror group while it is in use
    #[command(subcommand)]
    Leg(LegCommand),
    /// A test bed: up to three nodes on this machine in one directory
    #[command(subcommand)]
    Lab(LabCommand),
    /// Three sites in a temporary directory, an outage, a takeover and the way back, narrated
    #[command(after_help = "\
It needs /dev/fuse, and fusermount3 when not run as root. git and sqlite3 are
used when they are there. Everything is removed at the end, also by Ctrl-C.")]
    Demo(DemoArgs),
    /// Print shell completions
    #[command(after_help = "Example: kagami completions bash > /etc/bash_completion.d/kagami")]
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Print the man page, or write all man pages into a directory
    Man {
        /// Write kagami.1, kagami-node.1, … here
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

#[derive(Args, Debug)]
#[command(after_help = "\
SIGTERM or SIGINT unmounts, flushes and ends it. $RUST_LOG sets what is logged
(default: info).

Examples:
  kagami -c site.toml node                         in the foreground, log on stderr
  kagami -c site.toml node -d --log-file node.log  in the background; returns when it is up")]
pub struct NodeArgs {
    /// Run in the background; returns when the node answers
    #[arg(long, short)]
    pub detach: bool,
    /// Write the process id here; removed at the end
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Append the log to this file (with --detach: default STATE_DIR/node.log)
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// Be the leader of a session of its own (what --detach starts)
    #[arg(long, hide = true)]
    pub detached: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "\
States: SMPL no pair, COPY initial copy or resync, PAIR in step, PSUS suspended
by the operator, PSUE suspended by a fault.

Examples:
  kagami status                    this site's view
  kagami status --watch lab        one group, again and again
  kagami status --json | jq .groups[0].pairs
  kagami status --check >/dev/null || echo degraded")]
pub struct StatusArgs {
    /// Only this group
    pub group: Option<String>,
    /// Show it again and again until Ctrl-C
    #[arg(long, short)]
    pub watch: bool,
    /// Seconds between two looks with --watch
    #[arg(long, default_value_t = 1.0, value_name = "S")]
    pub interval: f64,
    /// Exit with code 5 when a pair is in PSUE or a leg is faulty
    #[arg(long)]
    pub check: bool,
    /// Print one JSON object (with --watch: one a line)
    #[arg(long)]
    pub json: bool,
}

#[derive(Subcommand, Debug)]
pub enum PairCommand {
    /// Start a pair: initial copy, then in step
    Create {
        /// The mirror group
        group: String,
        /// The pair
        pair: String,
        /// Both sides are equal already, copy nothing (`kagami verify` would tell)
        #[arg(long)]
        no_copy: bool,
    },
    /// Suspend a pair; changes are recorded from then on
    Split {
        /// The mirror group
        group: String,
        /// The pair
        pair: String,
    },
    /// Resume a suspended pair: copy only what changed
    Resync {
        /// The mirror group
        group: String,
        /// The pair
        pair: String,
        /// Without staging, for when its space is missing: until it is done the target is no usable copy
        #[arg(long)]
        in_place: bool,
    },
    /// End a pair; its records are dropped, the next create copies everything
    Delete {
        /// The mirror group
        group: String,
        /// The pair
        pair: String,
    },
    /// Wait until pairs reach a state
    #[command(after_help = "\
Exit code 3 when the time is over.

Examples:
  kagami pair wait lab                      all pairs in PAIR with nothing under way
  kagami pair wait lab sync --state PSUS    one pair suspended")]
    Wait {
        /// The mirror group
        group: String,
        /// Only this pair
        pair: Option<String>,
        /// The state to wait for; PAIR also waits until the lag is 0
        #[arg(long, default_value = "PAIR")]
        state: String,
        /// Give up after this many seconds
        #[arg(long, value_name = "S", default_value_t = 3600.0)]
        timeout: f64,
    },
}

#[derive(Subcommand, Debug)]
pub enum JournalCommand {
    /// Its size, where it begins, and what a resync of each pair would copy now
    Stat {
        /// The mirror group
        group: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// The newest records, oldest of them first
    Show {
        /// The mirror group
        group: String,
        /// How many
        #[arg(long, short = 'n', default_value_t = 50)]
        limit: u64,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand, Debug)]
pub enum PeerCommand {
    /// Print a token to paste into `kagami peer accept` at the other site
    #[command(after_help = "The token works once and for 24 hours, while this node runs. Treat it as a password.")]
    Invite {
        /// Where the other site can reach this node (default: the HOST:PORT addresses of `listen`)
        #[arg(long, value_name = "HOST:PORT")]
        addr: Vec<String>,
    },
    /// Accept the token of another site: both nodes know each other's key then
    Accept {
        /// What `kagami peer invite` printed at the other site
        token: String,
        /// Where this node can be reached from there (default: the first HOST:PORT of `listen`)
        #[arg(long, value_name = "HOST:PORT")]
        addr: Option<String>,
    },
    /// Drop the link to a site and keep it down
    Pause {
        /// The peer's site
        site: String,
    },
    /// Make the link to a site again
    Resume {
        /// The peer's site
        site: String,
    },
    /// List the known peers
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand, Debug)]
pub enum ConfigCommand {
    /// Check the site file and this machine; warnings do not fail it
    Check,
    /// Print the values in effect, defaults and absolute paths included
    Show,
}

#[derive(Subcommand, Debug)]
pub enum RegionCommand {
    /// Make the regions of the site file that are not there yet
    #[command(after_help = "\
A directory that holds a `tree/` with files keeps them: they become the volume's
content. A directory that holds anything else is refused.")]
    Create {
        /// Only of this group
        group: Option<String>,
    },
}

#[derive(Subcommand, Debug)]
pub enum LegCommand {
    /// Add a leg: one new region for each volume of the group, in their order
    Add {
        /// The mirror group
        group: String,
        /// New directories, one for each volume
        #[arg(required = true, value_name = "REGION")]
        regions: Vec<PathBuf>,
    },
    /// Remove a leg by its number in `kagami status`
    Remove {
        /// The mirror group
        group: String,
        /// Its number in `kagami status`
        leg: u32,
    },
}

/// What `fence` can be.
#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub enum FenceArg {
    /// A write that the sync site cannot take is refused
    Data,
    /// It goes on alone and is journaled
    Never,
}

#[derive(Subcommand, Debug)]
#[command(after_help = "\
A lab is a directory: DIR/mnt is the mounted volume; DIR/SITE/ for SITE in
primary, sync, async holds site.toml, node.pid, node.log and region/tree/.

Example:
  kagami lab up /tmp/lab
  cp -r ~/src /tmp/lab/mnt/
  kagami lab kill /tmp/lab sync       the sync site is gone; work goes on
  kagami lab start /tmp/lab sync      it is back
  kagami lab wait /tmp/lab            until all is in step again
  kagami -c /tmp/lab/primary/site.toml status
  kagami lab down /tmp/lab --purge")]
pub enum LabCommand {
    /// Start a lab; returns when every pair is in PAIR and the volume is mounted
    #[command(after_help = "On a directory that holds a lab already it starts what is not running.")]
    Up {
        /// The lab's directory
        dir: PathBuf,
        /// 2: primary and sync; 3: and async [default: 3]
        #[arg(long, value_parser = clap::value_parser!(u8).range(2..=3))]
        sites: Option<u8>,
        /// What happens to a write that the sync site cannot take [default: never]
        #[arg(long)]
        fence: Option<FenceArg>,
        /// Regions of each volume at the primary [default: 1]
        #[arg(long, value_parser = clap::value_parser!(u8).range(1..=2))]
        legs: Option<u8>,
        /// Promise each write(2), not only fsync and close
        #[arg(long)]
        write_through: bool,
        /// Volumes of the group: DIR/mnt, DIR/mnt1, … [default: 1]
        #[arg(long, value_parser = clap::value_parser!(u8).range(1..=8))]
        volumes: Option<u8>,
        /// Link the sites by TCP and TLS instead of Unix sockets
        #[arg(long)]
        tcp: bool,
        /// Give up after this many seconds
        #[arg(long, value_name = "S", default_value_t = 120.0)]
        timeout: f64,
    },
    /// Stop a lab; nothing keeps running or stays mounted
    Down {
        /// The lab's directory
        dir: PathBuf,
        /// Remove the directory as well
        #[arg(long)]
        purge: bool,
    },
    /// Kill a node as a crash would (SIGKILL)
    Kill(LabSite),
    /// Start a node again
    Start {
        /// The lab's directory
        dir: PathBuf,
        /// primary, sync or async
        site: String,
        /// Give up after this many seconds
        #[arg(long, value_name = "S", default_value_t = 60.0)]
        timeout: f64,
    },
    /// Cut a node off from its peers; it keeps running
    Cut(LabSite),
    /// Undo `cut`
    Join(LabSite),
    /// Wait until all pairs that can be are in PAIR and nothing is under way
    #[command(
        after_help = "Pairs with a node that is down or cut off are excepted. Exit code 3 when the time is over."
    )]
    Wait {
        /// The lab's directory
        dir: PathBuf,
        /// Give up after this many seconds
        #[arg(long, value_name = "S", default_value_t = 120.0)]
        timeout: f64,
    },
    /// Take the volume over at a site and mount it at DIR/mnt
    Takeover {
        /// The lab's directory
        dir: PathBuf,
        /// primary, sync or async
        site: String,
        /// Mount it at this directory instead
        #[arg(long, value_name = "PATH")]
        at: Option<PathBuf>,
        /// Do it even if data could be lost or the old primary may be alive
        #[arg(long)]
        force: bool,
    },
    /// Show the status of every node
    Status {
        /// The lab's directory
        dir: PathBuf,
        /// Print one JSON object: {"primary": STATUS or null, …}
        #[arg(long)]
        json: bool,
    },
}

/// A site of a lab.
#[derive(Args, Debug)]
pub struct LabSite {
    /// The lab's directory
    pub dir: PathBuf,
    /// primary, sync or async
    pub site: String,
}

#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Work in this directory, which must be new or empty (default: a temporary one)
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Without the pauses for reading, with less data
    #[arg(long)]
    pub fast: bool,
}
