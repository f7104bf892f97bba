//! What a group's volumes say is to be started: read, put in order, and held against what the site allows (CD-7 to CD-9).
//! Nothing is changed by it, so it is made before anything is mounted, and again from what is mounted.

use super::app::App;
use super::files::{Found, Roots, shown};
use super::policy::Policy;
use super::{apps, env};
use crate::base::{Error, Kind, Result};
use env::Vars;
use std::path::{Path, PathBuf};

/// Environment files that name further ones, one within the other.
const DEPTH_MAX: usize = 4;
/// Environment files of a group, count.
const FILES_MAX: usize = 32;

/// What would be started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Environment files, in the order in which they were read.
    pub env_files: Vec<PathBuf>,
    /// Definition files.
    pub definitions: Vec<PathBuf>,
    /// The variables.
    pub vars: Vars,
    /// The applications, in the order in which they are started.
    pub apps: Vec<App>,
    /// What the site's rules forbid, a sentence each. With one of them nothing is started.
    pub forbidden: Vec<String>,
}

/// Makes the plan. `env_file`: name of the environment file at the root of each volume. Errors: something in the volumes
/// is wrong; most begin with `FILE:LINE: `.
pub fn read(roots: &Roots, env_file: &str, policy: &Policy<'_>) -> Result<Plan> {
    let mut plan = Plan::default();
    for root in &roots.0 {
        let mut e = EnvFiles { roots, env_file, allowed: &policy.launch.env, vars: Vars::new(), plan: &mut plan };
        let path = root.mount.join(env_file);
        if roots.look(&path)?.is_some() {
            e.read(&path, &mut Vec::new())?;
        }
        let vars = e.vars;
        for (name, v) in vars {
            match plan.vars.get(&name) {
                Some(o) if o.value != v.value => {
                    return Err(Error::config(format!(
                        "{}: {name} has another value than in {}; write it into one of the files only",
                        v.source, o.source
                    )));
                }
                Some(_) => {}
                None => {
                    plan.vars.insert(name, v);
                }
            }
        }
    }
    let dbms = definitions(roots, &mut plan, env::DBMS, env::DBMS_FILE, policy)?;
    let application = definitions(roots, &mut plan, env::APPLICATION, env::APPLICATION_FILE, policy)?;
    plan.apps = apps::order(dbms, application)?;
    plan.forbidden = plan.apps.iter().flat_map(|a| policy.check(a, roots)).collect();
    Ok(plan)
}

/// The directory of the file in which a variable was set.
fn base_of(source: &str) -> PathBuf {
    let file = source.rsplit_once(':').map_or(source, |(f, _)| f);
    Path::new(file).parent().unwrap_or(Path::new("/")).to_owned()
}

/// The file that a value names, itself or by its directory.
fn named(roots: &Roots, base: &Path, value: &str, in_dir: &str) -> Result<PathBuf> {
    let refuse = |why: &str| Error::config(format!("{value:?} {why}"));
    let path =
        apps::plain(&base.join(value)).ok_or_else(|| refuse("goes through `..`; write the path without it instead"))?;
    match roots.look(&path)? {
        Some(Found::File(..)) => Ok(path),
        Some(Found::Dir) => match roots.look(&path.join(in_dir))? {
            Some(Found::File(..)) => Ok(path.join(in_dir)),
            _ => Err(refuse(&format!("is a directory without a file {in_dir}; make that, or name another file"))),
        },
        None => Err(refuse("is not there; make it, or name another file")),
    }
}

fn definitions(roots: &Roots, plan: &mut Plan, key: &str, in_dir: &str, policy: &Policy<'_>) -> Result<Vec<App>> {
    let Some(v) = plan.vars.get(key).filter(|v| !v.value.is_empty()) else { return Ok(Vec::new()) };
    let place = |e: Error| Error { kind: Kind::Config, msg: format!("{}: {key}: {}", v.source, e.msg), ..e };
    let path = named(roots, &base_of(&v.source), &v.value, in_dir).map_err(place)?;
    if plan.definitions.contains(&path) {
        return Err(place(Error::config(format!(
            "{} is named twice; write {} into one of {} and {} only",
            shown(&path),
            shown(&path),
            env::DBMS,
            env::APPLICATION
        ))));
    }
    let text = roots.read(&path, apps::FILE_BYTES_MAX).map_err(place)?.unwrap_or_default();
    let list = apps::parse(&path, &text, &plan.vars, &policy.launch.env)?;
    plan.definitions.push(path);
    Ok(list)
}

struct EnvFiles<'a> {
    roots: &'a Roots,
    env_file: &'a str,
    allowed: &'a [String],
    vars: Vars,
    plan: &'a mut Plan,
}

impl EnvFiles<'_> {
    /// Reads a file and those it names (CD-14). `within`: the files that led here.
    fn read(&mut self, path: &Path, within: &mut Vec<PathBuf>) -> Result<()> {
        if self.plan.env_files.len() >= FILES_MAX {
            return Err(Error::config(format!(
                "more than {FILES_MAX} environment files; write fewer into {}",
                env::ENV_FILES
            )));
        }
        let Some(text) = self.roots.read(path, env::FILE_BYTES_MAX)? else {
            return Err(Error::config(format!("{} is not there any more", shown(path))));
        };
        self.plan.env_files.push(path.to_owned());
        self.vars.remove(env::ENV_FILES);
        env::parse(&shown(path), &text, self.allowed, &mut self.vars)?;
        let Some(v) = self.vars.remove(env::ENV_FILES) else { return Ok(()) };
        within.push(path.to_owned());
        for name in v.value.split(':').filter(|n| !n.is_empty()) {
            let place = |e: Error| Error {
                kind: Kind::Config,
                msg: format!("{}: {}: {}", v.source, env::ENV_FILES, e.msg),
                ..e
            };
            let next = named(self.roots, &base_of(&v.source), name, self.env_file).map_err(place)?;
            if let Some(i) = within.iter().position(|w| *w == next) {
                let circle: Vec<String> = within.iter().skip(i).chain([&next]).map(|p| shown(p)).collect();
                return Err(place(Error::config(format!(
                    "the files name each other in a circle: {}; remove one of them",
                    circle.join(" names ")
                ))));
            }
            if within.len() >= DEPTH_MAX {
                return Err(place(Error::config(format!(
                    "more than {DEPTH_MAX} files, one named by the other; write fewer"
                ))));
            }
            self.read(&next, within)?;
        }
        within.pop();
        Ok(())
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
