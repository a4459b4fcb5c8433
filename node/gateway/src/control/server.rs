//! Connections to the control socket, from accept to hang-up.

use std::collections::HashSet;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::answer::answer;
use super::api::ControlApi;
use super::socket::{ControlSocket, may_command, own_user};
use crate::limits::{ACCEPT_PAUSE, CONNECTIONS, HEADER_BYTES, HEADERS, SHUTDOWN_GRACE, UNWATCHED_SESSION};

/// Answers the commands that come through a control socket, until `shutdown` is ready. Then the socket
/// goes away, answers under way are finished within [`SHUTDOWN_GRACE`], and sessions that still are open
/// are closed. `commands` is told how many connections there are: each is a command that has not ended.
pub async fn serve<A: ControlApi>(
    socket: ControlSocket,
    api: Arc<A>,
    commands: watch::Sender<usize>,
    shutdown: impl Future<Output = ()> + Send,
) {
    serve_with(socket, api, commands, shutdown, Settings::default()).await;
}

/// One connection more, as long as this is there.
struct Counted(watch::Sender<usize>);

impl Counted {
    fn new(commands: &watch::Sender<usize>) -> Self {
        commands.send_modify(|count| *count += 1);
        Self(commands.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// Whom a server answers, and how long it waits for them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    /// The user whose node it is.
    pub(super) owner: u32,
    pub(super) unwatched_session: Duration,
    pub(super) shutdown: Duration,
    pub(super) connections: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            owner: own_user(),
            unwatched_session: UNWATCHED_SESSION,
            shutdown: SHUTDOWN_GRACE,
            connections: CONNECTIONS,
        }
    }
}

pub(super) async fn serve_with<A: ControlApi>(
    socket: ControlSocket,
    api: Arc<A>,
    commands: watch::Sender<usize>,
    shutdown: impl Future<Output = ()> + Send,
    settings: Settings,
) {
    let (stop, stopping) = watch::channel(false);
    let (busy, mut idle) = mpsc::channel(1);
    let server = Arc::new(Server {
        api,
        unwatched: Mutex::default(),
        stopping,
        settings,
    });
    let places = Arc::new(Semaphore::new(settings.connections));
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue,
            accepted = socket.listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => match Arc::clone(&places).try_acquire_owned() {
                Ok(place) => {
                    let (server, busy) = (Arc::clone(&server), busy.clone());
                    let counted = Counted::new(&commands);
                    connections.spawn(async move {
                        serve_connection(server, stream, busy).await;
                        drop((place, counted));
                    });
                }
                Err(_) => turn_away(&stream, settings.connections),
            },
            Err(error) => {
                // Out of descriptors or memory: connections that end give some back.
                tracing::warn!(%error, "a connection to the control socket cannot be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // From now on a command finds no socket, and starts a node of its own when this one is gone.
    drop(socket);
    stop.send_replace(true);
    drop(busy);
    while connections.join_next().await.is_some() {}
    // Calls whose client is gone run on without a connection.
    if timeout(settings.shutdown, idle.recv()).await.is_err() {
        tracing::warn!("requests are still being worked on while the node stops");
    }
}

/// Says in one write that there is no place; whoever does not read it loses nothing.
fn turn_away(stream: &UnixStream, limit: usize) {
    let body = format!(
        "{{\"error\":\"the node has {limit} connections, the most it takes; end some commands\",\"kind\":\"unavailable\"}}"
    );
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\n{}: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        tvix_node_protocol::control::VERSION_HEADER,
        tvix_node_protocol::control::CONTROL_VERSION,
        body.len()
    );
    if let Err(error) = stream.try_write(answer.as_bytes()) {
        tracing::debug!(%error, "a command cannot be turned away");
    }
}

/// Kept by whatever must end before [`serve`] does.
pub(super) type Busy = mpsc::Sender<()>;

/// What all connections share.
pub(super) struct Server<A> {
    pub(super) api: Arc<A>,
    /// Sessions whose events nobody reads yet.
    unwatched: Mutex<HashSet<u64>>,
    stopping: watch::Receiver<bool>,
    settings: Settings,
}

impl<A: ControlApi> Server<A> {
    /// A session was opened: closes it unless somebody reads its events in time.
    pub(super) fn opened(self: &Arc<Self>, session: u64, busy: Busy) {
        lock(&self.unwatched).insert(session);
        let server = Arc::clone(self);
        tokio::spawn(async move {
            let mut stopping = server.stopping.clone();
            tokio::select! {
                () = sleep(server.settings.unwatched_session) => {}
                () = stop_called(&mut stopping) => {}
            }
            if lock(&server.unwatched).remove(&session) {
                server.api.close_session(session).await;
            }
            drop(busy);
        });
    }

    /// Somebody reads the events of a session over this connection.
    pub(super) async fn watched(&self, session: u64, connection: &Connection) {
        lock(&self.unwatched).remove(&session);
        if !connection.watch(session) {
            self.api.close_session(session).await;
        }
    }

    /// Ends the session whose events a connection carried.
    pub(super) async fn leave(&self, session: Option<u64>) {
        if let Some(session) = session {
            self.api.close_session(session).await;
        }
    }
}

/// One connection.
pub(super) struct Connection {
    /// Whether its other end is somebody who may command this node.
    pub(super) owner: bool,
    watching: Mutex<Watching>,
    pub(super) busy: Busy,
}

/// Whose events a connection carries.
enum Watching {
    Session(Option<u64>),
    HungUp,
}

impl Connection {
    /// Remembers the session that ends with this connection. `false`: it has ended already.
    fn watch(&self, session: u64) -> bool {
        match &mut *lock(&self.watching) {
            Watching::Session(watched) => {
                *watched = Some(session);
                true
            }
            Watching::HungUp => false,
        }
    }

    /// The session whose events have been read: a further request means that they have been.
    pub(super) fn take(&self) -> Option<u64> {
        match &mut *lock(&self.watching) {
            Watching::Session(watched) => watched.take(),
            Watching::HungUp => None,
        }
    }

    fn hang_up(&self) -> Option<u64> {
        match std::mem::replace(&mut *lock(&self.watching), Watching::HungUp) {
            Watching::Session(watched) => watched,
            Watching::HungUp => None,
        }
    }
}

async fn serve_connection<A: ControlApi>(server: Arc<Server<A>>, stream: UnixStream, busy: Busy) {
    let owner = match stream.peer_cred() {
        Ok(peer) => may_command(peer.uid(), server.settings.owner),
        Err(error) => {
            tracing::warn!(%error, "the user behind a connection to the control socket is unknown");
            false
        }
    };
    let connection = Arc::new(Connection {
        owner,
        watching: Mutex::new(Watching::Session(None)),
        busy,
    });
    let service = service_fn(|request| answer(Arc::clone(&server), Arc::clone(&connection), request));
    // There is no time limit on headers: only the owner's own processes get this far, and one of them
    // that dawdles holds nothing but a connection.
    let mut conversation = pin!(
        http1::Builder::new()
            .max_headers(HEADERS)
            .max_buf_size(HEADER_BYTES)
            .serve_connection(TokioIo::new(stream), service)
    );
    let mut stopping = server.stopping.clone();
    let ended = tokio::select! {
        ended = conversation.as_mut() => Ok(ended),
        () = stop_called(&mut stopping) => {
            conversation.as_mut().graceful_shutdown();
            timeout(server.settings.shutdown, conversation.as_mut()).await
        }
    };
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection to the control socket broke off"),
        Err(_) => tracing::warn!("a command did not read its answer to the end before the node stopped"),
    }
    server.leave(connection.hang_up()).await;
}

/// Ready when the node stops. (Its own function because what `wait_for` lends must not live on.)
async fn stop_called(stopping: &mut watch::Receiver<bool>) {
    // An error means that `serve` was dropped, which is a way of stopping too.
    drop(stopping.wait_for(|stopping| *stopping).await);
}

/// Locks what no code holds while it can fail: each of these maps is consistent at every instant.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
