//! The store, for tasks that must not block: every call runs on a thread for that.

use std::collections::{BTreeSet, HashMap};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tvix_node_builder::DerivationOptions;
use tvix_node_coordinator as coordinator;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::SwarmId;
use tvix_node_protocol::envelope::Envelope;
use tvix_node_protocol::nix::derivation::{Derivation, DrvError, read_derivation};
use tvix_node_protocol::path_info::PathInfo;
use tvix_node_store::{
    AddError, Audience, IndexError, Lease, LogError, LogWriter, Naming, ReadError, RecordError, RootError,
    Store, Text,
};

use super::derivations::{Checked, CheckedDerivations};
use super::holding::{self, Holding};
use super::perform::Plan;
use super::room::Room;
use super::told::Told;
use crate::team::lent::Lent;
use crate::team::private::{PrivateBook, PrivateError};
use crate::team::trust::TrustBook;
use crate::upstream::Upstreams;

mod built;

pub use built::{BuildFacts, BuildNote};

/// Why the store cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum DepotError {
    /// Something could not be added.
    #[error(transparent)]
    Add(#[from] AddError),
    /// Something could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A build's output is not what it must be.
    #[error("{0}")]
    Output(AddError),
    /// A derivation is not valid.
    #[error(transparent)]
    Derivation(#[from] DrvError),
    /// A record could not be stored.
    #[error(transparent)]
    Stored(#[from] RecordError),
    /// A file of the home cannot be used.
    #[error("'{}' cannot be {action}: {source}", .file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// The index cannot be read or written.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A log cannot be written or read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A link cannot be made a root.
    #[error(transparent)]
    Root(#[from] RootError),
    /// What is private cannot be written down.
    #[error(transparent)]
    Private(#[from] PrivateError),
    /// Something that must be there while it is worked with is not: a bug.
    #[error("{0}")]
    Bug(String),
    /// A build record cannot be made.
    #[error("the build record cannot be made: {0}")]
    Record(String),
    /// The thread that did it is gone: a bug.
    #[error("a thread of the store ended: {0}")]
    Thread(String),
}

/// Told of paths that are new here and that members of a team may know of.
pub type Announcer = Arc<dyn Fn(&[StorePath]) + Send + Sync>;

/// The store and what a node keeps beside it.
pub struct Depot {
    store: Store,
    /// One [`BuildNote`] for each derivation built here.
    notes: PathBuf,
    /// Derivations whose output paths have been checked.
    pub derivations: CheckedDerivations,
    /// Derivations that the coordinator was told of.
    pub told: Told,
    /// Binary caches that paths may be taken from.
    pub upstreams: Arc<Upstreams>,
    /// Room on the disk for what arrives.
    pub room: Arc<Room>,
    /// What no member may know of.
    pub private: Arc<PrivateBook>,
    /// What is being fetched from here.
    pub lent: Arc<Lent>,
    /// Told of every path that is added, each of those that its team may learn of.
    announcers: Mutex<Vec<(SwarmId, Announcer)>>,
    /// What the open sessions protect.
    sessions: Mutex<Sessions>,
    /// What no session protects by itself: what the coordinator was told is there, builds, and what is done for others.
    holding: Arc<Holding>,
}

#[derive(Default)]
struct Sessions {
    leases: HashMap<u64, Arc<Lease>>,
    /// Who may learn of what each evaluation has read of the store so far: what it comes to may say what is in there.
    read: HashMap<u64, Audience>,
    /// What the coordinator was told is there it tells a later session without asking again, as long as there is one.
    work: Option<holding::Work>,
}

impl Depot {
    /// The depot of an open store. `private`: what no member may know of. `trust`: what the owner believes.
    pub fn new(store: Store, private: Arc<PrivateBook>, trust: Arc<TrustBook>) -> Self {
        let notes = store.home().join("notes");
        let holding = Arc::new(Holding::new(store.clone()));
        let room = Room::of(store.home().to_owned());
        let folder = store.home().join("spool/caches");
        let upstreams = Arc::new(Upstreams::new(folder, trust, Arc::clone(&room)));
        let lent = Arc::new(Lent::new(store.clone()));
        Self {
            upstreams,
            room,
            lent,
            store,
            notes,
            derivations: CheckedDerivations::default(),
            told: Told::default(),
            private,
            announcers: Mutex::default(),
            sessions: Mutex::default(),
            holding,
        }
    }

    /// From now on this is told of every path that is added and that members of this team may learn of.
    pub fn announce_with(&self, team: SwarmId, announcer: Announcer) {
        lock(&self.announcers).push((team, announcer));
    }

    /// From now on nobody is told of what members of this team may learn of.
    pub fn announce_no_more(&self, team: SwarmId) {
        lock(&self.announcers).retain(|(other, _)| *other != team);
    }

    /// These paths are in the store now, accepted under their names. Blocks.
    ///
    /// # Errors
    /// The index cannot be read; nobody was told then.
    pub fn added(&self, paths: &[StorePath]) -> Result<(), IndexError> {
        let announcers = lock(&self.announcers).clone();
        if announcers.is_empty() {
            return Ok(());
        }
        let public = paths.iter().filter(|path| !self.private.is_private(path));
        let public: Vec<StorePath> = public.cloned().collect();
        let audiences = self.store.audiences(&public)?;
        for (team, announce) in announcers {
            let known = public.iter().zip(&audiences).filter(|(_, audience)| {
                let audience = audience.as_ref();
                audience.is_some_and(|audience| audience.includes(team))
            });
            let known: Vec<StorePath> = known.map(|(path, _)| path.clone()).collect();
            self.private.tell_public(&known, |public| announce(public));
        }
        Ok(())
    }

    /// Adds a source that is private, unless it was there before, and is so before anybody can see it. Blocks.
    ///
    /// # Errors
    /// See [`DepotError`].
    pub fn add_privately(
        &self,
        archive: impl std::io::Read,
        naming: Naming,
        audience: &Audience,
        lease: &Lease,
    ) -> Result<PathInfo, DepotError> {
        let prepared = self.store.prepare_whole_nar(archive, naming)?.within(audience);
        let path = prepared.info().path.clone();
        // What was there before is no secret of this command.
        if lease.hold_one(&path)?.is_none() {
            self.private.add([path.clone()], [])?;
        }
        let registered = self.store.register(vec![prepared], lease)?;
        let lost = || DepotError::Bug(format!("{path} was added, and the store does not say so"));
        registered.into_iter().next().ok_or_else(lost)
    }

    /// As [`Depot::added`], on a thread that may block.
    pub async fn tell_added(self: &Arc<Self>, paths: Vec<StorePath>) -> Result<(), DepotError> {
        let depot = Arc::clone(self);
        self.blocking(move |_| Ok(depot.added(&paths)?)).await
    }

    /// The lease that takes what the node itself names at this moment, for the work that it does, see
    /// [`Depot::work`].
    pub fn lease(&self) -> Arc<Lease> {
        self.holding.lease()
    }

    /// Something begins that is no part of a session. What it names stays until the answer is dropped.
    pub fn work(&self) -> holding::Work {
        self.holding.begin()
    }

    /// What is over is not kept any more: a collection follows.
    pub fn let_go(&self) {
        self.holding.turn();
        self.lent.let_go();
    }

    /// The store itself, for threads that may block.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Where a valid path lies.
    pub fn physical(&self, path: &StorePath) -> PathBuf {
        self.store.physical(path)
    }

    /// Runs something with the store on a thread that may block.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, DepotError> + Send + 'static,
    ) -> Result<T, DepotError> {
        let store = self.store.clone();
        match tokio::task::spawn_blocking(move || work(&store)).await {
            Ok(result) => result,
            Err(error) => Err(DepotError::Thread(error.to_string())),
        }
    }

    /// From now on a session protects what it adds and names.
    pub fn begin_session(&self, session: u64) {
        let mut sessions = lock(&self.sessions);
        sessions.leases.insert(session, Arc::new(self.store.lease()));
        sessions.work.get_or_insert_with(|| self.holding.begin());
        drop(sessions);
        self.told.begin(session);
    }

    /// What the session protected may be collected.
    pub fn end_session(&self, session: u64) {
        let mut sessions = lock(&self.sessions);
        let lease = sessions.leases.remove(&session);
        sessions.read.remove(&session);
        let last = if sessions.leases.is_empty() {
            sessions.work.take()
        } else {
            None
        };
        drop(sessions);
        drop((lease, last));
        self.told.end(session);
        self.upstreams.end_session(session);
    }

    /// The lease of a session; the node's own where the session has just ended.
    pub fn lease_of(&self, session: u64) -> Arc<Lease> {
        let lease = lock(&self.sessions).leases.get(&session).cloned();
        lease.unwrap_or_else(|| self.holding.lease())
    }

    /// Holds these paths for a session whose evaluation is about to read them, and gives what is known of those that are
    /// valid. What it adds to the store from now on is known to no more than may learn of these.
    pub async fn read_by(
        self: &Arc<Self>,
        session: u64,
        paths: Vec<StorePath>,
    ) -> Result<Vec<PathInfo>, DepotError> {
        let (lease, depot) = (self.lease_of(session), Arc::clone(self));
        self.blocking(move |store| {
            let infos: Vec<PathInfo> = lease.hold(paths.iter())?.into_iter().flatten().collect();
            let audience = store.audience_of_all(infos.iter().map(|info| &info.path))?;
            if audience != Audience::Everyone {
                let mut sessions = lock(&depot.sessions);
                if !sessions.leases.contains_key(&session) {
                    // It has ended: nobody learns of what it adds still.
                    return Ok(infos);
                }
                let before = sessions.read.remove(&session).unwrap_or(Audience::Everyone);
                sessions.read.insert(session, before.both(&audience));
            }
            Ok(infos)
        })
        .await
    }

    /// Who may learn of what a session adds. Nobody, where it has ended: what it has read is not known any more.
    pub fn audience_of(&self, session: u64) -> Audience {
        let sessions = lock(&self.sessions);
        if !sessions.leases.contains_key(&session) {
            return Audience::nobody();
        }
        sessions.read.get(&session).cloned().unwrap_or(Audience::Everyone)
    }

    /// The coordinator needs these paths no more.
    pub fn release(&self, _paths: &[StorePath]) {
        // What any session was promised stays until the last session has ended: others may have named it, too.
    }

    /// Which of these paths are valid, and the size of their archives. They stay, see
    /// [`Depot::release`]. Where the index cannot be read, nothing counts as there, and what is then
    /// added will meet the same error and name it.
    pub async fn presence(&self, paths: Vec<StorePath>) -> Vec<(StorePath, Option<u64>)> {
        let (own, asked) = (self.holding.lease(), paths.clone());
        let answer = self.blocking(move |_| Ok(own.hold(asked.iter())?)).await;
        match answer {
            Ok(infos) => paths
                .into_iter()
                .zip(infos)
                .map(|(path, info)| (path, info.map(|info| info.nar_size)))
                .collect(),
            Err(error) => {
                tracing::error!(%error, "the store could not be asked for paths");
                paths.into_iter().map(|path| (path, None)).collect()
            }
        }
    }

    /// What is known of these paths, without those that are not valid.
    pub async fn infos(&self, paths: Vec<StorePath>) -> Result<Vec<PathInfo>, DepotError> {
        self.blocking(move |store| {
            let infos = store.query_many(paths.iter())?;
            Ok(infos.into_iter().flatten().collect())
        })
        .await
    }

    /// Adds texts (derivations among them) for a session.
    pub async fn add_texts(self: &Arc<Self>, session: u64, texts: Vec<Text>) -> Result<(), DepotError> {
        let (lease, depot, audience) = (
            self.lease_of(session),
            Arc::clone(self),
            self.audience_of(session),
        );
        self.blocking(move |store| {
            store.add_texts_within(&texts, &audience, &lease)?;
            let paths: Vec<StorePath> = texts.into_iter().map(|text| text.path).collect();
            Ok(depot.added(&paths)?)
        })
        .await
    }

    /// Reads a derivation and those it needs from the store, and recomputes every output path.
    pub async fn checked(
        self: &Arc<Self>,
        path: StorePath,
    ) -> Result<(Derivation, Checked, BTreeSet<StorePath>), DepotError> {
        let depot = Arc::clone(self);
        self.blocking(move |store| {
            let derivation = read_from(store, &path)?;
            let checked = depot
                .derivations
                .check(&path, &derivation, |input| read_from(store, input))?;
            let inputs = depot.derivations.direct_inputs(&derivation)?;
            Ok((derivation, checked, inputs))
        })
        .await
    }

    /// Everything that a build here needs to know: the derivation, its outputs recomputed, and the
    /// closure of what it reads, which is in the store.
    pub async fn plan(self: &Arc<Self>, path: StorePath) -> Result<Plan, DepotError> {
        let (derivation, checked, inputs) = self.checked(path.clone()).await?;
        let own = self.holding.lease();
        let closure = self
            .blocking(move |store| {
                own.hold(inputs.iter())?;
                Ok(store.closure(inputs.iter())?)
            })
            .await?;
        let physical = closure.iter().map(|info| self.physical(&info.path)).collect();
        Ok(Plan {
            path,
            derivation,
            outputs: (*checked.outputs).clone(),
            closure,
            physical,
        })
    }

    /// Begins the log of a build.
    pub async fn begin_log(&self, derivation: StorePath) -> Result<Log, DepotError> {
        self.blocking(move |store| {
            let writer = store.create_log(&derivation, None)?;
            Ok(Log {
                writer: std::io::BufWriter::with_capacity(LOG_BUFFER, Lines(writer)),
                failure: None,
            })
        })
        .await
    }

    /// Ends a log: it can be read from now on as that of its derivation.
    pub async fn end_log(&self, log: Log) -> Result<(), DepotError> {
        self.blocking(move |_| {
            let Log { mut writer, failure } = log;
            let flushed = writer.flush();
            if let Some(error) = failure.or(flushed.err()) {
                tracing::warn!(%error, "a build log is not complete");
            }
            let (Lines(writer), _) = writer.into_parts();
            Ok(writer.finish()?)
        })
        .await
    }

    /// Gives up the log of a build that never was: that of an earlier one stays.
    pub async fn discard_log(&self, log: Log) -> Result<(), DepotError> {
        self.blocking(move |_| {
            let (Lines(writer), _) = log.writer.into_parts();
            Ok(writer.discard()?)
        })
        .await
    }

    /// The log of the last build of a derivation, if there was one here.
    pub async fn open_log(&self, derivation: &StorePath) -> Result<Option<tokio::fs::File>, DepotError> {
        let derivation = derivation.clone();
        self.blocking(move |store| match store.open_log(&derivation) {
            Ok(file) => Ok(Some(tokio::fs::File::from_std(file))),
            Err(LogError::None(_)) => Ok(None),
            Err(error) => Err(error.into()),
        })
        .await
    }

    /// The newest record that names a path as an output.
    pub async fn record_of(&self, path: StorePath) -> Result<Option<Envelope>, DepotError> {
        self.blocking(move |store| Ok(store.records_of(&path)?.pop()))
            .await
    }
}

/// The log of a build that runs.
pub struct Log {
    writer: std::io::BufWriter<Lines>,
    /// The first line that could not be written. A build does not fail for its log.
    failure: Option<std::io::Error>,
}

/// Bytes of log that wait to be written: a loud build must not cost a system call for each line.
const LOG_BUFFER: usize = 16 * 1024;

struct Lines(LogWriter);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes).map_err(std::io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Adds a line.
    pub fn line(&mut self, line: &[u8]) {
        if self.failure.is_none() {
            self.failure = self
                .writer
                .write_all(line)
                .and_then(|()| self.writer.write_all(b"\n"))
                .err();
        }
    }

    /// Writes what waits, so that whoever reads the log of a build that runs sees it.
    pub fn flush(&mut self) {
        if self.failure.is_none() {
            self.failure = self.writer.flush().err();
        }
    }
}

/// A derivation of the store.
pub fn read_from(store: &Store, path: &StorePath) -> Result<Derivation, DepotError> {
    Ok(read_sized_from(store, path)?.0)
}

/// A derivation of the store, and the bytes of its text.
pub fn read_sized_from(store: &Store, path: &StorePath) -> Result<(Derivation, usize), DepotError> {
    let file = store.physical(path);
    let text = std::fs::read(&file).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => DepotError::Read(ReadError::NotValid(path.clone())),
        _ => DepotError::File {
            file,
            action: "read",
            source,
        },
    })?;
    Ok((read_derivation(path, &text)?, text.len()))
}

fn invalid(path: &StorePath, source: tvix_node_protocol::nix::derivation::DerivationError) -> DrvError {
    DrvError::Invalid {
        name: path.to_string(),
        source,
    }
}

/// A derivation as far as the coordinator cares.
pub fn describe(path: &StorePath, derivation: &Derivation) -> Result<coordinator::Derivation, DepotError> {
    let mut outputs = std::collections::BTreeMap::new();
    for (name, output) in derivation
        .resolved_outputs()
        .map_err(|source| invalid(path, source))?
    {
        let output = output
            .path
            .ok_or_else(|| DrvError::Unsupported(derivation.name().to_owned()))?;
        outputs.insert(name, output);
    }
    // What cannot be understood here is refused by name when it comes to building it; it may well be
    // present.
    let options = DerivationOptions::read(derivation).unwrap_or_default();
    Ok(coordinator::Derivation {
        path: path.clone(),
        outputs,
        inputs: derivation
            .input_derivations()
            .iter()
            .map(|(path, input)| coordinator::InputDerivation {
                derivation: path.clone(),
                outputs: input.outputs().iter().cloned().collect(),
            })
            .collect(),
        sources: derivation.input_sources().iter().cloned().collect(),
        system: derivation.system().to_owned(),
        required_features: options.required_system_features.into_iter().collect(),
        prefer_local: options.prefer_local_build,
        fixed_output: derivation
            .is_fixed_output()
            .map_err(|source| invalid(path, source))?,
        // Whose rules it is under, who describes it does not know.
        quorum: None,
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is consistent at every instant.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "depot_tests.rs"]
mod tests;
