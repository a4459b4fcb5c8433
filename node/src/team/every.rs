//! What is asked of all teams of a node together. What one answers, no other hears of.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tvix_node_coordinator::limits::SOURCES;
use tvix_node_coordinator::{Event, PathPresence};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::DesiredStore;
use tvix_node_protocol::envelope::NodeKey;

use tvix_node_swarm::underway::{ForOthers, Underway};

use super::TeamNode;
use super::presence::{About, Found};
use crate::daemon::depot::Depot;
use crate::daemon::folder;

/// Where paths are: here, in the desired store, at members of teams.
pub async fn presences(
    depot: &Arc<Depot>,
    teams: &[Arc<TeamNode>],
    desired: Option<DesiredStore>,
    paths: Vec<StorePath>,
) -> Vec<PathPresence> {
    let own = depot.presence(paths).await;
    let paths: Vec<StorePath> = own.iter().map(|(path, _)| path.clone()).collect();
    let missing = own.iter().filter(|(_, size)| size.is_none());
    let missing: Vec<StorePath> = missing.map(|(path, _)| path.clone()).collect();
    let (in_desired, mut elsewhere) = tokio::join!(
        in_desired(depot, teams, desired, paths),
        elsewhere(teams, &missing)
    );
    // A member that stands there and says nothing is not waited for long.
    let unheard = teams.iter().any(|team| team.somebody_is_silent());
    let presences = own.into_iter().map(|(path, nar_size)| {
        let found = elsewhere.remove(&path).unwrap_or_default();
        PathPresence {
            own: nar_size.is_some(),
            desired: in_desired.contains(&path),
            nar_size: nar_size.or(found.nar_size),
            sources: found.sources,
            unheard: unheard && nar_size.is_none(),
            path,
        }
    });
    presences.collect()
}

/// Which of these paths the desired store has. One that cannot be asked has none: the push that follows will say why.
async fn in_desired(
    depot: &Arc<Depot>,
    teams: &[Arc<TeamNode>],
    desired: Option<DesiredStore>,
    paths: Vec<StorePath>,
) -> BTreeSet<StorePath> {
    let has = match desired {
        None => return BTreeSet::new(),
        Some(DesiredStore::Folder(folder)) => folder::has(depot, folder, paths.clone()).await,
        Some(DesiredStore::Node(node)) => match teams.iter().find(|team| team.meets(node)) {
            Some(team) => team.in_store_of(node, &paths).await,
            None => return BTreeSet::new(),
        },
    };
    let has = paths.into_iter().zip(has).filter(|(_, has)| *has);
    has.map(|(path, _)| path).collect()
}

/// Who in any team has these paths and is believed for them there.
async fn elsewhere(teams: &[Arc<TeamNode>], paths: &[StorePath]) -> BTreeMap<StorePath, Found> {
    let answers = teams.iter().map(|team| team.elsewhere(paths));
    let mut all: BTreeMap<StorePath, Found> = BTreeMap::new();
    for found in futures::future::join_all(answers).await {
        for (path, found) in found {
            let known = all.entry(path).or_default();
            known.nar_size = known.nar_size.or(found.nar_size);
            known.sources.extend(found.sources);
            known.sources.truncate(SOURCES);
        }
    }
    all
}

/// How much of a derivation's inputs which of these nodes has, who builds it, and whether somebody has its outputs by
/// now.
pub async fn weigh(teams: &[Arc<TeamNode>], underway: &Underway, about: About, nodes: Vec<NodeKey>) -> Event {
    let asked = teams.iter().map(|team| {
        let met = nodes.iter().copied().filter(|node| team.meets(*node));
        team.weigh(&about, met.collect())
    });
    let (mut total, mut there) = (0, Vec::new());
    let (mut here, mut made, mut promised) = (0, false, false);
    let mut makers = BTreeSet::new();
    for weighed in futures::future::join_all(asked).await {
        total = total.max(weighed.total);
        here = here.max(weighed.here);
        made |= weighed.made;
        promised |= weighed.promised;
        makers.extend(weighed.makers.into_iter().map(Some));
        there.extend(weighed.there.into_iter().map(|(node, bytes)| (Some(node), bytes)));
    }
    there.insert(0, (None, here));
    // What others have this node build is known here, whoever they are.
    match underway.for_others(&about.derivation, about.terms) {
        ForOthers::Runs if about.joins.is_some() => drop(makers.insert(None)),
        ForOthers::Waits if about.joins.is_some() => promised = true,
        ForOthers::Runs | ForOthers::Waits | ForOthers::Not => {}
    }
    Event::InputsWeighed {
        derivation: about.derivation,
        total,
        there,
        makers: makers.into_iter().collect(),
        promised,
        made,
    }
}

/// These members, by the team that each is met in, in the order of the teams. Who is met in none is left out.
pub fn by_team(teams: &[Arc<TeamNode>], nodes: &[NodeKey]) -> Vec<(Arc<TeamNode>, Vec<NodeKey>)> {
    let parts = teams.iter().map(|team| {
        let met = nodes.iter().copied().filter(|node| team.meets(*node));
        (Arc::clone(team), met.collect::<Vec<NodeKey>>())
    });
    parts.filter(|(_, nodes)| !nodes.is_empty()).collect()
}
