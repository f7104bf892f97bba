//! `kagami keygen` and `kagami peer`.

use super::args::PeerCommand;
use super::{Site, say, show};
use crate::base::{Error, Result};
use crate::net::{Addr, Enrolled, Identity, Invites, PeerEntry, PeerStore, Token, enrol_call};
use crate::node::config::{Config, identity_file, invites_file, peers_file};
use crate::node::control::{self, Request};
use serde_json::json;

fn state_dir(c: &Config) -> Result<&std::path::Path> {
    super::node::make_state_dir(&c.node.state_dir)?;
    Ok(&c.node.state_dir)
}

/// `kagami keygen`.
pub fn keygen(site: &Site, force: bool) -> Result<()> {
    let file = identity_file(state_dir(&site.config)?);
    if file.exists() && !force {
        let key = Identity::load(&file)?.key();
        return Err(Error::refused(format!(
            "{} is there already (key {key}); --force replaces it, and every peer must be introduced again",
            file.display()
        )));
    }
    let id = Identity::generate(&site.config.node.site)?;
    id.save(&file)?;
    say(format!("{}\n", id.key()));
    Ok(())
}

fn identity(c: &Config) -> Result<Identity> {
    Identity::load(&identity_file(&c.node.state_dir))
}

/// `kagami peer …`.
pub fn run(site: &Site, c: PeerCommand) -> Result<()> {
    match c {
        PeerCommand::Invite { addr } => invite(site, &addr),
        PeerCommand::Accept { token, addr } => accept(site, &token, addr.as_deref()),
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
        PeerCommand::List { json } => list(&site.config, json),
    }
}

/// The addresses given, else those TCP addresses that the node listens at and that mean something elsewhere.
fn reachable(c: &Config, given: &[String]) -> Result<Vec<Addr>> {
    let anywhere = |a: &str| ["0.0.0.0:", "[::]:"].iter().any(|p| a.starts_with(p));
    let own = c.node.listen.iter().filter(|a| !a.starts_with("unix:") && !anywhere(a));
    let list: Vec<&String> = if given.is_empty() { own.collect() } else { given.iter().collect() };
    let addrs = list.into_iter().map(|a| a.parse::<Addr>()).collect::<Result<Vec<_>>>()?;
    match addrs.iter().find(|a| matches!(a, Addr::Unix(_))) {
        Some(a) => Err(Error::config(format!("--addr {a}: keys are for TCP; write HOST:PORT"))),
        None => Ok(addrs),
    }
}

fn invite(site: &Site, given: &[String]) -> Result<()> {
    let c = &site.config;
    let id = identity(c)?;
    let addrs = reachable(c, given)?;
    if addrs.is_empty() {
        return Err(Error::config(format!(
            "{}: this node listens at no HOST:PORT that another host could use; add one to `listen`, or give --addr HOST:PORT",
            c.path.display()
        )));
    }
    let now = crate::base::time::now().sec;
    let secret = Invites::at(&invites_file(&c.node.state_dir)).create(now)?;
    let token = Token { site: c.node.site.clone(), addrs, key: id.key(), secret };
    say(format!("{}\n", token.encode()?));
    let _ = std::io::Write::write_all(
        &mut std::io::stderr(),
        b"Paste it at the other site within 24 hours: kagami peer accept TOKEN\nIt works once; whoever has it can become a peer.\n",
    );
    if !control::is_running(&c.node.state_dir) {
        log::warn!("the node of this site does not run; it must, when the token is accepted");
    }
    Ok(())
}

fn accept(site: &Site, token: &str, addr: Option<&str>) -> Result<()> {
    let c = &site.config;
    let id = identity(c)?;
    let token: Token = token.trim().parse()?;
    let given: Vec<String> = addr.iter().map(|a| a.to_string()).collect();
    let mine = reachable(c, &given)?.into_iter().next();
    let peer: Enrolled = enrol_call(&token, &id, &c.node.site, mine.as_ref())?;
    PeerStore::update(&peers_file(state_dir(c)?), |s| {
        s.put(&peer.site, PeerEntry { key: peer.key, addr: peer.addr.clone() })
    })?;
    say(format!("{} is a peer now, and knows this site; key {}\n", peer.site, peer.key));
    if c.peer(&peer.site).is_none() {
        say(format!(
            "add it to {}:\n  [[peer]]\n  site = {:?}\n{}",
            c.path.display(),
            peer.site,
            peer.addr.map(|a| format!("  addr = {:?}\n", a.to_string())).unwrap_or_default()
        ));
    }
    Ok(())
}

fn list(c: &Config, json: bool) -> Result<()> {
    let store = PeerStore::load(&peers_file(&c.node.state_dir))?;
    let mut rows = Vec::new();
    for p in &c.peers {
        let stored = store.get(&p.site);
        let key = p.key.clone().or_else(|| stored.map(|e| e.key.to_string()));
        let addr = p.addr.clone().or_else(|| stored.and_then(|e| e.addr.as_ref().map(ToString::to_string)));
        rows.push(json!({ "site": p.site, "addr": addr, "key": key, "in_site_file": true }));
    }
    for (name, e) in store.iter().filter(|(name, _)| c.peer(name).is_none()) {
        let addr = e.addr.as_ref().map(ToString::to_string);
        rows.push(json!({ "site": name, "addr": addr, "key": e.key.to_string(), "in_site_file": false }));
    }
    if rows.is_empty() && !json {
        say("no peers; the site file names them with [[peer]]\n");
        return Ok(());
    }
    show::print(json!(rows), json);
    Ok(())
}

fn known(site: &Site, peer: &str) -> Result<()> {
    if site.config.peer(peer).is_some() {
        return Ok(());
    }
    let known: Vec<&str> = site.config.peers.iter().map(|p| p.site.as_str()).collect();
    Err(Error::config(format!("no peer {peer:?}; the site file has {}", known.join(", "))))
}
