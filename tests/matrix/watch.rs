//! Looks at all nodes all the time: two that are primary and take writes at the same instant fail the test (G3).

use crate::support::machines::{Net, SITES};
use kagami::node::control::{self, Request};
use kagami::node::status::{GroupStatus, Status};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

const BETWEEN: Duration = Duration::from_millis(5);

/// What a node says of the group; `None` while it does not answer.
pub fn group(state_dir: &Path) -> Option<GroupStatus> {
    let v = control::call_within(state_dir, &Request::Status {}, Some(Duration::from_secs(2)), |_| ()).ok()?;
    serde_json::from_value::<Status>(v).ok()?.groups.into_iter().next()
}

/// The watch.
pub struct Watch {
    stop: Arc<AtomicBool>,
    looks: Arc<AtomicU64>,
    seen: Arc<Mutex<Option<String>>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub fn start(net: &Net) -> Watch {
        let dirs: Vec<PathBuf> = (0..3).map(|s| net.state_dir(s)).collect();
        let mut w = Watch { stop: Arc::default(), looks: Arc::default(), seen: Arc::default(), thread: None };
        let (stop, looks, seen) = (w.stop.clone(), w.looks.clone(), w.seen.clone());
        let writable = |dir: &PathBuf| group(dir).filter(|g| g.role == "primary" && g.refuses_writes.is_none());
        let look = move || {
            while !stop.load(Ordering::SeqCst) {
                looks.fetch_add(1, Ordering::SeqCst);
                for (i, a) in dirs.iter().enumerate() {
                    // The first one before and after the others, in one epoch: it was primary in between as well.
                    let Some(before) = writable(a) else { continue };
                    let other = dirs.iter().enumerate().find(|(j, b)| *j != i && writable(b).is_some());
                    let Some((j, _)) = other else { continue };
                    if writable(a).is_some_and(|after| after.epoch == before.epoch) {
                        *seen.lock().unwrap() = Some(format!("{} and {} took writes at one time", SITES[i], SITES[j]));
                    }
                }
                std::thread::sleep(BETWEEN);
            }
        };
        w.thread = Some(std::thread::spawn(look));
        w
    }

    /// How often it has looked at all nodes since this was asked last; an error when it ever saw two, or nothing.
    pub fn never_two(&self) -> Result<u64, String> {
        let looks = self.looks.swap(0, Ordering::SeqCst);
        match self.seen.lock().unwrap().clone() {
            None if looks == 0 => Err("nobody looked at the nodes".into()),
            None => Ok(looks),
            Some(two) => Err(two),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(t) = self.thread.take() {
            let _ = t.join();
        }
    }
}
