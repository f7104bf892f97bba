//! Applications in a lab's volumes: definitions, what a site allows, and how they stand.

use super::lab::Lab;
use super::proc;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long something may take that happens at once on a machine without load.
pub const LONG: Duration = Duration::from_secs(60);

/// An interpreter that needs nothing but itself (one of a version manager is a script that wants an environment).
pub fn python() -> String {
    let found = ["/usr/bin/python3", "/usr/local/bin/python3"].into_iter().find(|p| Path::new(p).exists());
    found.expect("python3 in /usr/bin or /usr/local/bin").to_owned()
}

pub fn me() -> String {
    String::from_utf8(std::process::Command::new("id").arg("-un").output().unwrap().stdout).unwrap().trim().to_owned()
}

pub fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// Appends to the site file of a site and starts its node again.
pub fn allow(lab: &Lab, site: &str, launch: &str) {
    let p = lab.config(site);
    let text = std::fs::read_to_string(&p).unwrap();
    let text = text.split("\n[launch]").next().unwrap().to_owned();
    std::fs::write(&p, format!("{text}\n[launch]\n{launch}\n")).unwrap();
    lab.kill(site);
    lab.start(site);
}

pub fn rules(policy: &str) -> String {
    format!("commands = [{:?}]\nusers = [{:?}]\n{policy}", python(), me())
}

/// A definition of a server of the volume's files.
pub fn server(name: &str, port: u16, dir: &str, more: &str) -> String {
    let user = me();
    format!(
        "[[application]]\nname = {name:?}\ncommand = {:?}\nargs = [\"-m\", \"http.server\", \"{port}\", \"--bind\", \"127.0.0.1\"]\ndir = {dir:?}\nuser = {user:?}\nready = {{ tcp = \"127.0.0.1:{port}\" }}\n{more}\n",
        python()
    )
}

/// What a server answers for a path; `None` while nobody answers.
pub fn get(port: u16, path: &str) -> Option<String> {
    let mut s = TcpStream::connect(("127.0.0.1", port)).ok()?;
    s.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    s.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).ok()?;
    let mut out = String::new();
    s.read_to_string(&mut out).ok()?;
    let (head, body) = out.split_once("\r\n\r\n")?;
    head.contains(" 200 ").then(|| body.to_owned())
}

#[track_caller]
pub fn until(lab: &Lab, what: &str, mut f: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !f() {
        assert!(Instant::now() < end, "not in time: {what}\n{}", lab.log_tails());
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub fn group(lab: &Lab, site: &str) -> Value {
    lab.status(site)["groups"][0].clone()
}

pub fn apps(lab: &Lab, site: &str) -> Vec<(String, String)> {
    let g = group(lab, site);
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    g["apps"].as_array().into_iter().flatten().map(|a| (text(&a["name"]), text(&a["state"]))).collect()
}

pub fn all_ready(lab: &Lab, site: &str, n: usize) -> bool {
    let a = apps(lab, site);
    a.len() == n && a.iter().all(|(_, s)| s == "ready")
}

#[track_caller]
pub fn ok(lab: &Lab, site: &str, args: &[&str]) -> String {
    let out = lab.at(site, args);
    let (stdout, stderr) = (proc::text(&out.stdout), proc::text(&out.stderr));
    assert!(out.status.success(), "{args:?}: {stdout}{stderr}{}", lab.log_tails());
    stdout
}

/// Writes definitions into the volume of the primary by `kagami define`.
pub fn define(lab: &Lab, dbms: &str, application: &str, dbms_at: &Path) {
    let (a, b) = (lab.dir().join("dbms.in"), lab.dir().join("app.in"));
    std::fs::write(&a, dbms).unwrap();
    std::fs::write(&b, application).unwrap();
    let s = |p: &Path| p.display().to_string();
    ok(lab, "primary", &["define", "lab", "--dbms", &s(&a), "--dbms-at", &s(dbms_at), "--application", &s(&b)]);
}

pub fn volume(lab: &Lab, i: u8) -> PathBuf {
    lab.dir().join(if i == 0 { "mnt".into() } else { format!("mnt{i}") })
}
