//! The directory in which all trees lie: `<home>/nix/store`.
//!
//! Names in it: `<hash>-<name>` the accepted tree of a store path; `.tree-<hash>-<digest>` another
//! tree for the name with that hash; `.tmp-<number>` a tree being written; `.trash-<number>` a tree
//! on its way out. Trees never leave this directory: a user who is not root cannot move a read-only
//! directory into another one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::nix::nixbase32;
use tvix_node_protocol::tree::TreeDigest;

use crate::disk::{Context, Disk, FileError, list, open_directory, open_directory_path};

pub(crate) const TEMPORARY: &str = ".tmp-";
pub(crate) const TRASH: &str = ".trash-";
pub(crate) const UNACCEPTED: &str = ".tree-";

/// The name of a path's unaccepted tree.
pub(crate) fn unaccepted_name(path: &StorePath, tree: TreeDigest) -> String {
    format!("{UNACCEPTED}{}-{tree}", nixbase32::encode(path.digest()))
}

/// The hash of the path whose unaccepted tree has this name; none where it is another name.
pub(crate) fn hash_of_unaccepted(name: &str) -> Option<[u8; 20]> {
    let (hash, _) = name.strip_prefix(UNACCEPTED)?.split_once('-')?;
    nixbase32::decode(hash.as_bytes()).ok()?.try_into().ok()
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Trees {
    pub(crate) disk: Disk,
    directory: OwnedFd,
    path: PathBuf,
    next_trash: AtomicU64,
}

impl Trees {
    pub(crate) fn open(path: &Path, disk: Disk) -> Result<Self, FileError> {
        Ok(Self {
            disk,
            directory: open_directory_path(path)?,
            path: path.to_owned(),
            next_trash: AtomicU64::new(0),
        })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// All names in the directory.
    pub(crate) fn names(&self) -> Result<Vec<Vec<u8>>, FileError> {
        let directory = open_directory(self.fd(), b".").on("open the directory", || &self.path)?;
        let entries = list(&directory).on("list", || &self.path)?;
        Ok(entries.into_iter().map(|(name, _)| name).collect())
    }

    /// Whether something has this name.
    pub(crate) fn exists(&self, name: &str) -> Result<bool, FileError> {
        match rustix::fs::statat(self.fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(FileError::new("look for", self.path.join(name), error)),
        }
    }

    /// Gives a tree its name. What has the name already is not known to the index, else nobody would
    /// ask: a leftover, whose name in the trash is returned.
    pub(crate) fn name_tree(&self, from: &str, to: &str) -> Result<Option<String>, FileError> {
        let rename = || self.disk.rename(self.fd(), from.as_bytes(), to.as_bytes());
        let mut leftover = None;
        let mut renamed = rename();
        if renamed == Err(Errno::EXIST) {
            leftover = self.discard(to)?;
            renamed = rename();
        }
        renamed.on("rename a new tree to", || self.path.join(to))?;
        Ok(leftover)
    }

    /// Gives a tree the name of another one, which gets the first one's; where none has it, just the
    /// name.
    pub(crate) fn put_in_place(&self, from: &str, to: &str) -> Result<(), FileError> {
        let exchanged = self.disk.exchange(self.fd(), from.as_bytes(), to.as_bytes());
        let placed = match exchanged {
            Err(Errno::NOENT) => self.disk.rename(self.fd(), from.as_bytes(), to.as_bytes()),
            exchanged => exchanged,
        };
        placed.on("put a whole tree in the place of", || self.path.join(to))
    }

    /// Takes a tree out of the way and returns its name in the trash; nothing where it is gone.
    pub(crate) fn discard(&self, name: &str) -> Result<Option<String>, FileError> {
        loop {
            let number = self.next_trash.fetch_add(1, Ordering::Relaxed);
            let trash = format!("{TRASH}{number}");
            match self.disk.rename(self.fd(), name.as_bytes(), trash.as_bytes()) {
                Ok(()) => return Ok(Some(trash)),
                Err(Errno::NOENT) => return Ok(None),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(FileError::new("move away", self.path.join(name), error)),
            }
        }
    }

    /// Removes a tree, read-only directories included. Not recursive: depth costs open directories,
    /// not stack.
    pub(crate) fn remove(&self, name: &str) -> Result<(), FileError> {
        let fail = |relative: &[Vec<u8>], error| {
            let mut path = self.path.join(name);
            path.extend(
                relative
                    .iter()
                    .map(|name| String::from_utf8_lossy(name).into_owned()),
            );
            FileError::new("remove", path, error)
        };
        match self.disk.unlink((self.fd(), name.as_bytes())) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(error) => return Err(fail(&[], error)),
        }
        let mut names: Vec<Vec<u8>> = Vec::new();
        let root = self
            .open_for_removal(self.fd(), name.as_bytes())
            .map_err(|error| fail(&names, error))?;
        let mut stack = vec![root];
        while let Some((directory, entries)) = stack.last_mut() {
            let Some((entry, kind)) = entries.pop() else {
                stack.pop();
                let (parent, own) = match (stack.last(), names.last()) {
                    (Some((parent, _)), Some(own)) => (parent.as_fd(), own.as_slice()),
                    _ => (self.fd(), name.as_bytes()),
                };
                self.disk
                    .remove_directory(parent, own)
                    .map_err(|error| fail(&names, error))?;
                names.pop();
                continue;
            };
            let removed = if kind == FileType::Directory {
                Err(Errno::ISDIR)
            } else {
                self.disk.unlink((directory.as_fd(), &entry))
            };
            match removed {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR | Errno::PERM) => {
                    let child = self.open_for_removal(directory.as_fd(), &entry);
                    names.push(entry);
                    stack.push(child.map_err(|error| fail(&names, error))?);
                }
                Err(error) => {
                    names.push(entry);
                    return Err(fail(&names, error));
                }
            }
        }
        Ok(())
    }

    #[expect(clippy::type_complexity, reason = "a directory and what is in it")]
    fn open_for_removal(
        &self,
        parent: BorrowedFd<'_>,
        name: &[u8],
    ) -> Result<(OwnedFd, Vec<(Vec<u8>, FileType)>), Errno> {
        let directory = open_directory(parent, name)?;
        self.disk.make_writable(directory.as_fd())?;
        let entries = list(&directory)?;
        Ok((directory, entries))
    }
}

/// The name of a tree that is not registered yet. It is removed when this is dropped.
pub(crate) struct Temporary {
    trees: Arc<Trees>,
    number: u64,
    name: String,
    kept: bool,
}

impl Temporary {
    pub(crate) fn new(trees: &Arc<Trees>, number: u64) -> Self {
        Self {
            trees: Arc::clone(trees),
            number,
            name: temporary_name(number),
            kept: false,
        }
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A name for one file that is to take the place of another one in the tree.
    pub(crate) fn file_beside(&self) -> String {
        format!("{}-file", self.name)
    }

    /// From now on somebody else answers for the tree.
    pub(crate) fn keep(&mut self) {
        self.kept = true;
    }

    pub(crate) fn is_kept(&self) -> bool {
        self.kept
    }

    pub(crate) fn trees(&self) -> &Arc<Trees> {
        &self.trees
    }
}

pub(crate) fn temporary_name(number: u64) -> String {
    format!("{TEMPORARY}{number}")
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = self
                .trees
                .remove(&self.name)
                .and(self.trees.remove(&self.file_beside()))
        {
            // The next start of the store tries again.
            tracing::warn!(%error, "a tree that was not wanted in the end could not be removed");
        }
    }
}
