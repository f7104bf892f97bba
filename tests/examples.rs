//! The examples run, as they stand.

use crate::support;

use std::path::Path;
use std::process::Command;
use std::time::Duration;
use support::proc::{as_user, run, text};

/// The script of an example, with ports of its own, so that one which somebody tries meanwhile is not disturbed.
fn script(name: &str) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name).join("run.sh");
    let mut command = Command::new(&script);
    command.env("KAGAMI", support::lab::kagami().get_program());
    let ports = ["TOKYO_PORT", "OSAKA_PORT", "PGPORT", "AP_PORT"];
    let held = ports.map(|_| std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap());
    for (name, l) in ports.iter().zip(&held) {
        command.env(name, l.local_addr().unwrap().port().to_string());
    }
    command
}

fn example(name: &str) -> String {
    said_by(name, &mut script(name))
}

fn said_by(name: &str, command: &mut Command) -> String {
    let out = run(command, Duration::from_secs(180));
    let said = text(&out.stdout);
    assert!(out.status.success(), "{name}: {}\n{said}\n{}", out.status, text(&out.stderr));
    said
}

#[test]
fn two_sites_by_hand() {
    let said = example("two-sites");
    assert!(said.contains("readable without kagami: a paper"), "{said}");
    assert!(said.ends_with("at tokyo: a third one, made at osaka\n"), "{said}");
}

#[test]
fn resync_demo_counts_what_changed() {
    let said = example("resync-demo");
    let line = said.lines().find(|l| l.contains("last resync")).unwrap_or_default();
    // 8 edited, 4 new, 1 large with 3 changed ranges; the file with a new mode is examined, not copied.
    assert!(line.contains("14 files examined, 13 copied") && line.contains("1 rename"), "{said}");
    assert!(said.ends_with("both trees are equal\n"), "{said}");
}

/// The last line of the example: how long the application was away.
fn blank_server(said: &str) {
    for line in said.lines().filter(|l| l.contains("committed rows") || l.contains("first answer")) {
        println!("{line}");
    }
    let all_rows = said.lines().any(|l| l.starts_with("osaka has all ") && l.ends_with("rows, and takes new ones"));
    assert!(all_rows && said.contains("from kill -9 to the first answer: "), "{said}");
}

/// The whole story: volume tables, heads, PostgreSQL and an application at the primary, kill -9, a blank server.
#[test]
fn b1_cd10_a_blank_server_takes_the_database_and_the_application_over() {
    blank_server(&example("blank-server"));
}

/// B1 for somebody who is not root, under a directory of theirs.
#[test]
fn b1_cd10_the_same_for_an_ordinary_user() {
    let home = tempfile::tempdir().unwrap();
    let mut command = script("blank-server");
    blank_server(&said_by("blank-server", as_user(&mut command, home.path())));
}
