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
        let accepted = self.accept_closure(path, trusted, lease, CLOSURE_PATHS)?;
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
        most: usize,
    ) -> Result<HashMap<StorePath, Cached>, CacheError> {
        let mut accepted: HashMap<StorePath, Cached> = HashMap::new();
        let mut wanted = vec![root.clone()];
        while let Some(path) = wanted.pop() {
            if accepted.contains_key(&path) || lease.hold_one(&path)?.is_some() {
                continue;
            }
            if accepted.len() >= most {
                return Err(CacheError::Closure {
                    path: root.clone(),
                    cache: self.url(),
                    limit: most,
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;

    use tvix_node_protocol::nix::store_path::build_text_path;

    use super::*;
    use crate::Text;

    /// A chain, since a million paths would take an hour.
    #[test]
    fn a_closure_has_so_many_paths_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let open = |name: &str| Store::open(&folder.path().join(name)).unwrap();
        let (from, to) = (open("from"), open("to"));
        let mut texts: Vec<Text> = Vec::new();
        for number in 0..5 {
            let references: BTreeSet<StorePath> =
                texts.last().map(|text| text.path.clone()).into_iter().collect();
            let name = format!("text-{number}");
            texts.push(Text {
                path: build_text_path(&name, b"x", &references).unwrap(),
                references,
                content: b"x".to_vec(),
            });
        }
        from.add_texts(&texts, &from.lease()).unwrap();
        let last = &texts[4].path;
        let cache = folder.path().join("cache");
        std::fs::create_dir(&cache).unwrap();
        let cache = FolderCache::open(&cache).unwrap();
        cache.put(&from, last).unwrap();
        let lease = to.lease();
        let accepted = cache.accept_closure(last, &[], &lease, 5).unwrap();
        assert_eq!(accepted.len(), 5);
        let error = cache
            .accept_closure(last, &[], &lease, 4)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("text-4") && error.contains("refers to more than 4 paths"),
            "{error}"
        );
        cache.fetch(&to, last, &[], &lease).unwrap();
        assert_eq!(to.count().unwrap(), 5);
    }
}
