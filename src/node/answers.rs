//! A receiver's answers about its tree, given by the thread that reads the link, or, during a comparison, beside it.

use super::tell;
use crate::base::sync::Mutex;
use crate::base::{DirId, Error, LinkId, Name, Result, Seq, VolId};
use crate::format::codec;
use crate::format::msg::{Ask, Msg, Told};
use crate::net::{Closer, FrameWriter};
use crate::pair::plan;
use crate::store::receive::Receiver;
use crate::store::replica::Replica;
use crossbeam::channel::{Sender, unbounded};
use std::sync::Arc;
use std::time::Duration;

/// Parts of long answers, bytes.
const PART_BYTES: usize = 1 << 20;
/// Names in one part of a listing.
const PART_NAMES: usize = 2000;
/// The tree must be at the point to be held within this time.
const HOLD_PATIENCE: Duration = Duration::from_secs(30);

type Say<'a> = &'a dyn Fn(&Msg) -> Result<()>;

/// Tells about objects.
pub fn query(replica: &Replica, id: u64, asks: &[Ask], say: Say) -> Result<()> {
    let mut tolds = Vec::new();
    let mut size = 0;
    for a in asks {
        let t = tell::tell(replica, a)?;
        put(&mut tolds, &mut size, t, id, say)?;
    }
    if tolds.is_empty() { Ok(()) } else { say(&Msg::Answer { id, tolds }) }
}

/// Adds one answer to a part, and sends the part before it is too large for a message.
fn put(tolds: &mut Vec<Told>, size: &mut usize, t: Told, id: u64, say: Say) -> Result<()> {
    let attributes = t.have.iter().flat_map(|h| &h.xattrs).map(|(k, v)| k.len() + v.len() + 16).sum::<usize>();
    *size += 128 + attributes + t.blocks.iter().map(|b| b.len() * 17).sum::<usize>();
    tolds.push(t);
    if *size > PART_BYTES {
        *size = 0;
        say(&Msg::Answer { id, tolds: std::mem::take(tolds) })?;
    }
    Ok(())
}

/// Lists directories.
pub fn lists(replica: &Replica, id: u64, vol: VolId, dirs: Vec<DirId>, say: Say) -> Result<()> {
    let mut lists = Vec::new();
    let mut n = 0;
    for d in dirs {
        match tell::list(replica, vol, d)? {
            None => lists.push((d, None)),
            Some(l) if l.is_empty() => lists.push((d, Some(l))),
            Some(l) => {
                for part in l.chunks(PART_NAMES) {
                    n += part.len();
                    lists.push((d, Some(part.to_vec())));
                    if n >= PART_NAMES {
                        n = 0;
                        say(&Msg::ListPart { id, lists: std::mem::take(&mut lists), last: false })?;
                    }
                }
            }
        }
    }
    say(&Msg::ListPart { id, lists, last: true })
}

/// Tells the journal's records after `since` (`u64::MAX`: none), and the names of the link ids in them and in `lids`.
pub fn journal(replica: &Replica, since: Seq, mut lids: Vec<(VolId, LinkId)>, say: Say) -> Result<()> {
    let (recs, links) = {
        let m = replica.order();
        let recs =
            if since.0 == u64::MAX { Vec::new() } else { m.journal.since(since.max(m.journal.begins_after()))? };
        lids.extend(plan::link_ids(&recs));
        (recs, replica.links_of(lids))
    };
    let mut part = Vec::new();
    let mut bytes = 0;
    for r in recs {
        let b = codec::encode(&r)?;
        bytes += b.len();
        part.push(b);
        if bytes > PART_BYTES {
            bytes = 0;
            say(&Msg::JournalPart { recs: std::mem::take(&mut part), links: vec![], last: false })?;
        }
    }
    let links = links.into_iter().map(|((v, l), n)| (v, l, n)).collect();
    say(&Msg::JournalPart { recs: part, links, last: true })
}

/// Tells the paths of names.
pub fn paths(replica: &Replica, id: u64, names: Vec<(VolId, Name)>, say: Say) -> Result<()> {
    let (mut paths, mut size) = (Vec::new(), 0);
    for (vol, name) in names {
        let p = replica.region(vol)?.path_bytes(&name);
        size += p.len() + 8;
        paths.push(p);
        if size > PART_BYTES {
            size = 0;
            say(&Msg::Paths { id, paths: std::mem::take(&mut paths) })?;
        }
    }
    if paths.is_empty() { Ok(()) } else { say(&Msg::Paths { id, paths }) }
}

/// A thread that answers the questions of a comparison while entries go on coming in.
pub struct Answers {
    tx: Sender<Msg>,
}

impl Answers {
    /// Starts it; it ends when this is dropped and everything is answered.
    pub fn start(receiver: Arc<Receiver>, w: Arc<Mutex<FrameWriter>>, closer: Closer) -> Result<Answers> {
        let (tx, rx) = unbounded();
        std::thread::Builder::new().name("answers".into()).spawn(move || {
            let say = |m: &Msg| -> Result<()> {
                let f = m.frame()?;
                w.lock().send(&f)
            };
            for m in rx {
                if let Err(e) = answer(&receiver, m, &say) {
                    log::warn!("group {}: a question of a comparison: {e}", receiver.replica.group);
                    receiver.release(None);
                    closer.close();
                    return;
                }
            }
        })?;
        Ok(Answers { tx })
    }

    /// Hands a question over.
    pub fn put(&self, m: Msg) -> Result<()> {
        self.tx.send(m).map_err(|_| Error::link("the thread that answers has ended"))
    }
}

fn answer(receiver: &Receiver, m: Msg, say: Say) -> Result<()> {
    let replica = &receiver.replica;
    match m {
        Msg::Hold { id, .. } => {
            let ok = receiver.await_held(id, HOLD_PATIENCE);
            // What is at the names now counts, not what is still open.
            replica.regions.iter().for_each(|r| r.forget_all());
            say(&Msg::Held { id, ok })
        }
        Msg::Release { id } => {
            let kept = receiver.release(Some(id));
            say(&Msg::Released { id, kept })
        }
        // What cannot be looked at is missing to a comparison, not a reason to end the link.
        Msg::Query { id, asks } => {
            let (mut tolds, mut size) = (Vec::new(), 0);
            for a in &asks {
                let t = tell::tell(replica, a).unwrap_or(Told { have: None, blocks: Vec::new() });
                put(&mut tolds, &mut size, t, id, say)?;
            }
            if tolds.is_empty() { Ok(()) } else { say(&Msg::Answer { id, tolds }) }
        }
        Msg::ListAsk { id, vol, dirs } => {
            let listable = |d: &DirId| matches!(replica.region(vol).map(|r| tell::names(r, *d)), Ok(Ok(Some(_))));
            let (there, gone): (Vec<_>, Vec<_>) = dirs.into_iter().partition(listable);
            if !gone.is_empty() {
                let lists = gone.into_iter().map(|d| (d, None)).collect();
                say(&Msg::ListPart { id, lists, last: false })?;
            }
            lists(replica, id, vol, there, say)
        }
        _ => Err(Error::corrupt("a message that does not belong here")),
    }
}
