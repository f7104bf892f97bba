//! Identities, tokens, the peers file and enrolment.

use super::*;
use crate::base::Kind;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

fn id(site: &str) -> Arc<Identity> {
    Arc::new(Identity::generate(site).unwrap())
}

fn any() -> Addr {
    "127.0.0.1:0".parse().unwrap()
}

#[test]
fn identity_file_is_private_and_reads_back() {
    let d = tempfile::tempdir().unwrap();
    let p = d.path().join("identity.pem");
    let a = id("one");
    a.save(&p).unwrap();
    assert_eq!(fs::metadata(&p).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(Identity::load(&p).unwrap().key(), a.key());
    id("one").save(&p).unwrap();
    assert_ne!(Identity::load(&p).unwrap().key(), a.key());
    assert!(!format!("{a:?}").contains("PRIVATE"));

    fs::set_permissions(&p, fs::Permissions::from_mode(0o640)).unwrap();
    let e = Identity::load(&p).unwrap_err();
    assert_eq!(e.kind, Kind::Refused);
    assert!(e.msg.contains("chmod 600"), "{e}");
    assert!(Identity::load(&d.path().join("none")).unwrap_err().msg.contains("keygen"));
}

#[test]
fn identity_of_two_halves_is_noticed() {
    let d = tempfile::tempdir().unwrap();
    let (p, q) = (d.path().join("a"), d.path().join("b"));
    id("a").save(&p).unwrap();
    id("b").save(&q).unwrap();
    let (a, b) = (fs::read_to_string(&p).unwrap(), fs::read_to_string(&q).unwrap());
    let at = |s: &str| s.find("-----BEGIN PRIVATE").unwrap();
    fs::write(&p, format!("{}{}", &a[..at(&a)], &b[at(&b)..])).unwrap();
    assert!(Identity::load(&p).is_err());
    fs::write(&p, &a[..at(&a)]).unwrap();
    assert!(Identity::load(&p).unwrap_err().msg.contains("no private key"));
}

#[test]
fn every_mistyped_character_of_a_key_or_token_is_noticed() {
    let a = id("one");
    let key = a.key().to_string();
    assert!(key.starts_with("kgm1:"));
    assert_eq!(format!(" {}\n", key.to_uppercase()).parse::<PeerKey>().unwrap(), a.key());
    let secret = invite::Secret::generate().unwrap();
    let token = Token { site: "one".into(), addrs: vec![any()], key: a.key(), secret };
    let text = token.encode().unwrap();
    assert_eq!(text.parse::<Token>().unwrap(), token);
    for text in [key, text] {
        for i in 0..text.len() {
            let mut t = text.clone().into_bytes();
            t[i] = if t[i] == b'q' { b'r' } else { b'q' };
            let t = String::from_utf8(t).unwrap();
            assert_eq!(t.parse::<PeerKey>().err().map(|e| e.kind), Some(Kind::Config), "{t}");
            assert_eq!(t.parse::<Token>().err().map(|e| e.kind), Some(Kind::Config), "{t}");
        }
        for n in 0..text.len() {
            assert!(text[..n].parse::<PeerKey>().is_err() && text[..n].parse::<Token>().is_err());
        }
    }
}

#[test]
fn addresses() {
    for good in ["tcp:host:1", "host:1", "[::1]:7000", "tcp:10.0.0.1:65535", "unix:/run/k.sock"] {
        let a: Addr = good.parse().unwrap();
        assert_eq!(a.to_string().parse::<Addr>().unwrap(), a);
    }
    for bad in ["", "host", "host:", "host:70000", ":1", "::1:7", "unix:x", "unix:", "ho st:1", "a\nb:1"] {
        assert_eq!(bad.parse::<Addr>().unwrap_err().kind, Kind::Config, "{bad:?}");
    }
}

#[test]
fn peers_file_round_trip_and_no_peer_takes_the_place_of_another() {
    let d = tempfile::tempdir().unwrap();
    let p = d.path().join("peers");
    let (a, b) = (id("a").key(), id("b").key());
    let e = |key| PeerEntry { key, addr: Some(any()) };
    PeerStore::update(&p, |s| s.put("a", e(a))).unwrap();
    PeerStore::update(&p, |s| s.put("b", PeerEntry { key: b, addr: None })).unwrap();
    assert_eq!(fs::metadata(&p).unwrap().permissions().mode() & 0o777, 0o600);
    let s = PeerStore::load(&p).unwrap();
    assert_eq!((s.get("a"), s.site_of(&b), s.iter().count()), (Some(&e(a)), Some("b"), 2));
    for (site, key) in [("a", b), ("c", a), ("a", id("x").key())] {
        assert_eq!(PeerStore::update(&p, |s| s.put(site, e(key))).unwrap_err().kind, Kind::Refused);
    }
    assert!(PeerStore::update(&p, |s| s.put("../x", e(id("x").key()))).is_err());
    fs::write(&p, "[peer.a]\nkey = \"kgm1:nonsense\"\n").unwrap();
    assert!(PeerStore::load(&p).unwrap_err().msg.contains("peer \"a\""));
}

#[test]
fn invitation_is_used_once_and_expires() {
    let d = tempfile::tempdir().unwrap();
    let inv = Invites::at(&d.path().join("invites"));
    let s = inv.create(1000).unwrap();
    assert!(!inv.redeem(&s.id(), 1001, |_| false).unwrap(), "a wrong proof must not spend it");
    assert!(inv.redeem(&s.id(), 1002, |t| *t == s).unwrap());
    assert!(!inv.redeem(&s.id(), 1003, |_| true).unwrap());
    let s = inv.create(1000).unwrap();
    assert!(!inv.redeem(&s.id(), 1000 + 24 * 3600, |_| true).unwrap());
}

struct Inviter {
    listener: Listener,
    id: Arc<Identity>,
    dir: tempfile::TempDir,
}

impl Inviter {
    fn new() -> Inviter {
        let id = id("alpha");
        Inviter { listener: Listener::bind(&any(), &id).unwrap(), id, dir: tempfile::tempdir().unwrap() }
    }
    fn invites(&self) -> Invites {
        Invites::at(&self.dir.path().join("invites"))
    }
    fn token(&self) -> Token {
        let secret = self.invites().create(1000).unwrap();
        Token { site: "alpha".into(), addrs: vec![self.listener.addr().clone()], key: self.id.key(), secret }
    }
    fn peers(&self) -> std::path::PathBuf {
        self.dir.path().join("peers")
    }
    fn serve(&self) -> crate::base::Result<Enrolled> {
        let link = self.listener.accept()?.handshake()?;
        assert_eq!(link.purpose(), Purpose::Enrol);
        enrol_serve(link, &self.id, "alpha", &self.invites(), 1001, |e| admit(&self.peers(), e))
    }
}

fn admit(path: &Path, e: &Enrolled) -> crate::base::Result<()> {
    PeerStore::update(path, |s| s.put(&e.site, PeerEntry { key: e.key, addr: e.addr.clone() }))
}

#[test]
fn one_paste_pins_both_keys_and_a_second_use_is_refused() {
    let a = Inviter::new();
    let token: Token = a.token().encode().unwrap().parse().unwrap();
    let (b, c) = (id("beta"), id("gamma"));
    let my: Addr = "beta.example:7000".parse().unwrap();
    thread::scope(|s| {
        let t = s.spawn(|| a.serve());
        let got = enrol_call(&token, &b, "beta", Some(&my)).unwrap();
        assert_eq!((got.site.as_str(), got.key, got.addr.as_ref()), ("alpha", a.id.key(), Some(a.listener.addr())));
        let seen = t.join().unwrap().unwrap();
        assert_eq!(seen, Enrolled { site: "beta".into(), addr: Some(my.clone()), key: b.key() });
        assert_eq!(PeerStore::load(&a.peers()).unwrap().get("beta").unwrap().key, b.key());

        let t = s.spawn(|| a.serve());
        let e = enrol_call(&token, &c, "gamma", None).unwrap_err();
        assert_eq!(e.kind, Kind::Refused);
        assert!(e.msg.contains("used already"), "{e}");
        assert_eq!(t.join().unwrap().unwrap_err().kind, Kind::Refused);
        assert!(PeerStore::load(&a.peers()).unwrap().get("gamma").is_none());
    });
}

#[test]
fn wrong_secret_own_token_and_taken_name_are_refused() {
    let a = Inviter::new();
    let b = id("beta");
    let good = a.token();
    assert_eq!(enrol_call(&good, &a.id, "alpha", None).unwrap_err().kind, Kind::Config);
    let forged = Token { secret: invite::Secret::generate().unwrap(), ..good.clone() };
    thread::scope(|s| {
        let t = s.spawn(|| a.serve());
        assert_eq!(enrol_call(&forged, &b, "beta", None).unwrap_err().kind, Kind::Refused);
        assert!(t.join().unwrap().is_err());
        PeerStore::update(&a.peers(), |s| s.put("beta", PeerEntry { key: id("x").key(), addr: None })).unwrap();
        let t = s.spawn(|| a.serve());
        let e = enrol_call(&good, &b, "beta", None).unwrap_err();
        assert!(e.kind == Kind::Refused && e.msg.contains("already known"), "{e}");
        assert!(t.join().unwrap().is_err());
    });
}

#[test]
fn a_proof_is_worth_nothing_on_another_link_or_for_another_key() {
    let s = invite::Secret::generate().unwrap();
    let a = PeerKey([1; 32]);
    let r = enrol::EnrolRequest {
        version: 1,
        site: "b".into(),
        addr: "h:1".into(),
        key: [2; 32],
        invite: s.id(),
        proof: [0; 32],
    };
    let p = enrol::proof(&s, &a, &[7; 32], &r);
    assert_ne!(p, enrol::proof(&s, &a, &[8; 32], &r));
    assert_ne!(p, enrol::proof(&s, &PeerKey([3; 32]), &[7; 32], &r));
    assert_ne!(p, enrol::proof(&s, &a, &[7; 32], &enrol::EnrolRequest { key: [4; 32], ..r.clone() }));
    assert_ne!(p, enrol::proof(&s, &a, &[7; 32], &enrol::EnrolRequest { site: "bh".into(), addr: ":1".into(), ..r }));
}

#[test]
fn a_link_between_peers_does_not_enrol() {
    let a = Inviter::new();
    let b = id("beta");
    thread::scope(|s| {
        let t = s.spawn(|| {
            let link = a.listener.accept().unwrap().handshake().unwrap();
            enrol_serve(link, &a.id, "alpha", &a.invites(), 1001, |_| Ok(()))
        });
        let l = dial(a.listener.addr(), &b, Some(&a.id.key()), Duration::from_secs(5)).unwrap();
        assert_eq!(t.join().unwrap().unwrap_err().kind, Kind::Refused);
        drop(l);
    });
}
