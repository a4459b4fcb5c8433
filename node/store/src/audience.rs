//! Which teams may learn of a path.
//!
//! A node may belong to several teams, and to others after these. What came from the members of one is nothing that
//! another may learn of from this node, so each tree in the store has its [`Audience`], written down in the same
//! change that makes the tree part of the store.
//!
//! A path is never known to more teams than everything that it refers to: who may have it may have its closure, and
//! what it refers to stands in its path info.

use std::collections::{BTreeSet, HashMap};

use redb::{ReadTransaction, ReadableTable, ReadableTableMetadata, WriteTransaction};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{BuildKey, SwarmId};
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::path_info::{Origin, PathInfo};
use tvix_node_protocol::tree::BlobDigest;

use crate::index::{
    AUDIENCES, DecodeError, FILES, Index, IndexError, IndexFault, PATHS, PathRecord, RECORD_AUDIENCES,
    RECORDS, TREES, UNACCEPTED, path_from_key, path_key, read_path,
};
use crate::limits::BLOB_TREES;
use crate::store::Store;
use crate::trees::unaccepted_name;

/// Which teams may learn of something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Audience {
    /// Each of the node's, today's and later ones: the owner made it, from nothing that came from a team.
    Everyone,
    /// These alone; nobody where there are none.
    Teams(BTreeSet<SwarmId>),
}

impl Audience {
    /// The members of one team.
    #[must_use]
    pub fn team(team: SwarmId) -> Self {
        Self::Teams(BTreeSet::from([team]))
    }

    /// No team.
    #[must_use]
    pub fn nobody() -> Self {
        Self::Teams(BTreeSet::new())
    }

    /// Whether the members of a team may learn of it.
    #[must_use]
    pub fn includes(&self, team: SwarmId) -> bool {
        match self {
            Self::Everyone => true,
            Self::Teams(teams) => teams.contains(&team),
        }
    }

    /// Who may learn of what depends on both.
    #[must_use]
    pub fn both(self, other: &Self) -> Self {
        match (self, other) {
            (own, Self::Everyone) => own,
            (Self::Everyone, other) => other.clone(),
            (Self::Teams(own), Self::Teams(other)) => Self::Teams(own.intersection(other).copied().collect()),
        }
    }

    /// Who may learn of what is known in either way.
    #[must_use]
    pub fn either(self, other: &Self) -> Self {
        match (self, other) {
            (Self::Everyone, _) | (_, Self::Everyone) => Self::Everyone,
            (Self::Teams(mut own), Self::Teams(other)) => {
                own.extend(other);
                Self::Teams(own)
            }
        }
    }

    /// None for everyone, which is not written down.
    pub(crate) fn encode(&self) -> Option<Vec<u8>> {
        match self {
            Self::Everyone => None,
            Self::Teams(teams) => Some(teams.iter().flat_map(|team| team.0).collect()),
        }
    }

    pub(crate) fn decode(row: Option<&[u8]>) -> Result<Self, DecodeError> {
        let Some(row) = row else {
            return Ok(Self::Everyone);
        };
        let (teams, []) = row.as_chunks::<32>() else {
            return Err(DecodeError::Field("audience"));
        };
        Ok(Self::Teams(teams.iter().copied().map(SwarmId).collect()))
    }
}

/// What becomes known of a tree, or is known anew.
pub(crate) struct Offer<'a> {
    pub(crate) path: &'a StorePath,
    pub(crate) references: &'a BTreeSet<StorePath>,
    /// Of the tree in the store.
    pub(crate) name: String,
    pub(crate) audience: Audience,
    /// It was there before.
    pub(crate) known: bool,
}

/// Writes down who may learn of trees that are valid now: who could before, and of those it is offered to who may
/// learn of all that it refers to.
pub(crate) fn write_audiences(
    transaction: &WriteTransaction,
    offers: &[Offer<'_>],
) -> Result<(), IndexFault> {
    let mut table = transaction.open_table(AUDIENCES)?;
    // Where nothing is kept from anybody there is nothing to look up.
    if table.is_empty()? && offers.iter().all(|offer| offer.audience == Audience::Everyone) {
        return Ok(());
    }
    let settled = settle(&table, offers)?;
    for offer in offers {
        let row = settled.get(offer.path).and_then(Audience::encode);
        match row {
            Some(row) => drop(table.insert(offer.name.as_str(), row.as_slice())?),
            None => drop(table.remove(offer.name.as_str())?),
        }
    }
    Ok(())
}

/// Who may learn of what is offered.
fn settle<'a>(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    offers: &'a [Offer<'a>],
) -> Result<HashMap<&'a StorePath, Audience>, IndexFault> {
    let by_path: HashMap<&StorePath, &Offer<'_>> = offers.iter().map(|offer| (offer.path, offer)).collect();
    let mut settled: HashMap<&StorePath, Audience> = HashMap::new();
    for offer in offers {
        // What is referred to comes first.
        let mut stack = vec![offer];
        let mut entered: BTreeSet<&StorePath> = BTreeSet::new();
        while let Some(top) = stack.last().copied() {
            if settled.contains_key(top.path) {
                stack.pop();
                continue;
            }
            if entered.insert(top.path) {
                let open = top
                    .references
                    .iter()
                    .filter_map(|path| by_path.get(path).copied());
                // Of references in a circle, which nothing that was built has, each is entered once.
                stack.extend(
                    open.filter(|offer| !settled.contains_key(offer.path) && !entered.contains(offer.path)),
                );
                continue;
            }
            let mut audience = top.audience.clone();
            for reference in top.references.iter().filter(|path| *path != top.path) {
                audience = match settled.get(reference) {
                    Some(other) => audience.both(other),
                    None => audience.both(&of_name(table, &reference.to_basename())?),
                };
            }
            if top.known {
                audience = audience.either(&of_name(table, &top.name)?);
            }
            settled.insert(top.path, audience);
            stack.pop();
        }
    }
    Ok(settled)
}

fn of_name(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &str,
) -> Result<Audience, IndexFault> {
    let row = table.get(name)?;
    Ok(Audience::decode(row.as_ref().map(|row| row.value()))?)
}

/// A tree that lay under its digest lies under its name now.
pub(crate) fn move_audience(
    transaction: &WriteTransaction,
    (from, to): (&str, &str),
    record: &PathRecord,
) -> Result<(), IndexFault> {
    let audience = {
        let mut table = transaction.open_table(AUDIENCES)?;
        let row = table.remove(from)?;
        Audience::decode(row.as_ref().map(|row| row.value()))?
    };
    let offer = Offer {
        path: &record.info.path,
        references: &record.info.references,
        name: to.to_owned(),
        audience,
        known: false,
    };
    write_audiences(transaction, &[offer])
}

/// Writes down who may learn of a record.
pub(crate) fn write_record_audience(
    transaction: &WriteTransaction,
    (key, builder): (&BuildKey, &NodeKey),
    audience: &Audience,
) -> Result<(), IndexFault> {
    let mut table = transaction.open_table(RECORD_AUDIENCES)?;
    match audience.encode() {
        Some(row) => drop(table.insert((&key.0, &builder.0), row.as_slice())?),
        None => drop(table.remove((&key.0, &builder.0))?),
    }
    Ok(())
}

/// Who may learn of a record.
pub(crate) fn record_audience(
    table: &impl ReadableTable<(&'static [u8; 32], &'static [u8; 32]), &'static [u8]>,
    (key, builder): (&[u8; 32], &[u8; 32]),
) -> Result<Audience, IndexFault> {
    let row = table.get((key, builder))?;
    Ok(Audience::decode(row.as_ref().map(|row| row.value()))?)
}

/// Makes the tables in an index from before audiences were written down. Nobody knows where what is in it came from,
/// sources among it, which name themselves whoever brought them: all of it counts as from the teams that the node belongs
/// to now, `teams`, and is for nobody where it has left them. Where it never belonged to one (none), and has nothing
/// that a member built or vouched for, all of it is the owner's.
pub(crate) fn begin_audiences(index: &Index, teams: Option<&BTreeSet<SwarmId>>) -> Result<(), IndexError> {
    index.write(|transaction| {
        let paths = transaction.open_table(PATHS)?;
        let unaccepted = transaction.open_table(UNACCEPTED)?;
        let mut foreign = teams.is_some();
        let mut names = Vec::new();
        for entry in paths.iter()? {
            let (key, record) = entry?;
            let path = path_from_key(key.value())?;
            let info = PathRecord::decode(path, record.value())?.info;
            foreign |= matches!(info.origin, Origin::Record { .. } | Origin::Peer { .. });
            names.push(info.path.to_basename());
        }
        for entry in unaccepted.iter()? {
            let (key, record) = entry?;
            let path = path_from_key(key.value().0)?;
            let tree = PathRecord::decode(path.clone(), record.value())?.info.tree;
            foreign = true;
            names.push(unaccepted_name(&path, tree));
        }
        let mut audiences = transaction.open_table(AUDIENCES)?;
        let mut of_records = transaction.open_table(RECORD_AUDIENCES)?;
        let teams = teams.cloned().unwrap_or_default();
        let Some(row) = Audience::Teams(teams).encode().filter(|_| foreign) else {
            return Ok(());
        };
        for name in names {
            audiences.insert(name.as_str(), row.as_slice())?;
        }
        for entry in transaction.open_table(RECORDS)?.iter()? {
            of_records.insert(entry?.0.value(), row.as_slice())?;
        }
        Ok(())
    })
}

impl Store {
    /// Who may learn of each of these paths; none where one is not valid.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn audiences<'p>(
        &self,
        paths: impl IntoIterator<Item = &'p StorePath>,
    ) -> Result<Vec<Option<Audience>>, IndexError> {
        self.inner.index.read(|transaction| {
            let valid = transaction.open_table(PATHS)?;
            let audiences = transaction.open_table(AUDIENCES)?;
            let audience = |path: &StorePath| {
                if valid.get(path_key(path).as_slice())?.is_none() {
                    return Ok(None);
                }
                of_name(&audiences, &path.to_basename()).map(Some)
            };
            paths.into_iter().map(audience).collect()
        })
    }

    /// Who may learn of what depends on all of these paths; nobody where one is not valid.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn audience_of_all<'p>(
        &self,
        paths: impl IntoIterator<Item = &'p StorePath>,
    ) -> Result<Audience, IndexError> {
        let audiences = self.audiences(paths)?.into_iter();
        Ok(audiences.fold(Audience::Everyone, |all, audience| {
            all.both(&audience.unwrap_or_else(Audience::nobody))
        }))
    }

    /// Which of these paths are valid and may be known to the members of this team.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn known_to<'p>(
        &self,
        team: SwarmId,
        paths: impl IntoIterator<Item = &'p StorePath>,
    ) -> Result<Vec<bool>, IndexError> {
        let audiences = self.audiences(paths)?.into_iter();
        let known = audiences.map(|audience| audience.is_some_and(|audience| audience.includes(team)));
        Ok(known.collect())
    }

    /// These valid paths have come by another way, too: those it is open to may learn of them from now on. Of what
    /// is not valid nothing is noted. Durable when this returns.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn widen<'p>(
        &self,
        paths: impl IntoIterator<Item = &'p StorePath>,
        audience: &Audience,
    ) -> Result<(), IndexError> {
        let paths: BTreeSet<&StorePath> = paths.into_iter().collect();
        let known = self.audiences(paths.iter().copied())?;
        let narrow: Vec<&StorePath> = paths
            .into_iter()
            .zip(known)
            .filter(|(_, known)| {
                let known = known.as_ref();
                known.is_some_and(|known| known.clone().either(audience) != *known)
            })
            .map(|(path, _)| path)
            .collect();
        if narrow.is_empty() {
            return Ok(());
        }
        let changes = self.inner.index.read(|transaction| {
            let infos = infos_of(&transaction.open_table(PATHS)?, &narrow)?;
            let offers = widened(&infos, audience);
            let table = transaction.open_table(AUDIENCES)?;
            for (path, audience) in settle(&table, &offers)? {
                if audience != of_name(&table, &path.to_basename())? {
                    return Ok(true);
                }
            }
            Ok(false)
        })?;
        // What it refers to may keep it as narrow as it is, and a change costs a wait for the disk.
        if !changes {
            return Ok(());
        }
        self.inner.index.write(|transaction| {
            let infos = infos_of(&transaction.open_table(PATHS)?, &narrow)?;
            write_audiences(transaction, &widened(&infos, audience))
        })
    }

    /// Whether a file with these bytes lies in a tree that counts, for each of these. `counts` is asked with the path
    /// of a tree, none for one that lies under its digest, and with who may learn of it.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn has_blobs_among(
        &self,
        blobs: &[BlobDigest],
        counts: &dyn Fn(Option<&StorePath>, &Audience) -> bool,
    ) -> Result<Vec<bool>, IndexError> {
        self.inner.index.read(|transaction| {
            let blobs = blobs.iter();
            blobs
                .map(|blob| has_blob_among(transaction, blob, counts))
                .collect()
        })
    }
}

fn infos_of(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    paths: &[&StorePath],
) -> Result<Vec<PathInfo>, IndexFault> {
    let mut infos = Vec::with_capacity(paths.len());
    for path in paths {
        infos.extend(read_path(table, path)?.map(|record| record.info));
    }
    Ok(infos)
}

fn widened<'a>(infos: &'a [PathInfo], audience: &Audience) -> Vec<Offer<'a>> {
    let offers = infos.iter().map(|info| Offer {
        path: &info.path,
        references: &info.references,
        name: info.path.to_basename(),
        audience: audience.clone(),
        known: true,
    });
    offers.collect()
}

fn has_blob_among(
    transaction: &ReadTransaction,
    blob: &BlobDigest,
    counts: &dyn Fn(Option<&StorePath>, &Audience) -> bool,
) -> Result<bool, IndexFault> {
    let files = transaction.open_table(FILES)?;
    let range = (&blob.0, false, 0, 0)..=(&blob.0, true, u32::MAX, u64::MAX);
    for entry in files.range(range)?.take(BLOB_TREES) {
        let (_, _, _, number) = entry?.0.value();
        let trees = transaction.open_table(TREES)?;
        let Some(name) = trees.get(number)? else {
            continue;
        };
        let audience = of_name(&transaction.open_table(AUDIENCES)?, name.value())?;
        let path = StorePath::from_basename(name.value().as_bytes()).ok();
        if counts(path.as_ref(), &audience) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
#[path = "audience_tests.rs"]
mod tests;
