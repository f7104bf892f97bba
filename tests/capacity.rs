//! B8 (CD-1): the capacity of a volume: shown, enforced by the primary with ENOSPC and nothing damaged, room at once when
//! something goes, counted right through kill -9, takeover and change.

use crate::support;

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use support::Lab;
use support::proc::{run, text};

const MB: u64 = 1_000_000;
/// Size of the volume in these tests, bytes.
const SIZE: u64 = 40 * MB;

/// A lab of two sites whose volume has a capacity.
fn lab() -> Lab {
    let lab = Lab::up(&["--sites", "2"]);
    for site in ["sync", "primary"] {
        lab.kill(site);
        resize(&lab, site, SIZE);
    }
    lab.start("sync");
    lab.start("primary");
    lab.wait(60);
    lab
}

fn resize(lab: &Lab, site: &str, bytes: u64) {
    let file = lab.config(site);
    let s = fs::read_to_string(&file).unwrap();
    let kept: Vec<&str> = s.lines().filter(|l| !l.starts_with("size = ")).collect();
    let s = kept.join("\n") + "\n";
    fs::write(file, s.replacen("name = \"vol0\"", &format!("name = \"vol0\"\nsize = {bytes}"), 1)).unwrap();
}

fn used(lab: &Lab, site: &str) -> u64 {
    lab.status(site)["groups"][0]["volumes"][0]["used"].as_u64().unwrap_or_else(|| panic!("{:#}", lab.status(site)))
}

/// What a tree costs by the documented rule.
fn cost(dir: &Path) -> u64 {
    let (mut sum, mut linked) = (0, std::collections::HashSet::new());
    for e in fs::read_dir(dir).unwrap() {
        let (m, path) = {
            let e = e.unwrap();
            (e.path().symlink_metadata().unwrap(), e.path())
        };
        let whole = |n: u64| n.div_ceil(4096) * 4096;
        if m.is_dir() {
            sum += 4096 + cost(&path);
        } else if m.nlink() == 1 || linked.insert(m.ino()) {
            sum += if m.is_file() { whole(m.blocks() * 512).min(whole(m.size())).max(4096) } else { 4096 };
        }
    }
    sum
}

/// What ext4 may add of its own to a fragmented file with holes when it writes it out, after it was counted, bytes.
const EXTENTS: u64 = 16 << 10;

#[track_caller]
fn exact(lab: &Lab, site: &str) {
    let (counted, there) = (used(lab, site), cost(&lab.tree(site)));
    assert!(counted.abs_diff(there) <= EXTENTS, "at {site} {counted} bytes are counted and {there} used");
}

fn full<T: std::fmt::Debug>(r: io::Result<T>) {
    assert_eq!(r.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
}

/// Free space as df shows it, bytes.
fn free(lab: &Lab) -> (u64, u64) {
    let out = run(Command::new("stat").args(["-f", "-c", "%S %b %a"]).arg(lab.mnt()), Duration::from_secs(10));
    let n: Vec<u64> = text(&out.stdout).split_whitespace().map(|w| w.parse().unwrap()).collect();
    (n[0] * n[1], n[0] * n[2])
}

/// Writes and closes with a look at the error, as an application that cares does.
fn write_checked(path: &Path, bytes: usize) -> io::Result<()> {
    let mut f = fs::File::create(path)?;
    for part in vec![7u8; bytes].chunks(64 << 10) {
        f.write_all(part)?;
    }
    f.sync_all()
}

fn sqlite(lab: &Lab, sql: &str) -> (bool, String) {
    let db = lab.mnt().join("db");
    let out = run(Command::new("sqlite3").arg("-bail").arg(&db).arg(sql), Duration::from_secs(60));
    (out.status.success(), text(&out.stdout) + &text(&out.stderr))
}

#[test]
fn b8_enospc_at_the_capacity_damages_nothing_and_freeing_lets_it_go_on() {
    let lab = lab();
    let mnt = lab.mnt();
    let (all, left) = free(&lab);
    assert!(all <= SIZE && all > SIZE - 4096 && left < all, "{all} {left}");
    // A writer past it, among files that must not be touched by that.
    fs::write(mnt.join("keep"), vec![3u8; 1 << 20]).unwrap();
    for i in 0..2 {
        write_checked(&mnt.join(format!("small{i}")), 100).unwrap();
    }
    let (made, msg) =
        sqlite(&lab, "create table t(a integer primary key, b blob); insert into t(b) values(zeroblob(1000));");
    assert!(made, "{msg}");
    full(write_checked(&mnt.join("big"), 60_000_000));
    let (_, left) = free(&lab);
    assert!(left < 2 << 20, "{left} bytes are free");
    assert!(used(&lab, "primary") <= SIZE);
    // In place, what is there can be written.
    let keep = fs::File::options().read(true).write(true).open(mnt.join("keep")).unwrap();
    keep.write_all_at(&[4u8; 300_000], 100_000).unwrap();
    keep.sync_all().unwrap();
    // Many small files, until nothing goes any more; and every kind of new object.
    let mut last = Ok(());
    for i in 0..2000 {
        last = write_checked(&mnt.join(format!("small{i}")), 100);
        if last.is_err() {
            break;
        }
    }
    full(last);
    full(fs::create_dir(mnt.join("dir")));
    full(std::os::unix::fs::symlink("x", mnt.join("sym")));
    full(fs::File::create(mnt.join("empty")));
    fs::hard_link(mnt.join("keep"), mnt.join("keep-too")).unwrap();
    fs::rename(mnt.join("small0"), mnt.join("moved")).unwrap();
    // Holes cost nothing, filling them does; preallocation is refused before it is half done.
    let sparse = fs::File::options().read(true).write(true).open(mnt.join("moved")).unwrap();
    sparse.set_len(1 << 30).unwrap();
    sparse
        .write_all_at(&[1; 50_000], 1 << 20)
        .and_then(|()| sparse.sync_all())
        .map_or_else(|e| full::<()>(Err(e)), |()| panic!("there was room"));
    sparse.set_len(100).unwrap();
    // Mapped memory: the error comes with fsync, and the rest of the file is what it was.
    let script = "import mmap,os,sys\nf=os.open(sys.argv[1],os.O_RDWR)\nos.ftruncate(f,8<<20)\nm=mmap.mmap(f,8<<20)\nfor i in range(0,8<<20,4096): m[i]=1\ntry:\n  m.flush(); os.fsync(f); os.close(f); print('none')\nexcept OSError as e: print(e.errno)\n";
    let out = run(Command::new("python3").args(["-c", script]).arg(mnt.join("small1")), Duration::from_secs(60));
    assert_eq!(text(&out.stdout).trim(), libc::ENOSPC.to_string(), "{}", text(&out.stderr));
    // SQLite is refused, and its file stays good.
    let (grown, msg) = sqlite(&lab, "insert into t(b) select zeroblob(3000000);");
    // Its journal cannot even be made.
    assert!(!grown && (msg.contains("full") || msg.contains("unable to open")), "{grown} {msg}");
    assert_eq!(sqlite(&lab, "pragma integrity_check; select count(*) from t;").1, "ok\n1\n");
    let bytes = fs::read(mnt.join("keep")).unwrap();
    assert!(bytes[..100_000].iter().all(|b| *b == 3) && bytes[100_000..400_000].iter().all(|b| *b == 4));
    assert!(bytes[400_000..].iter().all(|b| *b == 3) && bytes.len() == 1 << 20);
    lab.wait(60);
    for site in ["primary", "sync"] {
        exact(&lab, site);
    }
    drop((keep, sparse));
    // Room at once.
    fs::remove_file(mnt.join("big")).unwrap();
    write_checked(&mnt.join("again"), 20_000_000).unwrap();
    let (grown, msg) =
        sqlite(&lab, "insert into t(b) select zeroblob(3000000); pragma integrity_check; select count(*) from t;");
    assert!(grown && msg == "ok\n2\n", "{msg}");
    lab.wait(60);
    lab.assert_trees_equal();
    for site in ["primary", "sync"] {
        exact(&lab, site);
    }
    lab.down();
}

#[test]
fn b8_what_is_used_is_known_after_kills_takeover_and_a_change_of_the_size() {
    let lab = lab();
    for i in 0..20 {
        write_checked(&lab.mnt().join(format!("f{i}")), 1_000_000).unwrap();
    }
    // Killed in the middle of work, several times: nothing is counted anew, and the number is right.
    for round in 0..3 {
        let dir = lab.mnt().join(format!("round{round}"));
        fs::create_dir(&dir).unwrap();
        let (stop, d) = (std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)), dir.clone());
        let s = stop.clone();
        let worker = std::thread::spawn(move || {
            for i in 0.. {
                let f = d.join(format!("w{}", i % 50));
                if s.load(std::sync::atomic::Ordering::Relaxed) || write_checked(&f, 150_000).is_err() {
                    return;
                }
                if i % 3 == 2 {
                    let _ = fs::remove_file(d.join(format!("w{}", (i + 20) % 50)));
                }
            }
        });
        std::thread::sleep(Duration::from_millis(700));
        lab.kill_now("primary");
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        worker.join().unwrap();
        lab.start("primary");
        lab.wait(60);
        for site in ["primary", "sync"] {
            exact(&lab, site);
        }
    }
    let counted = lab.log("primary").matches("counting what is used").count();
    assert_eq!(counted, 1, "counted when the size came, never again");
    // Smaller than what is used: refused, and the old capacity stays.
    resize(&lab, "primary", MB);
    lab.kill("primary");
    lab.start("primary");
    let group = lab.status("primary")["groups"][0].clone();
    assert!(group["reason"].as_str().is_some_and(|r| r.contains("size 1MB is below what is used")), "{group:#}");
    assert_eq!(group["volumes"][0]["capacity"], SIZE);
    // Taken over, the capacity holds there.
    lab.wait(60);
    lab.kill("primary");
    lab.takeover("sync", &[]);
    exact(&lab, "sync");
    full(write_checked(&lab.mnt().join("big"), 60_000_000));
    assert!(used(&lab, "sync") <= SIZE);
    // Larger, by order of the site file of the one that is primary now.
    resize(&lab, "primary", 2 * SIZE);
    resize(&lab, "sync", 2 * SIZE);
    lab.start("primary");
    lab.kill("sync");
    lab.start("sync");
    write_checked(&lab.mnt().join("big"), 30_000_000).unwrap();
    assert!(used(&lab, "sync") > SIZE);
    lab.wait(60);
    for site in ["primary", "sync"] {
        exact(&lab, site);
    }
    lab.down();
}
