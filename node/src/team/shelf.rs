//! This node's store, as far as members may see it.

use std::fs::File;
use std::sync::Arc;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::BuildRecord;
use tvix_node_protocol::envelope::{Envelope, NodeKey};
use tvix_node_protocol::messages::Shown;
use tvix_node_protocol::path_info::{Origin, PathInfo};
use tvix_node_protocol::tree::{BlobDigest, Tree, TreeDigest};
use tvix_node_store::{IndexError, ReadError, Store};
use tvix_node_swarm::{Shelf, ShelfError};

use super::grants::Grants;
use super::private::PrivateBook;
use super::traffic::TrafficBook;
use crate::daemon::clock::now;

/// The store of a node in a team. Every path that lies under its name is for all members, unless it is private;
/// what lies under its digest is for the one it was made for. Where every byte costs it is for those alone who work
/// for this node.
pub struct StoreShelf {
    store: Store,
    private: Arc<PrivateBook>,
    grants: Arc<Grants>,
    traffic: Arc<TrafficBook>,
    me: NodeKey,
}

impl StoreShelf {
    /// The shelf of the node `me`.
    pub fn new(
        store: Store,
        private: Arc<PrivateBook>,
        (grants, traffic): (Arc<Grants>, Arc<TrafficBook>),
        me: NodeKey,
    ) -> Self {
        Self {
            store,
            private,
            grants,
            traffic,
            me,
        }
    }
}

impl Shelf for StoreShelf {
    fn advertised(&self, after: Option<&StorePath>, limit: usize) -> Result<Vec<StorePath>, ShelfError> {
        public_after(&self.store, &self.private, after, limit).map_err(ShelfError::new)
    }

    fn path_info(&self, peer: NodeKey, path: &StorePath) -> Result<Option<Shown>, ShelfError> {
        if self.private.is_private(path) || !self.traffic.serves(peer) {
            return Ok(None);
        }
        shown(&self.store, self.me, path).map_err(ShelfError::new)
    }

    fn may_serve(&self, peer: NodeKey, root: TreeDigest) -> Result<bool, ShelfError> {
        if self.grants.has(peer, root, now()) {
            return Ok(true);
        }
        if !self.traffic.serves(peer) {
            return Ok(false);
        }
        let paths = self.store.paths_of_tree(root).map_err(ShelfError::new)?;
        Ok(paths.iter().any(|path| !self.private.is_private(path)))
    }

    fn tree(&self, digest: TreeDigest) -> Result<Option<Tree>, ShelfError> {
        self.store.tree(&digest).map_err(ShelfError::new)
    }

    fn has_blobs(&self, blobs: &[BlobDigest]) -> Result<Vec<bool>, ShelfError> {
        self.store.has_blobs(blobs).map_err(ShelfError::new)
    }

    fn blob(&self, digest: BlobDigest) -> Result<Option<File>, ShelfError> {
        self.store
            .open_blob(&digest)
            .map_err(|error: ReadError| ShelfError::new(error))
    }
}

/// Paths that are not private, in order, from after `after` on, at most `limit`; none where there are no more.
///
/// # Errors
/// [`IndexError`]
pub fn public_after(
    store: &Store,
    private: &PrivateBook,
    after: Option<&StorePath>,
    limit: usize,
) -> Result<Vec<StorePath>, IndexError> {
    let mut after = after.cloned();
    loop {
        let mut page = store.paths_after(after.as_ref(), limit)?;
        let Some(last) = page.last().cloned() else {
            return Ok(page);
        };
        page.retain(|path| !private.is_private(path));
        // A page that is private as a whole is not the last one.
        if !page.is_empty() {
            return Ok(page);
        }
        after = Some(last);
    }
}

/// What is known of a path, and the record that speaks for it where there is one.
///
/// # Errors
/// [`IndexError`]
pub fn shown(store: &Store, me: NodeKey, path: &StorePath) -> Result<Option<Shown>, IndexError> {
    let Some(mut info) = store.query(path)? else {
        return Ok(None);
    };
    if info.origin == Origin::Imported {
        // To others it is this node's word.
        info.origin = Origin::Peer { peer: me };
    }
    let builder = match &info.origin {
        Origin::Built => Some(me),
        Origin::Record { builder } => Some(*builder),
        // A fixed output has a record where it was built and not fetched; its name speaks for it.
        Origin::Content | Origin::Peer { .. } | Origin::Cache { .. } | Origin::Imported => None,
    };
    let record = match builder {
        Some(builder) => record_of(store, builder, &info)?,
        None => None,
    };
    Ok(Some(Shown { info, record }))
}

/// The newest record of this builder for exactly this content.
pub fn record_of(store: &Store, builder: NodeKey, info: &PathInfo) -> Result<Option<Envelope>, IndexError> {
    let speaks = |envelope: &Envelope| {
        envelope.signer == builder
            && envelope.open::<BuildRecord>().is_ok_and(|record| {
                let mut outputs = record.outputs.values();
                outputs.any(|output| output.path == info.path && output.tree == info.tree)
            })
    };
    Ok(store.records_of(&info.path)?.into_iter().rev().find(speaks))
}
