//! Places that each peer has some of, made when they are first asked for and gone with the last one in use.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use tokio::sync::Semaphore;
use tvix_node_protocol::envelope::NodeKey;

use crate::core::lock;

/// See the [module](self). Bounded by the peers that are connected.
#[derive(Debug)]
pub struct Places {
    each: usize,
    peers: Mutex<HashMap<NodeKey, Weak<Semaphore>>>,
}

impl Places {
    /// So many for each peer.
    #[must_use]
    pub fn new(each: usize) -> Self {
        Self {
            each,
            peers: Mutex::default(),
        }
    }

    /// Those of one peer.
    #[must_use]
    pub fn of(&self, peer: NodeKey) -> Arc<Semaphore> {
        let mut peers = lock(&self.peers);
        peers.retain(|_, places| places.strong_count() > 0);
        let known = peers.get(&peer).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let places = Arc::new(Semaphore::new(self.each));
            peers.insert(peer, Arc::downgrade(&places));
            places
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_peer_has_its_own_and_they_are_gone_with_the_last_in_use() {
        let (places, ann, bob) = (Places::new(2), NodeKey([1; 32]), NodeKey([2; 32]));
        let taken = places.of(ann).try_acquire_many_owned(2).unwrap();
        assert!(places.of(ann).try_acquire_owned().is_err());
        assert!(places.of(bob).try_acquire_owned().is_ok());
        drop(taken);
        assert_eq!(places.of(ann).available_permits(), 2);
        assert!(lock(&places.peers).len() <= 1);
    }
}
