//! What this process may set on files.

use std::sync::LazyLock;

/// Capabilities without which some owner, mode, device or attribute is refused: CHOWN, DAC_OVERRIDE, FOWNER, FSETID,
/// SYS_ADMIN, MKNOD, SETFCAP.
const NEEDED: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 21 | 1 << 27 | 1 << 31;

/// True when some owner, mode, device or attribute may be refused to this process: it is an ordinary user's, lacks
/// capabilities, or is in a user namespace that does not have all ids (G5).
pub fn limited() -> bool {
    static LIMITED: LazyLock<bool> = LazyLock::new(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let ids = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        super::sys::ids().0 != 0 || lacks(&status) || !has_all_ids(&ids)
    });
    *LIMITED
}

fn lacks(status: &str) -> bool {
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    line.and_then(|c| u64::from_str_radix(c.trim(), 16).ok()).is_some_and(|c| c & NEEDED != NEEDED)
}

fn has_all_ids(map: &str) -> bool {
    map.is_empty() || map.split_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_with_everything_is_not_limited() {
        let cap = |c: &str| lacks(&format!("Uid:\t0\nCapEff:\t{c}\nSeccomp:\t0\n"));
        assert!(!cap("000001fffeffffff") && cap("0000000000000000"));
        // What containers give their root: no SYS_ADMIN.
        assert!(cap("00000000a80425fb"));
        assert!(has_all_ids("         0          0 4294967295\n"));
        assert!(!has_all_ids("         0       1000          1\n"));
    }
}
