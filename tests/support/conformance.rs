//! The two public conformance tools, pointed at a directory.
//!
//! pjdfstest runs as root (as an ordinary user it skips most); it switches to the users nobody and daemon, so every
//! directory on the way to the one under test must let others through (x for others).

use super::proc::{run, text};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Where `scripts/conformance-tools.sh` puts the tools.
pub fn tool(name: &str) -> PathBuf {
    // …/target/tmp is the tests' own directory.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target");
    let path = target.join("tools/bin").join(name);
    assert!(path.exists(), "{} is missing: run scripts/conformance-tools.sh", path.display());
    path
}

/// The features are those of Linux and ext4. `secondary_fs` (any other file system) lets two more tests run.
/// Users that every Debian has: the group must be the user's own.
const PJDFSTEST_CONFIG: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
stat_st_birthtime = {}
utime_now = {}
utimensat = {}
secondary_fs = "/dev/shm"

[settings]
naptime = 0.01
allow_remount = false

[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Passed,
    Failed,
    Skipped,
}

/// What pjdfstest said of each of its tests, with what it printed below it.
#[derive(Debug, Default)]
pub struct Report {
    pub tests: BTreeMap<String, (Verdict, String)>,
}

impl Report {
    pub fn count(&self, verdict: Verdict) -> usize {
        self.tests.values().filter(|(v, _)| *v == verdict).count()
    }

    /// Tests that pass in `native` and do not here, with their reasons.
    pub fn worse_than(&self, native: &Report) -> Vec<String> {
        let passed = native.tests.iter().filter(|(_, (v, _))| *v == Verdict::Passed);
        let here = |name: &String| self.tests.get(name).map_or((Verdict::Skipped, ""), |(v, why)| (*v, why.as_str()));
        passed
            .map(|(name, _)| (name, here(name)))
            .filter(|(_, (verdict, _))| *verdict != Verdict::Passed)
            .map(|(name, (verdict, why))| format!("{name}: {verdict:?} {why}"))
            .collect()
    }

    fn parse(output: &str) -> Self {
        let mut report = Self::default();
        let mut last: Option<String> = None;
        for line in output.lines() {
            let mut words = line.split_whitespace();
            let verdict = match (words.next(), words.next(), words.next()) {
                (Some(name), Some("ok"), None) => Some((name, Verdict::Passed)),
                (Some(name), Some("FAILED"), None) => Some((name, Verdict::Failed)),
                (Some(name), Some("skipped"), None) => Some((name, Verdict::Skipped)),
                _ => None,
            };
            match verdict.filter(|(name, _)| name.contains("::")) {
                Some((name, verdict)) => {
                    report.tests.insert(name.to_owned(), (verdict, String::new()));
                    last = Some(name.to_owned());
                }
                None => {
                    if let Some((_, why)) = last.as_ref().and_then(|name| report.tests.get_mut(name)) {
                        why.push_str(line.trim());
                        why.push(' ');
                    }
                }
            }
        }
        report
    }
}

/// Runs pjdfstest below a directory. Tests whose names contain one of the patterns, or all.
pub fn pjdfstest(dir: &Path, patterns: &[&str]) -> Report {
    let scratch = tempfile::tempdir().expect("a directory");
    let config = scratch.path().join("pjdfstest.toml");
    fs::write(&config, PJDFSTEST_CONFIG).expect("the configuration");
    let mut command = Command::new(tool("pjdfstest"));
    command.arg("-c").arg(&config).arg("-p").arg(dir).args(patterns).env("NO_COLOR", "1").env("RUST_BACKTRACE", "0");
    let out = run(&mut command, Duration::from_secs(600));
    let said = text(&out.stdout);
    assert!(said.contains("Summary"), "pjdfstest did not finish: {}\n{said}\n{}", out.status, text(&out.stderr));
    Report::parse(&said)
}

/// Mixes of fsx: what is stressed, and its configuration ("" is its default: read, write, truncate, mapped both). Where it
/// calls fallocate(2), no length is 0: that is EINVAL everywhere, and fsx takes it for an error.
pub const FSX_MIXES: [(&str, &str); 7] = [
    ("default", ""),
    ("mmap", "[weights]\nmapread = 10\nmapwrite = 20\nread = 5\nwrite = 5\ntruncate = 2\ninvalidate = 2\nfsync = 1\n"),
    (
        "holes",
        "flen = 1048576\n[opsize]\nmin = 1\nmax = 131072\n[weights]\nread = 10\nwrite = 10\ntruncate = 5\nmapread = 2\nmapwrite = 2\npunch_hole = 10\nposix_fallocate = 5\n",
    ),
    (
        "punch",
        "[opsize]\nmin = 1\nmax = 65536\n[weights]\nread = 10\nwrite = 10\ntruncate = 0\nmapread = 0\nmapwrite = 5\npunch_hole = 20\nfdatasync = 1\nclose_open = 1\n",
    ),
    ("truncate", "[weights]\nread = 10\nwrite = 10\ntruncate = 30\nmapread = 3\nmapwrite = 3\nclose_open = 3\n"),
    (
        "copy_file_range",
        "[weights]\nread = 10\nwrite = 10\ntruncate = 3\nmapread = 3\nmapwrite = 3\ncopy_file_range = 20\nsendfile = 3\n",
    ),
    (
        "everything",
        "[opsize]\nmin = 1\nmax = 65536\n[weights]\nclose_open = 1\ninvalidate = 1\nmapread = 5\nmapwrite = 5\nread = 10\nwrite = 10\ntruncate = 5\nfsync = 1\nfdatasync = 1\nposix_fallocate = 3\npunch_hole = 3\nsendfile = 3\nposix_fadvise = 3\ncopy_file_range = 3\n",
    ),
];

/// Runs one mix on one file for so many operations; what it said when it found an error.
pub fn fsx(file: &Path, mix: &str, operations: u64, seed: u64) -> Result<(), String> {
    let (_, config) = FSX_MIXES.iter().find(|(name, _)| *name == mix).expect("a mix");
    let scratch = tempfile::tempdir().expect("a directory");
    let mut command = Command::new(tool("fsx"));
    if !config.is_empty() {
        let path = scratch.path().join("fsx.toml");
        fs::write(&path, config).expect("the configuration");
        command.arg("-f").arg(path);
    }
    command.arg("-N").arg(operations.to_string()).arg("-S").arg(seed.to_string());
    command.arg("-P").arg(scratch.path()).arg(file).current_dir(scratch.path());
    let out = run(&mut command, Duration::from_secs(300));
    if out.status.success() {
        return Ok(());
    }
    let said = text(&out.stdout) + &text(&out.stderr);
    let lines: Vec<_> = said.lines().collect();
    Err(format!("fsx {mix} -S {seed}: {}\n{}", out.status, lines[lines.len().saturating_sub(40)..].join("\n")))
}

/// Runs mixes one after the other, each on a file of its own in `dir`; the errors.
pub fn fsx_mixes(dir: &Path, mixes: &[&str], operations: u64, seed: u64) -> Vec<String> {
    let run = |mix: &&str| fsx(&dir.join(format!("fsx-{mix}")), mix, operations, seed).err();
    mixes.iter().filter_map(run).collect()
}

/// Runs four at once; the errors.
pub fn fsx_parallel(dir: &Path, operations: u64, seed: u64) -> Vec<String> {
    let mixes = ["default", "mmap", "holes", "everything"];
    let start = |(number, mix): (usize, &'static str)| {
        let file = dir.join(format!("fsx-parallel-{number}"));
        std::thread::spawn(move || fsx(&file, mix, operations, seed + number as u64))
    };
    let running: Vec<_> = mixes.into_iter().enumerate().map(start).collect();
    running.into_iter().filter_map(|thread| thread.join().expect("no panic").err()).collect()
}
