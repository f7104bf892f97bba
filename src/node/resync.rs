//! Resync by state, at the source: from the journals of both sides since their common point to a staged transaction.
//!
//! ```text
//! order held: Q = head, journal records, link table, watch of names ─▶ plan (pure)
//! TxnBegin ─ names as at Q ─ contents and attributes as found ─ entries after Q ─ TxnCommit(position)
//! ```
//! The target's tree does not change before the commit record is in its log, so its hashes can be asked for and a
//! takeover there sees the old point (A6). Contents are read while writes go on; the entries after Q, which follow inside
//! the transaction up to a point after the last read, make them exact.

use super::by_state::Suspect;
use super::failure::failed;
use super::losses::Losses;
use super::meter::Meter;
use super::repair::Repair;
use super::session::{Failure, Session, Step};
use super::source::{Differ, Source};
use crate::base::planted::{Bug, planted};
use crate::base::sync::Mutex;
use crate::base::{DirId, Error, Kind, LinkId, Name, Result, Seq, VolId, limits, random_u64};
use crate::format::codec;
use crate::format::frame::{self, FrameKind};
use crate::format::msg::{Ask, Msg, Told};
use crate::format::op::{Attr, Entry, NodeKind, Op, Target, TxnBegin, TxnCommit};
use crate::pair::change::{Rec, What};
use crate::pair::plan::{self, ContentTask, Extent, Input, Links, Plan, Step as Do};
use crate::pair::state::{Mode, Reason};
use crate::store::region::Region;
use crate::store::replica::{Replica, before};
use crate::store::watch::Watch;
use crate::volume::queue::Fetch;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Tasks whose hashes are asked for in one question.
const ASKS: usize = 64;
/// Directories that are asked about in one question.
const DIRS_ASKED: usize = 512;
/// How long a peer may take to answer a question.
const PATIENCE: Duration = Duration::from_secs(60);

impl Session {
    /// Brings the peer from the common point to the present by a staged transaction; returns the position reached.
    pub(super) fn resync(&mut self, common: Seq, suspect: Option<Suspect>) -> Step<Seq> {
        self.keeping(|s| s.staged(common, suspect))
    }

    /// The journals contradict each other, or what they tell contradicts itself: more was lost than is known of. The next
    /// session compares everything, so that the pair does not stay as it is for ever.
    fn unplanned(&self, e: &Error) {
        if e.kind == Kind::Corrupt {
            log::warn!("group {} pair {}: {e}; everything is compared", self.group.name, self.pair.name);
            self.pair.set_repair(Some(Repair::Everything));
        }
    }

    fn staged(&mut self, common: Seq, suspect: Option<Suspect>) -> Step<Seq> {
        self.group.update(self.index, |p| p.received = common);
        let id = random_u64() | 1;
        let from = self.welcome.head;
        self.say(&Msg::Prepare { id, from, bytes: 0, first_copy: false })?;
        self.await_ready(id)?;
        let low = suspect.as_ref().map_or(common, |s| s.low);
        let (q, input_common, source, source_links, at_q) = {
            let mut m = self.group.replica.order();
            let (mut input_common, mut since) = Replica::plan_from(&m, common);
            if suspect.is_some() {
                (input_common, since) = (input_common.min(low), since.min(low));
            }
            let since = since.max(m.journal.begins_after());
            self.group.rotate(&mut m)?;
            let (recs, links) = self.group.replica.records(&m, since)?;
            // The head: it is always there.
            self.group.queue.keep_after(self.index, m.live.last_seq());
            let tables = if suspect.is_some() { tables(&self.group.replica) } else { Vec::new() };
            let at_q = AtQ { watch: self.group.replica.watch(&mut m), tables };
            (m.live.last_seq(), input_common, recs, links, at_q)
        };
        let watch = at_q.watch.clone();
        let needs_theirs = suspect.is_some() || !self.welcome.exact || common < from || input_common < common;
        let (target, target_links) = if needs_theirs {
            let since = input_common.min(self.welcome.settled);
            self.their_records(since, &source)?
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
        let plan = match &suspect {
            None => plan::plan(&input).inspect_err(|e| self.unplanned(e))?,
            Some(s) => self.plan_by_state(s, &at_q, &source, &target)?,
        };
        self.base = Some(q);
        log::info!(
            "group {} pair {}: resync{} from {} to {}: {} records, {} steps of names, {} files to examine",
            self.group.name,
            self.pair.name,
            if suspect.is_some() { " by state" } else { "" },
            input_common.0,
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
            .carry_out(id, &plan, &watch)
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
        self.their_journal(since, plan::link_ids(source).into_iter().collect())
    }

    fn their_journal(&mut self, since: Seq, lids: Vec<(VolId, LinkId)>) -> Step<(Vec<Rec>, Links)> {
        self.say(&Msg::JournalAsk { since, lids })?;
        let (mut recs, mut links) = (Vec::new(), Links::new());
        let mut bytes = 0;
        loop {
            let Msg::JournalPart { recs: part, links: l, last } = self.hear(PATIENCE)? else {
                return Err(Error::corrupt("unexpected answer to the question for the journal").into());
            };
            for r in part {
                bytes += r.len() as u64;
                if bytes > limits::JOURNAL_ANSWER_BYTES_MAX {
                    return Err(Error::corrupt("the peer's journal does not end").into());
                }
                recs.push(Rec::parse(&r)?);
            }
            links.extend(l.into_iter().map(|(v, l, n)| ((v, l), n)));
            if last {
                return Ok((recs, links));
            }
        }
    }

    /// The names that the target has of these link ids.
    pub(super) fn links_of(&mut self, lids: Vec<(VolId, LinkId)>) -> Step<Links> {
        if lids.is_empty() {
            return Ok(Links::new());
        }
        self.their_journal(Seq(u64::MAX), lids).map(|(_, l)| l)
    }

    fn links_alone(&mut self, source: &[Rec]) -> Step<Links> {
        if plan::link_ids(source).is_empty() {
            return Ok(Links::new());
        }
        self.their_records(Seq(u64::MAX), source).map(|(_, l)| l)
    }

    fn carry_out(&mut self, id: u64, plan: &Plan, watch: &Arc<Mutex<Watch>>) -> Step<()> {
        let src = Source { replica: self.group.replica.clone(), watch: watch.clone() };
        let mut losses = self.losses(id, plan)?;
        self.stage_heads()?;
        self.note_losses(&mut losses, plan, &src)?;
        for step in &plan.ns {
            let (vol, op) = names_op(step, &src, &losses)?;
            self.stage(vol, op, b"")?;
        }
        let mut meter = Meter::new("resync");
        meter.p.total_files = plan.content.len() as u64;
        meter.p.total_bytes = plan.content.iter().map(|t| src.extent(t.vol, &t.source, &t.extent)).sum();
        for tasks in plan.content.chunks(ASKS) {
            let tolds = self.ask_about(tasks)?;
            for (task, told) in tasks.iter().zip(tolds) {
                self.copy_task(&src, task, told, &mut losses, &mut meter)?;
                meter.p.done_files += 1;
                meter.show(&self.pair);
            }
            self.tick()?;
        }
        meter.p.phase = "entries written meanwhile".into();
        meter.show_now(&self.pair);
        self.copy_dirs_attrs(&src, &plan.dirs)?;
        self.stats.kept = losses.noted;
        if losses.noted > 0 {
            log::warn!(
                "group {}: site {} had changes of its own: {} losing versions go to its manifest (`kagami loss list` there)",
                self.group.name,
                self.pair.peer,
                losses.noted
            );
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
        let n = asks.len();
        let id = self.pose(asks)?;
        self.answers(id, n)
    }

    /// Asks without waiting for the answers: see [`Session::answers`].
    pub(super) fn pose(&mut self, asks: Vec<Ask>) -> Step<u64> {
        let id = random_u64();
        self.say(&Msg::Query { id, asks })?;
        Ok(id)
    }

    /// The `n` answers to a question.
    pub(super) fn answers(&mut self, id: u64, n: usize) -> Step<Vec<Told>> {
        let mut out = Vec::new();
        while out.len() < n {
            match self.hear(PATIENCE)? {
                Msg::Answer { id: i, tolds } if i == id && !tolds.is_empty() => out.extend(tolds),
                _ => return Err(Error::corrupt("unexpected answer to a question about files").into()),
            }
        }
        Ok(out)
    }

    fn copy_task(
        &mut self,
        src: &Source,
        t: &ContentTask,
        told: Option<Told>,
        losses: &mut Losses,
        meter: &mut Meter,
    ) -> Step<()> {
        let at = &t.target_after;
        let Some(found) = src.find(t.vol, &t.source)? else {
            // Gone since Q: an entry after Q removes it at the target as well.
            return match t.lost {
                Some(lost) => self.note_file(losses, lost, at, None, true, &src.replica),
                None => Ok(()),
            };
        };
        let mut d = Differ::new(&found, &told, &t.extent);
        let mut lost = t.lost;
        let before = meter.p.done_bytes;
        while d.advance()? {
            while let Some((op, data)) = d.take(at) {
                // Before anything is overwritten.
                if let Some(lost) = lost.take() {
                    self.note_file(losses, lost, at, Some(&found), true, &src.replica)?;
                }
                self.stage(t.vol, op, &data)?;
            }
            meter.p.done_bytes = before + d.compared;
            self.tick()?;
            meter.show(&self.pair);
        }
        if let Some(lost) = lost {
            self.note_file(losses, lost, at, Some(&found), false, &src.replica)?;
        }
        self.stats.bytes_copied += d.bytes;
        self.stats.files_copied += (d.bytes > 0 || d.resized || told.is_none()) as u64;
        if planted(Bug::ResyncWithoutAttributes) {
            return Ok(());
        }
        for op in found.attr_ops(
            Target::File(at.clone()),
            told.as_ref().and_then(|t| t.have.as_ref()),
            d.bytes > 0 || d.resized || told.is_none(),
        )? {
            self.stage(t.vol, op, b"")?;
        }
        Ok(())
    }

    /// Attributes of directories, with what the target has beyond them taken away.
    pub(super) fn copy_dirs_attrs(&mut self, src: &Source, dirs: &[(VolId, DirId)]) -> Step<()> {
        for part in dirs.chunks(DIRS_ASKED) {
            let ask = |(vol, d): &(VolId, DirId)| Ask { vol: *vol, at: Target::Dir(*d), ranges: Vec::new() };
            let tolds = self.ask(part.iter().map(ask).collect())?;
            for ((vol, dir), told) in part.iter().zip(tolds) {
                let Some(found) = src.find_dir(*vol, *dir)? else { continue };
                for op in found.attr_ops(Target::Dir(*dir), told.have.as_ref(), true)? {
                    self.stage(*vol, op, b"")?;
                }
            }
            self.tick()?;
        }
        Ok(())
    }

    /// Before a copy counts as a point of the order: what was read of the tree is not to be ahead of the sync site (G2).
    /// What was refused meanwhile is not shown at all: the copy is begun anew, past it.
    pub(super) fn behind_sync_site(&mut self, upto: Seq) -> Step<()> {
        while self.pair.mode == Mode::Async && self.group.async_limit() < upto {
            self.tick()?;
            self.group.wait_async_limit(before(upto), Duration::from_millis(100));
        }
        if self.group.has_refused(self.index, upto) {
            return failed(Reason::Behind, Error::failed("what was copied has something that the fence refused"));
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
            let upto = if self.pair.mode == Mode::Async { self.group.async_limit() } else { reach };
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
                    self.tick()?;
                    std::thread::sleep(Duration::from_millis(1));
                }
                Fetch::Gone => return self.behind(),
            }
        }
        self.behind_sync_site(cursor)?;
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

/// What was there at Q.
pub(super) struct AtQ {
    /// What became of it since.
    pub(super) watch: Arc<Mutex<Watch>>,
    /// For each volume: places of directories, and the names of files with several links.
    pub(super) tables: Vec<(HashMap<DirId, Name>, HashMap<Name, LinkId>)>,
}

fn tables(r: &Replica) -> Vec<(HashMap<DirId, Name>, HashMap<Name, LinkId>)> {
    let of = |region: &Arc<Region>| {
        let ids = region.ids.read();
        let dirs = ids.dirs().filter(|(_, d)| !d.parent.is_internal());
        let dirs = dirs.map(|(id, d)| (id, Name::new(d.parent, d.name.to_vec()))).collect();
        let links = ids.linked_names().filter_map(|n| Some((n.clone(), ids.link_of(n)?))).collect();
        (dirs, links)
    };
    r.regions.iter().map(of).collect()
}

/// A step of the plan as an operation on the target.
fn names_op(step: &Do, src: &Source, losses: &Losses) -> Result<(VolId, Op)> {
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
                Some(f) => (f.kind(), f.attr()),
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
        Do::Discard { vol, parked, keep: Some(lost), .. } => (*vol, rename(parked, &losses.kept(*lost))),
        Do::Discard { vol, parked, .. } => (*vol, Op::Unlink { at: parked.clone(), pmtime }),
    })
}
