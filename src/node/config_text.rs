//! From the text of a site file to [`Config`] and back: the shape by serde, then every rule, each with its line.

use super::config::*;
use super::config_source::{Source, Str, Unique};
use crate::base::Result;
use serde::Deserialize;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::Spanned;

/// Most legs of a volume.
const LEGS_MAX: usize = 8;
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    node: RawNode,
    #[serde(default)]
    peer: Vec<RawPeer>,
    #[serde(default)]
    group: Vec<RawGroup>,
    #[serde(default)]
    limits: RawLimits,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNode {
    site: Str,
    state_dir: Option<Str>,
    #[serde(default)]
    listen: Vec<Str>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPeer {
    site: Str,
    addr: Option<Str>,
    key: Option<Str>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGroup {
    name: Str,
    fence: Option<Str>,
    write_through: Option<Spanned<bool>>,
    primary: Str,
    mount: Option<Str>,
    #[serde(default)]
    volume: Vec<RawVolume>,
    #[serde(default)]
    pair: Vec<RawPair>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawVolume {
    name: Str,
    region: Option<Str>,
    legs: Option<Spanned<Vec<Str>>>,
    mount: Option<Str>,
    port: Option<Str>,
    lu: Option<Spanned<i64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPair {
    name: Str,
    mode: Str,
    sites: Spanned<Vec<Str>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawLimits {
    queue_memory_mib: Option<Spanned<i64>>,
    spool_mib: Option<Spanned<i64>>,
    link_timeout_ms: Option<Spanned<i64>>,
    heartbeat_ms: Option<Spanned<i64>>,
    progress_timeout_ms: Option<Spanned<i64>>,
    journal_mib: Option<Spanned<i64>>,
    log_mib: Option<Spanned<i64>>,
}

/// Parses and checks.
pub(super) fn parse(src: Source<'_>) -> Result<Config> {
    let raw: RawFile = toml::from_str(src.text).map_err(|e| src.shape(&e))?;
    let node = node(&src, &raw.node)?;
    let peers = peers(&src, &raw.peer, &node)?;
    let mut names = Unique::new(&src, "group");
    let mut places = Places { src: &src, regions: vec![], mounts: vec![] };
    let mut groups = Vec::new();
    for g in &raw.group {
        names.add(&src.name("group", &g.name)?, g.name.span())?;
        groups.push(group(&src, g, &node, &peers, &mut places)?);
    }
    places.check(&node)?;
    let limits = limits(&src, &raw.limits)?;
    Ok(Config { path: src.path.clone(), node, peers, groups, limits })
}

fn node(src: &Source<'_>, raw: &RawNode) -> Result<NodeConfig> {
    let site = src.name("site", &raw.site)?;
    let state_dir = match &raw.state_dir {
        Some(s) => src.path("state_dir", s)?,
        None => src.resolve("state"),
    };
    let mut listen = Vec::new();
    let mut seen = Unique::new(src, "address");
    for l in &raw.listen {
        let a = src.addr("listen", l)?;
        seen.add(&a, l.span())?;
        listen.push(a);
    }
    Ok(NodeConfig { site, state_dir, listen })
}

fn peers(src: &Source<'_>, raw: &[RawPeer], node: &NodeConfig) -> Result<Vec<PeerConfig>> {
    let mut seen = Unique::new(src, "peer");
    let mut out = Vec::new();
    for p in raw {
        let site = src.name("site", &p.site)?;
        if site == node.site {
            return Err(src.at(&p.site, format!("{site} is this node itself; write the name of another site instead")));
        }
        seen.add(&site, p.site.span())?;
        let addr = p.addr.as_ref().map(|a| src.addr("addr", a)).transpose()?;
        if let Some(k) = p.key.as_ref().filter(|k| k.get_ref().parse::<crate::net::PeerKey>().is_err()) {
            return Err(src.at(k, "key is no peer key; write kgm1:… as `kagami keygen` prints it at that site instead"));
        }
        out.push(PeerConfig { site, addr, key: p.key.as_ref().map(|k| k.get_ref().clone()) });
    }
    Ok(out)
}

fn group(
    src: &Source<'_>,
    raw: &RawGroup,
    node: &NodeConfig,
    peers: &[PeerConfig],
    places: &mut Places<'_, '_>,
) -> Result<GroupConfig> {
    let known = |s: &Str| -> Result<String> {
        let site = src.name("site", s)?;
        if site != node.site && !peers.iter().any(|p| p.site == site) {
            return Err(src.at(
                s,
                format!("site {site} is neither this node ({}) nor a peer; write [[peer]] site = {site:?} as well, or one of the known sites instead", node.site),
            ));
        }
        Ok(site)
    };
    let fence = match raw.fence.as_ref().map(|f| (f, f.get_ref().as_str())) {
        None | Some((_, "never")) => Fence::Never,
        Some((_, "data")) => Fence::Data,
        Some((f, x)) => {
            return Err(src.at(f, format!("fence = {x:?} is not known; write \"never\" or \"data\" instead")));
        }
    };
    if let (Fence::Data, Some(w)) = (fence, raw.write_through.as_ref().filter(|w| !*w.get_ref())) {
        return Err(src.at(w, "fence = \"data\" answers each write only when the sync site has it; write write_through = true instead, or remove the line"));
    }
    let write_through = fence == Fence::Data || raw.write_through.as_ref().is_some_and(|w| *w.get_ref());
    let primary = known(&raw.primary)?;
    let pairs = pairs(src, raw, &known)?;
    let member = |s: &str| pairs.iter().any(|p| p.other(s).is_some());
    if !pairs.is_empty() && !member(&primary) {
        return Err(src.at(
            &raw.primary,
            format!("primary = {primary:?} is in no pair of this group; write one of the sites of its pairs instead"),
        ));
    }
    if !member(&node.site) && primary != node.site {
        return Err(src.at(
            &raw.name,
            format!(
                "this node ({}) has no part in the group; write a [[group.pair]] with it, or remove the group",
                node.site
            ),
        ));
    }
    let volumes = volumes(src, raw, places)?;
    Ok(GroupConfig { name: raw.name.get_ref().clone(), fence, write_through, primary, volumes, pairs })
}

fn pairs(src: &Source<'_>, raw: &RawGroup, known: &impl Fn(&Str) -> Result<String>) -> Result<Vec<PairConfig>> {
    let mut names = Unique::new(src, "pair");
    let mut ends = Unique::new(src, "pair of sites");
    let mut modes = Unique::new(src, "a pair with mode");
    let mut out = Vec::new();
    for p in &raw.pair {
        let name = src.name("pair", &p.name)?;
        names.add(&name, p.name.span())?;
        let mode = match p.mode.get_ref().as_str() {
            "sync" => Mode::Sync,
            "async" => Mode::Async,
            m => return Err(src.at(&p.mode, format!("mode = {m:?} is not known; write \"sync\" or \"async\" instead"))),
        };
        if mode == Mode::Sync {
            modes.add("sync", p.mode.span())?;
        }
        let [a, b] = p.sites.get_ref().as_slice() else {
            let n = p.sites.get_ref().len();
            return Err(src.at(
                &p.sites,
                format!("a pair has two sites, not {n}; write sites = [\"primary\", \"sync\"] instead"),
            ));
        };
        let sites = [known(a)?, known(b)?];
        let [x, y] = &sites;
        if x == y {
            return Err(src.at(b, format!("both ends are {x}; write two different sites instead")));
        }
        ends.add(&if x < y { format!("{x} and {y}") } else { format!("{y} and {x}") }, p.sites.span())?;
        out.push(PairConfig { name, mode, sites });
    }
    Ok(out)
}

fn volumes(src: &Source<'_>, raw: &RawGroup, places: &mut Places<'_, '_>) -> Result<Vec<VolumeConfig>> {
    if raw.volume.is_empty() {
        return Err(src.at(
            &raw.name,
            format!(
                "group {} has no volume; write [[group.volume]] with name = \"vol0\" and region = \"region\"",
                raw.name.get_ref()
            ),
        ));
    }
    let mut names = Unique::new(src, "volume");
    let mut ports = Unique::new(src, "port and lu");
    let mut out: Vec<VolumeConfig> = Vec::new();
    for (i, v) in raw.volume.iter().enumerate() {
        let name = src.name("volume", &v.name)?;
        names.add(&name, v.name.span())?;
        let legs = legs(src, v, places)?;
        if out.first().is_some_and(|f| f.legs.len() != legs.len()) {
            let n = out.first().map_or(0, |f| f.legs.len());
            return Err(src.at(&v.name, format!("volume {name} has {} leg(s) and the first volume {n}; write as many regions for each volume of a group", legs.len())));
        }
        let mount = match (&v.mount, &raw.mount) {
            (Some(a), Some(b)) if i == 0 && a.get_ref() != b.get_ref() => {
                return Err(src.at(
                    a,
                    format!(
                        "mount is {:?} here and {:?} for the group; write only one of them",
                        a.get_ref(),
                        b.get_ref()
                    ),
                ));
            }
            (Some(m), _) => Some(m),
            (None, Some(m)) if i == 0 => Some(m),
            _ => None,
        };
        let mount = match mount {
            Some(m) => {
                let p = src.path("mount", m)?;
                places.mounts.push((p.clone(), m.span()));
                Some(p)
            }
            None => None,
        };
        let port = v.port.as_ref().map(|p| src.name("port", p)).transpose()?.unwrap_or_else(|| "p0".into());
        let lu = src.number("lu", &v.lu, 0..1 << 16)?.map_or(i as u32, |n| n as u32);
        ports.add(&format!("{port}/{lu}"), v.lu.as_ref().map_or(v.name.span(), Spanned::span))?;
        out.push(VolumeConfig { name, legs, mount, port, lu });
    }
    Ok(out)
}

fn legs(src: &Source<'_>, v: &RawVolume, places: &mut Places<'_, '_>) -> Result<Vec<PathBuf>> {
    let list: Vec<&Str> = match (&v.region, &v.legs) {
        (Some(r), None) => vec![r],
        (None, Some(l)) if !l.get_ref().is_empty() && l.get_ref().len() <= LEGS_MAX => l.get_ref().iter().collect(),
        (None, Some(l)) => {
            return Err(src.at(l, format!("legs has {} regions; write 1 to {LEGS_MAX} instead", l.get_ref().len())));
        }
        (Some(_), Some(l)) => return Err(src.at(l, "region and legs are both given; write only one of them")),
        (None, None) => {
            return Err(src
                .at(&v.name, format!("volume {} has no region; write region = \"region\" as well", v.name.get_ref())));
        }
    };
    let mut out = Vec::new();
    for s in list {
        let p = src.path("region", s)?;
        places.regions.push((p.clone(), s.span()));
        out.push(p);
    }
    Ok(out)
}

/// Every directory that the file gives to kagami, with where it says so.
struct Places<'s, 'a> {
    src: &'s Source<'a>,
    regions: Vec<(PathBuf, Range<usize>)>,
    mounts: Vec<(PathBuf, Range<usize>)>,
}

impl Places<'_, '_> {
    /// Regions inside each other would replicate themselves; a region below a mount would wait for itself.
    fn check(&self, node: &NodeConfig) -> Result<()> {
        // Two names of one directory (symlinks) are one directory.
        let real = |p: &Path| p.canonicalize().unwrap_or_else(|_| p.to_path_buf());
        let within = |a: &Path, b: &Path| a.starts_with(b) || real(a).starts_with(real(b));
        for (i, (r, span)) in self.regions.iter().enumerate() {
            for (other, first) in self.regions.iter().take(i) {
                if within(r, other) || within(other, r) {
                    return Err(self.src.err(
                        span.clone(),
                        format!("region {} and region {} (line {}) are one inside the other; write two separate directories instead", r.display(), other.display(), self.src.line_of(first.start)),
                    ));
                }
            }
            if within(&node.state_dir, r) {
                return Err(self.src.err(
                    span.clone(),
                    format!(
                        "state_dir {} is inside region {}; write another directory for one of them",
                        node.state_dir.display(),
                        r.display()
                    ),
                ));
            }
        }
        for (i, (m, span)) in self.mounts.iter().enumerate() {
            // Lexically: canonicalize would follow a mount that hangs.
            if let Some((_, first)) = self.mounts.iter().take(i).find(|(o, _)| o == m) {
                let line = self.src.line_of(first.start);
                return Err(self.src.err(
                    span.clone(),
                    format!("mount {} is already in line {line}; write another directory instead", m.display()),
                ));
            }
            let clash = self
                .regions
                .iter()
                .map(|r| &r.0)
                .chain([&node.state_dir])
                .find(|r| r.starts_with(m) || m.starts_with(r));
            if let Some(r) = clash {
                return Err(self.src.err(
                    span.clone(),
                    format!(
                        "mount {} and {} are one inside the other; write another directory instead",
                        m.display(),
                        r.display()
                    ),
                ));
            }
        }
        Ok(())
    }
}

fn limits(src: &Source<'_>, raw: &RawLimits) -> Result<LimitsConfig> {
    const TIB_IN_MIB: u64 = 1 << 20;
    let d = LimitsConfig::default();
    let mib =
        |key, v, range: Range<u64>, or: u64| -> Result<u64> { Ok(src.number(key, v, range)?.map_or(or, |n| n << 20)) };
    let ms = |key, v, or: Duration| -> Result<Duration> {
        Ok(src.number(key, v, 10..3_600_001)?.map_or(or, Duration::from_millis))
    };
    let l = LimitsConfig {
        queue_memory_bytes: mib("queue_memory_mib", &raw.queue_memory_mib, 1..65537, d.queue_memory_bytes)?,
        spool_bytes: mib("spool_mib", &raw.spool_mib, 0..TIB_IN_MIB + 1, d.spool_bytes)?,
        link_timeout: ms("link_timeout_ms", &raw.link_timeout_ms, d.link_timeout)?,
        heartbeat: ms("heartbeat_ms", &raw.heartbeat_ms, d.heartbeat)?,
        progress_timeout: ms("progress_timeout_ms", &raw.progress_timeout_ms, d.progress_timeout)?,
        journal_bytes: mib("journal_mib", &raw.journal_mib, 1..TIB_IN_MIB + 1, d.journal_bytes)?,
        log_bytes: mib("log_mib", &raw.log_mib, 1..TIB_IN_MIB + 1, d.log_bytes)?,
    };
    if l.heartbeat * 2 > l.link_timeout {
        let at = raw.heartbeat_ms.as_ref().or(raw.link_timeout_ms.as_ref()).map_or(0..0, Spanned::span);
        let (h, t) = (l.heartbeat.as_millis(), l.link_timeout.as_millis());
        return Err(src.err(at, format!("heartbeat_ms = {h} and link_timeout_ms = {t}: a link needs two heartbeats within its time-out; write heartbeat_ms = {} instead", t / 2)));
    }
    Ok(l)
}

/// A site file that means the same, with every default written out.
pub(super) fn render(c: &Config) -> String {
    let path = |p: &Path| format!("{:?}", p.display().to_string());
    let list = |v: Vec<String>| format!("[{}]", v.join(", "));
    let mut o = format!(
        "[node]\nsite = {:?}\nstate_dir = {}\nlisten = {}\n",
        c.node.site,
        path(&c.node.state_dir),
        list(c.node.listen.iter().map(|l| format!("{l:?}")).collect())
    );
    for p in &c.peers {
        o += &format!("\n[[peer]]\nsite = {:?}\n", p.site);
        o += &p.addr.as_ref().map(|a| format!("addr = {a:?}\n")).unwrap_or_default();
        o += &p.key.as_ref().map(|k| format!("key = {k:?}\n")).unwrap_or_default();
    }
    for g in &c.groups {
        o += &format!(
            "\n[[group]]\nname = {:?}\nfence = {:?}\nwrite_through = {}\nprimary = {:?}\n",
            g.name,
            g.fence.as_str(),
            g.write_through,
            g.primary
        );
        for v in &g.volumes {
            o += &format!(
                "\n[[group.volume]]\nname = {:?}\nlegs = {}\n",
                v.name,
                list(v.legs.iter().map(|l| path(l)).collect())
            );
            o += &v.mount.as_ref().map(|m| format!("mount = {}\n", path(m))).unwrap_or_default();
            o += &format!("port = {:?}\nlu = {}\n", v.port, v.lu);
        }
        for p in &g.pairs {
            let sites = list(p.sites.iter().map(|s| format!("{s:?}")).collect());
            o += &format!("\n[[group.pair]]\nname = {:?}\nmode = {:?}\nsites = {sites}\n", p.name, p.mode.as_str());
        }
    }
    let l = &c.limits;
    o += &format!(
        "\n[limits]\nqueue_memory_mib = {}\nspool_mib = {}\nlink_timeout_ms = {}\nheartbeat_ms = {}\nprogress_timeout_ms = {}\njournal_mib = {}\nlog_mib = {}\n",
        l.queue_memory_bytes >> 20,
        l.spool_bytes >> 20,
        l.link_timeout.as_millis(),
        l.heartbeat.as_millis(),
        l.progress_timeout.as_millis(),
        l.journal_bytes >> 20,
        l.log_bytes >> 20
    );
    o
}
