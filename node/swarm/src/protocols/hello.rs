//! What members tell each other first, and when something has changed.

use std::collections::btree_map::Entry;
use std::sync::Arc;

use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::messages::Hello;

use super::{join, roster};
use crate::call::{self, CallError};
use crate::core::{Core, lock};
use crate::events::Notice;
use crate::limits::{GREETING_PAUSE, GREETINGS};
use crate::net::wire::{Wire, WireError};
use crate::net::{Door, OpenError};

fn hello(core: &Core) -> Hello {
    Hello {
        swarm: core.team.swarm(),
        epoch: core.team.presence_secret().epoch(),
        roster: core.team.digest(),
        now: core.team.now(),
        facts: core.facts.borrow().clone(),
    }
}

pub(crate) async fn serve(core: &Arc<Core>, peer: NodeKey, mut wire: Wire) -> Result<(), WireError> {
    let theirs: Hello = wire.reader.receive().await?;
    wire.answer(&hello(core)).await?;
    core.met(peer, theirs.facts, theirs.now);
    Ok(())
}

/// Says hello, and makes the rosters equal where they are not.
pub(crate) async fn greet(core: &Arc<Core>, peer: NodeKey) -> Result<(), CallError> {
    let opened = core.open(peer, Door::Hello).await;
    if let Some(message) = opened.as_ref().err().and_then(other_version) {
        cannot_be_spoken_to(core, peer, message);
    }
    let mut wire = opened?;
    let theirs: Hello = wire
        .ask(&hello(core))
        .await
        .map_err(call::at(peer, Door::Hello))?;
    core.met(peer, theirs.facts, theirs.now);
    if theirs.roster != core.team.digest() {
        roster::synchronise(core, peer).await?;
    }
    Ok(())
}

/// The peer takes this node for a stranger: it is shown why this node is a member. What is open on a
/// connection is settled when it is made, so a new one is made then. Several who find this out at once
/// do it once.
///
/// # Errors
/// [`CallError`], that of an unopened door where the peer is not convinced.
pub(crate) async fn make_known(core: &Core, peer: NodeKey) -> Result<(), CallError> {
    let turn = lock(&core.introductions).entry(peer).or_default().clone();
    let _turn = turn.lock().await;
    let stranger = match core.try_open(peer, Door::Hello).await {
        Ok(_) => return Ok(()),
        Err(error) => error,
    };
    if !is_not_offered(&stranger) {
        return Err(stranger);
    }
    let (message, error) = match join::introduce(core, peer).await {
        Ok(Ok(())) => {
            core.network.disconnect(peer).await;
            return Ok(());
        }
        Ok(Err(message)) => (
            format!("it does not take this node for a member: {message}"),
            stranger,
        ),
        Err(error) if is_not_offered(&error) => (
            "it answers, and speaks no version of any protocol of this program that this node knows: update the node with the \
             older program"
                .to_owned(),
            error,
        ),
        Err(error) => match other_version(&error) {
            Some(message) => (message, error),
            None => return Err(error),
        },
    };
    cannot_be_spoken_to(core, peer, message);
    Err(error)
}

fn cannot_be_spoken_to(core: &Core, peer: NodeKey, message: String) {
    tracing::warn!(%peer, message, "a member cannot be spoken to");
    core.notify(Notice::PeerUnusable { peer, message });
}

/// What is to be said where a peer speaks other versions of a door than this program.
fn other_version(error: &CallError) -> Option<String> {
    match error {
        CallError::Open {
            source: source @ OpenError::OtherVersion { .. },
            ..
        } => Some(source.to_string()),
        _ => None,
    }
}

pub(crate) fn is_not_offered(error: &CallError) -> bool {
    matches!(
        error,
        CallError::Open {
            source: OpenError::NotOffered(_),
            ..
        }
    )
}

/// Says hello to all who are connected: something has changed here. Nobody is waited for: who does not answer keeps neither
/// the others nor this node from what changes next.
pub(crate) fn greet_all(core: &Arc<Core>) {
    for peer in core.connected() {
        greet_soon(core, peer);
    }
}

/// Says hello to connected members that have not said what they offer, or were taken for gone since.
pub(crate) fn greet_unknown(core: &Arc<Core>) {
    for peer in core.connected() {
        if is_unknown(core, peer) {
            greet_soon(core, peer);
        }
    }
}

/// Says hello to a member; once more where that is under way, since it may have said what was before.
pub(crate) fn greet_soon(core: &Arc<Core>, peer: NodeKey) {
    match lock(&core.greeting).entry(peer) {
        Entry::Occupied(mut again) => {
            again.insert(true);
            return;
        }
        Entry::Vacant(first) => first.insert(false),
    };
    let core = core.clone();
    tokio::spawn(async move {
        let mut tries = 0;
        loop {
            if let Err(error) = greet(&core, peer).await {
                tracing::debug!(%peer, %error, "a member could not be greeted");
                tries += 1;
                let in_vain = other_version(&error).is_some();
                if !in_vain && tries < GREETINGS && is_unknown(&core, peer) {
                    tokio::time::sleep(GREETING_PAUSE).await;
                    continue;
                }
            }
            if !is_greeted_again(&core, peer) {
                return;
            }
        }
    });
}

/// Whether a member is connected, and neither side has heard the other's greeting.
fn is_unknown(core: &Core, peer: NodeKey) -> bool {
    core.connected().contains(&peer) && !lock(&core.peers).contains_key(&peer)
}

/// Whether something has changed while a member was greeted that is connected still.
fn is_greeted_again(core: &Core, peer: NodeKey) -> bool {
    let connected = core.connected().contains(&peer);
    let mut greeting = lock(&core.greeting);
    let changed = greeting.get_mut(&peer).is_some_and(std::mem::take);
    let again = connected && changed;
    if !again {
        greeting.remove(&peer);
    }
    again
}
