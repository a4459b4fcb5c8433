//! Bounds of fetching.

use std::time::Duration;

/// How long what a URL or a branch gave counts as current, as in Nix (`tarball-ttl`).
pub const CURRENT: Duration = Duration::from_secs(60 * 60);

/// Bytes that a download may have, and that an archive may unpack to: far more than any source has.
pub const MOST_BYTES: u64 = 64 << 30;

/// Memory that unpacking xz may take, in KiB: `xz -9` needs 65 MiB.
pub const XZ_MEMORY_KIB: u32 = 128 << 10;

/// Entries that an archive may have: some twenty times as many as nixpkgs.
pub const MOST_ENTRIES: usize = 1 << 20;

/// Bytes that the target of a link in a zip file may have: as many as Linux allows (`PATH_MAX`).
pub const LINK_BYTES: u64 = 4096;

/// How deep submodules may have submodules; real ones have two or three levels, and a cycle has no end.
pub const SUBMODULE_DEPTH: usize = 16;

/// Bytes of an entry of the cache; an entry is a few hundred.
pub const ENTRY_BYTES: u64 = 64 << 10;

/// Folders of work that were left behind are removed when they are older than this; no fetch takes so long.
pub const LEFT_BEHIND: Duration = Duration::from_secs(7 * 24 * 60 * 60);
