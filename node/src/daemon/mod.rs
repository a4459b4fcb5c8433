//! The process that a home belongs to: `tvix-node up`.

mod api;
mod check;
pub(crate) mod clock;
pub(crate) mod combined;
pub(crate) mod depot;
pub(crate) mod derivations;
mod doctor;
mod durations;
pub(crate) mod engine;
mod exchange_api;
mod fetching;
pub(crate) mod folder;
mod founders;
mod holding;
pub(crate) mod job;
mod limits;
mod owner_api;
pub(crate) mod perform;
mod repair;
pub(crate) mod room;
mod session;
mod store_api;
mod team_api;
pub(crate) mod told;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
pub use tvix_node_builder::AddressRange;
use tvix_node_builder::{Builder, Config, Helper, StartError};
use tvix_node_coordinator::OwnBuilder;
use tvix_node_gateway::control::{ControlSocket, SocketError, serve};
use tvix_node_protocol::build::SwarmId;
use tvix_node_store::{OpenError, Store};
use tvix_node_swarm::team::Team;

use crate::background::READY;
use crate::config::{ConfigError, NetworkWay, NodeConfig};
use crate::home::{Home, HomeError};
use crate::numbers::Limit;
use api::Api;
use depot::Depot;
use durations::DurationsFile;
use engine::{Engine, Message};
use perform::Jobs;

use crate::team::membership::{Membership, Parts, TeamFailure};
use crate::team::private::{PrivateBook, PrivateError};
use crate::team::roll::Roll;
use crate::team::share::{ShareBook, ShareError};
use crate::team::traffic::{self, TrafficBook, TrafficError};
use crate::team::trust::{TrustBook, TrustError};
use crate::upstream::Substituters;
pub use crate::upstream::{SubstituterError, UpstreamError};

/// How a node runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpOptions {
    /// Builds at once; none: as many as the machine has processors.
    pub slots: Option<u32>,
    /// Binary caches to take paths from, instead of those that are configured.
    pub substituters: Option<Vec<String>>,
    /// Keys of binary caches to believe, instead of those that are configured.
    pub trusted_public_keys: Option<Vec<String>>,
    /// Addresses that fixed-output builds reach although they are not public, instead of those that are configured.
    pub allowed_addresses: Option<Vec<AddressRange>>,
    /// Builds for others reach these, too, whatever is configured.
    pub allowed_addresses_for_others: bool,
    /// How fixed-output builds reach the network, instead of what is configured.
    pub network_of_fixed_outputs: Option<NetworkWay>,
    /// Where members of the team reach this node; port 0: one that is free. Empty: nowhere, it connects
    /// to others only; none: where a node listens that was not told.
    pub listen: Option<Vec<SocketAddr>>,
    /// Pass connections on between members that cannot reach each other.
    pub relay: bool,
    /// Bytes of memory that a build may use, for whomever it is, instead of what is configured.
    pub build_memory: Option<Limit>,
    /// Processes and threads that a build may have at once, for whomever it is, instead of what is configured.
    pub build_processes: Option<Limit>,
    /// Whether builds' memory may be bound with control groups, see [`Config::control_groups`].
    pub control_groups: bool,
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
    /// What is configured cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A binary cache or its key.
    #[error(transparent)]
    Substituter(#[from] SubstituterError),
    /// The folder for builds cannot be used.
    #[error(transparent)]
    Builder(#[from] StartError),
    /// The control socket cannot be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The terms of sharing cannot be read.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// How much of the link may be used.
    #[error(transparent)]
    Traffic(#[from] TrafficError),
    /// What is private cannot be read.
    #[error(transparent)]
    Private(#[from] PrivateError),
    /// The owner's rules of trust cannot be read.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The team that this node belongs to cannot be taken part in.
    #[error("this node does not take part in its teams: {0}")]
    Team(#[from] TeamFailure),
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
    let teams: BTreeSet<SwarmId> = Team::list(&home.teams_folder())
        .map_err(TeamFailure::from)?
        .into_iter()
        .collect();
    // The folder is made with the first team, and stays.
    let ever = !teams.is_empty() || home.teams_folder().exists();
    let store = Store::open_in_teams(home.root(), ever.then_some(&teams))?;
    let mut config = Config::new(home.scratch_folder(), Helper::this_program());
    config.control_groups = options.control_groups;
    let configured = NodeConfig::read(&home.config_file())?;
    let configured = NodeConfig {
        allowed_addresses: options
            .allowed_addresses
            .clone()
            .unwrap_or(configured.allowed_addresses),
        allowed_addresses_for_others: options.allowed_addresses_for_others
            || configured.allowed_addresses_for_others,
        network_of_fixed_outputs: options
            .network_of_fixed_outputs
            .unwrap_or(configured.network_of_fixed_outputs),
        max_build_memory: options.build_memory.unwrap_or(configured.max_build_memory),
        max_build_processes: options.build_processes.unwrap_or(configured.max_build_processes),
        ..configured
    };
    configured.apply(&mut config);
    let slots = options.slots.unwrap_or_else(processors);
    let own = OwnBuilder {
        slots,
        systems: config.systems.iter().cloned().collect(),
        features: config.features.iter().cloned().collect(),
    };
    let builder = Builder::new(config)?;
    let private = Arc::new(PrivateBook::open(home.private_file())?);
    let roll = Arc::new(Roll::default());
    let trust = Arc::new(TrustBook::open(home.trust_file(), node, Arc::clone(&roll))?);
    let depot = Arc::new(Depot::new(store, private, Arc::clone(&trust)));
    let share = Arc::new(ShareBook::open(home.share_file())?);
    let traffic = Arc::new(TrafficBook::open(home.traffic_file())?);
    // This process has the home for itself, so nothing of what lies there is under way.
    if let Err(error) = depot.upstreams.tidy(Duration::ZERO) {
        tracing::warn!(%error, "what broken downloads left could not be removed");
    }
    let substituters = Substituters {
        caches: options.substituters.clone().unwrap_or(configured.substituters),
        keys: options
            .trusted_public_keys
            .clone()
            .unwrap_or(configured.trusted_public_keys),
    };
    depot
        .upstreams
        .configure(&substituters, configured.private_caches)?;
    let jobs = Arc::new(Jobs {
        depot: Arc::clone(&depot),
        builder,
        secret: Arc::new(secret),
        trust: Arc::clone(&trust),
        building: Arc::default(),
        down: tokio_util::sync::CancellationToken::new(),
    });
    let (sender, inbox) = mpsc::channel(limits::ENGINE_MESSAGES);
    let (free, free_slots) = watch::channel(slots);
    let (in_use, used) = watch::channel(false);
    let (commands, connected) = watch::channel(0);
    let team = Arc::new(Membership::new(Parts {
        teams: home.teams_folder(),
        spool: home.spool_folder(),
        depot: Arc::clone(&depot),
        jobs: Arc::clone(&jobs),
        engine: sender.clone(),
        own: own.clone(),
        free: free_slots,
        trust: Arc::clone(&trust),
        roll,
        share: Arc::clone(&share),
        traffic: Arc::clone(&traffic),
        listen: options.listen.clone(),
        relay: options.relay,
    }));
    let engine = Engine::new(
        (Arc::clone(&depot), Arc::clone(&jobs), Arc::clone(&team)),
        own,
        (free, in_use),
        (connected, options.idle_exit),
        share.withheld().borrow().clone(),
        DurationsFile(home.durations_file()),
        (sender.clone(), inbox),
    );
    let api = Api {
        depot,
        engine: sender.clone(),
        team: Arc::clone(&team),
        trust,
        share: Arc::clone(&share),
        traffic: Arc::clone(&traffic),
        jobs,
        node,
        slots,
        idle_exit: options.idle_exit,
        started: Instant::now(),
        home: home.root().to_string_lossy().into_owned(),
    };
    let socket = ControlSocket::bind(home.root())?;
    let metering = tokio::spawn(traffic::tell(traffic.watch(), sender.clone()));
    let sharing = tokio::spawn(share.keep(sender.clone(), used, traffic.watch()));
    let signals = tokio::spawn(stop_at_signal(sender));
    let engine = tokio::spawn(engine.run());
    if let Err(error) = team.resume().await {
        // Where somebody looks on, a node that cannot do what it should says so and ends. In the background
        // it still builds for its own user.
        if !options.background {
            return Err(error.into());
        }
        tracing::error!(%error, "this node does not take part in all of its teams");
    }
    tracing::info!(home = %home.root().display(), %node, slots, "ready");
    say_ready(&home, options.background, &team)?;

    let ended = async {
        // However the engine ends, the door closes behind it.
        if let Err(error) = engine.await {
            tracing::error!(%error, "the engine failed; this is a bug");
        }
    };
    serve(socket, Arc::new(api), commands, ended).await;
    signals.abort();
    sharing.abort();
    metering.abort();
    team.stop().await;
    tracing::info!("down");
    Ok(())
}

fn say_ready(home: &Home, background: bool, team: &Membership) -> Result<(), UpError> {
    let failed = |source| UpError::Process {
        what: "say that it is ready",
        source,
    };
    let mut stdout = std::io::stdout().lock();
    if background {
        return writeln!(stdout, "{READY}")
            .and_then(|()| stdout.flush())
            .map_err(failed);
    }
    let place = home.root().display();
    let mut text = format!("the node of '{place}' is up; Ctrl-C or 'tvix-node down' ends it\n");
    for node in team.all() {
        for address in node.swarm.addresses() {
            text.push_str(&format!("listening at {address}\n"));
        }
    }
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(failed)
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
