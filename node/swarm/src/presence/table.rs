//! What others have left here: signed cells, kept until they expire, within each holder's share.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use tvix_node_protocol::build::SwarmId;
use tvix_node_protocol::envelope::{Envelope, EnvelopeError, NodeKey, Statement};
use tvix_node_protocol::limits::PRESENCE_BYTES;
use tvix_node_protocol::messages::{Claim, PresenceRefusal};
use tvix_node_protocol::presence::{Epoch, PresenceHeader, PresenceKey, PresenceWithdrawal, Region, pack};

use crate::limits::{
    CLOCK_SKEW, PRESENCE_CELLS, PRESENCE_CELLS_PER_HOLDER, PRESENCE_KEYS, PRESENCE_KEYS_PER_HOLDER,
    PRESENCE_LIFETIME, WITHDRAWALS,
};
use crate::roster::Members;

/// What comes of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Offer {
    /// The keys are here already; the cell is kept for longer.
    Kept,
    /// The keys are needed.
    KeysWanted(Box<WantedCell>),
}

/// A header whose signature has been checked, and whose keys are to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedCell {
    envelope: Envelope,
    header: PresenceHeader,
}

impl WantedCell {
    /// How many keys it has.
    #[must_use]
    pub fn count(&self) -> usize {
        self.header.count as usize
    }
}

#[derive(Debug)]
struct Cell {
    header: Envelope,
    epoch: Epoch,
    root: [u8; 32],
    serial: u64,
    not_after: u64,
    keys: Box<[PresenceKey]>,
}

/// The cells of one region, all of one depth.
#[derive(Debug, Default)]
struct Cells {
    depth: u8,
    cells: BTreeMap<u32, Cell>,
}

#[derive(Debug, Default)]
struct Holder {
    regions: BTreeMap<Region, Cells>,
    keys: usize,
    cells: usize,
}

impl Holder {
    fn insert(&mut self, region: Region, depth: u8, index: u32, cell: Cell) {
        self.keys += cell.keys.len();
        self.cells += 1;
        let cells = self.regions.entry(region).or_default();
        cells.depth = depth;
        if let Some(old) = cells.cells.insert(index, cell) {
            self.keys -= old.keys.len();
            self.cells -= 1;
        }
    }

    fn remove(&mut self, keep: impl Fn(&Cell) -> bool) {
        for region in self.regions.values_mut() {
            region.cells.retain(|_, cell| keep(cell));
        }
        self.recount();
    }

    /// Bits that its regions have: one size, or two while the team grows.
    fn sizes(&self) -> impl Iterator<Item = u8> {
        let after = |bits: u8| {
            let last = Region {
                bits,
                prefix: u16::MAX,
            };
            let mut later = self.regions.range((Bound::Excluded(last), Bound::Unbounded));
            later.next().map(|(region, _)| region.bits)
        };
        let first = self.regions.keys().next().map(|region| region.bits);
        std::iter::successors(first, move |bits| after(*bits))
    }

    fn recount(&mut self) {
        self.regions.retain(|_, region| !region.cells.is_empty());
        let cells = || self.regions.values().flat_map(|region| region.cells.values());
        let keys = cells().map(|cell| cell.keys.len()).sum();
        let count = cells().count();
        (self.keys, self.cells) = (keys, count);
    }
}

/// The presence that is kept for others. See the [module](super).
#[derive(Debug)]
pub struct PresenceTable {
    swarm: SwarmId,
    holders: HashMap<NodeKey, Holder>,
    /// The serial up to which a holder took everything back, and when that may be forgotten.
    withdrawn: HashMap<NodeKey, (u64, u64)>,
    /// Teams of this node, which share the room there is.
    teams: usize,
}

impl PresenceTable {
    /// An empty one.
    #[must_use]
    pub fn new(swarm: SwarmId) -> Self {
        Self {
            swarm,
            holders: HashMap::new(),
            withdrawn: HashMap::new(),
            teams: 1,
        }
    }

    /// The node takes part in so many teams: this one has its part of the room. What it has beyond that stays until it
    /// ends.
    pub fn set_teams(&mut self, teams: usize) {
        self.teams = teams.max(1);
    }

    /// Checks a header that `sender` brought at the time `now`. A cell whose keys are here is renewed at
    /// once; else its keys have to come with [`PresenceTable::put`].
    ///
    /// # Errors
    /// Why it is refused.
    pub fn offer(
        &mut self,
        envelope: &Envelope,
        sender: NodeKey,
        members: &Members,
        epoch: Epoch,
        now: u64,
    ) -> Result<Offer, PresenceRefusal> {
        if envelope.signer != sender || !members.contains(sender) {
            return Err(PresenceRefusal::NotTheHolder);
        }
        let header: PresenceHeader = opened(envelope)?;
        header
            .check_structure(envelope.signer)
            .map_err(|_| PresenceRefusal::Invalid)?;
        self.check(&header, members, epoch, now)?;
        if header.count == 0 {
            self.drop_cell(&header);
            return Ok(Offer::Kept);
        }
        let cell = self
            .holders
            .get_mut(&header.holder)
            .and_then(|holder| holder.regions.get_mut(&header.region))
            .filter(|region| region.depth == header.depth)
            .and_then(|region| region.cells.get_mut(&header.cell));
        match cell {
            Some(cell) if cell.root == header.root && cell.keys.len() == header.count as usize => {
                cell.header = envelope.clone();
                cell.epoch = header.epoch;
                cell.serial = header.serial;
                cell.not_after = header.not_after;
                Ok(Offer::Kept)
            }
            _ => {
                self.check_quota(&header)?;
                let envelope = envelope.clone();
                Ok(Offer::KeysWanted(Box::new(WantedCell { envelope, header })))
            }
        }
    }

    /// Keeps a cell that was offered. What may have changed since is checked again: who is a member, the secret, the
    /// time, what else was said, and the holder's share. The signature is not: it is what costs.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn put(
        &mut self,
        wanted: WantedCell,
        keys: Vec<PresenceKey>,
        members: &Members,
        epoch: Epoch,
        now: u64,
    ) -> Result<(), PresenceRefusal> {
        let WantedCell { envelope, header } = wanted;
        self.check(&header, members, epoch, now)?;
        header.check_keys(&keys).map_err(|_| PresenceRefusal::Invalid)?;
        self.check_quota(&header)?;
        let holder = self.holders.entry(header.holder).or_default();
        let region = holder.regions.entry(header.region).or_default();
        if region.depth != header.depth {
            // The holder cuts the region anew; the old cells say nothing any more.
            region.cells.clear();
            region.depth = header.depth;
            holder.recount();
        }
        let cell = Cell {
            header: envelope,
            epoch: header.epoch,
            root: header.root,
            serial: header.serial,
            not_after: header.not_after,
            keys: keys.into_boxed_slice(),
        };
        holder.insert(header.region, header.depth, header.cell, cell);
        Ok(())
    }

    /// Forgets what a holder said up to the serial it names, and remembers not to take it again.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn withdraw(
        &mut self,
        envelope: &Envelope,
        sender: NodeKey,
        members: &Members,
        now: u64,
    ) -> Result<(), PresenceRefusal> {
        let withdrawal: PresenceWithdrawal = opened(envelope)?;
        let holder = withdrawal.holder;
        if withdrawal.swarm != self.swarm {
            return Err(PresenceRefusal::OtherSwarm);
        }
        if holder != envelope.signer || holder != sender || !members.contains(holder) {
            return Err(PresenceRefusal::NotTheHolder);
        }
        if let Some(held) = self.holders.get_mut(&holder) {
            held.remove(|cell| cell.serial > withdrawal.serial);
        }
        if self.withdrawn.len() >= WITHDRAWALS && !self.withdrawn.contains_key(&holder) {
            self.withdrawn.retain(|_, (_, until)| *until > now);
            if self.withdrawn.len() >= WITHDRAWALS {
                return Err(PresenceRefusal::Quota);
            }
        }
        let until = now + PRESENCE_LIFETIME + 2 * CLOCK_SKEW;
        let entry = self.withdrawn.entry(holder).or_insert((0, until));
        *entry = (entry.0.max(withdrawal.serial), until);
        Ok(())
    }

    /// What holders said of these keys. Stops before the answer gets larger than a message may be.
    #[must_use]
    pub fn query(&self, epoch: Epoch, keys: &[PresenceKey], now: u64) -> Vec<Claim> {
        // What is around the claims in a message, and around each one.
        const ROOM: usize = PRESENCE_BYTES - 4096;
        const AROUND: usize = 1024;
        let mut asked = keys.to_vec();
        asked.sort_unstable();
        let mut claims = Vec::new();
        let mut size = 0;
        for holder in self.holders.values() {
            for bits in holder.sizes() {
                // Sorted keys lie region by region, and cell by cell.
                for in_region in asked.chunk_by(|a, b| a.leading(bits) == b.leading(bits)) {
                    let region = Region::of(in_region[0], bits);
                    let Some(cells) = holder.regions.get(&region) else {
                        continue;
                    };
                    let fine = bits.saturating_add(cells.depth);
                    for in_cell in in_region.chunk_by(|a, b| a.leading(fine) == b.leading(fine)) {
                        let Some(cell) = cells.covering(region, in_cell[0]) else {
                            continue;
                        };
                        let says = cell.epoch == epoch && now <= cell.not_after.saturating_add(CLOCK_SKEW);
                        if !says || !share_one(in_cell, &cell.keys) {
                            continue;
                        }
                        size += cell.keys.len() * 16 + AROUND;
                        if size > ROOM {
                            return claims;
                        }
                        claims.push(Claim {
                            header: cell.header.clone(),
                            keys: pack(&cell.keys),
                        });
                    }
                }
            }
        }
        claims
    }

    /// Drops what has expired, and everything of who is not a member any more.
    pub fn expire(&mut self, members: &Members, now: u64) {
        self.holders.retain(|key, holder| {
            holder.remove(|cell| now <= cell.not_after.saturating_add(CLOCK_SKEW));
            holder.cells > 0 && members.contains(*key)
        });
        self.withdrawn
            .retain(|key, (_, until)| *until > now && members.contains(*key));
    }

    /// Cells and keys kept.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        let sum = |of: fn(&Holder) -> usize| self.holders.values().map(of).sum();
        (sum(|holder| holder.cells), sum(|holder| holder.keys))
    }

    /// What is to be checked of a header besides its signature and structure.
    fn check(
        &self,
        header: &PresenceHeader,
        members: &Members,
        epoch: Epoch,
        now: u64,
    ) -> Result<(), PresenceRefusal> {
        if !members.contains(header.holder) {
            return Err(PresenceRefusal::NotTheHolder);
        }
        if header.swarm != self.swarm {
            return Err(PresenceRefusal::OtherSwarm);
        }
        if header.epoch != epoch {
            return Err(PresenceRefusal::OtherEpoch);
        }
        let late = now > header.not_after.saturating_add(CLOCK_SKEW);
        let early = header.issued_at > now.saturating_add(CLOCK_SKEW);
        if late || early || header.not_after - header.issued_at > PRESENCE_LIFETIME {
            return Err(PresenceRefusal::Time);
        }
        let newest = self.newest(header);
        if header.serial <= newest {
            return Err(PresenceRefusal::Stale { newest });
        }
        Ok(())
    }

    /// The highest serial of what is known of this cell, or was taken back.
    fn newest(&self, header: &PresenceHeader) -> u64 {
        let withdrawn = self
            .withdrawn
            .get(&header.holder)
            .map_or(0, |(serial, _)| *serial);
        let region = self
            .holders
            .get(&header.holder)
            .and_then(|holder| holder.regions.get(&header.region));
        let known = match region {
            None => 0,
            Some(cells) if cells.depth == header.depth => {
                cells.cells.get(&header.cell).map_or(0, |cell| cell.serial)
            }
            // A region is cut anew by something later than all of its cells.
            Some(cells) => cells.cells.values().map(|cell| cell.serial).max().unwrap_or(0),
        };
        withdrawn.max(known)
    }

    fn check_quota(&self, header: &PresenceHeader) -> Result<(), PresenceRefusal> {
        let (cells, keys) = self.size();
        let (held_cells, held_keys) = self
            .holders
            .get(&header.holder)
            .map_or((0, 0), |holder| (holder.cells, holder.keys));
        let new = header.count as usize;
        // What the cell had before is not taken off: at the limit it is the renewal that matters.
        if held_keys + new > PRESENCE_KEYS_PER_HOLDER
            || held_cells + 1 > PRESENCE_CELLS_PER_HOLDER
            || keys + new > PRESENCE_KEYS / self.teams
            || cells + 1 > PRESENCE_CELLS / self.teams
        {
            return Err(PresenceRefusal::Quota);
        }
        Ok(())
    }

    fn drop_cell(&mut self, header: &PresenceHeader) {
        let Some(holder) = self.holders.get_mut(&header.holder) else {
            return;
        };
        if let Some(region) = holder.regions.get_mut(&header.region) {
            if region.depth == header.depth {
                region.cells.remove(&header.cell);
            } else {
                region.cells.clear();
            }
        }
        holder.recount();
    }
}

impl Cells {
    /// The cell this key of the region lies in.
    fn covering(&self, region: Region, key: PresenceKey) -> Option<&Cell> {
        let index = key.leading(region.bits.saturating_add(self.depth));
        // The region's own bits lie above.
        self.cells.get(&(index & ((1 << self.depth) - 1)))
    }
}

/// What was signed, where it is what it should be.
fn opened<T: Statement>(envelope: &Envelope) -> Result<T, PresenceRefusal> {
    envelope.open().map_err(|error| match error {
        EnvelopeError::Version { got, known, .. } => PresenceRefusal::Version { got, known },
        _ => PresenceRefusal::Invalid,
    })
}

/// Whether two sorted lists have a key in common. Each key of the shorter one is looked up in the other.
fn share_one(some: &[PresenceKey], others: &[PresenceKey]) -> bool {
    let (few, many) = if some.len() < others.len() {
        (some, others)
    } else {
        (others, some)
    };
    few.iter().any(|key| many.binary_search(key).is_ok())
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
