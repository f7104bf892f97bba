//! The tables of a site against what comes from another one: pairs by port and LU (CD-2, CD-13), the config definition
//! against the volume definition table (CD-1, CD-3, CD-5), and volumes of one drive and of two in one group (CD-10).

use crate::support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::Lab;
use support::proc::wait_until;

const SOON: Duration = Duration::from_secs(30);

/// Puts lines behind a line of a site file, or with `to` starting otherwise, in its place.
#[track_caller]
fn edit(lab: &Lab, site: &str, from: &str, to: &str) {
    let file = lab.config(site);
    let s = fs::read_to_string(&file).unwrap();
    assert!(s.contains(from), "{from} is not in {s}");
    fs::write(file, s.replacen(from, to, 1)).unwrap();
}

/// Sets keys of a volume at a site; what the edits before set is gone.
fn define(lab: &Lab, site: &str, volume: &str, keys: &str) {
    let file = lab.config(site);
    let s = fs::read_to_string(&file).unwrap();
    let kept: Vec<&str> = s.lines().filter(|l| !l.ends_with("# set")).collect();
    let lines: String = keys.lines().map(|k| format!("\n{k} # set")).collect();
    let name = format!("[[group.volume]]\nname = {volume:?}");
    let s = kept.join("\n") + "\n";
    assert!(s.contains(&name), "{s}");
    fs::write(file, s.replacen(&name, &(name.clone() + &lines), 1)).unwrap();
}

/// The site begins anew, as one that was never there.
fn forget(lab: &Lab, site: &str) {
    lab.kill(site);
    for d in ["region", "region-b", "region1", "region1-b", "state/groups", "state/pairs"] {
        let _ = fs::remove_dir_all(lab.site_dir(site).join(d));
    }
}

fn restart(lab: &Lab, site: &str) {
    lab.kill(site);
    lab.start(site);
}

/// Both ends of the sync pair give a reason with these words.
#[track_caller]
fn both_say(lab: &Lab, words: &[&str]) {
    let mut last = (serde_json::Value::Null, serde_json::Value::Null);
    let ok = wait_until(SOON, || {
        last = (lab.pair("primary", "sync"), lab.pair("sync", "sync"));
        let says = |p: &serde_json::Value| words.iter().all(|w| p["reason"].as_str().is_some_and(|r| r.contains(w)));
        last.0["state"] == "PSUE" && says(&last.0) && last.1["state"] != "PAIR" && says(&last.1)
    });
    assert!(ok, "not both ends say {words:?}: {last:#?}\n{}", lab.log_tails());
}

/// Every file below a directory with its bytes, and when it was last changed.
fn bytes_below(dir: &Path) -> BTreeMap<PathBuf, (i64, Vec<u8>)> {
    let (mut out, mut todo) = (BTreeMap::new(), vec![dir.to_owned()]);
    while let Some(d) = todo.pop() {
        for e in fs::read_dir(&d).unwrap() {
            let e = e.unwrap();
            let m = e.metadata().unwrap();
            let bytes = if m.is_file() { fs::read(e.path()).unwrap() } else { Vec::new() };
            out.insert(e.path(), (m.mtime(), bytes));
            if m.is_dir() {
                todo.push(e.path());
            }
        }
    }
    out
}

/// While the primary works, nothing of it comes into the sync site's region.
#[track_caller]
fn nothing_is_stored(lab: &Lab, round: u32) {
    let region = lab.site_dir("sync").join("region");
    let before = bytes_below(&region);
    for i in 0..20 {
        fs::write(lab.mnt().join(format!("round{round}-{i}")), vec![i as u8; 5000]).unwrap();
    }
    std::thread::sleep(Duration::from_millis(1500));
    let after = bytes_below(&region);
    assert!(before == after, "the region of the sync site changed: {:?}", after.keys());
}

fn same(lab: &Lab) {
    lab.wait(60);
    lab.assert_trees_equal();
    let head = |s: &str| fs::read(lab.site_dir(s).join("region/.kagami/head")).unwrap();
    assert_eq!(head("primary"), head("sync"));
}

fn capacity(lab: &Lab, site: &str) -> u64 {
    lab.status(site)["groups"][0]["volumes"][0]["capacity"].as_u64().unwrap()
}

#[test]
fn b3_what_does_not_fit_is_refused_whole_and_goes_on_when_it_fits() {
    let lab = Lab::up(&["--sites", "2"]);
    fs::write(lab.mnt().join("first"), b"before there was a size").unwrap();
    lab.wait(60);
    forget(&lab, "sync");
    define(&lab, "primary", "vol0", "size = \"100MB\"");
    restart(&lab, "primary");
    assert_eq!(capacity(&lab, "primary"), 100_000_000, "an edited size goes into the definition");

    let raid = "emulation = \"raid1\"\ndrives = [\"region\", \"region-b\"]";
    let legs = "legs = [\"region\"]";
    // A fresh secondary: first copies that are refused.
    define(&lab, "sync", "vol0", "size = \"50MB\"");
    lab.start("sync");
    both_say(&lab, &["volume vol0 (p0/0) at site sync", "its size is 50MB", "write size = \"100MB\" or more"]);
    nothing_is_stored(&lab, 1);
    edit(&lab, "sync", legs, "");
    define(&lab, "sync", "vol0", &format!("size = \"100MB\"\n{raid}"));
    restart(&lab, "sync");
    both_say(&lab, &["its emulation type is raid1", "write emulation = \"none\" here"]);
    nothing_is_stored(&lab, 2);
    define(&lab, "sync", "vol0", &format!("size = \"99MB\"\n{raid}"));
    restart(&lab, "sync");
    both_say(&lab, &["its size is 99MB", "its emulation type is raid1"]);
    nothing_is_stored(&lab, 3);
    assert_eq!(fs::read_dir(lab.tree("sync")).unwrap().count(), 0, "nothing ever came");
    // Corrected: equal, then larger. The pair goes on by itself.
    define(&lab, "sync", "vol0", &format!("size = \"100MB\"\n{legs}"));
    restart(&lab, "sync");
    same(&lab);
    define(&lab, "sync", "vol0", &format!("size = \"200MB\"\n{legs}"));
    restart(&lab, "sync");
    same(&lab);

    // A later change of the definition, of a pair that was in PAIR.
    let position = lab.status("sync")["groups"][0]["position"].as_u64().unwrap();
    define(&lab, "primary", "vol0", "size = \"300MB\"");
    restart(&lab, "primary");
    assert_eq!(capacity(&lab, "primary"), 300_000_000);
    both_say(&lab, &["its size is 200MB and the capacity is 300MB"]);
    nothing_is_stored(&lab, 4);
    assert_eq!(lab.status("sync")["groups"][0]["position"].as_u64(), Some(position));
    define(&lab, "sync", "vol0", &format!("size = \"300MiB\"\n{legs}"));
    restart(&lab, "sync");
    same(&lab);
    assert_eq!(capacity(&lab, "sync"), 300_000_000);

    // A takeover at a larger site leaves the definition as it is, so that the old primary still fits.
    lab.kill("primary");
    lab.takeover("sync", &[]);
    assert_eq!(capacity(&lab, "sync"), 300_000_000);
    lab.start("primary");
    lab.wait(60);
    assert_eq!(lab.status("primary")["groups"][0]["role"], "secondary");
    lab.down();
}

#[test]
fn cd13_each_site_has_its_own_ports_and_finds_the_region_through_its_pair_table() {
    let lab = Lab::up(&["--sites", "2", "--volumes", "2"]);
    lab.wait(60);
    let volume = |n: u32| format!("[[group.volume]]\nname = \"vol{n}\"");
    let renamed = |site: &str, n: u32, name: &str, port: &str, lu: u32| {
        edit(&lab, site, &volume(n), &format!("[[group.volume]]\nname = {name:?}\nport = {port:?}\nlu = {lu}"));
    };
    let remote = |site: &str, records: &[(&str, &str)]| {
        let lines: String =
            records.iter().map(|(n, r)| format!("\n[[group.pair.volume]]\nname = {n:?}\nremote = {r:?}")).collect();
        let end = "sites = [\"primary\", \"sync\"]";
        let file = lab.config(site);
        let s = fs::read_to_string(&file).unwrap();
        let s = s.split_once(end).unwrap().0.to_owned() + end + &lines + "\n";
        fs::write(file, s).unwrap();
    };
    // The sites' own names for the same volumes: at the secondary they are not even called the same.
    forget(&lab, "sync");
    for (n, lu) in [(0, 0), (1, 7)] {
        renamed("primary", n, &format!("vol{n}"), "21b", lu);
        renamed("sync", n, &format!("copy{n}"), "21d", lu + 1);
    }
    remote("primary", &[("vol0", "21d/1"), ("vol1", "21d/8")]);
    restart(&lab, "primary");
    lab.start("sync");
    both_say(&lab, &["21b/0", "is in no record", "21d/1 (copy0), 21d/8 (copy1)", "remote = \"21b/0\""]);
    // The wrong way round.
    remote("sync", &[("copy0", "21b/7"), ("copy1", "21b/0")]);
    restart(&lab, "sync");
    both_say(&lab, &["21b/0", "volume number 1 there and number 2 here", "same order"]);
    assert_eq!(fs::read_dir(lab.tree("sync")).unwrap().count(), 0, "nothing came");
    remote("sync", &[("copy0", "21b/0"), ("copy1", "21b/7")]);
    restart(&lab, "sync");
    fs::write(lab.mnt().join("a"), b"of vol0").unwrap();
    fs::write(lab.dir().join("mnt1/b"), b"of vol1").unwrap();
    lab.wait(60);
    lab.assert_trees_equal();
    assert_eq!(fs::read(lab.site_dir("sync").join("region1/tree/b")).unwrap(), b"of vol1");
    for (site, name) in [("primary", "vol1"), ("sync", "copy1")] {
        let v = &lab.pair(site, "sync")["volumes"][1];
        let row = (&v["name"], &v["primary_port"], &v["primary_lu"], &v["secondary_port"], &v["secondary_lu"]);
        assert_eq!(row, (&name.into(), &"21b".into(), &7.into(), &"21d".into(), &8.into()), "{site}: {v}");
    }
    lab.down();
}

#[test]
fn cd3_the_first_mount_makes_definition_and_environment_file_and_later_ones_only_mount() {
    let lab = Lab::up(&["--sites", "2"]);
    lab.wait(60);
    let env = lab.mnt().join("env.txt");
    assert!(fs::read_to_string(&env).unwrap().starts_with("# Environment"), "made at the first mount");
    assert_eq!(fs::read(lab.tree("sync").join("env.txt")).unwrap(), fs::read(&env).unwrap());
    let head = fs::read(lab.site_dir("primary").join("region/.kagami/head")).unwrap();
    // Taken away, it stays away; mounted again, the definition stays.
    fs::remove_file(&env).unwrap();
    restart(&lab, "primary");
    lab.wait(60);
    assert!(!env.exists());
    assert_eq!(fs::read(lab.site_dir("primary").join("region/.kagami/head")).unwrap(), head);
    // Under the name of the site file, in a group that begins anew.
    for site in ["primary", "sync"] {
        forget(&lab, site);
        edit(&lab, site, "[[group]]\n", "[[group]]\nenv_file = \"environment\"\n");
    }
    lab.start("primary");
    lab.start("sync");
    lab.wait(60);
    assert!(lab.mnt().join("environment").exists() && !env.exists());
    lab.down();
}

#[test]
fn cd10_a_volume_of_one_drive_and_one_of_two_in_one_group() {
    let lab = Lab::up(&["--sites", "2", "--volumes", "2"]);
    for site in ["primary", "sync"] {
        forget(&lab, site);
        edit(&lab, site, "legs = [\"region1\"]", "emulation = \"raid1\"\ndrives = [\"region1\", \"region1-b\"]");
    }
    define(&lab, "primary", "vol0", "size = \"100MB\"");
    define(&lab, "sync", "vol0", "size = \"100MB\"");
    lab.start("primary");
    lab.start("sync");
    fs::write(lab.mnt().join("ap.conf"), b"application").unwrap();
    fs::write(lab.dir().join("mnt1/db.conf"), b"database").unwrap();
    lab.wait(60);
    let volumes = lab.status("sync")["groups"][0]["volumes"].clone();
    assert_eq!((&volumes[0]["emulation"], &volumes[0]["capacity"]), (&"none".into(), &100_000_000.into()), "{volumes}");
    assert_eq!(volumes[1]["emulation"], "raid1", "{volumes}");
    let both = || {
        let legs = lab.status("primary")["groups"][0]["legs"].clone();
        legs.as_array().is_some_and(|l| l.len() == 2 && l.iter().all(|l| l["state"] == "synchronised"))
    };
    assert!(wait_until(SOON, both), "{:#}", lab.status("primary"));
    let site = lab.site_dir("primary");
    support::assert_same(&site.join("region1/tree"), &site.join("region1-b/tree"));
    support::assert_same(&site.join("region1/tree"), &lab.site_dir("sync").join("region1/tree"));
    lab.assert_trees_equal();
    lab.down();
}
