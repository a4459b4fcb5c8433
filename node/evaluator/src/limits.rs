//! Bounds of the evaluator, each with its reason.

/// Deepest nesting of function calls: Nix's default, so that what evaluates there evaluates here.
pub const MAX_CALL_DEPTH: u32 = 10_000;

/// Bytes of heap beyond which further targets begin on a fresh one: more than the largest packages known need alone
/// (1.5 GB for the full scheme of texlive), and a machine with 8 GiB is left room for builds. A fresh heap costs
/// evaluating again what targets share.
pub const HEAP_LIMIT: usize = 2 << 30;

/// Size of one target's stack in bytes. Pages are committed when touched, so this is address space, not memory;
/// 10,000 nested calls, each through several levels of operators, use less than half of it.
pub const STACK_SIZE: usize = 256 << 20;

/// Stack that must be left when a force or a call begins: what parsing and compiling a file, or walking one piece of
/// code as deep as syntax may nest, use of it without asking again.
pub const STACK_RESERVE: usize = 16 << 20;

/// How many targets may be suspended or running at once. More only helps where many targets wait for
/// import-from-derivation; 64 stacks are 16 GiB of address space, which every 64-bit machine gives away.
pub const MAX_LIVE_STACKS: usize = 64;

/// How many finished stacks are kept for the next targets; one is enough where nothing is suspended.
pub const MAX_POOLED_STACKS: usize = 4;

/// Longest chain of layers that updates (`//`) may build before they are merged: lookups search every layer.
pub const MAX_LAYERS: u32 = 8;

/// Largest right side of an update that is put on top as a layer; a larger one is merged at once, as
/// lookups in two layers then cost more than the copy saves.
pub const MAX_LAYER_LEN: usize = 16;

/// A right side of this share of the left one is put on top, too: a package set of ten thousand attributes, copied for
/// some hundred, is most of what a small evaluation would keep.
pub const LAYER_SHARE: usize = 16;

/// How many lines of a trace are kept: what the deepest nesting of calls leaves behind, and no more, where errors
/// are made and caught again and again.
pub const MAX_TRACE_FRAMES: usize = 50_000;

/// How many links are followed in one path before it counts as a cycle, as in Nix.
pub const MAX_LINKS: usize = 1024;

/// Bytes of a file that is read: as many as a string can have. A device may have no end.
pub(crate) const MAX_FILE: u64 = u32::MAX as u64;
