//! Finding who has a path: connected members first, all at once; then those who keep the records.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tvix_node_protocol::build::BuildTerms;
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::limits::PRESENCE_QUESTION_KEYS;
use tvix_node_protocol::messages::{Claim, Message as _, PresenceAnswer, PresenceQuestion, PresenceRefusal};
use tvix_node_protocol::nix::store_path::StorePath;
use tvix_node_protocol::presence::{Epoch, PresenceKey, Region, pack, unpack};

use super::patience::{is_silence, patience, patiently};
use super::{keepers, roster};
use crate::call::{self, CallError};
use crate::core::{Core, lock};
use crate::limits::{BUSY_PAUSE, FIND_TIME, HAVE_TIME, PRESENCE_ASKED, PRESENCE_COPIES, PRESENCE_ROUNDS};
use crate::net::wire::Wire;
use crate::net::{Door, WireError};
use crate::presence::claimed;
use crate::underway::Turn;

/// How it is known that a member has a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Through {
    /// It was asked itself.
    Asked,
    /// It signed a record that others keep. It may have lost the path since.
    Records,
}

/// Whom to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FindScope {
    /// Members this node is connected with: one round trip.
    Connected,
    /// Also the records, for what no connected member has.
    All,
    /// The records alone.
    Records,
}

/// Who has which of the paths asked for. Paths nobody has are not in it.
pub type Holders = BTreeMap<StorePath, BTreeMap<NodeKey, Through>>;

/// What is still looked for, and what has been found.
struct Search {
    wanted: BTreeMap<PresenceKey, StorePath>,
    found: Holders,
}

impl Search {
    fn add(&mut self, key: PresenceKey, holder: NodeKey, through: Through) {
        if let Some(path) = self.wanted.get(&key) {
            let holders = self.found.entry(path.clone()).or_default();
            let known = holders.entry(holder).or_insert(through);
            *known = (*known).min(through);
        }
    }

    fn missing(&self) -> Vec<PresenceKey> {
        let missing = |(_, path): &(&PresenceKey, &StorePath)| !self.found.contains_key(*path);
        self.wanted.iter().filter(missing).map(|(key, _)| *key).collect()
    }
}

pub(crate) async fn find(core: &Arc<Core>, paths: &[StorePath], scope: FindScope) -> Holders {
    let secret = core.team.presence_secret();
    let mut search = Search {
        wanted: paths
            .iter()
            .map(|path| (secret.key(path), path.clone()))
            .collect(),
        found: Holders::new(),
    };
    if scope != FindScope::Records {
        ask_connected(core, secret.epoch(), &mut search).await;
    }
    if scope != FindScope::Connected {
        ask_keepers(core, secret.epoch(), &mut search).await;
    }
    search.found
}

/// Which of these paths the peer has. One that answers no more questions at the moment has neither these nor not: it is
/// waited for, and then that is an error.
pub(crate) async fn have(
    core: &Arc<Core>,
    peer: NodeKey,
    paths: &[StorePath],
) -> Result<Vec<bool>, CallError> {
    let secret = core.team.presence_secret();
    let keys: Vec<PresenceKey> = paths.iter().map(|path| secret.key(path)).collect();
    let asking = ask(core, peer, secret.epoch(), &keys, HAVE_TIME);
    in_time(peer, asking).await
}

/// Which of these paths the peer has, and where this derivation is built, as far as it knows; one that does not say counts
/// as knowing of nowhere.
pub(crate) async fn have_and_underway(
    core: &Arc<Core>,
    peer: NodeKey,
    paths: &[StorePath],
    derivation: &StorePath,
    (turn, terms): (Turn, BuildTerms),
) -> Result<(Vec<bool>, Option<NodeKey>), CallError> {
    let secret = core.team.presence_secret();
    let keys: Vec<PresenceKey> = paths.iter().map(|path| secret.key(path)).collect();
    let (first, rest) = keys.split_at(keys.len().min(PRESENCE_QUESTION_KEYS));
    let epoch = secret.epoch();
    let have = PresenceQuestion::Have {
        epoch,
        keys: pack(first),
    };
    let underway = PresenceQuestion::Underway {
        epoch,
        keys: pack(&[secret.key(derivation)]),
        turn: turn.0,
        terms,
    };
    let at = call::at(peer, Door::Presence);
    let asking = async {
        let mut wire = open(core, peer, HAVE_TIME).await?;
        // In one round trip.
        wire.writer.send(&have).await.map_err(at)?;
        wire.writer.send(&underway).await.map_err(at)?;
        wire.writer.flush().await.map_err(at)?;
        let has = wire.reader.receive().await.map_err(at)?;
        let mut closed = false;
        let place = match wire.reader.receive().await {
            Ok(PresenceAnswer::Underway { at }) if at.len() == 1 => at[0],
            answer => {
                tracing::debug!(%peer, ?answer, "a member does not say what it builds");
                closed = answer.is_err();
                None
            }
        };
        let (mut held, left) = match has {
            PresenceAnswer::Held { bits } if bits.len() == first.len().div_ceil(8) => {
                (flags(&bits, first.len()).collect(), rest)
            }
            // It is asked again, or it is said why not.
            _ => (Vec::new(), keys.as_slice()),
        };
        if closed && !left.is_empty() {
            wire = open(core, peer, HAVE_TIME).await?;
        }
        held.extend(ask_on(&mut wire, core, peer, epoch, left, HAVE_TIME).await?);
        Ok((held, place))
    };
    in_time(peer, asking).await
}

/// What a member answers that is asked for something it alone can say: one that does not is an error.
async fn in_time<T>(
    peer: NodeKey,
    asking: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    match tokio::time::timeout(HAVE_TIME, asking).await {
        Ok(answer) => answer,
        Err(_) => Err(call::at(peer, Door::Presence)(WireError::Silent(HAVE_TIME))),
    }
}

async fn ask_connected(core: &Arc<Core>, epoch: Epoch, search: &mut Search) {
    let keys: Vec<PresenceKey> = search.wanted.keys().copied().collect();
    let mut questions = JoinSet::new();
    let connected = core.connected();
    for peer in &connected {
        let Some(patience) = patience(core, &connected, *peer, keys.len()) else {
            continue;
        };
        let (core, peer, keys) = (core.clone(), *peer, keys.clone());
        questions.spawn(async move {
            let asking = ask(&core, peer, epoch, &keys, patience);
            (peer, tokio::time::timeout(FIND_TIME, asking).await)
        });
    }
    while let Some(answer) = questions.join_next().await {
        match answer {
            Ok((peer, Ok(Ok(held)))) => {
                for (key, held) in keys.iter().zip(held) {
                    if held {
                        search.add(*key, peer, Through::Asked);
                    }
                }
            }
            Ok((peer, Ok(Err(error)))) => {
                tracing::debug!(%peer, %error, "a member did not say what it has");
                if is_silence(&error) {
                    core.network.fell_silent(peer);
                }
            }
            Ok((peer, Err(_))) => tracing::debug!(%peer, "a member did not say in time what it has"),
            Err(error) => tracing::error!(%error, "a question was lost"),
        }
    }
}

/// Opens the door; a member that has fallen silent is an error after so long.
async fn open(core: &Core, peer: NodeKey, patience: Duration) -> Result<Wire, CallError> {
    let at = call::at(peer, Door::Presence);
    patiently(patience, core.open(peer, Door::Presence), at).await
}

/// Asks; the answer has to begin to come within this time.
async fn answered(
    wire: &mut Wire,
    question: &PresenceQuestion,
    patience: Duration,
) -> Result<PresenceAnswer, WireError> {
    let asked = async {
        wire.writer.send(question).await?;
        wire.writer.flush().await?;
        wire.reader.size(PresenceAnswer::LIMIT).await
    };
    let size = patiently(patience, asked, |silent| silent).await?;
    wire.reader
        .message_within(size.ok_or(WireError::Closed)?, FIND_TIME)
        .await
}

/// Asks until all is answered, or refused for another reason than that a peer asks too often. `patience`: how long each answer may
/// take to begin to come.
async fn ask(
    core: &Arc<Core>,
    peer: NodeKey,
    epoch: Epoch,
    keys: &[PresenceKey],
    patience: Duration,
) -> Result<Vec<bool>, CallError> {
    let mut wire = open(core, peer, patience).await?;
    ask_on(&mut wire, core, peer, epoch, keys, patience).await
}

/// As [`ask`], at a door that is open.
async fn ask_on(
    wire: &mut Wire,
    core: &Arc<Core>,
    peer: NodeKey,
    epoch: Epoch,
    keys: &[PresenceKey],
    patience: Duration,
) -> Result<Vec<bool>, CallError> {
    let at = call::at(peer, Door::Presence);
    let mut held = Vec::with_capacity(keys.len());
    for part in keys.chunks(PRESENCE_QUESTION_KEYS) {
        let question = PresenceQuestion::Have {
            epoch,
            keys: pack(part),
        };
        let bits = loop {
            match answered(wire, &question, patience).await.map_err(at)? {
                PresenceAnswer::Held { bits } if bits.len() == part.len().div_ceil(8) => break bits,
                // Its budget fills up again. What is not answered in time is not known.
                PresenceAnswer::Refused {
                    reason: PresenceRefusal::Busy,
                } => tokio::time::sleep(BUSY_PAUSE).await,
                PresenceAnswer::Refused { reason } => {
                    refused(core, peer, reason);
                    return Err(at(WireError::Refused(reason.to_string())));
                }
                _ => {
                    return Err(at(WireError::Refused(
                        "its answer is to another question".to_owned(),
                    )));
                }
            }
        };
        held.extend(flags(&bits, part.len()));
    }
    Ok(held)
}

/// The first so many bits, the lowest of each byte first.
fn flags(bits: &[u8], count: usize) -> impl Iterator<Item = bool> {
    (0..count).map(|index| bits[index / 8] >> (index % 8) & 1 == 1)
}

/// One of the two has not heard of a revocation: they tell each other. The answer is better next time.
fn refused(core: &Arc<Core>, peer: NodeKey, reason: PresenceRefusal) {
    tracing::debug!(%peer, %reason, "a question about presence is refused");
    if reason == PresenceRefusal::OtherEpoch {
        let core = core.clone();
        tokio::spawn(async move {
            if let Err(error) = roster::synchronise(&core, peer).await {
                tracing::debug!(%peer, %error, "the rosters could not be made equal");
            }
        });
    }
}

async fn ask_keepers(core: &Arc<Core>, epoch: Epoch, search: &mut Search) {
    let bits = Region::bits_for(core.team.members().len());
    let mut regions: BTreeMap<Region, Vec<PresenceKey>> = BTreeMap::new();
    for key in search.missing() {
        regions.entry(Region::of(key, bits)).or_default().push(key);
    }
    if regions.is_empty() {
        return;
    }
    let mut searches = JoinSet::new();
    for (region, keys) in regions {
        let core = core.clone();
        searches.spawn(async move { ask_keepers_of(&core, epoch, region, keys).await });
    }
    for found in searches.join_all().await {
        for (key, holder) in found {
            search.add(key, holder, Through::Records);
        }
    }
}

async fn ask_keepers_of(
    core: &Arc<Core>,
    epoch: Epoch,
    region: Region,
    keys: Vec<PresenceKey>,
) -> BTreeSet<(PresenceKey, NodeKey)> {
    let here = lock(&core.table).query(epoch, &keys, core.team.now());
    let mut missing: BTreeSet<PresenceKey> = keys.into_iter().collect();
    let mut found = BTreeSet::new();
    take_claims(core, core.team.me(), here, epoch, &mut missing, &mut found);
    let mut asked = BTreeSet::new();
    // Those who are known to keep the region; else those who seem to, from what is known here, and where they do not do, those
    // whom a walk through others' routing tables brings.
    let known = keepers::known(core, region).await;
    let is_known = known.is_some();
    let mut closest = match known {
        Some(closest) => closest,
        None => core.network.closest(region.label(), false).await,
    };
    for walk in [false, true] {
        if missing.is_empty() || (walk && is_known) {
            break;
        }
        if walk {
            closest = keepers::walk(core, region).await;
        }
        let mut keepers = std::mem::take(&mut closest);
        keepers.retain(|keeper| !asked.contains(keeper));
        keepers.truncate(PRESENCE_ASKED);
        lock(&core.standing).sort(&mut keepers, core.team.now());
        asked.extend(keepers.iter().copied());
        for group in groups(core, &keepers, missing.len()) {
            if missing.is_empty() {
                break;
            }
            ask_group(core, epoch, group, &mut missing, &mut found).await;
        }
    }
    found
}

/// Those of some keepers who are worth asking, as they are asked at once, each with how long it may take: first as many as keep a
/// copy, and all who are connected, whom it costs next to nothing to ask; then those who have to be dialled first.
pub(crate) fn groups(core: &Core, keepers: &[NodeKey], keys: usize) -> [Vec<(NodeKey, Duration)>; 2] {
    let connected = core.connected();
    let worth = |keeper: &NodeKey| Some((*keeper, patience(core, &connected, *keeper, keys)?));
    let (mut first, mut then) = (vec![], vec![]);
    for (keeper, patience) in keepers.iter().filter_map(worth) {
        if first.len() < PRESENCE_COPIES || connected.contains(&keeper) {
            first.push((keeper, patience));
        } else {
            then.push((keeper, patience));
        }
    }
    [first, then]
}

/// Asks some keepers at once; returns when nothing is missing or all have answered.
async fn ask_group(
    core: &Arc<Core>,
    epoch: Epoch,
    group: Vec<(NodeKey, Duration)>,
    missing: &mut BTreeSet<PresenceKey>,
    found: &mut BTreeSet<(PresenceKey, NodeKey)>,
) {
    let mut questions = JoinSet::new();
    for (keeper, patience) in group {
        let (core, missing) = (core.clone(), missing.clone());
        questions.spawn(async move {
            let asking = query(&core, keeper, epoch, missing, patience);
            (keeper, tokio::time::timeout(FIND_TIME, asking).await)
        });
    }
    while !missing.is_empty()
        && let Some(answer) = questions.join_next().await
    {
        let Ok((keeper, answer)) = answer else { continue };
        match answer {
            Ok(Ok(claims)) => take_claims(core, keeper, claims, epoch, missing, found),
            Ok(Err(error)) => {
                tracing::debug!(%keeper, %error, "a keeper of records did not answer");
                if is_silence(&error) {
                    core.network.fell_silent(keeper);
                }
                lock(&core.standing).failed(keeper, core.team.now());
            }
            Err(_) => {
                tracing::debug!(%keeper, "a keeper of records did not answer in time");
                lock(&core.standing).failed(keeper, core.team.now());
            }
        }
    }
}

/// Asks one keeper, again and again while its answers, which are bounded, bring something new.
pub(crate) async fn query(
    core: &Arc<Core>,
    keeper: NodeKey,
    epoch: Epoch,
    mut keys: BTreeSet<PresenceKey>,
    patience: Duration,
) -> Result<Vec<Claim>, CallError> {
    let at = call::at(keeper, Door::Presence);
    let mut wire = open(core, keeper, patience).await?;
    let mut claims = vec![];
    for _ in 0..PRESENCE_ROUNDS {
        let asked: Vec<PresenceKey> = keys.iter().copied().take(PRESENCE_QUESTION_KEYS).collect();
        let question = PresenceQuestion::Query {
            epoch,
            keys: pack(&asked),
        };
        let new = match answered(&mut wire, &question, patience).await.map_err(at)? {
            PresenceAnswer::Claims { claims } => claims,
            // As above: who answers no more questions at the moment has said nothing.
            PresenceAnswer::Refused {
                reason: PresenceRefusal::Busy,
            } => {
                tokio::time::sleep(BUSY_PAUSE).await;
                continue;
            }
            PresenceAnswer::Refused { reason } => {
                refused(core, keeper, reason);
                vec![]
            }
            _ => vec![],
        };
        let before = keys.len();
        for claim in &new {
            for key in unpack(&claim.keys).unwrap_or_default() {
                keys.remove(&key);
            }
        }
        claims.extend(new);
        if keys.is_empty() || keys.len() == before {
            break;
        }
    }
    Ok(claims)
}

/// Checks what a keeper handed on, as if the holder had said it here.
pub(crate) fn take_claims(
    core: &Core,
    keeper: NodeKey,
    claims: Vec<Claim>,
    epoch: Epoch,
    missing: &mut BTreeSet<PresenceKey>,
    found: &mut BTreeSet<(PresenceKey, NodeKey)>,
) {
    let mut holds = BTreeSet::new();
    for claim in claims {
        let Some((holder, keys)) = claimed(&claim, core.team.swarm(), epoch, core.team.now()) else {
            tracing::warn!(%keeper, "a keeper of records hands on one that does not verify");
            lock(&core.standing).lied(keeper, core.team.now());
            continue;
        };
        if holder == core.team.me() {
            continue;
        }
        for key in keys.into_iter().filter(|key| missing.contains(key)) {
            holds.insert(key);
            found.insert((key, holder));
        }
    }
    missing.retain(|key| !holds.contains(key));
}

/// Of those found, members who can be asked for the path: the best first.
pub(crate) fn providers(core: &Core, holders: &BTreeMap<NodeKey, Through>) -> Vec<NodeKey> {
    let members = core.team.members();
    let connected = core.connected();
    let mut providers: Vec<NodeKey> = holders
        .keys()
        .copied()
        .filter(|key| members.contains(*key))
        .collect();
    providers.sort_by_key(|key| (!connected.contains(key), holders.get(key).copied()));
    lock(&core.standing).sort(&mut providers, core.team.now());
    providers
}
