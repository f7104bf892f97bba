//! `kagami lab` and `kagami demo`.

use super::args_lab::{DemoArgs, FenceArg, LabCommand};
use super::table::{self, Look};
use super::wait::Line;
use super::{say, say_json};
use crate::base::{Error, Result};
use crate::node::config::Fence;
use crate::site::demo::{self, Stage};
use crate::site::lab::Lab;
use crate::site::lab_files::Options;
use std::path::Path;
use std::time::Duration;

fn limit(seconds: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| Error::config(format!("--timeout {seconds}: write a number of seconds")))
}

/// `kagami lab …`.
pub fn run(c: LabCommand) -> Result<()> {
    match c {
        LabCommand::Up { dir, sites, fence, legs, write_through, volumes, tcp, timeout } => {
            let fence = fence.map(|f| if f == FenceArg::Data { Fence::Data } else { Fence::Never });
            up(&dir, &Options { sites, fence, legs, write_through, volumes, tcp }, limit(timeout)?)
        }
        LabCommand::Down { dir, purge } => {
            let lab = Lab::open(&dir)?;
            let line = Line::new();
            lab.down(purge, &|s| line.set(s))
        }
        LabCommand::Kill(a) => Lab::open(&a.dir)?.kill(&a.site),
        LabCommand::Start { dir, site, timeout } => {
            let lab = Lab::open(&dir)?;
            let line = Line::new();
            if !lab.start(&site, limit(timeout)?, &|s| line.set(s))? {
                drop(line);
                say(format!("{site} is running already\n"));
            }
            Ok(())
        }
        LabCommand::Cut(a) => Lab::open(&a.dir)?.cut(&a.site),
        LabCommand::Join(a) => Lab::open(&a.dir)?.join(&a.site),
        LabCommand::Wait { dir, timeout } => {
            let lab = Lab::open(&dir)?;
            let line = Line::new();
            let excepted = lab.wait(limit(timeout)?, &|s| line.set(s))?;
            drop(line);
            excepted.iter().for_each(|e| say(format!("not waited for: {e}\n")));
            Ok(())
        }
        LabCommand::Takeover { dir, site, at, force } => {
            let mut lab = Lab::open(&dir)?;
            let line = Line::new();
            let v = lab.takeover(&site, at.as_deref(), force, &|s| line.set(s))?;
            drop(line);
            say(table::value(&v, 0));
            Ok(())
        }
        LabCommand::Status { dir, json } => status(&Lab::open(&dir)?, json),
    }
}

fn up(dir: &Path, o: &Options, timeout: Duration) -> Result<()> {
    let line = Line::interruptible()?;
    let lab = Lab::up(dir, o, timeout, &|s| line.set(s))?;
    drop(line);
    let d = dir.display();
    say(format!(
        "mounted at {}\nsites {}; look:  kagami -c {d}/primary/site.toml status\nend it:  kagami lab down {d}\n",
        lab.mount(0).display(),
        lab.sites().join(", ")
    ));
    Ok(())
}

fn status(lab: &Lab, json: bool) -> Result<()> {
    let all = lab.statuses();
    if json {
        let map: serde_json::Map<String, serde_json::Value> =
            all.iter().map(|(site, s)| (site.to_string(), serde_json::to_value(s).unwrap_or_default())).collect();
        say_json(&map.into());
        return Ok(());
    }
    for (i, (site, s)) in all.iter().enumerate() {
        let gap = if i > 0 { "\n" } else { "" };
        match s {
            Some(s) => say(format!("{gap}{}", table::status(s, None, Look::of_stdout()))),
            None => say(format!("{gap}site {site}   not running\n")),
        }
    }
    Ok(())
}

/// `kagami demo`.
pub fn demo(a: &DemoArgs) -> Result<()> {
    let line = Line::interruptible()?;
    let colour = Look::of_stdout().colour;
    let stage = Stage { say: &|s| line.say(s), notify: &|s| line.set(s), colour, fast: a.fast };
    demo::run(a.dir.as_deref(), &stage)
}
