//! Leases: paths that a garbage collection leaves alone while somebody works with them.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tvix_node_protocol::StorePath;
use tvix_node_protocol::path_info::PathInfo;
use tvix_node_protocol::tree::TreeDigest;

use crate::index::IndexError;
use crate::limits::NOTED_USES;
use crate::store::{Inner, Store, now};

/// All leases of a store.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    next: AtomicU64,
    held: Mutex<Held>,
    /// Paths used since that was last written down.
    used: Mutex<HashMap<StorePath, u64>>,
}

#[derive(Debug, Default)]
pub(crate) struct Held {
    by_lease: HashMap<u64, HashSet<StorePath>>,
    /// How many collections find out what is used without a lease.
    watches: usize,
    /// What was leased when it began, or since, and is no more. Empty while there is no watch.
    given_up: HashSet<StorePath>,
}

impl Held {
    /// Whether nobody holds a lease.
    pub(crate) fn is_empty(&self) -> bool {
        self.by_lease.is_empty()
    }

    /// All that is leased, and what was since the first [`Watch`] began.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &StorePath> {
        self.by_lease.values().flatten().chain(&self.given_up)
    }

    fn release(&mut self, number: u64) {
        let paths = self.by_lease.remove(&number);
        if self.watches > 0 {
            self.given_up.extend(paths.into_iter().flatten());
        }
    }
}

/// As long as it lives, what was leased counts as leased.
pub(crate) struct Watch<'a>(&'a Leases);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let mut held = self.0.lock();
        held.watches -= 1;
        if held.watches == 0 {
            held.given_up = HashSet::new();
        }
    }
}

impl Leases {
    /// While the answer is held, no path can be leased.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`Watch`], which must not end while the leases are locked by whoever has it.
    pub(crate) fn watch(&self) -> Watch<'_> {
        self.lock().watches += 1;
        Watch(self)
    }

    fn note_use<'p>(&self, paths: impl IntoIterator<Item = &'p StorePath>) {
        let now = now();
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        for path in paths {
            if used.len() >= NOTED_USES {
                // What is missing is at most collected too early, and nobody was using it any more.
                return;
            }
            used.insert(path.clone(), now);
        }
    }

    /// What was used since this was asked last.
    pub(crate) fn take_uses(&self) -> HashMap<StorePath, u64> {
        std::mem::take(&mut self.used.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Keeps paths, and everything they refer to, from being collected until it is dropped.
///
/// Whoever adds a path does so under a lease, so nothing can be collected between being added and
/// being used. A lease lasts as long as this object: it does not survive the process. For longer, make
/// a root.
pub struct Lease {
    number: u64,
    store: Arc<Inner>,
}

impl Lease {
    pub(crate) fn new(store: &Arc<Inner>) -> Self {
        let number = store.leases.next.fetch_add(1, Ordering::Relaxed);
        store.leases.lock().by_lease.insert(number, HashSet::new());
        let store = Arc::clone(store);
        Self { number, store }
    }

    pub(crate) fn is_of(&self, store: &Arc<Inner>) -> bool {
        Arc::ptr_eq(&self.store, store)
    }

    /// Leases paths and says which of them are valid. A path that is answered with its info stays
    /// valid as long as the lease is held; one that is not is protected from the moment it is added.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn hold<'p>(
        &self,
        paths: impl IntoIterator<Item = &'p StorePath> + Clone,
    ) -> Result<Vec<Option<PathInfo>>, IndexError> {
        self.reserve(paths.clone());
        self.store.leases.note_use(paths.clone());
        // Read after the lease is written down: a collection that did not see it has ended.
        let records = self.store.index.paths(paths)?;
        Ok(records
            .into_iter()
            .map(|record| record.map(|record| record.info))
            .collect())
    }

    /// Leases one path. See [`Lease::hold`].
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn hold_one(&self, path: &StorePath) -> Result<Option<PathInfo>, IndexError> {
        Ok(self.hold([path])?.pop().flatten())
    }

    /// Leases the paths that have this content, or beside which it lies, and says whether there is one. That counts as no use of
    /// them.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn hold_tree(&self, tree: TreeDigest) -> Result<bool, IndexError> {
        let store = Store {
            inner: Arc::clone(&self.store),
        };
        let paths = store.paths_with_tree(tree)?;
        // All of them: who may have one need not be allowed to have another.
        self.reserve(&paths);
        // Read after the leases are written down: a collection that did not see them has ended.
        let left = store.paths_with_tree(tree)?;
        Ok(paths.iter().any(|path| left.contains(path)))
    }

    pub(crate) fn reserve<'p>(&self, paths: impl IntoIterator<Item = &'p StorePath>) {
        let mut held = self.store.leases.lock();
        held.by_lease
            .entry(self.number)
            .or_default()
            .extend(paths.into_iter().cloned());
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Lease({})", self.number)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.store.leases.lock().release(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What nobody writes down must not grow.
    #[test]
    fn so_many_uses_are_noted_and_no_more() {
        let leases = Leases::default();
        let path = |number: usize| StorePath::from_parts([7; 20], &number.to_string());
        let paths: Vec<StorePath> = (0..NOTED_USES + 10).map(|number| path(number).unwrap()).collect();
        leases.note_use(&paths);
        assert_eq!(leases.take_uses().len(), NOTED_USES);
        // There is room again once they are written down.
        leases.note_use(&paths[NOTED_USES..]);
        assert_eq!(leases.take_uses().len(), 10);
    }
}
