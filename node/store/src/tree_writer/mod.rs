//! Writes one tree to the side, and computes what it is while doing so.
//!
//! Whoever reads the tree (an archive, a directory) calls this in the order of an archive: a
//! directory is opened, filled in the order of its names, closed. Nothing outside the new tree can be
//! touched: every object is made anew, by the descriptor of its directory and one checked name.
//!
//! [`open_file`] is about files that are not in memory as a whole.

mod open_file;

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::fs::StatVfs;
use rustix::io::Errno;
use tvix_node_protocol::nix::hash::{HashAlgorithm, NixHash, NixHasher};
use tvix_node_protocol::subtrees::ChainingValue;
use tvix_node_protocol::tree::{
    BlobDigest, Directory, Leaf, Node, PathComponent, SymlinkTarget, Tree, TreeDigest, TreeError,
};

use crate::disk::{FileError, open_directory};
use crate::index::{Index, IndexError};
use crate::limits::{GROWING_LEAVES_BYTES, GROWING_LEAVES_FILES, GROWING_LOOK, TREE_ENTRIES};
use crate::share::{Shared, SharedFile, Sharing};
use crate::trees::Temporary;
use open_file::OpenFile;

/// Why a tree cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum TreeWriteError {
    /// The file system refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// The index could not be read.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// Not a tree.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// Too many objects.
    #[error("the tree has more than {TREE_ENTRIES} files, directories and links, the most a store takes")]
    TooManyEntries,
}

/// A directory object of a new tree, for the index.
#[derive(Debug)]
pub(crate) struct NodeRow {
    pub(crate) bytes: Vec<u8>,
    pub(crate) children: Vec<TreeDigest>,
}

/// Where a file lies in a new tree, for the index.
#[derive(Debug)]
pub(crate) struct FileRow {
    pub(crate) blob: BlobDigest,
    pub(crate) executable: bool,
    pub(crate) occurrence: u32,
    /// Below the tree's root; empty for the root itself.
    pub(crate) relative: Vec<u8>,
    /// Whether it is a new file, not another link to a stored one.
    pub(crate) made: bool,
}

/// A finished tree that only this process knows of.
pub(crate) struct Written {
    pub(crate) temporary: Temporary,
    pub(crate) tree: TreeDigest,
    pub(crate) nodes: HashMap<TreeDigest, NodeRow>,
    pub(crate) files: Vec<FileRow>,
    /// The hashes of the parts of large files.
    pub(crate) subtrees: HashMap<BlobDigest, Vec<ChainingValue>>,
    /// All directories, below the tree's root.
    pub(crate) directories: Vec<Vec<u8>>,
    /// Bytes of the files that were made, as far as they went through the page cache.
    pub(crate) bytes_made: u64,
    /// Hash of the bytes of the one file that the tree is, where it was asked for and is one that is
    /// not executable.
    pub(crate) flat: Option<NixHash>,
}

struct OpenDirectory {
    fd: OwnedFd,
    name: Option<PathComponent>,
    directory: Directory,
    /// Length of the relative path of the directory's parent.
    parent_length: usize,
}

/// See the [module](self).
pub(crate) struct TreeWriter<'s> {
    index: &'s Index,
    sharing: &'s Sharing,
    /// Before the tree that it is in: it may have to be waited for.
    file: Option<OpenFile>,
    temporary: Temporary,
    stack: Vec<OpenDirectory>,
    relative: Vec<u8>,
    entries: u64,
    occurrences: HashMap<(BlobDigest, bool), u32>,
    nodes: HashMap<TreeDigest, NodeRow>,
    files: Vec<FileRow>,
    subtrees: HashMap<BlobDigest, Vec<ChainingValue>>,
    directories: Vec<Vec<u8>>,
    bytes_made: u64,
    root: Option<Tree>,
    flat: Option<NixHasher>,
    around_cache: bool,
}

impl<'s> TreeWriter<'s> {
    /// `flat`: also hash the bytes of a tree that is one file.
    pub(crate) fn new(
        index: &'s Index,
        sharing: &'s Sharing,
        temporary: Temporary,
        flat: Option<HashAlgorithm>,
    ) -> Self {
        Self {
            index,
            sharing,
            temporary,
            stack: Vec::new(),
            file: None,
            relative: Vec::new(),
            entries: 0,
            occurrences: HashMap::new(),
            nodes: HashMap::new(),
            files: Vec::new(),
            subtrees: HashMap::new(),
            directories: Vec::new(),
            bytes_made: 0,
            root: None,
            flat: flat.map(NixHasher::new),
            around_cache: false,
        }
    }

    /// Large files go to the disk around the page cache: their bytes are in memory already, where they come from, and
    /// nobody is about to read the new ones.
    pub(crate) fn large_files_around_cache(&mut self) {
        self.around_cache = true;
    }

    /// Directories open now.
    pub(crate) fn depth(&self) -> usize {
        self.stack.len()
    }

    pub(crate) fn open_directory(&mut self, name: Option<PathComponent>) -> Result<(), TreeWriteError> {
        self.count()?;
        let parent_length = self.enter(name.as_ref());
        let disk = &self.temporary.trees().disk;
        let made = self.with_place(name.as_ref(), |parent, name| {
            disk.make_directory((parent, name), 0o700)?;
            open_directory(parent, name)
        });
        let fd = made.map_err(|error| self.fail("make the directory", error))?;
        self.stack.push(OpenDirectory {
            fd,
            name,
            directory: Directory::default(),
            parent_length,
        });
        Ok(())
    }

    /// Ends the innermost open directory and returns its digest.
    pub(crate) fn close_directory(&mut self) -> Result<TreeDigest, TreeWriteError> {
        let Some(open) = self.stack.pop() else {
            return Err(self.fail("finish the directory", Errno::INVAL).into());
        };
        let finished = self.temporary.trees().disk.canonicalise(open.fd.as_fd(), true);
        finished.map_err(|error| self.fail("finish the directory", error))?;
        self.directories.push(self.relative.clone());
        self.relative.truncate(open.parent_length);
        let children = open.directory.entries().filter_map(|(_, node)| match node {
            Node::Directory(digest) => Some(*digest),
            _ => None,
        });
        let children: Vec<TreeDigest> = children.collect();
        let tree = Tree::Directory(open.directory);
        let bytes = tree.to_bytes();
        let digest = TreeDigest(*blake3::hash(&bytes).as_bytes());
        self.nodes.entry(digest).or_insert(NodeRow { bytes, children });
        match open.name {
            Some(name) => self.put(name, Node::Directory(digest))?,
            None => self.root = Some(tree),
        }
        Ok(digest)
    }

    pub(crate) fn symlink(
        &mut self,
        name: Option<PathComponent>,
        target: &[u8],
    ) -> Result<(), TreeWriteError> {
        self.count()?;
        let checked = SymlinkTarget::new(target)?;
        let parent_length = self.enter(name.as_ref());
        let disk = &self.temporary.trees().disk;
        let made = self.with_place(name.as_ref(), |parent, name| {
            disk.make_symlink(target, (parent, name))?;
            disk.canonicalise_symlink(parent, name)
        });
        made.map_err(|error| self.fail("make the link", error))?;
        self.relative.truncate(parent_length);
        self.leaf(name, Leaf::Symlink(checked))
    }

    /// A file whose bytes are all in memory: shared with a stored one before anything is written. Returns
    /// the digest of the bytes.
    pub(crate) fn small_file(
        &mut self,
        name: Option<PathComponent>,
        executable: bool,
        bytes: &[u8],
    ) -> Result<BlobDigest, TreeWriteError> {
        self.count()?;
        let parent_length = self.enter(name.as_ref());
        self.flat_hash(name.is_none() && !executable, bytes);
        let file = self.occurrence(BlobDigest::of(bytes), bytes.len() as u64, executable);
        let shared = self.share(name.as_ref(), &file)?;
        if shared == Shared::Not {
            let disk = &self.temporary.trees().disk;
            let made = self.with_place(name.as_ref(), |parent, name| {
                let made = disk.make_file(parent, name, executable)?;
                disk.write(&made, bytes)?;
                disk.canonicalise(made.as_fd(), executable)
            });
            made.map_err(|error| self.fail("write", error))?;
        }
        self.file_row(&file, shared, parent_length);
        self.leaf(name, file.leaf())?;
        Ok(file.blob)
    }

    /// The finished tree.
    ///
    /// # Panics
    /// Never: whoever drives the writer ends what it begins, and an unfinished tree is an error.
    pub(crate) fn finish(mut self) -> Result<Written, TreeWriteError> {
        let Some(tree) = self.root.take() else {
            return Err(self.fail("finish", Errno::INVAL).into());
        };
        let digest = match &tree {
            Tree::Directory(_) => tree.digest(),
            Tree::Leaf(_) => {
                let bytes = tree.to_bytes();
                let digest = TreeDigest(*blake3::hash(&bytes).as_bytes());
                let children = Vec::new();
                self.nodes.insert(digest, NodeRow { bytes, children });
                digest
            }
        };
        let is_file = matches!(
            tree,
            Tree::Leaf(Leaf::File {
                executable: false,
                ..
            })
        );
        Ok(Written {
            temporary: self.temporary,
            tree: digest,
            nodes: self.nodes,
            files: self.files,
            subtrees: self.subtrees,
            directories: self.directories,
            bytes_made: self.bytes_made,
            flat: self.flat.filter(|_| is_file).map(NixHasher::finalize),
        })
    }

    fn count(&mut self) -> Result<(), TreeWriteError> {
        self.entries += 1;
        if self.entries > TREE_ENTRIES {
            return Err(TreeWriteError::TooManyEntries);
        }
        match self.entries % GROWING_LOOK == 1 {
            true => Ok(self.look_at_room()?),
            false => Ok(()),
        }
    }

    /// A disk that is filled to its last byte fails others, too: the index, and builds that go on.
    fn look_at_room(&self) -> Result<(), FileError> {
        let room = rustix::fs::fstatvfs(self.temporary.trees().fd());
        match room.map(|room| has_room(&room)) {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.fail("keep 32 MiB of the disk free and write more of", Errno::NOSPC)),
            Err(error) => Err(self.fail("look at the file system of", error)),
        }
    }

    /// Appends a name to the relative path; returns the length to go back to.
    fn enter(&mut self, name: Option<&PathComponent>) -> usize {
        let length = self.relative.len();
        if let Some(name) = name {
            if length > 0 {
                self.relative.push(b'/');
            }
            self.relative.extend_from_slice(name.as_bytes());
        }
        length
    }

    /// Calls `make` with the directory and name of the object that has `name` in the open directory;
    /// the root's is the tree's temporary name.
    fn with_place<T>(
        &self,
        name: Option<&PathComponent>,
        make: impl FnOnce(BorrowedFd<'_>, &[u8]) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let (parent, name) = self.place(name);
        make(parent, name)
    }

    fn place<'n>(&'n self, name: Option<&'n PathComponent>) -> (BorrowedFd<'n>, &'n [u8]) {
        match (self.stack.last(), name) {
            (Some(open), Some(name)) => (open.fd.as_fd(), name.as_bytes()),
            _ => (self.temporary.trees().fd(), self.temporary.name().as_bytes()),
        }
    }

    fn fail(&self, action: &'static str, error: Errno) -> FileError {
        let mut path = self.temporary.trees().path().join(self.temporary.name());
        if !self.relative.is_empty() {
            path.push(PathBuf::from(std::ffi::OsString::from_vec(self.relative.clone())));
        }
        FileError::new(action, path, error)
    }

    fn occurrence(&mut self, blob: BlobDigest, size: u64, executable: bool) -> SharedFile {
        let count = self.occurrences.entry((blob, executable)).or_insert(0);
        let occurrence = *count;
        *count += 1;
        SharedFile {
            blob,
            size,
            executable,
            occurrence,
        }
    }

    fn share(&self, name: Option<&PathComponent>, file: &SharedFile) -> Result<Shared, TreeWriteError> {
        let trees = self.temporary.trees();
        let place = self.place(name);
        let shared = self.sharing.share(self.index, trees, file, place)?;
        Ok(shared.map_err(|error| self.fail("share an equal file as", error))?)
    }

    /// Puts an equal stored file in the place of one that was just written.
    fn share_instead(
        &self,
        name: Option<&PathComponent>,
        file: &SharedFile,
    ) -> Result<Shared, TreeWriteError> {
        let trees = self.temporary.trees();
        let beside = self.temporary.file_beside();
        let place = (trees.fd(), beside.as_bytes());
        let shared = self.sharing.share(self.index, trees, file, place)?;
        let shared = shared.map_err(|error| self.fail("share an equal file as", error))?;
        if shared == Shared::Not {
            return Ok(shared);
        }
        let moved = self.with_place(name, |parent, name| {
            trees
                .disk
                .replace((trees.fd(), beside.as_bytes()), (parent, name))
        });
        moved.map_err(|error| self.fail("replace by an equal file", error))?;
        Ok(shared)
    }

    fn flat_hash(&mut self, wanted: bool, bytes: &[u8]) {
        if wanted && let Some(flat) = &mut self.flat {
            flat.update(bytes);
        }
    }

    fn file_row(&mut self, file: &SharedFile, shared: Shared, parent_length: usize) {
        let made = shared != Shared::Link;
        self.bytes_made += if made { file.size } else { 0 };
        self.files.push(FileRow {
            blob: file.blob,
            executable: file.executable,
            occurrence: file.occurrence,
            relative: self.relative.clone(),
            made,
        });
        self.relative.truncate(parent_length);
    }

    fn leaf(&mut self, name: Option<PathComponent>, leaf: Leaf) -> Result<(), TreeWriteError> {
        match name {
            Some(name) => self.put(name, Tree::Leaf(leaf).into()),
            None => {
                self.root = Some(Tree::Leaf(leaf));
                Ok(())
            }
        }
    }

    fn put(&mut self, name: PathComponent, node: Node) -> Result<(), TreeWriteError> {
        if let Some(open) = self.stack.last_mut() {
            open.directory.insert(name, node)?;
        }
        Ok(())
    }
}

/// Whether a tree may grow.
fn has_room(disk: &StatVfs) -> bool {
    let bytes = disk.f_bavail.saturating_mul(disk.f_frsize);
    // File systems that make room for files as they come say that they have none at all, or as many as one likes.
    let bounded = disk.f_files > 0;
    bytes >= GROWING_LEAVES_BYTES && (!bounded || disk.f_favail >= GROWING_LEAVES_FILES)
}

#[cfg(test)]
mod tests;
