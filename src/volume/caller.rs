//! Who asks: for owners of new files and for the rules of setuid and setgid.

/// The process behind a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Process id, 0 if not known.
    pub pid: u32,
    /// Its umask, for operations that make something.
    pub umask: u32,
}

impl Caller {
    /// True when the caller may keep setuid and setgid bits of what it changes (CAP_FSETID, taken to be root's).
    pub fn keeps_setid(&self) -> bool {
        self.uid == 0
    }

    /// True when the caller is in a group, as far as /proc tells.
    pub fn in_group(&self, gid: u32) -> bool {
        if self.gid == gid || self.uid == 0 {
            return true;
        }
        let Ok(status) = std::fs::read_to_string(format!("/proc/{}/status", self.pid)) else { return false };
        let mut groups = status.lines().filter_map(|l| l.strip_prefix("Groups:")).flat_map(str::split_whitespace);
        groups.any(|g| g.parse() == Ok(gid))
    }

    /// Permission bits of a file after this caller changed its content: setuid goes; setgid goes where it means
    /// "runs as the group", and otherwise for strangers to the group.
    pub fn strip(&self, perm: u32, gid: u32) -> u32 {
        if self.keeps_setid() || perm & 0o6000 == 0 {
            return perm;
        }
        let mut p = perm & !0o4000;
        if p & 0o2010 == 0o2010 || (p & 0o2000 != 0 && !self.in_group(gid)) {
            p &= !0o2000;
        }
        p
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setid_bits_go_when_others_write() {
        let root = Caller::default();
        let user = Caller { uid: 1000, gid: 1000, pid: 0, umask: 0 };
        assert_eq!(root.strip(0o6755, 7), 0o6755);
        assert_eq!(user.strip(0o6755, 7), 0o755);
        assert_eq!(user.strip(0o2745, 7), 0o745);
        assert_eq!(user.strip(0o2745, 1000), 0o2745);
        assert_eq!(user.strip(0o644, 7), 0o644);
    }
}
