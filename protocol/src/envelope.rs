//! Signed messages: who says what, over bytes that have one meaning.
//!
//! Everything signed travels in one [`Envelope`]. The signature covers the domain (what kind of
//! statement), its version, and the payload *as received*; it is checked before the payload is
//! parsed, and nothing is ever encoded again to check it.

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::cbor::{self, CborError};
use crate::digest::digest;
use crate::limits::PAYLOAD_BYTES;

digest! {
    /// A node's public key (ed25519), which is also its name. Printed in base 16.
    NodeKey
}

impl NodeKey {
    /// Whether a secret can belong to this key, and to no other: whether it is a point of the curve, written as such a key
    /// is, and not one of the few of small order, for which anybody can sign.
    #[must_use]
    pub fn is_genuine(&self) -> bool {
        let written = |key: &VerifyingKey| key.to_edwards().compress().to_bytes();
        VerifyingKey::from_bytes(&self.0).is_ok_and(|key| !key.is_weak() && written(&key) == self.0)
    }
}

/// A node's secret key.
pub struct NodeSecret(SigningKey);

impl NodeSecret {
    /// From 32 random bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(bytes))
    }

    /// The 32 bytes to keep in a file that only its owner can read.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// The public half.
    #[must_use]
    pub fn key(&self) -> NodeKey {
        NodeKey(self.0.verifying_key().to_bytes())
    }

    /// Signs raw bytes with the node's key. Use [`seal`] for statements; this is for formats that
    /// are not ours.
    #[must_use]
    pub fn sign_raw(&self, bytes: &[u8]) -> [u8; 64] {
        self.0.sign(bytes).to_bytes()
    }
}

/// A kind of signed statement. The tag keeps a signature of one kind from passing as another.
pub trait Statement: Serialize + DeserializeOwned {
    /// What kind of statement, such as `build-request`. Unique in this crate.
    const DOMAIN: &'static str;
    /// The version written and understood here.
    const VERSION: u16;
}

/// A signed statement on its way: deterministic CBOR like its payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// Kind of statement.
    pub domain: String,
    /// Version of the payload.
    pub version: u16,
    /// Who signed.
    pub signer: NodeKey,
    /// The statement's deterministic encoding.
    #[serde(with = "crate::bytes::vec")]
    pub payload: Vec<u8>,
    /// Over domain, version and payload.
    #[serde(with = "crate::bytes")]
    pub signature: [u8; 64],
}

/// Why a signed message is refused.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// The envelope or its payload is not what it should be.
    #[error("the message is refused: {0}")]
    Encoding(#[from] CborError),
    /// The signature does not belong to the signer and these bytes.
    #[error("the signature does not verify under the key {0}")]
    Signature(NodeKey),
    /// Signed, but as something else.
    #[error("the message is a '{got}', not a '{wanted}'")]
    Domain {
        /// What was expected.
        wanted: &'static str,
        /// What came.
        got: String,
    },
    /// A version this program does not know.
    #[error(
        "the message is a '{domain}' of version {got}, and version {known} is understood: update {}",
        older(*.got, *.known)
    )]
    Version {
        /// Kind of statement.
        domain: &'static str,
        /// What came.
        got: u16,
        /// What is understood here.
        known: u16,
    },
}

/// Whose program is older, where `got` was signed by one and `known` is what the other one understands.
const fn older(got: u16, known: u16) -> &'static str {
    if got > known {
        "the node that refuses it"
    } else {
        "the node that signed it"
    }
}

/// Signs a statement.
///
/// # Errors
/// [`EnvelopeError::Encoding`] where it cannot be encoded or is larger than a payload may be.
pub fn seal<T: Statement>(statement: &T, secret: &NodeSecret) -> Result<Envelope, EnvelopeError> {
    let payload = cbor::to_vec(statement)?;
    if payload.len() > PAYLOAD_BYTES {
        return Err(CborError::TooLarge {
            size: payload.len(),
            limit: PAYLOAD_BYTES,
        }
        .into());
    }
    let signed = signed_bytes(T::DOMAIN, T::VERSION, &payload);
    Ok(Envelope {
        domain: T::DOMAIN.to_owned(),
        version: T::VERSION,
        signer: secret.key(),
        signature: secret.sign_raw(&signed),
        payload,
    })
}

impl Envelope {
    /// Reads an envelope of at most `limit` bytes. Nothing in it is believed yet: see
    /// [`Envelope::open`].
    ///
    /// # Errors
    /// [`EnvelopeError::Encoding`]
    pub fn from_bytes(bytes: &[u8], limit: usize) -> Result<Self, EnvelopeError> {
        Ok(cbor::from_slice(bytes, limit)?)
    }

    /// The deterministic encoding.
    ///
    /// # Errors
    /// [`EnvelopeError::Encoding`]
    pub fn to_bytes(&self) -> Result<Vec<u8>, EnvelopeError> {
        Ok(cbor::to_vec(self)?)
    }

    /// Checks the signature alone, as for a statement of an unknown version that is passed on.
    ///
    /// # Errors
    /// [`EnvelopeError::Signature`]
    pub fn verify(&self) -> Result<(), EnvelopeError> {
        let refused = || EnvelopeError::Signature(self.signer);
        let key = VerifyingKey::from_bytes(&self.signer.0).map_err(|_| refused())?;
        let signed = signed_bytes(&self.domain, self.version, &self.payload);
        key.verify_strict(&signed, &Signature::from_bytes(&self.signature))
            .map_err(|_| refused())
    }

    /// Checks size, signature, kind and version, in this order, then parses.
    ///
    /// # Errors
    /// See [`EnvelopeError`].
    pub fn open<T: Statement>(&self) -> Result<T, EnvelopeError> {
        if self.payload.len() > PAYLOAD_BYTES {
            return Err(CborError::TooLarge {
                size: self.payload.len(),
                limit: PAYLOAD_BYTES,
            }
            .into());
        }
        self.verify()?;
        if self.domain != T::DOMAIN {
            return Err(EnvelopeError::Domain {
                wanted: T::DOMAIN,
                got: self.domain.clone(),
            });
        }
        if self.version != T::VERSION {
            let (domain, got, known) = (T::DOMAIN, self.version, T::VERSION);
            return Err(EnvelopeError::Version { domain, got, known });
        }
        Ok(cbor::from_slice(&self.payload, PAYLOAD_BYTES)?)
    }

    /// BLAKE3 digest of the payload: the statement's own name.
    #[must_use]
    pub fn payload_hash(&self) -> [u8; 32] {
        *blake3::hash(&self.payload).as_bytes()
    }
}

/// Every part is preceded by its length, so no two (domain, version, payload) give the same bytes.
fn signed_bytes(domain: &str, version: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = b"tvix-node statement\0".to_vec();
    bytes.extend_from_slice(&(domain.len() as u64).to_le_bytes());
    bytes.extend_from_slice(domain.as_bytes());
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    struct Greeting(String);
    impl Statement for Greeting {
        const DOMAIN: &'static str = "greeting";
        const VERSION: u16 = 2;
    }
    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    struct Threat(String);
    impl Statement for Threat {
        const DOMAIN: &'static str = "threat";
        const VERSION: u16 = 2;
    }
    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    struct OldGreeting(String);
    impl Statement for OldGreeting {
        const DOMAIN: &'static str = "greeting";
        const VERSION: u16 = 1;
    }

    fn sealed() -> Envelope {
        seal(&Greeting("hello".into()), &NodeSecret::from_bytes(&[1; 32])).unwrap()
    }

    #[test]
    fn a_statement_comes_back_from_the_wire() {
        let bytes = sealed().to_bytes().unwrap();
        let envelope = Envelope::from_bytes(&bytes, 1000).unwrap();
        assert_eq!(envelope.open::<Greeting>().unwrap(), Greeting("hello".into()));
        assert_eq!(envelope.signer, NodeSecret::from_bytes(&[1; 32]).key());
    }

    #[test]
    fn a_change_anywhere_breaks_the_signature() {
        let changes: [fn(&mut Envelope); 5] = [
            |envelope| envelope.payload[1] ^= 1,
            |envelope| envelope.signature[7] ^= 1,
            |envelope| envelope.signer = NodeSecret::from_bytes(&[2; 32]).key(),
            |envelope| envelope.domain = "threat".into(),
            |envelope| envelope.version = 1,
        ];
        for change in changes {
            let mut envelope = sealed();
            change(&mut envelope);
            assert!(matches!(envelope.verify(), Err(EnvelopeError::Signature(_))));
            assert!(matches!(
                envelope.open::<Greeting>(),
                Err(EnvelopeError::Signature(_))
            ));
        }
    }

    #[test]
    fn one_kind_of_statement_does_not_pass_as_another() {
        assert!(matches!(
            sealed().open::<Threat>(),
            Err(EnvelopeError::Domain { .. })
        ));
    }

    /// A statement of this kind, of another version: what it says may be anything.
    fn of_version<T: Statement>(version: u16) -> Envelope {
        let (secret, payload) = (NodeSecret::from_bytes(&[1; 32]), vec![0x01]);
        Envelope {
            domain: T::DOMAIN.to_owned(),
            version,
            signer: secret.key(),
            signature: secret.sign_raw(&signed_bytes(T::DOMAIN, version, &payload)),
            payload,
        }
    }

    /// What is said to one of the version after this program's, and to one of the version before it.
    fn refused<T: Statement>() -> (&'static str, u16, [Result<T, EnvelopeError>; 2]) {
        let opened = [T::VERSION + 1, T::VERSION - 1].map(|version| of_version::<T>(version).open::<T>());
        (T::DOMAIN, T::VERSION, opened)
    }

    #[test]
    fn an_unknown_version_of_any_kind_is_refused_and_both_are_named_with_the_way_out() {
        use crate::build::{BuildRecord, BuildRequest};
        use crate::presence::{PresenceHeader, PresenceWithdrawal};
        use crate::roster::{Member, Revoked};
        fn words<T>(
            (domain, known, [newer, older]): (&'static str, u16, [Result<T, EnvelopeError>; 2]),
        ) -> (&'static str, u16, [String; 2]) {
            let word = |refused: Result<T, EnvelopeError>| refused.err().unwrap().to_string();
            (domain, known, [word(newer), word(older)])
        }
        let kinds = [
            words(refused::<BuildRequest>()),
            words(refused::<BuildRecord>()),
            words(refused::<Member>()),
            words(refused::<Revoked>()),
            words(refused::<PresenceHeader>()),
            words(refused::<PresenceWithdrawal>()),
        ];
        for (domain, known, [newer, older]) in kinds {
            let (after, before) = (known + 1, known - 1);
            assert_eq!(
                newer,
                format!(
                    "the message is a '{domain}' of version {after}, and version {known} is understood: update the node that \
                     refuses it"
                )
            );
            assert_eq!(
                older,
                format!(
                    "the message is a '{domain}' of version {before}, and version {known} is understood: update the node that \
                     signed it"
                )
            );
        }
        assert!(
            of_version::<Member>(9).verify().is_ok(),
            "it can still be passed on"
        );
        assert!(matches!(
            sealed().open::<OldGreeting>(),
            Err(EnvelopeError::Version { got: 2, known: 1, .. })
        ));
    }
}
