//! Questions to the peer of a pair in PAIR, beside the stream of entries: for comparisons, by whoever ordered one.

use crate::base::limits;
use crate::base::sync::Mutex;
use crate::base::{Error, Kind, Result};
use crate::format::msg::Msg;
use crate::net::{Closer, FrameWriter};
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The side of a session's link where questions are asked.
pub struct Desk {
    w: Arc<Mutex<FrameWriter>>,
    alive: Arc<AtomicBool>,
    closer: Closer,
    tx: Mutex<Option<Sender<Msg>>>,
}

impl Desk {
    /// For one link.
    pub fn new(w: Arc<Mutex<FrameWriter>>, alive: Arc<AtomicBool>, closer: Closer) -> Desk {
        Desk { w, alive, closer, tx: Mutex::new(None) }
    }

    /// Takes the desk. Refused while somebody else has it.
    pub fn take(self: &Arc<Self>) -> Result<Talk> {
        let mut g = self.tx.lock();
        if g.is_some() {
            return Err(Error::refused("a comparison of this pair is under way already"));
        }
        let (tx, rx) = bounded(limits::ANSWERS_WAITING_MAX);
        *g = Some(tx);
        Ok(Talk { desk: self.clone(), rx })
    }

    /// Runs `f` while nothing else goes to the peer: what it sends is before every entry after the point it chooses.
    pub fn at_a_point<T>(&self, f: impl FnOnce(&mut dyn FnMut(&Msg) -> Result<()>) -> Result<T>) -> Result<T> {
        let mut w = self.w.lock();
        f(&mut |m| {
            let frame = m.frame()?;
            w.send(&frame)
        })
    }

    /// Ends the link: the pair's thread makes a new one, and with it does what was ordered.
    pub fn close(&self) {
        self.closer.close();
    }

    /// Gives a message to who asked; back when nobody has.
    pub fn pass(&self, m: Msg) -> Option<Msg> {
        // Not under the lock: whoever asked gives it up under it, and then nobody takes what waits.
        let tx = self.tx.lock().clone();
        match tx {
            Some(tx) => tx.send(m).err().map(|e| e.0),
            None => Some(m),
        }
    }
}

/// A taken desk.
pub struct Talk {
    desk: Arc<Desk>,
    rx: Receiver<Msg>,
}

impl Talk {
    /// Sends a message.
    pub fn say(&self, m: &Msg) -> Result<()> {
        let f = m.frame()?;
        self.desk.w.lock().send(&f)
    }

    /// Waits for the next answer.
    pub fn hear(&self, patience: Duration) -> Result<Msg> {
        let until = Instant::now() + patience;
        loop {
            match self.rx.recv_timeout(Duration::from_millis(100)) {
                Ok(m) => return Ok(m),
                Err(RecvTimeoutError::Timeout) if !self.desk.alive.load(Ordering::SeqCst) => {
                    return Err(Error::link("the link to the peer broke during the comparison"));
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() < until => {}
                _ => return Err(Error::new(Kind::Timeout, "the peer did not answer in time")),
            }
        }
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        *self.desk.tx.lock() = None;
    }
}
