//! kagami (鏡): a mounted mirror. One volume, three sites, and a resync that copies only what changed.
//!
//! Floors, lower never imports higher: [`base`] → [`mod@format`] → [`pair`] → [`os`] → [`store`] → [`net`] → [`volume`]
//! → [`node`] → [`fs`] → [`launch`] → [`site`] → [`cli`]. `docs/ARCHITECTURE.md` tells the way of one write through them.

pub mod base;
pub mod cli;
pub mod format;
pub mod fs;
pub mod launch;
pub mod net;
pub mod node;
pub mod os;
pub mod pair;
pub mod site;
pub mod store;
pub mod volume;
