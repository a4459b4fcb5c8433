//! From a store into a cache.

use std::collections::HashMap;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::io::Errno;
use sha2::{Digest, Sha256};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::nix::hash::NixHash;
use tvix_node_protocol::nix::narinfo::{Compression, NarInfo, NixSignature};
use tvix_node_protocol::nix::nixbase32;
use tvix_node_protocol::nix::signature::fingerprint;
use tvix_node_protocol::nix::store_path::STORE_DIR;
use tvix_node_protocol::path_info::{NarHash, PathInfo};

use super::{CacheError, FolderCache, GROUP};
use crate::add::known_ca;
use crate::disk::{Disk, Writing, at};
use crate::graph::references_first;
use crate::limits::NAR_BUFFER;
use crate::read::ReadError;
use crate::store::Store;

/// How long nobody has written to a file that was begun until whoever did is gone for certain, also where the clocks of two
/// machines differ. Should it come back after all, it is told that the file is missing.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// What [`FolderCache::put`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PutReport {
    /// Paths written.
    pub written: usize,
    /// Paths that were there already.
    pub present: usize,
    /// Bytes of the archives written.
    pub bytes: u64,
}

impl FolderCache {
    /// Writes a path and everything it refers to, as far as they are not there: archives without
    /// compression, and signed where the cache has a key ([`FolderCache::signing`]). All of it is on the
    /// disk when this returns. Again is nothing new: what is there stays as it is, and gets only the
    /// signature, if it lacks it.
    ///
    /// # Errors
    /// [`ReadError::NotValid`] where the store does not have it; [`CacheError::Conflict`] where the
    /// cache has other content under the name; what the file system refuses.
    pub fn put(&self, store: &Store, path: &StorePath) -> Result<PutReport, CacheError> {
        let lease = store.lease();
        if lease.hold_one(path)?.is_none() {
            return Err(ReadError::NotValid(path.clone()).into());
        }
        let infos: HashMap<StorePath, PathInfo> = store
            .closure([path])?
            .into_iter()
            .map(|info| (info.path.clone(), info))
            .collect();
        self.begin()?;
        self.remove_abandoned();
        let mut report = PutReport::default();
        let mut ready = Vec::new();
        for next in references_first(&infos, |info| &info.references) {
            let Some(info) = infos.get(next) else {
                continue;
            };
            match self.present(info)? {
                Some(present) => {
                    report.present += 1;
                    ready.extend(self.signed(&present, info)?);
                }
                None => {
                    let written = self.write_archive(store, info)?;
                    report.written += 1;
                    report.bytes += written.file_size().unwrap_or(0);
                    ready.push(written);
                }
            }
            if ready.len() >= GROUP {
                self.publish(&std::mem::take(&mut ready))?;
            }
        }
        self.publish(&ready)?;
        Ok(report)
    }

    fn begin(&self) -> Result<(), CacheError> {
        let is_cache = self.check_store_dir()?;
        let make = |folder: PathBuf| match self.disk.make_directory(at(&folder), 0o777) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(CacheError::io("make the folder", folder, error.into())),
        };
        make(begun(&self.folder))?;
        make(self.archives())?;
        make(self.begun_archives())?;
        if !is_cache {
            let text = format!("StoreDir: {STORE_DIR}\n");
            self.write_file(&self.folder.join("nix-cache-info"), text.as_bytes())?;
        }
        Ok(())
    }

    /// Files of processes that were killed. What cannot be removed is in nobody's way.
    fn remove_abandoned(&self) {
        for folder in [begun(&self.folder), self.begun_archives()] {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let written = entry.metadata().and_then(|about| about.modified());
                let age = written.ok().and_then(|written| written.elapsed().ok());
                if age.is_some_and(|age| age > ABANDONED)
                    && let Err(error) = self.disk.unlink(at(&entry.path()))
                {
                    // It may be another user's.
                    tracing::debug!(%error, file = %entry.path().display(), "what was begun could not be removed");
                }
            }
        }
    }

    /// Where archives are that have not got their names yet.
    fn begun_archives(&self) -> PathBuf {
        let device = |folder: &Path| fs::metadata(folder).ok().map(|about| about.dev());
        match device(&self.archives()) == device(&self.folder) {
            true => begun(&self.folder),
            // Names are given within one file system.
            false => begun(&self.archives()),
        }
    }

    fn archives(&self) -> PathBuf {
        self.folder.join("nar")
    }

    /// What the cache says of a path that it has whole, if it is what the store has.
    fn present(&self, info: &PathInfo) -> Result<Option<NarInfo>, CacheError> {
        let present = match self.info(&info.path) {
            // What nobody can read is of no use to anybody, so it is written anew.
            Err(CacheError::NarInfo { .. }) | Ok(None) => return Ok(None),
            Ok(Some(present)) => present,
            Err(error) => return Err(error),
        };
        if !self.has_archive(&present)? {
            return Ok(None);
        }
        let here = NixHash::Sha256(info.nar_hash.0);
        if *present.nar_hash() != here {
            return Err(CacheError::Conflict {
                path: info.path.clone(),
                cache: self.url(),
                there: present.nar_hash().to_nix_nixbase32_string(),
                here: here.to_nix_nixbase32_string(),
            });
        }
        Ok(Some(present))
    }

    /// The same with this cache's signature; nothing where it has it, or there is no key.
    fn signed(&self, present: &NarInfo, info: &PathInfo) -> Result<Option<NarInfo>, CacheError> {
        let Some(signature) = self.signature(info) else {
            return Ok(None);
        };
        if present.signatures().contains(&signature) {
            return Ok(None);
        }
        let others = present.signatures().iter().cloned();
        let builder = NarInfo::builder(
            present.store_path().clone(),
            present.url(),
            present.nar_hash().clone(),
            present.nar_size(),
        )
        .compression(present.compression().clone())
        .file_hash(present.file_hash().cloned())
        .file_size(present.file_size())
        .references(present.references().iter().cloned())
        .deriver(present.deriver().cloned())
        .content_address(present.content_address().cloned())
        .extensions(present.extensions().iter().cloned())
        .signatures(others.chain([signature]));
        let signed = builder.build().map_err(|source| CacheError::Build {
            path: info.path.clone(),
            source,
        })?;
        Ok(Some(signed))
    }

    fn signature(&self, info: &PathInfo) -> Option<NixSignature> {
        let key = self.key.as_ref()?;
        let text = fingerprint(&info.path, info.nar_hash, info.nar_size, &info.references);
        Some(key.sign(&text))
    }

    /// Writes the archive of a path, checks that it is the one that was registered, and says what is to
    /// be said of it.
    fn write_archive(&self, store: &Store, info: &PathInfo) -> Result<NarInfo, CacheError> {
        let temporary = Temporary::create(&self.disk, &self.begun_archives())?;
        let failed = |error| CacheError::io("write", &temporary.path, error);
        let computed = {
            let mut to = Hashing {
                to: BufWriter::with_capacity(NAR_BUFFER, temporary.writing()),
                hasher: Sha256::new(),
            };
            store.dump_nar(&info.path, &mut to).map_err(|error| match error {
                ReadError::Output(error) => failed(error),
                error => error.into(),
            })?;
            to.flush().map_err(failed)?;
            NarHash(to.hasher.finalize().into())
        };
        if computed != info.nar_hash {
            return Err(CacheError::Damaged {
                path: info.path.clone(),
                registered: info.nar_hash.to_nix(),
                computed: computed.to_nix(),
            });
        }
        temporary.sync()?;
        let name = format!("{}.nar", nixbase32::encode(&computed.0));
        temporary.rename(&self.archives().join(&name))?;

        let mut signatures: Vec<NixSignature> = Vec::new();
        let own = self.signature(info);
        // Those that came with it cover the same text. One that cannot be read helps nobody.
        let came = info.signatures.iter().filter_map(|text| text.parse().ok());
        for signature in came.chain(own) {
            if !signatures.contains(&signature) {
                signatures.push(signature);
            }
        }
        let hash = NixHash::Sha256(computed.0);
        NarInfo::builder(
            info.path.clone(),
            format!("nar/{name}"),
            hash.clone(),
            info.nar_size,
        )
        .compression(Compression::None)
        .file_hash(Some(hash))
        .file_size(Some(info.nar_size))
        .references(info.references.iter().cloned())
        .deriver(info.deriver.clone())
        .content_address(known_ca(info)?)
        .signatures(signatures)
        .build()
        .map_err(|source| CacheError::Build {
            path: info.path.clone(),
            source,
        })
    }

    /// Makes paths known whose archives are written, in this order.
    fn publish(&self, ready: &[NarInfo]) -> Result<(), CacheError> {
        if ready.is_empty() {
            return Ok(());
        }
        self.sync_folder(&self.archives())?;
        for info in ready {
            self.write_file(&self.info_file(info.store_path()), &info.to_canonical_bytes())?;
        }
        self.sync_folder(&self.folder)
    }

    fn sync_folder(&self, folder: &Path) -> Result<(), CacheError> {
        let synced = self.disk.sync_directory(folder);
        synced.map_err(|error| CacheError::io("sync", folder, error.source.into()))
    }

    /// Writes a small file whole or not at all.
    fn write_file(&self, file: &Path, bytes: &[u8]) -> Result<(), CacheError> {
        let temporary = Temporary::create(&self.disk, &begun(&self.folder))?;
        let written = temporary.writing().write_all(bytes);
        written.map_err(|error| CacheError::io("write", &temporary.path, error))?;
        temporary.sync()?;
        temporary.rename(file)
    }
}

/// Where the files of a folder are that have not got their names yet.
fn begun(folder: &Path) -> PathBuf {
    folder.join(".tmp")
}

struct Hashing<W> {
    to: W,
    hasher: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// A file that is removed unless it gets its name.
struct Temporary<'d> {
    disk: &'d Disk,
    path: PathBuf,
    file: OwnedFd,
    named: bool,
}

impl<'d> Temporary<'d> {
    /// In this folder, under a name that no other process and no other machine uses.
    fn create(disk: &'d Disk, folder: &Path) -> Result<Self, CacheError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        /// Each try differs from the others in the time, too.
        const TRIES: usize = 8;
        let mut tries = 0;
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let time = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |time| time.as_nanos());
            let path = folder.join(format!("{time:x}-{}-{number}", std::process::id()));
            match disk.make(&path, 0o666) {
                Ok(file) => {
                    return Ok(Self {
                        disk,
                        path,
                        file,
                        named: false,
                    });
                }
                Err(Errno::EXIST) if tries < TRIES => tries += 1,
                Err(error) => return Err(CacheError::io("make", path, error.into())),
            }
        }
    }

    fn writing(&self) -> Writing<'_> {
        Writing {
            disk: self.disk,
            file: self.file.as_fd(),
        }
    }

    fn sync(&self) -> Result<(), CacheError> {
        let synced = self.disk.sync_file(self.file.as_fd());
        synced.map_err(|error| CacheError::io("sync", &self.path, error.into()))
    }

    fn rename(mut self, to: &Path) -> Result<(), CacheError> {
        let renamed = self.disk.replace(at(&self.path), at(to));
        renamed.map_err(|error| CacheError::io("rename to", to, error.into()))?;
        self.named = true;
        Ok(())
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.named
            && let Err(error) = self.disk.unlink(at(&self.path))
        {
            tracing::warn!("cannot remove '{}': {error}", self.path.display());
        }
    }
}
