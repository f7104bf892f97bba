//! Records of the change journal: what a region issued or received, without the data (MS-5, MS-18, G4).
//!
//! A journal is an ordered list of [`Rec`]s. Records of names (`Change::Ns`) are exact: one for every operation, in order.
//! Marks of content and attributes are conservative: once a range of a file is marked in an interval, further writes to
//! it in the same interval add nothing; so a mark says "changed at some time in this interval". A mark names the file by
//! a name it had when the mark was made; later `Ns` records tell where that file went.

use crate::base::{DirId, Error, LinkId, Name, Result, Seq, VolId};
use crate::format::codec;
use crate::format::op::Target;
use bincode::{Decode, Encode};

/// What a name refers to, as far as identity matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum What {
    /// A directory with its group-wide id.
    Dir(DirId),
    /// A file (or symlink, special file) with one link.
    File,
    /// A file with several links.
    Linked(LinkId),
}

/// A change of names.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum NsChange {
    /// A new file, symlink or special file.
    Create { at: Name },
    /// A new directory.
    Mkdir { at: Name, id: DirId },
    /// A further name for the object at `from`, which has the link id `lid` from now on.
    Link { from: Name, to: Name, lid: LinkId },
    /// A name of a non-directory is gone. `what` is what it was.
    Unlink { at: Name, what: What },
    /// A directory is gone.
    Rmdir { at: Name, id: DirId },
    /// `from` (which was `moved`) is now `to`. `over` is what `to` was before: replaced, or with `exchange` now at `from`.
    Rename { from: Name, to: Name, moved: What, over: Option<What>, exchange: bool },
}

/// One thing that changed.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Change {
    /// Names.
    Ns(NsChange),
    /// Content in `from..to` (`to` = `u64::MAX`: to the end of the file, the size changed as well).
    Data { at: Name, what: What, from: u64, to: u64 },
    /// Attributes, times or extended attributes.
    Attr { at: Target, what: What },
}

/// One record of the change journal.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Rec {
    /// Position of the entry that made the record.
    pub seq: Seq,
    /// Volume of the group.
    pub vol: VolId,
    /// What changed.
    pub change: Change,
}

impl Rec {
    /// Decodes a record from disk or a peer. Each name in it is one path component, and its position can be (G10): what is
    /// planned from it is read and written by these names.
    pub fn parse(bytes: &[u8]) -> Result<Rec> {
        let r: Rec = codec::decode(bytes)?;
        let names = match &r.change {
            Change::Ns(ns) => ns.names(),
            Change::Data { at, .. } | Change::Attr { at: Target::File(at), .. } => [Some(at), None],
            Change::Attr { at: Target::Dir(_), .. } => [None, None],
        };
        match names.into_iter().flatten().all(Name::is_valid) && r.seq.is_valid() {
            true => Ok(r),
            false => Err(Error::corrupt("journal record: a name or a position in it cannot be")),
        }
    }
}

impl NsChange {
    /// The names a change involves. Marks for these are no longer spared by earlier ones of the interval.
    pub fn names(&self) -> [Option<&Name>; 2] {
        match self {
            NsChange::Create { at }
            | NsChange::Mkdir { at, .. }
            | NsChange::Unlink { at, .. }
            | NsChange::Rmdir { at, .. } => [Some(at), None],
            NsChange::Link { from, to, .. } | NsChange::Rename { from, to, .. } => [Some(from), Some(to)],
        }
    }
}
