//! What the fence of a group refused and the sync site may have all the same: kept from before the answers are given until
//! the sites are known to be equal again (MS-6).

use super::files;
use crate::base::sync::Mutex;
use crate::base::{At, Result, Seq, VolId, time::Time};
use bincode::{Decode, Encode};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"KGMDOUB\0";
const VERSION: u32 = 1;
/// Entries listed; of more only the number is kept.
pub const DOUBTS_KEPT: usize = 1000;

/// An entry in doubt.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Doubt {
    /// Its place.
    pub seq: Seq,
    /// When it was issued.
    pub time: Time,
    /// Volume.
    pub vol: VolId,
    /// Path in the volume.
    pub path: Vec<u8>,
    /// What it does, for people.
    pub what: String,
    /// It was undone here.
    pub undone: bool,
}

/// What is in doubt in a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Doubts {
    /// Since when.
    pub since: Time,
    /// What the sync site was known to have then. An asynchronous site gets nothing after it.
    pub had: Seq,
    /// Requests refused that were under way, with those that never left.
    pub refused: u64,
    /// Entries in doubt, the first [`DOUBTS_KEPT`].
    pub entries: Vec<Doubt>,
    /// Those beyond.
    pub more: u64,
}

impl Doubts {
    /// Number of entries in doubt.
    pub fn count(&self) -> u64 {
        self.entries.len() as u64 + self.more
    }

    /// Adds what a further fault left.
    pub fn add(&mut self, later: Doubts) {
        if self.refused == 0 {
            *self = Doubts { entries: Vec::new(), more: 0, ..later.clone() };
        } else {
            self.refused += later.refused;
            self.had = self.had.min(later.had);
        }
        self.more += later.more;
        for e in later.entries {
            if self.entries.len() < DOUBTS_KEPT { self.entries.push(e) } else { self.more += 1 }
        }
    }
}

/// The file that keeps them; there is none while nothing is in doubt.
pub struct DoubtFile {
    path: PathBuf,
    now: Mutex<Option<Doubts>>,
}

impl DoubtFile {
    /// With what it holds.
    pub fn open(path: &Path) -> Result<DoubtFile> {
        let now = Mutex::new(files::load(path, MAGIC, VERSION)?);
        Ok(DoubtFile { path: path.to_owned(), now })
    }

    /// What is in doubt now.
    pub fn get(&self) -> Option<Doubts> {
        self.now.lock().clone()
    }

    /// Replaces it, durably.
    pub fn set(&self, doubts: Option<Doubts>) -> Result<()> {
        let mut now = self.now.lock();
        match &doubts {
            Some(d) => {
                if let Some(dir) = self.path.parent() {
                    std::fs::create_dir_all(dir).at(dir.display())?;
                }
                files::save(&self.path, MAGIC, VERSION, d)?;
            }
            None => match std::fs::remove_file(&self.path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).at(self.path.display()),
                _ => {}
            },
        }
        *now = doubts;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doubts(first: u64, n: usize) -> Doubts {
        let one = |i| Doubt {
            seq: Seq(first + i as u64),
            time: Time { sec: 5, nsec: 6 },
            vol: VolId(1),
            path: b"a/b".to_vec(),
            what: "write 0..5".into(),
            undone: i % 2 == 0,
        };
        let since = Time { sec: first as i64, nsec: 0 };
        Doubts { since, had: Seq(first - 1), refused: 3, entries: (0..n).map(one).collect(), more: 0 }
    }

    /// MS-6: the list survives the node, is bounded, and adds up over several faults.
    #[test]
    fn ms6_what_is_in_doubt_is_kept_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("doubts/lab");
        let f = DoubtFile::open(&path).unwrap();
        assert_eq!(f.get(), None);
        let mut d = Doubts::default();
        d.add(doubts(10, 600));
        assert_eq!(d, doubts(10, 600));
        f.set(Some(d.clone())).unwrap();
        assert_eq!(DoubtFile::open(&path).unwrap().get(), Some(d.clone()));
        d.add(doubts(5000, 600));
        assert_eq!((d.entries.len(), d.more, d.count(), d.refused), (DOUBTS_KEPT, 200, 1200, 6));
        assert_eq!((d.since.sec, d.had), (10, Seq(9)));
        f.set(None).unwrap();
        f.set(None).unwrap();
        assert!(!path.exists() && DoubtFile::open(&path).unwrap().get().is_none());
    }
}
