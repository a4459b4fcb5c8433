//! Hashes as expressions write them.

use tvix_node_protocol::nix::hash::{HashAlgorithm, NixHash};

use crate::pure::hash_text;

/// Bytes of a digest.
pub(crate) fn digest_length(algorithm: HashAlgorithm) -> usize {
    match algorithm {
        HashAlgorithm::Md5 => 16,
        HashAlgorithm::Sha1 => 20,
        HashAlgorithm::Sha512 => 64,
        _ => 32,
    }
}

/// Parses a hash in any notation (see [`hash_text`]).
///
/// # Errors
/// It is none, or of another algorithm than said.
pub(crate) fn parse_hash(text: &str, algorithm: Option<HashAlgorithm>) -> Result<NixHash, String> {
    let hash = hash_text::parse(text.as_bytes(), algorithm).map_err(|error| error.to_string())?;
    NixHash::from_algorithm_and_digest(hash.algorithm, &hash.digest).map_err(|error| error.to_string())
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
