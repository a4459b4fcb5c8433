//! The commands' half of the control socket.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::control::{
    AddRoot, AddSource, CONTROL_VERSION, Failure, OpenSession, PathQuery, Provenance, RecordView,
    SessionOpened, SourceAnswer, SourceQuery, Status, VERSION_HEADER, WorkerMessage,
};
use tvix_node_protocol::path_info::PathInfo;

use super::client_error::ClientError;
use super::ending::Ending;
use super::route::Route;
use super::socket::{SocketAddress, SocketError, may_believe, own_user};
use super::stream::{EventStream, LogStream, RequestBody, Upload};
use crate::limits::{ANSWER_BYTES, FIRST_ANSWER, IDLE_CONNECTIONS};

/// A connection that is ready for a request, or carries one.
pub(super) type Sender = SendRequest<RequestBody>;

/// Talks to the node of a home. Cheap to clone; clones share connections.
#[derive(Debug, Clone)]
pub struct ControlClient {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    home: PathBuf,
    address: SocketAddress,
    idle: Mutex<Vec<Sender>>,
    runtime: Handle,
}

impl ControlClient {
    /// Connects to the node that is up in a home, and makes sure that it speaks the same version. Must
    /// be called within a tokio runtime, on which the client's connections then live.
    ///
    /// # Errors
    /// [`ClientError::NoNode`] where none is up; see [`ClientError`].
    pub async fn connect(home: &Path) -> Result<Self, ClientError> {
        Self::connect_within(home, FIRST_ANSWER).await
    }

    pub(super) async fn connect_within(home: &Path, patience: Duration) -> Result<Self, ClientError> {
        let client = Self::unconnected(home)?;
        client.in_time(patience, client.status()).await?;
        Ok(client)
    }

    /// Tells the node that is up in a home to end, whichever version it speaks. It has taken the order
    /// when this returns; [`Ending`] knows when it has ended.
    ///
    /// # Errors
    /// [`ClientError::NoNode`] where none is up; see [`ClientError`].
    pub async fn down(home: &Path) -> Result<Ending, ClientError> {
        let client = Self::unconnected(home)?;
        let (sender, process) = client.open_to().await?;
        let ending = Ending::of(process);
        let told = async {
            let answer = client
                .send_over(sender, &Route::Down, RequestBody::empty())
                .await?;
            client.whole(&Route::Down, answer).await
        };
        client.in_time(FIRST_ANSWER, told).await?;
        Ok(ending)
    }

    /// An answer that takes little work, so that a node which does not give it in time will not.
    async fn in_time<T>(
        &self,
        patience: Duration,
        answer: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        match tokio::time::timeout(patience, answer).await {
            Ok(answer) => answer,
            Err(_) => {
                let stream = self.shared.address.connect().await.ok();
                Err(ClientError::Silent {
                    home: self.shared.home.clone(),
                    patience,
                    process: stream.and_then(|stream| stream.peer_cred().ok()?.pid()),
                })
            }
        }
    }

    pub(super) fn unconnected(home: &Path) -> Result<Self, ClientError> {
        Ok(Self {
            shared: Arc::new(Shared {
                home: home.to_owned(),
                address: SocketAddress::of(home).map_err(|error| no_home(home, error))?,
                idle: Mutex::default(),
                runtime: Handle::current(),
            }),
        })
    }

    /// The home of the node.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.shared.home
    }

    /// The runtime on which the connections live. A thread outside of it may
    /// [`block_on`](Handle::block_on) requests with this.
    #[must_use]
    pub fn runtime(&self) -> &Handle {
        &self.shared.runtime
    }

    /// What the node is doing.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.ask(&Route::Status, RequestBody::empty()).await
    }

    /// Opens a session. It ends when its events are no longer read.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn open_session(&self, request: &OpenSession) -> Result<SessionOpened, ClientError> {
        self.ask_with(&Route::OpenSession, request).await
    }

    /// The events of a session. Dropping the stream ends the session.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn events(&self, session: u64) -> Result<EventStream, ClientError> {
        // A connection of its own: the node ends the session with it.
        let route = Route::Events(session);
        let sender = self.open().await?;
        let (sender, answer) = self.send_over(sender, &route, RequestBody::empty()).await?;
        let answer = self.checked(&route, answer).await?;
        Ok(EventStream::new(sender, answer.into_body()))
    }

    /// Sends what an evaluation has to tell. Returns when the node wants more.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn send_batch(&self, session: u64, batch: &[WorkerMessage]) -> Result<(), ClientError> {
        let route = Route::Batch(session);
        let mut bytes = Vec::new();
        ciborium::into_writer(batch, &mut bytes).map_err(|error| ClientError::Request {
            request: route.to_request().1,
            reason: error.to_string(),
        })?;
        self.done(&route, RequestBody::whole(bytes)).await
    }

    /// Begins to add a source whose archive is then written to the answer. May be called on any thread.
    #[must_use]
    pub fn add_source(&self, session: u64, source: AddSource) -> Upload {
        self.upload(Route::AddSource(session, source))
    }

    /// Begins a request whose body is then written to the answer.
    pub(super) fn upload<T: DeserializeOwned + Send + 'static>(&self, route: Route) -> Upload<T> {
        let (upload, body, answer) = Upload::new();
        let client = self.clone();
        self.shared.runtime.spawn(async move {
            answer.give(client.ask(&route, body).await);
        });
        upload
    }

    /// Asks whether an unchanged source is in the store.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn find_source(&self, session: u64, query: &SourceQuery) -> Result<SourceAnswer, ClientError> {
        self.ask_with(&Route::FindSource(session), query).await
    }

    /// What is known of these paths, without those that are not valid.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn path_infos(&self, paths: Vec<StorePath>) -> Result<Vec<PathInfo>, ClientError> {
        let session = None;
        self.ask_with(&Route::Paths, &PathQuery { paths, session }).await
    }

    /// The same for a session that relies on the answer: what is valid stays valid as long as it is open.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn hold_paths(
        &self,
        session: u64,
        paths: Vec<StorePath>,
    ) -> Result<Vec<PathInfo>, ClientError> {
        let session = Some(session);
        self.ask_with(&Route::Paths, &PathQuery { paths, session }).await
    }

    /// The log of the build that made a path.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn log(&self, path: StorePath) -> Result<LogStream, ClientError> {
        self.stream(&Route::Log(path), RequestBody::empty()).await
    }

    /// An answer that is read piece by piece, over a connection of its own.
    pub(super) async fn stream(&self, route: &Route, body: RequestBody) -> Result<LogStream, ClientError> {
        let sender = self.open().await?;
        let (sender, answer) = self.send_over(sender, route, body).await?;
        let answer = self.checked(route, answer).await?;
        Ok(LogStream::new(route.to_request().1, sender, answer.into_body()))
    }

    /// Where a path came from and why.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn why(&self, path: StorePath) -> Result<Provenance, ClientError> {
        self.ask(&Route::Why(path), RequestBody::empty()).await
    }

    /// The signed records of the builds that made a path, the newest first.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn records(&self, path: StorePath) -> Result<Vec<RecordView>, ClientError> {
        self.ask(&Route::Records(path), RequestBody::empty()).await
    }

    /// Makes a link outside the home a root.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn add_root(&self, root: &AddRoot) -> Result<(), ClientError> {
        self.done_with(&Route::AddRoot, root).await
    }

    pub(super) async fn ask_with<Q: Serialize, T: DeserializeOwned>(
        &self,
        route: &Route,
        question: &Q,
    ) -> Result<T, ClientError> {
        self.ask(route, RequestBody::json(route, question)?).await
    }

    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        route: &Route,
        body: RequestBody,
    ) -> Result<T, ClientError> {
        let answer = self.send(route, body).await?;
        let bytes = self.whole_checked(route, answer).await?;
        serde_json::from_slice(&bytes).map_err(|error| ClientError::Answer {
            request: route.to_request().1,
            reason: error.to_string(),
        })
    }

    pub(super) async fn done_with<Q: Serialize>(
        &self,
        route: &Route,
        question: &Q,
    ) -> Result<(), ClientError> {
        self.done(route, RequestBody::json(route, question)?).await
    }

    pub(super) async fn done(&self, route: &Route, body: RequestBody) -> Result<(), ClientError> {
        let answer = self.send(route, body).await?;
        self.whole_checked(route, answer).await.map(drop)
    }

    /// Sends a request over an idle connection or a new one.
    async fn send(&self, route: &Route, mut body: RequestBody) -> Result<Answered, ClientError> {
        while let Some(mut sender) = self.take_idle() {
            if sender.ready().await.is_err() {
                continue;
            }
            match sender.try_send_request(request(route, body)?).await {
                Ok(answer) => return Ok((sender, answer)),
                Err(mut error) => match error.take_message() {
                    // Nothing of it was sent: the node had closed the idle connection.
                    Some(unsent) => body = unsent.into_body(),
                    None => return Err(broken(route, error.into_error())),
                },
            }
        }
        let sender = self.open().await?;
        self.send_over(sender, route, body).await
    }

    async fn send_over(
        &self,
        mut sender: Sender,
        route: &Route,
        body: RequestBody,
    ) -> Result<Answered, ClientError> {
        match sender.send_request(request(route, body)?).await {
            Ok(answer) => Ok((sender, answer)),
            Err(error) => Err(broken(route, error)),
        }
    }

    async fn open(&self) -> Result<Sender, ClientError> {
        Ok(self.open_to().await?.0)
    }

    /// A new connection, and the number of the process at its other end where that is known.
    async fn open_to(&self) -> Result<(Sender, Option<i32>), ClientError> {
        let address = &self.shared.address;
        let socket = || address.path().to_owned();
        let stream = address.connect().await.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NoNode {
                home: self.shared.home.clone(),
                source,
            },
            _ => ClientError::Connect {
                socket: socket(),
                source,
            },
        })?;
        let peer = stream.peer_cred().map_err(|source| ClientError::Connect {
            socket: socket(),
            source,
        })?;
        let user = peer.uid();
        if !may_believe(user, own_user()) {
            return Err(ClientError::Stranger {
                socket: socket(),
                user,
            });
        }
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream))
                .await
                .map_err(|source| ClientError::Broken {
                    request: "a connection".to_owned(),
                    source,
                })?;
        self.shared.runtime.spawn(async move {
            // Whoever waits for the answer hears of it too.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the node broke off");
            }
        });
        Ok((sender, peer.pid()))
    }

    /// The bytes of an answer of whichever version; the connection may then be used again.
    async fn whole(&self, route: &Route, (sender, answer): Answered) -> Result<Vec<u8>, ClientError> {
        let answer = refused(route, answer).await?;
        let bytes = collect(route, answer.into_body()).await?;
        let mut idle = self.idle();
        if idle.len() < IDLE_CONNECTIONS && !sender.is_closed() {
            idle.push(sender);
        }
        Ok(bytes)
    }

    async fn whole_checked(&self, route: &Route, (sender, answer): Answered) -> Result<Vec<u8>, ClientError> {
        self.same_version(&answer)?;
        self.whole(route, (sender, answer)).await
    }

    async fn checked(
        &self,
        route: &Route,
        answer: Response<Incoming>,
    ) -> Result<Response<Incoming>, ClientError> {
        self.same_version(&answer)?;
        refused(route, answer).await
    }

    fn same_version(&self, answer: &Response<Incoming>) -> Result<(), ClientError> {
        let theirs = answer
            .headers()
            .get(VERSION_HEADER)
            .map(|version| String::from_utf8_lossy(version.as_bytes()).into_owned());
        if theirs.as_deref() == Some(CONTROL_VERSION.to_string().as_str()) {
            return Ok(());
        }
        Err(ClientError::Version {
            home: self.shared.home.clone(),
            theirs: theirs.unwrap_or_else(|| "(none, it does not say)".to_owned()),
        })
    }

    fn take_idle(&self) -> Option<Sender> {
        self.idle().pop()
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Sender>> {
        // A list of connections is consistent at every instant.
        self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An answer, and the connection it comes over.
type Answered = (Sender, Response<Incoming>);

fn request(route: &Route, body: RequestBody) -> Result<Request<RequestBody>, ClientError> {
    let (method, address) = route.to_request();
    let kind = match route {
        Route::Batch(_) => "application/cbor",
        Route::AddSource(..) => "application/x-nix-archive",
        Route::Import => "application/octet-stream",
        _ => "application/json",
    };
    Request::builder()
        .method(method)
        .uri(&address)
        .header(HOST, "tvix-node")
        .header(VERSION_HEADER, CONTROL_VERSION)
        .header(CONTENT_TYPE, kind)
        .body(body)
        .map_err(|error| ClientError::Request {
            request: address,
            reason: error.to_string(),
        })
}

fn broken(route: &Route, source: hyper::Error) -> ClientError {
    ClientError::Broken {
        request: route.to_request().1,
        source,
    }
}

/// A home that is not there has no node; one that cannot be opened is an error.
fn no_home(home: &Path, error: SocketError) -> ClientError {
    match error {
        SocketError::Folder { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            ClientError::NoNode {
                home: home.to_owned(),
                source,
            }
        }
        error => ClientError::Socket(error),
    }
}

/// Turns an answer that is a failure into an error.
async fn refused(route: &Route, answer: Response<Incoming>) -> Result<Response<Incoming>, ClientError> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let bytes = collect(route, answer.into_body()).await?;
    match serde_json::from_slice::<Failure>(&bytes) {
        Ok(failure) => Err(failure.into()),
        Err(error) => Err(ClientError::Answer {
            request: route.to_request().1,
            reason: format!("status {status} without a failure that could be read ({error})"),
        }),
    }
}

async fn collect(route: &Route, mut body: Incoming) -> Result<Vec<u8>, ClientError> {
    let mut bytes = Vec::with_capacity(body.size_hint().lower().min(1 << 20) as usize);
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(|source| broken(route, source))?.into_data() {
            bytes.extend_from_slice(&data);
        }
        if bytes.len() > ANSWER_BYTES {
            return Err(ClientError::Answer {
                request: route.to_request().1,
                reason: format!("it has more than {ANSWER_BYTES} bytes"),
            });
        }
    }
    Ok(bytes)
}

impl RequestBody {
    pub(super) fn empty() -> Self {
        Self::Whole(Full::default())
    }

    fn whole(bytes: Vec<u8>) -> Self {
        Self::Whole(Full::new(Bytes::from(bytes)))
    }

    pub(super) fn json<T: Serialize>(route: &Route, value: &T) -> Result<Self, ClientError> {
        serde_json::to_vec(value)
            .map(Self::whole)
            .map_err(|error| ClientError::Request {
                request: route.to_request().1,
                reason: error.to_string(),
            })
    }
}
