//! What commands ask about the store.

use tvix_node_protocol::control::{StoreAnswer, StoreQuestion};

use super::client::ControlClient;
use super::client_error::ClientError;
use super::route::Route;

impl ControlClient {
    /// Asks about the store, or has something done with it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn ask_store(&self, question: &StoreQuestion) -> Result<StoreAnswer, ClientError> {
        self.ask_with(&Route::Store, question).await
    }
}
