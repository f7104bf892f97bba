//! The files of a lab: its own record, the site files, the directory for sockets.

use crate::base::{At, Error, Result};
use crate::node::config::Fence;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The sites of a lab, in the order in which they are named.
pub const SITES: [&str; 3] = ["primary", "sync", "async"];
/// The group of a lab.
pub const GROUP: &str = "lab";
/// A lab's record of itself.
pub const RECORD: &str = "lab.json";

/// What a lab was made with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub version: u32,
    pub sites: u8,
    pub fence: String,
    pub legs: u8,
    pub write_through: bool,
    pub volumes: u8,
    /// Ports on 127.0.0.1, one for each site; empty: Unix sockets.
    pub ports: Vec<u16>,
    /// Directories outside the lab at which a takeover mounted a volume.
    pub mounts: Vec<PathBuf>,
}

/// What a new lab is to be; `None` is the default, or on an existing lab what it has.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// 2 or 3.
    pub sites: Option<u8>,
    pub fence: Option<Fence>,
    /// Regions of each volume at the primary, 1 or 2.
    pub legs: Option<u8>,
    pub write_through: bool,
    pub volumes: Option<u8>,
    /// TCP with TLS instead of Unix sockets.
    pub tcp: bool,
}

impl Record {
    pub fn new(o: &Options) -> Result<Record> {
        let sites = o.sites.unwrap_or(3);
        Ok(Record {
            version: 1,
            sites,
            fence: o.fence.unwrap_or(Fence::Never).as_str().into(),
            legs: o.legs.unwrap_or(1),
            write_through: o.write_through || o.fence == Some(Fence::Data),
            volumes: o.volumes.unwrap_or(1),
            ports: if o.tcp { free_ports(sites as usize)? } else { vec![] },
            mounts: vec![],
        })
    }

    pub fn load(dir: &Path) -> Result<Option<Record>> {
        let p = dir.join(RECORD);
        let text = match std::fs::read_to_string(&p) {
            Ok(t) => t,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).at(p.display()),
        };
        let r: Record = serde_json::from_str(&text).map_err(|e| Error::corrupt(format!("{}: {e}", p.display())))?;
        if r.version != 1 || !(2..=3).contains(&r.sites) {
            return Err(Error::failed(format!("{}: version {} is not known to this kagami", p.display(), r.version)));
        }
        Ok(Some(r))
    }

    pub fn save(&self, dir: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::failed(e.to_string()))?;
        let (p, new) = (dir.join(RECORD), dir.join(".lab.json.new"));
        std::fs::write(&new, text + "\n").at(new.display())?;
        std::fs::rename(&new, &p).at(p.display())
    }

    /// An option that was given and is not what the lab has.
    pub fn differs(&self, o: &Options) -> Option<String> {
        let say = |what: &str, has: &dyn std::fmt::Display, wants: &dyn std::fmt::Display| {
            Some(format!("it was made with {what} {has}, not {wants}"))
        };
        match o {
            Options { sites: Some(n), .. } if *n != self.sites => say("--sites", &self.sites, n),
            Options { legs: Some(n), .. } if *n != self.legs => say("--legs", &self.legs, n),
            Options { volumes: Some(n), .. } if *n != self.volumes => say("--volumes", &self.volumes, n),
            Options { fence: Some(f), .. } if f.as_str() != self.fence => say("--fence", &self.fence, &f.as_str()),
            Options { write_through: true, .. } if !self.write_through => {
                Some("it was made without --write-through".into())
            }
            Options { tcp: true, .. } if self.ports.is_empty() => Some("it was made without --tcp".into()),
            _ => None,
        }
    }

    /// The sites of this lab.
    pub fn site_names(&self) -> &'static [&'static str] {
        SITES.get(..self.sites as usize).unwrap_or(&SITES)
    }

    /// The pairs of this lab: name, mode, sites.
    pub fn pairs(&self) -> &'static [(&'static str, &'static str, [&'static str; 2])] {
        const ALL: [(&str, &str, [&str; 2]); 3] = [
            ("sync", "sync", ["primary", "sync"]),
            ("async", "async", ["primary", "async"]),
            ("relay", "async", ["sync", "async"]),
        ];
        if self.sites == 2 { ALL.get(..1).unwrap_or(&ALL) } else { &ALL }
    }
}

fn free_ports(n: usize) -> Result<Vec<u16>> {
    // All held at once, so that they are different.
    let held: std::io::Result<Vec<_>> = (0..n).map(|_| std::net::TcpListener::bind(("127.0.0.1", 0))).collect();
    held?.iter().map(|l| Ok(l.local_addr()?.port())).collect()
}

/// Name of a volume's region directory.
pub fn region_name(volume: u8, leg: u8) -> String {
    let number = if volume == 0 { String::new() } else { volume.to_string() };
    let leg = ["", "-b"].get(leg as usize).copied().unwrap_or("-x");
    format!("region{number}{leg}")
}

/// Name of a volume's mount directory.
pub fn mount_name(volume: u8) -> String {
    if volume == 0 { "mnt".into() } else { format!("mnt{volume}") }
}

/// The site file of a site. `addr` gives each site's address, `key` its key with TCP.
pub fn site_file(
    r: &Record,
    dir: &Path,
    site: &str,
    addr: &dyn Fn(&str) -> String,
    key: &dyn Fn(&str) -> Option<String>,
) -> String {
    let q = |s: &str| toml::Value::String(s.to_owned()).to_string();
    let mut o = format!(
        "# A site of a test bed, made by `kagami lab up`.\n[node]\nsite = {}\nstate_dir = \"state\"\nlisten = [{}]\n",
        q(site),
        q(&addr(site))
    );
    for other in r.site_names().iter().filter(|s| **s != site) {
        o += &format!("\n[[peer]]\nsite = {}\naddr = {}\n", q(other), q(&addr(other)));
        o += &key(other).map(|k| format!("key = {}\n", q(&k))).unwrap_or_default();
    }
    o += &format!(
        "\n[[group]]\nname = {}\nfence = {}\nwrite_through = {}\nprimary = \"primary\"\n",
        q(GROUP),
        q(&r.fence),
        r.write_through
    );
    for v in 0..r.volumes {
        let legs = if site == "primary" { r.legs } else { 1 };
        let legs: Vec<String> = (0..legs).map(|l| q(&region_name(v, l))).collect();
        let mount = dir.join(mount_name(v)).display().to_string();
        o += &format!("\n[[group.volume]]\nname = \"vol{v}\"\nlegs = [{}]\nmount = {}\n", legs.join(", "), q(&mount));
    }
    for (name, mode, [a, b]) in r.pairs() {
        o += &format!("\n[[group.pair]]\nname = {}\nmode = {}\nsites = [{}, {}]\n", q(name), q(mode), q(a), q(b));
    }
    o
}

/// The short directory for the sockets of the lab in `dir`: a socket's path may have 107 bytes only.
pub fn socket_dir(dir: &Path) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    let hash = blake3::hash(dir.as_os_str().as_bytes()).to_hex();
    let hash = hash.get(..12).unwrap_or("lab").to_owned();
    let uid = crate::os::sys::ids().0;
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    match runtime.filter(|d| d.is_absolute() && d.as_os_str().len() < 60 && owned_dir(d, uid)) {
        Some(d) => d.join(format!("kagami-lab-{hash}")),
        None => PathBuf::from(format!("/tmp/kagami-lab-{uid}-{hash}")),
    }
}

fn owned_dir(d: &Path, uid: u32) -> bool {
    std::fs::symlink_metadata(d).is_ok_and(|m| m.is_dir() && m.uid() == uid)
}

/// Makes the directory for sockets; refuses one that another user put there.
pub fn make_socket_dir(d: &Path) -> Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(d) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            let m = std::fs::symlink_metadata(d).at(d.display())?;
            if !m.is_dir() || m.uid() != crate::os::sys::ids().0 || m.mode() & 0o077 != 0 {
                return Err(Error::refused(format!(
                    "{} is there and belongs to somebody else; remove it",
                    d.display()
                )));
            }
            Ok(())
        }
        r => r.at(d.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::config::Config;

    #[test]
    fn site_files_of_a_lab_are_right_for_every_option() {
        for (sites, legs, volumes, fence) in [(2, 1, 1, Fence::Never), (3, 2, 3, Fence::Data), (3, 1, 1, Fence::Never)]
        {
            let o = Options {
                sites: Some(sites),
                legs: Some(legs),
                volumes: Some(volumes),
                fence: Some(fence),
                ..Options::default()
            };
            let r = Record::new(&o).unwrap();
            let d = tempfile::tempdir().unwrap();
            // A directory whose name needs quoting.
            let dir = d.path().join("a \"lab\" \\ here");
            for site in r.site_names() {
                std::fs::create_dir_all(dir.join(site)).unwrap();
                let p = dir.join(site).join("site.toml");
                std::fs::write(&p, site_file(&r, &dir, site, &|s| format!("unix:/tmp/x/{s}"), &|_| None)).unwrap();
                let c = Config::load(&p).unwrap();
                let g = c.group(GROUP).unwrap();
                assert_eq!(g.legs(), if *site == "primary" { legs as usize } else { 1 });
                assert_eq!(g.volumes.len(), volumes as usize);
                assert_eq!(g.volumes[0].mount.as_deref(), Some(dir.join("mnt").as_path()));
                assert_eq!(g.volumes[0].legs[0], dir.join(site).join("region"));
                assert_eq!((g.fence, g.write_through), (fence, fence == Fence::Data));
                assert_eq!(g.pairs.len(), if sites == 2 { 1 } else { 3 });
            }
            r.save(&dir).unwrap();
            assert_eq!(Record::load(&dir).unwrap(), Some(r.clone()));
            assert_eq!(r.differs(&o), None);
            assert!(r.differs(&Options { sites: Some(5 - sites), ..o }).unwrap().contains("--sites"));
        }
    }
}
