//! Bounds of what is done with upstream caches, each with its reason.

use std::time::Duration;

/// Caches at once, those of all sessions included. People configure a handful.
pub const CACHES: usize = 64;

/// Questions to one cache at once, each a connection: as many as make a round trip of 50 ms cost nothing
/// against what a small server can answer.
pub const QUESTIONS: usize = 48;

/// Paths that are asked for at once, over all caches.
pub const ASKED: usize = 256;

/// How long a cache may take to say whether it has a path. Far below what the coordinator waits for an
/// answer; a cache that is slower than that is slower than most builds.
pub const ANSWER_PATIENCE: Duration = Duration::from_secs(4);

/// How long a cache is skipped after it failed; each further failure in a row doubles it.
pub const SKIPPED: Duration = Duration::from_secs(30);

/// The longest time that a cache is skipped before it is tried again.
pub const SKIPPED_MOST: Duration = Duration::from_secs(600);

/// Answers of one cache that are remembered: about a kilobyte each.
pub const REMEMBERED: usize = 32_768;

/// How long it is remembered that a cache has a path: between the question and the fetch.
pub const REMEMBER_THERE: Duration = Duration::from_secs(600);

/// How long it is remembered that a cache does not have a path: somebody may be filling it.
pub const REMEMBER_ABSENT: Duration = Duration::from_secs(60);

/// Archives that are on their way at once.
pub const DOWNLOADS: usize = 16;

/// Bytes with which a download moves on; with less, within [`HEDGE_AFTER`] and [`STANDSTILL`], it stands still: a slow
/// line brings more, and a server could keep a build waiting for ever.
pub const LEAST_MOVE: u64 = 16 << 10;

/// How often it is looked whether a download still comes. One that stood still for so long gets a rival
/// from another cache.
pub const HEDGE_AFTER: Duration = Duration::from_secs(2);

/// How long a download may stand still before it is given up.
pub const STANDSTILL: Duration = Duration::from_secs(30);

/// Paths in one closure.
pub const CLOSURE: usize = tvix_node_protocol::limits::CLOSURE_PATHS;

/// Bytes of `nix-cache-info`. It has three short lines.
pub const CACHE_INFO_BYTES: usize = 64 << 10;

/// Bytes of the archive of a path whose cache no key vouches for, whatever it says itself: sources and what a build
/// may fetch. The largest (browsers, collections of fonts and of TeX) have some GB.
pub const UNSIGNED_BYTES: u64 = 16 << 30;

/// Bytes of the archive of a path that a key vouches for: as of one that a member of the team has.
pub const SIGNED_BYTES: u64 = tvix_node_store::limits::ARRIVED_BYTES;
