//! Enrolment: how one pasted token pins the keys of both sides.
//!
//! ```text
//! A: peer invite → token (site, addresses, key of A, one-time secret)      paste      B: peer accept
//!
//! B dials A for Purpose::Enrol, A must show the key of the token          (B has pinned A)
//! B → A  EnrolRequest: site and address of B, its key, id of the invitation, proof
//! A      checks that the key is the one that B proved in TLS, and the proof; spends the invitation durably; admits B
//! A → B  EnrolReply: accepted, or why not                                 (A has pinned B)
//! ```
//! The proof is a keyed BLAKE3 hash under the secret over both keys and the TLS link's binding, so it proves nothing on
//! any other link.

use super::addr::{Addr, check_site};
use super::identity::{Identity, PeerKey};
use super::invite::{InviteId, Invites, Secret, Token};
use super::link::{HANDSHAKE_TIMEOUT, Link, Purpose, dial_for};
use crate::base::error::At;
use crate::base::{Error, Kind, Result};
use crate::format::codec;
use crate::format::frame::{self, FrameKind};
use bincode::{Decode, Encode};
use std::time::Duration;

/// Largest enrolment message, bytes.
pub const ENROL_BYTES_MAX: usize = 4096;
/// How long either side waits for the other's message.
pub const ENROL_TIMEOUT: Duration = Duration::from_secs(10);
const VERSION: u16 = 1;

/// What B sends. Version 1.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct EnrolRequest {
    /// Version of this message.
    pub version: u16,
    /// B's site.
    pub site: String,
    /// Where B listens; empty if nobody can dial it.
    pub addr: String,
    /// B's key.
    pub key: [u8; 32],
    /// Which invitation.
    pub invite: InviteId,
    /// Proof that B holds the secret.
    pub proof: [u8; 32],
}

/// What A answers. Version 1.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct EnrolReply {
    /// Version of this message.
    pub version: u16,
    /// A knows B now.
    pub accepted: bool,
    /// A's site.
    pub site: String,
    /// Why not, for people; empty if accepted.
    pub reason: String,
}

/// A peer that has been enrolled: put it into the [`super::PeerStore`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolled {
    /// Its site.
    pub site: String,
    /// Where it listens, if anywhere.
    pub addr: Option<Addr>,
    /// Its key, proven on the link.
    pub key: PeerKey,
}

/// The proof that `request` was made by a holder of `secret` on the link with this `binding`.
pub fn proof(secret: &Secret, inviter: &PeerKey, binding: &[u8; 32], request: &EnrolRequest) -> [u8; 32] {
    secret.keyed(&[
        b"kagami enrol 1",
        &inviter.0,
        &request.key,
        binding,
        request.site.as_bytes(),
        request.addr.as_bytes(),
    ])
}

fn message<T: Encode>(m: &T) -> Result<Vec<u8>> {
    Ok(frame::build(FrameKind::Msg, &codec::encode(m)?, &[]))
}

fn own_proof(secret: &Secret, key: &PeerKey, binding: &[u8; 32], r: &EnrolRequest) -> bool {
    // blake3::Hash compares in constant time; a plain comparison would tell how much of a guess was right.
    blake3::Hash::from(proof(secret, key, binding, r)) == blake3::Hash::from(r.proof)
}

/// Checks what a request says about its sender; errors are told to the peer.
fn read_request(r: &EnrolRequest, proven: &PeerKey) -> Result<Enrolled> {
    if r.version != VERSION {
        return Err(Error::config(format!("enrolment of version {}; {VERSION} is spoken here", r.version)));
    }
    if r.key != proven.0 {
        return Err(Error::refused("the key in the request is not the one of this link"));
    }
    check_site(&r.site)?;
    let addr = if r.addr.is_empty() { None } else { Some(r.addr.parse::<Addr>()?) };
    Ok(Enrolled { site: r.site.clone(), addr, key: *proven })
}

/// A's side: serves one link of [`Purpose::Enrol`]. `now_s` is the time in Unix seconds. `admit` stores the new peer
/// ([`super::PeerStore::update`]) before B is told that it is known; its error goes to B as the reason.
///
/// A wrong, spent or expired token is [`Kind::Refused`], and B learns no more than that. A spent invitation stays spent
/// even if `admit` fails.
pub fn enrol_serve(
    link: Link,
    identity: &Identity,
    site: &str,
    invites: &Invites,
    now_s: i64,
    admit: impl FnOnce(&Enrolled) -> Result<()>,
) -> Result<Enrolled> {
    let (peer, binding, purpose) = (link.peer(), link.binding(), link.purpose());
    let Some(proven) = peer.key.filter(|_| purpose == Purpose::Enrol) else {
        return Err(Error::refused(format!("{}: this link is not for enrolment", peer.addr)));
    };
    let (mut rx, mut tx) = link.split();
    rx.set_frame_limit(ENROL_BYTES_MAX);
    tx.set_write_timeout(Some(ENROL_TIMEOUT))?;
    let mut buf = Vec::new();
    let head = rx.recv_within(&mut buf, ENROL_TIMEOUT)?;
    let request: EnrolRequest = codec::decode(frame::head_part(&buf, &head))?;
    let decide = || -> Result<Enrolled> {
        let who = read_request(&request, &proven)?;
        let key = identity.key();
        if !invites.redeem(&request.invite, now_s, |s| own_proof(s, &key, &binding, &request))? {
            return Err(Error::refused("the invitation is not known here, was used already, or has expired"));
        }
        admit(&who)?;
        Ok(who)
    };
    let r = decide();
    let reason = match &r {
        Ok(_) => String::new(),
        Err(e) if matches!(e.kind, Kind::Refused | Kind::Config) => e.msg.clone(),
        // File names and errnos of this host are nobody else's business.
        Err(_) => "it failed at this side, see its log".to_string(),
    };
    let reply = EnrolReply { version: VERSION, accepted: r.is_ok(), site: site.to_string(), reason };
    tx.send(&message(&reply)?).at("answering an enrolment")?;
    r.at(format!("enrolment of {}", peer.addr))
}

/// B's side: dials the addresses of the token in turn, proves the secret and tells A who B is. Returns A, to be stored.
///
/// [`Kind::Refused`] with A's reason if A says no. If the link breaks before the answer, A may know B already: the
/// error says so.
pub fn enrol_call(token: &Token, identity: &Identity, my_site: &str, my_addr: Option<&Addr>) -> Result<Enrolled> {
    check_site(my_site)?;
    if token.site == my_site || token.key == identity.key() {
        return Err(Error::config(format!(
            "this invitation was made by {} itself: paste it at the other site",
            token.site
        )));
    }
    let mut last = Error::config("invite token: no address in it");
    for addr in &token.addrs {
        match dial_for(Purpose::Enrol, addr, identity, Some(&token.key), HANDSHAKE_TIMEOUT) {
            Ok(link) => return call(link, token, addr, identity, my_site, my_addr),
            Err(e) => last = e,
        }
    }
    Err(last.context(format!("reaching {}", token.site)))
}

fn call(link: Link, token: &Token, addr: &Addr, id: &Identity, site: &str, my_addr: Option<&Addr>) -> Result<Enrolled> {
    if link.peer().key != Some(token.key) {
        return Err(Error::config(format!("{addr}: enrolment needs a TCP address")));
    }
    let binding = link.binding();
    let mut request = EnrolRequest {
        version: VERSION,
        site: site.to_string(),
        addr: my_addr.map(ToString::to_string).unwrap_or_default(),
        key: id.key().0,
        invite: token.secret.id(),
        proof: [0; 32],
    };
    request.proof = proof(&token.secret, &token.key, &binding, &request);
    let (mut rx, mut tx) = link.split();
    rx.set_frame_limit(ENROL_BYTES_MAX);
    tx.set_write_timeout(Some(ENROL_TIMEOUT))?;
    tx.send(&message(&request)?)?;
    let mut buf = Vec::new();
    let head = rx.recv_within(&mut buf, ENROL_TIMEOUT).map_err(|mut e| {
        e.msg = format!(
            "no answer from {} ({}); look there whether it knows {site} now, else invite again",
            token.site, e.msg
        );
        e
    })?;
    let reply: EnrolReply = codec::decode(frame::head_part(&buf, &head))?;
    if !reply.accepted {
        let why: String = reply.reason.chars().filter(|c| !c.is_control()).take(300).collect();
        return Err(Error::new(Kind::Refused, format!("{} refuses the enrolment: {why}", token.site)));
    }
    Ok(Enrolled { site: token.site.clone(), addr: Some(addr.clone()), key: token.key })
}
