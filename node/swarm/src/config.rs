//! How a node takes part in a team.

use std::collections::BTreeMap;
use std::path::PathBuf;

use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::messages::Facts;
use tvix_node_protocol::roster::Roles;

use crate::clock::Clock;
use crate::limits::KEPT_PEERS;
use crate::machine::Machine;
use crate::net::Caps;

/// How a node takes part in a team.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen, as multiaddresses; port 0 lets the machine choose. Empty: nobody can connect to
    /// this node, it connects to others.
    pub listen: Vec<String>,
    /// Folder for files that are arriving. Deleting it while the node is down loses nothing.
    pub spool: PathBuf,
    /// Members to stay connected with.
    pub keep_peers: usize,
    /// Look for members on the local network. Tells everyone there that a node is here.
    pub mdns: bool,
    /// Let members that cannot reach each other do so through this node: their traffic then takes up its link.
    pub relay: bool,
    /// Roles not granted by this node, whatever the roster says.
    pub distrusted: BTreeMap<NodeKey, Roles>,
    /// What this node offers at first.
    pub facts: Facts,
    /// How fast content may go out and come in at first.
    pub caps: Caps,
    /// What the teams of this node share.
    pub machine: Machine,
    /// Where the time comes from.
    pub clock: Clock,
}

impl Config {
    /// Listens on a port the machine chooses, over TCP and QUIC, on all networks.
    #[must_use]
    pub fn new(spool: PathBuf) -> Self {
        Self {
            listen: vec![
                "/ip4/0.0.0.0/tcp/0".to_owned(),
                "/ip4/0.0.0.0/udp/0/quic-v1".to_owned(),
            ],
            spool,
            keep_peers: KEPT_PEERS,
            mdns: false,
            relay: true,
            distrusted: BTreeMap::new(),
            facts: Facts::default(),
            caps: Caps::default(),
            machine: Machine::default(),
            clock: Clock::system(),
        }
    }
}
