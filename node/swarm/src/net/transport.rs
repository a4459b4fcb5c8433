//! libp2p, put together: TCP with TLS and Yamux, QUIC, connections through other members, and the behaviours.

use std::num::NonZeroUsize;
use std::sync::Arc;

use libp2p::kad::store::{MemoryStore, MemoryStoreConfig};
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{
    PeerId, Swarm, SwarmBuilder, connection_limits, dcutr, identify, kad, mdns, memory_connection_limits,
    ping, relay, tcp,
};
use tokio::sync::{Semaphore, mpsc};
use tvix_node_protocol::build::SwarmId;
use tvix_node_protocol::envelope::NodeSecret;

use super::arriving::Arriving;
use super::contacts::SharedContacts;
use super::door::{Names, kad_name};
use super::doors::{Doors, Inbound};
use super::gatekeeper::Gatekeeper;
use super::members_only::MembersOnly;
use super::tls::{EncryptionError, Tls};
use super::yamux::Yamux;
use crate::identity::{BadSecret, keypair};
use crate::limits::{
    CONNECT_TIME, CONNECTIONS, CONNECTIONS_INCOMING, CONNECTIONS_PENDING, CONNECTIONS_PER_PEER,
    HANDSHAKE_TIME, IDLE_CONNECTION, MEMORY_SHARE, NEGOTIATING_STREAMS, PING_INTERVAL, PING_TIME,
    QUIC_CONNECTION_WINDOW, QUIC_STREAM_WINDOW, ROUTING_REFRESH, STREAMS_PER_CONNECTION, WALK_TIME,
};

/// Why the network could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The secret.
    #[error(transparent)]
    Secret(#[from] BadSecret),
    /// Encryption could not be set up.
    #[error("encryption cannot be set up: {0}")]
    Encryption(#[from] EncryptionError),
    /// The part that finds nodes on the local network.
    #[error("cannot look for nodes on the local network: {0}; it can be switched off")]
    Mdns(std::io::Error),
    /// An address that cannot be listened on.
    #[error("cannot listen on {address}: {reason}")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        reason: String,
    },
}

/// What libp2p does for us.
#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    pub(crate) limits: connection_limits::Behaviour,
    arriving: Arriving,
    memory: memory_connection_limits::Behaviour,
    pub(crate) doors: Doors,
    pub(crate) identify: MembersOnly<identify::Behaviour>,
    pub(crate) kad: MembersOnly<kad::Behaviour<MemoryStore>>,
    pub(crate) ping: MembersOnly<ping::Behaviour>,
    pub(crate) mdns: Toggle<mdns::tokio::Behaviour>,
    /// Is reached through others.
    relayed: MembersOnly<relay::client::Behaviour>,
    /// Looks for a direct connection where there is one through another member.
    punching: MembersOnly<dcutr::Behaviour>,
}

/// How the network is set up.
pub(crate) struct Setup<'a> {
    pub(crate) secret: &'a NodeSecret,
    /// What its doors are called; of no team where it is not a member of anything yet.
    pub(crate) names: Names,
    pub(crate) gatekeeper: Gatekeeper,
    pub(crate) contacts: SharedContacts,
    pub(crate) mdns: bool,
    /// Places of streams that are served.
    pub(crate) streams: Arc<Semaphore>,
    /// Members to which connections stay open although nothing is said.
    pub(crate) kept: usize,
}

pub(crate) fn build(setup: Setup<'_>) -> Result<(Swarm<Behaviour>, mpsc::Receiver<Inbound>), TransportError> {
    let keypair = keypair(setup.secret)?;
    let peer = keypair.public().to_peer_id();
    let swarm = setup.names.swarm();
    let (doors, inbound) = Doors::new(
        setup.names,
        setup.gatekeeper.clone(),
        setup.contacts,
        setup.streams,
        setup.kept,
        swarm.is_none(),
    );
    let mdns = if setup.mdns {
        Some(mdns::tokio::Behaviour::new(mdns::Config::default(), peer).map_err(TransportError::Mdns)?)
    } else {
        None
    };
    let identify = identify::Config::new("tvix-node/1".to_owned(), keypair.public())
        .with_agent_version(format!("tvix-node/{}", env!("CARGO_PKG_VERSION")))
        .with_push_listen_addr_updates(true)
        .with_cache_size(0);
    let gatekeeper = setup.gatekeeper;
    let behaviour = |relayed| Behaviour {
        limits: connection_limits::Behaviour::new(connections(1)),
        arriving: Arriving::default(),
        memory: memory_connection_limits::Behaviour::with_max_percentage(MEMORY_SHARE),
        doors,
        identify: MembersOnly::new(identify::Behaviour::new(identify), gatekeeper.clone()),
        kad: MembersOnly::new(routing(peer, swarm), gatekeeper.clone()),
        ping: MembersOnly::new(
            ping::Behaviour::new(
                ping::Config::new()
                    .with_interval(PING_INTERVAL)
                    .with_timeout(PING_TIME),
            ),
            gatekeeper.clone(),
        ),
        mdns: mdns.into(),
        relayed: MembersOnly::new(relayed, gatekeeper.clone()),
        punching: MembersOnly::new(dcutr::Behaviour::new(peer), gatekeeper.clone()),
    };
    let swarm = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_tcp(tcp::Config::default().nodelay(true), Tls::new, Yamux::new)?
        .with_quic_config(|mut config| {
            config.handshake_timeout = HANDSHAKE_TIME;
            config.max_concurrent_stream_limit = u32::try_from(STREAMS_PER_CONNECTION).unwrap_or(u32::MAX);
            config.max_stream_data = QUIC_STREAM_WINDOW;
            config.max_connection_data = QUIC_CONNECTION_WINDOW;
            config
        })
        .with_relay_client(Tls::new, Yamux::new)?
        // Nothing of it can fail.
        .with_behaviour(|_, relayed| behaviour(relayed))
        .unwrap_or_else(|never| match never {})
        .with_swarm_config(|config| {
            config
                .with_idle_connection_timeout(IDLE_CONNECTION)
                .with_max_negotiating_inbound_streams(NEGOTIATING_STREAMS)
        })
        .with_connection_timeout(CONNECT_TIME)
        .build();
    Ok((swarm, inbound))
}

/// Connections that one of so many teams may have.
pub(crate) fn connections(teams: u32) -> connection_limits::ConnectionLimits {
    let teams = teams.max(1);
    connection_limits::ConnectionLimits::default()
        .with_max_pending_incoming(Some(CONNECTIONS_PENDING))
        .with_max_pending_outgoing(Some(CONNECTIONS_PENDING))
        .with_max_established_incoming(Some(CONNECTIONS_INCOMING / teams))
        .with_max_established(Some(CONNECTIONS / teams))
        .with_max_established_per_peer(Some(CONNECTIONS_PER_PEER))
}

/// Kademlia, for finding nodes alone: it neither keeps nor passes on records.
fn routing(peer: PeerId, swarm: Option<SwarmId>) -> kad::Behaviour<MemoryStore> {
    let name = swarm
        .and_then(kad_name)
        .unwrap_or(libp2p::StreamProtocol::new("/tvix-node/none/kad/1"));
    let mut config = kad::Config::new(name);
    config
        .set_record_filtering(kad::StoreInserts::FilterBoth)
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_provider_publication_interval(None)
        .set_record_ttl(None)
        .set_provider_record_ttl(None)
        .set_kbucket_inserts(kad::BucketInserts::Manual)
        .set_query_timeout(WALK_TIME)
        .set_periodic_bootstrap_interval(Some(ROUTING_REFRESH))
        .set_caching(kad::Caching::Disabled);
    let store = MemoryStore::with_config(
        peer,
        MemoryStoreConfig {
            max_records: 0,
            max_provided_keys: 0,
            ..MemoryStoreConfig::default()
        },
    );
    let mut kad = kad::Behaviour::with_config(peer, store, config);
    kad.set_mode(Some(kad::Mode::Server));
    kad
}

/// How many of the closest nodes a walk brings.
pub(crate) const CLOSEST: NonZeroUsize = kad::K_VALUE;

#[cfg(test)]
#[path = "transport_tests.rs"]
mod tests;
