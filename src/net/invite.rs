//! Invitations: the one token that is pasted at the other side, and the pending ones at this side.

use super::addr::{Addr, check_site};
use super::identity::PeerKey;
use super::{private, text};
use crate::base::error::At;
use crate::base::{Error, Result};
use crate::format::codec;
use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// How long an invitation can be accepted.
pub const INVITE_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Longest token, characters.
pub const TOKEN_CHARS_MAX: usize = 4096;
/// Most addresses in a token.
pub const TOKEN_ADDRS_MAX: usize = 4;
/// Most invitations pending at a time.
pub const INVITES_MAX: usize = 64;
const TOKEN_PREFIX: &str = "kgminvite1-";
const SECRET_PREFIX: &str = "kgmsecret1-";
const TOKEN_VERSION: u8 = 1;

/// The one-time secret of an invitation.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

/// Names an invitation without giving its secret away.
pub type InviteId = [u8; 16];

impl Secret {
    /// A new random secret.
    pub fn generate() -> Result<Secret> {
        let mut s = [0u8; 32];
        getrandom::fill(&mut s).map_err(|e| Error::failed(format!("no random bytes from the kernel: {e}")))?;
        Ok(Secret(s))
    }

    /// What the invitation is called on the wire.
    pub fn id(&self) -> InviteId {
        let mut id = InviteId::default();
        blake3::Hasher::new_derive_key("kagami 2026 invite id").update(&self.0).finalize_xof().fill(&mut id);
        id
    }

    pub(super) fn keyed(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut h = blake3::Hasher::new_keyed(&self.0);
        for p in parts {
            h.update(&(p.len() as u64).to_le_bytes()).update(p);
        }
        *h.finalize().as_bytes()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What one side prints and the other pastes: it pins both keys with one paste.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Site that invites.
    pub site: String,
    /// Where it listens, best first; TCP only.
    pub addrs: Vec<Addr>,
    /// Its key.
    pub key: PeerKey,
    /// The one-time secret.
    pub secret: Secret,
}

#[derive(Encode, Decode)]
struct TokenBytes {
    version: u8,
    site: String,
    addrs: Vec<String>,
    key: [u8; 32],
    secret: [u8; 32],
}

impl Token {
    /// The text to paste: one word.
    pub fn encode(&self) -> Result<String> {
        let t = TokenBytes {
            version: TOKEN_VERSION,
            site: self.site.clone(),
            addrs: self.addrs.iter().map(ToString::to_string).collect(),
            key: self.key.0,
            secret: self.secret.0,
        };
        Ok(text::encode(TOKEN_PREFIX, &codec::encode(&t)?))
    }
}

impl FromStr for Token {
    type Err = Error;
    /// Reads a pasted token. Typos, other versions and bad values are [`crate::base::Kind::Config`] errors that say so.
    fn from_str(s: &str) -> Result<Token> {
        if s.len() > TOKEN_CHARS_MAX {
            return Err(Error::config(format!("invite token: longer than {TOKEN_CHARS_MAX} characters")));
        }
        let b = text::decode(TOKEN_PREFIX, s, "invite token")?;
        if b.first() != Some(&TOKEN_VERSION) {
            return Err(Error::config("invite token: made by another version of kagami; upgrade the older side"));
        }
        let t: TokenBytes = codec::decode(&b).map_err(|e| Error::config(format!("invite token: {e}")))?;
        check_site(&t.site).at("invite token")?;
        if t.addrs.is_empty() || t.addrs.len() > TOKEN_ADDRS_MAX {
            return Err(Error::config(format!("invite token: {} addresses in it", t.addrs.len())));
        }
        let addrs = t.addrs.iter().map(|a| a.parse()).collect::<Result<Vec<Addr>>>().at("invite token")?;
        Ok(Token { site: t.site, addrs, key: PeerKey(t.key), secret: Secret(t.secret) })
    }
}

#[derive(Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct FileText {
    #[serde(default)]
    invite: Vec<InviteText>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct InviteText {
    secret: String,
    expires: i64,
}

/// The file of pending invitations. Each can be used once, until it expires.
#[derive(Clone, Debug)]
pub struct Invites {
    path: PathBuf,
}

impl Invites {
    /// The invitations kept in `path` (0600; made when needed).
    pub fn at(path: &Path) -> Invites {
        Invites { path: path.to_path_buf() }
    }

    fn load(&self, now_s: i64) -> Result<FileText> {
        let Some(t) = private::read(&self.path)? else { return Ok(FileText::default()) };
        let mut f: FileText = toml::from_str(&t).map_err(|e| Error::config(format!("{}: {e}", self.path.display())))?;
        f.invite.retain(|i| i.expires > now_s);
        Ok(f)
    }

    fn save(&self, f: &FileText) -> Result<()> {
        let t = toml::to_string(f).map_err(|e| Error::failed(format!("invites file: {e}")))?;
        private::write(&self.path, t.as_bytes())
    }

    /// Makes and remembers a secret that can be used once before `now_s` + [`INVITE_LIFETIME`] (Unix seconds).
    pub fn create(&self, now_s: i64) -> Result<Secret> {
        private::locked(&self.path, || {
            let mut f = self.load(now_s)?;
            if f.invite.len() >= INVITES_MAX {
                return Err(Error::refused(format!(
                    "{INVITES_MAX} invitations are pending; wait, or remove {}",
                    self.path.display()
                )));
            }
            let s = Secret::generate()?;
            let expires = now_s.saturating_add(INVITE_LIFETIME.as_secs() as i64);
            f.invite.push(InviteText { secret: text::encode(SECRET_PREFIX, &s.0), expires });
            self.save(&f)?;
            Ok(s)
        })
    }

    /// Spends the invitation `id` if `proves` accepts its secret; false if there is none, it is spent or expired, or the
    /// proof is wrong. It is spent durably before this returns, so that it can never be used twice, not even after a crash.
    pub fn redeem(&self, id: &InviteId, now_s: i64, proves: impl Fn(&Secret) -> bool) -> Result<bool> {
        private::locked(&self.path, || {
            let mut f = self.load(now_s)?;
            for i in 0..f.invite.len() {
                let Some(t) = f.invite.get(i) else { break };
                let b = text::decode(SECRET_PREFIX, &t.secret, "invitation").at(self.path.display())?;
                let s =
                    Secret(b.try_into().map_err(|_| Error::config(format!("{}: bad secret", self.path.display())))?);
                if s.id() == *id && proves(&s) {
                    f.invite.remove(i);
                    self.save(&f)?;
                    return Ok(true);
                }
            }
            Ok(false)
        })
    }
}
