//! Trees that are being fetched from here, which a collection leaves alone.
//!
//! A peer asks for a tree in many questions. If it were collected between two of them, the peer would have to go to another
//! provider, and there may be none.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::tree::TreeDigest;
use tvix_node_store::{IndexError, Lease, Store};

use super::limits::{LENT, LENT_PER_PEER, LENT_TIME};

/// See the [module](self). For all teams of the node.
pub struct Lent {
    store: Store,
    trees: Mutex<HashMap<Whose, Tree>>,
    bounds: Bounds,
}

/// A tree, and who fetches it. A peer has another key in each team.
type Whose = (NodeKey, TreeDigest);

#[derive(Debug, Clone, Copy)]
struct Bounds {
    each: usize,
    all: usize,
    quiet: Duration,
}

struct Tree {
    _lease: Lease,
    /// Questions that are being answered.
    questions: usize,
    /// When the last one was.
    last: Instant,
}

/// An answer is on its way.
struct Question {
    lent: Arc<Lent>,
    whose: Whose,
}

impl Drop for Question {
    fn drop(&mut self) {
        if let Some(tree) = self.lent.lock().get_mut(&self.whose) {
            tree.questions -= 1;
            tree.last = Instant::now();
        }
    }
}

impl Lent {
    /// Nothing is fetched yet.
    #[must_use]
    pub fn new(store: Store) -> Self {
        let bounds = Bounds {
            each: LENT_PER_PEER,
            all: LENT,
            quiet: LENT_TIME,
        };
        let trees = Mutex::default();
        Self { store, trees, bounds }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Whose, Tree>> {
        self.trees.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A peer asks for a part of a tree. That stays here until the answer is dropped, and for a while; unless more is fetched than
    /// stays. Blocks.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn lend(
        self: &Arc<Self>,
        peer: NodeKey,
        root: TreeDigest,
    ) -> Result<Box<dyn Send + Sync>, IndexError> {
        let (whose, lent) = ((peer, root), Arc::clone(self));
        let question = move || Box::new(Question { lent, whose });
        if let Some(tree) = self.lock().get_mut(&whose) {
            tree.questions += 1;
            return Ok(question());
        }
        let lease = self.store.lease();
        if !lease.hold_tree(root)? {
            return Ok(Box::new(()));
        }
        let new = Tree {
            _lease: lease,
            questions: 0,
            last: Instant::now(),
        };
        // A lease waits for a collection before it goes, and nobody else may wait for that.
        let mut going = Vec::new();
        let mut trees = self.lock();
        // Somebody may have asked for another part meanwhile.
        let there = trees.contains_key(&whose);
        let stays = there
            || self.make_room(&mut trees, Some(peer), self.bounds.each, &mut going)
                && self.make_room(&mut trees, None, self.bounds.all, &mut going);
        match there || !stays {
            true => going.push(new),
            false => drop(trees.insert(whose, new)),
        }
        if let Some(tree) = trees.get_mut(&whose) {
            tree.questions += 1;
        }
        drop(trees);
        drop(going);
        match stays {
            true => Ok(question()),
            false => Ok(Box::new(())),
        }
    }

    /// Whether there is room for one more, of this peer or at all. What was not asked for for longest is `going`.
    fn make_room(
        &self,
        trees: &mut HashMap<Whose, Tree>,
        of: Option<NodeKey>,
        most: usize,
        going: &mut Vec<Tree>,
    ) -> bool {
        let counts = |whose: &Whose| of.is_none_or(|peer| peer == whose.0);
        while trees.keys().filter(|whose| counts(whose)).count() >= most {
            let quiet = trees
                .iter()
                .filter(|(whose, tree)| counts(whose) && tree.questions == 0);
            let oldest = quiet.min_by_key(|(_, tree)| tree.last).map(|(whose, _)| *whose);
            let Some(oldest) = oldest else {
                return false;
            };
            going.extend(trees.remove(&oldest));
        }
        true
    }

    /// What nobody asks for any more may be collected.
    pub fn let_go(&self) {
        let quiet = self.bounds.quiet;
        let goes = |tree: &mut Tree| tree.questions == 0 && tree.last.elapsed() >= quiet;
        let going: Vec<(Whose, Tree)> = self.lock().extract_if(|_, tree| goes(tree)).collect();
        drop(going);
    }
}

#[cfg(test)]
mod tests {
    use tvix_node_protocol::StorePath;
    use tvix_node_protocol::path_info::PathInfo;
    use tvix_node_store::{ContentName, GcOptions, Naming};

    use super::*;

    const ANN: NodeKey = NodeKey([1; 32]);
    const BOB: NodeKey = NodeKey([2; 32]);

    fn lent(folder: &tempfile::TempDir, each: usize, all: usize, quiet: Duration) -> Arc<Lent> {
        let store = Store::open(folder.path()).unwrap();
        let bounds = Bounds { each, all, quiet };
        Arc::new(Lent {
            bounds,
            ..Lent::new(store)
        })
    }

    fn add(lent: &Lent, word: &str) -> PathInfo {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), word).unwrap();
        let name = Naming::Content(ContentName::source(word));
        let (store, lease) = (&lent.store, lent.store.lease());
        store.add_source(file.path(), name, &lease).unwrap()
    }

    /// Whether a path survives a collection.
    fn stays(lent: &Lent, path: &StorePath) -> bool {
        lent.let_go();
        lent.store.gc(&GcOptions::default()).unwrap();
        lent.store.query(path).unwrap().is_some()
    }

    #[test]
    fn a_tree_stays_between_two_questions() {
        let folder = tempfile::tempdir().unwrap();
        let lent = lent(&folder, 10, 10, Duration::from_secs(3600));
        let (asked, other) = (add(&lent, "asked"), add(&lent, "other"));
        drop(lent.lend(ANN, asked.tree).unwrap());
        assert!(stays(&lent, &asked.path) && !stays(&lent, &other.path));
        // What is not here is not kept.
        drop(lent.lend(ANN, other.tree).unwrap());
        assert_eq!(lent.lock().len(), 1);
    }

    #[test]
    fn a_tree_that_nobody_asks_for_any_more_goes_and_not_before_all_questions_are_answered() {
        let folder = tempfile::tempdir().unwrap();
        let lent = lent(&folder, 10, 10, Duration::ZERO);
        let info = add(&lent, "it");
        let [first, second] = [(); 2].map(|()| lent.lend(ANN, info.tree).unwrap());
        assert!(stays(&lent, &info.path));
        drop(first);
        assert!(stays(&lent, &info.path), "one is being answered");
        drop(second);
        assert!(!stays(&lent, &info.path));
    }

    #[test]
    fn no_more_stays_for_one_peer_and_for_all_than_may() {
        let folder = tempfile::tempdir().unwrap();
        let lent = lent(&folder, 2, 3, Duration::from_secs(3600));
        let infos = ["a", "b", "c", "d", "e"].map(|word| add(&lent, word));
        let here = |number: usize| lent.store.query(&infos[number].path).unwrap().is_some();
        let lend = |peer, number: usize| lent.lend(peer, infos[number].tree).unwrap();
        drop(lend(ANN, 0));
        let held = lend(ANN, 1);
        // The first makes room for the third, and nothing does for what comes beside two that are being answered.
        let more = lend(ANN, 2);
        drop(lend(ANN, 3));
        drop(lend(BOB, 4));
        stays(&lent, &infos[0].path);
        assert_eq!([0, 1, 2, 3, 4].map(here), [false, true, true, false, true]);
        // The only one that nobody is answered about is bob's.
        let infos = ["f", "g"].map(|word| add(&lent, word));
        let carol = NodeKey([3; 32]);
        let third = lent.lend(carol, infos[0].tree).unwrap();
        drop(lent.lend(BOB, infos[1].tree).unwrap());
        stays(&lent, &infos[0].path);
        let here = |info: &PathInfo| lent.store.query(&info.path).unwrap().is_some();
        assert!(here(&infos[0]) && !here(&infos[1]));
        drop((held, more, third));
    }
}
