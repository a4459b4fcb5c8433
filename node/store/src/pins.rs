//! Pins: paths that somebody wants kept, with what they refer to, until they say otherwise.
//!
//! A pin is in the index, and so is as durable as the path itself and moves with the home. (A root, in
//! contrast, is a link somewhere, and lasts as long as that.)

use std::collections::BTreeSet;

use redb::{ReadableTable, ReadableTableMetadata, TableError};
use tvix_node_protocol::StorePath;

use crate::index::{IndexError, IndexFault, PATHS, PINS, path_from_key, path_key};
use crate::limits::PINS as MOST;
use crate::store::{Store, now};

/// Why pins were not changed.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// Not there.
    #[error("{0} is not in the store, so it cannot be pinned")]
    NotValid(StorePath),
    /// Not pinned.
    #[error("{0} is not pinned")]
    NotPinned(StorePath),
    /// Too many.
    #[error("the store has {MOST} pins, the most it takes; unpin what is not needed")]
    TooMany,
    /// The index refused.
    #[error(transparent)]
    Index(#[from] IndexError),
}

/// A pin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// What is kept, with everything it refers to.
    pub path: StorePath,
    /// When it was pinned, in seconds since 1970.
    pub since: u64,
}

impl Store {
    /// Keeps these paths, and what they refer to, until [`Store::unpin`]: all of them or, where one is refused, none.
    /// Durable when this returns. One that is pinned already stays so.
    ///
    /// # Errors
    /// See [`PinError`].
    pub fn pin(&self, paths: &[StorePath]) -> Result<(), PinError> {
        let refused = self.inner.index.write(|transaction| {
            let valid = transaction.open_table(PATHS)?;
            let mut pins = transaction.open_table(PINS)?;
            let mut new = BTreeSet::new();
            for path in paths {
                let key = path_key(path);
                if valid.get(key.as_slice())?.is_none() {
                    return Ok(Some(PinError::NotValid(path.clone())));
                }
                if pins.get(key.as_slice())?.is_none() {
                    new.insert(key);
                }
            }
            if pins.len()? + new.len() as u64 > MOST {
                return Ok(Some(PinError::TooMany));
            }
            for key in new {
                pins.insert(key.as_slice(), now())?;
            }
            Ok(None)
        })?;
        refused.map_or(Ok(()), Err)
    }

    /// Keeps these paths no longer: all of them or, where one is not pinned, none.
    ///
    /// # Errors
    /// See [`PinError`].
    pub fn unpin(&self, paths: &[StorePath]) -> Result<(), PinError> {
        let refused = self.inner.index.write(|transaction| {
            let mut pins = transaction.open_table(PINS)?;
            for path in paths {
                if pins.get(path_key(path).as_slice())?.is_none() {
                    return Ok(Some(PinError::NotPinned(path.clone())));
                }
            }
            for path in paths {
                pins.remove(path_key(path).as_slice())?;
            }
            Ok(None)
        })?;
        refused.map_or(Ok(()), Err)
    }

    /// What is pinned, by path.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn pins(&self) -> Result<Vec<Pin>, IndexError> {
        let mut pins = self.inner.index.read(|transaction| {
            match transaction.open_table(PINS) {
                // Nothing was ever pinned.
                Err(TableError::TableDoesNotExist(_)) => Ok(Vec::new()),
                table => read_pins(&table?),
            }
        })?;
        pins.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(pins)
    }
}

/// All pins of a state of the index.
pub(crate) fn read_pins(table: &impl ReadableTable<&'static [u8], u64>) -> Result<Vec<Pin>, IndexFault> {
    let mut pins = Vec::new();
    for entry in table.iter()? {
        let (key, since) = entry?;
        pins.push(Pin {
            path: path_from_key(key.value())?,
            since: since.value(),
        });
    }
    Ok(pins)
}
