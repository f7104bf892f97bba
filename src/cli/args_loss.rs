//! The arguments of `kagami loss`.

use clap::Subcommand;
use std::path::PathBuf;

#[derive(Subcommand, Debug)]
#[command(after_help = "\
When the histories of two sites part, one of them wins. What the other one had
changed is set back there, and kept until it is dropped: an event, with one line
for each object that was changed. The first digits of an event's id are enough.

Examples:
  kagami loss list                          the events at this site
  kagami loss show 3f9a                     what one of them lists
  kagami loss restore 3f9a --to /tmp/back   copies of the losing versions
  kagami loss restore 3f9a dir/file         beside the present file: dir/file.lost-3f9a21bc
  kagami loss drop 3f9a                     free the space")]
pub enum LossCommand {
    /// The events, oldest first
    List {
        /// Only of this group
        group: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// The objects of an event
    Show {
        /// The first digits of its id
        event: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Bring losing versions back; the event stays
    Restore {
        /// The first digits of its id
        event: String,
        /// Only these paths and what is below them, from the volume's root
        #[arg(value_name = "PATH")]
        paths: Vec<PathBuf>,
        /// Into this directory, instead of beside the present files of the mounted volume
        #[arg(long, value_name = "DIR", conflicts_with = "replace")]
        to: Option<PathBuf>,
        /// In place of the present files of the mounted volume
        #[arg(long)]
        replace: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Drop an event and what it keeps, for good
    Drop {
        /// The first digits of its id
        event: Option<String>,
        /// All events of this site
        #[arg(long)]
        all: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}
