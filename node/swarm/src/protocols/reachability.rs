//! Asking members to dial this node, and dialling members that ask.

use std::sync::Arc;
use std::time::Instant;

use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::limits::REACHABILITY_PORTS;
use tvix_node_protocol::messages::{ListenPort, ReachabilityAnswer, ReachabilityQuestion};

use crate::call::{self, CallError};
use crate::core::{Core, lock};
use crate::limits::{DIAL_BACK_TIME, REACHABILITY_CHECK, REACHABILITY_WAIT};
use crate::net::Door;
use crate::net::reachability::{address, machine, port};
use crate::net::relays::is_relayed;
use crate::net::wire::{Wire, WireError};

/// Dials a member that asks for it: at the address where it is seen and nowhere else, so that nobody can have others
/// dialled.
pub(crate) async fn serve(core: &Arc<Core>, peer: NodeKey, mut wire: Wire) -> Result<(), WireError> {
    let question: ReachabilityQuestion = wire.reader.receive().await?;
    let answer = dial_back(core, peer, question.ports).await;
    wire.answer(&answer).await
}

async fn dial_back(core: &Core, peer: NodeKey, ports: Vec<ListenPort>) -> ReachabilityAnswer {
    if ports.len() > REACHABILITY_PORTS || !lock(&core.dial_backs).take(peer, 1, core.team.now()) {
        return ReachabilityAnswer::Busy;
    }
    let Some(seen) = core.network.link(peer).direct().as_ref().and_then(machine) else {
        return ReachabilityAnswer::Unseen;
    };
    match core.network.dial_back(peer, seen, ports).await {
        Some(reached) => ReachabilityAnswer::Dialled {
            seen: seen.to_string(),
            reached,
        },
        None => ReachabilityAnswer::Busy,
    }
}

/// Finds out who can dial this node, until it stops.
pub(crate) async fn watch(core: Arc<Core>) {
    let mut stopping = core.stopping.subscribe();
    let mut connected = core.network.watch_connected();
    loop {
        ask_all(&core).await;
        tokio::select! {
            changed = connected.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(REACHABILITY_CHECK) => {}
            _ = stopping.wait_for(|stopping| *stopping) => return,
        }
    }
}

async fn ask_all(core: &Arc<Core>) {
    let listening = core.network.addresses();
    let direct = listening.iter().filter(|address| !is_relayed(address));
    let mut ports: Vec<ListenPort> = direct.filter_map(port).collect();
    ports.sort();
    ports.dedup();
    ports.truncate(REACHABILITY_PORTS);
    if ports.is_empty() {
        return;
    }
    let seen = |peer: NodeKey| Some((peer, machine(&core.network.link(peer).direct()?)?));
    let connected = core.connected().into_iter().filter_map(seen).collect();
    let reachability = core.network.reachability();
    let to_ask = reachability.with(|known| known.ask_now(connected, Instant::now()));
    for peer in to_ask {
        let outcome = match ask(core, peer, ports.clone()).await {
            Ok(outcome) => outcome,
            Err(error) => {
                tracing::debug!(%peer, %error, "a member cannot say whether it reaches this node");
                None
            }
        };
        reachability.with(|known| known.said(peer, outcome, Instant::now()));
    }
}

/// Where a member reaches this node; none: it cannot say.
async fn ask(
    core: &Arc<Core>,
    peer: NodeKey,
    ports: Vec<ListenPort>,
) -> Result<Option<Vec<libp2p::Multiaddr>>, CallError> {
    let since = Instant::now();
    let mut wire = core.open(peer, Door::Reachability).await?;
    let question = ReachabilityQuestion { ports: ports.clone() };
    let answer = tokio::time::timeout(DIAL_BACK_TIME * 2, wire.ask(&question)).await;
    let answer = answer.unwrap_or(Err(WireError::Silent(DIAL_BACK_TIME * 2)));
    match answer.map_err(call::at(peer, Door::Reachability))? {
        ReachabilityAnswer::Dialled { seen, mut reached } => {
            let Ok(seen) = seen.parse() else { return Ok(None) };
            reached.retain(|port| ports.contains(port));
            // A word is cheap: the connection must have come, too.
            if !reached.is_empty() && !core.network.has_come(peer, since, REACHABILITY_WAIT).await {
                return Ok(None);
            }
            Ok(Some(
                reached.into_iter().map(|port| address(seen, port)).collect(),
            ))
        }
        ReachabilityAnswer::Unseen | ReachabilityAnswer::Busy => Ok(None),
    }
}
