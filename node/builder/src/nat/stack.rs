//! The TCP and UDP that builds talk to: packets in, packets out. Neither sockets nor a clock.
//!
//! Packets come from whatever runs in the build, so nothing in them is believed. A connection is held
//! back at its first packet until it is known that the other side can be reached: a build sees a refused
//! connection where there is none.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant as Clock};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpListenEndpoint};

use super::packet::{self, Carried};
use super::{NODE, NODE_V6};
use crate::limits::{
    CONNECT_TIME, NAT_BUFFER_BYTES, NAT_CONNECTIONS, NAT_QUESTION_BYTES, NAT_QUESTIONS, PACKET_BYTES,
    PACKETS_AT_ONCE,
};

/// Where names are asked for.
const NAMES: u16 = 53;

/// A connection or an exchange of datagrams, by its ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    /// The build's port.
    pub(super) from: u16,
    /// Where it goes.
    pub(super) to: SocketAddr,
}

/// Something that a build sends over UDP, other than a question for a name.
#[derive(Debug, Clone)]
pub(super) struct Datagram {
    pub(super) flow: Flow,
    pub(super) bytes: Vec<u8>,
    /// As it came.
    packet: Vec<u8>,
}

/// A question for a name.
#[derive(Debug, Clone)]
pub(super) struct Question {
    meta: udp::UdpMetadata,
    /// As it came.
    pub(super) bytes: Vec<u8>,
}

enum State {
    /// It is being found out whether there is anybody; this is how the build asked.
    Waiting(Vec<u8>),
    Standing(SocketHandle),
}

/// See the [module](self).
pub(super) struct Stack {
    began: Clock,
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    names: SocketHandle,
    flows: HashMap<Flow, State>,
    new: Vec<Flow>,
    datagrams: VecDeque<Datagram>,
}

impl Stack {
    /// `ipv6`: whether there is more than IPv4.
    pub(super) fn new(began: Clock, ipv6: bool) -> Self {
        let mut wire = Wire::default();
        let mut interface = Interface::new(Config::new(HardwareAddress::Ip), &mut wire, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // There is room for two.
            let _taken = addresses.push(IpCidr::new(IpAddress::Ipv4(NODE), 24));
            if ipv6 {
                let _taken = addresses.push(IpCidr::new(IpAddress::Ipv6(NODE_V6), 64));
            }
        });
        // Whatever has a route through this address is answered, wherever it wants to go.
        interface.set_any_ip(true);
        let _replaced = interface.routes_mut().add_default_ipv4_route(NODE);
        if ipv6 {
            let _replaced = interface.routes_mut().add_default_ipv6_route(NODE_V6);
        }
        let mut sockets = SocketSet::new(Vec::new());
        let buffer = || {
            udp::PacketBuffer::new(
                vec![udp::PacketMetadata::EMPTY; NAT_QUESTIONS],
                vec![0; NAT_QUESTIONS * NAT_QUESTION_BYTES],
            )
        };
        let mut names = udp::Socket::new(buffer(), buffer());
        // Fails only for port 0 and sockets that are open.
        let _bound = names.bind(NAMES);
        let names = sockets.add(names);
        Self {
            began,
            wire,
            interface,
            sockets,
            names,
            flows: HashMap::new(),
            new: Vec::new(),
            datagrams: VecDeque::new(),
        }
    }

    /// Takes a packet of the build. It counts at the next [`Stack::poll`].
    pub(super) fn packet(&mut self, packet: Vec<u8>) {
        match packet::read(&packet) {
            Some(Carried::Opening(flow)) => match self.flows.get(&flow) {
                // Asked again while it is being found out.
                Some(State::Waiting(_)) => return,
                Some(State::Standing(_)) => {}
                None => {
                    // Who is not heard asks again.
                    if self.flows.len() < NAT_CONNECTIONS {
                        self.flows.insert(flow, State::Waiting(packet));
                        self.new.push(flow);
                    }
                    return;
                }
            },
            Some(Carried::Datagram(flow, bytes)) if flow.to.port() != NAMES => {
                let bytes = bytes.to_vec();
                self.datagrams.push_back(Datagram { flow, bytes, packet });
                return;
            }
            Some(Carried::Datagram(..) | Carried::Other) => {}
            // Neither TCP nor UDP from the build's address: nothing here knows what to do with it.
            None => return,
        }
        self.wire.incoming.push_back(packet);
    }

    /// Whether more packets may be taken: what is answered slowly must not pile up.
    pub(super) fn has_room(&self) -> bool {
        self.wire.incoming.len() + self.datagrams.len() < PACKETS_AT_ONCE
    }

    /// Connections that are new: each is to be answered by [`Stack::accept`] or [`Stack::refuse`].
    pub(super) fn take_new(&mut self) -> Vec<Flow> {
        std::mem::take(&mut self.new)
    }

    /// Somebody is there. Whether the connection is still wanted.
    pub(super) fn accept(&mut self, flow: Flow) -> bool {
        let Some(State::Waiting(packet)) = self.flows.remove(&flow) else {
            return false;
        };
        let buffer = || tcp::SocketBuffer::new(vec![0; NAT_BUFFER_BYTES]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        // A build that does not answer any more.
        let patience = u64::try_from(CONNECT_TIME.as_micros()).unwrap_or(u64::MAX);
        socket.set_timeout(Some(smoltcp::time::Duration::from_micros(patience)));
        let endpoint = IpListenEndpoint {
            addr: Some(flow.to.ip().into()),
            port: flow.to.port(),
        };
        if socket.listen(endpoint).is_err() {
            // Port 0 cannot be listened at; it is refused like everything that nobody listens at.
            self.wire.incoming.push_back(packet);
            return false;
        }
        let handle = self.sockets.add(socket);
        self.flows.insert(flow, State::Standing(handle));
        // Taken before anything else of the build: it is this socket's.
        self.wire.incoming.push_front(packet);
        self.exchange(Instant::from_micros(self.interface_time()));
        true
    }

    /// Nobody is there. The packet meets no socket, and the build is told so.
    pub(super) fn refuse(&mut self, flow: Flow) {
        if let Some(State::Waiting(packet)) = self.flows.remove(&flow) {
            self.wire.incoming.push_back(packet);
        }
    }

    /// Works on what has come, and says when to do so again if nothing comes.
    pub(super) fn poll(&mut self, now: Clock) -> Option<Duration> {
        let passed = now.saturating_duration_since(self.began);
        let now = Instant::from_micros(i64::try_from(passed.as_micros()).unwrap_or(i64::MAX));
        self.exchange(now);
        let wait = self.interface.poll_delay(now, &self.sockets)?;
        Some(Duration::from_micros(wait.total_micros()))
    }

    fn interface_time(&self) -> i64 {
        self.wire.time
    }

    fn exchange(&mut self, now: Instant) {
        self.wire.time = now.total_micros();
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
    }

    /// The next packet for the build.
    pub(super) fn take_outgoing(&mut self) -> Option<Vec<u8>> {
        self.wire.outgoing.pop_front()
    }

    /// The next thing that the build sends over UDP.
    pub(super) fn take_datagram(&mut self) -> Option<Datagram> {
        self.datagrams.pop_front()
    }

    /// It cannot be sent. It meets no socket, and the build is told so.
    pub(super) fn refuse_datagram(&mut self, datagram: Datagram) {
        self.wire.incoming.push_back(datagram.packet);
    }

    /// Something comes back for the build. Where there is no room it is lost, as UDP may be.
    pub(super) fn give_datagram(&mut self, flow: Flow, bytes: &[u8]) {
        if self.wire.outgoing.len() < PACKETS_AT_ONCE {
            self.wire.outgoing.extend(packet::write(flow, bytes));
        }
    }

    /// The next question for a name.
    pub(super) fn take_question(&mut self) -> Option<Question> {
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(self.names);
        let (bytes, meta) = socket.recv().ok()?;
        let bytes = bytes.to_vec();
        Some(Question { meta, bytes })
    }

    /// Answers one.
    pub(super) fn answer(&mut self, question: &Question, answer: &[u8]) {
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(self.names);
        // Where there is no room, who asks asks again.
        let _sent_or_not = socket.send_slice(answer, question.meta);
    }

    fn socket(&mut self, flow: Flow) -> Option<&mut tcp::Socket<'static>> {
        match self.flows.get(&flow)? {
            State::Standing(handle) => Some(self.sockets.get_mut(*handle)),
            State::Waiting(_) => None,
        }
    }

    /// What the build has sent, at most so many bytes.
    pub(super) fn receive(&mut self, flow: Flow, most: usize) -> Option<Vec<u8>> {
        let socket = self.socket(flow)?;
        let mut bytes = vec![0; most.min(socket.recv_queue())];
        let read = socket.recv_slice(&mut bytes).ok()?;
        bytes.truncate(read);
        Some(bytes)
    }

    /// The build will send no more, and all it has sent was received.
    pub(super) fn has_ended(&mut self, flow: Flow) -> bool {
        self.socket(flow).is_none_or(|socket| {
            socket.recv_queue() == 0
                && !matches!(
                    socket.state(),
                    tcp::State::Listen
                        | tcp::State::SynSent
                        | tcp::State::SynReceived
                        | tcp::State::Established
                        | tcp::State::FinWait1
                        | tcp::State::FinWait2
                )
        })
    }

    /// Sends to the build; how much of it was taken.
    pub(super) fn send(&mut self, flow: Flow, bytes: &[u8]) -> usize {
        match self.socket(flow) {
            // Where it cannot be sent any more nobody wants it.
            Some(socket) => socket.send_slice(bytes).unwrap_or(bytes.len()),
            None => bytes.len(),
        }
    }

    /// Nothing more will be sent to the build.
    pub(super) fn close(&mut self, flow: Flow) {
        if let Some(socket) = self.socket(flow) {
            socket.close();
        }
    }

    /// The connection broke.
    pub(super) fn abort(&mut self, flow: Flow) {
        if let Some(socket) = self.socket(flow) {
            socket.abort();
        }
    }

    /// Neither side has anything to say any more. What the build sends again is refused.
    pub(super) fn is_over(&mut self, flow: Flow) -> bool {
        self.socket(flow).is_none_or(|socket| match socket.state() {
            tcp::State::Closed => true,
            tcp::State::TimeWait => socket.recv_queue() == 0,
            _ => false,
        })
    }

    /// Makes room.
    pub(super) fn forget(&mut self, flow: Flow) {
        if let Some(State::Standing(handle)) = self.flows.remove(&flow) {
            // What it still has to say, such as a reset, is said first.
            self.exchange(Instant::from_micros(self.interface_time()));
            self.sockets.remove(handle);
        }
    }
}

/// Packets on their way, in memory.
#[derive(Default)]
pub(super) struct Wire {
    pub(super) incoming: VecDeque<Vec<u8>>,
    pub(super) outgoing: VecDeque<Vec<u8>>,
    /// Of the last exchange, in microseconds.
    time: i64,
}

pub(super) struct Incoming(Vec<u8>);
pub(super) struct Outgoing<'a>(&'a mut VecDeque<Vec<u8>>);

impl Device for Wire {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Incoming, Outgoing<'_>)> {
        if self.outgoing.len() >= PACKETS_AT_ONCE {
            return None;
        }
        let packet = self.incoming.pop_front()?;
        Some((Incoming(packet), Outgoing(&mut self.outgoing)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Outgoing<'_>> {
        (self.outgoing.len() < PACKETS_AT_ONCE).then_some(Outgoing(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = PACKET_BYTES;
        capabilities
    }
}

impl RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut packet = vec![0; length];
        let result = fill(&mut packet);
        self.0.push_back(packet);
        result
    }
}
