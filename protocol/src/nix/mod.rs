//! Nix's own formats: store paths, derivations, hashes, archives.
//!
//! A facade over the `nix-*` crates with the shape of `nix-compat`, so that replacing them touches
//! this module alone.

mod aterm;
pub mod derivation;
pub mod narinfo;
pub mod signature;
pub mod store_path;

/// Nix's base-32 alphabet.
pub mod nixbase32 {
    pub use nix_derivation::nixbase32::{decode, encode, encoded_len};
}

/// Hashes as Nix writes them, and content addresses.
pub mod hash {
    pub use nix_derivation::hash::{
        CAHash, ContentAddressMethod, Error as HashError, HashAlgorithm, NixHash, NixHasher, hash_bytes,
    };
}

/// The Nix archive format. Wrap readers and writers in buffers of 256 KiB.
pub mod nar {
    pub use nix_archive::nar::{
        Encoder, Error as NarError, Event, FileContents, ReadEvent, ReferencePattern, ReferenceScanner,
        RegularWriter, decode_events_reader,
    };
}
