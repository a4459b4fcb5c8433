//! Hashes as expressions write them.

use tvix_node_protocol::nix::hash::{HashAlgorithm, HashError, NixHash};

/// Bytes of a digest.
pub(crate) fn digest_length(algorithm: HashAlgorithm) -> usize {
    match algorithm {
        HashAlgorithm::Md5 => 16,
        HashAlgorithm::Sha1 => 20,
        HashAlgorithm::Sha512 => 64,
        _ => 32,
    }
}

/// Parses a hash in any notation: SRI, `algorithm:digits`, or bare digits of a known algorithm, in base 16, base 32
/// or base 64.
///
/// # Errors
/// It is none of these, or of another algorithm than said.
pub(crate) fn parse_hash(text: &str, algorithm: Option<HashAlgorithm>) -> Result<NixHash, String> {
    let bad = |error: HashError| format!("invalid hash '{text}': {error}");
    let tagged = text.contains(':')
        || text
            .split_once('-')
            .is_some_and(|(name, _)| name.parse::<HashAlgorithm>().is_ok());
    if !tagged {
        let Some(algorithm) = algorithm else {
            return Err(format!(
                "hash '{text}' does not include a type, nor is the type otherwise known from context"
            ));
        };
        return NixHash::parse(&format!("{algorithm}:{text}")).map_err(bad);
    }
    let hash = NixHash::parse(text).map_err(bad)?;
    match algorithm {
        Some(wanted) if wanted != hash.algorithm() => Err(format!(
            "hash '{text}' should have type '{wanted}' but has type '{}'",
            hash.algorithm()
        )),
        _ => Ok(hash),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_notations_of_a_hash_are_read() {
        let sri = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        let hash = parse_hash(sri, None).expect("SRI");
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for text in [
            hex,
            &hex.to_uppercase(),
            "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73",
            &sri[7..],
        ] {
            assert_eq!(parse_hash(text, Some(HashAlgorithm::Sha256)).expect(text), hash);
        }
        assert!(parse_hash(hex, None).is_err());
        assert!(parse_hash(sri, Some(HashAlgorithm::Sha1)).is_err());
    }
}
