//! Extended attributes.

use super::names::{Maybe, Path};
use super::paths::own;
use crate::sched::{Res, world};

/// Copies an answer to the caller's buffer; an empty one asks how long it is.
fn give(value: &[u8], buf: &mut [u8]) -> Res<Option<i64>> {
    if !buf.is_empty() {
        buf.get_mut(..value.len()).ok_or(libc::ERANGE)?.copy_from_slice(value);
    }
    Ok(Some(value.len() as i64))
}

pub fn get(p: Path<'_>, follow: bool, key: &[u8], buf: &mut [u8]) -> Maybe {
    let Some((m, disk, at, magic)) = own(p.0, p.1)? else { return Ok(None) };
    give(&world().disk(m, disk).getxattr(at, follow || magic, key)?, buf)
}

pub fn list(p: Path<'_>, follow: bool, buf: &mut [u8]) -> Maybe {
    let Some((m, disk, at, magic)) = own(p.0, p.1)? else { return Ok(None) };
    let names = world().disk(m, disk).listxattr(at, follow || magic)?;
    let all: Vec<u8> = names.iter().flat_map(|n| n.iter().copied().chain([0])).collect();
    give(&all, buf)
}

pub fn set(p: Path<'_>, follow: bool, key: &[u8], value: &[u8], flags: i32) -> Maybe {
    let Some((m, disk, at, magic)) = own(p.0, p.1)? else { return Ok(None) };
    world().disk(m, disk).setxattr(at, follow || magic, key, value, flags).map(|()| Some(0))
}

pub fn remove(p: Path<'_>, follow: bool, key: &[u8]) -> Maybe {
    let Some((m, disk, at, magic)) = own(p.0, p.1)? else { return Ok(None) };
    world().disk(m, disk).removexattr(at, follow || magic, key).map(|()| Some(0))
}
