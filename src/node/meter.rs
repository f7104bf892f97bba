//! How far a copy is, for status: shown a few times a second at most.

use super::pairs::Pair;
use super::status::Progress;
use super::tell;
use crate::base::{DirId, VolId};
use crate::os::sys;
use crate::store::replica::Replica;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Between two updates.
const PERIOD: Duration = Duration::from_millis(100);

/// Counts what is done.
pub struct Meter {
    /// What to show; rate and time to the end are filled in.
    pub p: Progress,
    begun: Instant,
    shown: Option<Instant>,
}

impl Meter {
    /// Starts to count.
    pub fn new(phase: &str) -> Meter {
        Meter { p: Progress { phase: phase.into(), ..Progress::default() }, begun: Instant::now(), shown: None }
    }

    /// Shows it if the last time is long enough ago.
    pub fn show(&mut self, pair: &Pair) {
        if self.shown.is_none_or(|t| t.elapsed() >= PERIOD) {
            self.show_now(pair);
        }
    }

    /// Shows it.
    pub fn show_now(&mut self, pair: &Pair) {
        self.shown = Some(Instant::now());
        let seconds = self.begun.elapsed().as_secs_f64().max(1e-3);
        self.p.rate_bytes_s = self.p.done_bytes as f64 / seconds;
        let by_bytes = eta(seconds, self.p.done_bytes, self.p.total_bytes);
        let by_files = eta(seconds, self.p.done_files, self.p.total_files);
        self.p.eta_s = by_bytes.into_iter().chain(by_files).reduce(f64::max);
        pair.set_progress(Some(self.p.clone()));
    }
}

/// What a volume holds, counted beside the copy: only then can it be told how much is left.
pub struct Totals(Arc<Counted>);

#[derive(Default)]
struct Counted {
    files: AtomicU64,
    bytes: AtomicU64,
    whole: AtomicBool,
    over: AtomicBool,
}

impl Totals {
    /// Starts to count.
    pub fn count(replica: Arc<Replica>, vol: VolId) -> Totals {
        let counted = Arc::new(Counted::default());
        let c = counted.clone();
        // Without the thread no totals are shown, that is all.
        let _ = std::thread::Builder::new().name("counting".into()).spawn(move || c.walk(&replica, vol));
        Totals(counted)
    }

    /// Fills in the totals once they are known.
    pub fn fill(&self, m: &mut Meter) {
        if self.0.whole.load(Ordering::Acquire) {
            m.p.total_files = self.0.files.load(Ordering::Relaxed).max(m.p.done_files);
            m.p.total_bytes = self.0.bytes.load(Ordering::Relaxed).max(m.p.done_bytes);
        }
    }
}

impl Drop for Totals {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

impl Counted {
    fn walk(&self, replica: &Replica, vol: VolId) {
        let Ok(region) = replica.region(vol) else { return };
        let mut dirs: Vec<DirId> = region.ids.read().dirs().map(|(id, _)| id).collect();
        dirs.push(DirId::ROOT);
        for d in dirs {
            let (Ok(fd), Ok(Some(names))) = (region.dirfd(d), tell::names(region, d)) else { continue };
            for n in names {
                if let Ok(st) = sys::statat(&*fd, &n)
                    && !st.is_dir()
                {
                    self.files.fetch_add(1, Ordering::Relaxed);
                    self.bytes.fetch_add(if st.is_file() { st.size } else { 0 }, Ordering::Relaxed);
                }
            }
            if self.over.load(Ordering::Relaxed) {
                return;
            }
        }
        self.whole.store(true, Ordering::Release);
    }
}

/// Time to the end at the rate so far; `None` while it cannot be told.
fn eta(seconds: f64, done: u64, total: u64) -> Option<f64> {
    let left = total.checked_sub(done).filter(|_| done > 0)?;
    Some(seconds * left as f64 / done as f64)
}

#[cfg(test)]
mod tests {
    use super::eta;

    #[test]
    fn the_time_to_the_end_is_told_once_something_is_done() {
        assert_eq!(eta(2.0, 0, 100), None);
        assert_eq!(eta(2.0, 20, 100), Some(8.0));
        assert_eq!(eta(2.0, 100, 100), Some(0.0));
        assert_eq!(eta(2.0, 120, 100), None);
    }
}
