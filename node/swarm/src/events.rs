//! What the swarm tells the node.

use tokio::sync::mpsc;
use tvix_node_protocol::envelope::NodeKey;

pub use crate::core::PeerStatus;
pub use crate::protocols::build::{IncomingBuild, Interest, RunningBuild, until_unwanted};
pub use crate::protocols::push::{IncomingPush, TakenPush};

/// Something has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A member is connected and has said what it offers.
    PeerUp {
        /// Who.
        peer: NodeKey,
        /// What it offers.
        status: PeerStatus,
    },
    /// It offers something else now.
    PeerChanged {
        /// Who.
        peer: NodeKey,
        /// What it offers.
        status: PeerStatus,
    },
    /// It is not connected any more.
    PeerDown {
        /// Who.
        peer: NodeKey,
    },
    /// A member was reached, but there is nothing to say to each other: another version, a clock that is
    /// wrong, a roster that one of the two does not believe.
    PeerUnusable {
        /// Who.
        peer: NodeKey,
        /// Why, and what to do.
        message: String,
    },
    /// The roster, or who is a member by it, has changed.
    RosterChanged,
}

/// Where the swarm tells the node. All are bounded; where a request is not taken out in time its sender
/// is told that this node is busy.
#[derive(Debug)]
pub struct SwarmEvents {
    /// What has changed. Notices that are not taken out are dropped when there are too many.
    pub notices: mpsc::Receiver<Notice>,
    /// Builds that have passed the gate.
    pub builds: mpsc::Receiver<IncomingBuild>,
    /// Paths others want stored here.
    pub pushes: mpsc::Receiver<IncomingPush>,
}
