//! The procedures over several sites on the command line.

use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// What all of them have.
#[derive(Args, Debug)]
pub struct ProcedureArgs {
    /// The mirror group
    pub group: String,
    /// Only say what would be done and what could be lost
    #[arg(long)]
    pub dry_run: bool,
    /// Mount the lead volume at this directory
    #[arg(long, value_name = "DIR")]
    pub at: Option<PathBuf>,
    /// End after this step (`--dry-run` names them); the same order without it goes on
    #[arg(long, value_name = "STEP", conflicts_with = "dry_run")]
    pub stop_after: Option<String>,
    /// Give up when one step takes more seconds than this
    #[arg(long, value_name = "S", default_value_t = 3600)]
    pub timeout: u64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `kagami takeover`.
#[derive(Args, Debug)]
#[command(after_help = "\
It refuses (exit 4) while the other site's link is up, and where a power cut here
may have taken something that no peer has brought back yet, unless --force is
given; and where the copy here was never complete. With takeover = \"auto\" it also
refuses without a majority of the three voters; by force it needs none, and where
another site still runs as primary both then accept writes. What may be lost
otherwise is not in the way: --dry-run says what is known of it. --handover refuses
while the mount at the primary is in use, and says by whom; with --force that is ended.
When the volume is mounted it waits for the third site; Ctrl-C then ends only
the waiting. Interrupted, it goes on when it is ordered again.

Examples:
  kagami takeover lab --dry-run     the plan, the possible loss, what forbids it; changes nothing
  kagami takeover lab               do it, mount where the site file says
  kagami takeover lab --at /mnt     do it, mount the lead volume at /mnt
  kagami takeover lab --with-data-of sync   first bring this site to what site sync has
  kagami takeover lab --handover    the primary, which runs, gives its role to this site")]
pub struct TakeoverArgs {
    #[command(flatten)]
    pub common: ProcedureArgs,
    /// Do it although the old primary may be alive, data may be lost, or its mount is in use (--handover)
    #[arg(long)]
    pub force: bool,
    /// The primary, which runs, gives its role away in order: nothing is lost, the volume is unmounted there
    #[arg(long, conflicts_with_all = ["dry_run", "with_data_of", "stop_after"])]
    pub handover: bool,
    /// On the data of this site, which may have more, and with its copy in step before anything is mounted
    #[arg(long, value_name = "SITE")]
    pub with_data_of: Option<String>,
}

/// Which pair is made first on the way back.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum First {
    Sync,
    Async,
}

/// `kagami failback`.
#[derive(Args, Debug)]
#[command(after_help = "\
It is ordered at the site that the group names as its primary. Of the two ways it
takes the cheapest that is valid, and says why: the primary is brought level while
the application runs, or the application stops first. Nothing is lost in either.
Interrupted, it goes on when it is ordered again.

Examples:
  kagami failback lab --dry-run                  the steps, and why these
  kagami failback lab
  kagami failback lab --first async --start-last stop first, start when both pairs are in step")]
pub struct FailbackArgs {
    #[command(flatten)]
    pub common: ProcedureArgs,
    /// The pair that is made first; the one by which the role does not come back stops the application first
    #[arg(long)]
    pub first: Option<First>,
    /// The application stops first, and starts when both pairs are in PAIR: least copied, longest down
    #[arg(long)]
    pub start_last: bool,
    /// End what uses the mount that goes, instead of refusing
    #[arg(long)]
    pub force: bool,
}

/// `kagami swap`.
#[derive(Args, Debug)]
#[command(after_help = "\
It is ordered at the site that gets the role, or at the primary. It is refused while
something is open in the volume, and says by whom. Interrupted, it goes on when it
is ordered again.

Examples:
  kagami swap lab               at the site that gets the role
  kagami swap lab --to async --dry-run")]
pub struct SwapArgs {
    #[command(flatten)]
    pub common: ProcedureArgs,
    /// The site that gets the role [default: this one]
    #[arg(long, value_name = "SITE")]
    pub to: Option<String>,
    /// End what uses the mount that goes, instead of refusing (where this site gets the role)
    #[arg(long)]
    pub force: bool,
}
