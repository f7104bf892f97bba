//! Answers to a few questions over HTTP/1.1, for monitoring and load balancers. Bounded in everything a client can make
//! large or slow: the request, the connections, the time. Only GET and HEAD; one question for each connection.

use crate::base::sync::Mutex;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Longest request head, bytes.
pub const REQUEST_BYTES_MAX: usize = 8 << 10;
/// Most connections at a time; further ones are told so and closed.
pub const CONNECTIONS_MAX: usize = 32;
/// A request must be there within this time, all of it.
const READ_TIME: Duration = Duration::from_secs(5);
/// An answer must be taken within this time.
const WRITE_TIME: Duration = Duration::from_secs(10);
/// What a client still sends is read for so long and so far, that it gets the answer and not a reset.
const LINGER: (Duration, usize) = (Duration::from_millis(500), 64 << 10);
/// Between two attempts to listen.
const RETRY: Duration = Duration::from_secs(2);

/// What was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// `/metrics`
    pub path: String,
    /// `?a=b&c=d`, decoded.
    pub query: Vec<(String, String)>,
    /// Only the head of the answer is wanted.
    head: bool,
}

impl Request {
    /// The first value of a name in the query.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// 200, 404, …
    pub status: u16,
    /// Content-Type.
    pub kind: &'static str,
    /// The content.
    pub body: String,
}

impl Response {
    /// Plain words; a line feed is added.
    pub fn text(status: u16, words: impl AsRef<str>) -> Response {
        Response { status, kind: "text/plain; charset=utf-8", body: format!("{}\n", words.as_ref()) }
    }

    fn bytes(&self, head_only: bool) -> Vec<u8> {
        let words = match self.status {
            200 => "OK",
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            408 => "Request Timeout",
            431 => "Request Header Fields Too Large",
            505 => "HTTP Version Not Supported",
            _ => "Service Unavailable",
        };
        let allow = if self.status == 405 { "Allow: GET, HEAD\r\n" } else { "" };
        let mut out = format!(
            "HTTP/1.1 {} {words}\r\nContent-Type: {}\r\nContent-Length: {}\r\n{allow}Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n",
            self.status,
            self.kind,
            self.body.len()
        )
        .into_bytes();
        if !head_only {
            out.extend_from_slice(self.body.as_bytes());
        }
        out
    }
}

/// Who answers. Called by several threads at a time.
pub type Handler = Arc<dyn Fn(&Request) -> Response + Send + Sync>;

struct Shared {
    addr: SocketAddr,
    handler: Handler,
    stop: AtomicBool,
    open: AtomicUsize,
    /// Why nobody is answered now, if so.
    failing: Mutex<Option<String>>,
}

/// Answers until it is dropped.
pub struct Server {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    /// Answers at this address; while it is not free, that is tried again.
    pub fn start(addr: SocketAddr, handler: Handler) -> crate::base::Result<Server> {
        let (stop, open) = (AtomicBool::new(false), AtomicUsize::new(0));
        let shared = Arc::new(Shared { addr, handler, stop, open, failing: Mutex::new(None) });
        // Here, so that it answers when this returns.
        let first = shared.listen();
        let s = shared.clone();
        let thread = std::thread::Builder::new().name("http".into()).spawn(move || s.run(first))?;
        Ok(Server { shared, thread: Some(thread) })
    }

    /// Why nobody is answered now, if so.
    pub fn failing(&self) -> Option<String> {
        self.shared.failing.lock().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Accepting waits for a connection: give it one.
        let woken = TcpStream::connect_timeout(&self.shared.addr, Duration::from_secs(1)).is_ok();
        if let (true, Some(t)) = (woken || self.failing().is_some(), self.thread.take()) {
            let _ = t.join();
        }
    }
}

/// One connection less when it ends, however it does.
struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Shared {
    fn listen(&self) -> Option<TcpListener> {
        let r = TcpListener::bind(self.addr);
        let why = r.as_ref().err().map(|e| format!("{}: {e}", self.addr));
        let mut g = self.failing.lock();
        match &why {
            Some(why) if *g != Some(why.clone()) => log::error!("metrics are not served: {why}; tried again"),
            None => log::info!("metrics are served at {}", self.addr),
            _ => {}
        }
        *g = why;
        r.ok()
    }

    fn run(self: Arc<Self>, first: Option<TcpListener>) {
        let mut listener = first;
        while !self.stop.load(Ordering::SeqCst) {
            match &listener {
                Some(l) => self.accept(l),
                None => {
                    let until = Instant::now() + RETRY;
                    while Instant::now() < until && !self.stop.load(Ordering::SeqCst) {
                        std::thread::sleep(Duration::from_millis(50));
                    }
                    listener = self.listen();
                }
            }
        }
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        let Ok((conn, _)) = listener.accept() else {
            // Out of descriptors, most likely: give the others time to close theirs.
            std::thread::sleep(Duration::from_millis(50));
            return;
        };
        let before = self.open.fetch_add(1, Ordering::SeqCst);
        let open = Open(self.clone());
        if before >= CONNECTIONS_MAX {
            let busy = Response::text(503, format!("{CONNECTIONS_MAX} connections are open already; try again later"));
            // A fresh socket takes so little without waiting.
            let _ = conn.set_nonblocking(true).and_then(|()| (&conn).write_all(&busy.bytes(false)));
            return;
        }
        let me = self.clone();
        let started = std::thread::Builder::new().name("http-one".into()).spawn(move || {
            let _open = open;
            me.one(&conn);
        });
        if let Err(e) = started {
            log::warn!("no thread for a question over HTTP: {e}");
        }
    }

    fn one(&self, conn: &TcpStream) {
        let (answer, head) = match read_head(conn).and_then(|h| parse(&h)) {
            Ok(q) => ((self.handler)(&q), q.head),
            // Nothing was asked.
            Err(r) if r.status == 0 => return,
            Err(r) => (r, false),
        };
        if write_all(conn, &answer.bytes(head)).is_ok() {
            linger(conn);
        }
    }
}

/// The request up to its empty line.
fn read_head(mut conn: &TcpStream) -> Result<Vec<u8>, Response> {
    let until = Instant::now() + READ_TIME;
    let (mut got, mut buf) = (Vec::new(), [0u8; 1024]);
    loop {
        if let Some(end) = end_of_head(&got) {
            got.truncate(end);
            return Ok(got);
        }
        if got.len() > REQUEST_BYTES_MAX {
            return Err(Response::text(431, format!("a request has {REQUEST_BYTES_MAX} bytes at most here")));
        }
        let left = until.saturating_duration_since(Instant::now());
        let late = || Response::text(408, format!("the request was not there within {} s", READ_TIME.as_secs()));
        if left.is_zero() || conn.set_read_timeout(Some(left)).is_err() {
            return Err(late());
        }
        match conn.read(&mut buf) {
            Ok(0) => return Err(Response::text(if got.is_empty() { 0 } else { 400 }, "the request is not whole")),
            Ok(n) => got.extend_from_slice(buf.get(..n).unwrap_or_default()),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Err(late()),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Err(Response::text(0, "")),
        }
    }
}

fn end_of_head(got: &[u8]) -> Option<usize> {
    let find = |end: &[u8]| got.windows(end.len()).position(|w| w == end).map(|i| i + end.len());
    find(b"\r\n\r\n").into_iter().chain(find(b"\n\n")).min()
}

/// The first line of a request; what else its head says does not matter here.
fn parse(head: &[u8]) -> Result<Request, Response> {
    let bad = |why: &str| Err(Response::text(400, why));
    let line = head.split(|b| *b == b'\n').next().unwrap_or_default();
    let Some(line) = std::str::from_utf8(line).ok().map(|l| l.trim_end_matches('\r')) else {
        return bad("the request is no text");
    };
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return bad("write GET /metrics HTTP/1.1");
    };
    match version {
        "HTTP/1.1" | "HTTP/1.0" => {}
        v if v.starts_with("HTTP/") => return Err(Response::text(505, "HTTP/1.1 is spoken here")),
        _ => return bad("write GET /metrics HTTP/1.1"),
    }
    if !matches!(method, "GET" | "HEAD") {
        return Err(Response::text(405, "nothing can be changed here: GET and HEAD only"));
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if !path.starts_with('/') {
        return bad("a path begins with /");
    }
    let mut pairs = Vec::new();
    for p in query.split('&').filter(|p| !p.is_empty()) {
        let (k, v) = p.split_once('=').unwrap_or((p, ""));
        match (decode(k), decode(v)) {
            (Some(k), Some(v)) => pairs.push((k, v)),
            _ => return bad("the query is not encoded as it must be"),
        }
    }
    Ok(Request { path: path.to_owned(), query: pairs, head: method == "HEAD" })
}

/// Undoes `%41` and `+`.
fn decode(text: &str) -> Option<String> {
    let (mut out, mut bytes) = (Vec::new(), text.bytes());
    while let Some(b) = bytes.next() {
        out.push(match b {
            b'+' => b' ',
            b'%' => {
                let mut digit = || bytes.next().and_then(|d| char::from(d).to_digit(16));
                (digit()? * 16 + digit()?) as u8
            }
            b => b,
        });
    }
    String::from_utf8(out).ok()
}

fn write_all(mut conn: &TcpStream, mut bytes: &[u8]) -> std::io::Result<()> {
    let until = Instant::now() + WRITE_TIME;
    while !bytes.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        conn.set_write_timeout(Some(left))?;
        match conn.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn linger(mut conn: &TcpStream) {
    let (until, mut left, mut buf) = (Instant::now() + LINGER.0, LINGER.1, [0u8; 4096]);
    let _ = conn.shutdown(Shutdown::Write);
    loop {
        let time = until.saturating_duration_since(Instant::now());
        if time.is_zero() || left == 0 || conn.set_read_timeout(Some(time)).is_err() {
            return;
        }
        match conn.read(&mut buf) {
            Ok(n) if n > 0 => left = left.saturating_sub(n),
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Request, u16> {
        parse(text.as_bytes()).map_err(|r| r.status)
    }

    #[test]
    fn requests_are_read_and_others_refused() {
        let q = parsed("GET /replica?group=a%2Fb&lag=10s&x HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert_eq!(
            (q.path.as_str(), q.get("group"), q.get("lag"), q.get("x")),
            ("/replica", Some("a/b"), Some("10s"), Some(""))
        );
        assert!(!q.head && parsed("HEAD / HTTP/1.0\r\n\r\n").unwrap().head);
        for (text, status) in [
            ("POST /metrics HTTP/1.1\r\n\r\n", 405),
            ("DELETE / HTTP/1.1\r\n\r\n", 405),
            ("GET /metrics HTTP/2.0\r\n\r\n", 505),
            ("GET /metrics\r\n\r\n", 400),
            ("GET  /metrics HTTP/1.1\r\n\r\n", 400),
            ("GET metrics HTTP/1.1\r\n\r\n", 400),
            ("GET http://x/metrics HTTP/1.1\r\n\r\n", 400),
            ("GET /a?b=%4 HTTP/1.1\r\n\r\n", 400),
            ("GET /a?b=%ff HTTP/1.1\r\n\r\n", 400),
            ("\r\n\r\n", 400),
            ("\u{16}\u{3}\u{1}", 400),
        ] {
            assert_eq!(parsed(text), Err(status), "{text:?}");
        }
        assert_eq!(parse(b"GET /\xff HTTP/1.1\r\n\r\n").unwrap_err().status, 400);
        assert_eq!(end_of_head(b"GET / HTTP/1.1\r\nA: b\r\n\r\nbody"), Some(24));
        assert_eq!(end_of_head(b"GET / HTTP/1.1\n\nx"), Some(16));
    }
}
