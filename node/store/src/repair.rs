//! Putting a whole tree in the place of a damaged one.
//!
//! The new tree is written and checked beside; then both change places in one step, so that the name
//! has the one or the other at every instant, and the damaged one goes. The index stays as it is: it
//! describes the whole tree already.

use tvix_node_protocol::StorePath;
use tvix_node_protocol::path_info::PathInfo;

use crate::add::{AddError, Prepared};
use crate::arrived::{Arrived, Origins};
use crate::disk::{Context, FileError};
use crate::folder_cache::CacheError;
use crate::index::IndexError;
use crate::naming::Naming;
use crate::registration::Registration;
use crate::share::Sharing;
use crate::store::Store;
use crate::sync::sync_trees;

/// Why a tree was not repaired. It is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// Not in the store.
    #[error("{0} is not in the store, so there is nothing to repair")]
    NotValid(StorePath),
    /// What came is not the tree that is to be repaired, or could not be written.
    #[error(transparent)]
    Add(#[from] AddError),
    /// The archive that a binary cache has cannot be read.
    #[error(transparent)]
    Cache(#[from] Box<CacheError>),
    /// The file system refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// The index refused.
    #[error(transparent)]
    Index(#[from] IndexError),
}

impl Store {
    /// Writes the tree of a valid path anew from content that a peer sent, which must be exactly the
    /// tree that is registered. All of its files must have arrived: those of the store itself may be the
    /// damaged ones. Afterwards its files are shared with no other tree; whatever shared the damaged
    /// ones is damaged, too, and is repaired by itself.
    ///
    /// While anything is leased, the damaged tree stays on the disk until the next start: a build may be
    /// looking at it.
    ///
    /// # Errors
    /// See [`RepairError`].
    pub fn repair(&self, path: &StorePath, content: &dyn Arrived) -> Result<PathInfo, RepairError> {
        self.repair_with(path, |info| {
            Ok(self.prepare_from(
                info.tree,
                content,
                Naming::Known(info.clone()),
                Origins::ArrivedOnly,
                &Sharing::none(),
            )?)
        })
    }

    pub(crate) fn repair_with(
        &self,
        path: &StorePath,
        prepare: impl FnOnce(&PathInfo) -> Result<Prepared, RepairError>,
    ) -> Result<PathInfo, RepairError> {
        let inner = &self.inner;
        let not_valid = || RepairError::NotValid(path.clone());
        let in_use = !inner.leases.lock().is_empty();
        let lease = self.lease();
        let info = lease.hold_one(path)?.ok_or_else(not_valid)?;
        let mut prepared = prepare(&info)?;
        let trees = &inner.trees;
        sync_trees(trees, &[&prepared.written])?;
        // Nobody names or collects trees meanwhile.
        let registration = Registration::begin(inner, &[])?;
        let now = inner.index.path(path)?.ok_or_else(not_valid)?;
        if now.info.tree != info.tree {
            return Err(not_valid());
        }
        let name = path.to_basename();
        trees.put_in_place(prepared.written.temporary.name(), &name)?;
        trees.disk.sync_file(trees.fd()).on("sync", || trees.path())?;
        registration.end();
        if in_use {
            // The temporary name is the damaged tree's now; the next start removes it.
            prepared.written.temporary.keep();
        }
        Ok(info)
    }
}
