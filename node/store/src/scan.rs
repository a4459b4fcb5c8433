//! Finding references: which store paths' hash parts occur in a tree.
//!
//! As in stock Nix, a path is referred to where the 32 characters of its hash part occur anywhere in
//! the archive of the tree: contents, names and symlink targets alike.

use std::collections::BTreeSet;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::nix::nar::{ReferencePattern, ReferenceScanner};
use tvix_node_protocol::nix::nixbase32;

/// The paths that are looked for. Made once for all outputs of a build.
#[derive(Debug, Clone)]
pub(crate) struct Candidates {
    paths: Vec<StorePath>,
    pattern: ReferencePattern,
}

impl Candidates {
    pub(crate) fn new<'a>(paths: impl IntoIterator<Item = &'a StorePath>) -> Self {
        let unique: BTreeSet<&StorePath> = paths.into_iter().collect();
        let paths: Vec<StorePath> = unique.into_iter().cloned().collect();
        let hashes = paths.iter().map(|path| nixbase32::encode(path.digest()));
        match ReferencePattern::new(hashes) {
            Ok(pattern) => Self { paths, pattern },
            Err(error) => unreachable!("the hash part of a store path is 32 characters of base 32: {error}"),
        }
    }

    pub(crate) fn scanner(&self) -> ReferenceScanner {
        self.pattern.scanner()
    }

    /// The paths that a scanner of this pattern has found.
    pub(crate) fn found(&self, scanner: &ReferenceScanner) -> BTreeSet<StorePath> {
        scanner.matches().map(|index| self.paths[index].clone()).collect()
    }
}
