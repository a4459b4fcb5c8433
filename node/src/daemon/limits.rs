//! Bounds of a node, each with its reason.

use std::time::Duration;

/// Messages that wait for the engine. Whoever sends more waits: that is how a fast evaluation or a
/// loud build is slowed down to what the node can take.
pub const ENGINE_MESSAGES: usize = 1024;

/// Events that wait for a command which reads slowly. A terminal that is stopped must not fill the
/// node's memory: past this many, log lines are left out (the log itself has them all).
pub const SESSION_EVENTS: usize = 16_384;

/// Log lines and the like of one build that wait for the engine.
pub const BUILD_EVENTS: usize = 256;

/// How long a node that stops by itself waits for the next command. Long enough for a script that
/// runs one command after the other, short enough that nobody wonders what still runs.
pub const IDLE: Duration = Duration::from_secs(15);

/// How long a node that goes down waits for its builds to be killed.
pub const FAREWELL: Duration = Duration::from_secs(10);

/// Paths of one question about presence that are answered together where caches are asked.
pub const PRESENCE_PART: usize = 64;

/// Steps of one fetch from caches that wait for the engine.
pub const FETCH_STEPS: usize = 256;

/// How often the engine looks after what waits.
pub const TICK: Duration = Duration::from_millis(100);

/// Identities of derivations that are remembered for checking output paths. All of nixpkgs for one
/// system fits.
pub const REMEMBERED_DERIVATIONS: usize = 400_000;

/// How often it is written down how long builds took, besides at the end: what a power cut takes is worse guesses.
pub const DURATIONS_KEPT: Duration = Duration::from_secs(600);

/// Longest sleep of an engine that waits for nothing. A clock that jumps is noticed at least so often.
pub const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Log lines of a build that wait for the word that it has started. It comes within a few
/// milliseconds; a builder that floods its log meanwhile is shown at once.
pub const EARLY_LINES: usize = 256;

/// Places at which an output that was built again differs, as a command is told them: enough to see what
/// kind of difference it is. The output itself is kept for more.
pub const DIFFERENT_PLACES: usize = 20;

/// Characters of such a place: a name of the length that people choose, and how it differs.
pub const DIFFERENT_PLACE: usize = 500;

/// Bytes of the disk that nothing that arrives takes: the store's index cannot be written on a full one, and logs of builds
/// that go on need some.
pub const LEFT_FREE: u64 = 4 * tvix_node_store::limits::RESERVED_BYTES;
