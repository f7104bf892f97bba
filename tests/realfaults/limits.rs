//! Limits of the system that are reached: full disks under the region and the state directory, descriptors, sizes of files,
//! address space. Work is refused or goes on; nothing answered is lost; when there is room again everything heals.

use crate::support::answered::{Answered, Log, Promise};
use crate::support::lab::SITES;
use crate::support::{self, Lab, proc};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long the work goes on before a limit, and under it.
const FREE: Duration = Duration::from_millis(400);
const TIGHT: Duration = Duration::from_millis(1500);
const SOON: Duration = Duration::from_secs(30);

/// A limit of a running process, which is as before when this is dropped.
struct Limit {
    pid: i32,
    what: libc::__rlimit_resource_t,
    before: libc::rlimit,
}

impl Limit {
    fn set(pid: i32, what: libc::__rlimit_resource_t, soft: u64) -> Limit {
        let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: plain data that lives through the calls.
        let rc = unsafe {
            libc::prlimit(pid, what, std::ptr::null(), &mut before)
                + libc::prlimit(pid, what, &libc::rlimit { rlim_cur: soft, ..before }, std::ptr::null_mut())
        };
        assert_eq!(rc, 0, "prlimit: {}", std::io::Error::last_os_error());
        Limit { pid, what, before }
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        // SAFETY: plain data; the process may be gone, which is fine.
        unsafe { libc::prlimit(self.pid, self.what, &self.before, std::ptr::null_mut()) };
    }
}

/// A small disk in memory on a directory of the lab.
struct Disk(PathBuf);

impl Disk {
    /// Begins the lab anew with this directory of a site (`region`, `state`) on a disk of so many KiB.
    fn under(lab: &Lab, site: &str, what: &str, kib: u64) -> Disk {
        lab.ok("down", &[]);
        for s in SITES {
            for d in ["region", "state"] {
                std::fs::remove_dir_all(lab.site_dir(s).join(d)).expect("removing what the first start made");
            }
        }
        let at = lab.site_dir(site).join(what);
        std::fs::create_dir(&at).expect("mkdir");
        let size = format!("size={kib}k");
        proc::run_ok(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(&at), SOON);
        let disk = Disk(at);
        lab.ok("up", &[]);
        disk
    }

    /// Takes all room that is left.
    fn fill(&self) -> PathBuf {
        let filler = self.0.join("filler");
        let mut f = std::fs::File::create(&filler).expect("a filler");
        for size in [64 << 10, 4096, 1] {
            while std::io::Write::write_all(&mut f, &vec![1; size]).is_ok() {}
        }
        filler
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = proc::run(Command::new("umount").arg("-l").arg(&self.0), SOON);
    }
}

/// Work that remembers what it was answered, in a directory of its own; each piece ends at its first error.
fn work(lab: &Lab, name: &str, during: impl FnOnce()) -> Vec<(String, Log)> {
    let begin = |n: usize| {
        let area = format!("{name}-{n}");
        let made = std::fs::create_dir(lab.mnt().join(&area));
        made.is_ok().then(|| (area.clone(), Answered::start(&lab.mnt().join(&area), 2, Promise::Close, n as u64)))
    };
    let first = begin(0).expect("a directory before the limit");
    assert!(proc::wait_until(SOON, || first.1.answered() > 20), "nothing is answered\n{}", lab.log_tails());
    std::thread::sleep(FREE);
    // What is begun under the limit meets it at other places than what goes on.
    let limited = std::thread::scope(|s| {
        let more = s.spawn(|| {
            std::thread::sleep(TIGHT / 2);
            begin(1)
        });
        during();
        more.join().expect("more work")
    });
    [Some(first), limited].into_iter().flatten().map(|(area, answered)| (area, answered.finish())).collect()
}

/// In step, equal, with all that was answered, and it takes writes.
#[track_caller]
fn heals(lab: &Lab, name: &str, done: &[(String, Log)]) {
    lab.wait(60);
    for (area, log) in done {
        for site in SITES {
            let check = log.check(&lab.tree(site).join(area));
            check.unwrap_or_else(|e| panic!("{name}: lost at {site}: {}\n{}", e.join("\n  "), lab.log_tails()));
        }
    }
    std::fs::write(lab.mnt().join(format!("{name}-after")), name).expect("a write when there is room again");
    lab.wait(60);
    lab.assert_trees_equal();
    let errors: Vec<String> = done.iter().flat_map(|(_, log)| log.errors()).collect();
    let answered: u64 = done.iter().map(|(_, log)| log.answered()).sum();
    println!("{name}: {answered} answered, refused: {errors:?}");
}

/// All nodes are those that were there before.
#[track_caller]
fn same_nodes(lab: &Lab, before: &[Option<i32>]) {
    let now: Vec<_> = SITES.iter().map(|s| lab.pid(s)).collect();
    assert_eq!(now, before, "a node ended\n{}", lab.log_tails());
}

fn pids(lab: &Lab) -> Vec<Option<i32>> {
    SITES.iter().map(|s| lab.pid(s)).collect()
}

fn fds(pid: i32) -> u64 {
    std::fs::read_dir(Path::new(&format!("/proc/{pid}/fd"))).map_or(0, |d| d.count() as u64)
}

/// G8: out of descriptors, at each site; the links are made anew meanwhile.
#[test]
fn g8_a_node_without_descriptors_goes_on_and_heals() {
    let lab = Lab::up(&[]);
    for site in SITES {
        for spare in [0, 5] {
            let name = format!("descriptors-{site}-{spare}");
            let before = pids(&lab);
            let done = work(&lab, &name, || {
                let pid = lab.pid(site).expect("a node");
                let limit = Limit::set(pid, libc::RLIMIT_NOFILE, fds(pid) + spare);
                std::thread::sleep(TIGHT / 3);
                // Files that programs open count, too.
                let open: Vec<_> = (0..40)
                    .filter_map(|n| std::fs::File::create(lab.mnt().join(format!("{name}-open{n}"))).ok())
                    .collect();
                std::thread::sleep(TIGHT);
                println!("{name}: {} of 40 could be opened", open.len());
                drop(limit);
            });
            same_nodes(&lab, &before);
            heals(&lab, &name, &done);
        }
    }
    let events = std::fs::read_to_string(lab.site_dir("primary").join("state/events/events.jsonl")).expect("events");
    let told = events.lines().filter(|l| l.contains("\"pair\"") && l.contains("open files")).count();
    assert!(told > 0, "no event of the primary tells why a pair was lost:\n{events}");
    println!("{told} events of the primary tell of a site without descriptors");
    lab.down();
}

/// G8: files may not become longer than a limit: that is an error of one file, not the end of the node.
#[test]
fn g8_a_limit_of_file_sizes_is_an_error_and_not_the_end() {
    let lab = Lab::up(&[]);
    for site in SITES {
        let name = format!("sizes-{site}");
        let before = pids(&lab);
        let done = work(&lab, &name, || {
            let limit = Limit::set(lab.pid(site).expect("a node"), libc::RLIMIT_FSIZE, 1 << 20);
            let large = std::fs::File::create(lab.mnt().join(format!("{name}-large"))).and_then(|mut f| {
                std::io::Write::write_all(&mut f, &vec![7; 3 << 20])?;
                f.sync_all()
            });
            println!("{name}: a file of 3 MiB: {large:?}");
            assert_eq!(large.is_err(), site == "primary", "{large:?}");
            std::thread::sleep(TIGHT);
            drop(limit);
        });
        same_nodes(&lab, &before);
        heals(&lab, &name, &done);
    }
    lab.down();
}

/// G1: no more memory is to be had: the node may end like one that is killed; then it is started again, and nothing that
/// was answered is lost.
#[test]
fn g1_without_memory_nothing_answered_is_lost() {
    let lab = Lab::up(&[]);
    for site in SITES {
        let name = format!("memory-{site}");
        let done = work(&lab, &name, || {
            let pid = lab.pid(site).expect("a node");
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let size =
                status.lines().find_map(|l| l.strip_prefix("VmSize:")?.split_whitespace().next()?.parse::<u64>().ok());
            let limit = Limit::set(pid, libc::RLIMIT_AS, (size.expect("VmSize") << 10) + (1 << 20));
            for n in 0..8 {
                let _ = std::fs::write(lab.mnt().join(format!("{name}-large{n}")), vec![7; 3 << 20]);
            }
            std::thread::sleep(TIGHT);
            drop(limit);
        });
        println!("{name}: the node {}", if lab.pid(site).is_some() { "goes on" } else { "has ended" });
        if lab.pid(site).is_none() {
            lab.start(site);
        }
        heals(&lab, &name, &done);
    }
    lab.down();
}

/// G8, G9: the disk with the state directory is full, while pairs change their states and nodes are killed.
#[test]
fn g8_a_full_state_directory_stops_nothing_for_good() {
    let test = "g8_a_full_state_directory_stops_nothing_for_good";
    if !support::is_root() {
        return support::skipped(test, "a small disk needs root");
    }
    let lab = Lab::up(&[]);
    for site in ["primary", "sync"] {
        let disk = Disk::under(&lab, site, "state", 1024);
        let name = format!("state-{site}");
        lab.wait(60);
        let done = work(&lab, &name, || {
            let filler = disk.fill();
            lab.kill_now("async");
            lab.start("async");
            std::thread::sleep(TIGHT);
            lab.kill_now(if site == "primary" { "sync" } else { "primary" });
            std::thread::sleep(TIGHT);
            std::fs::remove_file(filler).expect("room again");
        });
        assert!(lab.pid(site).is_some(), "{site} ended\n{}", lab.log_tails());
        lab.start(if site == "primary" { "sync" } else { "primary" });
        heals(&lab, &name, &done);
        // Killed and started once more, it knows what it is.
        lab.kill_now(site);
        lab.start(site);
        heals(&lab, &format!("{name}-again"), &[]);
        lab.ok("down", &[]);
        drop(disk);
    }
}

/// G8: the disk with the region is full of what waits for a site that stands still: the spool takes its part and no more,
/// removing makes room, and the site gets everything.
#[test]
fn g8_a_region_full_of_what_waits_for_a_site_that_stands_still() {
    let test = "g8_a_region_full_of_what_waits_for_a_site_that_stands_still";
    if !support::is_root() {
        return support::skipped(test, "a small disk needs root");
    }
    let lab = Lab::up(&[]);
    let disk = Disk::under(&lab, "primary", "region", 48 << 10);
    lab.ok("down", &[]);
    let file = lab.config("primary");
    let text = std::fs::read_to_string(&file).expect("a site file");
    std::fs::write(&file, format!("{text}\n[limits]\nqueue_memory_mib = 1\nspool_mib = 512\n")).expect("a site file");
    lab.ok("up", &[]);
    lab.wait(60);
    let pid = lab.pid("async").expect("a node");
    let done = work(&lab, "spool", || {
        proc::kill(pid, libc::SIGSTOP);
        let mut full = 0;
        for n in 0..60 {
            let made = std::fs::File::create(lab.mnt().join(format!("large{}", n % 30))).and_then(|mut f| {
                std::io::Write::write_all(&mut f, &support::Rng::new(n).bytes(2 << 20))?;
                f.sync_all()
            });
            full += u32::from(made.is_err_and(|e| e.raw_os_error() == Some(libc::ENOSPC)));
        }
        println!("{full} of 60 files of 2 MiB found no room");
        assert!(full > 0, "the disk was never full");
        for n in 0..30 {
            let _ = std::fs::remove_file(lab.mnt().join(format!("large{n}")));
        }
        std::fs::write(lab.mnt().join("room"), b"again").expect("removing makes room");
        proc::kill(pid, libc::SIGCONT);
    });
    heals(&lab, "spool", &done);
    lab.ok("down", &[]);
    drop(disk);
}
