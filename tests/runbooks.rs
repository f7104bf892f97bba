//! The runbooks: every command of `docs/RUNBOOKS.md` is typed here, in its order, at the site that its block names. What
//! happens between the blocks (something is switched off, or lost) is done by this test.

use crate::support;

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use support::{Lab, proc};

const LONG: Duration = Duration::from_secs(60);

/// One command of the page.
#[derive(Clone, Debug)]
struct Typed {
    site: String,
    words: Vec<String>,
    /// Lines that it prints: of each these words, in this order.
    prints: Vec<Vec<String>>,
}

/// Commands under one heading.
struct Section {
    title: String,
    commands: VecDeque<Typed>,
}

fn read(file: &Path) -> Vec<Section> {
    let text = fs::read_to_string(file).unwrap();
    let mut all = vec![Section { title: String::new(), commands: VecDeque::new() }];
    let (mut site, mut block) = (String::new(), None);
    for line in text.lines() {
        let words = || line.split_whitespace().map(str::to_owned).collect();
        let now = &mut all.last_mut().unwrap().commands;
        match (line.strip_prefix("```"), block) {
            (Some(kind), None) => block = Some(kind),
            (Some(_), _) => block = None,
            (None, Some("sh")) => now.push_back(Typed { site: site.clone(), words: words(), prints: Vec::new() }),
            (None, Some("text")) => now.back_mut().expect("a command").prints.push(words()),
            (None, Some(other)) => panic!("what is a block of {other:?}?"),
            (None, None) => {
                if let Some(title) = line.strip_prefix("## ") {
                    all.push(Section { title: title.into(), commands: VecDeque::new() });
                } else if let Some(name) = line.strip_suffix(':').filter(|n| !n.contains(' ')) {
                    site = name.into();
                }
            }
        }
    }
    all
}

/// The page, with a lab in the place of its three sites.
struct Book {
    lab: Lab,
    sections: VecDeque<Section>,
    now: Section,
    typed: usize,
}

fn site(name: &str) -> &str {
    match name {
        "tokyo" => "primary",
        "osaka" => "sync",
        "kyoto" => "async",
        other => panic!("no such site: {other}"),
    }
}

impl Book {
    fn new() -> Book {
        let mut sections: VecDeque<Section> =
            read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/RUNBOOKS.md")).into();
        let now = sections.pop_front().unwrap();
        let lab = Lab::up(&["--legs", "2"]);
        fs::create_dir(lab.dir().join("mnt-aside")).unwrap();
        fs::write(lab.mnt().join("file"), "as it began\n").unwrap();
        Book { lab, sections, now, typed: 0 }
    }

    /// The next section, whose title begins like this. Nothing of the one before is left.
    #[track_caller]
    fn section(&mut self, title: &str) {
        assert!(self.now.commands.is_empty(), "not typed: {} {:?}", self.now.title, self.now.commands);
        self.now = self.sections.pop_front().expect("a further section");
        assert!(self.now.title.starts_with(title), "{:?} comes before {title:?}", self.now.title);
    }

    /// Where the second primary of a split brain mounts. Otherwise all sites of a lab mount at the same place.
    fn aside(&self) -> PathBuf {
        self.lab.dir().join("mnt-aside")
    }

    /// A word of the page as it is called in the lab.
    fn word(&self, w: &str, event: &str) -> String {
        match w {
            "docs" => "lab".into(),
            "tokyo" | "osaka" | "kyoto" => site(w).to_owned(),
            "/srv/docs" => self.lab.mnt().display().to_string(),
            "/srv/region/tree" => self.lab.tree("sync").display().to_string(),
            w if w.starts_with("/srv/") => self.lab.dir().join(&w[5..]).display().to_string(),
            "EVENT" => event.to_owned(),
            w => w.to_owned(),
        }
    }

    /// Types the next `n` commands; each must succeed and print what the page says. Gives what the last one printed.
    #[track_caller]
    fn types(&mut self, n: usize, event: &str) -> String {
        let mut last = String::new();
        for _ in 0..n {
            let c = self.now.commands.pop_front().expect("a further command");
            last = self.types_one(&c, event, 0);
        }
        last
    }

    #[track_caller]
    fn types_one(&mut self, c: &Typed, event: &str, code: i32) -> String {
        let at = site(&c.site);
        let words: Vec<String> = c.words.iter().map(|w| self.word(w, event)).collect();
        let args: Vec<&str> = words[1..].iter().map(String::as_str).collect();
        let run = || match (words[0].as_str(), args[0]) {
            // The lab keeps its own pid files.
            ("kagami", "node") => self.lab.try_lab("start", &[at]),
            ("kagami", _) => self.lab.at(at, &args),
            ("cp", _) => proc::run(Command::new("cp").args(&args), LONG),
            (other, _) => panic!("what is {other}?"),
        };
        let wanted = |w: &Vec<String>| w.iter().map(|w| self.word(w, event)).collect::<Vec<String>>();
        let wanted: Vec<Vec<String>> = c.prints.iter().map(wanted).collect();
        let bare = |w: &str| w.trim_end_matches([',', ':', ';']).to_owned();
        let missing = |printed: &str| {
            let has = |line: &str, words: &[String]| {
                let mut left = line.split_whitespace();
                words.iter().all(|w| left.any(|l| bare(l) == bare(w)))
            };
            wanted.iter().find(|w| !printed.lines().any(|l| has(l, w))).cloned()
        };
        let end = Instant::now() + LONG;
        let printed = loop {
            let out = run();
            let (printed, said) = (proc::text(&out.stdout), proc::text(&out.stderr));
            let ended = out.status.code();
            assert_eq!(ended, Some(code), "{words:?} at {at}:\n{printed}\n{said}\n{}", self.lab.log_tails());
            let Some(m) = missing(&printed) else {
                println!("{}$ {}\n{printed}{said}", c.site, c.words.join(" "));
                break printed;
            };
            // A state may take a moment to be reached, or a lag to be gone.
            let again = args[0] == "status" && Instant::now() < end;
            assert!(again, "{words:?} at {at} does not print {m:?}:\n{printed}\n{said}");
            std::thread::sleep(Duration::from_millis(100));
        };
        self.typed += 1;
        printed
    }

    #[track_caller]
    fn level(&self) {
        self.lab.wait(60);
        self.lab.assert_trees_equal();
    }

    #[track_caller]
    fn leads(&self, site: &str) {
        let is = || self.lab.try_status(site).is_some_and(|s| s["groups"][0]["role"] == "primary");
        assert!(proc::wait_until(LONG, is), "{site} does not lead\n{}", self.lab.log_tails());
    }

    #[track_caller]
    fn in_pair(&self, at: &str, pair: &str) {
        self.lab.wait_pair(at, pair, "PAIR", LONG);
    }

    /// Writes at a site's mount.
    #[track_caller]
    fn write(&self, name: &str, text: &str) {
        fs::write(self.lab.mnt().join(name), text).unwrap_or_else(|e| panic!("{name}: {e}\n{}", self.lab.log_tails()));
    }

    fn in_tree(&self, site: &str, name: &str) -> Option<String> {
        fs::read_to_string(self.lab.tree(site).join(name)).ok()
    }
}

/// Every runbook (MS-10, MS-11, MS-15, MS-22, G6), one after the other on one volume.
#[test]
fn every_command_of_the_runbooks_does_what_it_says() {
    let mut b = Book::new();
    b.types(2, "");

    b.section("Planned: the primary's machine");
    b.types(3, "");
    b.leads("sync");
    b.lab.kill_now("primary");
    b.lab.start("primary");
    b.in_pair("sync", "sync");
    b.types(3, "");
    b.leads("primary");
    b.level();

    b.section("Planned: a secondary's machine");
    b.types(2, "");
    b.write("while-split", "written while the pair was suspended\n");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(b.in_tree("sync", "while-split"), None);
    b.types(2, "");
    b.level();

    b.section("Unplanned: the primary is lost");
    b.write("last", "the last words of tokyo\n");
    b.lab.kill_now("primary");
    b.lab.wait_pair("sync", "sync", "PSUE", LONG);
    b.types(4, "");
    b.leads("sync");
    assert_eq!(fs::read_to_string(b.lab.mnt().join("last")).unwrap(), "the last words of tokyo\n");
    b.write("osaka", "written at osaka\n");
    b.types(1, "");

    b.section("Failback after a takeover");
    b.lab.start("primary");
    b.in_pair("sync", "sync");
    b.types(4, "");
    b.leads("primary");
    b.level();
    assert_eq!(b.in_tree("primary", "osaka").as_deref(), Some("written at osaka\n"));

    b.section("A drive is lost");
    b.types(4, "");
    let legs = || {
        let g = &b.lab.status("primary")["groups"][0];
        g["legs"].as_array().is_some_and(|l| l.len() == 2 && l.iter().all(|l| l["state"] == "synchronised"))
    };
    assert!(proc::wait_until(LONG, legs), "{:#}", b.lab.status("primary"));

    b.section("Split brain");
    // Tokyo goes down while osaka is cut off, osaka is taken over, and tokyo is started again before the two have met.
    b.lab.cut("sync");
    b.lab.wait_pair("primary", "sync", "PSUE", LONG);
    b.lab.kill("primary");
    b.lab.takeover("sync", &["--at", &b.aside().display().to_string()]);
    b.lab.start("primary");
    b.leads("primary");
    fs::write(b.aside().join("file"), "osaka's version\n").unwrap();
    b.write("file", "tokyo's version\n");
    b.lab.join("sync");
    for site in ["primary", "sync"] {
        let split = || b.lab.pair(site, "sync")["fault"] == "split-brain";
        assert!(proc::wait_until(LONG, split), "{:#}", b.lab.status(site));
    }
    b.types(2, "");
    b.level();
    assert_eq!(b.in_tree("sync", "file").as_deref(), Some("tokyo's version\n"));
    let list = b.lab.at("sync", &["loss", "list", "--json"]);
    let list: serde_json::Value = serde_json::from_slice(&list.stdout).unwrap();
    let event = list["events"].as_array().unwrap().last().unwrap()["id"].as_str().unwrap().to_owned();
    b.types(3, &event);
    let kept = fs::read_dir(b.lab.dir().join("lost")).unwrap().count();
    assert_eq!(kept, 1);
    assert_eq!(fs::read_to_string(b.lab.dir().join("lost/file")).unwrap(), "osaka's version\n");
    b.types(1, &event);

    b.section("A site is rebuilt from nothing");
    b.lab.kill_now("sync");
    for e in fs::read_dir(b.lab.site_dir("sync")).unwrap() {
        let e = e.unwrap();
        if e.file_name().to_string_lossy().starts_with("region") {
            fs::remove_dir_all(e.path()).unwrap();
        }
    }
    b.write("meanwhile", "written while osaka was rebuilt\n");
    b.types(4, "");
    b.level();

    b.section("A secondary is filled");
    b.types(2, "");
    b.lab.kill("sync");
    fs::rename(b.lab.site_dir("sync").join("region"), b.lab.site_dir("sync").join("old")).unwrap();
    b.types(5, "");
    let copied = b.lab.pair("primary", "sync")["last_resync"]["bytes_copied"].clone();
    assert_eq!(copied, 0, "content was sent");
    b.types(1, "");
    b.level();

    b.section("Something looks wrong");
    fs::write(b.lab.tree("sync").join("file"), "written behind kagami's back\n").unwrap();
    let compare = b.now.commands.pop_front().unwrap();
    b.types_one(&compare, "", 5);
    b.types(1, "");
    b.level();
    assert!(b.now.commands.is_empty() && b.sections.is_empty());
    assert!(b.typed >= 45, "{}", b.typed);
    b.lab.down();
}

/// A suspended pair that is resumed at once gets back to PAIR each time: the session from before the order ends (MS-2).
#[test]
fn ms2_a_pair_that_is_split_and_resumed_at_once_gets_back_to_pair() {
    let lab = Lab::up(&["--sites", "2"]);
    for i in 0..10 {
        for order in ["split", "resync"] {
            let out = lab.at("primary", &["pair", order, "lab", "sync"]);
            assert!(out.status.success(), "{order}: {}", proc::text(&out.stderr));
            fs::write(lab.mnt().join(format!("{order}{i}")), "x").unwrap();
            let there = lab.tree("sync").join(format!("{order}{i}"));
            assert!(order != "split" || !there.exists(), "written after the order, and sent");
        }
        lab.wait_pair("primary", "sync", "PAIR", LONG);
    }
    lab.wait(60);
    lab.assert_trees_equal();
    lab.down();
}
