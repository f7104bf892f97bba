//! Every bound, named, with its unit.

use std::time::Duration;

/// Longest name component (NAME_MAX of Linux filesystems), bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest symlink target (PATH_MAX), bytes.
pub const SYMLINK_BYTES_MAX: usize = 4096;
/// Longest extended attribute value (XATTR_SIZE_MAX), bytes.
pub const XATTR_BYTES_MAX: usize = 65536;
/// Largest data part of one entry, bytes (the kernel sends at most 1 MiB by default).
pub const ENTRY_DATA_BYTES_MAX: usize = 4 << 20;
/// Largest frame body on the wire, bytes.
pub const FRAME_BYTES_MAX: usize = 8 << 20;
/// Largest encoded control message, bytes.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Longest word of a peer for people (why it refuses, why it suspends), bytes; the rest is cut off.
pub const WORDS_BYTES_MAX: usize = 8 << 10;
/// Connections that have not said yet who they are, count; one more pushes the oldest of them out.
pub const STRANGERS_MAX: usize = 64;
/// Messages of a peer that wait for whoever asked for them, count; then nothing more is read from it.
pub const ANSWERS_WAITING_MAX: usize = 16;
/// Names that a peer tells of its tree in one answer, count: more than a volume has.
pub const NAMES_TOLD_MAX: usize = 100_000_000;
/// Records of a peer's journal, bytes: more than any journal holds by its default limit.
pub const JOURNAL_ANSWER_BYTES_MAX: u64 = 1 << 30;
/// Granule of the change journal's data marks, bytes (G4 allows 128 KiB more per changed range).
pub const MARK_GRANULE_BYTES: u64 = 64 << 10;
/// Block in which a resync compares contents, and in which holes are kept equal, bytes.
pub const COMPARE_BLOCK_BYTES: u64 = 4096;
/// Entries kept in memory for peers that lag, bytes; beyond it they are spooled.
pub const QUEUE_MEMORY_BYTES_MAX: u64 = 64 << 20;
/// Entries beyond that which may wait in memory until the spool has them, bytes.
pub const SPOOL_WAITING_BYTES_MAX: u64 = 64 << 20;
/// What an entry in memory takes beside its frame, bytes, as far as it is counted.
pub const ENTRY_MEMORY_BYTES: u64 = 128;
/// Default limit of the spool on disk, bytes; beyond it the pair is "behind".
pub const SPOOL_BYTES_MAX: u64 = 256 << 20;
/// Size of a segment of the spool: an eighth of the spool within these, bytes.
pub const SPOOL_SEGMENT_BYTES: (u64, u64) = (1 << 20, 32 << 20);
/// The spool leaves a twentieth of its filesystem free, at least and at most this, bytes.
pub const SPOOL_RESERVE_BYTES: (u64, u64) = (64 << 20, 4 << 30);
/// Smallest segment of the entry log, bytes.
pub const LOG_SEGMENT_BYTES_MIN: u64 = 4 << 20;
/// Size at which a segment of the entry log is closed, bytes.
pub const LOG_SEGMENT_BYTES: u64 = 64 << 20;
/// Change journal: an interval is closed after this many bytes of records.
pub const JOURNAL_INTERVAL_BYTES: u64 = 4 << 20;
/// Change journal: an interval is closed after this time.
pub const JOURNAL_INTERVAL: Duration = Duration::from_secs(10);
/// Between two checkpoints: what a power cut can undo is not much older.
pub const CHECKPOINT: Duration = Duration::from_secs(5);
/// Heartbeat period of a link.
pub const HEARTBEAT: Duration = Duration::from_millis(1000);
/// A link without any byte for this long is broken.
pub const LINK_TIMEOUT: Duration = Duration::from_secs(5);
/// The oldest unacknowledged entry may be this old before the pair is suspended.
pub const PROGRESS_TIMEOUT: Duration = Duration::from_secs(30);
/// The same for an fsync.
pub const FSYNC_TIMEOUT: Duration = Duration::from_secs(60);
/// Entries sent in one batch, bytes.
pub const BATCH_BYTES: usize = 1 << 20;
/// Entries sent in one batch, count.
pub const BATCH_ENTRIES: usize = 256;
