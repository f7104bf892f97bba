//! What a greeting says of the volumes, and the check on receipt: each volume that comes finds its region through the
//! receiver's own pair table, by primary port and primary LU (CD-13), and its config definition must fit the receiver's
//! own volume definition table (CD-5) before anything else of it is accepted.

use super::pairs::{Ends, Pair};
use crate::base::Result;
use crate::format::msg::{Hello, Offered, RejectCode, VERSION, Wish};
use crate::pair::state::Mode;
use crate::store::replica::Replica;

/// The greeting of the side with the primary region, or of whoever wants something else of the other site.
pub fn hello(site: &str, pair: &Pair, replica: &Replica, wish: Wish) -> Result<Hello> {
    let mut volumes = Vec::new();
    for (region, ends) in replica.regions.iter().zip(&pair.ends) {
        let head = region.head()?.map(|h| h.body()).transpose()?;
        let (port, lu) = ends.here.clone();
        volumes.push(Offered { name: ends.name.clone(), port, lu, head });
    }
    let m = replica.order();
    Ok(Hello {
        version: VERSION,
        site: site.to_owned(),
        group: replica.group.clone(),
        group_id: replica.group_id(),
        pair: pair.name.clone(),
        is_async: pair.mode == Mode::Async,
        volumes,
        chain: m.state.chain.clone(),
        head: m.live.last_seq(),
        wish,
    })
}

/// Why a greeting is refused.
type Refusal = (RejectCode, String);

/// Finds the region of every volume that comes, and checks what is to be stored there.
///
/// # Errors
/// What does not fit, and what would, for people at both ends.
pub fn check(site: &str, pair: &Pair, hello: &Hello, replica: &Replica) -> std::result::Result<(), Refusal> {
    for (i, o) in hello.volumes.iter().enumerate() {
        find(site, pair, hello, i, o)?;
    }
    if let Some(missing) = pair.ends.get(hello.volumes.len()) {
        return Err(unknown(
            site,
            hello,
            format!(
                "volume {} ({}) has no counterpart there; write a [[group.volume]] with port = {:?} and lu = {} at site {}, or remove it here",
                missing.name,
                shown(&missing.here),
                missing.there.0,
                missing.there.1,
                hello.site
            ),
        ));
    }
    for (region, o) in replica.regions.iter().zip(&hello.volumes) {
        let Some(body) = &o.head else {
            let text = format!(
                "site {site}: no config definition came for volume {}, and nothing of it is accepted before",
                o.name
            );
            return Err((RejectCode::DoesNotFit, text));
        };
        region.check_head(body).map_err(|e| (RejectCode::DoesNotFit, e.to_string()))?;
    }
    Ok(())
}

fn find(site: &str, pair: &Pair, hello: &Hello, i: usize, o: &Offered) -> std::result::Result<(), Refusal> {
    let came = format!("{}/{}", o.port, o.lu);
    match pair.ends.iter().position(|e| e.there.0 == o.port && e.there.1 == o.lu) {
        Some(j) if i == j => Ok(()),
        Some(j) => Err(unknown(
            site,
            hello,
            format!(
                "{came} is volume number {} there and number {} here: put the [[group.volume]] tables into the same order at both sites",
                i + 1,
                j + 1
            ),
        )),
        None => {
            let known: Vec<String> = pair.ends.iter().map(|e| format!("{} ({})", shown(&e.there), e.name)).collect();
            Err(unknown(
                site,
                hello,
                format!(
                    "{came} (volume {} there) is in no record; known are {}. Write remote = {came:?} for the volume it belongs to, in a [[group.pair.volume]] of pair {} in the site file of {site}",
                    o.name,
                    known.join(", "),
                    pair.name
                ),
            ))
        }
    }
}

fn unknown(site: &str, hello: &Hello, what: String) -> Refusal {
    let text = format!(
        "site {site}, pair table of group {}, pair {} with site {}: {what}",
        hello.group, hello.pair, hello.site
    );
    (RejectCode::UnknownPair, text)
}

fn shown((port, lu): &(String, u32)) -> String {
    format!("{port}/{lu}")
}

/// The ends of a pair's volumes that are called the same at both, as those of a mirror group's own legs are.
pub fn same_ends<'a>(volumes: impl Iterator<Item = &'a super::config::VolumeConfig>) -> Vec<Ends> {
    let ends = |v: &super::config::VolumeConfig| (v.port.clone(), v.lu);
    volumes.map(|v| Ends { name: v.name.clone(), here: ends(v), there: ends(v) }).collect()
}
