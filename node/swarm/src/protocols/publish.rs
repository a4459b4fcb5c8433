//! Telling the members closest to each region what this node has, and taking it back in the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::task::JoinSet;
use tvix_node_protocol::envelope::{Envelope, EnvelopeError, NodeKey, seal};
use tvix_node_protocol::messages::{PresenceAnswer, PresenceCells, PresenceQuestion, PresenceRefusal};
use tvix_node_protocol::presence::{Epoch, PresenceHeader, PresenceKey, PresenceWithdrawal, Region, pack};

use super::roster;
use crate::call::{self, CallError};
use crate::core::{Core, lock};
use crate::limits::{
    PRESENCE_CELLS_PER_PUT, PRESENCE_CHECK, PRESENCE_COPIES, PRESENCE_LIFETIME, PRESENCE_PAUSE,
    PRESENCE_RENEWAL, PUBLISHED_AT_ONCE, WITHDRAW_TIME,
};
use crate::net::Door;
use crate::net::transport::CLOSEST;
use crate::net::wire::Wire;

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

/// Publishes until the node stops.
pub(crate) async fn publish(core: Arc<Core>, serial: Arc<Serial>) {
    let mut stopping = core.stopping.subscribe();
    loop {
        pass(&core, &serial).await;
        tokio::select! {
            () = core.publish.notified() => {}
            () = tokio::time::sleep(PRESENCE_CHECK) => {}
            _ = stopping.wait_for(|stopping| *stopping) => return,
        }
        // Paths come in groups; so do members.
        tokio::time::sleep(PRESENCE_PAUSE).await;
    }
}

/// Tells everyone what they have to be told now.
async fn pass(core: &Arc<Core>, serial: &Arc<Serial>) {
    let regions = lock(&core.own).regions();
    let mut due: BTreeMap<NodeKey, Vec<Region>> = BTreeMap::new();
    for region in regions {
        for member in keepers(core, region).await {
            if lock(&core.own).is_due(region, member, core.team.now()) {
                due.entry(member).or_default().push(region);
            }
        }
    }
    let mut tasks = JoinSet::new();
    for (member, regions) in due {
        if tasks.len() >= PUBLISHED_AT_ONCE {
            tasks.join_next().await;
        }
        let (core, serial) = (core.clone(), serial.clone());
        tasks.spawn(async move {
            let told = tell(&core, &serial, member, regions).await;
            let Err(error) = told else { return };
            tracing::debug!(%member, %error, "a member could not be told what this node has");
            if !matches!(error, PublishError::Refused(PresenceRefusal::OtherEpoch)) {
                return;
            }
            // One of the two has not heard of a revocation; when both have, it is tried again.
            match roster::synchronise(&core, member).await {
                Ok(()) => core.publish.notify_one(),
                Err(error) => tracing::debug!(%member, %error, "the rosters could not be made equal"),
            }
        });
    }
    tasks.join_all().await;
}

/// Whether nobody has to be told anything now.
pub(crate) async fn is_published(core: &Core) -> bool {
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

/// The members closest to a region.
async fn keepers(core: &Core, region: Region) -> Vec<NodeKey> {
    // A small team is in everyone's routing table.
    let walk = core.team.members().len() > CLOSEST.get();
    let mut closest = core.network.closest(region.label(), walk).await;
    closest.truncate(PRESENCE_COPIES);
    closest
}

async fn tell(
    core: &Arc<Core>,
    serial: &Serial,
    member: NodeKey,
    regions: Vec<Region>,
) -> Result<(), PublishError> {
    let mut wire = core.open(member, Door::Presence).await?;
    for region in regions {
        let (epoch, change, cells) = {
            let mut own = lock(&core.own);
            (own.epoch(), own.change(region), own.cells(region))
        };
        for part in cells.chunks(PRESENCE_CELLS_PER_PUT) {
            let keys: Vec<&[PresenceKey]> = part.iter().map(|cell| cell.keys.as_slice()).collect();
            let sign = |serial: &Serial| -> Result<Vec<Envelope>, EnvelopeError> {
                let headers = part.iter().map(|cell| {
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
            };
            let mut refused = put(member, &mut wire, sign(serial)?, &keys).await?;
            if let Some(PresenceRefusal::Stale { newest }) = refused {
                serial.after(newest);
                refused = put(member, &mut wire, sign(serial)?, &keys).await?;
            }
            match refused {
                // It has no more room; it is asked again when it is time to renew.
                None | Some(PresenceRefusal::Quota) => {}
                Some(reason) => return Err(PublishError::Refused(reason)),
            }
        }
        note_told(core, epoch, region, member, change);
    }
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

/// Takes back everything, from everyone who was told; for as long as a shutdown may wait.
pub(crate) async fn withdraw(core: &Arc<Core>, serial: &Serial) {
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
