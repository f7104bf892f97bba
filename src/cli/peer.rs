//! `kagami keygen` and `kagami peer`.

use super::args::PeerCommand;
use super::{Site, say, show};
use crate::base::{Error, Result};
use crate::node::control::Request;
use serde_json::json;

fn later() -> Error {
    Error::failed("identities are not built in yet")
}

/// `kagami keygen`.
pub fn keygen(_site: &Site, _force: bool) -> Result<()> {
    Err(later())
}

/// `kagami peer …`.
pub fn run(site: &Site, c: PeerCommand) -> Result<()> {
    match c {
        PeerCommand::Invite { .. } | PeerCommand::Accept { .. } => Err(later()),
        PeerCommand::Pause { site: peer } => {
            known(site, &peer)?;
            site.call(&Request::PeerPause { site: peer.clone() })?;
            say(format!("link to {peer}: down until `kagami peer resume {peer}`\n"));
            Ok(())
        }
        PeerCommand::Resume { site: peer } => {
            known(site, &peer)?;
            site.call(&Request::PeerResume { site: peer.clone() })?;
            say(format!("link to {peer}: resumed\n"));
            Ok(())
        }
        PeerCommand::List { json } => {
            let peers: Vec<_> =
                site.config.peers.iter().map(|p| json!({ "site": p.site, "addr": p.addr, "key": p.key })).collect();
            show::print(json!(peers), json);
            Ok(())
        }
    }
}

fn known(site: &Site, peer: &str) -> Result<()> {
    if site.config.peer(peer).is_some() {
        return Ok(());
    }
    let known: Vec<&str> = site.config.peers.iter().map(|p| p.site.as_str()).collect();
    Err(Error::config(format!("no peer {peer:?}; the site file has {}", known.join(", "))))
}
