//! Reading what a volume holds, as it was written by somebody else: only beneath the volume's root, only regular files,
//! never more than a bound, and never waiting for a pipe or a device.

use crate::base::{At, Error, Result};
use crate::os::{beneath, sys};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A volume whose files are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Its name.
    pub volume: String,
    /// Where it is mounted, or will be: what paths in its files begin with.
    pub mount: PathBuf,
    /// Where its files are now: the mount, or the tree of its replica.
    pub dir: PathBuf,
}

/// The volumes of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots(pub Vec<Root>);

/// What is found at a path.
#[derive(Debug)]
pub enum Found {
    /// A regular file with its permission bits, as an `O_PATH` descriptor.
    File(OwnedFd, u32),
    /// A directory.
    Dir,
}

impl Roots {
    /// The volume that a path without `..` lies in, and the rest of the path there.
    pub fn find(&self, path: &Path) -> Option<(&Root, PathBuf)> {
        self.0.iter().find_map(|r| path.strip_prefix(&r.mount).ok().map(|p| (r, p.to_owned())))
    }

    /// What lies at a path of a volume; `None` when there is nothing. Errors: outside of the volumes, a symlink that
    /// leads out, neither file nor directory.
    pub fn look(&self, path: &Path) -> Result<Option<Found>> {
        let what = shown(path);
        let Some((root, rest)) = self.find(path) else {
            let all: Vec<String> = self.0.iter().map(|r| shown(&r.mount)).collect();
            return Err(Error::refused(format!(
                "{what} lies in no volume of the group; write a path below {} instead",
                all.join(" or ")
            )));
        };
        let dir = sys::open_path(&root.dir, libc::O_PATH | libc::O_DIRECTORY, 0).at(root.dir.display())?;
        let rest = if rest.as_os_str().is_empty() { Path::new(".") } else { &rest };
        let fd = match beneath::open_beneath(&dir, rest, libc::O_PATH) {
            Ok(fd) => fd,
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => return Ok(None),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EXDEV | libc::ELOOP)) => {
                return Err(Error::refused(format!(
                    "{what} leads out of volume {} by a symlink or a mount; put the file itself there instead",
                    root.volume
                )));
            }
            Err(e) => return Err(Error::from(e).context(&what)),
        };
        let st = sys::fstat(&fd).at(&what)?;
        match (st.is_file(), st.is_dir()) {
            (true, _) => Ok(Some(Found::File(fd, st.perm()))),
            (_, true) => Ok(Some(Found::Dir)),
            _ => Err(Error::refused(format!("{what} is neither a file nor a directory; put a file there instead"))),
        }
    }

    /// The text of a file, at most `max` bytes and one more (so that whoever reads it sees that it is too long). `None`
    /// when there is no such file.
    pub fn read(&self, path: &Path, max: u64) -> Result<Option<Vec<u8>>> {
        let what = shown(path);
        match self.look(path)? {
            None => Ok(None),
            Some(Found::Dir) => Err(Error::refused(format!("{what} is a directory; put a file there instead"))),
            Some(Found::File(fd, _)) => {
                let f = sys::reopen(&fd, libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY).at(&what)?;
                let mut buf = vec![0; max as usize + 1];
                let n = sys::pread_full(&f, &mut buf, 0).at(&what)?;
                buf.truncate(n);
                Ok(Some(buf))
            }
        }
    }
}

/// A path in a volume as it is shown: never with bytes that a terminal heeds.
pub fn shown(path: &Path) -> String {
    match path.to_str() {
        Some(s) if !s.chars().any(super::env::invisible) => s.to_owned(),
        _ => format!("{:?}", String::from_utf8_lossy(path.as_os_str().as_bytes())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn roots(d: &Path) -> Roots {
        std::fs::create_dir_all(d.join("tree/sub")).unwrap();
        Roots(vec![Root { volume: "v".into(), mount: "/AP/vol1".into(), dir: d.join("tree") }])
    }

    #[test]
    fn cd7_files_are_read_by_the_names_they_will_have() {
        let d = tempfile::tempdir().unwrap();
        let r = roots(d.path());
        std::fs::write(d.path().join("tree/sub/f"), "text").unwrap();
        symlink("sub/f", d.path().join("tree/l")).unwrap();
        for p in ["/AP/vol1/sub/f", "/AP/vol1/l"] {
            assert_eq!(r.read(Path::new(p), 100).unwrap().as_deref(), Some(b"text".as_slice()), "{p}");
        }
        assert_eq!(r.read(Path::new("/AP/vol1/sub/f"), 2).unwrap().map(|b| b.len()), Some(3));
        assert!(r.read(Path::new("/AP/vol1/none"), 100).unwrap().is_none());
        assert!(matches!(r.look(Path::new("/AP/vol1")).unwrap(), Some(Found::Dir)));
    }

    #[test]
    fn b4_nothing_outside_of_the_volume_is_read_and_nothing_is_waited_for() {
        let d = tempfile::tempdir().unwrap();
        let r = roots(d.path());
        let tree = d.path().join("tree");
        std::fs::write(d.path().join("secret"), "x").unwrap();
        symlink("/etc/passwd", tree.join("abs")).unwrap();
        symlink("../secret", tree.join("up")).unwrap();
        symlink("..", tree.join("updir")).unwrap();
        symlink("loop", tree.join("loop")).unwrap();
        let fifo = std::process::Command::new("mkfifo").arg(tree.join("fifo")).status().unwrap();
        assert!(fifo.success());
        let _socket = std::os::unix::net::UnixListener::bind(tree.join("sock")).unwrap();
        let cases = [
            ("/AP/vol1/abs", "leads out of volume v"),
            ("/AP/vol1/up", "leads out of volume v"),
            ("/AP/vol1/updir/secret", "leads out of volume v"),
            ("/AP/vol1/loop", "leads out of volume v"),
            ("/etc/passwd", "lies in no volume of the group; write a path below /AP/vol1"),
            ("/AP/vol10/x", "lies in no volume"),
            ("/AP/vol1/fifo", "neither a file nor a directory"),
            ("/AP/vol1/sock", "neither a file nor a directory"),
            ("/AP/vol1/sub", "is a directory"),
        ];
        for (p, words) in cases {
            let e = r.read(Path::new(p), 100).unwrap_err();
            assert!(e.msg.contains(words), "{p}: {e}");
        }
    }
}
