//! Peers that cheat in the handshake: somebody else's certificate, another protocol, an older TLS.

use super::*;
use crate::net::{Addr, Listener, dial};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::net::{TcpListener, TcpStream};
use std::thread;

const SOON: Duration = Duration::from_secs(5);

/// Shows the certificate of one identity and signs with the key of another.
#[derive(Debug)]
struct Thief(Arc<CertifiedKey>);

impl Thief {
    fn new(cert: &Identity, key: &Identity) -> Arc<Thief> {
        let key: PrivateKeyDer<'static> = key.private_key();
        let key = ring::sign::any_supported_type(&key).unwrap();
        Arc::new(Thief(Arc::new(CertifiedKey::new(vec![cert.cert()], key))))
    }
}

impl ResolvesServerCert for Thief {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

impl ResolvesClientCert for Thief {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
    fn has_certs(&self) -> bool {
        true
    }
}

/// Dials a server with this configuration, expecting `key`.
fn dial_to(config: ServerConfig, me: &Identity, key: &PeerKey) -> Error {
    let l = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr: Addr = l.local_addr().unwrap().to_string().parse().unwrap();
    thread::scope(|s| {
        s.spawn(move || {
            let (s, _) = l.accept().unwrap();
            let _ = answer(&Sock::Tcp(s), &Arc::new(config), Instant::now() + SOON, "test");
        });
        dial(&addr, me, Some(key), SOON).err().expect("the dialler must notice")
    })
}

fn server(resolver: Arc<Thief>, alpn: &[u8]) -> ServerConfig {
    let mut c = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(AnyKey(Signatures(provider()))))
        .with_cert_resolver(resolver);
    c.alpn_protocols = vec![alpn.to_vec()];
    c
}

#[test]
fn a_server_with_the_right_certificate_but_not_its_key_is_refused() {
    let (a, b, me) =
        (Identity::generate("a").unwrap(), Identity::generate("b").unwrap(), Identity::generate("c").unwrap());
    let e = dial_to(server(Thief::new(&a, &b), b"kagami/1"), &me, &a.key());
    assert!(e.msg.contains("BadSignature"), "{e}");
}

#[test]
fn another_protocol_version_is_told() {
    let (a, me) = (Identity::generate("a").unwrap(), Identity::generate("c").unwrap());
    let e = dial_to(server(Thief::new(&a, &a), b"kagami/99"), &me, &a.key());
    assert!(e.msg.contains("another version"), "{e}");
}

/// The accepting side's verdict on a client with this configuration.
fn answer_to(config: ClientConfig, a: &Arc<Identity>) -> Result<crate::net::Link> {
    let l = Listener::bind(&"127.0.0.1:0".parse().unwrap(), a).unwrap();
    let Addr::Tcp(to) = l.addr().clone() else { panic!() };
    thread::scope(|s| {
        s.spawn(move || {
            let sock = Sock::Tcp(TcpStream::connect(to).unwrap());
            let conn = ClientConnection::new(Arc::new(config), ServerName::try_from("kagami").unwrap()).unwrap();
            let _ = finish(conn.into(), &sock, Instant::now() + SOON, "test");
        });
        l.accept().unwrap().handshake()
    })
}

fn client() -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    #[derive(Debug)]
    struct Blind;
    impl ServerCertVerifier for Blind {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> TlsResult<ServerCertVerified> {
            Ok(ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> TlsResult<HandshakeSignatureValid> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> TlsResult<HandshakeSignatureValid> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }
    }
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Blind))
}

#[test]
fn a_client_must_show_a_certificate_and_hold_its_key() {
    let (a, b, c) =
        (Identity::generate("a").unwrap(), Identity::generate("b").unwrap(), Identity::generate("c").unwrap());
    let a = Arc::new(a);
    let alpn = vec![Purpose::Peer.alpn().to_vec()];

    let mut good = client().with_client_cert_resolver(Thief::new(&b, &b));
    good.alpn_protocols = alpn.clone();
    assert_eq!(answer_to(good, &a).unwrap().peer().key, Some(b.key()));

    let mut thief = client().with_client_cert_resolver(Thief::new(&b, &c));
    thief.alpn_protocols = alpn.clone();
    let e = answer_to(thief, &a).err().unwrap();
    assert!(e.msg.contains("BadSignature"), "{e}");

    let mut nobody = client().with_no_client_auth();
    nobody.alpn_protocols = alpn;
    assert!(answer_to(nobody, &a).is_err());

    let e = answer_to(client().with_client_cert_resolver(Thief::new(&b, &b)), &a).err().unwrap();
    assert!(e.msg.contains("does not name kagami's protocol"), "{e}");
}

/// A provider whose keys wear out after `records` records instead of 2^24.
fn short_lived_keys(records: u64) -> Arc<CryptoProvider> {
    let rustls::SupportedCipherSuite::Tls13(s) = ring::cipher_suite::TLS13_AES_128_GCM_SHA256 else { panic!() };
    let c = &s.common;
    let common = rustls::crypto::CipherSuiteCommon {
        suite: c.suite,
        hash_provider: c.hash_provider,
        confidentiality_limit: records,
    };
    let suite = rustls::Tls13CipherSuite { common, hkdf_provider: s.hkdf_provider, aead_alg: s.aead_alg, quic: None };
    let mut p = ring::default_provider();
    p.cipher_suites = vec![rustls::SupportedCipherSuite::Tls13(Box::leak(Box::new(suite)))];
    Arc::new(p)
}

#[test]
fn a_link_outlives_its_keys_in_both_directions() {
    use crate::format::frame::{self, FrameKind};
    use crate::net::{FrameReader, FrameWriter};
    const FRAMES: u32 = 300;
    let (a, b) = (Arc::new(Identity::generate("a").unwrap()), Identity::generate("b").unwrap());
    let l = Listener::bind(&"127.0.0.1:0".parse().unwrap(), &a).unwrap();
    let Addr::Tcp(to) = l.addr().clone() else { panic!() };
    let p = short_lived_keys(50);
    let pinned = Pinned { signatures: Signatures(p.clone()), expected: a.key(), seen: Mutex::new(None) };
    let mut c = ClientConfig::builder_with_provider(p)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pinned))
        .with_client_auth_cert(vec![b.cert()], b.private_key())
        .unwrap();
    c.alpn_protocols = vec![Purpose::Peer.alpn().to_vec()];
    let exchange = |mut rx: FrameReader, mut tx: FrameWriter| {
        thread::scope(|s| {
            s.spawn(move || {
                for i in 0..FRAMES {
                    tx.send(&frame::build(FrameKind::Entry, &[], &vec![i as u8; 100_000])).unwrap();
                }
                tx
            });
            let mut buf = Vec::new();
            for i in 0..FRAMES {
                let h = rx.recv(&mut buf).unwrap();
                assert!(frame::data_part(&buf, &h).iter().all(|x| *x == i as u8));
            }
            rx
        });
    };
    thread::scope(|s| {
        s.spawn(|| {
            let sock = Sock::Tcp(TcpStream::connect(to).unwrap());
            let conn = ClientConnection::new(Arc::new(c), ServerName::try_from("kagami").unwrap()).unwrap();
            let done = finish(conn.into(), &sock, Instant::now() + SOON, "test").unwrap();
            let (sock, tls) = (Arc::new(sock), Arc::new(Mutex::new(done.conn)));
            exchange(FrameReader::new(sock.clone(), Some(tls.clone())), FrameWriter::new(sock, Some(tls)));
        });
        let (rx, tx) = l.accept().unwrap().handshake().unwrap().split();
        exchange(rx, tx);
    });
}
