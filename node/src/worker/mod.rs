//! The evaluation as the coordinator's worker: what runs in the process of a command.

mod beside;
mod host;
mod limits;
mod link;
mod offer;
mod source;

pub use host::{Messages, NodeHost, OpenLink};
pub use link::{ImportSender, Link, LinkError};
pub use source::{SourceError, SourceTree};
