//! The store's handle.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use tvix_node_protocol::StorePath;

use crate::buffers::Buffers;
use crate::commit::Committer;
use crate::index::{Index, write_uses};
use crate::leases::{Lease, Leases};
use crate::open::HomeLock;
use crate::registration::Gate;
use crate::share::Sharing;
use crate::trees::Trees;

/// An open store. Cheap to clone; all clones are the same store, for any number of threads.
///
/// The home is given free when the last clone, [`Lease`] and [`Prepared`](crate::Prepared) is gone.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) home: PathBuf,
    pub(crate) trees: Arc<Trees>,
    pub(crate) index: Index,
    pub(crate) sharing: Sharing,
    pub(crate) buffers: Buffers,
    pub(crate) leases: Leases,
    pub(crate) committer: Committer,
    /// Held while names among the trees and the index change together.
    pub(crate) gate: Mutex<Gate>,
    pub(crate) next_number: AtomicU64,
    /// Bytes of logs written so far.
    pub(crate) logged: AtomicU64,
    /// Last, so that the home is free only when everything else is closed.
    pub(crate) _lock: HomeLock,
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

impl Inner {
    /// The number of a new tree.
    pub(crate) fn next_number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let uses = self.leases.take_uses();
        if uses.is_empty() {
            return;
        }
        if let Err(error) = self.index.write(|transaction| write_uses(transaction, &uses)) {
            tracing::warn!(%error, "when paths were used last could not be written down");
        }
    }
}

impl Store {
    /// The home this store is in.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.inner.home
    }

    /// Where the tree of a path lies, if the path is valid: `<home>/nix/store/<hash>-<name>`.
    #[must_use]
    pub fn physical(&self, path: &StorePath) -> PathBuf {
        self.inner.trees.path().join(path.to_basename())
    }

    /// A new lease, of nothing yet.
    #[must_use]
    pub fn lease(&self) -> Lease {
        Lease::new(&self.inner)
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Store({})", self.inner.home.display())
    }
}
