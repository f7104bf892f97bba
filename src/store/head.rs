//! The config definition at the head of a region: what a blank server needs to mount the volume where it belongs (CD-4).
//! It is written before the first mount and travels in the copy like everything else, but first: what does not fit the
//! receiver's own volume definition table is refused before anything is stored (CD-5).

use super::files;
use super::region::Region;
use crate::base::{Error, Result, limits, size};
use crate::format::codec;
use crate::os::sys;
use bincode::{Decode, Encode};
use std::path::Path;

const MAGIC: &[u8; 8] = b"KGMHEAD\0";
const VERSION: u32 = 1;

/// The config definition.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ConfigDef {
    /// Directory at which the volume is mounted; empty before its first mount.
    pub mount: Vec<u8>,
    /// Capacity, bytes; 0: that of the filesystem below.
    pub capacity: u64,
    /// Emulation type: `none` or `raid1`.
    pub emulation: String,
}

/// A row of the receiving site's volume definition table (CD-1), which definitions that come are checked against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The volume as messages name it: name, port and LU, site.
    pub what: String,
    /// Its size, bytes; 0: that of the filesystem below.
    pub size: u64,
    /// Its emulation type.
    pub emulation: String,
}

impl ConfigDef {
    /// That of the region at `path`, if it has one.
    pub fn read(path: &Path) -> Result<Option<ConfigDef>> {
        files::load::<ConfigDef>(&path.join(".kagami/head"), MAGIC, VERSION)?.map(ConfigDef::checked).transpose()
    }

    /// As it travels in an entry.
    pub fn body(&self) -> Result<Vec<u8>> {
        codec::encode(self)
    }

    /// Reads a definition that travelled.
    pub fn from_body(body: &[u8]) -> Result<ConfigDef> {
        codec::decode::<ConfigDef>(body)?.checked()
    }

    /// Reads the bytes of a region's head (the label of its volume).
    pub fn from_file(bytes: &[u8]) -> Result<ConfigDef> {
        files::parse::<ConfigDef>(bytes, MAGIC, VERSION, "head")?.checked()
    }

    fn checked(self) -> Result<ConfigDef> {
        if self.emulation != "none" && self.emulation != "raid1" {
            let shown: String = self.emulation.chars().take(40).collect();
            return Err(Error::corrupt(format!("config definition: unknown emulation type {shown:?}")));
        }
        if self.mount.len() > limits::SYMLINK_BYTES_MAX || self.mount.contains(&0) {
            return Err(Error::corrupt(
                "config definition: the mount directory is no absolute path (a NUL in it, or too long)",
            ));
        }
        Ok(self)
    }
}

impl Row {
    /// The check on receipt: the capacity first, then the emulation type (CD-5). `below`: the size of the filesystem under
    /// the region, bytes. The error says everything that does not fit, and what would.
    pub fn check(&self, def: &ConfigDef, below: u64) -> Result<()> {
        let mut not = Vec::new();
        match (self.size, def.capacity) {
            (0, c) if c > below => not.push(format!(
                "the filesystem below it has {} and the capacity is {}: move it to a larger one",
                size::show(below),
                size::show(c)
            )),
            (0, _) => {}
            (s, 0) => not.push(format!(
                "its size is {} and the primary has none, which is all that the primary's filesystem holds: remove size here, or write size = {:?} at the primary",
                size::show(s),
                size::show(s)
            )),
            (s, c) if s < c => not.push(format!(
                "its size is {} and the capacity is {}: write size = {:?} or more here",
                size::show(s),
                size::show(c),
                size::show(c)
            )),
            _ => {}
        }
        if self.emulation != def.emulation {
            not.push(format!(
                "its emulation type is {} and the primary's is {}: write emulation = {:?} here, or {:?} at the primary",
                self.emulation, def.emulation, def.emulation, self.emulation
            ));
        }
        if not.is_empty() {
            return Ok(());
        }
        Err(Error::refused(format!(
            "{} does not fit the config definition that came, and nothing is stored: {}; then restart the node whose site file was changed",
            self.what,
            not.join("; ")
        )))
    }
}

impl Region {
    /// The config definition, if there is one.
    pub fn head(&self) -> Result<Option<ConfigDef>> {
        ConfigDef::read(&self.path)
    }

    /// Stores a config definition, from a first mount or from an entry.
    pub fn put_head(&self, body: &[u8]) -> Result<()> {
        let def = ConfigDef::from_body(body)?;
        if self.head()?.as_ref() == Some(&def) {
            return Ok(());
        }
        files::save(&self.meta().join("head"), MAGIC, VERSION, &def)
    }

    /// Checks a definition that came against the site's table, where there is one.
    pub fn check_head(&self, body: &[u8]) -> Result<()> {
        let def = ConfigDef::from_body(body)?;
        let Some(row) = self.row.get() else { return Ok(()) };
        let s = sys::statfs(&**self.tree_fd())?;
        row.check(&def, s.blocks.saturating_mul(s.frsize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(size: u64, emulation: &str, capacity: u64, other: &str) -> String {
        let row = Row { what: "volume v".into(), size, emulation: emulation.into() };
        let def = ConfigDef { mount: vec![], capacity, emulation: other.into() };
        row.check(&def, 1000).map_or_else(|e| e.msg, |()| String::new())
    }

    #[test]
    fn cd5_capacity_first_then_emulation() {
        for (size, capacity) in [(100, 100), (200, 100), (0, 1000), (0, 0)] {
            assert_eq!(says(size, "none", capacity, "none"), "", "{size} {capacity}");
            assert_eq!(says(size, "raid1", capacity, "raid1"), "");
        }
        assert!(says(100, "none", 200, "none").contains("write size = \"200B\" or more"));
        assert!(says(0, "none", 1001, "none").contains("larger one"));
        assert!(says(100, "none", 0, "none").contains("at the primary"));
        assert!(says(100, "none", 100, "raid1").contains("write emulation = \"raid1\" here"));
        let both = says(100, "raid1", 200, "none");
        assert!(both.find("its size").unwrap() < both.find("its emulation").unwrap(), "{both}");
    }
}
