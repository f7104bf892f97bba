//! bincode with a hard limit; every byte must be consumed. Nothing else in kagami names bincode's functions.

use crate::base::{Error, Result};
use bincode::config::{Configuration, Limit, LittleEndian, Varint};

/// Largest decoded value, bytes: bounds what a length field from disk or wire can make us allocate (G10).
const LIMIT: usize = crate::base::limits::FRAME_BYTES_MAX;

fn config() -> Configuration<LittleEndian, Varint, Limit<LIMIT>> {
    bincode::config::standard().with_limit::<LIMIT>()
}

/// Appends the encoding of `value` to `out`.
pub fn encode_into<T: bincode::Encode>(value: &T, out: &mut Vec<u8>) -> Result<()> {
    bincode::encode_into_std_write(value, out, config())
        .map(|_| ())
        .map_err(|e| Error::failed(format!("encoding: {e}")))
}

/// The encoding of `value`.
pub fn encode<T: bincode::Encode>(value: &T) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(64);
    encode_into(value, &mut out)?;
    Ok(out)
}

/// Decodes a value that must take up all of `bytes`. Errors are [`crate::base::Kind::Corrupt`].
pub fn decode<T: bincode::Decode<()>>(bytes: &[u8]) -> Result<T> {
    let (v, n) = bincode::decode_from_slice(bytes, config()).map_err(|e| Error::corrupt(format!("decoding: {e}")))?;
    if n != bytes.len() {
        return Err(Error::corrupt(format!("decoding: {} bytes left over", bytes.len() - n)));
    }
    Ok(v)
}
