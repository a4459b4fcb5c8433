//! What is said to the task that owns libp2p, and what it says.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use libp2p::Multiaddr;
use libp2p::swarm::{ConnectionId, Stream};
use tokio::sync::{mpsc, oneshot, watch};
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::messages::ListenPort;

use super::absent::Absent;
use super::door::Door;
use super::doors::OpenError;
use super::links::{Link, Links};
use super::reachability::SharedReachability;
use crate::limits::CONNECT_TIME;

/// Why a peer could not be reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The key is not one.
    #[error("{0} is not the key of a node")]
    NotAKey(NodeKey),
    /// It is not a member, so nothing is said to it; it may be connected as a stranger.
    #[error("cannot reach {0}: it is not a member of the team")]
    NotAMember(NodeKey),
    /// No address is known, or none works.
    #[error("cannot reach {peer}: {reason}")]
    Unreachable {
        /// Who.
        peer: NodeKey,
        /// What was tried, and what came of it.
        reason: String,
    },
    /// The node is shutting down.
    #[error("this node is shutting down")]
    ShuttingDown,
}

pub(crate) enum Command {
    /// Makes a connection, or finds that there is one.
    Connect {
        peer: NodeKey,
        reply: oneshot::Sender<Result<(), ConnectError>>,
    },
    /// Opens a stream to a connected peer. `over`: the only connection that will do.
    Open {
        peer: NodeKey,
        over: Option<ConnectionId>,
        door: Door,
        reply: oneshot::Sender<Result<Stream, OpenError>>,
    },
    /// The members closest to a label, the closest first, this node left out.
    Closest {
        label: Vec<u8>,
        walk: bool,
        reply: oneshot::Sender<Vec<NodeKey>>,
    },
    /// Dials a member that asked for it, anew at each port of a machine, and says where it answered; no reply where
    /// there are too many such dials.
    DialBack {
        peer: NodeKey,
        machine: IpAddr,
        ports: Vec<ListenPort>,
        reply: oneshot::Sender<Vec<ListenPort>>,
    },
    /// The roster has changed.
    MembersChanged {
        /// Who is no member, but would be again with a new statement: where they can be reached is not
        /// forgotten.
        waiting: BTreeSet<NodeKey>,
    },
    /// This node takes part in so many teams: this one has its part of the connections.
    Teams(u32),
    /// Closes all connections to a peer.
    Disconnect {
        peer: NodeKey,
    },
    Shutdown,
}

/// What the network reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NetEvent {
    /// This node made a connection to a member.
    Dialled(NodeKey),
    /// The last connection to a member is gone.
    Gone(NodeKey),
}

/// Speaks to the driver.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) addresses: watch::Receiver<Vec<Multiaddr>>,
    pub(super) connected: watch::Receiver<BTreeSet<NodeKey>>,
    pub(super) links: Links,
    pub(super) absent: Absent,
    pub(super) reachability: SharedReachability,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Command")
    }
}

impl Network {
    pub(crate) async fn send(&self, command: Command) -> bool {
        self.commands.send(command).await.is_ok()
    }

    pub(crate) async fn connect(&self, peer: NodeKey) -> Result<(), ConnectError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Connect { peer, reply }).await;
        match tokio::time::timeout(CONNECT_TIME, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(ConnectError::ShuttingDown),
            Err(_) => Err(ConnectError::Unreachable {
                peer,
                reason: format!("no answer within {} s", CONNECT_TIME.as_secs()),
            }),
        }
    }

    /// Closes all connections to a peer, and waits until they are.
    pub(crate) async fn disconnect(&self, peer: NodeKey) {
        let mut connected = self.connected.clone();
        self.send(Command::Disconnect { peer }).await;
        let gone = connected.wait_for(|connected| !connected.contains(&peer));
        // Slow to close: what is asked next will show.
        tokio::time::timeout(CONNECT_TIME, gone).await.ok();
    }

    pub(crate) async fn open(&self, peer: NodeKey, door: Door) -> Result<Stream, OpenError> {
        self.open_at(peer, None, door).await
    }

    /// Opens a stream over this connection and no other.
    pub(crate) async fn open_over(
        &self,
        peer: NodeKey,
        over: ConnectionId,
        door: Door,
    ) -> Result<Stream, OpenError> {
        self.open_at(peer, Some(over), door).await
    }

    async fn open_at(
        &self,
        peer: NodeKey,
        over: Option<ConnectionId>,
        door: Door,
    ) -> Result<Stream, OpenError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Open {
            peer,
            over,
            door,
            reply,
        };
        self.send(command).await;
        // Its connection was closed in this very moment, or there is no driver any more.
        answer.await.unwrap_or_else(|_| {
            Err(if self.commands.is_closed() {
                OpenError::ShuttingDown
            } else {
                OpenError::NotConnected
            })
        })
    }

    pub(crate) async fn closest(&self, label: Vec<u8>, walk: bool) -> Vec<NodeKey> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Closest { label, walk, reply }).await;
        answer.await.unwrap_or_default()
    }

    pub(crate) fn addresses(&self) -> Vec<Multiaddr> {
        self.addresses.borrow().clone()
    }

    pub(crate) fn connected(&self) -> BTreeSet<NodeKey> {
        self.connected.borrow().clone()
    }

    /// The connections to a member, as they are now.
    pub(crate) fn link(&self, peer: NodeKey) -> Link {
        self.links.get(peer)
    }

    /// How long to wait until a member that is not connected is, and has answered a question; none: not at all.
    pub(crate) fn dial_patience(&self, peer: NodeKey) -> Option<Duration> {
        self.absent.patience(peer, Instant::now())
    }

    /// Whether a member was connected, and is gone.
    pub(crate) fn is_lost(&self, peer: NodeKey) -> bool {
        self.absent.is_lost(peer)
    }

    /// A connected member did not answer a question in time.
    pub(crate) fn fell_silent(&self, peer: NodeKey) {
        self.links.fell_silent(peer, Instant::now());
    }

    /// Dials a member that asked for it; none: there are too many such dials.
    pub(crate) async fn dial_back(
        &self,
        peer: NodeKey,
        machine: IpAddr,
        ports: Vec<ListenPort>,
    ) -> Option<Vec<ListenPort>> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::DialBack {
            peer,
            machine,
            ports,
            reply,
        })
        .await;
        answer.await.ok()
    }

    /// Whether a member makes a direct connection to this node, or has since then; waits for it a little.
    pub(crate) async fn has_come(&self, peer: NodeKey, since: Instant, patience: Duration) -> bool {
        self.links.has_come(peer, since, patience).await
    }

    /// What members say about whether they can dial this node.
    pub(crate) fn reachability(&self) -> SharedReachability {
        self.reachability.clone()
    }

    pub(crate) fn watch_connected(&self) -> watch::Receiver<BTreeSet<NodeKey>> {
        self.connected.clone()
    }
}
