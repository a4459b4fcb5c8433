//! A member, or one who would like to be, in the process of the test.

use std::fs::File;
use std::sync::Arc;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::SwarmId;
use tvix_node_protocol::envelope::{NodeKey, NodeSecret};
use tvix_node_protocol::messages::Shown;
use tvix_node_protocol::ticket::Ticket;
use tvix_node_protocol::tree::{BlobDigest, Tree, TreeDigest};
use tvix_node_swarm::events::SwarmEvents;
use tvix_node_swarm::team::{self as membership, Team};
use tvix_node_swarm::{Clock, Config, FindScope, Shelf, ShelfError, SwarmHandle};

use super::nodes::Node;

/// A store in which nothing is.
struct Empty;

impl Shelf for Empty {
    fn advertised(&self, _: Option<&StorePath>, _: usize) -> Result<Vec<StorePath>, ShelfError> {
        Ok(Vec::new())
    }
    fn path_info(&self, _: NodeKey, _: &StorePath) -> Result<Option<Shown>, ShelfError> {
        Ok(None)
    }
    fn may_serve(&self, _: NodeKey, _: TreeDigest) -> Result<bool, ShelfError> {
        Ok(false)
    }
    fn tree(&self, _: TreeDigest) -> Result<Option<Tree>, ShelfError> {
        Ok(None)
    }
    fn has_blobs(&self, blobs: &[BlobDigest]) -> Result<Vec<bool>, ShelfError> {
        Ok(vec![false; blobs.len()])
    }
    fn blob(&self, _: BlobDigest) -> Result<Option<File>, ShelfError> {
        Ok(None)
    }
}

/// A member in this process that only looks.
pub struct Observer {
    pub swarm: SwarmHandle,
    folder: tempfile::TempDir,
    _events: SwarmEvents,
}

impl Observer {
    /// Joins the team of a node.
    pub async fn join(node: &Node) -> Self {
        let (folder, swarm, secret) = Self::become_member(node).await;
        Self::start(folder, swarm, secret).await
    }

    /// Knows all that a member knows, and where the others are, but has another key.
    pub async fn impostor(node: &Node) -> Self {
        let (folder, swarm, _) = Self::become_member(node).await;
        Self::start(folder, swarm, membership::new_secret().expect("a secret")).await
    }

    async fn become_member(node: &Node) -> (tempfile::TempDir, SwarmId, NodeSecret) {
        let ticket = tokio::task::block_in_place(|| node.ticket(&[]));
        let ticket = Ticket::from_text(&ticket).expect("a ticket");
        let folder = tempfile::tempdir().expect("a folder");
        let secret = membership::new_secret().expect("a secret");
        let clock = Clock::system();
        let teams = folder.path().join("teams");
        let joined = membership::join(&teams, &secret, &ticket, "observer", &clock).await;
        let swarm = joined.expect("the ticket is good").swarm();
        (folder, swarm, secret)
    }

    async fn start(folder: tempfile::TempDir, swarm: SwarmId, secret: NodeSecret) -> Self {
        let team = Team::open(&folder.path().join("teams"), swarm).expect("the team's folder");
        let config = Config {
            listen: vec!["/ip4/127.0.0.1/tcp/0".to_owned()],
            ..Config::new(folder.path().join("spool"))
        };
        let (swarm, events) = tvix_node_swarm::start(config, team, secret, Arc::new(Empty))
            .await
            .expect("the team is there");
        Self {
            swarm,
            folder,
            _events: events,
        }
    }

    /// Who has a path, by the records that members keep.
    pub async fn holders(&self, path: &StorePath) -> Vec<NodeKey> {
        let found = self
            .swarm
            .find(std::slice::from_ref(path), FindScope::Records)
            .await;
        found
            .into_values()
            .flat_map(|holders| holders.into_keys())
            .collect()
    }

    /// Waits until those are the holders of a path.
    pub async fn sees(&self, path: &StorePath, holders: &[NodeKey]) {
        let seeing = async {
            while self.holders(path).await != holders {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        let patience = std::time::Duration::from_secs(60);
        if tokio::time::timeout(patience, seeing).await.is_err() {
            let seen = self.holders(path).await;
            panic!("{path}: {seen:?} have it, not {holders:?}");
        }
    }

    pub async fn leave(self) {
        self.swarm.shutdown().await;
        drop(self.folder);
    }
}
