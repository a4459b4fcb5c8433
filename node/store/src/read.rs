//! What is in the store.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rustix::fs::FileType;
use rustix::io::Errno;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::path_info::PathInfo;
use tvix_node_protocol::subtrees::ChainingValue;
use tvix_node_protocol::tree::{BlobDigest, Directory, Leaf, Node, PathComponent, Tree, TreeDigest};

use crate::disk::{CANONICAL_TIME, FileError, list, open_directory};
use crate::index::{IndexError, PathRecord};
use crate::nar_framing as framing;
use crate::store::Store;
use crate::sync::open_below;

/// Why something in the store cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Not there.
    #[error("{0} is not in the store")]
    NotValid(StorePath),
    /// No such tree beside the accepted one.
    #[error("the store has no tree {tree} for {path}")]
    NoSuchTree {
        /// The path.
        path: StorePath,
        /// The tree.
        tree: TreeDigest,
    },
    /// It should be there and is not as it should be.
    #[error("the store is damaged: '{}' {reason}", .path.display())]
    Damaged {
        /// What.
        path: PathBuf,
        /// How.
        reason: &'static str,
    },
    /// A tree that no tree in the store has.
    #[error("the store has no tree {0}")]
    NoObject(TreeDigest),
    /// The index cannot be read.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The file system refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// Whoever wanted the bytes takes no more.
    #[error("cannot pass the archive on: {0}")]
    Output(#[source] io::Error),
}

impl Store {
    /// What is known of a path; nothing where it is not valid.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn query(&self, path: &StorePath) -> Result<Option<PathInfo>, IndexError> {
        Ok(self.inner.index.path(path)?.map(|record| record.info))
    }

    /// The same for many paths, in their order and in one state of the index.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn query_many<'p>(
        &self,
        paths: impl IntoIterator<Item = &'p StorePath>,
    ) -> Result<Vec<Option<PathInfo>>, IndexError> {
        let records = self.inner.index.paths(paths)?;
        Ok(records
            .into_iter()
            .map(|record| record.map(|record| record.info))
            .collect())
    }

    /// Whether each of these paths is valid.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn is_valid_many<'p>(
        &self,
        paths: impl IntoIterator<Item = &'p StorePath>,
    ) -> Result<Vec<bool>, IndexError> {
        self.inner.index.valid(paths)
    }

    /// How many paths are valid.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn count(&self) -> Result<u64, IndexError> {
        self.inner.index.count()
    }

    /// Paths that refer to this one, itself left out.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn referrers(&self, path: &StorePath) -> Result<Vec<StorePath>, IndexError> {
        self.inner.index.referrers(path)
    }

    /// These paths and everything they refer to, directly or not, with what is known of each; sorted.
    ///
    /// # Errors
    /// [`ReadError::NotValid`] names the first that is not there.
    pub fn closure<'p>(
        &self,
        paths: impl IntoIterator<Item = &'p StorePath>,
    ) -> Result<Vec<PathInfo>, ReadError> {
        let mut wanted: BTreeSet<StorePath> = paths.into_iter().cloned().collect();
        let mut seen: HashSet<StorePath> = wanted.iter().cloned().collect();
        let mut found = Vec::new();
        // A layer at a time: one look into the index for all paths of a layer.
        while !wanted.is_empty() {
            let records = self.inner.index.paths(&wanted)?;
            let mut next = BTreeSet::new();
            for (path, record) in std::mem::take(&mut wanted).into_iter().zip(records) {
                let info = record.ok_or(ReadError::NotValid(path))?.info;
                for reference in &info.references {
                    if seen.insert(reference.clone()) {
                        next.insert(reference.clone());
                    }
                }
                found.push(info);
            }
            wanted = next;
        }
        found.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// The object with this digest, if any tree in the store has it: a directory with its entries, or
    /// the file or link that a whole tree is.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn tree(&self, digest: &TreeDigest) -> Result<Option<Tree>, IndexError> {
        self.inner.index.node(*digest)
    }

    /// Bytes of the encoding of the object with this digest, if any tree in the store has it.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn tree_size(&self, digest: &TreeDigest) -> Result<Option<usize>, IndexError> {
        self.inner.index.node_size(*digest)
    }

    /// A stored file with these bytes, open for reading from its start. What is read from it should be
    /// checked against the digest, as every reader of verified streams does: the disk may have failed.
    ///
    /// # Errors
    /// [`ReadError::Damaged`] where it should be there and is not.
    pub fn open_blob(&self, digest: &BlobDigest) -> Result<Option<File>, ReadError> {
        let trees = &self.inner.trees;
        let mut looked_at = None;
        loop {
            let Some(relative) = self.inner.index.blob_file(*digest)? else {
                return Ok(None);
            };
            match open_file(trees.fd(), &relative) {
                Ok(file) => return Ok(Some(file)),
                // It may have been collected between the look into the index and the opening.
                Err(Errno::NOENT | Errno::NOTDIR) if looked_at.as_ref() != Some(&relative) => {
                    looked_at = Some(relative);
                }
                Err(error) => {
                    let path = trees.path().join(String::from_utf8_lossy(&relative).as_ref());
                    return Err(file_error("open", path, error));
                }
            }
        }
    }

    /// The hashes of the parts of a large file that is stored ([`subtrees`](tvix_node_protocol::subtrees)), in order. None of
    /// smaller files, and of those that were stored before the hashes were kept.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn blob_subtrees(&self, digest: &BlobDigest) -> Result<Vec<ChainingValue>, IndexError> {
        self.inner.index.subtrees(*digest)
    }

    /// Writes the archive (NAR) of a valid path and returns its size.
    ///
    /// # Errors
    /// [`ReadError::NotValid`], [`ReadError::Damaged`] where the tree is not as it was registered (sizes
    /// and kinds; hashing is the caller's), [`ReadError::Output`].
    pub fn dump_nar(&self, path: &StorePath, to: &mut impl Write) -> Result<u64, ReadError> {
        let record = self.inner.index.path(path)?;
        self.dump_record(&record.ok_or_else(|| ReadError::NotValid(path.clone()))?, to)
    }

    /// Writes the archive of a tree that is stored beside the accepted one of its path.
    ///
    /// # Errors
    /// As [`Store::dump_nar`].
    pub fn dump_unaccepted(
        &self,
        path: &StorePath,
        tree: &TreeDigest,
        to: &mut impl Write,
    ) -> Result<u64, ReadError> {
        let record = self.inner.index.unaccepted(path, *tree)?;
        let missing = || ReadError::NoSuchTree {
            path: path.clone(),
            tree: *tree,
        };
        self.dump_record(&record.ok_or_else(missing)?, to)
    }

    fn dump_record(&self, record: &PathRecord, to: &mut impl Write) -> Result<u64, ReadError> {
        self.dump(record, to, false)
    }

    /// Writes the archive of a tree and looks at everything that is not in it, too.
    pub(crate) fn check_dump(&self, record: &PathRecord, to: &mut impl Write) -> Result<u64, ReadError> {
        self.dump(record, to, true)
    }

    fn dump(&self, record: &PathRecord, to: &mut impl Write, checked: bool) -> Result<u64, ReadError> {
        let trees = &self.inner.trees;
        let name = self.inner.index.tree_name(record.number)?;
        let name = name.ok_or_else(|| ReadError::NotValid(record.info.path.clone()))?;
        let mut dump = Dump {
            store: self,
            path: trees.path().join(&name),
            to: Counted { to, count: 0 },
            checked,
        };
        let root = self.node(record.info.tree, &dump.path)?;
        dump.tree(trees.fd(), name.as_bytes(), root)?;
        let size = dump.to.count;
        if size != record.info.nar_size {
            return Err(dump.damaged("has an archive of another size than when it was registered"));
        }
        Ok(size)
    }

    fn node(&self, digest: TreeDigest, path: &std::path::Path) -> Result<Tree, ReadError> {
        self.inner.index.node(digest)?.ok_or_else(|| ReadError::Damaged {
            path: path.to_owned(),
            reason: "has a directory object that the index does not have",
        })
    }
}

pub(crate) fn file_error(action: &'static str, path: PathBuf, error: Errno) -> ReadError {
    match error {
        Errno::NOENT | Errno::NOTDIR => ReadError::Damaged {
            path,
            reason: "is gone",
        },
        Errno::LOOP | Errno::INVAL => ReadError::Damaged {
            path,
            reason: "is of another kind than when it was registered",
        },
        error => FileError::new(action, path, error).into(),
    }
}

pub(crate) fn open_file(parent: BorrowedFd<'_>, name: &[u8]) -> Result<File, Errno> {
    let fd = open_below(parent, name)?;
    if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    Ok(File::from(fd))
}

struct Counted<W> {
    to: W,
    count: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.count += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

struct Level {
    fd: OwnedFd,
    /// In descending order, so that the next one is the last.
    entries: Vec<(PathComponent, Node)>,
    named: bool,
}

/// Writes an archive from the directory objects and the files. Not recursive.
struct Dump<'a, W> {
    store: &'a Store,
    /// Of the object at hand.
    path: PathBuf,
    to: Counted<W>,
    /// Whether modes, times, link targets and names that should not be there are looked at.
    checked: bool,
}

impl<W: Write> Dump<'_, W> {
    fn tree(&mut self, parent: BorrowedFd<'_>, name: &[u8], root: Tree) -> Result<(), ReadError> {
        self.frame(|to| framing::before_node(to, None))?;
        let mut stack = Vec::new();
        match root {
            Tree::Directory(directory) => stack.push(self.open(parent, name, &directory, false)?),
            Tree::Leaf(Leaf::File { size, executable, .. }) => self.file(parent, name, size, executable)?,
            Tree::Leaf(Leaf::Symlink(target)) => self.link(parent, name, target.as_bytes())?,
        }
        while let Some(level) = stack.last_mut() {
            let Some((name, node)) = level.entries.pop() else {
                let named = level.named;
                self.frame(|to| {
                    framing::close_directory(to)?;
                    framing::after_node(to, named)
                })?;
                if named {
                    self.path.pop();
                }
                stack.pop();
                continue;
            };
            let parent = level.fd.as_fd();
            self.path.push(String::from_utf8_lossy(name.as_bytes()).as_ref());
            self.frame(|to| framing::before_node(to, Some(name.as_bytes())))?;
            match node {
                Node::Directory(digest) => {
                    let Tree::Directory(directory) = self.store.node(digest, &self.path)? else {
                        return Err(self.damaged("is no directory in the index"));
                    };
                    let opened = self.open(parent, name.as_bytes(), &directory, true)?;
                    stack.push(opened);
                    continue;
                }
                Node::File { size, executable, .. } => {
                    self.file(parent, name.as_bytes(), size, executable)?
                }
                Node::Symlink(target) => self.link(parent, name.as_bytes(), target.as_bytes())?,
            }
            self.frame(|to| framing::after_node(to, true))?;
            self.path.pop();
        }
        Ok(())
    }

    fn open(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        directory: &Directory,
        named: bool,
    ) -> Result<Level, ReadError> {
        let fd = open_directory(parent, name);
        let fd = fd.map_err(|error| file_error("open", self.path.clone(), error))?;
        if self.checked {
            self.check_directory(&fd, directory)?;
        }
        self.frame(framing::open_directory)?;
        let mut entries: Vec<_> = directory
            .entries()
            .map(|(name, node)| (name.clone(), node.clone()))
            .collect();
        entries.reverse();
        Ok(Level { fd, entries, named })
    }

    fn file(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        size: u64,
        executable: bool,
    ) -> Result<(), ReadError> {
        let file = open_file(parent, name);
        let file = file.map_err(|error| file_error("open", self.path.clone(), error))?;
        let metadata = file.metadata().map_err(|error| self.unreadable(&error))?;
        if metadata.len() != size {
            return Err(self.damaged("has another size than when it was registered"));
        }
        if self.checked {
            self.check_metadata(metadata.mode(), metadata.mtime(), executable)?;
        }
        self.frame(|to| framing::open_file(to, executable, size))?;
        let mut file = file.take(size);
        let mut buffer = vec![0; crate::limits::SMALL_FILE.min(usize::try_from(size).unwrap_or(usize::MAX))];
        let mut left = size;
        while left > 0 {
            match file.read(&mut buffer) {
                Ok(0) => return Err(self.damaged("ends before the size it was registered with")),
                Ok(read) => {
                    left -= read as u64;
                    self.frame(|to| to.write_all(&buffer[..read]))?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.unreadable(&error)),
            }
        }
        self.frame(|to| framing::close_file(to, size))
    }

    fn link(&mut self, parent: BorrowedFd<'_>, name: &[u8], target: &[u8]) -> Result<(), ReadError> {
        if self.checked {
            let found = rustix::fs::readlinkat(parent, name, Vec::new());
            let found = found.map_err(|error| file_error("read the link", self.path.clone(), error))?;
            if found.as_bytes() != target {
                return Err(self.damaged("points elsewhere than when it was registered"));
            }
        }
        self.frame(|to| framing::symlink(to, target))
    }

    fn check_directory(&self, fd: &OwnedFd, directory: &Directory) -> Result<(), ReadError> {
        let fail = |error| file_error("list", self.path.clone(), error);
        let stat = rustix::fs::fstat(fd).map_err(fail)?;
        self.check_metadata(stat.st_mode, stat.st_mtime, true)?;
        for (name, _) in list(fd).map_err(fail)? {
            let known = PathComponent::new(&name).is_ok_and(|name| directory.get(&name).is_some());
            if !known {
                let path = self.path.join(String::from_utf8_lossy(&name).as_ref());
                let reason = "was not there when the tree was registered";
                return Err(ReadError::Damaged { path, reason });
            }
        }
        Ok(())
    }

    fn check_metadata(&self, mode: u32, time: i64, executable: bool) -> Result<(), ReadError> {
        if mode & 0o7777 != if executable { 0o555 } else { 0o444 } {
            return Err(self.damaged("has other permissions than when it was registered"));
        }
        if time != CANONICAL_TIME {
            return Err(self.damaged("was written to after it was registered"));
        }
        Ok(())
    }

    fn frame(&mut self, write: impl FnOnce(&mut Counted<W>) -> io::Result<()>) -> Result<(), ReadError> {
        write(&mut self.to).map_err(ReadError::Output)
    }

    fn damaged(&self, reason: &'static str) -> ReadError {
        let path = self.path.clone();
        ReadError::Damaged { path, reason }
    }

    fn unreadable(&self, error: &io::Error) -> ReadError {
        let errno = error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
        FileError::new("read", self.path.clone(), errno).into()
    }
}
