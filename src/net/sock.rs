//! The two sorts of stream socket behind one face, and how their errors are told.

use crate::base::{Error, Kind};
use crate::os;
use std::io::{self, IoSlice, Read};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Wanted socket buffers, bytes: what a long link of 1 Gbit/s and 30 ms has under way.
pub const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// A connected stream socket.
#[derive(Debug)]
pub enum Sock {
    /// TCP.
    Tcp(TcpStream),
    /// Unix.
    Unix(UnixStream),
}

impl Sock {
    /// Sets what every link wants of its socket.
    pub fn prepare(&self) -> io::Result<()> {
        if let Sock::Tcp(s) = self {
            s.set_nodelay(true)?;
        }
        os::sock::want_buffers(self.fd(), SOCKET_BUFFER_BYTES, matches!(self, Sock::Tcp(_)));
        Ok(())
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Sock::Tcp(s) => s.as_fd(),
            Sock::Unix(s) => s.as_fd(),
        }
    }

    /// Reads what is there; blocks up to the read timeout.
    pub fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let r = match self {
                Sock::Tcp(s) => (&mut &*s).read(buf),
                Sock::Unix(s) => (&mut &*s).read(buf),
            };
            match r {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                r => return r,
            }
        }
    }

    /// Sends what the kernel takes; blocks up to the write timeout.
    pub fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        loop {
            match os::sock::send_vectored(self.fd(), slices) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                r => return r,
            }
        }
    }

    /// Sends everything. The slices are used up.
    pub fn send_all(&self, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            match self.send(slices)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => IoSlice::advance_slices(&mut slices, n),
            }
        }
        Ok(())
    }

    pub fn set_read_timeout(&self, t: Option<Duration>) -> io::Result<()> {
        match self {
            Sock::Tcp(s) => s.set_read_timeout(t),
            Sock::Unix(s) => s.set_read_timeout(t),
        }
    }

    pub fn set_write_timeout(&self, t: Option<Duration>) -> io::Result<()> {
        match self {
            Sock::Tcp(s) => s.set_write_timeout(t),
            Sock::Unix(s) => s.set_write_timeout(t),
        }
    }

    /// Shuts down both directions. An error means that it is down already.
    pub fn shutdown(&self) {
        let _ = os::sock::shutdown(self.fd());
    }
}

/// True for the errors of a socket whose timeout ran out.
pub fn timed_out(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// A socket error as a link error ([`Kind::Timeout`] or [`Kind::Link`]).
pub fn link_error(e: &io::Error, doing: &str) -> Error {
    if timed_out(e) {
        return Error::new(Kind::Timeout, format!("{doing}: no progress within the timeout"));
    }
    let mut err = Error::link(format!("{doing}: {e}"));
    err.errno = e.raw_os_error().unwrap_or(err.errno);
    err
}

/// A socket that gives up at a point in time, however slowly the peer trickles.
pub struct Until<'a> {
    pub sock: &'a Sock,
    pub deadline: Instant,
}

impl Until<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        match self.deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            d => Ok(Some(d)),
        }
    }
}

impl Read for Until<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.sock.set_read_timeout(self.left()?)?;
        self.sock.read(buf)
    }
}

impl io::Write for Until<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buf)])
    }
    // TLS makes its last words (an alert) one of several slices and tries to write but once.
    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.sock.set_write_timeout(self.left()?)?;
        self.sock.send(slices)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
