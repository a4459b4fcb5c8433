//! What the store knows, in one file: `<home>/store/index.redb`.
//!
//! The index is the truth about which paths are valid: a tree that it does not name does not exist
//! for anybody. One change is one transaction, and a transaction is on the disk before anyone is told
//! of it.

#[cfg(test)]
mod backend;
#[cfg(test)]
mod consistency;
mod encoding;
mod objects;
mod paths;
mod tables;

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use redb::{Database, ReadTransaction, ReadableDatabase, WriteTransaction};

pub use encoding::DecodeError;
pub(crate) use encoding::{PathRecord, path_from_key, path_key};
pub(crate) use objects::{insert_tree, parts_from, remove_tree};
pub(crate) use paths::{insert_path, read_path, read_unaccepted, remove_path, write_uses};
pub(crate) use tables::*;

use crate::disk::{Context, Disk, FileError, at};
use crate::limits::INDEX_CACHE;

/// The index could not be read or written.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the store's index '{}' cannot be {action}: {source}", .path.display())]
pub struct IndexError {
    /// `made`, `opened`, `read` or `written`.
    pub action: &'static str,
    /// The file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: Arc<IndexFault>,
}

/// What is wrong with the index.
#[derive(Debug, thiserror::Error)]
pub enum IndexFault {
    /// The database says so.
    #[error(transparent)]
    Database(Box<redb::Error>),
    /// An entry that this program did not write.
    #[error("a damaged entry ({0}); the file was changed by something else, or the disk lost data")]
    Damaged(#[from] DecodeError),
    /// The database gave up over what it read: its pages are not looked at before they are used.
    #[error(
        "it makes no sense ({0}); the file was changed by something else, or the disk lost data. Put an earlier one back, \
         or move the home's 'store' and 'nix' away to begin with an empty store"
    )]
    Nonsense(String),
    /// A file operation that belongs to the change failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// After a failure it could not be opened again.
    #[error("it is closed after an earlier failure; stop the node and start it again")]
    Closed,
}

/// Runs what works on the database, whose code panics over damaged pages.
fn guarded<T>(work: impl FnOnce() -> Result<T, IndexFault>) -> Result<T, IndexFault> {
    let caught = std::panic::catch_unwind(AssertUnwindSafe(work));
    caught.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(IndexFault::Nonsense(
            said.unwrap_or("it did not say why").to_owned(),
        ))
    })
}

impl<E: Into<redb::Error>> From<E> for IndexFault {
    fn from(error: E) -> Self {
        Self::Database(Box::new(error.into()))
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Index {
    path: PathBuf,
    /// None after a failure that no reopening has mended.
    database: RwLock<Option<Database>>,
    disk: Disk,
}

impl Index {
    pub(crate) fn open(path: &Path, disk: Disk) -> Result<Self, IndexError> {
        let index = Self {
            path: path.to_owned(),
            database: RwLock::new(None),
            disk,
        };
        if !index.path.exists() {
            index.create().map_err(|fault| index.error("made", fault))?;
        }
        index.reopen()?;
        Ok(index)
    }

    /// Makes a new index beside and gives it its name when it is whole: the database cannot tell a file
    /// whose making was cut short from something else.
    fn create(&self) -> Result<(), IndexFault> {
        let beside = self.path.with_extension("new");
        // The database begins in an empty file as in none.
        drop(self.disk.make_anew(&beside, 0o644).on("make", || &beside)?);
        let database = self.open_database(&beside)?;
        let transaction = database.begin_write()?;
        create_tables(&transaction)?;
        transaction.commit()?;
        drop(database);
        let named = self.disk.replace(at(&beside), at(&self.path));
        named.on("rename to", || &self.path)?;
        let folder = self.path.parent().unwrap_or(Path::new("."));
        Ok(self.disk.sync_directory(folder)?)
    }

    pub(crate) fn file(&self) -> &Path {
        &self.path
    }

    /// Reads one state of the index.
    pub(crate) fn read<T>(
        &self,
        read: impl FnOnce(&ReadTransaction) -> Result<T, IndexFault>,
    ) -> Result<T, IndexError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let result = match &*database {
            None => Err(IndexFault::Closed),
            Some(database) => guarded(|| read(&database.begin_read()?)),
        };
        result.map_err(|fault| self.error("read", fault))
    }

    /// Changes the index; durable when this returns. After an error nothing has changed, unless the
    /// error came from the last step: then [`Index::reopen`] and look.
    pub(crate) fn write<T>(
        &self,
        write: impl FnOnce(&WriteTransaction) -> Result<T, IndexFault>,
    ) -> Result<T, IndexError> {
        self.write_as(redb::Durability::Immediate, write)
    }

    /// Changes something that may be lost in a crash.
    pub(crate) fn write_lazily<T>(
        &self,
        write: impl FnOnce(&WriteTransaction) -> Result<T, IndexFault>,
    ) -> Result<T, IndexError> {
        self.write_as(redb::Durability::None, write)
    }

    /// Does what a change would do, and gives it up.
    pub(crate) fn preview<T>(
        &self,
        write: impl FnOnce(&WriteTransaction) -> Result<T, IndexFault>,
    ) -> Result<T, IndexError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let result = match &*database {
            None => Err(IndexFault::Closed),
            Some(database) => guarded(|| {
                let transaction = database.begin_write()?;
                let result = write(&transaction)?;
                transaction.abort()?;
                Ok(result)
            }),
        };
        result.map_err(|fault| self.error("read", fault))
    }

    fn write_as<T>(
        &self,
        durability: redb::Durability,
        write: impl FnOnce(&WriteTransaction) -> Result<T, IndexFault>,
    ) -> Result<T, IndexError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let result = match &*database {
            None => Err(IndexFault::Closed),
            Some(database) => guarded(|| {
                let mut transaction = database.begin_write()?;
                transaction.set_durability(durability)?;
                let result = write(&transaction)?;
                transaction.commit()?;
                Ok(result)
            }),
        };
        result.map_err(|fault| self.error("written", fault))
    }

    /// After a failed write the database answers nothing any more; opening it again finds the last
    /// state that is on the disk.
    pub(crate) fn reopen(&self) -> Result<(), IndexError> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        drop(database.take());
        let opened = guarded(|| self.open_database(&self.path));
        *database = Some(opened.map_err(|fault| self.error("opened", fault))?);
        Ok(())
    }

    #[cfg(not(test))]
    fn open_database(&self, path: &Path) -> Result<Database, IndexFault> {
        Ok(Database::builder().set_cache_size(INDEX_CACHE).create(path)?)
    }

    #[cfg(test)]
    fn open_database(&self, path: &Path) -> Result<Database, IndexFault> {
        let mut options = std::fs::OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path);
        let file = file.map_err(redb::StorageError::from)?;
        let backend =
            backend::FaultyBackend::new(redb::backends::FileBackend::new(file)?, self.disk.faults.clone());
        Ok(Database::builder()
            .set_cache_size(INDEX_CACHE)
            .create_with_backend(backend)?)
    }

    pub(crate) fn error(&self, action: &'static str, fault: impl Into<IndexFault>) -> IndexError {
        IndexError {
            action,
            path: self.path.clone(),
            source: Arc::new(fault.into()),
        }
    }
}
