//! Frames over real sockets: both ways at once, broken, slow, closed.

use super::*;
use crate::base::{Kind, limits};
use crate::format::frame::{self, FrameKind, HEADER_BYTES};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(10);

fn id(site: &str) -> Arc<Identity> {
    Arc::new(Identity::generate(site).unwrap())
}

fn accept(l: &Listener) -> Link {
    l.accept().unwrap().handshake().unwrap()
}

/// Two ends of a link (dialler, acceptor) with the given address.
fn pair_at(addr: &Addr) -> (Link, Link) {
    let (a, b) = (id("a"), id("b"));
    let l = Listener::bind(addr, &a).unwrap();
    thread::scope(|s| {
        let t = s.spawn(|| accept(&l));
        let d = dial(l.addr(), &b, Some(&a.key()), SOON).unwrap();
        let c = t.join().unwrap();
        if matches!(addr, Addr::Tcp(_)) {
            assert_eq!((d.peer().key, c.peer().key), (Some(a.key()), Some(b.key())));
            assert_eq!(d.binding(), c.binding());
        } else {
            assert_eq!((d.peer().uid, c.peer().uid), (Some(crate::os::sock::own_uid()), d.peer().uid));
        }
        (d, c)
    })
}

fn both(f: impl Fn(Link, Link)) {
    let d = tempfile::tempdir().unwrap();
    let unix = Addr::Unix(d.path().join("s"));
    for addr in [unix, "127.0.0.1:0".parse().unwrap()] {
        let (a, b) = pair_at(&addr);
        f(a, b);
    }
}

/// A raw socket (the misbehaving peer) and the link at our side.
fn raw_and_link() -> (UnixStream, Link) {
    let d = tempfile::tempdir().unwrap();
    let p = d.path().join("s");
    let l = Listener::bind(&Addr::Unix(p.clone()), &id("a")).unwrap();
    let raw = UnixStream::connect(&p).unwrap();
    (raw, accept(&l))
}

fn entry(body: &[u8]) -> Vec<u8> {
    frame::build(FrameKind::Entry, b"head", body)
}

#[test]
fn large_data_both_ways_at_once() {
    let n = 64;
    let run = |link: Link, salt: u8| {
        let (mut rx, mut tx) = link.split();
        thread::scope(|s| {
            s.spawn(move || {
                for i in 0..n {
                    tx.send(&entry(&vec![i ^ salt; 1 << 20])).unwrap();
                }
                tx
            });
            let mut buf = Vec::new();
            for i in 0..n {
                let h = rx.recv(&mut buf).unwrap();
                let data = frame::data_part(&buf, &h);
                assert!(data.len() == 1 << 20 && data.iter().all(|b| *b == i ^ salt ^ 0x55));
            }
        });
    };
    both(|a, b| {
        thread::scope(|s| {
            s.spawn(|| run(a, 0x55));
            s.spawn(|| run(b, 0));
        });
    });
}

#[test]
fn many_small_and_mixed_frames_in_batches() {
    both(|a, b| {
        let (mut rx, _keep) = a.split();
        let (_keep2, mut tx) = b.split();
        let size = |i: usize| (i * 7919) % 5000 + if i.is_multiple_of(500) { 700_000 } else { 0 };
        thread::scope(|s| {
            s.spawn(|| {
                let all: Vec<Vec<u8>> = (0..3000).map(|i| entry(&vec![i as u8; size(i)])).collect();
                for c in all.chunks(1100) {
                    tx.send_many(c).unwrap();
                }
                tx.send_many(&[] as &[Vec<u8>]).unwrap();
            });
            let (mut buf, mut buffered) = (Vec::new(), 0);
            for i in 0..3000 {
                let h = rx.recv(&mut buf).unwrap();
                assert_eq!(frame::data_part(&buf, &h), vec![i as u8; size(i)]);
                buffered += rx.has_buffered() as u32;
            }
            assert!(buffered > 1000, "{buffered} frames came with others");
            assert!(!rx.has_buffered());
        });
    });
}

#[test]
fn timeout_loses_nothing_and_a_trickle_still_assembles() {
    let (mut raw, link) = raw_and_link();
    let (mut rx, _tx) = link.split();
    rx.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
    let f = entry(&[9; 12]);
    let g = f.clone();
    let t = thread::spawn(move || {
        for b in &g {
            raw.write_all(&[*b]).unwrap();
            thread::sleep(Duration::from_millis(30));
        }
        raw
    });
    let (mut buf, mut timeouts) = (Vec::new(), 0);
    let h = loop {
        match rx.recv(&mut buf) {
            Ok(h) => break h,
            Err(e) => assert_eq!(e.kind, Kind::Timeout),
        }
        timeouts += 1;
    };
    assert!(timeouts > 3);
    assert_eq!((h, buf), (frame::check(&f).unwrap(), f));
    drop(t.join().unwrap());
    assert_eq!(rx.recv(&mut Vec::new()).unwrap_err().kind, Kind::Link);
}

#[test]
fn a_trickle_does_not_stretch_a_total_time() {
    let (mut raw, link) = raw_and_link();
    let (mut rx, _tx) = link.split();
    let t = thread::spawn(move || {
        for b in entry(&[9; 100]) {
            if raw.write_all(&[b]).is_err() {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
    });
    let since = Instant::now();
    let e = rx.recv_within(&mut Vec::new(), Duration::from_millis(200)).unwrap_err();
    assert_eq!(e.kind, Kind::Timeout);
    assert!(since.elapsed() < Duration::from_secs(1));
    // The rest still comes, and the frame is whole.
    rx.recv(&mut Vec::new()).unwrap();
    t.join().unwrap();
}

#[test]
fn half_a_frame_then_close_is_a_link_error() {
    let f = entry(&[1; 300_000]);
    for cut in [1, 15, HEADER_BYTES, 20, 200_000, f.len() - 1] {
        let (mut raw, link) = raw_and_link();
        let (mut rx, _tx) = link.split();
        let t = thread::spawn({
            let f = f.clone();
            move || raw.write_all(&f[..cut]).unwrap()
        });
        let e = rx.recv(&mut Vec::new()).unwrap_err();
        assert_eq!(e.kind, Kind::Link, "{e}");
        assert!(e.msg.contains("in the middle of a frame"), "{e}");
        t.join().unwrap();
    }
}

#[test]
fn flipped_bytes_are_corrupt_and_stay_so() {
    let f = entry(b"some data");
    for i in 0..f.len() {
        let (mut raw, link) = raw_and_link();
        let (mut rx, _tx) = link.split();
        let mut g = f.clone();
        g[i] ^= 4;
        raw.write_all(&g).unwrap();
        raw.write_all(&f).unwrap();
        drop(raw);
        let e = rx.recv(&mut Vec::new()).unwrap_err();
        // A longer length makes the frame reach past what was sent, or swallow the next one.
        assert!(e.kind == Kind::Corrupt || (4..8).contains(&i) && e.kind == Kind::Link, "byte {i}: {e}");
        assert_eq!(rx.recv(&mut Vec::new()).unwrap_err().kind, e.kind, "nothing behind it is applied (G7)");
    }
}

#[test]
fn length_over_the_limit_is_refused_before_allocation() {
    let (mut raw, link) = raw_and_link();
    let (mut rx, _tx) = link.split();
    let mut f = entry(b"x");
    f[4..8].copy_from_slice(&(limits::FRAME_BYTES_MAX as u32 + 1).to_le_bytes());
    raw.write_all(&f[..HEADER_BYTES]).unwrap();
    let mut buf = Vec::new();
    assert_eq!(rx.recv(&mut buf).unwrap_err().kind, Kind::Corrupt);
    assert_eq!(buf.capacity(), 0);

    let (mut raw, link) = raw_and_link();
    let (mut rx, _tx) = link.split();
    rx.set_frame_limit(100);
    raw.write_all(&entry(&[0; 90])).unwrap();
    raw.write_all(&entry(&[0; 101])).unwrap();
    rx.recv(&mut buf).unwrap();
    assert!(rx.recv(&mut buf).unwrap_err().msg.contains("100 allowed"));
}

#[test]
fn altered_tls_bytes_are_corrupt() {
    // A relay between the two ends flips one byte of what the dialler sends after the handshake.
    let (a, b) = (id("a"), id("b"));
    let l = Listener::bind(&"127.0.0.1:0".parse().unwrap(), &a).unwrap();
    let Addr::Tcp(to) = l.addr().clone() else { panic!() };
    let relay = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at: Addr = relay.local_addr().unwrap().to_string().parse().unwrap();
    let flip = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let f2 = flip.clone();
    thread::spawn(move || {
        let (mut x, _) = relay.accept().unwrap();
        let mut y = TcpStream::connect(to).unwrap();
        let (mut x2, mut y2) = (x.try_clone().unwrap(), y.try_clone().unwrap());
        thread::spawn(move || std::io::copy(&mut y2, &mut x2));
        let mut buf = [0; 4096];
        while let Ok(n @ 1..) = x.read(&mut buf) {
            if f2.load(std::sync::atomic::Ordering::SeqCst) {
                buf[n / 2] ^= 1;
            }
            if y.write_all(&buf[..n]).is_err() {
                break;
            }
        }
    });
    thread::scope(|s| {
        let t = s.spawn(|| accept(&l));
        let (_rx, mut tx) = dial(&at, &b, Some(&a.key()), SOON).unwrap().split();
        let (mut rx, _tx) = t.join().unwrap().split();
        tx.send(&entry(b"good")).unwrap();
        rx.recv(&mut Vec::new()).unwrap();
        flip.store(true, std::sync::atomic::Ordering::SeqCst);
        tx.send(&entry(b"bad")).unwrap();
        assert_eq!(rx.recv(&mut Vec::new()).unwrap_err().kind, Kind::Corrupt);
    });
}

#[test]
fn close_unblocks_a_blocked_reader_and_a_blocked_writer() {
    both(|a, b| {
        let closer = a.closer();
        let (mut rx, mut tx) = a.split();
        thread::scope(|s| {
            let r = s.spawn(move || rx.recv(&mut Vec::new()).unwrap_err().kind);
            // Nobody receives at the other end, so the writer fills the buffers and blocks.
            let w = s.spawn(move || {
                let f = entry(&vec![0; 1 << 20]);
                loop {
                    if let Err(e) = tx.send(&f) {
                        assert_eq!(tx.send(&f).unwrap_err().kind, Kind::Link);
                        return e.kind;
                    }
                }
            });
            thread::sleep(Duration::from_millis(300));
            assert!(!r.is_finished() && !w.is_finished());
            let since = Instant::now();
            closer.clone().close();
            assert_eq!((r.join().unwrap(), w.join().unwrap()), (Kind::Link, Kind::Link));
            assert!(since.elapsed() < Duration::from_secs(2));
        });
        closer.close();
        drop(b);
    });
}

#[test]
fn a_writer_without_progress_times_out() {
    both(|a, b| {
        let (_rx, mut tx) = a.split();
        tx.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
        let f = entry(&vec![0; 1 << 20]);
        let e = (0..100).find_map(|_| tx.send(&f).err()).unwrap();
        assert_eq!(e.kind, Kind::Timeout);
        assert_eq!(tx.send(&f).unwrap_err().kind, Kind::Link);
        drop(b);
    });
}

#[test]
fn wrong_key_is_refused_and_both_keys_are_named() {
    let (a, b, c) = (id("a"), id("b"), id("c"));
    let l = Listener::bind(&"127.0.0.1:0".parse().unwrap(), &a).unwrap();
    thread::scope(|s| {
        let t = s.spawn(|| l.accept().unwrap().handshake().err().map(|e| e.kind));
        let e = dial(l.addr(), &b, Some(&c.key()), SOON).err().unwrap();
        assert_eq!(e.kind, Kind::Refused);
        assert!(e.msg.contains(&a.key().to_string()) && e.msg.contains(&c.key().to_string()), "{e}");
        assert!(t.join().unwrap().is_some());
    });
    assert_eq!(dial(l.addr(), &b, None, SOON).err().unwrap().kind, Kind::Config);
}

#[test]
fn silence_and_nonsense_instead_of_a_handshake() {
    let a = id("a");
    let l = Listener::bind(&"127.0.0.1:0".parse().unwrap(), &a).unwrap();
    let Addr::Tcp(to) = l.addr().clone() else { panic!() };
    let mut raw = TcpStream::connect(&to).unwrap();
    raw.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let e = l.accept().unwrap().handshake().err().unwrap();
    assert!(e.kind == Kind::Link && e.msg.contains("does not speak TLS"), "{e}");

    let _silent = TcpStream::connect(&to).unwrap();
    let since = Instant::now();
    let e = l.accept().unwrap().handshake().err().unwrap();
    assert_eq!(e.kind, Kind::Timeout, "{e}");
    assert!(since.elapsed() < Duration::from_secs(7));
    // A listener that nobody accepts from: the dialler's time runs out.
    let e = dial(l.addr(), &id("b"), Some(&a.key()), Duration::from_millis(200)).err().unwrap();
    assert_eq!(e.kind, Kind::Timeout, "{e}");
}

#[test]
fn socket_files() {
    let d = tempfile::tempdir().unwrap();
    let (a, p) = (id("a"), d.path().join("s"));
    let addr = Addr::Unix(p.clone());
    // A socket file left by a killed node is replaced.
    drop(std::os::unix::net::UnixListener::bind(&p).unwrap());
    let l = Listener::bind(&addr, &a).unwrap();
    assert_eq!(Listener::bind(&addr, &a).err().unwrap().kind, Kind::Refused);
    thread::scope(|s| {
        // The probe of the refused bind is still in the queue.
        let t = s.spawn(|| (0..9).find_map(|_| l.accept().err()).unwrap());
        thread::sleep(Duration::from_millis(100));
        l.close();
        assert_eq!(t.join().unwrap().kind, Kind::Link);
    });
    drop(l);
    assert!(!p.exists());
    assert_eq!(dial(&addr, &a, None, SOON).err().unwrap().kind, Kind::Link);
    std::fs::write(&p, "mine").unwrap();
    assert_eq!(Listener::bind(&addr, &a).err().unwrap().kind, Kind::Config);
    assert_eq!(std::fs::read(&p).unwrap(), b"mine");
}

#[test]
fn closing_a_tcp_listener_ends_accept() {
    let l = Listener::bind(&"127.0.0.1:0".parse().unwrap(), &id("a")).unwrap();
    thread::scope(|s| {
        let t = s.spawn(|| l.accept().err().unwrap().kind);
        thread::sleep(Duration::from_millis(100));
        l.close();
        assert_eq!(t.join().unwrap(), Kind::Link);
    });
}
