//! Where a node listens: `tcp:HOST:PORT`, `HOST:PORT` or `unix:PATH`.

use crate::base::{Error, Result};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Longest text form, bytes.
pub const ADDR_BYTES_MAX: usize = 512;
/// Longest path of a Unix socket (sun_path less its NUL), bytes.
const SUN_PATH_MAX: usize = 107;

/// An address of a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Addr {
    /// `HOST:PORT`, as the resolver takes it; TLS.
    Tcp(String),
    /// A socket file on this host; no TLS, peer credentials.
    Unix(PathBuf),
}

impl FromStr for Addr {
    type Err = Error;
    fn from_str(s: &str) -> Result<Addr> {
        let bad = |why: &str| {
            Error::config(format!("address \"{s}\": {why}; write tcp:HOST:PORT, HOST:PORT, [IPV6]:PORT or unix:/PATH"))
        };
        if s.len() > ADDR_BYTES_MAX || s.chars().any(char::is_control) {
            return Err(Error::config("address: too long, or with control characters"));
        }
        if let Some(p) = s.strip_prefix("unix:") {
            if !p.starts_with('/') {
                return Err(bad("the path must be absolute"));
            }
            if p.len() > SUN_PATH_MAX {
                return Err(bad("the path of a Unix socket can have at most 107 bytes"));
            }
            return Ok(Addr::Unix(p.into()));
        }
        let t = s.strip_prefix("tcp:").unwrap_or(s);
        let (host, port) = t.rsplit_once(':').ok_or_else(|| bad("no port"))?;
        if port.parse::<u16>().is_err() {
            return Err(bad("the port must be 0 to 65535"));
        }
        let bracketed = host.starts_with('[') && host.ends_with(']');
        if host.is_empty() || host.contains(' ') || host.contains(':') && !bracketed {
            return Err(bad("no usable host"));
        }
        Ok(Addr::Tcp(t.to_string()))
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Addr::Tcp(a) => write!(f, "tcp:{a}"),
            Addr::Unix(p) => write!(f, "unix:{}", p.display()),
        }
    }
}

/// Checks the name of a site: 1 to 64 letters, digits, `-`, `_` or `.`, beginning with a letter or digit.
pub fn check_site(site: &str) -> Result<()> {
    let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if site.is_empty()
        || site.len() > 64
        || !site.chars().all(ok)
        || !site.starts_with(|c: char| c.is_ascii_alphanumeric())
    {
        return Err(Error::config(format!(
            "site name {site:?}: use 1 to 64 of the letters a-z A-Z, digits, '-', '_' and '.', a letter or digit first"
        )));
    }
    Ok(())
}
