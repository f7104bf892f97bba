//! The simulated disk by itself.

#[path = "sim/disk/mod.rs"]
mod disk;
#[path = "sim/rng.rs"]
mod rng;

#[path = "simdisk/differential.rs"]
mod differential;
#[path = "simdisk/faulty.rs"]
mod faulty;
#[path = "simdisk/legal.rs"]
mod legal;
#[path = "simdisk/real.rs"]
mod real;
#[path = "simdisk/simulated.rs"]
mod simulated;
#[path = "simdisk/speed.rs"]
mod speed;
#[path = "simdisk/step.rs"]
mod step;

use disk::{At, Cut, Disk};
use rng::Rng;

/// A name that is in no directory of its own.
fn at(path: &str) -> At<'_> {
    At::Root(path.as_bytes())
}

#[test]
fn what_was_synced_is_there_after_a_cut() {
    for seed in 0..200 {
        let mut d = Disk::new(1, 1 << 30);
        d.mkdir(at("d"), 0o755).unwrap();
        let o = d.open(at("d/f"), libc::O_CREAT | libc::O_RDWR, 0o644, false).unwrap();
        d.pwrite(o, &[7; 10_000], 0).unwrap();
        d.fsync(o, false).unwrap();
        d.pwrite(o, &[8; 10_000], 20_000).unwrap();
        d.rename(at("d/f"), at("d/g"), 0).unwrap();
        d.check().unwrap();
        d.power_cut(&mut Rng(seed), &Cut::default());
        d.check().unwrap();
        assert!(d.is_all_kept());
        assert_ne!(d.exists(b"d/f"), d.exists(b"d/g"));
        let all = d.read_file(if d.exists(b"d/f") { b"d/f" } else { b"d/g" }).unwrap();
        assert_eq!(&all[..10_000], &[7; 10_000]);
        assert_eq!(d.stat(At::Ofd(o, b""), true), Err(libc::EBADF));
    }
}
