//! What the coordinator is told.

use std::collections::{BTreeMap, BTreeSet};

use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{BuildLimits, DesiredStore};
use tvix_node_protocol::control::{OpenSession, OutputDifference, SessionMode};
use tvix_node_protocol::envelope::NodeKey;

use crate::action::Source;
use crate::history::BuildDuration;
use crate::id::{BuildId, FetchId, PushId, QuestionId, SessionId};
use crate::placement::Link;

/// Something that happened. Events of one session come in the order in which they happened.
///
/// An event of a session that has ended, or of a build, fetch, push or question that is over, is
/// harmless: such events cross with the action that ended it. A result that comes late is used where
/// it still helps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A command begins.
    SessionOpened {
        /// Its number.
        session: SessionId,
        /// What it wants.
        options: SessionOptions,
    },
    /// The user interrupts a command, or the command is gone. Everything that only this session
    /// wants is cancelled.
    SessionInterrupted {
        /// Its number.
        session: SessionId,
    },
    /// Derivations have been instantiated, inputs before what uses them. Their `.drv` files and
    /// their sources that this session added are in the own store.
    Instantiated {
        /// Whose.
        session: SessionId,
        /// Which.
        derivations: Vec<Derivation>,
    },
    /// A target has been evaluated: its outputs are wanted.
    TargetNamed {
        /// Whose.
        session: SessionId,
        /// Its number in the session.
        target: u64,
        /// What the user called it.
        name: String,
        /// Its derivation, instantiated before.
        derivation: StorePath,
        /// Outputs wanted.
        outputs: Vec<String>,
    },
    /// An evaluation needs outputs in the own store and waits (import from derivation).
    ImportRequested {
        /// Whose.
        session: SessionId,
        /// Its number in the session.
        import: u64,
        /// The derivation, instantiated before.
        derivation: StorePath,
        /// Outputs needed.
        outputs: Vec<String>,
    },
    /// An evaluation needs a path in the own store and waits.
    EnsureRequested {
        /// Whose.
        session: SessionId,
        /// Its number in the session, from the same sequence as the imports.
        import: u64,
        /// The path.
        path: StorePath,
    },
    /// A target could not be evaluated. The command has shown the error already.
    TargetFailed {
        /// Whose.
        session: SessionId,
        /// Its number in the session.
        target: u64,
        /// What the user called it.
        name: String,
        /// First line of the error.
        error: String,
    },
    /// Nothing more will be instantiated, named or imported.
    EvaluationEnded {
        /// Whose.
        session: SessionId,
    },

    /// This node's own builder: what it can do from now on.
    OwnBuilder(OwnBuilder),
    /// How long builds took in an earlier life of this node. What it has seen itself counts instead.
    Remembered {
        /// At most [`limits::HISTORY`](crate::limits::HISTORY) of them.
        durations: Vec<BuildDuration>,
    },
    /// Whether every byte over this node's link costs: then builds are done here where they can be.
    Metered(bool),
    /// So many of this node's slots build for others, or check something, at the moment. They are not free, and come back.
    SlotsLent {
        /// How many.
        count: u32,
        /// Of these, the ones whose builds give way to what is demanded here.
        giving_way: u32,
    },
    /// What a peer offers as a builder from now on.
    Peer {
        /// Who.
        node: NodeKey,
        /// What it offers.
        offer: PeerOffer,
    },
    /// What was measured of the way to a peer that has made an offer. Who is free stays as it is.
    Linked {
        /// Who.
        node: NodeKey,
        /// What was measured.
        link: Link,
    },
    /// Who is in the team besides this node, whether connected or not. Replaces what was said before.
    Team {
        /// What people call the members, by key.
        names: BTreeMap<NodeKey, String>,
        /// Those that may build for this node. Until this is said, anybody might turn up.
        builders: BTreeSet<NodeKey>,
    },
    /// A peer's connection is gone: its builds are placed elsewhere, its store is not asked.
    PeerGone {
        /// Who.
        node: NodeKey,
    },
    /// Answers to (part of) a question about presence. Every path of the question is answered once,
    /// in as many parts as is convenient.
    Presence {
        /// The question.
        question: QuestionId,
        /// Answers.
        paths: Vec<PathPresence>,
    },
    /// Answers [`Action::WeighInputs`](crate::Action::WeighInputs).
    InputsWeighed {
        /// For which derivation.
        derivation: StorePath,
        /// Bytes of its complete input closure.
        total: u64,
        /// Bytes of it that a node's store has. The own node counts too, under its own key or under
        /// none.
        there: Vec<(Option<NodeKey>, u64)>,
        /// Nodes that build it already, by their own word or by that of who has it built there; none: this node does, for
        /// another.
        makers: Vec<Option<NodeKey>>,
        /// Whether another node has asked this one to build it, and it has not begun.
        promised: bool,
        /// Whether somebody says that he has all the outputs that were asked for.
        made: bool,
    },

    /// One path of a fetch's closure is on its way.
    FetchStarted {
        /// The fetch.
        fetch: FetchId,
        /// Which path.
        path: StorePath,
        /// From whom.
        from: Source,
    },
    /// One path of a fetch's closure is in the own store.
    FetchArrived {
        /// The fetch.
        fetch: FetchId,
        /// Which path.
        path: StorePath,
        /// From whom.
        from: Source,
        /// Bytes of its archive.
        bytes: u64,
    },
    /// The path of the fetch and its closure are in the own store. The path itself has been reported
    /// as [`Event::FetchArrived`] before, even if it was there already.
    FetchFinished {
        /// The fetch.
        fetch: FetchId,
    },
    /// None of the fetch's sources gave the path and its closure.
    FetchFailed {
        /// The fetch.
        fetch: FetchId,
        /// Why, in words.
        error: String,
    },
    /// The own store has no room for what the fetch brings, whoever makes it.
    NoRoom {
        /// The fetch.
        fetch: FetchId,
        /// Why, in words.
        error: String,
    },
    /// The desired store has confirmed the path and its closure.
    PushFinished {
        /// The push.
        push: PushId,
    },
    /// The desired store does not have the path.
    PushFailed {
        /// The push.
        push: PushId,
        /// Why, in words.
        error: String,
        /// Whether trying again may help (a broken connection) or not (no such folder, refused).
        transient: bool,
    },

    /// A builder has taken up a build.
    BuildStarted {
        /// The build.
        build: BuildId,
    },
    /// A peer is done with a build; what it has built is still on its way here.
    BuildDone {
        /// The build.
        build: BuildId,
    },
    /// A builder is still at it. Only builds on peers need it: several a second, while accepted.
    Heartbeat {
        /// The build.
        build: BuildId,
    },
    /// A builder could not get some inputs of a build from where they were said to be. They are
    /// looked for anew. The build's own failure is reported apart from it.
    InputsMissing {
        /// The build.
        build: BuildId,
        /// Which inputs.
        paths: Vec<StorePath>,
    },
    /// A build succeeded.
    BuildFinished {
        /// The build.
        build: BuildId,
        /// Output name to what was built, all of them; what the policy does not accept has been
        /// turned into a [`Event::BuildFailed`] by the caller.
        outputs: BTreeMap<String, BuiltPath>,
        /// Where the outputs are now.
        delivery: Delivery,
    },
    /// A build came to nothing.
    BuildFailed {
        /// The build.
        build: BuildId,
        /// How.
        failure: BuildFailure,
    },

    /// What came of [`Action::Check`](crate::Action::Check).
    Checked {
        /// For which session.
        session: SessionId,
        /// What was built.
        derivation: StorePath,
        /// What came of it.
        outcome: CheckOutcome,
    },

    /// Time has passed. Due at [`Coordinator::deadline`](crate::Coordinator::deadline) at the latest.
    Tick,
}

/// What a command wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionOptions {
    /// What it does.
    pub mode: SessionMode,
    /// Go on after a failure with everything that does not depend on it.
    pub keep_going: bool,
    /// Builds of this session at once on this node; none: the node's slots.
    pub jobs: Option<u32>,
    /// `NIX_BUILD_CORES`; 0: all.
    pub cores: u32,
    /// Bounds of each build.
    pub limits: BuildLimits,
    /// Where the outputs should be in the end; none: in the own store.
    pub to: Option<DesiredStore>,
}

impl SessionOptions {
    /// What a command asked for; `to` is the store that the command's destination turned out to be.
    #[must_use]
    pub fn of(open: &OpenSession, to: Option<DesiredStore>) -> Self {
        Self {
            mode: open.mode,
            keep_going: open.keep_going,
            jobs: open.jobs,
            cores: open.cores,
            limits: open.limits,
            to,
        }
    }
}

/// A derivation as far as the coordinator cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Derivation {
    /// Its `.drv` path.
    pub path: StorePath,
    /// Output name to path.
    pub outputs: BTreeMap<String, StorePath>,
    /// Derivations it reads outputs of.
    pub inputs: Vec<InputDerivation>,
    /// Other store paths it reads.
    pub sources: Vec<StorePath>,
    /// What it builds on, such as `x86_64-linux`; `builtin` builds on any.
    pub system: String,
    /// What it requires of a builder, such as `kvm`.
    pub required_features: Vec<String>,
    /// Cheap enough to build that moving it is a waste.
    pub prefer_local: bool,
    /// Its output's content is known beforehand; its build may use the network.
    pub fixed_output: bool,
    /// Who has to build it before its outputs are believed; none: anybody, once.
    pub quorum: Option<Quorum>,
}

/// Builders of which several have to agree on what a derivation's outputs are.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Quorum {
    /// How many, at least one.
    pub needed: u32,
    /// Whether this node is one of them.
    pub here: bool,
    /// The others.
    pub of: Vec<NodeKey>,
}

/// An input derivation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputDerivation {
    /// Its `.drv` path, instantiated before in the same session.
    pub derivation: StorePath,
    /// Names of the outputs that are read.
    pub outputs: Vec<String>,
}

/// What this node's own builder can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnBuilder {
    /// Builds at once; 0: this node builds nothing.
    pub slots: u32,
    /// Systems it builds for.
    pub systems: Vec<String>,
    /// Features it has.
    pub features: Vec<String>,
}

/// What a peer offers as a builder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerOffer {
    /// What people call it.
    pub name: String,
    /// Slots that are free now; 0 as well where it does not build for this node.
    pub slots_free: u32,
    /// Slots it has in all.
    pub slots: u32,
    /// Systems it builds for.
    pub systems: Vec<String>,
    /// Features it has.
    pub features: Vec<String>,
    /// Whether it builds fixed outputs for others.
    pub fixed_outputs: bool,
    /// What it costs to move bytes there.
    pub link: Link,
    /// Hundredths of one core that its other work keeps busy.
    pub load: u32,
    /// Its cores; 0: not known.
    pub cores: u32,
    /// Why it builds nothing for others at the moment; none: it does.
    pub withheld: Option<String>,
}

/// Where a path is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathPresence {
    /// The path.
    pub path: StorePath,
    /// The own store has it, with its closure. From this moment it must stay there until
    /// [`Action::Release`](crate::Action::Release).
    pub own: bool,
    /// The desired store that the question named has it, with its closure.
    pub desired: bool,
    /// Others from which it can be had and whose word the policy accepts, best first. Need not be
    /// looked for where `own` is true.
    pub sources: Vec<Source>,
    /// Somebody who may have it was not waited for any longer.
    pub unheard: bool,
    /// Bytes of its archive, where known.
    pub nar_size: Option<u64>,
}

/// One output of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltPath {
    /// Its path.
    pub path: StorePath,
    /// Bytes of its archive.
    pub nar_size: u64,
}

/// Where the outputs of a successful build are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// In the own store, with their closure: built here, or streamed here and registered. They stay
    /// there until [`Action::Release`](crate::Action::Release).
    OwnStore,
    /// In the desired store that the request named, says the builder. Counts once that store has
    /// confirmed it, for which it is asked.
    DesiredStore,
    /// In the builder's store, from where they are fetched if they are needed.
    AtBuilder,
    /// Nowhere yet: the result is one of those that a [`Quorum`] needs, and others have to say the same
    /// first. What they have said so far has been compared by the caller.
    Vote,
}

/// What came of building something again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckOutcome {
    /// It was built.
    Built {
        /// Milliseconds it took.
        duration: u64,
        /// Output name to how it differs from what is there.
        differences: BTreeMap<String, OutputDifference>,
    },
    /// It came to nothing.
    Failed(BuildFailure),
}

/// How a build came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildFailure {
    /// What kind of failure.
    pub kind: FailureKind,
    /// The failure in words, such as "the builder failed with exit code 2".
    pub error: String,
    /// The last lines of the build's log.
    pub log_tail: Vec<String>,
}

/// Kinds of failures of a build, by what follows from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The derivation's own fault: its program failed, an output is missing, a hash differs. It would
    /// fail elsewhere too.
    Builder,
    /// It went past a limit of the request. It may succeed for a session with wider limits.
    Limit,
    /// The builder died over it, or the result does not verify. Tried elsewhere.
    Transient,
    /// The connection broke, and the builder could not be reached again within a moment. Tried elsewhere, and there again
    /// once it is back, where nobody else has room.
    Gone,
    /// Nothing is wrong with the builder or the derivation: it has too much to do, or something that is to
    /// be there is not there yet. Tried again, there too, a little later.
    Busy,
    /// This builder will not or cannot (role, features, disk full, no user namespaces). Tried
    /// elsewhere, never there again.
    Refused,
    /// Builders of a [`Quorum`] made different things of the same inputs. None of it is believed, whoever
    /// else builds it.
    Disagreed,
    /// It was cancelled, as asked.
    Cancelled,
}
