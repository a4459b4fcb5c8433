//! Getting new trees onto the disk before anybody is told of them.
//!
//! Two ways, chosen by what they cost now. Syncing the whole file system is one call for any number of
//! files, but waits for everything that other programs wrote (a compiler next door easily has a
//! gigabyte). Syncing each new file and directory waits for nothing else, but costs a fraction of a
//! millisecond a file, even with many at once.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::disk::{Context, FileError};
use crate::limits::SYNC_THREADS;
use crate::tree_writer::Written;
use crate::trees::Trees;

/// Bytes a second at which a disk takes what is dirty.
const BYTES_PER_SECOND: u64 = 400_000_000;

/// Nanoseconds for one file among many that are synced at once.
const FILE_NANOSECONDS: u64 = 300_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    FileSystem,
    Files,
}

/// `dirty`: bytes that all programs have written and that are not on the disk.
fn choose(objects: u64, own: u64, dirty: u64) -> Way {
    let others = dirty.saturating_sub(own).saturating_mul(10) / (BYTES_PER_SECOND / 100_000_000);
    if objects.saturating_mul(FILE_NANOSECONDS) < others {
        Way::Files
    } else {
        Way::FileSystem
    }
}

/// When this returns, the trees are on the disk under their temporary names.
pub(crate) fn sync_trees(trees: &Trees, written: &[&Written]) -> Result<(), FileError> {
    let objects: u64 = written.iter().map(|tree| made(tree).count() as u64).sum();
    let own: u64 = written.iter().map(|tree| tree.bytes_made).sum();
    match choose(objects, own, dirty_bytes(trees)) {
        Way::FileSystem => trees.disk.sync_filesystem(trees.fd()).on("sync", || trees.path()),
        Way::Files => sync_each(trees, written),
    }
}

/// What of a tree has to reach the disk, below its root. Links are part of their directories.
fn made(tree: &Written) -> impl Iterator<Item = &[u8]> {
    let files = tree
        .files
        .iter()
        .filter(|file| file.made)
        .map(|file| file.relative.as_slice());
    files.chain(tree.directories.iter().map(Vec::as_slice))
}

/// Every object that was made, then the directory that all trees are in.
fn sync_each(trees: &Trees, written: &[&Written]) -> Result<(), FileError> {
    let objects: Vec<(&str, &[u8])> = written
        .iter()
        .flat_map(|tree| made(tree).map(|relative| (tree.temporary.name(), relative)))
        .collect();
    let next = AtomicUsize::new(0);
    let failure: Mutex<Option<FileError>> = Mutex::new(None);
    let work = || {
        while let Some((name, relative)) = objects.get(next.fetch_add(1, Ordering::Relaxed)) {
            let synced = open_below(trees.fd(), &path_of(name, relative))
                .and_then(|object| trees.disk.sync_file(object.as_fd()));
            if let Err(error) = synced {
                let path = trees
                    .path()
                    .join(String::from_utf8_lossy(&path_of(name, relative)).as_ref());
                let mut failure = failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                *failure = Some(FileError::new("sync", path, error));
                // The others need not go on.
                next.store(objects.len(), Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..objects.len().min(SYNC_THREADS) {
            // Where there is no further thread, the ones there are do all of it.
            if std::thread::Builder::new().spawn_scoped(scope, work).is_err() {
                break;
            }
        }
        work();
    });
    match failure
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
    {
        Some(error) => Err(error),
        None => trees.disk.sync_file(trees.fd()).on("sync", || trees.path()),
    }
}

/// The path of something in a tree, below the directory that all trees are in.
pub(crate) fn path_of(name: &str, relative: &[u8]) -> Vec<u8> {
    match relative {
        [] => name.as_bytes().to_vec(),
        relative => [name.as_bytes(), b"/", relative].concat(),
    }
}

/// Opens something below a directory for reading, also where its path is longer than the system takes
/// at once.
pub(crate) fn open_below(directory: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    /// Less than `PATH_MAX`.
    const PIECE: usize = 4000;
    let mut opened: Option<OwnedFd> = None;
    let mut rest = path;
    loop {
        let parent = opened.as_ref().map_or(directory, AsFd::as_fd);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        if rest.len() <= PIECE {
            return rustix::fs::openat(parent, rest, flags, Mode::empty());
        }
        let Some(cut) = rest[..PIECE].iter().rposition(|&byte| byte == b'/') else {
            return Err(Errno::NAMETOOLONG);
        };
        let piece = rustix::fs::openat(parent, &rest[..cut], flags | OFlags::DIRECTORY, Mode::empty())?;
        rest = &rest[cut + 1..];
        opened = Some(piece);
    }
}

/// What all programs together have written and the disks do not have yet; nothing where the system does
/// not say.
#[cfg(not(test))]
fn dirty_bytes(_trees: &Trees) -> u64 {
    let Ok(text) = std::fs::read_to_string("/proc/vmstat") else {
        return 0;
    };
    let count = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        let wanted = matches!(name, "nr_dirty" | "nr_writeback");
        if wanted { value.parse::<u64>().ok() } else { None }
    };
    let pages: u64 = text.lines().filter_map(count).sum();
    pages.saturating_mul(rustix::param::page_size() as u64)
}

#[cfg(test)]
fn dirty_bytes(trees: &Trees) -> u64 {
    trees.disk.faults.dirty_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cheaper_way_is_chosen() {
        let mega = 1_000_000;
        assert_eq!(choose(1, 1000, 0), Way::FileSystem);
        assert_eq!(choose(1, 1000, 1000), Way::FileSystem);
        assert_eq!(choose(1, 1000, 100 * mega), Way::Files, "0.3 ms against 250 ms");
        assert_eq!(
            choose(200, 200_000, 300 * mega),
            Way::Files,
            "60 ms against 750 ms"
        );
        assert_eq!(
            choose(40_000, 120 * mega, 500 * mega),
            Way::FileSystem,
            "12 s against 1 s"
        );
        assert_eq!(
            choose(1, 1000 * mega, 1000 * mega),
            Way::FileSystem,
            "all that is dirty is ours"
        );
        assert_eq!(choose(u64::MAX, 0, u64::MAX), Way::FileSystem);
    }
}
