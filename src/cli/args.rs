//! The command line: what can be said, and the words of `--help`.

use super::args_lab::{DemoArgs, LabCommand};
use super::args_loss::LossCommand;
use super::args_procedure::{FailbackArgs, SwapArgs, TakeoverArgs};
use clap::{Args, Parser, Subcommand};
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
  kagami mount lab/vol1 /srv/lab1     another volume of the group
  kagami mount lab                    as `kagami boot --now lab`
  kagami mount lab /srv/lab -o ro     read-only
  kagami mount lab /srv/lab --update-fstab   and at every boot

Options: ro, nosuid, nodev, noexec, sync, dirsync, noatime, nodiratime,
allow_other, write_through, nfs_export; and what is for fstab: see mount.kagami(8).")]
    Mount {
        /// GROUP, GROUP/VOLUME, or a VOLUME that only one group has
        #[arg(value_name = "GROUP|VOLUME")]
        what: String,
        /// Where: an empty directory. Without it: every volume of GROUP where its head says, and its applications
        dir: Option<PathBuf>,
        /// Options, parted by commas
        #[arg(long, short = 'o', value_name = "OPTIONS", default_value = "", hide_default_value = true)]
        options: String,
        #[command(flatten)]
        fstab: FstabArgs,
    },
    /// Unmount a volume, or all volumes of a group
    Umount {
        /// GROUP, GROUP/VOLUME, VOLUME or the directory
        #[arg(value_name = "GROUP|VOLUME|DIR")]
        what: String,
        #[command(flatten)]
        fstab: FstabArgs,
    },
    /// Show every pair: state, lag, progress, and the reason when it stands still
    Status(StatusArgs),
    /// What happened at this node: states, roles, mounts, copies, applications
    #[command(after_help = "\
It reads the log in the state directory, so it works without the node as well.

Examples:
  kagami events                        all that is kept
  kagami events lab --since 10m        of one group, of the last ten minutes
  kagami events --since 2026-11-21T09  since then, UTC
  kagami events --json --follow        go on as they come, one JSON object a line")]
    Events {
        /// Only of this group
        group: Option<String>,
        /// Go on with what comes, until Ctrl-C
        #[arg(long, short)]
        follow: bool,
        /// Only from then on: a span as in 90s, 10m, 2h, 1d, or a time in UTC
        #[arg(long, value_name = "SPAN|TIME")]
        since: Option<String>,
        /// Print JSON, one object a line
        #[arg(long)]
        json: bool,
    },
    /// Create, suspend, resume and end pairs
    #[command(subcommand)]
    Pair(PairCommand),
    /// Take the volume of a group over: it becomes writable here, under a new epoch
    Takeover(TakeoverArgs),
    /// The way back: the role returns to the site that the group calls its primary
    Failback(FailbackArgs),
    /// Planned switchover: the role goes to another site, nothing is lost
    Swap(SwapArgs),
    /// Mount where the volumes say and start what they name, when every pair is suspended, or now
    #[command(after_help = "\
At the primary it mounts what is not mounted yet and starts the applications. At a
secondary it waits, as the node itself does, until every pair of the group that
ends here is suspended; the node does then what [launch] of the site file says
(on_lost_primary, on_suspend). It starts the node if none runs.

Examples:
  kagami boot --dry-run       what would be mounted and started, and what forbids it
  kagami boot --once          the same now, exit 5 when something is still open
  kagami boot --now lab       mount and start group lab here and now, whatever the policy
  kagami boot --yes lab       the answer where on_lost_primary = \"ask\"")]
    Boot(BootArgs),
    /// The applications that run from mounted volumes
    #[command(subcommand)]
    App(AppCommand),
    /// Write definition files of applications into a mounted volume, and where they are into its environment file
    #[command(after_help = "\
Examples:
  kagami define shop --dbms pg.toml --application shop.toml
  kagami define shop --dbms pg.toml --dbms-at /DB/vol1/db.toml")]
    Define(DefineArgs),
    /// Make a site out of nothing but the regions of a replica: show the plan, mount, start
    #[command(after_help = "\
A site file given with --config or $KAGAMI_CONFIG is used for its [launch] (what may
be mounted and started) and its name.

Examples:
  kagami adopt /disk/region --dry-run                      what the replica is and what it wants
  kagami -c launch.toml adopt /disk/region /disk2/region1  both volumes of a group")]
    Adopt(AdoptArgs),
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
    /// Losing versions at this site: list them, bring them back, drop them
    #[command(subcommand)]
    Loss(LossCommand),
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
    /// Start one process of an application and end all that it leaves (what the supervisor starts)
    #[command(hide = true)]
    Guard {
        /// What it is, for lists of processes
        name: String,
    },
    /// The pair commands of Hitachi's CCI: paircreate, pairsplit, pairresync, pairdisplay, pairvolchk, ...
    #[command(after_help = "\
Commands: paircreate, pairsplit, pairresync, pairdisplay, pairvolchk, pairevtwait,
pairsyncwait, horctakeover; they also work as names of this program. COMMAND -h
lists the options. Exit codes are those of CCI, see docs/HORCM.md.

Examples:
  kagami horcm pairdisplay -g lab -fc
  kagami horcm pairvolchk -g lab/sync -ss      23: P-VOL in PAIR")]
    Horcm {
        /// The command and its options
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND", required = true)]
        args: Vec<String>,
    },
    /// Print shell completions
    #[command(after_help = "Example: kagami completions bash > /etc/bash_completion.d/kagami")]
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Print the man page, or write all man pages into a directory
    Man {
        /// Write kagami.1, kagami-node.1, …, mount.kagami.8 and site.toml.5 here
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

#[derive(Args, Debug)]
pub struct BootArgs {
    /// Only this group
    pub group: Option<String>,
    /// Only say what would be done; changes nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Look once instead of waiting
    #[arg(long)]
    pub once: bool,
    /// Do it now, whatever the policy of the site says
    #[arg(long, conflicts_with_all = ["dry_run", "once"])]
    pub now: bool,
    /// The same, as the answer to a node that asks
    #[arg(long, conflicts_with_all = ["dry_run", "once", "now"])]
    pub yes: bool,
    /// Print JSON, one object for each group
    #[arg(long)]
    pub json: bool,
}

#[derive(Subcommand, Debug)]
pub enum AppCommand {
    /// Where each of them stands
    List {
        /// Only of this group
        group: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Start one, or all
    Start {
        /// The mirror group
        group: String,
        /// The application [default: all]
        app: Option<String>,
    },
    /// Stop one, or all; it stays so
    Stop {
        /// The mirror group
        group: String,
        /// The application [default: all]
        app: Option<String>,
    },
    /// Stop one, or all, and start again
    Restart {
        /// The mirror group
        group: String,
        /// The application [default: all]
        app: Option<String>,
    },
    /// The last lines that one printed
    Log {
        /// The mirror group
        group: String,
        /// The application
        app: String,
        /// How many
        #[arg(long, short = 'n', default_value_t = 50)]
        lines: usize,
    },
}

#[derive(Args, Debug)]
pub struct DefineArgs {
    /// The mirror group, mounted here
    pub group: String,
    /// Definition file of the DBMS
    #[arg(long, value_name = "FILE")]
    pub dbms: Option<PathBuf>,
    /// Where it goes: a path in a volume [default: dbms.toml in the lead volume]
    #[arg(long, value_name = "PATH", requires = "dbms")]
    pub dbms_at: Option<PathBuf>,
    /// Definition file of the application
    #[arg(long, value_name = "FILE")]
    pub application: Option<PathBuf>,
    /// Where it goes: a path in a volume [default: applications.toml in the lead volume]
    #[arg(long, value_name = "PATH", requires = "application")]
    pub application_at: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct AdoptArgs {
    /// The regions of one replica: one for each volume of the group
    #[arg(required = true, value_name = "REGION_DIR")]
    pub regions: Vec<PathBuf>,
    /// Only show the plan; changes nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do it without asking
    #[arg(long, short)]
    pub yes: bool,
    /// Name of this site [default: of the site file, else adopted]
    #[arg(long)]
    pub site: Option<String>,
    /// Where the node keeps its state and its site file [default: /var/lib/kagami/adopted-GROUP]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug, Default)]
#[command(after_help = "\
SIGTERM or SIGINT unmounts, flushes and ends it. $RUST_LOG sets what is logged
(default: info).

Examples:
  kagami -c site.toml node                         in the foreground, log on stderr
  kagami -c site.toml node -d --log-file node.log  in the background; returns when it is up")]
pub struct NodeArgs {
    /// Run in the background; returns when the node answers
    #[arg(long, short, conflicts_with = "boot")]
    pub detach: bool,
    /// Also mount what this site is primary of and start its applications, as `kagami boot` does (for service managers)
    #[arg(long)]
    pub boot: bool,
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
    #[command(after_help = "\
With --no-copy nothing is copied: both sides must be equal already, as when the
secondary was filled from a tape or disk that was shipped there. Names,
attributes and content are compared first, and the pair is created only if all
are equal; what differs is named, and nothing is changed. Nothing may be written
from the time the tape was made.

Examples:
  kagami pair create docs sync
  kagami pair create docs sync --no-copy               compared, not copied
  kagami pair create docs sync --no-copy --no-verify   content not even read")]
    Create {
        /// The mirror group
        group: String,
        /// The pair
        pair: String,
        /// Both sides are equal already: compare them, and copy nothing
        #[arg(long)]
        no_copy: bool,
        /// With --no-copy: do not read the content. Names, sizes and attributes are still compared, but a file whose content
        /// differs stays different at the secondary, unnoticed until `kagami verify` or a takeover
        #[arg(long, requires = "no_copy")]
        no_verify: bool,
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
        /// Without staging, for when its space is missing: all is compared, and until it is done the target is no usable copy
        #[arg(long)]
        in_place: bool,
        /// After a split brain: the site whose version is kept; what the other one changed goes to its manifest
        #[arg(long, value_name = "SITE")]
        keep: Option<String>,
    },
    /// End a pair; its records are dropped, the next create copies everything
    Delete {
        /// The mirror group
        group: String,
        /// The pair
        pair: String,
    },
    /// Change the roles of the two sites of a pair in PAIR: nothing is lost, the volume is unmounted at the primary
    Swap {
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
    /// Print a site file made of a horcm.conf of Hitachi's CCI
    #[command(after_help = "\
What horcm.conf does not say is marked with `# check:`. Convert the files of both
hosts: each names the other site by the address and service of HORCM_INST.

Example:
  kagami config import /etc/horcm0.conf > /etc/kagami/horcm0.toml")]
    Import {
        /// The horcm.conf
        file: PathBuf,
        /// That of another host, for the ports and LUs there; may be given several times
        #[arg(long = "peer", value_name = "FILE")]
        peers: Vec<PathBuf>,
        /// The other host has the primary volumes
        #[arg(long)]
        secondary: bool,
        /// Directory of the regions
        #[arg(long, value_name = "DIR", default_value = "/var/lib/kagami/regions")]
        regions: PathBuf,
    },
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

/// Whether fstab follows.
#[derive(Args, Debug)]
pub struct FstabArgs {
    /// Also write (umount: remove) its line in fstab
    #[arg(long)]
    pub update_fstab: bool,
    /// Which fstab
    #[arg(long, value_name = "FILE", default_value = crate::cli::fstab::FSTAB, requires = "update_fstab")]
    pub fstab: PathBuf,
}
