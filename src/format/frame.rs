//! A frame: the unit on the wire and in the entry log, the same bytes in both.
//!
//! ```text
//! 0      2     3       4        8        12       16
//! | magic | kind | check | len u32 | crc u32 | extra u32 | body (len bytes) |
//! ```
//! Little-endian. `check` is a CRC-8 over the other 15 bytes of the header, so that nobody waits for the end of a frame
//! whose length was damaged (G8); 0, in what earlier versions wrote: there is none. `crc` is CRC-32C over the header with
//! `check` and `crc` = 0 and the body. `extra` is the length of the encoded part at the start of the body of an entry (its
//! data follow), 0 otherwise.

use crate::base::{Error, Result, limits};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 16;
const MAGIC: u16 = 0x4b47;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// A [`crate::format::msg::Msg`].
    Msg = 1,
    /// A [`crate::format::op::Entry`] with its sequence number.
    Entry = 2,
    /// An operation of a staged resync (an `Entry` with sequence 0).
    Staged = 3,
    /// Start of a staged resync in the entry log (body: [`crate::format::op::TxnBegin`]).
    TxnBegin = 4,
    /// The commit record of a staged resync (body: [`crate::format::op::TxnCommit`]).
    TxnCommit = 5,
}

impl FrameKind {
    fn from_u8(k: u8) -> Option<FrameKind> {
        Some(match k {
            1 => FrameKind::Msg,
            2 => FrameKind::Entry,
            3 => FrameKind::Staged,
            4 => FrameKind::TxnBegin,
            5 => FrameKind::TxnCommit,
            _ => return None,
        })
    }
}

/// A decoded header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the body is.
    pub kind: FrameKind,
    /// Body length, bytes.
    pub len: u32,
    /// CRC-32C as found.
    pub crc: u32,
    /// Length of the encoded part of an entry, bytes.
    pub extra: u32,
}

/// The polynomial x⁸ + x² + x + 1: finds every two damaged bits of a header.
const CRC8: [u8; 256] = {
    let mut table = [0u8; 256];
    let mut i = 0;
    while i < 256 {
        let (mut c, mut bit) = (i as u8, 0);
        while bit < 8 {
            c = if c & 0x80 != 0 { c << 1 ^ 7 } else { c << 1 };
            bit += 1;
        }
        table[i] = c;
        i += 1;
    }
    table
};

/// What stands in `check`; never 0.
fn header_check(h: &[u8; HEADER_BYTES]) -> u8 {
    let c = h.iter().enumerate().filter(|(i, _)| *i != 3).fold(0, |c: u8, (_, b)| CRC8[(c ^ b) as usize]);
    c.max(1)
}

/// Builds a whole frame. `head` is the encoded part, `data` what follows it.
pub fn build(kind: FrameKind, head: &[u8], data: &[u8]) -> Vec<u8> {
    let len = head.len() + data.len();
    let mut f = Vec::with_capacity(HEADER_BYTES + len);
    f.extend_from_slice(&MAGIC.to_le_bytes());
    f.push(kind as u8);
    f.push(0);
    f.extend_from_slice(&(len as u32).to_le_bytes());
    f.extend_from_slice(&0u32.to_le_bytes());
    f.extend_from_slice(&(head.len() as u32).to_le_bytes());
    f.extend_from_slice(head);
    f.extend_from_slice(data);
    let crc = crc32c::crc32c(&f);
    f[8..12].copy_from_slice(&crc.to_le_bytes());
    if let Some(h) = f.first_chunk::<HEADER_BYTES>() {
        f[3] = header_check(h);
    }
    f
}

/// Reads a header. Checks magic, kind, the header's own check and the length bound; the CRC needs the body ([`check`]).
pub fn parse_header(h: &[u8; HEADER_BYTES]) -> Result<Header> {
    if u16::from_le_bytes([h[0], h[1]]) != MAGIC {
        return Err(Error::corrupt("frame: bad magic"));
    }
    if h[3] != 0 && h[3] != header_check(h) {
        return Err(Error::corrupt("frame: header CRC mismatch"));
    }
    let kind = FrameKind::from_u8(h[2]).ok_or_else(|| Error::corrupt(format!("frame: unknown kind {}", h[2])))?;
    let len = u32::from_le_bytes([h[4], h[5], h[6], h[7]]);
    let crc = u32::from_le_bytes([h[8], h[9], h[10], h[11]]);
    let extra = u32::from_le_bytes([h[12], h[13], h[14], h[15]]);
    if len as usize > limits::FRAME_BYTES_MAX {
        return Err(Error::corrupt(format!("frame: {len} bytes, more than {}", limits::FRAME_BYTES_MAX)));
    }
    if extra > len {
        return Err(Error::corrupt("frame: encoded part longer than the body"));
    }
    Ok(Header { kind, len, crc, extra })
}

/// Checks a whole frame (header and body) against its CRC and returns its header.
pub fn check(frame: &[u8]) -> Result<Header> {
    let Some((h, body)) = frame.split_first_chunk::<HEADER_BYTES>() else {
        return Err(Error::corrupt("frame: shorter than its header"));
    };
    let head = parse_header(h)?;
    if body.len() != head.len as usize {
        return Err(Error::corrupt("frame: length differs from the header's"));
    }
    let mut z = *h;
    z[3] = 0;
    z[8..12].fill(0);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&z), body);
    if crc != head.crc {
        return Err(Error::corrupt("frame: CRC mismatch"));
    }
    Ok(head)
}

/// The encoded part of a checked frame, borrowed.
pub fn head_part<'a>(frame: &'a [u8], head: &Header) -> &'a [u8] {
    &frame[HEADER_BYTES..HEADER_BYTES + head.extra as usize]
}

/// The data part of a checked frame, borrowed.
pub fn data_part<'a>(frame: &'a [u8], head: &Header) -> &'a [u8] {
    &frame[HEADER_BYTES + head.extra as usize..HEADER_BYTES + head.len as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// G8: a length that is not the one that was written is noticed before anybody waits for so many bytes.
    #[test]
    fn damage_to_a_header_is_noticed_without_the_body() {
        for n in 0..600 {
            let f = build(FrameKind::Msg, &vec![7; n], b"");
            let h = *f.first_chunk::<HEADER_BYTES>().unwrap();
            assert!(h[3] != 0 && parse_header(&h).is_ok());
            for i in 0..HEADER_BYTES * 8 {
                let mut g = h;
                g[i / 8] ^= 1 << (i % 8);
                // Without `check` nothing is known of it.
                assert!(g[3] == 0 || parse_header(&g).is_err(), "{n}: bit {i}");
            }
        }
    }

    /// What earlier versions wrote has no check of the header.
    #[test]
    fn a_frame_without_a_check_of_its_header_is_read() {
        let mut f = build(FrameKind::Entry, b"head", b"data!");
        f[3] = 0;
        assert!(check(&f).is_ok());
        f[5] = 1;
        assert!(check(&f).is_err());
    }

    #[test]
    fn round_trip_and_every_flipped_bit_is_noticed() {
        let f = build(FrameKind::Entry, b"head", b"data!");
        let h = check(&f).unwrap();
        assert_eq!((head_part(&f, &h), data_part(&f, &h)), (&b"head"[..], &b"data!"[..]));
        for i in 0..f.len() * 8 {
            let mut g = f.clone();
            g[i / 8] ^= 1 << (i % 8);
            // But for a check that becomes 0, which is none.
            assert!(check(&g).is_err() || g[3] == 0, "bit {i} flipped unnoticed (G7)");
        }
        for n in 0..f.len() {
            assert!(check(&f[..n]).is_err());
        }
    }
}
