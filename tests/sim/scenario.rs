//! One seed: three sites come up, clients work, faults and orders come, all faults end, everything must heal.

use super::chart::CHART;
use super::client::{self, CLIENTS};
use super::faults::{self, Drawn};
use super::oracle;
use super::rng::Rng;
use super::room;
use super::world::{self, Plan};
use std::time::Duration;

/// What a seed drew, for people.
pub fn told(seed: u64) -> String {
    let mut rng = Rng::new(seed);
    let (plan, drawn) = (Plan::draw(&mut rng), Drawn::draw(&mut rng));
    format!("{plan:?} {drawn:?}")
}

/// The whole run; what was broken is noted in [`CLIENTS`].
pub fn run(seed: u64) {
    let mut rng = Rng::new(seed);
    let plan = Plan::draw(&mut rng);
    let drawn = Drawn::draw(&mut rng);
    room::trace(format!("{plan:?} {drawn:?}"));
    CHART.with(|c| c.voted = plan.voted);
    if let Err(why) = course(&plan, &drawn, seed, &mut rng) {
        client::fail(why);
    }
}

fn course(plan: &Plan, drawn: &Drawn, seed: u64, rng: &mut Rng) -> Result<(), String> {
    world::build(plan);
    world::begin(seed)?;
    faults::play(drawn, plan.voted, seed, rng);
    faults::end_all(seed);
    room::sleep(Duration::from_millis(rng.below(1000)));
    // While everything heals the clients go on; then they stop, and the last of it arrives.
    oracle::heal(seed)?;
    oracle::still();
    oracle::heal(seed)?;
    match CLIENTS.with(|c| c.failure.clone()) {
        None => oracle::final_checks(),
        Some(_) => Ok(()),
    }
}
