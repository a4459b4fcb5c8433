//! The bounds of the pure functions, each with its reason.

/// How many states a regular expression may have: the same as `_GLIBCXX_REGEX_STATE_LIMIT` in stock Nix, where more
/// is the error "memory limit exceeded".
pub const REGEX_STATES: usize = 100_000;

/// How deep the groups of a regular expression may nest. Nobody writes 100; parser and compiler recurse.
pub const REGEX_DEPTH: u32 = 250;

/// How many repetitions may follow one atom (`a**`). One is useful, two are seen.
pub const REGEX_REPETITIONS: u32 = 8;

/// How many steps one match may take, a second or two of work. With back-tracking, a bad expression can need more
/// steps than there are atoms; stock Nix then runs forever or overflows its stack.
pub const REGEX_STEPS: u64 = 1 << 28;

/// How many alternatives one match may have open, 32 bytes each. A megabyte of text has about a million open
/// alternatives in `(a|b)*`.
pub const REGEX_JOBS: usize = 1 << 24;

/// How many steps a match may take before it begins to remember which ways are dead ends. Nearly all matches end
/// before, and remembering costs memory to set up.
pub const REGEX_STEPS_BEFORE_MEMORY: u64 = 1 << 14;

/// How many bits that memory may have, 64 MiB. Above it a match goes on without, up to [`REGEX_STEPS`].
pub const REGEX_MEMORY_BITS: usize = 1 << 29;

/// How many compiled regular expressions are kept, about a kilobyte each. All of nixpkgs has some hundred distinct
/// ones; evaluations that generate expressions must not grow for that.
pub const REGEX_CACHE: usize = 1024;

/// How deep JSON may nest: as deep as calls may by default (`max-call-depth`), because a deeper value could not be
/// printed or compared anyway.
pub const JSON_DEPTH: usize = 10_000;
