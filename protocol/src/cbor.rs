//! Deterministic CBOR: one value, one sequence of bytes.
//!
//! Signatures and content names are made over bytes, so two encodings of one value would be two
//! names for it. [`to_vec`] writes the core deterministic form of RFC 8949, section 4.2.1 (definite
//! lengths, shortest integers, map keys sorted by their encoding); [`from_slice`] refuses anything
//! else, which `ciborium` alone does not.

use ciborium::Value;
use serde::{Serialize, de::DeserializeOwned};

use crate::limits::CBOR_DEPTH;

/// Why bytes are not the deterministic encoding of a value, or a value cannot be encoded.
#[derive(Debug, thiserror::Error)]
pub enum CborError {
    /// More bytes than the place allows.
    #[error("the message has {size} bytes, more than the {limit} allowed here")]
    TooLarge {
        /// Bytes received.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Not CBOR at all, cut short, or nested too deeply.
    #[error("not well-formed CBOR (or nested deeper than {CBOR_DEPTH}): {0}")]
    Malformed(String),
    /// Bytes after the end of the value.
    #[error("{0} bytes follow the end of the value")]
    TrailingBytes(usize),
    /// Well-formed, but not in deterministic form.
    #[error("not in deterministic form (RFC 8949, section 4.2.1)")]
    NotDeterministic,
    /// The value does not have the expected structure.
    #[error("not the expected structure: {0}")]
    Structure(String),
    /// The value cannot be encoded.
    #[error("cannot be encoded: {0}")]
    Encode(String),
}

/// Encodes a value in deterministic form.
///
/// # Errors
/// [`CborError::Encode`] where the value's own `Serialize` fails.
pub fn to_vec<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, CborError> {
    let mut value = Value::serialized(value).map_err(|error| CborError::Encode(error.to_string()))?;
    sort(&mut value, 0)?;
    write(&value)
}

/// Decodes a value of at most `limit` bytes.
///
/// # Errors
/// Whatever is not the one deterministic encoding of a `T`, see [`CborError`].
pub fn from_slice<T: DeserializeOwned>(bytes: &[u8], limit: usize) -> Result<T, CborError> {
    if bytes.len() > limit {
        return Err(CborError::TooLarge {
            size: bytes.len(),
            limit,
        });
    }
    let mut rest = bytes;
    let value: Value = ciborium::de::from_reader_with_recursion_limit(&mut rest, CBOR_DEPTH)
        .map_err(|error| CborError::Malformed(error.to_string()))?;
    if !rest.is_empty() {
        return Err(CborError::TrailingBytes(rest.len()));
    }
    let mut sorted = value.clone();
    sort(&mut sorted, 0)?;
    if write(&sorted)? != bytes {
        return Err(CborError::NotDeterministic);
    }
    value
        .deserialized()
        .map_err(|error| CborError::Structure(error.to_string()))
}

fn write(value: &Value) -> Result<Vec<u8>, CborError> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).map_err(|error| CborError::Encode(error.to_string()))?;
    Ok(bytes)
}

/// Sorts the maps of `value` by their keys' encodings. The recursion ends at [`CBOR_DEPTH`].
fn sort(value: &mut Value, depth: usize) -> Result<(), CborError> {
    if depth > CBOR_DEPTH {
        return Err(CborError::Encode(format!("nested deeper than {CBOR_DEPTH}")));
    }
    match value {
        Value::Array(items) => items.iter_mut().try_for_each(|item| sort(item, depth + 1)),
        // The decoder reads through them, so a value with one would be a second encoding of that without.
        Value::Tag(..) => Err(CborError::NotDeterministic),
        Value::Map(entries) => {
            let mut keyed = Vec::with_capacity(entries.len());
            for (mut key, mut item) in entries.drain(..) {
                sort(&mut key, depth + 1)?;
                sort(&mut item, depth + 1)?;
                keyed.push((write(&key)?, key, item));
            }
            keyed.sort_by(|a, b| a.0.cmp(&b.0));
            if keyed.windows(2).any(|pair| pair[0].0 == pair[1].0) {
                return Err(CborError::NotDeterministic);
            }
            entries.extend(keyed.into_iter().map(|(_, key, item)| (key, item)));
            Ok(())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[derive(serde::Serialize, serde::Deserialize, PartialEq, Debug)]
    struct Sample {
        zebra: u64,
        ant: String,
    }

    #[test]
    fn a_struct_comes_back_and_its_keys_are_sorted() {
        let sample = Sample {
            zebra: 7,
            ant: "x".into(),
        };
        let bytes = to_vec(&sample).unwrap();
        assert_eq!(bytes[0], 0xa2);
        assert_eq!(&bytes[1..5], b"\x63ant", "the shorter key comes first");
        assert_eq!(from_slice::<Sample>(&bytes, 100).unwrap(), sample);
    }

    #[test]
    fn other_encodings_of_the_same_value_are_refused() {
        // The map {"zebra": 7, "ant": "x"} in the wrong order, then 7 in a needlessly long form,
        // then an indefinite-length map, then 7 with a tag that the decoder would read through.
        let unsorted = b"\xa2\x65zebra\x07\x63ant\x61x";
        let long_integer = b"\xa2\x63ant\x61x\x65zebra\x18\x07";
        let indefinite = b"\xbf\x63ant\x61x\x65zebra\x07\xff";
        let tagged = b"\xa2\x63ant\x61x\x65zebra\xd0\x07";
        for bytes in [&unsorted[..], long_integer, indefinite, tagged] {
            assert!(matches!(
                from_slice::<Sample>(bytes, 100),
                Err(CborError::NotDeterministic)
            ));
        }
        assert!(from_slice::<Sample>(b"\xa2\x63ant\x61x\x65zebra\x07", 100).is_ok());
    }

    #[test]
    fn a_repeated_key_is_refused() {
        let bytes = b"\xa2\x61a\x01\x61a\x02";
        assert!(from_slice::<BTreeMap<String, u8>>(bytes, 100).is_err());
    }

    #[test]
    fn size_depth_and_trailing_bytes_are_bounded() {
        assert!(matches!(
            from_slice::<u8>(b"\x01\x01", 100),
            Err(CborError::TrailingBytes(1))
        ));
        assert!(matches!(
            from_slice::<u8>(b"\x01\x01", 1),
            Err(CborError::TooLarge { size: 2, limit: 1 })
        ));
        // Arrays in arrays, the innermost empty.
        let nested = |depth: usize| [vec![0x81; depth - 1], vec![0x80]].concat();
        assert!(from_slice::<Value>(&nested(CBOR_DEPTH), 100).is_ok());
        assert!(matches!(
            from_slice::<Value>(&nested(CBOR_DEPTH + 1), 100),
            Err(CborError::Malformed(_))
        ));
        let deep = vec![0x81; 1000];
        assert!(matches!(
            from_slice::<Value>(&deep, 10_000),
            Err(CborError::Malformed(_))
        ));
    }
}
