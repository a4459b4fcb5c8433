//! Equal files exist once.
//!
//! Where the file system can share extents between files (reflink), a new file becomes a clone of a
//! stored one. Elsewhere it becomes another hard link to it. A file that occurs twice in one tree is
//! still two files there, so the tree shows no links of its own; the second occurrence is shared with
//! the second occurrences in other trees.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use tvix_node_protocol::tree::{BlobDigest, Leaf};

use crate::disk::CANONICAL_TIME;
use crate::index::{Index, IndexError};
use crate::trees::Trees;

/// A file as far as sharing is concerned: modes are the inode's, so an executable is another file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SharedFile {
    pub(crate) blob: BlobDigest,
    pub(crate) size: u64,
    pub(crate) executable: bool,
    /// How often it occurred in the new tree before.
    pub(crate) occurrence: u32,
}

impl SharedFile {
    pub(crate) fn leaf(&self) -> Leaf {
        Leaf::File {
            blob: self.blob,
            size: self.size,
            executable: self.executable,
        }
    }
}

/// What became of an attempt to share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shared {
    /// There is no file to share with, or it cannot be shared.
    Not,
    /// A new file that shares its bytes.
    Clone,
    /// Another link to the stored file.
    Link,
}

/// How equal files are shared on this file system. Found out by trying.
#[derive(Debug, Default)]
pub(crate) struct Sharing {
    no_reflink: AtomicBool,
    no_hard_link: AtomicBool,
}

impl Sharing {
    /// Every file is a new one.
    pub(crate) fn none() -> Self {
        Self {
            no_reflink: AtomicBool::new(true),
            no_hard_link: AtomicBool::new(true),
        }
    }

    /// Makes `name` in `parent` an equal of a stored file, where that is possible.
    pub(crate) fn share(
        &self,
        index: &Index,
        trees: &Trees,
        file: &SharedFile,
        (parent, name): (BorrowedFd<'_>, &[u8]),
    ) -> Result<Result<Shared, Errno>, IndexError> {
        // An empty file takes no space.
        if file.size == 0
            || self.no_reflink.load(Ordering::Relaxed) && self.no_hard_link.load(Ordering::Relaxed)
        {
            return Ok(Ok(Shared::Not));
        }
        let Some(stored) = index.stored_file(file)? else {
            return Ok(Ok(Shared::Not));
        };
        Ok(self.share_with(trees, &stored, file, parent, name))
    }

    fn share_with(
        &self,
        trees: &Trees,
        stored: &[u8],
        file: &SharedFile,
        parent: BorrowedFd<'_>,
        name: &[u8],
    ) -> Result<Shared, Errno> {
        if !self.no_reflink.load(Ordering::Relaxed) {
            match self.clone_of(trees, stored, file, parent, name) {
                Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS | Errno::XDEV | Errno::INVAL) => {
                    self.no_reflink.store(true, Ordering::Relaxed);
                }
                result => return result,
            }
        }
        if self.no_hard_link.load(Ordering::Relaxed) {
            return Ok(Shared::Not);
        }
        let stat = match rustix::fs::statat(trees.fd(), stored, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => return Ok(Shared::Not),
            Err(error) => return Err(error),
        };
        if !is_untouched(&stat, file) {
            return Ok(Shared::Not);
        }
        match trees.disk.hard_link((trees.fd(), stored), (parent, name)) {
            Ok(()) => Ok(Shared::Link),
            // Full (then a new file takes over), collected meanwhile, or not ours to link.
            Err(Errno::MLINK | Errno::NOENT | Errno::NOTDIR | Errno::XDEV | Errno::ACCESS) => Ok(Shared::Not),
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) => {
                self.no_hard_link.store(true, Ordering::Relaxed);
                Ok(Shared::Not)
            }
            Err(error) => Err(error),
        }
    }

    fn clone_of(
        &self,
        trees: &Trees,
        stored: &[u8],
        file: &SharedFile,
        parent: BorrowedFd<'_>,
        name: &[u8],
    ) -> Result<Shared, Errno> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let source = match rustix::fs::openat(trees.fd(), stored, flags, Mode::empty()) {
            Ok(source) => source,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => return Ok(Shared::Not),
            Err(error) => return Err(error),
        };
        if !is_untouched(&rustix::fs::fstat(&source)?, file) {
            return Ok(Shared::Not);
        }
        let made = trees.disk.make_file(parent, name, file.executable)?;
        let cloned = trees
            .disk
            .clone_file(source.as_fd(), made.as_fd())
            .and_then(|()| finish(trees, &made, file.executable));
        if let Err(error) = cloned {
            trees.disk.unlink((parent, name))?;
            return Err(error);
        }
        Ok(Shared::Clone)
    }
}

fn finish(trees: &Trees, made: &OwnedFd, executable: bool) -> Result<(), Errno> {
    trees.disk.canonicalise(made.as_fd(), executable)
}

/// A stored file that somebody wrote to has another time or size; it is not spread any further.
fn is_untouched(stat: &rustix::fs::Stat, file: &SharedFile) -> bool {
    let mode = if file.executable { 0o555 } else { 0o444 };
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && u64::try_from(stat.st_size) == Ok(file.size)
        && stat.st_mode & 0o7777 == mode
        && stat.st_mtime == CANONICAL_TIME
}
