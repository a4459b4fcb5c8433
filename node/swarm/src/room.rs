//! Room for bytes that wait in memory: bounded for all together, and for each peer.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tvix_node_protocol::envelope::NodeKey;

use crate::places::Places;

/// See the [module](self).
///
/// Who asks for more than one peer may have gets all of that, so that what is too large for it goes alone. Who waits must
/// hold nothing that others wait for, unless it is given back whatever becomes of the waiting.
#[derive(Debug)]
pub(crate) struct Room {
    all: Arc<Semaphore>,
    peers: Places,
    each: u32,
}

/// So many bytes may wait as long as this is held.
#[derive(Debug)]
pub(crate) struct Held {
    _of_peer: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Room {
    /// For so many bytes, of which so many are each peer's.
    pub(crate) fn new(all: usize, each: usize) -> Self {
        let each = each.min(all);
        Self {
            all: Arc::new(Semaphore::new(all)),
            peers: Places::new(each),
            each: u32::try_from(each).unwrap_or(u32::MAX),
        }
    }

    fn share(&self, bytes: usize) -> u32 {
        u32::try_from(bytes).unwrap_or(u32::MAX).min(self.each)
    }

    /// Waits for room for so many bytes of a peer's, in the order in which it is asked for. None: there is none any more.
    pub(crate) async fn take(&self, peer: NodeKey, bytes: usize) -> Option<Held> {
        let bytes = self.share(bytes);
        let own = self.peers.of(peer).acquire_many_owned(bytes).await.ok()?;
        Some(Held {
            _of_peer: own,
            _of_all: Arc::clone(&self.all).acquire_many_owned(bytes).await.ok()?,
        })
    }

    /// As [`Room::take`]; none where it would have to be waited for.
    pub(crate) fn try_take(&self, peer: NodeKey, bytes: usize) -> Option<Held> {
        let bytes = self.share(bytes);
        let own = self.peers.of(peer).try_acquire_many_owned(bytes).ok()?;
        Some(Held {
            _of_peer: own,
            _of_all: Arc::clone(&self.all).try_acquire_many_owned(bytes).ok()?,
        })
    }

    /// Bytes for which there is room.
    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.all.available_permits()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    const ANN: NodeKey = NodeKey([1; 32]);
    const BOB: NodeKey = NodeKey([2; 32]);
    const CAT: NodeKey = NodeKey([3; 32]);

    #[tokio::test]
    async fn what_is_larger_than_what_is_left_waits_and_goes_when_others_have_gone() {
        let room = Room::new(100, 60);
        let small = room.take(ANN, 10).await.unwrap();
        let mut large = Box::pin(room.take(ANN, 1000));
        assert!(large.as_mut().now_or_never().is_none());
        assert!(room.try_take(ANN, 60).is_none());
        drop(small);
        let alone = large.await.unwrap();
        assert_eq!(room.free(), 40, "it has all that one peer may have");
        assert!(room.try_take(ANN, 1).is_none());
        drop(alone);
        assert_eq!(room.free(), 100);
    }

    #[tokio::test]
    async fn one_peer_leaves_room_to_others_and_all_have_so_much() {
        let room = Room::new(100, 60);
        let _ann = room.take(ANN, 60).await.unwrap();
        let _bob = room.take(BOB, 40).now_or_never().flatten().unwrap();
        assert!(room.take(CAT, 1).now_or_never().is_none());
        assert!(room.try_take(CAT, 1).is_none());
    }
}
