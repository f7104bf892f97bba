//! Random sequences of calls give the same on the simulated disk and on a real directory.

use crate::disk::{At, Cut, Disk};
use crate::real::{self, Real};
use crate::rng::Rng;
use crate::simulated::Simulated;
use crate::step::{Ability, Drawer, Gave, Step, runs};
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Sequences, and calls of each.
const SEQUENCES: u64 = 2000;
const STEPS: usize = 60;
/// Where a sequence works: so deep that `..` stays within and meets the same on both sides.
const TOP: &str = "p1/p2/p3/p4/p5/p6/top";

/// An object as both sides must have it: type and mode, links, owner, content or target in runs, and the first path of
/// the same object.
type Object = (u32, u64, (u32, u32), Vec<(u8, usize)>, Vec<u8>);

fn real_tree(top: &Path, able: Ability) -> BTreeMap<Vec<u8>, Object> {
    let mut all = BTreeMap::new();
    let mut first: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut paths = vec![PathBuf::new()];
    let mut at = 0;
    while let Some(path) = paths.get(at).cloned() {
        at += 1;
        if top.join(&path).symlink_metadata().expect("what was just listed").is_dir() {
            let names = std::fs::read_dir(top.join(&path)).expect("a directory that root can read");
            paths.extend(names.map(|e| path.join(e.expect("a readable directory").file_name())));
        }
    }
    paths.sort_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    for path in paths {
        let whole = top.join(&path);
        let m = whole.symlink_metadata().expect("what was just listed");
        let content = match m.mode() & libc::S_IFMT {
            libc::S_IFREG => std::fs::read(&whole).expect("a file that can be read"),
            libc::S_IFLNK => std::fs::read_link(&whole).expect("a symlink").as_os_str().as_bytes().to_vec(),
            _ => Vec::new(),
        };
        let name = path.as_os_str().as_bytes().to_vec();
        let links = if m.is_dir() && !able.dir_links { 0 } else { m.nlink() };
        let owner = if able.root { (m.uid(), m.gid()) } else { (0, 0) };
        let same = first.entry(m.ino()).or_insert_with(|| name.clone()).clone();
        all.insert(name, (m.mode(), links, owner, runs(&content), same));
    }
    all
}

fn disk_tree(d: &mut Disk, able: Ability) -> BTreeMap<Vec<u8>, Object> {
    let mut first: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let tree = d.tree(TOP.as_bytes());
    tree.into_iter()
        .map(|(name, n)| {
            let content = if n.kind == libc::S_IFLNK { n.target } else { n.content.to_vec() };
            let links = if n.kind == libc::S_IFDIR && !able.dir_links { 0 } else { n.nlink };
            let owner = if able.root { (n.uid, n.gid) } else { (0, 0) };
            let same = first.entry(n.ino).or_insert_with(|| name.clone()).clone();
            (name, (n.kind | n.mode, links, owner, runs(&content), same))
        })
        .collect()
}

fn told(seed: u64, done: &[(Step, Gave)], what: &str) -> String {
    let lines: Vec<String> = done.iter().map(|(s, g)| format!("  {s:?} → {g:?}")).collect();
    format!("sequence {seed}:\n{}\n{what}", lines.join("\n"))
}

fn sequence(dir: &Path, able: Ability, seed: u64) -> Result<u64, String> {
    std::fs::create_dir_all(dir.join(TOP)).expect("directories of the sequence");
    let mut disk = Disk::new(1, 1 << 30);
    disk.set_mount(b"/simulated");
    for (at, _) in TOP.match_indices('/').chain([(TOP.len(), "")]) {
        disk.mkdir(At::Root(&TOP.as_bytes()[..at]), 0o777).expect("directories of the sequence");
    }
    let mut real = Real::open(&dir.join(TOP), able);
    let mut simulated = Simulated::open(disk, TOP, able);
    let mut drawer = Drawer::new(Rng::part(seed, "differential"), able);
    let mut done: Vec<(Step, Gave)> = Vec::new();
    let mut fine = 0;
    for n in 0..STEPS {
        let step = drawer.step();
        if simulated.is_unsure(&step) {
            continue;
        }
        let (s, r) = (simulated.run(&step), real.run(&step));
        if r.is_ok() {
            fine += 1;
            drawer.went_well(&step);
        }
        let same = s == r;
        done.push((step, s));
        if !same {
            return Err(told(seed, &done, &format!("but in a real directory {r:?}")));
        }
        if n % 16 == 0 {
            simulated.disk.check().map_err(|e| told(seed, &done, &e))?;
        }
    }
    let (s, r) = (disk_tree(&mut simulated.disk, able), real_tree(&dir.join(TOP), able));
    if s != r {
        return Err(told(seed, &done, &format!("then there are\n  {s:?}\nbut in a real directory\n  {r:?}")));
    }
    finish(&mut simulated, s, able).map_err(|e| told(seed, &done, &e))?;
    drop(real);
    std::fs::remove_dir_all(dir).expect("what the sequence made can be removed");
    Ok(fine)
}

/// A cut that leaves everything, and one after a sync, change nothing that has a name.
fn finish(s: &mut Simulated, before: BTreeMap<Vec<u8>, Object>, able: Ability) -> Result<(), String> {
    let mut rng = Rng(1);
    let all = Cut { all_of_unsynced: true, ..Cut::default() };
    s.close_all();
    for cut in [all, Cut::default()] {
        s.disk.check()?;
        s.disk.power_cut(&mut rng, &cut);
        s.disk.check()?;
        if disk_tree(&mut s.disk, able) != before {
            return Err(format!("{cut:?} changed the tree"));
        }
        s.disk.syncfs().map_err(|e| format!("syncfs: {e}"))?;
    }
    Ok(())
}

#[test]
fn a_real_directory_gives_the_same() {
    // SAFETY: cannot fail; modes are to be what the calls ask for, in this whole program.
    unsafe { libc::umask(0) };
    let dir = tempfile::tempdir().expect("a directory for the test");
    std::fs::create_dir(dir.path().join("try")).expect("a directory to try things in");
    let able = real::ability(&dir.path().join("try"));
    let seeds: Vec<u64> = match std::env::var("KAGAMI_TEST_SEED").ok().and_then(|s| s.parse().ok()) {
        Some(seed) => vec![seed],
        None => (0..SEQUENCES).collect(),
    };
    let each = |part: &[u64]| -> u64 {
        let one =
            |seed: &u64| sequence(&dir.path().join(seed.to_string()), able, *seed).unwrap_or_else(|e| panic!("{e}"));
        part.iter().map(one).sum()
    };
    let fine = std::thread::scope(|s| {
        let parts: Vec<_> = seeds.chunks(seeds.len().div_ceil(2)).map(|part| s.spawn(move || each(part))).collect();
        parts.into_iter().map(|p| p.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).sum::<u64>()
    });
    println!("{able:?}: {fine} calls succeeded in {} sequences", seeds.len());
    assert!(seeds.len() == 1 || fine > SEQUENCES * STEPS as u64 / 6, "sequences that mostly fail show little: {fine}");
}
