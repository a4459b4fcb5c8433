//! Bounds of the store, each with its reason.

use std::time::Duration;

/// Bytes of one buffer of archive bytes on their way to the hashes. Large enough that handing one to
/// the hashing thread costs little beside hashing it, small enough that three stay in the processor's
/// caches (with megabytes, copying from the page cache took eight times as long).
pub const NAR_BUFFER: usize = 256 << 10;

/// Buffers of one archive in flight between the copying and the hashing thread, and one that writes around the page cache. One is
/// filled, one is hashed and written, one waits.
pub const NAR_BUFFERS: usize = 3;

/// Files of up to so many bytes are looked up among the stored ones *before* they are written, so an
/// equal file costs a link and no write. Must be less than a [`NAR_BUFFER`].
pub const SMALL_FILE: usize = 128 << 10;

/// Files, directories and symlinks of one tree. Some 100 bytes of memory each are held until the
/// tree is registered; the largest source trees (browsers, kernels) have half a million.
pub const TREE_ENTRIES: u64 = 2 << 20;

/// Bytes of the archive of a tree that is built from what a peer sent, where neither its name nor the
/// caller says how many it has. The largest packages have some 10 GB.
pub const ARRIVED_BYTES: u64 = 64 << 30;

/// Bytes of a name or symlink target in an archive that are read before it is refused for its length.
pub const NAR_TOKEN: usize = 4096;

/// A file of a source with so many bytes or more is written around the page cache. Memory for a second copy of what the cache
/// has already costs more than the disk's own writing, up to three times as much on a virtual machine that has given its
/// memory away, and drives out what others read; whoever reads the stored file first takes it from the disk.
pub const AROUND_CACHE_FROM: u64 = 64 << 20;

/// Trees that are looked at for whether one that has a file counts. A file that is in more (an empty one, a licence)
/// is small, and comes again.
pub const BLOB_TREES: usize = 16;

/// Bytes of one text (`builtins.toFile`, a derivation) that is added from memory.
pub const TEXT_BYTES: usize = tvix_node_protocol::limits::DERIVATION_BYTES;

/// Bytes of the index's page cache. Holds the inner pages of an index of a million paths.
pub const INDEX_CACHE: usize = 64 << 20;

/// Free bytes that must be left on the file system before the index is written: the index cannot be
/// extended on a full disk, and a garbage collection needs to write it.
pub const RESERVED_BYTES: u64 = 16 << 20;

/// Free bytes below which no tree grows. What arrives is promised room by the size of its archive, and small files take
/// more of the disk than of that; twice what the index needs, since others write between two looks.
pub const GROWING_LEAVES_BYTES: u64 = 2 * RESERVED_BYTES;

/// Files, directories and links that the file system can still have below which no tree grows, where it has a bound for
/// them. The index needs none; logs and folders of builds that go on do.
pub const GROWING_LEAVES_FILES: u64 = 4096;

/// A tree that grows looks at the disk with its first entry and after so many. As many small files take a quarter of what
/// is left.
pub const GROWING_LOOK: u64 = 1024;

/// Remembered sources (fingerprint to store path). A user has some dozen checkouts of some thousand
/// files; the oldest entry goes first.
pub const SOURCES: u64 = 65_536;

/// Bytes of a source's fingerprint.
pub const FINGERPRINT_BYTES: usize = 4096;

/// Build records of different builders kept for one build key. More than any quorum asks for.
pub const RECORDS_PER_KEY: usize = 64;

/// Uses of paths that are remembered until they are written down, with the next addition or collection.
pub const NOTED_USES: usize = 1 << 18;

/// Roots. Each is a link that somebody made by hand or by a command.
pub const ROOTS: u64 = 1 << 20;

/// Pins. Each is something that somebody named.
pub const PINS: u64 = 1 << 20;

/// Bytes of the file that names what one running program uses. Its `PATH`, which names the same paths with more
/// around each, may have 128 KiB.
pub const RUNNING_BYTES: usize = 128 << 10;

/// Bytes of one file in which the kernel says something of a process, which are in memory at once. By default a process
/// maps at most 65,530 places, each said in some hundred bytes, and is given at most 6 MB of environment; a machine where
/// it may map a million is looked at, too.
pub const PROCESS_FILE_BYTES: u64 = 128 << 20;

/// Bytes of what the kernel says of a process's state: one line of some fifty numbers.
pub const PROCESS_STATE_BYTES: u64 = 4 << 10;

/// Bytes of what all processes of a machine say of themselves, for one collection. A process says some tens of kilobytes, a browser or
/// a virtual machine of Java some 500 KB, so this is a thousand of the largest and fifty times as many usual ones.
pub const PROCESSES_BYTES: u64 = 1 << 30;

/// How long processes are looked at for one collection. Some hundreds take a moment; what was seen a minute ago says
/// little of what they use now, and whoever waits for room on the disk is better told than kept waiting.
pub const PROCESSES_TIME: Duration = Duration::from_secs(60);

/// Bytes of all finished build logs; the oldest go first.
pub const LOG_BYTES: u64 = 1 << 30;

/// Bytes of one build log where the caller sets no lower bound.
pub const LOG_FILE_BYTES: u64 = 256 << 20;

/// Threads that sync files at once: disks take some dozen requests together, and each thread waits more
/// than it works.
pub const SYNC_THREADS: usize = 16;

/// Paths that are looked up at once while the whole store is checked.
pub const VERIFY_GROUP: usize = 1024;

/// Paths that one path in an export may refer to. The largest have some thousand.
pub const EXPORT_REFERENCES: u64 = 1 << 20;

/// Paths of an export that are registered together, so that they share a sync.
pub const IMPORT_GROUP: usize = 64;

/// Paths that are fetched for one path from a binary cache. The largest systems have some 100,000.
pub const CLOSURE_PATHS: usize = 1 << 20;

/// Bytes of `nix-cache-info` that are looked at. It has three short lines.
pub const CACHE_INFO_BYTES: u64 = 64 << 10;
