//! A network of a test's own, with the loopback interface alone, in which packets can be dropped (nft). It is gone with
//! its first process.

use super::lab::Lab;
use super::proc;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

/// The network.
pub struct Net {
    child: Child,
}

impl Net {
    /// `None`, and a line that says so, where this user or this kernel cannot have it.
    pub fn up(test: &str) -> Option<Net> {
        if !super::is_root() {
            super::skipped(test, "needs root: a network of its own, and nft");
            return None;
        }
        let mut command = Command::new("unshare");
        command.args(["-n", "sh", "-c", "ip link set lo up; while sleep 1; do :; done"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let net = Net { child: proc::die_with_parent(&mut command).spawn().expect("unshare") };
        let own = || {
            let ns = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
            ns(net.pid() as u32).is_some_and(|n| Some(n) != ns(std::process::id()))
        };
        let rules = "add table inet t; add chain inet t in { type filter hook input priority 0; }";
        let up = proc::wait_until(LIMIT, own)
            && proc::wait_until(LIMIT, || net.run(&["ip", "addr", "show", "up", "dev", "lo"]).contains("127.0.0.1"))
            && net.try_run(&["nft", rules]).is_ok();
        if !up {
            super::skipped(test, "this kernel gives no network namespaces or no nft");
            return None;
        }
        Some(net)
    }

    /// Its first process.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn try_run(&self, words: &[&str]) -> Result<String, String> {
        let mut c = Command::new("nsenter");
        c.arg(format!("--net=/proc/{}/ns/net", self.pid())).arg("--").args(words);
        let out = proc::run(&mut c, LIMIT);
        if out.status.success() { Ok(proc::text(&out.stdout)) } else { Err(proc::text(&out.stderr)) }
    }

    #[track_caller]
    fn run(&self, words: &[&str]) -> String {
        self.try_run(words).unwrap_or_else(|e| panic!("{words:?}: {e}"))
    }

    /// Whatever a site answers to those that dialled it is dropped; what they send arrives. (A lab over TCP.)
    #[track_caller]
    pub fn mute(&self, lab: &Lab, site: &str) {
        self.run(&["nft", &format!("add rule inet t in tcp sport {} drop", port(lab, site))]);
    }

    /// Nothing passes to or from a site's port.
    #[track_caller]
    pub fn cut(&self, lab: &Lab, site: &str) {
        self.mute(lab, site);
        self.run(&["nft", &format!("add rule inet t in tcp dport {} drop", port(lab, site))]);
    }

    /// Everything passes again.
    #[track_caller]
    pub fn heal(&self) {
        self.run(&["nft", "flush chain inet t in"]);
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The port that a site listens at.
#[track_caller]
fn port(lab: &Lab, site: &str) -> u16 {
    let file = std::fs::read_to_string(lab.config(site)).expect("a site file");
    let line = file.lines().find(|l| l.starts_with("listen")).expect("an address");
    let digits = line.trim_end_matches(['"', ']']).rsplit(':').next().expect("a port");
    digits.parse().unwrap_or_else(|_| panic!("{line}: no port"))
}
