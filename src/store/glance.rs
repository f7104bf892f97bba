//! A look at the regions of a replica that no node of this machine knows: what each says about itself. Nothing is locked,
//! recovered or written.

use super::head::ConfigDef;
use super::region::Identity;
use super::replica::State;
use crate::base::{Error, Result};
use std::path::{Path, PathBuf};

/// A region.
#[derive(Clone, Debug)]
pub struct Glance {
    /// Its directory.
    pub path: PathBuf,
    /// Which region it is.
    pub identity: Identity,
    /// Its config definition.
    pub head: Option<ConfigDef>,
}

/// A whole replica.
#[derive(Clone, Debug)]
pub struct Replica {
    /// Its regions, by the index of their volume.
    pub regions: Vec<Glance>,
    /// Its place in the group's history.
    pub state: State,
}

/// Looks at the regions of one replica, given in any order. Refused: what is no region, regions of different groups, one
/// volume twice, a volume left out, a replica that was never in use (G10).
pub fn replica(paths: &[PathBuf]) -> Result<Replica> {
    let mut regions = paths.iter().map(|p| region(p)).collect::<Result<Vec<_>>>()?;
    regions.sort_by_key(|r| r.identity.vol.0);
    let Some(first) = regions.first() else { return Err(Error::config("give the regions of a replica")) };
    for (i, r) in regions.iter().enumerate() {
        let (a, b) = (&first.identity, &r.identity);
        if (&a.group, a.group_id) != (&b.group, b.group_id) {
            return Err(Error::refused(format!(
                "{} belongs to group {:?} and {} to group {:?} (or to another one of that name); give regions of one group",
                first.path.display(),
                a.group,
                r.path.display(),
                b.group
            )));
        }
        if usize::from(b.vol.0) != i {
            let same = regions.get(i.wrapping_sub(1)).filter(|before| before.identity.vol == b.vol);
            return Err(Error::refused(match (i, same) {
                (_, Some(same)) => format!(
                    "{} and {} are both volume {:?}; give it once: of a volume of two drives the one that was in use last",
                    same.path.display(),
                    r.path.display(),
                    b.volume
                ),
                (0, _) => format!(
                    "{} is volume {:?}, and the group's lead volume is missing; give its region as well",
                    r.path.display(),
                    b.volume
                ),
                _ => format!(
                    "{} is volume number {} of group {:?}; give every volume once, number {} is missing",
                    r.path.display(),
                    b.vol.0,
                    b.group,
                    i
                ),
            }));
        }
    }
    let state = State::read(&first.path)?.ok_or_else(|| {
        Error::refused(format!("{} was never copied to; it holds nothing to adopt", first.path.display()))
    })?;
    Ok(Replica { regions, state })
}

fn region(path: &Path) -> Result<Glance> {
    let path = std::path::absolute(path)?;
    let identity = Identity::read(&path)?.ok_or_else(|| {
        Error::refused(format!("{} is no kagami region (no .kagami/identity): is its disk mounted?", path.display()))
    })?;
    let head = ConfigDef::read(&path)?;
    Ok(Glance { path, identity, head })
}
