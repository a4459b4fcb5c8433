//! What the control socket's door asks of the node.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;
use tokio::sync::{mpsc, oneshot};
use tvix_node_builder::Builder;
use tvix_node_coordinator::{Event, Quorum, SessionId};
use tvix_node_gateway::control::{ApiError, ControlApi, LogReader, UploadBody};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::BuildRecord;
use tvix_node_protocol::control::{
    AddRoot, AddSource, AddedAs, CONTROL_VERSION, Event as SessionEvent, FailureKind, FounderKey,
    InviteRequest, Invited, JoinRequest, Joined, LeaveRequest, MemberName, OpenSession, OwnerAnswer,
    OwnerQuestion, PeerView, Provenance, PutOut, RecordView, RenewRequest, SessionOpened, SourceAnswer,
    SourceQuery, Status, StoreAnswer, StoreQuestion, TeamView, WorkerMessage,
};
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::nix::derivation::read_derivation;
use tvix_node_protocol::nix::hash::{HashAlgorithm, NixHash};
use tvix_node_protocol::nix::store_path::build_ca_path;
use tvix_node_protocol::path_info::{Origin, PathInfo};
use tvix_node_protocol::trust::Requirement;
use tvix_node_store::{AddError, ContentName, Method, Naming, Text};

use super::depot::{Depot, DepotError, describe};
use super::engine::{Activity, Message};
use super::perform::Jobs;
use super::{exchange_api, owner_api, store_api, team_api};
use crate::team::membership::Membership;
use crate::team::share::ShareBook;
use crate::team::traffic::TrafficBook;
use crate::team::trust::TrustBook;

/// The node behind its control socket.
pub struct Api {
    /// The store.
    pub depot: Arc<Depot>,
    /// Where the engine is told things.
    pub engine: mpsc::Sender<Message>,
    /// The team.
    pub team: Arc<Membership>,
    /// The owner's rules of trust.
    pub trust: Arc<TrustBook>,
    /// On which terms slots are lent.
    pub share: Arc<ShareBook>,
    /// How much of the link is used.
    pub traffic: Arc<TrafficBook>,
    /// What builds.
    pub jobs: Arc<Jobs>,
    /// This node.
    pub node: NodeKey,
    /// Builds at once.
    pub slots: u32,
    /// Whether it stops by itself.
    pub idle_exit: bool,
    /// When it began.
    pub started: Instant,
    /// The home.
    pub home: String,
}

impl Api {
    async fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> Message) -> Result<T, ApiError> {
        let gone = || {
            ApiError::new(
                FailureKind::Unavailable,
                "this node is going down; run the command again",
            )
        };
        let (reply, answer) = oneshot::channel();
        self.engine.send(message(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }

    /// The sandbox.
    pub(super) fn builder(&self) -> &Builder {
        &self.jobs.builder
    }

    /// What is known of a path that must be valid.
    pub(super) async fn valid(&self, path: &StorePath) -> Result<PathInfo, ApiError> {
        let infos = self.depot.infos(vec![path.clone()]).await.map_err(failed)?;
        infos.into_iter().next().ok_or_else(|| {
            ApiError::new(
                FailureKind::NotFound,
                format!("{path} is not in the store of this node; 'tvix-node build' would make it"),
            )
        })
    }

    /// A member in words: what it is called, and its key, which is who it is.
    fn called(&self, node: NodeKey) -> String {
        match self.team.name_of(node) {
            Some(name) => format!("{name} ({node})"),
            None => format!("the node {node}"),
        }
    }

    /// The derivation that a path is, or that made it.
    async fn derivation_of(&self, path: StorePath) -> Result<StorePath, ApiError> {
        if path.is_derivation() {
            return Ok(path);
        }
        let info = self.valid(&path).await?;
        info.deriver.ok_or_else(|| {
            ApiError::new(
                FailureKind::NotFound,
                format!(
                    "it is not known which derivation made {path}, if one did, and so not whose log is meant"
                ),
            )
        })
    }
}

impl Api {
    /// Marks what is private before anything of it is in the store: what a command brings that keeps its work to
    /// itself, and every derivation that reads something private, with its outputs. `texts`: what is about to be
    /// added.
    async fn mark_private(
        &self,
        session: u64,
        texts: Vec<StorePath>,
        events: &[Event],
    ) -> Result<(), ApiError> {
        let private = Arc::clone(&self.depot.private);
        let mut new: BTreeSet<StorePath> = BTreeSet::new();
        let derivations = || {
            let derivations = events.iter().filter_map(|event| match event {
                Event::Instantiated { derivations, .. } => Some(derivations),
                _ => None,
            });
            derivations.flatten()
        };
        if private.is_private_session(session) {
            let outputs = derivations().flat_map(|derivation| derivation.outputs.values());
            let brought: Vec<StorePath> = texts.into_iter().chain(outputs.cloned()).collect();
            // What was there before is no secret of this command.
            let absent = self.depot.blocking(move |store| {
                let valid = store.is_valid_many(brought.iter())?;
                let absent = brought.into_iter().zip(valid).filter(|(_, valid)| !valid);
                Ok(absent.map(|(path, _)| path).collect::<Vec<_>>())
            });
            new.extend(absent.await.map_err(failed)?);
        }
        // Inputs come first.
        let new = private.reached(derivations(), new);
        if new.is_empty() {
            return Ok(());
        }
        // Some of it may be here already, built or fetched for another, and announced.
        let hidden: Vec<StorePath> = new.iter().cloned().collect();
        let marked = tokio::task::spawn_blocking(move || private.add(new, [])).await;
        let marked = marked.map_err(|error| failed(DepotError::Thread(error.to_string())))?;
        marked.map_err(|error| ApiError::new(FailureKind::Internal, error.to_string()))?;
        for team in self.team.all() {
            team.swarm.withdraw(&hidden);
        }
        Ok(())
    }

    /// Says of derivations who has to build them by the owner's rules. What names itself by its content needs
    /// nobody.
    fn say_who_has_to_agree(&self, events: &mut [Event]) {
        let policy = self.trust.policy();
        let derivations = events.iter_mut().filter_map(|event| match event {
            Event::Instantiated { derivations, .. } => Some(derivations),
            _ => None,
        });
        for derivation in derivations.flatten() {
            let here = || Quorum {
                needed: 1,
                here: true,
                of: Vec::new(),
            };
            if self.depot.private.is_private(&derivation.path) {
                derivation.quorum = Some(here());
            }
            if derivation.fixed_output || derivation.quorum.is_some() {
                continue;
            }
            // Who is asked. Whether what they make counts is judged output by output.
            derivation.quorum = match policy.for_paths(derivation.outputs.values()) {
                Requirement::Roster | Requirement::Sample { .. } => None,
                Requirement::Own => Some(here()),
                Requirement::Quorum { needed, of } => Some(Quorum {
                    needed: *needed,
                    here: of.contains(&self.node),
                    of: of.iter().filter(|node| **node != self.node).copied().collect(),
                }),
            };
        }
    }
}

impl ControlApi for Api {
    async fn status(&self) -> Result<Status, ApiError> {
        let Activity { sessions, builds } = self.ask(Message::Status).await?;
        let paths = self
            .depot
            .blocking(|store| Ok(store.count()?))
            .await
            .map_err(failed)?;
        Ok(Status {
            version: CONTROL_VERSION,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.node,
            pid: std::process::id(),
            home: self.home.clone(),
            uptime: self.started.elapsed().as_secs(),
            slots: self.slots,
            idle_exit: self.idle_exit,
            sessions,
            builds,
            paths,
            teams: team_api::status(self),
            resting: self.team.resting(),
            peers: team_api::peer_views(&self.team.all()),
            caches: store_api::caches(self),
        })
    }

    async fn stop(&self) -> Result<(), ApiError> {
        // A node that has ended meanwhile has done what was asked.
        drop(self.engine.send(Message::Stop).await);
        Ok(())
    }

    async fn open_session(&self, request: OpenSession) -> Result<SessionOpened, ApiError> {
        let private = request.private;
        let session = self.ask(|reply| Message::Open { request, reply }).await??;
        if private {
            self.depot.private.begin_session(session);
        }
        Ok(SessionOpened {
            session,
            store_root: self.home.clone(),
        })
    }

    async fn events(&self, session: u64) -> Result<mpsc::Receiver<SessionEvent>, ApiError> {
        self.ask(|reply| Message::Watch { session, reply }).await?
    }

    async fn close_session(&self, session: u64) {
        // A node that is ending has closed it.
        drop(self.ask(|reply| Message::Close { session, reply }).await);
        self.depot.private.end_session(session);
    }

    async fn take_batch(&self, session: u64, batch: Vec<WorkerMessage>) -> Result<(), ApiError> {
        let (texts, events, derivations) = tokio::task::spawn_blocking(move || read_batch(session, batch))
            .await
            .map_err(|error| failed(DepotError::Thread(error.to_string())))?
            .map_err(failed)?;
        self.mark_private(
            session,
            texts.iter().map(|text| text.path.clone()).collect(),
            &events,
        )
        .await?;
        if !texts.is_empty() {
            self.depot.add_texts(session, texts).await.map_err(failed)?;
        }
        let depot = Arc::clone(&self.depot);
        let completed = self
            .depot
            .blocking(move |store| depot.told.complete(store, session, events));
        let mut events = completed.await.map_err(failed)?;
        // Derivations that were read back from the store.
        self.mark_private(session, Vec::new(), &events).await?;
        self.say_who_has_to_agree(&mut events);
        self.ask(|reply| Message::Told {
            session,
            events,
            derivations,
            reply,
        })
        .await?
    }

    async fn add_source(
        &self,
        session: u64,
        source: AddSource,
        archive: UploadBody,
    ) -> Result<PathInfo, ApiError> {
        let naming = naming(&source)?;
        // What holds for the session now holds for all that it brings, whenever it ends.
        let (lease, audience) = (self.depot.lease_of(session), self.depot.audience_of(session));
        let private = self.depot.private.is_private_session(session);
        let (depot, reader) = (Arc::clone(&self.depot), archive.into_reader());
        let added = self
            .depot
            .blocking(move |store| {
                let reader = std::io::BufReader::with_capacity(ARCHIVE_BUFFER, reader);
                let info = match private {
                    true => depot.add_privately(reader, naming, &audience, &lease)?,
                    false => store.add_nar_within(reader, naming, &audience, &lease)?,
                };
                if let Some(fingerprint) = &source.fingerprint {
                    // Only a later command is the slower for it.
                    if let Err(error) = store.remember_source(fingerprint, &info.path) {
                        tracing::warn!(%error, "a source's fingerprint could not be remembered");
                    }
                }
                Ok(info)
            })
            .await;
        let info = added.map_err(failed)?;
        let added = vec![info.path.clone()];
        self.depot.tell_added(added).await.map_err(failed)?;
        Ok(info)
    }

    async fn find_source(&self, session: u64, query: SourceQuery) -> Result<SourceAnswer, ApiError> {
        let lease = self.depot.lease_of(session);
        let info = self
            .depot
            .blocking(move |store| Ok(store.source(&query.fingerprint, &lease)?))
            .await
            .map_err(failed)?;
        Ok(SourceAnswer {
            path: info.map(|info| info.path),
        })
    }

    async fn path_infos(
        &self,
        paths: Vec<StorePath>,
        session: Option<u64>,
    ) -> Result<Vec<PathInfo>, ApiError> {
        let Some(session) = session else {
            return self.depot.infos(paths).await.map_err(failed);
        };
        self.depot.read_by(session, paths).await.map_err(failed)
    }

    async fn log(&self, path: StorePath) -> Result<LogReader, ApiError> {
        let derivation = self.derivation_of(path).await?;
        match self.depot.open_log(&derivation).await.map_err(failed)? {
            Some(file) => Ok(Box::new(file)),
            None => Err(ApiError::new(
                FailureKind::NotFound,
                format!(
                    "this node has no log of {derivation}: it has not built it, or the log was too old to be kept"
                ),
            )),
        }
    }

    async fn why(&self, path: StorePath) -> Result<Provenance, ApiError> {
        let info = self.valid(&path).await?;
        let note = match &info.deriver {
            Some(deriver) => self.depot.note(deriver).await,
            None => None,
        };
        let log = match &info.deriver {
            Some(deriver) => self.depot.open_log(deriver).await.map_err(failed)?,
            None => None,
        };
        let record = self.depot.record_of(path.clone()).await.map_err(failed)?;
        let record = record.and_then(|envelope| envelope.open::<BuildRecord>().ok());
        let node = match &info.origin {
            Origin::Built => Some("this node".to_owned()),
            Origin::Record { builder } => Some(self.called(*builder)),
            Origin::Content | Origin::Peer { .. } | Origin::Cache { .. } | Origin::Imported => None,
        };
        let own = self.team.own_keys();
        let built_here = record
            .as_ref()
            .is_some_and(|record| own.contains(&record.builder));
        let summary = match &info.origin {
            Origin::Content if path.is_derivation() => {
                format!("{path} is a derivation that an evaluation here instantiated")
            }
            Origin::Content if info.deriver.is_none() => format!("{path} is a source, named by its content"),
            Origin::Content if !built_here => {
                format!("{path} is named by its content, which was fetched ready-made")
            }
            Origin::Content | Origin::Built => format!("{path} was built by this node"),
            Origin::Record { builder } => {
                format!(
                    "{path} was built by {}, whose record was accepted",
                    self.called(*builder)
                )
            }
            Origin::Peer { peer } => {
                format!("{path} was fetched from the store of {}", self.called(*peer))
            }
            Origin::Cache { url, key } => format!("{path} was fetched from the cache {url}, signed by {key}"),
            Origin::Imported => format!("{path} was imported from an export by the owner of this node"),
        };
        Ok(Provenance {
            summary,
            reason: note
                .as_ref()
                .map(|note| note.reason.clone())
                .filter(|reason| !reason.is_empty()),
            node,
            started: record
                .as_ref()
                .map(|record| record.started)
                .or(note.as_ref().map(|note| note.started)),
            finished: record
                .as_ref()
                .map(|record| record.finished)
                .or(note.as_ref().map(|note| note.finished)),
            has_log: log.is_some(),
            info,
        })
    }

    async fn add_root(&self, root: AddRoot) -> Result<(), ApiError> {
        self.valid(&root.path).await?;
        self.depot
            .blocking(move |store| Ok(store.add_root(std::path::Path::new(&root.link), &root.path)?))
            .await
            .map_err(failed)
    }

    async fn ask_store(&self, question: StoreQuestion) -> Result<StoreAnswer, ApiError> {
        store_api::answer(self, question).await
    }

    async fn archive(&self, path: StorePath) -> Result<LogReader, ApiError> {
        exchange_api::archive(self, path).await
    }

    async fn export(&self, paths: Vec<StorePath>) -> Result<LogReader, ApiError> {
        exchange_api::export(self, paths).await
    }

    async fn import(&self, export: UploadBody) -> Result<Vec<PathInfo>, ApiError> {
        exchange_api::import(self, export).await
    }

    async fn records(&self, path: StorePath) -> Result<Vec<RecordView>, ApiError> {
        team_api::records(self, path).await
    }

    async fn invite(&self, request: InviteRequest) -> Result<Invited, ApiError> {
        team_api::invite(self, request).await
    }

    async fn join(&self, request: JoinRequest) -> Result<Joined, ApiError> {
        team_api::join(self, request).await
    }

    async fn team(&self, team: Option<String>) -> Result<TeamView, ApiError> {
        team_api::team(self, team).await
    }

    async fn peers(&self, team: Option<String>) -> Result<Vec<PeerView>, ApiError> {
        team_api::peers(self, team).await
    }

    async fn founder_key(&self) -> Result<FounderKey, ApiError> {
        team_api::founder_key(self).await
    }

    async fn revoke(&self, member: MemberName) -> Result<PutOut, ApiError> {
        team_api::revoke(self, member).await
    }

    async fn renew(&self, request: RenewRequest) -> Result<(), ApiError> {
        team_api::renew(self, request).await
    }

    async fn leave(&self, request: LeaveRequest) -> Result<(), ApiError> {
        team_api::leave(self, request).await
    }

    async fn ask_owner(&self, question: OwnerQuestion) -> Result<OwnerAnswer, ApiError> {
        owner_api::answer(self, question).await
    }
}

/// As large as the pieces in which archives cross the socket.
pub(super) const ARCHIVE_BUFFER: usize = 256 * 1024;

type ReadBatch = (Vec<Text>, Vec<Event>, u64);

/// Parses a batch: what is to be stored, and what the engine is to be told afterwards.
fn read_batch(session: u64, batch: Vec<WorkerMessage>) -> Result<ReadBatch, DepotError> {
    let session = SessionId(session);
    let (mut texts, mut events, mut count) = (Vec::new(), Vec::new(), 0);
    for message in batch {
        let event = match message {
            WorkerMessage::Text {
                path,
                references,
                text,
            } => {
                texts.push(Text {
                    path,
                    references: references.into_iter().collect(),
                    content: text,
                });
                continue;
            }
            WorkerMessage::Derivation { path, aterm } => {
                let derivation = read_derivation(&path, &aterm)?;
                let described = describe(&path, &derivation)?;
                let references = derivation
                    .input_derivations()
                    .keys()
                    .chain(derivation.input_sources())
                    .cloned()
                    .collect();
                texts.push(Text {
                    path,
                    references,
                    content: aterm,
                });
                count += 1;
                // One event for all derivations in a row.
                if let Some(Event::Instantiated { derivations, .. }) = events.last_mut() {
                    derivations.push(described);
                    continue;
                }
                Event::Instantiated {
                    session,
                    derivations: vec![described],
                }
            }
            WorkerMessage::Target {
                target,
                name,
                derivation,
                outputs,
            } => Event::TargetNamed {
                session,
                target,
                name,
                derivation,
                outputs,
            },
            WorkerMessage::Import {
                import,
                derivation,
                outputs,
            } => Event::ImportRequested {
                session,
                import,
                derivation,
                outputs,
            },
            WorkerMessage::Ensure { import, path } => Event::EnsureRequested {
                session,
                import,
                path,
            },
            WorkerMessage::TargetFailed { target, name, error } => Event::TargetFailed {
                session,
                target,
                name,
                error,
            },
            WorkerMessage::EvaluationEnded => Event::EvaluationEnded { session },
        };
        events.push(event);
    }
    Ok((texts, events, count))
}

fn naming(source: &AddSource) -> Result<Naming, ApiError> {
    let invalid = |reason: String| ApiError::new(FailureKind::Invalid, reason);
    let expected = source
        .expected
        .as_ref()
        .map(|text| {
            NixHash::parse(text)
                .map_err(|error| invalid(format!("the hash '{text}' cannot be read: {error}")))
        })
        .transpose()?;
    let algorithm = expected
        .as_ref()
        .map_or(HashAlgorithm::Sha256, NixHash::algorithm);
    let method = match source.method {
        AddedAs::Nar => Method::Recursive(algorithm),
        AddedAs::Flat => Method::Flat(algorithm),
    };
    let mut content = ContentName {
        method,
        references: source.references.clone(),
        ..ContentName::source(source.name.clone())
    };
    if let Some(hash) = expected {
        let ca = match source.method {
            AddedAs::Nar => tvix_node_protocol::nix::hash::CAHash::Nar(hash),
            AddedAs::Flat => tvix_node_protocol::nix::hash::CAHash::Flat(hash),
        };
        let path = build_ca_path(&source.name, &ca, &source.references, false).map_err(|error| {
            invalid(format!(
                "'{}' cannot be a store path's name: {error}",
                source.name
            ))
        })?;
        content.expected = Some(path);
    }
    Ok(Naming::Content(content))
}

/// An error of the store as the door tells it.
pub(super) fn failed(error: DepotError) -> ApiError {
    let kind = match &error {
        _ if no_space(&error) => FailureKind::NoSpace,
        DepotError::Add(AddError::Naming(_) | AddError::Nar(_) | AddError::Source(_))
        | DepotError::Derivation(_) => FailureKind::Invalid,
        DepotError::Read(tvix_node_store::ReadError::NotValid(_)) => FailureKind::NotFound,
        _ => FailureKind::Internal,
    };
    let mut message = error.to_string();
    if kind == FailureKind::NoSpace {
        message.push_str(
            ". The disk of the home is full: make room, or set TVIX_NODE_HOME to a folder on another disk",
        );
    }
    ApiError::new(kind, message)
}

/// Whether somewhere behind an error a disk is full.
fn no_space(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let number = error.downcast_ref::<Errno>();
        if matches!(number, Some(&(Errno::NOSPC | Errno::DQUOT))) {
            return true;
        }
        let io = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        if matches!(
            io,
            Some(std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
        ) {
            return true;
        }
        cause = error.source();
    }
    false
}
