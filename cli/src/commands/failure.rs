//! Why a command failed, and its exit status.

use std::io;

use tvix_node::background::BackgroundError;
use tvix_node::command::CommandError;
use tvix_node::daemon::UpError;
use tvix_node::gateway::control::ClientError;
use tvix_node::home::HomeError;
use tvix_node::worker::SourceError;

use crate::arguments::UsageError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The user has been told; what is left is the exit status.
    #[error("failed with exit status {0}")]
    Told(u8),
    /// The command line asks for something that cannot be.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// The home cannot be used.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// There is no node to talk to.
    #[error(transparent)]
    Background(#[from] BackgroundError),
    /// The node refuses or went away.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The node cannot run.
    #[error(transparent)]
    Up(#[from] UpError),
    /// What is to be added cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// What is copied cannot be read or written.
    #[error("what should be copied cannot be: {0}")]
    Stream(#[from] io::Error),
    /// A node that does not keep to the protocol.
    #[error("the node answers another question than it was asked; this is a bug")]
    Unexpected,
    /// What was asked for is not there.
    #[error("{0}")]
    Absent(String),
    /// The node does not end.
    #[error(
        "the node was told to end {seconds} seconds ago and has not ended; what it says where 'tvix-node up' runs, or in the home's up.log, \
         may tell why"
    )]
    StillUp {
        /// How long it was waited for.
        seconds: u64,
    },
    /// This process lacks something.
    #[error("tvix-node cannot {what}: {source}")]
    Process {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl Failure {
    /// 2 for wrong usage, else 1: what evaluations and builds end in is told by [`CommandError`].
    pub const fn exit_status(&self) -> u8 {
        match self {
            Self::Told(status) => *status,
            // What the environment says is as if the command line said it.
            Self::Usage(_) | Self::Home(HomeError::Nowhere | HomeError::Relative(_)) => 2,
            _ => 1,
        }
    }
}

impl From<CommandError> for Failure {
    fn from(error: CommandError) -> Self {
        Self::Told(error.exit_status())
    }
}
