//! Large files in parts of which each can be proven without the others.
//!
//! BLAKE3 is a tree: the digest of a large file is made of one hash (a *chaining value*) for each 8 MiB of it. Who keeps
//! those has 32 bytes for each 8 MiB, and can begin to serve the file, hashes and all, without having read the rest.

use blake3::Hasher;
use blake3::hazmat::{HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};

use crate::tree::BlobDigest;

/// What one part of a file, or two that are merged, contributes to the digest of the whole.
pub use blake3::hazmat::ChainingValue;

/// Bytes of each part but the last: a whole subtree of BLAKE3. Read and hashed in some milliseconds, and large enough that a
/// file of 64 GiB has 256 KiB of their hashes.
pub const SUBTREE_BYTES: u64 = 8 << 20;

/// How many parts a file of so many bytes has.
#[must_use]
pub fn subtrees_of(size: u64) -> u64 {
    size.div_ceil(SUBTREE_BYTES).max(1)
}

/// The digest of the file that has these parts. None: a file with fewer than two has no hashes of parts, its digest is all
/// there is.
#[must_use]
pub fn digest_of(parts: &[ChainingValue]) -> Option<BlobDigest> {
    let digest = (parts.len() > 1).then(|| merge(parts, true, &mut Vec::new()));
    digest.flatten().map(BlobDigest)
}

/// How many of so many neighbours, of equal length but for the last, are on the left side of the tree above them. None where
/// there is no tree above them, since there is but one, or none.
#[must_use]
pub fn left_of(count: usize) -> Option<usize> {
    // Of neighbours as of chunks.
    let chunk = blake3::CHUNK_LEN as u64;
    let left = (count > 1).then(|| left_subtree_len(count as u64 * chunk) / chunk)?;
    usize::try_from(left).ok()
}

/// What neighbours, of equal length but for the last, contribute together; the digest where they are the `whole` file. Every
/// two that are merged are appended to `pairs`, before those below them. None where there are none.
pub fn merge(
    values: &[ChainingValue],
    whole: bool,
    pairs: &mut Vec<[ChainingValue; 2]>,
) -> Option<ChainingValue> {
    let halves = left_of(values.len()).and_then(|left| values.split_at_checked(left));
    let Some((left, right)) = halves else {
        return values.first().copied();
    };
    let at = pairs.len();
    pairs.push([[0; 32]; 2]);
    let (left, right) = (merge(left, false, pairs)?, merge(right, false, pairs)?);
    pairs[at] = [left, right];
    Some(match whole {
        true => *merge_subtrees_root(&left, &right, Mode::Hash).as_bytes(),
        false => merge_subtrees_non_root(&left, &right, Mode::Hash),
    })
}

/// Hashes a file whose bytes come in pieces, and keeps the hashes of its parts.
#[derive(Debug, Clone, Default)]
pub struct BlobHasher {
    /// Of the part at hand.
    part: Hasher,
    /// Bytes it has.
    filled: u64,
    parts: Vec<ChainingValue>,
}

impl BlobHasher {
    /// The next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.filled == SUBTREE_BYTES {
                self.parts.push(self.part.finalize_non_root());
                // Not reset: the library counts from an offset that is still the old one then.
                self.part = Hasher::new();
                self.part
                    .set_input_offset(self.parts.len() as u64 * SUBTREE_BYTES);
                self.filled = 0;
            }
            let room = usize::try_from(SUBTREE_BYTES - self.filled).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.part.update(now);
            self.filled += now.len() as u64;
            bytes = later;
        }
    }

    /// The file's digest, and the hashes of its parts, in order; none where there are fewer than two.
    #[must_use]
    pub fn finalize(mut self) -> (BlobDigest, Vec<ChainingValue>) {
        if !self.parts.is_empty() {
            self.parts.push(self.part.finalize_non_root());
        }
        let whole = || BlobDigest(*self.part.finalize().as_bytes());
        let digest = digest_of(&self.parts).unwrap_or_else(whole);
        (digest, self.parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(size: usize) -> Vec<u8> {
        (0..size).map(|at| (at >> 3) as u8 ^ (at >> 14) as u8).collect()
    }

    #[test]
    fn a_file_in_pieces_has_the_digest_of_its_bytes() {
        let part = usize::try_from(SUBTREE_BYTES).unwrap();
        let all = bytes(5 * part + 7);
        let sizes = [0, 1, part - 1, part, part + 1, 2 * part, 3 * part, 3 * part + 1];
        for size in sizes.into_iter().chain([4 * part + 1000, all.len()]) {
            for piece in [part / 3 + 1, part, 3 * part] {
                let mut hasher = BlobHasher::default();
                all[..size].chunks(piece).for_each(|piece| hasher.update(piece));
                let (digest, parts) = hasher.finalize();
                assert_eq!(
                    digest,
                    BlobDigest::of(&all[..size]),
                    "{size} in pieces of {piece}"
                );
                match subtrees_of(size as u64) {
                    1 => assert!(parts.is_empty(), "{size}"),
                    many => assert_eq!(parts.len() as u64, many, "{size}"),
                }
                assert_eq!(digest_of(&parts), (parts.len() > 1).then_some(digest));
            }
        }
    }

    #[test]
    fn one_other_part_makes_another_digest() {
        let mut hasher = BlobHasher::default();
        hasher.update(&bytes(usize::try_from(SUBTREE_BYTES).unwrap() * 3));
        let (digest, parts) = hasher.finalize();
        for at in 0..parts.len() {
            let mut other = parts.clone();
            other[at][0] ^= 1;
            assert_ne!(digest_of(&other), Some(digest), "part {at}");
        }
        assert_ne!(digest_of(&parts[..2]), Some(digest));
        assert_eq!(digest_of(&parts[..1]), None);
    }
}
