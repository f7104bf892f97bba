//! The Debian package: what is in it, that it is the same each time, and that each part of it is taken by the program
//! it is made for.

use crate::support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use support::proc::{run, run_ok, text};

const LIMIT: Duration = Duration::from_secs(120);

/// A package, unpacked.
struct Package {
    _dir: tempfile::TempDir,
    file: PathBuf,
    root: PathBuf,
}

fn has(program: &str) -> bool {
    kagami::node::config_check::has_program(program)
}

fn build(out: &Path) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/deb.sh");
    let said = run_ok(Command::new(script).arg(support::lab::kagami().get_program()).arg(out), LIMIT);
    PathBuf::from(said.trim())
}

impl Package {
    fn unpacked(test: &str) -> Option<Package> {
        if !has("dpkg-deb") {
            support::skipped(test, "no dpkg-deb here");
            return None;
        }
        let dir = tempfile::tempdir_in(support::base_dir()).unwrap();
        let (file, root) = (build(dir.path()), dir.path().join("root"));
        run_ok(Command::new("dpkg-deb").arg("-x").arg(&file).arg(&root), LIMIT);
        Some(Package { _dir: dir, file, root })
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.root.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }
}

#[test]
fn the_package_holds_everything_and_is_the_same_each_time() {
    let Some(p) = Package::unpacked("the_package_holds_everything_and_is_the_same_each_time") else { return };
    let list = run_ok(Command::new("dpkg-deb").arg("-c").arg(&p.file), LIMIT);
    for name in [
        "./usr/bin/kagami\n",
        "./usr/sbin/mount.kagami -> ../bin/kagami\n",
        "./usr/sbin/mount.fuse.kagami -> ../bin/kagami\n",
        "./usr/lib/kagami/horcm/pairvolchk -> ../../../bin/kagami\n",
        "./usr/lib/kagami/horcm/horctakeover -> ../../../bin/kagami\n",
        "./usr/lib/systemd/system/kagami@.service\n",
        "./usr/lib/systemd/system/kagami-boot@.service\n",
        "./usr/lib/systemd/user/kagami@.service\n",
        "./usr/lib/tmpfiles.d/kagami.conf\n",
        "./etc/default/kagami\n",
        "./etc/kagami/\n",
        "./usr/share/bash-completion/completions/kagami\n",
        "./usr/share/zsh/vendor-completions/_kagami\n",
        "./usr/share/fish/vendor_completions.d/kagami.fish\n",
        "./usr/share/man/man1/kagami.1.gz\n",
        "./usr/share/man/man1/kagami-mount.1.gz\n",
        "./usr/share/man/man5/site.toml.5.gz\n",
        "./usr/share/man/man8/mount.kagami.8.gz\n",
        "./usr/share/doc/kagami/GUARANTEES.md\n",
        "./usr/share/doc/kagami/copyright\n",
        "./usr/share/doc/kagami/examples/site.toml\n",
        "./usr/share/doc/kagami/examples/kagami.rules.yml\n",
        "./usr/share/doc/kagami/examples/kagami.json\n",
        "./usr/share/doc/kagami/examples/two-sites/tokyo.toml\n",
    ] {
        assert!(list.contains(name), "no {name:?} in:\n{list}");
    }
    assert!(list.lines().all(|l| l.contains(" root/root ")), "{list}");
    // Each page of a command, however deep.
    let pages = fs::read_dir(p.root.join("usr/share/man/man1")).unwrap().count();
    assert!(pages > 30, "{pages}");
    let fields = run_ok(Command::new("dpkg-deb").arg("-f").arg(&p.file), LIMIT);
    for field in ["Package: kagami\n", "Depends: libc6 (>= 2.", "fuse3", "Maintainer: "] {
        assert!(fields.contains(field), "{fields}");
    }
    let control = p.root.with_file_name("control");
    run_ok(Command::new("dpkg-deb").arg("-e").arg(&p.file).arg(&control), LIMIT);
    assert_eq!(fs::read_to_string(control.join("conffiles")).unwrap(), "/etc/default/kagami\n");
    run_ok(Command::new("md5sum").args(["--quiet", "-c"]).arg(control.join("md5sums")).current_dir(&p.root), LIMIT);
    for script in ["postinst", "postrm"] {
        run_ok(Command::new("sh").arg("-n").arg(control.join(script)), LIMIT);
    }
    let again = build(&p.root.with_file_name("again"));
    assert!(fs::read(&p.file).unwrap() == fs::read(again).unwrap(), "two packages of one program differ");
}

#[test]
fn each_part_of_the_package_is_taken_by_what_it_is_for() {
    let test = "each_part_of_the_package_is_taken_by_what_it_is_for";
    let Some(p) = Package::unpacked(test) else { return };
    let program = p.root.join("usr/bin/kagami");
    let version = run_ok(Command::new(&program).arg("--version"), LIMIT);
    assert_eq!(version, format!("kagami {}\n", env!("CARGO_PKG_VERSION")));
    let helper = run_ok(Command::new(p.root.join("usr/sbin/mount.kagami")).arg("--help"), LIMIT);
    assert!(helper.starts_with("usage: mount.kagami"), "{helper}");
    let volchk = run_ok(Command::new(p.root.join("usr/lib/kagami/horcm/pairvolchk")).arg("-h"), LIMIT);
    assert!(volchk.starts_with("pairvolchk: "), "{volchk}");
    // The template is a right site file.
    let template = p.root.join("usr/share/doc/kagami/examples/site.toml");
    let shown = run_ok(Command::new(&program).arg("-c").arg(&template).args(["config", "show"]), LIMIT);
    // Every word of a site file has its place in the page about it.
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/man/site.toml.5")).unwrap();
    for word in shown.lines().filter_map(|l| l.split_once(" = ")).map(|(word, _)| word) {
        assert!(page.contains(word), "site.toml(5) does not say what {word} is");
    }
    for (shell, file) in [
        ("bash", "usr/share/bash-completion/completions/kagami"),
        ("zsh", "usr/share/zsh/vendor-completions/_kagami"),
        ("fish", "usr/share/fish/vendor_completions.d/kagami.fish"),
    ] {
        assert!(p.read(file).contains("update-fstab"), "{file}");
        match has(shell) {
            true => drop(run_ok(Command::new(shell).arg("-n").arg(p.root.join(file)), LIMIT)),
            false => support::skipped(test, &format!("{shell} is not installed: its completions were not parsed")),
        }
    }
    for page in ["man1/kagami.1.gz", "man1/kagami-mount.1.gz", "man8/mount.kagami.8.gz", "man5/site.toml.5.gz"] {
        if !has("man") {
            support::skipped(test, "man is not installed: no page was rendered");
            break;
        }
        let file = p.root.join("usr/share/man").join(page);
        let out = run(Command::new("man").arg("--warnings").arg("-l").arg(file).env("MANWIDTH", "80"), LIMIT);
        assert!(out.status.success() && out.stderr.is_empty(), "{page}: {}", text(&out.stderr));
        assert!(text(&out.stdout).contains("NAME"), "{page}");
    }
    let defaults = p.read("etc/default/kagami");
    assert!(defaults.lines().all(|l| l.starts_with('#') || l.contains('=')), "{defaults}");
}

/// systemd itself reads the units; the program that they name is the one unpacked.
#[test]
fn systemd_takes_the_units() {
    let Some(p) = Package::unpacked("systemd_takes_the_units") else { return };
    if !has("systemd-analyze") {
        return support::skipped("systemd_takes_the_units", "systemd-analyze is not installed");
    }
    let program = p.root.join("usr/bin/kagami");
    let units = p.root.with_file_name("units");
    for (from, manager) in [("system", "--system"), ("user", "--user")] {
        let to = units.join(from);
        fs::create_dir_all(&to).unwrap();
        for unit in fs::read_dir(p.root.join("usr/lib/systemd").join(from)).unwrap() {
            let unit = unit.unwrap();
            let body = fs::read_to_string(unit.path()).unwrap();
            assert!(body.contains("ExecStart=/usr/bin/kagami --config "), "{body}");
            // The node itself: who says READY is the process that was started.
            assert!(body.contains("Type=notify\nNotifyAccess=main\n"), "{body}");
            let boot = unit.file_name().to_str().unwrap().starts_with("kagami-boot@");
            let node = body.lines().find(|l| l.starts_with("ExecStart=")).unwrap();
            assert!(node.ends_with(if boot { ".toml node --boot" } else { ".toml node" }), "{node}");
            let file = to.join(unit.file_name().to_str().unwrap().replace('@', "@site"));
            fs::write(&file, body.replace("/usr/bin/kagami", program.to_str().unwrap())).unwrap();
            let runtime = units.join("run");
            fs::create_dir_all(&runtime).unwrap();
            fs::set_permissions(&runtime, fs::Permissions::from_mode(0o700)).unwrap();
            let mut verify = Command::new("systemd-analyze");
            verify.args(["--man=no", manager, "verify"]).arg(&file).env("XDG_RUNTIME_DIR", &runtime);
            let out = run(verify.env("HOME", &runtime), LIMIT);
            let said = format!("{}{}", text(&out.stdout), text(&out.stderr));
            // Of the machine's own units it may say what it likes.
            let ours: Vec<_> = said.lines().filter(|l| l.contains("kagami")).collect();
            assert!(out.status.success() && ours.is_empty(), "{}: {said}", file.display());
        }
    }
    // A word that systemd does not know is found, so the silence above says something.
    let wrong = units.join("wrong.service");
    fs::write(&wrong, "[Service]\nTypo=notify\nExecStart=/bin/true\n").unwrap();
    let out = run(Command::new("systemd-analyze").args(["--man=no", "verify"]).arg(&wrong), LIMIT);
    assert!(text(&out.stderr).contains("Typo"), "{}", text(&out.stderr));
}

/// In a checkout the helper is a script that finds what was built.
#[test]
fn the_helper_of_a_checkout() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("mount-helpers/mount.kagami");
    let program = support::lab::kagami().get_program().to_owned();
    let out = run(Command::new(&script).args(["lab", "/mnt", "-o", "bogus"]).env("KAGAMI", &program), LIMIT);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("unknown mount option: bogus"));
    let d = tempfile::tempdir().unwrap();
    fs::create_dir(d.path().join("mount-helpers")).unwrap();
    let copy = d.path().join("mount-helpers/mount.kagami");
    fs::copy(&script, &copy).unwrap();
    let out = run(Command::new(&copy).args(["lab", "/mnt"]).env_remove("KAGAMI"), LIMIT);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("build it first"));
}
