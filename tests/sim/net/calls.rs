//! Calls on sockets, which wait for the network.

use super::sock::Role;
use super::{EndId, ListenerKey, Net, SockId, What};
use crate::files::{self, Kind};
use crate::sched::{Key, Res, block, clock, world};
use std::ffi::c_int;

/// How long a connection is tried when nothing answers and no time was set, ns: what TCP does.
const CONNECT_NS: u64 = 127_000_000_000;

/// Uses the network, then has the scheduler do what came of it.
fn net<R>(f: impl FnOnce(&mut Net) -> R) -> R {
    let w = world();
    w.net.begin(w.now);
    let r = f(&mut w.net);
    w.net_effects();
    r
}

/// When a wait of `ns` of this machine's time ends; 0: never.
fn until(ns: u64) -> Option<u64> {
    (ns > 0).then(|| clock::after_ns(ns))
}

fn connected(s: SockId) -> Res<EndId> {
    match world().net.sock(s)?.role {
        Role::Connected(e) => Ok(e),
        Role::Listens(_) => Err(libc::EINVAL),
        _ => Err(libc::ENOTCONN),
    }
}

/// What can be received now; `None`: nothing yet.
fn receive_now(n: &mut Net, id: EndId, buf: &mut [u8], peek: bool) -> Option<Res<i64>> {
    let e = n.ends.get_mut(&id)?;
    let have = e.incoming.arrived.len().min(buf.len());
    if have > 0 || buf.is_empty() {
        for (to, from) in buf.iter_mut().zip(&e.incoming.arrived) {
            *to = *from;
        }
        if !peek {
            e.incoming.arrived.drain(..have);
            n.out.wake.push(Key::Writable(Net::peer(id)));
        }
        return Some(Ok(have as i64));
    }
    if std::mem::take(&mut e.reset) {
        return Some(Err(libc::ECONNRESET));
    }
    (e.incoming.ended || e.shut_read).then_some(Ok(0))
}

/// recv(2).
pub fn recv(s: SockId, buf: &mut [u8], flags: c_int) -> Res<i64> {
    let id = connected(s)?;
    let sock = world().net.sock(s)?;
    let wait = !sock.nonblocking && flags & libc::MSG_DONTWAIT == 0;
    let end = until(sock.receive_ns);
    loop {
        if let Some(r) = net(|n| receive_now(n, id, buf, flags & libc::MSG_PEEK != 0)) {
            return r;
        }
        if !wait || !block(&[Key::Readable(id)], end, "receives") {
            return Err(libc::EAGAIN);
        }
    }
}

/// Sends as much as there is room for; `None`: there is none.
fn send_now(n: &mut Net, id: EndId, buf: &[u8]) -> Option<Res<i64>> {
    let e = n.ends.get_mut(&id)?;
    if e.shut_write || e.peer_gone {
        return Some(Err(if std::mem::take(&mut e.reset) { libc::ECONNRESET } else { libc::EPIPE }));
    }
    let room = n.room.saturating_sub(n.ends.get(&Net::peer(id))?.incoming.held());
    if room == 0 && !buf.is_empty() {
        return None;
    }
    let mut bytes = buf.get(..room.min(buf.len())).unwrap_or_default().to_vec();
    let len = bytes.len() as i64;
    if len > 0 && !n.misfortune(id, &mut bytes) {
        n.put(id, What::Bytes(bytes));
    }
    Some(Ok(len))
}

/// send(2): everything, unless it must not wait or its time is over.
pub fn send(s: SockId, buf: &[u8], flags: c_int) -> Res<i64> {
    let id = connected(s)?;
    let sock = world().net.sock(s)?;
    let wait = !sock.nonblocking && flags & libc::MSG_DONTWAIT == 0;
    let end = until(sock.send_ns);
    let mut done = 0;
    loop {
        let rest = buf.get(done..).unwrap_or_default();
        match net(|n| send_now(n, id, rest)) {
            Some(Ok(k)) => {
                done += k as usize;
                if done >= buf.len() {
                    return Ok(done as i64);
                }
            }
            Some(Err(e)) => return if done > 0 { Ok(done as i64) } else { Err(e) },
            None if !wait || !block(&[Key::Writable(id)], end, "sends") => {
                return if done > 0 { Ok(done as i64) } else { Err(libc::EAGAIN) };
            }
            None => {}
        }
    }
}

/// socket(2): stream sockets of the Unix family are all there is.
pub fn socket(family: c_int, kind: c_int) -> Res<i64> {
    if family != libc::AF_UNIX {
        return Err(libc::EAFNOSUPPORT);
    }
    if kind & !(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) != libc::SOCK_STREAM {
        return Err(libc::EPROTONOSUPPORT);
    }
    let (w, m) = (world(), files::here());
    let s = w.net.add(m, Role::New, kind & libc::SOCK_NONBLOCK != 0);
    Ok(w.table.add(m, Kind::Socket(s)).into())
}

/// socketpair(2).
pub fn pair(kind: c_int) -> Res<[c_int; 2]> {
    let (w, m) = (world(), files::here());
    let (a, b) = w.net.add_pair(m, kind & libc::SOCK_NONBLOCK != 0);
    Ok([w.table.add(m, Kind::Socket(a)), w.table.add(m, Kind::Socket(b))])
}

/// The socket of a descriptor.
pub fn sock_at(fd: c_int) -> Res<SockId> {
    match files::open_at(fd)?.kind {
        Kind::Socket(s) => Ok(s),
        _ => Err(libc::ENOTSOCK),
    }
}

/// bind(2) to a path: makes the socket's file.
pub fn bind(s: SockId, path: &[u8]) -> Res<i64> {
    let p = files::names::Path(libc::AT_FDCWD, path);
    match files::names::mknod(p, libc::S_IFSOCK | 0o777, 0) {
        Err(libc::EEXIST) => return Err(libc::EADDRINUSE),
        r => r?,
    };
    let key = key_of(path)?;
    let sock = world().net.sock(s)?;
    (sock.role, sock.path) = (Role::Bound(key), path.to_vec());
    Ok(0)
}

/// The socket file at a path.
fn key_of(path: &[u8]) -> Res<ListenerKey> {
    let files::Place::Disk { machine, disk, at, magic } = files::resolve(libc::AT_FDCWD, path)? else {
        return Err(libc::ECONNREFUSED);
    };
    let (_, a) = files::io::stat_at(machine, disk, at, true)?;
    if magic || a.mode & libc::S_IFMT != libc::S_IFSOCK {
        return Err(libc::ECONNREFUSED);
    }
    Ok((machine, disk, a.ino))
}

/// The machine of a path, whatever is there.
fn machine_of(path: &[u8]) -> Res<usize> {
    match files::resolve(libc::AT_FDCWD, path)? {
        files::Place::Disk { machine, .. } => Ok(machine),
        files::Place::Kernel => Err(libc::ENOENT),
    }
}

/// connect(2). To another machine it takes the time of the lines there and back, and waits while they are cut.
pub fn connect(s: SockId, path: &[u8]) -> Res<i64> {
    let sock = world().net.sock(s)?;
    if !matches!(sock.role, Role::New) {
        return Err(libc::EISCONN);
    }
    let (here, wait, limited) = (sock.machine, !sock.nonblocking, sock.send_ns > 0);
    let end = until(if limited { sock.send_ns } else { CONNECT_NS });
    let late = if limited || !wait { libc::EAGAIN } else { libc::ETIMEDOUT };
    let there = machine_of(path)?;
    loop {
        let w = world();
        if w.net.is_apart(here, there) {
            if !wait || !block(&[Key::Link], end, "connects over a line that is cut") {
                return Err(late);
            }
            continue;
        }
        if here != there {
            let trip = net(|n| n.round_trip(here, there));
            if trip > 0 {
                let at = world().now + trip;
                block(&[], Some(end.map_or(at, |e| e.min(at))), "connects");
                if end.is_some_and(|e| world().now >= e) {
                    return Err(late);
                }
            }
        }
        let key = key_of(path)?;
        let w = world();
        if w.net.is_apart(here, there) {
            continue;
        }
        if !w.net.is_listening(key) || w.net.line(here, there).refuse {
            return Err(libc::ECONNREFUSED);
        }
        if w.net.has_room(key) {
            net(|n| n.establish(s, here, key));
            return Ok(0);
        }
        let listener = w.net.listeners[&key].sock;
        if !wait || !block(&[Key::Backlog(listener)], end, "connects to a busy listener") {
            return Err(late);
        }
    }
}

impl Net {
    /// The time of the lines between two machines, there and back, ns.
    fn round_trip(&mut self, a: usize, b: usize) -> u64 {
        let (there, back) = (self.line(a, b), self.line(b, a));
        there.delay(0, &mut self.rng).line + back.delay(0, &mut self.rng).line
    }

    fn establish(&mut self, s: SockId, here: usize, key: ListenerKey) {
        let (mine, theirs) = self.connect_ends(here, key.0);
        if let Some(e) = self.ends.get_mut(&mine) {
            e.listener = Some(key);
        }
        let policy = self.line(here, key.0);
        self.draw_replay(mine, &policy);
        if let Some(sock) = self.socks.get_mut(&s) {
            sock.role = Role::Connected(mine);
        }
        self.enqueue(key, theirs);
    }
}

/// accept(2).
pub fn accept(s: SockId, flags: c_int) -> Res<i64> {
    let sock = world().net.sock(s)?;
    let Role::Listens(key) = sock.role else { return Err(libc::EINVAL) };
    let (wait, end) = (!sock.nonblocking, until(sock.receive_ns));
    loop {
        let w = world();
        let Some(l) = w.net.listeners.get_mut(&key) else { return Err(libc::EINVAL) };
        if l.shut {
            return Err(libc::EINVAL);
        }
        if let Some(e) = l.queue.pop_front() {
            let m = files::here();
            let new = w.net.add(m, Role::Connected(e), flags & libc::SOCK_NONBLOCK != 0);
            w.wake(Key::Backlog(s), 1);
            return Ok(w.table.add(m, Kind::Socket(new)).into());
        }
        if !wait || !block(&[Key::Accept(s)], end, "accepts") {
            return Err(libc::EAGAIN);
        }
    }
}

/// listen(2).
pub fn listen(s: SockId) -> Res<i64> {
    net(|n| n.listen(s)).map(|()| 0)
}

/// shutdown(2).
pub fn shutdown(s: SockId, how: c_int) -> Res<i64> {
    net(|n| n.shutdown(s, how)).map(|()| 0)
}

/// What a socket can do now: bits of poll(2).
pub fn readiness(s: SockId) -> Res<(i16, [Key; 2])> {
    let n = &mut world().net;
    match n.sock(s)?.role {
        Role::Listens(key) => {
            let ready = n.listeners.get(&key).is_none_or(|l| l.shut || !l.queue.is_empty());
            Ok((if ready { libc::POLLIN } else { 0 }, [Key::Accept(s), Key::Never]))
        }
        Role::Connected(id) => {
            let Some(e) = n.ends.get(&id) else { return Ok((libc::POLLHUP, [Key::Never; 2])) };
            let room = n.ends.get(&Net::peer(id)).is_none_or(|p| p.incoming.held() < n.room);
            let mut bits = 0;
            if !e.incoming.arrived.is_empty() || e.incoming.ended || e.shut_read || e.reset {
                bits |= libc::POLLIN;
            }
            if room || e.peer_gone || e.shut_write {
                bits |= libc::POLLOUT;
            }
            if e.peer_gone {
                bits |= libc::POLLHUP;
            }
            Ok((bits, [Key::Readable(id), Key::Writable(id)]))
        }
        _ => Ok((libc::POLLHUP, [Key::Never; 2])),
    }
}

/// poll(2) of descriptors that are all ours.
pub fn poll(fds: &mut [libc::pollfd], ms: c_int) -> Res<i64> {
    let end = u64::try_from(ms).ok().map(|ms| clock::after_ns(ms * 1_000_000));
    loop {
        let mut keys = Vec::new();
        let mut ready = 0;
        for f in &mut *fds {
            let (bits, k) = match files::open_at(f.fd)?.kind {
                Kind::Socket(s) => readiness(s)?,
                Kind::Silent => (0, [Key::Never; 2]),
                _ => (libc::POLLIN | libc::POLLOUT, [Key::Never; 2]),
            };
            f.revents = bits & (f.events | libc::POLLHUP);
            ready += i64::from(f.revents != 0);
            keys.extend(k);
        }
        if ready > 0 || ms == 0 || !block(&keys, end, "polls") {
            return Ok(ready);
        }
    }
}
