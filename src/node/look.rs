//! A look at what another site has of a group, without a session: nothing of it is changed, no link of it ends.
//!
//! ```text
//! Hello (look) ─▶ ◀─ Welcome;   JournalAsk ─▶ ◀─ JournalPart;   PathsAsk ─▶ ◀─ Paths
//! ```

use super::answers;
use super::incoming::Incoming;
use super::serve::{reject, welcome};
use crate::base::sync::Mutex;
use crate::base::{Epoch, Error, Name, Result, Seq, VolId};
use crate::format::frame::FrameKind;
use crate::format::msg::{CopyState, Hello, Msg, RejectCode};
use crate::format::op::Target;
use crate::net::{FrameReader, FrameWriter, Link};
use crate::pair::change::{Change, Rec};
use std::collections::BTreeSet;
use std::time::Duration;

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Names of changed files that are asked for, count.
const NAMES_MAX: usize = 10_000;

/// What a site has.
pub struct Seen {
    /// Its epochs.
    pub chain: Vec<Epoch>,
    /// Its position.
    pub head: Seq,
    /// Files and directories that it has changed after the asker's position, by their paths there; none when its journal
    /// does not reach back.
    pub changed: Vec<(VolId, Vec<u8>)>,
}

/// Answers one, at a site that is secondary.
pub fn answer(group: &dyn Incoming, mut r: FrameReader, mut w: FrameWriter) -> Result<()> {
    let Some(receiver) = group.receiver() else {
        let text = format!("group {} is not secondary at site {}", group.group(), group.site());
        reject(&mut w, RejectCode::Busy, text.clone(), vec![], Seq(0));
        return Err(Error::refused(text));
    };
    w.send(&Msg::Welcome(welcome(group.site(), &receiver)).frame()?)?;
    let w = Mutex::new(w);
    let say = |m: &Msg| w.lock().send(&m.frame()?);
    let mut buf = Vec::new();
    loop {
        let h = r.recv_within(&mut buf, PATIENCE)?;
        match if h.kind == FrameKind::Msg { Msg::parse(&buf, &h)? } else { return Err(strange()) } {
            Msg::JournalAsk { since, lids } => answers::journal(&receiver.replica, since, lids, &say)?,
            Msg::PathsAsk { id, names } => answers::paths(&receiver.replica, id, names, &say)?,
            _ => return Err(strange()),
        }
    }
}

fn strange() -> Error {
    Error::corrupt("a message that does not belong into a look")
}

/// Looks: over a fresh link, with a greeting that says so.
pub fn look(link: Link, hello: Hello) -> Result<Seen> {
    let since = hello.head;
    let (mut r, mut w) = link.split();
    let mut buf = Vec::new();
    let mut hear = |r: &mut FrameReader| -> Result<Msg> {
        let h = r.recv_within(&mut buf, PATIENCE)?;
        if h.kind == FrameKind::Msg { Msg::parse(&buf, &h) } else { Err(strange()) }
    };
    w.send(&Msg::Hello(hello).frame()?)?;
    let welcome = match hear(&mut r)? {
        Msg::Welcome(x) => x,
        Msg::Reject { text, .. } => return Err(Error::refused(text)),
        _ => return Err(strange()),
    };
    if welcome.torn || welcome.copy != CopyState::Consistent {
        return Err(Error::refused(format!("what site {} has is at no point of the order", welcome.site)));
    }
    let mut seen = Seen { chain: welcome.chain, head: welcome.head, changed: Vec::new() };
    if seen.head <= since || welcome.journal_after > since {
        return Ok(seen);
    }
    w.send(&Msg::JournalAsk { since, lids: Vec::new() }.frame()?)?;
    let mut names = BTreeSet::new();
    loop {
        let Msg::JournalPart { recs, last, .. } = hear(&mut r)? else { return Err(strange()) };
        for rec in recs {
            changed(&Rec::parse(&rec)?, since, &mut names);
        }
        if last {
            break;
        }
    }
    let names: Vec<(VolId, Name)> = names.into_iter().take(NAMES_MAX).collect();
    if names.is_empty() {
        return Ok(seen);
    }
    w.send(&Msg::PathsAsk { id: 1, names: names.clone() }.frame()?)?;
    while seen.changed.len() < names.len() {
        let Msg::Paths { paths, .. } = hear(&mut r)? else { return Err(strange()) };
        let at = seen.changed.len();
        seen.changed.extend(names.iter().skip(at).zip(paths).map(|((vol, _), p)| (*vol, p)));
    }
    Ok(seen)
}

/// The names that a record changes.
fn changed(rec: &Rec, since: Seq, names: &mut BTreeSet<(VolId, Name)>) {
    let mut add = |n: &Name| {
        if n.is_valid() && !n.dir.is_internal() {
            names.insert((rec.vol, n.clone()));
        }
    };
    match &rec.change {
        _ if rec.seq <= since => {}
        Change::Ns(ns) => ns.names().into_iter().flatten().for_each(add),
        Change::Data { at, .. } | Change::Attr { at: Target::File(at), .. } => add(at),
        Change::Attr { .. } => {}
    }
}
