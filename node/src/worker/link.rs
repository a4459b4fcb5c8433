//! A session with the node, as the evaluation's thread sees it: blocking calls, messages in order.

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::mpsc as blocking;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tvix_node_gateway::control::{ClientError, ControlClient, Upload};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::control::{AddSource, FailureKind, SessionOpened, SourceQuery, WorkerMessage};
use tvix_node_protocol::path_info::PathInfo;

use super::beside::Beside;
use super::limits::{BATCH_MESSAGES, BATCH_TEXT_BYTES, OFFERS, OUTBOX_MESSAGES};
use super::offer::Offer;

/// Why the node cannot be told or asked something.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    /// The node refused or the connection broke.
    #[error("{0}")]
    Client(Arc<ClientError>),
    /// The node computed another path for a source, so one of both is wrong.
    #[error("the node says that the path of the source is {theirs}, and here it is {ours}")]
    Differs {
        /// Computed here.
        ours: StorePath,
        /// Computed by the node.
        theirs: StorePath,
    },
    /// Nobody is left on the other side of this process.
    #[error("the session with the node is over")]
    Over,
}

impl LinkError {
    /// Whether the expression is to blame (content that is not what it says, names that cannot be)
    /// and not the node, its disk or the connection to it.
    #[must_use]
    pub fn is_the_expressions(&self) -> bool {
        matches!(self, Self::Client(error)
            if matches!(&**error, ClientError::Refused(failure, _) if failure.kind == FailureKind::Invalid))
    }
}

impl From<ClientError> for LinkError {
    fn from(error: ClientError) -> Self {
        Self::Client(Arc::new(error))
    }
}

enum Item {
    Message(WorkerMessage),
    /// A source on its way. What comes after it may refer to it.
    Source(JoinHandle<Result<(), LinkError>>),
    /// Answered when everything before it has been taken by the node.
    Barrier(oneshot::Sender<()>),
}

/// What an evaluation may wait for.
pub(super) enum Happened {
    /// An import has ended: its number, and why it failed.
    Import(u64, Result<(), String>),
    /// What was begun beside the evaluation has something to say.
    Beside(Beside),
    /// The session is over: no import will end any more.
    Over,
}

/// The evaluation's side of a session. Its methods block; they must not be called on a thread that
/// drives async tasks.
pub struct Link {
    sources: Sources,
    store_root: PathBuf,
    outbox: mpsc::Sender<Item>,
    failure: Arc<Mutex<Option<LinkError>>>,
    /// Turns of sources that are sent beside the evaluation.
    turns: Arc<Semaphore>,
    happened: blocking::Receiver<Happened>,
    /// For what is begun beside the evaluation.
    sender: blocking::Sender<Happened>,
    /// The session is over.
    over: Cell<bool>,
}

/// Where the end of an import is told: given to whoever reads the session's events. When it is dropped, no more will
/// end.
pub struct ImportSender(blocking::Sender<Happened>);

impl ImportSender {
    /// Tells that an import has ended, and why it failed. An evaluation that has ended waits for nothing.
    pub fn send(&self, import: u64, result: Result<(), String>) {
        drop(self.0.send(Happened::Import(import, result)));
    }
}

impl Drop for ImportSender {
    fn drop(&mut self) {
        drop(self.0.send(Happened::Over));
    }
}

/// The store's way to take sources within a session. Its methods block, as those of [`Link`].
#[derive(Clone)]
pub(super) struct Sources {
    client: ControlClient,
    runtime: Handle,
    session: u64,
}

impl Sources {
    /// Whether an unchanged source is in the store.
    pub(super) fn find(&self, fingerprint: String) -> Result<Option<StorePath>, LinkError> {
        let query = SourceQuery { fingerprint };
        Ok(self
            .runtime
            .block_on(self.client.find_source(self.session, &query))?
            .path)
    }

    /// Begins to add a source; its archive is then written to the upload.
    pub(super) fn add(&self, source: AddSource) -> Upload {
        self.client.add_source(self.session, source)
    }

    /// Ends an upload whose archive is complete.
    pub(super) fn finish(&self, upload: Upload) -> Result<PathInfo, LinkError> {
        Ok(self.runtime.block_on(upload.finish())?)
    }
}

impl Link {
    /// A link over an open session. Must be called within a tokio runtime.
    #[must_use]
    pub fn new(client: ControlClient, opened: &SessionOpened) -> (Self, ImportSender) {
        let (outbox, queue) = mpsc::channel(OUTBOX_MESSAGES);
        let (sender, happened) = blocking::channel();
        let failure = Arc::default();
        let session = opened.session;
        tokio::spawn(send_batches(client.clone(), session, queue, Arc::clone(&failure)));
        let store_root = PathBuf::from(&opened.store_root);
        let runtime = Handle::current();
        (
            Self {
                sources: Sources {
                    client,
                    runtime,
                    session,
                },
                store_root,
                outbox,
                failure,
                turns: Arc::new(Semaphore::new(OFFERS)),
                happened,
                sender: sender.clone(),
                over: Cell::new(false),
            },
            ImportSender(sender),
        )
    }

    /// The folder that holds `nix/store`.
    #[must_use]
    pub fn store_root(&self) -> &std::path::Path {
        &self.store_root
    }

    /// Tells the node something. Returns before the node has it, but waits where much is under way.
    ///
    /// # Errors
    /// An earlier message was refused; see [`LinkError`].
    pub fn tell(&self, message: WorkerMessage) -> Result<(), LinkError> {
        self.put(Item::Message(message))
    }

    /// Waits until the node has taken everything told before.
    ///
    /// # Errors
    /// Some of it was refused; see [`LinkError`].
    pub fn settle(&self) -> Result<(), LinkError> {
        let (done, settled) = oneshot::channel();
        self.put(Item::Barrier(done))?;
        settled.blocking_recv().map_err(|_| self.failed())
    }

    fn put(&self, item: Item) -> Result<(), LinkError> {
        self.outbox.blocking_send(item).map_err(|_| self.failed())
    }

    fn failed(&self) -> LinkError {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.clone().unwrap_or(LinkError::Over)
    }

    /// Sends a source while the evaluation goes on. It is there before anything that is told after this.
    ///
    /// # Errors
    /// An earlier message was refused; see [`LinkError`]. Where this one is, a later call says so.
    pub(super) fn offer(&self, offer: Offer) -> Result<(), LinkError> {
        let runtime = &self.sources.runtime;
        let turn = runtime.block_on(Arc::clone(&self.turns).acquire_owned());
        let turn = turn.map_err(|_| self.failed())?;
        let (client, session) = (self.sources.client.clone(), self.sources.session);
        self.put(Item::Source(runtime.spawn(async move {
            let sent = send_source(&client, session, offer).await;
            drop(turn);
            sent
        })))
    }

    /// The store's way to take sources.
    pub(super) fn sources(&self) -> &Sources {
        &self.sources
    }

    /// Runs something beside the evaluation, which [`Self::happened`] learns of through what it is given.
    pub(super) fn beside(&self, work: impl FnOnce(Reporter) + Send + 'static) {
        let reporter = Reporter(self.sender.clone());
        drop(self.sources.runtime.spawn_blocking(move || work(reporter)));
    }

    /// What is known of a path, if it is valid. It then stays as long as the session is open: whoever asks
    /// relies on it.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn path_info(&self, path: &StorePath) -> Result<Option<PathInfo>, LinkError> {
        self.settle()?;
        let infos = self.sources.runtime.block_on(
            self.sources
                .client
                .hold_paths(self.sources.session, vec![path.clone()]),
        )?;
        Ok(infos.into_iter().next())
    }

    /// What has happened; with `wait`, at least one thing.
    ///
    /// # Errors
    /// [`LinkError::Over`] where no more imports will end.
    pub(super) fn happened(&self, wait: bool) -> Result<Vec<Happened>, LinkError> {
        let mut all = Vec::new();
        if self.over.get() {
            return Err(self.failed());
        }
        if wait {
            all.push(self.happened.recv().map_err(|_| self.failed())?);
        }
        all.extend(self.happened.try_iter());
        if let Some(at) = all.iter().position(|one| matches!(one, Happened::Over)) {
            self.over.set(true);
            all.truncate(at);
            if all.is_empty() {
                return Err(self.failed());
            }
        }
        Ok(all)
    }
}

/// Tells the evaluation what comes of something that runs beside it.
pub(super) struct Reporter(blocking::Sender<Happened>);

impl Reporter {
    /// An evaluation that has ended waits for nothing.
    pub(super) fn tell(&self, what: Beside) {
        drop(self.0.send(Happened::Beside(what)));
    }
}

/// Sends what is told, in order. While one batch is on its way the next one gathers, so a fast
/// evaluation makes large batches and a slow one is not held up.
async fn send_batches(
    client: ControlClient,
    session: u64,
    mut queue: mpsc::Receiver<Item>,
    failure: Arc<Mutex<Option<LinkError>>>,
) {
    let mut batch = Vec::new();
    let mut sources = Vec::new();
    while let Some(first) = queue.recv().await {
        let mut barriers = Vec::new();
        let mut size = 0;
        let mut next = Some(first);
        while let Some(item) = next {
            match item {
                Item::Message(message) => {
                    size += text_size(&message);
                    batch.push(message);
                }
                Item::Source(task) => sources.push(task),
                Item::Barrier(done) => barriers.push(done),
            }
            next = if size < BATCH_TEXT_BYTES && batch.len() < BATCH_MESSAGES {
                queue.try_recv().ok()
            } else {
                None
            };
        }
        let sent = send_batch(&client, session, &mut sources, &batch).await;
        if let Err(error) = sent {
            *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            // Dropping the queue and the barriers tells the evaluation.
            return;
        }
        batch.clear();
        for done in barriers {
            // The evaluation may have been given up meanwhile.
            done.send(()).unwrap_or_default();
        }
    }
}

/// Sends a batch when the sources before it are there.
async fn send_batch(
    client: &ControlClient,
    session: u64,
    sources: &mut Vec<JoinHandle<Result<(), LinkError>>>,
    batch: &[WorkerMessage],
) -> Result<(), LinkError> {
    for source in sources.drain(..) {
        source.await.map_err(|_| LinkError::Over)??;
    }
    if !batch.is_empty() {
        client.send_batch(session, batch).await?;
    }
    Ok(())
}

async fn send_source(client: &ControlClient, session: u64, offer: Offer) -> Result<(), LinkError> {
    let Offer {
        request,
        archive,
        path,
    } = offer;
    if let Some(fingerprint) = &request.fingerprint {
        let query = SourceQuery {
            fingerprint: fingerprint.clone(),
        };
        // The answer is held for this session, so it is there when something refers to it.
        if client.find_source(session, &query).await?.path.as_ref() == Some(&path) {
            return Ok(());
        }
    }
    let mut upload = client.add_source(session, request);
    match upload.send(archive.into()).await {
        Ok(()) => {}
        // Where the node takes no more, the end of the upload has its reason.
        Err(error) => tracing::debug!(%error, "a source was not taken whole"),
    }
    let info = upload.finish().await?;
    match info.path == path {
        true => Ok(()),
        false => Err(LinkError::Differs {
            ours: path,
            theirs: info.path,
        }),
    }
}

fn text_size(message: &WorkerMessage) -> usize {
    match message {
        WorkerMessage::Text { text, .. } => text.len(),
        WorkerMessage::Derivation { aterm, .. } => aterm.len(),
        _ => 0,
    }
}
