//! The pair commands of CCI on real nodes, state by state (C5, MS-2, MS-22, MS-27): what each ends with at both ends.

use crate::support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use support::Lab;
use support::proc::{run, text};

const LIMIT: Duration = Duration::from_secs(120);
const NAMES: [&str; 8] = [
    "paircreate",
    "pairsplit",
    "pairresync",
    "pairdisplay",
    "pairvolchk",
    "pairevtwait",
    "pairsyncwait",
    "horctakeover",
];

/// A lab, and the commands by their names.
struct Bed {
    lab: Lab,
    names: tempfile::TempDir,
}

impl Bed {
    fn up(args: &[&str]) -> Bed {
        let names = tempfile::tempdir_in(support::base_dir()).unwrap();
        for name in NAMES {
            symlink(support::lab::kagami().get_program(), names.path().join(name)).unwrap();
        }
        Bed { lab: Lab::up(args), names }
    }

    /// A command at a site, as a script gives it: what it ends with, and all that it says.
    fn run(&self, site: &str, line: &str) -> (i32, String) {
        let mut words = line.split_whitespace();
        let mut command = Command::new(self.names.path().join(words.next().unwrap()));
        command
            .args(words)
            .env("KAGAMI_CONFIG", self.lab.config(site))
            .env_remove("HORCMINST")
            .env_remove("HORCC_MRCF");
        let out = run(&mut command, LIMIT);
        (out.status.code().unwrap_or(-1), text(&out.stdout) + &text(&out.stderr))
    }

    /// The command ends with `code` and says `words`.
    #[track_caller]
    fn ends(&self, site: &str, line: &str, code: i32, words: &str) -> String {
        let (got, said) = self.run(site, line);
        assert!(
            got == code && said.contains(words),
            "{line} at {site}: {got}, not {code} with {words:?}: {said}\n{}",
            self.lab.log_tails()
        );
        said
    }

    /// `pairvolchk -ss` ends with the value in time (what one end knows comes to the other a moment later).
    #[track_caller]
    fn becomes(&self, site: &str, pair: &str, value: i32) {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let (got, said) = self.run(site, &format!("pairvolchk -g {pair} -ss"));
            if got == value {
                return;
            }
            assert!(Instant::now() < end, "{pair} at {site}: {got}, not {value}: {said}\n{}", self.lab.log_tails());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

#[test]
fn c5_ms2_ms22_ms27_a_script_walks_a_pair_through_its_states() {
    let bed = Bed::up(&[]);
    let (ends, becomes) = (
        |site: &str, line: &str, code, words: &str| bed.ends(site, line, code, words),
        |site: &str, pair: &str, value| bed.becomes(site, pair, value),
    );
    fs::write(bed.lab.mnt().join("a"), "1").unwrap();

    // In PAIR.
    becomes("primary", "sync", 23);
    becomes("primary", "async", 43);
    becomes("sync", "lab", 33);
    becomes("async", "lab/async", 53);
    ends("primary", "pairvolchk -g sync", 2, "Volstat is P-VOL.[status = PAIR fence = NEVER ]");
    ends("async", "pairvolchk -g async", 3, "Volstat is S-VOL.[status = PAIR fence = ASYNC CTGID = 0]");
    ends("primary", "pairvolchk -g sync -c -ss", 33, "S-VOL");
    ends("sync", "pairvolchk -g sync -c", 2, "P-VOL");
    ends("primary", "pairvolchk -g lab -ss", 236, "[EX_ENQVOL]");
    ends("primary", "paircreate -g sync -f never -vl", 0, "");
    ends("primary", "pairresync -g lab -d sync", 0, "");
    ends("sync", "pairresync -g sync -l", 0, "no effect");
    ends("primary", "horctakeover -g sync", 0, "Nop-takeover");
    ends("primary", "horctakeover -g sync -S", 222, "[EX_INVVOL]");
    ends("sync", "horctakeover -g sync -S", 221, "[EX_CMDRJE]");
    ends("primary", "pairresync -g sync -swaps", 222, "P-VOL in PAIR");
    ends("primary", "pairevtwait -g sync -nowait", 3, "PAIR");
    ends("sync", "pairevtwait -g sync -s pair -ss pair -t 10", 0, "Wait status done");
    ends("primary", "pairevtwait -g sync -s psus -t 1", 233, "[EX_EWSTOT] not within 1 s: lab/sync is in PAIR");
    ends("primary", "pairsyncwait -g sync", 222, "[EX_INVVOL]");
    let said = ends("primary", "pairsyncwait -g async -t 30", 0, "DONE");
    let mark = said.lines().nth(1).and_then(|l| l.split_whitespace().nth(2)).unwrap();
    ends("async", &format!("pairsyncwait -g async -m {mark} -t 30"), 0, "DONE");
    ends("primary", "pairsyncwait -g async -m 0fff-0 -t 30", 3, "CHANGED");
    let shown = ends("primary", "pairdisplay -g lab -fc -CLI", 0, "Group PairVol L/R Port# TID LU Seq# LDEV# P/S");
    assert!(shown.contains("\nlab/sync vol0 L p0 0 0 primary 0 P-VOL PAIR NEVER 100 0 -\n"), "{shown}");
    assert!(shown.contains("\nlab/sync vol0 R p0 0 0 sync 0 S-VOL PAIR NEVER 100 0 -\n"), "{shown}");
    let shown = ends("sync", "pairdisplay -g lab -l", 0, "vol0(L)");
    assert!(shown.contains(".S-VOL PAIR NEVER,") && !shown.contains("(R)"), "{shown}");

    // What is wrong in itself.
    ends("primary", "pairvolchk -g lob", 239, "there are: lab/sync, lab/async");
    ends("primary", "pairvolchk", 254, "[EX_REQARG]");
    ends("primary", "pairsplit -g sync -P", 252, "unmount the volume");
    ends("primary", "paircreate -g sync -f async -vl", 253, "the site file says never");
    ends("primary", "paircreate -g sync", 254, "-vl");
    ends("primary", "pairevtwait -g sync -s well", 253, "write one of smpl");
    ends("primary", "pairvolchk -g sync -I77", 251, "horcm77.toml");
    assert_eq!(bed.run("primary", "pairvolchk -g lob -nomsg"), (239, String::new()));
    assert_eq!(bed.lab.at("primary", &["horcm", "paircurchk", "-g", "sync"]).status.code(), Some(230));
    assert_eq!(bed.lab.at("primary", &["horcm", "pairvolchk", "-g", "sync", "-ss"]).status.code(), Some(23));

    // Suspended, by an order at the secondary, and back.
    ends("sync", "pairsplit -g sync -rw", 0, "no effect");
    becomes("primary", "sync", 24);
    becomes("sync", "sync", 34);
    ends("sync", "pairdisplay -g sync", 0, ".S-VOL SSUS");
    ends("primary", "pairsplit -g sync", 0, "");
    ends("primary", "paircreate -g sync -vl", 228, "[EX_INVSTP]");
    ends("primary", "pairresync -g sync -swapp", 228, "[EX_INVSTP]");
    ends("primary", "pairevtwait -g sync -nowait", 4, "");
    fs::write(bed.lab.mnt().join("b"), "2").unwrap();
    ends("sync", "pairresync -g sync", 0, "");
    ends("sync", "pairevtwait -g sync -s pair -t 30", 0, "");
    ends("primary", "pairevtwait -g sync -s pair -t 30", 0, "");

    // Ended and made again, both from the secondary.
    ends("primary", "pairsplit -g async -t 60", 0, "");
    becomes("primary", "async", 44);
    becomes("async", "async", 54);
    ends("async", "pairsplit -g async -S", 0, "");
    becomes("primary", "async", 11);
    becomes("async", "async", 11);
    ends("primary", "pairsplit -g async -S", 0, "");
    ends("primary", "pairsplit -g async", 222, "[EX_INVVOL]");
    ends("primary", "pairresync -g async", 222, "is SMPL here");
    ends("async", "horctakeover -g async", 223, "[EX_VOLCRE]");
    ends("primary", "paircreate -g async -vr", 221, "this site is primary");
    ends("async", "paircreate -g async -f async -vl", 221, "this site is secondary");
    // Equal: nothing is copied, and it is in PAIR when the order ends. Different: refused, and still SMPL.
    ends("async", "paircreate -g async -f async -vr -nocopy", 0, "");
    becomes("primary", "async", 43);
    ends("primary", "pairsplit -g async -S", 0, "");
    becomes("async", "async", 11);
    fs::write(bed.lab.mnt().join("while-simplex"), "x").unwrap();
    ends("primary", "paircreate -g async -f async -vl -nocopy", 221, "while-simplex (missing at async)");
    becomes("primary", "async", 11);
    becomes("async", "async", 11);
    ends("primary", "paircreate -g async -f async -vl -nocsus", 252, "-nocopy");
    ends("async", "paircreate -g async -f async -vr", 0, "");
    ends("primary", "pairevtwait -g async -s pair -t 30", 0, "");
    becomes("async", "async", 53);

    // The ends change their roles in order, by each of the four ways.
    ends("sync", "horctakeover -g sync -t 60", 1, "Swap-takeover");
    assert_eq!(fs::read_to_string(bed.lab.mnt().join("b")).unwrap(), "2");
    becomes("sync", "sync", 23);
    becomes("primary", "sync", 33);
    ends("sync", "pairresync -g sync -swapp", 0, "");
    becomes("primary", "sync", 23);
    ends("sync", "pairresync -g sync -swaps", 0, "");
    becomes("sync", "sync", 23);
    let out = bed.lab.at("primary", &["pair", "swap", "lab", "sync"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    becomes("primary", "sync", 23);
    becomes("sync", "sync", 33);
    fs::write(bed.lab.mnt().join("c"), "3").unwrap();

    // Without the primary.
    bed.lab.kill("primary");
    ends("sync", "pairevtwait -g sync -s psue -t 30", 0, "");
    ends("sync", "pairvolchk -g sync -ss", 35, "PSUE");
    ends("sync", "pairevtwait -g sync -s pair -t 5", 234, "[EX_EWSUSE]");
    ends("sync", "pairvolchk -g sync -c", 242, "[EX_ENORMT]");
    ends("sync", "pairresync -g sync", 242, "[EX_ENORMT]");
    ends("primary", "pairvolchk -g sync", 251, "[EX_ATTHOR]");
    ends("sync", "horctakeover -g sync", 5, "SVOL-SSUS-takeover");
    assert_eq!(fs::read_to_string(bed.lab.mnt().join("c")).unwrap(), "3");
    ends("sync", "pairvolchk -g sync -ss", 34, "S-VOL.[status = SSWS");
    ends("sync", "pairdisplay -g sync", 242, ".S-VOL SSWS");
    ends("sync", "horctakeover -g sync", 0, "Nop-takeover");
    ends("sync", "pairresync -g sync", 221, "pairresync -swaps");
    ends("sync", "paircreate -g sync -vl", 228, "S-VOL in SSWS");

    // It comes back, and is resynced from here.
    bed.lab.start("primary");
    ends("sync", "pairevtwait -g sync -s pair -t 60", 0, "");
    becomes("sync", "sync", 23);
    becomes("primary", "sync", 33);

    // Suspended here, taken over there: what is there counts.
    ends("sync", "pairsplit -g sync", 0, "");
    becomes("primary", "sync", 34);
    let out = bed.lab.at("sync", &["umount", "lab"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    ends("primary", "pairresync -g sync -swaps", 0, "");
    ends("primary", "pairevtwait -g sync -s pair -t 60", 0, "");
    becomes("primary", "sync", 23);
    becomes("sync", "sync", 33);
    fs::write(bed.lab.mnt().join("d"), "4").unwrap();
    bed.lab.wait(60);
    bed.lab.assert_trees_equal();
    bed.lab.down();
}

#[test]
fn c5_ms6_a_fenced_primary_is_freed_by_horctakeover() {
    let bed = Bed::up(&["--sites", "2", "--fence", "data"]);
    let file = |name: &str| -> PathBuf { bed.lab.mnt().join(name) };
    fs::write(file("a"), "1").unwrap();
    bed.ends("primary", "pairvolchk -g lab", 2, "fence = DATA");
    bed.ends("primary", "paircreate -g lab -f never -vl", 253, "the site file says data");
    bed.lab.kill("sync");
    bed.ends("primary", "pairevtwait -g lab -s psue -t 30", 0, "");
    assert!(fs::write(file("b"), "2").is_err(), "fence = data refuses what the sync site cannot take");
    bed.ends("primary", "horctakeover -g lab -l", 4, "PVOL-PSUE-takeover");
    bed.ends("primary", "pairvolchk -g lab -ss", 24, "PSUS");
    fs::write(file("b"), "3").unwrap();
    bed.ends("primary", "horctakeover -g lab", 0, "Nop-takeover");
    // Also after a restart of the node.
    bed.lab.kill("primary");
    bed.lab.start("primary");
    fs::write(file("c"), "4").unwrap();
    bed.lab.start("sync");
    bed.ends("primary", "pairresync -g lab", 0, "");
    bed.ends("primary", "pairevtwait -g lab -s pair -t 60", 0, "");
    bed.becomes("sync", "lab", 33);
    bed.lab.wait(60);
    bed.lab.assert_trees_equal();
    // The fence holds again, and a secondary that took over is not fenced by the primary that it has lost.
    bed.lab.kill("sync");
    bed.ends("primary", "pairevtwait -g lab -s psue -t 30", 0, "");
    assert!(fs::write(file("d"), "5").is_err());
    bed.lab.kill("primary");
    bed.lab.start("sync");
    bed.ends("sync", "horctakeover -g lab", 5, "SVOL-SSUS-takeover");
    fs::write(file("d"), "6").unwrap();
    bed.lab.start("primary");
    bed.ends("sync", "pairevtwait -g lab -s pair -t 60", 0, "");
    bed.becomes("primary", "lab", 33);
    bed.lab.wait(60);
    bed.lab.assert_trees_equal();
    bed.lab.down();
}

/// The files of two hosts become site files that fit together.
#[test]
fn c5_horcm_conf_becomes_a_site_file() {
    let dir = tempfile::tempdir_in(support::base_dir()).unwrap();
    let kagami = |args: &[&str]| run(support::lab::kagami().current_dir(dir.path()).args(args), LIMIT);
    let conf = |own: &str, other: &str| {
        format!(
            "HORCM_MON\n127.0.0.1 {own} 1000 3000\nHORCM_DEV\nVG01 data CL1-A 0 5\nHORCM_INST\nVG01 127.0.0.1 {other}\n"
        )
    };
    fs::write(dir.path().join("horcm0.conf"), conf("horcm0", "horcm1")).unwrap();
    fs::write(dir.path().join("horcm1.conf"), conf("horcm1", "horcm0")).unwrap();
    for (own, other, more) in [("horcm0", "horcm1", None), ("horcm1", "horcm0", Some("--secondary"))] {
        let (from, peer) = (format!("{own}.conf"), format!("{other}.conf"));
        let mut args = vec!["config", "import", &from, "--peer", &peer, "--regions", own];
        args.extend(more);
        let out = kagami(&args);
        assert!(out.status.success(), "{}", text(&out.stderr));
        let file = format!("{own}.toml");
        fs::write(dir.path().join(&file), &out.stdout).unwrap();
        let shown = text(&kagami(&["-c", &file, "config", "show"]).stdout);
        for words in ["primary = \"127.0.0.1-horcm0\"", "sites = [\"127.0.0.1-horcm", "port = \"CL1-A\"", "lu = 5"] {
            assert!(shown.contains(words), "{file}: no {words:?} in:\n{shown}");
        }
        assert!(kagami(&["-c", &file, "config", "check"]).status.success());
    }
    fs::write(dir.path().join("wrong.conf"), "HORCM_MON\nh 0 1 1\nHORCM_DEV\nA d CL1-A\n").unwrap();
    let out = kagami(&["config", "import", "wrong.conf"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("wrong.conf:4: write dev_group"), "{}", text(&out.stderr));
    assert_eq!(kagami(&["config", "import", "none.conf"]).status.code(), Some(2));
}
