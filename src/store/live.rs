//! The live page: what must survive kill -9 at every single operation, without a system call.
//!
//! ```text
//! .kagami/live, 256 KiB, mapped shared:
//!    0 magic "KGMLIVE\0"      8 version u64        16 clean u64 (1 = closed in order)
//!   24 boot id (16 bytes)    40 last_seq u64      48 settled u64
//!   56 applied_lsn u64       64 applied_seq u64   72 intent (len u32 | crc u32 as one u64; 0 = none)
//!   80 txn_from u64         88 txn_to u64 (0 = not inside a staged resync)
//!  296 check of each of the numbers at 40 to 88     1024 the numbers again     1280 their checks
//! 4096 intent body: an encoded [`Intent`]
//! ```
//! A number and its check are stored at both places, one after the other: kill -9 leaves at least one of them whole, and
//! a flipped bit is healed, or noticed when both are hit. A number is in one sector with its check: a disk writes that as a
//! whole, so a power cut in the middle of the page leaves both places whole, if not of the same time. (Version 1 had the
//! checks at 512 and 1536, where that was not so; it is read, and written anew.)
//! After a power cut the page may be older or newer than the tree: the boot id tells. See [`super::power`].

use super::exec::Pre;
use crate::base::{At, Error, Result, Seq, VolId};
use crate::format::codec;
use crate::format::op::Op;
use crate::os::map::{Page, Watched};
use crate::os::sys;
use bincode::{Decode, Encode};
use std::path::Path;

const MAGIC: u64 = u64::from_le_bytes(*b"KGMLIVE\0");
const VERSION: u64 = 2;
/// Had the checks in other sectors.
const VERSION_SPLIT: u64 = 1;
const BYTES: usize = 256 << 10;
const BODY: usize = 4096;
const O_MAGIC: usize = 0;
const O_VERSION: usize = 8;
const O_CLEAN: usize = 16;
const O_BOOT: usize = 24;
const O_LAST: usize = 40;
const O_SETTLED: usize = 48;
const O_APPLIED_LSN: usize = 56;
const O_APPLIED_SEQ: usize = 64;
const O_INTENT: usize = 72;
const O_TXN_FROM: usize = 80;
const O_TXN_TO: usize = 88;
/// The numbers that are checked.
const NUMBERS: [usize; 7] = [O_LAST, O_SETTLED, O_APPLIED_LSN, O_APPLIED_SEQ, O_INTENT, O_TXN_FROM, O_TXN_TO];
/// From a number to its check.
const CHECK: usize = 256;
/// The same in a page of version 1.
const CHECK_SPLIT: usize = 512;
/// From a number to its copy.
const SECOND: usize = 1024;

/// An operation on names that is being executed.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Intent {
    /// Its place in the order.
    pub seq: Seq,
    /// Volume.
    pub vol: VolId,
    /// At a receiver: where the log goes on after it; 0 at a primary.
    pub next_lsn: u64,
    /// The operation.
    pub op: Op,
    /// Identities before it.
    pub pre: Pre,
}

/// How the replica was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Closed in order, or new.
    Clean,
    /// The process ended without closing; the page cache survived, so everything that was done is there.
    Killed,
    /// The machine went down: what was not synced may be lost.
    PowerLoss,
}

/// The drive below a page that is open.
#[derive(Clone, Copy, Debug)]
pub struct Drive(Watched);

impl Drive {
    /// See [`Live::kept`].
    pub fn kept(&self) -> Result<()> {
        match self.0.lost() {
            true => Err(Error::os(libc::EROFS).context("the drive takes no more writes")),
            false => Ok(()),
        }
    }
}

/// The mapped page.
pub struct Live {
    page: Page,
}

impl Live {
    /// Opens the page, tells how it was left, and marks it in use. Makes it where there is none, if it
    /// `may_be_new`: a page that got lost must not look like a beginning.
    pub fn open(path: &Path, may_be_new: bool) -> Result<(Live, Left)> {
        let what = path.display();
        let file = std::fs::OpenOptions::new().read(true).write(true).create(may_be_new).truncate(false).open(path);
        let file = match file {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::corrupt(format!("{what}: missing, of a replica that was in use")));
            }
            r => r.at(&what)?,
        };
        let fresh = file.metadata().at(&what)?.len() < BYTES as u64;
        if fresh && !may_be_new {
            return Err(Error::corrupt(format!("{what}: cut short")));
        }
        if fresh {
            // Storing to a hole of a mapped file on a full disk would kill the process.
            crate::os::sys::fallocate(&file, 0, 0, BYTES as u64).or_else(|_| file.set_len(BYTES as u64)).at(&what)?;
        }
        // A store into a hole of a full disk would kill the process.
        match sys::fallocate(&file, 0, 0, BYTES as u64) {
            Err(e) if !matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) => {
                return Err(Error::from(e).context(&what));
            }
            _ => {}
        }
        let mut page = Page::map(&file, BYTES).at(&what)?;
        let boot = boot_id();
        let left = if page.load_u64(O_MAGIC) == 0 && may_be_new {
            let new = Live { page };
            NUMBERS.iter().for_each(|off| new.set(*off, 0));
            page = new.page;
            page.store_u64(O_VERSION, VERSION);
            page.store_u64(O_MAGIC, MAGIC);
            Left::Clean
        } else if page.load_u64(O_MAGIC) != MAGIC {
            return Err(Error::corrupt(format!("{what}: not a live page (wrong magic)")));
        } else if !matches!(page.load_u64(O_VERSION), VERSION | VERSION_SPLIT) {
            return Err(Error::corrupt(format!(
                "{what}: version {}, this program reads {VERSION}",
                page.load_u64(O_VERSION)
            )));
        } else if page.load_u64(O_CLEAN) == 1 {
            Left::Clean
        } else if page.bytes()[O_BOOT..O_BOOT + 16] == boot {
            Left::Killed
        } else {
            Left::PowerLoss
        };
        let live = Live { page };
        live.heal(&what.to_string())?;
        let mut page = live.page;
        page.store_u64(O_VERSION, VERSION);
        page.bytes_mut()[O_BOOT..O_BOOT + 16].copy_from_slice(&boot);
        page.store_u64(O_CLEAN, 0);
        file.sync_all().at(&what)?;
        Ok((Live { page }, left))
    }

    /// Marks the page as closed in order. The caller has synced everything else before.
    pub fn close(&self) {
        self.page.store_u64(O_CLEAN, 1);
    }

    fn set(&self, off: usize, v: u64) {
        for base in [0, SECOND] {
            self.page.store_u64(base + off, v);
            self.page.store_u64(base + CHECK + off, check_of(off, v));
        }
    }

    fn get(&self, off: usize) -> u64 {
        self.page.load_u64(off)
    }

    /// Compares the numbers with their checks, and takes the good one of two.
    fn heal(&self, what: &str) -> Result<()> {
        let check = if self.page.load_u64(O_VERSION) == VERSION_SPLIT { CHECK_SPLIT } else { CHECK };
        for off in NUMBERS {
            let good = [0, SECOND].into_iter().find_map(|base| {
                let v = self.page.load_u64(base + off);
                (self.page.load_u64(base + check + off) == check_of(off, v)).then_some(v)
            });
            let Some(v) = good else {
                return Err(Error::corrupt(format!("{what}: the number at {off} and its copy are damaged")));
            };
            self.set(off, v);
        }
        Ok(())
    }

    /// Error when the drive below took a store no more: this replica knows nothing for sure any more.
    pub fn kept(&self) -> Result<()> {
        self.drive().kept()
    }

    /// For who asks that without the order.
    pub fn drive(&self) -> Drive {
        Drive(self.page.watched())
    }

    /// The last sequence number given out (primary) or received and applied.
    pub fn last_seq(&self) -> Seq {
        Seq(self.get(O_LAST))
    }
    /// Sets it.
    pub fn set_last_seq(&self, s: Seq) {
        self.set(O_LAST, s.0);
    }
    /// Everything up to here has finished changing the tree.
    pub fn settled(&self) -> Seq {
        Seq(self.get(O_SETTLED))
    }
    /// Sets it.
    pub fn set_settled(&self, s: Seq) {
        self.set(O_SETTLED, s.0);
    }
    /// Entry log position up to which the tree is complete.
    pub fn applied_lsn(&self) -> u64 {
        self.get(O_APPLIED_LSN)
    }
    /// Sequence number of the last applied entry.
    pub fn applied_seq(&self) -> Seq {
        Seq(self.get(O_APPLIED_SEQ))
    }
    /// Sets both; the sequence first, so that after a crash the log position never claims more than was done.
    pub fn set_applied(&self, lsn: u64, seq: Seq) {
        self.set(O_APPLIED_SEQ, seq.0);
        self.set(O_APPLIED_LSN, lsn);
    }

    /// The staged resync that is being rolled forward: positions before and after.
    pub fn txn(&self) -> Option<(Seq, Seq)> {
        let to = self.get(O_TXN_TO);
        (to != 0).then(|| (Seq(self.get(O_TXN_FROM)), Seq(to)))
    }
    /// Sets it.
    pub fn set_txn(&self, t: Option<(Seq, Seq)>) {
        // `to` tells whether there is one: set last, cleared first.
        match t {
            Some((from, to)) => {
                self.set(O_TXN_FROM, from.0);
                self.set(O_TXN_TO, to.0);
            }
            None => self.set(O_TXN_TO, 0),
        }
    }

    /// Writes down what is about to be executed.
    pub fn set_intent(&mut self, i: &Intent) -> Result<()> {
        let body = codec::encode(i)?;
        let Some(room) = self.page.bytes_mut().get_mut(BODY..BODY + body.len()) else {
            return Err(Error::os(libc::E2BIG));
        };
        room.copy_from_slice(&body);
        self.set(O_INTENT, (body.len() as u64) << 32 | crc32c::crc32c(&body) as u64);
        Ok(())
    }

    /// The operation is done and recorded.
    pub fn clear_intent(&self) {
        self.set(O_INTENT, 0);
    }

    /// The operation that was being executed when we were stopped.
    pub fn intent(&self) -> Result<Option<Intent>> {
        let w = self.get(O_INTENT);
        if w == 0 {
            return Ok(None);
        }
        let body = self
            .page
            .bytes()
            .get(BODY..BODY + (w >> 32) as usize)
            .ok_or_else(|| Error::corrupt("live page: intent length"))?;
        if crc32c::crc32c(body) != w as u32 {
            return Err(Error::corrupt("live page: intent CRC mismatch"));
        }
        codec::decode(body).map(Some)
    }
}

/// Its place is part of it: a number that strayed is not taken for another. 0 for a page of zeros would be no check.
fn check_of(off: usize, v: u64) -> u64 {
    let mut b = [0u8; 16];
    b[..8].copy_from_slice(&v.to_le_bytes());
    b[8..].copy_from_slice(&(off as u64).to_le_bytes());
    1 << 32 | crc32c::crc32c(&b) as u64
}

/// The id of this boot of the machine.
pub(super) fn boot_id() -> [u8; 16] {
    let s = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let hex: Vec<u8> = s.bytes().filter(u8::is_ascii_hexdigit).collect();
    let mut out = [0u8; 16];
    for (o, h) in out.iter_mut().zip(hex.chunks_exact(2)) {
        *o = std::str::from_utf8(h).ok().and_then(|h| u8::from_str_radix(h, 16).ok()).unwrap_or(0);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{DirId, Name, time::Time};

    #[test]
    fn page_survives_reopen_and_tells_how_it_was_left() {
        let d = tempfile::tempdir().unwrap();
        let p = d.path().join("live");
        let i = Intent {
            seq: Seq(7),
            vol: VolId(0),
            next_lsn: 0,
            op: Op::Unlink { at: Name::new(DirId::ROOT, "x"), pmtime: Time::default() },
            pre: Pre::default(),
        };
        {
            let (mut l, left) = Live::open(&p, true).unwrap();
            assert_eq!(left, Left::Clean);
            l.set_last_seq(Seq(9));
            l.set_intent(&i).unwrap();
        }
        let (l, left) = Live::open(&p, true).unwrap();
        assert_eq!((left, l.last_seq(), l.intent().unwrap()), (Left::Killed, Seq(9), Some(i)));
        l.clear_intent();
        l.close();
        drop(l);
        let (l, left) = Live::open(&p, true).unwrap();
        assert_eq!((left, l.intent().unwrap()), (Left::Clean, None));
    }

    #[test]
    fn a_power_cut_in_the_middle_of_the_page_leaves_every_number() {
        let d = tempfile::tempdir().unwrap();
        let p = d.path().join("live");
        let states: Vec<Vec<u8>> = (1..4)
            .map(|n| {
                let (l, _) = Live::open(&p, n == 1).unwrap();
                l.set_last_seq(Seq(n));
                l.set_applied(n * 100, Seq(n));
                std::fs::read(&p).unwrap()
            })
            .collect();
        // Each sector as it was at one of the three times.
        for mix in 0..81usize {
            let mut torn = states[0].clone();
            for (sector, bytes) in torn.chunks_mut(512).take(4).enumerate() {
                let from = &states[mix / 3usize.pow(sector as u32) % 3];
                bytes.copy_from_slice(&from[sector * 512..][..bytes.len()]);
            }
            std::fs::write(&p, &torn).unwrap();
            let (l, _) = Live::open(&p, false).unwrap_or_else(|e| panic!("mix {mix}: {e}"));
            assert!((1..4).contains(&l.last_seq().0) && l.applied_lsn() % 100 == 0, "mix {mix}");
        }
    }

    #[test]
    fn a_page_of_version_1_is_read() {
        let d = tempfile::tempdir().unwrap();
        let p = d.path().join("live");
        {
            let (l, _) = Live::open(&p, true).unwrap();
            l.set_last_seq(Seq(9));
        }
        let mut old = std::fs::read(&p).unwrap();
        old[O_VERSION] = 1;
        for off in NUMBERS.iter().flat_map(|n| [*n, n + SECOND]) {
            let check: Vec<u8> = old[off + CHECK..][..8].to_vec();
            old[off + CHECK_SPLIT..][..8].copy_from_slice(&check);
            old[off + CHECK..][..8].fill(0);
        }
        std::fs::write(&p, &old).unwrap();
        let (l, left) = Live::open(&p, false).unwrap();
        assert_eq!((l.last_seq(), left), (Seq(9), Left::Killed));
        drop(l);
        assert_eq!(Live::open(&p, false).unwrap().0.last_seq(), Seq(9), "read again, as it is now");
    }

    #[test]
    fn a_flipped_bit_is_healed_and_two_are_noticed() {
        let d = tempfile::tempdir().unwrap();
        let p = d.path().join("live");
        assert!(Live::open(&p, false).is_err(), "a page that got lost");
        {
            let (l, _) = Live::open(&p, true).unwrap();
            l.set_last_seq(Seq(9));
            l.set_applied(70, Seq(8));
        }
        let good = std::fs::read(&p).unwrap();
        for off in NUMBERS.iter().flat_map(|n| [*n, n + CHECK, n + SECOND, n + SECOND + CHECK]) {
            let mut bad = good.clone();
            bad[off + 3] ^= 0x40;
            std::fs::write(&p, &bad).unwrap();
            let (l, _) = Live::open(&p, false).unwrap();
            assert_eq!((l.last_seq(), l.applied_lsn(), l.applied_seq(), l.txn()), (Seq(9), 70, Seq(8), None), "{off}");
            drop(l);
            bad[(off + SECOND) % (2 * SECOND) + 3] ^= 0x40;
            std::fs::write(&p, &bad).unwrap();
            assert!(Live::open(&p, false).is_err(), "{off}");
        }
        std::fs::write(&p, &good[..5000]).unwrap();
        assert!(Live::open(&p, false).is_err());
    }
}
