//! The bounds of the parser, each with its reason.

/// How deep expressions may nest (parentheses, sets, lists, functions, branches, attribute paths, …).
///
/// The parser and the passes behind it recurse once or a few times a level. Hand-written Nix stays below 100,
/// generated code below 1,000. A thread needs at most 2 MiB of stack to parse to this depth.
pub const MAX_DEPTH: u32 = 2_000;
