//! How many builds for whom are under way, in all teams together, so that nobody fills the queue alone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::messages::{Refusal, RefusalReason};
use tvix_node_swarm::Places as PlacesOfEach;

use super::inputs::refusal;
use super::limits::{CONSIDERED, CONSIDERED_PER_REQUESTER, SERVED_BUILDS, SERVED_BUILDS_PER_REQUESTER};

/// How many builds for whom are under way.
#[derive(Debug, Default)]
pub struct Served(Mutex<Places>);

#[derive(Debug, Default)]
struct Places {
    counts: HashMap<NodeKey, usize>,
    /// Of these, those whose requester has left and may come back for them: for whom, what, and which.
    left: Vec<(NodeKey, StorePath, u64)>,
    /// How many were left so far, which names them.
    numbers: u64,
}

impl Places {
    fn leave(&mut self, requester: NodeKey) {
        if let Some(count) = self.counts.get_mut(&requester) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&requester);
            }
        }
    }
}

impl Served {
    fn lock(&self) -> std::sync::MutexGuard<'_, Places> {
        // A count is changed in one step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether any is.
    pub fn is_serving(&self) -> bool {
        !self.lock().counts.is_empty()
    }

    /// Counts one in, if there is room for it. Who comes back for what it has left has the place that it had.
    pub(super) fn enter(
        self: &Arc<Self>,
        requester: NodeKey,
        derivation: &StorePath,
    ) -> Result<ServedPlace, Refusal> {
        let mut places = self.lock();
        let served = Arc::clone(self);
        let mut left = places.left.iter();
        if let Some(at) = left.position(|(who, what, _)| *who == requester && what == derivation) {
            places.left.swap_remove(at);
            return Ok(ServedPlace {
                served,
                requester,
                held: true,
            });
        }
        let all: usize = places.counts.values().sum();
        let own = places.counts.get(&requester).copied().unwrap_or(0);
        if all >= SERVED_BUILDS || own >= SERVED_BUILDS_PER_REQUESTER {
            // How many there are for whom is nothing to one of another team.
            let message =
                format!("this builder takes no more builds at the moment; {own} of yours are under way");
            return Err(refusal(RefusalReason::Busy, message));
        }
        places.counts.insert(requester, own + 1);
        Ok(ServedPlace {
            served,
            requester,
            held: true,
        })
    }
}

/// Places for requests whose derivations are looked at, for all teams together. Some of them come from the requester
/// itself, which may let this node wait for them: it does not have all places.
#[derive(Debug)]
pub(super) struct Considering {
    all: Arc<Semaphore>,
    each: PlacesOfEach,
}

impl Default for Considering {
    fn default() -> Self {
        Self {
            all: Arc::new(Semaphore::new(CONSIDERED)),
            each: PlacesOfEach::new(CONSIDERED_PER_REQUESTER),
        }
    }
}

impl Considering {
    /// Waits for a place, for as long as what it gives is held. None: there are no places any more.
    pub(super) async fn enter(&self, requester: NodeKey) -> Option<[OwnedSemaphorePermit; 2]> {
        let own = self.each.of(requester).acquire_owned().await.ok()?;
        let all = Arc::clone(&self.all).acquire_owned().await.ok()?;
        Some([own, all])
    }
}

/// One build for another member, for as long as it is under way.
#[derive(Debug)]
pub(super) struct ServedPlace {
    served: Arc<Served>,
    requester: NodeKey,
    /// Whether it is counted out with this.
    held: bool,
}

impl ServedPlace {
    /// Its requester has left, and may come back for what is built.
    pub(super) fn left(mut self, derivation: StorePath) -> LeftPlace {
        let (served, requester) = (Arc::clone(&self.served), self.requester);
        let mut places = served.lock();
        places.numbers += 1;
        let number = places.numbers;
        places.left.push((requester, derivation, number));
        drop(places);
        // It still counts, and is counted out by who comes back, or with what this gives.
        self.held = false;
        LeftPlace { served, number }
    }
}

impl Drop for ServedPlace {
    fn drop(&mut self) {
        if self.held {
            self.served.lock().leave(self.requester);
        }
    }
}

/// A place whose requester has left: it is free when this is dropped, unless that one has come back for it.
#[derive(Debug)]
pub(super) struct LeftPlace {
    served: Arc<Served>,
    number: u64,
}

impl Drop for LeftPlace {
    fn drop(&mut self) {
        let mut places = self.served.lock();
        let mut left = places.left.iter();
        if let Some(at) = left.position(|(_, _, number)| *number == self.number) {
            let (requester, ..) = places.left.swap_remove(at);
            places.leave(requester);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn one_requester_does_not_have_all_that_is_looked_at() {
        let considering = Considering::default();
        let (ann, bob) = (NodeKey([1; 32]), NodeKey([2; 32]));
        let mut taken = vec![];
        for _ in 0..CONSIDERED_PER_REQUESTER {
            taken.push(considering.enter(ann).now_or_never().flatten().unwrap());
        }
        assert!(considering.enter(ann).now_or_never().is_none());
        for _ in CONSIDERED_PER_REQUESTER..CONSIDERED {
            taken.push(considering.enter(bob).now_or_never().flatten().unwrap());
        }
        assert!(considering.enter(NodeKey([3; 32])).now_or_never().is_none());
        drop(taken.remove(0));
        assert!(considering.enter(ann).now_or_never().flatten().is_some());
    }

    fn work(number: u8) -> StorePath {
        StorePath::from_parts([number; 20], "x.drv").unwrap()
    }

    #[test]
    fn who_comes_back_for_what_it_left_has_one_place_for_it() {
        let served = Arc::new(Served::default());
        let (ann, bob) = (NodeKey([1; 32]), NodeKey([2; 32]));
        let number = |number: usize| work(u8::try_from(number % 256).unwrap());
        let mut places: Vec<ServedPlace> = (0..SERVED_BUILDS_PER_REQUESTER)
            .map(|at| served.enter(ann, &number(at)).unwrap())
            .collect();
        let left = places.remove(0).left(number(0));
        assert!(served.enter(ann, &number(1)).is_err(), "it is still its own");
        assert!(
            served.enter(bob, &number(0)).is_ok(),
            "another one has his own places"
        );
        let back = served.enter(ann, &number(0)).unwrap();
        assert!(served.enter(ann, &number(0)).is_err(), "it comes back once");
        drop(left);
        assert!(
            served.enter(ann, &number(2)).is_err(),
            "the place is taken by who came back"
        );
        drop(back);
        assert!(served.enter(ann, &number(2)).is_ok());
        drop(places);
        assert!(!served.is_serving());
    }

    #[test]
    fn a_place_that_nobody_comes_back_for_is_free_again() {
        let served = Arc::new(Served::default());
        let ann = NodeKey([1; 32]);
        let left = served.enter(ann, &work(1)).unwrap().left(work(1));
        assert!(served.is_serving());
        drop(left);
        assert!(!served.is_serving());
        // It is not there to come back to.
        let again = served.enter(ann, &work(1)).unwrap();
        drop(again);
        assert!(!served.is_serving());
    }

    #[test]
    fn one_requester_cannot_fill_the_queue_alone() {
        let served = Arc::new(Served::default());
        let (ann, bob) = (NodeKey([1; 32]), NodeKey([2; 32]));
        let mut places: Vec<ServedPlace> = (0..SERVED_BUILDS_PER_REQUESTER)
            .map(|_| served.enter(ann, &work(1)).unwrap())
            .collect();
        assert_eq!(
            served.enter(ann, &work(1)).unwrap_err().reason,
            RefusalReason::Busy
        );
        places.push(served.enter(bob, &work(1)).unwrap());
        places.remove(0);
        assert!(served.enter(ann, &work(1)).is_ok());
    }

    #[test]
    fn all_requesters_together_have_a_bound() {
        let served = Arc::new(Served::default());
        let requester = |number: usize| NodeKey([u8::try_from(number % 200).unwrap(); 32]);
        let places: Vec<ServedPlace> = (0..SERVED_BUILDS)
            .map(|number| served.enter(requester(number), &work(1)).unwrap())
            .collect();
        assert!(served.enter(NodeKey([250; 32]), &work(1)).is_err());
        drop(places);
        assert!(!served.is_serving());
    }
}
