//! Opening a door at a peer.

use tvix_node_protocol::envelope::NodeKey;

use crate::limits::{OPEN_PAUSE, OPEN_TRIES};
use crate::net::network::Network;
use crate::net::wire::{Wire, WireError};
use crate::net::{ConnectError, Door, OpenError, Traffic};

/// Why a peer could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// It cannot be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It does not open the door.
    #[error("{peer}: {source}")]
    Open {
        /// Who.
        peer: NodeKey,
        /// Why.
        source: OpenError,
    },
    /// The talk broke off.
    #[error("{peer}, asked for '{}': {source}", .door.name())]
    Wire {
        /// Who.
        peer: NodeKey,
        /// What for.
        door: Door,
        /// Why.
        source: WireError,
    },
}

impl CallError {
    /// Whether the connection broke, or was closed, and nothing else is wrong.
    #[must_use]
    pub fn is_break(&self) -> bool {
        matches!(
            self,
            Self::Wire {
                source: WireError::Io(_) | WireError::Closed,
                ..
            }
        )
    }

    /// Whether there was no way to the peer, or none any more, and nothing else is wrong: it may be back soon.
    #[must_use]
    pub fn is_away(&self) -> bool {
        self.is_break()
            || matches!(
                self,
                Self::Connect(ConnectError::Unreachable { .. })
                    | Self::Open {
                        source: OpenError::NotConnected | OpenError::Failed(_),
                        ..
                    }
            )
    }

    /// Whether the peer broke a rule, other than being away or slow.
    #[must_use]
    pub fn is_breach(&self) -> bool {
        matches!(
            self,
            Self::Wire {
                source: WireError::TooLarge { .. } | WireError::Encoding(_),
                ..
            }
        )
    }
}

/// Attaches the peer and the door to what went wrong.
pub(crate) fn at(peer: NodeKey, door: Door) -> impl Fn(WireError) -> CallError + Copy {
    move |source| CallError::Wire { peer, door, source }
}

/// Connects where there is no connection, and opens a door.
pub(crate) async fn open(
    network: &Network,
    traffic: &Traffic,
    peer: NodeKey,
    door: Door,
) -> Result<Wire, CallError> {
    let (mut left, mut pause) = (OPEN_TRIES, OPEN_PAUSE);
    let stream = loop {
        network.connect(peer).await?;
        left -= 1;
        match network.open(peer, door).await {
            // The connection was closed in this very moment, as one of two that both sides made at once is, or the other side
            // has just learned who this is. On a busy machine that can be so more than once.
            Err(OpenError::NotConnected) if left > 0 => {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            opened => break opened.map_err(|source| CallError::Open { peer, source })?,
        }
    };
    Ok(Wire::new(traffic.counted(stream, peer, door)))
}
