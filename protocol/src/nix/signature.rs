//! Nix's own signatures over store paths, for doors to stock Nix.

use std::collections::BTreeSet;

use super::store_path::StorePath;
use crate::path_info::NarHash;

/// The text that a Nix signature covers: `1;path;narHash;narSize;references`.
///
/// Source: Nix, `ValidPathInfo::fingerprint`.
#[must_use]
pub fn fingerprint(path: &StorePath, hash: NarHash, size: u64, references: &BTreeSet<StorePath>) -> String {
    let references: Vec<String> = references.iter().map(StorePath::to_absolute_path).collect();
    format!("1;{path};{};{size};{}", hash.to_nix(), references.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_has_the_form_that_nix_signs() {
        let path = |name| StorePath::from_parts([0; 20], name).unwrap();
        let references = BTreeSet::from([path("b"), path("a")]);
        assert_eq!(
            fingerprint(&path("x"), NarHash([0; 32]), 7, &references),
            "1;/nix/store/00000000000000000000000000000000-x;\
             sha256:0000000000000000000000000000000000000000000000000000;7;\
             /nix/store/00000000000000000000000000000000-a,/nix/store/00000000000000000000000000000000-b"
        );
    }
}
