//! The user database.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Largest record of the user database, bytes.
const RECORD_BYTES_MAX: usize = 1 << 20;
/// Most groups one user may be in (NGROUPS_MAX).
const GROUPS_MAX: usize = 65536;
/// The shell of a user whose record names none.
const SHELL: &str = "/bin/sh";

/// A user with the groups it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its name.
    pub name: OsString,
    /// User id.
    pub uid: u32,
    /// Its first group.
    pub gid: u32,
    /// All its groups.
    pub groups: Vec<u32>,
    /// Its home directory.
    pub home: PathBuf,
    /// Its login shell.
    pub shell: PathBuf,
}

/// Looks a user up by name; `None` if there is none.
pub fn by_name(name: &str) -> io::Result<Option<User>> {
    let name = CString::new(name).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: the name is a string that ends; the rest is what `look_up` promises.
    look_up(|rec, text, len, found| unsafe { libc::getpwnam_r(name.as_ptr(), rec, text, len, found) })
}

/// The user this process acts for; `None` if the database has none of that number.
pub fn own() -> io::Result<Option<User>> {
    // SAFETY: what `look_up` promises.
    look_up(|rec, text, len, found| unsafe { libc::getpwuid_r(libc::geteuid(), rec, text, len, found) })
}

/// Calls a look-up with a record, a buffer for its texts and the buffer's length, and a place for the result, all of which
/// live through the call; again with more room when it wants that.
fn look_up(
    call: impl Fn(*mut libc::passwd, *mut libc::c_char, usize, *mut *mut libc::passwd) -> libc::c_int,
) -> io::Result<Option<User>> {
    let mut buf = vec![0 as libc::c_char; 1024];
    loop {
        let mut rec = MaybeUninit::<libc::passwd>::uninit();
        let mut found = std::ptr::null_mut();
        match call(rec.as_mut_ptr(), buf.as_mut_ptr(), buf.len(), &raw mut found) {
            0 if found.is_null() => return Ok(None),
            0 => {
                // SAFETY: filled by the successful call.
                let rec = unsafe { rec.assume_init_ref() };
                // SAFETY: each is null or a string that ends within the buffer, which lives on.
                let text = |p: *const libc::c_char| match p.is_null() {
                    true => c"",
                    false => unsafe { CStr::from_ptr(p) },
                };
                let own = |p| OsString::from_vec(text(p).to_bytes().to_vec());
                let shell = Some(own(rec.pw_shell)).filter(|s| !s.is_empty()).unwrap_or_else(|| SHELL.into());
                return Ok(Some(User {
                    groups: groups(text(rec.pw_name), rec.pw_gid)?,
                    name: own(rec.pw_name),
                    uid: rec.pw_uid,
                    gid: rec.pw_gid,
                    home: own(rec.pw_dir).into(),
                    shell: shell.into(),
                }));
            }
            libc::ERANGE if buf.len() < RECORD_BYTES_MAX => buf.resize(buf.len() * 4, 0),
            // What the sources of the user database say when they know no such user.
            libc::ENOENT | libc::ESRCH => return Ok(None),
            e => return Err(io::Error::from_raw_os_error(e)),
        }
    }
}

fn groups(name: &CStr, gid: u32) -> io::Result<Vec<u32>> {
    let mut list = vec![0; 64];
    loop {
        let mut n = list.len() as libc::c_int;
        // SAFETY: `n` is the length of the list and tells how many there are.
        let r = unsafe { libc::getgrouplist(name.as_ptr(), gid, list.as_mut_ptr(), &mut n) };
        if r >= 0 {
            list.truncate(n as usize);
            return Ok(list);
        }
        if list.len() >= GROUPS_MAX {
            return Err(io::Error::from_raw_os_error(libc::E2BIG));
        }
        list.resize(list.len() * 4, 0);
    }
}

impl User {
    /// The variables that a login sets for it, with their values.
    pub fn variables(&self) -> [(&'static str, &OsStr); 4] {
        let (home, shell) = (self.home.as_os_str(), self.shell.as_os_str());
        [("HOME", home), ("USER", &self.name), ("LOGNAME", &self.name), ("SHELL", shell)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_user_is_found_by_number_and_by_name() {
        // A user without a record has none.
        let Some(own) = own().unwrap() else { return };
        assert!(own.home.is_absolute() && own.shell.is_absolute() && own.groups.contains(&own.gid), "{own:?}");
        assert_eq!(by_name(own.name.to_str().unwrap()).unwrap().as_ref(), Some(&own));
        if crate::os::sys::ids().0 == 0 {
            assert_eq!((own.uid, own.variables()[1]), (0, ("USER", OsStr::new("root"))));
        }
        assert_eq!(by_name("no-such-user-here").unwrap(), None);
    }
}
