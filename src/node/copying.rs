//! A first copy at the receiver: operations go straight into a tree that nobody uses yet, and what is in their way gives
//! way. The tree becomes a point of the order only when the source says that the copy is whole.

use crate::base::{DirId, Name, Result, random_u64};
use crate::format::op::{Entry, Op};
use crate::store::region::Region;
use crate::store::replica::Replica;

/// Applies one operation of a first copy.
pub fn apply(replica: &Replica, e: &Entry, data: &[u8]) -> Result<()> {
    let region = replica.region(e.vol)?;
    if let Op::ConfigDef { body } = &e.op {
        region.check_head(body)?;
    }
    let mut op = e.op.clone();
    let r = region.apply_direct(&mut op, data);
    let in_the_way = match &e.op {
        Op::Create { at, .. } | Op::Mkdir { at, .. } => Some(at),
        Op::Link { to, .. } | Op::Rename { to, .. } => Some(to),
        _ => None,
    };
    match (r, in_the_way) {
        (Err(err), Some(at)) if matches!(err.errno, libc::EEXIST | libc::ENOTEMPTY | libc::ENOTDIR | libc::EISDIR) => {
            displace(region, at)?;
            region.apply_direct(&mut op, data)
        }
        (Err(err), _) if err.errno == libc::ENOENT && matches!(e.op, Op::Unlink { .. } | Op::Rmdir { .. }) => Ok(()),
        (Err(err), _) if err.errno == libc::EISDIR && matches!(e.op, Op::Unlink { .. }) => {
            if let Op::Unlink { at, .. } = &e.op {
                displace(region, at)?;
            }
            Ok(())
        }
        (r, _) => r,
    }
}

/// Moves whatever is at a name out of the tree; it is removed at the end.
fn displace(region: &Region, at: &Name) -> Result<()> {
    let to = Name::new(DirId::STAGING, format!("gone-{:016x}", random_u64()));
    let mut op =
        Op::Rename { from: at.clone(), to, flags: 0, from_pmtime: Default::default(), to_pmtime: Default::default() };
    region.apply_direct(&mut op, b"")
}

/// Removes what was moved out of the way, and its directory ids.
pub fn sweep(replica: &Replica) -> Result<()> {
    replica.regions.iter().try_for_each(|r| r.sweep_staging())
}
