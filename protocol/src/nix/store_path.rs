//! Store paths, and their form in messages and files.

pub use nix_derivation::store_path::{
    DIGEST_LEN, Error as StorePathError, MAX_NAME_LEN, STORE_DIR, StorePath, build_ca_path, build_text_path,
    hash_placeholder, output_path_name,
};

/// Path of a text with references, which are sorted and each there once. As [`build_text_path`], without the copies of
/// references that it makes.
pub(super) fn text_path(
    name: &str,
    content: &[u8],
    references: &[&StorePath],
) -> Result<StorePath, StorePathError> {
    use sha2::{Digest as _, Sha256};
    let mut fingerprint = Vec::with_capacity(256 + 96 * references.len());
    fingerprint.extend_from_slice(b"text");
    for reference in references {
        fingerprint.push(b':');
        super::aterm::push_path(&mut fingerprint, reference);
    }
    fingerprint.extend_from_slice(b":sha256:");
    super::aterm::push_base16(&mut fingerprint, &Sha256::digest(content));
    fingerprint.extend_from_slice(format!(":{STORE_DIR}:{name}").as_bytes());
    let mut digest = [0; DIGEST_LEN];
    for (index, byte) in Sha256::digest(&fingerprint).iter().enumerate() {
        digest[index % DIGEST_LEN] ^= byte;
    }
    StorePath::from_parts(digest, name)
}

/// The path of an object in the store, as bytes. The same as its `Display`, several times as fast.
#[must_use]
pub fn absolute_path(path: &StorePath) -> Vec<u8> {
    let mut text = Vec::with_capacity(STORE_DIR.len() + 34 + path.name().len());
    super::aterm::push_path(&mut text, path);
    text
}

/// Serde form of store paths in containers: `<hash>-<name>`, without the store directory.
///
/// Use as `#[serde(with = "tvix_node_protocol::nix::store_path::basename")]` on a field of any type
/// that implements [`Basenames`](basename::Basenames).
pub mod basename {
    use std::collections::{BTreeMap, BTreeSet};

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned, de::Error};

    use super::StorePath;

    /// A value made of store paths that travels as one made of their basenames.
    pub trait Basenames: Sized {
        /// What travels.
        type Wire: Serialize + DeserializeOwned;
        /// The form that travels.
        fn to_wire(&self) -> Self::Wire;
        /// Back from the form that travels.
        ///
        /// # Errors
        /// A message that names the basename that is not one.
        fn from_wire(wire: Self::Wire) -> Result<Self, String>;
    }

    impl Basenames for StorePath {
        type Wire = String;
        fn to_wire(&self) -> String {
            self.to_basename()
        }
        fn from_wire(wire: String) -> Result<Self, String> {
            StorePath::from_basename(wire.as_bytes())
                .map_err(|error| format!("'{wire}' is not a store path's base name: {error}"))
        }
    }

    impl<T: Basenames> Basenames for Option<T> {
        type Wire = Option<T::Wire>;
        fn to_wire(&self) -> Self::Wire {
            self.as_ref().map(T::to_wire)
        }
        fn from_wire(wire: Self::Wire) -> Result<Self, String> {
            wire.map(T::from_wire).transpose()
        }
    }

    impl<T: Basenames> Basenames for Vec<T> {
        type Wire = Vec<T::Wire>;
        fn to_wire(&self) -> Self::Wire {
            self.iter().map(T::to_wire).collect()
        }
        fn from_wire(wire: Self::Wire) -> Result<Self, String> {
            wire.into_iter().map(T::from_wire).collect()
        }
    }

    impl<T: Basenames + Ord> Basenames for BTreeSet<T> {
        type Wire = Vec<T::Wire>;
        fn to_wire(&self) -> Self::Wire {
            self.iter().map(T::to_wire).collect()
        }
        fn from_wire(wire: Self::Wire) -> Result<Self, String> {
            let length = wire.len();
            let set: Self = wire.into_iter().map(T::from_wire).collect::<Result<_, _>>()?;
            if set.len() == length {
                Ok(set)
            } else {
                Err("a store path stands twice in a set".to_owned())
            }
        }
    }

    impl<K: Clone + Ord + Serialize + DeserializeOwned, T: Basenames> Basenames for BTreeMap<K, T> {
        type Wire = BTreeMap<K, T::Wire>;
        fn to_wire(&self) -> Self::Wire {
            self.iter()
                .map(|(key, value)| (key.clone(), value.to_wire()))
                .collect()
        }
        fn from_wire(wire: Self::Wire) -> Result<Self, String> {
            wire.into_iter()
                .map(|(key, value)| Ok((key, T::from_wire(value)?)))
                .collect()
        }
    }

    /// Serialises, for `#[serde(with)]`.
    ///
    /// # Errors
    /// Those of the serialiser.
    pub fn serialize<T: Basenames, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        value.to_wire().serialize(serializer)
    }

    /// Deserialises, for `#[serde(with)]`.
    ///
    /// # Errors
    /// Those of the deserialiser, and whatever is not a store path's base name.
    pub fn deserialize<'de, T: Basenames, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        T::from_wire(T::Wire::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}
