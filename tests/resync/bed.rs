//! Labs whose regions are prepared before their nodes first look at them, and what the tests here ask of a lab.

use crate::support::{self, Lab, proc};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a pair may take to come back.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A lab that is made but not started: `args` as for `lab up`, `prepare` gets it with empty regions.
pub fn made(args: &[&str], prepare: impl FnOnce(&Lab)) -> Lab {
    let lab = Lab::up(args);
    lab.ok("down", &[]);
    for site in support::lab::SITES {
        let dir = lab.site_dir(site);
        if dir.exists() {
            for name in ["state", "region"] {
                fs::remove_dir_all(dir.join(name)).expect("removing what the first start made");
                fs::create_dir(dir.join(name)).expect("making it again");
            }
            let _ = fs::remove_file(dir.join("node.log"));
        }
    }
    fs::create_dir(lab.tree("primary")).expect("a tree");
    prepare(&lab);
    lab
}

/// Adds lines to a site file.
pub fn configure(lab: &Lab, site: &str, lines: &str) {
    let path = lab.config(site);
    let text = fs::read_to_string(&path).expect("the site file");
    fs::write(&path, format!("{text}\n{lines}\n")).expect("the site file");
}

/// Waits until every pair that can be is in step.
#[track_caller]
pub fn settle(lab: &Lab) {
    lab.ok("wait", &["--timeout", "120"]);
}

/// The counters of a resync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    pub examined: u64,
    pub files: u64,
    pub bytes: u64,
    pub renames: u64,
}

/// What the last resync of a pair cost, as its primary tells.
#[track_caller]
pub fn cost(lab: &Lab, site: &str, pair: &str) -> Cost {
    let p = lab.pair(site, pair);
    let r = &p["last_resync"];
    let n = |k: &str| r[k].as_u64().unwrap_or_else(|| panic!("no {k} in {p:#}"));
    Cost { examined: n("files_examined"), files: n("files_copied"), bytes: n("bytes_copied"), renames: n("renames") }
}

/// Polls the status of a site until a pair of it is as wanted.
#[track_caller]
pub fn until(lab: &Lab, site: &str, pair: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + PATIENCE;
    loop {
        let status = lab.try_status(site);
        let found = status.as_ref().and_then(|s| support::lab::find_pair(s, pair));
        if let Some(p) = found.filter(|p| wanted(p)) {
            return p.clone();
        }
        assert!(Instant::now() < end, "{pair} at {site}: not {what}: {found:#?}\n{}", lab.log_tails());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// How often the log of a site has these words.
pub fn said(lab: &Lab, site: &str, words: &str) -> usize {
    lab.log(site).matches(words).count()
}

/// A copy with everything that is compared.
pub fn copy(from: &Path, to: &Path) {
    proc::run_ok(std::process::Command::new("cp").arg("-a").arg(from).arg(to), PATIENCE);
}

/// True when the marker stands beside a site's tree.
pub fn between(lab: &Lab, site: &str) -> bool {
    lab.site_dir(site).join("region/IN-TRANSITION").exists()
}
