//! Listening, dialling, and the link that comes of it.
//!
//! ```text
//! Listener::accept → Incoming::handshake ┐
//!                                        ├→ Link ─ split → FrameReader (one thread) + FrameWriter (another)
//! dial ──────────────────────────────────┘    └─── closer → Closer (any thread: unblocks both)
//! ```

use super::addr::Addr;
use super::identity::{Identity, PeerKey};
use super::reader::{FrameReader, Tls};
use super::sock::Sock;
use super::tls;
use super::writer::FrameWriter;
use crate::base::error::At;
use crate::base::sync::Mutex;
use crate::base::{Error, Kind, Result};
use crate::os;
use rustls::ServerConfig;
use std::fs;
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// A handshake that takes longer is given up: whoever connects and stays silent holds nothing for long.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a link is for; agreed in the TLS handshake, before any frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Between nodes that know each other's key.
    Peer,
    /// Enrolment of a node that holds a token ([`super::enrol`]).
    Enrol,
}

impl Purpose {
    pub(super) const ALL: [Purpose; 2] = [Purpose::Peer, Purpose::Enrol];

    pub(super) fn alpn(self) -> &'static [u8] {
        match self {
            Purpose::Peer => b"kagami/1",
            Purpose::Enrol => b"kagami-enrol/1",
        }
    }

    pub(super) fn from_alpn(name: &[u8]) -> Option<Purpose> {
        Purpose::ALL.into_iter().find(|p| p.alpn() == name)
    }
}

/// Who is at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its proven key (TLS).
    pub key: Option<PeerKey>,
    /// Its user (Unix socket).
    pub uid: Option<u32>,
    /// Its address, for people.
    pub addr: String,
}

/// A connection with a proven peer, not yet split.
pub struct Link {
    sock: Arc<Sock>,
    tls: Option<Tls>,
    peer: Peer,
    purpose: Purpose,
    binding: [u8; 32],
}

impl Link {
    fn sealed(sock: Arc<Sock>, done: tls::Done, addr: String) -> Link {
        Link {
            sock,
            tls: Some(Arc::new(Mutex::new(done.conn))),
            peer: Peer { key: Some(done.key), uid: None, addr },
            purpose: done.purpose,
            binding: done.binding,
        }
    }

    /// A Unix socket is as good as its user: only this one and root are let in.
    fn local(sock: Arc<Sock>, addr: String) -> Result<Link> {
        let uid = os::sock::peer_uid(sock.fd()).at(format!("{addr}: asking who is there"))?;
        let own = os::sock::own_uid();
        if uid != own && uid != 0 {
            return Err(Error::refused(format!("{addr}: user {uid} is at the other end; only {own} and root may be")));
        }
        Ok(Link {
            sock,
            tls: None,
            peer: Peer { key: None, uid: Some(uid), addr },
            purpose: Purpose::Peer,
            binding: [0; 32],
        })
    }

    /// Two ends of a link within this process.
    pub fn pair(what: &str) -> Result<(Link, Link)> {
        let (a, b) = UnixStream::pair().at(what)?;
        let link = |s| Link::local(Arc::new(Sock::Unix(s)), what.to_owned());
        Ok((link(a)?, link(b)?))
    }

    /// Who is at the other end.
    pub fn peer(&self) -> Peer {
        self.peer.clone()
    }

    /// What the link is for.
    pub fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// Equal at both ends of a TLS link and different for every link; zeroes on a Unix socket.
    pub fn binding(&self) -> [u8; 32] {
        self.binding
    }

    /// A handle that closes the link from any thread.
    pub fn closer(&self) -> Closer {
        Closer { sock: Arc::downgrade(&self.sock) }
    }

    /// The two halves, for two threads. The socket is closed when both are dropped.
    pub fn split(self) -> (FrameReader, FrameWriter) {
        (FrameReader::new(self.sock.clone(), self.tls.clone()), FrameWriter::new(self.sock, self.tls))
    }
}

/// Closes a link from any thread. Keeps nothing alive by itself.
#[derive(Clone, Debug)]
pub struct Closer {
    sock: Weak<Sock>,
}

impl Closer {
    /// Shuts the link down: a blocked receive or send returns [`crate::base::Kind::Link`] at once. May be called again.
    pub fn close(&self) {
        if let Some(s) = self.sock.upgrade() {
            s.shutdown();
        }
    }

    /// Whether both close the same link.
    pub fn same(&self, other: &Closer) -> bool {
        Weak::ptr_eq(&self.sock, &other.sock)
    }
}

enum Socket {
    Tcp(TcpListener, Arc<ServerConfig>),
    Unix { listener: UnixListener, _file: SocketFile },
}

/// Where other nodes dial in.
pub struct Listener {
    socket: Socket,
    addr: Addr,
}

impl Listener {
    /// Listens. On TCP `identity` is shown to whoever connects; on a Unix socket it is not used. A socket file that nothing
    /// listens on any more is replaced, anything else at that path is left alone and refused.
    pub fn bind(addr: &Addr, identity: &Arc<Identity>) -> Result<Listener> {
        let at = || format!("listening on {addr}");
        match addr {
            Addr::Tcp(a) => {
                let config = tls::accepting(identity)?;
                let l = TcpListener::bind(a).at(at())?;
                // With port 0 the kernel chose one; people and tokens need the real one.
                let bound = Addr::Tcp(l.local_addr().at(at())?.to_string());
                Ok(Listener { socket: Socket::Tcp(l, config), addr: bound })
            }
            Addr::Unix(path) => {
                clear_stale(path)?;
                let l = UnixListener::bind(path).at(at())?;
                let file = SocketFile::of(path).at(at())?;
                fs::set_permissions(path, fs::Permissions::from_mode(0o600)).at(at())?;
                Ok(Listener { socket: Socket::Unix { listener: l, _file: file }, addr: addr.clone() })
            }
        }
    }

    /// Where it listens; the port is the real one.
    pub fn addr(&self) -> &Addr {
        &self.addr
    }

    /// Waits for the next connection. Its handshake is still to come, in a thread of its own: [`Incoming::handshake`].
    /// [`Kind::Link`] after [`Listener::close`]; other errors (too many open files, a connection gone again) are passing.
    pub fn accept(&self) -> Result<Incoming> {
        let closed = |e: std::io::Error| match e.kind() {
            ErrorKind::InvalidInput => Error::link(format!("{} is closed", self.addr)),
            _ => Error::from(e).context(format!("accepting on {}", self.addr)),
        };
        Ok(match &self.socket {
            Socket::Tcp(l, config) => {
                let (s, from) = l.accept().map_err(closed)?;
                Incoming {
                    sock: Arc::new(Sock::Tcp(s)),
                    config: Some(config.clone()),
                    from: format!("tcp:{from}"),
                    since: Instant::now(),
                }
            }
            Socket::Unix { listener: l, .. } => {
                let (s, _) = l.accept().map_err(closed)?;
                Incoming {
                    sock: Arc::new(Sock::Unix(s)),
                    config: None,
                    from: self.addr.to_string(),
                    since: Instant::now(),
                }
            }
        })
    }

    /// Stops listening: a blocked [`Listener::accept`] returns.
    pub fn close(&self) {
        let fd = match &self.socket {
            Socket::Tcp(l, _) => l.as_fd(),
            Socket::Unix { listener: l, .. } => l.as_fd(),
        };
        // An error means that it is closed already.
        let _ = os::sock::shutdown(fd);
    }
}

/// The file of a listening Unix socket; removed with it, unless somebody else has put another there.
struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> std::io::Result<SocketFile> {
        let m = fs::symlink_metadata(path)?;
        Ok(SocketFile { path: path.to_path_buf(), id: (m.dev(), m.ino()) })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.id) {
            // A file left behind is recognised as stale by the next bind.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn clear_stale(path: &Path) -> Result<()> {
    let m = match fs::symlink_metadata(path) {
        Ok(m) => m,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e).at(format!("looking at {}", path.display())),
    };
    if !m.file_type().is_socket() {
        return Err(Error::config(format!("{} exists and is not a socket: name another path", path.display())));
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).at(format!("removing the stale socket {}", path.display()))
        }
        _ => Err(Error::refused(format!("something listens on {} already", path.display()))),
    }
}

/// A connection that has proven nothing yet.
pub struct Incoming {
    sock: Arc<Sock>,
    config: Option<Arc<ServerConfig>>,
    from: String,
    since: Instant,
}

impl Incoming {
    /// Where it comes from, for the log.
    pub fn from(&self) -> &str {
        &self.from
    }

    /// A handle that closes it from any thread, also in the middle of the handshake.
    pub fn closer(&self) -> Closer {
        Closer { sock: Arc::downgrade(&self.sock) }
    }

    /// Finds out who it is, within [`HANDSHAKE_TIMEOUT`] of the connection's arrival. On TCP any key is let through here, but
    /// a proven one: whether it is known is for the caller to decide before it uses the link. [`Kind::Refused`]: the wrong
    /// user on a Unix socket; [`Kind::Timeout`], [`Kind::Link`]: no handshake.
    pub fn handshake(self) -> Result<Link> {
        self.sock.prepare().at(&self.from)?;
        match (&*self.sock, self.config) {
            (Sock::Unix(_), _) => Link::local(self.sock, self.from),
            (sock, Some(config)) => {
                let done = tls::answer(sock, &config, self.since + HANDSHAKE_TIMEOUT, &self.from)?;
                Ok(Link::sealed(self.sock, done, self.from))
            }
            (Sock::Tcp(_), None) => Err(Error::failed(format!("{}: no keys to speak TLS with", self.from))),
        }
    }
}

/// Dials a node within `timeout`. On TCP the peer must prove that it holds `expected` ([`Kind::Refused`] names the key that was
/// expected and the one that was seen), and none given is a [`Kind::Config`] error; on a Unix socket it must be this user or root.
pub fn dial(addr: &Addr, identity: &Identity, expected: Option<&PeerKey>, timeout: Duration) -> Result<Link> {
    dial_for(Purpose::Peer, addr, identity, expected, timeout)
}

pub(super) fn dial_for(
    purpose: Purpose,
    addr: &Addr,
    identity: &Identity,
    expected: Option<&PeerKey>,
    timeout: Duration,
) -> Result<Link> {
    let deadline = Instant::now() + timeout;
    let to = addr.to_string();
    match addr {
        Addr::Unix(path) => {
            let s = os::sock::connect_unix(path, timeout).map_err(|e| dial_error(&e, &to))?;
            let sock = Sock::Unix(s);
            sock.prepare().at(&to)?;
            Link::local(Arc::new(sock), to)
        }
        Addr::Tcp(a) => {
            let Some(expected) = expected else {
                return Err(Error::config(format!(
                    "no key is known for {to}: run kagami peer accept with its invitation"
                )));
            };
            let sock = Sock::Tcp(connect_tcp(a, deadline, &to)?);
            sock.prepare().at(&to)?;
            let done = tls::call(&sock, identity, expected, purpose, deadline, &to)?;
            Ok(Link::sealed(Arc::new(sock), done, to))
        }
    }
}

/// Tries each address of the name in turn.
fn connect_tcp(name: &str, deadline: Instant, to: &str) -> Result<TcpStream> {
    let mut last = Error::link(format!("{to}: the name has no address"));
    for a in name.to_socket_addrs().map_err(|e| dial_error(&e, to))? {
        match TcpStream::connect_timeout(&a, tls::left(deadline)) {
            Ok(s) => return Ok(s),
            Err(e) => last = dial_error(&e, to),
        }
    }
    Err(last)
}

fn dial_error(e: &std::io::Error, to: &str) -> Error {
    if super::sock::timed_out(e) {
        return Error::new(Kind::Timeout, format!("dialling {to}: no answer within the timeout"));
    }
    let mut err = Error::link(format!("dialling {to}: {e}"));
    err.errno = e.raw_os_error().unwrap_or(err.errno);
    err
}
