//! Content as a peer sends it.

use std::collections::HashMap;
use std::io::{self, Seek, Write};

use tvix_node_protocol::tree::{BlobDigest, Directory, Leaf, Node, PathComponent, Tree, TreeDigest};
use tvix_node_store::{Arrived, ArrivedFile, Store, limits};

/// What a peer sent.
#[derive(Default, Clone)]
pub struct Sent {
    pub trees: HashMap<TreeDigest, Tree>,
    pub blobs: HashMap<BlobDigest, Vec<u8>>,
    pub as_files: bool,
    pub most: Option<u64>,
}

impl Arrived for Sent {
    fn tree(&self, digest: TreeDigest) -> io::Result<Option<Tree>> {
        Ok(self.trees.get(&digest).cloned())
    }

    fn blob(&self, digest: BlobDigest) -> io::Result<Option<ArrivedFile>> {
        let Some(bytes) = self.blobs.get(&digest) else {
            return Ok(None);
        };
        if !self.as_files {
            return Ok(Some(ArrivedFile::Bytes(bytes.clone())));
        }
        let mut file = tempfile::tempfile()?;
        file.write_all(bytes)?;
        file.rewind()?;
        Ok(Some(ArrivedFile::File(file)))
    }

    fn most_bytes(&self) -> u64 {
        self.most.unwrap_or(limits::ARRIVED_BYTES)
    }
}

impl Sent {
    /// Everything below this digest.
    pub fn of(store: &Store, root: TreeDigest) -> Self {
        let mut sent = Self::default();
        let mut wanted = vec![root];
        let blob = |sent: &mut Self, blob: &BlobDigest| {
            let mut bytes = Vec::new();
            let mut file = store.open_blob(blob).unwrap().unwrap();
            io::copy(&mut file, &mut bytes).unwrap();
            sent.blobs.insert(*blob, bytes);
        };
        while let Some(digest) = wanted.pop() {
            let tree = store.tree(&digest).unwrap().unwrap();
            match &tree {
                Tree::Directory(directory) => {
                    for (_, node) in directory.entries() {
                        match node {
                            Node::Directory(digest) => wanted.push(*digest),
                            Node::File { blob: digest, .. } => blob(&mut sent, digest),
                            Node::Symlink(_) => {}
                        }
                    }
                }
                Tree::Leaf(Leaf::File { blob: digest, .. }) => blob(&mut sent, digest),
                Tree::Leaf(Leaf::Symlink(_)) => {}
            }
            sent.trees.insert(digest, tree);
        }
        sent
    }

    /// Adds an object.
    pub fn put(&mut self, tree: Tree) -> TreeDigest {
        let digest = tree.digest();
        self.trees.insert(digest, tree);
        digest
    }

    /// A directory with one entry.
    pub fn put_directory(&mut self, name: &[u8], node: Node) -> TreeDigest {
        let mut directory = Directory::default();
        directory.insert(PathComponent::new(name).unwrap(), node).unwrap();
        self.put(Tree::Directory(directory))
    }

    /// Adds a file's bytes.
    pub fn file(&mut self, bytes: &[u8]) -> Node {
        self.blobs.insert(BlobDigest::of(bytes), bytes.to_vec());
        Node::file(bytes, false)
    }
}
