//! The swarm.

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
mod net;
pub mod presence;
mod protocols;
pub mod roster;
mod shelf;
pub mod standing;
pub mod team;

pub use call::CallError;
pub use clock::Clock;
pub use config::Config;
pub use core::{Lost, PeerStatus};
pub use disk::DiskError;
pub use fetch::{Arrival, ArrivedBlob, FetchError, ProviderError, SpoolError, copy_blob};
pub use handle::{StartError, SwarmHandle, start};
pub use net::{ConnectError, Door, OpenError, PeerTraffic, Traffic, TransportError, WireError};
pub use protocols::build::{BuildCall, BuildCallError, BuildEvent, Unwanted};
pub use protocols::find::{FindScope, Holders, Through};
pub use protocols::paths::PathsError;
pub use protocols::push::PushError;
pub use shelf::{Shelf, ShelfError};

#[cfg(test)]
mod tests;
