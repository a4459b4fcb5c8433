//! From a cache into a store.

use std::collections::HashMap;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::nix::narinfo::TrustedPublicKey;
use tvix_node_protocol::path_info::PathInfo;

use super::{CacheError, Cached, FolderCache, GROUP};
use crate::add::{AddError, Prepared};
use crate::graph::references_first;
use crate::leases::Lease;
use crate::limits::CLOSURE_PATHS;
use crate::store::Store;

impl FolderCache {
    /// Adds a path and everything it refers to, as far as it is not in the store: references first, each
    /// checked before it is registered. What was added before an error stays.
    ///
    /// A path is accepted where its name follows from its content, or where one of the `trusted` keys
    /// signed it.
    ///
    /// # Errors
    /// [`CacheError::NotThere`], [`CacheError::Untrusted`], and everything that is not as the cache
    /// says.
    pub fn fetch(
        &self,
        store: &Store,
        path: &StorePath,
        trusted: &[TrustedPublicKey],
        lease: &Lease,
    ) -> Result<PathInfo, CacheError> {
        if let Some(info) = lease.hold_one(path)? {
            return Ok(info);
        }
        // All of them before the first archive is read.
        let accepted = self.accept_closure(path, trusted, lease)?;
        let order = references_first(&accepted, |accepted| accepted.info().references());
        let mut group: Vec<Prepared> = Vec::new();
        for next in order {
            if let Some(accepted) = accepted.get(next) {
                let file = self.archive_file(accepted.info())?;
                group.push(store.prepare_cached(accepted, &file)?);
            }
            if group.len() >= GROUP {
                store.register(std::mem::take(&mut group), lease)?;
            }
        }
        store.register(group, lease)?;
        Ok(lease.hold_one(path)?.ok_or(AddError::Interrupted)?)
    }

    fn accept_closure(
        &self,
        root: &StorePath,
        trusted: &[TrustedPublicKey],
        lease: &Lease,
    ) -> Result<HashMap<StorePath, Cached>, CacheError> {
        let mut accepted: HashMap<StorePath, Cached> = HashMap::new();
        let mut wanted = vec![root.clone()];
        while let Some(path) = wanted.pop() {
            if accepted.contains_key(&path) || lease.hold_one(&path)?.is_some() {
                continue;
            }
            if accepted.len() >= CLOSURE_PATHS {
                return Err(CacheError::Closure {
                    path: root.clone(),
                    cache: self.url(),
                    limit: CLOSURE_PATHS,
                });
            }
            let info = self.info(&path)?.ok_or_else(|| CacheError::NotThere {
                path: path.clone(),
                cache: self.url(),
            })?;
            let cached = Cached::accept(info, &self.url(), trusted)?;
            wanted.extend(cached.info().references().iter().cloned());
            accepted.insert(path, cached);
        }
        Ok(accepted)
    }
}
