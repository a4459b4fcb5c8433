//! How a path info is kept in the index: compact, and read in a few microseconds.
//!
//! Version 1 or 2, all numbers little-endian: version (u8), tree number (u64), tree digest (32), NAR hash
//! (32), NAR size (u64), registered (u64), then with a u32 length or count before each: references
//! (keys), deriver (key, empty for none), content address (empty for none), origin (u8 and its
//! fields), signatures. Version 2 is what programs that do not know imported paths must not read; it
//! is written for those alone.

use tvix_node_protocol::StorePath;
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::nix::store_path::DIGEST_LEN;
use tvix_node_protocol::path_info::{NarHash, Origin, PathInfo};
use tvix_node_protocol::tree::TreeDigest;

const FIRST: u8 = 1;
/// Has an origin that the first version does not know.
const VERSION: u8 = 2;

/// Bytes in the index are not what this program writes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Cut short.
    #[error("it ends too early")]
    Ended,
    /// Too long.
    #[error("{0} bytes follow its end")]
    Trailing(usize),
    /// Written by something newer.
    #[error("it has the version {0}, and this program knows version {VERSION}")]
    Version(u8),
    /// A field with an impossible value.
    #[error("its field '{0}' is not possible")]
    Field(&'static str),
}

/// The key of a path: hash, then name.
pub(crate) fn path_key(path: &StorePath) -> Vec<u8> {
    [path.digest().as_slice(), path.name().as_bytes()].concat()
}

/// The path with this key.
pub(crate) fn path_from_key(key: &[u8]) -> Result<StorePath, DecodeError> {
    let wrong = || DecodeError::Field("path");
    let (digest, name) = key.split_at_checked(DIGEST_LEN).ok_or_else(wrong)?;
    let digest: [u8; DIGEST_LEN] = digest.try_into().map_err(|_| wrong())?;
    let name = std::str::from_utf8(name).map_err(|_| wrong())?;
    StorePath::from_parts(digest, name).map_err(|_| wrong())
}

/// What the index keeps of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PathRecord {
    /// Number of its tree.
    pub(crate) number: u64,
    pub(crate) info: PathInfo,
}

impl PathRecord {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let info = &self.info;
        let mut to = vec![match info.origin {
            Origin::Imported => VERSION,
            _ => FIRST,
        }];
        to.extend_from_slice(&self.number.to_le_bytes());
        to.extend_from_slice(&info.tree.0);
        to.extend_from_slice(&info.nar_hash.0);
        to.extend_from_slice(&info.nar_size.to_le_bytes());
        to.extend_from_slice(&info.registered.to_le_bytes());
        count(&mut to, info.references.len());
        for reference in &info.references {
            bytes(&mut to, &path_key(reference));
        }
        bytes(&mut to, &info.deriver.as_ref().map(path_key).unwrap_or_default());
        bytes(&mut to, info.ca.as_deref().unwrap_or_default().as_bytes());
        match &info.origin {
            Origin::Content => to.push(0),
            Origin::Built => to.push(1),
            Origin::Record { builder } => {
                to.push(2);
                to.extend_from_slice(&builder.0);
            }
            Origin::Peer { peer } => {
                to.push(3);
                to.extend_from_slice(&peer.0);
            }
            Origin::Cache { url, key } => {
                to.push(4);
                bytes(&mut to, url.as_bytes());
                bytes(&mut to, key.as_bytes());
            }
            Origin::Imported => to.push(5),
        }
        count(&mut to, info.signatures.len());
        for signature in &info.signatures {
            bytes(&mut to, signature.as_bytes());
        }
        to
    }

    /// Reads the record of `path`.
    pub(crate) fn decode(path: StorePath, encoded: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Fields(encoded);
        let [version] = from.array::<1>()?;
        if !(FIRST..=VERSION).contains(&version) {
            return Err(DecodeError::Version(version));
        }
        let number = from.number()?;
        let tree = TreeDigest(from.array()?);
        let nar_hash = NarHash(from.array()?);
        let (nar_size, registered) = (from.number()?, from.number()?);
        let references = (0..from.count()?)
            .map(|_| path_from_key(from.bytes()?))
            .collect::<Result<_, _>>()?;
        let deriver = match from.bytes()? {
            [] => None,
            key => Some(path_from_key(key)?),
        };
        let ca = Some(from.text("content address")?).filter(|ca| !ca.is_empty());
        let origin = match from.array::<1>()? {
            [0] => Origin::Content,
            [1] => Origin::Built,
            [2] => Origin::Record {
                builder: NodeKey(from.array()?),
            },
            [3] => Origin::Peer {
                peer: NodeKey(from.array()?),
            },
            [4] => Origin::Cache {
                url: from.text("url")?,
                key: from.text("key")?,
            },
            [5] if version == VERSION => Origin::Imported,
            _ => return Err(DecodeError::Field("origin")),
        };
        let signatures = (0..from.count()?)
            .map(|_| from.text("signature"))
            .collect::<Result<_, _>>()?;
        if !from.0.is_empty() {
            return Err(DecodeError::Trailing(from.0.len()));
        }
        let info = PathInfo {
            path,
            tree,
            nar_hash,
            nar_size,
            references,
            deriver,
            ca,
            origin,
            registered,
            signatures,
        };
        Ok(Self { number, info })
    }
}

fn count(to: &mut Vec<u8>, count: usize) {
    // Limits on references and sizes keep all counts far below 2^32.
    to.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
}

fn bytes(to: &mut Vec<u8>, bytes: &[u8]) {
    count(to, bytes.len());
    to.extend_from_slice(bytes);
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(DecodeError::Ended)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn number(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn count(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = self.count()?;
        self.take(usize::try_from(length).map_err(|_| DecodeError::Ended)?)
    }

    fn text(&mut self, field: &'static str) -> Result<String, DecodeError> {
        let text = std::str::from_utf8(self.bytes()?).map_err(|_| DecodeError::Field(field))?;
        Ok(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn record() -> PathRecord {
        let path = |name| StorePath::from_parts([7; 20], name).unwrap();
        let info = PathInfo {
            path: path("it"),
            tree: TreeDigest([1; 32]),
            nar_hash: NarHash([2; 32]),
            nar_size: 3,
            references: [path("it"), path("other")].into(),
            deriver: Some(path("it.drv")),
            ca: Some("text:sha256:0".to_owned()),
            origin: Origin::Cache {
                url: "file:///x".to_owned(),
                key: "key-1".to_owned(),
            },
            registered: 4,
            signatures: vec!["key-1:AAAA".to_owned()],
        };
        PathRecord { number: 5, info }
    }

    #[test]
    fn only_imported_paths_are_written_so_that_older_programs_refuse_them() {
        let mut record = record();
        assert_eq!(record.encode()[0], 1);
        record.info.origin = Origin::Imported;
        let encoded = record.encode();
        assert_eq!(encoded[0], 2);
        assert_eq!(
            PathRecord::decode(record.info.path.clone(), &encoded),
            Ok(record.clone())
        );
        let mut newer = encoded;
        newer[0] = 3;
        let error = PathRecord::decode(record.info.path, &newer).unwrap_err();
        assert_eq!(error, DecodeError::Version(3));
    }

    #[test]
    fn a_changed_entry_is_refused_or_another_one() {
        let record = record();
        let encoded = record.encode();
        let decode = |bytes: &[u8]| PathRecord::decode(record.info.path.clone(), bytes);
        assert_eq!(decode(&encoded).unwrap().encode(), encoded);
        for cut in 0..encoded.len() {
            assert!(decode(&encoded[..cut]).is_err(), "{cut}");
        }
        assert!(decode(&[&encoded[..], &[0]].concat()).is_err());
        for at in 0..encoded.len() {
            for bit in 0..8 {
                let mut changed = encoded.clone();
                changed[at] ^= 1 << bit;
                if let Ok(other) = decode(&changed) {
                    assert_ne!(other.encode(), encoded, "byte {at}");
                }
            }
        }
    }
}
