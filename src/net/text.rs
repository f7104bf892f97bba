//! Text that people copy: a prefix, lowercase base32 without padding, and a checksum that notices typos.

use crate::base::{Error, Result};

const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
/// Bytes of the checksum behind the payload.
const SUM_BYTES: usize = 4;

fn sum(prefix: &str, payload: &[u8]) -> [u8; SUM_BYTES] {
    let mut h = blake3::Hasher::new();
    h.update(prefix.as_bytes()).update(payload);
    let mut s = [0u8; SUM_BYTES];
    h.finalize_xof().fill(&mut s);
    s
}

/// `prefix` and the payload with its checksum in base32.
pub fn encode(prefix: &str, payload: &[u8]) -> String {
    let mut out = String::from(prefix);
    let (mut acc, mut bits) = (0u32, 0u32);
    for b in payload.iter().chain(&sum(prefix, payload)) {
        acc = acc << 8 | u32::from(*b);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            out.push(ALPHABET[(acc >> bits & 31) as usize] as char);
        }
        acc &= (1 << bits) - 1;
    }
    if bits > 0 {
        out.push(ALPHABET[(acc << (5 - bits) & 31) as usize] as char);
    }
    out
}

/// Reads back [`encode`]. Letter case and surrounding space do not matter. `what` names the thing in errors.
pub fn decode(prefix: &str, text: &str, what: &str) -> Result<Vec<u8>> {
    let t = text.trim().to_ascii_lowercase();
    let Some(body) = t.strip_prefix(prefix) else {
        return Err(Error::config(format!("{what}: it must begin with \"{prefix}\"")));
    };
    let (mut out, mut acc, mut bits) = (Vec::with_capacity(body.len() * 5 / 8), 0u32, 0u32);
    for (i, c) in body.bytes().enumerate() {
        let Some(v) = ALPHABET.iter().position(|a| *a == c) else {
            let at = prefix.len() + i + 1;
            return Err(Error::config(format!("{what}: character {at} ({:?}) cannot be in it", char::from(c))));
        };
        acc = acc << 5 | v as u32;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            out.push((acc >> bits) as u8);
            acc &= (1 << bits) - 1;
        }
    }
    let typo =
        || Error::config(format!("{what}: checksum mismatch: a character is missing or mistyped, copy it again"));
    let n = out.len().checked_sub(SUM_BYTES).ok_or_else(typo)?;
    let s = out.split_off(n);
    if bits >= 5 || acc != 0 || s != sum(prefix, &out) {
        return Err(typo());
    }
    Ok(out)
}
