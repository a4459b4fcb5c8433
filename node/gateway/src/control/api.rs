//! What the gateway needs of a node.

use std::error::Error;
use std::future::Future;

use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::control::{
    AddRoot, AddSource, Event, Failure, FailureKind, FounderKey, InviteRequest, Invited, JoinRequest, Joined,
    LeaveRequest, MemberName, OpenSession, OwnerAnswer, OwnerQuestion, PeerView, Provenance, PutOut,
    RecordView, RenewRequest, SessionOpened, SourceAnswer, SourceQuery, Status, StoreAnswer, StoreQuestion,
    TeamView, WorkerMessage,
};
use tvix_node_protocol::path_info::PathInfo;

use super::body::UploadBody;

/// A build log or another stream that is read piece by piece. Where it ends in an error, the answer
/// breaks off.
pub type LogReader = Box<dyn AsyncRead + Send + Unpin>;

/// Why a node refuses or fails; becomes a [`Failure`] on the wire.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    kind: FailureKind,
    message: String,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl ApiError {
    /// A failure without a further cause. The message names the thing, the place and what to do.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    /// A failure with its cause. The message does not repeat the cause, which is sent along.
    pub fn caused(
        kind: FailureKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self {
            kind,
            message: message.into(),
            source: Some(source.into()),
        }
    }

    /// Which kind of failure it is.
    #[must_use]
    pub const fn kind(&self) -> FailureKind {
        self.kind
    }

    /// The form that travels.
    #[must_use]
    pub fn to_failure(&self) -> Failure {
        let mut causes = Vec::new();
        let mut cause = self.source();
        while let Some(error) = cause {
            causes.push(error.to_string());
            cause = error.source();
        }
        Failure {
            error: self.message.clone(),
            causes,
            kind: self.kind,
        }
    }
}

/// The node, as the control socket sees it.
///
/// Every call runs to its end even where the client goes away in the middle, so an implementation need
/// not be safe against being dropped at an `await`. Calls of one client may overlap; only batches of
/// one session come one after the other, because a command waits for each answer.
pub trait ControlApi: Send + Sync + 'static {
    /// What the node is doing.
    fn status(&self) -> impl Future<Output = Result<Status, ApiError>> + Send;

    /// Stop. Answers at once; the node then ends its sessions and the future given to
    /// [`serve`](super::serve).
    fn stop(&self) -> impl Future<Output = Result<(), ApiError>> + Send;

    /// Opens a session. The version has been checked.
    fn open_session(
        &self,
        request: OpenSession,
    ) -> impl Future<Output = Result<SessionOpened, ApiError>> + Send;

    /// The events of a session from its beginning, to be had once (then: [`FailureKind::Conflict`]).
    /// The session has ended when the sender is dropped; the last event must be
    /// [`Ended`](tvix_node_protocol::control::EventKind::Ended), else the client is told that the
    /// stream was cut.
    fn events(&self, session: u64) -> impl Future<Output = Result<mpsc::Receiver<Event>, ApiError>> + Send;

    /// The command of a session is gone. What still runs for it alone is cancelled, what it protected
    /// is free again. Called once for every session that was opened.
    fn close_session(&self, session: u64) -> impl Future<Output = ()> + Send;

    /// Takes what an evaluation sent. Returns when there is room for the next batch: not answering is
    /// how a node slows an evaluation down.
    fn take_batch(
        &self,
        session: u64,
        batch: Vec<WorkerMessage>,
    ) -> impl Future<Output = Result<(), ApiError>> + Send;

    /// Adds a source from its archive. Where the body ends in an error, nothing is added.
    fn add_source(
        &self,
        session: u64,
        source: AddSource,
        archive: UploadBody,
    ) -> impl Future<Output = Result<PathInfo, ApiError>> + Send;

    /// Whether an unchanged source is in the store. A path that is answered is protected by the session.
    fn find_source(
        &self,
        session: u64,
        query: SourceQuery,
    ) -> impl Future<Output = Result<SourceAnswer, ApiError>> + Send;

    /// What is known of these paths, without those that are not valid; in the order asked. Where a session is
    /// named, it protects them from now on.
    fn path_infos(
        &self,
        paths: Vec<StorePath>,
        session: Option<u64>,
    ) -> impl Future<Output = Result<Vec<PathInfo>, ApiError>> + Send;

    /// The log of the build that made a path, or of the last build of a derivation.
    fn log(&self, path: StorePath) -> impl Future<Output = Result<LogReader, ApiError>> + Send;

    /// Where a path came from and why.
    fn why(&self, path: StorePath) -> impl Future<Output = Result<Provenance, ApiError>> + Send;

    /// The signed records of the builds that made a path, the newest first. None: it was not built, or
    /// nobody's record of it is here.
    fn records(&self, path: StorePath) -> impl Future<Output = Result<Vec<RecordView>, ApiError>> + Send;

    /// Makes a link outside the home a root.
    fn add_root(&self, root: AddRoot) -> impl Future<Output = Result<(), ApiError>> + Send;

    /// Answers a question about the store, or does what is asked with it.
    fn ask_store(
        &self,
        question: StoreQuestion,
    ) -> impl Future<Output = Result<StoreAnswer, ApiError>> + Send;

    /// The archive (NAR) of a path.
    fn archive(&self, path: StorePath) -> impl Future<Output = Result<LogReader, ApiError>> + Send;

    /// Paths, all of which are valid, as `nix-store --export` writes them.
    fn export(&self, paths: Vec<StorePath>) -> impl Future<Output = Result<LogReader, ApiError>> + Send;

    /// Adds what is in such an export, on the owner's word.
    fn import(&self, export: UploadBody) -> impl Future<Output = Result<Vec<PathInfo>, ApiError>> + Send;

    /// Makes a ticket for one new member, or for founders. A node that takes part in no team founds one.
    fn invite(&self, request: InviteRequest) -> impl Future<Output = Result<Invited, ApiError>> + Send;

    /// Redeems a ticket. A node that takes part in this team already refuses ([`FailureKind::Conflict`]).
    fn join(&self, request: JoinRequest) -> impl Future<Output = Result<Joined, ApiError>> + Send;

    /// A new key by which this node can be a founder of one team.
    fn founder_key(&self) -> impl Future<Output = Result<FounderKey, ApiError>> + Send;

    /// Who is in a team, by its name or id; none: in the only one. A node without one answers with
    /// [`FailureKind::NotFound`], one with several that is not told which with [`FailureKind::Invalid`].
    fn team(&self, team: Option<String>) -> impl Future<Output = Result<TeamView, ApiError>> + Send;

    /// Members there is a connection to, in a team or in all. A node without a team answers as [`team`](Self::team) does.
    fn peers(&self, team: Option<String>) -> impl Future<Output = Result<Vec<PeerView>, ApiError>> + Send;

    /// Puts a member out of the team for good, or says so of a founder, for which it takes several.
    fn revoke(&self, member: MemberName) -> impl Future<Output = Result<PutOut, ApiError>> + Send;

    /// Vouches for a member anew.
    fn renew(&self, request: RenewRequest) -> impl Future<Output = Result<(), ApiError>> + Send;

    /// Leaves the team for good.
    fn leave(&self, request: LeaveRequest) -> impl Future<Output = Result<(), ApiError>> + Send;

    /// What the owner wants to know or to have from now on.
    fn ask_owner(
        &self,
        question: OwnerQuestion,
    ) -> impl Future<Output = Result<OwnerAnswer, ApiError>> + Send;
}
