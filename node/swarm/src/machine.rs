//! What all teams of one node share: the bounds that keep the machine from doing too much at once.
//!
//! Each team of a node has a network of its own. What is bounded because a machine has so much memory, so many threads or so
//! wide a link is bounded for all of them together, so that a node in many teams does no more than one in a single team. What
//! one team does shows another no more than that the machine is busy.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tvix_node_protocol::envelope::NodeKey;

use crate::limits::{FETCHES, FETCHES_FOR_EACH, FETCHES_FOR_OTHERS, PUSHES_TAKEN, STREAMS};
use crate::places::Places;
use crate::protocols::serving::Serving;

/// See the [module](self). Clones are the same machine.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Content that goes out, and the hashes of what was served lately.
    pub(crate) serving: Arc<Serving>,
    /// Trees that are fetched.
    pub(crate) fetches: FetchPlaces,
    /// Streams that are served.
    pub(crate) streams: Arc<Semaphore>,
    /// Pushes that are taken.
    pub(crate) pushes: Arc<Semaphore>,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            serving: Arc::new(Serving::new()),
            fetches: FetchPlaces::default(),
            streams: Arc::new(Semaphore::new(STREAMS)),
            pushes: Arc::new(Semaphore::new(PUSHES_TAKEN)),
        }
    }
}

/// Places for trees that are fetched at once. What other members want here, who may let this node wait, leaves some to the
/// owner, and to other members.
#[derive(Debug, Clone)]
pub(crate) struct FetchPlaces {
    pub(crate) all: Arc<Semaphore>,
    others: Arc<Semaphore>,
    each: Arc<Places>,
}

/// A tree may be fetched as long as this is held.
#[derive(Debug)]
pub(crate) struct FetchPlace {
    _of_each: Option<OwnedSemaphorePermit>,
    _of_others: Option<OwnedSemaphorePermit>,
    _of_all: OwnedSemaphorePermit,
}

impl Default for FetchPlaces {
    fn default() -> Self {
        Self {
            all: Arc::new(Semaphore::new(FETCHES)),
            others: Arc::new(Semaphore::new(FETCHES_FOR_OTHERS)),
            each: Arc::new(Places::new(FETCHES_FOR_EACH)),
        }
    }
}

impl FetchPlaces {
    /// Waits for a place; `other`: the member that has what another one wants here.
    pub(crate) async fn enter(&self, other: Option<NodeKey>) -> Option<FetchPlace> {
        let (mut of_each, mut of_others) = (None, None);
        if let Some(other) = other {
            of_each = Some(self.each.of(other).acquire_owned().await.ok()?);
            of_others = Some(Arc::clone(&self.others).acquire_owned().await.ok()?);
        }
        Some(FetchPlace {
            _of_each: of_each,
            _of_others: of_others,
            _of_all: Arc::clone(&self.all).acquire_owned().await.ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn what_others_want_here_leaves_places_to_the_owner_and_to_each_other() {
        let places = FetchPlaces::default();
        let (ann, bob) = (Some(NodeKey([1; 32])), Some(NodeKey([2; 32])));
        let mut taken = vec![];
        for _ in 0..FETCHES_FOR_EACH {
            taken.push(places.enter(ann).await.unwrap());
        }
        assert!(places.enter(ann).now_or_never().is_none());
        for _ in 0..FETCHES_FOR_OTHERS - FETCHES_FOR_EACH {
            taken.push(places.enter(bob).now_or_never().flatten().unwrap());
        }
        assert!(places.enter(bob).now_or_never().is_none());
        for _ in 0..FETCHES - FETCHES_FOR_OTHERS {
            taken.push(places.enter(None).now_or_never().flatten().unwrap());
        }
        assert!(places.enter(None).now_or_never().is_none());
    }
}
