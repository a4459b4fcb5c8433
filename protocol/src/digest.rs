//! Newtypes of 32-byte digests and keys: types carry meaning, so a tree cannot pass for a blob.

use serde::de;

/// Reads a digest in base 16 or as bytes. What is inside an enum with a tag comes by way of a buffer of
/// serde's, which says that it is for people whatever it was filled from.
pub(crate) struct Either<T>(pub(crate) std::marker::PhantomData<T>);

impl<T> de::Visitor<'_> for Either<T>
where
    T: std::str::FromStr<Err = String> + From<[u8; 32]>,
{
    type Value = T;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a digest of 32 bytes")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<T, E> {
        let bytes: [u8; 32] = bytes
            .try_into()
            .map_err(|_| E::invalid_length(bytes.len(), &self))?;
        Ok(bytes.into())
    }
}

macro_rules! digest {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl std::fmt::Display for $name {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(formatter, "{self}")
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                match blake3::Hash::from_hex(text) {
                    Ok(hash) => Ok(Self(*hash.as_bytes())),
                    Err(error) => Err(format!("'{text}' is not a BLAKE3 digest in base 16: {error}")),
                }
            }
        }

        impl From<[u8; 32]> for $name {
            fn from(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }
        }

        /// Base 16 in formats for people, 32 bytes elsewhere.
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.serialize_bytes(&self.0)
                }
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    return deserializer.deserialize_any($crate::digest::Either::<Self>(std::marker::PhantomData));
                }
                crate::bytes::deserialize(deserializer).map(Self)
            }
        }
    };
}
pub(crate) use digest;
