//! The mount point: checks, mount(2) or fusermount3, detaching.

use super::MountOpts;
use crate::base::{At, Error, Kind, Result};
use crate::node::mounter::{self, MountOption, MountOptions};
use crate::os::{mountfd, process, sys};
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Names under which the mount helper of libfuse is found.
const HELPERS: [&str; 3] = ["fusermount3", "/usr/bin/fusermount3", "/bin/fusermount3"];
/// Read-ahead of a mount, KiB (the kernel's default of 128 is for disks).
const READ_AHEAD_KIB: &str = "1024";

/// What each option is for the kernel, where it is a flag of mount(2).
const FLAGS: [(MountOption, u64); 8] = [
    (MountOption::ReadOnly, libc::MS_RDONLY),
    (MountOption::NoSuid, libc::MS_NOSUID),
    (MountOption::NoDev, libc::MS_NODEV),
    (MountOption::NoExec, libc::MS_NOEXEC),
    (MountOption::Sync, libc::MS_SYNCHRONOUS),
    (MountOption::DirSync, libc::MS_DIRSYNC),
    (MountOption::NoAtime, libc::MS_NOATIME),
    (MountOption::NoDirAtime, libc::MS_NODIRATIME),
];

/// A mount that we made.
pub struct Mounted {
    /// Absolute path.
    pub path: PathBuf,
    /// `major:minor` of the mounted filesystem, as the mount table shows it.
    device: Option<String>,
}

fn c_path(p: &Path) -> Result<CString> {
    CString::new(p.as_os_str().as_bytes()).map_err(|_| Error::config("a path with a NUL byte"))
}

/// Makes the path absolute, takes away a dead mount, and refuses what is no empty directory.
pub fn check(at: &Path, nonempty: bool) -> Result<PathBuf> {
    let what = at.display();
    for _ in 0..8 {
        // Attributes may still come from the kernel's cache when the process is gone; opening asks it.
        let look = std::fs::symlink_metadata(at)
            .and_then(|m| if m.is_dir() { std::fs::read_dir(at).map(drop) } else { Ok(()) });
        match look {
            Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => {
                log::warn!("{what}: taking away the dead mount of a process that is gone");
                detach_path(at)?;
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::config(format!("{what}: no such directory; make it with `mkdir -p {what}`")));
            }
            _ => break,
        }
    }
    let path = at.canonicalize().at(what)?;
    if !path.is_dir() {
        return Err(Error::config(format!("{}: not a directory", at.display())));
    }
    if !nonempty && let Some(first) = std::fs::read_dir(&path).at(at.display())?.next() {
        let name = first.at(at.display())?.file_name();
        return Err(Error::refused(format!(
            "{} is not empty (it holds {name:?}), and a mount would hide what is there; give an empty directory or mount with `nonempty`",
            at.display()
        )));
    }
    Ok(path)
}

/// Mounts, as root with mount(2), else through fusermount3. Returns the connection.
pub fn mount(path: &Path, opts: &MountOpts) -> Result<(OwnedFd, Mounted)> {
    let fd = match sys::ids().0 {
        0 => match direct(path, opts) {
            // Root of a container without the right to mount: the helper may have it.
            Err(e) if e.errno == libc::EPERM => helper(path, opts)?,
            r => r?,
        },
        _ => helper(path, opts)?,
    };
    let device = device_at(path);
    Ok((fd, Mounted { path: path.to_owned(), device }))
}

fn no_device(e: std::io::Error) -> Error {
    Error {
        kind: Kind::Config,
        errno: e.raw_os_error().unwrap_or(libc::EIO),
        msg: format!(
            "/dev/fuse: {e}; load it with `modprobe fuse` (in a container: pass the device through, with the right to mount)"
        ),
    }
}

fn direct(path: &Path, opts: &MountOpts) -> Result<OwnedFd> {
    let fd = sys::open_path(Path::new("/dev/fuse"), libc::O_RDWR, 0).map_err(no_device)?;
    let source = CString::new(opts.label.as_str()).map_err(|_| Error::config("NUL in a name"))?;
    let data = format!("fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other", fd.as_raw_fd());
    let data = CString::new(data).map_err(|_| Error::config("NUL in options"))?;
    let flags = FLAGS.iter().filter(|(o, _)| opts.options.contains(o)).fold(0, |all, (_, f)| all | f);
    match sys::mount(&source, &c_path(path)?, c"fuse.kagami", flags, &data) {
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Err(no_device(e)),
        r => r.at(format!("mount {}", path.display())).map(|()| fd),
    }
}

/// The helper hands the connection over through the socket named by `_FUSE_COMMFD`: its standard input.
fn helper(path: &Path, opts: &MountOpts) -> Result<OwnedFd> {
    if let Err(e) = std::fs::metadata("/dev/fuse") {
        return Err(no_device(e));
    }
    let (ours, theirs) = UnixStream::pair().at("socketpair")?;
    let label = opts.label.replace('\\', "\\\\").replace(',', "\\,");
    let mut o = format!("fsname={label},subtype=kagami,default_permissions");
    let kernel: MountOptions = opts.options.iter().copied().filter(|o| !o.is_ours()).collect();
    if !kernel.is_empty() {
        o = format!("{o},{}", mounter::words(&kernel));
    }
    let theirs: OwnedFd = theirs.into();
    let mut last = None;
    for name in HELPERS {
        let child = Command::new(name)
            .args(["-o", &o, "--"])
            .arg(path)
            .env("_FUSE_COMMFD", "0")
            .stdin(Stdio::from(theirs.try_clone().at("dup")?))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let child = match child {
            Ok(c) => c,
            Err(e) => {
                last = Some(e);
                continue;
            }
        };
        drop(theirs);
        let fd = mountfd::receive_fd(&ours).at("fusermount3")?;
        let out = child.wait_with_output().at("fusermount3")?;
        let said = String::from_utf8_lossy(&out.stderr).trim().to_owned();
        return match fd {
            Some(fd) => Ok(fd),
            None if said.contains("user_allow_other") => Err(Error::config(format!(
                "{said}; add the line `user_allow_other` to /etc/fuse.conf, or mount without allow_other"
            ))),
            None => Err(Error::failed(format!("fusermount3 could not mount {}: {said}", path.display()))),
        };
    }
    Err(Error::config(format!(
        "fusermount3 cannot be run ({}); install the package `fuse3`, or mount as root",
        last.map_or_else(|| "not found".into(), |e| e.to_string())
    )))
}

/// `major:minor` of what is mounted on top at a path.
fn device_at(path: &Path) -> Option<String> {
    devices_at(path).pop()
}

/// `major:minor` of all that is mounted at a path, the topmost last, from the mount table (asking the filesystem might
/// hang).
fn devices_at(path: &Path) -> Vec<String> {
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mut found = Vec::new();
    for line in table.split(|b| *b == b'\n') {
        let mut f = line.split(|b| *b == b' ');
        if let (Some(dev), Some(at)) = (f.nth(2), f.nth(1))
            && unescape(at) == path.as_os_str().as_bytes()
        {
            found.push(String::from_utf8_lossy(dev).into_owned());
        }
    }
    found
}

/// Undoes the mount table's `\040` for bytes that would break a line.
fn unescape(s: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(s.len());
    let mut rest = s;
    while let Some((b, tail)) = rest.split_first() {
        let code = tail.get(..3).filter(|_| *b == b'\\').and_then(|d| std::str::from_utf8(d).ok());
        match code.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(v) => {
                out.push(v);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                out.push(*b);
                rest = tail;
            }
        }
    }
    out
}

impl Mounted {
    /// Takes the mount point away, unless something else is mounted there by now.
    pub fn detach(&self) -> Result<()> {
        match device_at(&self.path) {
            None => Ok(()),
            now if self.device.is_some() && now != self.device => {
                log::warn!("{}: another filesystem is mounted on top; left alone", self.path.display());
                Ok(())
            }
            _ => detach_path(&self.path),
        }
    }

    /// Takes the mount away if nothing below it is in use.
    pub fn unmount_unused(&self) -> Result<()> {
        match device_at(&self.path) {
            None => return Ok(()),
            now if self.device.is_some() && now != self.device => {
                return Err(Error::refused(format!("{}: another filesystem is mounted on top", self.path.display())));
            }
            _ => {}
        }
        match sys::umount(&c_path(&self.path)?) {
            Ok(()) => return Ok(()),
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => {}
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => return Err(in_use(&self.path)),
            Err(e) => return Err(Error::from(e).context(format!("unmounting {}", self.path.display()))),
        }
        match by_helper(&["-u"], &self.path) {
            Ok(()) => Ok(()),
            Err(said) if said.contains("busy") => Err(in_use(&self.path)),
            Err(said) => Err(Error::failed(format!("fusermount3 could not unmount {}: {said}", self.path.display()))),
        }
    }

    /// It is still in the mount table at its path, also below another mount. True also when that could never be told.
    pub fn attached(&self) -> bool {
        self.device.as_ref().is_none_or(|d| devices_at(&self.path).contains(d))
    }

    /// Aborts the connection, then detaches.
    pub fn abort(&self) -> Result<()> {
        let minor = self.device.as_deref().and_then(|d| d.split(':').nth(1));
        let by_control = minor.is_some_and(|m| {
            // The directory is named by the device number, major 0: the same as the minor number below 256.
            let id = self.control_id().unwrap_or_else(|| m.to_owned());
            std::fs::write(format!("/sys/fs/fuse/connections/{id}/abort"), "1").is_ok()
        });
        if !by_control && sys::ids().0 == 0 && device_at(&self.path) == self.device {
            match mountfd::umount_force(&c_path(&self.path)?) {
                Ok(()) => return Ok(()),
                Err(e) => log::warn!("{}: forced unmount: {e}", self.path.display()),
            }
        }
        self.detach()
    }

    /// Name of the connection's control directory: the kernel's own device number, `major << 20 | minor`.
    fn control_id(&self) -> Option<String> {
        let (major, minor) = self.device.as_deref()?.split_once(':')?;
        Some(((major.parse::<u64>().ok()? << 20) | minor.parse::<u64>().ok()?).to_string())
    }

    /// A larger read-ahead, where we may set it.
    pub fn tune(&self) {
        if let Some(d) = &self.device {
            let file = format!("/sys/class/bdi/{d}/read_ahead_kb");
            if std::fs::write(&file, READ_AHEAD_KIB).is_err() {
                log::debug!("{file}: not set");
            }
        }
    }
}

/// Detaches whatever is mounted at a path.
pub fn detach_path(path: &Path) -> Result<()> {
    match sys::umount_detach(&c_path(path)?) {
        Ok(()) => return Ok(()),
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => {}
        // Not mounted: nothing to do.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return Ok(()),
        Err(e) => return Err(Error::from(e).context(format!("unmounting {}", path.display()))),
    }
    by_helper(&["-u", "-z"], path)
        .map_err(|said| Error::failed(format!("fusermount3 could not unmount {}: {said}", path.display())))
}

/// Has the helper do it; the error is what it said.
fn by_helper(how: &[&str], path: &Path) -> std::result::Result<(), String> {
    let mut said = String::from("not found");
    for name in HELPERS {
        match Command::new(name).args(how).arg("--").arg(path).stdin(Stdio::null()).output() {
            Ok(o) if o.status.success() => return Ok(()),
            Ok(o) => said = String::from_utf8_lossy(&o.stderr).trim().to_owned(),
            Err(_) => {}
        }
    }
    Err(said)
}

/// The refusal for a mount that is in use, with who uses it.
pub fn in_use(path: &Path) -> Error {
    let who: Vec<String> = process::holders(path)
        .iter()
        .map(|h| format!("process {} ({}) with {} open", h.pid, h.name, h.count))
        .collect();
    let who = if who.is_empty() { "by what this node may not see".into() } else { who.join(", ") };
    Error { errno: libc::EBUSY, ..Error::refused(format!("{} is in use: {who}", path.display())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_tables_escapes() {
        assert_eq!(unescape(b"/a\\040b\\134c"), b"/a b\\c");
        assert_eq!(unescape(b"/plain"), b"/plain");
        assert_eq!(unescape(b"/odd\\9"), b"/odd\\9");
    }

    #[test]
    fn a_directory_that_is_not_empty_is_refused() {
        let d = tempfile::tempdir().unwrap();
        std::fs::write(d.path().join("x"), "").unwrap();
        assert_eq!(check(d.path(), false).unwrap_err().kind, Kind::Refused);
        assert!(check(d.path(), true).is_ok());
        assert_eq!(check(&d.path().join("none"), false).unwrap_err().kind, Kind::Config);
    }
}
