//! The swarm: how the nodes of a team find, trust and serve each other.
//!
//! A *team* is named by how it began (its genesis) and made of signed statements, which every member
//! holds and passes on: the [`roster`]. There is no server. A node becomes a member by redeeming a
//! ticket at the member that made it ([`team::join`]); until then it meets no protocol but that one.
//! Members
//!
//! - tell each other what they offer, and which store paths they have: connected members are asked in one
//!   round trip, and signed, short-lived records are kept by the few members closest to a part of the key
//!   space ([`presence`]), so that a path is found whose holder one has never met;
//! - fetch trees from each other, from several at once, every byte checked as it comes
//!   ([`SwarmHandle::fetch_tree`]);
//! - ask each other to build; a request passes the [`gate`] before anything is done for it;
//! - push what they built to a store that was named.
//!
//! It is *not* for deciding whom to believe about what: path infos and build records are handed to the
//! node as they were signed, and the node's policy decides. Nor does it keep anything for long: the store
//! is behind the [`Shelf`], and what arrives waits in a spool until the store has taken it. Blobs are the
//! only thing here that iroh's protocol is used for; there is one identity, one port and one encryption:
//! TLS 1.3 as libp2p specifies it, over TCP, within QUIC, and through another member.
//!
//! Protocol logic that can be wrong in interesting ways has no socket and no clock: [`roster`],
//! [`invitations`], [`gate`], [`presence`], [`standing`], and inside, the plan of a fetch.
//!
//! ```
//! # use std::{fs::File, sync::Arc};
//! # use tvix_node_protocol::{envelope::NodeKey, messages::Shown, nix::store_path::StorePath};
//! # use tvix_node_protocol::{roster::{Founder, Roles}, tree::{BlobDigest, Tree, TreeDigest}};
//! # use tvix_node_swarm::{Clock, Config, Shelf, ShelfError, team};
//! # struct EmptyShelf;
//! # impl Shelf for EmptyShelf {
//! #     fn advertised(&self, _: Option<&StorePath>, _: usize) -> Result<Vec<StorePath>, ShelfError> { Ok(vec![]) }
//! #     fn path_info(&self, _: NodeKey, _: &StorePath) -> Result<Option<Shown>, ShelfError> { Ok(None) }
//! #     fn may_serve(&self, _: NodeKey, _: TreeDigest) -> Result<bool, ShelfError> { Ok(false) }
//! #     fn tree(&self, _: TreeDigest) -> Result<Option<Tree>, ShelfError> { Ok(None) }
//! #     fn has_blobs(&self, blobs: &[BlobDigest]) -> Result<Vec<bool>, ShelfError> { Ok(vec![false; blobs.len()]) }
//! #     fn blob(&self, _: BlobDigest) -> Result<Option<File>, ShelfError> { Ok(None) }
//! # }
//! # fn config(home: &tempfile::TempDir) -> Config {
//! #     let listen = vec!["/ip4/127.0.0.1/tcp/0".to_owned()];
//! #     Config { listen, ..Config::new(home.path().join("spool")) }
//! # }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (anns_home, bobs_home) = (tempfile::tempdir()?, tempfile::tempdir()?);
//! // Ann founds a team and takes part in it.
//! let secret = team::new_secret()?;
//! let me = Founder { key: secret.key(), name: "ann".to_owned() };
//! let team = team::Team::found(anns_home.path(), "friends", me, vec![], 1)?;
//! let (ann, _events) = tvix_node_swarm::start(config(&anns_home), team, secret, Arc::new(EmptyShelf)).await?;
//! let day = 24 * 3600;
//! let ticket = ann.invite(Roles::all(), Clock::system().now() + day, 365 * day).await?;
//!
//! // Bob redeems the ticket, takes part, and reaches Ann.
//! let secret = team::new_secret()?;
//! let team = team::join(bobs_home.path(), &secret, &ticket, "bob", &Clock::system()).await?;
//! let (bob, _events) = tvix_node_swarm::start(config(&bobs_home), team, secret, Arc::new(EmptyShelf)).await?;
//! bob.connect(ann.key()).await?;
//! assert!(ann.members().contains(bob.key()));
//! bob.shutdown().await;
//! ann.shutdown().await;
//! # Ok(())
//! # }
//! ```

mod call;
mod clock;
mod config;
mod core;
mod disk;
pub mod events;
mod fetch;
pub mod gate;
mod handle;
mod housekeeping;
pub mod identity;
pub mod invitations;
pub mod limits;
mod line;
mod machine;
mod net;
mod overview;
mod places;
pub mod presence;
mod protocols;
mod recent;
mod room;
pub mod roster;
mod shelf;
pub mod standing;
pub mod team;
pub mod underway;

pub use call::CallError;
pub use clock::Clock;
pub use config::Config;
pub use core::{Lost, PeerStatus};
pub use disk::DiskError;
pub use fetch::{
    Arrival, ArrivedBlob, FetchError, FetchOrder, FetchProgress, GrowingBlob, ProviderError, SpoolError,
    copy_blob,
};
pub use handle::{StartError, SwarmHandle, start};
pub use line::{Held, Line, Priority, Rising};
pub use machine::Machine;
pub use net::{
    Caps, ConnectError, Door, EncryptionError, OpenError, PeerTraffic, Reached, Traffic, TransportError,
    WireError,
};
pub use overview::PeerOverview;
pub use places::Places;
pub use protocols::build::{BuildCall, BuildCallError, BuildEvent, Unwanted};
pub use protocols::find::{FindScope, Holders, Through};
pub use protocols::paths::PathsError;
pub use protocols::push::PushError;
pub use shelf::{Loan, Shelf, ShelfError};

#[cfg(test)]
mod tests;
