//! The identity of a node: an Ed25519 key with a certificate that it signed itself, and the fingerprint that peers pin.

use super::{addr, private, text};
use crate::base::error::At;
use crate::base::{Error, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::fmt;
use std::path::Path;
use std::str::FromStr;

const KEY_PREFIX: &str = "kgm1:";

/// Fingerprint of a certificate (BLAKE3 of its DER form): what a peer is known by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerKey(pub [u8; 32]);

impl PeerKey {
    /// The fingerprint of a certificate.
    pub fn of(cert_der: &[u8]) -> PeerKey {
        PeerKey(*blake3::hash(cert_der).as_bytes())
    }
}

impl fmt::Display for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text::encode(KEY_PREFIX, &self.0))
    }
}

impl fmt::Debug for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PeerKey {
    type Err = Error;
    /// Reads `kgm1:…`. A mistyped character is noticed by the checksum ([`crate::base::Kind::Config`]).
    fn from_str(s: &str) -> Result<PeerKey> {
        let b = text::decode(KEY_PREFIX, s, "peer key")?;
        let n = b.len();
        b.try_into().map(PeerKey).map_err(|_| Error::config(format!("peer key: {n} bytes, it must have 32")))
    }
}

/// A node's own key and certificate.
pub struct Identity {
    cert: CertificateDer<'static>,
    private: PrivatePkcs8KeyDer<'static>,
    pem: String,
}

impl fmt::Debug for Identity {
    // The private key must never reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.key())
    }
}

impl Identity {
    /// A new key and a certificate for it. `site` is for people who look into the certificate; nothing relies on it.
    pub fn generate(site: &str) -> Result<Identity> {
        addr::check_site(site)?;
        let failed = |e: rcgen::Error| Error::failed(format!("making an identity: {e}"));
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(failed)?;
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).map_err(failed)?;
        let mut name = rcgen::DistinguishedName::new();
        name.push(rcgen::DnType::CommonName, format!("kagami {site}"));
        params.distinguished_name = name;
        let cert = params.self_signed(&key).map_err(failed)?;
        Ok(Identity {
            cert: cert.der().clone(),
            private: PrivatePkcs8KeyDer::from(key.serialize_der()),
            pem: format!("{}{}", cert.pem(), key.serialize_pem()),
        })
    }

    /// Reads an identity file. Refuses one that others can read.
    pub fn load(path: &Path) -> Result<Identity> {
        let Some(pem) = private::read(path)? else {
            return Err(Error::config(format!("{}: no identity here yet; run kagami keygen", path.display())));
        };
        Identity::from_pem(pem).at(path.display())
    }

    /// Writes the identity file (one PEM file, 0600), replacing any other atomically.
    pub fn save(&self, path: &Path) -> Result<()> {
        private::write(path, self.pem.as_bytes())
    }

    fn from_pem(pem: String) -> Result<Identity> {
        let cert = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|e| Error::corrupt(format!("no certificate in the identity: {e}")))?;
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes())
            .map_err(|e| Error::corrupt(format!("no private key in the identity: {e}")))?;
        let PrivateKeyDer::Pkcs8(private) = key else {
            return Err(Error::corrupt("the private key of the identity is not in PKCS#8 form"));
        };
        let id = Identity { cert, private, pem };
        // A key and a certificate that do not belong together must be noticed here, not at the first link.
        super::tls::check_identity(&id)?;
        Ok(id)
    }

    /// The fingerprint that peers pin.
    pub fn key(&self) -> PeerKey {
        PeerKey::of(&self.cert)
    }

    pub(super) fn cert(&self) -> CertificateDer<'static> {
        self.cert.clone()
    }

    pub(super) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.private.clone_key())
    }
}
