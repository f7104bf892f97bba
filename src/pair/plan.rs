//! The exact resync plan: from the journals of both replicas to the steps that make the target equal to the source
//! (MS-5, G4, G6). Nothing walks a tree; the cost grows with the records.
//!
//! At position P (`common`) both trees were identical. Each side's records are replayed on a model that knows only the
//! names they mention (`plan_sim`); what a record finds at a name nobody has mentioned before was there already. So each
//! side tells, for every name it touched, what was there at P and what is there now. A name which one side did not touch
//! still is on that side what it was at P, and the other side tells what that was. Objects are matched by what they were
//! at P: a directory by its id, a file by its name at P, a file with several links by any of its names and its link id.
//!
//! ```text
//! source's records ─▶ replay ─▶ at P, now ─┐
//!                                          ├─▶ for each object: names wanted, names found ─▶ steps, content to compare
//! target's records ─▶ replay ─▶ at P, now ─┘
//! ```
//!
//! Steps run in this order, so that cycles of renames need no thought: everything that moves or goes is parked flat in
//! [`DirId::STAGING`]; what nobody wants is discarded (a directory has nothing left in it by then: each name below it was
//! touched on one of the sides); new objects are made in staging; everything gets its place; further links follow.
//!
//! # What the journals must keep to
//!
//! - `Ns` records are exact and in order. An operation that failed after its record was made is taken back by a record.
//! - A link id stays with its object until its last name goes, also while only one name is left.
//! - Both journals and both [`Links`] are of one point of their side.
//! - What a resync itself does on a target belongs to an interval that ends with it.

use super::change::{Change, NsChange, Rec, What};
use super::plan_build;
use super::plan_sim::Sim;
use super::ranges::Ranges;
use crate::base::{DirId, Error, LinkId, Name, Result, Seq, VolId};
use bincode::{Decode, Encode};
use std::collections::{BTreeMap, BTreeSet};

/// The names of files with several links, as a region's link table has them now.
pub type Links = BTreeMap<(VolId, LinkId), Vec<Name>>;

/// What a plan is made from.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The winning side's records, from the start of an interval at or before `common`.
    pub source: &'a [Rec],
    /// The other side's, likewise; the two may start at different places.
    pub target: &'a [Rec],
    /// P: a position at which both trees were identical; the last one for which both journals can tell. It is `agreed`,
    /// unless one side passed over that in one step (a resync), with no point in between.
    pub common: Seq,
    /// The last position on both chains: what the target made after it is its own and must not be lost (G6).
    pub agreed: Seq,
    /// The last position on the target. If it is `agreed` the target made nothing of its own.
    pub target_head: Seq,
    /// The source's names of every id in [`link_ids`] of its records; an id without names is absent. More does no harm.
    pub source_links: &'a Links,
    /// The target's, likewise.
    pub target_links: &'a Links,
}

/// Primitive steps on the target's tree, to be carried out in order. No step follows a symlink or replaces anything:
/// the name it makes is free.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Step {
    /// Rename into staging.
    Park { vol: VolId, from: Name, parked: Name },
    /// Remove a name of a file that has another one.
    DropName { vol: VolId, at: Name },
    /// Make a directory with this id in staging. Its attributes come at the end ([`Plan::dirs`]).
    MakeDir { vol: VolId, id: DirId, parked: Name },
    /// Make a file, symlink or special file like the source's `source` in staging. A [`ContentTask`] fills it.
    MakeFile { vol: VolId, source: Name, parked: Name },
    /// Rename out of staging.
    Place { vol: VolId, parked: Name, to: Name },
    /// Give the file at `from` a further name; its link id is `lid` from now on.
    LinkMore { vol: VolId, from: Name, to: Name, lid: LinkId },
    /// Remove a parked object, or with `keep` (its place in [`Plan::lost`]) move it to [`DirId::LOST`]: the target changed
    /// it after P and nobody else has that version (G6). A directory is empty and is never kept: what was in it is kept
    /// file by file.
    Discard { vol: VolId, parked: Name, what: What, keep: Option<u32> },
}

/// Which bytes of a file to compare and copy.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Extent {
    /// All: the target did not have the file.
    Whole,
    /// These; none if only attributes may differ.
    Ranges(Ranges),
}

/// A file whose content or attributes may differ.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ContentTask {
    /// Volume of the group.
    pub vol: VolId,
    /// A name of it on the source now.
    pub source: Name,
    /// A name of it on the target before the first step, for comparing; none for a new file.
    pub target_now: Option<Name>,
    /// The same file's name on the target after the last step.
    pub target_after: Name,
    /// Bytes to compare.
    pub extent: Extent,
    /// True if attributes, times and extended attributes are to be compared as well. Set with every range: a write
    /// changes the mtime and may drop set-id bits.
    pub attrs: bool,
    /// Its place in [`Plan::lost`], if the target itself may have changed it after P.
    pub lost: Option<u32>,
}

/// An object of which the target may lose something of its own (G6).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LostObject {
    /// Volume of the group.
    pub vol: VolId,
    /// Its id, for a directory.
    pub dir: Option<DirId>,
    /// The target made it after P.
    pub own: bool,
    /// The target may have changed its content: what is overwritten must be kept.
    pub data: bool,
    /// The target may have changed its attributes.
    pub attrs: bool,
    /// Its names on the target before the first step.
    pub found: Vec<Name>,
    /// Its names at P.
    pub was: Vec<Name>,
    /// Its names after the last step.
    pub wanted: Vec<Name>,
}

/// What a plan will do, for status and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Counts {
    /// Files and directories that move (one park and one place each).
    pub renames: u64,
    /// Directories made.
    pub dirs_made: u64,
    /// Files made.
    pub files_made: u64,
    /// Further names made.
    pub links_made: u64,
    /// Further names removed.
    pub names_dropped: u64,
    /// Objects removed, with those kept.
    pub discarded: u64,
    /// Objects moved to [`DirId::LOST`].
    pub kept: u64,
    /// Files whose content or attributes must be compared or copied.
    pub files_examined: u64,
}

/// What makes the target equal to the source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Plan {
    /// Changes of names, in order.
    pub ns: Vec<Step>,
    /// Files to compare and copy, in any order.
    pub content: Vec<ContentTask>,
    /// Directories that exist on the source and whose attributes and mtime are to be set from it at the very end.
    pub dirs: Vec<(VolId, DirId)>,
    /// What the target may have of its own, that the source does not have so.
    pub lost: Vec<LostObject>,
    /// Directories that stay, whose attributes the target may have changed after P.
    pub lost_dirs: Vec<(VolId, DirId)>,
    /// The sums.
    pub counts: Counts,
}

impl Plan {
    /// Checks a plan that a peer made: names are single components, what is parked lies in staging and nothing else does,
    /// ids are not reserved, ranges are sorted. Errors are [`crate::base::Kind::Corrupt`] (G10).
    pub fn validate(&self) -> Result<()> {
        let good = |n: &Name| n.is_valid() && !n.dir.is_internal();
        let inside = |n: &Name| n.is_valid() && n.dir == DirId::STAGING;
        let steps = self.ns.iter().all(|s| match s {
            Step::Park { from, parked, .. } => good(from) && inside(parked),
            Step::DropName { at, .. } => good(at),
            Step::MakeDir { id, parked, .. } => id.0 >= DirId::FIRST_FREE && inside(parked),
            Step::MakeFile { source, parked, .. } => good(source) && inside(parked),
            Step::Place { parked, to, .. } => inside(parked) && good(to),
            Step::LinkMore { from, to, .. } => good(from) && good(to),
            Step::Discard { parked, .. } => inside(parked),
        });
        let content = self.content.iter().all(|c| {
            let ranges = if let Extent::Ranges(r) = &c.extent { r.validate().is_ok() } else { true };
            good(&c.source) && good(&c.target_after) && c.target_now.as_ref().is_none_or(good) && ranges
        });
        if steps && content && !self.dirs.iter().any(|(_, d)| d.is_internal()) {
            return Ok(());
        }
        Err(Error::corrupt("resync plan: a name, id or range that cannot be"))
    }

    /// True if there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.ns.is_empty() && self.content.is_empty() && self.dirs.is_empty()
    }
}

/// Every link id the records mention. The names that the same side has of them are needed for a plan, because a journal
/// does not tell whether a file whose one name was removed has others.
pub fn link_ids(recs: &[Rec]) -> BTreeSet<(VolId, LinkId)> {
    let mut out = BTreeSet::new();
    for r in recs {
        let mut add = |w: &What| {
            if let What::Linked(lid) = w {
                out.insert((r.vol, *lid));
            }
        };
        match &r.change {
            Change::Data { what, .. } | Change::Attr { what, .. } => add(what),
            Change::Ns(NsChange::Unlink { what, .. }) => add(what),
            Change::Ns(NsChange::Link { lid, .. }) => add(&What::Linked(*lid)),
            Change::Ns(NsChange::Rename { moved, over, .. }) => {
                add(moved);
                over.iter().for_each(add);
            }
            Change::Ns(NsChange::Create { .. } | NsChange::Mkdir { .. } | NsChange::Rmdir { .. }) => {}
        }
    }
    out
}

/// Makes the plan. Fails with [`crate::base::Kind::Corrupt`] if a journal contradicts itself or the other one about P:
/// then only a full comparison (verify) can help.
pub fn plan(input: &Input) -> Result<Plan> {
    let vols: BTreeSet<VolId> = input.source.iter().chain(input.target).map(|r| r.vol).collect();
    let mut out = Plan::default();
    for vol in vols {
        let source = Sim::replay(vol, input.source, input.common, input.agreed, input.source_links)
            .map_err(|e| e.context(format!("source's journal, volume {}", vol.0)))?;
        let target = Sim::replay(vol, input.target, input.common, input.agreed, input.target_links)
            .map_err(|e| e.context(format!("target's journal, volume {}", vol.0)))?;
        let diverged = input.target_head > input.agreed || input.target.iter().any(|r| r.seq > input.agreed);
        plan_build::build(vol, &source, &target, diverged, &mut out)?;
    }
    Ok(out)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
