//! From the text of a site file to [`Config`] and back: the shape by serde, then every rule, each with its line.

use super::config::*;
use super::config_arbiter::{self, RawArbiter};
use super::config_launch::{self, RawLaunch};
use super::config_source::{Source, Str, Unique};
use crate::base::Result;
use serde::Deserialize;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::Spanned;

/// Most legs of a volume.
const LEGS_MAX: usize = 8;
/// Smallest size of a volume, bytes.
const SIZE_BYTES_MIN: u64 = 64 << 10;

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
    launch: Option<RawLaunch>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNode {
    site: Str,
    state_dir: Option<Str>,
    #[serde(default)]
    listen: Vec<Str>,
    metrics: Option<Str>,
    metrics_open: Option<Spanned<bool>>,
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
    env_file: Option<Str>,
    takeover: Option<Str>,
    arbiter: Option<Spanned<RawArbiter>>,
    detect: Option<Spanned<i64>>,
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
    drives: Option<Spanned<Vec<Str>>>,
    emulation: Option<Str>,
    size: Option<Spanned<toml::Value>>,
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
    #[serde(default)]
    volume: Vec<RawRemote>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRemote {
    name: Str,
    remote: Str,
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
    let launch = config_launch::launch(&src, raw.launch.as_ref())?;
    Ok(Config { path: src.path.clone(), node, peers, groups, limits, launch })
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
    let metrics = metrics(src, raw)?;
    Ok(NodeConfig { site, state_dir, listen, metrics })
}

fn metrics(src: &Source<'_>, raw: &RawNode) -> Result<Option<SocketAddr>> {
    let open = raw.metrics_open.as_ref().is_some_and(|o| *o.get_ref());
    let Some(m) = &raw.metrics else {
        return match &raw.metrics_open {
            Some(o) if open => {
                Err(src
                    .at(o, "metrics_open means nothing alone; write metrics = \"0.0.0.0:9469\" as well, or remove it"))
            }
            _ => Ok(None),
        };
    };
    let text = m.get_ref();
    let addr: SocketAddr = text.parse().ok().filter(|a: &SocketAddr| a.port() > 0).ok_or_else(|| {
        src.at(
            m,
            format!("metrics = {text:?} is no IP address with a port; write metrics = \"127.0.0.1:9469\" instead"),
        )
    })?;
    if !addr.ip().is_loopback() && !open {
        return Err(src.at(
            m,
            format!("metrics = {text:?} is reached from other machines, and whoever reaches it learns the state of every group without a key; write metrics = \"127.0.0.1:{}\" instead, or metrics_open = true as well", addr.port()),
        ));
    }
    Ok(Some(addr))
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
    let volumes = volumes(src, raw, places)?;
    let pairs = pairs(src, raw, &known, &volumes)?;
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
    let env_file = raw.env_file.as_ref().map_or(Ok(ENV_FILE_DEFAULT.to_owned()), |s| src.name("env_file", s))?;
    let keys =
        config_arbiter::Keys { takeover: &raw.takeover, arbiter: &raw.arbiter, detect: &raw.detect, name: &raw.name };
    let takeover = config_arbiter::takeover(src, &keys, &node.site, &known, &pairs)?;
    let name = raw.name.get_ref().clone();
    Ok(GroupConfig { name, fence, write_through, primary, volumes, pairs, env_file, takeover })
}

fn pairs(
    src: &Source<'_>,
    raw: &RawGroup,
    known: &impl Fn(&Str) -> Result<String>,
    volumes: &[VolumeConfig],
) -> Result<Vec<PairConfig>> {
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
        let remote = remote(src, p, volumes)?;
        out.push(PairConfig { name, mode, sites, remote });
    }
    Ok(out)
}

/// What the other end of a pair calls each volume; what is not said has the same port and LU there.
fn remote(src: &Source<'_>, raw: &RawPair, volumes: &[VolumeConfig]) -> Result<Vec<PortLu>> {
    let mut names = Unique::new(src, "volume");
    let mut out: Vec<PortLu> = volumes.iter().map(|v| (v.port.clone(), v.lu)).collect();
    for r in &raw.volume {
        let name = src.name("volume", &r.name)?;
        names.add(&name, r.name.span())?;
        let Some(i) = volumes.iter().position(|v| v.name == name) else {
            let known: Vec<&str> = volumes.iter().map(|v| v.name.as_str()).collect();
            return Err(src.at(&r.name, format!("the group has no volume {name}; write one of {}", known.join(", "))));
        };
        let text = r.remote.get_ref();
        let port_lu = text.rsplit_once('/').and_then(|(p, l)| Some((p, l.parse::<u16>().ok()?)));
        let Some((port, lu)) = port_lu.filter(|(p, _)| !p.is_empty() && !p.contains('/')) else {
            return Err(src.at(
                &r.remote,
                format!("remote = {text:?} is no port and LU; write PORT/LU as the other site's file has them, as in \"p0/0\", instead"),
            ));
        };
        if let Some(end) = out.get_mut(i) {
            *end = (port.to_owned(), lu.into());
        }
    }
    for (i, end) in out.iter().enumerate() {
        if out.iter().take(i).any(|o| o == end) {
            return Err(src.at(
                &raw.name,
                format!("pair {} has {}/{} of the other site for two volumes; write [[group.pair.volume]] with another remote for one of them", raw.name.get_ref(), end.0, end.1),
            ));
        }
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
        let emulation = emulation(src, v)?;
        let legs = legs(src, v, emulation, places)?;
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
        let size = size(src, &v.size)?;
        out.push(VolumeConfig { name, drives: legs.len(), legs, emulation, size, mount, port, lu });
    }
    even_legs(src, raw, &mut out)?;
    Ok(out)
}

/// A leg is a replica of the whole group. Beside a volume of two drives, one of a single drive has its part of the second
/// leg on the same drive, inside the first region.
fn even_legs(src: &Source<'_>, raw: &RawGroup, volumes: &mut [VolumeConfig]) -> Result<()> {
    let most = volumes.iter().map(|v| v.legs.len()).max().unwrap_or(1);
    let mirrored = volumes.iter().any(|v| v.emulation == Emulation::Raid1);
    let first = volumes.first().map_or(0, |v| v.legs.len());
    if !volumes.iter().all(|v| v.legs.len() == most || (mirrored && v.legs.len() == 1)) {
        let odd = volumes.iter().zip(&raw.volume).find(|(v, _)| v.legs.len() != first);
        let (name, n, at) = odd.map_or(("", 0, 0..0), |(v, r)| (v.name.as_str(), v.legs.len(), r.name.span()));
        return Err(src.err(at, format!("volume {name} has {n} leg(s) and the first volume {first}; write as many regions for each volume of a group")));
    }
    for v in volumes.iter_mut() {
        let beside = v.legs.last().map(|l| l.join(".kagami")).unwrap_or_default();
        v.legs.extend((v.legs.len()..most).map(|l| beside.join(format!("leg{l}"))));
    }
    Ok(())
}

fn emulation(src: &Source<'_>, v: &RawVolume) -> Result<Emulation> {
    match v.emulation.as_ref().map(|e| (e, e.get_ref().as_str())) {
        None | Some((_, "none")) => Ok(Emulation::None),
        Some((_, "raid1")) => Ok(Emulation::Raid1),
        Some((e, x)) => Err(src.at(e, format!("emulation = {x:?} is not known; write \"none\" or \"raid1\" instead"))),
    }
}

fn size(src: &Source<'_>, raw: &Option<Spanned<toml::Value>>) -> Result<u64> {
    let Some(s) = raw else { return Ok(0) };
    let n = match s.get_ref() {
        toml::Value::Integer(n) => u64::try_from(*n).ok(),
        toml::Value::String(t) => crate::base::size::parse(t),
        _ => None,
    };
    n.filter(|n| *n >= SIZE_BYTES_MIN).ok_or_else(|| {
        src.at(s, format!("size = {} is no size; write \"100MB\", \"200MiB\" or a number of bytes, {SIZE_BYTES_MIN} at least, instead", s.get_ref()))
    })
}

fn legs(src: &Source<'_>, v: &RawVolume, emulation: Emulation, places: &mut Places<'_, '_>) -> Result<Vec<PathBuf>> {
    let list: Vec<&Str> = match (&v.region, v.legs.as_ref().or(v.drives.as_ref())) {
        (_, Some(l)) if v.legs.is_some() && v.drives.is_some() => {
            return Err(src.at(l, "legs and drives are both given; write only one of them"));
        }
        (_, other) if emulation == Emulation::Raid1 && v.drives.as_ref().is_none_or(|d| d.get_ref().len() != 2) => {
            let span = v.drives.as_ref().or(other).map_or(v.name.span(), Spanned::span);
            return Err(src.err(span, "emulation = \"raid1\" is two drives under one LU; write drives = [\"/disk1/region\", \"/disk2/region\"] instead"));
        }
        (None, Some(d)) if emulation == Emulation::None && v.drives.is_some() && d.get_ref().len() != 1 => {
            return Err(src.at(d, format!("{} drives without a mirror; write emulation = \"raid1\" as well for two drives under one LU, or legs for further regions of the mirror group", d.get_ref().len())));
        }
        (Some(r), None) => vec![r],
        (None, Some(l)) if !l.get_ref().is_empty() && l.get_ref().len() <= LEGS_MAX => l.get_ref().iter().collect(),
        (None, Some(l)) => {
            return Err(src.at(l, format!("legs has {} regions; write 1 to {LEGS_MAX} instead", l.get_ref().len())));
        }
        (Some(_), Some(l)) => return Err(src.at(l, "region and legs or drives are both given; write only one of them")),
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
    // A few batches, and a segment that is being applied.
    const LOG_MIB_LEAST: u64 = 32;
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
        log_bytes: mib("log_mib", &raw.log_mib, LOG_MIB_LEAST..TIB_IN_MIB + 1, d.log_bytes)?,
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
    if let Some(m) = c.node.metrics {
        o += &format!("metrics = \"{m}\"\nmetrics_open = {}\n", !m.ip().is_loopback());
    }
    for p in &c.peers {
        o += &format!("\n[[peer]]\nsite = {:?}\n", p.site);
        o += &p.addr.as_ref().map(|a| format!("addr = {a:?}\n")).unwrap_or_default();
        o += &p.key.as_ref().map(|k| format!("key = {k:?}\n")).unwrap_or_default();
    }
    for g in &c.groups {
        o += &format!(
            "\n[[group]]\nname = {:?}\nfence = {:?}\nwrite_through = {}\nprimary = {:?}\nenv_file = {:?}\n",
            g.name,
            g.fence.as_str(),
            g.write_through,
            g.primary,
            g.env_file
        );
        o += &g.takeover.as_ref().map(AutoTakeover::to_toml).unwrap_or_default();
        for v in &g.volumes {
            o += &format!(
                "\n[[group.volume]]\nname = {:?}\nemulation = {:?}\n{} = {}\n",
                v.name,
                v.emulation.as_str(),
                if v.emulation == Emulation::Raid1 { "drives" } else { "legs" },
                list(v.legs.iter().take(v.drives).map(|l| path(l)).collect())
            );
            if v.size != 0 {
                o += &format!("size = {:?}\n", crate::base::size::show(v.size));
            }
            o += &v.mount.as_ref().map(|m| format!("mount = {}\n", path(m))).unwrap_or_default();
            o += &format!("port = {:?}\nlu = {}\n", v.port, v.lu);
        }
        for p in &g.pairs {
            let sites = list(p.sites.iter().map(|s| format!("{s:?}")).collect());
            o += &format!("\n[[group.pair]]\nname = {:?}\nmode = {:?}\nsites = {sites}\n", p.name, p.mode.as_str());
            for (v, (port, lu)) in g.volumes.iter().zip(&p.remote) {
                o += &format!("[[group.pair.volume]]\nname = {:?}\nremote = \"{port}/{lu}\"\n", v.name);
            }
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
    o += &c.launch.to_toml();
    o
}
