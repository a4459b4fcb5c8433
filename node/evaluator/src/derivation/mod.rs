//! Derivations: `derivationStrict`, and what is remembered of those already instantiated.
//!
//! Source of the behaviour: Nix manual, "Derivations" and "Advanced attributes"; `derivationStrict` of Nix 2.34.

mod known;
mod output_hash;
mod strict;
mod structured;

pub(crate) use known::Known;
pub(crate) use output_hash::parse_hash;
pub(crate) use strict::derivation_strict;

/// The Nix text of the function `derivation`.
pub(crate) const DERIVATION_NIX: &str = include_str!("derivation.nix");

/// The Nix text of the function that makes a set of an imported `.drv` file.
pub(crate) const IMPORTED_NIX: &str = include_str!("imported.nix");

/// Folder of the files that `<nix/…>` means where the search path has no `nix`; it exists nowhere but here.
pub(crate) const COREPKGS: &[u8] = b"/__corepkgs__";

/// The text of a file in [`COREPKGS`].
pub(crate) fn corepkgs_file(path: &[u8]) -> Option<&'static str> {
    match path.strip_prefix(COREPKGS)? {
        b"/fetchurl.nix" => Some(include_str!("fetchurl.nix")),
        _ => None,
    }
}
