//! How many builds for whom are under way, in all teams together, so that nobody fills the queue alone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::messages::{Refusal, RefusalReason};
use tvix_node_swarm::Places;

use super::inputs::refusal;
use super::limits::{CONSIDERED, CONSIDERED_PER_REQUESTER, SERVED_BUILDS, SERVED_BUILDS_PER_REQUESTER};

/// How many builds for whom are under way.
#[derive(Debug, Default)]
pub struct Served(Mutex<HashMap<NodeKey, usize>>);

impl Served {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<NodeKey, usize>> {
        // A count is changed in one step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether any is.
    pub fn is_serving(&self) -> bool {
        !self.lock().is_empty()
    }

    /// Counts one in, if there is room for it.
    pub(super) fn enter(self: &Arc<Self>, requester: NodeKey) -> Result<ServedPlace, Refusal> {
        let mut counts = self.lock();
        let all: usize = counts.values().sum();
        let own = counts.get(&requester).copied().unwrap_or(0);
        if all >= SERVED_BUILDS || own >= SERVED_BUILDS_PER_REQUESTER {
            // How many there are for whom is nothing to one of another team.
            let message =
                format!("this builder takes no more builds at the moment; {own} of yours are under way");
            return Err(refusal(RefusalReason::Busy, message));
        }
        counts.insert(requester, own + 1);
        let served = Arc::clone(self);
        Ok(ServedPlace { served, requester })
    }
}

/// Places for requests whose derivations are looked at, for all teams together. Some of them come from the requester
/// itself, which may let this node wait for them: it does not have all places.
#[derive(Debug)]
pub(super) struct Considering {
    all: Arc<Semaphore>,
    each: Places,
}

impl Default for Considering {
    fn default() -> Self {
        Self {
            all: Arc::new(Semaphore::new(CONSIDERED)),
            each: Places::new(CONSIDERED_PER_REQUESTER),
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
}

impl Drop for ServedPlace {
    fn drop(&mut self) {
        let mut counts = self.served.lock();
        if let Some(count) = counts.get_mut(&self.requester) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.requester);
            }
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

    #[test]
    fn one_requester_cannot_fill_the_queue_alone() {
        let served = Arc::new(Served::default());
        let (ann, bob) = (NodeKey([1; 32]), NodeKey([2; 32]));
        let mut places: Vec<ServedPlace> = (0..SERVED_BUILDS_PER_REQUESTER)
            .map(|_| served.enter(ann).unwrap())
            .collect();
        assert_eq!(served.enter(ann).unwrap_err().reason, RefusalReason::Busy);
        places.push(served.enter(bob).unwrap());
        places.remove(0);
        assert!(served.enter(ann).is_ok());
    }

    #[test]
    fn all_requesters_together_have_a_bound() {
        let served = Arc::new(Served::default());
        let requester = |number: usize| NodeKey([u8::try_from(number % 200).unwrap(); 32]);
        let places: Vec<ServedPlace> = (0..SERVED_BUILDS)
            .map(|number| served.enter(requester(number)).unwrap())
            .collect();
        assert!(served.enter(NodeKey([250; 32])).is_err());
        drop(places);
        assert!(served.lock().is_empty());
    }
}
