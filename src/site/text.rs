//! Numbers for people.

/// `1234567` as `1,234,567`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// Bytes in the unit that fits: `12.3 MiB`.
pub fn bytes(n: u64) -> String {
    let mut x = n as f64;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if x < 1023.95 {
            return if unit == "B" { format!("{n} B") } else { format!("{x:.1} {unit}") };
        }
        x /= 1024.0;
    }
    format!("{x:.1} PiB")
}

/// Seconds: `0.3 s`, `42 s`, `3 min 20 s`, `2 h 5 min`, `3 days 4 h`.
pub fn seconds(s: f64) -> String {
    let whole = s.max(0.0) as u64;
    match whole {
        0..=9 => format!("{:.1} s", s.max(0.0)),
        10..=119 => format!("{whole} s"),
        120..=7199 => format!("{} min {} s", whole / 60, whole % 60),
        7200..=172_799 => format!("{} h {} min", whole / 3600, whole / 60 % 60),
        _ => format!("{} days {} h", whole / 86400, whole / 3600 % 24),
    }
}

/// `1 file`, `2 files`.
pub fn plural(n: u64, one: &str) -> String {
    let many = match one.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None => format!("{one}s"),
    };
    format!("{} {}", count(n), if n == 1 { one } else { &many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!([count(0), count(999), count(1000), count(1234567)], ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([bytes(0), bytes(1023), bytes(1024), bytes(12_900_000)], ["0 B", "1023 B", "1.0 KiB", "12.3 MiB"]);
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
        assert_eq!([seconds(0.34), seconds(42.9), seconds(200.0)], ["0.3 s", "42 s", "3 min 20 s"]);
        assert_eq!([seconds(7500.0), seconds(300_000.0), seconds(-1.0)], ["2 h 5 min", "3 days 11 h", "0.0 s"]);
        assert_eq!(
            [plural(1, "entry"), plural(2, "entry"), plural(1000, "file")],
            ["1 entry", "2 entries", "1,000 files"]
        );
    }
}
