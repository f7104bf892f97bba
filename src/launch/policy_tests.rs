//! CD-9: what a site allows is what its file says, under every name of it.

use super::*;
use crate::launch::files::Root;
use std::os::unix::fs::{PermissionsExt, symlink};

struct Bed {
    dir: tempfile::TempDir,
    launch: LaunchConfig,
    uid: u32,
}

fn user(name: &str) -> Option<u32> {
    [("root", 0), ("postgres", 70), ("shop", 71)].iter().find(|(n, _)| *n == name).map(|(_, u)| *u)
}

impl Bed {
    fn new() -> Bed {
        let dir = tempfile::tempdir().unwrap();
        let bed =
            Bed { dir, launch: LaunchConfig { users: vec!["postgres".into()], ..LaunchConfig::default() }, uid: 0 };
        for p in ["bin/pg", "bin/other", "secret/sh", "tree/bin/own"] {
            let p = bed.path(p);
            std::fs::create_dir_all(p.parent().unwrap()).unwrap();
            std::fs::write(&p, "#!/bin/sh\n").unwrap();
            std::fs::set_permissions(&p, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        bed
    }

    fn path(&self, p: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(p)
    }

    fn check(&self, command: &Path, user_name: Option<&str>) -> Vec<String> {
        let roots = Roots(vec![Root { volume: "v".into(), mount: "/AP/vol1".into(), dir: self.path("tree") }]);
        let policy = Policy { launch: &self.launch, file: Path::new("SITE"), who: Who { uid: self.uid, user: &user } };
        policy.check(&app(command, user_name), &roots)
    }

    fn mount(&self, dir: &str, own: Option<&str>) -> Result<PathBuf> {
        let policy = Policy { launch: &self.launch, file: Path::new("SITE"), who: Who { uid: self.uid, user: &user } };
        policy.mount("v", Path::new(dir), own.map(Path::new))
    }
}

fn app(command: &Path, user: Option<&str>) -> App {
    let text = format!("[[application]]\nname = \"a\"\ncommand = {:?}\n", command.display().to_string());
    let mut a = apps::parse(Path::new("/AP/vol1/a.toml"), text.as_bytes(), &Default::default(), &[]).unwrap().remove(0);
    a.user = user.map(str::to_owned);
    a
}

#[test]
fn cd9_a_command_is_allowed_by_its_path_or_its_directory() {
    let mut b = Bed::new();
    let pg = b.path("bin/pg");
    let why = b.check(&pg, Some("postgres"));
    let remedy = format!("to allow it, write commands = [{:?}] into [launch] of SITE", pg.display().to_string());
    assert!(
        why.len() == 1 && why[0].starts_with("/AP/vol1/a.toml:2: application a: command ") && why[0].contains(&remedy),
        "{why:?}"
    );
    b.launch.commands = vec![pg.display().to_string()];
    assert!(b.check(&pg, Some("postgres")).is_empty());
    assert_eq!(b.check(&b.path("bin/other"), Some("postgres")).len(), 1);
    // A path is not allowed because another one begins like it.
    assert_eq!(b.check(&b.path("bin/pg2"), Some("postgres")).len(), 1);
    b.launch.commands = vec![format!("{}/", b.path("bin").display())];
    assert!(b.check(&b.path("bin/other"), Some("postgres")).is_empty());
    assert!(b.check(&b.path("bin/none"), Some("postgres"))[0].contains("install it"));
    assert_eq!(b.check(&b.path("bin2/x"), Some("postgres")).len(), 1);
    // The directory without the / is a program's path.
    b.launch.commands = vec![b.path("bin").display().to_string()];
    assert_eq!(b.check(&pg, Some("postgres")).len(), 1);
}

#[test]
fn b4_a_symlink_does_not_make_another_program_allowed() {
    let mut b = Bed::new();
    symlink(b.path("secret/sh"), b.path("bin/link")).unwrap();
    symlink(b.path("secret"), b.path("bin/dir")).unwrap();
    b.launch.commands = vec![format!("{}/", b.path("bin").display())];
    for p in ["bin/link", "bin/dir/sh"] {
        let why = b.check(&b.path(p), Some("postgres"));
        assert!(why.len() == 1 && why[0].contains("secret/sh, which is not allowed"), "{p}: {why:?}");
    }
    // Named itself, a symlink is allowed with what it leads to: that is what the operator has looked at.
    b.launch.commands = vec![b.path("bin/link").display().to_string()];
    assert!(b.check(&b.path("bin/link"), Some("postgres")).is_empty());
    // The operator's own directory may be a symlink.
    symlink(b.path("bin"), b.path("sbin")).unwrap();
    b.launch.commands = vec![format!("{}/", b.path("sbin").display())];
    assert!(b.check(&b.path("sbin/pg"), Some("postgres")).is_empty());
    assert_eq!(b.check(&b.path("bin/pg"), Some("postgres")).len(), 1, "not by a name that was not written");
}

#[test]
fn cd9_readiness_and_stop_commands_are_commands_too() {
    let mut b = Bed::new();
    b.launch.commands = vec![b.path("bin/pg").display().to_string()];
    let mut a = app(&b.path("bin/pg"), Some("postgres"));
    let sh = b.path("secret/sh").display().to_string();
    a.ready = Ready::Command(vec![sh.clone(), "-c".into()]);
    a.stop = Stop::Command(vec![sh]);
    let roots = Roots(vec![]);
    let policy = Policy { launch: &b.launch, file: Path::new("SITE"), who: Who { uid: 0, user: &user } };
    let why = policy.check(&a, &roots);
    assert!(why.len() == 2 && why[0].contains("readiness command") && why[1].contains("stop command"), "{why:?}");
}

#[test]
fn cd15_programs_of_the_volume_are_allowed_as_such_only() {
    let mut b = Bed::new();
    b.launch.commands = vec!["/".into()];
    std::fs::write(b.path("tree/bin/text"), "x").unwrap();
    symlink("/bin/sh", b.path("tree/bin/sh")).unwrap();
    let own = Path::new("/AP/vol1/bin/own");
    assert!(b.check(own, Some("postgres"))[0].contains("write from_volume = true into [launch] of SITE"));
    b.launch.from_volume = true;
    assert!(b.check(own, Some("postgres")).is_empty());
    for (p, words) in
        [("text", "not executable"), ("sh", "leads out of volume v"), ("none", "no such file"), ("", "a directory")]
    {
        let why = b.check(&Path::new("/AP/vol1/bin").join(p), Some("postgres"));
        assert!(why.len() == 1 && why[0].contains(words), "{p}: {why:?}");
    }
}

#[test]
fn cd9_users_are_those_of_the_site_file_and_without_root_only_ones_own() {
    let mut b = Bed::new();
    b.launch.commands = vec!["/".into()];
    let pg = b.path("bin/pg");
    for (who, words) in [
        (Some("shop"), "to run as shop is not allowed at this site; to allow it, write users = [\"shop\"]"),
        (Some("nobody-here"), "there is no user nobody-here"),
        (Some("root"), "write users = [\"root\"]"),
        (None, "it names no user, and the node is root"),
    ] {
        let why = b.check(&pg, who);
        assert!(why.len() == 1 && why[0].contains(words), "{who:?}: {why:?}");
    }
    b.uid = 71;
    assert!(b.check(&pg, None).is_empty() && b.check(&pg, Some("shop")).is_empty());
    assert!(b.check(&pg, Some("postgres"))[0].contains("this node is not root"));
}

#[test]
fn cd9_a_replica_is_mounted_only_where_the_site_allows() {
    let mut b = Bed::new();
    assert!(b.mount("/DB/vol1", None).unwrap_err().msg.contains("write mounts = [\"/DB/vol1\"] into [launch] of SITE"));
    assert_eq!(b.mount("/DB/vol1", Some("/DB/vol1")).unwrap(), Path::new("/DB/vol1"), "the site file says so itself");
    b.launch.mounts = vec![b.path("DB")];
    symlink("/etc", b.path("DB-etc")).unwrap();
    std::fs::create_dir(b.path("DB")).unwrap();
    symlink("/etc", b.path("DB/etc")).unwrap();
    let at = |p: &str| b.mount(&b.path(p).display().to_string(), None);
    assert_eq!(at("DB/vol1").unwrap(), b.path("DB/vol1"));
    assert_eq!(at("DB").unwrap(), b.path("DB"));
    for p in ["DB2", "DB-etc", "secret"] {
        assert!(at(p).unwrap_err().msg.contains("is not allowed"), "{p}");
    }
    assert!(at("DB/etc").unwrap_err().msg.contains("it is /etc by a symlink"));
    assert!(at("DB/etc/x").unwrap_err().msg.contains("it is /etc/x by a symlink"));
    for p in ["", "rel", "/", "/DB/../etc", "/DB/a\nb", "/DB/\u{202e}x"] {
        assert!(b.mount(p, None).unwrap_err().msg.contains("no absolute path"), "{p:?}");
    }
}

#[test]
fn b4_volumes_are_not_mounted_within_each_other() {
    let list = |a: &str, b: &str| separate(&[("a".into(), a.into()), ("b".into(), b.into())]);
    assert!(list("/AP/vol1", "/AP/vol10").is_ok());
    for (a, b) in [("/AP", "/AP"), ("/AP", "/AP/vol1"), ("/AP/vol1", "/AP")] {
        assert!(list(a, b).unwrap_err().msg.contains("one inside the other"));
    }
}
