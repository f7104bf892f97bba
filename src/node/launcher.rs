//! What the node orders and asks of applications, without knowing of them: the floor above provides it.

use super::control::AppOrder;
use super::local::LocalGroup;
use super::status::AppStatus;
use crate::base::Result;
use serde_json::Value;
use std::sync::Arc;

/// Mounts by itself, starts and stops what lies in the volumes.
pub trait Launcher: Send + Sync {
    /// The groups are started: look after them from now on.
    fn begin(&self, groups: &[Arc<LocalGroup>]) -> Result<()>;
    /// The node ends: start nothing any more, and stop every application in order.
    fn end(&self);
    /// Stops a group's applications before it is unmounted by order; they are not started again by themselves.
    fn release(&self, group: &str) -> Result<()>;
    /// What would be mounted and started, as JSON; with `now` it is done.
    fn boot(&self, group: &str, now: bool, dry_run: bool) -> Result<Value>;
    /// An order to an application, or to all.
    fn order(&self, group: &str, app: Option<&str>, order: AppOrder) -> Result<()>;
    /// For `kagami status`.
    fn apps(&self, group: &str) -> Vec<AppStatus>;
    /// The same, in words: what is waited for.
    fn note(&self, group: &str) -> Option<String>;
}
