//! What is known of a store path.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::digest::digest;
use crate::envelope::NodeKey;
use crate::nix::store_path::{StorePath, basename};
use crate::tree::TreeDigest;

digest! {
    /// The SHA-256 digest of a path's archive (NAR). Printed in base 16; Nix's own notation is
    /// [`NarHash::to_nix`].
    NarHash
}

impl NarHash {
    /// `sha256:<base 32>`, as Nix prints it.
    #[must_use]
    pub fn to_nix(self) -> String {
        crate::nix::hash::NixHash::Sha256(self.0).to_nix_nixbase32_string()
    }
}

/// Where a path in the store came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Origin {
    /// Named by its content: a source, a derivation, a fixed output. Nobody has to be believed.
    Content,
    /// Built by this node.
    Built,
    /// Built by another node, whose record was accepted.
    Record {
        /// Who signed the record.
        builder: NodeKey,
    },
    /// Taken from a member's store on its word.
    Peer {
        /// Whose word.
        peer: NodeKey,
    },
    /// Taken from a binary cache.
    Cache {
        /// The cache's URL.
        url: String,
        /// The name of the key that signed it.
        key: String,
    },
    /// Given by the owner of this node, from an export.
    Imported,
}

/// What is known of a store path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathInfo {
    /// The path.
    #[serde(with = "basename")]
    pub path: StorePath,
    /// Its content.
    pub tree: TreeDigest,
    /// Digest of its archive.
    pub nar_hash: NarHash,
    /// Bytes of its archive.
    pub nar_size: u64,
    /// Store paths whose names occur in its content, itself included where it does.
    #[serde(with = "basename")]
    pub references: BTreeSet<StorePath>,
    /// The derivation that made it.
    #[serde(with = "basename")]
    pub deriver: Option<StorePath>,
    /// Its content address in Nix's notation (`fixed:r:sha256:…`, `text:sha256:…`), where it has one.
    pub ca: Option<String>,
    /// Where it came from.
    pub origin: Origin,
    /// When it was registered, in seconds since 1970.
    pub registered: u64,
    /// Nix signatures (`name:base64`) that came with it.
    pub signatures: Vec<String>,
}
