//! Checking that what lies on the disk is what was registered.
//!
//! Everything of a tree is looked at: the bytes of all files and the targets of all links against the
//! hash of the archive, names, kinds, sizes, modes and times one by one, and that nothing is there that
//! should not be.

use std::io::{self, Write};

use sha2::{Digest, Sha256};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::path_info::{NarHash, PathInfo};
use tvix_node_protocol::tree::TreeDigest;

use crate::index::{IndexError, PathRecord};
use crate::limits::VERIFY_GROUP;
use crate::read::ReadError;
use crate::store::Store;

/// A tree that is not as it was registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Its path.
    pub path: StorePath,
    /// What it should be.
    pub tree: TreeDigest,
    /// Whether it is the accepted tree of its path.
    pub accepted: bool,
    /// What is wrong, in words.
    pub reason: String,
}

/// What [`Store::verify`] found.
#[derive(Debug, Clone, Default)]
pub struct VerifyReport {
    /// Trees looked at.
    pub trees: u64,
    /// Bytes of their archives.
    pub bytes: u64,
    /// Those that are not as they were registered.
    pub damaged: Vec<Damage>,
}

/// Why a tree could not be checked. It may be whole or not.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// Not in the store.
    #[error("{0} is not in the store")]
    NotValid(StorePath),
    /// The index refused.
    #[error(transparent)]
    Index(#[from] IndexError),
}

impl Store {
    /// Checks one path; nothing where it is whole.
    ///
    /// # Errors
    /// See [`VerifyError`]. A file that cannot be read is damage, not an error: to whoever wants it, it
    /// is lost all the same.
    pub fn verify_path(&self, path: &StorePath) -> Result<Option<Damage>, VerifyError> {
        let lease = self.lease();
        lease.reserve([path]);
        let record = self.inner.index.path(path)?;
        let record = record.ok_or_else(|| VerifyError::NotValid(path.clone()))?;
        Ok(self.check_record(&record, true)?)
    }

    /// Checks everything in the store, also the trees beside the accepted ones. `progress` is told of
    /// each tree after it was looked at. What is added meanwhile may be left out; what is collected
    /// meanwhile is.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn verify(
        &self,
        progress: &mut dyn FnMut(&PathInfo, Option<&Damage>),
    ) -> Result<VerifyReport, IndexError> {
        let mut report = VerifyReport::default();
        let mut check = |record: &PathRecord, accepted| -> Result<(), IndexError> {
            let lease = self.lease();
            lease.reserve([&record.info.path]);
            if !self.is_there(record, accepted)? {
                return Ok(());
            }
            let damage = self.check_record(record, accepted)?;
            report.trees += 1;
            report.bytes += record.info.nar_size;
            progress(&record.info, damage.as_ref());
            report.damaged.extend(damage);
            Ok(())
        };
        let mut last: Option<StorePath> = None;
        loop {
            // A few at a time: a reader that stays open keeps the index from using its space again.
            let records = self.inner.index.paths_after(last.as_ref(), VERIFY_GROUP)?;
            for record in &records {
                check(record, true)?;
            }
            match records.into_iter().last() {
                Some(record) => last = Some(record.info.path),
                None => break,
            }
        }
        for record in self.inner.index.every_unaccepted()? {
            check(&record, false)?;
        }
        Ok(report)
    }

    fn is_there(&self, record: &PathRecord, accepted: bool) -> Result<bool, IndexError> {
        let (index, info) = (&self.inner.index, &record.info);
        let now = if accepted {
            index.path(&info.path)?
        } else {
            index.unaccepted(&info.path, info.tree)?
        };
        Ok(now.is_some_and(|now| now.number == record.number))
    }

    fn check_record(&self, record: &PathRecord, accepted: bool) -> Result<Option<Damage>, IndexError> {
        let info = &record.info;
        let mut hash = Hashing(Sha256::new());
        let reason = match self.check_dump(record, &mut hash) {
            Ok(_) => {
                let computed = NarHash(hash.0.finalize().into());
                if computed == info.nar_hash {
                    return Ok(None);
                }
                format!(
                    "its archive has the hash {} now, not {} as when it was registered",
                    computed.to_nix(),
                    info.nar_hash.to_nix()
                )
            }
            Err(ReadError::Index(error)) => return Err(error),
            Err(ReadError::Damaged { path, reason }) => format!("'{}' {reason}", path.display()),
            Err(error) => error.to_string(),
        };
        Ok(Some(Damage {
            path: info.path.clone(),
            tree: info.tree,
            accepted,
            reason,
        }))
    }
}

struct Hashing(Sha256);

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
