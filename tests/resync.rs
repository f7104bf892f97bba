//! Resync, initial copy and catch-up between the nodes of a real lab: what they cost (G4), what is seen meanwhile (G2),
//! what happens when there is no room or no speed (G8), and what is kept of a losing side (G6).

mod bed;
mod exact;
mod points;
mod slow;
use crate::support;
