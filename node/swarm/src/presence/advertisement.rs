//! What this node says of itself, and who has been told.
//!
//! The node's paths are a set of keys, cut into regions and cells as the protocol has it. Everything is
//! said to the few members closest to a region; what has to be said to whom, and when again, is decided
//! here, but said by others.

use std::collections::{BTreeSet, HashMap, HashSet};

use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::limits::{CELL_DEPTH, CELL_KEYS};
use tvix_node_protocol::nix::store_path::StorePath;
use tvix_node_protocol::presence::{Epoch, PresenceKey, PresenceSecret, Region, root_of};

use crate::limits::PRESENCE_CELL_FILL;

/// A cell of this node's own keys, before it is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnCell {
    /// How often the region is halved.
    pub depth: u8,
    /// Which of the parts this is.
    pub cell: u32,
    /// BLAKE3 of the keys.
    pub root: [u8; 32],
    /// The keys, sorted.
    pub keys: Vec<PresenceKey>,
}

/// What was said to a member about a region.
#[derive(Debug, Clone, Copy)]
struct Told {
    change: u64,
    renew_at: u64,
}

/// This node's paths, and who knows of them.
#[derive(Debug)]
pub struct Advertisement {
    secret: PresenceSecret,
    bits: u8,
    keys: BTreeSet<PresenceKey>,
    /// Counts changes of each region. A region that had keys once stays here, to be taken back.
    changes: HashMap<Region, u64>,
    depths: HashMap<Region, u8>,
    told: HashMap<(Region, NodeKey), Told>,
    /// Members that may keep something of it, from the moment that they begin to be told.
    audience: BTreeSet<NodeKey>,
    /// Members that could not be reached, and until when they are left alone.
    away: HashMap<NodeKey, u64>,
    /// While the store is listed: what has been taken away since that began. What a page says of it is older.
    gone: Option<HashSet<PresenceKey>>,
}

impl Advertisement {
    /// Of no path, in a team of so many members.
    #[must_use]
    pub fn new(secret: PresenceSecret, members: usize) -> Self {
        Self {
            secret,
            bits: Region::bits_for(members),
            keys: BTreeSet::new(),
            changes: HashMap::new(),
            depths: HashMap::new(),
            told: HashMap::new(),
            audience: BTreeSet::new(),
            away: HashMap::new(),
            gone: None,
        }
    }

    /// The secret in use.
    #[must_use]
    pub fn secret(&self) -> &PresenceSecret {
        &self.secret
    }

    /// The secret's epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.secret.epoch()
    }

    /// The region a key lies in.
    #[must_use]
    pub fn region(&self, key: PresenceKey) -> Region {
        Region::of(key, self.bits)
    }

    /// The store is going to be listed, while paths come and go.
    pub fn begin_listing(&mut self) {
        self.gone = Some(HashSet::new());
    }

    /// Adds paths that were listed, but for those that have been taken away since the listing began.
    pub fn add_listed<'a>(&mut self, paths: impl IntoIterator<Item = &'a StorePath>) {
        for path in paths {
            let key = self.secret.key(path);
            if self.gone.as_ref().is_none_or(|gone| !gone.contains(&key)) {
                self.insert(key);
            }
        }
    }

    /// Everything has been listed.
    pub fn end_listing(&mut self) {
        self.gone = None;
    }

    /// Adds paths that this node has.
    pub fn add<'a>(&mut self, paths: impl IntoIterator<Item = &'a StorePath>) {
        for path in paths {
            let key = self.secret.key(path);
            if let Some(gone) = &mut self.gone {
                gone.remove(&key);
            }
            self.insert(key);
        }
    }

    fn insert(&mut self, key: PresenceKey) {
        if self.keys.insert(key) {
            *self.changes.entry(self.region(key)).or_default() += 1;
        }
    }

    /// Takes paths away that this node has no more.
    pub fn remove<'a>(&mut self, paths: impl IntoIterator<Item = &'a StorePath>) {
        for path in paths {
            let key = self.secret.key(path);
            if let Some(gone) = &mut self.gone {
                gone.insert(key);
            }
            if self.keys.remove(&key) {
                *self.changes.entry(self.region(key)).or_default() += 1;
            }
        }
    }

    /// Whether this node says that it has the path of this key.
    #[must_use]
    pub fn has(&self, key: PresenceKey) -> bool {
        self.keys.contains(&key)
    }

    /// How many paths.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The team has another size: where its regions change with it, everything has to be said anew.
    pub fn resize(&mut self, members: usize) {
        let bits = Region::bits_for(members);
        if bits == self.bits {
            return;
        }
        self.bits = bits;
        self.changes.clear();
        self.depths.clear();
        self.told.clear();
        for key in &self.keys {
            self.changes.insert(Region::of(*key, bits), 1);
        }
    }

    /// Regions with something to say, in order.
    #[must_use]
    pub fn regions(&self) -> Vec<Region> {
        let mut regions: Vec<Region> = self.changes.keys().copied().collect();
        regions.sort();
        regions
    }

    /// Whether a member has to be told about a region at the time `now`: it has not been, something
    /// has changed since, or it is time to renew; and it is not away.
    #[must_use]
    pub fn is_due(&self, region: Region, member: NodeKey, now: u64) -> bool {
        if self.away.get(&member).is_some_and(|until| now < *until) {
            return false;
        }
        let change = self.changes.get(&region).copied().unwrap_or(0);
        self.told
            .get(&(region, member))
            .is_none_or(|told| told.change != change || now >= told.renew_at)
    }

    /// Which change of a region would be told now; for [`Advertisement::told`].
    #[must_use]
    pub fn change(&self, region: Region) -> u64 {
        self.changes.get(&region).copied().unwrap_or(0)
    }

    /// A member is about to be told something: from now on it may keep it, whatever comes of that.
    pub fn tells(&mut self, member: NodeKey) {
        self.audience.insert(member);
    }

    /// A member has been told about a region, as it was at a change, and need not be until `renew_at`.
    pub fn told(&mut self, region: Region, member: NodeKey, change: u64, renew_at: u64) {
        self.audience.insert(member);
        self.told.insert((region, member), Told { change, renew_at });
    }

    /// Everything is taken back: who is to know of it has to be told again.
    pub fn taken_back(&mut self) {
        self.told.clear();
    }

    /// A member cannot be reached: it is left alone until then, or until it is seen again.
    pub fn is_away(&mut self, member: NodeKey, now: u64, until: u64) {
        self.away.retain(|_, until| now < *until);
        self.away.insert(member, until);
    }

    /// A member may have forgotten everything: it was restarted, or is not one any more.
    pub fn forget_member(&mut self, member: NodeKey) {
        self.away.remove(&member);
        self.audience.remove(&member);
        self.told.retain(|(_, other), _| *other != member);
    }

    /// Members that may keep something of it, also what was cut into other regions since.
    #[must_use]
    pub fn audience(&self) -> BTreeSet<NodeKey> {
        self.audience.clone()
    }

    /// All cells of a region, empty ones included: they say that nothing is there any more.
    pub fn cells(&mut self, region: Region) -> Vec<OwnCell> {
        let keys: Vec<PresenceKey> = self.keys_of(region).collect();
        let depth = self.depth(region, &keys);
        let mut cells: Vec<Vec<PresenceKey>> = vec![vec![]; 1 << depth];
        for key in keys {
            let index = key.leading(region.bits + depth) as usize & (cells.len() - 1);
            cells[index].push(key);
        }
        (0..)
            .zip(cells)
            .map(|(cell, keys)| OwnCell {
                depth,
                cell,
                root: root_of(&keys),
                keys,
            })
            .collect()
    }

    fn keys_of(&self, region: Region) -> impl Iterator<Item = PresenceKey> {
        let shift = 32 - u32::from(region.bits);
        let first = u32::from(region.prefix).checked_shl(shift).unwrap_or(0);
        let mut start = [0; 16];
        start[..4].copy_from_slice(&first.to_be_bytes());
        self.keys
            .range(PresenceKey(start)..)
            .take_while(move |key| Region::of(**key, region.bits) == region)
            .copied()
    }

    /// How often the region is halved. Once chosen it is kept while it is nearly right, so that paths
    /// that come and go do not cut the region anew each time.
    fn depth(&mut self, region: Region, keys: &[PresenceKey]) -> u8 {
        let fits = |depth: u8| {
            let cells =
                keys.chunk_by(|a, b| a.leading(region.bits + depth) == b.leading(region.bits + depth));
            cells.map(<[PresenceKey]>::len).max().unwrap_or(0) <= CELL_KEYS
        };
        let fill = |depth: u8| keys.len() >> depth;
        if let Some(depth) = self.depths.get(&region)
            && fits(*depth)
            && (*depth == 0 || fill(*depth) >= PRESENCE_CELL_FILL / 4)
        {
            return *depth;
        }
        let depth = (0..CELL_DEPTH)
            .find(|depth| fill(*depth) <= PRESENCE_CELL_FILL && fits(*depth))
            .unwrap_or(CELL_DEPTH);
        self.depths.insert(region, depth);
        depth
    }
}

#[cfg(test)]
#[path = "advertisement_tests.rs"]
mod tests;
