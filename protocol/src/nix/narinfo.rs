//! What a binary cache says of a path (`.narinfo`), and the public keys that its signatures are checked
//! with.

pub use nix_derivation::StoreDir;
pub use nix_narinfo::{
    BuildError as NarInfoBuildError, Compression, KeyError, MAX_NARINFO_SIZE, NarInfo, NarInfoBuilder,
    NixSignature, ParseError as NarInfoError, SignatureError, TrustedPublicKey,
};
