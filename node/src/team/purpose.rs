//! What something is fetched for, and what of it goes first.

use tvix_node_coordinator::Urgency;
use tvix_node_swarm::{Priority, Rising};

use crate::daemon::room::Whom;

/// What something comes for.
#[derive(Debug, Clone)]
pub struct Purpose {
    /// Whose wish it is.
    pub whom: Whom,
    /// What goes first where several things come. It may rise.
    pub priority: Rising,
}

impl Purpose {
    /// For another member.
    #[must_use]
    pub fn another() -> Self {
        Self {
            whom: Whom::Another,
            priority: Priority::Demanded.into(),
        }
    }

    /// For the owner, so urgently.
    #[must_use]
    pub fn own(priority: impl Into<Rising>) -> Self {
        Self {
            whom: Whom::Owner,
            priority: priority.into(),
        }
    }
}

/// What goes first of what this node wants. `awaited`: a build here waits for it.
#[must_use]
pub const fn priority(urgency: Urgency, awaited: bool) -> Priority {
    match (urgency, awaited) {
        (Urgency::Import, _) => Priority::Import,
        (Urgency::Demanded, true) => Priority::Awaited,
        (Urgency::Demanded, false) => Priority::Demanded,
        (Urgency::Speculative, _) => Priority::Speculative,
    }
}
