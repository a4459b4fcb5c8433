//! Presence on the wire: keeping what others say, and answering who has what.

use std::collections::BTreeSet;
use std::sync::Arc;

use tvix_node_protocol::build::BuildTerms;
use tvix_node_protocol::envelope::{Envelope, NodeKey};
use tvix_node_protocol::limits::{PRESENCE_QUESTION_KEYS, UNDERWAY_KEYS};
use tvix_node_protocol::messages::{PresenceAnswer, PresenceCells, PresenceQuestion, PresenceRefusal};
use tvix_node_protocol::nix::store_path::StorePath;
use tvix_node_protocol::presence::{Epoch, PresenceKey, unpack};

use crate::core::{Core, lock};
use crate::limits::{PRESENCE_CELLS_PER_PUT, PRESENCE_QUERY_LEAST};
use crate::net::wire::{Wire, WireError};
use crate::presence::Offer;
use crate::shelf::{Shelf, ShelfError};
use crate::underway::{Asked, Named, Turn};

pub(crate) async fn serve(core: &Arc<Core>, peer: NodeKey, mut wire: Wire) -> Result<(), WireError> {
    // A holder puts many cells over one stream.
    while let Some(question) = wire.reader.receive_or_end::<PresenceQuestion>().await? {
        let answer = match question {
            PresenceQuestion::Put { headers } => keep(core, peer, &mut wire, headers).await?,
            PresenceQuestion::Withdraw { statement } => withdraw(core, peer, &statement),
            PresenceQuestion::Query { epoch, keys } => query(core, peer, epoch, &keys),
            PresenceQuestion::Have { epoch, keys } => have(core, peer, epoch, &keys),
            PresenceQuestion::Underway {
                epoch,
                keys,
                turn,
                terms,
            } => underway(core, peer, (epoch, &keys), (Turn(turn), terms)).await,
        };
        wire.writer.send(&answer).await?;
        wire.writer.flush().await?;
    }
    Ok(())
}

async fn keep(
    core: &Core,
    peer: NodeKey,
    wire: &mut Wire,
    headers: Vec<Envelope>,
) -> Result<PresenceAnswer, WireError> {
    if headers.len() > PRESENCE_CELLS_PER_PUT {
        let reason = PresenceRefusal::TooMany;
        return Ok(PresenceAnswer::Refused { reason });
    }
    if !may_say(core, peer, headers.len()) {
        let reason = PresenceRefusal::Busy;
        return Ok(PresenceAnswer::Refused { reason });
    }
    let (members, epoch) = (core.team.members(), core.team.presence_secret().epoch());
    let (mut numbers, mut wanted, mut refused) = (vec![], vec![], vec![]);
    for (number, header) in (0..).zip(&headers) {
        // Each by itself: checking a signature takes long enough for others to wait.
        let offer = lock(&core.table).offer(header, peer, &members, epoch, core.team.now());
        match offer {
            Ok(Offer::Kept) => {}
            Ok(Offer::KeysWanted(cell)) => {
                numbers.push(number);
                wanted.push(cell);
            }
            Err(reason) => refused.push((number, reason)),
        }
    }
    let mut failed = refused.len();
    let answer = PresenceAnswer::Wanted {
        cells: numbers,
        refused,
    };
    wire.writer.send(&answer).await?;
    wire.writer.flush().await?;
    let cells: PresenceCells = wire.reader.receive().await?;
    let mut keys = unpack(&cells.keys).unwrap_or_default();
    // The roster may have changed while the keys came.
    let (members, epoch) = (core.team.members(), core.team.presence_secret().epoch());
    for cell in wanted {
        let rest = keys.split_off(cell.count().min(keys.len()));
        let of_cell = std::mem::replace(&mut keys, rest);
        let put = lock(&core.table).put(*cell, of_cell, &members, epoch, core.team.now());
        if let Err(error) = put {
            tracing::debug!(%peer, %error, "a cell is not kept");
            failed += 1;
        }
    }
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    Ok(PresenceAnswer::Kept {
        cells: count(headers.len() - failed.min(headers.len())),
        refused: count(failed),
    })
}

/// Whether a peer may have so many more signatures checked.
fn may_say(core: &Core, peer: NodeKey, statements: usize) -> bool {
    let amount = u32::try_from(statements).unwrap_or(u32::MAX);
    lock(&core.statements).take(peer, amount, core.team.now())
}

fn withdraw(core: &Core, peer: NodeKey, statement: &Envelope) -> PresenceAnswer {
    if !may_say(core, peer, 1) {
        let reason = PresenceRefusal::Busy;
        return PresenceAnswer::Refused { reason };
    }
    let members = core.team.members();
    match lock(&core.table).withdraw(statement, peer, &members, core.team.now()) {
        Ok(()) => PresenceAnswer::Kept { cells: 0, refused: 0 },
        Err(reason) => PresenceAnswer::Refused { reason },
    }
}

/// The keys asked about, where the peer may ask. `least`: as how many keys a question with fewer counts.
fn asked(
    core: &Core,
    peer: NodeKey,
    epoch: Epoch,
    keys: &[u8],
    least: usize,
) -> Result<Vec<PresenceKey>, PresenceRefusal> {
    let keys = unpack(keys).ok_or(PresenceRefusal::Invalid)?;
    if keys.len() > PRESENCE_QUESTION_KEYS {
        return Err(PresenceRefusal::TooMany);
    }
    if epoch != core.team.presence_secret().epoch() {
        return Err(PresenceRefusal::OtherEpoch);
    }
    let amount = u32::try_from(keys.len().max(least)).unwrap_or(u32::MAX);
    if !lock(&core.allowance).take(peer, amount, core.team.now()) {
        return Err(PresenceRefusal::Busy);
    }
    Ok(keys)
}

fn query(core: &Core, peer: NodeKey, epoch: Epoch, keys: &[u8]) -> PresenceAnswer {
    match asked(core, peer, epoch, keys, PRESENCE_QUERY_LEAST) {
        Ok(keys) => PresenceAnswer::Claims {
            claims: lock(&core.table).query(epoch, &keys, core.team.now()),
        },
        Err(reason) => PresenceAnswer::Refused { reason },
    }
}

/// Where these derivations are built. What is built for the owner is told to who may have the derivation.
async fn underway(
    core: &Arc<Core>,
    peer: NodeKey,
    (epoch, keys): (Epoch, &[u8]),
    (turn, terms): (Turn, BuildTerms),
) -> PresenceAnswer {
    let keys = match asked(core, peer, epoch, keys, 1) {
        Ok(keys) if keys.len() > UNDERWAY_KEYS => {
            let reason = PresenceRefusal::TooMany;
            return PresenceAnswer::Refused { reason };
        }
        Ok(keys) => keys,
        Err(reason) => return PresenceAnswer::Refused { reason },
    };
    core.underway.heard(turn);
    let (team, me) = (core.team.swarm(), core.team.me());
    let named = core.underway.named(team, &core.team.presence_secret(), &keys);
    let of_owner = named.iter().flatten().filter(|named| named.for_owner);
    let of_owner: Vec<StorePath> = of_owner.map(|named| named.derivation.clone()).collect();
    let shown = match of_owner.is_empty() {
        true => Ok(BTreeSet::new()),
        false => core.ask_shelf(move |shelf| may_know(shelf, peer, of_owner)).await,
    };
    let shown = shown.unwrap_or_else(|error| {
        tracing::warn!(%error, "it cannot be seen who may know of what is built");
        BTreeSet::new()
    });
    let places = named.into_iter().map(async |named| {
        let Named { derivation, .. } = named?;
        let asked = Asked {
            team,
            me,
            asker: peer,
            turn,
            terms,
            owners: shown.contains(&derivation),
        };
        let place = core.underway.place(&derivation, asked).await?;
        // One that was asked in another team is nobody's business here.
        (place == me || core.team.members().contains(place)).then_some(place)
    });
    PresenceAnswer::Underway {
        at: futures::future::join_all(places).await,
    }
}

fn may_know(
    shelf: &dyn Shelf,
    peer: NodeKey,
    derivations: Vec<StorePath>,
) -> Result<BTreeSet<StorePath>, ShelfError> {
    let mut known = BTreeSet::new();
    for derivation in derivations {
        if shelf.path_info(peer, &derivation)?.is_some() {
            known.insert(derivation);
        }
    }
    Ok(known)
}

fn have(core: &Core, peer: NodeKey, epoch: Epoch, keys: &[u8]) -> PresenceAnswer {
    let keys = match asked(core, peer, epoch, keys, 1) {
        Ok(keys) => keys,
        Err(reason) => return PresenceAnswer::Refused { reason },
    };
    let own = lock(&core.own);
    let mut bits = vec![0; keys.len().div_ceil(8)];
    for (index, key) in keys.iter().enumerate() {
        if own.has(*key) {
            bits[index / 8] |= 1 << (index % 8);
        }
    }
    PresenceAnswer::Held { bits }
}
