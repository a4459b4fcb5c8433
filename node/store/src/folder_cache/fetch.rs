//! From a cache into a store.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::Path;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::nix::hash::{HashAlgorithm, NixHash};
use tvix_node_protocol::nix::narinfo::{NarInfo, StoreDir, TrustedPublicKey};
use tvix_node_protocol::path_info::{NarHash, Origin, PathInfo};
use tvix_node_protocol::tree::TreeDigest;

use super::decode::Decoder;
use super::{CacheError, FolderCache, GROUP};
use crate::add::{AddError, Prepared};
use crate::graph::references_first;
use crate::leases::Lease;
use crate::limits::CLOSURE_PATHS;
use crate::naming::Naming;
use crate::store::Store;

/// What a cache says of a path, and why it is believed.
struct Accepted {
    info: NarInfo,
    origin: Origin,
}

impl FolderCache {
    /// Adds a path and everything it refers to, as far as it is not in the store: references first, each
    /// checked before it is registered. What was added before an error stays.
    ///
    /// A path is accepted where its name follows from its content, or where one of the `trusted` keys
    /// signed it.
    ///
    /// # Errors
    /// [`CacheError::NotThere`], [`CacheError::Untrusted`], and everything that is not as the cache
    /// says.
    pub fn fetch(
        &self,
        store: &Store,
        path: &StorePath,
        trusted: &[TrustedPublicKey],
        lease: &Lease,
    ) -> Result<PathInfo, CacheError> {
        if let Some(info) = lease.hold_one(path)? {
            return Ok(info);
        }
        // All of them before the first archive is read.
        let accepted = self.accept_closure(path, trusted, lease)?;
        let order = references_first(&accepted, |accepted| accepted.info.references());
        let mut group: Vec<Prepared> = Vec::new();
        for next in order {
            if let Some(accepted) = accepted.get(next) {
                group.push(self.prepare(store, accepted)?);
            }
            if group.len() >= GROUP {
                store.register(std::mem::take(&mut group), lease)?;
            }
        }
        store.register(group, lease)?;
        Ok(lease.hold_one(path)?.ok_or(AddError::Interrupted)?)
    }

    fn accept_closure(
        &self,
        root: &StorePath,
        trusted: &[TrustedPublicKey],
        lease: &Lease,
    ) -> Result<HashMap<StorePath, Accepted>, CacheError> {
        let mut accepted: HashMap<StorePath, Accepted> = HashMap::new();
        let mut wanted = vec![root.clone()];
        while let Some(path) = wanted.pop() {
            if accepted.contains_key(&path) || lease.hold_one(&path)?.is_some() {
                continue;
            }
            if accepted.len() >= CLOSURE_PATHS {
                return Err(CacheError::Closure {
                    path: root.clone(),
                    cache: self.url(),
                    limit: CLOSURE_PATHS,
                });
            }
            let info = self.info(&path)?.ok_or_else(|| CacheError::NotThere {
                path: path.clone(),
                cache: self.url(),
            })?;
            let origin = self.origin(&info, trusted)?;
            wanted.extend(info.references().iter().cloned());
            accepted.insert(path, Accepted { info, origin });
        }
        Ok(accepted)
    }

    /// Why what the cache says is believed. That content which names a path is really that content is
    /// checked when it is read.
    fn origin(&self, info: &NarInfo, trusted: &[TrustedPublicKey]) -> Result<Origin, CacheError> {
        let store_dir = StoreDir::default();
        if info.is_content_addressed(&store_dir) {
            return Ok(Origin::Content);
        }
        let fingerprint = info.fingerprint(&store_dir);
        let signed = info.signatures().iter().find(|signature| {
            // One that cannot be read is no signature; another may follow.
            signature.verify(fingerprint.as_bytes(), trusted).unwrap_or(false)
        });
        match signed {
            Some(signature) => Ok(Origin::Cache {
                url: self.url(),
                key: signature.key_name.clone(),
            }),
            None => Err(self.untrusted(info, trusted)),
        }
    }

    fn untrusted(&self, info: &NarInfo, trusted: &[TrustedPublicKey]) -> CacheError {
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
            cache: self.url(),
            reason,
        }
    }

    fn prepare(&self, store: &Store, accepted: &Accepted) -> Result<Prepared, CacheError> {
        let info = &accepted.info;
        let path = info.store_path();
        let file = self.archive_file(info)?;
        let algorithm = info.file_hash().map_or(HashAlgorithm::Sha256, NixHash::algorithm);
        let decoder = Decoder::open(&file, info.compression(), algorithm)
            .map_err(|error| CacheError::io("open", &file, error))?
            .ok_or_else(|| CacheError::Compression {
                path: path.clone(),
                cache: self.url(),
                found: info.compression().to_string(),
            })?;
        let known = self.path_info(accepted)?;
        let mut reader = Limited {
            left: known.nar_size,
            from: decoder,
        };
        let prepared = store.prepare_nar(&mut reader, Naming::KnownArchive(known))?;
        check_file(reader, info, &file)?;
        Ok(prepared)
    }

    fn path_info(&self, accepted: &Accepted) -> Result<PathInfo, CacheError> {
        let info = &accepted.info;
        let NixHash::Sha256(nar_hash) = info.nar_hash() else {
            return Err(CacheError::Algorithm {
                path: info.store_path().clone(),
                cache: self.url(),
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
            origin: accepted.origin.clone(),
            registered: 0,
            signatures: info
                .signatures()
                .iter()
                .map(|signature| signature.to_nix_string())
                .collect(),
        })
    }
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
