//! The tables of the index and what is in them.

use redb::{TableDefinition, WriteTransaction};

use super::IndexFault;

/// Key of a store path: the 20 bytes of its hash, then its name.
pub(crate) type PathKey<'a> = &'a [u8];

/// Accepted paths: path to [`PathRecord`](super::PathRecord).
pub(crate) const PATHS: TableDefinition<'_, PathKey<'_>, &[u8]> = TableDefinition::new("paths");

/// Who refers to whom, the other way round: (path, path that refers to it). Self-references are left
/// out.
pub(crate) const REFERRERS: TableDefinition<'_, (PathKey<'_>, PathKey<'_>), ()> =
    TableDefinition::new("referrers");

/// Trees stored under their digest: (path they were offered for, tree digest) to
/// [`PathRecord`](super::PathRecord).
pub(crate) const UNACCEPTED: TableDefinition<'_, (PathKey<'_>, &[u8; 32]), &[u8]> =
    TableDefinition::new("unaccepted");

/// Every tree that lies in the store: its number to its name in the directory of trees.
pub(crate) const TREES: TableDefinition<'_, u64, &str> = TableDefinition::new("trees");

/// (tree digest, number of a tree of that content).
pub(crate) const TREE_NUMBERS: TableDefinition<'_, (&[u8; 32], u64), ()> =
    TableDefinition::new("tree-numbers");

/// Directory objects (and trees that are one file or link): digest to encoding.
pub(crate) const NODES: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("nodes");

/// How often a node is an entry of another one or the root of a tree. It goes when nothing is left.
pub(crate) const NODE_USES: TableDefinition<'_, &[u8; 32], u64> = TableDefinition::new("node-uses");

/// See [`FILES`].
pub(crate) type FileKey<'a> = (&'a [u8; 32], bool, u32, u64);

/// Where files lie: (blob, whether executable, occurrence in the tree, tree number) to the path below
/// the tree's root. One table serves look-ups by blob and the sharing of equal files.
pub(crate) const FILES: TableDefinition<'_, FileKey<'_>, &[u8]> = TableDefinition::new("files");

/// Large files: blob to the hashes of its parts of [`SUBTREE_BYTES`](tvix_node_protocol::subtrees::SUBTREE_BYTES), one after
/// the other. Those of files that came before there was this table are missing. Made when it is first opened for
/// a change.
pub(crate) const SUBTREES: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("subtrees");

/// When paths were last asked for by somebody who meant to use them, in seconds since 1970. Some may be
/// missing: what is not written down yet when the node is killed is lost. Made when it is first written
/// to, so it is opened in changes alone.
pub(crate) const USED: TableDefinition<'_, PathKey<'_>, u64> = TableDefinition::new("used");

/// What is kept until somebody says otherwise: path to when it was pinned, in seconds since 1970. Made when it is
/// first written to: a home that has none may be of the version before there were pins.
pub(crate) const PINS: TableDefinition<'_, PathKey<'_>, u64> = TableDefinition::new("pins");

/// Links outside the home: the link's path to the store path it pointed to when it was made.
pub(crate) const ROOTS: TableDefinition<'_, &[u8], PathKey<'_>> = TableDefinition::new("roots");

/// Known sources: fingerprint to (sequence number, path).
pub(crate) const SOURCES: TableDefinition<'_, &str, (u64, PathKey<'_>)> = TableDefinition::new("sources");

/// Known sources by age: sequence number to fingerprint.
pub(crate) const SOURCE_AGES: TableDefinition<'_, u64, &str> = TableDefinition::new("source-ages");

/// Build records: (build key, builder) to the envelope as received.
pub(crate) const RECORDS: TableDefinition<'_, (&[u8; 32], &[u8; 32]), &[u8]> =
    TableDefinition::new("records");

/// (output path, build key, builder).
pub(crate) const RECORD_OUTPUTS: TableDefinition<'_, (PathKey<'_>, &[u8; 32], &[u8; 32]), ()> =
    TableDefinition::new("record-outputs");

/// Which teams may learn of a tree: its name in the directory of trees to their ids, one after the other. Everyone
/// where there is no entry.
pub(crate) const AUDIENCES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("audiences");

/// The same of records: (build key, builder) to the ids of the teams.
pub(crate) const RECORD_AUDIENCES: TableDefinition<'_, (&[u8; 32], &[u8; 32]), &[u8]> =
    TableDefinition::new("record-audiences");

/// Opening a table in a read transaction fails where it was never made.
pub(super) fn create_tables(transaction: &WriteTransaction) -> Result<(), IndexFault> {
    transaction.open_table(PATHS)?;
    transaction.open_table(REFERRERS)?;
    transaction.open_table(UNACCEPTED)?;
    transaction.open_table(TREES)?;
    transaction.open_table(TREE_NUMBERS)?;
    transaction.open_table(NODES)?;
    transaction.open_table(NODE_USES)?;
    transaction.open_table(FILES)?;
    transaction.open_table(ROOTS)?;
    transaction.open_table(SOURCES)?;
    transaction.open_table(SOURCE_AGES)?;
    transaction.open_table(RECORDS)?;
    transaction.open_table(RECORD_OUTPUTS)?;
    transaction.open_table(AUDIENCES)?;
    transaction.open_table(RECORD_AUDIENCES)?;
    Ok(())
}
