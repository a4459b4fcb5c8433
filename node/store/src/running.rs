//! Roots of programs that run over the store. They outlive the process that owns the home.
//!
//! Whoever starts a program writes the paths that it uses to a file in `<home>/running` and holds a lock on
//! it; the program inherits the lock, and so does what it starts. A collection keeps what a locked file
//! names and what that refers to, and removes the files whose locks are free. What is started over a
//! store is so kept until its last process is gone, however it ends and whether or not there is a node.
//! A process that closes the descriptors it inherited, as daemons do and what Python starts, lets go of
//! the lock; what it uses is seen by looking at it ([`crate::processes`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::{Errno, FdFlags};
use tvix_node_protocol::StorePath;

use crate::disk::{Context, Disk, FileError, at};
use crate::limits::RUNNING_BYTES;
use crate::processes::{Bounds, PROC, named_by_processes};

/// Below the home.
const FOLDER: &str = "running";

/// What a file is called until it is locked and complete.
const BEGUN: &str = ".new-";

/// What a running program uses cannot be told, so nothing can be collected.
#[derive(Debug, thiserror::Error)]
pub enum RunningError {
    /// The file system refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// Not written by this program.
    #[error(
        "'{}' should name the store paths that a running program uses, and does not: {reason}; \
         remove it when that program has ended", .file.display()
    )]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Another user's, and of no use to this one.
    #[error(
        "'{}' names what a program uses that user {owner} started, and user {me} can neither tell whether it still runs \
         nor what it uses: {source}. Let user {owner} collect garbage or, when no program of theirs runs over this store \
         any more, remove the file", .file.display()
    )]
    NotOurs {
        /// The file.
        file: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who wants to collect.
        me: u32,
        /// What the system said.
        source: io::Error,
    },
    /// Processes say more of themselves than is looked at.
    #[error(
        "the processes of this machine use more than can be looked at: after {bytes} bytes (at most {most}) and {seconds} s \
         (at most {longest}), at process {process}, there was still more. Collect garbage when fewer of them run"
    )]
    TooManyProcesses {
        /// The process that was looked at last.
        process: u32,
        /// What was read.
        bytes: u64,
        /// How much is read at most.
        most: u64,
        /// How long that took.
        seconds: u64,
        /// How long it may take.
        longest: u64,
    },
    /// One process says more of itself than is looked at.
    #[error(
        "'{}' has more than the {most} bytes that are looked at of what a process uses. Collect garbage when that process \
         has ended", .file.display()
    )]
    ProcessTooLarge {
        /// Where the kernel says what it uses.
        file: PathBuf,
        /// How much is read at most.
        most: u64,
    },
}

/// A path that a running program uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramUse {
    /// The path. What it refers to stays with it.
    pub path: StorePath,
    /// A process that names it; none: only a program that `run` or `shell` started is known to use it.
    pub process: Option<u32>,
}

/// Paths that a program is about to use. They are kept as long as this lives, and as long as any
/// process lives that was started with [`Running::inherit`].
#[derive(Debug)]
pub struct Running {
    disk: Disk,
    path: PathBuf,
    /// Locked. None while it is dropped.
    file: Option<OwnedFd>,
}

impl Running {
    /// From now on a collection in the store of `home` keeps these paths and what they refer to. Whoever
    /// calls it holds a lease on them, or knows otherwise that they are there.
    ///
    /// # Errors
    /// [`FileError`]
    pub fn begin(home: &Path, paths: &BTreeSet<StorePath>) -> Result<Self, FileError> {
        Self::begin_on(&Disk::default(), home, paths)
    }

    pub(crate) fn begin_on(disk: &Disk, home: &Path, paths: &BTreeSet<StorePath>) -> Result<Self, FileError> {
        let folder = home.join(FOLDER);
        disk.make_directories(&folder, 0o700)?;
        let text: String = paths.iter().map(|path| path.to_basename() + "\n").collect();
        if text.len() > RUNNING_BYTES {
            return Err(FileError::new(
                "write the names of all paths to",
                folder,
                Errno::FBIG,
            ));
        }
        loop {
            if let Some(running) = Self::try_begin(disk, &folder, &text)? {
                return Ok(running);
            }
        }
    }

    /// None: a collection came between, see [`Running::lock`].
    fn try_begin(disk: &Disk, folder: &Path, text: &str) -> Result<Option<Self>, FileError> {
        // Names of processes are used again, so they alone would not do.
        let random = std::hash::RandomState::new().build_hasher().finish();
        let name = format!("{}-{random:016x}", std::process::id());
        let (begun, path) = (folder.join(format!("{BEGUN}{name}")), folder.join(name));
        // Whoever owns the home must be able to read what another user has started; nobody else can enter the folder.
        let file = disk.make(&begun, 0o644).on("make", || &begun)?;
        Self::lock(disk, file, &begun, (path, text))
    }

    /// Locks and fills a file that was made as `begun`, and gives it its name. None: a collection came between making
    /// and locking it, and took it for a leftover.
    fn lock(
        disk: &Disk,
        file: OwnedFd,
        begun: &Path,
        (path, text): (PathBuf, &str),
    ) -> Result<Option<Self>, FileError> {
        rustix::fs::flock(file.as_fd(), FlockOperation::LockExclusive).on("lock", || begun)?;
        let named = disk
            .write(&file, text.as_bytes())
            .and_then(|()| disk.replace(at(begun), at(&path)));
        match named {
            Ok(()) => Ok(Some(Self {
                disk: disk.clone(),
                path,
                file: Some(file),
            })),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => {
                let removed = disk.unlink(at(begun));
                tracing::debug!(?removed, "took back a file that could not be written");
                Err(FileError::new("write", path, error))
            }
        }
    }

    /// Whether a process that is started from now on holds the paths, too. Only one that uses them should:
    /// anything else would keep them needlessly.
    ///
    /// # Errors
    /// [`FileError`]
    pub fn inherit(&self, inherited: bool) -> Result<(), FileError> {
        let flags = match inherited {
            true => FdFlags::empty(),
            false => FdFlags::CLOEXEC,
        };
        match &self.file {
            Some(file) => rustix::io::fcntl_setfd(file, flags).on("pass on", || &self.path),
            None => Ok(()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.file.take());
        // Something that the program left in the background may hold it still.
        if let Err(error) = read_if_held(&self.disk, &self.path) {
            tracing::warn!(%error, "what a program used that has ended is looked at again by the next collection");
        }
    }
}

/// What programs use that run over the store of `home`, whose trees lie in `store`, each with a process that names it where
/// one does. Files of programs that have ended go.
///
/// Whoever holds the lock of a file may let go of it at any time, and is then seen by looking at processes alone: so
/// these are looked at last.
pub(crate) fn used_by_programs(
    disk: &Disk,
    home: &Path,
    store: &Path,
) -> Result<BTreeMap<StorePath, Option<u32>>, RunningError> {
    let mut used: BTreeMap<StorePath, Option<u32>> = named_in_files(disk, home)?
        .into_iter()
        .map(|path| (path, None))
        .collect();
    // What this process uses, and what it starts, is leased.
    let me = Some(std::process::id());
    let named = named_by_processes(Path::new(PROC), store, me, Bounds::default())?;
    used.extend(named.into_iter().map(|(path, process)| (path, Some(process))));
    Ok(used)
}

/// What the files of `home` name whose programs have not ended.
pub(crate) fn named_in_files(disk: &Disk, home: &Path) -> Result<BTreeSet<StorePath>, RunningError> {
    let folder = home.join(FOLDER);
    let failed = |error: io::Error| FileError::of_io("list", &folder, &error);
    let entries = match std::fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries.map_err(failed)?,
    };
    let mut used = BTreeSet::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        // Nothing of the sort is made here, and none of it can be locked by a program.
        match entry.file_type() {
            Ok(kind) if kind.is_file() => used.extend(read_if_held(disk, &entry.path())?),
            Ok(_) => {}
            // It has ended meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error).into()),
        }
    }
    Ok(used)
}

/// None: there is no such file any more.
fn open(path: &Path) -> Result<Option<File>, RunningError> {
    // Some file systems lock for one alone only what may be written to.
    let opened = File::options().read(true).write(true).open(path);
    let opened = match opened {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => File::open(path),
        opened => opened,
    };
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            let me = rustix::process::geteuid().as_raw();
            match std::fs::symlink_metadata(path).map(|metadata| metadata.uid()) {
                Ok(owner) if owner != me => Err(RunningError::NotOurs {
                    file: path.to_owned(),
                    owner,
                    me,
                    source: error,
                }),
                _ => Err(FileError::of_io("open", path, &error).into()),
            }
        }
    }
}

/// What a file names whose lock is held; one that nobody holds goes, and names nothing.
fn read_if_held(disk: &Disk, path: &Path) -> Result<Vec<StorePath>, RunningError> {
    let mut file = match open(path)? {
        Some(file) => file,
        // It has ended, or got its name, meanwhile. What gets its name now is leased.
        None => return Ok(Vec::new()),
    };
    match rustix::fs::flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            return match disk.unlink(at(path)) {
                Ok(()) | Err(Errno::NOENT) => Ok(Vec::new()),
                Err(error) => Err(FileError::new("remove", path, error).into()),
            };
        }
        Err(Errno::WOULDBLOCK) => {}
        // What may only be read, on a file system that does not lock that: it may well still run.
        Err(Errno::BADF) => {}
        Err(error) => return Err(FileError::new("lock", path, error).into()),
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name.starts_with(BEGUN) {
        // Whoever is making it holds a lease until it has its name.
        return Ok(Vec::new());
    }
    let damaged = |reason: String| RunningError::Damaged {
        file: path.to_owned(),
        reason,
    };
    let mut text = String::new();
    let read = (&mut file)
        .take(RUNNING_BYTES as u64 + 1)
        .read_to_string(&mut text);
    read.map_err(|error| FileError::of_io("read", path, &error))?;
    if text.len() > RUNNING_BYTES {
        return Err(damaged(format!("it has more than {RUNNING_BYTES} bytes")));
    }
    paths_of(&text).map_err(damaged)
}

/// The paths in the text of a file, or what is in it instead.
pub(crate) fn paths_of(text: &str) -> Result<Vec<StorePath>, String> {
    let parse =
        |line: &str| StorePath::from_basename(line.as_bytes()).map_err(|error| format!("'{line}': {error}"));
    text.lines().map(parse).collect()
}

#[cfg(test)]
#[path = "running_tests.rs"]
mod tests;
