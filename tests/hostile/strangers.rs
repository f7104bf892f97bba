//! Who has no key that the node knows: bytes that are no TLS, identities that nobody invited, replays, reflections, floods.

use super::bed::{Bed, Peer, SOON};
use super::case;
use super::support::Rng;
use kagami::format::frame::{self, FrameKind};
use kagami::format::msg::{Msg, RejectCode, Wish};
use kagami::net::{Identity, Token, enrol_call};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

fn connect(bed: &Bed) -> TcpStream {
    let s = TcpStream::connect(("127.0.0.1", bed.port)).expect("a connection");
    s.set_read_timeout(Some(SOON)).expect("a time-out");
    s
}

/// Reads until the node ends the connection.
fn ended(mut s: impl Read, name: &str) {
    let mut buf = [0; 4096];
    let until = Instant::now() + SOON;
    while matches!(s.read(&mut buf), Ok(n) if n > 0) {
        assert!(Instant::now() < until, "{name}: the node goes on with it");
    }
}

/// Takes whatever certificate the node shows.
#[derive(Debug)]
struct Any;

impl ServerCertVerifier for Any {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519, SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// What a TLS client of our own shows.
enum Shown {
    Nothing,
    /// A certificate that was valid for a day in 1975, with this kind of key.
    Expired(&'static rcgen::SignatureAlgorithm),
}

fn tls(bed: &Bed, shown: &Shown, alpn: &[&[u8]]) -> StreamOwned<ClientConnection, TcpStream> {
    let c = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Any));
    let mut c = match shown {
        Shown::Nothing => c.with_no_client_auth(),
        Shown::Expired(alg) => {
            let key = rcgen::KeyPair::generate_for(alg).expect("a key");
            let mut p = rcgen::CertificateParams::new(vec![]).expect("parameters");
            p.not_before = rcgen::date_time_ymd(1975, 1, 1);
            p.not_after = rcgen::date_time_ymd(1975, 1, 2);
            let cert = p.self_signed(&key).expect("a certificate");
            let key = PrivatePkcs8KeyDer::from(key.serialize_der());
            c.with_client_auth_cert(vec![cert.der().clone()], key.into()).expect("an identity")
        }
    };
    c.alpn_protocols = alpn.iter().map(|a| a.to_vec()).collect();
    let name = ServerName::try_from("kagami").expect("a name");
    StreamOwned::new(ClientConnection::new(Arc::new(c), name).expect("a client"), connect(bed))
}

pub fn run(bed: &mut Bed, seed: u64) {
    no_tls(bed, seed);
    identities(bed);
    enrolments(bed);
    replays(bed);
    floods(bed);
}

fn no_tls(bed: &mut Bed, seed: u64) {
    let mut rng = Rng::new(seed);
    let long = [&[22, 3, 3, 0xff, 0xff][..], &[1; 70_000]].concat();
    let greeting = Msg::Hello(bed.hello()).frame().expect("a greeting");
    let all: Vec<(&str, Vec<u8>)> = vec![
        ("random bytes", rng.bytes(4096)),
        ("zeros", vec![0; 100_000]),
        ("a request for a page", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("a TLS record of 65535 bytes", long),
        ("a TLS record of no bytes", vec![22, 3, 3, 0, 0]),
        ("a TLS alert", vec![21, 3, 3, 0, 2, 2, 40]),
        ("half of a TLS record", vec![22, 3, 1, 0x20, 0, 1]),
        ("a greeting without TLS", greeting),
    ];
    for (name, bytes) in all {
        case(bed, name, &["an incoming link ended"], |bed| {
            let mut s = connect(bed);
            let _ = s.write_all(&bytes);
            let _ = s.shutdown(Shutdown::Write);
            ended(s, name);
        });
    }
    case(bed, "a connection that ends at once", &["an incoming link ended"], |bed| drop(connect(bed)));
}

fn identities(bed: &mut Bed) {
    let peer: &[&[u8]] = &[b"kagami/1"];
    let clients: Vec<(&str, Shown, &[&[u8]])> = vec![
        ("no certificate", Shown::Nothing, peer),
        ("an expired certificate", Shown::Expired(&rcgen::PKCS_ED25519), peer),
        ("a key of another kind", Shown::Expired(&rcgen::PKCS_ECDSA_P256_SHA256), peer),
        ("another protocol", Shown::Expired(&rcgen::PKCS_ED25519), &[b"h2"]),
        ("no protocol", Shown::Expired(&rcgen::PKCS_ED25519), &[]),
    ];
    for (name, shown, alpn) in clients {
        case(bed, name, &["an incoming link ended"], |bed| {
            let mut s = tls(bed, &shown, alpn);
            let greeting = Msg::Hello(bed.hello()).frame().expect("a greeting");
            if s.write_all(&greeting).and_then(|()| s.flush()).is_ok() {
                // With a well-formed certificate the handshake is done, and the greeting is refused for its key.
                let _ = s.sock.shutdown(Shutdown::Write);
            }
            ended(s, name);
        });
    }
    for site in ["evil", "honest", "victim"] {
        let name = format!("a self-made identity that says it is {site}");
        case(bed, &name, &["does not know site"], |bed| {
            let own = Identity::generate(site).expect("an identity");
            let link = kagami::net::dial(&bed.addr, &own, Some(&bed.key), SOON).expect("a link");
            let mut p = Peer::new(link);
            let mut hello = bed.hello();
            hello.site = site.into();
            p.say(&Msg::Hello(hello)).expect("a greeting");
            assert!(matches!(p.hear(), Ok(Msg::Reject { code: RejectCode::UnknownPeer, .. })));
        });
    }
    case(bed, "the node shows another key than expected", &["an incoming link ended"], |bed| {
        let other = Identity::generate("x").expect("an identity").key();
        let e = kagami::net::dial(&bed.addr, &bed.evil, Some(&other), SOON).map(drop).expect_err("a wrong key");
        assert!(e.msg.contains("shows the key"), "{e}");
    });
}

fn enrolments(bed: &mut Bed) {
    let token =
        |bed: &Bed, secret| Token { site: "victim".into(), addrs: vec![bed.addr.clone()], key: bed.key, secret };
    case(bed, "a token of one's own making", &["not known here"], |bed| {
        let secret = kagami::net::invite::Secret::generate().expect("a secret");
        let e = enrol_call(&token(bed, secret), &bed.evil, "evil", None).map(drop).expect_err("refused");
        assert!(e.msg.contains("not known here"), "{e}");
    });
    let message = |b: &[u8]| frame::build(FrameKind::Msg, b, b"");
    let mut zeros = vec![0; 200];
    zeros[0] = 1;
    let all: Vec<(&str, Vec<u8>)> = vec![
        ("an enrolment of nothing", message(b"")),
        ("an enrolment of 1 MiB", message(&vec![0; 1 << 20])),
        ("an enrolment with bytes behind it", message(&zeros)),
        ("an enrolment whose lengths are 2^64-1", message(&[&[1, 253][..], &[0xff; 64]].concat())),
        ("a greeting to the enrolment", Msg::Hello(bed.hello()).frame().expect("a greeting")),
    ];
    for (name, bytes) in all {
        case(bed, name, &["an incoming link ended"], |bed| {
            let mut s = tls(bed, &Shown::Expired(&rcgen::PKCS_ED25519), &[b"kagami-enrol/1"]);
            let _ = s.write_all(&bytes).and_then(|()| s.flush());
            ended(s, name);
        });
    }
}

/// Passes bytes both ways; keeps what the first one sends.
fn relay(a: &TcpStream, b: &TcpStream) -> Arc<Mutex<Vec<u8>>> {
    let kept = Arc::new(Mutex::new(Vec::new()));
    for (from, to, keep) in [(a, b, Some(kept.clone())), (b, a, None)] {
        let (mut from, mut to) = (from.try_clone().expect("a socket"), to.try_clone().expect("a socket"));
        std::thread::spawn(move || {
            let mut buf = [0; 16384];
            while let Ok(n) = from.read(&mut buf) {
                if n == 0 || to.write_all(&buf[..n]).is_err() {
                    break;
                }
                if let Some(k) = &keep {
                    k.lock().expect("kept").extend_from_slice(&buf[..n]);
                }
            }
            let _ = to.shutdown(Shutdown::Both);
            let _ = from.shutdown(Shutdown::Both);
        });
    }
    kept
}

fn replays(bed: &mut Bed) {
    case(bed, "a session that is played again", &["TLS handshake"], |bed| {
        let l = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = format!("127.0.0.1:{}", l.local_addr().expect("a port").port());
        let port = bed.port;
        let middle = std::thread::spawn(move || {
            let (a, _) = l.accept().expect("a connection");
            let b = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
            (relay(&a, &b), a, b)
        });
        let link = kagami::net::dial(&addr.parse().expect("an address"), &bed.evil, Some(&bed.key), SOON);
        let mut p = Peer::new(link.expect("a link"));
        let mut hello = bed.hello();
        hello.wish = Wish::Ask;
        p.say(&Msg::Hello(hello)).expect("a greeting");
        assert!(matches!(p.hear(), Ok(Msg::Welcome(_))));
        let (kept, _a, _b) = middle.join().expect("the middle");
        drop(p);
        let bytes = kept.lock().expect("kept").clone();
        assert!(bytes.len() > 500, "{} bytes", bytes.len());
        let mut s = connect(bed);
        let _ = s.write_all(&bytes);
        ended(s, "a session that is played again");
    });
    case(bed, "a handshake that is reflected", &[], |bed| {
        let l = TcpListener::bind(("127.0.0.1", bed.lair)).expect("the port of the evil site");
        let (a, _) = l.accept().expect("the node dials");
        let b = connect(bed);
        let _kept = relay(&a, &b);
        let told = || bed.pair("lure").is_some_and(|p| p["reason"].to_string().contains("shows the key"));
        assert!(super::support::proc::wait_until(SOON, told), "{:?}", bed.pair("lure"));
    });
}

/// A peer with the right key gets in although all of these stand at the door.
#[track_caller]
fn peer_gets_in(bed: &Bed, what: &str) {
    let begun = Instant::now();
    while begun.elapsed() < SOON {
        if let Ok((_, Msg::Welcome(_))) = bed.greet(|h| h.wish = Wish::Ask) {
            return;
        }
    }
    panic!("{what}: no peer gets in");
}

fn floods(bed: &mut Bed) {
    let idle = bed.usage();
    case(bed, "slow loris: 200 that trickle", &["an incoming link ended"], |bed| {
        let mut all: Vec<TcpStream> = (0..200).map(|_| connect(bed)).collect();
        for _ in 0..3 {
            for s in &mut all {
                let _ = s.write_all(&[22]);
            }
            peer_gets_in(bed, "slow loris");
            let now = bed.usage();
            assert!(now.threads < idle.threads + 140, "{now:?}");
        }
    });
    case(bed, "10,000 half-open connections", &["an incoming link ended"], |bed| {
        let addr = SocketAddr::from(([127, 0, 0, 1], bed.port));
        let open = std::thread::scope(|s| {
            // One that finds the queue full is tried again at once, not when the kernel thinks of it.
            let one = || (0..500).find_map(|_| TcpStream::connect_timeout(&addr, Duration::from_millis(50)).ok());
            let some = move || (0..1250).filter_map(|_| one()).collect::<Vec<_>>();
            let all: Vec<_> = (0..8).map(|_| s.spawn(some)).collect();
            all.into_iter().flat_map(|t| t.join().expect("connections")).collect::<Vec<_>>()
        });
        assert!(open.len() >= 10_000, "{} connections", open.len());
        let now = bed.usage();
        assert!(now.threads < idle.threads + 140 && now.fds < idle.fds + 170, "{now:?}");
        peer_gets_in(bed, "10,000 connections");
    });
    case(bed, "300 that finish the handshake and say nothing", &["an incoming link ended"], |bed| {
        let own = Identity::generate("stranger").expect("an identity");
        let all: Vec<_> =
            (0..300).filter_map(|_| kagami::net::dial(&bed.addr, &own, Some(&bed.key), SOON).ok()).collect();
        assert!(all.len() > 100, "{} links", all.len());
        let now = bed.usage();
        assert!(now.threads < idle.threads + 140 && now.memory < idle.memory + (200 << 20), "{now:?}");
        peer_gets_in(bed, "300 silent links");
    });
    case(bed, "50 greetings that do not end", &["an incoming link ended"], |bed| {
        let own = Identity::generate("stranger").expect("an identity");
        let mut all = Vec::new();
        for _ in 0..50 {
            let Ok(link) = kagami::net::dial(&bed.addr, &own, Some(&bed.key), SOON) else { continue };
            let mut p = Peer::new(link);
            // The header of a message of the largest size, and the first megabyte of it.
            let mut f = frame::build(FrameKind::Msg, &vec![0; 4 << 20], b"");
            f.truncate(1 << 20);
            let _ = p.w.set_write_timeout(Some(Duration::from_millis(500)));
            let _ = p.w.send(&f);
            all.push(p);
        }
        peer_gets_in(bed, "greetings that do not end");
        let now = bed.usage();
        assert!(now.memory < idle.memory + (400 << 20), "{now:?}");
    });
}
