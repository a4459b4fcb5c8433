//! Removing what a build left, whatever it is.
//!
//! A build may leave folders without any permission, names of 255 bytes nested ten thousand deep, and
//! millions of files. So nothing here recurses, and nothing depends on the length of a path: every
//! folder is entered by descriptor, never through a link, and what is too deep is moved up.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, chmod, openat, renameat, statat, unlinkat};
use rustix::io::Errno;

/// Folders held open at once, one in another. What is deeper is moved up first.
const DEPTH: usize = 32;

/// Attempts to empty a folder into which somebody still writes. Processes of a killed build can be
/// alive for some milliseconds when its helper was killed as well.
const ATTEMPTS: u32 = 50;

/// Removes a file, link or folder with everything in it. Does nothing where nothing is there.
///
/// # Errors
/// The system's, for the first thing that cannot be removed.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::other("a root folder is not removed"));
    };
    let parent = match openat(
        CWD,
        parent,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Err(Errno::NOENT) => return Ok(()),
        parent => parent?,
    };
    let name = CString::new(std::os::unix::ffi::OsStrExt::as_bytes(name))?;
    let mut waited = 0;
    loop {
        match remove_at(&parent, &name) {
            Err(Errno::NOTEMPTY) if waited < ATTEMPTS => {
                waited += 1;
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            result => return Ok(result?),
        }
    }
}

fn remove_at(parent: &OwnedFd, name: &CStr) -> Result<(), Errno> {
    match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {}
        Ok(_) => return unlinkat(parent, name, AtFlags::empty()),
        Err(error) => return Err(error),
    }
    let top = open_folder(parent, name)?;
    let mut moved = 0;
    while empty(&top, &mut moved)? {}
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// A folder whose files are gone.
struct Frame {
    folder: OwnedFd,
    /// Its name in the folder above.
    name: CString,
    /// Folders in it, still to be removed.
    folders: Vec<CString>,
}

/// Removes what is in `top`, except what lies deeper than [`DEPTH`], which is moved up into `top`.
/// Whether there was any folder in it.
fn empty(top: &OwnedFd, moved: &mut u64) -> Result<bool, Errno> {
    let mut frames = vec![Frame {
        folder: top.try_clone().map_err(|_| Errno::MFILE)?,
        name: CString::default(),
        folders: remove_files(top)?,
    }];
    let any = !frames[0].folders.is_empty();
    loop {
        let depth = frames.len();
        let Some(frame) = frames.last_mut() else {
            return Ok(any);
        };
        let Some(name) = frame.folders.pop() else {
            let done = frames.pop();
            if let (Some(done), Some(above)) = (done, frames.last()) {
                unlinkat(&above.folder, &done.name, AtFlags::REMOVEDIR)?;
            }
            continue;
        };
        // Most folders of a build's folder are empty: what inputs were mounted on.
        if unlinkat(&frame.folder, &name, AtFlags::REMOVEDIR).is_ok() {
            continue;
        }
        // Also wanted for moving: a folder's own entry ".." changes.
        let folder = open_folder(&frame.folder, &name)?;
        if depth < DEPTH {
            let folders = remove_files(&folder)?;
            frames.push(Frame {
                folder,
                name,
                folders,
            });
        } else {
            move_up(&frame.folder, &name, top, moved)?;
        }
    }
}

/// Removes all but the folders of a folder, and gives their names.
fn remove_files(folder: &OwnedFd) -> Result<Vec<CString>, Errno> {
    let mut folders = Vec::new();
    let mut entries = Dir::read_from(folder)?;
    while let Some(entry) = entries.read() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let is_folder = match entry.file_type() {
            FileType::Directory => true,
            FileType::Unknown => {
                let stat = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            }
            _ => false,
        };
        if is_folder {
            folders.push(name.to_owned());
        } else {
            unlinkat(folder, name, AtFlags::empty())?;
        }
    }
    Ok(folders)
}

fn move_up(folder: &OwnedFd, name: &CStr, top: &OwnedFd, moved: &mut u64) -> Result<(), Errno> {
    loop {
        *moved += 1;
        let place = CString::new(format!(".removed-{moved}")).map_err(|_| Errno::INVAL)?;
        match renameat(folder, name, top, &place) {
            // A name that the build has used already.
            Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
            result => return result,
        }
    }
}

/// Opens a folder for reading, after giving its owner all permissions.
fn open_folder(parent: &OwnedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = openat(parent, name, flags | OFlags::PATH, Mode::empty())?;
    // A handle like this cannot be changed itself, but through its entry in /proc, which leads to the
    // folder and not to whatever has its name by now.
    let itself = format!("/proc/self/fd/{}", handle.as_raw_fd());
    chmod(&itself, Mode::RWXU)?;
    openat(
        CWD,
        &itself,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

#[cfg(test)]
#[path = "remove_tests.rs"]
mod tests;
