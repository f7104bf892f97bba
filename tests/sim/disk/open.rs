//! Open file descriptions.

use super::inode::Id;
use super::log::Change;
use super::paths::{Follow, Found, Last, NAME_MAX};
use super::{At, Disk, Ofd, Res};
use std::sync::Arc;

/// What a description remembers.
#[derive(Clone, Copy, Debug)]
pub struct Open {
    pub id: Id,
    pub flags: i32,
    /// Offset in a file, cookie in a directory.
    pub pos: u64,
}

impl Open {
    pub fn is_path(&self) -> bool {
        self.flags & libc::O_PATH != 0
    }
    pub fn reads(&self) -> bool {
        !self.is_path() && self.flags & libc::O_ACCMODE != libc::O_WRONLY
    }
    pub fn writes(&self) -> bool {
        !self.is_path() && self.flags & libc::O_ACCMODE != libc::O_RDONLY
    }
}

/// All of them. A place that is used again has another generation in the upper half of its [`Ofd`].
#[derive(Default)]
pub struct Opens {
    places: Vec<(u32, Option<Open>)>,
    free: Vec<u32>,
}

impl Opens {
    pub fn get(&self, o: Ofd) -> Res<&Open> {
        let place = self.places.get(o.0 as u32 as usize).filter(|(generation, _)| u64::from(*generation) == o.0 >> 32);
        place.and_then(|(_, open)| open.as_ref()).ok_or(libc::EBADF)
    }

    pub fn get_mut(&mut self, o: Ofd) -> Res<&mut Open> {
        let place =
            self.places.get_mut(o.0 as u32 as usize).filter(|(generation, _)| u64::from(*generation) == o.0 >> 32);
        place.and_then(|(_, open)| open.as_mut()).ok_or(libc::EBADF)
    }

    fn add(&mut self, open: Open) -> Ofd {
        let at = self.free.pop().unwrap_or_else(|| {
            self.places.push((1, None));
            (self.places.len() - 1) as u32
        });
        let place = &mut self.places[at as usize];
        place.1 = Some(open);
        Ofd(u64::from(place.0) << 32 | u64::from(at))
    }

    fn remove(&mut self, o: Ofd) -> Option<Open> {
        self.get(o).ok()?;
        let place = self.places.get_mut(o.0 as u32 as usize)?;
        place.0 += 1;
        self.free.push(o.0 as u32);
        place.1.take()
    }

    /// True when some description reads from an object: then a fifo can be opened to write without waiting.
    fn has_reader(&self, id: Id) -> bool {
        self.places.iter().filter_map(|(_, open)| open.as_ref()).any(|open| open.id == id && open.reads())
    }

    /// All die at once.
    pub fn clear(&mut self) {
        self.free.clear();
        for (at, place) in self.places.iter_mut().enumerate().rev() {
            place.0 += 1;
            place.1 = None;
            self.free.push(at as u32);
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.places.len() - self.free.len()
    }
}

/// `O_TMPFILE` without the `O_DIRECTORY` that is part of it.
const TMPFILE_BIT: i32 = libc::O_TMPFILE & !libc::O_DIRECTORY;
/// All that counts for an `O_PATH` description.
const PATH_FLAGS: i32 = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
/// What only the opening heeds; F_GETFL does not show it.
const OPENING: i32 = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_NOCTTY | libc::O_CLOEXEC;

impl Disk {
    /// openat(2), and openat2(2) with RESOLVE_BENEATH when `beneath`. `mode` is that of a new file, umask applied.
    pub fn open(&mut self, at: At, flags: i32, mode: u32, beneath: bool) -> Res<Ofd> {
        let flags = if flags & libc::O_PATH != 0 { flags & PATH_FLAGS } else { flags };
        let dir = flags & libc::O_DIRECTORY != 0;
        if flags & TMPFILE_BIT != 0 {
            return self.open_tmpfile(at, flags, mode, beneath);
        }
        if flags & libc::O_CREAT != 0 {
            if dir {
                return Err(libc::EINVAL);
            }
            return self.open_or_make(at, flags, mode, beneath);
        }
        let follow = Follow::when(flags & libc::O_NOFOLLOW == 0);
        let id = self.find_beneath(at, follow, beneath)?;
        self.open_found(id, flags)
    }

    /// open(2) of what `/proc/self/fd/N` leads to: the same object with other flags.
    pub fn reopen(&mut self, o: Ofd, flags: i32) -> Res<Ofd> {
        let id = self.opens.get(o)?.id;
        let flags = if flags & libc::O_PATH != 0 { flags & PATH_FLAGS } else { flags };
        if flags & TMPFILE_BIT != 0 {
            return self.open_tmpfile(At::Ofd(o, b""), flags, 0o600, false);
        }
        if flags & libc::O_CREAT != 0 {
            if flags & libc::O_EXCL != 0 {
                return Err(libc::EEXIST);
            }
            if self.is_dir(id) {
                return Err(libc::EISDIR);
            }
        }
        self.open_found(id, flags)
    }

    fn open_or_make(&mut self, at: At, flags: i32, mode: u32, beneath: bool) -> Res<Ofd> {
        let exclusive = flags & libc::O_EXCL != 0;
        let follow = if exclusive || flags & libc::O_NOFOLLOW != 0 { Follow::Never } else { Follow::Make };
        let (dir, name) = match self.walk(at, follow, beneath)? {
            Found { last: Last::Name(_), slash: true, .. } => return Err(libc::EISDIR),
            Found { last: Last::Name(name), .. } if name.len() > NAME_MAX => return Err(libc::ENAMETOOLONG),
            Found { id: Some(_), .. } if exclusive => return Err(libc::EEXIST),
            Found { id: Some(id), .. } if self.is_dir(id) => return Err(libc::EISDIR),
            Found { id: Some(id), .. } => return self.open_found(id, flags),
            Found { dir, last: Last::Name(name), .. } => (dir, Arc::from(name)),
            _ => return Err(libc::EISDIR),
        };
        let id = self.make_object(dir, name, libc::S_IFREG | mode & 0o7777, 0, b"")?;
        self.table.get_mut(id).opens += 1;
        Ok(self.opens.add(Open { id, flags: flags & !OPENING, pos: 0 }))
    }

    fn open_tmpfile(&mut self, at: At, flags: i32, mode: u32, beneath: bool) -> Res<Ofd> {
        if flags & libc::O_DIRECTORY == 0 || flags & libc::O_ACCMODE == libc::O_RDONLY {
            return Err(libc::EINVAL);
        }
        let follow = Follow::when(flags & libc::O_NOFOLLOW == 0);
        let dir = self.find_beneath(at, follow, beneath)?;
        if !self.is_dir(dir) {
            return Err(libc::ENOTDIR);
        }
        let id = self.new_object(dir, b"")?;
        let meta = self.new_meta(libc::S_IFREG | mode & 0o7777, self.group_in(dir), 0);
        self.change(vec![Change::Make { id, meta: Box::new(meta), parent: None }]);
        let i = self.table.get_mut(id);
        i.linkable = flags & libc::O_EXCL == 0;
        i.opens += 1;
        Ok(self.opens.add(Open { id, flags: flags & !OPENING, pos: 0 }))
    }

    fn open_found(&mut self, id: Id, flags: i32) -> Res<Ofd> {
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let cuts = flags & libc::O_TRUNC != 0;
        let kind = self.table.live(id).meta.kind();
        if flags & libc::O_DIRECTORY != 0 && kind != libc::S_IFDIR {
            return Err(libc::ENOTDIR);
        }
        if flags & libc::O_PATH == 0 {
            match kind {
                libc::S_IFLNK => return Err(libc::ELOOP),
                libc::S_IFDIR if writes || cuts => return Err(libc::EISDIR),
                libc::S_IFSOCK | libc::S_IFCHR | libc::S_IFBLK => return Err(libc::ENXIO),
                libc::S_IFIFO if flags & libc::O_ACCMODE == libc::O_WRONLY && !self.opens.has_reader(id) => {
                    return Err(libc::ENXIO);
                }
                libc::S_IFREG if cuts => self.truncate_id(id, 0)?,
                _ => {}
            }
        }
        self.table.get_mut(id).opens += 1;
        Ok(self.opens.add(Open { id, flags: flags & !OPENING, pos: 0 }))
    }

    /// The last descriptor of a description is closed. An object without names and descriptions goes.
    pub fn close(&mut self, o: Ofd) {
        let Some(open) = self.opens.remove(o) else { return };
        let i = self.table.get_mut(open.id);
        i.opens -= 1;
        self.drop_unreached(open.id);
    }

    /// Ends an object that neither a name nor a description reaches.
    pub(super) fn drop_unreached(&mut self, id: Id) {
        let i = self.table.get(id);
        if i.opens == 0 && i.live.as_ref().is_some_and(|s| s.meta.nlink == 0) {
            self.change(vec![Change::Gone { id }]);
        }
    }

    /// What F_GETFL tells of a description, with O_PATH; 0 for one that is gone.
    pub fn flags(&self, o: Ofd) -> i32 {
        self.opens.get(o).map_or(0, |open| open.flags)
    }

    /// F_SETFL: O_APPEND and O_NONBLOCK are what can be changed.
    pub fn set_flags(&mut self, o: Ofd, flags: i32) -> Res<()> {
        const CHANGEABLE: i32 = libc::O_APPEND | libc::O_NONBLOCK;
        let open = self.opens.get_mut(o)?;
        open.flags = open.flags & !CHANGEABLE | flags & CHANGEABLE;
        Ok(())
    }

    /// The object of a description and what it is: for locks and mounts, which belong to objects.
    pub fn ino(&self, o: Ofd) -> Res<super::Ino> {
        Ok(self.table.get(self.opens.get(o)?.id).number)
    }

    /// Descriptions that are open.
    pub fn open_count(&self) -> usize {
        self.opens.count()
    }
}
