//! A binary cache in a folder (`file:///dir`): what `nix copy --to file:///dir` makes and stock Nix
//! substitutes from.
//!
//! `nix-cache-info` says of which store directory the cache is. `<hash>.narinfo` says what is known of
//! one path and where its archive lies, usually in `nar/`. A path is there when both are; so the
//! archive is written first, then the `.narinfo`, after those of the paths it refers to, each in
//! `.tmp/` and then renamed. The folder may be shared with stock Nix and with other machines at
//! the same time; what a process that was killed left in `.tmp/` goes a day later.
//!
//! Source: Nix manual, "HTTP Binary Cache Store" and "Local Binary Cache Store"; Nix,
//! `BinaryCacheStore` and `LocalBinaryCacheStore`.

mod cached;
mod decode;
mod error;
mod fetch;
mod put;

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use crate::limits::CACHE_INFO_BYTES;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::nix::narinfo::{MAX_NARINFO_SIZE, NarInfo, StoreDir};
use tvix_node_protocol::nix::nixbase32;
use tvix_node_protocol::nix::signature::NixSecretKey;
use tvix_node_protocol::nix::store_path::STORE_DIR;

use crate::disk::Disk;

pub use cached::{Cached, archive_file_bytes};
pub use error::CacheError;
pub use put::PutReport;

/// Paths that are published or registered together, so that they share the syncs of directories and
/// index. What was done of a closure before an interruption is kept, up to so many paths.
const GROUP: usize = 64;

/// A binary cache in a folder of this machine. See the [module](self).
#[derive(Debug)]
pub struct FolderCache {
    folder: PathBuf,
    key: Option<NixSecretKey>,
    disk: Disk,
}

impl FolderCache {
    /// Opens the cache in a folder, which must be there; it may be empty. Nothing is written yet.
    ///
    /// # Errors
    /// [`CacheError::NoFolder`]; [`CacheError::StoreDir`] for a cache of another store directory.
    pub fn open(folder: &Path) -> Result<Self, CacheError> {
        Self::open_on(folder, Disk::default())
    }

    pub(crate) fn open_on(folder: &Path, disk: Disk) -> Result<Self, CacheError> {
        let folder = std::path::absolute(folder).map_err(|error| CacheError::io("look at", folder, error))?;
        match fs::metadata(&folder) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(CacheError::NotAFolder(folder)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(CacheError::NoFolder(folder));
            }
            Err(error) => return Err(CacheError::io("look at", folder, error)),
        }
        let key = None;
        let cache = Self { folder, key, disk };
        cache.check_store_dir()?;
        Ok(cache)
    }

    /// Signs with this key whatever is put from now on.
    #[must_use]
    pub fn signing(mut self, key: NixSecretKey) -> Self {
        self.key = Some(key);
        self
    }

    /// The cache's URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("file://{}", self.folder.display())
    }

    /// Which of these paths are there: their `.narinfo`, and the archive with the size it says. What
    /// they refer to is not looked at.
    ///
    /// # Errors
    /// A `.narinfo` that is there and cannot be read or understood.
    pub fn has(&self, paths: &[StorePath]) -> Result<Vec<bool>, CacheError> {
        let one = |path| match self.info(path)? {
            Some(info) => self.has_archive(&info),
            None => Ok(false),
        };
        paths.iter().map(one).collect()
    }

    /// What the cache says of a path; nothing where it does not know it. Not believed by itself: see
    /// [`FolderCache::fetch`].
    ///
    /// # Errors
    /// A `.narinfo` that is there and cannot be read or understood, or speaks of another path.
    pub fn info(&self, path: &StorePath) -> Result<Option<NarInfo>, CacheError> {
        let file = self.info_file(path);
        let Some(bytes) = read_bounded(&file, MAX_NARINFO_SIZE as u64)? else {
            return Ok(None);
        };
        let info = NarInfo::parse_in(&StoreDir::default(), &bytes).map_err(|source| CacheError::NarInfo {
            file: file.clone(),
            source,
        })?;
        if info.store_path() != path {
            return Err(CacheError::OtherPath {
                file,
                path: path.clone(),
                found: info.store_path().clone(),
            });
        }
        Ok(Some(info))
    }

    fn info_file(&self, path: &StorePath) -> PathBuf {
        let hash = nixbase32::encode(path.digest());
        self.folder.join(format!("{hash}.narinfo"))
    }

    fn has_archive(&self, info: &NarInfo) -> Result<bool, CacheError> {
        let file = self.archive_file(info)?;
        match fs::metadata(&file) {
            Ok(metadata) => {
                let size = info.file_size().unwrap_or(metadata.len());
                Ok(metadata.is_file() && metadata.len() == size)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(CacheError::io("look at", file, error)),
        }
    }

    /// Where the archive of a path lies: always below the folder.
    ///
    /// # Errors
    /// [`CacheError::Url`]
    pub fn archive_file(&self, info: &NarInfo) -> Result<PathBuf, CacheError> {
        let relative = Path::new(info.url());
        let is_name = |component| matches!(component, Component::Normal(_));
        if !relative.components().all(is_name) || info.url().contains(['\0', ':', '?', '#', '%']) {
            return Err(CacheError::Url {
                path: info.store_path().clone(),
                cache: self.url(),
                archive: info.url().to_owned(),
            });
        }
        Ok(self.folder.join(relative))
    }

    /// True where `nix-cache-info` is there and says the right thing.
    fn check_store_dir(&self) -> Result<bool, CacheError> {
        let file = self.folder.join("nix-cache-info");
        let Some(bytes) = read_bounded(&file, CACHE_INFO_BYTES)? else {
            return Ok(false);
        };
        let text = String::from_utf8_lossy(&bytes);
        let found = text.lines().find_map(|line| line.strip_prefix("StoreDir:"));
        match found.map(str::trim) {
            None | Some(STORE_DIR) => Ok(true),
            Some(found) => Err(CacheError::StoreDir {
                cache: self.url(),
                found: found.to_owned(),
            }),
        }
    }
}

/// All of a small file, or nothing where it is not there. More than `limit` bytes are cut one byte
/// after it, for the parser to refuse.
fn read_bounded(file: &Path, limit: u64) -> Result<Option<Vec<u8>>, CacheError> {
    let opened = match File::open(file) {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(CacheError::io("open", file, error)),
    };
    let mut bytes = Vec::new();
    let read = opened.take(limit + 1).read_to_end(&mut bytes);
    read.map_err(|error| CacheError::io("read", file, error))?;
    Ok(Some(bytes))
}
