//! Bounds of the gateway, each with its reason.

use std::time::Duration;

/// Connections at once. A command holds one for its events and a few while it sends; sixty commands
/// on one machine are more than its cores can serve.
pub const CONNECTIONS: usize = 256;

/// Idle connections that a client keeps for its next request. Its evaluator sends from one thread,
/// its progress asks from another; more would only hold descriptors.
pub const IDLE_CONNECTIONS: usize = 4;

/// Bytes of a request's first line and headers together. The longest address names a source with a
/// store path name (211 bytes), a fingerprint and a hash; curl adds some hundred bytes.
pub const HEADER_BYTES: usize = 16 << 10;

/// Headers of one request. curl sends four.
pub const HEADERS: usize = 64;

/// Bytes of a JSON request body: options of a session, a fingerprint, a link.
pub const JSON_BYTES: usize = 64 << 10;

/// Bytes of a question about paths: 65,536 paths with names of average length.
pub const PATH_QUERY_BYTES: usize = 4 << 20;

/// Bytes of one batch from an evaluation. It must hold the largest derivation
/// ([`DERIVATION_BYTES`](tvix_node_protocol::limits::DERIVATION_BYTES)) alone, with its envelope.
pub const BATCH_BYTES: usize = tvix_node_protocol::limits::DERIVATION_BYTES + (1 << 20);

/// Nesting of a batch: a list of variants with fields that are lists of paths.
pub const BATCH_DEPTH: usize = tvix_node_protocol::limits::CBOR_DEPTH;

/// Bytes of one source's archive. The largest sources people build from (a browser, a game's
/// assets) have a few gigabytes; what is larger is a mistake such as `src = /;`.
pub const ARCHIVE_BYTES: u64 = 256 << 30;

/// Bytes of an answer in JSON. The largest is what is known of [`PATH_QUERY_BYTES`] of paths.
pub const ANSWER_BYTES: usize = 256 << 20;

/// Bytes of one event. The largest list a step's derivations, or the last 25 lines of a log.
pub const EVENT_BYTES: usize = 16 << 20;

/// Bytes of a log in one chunk of an answer: one pipe's worth.
pub const LOG_CHUNK: usize = 64 << 10;

/// Chunks of an archive under way between the thread that writes it and the socket. Together with
/// [`UPLOAD_CHUNK`] this is what an upload may hold in memory.
pub const UPLOAD_CHUNKS: usize = 4;

/// Bytes of one such chunk: large enough that a chunk's overhead does not show.
pub const UPLOAD_CHUNK: usize = 256 << 10;

/// How long a session may be open without anybody reading its events. The command asks for them
/// at once; whoever uses curl has the time to paste a second command.
pub const UNWATCHED_SESSION: Duration = Duration::from_secs(60);

/// How long a command waits for the answer to whether a node is there: longer than a node may take to start, which listens
/// before it answers.
pub const FIRST_ANSWER: Duration = Duration::from_secs(90);

/// How long a stopping node lets its clients read the end of their answers.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// How long the listener rests after the kernel refused a connection for want of descriptors or
/// memory, so that it does not spin.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Bytes of a socket's path, less the final NUL (`sun_path` in unix(7)).
pub const SOCKET_PATH_BYTES: usize = 107;
