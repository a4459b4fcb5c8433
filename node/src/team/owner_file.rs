//! Files of the home in which its owner's rules are written down: JSON that says its version.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use serde::de::DeserializeOwned;

/// Why what is in such a file is not taken.
#[derive(Debug, thiserror::Error)]
pub enum OwnerFileError {
    /// A newer program wrote it.
    #[error("it is of version {found}, and this program knows version {known}")]
    Newer {
        /// Its version.
        found: u64,
        /// The newest that this program knows.
        known: u32,
    },
    /// It is not what this program writes.
    #[error("{0}")]
    Damaged(String),
}

/// What a file has. What a newer program wrote may not even parse: its version comes first.
///
/// # Errors
/// See [`OwnerFileError`].
pub fn read_versioned<T: DeserializeOwned>(bytes: &[u8], known: u32) -> Result<T, OwnerFileError> {
    let damaged = |error: serde_json::Error| OwnerFileError::Damaged(error.to_string());
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(damaged)?;
    match value.get("version").and_then(serde_json::Value::as_u64) {
        Some(found) if found > u64::from(known) => Err(OwnerFileError::Newer { found, known }),
        Some(_) => serde_json::from_value(value).map_err(damaged),
        None => Err(OwnerFileError::Damaged(
            "it does not say which version it is of".to_owned(),
        )),
    }
}

/// Writes a file that is there completely, durably, or as it was before.
pub fn write_whole(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let aside = file.with_extension(format!("new-{}", std::process::id()));
    let written = (|| {
        let mut handle = File::create(&aside)?;
        handle.write_all(bytes)?;
        handle.sync_all()?;
        fs::rename(&aside, file)?;
        match file.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    })();
    if written.is_err() {
        // The first failure is the useful one; a leftover does no harm.
        drop(fs::remove_file(&aside));
    }
    written
}
