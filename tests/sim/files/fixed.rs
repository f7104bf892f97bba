//! Files of `/proc` that tell a node about its machine.

use super::here;
use crate::sched::world;

/// The text of a path, if it is one of them. `None`: the kernel's own is read.
pub fn text_of(path: &[u8]) -> Option<Vec<u8>> {
    let text = match path {
        b"/proc/self/mountinfo" => "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n".into(),
        b"/proc/self/uid_map" => "         0          0 4294967295\n".into(),
        b"/proc/self/status" => "Name:\tkagami\nUid:\t0\t0\t0\t0\nCapEff:\t000001fffeffffff\nSeccomp:\t0\n".into(),
        b"/proc/sys/kernel/random/boot_id" => {
            let m = here();
            format!("{m:08x}-0000-4000-8000-{:012x}\n", world().machines[m].boots)
        }
        _ => return None,
    };
    Some(text.into_bytes())
}

/// True for what belongs to a process by its number: there is none here, whatever the real machine has.
pub fn is_of_a_process(path: &[u8]) -> bool {
    path.strip_prefix(b"/proc/").and_then(|p| p.first()).is_some_and(u8::is_ascii_digit)
}
