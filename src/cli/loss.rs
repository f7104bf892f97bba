//! `kagami loss`: losing versions, listed, shown, brought back and dropped (G6).

use super::args_loss::LossCommand;
use super::table;
use super::{Site, say, say_json};
use crate::base::time::Time;
use crate::base::{At, Error, Result};
use crate::node::control::Request;
use crate::node::loss::{LossEvent, LossObject};
use crate::node::status::Status;
use crate::os::sys;
use crate::site::text::plural;
use crate::store::loss::copy_content;
use serde_json::Value;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// `kagami loss …`.
pub fn run(site: &Site, c: LossCommand) -> Result<()> {
    match c {
        LossCommand::List { group, json } => list(site, group, json),
        LossCommand::Show { event, json } => {
            let v = site.call(&Request::LossShow { event })?;
            if json {
                say_json(&v);
                return Ok(());
            }
            let (e, objects) = event_of(v)?;
            say(table::loss_event(&e, &objects));
            Ok(())
        }
        LossCommand::Restore { event, paths, to, replace, json } => {
            let way = match (to, replace) {
                (Some(dir), _) => Way::To(dir),
                (None, true) => Way::Replace,
                (None, false) => Way::Beside,
            };
            restore(site, event, &paths, way, json)
        }
        LossCommand::Drop { event, all, json } => {
            let event = match (event, all) {
                (Some(e), false) => Some(e),
                (None, true) => None,
                _ => return Err(Error::config("say which event to drop, or --all")),
            };
            let v = site.call(&Request::LossDrop { event })?;
            let n = v.get("dropped").and_then(Value::as_array).map_or(0, Vec::len);
            if json {
                say_json(&v)
            } else {
                say(format!("{} dropped\n", plural(n as u64, "event")))
            }
            Ok(())
        }
    }
}

fn list(site: &Site, group: Option<String>, json: bool) -> Result<()> {
    if let Some(g) = &group {
        site.config.group(g)?;
    }
    let v = site.call(&Request::LossList { group })?;
    if json {
        say_json(&v);
    }
    let events: Vec<LossEvent> = field(&v, "events")?;
    let damaged: Vec<String> = field(&v, "damaged")?;
    if !json {
        say(table::loss_events(&events));
    }
    match damaged.first() {
        Some(first) => Err(Error::corrupt(format!("{}: {first}", plural(damaged.len() as u64, "damaged manifest")))),
        None => Ok(()),
    }
}

fn field<T: serde::de::DeserializeOwned>(v: &Value, name: &str) -> Result<T> {
    let v = v.get(name).cloned().unwrap_or(Value::Null);
    serde_json::from_value(v)
        .map_err(|e| Error::failed(format!("the node's answer is not understood ({e}); is it another version?")))
}

fn event_of(v: Value) -> Result<(LossEvent, Vec<LossObject>)> {
    Ok((field(&v, "event")?, field(&v, "objects")?))
}

/// Where a version is brought back to.
enum Way {
    /// Beside the present file of the mounted volume.
    Beside,
    /// In its place in the mounted volume.
    Replace,
    /// Below this directory.
    To(PathBuf),
}

/// What became of an object.
enum Done {
    As(PathBuf),
    Left(&'static str),
}

fn restore(site: &Site, event: String, paths: &[PathBuf], way: Way, json: bool) -> Result<()> {
    let (e, objects) = event_of(site.call(&Request::LossShow { event })?)?;
    let volumes = site.config.group(&e.group)?.volumes.len();
    let roots = match &way {
        Way::To(dir) => vec![(String::new(), dir.clone())],
        _ => mounts(site, &e.group)?,
    };
    let wanted = |o: &LossObject| paths.is_empty() || paths.iter().any(|p| o.path.0.starts_with(p));
    let chosen: Vec<&LossObject> = objects.iter().filter(|o| wanted(o)).collect();
    if let Some(p) = paths.iter().find(|p| !objects.iter().any(|o| o.path.0.starts_with(p))) {
        return Err(Error::config(format!(
            "{}: nothing of this path in event {}; `kagami loss show` has the paths, from the volume's root",
            p.display(),
            e.id
        )));
    }
    // Directories before what is in them, whatever order they were noted in.
    let mut chosen = chosen;
    chosen.sort_by_key(|o| (o.volume.clone(), o.path.0.components().count()));
    let (mut rows, mut failed) = (Vec::new(), 0);
    for o in chosen {
        let root = roots.iter().find(|(v, _)| v.is_empty() || *v == o.volume);
        let r = match root {
            Some((_, root)) => one(&e, o, root, &way, volumes > 1),
            None => Err(Error::refused(format!("volume {} is not mounted here", o.volume))),
        };
        let (done, ok) = match r {
            Ok(Done::As(p)) => (p.display().to_string(), true),
            Ok(Done::Left(why)) => (format!("left out: {why}"), true),
            Err(e) => (format!("failed: {}", e.msg), false),
        };
        failed += u64::from(!ok);
        rows.push(serde_json::json!({ "path": o.path, "restored": done, "ok": ok }));
    }
    if json {
        say_json(&serde_json::json!({ "event": e.id, "objects": rows }));
    } else {
        for r in &rows {
            let path: PathBuf = field::<crate::node::loss::PathText>(r, "path")?.0;
            say(format!("{}: {}\n", path.display(), r.get("restored").and_then(Value::as_str).unwrap_or("")));
        }
    }
    match failed {
        0 => Ok(()),
        n => Err(Error::failed(format!("{} could not be restored; the event is still there", plural(n, "object")))),
    }
}

/// Where the volumes of a group are mounted.
fn mounts(site: &Site, group: &str) -> Result<Vec<(String, PathBuf)>> {
    let s: Status = serde_json::from_value(site.call(&Request::Status {})?)
        .map_err(|e| Error::failed(format!("the node's status is not understood ({e})")))?;
    let g = s.groups.into_iter().find(|g| g.name == group);
    let found: Vec<_> = g.iter().flat_map(|g| &g.mounts).map(|m| (m.volume.clone(), m.dir.clone())).collect();
    if found.is_empty() {
        return Err(Error::refused(format!(
            "group {group} is not mounted here: restore to a directory (--to DIR), or take the group over to this site first"
        )));
    }
    Ok(found)
}

fn one(e: &LossEvent, o: &LossObject, root: &Path, way: &Way, by_volume: bool) -> Result<Done> {
    let has = |p: &str| o.what.iter().any(|w| w == p);
    let short = e.id.get(..8).unwrap_or(&e.id);
    let is_dir = o.mode & libc::S_IFMT == libc::S_IFDIR;
    let mut path = o.path.0.clone();
    if let (Way::To(_), true) = (way, by_volume) {
        path = Path::new(&o.volume).join(path);
    }
    if has("removed") || has("changed") {
        return Ok(Done::Left("the losing side has no version of it"));
    }
    if o.kept.is_none() && !(is_dir && has("created")) {
        // Nothing but attributes or a name.
        return match way {
            _ if has("link") && o.now.is_none() => {
                Ok(Done::Left("a further name of an object that is kept under another one"))
            }
            Way::Replace => in_place(o, root, &path),
            _ => Ok(Done::Left("only its name or attributes differ; --replace sets them in the mounted volume")),
        };
    }
    if let Way::To(dir) = way {
        std::fs::create_dir_all(dir).at(dir.display())?;
    }
    let top = sys::open_path(root, libc::O_PATH | libc::O_DIRECTORY, 0).at(root.display())?;
    let (dir, name) = parent(top, &path, true)?;
    if is_dir {
        match sys::mkdirat(&dir, &name, 0o700) {
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
            r => r?,
        }
        attributes(o, &dir, &name)?;
        return Ok(Done::As(root.join(path)));
    }
    let beside = |ending: String| -> Vec<u8> {
        let room = 255usize.saturating_sub(ending.len());
        name.iter().copied().take(room).chain(ending.into_bytes()).collect()
    };
    let new = match way {
        Way::To(_) => name.clone(),
        Way::Beside => beside(format!(".lost-{short}")),
        Way::Replace => beside(format!(".lost-{short}.new")),
    };
    make(o, &dir, &new)?;
    if let Way::Replace = way {
        let r = sys::renameat2(&dir, &new, &dir, &name, 0);
        if r.is_err() {
            sys::unlinkat(&dir, &new)?;
        }
        r?;
        return Ok(Done::As(root.join(path)));
    }
    let shown = path.with_file_name(std::ffi::OsStr::from_bytes(&new));
    Ok(Done::As(root.join(shown)))
}

/// Sets the attributes, or the name, of what is there.
fn in_place(o: &LossObject, root: &Path, path: &Path) -> Result<Done> {
    let top = || sys::open_path(root, libc::O_PATH | libc::O_DIRECTORY, 0).at(root.display());
    let (dir, name) = parent(top()?, path, true)?;
    if let Some(now) = &o.now {
        let (from, from_name) = parent(top()?, &now.0, false)?;
        match o.what.iter().any(|w| w == "link") {
            true => sys::linkat(&from, &from_name, &dir, &name)?,
            false => sys::renameat2(&from, &from_name, &dir, &name, crate::format::op::RENAME_NOREPLACE)?,
        }
    }
    if o.what.iter().any(|w| w == "attributes") {
        attributes(o, &dir, &name)?;
    }
    Ok(Done::As(root.join(path)))
}

/// The directory and name of a path below `top`. No symlink is followed: a volume's users may have put some there.
fn parent(top: OwnedFd, path: &Path, make: bool) -> Result<(OwnedFd, Vec<u8>)> {
    let Some(name) = path.file_name() else { return Ok((top, b".".to_vec())) };
    let mut dir = top;
    for c in path.parent().into_iter().flat_map(Path::components) {
        let c = c.as_os_str().as_bytes();
        if make {
            match sys::mkdirat(&dir, c, 0o755) {
                Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
                r => r?,
            }
        }
        dir = sys::openat(&dir, c, libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW, 0)
            .at(format!("{}: a part of the path is no directory now", path.display()))?;
    }
    Ok((dir, name.as_bytes().to_vec()))
}

/// Makes the object at a free name.
fn make(o: &LossObject, dir: &OwnedFd, name: &[u8]) -> Result<()> {
    let kind = o.mode & libc::S_IFMT;
    let kept = o.kept.as_ref().map(|k| k.0.as_path()).ok_or_else(|| Error::failed("nothing of it is kept"))?;
    match kind {
        libc::S_IFREG => {
            let from = sys::open_path(kept, libc::O_RDONLY | libc::O_NOFOLLOW, 0).at(kept.display())?;
            let to = sys::openat(dir, name, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL, 0o600)?;
            let done = copy_content(&from, &to).and_then(|()| Ok(sys::sync_fd(&to, false)?));
            if let Err(e) = done {
                sys::unlinkat(dir, name)?;
                return Err(e);
            }
        }
        libc::S_IFLNK => sys::symlinkat(o.target.0.as_os_str().as_bytes(), dir, name)?,
        _ => sys::mknodat(dir, name, kind | (o.mode & 0o7777), o.rdev)?,
    }
    attributes(o, dir, name)
}

/// Owner (where one may), mode, extended attributes and time.
fn attributes(o: &LossObject, dir: &OwnedFd, name: &[u8]) -> Result<()> {
    let lenient = |r: std::io::Result<()>| match r {
        Err(e) if sys::ids().0 != 0 && matches!(e.raw_os_error(), Some(libc::EPERM | libc::EACCES)) => Ok(()),
        r => r,
    };
    lenient(sys::chownat(dir, name, Some(o.uid), Some(o.gid)))?;
    let symlink = o.mode & libc::S_IFMT == libc::S_IFLNK;
    if !symlink {
        lenient(sys::chmodat(dir, name, o.mode & 0o7777))?;
        let had = sys::listxattr(dir, name).unwrap_or_default();
        for k in had.iter().filter(|k| k.starts_with(b"user.") && !o.xattrs.iter().any(|(n, _)| n == *k)) {
            lenient(sys::removexattr(dir, name, k))?;
        }
    }
    for (k, v) in &o.xattrs {
        lenient(sys::setxattr(dir, name, k, v, 0))?;
    }
    let (sec, nsec) = o.mtime;
    Ok(sys::utimensat(dir, name, None, Some(Time { sec, nsec }))?)
}
