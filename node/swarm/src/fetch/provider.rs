//! What can go wrong with one provider.

use tvix_node_protocol::envelope::NodeKey;

use super::arrival::SpoolError;
use crate::call::CallError;
use crate::core::{Core, lock};

/// Why a provider did not bring what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// It could not be asked, or did not answer to the end.
    #[error(transparent)]
    Call(#[from] CallError),
    /// It does not have it, or not for us.
    #[error("it does not have it, or not for this node")]
    NotThere,
    /// It has too much to do.
    #[error("it is busy")]
    Busy,
    /// It cannot read what it has.
    #[error("it cannot read what it has")]
    Broken,
    /// It stopped before the end: the connection broke, as far as can be told.
    #[error("it stopped before the end: {0}")]
    Ended(String),
    /// It sent something else than was asked for.
    #[error("it sent something else than was asked for: {0}")]
    Lied(String),
    /// What came could not be written here. Not its fault.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

/// What is said where a file ends before it should: its node went away, or has found just now that it cannot read the rest. Who
/// knows that beforehand says so.
pub(super) const CUT_SHORT: &str = "it went away, or cannot read the rest of the file";

impl ProviderError {
    /// Marks the provider for what it did.
    pub(crate) fn mark(&self, core: &Core, provider: NodeKey) {
        let now = core.team.now();
        let mut standing = lock(&core.standing);
        match self {
            Self::Lied(what) => {
                tracing::warn!(%provider, what, "a provider lied");
                standing.lied(provider, now);
            }
            Self::Call(error) if error.is_breach() => standing.lied(provider, now),
            Self::Call(_) | Self::Busy | Self::Broken | Self::Ended(_) => standing.failed(provider, now),
            Self::NotThere | Self::Spool(_) => {}
        }
    }
}
