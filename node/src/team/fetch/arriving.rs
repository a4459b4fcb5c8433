//! Who brings which path.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tvix_node_protocol::StorePath;
use tvix_node_swarm::Rising;

/// Paths that are on their way: what two fetches have in common is moved once, as urgently as the more urgent of them.
#[derive(Debug, Default)]
pub struct Arriving(Mutex<Paths>);

#[derive(Debug, Default)]
struct Paths {
    arrive: HashMap<StorePath, Weak<Arrives>>,
    /// How many there were when those that nobody waits for any more were forgotten last.
    left: usize,
}

/// A path that somebody brings or waits for.
#[derive(Debug)]
struct Arrives {
    turn: Arc<tokio::sync::Mutex<()>>,
    /// How urgent it is for all of those together.
    priority: Rising,
}

/// Nobody else brings a path as long as this is held.
#[derive(Debug)]
pub struct BringingTurn {
    _turn: tokio::sync::OwnedMutexGuard<()>,
    arrives: Arc<Arrives>,
}

impl BringingTurn {
    /// How urgent the path is for all who want it.
    #[must_use]
    pub fn priority(&self) -> &Rising {
        &self.arrives.priority
    }
}

impl Arriving {
    /// Waits until nobody else brings this path. Who does so brings it at least so urgently from now on.
    pub async fn turn(&self, path: &StorePath, priority: &Rising) -> BringingTurn {
        let arrives = self.arrives(path, priority);
        let waiting = Arc::clone(&arrives.turn).lock_owned();
        let _turn = priority.raising(&arrives.priority, waiting).await;
        BringingTurn { _turn, arrives }
    }

    /// The same where nobody else does; else none.
    pub(super) fn turn_now(&self, path: &StorePath, priority: &Rising) -> Option<BringingTurn> {
        let arrives = self.arrives(path, priority);
        let _turn = Arc::clone(&arrives.turn).try_lock_owned().ok()?;
        arrives.priority.raise(priority.now());
        Some(BringingTurn { _turn, arrives })
    }

    fn arrives(&self, path: &StorePath, priority: &Rising) -> Arc<Arrives> {
        let mut paths = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // All are looked at when there are twice as many, and not for each of the paths of a closure.
        if paths.arrive.len() > 2 * paths.left {
            paths.arrive.retain(|_, arrives| arrives.strong_count() > 0);
            paths.left = paths.arrive.len();
        }
        if let Some(arrives) = paths.arrive.get(path).and_then(Weak::upgrade) {
            return arrives;
        }
        let arrives = Arc::new(Arrives {
            turn: Arc::default(),
            priority: priority.now().into(),
        });
        paths.arrive.insert(path.clone(), Arc::downgrade(&arrives));
        arrives
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tvix_node_swarm::Priority;

    use super::*;

    fn path(name: &str) -> StorePath {
        let mut hash = [0; 20];
        hash.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..20]);
        StorePath::from_parts(hash, name).unwrap()
    }

    #[tokio::test]
    async fn a_path_is_brought_as_urgently_as_whoever_waits_for_it_wants_it() {
        let (arriving, path) = (Arriving::default(), path("a"));
        let [first, second] = [Priority::Speculative, Priority::Awaited].map(Rising::from);
        let turn = arriving.turn(&path, &first).await;
        let urgency = turn.priority().clone();
        assert_eq!(urgency.now(), Priority::Speculative);
        let mut waiting = Box::pin(arriving.turn(&path, &second));
        assert!(waiting.as_mut().now_or_never().is_none());
        assert_eq!(urgency.now(), Priority::Awaited);
        second.raise(Priority::Import);
        assert!(waiting.as_mut().now_or_never().is_none());
        assert_eq!(urgency.now(), Priority::Import);
        assert_eq!(
            first.now(),
            Priority::Speculative,
            "nothing else of it is more urgent"
        );
        drop(turn);
        drop(waiting.await);
        let again = arriving.turn(&path, &first).await;
        assert_eq!(again.priority().now(), Priority::Speculative);
    }

    #[tokio::test]
    async fn what_somebody_else_brings_has_no_turn_now_and_what_is_done_is_forgotten() {
        let arriving = Arriving::default();
        let [low, high] = [Priority::Speculative, Priority::Import].map(Rising::from);
        let turn = arriving.turn_now(&path("a"), &low).unwrap();
        assert!(arriving.turn_now(&path("a"), &high).is_none());
        assert_eq!(
            turn.priority().now(),
            Priority::Speculative,
            "nobody waits for it"
        );
        drop(turn);
        let turn = arriving.turn_now(&path("a"), &high).unwrap();
        assert_eq!(turn.priority().now(), Priority::Import);
        for number in 0..1000 {
            drop(arriving.turn_now(&path(&number.to_string()), &low).unwrap());
        }
        assert!(arriving.0.lock().unwrap().arrive.len() < 10);
    }
}
