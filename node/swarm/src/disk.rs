//! Small files of the home: written whole or not at all, with a version in front.

use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::{Serialize, de::DeserializeOwned};
use tvix_node_protocol::cbor::{self, CborError};

/// Why a file of the home could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file system says no.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Written by a newer program.
    #[error(
        "{} has schema version {got}, this program knows {known}: use the newer program; the file is left as it is",
        .path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        got: u64,
        /// The one known here.
        known: u64,
    },
    /// Not what such a file holds.
    #[error("{} is damaged: {source}; restore it from a backup, or move it away to begin anew", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: CborError,
    },
}

/// What a file holds: its version, and its content.
#[derive(serde::Serialize, serde::Deserialize)]
struct Versioned {
    schema: u64,
    #[serde(with = "tvix_node_protocol::bytes::vec")]
    content: Vec<u8>,
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    let path = path.to_owned();
    move |source| DiskError::Io { action, path, source }
}

/// Writes a value beside the file, syncs it, and puts it in the file's place.
///
/// # Errors
/// [`DiskError::Io`]; the file is then as it was.
pub fn save<T: Serialize>(path: &Path, schema: u64, value: &T) -> Result<(), DiskError> {
    let damaged = |source| DiskError::Damaged {
        path: path.to_owned(),
        source,
    };
    let content = cbor::to_vec(value).map_err(damaged)?;
    let bytes = cbor::to_vec(&Versioned { schema, content }).map_err(damaged)?;
    let beside = path.with_extension("new");
    let mut file = File::create(&beside).map_err(io_error("create", &beside))?;
    file.write_all(&bytes).map_err(io_error("write", &beside))?;
    file.sync_all().map_err(io_error("sync", &beside))?;
    fs::rename(&beside, path).map_err(io_error("replace", path))?;
    if let Some(folder) = path.parent() {
        let folder_file = File::open(folder).map_err(io_error("open", folder))?;
        folder_file.sync_all().map_err(io_error("sync", folder))?;
    }
    Ok(())
}

/// Reads a value of at most `limit` bytes. None where there is no file.
///
/// # Errors
/// See [`DiskError`].
pub fn load<T: DeserializeOwned>(path: &Path, schema: u64, limit: usize) -> Result<Option<T>, DiskError> {
    let Some(stored) = load_stored(path, schema..=schema, limit)? else {
        return Ok(None);
    };
    stored.content(path).map(Some)
}

/// What a file holds, and by which schema it is to be read.
pub(crate) struct Stored {
    /// As the file says.
    pub(crate) schema: u64,
    content: Vec<u8>,
}

impl Stored {
    /// The value, by the schema that the file says. `path` is for the error.
    ///
    /// # Errors
    /// [`DiskError::Damaged`]
    pub(crate) fn content<T: DeserializeOwned>(&self, path: &Path) -> Result<T, DiskError> {
        cbor::from_slice(&self.content, self.content.len()).map_err(|source| DiskError::Damaged {
            path: path.to_owned(),
            source,
        })
    }
}

/// As [`load`], where files of older schemas are there, too.
///
/// # Errors
/// See [`DiskError`].
pub(crate) fn load_stored(
    path: &Path,
    schemas: RangeInclusive<u64>,
    limit: usize,
) -> Result<Option<Stored>, DiskError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("read", path)(error)),
    };
    let damaged = |source| DiskError::Damaged {
        path: path.to_owned(),
        source,
    };
    let versioned: Versioned = cbor::from_slice(&bytes, limit).map_err(damaged)?;
    if !schemas.contains(&versioned.schema) {
        return Err(DiskError::Newer {
            path: path.to_owned(),
            got: versioned.schema,
            known: *schemas.end(),
        });
    }
    Ok(Some(Stored {
        schema: versioned.schema,
        content: versioned.content,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_comes_back_and_a_missing_file_is_none() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("value");
        assert_eq!(load::<u64>(&path, 1, 100).unwrap(), None);
        save(&path, 1, &7_u64).unwrap();
        save(&path, 1, &8_u64).unwrap();
        assert_eq!(load::<u64>(&path, 1, 100).unwrap(), Some(8));
    }

    #[test]
    fn a_newer_file_is_left_as_it_is() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("value");
        save(&path, 2, &7_u64).unwrap();
        let before = fs::read(&path).unwrap();
        let error = load::<u64>(&path, 1, 100).unwrap_err();
        assert!(
            matches!(error, DiskError::Newer { got: 2, known: 1, .. }),
            "{error}"
        );
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    #[test]
    fn a_damaged_file_is_named() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("value");
        fs::write(&path, b"not cbor").unwrap();
        let error = load::<u64>(&path, 1, 100).unwrap_err().to_string();
        assert!(error.contains("value is damaged"), "{error}");
    }

    #[test]
    fn a_half_written_file_beside_it_does_not_matter() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("value");
        save(&path, 1, &7_u64).unwrap();
        fs::write(path.with_extension("new"), b"half").unwrap();
        assert_eq!(load::<u64>(&path, 1, 100).unwrap(), Some(7));
        save(&path, 1, &8_u64).unwrap();
        assert_eq!(load::<u64>(&path, 1, 100).unwrap(), Some(8));
    }
}
