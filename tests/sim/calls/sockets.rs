//! Functions of sockets.

use super::calls;
use crate::files::{io, is_ours};
use crate::net::calls as net;
use crate::sched::{Res, call, world};
use std::ffi::{c_int, c_void};

fn int(r: i64) -> Option<c_int> {
    Some(r as c_int)
}

/// The path of an address.
///
/// # Safety
/// `a` is an address of `len` bytes.
unsafe fn path<'a>(a: *const libc::sockaddr, len: libc::socklen_t) -> Res<&'a [u8]> {
    let head = std::mem::offset_of!(libc::sockaddr_un, sun_path);
    // SAFETY: as our caller promises.
    let (family, bytes) = unsafe { ((*a).sa_family, io::bytes(a.cast(), len as usize)) };
    let p = bytes.get(head..).unwrap_or_default();
    let p = p.split(|b| *b == 0).next().unwrap_or_default();
    if c_int::from(family) == libc::AF_UNIX && !p.is_empty() { Ok(p) } else { Err(libc::EINVAL) }
}

/// Writes the address of a socket of a path.
///
/// # Safety
/// As for getsockname(2).
unsafe fn put_address(p: &[u8], to: *mut libc::sockaddr, len: *mut libc::socklen_t) {
    if to.is_null() || len.is_null() {
        return;
    }
    let head = std::mem::offset_of!(libc::sockaddr_un, sun_path);
    // SAFETY: plain data; what is copied fits what the caller gave.
    unsafe {
        let mut a: libc::sockaddr_un = std::mem::zeroed();
        a.sun_family = libc::AF_UNIX as _;
        for (to, from) in a.sun_path.iter_mut().zip(p) {
            *to = *from as _;
        }
        let whole = if p.is_empty() { head } else { head + p.len() + 1 };
        let n = whole.min(*len as usize);
        to.cast::<u8>().copy_from_nonoverlapping((&raw const a).cast(), n);
        *len = whole as u32;
    }
}

calls! {
    fn socket(family: c_int, kind: c_int, protocol: c_int) -> c_int {
        int(call("socket", || net::socket(family, kind)))
    }
    fn socketpair(family: c_int, kind: c_int, protocol: c_int, to: *mut c_int) -> c_int {
        int(call("socketpair", || {
            let [a, b] = net::pair(kind)?;
            *to = a;
            *to.add(1) = b;
            Ok(0)
        }))
    }
    fn bind(fd: c_int, a: *const libc::sockaddr, len: libc::socklen_t) -> c_int {
        if is_ours(fd) { int(call("bind", || net::bind(net::sock_at(fd)?, path(a, len)?))) } else { None }
    }
    fn listen(fd: c_int, backlog: c_int) -> c_int {
        if is_ours(fd) { int(call("listen", || net::listen(net::sock_at(fd)?))) } else { None }
    }
    fn connect(fd: c_int, a: *const libc::sockaddr, len: libc::socklen_t) -> c_int {
        if is_ours(fd) { int(call("connect", || net::connect(net::sock_at(fd)?, path(a, len)?))) } else { None }
    }
    fn accept4(fd: c_int, a: *mut libc::sockaddr, len: *mut libc::socklen_t, flags: c_int) -> c_int {
        if is_ours(fd) {
            int(call("accept", || {
                let new = net::accept(net::sock_at(fd)?, flags)?;
                put_address(b"", a, len);
                Ok(new)
            }))
        } else { None }
    }
    fn send(fd: c_int, buf: *const c_void, n: usize, flags: c_int) -> isize {
        if is_ours(fd) { Some(call("send", || io::write(fd, io::bytes(buf, n), flags)) as isize) } else { None }
    }
    fn recv(fd: c_int, buf: *mut c_void, n: usize, flags: c_int) -> isize {
        if is_ours(fd) { Some(call("recv", || io::read(fd, io::room(buf, n), flags)) as isize) } else { None }
    }
    fn sendmsg(fd: c_int, m: *const libc::msghdr, flags: c_int) -> isize {
        if is_ours(fd) {
            let m = &*m;
            let mut all = Vec::new();
            for i in 0..m.msg_iovlen {
                let v = *m.msg_iov.add(i);
                all.extend_from_slice(io::bytes(v.iov_base, v.iov_len));
            }
            Some(call("sendmsg", || io::write(fd, &all, flags)) as isize)
        } else { None }
    }
    fn recvmsg(fd: c_int, m: *mut libc::msghdr, flags: c_int) -> isize {
        if is_ours(fd) {
            let m = &mut *m;
            m.msg_controllen = 0;
            let f = |p, n| io::read(fd, io::room(p, n), flags);
            Some(call("recvmsg", || io::each(m.msg_iov, m.msg_iovlen, f)) as isize)
        } else { None }
    }
    fn shutdown(fd: c_int, how: c_int) -> c_int {
        if is_ours(fd) { int(call("shutdown", || net::shutdown(net::sock_at(fd)?, how))) } else { None }
    }
    fn poll(fds: *mut libc::pollfd, n: libc::nfds_t, ms: c_int) -> c_int {
        let all = if n == 0 { &mut [] } else { std::slice::from_raw_parts_mut(fds, n as usize) };
        if all.iter().all(|f| is_ours(f.fd)) { int(call("poll", || net::poll(all, ms))) } else { None }
    }
    fn setsockopt(fd: c_int, level: c_int, name: c_int, v: *const c_void, n: libc::socklen_t) -> c_int {
        if is_ours(fd) { int(call("setsockopt", || set_option(fd, level, name, io::bytes(v, n as usize)))) } else { None }
    }
    fn getsockopt(fd: c_int, level: c_int, name: c_int, v: *mut c_void, n: *mut libc::socklen_t) -> c_int {
        if is_ours(fd) {
            int(call("getsockopt", || {
                let value = option(fd, level, name)?;
                let room = io::room(v, *n as usize);
                let k = value.len().min(room.len());
                room[..k].copy_from_slice(&value[..k]);
                *n = k as u32;
                Ok(0)
            }))
        } else { None }
    }
    fn getsockname(fd: c_int, a: *mut libc::sockaddr, len: *mut libc::socklen_t) -> c_int {
        if is_ours(fd) {
            int(call("getsockname", || {
                put_address(&world().net.sock(net::sock_at(fd)?)?.path, a, len);
                Ok(0)
            }))
        } else { None }
    }
    fn getpeername(fd: c_int, a: *mut libc::sockaddr, len: *mut libc::socklen_t) -> c_int {
        if is_ours(fd) {
            int(call("getpeername", || {
                net::sock_at(fd)?;
                put_address(b"", a, len);
                Ok(0)
            }))
        } else { None }
    }
}

fn set_option(fd: c_int, level: c_int, name: c_int, v: &[u8]) -> Res<i64> {
    let s = net::sock_at(fd)?;
    if level != libc::SOL_SOCKET {
        return Err(libc::ENOPROTOOPT);
    }
    match name {
        libc::SO_RCVTIMEO | libc::SO_SNDTIMEO => {
            let word = |i: usize| v.get(i..i + 8).and_then(|b| b.try_into().ok()).map(i64::from_ne_bytes);
            let (Some(sec), Some(usec)) = (word(0), word(8)) else { return Err(libc::EINVAL) };
            let ns = (sec as u64).saturating_mul(1_000_000_000).saturating_add(usec as u64 * 1000);
            let sock = world().net.sock(s)?;
            if name == libc::SO_RCVTIMEO { sock.receive_ns = ns } else { sock.send_ns = ns }
        }
        // How much a connection holds is drawn for the seed.
        libc::SO_SNDBUF | libc::SO_RCVBUF | libc::SO_SNDBUFFORCE | libc::SO_RCVBUFFORCE => {}
        libc::SO_REUSEADDR | libc::SO_PASSCRED => {}
        n => world().fail(format!("socket option {n} is not simulated")),
    }
    Ok(0)
}

fn option(fd: c_int, level: c_int, name: c_int) -> Res<Vec<u8>> {
    let s = net::sock_at(fd)?;
    if level != libc::SOL_SOCKET {
        return Err(libc::ENOPROTOOPT);
    }
    let time = |ns: u64| {
        let (sec, usec) = ((ns / 1_000_000_000) as i64, (ns % 1_000_000_000 / 1000) as i64);
        [sec.to_ne_bytes(), usec.to_ne_bytes()].concat()
    };
    let w = world();
    let sock = w.net.sock(s)?;
    Ok(match name {
        libc::SO_RCVTIMEO => time(sock.receive_ns),
        libc::SO_SNDTIMEO => time(sock.send_ns),
        // Everybody here is root.
        libc::SO_PEERCRED => [1i32.to_ne_bytes(), [0; 4], [0; 4]].concat(),
        libc::SO_ERROR => vec![0; 4],
        libc::SO_TYPE => libc::SOCK_STREAM.to_ne_bytes().to_vec(),
        n => w.fail(format!("socket option {n} is not simulated")),
    })
}
