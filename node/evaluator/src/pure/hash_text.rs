//! Hashes as text, in all the notations that Nix reads and writes (`src/libutil/hash.cc`).
//!
//! A hash is written in base 16, in Nix's base 32 or in base 64, bare (`0mdq…`), with its algorithm (`sha256:0mdq…`),
//! or as SRI (`sha256-47DE…`, always base 64). Which base it is follows from the length.

use tvix_node_protocol::nix::hash::HashAlgorithm;
use tvix_node_protocol::nix::nixbase32;

/// A text that is no hash, or not the hash it should be. The messages are stock Nix's, except for BLAKE3.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HashTextError {
    /// A word before `:` or `-` that is no algorithm.
    #[error("unknown hash algorithm '{0}', expect 'blake3', 'md5', 'sha1', 'sha256', or 'sha512'")]
    UnknownAlgorithm(String),
    /// BLAKE3, which stock Nix has only as an experimental feature.
    #[error(
        "hash algorithm 'blake3' belongs to the experimental Nix feature 'blake3-hashes', which is not supported"
    )]
    Blake3,
    /// A bare hash where the algorithm is not known.
    #[error("hash '{0}' does not include a type, nor is the type otherwise known from context")]
    NoAlgorithm(String),
    /// A hash of another algorithm than wanted.
    #[error("hash '{text}' should have type '{wanted}'")]
    OtherAlgorithm {
        /// The text.
        text: String,
        /// The algorithm that is wanted.
        wanted: HashAlgorithm,
    },
    /// As long as no notation of the algorithm.
    #[error("hash '{text}' has wrong length for hash algorithm '{algorithm}'")]
    Length {
        /// The text without its algorithm.
        text: String,
        /// The algorithm.
        algorithm: HashAlgorithm,
    },
    /// Something that is no digit of the base.
    #[error("invalid character in {base} string: '{character}', while decoding hash '{text}'")]
    Character {
        /// The base.
        base: &'static str,
        /// The character.
        character: char,
        /// The text without its algorithm.
        text: String,
    },
    /// A digest of another length.
    #[error("invalid {base} hash '{text}', length {length} != expected length {expected}")]
    DigestLength {
        /// The notation.
        base: &'static str,
        /// The text without its algorithm.
        text: String,
        /// How many bytes it has.
        length: usize,
        /// How many bytes it should have.
        expected: usize,
    },
}

/// A digest and what made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hash {
    /// The algorithm.
    pub algorithm: HashAlgorithm,
    /// As many bytes as digests of the algorithm have.
    pub digest: Vec<u8>,
}

/// A notation of hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notation {
    /// Lower-case hexadecimal digits.
    Base16,
    /// Nix's base 32.
    Nix32,
    /// Base 64 with padding.
    Base64,
    /// `algorithm-base64`
    Sri,
}

impl Notation {
    /// A notation by the name that `builtins.convertHash` has for it; `base32` is an old name of `nix32`.
    pub fn from_name(name: &[u8]) -> Option<Notation> {
        Some(match name {
            b"base16" => Notation::Base16,
            b"nix32" | b"base32" => Notation::Nix32,
            b"base64" => Notation::Base64,
            b"sri" => Notation::Sri,
            _ => return None,
        })
    }
}

/// An algorithm by its name.
///
/// # Errors
///
/// When there is none of that name, or it is not supported.
pub fn algorithm(name: &[u8]) -> Result<HashAlgorithm, HashTextError> {
    match name {
        b"md5" => Ok(HashAlgorithm::Md5),
        b"sha1" => Ok(HashAlgorithm::Sha1),
        b"sha256" => Ok(HashAlgorithm::Sha256),
        b"sha512" => Ok(HashAlgorithm::Sha512),
        b"blake3" => Err(HashTextError::Blake3),
        other => Err(HashTextError::UnknownAlgorithm(lossy(other))),
    }
}

/// How many bytes a digest has.
fn digest_length(algorithm: HashAlgorithm) -> usize {
    match algorithm {
        HashAlgorithm::Md5 => 16,
        HashAlgorithm::Sha1 => 20,
        HashAlgorithm::Sha512 => 64,
        _ => 32,
    }
}

fn lossy(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

/// Reads a hash in any notation. `wanted` is the algorithm, if it is known from elsewhere.
///
/// # Errors
///
/// When the text is no hash, or of another algorithm.
///
/// # Example
///
/// ```
/// use tvix_node_evaluator::pure::hash_text::{Notation, parse};
///
/// let hash = parse(b"md5:d41d8cd98f00b204e9800998ecf8427e", None).expect("is a hash");
/// assert_eq!(hash.to_text(Notation::Sri), "md5-1B2M2Y8AsgTpgAmY7PhCfg==");
/// ```
pub fn parse(text: &[u8], wanted: Option<HashAlgorithm>) -> Result<Hash, HashTextError> {
    let split = |separator: u8| {
        let at = text.iter().position(|&byte| byte == separator)?;
        Some((&text[..at], &text[at + 1..]))
    };
    let (name, rest, is_sri) = match (split(b':'), split(b'-')) {
        (Some((name, rest)), _) => (Some(name), rest, false),
        (None, Some((name, rest))) => (Some(name), rest, true),
        (None, None) => (None, text, false),
    };
    let named = name.map(algorithm).transpose()?;
    let algorithm = match (named, wanted) {
        (None, None) => return Err(HashTextError::NoAlgorithm(lossy(text))),
        (Some(named), Some(wanted)) if named != wanted => {
            return Err(HashTextError::OtherAlgorithm {
                text: lossy(text),
                wanted,
            });
        }
        (Some(algorithm), _) | (None, Some(algorithm)) => algorithm,
    };
    let expected = digest_length(algorithm);
    let (base, digest) = if is_sri {
        ("SRI", base64_decode(rest)?)
    } else if rest.len() == expected * 2 {
        ("base16", base16_decode(rest)?)
    } else if rest.len() == nixbase32::encoded_len(expected) {
        ("nix32", nix32_decode(rest, expected)?)
    } else if rest.len() == expected.div_ceil(3) * 4 {
        ("Base64", base64_decode(rest)?)
    } else {
        return Err(HashTextError::Length {
            text: lossy(rest),
            algorithm,
        });
    };
    if digest.len() != expected {
        return Err(HashTextError::DigestLength {
            base,
            text: lossy(rest),
            length: digest.len(),
            expected,
        });
    }
    Ok(Hash { algorithm, digest })
}

impl Hash {
    /// The hash as text. Only SRI says the algorithm.
    pub fn to_text(&self, notation: Notation) -> String {
        match notation {
            Notation::Base16 => self.digest.iter().map(|byte| format!("{byte:02x}")).collect(),
            Notation::Nix32 => nixbase32::encode(&self.digest),
            Notation::Base64 => base64_encode(&self.digest),
            Notation::Sri => format!("{}-{}", self.algorithm, base64_encode(&self.digest)),
        }
    }
}

fn base16_decode(text: &[u8]) -> Result<Vec<u8>, HashTextError> {
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .map(|digit| digit as u8)
            .ok_or_else(|| character("Base16", byte, text))
    };
    text.chunks_exact(2)
        .map(|pair| Ok(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect()
}

fn nix32_decode(text: &[u8], expected: usize) -> Result<Vec<u8>, HashTextError> {
    if let Some(&byte) = text
        .iter()
        .find(|byte| !b"0123456789abcdfghijklmnpqrsvwxyz".contains(byte))
    {
        return Err(character("Nix32 (Nix's Base32 variation)", byte, text));
    }
    // All digits are in order, so what is wrong is that they stand for one byte more.
    nixbase32::decode(text).map_err(|_| HashTextError::DigestLength {
        base: "nix32",
        text: lossy(text),
        length: expected + 1,
        expected,
    })
}

fn character(base: &'static str, byte: u8, text: &[u8]) -> HashTextError {
    HashTextError::Character {
        base,
        character: char::from(byte),
        text: lossy(text),
    }
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Stops at the first `=`, skips line feeds, needs no padding, drops what is left of the last digit: as lenient as
/// stock Nix, because there are hashes in the wild that rely on it.
fn base64_decode(text: &[u8]) -> Result<Vec<u8>, HashTextError> {
    let mut digest = Vec::with_capacity(text.len() / 4 * 3 + 2);
    let mut buffer = 0u32;
    let mut bits = 0;
    for &byte in text
        .iter()
        .take_while(|&&byte| byte != b'=')
        .filter(|&&byte| byte != b'\n')
    {
        let digit = BASE64
            .iter()
            .position(|&other| other == byte)
            .ok_or_else(|| character("Base64", byte, text))?;
        buffer = buffer << 6 | digit as u32;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            digest.push((buffer >> bits) as u8);
        }
    }
    Ok(digest)
}

fn base64_encode(digest: &[u8]) -> String {
    let mut text = String::with_capacity(digest.len().div_ceil(3) * 4);
    for chunk in digest.chunks(3) {
        let byte = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let buffer = byte(0) << 16 | byte(1) << 8 | byte(2);
        for index in 0..4 {
            let digit = BASE64[(buffer >> (18 - 6 * index)) as usize & 63];
            text.push(if index <= chunk.len() {
                char::from(digit)
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const NIX32: &str = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73";
    const BASE64_: &str = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

    fn read(text: &str, wanted: Option<HashAlgorithm>) -> Result<Hash, String> {
        parse(text.as_bytes(), wanted).map_err(|error| error.to_string())
    }

    #[test]
    fn every_notation_is_read_and_written() {
        let hash = read(&format!("sha256-{BASE64_}"), None).unwrap();
        for text in [HEX, &HEX.to_uppercase(), NIX32, BASE64_] {
            assert_eq!(
                read(text, Some(HashAlgorithm::Sha256)).as_ref(),
                Ok(&hash),
                "{text}"
            );
            assert_eq!(
                read(&format!("sha256:{text}"), None).as_ref(),
                Ok(&hash),
                "{text}"
            );
        }
        assert_eq!(hash.to_text(Notation::Base16), HEX);
        assert_eq!(hash.to_text(Notation::Nix32), NIX32);
        assert_eq!(hash.to_text(Notation::Base64), BASE64_);
        assert_eq!(hash.to_text(Notation::Sri), format!("sha256-{BASE64_}"));
    }

    #[test]
    fn digests_of_every_length() {
        for (name, length) in [("md5", 16), ("sha1", 20), ("sha256", 32), ("sha512", 64)] {
            let algorithm = algorithm(name.as_bytes()).unwrap();
            let hash = Hash {
                algorithm,
                digest: (0..length).map(|byte: u8| byte.wrapping_mul(7)).collect(),
            };
            for notation in [Notation::Base16, Notation::Nix32, Notation::Base64] {
                let text = hash.to_text(notation);
                assert_eq!(read(&text, Some(algorithm)).as_ref(), Ok(&hash), "{text}");
            }
            assert_eq!(
                read(&hash.to_text(Notation::Sri), Some(algorithm)).as_ref(),
                Ok(&hash)
            );
        }
    }

    #[test]
    fn base_64_is_lenient() {
        let hash = read(&format!("sha256-{BASE64_}"), None);
        let bare = BASE64_.trim_end_matches('=');
        for text in [
            format!("sha256-{bare}"),
            format!("sha256-{bare}=="),
            format!("sha256-{bare}=ignored"),
            format!("sha256-{}\n{}", &bare[..20], &bare[20..]),
            // The last digit has two bits too many.
            format!("sha256-{}V", &bare[..42]),
        ] {
            assert_eq!(read(&text, None), hash, "{text}");
        }
    }

    #[test]
    fn what_is_no_hash() {
        let sha256 = Some(HashAlgorithm::Sha256);
        for (text, wanted, message) in [
            (
                HEX,
                None,
                format!("hash '{HEX}' does not include a type, nor is the type otherwise known from context"),
            ),
            (
                "sha256:",
                None,
                "hash '' has wrong length for hash algorithm 'sha256'".into(),
            ),
            (
                "abc",
                sha256,
                "hash 'abc' has wrong length for hash algorithm 'sha256'".into(),
            ),
            (
                "sha1:abc",
                sha256,
                "hash 'sha1:abc' should have type 'sha256'".into(),
            ),
            (
                "sha3-abc",
                None,
                "unknown hash algorithm 'sha3', expect 'blake3', 'md5', 'sha1', 'sha256', or 'sha512'".into(),
            ),
            (
                "sha256-AAAA",
                None,
                "invalid SRI hash 'AAAA', length 3 != expected length 32".into(),
            ),
            (
                "sha256-A!",
                None,
                "invalid character in Base64 string: '!', while decoding hash 'A!'".into(),
            ),
        ] {
            assert_eq!(read(text, wanted), Err(message), "{text}");
        }
        let bad_hex = HEX.replace('e', "g");
        assert!(
            read(&bad_hex, sha256)
                .unwrap_err()
                .contains("invalid character in Base16 string: 'g'")
        );
        let bad_nix32 = NIX32.replace('q', "e");
        assert!(
            read(&bad_nix32, sha256)
                .unwrap_err()
                .contains("invalid character in Nix32")
        );
        let too_much = NIX32.replacen('0', "z", 1);
        assert!(
            read(&too_much, sha256)
                .unwrap_err()
                .ends_with("length 33 != expected length 32")
        );
        assert!(
            read(&format!("blake3:{HEX}"), None)
                .unwrap_err()
                .contains("experimental")
        );
    }
}
