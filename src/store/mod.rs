//! A replica on disk: regions with their plain trees, directory ids, change journal, entry log, epochs.

pub mod content;
pub mod exec;
pub mod files;
pub mod head;
pub mod idtable;
pub mod journal;
pub mod live;
pub mod log;
pub mod receive;
pub mod region;
pub mod replica;
pub mod room;
pub mod watch;
