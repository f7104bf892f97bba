//! Real programs on the mount of a lab (A10), and the same tree at all sites afterwards: git, cargo, tar, SQLite, and
//! PostgreSQL, whose primary site is killed while it works.

use crate::support;

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::proc::{self, run_ok};
use support::{Lab, is_root};

/// Longest time that one program may take.
const LIMIT: Duration = Duration::from_secs(150);
/// Commits of the repository, and new blobs in each: 10,000 objects and the trees.
const COMMITS: usize = 50;
const BLOBS: usize = 200;

/// A lab, and a user who works on its mount.
struct Desk {
    lab: Lab,
    /// Not on the mount; belongs to the user.
    home: tempfile::TempDir,
    ordinary: bool,
}

impl Desk {
    fn new(ordinary: bool) -> Desk {
        let home = tempfile::Builder::new().prefix("home-").tempdir_in(support::base_dir()).unwrap();
        let lab = if ordinary { Lab::up_as_user(&[]) } else { Lab::up(&[]) };
        let desk = Desk { lab, home, ordinary };
        // Gives the home to the user, also where no command would.
        desk.command("true");
        desk
    }

    fn command(&self, program: &str) -> Command {
        let mut c = Command::new(program);
        // The test's own build must not leak into a build on the mount.
        for (k, _) in std::env::vars_os() {
            let k = k.to_string_lossy().into_owned();
            if (k.starts_with("CARGO_") && k != "CARGO_HOME") || k.starts_with("GIT_") || k.starts_with("RUSTFLAGS") {
                c.env_remove(k);
            }
        }
        c.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null").env("LC_ALL", "C");
        if self.ordinary {
            proc::as_user(&mut c, self.home.path());
        }
        c
    }

    #[track_caller]
    fn ok(&self, program: &str, args: &[&str], dir: &Path) -> String {
        run_ok(self.command(program).args(args).current_dir(dir), LIMIT)
    }

    /// A shell script; `$1` is the mount.
    #[track_caller]
    fn sh(&self, script: &str) -> String {
        let mut c = self.command("sh");
        c.args(["-euc", script, "sh"]).arg(self.lab.mnt()).current_dir(self.home.path());
        run_ok(&mut c, LIMIT)
    }

    /// All sites have the tree, and the mount shows it.
    #[track_caller]
    fn same_everywhere(&self) {
        self.lab.wait(60);
        self.lab.assert_trees_equal();
        // Only its own user may look into an ordinary user's mount.
        if !self.ordinary || !is_root() {
            support::assert_same(&self.lab.mnt(), &self.lab.tree("primary"));
        }
    }
}

/// A repository as a stream for `git fast-import`: every commit rewrites [`BLOBS`] files of a few hundred bytes.
fn history() -> Vec<u8> {
    let mut out = Vec::new();
    for c in 0..COMMITS {
        let head =
            format!("commit refs/heads/main\ncommitter A <a@example.org> {} +0000\ndata 2\nc\n", 1_600_000_000 + c);
        out.extend_from_slice(head.as_bytes());
        for f in 0..BLOBS {
            let text = format!("line of file {f} in commit {c}\n").repeat(1 + f % 20);
            out.extend_from_slice(
                format!("M 100644 inline d{}/s/f{f}\ndata {}\n{text}\n", f % 10, text.len()).as_bytes(),
            );
        }
    }
    out
}

fn git(desk: &Desk) {
    let stream = desk.home.path().join("history");
    fs::write(&stream, history()).unwrap();
    fs::set_permissions(&stream, fs::Permissions::from_mode(0o644)).unwrap();
    desk.sh(
        "git init -q repo; git -C repo fast-import --quiet <history; git -C repo symbolic-ref HEAD refs/heads/main",
    );
    let objects = desk.sh("git -C repo rev-list --objects --all | wc -l");
    assert!(objects.trim().parse::<usize>().unwrap() >= 10_000, "{objects}");
    desk.sh("git clone -q --no-local repo \"$1/clone\"");
    let head = |dir: &str| desk.sh(&format!("git -C {dir} rev-parse main"));
    assert_eq!(head("repo"), head("\"$1/clone\""));
    // Work in it: commits, a branch, a merge, and loose objects for gc to pack.
    desk.sh("cd \"$1/clone\"; git config user.name A; git config user.email a@example.org
         git checkout -q -b side; for i in 1 2 3; do echo $i >d0/new$i; git add -A; git commit -q -m side$i; done
         git checkout -q main; git mv d1 e1; git rm -q -r d2; git commit -q -m main; git merge -q -m merge side
         git gc -q --prune=now; git fsck --full --strict
         test -z \"$(git status --porcelain)\"; test -f d0/new3; test -d e1; test ! -e d2");
    desk.same_everywhere();
}

fn cargo(desk: &Desk, test: &str) {
    let there = desk.command("cargo").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !there.is_ok_and(|s| s.success()) {
        support::skipped(test, "cargo cannot be run by the ordinary user; the build is left out");
        return;
    }
    desk.sh("mkdir -p \"$1/krate/src\"; cd \"$1/krate\"
         printf '[package]\\nname = \"krate\"\\nversion = \"0.1.0\"\\nedition = \"2021\"\\n' >Cargo.toml
         printf 'pub fn f() -> u32 { 41 }\\n#[test]\\nfn t() { assert_eq!(f(), 41); }\\n' >src/lib.rs
         printf 'fn main() { println!(\"{}\", krate::f() + 1); }\\n' >src/main.rs
         cargo build --offline -q --target-dir target
         test \"$(target/debug/krate)\" = 42
         sleep 1; sed -i s/41/42/ src/lib.rs; cargo build --offline -q --target-dir target
         test \"$(target/debug/krate)\" = 43");
    desk.same_everywhere();
}

fn tar(desk: &Desk) {
    let native = desk.home.path().join("src");
    fs::create_dir_all(native.join("sub/deep")).unwrap();
    for i in 0..200 {
        fs::write(native.join(format!("sub/f{i}")), vec![i as u8; 37 * i]).unwrap();
    }
    for name in ["one", "sub/two", "sub/deep/three"] {
        fs::hard_link(native.join("sub/f7"), native.join(name)).unwrap();
    }
    symlink("sub/f7", native.join("symlink")).unwrap();
    let sparse = fs::File::create(native.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    for mib in [1u64, 17, 40] {
        sparse.write_all_at(&[mib as u8; 10_000], mib << 20).unwrap();
    }
    support::sys::set_xattr(&native.join("sub/f9"), "user.kagami", b"value \xff\x00 of bytes").unwrap();
    let acl = support::sys::acl(6, &[(12_345, 4), (23_456, 6)], 4, 6, 0);
    support::sys::set_xattr(&native.join("sub/f10"), "system.posix_acl_access", &acl).unwrap();
    support::sys::set_xattr(&native.join("sub/deep"), "system.posix_acl_default", &acl).unwrap();
    if desk.ordinary && is_root() {
        run_ok(Command::new("chown").args(["-Rh", &format!("{0}:{0}", proc::ORDINARY_UID)]).arg(&native), LIMIT);
    }
    desk.sh("flags='--xattrs --xattrs-include=* --acls --sparse --format=posix'
         tar $flags -cf \"$1/native.tar\" -C src .
         mkdir \"$1/a\" \"$1/b\"; tar $flags -xpf \"$1/native.tar\" -C \"$1/a\"
         tar $flags -cf \"$1/mount.tar\" -C \"$1/a\" .; tar $flags -xpf \"$1/mount.tar\" -C \"$1/b\"");
    desk.same_everywhere();
    for copy in ["a", "b"] {
        // GNU tar's archive of times has nanoseconds, and its sparse files their holes.
        support::assert_same(&native, &desk.lab.tree("sync").join(copy));
    }
    desk.sh("rm -r \"$1/a\"");
}

fn sqlite(desk: &Desk) {
    const WRITERS: usize = 4;
    const ROWS: usize = 60;
    let db = desk.lab.mnt().join("db.sqlite");
    let db = db.to_str().unwrap();
    desk.ok(
        "sqlite3",
        &[db, "pragma journal_mode=wal; create table t(w int, n int, d blob, unique(w, n));"],
        Path::new("/"),
    );
    let mut writers = Vec::new();
    for w in 0..WRITERS {
        let script = desk.home.path().join(format!("w{w}.sql"));
        let rows = (0..ROWS).map(|n| format!("insert into t values({w},{n},randomblob(700));\n"));
        let text = format!(".timeout 60000\n{}.quit\n", rows.collect::<String>());
        fs::write(&script, text).unwrap();
        let mut c = desk.command("sqlite3");
        c.arg("-bail").arg(db).stdin(fs::File::open(&script).unwrap()).stdout(Stdio::null());
        writers.push(proc::die_with_parent(&mut c).spawn().unwrap());
    }
    for w in &mut writers {
        assert!(proc::wait_timeout(w, LIMIT).expect("a writer hangs").success());
    }
    let said = desk.ok("sqlite3", &[db, "select count(*) from t; pragma integrity_check;"], Path::new("/"));
    assert_eq!(said, format!("{}\nok\n", WRITERS * ROWS));
    desk.same_everywhere();
    // The copy at the sync site is a database with all of it.
    let copy = desk.home.path().join("copy.sqlite");
    for suffix in ["", "-wal"] {
        let from = PathBuf::from(format!("{}{suffix}", desk.lab.tree("sync").join("db.sqlite").display()));
        if from.exists() {
            fs::copy(from, format!("{}{suffix}", copy.display())).unwrap();
        }
    }
    let out = run_ok(Command::new("sqlite3").arg(&copy).arg("select count(*) from t;"), LIMIT);
    assert_eq!(out.trim(), (WRITERS * ROWS).to_string());
}

fn session(ordinary: bool, test: &str) {
    let desk = Desk::new(ordinary);
    git(&desk);
    cargo(&desk, test);
    tar(&desk);
    sqlite(&desk);
    desk.lab.down();
}

#[test]
fn git_cargo_tar_and_sqlite() {
    session(!is_root(), "git_cargo_tar_and_sqlite");
}

#[test]
fn git_cargo_tar_and_sqlite_as_an_ordinary_user() {
    if is_root() {
        session(true, "git_cargo_tar_and_sqlite_as_an_ordinary_user");
    }
}

/// A PostgreSQL server and its clients, run as the user `postgres`. Killed when dropped.
struct Postgres {
    bin: PathBuf,
    data: PathBuf,
    uid: (u32, u32),
    sock: tempfile::TempDir,
    server: Option<Child>,
}

impl Postgres {
    /// `None`: not installed.
    fn find(data: PathBuf) -> Option<Postgres> {
        let mut bins: Vec<_> =
            fs::read_dir("/usr/lib/postgresql").ok()?.flatten().map(|e| e.path().join("bin")).collect();
        bins.sort();
        let bin = bins.into_iter().rfind(|b| b.join("initdb").exists() && b.join("pgbench").exists())?;
        let users = fs::read_to_string("/etc/passwd").ok()?;
        let line = users.lines().find(|l| l.starts_with("postgres:"))?;
        let ids: Vec<u32> = line.split(':').skip(2).take(2).filter_map(|n| n.parse().ok()).collect();
        let sock = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(sock.path(), Some(ids[0]), Some(ids[1])).unwrap();
        Some(Postgres { bin, data, uid: (ids[0], ids[1]), sock, server: None })
    }

    fn command(&self, program: &str) -> Command {
        let mut c = Command::new(self.bin.join(program));
        c.uid(self.uid.0).gid(self.uid.1).current_dir(self.sock.path()).env("LC_ALL", "C");
        c.env("PGHOST", self.sock.path()).env("PGUSER", "postgres").env("PGCONNECT_TIMEOUT", "10");
        c
    }

    fn log(&self) -> String {
        fs::read_to_string(self.sock.path().join("log")).unwrap_or_default()
    }

    #[track_caller]
    fn start(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.sock.path().join("log")).unwrap();
        let mut c = self.command("postgres");
        c.arg("-D").arg(&self.data).args(["-c", "listen_addresses=", "-c"]);
        c.arg(format!("unix_socket_directories={}", self.sock.path().display()));
        c.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.server = Some(proc::die_with_parent(&mut c).spawn().unwrap());
        let ready = || {
            let mut c = self.command("psql");
            c.args(["-qAtc", "select 1", "postgres"]).stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null());
            c.status().is_ok_and(|s| s.success())
        };
        assert!(proc::wait_until(Duration::from_secs(60), ready), "PostgreSQL does not start:\n{}", self.log());
    }

    #[track_caller]
    fn sql(&self, query: &str) -> String {
        run_ok(self.command("psql").args(["-qAtc", query, "bench"]), LIMIT).trim().to_owned()
    }

    /// In order: as `pg_ctl stop -m fast`.
    fn stop(&mut self) {
        if let Some(mut s) = self.server.take() {
            proc::kill(s.id() as i32, libc::SIGINT);
            let status = proc::wait_timeout(&mut s, Duration::from_secs(60));
            assert!(status.is_some_and(|s| s.success()), "PostgreSQL did not stop:\n{}", self.log());
        }
    }

    /// As the machine's end would: the server and its processes, at once.
    fn kill(&mut self) {
        let Some(mut s) = self.server.take() else { return };
        let pid = s.id() as i32;
        let mut all = children(pid);
        all.push(pid);
        all.iter().for_each(|p| proc::kill(*p, libc::SIGKILL));
        let _ = s.wait();
        let gone = proc::wait_until(Duration::from_secs(20), || !all.iter().any(|p| proc::alive(*p)));
        assert!(gone || std::thread::panicking(), "processes of PostgreSQL do not end");
    }

    /// pgbench's own transactions, and one that leaves a row for each.
    fn bench(&self, seconds: u64) -> Command {
        let script = self.sock.path().join("done.sql");
        fs::write(&script, "insert into done values (:client_id);\n").unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o644)).unwrap();
        let mut c = self.command("pgbench");
        c.args(["-n", "-c", "4", "-j", "2", "-b", "tpcb-like", "-l", "-T", &seconds.to_string(), "-f"]).arg(&script);
        c.arg("bench").stdin(Stdio::null());
        c
    }

    /// For each client, the transactions of `done.sql` whose end pgbench has seen.
    fn reported(&self) -> [u64; 4] {
        let mut n = [0; 4];
        for e in fs::read_dir(self.sock.path()).unwrap().flatten() {
            if !e.file_name().to_string_lossy().starts_with("pgbench_log") {
                continue;
            }
            for line in fs::read_to_string(e.path()).unwrap().lines() {
                let f: Vec<&str> = line.split(' ').collect();
                // client, transaction, µs, script, time; without a time: it failed.
                if let [client, _, us, "1", ..] = f[..]
                    && us.parse::<u64>().is_ok()
                {
                    n[client.parse::<usize>().unwrap()] += 1;
                }
            }
        }
        n
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
    }
}

fn children(pid: i32) -> Vec<i32> {
    let stat = |p: i32| fs::read_to_string(format!("/proc/{p}/stat")).unwrap_or_default();
    let parent = |p: i32| stat(p).rsplit(") ").next().and_then(|r| r.split(' ').nth(1)?.parse::<i32>().ok());
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|e| e.file_name().to_str()?.parse().ok()).filter(|p| parent(*p) == Some(pid)).collect()
}

#[test]
fn postgresql_goes_on_at_the_sync_site_with_every_transaction_it_had_answered() {
    const TEST: &str = "postgresql_goes_on_at_the_sync_site_with_every_transaction_it_had_answered";
    if !is_root() {
        return support::skipped(TEST, "PostgreSQL has a user of its own, which only root can turn into");
    }
    let lab = Lab::up(&[]);
    let seconds = support::env_number("KAGAMI_PGBENCH_SECONDS", 60).max(4);
    let Some(mut pg) = Postgres::find(lab.mnt().join("pg/data")) else {
        return support::skipped(TEST, "PostgreSQL is not installed (scripts/setup.sh does that)");
    };
    fs::create_dir(lab.mnt().join("pg")).unwrap();
    std::os::unix::fs::chown(lab.mnt().join("pg"), Some(pg.uid.0), Some(pg.uid.1)).unwrap();
    run_ok(pg.command("initdb").arg("-D").arg(&pg.data).args(["-A", "trust", "--data-checksums"]), LIMIT);
    pg.start();
    run_ok(pg.command("createdb").arg("bench"), LIMIT);
    run_ok(pg.command("pgbench").args(["-i", "-q", "-s", "2", "bench"]), LIMIT);
    pg.sql("create table done (client int)");
    let said = run_ok(&mut pg.bench(seconds / 2), LIMIT);
    println!(
        "{}",
        said.lines().filter(|l| l.starts_with("tps") || l.starts_with("latency")).collect::<Vec<_>>().join("; ")
    );
    lab.wait_pair("primary", "sync", "PAIR", Duration::from_secs(10));

    // The primary site dies in the middle of it.
    let mut bench = pg.bench(600);
    let mut bench = proc::die_with_parent(bench.stdout(Stdio::null()).stderr(Stdio::null())).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(seconds - seconds / 2));
    lab.kill_now("primary");
    let begun = Instant::now();
    proc::wait_until(Duration::from_secs(5), || bench.try_wait().is_ok_and(|s| s.is_some()));
    pg.kill();
    proc::wait_timeout(&mut bench, Duration::from_secs(20)).expect("pgbench hangs");
    lab.takeover("sync", &[]);
    pg.start();
    println!(
        "PostgreSQL answers at the sync site {:.1} s after the end of the primary site",
        begun.elapsed().as_secs_f64()
    );

    let reported = pg.reported();
    assert!(reported.iter().all(|n| *n > 0), "pgbench reported nothing: {reported:?}");
    for (client, n) in reported.iter().enumerate() {
        let there: u64 = pg.sql(&format!("select count(*) from done where client = {client}")).parse().unwrap();
        assert!(there >= *n, "client {client}: {n} transactions were answered, {there} are there");
        assert!(there <= *n + 2, "client {client}: {n} transactions were answered, {there} are there");
    }
    let sums = "select (select sum(delta) from pgbench_history), (select sum(abalance) from pgbench_accounts),
        (select sum(tbalance) from pgbench_tellers), (select sum(bbalance) from pgbench_branches)";
    let sums = pg.sql(sums);
    assert!(sums.split('|').all(|s| s == sums.split('|').next().unwrap()), "{sums}");
    run_ok(&mut pg.bench(2), LIMIT);
    pg.stop();
    run_ok(pg.command("pg_checksums").arg("--check").arg("-D").arg(&pg.data), LIMIT);

    lab.start("primary");
    lab.wait(120);
    lab.assert_trees_equal();
    support::assert_same(&lab.mnt(), &lab.tree("sync"));
    lab.down();
}
