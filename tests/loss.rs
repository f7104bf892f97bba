//! C3 (G6): a split brain is made and resolved both ways; the loss manifest names exactly what differs, restore brings it
//! back, drop frees it. The same for a stale primary that comes back, and for what never arrived at a takeover.

use crate::support;

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::{Lab, proc, sys};

const PATIENCE: Duration = Duration::from_secs(120);

/// What counts of one object here: type and mode, owner, content or target, extended attributes.
type State = (u32, u32, u32, Vec<u8>, Vec<(Vec<u8>, Vec<u8>)>);

/// Every object of a tree by its path.
fn objects(tree: &Path) -> BTreeMap<String, State> {
    fn walk(root: &Path, at: &Path, out: &mut BTreeMap<String, State>) {
        for e in fs::read_dir(at).unwrap() {
            let path = e.unwrap().path();
            let m = fs::symlink_metadata(&path).unwrap();
            let (mut body, mut xattrs) = (Vec::new(), Vec::new());
            if m.is_file() {
                body = fs::read(&path).unwrap();
                let f = fs::File::open(&path).unwrap();
                use std::os::fd::AsRawFd;
                for k in sys::list_xattrs(f.as_raw_fd()).unwrap() {
                    let v = sys::get_xattr(f.as_raw_fd(), &k).unwrap();
                    xattrs.push((k, v));
                }
                xattrs.sort();
            } else if m.file_type().is_symlink() {
                body = fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec();
            }
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            out.insert(name, (m.mode(), m.uid(), m.gid(), body, xattrs));
            if m.is_dir() {
                walk(root, &path, out);
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(tree, tree, &mut out);
    out
}

/// The paths at which the loser's tree is neither what it was nor what the winner has.
fn differ(base: &Path, loser: &Path, winner: &Path) -> BTreeSet<String> {
    let (b, l, w) = (objects(base), objects(loser), objects(winner));
    let all: BTreeSet<&String> = b.keys().chain(l.keys()).chain(w.keys()).collect();
    let lost = |p: &&String| l.get(*p) != b.get(*p) && l.get(*p) != w.get(*p);
    outermost(all.into_iter().filter(lost).cloned().collect())
}

/// Without what lies below another path of the set: a directory stands for what moved with it.
fn outermost(all: BTreeSet<String>) -> BTreeSet<String> {
    let below = |p: &String| Path::new(p).ancestors().skip(1).any(|a| all.contains(a.to_str().unwrap()));
    all.iter().filter(|p| !below(p)).cloned().collect()
}

fn copy(from: &Path, to: &Path) {
    proc::run_ok(std::process::Command::new("cp").arg("-a").arg(from).arg(to), PATIENCE);
}

#[track_caller]
fn run(lab: &Lab, site: &str, args: &[&str]) -> String {
    let out = lab.at(site, args);
    let (o, e) = (proc::text(&out.stdout), proc::text(&out.stderr));
    assert!(out.status.success(), "{args:?} at {site}: {}\n{o}\n{e}\n{}", out.status, lab.log_tails());
    o
}

#[track_caller]
fn json(lab: &Lab, site: &str, args: &[&str]) -> Value {
    let all: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
    serde_json::from_str(&run(lab, site, &all)).expect("JSON")
}

fn events(lab: &Lab, site: &str) -> Vec<Value> {
    json(lab, site, &["loss", "list"])["events"].as_array().expect("events").clone()
}

/// The one event of a site: id, objects.
#[track_caller]
fn the_event(lab: &Lab, site: &str) -> (String, Vec<Value>) {
    let all = events(lab, site);
    assert_eq!(all.len(), 1, "{all:#?}\n{}", lab.log_tails());
    let id = all[0]["id"].as_str().unwrap().to_owned();
    let v = json(lab, site, &["loss", "show", &id]);
    (id, v["objects"].as_array().unwrap().clone())
}

fn text(v: &Value) -> String {
    v.as_str().unwrap_or_else(|| panic!("no text: {v}")).to_owned()
}

/// The paths that a manifest names; of something renamed both names.
fn named(objects: &[Value]) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for o in objects {
        out.insert(text(&o["path"]));
        if o["what"].as_array().unwrap().iter().any(|w| w == "name") {
            out.extend(o["now"].as_str().map(str::to_owned));
        }
    }
    outermost(out)
}

/// The names in a site's lost area.
fn lost_area(lab: &Lab, site: &str) -> Vec<String> {
    let dir = lab.site_dir(site).join("region/.kagami/lost");
    let mut all: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    all.sort();
    all
}

fn fill(mnt: &Path) {
    for n in ["edit", "both", "same", "gone-there", "gone-here", "gone-both", "mode", "xattr", "linked", "name", "swap"]
    {
        fs::write(mnt.join(n), format!("{n} before\n").repeat(300)).unwrap();
    }
    for d in ["dir", "moved", "empty", "dir/below"] {
        fs::create_dir(mnt.join(d)).unwrap();
    }
    fs::write(mnt.join("dir/inner"), "inner before\n").unwrap();
    fs::write(mnt.join("moved/inner"), "moved before\n").unwrap();
    fs::write(mnt.join("dir/below/deep"), "deep before\n").unwrap();
    fs::write(mnt.join("only-winner"), "only the winner changes this\n").unwrap();
    symlink("edit", mnt.join("symlink")).unwrap();
}

/// Changes of each sort at one side.
fn change(mnt: &Path, side: &str) {
    let text = |what: &str| format!("{what} as {side} has it\n");
    let at = |n: &str| mnt.join(n);
    fs::write(at("both"), text("both")).unwrap();
    fs::write(at("same"), "the same on both sides\n").unwrap();
    fs::write(at("new"), text("new")).unwrap();
    fs::remove_file(at("gone-both")).unwrap();
    fs::write(at("passing"), "is removed again").unwrap();
    fs::remove_file(at("passing")).unwrap();
    fs::write(at(&format!("made-by-{side}")), text("made")).unwrap();
    if side == "A" {
        fs::write(at("edit"), text("edit")).unwrap();
        fs::write(at("gone-there"), text("gone-there")).unwrap();
        fs::remove_file(at("gone-here")).unwrap();
        fs::set_permissions(at("mode"), fs::Permissions::from_mode(0o600)).unwrap();
        sys::set_xattr(&at("xattr"), "user.side", b"A").unwrap();
        fs::hard_link(at("linked"), at("dir/further")).unwrap();
        fs::rename(at("name"), at("dir/renamed")).unwrap();
        fs::rename(at("moved"), at("elsewhere")).unwrap();
        fs::remove_file(at("symlink")).unwrap();
        symlink("A", at("symlink")).unwrap();
        fs::create_dir_all(at("made/deep")).unwrap();
        fs::write(at("made/deep/file"), text("made/deep/file")).unwrap();
        fs::set_permissions(at("dir/below"), fs::Permissions::from_mode(0o700)).unwrap();
        // As an editor saves.
        fs::write(at("swap.tmp"), text("swap")).unwrap();
        fs::rename(at("swap.tmp"), at("swap")).unwrap();
    } else {
        fs::remove_file(at("gone-there")).unwrap();
        fs::write(at("gone-here"), text("gone-here")).unwrap();
        fs::write(at("only-winner"), text("only-winner")).unwrap();
        fs::write(at("dir/inner"), text("inner")).unwrap();
        fs::remove_dir(at("empty")).unwrap();
        fs::write(at("empty"), text("empty")).unwrap();
        fs::set_permissions(at("edit"), fs::Permissions::from_mode(0o640)).unwrap();
    }
}

/// Three trees of one history that parts: what was, A's (the old primary) and B's (the sync site).
struct Parted {
    lab: Lab,
    base: PathBuf,
    a: PathBuf,
    b: PathBuf,
}

/// The old primary goes on while the sync site is taken over. `restarted`: the old primary begins an epoch of its own as
/// well, so nothing but the operator's word can decide.
fn part(restarted: bool) -> Parted {
    let lab = Lab::up(&[]);
    fill(&lab.mnt());
    lab.wait(120);
    let outer = lab.dir().parent().unwrap().to_owned();
    let (base, a, b) = (outer.join("base"), outer.join("a"), outer.join("b"));
    copy(&lab.tree("primary"), &base);
    lab.cut(if restarted { "sync" } else { "primary" });
    lab.wait_pair("primary", "sync", "PSUE", PATIENCE);
    if restarted {
        // Written before the restart: a tail of the common epoch.
        fs::write(lab.mnt().join("tail"), "the tail\n").unwrap();
        lab.kill("primary");
    }
    let there = lab.dir().join("there");
    lab.takeover("sync", &["--at", there.to_str().unwrap()]);
    if restarted {
        lab.start("primary");
    }
    change(&lab.mnt(), "A");
    change(&there, "B");
    copy(&lab.tree("primary"), &a);
    copy(&lab.tree("sync"), &b);
    Parted { lab, base, a, b }
}

/// The manifest of the losing site names what differs, restore brings it back, drop frees it.
#[track_caller]
fn check_loser(p: &Parted, site: &str, loser: &Path, winner: &Path) -> String {
    let lab = &p.lab;
    let (id, objects) = the_event(lab, site);
    assert_eq!(named(&objects), differ(&p.base, loser, winner), "{objects:#?}");
    let s = &lab.status(site)["groups"][0]["lost"];
    assert_eq!((s["events"].as_u64(), s["objects"].as_u64()), (Some(1), Some(objects.len() as u64)), "{s}");
    assert!(run(lab, site, &["status"]).contains("kagami loss list"));
    assert!(run(lab, site, &["loss", "list"]).contains(&id[..8]));
    let to = lab.dir().parent().unwrap().join(format!("back-{site}"));
    run(lab, site, &["loss", "restore", &id, "--to", to.to_str().unwrap()]);
    let (back, was) = (self::objects(&to), self::objects(loser));
    let kept: Vec<&Value> = objects.iter().filter(|o| !o["kept"].is_null()).collect();
    assert!(!kept.is_empty());
    for o in kept {
        let path = text(&o["path"]);
        assert_eq!(back.get(&path), was.get(&path), "{path} brought back");
    }
    id
}

fn lose_and_drop(p: &Parted, site: &str, id: &str) {
    let lab = &p.lab;
    assert!(!lost_area(lab, site).is_empty());
    run(lab, site, &["loss", "drop", &id[..6]]);
    assert_eq!(lost_area(lab, site), Vec::<String>::new());
    assert_eq!(events(lab, site), Vec::<Value>::new());
    assert!(lab.status(site)["groups"][0]["lost"].is_null());
}

/// A takeover makes a newer epoch: the stale primary is set back by itself, and that is to be seen.
#[test]
fn a_stale_primary_is_set_back_and_lists_what_it_lost() {
    let p = part(false);
    p.lab.join("primary");
    p.lab.wait(120);
    support::assert_same(&p.lab.tree("sync"), &p.lab.tree("primary"));
    support::assert_same(&p.lab.tree("sync"), &p.lab.tree("async"));
    let id = check_loser(&p, "primary", &p.a, &p.b);
    let group = &p.lab.status("primary")["groups"][0];
    assert!(text(&group["reason"]).contains("was primary here until"), "{group:#}");
    let last = &p.lab.pair("sync", "sync")["last_resync"];
    assert!(last["kept"].as_u64().unwrap() > 0, "{last}");
    assert_eq!(events(&p.lab, "sync"), Vec::<Value>::new());
    // Not mounted here: a restore must say where to.
    let out = p.lab.at("primary", &["loss", "restore", &id]);
    assert_eq!(out.status.code(), Some(4), "{}", proc::text(&out.stderr));
    // Taken over here again, a version comes back beside the present file or in its place, and travels to the other site.
    p.lab.ok("kill", &["sync"]);
    let mnt = p.lab.dir().join("again");
    p.lab.takeover("primary", &["--at", mnt.to_str().unwrap(), "--force"]);
    run(&p.lab, "primary", &["loss", "restore", &id, "both"]);
    let beside = mnt.join(format!("both.lost-{}", &id[..8]));
    assert_eq!(fs::read_to_string(&beside).unwrap(), "both as A has it\n");
    assert_eq!(fs::read_to_string(mnt.join("both")).unwrap(), "both as B has it\n");
    assert!(!p.lab.at("primary", &["loss", "restore", &id, "both"]).status.success(), "it would overwrite");
    run(&p.lab, "primary", &["loss", "restore", &id, "--replace"]);
    let (now, was) = (objects(&mnt), objects(&p.a));
    for path in
        ["both", "edit", "new", "mode", "xattr", "dir/renamed", "dir/further", "elsewhere", "made/deep/file", "symlink"]
    {
        assert_eq!(now.get(path), was.get(path), "{path} put back");
    }
    p.lab.start("sync");
    p.lab.wait(120);
    support::assert_same(&p.lab.tree("sync"), &p.lab.tree("primary"));
    // The takeover by force left an event of its own: what it may have missed.
    let causes: Vec<String> = events(&p.lab, "primary").iter().map(|e| text(&e["cause"])).collect();
    assert_eq!(causes, ["set-back", "never-arrived"]);
    run(&p.lab, "primary", &["loss", "drop", &id]);
    let left = lost_area(&p.lab, "primary");
    assert!(left.len() == 1 && left[0].ends_with(".loss"), "{left:?}");
    run(&p.lab, "primary", &["loss", "drop", "--all"]);
    assert_eq!(lost_area(&p.lab, "primary"), Vec::<String>::new());
    p.lab.down();
}

/// Both began epochs and wrote under them: nobody is set back before the operator has said who wins.
fn split_brain(keep: &str, ordered_at: &str) {
    let p = part(true);
    let lab = &p.lab;
    lab.join("sync");
    for site in ["primary", "sync"] {
        let pair = lab.wait_pair(site, "sync", "PSUE", PATIENCE);
        let known = || lab.pair(site, "sync")["reason"].as_str().is_some_and(|r| r.contains("both primary"));
        assert!(proc::wait_until(PATIENCE, known), "{pair:#}\n{}", lab.log_tails());
    }
    // Without the word of the operator nothing happens, whatever time passes.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(objects(&lab.tree("primary")), objects(&p.a));
    assert_eq!(objects(&lab.tree("sync")), objects(&p.b));
    assert!(events(lab, "primary").is_empty() && events(lab, "sync").is_empty());
    let out = lab.at(ordered_at, &["pair", "resync", "lab", "sync"]);
    assert_eq!(out.status.code(), Some(4), "{}", proc::text(&out.stderr));
    assert!(proc::text(&out.stderr).contains("--keep"), "{}", proc::text(&out.stderr));
    let out = lab.at(ordered_at, &["pair", "resync", "lab", "sync", "--keep", "async"]);
    assert_eq!(out.status.code(), Some(2), "{}", proc::text(&out.stderr));
    run(lab, ordered_at, &["pair", "resync", "lab", "sync", "--keep", keep]);
    lab.wait_pair(keep, "sync", "PAIR", PATIENCE);
    lab.wait(120);
    let (other, loser, winner) = if keep == "primary" { ("sync", &p.b, &p.a) } else { ("primary", &p.a, &p.b) };
    assert_eq!(objects(&lab.tree(keep)), objects(winner), "the version that was kept");
    support::assert_same(&lab.tree(keep), &lab.tree(other));
    support::assert_same(&lab.tree(keep), &lab.tree("async"));
    let id = check_loser(&p, other, loser, winner);
    assert!(events(lab, keep).is_empty());
    let out = lab.at(keep, &["pair", "resync", "lab", "sync", "--keep", keep]);
    assert_eq!(out.status.code(), Some(4), "{}", proc::text(&out.stderr));
    lose_and_drop(&p, other, &id);
    p.lab.down();
}

#[test]
fn a_split_brain_is_resolved_for_the_site_where_it_is_ordered() {
    split_brain("sync", "sync");
}

#[test]
fn a_split_brain_is_resolved_for_the_other_site() {
    split_brain("primary", "sync");
}

/// kill -9 of the losing site in the middle: one event as a whole, each object once, nothing left over.
#[test]
fn killed_while_it_is_set_back_a_site_has_one_whole_event() {
    let lab = Lab::up(&["--sites", "2"]);
    let mnt = lab.mnt();
    const FILES: usize = 400;
    for i in 0..FILES {
        fs::write(mnt.join(format!("f{i:03}")), vec![b'0'; 50_000]).unwrap();
    }
    lab.wait(120);
    lab.cut("primary");
    lab.wait_pair("primary", "sync", "PSUE", PATIENCE);
    for i in 0..FILES {
        fs::write(mnt.join(format!("f{i:03}")), vec![b'a'; 50_000]).unwrap();
        fs::write(mnt.join(format!("new{i:03}")), format!("{i}")).unwrap();
    }
    let there = lab.dir().join("there");
    lab.takeover("sync", &["--at", there.to_str().unwrap()]);
    fs::write(there.join("f000"), "the winner's").unwrap();
    lab.join("primary");
    // By the files: the node may just be stepping down.
    let draft = || lost_area(&lab, "primary").iter().any(|n| n.ends_with(".draft"));
    let listed = || lost_area(&lab, "primary").iter().any(|n| n.ends_with(".loss"));
    let mut kills = 0;
    let end = std::time::Instant::now() + PATIENCE;
    while kills < 3 && std::time::Instant::now() < end && !listed() {
        if draft() {
            lab.kill_now("primary");
            kills += 1;
            let about = lost_area(&lab, "primary").len();
            println!("killed with {about} files in the lost area");
            lab.start("primary");
        }
    }
    assert!(kills > 0, "it was never met in the middle: {}", lab.log_tails());
    lab.wait(120);
    support::assert_same(&lab.tree("sync"), &lab.tree("primary"));
    let (id, objects) = the_event(&lab, "primary");
    let paths: Vec<String> = objects.iter().map(|o| text(&o["path"])).collect();
    let mut wanted: Vec<String> = (0..FILES).flat_map(|i| [format!("f{i:03}"), format!("new{i:03}")]).collect();
    wanted.sort();
    let mut sorted = paths.clone();
    sorted.sort();
    assert_eq!(sorted, wanted);
    for o in &objects {
        let kept = fs::read(text(&o["kept"])).unwrap();
        let path = text(&o["path"]);
        let right = if path.starts_with('f') {
            kept == vec![b'a'; 50_000]
        } else {
            kept == format!("{}", path[3..].parse::<usize>().unwrap()).as_bytes()
        };
        assert!(right, "{path}: {} bytes", kept.len());
    }
    assert_eq!(lost_area(&lab, "primary").len(), objects.len() + 1, "one kept version each, one manifest");
    run(&lab, "primary", &["loss", "drop", &id]);
    assert_eq!(lost_area(&lab, "primary"), Vec::<String>::new());
    lab.down();
}

/// A takeover by force at the async site while the sync site has more: what is known to be missing is said before, with
/// names, and stays in the manifest.
#[test]
fn a_takeover_behind_others_notes_what_never_arrived() {
    let lab = Lab::up(&[]);
    let mnt = lab.mnt();
    fs::create_dir(mnt.join("dir")).unwrap();
    fs::write(mnt.join("dir/before"), "arrives").unwrap();
    lab.wait(120);
    let plan = json(&lab, "async", &["takeover", "lab", "--dry-run"]);
    assert_eq!(plan["loss"]["entries_known_missing"], 0, "{plan:#}");
    lab.cut("async");
    lab.wait_pair("primary", "async", "PSUE", PATIENCE);
    fs::write(mnt.join("dir/late"), "never arrives").unwrap();
    fs::write(mnt.join("dir/before"), "changed, never arrives").unwrap();
    lab.wait_pair("primary", "sync", "PAIR", PATIENCE);
    lab.kill("primary");
    lab.join("async");
    let plan = json(&lab, "async", &["takeover", "lab", "--dry-run"]);
    let loss = &plan["loss"];
    assert!(loss["entries_known_missing"].as_u64().unwrap() > 0, "{plan:#}");
    let words = text(&loss["words"]);
    assert!(words.contains("site sync has them") && words.contains("UTC is not known"), "{words}");
    let files: BTreeSet<String> = loss["files_known"].as_array().unwrap().iter().map(text).collect();
    let wanted: BTreeSet<String> = ["dir/late", "dir/before"].map(String::from).into();
    assert_eq!(files, wanted, "{plan:#}");
    assert_eq!(events(&lab, "async"), Vec::<Value>::new(), "a dry run notes nothing");
    // Asking changed nothing at the sync site.
    let there = lab.dir().join("there");
    let done = lab.takeover("async", &["--at", there.to_str().unwrap(), "--force"]);
    println!("{done}");
    let (id, objects) = the_event(&lab, "async");
    assert_eq!(named(&objects), wanted);
    let e = &events(&lab, "async")[0];
    assert_eq!((text(&e["cause"]), e["head"].as_u64() > e["common"].as_u64()), ("never-arrived".into(), true), "{e:#}");
    assert!(e["since"].is_string(), "{e:#}");
    // The sites that had more list it themselves when they come back, with its content.
    lab.start("primary");
    lab.wait(120);
    for site in ["primary", "sync"] {
        support::assert_same(&lab.tree("async"), &lab.tree(site));
        let (_, objects) = the_event(&lab, site);
        assert_eq!(named(&objects), wanted, "{site}: {objects:#?}");
    }
    run(&lab, "async", &["loss", "drop", &id]);
    run(&lab, "sync", &["loss", "drop", "--all"]);
    assert!(events(&lab, "async").is_empty() && events(&lab, "sync").is_empty());
    lab.down();
}

/// Nothing is dropped or shown by mistake: what is not there, or not unique, is said.
#[test]
fn unknown_events_are_refused() {
    let lab = Lab::up(&["--sites", "2"]);
    assert!(run(&lab, "primary", &["loss", "list"]).contains("no losing versions"));
    for args in [&["loss", "show", "ab"][..], &["loss", "drop", "ab"], &["loss", "restore", "ab"]] {
        let out = lab.at("primary", args);
        assert_eq!(out.status.code(), Some(1), "{args:?}");
        assert!(proc::text(&out.stderr).contains("kagami loss list"), "{}", proc::text(&out.stderr));
    }
    assert_eq!(lab.at("primary", &["loss", "drop"]).status.code(), Some(2));
    assert_eq!(lab.at("primary", &["loss", "list", "none"]).status.code(), Some(2));
    let out = lab.at("primary", &["pair", "resync", "lab", "sync", "--keep", "primary"]);
    assert_eq!(out.status.code(), Some(4), "{}", proc::text(&out.stderr));
    lab.down();
}
