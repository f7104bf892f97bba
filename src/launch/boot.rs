//! Whether a group's volumes are mounted and its applications started by themselves (CD-6, CD-16): decided here, from what
//! the pair table says and what the site file wants, without any I/O.
//!
//! | pair state | counts as |
//! |---|---|
//! | COPY, PAIR, COPY (resync), SUSPENDING | active: nothing is mounted |
//! | PSUS, PSUE after the first copy | suspended |
//! | PSUS, PSUE before the first copy was complete | never in Duplex: nothing is mounted |
//! | SMPL | neither: there is no pair to wait for |

use crate::node::config::{LaunchConfig, OnSuspended};
use crate::pair::state::{Reason, State};
use std::time::Duration;

/// A pair that ends at this site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairView {
    /// Its name.
    pub name: String,
    /// The site at the other end.
    pub peer: String,
    /// Its state.
    pub state: State,
    /// How long nothing has been heard of the other end.
    pub silence: Duration,
}

/// What is to be done for a group whose site is a secondary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing, and there is nothing to say: the pairs copy.
    Active(String),
    /// Nothing yet, or nothing by itself: why.
    Wait(String),
    /// Somebody is to decide.
    Ask(String),
    /// Take over, mount, start.
    Mount(String),
}

/// What the voters let this site do, where takeover is automatic (G3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Votes {
    /// Nobody is asked: the policy of the site decides.
    None,
    /// The primary is lost, and this site may stand for it.
    Stand,
    /// It may not: why.
    Not(String),
}

/// Decides for a secondary. `ordered`: somebody gave the order to mount (CD-17), so that the policy of the site and the
/// time a lost primary gets do not count; what would be wrong all the same is still refused.
pub fn decide(pairs: &[PairView], launch: &LaunchConfig, ordered: bool, votes: &Votes) -> Decision {
    if *votes == Votes::Stand {
        return Decision::Mount("the primary is lost".into());
    }
    for p in pairs {
        match p.state {
            State::Copy | State::Pair | State::CopyResync | State::Suspending => {
                return Decision::Active(format!(
                    "pair {} is {}, which is active: nothing is mounted",
                    p.name, p.state
                ));
            }
            State::PsusCopy | State::PsueCopy(_) => {
                return Decision::Wait(format!(
                    "pair {} is {} and its first copy was never complete: nothing is mounted",
                    p.name, p.state
                ));
            }
            State::Psue(r) if r != Reason::LinkLost => {
                return Decision::Wait(format!(
                    "pair {} is {}: that is no lost primary; `kagami status` says what to do",
                    p.name, p.state
                ));
            }
            State::Psue(_) | State::Psus | State::Smpl => {}
        }
    }
    let lost: Vec<&PairView> = pairs.iter().filter(|p| matches!(p.state, State::Psue(_))).collect();
    let split: Vec<&PairView> = pairs.iter().filter(|p| p.state == State::Psus).collect();
    let why = words(&lost, &split);
    if ordered {
        return Decision::Mount(why);
    }
    if let Votes::Not(no) = votes {
        return Decision::Wait(format!("{why}; {no}"));
    }
    if lost.is_empty() && split.is_empty() {
        return Decision::Wait("the group has no pair that is suspended: nothing is mounted by itself".into());
    }
    let policy = [(lost.is_empty(), launch.on_lost_primary), (split.is_empty(), launch.on_suspend)];
    let weakest = policy.into_iter().filter(|(none, _)| !none).map(|(_, w)| w).min_by_key(|w| *w as u8);
    let left = lost.iter().map(|p| launch.lost_primary_after.saturating_sub(p.silence)).max().unwrap_or_default();
    match weakest {
        None | Some(OnSuspended::Wait) => Decision::Wait(why),
        Some(_) if !left.is_zero() => Decision::Wait(format!("{why}; it counts as lost in {} s", left.as_secs() + 1)),
        Some(OnSuspended::Ask) => Decision::Ask(why),
        Some(OnSuspended::Mount) => Decision::Mount(why),
    }
}

fn words(lost: &[&PairView], split: &[&PairView]) -> String {
    let mut parts: Vec<String> = Vec::new();
    for p in lost {
        parts.push(format!("pair {} lost site {} {} s ago", p.name, p.peer, p.silence.as_secs()));
    }
    for p in split {
        parts.push(format!("pair {} was suspended by order", p.name));
    }
    if parts.is_empty() { "no pair is in force".into() } else { parts.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(pairs: &[PairView], launch: &LaunchConfig, ordered: bool) -> Decision {
        super::decide(pairs, launch, ordered, &Votes::None)
    }

    const SILENT: Duration = Duration::from_secs(60);

    fn pair(name: &str, state: State) -> PairView {
        PairView { name: name.into(), peer: "primary".into(), state, silence: SILENT }
    }

    fn launch(lost: OnSuspended, split: OnSuspended) -> LaunchConfig {
        LaunchConfig { on_lost_primary: lost, on_suspend: split, ..LaunchConfig::default() }
    }

    const LOST: State = State::Psue(Reason::LinkLost);
    const MOUNT: OnSuspended = OnSuspended::Mount;

    #[test]
    fn cd6_b2_nothing_is_mounted_while_any_pair_is_active() {
        let all = launch(MOUNT, MOUNT);
        for active in [State::Copy, State::Pair, State::CopyResync, State::Suspending] {
            for other in [LOST, State::Psus, State::Smpl, State::Pair] {
                for pairs in [[pair("a", active), pair("b", other)], [pair("b", other), pair("a", active)]] {
                    for ordered in [false, true] {
                        let d = decide(&pairs, &all, ordered);
                        assert!(matches!(&d, Decision::Active(w) if w.contains("is active")), "{pairs:?}: {d:?}");
                    }
                }
            }
        }
        for pairs in
            [vec![LOST, LOST], vec![State::Psus, State::Psus], vec![LOST, State::Psus], vec![LOST, State::Smpl]]
        {
            let pairs: Vec<_> = pairs.into_iter().map(|s| pair("x", s)).collect();
            assert!(matches!(decide(&pairs, &all, false), Decision::Mount(_)), "{pairs:?}");
        }
    }

    #[test]
    fn cd16_what_never_was_in_duplex_and_what_is_no_lost_primary_is_not_mounted() {
        let all = launch(MOUNT, MOUNT);
        let mut states = vec![State::PsusCopy, State::PsueCopy(Reason::LinkLost)];
        states.extend(Reason::ALL.into_iter().filter(|r| *r != Reason::LinkLost).map(State::Psue));
        for s in states {
            for ordered in [false, true] {
                let d = decide(&[pair("a", LOST), pair("b", s)], &all, ordered);
                assert!(matches!(d, Decision::Wait(_)), "{s}: {d:?}");
            }
        }
        // Without any pair nothing happens by itself; by order it may (a replica that is all there is left).
        for pairs in [vec![], vec![pair("a", State::Smpl)]] {
            assert!(matches!(decide(&pairs, &all, false), Decision::Wait(_)));
            assert!(matches!(decide(&pairs, &all, true), Decision::Mount(_)));
        }
    }

    #[test]
    fn cd16_a_lost_primary_and_an_order_to_suspend_have_their_own_policies() {
        use OnSuspended::{Ask, Mount, Wait};
        let cases = [
            (LOST, Wait, Mount, "wait"),
            (LOST, Ask, Mount, "ask"),
            (LOST, Mount, Wait, "mount"),
            (State::Psus, Mount, Wait, "wait"),
            (State::Psus, Mount, Ask, "ask"),
            (State::Psus, Wait, Mount, "mount"),
        ];
        for (state, lost, split, want) in cases {
            let got = match decide(&[pair("a", state)], &launch(lost, split), false) {
                Decision::Active(_) => "active",
                Decision::Wait(_) => "wait",
                Decision::Ask(_) => "ask",
                Decision::Mount(_) => "mount",
            };
            assert_eq!(got, want, "{state} {lost:?} {split:?}");
            assert!(matches!(decide(&[pair("a", state)], &launch(lost, split), true), Decision::Mount(_)));
        }
        // Of both the more careful one.
        let both = [pair("a", LOST), pair("b", State::Psus)];
        assert!(matches!(decide(&both, &launch(Mount, Ask), false), Decision::Ask(_)));
        assert!(matches!(decide(&both, &launch(Wait, Mount), false), Decision::Wait(_)));
    }

    /// G3: with an arbiter a lost primary is taken over only with its vote, whatever the policy says.
    #[test]
    fn g3_where_votes_decide_the_policy_does_not() {
        for policy in [OnSuspended::Wait, OnSuspended::Ask, MOUNT] {
            let l = launch(policy, policy);
            for state in [LOST, State::Pair, State::Psus] {
                let p = [pair("a", state), pair("b", State::Smpl)];
                assert!(matches!(super::decide(&p, &l, false, &Votes::Stand), Decision::Mount(_)));
                let not = super::decide(&p, &l, false, &Votes::Not("no votes".into()));
                assert!(!matches!(not, Decision::Mount(_) | Decision::Ask(_)), "{policy:?} {state}: {not:?}");
            }
        }
    }

    #[test]
    fn cd16_a_lost_primary_gets_its_time_to_come_back() {
        let l = launch(MOUNT, MOUNT);
        let with = |s: u64| PairView { silence: Duration::from_secs(s), ..pair("a", LOST) };
        assert!(matches!(decide(&[with(9)], &l, false), Decision::Wait(w) if w.contains("counts as lost in 2 s")));
        assert!(matches!(decide(&[with(10)], &l, false), Decision::Mount(_)));
        assert!(matches!(decide(&[with(60), with(0)], &l, false), Decision::Wait(_)));
        assert!(matches!(decide(&[with(0)], &l, true), Decision::Mount(_)));
    }
}
