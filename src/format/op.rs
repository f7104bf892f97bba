//! Entries: one mutation with its sequence number and time, the unit of remote copy and of the redo log.

use super::loss::{self, Lost};
use super::{codec, frame};
use crate::base::{DirId, Epoch, Error, LinkId, Name, Result, Seq, VolId, limits, time::Time};
use bincode::{Decode, Encode};

/// What kind of object a name refers to, with what makes it (symlink target, device number).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum NodeKind {
    /// Regular file.
    File,
    /// Symbolic link with its target.
    Symlink(Vec<u8>),
    /// FIFO.
    Fifo,
    /// Socket.
    Socket,
    /// Character device with its device number.
    Char(u64),
    /// Block device with its device number.
    Block(u64),
}

/// What a new object starts with.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Default)]
pub struct Attr {
    /// Permission bits (07777).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Time,
    /// `system.posix_acl_access`, when the parent's default ACL gave one.
    pub acl_access: Option<Vec<u8>>,
    /// `system.posix_acl_default`, for directories, likewise.
    pub acl_default: Option<Vec<u8>>,
}

/// An object whose attributes or content change.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Target {
    /// A directory, by its id.
    Dir(DirId),
    /// Anything else, by a name it has at this point of the order.
    File(Name),
}

/// `RENAME_NOREPLACE`.
pub const RENAME_NOREPLACE: u32 = 1;
/// `RENAME_EXCHANGE`.
pub const RENAME_EXCHANGE: u32 = 2;

/// Mode bits of fallocate(2) that can be in an entry.
const FALLOCATE_MODES: u32 = 1 | 2 | 8 | 16 | 32;

/// One mutation. Times named `pmtime` are the parent directory's new mtime.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Op {
    /// Make a file, symlink or special file at a free name.
    Create { at: Name, kind: NodeKind, attr: Attr, pmtime: Time },
    /// Make a directory with a group-wide id.
    Mkdir { at: Name, id: DirId, attr: Attr, pmtime: Time },
    /// Give `from`'s object a further name. `lid` is its link id from now on.
    Link { from: Name, to: Name, lid: LinkId, pmtime: Time },
    /// Remove a name of a non-directory.
    Unlink { at: Name, pmtime: Time },
    /// Remove an empty directory.
    Rmdir { at: Name, id: DirId, pmtime: Time },
    /// Rename with `flags` ([`RENAME_NOREPLACE`], [`RENAME_EXCHANGE`]).
    Rename { from: Name, to: Name, flags: u32, from_pmtime: Time, to_pmtime: Time },
    /// Write the entry's data at `off`. `mtime` unset: the file's mtime comes in a later `SetAttr`.
    Write { at: Name, off: u64, mtime: Option<Time> },
    /// Set the size.
    Truncate { at: Name, size: u64, mtime: Option<Time> },
    /// fallocate(2) with its mode bits (KEEP_SIZE 1, PUNCH_HOLE 2, COLLAPSE 8, ZERO_RANGE 16, INSERT 32).
    Fallocate { at: Name, mode: u32, off: u64, len: u64, mtime: Option<Time> },
    /// Change mode, owner, group, times. `atime` is carried for completeness and not compared (G5).
    SetAttr {
        at: Target,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        atime: Option<Time>,
        mtime: Option<Time>,
    },
    /// Set an extended attribute (also the `system.posix_acl_*` ones).
    SetXattr { at: Target, name: Vec<u8>, value: Vec<u8> },
    /// Remove an extended attribute.
    RemoveXattr { at: Target, name: Vec<u8> },
    /// fsync barrier: everything up to here must be durable before the receiver's `durable` passes it.
    Fsync,
    /// A new epoch begins after this entry's predecessor (G3).
    EpochStart { epoch: Epoch },
    /// Nothing; lets lag be seen when the application is silent.
    Heartbeat,
    /// Note a losing version in the manifest of this event; with `at`, keep a copy of that file's present content first (G6).
    Keep { event: u64, at: Option<Name>, lost: Box<Lost> },
    /// The config definition at the head of a volume's region (CD-4).
    ConfigDef { body: Vec<u8> },
}

/// One mutation in its place in the order.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Entry {
    /// Place in the group's one sequence (0 inside a staged resync).
    pub seq: Seq,
    /// Volume of the group.
    pub vol: VolId,
    /// When the primary issued it.
    pub time: Time,
    /// What it does.
    pub op: Op,
}

/// Head of a staged resync in the log: everything up to the commit record applies at once or not at all (A6).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct TxnBegin {
    /// Tells transactions apart.
    pub id: u64,
    /// The receiver's position before.
    pub from: Seq,
    /// The point whose names the staged operations establish; entries after it follow inside the transaction.
    pub base: Seq,
    /// The position up to which receiver and source agreed: earlier than `from` when the receiver had entries of its own.
    pub common: Seq,
}

/// Commit record of a staged resync.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct TxnCommit {
    /// The same id as in [`TxnBegin`].
    pub id: u64,
    /// The receiver's position after.
    pub to: Seq,
    /// The receiver's epoch chain after.
    pub epochs: Vec<Epoch>,
}

impl TxnBegin {
    /// Decodes the record of a checked frame (G10).
    pub fn parse(frame_bytes: &[u8], head: &frame::Header) -> Result<TxnBegin> {
        let b: TxnBegin = codec::decode(frame::head_part(frame_bytes, head))?;
        let alone = frame::data_part(frame_bytes, head).is_empty();
        if !alone || b.id == 0 || ![b.from, b.base, b.common].into_iter().all(Seq::is_valid) {
            return Err(Error::corrupt("begin of a transaction: data, number or positions that cannot be"));
        }
        Ok(b)
    }
}

impl TxnCommit {
    /// Decodes the record of a checked frame (G10). Whether its epochs are a history is for the caller to check.
    pub fn parse(frame_bytes: &[u8], head: &frame::Header) -> Result<TxnCommit> {
        let c: TxnCommit = codec::decode(frame::head_part(frame_bytes, head))?;
        if !frame::data_part(frame_bytes, head).is_empty() || !c.to.is_valid() {
            return Err(Error::corrupt("commit record: data, or a position that cannot be"));
        }
        Ok(c)
    }
}

impl Entry {
    /// The frame of this entry with its data, ready for wire and log.
    pub fn frame(&self, data: &[u8]) -> Result<Vec<u8>> {
        let kind = if self.seq.0 == 0 { frame::FrameKind::Staged } else { frame::FrameKind::Entry };
        Ok(frame::build(kind, &codec::encode(self)?, data))
    }

    /// Decodes the entry of a checked frame and validates every name and length in it (G10).
    pub fn parse(frame_bytes: &[u8], head: &frame::Header) -> Result<Entry> {
        let e: Entry = codec::decode(frame::head_part(frame_bytes, head))?;
        e.validate(frame::data_part(frame_bytes, head).len())?;
        Ok(e)
    }

    fn validate(&self, data_len: usize) -> Result<()> {
        let bad = |what: &str| Err(Error::corrupt(format!("entry {}: {what}", self.seq.0)));
        for n in self.op.names().into_iter().flatten() {
            if !n.is_valid() {
                return bad("a name that is not one path component");
            }
        }
        if data_len > limits::ENTRY_DATA_BYTES_MAX {
            return bad("too much data");
        }
        if !self.seq.is_valid() {
            return bad("no position can be so large");
        }
        // Only what a resync stages is about kagami's own directories.
        if self.seq.0 != 0 && self.op.names().into_iter().flatten().any(|n| n.dir.is_internal()) {
            return bad("a name in a directory of kagami's own");
        }
        match &self.op {
            Op::Write { off, .. } => {
                if data_len == 0 {
                    return bad("a write without data");
                }
                if off.checked_add(data_len as u64).is_none_or(|e| e > i64::MAX as u64) {
                    return bad("a write past the largest file offset");
                }
            }
            _ if data_len != 0 => return bad("data where none belong"),
            Op::Truncate { size, .. } if *size > i64::MAX as u64 => return bad("size"),
            Op::Fallocate { off, len, .. } if off.checked_add(*len).is_none_or(|e| e > i64::MAX as u64) => {
                return bad("fallocate past the largest file offset");
            }
            Op::Fallocate { mode, len, .. } if *len == 0 || mode & !FALLOCATE_MODES != 0 => return bad("fallocate"),
            Op::Rename { flags, .. } if *flags > RENAME_EXCHANGE => return bad("flags of a rename"),
            Op::SetAttr { at: Target::Dir(d), .. }
            | Op::SetXattr { at: Target::Dir(d), .. }
            | Op::RemoveXattr { at: Target::Dir(d), .. }
                if d.is_internal() =>
            {
                return bad("attributes of a directory of kagami's own");
            }
            Op::EpochStart { epoch } if !epoch.is_valid() || epoch.parent >= self.seq => return bad("epoch"),
            Op::Create { kind: NodeKind::Symlink(t), .. }
                if t.is_empty() || t.len() > limits::SYMLINK_BYTES_MAX || t.contains(&0) =>
            {
                return bad("symlink target");
            }
            Op::Mkdir { id, .. } | Op::Rmdir { id, .. } if id.0 < DirId::FIRST_FREE => {
                return bad("reserved directory id");
            }
            Op::SetXattr { name, value, .. }
                if value.len() > limits::XATTR_BYTES_MAX
                    || name.is_empty()
                    || name.len() > 255
                    || name.contains(&0) =>
            {
                return bad("extended attribute");
            }
            Op::Keep { lost, .. } if !lost.is_valid() => return bad("a losing version's path or attributes"),
            op if op.names().into_iter().flatten().any(|n| n.dir == DirId::LOST && !loss::is_kept_name(&n.name)) => {
                return bad("name of a kept version");
            }
            Op::RemoveXattr { name, .. } if name.is_empty() || name.len() > 255 || name.contains(&0) => {
                return bad("extended attribute name");
            }
            _ => {}
        }
        Ok(())
    }
}

impl Op {
    /// The names an operation involves.
    pub fn names(&self) -> [Option<&Name>; 2] {
        match self {
            Op::Create { at, .. }
            | Op::Mkdir { at, .. }
            | Op::Unlink { at, .. }
            | Op::Rmdir { at, .. }
            | Op::Write { at, .. }
            | Op::Truncate { at, .. }
            | Op::Fallocate { at, .. } => [Some(at), None],
            Op::Keep { at, .. } => [at.as_ref(), None],
            Op::Link { from, to, .. } | Op::Rename { from, to, .. } => [Some(from), Some(to)],
            Op::SetAttr { at, .. } | Op::SetXattr { at, .. } | Op::RemoveXattr { at, .. } => match at {
                Target::File(n) => [Some(n), None],
                Target::Dir(_) => [None, None],
            },
            Op::Fsync | Op::EpochStart { .. } | Op::Heartbeat | Op::ConfigDef { .. } => [None, None],
        }
    }

    /// True for operations that change which names exist.
    pub fn is_namespace(&self) -> bool {
        matches!(
            self,
            Op::Create { .. }
                | Op::Mkdir { .. }
                | Op::Link { .. }
                | Op::Unlink { .. }
                | Op::Rmdir { .. }
                | Op::Rename { .. }
        )
    }
}
