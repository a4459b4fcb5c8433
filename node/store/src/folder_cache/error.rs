//! What can go wrong with a binary cache.

use std::io;
use std::path::PathBuf;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::nix::narinfo::{NarInfoBuildError, NarInfoError};
use tvix_node_protocol::nix::store_path::STORE_DIR;

use crate::add::AddError;
use crate::index::IndexError;
use crate::naming::NamingError;
use crate::read::ReadError;

/// Why something cannot be done with a binary cache in a folder.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// It is not made by us: a mistyped path or a disk that is not mounted would get a cache that
    /// nobody finds.
    #[error("there is no folder '{}' on this machine; a binary cache needs one that exists", .0.display())]
    NoFolder(PathBuf),
    /// Something else is there.
    #[error("'{}' is not a folder", .0.display())]
    NotAFolder(PathBuf),
    /// The system refused.
    #[error("cannot {action} '{}': {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A cache of another kind of store.
    #[error("{cache} is a cache for the store directory '{found}', not for {STORE_DIR}")]
    StoreDir {
        /// The cache.
        cache: String,
        /// What it says.
        found: String,
    },
    /// Cannot be understood.
    #[error("'{}' is refused: {source}", .file.display())]
    NarInfo {
        /// The file.
        file: PathBuf,
        /// Why.
        source: NarInfoError,
    },
    /// It lies under another path's name.
    #[error("'{}' speaks of {found}, not of {path}", .file.display())]
    OtherPath {
        /// The file.
        file: PathBuf,
        /// Whose it should be.
        path: StorePath,
        /// Whose it is.
        found: StorePath,
    },
    /// Only SHA-256 names archives.
    #[error("{cache} says the hash of the archive of {path} in another algorithm than SHA-256")]
    Algorithm {
        /// The path.
        path: StorePath,
        /// The cache.
        cache: String,
    },
    /// The archive lies elsewhere.
    #[error("{cache} says that the archive of {path} is '{archive}', which is not a file in its folder")]
    Url {
        /// The path.
        path: StorePath,
        /// The cache.
        cache: String,
        /// Where it should be.
        archive: String,
    },
    /// Packed in a way that is not known here.
    #[error("the archive of {path} in {cache} is packed with {found}; known are none, xz and zstd")]
    Compression {
        /// The path.
        path: StorePath,
        /// The cache.
        cache: String,
        /// How it is packed.
        found: String,
    },
    /// Not in the cache.
    #[error("{path} is not in {cache}")]
    NotThere {
        /// The path.
        path: StorePath,
        /// The cache.
        cache: String,
    },
    /// Nobody that is trusted vouches for it.
    #[error("{path} in {cache} is not accepted: {reason}")]
    Untrusted {
        /// The path.
        path: StorePath,
        /// The cache.
        cache: String,
        /// Which keys signed it, if any did.
        reason: String,
    },
    /// The file is another one than it should be.
    #[error("'{}', the archive of {path}, {reason}", .file.display())]
    Archive {
        /// The path.
        path: StorePath,
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The cache has something else under this name.
    #[error("{cache} has other content for {path} already: archive {there}, not {here}")]
    Conflict {
        /// The path.
        path: StorePath,
        /// The cache.
        cache: String,
        /// NAR hash in the cache.
        there: String,
        /// NAR hash in the store.
        here: String,
    },
    /// What is in the store is not what was registered.
    #[error(
        "the store is damaged: {path} has the archive {computed} now, not {registered} as when it was registered"
    )]
    Damaged {
        /// The path.
        path: StorePath,
        /// NAR hash it should have.
        registered: String,
        /// NAR hash it has.
        computed: String,
    },
    /// More than a cache's graph may have.
    #[error("{path} in {cache} refers to more than {limit} paths")]
    Closure {
        /// The path.
        path: StorePath,
        /// The cache.
        cache: String,
        /// Paths allowed.
        limit: usize,
    },
    /// What is known of a path cannot be written as `.narinfo`.
    #[error("what is known of {path} cannot be written to a binary cache: {source}")]
    Build {
        /// The path.
        path: StorePath,
        /// Why.
        source: NarInfoBuildError,
    },
    /// The content cannot have its name.
    #[error(transparent)]
    Naming(#[from] NamingError),
    /// It cannot be added to the store.
    #[error(transparent)]
    Add(#[from] AddError),
    /// It cannot be read from the store.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The store's index refused.
    #[error(transparent)]
    Index(#[from] IndexError),
}

impl CacheError {
    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        Self::Io { action, path, source }
    }
}
