//! Places that each peer has some of, made when they are first asked for and gone with the last one in use.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use tokio::sync::Semaphore;
use tvix_node_protocol::envelope::NodeKey;

use crate::core::lock;
use crate::line::Line;

/// See the [module](self). Bounded by the peers that are connected.
#[derive(Debug)]
pub struct OfEach<T> {
    each: usize,
    make: fn(usize) -> T,
    peers: Mutex<HashMap<NodeKey, Weak<T>>>,
}

/// Places that go to who has waited longest.
pub type Places = OfEach<Semaphore>;

/// Places that go to what is most urgent.
pub(crate) type Lines = OfEach<Line>;

impl Places {
    /// So many for each peer.
    #[must_use]
    pub fn new(each: usize) -> Self {
        Self::made_by(Semaphore::new, each)
    }
}

impl Lines {
    /// So many for each peer.
    pub(crate) fn in_line(each: usize) -> Self {
        Self::made_by(Line::new, each)
    }
}

impl<T> OfEach<T> {
    pub(crate) fn made_by(make: fn(usize) -> T, each: usize) -> Self {
        Self {
            each,
            make,
            peers: Mutex::default(),
        }
    }

    /// Those of one peer.
    #[must_use]
    pub fn of(&self, peer: NodeKey) -> Arc<T> {
        let mut peers = lock(&self.peers);
        peers.retain(|_, places| places.strong_count() > 0);
        let known = peers.get(&peer).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let places = Arc::new((self.make)(self.each));
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
