//! A receiver with its threads: one applies, one makes room in the log.

use crate::base::planted::{Bug, planted};
use crate::base::sync::thread::{self, JoinHandle};
use crate::base::{Error, Result, limits};
use crate::store::receive::Receiver;
use crate::store::replica::Replica;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long what was received may take to be applied before a role changes.
const DRAIN: Duration = Duration::from_secs(600);

/// A running receiver.
pub struct Receiving {
    /// The receiver.
    pub receiver: Arc<Receiver>,
    threads: Vec<JoinHandle<()>>,
}

impl Receiving {
    /// Recovers the log of a replica and starts to apply.
    pub fn start(replica: Arc<Replica>) -> Result<Receiving> {
        let receiver = Arc::new(Receiver::new(replica)?);
        receiver.replay();
        let (a, c) = (receiver.clone(), receiver.clone());
        let applier = thread::Builder::new().name("applier".into()).spawn(move || {
            let mut buf = Vec::new();
            while a.step(&mut buf, Duration::from_millis(500)) {}
        })?;
        let checkpoint = thread::Builder::new().name("checkpoint".into()).spawn(move || {
            let mut last = Instant::now();
            while !c.stopped() {
                thread::sleep(Duration::from_millis(200));
                let room = c.wants_room() && last.elapsed() > Duration::from_millis(500);
                let due = last.elapsed() >= limits::CHECKPOINT || room;
                if let Err(e) = if due { c.checkpoint() } else { c.replica.sharpen() } {
                    log::error!("group {}: checkpoint: {e}", c.replica.group);
                }
                if due {
                    last = Instant::now();
                }
            }
        })?;
        Ok(Receiving { receiver, threads: vec![applier, checkpoint] })
    }

    /// Applies everything received, stops, and hands the replica over. On error it goes on as it was.
    pub fn finish(self) -> std::result::Result<Arc<Replica>, (Error, Receiving)> {
        self.receiver.close_door();
        let drained = self.receiver.abandon().map(|()| planted(Bug::SkipDrain) || self.receiver.drain(DRAIN));
        if !matches!(drained, Ok(true)) {
            let e = drained.err().or(self.receiver.fault());
            self.receiver.open_door();
            return Err((e.unwrap_or_else(|| Error::failed("what was received could not be applied in time")), self));
        }
        let replica = self.receiver.replica.clone();
        self.stop();
        for r in &replica.regions {
            r.forget_files();
        }
        Ok(replica)
    }

    fn stop(self) {
        self.receiver.stop();
        for t in self.threads {
            let _ = t.join();
        }
    }

    /// Stops and closes the replica in order.
    pub fn shutdown(self) -> Result<()> {
        let replica = self.receiver.replica.clone();
        self.stop();
        replica.close()
    }
}
