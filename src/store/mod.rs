//! A replica on disk: regions with their plain trees, directory ids, change journal, entry log, epochs.

pub mod activity;
pub mod before;
pub mod content;
pub mod doubt;
pub mod exec;
pub mod files;
pub mod glance;
pub mod head;
pub mod idtable;
pub mod journal;
pub mod kept;
pub mod live;
pub mod log;
pub mod loss;
mod mend;
pub mod power;
pub mod receive;
pub mod region;
pub mod replica;
pub mod room;
mod set_back;
pub mod space;
pub mod watch;
