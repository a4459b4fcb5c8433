//! The only door strangers meet.

use std::sync::Arc;

use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::messages::{JoinAnswer, JoinRefusal, JoinRequest, Welcome};

use crate::call::{self, CallError};
use crate::core::{Core, blocking};
use crate::net::Door;
use crate::net::wire::{Wire, WireError};

pub(crate) async fn serve(core: &Arc<Core>, peer: NodeKey, mut wire: Wire) -> Result<(), WireError> {
    let request: JoinRequest = wire.reader.receive().await?;
    let team = core.team.clone();
    let asked = request.clone();
    let decided = blocking(move || match asked {
        JoinRequest::Redeem { swarm, secret, name } => team.redeem(swarm, &secret, peer, &name),
        JoinRequest::Introduce { swarm, .. } if swarm != team.swarm() => {
            let message = "this node belongs to another team".to_owned();
            Err((JoinRefusal::OtherSwarm, message))
        }
        JoinRequest::Introduce { statements, .. } => team.introduced(peer, statements),
    });
    let busy = || Err((JoinRefusal::Busy, "the node is shutting down".to_owned()));
    let decided = decided.await.unwrap_or_else(|_| busy());
    let answer = match (decided, request) {
        (Err((reason, message)), _) => {
            tracing::info!(%peer, ?reason, "a stranger was not let in");
            JoinAnswer::Refused { reason, message }
        }
        (Ok(()), JoinRequest::Introduce { .. }) => JoinAnswer::Known,
        (Ok(()), JoinRequest::Redeem { .. }) => {
            tracing::info!(%peer, "a ticket was redeemed");
            JoinAnswer::Welcome(Welcome {
                genesis: core.team.genesis().clone(),
                statements: core.team.welcome(peer),
                contacts: core.contacts.with(|contacts| contacts.to_wire()),
            })
        }
    };
    wire.answer(&answer).await
}

/// Shows a member, which does not know this node yet, why it should. What it says where it is not convinced
/// comes back.
pub(crate) async fn introduce(core: &Core, peer: NodeKey) -> Result<Result<(), String>, CallError> {
    let request = JoinRequest::Introduce {
        swarm: core.team.swarm(),
        statements: core.team.introduction(),
    };
    let mut wire = core.try_open(peer, Door::Join).await?;
    let answer = wire.ask(&request).await.map_err(call::at(peer, Door::Join))?;
    Ok(match answer {
        JoinAnswer::Known => Ok(()),
        JoinAnswer::Refused { message, .. } => Err(message),
        JoinAnswer::Welcome(_) => Err("it answered something else than was asked".to_owned()),
    })
}
