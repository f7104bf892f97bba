//! The arguments of `kagami lab` and `kagami demo`.

use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

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
