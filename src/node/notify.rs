//! Telling the service manager how the node stands: the protocol of sd_notify(3), over a datagram socket whose address
//! is in the environment. Without one nothing is told.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

/// Longest STATUS that is sent, bytes; more says nothing to a person who looks at one line.
const STATUS_BYTES_MAX: usize = 400;

/// The manager, if there is one.
pub struct Notify {
    to: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
    fed: Instant,
    said: String,
}

impl Notify {
    /// From `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.
    pub fn from_env() -> Notify {
        let number = |name| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
        let for_us = number("WATCHDOG_PID").is_none_or(|p| p == u64::from(std::process::id()));
        let period = number("WATCHDOG_USEC").filter(|u| for_us && *u > 0).map(Duration::from_micros);
        let socket = std::env::var_os("NOTIFY_SOCKET").map(OsStringExt::into_vec);
        Notify::to(socket.as_deref().unwrap_or_default(), period)
    }

    /// To the socket of this address: a path, or `@` and an abstract name; none when it is empty or wrong. A watchdog
    /// of this period is fed twice in it.
    fn to(socket: &[u8], period: Option<Duration>) -> Notify {
        let address = match socket.split_first() {
            Some((b'@', name)) => SocketAddr::from_abstract_name(name).ok(),
            Some((b'/', _)) => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(socket)).ok(),
            _ => None,
        };
        let to = address.and_then(|a| Some((UnixDatagram::unbound().ok()?, a)));
        Notify { to, watchdog: period.map(|p| p / 2), fed: Instant::now(), said: String::new() }
    }

    fn send(&self, message: &str) {
        let Some((socket, address)) = &self.to else { return };
        // A manager that does not read must not hold the node.
        let sent = socket.set_nonblocking(true).and_then(|()| socket.send_to_addr(message.as_bytes(), address));
        if let Err(e) = sent {
            log::debug!("service manager: {e}");
        }
    }

    /// The node can be used.
    pub fn ready(&self) {
        self.send("READY=1\n");
    }

    /// It is ending.
    pub fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=shutting down\n");
    }

    /// Says in a line how it stands, if that changed.
    pub fn status(&mut self, text: &str) {
        let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let end = (0..=STATUS_BYTES_MAX.min(line.len())).rev().find(|i| line.is_char_boundary(*i)).unwrap_or(0);
        line.truncate(end);
        if line != self.said {
            self.send(&format!("STATUS={line}\n"));
            self.said = line;
        }
    }

    /// Called often: tells the watchdog, if there is one, that we are alive.
    pub fn alive(&mut self) {
        if self.watchdog.is_some_and(|p| self.fed.elapsed() >= p) {
            self.send("WATCHDOG=1\n");
            self.fed = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut buf = [0; 1024];
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let n = socket.recv(&mut buf).unwrap();
        String::from_utf8(buf[..n].to_vec()).unwrap()
    }

    fn speaks_to(socket: &UnixDatagram, address: &[u8]) {
        let mut n = Notify::to(address, Some(Duration::ZERO));
        n.status("lab: primary\nin step");
        n.status("lab: primary\nin step");
        n.ready();
        n.alive();
        n.status(&"ä".repeat(300));
        n.stopping();
        assert_eq!(heard(socket), "STATUS=lab: primary in step\n");
        assert_eq!(heard(socket), "READY=1\n");
        assert_eq!(heard(socket), "WATCHDOG=1\n");
        assert_eq!(heard(socket), format!("STATUS={}\n", "ä".repeat(200)));
        assert_eq!(heard(socket), "STOPPING=1\nSTATUS=shutting down\n");
    }

    #[test]
    fn by_a_path_and_by_an_abstract_name() {
        let d = tempfile::tempdir().unwrap();
        let path = d.path().join("notify");
        speaks_to(&UnixDatagram::bind(&path).unwrap(), path.as_os_str().as_bytes());
        let name = format!("kagami-test-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        speaks_to(&socket, format!("@{name}").as_bytes());
    }

    #[test]
    fn without_a_manager_nothing_is_told() {
        for address in [&b""[..], b"relative", b"/nowhere/at/all"] {
            let mut n = Notify::to(address, None);
            n.ready();
            n.status("x");
            n.alive();
        }
    }
}
