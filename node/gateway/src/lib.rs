//! The doors of a node: what lets others in, and what those others use to knock.
//!
//! So far there is one door, the [`control`] socket: HTTP/1.1 on a Unix socket in the node's home,
//! for the commands of the node's owner and for curl. Its messages are those of
//! [`tvix_node_protocol::control`]. This crate has both halves: [`control::serve`] answers
//! requests with whatever implements [`control::ControlApi`], and [`control::ControlClient`] asks.
//!
//! It does *not* decide anything: what a session is, what gets built and what lies in the store is
//! behind [`control::ControlApi`], which the node implements. Doors for stock Nix (binary cache, daemon
//! protocol) will stand beside `control`.
//!
//! ```
//! use tvix_node_gateway::control::{ClientError, ControlClient};
//!
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
//! # runtime.block_on(async {
//! let home = tempfile::tempdir()?;
//! // Nobody is up in an empty home, and that is an answer of its own:
//! let error = ControlClient::connect(home.path()).await.err();
//! assert!(matches!(error, Some(ClientError::NoNode { .. })));
//! # Ok::<(), std::io::Error>(())
//! # })?;
//! # Ok::<(), std::io::Error>(())
//! ```

pub mod control;
pub mod limits;
