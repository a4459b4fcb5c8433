//! Fetching for evaluations: files, archives, folders, Git and Mercurial repositories, into the store.
//!
//! What was fetched is remembered in the home (`<home>/cache/fetch`), so that it is not fetched again while it
//! counts as current, and not downloaded again where the server says that nothing has changed:
//!
//! ```text
//! cache/fetch/known/     what URLs and commits gave: store path, hash, dates
//! cache/fetch/git/       copies of Git repositories
//! cache/fetch/hg/        copies of Mercurial repositories
//! cache/fetch/work-…/    downloads and unpacked trees under way
//! ```
//!
//! All of it may be deleted at any time; nothing there is believed about the *content* of a store path.
//!
//! It runs as the user who evaluates and reaches what that user reaches. It is *not* for builds: those are the
//! builder's.

mod archive;
mod cache;
mod download;
mod export;
mod git;
mod growing;
mod limits;
mod mercurial;
mod repository;
mod work_tree;
mod zip;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tokio::runtime::Handle;
use tvix_node_evaluator::{Fetch, Fetched, HostError, Ingestion};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::control::{AddSource, AddedAs};
use tvix_node_protocol::nix::hash::NixHash;
use tvix_node_protocol::path_info::PathInfo;
use url::Url;

use crate::worker::SourceTree;
use cache::{Cache, Entry};
use limits::LEFT_BEHIND;

/// Why something cannot be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The URL is none, or of a kind that is not fetched.
    #[error("cannot fetch '{url}': {reason}")]
    Url {
        /// As the expression has it.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The server, or the way to it.
    #[error("unable to download '{url}': {reason}")]
    Download {
        /// From where.
        url: String,
        /// Why not.
        reason: String,
    },
    /// The archive is none, or damaged.
    #[error("cannot unpack '{url}': {reason}")]
    Archive {
        /// From where.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The content is not what was demanded.
    #[error("hash mismatch in {what} '{url}':\n  specified: {specified}\n  got:       {got}")]
    Mismatch {
        /// File, tree.
        what: &'static str,
        /// From where.
        url: String,
        /// What the expression says.
        specified: String,
        /// What it is.
        got: String,
    },
    /// `git` says no, or is not there.
    #[error("cannot fetch the Git repository '{url}': {reason}")]
    Git {
        /// Which repository.
        url: String,
        /// Why not.
        reason: String,
    },
    /// `hg` says no, or is not there.
    #[error("cannot fetch the Mercurial repository '{url}': {reason}")]
    Mercurial {
        /// Which repository.
        url: String,
        /// Why not.
        reason: String,
    },
    /// The home's cache cannot be used.
    #[error("'{}' cannot be {action}: {source}", .path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] HostError),
}

impl FetchError {
    fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, action, source }
    }
}

/// The store, as fetching needs it.
pub trait Store {
    /// The valid path that was added with this fingerprint; it stays as long as the evaluation.
    ///
    /// # Errors
    /// The store cannot be asked.
    fn find(&self, fingerprint: &str) -> Result<Option<StorePath>, HostError>;

    /// Adds a tree.
    ///
    /// # Errors
    /// It cannot be read, or the store does not take it.
    fn add(&self, tree: &SourceTree, source: AddSource) -> Result<PathInfo, HostError>;

    /// Where a logical path lies.
    fn physical(&self, logical: &Path) -> PathBuf;

    /// Tells the user.
    fn warn(&self, text: &str);
}

/// Fetches, and remembers what was fetched.
pub struct Fetcher {
    folder: PathBuf,
    cache: Cache,
    runtime: Handle,
}

impl Fetcher {
    /// A fetcher that remembers in `folder`. Nothing is made there before something is fetched.
    #[must_use]
    pub fn new(folder: PathBuf, runtime: Handle) -> Self {
        Self {
            cache: Cache::new(folder.join("known")),
            folder,
            runtime,
        }
    }

    /// Fetches into the store. Blocks; must not be called on a thread that drives async tasks.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub fn fetch(&self, wanted: &Fetch, store: &dyn Store) -> Result<Fetched, FetchError> {
        match wanted {
            Fetch::File {
                url,
                name,
                ingestion,
                expected,
            } => download::file(self, store, url, name, *ingestion, expected.as_ref()),
            Fetch::Archive { url, name, expected } => {
                download::unpacked(self, store, url, name, expected.as_ref())
            }
            Fetch::Path { path, name, expected } => folder(store, path, name, expected.as_ref()),
            Fetch::Git(wanted) => git::fetch(self, store, wanted),
            Fetch::Mercurial(wanted) => mercurial::fetch(self, store, wanted),
        }
    }

    /// A folder for work, removed when it is dropped.
    fn work_folder(&self) -> Result<tempfile::TempDir, FetchError> {
        fs::create_dir_all(&self.folder).map_err(FetchError::io(&self.folder, "created"))?;
        self.clear_left_behind();
        tempfile::Builder::new()
            .prefix(WORK)
            .tempdir_in(&self.folder)
            .map_err(FetchError::io(&self.folder, "written to"))
    }

    /// Removes what commands that were killed left behind. Where that fails it is tried again another time.
    fn clear_left_behind(&self) {
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return;
        };
        for entry in entries.flatten() {
            let old = entry.metadata().and_then(|metadata| metadata.modified());
            let old = old.is_ok_and(|time| {
                SystemTime::now()
                    .duration_since(time)
                    .is_ok_and(|age| age > LEFT_BEHIND)
            });
            if old
                && entry.file_name().to_string_lossy().starts_with(WORK)
                && let Err(error) = fs::remove_dir_all(entry.path())
            {
                tracing::debug!(%error, path = %entry.path().display(), "work left behind stays");
            }
        }
    }

    /// What is remembered under a key, where its store path is still there.
    fn known(&self, store: &dyn Store, key: &str) -> Result<Option<Entry>, FetchError> {
        let Some(entry) = self.cache.get(key) else {
            return Ok(None);
        };
        let there = store.find(&cache::fingerprint(key))?;
        Ok((there.as_ref() == Some(&entry.path)).then_some(entry))
    }
}

/// How folders of work begin.
const WORK: &str = "work-";

/// What to tell the store of something that was fetched.
fn adding(name: &str, ingestion: Ingestion, key: Option<&str>) -> AddSource {
    AddSource {
        name: name.to_owned(),
        method: match ingestion {
            Ingestion::Nar => AddedAs::Nar,
            Ingestion::Flat => AddedAs::Flat,
        },
        fingerprint: key.map(cache::fingerprint),
        expected: None,
        references: BTreeSet::new(),
    }
}

/// Refuses a tree that is not the one demanded.
fn check_tree(url: &str, expected: Option<&NixHash>, found: &NixHash) -> Result<(), FetchError> {
    match expected {
        Some(expected) if expected != found => Err(FetchError::Mismatch {
            what: "the tree fetched from",
            url: url.to_owned(),
            specified: expected.to_sri_string(),
            got: found.to_sri_string(),
        }),
        _ => Ok(()),
    }
}

/// The folder that a URL means, where it means one of this machine.
fn local_path(url: &str) -> Result<Option<PathBuf>, FetchError> {
    if url.starts_with('/') {
        return Ok(Some(PathBuf::from(url)));
    }
    if !url.starts_with("file:") {
        return Ok(None);
    }
    let path = Url::parse(url).ok().and_then(|url| url.to_file_path().ok());
    path.map(Some).ok_or_else(|| FetchError::Url {
        url: url.to_owned(),
        reason: "a 'file' URL needs an absolute path and no host".to_owned(),
    })
}

/// A file or folder of this machine.
fn folder(
    store: &dyn Store,
    path: &Path,
    name: &str,
    expected: Option<&NixHash>,
) -> Result<Fetched, FetchError> {
    let place = store.physical(path);
    let tree = SourceTree::new(place, None);
    let last_modified = tree.last_modified().map_err(|error| {
        HostError::caused(
            format!("'{}' cannot be put into the store", path.display()),
            error,
        )
    })?;
    let info = store.add(&tree, adding(name, Ingestion::Nar, None))?;
    let nar_hash = NixHash::Sha256(info.nar_hash.0);
    check_tree(&path.display().to_string(), expected, &nar_hash)?;
    Ok(Fetched {
        path: info.path,
        nar_hash,
        last_modified: Some(last_modified),
        git: None,
        mercurial: None,
    })
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
