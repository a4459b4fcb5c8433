//! Trees that are not the accepted one for their name.
//!
//! Two trees for one name are normal: not every build is reproducible, and what somebody sends need not
//! be believed. Such a tree lies under its digest beside the accepted one, is never visible under the
//! name, and can become the accepted one as long as there is none.

use redb::ReadableTable;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::path_info::PathInfo;
use tvix_node_protocol::tree::TreeDigest;

use std::path::PathBuf;

use crate::add::{AddError, Prepared};
use crate::audience::move_audience;
use crate::commit::Batch;
use crate::index::{IndexError, PATHS, TREES, UNACCEPTED, insert_path, path_key, read_path, read_unaccepted};
use crate::intent::Intended;
use crate::leases::Lease;
use crate::registration::Registration;
use crate::store::Store;
use crate::trees::unaccepted_name;

impl Store {
    /// Stores prepared trees under their digests. What they refer to need not be in the store. A tree
    /// that is the accepted one of its path is answered as that.
    ///
    /// # Errors
    /// What file system and index refuse.
    pub fn register_unaccepted(
        &self,
        prepared: Vec<Prepared>,
        lease: &Lease,
    ) -> Result<Vec<PathInfo>, AddError> {
        self.submit(Batch::unaccepted(prepared), lease)
    }

    /// What is known of the trees that are stored for a path beside the accepted one.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn unaccepted(&self, path: &StorePath) -> Result<Vec<PathInfo>, IndexError> {
        let records = self.inner.index.all_unaccepted(path)?;
        Ok(records.into_iter().map(|record| record.info).collect())
    }

    /// Where such a tree lies.
    #[must_use]
    pub fn physical_unaccepted(&self, path: &StorePath, tree: &TreeDigest) -> PathBuf {
        self.inner.trees.path().join(unaccepted_name(path, *tree))
    }

    /// Makes a tree that is stored under its digest the accepted one of its path, durably. One that is
    /// already stays so.
    ///
    /// # Errors
    /// [`AddError::NoSuchTree`]; [`AddError::Conflict`] where the path has an accepted tree already;
    /// [`AddError::MissingReference`].
    pub fn accept(&self, path: &StorePath, tree: &TreeDigest, lease: &Lease) -> Result<PathInfo, AddError> {
        lease.reserve([path]);
        let (from, to) = (unaccepted_name(path, *tree), path.to_basename());
        let intended = Intended {
            name: to.clone(),
            before: Some(from.clone()),
        };
        let mut registration = Registration::begin(&self.inner, &[intended])?;
        let mut renamed = false;
        let written = self.inner.index.write(|transaction| {
            if let Some(present) = read_path(&transaction.open_table(PATHS)?, path)?
                && present.info.tree == *tree
            {
                return Ok(Ok(present.info));
            }
            let mut unaccepted = transaction.open_table(UNACCEPTED)?;
            let Some(record) = read_unaccepted(&unaccepted, path, *tree)? else {
                let (path, tree) = (path.clone(), *tree);
                return Ok(Err(AddError::NoSuchTree { path, tree }));
            };
            {
                let paths = transaction.open_table(PATHS)?;
                if let Some(present) = read_path(&paths, path)? {
                    return Ok(Err(AddError::Conflict {
                        path: path.clone(),
                        have: present.info.tree,
                        offered: *tree,
                    }));
                }
                for reference in record
                    .info
                    .references
                    .iter()
                    .filter(|&reference| reference != path)
                {
                    if paths.get(path_key(reference).as_slice())?.is_none() {
                        let (path, reference) = (path.clone(), reference.clone());
                        return Ok(Err(AddError::MissingReference { path, reference }));
                    }
                }
            }
            if let Err(error) = registration.name_tree(&from, &to) {
                return Ok(Err(error.into()));
            }
            renamed = true;
            unaccepted.remove((path_key(path).as_slice(), &tree.0))?;
            transaction
                .open_table(TREES)?
                .insert(record.number, to.as_str())?;
            insert_path(transaction, &record)?;
            move_audience(transaction, (&from, &to), &record)?;
            Ok(Ok(record.info))
        });
        let result = match written {
            Ok(result) => result,
            Err(error) => {
                self.inner.index.reopen()?;
                match self.inner.index.path(path)? {
                    Some(record) => Ok(record.info),
                    None => {
                        if renamed {
                            self.inner.trees.name_tree(&to, &from)?;
                        }
                        Err(error.into())
                    }
                }
            }
        };
        registration.end();
        result
    }
}
