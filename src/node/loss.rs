//! `kagami loss`: the events of losing versions at this site, as the node tells them (G6).

use super::control::path_text;
use super::local::LocalGroup;
use crate::base::time::{self, Time};
use crate::base::{Epoch, Error, Result};
use crate::format::loss::{Cause, Event, Lost, Part};
use crate::store::loss::LostArea;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;

/// A path as JSON can have it: text, or an array of bytes when it is not UTF-8.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PathText(#[serde(with = "path_text")] pub PathBuf);

/// An event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossEvent {
    /// Its group.
    pub group: String,
    /// Its id, 16 hexadecimal digits.
    pub id: String,
    /// When, UTC.
    pub time: String,
    /// `set-back`, `never-arrived`, `cut-short`, `overwritten` or `power-cut`.
    pub cause: String,
    /// Objects listed.
    pub objects: u64,
    /// Content kept, bytes.
    pub bytes: u64,
    /// What happened, for people.
    pub words: String,
    /// The last position both histories have.
    pub common: u64,
    /// The last position of the losing one.
    pub head: u64,
    /// The epoch that lost: number and site.
    pub lost_epoch: Option<String>,
    /// The epoch that won.
    pub won_epoch: Option<String>,
    /// Loss is possible from this time on, UTC.
    pub since: Option<String>,
}

/// One object of an event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossObject {
    /// Its volume.
    pub volume: String,
    /// Its path on the losing side.
    pub path: PathText,
    /// `created`, `content`, `attributes`, `name`, `link`, `removed`, `changed`.
    pub what: Vec<String>,
    /// Where the winning side has it, if by another path.
    pub now: Option<PathText>,
    /// Where its version is kept.
    pub kept: Option<PathText>,
    /// Type and permission bits; 0: not known.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Modification time: seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Device number.
    pub rdev: u64,
    /// Symlink target.
    pub target: PathText,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

fn text(bytes: &[u8]) -> PathText {
    PathText(PathBuf::from(OsString::from_vec(bytes.to_vec())))
}

fn part(p: Part) -> String {
    match p {
        Part::Created => "created",
        Part::Content => "content",
        Part::Attributes => "attributes",
        Part::Name => "name",
        Part::Link => "link",
        Part::Removed => "removed",
        Part::Changed => "changed",
    }
    .into()
}

fn event(group: &str, e: &Event) -> LossEvent {
    let epoch = |e: &Option<Epoch>| e.as_ref().map(|e| format!("{} of site {}", e.number, e.site));
    let cause = match e.cause {
        Cause::SetBack => "set-back",
        Cause::NeverArrived => "never-arrived",
        Cause::CutShort => "cut-short",
        Cause::Overwritten => "overwritten",
        Cause::PowerCut => "power-cut",
    };
    LossEvent {
        group: group.into(),
        id: format!("{:016x}", e.id),
        time: time::utc(e.time),
        cause: cause.into(),
        objects: e.objects,
        bytes: e.bytes,
        words: e.words.clone(),
        common: e.common.0,
        head: e.head.0,
        lost_epoch: epoch(&e.lost),
        won_epoch: epoch(&e.won),
        since: e.since.map(time::utc),
    }
}

fn object(g: &LocalGroup, area: &LostArea, e: &Event, l: &Lost) -> Result<LossObject> {
    let Time { sec, nsec } = l.mtime;
    let kept = match l.kept {
        true => Some(PathText(area.kept(e.id, l)?)),
        false => None,
    };
    Ok(LossObject {
        volume: g.cfg.volumes.get(usize::from(l.vol.0)).map_or_else(String::new, |v| v.name.clone()),
        path: text(&l.path),
        what: l.what.iter().map(|p| part(*p)).collect(),
        now: l.now.as_ref().map(|p| text(p)),
        kept,
        mode: l.mode,
        uid: l.uid,
        gid: l.gid,
        size: l.size,
        mtime: (sec, nsec),
        rdev: l.rdev,
        target: text(&l.target),
        xattrs: l.xattrs.clone(),
    })
}

/// The events of these groups, oldest first.
pub fn list(groups: &[&Arc<LocalGroup>]) -> Result<Value> {
    let (mut events, mut damaged) = (Vec::new(), Vec::new());
    for g in groups {
        for e in LostArea::of(&*g.replica()?).events()? {
            match e {
                Ok(e) => events.push(event(&g.cfg.name, &e)),
                Err(e) => damaged.push(e.to_string()),
            }
        }
    }
    Ok(json!({ "events": events, "damaged": damaged }))
}

/// The group that has an event whose id begins so.
fn find<'a>(groups: &'a [Arc<LocalGroup>], id: &str) -> Result<(&'a Arc<LocalGroup>, LostArea, u64)> {
    let mut last = Error::failed(format!("no event {id:?}: this node has no group"));
    for g in groups {
        let area = match g.replica() {
            Ok(r) => LostArea::of(&r),
            Err(e) => {
                last = e;
                continue;
            }
        };
        match area.find(id) {
            Ok(e) => return Ok((g, area, e)),
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// One event with its objects.
pub fn show(groups: &[Arc<LocalGroup>], id: &str) -> Result<Value> {
    let (g, area, id) = find(groups, id)?;
    let (e, lost) = area.read(id)?;
    let objects = lost.iter().map(|l| object(g, &area, &e, l)).collect::<Result<Vec<_>>>()?;
    Ok(json!({ "event": event(&g.cfg.name, &e), "objects": objects }))
}

/// Drops one event, or all.
pub fn drop(groups: &[Arc<LocalGroup>], id: Option<&str>) -> Result<Value> {
    let mut dropped = Vec::new();
    let mut one = |area: &LostArea, id: u64| {
        area.drop_event(id)?;
        dropped.push(format!("{id:016x}"));
        Ok::<(), Error>(())
    };
    match id {
        Some(id) => {
            let (_, area, id) = find(groups, id)?;
            one(&area, id)?;
        }
        None => {
            for g in groups {
                let area = LostArea::of(&*g.replica()?);
                area.all()?.into_iter().try_for_each(|id| one(&area, id))?;
            }
        }
    }
    Ok(json!({ "dropped": dropped }))
}
