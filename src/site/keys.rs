//! Identities of a lab's nodes.

use crate::base::Result;
use crate::net::Identity;
use std::path::Path;

/// Makes the identity of a site in its state directory and returns its public key.
pub fn make(state_dir: &Path, site: &str) -> Result<String> {
    let id = Identity::generate(site)?;
    id.save(&crate::node::config::identity_file(state_dir))?;
    Ok(id.key().to_string())
}
