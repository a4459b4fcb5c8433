//! The network: libp2p, and the doors our own protocols go through.

mod absent;
mod arriving;
pub(crate) mod caps;
pub(crate) mod contacts;
mod counters;
mod dial_back;
mod dialling;
pub(crate) mod door;
pub(crate) mod doors;
pub(crate) mod driver;
mod ending;
pub(crate) mod gatekeeper;
pub(crate) mod handler;
pub(crate) mod links;
pub(crate) mod listening;
mod members_only;
pub(crate) mod network;
pub(crate) mod reachability;
mod redial;
pub(crate) mod relay_messages;
pub(crate) mod relaying;
pub(crate) mod relays;
mod silence;
mod tls;
pub(crate) mod transport;
pub(crate) mod wire;
mod yamux;

pub use caps::Caps;
pub use counters::{PeerTraffic, Traffic};
pub use door::Door;
pub use doors::OpenError;
pub use network::ConnectError;
pub use reachability::Reached;
pub use tls::EncryptionError;
pub use transport::TransportError;
pub use wire::WireError;
