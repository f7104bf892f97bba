//! Makes trees that hold one of everything.

use super::Rng;
use super::sys;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

/// Levels of the deep branch: with names of [`DEEP_NAME`] bytes some three times PATH_MAX.
const DEEP_LEVELS: usize = 60;
const DEEP_NAME: usize = 200;

/// Fills `dir` with about `files` objects, the same for the same seed: files (empty, small, of several blocks, sparse),
/// directories, hard links, symlinks, fifos, xattrs, ACLs, names that are no UTF-8, a branch deeper than PATH_MAX; as
/// root also devices, owners and `trusted.*`. Attributes that the file system lacks are left out.
pub fn random_tree(dir: &Path, files: usize, seed: u64) -> io::Result<()> {
    sys::raise_file_limit();
    let root = sys::open_dir(dir)?;
    let mut maker = Maker { rng: Rng::new(seed), made: Vec::new(), root: sys::is_root() };
    deep_branch(&root)?;
    let mut dirs = vec![root];
    for number in 0..files {
        let at = maker.rng.below(dirs.len() as u64) as usize;
        let fd = dirs[at].as_raw_fd();
        if number % 16 == 3 && dirs.len() < 400 {
            let name = maker.name(number);
            sys::mkdirat(fd, sys::os(&name), 0o755)?;
            dirs.push(sys::openat(fd, sys::os(&name), sys::O_RDONLY | sys::O_DIRECTORY, 0)?);
            if maker.rng.one_in(3) {
                maker.dir_attributes(dirs.last().expect("just pushed").as_raw_fd())?;
            }
        } else {
            maker.object(fd, at, number, &dirs)?;
        }
    }
    // Directories last: what is made in them sets their times.
    for dir in &dirs {
        let times = maker.times();
        sys::set_times(dir.as_raw_fd(), ".", times, times)?;
    }
    Ok(())
}

fn deep_branch(root: &OwnedFd) -> io::Result<()> {
    let name = vec![b'd'; DEEP_NAME];
    let mut levels = vec![sys::openat(root.as_raw_fd(), ".", sys::O_RDONLY | sys::O_DIRECTORY, 0)?];
    for level in 0..DEEP_LEVELS {
        let at = levels[level].as_raw_fd();
        sys::mkdirat(at, sys::os(&name), 0o755)?;
        levels.push(sys::openat(at, sys::os(&name), sys::O_RDONLY | sys::O_DIRECTORY, 0)?);
    }
    let bottom = levels[DEEP_LEVELS].as_raw_fd();
    let file = sys::openat(bottom, "at the bottom", sys::O_CREAT | sys::O_WRONLY, 0o640)?;
    sys::pwrite_all(file.as_raw_fd(), b"deeper than PATH_MAX", 0)?;
    let times = (1_234_567_890, 987_654_321);
    sys::set_times(bottom, "at the bottom", times, times)?;
    levels.iter().try_for_each(|level| sys::set_times(level.as_raw_fd(), ".", times, times))
}

struct Maker {
    rng: Rng,
    /// Files made, (index of the directory, name), to link to.
    made: Vec<(usize, Vec<u8>)>,
    root: bool,
}

impl Maker {
    fn object(&mut self, fd: RawFd, at: usize, number: usize, dirs: &[OwnedFd]) -> io::Result<()> {
        let name = self.name(number);
        let osname = sys::os(&name);
        match self.rng.below(20) {
            0 => {
                let target = self.rng.bytes(20).iter().map(|b| b | 1).collect::<Vec<_>>();
                sys::symlinkat(&target, fd, osname)?;
            }
            1 => sys::mknodat(fd, osname, sys::S_IFIFO | 0o600, 0)?,
            2 if self.root => sys::mknodat(fd, osname, libc::S_IFCHR | 0o600, libc::makedev(1, 3))?,
            3 | 4 if !self.made.is_empty() => {
                let pick = self.rng.below(self.made.len() as u64) as usize;
                let (dir, old) = self.made[pick].clone();
                return sys::linkat(dirs[dir].as_raw_fd(), sys::os(&old), fd, osname);
            }
            kind => {
                self.file(fd, &name, kind)?;
                self.made.push((at, name.clone()));
            }
        }
        let times = self.times();
        sys::set_times(fd, osname, times, times)
    }

    fn file(&mut self, dir: RawFd, name: &[u8], kind: u64) -> io::Result<()> {
        let file = sys::openat(dir, sys::os(name), sys::O_CREAT | sys::O_EXCL | sys::O_RDWR, 0o644)?;
        let fd = file.as_raw_fd();
        match kind {
            5 => {}
            6 | 7 => {
                // Sparse: islands of data in up to 4 MiB, the end a hole now and then.
                for _ in 0..=self.rng.below(4) {
                    let at = self.rng.below(1000) * 4096 + self.rng.below(4096);
                    let len = 1 + self.rng.below(9000) as usize;
                    sys::pwrite_all(fd, &self.rng.bytes(len), at)?;
                }
                if self.rng.one_in(2) {
                    // SAFETY: plain numbers.
                    unsafe { libc::ftruncate(fd, 5 << 20) };
                }
            }
            8 => sys::pwrite_all(fd, &self.rng.bytes(150_000), 0)?,
            _ => {
                let len = self.rng.below(6000) as usize;
                sys::pwrite_all(fd, &self.rng.bytes(len), 0)?;
            }
        }
        if self.rng.one_in(5) {
            let len = self.rng.below(100) as usize;
            optional(sys::fset_xattr(fd, "user.kagami test", &self.rng.bytes(len)))?;
        }
        if self.rng.one_in(8) {
            let acl = sys::acl(6, &[(1000 + self.rng.below(9) as u32, 4)], 4, 6, 0);
            optional(sys::fset_xattr(fd, "system.posix_acl_access", &acl))?;
        } else {
            let mode = [0o644, 0o600, 0o755, 0o444, 0o640, 0o4755][self.rng.below(6) as usize];
            sys::chmodat(dir, sys::os(name), mode)?;
        }
        if self.root && self.rng.one_in(6) {
            sys::lchownat(dir, sys::os(name), 1000 + self.rng.below(5) as u32, 1000)?;
            optional(sys::fset_xattr(fd, "trusted.kagami_test", b"for root alone"))?;
        }
        Ok(())
    }

    fn dir_attributes(&mut self, fd: RawFd) -> io::Result<()> {
        optional(sys::fset_xattr(fd, "user.of a directory", &self.rng.bytes(9)))?;
        let acl = sys::acl(7, &[(1234, 5)], 5, 7, 5);
        optional(sys::fset_xattr(fd, "system.posix_acl_default", &acl))?;
        if self.rng.one_in(2) {
            sys::chmodat(fd, ".", 0o2755)?;
        }
        Ok(())
    }

    /// A name of its own (by its number): plain ones, ones that are no UTF-8, ones of 255 bytes, ones with odd characters.
    fn name(&mut self, number: usize) -> Vec<u8> {
        let mut name = format!("{number:05}").into_bytes();
        match self.rng.below(12) {
            0 => name.extend(self.rng.bytes(30).iter().map(|b| if matches!(b, 0 | b'/') { 0xff } else { *b })),
            1 => name.resize(255, b'n'),
            2 => name.extend("\n \\ 鏡 '\"*".bytes()),
            _ => {}
        }
        name
    }

    fn times(&mut self) -> (i64, i64) {
        (1_000_000_000 + self.rng.below(900_000_000) as i64, self.rng.below(1_000_000_000) as i64)
    }
}

/// What a file system or an ordinary user cannot have is left out.
fn optional(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EPERM)) => Ok(()),
        other => other,
    }
}
