//! Putting a whole tree in the place of a damaged one.
//!
//! The new tree is written and checked beside; then both change places in one step, so that the name
//! has the one or the other at every instant, and the damaged one goes. The index stays as it is: it
//! describes the whole tree already.

use rustix::fs::AtFlags;
use rustix::io::Errno;
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
use crate::store::{Inner, Store};
use crate::sync::{path_of, sync_trees};
use crate::tree_writer::Written;
use crate::trees::Trees;

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

impl Inner {
    /// Puts a new tree in the place of the valid one that is its equal by the index, where that one has been touched: where
    /// a file of it has another size, mode or time than everything in the store, or is missing. Whose bytes alone are
    /// damaged is found by reading them ([`Store::verify`]).
    ///
    /// The touched tree stays on the disk until the next start: a build may be looking at it.
    pub(crate) fn mend(&self, path: &StorePath, whole: &mut Written) -> Result<(), FileError> {
        let (trees, name) = (&self.trees, path.to_basename());
        if is_untouched(trees, &name, whole)? {
            return Ok(());
        }
        // Nobody names or collects trees meanwhile; the path is leased, so it is still there.
        let registration = Registration::begin(self, &[])?;
        let placed = trees.put_in_place(whole.temporary.name(), &name);
        registration.end();
        placed?;
        whole.temporary.keep();
        tracing::warn!(%path, "a damaged tree of the store has been replaced by what was added again");
        trees.disk.sync_file(trees.fd()).on("sync", || trees.path())
    }
}

/// Whether files and directories of the tree `name` are as they were put there; `whole` says what it has.
fn is_untouched(trees: &Trees, name: &str, whole: &Written) -> Result<bool, FileError> {
    let look = |name: &str, relative: &[u8]| {
        let place = path_of(name, relative);
        match rustix::fs::statat(trees.fd(), &*place, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some((stat.st_mode, stat.st_size, stat.st_mtime))),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => Ok(None),
            Err(error) => {
                let place = trees.path().join(String::from_utf8_lossy(&place).as_ref());
                Err(FileError::new("look at", place, error))
            }
        }
    };
    for file in &whole.files {
        if look(name, &file.relative)? != look(whole.temporary.name(), &file.relative)? {
            return Ok(false);
        }
    }
    for directory in &whole.directories {
        let kind = |found: Option<(u32, i64, i64)>| found.map(|(mode, ..)| mode);
        if kind(look(name, directory)?) != kind(look(whole.temporary.name(), directory)?) {
            return Ok(false);
        }
    }
    Ok(true)
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
