//! Store paths, and their form in messages and files.

pub use nix_derivation::store_path::{
    DIGEST_LEN, Error as StorePathError, MAX_NAME_LEN, STORE_DIR, StorePath, build_ca_path, build_text_path,
    hash_placeholder, output_path_name,
};

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
