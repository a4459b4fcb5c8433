//! What the swarm needs of the node's store.

use std::fs::File;

use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::messages::{PathHash, Shown};
use tvix_node_protocol::nix::store_path::StorePath;
use tvix_node_protocol::subtrees::ChainingValue;
use tvix_node_protocol::tree::{BlobDigest, Tree, TreeDigest};

/// The store failed. The peer is told no more than that.
#[derive(Debug, thiserror::Error)]
#[error("the store failed: {0}")]
pub struct ShelfError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

impl ShelfError {
    /// From whatever the store says.
    pub fn new(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(error.into())
    }
}

/// Keeps a tree here as long as it lives. It may go where nothing may block.
pub type Loan = Box<dyn Send + Sync>;

/// The node's store, as far as members may see it. Methods block; they are called where that is allowed.
///
/// What a peer may have is decided here, by path and by tree: a file or directory is never served for
/// its own digest, only as a part of a tree the peer may have. So a private path stays private although
/// somebody knows, or guesses, the digest of a file in it.
pub trait Shelf: Send + Sync + 'static {
    /// Paths that all members may know of, in order, from after `after` on, at most `limit`. Private
    /// paths are not among them.
    ///
    /// # Errors
    /// [`ShelfError`]
    fn advertised(&self, after: Option<&StorePath>, limit: usize) -> Result<Vec<StorePath>, ShelfError>;

    /// Paths that are here and begin with this hash: one, or none, if nobody has found two names for one hash. Those that
    /// members may not know of may be left out.
    ///
    /// # Errors
    /// [`ShelfError`]
    fn with_hash(&self, hash: &PathHash) -> Result<Vec<StorePath>, ShelfError> {
        let mut found = self.advertised(None, usize::MAX)?;
        found.retain(|path| path.digest() == hash);
        Ok(found)
    }

    /// What is known of a path, where it is here and this peer may have it.
    ///
    /// # Errors
    /// [`ShelfError`]
    fn path_info(&self, peer: NodeKey, path: &StorePath) -> Result<Option<Shown>, ShelfError>;

    /// Whether this peer may have a tree: the content of a path it may have, or something that was made
    /// for it alone.
    ///
    /// # Errors
    /// [`ShelfError`]
    fn may_serve(&self, peer: NodeKey, root: TreeDigest) -> Result<bool, ShelfError>;

    /// Keeps a tree that this peer may have where it is, while the answer to one question for it lives and until the peer has had
    /// time to ask the next: what is collected in between would have to be fetched from others.
    ///
    /// # Errors
    /// [`ShelfError`]
    fn lend(&self, _: NodeKey, _: TreeDigest) -> Result<Loan, ShelfError> {
        Ok(Box::new(()))
    }

    /// A tree that is here, or a directory in one.
    ///
    /// # Errors
    /// [`ShelfError`]
    fn tree(&self, digest: TreeDigest) -> Result<Option<Tree>, ShelfError>;

    /// Bytes of the encoding of a tree that is here, or of a directory in one. It is asked before the tree, so that there is
    /// room for it when it is read.
    ///
    /// # Errors
    /// [`ShelfError`]
    fn tree_size(&self, digest: TreeDigest) -> Result<Option<usize>, ShelfError> {
        Ok(self.tree(digest)?.map(|tree| tree.to_bytes().len()))
    }

    /// Which of these files are here already, whichever tree they are in: they are not fetched again.
    ///
    /// # Errors
    /// [`ShelfError`]
    fn has_blobs(&self, blobs: &[BlobDigest]) -> Result<Vec<bool>, ShelfError>;

    /// The bytes of a file that is here.
    ///
    /// # Errors
    /// [`ShelfError`]
    fn blob(&self, digest: BlobDigest) -> Result<Option<File>, ShelfError>;

    /// The hashes of the parts of a large file that is here ([`subtrees`](tvix_node_protocol::subtrees)), in order; none where
    /// they are not known. With them it is served without being read as a whole before.
    ///
    /// # Errors
    /// [`ShelfError`]
    fn subtrees(&self, _: BlobDigest) -> Result<Vec<ChainingValue>, ShelfError> {
        Ok(Vec::new())
    }
}
