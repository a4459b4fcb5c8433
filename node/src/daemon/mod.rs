//! The process that a home belongs to: `tvix-node up`.

mod api;
mod depot;
mod engine;
mod job;
mod limits;
mod team_api;

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use tvix_node_builder::{Builder, Config, Helper, StartError};
use tvix_node_coordinator::OwnBuilder;
use tvix_node_gateway::control::{ControlSocket, SocketError, serve};
use tvix_node_store::{OpenError, Store};

use crate::background::READY;
use crate::home::{Home, HomeError};
use api::Api;
use depot::Depot;
use engine::{Engine, Message};
use job::Jobs;

/// How a node runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpOptions {
    /// Builds at once; none: as many as the machine has processors.
    pub slots: Option<u32>,
    /// Where members of the team reach this node; port 0: one that is free. Empty: nowhere, it connects
    /// to others only; none: where a node listens that was not told.
    pub listen: Option<Vec<SocketAddr>>,
    /// End when nobody uses it any more.
    pub idle_exit: bool,
    /// Started by a command: leave its terminal, and say [`READY`] on standard output.
    pub background: bool,
}

/// Why a node cannot run.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// The home cannot be used.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The folder for builds cannot be used.
    #[error(transparent)]
    Builder(#[from] StartError),
    /// The control socket cannot be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The process cannot be set up.
    #[error("the node cannot {what}: {source}")]
    Process {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

/// Runs the node of a home until it is told to end, is interrupted, or is idle where that ends it.
///
/// # Errors
/// See [`UpError`].
pub async fn up(home: &Home, options: UpOptions) -> Result<(), UpError> {
    if options.background {
        match rustix::process::setsid() {
            // This process leads a session already, which is what is wanted.
            Ok(_) | Err(rustix::io::Errno::PERM) => {}
            Err(error) => {
                return Err(UpError::Process {
                    what: "leave the terminal",
                    source: error.into(),
                });
            }
        }
    }
    let home = home.prepare()?;
    let secret = home.identity()?;
    let node = secret.key();
    let store = Store::open(home.root())?;
    let config = Config::new(home.scratch_folder(), Helper::this_program());
    let slots = options.slots.unwrap_or_else(processors);
    let own = OwnBuilder {
        slots,
        systems: config.systems.iter().cloned().collect(),
        features: config.features.iter().cloned().collect(),
    };
    let builder = Builder::new(config)?;
    let depot = Arc::new(Depot::new(store));
    let jobs = Arc::new(Jobs {
        depot: Arc::clone(&depot),
        builder,
        secret,
    });
    let (sender, inbox) = mpsc::channel(limits::ENGINE_MESSAGES);
    let engine = Engine::new(
        Arc::clone(&depot),
        jobs,
        own,
        options.idle_exit,
        (sender.clone(), inbox),
    );
    let api = Api {
        depot,
        engine: sender.clone(),
        node,
        slots,
        idle_exit: options.idle_exit,
        started: Instant::now(),
        home: home.root().to_string_lossy().into_owned(),
    };
    let socket = ControlSocket::bind(home.root())?;
    tracing::info!(home = %home.root().display(), %node, slots, "ready");
    say_ready(&home, options.background)?;

    let signals = tokio::spawn(stop_at_signal(sender));
    let engine = tokio::spawn(engine.run());
    let ended = async {
        // However the engine ends, the door closes behind it.
        if let Err(error) = engine.await {
            tracing::error!(%error, "the engine failed; this is a bug");
        }
    };
    serve(socket, Arc::new(api), ended).await;
    signals.abort();
    tracing::info!("down");
    Ok(())
}

fn say_ready(home: &Home, background: bool) -> Result<(), UpError> {
    let failed = |source| UpError::Process {
        what: "say that it is ready",
        source,
    };
    let mut stdout = std::io::stdout().lock();
    if background {
        writeln!(stdout, "{READY}")
            .and_then(|()| stdout.flush())
            .map_err(failed)
    } else {
        let place = home.root().display();
        writeln!(
            stdout,
            "the node of '{place}' is up; Ctrl-C or 'tvix-node down' ends it"
        )
        .map_err(failed)
    }
}

fn processors() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1))
}

async fn stop_at_signal(engine: mpsc::Sender<Message>) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt), Ok(mut hangup)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
        signal(SignalKind::hangup()),
    ) else {
        tracing::warn!("signals cannot be listened for; 'tvix-node down' still ends the node");
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = hangup.recv() => {}
    }
    // An engine that has ended is what is wanted.
    drop(engine.send(Message::Stop).await);
}
