//! The bounds of the parser, each with its reason.

/// How deep expressions may nest (parentheses, sets, lists, functions, branches, attribute paths, …).
///
/// The parser and the passes behind it recurse once or a few times a level. All of nixpkgs stays below 50, generated
/// code below some hundreds. An optimised build parses to this depth within the 2 MiB of stack that a thread has
/// by default (it takes 1.5 MiB); a build without optimisation needs 16 MiB.
pub const MAX_DEPTH: u32 = 1_000;
