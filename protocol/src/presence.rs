//! Who has which path: what a holder says about itself, and the keys it says it in.
//!
//! Nobody who is not a member can learn a path's name from any of this: a path appears only as a
//! [`PresenceKey`], a hash keyed with a [`PresenceSecret`] that members alone can compute and that
//! changes with every revocation.
//!
//! The key space is cut into [`Region`]s, each kept by the few members closest to it. Within a region
//! a holder cuts its own keys into *cells*. A cell travels as a signed [`PresenceHeader`] that commits
//! to the keys, and the keys themselves; renewing it takes a new header alone.

use serde::{Deserialize, Serialize};

use crate::build::SwarmId;
use crate::envelope::{NodeKey, Statement};
use crate::limits::{CELL_DEPTH, CELL_KEYS, REGION_BITS};
use crate::nix::store_path::StorePath;
use crate::roster::Genesis;

/// Names a store path to members alone. 16 bytes: long enough that two paths never share one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PresenceKey(pub [u8; 16]);

impl std::fmt::Debug for PresenceKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl PresenceKey {
    /// The leading bits, at most 32.
    #[must_use]
    pub fn leading(self, bits: u8) -> u32 {
        let word = u32::from_be_bytes([self.0[0], self.0[1], self.0[2], self.0[3]]);
        word.checked_shr(32 - u32::from(bits.min(32))).unwrap_or(0)
    }
}

/// Keys one after the other, as they travel.
#[must_use]
pub fn pack(keys: &[PresenceKey]) -> Vec<u8> {
    keys.iter().flat_map(|key| key.0).collect()
}

/// Keys as they travelled; none where the length is not a multiple of a key's.
#[must_use]
pub fn unpack(bytes: &[u8]) -> Option<Vec<PresenceKey>> {
    let (keys, rest) = bytes.as_chunks::<16>();
    rest.is_empty()
        .then(|| keys.iter().map(|key| PresenceKey(*key)).collect())
}

/// Tells two secrets apart without giving either away.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(#[serde(with = "crate::bytes")] pub [u8; 8]);

impl std::fmt::Debug for Epoch {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:016x}", u64::from_be_bytes(self.0))
    }
}

/// What turns paths into keys.
#[derive(Clone, PartialEq, Eq)]
pub struct PresenceSecret([u8; 32]);

impl std::fmt::Debug for PresenceSecret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "PresenceSecret({:?})", self.epoch())
    }
}

impl PresenceSecret {
    /// From the team's salt and what its revocations brought with them (sorted, so that everyone who
    /// knows the same revocations has the same secret).
    #[must_use]
    pub fn derive<'a>(genesis: &Genesis, fresh: impl IntoIterator<Item = &'a [u8; 32]>) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("tvix-node 2026 presence secret");
        hasher.update(&genesis.salt);
        for fresh in fresh {
            hasher.update(fresh);
        }
        Self(*hasher.finalize().as_bytes())
    }

    /// Which secret this is.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        let hash = blake3::derive_key("tvix-node 2026 presence epoch", &self.0);
        let mut epoch = [0; 8];
        epoch.copy_from_slice(&hash[..8]);
        Epoch(epoch)
    }

    /// The key of a path.
    #[must_use]
    pub fn key(&self, path: &StorePath) -> PresenceKey {
        let hash = blake3::keyed_hash(&self.0, path.to_basename().as_bytes());
        let mut key = [0; 16];
        key.copy_from_slice(&hash.as_bytes()[..16]);
        PresenceKey(key)
    }
}

/// A part of the key space: all keys with these leading bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Region {
    /// How many bits.
    pub bits: u8,
    /// Their value.
    pub prefix: u16,
}

impl Region {
    /// The region a key lies in, where regions have so many bits.
    #[must_use]
    pub fn of(key: PresenceKey, bits: u8) -> Self {
        let bits = bits.min(REGION_BITS);
        // At most REGION_BITS bits, which fit.
        let prefix = u16::try_from(key.leading(bits)).unwrap_or(u16::MAX);
        Self { bits, prefix }
    }

    /// How many bits regions have in a team of so many members: about one region for four members,
    /// so that a member keeps a few regions, however large the team is.
    #[must_use]
    pub fn bits_for(members: usize) -> u8 {
        let regions = (members / 4).max(1);
        // The logarithm of a usize is far below 256.
        u8::try_from(regions.ilog2())
            .unwrap_or(REGION_BITS)
            .min(REGION_BITS)
    }

    /// What is looked up in the routing table to find who keeps this region.
    #[must_use]
    pub fn label(self) -> Vec<u8> {
        let mut label = b"tvix-node presence region\0".to_vec();
        label.push(self.bits);
        label.extend_from_slice(&self.prefix.to_be_bytes());
        label
    }
}

/// A holder's word that it has certain paths, for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PresenceHeader {
    /// The team.
    pub swarm: SwarmId,
    /// The secret the keys are made with.
    pub epoch: Epoch,
    /// Who has the paths. Must be the envelope's signer.
    pub holder: NodeKey,
    /// The region.
    pub region: Region,
    /// The holder cuts the region into two to the power of this many cells.
    pub depth: u8,
    /// Which of them this is.
    pub cell: u32,
    /// How many keys.
    pub count: u32,
    /// BLAKE3 of the keys, sorted and packed.
    #[serde(with = "crate::bytes")]
    pub root: [u8; 32],
    /// Of two headers of a cell the one with the higher serial counts.
    pub serial: u64,
    /// Seconds since 1970.
    pub issued_at: u64,
    /// Seconds since 1970 after which it is void.
    pub not_after: u64,
}

impl Statement for PresenceHeader {
    const DOMAIN: &'static str = "presence-header";
    const VERSION: u16 = 1;
}

/// A holder takes back everything it said up to a serial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PresenceWithdrawal {
    /// The team.
    pub swarm: SwarmId,
    /// Whose word it was. Must be the envelope's signer.
    pub holder: NodeKey,
    /// The highest serial taken back.
    pub serial: u64,
    /// Seconds since 1970.
    pub issued_at: u64,
}

impl Statement for PresenceWithdrawal {
    const DOMAIN: &'static str = "presence-withdrawal";
    const VERSION: u16 = 1;
}

/// Why a header, or the keys under it, do not hold together.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum PresenceError {
    /// Signed by another than the holder.
    #[error("{signer} speaks for {holder}")]
    Signer {
        /// Who is said to have the paths.
        holder: NodeKey,
        /// Who says so.
        signer: NodeKey,
    },
    /// No such region or cell.
    #[error("there is no cell {cell} of depth {depth} in region {region:?}")]
    Place {
        /// The region.
        region: Region,
        /// The depth.
        depth: u8,
        /// The cell.
        cell: u32,
    },
    /// More keys than a cell may have.
    #[error("{0} keys in one cell, more than the {CELL_KEYS} allowed")]
    TooMany(usize),
    /// The keys are not the ones committed to, or lie elsewhere.
    #[error("the keys are not those the header is for")]
    Keys,
    /// Void before it is issued.
    #[error("not-after lies before issued-at")]
    Times,
}

impl PresenceHeader {
    /// Whether this key would lie in the cell.
    #[must_use]
    pub fn covers(&self, key: PresenceKey) -> bool {
        let bits = self.region.bits.saturating_add(self.depth);
        let region = u32::from(self.region.prefix).checked_shl(u32::from(self.depth));
        region.is_some_and(|prefix| key.leading(bits) == prefix | self.cell)
    }

    /// Checks what can be checked without the keys. `signer` is the envelope's.
    ///
    /// # Errors
    /// See [`PresenceError`].
    pub fn check_structure(&self, signer: NodeKey) -> Result<(), PresenceError> {
        if signer != self.holder {
            let holder = self.holder;
            return Err(PresenceError::Signer { holder, signer });
        }
        let Region { bits, prefix } = self.region;
        let outside = |value: u32, bits: u8| value.checked_shr(u32::from(bits)).unwrap_or(0) != 0;
        if bits > REGION_BITS
            || self.depth > CELL_DEPTH
            || outside(u32::from(prefix), bits)
            || outside(self.cell, self.depth)
        {
            return Err(PresenceError::Place {
                region: self.region,
                depth: self.depth,
                cell: self.cell,
            });
        }
        if self.count as usize > CELL_KEYS {
            return Err(PresenceError::TooMany(self.count as usize));
        }
        if self.not_after < self.issued_at {
            return Err(PresenceError::Times);
        }
        Ok(())
    }

    /// Checks that these are the keys the header commits to: count, order, place and hash.
    ///
    /// # Errors
    /// [`PresenceError::Keys`]
    pub fn check_keys(&self, keys: &[PresenceKey]) -> Result<(), PresenceError> {
        let holds = keys.len() == self.count as usize
            && keys.windows(2).all(|pair| pair[0] < pair[1])
            && keys.iter().all(|key| self.covers(*key))
            && root_of(keys) == self.root;
        if holds { Ok(()) } else { Err(PresenceError::Keys) }
    }
}

/// What a header says of its keys, which are sorted.
#[must_use]
pub fn root_of(keys: &[PresenceKey]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for key in keys {
        hasher.update(&key.0);
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
#[path = "presence_tests.rs"]
mod tests;
