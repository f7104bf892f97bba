//! The threads beside a group: checkpoints of the replica in use, and the task between sites.

use super::*;
use crate::base::limits;

/// Between two looks.
const TICK: Duration = Duration::from_millis(200);

/// Takes checkpoints of a primary's replica for as long as it leads.
pub(super) fn checkpoints(group: &Arc<Group>) -> Result<()> {
    let group = Arc::downgrade(group);
    std::thread::Builder::new().name("checkpoint".into()).spawn(move || {
        let mut last = Instant::now();
        loop {
            std::thread::sleep(TICK);
            let Some(g) = group.upgrade().filter(|g| !g.is_stopped()) else { return };
            let due = last.elapsed() >= limits::CHECKPOINT;
            if let Err(e) = if due { g.replica.checkpoint().map(drop) } else { g.replica.sharpen() } {
                log::error!("group {}: checkpoint: {e}", g.name);
            }
            if due {
                last = Instant::now();
            }
        }
    })?;
    Ok(())
}

/// Carries on what is under way between sites, and mounts what had to wait; once for each group.
pub(super) fn steward(local: &Arc<LocalGroup>) -> Result<()> {
    if local.steward.swap(true, Ordering::SeqCst) {
        return Ok(());
    }
    super::arbiter::clerks(local)?;
    let local = Arc::downgrade(local);
    std::thread::Builder::new().name("steward".into()).spawn(move || {
        loop {
            std::thread::sleep(TICK);
            let Some(g) = local.upgrade() else { return };
            g.mount_waiting();
            g.settle_doubts();
            let task = g.task.lock().clone();
            if task != Task::None
                && let Err(e) = g.carry_on(&task)
            {
                log::info!("group {}: {e}", g.cfg.name);
                *g.note.lock() = Some(e.to_string());
                std::thread::sleep(4 * TICK);
            }
        }
    })?;
    Ok(())
}
