//! Faults of the disk: errors, short writes, no room, rot, torn files, old content; and that all is a function of the seed.

use crate::at;
use crate::disk::{At, Content, Cut, Disk, DiskFaults, Node, Ofd, PAGE, Stamp};
use crate::rng::Rng;
use std::collections::BTreeMap;

const MAKE: i32 = libc::O_CREAT | libc::O_RDWR;

fn disk() -> Disk {
    Disk::new(1, 1 << 30)
}

fn make(d: &mut Disk, path: &str) -> Ofd {
    d.open(at(path), MAKE, 0o644, false).unwrap()
}

fn none() -> Cut {
    Cut { none_of_unsynced: true, ..Cut::default() }
}

fn all() -> Cut {
    Cut { all_of_unsynced: true, ..Cut::default() }
}

#[test]
fn a_failed_sync_loses_what_later_syncs_do_not_write() {
    let (mut lost, mut kept) = (0, 0);
    for seed in 0..100 {
        let mut d = disk();
        let o = make(&mut d, "f");
        d.pwrite(o, &[1; 4 * PAGE], 0).unwrap();
        d.syncfs().unwrap();
        d.pwrite(o, &[2; 4 * PAGE], 0).unwrap();
        d.set_faults(DiskFaults { eio_sync: 1.0, ..DiskFaults::default() }, seed);
        assert_eq!(d.fsync(o, seed % 2 == 0), Err(libc::EIO));
        d.set_faults(DiskFaults::default(), 0);
        assert_eq!(d.read_file(b"f").unwrap(), [2; 4 * PAGE], "calls see what was written until the cut");
        // The last page is written again, and so comes to the platter with the next sync whatever happened to it.
        d.pwrite(o, &[3; PAGE], 3 * PAGE as u64).unwrap();
        assert_eq!(d.fsync(o, false), Ok(()), "the error is told once");
        d.power_cut(&mut Rng(seed), &all());
        let now = d.read_file(b"f").unwrap();
        assert_eq!(now[3 * PAGE..], [3; PAGE]);
        for page in now.chunks(PAGE).take(3) {
            assert!(page == [1; PAGE] || page == [2; PAGE]);
            if page[0] == 1 { lost += 1 } else { kept += 1 }
        }
    }
    assert!(lost > 50 && kept > 50, "{lost} pages lost, {kept} kept");
}

#[test]
fn a_full_disk_takes_what_fits() {
    let mut d = disk();
    let o = make(&mut d, "f");
    d.pwrite(o, &[1; PAGE], 0).unwrap();
    d.fill(3 * PAGE as u64);
    assert_eq!(d.pwrite(o, &[2; 5 * PAGE], PAGE as u64), Ok(3 * PAGE), "a short write up to the last free page");
    assert_eq!(d.pwrite(o, &[2; PAGE], 9 * PAGE as u64), Err(libc::ENOSPC));
    assert_eq!(d.pwrite(o, &[3; PAGE], 0), Ok(PAGE), "what has its page can be written again");
    assert_eq!(d.fallocate(o, 0, 0, 8 * PAGE as u64), Err(libc::ENOSPC));
    assert_eq!(d.mkdir(at("d"), 0o755), Err(libc::ENOSPC));
    assert_eq!(d.open(at("g"), MAKE, 0o644, false), Err(libc::ENOSPC));
    assert_eq!(d.statfs().free, 0);
    d.rename(at("f"), at("g"), 0).unwrap();
    d.ftruncate(o, PAGE as u64).unwrap();
    assert_eq!(d.pwrite(o, &[4; 3 * PAGE], PAGE as u64), Ok(3 * PAGE), "what was cut off is free again");
    d.unfill();
    assert_eq!(d.pwrite(o, &[4; PAGE], 9 * PAGE as u64), Ok(PAGE));
    d.check().unwrap();
}

#[test]
fn errors_and_short_writes_come_as_often_as_asked_and_only_where() {
    let mut d = disk();
    let (o, other) = (make(&mut d, "here-f"), make(&mut d, "there"));
    let faults = DiskFaults {
        eio_read: 0.25,
        eio_write: 0.25,
        short_write: 0.5,
        only: Some(b"here".to_vec()),
        ..DiskFaults::default()
    };
    d.set_faults(faults, 7);
    let mut buf = [0; 100];
    for _ in 0..1000 {
        match d.pwrite(o, &[1; 100], 0) {
            Ok(n) => assert!((1..=100).contains(&n)),
            Err(e) => assert_eq!(e, libc::EIO),
        }
        if let Err(e) = d.pread(o, &mut buf, 0) {
            assert_eq!(e, libc::EIO);
        }
        assert_eq!(d.pwrite(other, &[1; 100], 0), Ok(100));
        assert_eq!(d.pread(other, &mut buf, 0), Ok(100));
    }
    let n = d.fault_counts();
    assert!((200..300).contains(&n.eio_reads) && (200..300).contains(&n.eio_writes), "{n:?}");
    assert!((300..450).contains(&n.short_writes), "{n:?}");
    d.set_faults(DiskFaults::default(), 0);
    assert_eq!((d.pwrite(o, &[1; 100], 0), d.pread(o, &mut buf, 0)), (Ok(100), Ok(100)));
}

#[test]
fn rot_flips_one_bit_and_nothing_tells() {
    for seed in 0..100 {
        let mut d = disk();
        let o = make(&mut d, "f");
        d.pwrite(o, &[9; 3000], 20_000).unwrap();
        if seed % 2 == 0 {
            d.syncfs().unwrap();
        }
        let (before, stat) = (d.read_file(b"f").unwrap(), d.stat(at("f"), true).unwrap());
        let (off, old, new) = d.rot(b"f", &mut Rng(seed)).unwrap();
        let now = d.read_file(b"f").unwrap();
        assert_eq!((before[off as usize], now[off as usize]), (old, new));
        assert_eq!((old ^ new).count_ones(), 1);
        assert_eq!(before.iter().zip(&now).filter(|(a, b)| a != b).count(), 1);
        assert_eq!(d.stat(at("f"), true).unwrap(), stat);
        d.power_cut(&mut Rng(seed), &if seed % 2 == 0 { none() } else { all() });
        assert_eq!(d.read_file(b"f").unwrap(), now, "it rots on the platter too");
    }
    let mut d = disk();
    make(&mut d, "empty");
    assert_eq!((d.rot(b"empty", &mut Rng(1)), d.rot(b"missing", &mut Rng(1))), (None, None));
}

#[test]
fn a_torn_file_ends_where_it_was_torn() {
    let whole: Vec<u8> = (0..10_000u32).map(|i| i as u8 | 1).collect();
    for keep in [0, 1, 511, 4095, 4096, 4097, 9999, 10_000, 20_000] {
        let mut d = disk();
        d.write_file(b"a/b/f", &whole).unwrap();
        d.syncfs().unwrap();
        assert!(d.tear(b"a/b/f", keep));
        let left = &whole[..whole.len().min(keep as usize)];
        assert_eq!(d.read_file(b"a/b/f").unwrap(), left);
        d.power_cut(&mut Rng(keep), &Cut::default());
        let o = d.open(at("a/b/f"), libc::O_RDWR, 0, false).unwrap();
        d.ftruncate(o, 12_000).unwrap();
        let now = d.read_file(b"a/b/f").unwrap();
        assert_eq!(&now[..left.len()], left);
        assert!(now[left.len()..].iter().all(|b| *b == 0), "nothing of what was torn off returns");
        d.check().unwrap();
    }
    assert!(!disk().tear(b"missing", 0));
}

#[test]
fn stale_reads_give_what_the_platter_had_before() {
    let mut d = disk();
    let o = make(&mut d, "f");
    let rates = DiskFaults { stale_read: 0.5, ..DiskFaults::default() };
    d.set_faults(rates, 3);
    d.pwrite(o, &[1; 2 * PAGE], 0).unwrap();
    d.syncfs().unwrap();
    d.pwrite(o, &[2; PAGE], 0).unwrap();
    let mut seen = [0; 3];
    let mut buf = [0; 2 * PAGE];
    for _ in 0..50 {
        d.pread(o, &mut buf, 0).unwrap();
        assert_eq!(buf[0], 2, "what is not synced is in memory, and never stale");
    }
    d.fsync(o, false).unwrap();
    for _ in 0..100 {
        d.pread(o, &mut buf, 0).unwrap();
        seen[usize::from(buf[0])] += 1;
    }
    assert!(seen[0] == 0 && seen[1] > 20 && seen[2] > 20, "{seen:?}");
    d.set_faults(DiskFaults::default(), 0);
    d.pread(o, &mut buf, 0).unwrap();
    assert_eq!(buf[0], 2, "only the reads were stale");
}

#[test]
fn a_map_is_the_file_and_its_sectors_are_kept_by_themselves() {
    let mut mixed = 0;
    for seed in 0..200 {
        let mut d = disk();
        let o = make(&mut d, "f");
        d.ftruncate(o, PAGE as u64).unwrap();
        let at = d.map(o, PAGE).unwrap();
        assert_eq!(d.map(o, 100), Ok(at), "one block for all maps");
        // SAFETY: the block has a page, and nothing else refers to it now.
        let bytes = || unsafe { std::slice::from_raw_parts_mut(at, PAGE) };
        bytes().fill(1);
        d.fsync(o, true).unwrap();
        bytes().fill(2);
        let mut one = [0];
        assert_eq!((d.pread(o, &mut one, 77), one), (Ok(1), [2]), "calls see what was stored");
        d.pwrite(o, &[3], 0).unwrap();
        assert_eq!(bytes()[..2], [3, 2], "and the map what was written");
        d.syncfs().unwrap();
        bytes()[600] = 4;
        bytes()[1600] = 5;
        d.power_cut(&mut Rng(seed), &Cut::default());
        let now = d.read_file(b"f").unwrap();
        assert!([2, 4].contains(&now[600]) && [2, 5].contains(&now[1600]), "old or new, by sector");
        mixed += u32::from((now[600] == 2) != (now[1600] == 2));
        bytes().fill(9);
        assert_eq!(d.read_file(b"f").unwrap(), now, "a map ends with the cut");
        d.check().unwrap();
    }
    assert!(mixed > 10, "{mixed}");
    let mut d = disk();
    let o = make(&mut d, "short");
    assert_eq!(d.map(o, 1), Err(libc::EINVAL), "not beyond the end");
}

/// Random calls, cuts and faults; what is left at the end.
fn history(seed: u64) -> (BTreeMap<Vec<u8>, Node>, u64, u64) {
    let mut rng = Rng::part(seed, "history");
    let mut d = disk();
    let faults = DiskFaults { eio_sync: 0.1, short_write: 0.1, stale_read: 0.1, eio_write: 0.05, ..Default::default() };
    d.set_faults(faults, rng.next_u64());
    let names = ["a", "b", "c", "d"];
    let mut read = 0u64;
    for n in 0..300 {
        d.set_now(Stamp { sec: n, nsec: 0 });
        let (a, b) = (*rng.pick(&names), *rng.pick(&names));
        if let Ok(o) = d.open(at(a), MAKE, 0o644, false) {
            let _ = d.pwrite(o, &vec![n as u8; rng.index(9000)], rng.below(9000));
            let mut buf = [0; 100];
            let got = d.pread(o, &mut buf, rng.below(9000));
            read = read
                .wrapping_mul(31)
                .wrapping_add(buf.iter().map(|b| u64::from(*b)).sum::<u64>() + u64::from(got.is_ok()));
            if rng.chance(0.2) {
                let _ = d.fsync(o, rng.coin());
            }
            d.close(o);
        }
        let _ = d.rename(at(a), at(b), 0);
        if rng.chance(0.02) {
            let cut = Cut::draw(&mut rng);
            d.power_cut(&mut rng, &cut);
        }
    }
    d.check().unwrap();
    (d.tree(b""), read, d.syncs())
}

#[test]
fn the_same_calls_and_seeds_give_the_same_states() {
    let mut all = Vec::new();
    for seed in 0..30 {
        let first = history(seed);
        assert_eq!(first, history(seed), "seed {seed}");
        all.push(first);
    }
    let differing = all.windows(2).filter(|w| w[0] != w[1]).count();
    assert!(differing > 25, "seeds matter: {differing}");
}

#[test]
fn inode_numbers_survive_a_cut_and_return_only_when_they_are_free() {
    let mut d = disk();
    let o = make(&mut d, "old");
    let old = d.stat(At::Ofd(o, b""), true).unwrap().ino;
    d.syncfs().unwrap();
    d.close(o);
    d.unlink(at("old")).unwrap();
    make(&mut d, "new");
    assert_ne!(d.stat(at("new"), true).unwrap().ino, old, "its object may still come back");
    d.syncfs().unwrap();
    make(&mut d, "newer");
    assert_eq!(d.stat(at("newer"), true).unwrap().ino, old, "now it cannot");
    d.syncfs().unwrap();
    let before: Vec<_> = ["new", "newer"].iter().map(|n| d.stat(at(n), true).unwrap()).collect();
    d.power_cut(&mut Rng(1), &none());
    let after: Vec<_> = ["new", "newer"].iter().map(|n| d.stat(at(n), true).unwrap()).collect();
    assert_eq!(before, after);
}

#[test]
fn contents_compare_by_their_bytes() {
    let mut d = disk();
    d.write_file(b"zeroes", &[0; 9000]).unwrap();
    let o = make(&mut d, "hole");
    d.ftruncate(o, 9000).unwrap();
    let content = |d: &mut Disk, path: &str| -> Content { d.tree(path.as_bytes())[&Vec::new()].content.clone() };
    assert_eq!(content(&mut d, "zeroes"), content(&mut d, "hole"));
    d.pwrite(o, &[1], 8999).unwrap();
    assert_eq!(content(&mut d, "zeroes").differs_at(&content(&mut d, "hole")), Some(8999));
    d.ftruncate(o, 100).unwrap();
    assert_eq!(content(&mut d, "zeroes").differs_at(&content(&mut d, "hole")), Some(100));
    d.remove_tree(b"").unwrap();
    assert_eq!(d.tree(b"").len(), 1);
}
