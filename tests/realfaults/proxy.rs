//! A bad line of our own between the sites: each site dials its peers through a port on its own machine, behind which
//! threads of the test carry the bytes, late, in drops, only one way, damaged, or not at all.

use crate::support::Rng;
use crate::support::machines::{Net, PROXY_PORT, address};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often threads look whether something has changed.
const LOOK: Duration = Duration::from_millis(10);
/// Bytes that are carried at once.
const CHUNK: usize = 16 << 10;

/// What a line does to what it carries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum How {
    Pass,
    /// Everything comes so much later.
    Delay(Duration),
    /// So many bytes at a time, so far apart.
    Trickle(usize, Duration),
    /// What is there is broken off, what is new is closed at once.
    Refuse,
    /// Each connection is broken off after so many bytes.
    Break(u64),
    /// Nothing goes from who dialled to who answered; what was sent waits.
    NoThere,
    /// Nothing comes back.
    NoBack,
    /// One bit in each such number of bytes is the other way round.
    Flip(u64),
}

/// The line by which one site dials another.
struct Line {
    from: usize,
    to: usize,
    how: Mutex<How>,
    stop: AtomicBool,
    /// Of connections and bytes, for the test to see that they went this way, and of faults done to them.
    carried: AtomicU64,
    harmed: AtomicU64,
}

impl Line {
    fn how(&self) -> How {
        *self.how.lock().unwrap()
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// All lines of a net.
pub struct Proxy {
    lines: Vec<Arc<Line>>,
    threads: Vec<JoinHandle<()>>,
}

impl Proxy {
    /// For a net whose sites dial through it (`proxied`).
    pub fn start(net: &Net) -> Proxy {
        let mut proxy = Proxy { lines: Vec::new(), threads: Vec::new() };
        for from in 0..3 {
            for to in (0..3).filter(|to| *to != from) {
                let line = Arc::new(Line {
                    from,
                    to,
                    how: Mutex::new(How::Pass),
                    stop: AtomicBool::new(false),
                    carried: AtomicU64::new(0),
                    harmed: AtomicU64::new(0),
                });
                proxy.lines.push(line.clone());
                let space = std::fs::File::open(format!("/proc/{}/ns/net", net.holder(from))).expect("a namespace");
                proxy.threads.push(std::thread::spawn(move || {
                    // SAFETY: a descriptor of our own; only this thread, and those that it starts, change their network.
                    let rc = unsafe { libc::setns(space.as_raw_fd(), libc::CLONE_NEWNET) };
                    assert_eq!(rc, 0, "setns: {}", std::io::Error::last_os_error());
                    listen(&line);
                }));
            }
        }
        proxy
    }

    /// Both lines between two sites, whoever dials.
    pub fn between(&self, a: usize, b: usize, how: How) {
        for line in self.lines.iter().filter(|l| [(a, b), (b, a)].contains(&(l.from, l.to))) {
            *line.how.lock().unwrap() = how;
        }
    }

    pub fn heal(&self) {
        self.lines.iter().for_each(|l| *l.how.lock().unwrap() = How::Pass);
    }

    /// Bytes carried, and how often harm was done to them or to a connection.
    pub fn told(&self) -> (u64, u64) {
        let sum = |f: fn(&Line) -> &AtomicU64| self.lines.iter().map(|l| f(l).load(Ordering::Relaxed)).sum();
        (sum(|l| &l.carried), sum(|l| &l.harmed))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.lines.iter().for_each(|l| l.stop.store(true, Ordering::Relaxed));
        for t in self.threads.drain(..) {
            let _ = t.join();
        }
    }
}

fn listen(line: &Arc<Line>) {
    let listener = TcpListener::bind(("127.0.0.1", PROXY_PORT + line.to as u16)).expect("the proxy's port");
    listener.set_nonblocking(true).expect("nonblocking");
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    while !line.stopped() {
        match listener.accept() {
            Ok((near, _)) if line.how() != How::Refuse => {
                let line = line.clone();
                threads.push(std::thread::spawn(move || carry(&line, near)));
            }
            Ok(_) => drop(line.harmed.fetch_add(1, Ordering::Relaxed)),
            Err(_) => std::thread::sleep(LOOK),
        }
        threads.retain(|t| !t.is_finished());
    }
    threads.into_iter().for_each(|t| drop(t.join()));
}

/// One connection, until an end of it is closed.
fn carry(line: &Arc<Line>, near: TcpStream) {
    let at: SocketAddr = format!("{}:7401", address(line.to, line.from)).parse().expect("an address");
    let Ok(far) = TcpStream::connect_timeout(&at, Duration::from_secs(2)) else { return };
    let gone = Arc::new(AtomicBool::new(false));
    let (Ok(near2), Ok(far2)) = (near.try_clone(), far.try_clone()) else { return };
    let (there, stays) = (line.clone(), gone.clone());
    let other = std::thread::spawn(move || pump(&there, near, far, true, &stays));
    pump(line, far2, near2, false, &gone);
    let _ = other.join();
}

/// Bytes of one direction. When it ends, both do.
fn pump(line: &Line, mut from: TcpStream, mut to: TcpStream, there: bool, gone: &AtomicBool) {
    let _ = from.set_read_timeout(Some(LOOK));
    let _ = to.set_write_timeout(Some(Duration::from_secs(5)));
    let _ = (from.set_nodelay(true), to.set_nodelay(true));
    let ended = || line.stopped() || gone.load(Ordering::Relaxed);
    let (mut buf, mut passed) = (vec![0; CHUNK], 0);
    let mut rng = Rng::new(line.from as u64 * 2 + u64::from(there));
    while !ended() {
        match line.how() {
            How::Refuse => {
                line.harmed.fetch_add(1, Ordering::Relaxed);
                break;
            }
            How::NoThere if there => {
                std::thread::sleep(LOOK);
                continue;
            }
            How::NoBack if !there => {
                std::thread::sleep(LOOK);
                continue;
            }
            _ => {}
        }
        let n = match from.read(&mut buf) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(_) => break,
        };
        if harm(line, &mut buf[..n], &mut passed, &mut rng) && send(line, &mut to, &buf[..n], &ended).is_ok() {
            line.carried.fetch_add(n as u64, Ordering::Relaxed);
        } else {
            break;
        }
    }
    gone.store(true, Ordering::Relaxed);
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

/// What happens to bytes before they are sent on; false: the connection breaks.
fn harm(line: &Line, bytes: &mut [u8], passed: &mut u64, rng: &mut Rng) -> bool {
    let before = *passed;
    *passed += bytes.len() as u64;
    match line.how() {
        How::Delay(by) => std::thread::sleep(by),
        How::Break(after) if *passed > after => {
            line.harmed.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        How::Flip(every) if before / every != *passed / every => {
            let at = rng.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << rng.below(8);
            line.harmed.fetch_add(1, Ordering::Relaxed);
        }
        _ => {}
    }
    true
}

/// Sends them, in drops while the line trickles.
fn send(line: &Line, to: &mut TcpStream, mut bytes: &[u8], ended: &dyn Fn() -> bool) -> std::io::Result<()> {
    while !bytes.is_empty() && !ended() {
        match line.how() {
            How::Trickle(n, pause) => {
                let (now, rest) = bytes.split_at(n.min(bytes.len()));
                to.write_all(now)?;
                std::thread::sleep(pause);
                bytes = rest;
            }
            _ => return to.write_all(bytes),
        }
    }
    Ok(())
}
