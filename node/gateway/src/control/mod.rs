//! The control socket: how commands talk to the node of their home.
//!
//! | file | what it has |
//! |---|---|
//! | `api` | [`ControlApi`], what the gateway needs of the node |
//! | `socket` | where the socket lies, who may use it |
//! | `route` | requests as values, read from and written to addresses |
//! | `server` | [`serve`]: connections and their ends |
//! | `answer` | from one request to its answer |
//! | `body` | bodies that come in and go out piece by piece |
//! | `client` | [`ControlClient`], the commands' half |
//! | `client_store` | what commands ask about the store |
//! | `client_team` | what commands ask about the team |
//! | `ending` | waiting for a node that was told to end |
//! | `outflow` | streams that a thread writes while they are sent |
//! | `stream` | events, uploads and logs on the commands' side |
//!
//! A session lives as long as somebody reads its events: when the connection that carries them
//! is gone, [`ControlApi::close_session`] is called, once. A session whose events nobody reads within
//! [`UNWATCHED_SESSION`](crate::limits::UNWATCHED_SESSION) is closed too, so a command that is killed
//! at any instant leaves nothing open.

mod answer;
mod api;
mod body;
mod client;
mod client_error;
mod client_store;
mod client_team;
mod ending;
mod outflow;
mod query;
mod route;
mod server;
mod socket;
mod stream;
#[cfg(test)]
mod team_tests;
#[cfg(test)]
mod testing;

pub use api::{ApiError, ControlApi, LogReader};
pub use body::{ArchiveReader, UploadBody, UploadError};
pub use client::ControlClient;
pub use client_error::ClientError;
pub use ending::Ending;
pub use outflow::Outflow;
pub use server::serve;
pub use socket::{ControlSocket, SOCKET_NAME, SocketAddress, SocketError};
pub use stream::{EventStream, LogStream, Upload};
