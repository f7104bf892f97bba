//! The clocks of machines: each runs at a rate of its own, and its time of day can be stepped.

use super::{Res, block, point, world};
use std::ffi::c_int;

/// The time of day at the start, seconds since 1970: a fixed day.
const DAY: u64 = 1_780_000_000;
/// How long a machine has been up at the start, and after a power cut, ns.
const UP_AT_FIRST: u64 = 1_000_000_000_000;
const UP_AFTER_CUT: u64 = 10_000_000_000;
/// Readings of a clock in a row until one of them gives way: who waits by looking at the clock must not do it for ever,
/// but parking_lot reads it, once at a time, while it holds a lock of the whole process.
const LOOKS_MAX: u32 = 64;

const SECOND: u64 = 1_000_000_000;
const MILLION: i128 = 1_000_000;

/// The clocks of one machine.
#[derive(Clone, Debug)]
pub struct Clock {
    /// Simulated time at which the rate was set, and what the machine's own count was then, ns.
    since: u64,
    count: u64,
    ppm: i32,
    /// What the monotonic clock lacks of the count, ns.
    boot: i64,
    /// What was added to the time of day, ns.
    step: i64,
}

impl Clock {
    pub fn new(number: usize) -> Clock {
        let up = UP_AT_FIRST + number as u64 * 77 * SECOND;
        Clock { since: 0, count: 0, ppm: 0, boot: -(up as i64), step: 0 }
    }

    fn count(&self, now: u64) -> u64 {
        let gone = i128::from(now.saturating_sub(self.since));
        self.count + (gone * (MILLION + i128::from(self.ppm)) / MILLION) as u64
    }

    /// Since the machine was started, ns.
    pub fn monotonic(&self, now: u64) -> u64 {
        self.count(now).saturating_add_signed(-self.boot)
    }

    /// Since 1970, ns.
    pub fn real(&self, now: u64) -> u64 {
        (DAY * SECOND + self.count(now)).saturating_add_signed(self.step)
    }

    /// Simulated time that passes in `ns` of this machine's.
    fn length(&self, ns: u64) -> u64 {
        (i128::from(ns) * MILLION).div_euclid(MILLION + i128::from(self.ppm)) as u64 + 1
    }

    pub fn set_rate(&mut self, now: u64, ppm: i32) {
        self.count = self.count(now);
        (self.since, self.ppm) = (now, ppm);
    }

    pub fn step(&mut self, ns: i64) {
        self.step = self.step.saturating_add(ns);
    }

    /// The machine was started anew.
    pub fn boot(&mut self, now: u64) {
        self.boot = self.count(now) as i64 - UP_AFTER_CUT as i64;
    }
}

fn ns(t: &libc::timespec) -> Res<u64> {
    if t.tv_sec < 0 || !(0..SECOND as i64).contains(&t.tv_nsec) {
        return Err(libc::EINVAL);
    }
    Ok((t.tv_sec as u64).saturating_mul(SECOND).saturating_add(t.tv_nsec as u64))
}

/// A time as the C library has it.
pub fn timespec(ns: u64) -> libc::timespec {
    libc::timespec { tv_sec: (ns / SECOND) as i64, tv_nsec: (ns % SECOND) as i64 }
}

fn is_real(clock: c_int) -> bool {
    matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE)
}

/// What a clock of the current machine shows, ns.
fn shows(clock: c_int) -> u64 {
    let w = world();
    let c = &w.machines[w.threads[w.current].machine].clock;
    if is_real(clock) { c.real(w.now) } else { c.monotonic(w.now) }
}

/// The time of day of the current machine.
pub fn real_now() -> libc::timespec {
    timespec(shows(libc::CLOCK_REALTIME))
}

/// The simulated time that is `ns` of the current machine's from now.
pub fn after_ns(ns: u64) -> u64 {
    let w = world();
    let c = &w.machines[w.threads[w.current].machine].clock;
    w.now.saturating_add(c.length(ns))
}

/// The simulated time that is a length of the current machine's from now.
pub fn after(t: &libc::timespec) -> Res<u64> {
    ns(t).map(after_ns)
}

/// The simulated time at which a clock of the current machine will show `t`.
pub fn deadline(t: &libc::timespec, clock: c_int) -> Res<u64> {
    Ok(after_ns(ns(t)?.saturating_sub(shows(clock))))
}

/// clock_gettime(2).
pub fn get(clock: c_int) -> libc::timespec {
    let w = world();
    let t = &mut w.threads[w.current];
    t.looks += 1;
    if t.looks >= LOOKS_MAX {
        t.looks = 0;
        super::give_way("looks at the clock");
    } else {
        // As in `point`, but nobody else is picked.
        w.now += w.rng.below(w.pace.cost_max_ns);
    }
    timespec(shows(clock))
}

/// nanosleep(2) and clock_nanosleep(2).
pub fn sleep(clock: c_int, absolute: bool, t: &libc::timespec) -> Res<i64> {
    let until = if absolute { deadline(t, clock)? } else { after(t)? };
    block(&[], Some(until), "sleeps");
    Ok(0)
}

/// Waits for a length of simulated time.
pub fn sleep_ns(ns: u64) {
    point("sleep");
    let until = world().now.saturating_add(ns);
    block(&[], Some(until), "sleeps");
}
