//! `takeover`, `arbiter` and `detect` of a group: whether the sync site takes over by itself, and who is asked first (G3).

use super::config::{Arbiter, AutoTakeover, Mode, PairConfig};
use super::config_source::{Source, Str, Unique};
use crate::base::Result;
use serde::Deserialize;
use std::time::Duration;
use toml::Spanned;

/// Default for `detect`, seconds.
const DETECT_S: u64 = 5;
/// What `detect` may be, seconds: etcd keeps no lease shorter than the least.
const DETECT_RANGE_S: std::ops::Range<u64> = 2..61;
/// Default for `prefix`.
const PREFIX: &str = "kagami";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawArbiter {
    site: Option<Str>,
    etcd: Option<Spanned<Vec<Str>>>,
    prefix: Option<Str>,
}

/// The keys of a group as they were written.
pub(super) struct Keys<'a> {
    pub takeover: &'a Option<Str>,
    pub arbiter: &'a Option<Spanned<RawArbiter>>,
    pub detect: &'a Option<Spanned<i64>>,
    /// Where the group is named.
    pub name: &'a Str,
}

/// What the arbiter is, for a site file whose own site is `node`.
pub(super) fn takeover(
    src: &Source<'_>,
    k: &Keys<'_>,
    node: &str,
    known: &impl Fn(&Str) -> Result<String>,
    pairs: &[PairConfig],
) -> Result<Option<AutoTakeover>> {
    let auto = match k.takeover.as_ref().map(|t| (t, t.get_ref().as_str())) {
        None | Some((_, "manual")) => false,
        Some((_, "auto")) => true,
        Some((t, x)) => {
            return Err(src.at(t, format!("takeover = {x:?} is not known; write \"manual\" or \"auto\" instead")));
        }
    };
    let Some(arbiter) = &k.arbiter else {
        return match (auto, k.takeover, k.detect) {
            (true, Some(t), _) => Err(src.at(
                t,
                "takeover = \"auto\" needs an arbiter, for two sites alone cannot tell a lost site from a lost link; write arbiter = { site = \"SITE\" } with the third site, or arbiter = { etcd = [\"http://127.0.0.1:2379\"] }, as well",
            )),
            (_, _, Some(d)) => Err(src.at(d, "detect means nothing without takeover = \"auto\"; write that as well, or remove the line")),
            _ => Ok(None),
        };
    };
    if !auto {
        return Err(src
            .at(arbiter, "arbiter means nothing without takeover = \"auto\"; write that as well, or remove the line"));
    }
    let Some(sync) = pairs.iter().find(|p| p.mode == Mode::Sync) else {
        return Err(src.at(
            k.name,
            "takeover = \"auto\" is for a group with a sync pair, whose other end takes over; write a [[group.pair]] with mode = \"sync\", or takeover = \"manual\"",
        ));
    };
    let raw = arbiter.get_ref();
    let who = match (&raw.site, &raw.etcd) {
        (Some(site), None) => {
            if let Some(p) = &raw.prefix {
                return Err(src.at(p, "prefix is for etcd; remove it"));
            }
            Arbiter::Site(witness(src, site, node, known, sync, pairs)?)
        }
        (None, Some(list)) => etcd(src, list, raw.prefix.as_ref())?,
        _ => {
            return Err(src.at(
                arbiter,
                "an arbiter is either a site or an etcd; write arbiter = { site = \"SITE\" } or arbiter = { etcd = [\"http://127.0.0.1:2379\"] } instead",
            ));
        }
    };
    let detect = Duration::from_secs(src.number("detect", k.detect, DETECT_RANGE_S)?.unwrap_or(DETECT_S));
    let [a, b] = sync.sites.clone();
    Ok(Some(AutoTakeover { arbiter: who, detect, ends: [a, b] }))
}

fn witness(
    src: &Source<'_>,
    site: &Str,
    node: &str,
    known: &impl Fn(&Str) -> Result<String>,
    sync: &PairConfig,
    pairs: &[PairConfig],
) -> Result<String> {
    let w = known(site)?;
    let [a, b] = &sync.sites;
    if sync.other(&w).is_some() {
        return Err(src.at(
            site,
            format!("site {w} is an end of the sync pair itself: lost with it, it cannot be asked; write a third site instead"),
        ));
    }
    for end in [a, b] {
        if !pairs.iter().any(|p| p.other(end) == Some(&w)) {
            return Err(src.at(
                site,
                format!("site {w} has no pair with site {end}, and so no link; write a [[group.pair]] with sites = [{end:?}, {w:?}] and mode = \"async\" as well, or another site instead"),
            ));
        }
    }
    if node != w && node != a && node != b {
        return Err(src.at(
            site,
            format!("site {node} is neither an end of the sync pair nor the arbiter; write arbiter = {{ site = {node:?} }}, or leave the group out here"),
        ));
    }
    Ok(w)
}

fn etcd(src: &Source<'_>, list: &Spanned<Vec<Str>>, prefix: Option<&Str>) -> Result<Arbiter> {
    let mut seen = Unique::new(src, "address");
    let mut endpoints = Vec::new();
    for e in list.get_ref() {
        let url = e.get_ref().trim_end_matches('/');
        let Some(host) = url.strip_prefix("http://").filter(|h| !h.contains('/')) else {
            return Err(src.at(
                e,
                format!("etcd = {:?} is no address of an etcd; write \"http://HOST:2379\" instead (without TLS: a loopback or a network of your own)", e.get_ref()),
            ));
        };
        if host.rsplit_once(':').is_none_or(|(h, p)| h.is_empty() || p.parse::<u16>().is_err()) {
            return Err(src.at(e, format!("etcd = {:?} has no port; write \"http://HOST:2379\" instead", e.get_ref())));
        }
        seen.add(url, e.span())?;
        endpoints.push(url.to_owned());
    }
    if endpoints.is_empty() {
        return Err(src.at(list, "etcd names nobody; write etcd = [\"http://127.0.0.1:2379\"] instead"));
    }
    let prefix = prefix.map_or(Ok(PREFIX.to_owned()), |p| src.name("prefix", p))?;
    Ok(Arbiter::Etcd { endpoints, prefix })
}

impl AutoTakeover {
    /// The lines of a site file.
    pub(super) fn to_toml(&self) -> String {
        let arbiter = match &self.arbiter {
            Arbiter::Site(s) => format!("{{ site = {s:?} }}"),
            Arbiter::Etcd { endpoints, prefix } => format!("{{ etcd = {endpoints:?}, prefix = {prefix:?} }}"),
        };
        format!("takeover = \"auto\"\narbiter = {arbiter}\ndetect = {}\n", self.detect.as_secs())
    }
}

#[cfg(test)]
mod tests {
    use crate::node::config::{Arbiter, Config};

    const FILE: &str = r#"[node]
site = "tokyo"
[[peer]]
site = "osaka"
addr = "unix:o"
[[peer]]
site = "kyoto"
addr = "unix:k"
[[group]]
name = "lab"
primary = "tokyo"
GROUP
[[group.volume]]
name = "vol0"
region = "region"
[[group.pair]]
name = "sync"
mode = "MODE"
sites = ["tokyo", "osaka"]
[[group.pair]]
name = "async"
mode = "async"
sites = ["tokyo", "kyoto"]
[[group.pair]]
name = "relay"
mode = "async"
sites = ["osaka", "RELAY"]
"#;

    fn load(text: &str) -> Result<Config, String> {
        let d = tempfile::tempdir().unwrap();
        let p = d.path().join("site.toml");
        std::fs::write(&p, text).unwrap();
        Config::load(&p).map_err(|e| e.to_string())
    }

    fn with(group: &str) -> Result<Config, String> {
        load(&FILE.replace("GROUP", group).replace("MODE", "sync").replace("RELAY", "kyoto"))
    }

    #[test]
    fn an_arbiter_is_read_and_written_back() {
        let example = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/three-sites/tokyo.toml");
        let t = Config::load(&example).unwrap().groups[0].takeover.clone().unwrap();
        assert_eq!(t.arbiter, Arbiter::Site("kyoto".into()));
        assert!(with("").unwrap().groups[0].takeover.is_none());
        assert!(with("takeover = \"manual\"").unwrap().groups[0].takeover.is_none());
        let site = "takeover = \"auto\"\narbiter = { site = \"kyoto\" }";
        let etcd = "takeover = \"auto\"\narbiter = { etcd = [\"http://[::1]:1/\", \"http://e:2379\"], prefix = \"k2\" }\ndetect = 9";
        for (text, detect) in [(site, 5), (etcd, 9)] {
            let c = with(text).unwrap();
            let t = c.groups[0].takeover.clone().unwrap();
            assert_eq!((t.detect.as_secs(), &t.ends), (detect, &["tokyo".to_owned(), "osaka".to_owned()]));
            let again = load(&c.to_toml()).unwrap();
            assert_eq!(again.groups[0].takeover.as_ref(), Some(&t));
            match t.arbiter {
                Arbiter::Site(s) => assert_eq!(s, "kyoto"),
                Arbiter::Etcd { endpoints, prefix } => {
                    assert_eq!(
                        (endpoints, prefix),
                        (vec!["http://[::1]:1".into(), "http://e:2379".into()], "k2".into())
                    );
                }
            }
        }
    }

    #[test]
    fn wrong_combinations_are_named_with_what_to_write() {
        let auto = |rest: &str| format!("takeover = \"auto\"\n{rest}");
        for (group, want) in [
            ("takeover = \"yes\"".into(), "write \"manual\" or \"auto\""),
            (auto(""), "needs an arbiter"),
            ("arbiter = { site = \"kyoto\" }".into(), "without takeover = \"auto\""),
            ("detect = 5".into(), "detect means nothing"),
            (auto("arbiter = { site = \"nara\" }"), "neither this node (tokyo) nor a peer"),
            (auto("arbiter = { site = \"osaka\" }"), "an end of the sync pair itself"),
            (auto("arbiter = { site = \"kyoto\", prefix = \"x\" }"), "prefix is for etcd"),
            (auto("arbiter = { site = \"kyoto\", etcd = [\"http://e:1\"] }"), "either a site or an etcd"),
            (auto("arbiter = {}"), "either a site or an etcd"),
            (auto("arbiter = { etcd = [] }"), "etcd names nobody"),
            (auto("arbiter = { etcd = [\"https://e:2379\"] }"), "is no address of an etcd"),
            (auto("arbiter = { etcd = [\"http://e\"] }"), "has no port"),
            (auto("arbiter = { etcd = [\"http://e:1\", \"http://e:1/\"] }"), "already in line"),
            (auto("arbiter = { nobody = 1 }"), "unknown key nobody"),
            (auto("arbiter = { site = \"kyoto\" }\ndetect = 1"), "from 2 to 60"),
        ] {
            let e = with(&group).unwrap_err();
            assert!(e.contains(want) && e.contains("site.toml:"), "{group}: {e}");
        }
        let auto = "takeover = \"auto\"\narbiter = { site = \"kyoto\" }";
        let no_sync = FILE.replace("GROUP", auto).replace("MODE", "async").replace("RELAY", "kyoto");
        assert!(load(&no_sync).unwrap_err().contains("a group with a sync pair"));
        let no_link = FILE.replace("GROUP", auto).replace("MODE", "sync");
        let no_link = no_link
            .replace("RELAY", "nara")
            .replace("[[group]]\n", "[[peer]]\nsite = \"nara\"\naddr = \"unix:n\"\n[[group]]\n");
        assert!(load(&no_link).unwrap_err().contains("has no pair with site osaka"));
    }
}
