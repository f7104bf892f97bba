//! `kagami why FILE`: where a file stands at each site, asked of the sites themselves.

use super::desk::Desk;
use super::local::LocalGroup;
use super::pairs::Pair;
use super::tell;
use crate::base::{DirId, Error, Name, Result, VolId, time::Time};
use crate::format::msg::{Ask, Have, Msg, Told};
use crate::format::op::Target;
use crate::os::sys;
use crate::pair::state::State;
use crate::store::region::Region;
use crate::volume::group::Group;
use serde_json::{Value, json};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};
use std::sync::Arc;
use std::time::Duration;

/// How long a peer may take to tell of one file.
const PATIENCE: Duration = Duration::from_secs(10);
/// Content is compared up to this many bytes of a file.
const CONTENT_BYTES: u64 = 64 << 20;

/// What this site and the peers of each pair know of the file at `rel` (below the root of volume `vol`).
/// An error where there is no such file here; a peer that cannot be asked is told of as such.
pub fn why(g: &LocalGroup, vol: VolId, rel: &Path) -> Result<Value> {
    let replica = g.replica()?;
    let region = replica.region(vol)?;
    let at = find(region, rel)?;
    let ask = Ask { vol, at: at.clone(), ranges: vec![(0, CONTENT_BYTES)] };
    let shown = rel.to_string_lossy().into_owned();
    let (marks, head) = {
        let m = replica.order();
        let tag = format!("vol{} ", vol.0);
        let of_it =
            |l: &String| l.split_once(&tag).is_some_and(|(_, rest)| rest.split_whitespace().any(|w| w == shown));
        let lines = replica.describe(&m, m.journal.begins_after(), usize::MAX)?;
        (lines.into_iter().filter(of_it).collect::<Vec<_>>(), m.live.last_seq())
    };
    let here = tell::tell(&replica, &ask)?;
    let mut sites = vec![json!({ "site": g.site, "position": head.0, "file": here.have.as_ref().map(state) })];
    for (i, p) in g.pairs.iter().enumerate() {
        let Some(group) = g.primary() else { break };
        sites.push(site(&group, i, p, &ask, &here));
    }
    let mut told = json!({ "file": shown, "changes_not_yet_everywhere": marks, "sites": sites });
    if let Some(kept) = here.have.as_ref().and_then(|h| region.kept(h.ino)) {
        told["kept_beside"] = kept.to_string().into();
    }
    Ok(told)
}

/// The object that has this path now.
fn find(region: &Region, rel: &Path) -> Result<Target> {
    let gone = |e: std::io::Error| Error::from(e).context(rel.display());
    let mut at = Target::Dir(DirId::ROOT);
    for c in rel.components() {
        let Component::Normal(c) = c else { continue };
        let Target::Dir(dir) = at else {
            return Err(Error::failed(format!("{}: a part of the path is no directory", rel.display())));
        };
        let name = Name::new(dir, c.as_bytes().to_vec());
        let st = sys::statat(&*region.dirfd(dir)?, c.as_bytes()).map_err(gone)?;
        at = match region.dir_by_ino(st.ino).filter(|_| st.is_dir()) {
            Some(id) => Target::Dir(id),
            None => Target::File(name),
        };
    }
    Ok(at)
}

fn site(group: &Arc<Group>, index: usize, p: &Pair, ask: &Ask, here: &Told) -> Value {
    let pos = group.progress(index);
    let mut v = json!({
        "site": p.peer,
        "pair": p.name,
        "state": p.state().shown().to_string(),
        "received": pos.received.0,
        "durable": pos.durable.0,
        "applied": pos.applied.0,
        "lag_entries": group.head().0.saturating_sub(pos.applied.0),
    });
    let answer = match p.desk().filter(|_| p.state() == State::Pair) {
        Some(d) => question(&d, ask),
        None => Err(Error::refused(format!("the pair is in {}; its peer is not asked", p.state().shown()))),
    };
    let (file, verdict) = match answer {
        Ok(there) => (there.have.as_ref().map(state), verdict(here, &there, group.head() > pos.applied)),
        Err(e) => (None, format!("not known: {e}")),
    };
    if let Some(m) = v.as_object_mut() {
        m.insert("file".into(), json!(file));
        m.insert("verdict".into(), json!(verdict));
    }
    v
}

fn question(desk: &Arc<Desk>, ask: &Ask) -> Result<Told> {
    let talk = desk.take()?;
    talk.say(&Msg::Query { id: 0, asks: vec![ask.clone()] })?;
    match talk.hear(PATIENCE)? {
        Msg::Answer { mut tolds, .. } if tolds.len() == 1 => Ok(tolds.remove(0)),
        _ => Err(Error::corrupt("an answer that does not fit the question")),
    }
}

/// The state of an object for people and programs.
fn state(h: &Have) -> Value {
    let Time { sec, nsec } = h.mtime;
    json!({ "size": h.size, "mtime": format!("{sec}.{nsec:09}"), "mode": format!("{:06o}", h.mode), "uid": h.uid, "gid": h.gid, "links": h.nlink })
}

fn verdict(here: &Told, there: &Told, under_way: bool) -> String {
    let (a, b) = match (&here.have, &there.have) {
        (Some(a), Some(b)) => (a, b),
        (None, None) => return "it is gone here and there".into(),
        (Some(_), None) => return unequal("it is not there", under_way),
        (None, Some(_)) => return unequal("it is still there", under_way),
    };
    let dir = a.dir.is_some();
    let mut differs = Vec::new();
    let mut note = |what: &'static str, same: bool| {
        if !same {
            differs.push(what);
        }
    };
    note("type and mode", a.mode == b.mode);
    note("owner", (a.uid, a.gid) == (b.uid, b.gid));
    note("size", a.size == b.size);
    note("mtime", a.mtime == b.mtime);
    note("extended attributes", a.xattrs == b.xattrs);
    note("links", dir || a.nlink == b.nlink);
    note("content", here.blocks == there.blocks && a.target == b.target && a.rdev == b.rdev);
    match differs.is_empty() {
        true if a.size > CONTENT_BYTES => {
            format!("the same as here (content compared up to {} MiB)", CONTENT_BYTES >> 20)
        }
        true => "the same as here".into(),
        false => unequal(&format!("differs in {}", differs.join(", ")), under_way),
    }
}

fn unequal(what: &str, under_way: bool) -> String {
    let way = if under_way { "entries are on their way" } else { "nothing is on its way: `kagami verify` tells more" };
    format!("{what}; {way}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(size: u64, mode: u32) -> Told {
        let have = Have {
            mode,
            uid: 0,
            gid: 0,
            size,
            mtime: Time { sec: 1, nsec: 2 },
            rdev: 0,
            target: Vec::new(),
            dir: None,
            lid: None,
            ino: 7,
            nlink: 1,
            xattrs: Vec::new(),
        };
        Told { have: Some(have), blocks: Vec::new() }
    }

    #[test]
    fn the_verdict_names_what_differs_and_whether_it_is_on_its_way() {
        let gone = Told { have: None, blocks: Vec::new() };
        assert_eq!(verdict(&told(1, 0o100644), &told(1, 0o100644), false), "the same as here");
        assert_eq!(
            verdict(&told(1, 0o100644), &told(2, 0o100600), true),
            "differs in type and mode, size; entries are on their way"
        );
        assert!(verdict(&told(1, 0o100644), &gone, false).starts_with("it is not there; nothing is on its way"));
        assert!(verdict(&gone, &told(1, 0o100644), true).starts_with("it is still there; entries are"));
    }
}
