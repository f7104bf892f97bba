//! Whether a primary may answer changes now: while a majority of the voters supports it (G3), and what the other end of the
//! sync pair does not have only once they know that. Kept up to date by the node; see `pair::vote`.

use crate::base::planted::{Bug, planted};
use crate::base::sync::{Condvar, Mutex};
use crate::base::{Error, Kind, Result};
use crate::os::times::boottime;
use crate::pair::vote::Other;
use std::time::Duration;

#[derive(Default)]
struct Inner {
    /// Supported until then, nanoseconds of [`boottime`].
    until: u64,
    /// What the other end does not have may be answered.
    alone: bool,
    /// Somebody waits for that.
    wanted: bool,
    /// By order, whatever the voters say.
    forced: bool,
    /// Something changed that whoever asks the voters should know.
    news: bool,
}

/// The permission to answer.
pub struct Permit {
    inner: Mutex<Inner>,
    changed: Condvar,
    /// For so long after the end of the support changes are still accepted, and held; nanoseconds.
    patience: u64,
}

impl Permit {
    /// None yet.
    pub fn new(patience: Duration) -> Permit {
        Permit { inner: Mutex::default(), changed: Condvar::new(), patience: patience.as_nanos() as u64 }
    }

    /// Takes up what the voters said.
    pub fn set(&self, until: u64, alone: bool) {
        let mut g = self.inner.lock();
        (g.until, g.alone) = (until, alone);
    }

    /// By order of the operator nobody is asked, or they count again.
    pub fn force(&self, forced: bool) {
        self.inner.lock().forced = forced;
    }

    /// What the voters are to be told of the other end, which has everything that was answered (`secured`) or not.
    pub fn other(&self, secured: bool) -> Other {
        let mut g = self.inner.lock();
        g.wanted &= !secured;
        match (secured, g.wanted) {
            (true, _) => Other::Fit,
            (_, true) => Other::Unfit,
            _ => Other::AsItWas,
        }
    }

    /// Waits for news, or so long.
    pub fn wait(&self, time: Duration) {
        let mut g = self.inner.lock();
        if !g.news {
            self.changed.wait_for(&mut g, time);
        }
        g.news = false;
    }

    /// Wakes who waits for news.
    pub fn wake(&self) {
        self.inner.lock().news = true;
        self.changed.notify_all();
    }

    /// Whether a change may begin: from the first majority on, until a while after it was lost.
    pub fn admit(&self, group: &str) -> Result<()> {
        let g = self.inner.lock();
        if g.forced
            || planted(Bug::AnswerWithoutVotes)
            || (g.until > 0 && now() < g.until.saturating_add(self.patience))
        {
            return Ok(());
        }
        Err(Error {
            kind: Kind::Timeout,
            errno: libc::EROFS,
            msg: format!(
                "group {group}: write refused: no majority of the three voters supports this primary (`kagami status` shows them); it goes on by itself when two do"
            ),
        })
    }

    /// Whether a change may be answered now. `lacks`: the other end does not have it; then that is made known.
    pub fn answers(&self, lacks: bool) -> bool {
        let mut g = self.inner.lock();
        if lacks && !g.alone && !g.wanted {
            (g.wanted, g.news) = (true, true);
            self.changed.notify_all();
        }
        if g.forced || planted(Bug::AnswerWithoutVotes) {
            return true;
        }
        now() < g.until && (g.alone || !lacks)
    }

    /// How long a change that cannot be answered is held.
    pub fn patience(&self) -> Duration {
        Duration::from_nanos(self.patience)
    }
}

fn now() -> u64 {
    boottime().as_nanos() as u64
}
