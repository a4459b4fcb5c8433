//! Telling the members closest to each region what this node has, and taking it back in the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tvix_node_protocol::envelope::{Envelope, EnvelopeError, NodeKey, seal};
use tvix_node_protocol::messages::{PresenceAnswer, PresenceCells, PresenceQuestion, PresenceRefusal};
use tvix_node_protocol::presence::{Epoch, PresenceHeader, PresenceKey, PresenceWithdrawal, Region, pack};

use super::{keepers, roster};
use crate::call::{self, CallError};
use crate::core::{Core, lock};
use crate::housekeeping::rest;
use crate::limits::{
    PRESENCE_CELLS_PER_PUT, PRESENCE_CHECK, PRESENCE_COPIES, PRESENCE_LIFETIME, PRESENCE_PAUSE,
    PRESENCE_RENEWAL, PRESENCE_RETRY, PUBLISHED_AT_ONCE, WITHDRAW_TIME,
};
use crate::net::Door;
use crate::net::wire::Wire;
use crate::presence::OwnCell;

/// Numbers what this node says, upward, also across restarts.
#[derive(Debug)]
pub(crate) struct Serial(AtomicU64);

impl Serial {
    /// Begins at the time in milliseconds: a node says less than a thousand things a second.
    pub(crate) fn new(now: u64) -> Self {
        Self(AtomicU64::new(now.saturating_mul(1000)))
    }

    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }

    /// Somebody knows a later word of ours: the clock was set back.
    fn after(&self, newest: u64) {
        self.0.fetch_max(newest.saturating_add(1), Ordering::Relaxed);
    }
}

/// Why a member was not told.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("what this node has cannot be signed: {0}")]
    Seal(#[from] EnvelopeError),
    #[error("it does not keep the records: {0}")]
    Refused(PresenceRefusal),
    #[error("it answered something else than was asked")]
    Confused,
}

/// Whether this node tells others what it has. What was on its way when all was taken back would come after that, and
/// be believed: it says so later.
#[derive(Debug)]
pub(crate) struct Telling {
    allowed: watch::Sender<bool>,
    /// Held by who tells, or takes back.
    turn: Mutex<()>,
}

impl Telling {
    pub(crate) fn new() -> Self {
        Self {
            allowed: watch::Sender::new(true),
            turn: Mutex::new(()),
        }
    }
}

/// After [`withdraw`]: this node stays, and says all of it again.
pub(crate) fn resume(core: &Core) {
    core.telling.allowed.send_replace(true);
    core.publish.notify_one();
}

/// Publishes until the node stops.
pub(crate) async fn publish(core: Arc<Core>, serial: Arc<Serial>) {
    let mut stopping = core.stopping.subscribe();
    let mut allowed = core.telling.allowed.subscribe();
    loop {
        // The sender is in the core, which is here.
        let _ = allowed.wait_for(|allowed| *allowed).await;
        {
            let _turn = core.telling.turn.lock().await;
            let mut tasks = JoinSet::new();
            tokio::select! {
                biased;
                _ = allowed.wait_for(|allowed| !*allowed) => {}
                () = pass(&core, &serial, &mut tasks) => {}
            }
            // What is broken off says nothing more from here on.
            tasks.shutdown().await;
        }
        tokio::select! {
            () = core.publish.notified() => {}
            () = tokio::time::sleep(PRESENCE_CHECK) => {}
            _ = stopping.wait_for(|stopping| *stopping) => return,
        }
        // Paths come in groups; so do members.
        tokio::time::sleep(PRESENCE_PAUSE).await;
    }
}

/// Tells everyone what they have to be told now. Each region is signed once, for all who keep it.
async fn pass(core: &Arc<Core>, serial: &Arc<Serial>, tasks: &mut JoinSet<()>) {
    let regions = lock(&core.own).regions();
    for region in regions {
        let closest = keepers(core, region).await;
        let due = || {
            let (own, now) = (lock(&core.own), core.team.now());
            let due = closest.iter().copied();
            due.filter(|member| own.is_due(region, *member, now))
                .collect::<Vec<_>>()
        };
        let due = due();
        if due.is_empty() {
            continue;
        }
        let begun = Instant::now();
        let signed = match sign_region(core, serial, region) {
            Ok(signed) => Arc::new(signed),
            Err(error) => {
                tracing::error!(%error, "what this node has cannot be signed");
                continue;
            }
        };
        let busy = begun.elapsed();
        let tellers: Vec<_> = due
            .into_iter()
            .map(|member| (core.clone(), serial.clone(), member))
            .collect();
        tasks.spawn(async move {
            let told = tellers.into_iter().map(|(core, serial, member)| {
                let signed = signed.clone();
                async move { tell(&core, &serial, member, &signed).await }
            });
            futures::future::join_all(told).await;
        });
        if tasks.len() >= PUBLISHED_AT_ONCE {
            tasks.join_next().await;
        }
        rest(busy).await;
    }
    while tasks.join_next().await.is_some() {}
}

/// Cells of a region that travel together, and what is signed of each.
type Part = (Vec<OwnCell>, Vec<Envelope>);

/// What this node has of a region, signed.
struct SignedRegion {
    region: Region,
    epoch: Epoch,
    change: u64,
    parts: Vec<Part>,
}

fn sign_region(core: &Core, serial: &Serial, region: Region) -> Result<SignedRegion, EnvelopeError> {
    let (epoch, change, mut cells) = {
        let mut own = lock(&core.own);
        (own.epoch(), own.change(region), own.cells(region))
    };
    let mut parts = Vec::with_capacity(cells.len().div_ceil(PRESENCE_CELLS_PER_PUT));
    while !cells.is_empty() {
        let rest = cells.split_off(cells.len().min(PRESENCE_CELLS_PER_PUT));
        let part = std::mem::replace(&mut cells, rest);
        let headers = sign(core, serial, region, epoch, &part)?;
        parts.push((part, headers));
    }
    Ok(SignedRegion {
        region,
        epoch,
        change,
        parts,
    })
}

fn sign(
    core: &Core,
    serial: &Serial,
    region: Region,
    epoch: Epoch,
    cells: &[OwnCell],
) -> Result<Vec<Envelope>, EnvelopeError> {
    let headers = cells.iter().map(|cell| {
        let now = core.team.now();
        PresenceHeader {
            swarm: core.team.swarm(),
            epoch,
            holder: core.team.me(),
            region,
            depth: cell.depth,
            cell: cell.cell,
            // At most CELL_KEYS.
            count: u32::try_from(cell.keys.len()).unwrap_or(u32::MAX),
            root: cell.root,
            serial: serial.next(),
            issued_at: now,
            not_after: now + PRESENCE_LIFETIME,
        }
    });
    headers.map(|header| seal(&header, core.team.secret())).collect()
}

/// Tells a member; what does not succeed is tried again with the next pass.
async fn tell(core: &Arc<Core>, serial: &Serial, member: NodeKey, signed: &SignedRegion) {
    let Err(error) = try_to_tell(core, serial, member, signed).await else {
        return;
    };
    tracing::debug!(%member, %error, "a member could not be told what this node has");
    match error {
        PublishError::Refused(PresenceRefusal::OtherEpoch) => {}
        PublishError::Call(CallError::Connect(_)) => {
            let now = core.team.now();
            lock(&core.own).is_away(member, now, now + PRESENCE_RETRY.as_secs());
            return;
        }
        _ => return,
    }
    // One of the two has not heard of a revocation; when both have, it is tried again.
    match roster::synchronise(core, member).await {
        Ok(()) => core.publish.notify_one(),
        Err(error) => tracing::debug!(%member, %error, "the rosters could not be made equal"),
    }
}

/// Whether nobody has to be told anything now.
pub(crate) async fn is_published(core: &Core) -> bool {
    if !*core.listed.borrow() {
        return false;
    }
    let regions = lock(&core.own).regions();
    for region in regions {
        for member in keepers(core, region).await {
            if lock(&core.own).is_due(region, member, core.team.now()) {
                return false;
            }
        }
    }
    true
}

/// The members that are to keep a region.
async fn keepers(core: &Core, region: Region) -> Vec<NodeKey> {
    let mut closest = match keepers::known(core, region).await {
        Some(closest) => closest,
        None => keepers::walk(core, region).await,
    };
    closest.truncate(PRESENCE_COPIES);
    closest
}

async fn try_to_tell(
    core: &Arc<Core>,
    serial: &Serial,
    member: NodeKey,
    signed: &SignedRegion,
) -> Result<(), PublishError> {
    let mut wire = core.open(member, Door::Presence).await?;
    lock(&core.own).tells(member);
    for (cells, headers) in &signed.parts {
        let keys: Vec<&[PresenceKey]> = cells.iter().map(|cell| cell.keys.as_slice()).collect();
        let mut refused = put(member, &mut wire, headers.clone(), &keys).await?;
        if let Some(PresenceRefusal::Stale { newest }) = refused {
            serial.after(newest);
            let headers = sign(core, serial, signed.region, signed.epoch, cells)?;
            refused = put(member, &mut wire, headers, &keys).await?;
        }
        match refused {
            // It has no more room; it is asked again when it is time to renew.
            None | Some(PresenceRefusal::Quota) => {}
            Some(reason) => return Err(PublishError::Refused(reason)),
        }
    }
    note_told(core, signed.epoch, signed.region, member, signed.change);
    Ok(())
}

fn note_told(core: &Core, epoch: Epoch, region: Region, member: NodeKey, change: u64) {
    let mut own = lock(&core.own);
    // Made anew meanwhile: what was told is void.
    if own.epoch() == epoch {
        let renew_at = core.team.now() + PRESENCE_RENEWAL.as_secs();
        own.told(region, member, change, renew_at);
    }
}

/// Puts cells; the worst of the refusals comes back.
async fn put(
    member: NodeKey,
    wire: &mut Wire,
    headers: Vec<Envelope>,
    keys: &[&[PresenceKey]],
) -> Result<Option<PresenceRefusal>, PublishError> {
    let at = call::at(member, Door::Presence);
    let answer = wire.ask(&PresenceQuestion::Put { headers }).await.map_err(at)?;
    let (wanted, refused) = match answer {
        PresenceAnswer::Wanted { cells, refused } => (cells, refused),
        PresenceAnswer::Refused { reason } => return Ok(Some(reason)),
        _ => return Err(PublishError::Confused),
    };
    let wanted: Option<Vec<&[PresenceKey]>> = wanted
        .iter()
        .map(|number| keys.get(*number as usize).copied())
        .collect();
    let cells = PresenceCells {
        keys: pack(&wanted.ok_or(PublishError::Confused)?.concat()),
    };
    let PresenceAnswer::Kept { .. } = wire.ask(&cells).await.map_err(at)? else {
        return Err(PublishError::Confused);
    };
    let stale = refused.iter().filter_map(|(_, reason)| match reason {
        PresenceRefusal::Stale { newest } => Some(*newest),
        _ => None,
    });
    if let Some(newest) = stale.max() {
        return Ok(Some(PresenceRefusal::Stale { newest }));
    }
    Ok(refused.first().map(|(_, reason)| *reason))
}

/// Takes back everything, from everyone who was told; for as long as a shutdown may wait. Nothing is told afterwards, until
/// [`resume`].
pub(crate) async fn withdraw(core: &Arc<Core>, serial: &Serial) {
    core.telling.allowed.send_replace(false);
    let _turn = core.telling.turn.lock().await;
    lock(&core.own).taken_back();
    let statement = PresenceWithdrawal {
        swarm: core.team.swarm(),
        holder: core.team.me(),
        serial: serial.next(),
        issued_at: core.team.now(),
    };
    let statement = match seal(&statement, core.team.secret()) {
        Ok(statement) => statement,
        Err(error) => {
            tracing::error!(%error, "what this node has cannot be taken back");
            return;
        }
    };
    let mut tasks = JoinSet::new();
    let audience = lock(&core.own).audience();
    for member in core.connected().intersection(&audience).copied() {
        let (core, statement) = (core.clone(), statement.clone());
        tasks.spawn(async move {
            let mut wire = core.open(member, Door::Presence).await?;
            let question = PresenceQuestion::Withdraw { statement };
            let answer = wire.ask::<_, PresenceAnswer>(&question).await;
            answer.map_err(call::at(member, Door::Presence))
        });
    }
    let all = async {
        while let Some(result) = tasks.join_next().await {
            if let Ok(Err(error)) = result {
                tracing::debug!(%error, "what this node has could not be taken back; it expires");
            }
        }
    };
    if tokio::time::timeout(WITHDRAW_TIME, all).await.is_err() {
        tracing::debug!("not everyone could be told in time that this node is going; its records expire");
    }
}
