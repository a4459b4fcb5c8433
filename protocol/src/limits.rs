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

/// Bytes of one envelope: a payload and what is around it (domain, version, key, signature).
pub const ENVELOPE_BYTES: usize = PAYLOAD_BYTES + 1024;

/// Founders of one team. They are people who know each other.
pub const FOUNDERS: usize = 32;

/// Bytes of a member's or a team's name: one column of a table.
pub const MEMBER_NAME_BYTES: usize = 64;

/// Digits of a key that may stand for the whole: fewer would name somebody else soon. No name consists of so many.
pub const KEY_BEGINNING: usize = 8;

/// Statements of one roster. A team of 2,000 where everyone is renewed for five years.
pub const ROSTER_STATEMENTS: usize = 16_384;

/// Bytes of one roster statement's envelope. Ours have some 500; a newer version may say more.
pub const ROSTER_STATEMENT_BYTES: usize = 4096;

/// Bytes of a message that carries statements of a roster: the largest there is.
pub const ROSTER_BYTES: usize = 24 << 20;

/// Bytes a stranger may send: a chain of statements up to a founder.
pub const INTRODUCTION_BYTES: usize = 64 << 10;

/// Characters of a ticket: what a person can copy and a mail does not break.
pub const TICKET_BYTES: usize = 4096;

/// Addresses in one ticket: those of a machine with a few networks, over two transports.
pub const TICKET_ADDRESSES: usize = 16;

/// Bytes of one address.
pub const ADDRESS_BYTES: usize = 256;

/// Bytes of what members tell each other first: some strings and numbers.
pub const HELLO_BYTES: usize = 16 << 10;

/// Ports at which a member may ask to be dialled: one for each transport.
pub const REACHABILITY_PORTS: usize = 2;

/// Bits of a presence region: enough for a team of 16,384 members.
pub const REGION_BITS: u8 = 12;

/// How often a holder may halve a region into cells. With [`REGION_BITS`] it fits into 32 bits.
pub const CELL_DEPTH: u8 = 16;

/// Keys of one cell: 16 KiB, so that a header costs little beside its keys and one cell is cheap to
/// send to who asks for one key.
pub const CELL_KEYS: usize = 1024;

/// Bytes of one message about presence: 64 cells with their headers.
pub const PRESENCE_BYTES: usize = 2 << 20;

/// Keys in one question about presence: what fits into [`PRESENCE_BYTES`], and a large closure.
pub const PRESENCE_QUESTION_KEYS: usize = 65_536;

/// Derivations in one question who builds them.
pub const UNDERWAY_KEYS: usize = 64;

/// Paths whose infos are asked for at once.
pub const PATHS_QUESTION: usize = 4096;

/// Bytes of that question: hashes of 20 bytes.
pub const PATHS_BYTES: usize = PATHS_QUESTION * 20 + 64;

/// Bytes of one answer about paths, after which it ends and the rest is asked for anew: ten thousand ordinary path
/// infos with their records, or two of the largest. What one question can make a node read, pack and send is
/// bounded by it.
pub const PATHS_ANSWER: usize = 2 * SHOWN_BYTES;

/// Bytes of one path info with its record: 65,536 references and a record of a large closure.
pub const SHOWN_BYTES: usize = 16 << 20;

/// Bytes of a request for parts of one file, as iroh-blobs writes it: a digest and some thousand ranges.
pub const BLOB_REQUEST_BYTES: usize = 64 << 10;

/// Texts asked for at once: some 4 MiB of derivations, so that several such questions on their way fill a
/// link and none of them holds up the others.
pub const TEXTS_QUESTION: usize = 1024;

/// Bytes of that question, as of [`PATHS_BYTES`].
pub const TEXTS_QUESTION_BYTES: usize = TEXTS_QUESTION * 256;

/// Bytes of one text that travels together with others. Derivations of nixpkgs have 3 KB on average, the
/// largest a few hundred; what is larger is fetched as a tree.
pub const TEXT_BYTES: usize = 4 << 20;

/// Bytes of all texts of one answer: four of the largest, or a full question of 16 KiB each.
pub const TEXTS_BYTES: usize = 4 * TEXT_BYTES;

/// Bytes of the files of a tree that travels together with others: most paths of a closure that are no programs.
pub const SMALL_TREE: u64 = 128 << 10;

/// Files of such a tree.
pub const SMALL_TREE_FILES: usize = 64;

/// Bytes of such a tree as it travels, with its directories.
pub const PACKED_TREE: usize = 2 * SMALL_TREE as usize;

/// Trees asked for at once: as many small ones as a node fetches at a time.
pub const TREES_BATCH: usize = 256;

/// Bytes that are read for one answer with trees, after which it ends and the rest is asked for anew: with the last one, what is on
/// its way to a peer on any stream.
pub const TREES_BYTES: usize = (1 << 20) - PACKED_TREE;

/// Small files asked for at once.
pub const BLOBS_BATCH: usize = 4096;

/// Bytes of an offer to a desired store: the outputs of one derivation.
pub const PUSH_BYTES: usize = 32 << 20;
