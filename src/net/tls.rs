//! TLS 1.3 with pinned keys. A certificate is trusted for its fingerprint alone: no authority, no name, no date.
//!
//! The dialler knows which key it wants and refuses any other. The accepting side takes any well-formed certificate, since
//! only the node can decide who a key belongs to, but in both directions the peer must prove with its signature over the
//! handshake that it holds the private key. There is no resumption: each link proves it anew.

use super::identity::{Identity, PeerKey};
use super::link::Purpose;
use super::sock::{Sock, Until, link_error, timed_out};
use crate::base::sync::Mutex;
use crate::base::{Error, Kind, Result};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, Connection, DigitallySignedStruct, DistinguishedName,
    ServerConfig, ServerConnection, SignatureScheme,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Largest certificate that is looked at, bytes; ours have some 300.
const CERT_BYTES_MAX: usize = 16 << 10;

type TlsResult<T> = std::result::Result<T, rustls::Error>;

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// What both directions check alike.
#[derive(Debug)]
struct Signatures(Arc<CryptoProvider>);

impl Signatures {
    fn tls12(&self) -> TlsResult<HandshakeSignatureValid> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn tls13(&self, m: &[u8], c: &CertificateDer<'_>, d: &DigitallySignedStruct) -> TlsResult<HandshakeSignatureValid> {
        if d.scheme != SignatureScheme::ED25519 {
            return Err(CertificateError::BadSignature.into());
        }
        verify_tls13_signature(m, c, d, &self.0.signature_verification_algorithms)
    }

    fn well_formed(&self, cert: &CertificateDer<'_>, more: &[CertificateDer<'_>]) -> TlsResult<PeerKey> {
        if cert.len() > CERT_BYTES_MAX || !more.is_empty() {
            return Err(CertificateError::BadEncoding.into());
        }
        ParsedCertificate::try_from(cert)?;
        Ok(PeerKey::of(cert))
    }
}

/// The dialler's side: exactly one key will do.
#[derive(Debug)]
struct Pinned {
    signatures: Signatures,
    expected: PeerKey,
    /// What was shown, for the error message.
    seen: Mutex<Option<PeerKey>>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        cert: &CertificateDer<'_>,
        more: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> TlsResult<ServerCertVerified> {
        let key = self.signatures.well_formed(cert, more)?;
        *self.seen.lock() = Some(key);
        if key != self.expected {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _m: &[u8],
        _c: &CertificateDer<'_>,
        _d: &DigitallySignedStruct,
    ) -> TlsResult<HandshakeSignatureValid> {
        self.signatures.tls12()
    }
    fn verify_tls13_signature(
        &self,
        m: &[u8],
        c: &CertificateDer<'_>,
        d: &DigitallySignedStruct,
    ) -> TlsResult<HandshakeSignatureValid> {
        self.signatures.tls13(m, c, d)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// The accepting side: any key, but a proven one.
#[derive(Debug)]
struct AnyKey(Signatures);

impl ClientCertVerifier for AnyKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn verify_client_cert(
        &self,
        cert: &CertificateDer<'_>,
        more: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> TlsResult<ClientCertVerified> {
        self.0.well_formed(cert, more).map(|_| ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _m: &[u8],
        _c: &CertificateDer<'_>,
        _d: &DigitallySignedStruct,
    ) -> TlsResult<HandshakeSignatureValid> {
        self.0.tls12()
    }
    fn verify_tls13_signature(
        &self,
        m: &[u8],
        c: &CertificateDer<'_>,
        d: &DigitallySignedStruct,
    ) -> TlsResult<HandshakeSignatureValid> {
        self.0.tls13(m, c, d)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

fn identity_error(e: rustls::Error) -> Error {
    Error::failed(format!("the identity cannot be used for TLS: {e}"))
}

/// Notices a key that does not belong to its certificate.
pub fn check_identity(id: &Identity) -> Result<()> {
    accepting(id).map(|_| ())
}

/// The accepting side's configuration.
pub fn accepting(id: &Identity) -> Result<Arc<ServerConfig>> {
    let p = provider();
    let mut c = ServerConfig::builder_with_provider(p.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(identity_error)?
        .with_client_cert_verifier(Arc::new(AnyKey(Signatures(p))))
        .with_single_cert(vec![id.cert()], id.private_key())
        .map_err(identity_error)?;
    c.alpn_protocols = Purpose::ALL.iter().map(|p| p.alpn().to_vec()).collect();
    c.send_tls13_tickets = 0;
    c.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(c))
}

/// A finished handshake.
pub struct Done {
    pub conn: Connection,
    pub key: PeerKey,
    pub purpose: Purpose,
    /// Equal at both ends and different for every link: proofs are bound to it.
    pub binding: [u8; 32],
}

/// Dials: the peer must show `expected`.
pub fn call(
    sock: &Sock,
    id: &Identity,
    expected: &PeerKey,
    purpose: Purpose,
    deadline: Instant,
    to: &str,
) -> Result<Done> {
    let p = provider();
    let pinned = Arc::new(Pinned { signatures: Signatures(p.clone()), expected: *expected, seen: Mutex::new(None) });
    let mut c = ClientConfig::builder_with_provider(p)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(identity_error)?
        .dangerous()
        .with_custom_certificate_verifier(pinned.clone())
        .with_client_auth_cert(vec![id.cert()], id.private_key())
        .map_err(identity_error)?;
    c.alpn_protocols = vec![purpose.alpn().to_vec()];
    c.resumption = Resumption::disabled();
    c.enable_sni = false;
    let name = ServerName::try_from("kagami").map_err(|e| Error::failed(format!("TLS name: {e}")))?;
    let conn = ClientConnection::new(Arc::new(c), name).map_err(identity_error)?;
    let r = finish(conn.into(), sock, deadline, to);
    match *pinned.seen.lock() {
        Some(seen) if seen != *expected => Err(Error::refused(format!(
            "{to} shows the key {seen}, but {expected} is expected: another node answers there, or it has a new identity \
             (then invite it again)"
        ))),
        _ => r,
    }
}

/// Accepts: whoever it is, its key is proven when this returns.
pub fn answer(sock: &Sock, config: &Arc<ServerConfig>, deadline: Instant, from: &str) -> Result<Done> {
    let conn = ServerConnection::new(config.clone()).map_err(identity_error)?;
    finish(conn.into(), sock, deadline, from)
}

fn finish(mut conn: Connection, sock: &Sock, deadline: Instant, who: &str) -> Result<Done> {
    let mut io = Until { sock, deadline };
    while conn.is_handshaking() || conn.wants_write() {
        conn.complete_io(&mut io).map_err(|e| handshake_error(&e, who))?;
    }
    sock.set_read_timeout(None)?;
    sock.set_write_timeout(None)?;
    let cert = conn.peer_certificates().and_then(|c| c.first());
    let key = cert.map(|c| PeerKey::of(c)).ok_or_else(|| Error::refused(format!("{who} shows no certificate")))?;
    let purpose = conn
        .alpn_protocol()
        .and_then(Purpose::from_alpn)
        .ok_or_else(|| Error::refused(format!("{who} does not name kagami's protocol")))?;
    let binding = conn
        .export_keying_material([0u8; 32], b"EXPORTER-kagami-binding", None)
        .map_err(|e| Error::link(format!("TLS handshake with {who}: {e}")))?;
    conn.set_buffer_limit(None);
    Ok(Done { conn, key, purpose, binding })
}

fn handshake_error(e: &std::io::Error, who: &str) -> Error {
    if timed_out(e) {
        return Error::new(Kind::Timeout, format!("TLS handshake with {who}: not finished in time"));
    }
    match e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
        Some(
            rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol)
            | rustls::Error::NoApplicationProtocol,
        ) => Error::link(format!("{who} speaks another version of kagami's protocol")),
        Some(rustls::Error::InvalidMessage(_)) => {
            Error::link(format!("{who} does not speak TLS: is this a kagami port?"))
        }
        _ => link_error(e, &format!("TLS handshake with {who}")),
    }
}

/// A decryption or protocol failure after the handshake: altered bytes (G7).
pub fn stream_error(e: &rustls::Error) -> Error {
    match e {
        rustls::Error::AlertReceived(a) => Error::link(format!("the peer ended TLS: {a:?}")),
        e => Error::corrupt(format!("TLS: {e}")),
    }
}

/// Time left until `deadline`, at least a millisecond (zero would mean "for ever" to a socket).
pub fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
