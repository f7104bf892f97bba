//! Control messages between nodes. Entries travel as frames of their own kind; everything else is a [`Msg`].

use super::op::Target;
use super::{codec, frame, vote};
use crate::base::{DirId, Epoch, Error, LinkId, Name, Result, Seq, VolId, limits, time::Time};
use bincode::{Decode, Encode};

/// Protocol version; a node talks to its predecessor's version as well.
pub const VERSION: u32 = 1;
/// Oldest version understood.
pub const VERSION_OLDEST: u32 = 1;

/// How the receiver's replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum CopyState {
    /// Never copied to.
    Empty,
    /// A first copy (or repair) is under way: not a point of the order.
    Copying,
    /// At one point of the order.
    Consistent,
}

/// A volume as the side with the primary region knows it. Its index is the `VolId` by which every entry of the link names
/// it, with its position, so that each transfer belongs to this port and LU (CD-13).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Offered {
    /// Its name there, for people.
    pub name: String,
    /// Primary port.
    pub port: String,
    /// Primary LU.
    pub lu: u32,
    /// The config definition at its head, encoded: it goes before everything else (CD-5).
    pub head: Option<Vec<u8>>,
}

/// First message, from the side that has the primary region of the pair.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// Protocol version.
    pub version: u32,
    /// Sender's site.
    pub site: String,
    /// Group.
    pub group: String,
    /// Random id of the group.
    pub group_id: u64,
    /// Pair.
    pub pair: String,
    /// Asynchronous pair.
    pub is_async: bool,
    /// Volumes in order.
    pub volumes: Vec<Offered>,
    /// Sender's epoch chain.
    pub chain: Vec<Epoch>,
    /// Sender's position.
    pub head: Seq,
    /// What is wanted.
    pub wish: Wish,
}

/// What a greeting is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Wish {
    /// A link for entries.
    Link,
    /// A welcome or a refusal, and nothing more.
    Ask,
    /// Be primary for the sender, which may have lost something in a power cut; bring it up to date, hand over to it.
    Act,
    /// Be primary: the sender is it no more, and everything up to its position is there.
    Lead,
    /// Hand over to the sender; refused while the mount is in use.
    HandOver,
    /// A look at what the receiver has: a welcome, then answers. No session begins or ends by it.
    Look,
    /// Hand over to the sender; who uses the mount gets errors.
    HandOverNow,
    /// An order for the pair, given at this end, for the other end to carry out (MS-27).
    Order(PairOrder),
    /// Tell how the group stands there: [`Msg::Standing`].
    Tell,
    /// Be primary without mounts until the role goes elsewhere or an order mounts again; with `true` who uses the mount gets
    /// errors.
    Rest(bool),
    /// A link for questions to the voter of the other site.
    Vote,
}

/// What one end of a pair can order the other to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum PairOrder {
    /// At the primary: start the pair.
    Create(Begin),
    /// At the primary: suspend it.
    Split,
    /// At the primary: resume it.
    Resync,
    /// At the primary: end it.
    Delete,
    /// At the secondary: take the role over from the sender, which hands it over.
    Take,
}

/// How a pair that is made begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Begin {
    /// With a first copy.
    Copy,
    /// Both ends are said to be equal: compared, not copied.
    Compare,
    /// The same; for the content the operator's word counts.
    Trust,
}

/// Answer to [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Welcome {
    /// Protocol version that both speak.
    pub version: u32,
    /// Receiver's site.
    pub site: String,
    /// Random id of the group the replica belongs to; 0: none yet.
    pub group_id: u64,
    /// Receiver's epoch chain.
    pub chain: Vec<Epoch>,
    /// Receiver's position: everything up to it is in its tree or log.
    pub head: Seq,
    /// Everything up to here has finished changing its tree (lower than `head` after a crash as primary).
    pub settled: Seq,
    /// Its journal knows every change after this.
    pub journal_after: Seq,
    /// How its replica is.
    pub copy: CopyState,
    /// True: its tree is exactly at `head`, marks of its own do not matter.
    pub exact: bool,
    /// What power cuts may have undone or hidden from its journal.
    pub cuts: Vec<Cut>,
    /// The last of them: its tree is at no point of the order.
    pub torn: bool,
    /// After a split brain: the operator said there that the sender's version is kept (G6).
    pub yields: bool,
}

/// A power cut at the receiver: everything up to `low` was durable; after it anything in these directories may differ
/// (with `true`: and below them).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Cut {
    /// The last checkpoint before it.
    pub low: Seq,
    /// The position after it.
    pub head: Seq,
    /// Directories.
    pub dirs: Vec<(VolId, DirId, bool)>,
    /// Its tree is not brought to a point of the order yet.
    pub open: bool,
}

/// Why a link is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum RejectCode {
    /// Protocol versions do not meet.
    Version,
    /// The peer's key or site is not known.
    UnknownPeer,
    /// No such group or pair here (CD-13).
    UnknownPair,
    /// The replica belongs to another group.
    OtherGroup,
    /// The receiver is primary of a newer epoch: the sender is stale (G3).
    StalePrimary,
    /// Both are primary and neither is newer.
    SplitBrain,
    /// Busy: another link serves this replica, or it is being taken over.
    Busy,
    /// Suspended by the operator at the receiver.
    Paused,
    /// The local replica cannot be used (its reason is in the text).
    Fault,
    /// A volume's config definition does not fit the volume definition table here (CD-5).
    DoesNotFit,
}

/// One name in a listing of the receiver.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Listed {
    /// The name.
    pub name: Vec<u8>,
    /// What it has.
    pub have: Have,
}

/// State of one object at the receiver.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Have {
    /// Type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size, bytes.
    pub size: u64,
    /// Modification time.
    pub mtime: Time,
    /// Device number of a device node.
    pub rdev: u64,
    /// Symlink target.
    pub target: Vec<u8>,
    /// Directory id.
    pub dir: Option<DirId>,
    /// Link id of a file with several links.
    pub lid: Option<LinkId>,
    /// Inode number there: the same for names of one file.
    pub ino: u64,
    /// Number of links.
    pub nlink: u64,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a receiver is asked about one object.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Ask {
    /// Volume.
    pub vol: VolId,
    /// The object, by its present name there.
    pub at: Target,
    /// Byte ranges to hash, in blocks of [`limits::COMPARE_BLOCK_BYTES`].
    pub ranges: Vec<(u64, u64)>,
}

/// The state of one block: `None` for a hole, else the first 16 bytes of its BLAKE3.
pub type BlockHash = Option<[u8; 16]>;

/// Answer to one [`Ask`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Told {
    /// Its state; `None` when it does not exist.
    pub have: Option<Have>,
    /// For each range asked: the blocks up to its end or the end of the file.
    pub blocks: Vec<Vec<BlockHash>>,
}

/// A control message.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Msg {
    /// Opens a link.
    Hello(Hello),
    /// Accepts it.
    Welcome(Welcome),
    /// Refuses it. `chain` and `head` let a stale primary see what it missed.
    Reject { code: RejectCode, text: String, chain: Vec<Epoch>, head: Seq },
    /// Are you there? For the receiver's status: `head`, the sender's position, `unsent`, bytes of the entries up to there
    /// that were not sent before this, `time`, the sender's. `trim`: durable everywhere up to here.
    Ping { head: Seq, trim: Seq, in_pair: bool, unsent: u64, time: Time },
    /// Here. Positions as in `Ack`.
    Pong { received: Seq, durable: Seq, applied: Seq, checkpoint: Seq, confirmed: Option<Time> },
    /// Entries up to `received` survive kill -9 of the receiver, up to `durable` a power cut, up to `applied` are in the tree,
    /// up to `checkpoint` durably. `confirmed`: the tree has everything of this time, by the sender's clock.
    Ack { received: Seq, durable: Seq, applied: Seq, checkpoint: Seq, confirmed: Option<Time> },
    /// The receiver suspends the pair: reason for people (G8).
    Suspend { reason: String },
    /// A resync will start: drain, and tell when ready. `bytes`: estimate of what will be staged.
    Prepare { id: u64, from: Seq, bytes: u64, first_copy: bool },
    /// Ready for the resync.
    Ready { id: u64 },
    /// It does not fit.
    NeedsSpace { id: u64, free: u64 },
    /// Give your journal's records after `since`, and your names of these and their own link ids.
    JournalAsk { since: Seq, lids: Vec<(VolId, LinkId)> },
    /// Part of them, each an encoded `pair::change::Rec`; `last` on the final part.
    JournalPart { recs: Vec<Vec<u8>>, links: Vec<(VolId, LinkId, Vec<Name>)>, last: bool },
    /// Tell me about these objects.
    Query { id: u64, asks: Vec<Ask> },
    /// The answers, in order.
    Answer { id: u64, tolds: Vec<Told> },
    /// List these directories (by id).
    ListAsk { id: u64, vol: VolId, dirs: Vec<DirId> },
    /// Listings in order; `None`: no such directory here. In parts; `last` on the final part.
    ListPart { id: u64, lists: Vec<(DirId, Option<Vec<Listed>>)>, last: bool },
    /// Give your whole directory table.
    DirsAsk { id: u64, vol: VolId },
    /// Part of it: id, parent, name.
    DirsPart { id: u64, dirs: Vec<(DirId, Name)>, last: bool },
    /// End of the first copy: the base is at `base` (chain `epochs`); consistent once entries up to `whole` are applied.
    CopyDone { id: u64, base: Seq, whole: Seq, epochs: Vec<Epoch> },
    /// The resync is given up; forget what was staged.
    Abort { id: u64 },
    /// For a comparison: apply nothing after `at` until released; go on accepting. Sent before any entry after `at`.
    Hold { id: u64, at: Seq },
    /// The tree is exactly at the point (`ok`), or it cannot be held there.
    Held { id: u64, ok: bool },
    /// Go on applying.
    Release { id: u64 },
    /// `kept`: nothing after the point was applied before this.
    Released { id: u64, kept: bool },
    /// The sender's operator suspended the pair (or, `deleted`, ended it): that the link ends is no fault (CD-16).
    Parting { deleted: bool },
    /// Give the paths, from the root of their volume, that these names have in your tree.
    PathsAsk { id: u64, names: Vec<(VolId, Name)> },
    /// The paths, in order; in parts.
    Paths { id: u64, paths: Vec<Vec<u8>> },
    /// How the group stands at the sender: its part of `kagami status --json`.
    Standing { json: Vec<u8> },
    /// To a voter.
    Vote(vote::Ask),
    /// Its answer.
    Voted(vote::Answer),
    /// Look through your tree: everything in it gets an id, nothing else is changed.
    Survey { id: u64 },
    /// It can be addressed as a whole now.
    Surveyed { id: u64 },
    /// In a first copy: these directories of yours, and these names (with our ids of their directories) of files with several
    /// links, are ours by these ids. In parts; `last` on the final part for a volume.
    Same { id: u64, vol: VolId, dirs: Vec<(DirId, DirId)>, links: Vec<(Name, LinkId)>, last: bool },
}

impl Msg {
    /// The message as a frame.
    pub fn frame(&self) -> Result<Vec<u8>> {
        let body = codec::encode(self)?;
        if body.len() > limits::MESSAGE_BYTES_MAX {
            return Err(Error::failed(format!("message of {} bytes is too large", body.len())));
        }
        Ok(frame::build(frame::FrameKind::Msg, &body, b""))
    }

    /// Decodes a checked frame of kind `Msg`, with names validated (G10).
    pub fn parse(frame_bytes: &[u8], head: &frame::Header) -> Result<Msg> {
        if head.len as usize > limits::MESSAGE_BYTES_MAX {
            return Err(Error::corrupt("message too large"));
        }
        if !frame::data_part(frame_bytes, head).is_empty() {
            return Err(Error::corrupt("message: bytes behind it"));
        }
        let mut m: Msg = codec::decode(frame::head_part(frame_bytes, head))?;
        if let Msg::Reject { text: t, .. } | Msg::Suspend { reason: t } = &mut m {
            *t = words(t);
        }
        let target_ok = |t: &Target| match t {
            Target::File(n) => n.is_valid(),
            Target::Dir(_) => true,
        };
        let ok = match &m {
            Msg::Query { asks, .. } => asks.iter().all(|a| target_ok(&a.at)),
            Msg::ListPart { lists, .. } => lists
                .iter()
                .filter_map(|(d, l)| l.as_ref().map(|l| (d, l)))
                .all(|(d, l)| l.iter().all(|e| Name::new(*d, e.name.clone()).is_valid())),
            Msg::PathsAsk { names, .. } => names.iter().all(|(_, n)| n.is_valid()),
            Msg::DirsPart { dirs, .. } => dirs.iter().all(|(_, n)| n.is_valid()),
            Msg::JournalPart { links, .. } => links.iter().all(|(_, _, names)| names.iter().all(Name::is_valid)),
            Msg::Hello(h) => h.is_valid(),
            Msg::Welcome(w) => {
                is_called(&w.site) && [w.head, w.settled, w.journal_after].into_iter().all(Seq::is_valid)
            }
            Msg::Ping { head, trim, .. } => head.is_valid() && trim.is_valid(),
            Msg::CopyDone { base, whole, .. } => base.is_valid() && whole.is_valid(),
            Msg::Vote(a) => is_called(&a.site),
            Msg::Same { links, .. } => links.iter().all(|(n, _)| n.is_valid()),
            _ => true,
        };
        if ok { Ok(m) } else { Err(Error::corrupt("message: a name or a position in it cannot be")) }
    }
}

impl Hello {
    /// Names that can be, and a position: it comes from somebody who is not known yet (G10).
    fn is_valid(&self) -> bool {
        [&self.site, &self.group, &self.pair].into_iter().all(|n| is_called(n))
            && self.volumes.iter().all(|v| is_called(&v.name) && is_called(&v.port))
            && self.head.is_valid()
    }
}

/// True for what a site, a group, a pair or a volume can be called.
fn is_called(name: &str) -> bool {
    name.len() <= limits::NAME_BYTES_MAX && !name.chars().any(char::is_control)
}

/// Words of a peer as they may be shown and kept: of bounded length, without what would steer a terminal (G10).
pub fn words(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(limits::WORDS_BYTES_MAX));
    for c in text.chars() {
        let c = if c.is_control() { ' ' } else { c };
        if out.len() + c.len_utf8() > limits::WORDS_BYTES_MAX {
            break;
        }
        out.push(c);
    }
    out
}
