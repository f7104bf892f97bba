//! Applying what was accepted, one frame at a time, in order.

use super::*;

impl Receiver {
    /// Applies one frame if there is one that may be applied; waits up to `patience` for it. False when stopped.
    pub fn step(&self, buf: &mut Vec<u8>, patience: Duration) -> bool {
        {
            let mut g = self.inner.lock();
            let ready = |g: &Inner| self.replica.order().live.applied_lsn() < g.limit(self.replica.log.end());
            if !g.stopped && (g.fault.is_some() || !ready(&g)) {
                self.changed.wait_for(&mut g, patience);
            }
            if g.stopped {
                return false;
            }
            if g.fault.is_some() || !ready(&g) {
                return true;
            }
            if self.holding(&mut g) {
                self.changed.wait_for(&mut g, patience.min(Duration::from_millis(100)));
                return !g.stopped;
            }
        }
        let applying = self.applying.lock();
        let r = self.apply_next(buf);
        drop(applying);
        match r {
            Ok(()) => {
                if self.inner.lock().full.take().is_some() {
                    log::info!("group {}: there is space again", self.replica.group);
                }
            }
            Err(e) if is_full(&e) => self.wait_for_space(e),
            Err(e) => self.diverged(e),
        }
        true
    }

    /// Decided entries wait for room; nothing is lost, and nothing more is accepted (G8).
    fn wait_for_space(&self, e: Error) {
        if self.inner.lock().full.replace(e.clone()).is_none() {
            log::error!("group {}: applying waits for space: {e}", self.replica.group);
        }
        self.relieve();
        self.changed.notify_all();
        std::thread::sleep(Duration::from_millis(500));
    }

    /// An accepted entry cannot be applied: the tree is not what it must be. A comparison with the peer repairs it.
    fn diverged(&self, e: Error) {
        log::error!("group {}: applying stopped: {e}", self.replica.group);
        {
            let mut m = self.replica.order();
            if let Err(e) = self.replica.save_state(&mut m, |s| s.suspect = true) {
                log::error!("group {}: {e}", self.replica.group);
            }
        }
        let mut g = self.inner.lock();
        g.fault = Some(e.context("the replica differs from what its log expects"));
        drop(g);
        self.changed.notify_all();
    }

    fn apply_next(&self, buf: &mut Vec<u8>) -> Result<()> {
        let at = self.replica.order().live.applied_lsn();
        let Some(next) = self.replica.log.read(at, buf)? else { return Ok(()) };
        let head = frame::check(buf)?;
        match head.kind {
            FrameKind::Entry | FrameKind::Staged => self.apply_entry(buf, &head, next)?,
            FrameKind::TxnBegin => self.begin_txn(at, next)?,
            FrameKind::TxnCommit => self.commit_txn(codec::decode(frame::head_part(buf, &head))?, next)?,
            FrameKind::Msg => return Err(Error::corrupt("a message in the entry log")),
        }
        self.changed.notify_all();
        Ok(())
    }

    fn begin_txn(&self, at: u64, next: u64) -> Result<()> {
        let t = self.inner.lock().txns.front().copied().filter(|t| t.lsn == at);
        let Some(Txn { common: from, to: Some(to), .. }) = t else {
            return Err(Error::corrupt("entry log: unknown transaction"));
        };
        self.replica.set_between(true)?;
        // A repair may be about files that were replaced from outside: kept descriptors would miss the new ones.
        self.replica.regions.iter().for_each(|r| r.forget_all());
        let mut m = self.replica.order();
        m.journal.begin_jump(from, to)?;
        m.live.set_txn(Some((from, to)));
        let seq = m.live.applied_seq();
        m.live.set_applied(next, seq);
        Ok(())
    }

    fn commit_txn(&self, c: TxnCommit, next: u64) -> Result<()> {
        {
            let mut m = self.replica.order();
            self.replica.save_state(&mut m, |s| {
                s.chain = c.epochs.clone();
                s.copy = CopyState::Consistent;
                s.whole = Seq(0);
                s.suspect = false;
                s.was_primary = false;
                // The tree is the source's now: what it had of its own is gone, and recorded as part of this step.
                s.crashes.clear();
            })?;
            // Whatever can fail for want of space comes first: the whole is then done again.
            m.journal.rotate(c.to)?;
            m.live.set_last_seq(c.to);
            m.live.set_settled(c.to);
            // Killed between these two, the commit record is met again without its transaction: see `finish_step`.
            m.live.set_txn(None);
            m.live.set_applied(next, c.to);
        }
        self.inner.lock().txns.pop_front();
        self.replica.set_between(false)
    }

    fn apply_entry(&self, buf: &[u8], head: &Header, next: u64) -> Result<()> {
        let e = Entry::parse(buf, head)?;
        let data = frame::data_part(buf, head);
        let r = &self.replica;
        let mut m = r.order();
        let txn = m.live.txn();
        let seq = if e.seq.0 == 0 { txn.map_or(Seq(0), |t| t.1) } else { e.seq };
        let what = || format!("entry {} ({:?})", seq.0, e.op);
        if e.op.is_namespace() {
            let mut op = e.op.clone();
            r.names(&mut m, (seq, e.vol, next), &mut op, Side::Receiver, &mut |_, _, _| {}).at(what())?;
        } else if let Op::ConfigDef { .. } = &e.op {
            r.region(e.vol)?.apply_content(&e.op, data).at(what())?;
        } else if let Some((target, mark)) = mark_of(&e.op, data.len() as u64) {
            r.mark(&mut m, seq, e.vol, &target, mark)?;
            r.region(e.vol)?.apply_content(&e.op, data).at(what())?;
        }
        if txn.is_some() {
            let s = m.live.applied_seq();
            m.live.set_applied(next, s);
        } else {
            m.live.set_applied(next, seq);
            m.live.set_last_seq(seq);
            m.live.set_settled(seq);
        }
        m.live.clear_intent();
        if txn.is_none() {
            // The entry is applied: that the interval cannot be closed now does not make it fail.
            if m.journal.wants_rotation()
                && let Err(e) = m.journal.rotate(seq)
            {
                log::warn!("group {}: the journal's interval goes on: {e}", r.group);
            }
            if m.state.whole == seq && seq.0 != 0 {
                drop(m);
                r.set_between(false)?;
            }
        }
        Ok(())
    }
}

/// What an operation on content marks in the journal.
fn mark_of(op: &Op, data_len: u64) -> Option<(Target, Mark)> {
    let file = |n: &crate::base::Name| Target::File(n.clone());
    Some(match op {
        Op::Write { at, off, .. } => (file(at), Mark::Data { from: *off, to: off + data_len }),
        Op::Truncate { at, size, .. } => (file(at), Mark::Data { from: *size, to: u64::MAX }),
        Op::Fallocate { at, off, len, .. } => (file(at), Mark::Data { from: *off, to: off + len }),
        Op::SetAttr { at, .. } | Op::SetXattr { at, .. } | Op::RemoveXattr { at, .. } => (at.clone(), Mark::Attr),
        Op::Keep { at, .. } => (file(at), Mark::Attr),
        _ => return None,
    })
}
