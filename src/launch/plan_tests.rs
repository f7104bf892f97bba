//! CD-7, CD-8, CD-14 on directories; B4 on hostile ones.

use super::*;
use crate::launch::files::Root;
use crate::launch::policy::Who;
use crate::node::config::LaunchConfig;
use std::os::unix::fs::symlink;

struct Bed {
    dir: tempfile::TempDir,
    roots: Roots,
}

impl Bed {
    fn new() -> Bed {
        let dir = tempfile::tempdir().unwrap();
        let root = |v: &str, m: &str| {
            std::fs::create_dir(dir.path().join(v)).unwrap();
            Root { volume: v.into(), mount: m.into(), dir: dir.path().join(v) }
        };
        let roots = Roots(vec![root("ap", "/AP/vol1"), root("db", "/DB/vol1")]);
        Bed { dir, roots }
    }

    fn write(&self, p: &str, text: &str) {
        let p = self.dir.path().join(p);
        std::fs::create_dir_all(p.parent().unwrap()).unwrap();
        std::fs::write(p, text).unwrap();
    }

    fn plan(&self) -> Result<Plan> {
        let launch = LaunchConfig {
            commands: vec!["/bin/".into(), "/usr/bin/".into()],
            users: vec!["root".into()],
            ..LaunchConfig::default()
        };
        let who = Who { uid: 0, user: &|n| (n == "root").then_some(0) };
        read(&self.roots, "env.txt", &Policy { launch: &launch, file: Path::new("SITE"), who })
    }

    fn app(&self, file: &str, name: &str) {
        self.write(file, &format!("[[application]]\nname = {name:?}\ncommand = \"/bin/sh\"\nargs = [\"${{X}}\"]\n"));
    }
}

fn names(p: &Plan) -> Vec<&str> {
    p.apps.iter().map(|a| a.name.as_str()).collect()
}

#[test]
fn cd7_cd8_from_the_environment_file_to_the_applications_in_order() {
    let b = Bed::new();
    assert_eq!(b.plan().unwrap(), Plan::default(), "no environment file: nothing to start");
    b.write("ap/env.txt", "X=1\nKAGAMI_APPLICATION=conf/ap.toml\nKAGAMI_DBMS=/DB/vol1/db.toml\n");
    b.write("db/env.txt", "KAGAMI_DBMS=\nY=2\n");
    assert!(
        b.plan()
            .unwrap_err()
            .msg
            .contains("/DB/vol1/env.txt:1: KAGAMI_DBMS has another value than in /AP/vol1/env.txt:3")
    );
    b.write("db/env.txt", "Y=2\n");
    b.app("ap/conf/ap.toml", "shop");
    b.app("db/db.toml", "pg");
    let p = b.plan().unwrap();
    assert_eq!(names(&p), ["pg", "shop"]);
    assert_eq!(p.apps[1].source, "/AP/vol1/conf/ap.toml:2");
    assert_eq!((p.apps[0].env["X"].as_str(), p.apps[0].env["Y"].as_str(), p.apps[0].args[0].as_str()), ("1", "2", "1"));
    assert_eq!(p.definitions, [Path::new("/DB/vol1/db.toml"), Path::new("/AP/vol1/conf/ap.toml")]);
    assert!(p.forbidden.is_empty(), "{:?}", p.forbidden);
}

#[test]
fn cd14_a_directory_and_further_files_of_variables() {
    let b = Bed::new();
    b.write(
        "ap/env.txt",
        "A=1\nKAGAMI_ENV_FILES=more/a.env:/DB/vol1/sub\nKAGAMI_DBMS=/DB/vol1/sub\nKAGAMI_APPLICATION=app\n",
    );
    b.write("ap/more/a.env", "B=${A}2\nKAGAMI_ENV_FILES=b.env\n");
    b.write("ap/more/b.env", "X=${B}3\n");
    b.write("db/sub/env.txt", "C=${X}4\n");
    b.app("db/sub/dbms.toml", "pg");
    b.app("ap/app/applications.toml", "shop");
    let p = b.plan().unwrap();
    assert_eq!(names(&p), ["pg", "shop"]);
    assert_eq!((p.vars["C"].value.as_str(), p.vars["C"].source.as_str()), ("1234", "/DB/vol1/sub/env.txt:1"));
    assert_eq!(p.env_files.len(), 4);
}

#[test]
fn b4_hostile_environments_end_with_their_place_and_start_nothing() {
    type Make = fn(&Bed);
    let cases: &[(Make, &str)] = &[
        (
            |b| b.write("ap/env.txt", "KAGAMI_ENV_FILES=env.txt\n"),
            "/AP/vol1/env.txt:1: KAGAMI_ENV_FILES: the files name each other in a circle",
        ),
        (
            |b| {
                b.write("ap/env.txt", "KAGAMI_ENV_FILES=a\n");
                b.write("ap/a", "KAGAMI_ENV_FILES=/DB/vol1/b\n");
                b.write("db/b", "KAGAMI_ENV_FILES=/AP/vol1/a\n");
            },
            "/DB/vol1/b:1: KAGAMI_ENV_FILES: the files name each other in a circle: /AP/vol1/a names /DB/vol1/b names /AP/vol1/a",
        ),
        (
            |b| {
                b.write("ap/env.txt", "KAGAMI_ENV_FILES=f1\n");
                (1..9).for_each(|i| b.write(&format!("ap/f{i}"), &format!("KAGAMI_ENV_FILES=f{}\n", i + 1)));
            },
            "/AP/vol1/f3:1: KAGAMI_ENV_FILES: more than 4 files",
        ),
        (
            |b| {
                b.write("ap/env.txt", &format!("KAGAMI_ENV_FILES={}\n", vec!["x"; 40].join(":")));
                b.write("ap/x", "A=1\n");
            },
            "more than 32 environment files",
        ),
        (
            |b| b.write("ap/env.txt", "KAGAMI_ENV_FILES=none\n"),
            "/AP/vol1/env.txt:1: KAGAMI_ENV_FILES: \"none\" is not there",
        ),
        (
            |b| b.write("ap/env.txt", "KAGAMI_ENV_FILES=/etc/environment\n"),
            "/etc/environment lies in no volume of the group",
        ),
        (|b| b.write("ap/env.txt", "KAGAMI_ENV_FILES=../x\n"), "goes through `..`"),
        (|b| symlink("/etc/passwd", b.dir.path().join("ap/env.txt")).unwrap(), "leads out of volume ap"),
        (|b| std::fs::create_dir(b.dir.path().join("ap/env.txt")).unwrap(), "/AP/vol1/env.txt is a directory"),
        (
            |b| b.write("ap/env.txt", "KAGAMI_DBMS=/etc/passwd\n"),
            "/AP/vol1/env.txt:1: KAGAMI_DBMS: /etc/passwd lies in no volume",
        ),
        (|b| b.write("ap/env.txt", "KAGAMI_DBMS=/DB/vol1/../../etc/passwd\n"), "goes through `..`"),
        (|b| b.write("ap/env.txt", "KAGAMI_DBMS=nix\n"), "\"nix\" is not there; make it"),
        (|b| b.write("ap/env.txt", "KAGAMI_DBMS=.\n"), "a directory without a file dbms.toml"),
        (
            |b| {
                b.write("ap/env.txt", "KAGAMI_DBMS=d\n");
                symlink("/etc/passwd", b.dir.path().join("ap/d")).unwrap();
            },
            "leads out of volume ap",
        ),
        (
            |b| {
                b.write("ap/env.txt", "KAGAMI_DBMS=d\nKAGAMI_APPLICATION=./d\nX=1\n");
                b.app("ap/d", "a");
            },
            "/AP/vol1/env.txt:2: KAGAMI_APPLICATION: /AP/vol1/d is named twice",
        ),
        (
            |b| {
                b.write("ap/env.txt", "KAGAMI_DBMS=d\n");
                b.app("ap/d", "a");
            },
            "/AP/vol1/d:4: args: X is not set in the environment file",
        ),
        (
            |b| {
                b.write("ap/env.txt", "X=1\nKAGAMI_DBMS=d\nKAGAMI_APPLICATION=e\n");
                b.app("ap/d", "a");
                b.app("ap/e", "a");
            },
            "/AP/vol1/e:2: application a is already at /AP/vol1/d:2",
        ),
        (|b| b.write("db/env.txt", "LD_PRELOAD=/DB/vol1/x.so\n"), "/DB/vol1/env.txt:1: LD_PRELOAD is not taken"),
    ];
    for (make, words) in cases {
        let b = Bed::new();
        make(&b);
        let e = b.plan().unwrap_err();
        assert!(e.msg.contains(words), "{words}: {e}");
    }
}
