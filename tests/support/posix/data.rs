//! Checks of what files hold: holes, mappings, files that have no name any more.

use super::super::sys::{self, errno};
use crate::support::Rng;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

fn create(path: &Path) -> OwnedFd {
    sys::openat(sys::AT_FDCWD, path, sys::O_CREAT | sys::O_EXCL | sys::O_RDWR, 0o644).unwrap()
}

fn size(fd: RawFd) -> u64 {
    sys::fstat(fd).unwrap().st_size as u64
}

fn read(fd: RawFd, at: u64, len: usize) -> Vec<u8> {
    let (mut data, mut got) = (vec![0; len], 0);
    while got < len {
        match sys::pread(fd, &mut data[got..], at + got as u64).unwrap() {
            0 => break,
            n => got += n,
        }
    }
    data.truncate(got);
    data
}

fn ftruncate(fd: RawFd, len: u64) {
    // SAFETY: plain numbers.
    assert_eq!(unsafe { libc::ftruncate(fd, len as i64) }, 0, "{}", std::io::Error::last_os_error());
}

pub fn unlinked_open_file(dir: &Path) {
    let path = dir.join("file");
    let file = create(&path);
    let fd = file.as_raw_fd();
    sys::pwrite_all(fd, &[1; 100_000], 0).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(sys::fstat(fd).unwrap().st_nlink, 0);
    // The name is free for another object.
    fs::write(&path, b"another").unwrap();
    sys::pwrite_all(fd, &[2; 50_000], 100_000).unwrap();
    sys::fsync(fd).unwrap();
    assert_eq!(read(fd, 99_999, 2), [1, 2]);
    ftruncate(fd, 10);
    assert_eq!((size(fd), read(fd, 0, 100)), (10, vec![1; 10]));
    // SAFETY: plain numbers.
    assert_eq!(unsafe { libc::fchmod(fd, 0o600) }, 0);
    sys::fset_xattr(fd, "user.late", b"x").unwrap();
    assert_eq!(sys::fstat(fd).unwrap().st_mode & 0o777, 0o600);
    drop(file);
    assert_eq!(fs::read(&path).unwrap(), b"another");
    assert_eq!(fs::read_dir(dir).unwrap().count(), 1);
}

pub fn removed_open_directory(dir: &Path) {
    let path = dir.join("sub");
    fs::create_dir(&path).unwrap();
    let open = sys::open_dir(&path).unwrap();
    fs::remove_dir(&path).unwrap();
    assert_eq!(errno(&sys::mkdirat(open.as_raw_fd(), "inside", 0o755)), libc::ENOENT);
    fs::create_dir(&path).unwrap();
    fs::write(path.join("file"), b"x").unwrap();
    assert_eq!(errno(&sys::lstatat(open.as_raw_fd(), "file").map(drop)), libc::ENOENT);
}

/// A shared mapping, undone when dropped.
pub struct Map(*mut u8, usize);

// SAFETY: the mapping belongs to the process, not to a thread.
unsafe impl Send for Map {}

impl Map {
    pub fn new(fd: RawFd, len: usize) -> Self {
        let (access, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, access, shared, fd, 0) };
        assert_ne!(at, libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        Self(at.cast(), len)
    }

    pub fn get(&self, at: usize) -> u8 {
        assert!(at < self.1);
        // SAFETY: inside of the mapping and of the file.
        unsafe { self.0.add(at).read_volatile() }
    }

    pub fn set(&self, at: usize, value: u8) {
        assert!(at < self.1);
        // SAFETY: inside of the mapping and of the file.
        unsafe { self.0.add(at).write_volatile(value) }
    }

    fn sync(&self) {
        self.try_sync().unwrap();
    }

    pub fn try_sync(&self) -> std::io::Result<()> {
        // SAFETY: our own mapping.
        match unsafe { libc::msync(self.0.cast(), self.1, libc::MS_SYNC) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: our own mapping, not used again.
        unsafe { libc::munmap(self.0.cast(), self.1) };
    }
}

pub fn mmap_shared_writes(dir: &Path) {
    const LEN: usize = 1 << 20;
    let path = dir.join("file");
    let file = create(&path);
    ftruncate(file.as_raw_fd(), LEN as u64);
    let (one, other) =
        (Map::new(file.as_raw_fd(), LEN), fs::File::options().read(true).write(true).open(&path).unwrap());
    let two = Map::new(other.as_raw_fd(), LEN);
    for at in (0..LEN).step_by(5000) {
        one.set(at, 7);
    }
    // Another mapping, read(2) through another handle and write(2) all see the same.
    assert_eq!((two.get(5000), two.get(5001)), (7, 0));
    assert_eq!(read(other.as_raw_fd(), 5000, 1), [7]);
    sys::pwrite_all(other.as_raw_fd(), &[9], 5001).unwrap();
    assert_eq!(one.get(5001), 9);
    one.sync();
    // The mapping outlives its handle.
    drop(file);
    two.set(LEN - 1, 8);
    drop((one, two));
    drop(other);
    let data = fs::read(&path).unwrap();
    assert_eq!((data.len(), data[10_000], data[5001], data[LEN - 1], data[1]), (LEN, 7, 9, 8, 0));
}

pub fn mmap_sees_truncate(dir: &Path) {
    let file = create(&dir.join("file"));
    let fd = file.as_raw_fd();
    sys::pwrite_all(fd, &[5; 8192], 0).unwrap();
    let map = Map::new(fd, 8192);
    assert_eq!(map.get(5000), 5);
    ftruncate(fd, 4196);
    ftruncate(fd, 8192);
    // What was cut off does not come back.
    assert_eq!((map.get(4195), map.get(4196), map.get(5000)), (5, 0, 0));
    assert_eq!(read(fd, 4196, 4096), vec![0; 8192 - 4196]);
}

pub fn fallocate(dir: &Path) {
    let file = create(&dir.join("file"));
    let fd = file.as_raw_fd();
    sys::pwrite_all(fd, b"data", 0).unwrap();
    sys::fallocate(fd, 0, 0, 1 << 20).unwrap();
    assert_eq!(size(fd), 1 << 20);
    assert_eq!((read(fd, 0, 4), read(fd, (1 << 20) - 4, 100)), (b"data".to_vec(), vec![0; 4]));
    assert!(sys::fstat(fd).unwrap().st_blocks >= 2048, "space is reserved");
    sys::fallocate(fd, sys::FALLOC_FL_KEEP_SIZE, 1 << 20, 1 << 20).unwrap();
    assert_eq!(size(fd), 1 << 20);
    assert!(sys::fstat(fd).unwrap().st_blocks >= 4096, "also beyond the end");
    assert_eq!(errno(&sys::fallocate(fd, 0, 0, 0)), libc::EINVAL);
    assert_eq!(errno(&sys::fallocate(fd, 0, -1, 10)), libc::EINVAL);
    let reading = sys::openat(sys::AT_FDCWD, dir.join("file"), sys::O_RDONLY, 0).unwrap();
    assert_eq!(errno(&sys::fallocate(reading.as_raw_fd(), 0, 0, 10)), libc::EBADF);
}

pub fn punch_hole(dir: &Path) {
    let file = create(&dir.join("file"));
    let fd = file.as_raw_fd();
    let data = Rng::new(4).bytes(256 * 1024);
    sys::pwrite_all(fd, &data, 0).unwrap();
    sys::fsync(fd).unwrap();
    let punch = sys::FALLOC_FL_PUNCH_HOLE | sys::FALLOC_FL_KEEP_SIZE;
    // Not on block boundaries: whole blocks become a hole, the edges zeros.
    sys::fallocate(fd, punch, 10_000, 100_000).unwrap();
    let mut expected = data.clone();
    expected[10_000..110_000].fill(0);
    assert!(read(fd, 0, data.len() + 1) == expected, "content after the punch");
    sys::fsync(fd).unwrap();
    // 92 KiB of 256 are a hole now; a block or two of the file system's own may be counted.
    assert!(sys::fstat(fd).unwrap().st_blocks <= (256 - 92 + 8) * 2, "space is given back");
    assert_eq!(sys::data_segments(fd, size(fd)).unwrap(), [(0, 12_288), (106_496, 262_144)]);
    // Beyond the end nothing happens; without KEEP_SIZE it is refused.
    sys::fallocate(fd, punch, 1 << 20, 4096).unwrap();
    assert_eq!(size(fd), 256 * 1024);
    assert_eq!(errno(&sys::fallocate(fd, sys::FALLOC_FL_PUNCH_HOLE, 0, 4096)), libc::EOPNOTSUPP);
}

pub fn zero_range(dir: &Path) {
    let file = create(&dir.join("file"));
    let fd = file.as_raw_fd();
    sys::pwrite_all(fd, &[3; 20_000], 0).unwrap();
    sys::fallocate(fd, sys::FALLOC_FL_ZERO_RANGE, 5_000, 10_000).unwrap();
    let mut expected = vec![3; 20_000];
    expected[5_000..15_000].fill(0);
    assert!(read(fd, 0, 30_000) == expected);
    sys::fallocate(fd, sys::FALLOC_FL_ZERO_RANGE, 15_000, 10_000).unwrap();
    assert_eq!(size(fd), 25_000);
    sys::fallocate(fd, sys::FALLOC_FL_ZERO_RANGE | sys::FALLOC_FL_KEEP_SIZE, 24_000, 10_000).unwrap();
    assert_eq!((size(fd), read(fd, 14_999, 20_000)), (25_000, vec![0; 10_001]));
}

pub fn sparse(dir: &Path) {
    const MIB: u64 = 1 << 20;
    let file = create(&dir.join("file"));
    let fd = file.as_raw_fd();
    sys::pwrite_all(fd, &[1; 4096], 10 * MIB).unwrap();
    sys::pwrite_all(fd, &[2; 100], 1024 * MIB).unwrap();
    ftruncate(fd, 4096 * MIB);
    let data = [(10 * MIB, 10 * MIB + 4096), (1024 * MIB, 1024 * MIB + 4096)];
    assert_eq!(sys::data_segments(fd, size(fd)).unwrap(), data);
    sys::fsync(fd).unwrap();
    assert_eq!(sys::data_segments(fd, size(fd)).unwrap(), data);
    assert!(sys::fstat(fd).unwrap().st_blocks < 1000, "holes take no space");
    assert_eq!(read(fd, 1024 * MIB - 10, 120), [vec![0; 10], vec![2; 100], vec![0; 10]].concat());
    assert_eq!(read(fd, 4096 * MIB - 5, 100), [0; 5]);
    let empty = create(&dir.join("empty"));
    ftruncate(empty.as_raw_fd(), 100 * MIB);
    assert_eq!(sys::data_segments(empty.as_raw_fd(), 100 * MIB).unwrap(), []);
    // SAFETY: plain numbers.
    assert_eq!(unsafe { libc::lseek(empty.as_raw_fd(), 0, libc::SEEK_HOLE) }, 0);
}

pub fn truncate(dir: &Path) {
    let path = dir.join("file");
    let file = create(&path);
    let fd = file.as_raw_fd();
    sys::pwrite_all(fd, &[6; 10_000], 0).unwrap();
    ftruncate(fd, 5_000);
    ftruncate(fd, 10_000);
    assert_eq!(read(fd, 4_999, 6_000), [vec![6], vec![0; 5_000]].concat());
    // Appending after a truncate by another handle goes to the new end.
    let other = sys::openat(sys::AT_FDCWD, &path, sys::O_WRONLY | sys::O_APPEND, 0).unwrap();
    ftruncate(fd, 10);
    // SAFETY: two bytes.
    assert_eq!(unsafe { libc::write(other.as_raw_fd(), b"ab".as_ptr().cast(), 2) }, 2);
    assert_eq!(read(fd, 9, 10), [6, b'a', b'b']);
    drop(sys::openat(sys::AT_FDCWD, &path, sys::O_WRONLY | sys::O_TRUNC, 0).unwrap());
    assert_eq!((size(fd), read(fd, 0, 10)), (0, vec![]));
}

pub fn copy_file_range(dir: &Path) {
    let data = Rng::new(9).bytes(300_000);
    let (from, to) = (create(&dir.join("from")), create(&dir.join("to")));
    sys::pwrite_all(from.as_raw_fd(), &data, 0).unwrap();
    let copy = |source: &OwnedFd, at: usize, to_at: usize, len: usize| {
        let mut done = 0;
        while done < len {
            let (a, b) = ((at + done) as i64, (to_at + done) as i64);
            match sys::copy_file_range(source.as_raw_fd(), a, to.as_raw_fd(), b, len - done).unwrap() {
                0 => break,
                n => done += n,
            }
        }
        done
    };
    assert_eq!(copy(&from, 1_000, 5_000, 200_000), 200_000);
    assert_eq!(size(to.as_raw_fd()), 205_000);
    assert!(read(to.as_raw_fd(), 5_000, 200_000) == data[1_000..201_000]);
    assert_eq!(read(to.as_raw_fd(), 0, 5_000), vec![0; 5_000]);
    assert_eq!(copy(&from, 299_000, 0, 5_000), 1_000, "up to the end of the source");
    // Within one file, and from a file that has no name any more.
    assert_eq!(copy(&to, 5_000, 300_000, 10_000), 10_000);
    assert!(read(to.as_raw_fd(), 300_000, 10_000) == data[1_000..11_000]);
    fs::remove_file(dir.join("from")).unwrap();
    assert_eq!(copy(&from, 0, 400_000, 100), 100);
    assert_eq!(read(to.as_raw_fd(), 400_000, 100), &data[..100]);
}

/// st_blocks of a file that is open for writing: archivers take a file of no blocks for one large hole.
pub fn blocks_are_counted(dir: &Path) {
    let file = create(&dir.join("file"));
    let fd = file.as_raw_fd();
    sys::pwrite_all(fd, &Rng::new(2).bytes(256 * 1024), 0).unwrap();
    sys::fsync(fd).unwrap();
    // Attributes may be cached, but not for long.
    let counted = || sys::fstat(fd).unwrap().st_blocks >= 512;
    assert!(crate::support::proc::wait_until(std::time::Duration::from_secs(3), counted), "256 KiB after fsync");
}
