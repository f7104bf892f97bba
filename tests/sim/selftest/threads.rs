//! Threads, locks, channels, time, and that a seed is a run.

use super::{hash_of, seed, seeds};
use crate::harness::{Test, in_child};
use crate::sched;
use parking_lot::{Condvar, Mutex, RwLock};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

pub const TESTS: [Test; 10] = [
    ("threads::locks_exclude_each_other", locks_exclude_each_other),
    ("threads::condition_variables_and_channels_hand_over", condition_variables_and_channels_hand_over),
    ("threads::waits_end_at_their_time", waits_end_at_their_time),
    ("threads::who_spins_lets_others_run", who_spins_lets_others_run),
    ("threads::a_deadlock_is_a_failure", a_deadlock_is_a_failure),
    ("threads::a_panic_is_a_failure", a_panic_is_a_failure),
    ("threads::killed_and_frozen_threads_do_not_run", killed_and_frozen_threads_do_not_run),
    ("threads::machines_have_their_own_clocks", machines_have_their_own_clocks),
    ("threads::a_seed_is_a_run", a_seed_is_a_run),
    ("threads::it_is_the_same_run_with_real_hand_overs", it_is_the_same_run_with_real_hand_overs),
];

fn locks_exclude_each_other() -> Result<(), String> {
    seeds(8, || {
        let (a, b) = (Arc::new(Mutex::new((0u64, 0u64))), Arc::new(std::sync::Mutex::new((0u64, 0u64))));
        let rw = Arc::new(RwLock::new(0u64));
        let all: Vec<_> = (0..6)
            .map(|_| {
                let (a, b, rw) = (a.clone(), b.clone(), rw.clone());
                thread::spawn(move || {
                    for _ in 0..50 {
                        let mut g = a.lock();
                        let v = g.0;
                        thread::yield_now();
                        (g.0, g.1) = (v + 1, v + 1);
                        drop(g);
                        let mut g = b.lock().unwrap();
                        let v = g.0;
                        thread::sleep(Duration::from_nanos(10));
                        (g.0, g.1) = (v + 1, v + 1);
                        drop(g);
                        let v = *rw.read();
                        thread::yield_now();
                        let mut w = rw.write();
                        assert!(*w >= v);
                        *w += 1;
                    }
                })
            })
            .collect();
        all.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!((*a.lock(), *b.lock().unwrap(), *rw.read()), ((300, 300), (300, 300), 300));
    })
}

fn condition_variables_and_channels_hand_over() -> Result<(), String> {
    seeds(8, || {
        let pair = Arc::new((Mutex::new(0u32), Condvar::new()));
        let (tx, rx) = crossbeam::channel::bounded::<u32>(2);
        let (tx2, rx2) = std::sync::mpsc::channel::<u32>();
        let p = pair.clone();
        let t = thread::spawn(move || {
            for v in rx.iter() {
                *p.0.lock() += v;
                p.1.notify_all();
                tx2.send(v).unwrap();
            }
        });
        for v in 1..=100 {
            tx.send(v).unwrap();
        }
        let mut g = pair.0.lock();
        while *g < 5050 {
            pair.1.wait(&mut g);
        }
        drop(tx);
        drop(g);
        t.join().unwrap();
        assert_eq!(rx2.iter().sum::<u32>(), 5050);
    })
}

fn waits_end_at_their_time() -> Result<(), String> {
    seeds(8, || {
        let near = |t: Duration, want: u64| {
            let ms = Duration::from_millis(want);
            assert!(t >= ms && t < ms + Duration::from_millis(50), "{t:?} for {want} ms");
        };
        let timed = |f: &dyn Fn()| {
            let t = Instant::now();
            f();
            t.elapsed()
        };
        near(timed(&|| thread::sleep(Duration::from_millis(700))), 700);
        near(timed(&|| thread::park_timeout(Duration::from_millis(300))), 300);
        let (m, c) = (Mutex::new(()), Condvar::new());
        near(timed(&|| assert!(c.wait_for(&mut m.lock(), Duration::from_millis(900)).timed_out())), 900);
        let (m, c) = (std::sync::Mutex::new(()), std::sync::Condvar::new());
        near(
            timed(&|| assert!(c.wait_timeout(m.lock().unwrap(), Duration::from_secs(5)).unwrap().1.timed_out())),
            5000,
        );
        let (_tx, rx) = crossbeam::channel::unbounded::<()>();
        near(timed(&|| assert!(rx.recv_timeout(Duration::from_millis(80)).is_err())), 80);
        // An hour takes no time.
        near(timed(&|| thread::sleep(Duration::from_secs(3600))), 3_600_000);
    })
}

fn who_spins_lets_others_run() -> Result<(), String> {
    seeds(4, || {
        let flag = Arc::new(AtomicU64::new(0));
        let f = flag.clone();
        let t = thread::spawn(move || {
            thread::sleep(Duration::from_millis(1));
            f.store(1, Ordering::SeqCst);
        });
        let begun = Instant::now();
        while flag.load(Ordering::SeqCst) == 0 {
            assert!(begun.elapsed() < Duration::from_secs(60));
        }
        t.join().unwrap();
    })
}

fn must_fail(main: fn(), with: &str) -> Result<(), String> {
    match seed(1, main) {
        Err(why) if why.contains(with) => Ok(()),
        Err(why) => Err(format!("another failure than {with:?}: {why}")),
        Ok(_) => Err(format!("no failure {with:?}")),
    }
}

fn a_deadlock_is_a_failure() -> Result<(), String> {
    let main = || {
        let m = Arc::new(Mutex::new(()));
        let g = m.lock();
        let n = m.clone();
        let t = thread::Builder::new().name("waiter".into()).spawn(move || drop(n.lock())).unwrap();
        t.join().unwrap();
        drop(g);
    };
    in_child(0, || must_fail(main, "deadlock: nobody can run"))?;
    in_child(0, || must_fail(main, "waiter of host: waits for a lock"))
}

fn a_panic_is_a_failure() -> Result<(), String> {
    let main = || {
        thread::spawn(|| panic!("of a thread")).join().unwrap_err();
    };
    in_child(0, || must_fail(main, "panic: of a thread"))?;
    in_child(0, || must_fail(|| assert_eq!(1, 2, "in main"), "in main"))
}

fn killed_and_frozen_threads_do_not_run() -> Result<(), String> {
    seeds(8, || {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let m = sched::machine("a", &[("", 1 << 20)]);
        let t = sched::spawn_on(
            m,
            "counter",
            Box::new(|| {
                loop {
                    COUNT.fetch_add(1, Ordering::SeqCst);
                    thread::sleep(Duration::from_millis(1));
                }
            }),
        );
        let grows = || {
            let before = COUNT.load(Ordering::SeqCst);
            sched::sleep(Duration::from_millis(200));
            COUNT.load(Ordering::SeqCst) > before
        };
        assert!(grows());
        sched::freeze(m);
        assert!(!grows());
        // Twice is once.
        sched::freeze(m);
        sched::thaw(m);
        assert!(grows());
        assert!(sched::alive(t));
        sched::kill(m);
        assert!(!grows() && !sched::alive(t));
        sched::join(t);
        // The machine is still there.
        let t = sched::spawn_on(m, "again", Box::new(|| _ = COUNT.fetch_add(1_000_000, Ordering::SeqCst)));
        sched::join(t);
        assert!(COUNT.load(Ordering::SeqCst) > 1_000_000);
    })
}

fn machines_have_their_own_clocks() -> Result<(), String> {
    seeds(4, || {
        let m = sched::machine("a", &[("", 1 << 20)]);
        let host = SystemTime::now();
        sched::step_clock(m, 3_600_000_000_000);
        sched::rate(m, 100_000);
        let begun = sched::now_ns();
        let t = sched::spawn_on(
            m,
            "clock",
            Box::new(move || {
                let ahead = SystemTime::now().duration_since(host).unwrap();
                assert!(ahead > Duration::from_secs(3599) && ahead < Duration::from_secs(3610), "{ahead:?}");
                let t = Instant::now();
                thread::sleep(Duration::from_secs(11));
                assert!(t.elapsed() >= Duration::from_secs(11));
            }),
        );
        sched::join(t);
        let took = sched::now_ns() - begun;
        assert!((9_990_000_000..10_100_000_000).contains(&took), "{took}");
    })
}

/// Threads that draw, take locks, hash and wait.
fn bustle() {
    let total = Arc::new(Mutex::new(HashMap::new()));
    let all: Vec<_> = (0..5u64)
        .map(|i| {
            let total = total.clone();
            thread::spawn(move || {
                for n in 0..40u64 {
                    let set: HashSet<u64> = (0..n).collect();
                    let first = set.iter().next().copied().unwrap_or(i);
                    *total.lock().entry(first).or_insert(0u64) += 1;
                    thread::sleep(Duration::from_micros(first * 7));
                    let mut b = [0u8; 5];
                    getrandom::fill(&mut b).unwrap();
                    total.lock().insert(u64::from(b[0]), n);
                }
            })
        })
        .collect();
    all.into_iter().for_each(|t| t.join().unwrap());
    let seen: Vec<String> = total.lock().iter().map(|(k, v)| format!("{k}={v}")).collect();
    sched::trace(seen.join(" "));
}

fn a_seed_is_a_run() -> Result<(), String> {
    let first: Vec<u64> = (0..6).map(|s| hash_of(s, bustle)).collect::<Result<_, _>>()?;
    for _ in 0..3 {
        let again: Vec<u64> = (0..6).map(|s| hash_of(s, bustle)).collect::<Result<_, _>>()?;
        if again != first {
            return Err(format!("{first:x?} and then {again:x?}"));
        }
    }
    let different: HashSet<u64> = first.iter().copied().collect();
    if different.len() == first.len() { Ok(()) } else { Err(format!("seeds alike: {first:x?}")) }
}

/// Threads that begin, hand over, end and are killed while others carry them: the same run as when each does so itself.
fn it_is_the_same_run_with_real_hand_overs() -> Result<(), String> {
    let real = |s| {
        // SAFETY: this process has one thread.
        unsafe { std::env::set_var("KAGAMI_SIM_THREADS", "1") };
        let hash = hash_of(s, generations);
        // SAFETY: as above.
        unsafe { std::env::remove_var("KAGAMI_SIM_THREADS") };
        hash
    };
    (0..12).try_for_each(|s| {
        let (quick, real) = (hash_of(s, generations)?, real(s)?);
        if quick == real { Ok(()) } else { Err(format!("seed {s}: {quick:x}, but {real:x} with real hand-overs")) }
    })
}

/// Threads that start others, end in any order with values of their own to drop, and are killed in between.
fn generations() {
    /// Says what its thread was when that ends.
    struct Last(u64);
    impl Drop for Last {
        fn drop(&mut self) {
            thread::yield_now();
            sched::trace(format!("{} of {:?}", self.0, thread::current().name()));
        }
    }
    thread_local!(static OWN: std::cell::RefCell<Vec<Last>> = const { std::cell::RefCell::new(Vec::new()) });
    fn live(depth: u64, n: u64) {
        OWN.with_borrow_mut(|all| all.push(Last(depth * 10 + n)));
        let below: Vec<_> = (0..if depth > 0 { 3 } else { 0 })
            .map(|n| thread::Builder::new().name(format!("{depth}.{n}")).spawn(move || live(depth - 1, n)).unwrap())
            .collect();
        thread::sleep(Duration::from_nanos(100 * n));
        assert_eq!(OWN.with_borrow(|all| all.len()), 1);
        // Every other one is left alone.
        below.into_iter().skip(n as usize % 2).for_each(|t| t.join().unwrap());
    }
    let m = sched::machine("m", &[]);
    for _ in 0..3 {
        let t = sched::spawn_on(m, "first", Box::new(|| live(3, 1)));
        sched::sleep(Duration::from_micros(100));
        sched::kill(m);
        sched::join(t);
        live(2, 0);
        OWN.with_borrow_mut(Vec::clear);
    }
}
