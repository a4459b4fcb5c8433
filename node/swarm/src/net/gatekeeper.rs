//! Who is a member, for the network's inside: asked for every connection and every stream.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};

use libp2p::PeerId;

use crate::identity::peer_of;
use crate::roster::Members;

/// The members of the moment, shared by all who open doors.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gatekeeper(Arc<RwLock<HashSet<PeerId>>>);

impl Gatekeeper {
    /// Replaces the members.
    pub(crate) fn set(&self, members: &Members) {
        let peers = members.iter().filter_map(|(key, _)| peer_of(key)).collect();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = peers;
    }

    /// Whether the peer is a member now.
    pub(crate) fn is_member(&self, peer: &PeerId) -> bool {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(peer)
    }

    /// One more member.
    #[cfg(test)]
    pub(crate) fn let_in(&self, peer: PeerId) {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(peer);
    }
}
