//! The line of a volume in fstab(5): made, replaced, removed. Every other byte of the file stays as it is.

use super::mount_options;
use crate::base::{At, Error, Result};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where fstab is.
pub const FSTAB: &str = "/etc/fstab";
/// How often the file may change under our hands before we give up.
const TRIES: usize = 5;

/// A volume's line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// `GROUP/VOLUME`.
    pub spec: String,
    /// The mount point.
    pub dir: PathBuf,
    /// The options, parted by commas.
    pub options: String,
}

/// The options of a line: those the user gave, then what a volume in fstab needs.
///
/// `_netdev`: its peers are reached by the network, and it is mounted after the local filesystems. `nofail`: a machine
/// shall boot without it. With systemd and a site file that `kagami@.service` knows, the node is started first.
pub fn options(given: &str, config: &Path, default_config: bool) -> String {
    let mut words: Vec<String> = mount_options::split(given).into_iter().map(str::to_owned).collect();
    let mut add = |key: &str, word: String| {
        if !words.iter().any(|w| w.split('=').next() == Some(key)) {
            words.push(word);
        }
    };
    add("_netdev", "_netdev".into());
    add("nofail", "nofail".into());
    if !default_config {
        add("config", format!("config={}", config.display()));
    }
    let instance = config.strip_prefix("/etc/kagami").ok().and_then(|f| f.to_str()?.strip_suffix(".toml"));
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if let Some(i) = instance.filter(|i| !i.is_empty() && i.chars().all(plain)) {
        add("x-systemd.requires", format!("x-systemd.requires=kagami@{i}.service"));
    }
    words.join(",")
}

/// A field as fstab has it: what would part fields or lines as octal.
fn escape(field: &str) -> String {
    let mut out = String::new();
    for (i, c) in field.chars().enumerate() {
        match c {
            ' ' | '\t' | '\n' | '\\' => out += &format!("\\{:03o}", c as u32),
            '#' if i == 0 => out += "\\043",
            c => out.push(c),
        }
    }
    out
}

/// What a line of fstab mounts: source, directory, type, options; `None` for comments and blank lines.
fn fields(line: &str) -> Option<[&str; 4]> {
    let mut f = line.split_ascii_whitespace();
    let source = f.next().filter(|s| !s.starts_with('#'))?;
    Some([source, f.next()?, f.next().unwrap_or(""), f.next().unwrap_or("")])
}

fn is_kagami(fstype: &str) -> bool {
    matches!(fstype, "kagami" | "fuse.kagami")
}

/// The text with exactly one line for this volume and this directory. The first one there was is replaced in its place.
///
/// Refused when the directory belongs to another filesystem.
pub fn with_line(text: &str, line: &Line) -> Result<String> {
    let dir = line.dir.to_str().ok_or_else(|| Error::config("the directory is not UTF-8: fstab cannot be written"))?;
    let (spec, dir) = (escape(&line.spec), escape(dir));
    let new = format!("{spec}\t{dir}\tkagami\t{}\t0 0", escape(&line.options));
    let config = |o: &str| mount_options::split(o).into_iter().find(|w| w.starts_with("config=")).map(str::to_owned);
    let mut out = String::with_capacity(text.len() + new.len() + 1);
    let mut put = false;
    for (i, l) in text.split_inclusive('\n').enumerate() {
        let ours = match fields(l) {
            Some([_, d, t, _]) if d == dir && !is_kagami(t) => {
                let n = i + 1;
                return Err(Error::refused(format!("line {n} mounts something else at that directory: {}", l.trim())));
            }
            Some([s, d, t, o]) => is_kagami(t) && (d == dir || s == spec && config(o) == config(&line.options)),
            None => false,
        };
        match (ours, put) {
            (false, _) => out += l,
            (true, false) => {
                out += &new;
                out.push('\n');
                put = true;
            }
            (true, true) => {}
        }
    }
    if !put {
        if !out.is_empty() && !out.ends_with('\n') {
            out.push('\n');
        }
        out += &new;
        out.push('\n');
    }
    Ok(out)
}

/// The text without kagami's lines for which `gone` says so: it is asked with source and directory, unescaped.
pub fn without_lines(text: &str, gone: impl Fn(&str, &Path) -> bool) -> String {
    let is_gone =
        |l: &&str| fields(l).is_some_and(|[s, d, t, _]| is_kagami(t) && gone(&unescape(s), Path::new(&unescape(d))));
    text.split_inclusive('\n').filter(|l| !is_gone(l)).collect()
}

fn unescape(field: &str) -> String {
    let mut out = field.to_owned();
    for (code, c) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\043", "#"), ("\\134", "\\")] {
        out = out.replace(code, c);
    }
    out
}

/// Changes a file of fstab's format: written beside, checked, renamed. True when it was another text before.
pub fn change(file: &Path, edit: impl Fn(&str) -> Result<String>) -> Result<bool> {
    // What the name leads to is replaced, not the link.
    let file = if file.exists() { file.canonicalize().at(file.display())? } else { file.to_owned() };
    for _ in 0..TRIES {
        let before = read(&file)?;
        let after = edit(&before)?;
        if after == before {
            return Ok(false);
        }
        let mut new = file.as_os_str().to_owned();
        new.push(format!(".kagami.{}", std::process::id()));
        let new = PathBuf::from(new);
        let done = write_beside(&file, &new, &after).and_then(|()| {
            verify(&file, &new)?;
            // Somebody else wrote it meanwhile: once more, with that text.
            if read(&file)? != before {
                return Ok(false);
            }
            std::fs::rename(&new, &file).at(file.display())?;
            let dir = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            std::fs::File::open(dir).and_then(|d| d.sync_all()).at(dir.display())?;
            Ok(true)
        });
        if !matches!(done, Ok(true)) {
            let _ = std::fs::remove_file(&new);
        }
        if done? {
            return Ok(true);
        }
    }
    Err(Error::failed(format!("{} is being changed by somebody else again and again", file.display())))
}

fn read(file: &Path) -> Result<String> {
    match std::fs::read_to_string(file) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        r => r.at(file.display()),
    }
}

fn write_beside(file: &Path, new: &Path, text: &str) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut f = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(new)?;
        if let Ok(m) = std::fs::metadata(file) {
            f.set_permissions(std::fs::Permissions::from_mode(m.mode() & 0o7777))?;
            // Only root can, and only then it matters.
            let _ = std::os::unix::fs::fchown(&f, Some(m.uid()), Some(m.gid()));
        }
        f.write_all(text.as_bytes())?;
        f.sync_all()
    };
    write().at(new.display())
}

/// Refuses a text in which `findmnt --verify` finds an error that the old one did not have.
fn verify(file: &Path, new: &Path) -> Result<()> {
    let errors = |f: &Path| -> Option<Vec<String>> {
        let out = Command::new("findmnt").args(["--verify", "--tab-file"]).arg(f).stdin(Stdio::null()).output().ok()?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        Some(text.lines().map(str::trim).filter(|l| l.starts_with("[E]")).map(str::to_owned).collect())
    };
    let Some(after) = errors(new).filter(|e| !e.is_empty()) else { return Ok(()) };
    let before = errors(file).unwrap_or_default();
    match after.iter().find(|e| !before.contains(e)) {
        Some(e) => Err(Error::refused(format!("{} was left as it is, `findmnt --verify` says: {e}", file.display()))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# a comment\n/dev/sda1 / ext4 errors=remount-ro 0 1\n\n#lab/vol0 /srv/lab kagami ro 0 0\n";

    fn line(spec: &str, dir: &str, options: &str) -> Line {
        Line { spec: spec.into(), dir: dir.into(), options: options.into() }
    }

    #[test]
    fn one_line_is_added_and_replaced_in_its_place() {
        let a = with_line(TEXT, &line("lab/vol0", "/srv/lab", "_netdev")).unwrap();
        assert_eq!(a, format!("{TEXT}lab/vol0\t/srv/lab\tkagami\t_netdev\t0 0\n"));
        assert_eq!(with_line(&a, &line("lab/vol0", "/srv/lab", "_netdev")).unwrap(), a);
        let more = format!("{a}tmpfs /tmp tmpfs defaults 0 0");
        let b = with_line(&more, &line("lab/vol0", "/mnt/a b", "ro")).unwrap();
        assert_eq!(b, format!("{TEXT}lab/vol0\t/mnt/a\\040b\tkagami\tro\t0 0\ntmpfs /tmp tmpfs defaults 0 0"));
        // A line of another spelling, and a second one of the same directory.
        let twice = "lab/vol0 /a fuse.kagami rw\nlab/vol1 /b kagami rw 0 0\n";
        let c = with_line(twice, &line("lab/vol0", "/b", "rw")).unwrap();
        assert_eq!(c, "lab/vol0\t/b\tkagami\trw\t0 0\n");
        // The same names of another site file are another volume.
        let other = "lab/vol0 /a kagami config=/etc/kagami/x.toml 0 0\n";
        assert_eq!(with_line(other, &line("lab/vol0", "/b", "rw")).unwrap().lines().count(), 2);
        assert_eq!(with_line("x /y ext4", &line("lab/vol0", "/b", "rw")).unwrap().lines().count(), 2);
    }

    #[test]
    fn another_filesystems_directory_is_refused() {
        let e = with_line(TEXT, &line("lab/vol0", "/", "rw")).unwrap_err();
        assert!(e.msg.contains("line 2"), "{e}");
    }

    #[test]
    fn lines_are_removed_by_source_or_directory() {
        let text = format!("{TEXT}lab/vol0\t/mnt/a\\040b\tkagami\tro\t0 0\nlab/vol0 /x ext4 ro 0 0\n");
        let by_dir = without_lines(&text, |_, d| d == Path::new("/mnt/a b"));
        assert_eq!(by_dir, format!("{TEXT}lab/vol0 /x ext4 ro 0 0\n"));
        assert_eq!(without_lines(&text, |s, _| s == "lab/vol0"), by_dir);
        assert_eq!(without_lines(&text, |_, _| false), text);
    }

    #[test]
    fn what_a_line_needs_is_added_once() {
        let site = Path::new("/etc/kagami/site.toml");
        let all = "ro,_netdev,nofail,x-systemd.requires=kagami@site.service";
        assert_eq!(options("ro", site, true), all);
        assert_eq!(options(all, site, true), all);
        assert_eq!(options("", Path::new("/home/a/s.toml"), false), "_netdev,nofail,config=/home/a/s.toml");
        let b = options("x-systemd.requires=mine.service", Path::new("/etc/kagami/b.toml"), false);
        assert_eq!(b, "x-systemd.requires=mine.service,_netdev,nofail,config=/etc/kagami/b.toml");
    }

    #[test]
    fn the_file_is_replaced_as_a_whole_with_its_mode() {
        let d = tempfile::tempdir().unwrap();
        let (real, link) = (d.path().join("real"), d.path().join("fstab"));
        std::fs::write(&real, TEXT).unwrap();
        std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let add = |t: &str| {
            with_line(t, &line("lab/vol0", "/", "_netdev")).or_else(|_| with_line(t, &line("a", "/tmp", "x")))
        };
        assert!(change(&link, add).unwrap());
        assert!(!change(&link, add).unwrap());
        assert!(std::fs::read_to_string(&real).unwrap().ends_with("a\t/tmp\tkagami\tx\t0 0\n"));
        assert_eq!(std::fs::metadata(&real).unwrap().mode() & 0o7777, 0o640);
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(change(&link, |_| Err(Error::refused("no"))).is_err());
        assert_eq!(std::fs::read_dir(d.path()).unwrap().count(), 2);
    }
}
