//! Taking part in a team: its network, and what works for it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::task::JoinSet;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::envelope::NodeSecret;
use tvix_node_protocol::messages::Facts;
use tvix_node_store::IndexError;
use tvix_node_swarm::team::Team;
use tvix_node_swarm::{Config, SwarmHandle};

use super::super::fetch::{Arriving, Intake};
use super::super::grants::Grants;
use super::super::limits::SPOOL_IDLE;
use super::super::sample::Sampling;
use super::super::shelf::{StoreShelf, public_after};
use super::super::traffic::caps;
use super::super::view::TeamView;
use super::super::{Strayed, TeamNode};
use super::{Active, Membership, TeamFailure};
use crate::daemon::depot::Depot;

/// Paths listed at once.
const ANNOUNCED_PAGE: usize = 4096;

impl Membership {
    /// Takes part in a team that the node has just come to.
    pub(super) async fn begin(
        &self,
        team: Team,
        secret: Arc<NodeSecret>,
    ) -> Result<Arc<TeamNode>, TeamFailure> {
        let id = team.swarm();
        let started = self.start(team, secret).await;
        started.inspect_err(|error| self.rests(id, error))
    }

    pub(super) async fn start(
        &self,
        team: Team,
        secret: Arc<NodeSecret>,
    ) -> Result<Arc<TeamNode>, TeamFailure> {
        let (parts, shared) = (&self.parts, &self.shared);
        let (id, teams) = (team.swarm(), self.active().len() as u64 + 1);
        let view = TeamView::new(id, Arc::clone(&secret), parts.jobs.secret.key());
        let facts = Facts {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            systems: parts.own.systems.clone(),
            features: parts.own.features.clone(),
            slots: parts.own.slots,
            free: *parts.free.borrow(),
            cores: std::thread::available_parallelism()
                .map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(1)),
            ..Facts::default()
        };
        let mut config = Config {
            facts: facts.clone(),
            distrusted: BTreeMap::new(),
            mdns: true,
            relay: parts.relay && !parts.traffic.terms().metered,
            caps: caps(parts.traffic.terms(), teams),
            machine: shared.machine.clone(),
            ..Config::new(self.spool(id))
        };
        if let Some(listen) = &parts.listen {
            // A port is one team's: the next ones get a free one each.
            let place = |address: &SocketAddr| match teams {
                1 => *address,
                _ => SocketAddr::new(address.ip(), 0),
            };
            config.listen = listen
                .iter()
                .map(place)
                .flat_map(|address| multiaddresses(&address))
                .collect();
            // Who listens on the loopback interface alone wants to be found by nobody else.
            config.mdns = listen.iter().any(|address| !address.ip().is_loopback());
        }
        let grants = Arc::new(Grants::default());
        let (store, private) = (parts.depot.store().clone(), Arc::clone(&parts.depot.private));
        let shelf = StoreShelf::new(
            store,
            private,
            (Arc::clone(&grants), Arc::clone(&parts.traffic)),
            Arc::clone(&parts.depot.lent),
            view.clone(),
        );
        let secret = NodeSecret::from_bytes(&secret.to_bytes());
        let (swarm, events) = tvix_node_swarm::start(config, team, secret, Arc::new(shelf)).await?;
        let announcer = swarm.clone();
        let node = Arc::new(TeamNode {
            swarm,
            view,
            roll: Arc::clone(&parts.roll),
            derivations: Arc::default(),
            depot: Arc::clone(&parts.depot),
            jobs: Arc::clone(&parts.jobs),
            engine: parts.engine.clone(),
            slots: parts.own.slots,
            grants,
            shown: Arc::clone(&shared.shown),
            strayed: Strayed::default(),
            calls: Arc::default(),
            down: Mutex::default(),
            arriving: Arriving::default(),
            intake: Intake::new(&parts.depot),
            served: Arc::clone(&shared.served),
            trust: Arc::clone(&parts.trust),
            share: Arc::clone(&parts.share),
            traffic: Arc::clone(&parts.traffic),
            sampling: Arc::new(Sampling::default()),
            considering: Arc::clone(&shared.considering),
            refused: std::sync::Mutex::default(),
        });
        parts.roll.enter(node.swarm.clone());
        parts
            .depot
            .announce_with(id, Arc::new(move |paths| announcer.announce(paths)));
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&node).attend(events));
        tasks.spawn(Arc::clone(&node).publish_facts(facts, parts.free.clone()));
        let (capped, roll, mut terms) = (node.swarm.clone(), Arc::clone(&parts.roll), parts.traffic.watch());
        let relay = parts.relay;
        // They may have changed since they were read above.
        terms.mark_changed();
        tasks.spawn(async move {
            while terms.changed().await.is_ok() {
                let (teams, terms) = (roll.count() as u64, *terms.borrow_and_update());
                capped.set_caps(caps(terms, teams));
                capped.set_relaying(relay && !terms.metered);
            }
        });
        let tidied = node.swarm.clone();
        tasks.spawn(async move {
            match tidied.tidy_spool(SPOOL_IDLE).await {
                Ok(0) => {}
                Ok(bytes) => tracing::info!(bytes, "what broken transfers left long ago is removed"),
                Err(error) => tracing::warn!(%error, "what broken transfers left could not be removed"),
            }
        });
        // What was added between the listing at the start and the announcer.
        let (announcer, depot) = (node.swarm.clone(), Arc::clone(&parts.depot));
        tasks.spawn(async move {
            let listing = tokio::task::spawn_blocking(move || announce_all(&announcer, &depot));
            match listing.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "not everything here could be announced"),
                Err(error) => tracing::error!(%error, "not everything here could be announced"),
            }
        });
        let started = Arc::clone(&node);
        self.idle().remove(&id);
        self.active().push(Active { node, tasks });
        self.count_teams().await;
        tracing::info!(swarm = %id, addresses = ?started.swarm.addresses(), "takes part in a team");
        Ok(started)
    }
}

/// Announces every path that members of the team may learn of, once more.
fn announce_all(swarm: &SwarmHandle, depot: &Depot) -> Result<(), IndexError> {
    let mut after = None;
    loop {
        let page = public_after(
            depot.store(),
            &depot.private,
            swarm.swarm(),
            after.as_ref(),
            ANNOUNCED_PAGE,
        )?;
        let Some(last) = page.last() else {
            return Ok(());
        };
        after = Some(last.clone());
        let tell = |public: &[StorePath]| swarm.announce(public);
        depot.private.tell_public(&page, tell);
    }
}

/// TCP and QUIC at the same address.
fn multiaddresses(address: &SocketAddr) -> [String; 2] {
    let (ip, port) = (address.ip(), address.port());
    let kind = if ip.is_ipv4() { "ip4" } else { "ip6" };
    [
        format!("/{kind}/{ip}/tcp/{port}"),
        format!("/{kind}/{ip}/udp/{port}/quic-v1"),
    ]
}
