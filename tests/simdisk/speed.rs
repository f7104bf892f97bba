//! What calls cost. Bounds are wide, for machines that are slow or busy; the figures are printed.

use crate::at;
use crate::disk::{At, Cut, Disk, PAGE};
use crate::rng::Rng;

const MAKE: i32 = libc::O_CREAT | libc::O_RDWR;
const CALLS: u32 = 20_000;
/// The least of so many rounds is what counts: others use the machine too.
const ROUNDS: usize = 5;

/// Processor time of this thread, so that what others do on the machine counts little.
fn cpu_ns() -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: t is a valid out parameter.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) }, 0);
    t.tv_sec as f64 * 1e9 + t.tv_nsec as f64
}

fn ns_each(calls: u32, mut round: impl FnMut()) -> f64 {
    let times = (0..ROUNDS).map(|_| {
        let start = cpu_ns();
        round();
        (cpu_ns() - start) / f64::from(calls)
    });
    times.fold(f64::INFINITY, f64::min)
}

#[test]
fn calls_are_quick() {
    let mut d = Disk::new(1, 1 << 40);
    let o = d.open(at("f"), MAKE, 0o644, false).unwrap();
    let page = [5; PAGE];
    let write = ns_each(CALLS, || {
        for n in 0..u64::from(CALLS) {
            d.pwrite(o, &page, n % 1000 * PAGE as u64).unwrap();
            if n % 1000 == 0 {
                d.fsync(o, false).unwrap();
            }
        }
    });
    let over = ns_each(CALLS, || {
        for n in 0..u64::from(CALLS) {
            d.pwrite(o, &page, n % 1000 * PAGE as u64).unwrap();
        }
    });
    let sync = ns_each(1000, || {
        for n in 0..1000 {
            d.pwrite(o, &page, n * PAGE as u64).unwrap();
            d.fsync(o, true).unwrap();
        }
    });
    let append = ns_each(CALLS, || {
        let o = d.open(at("log"), MAKE | libc::O_TRUNC, 0o644, false).unwrap();
        for n in 0..u64::from(CALLS) {
            d.pwrite(o, &[7; 60], n * 60).unwrap();
        }
        d.close(o);
    });
    let mut buf = [0; PAGE];
    let read = ns_each(CALLS, || {
        for n in 0..u64::from(CALLS) {
            d.pread(o, &mut buf, n % 1000 * PAGE as u64).unwrap();
        }
    });
    let stat = ns_each(CALLS, || {
        for _ in 0..CALLS {
            std::hint::black_box(d.stat(At::Ofd(o, b""), true).unwrap());
        }
    });
    let names = ns_each(CALLS, || {
        for n in 0..CALLS {
            let o = d_open(&mut d, n);
            d.close(o);
            d.unlink(At::Root(format!("n{n}").as_bytes())).unwrap();
        }
        d.syncfs().unwrap();
    });
    println!("pwrite of 4 KiB {write:.0} ns, of pages not synced {over:.0} ns, with fdatasync {sync:.0} ns");
    println!("pwrite of 60 bytes {append:.0} ns, pread of 4 KiB {read:.0} ns, fstat {stat:.0} ns");
    println!("making and removing a file {names:.0} ns");
    assert!(write < 40_000.0 && over < 40_000.0 && sync < 40_000.0 && append < 40_000.0);
    assert!(read < 20_000.0 && stat < 10_000.0 && names < 100_000.0);
}

fn d_open(d: &mut Disk, n: u32) -> crate::disk::Ofd {
    d.open(At::Root(format!("n{n}").as_bytes()), MAKE, 0o644, false).unwrap()
}

#[test]
fn a_cut_is_quick() {
    let mut rng = Rng(1);
    let mut d = Disk::new(1, 1 << 40);
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS * 3 {
        for n in 0..500 {
            let o = d_open(&mut d, n);
            d.pwrite(o, &[n as u8; 3 * PAGE], 0).unwrap();
            d.close(o);
        }
        let start = cpu_ns();
        d.power_cut(&mut rng, &Cut { sectors: true, ..Cut::default() });
        best = best.min(cpu_ns() - start);
        d.check().unwrap();
    }
    println!("a power cut of 500 files of 3 changed pages {:.2} ms", best / 1e6);
    assert!(best < 1e8);
}
