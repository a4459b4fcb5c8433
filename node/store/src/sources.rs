//! Sources that were added before: an unchanged checkout is not hashed again.
//!
//! A fingerprint names what identifies a source without reading it (paths, sizes, inodes, times); how
//! it is made is the caller's. This is a cache: it has a bound, it may forget, and it never answers a
//! path that is not valid.

use redb::{ReadableTable, ReadableTableMetadata};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::path_info::PathInfo;

use crate::index::{DecodeError, IndexError, SOURCE_AGES, SOURCES, path_from_key, path_key};
use crate::leases::Lease;
use crate::limits::{FINGERPRINT_BYTES, SOURCES as MOST};
use crate::store::Store;

/// Why a source was not remembered.
#[derive(Debug, thiserror::Error)]
pub enum SourceCacheError {
    /// Too long.
    #[error(
        "a source's fingerprint of {0} bytes, more than the {FINGERPRINT_BYTES} allowed; give a digest of it"
    )]
    Fingerprint(usize),
    /// The index refused.
    #[error(transparent)]
    Index(#[from] IndexError),
}

impl Store {
    /// The path that a source with this fingerprint was added as, if it is still valid; leased.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn source(&self, fingerprint: &str, lease: &Lease) -> Result<Option<PathInfo>, IndexError> {
        let path = self.inner.index.read(|transaction| {
            let sources = transaction.open_table(SOURCES)?;
            let entry = sources.get(fingerprint)?;
            entry.map(|entry| Ok(path_from_key(entry.value().1)?)).transpose()
        })?;
        path.map_or(Ok(None), |path| lease.hold_one(&path))
    }

    /// Remembers a source. The oldest is forgotten where there are too many. May be lost in a crash.
    ///
    /// # Errors
    /// [`SourceCacheError`]
    pub fn remember_source(&self, fingerprint: &str, path: &StorePath) -> Result<(), SourceCacheError> {
        if fingerprint.len() > FINGERPRINT_BYTES {
            return Err(SourceCacheError::Fingerprint(fingerprint.len()));
        }
        self.remember_source_among(fingerprint, path, MOST)
    }

    pub(crate) fn remember_source_among(
        &self,
        fingerprint: &str,
        path: &StorePath,
        most: u64,
    ) -> Result<(), SourceCacheError> {
        self.inner.index.write_lazily(|transaction| {
            let mut sources = transaction.open_table(SOURCES)?;
            let mut ages = transaction.open_table(SOURCE_AGES)?;
            let last = ages.last()?.map(|(age, _)| age.value());
            let next = last.map_or(Some(0), |last| last.checked_add(1));
            let next = next.ok_or(DecodeError::Field("age of a source"))?;
            let before = sources.insert(fingerprint, (next, path_key(path).as_slice()))?;
            let before = before.map(|entry| entry.value().0);
            if let Some(age) = before {
                ages.remove(age)?;
            }
            ages.insert(next, fingerprint)?;
            while ages.len()? > most {
                if let Some((_, oldest)) = ages.pop_first()? {
                    sources.remove(oldest.value())?;
                }
            }
            Ok(())
        })?;
        Ok(())
    }
}
