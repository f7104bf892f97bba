//! What an application prints: a file of bounded size and its predecessor.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Size at which a file of output is set aside as `NAME.log.1`, in place of the one set aside before, bytes.
pub const LOG_BYTES_MAX: u64 = 4 << 20;

/// An application's output file. It never stops the application: what cannot be written is counted and said later.
pub struct Output {
    path: PathBuf,
    file: File,
    bytes: u64,
    lost: u64,
}

impl Output {
    /// Opens the file for appending and makes it if need be.
    pub fn open(path: &Path) -> io::Result<Output> {
        let file = open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Output { path: path.to_owned(), file, bytes, lost: 0 })
    }

    /// Appends; sets the file aside first if it would grow too large.
    pub fn write(&mut self, text: &[u8]) {
        let len = text.len() as u64;
        if let Err(e) = self.try_write(text) {
            if self.lost == 0 {
                log::warn!("{}: {e}; output is lost", self.path.display());
            }
            self.lost += len;
        }
    }

    fn try_write(&mut self, text: &[u8]) -> io::Result<()> {
        if self.bytes > 0 && self.bytes + text.len() as u64 > LOG_BYTES_MAX {
            std::fs::rename(&self.path, older(&self.path))?;
            self.file = open(&self.path)?;
            self.bytes = 0;
        }
        if self.lost > 0 {
            let note = format!("\nkagami: {} bytes of output could not be written\n", self.lost);
            self.file.write_all(note.as_bytes())?;
            self.bytes += note.len() as u64;
            self.lost = 0;
        }
        self.file.write_all(text)?;
        self.bytes += text.len() as u64;
        Ok(())
    }
}

/// Where the output before the present file is.
pub fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().create(true).append(true).mode(0o640).custom_flags(libc::O_NOFOLLOW).open(path)?;
    // Whatever the mask of this process is: output may hold what others must not read.
    file.set_permissions(std::fs::Permissions::from_mode(0o640))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_bounded_and_the_newest_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.log");
        let mut out = Output::open(&path).unwrap();
        let block = [b'x'; 64 << 10];
        for _ in 0..(3 * LOG_BYTES_MAX / block.len() as u64) {
            out.write(&block);
        }
        out.write(b"the last words\n");
        let len = |p: &Path| std::fs::metadata(p).unwrap().len();
        assert!(len(&path) <= LOG_BYTES_MAX && len(&older(&path)) <= LOG_BYTES_MAX);
        assert!(std::fs::read(&path).unwrap().ends_with(b"the last words\n"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        let again = Output::open(&path).unwrap();
        assert_eq!(again.bytes, len(&path), "an opened file goes on where it was");
    }
}
