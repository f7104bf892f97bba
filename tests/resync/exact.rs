//! What a resync costs, and what it keeps.

use super::bed::{self, Cost, cost, said, settle};
use super::support::{Lab, Rng, assert_same, sys};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Instant;

const BIG: usize = 64 << 20;

/// `files` small files, a quarter of them in `moved`, and one of 64 MiB. Most are empty: they are quicker to remove in the
/// end, and what is not changed is not looked at in any case.
fn fill(tree: &Path, files: usize) {
    let mut rng = Rng::new(7);
    fs::write(tree.join("big"), rng.bytes(BIG)).unwrap();
    let dirs = ["moved", "a", "b", "c"];
    for d in dirs {
        fs::create_dir(tree.join(d)).unwrap();
    }
    for i in 0..files {
        let path = tree.join(dirs[i % 4]).join(format!("f{i:05}"));
        let len = if i < 400 { 200 + i % 1000 } else { 0 };
        fs::write(path, rng.bytes(len)).unwrap();
    }
}

/// Twenty changes, the same in cost in every round.
fn change(mnt: &Path, round: usize) {
    let mut rng = Rng::new(round as u64 + 100);
    let big = fs::File::options().write(true).open(mnt.join("big")).unwrap();
    for i in 0..5u64 {
        big.write_all_at(&rng.bytes(100), i * (12 << 20) + (round as u64) * (1 << 20) + 333).unwrap();
    }
    drop(big);
    let a = |n: usize| mnt.join("a").join(format!("f{:05}", 1 + 4 * (n + 20 * round)));
    for n in 0..4 {
        fs::write(a(n), rng.bytes(3000)).unwrap();
    }
    for n in 0..3 {
        fs::write(mnt.join(format!("b/new-{round}-{n}")), rng.bytes(5000)).unwrap();
    }
    for n in 4..7 {
        fs::remove_file(a(n)).unwrap();
    }
    fs::set_permissions(a(7), fs::Permissions::from_mode(0o640 | round as u32)).unwrap();
    sys::set_xattr(&a(8), "user.round", format!("{round}").as_bytes()).unwrap();
    fs::hard_link(a(9), mnt.join(format!("c/link-{round}"))).unwrap();
    let names = ["moved", "c/elsewhere"];
    fs::rename(mnt.join(names[round % 2]), mnt.join(names[(round + 1) % 2])).unwrap();
    fs::create_dir(mnt.join(format!("b/dir-{round}"))).unwrap();
}

/// Content that [`change`] changed: 5 ranges of one file, 4 files rewritten, 3 new ones.
const FILES: u64 = 8;
const RANGES: u64 = 5 + 4 + 3;
const BYTES: u64 = 5 * 100 + 4 * 3000 + 3 * 5000;

#[track_caller]
fn check(way: &str, files: usize, c: Cost) {
    assert_eq!((c.files, c.renames), (FILES, 1), "{way} with {files} files: {c:?}");
    assert!(c.bytes >= BYTES && c.bytes <= BYTES + RANGES * (128 << 10), "{way} with {files} files: {c:?}");
    // The journal tells what changed by intervals of some seconds, so a return may look at the round before again.
    assert!(c.examined <= 60, "{way} with {files} files: {c:?}");
}

/// The same changes while the sync site is away, in each of three ways; what each return cost.
fn costs(files: usize) -> Vec<Cost> {
    let lab = bed::made(&[], |lab| fill(&lab.tree("primary"), files));
    let begun = Instant::now();
    lab.ok("up", &[]);
    println!("{files} files: first copy to both sites in {:?}", begun.elapsed());
    settle(&lab);
    lab.assert_trees_equal();
    let walks = said(&lab, "primary", "first copy:");
    let mut out = Vec::new();
    for (round, way) in ["killed", "cut off", "both restarted"].into_iter().enumerate() {
        match way {
            "cut off" => lab.cut("sync"),
            _ => lab.kill("sync"),
        }
        change(&lab.mnt(), round);
        let by_journal = said(&lab, "primary", "resync from");
        if way == "both restarted" {
            lab.kill("primary");
            lab.start("primary");
        }
        let begun = Instant::now();
        match way {
            "cut off" => lab.join("sync"),
            _ => lab.start("sync"),
        }
        settle(&lab);
        let took = begun.elapsed();
        let c = cost(&lab, "primary", "sync");
        println!("{files} files, sync site {way}: {c:?} in {took:?}");
        check(way, files, c);
        if way == "both restarted" {
            assert!(said(&lab, "primary", "resync from") > by_journal, "it was not by the journal");
        }
        lab.assert_trees_equal();
        out.push(c);
    }
    assert_eq!(said(&lab, "primary", "first copy:"), walks, "a tree was walked: {}", lab.log("primary"));
    lab.down();
    out
}

/// A4: cost grows with the change, not with the volume.
#[test]
fn a_return_copies_what_changed_and_costs_the_same_for_ten_times_the_files() {
    let copied = |all: Vec<Cost>| all.iter().map(|c| (c.files, c.bytes, c.renames)).collect::<Vec<_>>();
    assert_eq!(copied(costs(2_000)), copied(costs(20_000)));
}

/// What the losing side did since the split, by content, and what the winner did.
fn diverge(mnt: &Path, side: &str) {
    let text = |what: &str| format!("{what} as {side} has it\n");
    // The same names change hands on both sides.
    fs::rename(mnt.join("x"), mnt.join("tmp")).unwrap();
    fs::rename(mnt.join("y"), mnt.join("x")).unwrap();
    fs::rename(mnt.join("tmp"), mnt.join("y")).unwrap();
    fs::remove_file(mnt.join("again")).unwrap();
    fs::write(mnt.join("again"), text("again")).unwrap();
    fs::rename(mnt.join("dir"), mnt.join(format!("dir-{side}"))).unwrap();
    fs::write(mnt.join(format!("dir-{side}/inner")), text("inner")).unwrap();
    fs::write(mnt.join("both"), text("both")).unwrap();
    fs::write(mnt.join("new"), text("new")).unwrap();
    fs::create_dir(mnt.join("made")).unwrap();
    fs::write(mnt.join("made/file"), text("made/file")).unwrap();
    if side == "loser" {
        fs::remove_dir(mnt.join("empty")).unwrap();
        fs::write(mnt.join("empty"), text("empty")).unwrap();
        fs::remove_file(mnt.join("gone-there")).unwrap();
        fs::write(mnt.join("gone-here"), text("gone-here")).unwrap();
        fs::hard_link(mnt.join("x"), mnt.join("made/x")).unwrap();
    } else {
        fs::remove_file(mnt.join("gone-here")).unwrap();
        fs::write(mnt.join("gone-there"), text("gone-there")).unwrap();
        fs::write(mnt.join("empty/file"), text("empty/file")).unwrap();
        fs::rename(mnt.join("y"), mnt.join(format!("dir-{side}/y"))).unwrap();
    }
}

fn takeover_with_both_sides_at_work(killed: bool) {
    let lab = Lab::up(&[]);
    let mnt = lab.mnt();
    for n in ["x", "y", "again", "both", "gone-here", "gone-there"] {
        fs::write(mnt.join(n), format!("{n} before\n")).unwrap();
    }
    for d in ["dir", "empty"] {
        fs::create_dir(mnt.join(d)).unwrap();
    }
    fs::write(mnt.join("dir/inner"), "inner before\n").unwrap();
    settle(&lab);
    lab.cut("primary");
    diverge(&mnt, "loser");
    let at = lab.dir().join("there");
    if killed {
        lab.kill("primary");
    }
    lab.takeover("sync", &["--at", at.to_str().unwrap()]);
    diverge(&at, "winner");
    match killed {
        true => lab.start("primary"),
        false => lab.join("primary"),
    }
    settle(&lab);
    assert_same(&lab.tree("sync"), &lab.tree("primary"));
    assert_same(&lab.tree("sync"), &lab.tree("async"));
    assert_eq!(fs::read_to_string(lab.tree("primary").join("both")).unwrap(), "both as winner has it\n");
    let kept: BTreeSet<String> = fs::read_dir(lab.site_dir("primary").join("region/.kagami/lost"))
        .unwrap()
        .filter_map(|e| fs::read_to_string(e.unwrap().path()).ok())
        .collect();
    for what in ["again", "inner", "both", "new", "made/file", "empty", "gone-here"] {
        let text = format!("{what} as loser has it\n");
        assert!(kept.contains(&text), "{text:?} is not kept: {kept:?}");
    }
    assert_eq!(said(&lab, "sync", "first copy:"), 0, "a tree was walked: {}", lab.log("sync"));
    lab.down();
}

/// A4, second case, with an old primary that was isolated and learns of the takeover while it runs.
#[test]
fn both_sides_work_on_the_same_names_while_the_old_primary_is_cut_off() {
    takeover_with_both_sides_at_work(false);
}

/// The same with an old primary that was killed.
#[test]
fn both_sides_work_on_the_same_names_before_the_old_primary_is_killed() {
    takeover_with_both_sides_at_work(true);
}
