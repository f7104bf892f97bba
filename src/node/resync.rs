//! Resync by state, at the source: from the journals of both sides since their common point to a staged transaction.
//!
//! ```text
//! order held: Q = head, journal records, link table, watch of names ─▶ plan (pure)
//! TxnBegin ─ names as at Q ─ contents and attributes as found ─ entries after Q ─ TxnCommit(position)
//! ```
//! The target's tree does not change before the commit record is in its log, so its hashes can be asked for and a
//! takeover there sees the old point (A6). Contents are read while writes go on; the entries after Q, which follow inside
//! the transaction up to a point after the last read, make them exact.

use super::meter::Meter;
use super::session::{Failure, Session, Step};
use super::source::{Differ, Source};
use crate::base::{DirId, Error, Kind, Name, Result, Seq, VolId, limits, random_u64};
use crate::format::codec;
use crate::format::frame::{self, FrameKind};
use crate::format::msg::{Ask, Msg, Told};
use crate::format::op::{Attr, Entry, NodeKind, Op, Target, TxnBegin, TxnCommit};
use crate::pair::change::{Rec, What};
use crate::pair::plan::{self, ContentTask, Extent, Input, Links, Plan, Step as Do};
use crate::pair::state::Reason;
use crate::store::replica::Replica;
use crate::store::watch::Watch;
use crate::volume::queue::Fetch;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// Tasks whose hashes are asked for in one question.
const ASKS: usize = 64;
/// How long a peer may take to answer a question.
const PATIENCE: Duration = Duration::from_secs(60);

impl Session {
    /// Brings the peer from the common point to the present by a staged transaction; returns the position reached.
    pub(super) fn resync(&mut self, common: Seq) -> Step<Seq> {
        self.group.update(self.index, |p| p.received = common);
        let id = random_u64() | 1;
        let from = self.welcome.head;
        self.say(&Msg::Prepare { id, from, bytes: 0, first_copy: false })?;
        self.await_ready(id)?;
        let (q, input_common, source, source_links, watch) = {
            let mut m = self.group.replica.order();
            let (input_common, since) = Replica::plan_from(&m, common);
            let since = since.max(m.journal.begins_after());
            self.group.rotate(&mut m)?;
            let (recs, links) = self.group.replica.records(&m, since)?;
            (m.live.last_seq(), input_common, recs, links, self.group.replica.watch(&mut m))
        };
        let needs_theirs = !self.welcome.exact || common < from || input_common < common;
        let (target, target_links) = if needs_theirs {
            self.their_records(input_common.min(self.welcome.settled), &source)?
        } else {
            (Vec::new(), self.links_alone(&source)?)
        };
        let input = Input {
            source: &source,
            target: &target,
            common: input_common,
            agreed: common,
            target_head: from,
            source_links: &source_links,
            target_links: &target_links,
        };
        let plan = plan::plan(&input)?;
        self.base = Some(q);
        log::info!(
            "group {} pair {}: resync from {} to {}: {} records, {} steps of names, {} files to examine",
            self.group.name,
            self.pair.name,
            common.0,
            q.0,
            source.len() + target.len(),
            plan.ns.len(),
            plan.content.len()
        );
        self.stats.files_examined = plan.counts.files_examined;
        self.stats.renames = plan.counts.renames;
        self.raw(&frame::build(
            FrameKind::TxnBegin,
            &codec::encode(&TxnBegin { id, from, base: q, common: input_common })?,
            b"",
        ))?;
        let r = self
            .carry_out(&plan, &watch)
            .and_then(|()| self.repair(&watch, &source, &target))
            .and_then(|()| self.finish_txn(id, q));
        self.base = None;
        if r.is_err() {
            // If the link still stands, the target forgets what was staged at once.
            let _ = self.say(&Msg::Abort { id });
        }
        r
    }

    fn await_ready(&mut self, id: u64) -> Step<()> {
        match self.hear(Duration::from_secs(600))? {
            Msg::Ready { id: i } if i == id => Ok(()),
            Msg::NeedsSpace { free, .. } => Err(Failure {
                reason: Reason::NeedsSpace,
                error: Error::failed(format!("the resync does not fit at the target: {free} bytes are free")),
            }),
            _ => Err(Error::corrupt("unexpected answer to the announcement of a resync").into()),
        }
    }

    fn their_records(&mut self, since: Seq, source: &[Rec]) -> Step<(Vec<Rec>, Links)> {
        let lids = plan::link_ids(source).into_iter().collect();
        self.say(&Msg::JournalAsk { since, lids })?;
        let (mut recs, mut links) = (Vec::new(), Links::new());
        loop {
            let Msg::JournalPart { recs: part, links: l, last } = self.hear(PATIENCE)? else {
                return Err(Error::corrupt("unexpected answer to the question for the journal").into());
            };
            for r in part {
                recs.push(codec::decode::<Rec>(&r)?);
            }
            links.extend(l.into_iter().map(|(v, l, n)| ((v, l), n)));
            if last {
                return Ok((recs, links));
            }
        }
    }

    fn links_alone(&mut self, source: &[Rec]) -> Step<Links> {
        if plan::link_ids(source).is_empty() {
            return Ok(Links::new());
        }
        self.their_records(Seq(u64::MAX), source).map(|(_, l)| l)
    }

    fn carry_out(&mut self, plan: &Plan, watch: &Arc<Mutex<Watch>>) -> Step<()> {
        let src = Source { replica: self.group.replica.clone(), watch: watch.clone() };
        self.stage_heads()?;
        for step in &plan.ns {
            let (vol, op) = names_op(step, &src)?;
            self.stage(vol, op, b"")?;
        }
        let mut meter = Meter::new("resync");
        meter.p.total_files = plan.content.len() as u64;
        meter.p.total_bytes = plan.content.iter().map(|t| src.extent(t.vol, &t.source, &t.extent)).sum();
        for tasks in plan.content.chunks(ASKS) {
            let tolds = self.ask_about(tasks)?;
            for (task, told) in tasks.iter().zip(tolds) {
                self.copy_task(&src, task, told, &mut meter)?;
                meter.p.done_files += 1;
                meter.show(&self.pair);
            }
            self.tick()?;
        }
        meter.p.phase = "entries written meanwhile".into();
        meter.show_now(&self.pair);
        for (vol, dir) in &plan.dirs {
            self.copy_dir_attrs(&src, *vol, *dir)?;
        }
        Ok(())
    }

    /// The config definitions, whose entries may be from before the common point (CD-4).
    pub(super) fn stage_heads(&mut self) -> Step<()> {
        for region in self.group.replica.regions.clone() {
            if let Some(head) = region.head()? {
                self.stage(region.vol, Op::ConfigDef { body: head.body()? }, b"")?;
            }
        }
        Ok(())
    }

    /// One operation of the staged transaction.
    pub(super) fn stage(&mut self, vol: VolId, op: Op, data: &[u8]) -> Step<()> {
        let e = Entry { seq: Seq(0), vol, time: crate::base::time::now(), op };
        let f = e.frame(data)?;
        self.raw(&f)
    }

    /// What the target has for each task, in order.
    fn ask_about(&mut self, tasks: &[ContentTask]) -> Step<Vec<Option<Told>>> {
        let asked: Vec<Option<Ask>> = tasks
            .iter()
            .map(|t| {
                let at = Target::File(t.target_now.clone()?);
                let ranges = match &t.extent {
                    Extent::Whole => vec![(0, u64::MAX)],
                    Extent::Ranges(r) => r.iter().collect(),
                };
                Some(Ask { vol: t.vol, at, ranges })
            })
            .collect();
        let mut told = self.ask(asked.iter().flatten().cloned().collect())?.into_iter();
        Ok(asked.iter().map(|a| a.as_ref().and_then(|_| told.next())).collect())
    }

    /// Asks the target about objects.
    pub(super) fn ask(&mut self, asks: Vec<Ask>) -> Step<Vec<Told>> {
        if asks.is_empty() {
            return Ok(Vec::new());
        }
        let (id, n) = (random_u64(), asks.len());
        self.say(&Msg::Query { id, asks })?;
        let mut out = Vec::new();
        while out.len() < n {
            match self.hear(PATIENCE)? {
                Msg::Answer { id: i, tolds } if i == id && !tolds.is_empty() => out.extend(tolds),
                _ => return Err(Error::corrupt("unexpected answer to a question about files").into()),
            }
        }
        Ok(out)
    }

    fn copy_task(&mut self, src: &Source, t: &ContentTask, told: Option<Told>, meter: &mut Meter) -> Step<()> {
        // Gone since Q: an entry after Q removes it at the target as well.
        let Some(found) = src.find(t.vol, &t.source)? else { return Ok(()) };
        let mut d = Differ::new(&found, &told, &t.extent);
        let mut kept = !t.target_changed || told.as_ref().is_none_or(|t| t.have.is_none());
        let before = meter.p.done_bytes;
        while d.advance()? {
            while let Some((op, data)) = d.take(&t.target_after) {
                if !kept {
                    kept = true;
                    let label = format!("{:016x}-{}", random_u64(), String::from_utf8_lossy(&t.target_after.name));
                    let kept_name = label.into_bytes().into_iter().take(limits::NAME_BYTES_MAX).collect();
                    self.stage(t.vol, Op::Keep { at: t.target_after.clone(), kept: kept_name }, b"")?;
                }
                self.stage(t.vol, op, &data)?;
            }
            meter.p.done_bytes = before + d.compared;
            self.tick()?;
            meter.show(&self.pair);
        }
        self.stats.bytes_copied += d.bytes;
        self.stats.files_copied += (d.bytes > 0 || d.resized || told.is_none()) as u64;
        for op in found.attr_ops(
            Target::File(t.target_after.clone()),
            told.as_ref().and_then(|t| t.have.as_ref()),
            d.bytes > 0 || d.resized || told.is_none(),
        )? {
            self.stage(t.vol, op, b"")?;
        }
        Ok(())
    }

    pub(super) fn copy_dir_attrs(&mut self, src: &Source, vol: VolId, dir: DirId) -> Step<()> {
        let Some(found) = src.find_dir(vol, dir)? else { return Ok(()) };
        for op in found.attr_ops(Target::Dir(dir), None, true)? {
            self.stage(vol, op, b"")?;
        }
        Ok(())
    }

    /// Sends the entries after Q up to a point after everything that was read, then the commit record.
    fn finish_txn(&mut self, id: u64, q: Seq) -> Step<Seq> {
        let reach = self.group.quiesce(PATIENCE)?;
        let mut cursor = q;
        while cursor < reach {
            if self.stopping() {
                return Err(Error::link("asked to stop").into());
            }
            let upto = if self.pair.mode == crate::pair::state::Mode::Async { self.group.async_limit() } else { reach };
            match self.group.queue.fetch(cursor, upto.min(reach), limits::BATCH_BYTES, limits::BATCH_ENTRIES) {
                Fetch::Items(items) => {
                    let frames: Vec<&[u8]> = items.iter().map(|i| i.frame.as_slice()).collect();
                    if let Err(e) = self.w.lock().send_many(&frames) {
                        self.check()?;
                        return Err(e.into());
                    }
                    cursor = items.last().map_or(cursor, |i| i.seq);
                }
                Fetch::Nothing => {
                    self.check()?;
                    std::thread::sleep(Duration::from_millis(1));
                }
                Fetch::Gone => {
                    return Err(Failure {
                        reason: Reason::Behind,
                        error: Error::failed(
                            "behind: more was written during the resync than the queue holds; it starts again",
                        ),
                    });
                }
            }
        }
        let epochs = self.group.replica.order().state.chain.clone();
        let commit = TxnCommit { id, to: cursor, epochs };
        self.raw(&frame::build(FrameKind::TxnCommit, &codec::encode(&commit)?, b""))?;
        let until = std::time::Instant::now() + Duration::from_secs(600);
        while self.group.progress(self.index).received < cursor {
            self.check()?;
            if self.stopping() || std::time::Instant::now() > until {
                return Err(Error::new(Kind::Timeout, "the commit of the resync was not acknowledged").into());
            }
            self.group.wait_pair(self.index, Duration::from_millis(100), |p| p.received >= cursor);
        }
        Ok(cursor)
    }
}

/// A step of the plan as an operation on the target.
fn names_op(step: &Do, src: &Source) -> Result<(VolId, Op)> {
    let rename = |from: &Name, to: &Name| Op::Rename {
        from: from.clone(),
        to: to.clone(),
        flags: 0,
        from_pmtime: Default::default(),
        to_pmtime: Default::default(),
    };
    let pmtime = Default::default();
    Ok(match step {
        Do::Park { vol, from, parked } => (*vol, rename(from, parked)),
        Do::Place { vol, parked, to } => (*vol, rename(parked, to)),
        Do::DropName { vol, at } => (*vol, Op::Unlink { at: at.clone(), pmtime }),
        Do::MakeDir { vol, id, parked } => {
            let attr = Attr { mode: 0o700, ..src.default_attr() };
            (*vol, Op::Mkdir { at: parked.clone(), id: *id, attr, pmtime })
        }
        Do::MakeFile { vol, source, parked } => {
            let (kind, attr) = match src.find(*vol, source)? {
                Some(f) => (f.kind()?, f.attr()),
                None => (NodeKind::File, src.default_attr()),
            };
            (*vol, Op::Create { at: parked.clone(), kind, attr, pmtime })
        }
        Do::LinkMore { vol, from, to, lid } => {
            (*vol, Op::Link { from: from.clone(), to: to.clone(), lid: *lid, pmtime })
        }
        Do::Discard { vol, parked, what: What::Dir(id), .. } => {
            (*vol, Op::Rmdir { at: parked.clone(), id: *id, pmtime })
        }
        Do::Discard { vol, parked, keep: true, .. } => (
            *vol,
            rename(
                parked,
                &Name::new(DirId::LOST, format!("{:016x}-{}", random_u64(), String::from_utf8_lossy(&parked.name))),
            ),
        ),
        Do::Discard { vol, parked, .. } => (*vol, Op::Unlink { at: parked.clone(), pmtime }),
    })
}
