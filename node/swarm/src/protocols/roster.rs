//! Making two rosters equal: who asks says what it knows, and both get what they lack.

use std::collections::BTreeSet;
use std::sync::Arc;

use tvix_node_protocol::envelope::{Envelope, NodeKey};
use tvix_node_protocol::messages::{RosterAnswer, RosterDone, RosterQuestion, RosterStatements};
use tvix_node_protocol::roster::StatementId;

use crate::call::{self, CallError};
use crate::core::{Core, blocking, lock};
use crate::limits::{ROSTER_ROUND, ROSTER_ROUNDS};
use crate::net::Door;
use crate::net::wire::{Wire, WireError};

fn pack(ids: impl IntoIterator<Item = StatementId>) -> Vec<u8> {
    ids.into_iter().flat_map(|id| id.0).collect()
}

/// What is not a whole number of ids says nothing about the rest.
fn unpack(bytes: &[u8]) -> BTreeSet<StatementId> {
    bytes
        .as_chunks::<32>()
        .0
        .iter()
        .map(|id| StatementId(*id))
        .collect()
}

/// Those of this node's statements that `pick` picks, as many as go into one round.
fn statements(core: &Core, pick: impl Fn(StatementId) -> bool) -> Vec<Envelope> {
    core.team.with_roster(|roster| {
        let picked = roster.statements().filter(|(id, _)| pick(*id));
        picked
            .map(|(_, envelope)| envelope.clone())
            .take(ROSTER_ROUND)
            .collect()
    })
}

/// Takes in what a peer brought, as far as it may.
async fn merge(core: &Core, peer: NodeKey, mut statements: Vec<Envelope>) {
    statements.truncate(ROSTER_ROUND);
    let amount = u32::try_from(statements.len()).unwrap_or(u32::MAX);
    if !lock(&core.roster_statements).take(peer, amount, core.team.now()) {
        tracing::warn!(%peer, "a member brings more statements about the team than are looked at");
        return;
    }
    let team = core.team.clone();
    match blocking(move || team.merge(statements)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::error!(%error, "the roster could not be saved"),
        Err(error) => tracing::error!(%error, "the roster could not be merged"),
    }
}

pub(crate) async fn serve(core: &Arc<Core>, peer: NodeKey, mut wire: Wire) -> Result<(), WireError> {
    let question: RosterQuestion = wire.reader.receive().await?;
    let theirs = unpack(&question.known);
    let mine = core.team.with_roster(|roster| roster.ids());
    let answer = RosterAnswer {
        statements: statements(core, |id| !theirs.contains(&id)),
        wanted: pack(theirs.difference(&mine).copied().take(ROSTER_ROUND)),
    };
    wire.writer.send(&answer).await?;
    wire.writer.flush().await?;
    let wanted: RosterStatements = wire.reader.receive().await?;
    merge(core, peer, wanted.statements).await;
    wire.answer(&RosterDone {
        roster: core.team.digest(),
    })
    .await
}

/// Makes this node's roster and a peer's equal, in as many rounds as it takes, and no more than [`ROSTER_ROUNDS`].
pub(crate) async fn synchronise(core: &Core, peer: NodeKey) -> Result<(), CallError> {
    let at = call::at(peer, Door::Roster);
    for _ in 0..ROSTER_ROUNDS {
        let before = core.team.digest();
        let mine = core.team.with_roster(|roster| roster.ids());
        let mut wire = core.open(peer, Door::Roster).await?;
        let question = RosterQuestion {
            known: pack(mine.iter().copied()),
        };
        let answer: RosterAnswer = wire.ask(&question).await.map_err(at)?;
        let wanted = unpack(&answer.wanted);
        merge(core, peer, answer.statements).await;
        let send = RosterStatements {
            statements: statements(core, |id| wanted.contains(&id)),
        };
        let sent = send.statements.len();
        let done: RosterDone = wire.ask(&send).await.map_err(at)?;
        // Equal, or nothing moved: what one of the two does not take stays a difference.
        if done.roster == core.team.digest() || (before == core.team.digest() && sent < ROSTER_ROUND) {
            return Ok(());
        }
    }
    tracing::debug!(%peer, "the rosters are not equal after as many rounds as a full one takes");
    Ok(())
}
