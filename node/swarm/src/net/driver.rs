//! The task that owns libp2p: commands in, events out.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use futures::StreamExt;
use libp2p::core::ConnectedPoint;
use libp2p::kad::{self, KBucketKey, QueryId};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError, ListenError, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Swarm, identify, mdns, ping, relay};
use tokio::sync::{mpsc, oneshot, watch};
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::limits::TICKET_ADDRESSES;
use tvix_node_protocol::messages::ListenPort;

use super::absent::Absent;
use super::contacts::SharedContacts;
use super::dial_back::DialBacks;
use super::dialling::{Dialling, in_words};
use super::doors::OpenError;
use super::gatekeeper::Gatekeeper;
use super::links::Links;
use super::network::{Command, ConnectError, NetEvent, Network};
use super::reachability::{self, Reached, SharedReachability};
use super::redial::Redial;
use super::relays::{Relays, is_relayed, through};
use super::silence::Silence;
use super::transport::{Behaviour, BehaviourEvent, CLOSEST, connections};
use crate::identity::{key_of, peer_of};
use crate::limits::{
    ADDRESSES_PER_MEMBER, ADMITTED_TIME, COMMANDS, CONNECTIONS, DIAL_BACK_HELD, NETWORK_EVENTS, RELAYS_TRIED,
    STRANGER_TIME, STRANGERS, WALKS,
};

pub(crate) struct Driver {
    swarm: Swarm<Behaviour>,
    gatekeeper: Gatekeeper,
    contacts: SharedContacts,
    /// Members to stay connected with, where they can be reached.
    keep: usize,
    /// Teams of this node, with which the connections there may be are shared.
    teams: u32,
    redial: Redial,
    relays: Relays,
    reachability: SharedReachability,
    /// Where members reached this node at other addresses than it listens at: as they see it, through its router.
    reached_at: Vec<Multiaddr>,
    dial_backs: DialBacks,
    /// Connections that such dials brought, and since when they are there.
    proofs: Vec<(ConnectionId, Instant)>,
    strangers: HashMap<ConnectionId, (PeerId, Instant)>,
    /// All others. Who was a stranger may have one of each for a moment.
    of_members: HashMap<ConnectionId, PeerId>,
    connecting: HashMap<PeerId, Vec<oneshot::Sender<Result<(), ConnectError>>>>,
    dialling: Dialling,
    walks: HashMap<QueryId, Walk>,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<NetEvent>,
    addresses: watch::Sender<Vec<Multiaddr>>,
    connected: watch::Sender<BTreeSet<NodeKey>>,
    links: Links,
    absent: Absent,
    silence: Silence,
}

struct Walk {
    label: Vec<u8>,
    reply: oneshot::Sender<Vec<NodeKey>>,
}

impl Driver {
    pub(crate) fn new(
        mut swarm: Swarm<Behaviour>,
        gatekeeper: Gatekeeper,
        contacts: SharedContacts,
        keep: usize,
        listening: Vec<Multiaddr>,
    ) -> (Self, Network, mpsc::Receiver<NetEvent>) {
        for address in &listening {
            // A member that passes connections on must say where it is reached.
            swarm.add_external_address(address.clone());
        }
        let (command_sender, commands) = mpsc::channel(COMMANDS);
        let (events, event_receiver) = mpsc::channel(NETWORK_EVENTS);
        let (addresses, address_receiver) = watch::channel(listening);
        let (connected, connected_receiver) = watch::channel(BTreeSet::new());
        let driver = Self {
            swarm,
            gatekeeper,
            contacts,
            keep,
            teams: 1,
            redial: Redial::default(),
            relays: Relays::new(Instant::now()),
            reachability: SharedReachability::default(),
            reached_at: Vec::new(),
            dial_backs: DialBacks::default(),
            proofs: Vec::new(),
            strangers: HashMap::new(),
            of_members: HashMap::new(),
            connecting: HashMap::new(),
            dialling: Dialling::default(),
            walks: HashMap::new(),
            commands,
            events,
            addresses,
            connected,
            links: Links::default(),
            absent: Absent::default(),
            silence: Silence::new(Instant::now()),
        };
        let network = Network {
            commands: command_sender,
            addresses: address_receiver,
            connected: connected_receiver,
            links: driver.links.clone(),
            absent: driver.absent.clone(),
            reachability: driver.reachability.clone(),
        };
        (driver, network, event_receiver)
    }

    /// Runs until it is told to stop, or nobody is there to tell it anything.
    pub(crate) async fn run(mut self) {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_event(event),
                command = self.commands.recv() => match command {
                    None | Some(Command::Shutdown) => return,
                    Some(command) => self.on_command(command),
                },
                _ = tick.tick() => self.on_tick(Instant::now()),
            }
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Connect { peer, reply } => self.connect(peer, reply),
            Command::Open {
                peer,
                over,
                door,
                reply,
            } => match peer_of(peer) {
                Some(peer) => self.swarm.behaviour_mut().doors.open((peer, over), door, reply),
                None => drop(reply.send(Err(OpenError::NotConnected))),
            },
            Command::Closest { label, walk, reply } => {
                if walk && self.walks.len() < WALKS {
                    let id = self
                        .swarm
                        .behaviour_mut()
                        .kad
                        .inner
                        .get_closest_peers(label.clone());
                    self.walks.insert(id, Walk { label, reply });
                } else {
                    drop(reply.send(self.closest(&label, [])));
                }
            }
            Command::DialBack {
                peer,
                machine,
                ports,
                reply,
            } => self.dial_back(peer, machine, ports, reply),
            Command::Teams(teams) => {
                self.teams = teams.max(1);
                *self.swarm.behaviour_mut().limits.limits_mut() = connections(teams);
            }
            Command::MembersChanged { waiting } => self.members_changed(&waiting),
            Command::Disconnect { peer } => {
                if let Some(peer) = peer_of(peer) {
                    // An error says that there was no connection.
                    self.swarm.disconnect_peer_id(peer).ok();
                }
            }
            Command::Shutdown => {}
        }
    }

    fn connect(&mut self, key: NodeKey, reply: oneshot::Sender<Result<(), ConnectError>>) {
        let Some(peer) = peer_of(key) else {
            drop(reply.send(Err(ConnectError::NotAKey(key))));
            return;
        };
        if self.swarm.is_connected(&peer) {
            drop(reply.send(Ok(())));
            return;
        }
        self.connecting.entry(peer).or_default().push(reply);
        self.dial(peer);
    }

    fn dial(&mut self, peer: PeerId) {
        // The outcome of a dial that is under way is reported like any other.
        if !self.dialling.is_under_way(peer)
            && !self.dial_next(peer, PeerCondition::DisconnectedAndNotDialing)
        {
            self.is_unreachable(peer);
            self.fail(peer, "no address of it is known");
        }
    }

    /// Dials with the addresses that come next. Whether there were any.
    fn dial_next(&mut self, peer: PeerId, condition: PeerCondition) -> bool {
        let known = key_of(&peer).map(|key| self.contacts.addresses(key));
        let mut known = known.unwrap_or_default();
        known.extend(self.ways_through_others(peer));
        let addresses = self.dialling.next(peer, known);
        if addresses.is_empty() {
            return false;
        }
        let options = DialOpts::peer_id(peer)
            .condition(condition)
            .addresses(addresses.clone())
            .build();
        if let Some(member) = self.member(peer).filter(|_| !self.swarm.is_connected(&peer)) {
            self.absent.dialled(member, Instant::now());
        }
        match self.swarm.dial(options) {
            Ok(()) => self.dialling.begun(peer, addresses, Instant::now()),
            // It is connected, or being dialled already.
            Err(libp2p::swarm::DialError::DialPeerConditionFalse(_)) => {}
            Err(error) => self.fail(peer, &in_words(&error)),
        }
        true
    }

    fn dial_back(
        &mut self,
        key: NodeKey,
        machine: IpAddr,
        ports: Vec<ListenPort>,
        reply: oneshot::Sender<Vec<ListenPort>>,
    ) {
        let Some(peer) = peer_of(key).filter(|peer| self.dial_backs.may_begin(*peer)) else {
            return;
        };
        let (mut pending, mut all) = (HashMap::new(), true);
        for port in ports {
            // Through a hole in a router that is there because of an older connection it would prove nothing.
            let options = DialOpts::peer_id(peer)
                .condition(PeerCondition::Always)
                .addresses(vec![reachability::address(machine, port)])
                .allocate_new_port()
                .build();
            let connection = options.connection_id();
            match self.swarm.dial(options) {
                Ok(()) => drop(pending.insert(connection, port)),
                Err(error) => {
                    tracing::debug!(%peer, %error, "a member that asks for it cannot be dialled now");
                    all = false;
                }
            }
        }
        // This node dials too many others at the moment, which says nothing of the port: there is no answer then.
        let reply = if all { reply } else { oneshot::channel().0 };
        self.dial_backs.begun(peer, pending, reply, Instant::now());
    }

    /// Says where members reached this node, as long as they do.
    fn keep_reached_at(&mut self, now: Instant) {
        let mut reached = self.reachability.with(|known| known.addresses(now));
        let listening = self.addresses.borrow().clone();
        reached.retain(|address| self.reached_at.contains(address) || !listening.contains(address));
        reached.truncate(ADDRESSES_PER_MEMBER / 2);
        if reached == self.reached_at {
            return;
        }
        for gone in self
            .reached_at
            .iter()
            .filter(|address| !reached.contains(address))
        {
            self.swarm.remove_external_address(gone);
        }
        for new in reached
            .iter()
            .filter(|address| !self.reached_at.contains(address))
        {
            self.swarm.add_external_address(new.clone());
        }
        let old = std::mem::replace(&mut self.reached_at, reached);
        self.addresses.send_modify(|addresses| {
            addresses.retain(|address| !old.contains(address));
            addresses.extend(self.reached_at.iter().cloned());
        });
    }

    /// Where a member may be reached through one that is connected.
    fn ways_through_others(&self, to: PeerId) -> Vec<Multiaddr> {
        let connected = self.connected.borrow();
        let others = connected.iter().filter_map(|key| Some((*key, peer_of(*key)?)));
        let ways = others.filter(|(_, peer)| *peer != to).filter_map(|(key, peer)| {
            let at = self.links.get(key).dialled()?;
            through(peer, &at)
        });
        ways.take(RELAYS_TRIED).collect()
    }

    /// Lets this node be reached through others where nobody reaches it directly.
    fn keep_relays(&mut self, now: Instant) {
        let ways: Vec<(PeerId, Multiaddr)> = {
            let connected = self.connected.borrow();
            let others = connected.iter().filter_map(|key| Some((*key, peer_of(*key)?)));
            let ways = others
                .filter_map(|(key, peer)| Some((peer, through(peer, &self.links.get(key).dialled()?)?)));
            ways.collect()
        };
        // What a router forwards is known to who tried it; others may have heard of the inside alone. And a router may let in those
        // who tried because this node has spoken to them.
        let reached = if self.reached_at.is_empty() {
            self.reachability.with(|known| known.verdict(now))
        } else {
            Reached::BySome
        };
        for listener in self.relays.unneeded(reached, now) {
            self.swarm.remove_listener(listener);
        }
        let wanted = self
            .relays
            .wanted(reached, ways.iter().map(|(peer, _)| *peer), now);
        for (peer, way) in ways.into_iter().filter(|(peer, _)| wanted.contains(peer)) {
            match self.swarm.listen_on(way) {
                Ok(listener) => self.relays.asked(listener, peer),
                Err(error) => {
                    tracing::debug!(%peer, %error, "a member cannot be asked to pass connections on");
                    self.relays.pause(peer, now);
                }
            }
        }
    }

    /// Dials again where there are addresses that have not been tried.
    fn dial_failed(&mut self, peer: PeerId, error: &DialError) {
        let reason = &in_words(error);
        let last = self.dialling.failed(peer, reason);
        if self.dial_next(peer, PeerCondition::Disconnected) || !last {
            return;
        }
        if !there_are_enough(error) {
            self.is_unreachable(peer);
        }
        let reason = self.dialling.reasons(peer).unwrap_or(reason.to_owned());
        self.fail(peer, &reason);
    }

    /// Nobody waits for it for a while.
    fn is_unreachable(&self, peer: PeerId) {
        if let Some(member) = self.member(peer) {
            self.absent.failed(member, Instant::now());
        }
    }

    fn member(&self, peer: PeerId) -> Option<NodeKey> {
        key_of(&peer).ok().filter(|_| self.gatekeeper.is_member(&peer))
    }

    fn fail(&mut self, peer: PeerId, reason: &str) {
        self.dialling.over(peer);
        let Ok(key) = key_of(&peer) else { return };
        for reply in self.connecting.remove(&peer).unwrap_or_default() {
            let reason = reason.to_owned();
            drop(reply.send(Err(ConnectError::Unreachable { peer: key, reason })));
        }
    }

    fn on_tick(&mut self, now: Instant) {
        for connection in self.silence.pass(now) {
            tracing::debug!(
                ?connection,
                "nothing comes over a connection any more; it is closed"
            );
            self.swarm.close_connection(connection);
        }
        let late: Vec<ConnectionId> = self
            .strangers
            .iter()
            .filter(|(_, (peer, since))| {
                // Who is a member now comes again as one.
                let time = if self.gatekeeper.is_member(peer) {
                    ADMITTED_TIME
                } else {
                    STRANGER_TIME
                };
                now.duration_since(*since) >= time
            })
            .map(|(connection, _)| *connection)
            .collect();
        for connection in late {
            self.strangers.remove(&connection);
            self.swarm.close_connection(connection);
        }
        // Nobody waits for these any more.
        self.connecting.retain(|_, replies| {
            replies.retain(|reply| !reply.is_closed());
            !replies.is_empty()
        });
        for peer in self.dialling.slow(now) {
            self.dial_next(peer, PeerCondition::Disconnected);
        }
        self.keep_connected(now);
        self.dial_backs.tick(now);
        let is_over = |(_, since): &mut (ConnectionId, Instant)| now.duration_since(*since) >= DIAL_BACK_HELD;
        for (connection, _) in self.proofs.extract_if(.., is_over).collect::<Vec<_>>() {
            self.swarm.close_connection(connection);
        }
        self.keep_reached_at(now);
        self.keep_relays(now);
    }

    fn keep_connected(&mut self, now: Instant) {
        let connected = self.connected.borrow().len();
        // Half of those there may be are others' to make.
        let most = CONNECTIONS as usize / self.teams as usize / 2;
        let wanted = self.keep.min(most).saturating_sub(connected);
        let known: Vec<NodeKey> = self.contacts.with(|contacts| contacts.keys().collect());
        let due: Vec<(NodeKey, PeerId)> = known
            .into_iter()
            .filter(|key| self.redial.is_due(*key, now))
            .filter_map(|key| Some((key, peer_of(key)?)))
            .filter(|(_, peer)| self.gatekeeper.is_member(peer) && !self.swarm.is_connected(peer))
            .take(wanted)
            .collect();
        for (key, peer) in due {
            self.absent.due(key, self.redial.dialled(key, now));
            self.dial(peer);
        }
    }

    /// Cuts off who is no member any more. Who has become one comes again by itself, when it has been told:
    /// its connection is still a stranger's, and closed in time like every other.
    fn members_changed(&mut self, waiting: &BTreeSet<NodeKey>) {
        let peers: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        let strange: BTreeSet<PeerId> = self.strangers.values().map(|(peer, _)| *peer).collect();
        for peer in peers {
            if !self.gatekeeper.is_member(&peer) && !strange.contains(&peer) {
                self.swarm.disconnect_peer_id(peer).ok();
            }
        }
        // A stranger's connection keeps none that was made as a member.
        for (connection, peer) in &self.of_members {
            if !self.gatekeeper.is_member(peer) {
                self.swarm.close_connection(*connection);
            }
        }
        let gatekeeper = self.gatekeeper.clone();
        let routed: Vec<PeerId> = self
            .swarm
            .behaviour_mut()
            .kad
            .inner
            .kbuckets()
            .flat_map(|bucket| {
                bucket
                    .iter()
                    .map(|entry| *entry.node.key.preimage())
                    .collect::<Vec<_>>()
            })
            .collect();
        for peer in routed {
            if !gatekeeper.is_member(&peer) {
                self.swarm.behaviour_mut().kad.inner.remove_peer(&peer);
            }
        }
        let is_member = |key: NodeKey| peer_of(key).is_some_and(|peer| gatekeeper.is_member(&peer));
        let is_of_use = |key| is_member(key) || waiting.contains(&key);
        self.contacts.with(|contacts| contacts.retain(is_of_use));
        self.redial.retain(is_member);
        self.absent.retain(is_member);
    }

    fn on_event(&mut self, event: SwarmEvent<super::transport::BehaviourEvent>) {
        match event {
            SwarmEvent::NewListenAddr { address, .. } => {
                if !is_relayed(&address) {
                    self.swarm.add_external_address(address.clone());
                }
                self.addresses.send_modify(|addresses| {
                    if !addresses.contains(&address) {
                        addresses.push(address);
                    }
                });
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.swarm.remove_external_address(&address);
                self.addresses
                    .send_modify(|addresses| addresses.retain(|other| *other != address));
            }
            SwarmEvent::ListenerClosed { listener_id, .. } => {
                self.relays.lost(listener_id, Instant::now());
            }
            SwarmEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            } => self.on_connected(peer_id, connection_id, &endpoint),
            SwarmEvent::ConnectionClosed {
                peer_id,
                connection_id,
                num_established,
                ..
            } => {
                self.strangers.remove(&connection_id);
                self.of_members.remove(&connection_id);
                self.silence.over(connection_id);
                let Ok(key) = key_of(&peer_id) else { return };
                let round_trip = self.links.get(key).least_round_trip();
                self.links.closed(key, connection_id);
                if num_established == 0 {
                    self.on_gone(key, round_trip);
                }
            }
            SwarmEvent::OutgoingConnectionError {
                peer_id: Some(peer),
                connection_id,
                error,
                ..
            } if self
                .dial_backs
                .over(peer, connection_id, there_are_enough(&error)) => {}
            SwarmEvent::OutgoingConnectionError {
                peer_id: Some(peer),
                error,
                ..
            } => self.dial_failed(peer, &error),
            SwarmEvent::IncomingConnectionError {
                peer_id: Some(peer),
                error: ListenError::Denied { .. },
                send_back_addr,
                ..
            } if !is_relayed(&send_back_addr) => {
                // It has come all the way; only that there are enough connections of it already.
                if let Ok(key) = key_of(&peer) {
                    self.links.knocked(key);
                }
            }
            SwarmEvent::Behaviour(event) => self.on_behaviour(event),
            _ => {}
        }
    }

    fn on_connected(&mut self, peer: PeerId, connection: ConnectionId, endpoint: &ConnectedPoint) {
        let Ok(key) = key_of(&peer) else {
            self.swarm.close_connection(connection);
            return;
        };
        if self.dial_backs.over(peer, connection, true) {
            // There is another one, over which it was asked for; this one stays until the peer has seen it, too: who dials is
            // through with a handshake before who is dialled.
            self.proofs.push((connection, Instant::now()));
            self.of_members.insert(connection, peer);
            if let ConnectedPoint::Dialer { address, .. } = endpoint {
                self.contacts.with(|contacts| contacts.add(key, address.clone()));
            }
            return;
        }
        self.dialling.over(peer);
        for reply in self.connecting.remove(&peer).unwrap_or_default() {
            drop(reply.send(Ok(())));
        }
        if !self.gatekeeper.is_member(&peer) {
            // Who dials a stranger wants to join; only those who dial us are counted.
            if endpoint.is_listener() {
                if self.strangers.len() >= STRANGERS {
                    self.swarm.close_connection(connection);
                    return;
                }
                self.strangers.insert(connection, (peer, Instant::now()));
            }
            return;
        }
        self.of_members.insert(connection, peer);
        self.redial.connected(key);
        self.absent.connected(key);
        self.silence.begun(connection);
        let address = match endpoint {
            // The other end of such a one is a name; where it leads through is in this end.
            ConnectedPoint::Listener { local_addr, .. } if is_relayed(local_addr) => local_addr,
            endpoint => endpoint.get_remote_address(),
        };
        let address = address.clone();
        self.links
            .connected(key, connection, address, endpoint.is_dialer());
        self.connected.send_if_modified(|connected| connected.insert(key));
        if let ConnectedPoint::Dialer { address, .. } = endpoint {
            self.contacts.with(|contacts| contacts.add(key, address.clone()));
            self.report(NetEvent::Dialled(key));
        }
    }

    fn on_gone(&mut self, key: NodeKey, round_trip: Option<Duration>) {
        if self
            .connected
            .send_if_modified(|connected| connected.remove(&key))
        {
            self.absent.gone(key, round_trip);
            self.report(NetEvent::Gone(key));
        }
    }

    fn report(&self, event: NetEvent) {
        // Full: a thousand changes nobody has attended to. Who is connected can be read at any time.
        if self.events.try_send(event).is_err() {
            tracing::warn!("the network reports faster than it is attended to");
        }
    }

    fn on_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. }) => {
                let addresses = info.listen_addrs.into_iter().take(TICKET_ADDRESSES);
                self.learn(peer_id, addresses);
            }
            BehaviourEvent::Kad(kad::Event::OutboundQueryProgressed {
                id,
                result: kad::QueryResult::GetClosestPeers(result),
                step,
                ..
            }) => {
                let found = match result {
                    Ok(found) => found.peers,
                    Err(kad::GetClosestPeersError::Timeout { peers, .. }) => peers,
                };
                let mut keys = vec![];
                for peer in found {
                    keys.extend(key_of(&peer.peer_id));
                    self.learn(peer.peer_id, peer.addrs.into_iter().take(TICKET_ADDRESSES));
                }
                if step.last
                    && let Some(walk) = self.walks.remove(&id)
                {
                    let closest = self.closest(&walk.label, keys);
                    drop(walk.reply.send(closest));
                }
            }
            BehaviourEvent::Ping(ping::Event {
                peer,
                connection,
                result: Ok(round_trip),
            }) => {
                self.silence.heard(connection);
                if let Ok(key) = key_of(&peer) {
                    self.links.measured(key, round_trip);
                }
            }
            BehaviourEvent::Ping(ping::Event {
                connection,
                result: Err(ping::Failure::Unsupported),
                ..
            }) => self.silence.over(connection),
            BehaviourEvent::Relayed(relay::client::Event::ReservationReqAccepted {
                relay_peer_id, ..
            }) => self.relays.accepted(relay_peer_id, Instant::now()),
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => {
                for (peer, address) in found {
                    self.learn(peer, [address]);
                }
            }
            _ => {}
        }
    }

    /// Notes where a member can be reached. Nothing is noted of others.
    fn learn(&mut self, peer: PeerId, addresses: impl IntoIterator<Item = Multiaddr>) {
        let Ok(key) = key_of(&peer) else { return };
        if peer == *self.swarm.local_peer_id() || !self.gatekeeper.is_member(&peer) {
            return;
        }
        for address in addresses {
            self.contacts
                .with(|contacts| contacts.add_last(key, address.clone()));
            self.swarm.behaviour_mut().kad.inner.add_address(&peer, address);
        }
    }

    fn closest(&mut self, label: &[u8], found: impl IntoIterator<Item = NodeKey>) -> Vec<NodeKey> {
        let target = KBucketKey::new(label.to_vec());
        let local = self
            .swarm
            .behaviour_mut()
            .kad
            .inner
            .get_closest_local_peers(&target);
        let local: Vec<PeerId> = local.map(|key| *key.preimage()).collect();
        let mut peers: BTreeSet<PeerId> = local.into_iter().collect();
        peers.extend(self.connected.borrow().iter().filter_map(|key| peer_of(*key)));
        peers.extend(found.into_iter().filter_map(peer_of));
        let known: Vec<NodeKey> = self.contacts.with(|contacts| contacts.keys().collect());
        peers.extend(known.into_iter().filter_map(peer_of));
        peers.remove(self.swarm.local_peer_id());
        let mut sorted: Vec<_> = peers
            .into_iter()
            .filter(|peer| self.gatekeeper.is_member(peer))
            .map(|peer| (KBucketKey::from(peer).distance(&target), peer))
            .collect();
        sorted.sort();
        let keys = sorted.iter().filter_map(|(_, peer)| key_of(peer).ok());
        keys.take(CLOSEST.get()).collect()
    }
}

/// Whether a dial came to an end at the bound on connections of one peer, behind a handshake with the right one.
fn there_are_enough(error: &DialError) -> bool {
    matches!(error, DialError::Denied { .. })
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
