//! Files of our own: a header with magic, version and CRC, then CRC'd records; small state files replaced atomically.
//!
//! ```text
//! header:  | magic [8] | version u32 | crc u32 of the first 12 bytes |
//! record:  | len u32 | crc u32 of the body | body |
//! ```

use crate::base::{Error, Result};

/// Bytes of a file header.
pub const HEADER_BYTES: usize = 16;
/// Bytes in front of each record's body.
pub const RECORD_HEAD_BYTES: usize = 8;
/// Largest record body, bytes.
pub const RECORD_BYTES_MAX: usize = 16 << 20;

/// The header of a file of ours.
pub fn header(magic: &[u8; 8], version: u32) -> [u8; HEADER_BYTES] {
    let mut h = [0u8; HEADER_BYTES];
    h[..8].copy_from_slice(magic);
    h[8..12].copy_from_slice(&version.to_le_bytes());
    let crc = crc32c::crc32c(&h[..12]);
    h[12..].copy_from_slice(&crc.to_le_bytes());
    h
}

/// Checks a header and returns the version. `newest` is the newest version this program reads.
pub fn check_header(bytes: &[u8], magic: &[u8; 8], newest: u32, what: &str) -> Result<u32> {
    let Some(h) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Err(Error::corrupt(format!("{what}: shorter than its header")));
    };
    if &h[..8] != magic {
        return Err(Error::corrupt(format!("{what}: not such a file (wrong magic)")));
    }
    if crc32c::crc32c(&h[..12]) != u32::from_le_bytes([h[12], h[13], h[14], h[15]]) {
        return Err(Error::corrupt(format!("{what}: header CRC mismatch")));
    }
    let v = u32::from_le_bytes([h[8], h[9], h[10], h[11]]);
    if v == 0 || v > newest {
        return Err(Error::corrupt(format!("{what}: format version {v}, this program reads up to {newest}")));
    }
    Ok(v)
}

/// True when there is nothing but zeros where the header would be: a power cut left the file's length, and no content.
pub fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().take(HEADER_BYTES).all(|b| *b == 0)
}

/// Appends one record to `out`.
pub fn put_record(out: &mut Vec<u8>, body: &[u8]) {
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(&crc32c::crc32c(body).to_le_bytes());
    out.extend_from_slice(body);
}

/// Walks the records of `bytes` (after the header). Stops at a torn tail, which is a normal event.
pub struct Records<'a> {
    bytes: &'a [u8],
    /// Bytes consumed by whole records so far.
    pub good: usize,
    /// True once something unreadable was met before the end.
    pub torn: bool,
}

impl<'a> Records<'a> {
    /// Starts at the first record.
    pub fn new(bytes: &'a [u8]) -> Records<'a> {
        Records { bytes, good: 0, torn: false }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = &'a [u8];
    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.bytes.get(self.good..)?;
        if rest.is_empty() || self.torn {
            return None;
        }
        let Some((h, body)) = rest.split_first_chunk::<RECORD_HEAD_BYTES>() else {
            self.torn = true;
            return None;
        };
        let len = u32::from_le_bytes([h[0], h[1], h[2], h[3]]) as usize;
        let crc = u32::from_le_bytes([h[4], h[5], h[6], h[7]]);
        match body.get(..len) {
            Some(b) if len <= RECORD_BYTES_MAX && len > 0 && crc32c::crc32c(b) == crc => {
                self.good += RECORD_HEAD_BYTES + len;
                Some(b)
            }
            _ => {
                self.torn = true;
                None
            }
        }
    }
}

/// A whole state file: header and one record.
pub fn whole(magic: &[u8; 8], version: u32, body: &[u8]) -> Vec<u8> {
    let mut out = header(magic, version).to_vec();
    put_record(&mut out, body);
    out
}

/// Reads back [`whole`].
pub fn parse_whole<'a>(bytes: &'a [u8], magic: &[u8; 8], newest: u32, what: &str) -> Result<(u32, &'a [u8])> {
    let v = check_header(bytes, magic, newest, what)?;
    let mut r = Records::new(&bytes[HEADER_BYTES..]);
    match r.next() {
        Some(b) if r.good + HEADER_BYTES == bytes.len() => Ok((v, b)),
        _ => Err(Error::corrupt(format!("{what}: body CRC or length mismatch"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torn_tail_keeps_the_whole_records() {
        let mut b = Vec::new();
        put_record(&mut b, b"one");
        put_record(&mut b, b"two");
        for cut in 0..b.len() {
            let n = Records::new(&b[..cut]).count();
            assert_eq!(n, if cut >= b.len() - 11 { 1 } else { 0 });
        }
        assert_eq!(Records::new(&b).count(), 2);
    }

    #[test]
    fn whole_file_round_trip_and_corruption() {
        let f = whole(b"KGMTEST\0", 1, b"body");
        assert_eq!(parse_whole(&f, b"KGMTEST\0", 1, "t").unwrap().1, b"body");
        for i in 0..f.len() {
            let mut g = f.clone();
            g[i] ^= 0x10;
            assert!(parse_whole(&g, b"KGMTEST\0", 1, "t").is_err(), "byte {i}");
        }
    }
}
