//! Losing versions (G6): what one side changed and the other side's history did not keep, as the loss manifest has it.
//!
//! A manifest is a file of records: the [`Event`], then one [`Lost`] for each object.

use super::{codec, file};
use crate::base::{Epoch, Error, Name, Result, Seq, VolId, limits, time::Time};
use bincode::{Decode, Encode};

/// Magic of a manifest.
pub const MAGIC: &[u8; 8] = b"KGMLOSS\0";
/// Version of its format.
pub const VERSION: u32 = 1;
/// Longest path in a record, bytes.
const PATH_BYTES_MAX: usize = 64 << 10;
/// Extended attributes of an object, count.
const XATTRS_MAX: usize = 4096;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Cause {
    /// This replica had entries of its own after the last common position, and a resync set them back.
    SetBack,
    /// The group was taken over here; what the old primary wrote last may never have arrived.
    NeverArrived,
    /// As `SetBack`, but cut short by a power cut or a copy of everything: the list may not be complete.
    CutShort,
    /// A copy of everything replaced a replica that had entries of its own; nothing of it could be kept.
    Overwritten,
    /// A primary lost power and went on alone with what its disk had kept: what it alone knew is lost.
    PowerCut,
}

/// One event: the head of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Event {
    /// Random id.
    pub id: u64,
    /// When.
    pub time: Time,
    /// What happened.
    pub cause: Cause,
    /// The last position that both histories have; for [`Cause::NeverArrived`] the last one here, for [`Cause::PowerCut`]
    /// the one up to which nothing is lost.
    pub common: Seq,
    /// The last position of the losing history, as far as it is known.
    pub head: Seq,
    /// The epoch that lost.
    pub lost: Option<Epoch>,
    /// The epoch that won.
    pub won: Option<Epoch>,
    /// For [`Cause::NeverArrived`]: the last time that something of the old primary was heard; for [`Cause::PowerCut`]: that
    /// of the last checkpoint.
    pub since: Option<Time>,
    /// For people.
    pub words: String,
    /// Number of objects.
    pub objects: u64,
    /// Content kept, bytes.
    pub bytes: u64,
}

/// What was lost of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Part {
    /// It exists on the losing side only.
    Created,
    /// Its content.
    Content,
    /// Mode, owner, times or extended attributes.
    Attributes,
    /// Its name: the losing side had renamed it.
    Name,
    /// The losing side had removed it; it is back.
    Removed,
    /// It is known only that it was changed ([`Cause::NeverArrived`]).
    Changed,
    /// A further name that the losing side had given it.
    Link,
}

/// One object of a manifest, as it was on the losing side.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Lost {
    /// Its number in the event.
    pub n: u32,
    /// Its volume.
    pub vol: VolId,
    /// Its path from the volume's root on the losing side; of something removed there, where it is now.
    pub path: Vec<u8>,
    /// What was lost of it.
    pub what: Vec<Part>,
    /// Where it is in the winning tree, if it is there by another path.
    pub now: Option<Vec<u8>>,
    /// Its version is kept, see [`kept_name`].
    pub kept: bool,
    /// Type and permission bits; 0: not known.
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
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Lost {
    /// Checks one from disk or a peer: its paths cannot reach outside a tree, its parts have a bound (G10).
    pub fn is_valid(&self) -> bool {
        let xattr = |(k, v): &(Vec<u8>, Vec<u8>)| {
            !k.is_empty() && k.len() <= 255 && !k.contains(&0) && v.len() <= limits::XATTR_BYTES_MAX
        };
        is_path(&self.path)
            && self.now.as_ref().is_none_or(|p| is_path(p))
            && self.target.len() <= limits::SYMLINK_BYTES_MAX
            && !self.target.contains(&0)
            && self.xattrs.len() <= XATTRS_MAX
            && self.xattrs.iter().all(xattr)
    }
}

/// A path from a volume's root, each part one component. Empty: the root itself.
fn is_path(p: &[u8]) -> bool {
    let one = |c: &[u8]| Name::new(crate::base::DirId::ROOT, c).is_valid();
    p.len() <= PATH_BYTES_MAX && (p.is_empty() || p.split(|b| *b == b'/').all(one))
}

/// The name of a kept version in the lost area of its volume's region.
pub fn kept_name(event: u64, n: u32) -> Vec<u8> {
    format!("{event:016x}.{n}").into_bytes()
}

/// True for what [`kept_name`] makes: a peer can put nothing else into the lost area (G10).
pub fn is_kept_name(name: &[u8]) -> bool {
    let Some((id, n)) = name.split_at_checked(16) else { return false };
    let n = n.strip_prefix(b".").unwrap_or(b"");
    id.iter().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
        && (1..=10).contains(&n.len())
        && n.iter().all(u8::is_ascii_digit)
}

/// A whole manifest.
pub fn manifest(event: &Event, lost: &[Lost]) -> Result<Vec<u8>> {
    let mut out = file::header(MAGIC, VERSION).to_vec();
    file::put_record(&mut out, &codec::encode(event)?);
    for l in lost {
        file::put_record(&mut out, &codec::encode(l)?);
    }
    Ok(out)
}

/// Reads a manifest back. It is replaced as a whole, so a torn one is damaged.
pub fn parse(bytes: &[u8], what: &str) -> Result<(Event, Vec<Lost>)> {
    let (event, mut records) = begin(bytes, what)?;
    let mut lost = Vec::new();
    for r in records.by_ref() {
        lost.push(decode(r, what)?);
    }
    if records.torn || lost.len() as u64 != event.objects {
        return Err(Error::corrupt(format!(
            "{what}: {} of {} objects are readable; the kept versions lie beside it",
            lost.len(),
            event.objects
        )));
    }
    Ok((event, lost))
}

/// Reads the event of a manifest alone; `bytes` may end anywhere after it.
pub fn parse_event(bytes: &[u8], what: &str) -> Result<Event> {
    begin(bytes, what).map(|(e, _)| e)
}

fn begin<'a>(bytes: &'a [u8], what: &str) -> Result<(Event, file::Records<'a>)> {
    file::check_header(bytes, MAGIC, VERSION, what)?;
    let mut records = file::Records::new(bytes.get(file::HEADER_BYTES..).unwrap_or(&[]));
    let first = records.next().ok_or_else(|| Error::corrupt(format!("{what}: its event is not readable")))?;
    Ok((codec::decode(first).map_err(|e| e.context(what))?, records))
}

/// One object from its record.
pub fn decode(record: &[u8], what: &str) -> Result<Lost> {
    let l: Lost = codec::decode(record).map_err(|e| e.context(what))?;
    if l.is_valid() { Ok(l) } else { Err(Error::corrupt(format!("{what}: a path or attribute that cannot be"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(objects: u64) -> Event {
        Event {
            id: 7,
            time: Time::default(),
            cause: Cause::SetBack,
            common: Seq(3),
            head: Seq(9),
            lost: None,
            won: None,
            since: None,
            words: String::new(),
            objects,
            bytes: 5,
        }
    }

    fn lost(path: &str) -> Lost {
        Lost { path: path.into(), what: vec![Part::Content], kept: true, ..Lost::default() }
    }

    #[test]
    fn a_manifest_is_whole_or_damaged() {
        let all = vec![lost("a"), lost("dir/b")];
        let bytes = manifest(&event(2), &all).unwrap();
        assert_eq!(parse(&bytes, "m").unwrap(), (event(2), all));
        let head = bytes.len() - 40;
        for cut in 0..bytes.len() {
            assert!(parse(&bytes[..cut], "m").is_err(), "cut at {cut}");
            if cut >= head {
                assert_eq!(parse_event(&bytes[..cut], "m").unwrap(), event(2));
            }
        }
        for i in 0..bytes.len() {
            let mut b = bytes.clone();
            b[i] ^= 4;
            assert!(parse(&b, "m").is_err(), "byte {i}");
        }
    }

    /// G10: nothing in a record reaches outside a tree.
    #[test]
    fn paths_stay_below_the_root() {
        for bad in ["/a", "a/", "a//b", "..", "a/../b", "./a", "a\0b"] {
            assert!(!lost(bad).is_valid(), "{bad:?}");
            assert!(!Lost { now: Some(bad.into()), ..lost("a") }.is_valid(), "{bad:?}");
            assert!(manifest(&event(1), &[lost(bad)]).and_then(|b| parse(&b, "m")).is_err(), "{bad:?}");
        }
        for good in ["", "a", "a/b/...", "with space"] {
            assert!(lost(good).is_valid(), "{good:?}");
        }
    }

    #[test]
    fn kept_names_are_known() {
        assert!(is_kept_name(&kept_name(u64::MAX, u32::MAX)) && is_kept_name(&kept_name(0, 0)));
        for bad in ["", "0000000000000001", "0000000000000001.", "0000000000000001.loss", "000000000000000A.1", "..1"] {
            assert!(!is_kept_name(bad.as_bytes()), "{bad}");
        }
    }
}
