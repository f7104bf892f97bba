//! Every mistake in a site file is answered with its line and what to write instead.

use super::config::*;
use crate::base::Kind;
use std::path::{Path, PathBuf};

const GOOD: &str = r#"[node]
site = "primary"
listen = ["unix:run/node.sock", "127.0.0.1:7401"]
[[peer]]
site = "sync"
addr = "unix:../sync/run/node.sock"
[[peer]]
site = "async"
[[group]]
name = "lab"
primary = "primary"
mount = "mnt"
[[group.volume]]
name = "vol0"
region = "region"
[[group.volume]]
name = "vol1"
legs = ["region1"]
[[group.pair]]
name = "sync"
mode = "sync"
sites = ["primary", "sync"]
[[group.pair]]
name = "relay"
mode = "async"
sites = ["sync", "async"]
[limits]
spool_mib = 8
"#;

fn load(text: &str) -> Result<Config, String> {
    let d = tempfile::tempdir().unwrap();
    let p = d.path().join("site.toml");
    std::fs::write(&p, text).unwrap();
    Config::load(&p).map_err(|e| {
        assert_eq!(e.kind, Kind::Config, "{e}");
        e.to_string().replace(&p.display().to_string(), "FILE")
    })
}

#[test]
fn a_good_file_is_read_with_its_defaults() {
    let d = tempfile::tempdir().unwrap();
    let p = d.path().join("site.toml");
    std::fs::write(&p, GOOD).unwrap();
    let c = Config::load(&p).unwrap();
    assert_eq!(c.node.state_dir, d.path().join("state"));
    assert_eq!(c.node.listen[0], format!("unix:{}/run/node.sock", d.path().display()));
    let outer: PathBuf = d.path().parent().unwrap().join("sync/run/node.sock");
    assert_eq!(c.peer("sync").unwrap().addr.as_deref(), Some(format!("unix:{}", outer.display()).as_str()));
    let g = c.group("lab").unwrap();
    assert_eq!((g.fence, g.write_through, g.legs()), (Fence::Never, false, 1));
    assert_eq!(g.volumes[0].mount.as_deref(), Some(d.path().join("mnt").as_path()));
    assert_eq!((g.volumes[1].mount.as_deref(), g.volumes[1].lu), (None, 1));
    assert_eq!(g.pairs_of("primary").map(|(p, o)| (p.name.as_str(), o)).collect::<Vec<_>>(), [("sync", "sync")]);
    assert_eq!(c.limits.spool_bytes, 8 << 20);
    assert!(c.group("other").unwrap_err().msg.contains("it has lab"));

    // What `config show` prints means the same.
    let again = d.path().join("again.toml");
    std::fs::write(&again, c.to_toml()).unwrap();
    assert_eq!(Config::load(&again).unwrap().to_toml(), c.to_toml());
}

#[test]
fn every_mistake_has_its_line_and_its_remedy() {
    let cases: &[(&str, &str, &str, &str)] = &[
        // (what stands in GOOD, what is put there, the line, words of the error)
        ("listen = [", "metrics = \"9469\"\nlisten = [", "3", "write metrics = \"127.0.0.1:9469\" instead"),
        ("listen = [", "metrics = \"localhost:9469\"\nlisten = [", "3", "is no IP address with a port"),
        (
            "listen = [",
            "metrics = \"0.0.0.0:77\"\nlisten = [",
            "3",
            "write metrics = \"127.0.0.1:77\" instead, or metrics_open = true",
        ),
        ("listen = [", "metrics = \"[2001:db8::1]:77\"\nlisten = [", "3", "learns the state of every group"),
        ("listen = [", "metrics_open = true\nlisten = [", "3", "means nothing alone"),
        ("site = \"primary\"\nl", "sit = \"primary\"\nl", "2", "unknown key sit; write site = \"primary\" instead"),
        ("[limits]", "[limitz]", "27", "unknown key limitz; write [limits]"),
        ("spool_mib = 8", "frobnicate = 8", "28", "unknown key frobnicate; write one of queue_memory_mib"),
        ("spool_mib = 8", "spool_mib = \"8 GB\"", "28", "write spool_mib = 256 instead"),
        ("spool_mib = 8", "spool_mib = -1", "28", "write a number from 0 to 1048576"),
        ("spool_mib = 8", "heartbeat_ms = 4000", "28", "write heartbeat_ms = 2500 instead"),
        ("spool_mib = 8", "spool_mib 8", "28", "write"),
        ("name = \"lab\"\n", "", "9", "name is missing here; write name = \"lab\""),
        ("name = \"lab\"", "name = \"../lab\"", "10", "write 1 to 64 of the characters"),
        ("name = \"lab\"", "name = \"lab\"\nfence = \"maybe\"", "11", "write \"never\" or \"data\" instead"),
        ("name = \"lab\"", "name = \"lab\"\nfence = 3", "11", "write fence = \"never\" or \"data\" instead"),
        (
            "name = \"lab\"",
            "name = \"lab\"\nfence = \"data\"\nwrite_through = false",
            "12",
            "write write_through = true instead",
        ),
        ("primary = \"primary\"", "primary = \"prinary\"", "11", "neither this node (primary) nor a peer"),
        ("primary = \"primary\"\n", "", "9", "primary is missing here"),
        ("name = \"vol1\"", "name = \"vol0\"", "17", "volume vol0 is already in line 14"),
        ("name = \"relay\"", "name = \"sync\"", "24", "pair sync is already in line 20"),
        ("mode = \"async\"", "mode = \"sync\"", "25", "a pair with mode sync is already in line 21"),
        ("mode = \"async\"", "mode = \"later\"", "25", "write \"sync\" or \"async\" instead"),
        ("[\"sync\", \"async\"]", "[\"sync\"]", "26", "a pair has two sites, not 1"),
        ("[\"sync\", \"async\"]", "[\"sync\", \"sync\"]", "26", "write two different sites"),
        (
            "[\"sync\", \"async\"]",
            "[\"sync\", \"primary\"]",
            "26",
            "pair of sites primary and sync is already in line 22",
        ),
        ("[\"sync\", \"async\"]", "[\"sync\", \"asinc\"]", "26", "neither this node"),
        ("legs = [\"region1\"]", "legs = [\"region/sub\"]", "18", "one inside the other"),
        ("legs = [\"region1\"]", "legs = [\"./x/../region\"]", "18", "one inside the other"),
        ("legs = [\"region1\"]", "legs = [\"a\", \"b\"]", "17", "as many regions for each volume"),
        ("legs = [\"region1\"]", "legs = []", "18", "write 1 to 8 instead"),
        ("legs = [\"region1\"]", "", "17", "write region = \"region\" as well"),
        ("legs = [\"region1\"]", "legs = [\"state\"]", "18", "state_dir"),
        ("legs = [\"region1\"]", "legs = [\"region1\"]\nregion = \"x\"", "18", "only one of them"),
        ("legs = [\"region1\"]", "drives = [\"a\", \"b\"]", "18", "write emulation = \"raid1\" as well"),
        ("legs = [\"region1\"]", "emulation = \"raid1\"\ndrives = [\"a\"]", "19", "is two drives under one LU"),
        ("legs = [\"region1\"]", "emulation = \"raid1\"\nregion = \"a\"", "17", "is two drives under one LU"),
        ("legs = [\"region1\"]", "emulation = \"raid5\"\nregion = \"a\"", "18", "write \"none\" or \"raid1\""),
        ("legs = [\"region1\"]", "legs = [\"a\"]\ndrives = [\"b\"]", "18", "only one of them"),
        ("legs = [\"region1\"]", "region = \"a\"\nsize = \"100 megs\"", "19", "write \"100MB\", \"200MiB\""),
        ("legs = [\"region1\"]", "region = \"a\"\nsize = 100", "19", "65536 at least"),
        (
            "sites = [\"primary\", \"sync\"]\n",
            "sites = [\"primary\", \"sync\"]\n[[group.pair.volume]]\nname = \"vol7\"\nremote = \"p/0\"\n",
            "24",
            "write one of vol0, vol1",
        ),
        (
            "sites = [\"primary\", \"sync\"]\n",
            "sites = [\"primary\", \"sync\"]\n[[group.pair.volume]]\nname = \"vol1\"\nremote = \"p-0\"\n",
            "25",
            "write PORT/LU",
        ),
        (
            "sites = [\"primary\", \"sync\"]\n",
            "sites = [\"primary\", \"sync\"]\n[[group.pair.volume]]\nname = \"vol1\"\nremote = \"p0/0\"\n",
            "20",
            "for two volumes",
        ),
        ("mount = \"mnt\"", "mount = \"region/tree\"", "12", "one inside the other"),
        ("mount = \"mnt\"", "mount = \"\"", "12", "mount is no path"),
        ("127.0.0.1:7401", "127.0.0.1", "3", "write \"unix:PATH\" or \"HOST:PORT\""),
        ("127.0.0.1:7401", "unix:run/../run/node.sock", "3", "is already in line 3"),
        ("site = \"async\"", "site = \"async\"\nkey = \"abc\"", "9", "write kgm1:"),
        ("site = \"async\"", "site = \"sync\"", "8", "peer sync is already in line 5"),
        ("site = \"async\"", "site = \"primary\"", "8", "is this node itself"),
    ];
    for (from, to, line, words) in cases {
        assert!(GOOD.contains(from), "{from}");
        let e = load(&GOOD.replacen(from, to, 1)).unwrap_err();
        assert!(e.starts_with(&format!("FILE:{line}: ")), "{to}: {e}");
        assert!(e.contains(words), "{to}: {e}");
        assert_eq!(e.lines().count(), 1, "{e}");
    }
}

#[test]
fn cd1_sizes_drives_and_the_other_ends_are_read_and_written_back() {
    let text = GOOD
        .replace("legs = [\"region1\"]", "emulation = \"raid1\"\ndrives = [\"a\", \"b\"]\nsize = \"200MB\"")
        .replace("region = \"region\"", "region = \"region\"\nport = \"21b\"\nlu = 3\nsize = 104857600")
        .replace(
            "sites = [\"primary\", \"sync\"]\n",
            "sites = [\"primary\", \"sync\"]\n[[group.pair.volume]]\nname = \"vol0\"\nremote = \"21d/0\"\n",
        );
    let c = load(&text).unwrap();
    let g = c.group("lab").unwrap();
    let [one, two] = g.volumes.as_slice() else { panic!("two volumes") };
    assert_eq!((one.size, one.emulation, one.drives), (100 << 20, Emulation::None, 1));
    assert_eq!((two.size, two.emulation, two.drives), (200_000_000, Emulation::Raid1, 2));
    // A leg is a replica of the whole group: the single drive holds its part of both.
    assert_eq!(one.legs[1], one.legs[0].join(".kagami/leg1"));
    assert_eq!(g.pairs[0].remote, [("21d".to_owned(), 0), ("p0".to_owned(), 1)]);
    assert_eq!(g.env_file, "env.txt");
    let again = load(&c.to_toml()).unwrap();
    assert_eq!(again.to_toml(), c.to_toml());
}

#[test]
fn files_that_are_no_site_files() {
    assert!(load("").unwrap_err().starts_with("FILE:1: node is missing here; write [node]"));
    assert!(load("[node]\nsite = \"x\"\n[node]\n").unwrap_err().starts_with("FILE:3: "));
    assert!(load("\u{0}").unwrap_err().starts_with("FILE:1: "));
    let long = format!("[node]\nsite = \"x\"\nlisten = [\"unix:{}/s\"]\n", "d".repeat(120));
    assert!(load(&long).unwrap_err().contains("write a shorter path"));
    let no_volume = "[node]\nsite = \"x\"\n[[group]]\nname = \"g\"\nprimary = \"x\"\n";
    assert!(load(no_volume).unwrap_err().starts_with("FILE:4: group g has no volume"));
    let e = Config::load(Path::new("/nonexistent/site.toml")).unwrap_err();
    assert!(e.kind == Kind::Config && e.msg.contains("--config"), "{e}");
    let d = tempfile::tempdir().unwrap();
    std::fs::write(d.path().join("b"), b"\xff\xfe").unwrap();
    assert!(Config::load(&d.path().join("b")).unwrap_err().msg.contains("UTF-8"));
}

#[test]
fn regions_that_are_one_through_a_symlink_are_refused() {
    let d = tempfile::tempdir().unwrap();
    std::fs::create_dir(d.path().join("region")).unwrap();
    std::os::unix::fs::symlink("region", d.path().join("region1")).unwrap();
    let p = d.path().join("site.toml");
    std::fs::write(&p, GOOD).unwrap();
    assert!(Config::load(&p).unwrap_err().msg.contains("one inside the other"));
}
