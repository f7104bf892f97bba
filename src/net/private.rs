//! Small secret files: mode 0600, replaced atomically, changed under a lock.

use crate::base::error::At;
use crate::base::{Error, Result};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Largest file of this sort, bytes; keeps a wrong path from being read whole.
const BYTES_MAX: u64 = 4 << 20;

fn beside(path: &Path, suffix: &str) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| Error::config(format!("{} is not a file name", path.display())))?;
    let mut n = name.to_os_string();
    n.push(suffix);
    Ok(path.with_file_name(n))
}

/// Replaces `path`: write new, fsync, rename, fsync the directory. The file is 0600 from its first byte on.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let tmp = beside(path, ".new")?;
    // A left-over of a crash may have another mode; the new file must not inherit it.
    match fs::remove_file(&tmp) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e).at(format!("removing {}", tmp.display())),
        _ => {}
    }
    let put = || -> std::io::Result<()> {
        let mut f = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&tmp)?;
        f.write_all(bytes)?;
        f.sync_all()?;
        fs::rename(&tmp, path)?;
        let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir)?.sync_all()
    };
    put().at(format!("writing {}", path.display()))
}

/// Reads a file that only its owner may read. `None` if there is none.
pub fn read(path: &Path) -> Result<Option<String>> {
    let f = match File::open(path) {
        Ok(f) => f,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).at(format!("opening {}", path.display())),
    };
    let m = f.metadata().at(format!("reading {}", path.display()))?;
    if !m.is_file() {
        return Err(Error::config(format!("{} is not a regular file", path.display())));
    }
    if m.permissions().mode() & 0o077 != 0 {
        return Err(Error::refused(format!(
            "{0} can be read by others (mode {1:03o}): run chmod 600 {0}, and make new keys if others may have seen it",
            path.display(),
            m.permissions().mode() & 0o777
        )));
    }
    let mut s = String::new();
    let n = f.take(BYTES_MAX + 1).read_to_string(&mut s).at(format!("reading {}", path.display()))?;
    if n as u64 > BYTES_MAX {
        return Err(Error::config(format!("{} is larger than {BYTES_MAX} bytes", path.display())));
    }
    Ok(Some(s))
}

/// Runs `f` while this process alone changes `path`: a command and the node may do so at the same time.
pub fn locked<T>(path: &Path, f: impl FnOnce() -> Result<T>) -> Result<T> {
    let lock = beside(path, ".lock")?;
    let what = || format!("locking {}", lock.display());
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock).at(what())?;
    file.lock().at(what())?;
    let r = f();
    drop(file);
    r
}
