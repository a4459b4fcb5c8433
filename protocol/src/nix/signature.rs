//! Nix's own signatures over store paths, for doors to stock Nix.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer, SigningKey};

use super::narinfo::NixSignature;
use super::store_path::StorePath;
use crate::path_info::NarHash;

/// The text that a Nix signature covers: `1;path;narHash;narSize;references`.
///
/// Source: Nix, `ValidPathInfo::fingerprint`.
#[must_use]
pub fn fingerprint(path: &StorePath, hash: NarHash, size: u64, references: &BTreeSet<StorePath>) -> String {
    let references: Vec<String> = references.iter().map(StorePath::to_absolute_path).collect();
    format!("1;{path};{};{size};{}", hash.to_nix(), references.join(","))
}

/// Why a text is not a secret key.
#[derive(Debug, thiserror::Error)]
#[error("not a Nix secret key: {reason} ('nix-store --generate-binary-cache-key' makes one)")]
pub struct SecretKeyError {
    reason: &'static str,
}

/// A key that signs store paths, with the name that stands before its signatures.
pub struct NixSecretKey {
    name: String,
    key: SigningKey,
}

impl NixSecretKey {
    /// From 32 random bytes. The name is by convention a host name and a number, `cache.example.org-1`.
    ///
    /// # Errors
    /// The name is empty or has a colon or space in it.
    pub fn from_bytes(name: &str, bytes: &[u8; 32]) -> Result<Self, SecretKeyError> {
        if name.is_empty() || name.contains(|c: char| c == ':' || c.is_whitespace() || c.is_control()) {
            let reason = "its name must not be empty, nor have a colon or space in it";
            return Err(SecretKeyError { reason });
        }
        Ok(Self {
            name: name.to_owned(),
            key: SigningKey::from_bytes(bytes),
        })
    }

    /// From what Nix keeps in a key file: `name:` and the base 64 of the secret and public halves.
    ///
    /// # Errors
    /// It is not that.
    pub fn parse(text: &str) -> Result<Self, SecretKeyError> {
        let fail = |reason| SecretKeyError { reason };
        let (name, encoded) = text
            .trim()
            .split_once(':')
            .ok_or_else(|| fail("it has no 'name:'"))?;
        let bytes = STANDARD
            .decode(encoded)
            .map_err(|_| fail("it is not in base 64"))?;
        let halves: [u8; 64] = bytes.try_into().map_err(|_| fail("it does not have 64 bytes"))?;
        let mut secret = [0; 32];
        secret.copy_from_slice(&halves[..32]);
        let key = Self::from_bytes(name, &secret)?;
        if key.key.verifying_key().as_bytes()[..] != halves[32..] {
            return Err(fail("its halves do not belong together"));
        }
        Ok(key)
    }

    /// What stands before its signatures.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What others need to trust it: `name:base64`, as in `trusted-public-keys`.
    #[must_use]
    pub fn public(&self) -> String {
        format!(
            "{}:{}",
            self.name,
            STANDARD.encode(self.key.verifying_key().as_bytes())
        )
    }

    /// Signs a [`fingerprint`].
    #[must_use]
    pub fn sign(&self, fingerprint: &str) -> NixSignature {
        let signature = self.key.sign(fingerprint.as_bytes());
        NixSignature {
            key_name: self.name.clone(),
            encoded: STANDARD.encode(signature.to_bytes()),
        }
    }
}

impl std::fmt::Debug for NixSecretKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "NixSecretKey({})", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::super::narinfo::TrustedPublicKey;
    use super::*;

    #[test]
    fn what_a_key_signs_verifies_under_its_public_half_alone() {
        let key = NixSecretKey::from_bytes("cache-1", &[5; 32]).unwrap();
        let other = NixSecretKey::from_bytes("cache-1", &[6; 32]).unwrap();
        let signature = key.sign("1;text");
        let verify = |key: &NixSecretKey, text: &[u8]| {
            let public: TrustedPublicKey = key.public().parse().unwrap();
            signature.verify(text, &[public]).unwrap()
        };
        assert!(verify(&key, b"1;text"));
        assert!(!verify(&key, b"1;other"));
        assert!(!verify(&other, b"1;text"));
    }

    #[test]
    fn key_files_are_read_and_faulty_ones_refused() {
        let made = NixSecretKey::from_bytes("cache-1", &[5; 32]).unwrap();
        let file = |secret: &[u8], public: &[u8]| {
            format!("cache-1:{}\n", STANDARD.encode([secret, public].concat()))
        };
        let public = made.key.verifying_key().to_bytes();
        let read = NixSecretKey::parse(&file(&[5; 32], &public)).unwrap();
        assert_eq!((read.name(), read.public()), ("cache-1", made.public()));
        for wrong in [
            file(&[6; 32], &public),
            file(&[5; 32], &public[1..]),
            "cache-1".to_owned(),
            ":AAAA".to_owned(),
            "cache-1:%".to_owned(),
        ] {
            let error = NixSecretKey::parse(&wrong).unwrap_err().to_string();
            assert!(error.contains("not a Nix secret key"), "{error}");
        }
    }

    #[test]
    fn the_fingerprint_has_the_form_that_nix_signs() {
        let path = |name| StorePath::from_parts([0; 20], name).unwrap();
        let references = BTreeSet::from([path("b"), path("a")]);
        assert_eq!(
            fingerprint(&path("x"), NarHash([0; 32]), 7, &references),
            "1;/nix/store/00000000000000000000000000000000-x;\
             sha256:0000000000000000000000000000000000000000000000000000;7;\
             /nix/store/00000000000000000000000000000000-a,/nix/store/00000000000000000000000000000000-b"
        );
    }
}
