//! CD-8: what a definition file means; B4: what one from a hostile replica does not get.

use super::*;
use crate::base::Kind;

fn vars() -> Vars {
    let mut v = Vars::new();
    env::parse("env", b"PGDATA=/DB/vol1/data\nBIN=/usr/bin", &[], &mut v).unwrap();
    v
}

fn read(text: &str) -> Result<Vec<App>> {
    parse(Path::new("/DB/vol1/dbms.toml"), text.as_bytes(), &vars(), &[])
}

fn app(name: &str, after: &[&str]) -> App {
    let list = after.iter().map(|a| format!("{a:?}")).collect::<Vec<_>>().join(",");
    let text = format!("[[application]]\nname = {name:?}\ncommand = \"/bin/x\"\nafter = [{list}]\n");
    read(&text).unwrap().remove(0)
}

const GOOD: &str = r#"
[[application]]
name = "pg"
command = "${BIN}/postgres"
args = ["-D", "${PGDATA}", "$${x}"]
user = "postgres"
env = { LANG = "C", CONF = "${PGDATA}/conf" }
ready = { command = ["/usr/bin/pg_isready", "-h", "${PGDATA}"] }
ready_timeout_s = 5
stop = { signal = "SIGINT" }
stop_timeout_s = 7
restart = "always"

[[application]]
name = "own"
command = "./bin/own"
after = ["pg"]
dir = "run"
ready = { file = "ready" }
stop = { command = ["./bin/stop"] }
"#;

#[test]
fn cd8_a_definition_is_read_with_its_defaults_and_variables() {
    let v = read(GOOD).unwrap();
    let pg = &v[0];
    assert_eq!((pg.name.as_str(), pg.command.as_path()), ("pg", Path::new("/usr/bin/postgres")));
    assert_eq!(pg.args, ["-D", "/DB/vol1/data", "${x}"]);
    assert_eq!(pg.user.as_deref(), Some("postgres"));
    assert_eq!(pg.dir, Path::new("/DB/vol1"));
    assert_eq!(pg.ready, Ready::Command(vec!["/usr/bin/pg_isready".into(), "-h".into(), "/DB/vol1/data".into()]));
    assert_eq!((pg.ready_timeout, pg.stop_timeout), (Duration::from_secs(5), Duration::from_secs(7)));
    assert_eq!((&pg.stop, pg.restart), (&Stop::Signal(libc::SIGINT), Restart::Always));
    assert_eq!(pg.source, "/DB/vol1/dbms.toml:3");
    let want = [
        ("BIN", "/usr/bin"),
        ("CONF", "/DB/vol1/data/conf"),
        ("LANG", "C"),
        ("PATH", PATH),
        ("PGDATA", "/DB/vol1/data"),
    ];
    assert_eq!(pg.env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<Vec<_>>(), want);
    let own = &v[1];
    assert_eq!(own.command, Path::new("/DB/vol1/bin/own"));
    assert_eq!((&own.ready, own.dir.as_path()), (&Ready::File("/DB/vol1/run/ready".into()), Path::new("/DB/vol1/run")));
    assert_eq!(own.stop, Stop::Command(vec!["/DB/vol1/bin/stop".into()]));
    assert_eq!(
        (own.restart, own.ready_timeout, own.after.clone()),
        (Restart::OnFailure, READY_TIMEOUT, vec!["pg".into()])
    );
    assert!(read("").unwrap().is_empty());
}

#[test]
fn cd8_the_dbms_comes_first_and_after_is_kept() {
    let names = |v: Vec<App>| v.into_iter().map(|a| a.name).collect::<Vec<_>>();
    let dbms = vec![app("b", &["a"]), app("a", &[])];
    let apps = vec![app("z", &["y", "a"]), app("x", &[]), app("y", &["x"])];
    let all = order(dbms, apps).unwrap();
    assert_eq!(all[2].after, ["b", "a"], "all of the DBMS is ready before the application starts");
    assert_eq!(all[4].after, ["y", "a", "b"]);
    assert_eq!(names(all), ["a", "b", "x", "y", "z"]);
    for (dbms, apps, words) in [
        (vec![app("a", &["a"])], vec![], "in a circle: a after a"),
        (vec![], vec![app("a", &["b"]), app("b", &["c"]), app("c", &["b"])], "in a circle: b after c after b"),
        (vec![app("a", &["x"])], vec![app("x", &[])], "application a of the DBMS is after x of the application"),
        (vec![app("a", &["nix"])], vec![], "a is after nix, which there is not; remove it"),
        (vec![app("a", &[])], vec![app("a", &[])], "application a is already at /DB/vol1/dbms.toml:2"),
        (vec![], (0..=APPS_MAX).map(|i| app(&format!("a{i}"), &[])).collect(), "more than 64 applications"),
    ] {
        let e = order(dbms, apps).unwrap_err();
        assert!(e.kind == Kind::Config && e.msg.starts_with("/DB/vol1/dbms.toml:2: ") && e.msg.contains(words), "{e}");
    }
}

#[test]
fn b4_hostile_definitions_are_refused_with_their_line() {
    let head = "[[application]]\nname = \"a\"\ncommand = \"/bin/x\"\n";
    let with = |line: &str| format!("{head}{line}\n").into_bytes();
    let args = format!("args = [{}]", vec!["\"x\""; ARGS_MAX + 1].join(","));
    let deep = format!("env = {}", "{ A = ".repeat(5000));
    let cases: Vec<(Vec<u8>, usize, &str)> = vec![
        (b"\xff".to_vec(), 1, "not UTF-8"),
        (b"# \0".to_vec(), 1, "cannot be seen"),
        ("[[application]]\nname = \"\u{202e}a\"".into(), 2, "cannot be seen (U+202E)"),
        (vec![b'#'; FILE_BYTES_MAX as usize + 1], 1, "at most 262144 bytes"),
        (b"application = 1".to_vec(), 1, "write [[application]]"),
        (b"[[program]]".to_vec(), 1, "unknown key program"),
        (b"[[application]]\nname = \"a\"".to_vec(), 1, "command is missing here"),
        (b"[[application]]\nname = \"../a\"\ncommand = \"/bin/x\"".to_vec(), 2, "is not a name"),
        (b"[[application]]\nname = \"a\"\ncommand = \"sh\"".to_vec(), 3, "write /usr/bin/sh"),
        (b"[[application]]\nname = \"a\"\ncommand = \"/usr/../bin/sh\"".to_vec(), 3, "goes through `..`"),
        (b"[[application]]\nname = \"a\"\ncommand = \"./../../bin/sh\"".to_vec(), 3, "goes through `..`"),
        (b"[[application]]\nname = \"a\"\ncommand = \"/bin/\\u0000sh\"".to_vec(), 3, "cannot be seen"),
        (b"[[application]]\nname = \"a\"\ncommand = [\"/bin/sh\"]".to_vec(), 3, "write command ="),
        (with("commnad = 1"), 4, "unknown key commnad; write command ="),
        (with("setuid = true"), 4, "unknown key setuid"),
        (with("user = \"root; id\""), 4, "is not a name"),
        (with("user = 0"), 4, "write user ="),
        (with(&args), 4, "more than 256 arguments"),
        (with("args = [\"${NIX}\"]"), 4, "NIX is not set in the environment file"),
        (with("args = [\"a\\nb\"]"), 4, "cannot be seen (U+000A)"),
        (with("dir = \"../..\""), 4, "goes through `..`"),
        (with("dir = \"\""), 4, "dir is empty"),
        (with("env = { LD_PRELOAD = \"/x.so\" }"), 4, "LD_PRELOAD is not taken from a volume"),
        (with("env = { PATH = \"/x\" }"), 4, "PATH is not taken from a volume"),
        (with("env = { \"A B\" = \"1\" }"), 4, "no name of a variable"),
        (with("env = { A = 1 }"), 4, "write env ="),
        (with(&deep), 4, ""),
        (with("ready = { tcp = \"db.example:5432\" }"), 4, "is no address"),
        (with("ready = { tcp = \"127.0.0.1:0\" }"), 4, "is no address"),
        (with("ready = { tcp = \"127.0.0.1:1\", file = \"x\" }"), 4, "one of tcp, command and file"),
        (with("ready = {}"), 4, "one of tcp, command and file"),
        (with("ready = { command = [] }"), 4, "command is empty"),
        (with("ready = { command = [\"sh\", \"-c\", \"id\"] }"), 4, "write /usr/bin/sh"),
        (with("ready = { file = \"../../etc/passwd\" }"), 4, "goes through `..`"),
        (with("ready_timeout_s = 0"), 4, "write a number from 1 to 86400"),
        (with("ready_timeout_s = 1e9"), 4, "write ready_timeout_s = 60"),
        (with("stop = { signal = \"SIGSTOP\" }"), 4, "write one of SIGTERM"),
        (with("stop = { command = [\"/bin/../x\"] }"), 4, "goes through `..`"),
        (with("stop_timeout_s = 99999999999"), 4, "out of range"),
        (with("restart = \"forever\""), 4, "write \"always\", \"on-failure\" or \"never\""),
        (with("after = [\"a b\"]"), 4, "is not a name"),
        (with("[[application]]\nname = \"a\"\ncommand = \"/bin/y\""), 5, "application a is already in line 2"),
    ];
    assert!(cases.len() >= 30);
    for (text, line, words) in cases {
        let e = parse(Path::new("/V/a.toml"), &text, &vars(), &[]).unwrap_err();
        let shown = String::from_utf8_lossy(&text).chars().skip(head.len()).take(60).collect::<String>();
        assert_eq!(e.kind, Kind::Config, "{shown:?}");
        assert!(e.msg.starts_with(&format!("/V/a.toml:{line}: ")), "{shown:?}: {e}");
        assert!(e.msg.contains(words), "{shown:?}: {e}");
    }
}
