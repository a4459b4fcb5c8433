//! What the store has, page by page, and by content. For the node itself: no door lists a store.

use std::ops::Bound;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::tree::{BlobDigest, TreeDigest};

use crate::index::{FILES, IndexError, PATHS, TREE_NUMBERS, TREES, UNACCEPTED, path_from_key, path_key};
use crate::store::Store;
use crate::trees::hash_of_unaccepted;

impl Store {
    /// Valid paths in the order of their hashes, from after `after` on, at most `limit`.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn paths_after(&self, after: Option<&StorePath>, limit: usize) -> Result<Vec<StorePath>, IndexError> {
        self.inner.index.read(|transaction| {
            let paths = transaction.open_table(PATHS)?;
            let key = after.map(path_key);
            let from = key.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let mut page = Vec::new();
            for entry in paths.range::<&[u8]>((from, Bound::Unbounded))?.take(limit) {
                page.push(path_from_key(entry?.0.value())?);
            }
            Ok(page)
        })
    }

    /// Valid paths that begin with this hash: one, or none, if nobody has found two names for one hash.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn paths_with_hash(&self, hash: &[u8; 20]) -> Result<Vec<StorePath>, IndexError> {
        self.inner.index.read(|transaction| {
            let paths = transaction.open_table(PATHS)?;
            let mut found = Vec::new();
            for entry in paths.range::<&[u8]>((Bound::Included(hash.as_slice()), Bound::Unbounded))? {
                let path = path_from_key(entry?.0.value())?;
                if path.digest() != hash {
                    break;
                }
                found.push(path);
            }
            Ok(found)
        })
    }

    /// Valid paths whose accepted tree this is.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn paths_of_tree(&self, tree: TreeDigest) -> Result<Vec<StorePath>, IndexError> {
        self.inner.index.read(|transaction| {
            let (numbers, trees) = (
                transaction.open_table(TREE_NUMBERS)?,
                transaction.open_table(TREES)?,
            );
            let mut found = Vec::new();
            for entry in numbers.range((&tree.0, 0)..=(&tree.0, u64::MAX))? {
                let number = entry?.0.value().1;
                // A tree that lies under its digest has a name that is no store path's.
                if let Some(name) = trees.get(number)?
                    && let Ok(path) = StorePath::from_basename(name.value().as_bytes())
                {
                    found.push(path);
                }
            }
            Ok(found)
        })
    }

    /// Paths of which this is the accepted tree, and after them those beside whose accepted one it lies.
    pub(crate) fn paths_with_tree(&self, tree: TreeDigest) -> Result<Vec<StorePath>, IndexError> {
        let mut found = self.paths_of_tree(tree)?;
        let beside = self.inner.index.read(|transaction| {
            let (numbers, trees) = (
                transaction.open_table(TREE_NUMBERS)?,
                transaction.open_table(TREES)?,
            );
            let unaccepted = transaction.open_table(UNACCEPTED)?;
            let mut found = Vec::new();
            for entry in numbers.range((&tree.0, 0)..=(&tree.0, u64::MAX))? {
                let Some(name) = trees.get(entry?.0.value().1)? else {
                    continue;
                };
                let Some(hash) = hash_of_unaccepted(name.value()) else {
                    continue;
                };
                for entry in unaccepted.range((hash.as_slice(), &[0; 32])..)? {
                    let key = entry?.0;
                    let (path, beside) = key.value();
                    if !path.starts_with(&hash) {
                        break;
                    }
                    if *beside == tree.0 {
                        found.push(path_from_key(path)?);
                    }
                }
            }
            Ok(found)
        })?;
        found.extend(beside);
        Ok(found)
    }

    /// Whether a file with these bytes lies in any tree of the store, for each of these.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn has_blobs(&self, blobs: &[BlobDigest]) -> Result<Vec<bool>, IndexError> {
        self.inner.index.read(|transaction| {
            let files = transaction.open_table(FILES)?;
            let has = |blob: &BlobDigest| {
                let range = (&blob.0, false, 0, 0)..=(&blob.0, true, u32::MAX, u64::MAX);
                Ok(files.range(range)?.next().transpose()?.is_some())
            };
            blobs.iter().map(has).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use tvix_node_protocol::tree::BlobDigest;

    use crate::{ContentName, Naming, Store};

    #[test]
    fn paths_are_listed_page_by_page_and_found_by_their_tree() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        std::fs::write(&source, "one and the same").unwrap();
        let store = Store::open(&folder.path().join("home")).unwrap();
        let lease = store.lease();
        let mut added: Vec<_> = (0..7)
            .map(|number| {
                let name = Naming::Content(ContentName::source(format!("source-{number}")));
                store.add_source(&source, name, &lease).unwrap()
            })
            .collect();
        added.sort_by_key(|info| crate::index::path_key(&info.path));
        let all: Vec<_> = added.iter().map(|info| info.path.clone()).collect();
        let mut listed = Vec::new();
        loop {
            let page = store.paths_after(listed.last(), 3).unwrap();
            assert!(page.len() <= 3);
            if page.is_empty() {
                break;
            }
            listed.extend(page);
        }
        assert_eq!(listed, all);
        let mut same = store.paths_of_tree(added[0].tree).unwrap();
        same.sort_by_key(crate::index::path_key);
        assert_eq!(same, all);
        let blobs = [BlobDigest::of(b"one and the same"), BlobDigest::of(b"another")];
        assert_eq!(store.has_blobs(&blobs).unwrap(), [true, false]);
        let other = tvix_node_protocol::tree::TreeDigest([7; 32]);
        assert_eq!(store.paths_of_tree(other).unwrap(), []);
    }
}
