//! Store paths that follow from content.

use std::collections::BTreeSet;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::nix::hash::{CAHash, HashAlgorithm, NixHash};
use tvix_node_protocol::nix::store_path::{StorePathError, build_ca_path};
use tvix_node_protocol::path_info::PathInfo;

/// How a path's hash is made from its content. Source: Nix manual, "Content-addressing store objects".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// The bytes of one file that is not executable.
    Flat(HashAlgorithm),
    /// The archive (NAR) of the tree. What `builtins.path` and a source in a derivation use, with
    /// SHA-256.
    Recursive(HashAlgorithm),
    /// The bytes of one file, with references: `builtins.toFile` and derivations. Always SHA-256.
    Text,
}

impl Method {
    /// The method of a content address.
    ///
    /// # Errors
    /// [`NamingError::Git`]
    pub fn of(ca: &CAHash) -> Result<Self, NamingError> {
        match ca {
            CAHash::Flat(hash) => Ok(Self::Flat(hash.algorithm())),
            CAHash::Nar(hash) => Ok(Self::Recursive(hash.algorithm())),
            CAHash::Text(_) => Ok(Self::Text),
            CAHash::Git(_) => Err(NamingError::Git),
        }
    }

    /// The algorithm to hash the archive with, where it is not the one that is used anyway.
    pub(crate) fn extra(self) -> Option<HashAlgorithm> {
        match self {
            Self::Recursive(algorithm) if algorithm != HashAlgorithm::Sha256 => Some(algorithm),
            _ => None,
        }
    }

    /// The algorithm to hash the bytes of the one file with.
    pub(crate) fn flat(self) -> Option<HashAlgorithm> {
        match self {
            Self::Flat(algorithm) => Some(algorithm),
            Self::Text => Some(HashAlgorithm::Sha256),
            Self::Recursive(_) => None,
        }
    }
}

/// A path that is to be made from content.
#[derive(Debug, Clone)]
pub struct ContentName {
    /// The part after the hash.
    pub name: String,
    /// How the hash is made.
    pub method: Method,
    /// What the content refers to; part of the hash.
    pub references: BTreeSet<StorePath>,
    /// Where the caller knows what must come out, it is checked.
    pub expected: Option<StorePath>,
}

impl ContentName {
    /// A source as `builtins.path` and paths in derivations make it: recursive SHA-256, no references.
    #[must_use]
    pub fn source(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            method: Method::Recursive(HashAlgorithm::Sha256),
            references: BTreeSet::new(),
            expected: None,
        }
    }
}

/// Under which path content is added.
#[derive(Debug, Clone)]
pub enum Naming {
    /// The path follows from the content.
    Content(ContentName),
    /// The path is given by somebody who is believed, and the content must be exactly as described:
    /// archive hash and size, tree digest, and the content address, where there is one.
    Known(PathInfo),
    /// The same from a place that knows archives alone (a binary cache, an import): the tree digest
    /// given is not looked at, but computed.
    KnownArchive(PathInfo),
}

/// Why content cannot have the name it should get.
#[derive(Debug, thiserror::Error)]
pub enum NamingError {
    /// Git trees.
    #[error("content addressing by Git tree is not supported; use 'flat' or 'nar' (recursive)")]
    Git,
    /// Only one file can be hashed by its bytes.
    #[error("'{0}' is not one file without executable bit, so it cannot be added by the hash of its bytes")]
    NotFlat(String),
    /// Not a possible name or combination.
    #[error("'{name}' cannot be named by its content: {source}")]
    Path {
        /// The name asked for.
        name: String,
        /// What is wrong.
        source: StorePathError,
    },
    /// An unreadable content address.
    #[error("'{ca}', the content address given for {path}, cannot be read: {reason}")]
    ContentAddress {
        /// Whose.
        path: StorePath,
        /// The text.
        ca: String,
        /// What is wrong.
        reason: String,
    },
    /// The content belongs to another path.
    #[error("the content belongs to {computed}, not to {expected}")]
    Mismatch {
        /// What it should have been.
        expected: StorePath,
        /// What it is.
        computed: StorePath,
    },
    /// The content has another hash than the derivation says.
    #[error("hash mismatch in {path}:\n  specified: {specified}\n  got:       {got}")]
    Hash {
        /// The output.
        path: StorePath,
        /// What the derivation says, in SRI notation.
        specified: String,
        /// What was made.
        got: String,
    },
    /// A fixed output depends on its inputs.
    #[error(
        "the fixed output {path} refers to {reference}; what is named by its content alone may not refer to other paths"
    )]
    FixedReference {
        /// The output.
        path: StorePath,
        /// What it refers to.
        reference: StorePath,
    },
}

/// The hashes made over a tree.
pub(crate) struct TreeHashes {
    pub(crate) nar: [u8; 32],
    pub(crate) extra: Option<NixHash>,
    pub(crate) flat: Option<NixHash>,
}

/// The content address of a tree.
pub(crate) fn content_address(method: Method, name: &str, hashes: TreeHashes) -> Result<CAHash, NamingError> {
    let not_flat = || NamingError::NotFlat(name.to_owned());
    match method {
        Method::Recursive(_) => Ok(CAHash::Nar(hashes.extra.unwrap_or(NixHash::Sha256(hashes.nar)))),
        Method::Flat(_) => Ok(CAHash::Flat(hashes.flat.ok_or_else(not_flat)?)),
        Method::Text => match hashes.flat {
            Some(NixHash::Sha256(digest)) => Ok(CAHash::Text(digest)),
            _ => Err(not_flat()),
        },
    }
}

/// The path of this content.
pub(crate) fn content_path(
    name: &str,
    ca: &CAHash,
    references: &BTreeSet<StorePath>,
) -> Result<StorePath, NamingError> {
    build_ca_path(name, ca, references, false).map_err(|source| {
        let name = name.to_owned();
        NamingError::Path { name, source }
    })
}

/// Makes sure that a path is the one that follows from its content.
pub(crate) fn check_path(
    expected: &StorePath,
    ca: &CAHash,
    references: &BTreeSet<StorePath>,
) -> Result<(), NamingError> {
    let computed = content_path(expected.name(), ca, references)?;
    if computed == *expected {
        return Ok(());
    }
    let expected = expected.clone();
    Err(NamingError::Mismatch { expected, computed })
}
