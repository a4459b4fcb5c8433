//! What a binary cache says of one path, and the archive that it has of it.

use std::io::{self, Read};
use std::path::Path;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::nix::hash::{HashAlgorithm, NixHash};
use tvix_node_protocol::nix::narinfo::{NarInfo, StoreDir, TrustedPublicKey};
use tvix_node_protocol::path_info::{NarHash, Origin, PathInfo};
use tvix_node_protocol::tree::TreeDigest;

use super::CacheError;
use super::decode::Decoder;
use crate::add::Prepared;
use crate::naming::Naming;
use crate::repair::RepairError;
use crate::store::Store;

/// Bytes that a packed archive may have beyond the archive itself: what cannot be packed grows by some
/// headers.
const PACKED_OVERHEAD: u64 = 1 << 20;

/// What a binary cache says of a path, and why it is believed.
#[derive(Debug, Clone)]
pub struct Cached {
    info: NarInfo,
    origin: Origin,
    cache: String,
}

impl Cached {
    /// Believes what the cache with this URL says where the path's name follows from its content, or where
    /// one of the `trusted` keys signed it. That content which names a path is really that content is
    /// checked when it is read.
    ///
    /// # Errors
    /// [`CacheError::Untrusted`], [`CacheError::Compression`]
    pub fn accept(info: NarInfo, cache: &str, trusted: &[TrustedPublicKey]) -> Result<Self, CacheError> {
        let store_dir = StoreDir::default();
        let origin = if info.is_content_addressed(&store_dir) {
            Origin::Content
        } else {
            let fingerprint = info.fingerprint(&store_dir);
            let signed = info.signatures().iter().find(|signature| {
                // One that cannot be read is no signature; another may follow.
                signature.verify(fingerprint.as_bytes(), trusted).unwrap_or(false)
            });
            match signed {
                Some(signature) => Origin::Cache {
                    url: cache.to_owned(),
                    key: signature.key_name.clone(),
                },
                None => return Err(untrusted(&info, cache, trusted)),
            }
        };
        // Said before anything is downloaded: such an archive is as good as none, and no sign of a bad cache.
        if !Decoder::knows(info.compression()) {
            return Err(unknown_packing(&info, cache));
        }
        let cache = cache.to_owned();
        Ok(Self { info, origin, cache })
    }

    /// What the cache says.
    #[must_use]
    pub fn info(&self) -> &NarInfo {
        &self.info
    }

    /// Whether one of the trusted keys vouches for it, its size included. Otherwise the path's own name does, for
    /// its content alone.
    #[must_use]
    pub fn is_signed(&self) -> bool {
        matches!(self.origin, Origin::Cache { .. })
    }

    /// Bytes that the file of the archive may have at most.
    #[must_use]
    pub fn most_bytes(&self) -> u64 {
        archive_file_bytes(&self.info)
    }

    fn path_info(&self) -> Result<PathInfo, CacheError> {
        let info = &self.info;
        let NixHash::Sha256(nar_hash) = info.nar_hash() else {
            return Err(CacheError::Algorithm {
                path: info.store_path().clone(),
                cache: self.cache.clone(),
            });
        };
        Ok(PathInfo {
            path: info.store_path().clone(),
            // Not known to a cache, and not looked at.
            tree: TreeDigest([0; 32]),
            nar_hash: NarHash(*nar_hash),
            nar_size: info.nar_size(),
            references: info.references().clone(),
            deriver: info.deriver().cloned(),
            ca: info.content_address().map(|ca| ca.to_nix_string()),
            origin: self.origin.clone(),
            registered: 0,
            signatures: info
                .signatures()
                .iter()
                .map(|signature| signature.to_nix_string())
                .collect(),
        })
    }
}

/// Bytes that the file of an archive may have at most, whatever the cache says of the file.
#[must_use]
pub fn archive_file_bytes(info: &NarInfo) -> u64 {
    let most = info.nar_size().saturating_add(PACKED_OVERHEAD);
    info.file_size().map_or(most, |size| size.min(most))
}

fn unknown_packing(info: &NarInfo, cache: &str) -> CacheError {
    CacheError::Compression {
        path: info.store_path().clone(),
        cache: cache.to_owned(),
        found: info.compression().to_string(),
    }
}

fn untrusted(info: &NarInfo, cache: &str, trusted: &[TrustedPublicKey]) -> CacheError {
    let names: Vec<&str> = info
        .signatures()
        .iter()
        .map(|signature| signature.key_name.as_str())
        .collect();
    let known = trusted.iter().find(|key| names.contains(&key.name.as_str()));
    let reason = match (names.is_empty(), known) {
        (true, _) => "it has no signature, and its name does not follow from its content".to_owned(),
        (false, Some(key)) => format!("its signature by '{}' is wrong", key.name),
        (false, None) => {
            let names = names.join("', '");
            format!("it is signed by '{names}', and no such key is trusted here")
        }
    };
    CacheError::Untrusted {
        path: info.store_path().clone(),
        cache: cache.to_owned(),
        reason,
    }
}

impl Store {
    /// Writes an archive to the side that lies in `file` as the cache has it, packed, and checks it against
    /// what the cache says.
    ///
    /// # Errors
    /// See [`CacheError`].
    pub fn prepare_cached(&self, cached: &Cached, file: &Path) -> Result<Prepared, CacheError> {
        let mut reader = open(&cached.info, &cached.cache, file)?;
        let prepared = self.prepare_nar(&mut reader, Naming::KnownArchive(cached.path_info()?))?;
        check_file(reader, &cached.info, file)?;
        Ok(prepared)
    }

    /// As [`Store::repair`], from an archive that lies in `file` as a binary cache has it. Nobody needs to
    /// be believed: it must be exactly the tree that is registered.
    ///
    /// # Errors
    /// See [`RepairError`].
    pub fn repair_cached(
        &self,
        path: &StorePath,
        info: &NarInfo,
        cache: &str,
        file: &Path,
    ) -> Result<PathInfo, RepairError> {
        let whole = |info: &NarInfo, file: &Path, registered: &PathInfo| -> Result<Prepared, CacheError> {
            let mut reader = open(info, cache, file)?;
            let prepared = self.prepare_alone(&mut reader, Naming::Known(registered.clone()))?;
            check_file(reader, info, file)?;
            Ok(prepared)
        };
        self.repair_with(path, |registered| {
            whole(info, file, registered).map_err(|error| Box::new(error).into())
        })
    }
}

fn open(info: &NarInfo, cache: &str, file: &Path) -> Result<Limited, CacheError> {
    let algorithm = info.file_hash().map_or(HashAlgorithm::Sha256, NixHash::algorithm);
    let decoder = Decoder::open(file, info.compression(), algorithm)
        .map_err(|error| CacheError::io("open", file, error))?
        .ok_or_else(|| unknown_packing(info, cache))?;
    Ok(Limited {
        left: info.nar_size(),
        from: decoder,
    })
}

/// Makes sure that nothing follows the archive, and that the file is the one that the cache describes.
fn check_file(mut reader: Limited, info: &NarInfo, file: &Path) -> Result<(), CacheError> {
    let wrong = |reason: String| CacheError::Archive {
        path: info.store_path().clone(),
        file: file.to_owned(),
        reason,
    };
    let unreadable = |error| CacheError::io("read", file, error);
    let mut more = [0];
    // The end of the archive must be the end of what is unpacked, too: only there checksums are compared.
    match reader.from.read(&mut more) {
        Ok(0) => {}
        Ok(_) => return Err(wrong("goes on after its end".to_owned())),
        Err(error) => return Err(unreadable(error)),
    }
    let (hash, size) = reader.from.finish().map_err(unreadable)?;
    if let Some(said) = info.file_size()
        && said != size
    {
        return Err(wrong(format!("has {size} bytes, not {said}")));
    }
    if let Some(said) = info.file_hash()
        && *said != hash
    {
        let (said, hash) = (said.to_nix_nixbase32_string(), hash.to_nix_nixbase32_string());
        return Err(wrong(format!("has the hash {hash}, not {said}")));
    }
    Ok(())
}

/// Refuses to unpack more than an archive should have: a small file can become a very large one.
struct Limited {
    left: u64,
    from: Decoder,
}

impl Read for Limited {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).map_or(to.len(), |left| left.min(to.len()));
        if most == 0 && !to.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it is larger than the cache says",
            ));
        }
        let read = self.from.read(&mut to[..most])?;
        self.left -= read as u64;
        Ok(read)
    }
}
