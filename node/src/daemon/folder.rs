//! Binary caches in folders as desired stores (`file:///dir`).

use std::path::Path;

use tvix_node_protocol::StorePath;
use tvix_node_store::{CacheError, FolderCache};

use super::depot::{Depot, DepotError};

/// Why paths are not in a folder.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The cache or the store.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The thread that did it is gone.
    #[error(transparent)]
    Depot(#[from] DepotError),
    /// Somebody else's folder must be meant for this.
    #[error(
        "the folder '{0}' of this builder is no binary cache (it has no 'nix-cache-info'), so nothing is put there for \
         others"
    )]
    NotACache(String),
}

/// Which of these paths the folder has. One that cannot be read has none: the push that follows will say
/// why.
pub async fn has(depot: &Depot, folder: String, paths: Vec<StorePath>) -> Vec<bool> {
    let count = paths.len();
    let asked = depot
        .blocking(move |_| Ok(FolderCache::open(Path::new(&folder)).and_then(|cache| cache.has(&paths))));
    match asked.await {
        Ok(Ok(has)) => has,
        Ok(Err(error)) => {
            tracing::info!(%error, "the desired store could not be asked what it has");
            vec![false; count]
        }
        Err(error) => {
            tracing::error!(%error, "the desired store could not be asked what it has");
            vec![false; count]
        }
    }
}

/// Puts paths of the store, with their closures, into a folder of this machine.
pub async fn put(depot: &Depot, folder: String, paths: Vec<StorePath>) -> Result<(), FolderError> {
    let lease = depot.lease();
    let put = depot.blocking(move |store| {
        // They stay meanwhile.
        lease.hold(paths.iter())?;
        let put = |cache: FolderCache| paths.iter().try_for_each(|path| cache.put(store, path).map(drop));
        Ok(FolderCache::open(Path::new(&folder)).and_then(put))
    });
    Ok(put.await??)
}

/// The same for another member: only into a folder that is a binary cache already. A name that means
/// nothing on this machine, or something else, is not written to.
pub async fn put_for_other(depot: &Depot, folder: String, paths: Vec<StorePath>) -> Result<(), FolderError> {
    let marker = Path::new(&folder).join("nix-cache-info");
    if Path::new(&folder).is_dir() && !marker.is_file() {
        return Err(FolderError::NotACache(folder));
    }
    put(depot, folder, paths).await
}
