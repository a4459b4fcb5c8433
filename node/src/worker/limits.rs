//! Bounds of an evaluation's side of a session.

/// Messages that wait to be sent. An evaluation that instantiates faster than the node stores waits.
pub const OUTBOX_MESSAGES: usize = 4096;

/// Messages in one batch: enough for one sync of the store to serve many small files.
pub const BATCH_MESSAGES: usize = 2048;

/// Bytes of texts in one batch, well below what the node takes at once.
pub const BATCH_TEXT_BYTES: usize = 4 << 20;

/// Largest archive of a source that is held in memory and sent while the evaluation goes on. Nearly all sources of
/// packages are patches and scripts far below it.
pub const OFFER_BYTES: usize = 256 << 10;

/// Sources on their way at once: enough to share the store's syncs, few enough for a connection each.
pub const OFFERS: usize = 16;

/// How often a source that changes while it is read is read again before the command gives up.
pub const SOURCE_TRIES: usize = 3;

/// Fetches at once: as many as keep a link busy, few enough that no server takes it for an attack.
pub const FETCHES: usize = 8;
