//! Files: what std and kagami's own calls do on a simulated disk, and a region of a replica.

use super::seeds;
use crate::disk::Cut;
use crate::harness::Test;
use crate::sched::{self, Crash, MachineId, When};
use kagami::base::time::Time;
use kagami::os::{beneath, map::Page, sys, times};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

pub const TESTS: [Test; 8] = [
    ("files::std_finds_a_filesystem", std_finds_a_filesystem),
    ("files::listings_and_trees", listings_and_trees),
    ("files::kagamis_own_calls_work", kagamis_own_calls_work),
    ("files::locks_of_files", locks_of_files),
    ("files::mapped_pages_survive_a_kill", mapped_pages_survive_a_kill),
    ("files::a_power_cut_takes_what_was_not_synced", a_power_cut_takes_what_was_not_synced),
    ("files::a_crash_at_each_persist_point", a_crash_at_each_persist_point),
    ("files::machines_have_disks_of_their_own", machines_have_disks_of_their_own),
];

/// A machine with a disk of 16 MiB, and a second one mounted at `b`.
fn one() -> MachineId {
    sched::machine("a", &[("", 16 << 20), ("b", 1 << 20)])
}

fn on(m: MachineId, f: impl FnOnce() + Send + 'static) {
    sched::join(sched::spawn_on(m, "tester", Box::new(f)));
}

fn std_finds_a_filesystem() -> Result<(), String> {
    seeds(2, || {
        on(one(), || {
            let d = Path::new("/sim/a");
            fs::create_dir_all(d.join("x/y/z")).unwrap();
            fs::write(d.join("x/f"), b"hello").unwrap();
            assert_eq!(fs::read(d.join("x/f")).unwrap(), b"hello");
            assert_eq!(fs::read_to_string(d.join("x/../x/./f")).unwrap(), "hello");
            let m = fs::metadata(d.join("x/f")).unwrap();
            assert_eq!((m.len(), m.mode(), m.nlink(), m.uid()), (5, 0o100644, 1, 0));
            assert!(m.modified().unwrap() >= m.created().unwrap() && m.dev() != 0 && m.ino() != 0);
            fs::rename(d.join("x/f"), d.join("x/y/g")).unwrap();
            assert_eq!(fs::metadata(d.join("x/f")).unwrap_err().raw_os_error(), Some(libc::ENOENT));
            fs::hard_link(d.join("x/y/g"), d.join("h")).unwrap();
            symlink("x/y", d.join("s")).unwrap();
            assert_eq!(fs::read_link(d.join("s")).unwrap(), Path::new("x/y"));
            assert_eq!(fs::canonicalize(d.join("s/../y/g")).unwrap(), Path::new("/sim/a/x/y/g"));
            assert_eq!(fs::metadata(d.join("s/g")).unwrap().nlink(), 2);
            assert!(fs::symlink_metadata(d.join("s")).unwrap().is_symlink());
            fs::set_permissions(d.join("h"), fs::Permissions::from_mode(0o4755)).unwrap();
            assert_eq!(fs::metadata(d.join("h")).unwrap().mode() & 0o7777, 0o4755);
            assert_eq!(fs::copy(d.join("h"), d.join("copy")).unwrap(), 5);
            let mut f = OpenOptions::new().read(true).write(true).open(d.join("copy")).unwrap();
            f.seek(SeekFrom::End(2)).unwrap();
            f.write_all(b"end").unwrap();
            f.write_at(b"J", 0).unwrap();
            f.set_len(9).unwrap();
            f.sync_all().unwrap();
            f.sync_data().unwrap();
            let mut text = String::new();
            f.try_clone().unwrap().rewind().unwrap();
            f.read_to_string(&mut text).unwrap();
            assert_eq!(text, "Jello\0\0en");
            let mut log = OpenOptions::new().append(true).create_new(true).open(d.join("log")).unwrap();
            log.write_all(b"one ").unwrap();
            log.write_all(b"two").unwrap();
            assert_eq!(fs::read(d.join("log")).unwrap(), b"one two");
            fs::remove_file(d.join("log")).unwrap();
            log.write_all(b" three").unwrap();
            assert_eq!(log.metadata().unwrap().nlink(), 0);
            assert_eq!(fs::write(d.join("big"), vec![0; 17 << 20]).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        });
    })
}

fn listings_and_trees() -> Result<(), String> {
    seeds(2, || {
        on(one(), || {
            let d = Path::new("/sim/a/tree");
            for i in 0..300 {
                fs::create_dir_all(d.join(format!("d{}", i % 7))).unwrap();
                fs::write(d.join(format!("d{}/f{i}", i % 7)), [1; 10]).unwrap();
            }
            let mut count = 0;
            for e in fs::read_dir(d).unwrap() {
                let e = e.unwrap();
                assert!(e.file_type().unwrap().is_dir());
                count += fs::read_dir(e.path()).unwrap().map(|f| f.unwrap().metadata().unwrap().len()).sum::<u64>();
            }
            assert_eq!(count, 3000);
            let dir = File::open(d).unwrap();
            let (mut buf, mut out) = (vec![0; 1024], Vec::new());
            while sys::getdents(&dir, &mut buf, &mut out).unwrap() {}
            assert_eq!(out.len(), 9);
            let third = out[2].off;
            sys::seekdir(&dir, third).unwrap();
            let mut again = Vec::new();
            while sys::getdents(&dir, &mut buf, &mut again).unwrap() {}
            assert_eq!(
                again.iter().map(|e| &e.name).collect::<Vec<_>>(),
                out[3..].iter().map(|e| &e.name).collect::<Vec<_>>()
            );
            fs::remove_dir_all(d).unwrap();
            assert!(!d.exists());
        });
    })
}

fn kagamis_own_calls_work() -> Result<(), String> {
    seeds(2, || {
        on(one(), || {
            sys::umask(0);
            let d = File::open("/sim/a").unwrap();
            sys::mkdirat(&d, b"t", 0o1777).unwrap();
            let t = sys::openat(&d, b"t", libc::O_PATH | libc::O_DIRECTORY, 0).unwrap();
            assert_eq!(sys::fstat(&t).unwrap().mode, libc::S_IFDIR | 0o1777);
            let f = sys::openat(&t, b"f", libc::O_RDWR | libc::O_CREAT | libc::O_EXCL, 0o666).unwrap();
            assert_eq!(sys::pwrite_all(&f, b"0123456789", 5).0, 10);
            sys::fallocate(&f, libc::FALLOC_FL_PUNCH_HOLE as u32 | libc::FALLOC_FL_KEEP_SIZE as u32, 5, 2).unwrap();
            let mut b = [9; 20];
            assert_eq!(sys::pread_full(&f, &mut b, 0).unwrap(), 15);
            assert_eq!(&b[..15], b"\0\0\0\0\0\0\x0023456789");
            assert_eq!(sys::reflink(&f, &f).unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
            sys::mknodat(&t, b"fifo", libc::S_IFIFO | 0o600, 0).unwrap();
            sys::symlinkat(b"f", &t, b"l").unwrap();
            assert_eq!(sys::readlinkat(&t, b"l").unwrap(), b"f");
            let l = sys::openat(&t, b"l", libc::O_PATH, 0).unwrap();
            assert_eq!(sys::readlinkat(&l, b"").unwrap(), b"f");
            assert_eq!(sys::reopen(&l, libc::O_RDONLY).unwrap_err().raw_os_error(), Some(libc::ELOOP));
            sys::linkat(&t, b"f", &t, b"g").unwrap();
            sys::renameat2(&t, b"g", &t, b"l", libc::RENAME_EXCHANGE).unwrap();
            assert!(sys::statat(&t, b"g").unwrap().is_symlink());
            let p = sys::openat(&t, b"f", libc::O_PATH, 0).unwrap();
            sys::chmod_fd(&p, 0o640).unwrap();
            sys::chownat(&p, b"", Some(5), None).unwrap();
            sys::chownat(&t, b"f", None, Some(6)).unwrap();
            sys::utimensat(&p, b"", None, Some(Time { sec: 77, nsec: 5 })).unwrap();
            times::set_times(&p, times::Stamp::Now, times::Stamp::Omit).unwrap();
            let s = sys::statat(&t, b"f").unwrap();
            assert_eq!((s.perm(), s.uid, s.gid, s.mtime, s.nlink), (0o640, 5, 6, Time { sec: 77, nsec: 5 }, 2));
            assert!(s.atime.sec > 1_000_000_000 && sys::birth(&t, b"f").unwrap().sec > 1_000_000_000);
            sys::setxattr(&p, b"", b"user.x", &[7; 400], 1).unwrap();
            assert_eq!(sys::getxattr(&t, b"f", b"user.x").unwrap(), [7; 400]);
            sys::setxattr(&t, b"g", b"trusted.of.a.link", b"", 0).unwrap();
            assert_eq!(sys::listxattr(&t, b"g").unwrap(), [b"trusted.of.a.link"]);
            sys::removexattr(&p, b"", b"user.x").unwrap();
            assert!(sys::listxattr(&p, b"").unwrap().is_empty());
            assert_eq!(sys::fs_magic(&d).unwrap(), libc::EXT4_SUPER_MAGIC);
            assert_eq!(sys::statfs(&d).unwrap().blocks, 4096);
            assert!(beneath::open_beneath(&d, Path::new("t/f"), libc::O_RDONLY).is_ok());
            for out in ["../a", "/sim/a/t", "/etc/passwd", "t/../../x"] {
                let e = beneath::open_beneath(&d, Path::new(out), libc::O_RDONLY).unwrap_err();
                assert_eq!(e.raw_os_error(), Some(libc::EXDEV), "{out}");
            }
            sys::syncfs(&d).unwrap();
            sys::unlinkat(&t, b"f").unwrap();
            assert_eq!(sys::rmdirat(&d, b"t").unwrap_err().raw_os_error(), Some(libc::ENOTEMPTY));
            // Rights and times of the machine, whoever runs this program.
            assert!(!kagami::os::rights::limited() && sys::ids() == (0, 0));
            assert!(fs::read_to_string("/proc/self/mountinfo").unwrap().contains("ext4"));
        });
    })
}

fn locks_of_files() -> Result<(), String> {
    seeds(4, || {
        let m = one();
        let holder = sched::spawn_on(
            m,
            "holder",
            Box::new(|| {
                let f = File::create("/sim/a/lock").unwrap();
                sys::try_lock(&f).unwrap();
                loop {
                    std::thread::sleep(Duration::from_secs(1));
                }
            }),
        );
        sched::sleep(Duration::from_millis(100));
        on(m, || {
            let f = File::open("/sim/a/lock").unwrap();
            assert_eq!(sys::try_lock(&f).unwrap_err().raw_os_error(), Some(libc::EWOULDBLOCK));
            drop(f);
        });
        assert!(sched::alive(holder));
        sched::kill(m);
        on(m, || {
            let f = File::open("/sim/a/lock").unwrap();
            sys::try_lock(&f).unwrap();
            let g = f.try_clone().unwrap();
            drop(f);
            // The lock belongs to the open file, not to the descriptor.
            let other = File::open("/sim/a/lock").unwrap();
            sys::try_lock(&other).unwrap_err();
            let t = std::thread::spawn(move || other.lock().unwrap());
            std::thread::sleep(Duration::from_secs(1));
            assert!(!t.is_finished());
            drop(g);
            t.join().unwrap();
        });
    })
}

fn mapped_pages_survive_a_kill() -> Result<(), String> {
    seeds(2, || {
        let m = one();
        sched::spawn_on(
            m,
            "mapper",
            Box::new(|| {
                fs::write("/sim/a/page", [0; 8192]).unwrap();
                let f = OpenOptions::new().read(true).write(true).open("/sim/a/page").unwrap();
                let p = Page::map(&f, 4096).unwrap();
                p.store_u64(16, 0x1122_3344);
                f.write_at(b"both ways", 32).unwrap();
                assert_eq!(&p.bytes()[32..41], b"both ways");
                loop {
                    std::thread::sleep(Duration::from_secs(1));
                }
            }),
        );
        sched::sleep(Duration::from_millis(100));
        sched::kill(m);
        on(m, || {
            let f = OpenOptions::new().read(true).write(true).open("/sim/a/page").unwrap();
            let p = Page::map(&f, 8192).unwrap();
            assert_eq!(p.load_u64(16), 0x1122_3344);
        });
        sched::power_cut(m, &Cut { none_of_unsynced: true, ..Cut::default() });
        on(m, || assert!(fs::metadata("/sim/a/page").is_err()));
    })
}

fn a_power_cut_takes_what_was_not_synced() -> Result<(), String> {
    seeds(4, || {
        let m = one();
        let id = || fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let before = std::sync::Arc::new(parking_lot::Mutex::new(String::new()));
        let b = before.clone();
        on(m, move || {
            *b.lock() = id();
            let mut f = File::create("/sim/a/f").unwrap();
            f.write_all(b"synced").unwrap();
            f.sync_all().unwrap();
            f.write_all(b", and lost").unwrap();
            fs::write("/sim/a/never", b"x").unwrap();
            fs::write("/sim/a/b/other", b"disk").unwrap();
            File::open("/sim/a/b/other").unwrap().sync_all().unwrap();
        });
        sched::power_cut(m, &Cut { none_of_unsynced: true, ..Cut::default() });
        on(m, move || {
            assert_eq!(fs::read("/sim/a/f").unwrap(), b"synced");
            assert!(!Path::new("/sim/a/never").exists());
            assert_eq!(fs::read("/sim/a/b/other").unwrap(), b"disk");
            assert_ne!(*before.lock(), id());
        });
    })
}

fn a_crash_at_each_persist_point() -> Result<(), String> {
    seeds(2, || {
        for (when, kept) in [(When::Before, 2), (When::After, 3)] {
            for cut in [false, true] {
                let name = format!("m{when:?}{cut}");
                let m = sched::machine(&name, &[("", 1 << 20)]);
                let lost = Cut { none_of_unsynced: true, ..Cut::default() };
                sched::on_sync(m, 3, when, if cut { Crash::PowerCut(lost) } else { Crash::Kill });
                let dir = format!("/sim/{name}");
                let at = dir.clone();
                on(m, move || {
                    for i in 0..9 {
                        let f = File::create(format!("{at}/{i}")).unwrap();
                        f.sync_all().unwrap();
                    }
                    panic!("no crash");
                });
                assert!(!sched::is_planned(m));
                let made = sched::with_disk(m, "", |d| (0..9).filter(|i| d.exists(format!("{i}").as_bytes())).count());
                // After a kill the file is there that was to be synced; its name was made before.
                assert_eq!(made, if cut { kept } else { 3 }, "{name}");
            }
        }
    })
}

fn machines_have_disks_of_their_own() -> Result<(), String> {
    seeds(2, || {
        let a = one();
        sched::with_disk(a, "b", |d| d.write_file(b"in/side", b"second disk")).unwrap();
        on(a, || {
            assert_eq!(fs::read("/sim/a/b/in/side").unwrap(), b"second disk");
            let dev = |p: &str| fs::metadata(p).unwrap().dev();
            assert_ne!(dev("/sim/a"), dev("/sim/a/b"));
            fs::write("/sim/a/x", b"").unwrap();
            let e = fs::rename("/sim/a/x", "/sim/a/b/x").unwrap_err();
            assert_eq!(e.raw_os_error(), Some(libc::EXDEV));
            assert!(File::open("/sim/nobody/x").is_err());
        });
        // The host sees all of them.
        assert_eq!(fs::read("/sim/a/b/in/side").unwrap(), b"second disk");
    })
}
