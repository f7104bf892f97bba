//! Data for the demonstration: a source tree made up on the spot, checksums, and the comparison of trees.

use crate::base::{At, Error, Result};
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Directories of the made-up source tree.
const DIRS: u64 = 40;

/// Words that look like source code, different for every `seed`.
pub fn source_text(seed: u64) -> String {
    const WORDS: [&str; 16] = [
        "let", "journal", "fn", "mirror", "region", "if", "epoch", "while", "volume", "return", "entry", "match",
        "replica", "struct", "lag", "for",
    ];
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    let mut o = format!("// file {seed}\n");
    for _ in 0..20 + next() % 200 {
        for _ in 0..3 + next() % 8 {
            o += WORDS.get((next() % 16) as usize).unwrap_or(&"let");
            o.push(' ');
        }
        o += &format!("{:x};\n", next());
    }
    o
}

/// Path of the `i`th file of the source tree.
pub fn source_path(i: u64) -> PathBuf {
    PathBuf::from(format!("project/module{:02}/part{}/file{i:04}.rs", i % DIRS, i / DIRS % 5))
}

/// Writes a file and closes it; the closing reports what the writing could not.
pub fn write(path: &Path, text: &str) -> Result<()> {
    let put = || -> std::io::Result<()> {
        let mut f = std::fs::File::create(path)?;
        f.write_all(text.as_bytes())?;
        // std ignores the errors of close(2), and close is where a plain file's data is promised.
        crate::os::close::close(f.into())
    };
    put().at(path.display())
}

/// Writes the first `n` files of the source tree below `root`; with a symlink and an executable, as real trees have.
pub fn source_tree(root: &Path, n: u64, mut tick: impl FnMut(u64) -> Result<()>) -> Result<()> {
    for i in 0..n {
        let p = root.join(source_path(i));
        if let Some(d) = p.parent() {
            std::fs::create_dir_all(d).at(d.display())?;
        }
        write(&p, &source_text(i))?;
        if i % 100 == 0 {
            tick(i)?;
        }
    }
    let script = root.join("project/build.sh");
    write(&script, "#!/bin/sh\necho built\n")?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).at(script.display())?;
    std::os::unix::fs::symlink("build.sh", root.join("project/make")).at("a symlink")
}

/// Checksum of a file's content.
pub fn checksum(path: &Path) -> Result<String> {
    let mut h = blake3::Hasher::new();
    let mut f = std::fs::File::open(path).at(path.display())?;
    std::io::copy(&mut f, &mut h).at(path.display())?;
    Ok(h.finalize().to_hex().to_string())
}

/// Every entry below `root` with what must be equal at all sites (the part of G5 that matters for these files).
pub fn tree(root: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let mut out = BTreeMap::new();
    walk(root, root, &mut |rel, path, m| {
        let kind = m.file_type();
        let content = if kind.is_file() {
            checksum(path)?
        } else if kind.is_symlink() {
            String::from_utf8_lossy(std::fs::read_link(path).at(path.display())?.as_os_str().as_bytes()).into_owned()
        } else {
            String::new()
        };
        let links = if kind.is_dir() { 0 } else { m.nlink() };
        let (mode, uid, gid) = (m.mode(), m.uid(), m.gid());
        let mtime = (m.mtime(), m.mtime_nsec());
        out.insert(
            rel.to_owned(),
            format!("mode {mode:o}, owner {uid}:{gid}, links {links}, mtime {mtime:?}, {content}"),
        );
        Ok(())
    })?;
    Ok(out)
}

/// Content of every regular file below `root`, by inode: a file that was only renamed has not changed.
pub fn contents(root: &Path) -> Result<BTreeMap<u64, String>> {
    let mut out = BTreeMap::new();
    walk(root, root, &mut |_, path, m| {
        if m.file_type().is_file() {
            out.insert(m.ino(), checksum(path)?);
        }
        Ok(())
    })?;
    Ok(out)
}

/// How many files of `now` are new or have another content than in `before`.
pub fn changed(before: &BTreeMap<u64, String>, now: &BTreeMap<u64, String>) -> u64 {
    now.iter().filter(|(ino, sum)| before.get(ino) != Some(sum)).count() as u64
}

type Visit<'a> = dyn FnMut(&Path, &Path, &std::fs::Metadata) -> Result<()> + 'a;

fn walk(root: &Path, dir: &Path, visit: &mut Visit<'_>) -> Result<()> {
    for e in std::fs::read_dir(dir).at(dir.display())? {
        let path = e.at(dir.display())?.path();
        let m = std::fs::symlink_metadata(&path).at(path.display())?;
        visit(path.strip_prefix(root).unwrap_or(&path), &path, &m)?;
        if m.is_dir() {
            walk(root, &path, visit)?;
        }
    }
    Ok(())
}

/// An error that names the first differences between two trees, or nothing.
pub fn same(a: (&str, &BTreeMap<PathBuf, String>), b: (&str, &BTreeMap<PathBuf, String>)) -> Result<()> {
    let mut names: Vec<&PathBuf> = a.1.keys().chain(b.1.keys()).collect();
    names.sort();
    names.dedup();
    let differ: Vec<&PathBuf> = names.into_iter().filter(|n| a.1.get(*n) != b.1.get(*n)).collect();
    let line = |n: &&PathBuf| {
        let at = |t: &BTreeMap<PathBuf, String>| t.get(*n).cloned().unwrap_or_else(|| "missing".into());
        format!("{}\n    {}: {}\n    {}: {}", n.display(), a.0, at(a.1), b.0, at(b.1))
    };
    match differ.len() {
        0 => Ok(()),
        n => {
            let first: Vec<String> = differ.iter().take(5).map(line).collect();
            Err(Error::failed(format!("{} and {} differ in {n} places:\n  {}", a.0, b.0, first.join("\n  "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_trees_are_equal_and_changes_are_counted() {
        let d = tempfile::tempdir().unwrap();
        let root = d.path().join("a");
        std::fs::create_dir(&root).unwrap();
        source_tree(&root, 50, |_| Ok(())).unwrap();
        let (before, t) = (contents(&root).unwrap(), tree(&root).unwrap());
        assert_eq!(before.len(), 51);
        same(("a", &t), ("b", &tree(&root).unwrap())).unwrap();
        write(&root.join(source_path(3)), "changed").unwrap();
        std::fs::rename(root.join("project/module01"), root.join("project/moved")).unwrap();
        assert_eq!(changed(&before, &contents(&root).unwrap()), 1);
        let e = same(("a", &t), ("b", &tree(&root).unwrap())).unwrap_err();
        assert!(e.msg.contains("module01") && e.msg.contains("a: mode") && e.msg.contains("missing"), "{e}");
    }
}
