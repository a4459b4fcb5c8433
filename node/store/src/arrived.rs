//! Builds a tree from content that came piece by piece, by digest, from somebody who is not believed.
//!
//! A peer sends directory objects and blobs, in any order and only those that are wanted; here they
//! become a tree on the disk and an archive in the hashes, in one pass. Every blob and every directory
//! is checked against the digest it was asked for by. What did not arrive is taken from the store's own
//! files.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use tvix_node_protocol::limits::TREE_DEPTH;
use tvix_node_protocol::tree::{BlobDigest, Leaf, Node, PathComponent, SymlinkTarget, Tree, TreeDigest};

use crate::file_copy::{CopyError, copy_file, take_coming, take_file};
use crate::index::IndexError;
use crate::limits::ARRIVED_BYTES;
use crate::nar_framing as framing;
use crate::nar_tap::NarTap;
use crate::read::ReadError;
use crate::store::Store;
use crate::tree_writer::{TreeWriteError, TreeWriter};

/// Content that has arrived: directories and files by digest. It need not be checked beforehand.
pub trait Arrived {
    /// The object with this digest: a directory, or the file or link that a whole tree is. Nothing where
    /// it did not arrive.
    ///
    /// # Errors
    /// It arrived and cannot be read.
    fn tree(&self, digest: TreeDigest) -> io::Result<Option<Tree>>;

    /// The file with these bytes. Nothing where it did not arrive.
    ///
    /// # Errors
    /// It arrived and cannot be read.
    fn blob(&self, digest: BlobDigest) -> io::Result<Option<ArrivedFile>>;

    /// Bytes that the archive of what is built from this may have at most, where its name does not say
    /// how many it has. A kilobyte of directories can name one large file a million times.
    fn most_bytes(&self) -> u64 {
        ARRIVED_BYTES
    }
}

/// The bytes of a file that has arrived.
pub enum ArrivedFile {
    /// In memory.
    Bytes(Vec<u8>),
    /// On the disk, positioned at its start.
    File(File),
    /// On the disk, and nothing writes to it any more: it becomes a part of the tree by another name, where the file
    /// system allows that. This one may go then.
    Given(PathBuf),
    /// On its way. It becomes a part of the tree as [`ArrivedFile::Given`] does.
    Coming(Box<dyn ComingFile>),
}

/// A file that is written to, and is read as far as its beginning has come.
pub trait ComingFile: Send {
    /// Where it is; elsewhere, perhaps, when it is complete.
    fn path(&self) -> &Path;

    /// The file.
    fn file(&self) -> &File;

    /// Waits until more than so many bytes of its beginning have come, and says how many have; or all of them, where these are
    /// all and nothing writes to the file any more.
    ///
    /// # Errors
    /// No more of it will come.
    fn wait(&self, bytes: u64) -> io::Result<u64>;
}

/// Why content that arrived is not the tree it should be. `place` is where in the tree the fault lies,
/// empty for its root.
#[derive(Debug, thiserror::Error)]
pub enum ArrivedError {
    /// A directory is missing.
    #[error("the directory {digest} (at '/{place}') neither arrived nor is in the store")]
    MissingTree {
        /// Its digest.
        digest: TreeDigest,
        /// Where.
        place: String,
    },
    /// A file's bytes are missing.
    #[error("the blob {blob} (at '/{place}') neither arrived nor is in the store")]
    MissingBlob {
        /// Its digest.
        blob: BlobDigest,
        /// Where.
        place: String,
    },
    /// Another object came.
    #[error("what arrived as the tree {wanted} (at '/{place}') is {computed}")]
    WrongTree {
        /// What was asked for.
        wanted: TreeDigest,
        /// What it is.
        computed: TreeDigest,
        /// Where.
        place: String,
    },
    /// Other bytes came.
    #[error("what arrived as the blob {wanted} (at '/{place}') is {computed}")]
    WrongBlob {
        /// What was asked for.
        wanted: BlobDigest,
        /// What it is.
        computed: BlobDigest,
        /// Where.
        place: String,
    },
    /// The tree says another size than the blob has.
    #[error("the blob {blob} (at '/{place}') does not have the {size} bytes that the tree says")]
    Size {
        /// Its digest.
        blob: BlobDigest,
        /// What the tree says.
        size: u64,
        /// Where.
        place: String,
    },
    /// An entry calls something a directory that is none.
    #[error("the tree {digest} (at '/{place}') is not a directory, but its parent says so")]
    NotDirectory {
        /// Its digest.
        digest: TreeDigest,
        /// Where.
        place: String,
    },
    /// Too deep.
    #[error("'/{place}' lies deeper than the {TREE_DEPTH} directories a store path may nest")]
    Depth {
        /// Where.
        place: String,
    },
    /// More than it may be.
    #[error("the tree is larger than the {size} bytes that its archive may have")]
    TooLarge {
        /// Bytes allowed.
        size: u64,
    },
    /// The bytes cannot be read.
    #[error("cannot read what arrived for '/{place}': {source}")]
    Read {
        /// Where.
        place: String,
        /// Why.
        source: io::Error,
    },
    /// The store's own copy cannot be read.
    #[error(transparent)]
    Stored(#[from] ReadError),
}

/// Why building a tree from what arrived ended early.
#[derive(Debug)]
pub(crate) enum BuildError {
    Arrived(ArrivedError),
    Write(TreeWriteError),
}

impl From<ArrivedError> for BuildError {
    fn from(error: ArrivedError) -> Self {
        Self::Arrived(error)
    }
}

impl From<IndexError> for BuildError {
    fn from(error: IndexError) -> Self {
        Self::Arrived(ReadError::from(error).into())
    }
}

impl From<TreeWriteError> for BuildError {
    fn from(error: TreeWriteError) -> Self {
        Self::Write(error)
    }
}

/// Where the bytes of files may come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origins {
    /// What did not arrive is taken from the store.
    ArrivedAndStored,
    ArrivedOnly,
}

/// Builds the tree with this digest. `most`: bytes that its archive has, where that is known.
pub(crate) fn build(
    store: &Store,
    root: TreeDigest,
    (content, origins): (&dyn Arrived, Origins),
    most: Option<u64>,
    tap: &mut NarTap<'_>,
    writer: &mut TreeWriter<'_>,
) -> Result<(), BuildError> {
    Build {
        store,
        content,
        origins,
        most: most.unwrap_or_else(|| content.most_bytes()),
        place: Vec::new(),
        tap,
        writer,
    }
    .run(root)
}

struct Level {
    digest: TreeDigest,
    /// In descending order, so that the next one is the last.
    entries: Vec<(PathComponent, Node)>,
    named: bool,
}

struct Build<'a, 't, 'w> {
    store: &'a Store,
    content: &'a dyn Arrived,
    origins: Origins,
    most: u64,
    /// Names from the root to the object at hand, for messages.
    place: Vec<PathComponent>,
    tap: &'a mut NarTap<'t>,
    writer: &'a mut TreeWriter<'w>,
}

/// The parts of a file's node.
#[derive(Clone, Copy)]
struct FileNode {
    blob: BlobDigest,
    size: u64,
    executable: bool,
}

impl Build<'_, '_, '_> {
    fn run(&mut self, root: TreeDigest) -> Result<(), BuildError> {
        let tree = self.tree(root)?;
        let mut stack: Vec<Level> = Vec::new();
        match tree {
            Tree::Directory(_) => stack.push(self.open(root, tree, None)?),
            Tree::Leaf(leaf) => {
                let computed = Tree::Leaf(leaf.clone()).digest();
                if computed != root {
                    return Err(self.wrong_tree(root, computed));
                }
                match leaf {
                    Leaf::File {
                        blob,
                        size,
                        executable,
                    } => self.file(
                        None,
                        FileNode {
                            blob,
                            size,
                            executable,
                        },
                    )?,
                    Leaf::Symlink(target) => self.link(None, &target)?,
                }
            }
        }
        while let Some(level) = stack.last_mut() {
            let Some((name, node)) = level.entries.pop() else {
                let (wanted, named) = (level.digest, level.named);
                stack.pop();
                let computed = self.writer.close_directory()?;
                if computed != wanted {
                    return Err(self.wrong_tree(wanted, computed));
                }
                self.frame(|tap| {
                    framing::close_directory(tap)?;
                    framing::after_node(tap, named)
                })?;
                self.place.pop();
                continue;
            };
            let depth = stack.len();
            self.place.push(name.clone());
            if depth >= TREE_DEPTH {
                return Err(ArrivedError::Depth { place: self.place() }.into());
            }
            match node {
                Node::Directory(digest) => {
                    let tree = self.tree(digest)?;
                    stack.push(self.open(digest, tree, Some(name))?);
                    continue;
                }
                Node::File {
                    blob,
                    size,
                    executable,
                } => {
                    let file = FileNode {
                        blob,
                        size,
                        executable,
                    };
                    self.file(Some(name), file)?;
                }
                Node::Symlink(target) => self.link(Some(name), &target)?,
            }
            self.place.pop();
        }
        Ok(())
    }

    fn tree(&self, digest: TreeDigest) -> Result<Tree, BuildError> {
        let place = || self.place();
        let arrived = self.content.tree(digest).map_err(|source| ArrivedError::Read {
            place: place(),
            source,
        })?;
        let tree = match arrived {
            Some(tree) => Some(tree),
            None => self.store.tree(&digest)?,
        };
        let missing = || ArrivedError::MissingTree {
            digest,
            place: place(),
        };
        Ok(tree.ok_or_else(missing)?)
    }

    /// That it has the digest that it was asked for by is seen when it is complete.
    fn open(
        &mut self,
        digest: TreeDigest,
        tree: Tree,
        name: Option<PathComponent>,
    ) -> Result<Level, BuildError> {
        let Tree::Directory(directory) = tree else {
            let place = self.place();
            return Err(ArrivedError::NotDirectory { digest, place }.into());
        };
        let named = name.is_some();
        self.frame(|tap| {
            framing::before_node(tap, name.as_ref().map(PathComponent::as_bytes))?;
            framing::open_directory(tap)
        })?;
        self.writer.open_directory(name)?;
        let mut entries: Vec<_> = directory
            .entries()
            .map(|(name, node)| (name.clone(), node.clone()))
            .collect();
        entries.reverse();
        Ok(Level {
            digest,
            entries,
            named,
        })
    }

    fn link(&mut self, name: Option<PathComponent>, target: &SymlinkTarget) -> Result<(), BuildError> {
        self.frame(|tap| {
            framing::before_node(tap, name.as_ref().map(PathComponent::as_bytes))?;
            framing::symlink(tap, target.as_bytes())?;
            framing::after_node(tap, name.is_some())
        })?;
        Ok(self.writer.symlink(name, target.as_bytes())?)
    }

    fn file(&mut self, name: Option<PathComponent>, file: FileNode) -> Result<(), BuildError> {
        let named = name.is_some();
        self.frame(|tap| {
            framing::before_node(tap, name.as_ref().map(PathComponent::as_bytes))?;
            framing::open_file(tap, file.executable, file.size)
        })?;
        // Before anything is written.
        self.check_size(self.tap.position().saturating_add(file.size))?;
        let computed = self.contents(name, file)?;
        if computed != file.blob {
            return Err(ArrivedError::WrongBlob {
                wanted: file.blob,
                computed,
                place: self.place(),
            }
            .into());
        }
        self.frame(|tap| {
            framing::close_file(tap, file.size)?;
            framing::after_node(tap, named)
        })
    }

    fn contents(&mut self, name: Option<PathComponent>, file: FileNode) -> Result<BlobDigest, BuildError> {
        let arrived = self
            .content
            .blob(file.blob)
            .map_err(|error| self.unreadable(error))?;
        let what = (name, file.executable, file.size);
        let copied = match arrived {
            Some(ArrivedFile::Bytes(bytes)) => copy_file(&mut &bytes[..], what, self.tap, self.writer),
            Some(ArrivedFile::File(mut opened)) => copy_file(&mut opened, what, self.tap, self.writer),
            Some(ArrivedFile::Given(given)) => take_file(&given, what, self.tap, self.writer),
            Some(ArrivedFile::Coming(coming)) => take_coming(&*coming, what, self.tap, self.writer),
            None => {
                let stored = match self.origins {
                    Origins::ArrivedAndStored => {
                        self.store.open_blob(&file.blob).map_err(ArrivedError::from)?
                    }
                    Origins::ArrivedOnly => None,
                };
                let missing = || ArrivedError::MissingBlob {
                    blob: file.blob,
                    place: self.place(),
                };
                copy_file(&mut stored.ok_or_else(missing)?, what, self.tap, self.writer)
            }
        };
        copied.map_err(|error| match error {
            CopyError::Size => ArrivedError::Size {
                blob: file.blob,
                size: file.size,
                place: self.place(),
            }
            .into(),
            CopyError::Read(error) => self.unreadable(error).into(),
            CopyError::Write(error) => error.into(),
        })
    }

    fn frame(&mut self, write: impl FnOnce(&mut NarTap<'_>) -> io::Result<()>) -> Result<(), BuildError> {
        write(self.tap).map_err(|error| self.unreadable(error))?;
        self.check_size(self.tap.position())
    }

    fn check_size(&self, position: u64) -> Result<(), BuildError> {
        if position > self.most {
            return Err(ArrivedError::TooLarge { size: self.most }.into());
        }
        Ok(())
    }

    fn wrong_tree(&self, wanted: TreeDigest, computed: TreeDigest) -> BuildError {
        let place = self.place();
        ArrivedError::WrongTree {
            wanted,
            computed,
            place,
        }
        .into()
    }

    fn unreadable(&self, source: io::Error) -> ArrivedError {
        let place = self.place();
        ArrivedError::Read { place, source }
    }

    fn place(&self) -> String {
        let names: Vec<String> = self.place.iter().map(PathComponent::to_string).collect();
        names.join("/")
    }
}
