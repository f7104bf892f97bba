//! Sizes as people write them: `100MB` is 10^8 bytes, `100MiB` is 100 * 2^20, a bare number is bytes.

/// Units, largest first; of those of one size the one that is written.
const UNITS: &[(&str, u64)] = &[
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1_000),
    ("kB", 1_000),
    ("B", 1),
];

/// Reads a size: a whole number, then a unit or none. `None`: it is not one, or too large.
pub fn parse(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let n: u64 = digits.parse().ok()?;
    let factor = match unit.trim_start() {
        "" => 1,
        u => UNITS.iter().find(|(name, _)| *name == u)?.1,
    };
    n.checked_mul(factor).filter(|n| *n <= i64::MAX as u64)
}

/// The shortest exact text of a size, which [`parse`] reads back.
pub fn show(bytes: u64) -> String {
    let fit = UNITS.iter().find(|(_, f)| bytes >= *f && bytes.is_multiple_of(*f));
    fit.map_or_else(|| format!("{bytes}B"), |(name, f)| format!("{}{name}", bytes / f))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written_back() {
        for (text, n) in [("100MB", 100_000_000), ("200MiB", 200 << 20), ("4096", 4096), ("1 GiB", 1 << 30), ("7B", 7)]
        {
            assert_eq!(parse(text), Some(n), "{text}");
            assert_eq!(parse(&show(n)), Some(n), "{}", show(n));
        }
        assert_eq!((show(100_000_000), show(200 << 20), show(4097)), ("100MB".into(), "200MiB".into(), "4097B".into()));
        for text in ["", "MB", "-1MB", "1.5GB", "10mb", "9999999999TB", "1 MB x"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
