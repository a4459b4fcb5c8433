//! Every operation that changes the file system goes through here, so that a test can cut or fail
//! each one of them, and so that every failure names what was done to which path.
//!
//! Trees are made by the descriptor of their directory and one name. What lies elsewhere has a path: [`at`] is what
//! both have in common.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, Timespec, Timestamps};
use rustix::io::Errno;

use crate::buffers::ALIGNMENT;
#[cfg(test)]
use crate::faults::{Faults, Step};

/// A file operation that failed: what, where, why.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot {action} '{}': {source}{}", .path.display(), hint(*.source))]
pub struct FileError {
    /// What was tried, such as `write`.
    pub action: &'static str,
    /// On which path.
    pub path: PathBuf,
    /// The system's answer.
    #[source]
    pub source: Errno,
}

impl FileError {
    pub(crate) fn new(action: &'static str, path: impl Into<PathBuf>, source: Errno) -> Self {
        let path = path.into();
        Self { action, path, source }
    }

    pub(crate) fn of_io(action: &'static str, path: impl Into<PathBuf>, error: &std::io::Error) -> Self {
        let errno = error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
        Self::new(action, path, errno)
    }

    /// Whether the file system or the user's quota is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self.source, Errno::NOSPC | Errno::DQUOT)
    }
}

fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::NOSPC | Errno::DQUOT => {
            "; free some space (a garbage collection of the store does, too) and try again"
        }
        Errno::ROFS => "; the file system is mounted read-only",
        _ => "",
    }
}

/// Turns a system error into a [`FileError`]; the path is only made where it is needed.
pub(crate) trait Context<T> {
    fn on<P: Into<PathBuf>>(self, action: &'static str, path: impl FnOnce() -> P) -> Result<T, FileError>;
}

impl<T> Context<T> for Result<T, Errno> {
    fn on<P: Into<PathBuf>>(self, action: &'static str, path: impl FnOnce() -> P) -> Result<T, FileError> {
        self.map_err(|source| FileError::new(action, path(), source))
    }
}

/// Second 1 of 1970, for access and modification, as stock Nix sets it.
const CANONICAL_TIMES: Timestamps = Timestamps {
    last_access: Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    },
    last_modification: Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    },
};

fn canonical_mode(executable: bool) -> Mode {
    Mode::from_raw_mode(if executable { 0o555 } else { 0o444 })
}

/// The modification time of everything in the store.
pub(crate) const CANONICAL_TIME: i64 = 1;

/// A path as directory and name: the directory counts only where the path is relative.
pub(crate) fn at(path: &Path) -> (BorrowedFd<'static>, &[u8]) {
    (CWD, path.as_os_str().as_bytes())
}

/// The file system below the store. All clones are the same one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    #[cfg(test)]
    pub(crate) faults: Faults,
}

macro_rules! step {
    ($self:ident, $step:ident) => {
        #[cfg(test)]
        $self.faults.reach(Step::$step)?;
        #[cfg(not(test))]
        let _ = $self;
    };
}

impl Disk {
    pub(crate) fn make_directory(&self, place: (BorrowedFd<'_>, &[u8]), mode: u32) -> Result<(), Errno> {
        step!(self, MakeDirectory);
        rustix::fs::mkdirat(place.0, place.1, Mode::from_raw_mode(mode))
    }

    /// Makes a file that must not be there yet. It can be written to through the descriptor alone.
    pub(crate) fn make_file(
        &self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        executable: bool,
    ) -> Result<OwnedFd, Errno> {
        step!(self, MakeFile);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat(parent, name, flags, canonical_mode(executable))
    }

    /// Makes a file of this mode, less what the user's mask takes. It must not be there yet.
    pub(crate) fn make(&self, path: &Path, mode: u32) -> Result<OwnedFd, Errno> {
        step!(self, MakeFile);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::from_raw_mode(mode))
    }

    /// The same; what a killed process left there goes.
    pub(crate) fn make_anew(&self, path: &Path, mode: u32) -> Result<OwnedFd, Errno> {
        match self.unlink(at(path)) {
            Ok(()) | Err(Errno::NOENT) => self.make(path, mode),
            Err(error) => Err(error),
        }
    }

    /// Opens a file for reading and writing, and makes it where it is missing.
    pub(crate) fn open_or_make(&self, path: &Path, mode: u32) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Err(Errno::NOENT) => {}
            opened => return opened,
        }
        step!(self, MakeFile);
        rustix::fs::open(path, flags | OFlags::CREATE, Mode::from_raw_mode(mode))
    }

    /// Makes a directory, and those that it lies in, as far as they are missing.
    pub(crate) fn make_directories(&self, path: &Path, mode: u32) -> Result<(), FileError> {
        let missing = path
            .ancestors()
            .take_while(|path| !path.as_os_str().is_empty() && !path.is_dir());
        let missing: Vec<&Path> = missing.collect();
        for path in missing.into_iter().rev() {
            match self.make_directory(at(path), mode) {
                // Somebody else was quicker.
                Err(Errno::EXIST) if path.is_dir() => {}
                made => made.on("make the directory", || path)?,
            }
        }
        Ok(())
    }

    pub(crate) fn write(&self, file: impl AsFd, mut bytes: &[u8]) -> Result<(), Errno> {
        let file = file.as_fd();
        while !bytes.is_empty() {
            step!(self, Write);
            match rustix::io::write(file, bytes) {
                Ok(0) => return Err(Errno::IO),
                Ok(written) => bytes = &bytes[written..],
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What is written to this file from now on goes past the page cache. Answers whether the file system can do so.
    pub(crate) fn begin_around_cache(&self, file: &OwnedFd) -> bool {
        rustix::fs::fcntl_setfl(file, OFlags::DIRECT).is_ok()
    }

    /// As [`Disk::write`], around the page cache as far as the bytes lie as that needs them: whole pages from the
    /// beginning of one. The rest goes through the cache, and so does all that follows it.
    pub(crate) fn write_around_cache(&self, file: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
        while bytes.as_ptr().align_offset(ALIGNMENT) == 0 && bytes.len() >= ALIGNMENT {
            step!(self, Write);
            let pages = bytes.len() - bytes.len() % ALIGNMENT;
            match rustix::io::write(file, &bytes[..pages]) {
                Ok(0) => return Err(Errno::IO),
                Ok(written) => bytes = &bytes[written..],
                Err(Errno::INTR) => {}
                // A disk that asks for more than a page.
                Err(Errno::INVAL) => break,
                Err(error) => return Err(error),
            }
        }
        if bytes.is_empty() {
            return Ok(());
        }
        rustix::fs::fcntl_setfl(file, OFlags::empty())?;
        self.write(file, bytes)
    }

    /// Asks the kernel to start writing out what was written, without waiting, so that the disk works
    /// while the rest is being copied. Only a hint: a refusal changes nothing.
    pub(crate) fn start_writing_out(&self, file: &OwnedFd, offset: u64, length: u64) {
        if let Some(length) = std::num::NonZeroU64::new(length) {
            let refused =
                rustix::fs::fadvise(file, offset, Some(length), rustix::fs::Advice::DontNeed).is_err();
            tracing::trace!(refused, "asked to write out early");
        }
    }

    pub(crate) fn make_symlink(&self, target: &[u8], place: (BorrowedFd<'_>, &[u8])) -> Result<(), Errno> {
        step!(self, MakeSymlink);
        rustix::fs::symlinkat(target, place.0, place.1)
    }

    pub(crate) fn hard_link(
        &self,
        from: (BorrowedFd<'_>, &[u8]),
        to: (BorrowedFd<'_>, &[u8]),
    ) -> Result<(), Errno> {
        step!(self, HardLink);
        rustix::fs::linkat(from.0, from.1, to.0, to.1, AtFlags::empty())
    }

    pub(crate) fn clone_file(&self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
        step!(self, CloneFile);
        rustix::fs::ioctl_ficlone(to, from)
    }

    /// Sets what stock Nix sets on everything in a store: mode 0444 or 0555, times of second 1.
    pub(crate) fn canonicalise(&self, object: BorrowedFd<'_>, executable: bool) -> Result<(), Errno> {
        step!(self, Canonicalise);
        let mode = canonical_mode(executable);
        // Most files have it from the start, and looking costs a fraction of setting.
        if rustix::fs::fstat(object)?.st_mode & 0o7777 != mode.as_raw_mode() {
            rustix::fs::fchmod(object, mode)?;
        }
        rustix::fs::futimens(object, &CANONICAL_TIMES)
    }

    pub(crate) fn canonicalise_symlink(&self, parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
        step!(self, Canonicalise);
        rustix::fs::utimensat(parent, name, &CANONICAL_TIMES, AtFlags::SYMLINK_NOFOLLOW)
    }

    pub(crate) fn make_writable(&self, directory: BorrowedFd<'_>) -> Result<(), Errno> {
        step!(self, MakeWritable);
        rustix::fs::fchmod(directory, Mode::RWXU)
    }

    /// Renames within one directory and never replaces anything.
    pub(crate) fn rename(&self, parent: BorrowedFd<'_>, from: &[u8], to: &[u8]) -> Result<(), Errno> {
        step!(self, Rename);
        match rustix::fs::renameat_with(parent, from, parent, to, RenameFlags::NOREPLACE) {
            // A file system without the flag. The home belongs to one process, so nothing comes
            // between the look and the rename.
            Err(Errno::INVAL | Errno::NOSYS) => {
                match rustix::fs::statat(parent, to, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(_) => Err(Errno::EXIST),
                    Err(Errno::NOENT) => rustix::fs::renameat(parent, from, parent, to),
                    Err(error) => Err(error),
                }
            }
            result => result,
        }
    }

    /// Renames a file or link, replacing one of the new name.
    pub(crate) fn replace(
        &self,
        from: (BorrowedFd<'_>, &[u8]),
        to: (BorrowedFd<'_>, &[u8]),
    ) -> Result<(), Errno> {
        step!(self, Rename);
        rustix::fs::renameat(from.0, from.1, to.0, to.1)
    }

    /// Two names change places in one step.
    pub(crate) fn exchange(&self, parent: BorrowedFd<'_>, one: &[u8], other: &[u8]) -> Result<(), Errno> {
        step!(self, Rename);
        rustix::fs::renameat_with(parent, one, parent, other, RenameFlags::EXCHANGE)
    }

    pub(crate) fn unlink(&self, place: (BorrowedFd<'_>, &[u8])) -> Result<(), Errno> {
        step!(self, Remove);
        rustix::fs::unlinkat(place.0, place.1, AtFlags::empty())
    }

    pub(crate) fn remove_directory(&self, parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
        step!(self, Remove);
        rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
    }

    pub(crate) fn truncate(&self, file: BorrowedFd<'_>, length: u64) -> Result<(), Errno> {
        step!(self, Truncate);
        rustix::fs::ftruncate(file, length)
    }

    /// Everything written to the file system of `any` so far is on the disk afterwards.
    pub(crate) fn sync_filesystem(&self, any: BorrowedFd<'_>) -> Result<(), Errno> {
        step!(self, Sync);
        // What a killed process wrote stays in memory: a test that kills needs no disk.
        if cfg!(test) {
            Ok(())
        } else {
            rustix::fs::syncfs(any)
        }
    }

    /// The names in this directory are on the disk afterwards.
    pub(crate) fn sync_directory(&self, path: &Path) -> Result<(), FileError> {
        let directory = open_directory_path(path)?;
        self.sync_file(directory.as_fd()).on("sync", || path)
    }

    /// What was written to this file or directory is on the disk afterwards.
    pub(crate) fn sync_file(&self, object: BorrowedFd<'_>) -> Result<(), Errno> {
        step!(self, SyncFile);
        if cfg!(test) {
            Ok(())
        } else {
            rustix::fs::fsync(object)
        }
    }
}

/// A file for what writes to a [`Write`](io::Write).
pub(crate) struct Writing<'a> {
    pub(crate) disk: &'a Disk,
    pub(crate) file: BorrowedFd<'a>,
}

impl io::Write for Writing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.disk.write(self.file, bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Opens a directory without following a link in its last component.
pub(crate) fn open_directory(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Opens a directory by its path.
pub(crate) fn open_directory_path(path: &Path) -> Result<OwnedFd, FileError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).on("open the directory", || path)
}

/// The names in a directory, `.` and `..` left out, in no order.
pub(crate) fn list(directory: &OwnedFd) -> Result<Vec<(Vec<u8>, rustix::fs::FileType)>, Errno> {
    let mut buffer = Vec::with_capacity(32 << 10);
    let mut entries = Vec::new();
    let mut stream = rustix::fs::RawDir::new(directory.as_fd(), buffer.spare_capacity_mut());
    while let Some(entry) = stream.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            entries.push((name.to_vec(), entry.file_type()));
        }
    }
    Ok(entries)
}
