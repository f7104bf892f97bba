//! `/metrics`, `/healthz`, `/primary` and `/replica` of a node (MS-19, G9).
//!
//! The state is read by one thread, for whoever asks: should it stand still because something holds a lock (a disk that
//! hangs), the others answer that, and no more threads than connections wait.

use super::health::{self, Answer};
use super::http::{CONNECTIONS_MAX, Handler, Request, Response, Server};
use super::metrics;
use super::status::{GroupStatus, Status};
use crate::base::{Result, time};
use crossbeam::channel::{Receiver, Sender, bounded};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// The state must be read within this time.
const PATIENCE: Duration = Duration::from_secs(3);
/// What `/` says.
const INDEX: &str = "kagami\n\n/metrics\n/healthz\n/primary?group=GROUP\n/replica?group=GROUP&lag=10s";

/// Answers until it is dropped.
pub struct Scrape {
    addr: SocketAddr,
    server: Server,
}

/// Reads the state; `None` when the node ends.
pub type Look = Box<dyn Fn() -> Option<Status> + Send>;

impl Scrape {
    /// Answers at this address.
    pub fn start(addr: SocketAddr, look: Look) -> Result<Scrape> {
        let (tx, rx): (Sender<Sender<Arc<Status>>>, Receiver<_>) = bounded(CONNECTIONS_MAX);
        std::thread::Builder::new().name("observer".into()).spawn(move || {
            for asked in rx {
                let Some(s) = look() else { return };
                let s = Arc::new(s);
                let _ = asked.send(s);
            }
        })?;
        let handler: Handler = Arc::new(move |q: &Request| {
            let (reply, answer) = bounded(1);
            let asked = tx.try_send(reply).is_ok();
            match answer.recv_timeout(PATIENCE) {
                Ok(s) if asked => route(q, &s),
                _ => Response::text(
                    503,
                    format!(
                        "the state of this node cannot be read within {} s: something holds it, a disk that hangs perhaps",
                        PATIENCE.as_secs()
                    ),
                ),
            }
        });
        Ok(Scrape { addr, server: Server::start(addr, handler)? })
    }

    /// Where it answers, or why it does not.
    pub fn standing(&self) -> String {
        self.server
            .failing()
            .map_or_else(|| format!("http://{}/metrics", self.addr), |why| format!("not served: {why}"))
    }
}

fn route(q: &Request, s: &Status) -> Response {
    let group = |answer: &dyn Fn(&GroupStatus) -> Response| match group(q, s) {
        Ok(g) => answer(g),
        Err(r) => r,
    };
    match q.path.as_str() {
        "/" => Response::text(200, INDEX),
        "/metrics" => Response { status: 200, kind: metrics::CONTENT_TYPE, body: metrics::exposition(s) },
        "/healthz" => told(health::healthz(s)),
        "/primary" => group(&|g| told(health::primary(g))),
        "/replica" => group(&|g| match q.get("lag").map(|l| (l, time::duration(l))) {
            None => told(health::replica(g, None)),
            Some((_, Some(lag))) => told(health::replica(g, Some(lag))),
            Some((l, None)) => Response::text(400, format!("lag={l}: write a time as in 10s, 500ms or 2m")),
        }),
        _ => Response::text(404, "there is /metrics, /healthz, /primary and /replica"),
    }
}

fn told(a: Answer) -> Response {
    Response::text(if a.yes { 200 } else { 503 }, a.words.join("\n"))
}

/// The group that is asked for; it need not be named when there is only one.
fn group<'a>(q: &Request, s: &'a Status) -> std::result::Result<&'a GroupStatus, Response> {
    let names: Vec<&str> = s.groups.iter().map(|g| g.name.as_str()).collect();
    match (q.get("group"), s.groups.as_slice()) {
        (Some(name), all) => all.iter().find(|g| g.name == name).ok_or_else(|| {
            Response::text(404, format!("this node has no group {name:?}; it has {}", names.join(", ")))
        }),
        (None, [one]) => Ok(one),
        (None, _) => Err(Response::text(400, format!("write ?group=, one of {}", names.join(", ")))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Instant;

    fn ask(addr: SocketAddr, request: &str) -> String {
        let mut c = TcpStream::connect(addr).unwrap();
        c.write_all(request.as_bytes()).unwrap();
        let mut out = String::new();
        c.read_to_string(&mut out).unwrap();
        out
    }

    fn free() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    fn two_groups() -> Status {
        let g = |name: &str| GroupStatus { name: name.into(), role: "down".into(), ..GroupStatus::default() };
        Status { groups: vec![g("a"), g("b")], ..Status::default() }
    }

    #[test]
    fn each_question_has_its_answer() {
        let addr = free();
        let s = Scrape::start(addr, Box::new(|| Some(two_groups()))).unwrap();
        assert_eq!(s.standing(), format!("http://{addr}/metrics"));
        for (path, status) in [
            ("/", 200),
            ("/healthz", 200),
            ("/metrics", 200),
            ("/primary", 400),
            ("/primary?group=c", 404),
            ("/primary?group=a", 503),
            ("/replica?group=a&lag=soon", 400),
            ("/replica?group=a&lag=1m", 503),
            ("/other", 404),
        ] {
            let a = ask(addr, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
            assert!(a.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {a}");
            let h = ask(addr, &format!("HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
            let (head, _) = a.split_once("\r\n\r\n").unwrap();
            assert_eq!(h.trim_end(), head, "{path}");
        }
        drop(s);
        assert!(TcpStream::connect(addr).is_err(), "it ends with its node");
    }

    /// A state that cannot be read is an answer as well, and soon.
    #[test]
    fn a_node_that_stands_still_is_not_healthy() {
        let addr = free();
        let s = Scrape::start(
            addr,
            Box::new(|| {
                std::thread::sleep(Duration::from_secs(20));
                None
            }),
        )
        .unwrap();
        let begun = Instant::now();
        let a = ask(addr, "GET /healthz HTTP/1.1\r\n\r\n");
        assert!(a.starts_with("HTTP/1.1 503 ") && a.contains("cannot be read"), "{a}");
        assert!(begun.elapsed() < PATIENCE * 3, "{:?}", begun.elapsed());
        drop(s);
    }

    #[test]
    fn an_address_that_is_taken_is_said_and_tried_again() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = held.local_addr().unwrap();
        let s = Scrape::start(addr, Box::new(|| Some(two_groups()))).unwrap();
        assert!(s.standing().starts_with("not served: "), "{}", s.standing());
        drop(held);
        let end = Instant::now() + Duration::from_secs(20);
        while !s.standing().starts_with("http://") {
            assert!(Instant::now() < end, "{}", s.standing());
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(ask(addr, "GET /healthz HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200 "));
    }
}
