//! C5: horcm.conf files as administrators write them, and what is wrong in them.

use super::*;
use crate::node::config::Config;

const HOST1: &str = "\
# host 1
HORCM_MON
#ip_address  service  poll(10ms)  timeout(10ms)
192.0.2.1    horcm0   1000        3000

HORCM_CMD
\\\\.\\CMD-30095:/dev/sd    # any command device

HORCM_DEV
#dev_group dev_name port#   TargetID LU# MU#
VG01       data     CL1-A   0        1
VG01       log      CL1-A-1 3        2
VGUR       data     CL1-A   0        1   h1
VGUR       log      CL1-A-1 3        2   h1
SI01       snap     CL1-A   0        1   0

HORCM_LDEV
VG02       dev1     30095   01:04

HORCM_INST
#dev_group ip_address service
VG01       192.0.2.2  horcm1
VG01       192.0.2.4  horcm1
VGUR       192.0.2.3  11000
VG02       192.0.2.2  horcm1
SI01       192.0.2.1  horcm5
";

const HOST2: &str = "\
HORCM_MON
192.0.2.2 horcm1 1000 3000
HORCM_DEV
VG01 data CL2-B 0 7
VG01 log  CL1-A-1 3 2
HORCM_INST
VG01 192.0.2.1 horcm0
";

fn made(text: &str, peers: &[&str], secondary: bool) -> Result<String> {
    let peers: Vec<Conf> = peers.iter().map(|t| Conf::parse("peer.conf", t).unwrap()).collect();
    render(&Conf::parse("horcm0.conf", text)?, &peers, secondary, Path::new("/r"))
}

fn load(text: &str) -> Config {
    let d = tempfile::tempdir().unwrap();
    let f = d.path().join("site.toml");
    std::fs::write(&f, text).unwrap();
    Config::load(&f).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

#[test]
fn c5_a_site_file_is_made_of_horcm_conf() {
    let text = made(HOST1, &[HOST2], false).unwrap();
    let c = load(&text);
    assert_eq!((c.node.site.as_str(), c.node.listen[0].as_str()), ("192.0.2.1-horcm0", "192.0.2.1:7301"));
    let peers: Vec<_> = c.peers.iter().map(|p| (p.site.as_str(), p.addr.as_deref().unwrap())).collect();
    assert_eq!(peers, [("192.0.2.2-horcm1", "192.0.2.2:7302"), ("192.0.2.3-11000", "192.0.2.3:11000")]);
    let names: Vec<_> = c.groups.iter().map(|g| g.name.as_str()).collect();
    assert_eq!(names, ["VG01", "VG02"]);
    let g = &c.groups[0];
    let volumes: Vec<_> = g.volumes.iter().map(|v| (v.name.as_str(), v.port.as_str(), v.lu)).collect();
    assert_eq!(volumes, [("data", "CL1-A", 1), ("log", "CL1-A-1.t3", 2)]);
    assert_eq!(g.volumes[0].legs[0], Path::new("/r/VG01/data"));
    let pairs: Vec<_> = g.pairs.iter().map(|p| (p.name.as_str(), p.mode.as_str(), p.sites[1].as_str())).collect();
    assert_eq!(pairs, [("VG01", "sync", "192.0.2.2-horcm1"), ("VGUR", "async", "192.0.2.3-11000")]);
    // What the other host's file says of its devices.
    assert_eq!(g.pairs[0].remote, [("CL2-B".to_string(), 7), ("CL1-A-1.t3".to_string(), 2)]);
    assert_eq!((c.groups[1].volumes[0].port.as_str(), c.groups[1].volumes[0].lu), ("s30095", 0x104));
    assert_eq!(g.primary, c.node.site);
    for words in [
        "# line 7: HORCM_CMD \\\\.\\CMD-30095:/dev/sd",
        "# line 15: SI01 snap: a copy within one site",
        "# line 23: VG01 192.0.2.4 horcm1: a further host",
        "check: the site of the primary volumes",
    ] {
        assert!(text.contains(words), "no {words:?} in:\n{text}");
    }
    // Made at the other host, both sites have the same names, and the same site is primary.
    let other = load(&made(HOST2, &[HOST1], true).unwrap());
    assert_eq!(other.node.site, "192.0.2.2-horcm1");
    assert_eq!(
        (other.groups[0].primary.as_str(), other.groups[0].pairs[0].name.as_str()),
        ("192.0.2.1-horcm0", "VG01")
    );
    assert_eq!(other.groups[0].pairs[0].remote[0], ("CL1-A".to_string(), 1));
    let host3 = "HORCM_MON\n192.0.2.3 11000\nHORCM_DEV\nVGUR data CL1-A 0 1\nVGUR log X 0 2\nHORCM_INST\nVGUR 192.0.2.1 horcm0\n";
    let third = load(&made(host3, &[HOST1], true).unwrap());
    assert_eq!((third.groups[0].name.as_str(), third.groups[0].pairs[0].name.as_str()), ("VG01", "VGUR"));
}

#[test]
fn c5_every_mistake_of_horcm_conf_has_its_line() {
    let tail = "HORCM_INST\nA h2 horcm1\n";
    let cases = [
        ("A B C\n".to_string(), "horcm0.conf:1: a line before"),
        ("HORCM_MN\n".into(), "horcm0.conf:1: section HORCM_MN is not known"),
        ("HORCM_MON\nh1\n".into(), "horcm0.conf:2: write ip_address"),
        ("HORCM_MON\nh1 horcm0\n".into(), "no group with another site"),
        (format!("HORCM_DEV\nA d CL1-A 0 0\n{tail}"), "no line in HORCM_MON"),
        (format!("HORCM_MON\nNONE horcm0\nHORCM_DEV\nA d CL1-A 0 0\n{tail}"), "NONE for ip_address"),
        (format!("HORCM_MON\nh1 0\nHORCM_DEV\nA d CL1-A 0\n{tail}"), "horcm0.conf:4: write dev_group"),
        (format!("HORCM_MON\nh1 0\nHORCM_DEV\nA d CL1-A x 0\n{tail}"), "horcm0.conf:4: TargetID \"x\""),
        (format!("HORCM_MON\nh1 0\nHORCM_DEV\nA d CL1-A 0 70000\n{tail}"), "horcm0.conf:4: LU# \"70000\""),
        (format!("HORCM_MON\nh1 0\nHORCM_DEV\nA d CL1-A 0 0 q\n{tail}"), "horcm0.conf:4: MU# \"q\""),
        (format!("HORCM_MON\nh1 0\nHORCM_DEV\nA d CL1-A 0 0 h1 z\n{tail}"), "horcm0.conf:4: too many words"),
        (format!("HORCM_MON\nh1 0\nHORCM_LDEV\nA d 30 1:2:3\n{tail}"), "horcm0.conf:4: LDEV# \"1:2:3\""),
        (format!("HORCM_MON\nh1 0\nHORCM_DEV\nA d CL1-A 0 0\nA d CL1-A 0 1\n{tail}"), "is in line 4 already"),
        (
            format!("HORCM_MON\nh1 0\nHORCM_DEV\nB d CL1-A 0 0\n{tail}"),
            "horcm0.conf:4: group B has no line in HORCM_INST",
        ),
        (
            format!("HORCM_MON\nh1 0\nHORCM_DEV\nA d CL1-A 0 0\nA e CL1-A 0 1\nB d CL1-A 0 0 h1\n{tail}B h3 horcm1\n"),
            "horcm0.conf:6: this device is in group A too",
        ),
        (
            format!("HORCM_MON\nh1 0\nHORCM_DEV\nA d CL1-A 0 0\nB d CL1-A 0 0 h1\n{tail}B h2 horcm1\n"),
            "horcm0.conf:5: group B pairs the devices of A with the same site",
        ),
    ];
    for (text, words) in cases {
        let e = made(&text, &[], false).unwrap_err();
        assert!(e.msg.contains(words) && e.exit_code() == 2, "{words:?} not in {:?}", e.msg);
        assert!(e.msg.starts_with("horcm0.conf:"), "{}", e.msg);
    }
}
