//! What the coordinator wants done.

use std::fmt;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{BuildKind, BuildLimits, BuildTerms, DesiredStore};
use tvix_node_protocol::control::EventKind;
use tvix_node_protocol::envelope::NodeKey;

use crate::id::{BuildId, FetchId, PushId, QuestionId, SessionId};
use crate::limits;

/// Something to do. Actions of one [`Coordinator::handle`](crate::Coordinator::handle) are carried
/// out in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Find out where paths are: the desired store first (where one is named), then the own store,
    /// then, for what these lack, peers, then binary caches. Answered by
    /// [`Event::Presence`](crate::Event::Presence).
    AskPresence {
        /// Names the question.
        question: QuestionId,
        /// The desired store to ask first.
        desired_store: Option<DesiredStore>,
        /// The paths, at most [`limits::PRESENCE_BATCH`], those that are waited for first.
        paths: Vec<StorePath>,
    },
    /// Find out how much of a derivation's complete input closure which node has, who builds it already, and whether
    /// anybody has made it since. Until it is answered this node is about to decide: others who ask whether it builds
    /// this may be told to wait for that. Answered by
    /// [`Event::InputsWeighed`](crate::Event::InputsWeighed); where no answer comes in time, the
    /// derivation is placed without.
    WeighInputs {
        /// The derivation.
        derivation: StorePath,
        /// Its direct inputs.
        inputs: Vec<StorePath>,
        /// Outputs of it that are nowhere, as far as this node knows.
        outputs: Vec<StorePath>,
        /// On which terms it is to be built.
        terms: BuildTerms,
        /// Whom to ask: candidates, and others that could build it, were they free. At most
        /// [`limits::ASKED_BEFORE_PLACING`].
        nodes: Vec<NodeKey>,
    },
    /// From now on this node has a derivation built, here or there: whoever asks is told.
    Announce {
        /// The build.
        build: BuildId,
        /// What is built.
        derivation: StorePath,
        /// On which terms.
        terms: BuildTerms,
        /// Where; none: here.
        node: Option<NodeKey>,
    },
    /// It does so no more.
    Retract {
        /// The build.
        build: BuildId,
    },
    /// Bring a path and what is missing of its closure into the own store. What two fetches have in
    /// common is moved once.
    Fetch {
        /// Names the fetch.
        fetch: FetchId,
        /// The path.
        path: StorePath,
        /// Who has it, best first. Several may be used at once.
        from: Vec<Source>,
        /// How urgent it is.
        urgency: Urgency,
        /// Whether a build on this node waits for it.
        awaited: bool,
    },
    /// A fetch is more urgent than it was: what is not begun of it goes before what is less so.
    HurryFetch {
        /// Which.
        fetch: FetchId,
        /// How urgent it is now.
        urgency: Urgency,
        /// Whether a build on this node waits for it.
        awaited: bool,
    },
    /// Nobody wants a fetch any more.
    CancelFetch {
        /// Which.
        fetch: FetchId,
    },
    /// Bring a path of the own store, and what is missing of its closure there, into a desired store.
    Push {
        /// Names the push.
        push: PushId,
        /// The path.
        path: StorePath,
        /// Where to.
        to: DesiredStore,
    },
    /// Nobody wants a push any more.
    CancelPush {
        /// Which.
        push: PushId,
    },
    /// Build on this node. All inputs are in the own store with their closure.
    BuildHere {
        /// Names the build.
        build: BuildId,
        /// What to build: all its outputs.
        derivation: StorePath,
        /// Whether an evaluation waits.
        kind: BuildKind,
        /// Whether it is known to be needed.
        demanded: bool,
        /// `NIX_BUILD_CORES`; 0: all.
        cores: u32,
        /// Bounds.
        limits: BuildLimits,
        /// Take part in what is built here for another. It has no slot, so it must not begin anything: where there is
        /// nothing to take part in any more, it has failed as [`FailureKind::Busy`](crate::FailureKind::Busy).
        joins: bool,
    },
    /// Build a derivation of which outputs are in the own store again, on this node and in a slot that no
    /// build wants, and compare. All inputs are in the own store with their closure. Answered by
    /// [`Event::Checked`](crate::Event::Checked).
    Check {
        /// For which session.
        session: SessionId,
        /// What to build.
        derivation: StorePath,
        /// `NIX_BUILD_CORES`; 0: all.
        cores: u32,
        /// Bounds.
        limits: BuildLimits,
    },
    /// None of a session's checks is wanted any more. Each is over when
    /// [`Event::Checked`](crate::Event::Checked) says so.
    CancelChecks {
        /// Whose.
        session: SessionId,
    },
    /// Send a build request to a peer. Every input is in the own store or can be had from a source.
    Request {
        /// Names the build.
        build: BuildId,
        /// The builder.
        node: NodeKey,
        /// What to build.
        derivation: StorePath,
        /// Outputs wanted, by name.
        outputs: Vec<String>,
        /// Whether an evaluation waits.
        kind: BuildKind,
        /// Where the outputs should go.
        desired_store: Option<DesiredStore>,
        /// Whether the outputs are wanted in the own store where they do not go to the desired one. Else they
        /// may stay where they are built ([`Delivery::AtBuilder`](crate::Delivery::AtBuilder)): whoever wants
        /// them wants what is built from them, in another store, so they need not come by way of this node.
        bring: bool,
        /// `NIX_BUILD_CORES`; 0: all.
        cores: u32,
        /// Bounds.
        limits: BuildLimits,
        /// How urgent it is among this node's requests; higher goes first.
        urgency: Urgency,
    },
    /// Tell a peer that its build is still wanted. A builder that is not told for
    /// [`limits::LEASE`] stops.
    RenewLease {
        /// The build.
        build: BuildId,
        /// The builder.
        node: NodeKey,
    },
    /// Stop a build. A build on this node is over when
    /// [`Event::BuildFailed`](crate::Event::BuildFailed) or
    /// [`Event::BuildFinished`](crate::Event::BuildFinished) says so, and keeps its slot until then;
    /// one on a peer is forgotten at once.
    CancelBuild {
        /// The build.
        build: BuildId,
        /// Where it runs; none: here.
        node: Option<NodeKey>,
    },
    /// These paths may leave the own store again as far as the coordinator is concerned.
    Release {
        /// Which.
        paths: Vec<StorePath>,
    },
    /// Tell a session's command what happened. [`EventKind::Ended`] is the last a session is told.
    Tell {
        /// Whom.
        session: SessionId,
        /// What.
        event: EventKind,
    },
    /// An event of a session cannot be followed. The session does not begin, or, where it had begun,
    /// ends as failed: going on without what was refused could build something else than was asked.
    Refuse {
        /// Whose.
        session: SessionId,
        /// Why.
        refusal: Refusal,
    },
}

/// Whoever a path can be fetched from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// A node of the swarm.
    Peer(NodeKey),
    /// An HTTP binary cache, by its URL.
    Cache(String),
    /// A binary cache in a folder, by its absolute path.
    Folder(String),
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(node) => write!(formatter, "{node}"),
            Self::Cache(url) => formatter.write_str(url),
            Self::Folder(folder) => write!(formatter, "file://{folder}"),
        }
    }
}

/// How badly something is wanted. Greater goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Urgency {
    /// Nobody is known to need it yet.
    Speculative,
    /// A target is known to need it.
    Demanded,
    /// An evaluation waits for it.
    Import,
}

impl Urgency {
    /// As requests carry it.
    #[must_use]
    pub fn to_wire(self) -> u8 {
        match self {
            Self::Speculative => 0,
            Self::Demanded => 100,
            Self::Import => 200,
        }
    }

    /// The kind of build that has this urgency.
    #[must_use]
    pub fn kind(self) -> BuildKind {
        match self {
            Self::Import => BuildKind::Ifd,
            Self::Speculative | Self::Demanded => BuildKind::Regular,
        }
    }
}

/// Why an event of a session cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// [`limits::SESSIONS`]
    #[error(
        "{} commands use this node already, the most it serves at once: wait for one to end",
        limits::SESSIONS
    )]
    TooManySessions,
    /// The caller's mistake.
    #[error("{0} has been opened before")]
    SessionKnown(SessionId),
    /// More of something than a session may have.
    #[error("the session has more than {limit} {what}: split the command into several")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many are allowed.
        limit: usize,
    },
    /// More of something than a derivation may have.
    #[error("the derivation {derivation} has {count} {what}, more than the {limit} allowed")]
    DerivationTooLarge {
        /// Which derivation.
        derivation: StorePath,
        /// Of what.
        what: &'static str,
        /// How many it has.
        count: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// Nothing can be wanted of a derivation without outputs.
    #[error("the derivation {0} has no outputs")]
    NoOutputs(StorePath),
    /// An input that was not instantiated before.
    #[error("the derivation {derivation} has the input {input}, which was not instantiated before it")]
    UnknownInput {
        /// Which derivation.
        derivation: StorePath,
        /// Its input.
        input: StorePath,
    },
    /// A derivation that was not instantiated before it was named.
    #[error("the derivation {0} was named before it was instantiated")]
    UnknownDerivation(StorePath),
    /// An output that the derivation does not have.
    #[error("the derivation {derivation} has no output named '{output}'")]
    UnknownOutput {
        /// Which derivation.
        derivation: StorePath,
        /// The output.
        output: String,
    },
    /// Two derivations that would write to one path.
    #[error("the path {path} is an output of {first} and of {second}: it can have one maker only")]
    OutputConflict {
        /// The path.
        path: StorePath,
        /// The derivation that was there first.
        first: StorePath,
        /// The derivation that claims it too.
        second: StorePath,
    },
    /// The number of a target or import came twice.
    #[error("the {what} {number} came twice")]
    Twice {
        /// `target` or `import`.
        what: &'static str,
        /// Its number.
        number: u64,
    },
    /// The session had said that its evaluation ended.
    #[error("the evaluation had ended, and then came more of it")]
    AfterTheEnd,
}
