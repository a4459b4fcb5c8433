//! Bounds on what is parsed, each with its reason.

/// Nesting of CBOR items. Our deepest payload nests six levels; twice that leaves room for a newer
/// version to be *recognised* as newer instead of failing as malformed.
pub const CBOR_DEPTH: usize = 16;

/// Bytes of one signed payload (request, record, roster statement). A build request names its
/// complete input closure, some 120 bytes an input; the largest closures in nixpkgs have a few
/// thousand paths.
pub const PAYLOAD_BYTES: usize = 4 << 20;

/// Bytes of one serialised tree node. A directory of 100,000 entries with long names fits.
pub const TREE_NODE_BYTES: usize = 32 << 20;

/// Entries of one directory: what fits into [`TREE_NODE_BYTES`] with names of average length.
pub const DIRECTORY_ENTRIES: usize = 400_000;

/// Bytes of one name in a directory, as on every Linux file system (`NAME_MAX`).
pub const NAME_BYTES: usize = 255;

/// Bytes of a symlink's target, as Linux allows (`PATH_MAX` less the final NUL).
pub const SYMLINK_BYTES: usize = 4095;

/// Depth of nested directories in a tree, as current Nix caps it for archives.
pub const TREE_DEPTH: usize = 64;

/// Outputs of one derivation. nixpkgs' largest derivations have some twenty.
pub const OUTPUTS: usize = 256;

/// Paths of one input closure named by a request. See [`PAYLOAD_BYTES`].
pub const CLOSURE_PATHS: usize = 32_768;

/// References of one path. NixOS system closures' largest paths refer to a few thousand.
pub const REFERENCES: usize = 65_536;

/// Bytes of a derivation in ATerm form. texlive's largest are a few megabytes.
pub const DERIVATION_BYTES: usize = 64 << 20;
