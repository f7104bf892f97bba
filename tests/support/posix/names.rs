//! Checks of names, links and attributes.

use super::super::sys::{self, errno};
use super::{Child, open_as};
use crate::support::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;

pub fn thousand_hard_links(dir: &Path) {
    let first = dir.join("first");
    fs::write(&first, b"one object").unwrap();
    let inode = sys::lstat(&first).unwrap().st_ino;
    for n in 1..1000 {
        fs::hard_link(&first, dir.join(format!("link{n}"))).unwrap();
    }
    assert_eq!(sys::lstat(&dir.join("link500")).unwrap().st_nlink, 1000);
    for n in 1..1000 {
        assert_eq!(sys::lstat(&dir.join(format!("link{n}"))).unwrap().st_ino, inode);
    }
    fs::remove_file(&first).unwrap();
    (1..900).for_each(|n| fs::remove_file(dir.join(format!("link{n}"))).unwrap());
    assert_eq!(sys::lstat(&dir.join("link999")).unwrap().st_nlink, 100);
    assert_eq!(fs::read(dir.join("link999")).unwrap(), b"one object");
}

pub fn hard_link_writes_through_any_name(dir: &Path) {
    fs::create_dir(dir.join("sub")).unwrap();
    fs::write(dir.join("a"), b"0000").unwrap();
    fs::hard_link(dir.join("a"), dir.join("sub/b")).unwrap();
    let through_a = fs::File::options().write(true).open(dir.join("a")).unwrap();
    fs::remove_file(dir.join("a")).unwrap();
    // The name by which it was opened is gone, the object is not.
    sys::pwrite_all(through_a.as_raw_fd(), b"1111", 2).unwrap();
    sys::fset_xattr(through_a.as_raw_fd(), "user.through", b"a").unwrap();
    drop(through_a);
    assert_eq!(fs::read(dir.join("sub/b")).unwrap(), b"001111");
    let b = fs::File::open(dir.join("sub/b")).unwrap();
    assert_eq!(sys::get_xattr(b.as_raw_fd(), b"user.through").unwrap(), b"a");
    assert_eq!(sys::lstat(&dir.join("sub/b")).unwrap().st_nlink, 1);
}

pub fn rename_over_a_file_that_is_read(dir: &Path) {
    let (old, new) = (vec![1u8; 300_000], vec![2u8; 200_000]);
    fs::write(dir.join("file"), &old).unwrap();
    let reader = fs::File::open(dir.join("file")).unwrap();
    let mut buf = vec![0; 1000];
    assert_eq!(sys::pread(reader.as_raw_fd(), &mut buf, 0).unwrap(), 1000);
    fs::write(dir.join("new"), &new).unwrap();
    fs::rename(dir.join("new"), dir.join("file")).unwrap();
    assert_eq!(fs::read(dir.join("file")).unwrap(), new);
    // The reader goes on with the old object to its end.
    let mut rest = vec![0; 300_000];
    let mut got = 0;
    while got < rest.len() {
        match sys::pread(reader.as_raw_fd(), &mut rest[got..], got as u64).unwrap() {
            0 => break,
            n => got += n,
        }
    }
    assert!(rest == old, "the old object changed under its reader");
    let st = sys::fstat(reader.as_raw_fd()).unwrap();
    assert_eq!((st.st_nlink, st.st_size), (0, 300_000));
    assert!(!dir.join("new").exists());
}

pub fn rename_flags(dir: &Path) {
    let at = sys::open_dir(dir).unwrap();
    let fd = at.as_raw_fd();
    let rename = |a: &str, b: &str, flags| errno(&sys::renameat2(fd, a, fd, b, flags));
    fs::write(dir.join("a"), b"a").unwrap();
    fs::write(dir.join("b"), b"b").unwrap();
    assert_eq!(rename("a", "b", sys::RENAME_NOREPLACE), libc::EEXIST);
    assert_eq!(rename("a", "c", sys::RENAME_NOREPLACE), 0);
    assert_eq!(rename("missing", "d", sys::RENAME_NOREPLACE), libc::ENOENT);
    assert_eq!(rename("c", "b", sys::RENAME_EXCHANGE), 0);
    assert_eq!((fs::read(dir.join("c")).unwrap(), fs::read(dir.join("b")).unwrap()), (b"b".to_vec(), b"a".to_vec()));
    assert_eq!(rename("c", "missing", sys::RENAME_EXCHANGE), libc::ENOENT);
    assert_eq!(rename("b", "c", sys::RENAME_EXCHANGE | sys::RENAME_NOREPLACE), libc::EINVAL);
    // A directory that holds something against a file, and two directories.
    fs::create_dir_all(dir.join("d/inside")).unwrap();
    assert_eq!(rename("c", "d", sys::RENAME_EXCHANGE), 0);
    assert_eq!(fs::read(dir.join("d")).unwrap(), b"b");
    assert!(dir.join("c/inside").is_dir());
    fs::create_dir(dir.join("e")).unwrap();
    assert_eq!(rename("c", "e", sys::RENAME_EXCHANGE), 0);
    assert!(dir.join("e/inside").is_dir() && !dir.join("c/inside").exists());
    assert_eq!(rename("e", "e/inside", sys::RENAME_EXCHANGE), libc::EINVAL);
}

pub fn deeper_than_path_max(dir: &Path) {
    const LEVELS: usize = 40;
    let name = "d".repeat(200);
    let mut levels = vec![sys::open_dir(dir).unwrap()];
    for level in 0..LEVELS {
        let at = levels[level].as_raw_fd();
        sys::mkdirat(at, &name, 0o755).unwrap();
        levels.push(sys::openat(at, &name, sys::O_RDONLY | sys::O_DIRECTORY, 0).unwrap());
    }
    let bottom = levels[LEVELS].as_raw_fd();
    let file = sys::openat(bottom, "file", sys::O_CREAT | sys::O_RDWR, 0o644).unwrap();
    sys::pwrite_all(file.as_raw_fd(), b"deep", 0).unwrap();
    sys::fset_xattr(file.as_raw_fd(), "user.deep", b"yes").unwrap();
    sys::linkat(bottom, "file", bottom, "link").unwrap();
    sys::symlinkat(b"file", bottom, "symlink").unwrap();
    sys::renameat2(bottom, "link", levels[LEVELS - 1].as_raw_fd(), "moved", 0).unwrap();
    sys::set_times(bottom, "symlink", (1, 2), (3, 4)).unwrap();
    assert_eq!(sys::names(bottom).unwrap(), [b"file".to_vec(), b"symlink".to_vec()]);
    assert_eq!(sys::lstatat(levels[LEVELS - 1].as_raw_fd(), "moved").unwrap().st_nlink, 2);
    // A directory in the middle moves to the top with all that is below it, open files included.
    let half = levels[LEVELS / 2].as_raw_fd();
    sys::renameat2(half, &name, levels[0].as_raw_fd(), "lifted", 0).unwrap();
    sys::pwrite_all(file.as_raw_fd(), b"still", 0).unwrap();
    assert_eq!(sys::fstat(file.as_raw_fd()).unwrap().st_size, 5);
    assert_eq!(sys::lstatat(bottom, "file").unwrap().st_size, 5);
}

pub fn readdir_with_seek(dir: &Path) {
    let sub = dir.join("many");
    fs::create_dir(&sub).unwrap();
    (0..1500).for_each(|n| fs::write(sub.join(format!("stays{n}")), b"").unwrap());
    (0..500).for_each(|n| fs::write(sub.join(format!("goes{n}")), b"").unwrap());
    let mut stream = Stream::open(&sub);
    let before: Vec<_> = (0..700).map(|_| stream.next().expect("more entries")).collect();
    let position = stream.tell();
    let check = |rest: Vec<String>| {
        let mut seen = BTreeMap::<String, u32>::new();
        before.iter().cloned().chain(rest).for_each(|n| *seen.entry(n).or_default() += 1);
        for n in 0..1500 {
            assert_eq!(seen.get(&format!("stays{n}")), Some(&1), "stays{n} must be seen exactly once");
        }
    };
    (0..500).for_each(|n| fs::remove_file(sub.join(format!("goes{n}"))).unwrap());
    (0..300).for_each(|n| fs::write(sub.join(format!("comes{n}")), b"").unwrap());
    check(stream.rest());
    stream.seek(position);
    check(stream.rest());
    stream.rewind();
    let all: BTreeSet<_> = stream.rest().into_iter().collect();
    assert_eq!(all.len(), 1500 + 300 + 2, "after rewinddir the directory as it is, . and .. included");
    // Removing what was just read, as rm -r does, reaches everything.
    stream.rewind();
    while let Some(name) = stream.next() {
        if name != "." && name != ".." {
            fs::remove_file(sub.join(name)).unwrap();
        }
    }
    drop(stream);
    fs::remove_dir(&sub).unwrap();
}

struct Stream(*mut libc::DIR);

impl Stream {
    fn open(path: &Path) -> Self {
        // SAFETY: NUL-terminated path.
        let stream = unsafe { libc::opendir(sys::c(path).unwrap().as_ptr()) };
        assert!(!stream.is_null());
        Self(stream)
    }

    fn next(&mut self) -> Option<String> {
        // SAFETY: the stream is open; the entry is read before the next call.
        unsafe {
            let entry = libc::readdir64(self.0);
            (!entry.is_null())
                .then(|| std::ffi::CStr::from_ptr((*entry).d_name.as_ptr()).to_string_lossy().into_owned())
        }
    }

    fn rest(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.next()).collect()
    }

    fn tell(&self) -> libc::c_long {
        // SAFETY: the stream is open.
        unsafe { libc::telldir(self.0) }
    }

    fn seek(&mut self, position: libc::c_long) {
        // SAFETY: the position is of this stream.
        unsafe { libc::seekdir(self.0, position) }
    }

    fn rewind(&mut self) {
        // SAFETY: the stream is open.
        unsafe { libc::rewinddir(self.0) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: opened by us.
        unsafe { libc::closedir(self.0) };
    }
}

pub fn odd_names(dir: &Path) {
    let at = sys::open_dir(dir).unwrap();
    let fd = at.as_raw_fd();
    let every_byte: Vec<u8> = (1..=255u8).filter(|b| *b != b'/').collect();
    let mut rng = Rng::new(3);
    let mut names = vec![every_byte.clone(), vec![0xff; 255], b"-rf *".to_vec(), b" ".to_vec(), b"...".to_vec()];
    for _ in 0..50 {
        names.push(rng.bytes(255).iter().map(|b| if matches!(b, 0 | b'/') { 0x80 } else { *b }).collect());
    }
    for name in &names {
        let file = sys::openat(fd, sys::os(name), sys::O_CREAT | sys::O_EXCL | sys::O_WRONLY, 0o644).unwrap();
        sys::pwrite_all(file.as_raw_fd(), name, 0).unwrap();
    }
    let mut sorted = names.clone();
    sorted.sort();
    assert_eq!(sys::names(fd).unwrap(), sorted);
    for name in &names {
        let file = sys::openat(fd, sys::os(name), sys::O_RDONLY, 0).unwrap();
        let mut content = vec![0; 300];
        let n = sys::pread(file.as_raw_fd(), &mut content, 0).unwrap();
        assert_eq!(&content[..n], &name[..]);
    }
    assert_eq!(errno(&sys::mkdirat(fd, sys::os(&[b'x'; 256]), 0o755)), libc::ENAMETOOLONG);
    let mut moved = every_byte.clone();
    moved.reverse();
    sys::renameat2(fd, sys::os(&every_byte), fd, sys::os(&moved), 0).unwrap();
    assert_eq!(errno(&sys::lstatat(fd, sys::os(&every_byte)).map(drop)), libc::ENOENT);
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let object = sys::openat(sys::AT_FDCWD, path, sys::O_PATH | sys::O_NOFOLLOW, 0).unwrap();
    sys::get_xattr(object.as_raw_fd(), name.as_bytes()).ok()
}

pub fn acl_inheritance(dir: &Path) {
    const ACCESS: &str = "system.posix_acl_access";
    const DEFAULT: &str = "system.posix_acl_default";
    let default = sys::acl(7, &[(1234, 7)], 5, 7, 0);
    sys::set_xattr(dir, DEFAULT, &default).unwrap();
    let file = dir.join("file");
    drop(sys::openat(sys::AT_FDCWD, &file, sys::O_CREAT | sys::O_WRONLY, 0o664).unwrap());
    // The mode asked for limits owner, mask and others; the umask plays no part.
    assert_eq!(xattr(&file, ACCESS), Some(sys::acl(6, &[(1234, 7)], 5, 6, 0)));
    assert_eq!(sys::lstat(&file).unwrap().st_mode & 0o777, 0o660);
    let sub = dir.join("sub");
    sys::mkdirat(sys::AT_FDCWD, &sub, 0o777).unwrap();
    assert_eq!(xattr(&sub, DEFAULT), Some(default.clone()));
    assert_eq!(xattr(&sub, ACCESS), Some(sys::acl(7, &[(1234, 7)], 5, 7, 0)));
    sys::mknodat(sys::AT_FDCWD, dir.join("fifo"), sys::S_IFIFO | 0o666, 0).unwrap();
    assert_eq!(xattr(&dir.join("fifo"), ACCESS), Some(sys::acl(6, &[(1234, 7)], 5, 6, 0)));
    // chmod changes the mask, and an ACL changes the mode.
    sys::chmodat(sys::AT_FDCWD, &file, 0o640).unwrap();
    assert_eq!(xattr(&file, ACCESS), Some(sys::acl(6, &[(1234, 7)], 5, 4, 0)));
    sys::set_xattr(&file, ACCESS, &sys::acl(4, &[(1234, 6)], 4, 7, 4)).unwrap();
    assert_eq!(sys::lstat(&file).unwrap().st_mode & 0o777, 0o474);
    assert_ne!(errno(&sys::set_xattr(&file, ACCESS, b"no acl")), 0);
}

pub fn acl_is_enforced(dir: &Path) {
    if !sys::is_root() {
        return;
    }
    let (file, plain) = (dir.join("file"), dir.join("plain"));
    for path in [&file, &plain] {
        fs::write(path, b"x").unwrap();
        sys::chmodat(sys::AT_FDCWD, path, 0o600).unwrap();
    }
    sys::set_xattr(&file, "system.posix_acl_access", &sys::acl(6, &[(1234, 4)], 0, 4, 0)).unwrap();
    assert_eq!(open_as(1234, dir, "file", libc::O_RDONLY), 0);
    assert_eq!(open_as(1234, dir, "file", libc::O_WRONLY), libc::EACCES);
    assert_eq!(open_as(1235, dir, "file", libc::O_RDONLY), libc::EACCES);
    assert_eq!(open_as(1234, dir, "plain", libc::O_RDONLY), libc::EACCES);
}

pub fn setgid_directories(dir: &Path) {
    let sub = dir.join("shared");
    fs::create_dir(&sub).unwrap();
    let gid = if sys::is_root() { 4321 } else { sys::lstat(&sub).unwrap().st_gid };
    let uid = sys::lstat(&sub).unwrap().st_uid;
    sys::lchownat(sys::AT_FDCWD, &sub, uid, gid).unwrap();
    sys::chmodat(sys::AT_FDCWD, &sub, 0o2777).unwrap();
    fs::write(sub.join("file"), b"").unwrap();
    fs::create_dir(sub.join("dir")).unwrap();
    sys::symlinkat(b"x", sys::AT_FDCWD, sub.join("symlink")).unwrap();
    for name in ["file", "dir", "symlink"] {
        assert_eq!(sys::lstat(&sub.join(name)).unwrap().st_gid, gid, "{name}");
    }
    assert_eq!(sys::lstat(&sub.join("dir")).unwrap().st_mode & 0o2000, 0o2000);
    if sys::is_root() {
        // A caller of another group: his file has his user and the directory's group.
        assert_eq!(open_as(1234, &sub, "his", libc::O_CREAT | libc::O_WRONLY), 0);
        let st = sys::lstat(&sub.join("his")).unwrap();
        assert_eq!((st.st_uid, st.st_gid), (1234, 4321));
        assert_eq!(open_as(1234, dir, "his", libc::O_CREAT | libc::O_WRONLY), libc::EACCES);
    }
}

pub fn nanosecond_times(dir: &Path) {
    fs::write(dir.join("file"), b"x").unwrap();
    fs::create_dir(dir.join("sub")).unwrap();
    sys::symlinkat(b"file", sys::AT_FDCWD, dir.join("symlink")).unwrap();
    let of = |name: &str| {
        let st = sys::lstat(&dir.join(name)).unwrap();
        ((st.st_atime, st.st_atime_nsec), (st.st_mtime, st.st_mtime_nsec))
    };
    for (name, ns) in [("file", 123_456_789), ("sub", 1), ("symlink", 999_999_999)] {
        let times = ((1_111_111_111, ns), (1_222_222_222, ns));
        sys::set_times(sys::AT_FDCWD, dir.join(name), times.0, times.1).unwrap();
        assert_eq!(of(name), times, "{name}");
    }
    assert_eq!(of("file").1, (1_222_222_222, 123_456_789), "times of a symlink are its own");
    // Times before 1970, and one of the two left as it is.
    sys::set_times(sys::AT_FDCWD, dir.join("file"), (5, 6), (-1_000, 7)).unwrap();
    assert_eq!(of("file"), ((5, 6), (-1_000, 7)));
    sys::set_times(sys::AT_FDCWD, dir.join("file"), (9, libc::UTIME_OMIT), (8, 9)).unwrap();
    assert_eq!(of("file"), ((5, 6), (8, 9)));
    sys::set_times(sys::AT_FDCWD, dir.join("file"), (0, libc::UTIME_OMIT), (0, libc::UTIME_NOW)).unwrap();
    assert_eq!(of("file").0, (5, 6));
    assert!(of("file").1.0 > 1_700_000_000);
    // Times set while it is open for writing hold after the close.
    let file = fs::File::options().write(true).open(dir.join("file")).unwrap();
    sys::pwrite_all(file.as_raw_fd(), b"more", 0).unwrap();
    sys::set_times(sys::AT_FDCWD, dir.join("file"), (1, 2), (3, 4)).unwrap();
    drop(file);
    assert_eq!(of("file"), ((1, 2), (3, 4)));
}

pub fn xattrs(dir: &Path) {
    let path = dir.join("file");
    fs::write(&path, b"x").unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    let fd = file.as_raw_fd();
    let set = |name: &str, value: &[u8], flags| {
        let name = sys::c(name).unwrap();
        // SAFETY: the length given is that of the value.
        let rc = unsafe { libc::fsetxattr(fd, name.as_ptr(), value.as_ptr().cast(), value.len(), flags) };
        if rc == 0 { 0 } else { std::io::Error::last_os_error().raw_os_error().unwrap() }
    };
    assert_eq!(set("user.a", b"1", libc::XATTR_REPLACE), libc::ENODATA);
    assert_eq!(set("user.a", b"1", libc::XATTR_CREATE), 0);
    assert_eq!(set("user.a", b"2", libc::XATTR_CREATE), libc::EEXIST);
    let value = Rng::new(1).bytes(2000);
    assert_eq!(set("user.a", &value, libc::XATTR_REPLACE), 0);
    assert_eq!(set("user.empty", b"", 0), 0);
    assert_eq!(set("unknown.a", b"1", 0), libc::EOPNOTSUPP);
    assert_eq!(sys::get_xattr(fd, b"user.a").unwrap(), value);
    assert_eq!(sys::get_xattr(fd, b"user.empty").unwrap(), b"");
    assert_eq!(errno(&sys::get_xattr(fd, b"user.none")), libc::ENODATA);
    let mut listed = sys::list_xattrs(fd).unwrap();
    listed.retain(|n| n.starts_with(b"user."));
    listed.sort();
    assert_eq!(listed, [b"user.a".to_vec(), b"user.empty".to_vec()]);
    // Too small a buffer is ERANGE, the size is told when asked for.
    let name = sys::c("user.a").unwrap();
    let mut small = [0u8; 5];
    // SAFETY: the length given is that of the buffer.
    unsafe {
        assert_eq!(libc::fgetxattr(fd, name.as_ptr(), small.as_mut_ptr().cast(), 5), -1);
        assert_eq!(*libc::__errno_location(), libc::ERANGE);
        assert_eq!(libc::fgetxattr(fd, name.as_ptr(), std::ptr::null_mut(), 0), 2000);
        assert_eq!(libc::fremovexattr(fd, name.as_ptr()), 0);
        assert_eq!(libc::fremovexattr(fd, name.as_ptr()), -1);
        assert_eq!(*libc::__errno_location(), libc::ENODATA);
    }
    fs::create_dir(dir.join("sub")).unwrap();
    sys::set_xattr(&dir.join("sub"), "user.of a directory", b"yes").unwrap();
    assert_eq!(xattr(&dir.join("sub"), "user.of a directory"), Some(b"yes".to_vec()));
}

pub fn special_files(dir: &Path) {
    let fifo = dir.join("fifo");
    sys::mknodat(sys::AT_FDCWD, &fifo, sys::S_IFIFO | 0o600, 0).unwrap();
    let writer = Child::fork(|| fs::write(&fifo, b"through the fifo").map_or(1, |()| 0));
    assert_eq!(fs::read(&fifo).unwrap(), b"through the fifo");
    assert_eq!(writer.end(), 0);
    // A socket by a relative name: the path of one is at most 107 bytes.
    let child = Child::fork(|| {
        std::env::set_current_dir(dir).unwrap();
        let listener = std::os::unix::net::UnixListener::bind("socket").unwrap();
        let client = std::os::unix::net::UnixStream::connect("socket");
        drop(listener);
        i32::from(client.is_err())
    });
    assert_eq!(child.end(), 0);
    assert_eq!(sys::lstat(&dir.join("socket")).unwrap().st_mode & sys::S_IFMT, sys::S_IFSOCK);
    if sys::is_root() {
        let device = libc::makedev(1, 3);
        sys::mknodat(sys::AT_FDCWD, dir.join("null"), libc::S_IFCHR | 0o600, device).unwrap();
        sys::mknodat(sys::AT_FDCWD, dir.join("block"), libc::S_IFBLK | 0o600, libc::makedev(7, 200)).unwrap();
        let st = sys::lstat(&dir.join("null")).unwrap();
        assert_eq!((st.st_mode & sys::S_IFMT, st.st_rdev), (libc::S_IFCHR, device));
        assert_eq!(sys::lstat(&dir.join("block")).unwrap().st_rdev, libc::makedev(7, 200));
    }
}

pub fn symlinks(dir: &Path) {
    let long = vec![b'x'; 4000];
    for (name, target) in [("plain", &b"target"[..]), ("odd", b"\xff\xfe /no/utf8"), ("long", &long)] {
        sys::symlinkat(target, sys::AT_FDCWD, dir.join(name)).unwrap();
        assert_eq!(sys::readlinkat(sys::AT_FDCWD, dir.join(name)).unwrap(), target);
        let st = sys::lstat(&dir.join(name)).unwrap();
        assert_eq!(st.st_size, target.len() as i64);
    }
    sys::linkat(sys::AT_FDCWD, dir.join("plain"), sys::AT_FDCWD, dir.join("hard")).unwrap();
    let (a, b) = (sys::lstat(&dir.join("plain")).unwrap(), sys::lstat(&dir.join("hard")).unwrap());
    assert_eq!((a.st_ino, a.st_nlink), (b.st_ino, 2));
    sys::symlinkat(b"loop", sys::AT_FDCWD, dir.join("loop")).unwrap();
    let opened = sys::openat(sys::AT_FDCWD, dir.join("loop"), sys::O_RDONLY, 0).map(drop);
    assert_eq!(errno(&opened), libc::ELOOP);
    fs::write(dir.join("target"), b"followed").unwrap();
    assert_eq!(fs::read(dir.join("plain")).unwrap(), b"followed");
}

pub fn statfs(dir: &Path) {
    let path = sys::c(dir).unwrap();
    // SAFETY: plain data, filled by the call.
    let st = unsafe {
        let mut st = std::mem::zeroed::<libc::statvfs>();
        assert_eq!(libc::statvfs(path.as_ptr(), &mut st), 0);
        st
    };
    assert_eq!(st.f_namemax, 255);
    assert!(st.f_blocks > 0 && st.f_bavail <= st.f_bfree && st.f_bfree <= st.f_blocks, "blocks");
    assert!(st.f_files > 0 && st.f_ffree <= st.f_files, "files");
}
