//! What a node is doing.

use serde::{Deserialize, Serialize};

use super::{PeerView, SessionMode, TeamStatus};
use crate::build::SwarmId;
use crate::envelope::NodeKey;
use crate::nix::store_path::{StorePath, basename};

/// What a node is doing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// [`CONTROL_VERSION`](super::CONTROL_VERSION) of the node.
    pub version: u32,
    /// Version of the program.
    pub program: String,
    /// The node's key.
    pub node: NodeKey,
    /// Process id.
    pub pid: u32,
    /// The home.
    pub home: String,
    /// Seconds since it started.
    pub uptime: u64,
    /// Builds it runs at once.
    pub slots: u32,
    /// Whether it stops by itself when nobody uses it.
    pub idle_exit: bool,
    /// Commands that use it now.
    pub sessions: Vec<SessionStatus>,
    /// Builds that run now.
    pub builds: Vec<BuildStatus>,
    /// Paths in its store.
    pub paths: u64,
    /// The teams it takes part in, in the order in which it came to them.
    pub teams: Vec<TeamStatus>,
    /// Teams it belongs to and does not take part in, and why not.
    #[serde(default)]
    pub resting: Vec<RestingTeam>,
    /// Members it is connected with.
    pub peers: Vec<PeerView>,
    /// Binary caches it takes paths from.
    #[serde(default)]
    pub caches: Vec<CacheStatus>,
}

/// A team that a node belongs to and does not take part in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestingTeam {
    /// The team.
    pub swarm: SwarmId,
    /// Why not, in words.
    pub reason: String,
}

/// A binary cache that a node takes paths from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheStatus {
    /// Its URL.
    pub url: String,
    /// Paths that came from it since the node is up.
    pub paths: u64,
    /// Bytes of their archives.
    pub bytes: u64,
    /// Seconds for which it is not asked, because it failed.
    pub skipped: Option<u64>,
    /// How it failed.
    pub reason: Option<String>,
}

/// A command that uses the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionStatus {
    /// Its number.
    pub session: u64,
    /// What it does.
    pub mode: SessionMode,
    /// Seconds since it was opened.
    pub age: u64,
    /// Derivations instantiated so far.
    pub derivations: u64,
    /// Derivations that wait to be built.
    pub waiting: u64,
}

/// A build that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildStatus {
    /// What.
    #[serde(with = "basename")]
    pub derivation: StorePath,
    /// Where.
    pub node: String,
    /// Seconds since it started.
    pub age: u64,
    /// The last line of its log.
    pub last_line: String,
    /// Sessions that want it.
    pub sessions: Vec<u64>,
    /// The slot of this node that it has; none: another node builds it.
    pub slot: Option<u32>,
    /// The member that asked this node to build it; none: it is for this node's own sessions.
    pub requester: Option<String>,
}
