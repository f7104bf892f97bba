//! Opening a path that somebody else wrote, so that it cannot lead out of a directory.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// openat2(2): opens `path` below `dir`. A symlink is followed only within `dir`, a mount is not crossed; `EXDEV` when the
/// path leads out. With [`libc::O_PATH`] nothing is opened that could wait or have an effect.
pub fn open_beneath(dir: impl AsFd, path: &Path, flags: i32) -> io::Result<OwnedFd> {
    let p = CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: open_how is plain data; all zero is a valid value of it.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (flags | libc::O_CLOEXEC) as u64;
    how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS | libc::RESOLVE_NO_XDEV;
    // SAFETY: a valid C string, and a structure with its true size.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            dir.as_fd().as_raw_fd(),
            p.as_ptr(),
            &raw const how,
            std::mem::size_of::<libc::open_how>(),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fd was just opened.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_path_does_not_lead_out_of_the_directory() {
        let d = tempfile::tempdir().unwrap();
        let root = d.path().join("root");
        std::fs::create_dir_all(root.join("a")).unwrap();
        std::fs::write(root.join("a/f"), "x").unwrap();
        std::fs::write(d.path().join("out"), "x").unwrap();
        symlink("a/f", root.join("in")).unwrap();
        symlink("../out", root.join("up")).unwrap();
        symlink(d.path().join("out"), root.join("abs")).unwrap();
        symlink("/proc/self/fd/0", root.join("magic")).unwrap();
        let dir = std::fs::File::open(&root).unwrap();
        let open =
            |p: &str| open_beneath(&dir, Path::new(p), libc::O_RDONLY).map(drop).map_err(|e| e.raw_os_error().unwrap());
        for p in ["a/f", "in", "a/../a/f"] {
            assert_eq!(open(p), Ok(()), "{p}");
        }
        for p in ["up", "abs", "../out", "/etc/passwd", "magic", "a/../../out"] {
            assert_eq!(open(p), Err(libc::EXDEV), "{p}");
        }
    }
}
