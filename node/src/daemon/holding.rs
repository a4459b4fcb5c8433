//! What the node's own work keeps from being collected, and for how long.
//!
//! A build, a request, a push names paths in many places. They do not each keep books of what they named: the lease of
//! the moment takes it, and every work says when it begins and when it is over. Leases are changed now and then. One is
//! given up when everything is over that had begun before the next one: whatever was named under it was named for that.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tvix_node_store::{Lease, Store};

/// How long a lease takes what is named, while works begin. What is over stays so much longer at most, and a collection
/// changes it in any case.
const TURN: Duration = Duration::from_secs(60);

/// See the [module](self).
pub struct Holding {
    store: Store,
    leases: Mutex<Leases>,
}

struct Leases {
    current: Arc<Lease>,
    /// The number of the current one.
    number: u64,
    since: Instant,
    /// Those before, with their numbers.
    older: VecDeque<(u64, Arc<Lease>)>,
    /// How many works have begun under which lease and are not over.
    works: BTreeMap<u64, usize>,
}

impl Leases {
    fn turn(&mut self, store: &Store) {
        let before = std::mem::replace(&mut self.current, Arc::new(store.lease()));
        self.older.push_back((self.number, before));
        self.number += 1;
        self.since = Instant::now();
        self.give_up();
    }

    fn give_up(&mut self) {
        let needed = self.works.keys().next().copied().unwrap_or(self.number);
        while self.older.front().is_some_and(|(number, _)| *number < needed) {
            self.older.pop_front();
        }
    }
}

/// A work that is not over until this is dropped. What it names stays as long.
pub struct Work {
    holding: Arc<Holding>,
    since: u64,
}

impl Holding {
    /// Nothing is named yet.
    pub fn new(store: Store) -> Self {
        let leases = Mutex::new(Leases {
            current: Arc::new(store.lease()),
            number: 0,
            since: Instant::now(),
            older: VecDeque::new(),
            works: BTreeMap::new(),
        });
        Self { store, leases }
    }

    fn lock(&self) -> MutexGuard<'_, Leases> {
        // What is behind this lock is changed in one step.
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lease that takes what is named now. What is named outside of a work stays until the next collection.
    pub fn lease(&self) -> Arc<Lease> {
        Arc::clone(&self.lock().current)
    }

    /// A work begins.
    pub fn begin(self: &Arc<Self>) -> Work {
        let mut leases = self.lock();
        if leases.since.elapsed() > TURN {
            leases.turn(&self.store);
        }
        let since = leases.number;
        *leases.works.entry(since).or_default() += 1;
        Work {
            holding: Arc::clone(self),
            since,
        }
    }

    /// From now on another lease takes what is named, so that a collection finds what is over.
    pub fn turn(&self) {
        self.lock().turn(&self.store);
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let mut leases = self.holding.lock();
        if let Some(count) = leases.works.get_mut(&self.since) {
            *count -= 1;
            if *count == 0 {
                leases.works.remove(&self.since);
            }
        }
        leases.give_up();
    }
}

#[cfg(test)]
mod tests {
    use tvix_node_protocol::StorePath;
    use tvix_node_store::{ContentName, GcOptions, Naming};

    use super::*;

    fn add(holding: &Holding, word: &str) -> StorePath {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), word).unwrap();
        let name = Naming::Content(ContentName::source(word));
        let added = holding.store.add_source(file.path(), name, &holding.lease());
        added.unwrap().path
    }

    fn there(holding: &Holding, path: &StorePath) -> bool {
        holding.turn();
        holding.store.gc(&GcOptions::default()).unwrap();
        holding.store.query(path).unwrap().is_some()
    }

    #[test]
    fn what_a_work_has_named_stays_until_it_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let holding = Arc::new(Holding::new(Store::open(folder.path()).unwrap()));
        let first = holding.begin();
        let one = add(&holding, "one");
        assert!(there(&holding, &one));
        // Named under a later lease, by what began under the first.
        let two = add(&holding, "two");
        let second = holding.begin();
        let three = add(&holding, "three");
        drop(second);
        assert!(there(&holding, &one) && there(&holding, &two) && there(&holding, &three));
        drop(first);
        assert!(!there(&holding, &one) && !there(&holding, &two) && !there(&holding, &three));
    }

    #[test]
    fn what_is_over_is_not_kept_by_what_began_later() {
        let folder = tempfile::tempdir().unwrap();
        let holding = Arc::new(Holding::new(Store::open(folder.path()).unwrap()));
        let first = holding.begin();
        let one = add(&holding, "one");
        holding.turn();
        let second = holding.begin();
        let two = add(&holding, "two");
        drop(first);
        assert!(!there(&holding, &one) && there(&holding, &two));
        drop(second);
        assert!(!there(&holding, &two));
    }

    #[test]
    fn what_nobody_works_with_stays_until_a_collection() {
        let folder = tempfile::tempdir().unwrap();
        let holding = Arc::new(Holding::new(Store::open(folder.path()).unwrap()));
        let one = add(&holding, "one");
        holding.store.gc(&GcOptions::default()).unwrap();
        assert!(holding.store.query(&one).unwrap().is_some());
        assert!(!there(&holding, &one));
    }
}
