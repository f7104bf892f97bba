//! The peers a node knows: a TOML file in its state directory, site → key and address.

use super::addr::{Addr, check_site};
use super::identity::PeerKey;
use super::private;
use crate::base::error::At;
use crate::base::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One known peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerEntry {
    /// Its pinned key.
    pub key: PeerKey,
    /// Where it listens; `None` if it only dials us.
    pub addr: Option<Addr>,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct FileText {
    #[serde(default)]
    peer: BTreeMap<String, EntryText>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryText {
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    addr: Option<String>,
}

/// The peers file, in memory.
#[derive(Debug)]
pub struct PeerStore {
    path: PathBuf,
    peers: BTreeMap<String, PeerEntry>,
}

impl PeerStore {
    /// Reads the file; a missing one is an empty store. Errors name the file and the site.
    pub fn load(path: &Path) -> Result<PeerStore> {
        let mut peers = BTreeMap::new();
        if let Some(text) = private::read(path)? {
            let f: FileText = toml::from_str(&text).map_err(|e| Error::config(format!("{}: {e}", path.display())))?;
            for (site, e) in f.peer {
                let at = || format!("{}: peer {site:?}", path.display());
                check_site(&site).at(at())?;
                let key = e.key.parse::<PeerKey>().at(at())?;
                let addr = e.addr.map(|a| a.parse::<Addr>()).transpose().at(at())?;
                peers.insert(site, PeerEntry { key, addr });
            }
        }
        Ok(PeerStore { path: path.to_path_buf(), peers })
    }

    /// Writes the file atomically, 0600.
    pub fn save(&self) -> Result<()> {
        let peer = self
            .peers
            .iter()
            .map(|(s, e)| {
                (s.clone(), EntryText { key: e.key.to_string(), addr: e.addr.as_ref().map(ToString::to_string) })
            })
            .collect();
        let t = toml::to_string(&FileText { peer }).map_err(|e| Error::failed(format!("peers file: {e}")))?;
        private::write(&self.path, t.as_bytes())
    }

    /// Loads, changes and saves under the file's lock, so that a command and the node do not undo each other.
    pub fn update<T>(path: &Path, f: impl FnOnce(&mut PeerStore) -> Result<T>) -> Result<T> {
        private::locked(path, || {
            let mut s = PeerStore::load(path)?;
            let t = f(&mut s)?;
            s.save()?;
            Ok(t)
        })
    }

    /// A peer by its site name.
    pub fn get(&self, site: &str) -> Option<&PeerEntry> {
        self.peers.get(site)
    }

    /// The site that shows this key.
    pub fn site_of(&self, key: &PeerKey) -> Option<&str> {
        self.peers.iter().find(|(_, e)| e.key == *key).map(|(s, _)| s.as_str())
    }

    /// All peers by site name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &PeerEntry)> {
        self.peers.iter().map(|(s, e)| (s.as_str(), e))
    }

    /// Adds a peer or changes its address. A known site with another key, or a key known under another site, is refused:
    /// one enrolled peer must not be able to take the place of another.
    pub fn put(&mut self, site: &str, entry: PeerEntry) -> Result<()> {
        check_site(site)?;
        if let Some(old) = self.peers.get(site)
            && old.key != entry.key
        {
            return Err(Error::refused(format!(
                "site {site} is already known with the key {}; if it has a new key now, remove the peer first",
                old.key
            )));
        }
        if let Some(other) = self.site_of(&entry.key)
            && other != site
        {
            return Err(Error::refused(format!("this key is already known as site {other}; remove that peer first")));
        }
        self.peers.insert(site.to_string(), entry);
        Ok(())
    }

    /// Forgets a peer; true if it was known.
    pub fn remove(&mut self, site: &str) -> bool {
        self.peers.remove(site).is_some()
    }
}
