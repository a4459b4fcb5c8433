//! What commands ask about the store.

use tvix_node_protocol::StorePath;
use tvix_node_protocol::control::{PathQuery, StoreAnswer, StoreQuestion};
use tvix_node_protocol::path_info::PathInfo;

use super::client::ControlClient;
use super::client_error::ClientError;
use super::route::Route;
use super::stream::{LogStream, RequestBody, Upload};

impl ControlClient {
    /// Asks about the store, or has something done with it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn ask_store(&self, question: &StoreQuestion) -> Result<StoreAnswer, ClientError> {
        self.ask_with(&Route::Store, question).await
    }

    /// The archive (NAR) of a path.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn archive(&self, path: StorePath) -> Result<LogStream, ClientError> {
        self.stream(&Route::Archive(path), RequestBody::empty()).await
    }

    /// Paths as `nix-store --export` writes them.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn export(&self, paths: Vec<StorePath>) -> Result<LogStream, ClientError> {
        let route = Route::Export;
        let body = RequestBody::json(&route, &PathQuery { paths, session: None })?;
        self.stream(&route, body).await
    }

    /// Begins to add what is in an export, which is then written to the answer. May be called on any
    /// thread.
    #[must_use]
    pub fn import(&self) -> Upload<Vec<PathInfo>> {
        self.upload(Route::Import)
    }
}
