//! The config definition at the head of a region: what a blank server needs to mount the volume where it belongs (CD-4).
//! It is written at the first mount and travels in the copy like everything else.

use super::files;
use super::region::Region;
use crate::base::{Error, Result};
use crate::format::codec;
use bincode::{Decode, Encode};

const MAGIC: &[u8; 8] = b"KGMHEAD\0";
const VERSION: u32 = 1;

/// The config definition.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ConfigDef {
    /// Directory at which the volume is mounted.
    pub mount: Vec<u8>,
    /// Capacity, bytes; 0: that of the filesystem below.
    pub capacity: u64,
    /// Emulation type: `none` or `raid1`.
    pub emulation: String,
}

impl ConfigDef {
    /// As it travels in an entry.
    pub fn body(&self) -> Result<Vec<u8>> {
        codec::encode(self)
    }
}

impl Region {
    /// The config definition, if there is one.
    pub fn head(&self) -> Result<Option<ConfigDef>> {
        files::load(&self.meta().join("head"), MAGIC, VERSION)
    }

    /// Stores a config definition, from a first mount or from an entry.
    pub fn put_head(&self, body: &[u8]) -> Result<()> {
        let def: ConfigDef = codec::decode(body)?;
        if def.emulation != "none" && def.emulation != "raid1" {
            return Err(Error::corrupt(format!("config definition: unknown emulation type {:?}", def.emulation)));
        }
        if self.head()?.as_ref() == Some(&def) {
            return Ok(());
        }
        files::save(&self.meta().join("head"), MAGIC, VERSION, &def)
    }
}
