//! Newtypes of 32-byte digests and keys: types carry meaning, so a tree cannot pass for a blob.

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
                use serde::de::Error;
                if deserializer.is_human_readable() {
                    return <String as serde::Deserialize>::deserialize(deserializer)?.parse().map_err(D::Error::custom);
                }
                crate::bytes::deserialize(deserializer).map(Self)
            }
        }
    };
}
pub(crate) use digest;
