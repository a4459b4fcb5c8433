//! Trees by content: directory objects, and where files lie.
//!
//! Directory objects are kept, not computed when somebody asks: to compute one, every byte below it
//! would have to be hashed again. An object costs some 70 bytes an entry, equal directories of
//! different trees are kept once, and an object goes with the last tree it is in.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;

use redb::{ReadTransaction, ReadableTable, TableError, WriteTransaction};
use tvix_node_protocol::subtrees::{ChainingValue, SUBTREE_BYTES};
use tvix_node_protocol::tree::{BlobDigest, Leaf, Node, Tree, TreeDigest};

use super::{
    AUDIENCES, DecodeError, FILES, FileKey, Index, IndexError, IndexFault, NODE_USES, NODES, SUBTREES,
    TREE_NUMBERS, TREES,
};
use crate::share::SharedFile;
use crate::tree_writer::Written;

impl Index {
    /// A stored file equal to this one, as path below the directory of trees: the one in the newest
    /// tree, because a file that has all the links it may have is followed by a new one.
    pub(crate) fn stored_file(&self, file: &SharedFile) -> Result<Option<Vec<u8>>, IndexError> {
        self.read(|transaction| {
            let files = transaction.open_table(FILES)?;
            let key = |number| (&file.blob.0, file.executable, file.occurrence, number);
            let Some(found) = files.range(key(0)..=key(u64::MAX))?.next_back() else {
                return Ok(None);
            };
            let (key, relative) = found?;
            tree_path(transaction, key.value().3, relative.value())
        })
    }

    /// Any stored file with these bytes, as path below the directory of trees.
    pub(crate) fn blob_file(&self, blob: BlobDigest) -> Result<Option<Vec<u8>>, IndexError> {
        self.read(|transaction| {
            let files = transaction.open_table(FILES)?;
            let Some(found) = files.range(all_of(&blob))?.next() else {
                return Ok(None);
            };
            let (key, relative) = found?;
            tree_path(transaction, key.value().3, relative.value())
        })
    }

    /// The hashes of the parts of a large file, in order; none where they are not known.
    pub(crate) fn subtrees(&self, blob: BlobDigest) -> Result<Vec<ChainingValue>, IndexError> {
        self.read(|transaction| {
            let table = match transaction.open_table(SUBTREES) {
                // No large file has come since there can be this table.
                Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                table => table?,
            };
            let Some(parts) = table.get(&blob.0)? else {
                return Ok(Vec::new());
            };
            Ok(parts_from(parts.value())?.to_vec())
        })
    }

    /// The object with this digest.
    pub(crate) fn node(&self, digest: TreeDigest) -> Result<Option<Tree>, IndexError> {
        self.read(|transaction| {
            let nodes = transaction.open_table(NODES)?;
            nodes
                .get(&digest.0)?
                .map(|bytes| decode_node(bytes.value(), digest))
                .transpose()
        })
    }

    /// Bytes of the encoding of the object with this digest.
    pub(crate) fn node_size(&self, digest: TreeDigest) -> Result<Option<usize>, IndexError> {
        self.read(|transaction| {
            let nodes = transaction.open_table(NODES)?;
            Ok(nodes.get(&digest.0)?.map(|bytes| bytes.value().len()))
        })
    }
}

/// The hashes of a file's parts.
pub(crate) fn parts_from(bytes: &[u8]) -> Result<&[ChainingValue], DecodeError> {
    match bytes.as_chunks() {
        (parts, []) => Ok(parts),
        _ => Err(DecodeError::Field("hashes of a file's parts")),
    }
}

/// Keys of all files with these bytes.
fn all_of(blob: &BlobDigest) -> RangeInclusive<FileKey<'_>> {
    (&blob.0, false, 0, 0)..=(&blob.0, true, u32::MAX, u64::MAX)
}

pub(crate) fn decode_node(bytes: &[u8], digest: TreeDigest) -> Result<Tree, IndexFault> {
    Tree::from_bytes(bytes, digest).map_err(|_| DecodeError::Field("directory object").into())
}

fn tree_path(
    transaction: &ReadTransaction,
    number: u64,
    relative: &[u8],
) -> Result<Option<Vec<u8>>, IndexFault> {
    let trees = transaction.open_table(TREES)?;
    let Some(name) = trees.get(number)? else {
        return Err(DecodeError::Field("tree number").into());
    };
    let mut path = name.value().as_bytes().to_vec();
    if !relative.is_empty() {
        path.push(b'/');
        path.extend_from_slice(relative);
    }
    Ok(Some(path))
}

/// Enters a tree: its name, its objects, its files.
pub(crate) fn insert_tree(
    transaction: &WriteTransaction,
    number: u64,
    name: &str,
    written: &mut Written,
) -> Result<(), IndexFault> {
    let root = written.tree;
    transaction.open_table(TREES)?.insert(number, name)?;
    transaction
        .open_table(TREE_NUMBERS)?
        .insert((&root.0, number), ())?;
    let mut nodes = transaction.open_table(NODES)?;
    let mut uses = transaction.open_table(NODE_USES)?;
    let mut pending = vec![root];
    while let Some(digest) = pending.pop() {
        let used = uses.get(&digest.0)?.map_or(0, |count| count.value());
        uses.insert(&digest.0, used + 1)?;
        if used == 0 {
            let row = written
                .nodes
                .get(&digest)
                .ok_or(DecodeError::Field("directory object"))?;
            nodes.insert(&digest.0, row.bytes.as_slice())?;
            pending.extend_from_slice(&row.children);
        }
    }
    // Entered in the order of the table, which is several times faster than in any other.
    written
        .files
        .sort_unstable_by_key(|row| (row.blob, row.executable, row.occurrence));
    let mut files = transaction.open_table(FILES)?;
    for row in &written.files {
        let key = (&row.blob.0, row.executable, row.occurrence, number);
        files.insert(key, row.relative.as_slice())?;
    }
    if !written.subtrees.is_empty() {
        let mut subtrees = transaction.open_table(SUBTREES)?;
        for (blob, parts) in &written.subtrees {
            subtrees.insert(&blob.0, parts.as_flattened())?;
        }
    }
    Ok(())
}

/// Takes a tree out again, with every object that nothing else uses.
pub(crate) fn remove_tree(
    transaction: &WriteTransaction,
    number: u64,
    root: TreeDigest,
) -> Result<(), IndexFault> {
    if let Some(name) = transaction.open_table(TREES)?.remove(number)? {
        transaction.open_table(AUDIENCES)?.remove(name.value())?;
    }
    transaction.open_table(TREE_NUMBERS)?.remove((&root.0, number))?;
    let mut nodes = transaction.open_table(NODES)?;
    let mut uses = transaction.open_table(NODE_USES)?;
    let mut files = transaction.open_table(FILES)?;
    // First the files of all directories, while all objects are still there; then the counts.
    let mut occurrences: HashMap<(BlobDigest, bool), u32> = HashMap::new();
    let mut large: HashSet<BlobDigest> = HashSet::new();
    let mut pending = vec![root];
    while let Some(digest) = pending.pop() {
        let object = nodes
            .get(&digest.0)?
            .ok_or(DecodeError::Field("directory object"))?;
        match decode_node(object.value(), digest)? {
            Tree::Directory(directory) => {
                for (_, node) in directory.entries() {
                    match node {
                        Node::Directory(child) => pending.push(*child),
                        Node::File {
                            blob,
                            executable,
                            size,
                        } => {
                            *occurrences.entry((*blob, *executable)).or_insert(0) += 1;
                            large.extend((*size > SUBTREE_BYTES).then_some(*blob));
                        }
                        Node::Symlink(_) => {}
                    }
                }
            }
            Tree::Leaf(leaf) => {
                if let Leaf::File {
                    blob,
                    executable,
                    size,
                } = leaf
                {
                    *occurrences.entry((blob, executable)).or_insert(0) += 1;
                    large.extend((size > SUBTREE_BYTES).then_some(blob));
                }
            }
        }
    }
    for ((blob, executable), count) in occurrences {
        for occurrence in 0..count {
            files.remove((&blob.0, executable, occurrence, number))?;
        }
    }
    for blob in large {
        if files.range(all_of(&blob))?.next().is_none() {
            transaction.open_table(SUBTREES)?.remove(&blob.0)?;
        }
    }
    let mut pending = vec![root];
    while let Some(digest) = pending.pop() {
        let used = uses.get(&digest.0)?.map_or(0, |count| count.value());
        if used > 1 {
            uses.insert(&digest.0, used - 1)?;
            continue;
        }
        uses.remove(&digest.0)?;
        let Some(object) = nodes.remove(&digest.0)? else {
            continue;
        };
        if let Tree::Directory(directory) = decode_node(object.value(), digest)? {
            pending.extend(directory.entries().filter_map(|(_, node)| match node {
                Node::Directory(child) => Some(*child),
                _ => None,
            }));
        }
    }
    Ok(())
}
