//! Identities of a lab's nodes.

use crate::base::{Error, Result};
use std::path::Path;

/// Makes the identity of a site in its state directory and returns its public key.
pub fn make(_state_dir: &Path, _site: &str) -> Result<String> {
    Err(Error::failed("TLS between the sites of a lab is not built in yet; leave --tcp out"))
}
