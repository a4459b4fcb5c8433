//! Why a command got no answer from a node.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tvix_node_protocol::control::{CONTROL_VERSION, Failure};

use super::socket::SocketError;

/// Why a request to a node failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The home has no node that is up.
    #[error("no node is up in the home '{}'", .home.display())]
    NoNode {
        /// The home.
        home: PathBuf,
        /// What the socket says.
        source: io::Error,
    },
    /// The socket cannot be reached at all.
    #[error("the control socket cannot be reached")]
    Socket(#[from] SocketError),
    /// The socket is there, but cannot be used.
    #[error("the node's control socket '{}' cannot be used", .socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another user's process listens there.
    #[error("the control socket '{}' belongs to a process of the user with number {user}, which is neither you nor root: not used", .socket.display())]
    Stranger {
        /// The socket.
        socket: PathBuf,
        /// Whose process it is.
        user: u32,
    },
    /// The node is of another version.
    #[error("this program speaks version {CONTROL_VERSION} of the control protocol, and the node that is up in '{}' version {theirs}: run 'tvix-node down', then the command again", .home.display())]
    Version {
        /// The home.
        home: PathBuf,
        /// What the node speaks.
        theirs: String,
    },
    /// The node refuses or fails.
    #[error("{}", .0.error)]
    Refused(Failure, #[source] Option<Causes>),
    /// The connection broke in the middle of a request.
    #[error(
        "the connection to the node broke while it was asked for '{request}'; 'tvix-node status' tells whether it is still up"
    )]
    Broken {
        /// The request's address.
        request: String,
        /// How it broke.
        source: hyper::Error,
    },
    /// The node is there and does not answer.
    #[error(
        "the node of '{}' does not answer, and has had {} seconds for it: it may be stopped (a signal, a debugger) or have no \
         processor left. {}",
        .home.display(), .patience.as_secs(), where_it_is(*.process)
    )]
    Silent {
        /// The home.
        home: PathBuf,
        /// For how long it was waited for.
        patience: Duration,
        /// Its process.
        process: Option<i32>,
    },
    /// The answer is not one.
    #[error("the node's answer to '{request}' makes no sense: {reason}")]
    Answer {
        /// The request's address.
        request: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The request cannot be sent.
    #[error("the request '{request}' cannot be made: {reason}")]
    Request {
        /// The request's address.
        request: String,
        /// Why not.
        reason: String,
    },
    /// The events stopped before the session ended.
    #[error(
        "the node went away in the middle of the session: its end of the connection was closed; the home's 'up.log' may say why"
    )]
    EventsCut(#[source] Option<hyper::Error>),
}

fn where_it_is(process: Option<i32>) -> String {
    match process {
        Some(process) => format!(
            "It is process {process}: 'kill -CONT {process}' has it go on, 'kill -KILL {process}' ends it, and loses nothing that was reported"
        ),
        None => "Its process is not known".to_owned(),
    }
}

/// The causes that a node told with a failure, as a chain of sources.
#[derive(Debug)]
pub struct Causes {
    message: String,
    next: Option<Box<Causes>>,
}

impl Causes {
    fn chain(messages: &[String]) -> Option<Self> {
        messages.iter().rev().fold(None, |next, message| {
            Some(Self {
                message: message.clone(),
                next: next.map(Box::new),
            })
        })
    }
}

impl std::fmt::Display for Causes {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Causes {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.next
            .as_deref()
            .map(|next| next as &(dyn std::error::Error + 'static))
    }
}

impl From<Failure> for ClientError {
    fn from(failure: Failure) -> Self {
        let causes = Causes::chain(&failure.causes);
        Self::Refused(failure, causes)
    }
}
