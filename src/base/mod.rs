//! The ground floor: ids, bounds, errors, time. Imports nothing of kagami.

pub mod error;
pub mod ids;
pub mod limits;
pub mod planted;
pub mod size;
pub mod sync;
pub mod time;

pub use error::{At, Error, Kind, Result};
pub use ids::*;
