//! The options after `-o`: those of mount(8), and kagami's own.

use crate::base::{Error, Result};
use crate::node::mounter::{MOUNT_OPTIONS, MountOption, MountOptions};
use std::path::PathBuf;
use std::time::Duration;

/// How long mounting may take unless `timeout=` says otherwise.
pub const TIMEOUT: Duration = Duration::from_secs(60);
/// The most that `timeout=` may say, seconds.
const TIMEOUT_S_MAX: u64 = 86_400;

/// Words that mount(8), fstab and systemd read, or that say what is so anyway.
const NOT_OURS: [&str; 17] = [
    "defaults",
    "auto",
    "noauto",
    "nouser",
    "nogroup",
    "noowner",
    "_netdev",
    "_rnetdev",
    "default_permissions",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
    "silent",
    "loud",
];

/// What a word takes back: the later one of two that contradict each other holds.
const TAKEN_BACK: [(&str, MountOption); 7] = [
    ("rw", MountOption::ReadOnly),
    ("suid", MountOption::NoSuid),
    ("dev", MountOption::NoDev),
    ("exec", MountOption::NoExec),
    ("async", MountOption::Sync),
    ("atime", MountOption::NoAtime),
    ("diratime", MountOption::NoDirAtime),
];

/// What was said after `-o`.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    /// What changes the mount.
    pub options: MountOptions,
    /// `config=FILE`: the site file.
    pub config: Option<PathBuf>,
    /// `timeout=SECONDS`.
    pub timeout: Duration,
    /// `start`: start the node when it does not run.
    pub start: bool,
    /// `nofail`: it is no failure when there is nothing to mount now.
    pub nofail: bool,
    /// `remount`.
    pub remount: bool,
    /// Words that nobody knows.
    pub unknown: Vec<String>,
}

impl Default for Said {
    fn default() -> Said {
        Said {
            options: MountOptions::new(),
            config: None,
            timeout: TIMEOUT,
            start: false,
            nofail: false,
            remount: false,
            unknown: Vec::new(),
        }
    }
}

/// The words of a list; a comma in double quotes does not part them.
pub fn split(list: &str) -> Vec<&str> {
    let mut quoted = false;
    let parts = list.split(|c| {
        quoted ^= c == '"';
        c == ',' && !quoted
    });
    parts.map(str::trim).filter(|w| !w.is_empty()).collect()
}

/// Reads a list. Unknown words are gathered, wrong values refused.
pub fn parse(list: &str) -> Result<Said> {
    let mut said = Said::default();
    for word in split(list) {
        said.take(word)?;
    }
    Ok(said)
}

impl Said {
    /// An error that names the words nobody knows, if there are any.
    pub fn known(self) -> Result<Said> {
        match self.unknown.as_slice() {
            [] => Ok(self),
            many => Err(Error::config(format!("unknown mount option: {}", many.join(", ")))),
        }
    }

    fn take(&mut self, word: &str) -> Result<()> {
        let (key, value) = word.split_once('=').map_or((word, None), |(k, v)| (k, Some(v)));
        if let Some((o, _)) = MOUNT_OPTIONS.iter().find(|(_, w)| *w == word) {
            self.options.insert(*o);
            return Ok(());
        }
        if let Some((_, o)) = TAKEN_BACK.iter().find(|(w, _)| *w == word) {
            self.options.remove(o);
            return Ok(());
        }
        match (key, value) {
            ("config", Some(f)) if f.starts_with('/') => self.config = Some(f.into()),
            ("config", _) => return Err(Error::config("config= needs the absolute path of a site file")),
            ("timeout", v) => {
                let seconds = v.and_then(|v| v.parse().ok()).filter(|s| (1..=TIMEOUT_S_MAX).contains(s));
                let seconds = seconds.ok_or_else(|| {
                    Error::config(format!("timeout= needs a number of seconds, 1 to {TIMEOUT_S_MAX}"))
                })?;
                self.timeout = Duration::from_secs(seconds);
            }
            ("start", None) => self.start = true,
            ("nofail", None) => self.nofail = true,
            ("remount", None) => self.remount = true,
            // As mount(8) has it; a later word may take each back.
            ("user" | "users", _) => {
                self.options.extend([MountOption::NoExec, MountOption::NoSuid, MountOption::NoDev]);
            }
            ("group" | "owner", None) => self.options.extend([MountOption::NoSuid, MountOption::NoDev]),
            ("comment" | "uhelper" | "helper", Some(_)) => {}
            (w, _) if w.starts_with("x-") || w.starts_with("X-") => {}
            (w, None) if NOT_OURS.contains(&w) => {}
            _ => self.unknown.push(word.to_owned()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::mounter::words;

    #[test]
    fn the_later_word_holds() {
        let said = |list: &str| words(&parse(list).unwrap().options);
        assert_eq!(said("defaults,rw"), "");
        assert_eq!(said("rw,ro,noatime"), "ro,noatime");
        assert_eq!(said("ro,rw"), "");
        assert_eq!(said("user"), "nosuid,nodev,noexec");
        assert_eq!(said("rw,noexec,user=ann,exec"), "nosuid,nodev");
        assert_eq!(said("owner,suid"), "nodev");
        assert_eq!(said("sync,async,dirsync,allow_other,write_through"), "dirsync,allow_other,write_through");
    }

    #[test]
    fn what_is_not_for_the_mount_is_known_all_the_same() {
        let list =
            "_netdev,nofail,noauto,x-systemd.automount,x-systemd.requires=a@b.service,comment=x,X-mount.mkdir=0755";
        let s = parse(list).unwrap().known().unwrap();
        assert!(s.nofail && s.options.is_empty() && s.unknown.is_empty() && !s.start && s.timeout == TIMEOUT);
        let s = parse("start,timeout=7,config=/etc/kagami/a.toml").unwrap();
        assert!(s.start && s.timeout.as_secs() == 7);
        assert_eq!(s.config.as_deref(), Some(std::path::Path::new("/etc/kagami/a.toml")));
        assert_eq!(split(r#"ro,x-a="1,2",,rw"#), ["ro", r#"x-a="1,2""#, "rw"]);
    }

    #[test]
    fn what_nobody_knows_is_named() {
        let e = parse("ro,snapshot=3,bogus").unwrap().known().unwrap_err();
        assert!(e.msg.contains("snapshot=3, bogus"), "{e}");
        for wrong in ["timeout=", "timeout=0", "timeout=x", "timeout", "config=site.toml", "config"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
