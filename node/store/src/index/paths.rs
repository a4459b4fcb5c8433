//! Paths and what is known of them.

use std::collections::HashMap;
use std::ops::Bound;

use redb::{ReadTransaction, ReadableTable, ReadableTableMetadata, WriteTransaction};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::tree::TreeDigest;

use super::{
    DecodeError, Index, IndexError, IndexFault, PATHS, PathRecord, REFERRERS, TREES, UNACCEPTED, USED,
    path_from_key, path_key,
};

impl Index {
    /// What is known of a valid path.
    pub(crate) fn path(&self, path: &StorePath) -> Result<Option<PathRecord>, IndexError> {
        self.read(|transaction| read_path(&transaction.open_table(PATHS)?, path))
    }

    /// The same for many, in one state of the index.
    pub(crate) fn paths<'p>(
        &self,
        paths: impl IntoIterator<Item = &'p StorePath>,
    ) -> Result<Vec<Option<PathRecord>>, IndexError> {
        self.read(|transaction| {
            let table = transaction.open_table(PATHS)?;
            paths.into_iter().map(|path| read_path(&table, path)).collect()
        })
    }

    /// Which of these are valid.
    pub(crate) fn valid<'p>(
        &self,
        paths: impl IntoIterator<Item = &'p StorePath>,
    ) -> Result<Vec<bool>, IndexError> {
        self.read(|transaction| {
            let table = transaction.open_table(PATHS)?;
            paths
                .into_iter()
                .map(|path| Ok(table.get(path_key(path).as_slice())?.is_some()))
                .collect()
        })
    }

    /// How many paths are valid.
    pub(crate) fn count(&self) -> Result<u64, IndexError> {
        self.read(|transaction| Ok(transaction.open_table(PATHS)?.len()?))
    }

    /// Paths that refer to this one, itself left out.
    pub(crate) fn referrers(&self, path: &StorePath) -> Result<Vec<StorePath>, IndexError> {
        self.read(|transaction| referrers(&transaction.open_table(REFERRERS)?, &path_key(path)))
    }

    /// A tree that was stored beside the accepted one.
    pub(crate) fn unaccepted(
        &self,
        path: &StorePath,
        tree: TreeDigest,
    ) -> Result<Option<PathRecord>, IndexError> {
        self.read(|transaction| read_unaccepted(&transaction.open_table(UNACCEPTED)?, path, tree))
    }

    /// All trees that were stored beside the accepted one of a path.
    pub(crate) fn all_unaccepted(&self, path: &StorePath) -> Result<Vec<PathRecord>, IndexError> {
        self.read(|transaction| {
            let table = transaction.open_table(UNACCEPTED)?;
            let key = path_key(path);
            let range = (key.as_slice(), &[0; 32])..=(key.as_slice(), &[255; 32]);
            let records = table.range(range)?.map(|entry| {
                let (_, record) = entry?;
                Ok(PathRecord::decode(path.clone(), record.value())?)
            });
            records.collect()
        })
    }

    /// At most so many paths, in the order of the index, after this one.
    pub(crate) fn paths_after(
        &self,
        after: Option<&StorePath>,
        most: usize,
    ) -> Result<Vec<PathRecord>, IndexError> {
        self.read(|transaction| {
            let table = transaction.open_table(PATHS)?;
            let key = after.map(path_key);
            let start = match &key {
                Some(key) => Bound::Excluded(key.as_slice()),
                None => Bound::Unbounded,
            };
            let records = table
                .range::<&[u8]>((start, Bound::Unbounded))?
                .take(most)
                .map(|entry| {
                    let (key, record) = entry?;
                    Ok(PathRecord::decode(path_from_key(key.value())?, record.value())?)
                });
            records.collect()
        })
    }

    /// All trees that were stored beside the accepted ones.
    pub(crate) fn every_unaccepted(&self) -> Result<Vec<PathRecord>, IndexError> {
        self.read(|transaction| {
            let table = transaction.open_table(UNACCEPTED)?;
            let records = table.iter()?.map(|entry| {
                let (key, record) = entry?;
                Ok(PathRecord::decode(path_from_key(key.value().0)?, record.value())?)
            });
            records.collect()
        })
    }

    /// The name of the tree of this number.
    pub(crate) fn tree_name(&self, number: u64) -> Result<Option<String>, IndexError> {
        self.read(|transaction| {
            let trees = transaction.open_table(TREES)?;
            Ok(trees.get(number)?.map(|name| name.value().to_owned()))
        })
    }

    /// Whether a tree among those in the store has this name. Of names that no tree can have, it says so,
    /// too: they are not ours to touch.
    pub(crate) fn knows_name(&self, name: &str) -> Result<bool, IndexError> {
        if let Ok(path) = StorePath::from_basename(name.as_bytes()) {
            return Ok(self.path(&path)?.is_some());
        }
        if !name.starts_with(crate::trees::UNACCEPTED) {
            return Ok(true);
        }
        self.read(|transaction| {
            for entry in transaction.open_table(TREES)?.iter()? {
                if entry?.1.value() == name {
                    return Ok(true);
                }
            }
            Ok(false)
        })
    }

    /// A number that no tree has, nor any after it.
    pub(crate) fn next_tree_number(&self) -> Result<u64, IndexError> {
        self.read(next_number)
    }
}

fn next_number(transaction: &ReadTransaction) -> Result<u64, IndexFault> {
    let last = transaction
        .open_table(TREES)?
        .last()?
        .map(|(number, _)| number.value());
    match last {
        Some(last) => Ok(last.checked_add(1).ok_or(DecodeError::Field("tree number"))?),
        None => Ok(0),
    }
}

pub(crate) fn read_path(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    path: &StorePath,
) -> Result<Option<PathRecord>, IndexFault> {
    let record = table.get(path_key(path).as_slice())?;
    record
        .map(|record| Ok(PathRecord::decode(path.clone(), record.value())?))
        .transpose()
}

pub(crate) fn read_unaccepted(
    table: &impl ReadableTable<(&'static [u8], &'static [u8; 32]), &'static [u8]>,
    path: &StorePath,
    tree: TreeDigest,
) -> Result<Option<PathRecord>, IndexFault> {
    let record = table.get((path_key(path).as_slice(), &tree.0))?;
    record
        .map(|record| Ok(PathRecord::decode(path.clone(), record.value())?))
        .transpose()
}

pub(crate) fn referrers(
    table: &impl ReadableTable<(&'static [u8], &'static [u8]), ()>,
    key: &[u8],
) -> Result<Vec<StorePath>, IndexFault> {
    let mut found = Vec::new();
    for entry in table.range((key, [].as_slice())..)? {
        let (entry, _) = entry?;
        let (path, referrer) = entry.value();
        if path != key {
            break;
        }
        found.push(path_from_key(referrer)?);
    }
    Ok(found)
}

/// Makes a path valid.
pub(crate) fn insert_path(transaction: &WriteTransaction, record: &PathRecord) -> Result<(), IndexFault> {
    let key = path_key(&record.info.path);
    transaction
        .open_table(PATHS)?
        .insert(key.as_slice(), record.encode().as_slice())?;
    let mut referrers = transaction.open_table(REFERRERS)?;
    for reference in record
        .info
        .references
        .iter()
        .filter(|&reference| *reference != record.info.path)
    {
        referrers.insert((path_key(reference).as_slice(), key.as_slice()), ())?;
    }
    Ok(())
}

/// Writes down when paths were used last; of those that are not valid nothing.
pub(crate) fn write_uses(
    transaction: &WriteTransaction,
    uses: &HashMap<StorePath, u64>,
) -> Result<(), IndexFault> {
    if uses.is_empty() {
        return Ok(());
    }
    let paths = transaction.open_table(PATHS)?;
    let mut used = transaction.open_table(USED)?;
    for (path, time) in uses {
        let key = path_key(path);
        if paths.get(key.as_slice())?.is_some() {
            used.insert(key.as_slice(), time)?;
        }
    }
    Ok(())
}

/// Makes a path invalid again.
pub(crate) fn remove_path(transaction: &WriteTransaction, record: &PathRecord) -> Result<(), IndexFault> {
    let key = path_key(&record.info.path);
    transaction.open_table(PATHS)?.remove(key.as_slice())?;
    transaction.open_table(USED)?.remove(key.as_slice())?;
    let mut referrers = transaction.open_table(REFERRERS)?;
    for reference in &record.info.references {
        referrers.remove((path_key(reference).as_slice(), key.as_slice()))?;
    }
    Ok(())
}
