//! One key, two notations: ours and libp2p's.

use libp2p::PeerId;
use libp2p::identity::{Keypair, PublicKey, ed25519};
use tvix_node_protocol::envelope::{NodeKey, NodeSecret};

/// Why a libp2p identity is none of ours.
#[derive(Debug, thiserror::Error)]
#[error("the peer {0} does not identify itself with an ed25519 key, so it is not a tvix-node")]
pub struct ForeignPeer(pub PeerId);

/// Why a secret cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the node's secret is not an ed25519 key: {0}")]
pub struct BadSecret(#[from] libp2p::identity::DecodingError);

/// The key pair libp2p proves the node's identity with: the node's own.
///
/// # Errors
/// [`BadSecret`], which 32 bytes do not cause.
pub fn keypair(secret: &NodeSecret) -> Result<Keypair, BadSecret> {
    let mut bytes = secret.to_bytes();
    Ok(Keypair::ed25519_from_bytes(&mut bytes)?)
}

/// The name libp2p has for a node. None where the bytes are not a point of the curve.
#[must_use]
pub fn peer_of(key: NodeKey) -> Option<PeerId> {
    let key = ed25519::PublicKey::try_from_bytes(&key.0).ok()?;
    Some(PublicKey::from(key).to_peer_id())
}

/// The key behind libp2p's name, which contains it.
///
/// # Errors
/// [`ForeignPeer`] where it is another kind of key.
pub fn key_of(peer: &PeerId) -> Result<NodeKey, ForeignPeer> {
    let foreign = || ForeignPeer(*peer);
    let hash = peer.as_ref();
    // Identity multihash: short keys stand in the name themselves.
    if hash.code() != 0 {
        return Err(foreign());
    }
    let key = PublicKey::try_decode_protobuf(hash.digest()).map_err(|_| foreign())?;
    let key = key.try_into_ed25519().map_err(|_| foreign())?;
    Ok(NodeKey(key.to_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_one_identity() {
        let secret = NodeSecret::from_bytes(&[5; 32]);
        let peer = keypair(&secret).unwrap().public().to_peer_id();
        assert_eq!(key_of(&peer).unwrap(), secret.key());
        assert_eq!(peer_of(secret.key()), Some(peer));
    }

    #[test]
    fn what_libp2p_signs_we_can_check_and_the_other_way_round() {
        let secret = NodeSecret::from_bytes(&[5; 32]);
        let keypair = keypair(&secret).unwrap();
        assert_eq!(keypair.sign(b"x").unwrap(), secret.sign_raw(b"x"));
    }

    #[test]
    fn another_kind_of_name_is_refused() {
        // Names of longer keys are SHA-256 hashes and do not contain the key.
        let hashed = PeerId::from_bytes(&[&[0x12, 32][..], &[7; 32]].concat()).unwrap();
        assert!(key_of(&hashed).is_err());
    }
}
