//! This node's store, as far as members may see it.

use std::fs::File;
use std::sync::Arc;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::SwarmId;
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::messages::{PathHash, Shown};
use tvix_node_protocol::subtrees::ChainingValue;
use tvix_node_protocol::tree::{BlobDigest, Tree, TreeDigest};
use tvix_node_store::{Audience, IndexError, ReadError, Store};
use tvix_node_swarm::{Loan, Shelf, ShelfError};

use super::grants::Grants;
use super::lent::Lent;
use super::private::PrivateBook;
use super::traffic::TrafficBook;
use super::view::TeamView;
use crate::daemon::clock::now;

/// The store of a node in a team. Every path that lies under its name is for all members, unless it is private, or
/// came from another team; what lies under its digest is for the one it was made for. Where every byte costs it is for
/// those alone who work for this node.
pub struct StoreShelf {
    store: Store,
    private: Arc<PrivateBook>,
    grants: Arc<Grants>,
    traffic: Arc<TrafficBook>,
    lent: Arc<Lent>,
    view: TeamView,
}

impl StoreShelf {
    /// The shelf of a node for one of its teams.
    pub fn new(
        store: Store,
        private: Arc<PrivateBook>,
        (grants, traffic): (Arc<Grants>, Arc<TrafficBook>),
        lent: Arc<Lent>,
        view: TeamView,
    ) -> Self {
        Self {
            store,
            private,
            grants,
            traffic,
            lent,
            view,
        }
    }
}

impl Shelf for StoreShelf {
    fn advertised(&self, after: Option<&StorePath>, limit: usize) -> Result<Vec<StorePath>, ShelfError> {
        let team = self.view.team();
        public_after(&self.store, &self.private, team, after, limit).map_err(ShelfError::new)
    }

    fn with_hash(&self, hash: &PathHash) -> Result<Vec<StorePath>, ShelfError> {
        self.store.paths_with_hash(hash).map_err(ShelfError::new)
    }

    fn path_info(&self, peer: NodeKey, path: &StorePath) -> Result<Option<Shown>, ShelfError> {
        if self.private.is_private(path) || !self.traffic.serves(peer) {
            return Ok(None);
        }
        self.view.shown(&self.store, path).map_err(ShelfError::new)
    }

    fn may_serve(&self, peer: NodeKey, root: TreeDigest) -> Result<bool, ShelfError> {
        if self.grants.has(peer, root, now()) {
            return Ok(true);
        }
        if !self.traffic.serves(peer) {
            return Ok(false);
        }
        let mut paths = self.store.paths_of_tree(root).map_err(ShelfError::new)?;
        paths.retain(|path| !self.private.is_private(path));
        let known = self.store.known_to(self.view.team(), &paths);
        Ok(known.map_err(ShelfError::new)?.contains(&true))
    }

    fn lend(&self, peer: NodeKey, root: TreeDigest) -> Result<Loan, ShelfError> {
        self.lent.lend(peer, root).map_err(ShelfError::new)
    }

    fn tree(&self, digest: TreeDigest) -> Result<Option<Tree>, ShelfError> {
        self.store.tree(&digest).map_err(ShelfError::new)
    }

    fn tree_size(&self, digest: TreeDigest) -> Result<Option<usize>, ShelfError> {
        self.store.tree_size(&digest).map_err(ShelfError::new)
    }

    fn has_blobs(&self, blobs: &[BlobDigest]) -> Result<Vec<bool>, ShelfError> {
        // Who only names the content of something hidden, and does not send it, must not get it put together here.
        let counts = |path: Option<&StorePath>, audience: &Audience| {
            audience.includes(self.view.team()) && path.is_none_or(|path| !self.private.is_private(path))
        };
        let has = self.store.has_blobs_among(blobs, &counts);
        has.map_err(ShelfError::new)
    }

    fn blob(&self, digest: BlobDigest) -> Result<Option<File>, ShelfError> {
        self.store
            .open_blob(&digest)
            .map_err(|error: ReadError| ShelfError::new(error))
    }

    fn subtrees(&self, digest: BlobDigest) -> Result<Vec<ChainingValue>, ShelfError> {
        self.store.blob_subtrees(&digest).map_err(ShelfError::new)
    }
}

/// Paths that members of this team may learn of, in order, from after `after` on, at most `limit`; none where there are
/// no more.
///
/// # Errors
/// [`IndexError`]
pub fn public_after(
    store: &Store,
    private: &PrivateBook,
    team: SwarmId,
    after: Option<&StorePath>,
    limit: usize,
) -> Result<Vec<StorePath>, IndexError> {
    let mut after = after.cloned();
    loop {
        let mut page = store.paths_after(after.as_ref(), limit)?;
        let Some(last) = page.last().cloned() else {
            return Ok(page);
        };
        let known = store.known_to(team, &page)?;
        let mut known = known.into_iter();
        page.retain(|path| known.next().unwrap_or(false) && !private.is_private(path));
        // A page that is hidden as a whole is not the last one.
        if !page.is_empty() {
            return Ok(page);
        }
        after = Some(last);
    }
}
