//! Why a far build came to nothing, and what follows from that.

use tvix_node_coordinator::FailureKind;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::messages::{self, Refusal, RefusalReason};
use tvix_node_swarm::{BuildCallError, CallError};

use crate::daemon::depot::DepotError;
use crate::team::fetch::FetchFailure;

/// Why a far build came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum RequestFailure {
    /// The store of this node.
    #[error(transparent)]
    Depot(#[from] DepotError),
    /// An input that can be had from nobody.
    #[error("the inputs cannot all be had: {reason}")]
    Inputs {
        /// What the build reads itself; some of it, or of what that refers to, is gone.
        direct: Vec<StorePath>,
        /// Which, and why.
        reason: String,
    },
    /// Something that nobody may know of.
    #[error("{0} is private ('tvix-node private'), so nobody else is asked to build with it")]
    Private(StorePath),
    /// Something that came from another team.
    #[error(
        "{0} came from another team, so nobody in this one is asked to build with it; what is made of both is built on this \
         node alone, if it has slots and '--jobs 0' is not given"
    )]
    OtherTeam(StorePath),
    /// Inputs that another team may have.
    #[error("its inputs are not to be had in the team of that builder: {0}")]
    Elsewhere(String),
    /// Somebody in one team is not told of anybody in another.
    #[error("{0} is not in the team of the store where the outputs should go")]
    OtherStore(String),
    /// No random numbers for the nonce.
    #[error("the machine gives no random numbers: {0}")]
    Random(getrandom::Error),
    /// The builder cannot be reached.
    #[error(transparent)]
    Call(#[from] BuildCallError),
    /// It was reached, and is gone.
    #[error("it went away during the build: {}", without_who(.0))]
    WentAway(BuildCallError),
    /// It is there, and breaks off again and again.
    #[error("it breaks off without a word: {}", without_who(.0))]
    BreaksOff(BuildCallError),
    /// The builder says no.
    #[error("{name} does not build it: {refusal}")]
    Refused {
        /// Who.
        name: String,
        /// Why.
        refusal: Refusal,
    },
    /// The build failed.
    #[error("{}", .0.message)]
    Failed(messages::BuildFailure),
    /// The record does not fit what was asked.
    #[error("{name}'s record is not accepted: {reason}")]
    Record {
        /// Who.
        name: String,
        /// Why.
        reason: String,
    },
    /// The outputs did not come.
    #[error("the outputs could not be fetched from {name}: {source}")]
    Outputs {
        /// Who.
        name: String,
        /// Why.
        source: FetchFailure,
    },
    /// The owner's rules let it not count.
    #[error("what {name} built does not count here: {reason}")]
    Untrusted {
        /// Who.
        name: String,
        /// Why.
        reason: String,
    },
    /// Another builder made something else of the same.
    #[error("the builders that have to agree {0}")]
    Disagreed(String),
    /// It was cancelled here.
    #[error("it was cancelled")]
    Cancelled,
}

impl RequestFailure {
    /// What follows from it.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Depot(DepotError::Derivation(_)) => FailureKind::Builder,
            Self::Cancelled => FailureKind::Cancelled,
            Self::Untrusted { .. }
            | Self::Private(_)
            | Self::OtherTeam(_)
            | Self::OtherStore(_)
            | Self::Elsewhere(_) => FailureKind::Refused,
            Self::Disagreed(_) => FailureKind::Disagreed,
            Self::Refused { refusal, .. } => match refusal.reason {
                // Neither says anything about the builder.
                RefusalReason::Busy | RefusalReason::InputMissing => FailureKind::Busy,
                _ => FailureKind::Refused,
            },
            Self::Failed(failure) => match failure.kind {
                messages::FailureKind::Build | messages::FailureKind::Output => FailureKind::Builder,
                messages::FailureKind::Limit => FailureKind::Limit,
                messages::FailureKind::Owner => FailureKind::Busy,
                messages::FailureKind::Cancelled
                | messages::FailureKind::Machine
                | messages::FailureKind::Input => FailureKind::Transient,
            },
            Self::Inputs { .. } => FailureKind::Busy,
            Self::Call(BuildCallError::Call(error)) | Self::WentAway(BuildCallError::Call(error))
                if error.is_away() =>
            {
                FailureKind::Gone
            }
            Self::Outputs { source, .. } if source.is_away() => FailureKind::Gone,
            Self::Depot(_)
            | Self::Random(_)
            | Self::Call(_)
            | Self::WentAway(_)
            | Self::BreaksOff(_)
            | Self::Record { .. }
            | Self::Outputs { .. } => FailureKind::Transient,
        }
    }

    /// The last lines of its log, where it has one.
    pub(super) fn log_tail(&self) -> Vec<String> {
        match self {
            Self::Failed(failure) => {
                let tail = String::from_utf8_lossy(&failure.tail);
                tail.lines().map(str::to_owned).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// Who it is about is said already.
fn without_who(error: &BuildCallError) -> String {
    match error {
        BuildCallError::Call(CallError::Wire { source, .. }) => source.to_string(),
        error => error.to_string(),
    }
}
