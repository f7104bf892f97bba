//! `pairdisplay`: one line for each end of each volume, in the columns of CCI.

use super::options::Given;
use super::targets::{Key, Target};
use crate::node::status::VolumeEnds;
use crate::pair::horcm::{Attr, Status, Vol};

/// One end of one volume.
struct Line<'a> {
    group: String,
    volume: &'a str,
    side: char,
    port: &'a str,
    lu: u32,
    site: &'a str,
    vol: Vol,
    fence: &'static str,
    peer_site: &'a str,
    peer_lu: u32,
    percent: String,
    mount: String,
    ctg: usize,
    linked: bool,
}

/// The lines; false when the other end of a pair is left out because nothing is known of it.
pub fn text(targets: &[Target<'_>], keys: &[Key], site: &str, given: &Given) -> (String, bool) {
    let mut lines = Vec::new();
    let mut all = true;
    for (t, k) in targets.iter().zip(keys) {
        let other = t.other();
        all &= other.is_some() || given.has("l");
        for v in t.pair.volumes.iter().filter(|v| k.volume.as_ref().is_none_or(|name| *name == v.name)) {
            lines.push(line(t, v, 'L', t.vol, site));
            if let Some(vol) = other.filter(|_| !given.has("l")) {
                lines.push(line(t, v, 'R', vol, site));
            }
        }
    }
    let form = Form::new(given);
    let mut out = form.head();
    out.push('\n');
    for l in &lines {
        out += form.line(l).trim_end();
        out.push('\n');
    }
    (out, all)
}

fn line<'a>(t: &Target<'a>, v: &'a VolumeEnds, side: char, vol: Vol, site: &'a str) -> Line<'a> {
    // What the node calls primary is the end that sends; a secondary that took over sends as well.
    let sends_here = t.pair.direction == "out";
    let primary = (v.primary_port.as_str(), v.primary_lu);
    let secondary = (v.secondary_port.as_str(), v.secondary_lu);
    let (here, there) = if sends_here { (primary, secondary) } else { (secondary, primary) };
    let ((port, lu), (_, peer_lu)) = if side == 'L' { (here, there) } else { (there, here) };
    let (own, peer) = if side == 'L' { (site, t.pair.peer.as_str()) } else { (t.pair.peer.as_str(), site) };
    let done = t.pair.progress.as_ref().filter(|p| p.total_bytes > 0);
    let percent = match (vol.status, done) {
        (Status::Pair, _) => "100".to_owned(),
        (Status::Copy, Some(p)) => (p.done_bytes.saturating_mul(100) / p.total_bytes).min(100).to_string(),
        (Status::Copy, None) => "0".to_owned(),
        _ => "-".to_owned(),
    };
    let mount = t.group.mounts.iter().find(|m| side == 'L' && m.volume == v.name);
    let several = t.group.pairs.iter().filter(|p| p.direction != "none").count() > 1;
    Line {
        group: if several { t.name() } else { t.group.name.clone() },
        volume: &v.name,
        side,
        port,
        lu,
        site: own,
        vol,
        fence: t.fence(),
        peer_site: peer,
        peer_lu,
        percent,
        mount: mount.map_or_else(|| "Unknown".into(), |m| m.dir.display().to_string()),
        ctg: t.ctg,
        linked: t.pair.linked,
    }
}

/// Which columns.
struct Form {
    copied: bool,
    hex: bool,
    device: bool,
    extended: bool,
    plain: bool,
}

impl Form {
    fn new(given: &Given) -> Form {
        let f = |c| given.word("f").is_some_and(|l| l.contains(c));
        Form { copied: f('c'), hex: f('x'), device: f('d'), extended: f('e'), plain: given.has("CLI") }
    }

    fn head(&self) -> String {
        let place = match (self.device, self.plain) {
            (true, true) => "Device_File",
            (true, false) => "Device_File         ",
            (false, true) => "Port# TID LU",
            (false, false) => "(Port#,TID, LU)",
        };
        let extended = if self.extended { " CTG AP" } else { "" };
        match self.plain {
            true => format!(
                "Group PairVol L/R {place} Seq# LDEV# P/S Status Fence {} P-LDEV# M{extended}",
                if self.copied { "%" } else { "Seq#" }
            ),
            false => format!(
                "Group            PairVol(L/R) {place},Seq#     ,LDEV#.P/S,Status,Fence, {},P-LDEV# M{extended}",
                if self.copied { "   %" } else { "    Seq#" }
            ),
        }
    }

    fn number(&self, lu: u32) -> String {
        if self.hex { format!("{lu:x}") } else { lu.to_string() }
    }

    fn line(&self, l: &Line<'_>) -> String {
        let simplex = l.vol.attr == Attr::Smpl;
        let dashes = |s: &str| if simplex { "-----".to_owned() } else { s.to_owned() };
        let (fence, peer_lu) = (dashes(l.fence), dashes(&self.number(l.peer_lu)));
        let other = if self.copied { l.percent.clone() } else { dashes(l.peer_site) };
        // W: the secondary can be written to.
        let m = if l.vol.status == Status::Ssws { "W" } else { "-" };
        let ctg = if l.fence == "ASYNC" { l.ctg.to_string() } else { "-".into() };
        let extended = if self.extended { format!(" {ctg:>3} {:>2}", u8::from(l.linked)) } else { String::new() };
        let (attr, status) = (l.vol.attr_name(), l.vol.status_name());
        let lu = self.number(l.lu);
        if self.plain {
            let place = if self.device { l.mount.clone() } else { format!("{} 0 {}", l.port, l.lu) };
            return format!(
                "{} {} {} {place} {} {lu} {attr} {status} {fence} {other} {peer_lu} {m}{extended}",
                l.group, l.volume, l.side, l.site
            );
        }
        let place =
            if self.device { format!("{:<20}", l.mount) } else { format!("({:<5},{:>3},{:>3})", l.port, 0, l.lu) };
        let name = format!("{}({})", l.volume, l.side);
        let width = if self.copied { 4 } else { 8 };
        format!(
            "{:<16} {name:<12} {place} {:<9} {lu:>5}.{attr:<5} {status:<4} {fence:<5},{other:>width$} {peer_lu:>7} {m}{extended}",
            l.group, l.site
        )
    }
}
