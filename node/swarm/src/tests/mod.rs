//! Nodes of a team in one process, on loopback.

mod bounds;
mod broken_off;
mod building;
mod finding;
mod frames;
mod joining;
mod leaving;
mod liars;
mod local_network;
mod memory;
mod parts;
mod pushing;
mod reachability;
mod relayed;
mod rosters;
mod shelf;
mod small_trees;
mod strangers;
mod streams;
mod texts;
mod transfer;
mod underway;
mod versions;

use std::sync::Arc;
use std::time::Duration;

use tvix_node_protocol::envelope::{NodeKey, NodeSecret};
use tvix_node_protocol::messages::Facts;
use tvix_node_protocol::roster::{Founder, Role, Roles};
use tvix_node_protocol::ticket::Ticket;

use crate::config::Config;
use crate::events::{Notice, SwarmEvents};
use crate::handle::{SwarmHandle, start_serving};
use crate::protocols::{Serve, honestly};
use crate::team::{Team, join};
use crate::{Clock, Shelf};
use shelf::TestShelf;

/// Longer than anything here takes on the slowest machine; only a fault waits so long.
const PATIENCE: Duration = Duration::from_secs(60);
const DAY: u64 = 24 * 3600;

/// A node with a home of its own.
struct TestNode {
    handle: SwarmHandle,
    events: SwarmEvents,
    shelf: Arc<TestShelf>,
    seed: u8,
    home: tempfile::TempDir,
}

fn secret(seed: u8) -> NodeSecret {
    NodeSecret::from_bytes(&[seed; 32])
}

fn key(seed: u8) -> NodeKey {
    secret(seed).key()
}

fn config(home: &tempfile::TempDir) -> Config {
    Config {
        listen: vec![
            "/ip4/127.0.0.1/tcp/0".into(),
            "/ip4/127.0.0.1/udp/0/quic-v1".into(),
        ],
        facts: Facts {
            version: "test".into(),
            ..Facts::default()
        },
        ..Config::new(home.path().join("spool"))
    }
}

impl TestNode {
    /// The first node of a team.
    async fn founder(seed: u8) -> Self {
        Self::founder_as(seed, |_| ()).await
    }

    async fn founder_as(seed: u8, change: impl FnOnce(&mut Config)) -> Self {
        let home = tempfile::tempdir().unwrap();
        let me = Founder {
            key: key(seed),
            name: format!("node {seed}"),
        };
        let team = Team::found(home.path(), "team", me, vec![], 1).unwrap();
        Self::start_with(seed, home, team, honestly, change).await
    }

    /// A node that joins with a ticket of this one.
    async fn invite(&self, seed: u8) -> Self {
        self.invite_as(seed, Roles::all(), honestly, |_| ()).await
    }

    async fn invite_as(
        &self,
        seed: u8,
        roles: Roles,
        serve: Serve,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let home = tempfile::tempdir().unwrap();
        let ticket = self.ticket_for(roles).await;
        let team = join(
            home.path(),
            &secret(seed),
            &ticket,
            &format!("node {seed}"),
            &Clock::system(),
        )
        .await
        .unwrap();
        Self::start_with(seed, home, team, serve, change).await
    }

    async fn ticket(&self) -> Ticket {
        self.ticket_for(Roles::all()).await
    }

    async fn ticket_for(&self, roles: Roles) -> Ticket {
        self.handle.invite(roles, now() + DAY, DAY).await.unwrap()
    }

    async fn start(seed: u8, home: tempfile::TempDir, team: Team) -> Self {
        Self::start_with(seed, home, team, honestly, |_| ()).await
    }

    async fn start_with(
        seed: u8,
        home: tempfile::TempDir,
        team: Team,
        serve: Serve,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let shelf = Arc::new(TestShelf::default());
        let mut config = config(&home);
        change(&mut config);
        Self::start_on(seed, home, team, serve, config, shelf).await
    }

    async fn start_on(
        seed: u8,
        home: tempfile::TempDir,
        team: Team,
        serve: Serve,
        config: Config,
        shelf: Arc<TestShelf>,
    ) -> Self {
        let as_shelf: Arc<dyn Shelf> = shelf.clone();
        let (handle, events) = start_serving(config, team, secret(seed), as_shelf, serve)
            .await
            .unwrap();
        Self {
            handle,
            events,
            shelf,
            seed,
            home,
        }
    }

    /// Ends it and starts it again in the same home, with what it has.
    async fn restart(self) -> Self {
        let swarm = self.handle.swarm();
        self.handle.shutdown().await;
        drop((self.handle, self.events));
        let team = Team::open(self.home.path(), swarm).unwrap();
        let config = config(&self.home);
        Self::start_on(self.seed, self.home, team, honestly, config, self.shelf).await
    }

    fn key(&self) -> NodeKey {
        self.handle.key()
    }

    /// Waits until this node and a peer have greeted each other.
    async fn meets(&mut self, peer: NodeKey) {
        self.notice(|handle, _| handle.peers().contains_key(&peer)).await;
    }

    /// Waits for a notice after which a condition holds.
    async fn notice(&mut self, holds: impl Fn(&SwarmHandle, Option<&Notice>) -> bool) {
        let waiting = async {
            if holds(&self.handle, None) {
                return;
            }
            while let Some(notice) = self.events.notices.recv().await {
                if holds(&self.handle, Some(&notice)) {
                    return;
                }
            }
            panic!("the node is gone");
        };
        tokio::time::timeout(PATIENCE, waiting)
            .await
            .expect("it does not happen");
    }

    /// Waits until everyone who should know what this node has knows it.
    async fn publishes(&self) {
        eventually(async || self.handle.is_published().await).await;
    }
}

/// Waits for what nobody reports.
async fn eventually(holds: impl AsyncFn() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .expect("it does not happen");
}

async fn soon<T>(action: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, action)
        .await
        .expect("it does not end")
}

fn now() -> u64 {
    Clock::system().now()
}

fn roles(roles: &[Role]) -> Roles {
    roles.iter().copied().collect()
}
