//! `kagami config check`: what a right site file may still get wrong on this machine.

use super::config::{Config, LimitsConfig};
use crate::os::sys;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// One line of /proc/self/mountinfo.
struct MountPoint {
    dir: PathBuf,
    fstype: String,
    source: String,
    options: String,
}

/// Filesystems that keep their own structure over a loss of power (design: "Power-loss promises").
const JOURNALING: &[&str] = &["ext4", "ext3", "xfs", "btrfs", "f2fs", "bcachefs", "zfs", "jfs", "reiserfs"];

/// Undoes the octal escapes of mountinfo.
fn unescape(s: &str) -> String {
    let mut out = Vec::new();
    let b = s.as_bytes();
    let mut i = 0;
    while let Some(&c) = b.get(i) {
        let code = s.get(i + 1..i + 4).and_then(|t| u8::from_str_radix(t, 8).ok());
        match (c, code) {
            (b'\\', Some(v)) => {
                out.push(v);
                i += 4;
            }
            _ => {
                out.push(c);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn parse_mountinfo(text: &str) -> Vec<MountPoint> {
    let parse = |line: &str| -> Option<MountPoint> {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let fstype = right.next()?.to_owned();
        let source = unescape(right.next()?);
        let options = right.next().unwrap_or("").to_owned();
        Some(MountPoint { dir: unescape(left.split(' ').nth(4)?).into(), fstype, source, options })
    };
    text.lines().filter_map(parse).collect()
}

/// The mount that `path` lies on: the longest one above it, of several at one directory the last.
fn mount_of<'a>(mounts: &'a [MountPoint], path: &Path) -> Option<&'a MountPoint> {
    mounts.iter().filter(|m| path.starts_with(&m.dir)).max_by_key(|m| m.dir.as_os_str().len())
}

/// True when kagami itself has something mounted at `dir`.
pub fn kagami_mounted_at(dir: &Path) -> bool {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    parse_mountinfo(&text).iter().any(|m| m.dir == dir && is_kagami(m))
}

/// The mounts of any filesystem at or below `dir`, deepest first.
pub fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut v: Vec<PathBuf> =
        parse_mountinfo(&text).into_iter().map(|m| m.dir).filter(|d| d.starts_with(dir)).collect();
    v.reverse();
    v
}

fn is_kagami(m: &MountPoint) -> bool {
    m.fstype.starts_with("fuse") && (m.source.starts_with("kagami") || m.fstype == "fuse.kagami")
}

/// The nearest part of `path` that exists, without symlinks.
fn existing(path: &Path) -> PathBuf {
    path.ancestors().find_map(|p| p.canonicalize().ok()).unwrap_or_else(|| PathBuf::from("/"))
}

/// True when a program of this name is in `$PATH` or where distributions keep it.
pub fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    dirs.extend(["/usr/bin", "/bin", "/usr/sbin", "/sbin"].map(PathBuf::from));
    dirs.iter().any(|d| d.join(name).is_file())
}

/// What is missing for mounting here, if anything.
pub fn fuse_missing() -> Option<String> {
    if !Path::new("/dev/fuse").exists() {
        return Some(
            "/dev/fuse is missing: load the module (`modprobe fuse`); in a container pass --device /dev/fuse".into(),
        );
    }
    let root = crate::os::sys::ids().0 == 0;
    if !root && !has_program("fusermount3") {
        return Some("fusermount3 is missing: install the package fuse3, or run the node as root".into());
    }
    if let Err(e) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        return Some(format!("/dev/fuse cannot be opened ({e}): mode 0666 is usual for it"));
    }
    None
}

/// Warnings about this machine, one sentence each; empty when all is well.
pub fn warnings(c: &Config) -> Vec<String> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounts = parse_mountinfo(&text);
    let mut out: Vec<String> = Vec::new();
    for g in &c.groups {
        for leg in g.volumes.iter().flat_map(|v| &v.legs) {
            region_warnings(&mounts, leg, &mut out);
        }
        for lead in g.volumes.first().iter().flat_map(|v| &v.legs) {
            room_warning(&c.limits, lead, &mut out);
        }
        if g.legs() > 1 {
            same_device(&mounts, g, &mut out);
        }
        if g.pairs.is_empty() {
            out.push(format!("group {} has no pair: nothing of it is kept at another site", g.name));
        }
    }
    out.extend(fuse_missing());
    if let Err(e) =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000))
    {
        out.push(format!(
            "the clock is wrong: it is {} days before this program was written",
            e.duration().as_secs() / 86400
        ));
    }
    peer_warnings(c, &mut out);
    out
}

fn region_warnings(mounts: &[MountPoint], leg: &Path, out: &mut Vec<String>) {
    let Some(m) = mount_of(mounts, &existing(leg)) else { return };
    let at = leg.display();
    if is_kagami(m) {
        out.push(format!(
            "region {at} lies in a kagami mount ({}): it would wait for itself; move it",
            m.dir.display()
        ));
    } else if !JOURNALING.contains(&m.fstype.as_str()) {
        out.push(format!(
            "region {at} lies on {}, which keeps no journal: what is promised over a loss of power does not hold there",
            m.fstype
        ));
    } else if m.options.split(',').any(|o| matches!(o, "nobarrier" | "barrier=0" | "noload" | "norecovery")) {
        out.push(format!("region {at}: {} is mounted without barriers or journal ({})", m.dir.display(), m.options));
    } else if m.options.split(',').any(|o| o == "ro") {
        out.push(format!("region {at}: {} is mounted read-only", m.dir.display()));
    }
}

/// The queues of a group lie in its lead region: what they may grow to should be there.
fn room_warning(l: &LimitsConfig, lead: &Path, out: &mut Vec<String>) {
    let Ok(s) = std::fs::File::open(existing(lead)).and_then(|d| sys::statfs(&d)) else { return };
    let (need, free) = (l.journal_bytes + l.spool_bytes.max(l.log_bytes), s.bavail.saturating_mul(s.frsize));
    if free < need {
        out.push(format!(
            "region {}: {} MiB are free, and journal_mib with spool_mib (as primary) or log_mib (as secondary) may take {} MiB",
            lead.display(),
            free >> 20,
            need >> 20
        ));
    }
}

fn same_device(mounts: &[MountPoint], g: &super::config::GroupConfig, out: &mut Vec<String>) {
    for v in &g.volumes {
        let sources: Vec<&str> = v
            .legs
            .iter()
            .take(v.drives)
            .filter_map(|l| mount_of(mounts, &existing(l)))
            .map(|m| m.source.as_str())
            .collect();
        if sources.windows(2).any(|w| w.first() == w.last()) {
            out.push(format!("volume {}: two legs lie on one device, and are lost together with it", v.name));
        }
    }
}

fn peer_warnings(c: &Config, out: &mut Vec<String>) {
    let used = |site: &str| c.groups.iter().any(|g| g.pairs_of(&c.node.site).any(|(_, o)| o == site));
    for p in c.peers.iter().filter(|p| used(&p.site)) {
        let tcp = p.addr.as_ref().is_some_and(|a| !a.starts_with("unix:"));
        if tcp && p.key.is_none() && !super::config::peers_file(&c.node.state_dir).exists() {
            out.push(format!(
                "peer {} has no key yet: `kagami peer invite` there and `kagami peer accept TOKEN` here",
                p.site
            ));
        }
        if p.addr.is_none() && c.node.listen.is_empty() {
            out.push(format!("peer {} has no addr and this node has no listen: neither can reach the other", p.site));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines_are_read_with_their_escapes() {
        let m = parse_mountinfo(
            "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n40 22 0:40 / /srv/my\\040lab rw - fuse.kagami kagami:lab rw\n",
        );
        assert_eq!(m.len(), 2);
        assert_eq!(m[1].dir, Path::new("/srv/my lab"));
        assert!(is_kagami(&m[1]) && !is_kagami(&m[0]));
        assert_eq!(mount_of(&m, Path::new("/srv/my lab/x")).map(|m| m.fstype.as_str()), Some("fuse.kagami"));
        assert_eq!(mount_of(&m, Path::new("/srv")).map(|m| m.fstype.as_str()), Some("ext4"));
    }
}
