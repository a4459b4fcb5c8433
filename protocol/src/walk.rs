//! Following a tree through its directories, as somebody sends them who is not believed.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::limits::TREE_DEPTH;
use crate::tree::{BlobDigest, Leaf, Node, Tree, TreeDigest, TreeError};

/// The files of a tree and their sizes.
pub type Files = HashMap<BlobDigest, u64>;

/// Why what came is not the next directory of the tree.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// All of them have come.
    #[error("more than the tree has")]
    Surplus,
    /// It is another one, or none.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The tree has too many entries.
    #[error("a tree of more than {0} entries")]
    Entries(usize),
    /// The tree is too deep.
    #[error("a tree deeper than {TREE_DEPTH}")]
    Depth,
    /// The tree contradicts itself.
    #[error("a tree that has the file {0} with two sizes")]
    Sizes(BlobDigest),
}

/// Follows a tree breadth first, each directory once.
#[derive(Debug)]
pub struct Walk {
    queue: VecDeque<(TreeDigest, usize)>,
    seen: HashSet<TreeDigest>,
    files: Files,
    entries: usize,
    most: usize,
}

impl Walk {
    /// Of the tree with this digest, which may have so many entries.
    #[must_use]
    pub fn new(root: TreeDigest, most: usize) -> Self {
        Self {
            queue: VecDeque::from([(root, 0)]),
            seen: HashSet::from([root]),
            files: Files::new(),
            entries: 0,
            most,
        }
    }

    /// Whether all directories have come.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.queue.is_empty()
    }

    /// Entries of the directories that have come.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// The files of what has come.
    #[must_use]
    pub fn into_files(self) -> Files {
        self.files
    }

    /// Takes the next directory in.
    ///
    /// # Errors
    /// [`WalkError`]; the walk is over then.
    pub fn take(&mut self, bytes: &[u8]) -> Result<TreeDigest, WalkError> {
        let (digest, depth) = self.queue.pop_front().ok_or(WalkError::Surplus)?;
        match Tree::from_bytes(bytes, digest)? {
            Tree::Leaf(Leaf::File { blob, size, .. }) => self.file(blob, size)?,
            Tree::Leaf(Leaf::Symlink(_)) => {}
            Tree::Directory(directory) => {
                self.entries += directory.entries().len();
                if self.entries > self.most {
                    return Err(WalkError::Entries(self.most));
                }
                for (_, node) in directory.entries() {
                    match node {
                        Node::Symlink(_) => {}
                        Node::File { blob, size, .. } => self.file(*blob, *size)?,
                        Node::Directory(_) if depth >= TREE_DEPTH => return Err(WalkError::Depth),
                        Node::Directory(digest) => {
                            if self.seen.insert(*digest) {
                                self.queue.push_back((*digest, depth + 1));
                            }
                        }
                    }
                }
            }
        }
        Ok(digest)
    }

    fn file(&mut self, blob: BlobDigest, size: u64) -> Result<(), WalkError> {
        match self.files.insert(blob, size) {
            Some(other) if other != size => Err(WalkError::Sizes(blob)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Directory, PathComponent};

    fn directory(entries: Vec<(&str, Node)>) -> Tree {
        let mut directory = Directory::default();
        for (name, node) in entries {
            directory
                .insert(PathComponent::new(name.as_bytes()).unwrap(), node)
                .unwrap();
        }
        Tree::Directory(directory)
    }

    #[test]
    fn a_walk_takes_the_directories_in_order_and_nothing_else() {
        let inner = directory(vec![("x", Node::file(b"x", false))]);
        let root = directory(vec![
            ("a", inner.clone().into()),
            ("b", inner.clone().into()),
            ("y", Node::file(b"yy", true)),
        ]);
        let mut walk = Walk::new(root.digest(), 100);
        assert!(walk.take(&inner.to_bytes()).is_err(), "not in its turn");
        let mut walk = Walk::new(root.digest(), 100);
        walk.take(&root.to_bytes()).unwrap();
        assert!(!walk.is_done());
        walk.take(&inner.to_bytes()).unwrap();
        assert!(walk.is_done(), "an equal directory comes once");
        assert!(matches!(walk.take(&inner.to_bytes()), Err(WalkError::Surplus)));
        let files = walk.into_files();
        assert_eq!(files.len(), 2);
        assert_eq!(files[&BlobDigest::of(b"yy")], 2);
    }

    #[test]
    fn a_tree_deeper_than_allowed_is_refused() {
        let mut tree = directory(vec![]);
        let mut chain = vec![tree.clone()];
        for _ in 0..=TREE_DEPTH {
            tree = directory(vec![("d", tree.into())]);
            chain.push(tree.clone());
        }
        let mut walk = Walk::new(tree.digest(), usize::MAX);
        let results: Vec<_> = chain
            .iter()
            .rev()
            .map(|tree| walk.take(&tree.to_bytes()))
            .collect();
        assert!(results[TREE_DEPTH - 1].is_ok());
        assert!(matches!(results[TREE_DEPTH], Err(WalkError::Depth)));
    }

    #[test]
    fn a_tree_of_more_entries_than_allowed_is_refused() {
        let inner = directory(vec![("x", Node::file(b"x", false))]);
        let root = directory(vec![("a", inner.clone().into()), ("y", Node::file(b"y", false))]);
        let mut walk = Walk::new(root.digest(), 3);
        assert!(walk.take(&root.to_bytes()).is_ok() && walk.take(&inner.to_bytes()).is_ok());
        // What other directories of it had before counts, too.
        let mut walk = Walk::new(root.digest(), 2);
        walk.take(&root.to_bytes()).unwrap();
        assert!(matches!(walk.take(&inner.to_bytes()), Err(WalkError::Entries(2))));
    }

    #[test]
    fn a_tree_that_contradicts_itself_is_refused() {
        let blob = BlobDigest::of(b"x");
        let file = |size| Node::File {
            blob,
            size,
            executable: false,
        };
        let tree = directory(vec![("a", file(1)), ("b", file(2))]);
        let taken = Walk::new(tree.digest(), 100).take(&tree.to_bytes());
        assert!(matches!(taken, Err(WalkError::Sizes(of)) if of == blob));
    }
}
