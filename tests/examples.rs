//! The examples run, as they stand.

mod support;

use std::path::Path;
use std::process::Command;
use std::time::Duration;
use support::proc::{run, text};

fn example(name: &str) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name).join("run.sh");
    let mut command = Command::new(&script);
    command.env("KAGAMI", support::lab::kagami().get_program());
    // Ports of their own, so that an example which somebody tries meanwhile is not disturbed.
    let held = [0, 1].map(|_| std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap());
    let ports = held.each_ref().map(|l| l.local_addr().unwrap().port().to_string());
    command.env("TOKYO_PORT", &ports[0]).env("OSAKA_PORT", &ports[1]);
    drop(held);
    let out = run(&mut command, Duration::from_secs(180));
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
