//! `kagami define` (CD-11): at the primary, the environment file gets the locations of the definition files, and then those
//! files are written there.

use super::files::{Root, Roots, shown};
use super::{apps, env};
use crate::base::{At, Error, Result};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// One definition file to write.
pub struct Definition {
    /// The variable that names it: [`env::DBMS`] or [`env::APPLICATION`].
    pub key: &'static str,
    /// Where it goes: below a mounted volume, absolute.
    pub at: PathBuf,
    /// The file to take it from, for messages.
    pub from: PathBuf,
    /// Its text.
    pub text: Vec<u8>,
}

/// The text of an environment file with a variable set: its last line is replaced, or one is added.
pub fn set(text: &str, key: &str, value: &str) -> String {
    let line = format!("{key}={}", env::quote(value));
    let is_key = |l: &str| {
        let l = l.trim_start();
        let l = l.strip_prefix("export").filter(|r| r.starts_with([' ', '\t'])).map_or(l, str::trim_start);
        l.strip_prefix(key).is_some_and(|r| r.starts_with('='))
    };
    let mut lines: Vec<&str> = text.lines().collect();
    match lines.iter().rposition(|l| is_key(l)) {
        Some(i) => {
            if let Some(l) = lines.get_mut(i) {
                *l = &line;
            }
        }
        None => lines.push(&line),
    }
    lines.join("\n") + "\n"
}

/// Checks everything, then writes the environment file at the root of the lead volume (the first of `roots`, which are
/// mounted) and after it the definition files. Returns what was written.
pub fn define(roots: &Roots, env_file: &str, definitions: &[Definition], allowed: &[String]) -> Result<Vec<PathBuf>> {
    let lead = roots.0.first().ok_or_else(|| Error::refused("no volume of the group is mounted here"))?;
    let env_path = lead.mount.join(env_file);
    let old = roots.read(&env_path, env::FILE_BYTES_MAX)?.unwrap_or_default();
    let mut text = String::from_utf8(old).map_err(|_| Error::config(format!("{}: not UTF-8", shown(&env_path))))?;
    for d in definitions {
        target(roots, d)?;
        text = set(&text, d.key, &shown(&d.at));
    }
    let mut vars = env::Vars::new();
    env::parse(&shown(&env_path), text.as_bytes(), allowed, &mut vars)?;
    let mut parsed = Vec::new();
    for d in definitions {
        let list = apps::parse(&d.at, &d.text, &vars, allowed).map_err(|e| e.context(d.from.display()))?;
        if list.is_empty() {
            return Err(Error::config(format!("{} defines no [[application]]", d.from.display())));
        }
        parsed.push((d.key == env::DBMS, list));
    }
    let (dbms, application): (Vec<_>, Vec<_>) = parsed.into_iter().partition(|(dbms, _)| *dbms);
    let flat = |v: Vec<(bool, Vec<_>)>| v.into_iter().flat_map(|(_, l)| l).collect();
    apps::order(flat(dbms), flat(application))?;
    let mut done = vec![env_path.clone()];
    replace(&env_path, text.as_bytes())?;
    for d in definitions {
        replace(&d.at, &d.text)?;
        done.push(d.at.clone());
    }
    Ok(done)
}

/// The place of a definition file must be one that is found again at the other site.
fn target<'a>(roots: &'a Roots, d: &Definition) -> Result<&'a Root> {
    let all = || roots.0.iter().map(|r| r.mount.display().to_string()).collect::<Vec<_>>().join(" or ");
    let plain = apps::plain(&d.at).filter(|p| *p == d.at);
    match plain.as_ref().and_then(|p| roots.find(p)) {
        Some((root, rest)) if !rest.as_os_str().is_empty() => Ok(root),
        _ => Err(Error::config(format!(
            "{} is no file in a mounted volume; give a path below {}",
            d.at.display(),
            all()
        ))),
    }
}

/// Replaces a file in one step, durably; its owner and permissions stay.
fn replace(path: &Path, text: &[u8]) -> Result<()> {
    let what = path.display();
    let dir = path.parent().ok_or_else(|| Error::config(format!("{what}: no directory")))?;
    std::fs::create_dir_all(dir).at(dir.display())?;
    let old = std::fs::symlink_metadata(path).ok().filter(|m| m.is_file());
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let mode = old.as_ref().map_or(0o644, |m| m.mode() & 0o7777);
    let write = || -> std::io::Result<()> {
        let mut f = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&new)?;
        f.write_all(text)?;
        if let Some(m) = &old {
            // Without the right to it the file is the caller's own.
            let _ = std::os::unix::fs::fchown(&f, Some(m.uid()), Some(m.gid()));
        }
        f.sync_all()?;
        std::fs::rename(&new, path)?;
        std::fs::File::open(dir)?.sync_all()
    };
    write().at(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cd11_a_variable_is_replaced_where_it_stands_or_added() {
        assert_eq!(set("", "A", "/x y"), "A=\"/x y\"\n");
        assert_eq!(set("# c\nA=1\nB=2\n", "A", "3"), "# c\nA=\"3\"\nB=2\n");
        assert_eq!(set("A=1\nexport A=2", "A", "3"), "A=1\nA=\"3\"\n");
        assert_eq!(set("AB=1\n", "A", "3"), "AB=1\nA=\"3\"\n");
    }

    fn bed() -> (tempfile::TempDir, Roots) {
        let d = tempfile::tempdir().unwrap();
        let root = |v: &str| {
            let p = d.path().join(v);
            std::fs::create_dir(&p).unwrap();
            Root { volume: v.into(), mount: p.clone(), dir: p }
        };
        let roots = Roots(vec![root("ap"), root("db")]);
        (d, roots)
    }

    fn definition(key: &'static str, at: PathBuf, text: &str) -> Definition {
        Definition { key, at, from: "FROM".into(), text: text.into() }
    }

    #[test]
    fn cd11_the_environment_file_and_the_definition_files_are_written() {
        let (d, roots) = bed();
        std::fs::write(d.path().join("ap/env.txt"), "X=1\nKAGAMI_DBMS=\n").unwrap();
        let app = |n: &str| format!("[[application]]\nname = {n:?}\ncommand = \"/bin/sh\"\nargs = [\"${{X}}\"]\n");
        let list = [
            definition(env::DBMS, d.path().join("db/etc/db.toml"), &app("pg")),
            definition(env::APPLICATION, d.path().join("ap/ap.toml"), &app("shop")),
        ];
        let done = define(&roots, "env.txt", &list, &[]).unwrap();
        assert_eq!(done.len(), 3);
        let p = d.path().display();
        let text = std::fs::read_to_string(d.path().join("ap/env.txt")).unwrap();
        assert_eq!(text, format!("X=1\nKAGAMI_DBMS=\"{p}/db/etc/db.toml\"\nKAGAMI_APPLICATION=\"{p}/ap/ap.toml\"\n"));
        assert_eq!(std::fs::read_to_string(d.path().join("db/etc/db.toml")).unwrap(), app("pg"));
    }

    #[test]
    fn cd11_what_the_other_site_could_not_use_is_not_written() {
        let (d, roots) = bed();
        let at = d.path().join("ap/ap.toml");
        let good = "[[application]]\nname = \"a\"\ncommand = \"/bin/sh\"\n";
        for (d, words) in [
            (definition(env::DBMS, "/etc/x.toml".into(), good), "no file in a mounted volume"),
            (definition(env::DBMS, d.path().join("ap/../x.toml"), good), "no file in a mounted volume"),
            (definition(env::DBMS, d.path().join("ap"), good), "no file in a mounted volume"),
            (definition(env::DBMS, at.clone(), ""), "FROM defines no [[application]]"),
            (
                definition(env::DBMS, at.clone(), "[[application]]\nname = \"a\"\n"),
                "ap.toml:1: command is missing here",
            ),
            (definition(env::DBMS, at, &good.replace("/bin/sh", "sh")), "write /usr/bin/sh"),
        ] {
            let e = define(&roots, "env.txt", &[d], &[]).unwrap_err();
            assert!(e.msg.contains(words), "{e}");
        }
        assert!(!d.path().join("ap/env.txt").exists());
    }
}
