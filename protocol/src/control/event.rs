//! What happens in a session, and how it ends.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::build::BuildKind;
use crate::nix::store_path::{StorePath, basename};

/// One step of a session. `GET /v1/sessions/ID/events` and `--log-format internal-json` print one
/// such object a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Milliseconds since the session was opened.
    pub at: u64,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "camelCase", tag = "event")]
pub enum EventKind {
    /// Derivations have been instantiated and are being worked on.
    Instantiated {
        /// Which.
        #[serde(with = "basename")]
        derivations: Vec<StorePath>,
    },
    /// A target has been evaluated.
    TargetNamed {
        /// Its number.
        target: u64,
        /// What the user called it.
        name: String,
        /// Its derivation.
        #[serde(with = "basename")]
        derivation: StorePath,
    },
    /// Evaluation is over.
    EvaluationEnded,
    /// A derivation need not be built: its wanted outputs are there.
    Present {
        /// Which.
        #[serde(with = "basename")]
        derivation: StorePath,
    },
    /// A derivation would be built (dry run).
    WouldBuild {
        /// Which.
        #[serde(with = "basename")]
        derivation: StorePath,
    },
    /// A path would be fetched (dry run).
    WouldFetch {
        /// Which.
        #[serde(with = "basename")]
        path: StorePath,
    },
    /// It has been decided who builds, and why.
    Placed {
        /// What is built.
        #[serde(with = "basename")]
        derivation: StorePath,
        /// Name of the node.
        node: String,
        /// The reason, in words.
        reason: String,
        /// Whether a target or an import is known to need it.
        demanded: bool,
        /// Whether an evaluation waits for it.
        kind: BuildKind,
    },
    /// A build started.
    BuildStarted {
        /// What is built.
        #[serde(with = "basename")]
        derivation: StorePath,
        /// Name of the node.
        node: String,
    },
    /// One line of a build's log, without its end of line.
    Log {
        /// Whose.
        #[serde(with = "basename")]
        derivation: StorePath,
        /// The line; what is not UTF-8 is replaced.
        line: String,
    },
    /// A build succeeded and its outputs are in the store.
    BuildFinished {
        /// What was built.
        #[serde(with = "basename")]
        derivation: StorePath,
        /// Name of the node.
        node: String,
        /// Output name to path.
        #[serde(with = "basename")]
        outputs: BTreeMap<String, StorePath>,
        /// Milliseconds from start to registered outputs.
        duration: u64,
    },
    /// A build failed.
    BuildFailed {
        /// What was built.
        #[serde(with = "basename")]
        derivation: StorePath,
        /// Name of the node.
        node: String,
        /// Why, such as "the builder failed with exit code 2".
        error: String,
        /// The last lines of its log, at most 25.
        log_tail: Vec<String>,
        /// Whether the failure counts against the command.
        demanded: bool,
    },
    /// A derivation was built again, to be compared with what is in the store.
    Checked {
        /// What was built.
        #[serde(with = "basename")]
        derivation: StorePath,
        /// Name of the node.
        node: String,
        /// Milliseconds it took.
        duration: u64,
        /// Output name to how it differs; none where all are the same.
        differences: BTreeMap<String, OutputDifference>,
    },
    /// A derivation cannot be built because another one failed.
    DependencyFailed {
        /// Which.
        #[serde(with = "basename")]
        derivation: StorePath,
        /// What failed.
        #[serde(with = "basename")]
        because: StorePath,
    },
    /// A build or fetch was given up because nobody needs it any more.
    Cancelled {
        /// Which.
        #[serde(with = "basename")]
        derivation: StorePath,
        /// Why.
        reason: String,
    },
    /// A fetch began.
    FetchStarted {
        /// What.
        #[serde(with = "basename")]
        path: StorePath,
        /// From whom.
        from: String,
    },
    /// A fetch ended well.
    FetchFinished {
        /// What.
        #[serde(with = "basename")]
        path: StorePath,
        /// From whom.
        from: String,
        /// Bytes of the archive.
        bytes: u64,
    },
    /// A fetch ended badly: none of its sources gave it.
    FetchFailed {
        /// What.
        #[serde(with = "basename")]
        path: StorePath,
        /// Why.
        error: String,
        /// Paths of its closure that had begun to come with it and are not here.
        #[serde(with = "basename")]
        unfinished: Vec<StorePath>,
    },
    /// A path is being pushed to the desired store.
    PushStarted {
        /// What.
        #[serde(with = "basename")]
        path: StorePath,
        /// Where to.
        to: String,
    },
    /// A path could not be pushed to the desired store. It may be tried again.
    PushFailed {
        /// What.
        #[serde(with = "basename")]
        path: StorePath,
        /// Where to.
        to: String,
        /// Why.
        error: String,
    },
    /// A path was pushed to the desired store.
    Pushed {
        /// What.
        #[serde(with = "basename")]
        path: StorePath,
        /// Where to.
        to: String,
    },
    /// An import's outputs are there.
    ImportDone {
        /// Its number.
        import: u64,
    },
    /// An import failed.
    ImportFailed {
        /// Its number.
        import: u64,
        /// Why.
        error: String,
    },
    /// A target is complete.
    TargetDone {
        /// Its number.
        target: u64,
        /// What the user called it.
        name: String,
        /// Output name to path.
        #[serde(with = "basename")]
        outputs: BTreeMap<String, StorePath>,
    },
    /// A target cannot be had.
    TargetFailed {
        /// Its number.
        target: u64,
        /// What the user called it.
        name: String,
        /// Why.
        error: String,
    },
    /// A message for the user.
    Message {
        /// `info`, `warning` or `error`.
        level: String,
        /// The text.
        text: String,
    },
    /// The session is over; the stream ends.
    Ended {
        /// How.
        outcome: Outcome,
        /// Builds that succeeded.
        built: u64,
        /// Paths fetched.
        fetched: u64,
        /// Derivations found present.
        present: u64,
        /// Builds that failed and counted.
        failed: u64,
        /// Whether it was known in time what others have.
        #[serde(default)]
        presence: PresenceTiming,
    },
}

/// Of the paths that a session needed and the node's own store did not have: whether the answer to the question who has
/// them was there by the time that somebody could act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PresenceTiming {
    /// It was there when the path was needed, or came while no slot, and no fetch, was free for it.
    pub in_time: u64,
    /// A slot or a fetch was free and waited for it.
    pub waited: u64,
    /// It was done without: somebody who may have the path did not say so in time, and nobody else had it.
    pub without: u64,
    /// Milliseconds that were waited for one of them at most.
    pub longest: u64,
}

/// An output that was built again and is not what it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OutputDifference {
    /// Its path, where the store has what was built before.
    #[serde(with = "basename")]
    pub path: StorePath,
    /// Where it lies as it was built now, outside of the store; none: it could not be kept.
    pub kept: Option<String>,
    /// The first places where it differs, each in words that begin with the place.
    pub places: Vec<String>,
    /// Whether there may be more of them.
    pub more: bool,
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Everything asked for is there.
    Success,
    /// A build failed.
    BuildFailed,
    /// The evaluation failed.
    EvaluationFailed,
    /// Interrupted.
    Interrupted,
}
