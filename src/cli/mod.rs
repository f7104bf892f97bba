//! The command line.

mod args;
mod args_lab;
mod args_loss;
mod args_procedure;
mod events;
mod fstab;
mod horcm;
mod lab;
mod launch;
mod loss;
mod mount;
mod mount_helper;
mod mount_options;
mod node;
mod peer;
mod procedure;
mod show;
pub mod table;
mod table_launch;
mod wait;

use crate::base::{Error, Result};
use crate::node::config::Config;
use crate::node::control::{self, Request};
use args::{Cli, Command, ConfigCommand, JournalCommand, LegCommand, PairCommand, RegionCommand};
use clap::{CommandFactory, Parser};
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Where a site file is looked for when neither `--config` nor `$KAGAMI_CONFIG` names one.
const CONFIG_PLACES: [&str; 2] = ["site.toml", "/etc/kagami/site.toml"];

/// Manual pages of what is no command.
const PAGES: [(&str, &str); 2] = [
    ("mount.kagami.8", include_str!("../../docs/man/mount.kagami.8")),
    ("site.toml.5", include_str!("../../docs/man/site.toml.5")),
];

/// The site file of a machine, or of an ordinary user, when nothing names one: what mount(8) is served from.
fn default_config() -> PathBuf {
    if crate::os::sys::ids().0 == 0 {
        return "/etc/kagami/site.toml".into();
    }
    // mount(8) leaves its helpers no environment.
    let own = || crate::os::user::own().ok().flatten().map(|u| u.home);
    let home = || std::env::var_os("HOME").map(PathBuf::from).or_else(own).map(|h| h.join(".config"));
    let base = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|p| p.is_absolute()).or_else(home);
    base.unwrap_or_else(|| "/".into()).join("kagami/site.toml")
}

/// Parses the arguments, runs the command, prints its error; the exit code is that of [`Error::exit_code`].
pub fn main() -> ExitCode {
    if let Some(args) = mount_helper::called(&std::env::args_os().collect::<Vec<_>>()) {
        return mount_helper::main(args);
    }
    if let Some(args) = horcm::called(&std::env::args_os().collect::<Vec<_>>()) {
        return horcm::main(None, &args);
    }
    let cli = Cli::parse();
    if !matches!(cli.command, Command::Node(_)) {
        env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    }
    match run(cli) {
        Ok(code) => code,
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "kagami: {}", e.msg);
            ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(1))
        }
    }
}

/// Prints; a reader that went away is no error.
pub(crate) fn say(text: impl AsRef<str>) {
    let mut o = std::io::stdout().lock();
    let _ = o.write_all(text.as_ref().as_bytes()).and_then(|()| o.flush());
}

/// Prints JSON on one line.
pub(crate) fn say_json(v: &Value) {
    say(format!("{v}\n"));
}

/// The site file of this command.
struct Site {
    config: Config,
}

impl Site {
    fn load(given: Option<&Path>) -> Result<Site> {
        let path = match given.map(Path::to_owned).or_else(|| std::env::var_os("KAGAMI_CONFIG").map(PathBuf::from)) {
            Some(p) => p,
            None => CONFIG_PLACES.iter().map(PathBuf::from).find(|p| p.exists()).ok_or_else(|| {
                Error::config("no site file: give --config FILE, set $KAGAMI_CONFIG, or make ./site.toml or /etc/kagami/site.toml")
            })?,
        };
        Ok(Site { config: Config::load(&path)? })
    }

    fn call(&self, req: &Request) -> Result<Value> {
        control::call(&self.config.node.state_dir, req, |_| ()).map_err(|e| self.hint(e))
    }

    /// Says with which file to start the node.
    fn hint(&self, mut e: Error) -> Error {
        if control::is_not_running(&e) {
            e.msg = e.msg.replace("FILE", &self.config.path.display().to_string());
        }
        e
    }

    /// A group and, if given, one of its pairs; unknown names are wrong usage.
    fn check_pair(&self, group: &str, pair: Option<&str>) -> Result<()> {
        let g = self.config.group(group)?;
        match pair {
            Some(p) if !g.pairs.iter().any(|x| x.name == p) => {
                let known: Vec<&str> = g.pairs.iter().map(|x| x.name.as_str()).collect();
                Err(Error::config(format!("no pair {p:?} in group {group}: it has {}", known.join(", "))))
            }
            _ => Ok(()),
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    let site = || Site::load(cli.config.as_deref());
    let done = match cli.command {
        Command::Node(a) => node::run(site()?.config, &a),
        Command::Mount { what, dir: Some(dir), options, fstab } => {
            mount::mount(&site()?, &what, &dir, &options, &fstab)
        }
        Command::Mount { what, dir: None, options, fstab } if options.is_empty() && !fstab.update_fstab => {
            launch::now(&site()?, &what, false)
        }
        Command::Mount { dir: None, .. } => {
            Err(Error::config("options need the directory: `kagami mount GROUP DIR -o ...`"))
        }
        Command::Umount { what, fstab } => mount::umount(&site()?, &what, &fstab),
        Command::Boot(a) => launch::boot(&site()?, &a),
        Command::App(c) => launch::app(&site()?, c),
        Command::Define(a) => launch::define(&site()?, &a),
        Command::Adopt(a) => {
            launch::adopt(cli.config.or_else(|| std::env::var_os("KAGAMI_CONFIG").map(PathBuf::from)), &a)
        }
        Command::Status(a) => show::status(&site()?, &a),
        Command::Events { group, follow, since, json } => {
            events::events(&site()?, group.as_deref(), since.as_deref(), follow, json)
        }
        Command::Pair(c) => pair(&site()?, c),
        Command::Takeover(a) => procedure::takeover(&site()?, a),
        Command::Failback(a) => procedure::failback(&site()?, a),
        Command::Swap(a) => procedure::swap(&site()?, a),
        Command::Verify { group, pair, repair, json } => show::verify(&site()?, group, pair, repair, json),
        Command::Journal(c) => journal(&site()?, c),
        Command::Loss(c) => loss::run(&site()?, c),
        Command::Why { file, json } => {
            // A relative name means the caller's directory, not the node's.
            let path = std::path::absolute(&file)?;
            show::print(site()?.call(&Request::Why { path })?, json);
            Ok(())
        }
        Command::Peer(c) => peer::run(&site()?, c),
        Command::Keygen { force } => peer::keygen(&site()?, force),
        Command::Config(ConfigCommand::Check) => show::config_check(&site()?.config),
        Command::Config(ConfigCommand::Show) => {
            say(site()?.config.to_toml());
            Ok(())
        }
        Command::Config(ConfigCommand::Import { file, peers, secondary, regions }) => {
            say(horcm::import::import(&file, &peers, secondary, &regions)?);
            Ok(())
        }
        Command::Region(RegionCommand::Create { group }) => region_create(&site()?.config, group.as_deref()),
        Command::Leg(c) => leg(&site()?, c),
        Command::Lab(c) => lab::run(c),
        Command::Demo(a) => lab::demo(&a),
        Command::Guard { name } => crate::launch::guard::run().map_err(|e| e.context(format!("guard of {name}"))),
        // With exit codes of its own.
        Command::Horcm { args } => return Ok(horcm::main(cli.config.as_deref(), &args)),
        Command::Completions { shell } => {
            let mut out = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "kagami", &mut out);
            say(String::from_utf8_lossy(&out));
            Ok(())
        }
        Command::Man { dir } => man(dir.as_deref()),
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn pair(site: &Site, c: PairCommand) -> Result<()> {
    let (req, done) = match c {
        PairCommand::Create { group, pair, no_copy, no_verify } => {
            (Request::PairCreate { group, pair, no_copy, no_verify }, "created")
        }
        PairCommand::Split { group, pair } => (Request::PairSplit { group, pair }, "split"),
        PairCommand::Resync { group, pair, in_place, keep } => {
            (Request::PairResync { group, pair, in_place, keep }, "resync started")
        }
        PairCommand::Delete { group, pair } => (Request::PairDelete { group, pair }, "deleted"),
        PairCommand::Swap { group, pair } => (Request::PairSwap { group, pair }, "roles changed"),
        PairCommand::Wait { group, pair, state, timeout } => {
            site.check_pair(&group, pair.as_deref())?;
            return wait::pair(site, &group, pair.as_deref(), &state, timeout);
        }
    };
    let (Request::PairCreate { group, pair, .. }
    | Request::PairSplit { group, pair }
    | Request::PairResync { group, pair, .. }
    | Request::PairDelete { group, pair }
    | Request::PairSwap { group, pair }) = &req
    else {
        return Err(Error::failed("not a command for a pair"));
    };
    site.check_pair(group, Some(pair))?;
    show::call_with_progress(site, &req)?;
    say(format!("pair {pair} of group {group}: {done}\n"));
    Ok(())
}

fn journal(site: &Site, c: JournalCommand) -> Result<()> {
    let (req, json) = match c {
        JournalCommand::Stat { group, json } => (Request::JournalStat { group }, json),
        JournalCommand::Show { group, limit, json } => (Request::JournalShow { group, limit }, json),
    };
    if let Request::JournalStat { group } | Request::JournalShow { group, .. } = &req {
        site.config.group(group)?;
    }
    show::print(site.call(&req)?, json);
    Ok(())
}

fn leg(site: &Site, c: LegCommand) -> Result<()> {
    let req = match c {
        LegCommand::Add { group, regions } => {
            let n = site.config.group(&group)?.volumes.len();
            if regions.len() != n {
                return Err(Error::config(format!(
                    "group {group} has {n} volume(s): give {n} region(s), not {}",
                    regions.len()
                )));
            }
            let utf8 = |p: &PathBuf| -> Result<String> {
                let abs = std::path::absolute(p)?;
                abs.to_str().map(str::to_owned).ok_or_else(|| Error::config(format!("{p:?} is not UTF-8")))
            };
            Request::LegAdd { group, regions: regions.iter().map(utf8).collect::<Result<_>>()? }
        }
        LegCommand::Remove { group, leg } => {
            site.config.group(&group)?;
            Request::LegRemove { group, leg }
        }
    };
    site.call(&req)?;
    say("done; `kagami status` shows it. Change the site file as well, for the next start\n");
    Ok(())
}

fn region_create(c: &Config, group: Option<&str>) -> Result<()> {
    if let Some(g) = group {
        c.group(g)?;
    }
    let made = crate::site::lab::make_regions(c, group)?;
    for r in &made {
        say(format!("made {}\n", r.display()));
    }
    if made.is_empty() {
        say("every region is there already\n");
    }
    Ok(())
}

fn man(dir: Option<&Path>) -> Result<()> {
    match dir {
        Some(d) => {
            std::fs::create_dir_all(d)?;
            clap_mangen::generate_to(Cli::command(), d)?;
            for (name, text) in PAGES {
                std::fs::write(d.join(name), text)?;
            }
        }
        None => {
            let mut out = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut out)?;
            say(String::from_utf8_lossy(&out));
        }
    }
    Ok(())
}
