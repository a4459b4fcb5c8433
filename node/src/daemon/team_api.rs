//! What the control socket's door asks about the team.

use tvix_node_gateway::control::ApiError;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::BuildRecord;
use tvix_node_protocol::control::{
    FailureKind, FounderKey, FounderTicket, InviteRequest, Invited, JoinRequest, Joined, LeaveRequest,
    MemberName, MemberView, PeerView, PutOut, ReachedBy, RecordView, RefusedView, RenewRequest, TeamStatus,
    TeamView, TrafficView, WaitingView,
};
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::path_info::{Origin, PathInfo};
use tvix_node_protocol::roster::Roles;
use tvix_node_protocol::ticket::Ticket;
use tvix_node_swarm::Reached;
use tvix_node_swarm::roster::Waiting;
use tvix_node_swarm::team::JoinError;

use std::sync::Arc;

use super::api::{Api, failed};
use super::clock::now;
use super::doctor::ends_soon;
use crate::team::TeamNode;
use crate::team::membership::TeamFailure;

pub(super) fn refused(error: TeamFailure) -> ApiError {
    let kind = match &error {
        TeamFailure::None | TeamFailure::NoSuch { .. } => FailureKind::NotFound,
        TeamFailure::TooMany
        | TeamFailure::Over(_)
        | TeamFailure::NotRunning { .. }
        | TeamFailure::Resting(_)
        | TeamFailure::LastFounder { .. }
        | TeamFailure::Founded
        | TeamFailure::Join(JoinError::AlreadyIn(_)) => FailureKind::Conflict,
        TeamFailure::Which(_)
        | TeamFailure::Oneself(_)
        | TeamFailure::Founding(_)
        | TeamFailure::OwnFounder { .. }
        | TeamFailure::NotTheFounder(_)
        | TeamFailure::Member(_)
        | TeamFailure::State(_)
        | TeamFailure::Join(_) => FailureKind::Invalid,
        TeamFailure::Team(_)
        | TeamFailure::Start(_)
        | TeamFailure::Folder { .. }
        | TeamFailure::File { .. }
        | TeamFailure::KeyMissing { .. }
        | TeamFailure::First { .. } => FailureKind::Internal,
    };
    ApiError::new(kind, error.to_string())
}

/// What this node calls itself where its user did not say.
fn machine() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "node".to_owned() } else { name }
}

fn written(ticket: &Ticket) -> Result<String, ApiError> {
    ticket
        .to_text()
        .map_err(|error| ApiError::caused(FailureKind::Internal, "the ticket cannot be written down", error))
}

/// Makes a ticket for one new member, or for those that a team is founded with, or for one of those.
pub async fn invite(api: &Api, request: InviteRequest) -> Result<Invited, ApiError> {
    let name = request.name.clone().unwrap_or_else(machine);
    let expires = now().saturating_add(request.valid);
    if request.founder.is_some()
        && (request.new_team || !request.founders.is_empty() || request.threshold.is_some())
    {
        let message =
            "a ticket for a founder is for a team that is there: what founds one does not go with it";
        return Err(ApiError::new(FailureKind::Invalid, message));
    }
    let (node, founded) = match &request.founder {
        // There is none without the team.
        Some(_) => (api.team.one(request.team.as_deref()).map_err(refused)?, false),
        None => api.team.found(&request, &name).await.map_err(refused)?,
    };
    let mut invited: Vec<NodeKey> = request.founders.iter().map(|founder| founder.key).collect();
    if let Some(founder) = &request.founder {
        invited.push(node.founder(founder).map_err(refused)?);
    }
    let mut founders = Vec::with_capacity(invited.len());
    for key in invited {
        let ticket = node.swarm.invite_founder(key, expires);
        let ticket = written(&ticket.map_err(|error| refused(error.into()))?)?;
        let name = node.name_of(key);
        founders.push(FounderTicket { name, key, ticket });
    }
    let ticket = match founders.is_empty() {
        true => {
            let roles = request.roles.clone();
            let ticket = node.swarm.invite(roles, expires, request.lasts).await;
            Some(written(&ticket.map_err(|error| refused(error.into()))?)?)
        }
        false => None,
    };
    Ok(Invited {
        roles: match ticket {
            Some(_) => request.roles,
            None => Roles::all(),
        },
        ticket,
        founders,
        threshold: node.swarm.team().genesis().threshold,
        swarm: node.swarm.swarm(),
        expires,
        founded,
        addresses: node.swarm.addresses(),
    })
}

/// Makes a key by which this node can be a founder.
pub async fn founder_key(api: &Api) -> Result<FounderKey, ApiError> {
    let key = api.team.founder_key().await.map_err(refused)?;
    Ok(FounderKey { key })
}

/// Redeems a ticket.
pub async fn join(api: &Api, request: JoinRequest) -> Result<Joined, ApiError> {
    let ticket = Ticket::from_text(&request.ticket)
        .map_err(|error| ApiError::new(FailureKind::Invalid, error.to_string()))?;
    let name = request.name.unwrap_or_else(machine);
    let node = api.team.join(&ticket, &name).await.map_err(refused)?;
    let (me, genesis) = (node.swarm.key(), node.swarm.team().genesis());
    Ok(Joined {
        swarm: node.swarm.swarm(),
        // What whoever founded the team called it, where this node is a founder.
        name: node.name_of(me),
        members: node.swarm.members().len() as u64,
        founder: genesis.founders.iter().any(|founder| founder.key == me),
        founders: genesis.founders.len() as u64,
        threshold: genesis.threshold,
    })
}

/// Who is in the team.
pub async fn team(api: &Api, team: Option<String>) -> Result<TeamView, ApiError> {
    let node = api.team.one(team.as_deref()).map_err(refused)?;
    let team = node.swarm.team();
    // Whose time is over by now is among those who wait, and not here as well.
    team.refresh();
    let (members, connected) = (node.swarm.members(), node.swarm.connected());
    let now = now();
    let views = members.iter().map(|(key, member)| MemberView {
        key,
        name: member.name.clone(),
        roles: member.roles.clone(),
        issued_by: member.issued_by,
        founder: member.issued_by.is_none(),
        not_after: member.not_after,
        me: key == node.swarm.key(),
        connected: connected.contains(&key),
        to_renew: member.not_after.is_some_and(|end| ends_soon(end, now)),
        against: match member.issued_by {
            None => team.put_out_by(key),
            Some(_) => Vec::new(),
        },
    });
    let waiting = team.waiting().into_iter().map(|waits| waiting_view(&node, waits));
    let refused = node.refused_by().into_iter().map(|(key, why)| RefusedView {
        by: node.name_of(key),
        why,
    });
    Ok(TeamView {
        swarm: node.swarm.swarm(),
        me: node.swarm.key(),
        team: node.team_name(),
        name: node.name_of(node.swarm.key()),
        listening: node.swarm.addresses(),
        founders: team.genesis().founders.len() as u64,
        threshold: team.genesis().threshold,
        members: views.collect(),
        waiting: waiting.collect(),
        refused: refused.collect(),
    })
}

/// Somebody who waits to be renewed in a team.
pub(super) fn waiting_view(node: &TeamNode, (key, waits): (NodeKey, Waiting)) -> WaitingView {
    WaitingView {
        key,
        name: waits.name,
        roles: waits.roles,
        issued_by: waits.issued_by,
        issuer: node.swarm.team().called(waits.issued_by),
        not_after: waits.not_after,
        me: key == node.swarm.key(),
        why: waits.why,
    }
}

/// The teams in short, for the status.
pub fn status(api: &Api) -> Vec<TeamStatus> {
    api.team.all().iter().map(|node| in_short(node)).collect()
}

fn in_short(node: &TeamNode) -> TeamStatus {
    TeamStatus {
        swarm: node.swarm.swarm(),
        team: node.team_name(),
        me: node.swarm.key(),
        name: node.name_of(node.swarm.key()),
        members: node.swarm.members().len() as u64,
        connected: node.swarm.connected().len() as u64,
        listening: node.swarm.addresses(),
        reached: match node.swarm.reached() {
            Reached::Unknown => ReachedBy::Unknown,
            Reached::ByAll => ReachedBy::All,
            Reached::BySome => ReachedBy::Some,
            Reached::ByNone => ReachedBy::None,
        },
    }
}

/// Members of these teams there is a connection to, and what was exchanged with each.
pub fn peer_views(teams: &[Arc<TeamNode>]) -> Vec<PeerView> {
    teams.iter().flat_map(|node| peers_in(node)).collect()
}

fn peers_in(node: &TeamNode) -> Vec<PeerView> {
    let reached_by = node.swarm.reached_by();
    let peers = node.swarm.overview().into_iter().filter_map(|(key, known)| {
        let facts = known.status?.facts;
        let mut addresses = known.connections;
        for address in known.addresses {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        Some(PeerView {
            team: node.swarm.swarm(),
            key,
            name: node.name_of(key),
            addresses,
            version: facts.version,
            systems: facts.systems,
            features: facts.features,
            slots: facts.slots,
            free: facts.free,
            load: facts.load,
            withheld: facts.withheld,
            fixed_outputs: facts.fixed_outputs,
            reaches_this_node: reached_by.get(&key).copied(),
            speed: known.speed,
            round_trip_ms: known.round_trip.map(|time| time.as_secs_f64() * 1000.0),
            traffic: TrafficView {
                sent: known.traffic.content_sent + known.traffic.other_sent,
                received: known.traffic.content_received + known.traffic.other_received,
                content_sent: known.traffic.content_sent,
                content_received: known.traffic.content_received,
            },
        })
    });
    peers.collect()
}

/// Members there is a connection to: of one team, or of all.
pub async fn peers(api: &Api, team: Option<String>) -> Result<Vec<PeerView>, ApiError> {
    let teams = match team {
        Some(team) => vec![api.team.one(Some(&team)).map_err(refused)?],
        None => api.team.all(),
    };
    if teams.is_empty() {
        return Err(refused(api.team.none()));
    }
    Ok(peer_views(&teams))
}

/// Somebody whom the team that is named, or any, knows: a member, or one that waits to be renewed.
fn somebody_in(api: &Api, team: Option<&str>, member: &str) -> Result<(Arc<TeamNode>, NodeKey), ApiError> {
    match team {
        Some(team) => {
            let node = api.team.one(Some(team)).map_err(refused)?;
            let key = node.somebody(member).map_err(refused)?;
            Ok((node, key))
        }
        None => api.team.somebody(member).map_err(refused),
    }
}

/// Puts a member out of the team, or says so of a founder, which is out when enough others have.
pub async fn revoke(api: &Api, member: MemberName) -> Result<PutOut, ApiError> {
    let (node, key) = somebody_in(api, member.team.as_deref(), &member.member)?;
    if key == node.swarm.key() {
        return Err(refused(TeamFailure::Oneself(node.swarm.swarm())));
    }
    let revoked = node.swarm.revoke(key).await;
    revoked.map_err(|error| refused(error.into()))?;
    let team = node.swarm.team();
    let (out, founder) = team.with_roster(|roster| (roster.is_revoked(key), roster.is_founder(key)));
    Ok(PutOut {
        key,
        name: team.called(key),
        out,
        by: team.put_out_by(key),
        needed: if founder { team.genesis().threshold } else { 1 },
    })
}

/// Vouches for a member anew.
pub async fn renew(api: &Api, request: RenewRequest) -> Result<(), ApiError> {
    let (node, key) = somebody_in(api, request.team.as_deref(), &request.member)?;
    let before = node.swarm.members().get(key).map(|member| member.roles.clone());
    // What it was to be allowed, where it is no member any more. A founder has none, and is refused.
    let last = node
        .swarm
        .team()
        .with_roster(|roster| roster.latest(key).map(|last| last.roles.clone()));
    let roles = request.roles.or(before).or(last).unwrap_or_default();
    let renewed = node.swarm.renew(key, roles, request.lasts).await;
    renewed.map_err(|error| refused(error.into()))
}

/// Leaves the team.
pub async fn leave(api: &Api, request: LeaveRequest) -> Result<(), ApiError> {
    let left = api.team.leave(request.team.as_deref(), request.force).await;
    left.map_err(refused)
}

/// The signed records of the builds that made a path, the newest first.
pub async fn records(api: &Api, path: StorePath) -> Result<Vec<RecordView>, ApiError> {
    let wanted = path.clone();
    let envelopes = api
        .depot
        .blocking(move |store| Ok(store.records_of(&wanted)?))
        .await
        .map_err(failed)?;
    let info = match envelopes.is_empty() {
        // Nothing is known of it, so it should at least be here.
        true => Some(api.valid(&path).await?),
        false => api
            .depot
            .infos(vec![path.clone()])
            .await
            .map_err(failed)?
            .into_iter()
            .next(),
    };
    let own = api.team.own_keys();
    let mut records = Vec::with_capacity(envelopes.len());
    for envelope in envelopes {
        let mut view =
            RecordView::of(&envelope, api.team.name_of(envelope.signer), false).map_err(|error| {
                ApiError::caused(
                    FailureKind::Internal,
                    format!("a record of {path} in the store cannot be read"),
                    error,
                )
            })?;
        view.accepted = info
            .as_ref()
            .is_some_and(|info| came_by(info, &view.record, &own));
        records.push(view);
    }
    records.sort_by_key(|view| std::cmp::Reverse(view.record.finished));
    Ok(records)
}

/// Whether a path lies in the store of the node that has the keys `own` because of this record.
fn came_by(info: &PathInfo, record: &BuildRecord, own: &[NodeKey]) -> bool {
    let counts = match &info.origin {
        Origin::Built => own.contains(&record.builder),
        Origin::Record { builder } => *builder == record.builder,
        Origin::Content | Origin::Peer { .. } | Origin::Cache { .. } | Origin::Imported => false,
    };
    counts
        && record
            .outputs
            .values()
            .any(|output| output.path == info.path && output.tree == info.tree)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use tvix_node_protocol::build::{BuildKey, BuiltOutput};
    use tvix_node_protocol::path_info::NarHash;
    use tvix_node_protocol::tree::TreeDigest;

    use super::*;

    const ME: NodeKey = NodeKey([1; 32]);
    const BOB: NodeKey = NodeKey([2; 32]);

    fn path() -> StorePath {
        StorePath::from_parts([0; 20], "hello").unwrap()
    }

    fn info(origin: Origin) -> PathInfo {
        PathInfo {
            path: path(),
            tree: TreeDigest([5; 32]),
            nar_hash: NarHash([0; 32]),
            nar_size: 1,
            references: BTreeSet::new(),
            deriver: None,
            ca: None,
            origin,
            registered: 0,
            signatures: Vec::new(),
        }
    }

    fn record(builder: NodeKey, tree: u8) -> BuildRecord {
        let output = BuiltOutput {
            path: path(),
            tree: TreeDigest([tree; 32]),
            nar_hash: NarHash([0; 32]),
            nar_size: 1,
            references: Vec::new(),
        };
        BuildRecord {
            build_key: BuildKey([0; 32]),
            request: None,
            derivation: StorePath::from_parts([0; 20], "hello.drv").unwrap(),
            inputs: Vec::new(),
            outputs: BTreeMap::from([("out".to_owned(), output)]),
            builder,
            started: 0,
            finished: 0,
            sandbox: String::new(),
        }
    }

    #[test]
    fn a_path_came_by_the_record_of_whoever_it_is_from_and_of_this_content() {
        let cases = [
            (Origin::Built, ME, 5, true),
            (Origin::Built, BOB, 5, false),
            (Origin::Built, ME, 6, false),
            (Origin::Record { builder: BOB }, BOB, 5, true),
            (Origin::Record { builder: BOB }, ME, 5, false),
            (Origin::Content, ME, 5, false),
            (Origin::Peer { peer: BOB }, BOB, 5, false),
        ];
        for (origin, builder, tree, accepted) in cases {
            let found = came_by(&info(origin.clone()), &record(builder, tree), &[ME]);
            assert_eq!(found, accepted, "{origin:?} {builder} {tree}");
        }
    }
}
