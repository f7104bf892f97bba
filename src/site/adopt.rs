//! `kagami adopt`: a host that has nothing but the regions of a replica becomes the site that serves it. First everything
//! is shown, then a node is made for that group alone, takes over, mounts, and starts what the volumes name.

use super::process::{NodeFiles, POLL};
use crate::base::{At, Error, Kind, Result, size};
use crate::format::msg::CopyState;
use crate::launch::policy::{Policy, Who};
use crate::launch::survey::{self, Report, Survey, Volume};
use crate::node::config::{Config, LaunchConfig};
use crate::node::control::{self, Request};
use crate::os::{sys, user};
use crate::store::glance;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the node may take to open the replica.
const START: Duration = Duration::from_secs(120);
/// How long it may take to take the group over, to mount it and to begin to start its applications.
const BOOT: Duration = Duration::from_secs(300);

/// What is to be adopted, and as what.
pub struct Adoption {
    /// Name of the group.
    pub group: String,
    /// The site file that is written.
    pub site_file: PathBuf,
    state_dir: PathBuf,
    text: String,
    replica: glance::Replica,
    launch: LaunchConfig,
    /// Where a refusal says that something is to be written.
    rules: PathBuf,
}

/// What the operator gave.
pub struct Wish<'a> {
    /// Regions of the replica.
    pub regions: &'a [PathBuf],
    /// A site file with `[launch]`, if there is one.
    pub config: Option<&'a Config>,
    /// Name of the new site.
    pub site: Option<&'a str>,
    /// Its state directory.
    pub state_dir: Option<&'a Path>,
}

impl Adoption {
    /// Looks at the replica. Nothing is changed.
    pub fn new(w: &Wish<'_>) -> Result<Adoption> {
        let replica = glance::replica(w.regions)?;
        let group = replica.regions.first().map_or_else(String::new, |r| r.identity.group.clone());
        match replica.state.copy {
            CopyState::Consistent => {}
            CopyState::Empty => {
                return Err(Error::refused(format!("the replica of group {group} was never copied to")));
            }
            CopyState::Copying => {
                return Err(Error::refused(format!(
                    "the copy of group {group} was never complete: it is no point of the primary's order and cannot be used"
                )));
            }
        }
        if let Some(c) = w.config.filter(|c| c.groups.iter().any(|g| g.name == group)) {
            return Err(Error::refused(format!(
                "group {group} is in {} already: start its node and use `kagami boot --now {group}`",
                c.path.display()
            )));
        }
        let site = w.site.or(w.config.map(|c| c.node.site.as_str())).unwrap_or("adopted").to_owned();
        let origin = replica.state.chain.last().map_or_else(|| "origin".to_owned(), |e| e.site.clone());
        if origin == site {
            return Err(Error::config(format!(
                "the replica comes from a site {site}; give another name for this one with --site"
            )));
        }
        let state_dir = match (w.state_dir, w.config) {
            (Some(d), _) => std::path::absolute(d)?,
            (None, Some(c)) => c.node.state_dir.join(&group),
            (None, None) => default_state_dir(&group)?,
        };
        let site_file = state_dir.join("site.toml");
        let launch = w.config.map(|c| c.launch.clone()).unwrap_or_default();
        let rules = w.config.map_or_else(|| site_file.clone(), |c| c.path.clone());
        let text = site_text(&site, &origin, &group, &replica, &launch);
        Ok(Adoption { group, site_file, state_dir, text, replica, launch, rules })
    }

    /// What would be mounted and started, and what stands in the way.
    pub fn plan(&self) -> Report {
        let s = self.survey();
        let at = self
            .replica
            .state
            .chain
            .last()
            .map_or_else(String::new, |e| format!(", epoch {} of site {}", e.number, e.site));
        s.report(
            &self.group,
            "replica",
            format!("a whole replica{at}; its node would be made in {}{}", self.state_dir.display(), self.half()),
            false,
        )
    }

    /// What is to be said of volumes of which more than this drive existed.
    fn half(&self) -> String {
        let mirrored = self.replica.regions.iter().filter(|r| is_raid1(r));
        let one = |r: &glance::Glance| {
            format!(
                "; {} is one drive of volume {}, which is raid1: it would go on with that drive alone until a second one is written into {}",
                r.path.display(),
                r.identity.volume,
                self.site_file.display()
            )
        };
        mirrored.map(one).collect()
    }

    fn survey(&self) -> Survey {
        let uid = |name: &str| user::by_name(name).ok().flatten().map(|u| u.uid);
        let policy = Policy { launch: &self.launch, file: &self.rules, who: Who { uid: sys::ids().0, user: &uid } };
        let volumes: Vec<Volume> = self
            .replica
            .regions
            .iter()
            .map(|r| Volume {
                name: r.identity.volume.clone(),
                port_lu: ("p0".into(), u32::from(r.identity.vol.0)),
                region: r.path.clone(),
                head: r.head.clone(),
                own: None,
                mounted: None,
            })
            .collect();
        survey::survey(&self.group, &volumes, crate::node::config::ENV_FILE_DEFAULT, &policy)
    }

    /// Does it: the node is made and started, the group is taken over, mounted, its applications are started.
    pub fn carry_out(&self, notify: &dyn Fn(&str)) -> Result<Report> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.state_dir).at(self.state_dir.display())?;
        match std::fs::read_to_string(&self.site_file) {
            Ok(there) if there != self.text => {
                // The operator may have allowed something in it since.
                log::info!("{} is there already and is used as it is", self.site_file.display());
            }
            Ok(_) => {}
            Err(_) => crate::store::files::replace(&self.site_file, self.text.as_bytes())?,
        }
        let config = Config::load(&self.site_file)?;
        let files = NodeFiles {
            config: config.path.clone(),
            state_dir: config.node.state_dir.clone(),
            pid_file: self.state_dir.join("node.pid"),
            log_file: self.state_dir.join("node.log"),
        };
        if files.running().is_none() {
            notify("starting its node");
            files.start(START, &|_| Ok(()))?;
        }
        self.wait_open(&files)?;
        notify("taking over, mounting");
        let req = Request::Boot { group: self.group.clone(), now: true, dry_run: false };
        let v = control::call_within(&files.state_dir, &req, Some(BOOT), |_| ()).map_err(|e| match e.kind {
            Kind::Timeout => e.context(format!("it may still come about{}", files.tail(0))),
            _ => e,
        })?;
        serde_json::from_value(v).map_err(|e| Error::failed(format!("the node's answer is not understood ({e})")))
    }

    fn wait_open(&self, files: &NodeFiles) -> Result<()> {
        let until = Instant::now() + START;
        loop {
            let status = files.status()?;
            match status.groups.iter().find(|g| g.name == self.group) {
                Some(g) if g.role == "secondary" || g.role == "primary" => return Ok(()),
                Some(g) if g.role == "down" || Instant::now() > until => {
                    let why = g.reason.clone().unwrap_or_default();
                    return Err(Error::new(
                        Kind::Failed,
                        format!("group {} cannot be opened: {why}{}", self.group, files.tail(0)),
                    ));
                }
                _ => std::thread::sleep(POLL),
            }
        }
    }
}

fn default_state_dir(group: &str) -> Result<PathBuf> {
    let name = format!("adopted-{group}");
    if sys::ids().0 == 0 {
        return Ok(Path::new("/var/lib/kagami").join(name));
    }
    let home = |v: &str| std::env::var_os(v).map(PathBuf::from).filter(|p| p.is_absolute());
    let base = home("XDG_STATE_HOME").or_else(|| home("HOME").map(|h| h.join(".local/state")));
    base.map(|b| b.join("kagami").join(name))
        .ok_or_else(|| Error::config("neither $XDG_STATE_HOME nor $HOME is set; give --state-dir DIR"))
}

fn is_raid1(r: &glance::Glance) -> bool {
    r.head.as_ref().is_some_and(|h| h.emulation == "raid1")
}

fn site_text(site: &str, origin: &str, group: &str, replica: &glance::Replica, launch: &LaunchConfig) -> String {
    let q = |s: &str| toml::Value::String(s.to_owned()).to_string();
    let mut o = format!(
        "# Made by `kagami adopt` from the regions of a replica. Give site {origin} an addr and this node a `listen` when that\n# site is to become its copy.\n[node]\nsite = {}\nstate_dir = \".\"\n\n[[peer]]\nsite = {}\n\n[[group]]\nname = {}\nprimary = {}\n",
        q(site),
        q(origin),
        q(group),
        q(origin)
    );
    for r in &replica.regions {
        let region = r.path.display().to_string();
        o += &format!("\n[[group.volume]]\nname = {}\n", q(&r.identity.volume));
        if is_raid1(r) {
            o += &format!(
                "# One drive of a raid1 volume. With a second one, instead of `region`, then `kagami region create` and a restart:\n# emulation = \"raid1\"\n# drives = [{region:?}, \"/disk2/region\"]\n"
            );
        }
        o += &format!("region = {}\n", q(&region));
        if let Some(h) = r.head.as_ref().filter(|h| h.capacity != 0) {
            o += &format!("size = {}\n", q(&size::show(h.capacity)));
        }
    }
    o += &format!("\n[[group.pair]]\nname = \"origin\"\nmode = \"async\"\nsites = [{}, {}]\n", q(origin), q(site));
    o + &launch.to_toml()
}
