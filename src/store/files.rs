//! Small state files of our own, replaced atomically: write-new, fsync, rename, fsync directory.

use crate::base::{At, Error, Result};
use crate::format::{codec, file};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Replaces `path` by `bytes` atomically and durably, mode 0600.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let what = path.display();
    let dir = path.parent().ok_or_else(|| Error::failed(format!("{what}: no parent directory")))?;
    let mut tmp = path.as_os_str().to_owned();
    tmp.push(".new");
    let mut f = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&tmp).at(&what)?;
    f.write_all(bytes).and_then(|()| f.sync_all()).at(&what)?;
    std::fs::rename(&tmp, path).at(&what)?;
    std::fs::File::open(dir).and_then(|d| d.sync_all()).at(&what)
}

/// Removes a directory with what is in it, if it is there.
pub fn remove_dir(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::from(e).context(dir.display())),
        _ => Ok(()),
    }
}

/// Writes a state file: header, one encoded record.
pub fn save<T: bincode::Encode>(path: &Path, magic: &[u8; 8], version: u32, value: &T) -> Result<()> {
    replace(path, &file::whole(magic, version, &codec::encode(value)?))
}

/// Reads a state file back; `None` when there is none.
pub fn load<T: bincode::Decode<()>>(path: &Path, magic: &[u8; 8], newest: u32) -> Result<Option<T>> {
    let what = path.display().to_string();
    let bytes = match std::fs::read(path) {
        Ok(b) => b,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::from(e).context(what)),
    };
    parse(&bytes, magic, newest, &what).map(Some)
}

/// The value in the bytes of a state file. `what` is what errors begin with.
pub fn parse<T: bincode::Decode<()>>(bytes: &[u8], magic: &[u8; 8], newest: u32, what: &str) -> Result<T> {
    let (_, body) = file::parse_whole(bytes, magic, newest, what)?;
    codec::decode(body).map_err(|e| e.context(what))
}
