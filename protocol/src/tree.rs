//! File system objects as content, and the names that follow from it.
//!
//! A [`Tree`] is a directory, a file or a symlink. Its [`TreeDigest`] is the BLAKE3 digest of its
//! deterministic encoding. A directory holds the digests of its subdirectories, so a digest names
//! everything below it, and equal content has an equal digest on every machine. A file's bytes are
//! one *blob*, named by their own BLAKE3 digest, so equal files are stored and sent once.

use std::collections::{BTreeMap, btree_map};

use crate::cbor::{self, CborError};
use crate::digest::digest;
use crate::limits::{DIRECTORY_ENTRIES, NAME_BYTES, SYMLINK_BYTES, TREE_NODE_BYTES};
use ciborium::Value;

/// Why something is not a tree, or not a part of one.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A name that no directory entry may have.
    #[error("'{}' cannot be the name of a directory entry: {reason}", .name.escape_ascii())]
    Name {
        /// The offending bytes.
        name: Vec<u8>,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Two entries of one directory have one name.
    #[error("the name '{0}' stands twice in a directory")]
    Duplicate(PathComponent),
    /// A symlink target that no file system can hold.
    #[error("a symlink target of {0} bytes (1 to {SYMLINK_BYTES} are possible, without NUL)")]
    SymlinkTarget(usize),
    /// More entries than allowed.
    #[error("a directory of {0} entries, more than the {DIRECTORY_ENTRIES} allowed")]
    TooManyEntries(usize),
    /// More bytes than allowed.
    #[error(
        "a directory whose names and link targets take {0} bytes, more than the {TREE_NODE_BYTES} allowed"
    )]
    TooLarge(usize),
    /// Not the deterministic encoding of a tree.
    #[error("not a tree: {0}")]
    Encoding(#[from] CborError),
    /// The encoding of another tree than the one asked for.
    #[error("the tree received has the digest {computed}, not {wanted}")]
    Digest {
        /// What was asked for.
        wanted: TreeDigest,
        /// What came.
        computed: TreeDigest,
    },
}

digest! {
    /// The name of a file system object's content: the BLAKE3 digest of its [`Tree`]'s encoding.
    TreeDigest
}

digest! {
    /// The name of a file's bytes: their BLAKE3 digest.
    BlobDigest
}

impl BlobDigest {
    /// The digest of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

/// The name of a directory entry: 1 to 255 bytes, no `/`, no NUL, not `.` or `..`. Not only UTF-8.
///
/// A bad name cannot be written down, so nothing that walks a tree can be led out of it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathComponent(Box<[u8]>);

impl PathComponent {
    /// Checks a name.
    ///
    /// # Errors
    /// [`TreeError::Name`] says what is wrong with it.
    pub fn new(name: &[u8]) -> Result<Self, TreeError> {
        let reason = match name {
            b"" => "it is empty",
            b"." | b".." => "it means another directory",
            _ if name.len() > NAME_BYTES => "it has more than 255 bytes",
            _ if name.contains(&b'/') => "it contains a slash",
            _ if name.contains(&0) => "it contains a NUL",
            _ => return Ok(Self(name.into())),
        };
        Err(TreeError::Name {
            name: name.to_vec(),
            reason,
        })
    }

    /// The name's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Display for PathComponent {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}", self.0.escape_ascii())
    }
}

impl std::fmt::Debug for PathComponent {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "\"{self}\"")
    }
}

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A directory, by the digest of its own encoding.
    Directory(TreeDigest),
    /// A file, by its blob.
    File {
        /// Digest of its bytes.
        blob: BlobDigest,
        /// How many bytes.
        size: u64,
        /// Whether its owner may execute it.
        executable: bool,
    },
    /// A symlink.
    Symlink(SymlinkTarget),
}

impl Node {
    /// The entry for a file with these bytes.
    #[must_use]
    pub fn file(bytes: &[u8], executable: bool) -> Self {
        Self::File {
            blob: BlobDigest::of(bytes),
            size: bytes.len() as u64,
            executable,
        }
    }
}

/// What a symlink points to: 1 to 4095 bytes without NUL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SymlinkTarget(Box<[u8]>);

impl SymlinkTarget {
    /// Checks a target.
    ///
    /// # Errors
    /// [`TreeError::SymlinkTarget`]
    pub fn new(target: &[u8]) -> Result<Self, TreeError> {
        if target.is_empty() || target.len() > SYMLINK_BYTES || target.contains(&0) {
            return Err(TreeError::SymlinkTarget(target.len()));
        }
        Ok(Self(target.into()))
    }

    /// The target's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A directory: names, in the order of their bytes, and what they name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Directory {
    entries: BTreeMap<PathComponent, Node>,
    /// Bytes of the encodings of all entries.
    bytes: usize,
}

impl Directory {
    /// Adds an entry.
    ///
    /// # Errors
    /// [`TreeError::Duplicate`] where the name is taken; [`TreeError::TooManyEntries`] and [`TreeError::TooLarge`], so that
    /// whatever is made here can be read by [`Tree::from_bytes`].
    pub fn insert(&mut self, name: PathComponent, node: Node) -> Result<(), TreeError> {
        let count = self.entries.len() + 1;
        if count > DIRECTORY_ENTRIES {
            return Err(TreeError::TooManyEntries(count));
        }
        let bytes = self.bytes + entry_bytes(&name, &node);
        if directory_bytes(count, bytes) > TREE_NODE_BYTES {
            return Err(TreeError::TooLarge(directory_bytes(count, bytes)));
        }
        match self.entries.entry(name) {
            btree_map::Entry::Occupied(entry) => Err(TreeError::Duplicate(entry.key().clone())),
            btree_map::Entry::Vacant(entry) => {
                entry.insert(node);
                self.bytes = bytes;
                Ok(())
            }
        }
    }

    /// The entries in order.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (&PathComponent, &Node)> {
        self.entries.iter()
    }

    /// The entry of this name.
    #[must_use]
    pub fn get(&self, name: &PathComponent) -> Option<&Node> {
        self.entries.get(name)
    }
}

/// A file system object as content. See the [module](self).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tree {
    /// A directory.
    Directory(Directory),
    /// A file or symlink; never [`Node::Directory`], which only refers to one.
    Leaf(Leaf),
}

/// A tree that is not a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leaf {
    /// A file, by its blob.
    File {
        /// Digest of its bytes.
        blob: BlobDigest,
        /// How many bytes.
        size: u64,
        /// Whether its owner may execute it.
        executable: bool,
    },
    /// A symlink.
    Symlink(SymlinkTarget),
}

impl Tree {
    /// The tree's name.
    #[must_use]
    pub fn digest(&self) -> TreeDigest {
        TreeDigest(*blake3::hash(&self.to_bytes()).as_bytes())
    }

    /// The deterministic encoding: an array whose first item says what it is.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let value = match self {
            Self::Directory(directory) => Value::Array(vec![
                Value::Text("dir".to_owned()),
                Value::Array(
                    directory
                        .entries
                        .iter()
                        .map(|(name, node)| {
                            Value::Array(vec![Value::Bytes(name.0.to_vec()), node_to_value(node)])
                        })
                        .collect(),
                ),
            ]),
            Self::Leaf(Leaf::File {
                blob,
                size,
                executable,
            }) => file_to_value(*blob, *size, *executable),
            Self::Leaf(Leaf::Symlink(target)) => symlink_to_value(target),
        };
        let mut bytes = Vec::new();
        // Arrays, integers and strings are written in their only form; a Vec takes every write.
        match ciborium::into_writer(&value, &mut bytes) {
            Ok(()) => bytes,
            Err(error) => unreachable!("writing to a Vec failed: {error}"),
        }
    }

    /// The files that it is or names itself, with their sizes; not those in directories below.
    pub fn files(&self) -> impl Iterator<Item = (BlobDigest, u64)> {
        let (leaf, entries) = match self {
            Self::Leaf(Leaf::File { blob, size, .. }) => (Some((*blob, *size)), None),
            Self::Leaf(Leaf::Symlink(_)) => (None, None),
            Self::Directory(directory) => (None, Some(directory.entries())),
        };
        let named = entries.into_iter().flatten().filter_map(|(_, node)| match node {
            Node::File { blob, size, .. } => Some((*blob, *size)),
            Node::Directory(_) | Node::Symlink(_) => None,
        });
        leaf.into_iter().chain(named)
    }

    /// Reads an encoding of at most 32 MiB and checks it against the name it was asked for.
    ///
    /// # Errors
    /// Whatever is not the one encoding of the tree with this digest, see [`TreeError`].
    pub fn from_bytes(bytes: &[u8], wanted: TreeDigest) -> Result<Self, TreeError> {
        if bytes.len() > TREE_NODE_BYTES {
            return Err(CborError::TooLarge {
                size: bytes.len(),
                limit: TREE_NODE_BYTES,
            }
            .into());
        }
        let computed = TreeDigest(*blake3::hash(bytes).as_bytes());
        if computed != wanted {
            return Err(TreeError::Digest { wanted, computed });
        }
        let value: Value = cbor::from_slice(bytes, TREE_NODE_BYTES)?;
        let tree = tree_from_value(value)?;
        // Sorted entries and no spare items: there is one encoding, and this must be it.
        if tree.to_bytes() != bytes {
            return Err(CborError::NotDeterministic.into());
        }
        Ok(tree)
    }
}

impl From<Tree> for Node {
    fn from(tree: Tree) -> Self {
        match tree {
            Tree::Directory(_) => Self::Directory(tree.digest()),
            Tree::Leaf(Leaf::File {
                blob,
                size,
                executable,
            }) => Self::File {
                blob,
                size,
                executable,
            },
            Tree::Leaf(Leaf::Symlink(target)) => Self::Symlink(target),
        }
    }
}

fn file_to_value(blob: BlobDigest, size: u64, executable: bool) -> Value {
    Value::Array(vec![
        Value::Text("file".to_owned()),
        Value::Bytes(blob.0.to_vec()),
        Value::Integer(size.into()),
        Value::Bool(executable),
    ])
}

fn symlink_to_value(target: &SymlinkTarget) -> Value {
    Value::Array(vec![
        Value::Text("link".to_owned()),
        Value::Bytes(target.0.to_vec()),
    ])
}

fn node_to_value(node: &Node) -> Value {
    match node {
        Node::Directory(digest) => Value::Array(vec![
            Value::Text("dir".to_owned()),
            Value::Bytes(digest.0.to_vec()),
        ]),
        Node::File {
            blob,
            size,
            executable,
        } => file_to_value(*blob, *size, *executable),
        Node::Symlink(target) => symlink_to_value(target),
    }
}

/// Bytes of the head of an item in CBOR: its kind, and how long it is or its value.
fn head_bytes(argument: u64) -> usize {
    match argument {
        0..24 => 1,
        24..0x100 => 2,
        0x100..0x1_0000 => 3,
        0x1_0000..0x1_0000_0000 => 5,
        _ => 9,
    }
}

/// Bytes of a string in CBOR.
fn string_bytes(length: usize) -> usize {
    head_bytes(length as u64) + length
}

/// Bytes that an entry adds to the encoding of its directory.
fn entry_bytes(name: &PathComponent, node: &Node) -> usize {
    let (pair, array, digest, boolean) = (1, 1, string_bytes(32), 1);
    let node = match node {
        Node::Directory(_) => string_bytes("dir".len()) + digest,
        Node::File { size, .. } => string_bytes("file".len()) + digest + head_bytes(*size) + boolean,
        Node::Symlink(target) => string_bytes("link".len()) + string_bytes(target.0.len()),
    };
    pair + string_bytes(name.0.len()) + array + node
}

/// Bytes of the encoding of a directory with so many entries that take so many bytes.
fn directory_bytes(entries: usize, bytes: usize) -> usize {
    1 + string_bytes("dir".len()) + head_bytes(entries as u64) + bytes
}

fn structure(what: &str) -> TreeError {
    CborError::Structure(what.to_owned()).into()
}

fn tree_from_value(value: Value) -> Result<Tree, TreeError> {
    if let Value::Array(items) = &value
        && let [Value::Text(kind), Value::Array(entries)] = items.as_slice()
        && kind == "dir"
    {
        let mut directory = Directory::default();
        for entry in entries {
            let Value::Array(pair) = entry else {
                return Err(structure("a directory entry is a pair"));
            };
            let [Value::Bytes(name), node] = pair.as_slice() else {
                return Err(structure("a directory entry is a name and a node"));
            };
            directory.insert(PathComponent::new(name)?, node_from_value(node)?)?;
        }
        return Ok(Tree::Directory(directory));
    }
    match node_from_value(&value)? {
        Node::Directory(_) => Err(structure("a tree is not a reference to a directory")),
        Node::File {
            blob,
            size,
            executable,
        } => Ok(Tree::Leaf(Leaf::File {
            blob,
            size,
            executable,
        })),
        Node::Symlink(target) => Ok(Tree::Leaf(Leaf::Symlink(target))),
    }
}

fn node_from_value(value: &Value) -> Result<Node, TreeError> {
    let unknown = || structure("a node is a directory, a file or a symlink");
    let Value::Array(items) = value else {
        return Err(unknown());
    };
    let digest = |bytes: &[u8]| <[u8; 32]>::try_from(bytes).map_err(|_| structure("a digest has 32 bytes"));
    match items.as_slice() {
        [Value::Text(kind), Value::Bytes(bytes)] if kind == "dir" => {
            Ok(Node::Directory(TreeDigest(digest(bytes)?)))
        }
        [Value::Text(kind), Value::Bytes(bytes)] if kind == "link" => {
            Ok(Node::Symlink(SymlinkTarget::new(bytes)?))
        }
        [
            Value::Text(kind),
            Value::Bytes(bytes),
            Value::Integer(size),
            Value::Bool(executable),
        ] if kind == "file" => {
            let size = u64::try_from(*size).map_err(|_| structure("a size is not negative"))?;
            Ok(Node::File {
                blob: BlobDigest(digest(bytes)?),
                size,
                executable: *executable,
            })
        }
        _ => Err(unknown()),
    }
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
