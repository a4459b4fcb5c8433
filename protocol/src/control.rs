//! What crosses the control socket between a node and the commands that use it.
//!
//! HTTP/1.1 on a Unix socket, usable with `curl --unix-socket`. People's answers are JSON; what an
//! evaluation sends in bulk is CBOR. Paths, all below `/v1`:
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /status` | | [`Status`] |
//! | `POST /down` | | 204; the node stops |
//! | `POST /sessions` | [`OpenSession`] | [`SessionOpened`] |
//! | `GET /sessions/ID/events` | | [`Event`], one JSON object a line, until the session ends; closing the connection cancels the session |
//! | `POST /sessions/ID/batch` | CBOR `Vec<`[`WorkerMessage`]`>` | 204 |
//! | `PUT /sessions/ID/store?name=NAME&method=nar\|flat&…` ([`AddSource`]) | an archive (NAR) | [`PathInfo`] |
//! | `POST /sessions/ID/sources` | [`SourceQuery`] | [`SourceAnswer`] |
//! | `POST /paths` | [`PathQuery`] | list of [`PathInfo`], the valid ones |
//! | `GET /log?path=PATH` | | the build log, as bytes |
//! | `GET /why?path=PATH` | | [`Provenance`] |
//! | `GET /record?path=PATH` | | list of [`RecordView`], the newest first |
//! | `POST /roots` | [`AddRoot`] | 204 |
//! | `POST /store` | [`StoreQuestion`] | [`StoreAnswer`] |
//! | `GET /nar?path=PATH` | | the archive (NAR) of a path |
//! | `POST /export` | [`PathQuery`] | the paths as `nix-store --export` writes them |
//! | `PUT /import` | such an export | list of [`PathInfo`] |
//! | `POST /team/invite` | [`InviteRequest`] | [`Invited`] |
//! | `POST /team/join` | [`JoinRequest`] | [`Joined`] |
//! | `GET /team` | | [`TeamView`] |
//! | `GET /team/peers` | | list of [`PeerView`] |
//! | `POST /team/founder-key` | | [`FounderKey`] |
//! | `POST /team/revoke` | [`MemberName`] | [`PutOut`] |
//! | `POST /team/renew` | [`RenewRequest`] | 204 |
//! | `POST /team/leave` | [`LeaveRequest`] | 204 |
//! | `POST /owner` | [`OwnerQuestion`] | [`OwnerAnswer`] |
//!
//! `PATH` in an address is a store path with or without its store directory. An error has a status of
//! 4xx or 5xx and a [`Failure`] as body. Every answer of a node carries [`VERSION_HEADER`] with its
//! [`CONTROL_VERSION`]; a request that carries it with another version is refused, a request
//! without it (curl) is not. `POST /down` is understood by every version.

mod event;
mod member;
mod owner;
mod status;
mod store;
mod team;
mod traffic;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::build::BuildLimits;
use crate::nix::store_path::{StorePath, basename};
use crate::path_info::PathInfo;

pub use event::{Event, EventKind, Outcome, OutputDifference, PresenceTiming};
pub use member::{MemberError, find_member};
pub use owner::{
    Explanation, Finding, Health, NamedRequirement, OwnerAnswer, OwnerQuestion, QuietHours, SharingMode,
    SharingTerms, ShownVerdict, THIS_NODE,
};
pub use status::{BuildStatus, CacheStatus, RestingTeam, SessionStatus, Status};
pub use store::{
    ChainLink, DamagedPath, PinView, ProgramUseView, Repair, StoreAnswer, StoreQuestion, TreeDifference,
};
pub use team::{
    FounderKey, FounderTicket, InviteRequest, Invited, JoinRequest, Joined, LeaveRequest, MemberName,
    MemberView, PeerView, PutOut, ReachedBy, RecordView, RefusedView, RenewRequest, TeamStatus, TeamView,
    TrafficView, WaitingView,
};
pub use traffic::TrafficTerms;

/// Version of the control protocol; a command and a node of different versions do not talk.
pub const CONTROL_VERSION: u32 = 8;

/// Header that carries [`CONTROL_VERSION`] in requests and answers.
pub const VERSION_HEADER: &str = "tvix-node-control";

/// What went wrong, for a person and for a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The message: names the thing, the place and what to do.
    pub error: String,
    /// What caused it, the nearest cause first.
    #[serde(default)]
    pub causes: Vec<String>,
    /// What kind of failure it is.
    pub kind: FailureKind,
}

/// Kinds of failures that a program may want to tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// The request is wrong in itself.
    Invalid,
    /// The other side is not the owner of the node.
    Forbidden,
    /// What the request names is not there.
    NotFound,
    /// The request does not fit the state of what it names.
    Conflict,
    /// The request is larger than what is taken.
    TooLarge,
    /// The other side speaks another version.
    Version,
    /// Too much is going on, or the node is stopping.
    Unavailable,
    /// The disk is full.
    NoSpace,
    /// The node failed.
    Internal,
}

/// Starts a session: one command's evaluation and builds. While it is open, everything it adds,
/// builds or names is protected from garbage collection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OpenSession {
    /// [`CONTROL_VERSION`] of the command.
    pub version: u32,
    /// What the command does.
    pub mode: SessionMode,
    /// Go on after a failure with everything that does not depend on it.
    pub keep_going: bool,
    /// Keep the folders of builds that fail, on this node, wherever they were built.
    #[serde(default)]
    pub keep_failed: bool,
    /// What it brings into the store that was not there stays private: no member learns of it, and none builds it.
    #[serde(default)]
    pub private: bool,
    /// Builds of this session at once on this node; none: the node's slots.
    pub jobs: Option<u32>,
    /// `NIX_BUILD_CORES`; 0: all.
    pub cores: u32,
    /// Bounds of each build.
    pub limits: BuildLimits,
    /// Where the outputs should be in the end; none: in this node's store.
    pub to: Option<Destination>,
    /// Binary caches to take paths from, beside those that the node is configured with, while the session
    /// is open.
    #[serde(default)]
    pub substituters: Vec<String>,
    /// Keys of binary caches to believe meanwhile (`name:base64`).
    #[serde(default)]
    pub trusted_public_keys: Vec<String>,
}

/// A store that outputs should be in, as a user names it. The node finds out which one is meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Destination {
    /// A member of the team: its name, or its key or the beginning of that.
    Member(String),
    /// A binary cache in a folder: the absolute path of `file:///dir`.
    Folder(String),
}

impl std::fmt::Display for Destination {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Member(name) => formatter.write_str(name),
            Self::Folder(folder) => write!(formatter, "file://{folder}"),
        }
    }
}

/// What a session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SessionMode {
    /// Write derivations to the store, build only what an evaluation imports.
    Instantiate,
    /// Build the targets.
    Build,
    /// Say what would be built, build only what an evaluation imports.
    DryRun,
    /// Build the targets again on this node and compare them with what is there.
    Check,
}

/// A session is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SessionOpened {
    /// Its number, for the paths below `/v1/sessions`.
    pub session: u64,
    /// Absolute path of the folder that holds `nix/store` with the home's paths.
    pub store_root: String,
}

/// What an evaluation tells the coordinator, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum WorkerMessage {
    /// A text for the store (`builtins.toFile`), under the path that follows from it.
    Text {
        /// Its path, which is checked.
        #[serde(with = "basename")]
        path: StorePath,
        /// Store paths it refers to.
        #[serde(with = "basename")]
        references: Vec<StorePath>,
        /// Its bytes.
        #[serde(with = "crate::bytes::vec")]
        text: Vec<u8>,
    },
    /// A derivation, at the moment it is instantiated. Its inputs came before it.
    Derivation {
        /// Its path, which is checked.
        #[serde(with = "basename")]
        path: StorePath,
        /// The content of the `.drv` file.
        #[serde(with = "crate::bytes::vec")]
        aterm: Vec<u8>,
    },
    /// A target has been evaluated: from now on its closure is demanded.
    Target {
        /// Number of the target in this session, from 0.
        target: u64,
        /// What the user called it, such as `hello` or `(expression)`.
        name: String,
        /// The derivation.
        #[serde(with = "basename")]
        derivation: StorePath,
        /// Outputs wanted.
        outputs: Vec<String>,
    },
    /// An evaluation needs these outputs and waits (import from derivation). Answered by
    /// [`EventKind::ImportDone`] or [`EventKind::ImportFailed`].
    Import {
        /// Number of the import in this session.
        import: u64,
        /// The derivation.
        #[serde(with = "basename")]
        derivation: StorePath,
        /// Outputs needed.
        outputs: Vec<String>,
    },
    /// An evaluation needs this path to be there (a source or an output named by its path only).
    Ensure {
        /// Number of the import in this session, from the same sequence.
        import: u64,
        /// The path.
        #[serde(with = "basename")]
        path: StorePath,
    },
    /// One target could not be evaluated; the message was shown by the command already.
    TargetFailed {
        /// Number of the target.
        target: u64,
        /// What the user called it.
        name: String,
        /// First line of the error.
        error: String,
    },
    /// Nothing more will be instantiated.
    EvaluationEnded,
}

/// Query of `PUT /v1/sessions/ID/store`: adds a source under the path that follows from its content.
/// The body is the source's archive (NAR), for [`AddedAs::Flat`] too. A body that ends early adds
/// nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AddSource {
    /// Name of the store path to make.
    pub name: String,
    /// What of it is hashed.
    pub method: AddedAs,
    /// Digest of what identified the source when it was read, to be remembered for [`SourceQuery`].
    pub fingerprint: Option<String>,
    /// The hash that the content must have, in any of Nix's notations with its algorithm; none:
    /// SHA-256, whatever it is.
    pub expected: Option<String>,
    /// Store paths that the content refers to; they are part of what the path follows from.
    #[serde(with = "basename")]
    pub references: BTreeSet<StorePath>,
}

/// What of a source is hashed for its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AddedAs {
    /// The archive of the tree.
    Nar,
    /// The bytes of one file.
    Flat,
}

/// Asks whether an unchanged source is in the store already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SourceQuery {
    /// Digest of what identifies the source without reading it: paths, sizes, inodes, times.
    pub fingerprint: String,
}

/// The path of a known source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SourceAnswer {
    /// Its path, where it is known and valid.
    #[serde(with = "basename")]
    pub path: Option<StorePath>,
}

/// Asks which paths are valid and what is known of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathQuery {
    /// The paths.
    #[serde(with = "basename")]
    pub paths: Vec<StorePath>,
    /// The session that relies on the answer: what is valid stays as long as it is open.
    #[serde(default)]
    pub session: Option<u64>,
}

/// Makes a link outside the home a root: what it points to is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AddRoot {
    /// Absolute path of the link.
    pub link: String,
    /// What it points to.
    #[serde(with = "basename")]
    pub path: StorePath,
}

/// Where a path came from and why: `tvix-node why PATH`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Provenance {
    /// What is known of the path.
    pub info: PathInfo,
    /// How it came here, in one sentence.
    pub summary: String,
    /// Why it was placed where it was built, if it was.
    pub reason: Option<String>,
    /// The node that built it.
    pub node: Option<String>,
    /// Seconds since 1970.
    pub started: Option<u64>,
    /// Seconds since 1970.
    pub finished: Option<u64>,
    /// Whether this node has the log of the build.
    #[serde(default)]
    pub has_log: bool,
}
