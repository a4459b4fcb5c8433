//! A small tree in one piece, as it travels together with others.
//!
//! First its directories, breadth first, each once: the length of the encoding as four bytes, least significant first, and the
//! encoding. Then the bytes of its files, each once, by ascending digest: how many each of them has is known by then. Nothing
//! else. Who sends it is not believed: every directory and every file is checked against its digest.

use std::collections::BTreeMap;

use crate::limits::{PACKED_TREE, SMALL_TREE_FILES};
use crate::tree::{BlobDigest, TreeDigest};
use crate::walk::{Walk, WalkError};

/// Why this is not the tree that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum PackedError {
    /// A directory is not the next one.
    #[error(transparent)]
    Walk(#[from] WalkError),
    /// It ends too early.
    #[error("the tree ends before its end")]
    CutShort,
    /// Something follows.
    #[error("{0} bytes follow the tree")]
    Surplus(usize),
    /// It is no small tree.
    #[error("the tree has {files} files with {bytes} bytes, more than were expected")]
    TooLarge {
        /// How many.
        files: usize,
        /// Bytes of all of them.
        bytes: u64,
    },
    /// Other bytes came.
    #[error("the file {0} has another content")]
    File(BlobDigest),
}

/// What a small tree is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// Its directories, encoded, breadth first; or the one leaf that it is.
    pub directories: Vec<(TreeDigest, Vec<u8>)>,
    /// The bytes of its files.
    pub files: BTreeMap<BlobDigest, Vec<u8>>,
}

impl Packed {
    /// Reads the tree with this digest, whose files may have so many bytes.
    ///
    /// # Errors
    /// [`PackedError`]
    pub fn from_bytes(bytes: &[u8], root: TreeDigest, most: u64) -> Result<Self, PackedError> {
        let mut rest = bytes;
        // Entries have at least two bytes each.
        let mut walk = Walk::new(root, PACKED_TREE);
        let mut directories = Vec::new();
        while !walk.is_done() {
            let (length, after) = rest.split_first_chunk().ok_or(PackedError::CutShort)?;
            let length = u32::from_le_bytes(*length) as usize;
            let (directory, after) = after.split_at_checked(length).ok_or(PackedError::CutShort)?;
            directories.push((walk.take(directory)?, directory.to_vec()));
            rest = after;
        }
        let sizes: BTreeMap<BlobDigest, u64> = walk.into_files().into_iter().collect();
        let size = sizes.values().fold(0_u64, |all, size| all.saturating_add(*size));
        if size > most || sizes.len() > SMALL_TREE_FILES {
            return Err(PackedError::TooLarge {
                files: sizes.len(),
                bytes: size,
            });
        }
        let mut files = BTreeMap::new();
        for (blob, size) in sizes {
            let size = usize::try_from(size).map_err(|_| PackedError::CutShort)?;
            let (file, after) = rest.split_at_checked(size).ok_or(PackedError::CutShort)?;
            if BlobDigest::of(file) != blob {
                return Err(PackedError::File(blob));
            }
            files.insert(blob, file.to_vec());
            rest = after;
        }
        match rest.len() {
            0 => Ok(Self { directories, files }),
            more => Err(PackedError::Surplus(more)),
        }
    }

    /// Appends it to what is sent.
    pub fn append_to(&self, bytes: &mut Vec<u8>) {
        for (_, directory) in &self.directories {
            // A directory has at most 32 MiB.
            let length = u32::try_from(directory.len()).unwrap_or(u32::MAX);
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(directory);
        }
        for file in self.files.values() {
            bytes.extend_from_slice(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Directory, Leaf, Node, PathComponent, Tree};

    /// A tree with two equal directories and three files, two of them equal.
    fn packed() -> (TreeDigest, Packed) {
        let name = |name: &str| PathComponent::new(name.as_bytes()).unwrap();
        let mut inner = Directory::default();
        inner.insert(name("x"), Node::file(b"one", true)).unwrap();
        let inner = Tree::Directory(inner);
        let mut outer = Directory::default();
        for folder in ["a", "b"] {
            outer.insert(name(folder), inner.clone().into()).unwrap();
        }
        for (file, content) in [("p", "one"), ("q", ""), ("r", "three")] {
            outer
                .insert(name(file), Node::file(content.as_bytes(), false))
                .unwrap();
        }
        let outer = Tree::Directory(outer);
        let directories = [&outer, &inner]
            .map(|tree| (tree.digest(), tree.to_bytes()))
            .to_vec();
        let files = ["one", "", "three"]
            .map(|content| (BlobDigest::of(content.as_bytes()), content.as_bytes().to_vec()))
            .into();
        (outer.digest(), Packed { directories, files })
    }

    fn bytes(packed: &Packed) -> Vec<u8> {
        let mut bytes = Vec::new();
        packed.append_to(&mut bytes);
        bytes
    }

    #[test]
    fn what_is_packed_comes_out_again() {
        let (root, packed) = packed();
        assert_eq!(Packed::from_bytes(&bytes(&packed), root, 8).unwrap(), packed);
        let leaf = Tree::Leaf(Leaf::File {
            blob: BlobDigest::of(b"leaf"),
            size: 4,
            executable: false,
        });
        let packed = Packed {
            directories: vec![(leaf.digest(), leaf.to_bytes())],
            files: [(BlobDigest::of(b"leaf"), b"leaf".to_vec())].into(),
        };
        assert_eq!(
            Packed::from_bytes(&bytes(&packed), leaf.digest(), 4).unwrap(),
            packed
        );
    }

    #[test]
    fn no_other_bytes_are_that_tree() {
        let (root, packed) = packed();
        let whole = bytes(&packed);
        for position in 0..whole.len() {
            let cut = Packed::from_bytes(&whole[..position], root, 8);
            assert!(cut.is_err(), "cut at {position}");
            let mut wrong = whole.clone();
            wrong[position] ^= 1;
            assert!(
                Packed::from_bytes(&wrong, root, 8).is_err(),
                "flipped at {position}"
            );
        }
        let more = [&whole[..], &[0]].concat();
        assert!(matches!(
            Packed::from_bytes(&more, root, 8),
            Err(PackedError::Surplus(1))
        ));
    }

    #[test]
    fn a_tree_of_more_bytes_or_files_than_expected_is_refused_before_they_are_read() {
        let (root, packed) = packed();
        let refused = Packed::from_bytes(&bytes(&packed), root, 7);
        assert!(matches!(
            refused,
            Err(PackedError::TooLarge { files: 3, bytes: 8 })
        ));
        let mut many = Directory::default();
        for number in 0..=SMALL_TREE_FILES {
            let name = PathComponent::new(number.to_string().as_bytes()).unwrap();
            let file = Node::file(&number.to_le_bytes(), false);
            many.insert(name, file).unwrap();
        }
        let many = Tree::Directory(many);
        let directories = vec![(many.digest(), many.to_bytes())];
        let packed = Packed {
            directories,
            files: BTreeMap::new(),
        };
        let refused = Packed::from_bytes(&bytes(&packed), many.digest(), u64::MAX);
        assert!(matches!(refused, Err(PackedError::TooLarge { files, .. }) if files == SMALL_TREE_FILES + 1));
        // Sizes that no number holds.
        let huge = |byte| Node::File {
            blob: BlobDigest([byte; 32]),
            size: u64::MAX,
            executable: false,
        };
        let mut two = Directory::default();
        for byte in 0..2 {
            two.insert(PathComponent::new(&[b'a' + byte]).unwrap(), huge(byte))
                .unwrap();
        }
        let two = Tree::Directory(two);
        let directories = vec![(two.digest(), two.to_bytes())];
        let packed = Packed {
            directories,
            files: BTreeMap::new(),
        };
        assert!(Packed::from_bytes(&bytes(&packed), two.digest(), u64::MAX).is_err());
    }
}
