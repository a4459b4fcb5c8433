//! Why a command did not do what it should.

use std::io;
use std::path::PathBuf;

use tvix_node_gateway::control::ClientError;
use tvix_node_store::FileError;

use crate::background::BackgroundError;
use crate::home::HomeError;
use crate::namespace::EnterError;

/// Why a command did not do what it should. [`exit_status`](Self::exit_status) is what scripts see.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The command line asks for something that cannot be.
    #[error("{0}")]
    Usage(String),
    /// The expression's file is not there.
    #[error("there is no '{}'{}", .path.display(), .hint)]
    NoFile {
        /// Which.
        path: PathBuf,
        /// What to do.
        hint: &'static str,
    },
    /// The evaluation failed; its errors have been shown.
    #[error("{0} could not be evaluated")]
    Evaluation(String),
    /// Builds failed; that has been shown.
    #[error("{0}")]
    BuildFailed(String),
    /// The user interrupted it.
    #[error("interrupted")]
    Interrupted,
    /// The node ended before the command was done.
    #[error("the node was stopped before this was done, by 'tvix-node down' or a signal")]
    Stopped,
    /// The home cannot be used.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// There is no node to talk to.
    #[error(transparent)]
    Background(#[from] BackgroundError),
    /// The node refused something, or went away.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The session with the node broke off.
    #[error(
        "the node ended the session without saying how: it was stopped or failed. What it said stands where \
         'tvix-node up' runs, or in '{}' where a command had started it in the background", .0.display()
    )]
    Broken(PathBuf),
    /// The evaluation ended without a result.
    #[error("the evaluation broke off; this is a bug in tvix-node, and what is printed above says where")]
    BrokeOff,
    /// A link to a result cannot be made.
    #[error("the link '{}' cannot be made: {source}", .link.display())]
    Link {
        /// Which.
        link: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The program of a result cannot be found or run.
    #[error(transparent)]
    Enter(#[from] EnterError),
    /// What a program uses could not be kept from being collected, so it was not started.
    #[error("the program was not started, because what it uses could not be kept: {0}")]
    Keep(#[from] FileError),
    /// This process lacks something.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why not.
        source: io::Error,
    },
}

impl CommandError {
    /// 1 a build failed (or what builds need), 2 bad usage, 3 the evaluation failed, 130
    /// interrupted.
    #[must_use]
    pub const fn exit_status(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::NoFile { .. } => 2,
            Self::Evaluation(_) => 3,
            Self::Interrupted => 130,
            _ => 1,
        }
    }
}
