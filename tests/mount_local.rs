//! The mount over an order of its own that sends every change to a second region, whose tree must then be the same.
//!
//! Each entry goes through its frame and back, with every check a receiver makes. What the mount does not send, or sends
//! wrongly, is a difference of the two trees at the end. Works as root and as an ordinary user.

use crate::mirror;
use crate::support;

use mirror::Lab;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::Ordering;
use support::conformance::{self, FSX_MIXES, Verdict};
use support::{is_root, posix};

/// Operations of fsx for each mix.
const FSX_OPERATIONS: u64 = 2_000;

fn pjdfstest(lab: Lab) {
    let dir = lab.mnt().join("pjdfstest");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    let report = conformance::pjdfstest(&dir, &[]);
    let mut failed: Vec<_> = report.tests.iter().filter(|(_, (v, _))| *v == Verdict::Failed).collect();
    // It starts a program and expects it to be running at once; on a busy machine it is not yet, and it may try again.
    let again = conformance::pjdfstest(&dir, &["etxtbsy"]);
    failed.retain(|(name, _)| again.tests.get(*name).is_none_or(|(v, _)| *v == Verdict::Failed));
    assert!(failed.is_empty(), "{failed:#?}");
    println!("{} passed, {} skipped", report.count(Verdict::Passed), report.count(Verdict::Skipped));
    lab.finish();
}

#[test]
fn pjdfstest_with_writeback() {
    pjdfstest(Lab::up(false));
}

#[test]
fn pjdfstest_with_write_through() {
    pjdfstest(Lab::up(true));
}

fn fsx(lab: Lab) {
    let mixes: Vec<_> = FSX_MIXES.iter().map(|(name, _)| *name).collect();
    let operations = support::env_number("KAGAMI_FSX_OPERATIONS", FSX_OPERATIONS);
    let errors = conformance::fsx_mixes(lab.mnt(), &mixes, operations, support::seed("fsx"));
    assert!(errors.is_empty(), "{}", errors.join("\n"));
    lab.compare();
    let errors = conformance::fsx_parallel(lab.mnt(), operations, support::seed("fsx in parallel"));
    assert!(errors.is_empty(), "{}", errors.join("\n"));
    lab.finish();
}

#[test]
fn fsx_with_writeback() {
    fsx(Lab::up(false));
}

#[test]
fn fsx_with_write_through() {
    fsx(Lab::up(true));
}

fn posix_checks(lab: Lab) {
    let failed: Vec<_> = posix::run_all(lab.mnt()).into_iter().map(|(name, why)| format!("{name}: {why}")).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    lab.finish();
}

#[test]
fn posix_checks_with_writeback() {
    posix_checks(Lab::up(false));
}

#[test]
fn posix_checks_with_write_through() {
    posix_checks(Lab::up(true));
}

#[test]
fn a_tree_of_everything() {
    let lab = Lab::up(false);
    let native = tempfile::tempdir_in(support::base_dir()).unwrap();
    let tree = lab.mnt().join("tree");
    fs::create_dir(&tree).unwrap();
    support::random::random_tree(native.path(), 400, 7).unwrap();
    support::random::random_tree(&tree, 400, 7).unwrap();
    lab.compare();
    let options = support::tree::Options { mtime: false, dir_mtime: false, modes: true, ..Default::default() };
    fs::set_permissions(native.path(), fs::metadata(&tree).unwrap().permissions()).unwrap();
    if let Err(e) = support::compare_trees_with(native.path(), &tree, &options) {
        panic!("{}", e.join("\n"));
    }
    fs::remove_dir_all(&tree).unwrap();
    lab.finish();
}

#[test]
fn a_file_without_a_name_lives_on_and_is_nobody_elses_business() {
    let lab = Lab::up(false);
    let p = lab.mnt().join("gone");
    let mut f = fs::OpenOptions::new().read(true).write(true).create_new(true).open(&p).unwrap();
    f.write_all(b"before").unwrap();
    fs::remove_file(&p).unwrap();
    f.write_all(b" after").unwrap();
    f.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
    f.set_len(9).unwrap();
    f.sync_all().unwrap();
    let mut s = String::new();
    f.seek(SeekFrom::Start(0)).unwrap();
    f.read_to_string(&mut s).unwrap();
    assert_eq!(s, "before af");
    assert_eq!(f.metadata().unwrap().nlink(), 0);
    assert_eq!(f.metadata().unwrap().mode() & 0o7777, 0o600);
    drop(f);
    lab.finish();
}

#[test]
fn a_file_goes_on_under_its_other_name() {
    let lab = Lab::up(false);
    let (a, b) = (lab.mnt().join("a"), lab.mnt().join("d/b"));
    fs::create_dir(lab.mnt().join("d")).unwrap();
    fs::write(&a, "one").unwrap();
    let f = fs::OpenOptions::new().write(true).open(&a).unwrap();
    fs::hard_link(&a, &b).unwrap();
    fs::remove_file(&a).unwrap();
    f.write_all_at(b"two", 0).unwrap();
    f.sync_all().unwrap();
    fs::rename(lab.mnt().join("d"), lab.mnt().join("e")).unwrap();
    f.write_all_at(b" three", 3).unwrap();
    drop(f);
    assert_eq!(fs::read(lab.mnt().join("e/b")).unwrap(), b"two three");
    lab.finish();
}

#[test]
fn holes_are_found_in_a_file_that_is_being_written() {
    let lab = Lab::up(false);
    let p = lab.mnt().join("sparse");
    let f = fs::OpenOptions::new().read(true).write(true).create_new(true).open(p).unwrap();
    f.write_all_at(b"x", 1 << 20).unwrap();
    assert_eq!(kagami::os::sys::seek(&f, 0, libc::SEEK_DATA).unwrap(), Some(1 << 20));
    assert_eq!(kagami::os::sys::seek(&f, 1 << 20, libc::SEEK_HOLE).unwrap(), Some((1 << 20) + 1));
    assert_eq!(f.metadata().unwrap().blocks(), 8);
    drop(f);
    lab.finish();
}

#[test]
fn times_before_1970_and_setuid_bits() {
    let lab = Lab::up(false);
    let p = lab.mnt().join("old");
    fs::write(&p, "x").unwrap();
    let old = std::time::UNIX_EPOCH - std::time::Duration::new(9, 750_000_000);
    fs::File::open(&p).unwrap().set_modified(old).unwrap();
    assert_eq!(fs::metadata(&p).unwrap().modified().unwrap(), old);
    fs::set_permissions(&p, fs::Permissions::from_mode(0o6755)).unwrap();
    fs::OpenOptions::new().append(true).custom_flags(libc::O_SYNC).open(&p).unwrap().write_all(b"y").unwrap();
    let left = fs::metadata(&p).unwrap().mode() & 0o7777;
    assert_eq!(left, if is_root() { 0o6755 } else { 0o755 });
    lab.finish();
}

/// Waits for what the kernel is told beside the answer to a request.
fn soon(what: &str, check: impl Fn() -> bool) {
    assert!(support::proc::wait_until(std::time::Duration::from_secs(5), check), "{what}");
}

fn refused_and_in_doubt(write_through: bool) {
    let lab = Lab::up(write_through);
    let (file, dir) = (lab.mnt().join("file"), lab.mnt().join("dir"));
    fs::write(&file, "as it was").unwrap();
    let f = fs::OpenOptions::new().read(true).write(true).open(&file).unwrap();
    f.sync_all().unwrap();
    lab.order.refuse.store(true, Ordering::Release);
    let written = f.write_all_at(b"refused..", 0).and_then(|()| f.sync_all());
    assert_eq!(written.unwrap_err().raw_os_error(), Some(libc::EIO));
    assert!(fs::create_dir(&dir).is_err() && fs::remove_file(&file).is_err());
    lab.order.refuse.store(false, Ordering::Release);
    soon("refused data is gone from the page cache", || {
        let r = fs::read(&file);
        println!("{r:?}");
        r.is_ok_and(|b| b == b"as it was")
    });
    assert!(!dir.exists());
    // Done here, and then the sync site did not answer.
    lab.order.lose.store(true, Ordering::Release);
    assert!(fs::create_dir(&dir).is_err());
    soon("a directory in doubt is shown as it is", || dir.is_dir());
    assert!(fs::rename(&dir, lab.mnt().join("dir2")).is_err());
    soon("so is a rename", || !dir.exists() && lab.mnt().join("dir2").is_dir());
    assert!(fs::remove_file(&file).is_err());
    soon("so is a removal", || !file.exists());
    lab.order.lose.store(false, Ordering::Release);
    drop(f);
    // The first to ask is told of the write that failed.
    let _ = kagami::os::sys::syncfs(fs::File::open(lab.mnt()).unwrap());
    lab.finish();
}

#[test]
fn refused_and_in_doubt_with_writeback() {
    refused_and_in_doubt(false);
}

#[test]
fn refused_and_in_doubt_with_write_through() {
    refused_and_in_doubt(true);
}

/// MS-6: what is refused and undone leaves nothing behind: not in the tree, not at the peer, not in the page cache, not in
/// what is mapped, not under a descriptor that was open before.
#[test]
fn ms6_what_is_refused_and_undone_was_never_there() {
    let lab = Lab::up(true);
    let p = |n: &str| lab.mnt().join(n);
    let old: Vec<u8> = (0..40_000u32).map(|i| i as u8).collect();
    fs::write(p("file"), &old).unwrap();
    fs::create_dir(p("dir")).unwrap();
    std::os::unix::fs::symlink("file", p("link")).unwrap();
    let sparse = fs::File::create(p("sparse")).unwrap();
    sparse.write_all_at(b"end", 1 << 20).unwrap();
    let rw = |n: &str| fs::OpenOptions::new().read(true).write(true).open(p(n)).unwrap();
    let (f, holes, gone) = (rw("file"), rw("sparse"), rw("file"));
    let map = posix::data::Map::new(f.as_raw_fd(), old.len());
    assert_eq!(map.get(5000), old[5000]);
    fs::set_permissions(p("file"), fs::Permissions::from_mode(0o6755)).unwrap();
    lab.compare();
    let digest = || support::tree_digest(&lab.dir().join("a/tree")).unwrap();
    let before = digest();
    lab.order.undo.store(true, Ordering::Release);
    let eio = |what: &str, r: std::io::Result<()>| {
        assert_eq!(r.unwrap_err().raw_os_error(), Some(libc::EIO), "{what}");
        let failed = std::mem::take(&mut *lab.order.undo_failed.lock());
        assert!(failed.is_empty(), "{what}: {failed:?}");
        // The first to ask is told of a page that could not be written.
        let _ = kagami::os::sys::syncfs(fs::File::open(lab.mnt()).unwrap());
        lab.compare();
        assert_eq!(digest(), before, "{what}");
    };
    eio("write", f.write_all_at(b"new", 100));
    eio("write over the end", f.write_all_at(&[7; 9000], 39_990));
    eio("write far beyond the end", f.write_all_at(b"x", 1 << 22));
    eio("write into a hole", holes.write_all_at(&[1; 10_000], 200_001));
    eio("append", fs::OpenOptions::new().append(true).open(p("file")).unwrap().write_all(b"more"));
    eio("cut", f.set_len(17));
    eio("lengthen", f.set_len(1 << 20));
    eio("open with O_TRUNC", fs::File::create(p("file")).map(drop));
    eio("create", fs::File::create_new(p("new")).map(drop));
    eio("mkdir", fs::create_dir(p("dir/new")));
    eio("symlink", std::os::unix::fs::symlink("x", p("new")));
    eio("link", fs::hard_link(p("file"), p("dir/other")));
    eio("rename", fs::rename(p("file"), p("dir/moved")));
    eio("rename of a directory", fs::rename(p("dir"), p("dir2")));
    eio("chmod", fs::set_permissions(p("dir"), fs::Permissions::from_mode(0o711)));
    eio("utimes", f.set_modified(std::time::UNIX_EPOCH));
    let all = kagami::os::sys::fallocate;
    eio("hole", all(&f, 3, 4096, 8192));
    eio("zero", all(&f, 16, 4100, 8192));
    eio("allocate", all(&holes, 0, 0, 2 << 20));
    eio("setxattr", support::sys::set_xattr(&p("file"), "user.x", b"1"));
    eio("copy", support::sys::copy_file_range(holes.as_raw_fd(), 0, f.as_raw_fd(), 30_000, 1 << 20).map(drop));
    // Through the mapping: the page is written back by msync, refused, and what is mapped is the old page again.
    map.set(5000, !old[5000]);
    eio("msync", map.try_sync());
    soon("the mapping shows the old byte", || map.get(5000) == old[5000]);
    soon("so does the page cache", || fs::read(p("file")).is_ok_and(|b| b == old));
    let mut now = vec![0; old.len()];
    gone.read_exact_at(&mut now, 0).unwrap();
    assert_eq!(now, old, "so does a descriptor that was open before");
    soon("and the old size", || fs::metadata(p("file")).is_ok_and(|m| m.len() == old.len() as u64));
    lab.order.undo.store(false, Ordering::Release);
    drop((map, f, holes, gone, sparse));
    let _ = kagami::os::sys::syncfs(fs::File::open(lab.mnt()).unwrap());
    lab.finish();
}

/// One random change that removes nothing, and allocates nothing that is not written: what a filesystem makes of that is its
/// own business.
fn change(mnt: &Path, rng: &mut support::Rng) -> std::io::Result<()> {
    let name = |n: u64| mnt.join(format!("d{}/f{}", n % 3, n / 3 % 5));
    let (a, b) = (name(rng.next()), name(rng.next()));
    let mut data = vec![0; 1 + rng.below(30_000) as usize];
    rng.fill(&mut data);
    let off = rng.below(90_000);
    let open = |p: &Path| fs::OpenOptions::new().read(true).write(true).open(p);
    let range = |rng: &mut support::Rng| (rng.below(60_000), 1 + rng.below(30_000));
    match rng.below(15) {
        0..=2 => open(&a)?.write_all_at(&data, off),
        3 => fs::OpenOptions::new().append(true).open(a)?.write_all(&data),
        4 | 5 => open(&a)?.set_len(off),
        6 => {
            let (from, len) = range(rng);
            kagami::os::sys::fallocate(open(&a)?, 3, from, len)
        }
        7 | 8 => fs::File::create_new(a).map(drop),
        9 => fs::hard_link(a, b),
        10 if !b.exists() => fs::rename(a, b),
        11 => fs::set_permissions(a, fs::Permissions::from_mode(0o600 | (off as u32 & 0o6177))),
        12 => open(&a)?.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_nanos(rng.next() >> 2)),
        13 => support::sys::set_xattr(&a, "user.x", &data[..data.len() % 200]),
        14 => {
            let (from, len) = range(rng);
            support::sys::copy_file_range(
                open(&a)?.as_raw_fd(),
                from as i64,
                open(&b)?.as_raw_fd(),
                off as i64,
                len as usize,
            )
            .map(drop)
        }
        _ => Ok(()),
    }
}

/// MS-6: whatever is changed at random is undone exactly, in the tree and at the peer, on trees that random changes made.
#[test]
fn ms6_random_changes_are_undone_exactly() {
    let lab = Lab::up(true);
    let mut rng = support::Rng::new(support::seed("undone"));
    (0..3).for_each(|i| fs::create_dir(lab.mnt().join(format!("d{i}"))).unwrap());
    let (mut done, mut refused) = (0, 0);
    for _ in 0..support::env_number("KAGAMI_UNDO_STEPS", 40) {
        done += (0..12).filter(|_| change(lab.mnt(), &mut rng).is_ok()).count();
        lab.compare();
        let (tree, copy) = (lab.dir().join("a/tree"), tempfile::tempdir_in(support::base_dir()).unwrap());
        let before = support::tree_digest(&tree).unwrap();
        support::run_ok(
            std::process::Command::new("cp").arg("-a").arg(&tree).arg(copy.path().join("t")),
            std::time::Duration::from_secs(60),
        );
        lab.order.undo.store(true, Ordering::Release);
        for _ in 0..8 {
            let r = change(lab.mnt(), &mut rng);
            refused += usize::from(r.is_err_and(|e| e.raw_os_error() == Some(libc::EIO)));
        }
        lab.order.undo.store(false, Ordering::Release);
        let failed = std::mem::take(&mut *lab.order.undo_failed.lock());
        assert!(failed.is_empty(), "{failed:?}");
        lab.compare();
        // A copy has holes of its own.
        let options = support::tree::Options { holes: false, ..Default::default() };
        support::compare_trees_with(&copy.path().join("t"), &tree, &options).unwrap_or_else(|e| panic!("{e:#?}"));
        assert_eq!(support::tree_digest(&tree).unwrap(), before, "holes");
    }
    println!("{done} changes, {refused} more refused and undone");
    assert!(refused > 0);
    lab.finish();
}

#[test]
fn another_region_takes_over_under_open_files() {
    let lab = Lab::up(false);
    let p = |name: &str| lab.mnt().join(name);
    fs::create_dir(p("d")).unwrap();
    // The regions give other inode numbers to the same files from here on.
    fs::write(lab.dir().join("b/shift"), "").unwrap();
    for i in 0..50 {
        fs::write(p(&format!("d/f{i}")), format!("content {i}")).unwrap();
    }
    let f = fs::OpenOptions::new().read(true).write(true).open(p("d/f7")).unwrap();
    let mut listing = fs::read_dir(p("d")).unwrap();
    let mut seen = vec![listing.next().unwrap().unwrap().file_name()];
    lab.compare();
    lab.switch();
    f.write_all_at(b"CONTENT", 0).unwrap();
    f.sync_all().unwrap();
    assert_eq!(fs::read(lab.dir().join("a/tree/d/f7")).unwrap(), b"content 7");
    assert_eq!(fs::read(lab.dir().join("b/tree/d/f7")).unwrap(), b"CONTENT 7");
    seen.extend(listing.map(|e| e.unwrap().file_name()));
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 50);
    fs::rename(p("d/f8"), p("f8")).unwrap();
    fs::create_dir(p("new")).unwrap();
    fs::write(p("new/file"), "new").unwrap();
    fs::remove_file(p("d/f9")).unwrap();
    assert_eq!(fs::read(p("f8")).unwrap(), b"content 8");
    for i in (0..50).filter(|i| ![7, 8, 9].contains(i)) {
        assert_eq!(fs::read(p(&format!("d/f{i}"))).unwrap(), format!("content {i}").as_bytes());
        assert_eq!(fs::metadata(p(&format!("d/f{i}"))).unwrap().len(), format!("content {i}").len() as u64);
    }
    fs::remove_dir_all(p("d")).unwrap();
    assert_eq!(fs::read_dir(lab.dir().join("b/tree")).unwrap().count(), 2);
    drop(f);
    lab.end();
}

/// G1: what the page cache writes, and its word for the file's time, goes out without a wait; the close that follows waits for
/// both, and fails when they do not arrive. The time that an application sets is waited for by the call that sets it.
#[test]
fn g1_close_waits_for_what_the_page_cache_wrote() {
    let lab = Lab::up(false);
    let close = |f: fs::File| {
        // SAFETY: the descriptor is this function's own.
        match unsafe { libc::close(std::os::fd::IntoRawFd::into_raw_fd(f)) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error().raw_os_error()),
        }
    };
    for (lost, want) in [(false, Ok(())), (true, Err(Some(libc::EIO))), (false, Ok(()))] {
        let mut f = fs::File::create(lab.mnt().join("f")).unwrap();
        f.write_all(b"content").unwrap();
        lab.order.lose_attrs.store(lost, Ordering::Release);
        assert_eq!(close(f), want);
    }
    // The content, at a close that writes it and at one that finds it written.
    for sync in [false, true] {
        let mut f = fs::File::create(lab.mnt().join("f")).unwrap();
        f.write_all(b"content").unwrap();
        lab.order.lose.store(true, Ordering::Release);
        if sync {
            let _ = kagami::os::sys::syncfs(fs::File::open(lab.mnt()).unwrap());
        }
        assert_eq!(close(f), Err(Some(libc::EIO)), "{sync}");
        lab.order.lose.store(false, Ordering::Release);
    }
    let f = fs::OpenOptions::new().write(true).open(lab.mnt().join("f")).unwrap();
    lab.order.lose_attrs.store(true, Ordering::Release);
    let at = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    for times in [fs::FileTimes::new().set_modified(at), fs::FileTimes::new().set_modified(at).set_accessed(at)] {
        assert_eq!(f.set_times(times).unwrap_err().raw_os_error(), Some(libc::EIO));
    }
    lab.order.lose_attrs.store(false, Ordering::Release);
    f.set_times(fs::FileTimes::new().set_modified(at)).unwrap();
    assert_eq!(close(f), Ok(()));
    lab.finish();
}

/// A file that was made here has no capabilities until it is given some.
#[test]
fn capabilities_of_a_new_file_are_those_it_was_given() {
    if !is_root() {
        return;
    }
    let lab = Lab::up(false);
    let path = lab.mnt().join("f");
    let f = fs::File::create(&path).unwrap();
    let name = b"security.capability";
    let none = |e: std::io::Error| e.raw_os_error() == Some(libc::ENODATA);
    assert!(kagami::os::sys::getxattr(&f, b"", name).is_err_and(none));
    let caps = [1u8, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    kagami::os::sys::setxattr(&f, b"", name, &caps, 0).unwrap();
    assert_eq!(kagami::os::sys::getxattr(&f, b"", name).unwrap(), caps);
    f.write_all_at(b"x", 0).unwrap();
    drop(f);
    let f = fs::File::open(&path).unwrap();
    assert!(kagami::os::sys::getxattr(&f, b"", name).is_err_and(none), "a write takes them");
    drop(f);
    lab.finish();
}

/// One random operation; errors are the business of whoever came first.
fn disturb(mnt: &Path, rng: &mut support::Rng, held: &mut Vec<fs::File>) -> std::io::Result<()> {
    let mut name = || mnt.join(format!("d{}/f{}", rng.below(4), rng.below(6)));
    let (a, b) = (name(), name());
    let dir = |i: u64| mnt.join(format!("d{i}"));
    let mut data = vec![0; 1 + rng.below(30_000) as usize];
    rng.fill(&mut data);
    let off = rng.below(60_000);
    let any = |rng: &mut support::Rng, held: &Vec<fs::File>| {
        (!held.is_empty()).then(|| rng.below(held.len() as u64) as usize)
    };
    match rng.below(17) {
        0 | 1 => fs::write(a, data)?,
        2 => fs::rename(a, b)?,
        3 => fs::remove_file(a)?,
        4 | 5 => fs::hard_link(a, b)?,
        6 => held.push(fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(a)?),
        7 => std::os::unix::fs::symlink("nowhere", a)?,
        8 | 9 => {
            if let Some(i) = any(rng, held) {
                held[i].write_all_at(&data, off)?;
            }
        }
        10 => {
            if let Some(i) = any(rng, held) {
                held[i].set_len(off)?;
            }
        }
        11 => {
            if let Some(i) = any(rng, held) {
                held.swap_remove(i);
            }
        }
        12 => fs::set_permissions(a, fs::Permissions::from_mode(0o600 | (off as u32 & 0o177)))?,
        13 => fs::rename(dir(off % 4), dir((off + 1) % 4))?,
        14 => fs::create_dir(dir(off % 4))?,
        15 => {
            if let Some(i) = any(rng, held) {
                held[i].sync_data()?;
            }
        }
        _ => {
            let root = fs::File::open(mnt)?;
            let names = [format!("d{}", off % 4), format!("d{}", rng.below(4))].map(String::into_bytes);
            kagami::os::sys::renameat2(&root, &names[0], &root, &names[1], 2)?;
        }
    }
    Ok(())
}

fn disturbed(write_through: bool) {
    let lab = Lab::up(write_through);
    let steps = support::env_number("KAGAMI_DISTURB_STEPS", 3_000);
    let seed = support::seed("disturbed");
    let run = |n: u64| {
        let (mut rng, mut held) = (support::Rng::new(seed + n), Vec::new());
        (0..steps).filter(|_| disturb(lab.mnt(), &mut rng, &mut held).is_ok()).count()
    };
    let done: Vec<usize> = std::thread::scope(|s| {
        let threads: Vec<_> = (0..4).map(|n| s.spawn(move || run(n))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    println!("operations that succeeded: {done:?}");
    lab.finish();
}

#[test]
fn four_disturb_each_other_with_writeback() {
    disturbed(false);
}

#[test]
fn four_disturb_each_other_with_write_through() {
    disturbed(true);
}

#[test]
fn a_mount_point_in_use_is_refused_and_a_dead_one_taken_over() {
    let lab = Lab::up(false);
    fs::write(lab.mnt().join("x"), "").unwrap();
    let again = mirror::volume_at(&lab.dir().join("third"), &lab.dir().join("fourth"), false);
    let e = kagami::fs::mount(again.clone(), lab.mnt(), Default::default()).err().unwrap();
    assert_eq!(e.kind, kagami::base::Kind::Refused);
    if !lab.abort_leaving_dead_mount() {
        return support::skipped("dead mount", "an ordinary user cannot break the connection here");
    }
    assert_eq!(fs::metadata(lab.mnt()).unwrap_err().raw_os_error(), Some(libc::ENOTCONN));
    let m = kagami::fs::mount(again, lab.mnt(), Default::default()).unwrap();
    assert_eq!(fs::read_dir(lab.mnt()).unwrap().count(), 0);
    assert!(m.unmount(std::time::Duration::from_secs(20)).unwrap());
    assert!(fs::read_dir(lab.mnt()).unwrap().next().is_none());
}

/// `KAGAMI_RUN='git clone … && …' cargo test --test all mount_local::a_command -- --ignored`
#[test]
#[ignore = "runs the shell command of KAGAMI_RUN in the mount"]
fn a_command_of_your_own() {
    let lab = Lab::up(support::env_number("KAGAMI_WRITE_THROUGH", 0) != 0);
    let command = std::env::var("KAGAMI_RUN").expect("KAGAMI_RUN");
    let status = std::process::Command::new("bash").args(["-ec", &command]).current_dir(lab.mnt()).status().unwrap();
    assert!(status.success(), "{status}");
    lab.finish();
}

#[test]
fn the_end_of_a_mount_is_told() {
    let dir = tempfile::tempdir_in(support::base_dir()).unwrap();
    let v = mirror::volume_at(&dir.path().join("a"), &dir.path().join("b"), false);
    let mnt = dir.path().join("mnt");
    fs::create_dir(&mnt).unwrap();
    let (tx, rx) = std::sync::mpsc::channel();
    let on_end: kagami::node::mounter::OnEnd = Box::new(move |why| tx.send(why).unwrap());
    let opts = kagami::fs::MountOpts { on_end: Some(on_end), ..Default::default() };
    let m = kagami::fs::mount(v.clone(), &mnt, opts).unwrap();
    assert_eq!(v.open_handles(), 0);
    kagami::fs::detach_at(Path::new(&mnt)).unwrap();
    let why = rx.recv_timeout(std::time::Duration::from_secs(10)).unwrap();
    assert!(why.unwrap().contains("was unmounted"));
    assert!(m.wait_ended(std::time::Duration::from_secs(1)));
    assert!(m.unmount(std::time::Duration::from_secs(20)).unwrap());
}
