//! A store in memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::messages::Shown;
use tvix_node_protocol::nix::store_path::StorePath;
use tvix_node_protocol::path_info::{NarHash, Origin, PathInfo};
use tvix_node_protocol::subtrees::{BlobHasher, ChainingValue};
use tvix_node_protocol::tree::{BlobDigest, Directory, Leaf, Node, PathComponent, Tree, TreeDigest};

use crate::core::lock;
use crate::{Arrival, Loan, Shelf, ShelfError, copy_blob};

#[derive(Default)]
struct Held {
    paths: BTreeMap<StorePath, Shown>,
    private: BTreeSet<StorePath>,
    trees: HashMap<TreeDigest, Tree>,
    blobs: HashMap<BlobDigest, PathBuf>,
    subtrees: HashMap<BlobDigest, Vec<ChainingValue>>,
    granted: BTreeSet<(NodeKey, TreeDigest)>,
    /// Nothing is here but what is lent at the moment.
    nothing_but_lent: bool,
    /// Questions that are being answered.
    lent: Arc<AtomicUsize>,
}

/// A question that is being answered.
struct Lent(Arc<AtomicUsize>);

impl Drop for Lent {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Held {
    fn has_content(&self) -> bool {
        !self.nothing_but_lent || self.lent.load(Ordering::SeqCst) > 0
    }
}

pub(super) struct TestShelf {
    held: Mutex<Held>,
    folder: tempfile::TempDir,
}

impl Default for TestShelf {
    fn default() -> Self {
        Self {
            held: Mutex::default(),
            folder: tempfile::tempdir().unwrap(),
        }
    }
}

pub(super) fn path(name: &str) -> StorePath {
    let mut hash = [0; 20];
    hash.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..20]);
    StorePath::from_parts(hash, name).unwrap()
}

pub(super) fn component(name: &str) -> PathComponent {
    PathComponent::new(name.as_bytes()).unwrap()
}

/// Bytes that do not compress and differ with the seed.
pub(super) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

impl TestShelf {
    /// Adds a file's bytes.
    pub(super) fn add_blob(&self, bytes: &[u8]) -> Node {
        let blob = BlobDigest::of(bytes);
        let path = self.folder.path().join(blob.to_string());
        std::fs::write(&path, bytes).unwrap();
        lock(&self.held).blobs.insert(blob, path);
        Node::file(bytes, false)
    }

    /// As a store that keeps the hashes of a file's parts.
    pub(super) fn keep_parts(&self, bytes: &[u8]) {
        let mut hasher = BlobHasher::default();
        hasher.update(bytes);
        let (blob, parts) = hasher.finalize();
        lock(&self.held).subtrees.insert(blob, parts);
    }

    pub(super) fn add_tree(&self, tree: Tree) -> TreeDigest {
        let digest = tree.digest();
        lock(&self.held).trees.insert(digest, tree);
        digest
    }

    /// Adds a directory of files.
    pub(super) fn add_directory(&self, files: &[(&str, &[u8])]) -> TreeDigest {
        let mut directory = Directory::default();
        for (name, bytes) in files {
            directory.insert(component(name), self.add_blob(bytes)).unwrap();
        }
        self.add_tree(Tree::Directory(directory))
    }

    /// Adds a path with this content.
    pub(super) fn add_path(&self, name: &str, tree: TreeDigest) -> StorePath {
        let path = path(name);
        let info = PathInfo {
            path: path.clone(),
            tree,
            nar_hash: NarHash([1; 32]),
            nar_size: 1,
            references: BTreeSet::new(),
            deriver: None,
            ca: None,
            origin: Origin::Built,
            registered: 1,
            signatures: vec![],
        };
        let shown = Shown { info, record: None };
        lock(&self.held).paths.insert(path.clone(), shown);
        path
    }

    /// A path that is a directory with one small file.
    pub(super) fn add_small(&self, name: &str) -> StorePath {
        let tree = self.add_directory(&[("name", name.as_bytes())]);
        self.add_path(name, tree)
    }

    /// Says that a path refers to these.
    pub(super) fn refer(&self, path: &StorePath, references: BTreeSet<StorePath>) {
        if let Some(shown) = lock(&self.held).paths.get_mut(path) {
            shown.info.references = references;
        }
    }

    /// Writes other bytes into a file.
    pub(super) fn damage(&self, blob: BlobDigest, bytes: &[u8]) {
        std::fs::write(&lock(&self.held).blobs[&blob], bytes).unwrap();
    }

    /// A file is not here any more.
    pub(super) fn lose(&self, blob: BlobDigest) {
        lock(&self.held).blobs.remove(&blob);
    }

    /// A file cannot be read any more.
    pub(super) fn make_unreadable(&self, blob: BlobDigest) {
        // It can be opened.
        let folder = self.folder.path().to_owned();
        lock(&self.held).blobs.insert(blob, folder);
    }

    pub(super) fn make_private(&self, path: &StorePath) {
        lock(&self.held).private.insert(path.clone());
    }

    /// From now on content is here only while it is lent to somebody.
    pub(super) fn collect_what_is_not_lent(&self) {
        lock(&self.held).nothing_but_lent = true;
    }

    /// Questions that are being answered.
    pub(super) fn lent(&self) -> usize {
        lock(&self.held).lent.load(Ordering::SeqCst)
    }

    pub(super) fn grant(&self, peer: NodeKey, tree: TreeDigest) {
        lock(&self.held).granted.insert((peer, tree));
    }

    pub(super) fn tree_of(&self, path: &StorePath) -> TreeDigest {
        lock(&self.held).paths[path].info.tree
    }

    pub(super) fn shown(&self, path: &StorePath) -> Shown {
        lock(&self.held).paths[path].clone()
    }

    /// Takes in what has arrived, as a store would.
    pub(super) fn adopt(&self, arrival: &Arrival) {
        let mut queue = vec![arrival.root()];
        while let Some(digest) = queue.pop() {
            let tree = arrival.tree(digest).unwrap().unwrap();
            let take = |blob: BlobDigest| {
                let Some(arrived) = arrival.blob(blob).unwrap() else {
                    return;
                };
                let mut bytes = vec![];
                copy_blob(arrived, &mut bytes).unwrap();
                assert_eq!(BlobDigest::of(&bytes), blob);
                self.add_blob(&bytes);
            };
            match &tree {
                Tree::Leaf(Leaf::File { blob, .. }) => take(*blob),
                Tree::Leaf(Leaf::Symlink(_)) => {}
                Tree::Directory(directory) => {
                    for (_, node) in directory.entries() {
                        match node {
                            Node::Directory(digest) => queue.push(*digest),
                            Node::File { blob, .. } => take(*blob),
                            Node::Symlink(_) => {}
                        }
                    }
                }
            }
            self.add_tree(tree);
        }
        arrival.remove().unwrap();
    }

    /// Whether all of a tree is here.
    pub(super) fn is_complete(&self, root: TreeDigest) -> bool {
        let Ok(Some(blobs)) = crate::protocols::serving::files(self, root) else {
            return false;
        };
        let held = lock(&self.held);
        blobs.iter().all(|blob| held.blobs.contains_key(blob))
    }
}

impl Shelf for TestShelf {
    fn advertised(&self, after: Option<&StorePath>, limit: usize) -> Result<Vec<StorePath>, ShelfError> {
        let held = lock(&self.held);
        let paths = held.paths.keys().filter(|path| !held.private.contains(*path));
        let later = paths.filter(|path| after.is_none_or(|after| *path > after));
        Ok(later.take(limit).cloned().collect())
    }

    fn path_info(&self, _: NodeKey, path: &StorePath) -> Result<Option<Shown>, ShelfError> {
        let held = lock(&self.held);
        let shown = held.paths.get(path).filter(|_| !held.private.contains(path));
        Ok(shown.cloned())
    }

    fn may_serve(&self, peer: NodeKey, root: TreeDigest) -> Result<bool, ShelfError> {
        let held = lock(&self.held);
        let public = held
            .paths
            .iter()
            .any(|(path, shown)| shown.info.tree == root && !held.private.contains(path));
        Ok(public || held.granted.contains(&(peer, root)))
    }

    fn lend(&self, _: NodeKey, _: TreeDigest) -> Result<Loan, ShelfError> {
        let lent = Arc::clone(&lock(&self.held).lent);
        lent.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(Lent(lent)))
    }

    fn tree(&self, digest: TreeDigest) -> Result<Option<Tree>, ShelfError> {
        let held = lock(&self.held);
        Ok(held.trees.get(&digest).filter(|_| held.has_content()).cloned())
    }

    fn has_blobs(&self, blobs: &[BlobDigest]) -> Result<Vec<bool>, ShelfError> {
        let held = lock(&self.held);
        Ok(blobs.iter().map(|blob| held.blobs.contains_key(blob)).collect())
    }

    fn blob(&self, digest: BlobDigest) -> Result<Option<File>, ShelfError> {
        let held = lock(&self.held);
        let path = held.blobs.get(&digest).filter(|_| held.has_content());
        path.map(File::open).transpose().map_err(ShelfError::new)
    }

    fn subtrees(&self, digest: BlobDigest) -> Result<Vec<ChainingValue>, ShelfError> {
        let held = lock(&self.held);
        Ok(held.subtrees.get(&digest).cloned().unwrap_or_default())
    }
}
