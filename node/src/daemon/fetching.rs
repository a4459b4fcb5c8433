//! Carries out fetches of the coordinator: from members of the team first, then from upstream caches.

use std::sync::Arc;

use tokio::sync::mpsc;
use tvix_node_coordinator::{Event, FetchId, Source};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_swarm::Rising;

use super::depot::Depot;
use super::engine::Message;
use super::limits::FETCH_STEPS;
use crate::team::fetch::FetchFailure;
use crate::team::{TeamNode, every};
use crate::upstream::Step;

/// Fetches a path and everything it refers to, and reports how it went.
pub async fn fetch(
    (depot, teams, engine): (Arc<Depot>, Vec<Arc<TeamNode>>, mpsc::Sender<Message>),
    fetch: FetchId,
    path: StorePath,
    (from, priority): (Vec<Source>, Rising),
) {
    let peer = |source: &Source| match source {
        Source::Peer(node) => Some(*node),
        Source::Cache(_) | Source::Folder(_) => None,
    };
    let peers: Vec<NodeKey> = from.iter().filter_map(peer).collect();
    let has_caches = peers.len() < from.len();
    let mut failures = Vec::new();
    let (mut done, mut fits) = (false, true);
    // Each member is asked in the team that it is met in, and told of no other.
    for (team, peers) in every::by_team(&teams, &peers) {
        if done {
            break;
        }
        match team.fetch(fetch, path.clone(), peers, &priority).await {
            Ok(()) => done = true,
            Err(error) => {
                fits &= !matches!(error, FetchFailure::Room { .. });
                failures.push(error.to_string());
            }
        }
    }
    if !peers.is_empty() && teams.is_empty() {
        failures.push("this node takes part in no team".to_owned());
    }
    if !done && has_caches {
        match from_caches((&depot, &teams, &engine), fetch, &path).await {
            Ok(()) => done = true,
            Err(error) => failures.push(error),
        }
    }
    let event = if done {
        Event::FetchFinished { fetch }
    } else {
        if failures.is_empty() {
            failures.push(format!("nobody is known who has {path}"));
        }
        let error = failures.join("; ");
        match fits {
            true => Event::FetchFailed { fetch, error },
            false => Event::NoRoom { fetch, error },
        }
    };
    // Where the engine has ended, nobody needs to know.
    drop(engine.send(Message::Happened(event)).await);
}

async fn from_caches(
    (depot, teams, engine): (&Arc<Depot>, &[Arc<TeamNode>], &mpsc::Sender<Message>),
    fetch: FetchId,
    path: &StorePath,
) -> Result<(), String> {
    let (steps, mut told) = mpsc::channel(FETCH_STEPS);
    let forwarding = async {
        while let Some(step) = told.recv().await {
            let event = match step {
                Step::Started { path, from } => Event::FetchStarted { fetch, path, from },
                Step::Arrived { path, from, bytes } => Event::FetchArrived {
                    fetch,
                    path,
                    from,
                    bytes,
                },
            };
            drop(engine.send(Message::Happened(event)).await);
        }
    };
    let roots = std::slice::from_ref(path);
    let bringing = depot.upstreams.bring(depot, teams, roots, Some(steps));
    let (brought, ()) = tokio::join!(bringing, forwarding);
    brought.map_err(|error| error.to_string())
}
