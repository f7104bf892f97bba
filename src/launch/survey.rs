//! What a group's volumes say about themselves at this site: where they want to be mounted, what they want started, and
//! what stands in the way. The same is shown by `--dry-run` and carried out (CD-6, CD-9).

use super::app::App;
use super::files::{Root, Roots, shown};
use super::plan::{self, Plan};
use super::policy::{self, Policy};
use crate::store::head::ConfigDef;
use serde::{Deserialize, Serialize};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A volume of a group as this site has it: a row of the volume → device map.
#[derive(Clone, Debug)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// Port and LU here.
    pub port_lu: (String, u32),
    /// Its region's directory.
    pub region: PathBuf,
    /// The config definition at its head.
    pub head: Option<ConfigDef>,
    /// Where the site file mounts it.
    pub own: Option<PathBuf>,
    /// Where it is mounted now.
    pub mounted: Option<PathBuf>,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Survey {
    /// Where each volume is or will be mounted, in their order; only complete when nothing stands in the way.
    pub mounts: Vec<PathBuf>,
    /// What would be started.
    pub plan: Plan,
    /// What stands in the way, a sentence each.
    pub problems: Vec<String>,
    volumes: Vec<VolumeReport>,
}

/// A volume, for people and programs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeReport {
    /// Device name: `GROUP/VOLUME`.
    pub device: String,
    /// Port and LU it stands for.
    pub port: String,
    /// See `port`.
    pub lu: u32,
    /// Its region.
    pub region: PathBuf,
    /// Where it is or would be mounted.
    pub mount: Option<String>,
    /// It is mounted there now.
    pub mounted: bool,
    /// Capacity, bytes; 0: that of the filesystem below.
    pub capacity: u64,
    /// Emulation type.
    pub emulation: String,
}

/// An application, for people and programs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AppReport {
    /// Its name.
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// User it runs as; `None`: the node's own.
    pub user: Option<String>,
    /// Working directory.
    pub dir: String,
    /// Where it is defined.
    pub source: String,
}

/// The answer to `kagami boot` and `kagami adopt --dry-run`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The group.
    pub group: String,
    /// `primary`, `secondary` or `down`.
    pub role: String,
    /// What is done or waited for, in words.
    pub what: String,
    /// It was done: everything is mounted, and the applications are started.
    pub done: bool,
    /// Its volumes.
    pub volumes: Vec<VolumeReport>,
    /// Environment files that are read.
    pub env_files: Vec<String>,
    /// Variables that they set.
    pub variables: Vec<(String, String)>,
    /// Definition files.
    pub definitions: Vec<String>,
    /// Applications in the order in which they are started.
    pub apps: Vec<AppReport>,
    /// What stands in the way.
    pub problems: Vec<String>,
}

/// Looks at everything; changes nothing.
pub fn survey(group: &str, volumes: &[Volume], env_file: &str, policy: &Policy<'_>) -> Survey {
    let mut out = Survey { mounts: vec![], plan: Plan::default(), problems: vec![], volumes: vec![] };
    let (mut roots, mut places) = (Vec::new(), Vec::new());
    for v in volumes {
        let wanted = match (&v.mounted, &v.head, &v.own) {
            (Some(m), ..) => Some(m.clone()),
            (_, Some(h), _) => Some(PathBuf::from(std::ffi::OsStr::from_bytes(&h.mount))),
            (_, _, own) => own.clone(),
        };
        out.volumes.push(VolumeReport {
            device: format!("{group}/{}", v.name),
            port: v.port_lu.0.clone(),
            lu: v.port_lu.1,
            region: v.region.clone(),
            mount: wanted.as_deref().map(shown),
            mounted: v.mounted.is_some(),
            capacity: v.head.as_ref().map_or(0, |h| h.capacity),
            emulation: v.head.as_ref().map_or_else(String::new, |h| h.emulation.clone()),
        });
        let Some(wanted) = wanted else {
            out.problems.push(format!(
                "volume {} has no config definition: it was never mounted at the primary; mount it there once",
                v.name
            ));
            continue;
        };
        let dir = match &v.mounted {
            Some(m) => Ok(m.clone()),
            None => policy.mount(&v.name, &wanted, v.own.as_deref()),
        };
        match dir {
            Ok(d) => {
                places.push((v.name.clone(), d.clone()));
                out.mounts.push(d);
            }
            Err(e) => out.problems.push(e.msg),
        }
        if wanted.to_str() != Some(&shown(&wanted)) {
            continue; // Nothing is read by a name that cannot be shown.
        }
        let tree = v.mounted.clone().unwrap_or_else(|| v.region.join("tree"));
        roots.push(Root { volume: v.name.clone(), mount: wanted, dir: tree });
    }
    if let Err(e) = policy::separate(&places) {
        out.problems.push(e.msg);
    }
    match plan::read(&Roots(roots), env_file, policy) {
        Ok(p) => {
            out.problems.extend(p.forbidden.iter().cloned());
            out.plan = p;
        }
        Err(e) => out.problems.push(e.msg),
    }
    out
}

impl Survey {
    /// For people and programs.
    pub fn report(&self, group: &str, role: &str, what: String, done: bool) -> Report {
        let paths = |v: &[PathBuf]| v.iter().map(|p| shown(p)).collect();
        let app = |a: &App| AppReport {
            name: a.name.clone(),
            command: std::iter::once(shown(&a.command)).chain(a.args.iter().cloned()).collect(),
            user: a.user.clone(),
            dir: shown(&a.dir),
            source: a.source.clone(),
        };
        Report {
            group: group.to_owned(),
            role: role.to_owned(),
            what,
            done,
            volumes: self.volumes.clone(),
            env_files: paths(&self.plan.env_files),
            variables: self.plan.vars.iter().map(|(k, v)| (k.clone(), v.value.clone())).collect(),
            definitions: paths(&self.plan.definitions),
            apps: self.plan.apps.iter().map(app).collect(),
            problems: self.problems.clone(),
        }
    }
}

/// A directory to mount at, made if it is not there.
pub fn make_mount_dir(dir: &Path) -> crate::base::Result<()> {
    use crate::base::At;
    if crate::node::config_check::kagami_mounted_at(dir) {
        // Left behind by a node that was killed; the mounter takes it away.
        return Ok(());
    }
    std::fs::create_dir_all(dir).at(format!("making the mount directory {}", dir.display()))
}
