//! `kagami config import`: a site file made of a horcm.conf of Hitachi's CCI. Pure but for reading the files.

use crate::base::{Error, Result};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// Largest configuration file that is read, bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Port of a service whose name has no number.
const PORT_DEFAULT: u16 = 7301;

/// Sections with a counterpart.
const SECTIONS: [&str; 7] =
    ["HORCM_MON", "HORCM_CMD", "HORCM_DEV", "HORCM_LDEV", "HORCM_LDEVG", "HORCM_INST", "HORCM_INSTP"];
/// Sections without one: their lines are kept as comments.
const OTHERS: [&str; 5] = ["HORCM_VCMD", "HORCM_CTQM", "HORCM_ALLOW_INST", "HORCM_INST_DEF", "HORCM_DEV_DEF"];

/// A site: an address and a service there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    host: String,
    service: String,
}

impl Place {
    /// The name of the site: the same whichever host's file it is made from.
    fn site(&self) -> String {
        name(&format!("{}-{}", self.host, self.service))
    }

    /// Where it listens. A service that is no number has the port of its instance.
    fn addr(&self) -> String {
        let digits = self.service.trim_start_matches(|c: char| !c.is_ascii_digit());
        let port = match (self.service.parse::<u16>(), digits.parse::<u16>()) {
            (Ok(p), _) if p > 0 => p,
            (_, Ok(n)) => PORT_DEFAULT.saturating_add(n),
            _ => PORT_DEFAULT,
        };
        if self.host.contains(':') { format!("[{}]:{port}", self.host) } else { format!("{}:{port}", self.host) }
    }
}

/// A line of HORCM_DEV or HORCM_LDEV.
#[derive(Clone, Debug)]
struct Device {
    line: usize,
    group: String,
    name: String,
    port: String,
    lu: u32,
    /// A copy within one site.
    local: bool,
}

/// A configuration file.
#[derive(Debug, Default)]
struct Conf {
    file: String,
    mon: Option<Place>,
    devices: Vec<Device>,
    /// Device group → other sites, in their order, each with its line.
    others: BTreeMap<String, Vec<(usize, Place)>>,
    /// Lines without a counterpart.
    unused: Vec<(usize, String)>,
}

/// A group of the site file: device groups over the same devices, a pair for each.
struct Group {
    name: String,
    devices: Vec<Device>,
    /// Pair, and the site at its other end.
    pairs: Vec<(String, Place)>,
}

/// Letters that a name may have.
fn name(text: &str) -> String {
    let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let s: String = text.chars().map(|c| if ok(c) { c } else { '-' }).take(64).collect();
    if s.starts_with(|c: char| c.is_ascii_alphanumeric()) { s } else { format!("x{s}").chars().take(64).collect() }
}

impl Conf {
    fn read(path: &Path) -> Result<Conf> {
        let wrong = |why: String| Error::config(format!("{}: {why}", path.display()));
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).map_err(|e| wrong(e.to_string()))?;
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|e| wrong(e.to_string()))?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(wrong(format!("longer than {FILE_BYTES_MAX} bytes")));
        }
        Conf::parse(&path.display().to_string(), &String::from_utf8_lossy(&bytes))
    }

    fn err(&self, line: usize, msg: impl std::fmt::Display) -> Error {
        Error::config(format!("{}:{line}: {msg}", self.file))
    }

    fn parse(file: &str, text: &str) -> Result<Conf> {
        let mut c = Conf { file: file.to_owned(), ..Conf::default() };
        let mut section = "";
        for (i, raw) in text.lines().enumerate() {
            let line = i + 1;
            let words: Vec<&str> = raw.split('#').next().unwrap_or_default().split_whitespace().collect();
            let Some(first) = words.first() else { continue };
            if first.starts_with("HORCM_") {
                let known = SECTIONS.iter().chain(&OTHERS).find(|s| *s == first);
                section = known.ok_or_else(|| {
                    c.err(line, format!("section {first} is not known; there are {}", SECTIONS.join(", ")))
                })?;
                continue;
            }
            match (section, words.as_slice()) {
                ("", _) => return Err(c.err(line, "a line before the first section, such as HORCM_MON")),
                ("HORCM_MON", [host, service, ..]) => {
                    c.mon = Some(Place { host: (*host).into(), service: (*service).into() });
                }
                ("HORCM_MON", _) => return Err(c.err(line, "write ip_address, service, poll and timeout")),
                ("HORCM_DEV", [group, dev, port, target, lu, mu @ ..]) => {
                    let tid = c.number("TargetID", target, line)?;
                    let lu = c.number("LU#", lu, line)?;
                    let port = if tid == 0 { (*port).to_owned() } else { format!("{port}.t{tid}") };
                    c.device(line, group, dev, port, lu, mu)?;
                }
                ("HORCM_DEV", _) => {
                    return Err(c.err(line, "write dev_group, dev_name, port#, TargetID, LU# and perhaps MU#"));
                }
                ("HORCM_LDEV", [group, dev, serial, ldev, mu @ ..]) => {
                    let lu = c.ldev(ldev, line)?;
                    c.device(line, group, dev, format!("s{serial}"), lu, mu)?;
                }
                ("HORCM_LDEV", _) => {
                    return Err(c.err(line, "write dev_group, dev_name, Serial#, CU:LDEV(LDEV#) and perhaps MU#"));
                }
                ("HORCM_INST" | "HORCM_INSTP", [group, host, service, ..]) => {
                    let place = Place { host: (*host).into(), service: (*service).into() };
                    c.others.entry((*group).to_owned()).or_default().push((line, place));
                }
                ("HORCM_INST" | "HORCM_INSTP", _) => {
                    return Err(c.err(line, "write dev_group, ip_address and service"));
                }
                _ => c.unused.push((line, format!("{section} {}", words.join(" ")))),
            }
        }
        Ok(c)
    }

    fn number(&self, what: &str, text: &str, line: usize) -> Result<u32> {
        let n = text.parse().ok().filter(|n| *n < 1 << 16);
        n.ok_or_else(|| self.err(line, format!("{what} {text:?} is no number from 0 to 65535")))
    }

    /// `260`, `0x104` or `01:04`.
    fn ldev(&self, text: &str, line: usize) -> Result<u32> {
        let hex = |s: &str| u32::from_str_radix(s, 16).ok();
        let n = match (text.split_once(':'), text.strip_prefix("0x")) {
            (Some((cu, ldev)), _) => {
                hex(cu).zip(hex(ldev)).filter(|(c, l)| *c < 256 && *l < 256).map(|(c, l)| c * 256 + l)
            }
            (_, Some(x)) => hex(x),
            _ => text.parse().ok(),
        };
        let n = n.filter(|n| *n < 1 << 16);
        n.ok_or_else(|| self.err(line, format!("LDEV# {text:?}: write 260, 0x104 or 01:04")))
    }

    fn device(&mut self, line: usize, group: &str, dev: &str, port: String, lu: u32, mu: &[&str]) -> Result<()> {
        let local = match mu {
            [] => false,
            // A mirror number alone counts the copies within a site; with h those at other sites.
            [m] if m.parse::<u8>().is_ok() => true,
            [m] if m.strip_prefix('h').is_some_and(|n| n.parse::<u8>().is_ok()) => false,
            [m] => return Err(self.err(line, format!("MU# {m:?}: write 0 to 2, or h0 to h3"))),
            _ => return Err(self.err(line, "too many words")),
        };
        if let Some(d) = self.devices.iter().find(|d| d.group == group && d.name == dev) {
            return Err(self.err(line, format!("{dev} of group {group} is in line {} already", d.line)));
        }
        let (group, name) = (group.to_owned(), dev.to_owned());
        self.devices.push(Device { line, group, name, port, lu, local });
        Ok(())
    }

    /// Device groups over the same devices become one group, with a pair for each.
    fn groups(&self) -> Result<Vec<Group>> {
        let mut order: Vec<&str> = Vec::new();
        for d in self.devices.iter().filter(|d| !d.local) {
            if !order.contains(&d.group.as_str()) {
                order.push(&d.group);
            }
        }
        let mut out: Vec<Group> = Vec::new();
        for g in order {
            let devices: Vec<Device> = self.devices.iter().filter(|d| d.group == g && !d.local).cloned().collect();
            let line = devices.first().map_or(0, |d| d.line);
            let place = self.others.get(g).and_then(|o| o.first());
            let (_, place) = place.ok_or_else(|| self.err(line, format!("group {g} has no line in HORCM_INST")))?;
            let places = |ds: &[Device]| {
                let mut p: Vec<(String, u32)> = ds.iter().map(|d| (d.port.clone(), d.lu)).collect();
                p.sort();
                p
            };
            let mine = places(&devices);
            let pair = (name(g), place.clone());
            match out.iter_mut().find(|o| places(&o.devices) == mine) {
                Some(o) => {
                    if o.pairs.iter().any(|(_, p)| *p == pair.1) {
                        return Err(self.err(
                            line,
                            format!("group {g} pairs the devices of {} with the same site a second time", o.name),
                        ));
                    }
                    o.pairs.push(pair);
                }
                None => {
                    if let Some((d, o)) = devices.iter().find_map(|d| {
                        Some((d, out.iter().find(|o| places(&o.devices).contains(&(d.port.clone(), d.lu)))?))
                    }) {
                        return Err(self.err(
                            d.line,
                            format!("this device is in group {} too, which has others besides: kagami's groups share all their volumes or none", o.name),
                        ));
                    }
                    out.push(Group { name: name(g), devices, pairs: vec![pair] });
                }
            }
        }
        Ok(out)
    }
}

/// A site file made of `file`. `peers`: the files of other hosts, for what devices are called there. `secondary`: the
/// other host has the primary volumes. Errors are `FILE:LINE: ...`.
pub fn import(file: &Path, peers: &[std::path::PathBuf], secondary: bool, regions: &Path) -> Result<String> {
    let peers = peers.iter().map(|p| Conf::read(p)).collect::<Result<Vec<Conf>>>()?;
    render(&Conf::read(file)?, &peers, secondary, regions)
}

fn q(s: &str) -> String {
    toml::Value::String(s.to_owned()).to_string()
}

fn render(c: &Conf, peers: &[Conf], secondary: bool, regions: &Path) -> Result<String> {
    let mon = c.mon.as_ref().ok_or_else(|| c.err(1, "there is no line in HORCM_MON"))?;
    if mon.host.eq_ignore_ascii_case("NONE") {
        return Err(c.err(
            1,
            "HORCM_MON has NONE for ip_address: write the address by which HORCM_INST of the other host names this one",
        ));
    }
    let mut groups = c.groups()?;
    for g in &mut groups {
        // A group has one name at every site: that of the file of the host with more of its pairs.
        for (pair, place) in &g.pairs {
            for p in peers.iter().filter(|p| p.mon.as_ref() == Some(place)) {
                let theirs = p.groups()?.into_iter().find(|t| t.pairs.iter().any(|(n, _)| n == pair));
                if let Some(t) = theirs.filter(|t| t.pairs.len() > g.pairs.len()) {
                    g.name = t.name;
                }
            }
        }
    }
    if groups.is_empty() {
        return Err(c.err(1, "no group with another site: HORCM_DEV and HORCM_LDEV have no line for kagami"));
    }
    let here = mon.site();
    let mut o = format!(
        "# Made from {} by `kagami config import`. What that file does not say is marked \"check:\".\n\
         # Then: kagami config check, kagami region create, kagami peer invite and peer accept.\n\n\
         [node]\nsite = {}\nstate_dir = {}\nlisten = [{}]   # check: the port, made of service {}\n",
        c.file,
        q(&here),
        q(&format!("/var/lib/kagami/{here}")),
        q(&mon.addr()),
        mon.service
    );
    let mut places: Vec<&Place> = groups.iter().flat_map(|g| g.pairs.iter().map(|(_, p)| p)).collect();
    places.sort();
    places.dedup();
    for p in &places {
        o += &format!(
            "\n[[peer]]\nsite = {}\naddr = {}   # check: the port, made of service {}\n",
            q(&p.site()),
            q(&p.addr()),
            p.service
        );
    }
    for g in &groups {
        let other = g.pairs.first().map_or_else(String::new, |(_, p)| p.site());
        let primary = if secondary { &other } else { &here };
        o += &format!(
            "\n[[group]]\nname = {}   # check: the same at every site\nprimary = {}   # check: the site of the primary volumes\n\
             fence = \"never\"   # check: \"data\" for paircreate -f data\n",
            q(&g.name),
            q(primary)
        );
        for d in &g.devices {
            let region = regions.join(&g.name).join(name(&d.name));
            o += &format!(
                "\n[[group.volume]]\nname = {}\nregion = {}   # check: a directory on the disk for it\n\
                 #mount = \"/srv/...\"   # check: where it is mounted while this site is primary\nport = {}\nlu = {}\n",
                q(&name(&d.name)),
                q(&region.display().to_string()),
                q(&name(&d.port)),
                d.lu
            );
        }
        for (i, (pair, place)) in g.pairs.iter().enumerate() {
            // One pair of a group can be sync.
            let mode = if i == 0 { "sync" } else { "async" };
            o += &format!(
                "\n[[group.pair]]\nname = {}\nmode = {}   # check: \"async\" for paircreate -f async\nsites = [{}, {}]\n",
                q(pair),
                q(mode),
                q(&here),
                q(&place.site())
            );
            for d in &g.devices {
                let mut there = peers.iter().filter(|p| p.mon.as_ref() == Some(place)).flat_map(|p| &p.devices);
                let there = there.find(|x| !x.local && x.name == d.name && name(&x.group) == *pair);
                o += &match there {
                    Some(x) if (name(&x.port), x.lu) == (name(&d.port), d.lu) => String::new(),
                    Some(x) => format!(
                        "[[group.pair.volume]]\nname = {}\nremote = {}\n",
                        q(&name(&d.name)),
                        q(&format!("{}/{}", name(&x.port), x.lu))
                    ),
                    None => format!(
                        "#[[group.pair.volume]]   # check: what {} is called there, if not the same (or give --peer FILE)\n\
                         #name = {}\n#remote = \"PORT/LU\"\n",
                        d.name,
                        q(&name(&d.name))
                    ),
                };
            }
        }
    }
    o += &remarks(c);
    Ok(o)
}

/// What has no counterpart.
fn remarks(c: &Conf) -> String {
    let mut o = String::from("\n# Without a counterpart: poll and timeout of HORCM_MON");
    let mut lines: Vec<(usize, String)> = c.unused.clone();
    let local = c.devices.iter().filter(|d| d.local);
    lines.extend(local.map(|d| (d.line, format!("{} {}: a copy within one site (ShadowImage)", d.group, d.name))));
    for (g, places) in &c.others {
        let more = places.iter().skip(1);
        lines.extend(more.map(|(l, p)| (*l, format!("{g} {} {}: a further host of the same site", p.host, p.service))));
        if let Some((l, _)) = places.first().filter(|_| !c.devices.iter().any(|d| d.group == *g)) {
            lines.push((*l, format!("{g}: it has no devices")));
        }
    }
    lines.sort();
    for (line, text) in lines {
        o += &format!("\n# line {line}: {text}");
    }
    o.push('\n');
    o
}

#[cfg(test)]
#[path = "import_tests.rs"]
mod tests;
