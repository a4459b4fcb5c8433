//! Why a team cannot be taken part in.

use std::path::PathBuf;

use tvix_node_protocol::build::SwarmId;
use tvix_node_protocol::control::{MemberError, RestingTeam};
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::founding::FoundingError;
use tvix_node_swarm::gate::NonceError;
use tvix_node_swarm::roster::RosterFileError;
use tvix_node_swarm::team::{JoinError, StateError, TeamError};
use tvix_node_swarm::{DiskError, StartError};

use super::super::limits::TEAMS;
use super::super::roll::short;

/// Why a team cannot be taken part in.
#[derive(Debug, thiserror::Error)]
pub enum TeamFailure {
    /// Its files.
    #[error(transparent)]
    Team(#[from] TeamError),
    /// The network.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The ticket.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The roster.
    #[error(transparent)]
    State(#[from] StateError),
    /// Several, and none was named.
    #[error("this node takes part in several teams: say which one with '--team', {}", listed(.0))]
    Which(Vec<(SwarmId, String)>),
    /// Founders are those that the team was founded with.
    #[error(
        "this node is in a team already, whose founders are those that it was founded with: '--new-team' founds another one, beside \
         it, with founders and a threshold of its own"
    )]
    Founded,
    /// It cannot be founded like this.
    #[error(transparent)]
    Founding(#[from] FoundingError),
    /// This node would be two of the founders.
    #[error(
        "the key {key} of '{name}' is this node's own: whoever founds the team is one of its founders anyway. The key is what \
         'tvix-node founder-key' prints on the machine of '{name}'"
    )]
    OwnFounder {
        /// The key.
        key: NodeKey,
        /// Who should be a founder by it.
        name: String,
    },
    /// A ticket for a founder, which this node is not.
    #[error(
        "the ticket is for the founder with the key {0}, which this node does not have: it is redeemed where 'tvix-node founder-key' \
         printed that key. Where the key is lost, or by now that of another team, a team has to be founded with a new one; to be a \
         member like others, ask for a ticket that is not a founder's"
    )]
    NotTheFounder(NodeKey),
    /// None is called so.
    #[error(
        "this node takes part in no team that is called '{}' or whose id begins so; its teams are {}",
        .wanted.escape_debug(), listed(.teams)
    )]
    NoSuch {
        /// What was asked for.
        wanted: String,
        /// Which there are.
        teams: Vec<(SwarmId, String)>,
    },
    /// More than a node keeps up with.
    #[error(
        "this node takes part in {TEAMS} teams already, which is as many as one may: leave one first ('tvix-node leave')"
    )]
    TooMany,
    /// There is none.
    #[error(
        "this node takes part in no team: 'tvix-node join TICKET' makes it a member of one, 'tvix-node invite' founds one"
    )]
    None,
    /// There are some, and none can be taken part in.
    #[error(
        "this node takes part in no team at the moment: {}. Mend that and start the node again ('tvix-node down', 'tvix-node up'); 'tvix-node leave \
         --team ID' gives a team up for good, with this node's key in it, 'tvix-node invite --new-team' founds another one",
        .0.iter().map(|team| format!("its team {} is not running: {}", short(team.swarm), team.reason)).collect::<Vec<_>>().join("; ")
    )]
    Resting(Vec<RestingTeam>),
    /// All memberships hang on this node's.
    #[error(
        "this node is the last founder of the team {team}, and every membership hangs on it: when it leaves, all others \
         ({others}) are no members any more, and nobody can renew or put out anybody. 'tvix-node leave --force' leaves all the same; \
         then somebody founds a new team ('tvix-node invite --new-team') and invites the others",
        team = short(*.team)
    )]
    LastFounder {
        /// Which team.
        team: SwarmId,
        /// How many others there are.
        others: usize,
    },
    /// This node is meant, which leaves, and is not put out.
    #[error("that is this node: 'tvix-node leave --team {}' leaves the team", short(*.0))]
    Oneself(SwarmId),
    /// A name or key that is no member's, or several members'.
    #[error(transparent)]
    Member(#[from] MemberError),
    /// A file of the teams.
    #[error("'{}' cannot be {action}: {source}", .file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// The note of the first team.
    #[error("'{}' should hold the id of the first team of this node: {reason}", .file.display())]
    First {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A team in which the node has another key than that of its home, which is not there.
    #[error(
        "this node's key in the team {} is missing: restore '{}' from a backup, or give the team up with \
         'tvix-node leave --team {}'",
        short(*.team), .file.display(), short(*.team)
    )]
    KeyMissing {
        /// Where the key should be.
        file: PathBuf,
        /// Which team.
        team: SwarmId,
    },
    /// The node belongs to the team, and is no member any more.
    #[error(
        "this node's membership of the team {} is over: it has ended, or the node's key was put out. 'tvix-node leave --team \
         {}' gives it up; then the ticket can be redeemed, by another key",
        short(*.0), short(*.0)
    )]
    Over(SwarmId),
    /// The node belongs to the team, and does not take part in it, though it could.
    #[error(
        "this node belongs to the team {}, which is not running: {reason}. Its members cannot be told now that the node \
         leaves. Mend that, start the node again ('tvix-node down', 'tvix-node up'), then 'tvix-node leave --team {}'",
        short(*.team), short(*.team)
    )]
    NotRunning {
        /// Which team.
        team: SwarmId,
        /// Why it was not started.
        reason: String,
    },
    /// A folder of the team.
    #[error("the team's folder '{}' cannot be removed: {source}", .folder.display())]
    Folder {
        /// Which.
        folder: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

impl TeamFailure {
    /// Whether the team can never be taken part in with what is here of it: its key or roster is missing, or what is in a
    /// file of it is not what was written there. What may pass, as a port that is in use, is not.
    pub(super) fn is_loss(&self) -> bool {
        let damaged = |error: &DiskError| matches!(error, DiskError::Damaged { .. });
        match self {
            Self::KeyMissing { .. } => true,
            Self::Team(error) => match error {
                TeamError::Secret { .. } | TeamError::Roster(RosterFileError::Genesis { .. }) => true,
                TeamError::Roster(RosterFileError::Disk(error)) | TeamError::Disk(error) => damaged(error),
                _ => false,
            },
            Self::Start(StartError::Disk(error)) => damaged(error),
            Self::Start(StartError::Nonces(error)) => matches!(error, NonceError::Damaged { .. }),
            _ => false,
        }
    }
}

/// Teams as an error lists them.
fn listed(teams: &[(SwarmId, String)]) -> String {
    let teams = teams
        .iter()
        .map(|(team, name)| format!("{} ({name})", short(*team)));
    teams.collect::<Vec<_>>().join(", ")
}
