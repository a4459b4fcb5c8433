//! Binary caches in folders as desired stores (`file:///dir`).

use tvix_node_protocol::StorePath;

use super::depot::Depot;

/// Why paths are not in a folder.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Not yet.
    #[error("binary caches in folders are not written yet: {0}")]
    NotYet(String),
}

/// Which of these paths the folder has.
pub async fn has(_depot: &Depot, _folder: String, paths: Vec<StorePath>) -> Vec<bool> {
    vec![false; paths.len()]
}

/// Puts paths and their closures there.
pub async fn put(_depot: &Depot, folder: String, _paths: Vec<StorePath>) -> Result<(), FolderError> {
    Err(FolderError::NotYet(folder))
}

/// The same for another member.
pub async fn put_for_other(
    _depot: &Depot,
    folder: String,
    _paths: Vec<StorePath>,
) -> Result<(), crate::team::push::PushFailure> {
    Err(FolderError::NotYet(folder).into())
}
