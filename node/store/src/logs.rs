//! Build logs: `<home>/log/<first two characters>/<rest of the derivation's name>`.
//!
//! A log that is being written is `<home>/log/running/<number>-<derivation's name>`, so it can be read while the build
//! runs, and takes its place when the build has ended, however it ended: one of a node that was killed does at the next
//! start. Logs are not synced: after a power failure the last ones may be gone.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;
use tvix_node_protocol::StorePath;

use crate::disk::{Context, Disk, FileError, at};
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

/// Where logs are that are being written. All other folders beside it have two characters.
const RUNNING: &str = "running";

/// Bytes of new logs after which the total is looked at: that means looking at every log.
const PRUNE_EVERY: u64 = 16 << 20;

/// Where a process begins to count, so that one that never writes much looks, too.
pub(crate) const LOGGED_AT_START: u64 = PRUNE_EVERY - (1 << 20);

static NEXT: AtomicU64 = AtomicU64::new(0);

/// The log of a running build. Dropping it without [`LogWriter::finish`] keeps what was written, as the
/// log of a build that was interrupted.
pub struct LogWriter {
    store: Arc<Inner>,
    file: OwnedFd,
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
        let disk = &self.store.trees.disk;
        disk.write(&self.file, fits).on("write", || &self.running)?;
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
        let removed = self.store.trees.disk.unlink(at(&self.running));
        Ok(removed.on("remove", || &self.running)?)
    }

    fn end(&self) -> Result<(), LogError> {
        let finished = self
            .store
            .trees
            .disk
            .replace(at(&self.running), at(&self.finished));
        finished.on("finish", || &self.finished)?;
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
        let finished = log_path(&self.inner.home, derivation);
        let disk = &self.inner.trees.disk;
        let beside = self.inner.home.join("log").join(RUNNING);
        for folder in [&beside, finished.parent().unwrap_or(&self.inner.home)] {
            disk.make_directories(folder, 0o777)?;
        }
        let (file, running) = loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let running = beside.join(format!("{number}-{}", derivation.to_basename()));
            match disk.make(&running, 0o644) {
                // What a killed process left and could not be put in its place.
                Err(Errno::EXIST) => {}
                made => break (made.on("make", || &running)?, running),
            }
        };
        Ok(LogWriter {
            store: Arc::clone(&self.inner),
            file,
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
        let finished = log_path(&self.inner.home, derivation);
        let none = || LogError::None(derivation.clone());
        let mut newest = None;
        for (path, metadata) in files(&self.inner.home.join("log").join(RUNNING))? {
            if derivation_of(&path).as_ref() == Some(derivation) {
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
        let path = log_path(&self.inner.home, derivation);
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

fn log_path(home: &Path, derivation: &StorePath) -> PathBuf {
    let name = derivation.to_basename();
    let (first, rest) = name.split_at(2);
    home.join("log").join(first).join(rest)
}

/// Whose log this is that is being written.
fn derivation_of(running: &Path) -> Option<StorePath> {
    let (_, name) = running.file_name()?.to_str()?.split_once('-')?;
    StorePath::from_basename(name.as_bytes()).ok()
}

/// Ends the logs of builds that ended with the process before this one: each becomes the log of its derivation. What cannot be
/// put in its place now is tried again at the next start: no store stays closed for a log.
pub(crate) fn end_logs(disk: &Disk, home: &Path) {
    let end = || {
        let mut left = files(&home.join("log").join(RUNNING))?;
        // The one that was written to last is the one that counts.
        left.sort_by_key(|(_, metadata)| (metadata.mtime(), metadata.mtime_nsec()));
        for (running, _) in left {
            let placed = match derivation_of(&running) {
                Some(derivation) => disk.replace(at(&running), at(&log_path(home, &derivation))),
                None => disk.unlink(at(&running)),
            };
            placed.on("finish", || &running)?;
        }
        Ok::<(), FileError>(())
    };
    if let Err(error) = end() {
        tracing::warn!(%error, "the log of a build that was interrupted is not in its place yet");
    }
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

impl Inner {
    /// Removes the oldest finished logs until the rest has at most `most` bytes.
    pub(crate) fn prune_logs(&self, most: u64) -> Result<(), FileError> {
        let mut finished = Vec::new();
        let mut total = 0;
        for (folder, metadata) in files(&self.home.join("log"))? {
            if !metadata.is_dir() || folder.ends_with(RUNNING) {
                continue;
            }
            for (path, metadata) in files(&folder)? {
                total += metadata.len();
                finished.push(((metadata.mtime(), metadata.mtime_nsec()), metadata.len(), path));
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
            match self.trees.disk.unlink(at(&path)) {
                Ok(()) | Err(Errno::NOENT) => total -= length,
                Err(error) => return Err(FileError::new("remove", path, error)),
            }
        }
        Ok(())
    }
}
