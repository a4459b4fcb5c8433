//! Whole numbers and bounds, as people write them in flags and in the configuration.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

const EXPECTED: &str = "a whole number is expected, perhaps with the suffix K, M, G or T";

const TOO_LARGE: &str = "the number is too large";

/// Reads a whole number with one of the suffixes `K`, `M`, `G` and `T`, powers of 1024, as Nix does for
/// its numeric flags.
///
/// # Errors
/// What was expected, in words.
pub fn number(text: &str) -> Result<u64, &'static str> {
    let (digits, shift) = match text.char_indices().next_back() {
        Some((at, suffix)) if suffix.is_ascii_alphabetic() => {
            let shift = match suffix.to_ascii_uppercase() {
                'K' => 10,
                'M' => 20,
                'G' => 30,
                'T' => 40,
                _ => return Err(EXPECTED),
            };
            (&text[..at], shift)
        }
        _ => (text, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(EXPECTED);
    }
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or(TOO_LARGE)
}

/// A bound; none: unbounded. Written as a number, where 0 means none, as in Nix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limit(pub Option<u64>);

impl From<u64> for Limit {
    fn from(number: u64) -> Self {
        Self((number > 0).then_some(number))
    }
}

/// From a number, or from text with a suffix.
impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;

        impl Visitor<'_> for Written {
            type Value = Limit;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a whole number, or one in quotes with the suffix K, M, G or T")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Limit, E> {
                Ok(number.into())
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Limit, E> {
                let number = u64::try_from(number);
                number.map(Limit::from).map_err(|_| E::custom(EXPECTED))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Limit, E> {
                let wrong = |reason| E::custom(format!("'{text}' is no limit: {reason}"));
                number(text).map(Limit::from).map_err(wrong)
            }
        }

        deserializer.deserialize_any(Written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_nix_reads_them() {
        for (text, expected) in [
            ("0", 0),
            ("007", 7),
            ("4K", 4096),
            ("1m", 1 << 20),
            ("2G", 2 << 30),
            ("1T", 1 << 40),
        ] {
            assert_eq!(number(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            "K",
            "-1",
            "+1",
            "1.5",
            "1KB",
            "4 K",
            "１",
            "9999999999999999999999",
            "18014398509481984K",
        ] {
            assert!(number(text).is_err(), "{text}");
        }
    }
}
