//! Conformance (A2): the public tools and our own checks, on any directory.
//!
//! `KAGAMI_CONFORMANCE_DIR` names the directory under test (a mount, say); without it the tests run on a native directory
//! beside the build and so show that the expectations themselves are right.

use crate::support;

use std::path::{Path, PathBuf};
use support::conformance::{self, FSX_MIXES, Verdict};
use support::{is_root, posix};

/// Operations of fsx for each mix; about ten seconds on a mount.
const FSX_OPERATIONS: u64 = 10_000;

/// Tests of pjdfstest that pass natively and cannot on a mount, with the reason; docs/GUARANTEES.md names them too.
const NOT_ON_A_MOUNT: [(&str, &str); 1] =
    [("link::link_count_max", "pathconf(_PC_LINK_MAX) knows no limit for FUSE, so the test leaves itself out")];

/// What pjdfstest passes on native ext4, as root.
const PJDFSTEST_PASSES: usize = 385;

/// A directory of its own below the one under test, removed afterwards.
fn under_test() -> tempfile::TempDir {
    let base = std::env::var_os("KAGAMI_CONFORMANCE_DIR").map_or_else(support::base_dir, PathBuf::from);
    let dir = tempfile::Builder::new().prefix("conformance-").tempdir_in(base).unwrap();
    support::sys::chmodat(support::sys::AT_FDCWD, dir.path(), 0o755).unwrap();
    dir
}

#[test]
fn pjdfstest_passes_whole() {
    let dir = under_test();
    let report = conformance::pjdfstest(dir.path(), &[]);
    let failed: Vec<_> = report.tests.iter().filter(|(_, (v, _))| *v == Verdict::Failed).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    println!("pjdfstest: {} passed, {} skipped", report.count(Verdict::Passed), report.count(Verdict::Skipped));
    if is_root() && std::env::var_os("KAGAMI_CONFORMANCE_DIR").is_none() {
        assert_eq!(report.count(Verdict::Passed), PJDFSTEST_PASSES);
    }
}

#[test]
fn fsx_finds_nothing() {
    let dir = under_test();
    let mixes: Vec<_> = FSX_MIXES.iter().map(|(name, _)| *name).collect();
    let operations = support::env_number("KAGAMI_FSX_OPERATIONS", FSX_OPERATIONS);
    let errors = conformance::fsx_mixes(dir.path(), &mixes, operations, support::seed("fsx_finds_nothing"));
    assert!(errors.is_empty(), "{}", errors.join("\n"));
}

#[test]
fn four_fsx_in_parallel_find_nothing() {
    let dir = under_test();
    let operations = support::env_number("KAGAMI_FSX_OPERATIONS", FSX_OPERATIONS);
    let errors = conformance::fsx_parallel(dir.path(), operations, support::seed("four_fsx_in_parallel_find_nothing"));
    assert!(errors.is_empty(), "{}", errors.join("\n"));
}

#[test]
fn posix_checks_hold() {
    let dir = under_test();
    assert_posix(dir.path());
}

fn assert_posix(dir: &Path) {
    let failed: Vec<_> = posix::run_all(dir).into_iter().map(|(name, why)| format!("{name}: {why}")).collect();
    assert!(failed.is_empty(), "{} of {} checks fail:\n{}", failed.len(), posix::CHECKS.len(), failed.join("\n"));
}

/// A lab, the given work in its mount, and then the same tree at every site.
fn on_a_lab(work: impl FnOnce(&Path)) {
    let lab = support::Lab::up(&[]);
    let dir = lab.mnt().join("conformance");
    std::fs::create_dir(&dir).unwrap();
    support::sys::chmodat(support::sys::AT_FDCWD, &dir, 0o755).unwrap();
    work(&dir);
    lab.wait(120);
    // Preallocated blocks may be written out as zeros by the filesystem below, at each site at its own time
    // (docs/GUARANTEES.md); the holes of ordinary sparse files are compared by other tests.
    let options = support::tree::Options { holes: false, ..support::tree::Options::default() };
    for site in ["sync", "async"] {
        let told = support::tree::compare_trees_with(&lab.tree("primary"), &lab.tree(site), &options);
        assert!(told.is_ok(), "{}", told.unwrap_err().join("\n"));
    }
    lab.down();
}

#[test]
fn a2_pjdfstest_on_the_mount() {
    let native = conformance::pjdfstest(under_test().path(), &[]);
    on_a_lab(|dir| {
        let mut worse = conformance::pjdfstest(dir, &[]).worse_than(&native);
        worse.retain(|told| !NOT_ON_A_MOUNT.iter().any(|(name, _)| told.starts_with(&format!("{name}:"))));
        assert!(worse.is_empty(), "pass natively, not on the mount:\n{}", worse.join("\n"));
    });
}

#[test]
fn a2_fsx_on_the_mount() {
    on_a_lab(|dir| {
        let mixes: Vec<_> = FSX_MIXES.iter().map(|(name, _)| *name).collect();
        let operations = support::env_number("KAGAMI_FSX_OPERATIONS", FSX_OPERATIONS);
        let seed = support::seed("a2_fsx_on_the_mount");
        let mut errors = conformance::fsx_mixes(dir, &mixes, operations, seed);
        errors.extend(conformance::fsx_parallel(dir, operations, seed));
        assert!(errors.is_empty(), "{}", errors.join("\n"));
    });
}

#[test]
fn a2_posix_checks_on_the_mount() {
    on_a_lab(assert_posix);
}

#[test]
fn a2_random_trees_through_the_mount() {
    on_a_lab(|dir| {
        let native = under_test();
        let seed = support::seed("a2_random_trees_through_the_mount");
        for root in [dir, native.path()] {
            std::fs::create_dir(root.join("tree")).unwrap();
            support::random::random_tree(&root.join("tree"), 2_000, seed).unwrap();
        }
        support::assert_same(&native.path().join("tree"), &dir.join("tree"));
    });
}
