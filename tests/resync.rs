//! Resync, initial copy and catch-up between the nodes of a real lab: what they cost (G4), what is seen meanwhile (G2),
//! what happens when there is no room or no speed (G8), and what is kept of a losing side (G6).

#[path = "resync/bed.rs"]
mod bed;
#[path = "resync/exact.rs"]
mod exact;
#[path = "resync/points.rs"]
mod points;
#[path = "resync/slow.rs"]
mod slow;
mod support;
