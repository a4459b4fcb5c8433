//! What the engine is told and asked.

use tokio::sync::{mpsc, oneshot};
use tvix_node_coordinator::{BuildId, Event};
use tvix_node_gateway::control::ApiError;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::control::{
    BuildStatus, Event as SessionEvent, EventKind, OpenSession, SessionStatus,
};

use super::{LentSlot, LentTo};
use crate::upstream::Complaint;

/// What the engine is told.
pub enum Message {
    /// A command begins.
    Open {
        /// What it wants.
        request: OpenSession,
        /// Its number.
        reply: oneshot::Sender<Result<u64, ApiError>>,
    },
    /// A command wants its events.
    Watch {
        /// Its number.
        session: u64,
        /// Where they come.
        reply: oneshot::Sender<Result<mpsc::Receiver<SessionEvent>, ApiError>>,
    },
    /// A command is gone.
    Close {
        /// Its number.
        session: u64,
        /// Answered at once.
        reply: oneshot::Sender<()>,
    },
    /// An evaluation went on. What it told is in the store already.
    Told {
        /// Its number.
        session: u64,
        /// In order.
        events: Vec<Event>,
        /// How many derivations are among it.
        derivations: u64,
        /// Answered when taken.
        reply: oneshot::Sender<Result<(), ApiError>>,
    },
    /// A build or a question made progress.
    Happened(Event),
    /// Binary caches cannot be used.
    Complaints(Vec<Complaint>),
    /// A build wrote a line.
    Line {
        /// Which build.
        build: BuildId,
        /// The line.
        line: String,
    },
    /// Something of a session that the coordinator need not know of.
    Tell {
        /// Whose.
        session: u64,
        /// What.
        event: EventKind,
    },
    /// A build for another member, or a check, wants a slot of the own builder.
    LendSlot {
        /// What it builds.
        derivation: StorePath,
        /// For whom.
        to: LentTo,
        /// How badly whoever it is for wants it, as requests say.
        urgency: u8,
        /// Which it gets, once one is free that no build of this node wants; or why none is lent.
        reply: oneshot::Sender<Result<LentSlot, String>>,
    },
    /// From now on nothing is lent to other members, for this reason; none: something is.
    Withhold {
        /// In words.
        reason: Option<String>,
    },
    /// A build in such a slot wrote a line.
    LentLine {
        /// Which slot.
        slot: u32,
        /// The line.
        line: String,
    },
    /// Such a slot comes back.
    SlotBack {
        /// Which.
        slot: u32,
    },
    /// Something that the user of every running command should know.
    Warn {
        /// In words.
        text: String,
    },
    /// Somebody asks what is going on.
    Status(oneshot::Sender<Activity>),
    /// End everything.
    Stop,
}

/// What is going on.
pub struct Activity {
    /// Commands.
    pub sessions: Vec<SessionStatus>,
    /// Builds.
    pub builds: Vec<BuildStatus>,
}
