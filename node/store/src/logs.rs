//! Build logs: `<home>/log/<first two characters>/<rest of the derivation's name>`.
//!
//! A log that is being written lies beside, so it can be read while the build runs, and takes its place
//! when the build has ended. Logs are not synced: after a power failure the last ones may be gone.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tvix_node_protocol::StorePath;

use crate::disk::FileError;
use crate::limits::{LOG_BYTES, LOG_FILE_BYTES};
use crate::store::{Inner, Store};

/// Why a log cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Too long.
    #[error("the build's log is longer than the {limit} bytes allowed")]
    Full {
        /// Bytes allowed.
        limit: u64,
    },
    /// No log.
    #[error("there is no log of {0}; it was not built here, or the log was too old to be kept")]
    None(StorePath),
    /// The file system refused.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Ending of logs that are being written.
const RUNNING: &str = ".running-";

/// Bytes of new logs after which the total is looked at: that means looking at every log.
const PRUNE_EVERY: u64 = 16 << 20;

/// Where a process begins to count, so that one that never writes much looks, too.
pub(crate) const LOGGED_AT_START: u64 = PRUNE_EVERY - (1 << 20);

static NEXT: AtomicU64 = AtomicU64::new(0);

/// The log of a running build. Dropping it without [`LogWriter::finish`] keeps what was written, as the
/// log of a build that was interrupted.
pub struct LogWriter {
    store: Arc<Inner>,
    file: File,
    running: PathBuf,
    finished: PathBuf,
    written: u64,
    limit: u64,
    done: bool,
}

impl LogWriter {
    /// Appends to the log.
    ///
    /// # Errors
    /// [`LogError::Full`]: what still fits is written.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), LogError> {
        let room = usize::try_from(self.limit - self.written).unwrap_or(usize::MAX);
        let fits = &bytes[..bytes.len().min(room)];
        self.file
            .write_all(fits)
            .map_err(|error| failed("write", &self.running, &error))?;
        self.written += fits.len() as u64;
        if fits.len() < bytes.len() {
            return Err(LogError::Full { limit: self.limit });
        }
        Ok(())
    }

    /// Bytes so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Ends the log: from now on it is the log of its derivation.
    ///
    /// # Errors
    /// [`LogError::File`]
    pub fn finish(mut self) -> Result<(), LogError> {
        self.done = true;
        self.end()
    }

    /// Gives the log up: the log of an earlier build of its derivation stays.
    ///
    /// # Errors
    /// [`LogError::File`]
    pub fn discard(mut self) -> Result<(), LogError> {
        self.done = true;
        Ok(std::fs::remove_file(&self.running).map_err(|error| failed("remove", &self.running, &error))?)
    }

    fn end(&self) -> Result<(), LogError> {
        std::fs::rename(&self.running, &self.finished)
            .map_err(|error| failed("finish", &self.finished, &error))?;
        let before = self.store.logged.fetch_add(self.written, Ordering::Relaxed);
        if (before + self.written) / PRUNE_EVERY > before / PRUNE_EVERY {
            self.store.prune_logs(LOG_BYTES)?;
        }
        Ok(())
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        if !self.done
            && let Err(error) = self.end()
        {
            tracing::warn!(%error, "a build log could not be kept");
        }
    }
}

impl std::fmt::Debug for LogWriter {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "LogWriter({})", self.running.display())
    }
}

fn failed(action: &'static str, path: &Path, error: &io::Error) -> FileError {
    FileError::of_io(action, path, error)
}

impl Store {
    /// Begins the log of a build of `derivation`, of at most `limit` bytes (none: 256 MiB). Several builds
    /// of one derivation may run at once; the one that ends last leaves its log.
    ///
    /// # Errors
    /// [`LogError::File`]
    pub fn create_log(&self, derivation: &StorePath, limit: Option<u64>) -> Result<LogWriter, LogError> {
        let finished = self.inner.log_path(derivation);
        let folder = finished.parent().unwrap_or(&self.inner.home);
        std::fs::create_dir_all(folder).map_err(|error| failed("make the directory", folder, &error))?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Without the name, which may be as long as the name of a file may be.
        let name = format!(
            "{}{RUNNING}{}-{number}",
            hash_part(derivation),
            std::process::id()
        );
        let running = folder.join(name);
        let mut options = File::options();
        let file = options.write(true).create_new(true).mode(0o644).open(&running);
        Ok(LogWriter {
            store: Arc::clone(&self.inner),
            file: file.map_err(|error| failed("make", &running, &error))?,
            running,
            finished,
            written: 0,
            limit: limit.unwrap_or(LOG_FILE_BYTES),
            done: false,
        })
    }

    /// Opens the log of `derivation`: of a build that runs now, else of the last one that ended.
    ///
    /// # Errors
    /// [`LogError::None`], [`LogError::File`]
    pub fn open_log(&self, derivation: &StorePath) -> Result<File, LogError> {
        let finished = self.inner.log_path(derivation);
        let none = || LogError::None(derivation.clone());
        let folder = finished.parent().unwrap_or(&self.inner.home);
        let prefix = format!("{}{RUNNING}", hash_part(derivation));
        let mut newest = None;
        for (path, metadata) in files(folder)? {
            if file_name(&path).starts_with(&prefix) {
                newest = newest.max(Some((metadata.mtime(), metadata.mtime_nsec(), path)));
            }
        }
        let candidates = [newest.map(|(_, _, path)| path), Some(finished)];
        for path in candidates.into_iter().flatten() {
            match File::open(&path) {
                Ok(file) => return Ok(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed("open", &path, &error).into()),
            }
        }
        Err(none())
    }

    /// The last `lines` lines of a log, without their ends, from at most its last 64 KiB. What is not
    /// UTF-8 is replaced.
    ///
    /// # Errors
    /// As [`Store::open_log`].
    pub fn log_tail(&self, derivation: &StorePath, lines: usize) -> Result<Vec<String>, LogError> {
        const MOST: u64 = 64 << 10;
        let mut file = self.open_log(derivation)?;
        let path = self.inner.log_path(derivation);
        let mut read = || {
            let length = file.seek(SeekFrom::End(0))?;
            file.seek(SeekFrom::Start(length.saturating_sub(MOST)))?;
            let mut bytes = Vec::new();
            (&mut file).take(MOST).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().map_err(|error| failed("read", &path, &error))?;
        let text = String::from_utf8_lossy(&bytes);
        let all: Vec<&str> = text.lines().collect();
        let last = &all[all.len().saturating_sub(lines)..];
        Ok(last.iter().map(|&line| line.to_owned()).collect())
    }
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// The files in a folder; none where there is no folder.
fn files(folder: &Path) -> Result<Vec<(PathBuf, std::fs::Metadata)>, FileError> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("list", folder, &error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| failed("list", folder, &error))?;
        match entry.metadata() {
            Ok(metadata) => found.push((entry.path(), metadata)),
            // Finished or pruned meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("look at", &entry.path(), &error)),
        }
    }
    Ok(found)
}

/// What follows the folder of a derivation's log and is not its name.
fn hash_part(derivation: &StorePath) -> String {
    derivation.to_basename().chars().skip(2).take(30).collect()
}

impl Inner {
    fn log_path(&self, derivation: &StorePath) -> PathBuf {
        let name = derivation.to_basename();
        let (first, rest) = name.split_at(2);
        self.home.join("log").join(first).join(rest)
    }

    /// Removes the oldest finished logs until the rest has at most `most` bytes.
    pub(crate) fn prune_logs(&self, most: u64) -> Result<(), FileError> {
        let mut finished = Vec::new();
        let mut total = 0;
        for (folder, metadata) in files(&self.home.join("log"))? {
            if !metadata.is_dir() {
                continue;
            }
            for (path, metadata) in files(&folder)? {
                if !file_name(&path).contains(RUNNING) {
                    total += metadata.len();
                    finished.push(((metadata.mtime(), metadata.mtime_nsec()), metadata.len(), path));
                }
            }
        }
        if total <= most {
            return Ok(());
        }
        finished.sort_unstable();
        for (_, length, path) in finished {
            if total <= most {
                break;
            }
            match std::fs::remove_file(&path) {
                Ok(()) => total -= length,
                Err(error) if error.kind() == io::ErrorKind::NotFound => total -= length,
                Err(error) => return Err(failed("remove", &path, &error)),
            }
        }
        Ok(())
    }
}
